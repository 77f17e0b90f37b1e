"""What checkpointing saves and costs: peak memory and speed of training with and without it: python
benchmarks/memory.py

Every measurement is a process of its own, since a process keeps its peak, and takes turns with its counterpart.
`start_mib` is the process before its first step, torch, weights and data included; what a step adds is the difference.
Steps are those of `train` on noise, in the precision that `train` chooses. On a busy machine take one thread
(OMP_NUM_THREADS=1) and --cpu-time. Writes benchmarks/memory_<torch>_<device>.csv.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CASES = ["Nano/4:128", "S/16:16", "S/16:32"]


def measure(case: str, checkpointing: bool, steps: int, device_name: str, clock: Callable[[], float]) -> dict[str, Any]:
    """Time and memory of some steps in this process."""
    import dataclasses

    from cost import PLAIN, noise, wait
    from table import path_of

    from mlpmixer.hardware import choose_device, choose_precision, peak_mib
    from mlpmixer.models.names import MIXERS
    from mlpmixer.training.inputs import batches
    from mlpmixer.training.step import TrainingStep

    name, size = case.split(":")
    run = dataclasses.replace(PLAIN.run, batch_size=int(size), checkpointing=checkpointing)
    recipe = dataclasses.replace(PLAIN, model=dataclasses.replace(MIXERS[name], num_classes=10), run=run)
    device = choose_device(device_name)
    dtype = choose_precision("auto", device)
    stores = noise(recipe, 2 * run.batch_size)
    step = TrainingStep(recipe, stores, device, dtype)
    start_mib, times = peak_mib(device), []
    for batch in batches(stores.train, recipe.run, 1, steps + 1):
        wait(device)
        start = clock()
        step(batch, 1.0)
        wait(device)
        times.append(clock() - start)
    speed = run.batch_size / statistics.median(times[1:])  # the first step warms up
    precision = str(dtype).removeprefix("torch.")
    path = str(path_of("memory", device))
    return {
        "start_mib": start_mib,
        "peak_mib": peak_mib(device),
        "images_per_s": speed,
        "precision": precision,
        "path": path,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=CASES, help="MODEL:BATCH")
    parser.add_argument("--steps", type=int, default=3, help="in each process, after one that warms up")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--cpu-time", action="store_true", help="count the processor's seconds instead of the clock's")
    parser.add_argument("--one", nargs=2, metavar=("CASE", "0|1"), help="measure in this process, and print JSON")
    args = parser.parse_args()
    if args.one:
        print(
            json.dumps(
                measure(
                    args.one[0],
                    args.one[1] == "1",
                    args.steps,
                    args.device,
                    time.process_time if args.cpu_time else time.perf_counter,
                )
            )
        )
        return
    table, path = [], ""
    for case in args.cases:
        turns: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
        for _ in range(args.turns):
            for checkpointing, found in turns.items():
                command = [sys.executable, __file__, *sys.argv[1:], "--one", case, str(int(checkpointing))]
                found.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))
        for checkpointing, found in turns.items():
            start, peak, speed = (
                statistics.median(f[key] for f in found) for key in ("start_mib", "peak_mib", "images_per_s")
            )
            times = statistics.median(
                p["images_per_s"] / f["images_per_s"] for p, f in zip(turns[False], found, strict=True)
            )
            name, batch = case.split(":")
            row = {"model": name, "batch": batch, "precision": found[0]["precision"], "checkpointing": checkpointing}
            row |= {
                "start_mib": round(start),
                "peak_mib": round(peak),
                "images_per_s": round(speed, 1),
                "time_ratio": round(times, 2),
            }
            path = found[0]["path"]
            table.append(row)
            print(*row.values(), sep="\t", flush=True)
    from table import write

    write(Path(path), table)


if __name__ == "__main__":
    main()
