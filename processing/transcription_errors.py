"""Counting what a transcript gets wrong: substitutions, deletions and insertions of words or characters, by jiwer.

Rates are pooled: all errors divided by all reference words (or characters), not a mean of the utterances' rates. An
empty reference is no error in itself; whatever was heard there is an insertion. Where no reference has anything, the
rate is the number of insertions, as if there were one reference word: 0 if nothing was heard.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jiwer

UNITS = ("word", "character")


@dataclass(frozen=True)
class ErrorCounts:
    """Edits that turn references into hypotheses; counts of several utterances add up with `+`.

    Attributes:
        hits: reference words (or characters) that were recognised.
        substitutions: recognised as another one.
        deletions: missed.
        insertions: heard where there were none.
    """

    hits: int = 0
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def reference_length(self) -> int:
        return self.hits + self.substitutions + self.deletions

    @property
    def rate(self) -> float:
        """Errors per reference word (or character); above 1 where more was inserted than was said."""
        return self.errors / max(self.reference_length, 1)

    def __add__(self, other: "ErrorCounts") -> "ErrorCounts":
        return ErrorCounts(
            self.hits + other.hits,
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
        )


def count_errors(reference: str, hypothesis: str, unit: str = "word") -> ErrorCounts:
    """The fewest edits between two transcripts.

    Args:
        reference: what was said.
        hypothesis: what was recognised.
        unit: "word" (between white space) or "character" (spaces count, but not around the text).
    """
    if unit not in UNITS:
        raise ValueError(f"unit is one of {', '.join(UNITS)}, not {unit!r}")
    reference, hypothesis = reference.strip(), hypothesis.strip()
    if not reference:  # jiwer 3 refuses empty references, jiwer 4 takes them
        return ErrorCounts(insertions=len(hypothesis.split() if unit == "word" else hypothesis))
    process = jiwer.process_words if unit == "word" else jiwer.process_characters
    output = process(reference, hypothesis)
    return ErrorCounts(output.hits, output.substitutions, output.deletions, output.insertions)


def pooled_errors(references: Sequence[str], hypotheses: Sequence[str], unit: str = "word") -> ErrorCounts:
    """The errors of all utterances together.

    Raises:
        ValueError: there are more references than hypotheses, or the other way round.
    """
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references, but {len(hypotheses)} hypotheses")
    counts = (count_errors(*pair, unit=unit) for pair in zip(references, hypotheses, strict=True))
    return sum(counts, start=ErrorCounts())
