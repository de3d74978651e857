"""What `speechgraft train-vocoder` does: recordings to segments, a learner that goes on anywhere, and its records."""

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers import SpeechT5HifiGanConfig, set_seed

from ..configuration.configuration_text_to_spectrogram import TextToSpectrogramConfig
from ..modeling.hifigan_training import (
    HEARING_FLOOR,
    HifiGanDiscriminators,
    HifiGanLearner,
    Segment,
    SegmentDraws,
    check_fits,
    cut_segment,
    mel_loss,
    mel_spectrogram,
    new_vocoder,
    set_input_statistics,
)
from ..modeling.speech_vocoders import SpeechVocoder, check_vocoder_agrees, load_vocoder
from ..processing.audio_files import AudioError, find_audio_files, load_audio
from ..processing.mel_spectrograms import MelSettings
from ..processing.speech_datasets import MANIFEST_SUFFIXES, load_speech_dataset
from .common import CommandError, explained, one_line, say
from .loading import check_is_model
from .train_vocoder import VocoderOptions

CACHED_SAMPLES = 250_000_000  # 1 GB: four hours of 16 kHz need not be decoded again
STATISTICS_CLIPS = 200  # from which a new vocoder learns mean and scale of its input
VALIDATION_CLIPS = 16  # measured at each checkpoint
CHECKPOINT = "checkpoint-"
RUN_FILE = "run.json"  # what must stay as it was when a run goes on
LOG_FILE = "training_log.json"
# Without these equal, a checkpoint's weights do not fit.
SIZES = (
    *("model_in_dim", "upsample_initial_channel", "upsample_rates", "upsample_kernel_sizes", "resblock_kernel_sizes"),
    *("resblock_dilation_sizes", "sampling_rate", "discriminator_channels"),
)


@dataclass
class Clip:
    """One recording, and the spectrogram that a model wrote for it."""

    audio: Path
    mel: Path | None = None

    def spectrogram(self) -> torch.Tensor | None:
        """That spectrogram, [T, M]."""
        return None if self.mel is None else torch.from_numpy(np.load(self.mel, allow_pickle=False)).float()


@dataclass
class Clips(Dataset):
    """Segments of recordings, which are kept in memory as far as they go."""

    clips: list[Clip]
    settings: MelSettings
    frames: int
    cache: dict[int, torch.Tensor] = field(default_factory=dict)
    cached_samples: int = 0

    def __getitem__(self, place: tuple[int, float]) -> Segment:
        index, draw = place
        return cut_segment(self.waveform(index), self.frames, draw, self.settings, self.clips[index].spectrogram())

    def __len__(self) -> int:
        return len(self.clips)

    def waveform(self, index: int) -> torch.Tensor:
        """A whole recording, [N]."""
        if index in self.cache:
            return self.cache[index]
        waveform = torch.from_numpy(load_audio(self.clips[index].audio, self.settings.sampling_rate))
        if self.cached_samples + len(waveform) <= CACHED_SAMPLES:
            self.cache[index] = waveform
            self.cached_samples += len(waveform)
        return waveform

    def whole(self, index: int) -> Segment:
        """A whole recording with its spectrogram."""
        waveform, given = self.waveform(index), self.clips[index].spectrogram()
        frames = check_fits(waveform, given, self.settings)
        return cut_segment(waveform, frames, 0.0, self.settings, given)


def train_vocoder(options: VocoderOptions) -> None:
    """Train a vocoder and save it to `options.output_dir`.

    Raises:
        CommandError: there is no such data or vocoder, or they do not fit; memory ran out; the loss is not finite.
    """
    with explained("--mixed-precision"):
        accelerator = Accelerator(cpu=options.cpu, mixed_precision=options.mixed_precision)
    if options.batch_size % accelerator.num_processes:
        raise CommandError(
            f"--batch-size {options.batch_size} is no multiple of the {accelerator.num_processes} processes"
        )
    torch.backends.cudnn.benchmark = True  # all batches have one shape
    set_seed(options.seed)
    vocoder, settings = build(options)
    train = load_clips(options.train, options, settings, accelerator.is_main_process)
    validation = None
    if options.validation is not None:
        validation = load_clips(options.validation, options, settings, accelerator.is_main_process, VALIDATION_CLIPS)
    if options.vocoder is None:
        chosen = range(min(len(train), STATISTICS_CLIPS))
        set_input_statistics(vocoder, [train.whole(index).spectrogram for index in chosen])
    run = Run(options, accelerator, vocoder, settings, train, validation)
    try:
        run.go()
    except torch.OutOfMemoryError as error:
        raise CommandError(
            "out of memory: give a smaller --batch-size, --segment-frames or --discriminator-channels"
        ) from error


