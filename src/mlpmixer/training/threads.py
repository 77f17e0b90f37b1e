"""The threads that a CPU computes a run on: how many, by measuring, and how they wait for each other.

Where a batch is not cut into parts (parts.py), OpenMP's threads meet after every operation. A thread that waits for
another in a loop keeps a core from whoever has work, and the other may be the one without a core: beside other programs
a small network then falls to a fraction of its share. Threads that sleep pass the core on, but wake up late,
which costs an idle machine more than the loop.
"""

import ctypes
import re
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from itertools import repeat
from pathlib import Path

import torch

from mlpmixer.download import Report
from mlpmixer.hardware import cores
from mlpmixer.training.batch_size import SLOW_S, seconds_per_step
from mlpmixer.training.distributed import ProcessGroup
from mlpmixer.training.inputs import batches
from mlpmixer.training.recipe import variant
from mlpmixer.training.start import Start
from mlpmixer.training.step import TrainingStep

GAIN = 1.15  # times as fast makes fewer threads worth it: what keeps the cores busy now may end soon
SPEND_S = 0.4  # on the speed of one number, twice
LONG_S = 10.0  # a step beside which what the first one prepares is little
LOOK_EVERY_S = 0.25
BUSY, IDLE = 0.05, 0.01  # share of the time that this thread waited for a core


@contextmanager
def on_threads(threads: int) -> Iterator[None]:
    """A context in which torch uses so many threads (0: as before), and after which it uses as many as before."""
    before = torch.get_num_threads()
    if threads:  # also where it is the previous number: MKL then takes it, and decides no more by itself
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


def chosen_threads(step: TrainingStep, start: Start | None, report: Report) -> int:
    """The number of threads for the run of `step`, which is reported where it was measured: torch's, or its half,
    quarter, ... down to 1 where that is faster by GAIN.

    Steps like most of the run's, which train the whole network at its full size, are timed on a copy with one batch,
    each number twice, or once where a step takes LONG_S.

    0 where it is not the run's: on a GPU, and where several processes share the cores. With torch.compile, which would
    compile anew for each number, it is torch's.
    """
    most, run = torch.get_num_threads(), step.recipe.run
    if step.device.type != "cpu" or step.group.size > 1:
        return 0
    if most == 1 or run.compile:
        return most
    whole = variant(step.recipe, optim={"head_steps": 0})
    trial = TrainingStep(whole, step.stores, step.device, step.dtype, start, step.teacher, ProcessGroup())
    trial.resize(whole.model.image_size)
    (batch,) = batches(trial.images, run, 1, 1, trial.rows)
    best_s: dict[int, float] = {}
    with on_threads(most), closing(Waiting()) as waiting:
        for _ in range(2):
            threads = most
            while threads:
                torch.set_num_threads(threads)
                seconds = seconds_per_step(trial, repeat(batch), SPEND_S, waiting.look)
                if not best_s and seconds > SLOW_S:
                    report(
                        {"kind": "doing", "what": f"measuring how many threads are fast: a step takes {seconds:.0f} s"}
                    )
                best_s[threads] = min(seconds, best_s.get(threads, seconds))
                slower = best_s[threads] > GAIN * min(best_s.values())
                threads = 0 if slower else threads // 2
            if best_s[most] > LONG_S:
                break
    chosen = choose(best_s)
    speeds = ", ".join(f"{n}: {speed(run.images_per_step / seconds)}" for n, seconds in sorted(best_s.items()))
    report({"kind": "doing", "what": f"{in_words(chosen)}, by measuring (images/s on {speeds})"})
    return chosen


def in_words(threads: int) -> str:
    return f"{threads} thread{'s' * (threads > 1)}"


def speed(images_per_s: float) -> str:
    return f"{images_per_s:,.{0 if images_per_s >= 10 else 1}f}"


def crowded(threads: int, resumed: bool) -> str:
    """A sentence where a run takes more threads than this process has cores; empty where it does not."""
    if threads <= (there := cores()):
        return ""
    kept = f"the run keeps the {in_words(threads)} that it began with, on which its last bits depend" if resumed else ""
    few = f"{there} core{'s' * (there > 1)}"
    return f"{kept or in_words(threads)}, and there {'is' if there == 1 else 'are'} {few}: they wait for each other"


def choose(seconds: dict[int, float]) -> int:
    """The number of threads, of these with the seconds of a step: the largest unless a smaller one is worth it."""
    chosen = max(seconds)
    for threads in sorted(seconds, reverse=True):
        if seconds[threads] * GAIN < seconds[chosen]:
            chosen = threads
    return chosen


class Waiting:
    """How the threads of GNU's OpenMP, which is torch's on Linux, wait: in a loop, or asleep while other programs want
    the cores. Results do not depend on it. Nothing is done elsewhere.

    The library cannot be told, but its threads hardly loop while it manages more of them than the process has cores:
    so a team that has nothing to do is kept as long as they are to sleep.
    """

    def __init__(self) -> None:
        self.looked_s, self.waited_s = time.monotonic(), waited_s()
        self.over: threading.Event | None = None
        """Set to end the idle team; None while there is none."""

    def look(self) -> None:
        """Between two steps: choose by how long this thread has waited for a core since the last look."""
        now = time.monotonic()
        if (passed := now - self.looked_s) < LOOK_EVERY_S:
            return
        waited = waited_s()
        share, self.looked_s, self.waited_s = (waited - self.waited_s) / passed, now, waited
        if share > BUSY and self.over is None and torch.get_num_threads() > 1:
            self.over = idle_team()
        elif share < IDLE:
            self.close()

    def close(self) -> None:
        if self.over is not None:
            self.over.set()
            self.over = None


def waited_s() -> float:
    """Seconds that this thread was ready to run, and had no core; 0 where the system does not tell."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    return 0.0


def openmp_libraries(mapped: str) -> set[str]:
    """The files of GNU's OpenMP, which torch may bring along, in /proc/self/maps; a path may have spaces."""
    paths = {path.removesuffix(" (deleted)") for line in mapped.splitlines() for path in line.split(maxsplit=5)[5:]}
    return {path for path in paths if re.fullmatch(r"libgomp.*\.so.*", Path(path).name)}


def idle_team() -> threading.Event:
    """A thread with a team of OpenMP's that has one thread more than there are cores, and sleeps until the event."""
    ready, over = threading.Event(), threading.Event()

    def keep() -> None:
        with suppress(OSError, AttributeError):
            for path in openmp_libraries(Path("/proc/self/maps").read_text()):
                openmp = ctypes.CDLL(path)
                openmp.GOMP_parallel(openmp.omp_get_thread_num, None, cores() + 1, 0)
        ready.set()
        over.wait()

    threading.Thread(target=keep, daemon=True, name="idle").start()
    ready.wait()
    return over
