"""`speechgraft evaluate-asr`: how many errors a model makes, which, and how fast it is."""

import argparse
import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import (
    DONE,
    SKIPPED_SOME,
    CommandError,
    add_data_arguments,
    add_decoding_arguments,
    add_model_arguments,
    add_normalizer_argument,
    explained,
    load_data,
    positive,
    say,
)

if TYPE_CHECKING:
    from ..processing.speech_metrics import UtteranceErrors
    from .transcription import Recording, Transcript

DESCRIPTION = """\
Transcribe recordings whose text is known, and count the errors: word error rate (WER) and character error rate
(CER), all errors divided by all words or characters; and speed (RTFx), seconds of audio transcribed in a second,
from waveform to text."""

EPILOG = """\
exit status: 0 all recordings count; 1 some could not be used: each is reported, the others count; 2 nothing was
measured (a wrong option, no such model or data)

examples:
  speechgraft evaluate-asr --data recordings/validation --model my-model
  speechgraft evaluate-asr --data test.csv --model my-model --num-beams 1 5 --output results.json
  speechgraft evaluate-asr --data openslr/librispeech_asr --dataset-name clean --split test --streaming \\
      --model my-model"""


@dataclass(frozen=True)
class Result:
    """What was measured with one setting; rates are fractions."""

    num_beams: int
    wer: float
    cer: float
    rtfx: float
    substitutions: int
    deletions: int
    insertions: int
    reference_words: int
    utterances: int
    audio_s: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `speechgraft evaluate-asr`."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    add_data_arguments(parser)
    add_model_arguments(parser)
    decoding = add_decoding_arguments(parser)
    decoding.add_argument(
        "--num-beams",
        type=positive,
        nargs="+",
        default=[1],
        metavar="N",
        help="hypotheses that beam search follows, 1 for greedy; several numbers are measured one after another "
        "(default: 1)",
    )
    results = parser.add_argument_group("results")
    add_normalizer_argument(results)
    results.add_argument(
        "--worst", type=int, default=5, metavar="N", help="show the utterances with most errors (default: %(default)s)"
    )
    results.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="write the results: .json with everything (`speechgraft publish --metrics` reads it), or .csv with a "
        "line for each utterance",
    )


def main(args: argparse.Namespace) -> int:
    """Measure, print, write; returns the exit status."""
    if args.output is not None and args.output.suffix not in (".json", ".csv"):
        raise CommandError(f"--output {args.output}: the name ends in .json or .csv")
    if args.output is not None and not args.output.absolute().parent.is_dir():
        raise CommandError(f"--output {args.output}: no such folder {args.output.parent}")
    dataset = load_data(args)
    skipped: list[str] = []
    results, utterances = measure(args, dataset, skipped)
    if not results:
        raise CommandError(f"{args.data}: none of the recordings can be used")
    print_results(args, results)
    print_worst(args.worst, results[-1], utterances[results[-1].num_beams])
    if args.output is not None:
        write = write_csv if args.output.suffix == ".csv" else write_json
        with explained(f"--output {args.output}"):
            write(args, results, utterances, skipped)
    if skipped:
        say(f"skipped {len(skipped)} recordings; they do not count")
    return SKIPPED_SOME if skipped else DONE


def measure(
    args: argparse.Namespace, dataset: Any, skipped: list[str]
) -> "tuple[list[Result], dict[int, list[UtteranceErrors]]]":
    """Transcribe the data with each number of beams.

    Returns:
        The results, and for each number of beams the errors of every utterance.
    """
    from .loading import decoding_arguments, load_model, load_processor
    from .transcribe import report
    from .transcription import DecodingOptions, Transcriber

    model = load_model(args.model, args.dtype, args.attn, args.device)
    processor = load_processor(args.processor or args.model, model)
    asked = decoding_arguments(args, model, processor)
    total = None if args.streaming else len(dataset)
    results, utterances = [], {}
    for num_beams in dict.fromkeys(args.num_beams):
        options = DecodingOptions(
            args.batch_size,
            num_beams,
            max_new_tokens=args.max_new_tokens,
            max_duration_s=args.max_duration_s,
            ctc_weight=args.ctc_weight,
            generate_kwargs=asked,
        )
        transcriber = Transcriber(model, processor, options)
        told = None if results else skipped  # what cannot be used is told once
        shown = report(transcriber(recordings_of(dataset)), total, told, search_name(num_beams))
        transcripts = [transcript for transcript in shown if transcript.fault is None]
        if not transcripts:
            return [], {}
        utterances[num_beams] = errors_of(transcripts, args.normalizer)
        results.append(result_of(num_beams, utterances[num_beams], transcriber.speed))
    return results, utterances


