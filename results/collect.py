"""Turn finished runs into a stored result, and keep the tables of README and docs equal to what is stored.

    python results/collect.py add "what is claimed" "what changed" runs/digits-0 runs/digits-1 ...   # of one recipe
    python results/collect.py table                                                          # rewrite the tables

A result is results/<data>/<recipe>/<date>_<commit>_<hardware>/ with recipe.json, env.json, metrics.jsonl (of the first
run), summary.json (mean, range and number of seeds, on the test split) and a README of the claim, the command and the
curve. RUN/views.json, written by `mlpmixer evaluate RUN --tta KIND --json`, is stored too where every run has it. What
others reach on the same data, and who says so, is in rivals.json. The speeds of the models are those of
benchmarks/models_*.csv, which benchmarks/models_table.py writes.
"""

import csv
import json
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from mlpmixer.cli.printing import multiply_adds
from mlpmixer.models.configs import NetworkConfig
from mlpmixer.models.names import MODELS
from mlpmixer.weights import own
from mlpmixer.weights.model_file import read_meta
from mlpmixer.weights.own import OWN
from mlpmixer.weights.privacy import without_folders
from mlpmixer.weights.published import WEIGHTS

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
COUNTS = {"last": "The last step counts, not the best", "best": "The step with the best validation accuracy counts"}
VIEWS = "views.json"
START, END = "<!-- {}: written by results/collect.py -->", "<!-- end of {} -->"
TITLES = {
    "cifar10": "CIFAR-10",
    "digits": "digits",
    "flowers89": "Flowers, 89",
    "mnist": "MNIST",
    "tiny-imagenet": "Tiny-ImageNet",
    "trashnet": "TrashNet",
}
OURS = {"digits": "", "mnist": "Mini/4", "cifar10": "Nano/4"}
"""Our weights in the README's table, and the row of benchmarks/models_*.csv that is of their network, if one is."""
PUBLISHED = {
    "S/32": "S/32:gsam", "S/16": "S/16:gsam", "B/32": "B/32:sam", "B/16": "B/16:imagenet1k",
    "resmlp-s12": "resmlp-s12:timm-imagenet1k", "gmlp-s/16": "gmlp-s/16:timm-imagenet1k",
}  # fmt: skip
"""Networks with published weights, and the name of those."""
BY_AUTHORS = {"vip-s/7": 0.815}  # arXiv:2106.12368, table 1
"""Those whose weights have no name here, and the top-1 that their paper reports."""


def spread(values: list[float]) -> dict[str, Any]:
    return {"mean": round(sum(values) / len(values), 5), "range": [min(values), max(values)], "n": len(values)}


