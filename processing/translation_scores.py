"""BLEU and chrF of translations, by sacrebleu: of whole corpora, on its own tokens, so that papers can be compared."""

from collections.abc import Sequence
from typing import Any

References = Sequence[str] | Sequence[Sequence[str]]


def bleu(references: References, hypotheses: Sequence[str]) -> float:
    """BLEU (Papineni et al. 2002), from 0 to 100.

    Args:
        references: one right translation of each text, or as many for each.
        hypotheses: the translations, with case and punctuation.

    Raises:
        ImportError: sacrebleu is not installed.
        ValueError: the lists differ in length, or texts in the number of their references.
    """
    return _sacrebleu().corpus_bleu(list(hypotheses), _by_place(references, hypotheses)).score


def chrf(references: References, hypotheses: Sequence[str]) -> float:
    """The chrF score (Popović 2015), from 0 to 100; arguments and errors as those of `bleu`."""
    return _sacrebleu().corpus_chrf(list(hypotheses), _by_place(references, hypotheses)).score


def _by_place(references: References, hypotheses: Sequence[str]) -> list[list[str]]:
    """All first references, all second ones: sacrebleu's order."""
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references, but {len(hypotheses)} hypotheses")
    each = [[one] if isinstance(one, str) else list(one) for one in references]
    if len({len(one) for one in each}) > 1:
        raise ValueError("every text must have as many references as the others")
    return [list(column) for column in zip(*each, strict=True)]


def _sacrebleu() -> Any:
    try:
        import sacrebleu
    except ImportError as error:
        raise ImportError("BLEU and chrF need sacrebleu: pip install 'speechgraft[translation]'") from error
    return sacrebleu


__all__ = ["bleu", "chrf"]
