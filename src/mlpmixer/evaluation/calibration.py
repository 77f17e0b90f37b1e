"""Calibration: whether probabilities mean what they say. Imports no torch.

N images, K classes; probabilities (N,K), labels (N,) in 0..K-1.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpmixer.evaluation.significance import Interval, wilson

ECE_BINS = 15  # Guo et al. 2017, "On Calibration of Modern Neural Networks"
TINY = float(np.finfo(np.float32).tiny)  # what a probability of 0 counts as where its logarithm is needed
TOLERANCE = 1e-9  # relative width at which the search for a temperature ends

Probabilities = NDArray[np.floating[Any]]
Labels = NDArray[np.integer[Any]]
Confidence = NDArray[np.floating[Any]]
Correct = NDArray[np.bool_]


@dataclass(frozen=True)
class Bin:
    """The images whose top probability falls into one part of 0..1. Without images, all but `count` is None."""

    count: int
    confidence: float | None
    """Mean top probability."""
    accuracy: float | None
    accuracy_interval: Interval | None
    """95 %, Wilson."""


def reliability(confidence: Confidence, correct: Correct, bins: int = ECE_BINS) -> tuple[Bin, ...]:
    """The equal-width bins (lo, hi] of a reliability diagram.

    confidence: the top probability of each image (N,). correct: whether its answer is (N,).
    """
    bin_of = np.digitize(confidence, np.arange(1, bins) / bins, right=True)
    out = []
    for i in range(bins):
        inside, right = confidence[bin_of == i].astype(np.float64), int(correct[bin_of == i].sum())
        n = len(inside)
        out.append(Bin(n, float(inside.mean()), right / n, wilson(right, n)) if n else Bin(0, None, None, None))
    return tuple(out)


def expected_calibration_error(confidence: Confidence, correct: Correct, bins: int = ECE_BINS) -> float:
    """Mean |accuracy - confidence| over the bins of `reliability`, weighted by count (Guo et al. 2017, equation 3)."""
    found = reliability(confidence, correct, bins)
    gaps = [
        b.count * abs(b.accuracy - b.confidence) for b in found if b.accuracy is not None and b.confidence is not None
    ]
    return sum(gaps) / len(confidence)


def log_loss(probabilities: Probabilities, labels: Labels) -> NDArray[np.float64]:
    """-log p of the true class of each image (N,), in nats; p = 0 counts as the smallest normal float32."""
    of_true = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    losses: NDArray[np.float64] = -np.log(np.maximum(of_true, TINY))
    return losses


def brier_score(probabilities: Probabilities, labels: Labels) -> float:
    """Mean over the images of sum_k (p_k - y_k)^2, y one-hot: 0 for certain truth, 2 for certain error (Brier 1950)."""
    p = probabilities.astype(np.float64)
    return float(((p * p).sum(axis=1) - 2 * p[np.arange(len(labels)), labels] + 1).mean())


def apply_temperature(probabilities: Probabilities, temperature: float) -> NDArray[np.float64]:
    """softmax(logits / temperature) from softmax(logits), (N,K): less confident above 1; no answer changes."""
    if not temperature > 0:
        raise ValueError(f"a temperature must be positive, got {temperature}")
    z = np.log(np.maximum(probabilities.astype(np.float64), TINY)) / temperature
    exp = np.exp(z - z.max(axis=1, keepdims=True))
    softmax: NDArray[np.float64] = exp / exp.sum(axis=1, keepdims=True)
    return softmax


def fit_temperature(probabilities: Probabilities, labels: Labels) -> float:
    """The temperature with the lowest negative log-likelihood on these images (Guo et al. 2017, section 4.2).

    The likelihood is convex in b = 1 / temperature, so its slope, mean(E_b[log p] - log p_true), has one root, which
    bisection finds to nine digits. ValueError if there is none: every answer is correct, so more confidence is always
    better, or the answers are not better than chance.
    """
    log_p = np.log(np.maximum(probabilities.astype(np.float64), TINY))
    log_p -= log_p.max(axis=1, keepdims=True)
    of_true = log_p[np.arange(len(labels)), labels]

    def slope(b: float) -> float:
        weights = np.exp(b * log_p)
        return float(((weights * log_p).sum(axis=1) / weights.sum(axis=1) - of_true).mean())

    if (of_true == 0).all():
        raise ValueError(
            f"no temperature is best: all {len(labels)} validation answers are correct, so more confidence is always "
            "better; use a larger validation split, with some mistakes"
        )
    if slope(0.0) >= 0:
        raise ValueError(
            f"no temperature is best: on these {len(labels)} validation images the answers are not better than chance"
        )
    low, high = 1.0, 1.0
    while slope(low) > 0:
        low /= 2
    while slope(high) < 0:
        high *= 2
    while high - low > TOLERANCE * high:
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 2 / (low + high)