def search_name(num_beams: int) -> str:
    """How messages call a search."""
    return "greedy" if num_beams == 1 else f"{num_beams} beams"


def recordings_of(dataset: Any) -> "Iterator[Recording]":
    """The rows of a data set; those without a transcript have a fault."""
    from ..processing.audio_files import source_name
    from .transcription import Recording

    for index, row in enumerate(dataset):
        name = source_name(row["audio"])
        name = f"row {index}" if name.startswith("<") else name
        text = row["text"]
        fault = None if isinstance(text, str) and text.strip() else f"{name}: empty transcript {text!r}"
        yield Recording(name, row["audio"], text or "", fault)


def errors_of(transcripts: "Sequence[Transcript]", normalizer: str) -> "list[UtteranceErrors]":
    """Errors of each utterance against what was said."""
    from ..processing.speech_metrics import utterance_errors

    return utterance_errors(
        [transcript.recording.reference for transcript in transcripts],
        [transcript.texts[0] for transcript in transcripts],
        [transcript.recording.name for transcript in transcripts],
        normalizer,
    )


def result_of(num_beams: int, utterances: "Sequence[UtteranceErrors]", speed: Any) -> Result:
    """All utterances together."""
    from ..processing.speech_metrics import error_rates

    total = sum((row.words for row in utterances[1:]), start=utterances[0].words)
    rates = error_rates([row.reference for row in utterances], [row.hypothesis for row in utterances])
    return Result(
        num_beams=num_beams,
        wer=rates["wer"],
        cer=rates["cer"],
        rtfx=speed.rtfx,
        substitutions=total.substitutions,
        deletions=total.deletions,
        insertions=total.insertions,
        reference_words=total.reference_length,
        utterances=len(utterances),
        audio_s=speed.audio_s,
    )


def print_results(args: argparse.Namespace, results: Sequence[Result]) -> None:
    """A table, one line for each number of beams."""
    first = results[0]
    print(f"{args.model} on {args.data}{f' {args.split}' if args.split else ''}")
    print(f"{first.utterances} utterances, {first.reference_words} words, {first.audio_s:.0f} s of audio", end="")
    print(f"; normalizer {args.normalizer}, batch size {args.batch_size}\n")
    print("beams      WER      CER    sub    del    ins     RTFx")
    for row in results:
        rates = f"{row.wer:9.2%}{row.cer:9.2%}"
        print(f"{row.num_beams:5d}{rates}{row.substitutions:7d}{row.deletions:7d}{row.insertions:7d}{row.rtfx:9.1f}")


def print_worst(count: int, result: Result, utterances: "Sequence[UtteranceErrors]") -> None:
    """The utterances with most errors."""
    from ..processing.speech_metrics import format_utterances, worst_utterances

    if worst := worst_utterances(utterances, max(count, 0)):
        print(f"\nmost errors, {search_name(result.num_beams)}\n{format_utterances(worst)}")


def write_json(
    args: argparse.Namespace,
    results: Sequence[Result],
    utterances: "dict[int, list[UtteranceErrors]]",
    skipped: Sequence[str],
) -> None:
    """Write what was measured, on what and how, with each utterance."""
    document = {
        "model": args.model,
        "data": args.data,
        "split": args.split,
        "dataset_name": args.dataset_name,
        "normalizer": args.normalizer,
        "batch_size": args.batch_size,
        "results": [asdict(result) for result in results],
        "skipped": list(skipped),
        "utterances": _utterance_records(utterances),
    }
    args.output.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_csv(
    args: argparse.Namespace,
    results: Sequence[Result],
    utterances: "dict[int, list[UtteranceErrors]]",
    skipped: Sequence[str],
) -> None:
    """Write a line for each utterance and number of beams."""
    records = _utterance_records(utterances)
    with args.output.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]))
        writer.writeheader()
        writer.writerows(records)


def _utterance_records(utterances: "dict[int, list[UtteranceErrors]]") -> list[dict[str, Any]]:
    return [
        {
            "file": row.name,
            "num_beams": num_beams,
            "reference": row.reference,
            "hypothesis": row.hypothesis,
            "substitutions": row.words.substitutions,
            "deletions": row.words.deletions,
            "insertions": row.words.insertions,
            "wer": round(row.words.rate, 4),
        }
        for num_beams, rows in utterances.items()
        for row in rows
    ]
