"""Whether probabilities are as good as they say: calibration error, Brier score, reliability, temperature. Imports
nothing of ours.

N images, K classes; probabilities (N,K), labels (N,) in 0..K-1.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpmixer.evaluation.significance import Interval, wilson

ECE_BINS = 15  # Guo et al. 2017, "On Calibration of Modern Neural Networks"
TINY = float(np.finfo(np.float32).tiny)  # what a probability of 0 counts as where its logarithm is needed
SETTLED = 1e-9  # relative width at which the search for a temperature ends

Probabilities = NDArray[np.floating[Any]]
Labels = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Bin:
    """The images whose top probability fell into one part of 0..1: how sure the model was of them, how often right.
    None without images."""

    count: int
    confidence: float | None
    """Mean top probability."""
    accuracy: float | None
    accuracy_interval: Interval | None
    """95 %, Wilson."""


def reliability(
    confidence: NDArray[np.floating[Any]], correct: NDArray[np.bool_], bins: int = ECE_BINS
) -> tuple[Bin, ...]:
    """The equal parts (lo, hi] of a reliability diagram, from each image's top probability (N,) and whether its answer
    was right (N,)."""
    part = np.digitize(confidence, np.arange(1, bins) / bins, right=True)
    out = []
    for i in range(bins):
        sure, right = confidence[part == i].astype(np.float64), int(correct[part == i].sum())
        n = len(sure)
        out.append(Bin(n, float(sure.mean()), right / n, wilson(right, n)) if n else Bin(0, None, None, None))
    return tuple(out)


def expected_calibration_error(
    confidence: NDArray[np.floating[Any]], correct: NDArray[np.bool_], bins: int = ECE_BINS
) -> float:
    """Mean |accuracy - confidence| over the bins of `reliability`, weighted by their images (Guo et al. 2017, equation
    3)."""
    parts = reliability(confidence, correct, bins)
    gaps = [
        b.count * abs(b.accuracy - b.confidence) for b in parts if b.accuracy is not None and b.confidence is not None
    ]
    return sum(gaps) / len(confidence)


def log_loss(probabilities: Probabilities, labels: Labels) -> NDArray[np.float64]:
    """-log p of the true class of each image (N,), in nats; a probability of 0 counts as the smallest normal
    float32."""
    losses: NDArray[np.float64] = -np.log(
        np.maximum(probabilities[np.arange(len(labels)), labels].astype(np.float64), TINY)
    )
    return losses


def negative_log_likelihood(probabilities: Probabilities, labels: Labels) -> float:
    """Mean `log_loss` over the images."""
    return float(log_loss(probabilities, labels).mean())


def brier(probabilities: Probabilities, labels: Labels) -> float:
    """Mean over the images of sum_k (p_k - y_k)^2, y one-hot: 0 for certain truth, 2 for certain error (Brier 1950)."""
    p = probabilities.astype(np.float64)
    return float(((p * p).sum(axis=1) - 2 * p[np.arange(len(labels)), labels] + 1).mean())


def tempered(probabilities: Probabilities, temperature: float) -> NDArray[np.float64]:
    """softmax(logits / temperature), (N,K), from softmax(logits): above 1 it makes answers less sure. No answer
    changes."""
    if not temperature > 0:
        raise ValueError(f"a temperature must be positive, got {temperature}")
    z = np.log(np.maximum(probabilities.astype(np.float64), TINY)) / temperature
    exp = np.exp(z - z.max(axis=1, keepdims=True))
    softmax: NDArray[np.float64] = exp / exp.sum(axis=1, keepdims=True)
    return softmax


def fit_temperature(probabilities: Probabilities, labels: Labels) -> float:
    """The temperature with the lowest negative log-likelihood on these images (Guo et al. 2017, section 4.2), to nine
    digits.

    The likelihood is convex in b = 1 / temperature, so that its slope, mean(E_b[log p] - log p_true), has one root,
    found by bisection.

    Raises ValueError where there is no root: every answer is right (the surer the better), or none better than chance.
    """
    log_p = np.log(np.maximum(probabilities.astype(np.float64), TINY))
    log_p -= log_p.max(axis=1, keepdims=True)
    of_true = log_p[np.arange(len(labels)), labels]

    def slope(b: float) -> float:
        weights = np.exp(b * log_p)
        return float(((weights * log_p).sum(axis=1) / weights.sum(axis=1) - of_true).mean())

    if (of_true == 0).all():
        raise ValueError(
            f"no temperature fits best: all {len(labels)} validation answers are right, so that surer is always "
            f"better; it takes a larger "
            "validation split, with some mistakes"
        )
    if slope(0.0) >= 0:
        raise ValueError(
            f"no temperature fits best: on these {len(labels)} validation images the answers are no better than chance"
        )
    low, high = 1.0, 1.0
    while slope(low) > 0:
        low /= 2
    while slope(high) < 0:
        high *= 2
    while high - low > SETTLED * high:
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 2 / (low + high)
