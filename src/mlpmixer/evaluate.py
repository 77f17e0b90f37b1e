"""How good a model is: every image once, all numbers from the probabilities. Imports no torch.

N images, K classes. All shares are fractions between 0 and 1.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpmixer import zoo
from mlpmixer.config import Data
from mlpmixer.data.datasets import open_images
from mlpmixer.data.images import Pixels
from mlpmixer.data.sources import ImageSet
from mlpmixer.predict import Classifier, load, outputs_of
from mlpmixer.registry import Registry
from mlpmixer.runlog import read_recipe

ECE_BINS = 15  # Guo et al. 2017, "On Calibration of Modern Neural Networks"
MOST_WRONG = 24
CONFUSION_MAX_CLASSES = 1000  # K x K integers: above this the matrix is left empty
SHIFT = 32  # a shifted view moves by this part of the side, at least by one pixel: one pixel of CIFAR's 32

View = Callable[[Pixels], Pixels]


def shifted(down: int, across: int) -> View:
    """Images (B,H,W,C) moved by so many 32nds of their height and width, at least a pixel; the border is filled by reflection."""

    def shift(images: Pixels) -> Pixels:
        rows, cols = images.shape[1:3]
        y, x = down * max(round(rows / SHIFT), 1), across * max(round(cols / SHIFT), 1)
        padded = np.pad(images, ((0, 0), (max(y, 0), max(-y, 0)), (max(x, 0), max(-x, 0)), (0, 0)), mode="reflect")
        return padded[:, max(-y, 0) :][:, :rows, max(-x, 0) :][:, :, :cols]

    return shift


def itself(images: Pixels) -> Pixels:
    return images


TTA: Registry[tuple[View, ...]] = Registry("test-time augmentation")
"""The views (B,H,W,C) -> (B,H,W,C) of each kind; several kinds are combined, each view of one with each of the other."""
TTA |= {
    "flip": (itself, lambda images: images[:, :, ::-1]),
    "shift": (itself, shifted(1, 0), shifted(-1, 0), shifted(0, 1), shifted(0, -1)),
}


def views_of(kinds: Sequence[str]) -> list[View]:
    """All views of these kinds together, the plain one first. ValueError for an unknown kind, with the nearest right one."""

    def chained(first: View, then: View) -> View:
        return lambda images: then(first(images))

    views: list[View] = [itself]
    for kind in kinds:
        views = [chained(first, then) for first in views for then in TTA[kind]]
    return views


@dataclass(frozen=True)
class ClassScore:
    """One class of the model. `support` is its number of images; a ratio with nothing below the line is 0."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int


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
    """Of test-time augmentation, see `TTA`."""
    views: int
    """How many times each image went through the network."""
    top1: float
    top5: float | None
    nll: float
    ece: float


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """The result of an evaluation on `n` readable images."""

    n: int
    classes: tuple[str, ...]
    top1: float
    top5: float | None
    """None when there are five classes or fewer: it would always be 1."""
    nll: float
    """Mean negative log-likelihood of the true class, in nats."""
    ece: float
    """Expected calibration error over 15 equal-width bins (lo, hi] of the top probability."""
    per_class: tuple[ClassScore, ...]
    confusion: tuple[tuple[int, ...], ...]
    """[true][predicted] counts; empty above 1000 classes."""
    most_wrong: tuple[Wrong, ...]
    """The mistakes the model was surest of, surest first."""
    bad: tuple[tuple[str, str], ...] = ()
    """Unreadable images, (name, reason): not counted in anything above."""
    tta: Averaged | None = None
    """With test-time augmentation, where it was asked for. Everything above is without."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; rows become objects."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return plain | {
            "classes": list(self.classes),
            "per_class": [dataclasses.asdict(row) for row in self.per_class],
            "confusion": [list(row) for row in self.confusion],
            "most_wrong": [dataclasses.asdict(row) for row in self.most_wrong],
            "bad": [list(pair) for pair in self.bad],
            "tta": self.tta and dataclasses.asdict(self.tta) | {"kinds": list(self.tta.kinds)},
        }


def evaluate(
    model: Classifier | str | os.PathLike[str],
    data: ImageSet | Data | str | None = None,
    *,
    split: str = "test",
    batch_size: int = 256,
    tta: Sequence[str] = (),
) -> Metrics:
    """Metrics of a model on every image of `data`, once; unreadable images are skipped and named in `Metrics.bad`.

    model: a Classifier, or what `load` takes. data: an ImageSet, a Data, the name or path of a data set (then its
    `split` is taken), or None for the data that the run was trained on. Where a run's own data is named, it is cut as
    in training, so that no training image lands in the test split. tta: kinds of test-time augmentation, such as ("flip", "shift"):
    `Metrics.tta` is then what the mean over those views gives; all the rest stays without.

    Raises ValueError when the classes of data and model differ (another order is fine), when no image is readable, and for unknown names.
    """
    views = views_of(tta)
    classifier = model if isinstance(model, Classifier) else load(model)
    images = data if isinstance(data, ImageSet) else open_images(data_of(classifier, data), split)
    to_model = match_classes(images.classes, classifier.classes)

    def score(views: Sequence[View]) -> Metrics:
        def mean_over_views(arrays: Pixels) -> NDArray[np.float32]:
            mean: NDArray[np.float32] = np.mean([classifier.probabilities(np.ascontiguousarray(view(arrays))) for view in views], axis=0)
            return mean

        kept, probabilities, bad = outputs_of(classifier, images, mean_over_views, batch_size)
        return metrics_from_probabilities(
            probabilities,
            to_model[images.labels[kept]],
            classifier.classes,
            [str(images.names[i]) for i in kept],
            indices=kept.tolist(),
            bad=bad,
        )

    plain = score([itself])
    if not tta:
        return plain
    averaged = score(views)
    numbers = {name: getattr(averaged, name) for name in ("top1", "top5", "nll", "ece")}
    return dataclasses.replace(plain, tta=Averaged(kinds=tuple(tta), views=len(views), **numbers))


def match_classes(data_classes: Sequence[str], model_classes: Sequence[str]) -> NDArray[np.int64]:
    """For each class of the data its index in the model, (K,) int64, matched by name.

    ImageNet's folders may bear WordNet ids instead of names. A model that came without names (`zoo.numbered`) takes the data's order.
    Raises ValueError that names what is missing and what is too much.
    """
    if tuple(model_classes) in (tuple(data_classes), zoo.numbered(len(data_classes))):
        return np.arange(len(model_classes))
    if len(model_classes) == zoo.NUM_CLASSES["imagenet1k"] and tuple(model_classes) == zoo.class_names("imagenet1k"):
        ids = zoo.wordnet_ids("imagenet1k")
        if set(data_classes) == set(ids):
            return np.array([ids.index(c) for c in data_classes])
    missing = [c for c in model_classes if c not in set(data_classes)]
    extra = [c for c in data_classes if c not in set(model_classes)]
    if missing or extra or len(data_classes) != len(model_classes):
        parts = [f"the model has {len(model_classes)} classes, the data {len(data_classes)}"]
        parts += [f"not in the data: {_some(missing)}"] if missing else []
        parts += [f"unknown to the model: {_some(extra)}"] if extra else []
        raise ValueError("the classes of data and model differ: " + "; ".join(parts) + ". Class folders must be named as in training")
    index = {name: i for i, name in enumerate(model_classes)}
    return np.array([index[name] for name in data_classes], dtype=np.int64)


def metrics_from_probabilities(
    probabilities: NDArray[np.floating[Any]],
    labels: NDArray[np.integer[Any]],
    classes: Sequence[str],
    names: Sequence[str],
    *,
    indices: Sequence[int] | None = None,
    bad: Sequence[tuple[str, str]] = (),
) -> Metrics:
    """All metrics from probabilities (N,K) and labels (N,). `indices` are the images' places in the data (default 0..N-1).

    Equal probabilities count for the class with the lower index, as in argmax. A probability of 0 counts as the smallest
    float32 in the negative log-likelihood.
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
    predicted = p.argmax(axis=1)
    confidence = p.max(axis=1).astype(np.float64)

    nll = -np.log(np.maximum(of_true.astype(np.float64), np.finfo(np.float32).tiny))
    precision, recall, f1, support = precision_recall_fscore_support(labels, predicted, labels=np.arange(k), zero_division=0)
    confusion = confusion_matrix(labels, predicted, labels=np.arange(k)) if k <= CONFUSION_MAX_CLASSES else np.zeros((0, 0), int)
    places = range(n) if indices is None else indices
    wrong = sorted(np.flatnonzero(rank > 0).tolist(), key=lambda i: (-confidence[i], names[i], places[i]))[:MOST_WRONG]
    return Metrics(
        n=n,
        classes=tuple(classes),
        top1=float((rank == 0).mean()),
        top5=float((rank < 5).mean()) if k > 5 else None,
        nll=float(nll.mean()),
        ece=expected_calibration_error(confidence, rank == 0),
        per_class=tuple(ClassScore(classes[c], float(precision[c]), float(recall[c]), float(f1[c]), int(support[c])) for c in range(k)),
        confusion=tuple(tuple(int(v) for v in row) for row in confusion),
        most_wrong=tuple(Wrong(names[i], classes[labels[i]], classes[predicted[i]], float(confidence[i]), int(places[i])) for i in wrong),
        bad=tuple(bad),
    )


def expected_calibration_error(confidence: NDArray[np.float64], correct: NDArray[np.bool_], bins: int = ECE_BINS) -> float:
    """Mean |accuracy - confidence| over equal-width bins (lo, hi] of the confidence (N,), weighted by their counts."""
    edges = np.arange(1, bins) / bins
    bin_of = np.digitize(confidence, edges, right=True)
    gaps = np.bincount(bin_of, weights=correct.astype(np.float64) - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def data_of(classifier: Classifier, data: Data | str | None) -> Data:
    """The Data that was asked for; the run's own, with its split seed and fractions, where that is meant."""
    if isinstance(data, Data):
        return data
    own = _own_data(classifier.path)
    if own is not None and data in (None, own.name):
        return own
    if data is None:
        raise ValueError("which images? This model file does not say what data it was trained on: name a data set or a folder")
    return Data(name=data)


def _own_data(model_file: Path | None) -> Data | None:
    if model_file is None or not model_file.with_name("recipe.json").is_file():
        return None
    return read_recipe(model_file.parent).data


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:10])) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
