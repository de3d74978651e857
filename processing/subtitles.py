"""Transcripts as files that other programs read: JSON, and SubRip subtitles where the times are known."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Segment:
    """A stretch of speech: when it starts and ends, in seconds from the beginning of the recording, and its text."""

    start_s: float
    end_s: float
    text: str


def format_srt(segments: Iterable[Segment]) -> str:
    """SubRip subtitles (.srt): numbered blocks of times and text.

    Raises:
        ValueError: a segment ends before it starts, or before 0.
    """
    blocks = []
    for number, segment in enumerate(segments, start=1):
        if not 0 <= segment.start_s <= segment.end_s:
            raise ValueError(f"segment {number} lasts from {segment.start_s} s to {segment.end_s} s: {segment.text!r}")
        times = f"{_srt_time(segment.start_s)} --> {_srt_time(segment.end_s)}"
        blocks.append(f"{number}\n{times}\n{segment.text.strip()}\n")
    return "\n".join(blocks)


def _srt_time(seconds: float) -> str:
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{milliseconds // 1000:02d},{milliseconds % 1000:03d}"


class JsonArrayWriter:
    """Writes a JSON array, one record on a line, as the records come; what is written is valid whenever it closes.

    ```python
    with JsonArrayWriter(print) as writer:
        writer.write({"text": "hello"})
    ```

    Args:
        write_line: takes a line without its end.
    """

    def __init__(self, write_line: Callable[[str], object]) -> None:
        self.write_line = write_line
        self._before = "["

    def write(self, record: Mapping[str, Any]) -> None:
        """Write one record."""
        self.write_line(self._before + json.dumps(record, ensure_ascii=False))
        self._before = ","

    def __enter__(self) -> "JsonArrayWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self.write_line("]" if self._before == "," else "[]")
