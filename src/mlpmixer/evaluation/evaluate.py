"""Evaluation: every image once, all numbers (see `metrics`) from the probabilities. Imports no torch.

N images, K classes. Shares are fractions between 0 and 1.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from mlpmixer.data.config import Data
from mlpmixer.data.image_set import ImageSet
from mlpmixer.data.images import Pixels
from mlpmixer.data.labels import nfc
from mlpmixer.data.real_labels import real_labels
from mlpmixer.download import Report
from mlpmixer.evaluation.calibration import fit_temperature
from mlpmixer.evaluation.data import Chosen, open_for
from mlpmixer.evaluation.metrics import (
    Metrics,
    TTAMetrics,
    calibrated_metrics,
    metrics_from_probabilities,
    real_metrics,
    without_trained,
)
from mlpmixer.evaluation.multi_label import MultiLabelMetrics, TTAScores, best_threshold, multi_label_metrics
from mlpmixer.evaluation.trained_on import seen
from mlpmixer.inference.classifier import Classifier
from mlpmixer.inference.files import map_images
from mlpmixer.inference.load import load
from mlpmixer.registry import Registry
from mlpmixer.weights import published

SHIFT = 32  # a shifted view moves by this part of the side, at least by one pixel: one pixel of CIFAR's 32

View = Callable[[Pixels], Pixels]


def identity(images: Pixels) -> Pixels:
    return images


def shifted(down: int, across: int) -> View:
    """A view moved by so many 32nds of height and width, at least a pixel; reflection fills the border."""

    def view(images: Pixels) -> Pixels:
        rows, cols = images.shape[1:3]
        y, x = down * max(round(rows / SHIFT), 1), across * max(round(cols / SHIFT), 1)
        padded = np.pad(images, ((0, 0), (max(y, 0), max(-y, 0)), (max(x, 0), max(-x, 0)), (0, 0)), mode="reflect")
        return padded[:, max(-y, 0) :][:, :rows, max(-x, 0) :][:, :, :cols]

    return view


TTA: Registry[tuple[View, ...]] = Registry("test-time augmentation")
"""The views (B,H,W,C) -> (B,H,W,C) of each kind; with several kinds, each view of one after each of the other."""
TTA |= {
    "flip": (identity, lambda images: images[:, :, ::-1]),
    "shift": (identity, shifted(1, 0), shifted(-1, 0), shifted(0, 1), shifted(0, -1)),
}


def tta_views(kinds: Sequence[str]) -> list[View]:
    """All views of these kinds together, the plain one first. ValueError for an unknown kind."""

    def chained(first: View, then: View) -> View:
        return lambda images: then(first(images))

    views: list[View] = [identity]
    for kind in kinds:
        views = [chained(first, then) for first in views for then in TTA[kind]]
    return views


def evaluate(
    model: Classifier | str | os.PathLike[str],
    data: Chosen | ImageSet | Data | str | None = None,
    *,
    split: str | None = None,
    batch_size: int = 256,
    tta: Sequence[str] = (),
    validation: ImageSet | None = None,
    real: str | os.PathLike[str] | None = None,
    report: Report | None = None,
) -> Metrics | MultiLabelMetrics:
    """Measure a model on every image of `data`; unreadable images are skipped and named in `Metrics.bad`.

    model: a Classifier, or what `load` takes.
    data: an ImageSet, a Data, the name or path of a data set, or None for the data that the run was trained on.
    split: of data that is not an ImageSet; None: test, or all of the data if it has no splits and the run was not
        trained on it. A run's own data is cut as in training, see `data.open_for`. `Metrics.scored` says what was
        measured, `Metrics.trained_on` how many of these images the model was trained on.
    tta: kinds of test-time augmentation, such as ("flip", "shift"), for `Metrics.tta`.
    validation: other images to fit a temperature on, for `Metrics.tempered`.
    real: the file of ReaL labels, for `Metrics.real`, when the data is ImageNet's validation images.
    report: receives the progress, as of `map_images`.

    A model of images with several classes or none gives `MultiLabelMetrics`, at its threshold. If the data has one
    class per image, each image then counts as having that class and no other.

    Errors: ValueError when the data has classes that the model does not know, when there is no such split, when no
    image is readable, for unknown names, when no temperature is best, and when ReaL labels do not fit the images.
    """
    views = tta_views(tta)  # a wrong name is an error before anything runs
    classifier = model if isinstance(model, Classifier) else load(model)
    if isinstance(data, ImageSet):
        images, trained, scored = data, seen(classifier, None, data), None
    else:
        chosen = data if isinstance(data, Chosen) else open_for(classifier, data).choose(split)
        images, trained, scored = chosen.images, chosen.trained, chosen.scored
    if not classifier.multi_label:
        require_one_class(images)
    to_model = match_classes(images.classes, classifier.classes)
    if classifier.threshold is not None:
        single = {"temperature": validation is not None, "ReaL labels": real is not None}
        if named := [name for name, is_given in single.items() if is_given]:
            raise ValueError(
                f"{named[0]}: this is for models of one class per image, but here an image may have several"
            )
        several = _multi_label(classifier, images, to_model, classifier.threshold, views, tta, batch_size, report)
        return dataclasses.replace(several, scored=scored, trained_on=None if trained is None else int(trained.sum()))
    accepted = accepted_classes(real, images, to_model) if real is not None else None
    fitted = _fit_temperature(classifier, validation, batch_size) if validation is not None else None

    kept, probabilities, bad = map_images(classifier, images, classifier.probabilities, batch_size, report=report)
    labels, names = to_model[images.labels[kept]], [str(images.names[i]) for i in kept]
    metrics = metrics_from_probabilities(
        probabilities, labels, classifier.classes, names, indices=kept.tolist(), bad=bad
    )
    metrics = dataclasses.replace(metrics, scored=scored)
    if trained is not None:
        metrics = without_trained(metrics, probabilities.argmax(axis=1) == labels, trained[kept])
    if tta:
        mean = _mean_over_views(classifier, images, views, batch_size, report)
        found = vars(metrics_from_probabilities(mean, labels, classifier.classes, names))
        numbers = {f.name: found[f.name] for f in dataclasses.fields(TTAMetrics) if f.name in found}
        metrics = dataclasses.replace(metrics, tta=TTAMetrics(kinds=tuple(tta), views=len(views), **numbers))
    if fitted:
        metrics = dataclasses.replace(metrics, tempered=calibrated_metrics(probabilities, labels, *fitted))
    if accepted is not None:
        answers = probabilities.argmax(axis=1)
        metrics = dataclasses.replace(metrics, real=real_metrics(answers, [accepted[i] for i in kept]))
    return metrics


def _mean_over_views(
    classifier: Classifier, images: ImageSet, views: Sequence[View], batch_size: int, report: Report | None
) -> NDArray[np.float32]:
    """The mean probabilities (N,K) over several views of each image."""

    def mean(arrays: Pixels) -> NDArray[np.float32]:
        seen = [classifier.probabilities(np.ascontiguousarray(view(arrays))) for view in views]
        return np.asarray(np.mean(seen, axis=0))

    return map_images(classifier, images, mean, batch_size, report=report)[1]


def _multi_label(
    classifier: Classifier,
    images: ImageSet,
    to_model: NDArray[np.int64],
    threshold: float,
    views: Sequence[View],
    tta: Sequence[str],
    batch_size: int,
    report: Report | None,
) -> MultiLabelMetrics:
    kept, p, bad = map_images(classifier, images, classifier.probabilities, batch_size, report=report)
    targets, names = targets_of(images, to_model, len(classifier.classes))[kept], [str(images.names[i]) for i in kept]
    metrics = multi_label_metrics(p, targets, classifier.classes, names, threshold, indices=kept.tolist(), bad=bad)
    if not tta:
        return metrics
    mean = _mean_over_views(classifier, images, views, batch_size, report)
    found = multi_label_metrics(mean, targets, classifier.classes, names, threshold)
    scores = TTAScores(kinds=tuple(tta), views=len(views), map=found.map, f1_micro=found.f1_micro)
    return dataclasses.replace(metrics, tta=scores)


def targets_of(images: ImageSet, to_model: NDArray[np.int64], num_classes: int) -> NDArray[np.bool_]:
    """Targets (N,K) of images in the model's K classes; to_model: see `match_classes`."""
    targets = np.zeros((len(images), num_classes), dtype=bool)
    targets[:, to_model] = images.as_multi_label().labels
    return targets


