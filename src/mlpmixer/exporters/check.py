"""Comparison of an export with its model on real images, from the same pixels."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mlpmixer.data.datasets import relabelled
from mlpmixer.data.image_set import ImageSet, chain
from mlpmixer.data.images import Pixels, Source, decode
from mlpmixer.data.paths import TRAIN
from mlpmixer.evaluation.data import Opened
from mlpmixer.evaluation.evaluate import match_classes, targets_of
from mlpmixer.inference.classifier import Classifier
from mlpmixer.inference.exported import (
    EVIDENCE,
    FEATURES,
    LOGITS,
    PIXELS,
    PROBABILITIES,
    TOP_CLASSES,
    TOP_PROBABILITIES,
    Export,
)
from mlpmixer.inference.files import map_images
from mlpmixer.inference.prediction import Floats

PROBABILITY_TOLERANCE = 1e-4
FEATURE_TOLERANCE = 1e-4  # of the largest feature
EVIDENCE_TOLERANCE = 1e-4  # of the largest logit of a patch
PIXEL_TOLERANCE = 2  # levels of 255, one per axis: Pillow rounds after each, in its own order, and in integers
FITTED = 100  # images to compare resize and fit on, one by one and at full size
EXPLAINED = 100  # images to compare evidence on, which has a value for each patch and class
BATCH = 64


class ExportMismatch(ValueError):
    """The export and the model give different answers."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Images to check on: first `n_test` that the model was not trained on, evenly spread, then training images."""

    data: str
    images: ImageSet
    n_test: int


@dataclass(frozen=True, kw_only=True)
class Checked:
    """The findings of a check."""

    data: str
    n: int
    """Images that both classified."""
    agreeing: int
    """Images with the same likeliest class; where an image may have several, with the same classes, but for those whose
    probabilities differ by rounding alone."""
    probability_max_diff: float
    feature_max_diff: float | None
    """Relative to the largest feature; None without features."""
    n_test: int
    """Test images among them."""
    right: int | None
    """Test images that the export classifies correctly, with all classes; None if their classes are not the model's."""
    unreadable: int
    runtime: str
    """Engine, version and precision of the export."""
    fit: "FitChecked | None" = None
    """For a graph that takes images of any size."""
    threshold: float | None = None
    """The model's threshold, where an image may have several classes; else None."""
    evidence_max_diff: float | None = None
    """For a graph with evidence, relative to the largest logit of a patch."""

    @property
    def agreement(self) -> float:
        """Top-1 agreement."""
        return self.agreeing / self.n

    def require_float(self) -> None:
        """ExportMismatch unless the two are the same but for rounding in float32."""
        if self.agreeing < self.n or not self.probability_max_diff < PROBABILITY_TOLERANCE:
            raise ExportMismatch(
                f"the export disagrees with the model: on {self.n:,} images of {self.data} top-1 is the same for "
                f"{self.agreeing:,}, and the largest probability difference is {self.probability_max_diff:.1e}; "
                f"expected all of them, and less than {PROBABILITY_TOLERANCE:.0e}. Nothing was written"
            )
        if self.feature_max_diff is not None and not self.feature_max_diff < FEATURE_TOLERANCE:
            raise ExportMismatch(
                f"the export disagrees with the model: features differ by up to {self.feature_max_diff:.1e} of the "
                f"largest one; expected less than {FEATURE_TOLERANCE:.0e}. Nothing was written"
            )


@dataclass(frozen=True, kw_only=True)
class FitChecked:
    """Resize and fit in the graph against Pillow's, on images as they are and stretched to another shape."""

    n: int
    pixel_max_diff: int
    """Levels of 255; at most PIXEL_TOLERANCE."""
    pixels_different: float
    """Fraction of all values."""
    probability_max_diff: float
    """Against the torch model on Pillow's pixels."""
    agreeing: int


def sample(data: Opened, count: int) -> Sample:
    """`count` images of `data`, or all there are: those to score a model on and, if they are too few, training images.

    ValueError when there are none.
    """
    if count < 1:
        raise ValueError(f"an export is checked on at least 1 image, got {count}")
    test = data.held_out().spread(count)
    train = data.sets.get(TRAIN)
    more = [relabelled(train, test.classes).labelled()] if train and len(test) < count else []
    images = chain([test, *(images.spread(count - len(test)) for images in more if len(images))])
    return Sample(data=data.name, images=images, n_test=len(test))


