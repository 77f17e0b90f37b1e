"""The numbers of an evaluation, all from probabilities and labels. Imports no torch.

N images, K classes. All shares are fractions between 0 and 1; an interval is of 95 % (Wilson), from the number of
images alone.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpmixer.evaluation.calibration import (
    Bin,
    brier,
    expected_calibration_error,
    log_loss,
    negative_log_likelihood,
    reliability,
    tempered,
)
from mlpmixer.evaluation.significance import Interval, wilson

MOST_WRONG = 24
CONFUSION_MAX_CLASSES = 1000  # K x K integers: above this the matrix is left empty


@dataclass(frozen=True)
class ClassScore:
    """One class of the model. `support` is its number of images; a ratio with nothing below the line is 0."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int
    recall_interval: Interval


@dataclass(frozen=True)
class Wrong:
    """A mistake: `probability` is the model's belief in `predicted`; `index` is the image's place in the data."""

    name: str
    true: str
    predicted: str
    probability: float
    index: int


@dataclass(frozen=True, kw_only=True)
class Averaged:
    """The same numbers as in `Metrics`, from probabilities that are the mean over several views of each image."""

    kinds: tuple[str, ...]
    """Of test-time augmentation, see `evaluate.TTA`."""
    views: int
    """How many times each image went through the network."""
    top1: float
    top1_interval: Interval
    top5: float | None
    top5_interval: Interval | None
    nll: float
    ece: float
    brier: float


@dataclass(frozen=True, kw_only=True)
class Tempered:
    """The same numbers as in `Metrics` with all logits divided by one temperature, which changes no answer, only how
    sure it is."""

    temperature: float
    """Fitted on validation images, see `calibration.fit_temperature`."""
    n: int
    """How many images it was fitted on."""
    nll: float
    ece: float
    brier: float
    reliability: tuple[Bin, ...]


