"""Many requests, one engine: images that wait while the engine is busy go through it together.

A batch never waits for more images to come, so an idle service answers at once and a busy one batches by itself. Of several requests
the one that waits longest comes first, and each gives one image in turn, so that a large request holds up no small one.
"""

import asyncio
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


class Full(Exception):
    """There is no place for so many images now."""


class Closed(Exception):
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

    compute: the engine, by kind of question. places: images that may be inside, from `admit` to the answer.
    """

    def __init__(self, compute: Mapping[str, Compute], *, max_batch: int, places: int, observe: Observe) -> None:
        self.compute, self.max_batch, self.places, self.observe = compute, max_batch, places, observe
        self.admitted = 0
        self.busy_since: float | None = None
        """time.monotonic() at the start of the batch that the engine works on."""
        self._loop = asyncio.get_running_loop()
        self._queue: deque[_Request] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    @contextmanager
    def admit(self, count: int) -> Iterator[None]:
        """Keeps `count` places while the block runs. Raises Full, or Closed. For the event loop's thread alone."""
        if self._closed:
            raise Closed
        if self.admitted + count > self.places:
            raise Full
        self.admitted += count
        try:
            yield
        finally:
            self.admitted -= count

    async def ask(self, kind: str, images: Sequence[Pixels]) -> list[Any]:
        """The answers to `images`, in their order; whatever the engine raises for one of them.

        Cancelling it takes out what has not begun. Raises Closed.
        """
        request = _Request(kind, images)
        with self._changed:
            if self._closed:
                raise Closed
            self._queue.append(request)
            self._changed.notify()
        try:
            return await request.future
        finally:
            with self._changed:
                if request in self._queue:  # nobody waits for the rest
                    self._queue.remove(request)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def close(self, timeout_s: float) -> bool:
        """Lets nothing more in, answers what is inside, and ends the thread. Whether that was done in time."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while batch := self._next():
            kind, start = batch[0][0].kind, time.monotonic()
            self.busy_since = start
            answers: Answers | Exception
            try:
                answers = self.compute[kind](np.stack([image for _, _, image in batch]))
            except Exception as e:  # it belongs to those who asked
                answers = e
            self.busy_since = None
            with suppress(RuntimeError):  # a closed loop: nobody is left to be told
                self._loop.call_soon_threadsafe(_deliver, [(request, i) for request, i, _ in batch], answers)
            self.observe(kind, len(batch), time.monotonic() - start)

    def _next(self) -> list[Job]:
        """Up to max_batch images of one kind: that of the request which waits longest. Waits for some; empty when all is done."""
        with self._changed:
            while not self._queue:
                if self._closed:
                    return []
                self._changed.wait()
            kind, batch = self._queue[0].kind, list[Job]()
            passed: deque[_Request] = deque()  # of another kind: they come first in the next batch
            while self._queue and len(batch) < self.max_batch:
                request = self._queue.popleft()
                if request.kind != kind:
                    passed.append(request)
                    continue
                batch.append((request, *request.waiting.popleft()))
                if request.waiting:
                    self._queue.append(request)
            self._queue = passed + self._queue
            return batch


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
