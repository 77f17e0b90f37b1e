"""Dynamic batching: images that wait while the engine is busy are computed together.

A batch never waits for more images, so an idle service responds at once and a busy one batches by itself. A batch has
as many images as the engine computes in a target time: small networks gain from large batches, large networks do not
and would only make others wait. The longest-waiting request comes first and requests contribute one image in turn, so
that a large request does not delay small ones. With several streams, each computes its own batch, and idle streams
share the waiting images.
"""

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpmixer.data.images import Pixels

Answers = Sequence[Any] | NDArray[Any]
Compute = Callable[[Pixels], Answers]
"""Images (B,H,W,C), stacked -> B answers."""
Observe = Callable[[str, int, float], None]
"""Called from the engine's thread after each batch: kind, number of images, seconds."""


SMOOTHING = 0.8  # weight of the previous estimate of the time per image


class QueueFull(Exception):
    """The queue has no room for the images."""


class QueueClosed(Exception):
    """The service is shutting down."""


class _Request:
    """Images of one kind whose answers are returned together."""

    def __init__(self, kind: str, images: Sequence[Pixels]) -> None:
        self.kind = kind
        self.future: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self.answers: list[Any] = [None] * len(images)
        self.waiting = deque(enumerate(images))
        self.missing = len(images)


Job = tuple[_Request, int, Pixels]


class Batcher:
    """Queues images and computes them in batches. Belongs to the event loop in which it is created.

    compute: functions of the engine by kind of request, called from one thread per stream.
    batch_s: target time for a batch, estimated from previous batches.
    min_batch: number of images that take no longer than one.
    capacity: maximum images between `admit` and the answer.
    """

    def __init__(
        self,
        compute: Mapping[str, Compute],
        *,
        streams: int = 1,
        batch_s: float,
        min_batch: int = 1,
        max_batch: int,
        capacity: int,
        observe: Observe,
    ) -> None:
        self.compute, self.capacity, self.observe = compute, capacity, observe
        self.batch_s, self.min_batch, self.max_batch = batch_s, min_batch, max_batch
        self.admitted = 0
        self._image_s: dict[str, float] = {}  # by kind
        self._loop = asyncio.get_running_loop()
        self._queue: deque[_Request] = deque()
        self._changed = threading.Condition()
        self._starts: dict[int, float] = {}  # start times of running batches, by stream
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, args=(i,), name=f"engine-{i}", daemon=True) for i in range(streams)
        ]
        for thread in self._threads:
            thread.start()

    @contextmanager
    def admit(self, count: int) -> Iterator[None]:
        """Reserves room for `count` images while the block runs. Raises QueueFull or QueueClosed.

        Call it from the event loop's thread.
        """
        if self._closed:
            raise QueueClosed
        if self.admitted + count > self.capacity:
            raise QueueFull
        self.admitted += count
        try:
            yield
        finally:
            self.admitted -= count

    async def ask(self, kind: str, images: Sequence[Pixels]) -> list[Any]:
        """Answers for `images`, in order. Raises what the engine raises, or QueueClosed.

        Cancelling removes the images that have not started.
        """
        request = _Request(kind, images)
        with self._changed:
            if self._closed:
                raise QueueClosed
            self._queue.append(request)
            self._changed.notify(len(images))
        try:
            return await request.future
        finally:
            with self._changed:
                if request in self._queue:  # cancelled: nobody waits for the rest
                    self._queue.remove(request)

    @property
    def alive(self) -> bool:
        """Whether all engine threads are running."""
        return all(thread.is_alive() for thread in self._threads)

    @property
    def busy_since(self) -> float | None:
        """Start of the oldest running batch in time.monotonic(), None when idle."""
        with self._changed:
            return min(self._starts.values(), default=None)

    def close(self, timeout_s: float) -> bool:
        """Accepts no more images, computes the queued ones and ends the threads. Returns whether all ended in time."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        until = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(until - time.monotonic(), 0))
        return not any(thread.is_alive() for thread in self._threads)

    def _work(self, stream: int) -> None:
        while batch := self._next(stream):
            kind, start = batch[0][0].kind, self._starts[stream]
            answers: Answers | Exception
            try:
                answers = self.compute[kind](np.stack([image for _, _, image in batch]))
            except Exception as e:  # raised in the requests of this batch
                answers = e
            took = time.monotonic() - start
            with self._changed:
                del self._starts[stream]
                each = took / len(batch)
                self._image_s[kind] = each + SMOOTHING * (self._image_s.get(kind, each) - each)
            with suppress(RuntimeError):  # the loop is closed: nobody is waiting
                self._loop.call_soon_threadsafe(_deliver, [(request, i) for request, i, _ in batch], answers)
            self.observe(kind, len(batch), took)

    def _next(self, stream: int) -> list[Job]:
        """The next batch, of the kind of the longest-waiting request. Empty when closed and done.

        Blocks until images wait. Leaves idle streams their share when few images wait.
        """
        with self._changed:
            while not self._queue:
                if self._closed:
                    return []
                self._changed.wait()
            kind, batch = self._queue[0].kind, list[Job]()
            share = math.ceil(
                sum(len(r.waiting) for r in self._queue if r.kind == kind) / (len(self._threads) - len(self._starts))
            )
            self._starts[stream] = time.monotonic()
            passed: deque[_Request] = deque()  # of another kind: first in line for the next batch
            while self._queue and len(batch) < share and self._fits(kind, len(batch) + 1):
                request = self._queue.popleft()
                if request.kind != kind:
                    passed.append(request)
                    continue
                batch.append((request, *request.waiting.popleft()))
                if request.waiting:
                    self._queue.append(request)
            self._queue = passed + self._queue
            return batch

    def _fits(self, kind: str, count: int) -> bool:
        """Whether `count` images fit in a batch."""
        in_time = count * self._image_s.get(kind, math.inf) <= self.batch_s
        return count <= self.min_batch or (count <= self.max_batch and in_time)


def _deliver(jobs: list[tuple[_Request, int]], answers: Answers | Exception) -> None:
    """Hands each answer to its request, in the event loop's thread. A request is done with its last answer."""
    for position, (request, i) in enumerate(jobs):
        if request.future.done():  # failed before, or cancelled
            continue
        if isinstance(answers, Exception):
            request.future.set_exception(answers)
            continue
        request.answers[i] = answers[position]
        request.missing -= 1
        if not request.missing:
            request.future.set_result(request.answers)
