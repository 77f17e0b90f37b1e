"""Whether an export answers as the model it was made from: on real images, from the same pixels."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mlpmixer.data.config import Data
from mlpmixer.data.datasets import open_images
from mlpmixer.data.image_set import ImageSet, chain
from mlpmixer.data.images import Pixels, Source, decode
from mlpmixer.data.streaming.datasets import is_streamed
from mlpmixer.evaluation.evaluate import match_classes
from mlpmixer.inference.classifier import Classifier, Failure
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
from mlpmixer.inference.files import decoded_batches

PROBABILITY_TOLERANCE = 1e-4
FEATURE_TOLERANCE = 1e-4  # of the largest feature
EVIDENCE_TOLERANCE = 1e-4  # of the largest logit of a patch
PIXEL_TOLERANCE = 2  # levels of 255, one an axis: Pillow rounds after each, in its own order, and in whole numbers
FITTED = 100  # images to compare resize and fit on: they are computed one by one, at full size
EXPLAINED = 100  # images to compare evidence on: a number for each patch and class
BATCH = 64  # images at a time


class ExportMismatch(ValueError):
    """The export does not answer as the model does."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Images to check on: first `n_test` of the test split, spread evenly, then others if those are too few."""

    data: str
    images: ImageSet
    n_test: int


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What a check found. Shares are fractions."""

    data: str
    n: int
    """Images that both were asked about."""
    agreeing: int
    """Of them, those with the same likeliest class."""
    probability_max_diff: float
    feature_max_diff: float | None
    """As a share of the largest feature; None where there are none."""
    n_test: int
    """Test images among them."""
    right: int | None
    """Of the test images, those that the export has right; None where their classes are not the model's."""
    unreadable: int
    runtime: str
    """What computed the export: engine, version, precision."""
    fit: "FitChecked | None" = None
    """Of a graph that takes images of any size."""
    evidence_max_diff: float | None = None
    """Of a graph that gives evidence, as a share of the largest logit of a patch."""

    @property
    def agreement(self) -> float:
        """Top-1 agreement."""
        return self.agreeing / self.n

    def require_float(self) -> None:
        """ExportMismatch unless the two are the same but for rounding in float32."""
        if self.agreeing < self.n or not self.probability_max_diff < PROBABILITY_TOLERANCE:
            raise ExportMismatch(
                f"the export disagrees with the model: on {self.n:,} images of {self.data} top-1 is the same for "
                f"{self.agreeing:,} "
                f"and the largest probability difference is {self.probability_max_diff:.1e}; expected all of them, "
                f"and less than {PROBABILITY_TOLERANCE:.0e}. Nothing was written"
            )
        if self.feature_max_diff is not None and not self.feature_max_diff < FEATURE_TOLERANCE:
            raise ExportMismatch(
                f"the export disagrees with the model: features differ by up to {self.feature_max_diff:.1e} of the "
                f"largest one; "
                f"expected less than {FEATURE_TOLERANCE:.0e}. Nothing was written"
            )


@dataclass(frozen=True, kw_only=True)
class FitChecked:
    """How close resize and fit in the graph come to Pillow's: images at their own size, and drawn out to another
    shape."""

    n: int
    pixel_max_diff: int
    """Levels of 255; not more than PIXEL_TOLERANCE."""
    pixels_different: float
    """Share of all values."""
    probability_max_diff: float
    """Against the torch model on Pillow's pixels."""
    agreeing: int


def sample(data: Data, count: int) -> Sample:
    """`count` images of `data`, or all there are: test images and, where those are too few, training images.

    ValueError when it cannot be opened.
    """
    if count < 1:
        raise ValueError(f"an export is checked on at least 1 image, got {count}")
    sets = [open_images(data, "test").spread(count)]
    if len(sets[0]) < count and not is_streamed(data):
        with suppress(ValueError):  # a lone test split is all there is
            sets.append(open_images(data, "train").spread(count - len(sets[0])))
    name = (
        data.name if data.name.startswith("hf:") else Path(data.name).name
    )  # no folders of this machine go into the export
    return Sample(data=name, images=chain(sets), n_test=len(sets[0]))


