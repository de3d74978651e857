"""What every subcommand shares: messages, exit statuses, options, and how a mistake of the user's ends a command."""

import argparse
import difflib
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

DONE = 0
SKIPPED_SOME = 1  # some recordings could not be used; the rest is done
MISUSED = 2  # nothing was done: an option, a file or a model is not what the command needs
INTERRUPTED = 130  # as shells report Ctrl-C


class CommandError(Exception):
    """A mistake that one line can explain; the command prints it and exits with status 2."""


def say(message: str) -> None:
    """Print a message for the person at the terminal, beside the results on standard output."""
    from tqdm import tqdm

    tqdm.write(message, file=sys.stderr)  # a progress bar makes room for it
    sys.stderr.flush()


def run(name: str, command: Callable[[], int], debug: bool = False) -> int:
    """Run a command; its user's mistakes become one line on standard error.

    Args:
        name: of the command, in front of the message.
        command: gives the exit status.
        debug: let the exception through, with its traceback.

    Returns:
        The exit status. Anything but a `CommandError` is a fault of the program and keeps its traceback.
    """
    try:
        return command()
    except CommandError as error:
        if debug:
            raise
        say(f"speechgraft {name}: {one_line(error)}")
        return MISUSED
    except KeyboardInterrupt:
        if debug:
            raise
        say(f"speechgraft {name}: interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE


@contextmanager
def explained(what: str = "") -> Iterator[None]:
    """Around calls of the libraries that judge what the user gave: whatever they raise becomes a `CommandError`.

    Args:
        what: put before the message, such as the option or the file, where the message does not name it.
    """
    try:
        yield
    except CommandError:
        raise
    except Exception as error:
        message = one_line(_told_by(error))
        raise CommandError(f"{what}: {message}" if what and what not in message else message) from error


def _told_by(error: Exception) -> BaseException:
    """The exception with the message to show: configurations wrap theirs in one that tells of validators."""
    cause = error.__cause__
    return cause if isinstance(cause, ValueError | TypeError) and not isinstance(error, ValueError) else error


def one_line(error: BaseException) -> str:
    """What an exception says, without line breaks; its kind where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def without_warnings() -> Iterator[None]:
    """Around work whose warnings the command tells in its own words."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown word: the known one that is closest, if any is."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def positive(value: str) -> int:
    """An option's value that counts something."""
    number = int(value)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def natural(value: str) -> int:
    """An option's value that counts something, of which there may be none."""
    number = int(value)
    if number < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, got {number}")
    return number


def positive_number(value: str) -> float:
    """An option's value that measures something."""
    number = float(value)
    if not number > 0:
        raise argparse.ArgumentTypeError(f"must be above 0, got {value}")
    return number


def share(value: str) -> float:
    """An option's value between 0 and 1."""
    number = float(value)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"must be between 0 and 1, got {value}")
    return number


def add_data_arguments(parser: argparse.ArgumentParser) -> Any:
    """Declare what to measure on; returns the group."""
    group = parser.add_argument_group("data")
    group.add_argument(
        "--data",
        required=True,
        metavar="DATA",
        help="recordings with transcripts: a folder with metadata.csv, a CSV/TSV/JSONL manifest, or a data set id",
    )
    group.add_argument("--split", help="which split of the data, such as validation or 'test[:100]'")
    group.add_argument("--dataset-name", metavar="NAME", help="configuration of a data set, such as its language")
    group.add_argument("--audio-column", metavar="NAME", help="column of the recordings (default: the usual names)")
    group.add_argument("--text-column", metavar="NAME", help="column of the transcripts (default: the usual names)")
    group.add_argument(
        "--streaming", action="store_true", help="read the data as it is needed, without a copy on disk"
    )
    return group


def load_data(args: argparse.Namespace) -> Any:
    """The data that the options of `add_data_arguments` name.

    Raises:
        CommandError: there is no such data.
    """
    from ..processing.speech_datasets import load_speech_dataset

    with explained(args.data):
        return load_speech_dataset(
            args.data,
            args.split,
            name=args.dataset_name,
            audio_column=args.audio_column,
            text_column=args.text_column,
            streaming=args.streaming,
            strict=False,
        )


def add_normalizer_argument(group: Any) -> None:
    """Declare what is made equal before errors are counted."""
    group.add_argument(
        "--normalizer",
        choices=("basic", "english", "none"),
        default="basic",
        help="what is made equal before counting: basic: case and punctuation; english: contractions, numbers and "
        "fillers too, as Whisper's papers do; rates compare only under the same one (default: %(default)s)",
    )


RECOGNIZERS = "of speechgraft, SpeechEncoderDecoderModel or Whisper"
SYNTHESIZERS = "of speechgraft, or SpeechT5's text to speech"


