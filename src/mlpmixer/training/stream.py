"""Training images streamed from shards, in an order that is a function of (seed, step) for any number of processes.

An epoch puts the shards in an order drawn from (seed, epoch) and cuts the row of samples that they make into `lanes`.
Each lane reads its part from front to back and deals it in blocks, each block in an order of its own. A batch takes its
rows from the lanes side by side: lane 0 fills the first rows of every batch, and so on. A process that computes some
rows of a batch reads the lanes of those rows and no others.

N samples, B rows of a batch, L lanes.
"""

import functools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np

from mlpmixer.data.config import Data
from mlpmixer.data.images import ImageError, Pixels
from mlpmixer.data.labels import LabelEncoder
from mlpmixer.data.preprocess import Preprocess
from mlpmixer.data.store import by_reason, worker_count
from mlpmixer.data.streaming.datasets import fingerprint
from mlpmixer.data.streaming.shards import Sample, Shard, read_rows
from mlpmixer.download import Retry
from mlpmixer.training.batches import Batch, Indices, RowRange, loading_pool, prefetch, repeated, steps_per_epoch
from mlpmixer.training.recipe import Run

ENOUGH_TO_JUDGE = 256  # images decoded before max_bad_share is applied
READERS = 8  # lanes that read at the same time


@dataclass(frozen=True, kw_only=True)
class Order:
    """Which sample comes where. Samples are numbered in the order of the shards as given."""

    samples: tuple[int, ...]
    """The number of samples in each shard."""
    rows: int
    """B, rows of a batch."""
    lanes: int
    """L, the number of lanes."""
    block: int
    """Samples of a lane that are shuffled together."""
    seed: int

    @property
    def steps(self) -> int:
        """Whole batches in an epoch. The fewer than B samples that are left over are others in each epoch."""
        return steps_per_epoch(sum(self.samples), self.rows)

    def lane_rows(self, lane: int) -> range:
        """The rows of every batch that a lane fills."""
        return range(lane * self.rows // self.lanes, (lane + 1) * self.rows // self.lanes)

    def block_of(self, lane: int, epoch: int, block: int) -> tuple[range, Indices]:
        """(places of a block in the epoch's row of samples, in reading order; the order in which they are dealt)."""
        rows = self.lane_rows(lane)
        first, last = self.steps * rows.start, self.steps * rows.stop
        places = range(first + block * self.block, min(first + (block + 1) * self.block, last))
        return places, np.random.Generator(np.random.PCG64([self.seed, epoch, lane, block])).permutation(len(places))

    def blocks(self, lane: int, first_step: int, last_step: int) -> Iterator[tuple[int, range, Indices, int]]:
        """(epoch, places, order, how many of the order are dealt already) of the blocks of a lane from one step to
        another."""
        share = len(self.lane_rows(lane))
        done, end = (first_step - 1) * share, last_step * share
        while done < end:
            epoch, place = divmod(done, self.steps * share)
            places, order = self.block_of(lane, epoch, place // self.block)
            skip = place % self.block
            yield epoch, places, order, skip
            done += len(order) - skip

    def pieces(self, epoch: int, places: range) -> Iterator[tuple[int, int, int]]:
        """(shard, first row, row after the last) that make up these places of an epoch, one after the other."""
        shards, ends = _epoch(self.samples, self.seed, epoch)
        start = places.start
        at = int(np.searchsorted(ends, start, side="right"))
        while start < places.stop:
            shard, stop = int(shards[at]), min(int(ends[at]), places.stop)
            begin = int(ends[at]) - self.samples[shard]
            if stop > start:
                yield shard, start - begin, stop - begin
            start, at = stop, at + 1

    def numbers(self, step: int) -> Indices:
        """(B,) sample numbers of a step, without reading anything."""
        starts, row = np.cumsum([0, *self.samples]), []
        for lane in range(self.lanes):
            dealt: list[int] = []
            for epoch, places, order, skip in self.blocks(lane, step, step):
                numbers = np.concatenate([np.arange(a, b) + starts[s] for s, a, b in self.pieces(epoch, places)])
                dealt += numbers[order[skip:]].tolist()
            row += dealt[: len(self.lane_rows(lane))]
        return np.asarray(row, np.int64)


@functools.lru_cache(maxsize=4)
def _epoch(samples: tuple[int, ...], seed: int, epoch: int) -> tuple[Indices, Indices]:
    """(the shards in this epoch's order, the place after the last sample of each)."""
    shards = np.random.Generator(np.random.PCG64([seed, epoch])).permutation(len(samples))
    return shards, np.cumsum(np.asarray(samples)[shards])


class _Dealt(NamedTuple):
    """A sample at place `at` of the order of its block; if it is broken, one that follows there replaces it."""

    block: list[tuple[int, Sample]]
    order: Indices
    at: int


@dataclass(frozen=True)
class Sampled:
    """Some images of a stream in memory, by position as in a Store."""

    images: Pixels
    labels: Indices

    def __len__(self) -> int:
        return len(self.labels)

    def array(self, positions: Indices) -> Pixels:
        """(B, H, W, C) of the images at these positions."""
        chosen: Pixels = self.images[positions]
        return chosen


class Stream:
    """Training images in shards: like a Store, with batches in order instead of access by index.

    `bad` lists (name, reason) of the images that could not be read so far. Such an image is replaced by one that is
    dealt later from the same block, so that the order of all others stays. ShardError when a shard cannot be read;
    ValueError when the share of bad images among those decoded is above `max_bad_share`.

    Memory: at most data.buffer images as they are stored (half of them being dealt, half being read), and two decoded
    batches.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        labels: LabelEncoder,
        preprocess: Preprocess,
        data: Data,
        retry: Retry | None = None,
    ) -> None:
        self.shards, self.label_names, self.preprocess, self.data = tuple(shards), labels, preprocess, data
        self.retry = retry or Retry()
        self._bad: dict[tuple[str, str], None] = {}  # in the order they came
        self._decoded, self._failed = 0, 0

    def __len__(self) -> int:
        return sum(s.samples for s in self.shards)

    @property
    def bad(self) -> list[tuple[str, str]]:
        return list(self._bad)

    def note_bad(self, found: Iterable[tuple[str, str]]) -> None:
        """Add to `bad` what is not in it yet."""
        self._bad.update(dict.fromkeys(found))

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the shards, see `fingerprint`."""
        return fingerprint(self.shards)

    def order(self, run: Run) -> Order:
        """The order of the samples in a run. ValueError for a batch larger than the set."""
        rows = run.images_per_step // run.repeats
        if len(self) < rows:
            raise ValueError(f"{len(self)} training images do not fill a batch of {rows}; take a smaller --batch-size")
        lanes = self.data.lanes
        block = max(self.data.buffer // (2 * lanes), 1)
        return Order(samples=tuple(s.samples for s in self.shards), rows=rows, lanes=lanes, block=block, seed=run.seed)

    def batches(self, run: Run, first: int, last: int, rows: RowRange | None = None) -> Iterator[Batch]:
        """The batches of steps first..last; the next one is fetched while one is used.

        rows: the rows to fetch, all by default; only the lanes that fill them are read. The shares of several
        processes, one after the other, are the batch of one.
        """
        order = self.order(run)
        distinct = repeated(
            np.arange(order.rows), run.repeats
        )  # (B,) the place of each row's image among the images read
        wanted, pick = np.unique(distinct if rows is None else distinct[rows.indices], return_inverse=True)
        lanes = [lane for lane in range(order.lanes) if np.isin(order.lane_rows(lane), wanted).any()]
        is_wanted = np.isin(np.arange(order.rows), wanted).tolist()
        with ExitStack() as stack:

            def pool(threads: int, name: str) -> ThreadPoolExecutor:
                executor = loading_pool(threads, name)
                stack.callback(executor.shutdown, wait=True, cancel_futures=True)
                return executor

            readers, decoders = pool(min(len(lanes), READERS), "read"), pool(worker_count(self.data.workers), "decode")
            dealers = [(order.lane_rows(lane), self._deal(order, lane, first, last, readers)) for lane in lanes]

            def fetch(step: int) -> Batch:
                dealt = []
                for share, dealer in dealers:
                    dealt += [d for row, d in zip(share, islice(dealer, len(share)), strict=True) if is_wanted[row]]
                numbers, labels, images = self._arrays(list(decoders.map(self._decode, dealt)))
                return Batch(step, images[pick], labels[pick], numbers[pick])

            yield from prefetch(pool(1, "batch"), fetch, first, last)

    def sample(self, n: int) -> Pixels:
        """(n, H, W, C) images for statistics: the first ones of `data.lanes` equal parts of the row of all shards."""
        return self._sample(n).images.copy()

    def labelled_sample(self, n: int, preprocess: Preprocess) -> Sampled:
        """The images of `sample` with their labels, as another preprocessing makes them."""
        return Stream(self.shards, self.label_names, preprocess, self.data, self.retry)._sample(n)

    @functools.lru_cache(maxsize=1)  # noqa: B019 (a stream lives as long as its run)
    def _sample(self, n: int) -> Sampled:
        ends = np.cumsum([s.samples for s in self.shards])
        parts = min(self.data.lanes, n)
        spans = [(part * len(self) // parts, n * (part + 1) // parts - n * part // parts) for part in range(parts)]

        def read(span: tuple[int, int]) -> list[tuple[int, Sample]]:
            start, count = span
            found: list[tuple[int, Sample]] = []
            while len(found) < count:
                number = start + len(found)
                at = int(np.searchsorted(ends, number, side="right"))
                row = number - int(ends[at]) + self.shards[at].samples
                samples = read_rows(
                    self.shards[at], row, min(row + count - len(found), self.shards[at].samples), self.retry
                )
                found += enumerate(samples, number)
            return found

        with ThreadPoolExecutor(READERS, thread_name_prefix="read") as readers:
            blocks = list(readers.map(read, spans))
        dealt = [_Dealt(block, np.arange(len(block)), at) for block in blocks for at in range(len(block))]
        with ThreadPoolExecutor(worker_count(self.data.workers), thread_name_prefix="decode") as decoders:
            _, labels, images = self._arrays(list(decoders.map(self._decode, dealt)))
        return Sampled(images, labels)

    def _deal(self, order: Order, lane: int, first: int, last: int, readers: ThreadPoolExecutor) -> Iterator[_Dealt]:
        """The samples of a lane as they are dealt; while a block is dealt the next one is read."""
        share = len(order.lane_rows(lane))
        reading = self._read(order, lane, first, last)
        coming: Future[tuple[list[tuple[int, Sample]], Indices, int] | None] = readers.submit(next, reading, None)
        left = (last - first + 1) * share
        while (block := coming.result()) is not None:
            coming = readers.submit(next, reading, None)
            samples, dealing, skip = block
            for at in range(skip, min(len(dealing), skip + left)):
                yield _Dealt(samples, dealing, at)
            left -= len(dealing) - skip

    def _read(
        self, order: Order, lane: int, first: int, last: int
    ) -> Iterator[tuple[list[tuple[int, Sample]], Indices, int]]:
        """The blocks of a lane, read from the shards. A shard that continues in the next block stays open."""
        starts = np.cumsum([0, *order.samples])
        open_at: tuple[int, int, int] | None = None  # epoch, shard, next row
        rows: Iterator[Sample] = iter(())
        for epoch, places, dealing, skip in order.blocks(lane, first, last):
            samples: list[tuple[int, Sample]] = []
            for shard, begin, end in order.pieces(epoch, places):
                if open_at != (epoch, shard, begin):
                    rows = read_rows(self.shards[shard], begin, order.samples[shard], self.retry)
                samples += zip(range(int(starts[shard]) + begin, int(starts[shard]) + end), rows, strict=False)
                open_at = (epoch, shard, end)
            yield samples, dealing, skip

    def _decode(self, dealt: _Dealt) -> tuple[int, int, Pixels, list[tuple[str, str]]]:
        """(number, label, pixels) of a sample or of the next readable one of its block, and what failed on the way."""
        failures: list[tuple[str, str]] = []
        for k in range(len(dealt.order)):
            number, sample = dealt.block[int(dealt.order[(dealt.at + k) % len(dealt.order)])]
            try:
                label = self.label_names.encode(sample.label, sample.name)
                if label < 0:
                    raise ImageError("no label")
                return number, label, self.preprocess.array(sample.content), failures
            except ImageError as e:
                failures.append((sample.name, e.reason))
        raise ValueError(
            f"none of {len(failures)} images in a row can be read; the first of them: {failures[0][0]}: "
            f"{failures[0][1]}"
        )

    def _arrays(self, decoded: list[tuple[int, int, Pixels, list[tuple[str, str]]]]) -> tuple[Indices, Indices, Pixels]:
        numbers, labels, images, failures = zip(*decoded, strict=True)
        self._decoded += len(decoded)
        for failed in failures:
            self._failed += bool(failed)
            self.note_bad(failed)
        if self._failed > self.data.max_bad_share * self._decoded and self._decoded >= min(ENOUGH_TO_JUDGE, len(self)):
            raise ValueError(
                f"{self._failed} of {self._decoded} images cannot be read, more than the share of "
                f"{self.data.max_bad_share} allowed "
                f"(max_bad_share): {by_reason(self.bad)}"
            )
        return np.asarray(numbers, np.int64), np.asarray(labels, np.int64), np.stack(images)
