"""Classification by the nearest neighbours among frozen features. Imports no torch."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlpmixer.evaluation.features import Labels, Matrix, require_pairs

TEMPERATURE = 0.07  # Wu et al. 2018, section 3.4
CHUNK = 1024  # test images that are compared with all training images at once; bounds memory, changes no result


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """Top-1 on all test images by a vote of the `k` nearest training images."""

    k: int
    top1: float


def knn(
    features_train: Matrix,
    labels_train: Labels,
    features_test: Matrix,
    labels_test: Labels,
    *,
    k: int = 20,
    temperature: float = TEMPERATURE,
) -> Neighbours:
    """Classification of test images by a weighted vote of the `k` most similar training images.

    Similarity is the cosine s of the features; a vote weighs exp(s / temperature). Source: Wu et al. 2018,
    "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", section 3.4; k = 20 as in Caron et al.
    2021 (DINO). Ties go to the class with the lower index. ValueError when k is not in 1..N.
    """
    require_pairs(train=(features_train, labels_train), test=(features_test, labels_test))
    require_neighbours(k, len(features_train))
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    train, test = _unit_length(features_train), _unit_length(features_test)
    num_classes, right = int(labels_train.max()) + 1, 0
    for start in range(0, len(test), CHUNK):
        similarity = test[start : start + CHUNK] @ train.T
        nearest = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        weight = np.exp((np.take_along_axis(similarity, nearest, axis=1) - 1) / temperature)  # -1: no vote can overflow
        votes = np.zeros((len(similarity), num_classes))
        np.add.at(votes, (np.arange(len(similarity))[:, None], labels_train[nearest]), weight)
        right += int((votes.argmax(axis=1) == labels_test[start : start + CHUNK]).sum())
    return Neighbours(k=k, top1=right / len(test))


def _unit_length(features: Matrix) -> NDArray[np.float32]:
    x = np.asarray(features, np.float32)
    unit: NDArray[np.float32] = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return unit


def require_neighbours(k: int, n: int) -> None:
    if not 1 <= k <= n:
        raise ValueError(f"the number of neighbours must be in 1..{n}, the number of training images; got {k}")
