"""Confidences mean what they say: the temperature that made them too sure is found, and the error is told."""

import numpy as np
import pytest

from speechgraft.modeling.confidence_calibration import (
    calibrated,
    expected_calibration_error,
    fit_confidence_temperature,
)


def words(temperature: float, count: int = 20_000) -> tuple[list[float], list[bool]]:
    """Confidences that are too sure by a factor, and which of the words were right."""
    random = np.random.default_rng(0)
    log_odds = random.normal(1, 1.5, count)
    right = random.random(count) < 1 / (1 + np.exp(-log_odds))
    return (1 / (1 + np.exp(-temperature * log_odds))).tolist(), right.tolist()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_made_confidences_dishonest_is_found(temperature):
    found = fit_confidence_temperature(*words(temperature))
    assert found.temperature == pytest.approx(temperature, rel=0.05)
    assert found.error_after < 0.02 and found.n_words == 20_000
    if temperature != 1:
        assert found.error_before > 0.05


def test_the_error_is_the_gap_between_confidence_and_accuracy_in_bins():
    confidences, right = words(2.0, 500)
    gaps = 0.0
    for low in range(10):
        inside = [(c, r) for c, r in zip(confidences, right, strict=True) if low <= c * 10 < low + 1 + (low == 9)]
        if inside:
            gap = abs(sum(c for c, _ in inside) / len(inside) - sum(r for _, r in inside) / len(inside))
            gaps += gap * len(inside) / len(confidences)
    assert expected_calibration_error(confidences, right) == pytest.approx(gaps)
    assert expected_calibration_error([1.0, 0.0], [True, False]) == 0
    assert expected_calibration_error([1.0, 1.0], [True, False]) == pytest.approx(0.5)


def test_calibration_keeps_the_order_and_one_changes_nothing():
    confidence = np.linspace(0.01, 0.99, 9)
    np.testing.assert_allclose(calibrated(confidence, 1.0), confidence)
    softer = calibrated(confidence, 2.0)
    assert (np.diff(softer) > 0).all() and softer[0] > confidence[0] and softer[-1] < confidence[-1]
    assert 0 < calibrated(0.0, 1.0) < 1e-8 and 1 - 1e-8 < calibrated(1.0, 1.0) < 1


def test_words_that_were_all_right_make_confidences_sharp_not_infinite():
    found = fit_confidence_temperature([0.9, 0.8], [True, True])
    assert 0.009 < found.temperature < 0.02 and found.accuracy == 1
    with pytest.raises(ValueError, match="0 confidences and 0 verdicts"):
        fit_confidence_temperature([], [])
