"""What a trained Mixer is worth at other image sizes: right after the resize, after a short fine-tuning, and against
training there.

    mlpmixer train DIR/flowers89 --seed 0 --out runs/flowers89-0       # and so on for other seeds
    python benchmarks/resolution.py runs/flowers89-0 runs/flowers89-1 --sizes 48 96 128 --out
    results/resolution/flowers89

Two networks for every size: with patches `scaled` alike the grid of patches stays, with patches `kept` it changes.
Top-1 on test:

    nearest, bilinear, bicubic, parts    right after `weights.adapt.adapt` by that method (scaled patches know but one)
    fine-tuned      mlpmixer train DATA --init RUN --image-size PX [--patch-size P]
    from scratch    the base run's recipe at that size, in so many epochs that it costs the FLOPs of base run and
    fine-tuning together

and the least and the greatest variance of a block's output over the original's, on the validation pictures. Trainings
are kept in runs/resolution and not done again; figures.json, README.md and plot.png in --out hold what is there so far.
"""

import argparse
import dataclasses
import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mlpmixer.config import pair
from mlpmixer.data.datasets import open_images
from mlpmixer.data.image_set import ImageSet
from mlpmixer.evaluation.data import resolve_data
from mlpmixer.evaluation.evaluate import evaluate
from mlpmixer.hardware import device_name
from mlpmixer.inference.classifier import Classifier
from mlpmixer.inference.load import load
from mlpmixer.inference.torch_classifier import from_network
from mlpmixer.models.configs import MixerConfig
from mlpmixer.models.mixer import Mixer
from mlpmixer.training.augment import normalise, prepare_eval
from mlpmixer.training.recipe import Init, Recipe, read_recipe
from mlpmixer.training.recipes import retune
from mlpmixer.training.run import train
from mlpmixer.weights.adapt import adapt

RUNS = Path("runs/resolution")
KEY = ("seed", "px", "patches", "how")
METHODS = ("nearest", "bilinear", "bicubic", "parts")
Row = dict[str, Any]


def block_variances(classifier: Classifier, images: ImageSet) -> np.ndarray:
    """Variance of every block's output over its channels, which is what a LayerNorm sees: (num_blocks), the mean over
    up to 256 images."""
    assert classifier.network is not None
    pixels = np.stack([classifier.preprocess_image(images.source(i)) for i in range(min(len(images), 256))])
    variances: list[float] = []
    hooks = [
        b.register_forward_hook(lambda _, __, out: variances.append(out.var(-1).mean().item()))
        for b in classifier.network.blocks
    ]
    with torch.inference_mode():
        classifier.network(normalise(prepare_eval(torch.from_numpy(pixels)), classifier.preprocess))
    for hook in hooks:
        hook.remove()
    return np.array(variances)


def right_after(base: Classifier, size: int, patch: int) -> Iterator[tuple[str, Classifier]]:
    """(method, classifier) for every way to the size without training."""
    assert isinstance(base.network, Mixer) and base.meta is not None
    (rows, cols), grid = base.network.cfg.grid, size // patch
    whole = grid % rows == grid % cols == 0
    methods = ("bicubic",) if grid == rows == cols else [m for m in METHODS if m != "parts" or whole]
    for method in methods:
        network = adapt(base.network, image_size=size, patch_size=patch, method=method)  # type: ignore[arg-type]
        preprocess = dataclasses.replace(base.preprocess, image_size=(size, size))
        yield method, from_network(network, dataclasses.replace(base.meta, config=network.cfg, preprocess=preprocess))


def commit_of(run: Path) -> str | None:
    commit: str | None = json.loads((run / "env.json").read_text())["commit"]
    return commit


def flops(cfg: MixerConfig) -> int:
    return sum(layer.flops for layer in cfg.layers())


def trainings(run: Path, model: MixerConfig) -> Iterator[tuple[str, Recipe]]:
    """(what, recipe) of the two trainings of that network."""
    base = read_recipe(run)
    tuned = retune(base)
    tuned = dataclasses.replace(
        tuned, model=model, init=Init(weights=str(run)), run=dataclasses.replace(tuned.run, seed=base.run.seed)
    )
    yield "fine-tuned", tuned
    epochs = tuned.run.epochs + base.run.epochs * flops(base.model) / flops(model)
    yield "from scratch", dataclasses.replace(base, model=model, run=dataclasses.replace(base.run, epochs=epochs))


