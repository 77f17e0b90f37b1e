"""Few-shot ridge regression on frozen features, as the official evaluator does it. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlpmixer.evaluation.features import Labels, Matrix, mean_std, require_pairs

# big_vision: evaluators/fewshot_lsr.py, configs/common_fewshot.py
SHOTS = (1, 5, 10, 25)
SEEDS = (0, 1, 2)
L2 = 2.0**10
BIAS_FEATURE = 100.0  # so large that l2 hardly shrinks its weight


@dataclass(frozen=True, kw_only=True)
class FewShot:
    """Top-1 on all test images after training on `shots` images of each class, one value per seed."""

    shots: int
    top1: tuple[float, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.top1))

    @property
    def range(self) -> tuple[float, float]:
        """(lowest, highest) over the seeds."""
        return min(self.top1), max(self.top1)


def few_shot(
    features_train: Matrix,
    labels_train: Labels,
    features_test: Matrix,
    labels_test: Labels,
    *,
    shots: Sequence[int] = SHOTS,
    seeds: Sequence[int] = SEEDS,
    l2: float = L2,
) -> tuple[FewShot, ...]:
    """The official few-shot evaluation: a ridge regression for every number of shots and every seed, in float64.

    features (N,D), labels (N,) in 0..K-1. Source: big_vision, evaluators/fewshot_lsr.py. Unlike there, a class with
    fewer images than shots is a ValueError, so that "25 shots" means 25 images of every class.
    """
    require_pairs(train=(features_train, labels_train), test=(features_test, labels_test))
    if not l2 > 0:
        raise ValueError(f"l2 must be positive, got {l2}")
    if not seeds:
        raise ValueError("at least one seed is needed, such as seeds=(0, 1, 2)")
    num_classes = int(max(labels_train.max(), labels_test.max())) + 1
    require_shots(labels_train, shots, range(num_classes))
    rows = []
    for k in shots:
        top1 = []
        for seed in seeds:
            drawn = draw_shots(labels_train, k, seed)
            mean, std = mean_std(features_train[drawn])
            x, y = _with_constant(features_train[drawn], mean, std), _targets(labels_train[drawn], num_classes)
            fit = ridge_primal if x.shape[0] >= x.shape[1] else ridge_dual
            scores = _with_constant(features_test, mean, std) @ fit(x, y, l2)
            top1.append(float((scores.argmax(axis=1) == labels_test).mean()))
        rows.append(FewShot(shots=k, top1=tuple(top1)))
    return tuple(rows)


def draw_shots(labels: Labels, shots: int, seed: int) -> NDArray[np.int64]:
    """Indices (K * shots,) of `shots` random images of every class, class by class, drawn as in big_vision.

    One numpy default_rng(seed) permutes the images of each class in turn; the first `shots` are taken, so fewer shots
    are a subset of more. ValueError when a class of 0..max(labels) has fewer.
    """
    num_classes = int(labels.max()) + 1
    require_shots(labels, (shots,), range(num_classes))
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.permutation(np.flatnonzero(labels == c))[:shots] for c in range(num_classes)])


def ridge_primal(x: Matrix, y: Matrix, l2: float) -> NDArray[np.float64]:
    """The weights (D,K) = (X'X + l2 I)^-1 X'Y of x (N,D) and y (N,K), by the eigenvectors of X'X (D,D)."""
    values, vectors = np.linalg.eigh(x.T @ x)
    weights: NDArray[np.float64] = vectors @ (vectors.T @ (x.T @ y) / (values + l2)[:, None])
    return weights


def ridge_dual(x: Matrix, y: Matrix, l2: float) -> NDArray[np.float64]:
    """The same weights (D,K) = X' (XX' + l2 I)^-1 Y, by the eigenvectors of XX' (N,N): cheaper when D > N."""
    values, vectors = np.linalg.eigh(x @ x.T)
    weights: NDArray[np.float64] = x.T @ (vectors @ (vectors.T @ y / (values + l2)[:, None]))
    return weights


def _with_constant(features: Matrix, mean: Matrix, std: Matrix) -> NDArray[np.float64]:
    """Standardised features and the constant, (N,D+1)."""
    x = (np.asarray(features, np.float64) - mean) / std
    return np.concatenate([x, np.full((len(x), 1), BIAS_FEATURE)], axis=1)


def _targets(labels: Labels, num_classes: int) -> NDArray[np.float64]:
    """1 for the class, -1 for the others, (N,K)."""
    return 2.0 * np.eye(num_classes)[labels] - 1.0


def require_shots(labels: Labels, shots: Sequence[int], classes: Sequence[object]) -> None:
    if not shots or min(shots) < 1:
        raise ValueError(
            f"shots must be positive numbers of images, such as 1,5,10,25; got {','.join(map(str, shots)) or 'none'}"
        )
    counts = np.bincount(labels, minlength=len(classes))
    smallest, most = int(counts.argmin()), max(shots)
    count = int(counts[smallest])
    if count < most:
        possible = sorted({k for k in shots if k <= count} or {count} - {0})
        raise ValueError(
            f"{most}-shot needs {most} training image{'s' * (most > 1)} of every class, and class "
            f"{classes[smallest]!r} has {count}"
            + (f"; possible here: --shots {','.join(map(str, possible))}" if possible else "")
        )
