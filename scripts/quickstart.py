"""`speechgraft quickstart`: a whole project in a few minutes on a laptop, with nothing to download."""

import argparse
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from .common import DONE, CommandError, positive

DESCRIPTION = """\
Build a speech recogniser from nothing, on this machine, in minutes: speak a corpus with espeak-ng, pretrain a small
speech encoder and a small BERT, graft them together, fine-tune, measure the word error rate on sentences and voices
that were never trained on, save, reload, transcribe, and draw what the model listened to.
Needs: pip install "speechgraft[quickstart]"."""


def _count(default: int, meaning: str) -> Any:
    return field(default=default, metadata={"help": meaning})


@dataclass(frozen=True)
class QuickstartOptions:
    """What the recipe can be asked; the command has an option for each field."""

    output_dir: Path = Path("quickstart-asr")
    seed: int = 0
    train_clips: int = _count(2400, "clips to speak for training")
    held_out_clips: int = _count(200, "clips to speak for the test")
    encoder_steps: int = _count(900, "optimiser steps that pretrain the speech encoder")
    decoder_steps: int = _count(300, "optimiser steps that pretrain the text decoder")
    steps: int = _count(700, "optimiser steps that fine-tune the grafted model")
    batch_size: int = _count(8, "clips in one optimiser step")
    num_beams: int = _count(5, "hypotheses that beam search follows")
    show: int = _count(5, "held-out clips to write, transcribe and print")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `speechgraft quickstart`."""
    parser.description = DESCRIPTION
    parser.add_argument(
        "--output-dir",
        type=Path,
        default=QuickstartOptions.output_dir,
        metavar="FOLDER",
        help="where the model, the pictures and some clips go (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=QuickstartOptions.seed, help="of the corpus and of training (default: %(default)s)"
    )
    for option in fields(QuickstartOptions):
        if meaning := option.metadata.get("help"):
            parser.add_argument(
                "--" + option.name.replace("_", "-"),
                type=positive,
                default=option.default,
                metavar="N",
                help=f"{meaning} (default: %(default)s)",
            )


def main(args: argparse.Namespace) -> int:
    """Run the recipe; returns the exit status."""
    # NumPy's linear algebra reads this when it is imported. Its products are small here: with more threads they wait
    # for each other, minutes in all where another program keeps a core busy.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

    from ..modeling.speech_figures import FiguresNotInstalledError, require_matplotlib
    from ..processing.espeak_speech import INSTALL_HINT, EspeakError, require_espeak

    try:  # before PyTorch loads, and minutes before the pictures are drawn
        require_espeak()
        require_matplotlib()
    except EspeakError as error:
        raise CommandError(str(error)) from error
    except FiguresNotInstalledError as error:
        raise CommandError(f"pictures need matplotlib, which is not installed: {INSTALL_HINT}") from error
    try:
        args.output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"--output-dir {args.output_dir}: {error.strerror}") from error

    from .quickstart_recipe import run_quickstart

    run_quickstart(
        QuickstartOptions(**{option.name: getattr(args, option.name) for option in fields(QuickstartOptions)})
    )
    return DONE
