"""How likely a word is right: confidences that mean what they say.

A decoder's probability of a word is a good order and a bad probability. Networks are too sure of themselves, the more
so the longer they were trained (Guo et al. 2017); and where other scores have a say in a search, as a CTC head's has,
the decoder doubts many words that are right. So what it is sure of and what it doubts are to be mended apart. Beta
calibration (Kull et al. 2017, "Beta calibration: a well-founded and easily implemented improvement on logistic
calibration for binary classifiers") makes new log odds of a probability p:

    a log p - b log(1 - p) + c

where a is felt at small p, b at large ones. With a = b it is Platt's scaling of the log odds, with c = 0 as well a
temperature of 1 / a. Validation data give the three numbers.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

SMALLEST = 1e-9  # distance of a probability from 0 and 1: log odds stay finite
FLATTEST = 0.01  # least slope: an order that says nothing is still kept
NEUTRAL = np.array([1.0, 1.0, 0.0])  # slopes and bias that change nothing
N_FOLDS = 5


@dataclass(frozen=True)
class ConfidenceCurve:
    """From the probability that a decoder gives to a word to the probability that the word is right.

    Args:
        doubtful_slope: of the new log odds along the logarithm of the probability.
        sure_slope: of the new log odds along the negative logarithm of the probability that is left.
        bias: of the new log odds.

    Raises:
        ValueError: a slope is not positive, or a number not finite: doubtful words would count as the surer ones.
    """

    doubtful_slope: float = 1.0
    sure_slope: float = 1.0
    bias: float = 0.0

    def __post_init__(self) -> None:
        if not (np.isfinite(self.numbers).all() and self.doubtful_slope > 0 and self.sure_slope > 0):
            raise ValueError(f"confidences need two positive slopes and a bias, not {self.numbers}")

    @property
    def numbers(self) -> list[float]:
        """Both slopes and the bias, as `generation_config.confidence_calibration` has them."""
        return [self.doubtful_slope, self.sure_slope, self.bias]

    @classmethod
    def of(cls, generation_config: Any) -> "ConfidenceCurve":
        """What a model was calibrated to: `confidence_calibration`, else `confidence_temperature`, else nothing."""
        if (numbers := getattr(generation_config, "confidence_calibration", None)) is not None:
            return cls(*map(float, numbers))
        slope = 1 / float(getattr(generation_config, "confidence_temperature", None) or 1.0)
        return cls(slope, slope)

    def keep_in(self, generation_config: Any) -> None:
        """Write it where `of` finds it."""
        if getattr(generation_config, "confidence_temperature", None) is not None:
            generation_config.confidence_temperature = None
        generation_config.confidence_calibration = self.numbers

    def __call__(self, confidence: Any) -> np.ndarray:
        """Probabilities, of any shape, to those calibrated."""
        return 1 / (1 + np.exp(-_evidence(confidence) @ np.array(self.numbers)))


@dataclass(frozen=True)
class ConfidenceCalibration:
    """What fitting a curve found.

    Attributes:
        curve: the likeliest.
        error_before: expected calibration error of the confidences as they were, from 0 to 1.
        error_after: the same of calibrated ones, each by a curve that was fitted to other words.
        accuracy: share of the words that were right.
        n_words: so many were looked at.
    """

    curve: ConfidenceCurve
    error_before: float
    error_after: float
    accuracy: float
    n_words: int


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


def fit_confidences(confidences: Sequence[float], right: Sequence[bool], n_bins: int = 10) -> ConfidenceCalibration:
    """The curve under which the verdicts are likeliest, and what it improves.

    Before any word is seen, slopes and bias are taken to be normally distributed around those that change nothing,
    with a deviation of 1. So a few words, or words that were all right, change little, and hundreds decide.

    Args:
        confidences: of words of validation data, uncalibrated; words of one utterance behind each other.
        right: whether each of them was right.
        n_bins: of the expected calibration error.

    Raises:
        ValueError: there are no words, or not as many confidences as verdicts.
    """
    sure, verdicts = _checked(confidences, right)
    left_out = np.empty_like(sure)
    for fold in np.array_split(np.arange(len(sure)), N_FOLDS):
        others = np.delete(np.arange(len(sure)), fold)
        left_out[fold] = _fitted(sure[others], verdicts[others])(sure[fold])
    return ConfidenceCalibration(
        curve=_fitted(sure, verdicts),
        error_before=expected_calibration_error(confidences, right, n_bins),
        error_after=expected_calibration_error(left_out.tolist(), right, n_bins),
        accuracy=float(verdicts.mean()),
        n_words=len(sure),
    )


def _evidence(confidence: Any) -> np.ndarray:
    """What slopes and bias are multiplied by: probabilities [...] to [..., 3]."""
    probability = np.clip(np.asarray(confidence, dtype=np.float64), SMALLEST, 1 - SMALLEST)
    return np.stack([np.log(probability), -np.log1p(-probability), np.ones_like(probability)], axis=-1)


def _fitted(sure: np.ndarray, verdicts: np.ndarray) -> ConfidenceCurve:
    """The likeliest curve with slopes of at least `FLATTEST`.

    Cross-entropy is convex, so that the best point within bounds is the best of those on their faces: each slope is
    free, or at its bound.
    """
    evidence, found = _evidence(sure), []
    for bound in itertools.product((False, True), repeat=2):
        numbers = _least(evidence, verdicts, np.array([*bound, False]))
        if (numbers[:2] >= FLATTEST).all():
            found.append((_loss(evidence, verdicts, numbers), *numbers.tolist()))
    return ConfidenceCurve(*min(found)[1:])


def _least(evidence: np.ndarray, verdicts: np.ndarray, bound: np.ndarray) -> np.ndarray:
    """Slopes and bias of least loss, those that are bound at `FLATTEST`, by Newton's method."""
    numbers = np.where(bound, FLATTEST, NEUTRAL)
    free = np.flatnonzero(~bound)
    for _ in range(100):
        chances = 1 / (1 + np.exp(-evidence @ numbers))
        gradient = (evidence.T @ (chances - verdicts) + numbers - NEUTRAL)[free]
        curvature = (evidence.T * (chances * (1 - chances))) @ evidence + np.eye(len(numbers))
        step = np.zeros_like(numbers)
        step[free] = np.linalg.solve(curvature[np.ix_(free, free)], gradient)
        gained = float(gradient @ step[free])  # twice what the loss falls by, were it a parabola
        if gained < 1e-12:
            break
        numbers = next(_downhill(evidence, verdicts, numbers, step, gained), numbers)
    return numbers


