"""How likely a word is right: confidences that mean what they say.

A decoder's probability of a word is a good order and a bad probability: networks are too sure of themselves, the more
so the longer they were trained (Guo et al. 2017). Divided by one number, the temperature, the log odds of words that a
model was right about and of those that it was not become honest; validation data give the number.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

SMALLEST = 1e-9  # distance of a probability from 0 and 1: log odds stay finite
SHARPEST, FLATTEST = 0.01, 100.0  # bounds of the temperature


@dataclass(frozen=True)
class ConfidenceCalibration:
    """What fitting a temperature found.

    Attributes:
        temperature: that log odds are to be divided by; above 1 where the model was too sure.
        error_before: expected calibration error of the confidences as they were, from 0 to 1.
        error_after: the same with the temperature, on the same words.
        accuracy: share of the words that were right.
        n_words: so many were looked at.
    """

    temperature: float
    error_before: float
    error_after: float
    accuracy: float
    n_words: int


def calibrated(confidence: Any, temperature: float) -> Any:
    """Probabilities, of any shape, with their log odds divided by a temperature."""
    log_odds = _log_odds(confidence)
    return 1 / (1 + np.exp(-log_odds / temperature))


def _log_odds(confidence: Any) -> np.ndarray:
    probability = np.clip(np.asarray(confidence, dtype=np.float64), SMALLEST, 1 - SMALLEST)
    return np.log(probability) - np.log1p(-probability)


def expected_calibration_error(confidences: Sequence[float], right: Sequence[bool], n_bins: int = 10) -> float:
    """How far confidence and the share of right words lie apart, on average over words (Naeini et al. 2015).

    Args:
        confidences: of words, uncalibrated or calibrated.
        right: whether each of them was right.
        n_bins: words are compared in so many groups of similar confidence, of equal width.

    Raises:
        ValueError: there are no words, or not as many confidences as verdicts.
    """
    sure, verdicts = _checked(confidences, right)
    bins = np.minimum((sure * n_bins).astype(int), n_bins - 1)
    gaps = [abs(float((sure[bins == place] - verdicts[bins == place]).sum())) for place in range(n_bins)]
    return sum(gaps) / len(sure)


def fit_confidence_temperature(
    confidences: Sequence[float], right: Sequence[bool], n_bins: int = 10
) -> ConfidenceCalibration:
    """The temperature under which the verdicts are likeliest (least cross-entropy), and what it improves.

    Args:
        confidences: of words of validation data, with temperature 1.
        right: whether each of them was right.
        n_bins: of the expected calibration error.

    Raises:
        ValueError: there are no words, or not as many confidences as verdicts.
    """
    sure, verdicts = _checked(confidences, right)
    log_odds = _log_odds(sure)
    low, high = np.log(1 / FLATTEST), np.log(1 / SHARPEST)  # of the factor, in which cross-entropy is convex
    for _ in range(60):
        middle = (low + high) / 2
        slope = float(((1 / (1 + np.exp(-log_odds * np.exp(middle))) - verdicts) * log_odds).sum())
        low, high = (low, middle) if slope > 0 else (middle, high)
    temperature = float(np.exp(-(low + high) / 2))
    return ConfidenceCalibration(
        temperature=temperature,
        error_before=expected_calibration_error(confidences, right, n_bins),
        error_after=expected_calibration_error(calibrated(sure, temperature).tolist(), right, n_bins),
        accuracy=float(verdicts.mean()),
        n_words=len(sure),
    )


def _checked(confidences: Sequence[float], right: Sequence[bool]) -> tuple[np.ndarray, np.ndarray]:
    if len(confidences) != len(right) or len(right) == 0:
        raise ValueError(f"{len(confidences)} confidences and {len(right)} verdicts: give one of each for every word")
    return np.asarray(confidences, dtype=np.float64), np.asarray(right, dtype=np.float64)


__all__ = [
    "ConfidenceCalibration",
    "calibrated",
    "expected_calibration_error",
    "fit_confidence_temperature",
]
