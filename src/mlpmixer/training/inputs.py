"""The images of a run: opened, split and decoded, then dealt in batches with their labels."""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlpmixer.config import pair
from mlpmixer.data.config import Data
from mlpmixer.data.datasets import open_data
from mlpmixer.data.image_set import ImageSet, Splits
from mlpmixer.data.images import Pixels
from mlpmixer.data.paths import TEST, TRAIN, VAL
from mlpmixer.data.preprocess import Preprocess
from mlpmixer.data.split_record import SplitRecord
from mlpmixer.data.store import Store, content_hashes
from mlpmixer.data.streaming.datasets import StreamedSplits, is_streamed, open_streamed
from mlpmixer.models.configs import NetworkConfig
from mlpmixer.training.augment import augment, mix, normalise
from mlpmixer.training.batches import Batch, RowRange, batch_indices, loading_pool, prefetch, row_range, rows_per_batch
from mlpmixer.training.device_store import DeviceStore
from mlpmixer.training.distributed import ProcessGroup
from mlpmixer.training.recipe import Recipe, Run
from mlpmixer.training.stream import Sampled, Stream

SAMPLE_VALUES = 1 << 26  # half a GiB in float64
SCORED = 500  # training images in every evaluation: enough for an interval of +-4 %


@dataclass(frozen=True)
class Stores:
    """The training and validation images of a run as arrays, and the splits they come from."""

    splits: Splits | StreamedSplits
    preprocess: Preprocess
    train: Store | Stream
    val: Store

    @property
    def bad(self) -> list[tuple[str, str]]:
        """(name, reason) of the images that could not be read, at the start or since."""
        return [*self.train.bad, *self.val.bad]

    def share_bad(self, group: ProcessGroup) -> None:
        """Tell every process which images any of them could not read."""
        for images in (self.train, self.val):
            for found in group.gather(images.bad):
                images.note_bad(found)

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several classes, or none."""
        return self.val.images.multi_label

    @property
    def identity(self) -> dict[str, Any]:
        """Facts that a resumed run must find unchanged: classes, number of training images, shards."""
        shards = self.train.fingerprint if isinstance(self.train, Stream) else ""
        return {"classes": list(self.splits.classes), "train_images": len(self.train), "shards": shards}

    @cached_property
    def train_sample(self) -> Store | Sampled:
        """Up to 500 training images from everywhere, as evaluation sees them."""
        n = min(SCORED, len(self.train), most_sampled(self.preprocess))
        if isinstance(self.train, Stream):
            return self.train.labelled_sample(n, self.preprocess)
        places = self.train.indices[np.linspace(0, len(self.train) - 1, n).astype(np.int64)]
        labels = self.train.images.labels
        if labels.ndim == 2 and not labels[places].any():  # average precision needs an image that has a class
            places[0] = self.train.indices[labels[self.train.indices].any(axis=1).argmax()]
        return Store(self.train.images.subset(places), self.preprocess, cache_mib=1024, workers=self.train.workers)

    @cached_property
    def record(self) -> SplitRecord:
        """Which images these are, for those who meet the model later. Reads the files of test."""
        splits, workers = self.splits, self.val.workers
        parts = {VAL: (self.val.images.names, self.val.hashes)}
        if isinstance(self.train, Store):
            parts[TRAIN] = (self.train.images.names, self.train.hashes)
        for part, images in ((TEST, splits.test), ("unused", getattr(splits, "unused", None))):
            if images is not None:
                parts[part] = (images.names, content_hashes(images, workers))
        return SplitRecord.of(parts, shards=self.identity["shards"])


def load_images(data: Data, model: NetworkConfig, preprocess: Preprocess | None = None) -> Stores:
    """Open, split and decode the images of a run. ValueError when there are none, or too many cannot be read.

    Pixels are normalised by the mean and deviation of `preprocess` (that of pretrained weights), else by those of the
    training images.
    """
    if data.classes and not is_streamed(data):
        raise ValueError(f"data.classes names the classes of shards that do not; {data.name} has its own")
    splits = open_streamed(data) if is_streamed(data) and not data.folds else open_data(data)
    half = (0.5,) * model.in_channels
    shape = Preprocess(
        image_size=pair(model.image_size), in_channels=model.in_channels, fit=data.fit, mean=half, std=half
    )
    larger = shape.scaled(data.train_scale)

    def store(images: ImageSet, shape: Preprocess) -> Store:
        return Store(images, shape, cache_mib=data.cache_mib, workers=data.workers, max_bad_share=data.max_bad_share)

    train: Store | Stream
    if isinstance(splits, StreamedSplits):
        train = Stream(splits.train, splits.labels, larger, data)
    else:
        train = store(splits.train, larger)
    val = store(splits.val, shape)
    if not len(train) or not len(val):
        raise ValueError(
            f"{data.name}: {len(train)} training and {len(val)} validation images are left; both splits need some"
        )
    mean, std = (preprocess.mean, preprocess.std) if preprocess else _statistics_of(train)
    return Stores(splits, dataclasses.replace(shape, mean=mean, std=std), train, val)


def _statistics_of(images: Store | Stream) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel, of pixels in 0..1."""
    sample = sample_of(images)
    mean = sample.mean((0, 1, 2), dtype=np.float64) / 255
    std = np.maximum(sample.std((0, 1, 2), dtype=np.float64) / 255, 1 / 255)
    return tuple(round(float(m), 4) for m in mean), tuple(round(float(s), 4) for s in std)