def build(options: VocoderOptions) -> tuple[SpeechVocoder, MelSettings]:
    """The vocoder to begin with, and what its spectrograms are.

    Raises:
        CommandError: a folder is not there or holds something else, sizes do not go together, or model and vocoder
            do not agree.
    """
    model = None
    if options.model is not None:
        check_is_model(options.model)
        with explained(options.model):
            model = TextToSpectrogramConfig.from_pretrained(options.model)
    if options.vocoder is None:
        return _new_vocoder(options, model)
    check_is_model(options.vocoder)
    with explained(options.vocoder):
        vocoder = load_vocoder(options.vocoder, dtype=torch.float32)
        known = {name: getattr(vocoder.config, name) for name in SPECTROGRAM_FIELDS if hasattr(vocoder.config, name)}
        its = MelSettings(
            sampling_rate=vocoder.sampling_rate,
            hop_length=vocoder.hop_length,
            num_mel_bins=vocoder.num_mel_bins,
            **(known or (_fields_of(model) if model is not None else {})),
        )
        if model is not None:
            check_vocoder_agrees(model, vocoder.config)
    return _told(vocoder, its), its


SPECTROGRAM_FIELDS = ("n_fft", "win_length", "fmin", "fmax", "mel_floor")  # that Transformers' vocoders do not have


def _fields_of(settings: Any) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in SPECTROGRAM_FIELDS}


def _told(vocoder: SpeechVocoder, settings: MelSettings) -> SpeechVocoder:
    """A vocoder whose configuration says what spectrograms it takes."""
    for name, value in _fields_of(settings).items():
        setattr(vocoder.config, name, value)
    return vocoder


def _new_vocoder(options: VocoderOptions, model: Any) -> tuple[SpeechVocoder, MelSettings]:
    rates, kernels = options.upsample_rates or [4, 4, 4, 4], options.resblock_kernels or [3, 7, 11]
    with explained():
        if model is not None:
            settings = MelSettings.from_config(model)
        else:
            settings = MelSettings(hop_length=math.prod(rates), **_chosen_settings(options))
        config = SpeechT5HifiGanConfig(
            model_in_dim=settings.num_mel_bins,
            sampling_rate=settings.sampling_rate,
            upsample_initial_channel=options.channels or 512,
            upsample_rates=rates,
            upsample_kernel_sizes=[2 * rate + rate % 2 for rate in rates],
            resblock_kernel_sizes=kernels,
            resblock_dilation_sizes=[[1, 3, 5] for _ in kernels],
        )
        check_vocoder_agrees(settings, config)
        return _told(new_vocoder(config), settings), settings


def _chosen_settings(options: VocoderOptions) -> dict[str, Any]:
    """Those that were given on the command line; the transform is as long as its window, or the next power of two."""
    names = {
        "sampling_rate": options.sampling_rate,
        "num_mel_bins": options.mel_bins,
        "win_length": options.win_length,
        "fmin": options.fmin,
        "fmax": options.fmax,
    }
    chosen = {name: value for name, value in names.items() if value is not None}
    if options.win_length is not None:
        chosen["n_fft"] = 2 ** math.ceil(math.log2(options.win_length))
    return chosen


