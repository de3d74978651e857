"""`speechgraft evaluate-tts`: how far synthesised speech is from recordings, and what a recogniser makes of it."""

import argparse
import csv
import importlib.util
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import (
    DONE,
    SKIPPED_SOME,
    SYNTHESIZERS,
    CommandError,
    add_data_arguments,
    add_model_arguments,
    add_normalizer_argument,
    add_speaking_arguments,
    explained,
    load_data,
    say,
)

if TYPE_CHECKING:
    from .recognition import Recognizer
    from .speech_comparison import Comparison, Measures
    from .synthesis import Synthesizer

DESCRIPTION = """\
Speak texts of which there are recordings, and compare: mel-cepstral distortion, melody, voicing, length, wrong stops,
and how sure attention was. With a recogniser (--asr-model) also the word error rate of what it hears, beside that of
the recordings; with --mos predicted opinion scores of both."""

EPILOG = """\
exit status: 0 all recordings count; 1 some could not be used: each is reported, the others count; 2 nothing was
measured (a wrong option, no such model or data)

examples:
  speechgraft evaluate-tts --data recordings/validation --model my-voice
  speechgraft evaluate-tts --data recordings/validation --model my-voice --asr-model openai/whisper-base --mos \\
      --output-dir evaluated"""

# What is measured: its name in the results, what a table calls it, and how it is written.
MEASURES: dict[str, tuple[str, Callable[[float], str]]] = {
    "mel_cepstral_distortion": ("mel-cepstral distortion", lambda value: f"{value:.2f} dB"),
    "log_f0_rmse": ("melody, difference", lambda value: f"{12 * value / math.log(2):.2f} semitones"),
    "voicing_error": ("voicing, wrong frames", lambda value: f"{value:.1%}"),
    "duration_ratio": ("length beside recording", lambda value: f"{value:.2f}"),
    "too_short": ("too short", lambda value: f"{value:.1%}"),
    "too_long": ("too long", lambda value: f"{value:.1%}"),
    "cut_off": ("cut off before the end", lambda value: f"{value:.1%}"),
    "focus_rate": ("focus rate of attention", lambda value: f"{value:.3f}"),
    "tokens_attended": ("tokens attended to", lambda value: f"{value:.1%}"),
    "wer": ("word error rate", lambda value: f"{value:.2%}"),
    "cer": ("character error rate", lambda value: f"{value:.2%}"),
    "mos": ("predicted opinion (MOS)", lambda value: f"{value:.2f}"),
}
OF_RECORDINGS = ("wer", "cer", "mos")  # measured on both


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `speechgraft evaluate-tts`."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    data = add_data_arguments(parser)
    data.add_argument(
        "--speaker-column", metavar="NAME", help="column of speaker embeddings: numbers, or .npy or .pt files"
    )
    add_model_arguments(parser, SYNTHESIZERS)
    add_speaking_arguments(parser)
    measures = parser.add_argument_group("measures")
    measures.add_argument("--no-f0", action="store_true", help="leave melody and voicing out, which take longest")
    measures.add_argument(
        "--asr-model",
        metavar="FOLDER",
        help="recogniser that hears the speech: of speechgraft, SpeechEncoderDecoderModel, Whisper, or any that "
        "Transformers' pipeline loads",
    )
    measures.add_argument(
        "--asr-language", metavar="CODE", help="language that a recogniser of many languages is told, such as en"
    )
    add_normalizer_argument(measures)
    measures.add_argument(
        "--mos", action="store_true", help="predict opinion scores with DistillMOS, if that is installed"
    )
    results = parser.add_argument_group("results")
    results.add_argument(
        "--worst", type=int, default=5, metavar="N", help="show the utterances that are furthest off (default: 5)"
    )
    results.add_argument(
        "--output-dir",
        type=Path,
        metavar="FOLDER",
        help="write the speech as an audio folder (metadata.csv: file_name,text), results.json, and pictures",
    )
    results.add_argument(
        "--pictures", type=int, default=5, metavar="N", help="draw the first N utterances (default: %(default)s)"
    )