def choose_threshold(classifier: Classifier, images: ImageSet, batch_size: int = 256) -> float:
    """`best_threshold` of a model on these images."""
    to_model = match_classes(images.classes, classifier.classes)
    kept, p, _ = map_images(classifier, images, classifier.probabilities, batch_size)
    return best_threshold(p, targets_of(images, to_model, len(classifier.classes))[kept])


def require_one_class(images: ImageSet, what: str = "this model gives an image one class") -> None:
    """ValueError for images that have several classes or none."""
    if images.multi_label:
        raise ValueError(f"{what}, but these images have several or none (--data.multi-label)")


def _fit_temperature(classifier: Classifier, validation: ImageSet, batch_size: int) -> tuple[float, int]:
    """The best temperature on these images, and how many of them could be read."""
    if classifier.sigmoid:
        raise ValueError("a temperature belongs to a softmax; this model was trained with the sigmoid loss")
    to_model = match_classes(validation.classes, classifier.classes)
    kept, probabilities, _ = map_images(classifier, validation, classifier.probabilities, batch_size)
    return fit_temperature(probabilities, to_model[validation.labels[kept]]), len(kept)


def accepted_classes(
    file: str | os.PathLike[str], images: ImageSet, to_model: NDArray[np.int64]
) -> list[frozenset[int]]:
    """The model's classes that the ReaL labels in `file` accept for each image; to_model: see `match_classes`.

    Raises ValueError when the classes of the images are not ImageNet's 1000, by name or WordNet id, or as `real_labels`
    does.
    """
    orders = (published.wordnet_ids("imagenet1k"), published.class_names("imagenet1k"))
    order = next((order for order in orders if set(order) == set(images.classes)), None)
    if order is None:
        raise ValueError(
            f"ReaL labels are for ImageNet's 1000 classes; these images have {len(images.classes):,} classes, such as "
            f"{_listed(images.classes[:3])}: expected folders named by WordNet id, n01440764 to n15075141"
        )
    index = {name: i for i, name in enumerate(images.classes)}
    of_imagenet = [int(to_model[index[name]]) for name in order]
    return [frozenset(of_imagenet[label] for label in labels) for labels in real_labels(file, images.names)]