def load_clips(
    source: str, options: VocoderOptions, settings: MelSettings, tell: bool = True, at_most: int | None = None
) -> Clips:
    """Recordings that can be trained on; each is read once, and those that cannot be used are told.

    Raises:
        CommandError: there are none.
    """
    with explained(source):
        files = _files_of(source)
    clips = Clips([], settings, options.segment_frames)
    left_out = []
    for file in tqdm(files, desc="checking recordings", unit="clip", disable=not tell, leave=False):
        clip = Clip(file)
        clips.clips.append(clip)
        try:
            if options.mels is not None:
                clip.mel = _mel_of(file, source, options.mels)
            check_fits(clips.waveform(len(clips) - 1), clip.spectrogram(), settings)
        except (AudioError, ValueError, OSError) as error:
            left_out.append(error)
            clips.clips.pop()
            clips.cached_samples -= len(clips.cache.pop(len(clips), ()))
            if tell:
                say(f"left out: {_with_name(error, file)}")
        if len(clips) == at_most:
            break
    if not clips.clips:
        raise CommandError(
            f"{source}: none of {len(files)} recordings can be used; the first: {one_line(left_out[0])}"
        )
    if left_out and tell:
        say(f"left out {len(left_out)} of {len(files)} recordings of {source}")
    return clips


def _with_name(error: Exception, file: Path) -> str:
    message = one_line(error)
    return message if file.stem in message else f"{file}: {message}"


def _files_of(source: str) -> list[Path]:
    path = Path(source)
    if path.suffix.lower() in MANIFEST_SUFFIXES:
        return [Path(row["audio"]) for row in load_speech_dataset(path, strict=False)]
    return find_audio_files(path)


def _mel_of(file: Path, source: str, mels: Path) -> Path:
    candidates = [mel_file(file, source, mels), mels / f"{file.stem}.npy"]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise ValueError(f"{file}: no spectrogram {candidates[0]}")


def mel_file(file: Path, source: str, mels: Path) -> Path:
    """Where the spectrogram of a recording lies: as the recording does within its data set's folder.

    Args:
        file: the recording.
        source: the data set: a folder, or a manifest in one.
        mels: folder of the spectrograms.
    """
    root = Path(source) if Path(source).is_dir() else Path(source).parent
    beside = file.relative_to(root) if file.is_relative_to(root) else Path(file.name)
    return mels / beside.with_suffix(".npy")


