"""`speechgraft synthesize`: texts to speech."""

import argparse
import csv
import struct
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

from .common import (
    DONE,
    SKIPPED_SOME,
    SYNTHESIZERS,
    CommandError,
    add_model_arguments,
    add_speaking_arguments,
    explained,
    one_line,
    say,
)

if TYPE_CHECKING:
    from .synthesis import Speech, Synthesizer, Utterance

DESCRIPTION = """\
Speak texts of any length, sentence by sentence: into one sound file, into a folder with a clip for each text or line,
or to standard output while it is being spoken."""

EPILOG = """\
exit status: 0 everything was said; 1 some texts could not be said, or a sentence was cut off because the model did not
come to its end: each is reported, the rest is done; 2 nothing was said (a wrong option, no such model, nothing to say)

examples:
  speechgraft synthesize "Hello, world!" --model my-voice --output hello.wav
  speechgraft synthesize --file chapter.txt --model my-voice --output chapter.flac --speed 1.2
  cat sentences.txt | speechgraft synthesize - --model my-voice --output clips
  speechgraft synthesize "Heard while it is spoken." --model my-voice --stream | aplay"""

SOUND_ENDINGS = (".wav", ".flac", ".ogg")
MAX_INT16 = 32_767
UNKNOWN_LENGTH = 0xFFFFFFFF  # in the header of a WAV file whose end is not known yet; players take it for endless


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `speechgraft synthesize`."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("text", nargs="*", metavar="TEXT", help="what to say, or - for the lines of standard input")
    parser.add_argument("--file", type=Path, metavar="FILE", help="say what is in this text file (UTF-8)")
    add_model_arguments(parser, SYNTHESIZERS)
    speech = add_speaking_arguments(parser)
    speech.add_argument(
        "--pause-s",
        type=float,
        default=0.2,
        metavar="SECONDS",
        help="silence between sentences (default: %(default)g)",
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--output",
        type=Path,
        metavar="PATH",
        help="a sound file (.wav, .flac, .ogg) for everything; or a folder, for a clip of each text and line, with "
        "a metadata.csv (file_name,text,duration)",
    )
    output.add_argument(
        "--format",
        choices=("wav", "flac", "ogg"),
        default="wav",
        help="of the clips in a folder (default: %(default)s)",
    )
    output.add_argument(
        "--timings", type=Path, metavar="FILE", help="write when each word is said, as a table (word,start_s,end_s)"
    )
    output.add_argument(
        "--stream", action="store_true", help="write the sound to standard output while it is being spoken"
    )
    output.add_argument(
        "--stream-format",
        choices=("wav", "raw"),
        default="wav",
        help="wav, or raw samples: 16 bits, signed, little-endian, one channel (default: %(default)s)",
    )


def main(args: argparse.Namespace) -> int:
    """Speak; returns the exit status."""
    check(args)
    if args.stream:
        return speak_to_output(args)
    into_folder = not is_sound_file(args.output)
    texts = list(read_texts(args, whole=not into_folder))
    if not texts:
        raise CommandError("nothing to say: there is no text")
    from .synthesis import make_synthesizer

    synthesizer = make_synthesizer(args, pause_s=args.pause_s, with_alignments=args.timings is not None)
    if into_folder:
        return speak_into_folder(args, synthesizer, texts)
    return speak_into_file(args, synthesizer, "\n\n".join(texts))


def is_sound_file(path: Path) -> bool:
    """Whether a result goes into one file, by the ending of its name."""
    return path.suffix.lower() in SOUND_ENDINGS


