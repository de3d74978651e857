"""`speechgraft write-mels`: what a text-to-speech model makes of recordings it is led through, for its vocoder."""

import argparse
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .common import (
    DONE,
    SKIPPED_SOME,
    SYNTHESIZERS,
    CommandError,
    add_data_arguments,
    add_model_arguments,
    explained,
    load_data,
    positive,
    say,
)

DESCRIPTION = """\
Write the spectrogram that a trained text-to-speech model makes of each recording when it reads the text and, at every
step, the recording's own frames before it (teacher forcing): with the recording's timing, and with what the model
lacks. `speechgraft train-vocoder --mels FOLDER` learns from them to make good sound of what the model writes."""

EPILOG = """\
exit status: 0 every recording has its spectrogram; 1 some could not be used: each is reported, the rest is done; 2
nothing was done (a wrong option, no such model, no such data)

example:
  speechgraft write-mels --model my-voice --data recordings --output my-mels
  speechgraft train-vocoder --model my-voice --mels my-mels --train recordings --output-dir my-vocoder"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `speechgraft write-mels`."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    data = add_data_arguments(parser)
    data.add_argument("--speaker-column", metavar="NAME", help="column of speaker embeddings: numbers or file names")
    group = add_model_arguments(parser, SYNTHESIZERS)
    group.add_argument(
        "--speaker",
        metavar="FILE",
        help="speaker embedding of all clips, .npy or .pt (default: the model's own voice)",
    )
    group.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the dropout before the decoder (default: %(default)s)"
    )
    group.add_argument(
        "--batch-size", type=positive, default=8, metavar="N", help="clips at once (default: %(default)s)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="for a recording a/b.wav within the data's folder, a/b.npy in this one: float32 [frames, mel bins]",
    )


def main(args: argparse.Namespace) -> int:
    """Write; returns the exit status."""
    if args.speaker is not None and args.speaker_column is not None:
        raise CommandError("give --speaker, one voice of all, or --speaker-column, a voice of each, not both")
    if args.output.exists() and not args.output.is_dir():
        raise CommandError(f"--output {args.output}: a file, not a folder")
    dataset = load_data(args)
    from ..processing.collation_text_to_spectrogram import TextToSpectrogramCollator
    from .loading import load_synthesizer, load_synthesizer_processor
    from .speakers import check_speakers, speakers_of

    model = load_synthesizer(args.model, args.dtype, args.attn, args.device)
    processor = load_synthesizer_processor(args.processor or args.model, model)
    speakers = speakers_of(dataset, args.data, args.speaker, args.speaker_column)
    if speakers is not None:
        check_speakers(model, speakers)
    elif model.lacks_voice:
        raise CommandError("the model has many voices and stores none: give --speaker or --speaker-column")
    with explained():
        collator = TextToSpectrogramCollator(processor, config=model.config)
    rows = UsableRows(dataset, collator, speakers)
    written = write_mels(model, rows, args)
    if written == 0:
        raise CommandError(f"{args.data}: none of the recordings can be used")
    say(f"{written} spectrograms written to {args.output}; {len(rows.skipped)} recordings skipped")
    return SKIPPED_SOME if rows.skipped else DONE


@dataclass
class UsableRows:
    """The rows of a data set as batches are made of them; the others are told.

    Args:
        dataset: rows with `audio` and `text`.
        collator: of the model.
        speakers: gives the voice of a row; None for the model's own.

    Attributes:
        skipped: what could not be used, in a line each.
    """

    dataset: Any
    collator: Any
    speakers: Any = None
    skipped: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        from ..processing.audio_files import source_name

        for row in self.dataset:
            name = source_name(row["audio"])
            try:
                yield Path(name), self._ready(row, name)
            except ValueError as error:
                problem = str(error).removeprefix(f"row 0 of the batch ({name}): ")
                self.skipped.append(problem if name in problem else f"{name}: {problem}")
                say(f"skipped: {self.skipped[-1]}")

    def _ready(self, row: dict[str, Any], name: str) -> dict[str, Any]:
        """Token ids, spectrogram and voice of a row.

        Raises:
            ValueError: something in it cannot be used.
        """
        if not Path(name).is_file():
            raise ValueError("no such file; spectrograms bear the name of the recording's")
        if not (isinstance(row["text"], str) and row["text"].strip()):
            raise ValueError(f"empty transcript {row['text']!r}")
        voice = {} if self.speakers is None else {"speaker_embeddings": self.speakers(row)}
        alone = self.collator([{"audio": row["audio"], "text": row["text"], **voice}])
        return {column: values[0] for column, values in alone.items()}


def write_mels(model: Any, rows: UsableRows, args: argparse.Namespace) -> int:
    """Lead the model through every recording, and save what it wrote; returns how many there are.

    Raises:
        CommandError: memory does not suffice, or a file cannot be written.
    """
    import numpy as np
    import torch
    from tqdm import tqdm

    from ..modeling.spectrogram_writing import row_generators
    from .vocoder_recipe import mel_file

    written, generator, waiting = 0, torch.Generator().manual_seed(args.seed), iter(rows)
    total = len(rows.dataset) if hasattr(rows.dataset, "__len__") else None
    with tqdm(desc="writing", unit="clip", total=total, dynamic_ncols=True, disable=None) as bar:
        while batch := list(itertools.islice(waiting, args.batch_size)):
            try:
                mels = led_through(
                    model, rows.collator([row for _, row in batch]), row_generators(generator, len(batch))
                )
            except torch.OutOfMemoryError as error:
                raise CommandError(f"out of memory for {len(batch)} clips: give a smaller --batch-size") from error
            for (audio, _), mel in zip(batch, mels, strict=True):
                path = mel_file(audio, args.data, args.output)
                with explained(f"--output {args.output}"):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    np.save(path, mel)
            written += len(batch)
            bar.update(len(batch))
    return written


def led_through(model: Any, batch: dict[str, Any], generators: list[Any]) -> list[Any]:
    """Spectrograms, float32 arrays [T, M], as long as those in `batch["labels"]` without their padding."""
    import torch

    with torch.no_grad():
        output = model(**{name: values.to(model.device) for name, values in batch.items()}, generator=generators)
    lengths = output.spectrogram_mask.sum(dim=-1).tolist()
    rows = output.spectrogram.float().cpu().numpy()
    return [row[:length] for row, length in zip(rows, lengths, strict=True)]
