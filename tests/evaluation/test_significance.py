"""Intervals and tests: equal to SciPy's where it has them, and right as often as they say."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mlpmixer.evaluation.significance import holm, mcnemar, paired_difference, wilson

COUNTS = [(0, 1), (1, 1), (0, 7), (5, 9), (240, 360), (4999, 10_000), (50_000, 50_000)]


@pytest.mark.parametrize(("right", "n"), COUNTS)
def test_wilson_equals_scipy(right: int, n: int) -> None:
    expected = stats.binomtest(right, n).proportion_ci(0.95, method="wilson")
    assert wilson(right, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


@given(n=st.integers(1, 10**6), share=st.floats(0, 1))
def test_wilson_contains_the_share(n: int, share: float) -> None:
    right = round(share * n)
    low, high = wilson(right, n)
    assert 0 <= low <= right / n <= high <= 1


def test_wilson_checks_its_counts() -> None:
    assert wilson(0, 0) == (0, 1)
    with pytest.raises(ValueError, match="right=3, n=2"):
        wilson(3, 2)


@pytest.mark.parametrize(
    ("a", "b"), [(0, 0), (1, 0), (0, 5), (3, 3), (10, 21), (24, 27), (400, 470), (480, 650), (12_000, 11_000)]
)
def test_mcnemar_equals_scipys_binomial_test(a: int, b: int) -> None:
    p, mid_p = mcnemar(a, b)
    assert p == pytest.approx(stats.binomtest(a, a + b, 0.5).pvalue if a + b else 1.0, rel=1e-8)
    assert mid_p == pytest.approx(
        min(1.0, 2 * stats.binom.cdf(min(a, b), a + b, 0.5) - stats.binom.pmf(min(a, b), a + b, 0.5)), rel=1e-8
    )
    assert mcnemar(b, a) == (p, mid_p)


@pytest.mark.parametrize(("a", "b", "n"), [(400, 340, 10_000), (90, 60, 431), (30, 2, 360)])
def test_paired_difference_equals_a_bootstrap(a: int, b: int, n: int) -> None:
    drawn = np.random.default_rng(0).multinomial(n, [a / n, b / n, 1 - (a + b) / n], 20_000)
    low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / n, [0.025, 0.975])
    got = paired_difference(a, b, n)
    assert got == pytest.approx((low, high), abs=0.06 * (high - low))


@pytest.mark.parametrize(
    ("in_a", "in_b", "n"),
    [(0.01, 0.01, 360), (0.03, 0.01, 360), (0.15, 0.02, 431), (0.06, 0.05, 10_000), (0.05, 0.0, 100)],
)
def test_paired_difference_covers_the_truth(in_a: float, in_b: float, n: int) -> None:
    drawn = np.random.default_rng(1).multinomial(n, [in_a, in_b, 1 - in_a - in_b], 4000)
    intervals = np.array([paired_difference(int(a), int(b), n) for a, b, _ in drawn])
    assert ((intervals[:, 0] <= in_a - in_b) & (in_a - in_b <= intervals[:, 1])).mean() > 0.94


def test_equal_models_have_an_interval_around_0() -> None:
    low, high = paired_difference(0, 0, 100)
    assert low == -high and 0 < high < 0.03
    with pytest.raises(ValueError, match="expected only_a"):
        paired_difference(3, 3, 5)


def test_holm_keeps_the_order() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx(
        [0.03, 0.06, 0.06, 0.02]
    )  # 3 x, then 1 x but not below 2 x 0.03, 2 x, 4 x
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []
