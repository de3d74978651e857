"""The command `speechgraft`: finds the subcommand, and nothing heavy before its options are accepted."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from .. import __version__
from .common import MISUSED, run

# name: (module with add_arguments and main, what it does)
COMMANDS = {
    "quickstart": ("quickstart", "build, train and try a speech recogniser in minutes, with nothing to download"),
    "train-asr": ("train_asr", "fine-tune a speech-to-text model, from pretrained parts or a trained model"),
    "transcribe": ("transcribe", "write down what is said in recordings"),
    "evaluate-asr": ("evaluate_asr", "measure word and character error rate and speed on recordings with transcripts"),
    "train-tts": (
        "train_tts",
        "teach a text-to-speech model a voice, from nothing, a text encoder or a trained model",
    ),
    "synthesize": ("synthesize", "speak texts: into sound files, or to a player while they are being spoken"),
    "evaluate-tts": ("evaluate_tts", "compare synthesised speech with recordings, and have it heard by a recogniser"),
    "write-mels": ("write_mels", "write what a text-to-speech model makes of recordings, to train its vocoder on"),
    "train-vocoder": (
        "train_vocoder",
        "train the vocoder that turns a text-to-speech model's spectrograms into sound",
    ),
    "publish": ("publish", "make a trained model ready to share: model card, metrics, and the code it needs"),
    "convert": ("convert", "turn a SpeechEncoderDecoderModel into a speechgraft model, or back"),
}
TRAINING = ("train-asr", "train-tts")  # commands whose options are Trainer's, which take seconds to import

EPILOG = """\
`speechgraft COMMAND --help` explains a command. Begin with `speechgraft quickstart`.
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """A wrong option is told in one line, as all mistakes are."""
        self.exit(MISUSED, f"{self.prog}: {message} ({self.prog} --help explains)\n")


def make_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The options of `speechgraft`, and of one of its commands."""
    parser = _Parser(
        prog="speechgraft",
        description="Speech to text by grafting pretrained encoders and decoders together, and text to speech.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"speechgraft {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    for name, (module, purpose) in COMMANDS.items():
        subparser = commands.add_parser(name, help=purpose, formatter_class=argparse.RawDescriptionHelpFormatter)
        if name == command:
            importlib.import_module(f".{module}", __package__).add_arguments(subparser)
            subparser.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (see `common`)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not sys.stderr.isatty():  # the bars of loading and saving, which Transformers reads when it is imported
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if not words:
        make_parser().print_help(sys.stderr)
        return MISUSED
    command = next((word for word in words if not word.startswith("-")), None)
    if command in TRAINING:
        return train(command, words)
    args = make_parser(command).parse_args(words)
    module = importlib.import_module(f".{COMMANDS[args.command][0]}", __package__)
    return run(args.command, lambda: module.main(args), args.debug)


def train(command: str, words: list[str]) -> int:
    """Run a command whose options another parser reads."""
    before, after = words[: words.index(command)], words[words.index(command) + 1 :]
    debug = make_parser().parse_known_args([*before, command])[0].debug
    if after and after[-1] == "--debug":  # Trainer has an option of that name, which takes a value
        debug = bool(after.pop())
    main = importlib.import_module(f".{COMMANDS[command][0]}", __package__).main
    return run(command, lambda: main(after), debug)


if __name__ == "__main__":
    sys.exit(main())
