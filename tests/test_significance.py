"""Intervals: equal to SciPy's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mlpmixer.significance import wilson

COUNTS = [(0, 1), (1, 1), (0, 7), (5, 9), (240, 360), (4999, 10_000), (50_000, 50_000)]


@pytest.mark.parametrize(("right", "n"), COUNTS)
def test_wilsons_interval_is_scipys(right: int, n: int) -> None:
    expected = stats.binomtest(right, n).proportion_ci(0.95, method="wilson")
    assert wilson(right, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


@given(n=st.integers(1, 10**6), share=st.floats(0, 1))
def test_wilsons_interval_holds_the_share_and_stays_within_0_and_1(n: int, share: float) -> None:
    right = round(share * n)
    low, high = wilson(right, n)
    assert 0 <= low <= right / n <= high <= 1


def test_nothing_is_known_without_images_and_more_right_than_images_is_refused() -> None:
    assert wilson(0, 0) == (0, 1)
    with pytest.raises(ValueError, match="right=3, n=2"):
        wilson(3, 2)
