"""Confidences mean what they say: what made them dishonest is found, whatever the data, and the error is told."""

from types import SimpleNamespace

import numpy as np
import pytest

from speechgraft.modeling.confidence_calibration import (
    FLATTEST,
    ConfidenceCurve,
    expected_calibration_error,
    fit_confidences,
)


def words(curve: ConfidenceCurve, count: int = 40_000, seed: int = 0) -> tuple[list[float], list[bool]]:
    """Confidences that the curve makes honest, and which of the words were right."""
    random = np.random.default_rng(seed)
    confidences = random.beta(0.7, 0.5, count)
    return confidences.tolist(), (random.random(count) < curve(confidences)).tolist()


CURVES = {
    "honest": ConfidenceCurve(),
    "too sure": ConfidenceCurve(0.4, 0.4),
    "too doubtful": ConfidenceCurve(1.6, 1.6, 0.7),
    "sure of some, doubtful of others": ConfidenceCurve(0.3, 0.9, 0.4),
}


@pytest.mark.parametrize("curve", CURVES.values(), ids=list(CURVES))
def test_what_made_confidences_dishonest_is_found_and_mends_other_words(curve):
    found = fit_confidences(*words(curve))
    grid = np.linspace(0.01, 0.99, 50)
    np.testing.assert_allclose(found.curve(grid), curve(grid), atol=0.02)
    assert found.error_after < 0.015 and found.n_words == 40_000
    confidences, right = words(curve, seed=1)
    before = expected_calibration_error(confidences, right)
    assert expected_calibration_error(found.curve(confidences).tolist(), right) < 0.015
    assert found.error_before == pytest.approx(before, abs=0.01)
    assert (before > 0.05) == (curve != ConfidenceCurve())


def test_doubts_are_mended_that_one_temperature_makes_worse():
    """As measured where a CTC head has a say: words of probability 0.02 are right every third time."""
    confidences, right = words(ConfidenceCurve(0.25, 1.0, 0.3), 2000)
    others, verdicts = words(ConfidenceCurve(0.25, 1.0, 0.3), 2000, seed=1)
    plain = expected_calibration_error(others, verdicts)
    cooled = min(
        (float(np.logaddexp(0, np.where(right, -1, 1) * slope * log_odds(confidences)).sum()), slope)
        for slope in np.linspace(0.05, 3, 200)
    )[1]
    with_temperature = expected_calibration_error(ConfidenceCurve(cooled, cooled)(others).tolist(), verdicts)
    fitted = expected_calibration_error(fit_confidences(confidences, right).curve(others).tolist(), verdicts)
    assert fitted < 0.03 < 0.08 < min(plain, with_temperature)


def log_odds(confidences: list[float]) -> np.ndarray:
    return np.log(confidences) - np.log1p(-np.array(confidences))


DATA = {
    **{name: words(curve, 400) for name, curve in CURVES.items()},
    "few": words(CURVES["too sure"], 7),
    "all right": ([0.9, 0.8, 0.3, 0.6], [True] * 4),
    "all wrong": ([0.9, 0.8, 0.3, 0.6], [False] * 4),
    "told apart": ([0.9] * 50 + [0.1] * 50, [True] * 50 + [False] * 50),
    "the wrong way round": ([0.9] * 50 + [0.1] * 50, [False] * 50 + [True] * 50),
    "one confidence": ([0.7] * 60, [True, False, False] * 20),
    "certain and impossible": ([1.0, 0.0] * 30, [True, True, False] * 20),
    "doubts alone are in order": (
        [0.99] * 50 + [0.9] * 50 + [0.3] * 50 + [0.01] * 50,
        [False, True] * 75 + [False] * 50,
    ),
}


