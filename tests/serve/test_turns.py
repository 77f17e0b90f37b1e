"""Decoder threads: who comes next, and what a large job leaves to others."""

import asyncio
import threading
from collections.abc import Awaitable, Callable

from mlpmixer.serve.turns import LARGE_PX, Turn, Turns


def test_small_requests_go_before_the_rest_of_large_ones() -> None:
    done: list[str] = []

    async def images(turns: Turns, name: str, count: int, cost_px: int) -> None:
        turn = Turn(turns)
        for i in range(count):
            await turn.run(cost_px, done.append, f"{name}{i}")

    async def run() -> None:
        turns = Turns(1)
        gate = threading.Event()
        first = asyncio.create_task(Turn(turns).run(1, gate.wait, 10))
        await asyncio.sleep(0.01)
        tasks = [asyncio.create_task(images(turns, name, 3, 1000)) for name in "ab"]
        await asyncio.sleep(0.01)
        tasks.append(asyncio.create_task(images(turns, "small", 2, 10)))
        await asyncio.sleep(0.01)
        gate.set()
        await asyncio.gather(first, *tasks)

    asyncio.run(run())
    assert done == ["small0", "small1", "a0", "b0", "a1", "b1", "a2", "b2"]


def test_large_request_is_not_passed_for_ever() -> None:
    done: list[str] = []

    async def run() -> None:
        turns = Turns(1)

        async def small() -> None:
            while "large" not in done:
                await Turn(turns).run(10, done.append, "small")

        await asyncio.gather(small(), small(), Turn(turns).run(100, done.append, "large"))

    asyncio.run(run())
    assert 10 <= done.index("large") <= 40


def with_threads(threads: int, check: Callable[[Turns, threading.Event], Awaitable[None]]) -> None:
    async def run() -> None:
        gate = threading.Event()
        try:
            async with asyncio.timeout(10):
                await check(Turns(threads), gate)
        finally:
            gate.set()

    asyncio.run(run())


def test_large_jobs_leave_a_thread_to_small_ones() -> None:
    async def check(turns: Turns, gate: threading.Event) -> None:
        large = [asyncio.create_task(Turn(turns).run(LARGE_PX + 1, gate.wait, 10)) for _ in range(3)]
        await asyncio.sleep(0.01)
        assert await Turn(turns).run(LARGE_PX, lambda: "done") == "done"
        gate.set()
        assert await asyncio.gather(*large) == [True] * 3

    with_threads(2, check)


def test_one_thread_does_large_jobs_too() -> None:
    async def check(turns: Turns, gate: threading.Event) -> None:
        assert await Turn(turns).run(LARGE_PX + 1, lambda: "done") == "done"

    with_threads(1, check)


def test_cancelled_job_is_dropped_and_a_running_one_keeps_its_thread() -> None:
    async def check(turns: Turns, gate: threading.Event) -> None:
        ran: list[int] = []
        running = asyncio.create_task(Turn(turns).run(1, gate.wait, 10))
        waiting = asyncio.create_task(Turn(turns).run(1, ran.append, 1))
        last = asyncio.create_task(Turn(turns).run(1, ran.append, 2))
        await asyncio.sleep(0.01)
        running.cancel()
        waiting.cancel()
        await asyncio.sleep(0.05)
        assert not ran and not last.done()  # the thread cannot be interrupted
        gate.set()
        await last
        assert ran == [2]
        assert await asyncio.gather(*(Turn(turns).run(1, int) for _ in range(5))) == [0] * 5

    with_threads(1, check)