def _downhill(
    evidence: np.ndarray, verdicts: np.ndarray, numbers: np.ndarray, step: np.ndarray, gained: float
) -> Iterator[np.ndarray]:
    """Ever smaller parts of a step, those alone behind which the loss has fallen enough (Armijo 1966)."""
    before = _loss(evidence, verdicts, numbers)
    for halvings in range(40):
        part = 0.5**halvings
        if _loss(evidence, verdicts, numbers - part * step) <= before - 1e-4 * part * gained:
            yield numbers - part * step


def _loss(evidence: np.ndarray, verdicts: np.ndarray, numbers: np.ndarray) -> float:
    """Negative logarithm of the probability of the verdicts and of the numbers, but for a constant."""
    against = np.where(verdicts > 0.5, -1.0, 1.0) * (evidence @ numbers)
    return float(np.logaddexp(0, against).sum() + ((numbers - NEUTRAL) ** 2).sum() / 2)


def _checked(confidences: Sequence[float], right: Sequence[bool]) -> tuple[np.ndarray, np.ndarray]:
    if len(confidences) != len(right) or len(right) == 0:
        raise ValueError(f"{len(confidences)} confidences and {len(right)} verdicts: give one of each for every word")
    return np.asarray(confidences, dtype=np.float64), np.asarray(right, dtype=np.float64)


__all__ = [
    "ConfidenceCalibration",
    "ConfidenceCurve",
    "expected_calibration_error",
    "fit_confidences",
]
