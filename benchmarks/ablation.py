"""Which part of the CIFAR-10 recipe brings how much, at equal time: python benchmarks/ablation.py --data-dir DIR
--minutes 10

Every variant changes one thing of recipe `cifar10`. First the cost of a step of each is measured, in turns, on one
thread; then each trains for as many steps as fit the given minutes at that cost, on one core, --jobs of them at a time
(so a busy machine changes the time that passes, not what is compared). Validation top-1 on 5,000 images that no run
trains on; test is left alone. Runs are kept in runs/ablation and not done again, a stopped one goes on; --out holds
figures.json and README.md with what is there so far.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from mlpmixer.hardware import device_name
from mlpmixer.training import recipes
from mlpmixer.training.inputs import batches
from mlpmixer.training.recipe import Recipe
from mlpmixer.training.run import make_training_step

RUNS = Path("runs/ablation")
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "recipe": ("recipe `cifar10`", {}),
    "adamw": ("AdamW, 2e-3, instead of Muon", {"optim.name": "adamw", "optim.lr": 2e-3}),
    "no-locality": ("no locality injection", {"optim.locality": 0}),
    "no-mirror": ("no mirror symmetry", {"optim.mirror": False}),
    "sam": ("sharpness-aware minimisation, 0.1", {"optim.sam_rho": 0.1}),
    "no-whitening": ("stem as in the paper, not whitened", {"init.stem": "lecun"}),
    "augment-none": (
        "no augmentation",
        {"augment.pad_crop_px": 0, "augment.flip": False, "augment.mix_probability": 0.0},
    ),
    "augment-light": ("flip and shift only, no CutMix", {"augment.mix_probability": 0.0}),
    "augment-cutmix": ("CutMix on half of the batches, not a quarter", {"augment.mix_probability": 0.5}),
    "augment-strong": ("TrivialAugment on top", {"augment.trivialaugment": True}),
    "ema": ("moving average of the weights, 0.999", {"optim.ema_decay": 0.999}),
    "batch-128": ("batches of 128 instead of 64", {"run.batch_size": 128, "optim.warmup_steps": 300}),
    "patch-2": ("patches of 2 px: S 256 instead of 64", {"model.patch_size": 2}),
    "patch-8": ("patches of 8 px: S 16", {"model.patch_size": 8}),
    "narrow": ("C 96 instead of 128", {"model.hidden_dim": 96}),
    "wide": (
        "C 192, D_C 448, 6 blocks",
        {"model.hidden_dim": 192, "model.channels_mlp_dim": 448, "model.num_blocks": 6},
    ),
    "square": ("C 64 = S, 15 blocks", {"model.hidden_dim": 64, "model.num_blocks": 15}),
}


def changed(recipe: Recipe, fields: dict[str, Any]) -> Recipe:
    """The recipe with fields such as "optim.lr" replaced."""
    for path, value in fields.items():
        owner, name = path.split(".")
        recipe = dataclasses.replace(recipe, **{owner: dataclasses.replace(getattr(recipe, owner), **{name: value})})
    return recipe


def step_costs(variants: dict[str, Recipe], rounds: int) -> dict[str, float]:
    """Seconds of processor time of a step, the least of rounds in which the variants take turns: noise only ever
    adds."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    runs = {}
    for name, recipe in variants.items():
        step = make_training_step(recipe, None, None)
        runs[name] = step, batches(step.stores.train, recipe.run, 1, rounds + 1)
    for _ in range(rounds + 1):
        for name, (step, source) in runs.items():
            batch = next(source)
            start = time.process_time()
            step(batch, 0.1)
            times[name].append(time.process_time() - start)
    return {name: min(t[1:]) for name, t in times.items()}


def train_variant(name: str, steps: int, seed: int, data_dir: str) -> dict[str, Any]:
    """The summary of the run, from disk when it has been made."""
    out = RUNS / f"{name}-{seed}-{steps}"
    options = [
        f"--{path.replace('_', '-')}={value}"
        for path, value in VARIANTS[name][1].items()
        if not isinstance(value, bool)
    ]
    for path, value in VARIANTS[name][1].items():
        if isinstance(value, bool):
            owner, field = path.replace("_", "-").split(".")
            options.append(f"--{owner}.{'' if value else 'no-'}{field}")
    command = [
        sys.executable,
        "-m",
        "mlpmixer",
        "train",
        "cifar10",
        "--data-dir",
        data_dir,
        "--no-test",
        "--data.val-fraction",
        "0.1",
    ]
    command += ["--steps", str(steps), "--seed", str(seed), "--run.eval-every", "1000", "--out", str(out), *options]
    if not (out / "summary.json").exists():
        again = ["--resume"] if (out / "recipe.json").exists() else []
        RUNS.mkdir(parents=True, exist_ok=True)
        with open(RUNS / f"{out.name}.log", "a") as log:
            subprocess.run(
                [*command, *again], check=True, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"}
            )
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    return summary


