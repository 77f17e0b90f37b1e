"""Calibration: values by hand, scikit-learn's and SciPy's, and models whose true temperature is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn import metrics as sklearn

from mlpmixer.evaluation.calibration import (
    apply_temperature,
    brier_score,
    expected_calibration_error,
    fit_temperature,
    log_loss,
    reliability,
)
from mlpmixer.evaluation.significance import wilson


def logits_and_labels(n=4000, k=5, temperature=1.0, seed=0):
    """Labels drawn from softmax(z): dividing temperature * z by that temperature makes it calibrated."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, k)) * 2
    labels = (rng.random((n, 1)) > softmax(z, axis=1).cumsum(axis=1)[:, :-1]).sum(axis=1)
    return temperature * z, labels


def test_brier_and_log_loss_equal_scikit_learn():
    z, labels = logits_and_labels(500)
    p = softmax(z, axis=1)
    assert brier_score(p, labels) == pytest.approx(
        sklearn.brier_score_loss(labels, p, labels=range(5), scale_by_half=False)
    )
    assert log_loss(p, labels).mean() == pytest.approx(sklearn.log_loss(labels, p))
    assert (
        brier_score(np.array([[0.0, 1.0], [0.0, 1.0]]), np.array([1, 0])) == 1.0
    )  # certain and right: 0; certain and wrong: 2
    assert np.isfinite(log_loss(np.array([[0.0, 1.0]]), np.array([0])))


def test_bins_include_their_upper_edge():
    bins = reliability(np.array([3 / 15, 0.15, 0.21, 1.0]), np.array([True, False, True, True]))
    assert [b.count for b in bins] == [0, 0, 2, 1, *[0] * 10, 1]
    assert (bins[2].confidence, bins[2].accuracy) == (pytest.approx(0.175), 0.5)
    assert bins[2].accuracy_interval == wilson(1, 2)
    assert (bins[0].confidence, bins[0].accuracy, bins[0].accuracy_interval) == (None, None, None)


def test_calibration_error_is_the_weighted_gap():
    z, labels = logits_and_labels(temperature=2)
    p = softmax(z, axis=1)
    confidence, correct = p.max(axis=1), p.argmax(axis=1) == labels
    by_hand = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        if inside.any():
            by_hand += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    assert expected_calibration_error(confidence, correct) == pytest.approx(by_hand)
    assert expected_calibration_error(np.full(4, 0.75), np.array([True, True, True, False])) == pytest.approx(0)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_a_known_temperature_is_found(temperature):
    z, labels = logits_and_labels(20_000, temperature=temperature)
    p = softmax(z, axis=1).astype(np.float32)
    found = fit_temperature(p, labels)
    assert found == pytest.approx(temperature, rel=0.05)
    after = apply_temperature(p, found)
    assert log_loss(after, labels).mean() <= log_loss(p, labels).mean()
    assert expected_calibration_error(after.max(axis=1), after.argmax(axis=1) == labels) < 0.015


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), temperature=st.floats(0.2, 5))
def test_no_other_temperature_is_more_likely(seed, temperature):
    z, labels = logits_and_labels(200, temperature=temperature, seed=seed)

    def nll(b):
        return -log_softmax(b * z, axis=1)[np.arange(200), labels].mean()

    best = minimize_scalar(nll, bounds=(1e-3, 50), method="bounded", options={"xatol": 1e-10})
    found = fit_temperature(softmax(z, axis=1), labels)
    assert nll(1 / found) <= best.fun + 1e-12


def test_a_temperature_changes_no_answer():
    z, _ = logits_and_labels(100)
    p = softmax(z, axis=1)
    assert np.allclose(apply_temperature(p, 1.7), softmax(z / 1.7, axis=1))
    assert (apply_temperature(p, 30.0).argmax(axis=1) == p.argmax(axis=1)).all()
    with pytest.raises(ValueError, match="positive"):
        apply_temperature(p, 0)


def test_no_best_temperature_is_explained():
    p = softmax(logits_and_labels(50)[0], axis=1)
    with pytest.raises(ValueError, match="all 50 validation answers are correct"):
        fit_temperature(p, p.argmax(axis=1))
    with pytest.raises(ValueError, match="not better than chance"):
        fit_temperature(p, p.argmin(axis=1))