def check(args: argparse.Namespace) -> None:
    """Find before anything is loaded what would fail after it.

    Raises:
        CommandError: options are missing or contradict each other, or there is no place for the result.
    """
    if not args.text and args.file is None:
        raise CommandError("give a TEXT, --file FILE, or - for standard input")
    if args.stream == (args.output is not None):
        raise CommandError("give --output PATH, or --stream for standard output")
    if args.stream and args.timings is not None:
        raise CommandError("--timings: times are known at the end: leave --stream out")
    if args.stream and sys.stdout.isatty():
        raise CommandError("--stream writes sound to standard output, which is a terminal: add a player, | aplay")
    if not args.pause_s >= 0:
        raise CommandError(f"--pause-s must not be negative, got {args.pause_s:g}")
    for name in ("output", "timings"):
        path = getattr(args, name)
        if path is not None and not path.absolute().parent.is_dir():
            raise CommandError(f"--{name} {path}: no such folder {path.parent}")
    if args.output is None:
        return
    is_sound = is_sound_file(args.output)
    if is_sound and args.output.is_dir():
        raise CommandError(f"--output {args.output}: a folder with the ending of a sound file")
    if not is_sound and args.output.suffix and not args.output.is_dir():
        raise CommandError(
            f"--output {args.output}: a sound file ends in {', '.join(SOUND_ENDINGS)}, a folder in none"
        )
    if not is_sound and args.output.is_file():
        raise CommandError(f"--output {args.output}: a file, not a folder")
    if not is_sound and args.timings is not None:
        raise CommandError("--timings is for one sound file: name one with --output")


def read_texts(args: argparse.Namespace, whole: bool) -> Iterator[str]:
    """The texts of the command line, of standard input and of the file.

    Args:
        args: the options.
        whole: give files as they are; otherwise their lines, without those that are blank.

    Raises:
        CommandError: the file is missing, or not text.
    """
    for word in args.text:
        if word == "-":
            yield from _texts_in("standard input", sys.stdin, whole)
        else:
            yield word
    if args.file is not None:
        with explained(f"--file {args.file}"):
            file = args.file.open(encoding="utf-8-sig")
        with file:
            yield from _texts_in(f"--file {args.file}", file, whole)


def _texts_in(name: str, file: TextIO, whole: bool) -> Iterator[str]:
    try:
        if whole:
            yield file.read()
        else:
            yield from (line for line in map(str.strip, file) if line)
    except UnicodeDecodeError as error:
        raise CommandError(f"{name}: not UTF-8 text ({error.reason} at byte {error.start})") from error


def speak_into_file(args: argparse.Namespace, synthesizer: "Synthesizer", text: str) -> int:
    """All of it into one file."""
    from .synthesis import Utterance

    (speech,) = spoken(synthesizer, [Utterance("", text)])
    if speech.fault is not None:
        raise CommandError(speech.fault)
    duration_s = write_sound(args.output, speech, synthesizer)
    if args.timings is not None:
        with explained(f"--timings {args.timings}"):
            write_timings(args.timings, speech, synthesizer)
    say(f"{duration_s:.2f} s of speech in {args.output}")
    return SKIPPED_SOME if speech.cut else DONE


def speak_into_folder(args: argparse.Namespace, synthesizer: "Synthesizer", texts: Sequence[str]) -> int:
    """Each text into a clip of its own, with a list of them that speech data sets are read from."""
    from .synthesis import Utterance

    with explained(f"--output {args.output}"):
        args.output.mkdir(exist_ok=True)
        metadata = (args.output / "metadata.csv").open("w", encoding="utf-8", newline="")
    utterances = [Utterance(f"text {index}", text) for index, text in enumerate(texts, start=1)]
    wrong, total_s = 0, 0.0
    with metadata:
        rows = csv.writer(metadata)
        rows.writerow(["file_name", "text", "duration"])
        for index, speech in enumerate(spoken(synthesizer, utterances), start=1):
            wrong += bool(speech.fault or speech.cut)
            if speech.fault is None:
                path = args.output / f"{index:05d}.{args.format}"
                duration_s = write_sound(path, speech, synthesizer)
                rows.writerow([path.name, speech.utterance.text, round(duration_s, 3)])
                total_s += duration_s
    say(
        f"{total_s:.2f} s of speech in {args.output}"
        + (f"; {wrong} of {len(texts)} texts went wrong" if wrong else "")
    )
    return SKIPPED_SOME if wrong else DONE


