"""What a model says while it is trained: sound and pictures of one sentence, at every evaluation."""

from pathlib import Path
from typing import Any

import soundfile
import torch
from transformers import TrainerCallback

from .common import say, without_warnings

LONGEST = 2  # times the recording: a model that does not stop yet would speak on for long


class SampleCallback(TrainerCallback):
    """Speaks one clip's text at every evaluation, or once in the end where there is none.

    Args:
        clips: one of which is spoken, of middle length.
        processor: of the model.
        folder: where the sound and the pictures go.
    """

    def __init__(self, clips: Any, processor: Any, folder: Path):
        by_length = sorted(range(len(clips)), key=clips.lengths.__getitem__)
        index = by_length[len(by_length) // 2]
        self.clip, self.text = clips[index], clips.texts[index]
        self.processor, self.folder = processor, folder
        self.last_step = -1

    def on_evaluate(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Part of Trainer's protocol."""
        self._speak(model, state)

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Part of Trainer's protocol."""
        self._speak(model, state)

    @torch.no_grad()
    def _speak(self, model: Any, state: Any) -> None:
        if not state.is_world_process_zero or state.global_step == self.last_step:
            return
        self.last_step = state.global_step
        self.folder.mkdir(parents=True, exist_ok=True)
        with without_warnings():  # that speech was cut off is told below
            output = self._spoken(model)
        alignment, stopped = output.alignments[0], output.stop_reasons[0]
        name = self.folder / f"step-{state.global_step:06d}"
        rate = model.config.sampling_rate
        soundfile.write(name.with_suffix(".wav"), output.waveform[0].float().cpu().numpy(), rate)
        state.log_history.append({"step": state.global_step, "eval_focus_rate": alignment.focus_rate})
        say(
            f"step {state.global_step}: spoken to {name}.wav: {len(output.waveform[0]) / rate:.2f} s, "
            f"{'stopped by itself' if stopped == 'stop' else 'cut off'}, focus rate {alignment.focus_rate:.2f}"
        )
        self._draw(model, output, name.with_suffix(".png"))

    def _spoken(self, model: Any) -> Any:
        frames, config = len(self.clip["labels"]), model.config
        speaker = self.clip.get("speaker_embeddings")
        return model.generate(
            torch.tensor([self.clip["input_ids"]], device=model.device),
            speaker_embeddings=None if speaker is None else torch.as_tensor(speaker),
            generator=torch.Generator().manual_seed(0),
            max_new_tokens=min(LONGEST * frames, config.max_speech_positions * config.reduction_factor),
            output_alignments=True,
        )

    def _draw(self, model: Any, output: Any, path: Path) -> None:
        from ..modeling.speech_figures import FiguresNotInstalledError, plot_synthesis

        alignment = output.alignments[0]
        tokens = self.processor.tokenizer.convert_ids_to_tokens(self.clip["input_ids"])
        frame_s = model.config.hop_length / model.config.sampling_rate
        panels = {"recording": self.clip["labels"], "synthesis": output.spectrogram[0].float().cpu().numpy()}
        title = f"{self.text[:80]!r}, focus rate {alignment.focus_rate:.2f}, {output.stop_reasons[0]}"
        try:
            weights = alignment.weights.float().cpu().numpy()
            plot_synthesis(panels, weights, tokens, frame_s, frame_s * model.config.reduction_factor, path, title)
        except FiguresNotInstalledError:  # told with the losses, at the end
            return
