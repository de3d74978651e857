"""Transcripts as files that other programs read: JSON, and subtitles, SubRip and WebVTT."""

import html
import json
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

LINE_CHARACTERS = 42  # of a line of subtitles, as broadcasters set them


@dataclass(frozen=True)
class Segment:
    """A stretch of speech: when it starts and ends, in seconds from the beginning of the recording, and its text."""

    start_s: float
    end_s: float
    text: str


class Timed(Protocol):
    """Whatever has times and a text: a `Segment`, a line or a word of a transcription."""

    @property
    def start_s(self) -> float: ...
    @property
    def end_s(self) -> float: ...
    @property
    def text(self) -> str: ...


def format_srt(segments: Iterable[Timed]) -> str:
    """SubRip subtitles (.srt): numbered blocks of times and text, in lines that fit on a screen.

    Raises:
        ValueError: a segment ends before it starts, or before 0.
    """
    blocks = []
    for number, segment in enumerate(_checked(segments), start=1):
        times = f"{_time(segment.start_s, ',')} --> {_time(segment.end_s, ',')}"
        blocks.append(f"{number}\n{times}\n{_lines(segment.text)}\n")
    return "\n".join(blocks)


def format_vtt(segments: Iterable[Timed]) -> str:
    """WebVTT subtitles (.vtt), for browsers.

    Raises:
        ValueError: a segment ends before it starts, or before 0.
    """
    blocks = ["WEBVTT\n"]
    for segment in _checked(segments):
        times = f"{_time(segment.start_s, '.')} --> {_time(segment.end_s, '.')}"
        blocks.append(f"{times}\n{html.escape(_lines(segment.text), quote=False)}\n")
    return "\n".join(blocks)


def _checked(segments: Iterable[Timed]) -> Iterator[Timed]:
    for number, segment in enumerate(segments, start=1):
        if not 0 <= segment.start_s <= segment.end_s:
            raise ValueError(f"segment {number} lasts from {segment.start_s} s to {segment.end_s} s: {segment.text!r}")
        yield segment


def _lines(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), LINE_CHARACTERS)


def _time(seconds: float, point: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    seconds_, milliseconds = divmod(milliseconds, 1000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{seconds_:02d}{point}{milliseconds:03d}"


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