def add(claim: str, changed: str, runs: list[Path]) -> Path:
    _require_seeds_of_one_recipe(runs)
    summaries = [json.loads((run / "summary.json").read_text()) for run in runs]
    envs = [json.loads((run / "env.json").read_text()) for run in runs]
    first, env = summaries[0], envs[0]
    hardware = re.sub(r"[^a-z0-9]+", "-", env["device"].lower()).strip("-")
    data = re.sub(r"[^a-z0-9]+", "-", Path(first["data"]).name.lower())
    out = RESULTS / data / first["recipe"] / f"{env['date'][:10]}_{(env['commit'] or 'nogit').rstrip('+')}_{hardware}"
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(runs[0] / "metrics.jsonl", out / "metrics.jsonl")
    recipe = without_folders(json.loads((runs[0] / "recipe.json").read_text()))
    (out / "recipe.json").write_text(json.dumps(recipe, indent=2) + "\n")
    command = without_folders(env["command"])
    env = env | {"command": command}
    (out / "env.json").write_text(json.dumps(env, indent=2) + "\n")
    summary = {
        "claim": claim,
        "changed": changed,
        "data": Path(first["data"]).name,
        "recipe": first["recipe"],
        "command": shlex.join(command),
        "top1": spread([s["top1"] for s in summaries]),
        "val_top1": spread([s["val_top1"] for s in summaries]),
        "seeds": [s["seed"] for s in summaries],
        "nll": spread([s["test"]["nll"] for s in summaries]),
        "ece": spread([s["test"]["ece"] for s in summaries]),
        "tta": over_views(runs),
        "test_images": first["test"]["n"],
        "train_images": first["train_images"],
        "images_seen": first["steps"] * recipe["run"]["batch_size"],
        "params": first["params"],
        "steps": first["steps"],
        "train_s": spread([s["train_s"] for s in summaries]),
        "images_per_s": spread([s["images_per_s"] for s in summaries]),
        "peak_mib": max(s["peak_mib"] for s in summaries),
        "device": env["device"],
        "precision": first["precision"],
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    curve(runs[0], out / "curve.png")
    top1, train_s = summary["top1"], summary["train_s"]
    views = ""
    if tta := summary["tta"]:
        of = f"{tta['views']} views of each image (`mlpmixer evaluate RUN --tta {','.join(tta['kinds'])}`)"
        views = f" With the mean over {of}: {percent(tta['top1'])} ({seeds(tta['top1'])})."
    (out / "README.md").write_text(
        f"# {claim}\n\nTest top-1 **{percent(top1)}** ({seeds(top1)}), {summary['test_images']:,} images.{views} "
        f"Validation {percent(summary['val_top1'])}. {summary['params']:,} parameters, {summary['steps']:,} steps, "
        f"{minutes(train_s['mean'])} of training at {summary['images_per_s']['mean']:.0f} images/s, peak "
        f"{summary['peak_mib']:.0f} MiB.\nHardware: {env['device']}, {first['precision']}.\n\n"
        f"    {summary['command']}\n\n"
        f"Seeds: {', '.join(map(str, summary['seeds']))}. {COUNTS[first.get('kept', 'last')]}.\n\n![curve](curve.png)\n"
    )
    return out


def over_views(runs: list[Path]) -> dict[str, Any] | None:
    """Test top-1 of the mean over several views of each image; None where no run has it."""
    found = [json.loads(file.read_text()) for run in runs if (file := run / VIEWS).exists()]
    if not found:
        return None
    ways = {f"{','.join(scores['tta']['kinds'])}, {scores['scored']['split']}" for scores in found}
    if len(found) < len(runs) or len(ways) > 1 or found[0]["scored"]["split"] != "test":
        raise SystemExit(
            f"expected {VIEWS} in all {len(runs)} runs, of the same views of test images; found {len(found)}, {ways}"
        )
    tta = found[0]["tta"]
    top1 = spread([scores["tta"]["top1"] for scores in found])
    return {"kinds": tta["kinds"], "views": tta["views"], "top1": top1}


def _require_seeds_of_one_recipe(runs: list[Path]) -> None:
    """SystemExit unless the runs differ in nothing but their seeds, and each in those."""
    recipes = [json.loads((run / "recipe.json").read_text()) for run in runs]
    seeds = [(r["run"].pop("seed"), r["data"].pop("split_seed", 0)) for r in recipes]
    for r in recipes:
        r["run"].pop("threads", None)  # measured at the start
        r["data"].pop("data_dir", None)
    for run, r in zip(runs, recipes, strict=True):
        if other := sorted({key for key in r | recipes[0] if r.get(key) != recipes[0].get(key)}):
            raise SystemExit(f"{run} and {runs[0]} differ in more than their seeds: {', '.join(other)}")
    if len(set(seeds)) < len(seeds):
        raise SystemExit(f"runs of one result must have different seeds, got {seeds}")


def curve(run: Path, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    fig, ax = plt.subplots(figsize=(6, 3), dpi=110, layout="constrained")
    for kind, label in (("step", "training batches"), ("eval", "validation")):
        points = [(x["epoch"], 100 * x["top1"]) for x in lines if x["kind"] == kind]
        ax.plot(
            *zip(*points, strict=True), label=label, alpha=0.5 if kind == "step" else 1, lw=0.8 if kind == "step" else 2
        )
    ax.set(xlabel="epoch", ylabel="top-1, %")
    ax.grid(alpha=0.3)
    ax.legend()
    fig.savefig(path)


def percent(top1: dict[str, Any]) -> str:
    return f"{100 * top1['mean']:.2f} %"


def seeds(top1: dict[str, Any]) -> str:
    low, high = top1["range"]
    return "n = 1" if top1["n"] == 1 else f"{100 * low:.2f}-{100 * high:.2f}, n = {top1['n']}"


def minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.{1 if seconds < 6000 else 0}f} min"


def newest() -> dict[str, Path]:
    """The summary of the newest result of each data set and recipe: "cifar10/small-images-2h" and so on."""
    found = sorted(RESULTS.glob("*/*/*/summary.json"), key=begun)
    return {f"{path.parts[-4]}/{path.parts[-3]}": path for path in found}


def begun(summary: Path) -> tuple[str, str, str]:
    """Sorts stored results by data, recipe and time."""
    return summary.parts[-4], summary.parts[-3], json.loads(summary.with_name("env.json").read_text())["date"]


def table() -> str:
    """The stored results, and what others reach on the same data, as a Markdown table."""
    rivals = json.loads((RESULTS / "rivals.json").read_text(encoding="utf-8"))
    rows = [
        "| data | network | test top-1 | parameters | training | command, or who says so |",
        "|---|---|---|---|---|---|",
    ]
    found = newest()
    for data, title in TITLES.items():
        for key, path in found.items():
            if key.split("/")[0] == data:
                s = json.loads(path.read_text())
                top1 = s["top1"]
                threads = s["device"].rsplit(", ", 1)[1].replace("1 threads", "1 thread")
                command = re.sub(r" --out \S+| --seed 0| --threads \d+| --data.split-seed 0", "", s["command"])
                rows.append(
                    f"| [{title}](results/{data}) | Mixer, {epochs(path)} epochs | **{percent(top1)}** ({seeds(top1)}) "
                    f"| {millions(s['params'])} | {minutes(s['train_s']['mean'])}, {threads} | `{command}` |"
                )
        for r in rivals:
            if r["data"] == data:
                rows.append(
                    f"| {title} | {r['network']} | {r['top1']} | {r['params']} | {r['training']} | {r['source']} |"
                )
    return "\n".join(rows)


def epochs(summary: Path) -> str:
    return f"{json.loads(summary.with_name('recipe.json').read_text())['run']['epochs']:g}"


def millions(params: int) -> str:
    return f"{params / 1e6:.2f} M"


def models() -> str:
    """Size, speed and accuracy of the models as a Markdown table."""
    speeds, measured = {}, "not measured."
    for file in (ROOT / "benchmarks").glob("models_*.csv"):  # one, or none
        with open(file, newline="") as f:
            rows_of_file = list(csv.DictReader(f))
        speeds = {(row["model"], row["engine"], row["precision"]): row["images_per_s"] for row in rows_of_file}
        measured = f"{rows_of_file[0]['device']}, {rows_of_file[0]['batch']} at a time: `benchmarks/models_table.py`. "
        measured += (
            "ImageNet's top-1 is as others report it (`mlpmixer list weights`), and ours is on images that were not "
            "trained on."
        )
    columns = [("timm in torch", "float32"), ("ours in onnxruntime", "float32"), ("ours in onnxruntime", "int8")]
    rows = [
        "| model | pixels | parameters | multiply-adds | timm | float32 | int8 | top-1 | weights |",
        "|---|---|---|---|---|---|---|---|---|",
    ]

    def add(name: str, config: NetworkConfig, row: str, data: str, top1: float | None, weights: str) -> None:
        flops = sum(layer.flops for layer in config.layers())
        cells = " | ".join(speeds.get((row, *column), "") for column in columns)
        accuracy = f"{data} {100 * top1:.2f} %" if top1 else ""
        rows.append(
            f"| {name} | {config.image_size} | {config.num_params:,} | {multiply_adds(flops)} | {cells} "
            f"| {accuracy} | {weights} |"
        )

    for name, row in OURS.items():
        meta = read_meta(file := own.get(name))
        assert meta.data is not None
        place = "with the package" if file.parent == own.PACKAGED else "in `weights/`"
        add(f"`{name}`", meta.config, row, TITLES[meta.data.name], OWN[name].top1, place)
    for name, weights in PUBLISHED.items():
        add(name, MODELS[name], name, "ImageNet", WEIGHTS[weights].top1, f"`{weights}`")
    for name, reported in BY_AUTHORS.items():
        page = "docs/concepts/family.md#weights-of-their-authors"
        add(name, MODELS[name], name, "ImageNet", reported, f"[of its authors]({page})")
    return f"Images a second in timm, float32 and int8: {measured}\n\n" + "\n".join(rows)


def leaderboard() -> str:
    """Every stored result on CIFAR-10, newest first, as a Markdown table."""
    rows = [
        "| date | images seen | test top-1 | over 5 shifted views | parameters | time | hardware | what changed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for path in sorted((RESULTS / "cifar10").glob("*/*/summary.json"), key=lambda p: begun(p)[2], reverse=True):
        s = json.loads(path.read_text())
        device, threads = s["device"].replace("1 threads", "1 thread").rsplit(", ", 1)
        views = percent(s["tta"]["top1"]) if s.get("tta") else ""
        rows.append(
            f"| [{begun(path)[2][:10]}](../../{path.parent.relative_to(ROOT)}) | {s['images_seen']:,} "
            f"| {percent(s['top1'])} ({seeds(s['top1'])}) | {views} | {millions(s['params'])} "
            f"| {minutes(s['train_s']['mean'])} | {threads}, {device} | {s['changed']} |"
        )
    return "\n".join(rows)


TABLES = {"README.md": {"results": table, "models": models}, "docs/results/cifar10.md": {"leaderboard": leaderboard}}
"""The pages with tables of what is stored."""


def with_tables(page: str, text: str) -> str:
    """The text of a page with its tables as they are now."""
    for name, write in TABLES[page].items():
        start, end = START.format(name), END.format(name)
        before, rest = text.split(start)
        text = f"{before}{start}\n{write()}\n{end}{rest.split(end)[1]}"
    return text


def main(args: list[str]) -> None:
    if args[:1] == ["add"] and len(args) > 3:
        print(add(args[1], args[2], [Path(a) for a in args[3:]]).relative_to(ROOT))
    elif args != ["table"]:
        raise SystemExit(__doc__)
    for page in TABLES:
        path = ROOT / page
        path.write_text(with_tables(page, path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