def check(reference: Classifier, export: Export, given: Sample) -> Checked:
    """Both models on the same pixels of each image that can be read.

    Errors: ValueError when none can be read, ExportMismatch when the export's top-k are not its own probabilities'.
    """
    images = given.images
    try:
        to_model = match_classes(images.classes, reference.classes)
        truth = targets_of(images, to_model, len(reference.classes))
    except ValueError:  # other classes: their images will do for a comparison
        truth = None
    threshold = reference.threshold
    if threshold is None and images.multi_label:  # no image has one right class
        truth = None

    def answers(p: Floats) -> NDArray[np.bool_]:
        """The predicted classes of each image, (B,K) bool."""
        return p >= threshold if threshold is not None else np.arange(p.shape[1]) == p.argmax(1)[:, None]

    has_features = FEATURES in export.outputs
    outputs = [PROBABILITIES, TOP_PROBABILITIES, TOP_CLASSES, *[FEATURES] * has_features]

    def compare(pixels: Pixels) -> Floats:
        """Whether the answer is the same, differences of probability and feature, largest feature; (B,K) the answer."""
        p, best_p, best, *features = export(pixels, *outputs)
        if not np.array_equal(np.take_along_axis(p, best, 1), best_p) or not np.array_equal(best_p[:, 0], p.max(1)):
            raise ExportMismatch(
                f"the top {best.shape[1]} of the export are not the largest of its probabilities. Nothing was written"
            )
        wanted = reference.probabilities(pixels)
        differ = answers(p) != answers(wanted)
        if threshold is not None:
            differ &= np.abs(p - wanted) >= PROBABILITY_TOLERANCE
        columns = [~differ.any(1), np.abs(p - wanted).max(1)]
        if features:
            wanted_features = reference.features(pixels)
            columns += [np.abs(features[0] - wanted_features).max(1), np.abs(wanted_features).max(1)]
        return np.concatenate([np.stack(columns, axis=1), answers(p)], axis=1).astype(np.float32)

    index, found, bad = map_images(reference, images, compare, BATCH)
    test, predicted = index < given.n_test, found[:, -len(reference.classes) :] > 0
    return Checked(
        data=given.data,
        n=len(found),
        agreeing=int(found[:, 0].sum()),
        probability_max_diff=float(found[:, 1].max()),
        feature_max_diff=float(found[:, 2].max() / max(found[:, 3].max(), 1e-30)) if has_features else None,
        n_test=int(test.sum()),
        right=None if truth is None else int((predicted == truth[index]).all(axis=1)[test].sum()),
        unreadable=len(bad),
        runtime=str(export.runtime),
        threshold=threshold,
    )


def check_fit(reference: Classifier, export: Export, given: Sample) -> FitChecked:
    """The graph's resize and fit against Pillow's. ValueError when no image can be read, ExportMismatch beyond
    PIXEL_TOLERANCE."""
    pre = reference.preprocess

    def full(source: Source) -> Pixels:
        """(h,w,C) uint8 at the image's own size."""
        image = np.asarray(decode(source, "L" if pre.in_channels == 1 else "RGB"))
        return image.reshape(*image.shape[:2], pre.in_channels)

    def compare(images: Pixels) -> Floats:
        """Compare one image, as it is and stretched: levels off, share of values off, probability off, same top-1."""
        rows = []
        for image in (images[0], _stretched(images[0])):
            wanted = pre.array(image)
            found, p = export(image[None], PIXELS, PROBABILITIES)
            wanted_p, off = reference.probabilities(wanted[None]), np.abs(found[0].astype(int) - wanted)
            same = p.argmax() == wanted_p.argmax()
            rows.append([off.max(), (off > 0).mean(), np.abs(p - wanted_p).max(), same])
        return np.array(rows, np.float32)

    _, found, _ = map_images(reference, given.images.spread(FITTED), compare, 1, full)
    levels, different, off, same = found.T
    if levels.max() > PIXEL_TOLERANCE:
        raise ExportMismatch(
            f"resize and fit in the graph differ from Pillow's by up to {levels.max():.0f} levels of 255; expected at "
            f"most {PIXEL_TOLERANCE}. Nothing was written"
        )
    return FitChecked(
        n=len(found),
        pixel_max_diff=int(levels.max()),
        pixels_different=float(different.mean(dtype=np.float64)),
        probability_max_diff=float(off.max()),
        agreeing=int(same.sum()),
    )


def check_evidence(
    reference: Classifier, export: Export, given: Sample, tolerance: float = EVIDENCE_TOLERANCE
) -> float:
    """The largest difference of a patch's logit, relative to the largest one.

    Errors: ValueError when no image can be read, ExportMismatch from `tolerance` on.
    """
    from mlpmixer.explanation.attribution import network_input, patch_evidence, require_network

    network = require_network(reference)

    def compare(pixels: Pixels) -> Floats:
        """The largest difference and the largest logit: (B, 2)."""
        wanted = patch_evidence(network, network_input(reference, pixels)).numpy()  # (B, S, K)
        logits, own = export(pixels, LOGITS, EVIDENCE)
        bias = logits - own.sum(axis=1)
        found = own * own.shape[1] + bias[:, None]
        return np.stack([np.abs(found - wanted).max((1, 2)), np.abs(wanted).max((1, 2))], axis=1)

    _, found, _ = map_images(reference, given.images.spread(EXPLAINED), compare, BATCH)
    off, size = (float(value) for value in found.max(0))
    if not off < tolerance * size:
        raise ExportMismatch(
            f"the evidence of the export differs from the model's by up to {off / size:.1e} of the largest logit of a "
            f"patch; expected less than {tolerance:.0e}. Nothing was written"
        )
    return off / size


def _stretched(image: Pixels) -> Pixels:
    """Half as wide again and a fifth flatter: images of the model's own size would need no resize."""
    height, width, channels = image.shape
    drawn = Image.fromarray(image[..., 0] if channels == 1 else image).resize((width * 3 // 2, max(height * 4 // 5, 1)))
    return np.asarray(drawn).reshape(drawn.height, drawn.width, channels)