def check(reference: Classifier, export: Export, given: Sample) -> Checked:
    """Both asked about the same pixels of each image that can be read.

    Errors: ValueError when none can be read, ExportMismatch when the export's top-k are not those of its own probabilities.
    """
    images = given.images
    try:
        right_class = match_classes(images.classes, reference.classes)[images.labels]
    except ValueError:  # other classes: their images will do for a comparison
        right_class = None
    outputs = [name for name in (PROBABILITIES, TOP_PROBABILITIES, TOP_CLASSES, FEATURES) if name in export.outputs]
    agreeing = right = n_test = unreadable = n = 0
    largest = feature_diff = feature_size = 0.0
    items = ((i, lambda i=i: images.source(i)) for i in range(len(images)))
    for batch in decoded_batches(items, reference.preprocess_image, BATCH):
        good = [(i, image) for i, image in batch if not isinstance(image, Failure)]
        unreadable += len(batch) - len(good)
        if not good:
            continue
        index, pixels = np.array([i for i, _ in good]), np.stack([image for _, image in good])
        wanted = reference.probabilities(pixels)
        found, best_p, best, *features = export(pixels, *outputs)
        if not np.array_equal(np.take_along_axis(found, best, 1), best_p) or not np.array_equal(
            best_p[:, 0], found.max(1)
        ):
            raise ExportMismatch(
                f"the top {best.shape[1]} of the export are not the largest of its probabilities. Nothing was written"
            )
        n += len(good)
        agreeing += int((found.argmax(1) == wanted.argmax(1)).sum())
        largest = max(largest, float(np.abs(found - wanted).max()))
        if features:
            wanted_features = reference.features(pixels)
            feature_diff = max(feature_diff, float(np.abs(features[0] - wanted_features).max()))
            feature_size = max(feature_size, float(np.abs(wanted_features).max()))
        test = index < given.n_test
        n_test += int(test.sum())
        if right_class is not None:
            right += int((found.argmax(1) == right_class[index])[test].sum())
    if not n:
        raise ValueError(f"none of the {len(images)} images of {given.data} could be read")
    return Checked(
        data=given.data,
        n=n,
        agreeing=agreeing,
        probability_max_diff=largest,
        feature_max_diff=feature_diff / max(feature_size, 1e-30) if FEATURES in outputs else None,
        n_test=n_test,
        right=None if right_class is None else right,
        unreadable=unreadable,
        runtime=str(export.runtime),
    )


def check_fit(reference: Classifier, export: Export, given: Sample) -> FitChecked:
    """The graph's resize and fit beside `Preprocess.array`. ValueError when no image can be read, ExportMismatch beyond
    PIXEL_TOLERANCE."""
    images, pre = given.images.spread(FITTED), reference.preprocess
    n = agreeing = levels = 0
    different, probability_diff = [0.0], 0.0
    items = ((i, lambda i=i: images.source(i)) for i in range(len(images)))
    for batch in decoded_batches(items, lambda source: _full(source, pre.in_channels), 1):
        for full in (full for _, full in batch if not isinstance(full, Failure)):
            for image in (full, _drawn_out(full)):
                wanted = pre.array(image)
                found, p = export(image[None], PIXELS, PROBABILITIES)
                wanted_p = reference.probabilities(wanted[None])
                off = np.abs(found[0].astype(int) - wanted)
                n += 1
                levels = max(levels, int(off.max()))
                different.append(float((off > 0).mean()))
                probability_diff = max(probability_diff, float(np.abs(p - wanted_p).max()))
                agreeing += int(p.argmax() == wanted_p.argmax())
    if not n:
        raise ValueError(f"none of {len(images)} images of {given.data} could be read")
    if levels > PIXEL_TOLERANCE:
        raise ExportMismatch(
            f"resize and fit in the graph differ from Pillow's by up to {levels} levels of 255; expected at most "
            f"{PIXEL_TOLERANCE}. "
            "Nothing was written"
        )
    return FitChecked(
        n=n,
        pixel_max_diff=levels,
        pixels_different=sum(different) / n,
        probability_max_diff=probability_diff,
        agreeing=agreeing,
    )


def check_evidence(
    reference: Classifier, export: Export, given: Sample, tolerance: float = EVIDENCE_TOLERANCE
) -> float:
    """The largest difference of what a patch says, as a share of the largest logit of a patch.

    Errors: ValueError when no image can be read, ExportMismatch from `tolerance` on.
    """
    from mlpmixer.explanation.attribution import network_input, patch_evidence, require_network

    images, network = given.images.spread(EXPLAINED), require_network(reference)
    size = off = 0.0
    items = ((i, lambda i=i: images.source(i)) for i in range(len(images)))
    for batch in decoded_batches(items, reference.preprocess_image, BATCH):
        good = [image for _, image in batch if not isinstance(image, Failure)]
        if not good:
            continue
        pixels = np.stack(good)
        wanted = patch_evidence(network, network_input(reference, pixels)).numpy()  # logits of each patch, (B, S, K)
        logits, own = export(pixels, LOGITS, EVIDENCE)
        bias = logits - own.sum(axis=1)
        found = own * own.shape[1] + bias[:, None]
        size, off = max(size, float(np.abs(wanted).max())), max(off, float(np.abs(found - wanted).max()))
    if not size:
        raise ValueError(f"none of the {len(images)} images of {given.data} could be read")
    if not off < tolerance * size:
        raise ExportMismatch(
            f"the evidence of the export differs from the model's by up to {off / size:.1e} of the largest logit of a "
            f"patch; "
            f"expected less than {tolerance:.0e}. Nothing was written"
        )
    return off / size


def _full(source: Source, channels: int) -> Pixels:
    """(h,w,C) uint8 at the image's own size."""
    image = np.asarray(decode(source, "L" if channels == 1 else "RGB"))
    return image.reshape(*image.shape[:2], channels)


def _drawn_out(image: Pixels) -> Pixels:
    """Half as wide again and a fifth flatter: data may hold nothing but images of the model's own size, which need no
    resize."""
    height, width, channels = image.shape
    drawn = Image.fromarray(image[..., 0] if channels == 1 else image).resize((width * 3 // 2, max(height * 4 // 5, 1)))
    return np.asarray(drawn).reshape(drawn.height, drawn.width, channels)