@pytest.mark.parametrize("name", DATA)
def test_no_other_curve_is_likelier(name):
    optimize = pytest.importorskip("scipy.optimize")
    confidences, right = DATA[name]
    probability = np.clip(confidences, 1e-9, 1 - 1e-9)
    sign = np.where(right, 1, -1)

    def loss(numbers: np.ndarray) -> float:
        doubtful, sure, bias = numbers
        odds = doubtful * np.log(probability) - sure * np.log1p(-probability) + bias
        return np.logaddexp(0, -sign * odds).sum() + ((numbers - [1, 1, 0]) ** 2).sum() / 2

    best = optimize.minimize(loss, [1, 1, 0], bounds=[(FLATTEST, None), (FLATTEST, None), (None, None)], tol=1e-12)
    found = np.array(fit_confidences(confidences, right).curve.numbers)
    assert loss(found) <= best.fun + 1e-7 * abs(best.fun)
    np.testing.assert_allclose(found, best.x, atol=2e-3)


def test_the_error_is_the_gap_between_confidence_and_accuracy_in_bins():
    confidences, right = words(ConfidenceCurve(0.5, 0.5), 500)
    gaps = 0.0
    for low in range(10):
        inside = [(c, r) for c, r in zip(confidences, right, strict=True) if low <= c * 10 < low + 1 + (low == 9)]
        if inside:
            gap = abs(sum(c for c, _ in inside) / len(inside) - sum(r for _, r in inside) / len(inside))
            gaps += gap * len(inside) / len(confidences)
    assert expected_calibration_error(confidences, right) == pytest.approx(gaps)
    assert expected_calibration_error([1.0, 0.0], [True, False]) == 0
    assert expected_calibration_error([1.0, 1.0], [True, False]) == pytest.approx(0.5)


def test_the_error_afterwards_is_that_of_words_that_were_not_fitted():
    confidences, right = words(CURVES["too doubtful"], 50)
    places = np.arange(50)
    others = np.empty(50)
    for first in range(0, 50, 10):
        rest = [place for place in places if not first <= place < first + 10]
        curve = fit_confidences([confidences[p] for p in rest], [right[p] for p in rest]).curve
        others[first : first + 10] = curve(confidences[first : first + 10])
    found = fit_confidences(confidences, right)
    assert found.error_after == pytest.approx(expected_calibration_error(others.tolist(), right))
    assert fit_confidences([0.7], [True]).error_after == pytest.approx(0.3)  # nothing else to fit to: as it was


def test_calibration_keeps_the_order_and_the_neutral_curve_changes_nothing():
    confidence = np.linspace(0.01, 0.99, 9)
    np.testing.assert_allclose(ConfidenceCurve()(confidence), confidence)
    softer = ConfidenceCurve(0.5, 0.5)(confidence)
    assert (np.diff(softer) > 0).all() and softer[0] > confidence[0] and softer[-1] < confidence[-1]
    assert 0 < ConfidenceCurve()(0.0) < 1e-8 and 1 - 1e-8 < ConfidenceCurve()(1.0) < 1
    turned = fit_confidences(*DATA["the wrong way round"]).curve
    assert (np.diff(turned(confidence)) > 0).all()
    with pytest.raises(ValueError, match=r"two positive slopes and a bias, not \[1.0, -1.0, 0.0\]"):
        ConfidenceCurve(1.0, -1.0)


def test_a_few_words_that_were_all_right_make_confidences_a_little_surer():
    found = fit_confidences([0.9, 0.8], [True, True])
    assert 0.8 < found.curve(0.8) < 0.95 and found.accuracy == 1
    with pytest.raises(ValueError, match="0 confidences and 0 verdicts"):
        fit_confidences([], [])


def test_models_that_were_calibrated_by_a_temperature_stay_so():
    curve = ConfidenceCurve(0.3, 0.9, 0.4)
    config = SimpleNamespace(confidence_temperature=2.0)
    assert ConfidenceCurve.of(config) == ConfidenceCurve(0.5, 0.5, 0.0)
    assert ConfidenceCurve.of(config)(0.9) == pytest.approx(0.75)  # odds of 9 to odds of 3
    curve.keep_in(config)
    assert ConfidenceCurve.of(config) == curve and config.confidence_temperature is None
    assert ConfidenceCurve.of(SimpleNamespace()) == ConfidenceCurve()
