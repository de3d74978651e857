"""Synthesis with `TextToSpectrogramModel` and `SpeechT5ForTextToSpeech` side by side, on the same random weights.

    python benchmarks/synthesize_speech.py                       # every table
    python benchmarks/synthesize_speech.py --only step           # decoder steps at 400 steps, batch 1, 4 and 16
    python benchmarks/synthesize_speech.py --only growth first   # step at 800 to step at 100; first audio of a stream

Sizes are SpeechT5's own with its HiFi-GAN, texts have 60 tokens, and the length of the speech is forced. Runs
alternate between the two classes, so that a machine whose speed drifts slows both; medians and their ratios are
printed.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from tqdm import tqdm
from transformers import SpeechT5HifiGanConfig

from speechgraft import SpeechVocoder, TextToSpectrogramConfig, TextToSpectrogramModel

TEXT_TOKENS = 60
WINDOW = 20  # decoder steps over which the time of one is the median
NEVER = 3.0  # a threshold that the sum of two probabilities, which is what the built-in class compares, cannot reach
GOALS = {1: 1.5, 4: 2.0, 16: 2.9}  # least ratio to the built-in class for each batch size
TINY = {"hidden_size": 48, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
TINY_VOCODER = {"upsample_initial_channel": 16, "resblock_kernel_sizes": [3], "resblock_dilation_sizes": [[1, 3, 5]]}


class Synthesizers:
    """Our model and the native one, sharing every weight, and the calls that are timed.

    Args:
        tiny: make them small, to see that this program runs.
    """

    def __init__(self, tiny: bool = False):
        torch.manual_seed(0)
        self.ours = TextToSpectrogramModel(TextToSpectrogramConfig(**(TINY if tiny else {}))).eval()
        self.native: Any = self.ours.to_native().eval()
        self.vocoder = SpeechVocoder(SpeechT5HifiGanConfig(**(TINY_VOCODER if tiny else {}))).eval()
        self.native_vocoder = self.vocoder.to_native().eval()
        self.frames_per_step: int = self.ours.config.reduction_factor

    def text(self, batch: int) -> torch.Tensor:
        """Token ids [B, S]."""
        vocabulary = self.ours.config.vocab_size
        return torch.randint(4, vocabulary, (batch, TEXT_TOKENS), generator=torch.Generator().manual_seed(batch))

    def voices(self, batch: int) -> torch.Tensor:
        """Speaker embeddings [B, V]; the built-in class demands them."""
        return torch.ones(batch, self.ours.config.speaker_embedding_dim)

    def _ours_settings(self, steps: int) -> dict[str, int]:
        frames = steps * self.frames_per_step
        return {"min_new_tokens": frames, "max_new_tokens": frames}

    def speak(self, batch: int, steps: int) -> None:
        """Write spectrograms of so many decoder steps."""
        self.ours.generate(
            self.text(batch),
            speaker_embeddings=self.voices(batch),
            output_waveform=False,
            **self._ours_settings(steps),
        )

    def speak_natively(self, batch: int, steps: int, vocoder: Any = None) -> None:
        """The same with the built-in class."""
        self.native.generate(
            self.text(batch),
            speaker_embeddings=self.voices(batch),
            threshold=NEVER,
            maxlenratio=(steps + 0.5) * self.frames_per_step / TEXT_TOKENS,
            vocoder=vocoder,
        )

    def first_audio(self, steps: int) -> float:
        """Seconds to the first chunk of a stream, whose rest is left unspoken."""
        start = time.perf_counter()
        stream = self.ours.stream(
            self.text(1), speaker_embeddings=self.voices(1), vocoder=self.vocoder, **self._ours_settings(steps)
        )
        next(stream)
        return time.perf_counter() - start


def step_times(module: torch.nn.Module, run: Callable[[], None]) -> list[float]:
    """Seconds between one decoder step and the next, by when `module`, which each calls once, has run."""
    ends: list[float] = []
    hook = module.register_forward_hook(lambda *_: ends.append(time.perf_counter()))
    try:
        run()
    finally:
        hook.remove()
    return [after - before for before, after in zip(ends, ends[1:], strict=False)]


def at_step(times: list[float], step: int) -> float:
    """Median seconds of the steps around one."""
    return statistics.median(times[max(step - WINDOW // 2, 0) : step + WINDOW // 2])


def print_steps(models: Synthesizers, step: int, batches: list[int], rounds: int) -> None:
    """A step of each class with so many before it."""
    print(f"\ndecoder step {step}, {torch.get_num_threads()} threads")
    print(f"{'':12}{'native ms':>12}{'ours ms':>10}{'ratio':>8}{'goal':>8}")
    length = step + WINDOW // 2
    for batch in batches:
        native, ours = [], []
        for _ in tqdm(range(rounds), desc=f"batch {batch}", leave=False):
            run = models.speak_natively
            times = step_times(models.native.speech_decoder_postnet.feat_out, lambda: run(batch, length))  # noqa: B023
            native.append(at_step(times, step))
            times = step_times(models.ours.decoder.mel_head, lambda: models.speak(batch, length))  # noqa: B023
            ours.append(at_step(times, step))
        theirs, its = statistics.median(native), statistics.median(ours)
        goal = f"{GOALS[batch]:8}" if batch in GOALS else ""
        print(f"batch {batch:<6}{theirs * 1e3:12.1f}{its * 1e3:10.1f}{theirs / its:8.2f}{goal}")


def print_growth(models: Synthesizers, early: int, late: int, rounds: int) -> None:
    """How much more a step costs late in an utterance than early."""
    ratios, firsts, lasts = [], [], []
    for _ in tqdm(range(rounds), desc="growth", leave=False):
        times = step_times(models.ours.decoder.mel_head, lambda: models.speak(1, late + WINDOW // 2))
        firsts.append(at_step(times, early))
        lasts.append(at_step(times, late))
        ratios.append(lasts[-1] / firsts[-1])
    print(
        f"\nstep({late}) / step({early}), batch 1: {statistics.median(ratios):.2f} (goal: at most 1.35), "
        f"{statistics.median(firsts) * 1e3:.1f} ms and {statistics.median(lasts) * 1e3:.1f} ms"
    )


def print_first_audio(models: Synthesizers, steps: int, rounds: int) -> None:
    """First sound of a stream beside the only sound of the built-in class."""
    native, ours = [], []
    for _ in tqdm(range(rounds), desc="first audio", leave=False):
        start = time.perf_counter()
        models.speak_natively(1, steps, models.native_vocoder)
        native.append(time.perf_counter() - start)
        ours.append(models.first_audio(steps))
    theirs, its = statistics.median(native), statistics.median(ours)
    config = models.ours.config
    seconds = steps * models.frames_per_step * config.hop_length / config.sampling_rate
    print(
        f"\nfirst audio of {seconds:.1f} s: native {theirs:.2f} s, ours {its:.2f} s, "
        f"1/{theirs / its:.1f} of native (goal: at most 1/8)"
    )


def main() -> None:
    """Read the options and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=["step", "growth", "first"], default=["step", "growth", "first"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--step", type=int, default=400, help="decoder steps before the one that is timed")
    parser.add_argument("--early", type=int, default=100, help="for the growth of a step: the early one")
    parser.add_argument("--late", type=int, default=800, help="and the late one")
    parser.add_argument("--speech-steps", type=int, default=200, help="length of the streamed speech: 200 are 6.4 s")
    parser.add_argument("--rounds", type=int, default=3, help="timed runs of each class")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tiny", action="store_true", help="a model of no use, to see that this program runs")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    models = Synthesizers(args.tiny)
    if "step" in args.only:
        print_steps(models, args.step, args.batches, args.rounds)
    if "growth" in args.only:
        print_growth(models, args.early, args.late, args.rounds)
    if "first" in args.only:
        print_first_audio(models, args.speech_steps, args.rounds)


if __name__ == "__main__":
    main()