def match_classes(data_classes: Sequence[str], model_classes: Sequence[str]) -> NDArray[np.int64]:
    """For each class of the data its index in the model, (K,) int64, matched by name. The data may lack some classes.

    ImageNet's folders may have WordNet ids instead of names. A model without class names (`published.numbered`) takes
    the data's order. ValueError when the model does not know a class.
    """
    if tuple(model_classes) == published.numbered(len(data_classes)):
        return np.arange(len(model_classes))
    known = tuple(map(nfc, model_classes))  # older models have them as the data had
    if known == published.class_names("imagenet1k") and set(data_classes) <= set(published.wordnet_ids("imagenet1k")):
        known = published.wordnet_ids("imagenet1k")
    index = {name: i for i, name in enumerate(known)}
    if not set(data_classes) <= set(known):
        raise ValueError(_difference(data_classes, known))
    return np.array([index[name] for name in data_classes], dtype=np.int64)


def match_all_classes(data_classes: Sequence[str], model_classes: Sequence[str]) -> NDArray[np.int64]:
    """`match_classes` where the data must have every class of the model."""
    found = match_classes(data_classes, model_classes)
    if len(found) != len(model_classes):
        raise ValueError(_difference(data_classes, model_classes))
    return found


def _difference(data_classes: Sequence[str], model_classes: Sequence[str]) -> str:
    missing = [c for c in model_classes if c not in set(data_classes)]
    extra = [c for c in data_classes if c not in set(model_classes)]
    parts = [f"the model has {len(model_classes)} classes, the data {len(data_classes)}"]
    parts += [f"not in the data: {_listed(missing)}"] if missing else []
    parts += [f"not in the model: {_listed(extra)}"] if extra else []
    return "the classes of data and model differ: " + "; ".join(parts) + ". Class folders must be named as in training"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:10])) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
