"""The numbers of an evaluation, all from probabilities and labels. Imports no torch.

N images, K classes. Shares are fractions between 0 and 1. Intervals are Wilson's 95 % intervals, from the number of
images alone.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mlpmixer.evaluation.calibration import (
    Bin,
    Labels,
    Probabilities,
    apply_temperature,
    brier_score,
    expected_calibration_error,
    log_loss,
    reliability,
)
from mlpmixer.evaluation.significance import Interval, wilson

MOST_WRONG = 24
EXAMPLE_CLASSES = 100  # of more classes, those with the lowest F1 have examples
CONFUSION_MAX_CLASSES = 1000  # K x K integers: above this the matrix is left empty


@dataclass(frozen=True)
class ClassScore:
    """The scores of one class. `support` is its number of images; a ratio with denominator 0 is 0."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int
    recall_interval: Interval


@dataclass(frozen=True)
class Mistake:
    """A misclassified image: `probability` is that of `predicted`; `index` is the image's position in the data."""

    name: str
    true: str
    predicted: str
    probability: float
    index: int


@dataclass(frozen=True, kw_only=True)
class Example:
    """An image that shows how its class is seen: `probability` is that of `true`; `index` is as in `Mistake`."""

    kind: Literal["typical", "hardest"]
    """typical: among the correct ones, the likeliest. hardest: the least likely, correct or not."""
    name: str
    true: str
    predicted: str
    probability: float
    index: int


@dataclass(frozen=True, kw_only=True)
class TTAMetrics:
    """Test-time augmentation: numbers as in `Metrics`, from probabilities averaged over several views of each image."""

    kinds: tuple[str, ...]
    """Kinds of augmentation, see `evaluate.TTA`."""
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
class CalibratedMetrics:
    """Numbers as in `Metrics` with all logits divided by a temperature: the same answers, with other confidence."""

    temperature: float
    """Fitted on validation images, see `calibration.fit_temperature`."""
    n: int
    """Number of images it was fitted on."""
    nll: float
    ece: float
    brier: float
    reliability: tuple[Bin, ...]


@dataclass(frozen=True, kw_only=True)
class RealMetrics:
    """Top-1 by ReaL labels (Beyer et al. 2020): any of the labels that people gave the image is correct."""

    n: int
    """Images with at least one label."""
    top1: float
    top1_interval: Interval
    skipped: int
    """Images without a label, which are left out."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Which images of the data were measured, and why these."""

    data: str
    """Name of the data."""
    split: str
    """train, val, test or all."""
    n: int
    """Number of images, the unreadable ones included."""
    of: int | None
    """Number of images in the data; None where they were not counted."""
    how: str
    """Which images these are."""
    notes: tuple[str, ...] = ()
    """Changes in the data since training."""

    def __str__(self) -> str:
        return f"{self.n:,} of {f'{self.of:,}' if self.of else 'the'} images of {self.data}: {self.how}"


