"""`speechgraft transcribe`: recordings to text."""

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import (
    DONE,
    SKIPPED_SOME,
    CommandError,
    add_decoding_arguments,
    add_model_arguments,
    explained,
    positive,
    say,
)

if TYPE_CHECKING:
    from .transcription import Recording, Transcript

DESCRIPTION = """\
Write down what is said in recordings, of any format, sampling rate and number of channels that soundfile reads. The
text goes to standard output, messages and the progress bar do not."""

EPILOG = """\
exit status: 0 all recordings are transcribed; 1 some could not be used: each is reported, the others are done;
2 nothing was done (a wrong option, no such model)

examples:
  speechgraft transcribe interview.wav --model my-model
  speechgraft transcribe recordings/ more.flac --model my-model --num-beams 5 --output transcripts.txt
  find . -name '*.ogg' | speechgraft transcribe - --model my-model --format json --nbest 3"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `speechgraft transcribe`."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument(
        "audio",
        nargs="+",
        metavar="AUDIO",
        help="recordings: files, folders (searched with all that is below them), or - for a list of paths on standard "
        "input, one on each line",
    )
    add_model_arguments(parser)
    decoding = add_decoding_arguments(parser)
    decoding.add_argument(
        "--num-beams",
        type=positive,
        metavar="N",
        help="hypotheses that beam search follows: 1 is quickest, 5 is usually a little better (default: the model's)",
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--format",
        choices=("text", "json", "srt"),
        default="text",
        help="text: the transcript, behind the path and a tab where there are several recordings; json: a list with "
        "path, duration, text and score of each; srt: subtitles, for models that give times (default: %(default)s)",
    )
    output.add_argument(
        "--nbest",
        "--num-return-sequences",
        type=positive,
        default=1,
        metavar="N",
        help="give the N best hypotheses of each recording with their scores, the mean log-probability of a token; "
        "needs at least as many beams (default: %(default)s)",
    )
    output.add_argument("--output", type=Path, metavar="FILE", help="write here instead of to standard output")


def main(args: argparse.Namespace) -> int:
    """Transcribe what was named; returns the exit status."""
    if args.num_beams is not None and args.num_beams < args.nbest:
        raise CommandError(f"--nbest {args.nbest} needs --num-beams {args.nbest} or more, not {args.num_beams}")
    if args.output is not None and not args.output.absolute().parent.is_dir():
        raise CommandError(f"--output {args.output}: no such folder {args.output.parent}")
    recordings = list(find_recordings(list_paths(args.audio)))
    if all(recording.fault for recording in recordings):
        for recording in recordings:
            say(f"skipped: {recording.fault}")
        return SKIPPED_SOME
    transcribe = make_transcriber(args)
    if args.format == "srt":
        raise CommandError(f"--format srt: {args.model}: this model gives no timestamps; use --format text or json")
    skipped: list[str] = []
    with open_output(args.output) as write_line:
        transcripts = report(transcribe(recordings), len(recordings), skipped)
        if args.format == "json":
            write_json(transcripts, write_line)
        else:
            write_text(transcripts, write_line, with_names=len(recordings) > 1 or args.audio == ["-"])
    if skipped:
        say(f"skipped {len(skipped)} of {len(recordings)} recordings")
    return SKIPPED_SOME if skipped else DONE


def list_paths(words: Iterable[str]) -> Iterator[str]:
    """The paths named on the command line, with standard input's lines in place of `-`."""
    for word in words:
        if word == "-":
            yield from (line for line in map(str.strip, sys.stdin) if line)
        else:
            yield word


def find_recordings(paths: Iterable[str]) -> "Iterator[Recording]":
    """The recordings among files and folders; a path without any is one with a fault. None comes twice."""
    from ..processing.audio_files import AudioError, find_audio_files
    from .transcription import Recording

    seen: set[str] = set()
    for path in paths:
        try:
            found = [Recording(str(file), str(file)) for file in find_audio_files(path)]
        except AudioError as error:
            found = [Recording(path, fault=str(error))]
        for recording in found:
            if recording.name not in seen:
                seen.add(recording.name)
                yield recording


def make_transcriber(args: argparse.Namespace) -> Any:
    """A `Transcriber` with the model and the decoding that the options ask for."""
    from .loading import load_model, load_processor
    from .transcription import DecodingOptions, Transcriber

    model = load_model(args.model, args.dtype, args.attn, args.device)
    processor = load_processor(args.processor or args.model, model)
    beams = args.num_beams
    if beams is None and args.nbest > 1:
        beams = max(args.nbest, model.generation_config.num_beams or 1)
    options = DecodingOptions(
        batch_size=args.batch_size,
        num_beams=beams,
        n_best=args.nbest,
        with_scores=args.format == "json" or args.nbest > 1,
        max_new_tokens=args.max_new_tokens,
        max_duration_s=args.max_duration_s,
        ctc_weight=args.ctc_weight,
    )
    return Transcriber(model, processor, options)


def report(
    transcripts: "Iterable[Transcript]",
    total: int | None,
    skipped: list[str] | None,
    description: str = "transcribing",
) -> "Iterator[Transcript]":
    """Pass transcripts on under a progress bar; faults are told and noted in `skipped`, if that is given."""
    from tqdm import tqdm

    for transcript in tqdm(transcripts, description, total, unit="clip", dynamic_ncols=True, disable=None):
        if transcript.fault is not None and skipped is not None:
            say(f"skipped: {transcript.fault}")
            skipped.append(transcript.fault)
        yield transcript


@contextlib.contextmanager
def open_output(path: Path | None) -> Iterator[Callable[[str], None]]:
    """A function that writes a line to a file, or to standard output beside the progress bar."""
    from tqdm import tqdm

    if path is None:

        def write_line(line: str) -> None:
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()

        yield write_line
        return
    with explained(f"--output {path}"):
        file = path.open("w", encoding="utf-8")
    with file:
        yield lambda line: print(line, file=file, flush=True)


def write_text(
    transcripts: "Iterable[Transcript]", write_line: Callable[[str], None], with_names: bool = True
) -> None:
    """One line for each hypothesis: its text, behind the path, and behind rank and score where there are several."""
    for transcript in transcripts:
        for rank, text in enumerate(transcript.texts, start=1):
            fields = [transcript.recording.name] if with_names else []
            if len(transcript.texts) > 1:
                fields += [str(rank), f"{transcript.scores[rank - 1]:.4f}"]
            write_line("\t".join([*fields, text]))


def write_json(transcripts: "Iterable[Transcript]", write_line: Callable[[str], None]) -> None:
    """A JSON list of one record for each recording, those with a fault included."""
    from ..processing.subtitles import JsonArrayWriter

    with JsonArrayWriter(write_line) as writer:
        for transcript in transcripts:
            writer.write(record_of(transcript))


def record_of(transcript: "Transcript") -> dict[str, Any]:
    """What JSON tells of a transcript: path, and either the fault or duration, text, score and n-best list."""
    record: dict[str, Any] = {"file": transcript.recording.name}
    if transcript.fault is not None:
        return {**record, "error": transcript.fault}
    hypotheses = [
        {"text": text, "score": round(score, 4)}
        for text, score in zip(transcript.texts, transcript.scores, strict=True)
    ]
    record |= {"duration_s": round(transcript.duration_s, 3), **hypotheses[0]}
    return {**record, "nbest": hypotheses} if len(hypotheses) > 1 else record