class Run:
    """One training: where it stands, what it wrote down, and what lies in its folder."""

    def __init__(
        self,
        options: VocoderOptions,
        accelerator: Accelerator,
        vocoder: SpeechVocoder,
        settings: MelSettings,
        train: Clips,
        validation: Clips | None,
    ):
        self.options, self.accelerator, self.settings = options, accelerator, settings
        self.train, self.validation = train, validation
        self.log: list[dict[str, float]] = []
        self.facts = _facts(options, vocoder, len(train))
        self.learner = HifiGanLearner(
            vocoder,
            HifiGanDiscriminators(options.discriminator_channels),
            settings,
            accelerator,
            learning_rate=options.learning_rate,
            decay=options.lr_decay,
            steps_in_pass=len(train) / options.batch_size,
        )
        accelerator.register_for_checkpointing(self)

    def state_dict(self) -> dict[str, Any]:
        """What `accelerate` does not save by itself."""
        return {"learner": self.learner.state_dict(), "log": self.log}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a checkpoint stands."""
        self.learner.load_state_dict(state["learner"])
        self.log = state["log"]

    def go(self) -> None:
        """Train from the last checkpoint, or from the beginning, to the end; save; draw."""
        options = self.options
        with explained(f"--output-dir {options.output_dir}"):
            options.output_dir.mkdir(parents=True, exist_ok=True)
        self.resume()
        losses = MeanLosses()
        for spectrogram, waveform in self.batches():
            adversarial = self.learner.step >= options.mel_only_steps
            losses.add(self.learner.learn(spectrogram, waveform, adversarial))
            step = self.learner.step
            is_due = step % options.save_every == 0 or step == options.steps
            if is_due or step % options.log_every == 0:
                self.write_down(losses.take(self.accelerator))
            if is_due:
                self.evaluate()
                self.save_checkpoint()
        if self.accelerator.is_main_process:
            self.finish()

    def batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Spectrograms [B, T, M] and waveforms [B, N] of the steps that are left, with a progress bar."""
        options, processes = self.options, self.accelerator
        draws = SegmentDraws(
            *(len(self.train), options.batch_size, options.seed, self.learner.step, options.steps),
            process=processes.process_index,
            processes=processes.num_processes,
        )
        loader = DataLoader(
            self.train,
            batch_sampler=cast(Any, draws),
            collate_fn=_stacked,
            num_workers=options.workers,
            pin_memory=processes.device.type == "cuda",
        )
        bar = tqdm(
            *(loader, "training vocoder"),
            initial=self.learner.step,
            total=options.steps,
            unit="step",
            disable=not processes.is_main_process,
        )
        for spectrogram, waveform in bar:
            device = processes.device
            yield spectrogram.to(device, non_blocking=True), waveform.to(device, non_blocking=True)
            if losses := [row["mel_loss"] for row in self.log[-2:] if "mel_loss" in row]:
                bar.set_postfix_str(f"mel loss {losses[-1]:.3f}", refresh=False)

    def write_down(self, losses: dict[str, float]) -> None:
        """Log the mean losses since the last time.

        Raises:
            CommandError: one is not finite: weights are lost, and going on would waste hours.
        """
        step = self.learner.step
        wrong = [name for name, value in losses.items() if not math.isfinite(value)]
        if wrong:
            raise CommandError(
                f"{wrong[0]} is {losses[wrong[0]]} at step {step}: start again with a lower --learning-rate than "
                f"{self.options.learning_rate:g}; it goes on from the last checkpoint"
            )
        self.log.append({"step": step, **losses})

    @torch.no_grad()
    def evaluate(self) -> None:
        """Measure the mel loss on whole recordings, and speak one of them."""
        if not self.accelerator.is_main_process:
            return
        vocoder = self.learner.vocoder.eval()
        if self.validation is not None:
            clips = self.validation
            losses = [self._mel_loss(*self._spoken(vocoder, clips.whole(index))) for index in range(len(clips))]
            self.log.append({"step": self.learner.step, "validation_mel_loss": sum(losses) / len(losses)})
        self._speak(vocoder)
        vocoder.train()
        _write_json(self.options.output_dir / LOG_FILE, self.log)

    def _spoken(self, vocoder: SpeechVocoder, clip: Segment) -> tuple[Segment, torch.Tensor]:
        return clip, vocoder(clip.spectrogram.to(self.accelerator.device)).cpu()

    def _mel_loss(self, clip: Segment, spoken: torch.Tensor) -> float:
        return float(mel_loss(clip.waveform[None], spoken[None], self.settings))

    def _speak(self, vocoder: SpeechVocoder) -> None:
        import soundfile

        clips = self.validation or self.train
        folder, name = self.options.output_dir / "samples", clips.clips[0].audio.stem
        folder.mkdir(exist_ok=True)
        clip, spoken = self._spoken(vocoder, clips.whole(0))
        for kind, waveform in (("recorded", clip.waveform), (f"step{self.learner.step}", spoken)):
            soundfile.write(folder / f"{name}-{kind}.wav", waveform.numpy(), self.settings.sampling_rate)

    def save_checkpoint(self) -> None:
        """Write everything that going on needs; a folder that bears its final name is whole."""
        folder = self.options.output_dir / f"{CHECKPOINT}{self.learner.step}"
        partial = folder.with_name(f"partial-{folder.name}")
        self.accelerator.wait_for_everyone()
        with explained(str(folder)):
            self.accelerator.save_state(str(partial))
        if self.accelerator.is_main_process:
            _write_json(partial / RUN_FILE, self.facts)
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
            for old in checkpoints(self.options.output_dir)[: -self.options.keep]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def resume(self) -> None:
        """Go on from the last checkpoint, if there is one.

        Raises:
            CommandError: it is of a run with other options.
        """
        found = checkpoints(self.options.output_dir)
        if self.options.start_over:
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                for folder in found:
                    shutil.rmtree(folder)
            return
        if not found:
            return
        folder = found[-1]
        before = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
        different = {
            name: f"{name} was {before.get(name)} and is {value}"
            for name, value in self.facts.items()
            if before.get(name) != value
        }
        if must := [told for name, told in different.items() if name in SIZES]:
            raise CommandError(f"{folder}: of another run ({', '.join(must)}): give the same sizes, or --start-over")
        with explained(str(folder)):
            self.accelerator.load_state(str(folder))
        if self.accelerator.is_main_process:
            say(f"going on from {folder} (--start-over begins anew)")
            if different:
                say(f"not quite as one run would: {', '.join(different.values())}")

    def finish(self) -> None:
        """Save the vocoder, and draw what was logged."""
        folder, vocoder = self.options.output_dir, self.learner.vocoder
        vocoder.eval().save_pretrained(folder)
        with torch.no_grad():
            clip, spoken = self._spoken(vocoder, (self.validation or self.train).whole(0))
        draw(folder, self.log, clip, spoken, self.settings)
        named = {name: value for row in self.log for name, value in row.items() if name.endswith("mel_loss")}
        losses = "".join(f", {name.replace('_', ' ')} {value:.4f}" for name, value in named.items())
        say(f"vocoder saved to {folder}{losses}")


