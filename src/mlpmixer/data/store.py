"""Decoded images of one size, by index: in memory when they fit, else decoded again for each batch."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from mlpmixer.data.image_set import ImageSet
from mlpmixer.data.images import ImageError, Pixels, content_hash
from mlpmixer.data.preprocess import Preprocess
from mlpmixer.hardware import cores

T = TypeVar("T")
_CHUNK = 64  # images per task: enough to hide the cost of a task, few enough to keep all threads busy


def worker_count(workers: int) -> int:
    """Threads to use; 0 means one per CPU core of this process."""
    return workers if workers > 0 else cores()


def map_indices(work: Callable[[int], T], n: int, workers: int) -> Iterator[T]:
    """work(0), ..., work(n-1), computed in threads."""
    pool = ThreadPoolExecutor(worker_count(workers), thread_name_prefix="decode")
    try:
        spans = [range(a, min(a + _CHUNK, n)) for a in range(0, n, _CHUNK)]
        for results in pool.map(lambda span: [work(i) for i in span], spans):
            yield from results
    finally:
        pool.shutdown(wait=True, cancel_futures=True)  # Ctrl-C does not wait for the rest of the data set


def by_reason(bad: Sequence[tuple[str, str]]) -> str:
    """The first ten (name, reason) in a line, names of the same reason together."""
    names: dict[str, list[str]] = {}
    for name, reason in bad[:10]:
        names.setdefault(reason, []).append(name)
    some = "; ".join(f"{', '.join(of_reason)}: {reason}" for reason, of_reason in names.items())
    return some + ("; ..." if len(bad) > 10 else "")


def content_hashes(images: ImageSet, workers: int = 0) -> NDArray[np.uint64]:
    """`content_hash` of each image (N,); files are read in threads and not decoded."""
    hashed = map_indices(lambda i: content_hash(images.source(i)), len(images), workers)
    return np.fromiter(hashed, np.uint64, len(images))


class Store:
    """The readable images of a set as arrays of `preprocess.dtype`, by position 0..M-1 among them.

    `indices` (M,) are their places in the set, `labels` (M,) or (M,K) theirs, `names` M strings; `bad` lists (name,
    reason) of those that could not be read. Sets larger than `cache_mib` (`nbytes` is what all arrays take) are decoded
    once at the start to find those, then again for every batch. Nothing here depends on `workers`. ValueError when the
    share of bad ones is above `max_bad_share`.
    """

    def __init__(
        self, images: ImageSet, preprocess: Preprocess, *, cache_mib: int, workers: int, max_bad_share: float = 1.0
    ) -> None:
        self.images, self.preprocess, self.workers = images, preprocess, workers
        self._shape, n = (*preprocess.image_size, preprocess.in_channels), len(images)
        self.nbytes = n * int(np.prod(self._shape)) * preprocess.dtype.itemsize
        self.in_memory = self.nbytes <= cache_mib << 20
        self._pixels: Pixels | None = np.empty((n, *self._shape), preprocess.dtype) if self.in_memory else None
        self._threads: ThreadPoolExecutor | None = None
        self.hashes = np.zeros(n, np.uint64)
        """`content_hash` of each image of the set (N,), the unreadable ones included."""
        reasons = dict(enumerate(map_indices(self._check, n, workers)))
        self.bad = [(images.names[i], reason) for i, reason in reasons.items() if reason is not None]
        if n and len(self.bad) / n > max_bad_share:
            raise ValueError(
                f"{len(self.bad)} of {n} images cannot be read, more than the share of {max_bad_share} allowed "
                f"(max_bad_share): {by_reason(self.bad)}"
            )
        self.indices = np.array([i for i, reason in reasons.items() if reason is None], dtype=np.int64)
        good = images.subset(self.indices) if self.bad else images
        self.labels, self.names = good.labels, good.names

    def _check(self, i: int) -> str | None:
        """Hash and decode image i of the set, into memory if there is room; the reason when it cannot be read."""
        source = self.images.source(i)
        self.hashes[i] = content_hash(source)
        try:
            pixels = self.preprocess.array(source)
        except ImageError as e:
            return e.reason
        if self._pixels is not None:
            self._pixels[i] = pixels
        return None

    def __len__(self) -> int:
        return len(self.indices)

    def array(self, positions: np.ndarray) -> Pixels:
        """(B, H, W, C) of the images at these positions.

        An image that has become unreadable since the start is replaced by the nearest readable one of its class, and
        is added to `bad`.
        """
        positions = np.asarray(positions)
        if self._pixels is not None:
            chosen: Pixels = self._pixels[self.indices[positions]]
            return chosen
        if self._threads is None:
            self._threads = ThreadPoolExecutor(worker_count(self.workers), thread_name_prefix="decode")
        out: Pixels = np.empty((len(positions), *self._shape), self.preprocess.dtype)
        for row, (pixels, failures) in enumerate(self._threads.map(self._decode, positions.tolist())):
            out[row] = pixels
            self.note_bad(failures)
        return out

    def note_bad(self, found: Iterable[tuple[str, str]]) -> None:
        """Add to `bad` what is not in it yet."""
        self.bad += [failure for failure in found if failure not in self.bad]

    def sample(self, n: int) -> Pixels:
        """(n, H, W, C): images evenly spaced over the store."""
        return self.array(np.linspace(0, len(self) - 1, n).astype(np.int64))

    def _decode(self, position: int) -> tuple[Pixels, list[tuple[str, str]]]:
        """The image at `position`, or its replacement, and what failed on the way."""

        def candidates() -> Iterator[int]:
            yield position
            others = (self.labels != self.labels[position]).reshape(len(self), -1).any(axis=1)
            distance = np.abs(np.arange(len(self)) - position) + len(self) * others
            yield from np.argsort(distance, kind="stable")[1:].tolist()

        failures: list[tuple[str, str]] = []
        for candidate in candidates():
            try:
                return self.preprocess.array(self.images.source(int(self.indices[candidate]))), failures
            except ImageError as e:
                failures.append((self.names[candidate], e.reason))
        raise ValueError(f"no readable image is left; the first of them: {failures[0][0]}: {failures[0][1]}")
