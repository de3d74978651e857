"""The voices of a data set's clips: a column of speaker embeddings, or one for all."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..processing.speaker_embeddings import SpeakerError, load_speaker_embedding
from .common import CommandError, explained


@dataclass
class Speakers:
    """Where the voices of clips come from.

    Args:
        column: of the data set, with numbers or file names; None where all clips have one voice.
        folder: of the data set, to which file names may be relative.
        voice: of all clips.
        width: of the embeddings, once it is known.
    """

    column: str | None
    folder: Path
    voice: Any = None
    width: int | None = None

    def __call__(self, row: Mapping[str, Any]) -> Any:
        """The embedding [V] of a row.

        Raises:
            SpeakerError: it has none, or one that cannot be used.
        """
        if self.column is None:
            return self.voice
        given = row.get(self.column)
        if given is None or given == "":
            raise SpeakerError(f"no speaker embedding in the column {self.column}")
        if isinstance(given, str) and not Path(given).is_file():
            given = self.folder / given
        return load_speaker_embedding(given, self.width)


def speakers_of(
    dataset: Any, source: str | None, file: str | None = None, column: str | None = None
) -> Speakers | None:
    """The voices of a data set; None where there are none.

    Args:
        dataset: its rows; None where there is no data.
        source: where they come from.
        file: with the embedding of all clips.
        column: with the embedding of each.

    Raises:
        CommandError: there is no such column or file, or nothing in it can be used.
    """
    folder = Path(str(source))
    folder = folder if folder.is_dir() else folder.parent
    if file is not None:
        with explained("--speaker"):
            voice = load_speaker_embedding(file)
        return Speakers(None, folder, voice, len(voice))
    if column is None or dataset is None:
        return None
    columns = list(dataset.column_names or next(iter(dataset), {}))  # a streamed table may not know its columns
    if column not in columns:
        raise CommandError(f"no column {column} of speaker embeddings in {source}: there are {', '.join(columns)}")
    speakers, fault = Speakers(column, folder), ""
    for row in dataset:
        try:
            speakers.width = len(speakers(row))
            return speakers
        except SpeakerError as error:
            fault = str(error)
    raise CommandError(f"{source}: no speaker embedding can be used; the last: {fault}")


def check_speakers(model: Any, speakers: Speakers) -> None:
    """See that a model can hear the voices.

    Raises:
        CommandError: it has another width of embeddings, or none.
    """
    width = model.config.speaker_embedding_dim
    if width != speakers.width:
        has = "one voice" if width == 0 else f"speaker embeddings of {width} values"
        raise CommandError(f"the speaker embeddings have {speakers.width} values, but the model has {has}")
