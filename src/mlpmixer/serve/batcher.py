"""Many requests, one engine: images that wait while the engine is busy go through it together.

A batch never waits for more images to come, so an idle service answers at once and a busy one batches by itself. It has as many images as
the engine computes in a given time: what a small network wins by a large batch, a large network does not, and others would wait for it. Of
several requests the one that waits longest comes first, and each gives one image in turn, so that a large request holds up no small one.
An engine of several streams computes a batch in each; those that are free share what waits.
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
"""Told of each batch, by the engine's thread: its kind, its images, its seconds."""


SMOOTHING = 0.8  # of what is known of an image's time, when another batch tells


class QueueFull(Exception):
    """There is no place for so many images now."""


class QueueClosed(Exception):
    """The service is going down."""


class _Request:
    """Images of one kind that get their answers together."""

    def __init__(self, kind: str, images: Sequence[Pixels]) -> None:
        self.kind = kind
        self.future: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self.answers: list[Any] = [None] * len(images)
        self.waiting = deque(enumerate(images))
        self.missing = len(images)


Job = tuple[_Request, int, Pixels]


class Batcher:
    """Of one event loop, in which it is made.

    compute: the engine, by kind of question; as many threads call it as it has streams. batch_s: seconds that a batch should take at most,
    by what the ones before took for an image. min_batch: images that take no longer than one. capacity: images that may be inside, from
    `admit` to the answer.
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
        self._starts: dict[int, float] = {}  # of the batches that are computed, by stream
        self._closed = False
        self._threads = [threading.Thread(target=self._work, args=(i,), name=f"engine-{i}", daemon=True) for i in range(streams)]
        for thread in self._threads:
            thread.start()

    @contextmanager
    def admit(self, count: int) -> Iterator[None]:
        """Keeps room for `count` images while the block runs. Raises QueueFull or QueueClosed. For the event loop's thread alone."""
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
        """The answers to `images`, in their order; whatever the engine raises for one of them.

        Cancelling it takes out what has not begun. Raises QueueClosed.
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
                if request in self._queue:  # nobody waits for the rest
                    self._queue.remove(request)

    @property
    def alive(self) -> bool:
        """Whether all its threads are there."""
        return all(thread.is_alive() for thread in self._threads)

    @property
    def busy_since(self) -> float | None:
        """time.monotonic() at the start of the batch that the engine works on, the oldest of several."""
        with self._changed:
            return min(self._starts.values(), default=None)

    def close(self, timeout_s: float) -> bool:
        """Lets nothing more in, answers what is inside, and ends the threads. Whether that was done in time."""
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
            except Exception as e:  # it belongs to those who asked
                answers = e
            took = time.monotonic() - start
            with self._changed:
                del self._starts[stream]
                each = took / len(batch)
                self._image_s[kind] = each + SMOOTHING * (self._image_s.get(kind, each) - each)
            with suppress(RuntimeError):  # a closed loop: nobody is left to be told
                self._loop.call_soon_threadsafe(_deliver, [(request, i) for request, i, _ in batch], answers)
            self.observe(kind, len(batch), took)

    def _next(self, stream: int) -> list[Job]:
        """The next images of one kind: that of the request which waits longest. Waits for some; empty when all is done.

        Of few that wait it leaves their share to the other streams that are free.
        """
        with self._changed:
            while not self._queue:
                if self._closed:
                    return []
                self._changed.wait()
            kind, batch = self._queue[0].kind, list[Job]()
            share = math.ceil(sum(len(r.waiting) for r in self._queue if r.kind == kind) / (len(self._threads) - len(self._starts)))
            self._starts[stream] = time.monotonic()
            passed: deque[_Request] = deque()  # of another kind: they come first in the next batch
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
        """Whether a batch may have so many images."""
        in_time = count * self._image_s.get(kind, math.inf) <= self.batch_s
        return count <= self.min_batch or (count <= self.max_batch and in_time)


def _deliver(jobs: list[tuple[_Request, int]], answers: Answers | Exception) -> None:
    """In the event loop's thread: each answer to the request it belongs to, which is done with its last one."""
    for position, (request, i) in enumerate(jobs):
        if request.future.done():  # an error before, or nobody waits
            continue
        if isinstance(answers, Exception):
            request.future.set_exception(answers)
            continue
        request.answers[i] = answers[position]
        request.missing -= 1
        if not request.missing:
            request.future.set_result(request.answers)
