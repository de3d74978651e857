"""`speechgraft transcribe`: recordings to text."""

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
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
    positive_number,
    say,
)

if TYPE_CHECKING:
    from .transcription import Recording, Transcript

SUBTITLES = ("srt", "vtt")

DESCRIPTION = """\
Write down what is said in recordings of any length, and of any format, sampling rate and number of channels that
soundfile reads; long ones are cut at silence. The text goes to standard output, messages and the progress bar do
not."""

EPILOG = """\
exit status: 0 all recordings are transcribed; 1 some could not be used: each is reported, the others are done;
2 nothing was done (a wrong option, no such model)

examples:
  speechgraft transcribe interview.wav --model my-model
  speechgraft transcribe recordings/ more.flac --model my-model --num-beams 5 --output transcripts.txt
  find . -name '*.ogg' | speechgraft transcribe - --model my-model --format json --nbest 3
  speechgraft transcribe lecture.mp3 --model my-model --format srt --output lecture.srt
  speechgraft transcribe lecture.mp3 --model my-model --format json --timestamps word"""


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
    decoding = add_decoding_arguments(parser, max_duration_s=None)
    decoding.add_argument(
        "--num-beams",
        type=positive,
        metavar="N",
        help="hypotheses that beam search follows: 1 is quickest, 5 is usually a little better (default: the model's)",
    )
    decoding.add_argument(
        "--max-chunk-s",
        type=positive_number,
        default=30.0,
        metavar="SECONDS",
        help="cut longer recordings into pieces of at most this, where it is quiet; at most the model's window "
        "(Whisper: 30 s). Take about the length of the clips that the model was trained on (default: %(default)g)",
    )
    decoding.add_argument(
        "--temperatures",
        type=temperatures,
        default="0,0.2,0.4,0.6,0.8,1",
        metavar="T,T,...",
        help="decode a piece whose text repeats itself or is unlikely again, sampling at each of these temperatures "
        "until the text is good; 0 alone for no second try (default: %(default)s)",
    )
    decoding.add_argument(
        "--condition-on-previous-text",
        action="store_true",
        help="tell the decoder before each piece what those before it said, so that names stay spelled alike and "
        "sentences go on; for decoders that were trained so (Whisper's)",
    )
    decoding.add_argument(
        "--initial-prompt",
        metavar="TEXT",
        help="text to tell such a decoder before each piece: names, spelling, style. It is no part of the transcript",
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--format",
        choices=("text", "json", "srt", "vtt"),
        default="text",
        help="text: the transcript, behind the path and a tab where there are several recordings; json: a list with "
        "path, duration, text, score and confidence of each; srt, vtt: subtitles (default: %(default)s)",
    )
    output.add_argument(
        "--timestamps",
        choices=("segment", "word", "char"),
        help="give the times of lines, words or characters: in text, one to a line, behind its start and end in "
        "seconds; in subtitles, which have those of lines in any case, one at a time",
    )
    output.add_argument(
        "--timing",
        choices=("auto", "ctc", "attention"),
        default="auto",
        help="what tells times: the CTC head, or the decoder's attention (default: the first that the model has)",
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
    output.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="write here instead of to standard output; for subtitles of several recordings, a folder that exists",
    )


def temperatures(value: str) -> tuple[float, ...]:
    """An option's value: numbers from 0, separated by commas."""
    numbers = tuple(float(number) for number in value.split(","))
    if min(numbers) < 0:
        raise argparse.ArgumentTypeError(f"must not be below 0, got {value}")
    return numbers


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
    subtitles = args.format in SUBTITLES
    if subtitles and len(recordings) > 1 and not (args.output is not None and args.output.is_dir()):
        raise CommandError(
            f"--format {args.format}: {len(recordings)} recordings have a file of subtitles each: name a folder that "
            "exists with --output"
        )
    transcribe = make_transcriber(args)
    skipped: list[str] = []
    transcripts = report(transcribe(recordings), len(recordings), skipped)
    if subtitles and args.output is not None and args.output.is_dir():
        write_subtitle_files(transcripts, args)
    else:
        with open_output(args.output) as write_line:
            write_results(transcripts, args, write_line, with_names=len(recordings) > 1 or args.audio == ["-"])
    if skipped:
        say(f"skipped {len(skipped)} of {len(recordings)} recordings")
    return SKIPPED_SOME if skipped else DONE