class MeanLosses:
    """Means of losses that stay where they were computed until they are asked for."""

    def __init__(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, losses: dict[str, torch.Tensor]) -> None:
        """Of one step."""
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def take(self, accelerator: Accelerator) -> dict[str, float]:
        """The means since the last time, over all processes."""
        if not self.sums:
            return {}
        mine = torch.stack([value / self.counts[name] for name, value in self.sums.items()])
        means = cast(torch.Tensor, accelerator.reduce(mine, reduction="mean")).tolist()
        names = list(self.sums)
        self.sums, self.counts = {}, {}
        return dict(zip(names, means, strict=True))


def _facts(options: VocoderOptions, vocoder: SpeechVocoder, recordings: int) -> dict[str, Any]:
    """What a run that goes on should have in common with the one before."""
    facts: dict[str, Any] = {name: getattr(vocoder.config, name) for name in SIZES if hasattr(vocoder.config, name)}
    facts["discriminator_channels"] = options.discriminator_channels
    facts |= {name: getattr(options, name) for name in ("batch_size", "segment_frames", "seed", "mel_only_steps")}
    return json.loads(json.dumps(facts | {"recordings": recordings}))


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a run's folder, the oldest first."""
    found = [path for path in folder.glob(f"{CHECKPOINT}*") if path.name.removeprefix(CHECKPOINT).isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix(CHECKPOINT)))


def _stacked(segments: Sequence[Segment]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.stack([one.spectrogram for one in segments]), torch.stack([one.waveform for one in segments])


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def draw(
    folder: Path, log: list[dict[str, float]], clip: Segment, spoken: torch.Tensor, settings: MelSettings
) -> None:
    """Draw the losses, and a recording's spectrogram above that of what the vocoder made of it."""
    from ..modeling.speech_figures import FiguresNotInstalledError, losses_by_step, plot_losses, plot_spectrogram

    panels = {
        "spectrograms": ("mel_loss", "validation_mel_loss"),
        "discriminators": ("adversarial_loss", "feature_matching_loss", "discriminator_loss"),
    }
    curves = {
        title: {name.replace("_", " "): curve for name in names if (curve := losses_by_step(log, name))}
        for title, names in panels.items()
    }
    try:
        plot_losses({title: panel for title, panel in curves.items() if panel}, folder / "loss.png")
        waveforms = {"recorded": clip.waveform, "spoken by the vocoder": spoken}
        mels = {name: mel_spectrogram(one.float(), settings) for name, one in waveforms.items()}  # [T, M] of each
        logarithms = {name: (mel + HEARING_FLOOR).log10().numpy() for name, mel in mels.items()}
        plot_spectrogram(logarithms, settings.duration_s(1), folder / "spectrogram.png")
        say(f"pictures drawn in {folder}: loss.png, spectrogram.png")
    except FiguresNotInstalledError as error:
        say(str(error))
