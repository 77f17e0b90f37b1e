"""A training beside other programs: python benchmarks/busy.py

k processes of one thread each keep two cores busy, and a training runs beside them at the same priority. Its fair
share is 2 / (2 + k) of its rate on the idle machine; `of_fair` says how much of it is there. A row is the median of the
rounds, which take turns. Settings: "measured" is the default, in which the run chooses its threads at its start, cuts
batches that are worth it into a part for each thread, and lets threads that share operations sleep beside others; "2
sharing operations" is what it replaces, two threads that wait for each other in the bounded loop of libgomp; "1" is one
thread. `share` is the part of a core that each of the k processes had: on a machine that is busy
otherwise, `images_per_share` (images/s over it) still compares the settings of one k.
Writes benchmarks/busy_<torch>_<cpu>.csv.
"""

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from table import model_and_batch, path_of, write

SETTINGS = {"measured": (0, True), "2 sharing operations": (2, False), "1": (1, True)}
CORES = 2
FIRST = 5  # step from which a training is timed


def cpu_s(pid: int) -> float:
    """Seconds of a core that a process of one thread has had."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def work(model: str, batch: int, threads: int, new: bool, seconds: float, beside: list[int]) -> None:
    """Train for so many seconds from step FIRST on; print images/s, the threads that were chosen, and the share of a
    core that each of the processes beside had meanwhile."""
    import torch

    from mlpmixer.models.architecture import configured
    from mlpmixer.training import step
    from mlpmixer.training import threads as waiting
    from mlpmixer.training.loop import Interrupted
    from mlpmixer.training.recipe import variant
    from mlpmixer.training.recipes import digits
    from mlpmixer.training.run import train

    if not new:
        waiting.Waiting.look = lambda self: None  # type: ignore[method-assign]
        step.can_split = lambda *_: False
    now: tuple[float, float] = (0.0, 0.0)
    begin, used, counted = now, 0, 0

    def report(event: dict[str, Any]) -> None:
        nonlocal begin, now, used, counted
        if event["kind"] == "step":
            now = time.perf_counter(), sum(map(cpu_s, beside))
            used, counted = torch.get_num_threads(), event["step"] - FIRST
            if counted == 0:
                begin = now
            if counted > 0 and now[0] - begin[0] > seconds:
                os.kill(os.getpid(), signal.SIGTERM)  # as Ctrl-C, after this step

    recipe = variant(
        digits(),
        model=configured(model, in_channels=1, num_classes=10),
        run={"threads": threads, "batch_size": batch, "steps": 10**6, "log_every": 1, "eval_every": 10**5},
    )
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(Interrupted):
        train(recipe, out=Path(folder) / "run", report=report)
    passed, had = now[0] - begin[0], now[1] - begin[1]
    print(json.dumps([batch * counted / passed, used, had / passed / max(len(beside), 1)]))


def measured(words: list[str], k: int) -> tuple[float, int, float]:
    """images/s, threads, and the share of a core of each of the k processes beside."""
    beside = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(k)]
    try:
        words = [*words, *(str(process.pid) for process in beside)]
        env = {"GOMP_SPINCOUNT": "10000"} | os.environ  # as `mlpmixer` sets it
        done = subprocess.run([sys.executable, __file__, "--work", *words], capture_output=True, text=True, env=env)
        if done.returncode:
            raise SystemExit(done.stderr)
    finally:
        for process in beside:
            process.kill()
            process.wait()
    images_per_s, threads, share = json.loads(done.stdout.splitlines()[-1])
    return images_per_s, threads, share


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=model_and_batch, default=("Nano/4", 128), metavar="NAME:BATCH")
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 2, 6], help="processes beside the training")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=15, help="of a training")
    parser.add_argument("--work", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        model, batch, threads, new, seconds, *beside = args.work
        work(model, int(batch), int(threads), new == "True", float(seconds), [*map(int, beside)])
        return
    import torch

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    model, batch = args.model
    found: dict[tuple[int, str], list[tuple[float, int, float]]] = {}
    for _ in range(args.rounds):
        for k in args.busy:
            for setting, (threads, new) in SETTINGS.items():
                one = measured([model, str(batch), str(threads), str(new), str(args.seconds)], k)
                found.setdefault((k, setting), []).append(one)
                print(k, setting, *one, flush=True)
    rate = {key: statistics.median(images for images, _, _ in values) for key, values in found.items()}
    idle = max((r for (k, _), r in rate.items() if k == 0), default=None)
    rows = [
        {
            "model": model,
            "batch": batch,
            "busy": k,
            "setting": setting,
            "threads": "/".join(str(threads) for threads in sorted({threads for _, threads, _ in values})),
            "images_per_s": round(rate[k, setting], 1),
            "of_fair": round(rate[k, setting] / idle * (CORES + k) / CORES, 3) if idle else "",
            "share": round(statistics.median(share for _, _, share in values), 3),
            "images_per_share": round(statistics.median(i / share for i, _, share in values)) if k else "",
        }
        for (k, setting), values in found.items()
    ]
    torch.set_num_threads(CORES)  # for the name of the file
    write(path_of("busy", torch.device("cpu")), rows)


if __name__ == "__main__":
    main()