@dataclass(frozen=True, kw_only=True)
class Real:
    """Top-1 by ReaL labels (Beyer et al. 2020): an answer is right when it is one of the labels that people gave the
    image."""

    n: int
    """Images with at least one label."""
    top1: float
    top1_interval: Interval
    skipped: int
    """Images to which nobody gave any of the classes: left out."""


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """The result of an evaluation on `n` readable images."""

    n: int
    classes: tuple[str, ...]
    top1: float
    top1_interval: Interval
    top5: float | None
    """None when there are five classes or fewer: it would always be 1."""
    top5_interval: Interval | None
    nll: float
    """Mean negative log-likelihood of the true class, in nats."""
    ece: float
    """Expected calibration error over 15 equal-width bins (lo, hi] of the top probability."""
    brier: float
    """Mean squared distance between the probabilities and the truth, 0 to 2."""
    reliability: tuple[Bin, ...]
    """What `ece` sums up: confidence and accuracy of each bin."""
    per_class: tuple[ClassScore, ...]
    confusion: tuple[tuple[int, ...], ...]
    """[true][predicted] counts; empty above 1000 classes."""
    most_wrong: tuple[Wrong, ...]
    """The mistakes the model was surest of, surest first."""
    bad: tuple[tuple[str, str], ...] = ()
    """Unreadable images, (name, reason): not counted in anything above."""
    tta: Averaged | None = None
    """With test-time augmentation, where it was asked for. Everything above is without."""
    tempered: Tempered | None = None
    """With a temperature, where validation images to fit it on were given."""
    real: Real | None = None
    """By ReaL labels, where they were given."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; rows become objects."""
        plain = {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self) if f.name != "confusion"}
        return plain | {"confusion": [list(row) for row in self.confusion]}  # K x K numbers: not one by one


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def score(
    probabilities: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]]
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Of each image (N,) whether the likeliest class is the true one, and -log p of the true class: their means are
    top1 and nll."""
    correct: NDArray[np.bool_] = probabilities.argmax(axis=1) == labels
    return correct, log_loss(probabilities, labels)


def metrics_from_probabilities(
    probabilities: NDArray[np.floating[Any]],
    labels: NDArray[np.integer[Any]],
    classes: Sequence[str],
    names: Sequence[str],
    *,
    indices: Sequence[int] | None = None,
    bad: Sequence[tuple[str, str]] = (),
) -> Metrics:
    """All metrics from probabilities (N,K) and labels (N,). `indices` are the images' places in the data (default
    0..N-1).

    Equal probabilities count for the class with the lower index, as in argmax. A probability of 0 counts as the
    smallest float32 in the negative log-likelihood.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    p = np.asarray(probabilities)
    labels = np.asarray(labels, dtype=np.int64)
    n, k = p.shape
    if n == 0 or labels.shape != (n,) or len(names) != n or len(classes) != k:
        got = f"{p.shape}, {labels.shape}, {len(names)}, {len(classes)}"
        raise ValueError(f"expected N >= 1 rows of K probabilities, N labels, N names, K classes; got {got}")
    if not np.isfinite(p).all():
        raise ValueError("the probabilities hold NaN or infinity: the model is broken, as after a diverged training")
    if labels.min() < 0 or labels.max() >= k:
        raise ValueError(f"labels must be in 0..{k - 1}, got {labels.min()}..{labels.max()}")

    of_true = p[np.arange(n), labels]
    above = p > of_true[:, None]
    tied_before = (p == of_true[:, None]) & (np.arange(k) < labels[:, None])
    rank = (above | tied_before).sum(axis=1)  # 0: the true class is the prediction
    correct, losses = score(p, labels)
    first, five = int(correct.sum()), int((rank < 5).sum())
    predicted = p.argmax(axis=1)
    confidence = p.max(axis=1).astype(np.float64)

    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predicted, labels=np.arange(k), zero_division=0
    )
    right = np.bincount(labels[correct], minlength=k)
    confusion = (
        confusion_matrix(labels, predicted, labels=np.arange(k))
        if k <= CONFUSION_MAX_CLASSES
        else np.zeros((0, 0), int)
    )
    places = range(n) if indices is None else indices
    wrong = sorted(np.flatnonzero(~correct).tolist(), key=lambda i: (-confidence[i], names[i], places[i]))[:MOST_WRONG]
    return Metrics(
        n=n,
        classes=tuple(classes),
        top1=first / n,
        top1_interval=wilson(first, n),
        top5=five / n if k > 5 else None,
        top5_interval=wilson(five, n) if k > 5 else None,
        nll=float(losses.mean()),
        ece=expected_calibration_error(confidence, correct),
        brier=brier(p, labels),
        reliability=reliability(confidence, correct),
        per_class=tuple(
            ClassScore(
                name=classes[c],
                precision=float(precision[c]),
                recall=float(recall[c]),
                f1=float(f1[c]),
                support=int(support[c]),
                recall_interval=wilson(int(right[c]), int(support[c])),
            )
            for c in range(k)
        ),
        confusion=tuple(tuple(int(v) for v in row) for row in confusion),
        most_wrong=tuple(
            Wrong(names[i], classes[labels[i]], classes[predicted[i]], float(confidence[i]), int(places[i]))
            for i in wrong
        ),
        bad=tuple(bad),
    )


def with_temperature(
    probabilities: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]], temperature: float, fitted_on: int
) -> Tempered:
    """What a temperature makes of probabilities (N,K) with labels (N,); it was fitted on `fitted_on` other images."""
    p = tempered(probabilities, temperature)
    confidence, correct = p.max(axis=1), p.argmax(axis=1) == labels
    return Tempered(
        temperature=temperature,
        n=fitted_on,
        nll=negative_log_likelihood(p, labels),
        ece=expected_calibration_error(confidence, correct),
        brier=brier(p, labels),
        reliability=reliability(confidence, correct),
    )


def real_score(answers: NDArray[np.integer[Any]], accepted: Sequence[frozenset[int]]) -> Real:
    """Top-1 of the answers (N,) where any of the accepted classes is right; images without one are left out. ValueError
    when all are."""
    hits = [int(answer) in labels for answer, labels in zip(answers, accepted, strict=True) if labels]
    n, right = len(hits), sum(hits)
    if not n:
        raise ValueError(f"none of the {len(accepted):,} images has a ReaL label")
    return Real(n=n, top1=right / n, top1_interval=wilson(right, n), skipped=len(accepted) - n)