def spoken(synthesizer: "Synthesizer", utterances: "Iterable[Utterance]") -> "Iterator[Speech]":
    """Speak under a progress bar that counts sentences; what goes wrong is told."""
    from tqdm import tqdm

    from .synthesis import shortened

    with tqdm(desc="speaking", unit="sentence", total=0, dynamic_ncols=True, disable=None) as bar:

        def progress(found: int, done: int) -> None:
            bar.total = (bar.total or 0) + found
            bar.update(done)

        synthesizer.progress = progress
        for speech in synthesizer(utterances):
            name = f"{speech.utterance.name}: " if speech.utterance.name else ""
            if speech.fault is not None and name:
                say(f"skipped: {speech.fault}")
            for sentence in speech.cut:
                duration_s = len(sentence.waveform) / synthesizer.model.config.sampling_rate
                say(f"{name}cut off after {duration_s:.2f} s, before its end: {shortened(sentence.text)!r}")
            yield speech


def write_sound(path: Path, speech: "Speech", synthesizer: "Synthesizer") -> float:
    """Write a sound file of 16 bits a sample; returns its duration in seconds."""
    import soundfile

    rate = synthesizer.model.config.sampling_rate
    subtype = "VORBIS" if path.suffix.lower() == ".ogg" else "PCM_16"
    with explained(f"--output {path}"):
        soundfile.write(path, speech.waveform.clip(-1, 1), rate, subtype=subtype)
    return len(speech.waveform) / rate


def write_timings(path: Path, speech: "Speech", synthesizer: "Synthesizer") -> None:
    """Write a table of words with the times of their beginnings and ends, in seconds."""
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["word", "start_s", "end_s"])
        for sentence, start_s in zip(speech.sentences, synthesizer.starts_s(speech), strict=True):
            for word in sentence.alignment.word_timings(sentence.input_ids, synthesizer.processor.tokenizer):
                rows.writerow([word.word, round(start_s + word.start_s, 3), round(start_s + word.end_s, 3)])


def speak_to_output(args: argparse.Namespace) -> int:
    """Speak texts one after the other to standard output; lines of standard input as they come."""
    from .synthesis import make_synthesizer

    synthesizer = make_synthesizer(args, pause_s=args.pause_s)
    rate = synthesizer.model.config.sampling_rate
    out = PcmWriter(sys.stdout.buffer, rate, with_header=args.stream_format == "wav")
    faults: list[str] = []
    told = 0
    for index, text in enumerate(read_texts(args, whole=False), start=1):
        try:
            for number, chunk in enumerate(synthesizer.stream(text)):
                if number == 0 and out.started:
                    out.write_silence(args.pause_s)
                out.write(chunk)
        except ValueError as error:
            faults.append(f"text {index}: {one_line(error)}")
        for fault in faults[told:] if out.started else ():
            say(f"skipped: {fault}")
            told += 1
    if not out.started:
        raise CommandError("; ".join(faults) if faults else "nothing to say: there is no text")
    return SKIPPED_SOME if faults or synthesizer.cut_sentences else DONE


class PcmWriter:
    """Samples of 16 bits to a pipe, with the header of a WAV file that does not know its length.

    Args:
        file: binary.
        sampling_rate: in Hz.
        with_header: whether there is one.
    """

    def __init__(self, file: BinaryIO, sampling_rate: int, with_header: bool = True):
        self.file, self.sampling_rate, self.with_header = file, sampling_rate, with_header
        self.started = False

    def write(self, waveform: Any) -> None:
        """Samples [N] from -1 to 1; the header comes before the first."""
        if not self.started and self.with_header:
            self.file.write(wav_header(self.sampling_rate))
        self.started = True
        self.file.write((waveform.clip(-1, 1) * MAX_INT16).round().astype("<i2").tobytes())
        self.file.flush()

    def write_silence(self, duration_s: float) -> None:
        """Seconds of it."""
        self.file.write(bytes(2 * round(duration_s * self.sampling_rate)))


def wav_header(sampling_rate: int) -> bytes:
    """Of one channel of 16 bits, as long as the pipe is open."""
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, sampling_rate, 2 * sampling_rate, 2, 16)
    riff = struct.pack("<4sI4s", b"RIFF", UNKNOWN_LENGTH, b"WAVE")
    return riff + form + struct.pack("<4sI", b"data", UNKNOWN_LENGTH - 36)