@dataclass(frozen=True, kw_only=True)
class UnseenMetrics:
    """Numbers as in `Metrics`, of the `n` images that the model was not trained on."""

    n: int
    top1: float
    top1_interval: Interval


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """The result of an evaluation on `n` readable images."""

    n: int
    """Number of images scored."""
    classes: tuple[str, ...]
    """Names in the order of `per_class` and `confusion`."""
    top1: float
    """Share of the images whose likeliest class is the true one."""
    top1_interval: Interval
    """(low, high), Wilson."""
    top5: float | None
    """Share with the true class among the five likeliest; None with five classes or fewer, where it is always 1."""
    top5_interval: Interval | None
    """(low, high), Wilson."""
    nll: float
    """Mean negative log-likelihood of the true class, in nats."""
    ece: float
    """Expected calibration error over 15 equal-width bins (lo, hi] of the top probability."""
    brier: float
    """Mean squared distance between the probabilities and the truth, 0 to 2."""
    reliability: tuple[Bin, ...]
    """Confidence and accuracy of each bin of `ece`."""
    per_class: tuple[ClassScore, ...]
    """Precision, recall with its interval, f1 and number of images of each class."""
    confusion: tuple[tuple[int, ...], ...]
    """[true][predicted] counts; empty above 1000 classes."""
    most_wrong: tuple[Mistake, ...]
    """The most confident mistakes, most confident first."""
    examples: tuple[Example, ...] = ()
    """The most typical and the hardest images of each class, or of the EXAMPLE_CLASSES weakest if there are more."""
    bad: tuple[tuple[str, str], ...] = ()
    """Unreadable images, (name, reason), which are excluded from the numbers above."""
    tta: TTAMetrics | None = None
    """The scores with test-time augmentation, if requested; the numbers above are without."""
    tempered: CalibratedMetrics | None = None
    """The scores at a fitted temperature, if there were validation images to fit it on."""
    real: RealMetrics | None = None
    """The scores by ReaL labels, if they were given."""
    scored: Scored | None = None
    """Which images of which data; None where images themselves were given."""
    trained_on: int | None = None
    """How many of the `n` images the model was trained on; None where it does not say."""
    unseen: UnseenMetrics | None = None
    """The scores without the images that it was trained on, if there are both kinds."""

    @property
    def leak(self) -> str:
        """The effect on top-1 of images that the model was trained on, in a sentence; empty when there are none."""
        if not self.trained_on:
            return ""
        if not self.unseen:
            return f"the model was trained on all {self.n:,} of these images: top-1 says how well it knows them"
        top1 = f"{100 * self.unseen.top1:.2f} %"
        return (
            f"the model was trained on {self.trained_on:,} of these {self.n:,} images: top-1 is {top1} on the other "
            f"{self.unseen.n:,}"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; rows become objects."""
        plain: dict[str, Any] = as_json(dataclasses.replace(self, confusion=()))
        return plain | {"confusion": [list(row) for row in self.confusion]}  # K x K numbers: not one by one


def as_json(value: Any) -> Any:
    """A result as plain JSON values: dataclasses become objects, tuples become lists."""
    if dataclasses.is_dataclass(value):
        return {f.name: as_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return [as_json(v) for v in value] if isinstance(value, tuple) else value


def score(probabilities: Probabilities, labels: Labels) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Whether each answer is correct (N,), and -log p of the true class (N,): their means are top1 and nll."""
    correct: NDArray[np.bool_] = probabilities.argmax(axis=1) == labels
    return correct, log_loss(probabilities, labels)


def metrics_from_probabilities(
    probabilities: Probabilities,
    labels: Labels,
    classes: Sequence[str],
    names: Sequence[str],
    *,
    indices: Sequence[int] | None = None,
    bad: Sequence[tuple[str, str]] = (),
) -> Metrics:
    """All metrics from probabilities (N,K) and labels (N,); `indices` are the images' positions in the data.

    Ties go to the class with the lower index, as in argmax. A probability of 0 counts as the smallest float32 in the
    negative log-likelihood. ValueError when the arguments do not fit together, and for NaN.
    """
    p, labels = np.asarray(probabilities), np.asarray(labels, dtype=np.int64)
    require_fit(p, labels, classes, names)
    n, k = p.shape
    correct, losses = score(p, labels)
    predicted, confidence = p.argmax(axis=1), p.max(axis=1).astype(np.float64)
    first, five = int(correct.sum()), int((_rank(p, labels) < 5).sum())
    confusion = np.bincount(labels * k + predicted, minlength=k * k).reshape(k, k) if k <= CONFUSION_MAX_CLASSES else ()
    places = range(n) if indices is None else indices
    scores = _class_scores(labels, predicted, classes)
    wrong = sorted(np.flatnonzero(~correct).tolist(), key=lambda i: (-confidence[i], names[i], places[i]))
    return Metrics(
        n=n,
        classes=tuple(classes),
        top1=first / n,
        top1_interval=wilson(first, n),
        top5=five / n if k > 5 else None,
        top5_interval=wilson(five, n) if k > 5 else None,
        nll=float(losses.mean()),
        ece=expected_calibration_error(confidence, correct),
        brier=brier_score(p, labels),
        reliability=reliability(confidence, correct),
        per_class=scores,
        confusion=tuple(tuple(row.tolist()) for row in confusion),
        most_wrong=tuple(
            Mistake(names[i], classes[labels[i]], classes[predicted[i]], float(confidence[i]), int(places[i]))
            for i in wrong[:MOST_WRONG]
        ),
        examples=tuple(
            Example(
                kind=kind,
                name=names[i],
                true=classes[labels[i]],
                predicted=classes[predicted[i]],
                probability=float(p[i, labels[i]]),
                index=int(places[i]),
            )
            for kind, i in _examples(p, labels, correct, scores)
        ),
        bad=tuple(bad),
    )


def _examples(
    p: Probabilities, labels: Labels, correct: NDArray[np.bool_], scores: Sequence[ClassScore]
) -> Iterator[tuple[Literal["typical", "hardest"], int]]:
    """The images of `Metrics.examples`: two of each kind, or one where there are many classes."""
    classes = sorted((k for k, score in enumerate(scores) if score.support), key=lambda k: scores[k].f1)
    each = 2 if len(classes) <= EXAMPLE_CLASSES // 2 else 1
    of_true = p[np.arange(len(p)), labels]
    for k in sorted(classes[:EXAMPLE_CLASSES]):
        images = np.flatnonzero(labels == k)
        images = images[np.argsort(-of_true[images], kind="stable")].tolist()
        typical = [i for i in images if correct[i]][:each]
        yield from (("typical", i) for i in typical)
        yield from (("hardest", i) for i in images[::-1][:each] if i not in typical)


def require_fit(p: Probabilities, labels: NDArray[Any], classes: Sequence[str], names: Sequence[str]) -> None:
    """ValueError unless p (N,K) is finite and belongs to labels (N,) or targets (N,K), N >= 1 names and K classes."""
    n, k = p.shape
    if n == 0 or labels.shape not in ((n,), (n, k)) or len(names) != n or len(classes) != k:
        got = f"{p.shape}, {labels.shape}, {len(names)}, {len(classes)}"
        raise ValueError(
            f"expected N >= 1 rows of K probabilities, N labels or (N,K) targets, N names, K classes; got {got}"
        )
    if not np.isfinite(p).all():
        raise ValueError("the probabilities contain NaN or infinity: the model is broken, as after a diverged training")
    if labels.ndim == 1 and (labels.min() < 0 or labels.max() >= k):
        raise ValueError(f"labels must be in 0..{k - 1}, got {labels.min()}..{labels.max()}")


def _rank(p: Probabilities, labels: Labels) -> NDArray[np.int64]:
    """The number of classes that are likelier than the true one (N,); 0: it is the prediction."""
    of_true = p[np.arange(len(p)), labels][:, None]
    tied_before = (p == of_true) & (np.arange(p.shape[1]) < labels[:, None])
    rank: NDArray[np.int64] = ((p > of_true) | tied_before).sum(axis=1)
    return rank


def _class_scores(labels: Labels, predicted: Labels, classes: Sequence[str]) -> tuple[ClassScore, ...]:
    def counts(of: Labels) -> list[int]:
        return [int(count) for count in np.bincount(of, minlength=len(classes))]

    return tuple(
        ClassScore(
            name=name,
            precision=right / max(guessed, 1),
            recall=right / max(support, 1),
            f1=2 * right / max(guessed + support, 1),
            support=support,
            recall_interval=wilson(right, support),
        )
        for name, right, guessed, support in zip(
            classes, counts(labels[labels == predicted]), counts(predicted), counts(labels), strict=True
        )
    )


def calibrated_metrics(
    probabilities: Probabilities, labels: Labels, temperature: float, fitted_on: int
) -> CalibratedMetrics:
    """Metrics of probabilities (N,K) after a temperature, which was fitted on `fitted_on` other images."""
    p = apply_temperature(probabilities, temperature)
    confidence, (correct, losses) = p.max(axis=1), score(p, labels)
    return CalibratedMetrics(
        temperature=temperature,
        n=fitted_on,
        nll=float(losses.mean()),
        ece=expected_calibration_error(confidence, correct),
        brier=brier_score(p, labels),
        reliability=reliability(confidence, correct),
    )


def without_trained(metrics: Metrics, correct: NDArray[np.bool_], trained: NDArray[np.bool_]) -> Metrics:
    """The metrics with what is left of top-1 without the images (N,) that the model was trained on."""
    others, seen = correct[~trained], int(trained.sum())
    n, right = len(others), int(others.sum())
    unseen = UnseenMetrics(n=n, top1=right / n, top1_interval=wilson(right, n)) if n and seen else None
    return dataclasses.replace(metrics, trained_on=seen, unseen=unseen)


def real_metrics(answers: Labels, accepted: Sequence[frozenset[int]]) -> RealMetrics:
    """Top-1 of the answers (N,), any of the accepted classes being correct.

    Images without an accepted class are left out. ValueError when all are.
    """
    hits = [int(answer) in labels for answer, labels in zip(answers, accepted, strict=True) if labels]
    n, right = len(hits), sum(hits)
    if not n:
        raise ValueError(f"none of the {len(accepted):,} images has a ReaL label")
    return RealMetrics(n=n, top1=right / n, top1_interval=wilson(right, n), skipped=len(accepted) - n)
