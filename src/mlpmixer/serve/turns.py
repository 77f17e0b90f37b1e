"""Decoder threads that serve requests in turn, by what their images cost: a large request does not delay small ones."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from heapq import heappop, heappush
from itertools import count
from typing import Any, TypeVar

T = TypeVar("T")
LARGE_PX = 8_000_000  # a larger job takes up to seconds: one thread is always left for the others


class Turns:
    """Threads for the jobs of several requests. Belongs to one event loop.

    Weighted fair queueing (Demers, Keshav and Shenker 1989): the next job is the one that would be done first if the
    threads were shared equally among the requests. `_now` counts the pixels that each of them would have got by then.
    """

    def __init__(self, threads: int) -> None:
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="decoder")
        self._free = {False: threads, True: max(threads - 1, 1)}  # threads that a small, a large job may take
        self._waiting: dict[bool, list[tuple[float, int, int, asyncio.Future[None]]]] = {False: [], True: []}
        self._running, self._now, self._order = 0, 0.0, count()

    async def wait(self, due: float, cost_px: int) -> None:
        """Until a thread is free for this job; `release` gives it back."""
        ready = asyncio.get_running_loop().create_future()
        heappush(self._waiting[cost_px > LARGE_PX], (due, next(self._order), cost_px, ready))
        self._go_on()
        try:
            await ready
        except asyncio.CancelledError:
            if ready.done() and not ready.cancelled():  # both at once
                self.release(cost_px)
            raise

    def release(self, cost_px: int) -> None:
        self._take(cost_px, -1)
        self._go_on()

    def _take(self, cost_px: int, threads: int) -> None:
        self._running += threads
        self._free[False] -= threads
        self._free[True] -= threads * (cost_px > LARGE_PX)

    def _go_on(self) -> None:
        """Starts whatever may start."""
        while self._free[False]:
            queues = [queue for large, queue in self._waiting.items() if queue and self._free[large]]
            if not queues:
                return
            _, _, cost_px, ready = heappop(min(queues))
            if not ready.done():  # nobody has given up
                self._take(cost_px, 1)
                self._now += cost_px / (self._running + sum(map(len, self._waiting.values())))
                ready.set_result(None)


class Turn:
    """The jobs of one request, one after the other."""

    def __init__(self, turns: Turns) -> None:
        self.turns, self._due = turns, 0.0

    async def run(self, cost_px: int, job: Callable[..., T], *args: Any) -> T:
        """job(*args) in a thread, when it is this request's turn. Cancelling before that drops the job."""
        turns, loop = self.turns, asyncio.get_running_loop()
        self._due = max(self._due, turns._now) + cost_px
        await turns.wait(self._due, cost_px)

        def done(_: Future[T]) -> None:  # whether or not anybody still waits for it
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(loop.call_soon, turns.release, cost_px)  # behind this request's next job

        work = turns.pool.submit(job, *args)
        answer = asyncio.wrap_future(work)
        work.add_done_callback(done)
        return await answer
