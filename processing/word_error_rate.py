"""Word error rate as an `evaluate` metric that needs no hub: `evaluate.load(path of this file)`, or the class."""

from typing import Any

import datasets
import evaluate

from .transcription_errors import pooled_errors

DESCRIPTION = """\
Word error rate: substituted, deleted and inserted words of all utterances, divided by the words of all
references. 0 is perfect; above 1, more was inserted than was said. Where every reference is empty, it is the number of
inserted words.
"""

KWARGS_DESCRIPTION = """
Args:
    predictions: recognised transcripts, one string each.
    references: what was said, one string each.

Returns:
    The word error rate as a fraction.
"""


class WordErrorRate(evaluate.Metric):
    """Pooled word error rate; `compute(predictions=[...], references=[...])` returns it as a fraction."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=KWARGS_DESCRIPTION,
            features=datasets.Features({name: datasets.Value("string") for name in ("predictions", "references")}),
            reference_urls=["https://github.com/jitsi/jiwer"],
        )

    def _compute(self, predictions: list[str], references: list[str], **kwargs: Any) -> float:
        return pooled_errors(references, predictions, unit="word").rate