def write(out: Path, figures: dict[str, Any]) -> None:
    """figures.json and README.md of what is there."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    base = [r["val_top1"] for r in figures["rows"] if r["variant"] == "recipe"]
    lines = [
        "# Which part of the CIFAR-10 recipe brings how much",
        "",
        f"Each variant trained for {figures['minutes']:g} minutes of one core's time ({figures['device']}), bfloat16. "
        f"Validation top-1, %,",
        "on the same 5,000 images that no run trained on.",
        f"`ms` is the measured cost of a step of {figures['batch_size']} images, but where it says otherwise. One "
        f"change at a time,",
        "no rate tuned again for it. So few epochs speak for what is quick to learn:",
        "what pays in more of them, such as augmentation, does not show.",
        "",
        "| variant | parameters | ms | epochs | seeds | top-1 | against the recipe |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, (what, _) in VARIANTS.items():
        rows = [r for r in figures["rows"] if r["variant"] == name]
        if rows:
            top1 = [r["val_top1"] for r in rows]
            mean, first = statistics.mean(top1), rows[0]
            spread = f" ({100 * min(top1):.2f}-{100 * max(top1):.2f})" if len(top1) > 1 else ""
            against = f"{100 * (mean - statistics.mean(base)):+.2f}" if base and name != "recipe" else ""
            cost, epochs = f"{first['step_ms']:.0f}", f"{first['epochs']:.1f}"
            lines.append(
                f"| {what} | {first['params']:,} | {cost} | {epochs} | {len(rows)} | {100 * mean:.2f}{spread} | "
                f"{against} |"
            )
    lines += ["", f"`{figures['command']}`", ""]
    (out / "README.md").write_text("\n".join(lines), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", default=".")
    parser.add_argument("--minutes", type=float, default=10.0, help="time of one core for each variant")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--rounds", type=int, default=15, help="rounds of timing")
    parser.add_argument("--only", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), help="variants, by name")
    parser.add_argument("--out", type=Path, default=Path("results/ablation"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    base = recipes.cifar10()
    base = changed(base, {"data.data_dir": args.data_dir, "data.val_fraction": 0.1, "run.device": "cpu"})
    costs_file = RUNS / "costs.json"
    costs = json.loads(costs_file.read_text()) if costs_file.exists() else {}
    if lacking := {name: changed(base, VARIANTS[name][1]) for name in {"recipe", *args.only} if name not in costs}:
        fresh = step_costs({"recipe": base, **lacking}, args.rounds)
        scale = costs.get("recipe", fresh["recipe"]) / fresh["recipe"]  # the machine of another moment
        costs |= {name: fresh[name] * scale for name in lacking}
        RUNS.mkdir(parents=True, exist_ok=True)
        costs_file.write_text(json.dumps(costs, indent=2))
    command = f"python benchmarks/ablation.py --data-dir DIR --minutes {args.minutes:g} --seeds {args.seeds}"
    if len(args.only) < len(VARIANTS):
        command += f" --only {' '.join(args.only)}"
    figures: dict[str, Any] = {
        "minutes": args.minutes,
        "device": device_name(torch.device("cpu")),
        "command": command,
        "rows": [],
    }
    figures["batch_size"] = base.run.batch_size

    def one(job: tuple[int, str]) -> None:
        seed, name = job
        steps = round(60 * args.minutes / costs[name])
        epochs = steps * changed(base, VARIANTS[name][1]).run.batch_size / 45_000
        summary = train_variant(name, steps, seed, args.data_dir)
        figures["rows"].append(
            {
                "variant": name, "seed": seed, "steps": steps, "epochs": epochs, "step_ms": 1000 * costs[name],
                "params": summary["params"], "val_top1": summary["val_top1"],
            }
        )  # fmt: skip
        print(f"{name:16s} seed {seed}  {steps:,} steps  {100 * summary['val_top1']:.2f} %", flush=True)
        write(args.out, figures)

    with ThreadPoolExecutor(args.jobs) as pool:
        for _ in pool.map(one, [(seed, name) for seed in range(args.seeds) for name in args.only]):
            pass


if __name__ == "__main__":
    main()
