"""The numbers of an evaluation on images that may have several classes, or none. Imports no torch.

N images, K classes: probabilities (N,K), targets (N,K) bool. A class is predicted from the threshold on. Shares are
fractions between 0 and 1. Averages over classes ("macro", and mAP) leave out classes that no image has.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpmixer.evaluation.calibration import TINY, Probabilities
from mlpmixer.evaluation.metrics import MOST_WRONG, Scored, as_json, require_fit
from mlpmixer.evaluation.significance import Interval, wilson

Targets = NDArray[np.bool_]

THRESHOLD = 0.5  # where none was chosen
THRESHOLDS = np.arange(1, 100) / 100  # to choose from


@dataclass(frozen=True)
class LabelScore:
    """The scores of one class. `support` is its number of images; a ratio with denominator 0 is 0."""

    name: str
    average_precision: float | None
    """None without images of the class."""
    precision: float
    recall: float
    f1: float
    support: int
    predicted: int
    """Images for which the class is predicted."""
    recall_interval: Interval


@dataclass(frozen=True)
class LabelMistake:
    """An image and a class that is wrongly predicted for it, or missed; `index` is its position in the data."""

    name: str
    true: tuple[str, ...]
    label: str
    probability: float
    index: int


@dataclass(frozen=True, kw_only=True)
class TTAScores:
    """Test-time augmentation: numbers as in `MultiLabelMetrics`, of mean probabilities over views of each image."""

    kinds: tuple[str, ...]
    views: int
    map: float
    f1_micro: float


@dataclass(frozen=True, kw_only=True)
class MultiLabelMetrics:
    """The result of an evaluation on `n` readable images that may have several classes, or none."""

    n: int
    classes: tuple[str, ...]
    map: float
    """Mean average precision: the mean over the classes that have images of `LabelScore.average_precision`."""
    threshold: float
    """Lowest probability at which a class is predicted, in all numbers below but `nll`."""
    f1_micro: float
    """F1 of all pairs of image and class together."""
    f1_macro: float
    """Mean F1 of the classes that have images."""
    precision: float
    """Share of the predicted classes that are right, over all images (micro)."""
    recall: float
    """Share of the images' classes that are predicted (micro)."""
    exact_match: float
    """Share of the images with exactly their classes (subset accuracy)."""
    exact_match_interval: Interval
    nll: float
    """Mean over the images of the sum over the classes of the binary cross-entropy, in nats."""
    per_class: tuple[LabelScore, ...]
    most_wrong: tuple[LabelMistake, ...]
    """The most confident mistakes, one per image, most confident first."""
    bad: tuple[tuple[str, str], ...] = ()
    """Unreadable images, (name, reason), which are excluded from the numbers above."""
    tta: TTAScores | None = None
    """The scores with test-time augmentation, if requested; the numbers above are without."""
    scored: Scored | None = None
    """Which images of which data; None where images themselves were given."""
    trained_on: int | None = None
    """How many of the `n` images the model was trained on; None where it does not say."""

    @property
    def leak(self) -> str:
        """The sentence that the model was trained on some of the images; empty when it was not, or is not known."""
        if not self.trained_on:
            return ""
        which = f"all {self.n:,}" if self.trained_on == self.n else f"{self.trained_on:,} of these {self.n:,}"
        return f"the model was trained on {which} images: these numbers say in part how well it knows them"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; rows become objects."""
        plain: dict[str, Any] = as_json(self)
        return plain


def average_precisions(probabilities: Probabilities, targets: Targets) -> NDArray[np.float64]:
    """Average precision of each class (K,), as scikit-learn computes it; nan for a class that no image has."""
    from sklearn.metrics import average_precision_score

    found = np.full(targets.shape[1], np.nan)
    for k in np.flatnonzero(targets.any(axis=0)):
        found[k] = average_precision_score(targets[:, k], probabilities[:, k])
    return found


def mean_average_precision(probabilities: Probabilities, targets: Targets) -> float:
    """Mean of `average_precisions` over the classes that have images. ValueError when none has."""
    found = average_precisions(probabilities, targets)
    if np.isnan(found).all():
        raise ValueError(f"none of these {len(targets):,} images has a class: average precision needs some")
    return float(np.nanmean(found))


def binary_cross_entropies(probabilities: Probabilities, targets: Targets) -> NDArray[np.float64]:
    """The sum over the classes of the binary cross-entropy of each image (N,), in nats."""
    p = probabilities.astype(np.float64)
    losses: NDArray[np.float64] = -np.log(np.maximum(np.where(targets, p, 1 - p), TINY)).sum(axis=1)
    return losses


def best_threshold(probabilities: Probabilities, targets: Targets) -> float:
    """The threshold, of 0.01 to 0.99, with the highest micro F1 on these images; of equal ones that nearest 0.5."""
    p = probabilities.astype(np.float64)
    f1 = [2 * (found & targets).sum() / max(found.sum() + targets.sum(), 1) for found in (p >= t for t in THRESHOLDS)]
    best = np.flatnonzero(np.array(f1) == max(f1))
    return float(THRESHOLDS[best[np.abs(THRESHOLDS[best] - THRESHOLD).argmin()]])


def multi_label_metrics(
    probabilities: Probabilities,
    targets: Targets,
    classes: Sequence[str],
    names: Sequence[str],
    threshold: float,
    *,
    indices: Sequence[int] | None = None,
    bad: Sequence[tuple[str, str]] = (),
) -> MultiLabelMetrics:
    """All metrics from probabilities (N,K) and targets (N,K); `indices` are the images' positions in the data.

    ValueError when the arguments do not fit together, for NaN, and when no image has a class.
    """
    p, targets = np.asarray(probabilities).astype(np.float64), np.asarray(targets)
    n = len(targets)
    require_fit(p, targets, classes, names)
    predicted = p >= threshold
    hits, guesses, support = (int(a.sum()) for a in (predicted & targets, predicted, targets))
    scores = _label_scores(p, targets, predicted, classes)
    exact = int((predicted == targets).all(axis=1).sum())
    return MultiLabelMetrics(
        n=n,
        classes=tuple(classes),
        map=mean_average_precision(p, targets),
        threshold=threshold,
        f1_micro=2 * hits / max(guesses + support, 1),
        f1_macro=float(np.mean([score.f1 for score in scores if score.support])),
        precision=hits / max(guesses, 1),
        recall=hits / max(support, 1),
        exact_match=exact / n,
        exact_match_interval=wilson(exact, n),
        nll=float(binary_cross_entropies(p, targets).mean()),
        per_class=scores,
        most_wrong=_most_wrong(p, targets, predicted, classes, names, range(n) if indices is None else indices),
        bad=tuple(bad),
    )


def _label_scores(
    p: Probabilities, targets: Targets, predicted: Targets, classes: Sequence[str]
) -> tuple[LabelScore, ...]:
    counts = (a.sum(axis=0).tolist() for a in (predicted & targets, predicted, targets))
    rows = zip(classes, average_precisions(p, targets).tolist(), *counts, strict=True)
    return tuple(
        LabelScore(
            name=name,
            average_precision=ap if support else None,
            precision=hits / max(guesses, 1),
            recall=hits / max(support, 1),
            f1=2 * hits / max(guesses + support, 1),
            support=support,
            predicted=guesses,
            recall_interval=wilson(hits, support),
        )
        for name, ap, hits, guesses, support in rows
    )


def _most_wrong(
    p: Probabilities,
    targets: Targets,
    predicted: Targets,
    classes: Sequence[str],
    names: Sequence[str],
    places: Sequence[int],
) -> tuple[LabelMistake, ...]:
    confidence = np.where(predicted != targets, np.where(targets, 1 - p, p), 0.0)  # of each mistake
    worst, surprise = confidence.argmax(axis=1).tolist(), confidence.max(axis=1)
    order = sorted(np.flatnonzero(surprise).tolist(), key=lambda i: (-surprise[i], names[i]))
    return tuple(
        LabelMistake(
            name=names[i],
            true=tuple(classes[j] for j in np.flatnonzero(targets[i]).tolist()),
            label=classes[worst[i]],
            probability=float(p[i, worst[i]]),
            index=int(places[i]),
        )
        for i in order[:MOST_WRONG]
    )
