"""`speechgraft train-vocoder`: teach a HiFi-GAN a voice, from another one or from nothing."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from .common import DONE, CommandError, positive, positive_number

DESCRIPTION = """\
Train a vocoder, the part of text to speech that turns a spectrogram into sound. It learns from recordings alone: no
text is needed. Begin with a trained HiFi-GAN (--vocoder), which takes on a new voice in hours on a GPU, or with a new
one, which takes days. If your text-to-speech model sounds blurred, train on the spectrograms that it writes itself
(--mels): the vocoder then learns to make good what they lack.

Recordings of any format and sampling rate serve; an hour or more of one voice is good. A run that was interrupted goes
on from its last checkpoint when it is started again with the same options, to the same result."""

EPILOG = """\
In --output-dir lie, in the end: the vocoder, which speechgraft.load_vocoder and Transformers' SpeechT5HifiGan open;
training_log.json with the losses; pictures of them and of a spectrogram, if matplotlib is installed; samples/, in
which one recording is spoken again at every checkpoint: listen to them, losses say little.

exit status: 0 trained; 2 nothing was done (a wrong option, no such data or vocoder); other: training failed.
Recordings that cannot be trained on are reported and left out.

examples:
  speechgraft train-vocoder --vocoder microsoft/speecht5_hifigan --train recordings --output-dir my-vocoder
  speechgraft train-vocoder --train recordings --channels 128 --steps 100000 --output-dir small-vocoder
  speechgraft train-vocoder --vocoder my-vocoder --model my-tts --mels my-tts-mels --train recordings \\
      --output-dir my-better-vocoder
  accelerate launch -m speechgraft.scripts.train_vocoder --train recordings --output-dir my-vocoder"""


@dataclass(frozen=True)
class VocoderOptions:
    """What training can be asked; the command has an option for each field."""

    train: str
    output_dir: Path
    validation: str | None = None
    mels: Path | None = None
    vocoder: str | None = None
    model: str | None = None
    channels: int | None = None
    upsample_rates: list[int] | None = None
    resblock_kernels: list[int] | None = None
    sampling_rate: int | None = None
    mel_bins: int | None = None
    win_length: int | None = None
    fmin: float | None = None
    fmax: float | None = None
    steps: int = 50_000
    batch_size: int = 16
    segment_frames: int = 32
    learning_rate: float = 2e-4
    lr_decay: float = 0.999
    mel_only_steps: int = 0
    discriminator_channels: int = 32
    seed: int = 0
    mixed_precision: str = "no"
    cpu: bool = False
    workers: int = 0
    log_every: int = 100
    save_every: int = 1_000
    keep: int = 2
    start_over: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `speechgraft train-vocoder`."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    _add_data_arguments(parser.add_argument_group("data"))
    _add_vocoder_arguments(parser.add_argument_group("vocoder"))
    _add_training_arguments(parser.add_argument_group("training"))
    _add_output_arguments(parser.add_argument_group("output"))


def _add_data_arguments(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--train",
        required=True,
        metavar="DATA",
        help="recordings: a folder, searched with all below it, an audio file, or a CSV/TSV/JSONL manifest",
    )
    group.add_argument(
        "--validation",
        metavar="DATA",
        help="recordings to measure on, which training does not see (default: none)",
    )
    group.add_argument(
        "--mels",
        type=Path,
        metavar="FOLDER",
        help="train on spectrograms that a text-to-speech model wrote for these recordings, with their timing: for "
        "a/b.wav in DATA the file a/b.npy or b.npy in this folder, log-mel [frames, mel bins] (default: the "
        "recordings' own)",
    )


def _add_vocoder_arguments(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--vocoder", metavar="FOLDER", help="trained HiFi-GAN to begin with: folder or hub id (default: a new one)"
    )
    group.add_argument(
        "--model",
        metavar="FOLDER",
        help="text-to-speech model that the vocoder is for, whose spectrograms' settings it takes over",
    )
    group.add_argument(
        "--channels",
        type=positive,
        metavar="N",
        help="size of a new vocoder: 512 is the published one, 128 is small and quick, 32 is a toy (default: 512)",
    )
    group.add_argument(
        "--upsample-rates",
        type=positive,
        nargs="+",
        metavar="N",
        help="of a new vocoder: how many times each stage lengthens the signal; their product is the number of "
        "samples in a frame (default: 4 4 4 4, 256 samples)",
    )
    group.add_argument(
        "--resblock-kernels",
        type=positive,
        nargs="+",
        metavar="N",
        help="of a new vocoder: widths of the convolutions in each stage; fewer are quicker (default: 3 7 11)",
    )
    settings = {
        "--sampling-rate": (positive, "HZ", "of its sound, and of the recordings, which are resampled", "16000"),
        "--mel-bins": (positive, "N", "mel bins of a spectrogram", "80"),
        "--win-length": (positive, "N", "window of a spectrogram, in samples", "1024"),
        "--fmin": (positive_number, "HZ", "lowest frequency of a spectrogram", "80"),
        "--fmax": (positive_number, "HZ", "highest frequency of a spectrogram", "7600"),
    }
    for name, (kind, metavar, meaning, default) in settings.items():
        group.add_argument(name, type=kind, metavar=metavar, help=f"of a new vocoder: {meaning} (default: {default})")


def _add_training_arguments(group: "argparse._ArgumentGroup") -> None:
    counts = {
        "--steps": "optimiser steps; 50 000 for a trained vocoder and a new voice, 500 000 or more for a new one",
        "--batch-size": "segments in a step, over all GPUs; lower it when memory runs out",
        "--segment-frames": "frames in a segment; 32 are half a second",
        "--discriminator-channels": "size of the discriminators, which judge and are not kept: 32 is the published "
        "one, 8 is much quicker",
    }
    for name, meaning in counts.items():
        _add(group, name, positive, "N", meaning)
    _add(group, "--learning-rate", positive_number, "RATE", "of the first step")
    _add(group, "--lr-decay", positive_number, "FACTOR", "to the learning rate, in every pass over the recordings")
    _add(
        *(group, "--mel-only-steps", int, "N"),
        "first steps without discriminators: four times as quick; a new vocoder soon speaks, though hoarsely",
    )
    _add(group, "--seed", int, "N", "of new weights and of the order of segments")
    group.add_argument(
        "--mixed-precision",
        choices=("no", "bf16", "fp16"),
        default=VocoderOptions.mixed_precision,
        help="compute in half precision where that is safe: quicker on a GPU (default: %(default)s)",
    )
    group.add_argument("--cpu", action="store_true", help="compute on the CPU although there is a GPU")
    _add(group, "--workers", int, "N", "processes that read recordings; 4 keep a GPU busy")


def _add_output_arguments(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--output-dir", type=Path, required=True, metavar="FOLDER", help="where everything goes")
    _add(group, "--log-every", positive, "STEPS", "log the mean losses of so many steps")
    _add(group, "--save-every", positive, "STEPS", "write a checkpoint, measure, and speak a sample")
    _add(group, "--keep", positive, "N", "checkpoints to keep: the last ones")
    group.add_argument(
        "--start-over", action="store_true", help="begin anew although --output-dir holds checkpoints; they are lost"
    )


def _add(group: "argparse._ArgumentGroup", name: str, kind: Callable[[str], Any], metavar: str, meaning: str) -> None:
    default = getattr(VocoderOptions, name[2:].replace("-", "_"))
    group.add_argument(name, type=kind, default=default, metavar=metavar, help=f"{meaning} (default: %(default)s)")


def check(options: VocoderOptions) -> None:
    """Find before anything is loaded what would fail after it.

    Raises:
        CommandError: options contradict each other, or a folder is not there.
    """
    new = ("channels", "upsample_rates", "resblock_kernels")
    settings = ("sampling_rate", "mel_bins", "win_length", "fmin", "fmax")
    for name in (*new, *settings):
        spelled = f"--{name.replace('_', '-')}"
        if getattr(options, name) is not None and options.vocoder is not None:
            raise CommandError(f"{spelled} is for a new vocoder: --vocoder brings its own")
        if getattr(options, name) is not None and name in settings and options.model is not None:
            raise CommandError(f"{spelled}: --model settles what its spectrograms are: leave the option out")
    if options.mels is not None and not options.mels.is_dir():
        raise CommandError(f"--mels {options.mels}: no such folder")
    for name, least in (("mel_only_steps", 0), ("workers", 0), ("seed", 0)):
        if getattr(options, name) < least:
            raise CommandError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(options, name)}")
    if options.lr_decay > 1:
        raise CommandError(f"--lr-decay is at most 1, got {options.lr_decay:g}")
    if options.output_dir.exists() and not options.output_dir.is_dir():
        raise CommandError(f"--output-dir {options.output_dir}: a file, not a folder")


def main(args: argparse.Namespace) -> int:
    """Train; returns the exit status."""
    options = VocoderOptions(**{option.name: getattr(args, option.name) for option in fields(VocoderOptions)})
    check(options)
    from .vocoder_recipe import train_vocoder

    train_vocoder(options)
    return DONE


if __name__ == "__main__":
    from .cli import main as speechgraft

    sys.exit(speechgraft(["train-vocoder", *sys.argv[1:]]))
