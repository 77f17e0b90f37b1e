"""Metrics: values by hand and scikit-learn's."""

import json
import math
from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn

from mlpmixer.evaluation.metrics import metrics_from_probabilities
from mlpmixer.evaluation.significance import wilson


def random_case(seed, n=200, k=7):
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(k), rng.integers(0, k, n - k)])
    z = rng.normal(size=(n, k)) * 2
    z[np.arange(n), labels] += 1.5
    p = np.exp(z)
    return p / p.sum(axis=1, keepdims=True), labels, [f"c{i}" for i in range(k)], [f"{i}.png" for i in range(n)]


def test_metrics_equal_hand_computed_values():
    p = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7]])
    m = metrics_from_probabilities(p, np.array([0, 1, 1, 1]), ["cat", "dog"], list("abcd"))
    assert m.n == 4 and m.top1 == 0.75
    assert m.top5 is None  # two classes: it would say nothing
    assert m.nll == pytest.approx(-(math.log(0.9) + math.log(0.4) + math.log(0.8) + math.log(0.7)) / 4)
    assert m.ece == pytest.approx((0.1 + 0.6 + 0.2 + 0.3) / 4)  # four bins with one image each
    assert m.confusion == ((1, 0), (1, 2))
    cat, dog = m.per_class
    assert (cat.precision, cat.recall, cat.support) == (0.5, 1.0, 1)
    assert (dog.precision, dog.recall, dog.f1, dog.support) == (1.0, pytest.approx(2 / 3), pytest.approx(0.8), 3)
    assert [astuple(w) for w in m.most_wrong] == [("b", "dog", "cat", 0.6, 1)]


def test_metrics_equal_scikit_learn():
    p, labels, classes, names = random_case(0)
    m = metrics_from_probabilities(p, labels, classes, names)
    assert m.top1 == pytest.approx(sklearn.accuracy_score(labels, p.argmax(axis=1)))
    assert m.top5 == pytest.approx(sklearn.top_k_accuracy_score(labels, p, k=5))
    assert m.nll == pytest.approx(sklearn.log_loss(labels, p))
    rows = zip(*[(c.precision, c.recall, c.f1, c.support) for c in m.per_class], strict=True)
    theirs = sklearn.precision_recall_fscore_support(labels, p.argmax(axis=1))
    np.testing.assert_allclose(list(rows), theirs, rtol=1e-15)
    assert (np.array(m.confusion) == sklearn.confusion_matrix(labels, p.argmax(axis=1))).all()


def test_intervals_and_bins_fit_the_metrics():
    p, labels, classes, names = random_case(2)
    m = metrics_from_probabilities(p, labels, classes, names)
    assert m.top1_interval == wilson(round(200 * m.top1), 200) and m.top5_interval == wilson(round(200 * m.top5), 200)
    assert all(c.recall_interval == wilson(round(c.recall * c.support), c.support) for c in m.per_class)
    assert m.brier == pytest.approx(np.mean(((p - np.eye(7)[labels]) ** 2).sum(axis=1)))
    assert sum(b.count for b in m.reliability) == 200 and len(m.reliability) == 15
    assert m.ece == pytest.approx(sum(b.count * abs(b.accuracy - b.confidence) for b in m.reliability if b.count) / 200)
    assert metrics_from_probabilities(p[:, :3], np.zeros(200, int), list("abc"), names).top5_interval is None


def test_ties_go_to_the_lower_index():
    m = metrics_from_probabilities(np.full((8, 8), 1 / 8), np.arange(8), list("abcdefgh"), list("12345678"))
    assert m.top1 == 1 / 8 and m.top5 == 5 / 8


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), order=st.permutations(range(30)))
def test_image_order_does_not_matter(seed, order):
    p, labels, classes, names = random_case(seed, n=30)
    order = np.array(order)
    one = metrics_from_probabilities(p, labels, classes, names)
    two = metrics_from_probabilities(
        p[order], labels[order], classes, [names[i] for i in order], indices=[int(i) for i in order]
    )
    for name in ("top1", "top5", "nll", "ece"):
        assert getattr(one, name) == pytest.approx(getattr(two, name), abs=1e-12)
    assert (one.confusion, one.per_class, one.most_wrong) == (two.confusion, two.per_class, two.most_wrong)


def test_extreme_cases_give_finite_numbers():
    m = metrics_from_probabilities(np.array([[1.0, 0.0, 0.0]]), np.array([1]), ["a", "b", "never"], ["x"])
    assert math.isfinite(m.nll) and m.per_class[2].support == 0 and m.per_class[2].f1 == 0


def test_metrics_round_trip_through_json():
    m = metrics_from_probabilities(*random_case(1), bad=[("x.png", "empty file")])
    plain = m.to_json()
    assert json.loads(json.dumps(plain)) == plain
    assert plain["bad"] == [["x.png", "empty file"]]
    assert set(plain["most_wrong"][0]) == {"name", "true", "predicted", "probability", "index"}


@pytest.mark.parametrize("p", [np.zeros((0, 2)), np.full((1, 2), np.nan), np.zeros((2, 2))])
def test_nonsense_is_refused(p):
    with pytest.raises(ValueError):
        metrics_from_probabilities(p, np.zeros(min(len(p), 1), dtype=int), ["a", "b"], ["x"][: len(p)])