def rows_of(run: Path, sizes: list[int], skip: set[str]) -> Iterator[Row]:
    base, recipe = load(run), read_recipe(run)
    data = resolve_data(base, None)
    test, val = open_images(data, "test"), open_images(data, "val")
    own, before = json.loads((run / "summary.json").read_text()), block_variances(base, val)
    name, seed, own_size = Path(data.name).name, recipe.run.seed, pair(recipe.model.image_size)[0]
    common = {"data": name, "seed": seed}
    trained = {"top1": own["top1"], "train_s": own["train_s"], "commit": commit_of(run)}
    yield common | {"px": own_size, "patches": "base", "how": "as trained"} | trained
    for size in sizes:
        rows, old_patch = recipe.model.grid[0], pair(recipe.model.patch_size)[0]
        for patches, patch in (("scaled", size // rows), ("kept", old_patch)):
            if size % patch or (patches == "scaled" and size % rows):
                continue
            row = common | {"px": size, "patches": patches, "patch_px": patch}
            for method, classifier in right_after(base, size, patch):
                ratio = block_variances(classifier, val) / before
                spread = [round(float(ratio.min()), 3), round(float(ratio.max()), 3)]
                yield row | {"how": method, "top1": evaluate(classifier, test).top1, "train_s": 0.0, "variance": spread}
            model = dataclasses.replace(recipe.model, image_size=size, patch_size=patch)
            for how, training in trainings(run, model):
                if f"{how}:{patches}" not in skip:
                    out = RUNS / f"{name}-{seed}-{size}px-{patches}-{how.replace(' ', '-')}"
                    done = train(training, out=out, resume=True).summary
                    epochs = round(training.run.epochs, 1)
                    trained = {
                        "top1": done["top1"],
                        "train_s": done["train_s"],
                        "epochs": epochs,
                        "params": done["params"],
                    }
                    yield row | {"how": how} | trained | {"commit": commit_of(out)}


def mean_and_range(values: list[float]) -> str:
    mean, low, high = (100 * x for x in (sum(values) / len(values), min(values), max(values)))
    return f"{mean:.1f}" if len(values) == 1 else f"{mean:.1f} ({low:.1f}-{high:.1f})"


def table(rows: list[Row]) -> str:
    """Markdown: a line for every network, a column for every way to it; top-1 in percent, mean and range over the
    seeds."""
    ways = [w for w in (*METHODS, "fine-tuned", "from scratch") if any(r["how"] == w for r in rows)]
    lines = [f"| px | patches | {' | '.join(ways)} | variance |", "|---" * (len(ways) + 3) + "|"]
    for px, patches in sorted({(r["px"], r["patches"]) for r in rows if r["patches"] != "base"}):
        here = [r for r in rows if (r["px"], r["patches"]) == (px, patches)]
        grid, patch = px // here[0]["patch_px"], here[0]["patch_px"]
        cells = [mean_and_range(found) if (found := [r["top1"] for r in here if r["how"] == w]) else "" for w in ways]
        spread = [v for r in here if r["how"] == "bicubic" for v in r["variance"]]
        variance = f"{min(spread):.2f}-{max(spread):.2f}" if spread else ""
        lines.append(f"| {px} | {patches}: {grid}x{grid} of {patch} px | {' | '.join(cells)} | {variance} |")
    return "\n".join(lines)


def plot(rows: list[Row], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines = (("kept", "nearest"), ("kept", "bicubic"), ("kept", "fine-tuned"), ("kept", "from scratch"))
    lines += (("scaled", "bicubic"), ("scaled", "fine-tuned"), ("scaled", "from scratch"))
    styles = {"nearest": ":", "bicubic": "--", "fine-tuned": "-", "from scratch": "-."}
    names = {"nearest": "right after, nearest", "bicubic": "right after, bicubic"}
    fig, ax = plt.subplots(figsize=(7, 4.5), dpi=110, layout="constrained")
    base = [r for r in rows if r["how"] == "as trained"]
    own = sum(100 * r["top1"] for r in base) / len(base)
    ax.plot(base[0]["px"], own, "k*", ms=12, label="as trained", zorder=3)
    for patches, how in lines:
        sizes = sorted({r["px"] for r in rows if (r["patches"], r["how"]) == (patches, how)})
        if not sizes:
            continue
        found = [
            [100 * r["top1"] for r in rows if (r["px"], r["patches"], r["how"]) == (px, patches, how)] for px in sizes
        ]
        means = [sum(f) / len(f) for f in found]
        bars = [
            [m - min(f) for m, f in zip(means, found, strict=True)],
            [max(f) - m for m, f in zip(means, found, strict=True)],
        ]
        color = "tab:orange" if patches == "kept" else "tab:blue"
        label = f"patches {patches}, {names.get(how, how)}"
        ax.errorbar(sizes, means, bars, color=color, ls=styles[how], marker="o", ms=4, capsize=3, label=label)
    ax.set(
        xlabel="image size, px",
        ylabel="test top-1, %",
        title=f"{base[0]['data']}, trained at {base[0]['px']} px, n = {len(base)}",
    )
    ax.set_xticks(sorted({r["px"] for r in rows}))
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)
    fig.savefig(path)
    plt.close(fig)


def write(rows: list[Row], out: Path, hardware: str) -> None:
    base = [r for r in rows if r["how"] == "as trained"]
    seconds = {
        how: [r["train_s"] for r in rows if r["how"] == how] for how in ("as trained", "fine-tuned", "from scratch")
    }
    times = ", ".join(f"{how} {min(s):.0f}-{max(s):.0f} s" for how, s in seconds.items() if s)
    (out / "figures.json").write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    commits = ", ".join(sorted({r["commit"] for r in rows if r.get("commit")}))
    command, own = shlex.join(["python", *sys.argv]), mean_and_range([r["top1"] for r in base])
    (out / "README.md").write_text(
        f"# {base[0]['data']} at other image sizes\n\n"
        f"Trained at {base[0]['px']} px: test top-1 {own} %, n = {len(base)}. A mean without a range is n = 1.\n"
        f"The columns are explained in benchmarks/resolution.py, which wrote this page:\n\n    "
        f"{command}\n\n{table(rows)}\n\n"
        f"Time of a training: {times}. {hardware}. Trained at commit {commits}.\n\n![plot](plot.png)\n"
    )
    plot(rows, out / "plot.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="finished runs of one recipe on one data set, other seeds")
    parser.add_argument("--sizes", type=int, nargs="+", required=True, help="pixels, square")
    parser.add_argument("--out", type=Path, required=True, help="folder for figures.json, README.md and plot.png")
    parser.add_argument("--skip", nargs="*", default=[], help="trainings to leave out, such as 'from scratch:kept'")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "figures.json"
    rows: list[Row] = json.loads(file.read_text()) if file.exists() else []
    for run in args.runs:
        for row in rows_of(run, args.sizes, set(args.skip)):
            print(json.dumps(row), flush=True)
            rows = [r for r in rows if any(r[f] != row[f] for f in KEY)] + [row]
            write(rows, args.out, device_name(torch.device("cpu")))


if __name__ == "__main__":
    main()
