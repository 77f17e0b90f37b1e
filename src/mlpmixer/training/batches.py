"""Which images make batch number i: a function of (seed, epoch, index) and nothing else."""

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mlpmixer.data.images import Pixels
from mlpmixer.training.device_store import Resident
from mlpmixer.training.recipe import Run

Indices = npt.NDArray[np.int64]


T_co = TypeVar("T_co", covariant=True)  # Pixels, or a Tensor on a device
Batch = TypeVar("Batch")


class Images(Protocol[T_co]):
    def __len__(self) -> int: ...
    def array(self, indices: Indices) -> T_co: ...


@runtime_checkable
class Streamed(Protocol):
    """Images that come in an order of their own, see `stream.Stream`."""

    def __len__(self) -> int: ...
    def stream(self, run: Run, first: int, last: int, rows: Indices) -> Iterator[tuple[int, Indices, Pixels]]: ...


@dataclass(frozen=True)
class Rows:
    """`count` rows of a batch of `of` images, beginning with `first`; after the last row of the batch comes its row 0.

    The first `own` of them are computed here, the others are only there to be mixed into them.
    """

    first: int
    count: int
    own: int
    of: int

    @property
    def numbers(self) -> Indices:
        return np.arange(self.first, self.first + self.count) % self.of

    def take(self, drawn: Tensor) -> Tensor:
        """(of, ...), drawn for the whole batch -> (count, ...), these rows of it."""
        beyond = max(self.first + self.count - self.of, 0)
        rows = drawn[self.first : self.first + self.count]
        return torch.cat([rows, drawn[:beyond]]) if beyond else rows


def rows_of(n: int, part: int = 0, parts: int = 1, lent: int = 0) -> Rows:
    """Rows of a batch of n images that one of several parts computes, and `lent` more that follow them, from the last
    to the first.

    The parts are contiguous and differ by one row at most. A part that is the whole batch borrows nothing.
    """
    first, end = n * part // parts, n * (part + 1) // parts
    return Rows(first, min(end + lent, first + n) - first, end - first, n)


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """Whole batches in an epoch; the rest of a permutation is left to the next epoch's. A batch larger than the set is
    the whole set."""
    return max(num_images // batch_size, 1)


def batch_indices(num_images: int, batch_size: int, seed: int, step: int, repeats: int = 1) -> Indices:
    """Image numbers of step 1, 2, ...: the permutation of a pass depends on (seed, pass), the slice on the index in it.

    With `repeats`, batch_size / repeats numbers, all of them that many times over; a pass over the images takes that
    many times the steps.
    """
    distinct = batch_size // repeats
    epoch, index = divmod(step - 1, steps_per_epoch(num_images, distinct))
    return repeated(_order(num_images, seed, epoch)[index * distinct : (index + 1) * distinct], repeats)


def repeated(numbers: Indices, repeats: int) -> Indices:
    """What a batch makes of its different images: all of them so many times over."""
    return np.tile(numbers, repeats)


@functools.lru_cache(maxsize=2)
def _order(num_images: int, seed: int, epoch: int) -> Indices:
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(num_images)


def batches(
    images: Images[T_co] | Streamed, run: Run, first: int, last: int, rows: Callable[[int], Rows] = rows_of
) -> Iterator[tuple[int, Indices, T_co | Pixels]]:
    """(step, image numbers (B,), images (b,H,W,C)) of steps first..last; the next batch is fetched while one is used.

    rows: which b of the B rows to fetch.
    """
    if isinstance(images, Streamed):
        yield from images.stream(run, first, last, rows(run.batch_size).numbers)
        return

    def fetch(step: int) -> tuple[int, Indices, T_co]:
        indices = batch_indices(len(images), run.batch_size, run.seed, step, run.repeats)
        return step, indices, images.array(indices[rows(len(indices)).numbers])

    if isinstance(images, Resident):  # nothing to wait for
        yield from map(fetch, range(first, last + 1))
        return
    with ThreadPoolExecutor(1) as pool:
        yield from ahead(pool, fetch, first, last)


def ahead(pool: ThreadPoolExecutor, fetch: Callable[[int], Batch], first: int, last: int) -> Iterator[Batch]:
    """fetch(step) for first..last, in order, each begun by `pool` when the one before it is done."""
    coming = pool.submit(fetch, first)
    for step in range(first, last + 1):
        batch = coming.result()
        if step < last:
            coming = pool.submit(fetch, step + 1)
        yield batch
