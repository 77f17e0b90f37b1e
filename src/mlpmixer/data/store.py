"""Decoded images of one size, by index: in memory when they fit, else decoded again for each batch."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import numpy as np

from mlpmixer.data.image_set import ImageSet
from mlpmixer.data.images import ImageError, Pixels
from mlpmixer.data.preprocess import Preprocess
from mlpmixer.hardware import cores

T = TypeVar("T")
_CHUNK = 64  # images per task: enough to forget the cost of a task, few enough to keep all threads busy


def worker_count(workers: int) -> int:
    """Threads to use; 0 means one per CPU core of this process."""
    return workers if workers > 0 else cores()


@contextmanager
def _pool(workers: int) -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(worker_count(workers), thread_name_prefix="decode")
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)  # Ctrl-C does not wait for the rest of the data set


def in_chunks(work: Callable[[range], T], n: int, workers: int) -> Iterator[T]:
    """work(range) over 0..n-1 in parallel threads, results in order."""
    with _pool(workers) as pool:
        yield from pool.map(work, [range(a, min(a + _CHUNK, n)) for a in range(0, n, _CHUNK)])


class Store:
    """The readable images of a set as arrays of `preprocess.dtype`, by position 0..M-1 among them.

    `kept` (M,) are their indices in the set, `labels` (M,) int64, `names` M strings; `bad` lists (name, reason) of
    those that could not be read. Sets larger than `cache_mib` (`nbytes` is what all arrays take) are decoded once at
    the start to find those, then again for every batch. Nothing here depends on `workers`. ValueError when the share of
    bad ones is above `max_bad_share`.
    """

    def __init__(
        self, images: ImageSet, preprocess: Preprocess, *, cache_mib: int, workers: int, max_bad_share: float = 1.0
    ) -> None:
        self.images, self.preprocess, self.workers = images, preprocess, workers
        shape = (*preprocess.image_size, preprocess.in_channels)
        n = len(images)
        size_bytes = n * int(np.prod(shape)) * preprocess.dtype.itemsize
        self.nbytes, self.in_memory = size_bytes, size_bytes <= cache_mib << 20
        self._pixels: Pixels | None = np.empty((n, *shape), preprocess.dtype) if self.in_memory else None
        self._threads: ThreadPoolExecutor | None = None
        found = [failure for failures in in_chunks(self._decode_into, n, workers) for failure in failures]
        self.bad: list[tuple[str, str]] = [(images.names[i], reason) for i, reason in found]
        if n and len(found) / n > max_bad_share:
            raise ValueError(
                f"{len(found)} of {n} images cannot be read, more than the share of {max_bad_share} allowed "
                f"(max_bad_share): "
                + "; ".join(f"{name}: {reason}" for name, reason in self.bad[:10])
                + ("; ..." if len(found) > 10 else "")
            )
        self.kept = np.setdiff1d(np.arange(n), [i for i, _ in found])
        good = images if not found else images.subset(self.kept)
        self.labels, self.names = good.labels, good.names

    def _decode_into(self, span: range) -> list[tuple[int, str]]:
        failures = []
        for i in span:
            try:
                pixels = self.preprocess.array(self.images.source(i))
            except ImageError as e:
                failures.append((i, str(e)))
            else:
                if self._pixels is not None:
                    self._pixels[i] = pixels
        return failures

    def __len__(self) -> int:
        return len(self.kept)

    def array(self, indices: np.ndarray) -> Pixels:
        """(B, H, W, C) of the images at these positions.

        An image that has become unreadable since the start is replaced by the nearest readable one of its class, and
        is added to `bad`.
        """
        indices = np.asarray(indices)
        if self._pixels is not None:
            chosen: Pixels = self._pixels[self.kept[indices]]
            return chosen
        if self._threads is None:
            self._threads = ThreadPoolExecutor(worker_count(self.workers), thread_name_prefix="decode")
        out: Pixels = np.empty(
            (len(indices), *self.preprocess.image_size, self.preprocess.in_channels), self.preprocess.dtype
        )
        for row, (pixels, failures) in enumerate(self._threads.map(self._one, indices.tolist())):
            out[row] = pixels
            self.note_bad(failures)
        return out

    def note_bad(self, found: Iterable[tuple[str, str]]) -> None:
        """Add to `bad` what is not in it yet."""
        self.bad += [failure for failure in found if failure not in self.bad]

    def sample(self, n: int) -> Pixels:
        """(n, H, W, C): images evenly spread over the store."""
        return self.array(np.linspace(0, len(self) - 1, n).astype(np.int64))

    def _one(self, position: int) -> tuple[Pixels, list[tuple[str, str]]]:
        """The image at `position`, or its replacement, with what failed on the way."""
        try:
            return self.preprocess.array(self.images.source(int(self.kept[position]))), []
        except ImageError as e:
            failures = [(self.names[position], str(e))]
        distance = np.abs(np.arange(len(self)) - position) + len(self) * (self.labels != self.labels[position])
        for other in np.argsort(distance, kind="stable")[1:]:
            try:
                return self.preprocess.array(self.images.source(int(self.kept[other]))), failures
            except ImageError as e:
                failures.append((self.names[int(other)], str(e)))
        raise ValueError(f"no readable image is left; the first of them: {failures[0][0]}: {failures[0][1]}")