def main(args: argparse.Namespace) -> int:
    """Measure, print, write; returns the exit status."""
    check(args)
    opinion, hear = _predicted_opinion(args), _recognizer(args)
    dataset = load_data(args)
    from .speakers import check_speakers, speakers_of
    from .speech_comparison import Comparer, measure_words, summarize
    from .synthesis import make_synthesizer

    synthesizer = make_synthesizer(args, with_alignments=True)
    speakers = speakers_of(dataset, args.data, column=args.speaker_column)
    if speakers is not None:
        check_speakers(synthesizer.model, speakers)
    compare = Comparer(synthesizer, speakers, with_f0=not args.no_f0)
    writer = ResultWriter(args, synthesizer)
    rows, spoken, recorded = [], [], []
    for one in compare(dataset):
        if opinion is not None:
            one.measures.mos, one.measures.mos_of_recording = opinion(one.spoken), opinion(one.recording)
        writer.write(one)
        rows.append(one.measures)
        if hear is not None:
            spoken.append(one.spoken)
            recorded.append(one.recording)
    if not rows:
        raise CommandError(f"{args.data}: none of the recordings can be used")
    summary = summarize(rows) | {"rtfx": synthesizer.speed.rtfx}
    if hear is not None:
        summary |= measure_words(rows, hear(spoken), hear(recorded), args.normalizer)
    print_results(args, summary, rows)
    writer.finish(summary, rows, compare.skipped)
    if compare.skipped:
        say(f"skipped {len(compare.skipped)} recordings; they do not count")
    return SKIPPED_SOME if compare.skipped else DONE


def check(args: argparse.Namespace) -> None:
    """Find before anything is loaded what would fail after it.

    Raises:
        CommandError: options contradict each other, or something is missing.
    """
    if args.output_dir is not None and not args.output_dir.absolute().parent.is_dir():
        raise CommandError(f"--output-dir {args.output_dir}: no such folder {args.output_dir.parent}")
    if args.output_dir is not None and args.output_dir.exists() and not args.output_dir.is_dir():
        raise CommandError(f"--output-dir {args.output_dir}: a file, not a folder")
    if args.speaker is not None and args.speaker_column is not None:
        raise CommandError("give --speaker, one voice of all, or --speaker-column, a voice of each, not both")
    if not args.no_f0 and importlib.util.find_spec("librosa") is None:
        raise CommandError('melody needs librosa: pip install "speechgraft[evaluation]", or give --no-f0')


def _predicted_opinion(args: argparse.Namespace) -> "Callable[[Any], float] | None":
    if not args.mos:
        return None
    from ..processing.predicted_opinion import PredictedOpinion

    with explained("--mos"):
        return PredictedOpinion()


def _recognizer(args: argparse.Namespace) -> "Recognizer | None":
    if args.asr_model is None:
        return None
    from .recognition import make_recognizer

    return make_recognizer(args.asr_model, args.device, args.batch_size, args.asr_language)


def print_results(args: argparse.Namespace, summary: dict[str, float], rows: "Sequence[Measures]") -> None:
    """A table, and the utterances that are furthest off."""
    print(f"{args.model} on {args.data}{f' {args.split}' if args.split else ''}")
    print(f"{len(rows)} utterances, {summary['speech_s']:.0f} s of speech, RTFx {summary['rtfx']:.1f}\n")
    for name, (title, written) in MEASURES.items():
        if name not in summary:
            continue
        beside = summary.get(f"{name}_of_recording") if name in OF_RECORDINGS else None
        of_recordings = "" if beside is None else f"   recordings {written(beside)}"
        print(f"{title:26}{written(summary[name]):>16}{of_recordings}")
    worst = sorted(rows, key=lambda row: (-(row.wer or 0), -row.mel_cepstral_distortion))[: max(args.worst, 0)]
    if worst:
        print("\nfurthest off")
    for row in worst:
        wrong = ", cut off" if row.cut_off else f", {row.stop_error}" if row.stop_error else ""
        print(f"{row.mel_cepstral_distortion:6.2f} dB{wrong}  {row.file}\n        said:  {row.text}")
        if row.heard is not None:
            print(f"        heard: {row.heard}")