def write_results(
    transcripts: "Iterable[Transcript]",
    args: argparse.Namespace,
    write_line: Callable[[str], None],
    with_names: bool,
) -> None:
    """Write transcripts in the format asked for."""
    if args.format == "json":
        write_json(transcripts, write_line, args.timestamps)
    elif args.format in SUBTITLES:
        for transcript in transcripts:
            if transcript.fault is None:
                write_line(subtitles_of(transcript, args.format, args.timestamps).rstrip("\n"))
    elif args.timestamps is not None:
        write_timed_text(transcripts, write_line, args.timestamps, with_names)
    else:
        write_text(transcripts, write_line, with_names)


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
    """A `LongTranscriber` with the model and the decoding that the options ask for."""
    from ..modeling.long_audio import LongAudioTranscriber, TranscriptionOptions
    from ..modeling.speech_timestamps import timing_method
    from .loading import decoding_arguments, load_model, load_processor
    from .transcription import LongTranscriber

    shortest = min(5.0, args.max_chunk_s / 2)
    with explained():
        options = TranscriptionOptions(
            batch_size=args.batch_size,
            timestamps="segment" if args.timestamps is None and args.format in SUBTITLES else args.timestamps,
            timing=args.timing,
            num_beams=args.num_beams,
            ctc_weight=args.ctc_weight,
            n_best=args.nbest,
            min_chunk_s=shortest,
            max_chunk_s=args.max_chunk_s,
            overlap_s=min(4.0, shortest),
            max_new_tokens=args.max_new_tokens,
            temperatures=args.temperatures,
            condition_on_previous_text=args.condition_on_previous_text,
            initial_prompt=args.initial_prompt,
        )
    model = load_model(args.model, args.dtype, args.attn, args.device)
    if args.ctc_weight and model.ctc_head is None:
        raise CommandError(f"--ctc-weight {args.ctc_weight:g}: the model was trained without a CTC head")
    processor = load_processor(args.processor or args.model, model)
    with explained("--timing"):
        timing_method(model, processor, args.timing)
    options = replace(options, generate_kwargs=decoding_arguments(args, model, processor))
    with explained():
        LongAudioTranscriber(model, processor, options)  # tells now what the model has not
    return LongTranscriber(model, processor, options, args.max_duration_s)


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


def write_timed_text(
    transcripts: "Iterable[Transcript]", write_line: Callable[[str], None], unit: str, with_names: bool = True
) -> None:
    """One line for each line, word or character of a transcript: start and end in seconds, and its text."""
    for transcript in transcripts:
        for item in timed_units(transcript, unit):
            fields = [transcript.recording.name] if with_names else []
            write_line("\t".join([*fields, f"{item.start_s:.3f}", f"{item.end_s:.3f}", item.text]))


def timed_units(transcript: "Transcript", unit: str | None) -> list[Any]:
    """The lines, words or characters of a transcript."""
    found = transcript.transcription
    if found is None:
        return []
    if unit == "char":
        return [character for word in found.words for character in word.characters]
    return list(found.words if unit == "word" else found.segments)


def subtitles_of(transcript: "Transcript", file_format: str, unit: str | None) -> str:
    """The text of a file of subtitles."""
    from ..processing.subtitles import format_srt, format_vtt

    return (format_srt if file_format == "srt" else format_vtt)(timed_units(transcript, unit))


def write_subtitle_files(transcripts: "Iterable[Transcript]", args: argparse.Namespace) -> None:
    """A file for each recording, named as it is; where two have one name, the recording's own ending is kept too."""
    taken: set[str] = set()
    for transcript in transcripts:
        if transcript.fault is not None:
            continue
        path = Path(transcript.recording.name)
        names = [path.stem, path.name, *(f"{path.name}.{number}" for number in range(2, len(taken) + 3))]
        name = next(name for name in names if name not in taken)
        taken.add(name)
        with explained(f"--output {args.output}"):
            text = subtitles_of(transcript, args.format, args.timestamps)
            (args.output / f"{name}.{args.format}").write_text(text, encoding="utf-8")


def write_json(
    transcripts: "Iterable[Transcript]", write_line: Callable[[str], None], unit: str | None = None
) -> None:
    """A JSON list of one record for each recording, those with a fault included; times of the units asked for."""
    from ..processing.subtitles import JsonArrayWriter

    with JsonArrayWriter(write_line) as writer:
        for transcript in transcripts:
            writer.write(record_of(transcript, unit))


def record_of(transcript: "Transcript", unit: str | None = None) -> dict[str, Any]:
    """What JSON tells of a transcript: path, and either the fault or duration, text, score, times and n-best list."""
    record: dict[str, Any] = {"file": transcript.recording.name}
    if transcript.fault is not None:
        return {**record, "error": transcript.fault}
    hypotheses = [
        {"text": text, "score": round(score, 4)}
        for text, score in zip(transcript.texts, transcript.scores, strict=True)
    ]
    record |= {"duration_s": round(transcript.duration_s, 3), **hypotheses[0]}
    found = transcript.transcription
    if found is not None:
        record["confidence"] = round(found.confidence, 4)
        if unit is not None:
            record["segments"] = [timed_record(segment, unit) for segment in found.segments]
    return {**record, "nbest": hypotheses} if len(hypotheses) > 1 else record


def timed_record(item: Any, unit: str) -> dict[str, Any]:
    """A line or word of a transcript as JSON tells it, with its words or characters where they were asked for."""
    record = {name: round(getattr(item, name), 3) for name in ("start_s", "end_s")}
    record |= {"text": item.text, "confidence": round(item.confidence, 4)}
    inside = {"words": getattr(item, "words", ()), "characters": getattr(item, "characters", ())}
    return record | {name: [timed_record(one, unit) for one in items] for name, items in inside.items() if items}
