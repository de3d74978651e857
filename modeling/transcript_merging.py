"""Transcripts of parts of a recording, put together: which words of two parts are the same, and where lines end."""

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .speech_timestamps import WORD, TimedWord, spells

SAME_WORD = 0.6  # likeness of two spellings of one word, at least; "colour" and "color" have 0.91
TOLERANCE_S = 0.8  # by which the times of one word may differ between two parts
SENTENCE_ENDS = ".?!。？！…"
PAUSE_S, LONGEST_SEGMENT_S = 0.7, 10.0


@dataclass(frozen=True)
class TimedSegment:
    """A line of a transcript.

    Attributes:
        text: of the line.
        start_s: when its first word begins, in seconds from the beginning of the recording.
        end_s: when its last word ends.
        confidence: the share of its words that can be expected to be right.
        words: of the line.
    """

    text: str
    start_s: float
    end_s: float
    confidence: float
    words: tuple[TimedWord, ...] = ()


def bare(word: str) -> str:
    """A word without what two transcripts of it may differ in: case and punctuation."""
    letters = "".join(character for character in word.casefold() if spells(character))
    return letters or word


def match_sequences(n_first: int, n_second: int, score: Callable[[int, int], float]) -> list[tuple[int, int]]:
    """The pairs of two sequences, in order and none crossing another, whose scores add up to most.

    Args:
        n_first: length of the first sequence.
        n_second: length of the second.
        score: of a pair of places; one that is not above 0 is never chosen.
    """
    scores = np.array([[score(i, j) for j in range(n_second)] for i in range(n_first)]).reshape(n_first, n_second)
    best = np.zeros((n_first + 1, n_second + 1))
    for i in range(n_first - 1, -1, -1):
        for j in range(n_second - 1, -1, -1):
            paired = best[i + 1, j + 1] + scores[i, j] if scores[i, j] > 0 else 0.0
            best[i, j] = max(best[i + 1, j], best[i, j + 1], paired)
    pairs, i, j = [], 0, 0
    while i < n_first and j < n_second:
        if best[i, j] == best[i + 1, j]:
            i += 1
        elif best[i, j] == best[i, j + 1]:
            j += 1
        else:
            pairs.append((i, j))
            i, j = i + 1, j + 1
    return pairs


def right_words(heard: Sequence[str], said: Sequence[str]) -> list[bool]:
    """Of each word that was heard, whether it was said, by the alignment with most words in common."""
    one, other = [bare(word) for word in heard], [bare(word) for word in said]
    matched = match_sequences(len(one), len(other), lambda i, j: float(one[i] == other[j]))
    right = {i for i, _ in matched}
    return [place in right for place in range(len(one))]


def merge_words(
    before: Sequence[TimedWord], after: Sequence[TimedWord], start_s: float, end_s: float
) -> list[TimedWord]:
    """The words of two parts of a recording that overlap, those of the overlap once.

    Words of both parts are paired by spelling and time. The seam is the pair nearest to the middle of the overlap:
    there both parts heard what came before and after. Without any pair, each part has its half of the overlap.

    Args:
        before: of the part that ends at `end_s`.
        after: of the part that begins at `start_s`.
        start_s: beginning of the overlap, in seconds of the recording.
        end_s: its end.
    """
    middle = (start_s + end_s) / 2
    first = [i for i, word in enumerate(before) if _middle(word) > start_s - TOLERANCE_S]
    second = [j for j, word in enumerate(after) if _middle(word) < end_s + TOLERANCE_S]

    def score(i: int, j: int) -> float:
        return _likeness(before[first[i]], after[second[j]])

    pairs = [(first[i], second[j]) for i, j in match_sequences(len(first), len(second), score)]
    if pairs:
        i, j = min(pairs, key=lambda pair: abs(_middle(before[pair[0]]) + _middle(after[pair[1]]) - 2 * middle))
        merged = [*before[: i + 1], *after[j + 1 :]]
    elif first and second:
        merged = [w for w in before if _middle(w) < middle] + [w for w in after if _middle(w) >= middle]
    else:  # only one of them heard anything there
        merged = [*before, *after]
    return in_order(merged)


def _middle(word: TimedWord) -> float:
    return (word.start_s + word.end_s) / 2


def _likeness(one: TimedWord, other: TimedWord) -> float:
    """Above 0 for what may be one word, heard twice; equal spellings at one time have 1."""
    apart = abs(_middle(one) - _middle(other))
    if apart >= TOLERANCE_S:
        return 0.0
    alike = difflib.SequenceMatcher(None, bare(one.text), bare(other.text), autojunk=False).ratio()
    return alike - apart / TOLERANCE_S if alike >= SAME_WORD else 0.0


def in_order(words: Iterable[TimedWord]) -> list[TimedWord]:
    """Words with times that never go back, which those of two parts may do by a frame or two."""
    settled: list[TimedWord] = []
    for word in words:
        least = settled[-1].end_s if settled else 0.0
        if word.start_s < least:
            characters = (
                replace(c, start_s=max(c.start_s, least), end_s=max(c.end_s, least)) for c in word.characters
            )
            word = replace(word, start_s=least, end_s=max(word.end_s, least), characters=tuple(characters))
        settled.append(word)
    return settled


def join_words(words: Iterable[TimedWord]) -> str:
    """The text of words, with the space that they had between them."""
    return "".join(word.space + word.text for word in words).strip()


def part_from(words: Sequence[TimedWord]) -> list[TimedWord]:
    """The words of a part that follows another one: with a space before the first, where its script has spaces."""
    spaced = [word for word in words[:1] if not word.space and WORD.fullmatch(word.text + "x")]
    return [*(replace(word, space=" ") for word in spaced), *words[len(spaced) :]]


def segment_words(
    words: Sequence[TimedWord], longest_s: float = LONGEST_SEGMENT_S, pause_s: float = PAUSE_S
) -> list[TimedSegment]:
    """Lines of a transcript: they end with sentences, at pauses, and before they grow too long, at the longest pause.

    Args:
        words: in order.
        longest_s: the most seconds from the beginning of a line's first word to the end of its last one.
        pause_s: silence that ends a line in any case.
    """
    lines: list[list[TimedWord]] = []
    for word in words:
        last = lines[-1][-1] if lines else None
        ends = last is None or last.text[-1] in SENTENCE_ENDS or word.start_s - last.end_s >= pause_s
        if ends:
            lines.append([])
        lines[-1].append(word)
    return [segment_of(part) for line in lines for part in _short_enough(line, longest_s)]


def _short_enough(line: list[TimedWord], longest_s: float) -> list[list[TimedWord]]:
    if len(line) < 2 or line[-1].end_s - line[0].start_s <= longest_s:
        return [line]
    total, middle = line[-1].end_s - line[0].start_s, (line[0].start_s + line[-1].end_s) / 2

    def worth(place: int) -> float:  # of an end before this word: a long pause, rather in the middle
        return line[place].start_s - line[place - 1].end_s - 0.2 * abs(line[place].start_s - middle) / total

    at = max(range(1, len(line)), key=worth)
    return [*_short_enough(line[:at], longest_s), *_short_enough(line[at:], longest_s)]


def segment_of(words: Sequence[TimedWord]) -> TimedSegment:
    """Words as one line."""
    sure = sum(word.confidence for word in words) / len(words)
    return TimedSegment(join_words(words), words[0].start_s, words[-1].end_s, sure, tuple(words))


__all__ = ["TimedSegment", "merge_words", "right_words", "segment_words"]
