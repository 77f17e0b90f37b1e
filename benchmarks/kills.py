"""Kill a training at random moments and resume it: python benchmarks/kills.py --kills 50

Each round trains a small network on the digits in a process of its own, ends it with SIGKILL and resumes it to the end.
Half of the kills come at a random time, start and end included. The others come right before one of the operations that
write files (fsync and rename): a random one, and in turn one of the last 20, where model, page and summary are written.
The files must be those of an undisturbed run: weights and log bit for bit, the summary but for times and memory, and no
other file. Prints a line for each kill; the exit code is 1 when a run differs. Linux.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: processes are forked from this one

import torch

from mlpmixer.data.config import Data
from mlpmixer.models.configs import MixerConfig
from mlpmixer.training.recipe import Augment, Optim, Recipe, Run
from mlpmixer.training.run import train
from mlpmixer.weights.model_file import read_tensors
from mlpmixer.weights.run_folder import MODEL_FILE, read_metrics, read_summary

MEASURED = ("images_per_s", "peak_mib", "eta_s", "train_s")  # differ from run to run
RECIPE = Recipe(
    name="kills",
    model=MixerConfig(image_size=8, patch_size=2, num_blocks=2, hidden_dim=16, tokens_mlp_dim=8, channels_mlp_dim=16),
    data=Data(name="digits"),
    augment=Augment(pad_crop_px=1, mixup=0.2),
    optim=Optim(name="muon", ema_decay=0.9),
    run=Run(steps=30, batch_size=128, eval_every=0.5, save_every_s=0, log_every=3, device="cpu"),
)


def forked(work: Callable[[], None]) -> int:
    """Start `work` in a new process and give its number."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        work()
        code = 0
    finally:
        sys.stdout.flush()
        os._exit(code)


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def count_operations(limit: int = -1) -> list[int]:
    """Count this process's fsyncs and renames from now on, and kill it before number `limit`."""
    count = [0]

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            if count[0] == limit:
                os.kill(os.getpid(), signal.SIGKILL)
            count[0] += 1
            return real(*args)

        return call

    os.fsync, os.replace = counted(os.fsync), counted(os.replace)
    return count


def left_by(run: Path) -> dict[str, Any]:
    """All that a finished run has left, without what is measured."""
    tensors, meta = read_tensors(run / MODEL_FILE)
    lines = read_metrics(run / "metrics.jsonl")
    summary = read_summary(run) or {}
    return {
        "weights": {name: tensor.numpy().tobytes() for name, tensor in tensors.items()},
        "description": meta["model"] | {"provenance": {**meta["model"]["provenance"], "date": "", "commit": ""}},
        "log": [{key: value for key, value in line.items() if key not in MEASURED} for line in lines],
        "summary": {key: value for key, value in summary.items() if key not in MEASURED},
        "files": sorted(str(path.relative_to(run)) for path in run.rglob("*")),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    rng, different, began = random.Random(args.seed), 0, time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        whole, counted = Path(scratch) / "whole", Path(scratch) / "operations"
        train(RECIPE, out=Path(scratch) / "first")  # loads all that the forked ones need

        def undisturbed() -> None:
            count = count_operations()
            train(RECIPE, out=whole)
            counted.write_text(str(count[0]))

        start = time.monotonic()
        assert ended(forked(undisturbed)) == 0
        seconds, operations, expected = time.monotonic() - start, int(counted.read_text()), left_by(whole)
        assert left_by(Path(scratch) / "first") == expected
        print(
            f"undisturbed: {seconds:.1f} s, {operations} operations that write; torch {torch.__version__}", flush=True
        )
        for number in range(1, args.kills + 1):
            out = Path(scratch) / str(number)
            at_time = rng.uniform(0, seconds)
            at_operation = rng.randrange(operations if number % 4 == 1 else 20)
            at_operation = at_operation if number % 4 == 1 else operations - 1 - at_operation

            def killed(limit: int = at_operation if number % 2 else -1, out: Path = out) -> None:
                count_operations(limit)
                train(RECIPE, out=out)

            pid = forked(killed)
            if number % 2 == 0:
                time.sleep(at_time)
                os.kill(pid, signal.SIGKILL)
            code = ended(pid)
            states = len(list(out.glob("checkpoints/step-*.safetensors")))
            log = len(read_metrics(out / "metrics.jsonl"))

            def resumed(out: Path = out) -> None:
                train(RECIPE, out=out, resume=True)

            again = ended(forked(resumed))
            found = left_by(out) if again == 0 else {}
            wrong = [key for key, value in expected.items() if found.get(key) != value]
            wrong += sorted({*found.get("files", ())} ^ {*expected["files"]})
            different += bool(wrong)
            moment = f"before operation {at_operation}" if number % 2 else f"after {at_time:.2f} s"
            killed_by = "killed" if code == -signal.SIGKILL else "had ended"
            print(
                f"{number:3} {killed_by} {moment}, with {log} lines and {states} states: "
                + (f"DIFFERENT {', '.join(wrong)}" if wrong else "the same"),
                flush=True,
            )
    print(f"{args.kills - different} of {args.kills} as undisturbed, {time.monotonic() - began:.0f} s")
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())
