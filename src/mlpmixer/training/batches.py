"""Which images make batch number i: a function of (seed, epoch, index) and nothing else."""

import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mlpmixer.data.images import Pixels
from mlpmixer.training.recipe import Run

Indices = npt.NDArray[np.int64]
T = TypeVar("T")
NICE = 5  # of a thread that loads: where it wants the same core, one that trains gets three quarters of it


class Batch(NamedTuple):
    """The images of a step with their labels: b of the B rows of the whole batch, those of one process."""

    step: int
    images: Pixels | Tensor
    """(b,H,W,C): in memory, or already on the device."""
    labels: npt.NDArray[Any]
    """(b,) int64, or (b,K) bool."""
    numbers: Indices
    """(b,) the images' positions among the training images."""


@dataclass(frozen=True)
class RowRange:
    """Rows of a batch that one process works on: `num_local` from `start` on are its own.

    The others of the `count` rows follow them and are only mixed into them. Row 0 comes after the last row of the
    batch.
    """

    start: int
    count: int
    num_local: int
    batch_size: int

    @property
    def indices(self) -> Indices:
        return np.arange(self.start, self.start + self.count) % self.batch_size

    def take(self, drawn: Tensor) -> Tensor:
        """These rows of something drawn for the whole batch: (batch_size, ...) -> (count, ...)."""
        beyond = max(self.start + self.count - self.batch_size, 0)
        rows = drawn[self.start : self.start + self.count]
        return torch.cat([rows, drawn[:beyond]]) if beyond else rows


def row_range(batch_size: int, part: int = 0, parts: int = 1, overlap: int = 0) -> RowRange:
    """One of several contiguous parts of a batch, which differ by one row at most, and `overlap` rows after it.

    A part that is the whole batch has no rows after it.
    """
    start, end = batch_size * part // parts, batch_size * (part + 1) // parts
    return RowRange(start, min(end - start + overlap, batch_size), end - start, batch_size)


def rows_per_batch(num_images: int, run: Run) -> int:
    """The rows of every batch: `run.batch_size`, or fewer when the training images are fewer."""
    return min(run.images_per_step // run.repeats, num_images) * run.repeats


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """Whole batches in an epoch; what is left of a permutation is dropped. A batch larger than the set is the set."""
    return max(num_images // batch_size, 1)


def batch_indices(num_images: int, batch_size: int, seed: int, step: int, repeats: int = 1) -> Indices:
    """Image numbers of step 1, 2, ...: the permutation depends on (seed, pass over the images), the slice on the step.

    With `repeats`, batch_size / repeats images, each that many times; a pass then takes that many times the steps.
    """
    distinct = batch_size // repeats
    epoch, index = divmod(step - 1, steps_per_epoch(num_images, distinct))
    return repeated(_order(num_images, seed, epoch)[index * distinct : (index + 1) * distinct], repeats)


def repeated(numbers: Indices, repeats: int) -> Indices:
    """The rows of a batch with `repeats` copies of each of its images."""
    return np.tile(numbers, repeats)


@functools.lru_cache(maxsize=2)
def _order(num_images: int, seed: int, epoch: int) -> Indices:
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(num_images)


def loading_pool(threads: int, name: str) -> ThreadPoolExecutor:
    """Threads that load images, and on Linux give way to those that train."""
    return ThreadPoolExecutor(threads, thread_name_prefix=name, initializer=_give_way)


def _give_way() -> None:
    if sys.platform == "linux":  # where each thread has a priority of its own
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + NICE)


def prefetch(pool: ThreadPoolExecutor, fetch: Callable[[int], T], first: int, last: int) -> Iterator[T]:
    """fetch(step) for first..last in order; while one result is used, `pool` works on the next."""
    if first > last:
        return
    coming = pool.submit(fetch, first)
    for step in range(first, last + 1):
        result = coming.result()
        if step < last:
            coming = pool.submit(fetch, step + 1)
        yield result
