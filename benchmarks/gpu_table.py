"""What plain Mixers reach on small photos with one GPU, a row at a time, in pieces: python benchmarks/gpu_table.py
--data-dir DIR

Given again with the same --out, it goes on where it stopped: finished runs are read, interrupted ones resumed.
--max-minutes ends it cleanly, everything saved, and it says what is left. docs/how-to/gpu.md has the plan for three
pieces of ten minutes.

Every run is `train` on a named recipe, its test split scored once, at the end, by the model of the last step (its
moving average); whatever is chosen, is chosen on validation (--no-test). Rows "90" and "94" are about time: one run at
a time, kernels compiled before the clock starts, the clock including validation and saving. --tiny tries all of it in a
minute on a CPU: tiny networks, a few steps, noise. Not run yet on a GPU.
"""

import argparse
import dataclasses
import json
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_recipes import RECIPES
from teacher import Settings as TeacherSettings
from teacher import train_teacher

from mlpmixer.download import Report
from mlpmixer.durable import write_json
from mlpmixer.registry import Registry
from mlpmixer.training.loop import Interrupted
from mlpmixer.training.recipe import Recipe, read_recipe
from mlpmixer.training.run import train

WARM: set[str] = set()  # rows whose kernels this process has compiled
LEFT = 3  # exit code of a piece that has not finished its work
RESERVE_S = 25.0  # of a piece's time: to save, to score the test split, to write the report
START_S = 45.0  # no row is started with less left: it would only import, decode and compile
MODES = ["none", "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table."""

    recipe: str
    what: str
    reach: float
    """Top-1 on test to be reached, a fraction."""
    seeds: int
    together: bool = False
    """Whether its runs share the GPU, each in a process of its own; else one process takes them one after the other."""
    within_s: float | None = None
    """The time to be kept, of a row about time."""
    mode: str = "default"
    """Mode of torch.compile."""
    teacher: bool = False


ROWS: Registry[Row] = Registry("row")
ROWS["1m"] = Row(
    recipe="small-images-1m",
    what="at most 1.2 M parameters, 300 epochs",
    reach=0.925,
    seeds=3,
    together=True,
    mode="reduce-overhead",
)
ROWS["wide"] = Row(recipe="small-images-wide", what="any size, no other data", reach=0.95, seeds=1)
ROWS["distilled"] = Row(
    recipe="small-images-distilled", what="with a convolutional teacher", reach=0.965, seeds=1, teacher=True
)
ROWS["90"] = Row(
    recipe="small-images-30s", what="time to 90 %", reach=0.90, seeds=5, within_s=30, mode="reduce-overhead"
)
ROWS["94"] = Row(recipe="small-images-5m", what="time to 94 %", reach=0.94, seeds=5, within_s=300)


def recipe_of(row: Row, seed: int, args: argparse.Namespace) -> Recipe:
    """The recipe of a run: as it is named, on this machine and these images; cut down with --tiny."""
    recipe = RECIPES[row.recipe]()
    mode = "none" if args.tiny else args.compile or row.mode
    run = dataclasses.replace(recipe.run, seed=seed, device=args.device, test=not args.no_test, compile=mode != "none")
    if run.compile:
        run = dataclasses.replace(run, compile_mode=mode)
    data = dataclasses.replace(recipe.data, name=args.data, data_dir=str(args.data_dir))
    if not args.tiny:
        return dataclasses.replace(recipe, data=data, run=run)
    tiny = dataclasses.replace(recipe.model, num_blocks=2, hidden_dim=16, tokens_mlp_dim=8, channels_mlp_dim=16)
    run = dataclasses.replace(run, epochs=10, steps=4, batch_size=16, eval_every=1)
    return dataclasses.replace(recipe, model=tiny, data=dataclasses.replace(data, val_fraction=0.2), run=run)


def run_folder(out: Path, name: str, seed: int) -> Path:
    return out / name / f"seed-{seed}"


def work(
    name: str, seed: int, args: argparse.Namespace, stop_after_s: float | None, report: Report | None = None
) -> dict[str, Any]:
    """One run of a row, from where it stopped; its summary. Interrupted when the time is over, after saving."""
    row, out = ROWS[name], Path(args.out)
    recipe, answer, until = (
        recipe_of(row, seed, args),
        None,
        None if stop_after_s is None else time.monotonic() + stop_after_s,
    )
    if row.teacher:
        torch.backends.cudnn.benchmark = True
        settings = TeacherSettings(depth=10, width=1, epochs=1, batch_size=64) if args.tiny else TeacherSettings()
        answer = train_teacher(recipe, settings, out / name, compiled=recipe.run.compile, stop_after_s=stop_after_s)
    run = run_folder(out, name, seed)
    if (run / "recipe.json").exists():
        stored = read_recipe(run).run
        recipe = dataclasses.replace(
            recipe, run=dataclasses.replace(recipe.run, compile=stored.compile, compile_mode=stored.compile_mode)
        )
    if row.within_s and name not in WARM:
        WARM.add(name)
        warm = dataclasses.replace(
            recipe, run=dataclasses.replace(recipe.run, steps=3 if args.tiny else 12, test=False)
        )
        with tempfile.TemporaryDirectory() as folder:
            train(warm, out=Path(folder) / "warm", teacher=answer)
    left = None if until is None else max(until - time.monotonic(), 0.0)
    return train(recipe, out=run, resume=True, teacher=answer, stop_after_s=left, report=report).summary


def seeds_of(name: str, args: argparse.Namespace) -> range:
    return range(min(ROWS[name].seeds, 2) if args.tiny else ROWS[name].seeds)


def summaries_of(name: str, args: argparse.Namespace) -> dict[int, dict[str, Any]]:
    """The summaries of a row's finished runs, by seed."""
    paths = {seed: run_folder(Path(args.out), name, seed) / "summary.json" for seed in seeds_of(name, args)}
    return {seed: json.loads(path.read_text(encoding="utf-8")) for seed, path in paths.items() if path.exists()}


def line_of(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """What a row has come to: figures only when there are any, a claim only when all seeds are there."""
    row, done = ROWS[name], summaries_of(name, args)
    line: dict[str, Any] = {
        "row": name,
        "what": row.what,
        "recipe": row.recipe,
        "reach": row.reach,
        "n": len(done),
        "of": row.seeds,
    }
    if not done:
        return line
    first = next(iter(done.values()))
    for split, key in (("test", "top1"), ("val", "val_top1")):
        values = [s[key] for s in done.values() if s[key] is not None]
        if values:
            line[split] = {
                "mean": statistics.mean(values), "median": statistics.median(values), "range": [min(values), max(values)], "n": len(values)  # noqa: E501
            }  # fmt: skip
    line["train_s"] = {
        "median": statistics.median(s["train_s"] for s in done.values()),
        "all": [s["train_s"] for s in done.values()],
    }
    line |= {
        key: first[key]
        for key in ("params", "steps", "train_images", "device", "precision", "images_per_s", "peak_mib")
    }
    if len(done) == row.seeds and "test" in line and not args.tiny:
        good = line["test"]["median" if row.within_s else "mean"] >= row.reach
        line["reached"] = good and (row.within_s is None or line["train_s"]["median"] <= row.within_s)
    return line


def write_table(args: argparse.Namespace) -> str:
    """Write table.json and table.md under --out; returns the latter."""
    lines = [line_of(name, args) for name in ROWS]
    rows = [
        "| row | | reach | test top-1 | validation | parameters | training, median | runs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        row = ROWS[line["row"]]
        goal = f"{100 * row.reach:g} %" + (f" in {row.within_s:g} s" if row.within_s else "")
        cells = ["", "", "", ""]
        if line["n"]:
            test, val = (
                (f"{100 * s['mean']:.2f} % ({100 * s['range'][0]:.2f}-{100 * s['range'][1]:.2f})" if s else "")
                for s in (line.get("test"), line.get("val"))
            )
            cells = [test, val, f"{line['params']:,}", f"{line['train_s']['median']:.1f} s"]
        rows.append(f"| {line['row']} | {row.what} | {goal} | {' | '.join(cells)} | {line['n']} of {row.seeds} |")
    about = "Tiny networks, a few steps, noise: a trial of the machinery, no figures.\n\n" if args.tiny else ""
    text = f"{about}`{args.command}`\n\n" + "\n".join(rows) + "\n"
    out = Path(args.out)
    write_json(out / "table.json", {"tiny": args.tiny, "command": args.command, "rows": lines})
    (out / "table.md").write_text(text, encoding="utf-8")
    return text


def one_piece(args: argparse.Namespace) -> int:
    """Work through the rows until they are done or the time is over; what is left is printed."""
    until = time.time() + 60 * args.max_minutes - RESERVE_S * (not args.tiny) if args.max_minutes else None
    failed = False
    write_table(args)
    for name in args.row or ROWS:
        row = ROWS[name]
        todo = [seed for seed in seeds_of(name, args) if seed not in summaries_of(name, args)]
        if todo and (until is None or until - time.time() > START_S * (not args.tiny)):
            print(f"{name}: seed {', '.join(map(str, todo))}", flush=True)
            codes = run_processes(name, [[seed] for seed in todo] if row.together else [todo], args, until)
            write_table(args)
            for seed, code in zip(todo, codes, strict=False):
                if code not in (0, LEFT):
                    log = Path(args.out) / name / f"seed-{seed}.log"
                    why = (log.read_text(encoding="utf-8").strip().splitlines() or [f"exit code {code}"])[-1]
                    print(f"{name}: failed, see {log}: {why}", file=sys.stderr, flush=True)
                    failed = True
    say_what_is_left(args)
    return 1 if failed else LEFT if left_of(args) else 0


def run_processes(
    name: str, groups: Sequence[Sequence[int]], args: argparse.Namespace, until: float | None
) -> list[int]:
    """Exit codes of processes at the same time on the same GPU, one for each group of seeds."""
    folder = Path(args.out) / name
    folder.mkdir(parents=True, exist_ok=True)
    processes = []
    try:
        for seeds in groups:
            command = [sys.executable, __file__, *args.words, "--worker", name, *map(str, seeds)]
            command += [] if until is None else ["--until", str(until)]
            with open(folder / f"seed-{seeds[0]}.log", "a", encoding="utf-8") as log:
                processes.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT))
        return [process.wait() for process in processes]
    finally:
        for process in processes:
            process.terminate()  # a run saves itself before it ends
        for process in processes:
            process.wait()


def left_of(args: argparse.Namespace) -> list[str]:
    """The rows that were asked for and are not finished, "1m (1 of 3)"."""
    counts = {name: (len(summaries_of(name, args)), len(seeds_of(name, args))) for name in args.row or ROWS}
    return [f"{name} ({done} of {of})" for name, (done, of) in counts.items() if done < of]


def say_what_is_left(args: argparse.Namespace) -> None:
    print("\n" + write_table(args))
    left = left_of(args)
    print(f"left: {', '.join(left)}; the same command goes on" if left else "everything is done", flush=True)


def noise(folder: Path, per_class: int = 8) -> Path:
    """A stand-in for CIFAR-10 in its binary form: noise, a little lighter in one class than in the next."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        labels = np.arange(10 * per_class, dtype=np.uint8)[:, None] % 10
        pixels = rng.integers(0, 160, (10 * per_class, 3072), dtype=np.uint8) + 10 * labels
        (folder / f"{name}.bin").write_bytes(np.hstack([labels, pixels]).tobytes())
    return folder


def parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="where the files of the data set are")
    parser.add_argument("--data", default="cifar10", help="the data set; the recipes are not made for one")
    parser.add_argument("--out", default="runs/gpu-table")
    parser.add_argument(
        "--row", action="append", metavar="NAME", help=f"only this one, can be given several times: {', '.join(ROWS)}"
    )
    parser.add_argument(
        "--max-minutes", type=float, default=0.0, help="stop cleanly by then; 0: when everything is done"
    )
    parser.add_argument(
        "--compile", choices=MODES, help="mode of torch.compile instead of each row's own; a started run keeps its own"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--no-test", action="store_true", help="leave the test split out, while a recipe is being chosen"
    )
    parser.add_argument(
        "--tiny", action="store_true", help="tiny networks, a few steps, on noise unless --data-dir is given"
    )
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    for name in args.row or ():
        ROWS[name]  # an unknown one is answered
    if args.data_dir is None:
        if not args.tiny:
            parser.error("--data-dir is needed: the folder with the files of the data set (mlpmixer list datasets)")
        args.data_dir = Path(args.out) / "noise"
    args.words = list(words)
    args.command = shlex.join(["python", "benchmarks/gpu_table.py", *words])
    return args


def say(line: dict[str, Any]) -> None:
    if line["kind"] != "end":
        print(json.dumps(line), flush=True)


def main(words: Sequence[str] | None = None) -> int:
    try:
        args = parse(sys.argv[1:] if words is None else words)
    except ValueError as e:
        print(f"gpu_table: {e}", file=sys.stderr)
        return 2
    if args.worker:
        name, *seeds = args.worker
        sys.argv[1:] = args.words[: args.words.index("--worker")]  # what a run says it was started by
        try:
            for seed in map(int, seeds):
                left = None if args.until is None else args.until - time.time()
                if left is not None and left <= 0:
                    return LEFT
                work(name, seed, args, left, say)
        except Interrupted as e:
            print(e)
            return LEFT
        except (ValueError, OSError) as e:
            print(f"gpu_table: {e}")
            return 2
        return 0
    Path(args.out).mkdir(parents=True, exist_ok=True)
    if args.tiny and not Path(args.data_dir).exists():
        noise(Path(args.data_dir))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    return one_piece(args)


if __name__ == "__main__":
    sys.exit(main())
