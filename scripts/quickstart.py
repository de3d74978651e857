"""`speechgraft quickstart`: a whole project in a few minutes on a laptop, with nothing to download."""

import argparse
import sys
from pathlib import Path

DESCRIPTION = """\
Build a speech recogniser from nothing, on this machine, in a few minutes: speak a corpus with espeak-ng, pretrain a
small speech encoder and a small BERT, graft them together, fine-tune, measure the word error rate on sentences and
voices that were never trained on, save, reload and transcribe. Needs: pip install "speechgraft[quickstart]"."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `speechgraft quickstart`."""
    parser.description = DESCRIPTION
    parser.add_argument(
        "--output-dir",
        type=Path,
        default=Path("quickstart-asr"),
        help="folder for the model, the pictures and some clips (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the corpus and of training (default: %(default)s)")
    sizes = {
        "--train-clips": (3000, "clips to speak for training"),
        "--held-out-clips": (200, "clips to speak for the test"),
        "--encoder-steps": (700, "optimiser steps that pretrain the speech encoder"),
        "--decoder-steps": (300, "optimiser steps that pretrain the text decoder"),
        "--steps": (800, "optimiser steps that fine-tune the grafted model"),
        "--batch-size": (16, "clips in one optimiser step"),
        "--num-beams": (5, "beams of the beam search"),
        "--show": (5, "held-out clips to transcribe and print"),
    }
    for name, (default, what) in sizes.items():
        parser.add_argument(name, type=_positive, default=default, metavar="N", help=f"{what} (default: {default})")


def _positive(value: str) -> int:
    number = int(value)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def main(args: argparse.Namespace) -> int:
    """Run the recipe; returns the exit code."""
    from ..modeling.speech_figures import FiguresNotInstalledError, require_matplotlib
    from ..processing.espeak_speech import INSTALL_HINT, EspeakError, require_espeak

    try:
        require_espeak()
        require_matplotlib()
    except EspeakError as error:
        print(f"speechgraft quickstart: {error}", file=sys.stderr)
        return 1
    except FiguresNotInstalledError:
        print(f"speechgraft quickstart: pictures need matplotlib: {INSTALL_HINT}", file=sys.stderr)
        return 1
    # After the check: a missing extra should be told at once, not when PyTorch has loaded.
    from .quickstart_recipe import QuickstartOptions, run_quickstart

    run_quickstart(QuickstartOptions(**{name: getattr(args, name) for name in QuickstartOptions.names()}))
    return 0