class ImageCache:
    """The images of the last run, given again to the next one on the same data instead of decoding them twice."""

    def __init__(self) -> None:
        self._key: object = None
        self._stores: Stores | None = None

    def load(self, data: Data, model: NetworkConfig, preprocess: Preprocess | None = None) -> Stores:
        """The same as `load_images`."""
        key = (data, pair(model.image_size), model.in_channels, preprocess)
        if self._stores is None or key != self._key:
            self._stores = None  # frees the memory before the next ones take it
            self._stores, self._key = load_images(data, model, preprocess), key
        return self._stores


def batches(
    images: Store | DeviceStore | Stream, run: Run, first: int, last: int, rows: RowRange | None = None
) -> Iterator[Batch]:
    """The batches of steps first..last; the next one is fetched while one is used.

    rows: the rows of each batch to fetch, all by default.
    """
    if isinstance(images, Stream):
        yield from images.batches(run, first, last, rows)
        return
    taken = (rows or row_range(rows_per_batch(len(images), run))).indices

    def fetch(step: int, images: Store | DeviceStore = images) -> Batch:
        numbers = batch_indices(len(images), run.images_per_step, run.seed, step, run.repeats)[taken]
        return Batch(step, images.array(numbers), images.labels[numbers], numbers)

    if isinstance(images, DeviceStore):  # nothing to wait for
        yield from map(fetch, range(first, last + 1))
        return
    with loading_pool(1, "batch") as pool:
        yield from prefetch(pool, fetch, first, last)


def sample_of(images: Store | Stream) -> Pixels:
    """(N, H, W, C): up to 5,000 training images from everywhere, of at most SAMPLE_VALUES values in all."""
    return images.sample(min(len(images), 5000, most_sampled(images.preprocess)))


def most_sampled(preprocess: Preprocess) -> int:
    """The images that SAMPLE_VALUES make, at least one."""
    return max(SAMPLE_VALUES // (math.prod(preprocess.image_size) * preprocess.in_channels), 1)


def augmented_sample(recipe: Recipe, stores: Stores) -> Tensor:
    """Some training images as the network sees them: augmented and normalised, (N, in_channels, H, W)."""
    generator = torch.Generator().manual_seed(recipe.run.seed)
    images = torch.from_numpy(sample_of(stores.train))
    images = augment(images, recipe.augment, pair(recipe.model.image_size), generator)
    images, _ = mix(images, torch.zeros(len(images), 1), recipe.augment, generator)
    return normalise(images, stores.preprocess)
