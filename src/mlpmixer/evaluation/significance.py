"""Statistics of counts of correct answers: an interval for a share, a test and an interval for a pair of models.

Every function takes counts of images and assumes that the images are independent draws. Shares are fractions between 0
and 1.
"""

import math
from collections.abc import Sequence

Interval = tuple[float, float]
Z95 = 1.959963984540054  # the 97.5 % quantile of the normal distribution


def wilson(right: int, n: int, z: float = Z95) -> Interval:
    """Wilson's (1927) 95 % interval (low, high) of the share right / n, within 0..1; (0, 1) when n = 0."""
    if not 0 <= right <= n:
        raise ValueError(f"expected 0 <= right <= n, got right={right}, n={n}")
    if n == 0:
        return 0.0, 1.0
    share, below = right / n, 1 + z * z / n
    centre = (share + z * z / (2 * n)) / below
    half = z / below * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (0.0 if right == 0 else centre - half), (1.0 if right == n else centre + half)


def mcnemar(only_a: int, only_b: int) -> tuple[float, float]:
    """Two-sided (p, mid-p) of the hypothesis that two models are equally good (McNemar 1947, exact).

    If they are, each of the m images that only one of them has right is a fair coin: p = 2 P(X <= min(only_a, only_b))
    with X ~ Bin(m, 1/2), at most 1. The exact test is cautious; mid-p counts the observed table half (Fagerland et al.
    2013, doi 10.1186/1471-2288-13-91).
    """
    m, fewer = only_a + only_b, min(only_a, only_b)
    if fewer < 0:
        raise ValueError(f"expected counts of images, got {only_a} and {only_b}")
    chance = [
        math.exp(math.lgamma(m + 1) - math.lgamma(i + 1) - math.lgamma(m - i + 1) - m * math.log(2))
        for i in range(fewer + 1)
    ]
    tail = math.fsum(chance)
    return min(1.0, 2 * tail), min(1.0, 2 * tail - chance[-1])


def paired_difference(only_a: int, only_b: int, n: int) -> Interval:
    """95 % interval of top1(A) - top1(B) on the same `n` images: Bonett and Price (2012), doi 10.3102/1076998611411915.

    With b, c one more than only_a, only_b and m = n + 2: (b - c) / m -+ z sqrt((b + c)/m - ((b - c)/m)^2) / sqrt(m).
    """
    if min(only_a, only_b) < 0 or only_a + only_b > n or n < 1:
        raise ValueError(f"expected only_a + only_b <= n >= 1, got {only_a}, {only_b}, {n}")
    in_a, in_b = (only_a + 1) / (n + 2), (only_b + 1) / (n + 2)
    half = Z95 * math.sqrt((in_a + in_b - (in_a - in_b) ** 2) / (n + 2))
    return max(-1.0, in_a - in_b - half), min(1.0, in_a - in_b + half)


def holm(p: Sequence[float]) -> list[float]:
    """The p-values of several tests, adjusted for their number, in the same order (Holm 1979)."""
    adjusted, largest = [1.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = largest
    return adjusted