def add_model_arguments(parser: argparse.ArgumentParser, kinds: str = RECOGNIZERS) -> Any:
    """Declare which model to run, and on what; returns the group. `kinds` says which models serve."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        required=True,
        metavar="FOLDER",
        help=f"a trained model: folder or hub id, {kinds}",
    )
    group.add_argument(
        "--processor",
        metavar="FOLDER",
        help="feature extractor and tokenizer, where the model's folder lacks them: folder or hub id",
    )
    group.add_argument("--device", help="where to compute: cpu, cuda, cuda:1 (default: a GPU if there is one)")
    group.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="number format of the weights; auto: as they were saved (default: %(default)s)",
    )
    group.add_argument(
        "--attn",
        metavar="NAME",
        help="attention kernels: eager, sdpa, flash_attention_2, ... (default: the best that PyTorch has)",
    )
    return group


def add_speaking_arguments(parser: argparse.ArgumentParser) -> Any:
    """Declare with which voice and how a model speaks; returns the group."""
    group = parser.add_argument_group("speech")
    group.add_argument(
        "--speaker",
        metavar="FILE",
        help="the voice: a file with a speaker embedding, .npy or .pt (default: the model's own)",
    )
    group.add_argument(
        "--vocoder",
        metavar="FOLDER",
        help="another HiFi-GAN than the model's: folder or hub id (default: the model's, or Griffin-Lim)",
    )
    group.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="the same seed gives the same speech, another one another reading (default: %(default)s)",
    )
    group.add_argument(
        "--speed",
        type=positive_number,
        default=1.0,
        metavar="FACTOR",
        help="2 is twice as fast, 0.5 half, with the same pitch (default: %(default)g)",
    )
    group.add_argument(
        "--max-duration-s",
        type=positive_number,
        metavar="SECONDS",
        help="cut a sentence off that takes longer, as one may that the model has lost its way in (default: what is "
        "plausible for its length)",
    )
    group.add_argument(
        "--attention-window",
        type=positive,
        metavar="N",
        help="keep attention within so many tokens of where it was, and never let it go back: against words that are "
        "skipped or repeated (default: the model's own, usually none)",
    )
    group.add_argument(
        "--stop-threshold",
        type=share,
        metavar="SHARE",
        help="probability of the end at which speech ends (default: the model's own, usually 0.5)",
    )
    group.add_argument(
        "--batch-size",
        type=positive,
        default=8,
        metavar="N",
        help="sentences to speak at once; changes nothing but speed and memory (default: %(default)s)",
    )
    return group


def phrases(text: str) -> list[str]:
    """An argument of phrases with commas between them."""
    found = [phrase.strip() for phrase in text.split(",")]
    if not all(found):
        raise argparse.ArgumentTypeError(f"a phrase is empty in {text!r}")
    return found


def add_decoding_arguments(parser: argparse.ArgumentParser, max_duration_s: float | None = 60.0) -> Any:
    """Declare how recordings are put together and decoded; returns the group, to which the number of beams belongs.

    Longer recordings than `max_duration_s` are skipped by default; None for commands that hear them in pieces.
    """
    group = parser.add_argument_group("decoding")
    group.add_argument(
        "--batch-size",
        type=positive,
        default=8,
        metavar="N",
        help="recordings to transcribe at once; lower it when memory runs out (default: %(default)s)",
    )
    group.add_argument(
        "--max-new-tokens", type=positive, metavar="N", help="longest transcript, in tokens (default: the model's own)"
    )
    group.add_argument(
        "--max-duration-s",
        type=positive_number,
        default=max_duration_s,
        metavar="SECONDS",
        help="skip longer recordings (default: none)"
        if max_duration_s is None
        else "skip longer recordings: each is heard as a whole, and memory grows with its square; models with a "
        "window (Whisper: 30 s) skip what exceeds it in any case (default: %(default)g)",
    )
    group.add_argument(
        "--ctc-weight",
        type=share,
        metavar="SHARE",
        help="of the CTC head's score in that of a hypothesis, from 0 (the decoder alone) to 1, for models trained "
        "with one; 0.3 is usual, and keeps the decoder from repeating or skipping words (default: the model's own)",
    )
    group.add_argument(
        "--language-model",
        metavar="FILE",
        help="has a say in what is likely: an ARPA file of words, a text file with a sentence in each line, which is "
        "counted, or a causal language model with the decoder's tokenizer",
    )
    group.add_argument(
        "--language-model-weight",
        type=positive_number,
        metavar="WEIGHT",
        help="what the language model's log probabilities are multiplied by (default: 0.3)",
    )
    group.add_argument(
        "--hot-words",
        type=phrases,
        metavar="PHRASES",
        help="names and phrases that are expected and become likelier, commas between them: 'Ada Lovelace, Linux'",
    )
    group.add_argument(
        "--hot-word-weight",
        type=positive_number,
        metavar="NATS",
        help="by how much each token of them becomes likelier (default: 1.5)",
    )
    group.add_argument(
        "--passes",
        type=natural,
        metavar="N",
        help="runs of a decoder that fills in masked tokens (train-asr --non_autoregressive); 0 for what the CTC head "
        "alone hears (default: 10)",
    )
    group.add_argument(
        "--mask-threshold",
        type=share,
        metavar="SHARE",
        help="such a decoder fills in anew the tokens of the CTC head that are less probable (default: 0.999)",
    )
    group.add_argument(
        "--length-candidates",
        type=positive,
        metavar="N",
        help="such a decoder fills in transcripts of so many lengths, the likeliest by a length head, and the best is "
        "taken (default: the CTC head's transcript is mended; 5 where there is none)",
    )
    return group