class ResultWriter:
    """The speech as an audio folder, with pictures of it and everything that was measured.

    Args:
        args: the options; without `--output-dir` nothing is written.
        synthesizer: whose speech it is.
    """

    def __init__(self, args: argparse.Namespace, synthesizer: "Synthesizer"):
        self.args, self.synthesizer = args, synthesizer
        self.folder: Path | None = args.output_dir
        self.files: list[str] = []
        self.pictures = args.pictures
        if self.folder is None:
            return
        with explained(f"--output-dir {self.folder}"):
            self.folder.mkdir(exist_ok=True)
        if self.pictures > 0:
            from ..modeling.speech_figures import FiguresNotInstalledError, require_matplotlib

            try:
                require_matplotlib()
            except FiguresNotInstalledError as error:
                self.pictures = 0
                say(str(error))

    def write(self, one: "Comparison") -> None:
        """The sound of an utterance, and its picture where it is one of the first."""
        from .synthesize import write_sound

        if self.folder is None:
            return
        self.files.append(f"{len(self.files) + 1:05d}.wav")
        write_sound(self.folder / self.files[-1], one.speech, self.synthesizer)
        if len(self.files) <= self.pictures:
            (self.folder / "pictures").mkdir(exist_ok=True)
            self._draw(one, self.folder / "pictures" / Path(self.files[-1]).with_suffix(".png"))

    def _draw(self, one: "Comparison", path: Path) -> None:
        from ..modeling.speech_figures import plot_synthesis
        from ..processing.mel_spectrograms import MelSettings, extract_log_mel
        from .speech_comparison import joined_alignment

        settings = MelSettings()  # those of the comparison, whatever the model's are
        panels = {"recording": one.recording, "synthesis": one.spoken}
        spectrograms = {name: extract_log_mel(audio, settings) for name, audio in panels.items()}
        pause_s, rate = self.synthesizer.options.pause_s, self.synthesizer.model.config.sampling_rate
        weights, ids, step_s = joined_alignment(one.speech, pause_s, rate)
        tokens = self.synthesizer.processor.tokenizer.convert_ids_to_tokens(ids)
        title = f"{one.measures.text[:80]!r}, focus rate {one.measures.focus_rate:.2f}"
        plot_synthesis(spectrograms, weights, tokens, settings.duration_s(1), step_s, path, title)

    def finish(self, summary: dict[str, float], rows: "Sequence[Measures]", skipped: Sequence[str]) -> None:
        """The list of clips, and the results."""
        if self.folder is None:
            return
        with (self.folder / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
            lines = csv.writer(file)
            lines.writerow(["file_name", "text", "duration"])
            lines.writerows(
                [name, row.text, round(row.duration_s, 3)] for name, row in zip(self.files, rows, strict=True)
            )
        names = ("model", "data", "split", "dataset_name", "speaker", "vocoder", "seed", "speed", "attention_window")
        asked = {name: getattr(self.args, name) for name in (*names, "asr_model", "normalizer")}
        utterances = [{"clip": name, **asdict(row)} for name, row in zip(self.files, rows, strict=True)]
        document = {**asked, "results": summary, "skipped": list(skipped), "utterances": utterances}
        text = json.dumps(without_nan(document), indent=1, ensure_ascii=False)
        (self.folder / "results.json").write_text(text + "\n", encoding="utf-8")
        say(f"speech, results.json{' and pictures' if self.pictures else ''} written to {self.folder}")


def without_nan(value: Any) -> Any:
    """JSON has no NaN, which stands for what could not be measured: null takes its place."""
    if isinstance(value, dict):
        return {name: without_nan(one) for name, one in value.items()}
    if isinstance(value, list):
        return [without_nan(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value
