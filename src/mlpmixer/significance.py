"""What chance alone can do to counts of right answers: an interval for a share. Imports nothing of ours.

It takes counts of images and assumes that the images are independent draws. Shares are fractions between 0 and 1.
"""

import math

Interval = tuple[float, float]
Z95 = 1.959963984540054  # the 97.5 % quantile of the normal distribution


def wilson(right: int, n: int, z: float = Z95) -> Interval:
    """Wilson's (1927) 95 % interval (low, high) of a share seen as `right` of `n`; (0, 1) when n = 0. It never leaves 0..1."""
    if not 0 <= right <= n:
        raise ValueError(f"expected 0 <= right <= n, got right={right}, n={n}")
    if n == 0:
        return 0.0, 1.0
    share, below = right / n, 1 + z * z / n
    centre = (share + z * z / (2 * n)) / below
    half = z / below * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (0.0 if right == 0 else centre - half), (1.0 if right == n else centre + half)
