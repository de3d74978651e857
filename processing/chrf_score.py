"""chrF as an `evaluate` metric that needs no hub: `evaluate.load(path of this file)`, or the class."""

from typing import Any

import datasets
import evaluate

from .translation_scores import chrf

DESCRIPTION = """\
chrF (Popović 2015) of a corpus of translations, as sacrebleu computes it (Post 2018): F-score of character n-grams in
common with the reference, up to six characters, recall counting twice. From 0 to 100, which is perfect.
"""

KWARGS_DESCRIPTION = """
Args:
    predictions: translations, one string each.
    references: what they should be: one string for each, or a list of several that are right.

Returns:
    chrF, from 0 to 100.
"""


class ChrfScore(evaluate.Metric):
    """chrF of a corpus; `compute(predictions=[...], references=[...])` returns it, from 0 to 100."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=KWARGS_DESCRIPTION,
            features=[  # pyright: ignore[reportArgumentType]
                datasets.Features({"predictions": text, "references": text}),
                datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
            ],
            reference_urls=["https://github.com/mjpost/sacrebleu"],
        )

    def _compute(self, predictions: list[str], references: list[str] | list[list[str]], **kwargs: Any) -> float:
        return chrf(references, predictions)
