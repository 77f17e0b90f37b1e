"""Turn finished runs into a stored result, and keep the table of the README equal to the stored results.

    python results/collect.py add "what is claimed" runs/digits-0 runs/digits-1 ...   # runs of one recipe, other seeds
    python results/collect.py table                                                    # rewrite the table in README.md

A result is results/<data>/<recipe>/<date>_<commit>_<hardware>/ with recipe.json, env.json, metrics.jsonl (of the first
run), summary.json (mean, range and number of seeds, on the test split) and a README of the claim, the command and the
curve.
"""

import json
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from mlpmixer.weights.privacy import without_folders

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
COUNTS = {"last": "The last step counts, not the best", "best": "The step with the best validation accuracy counts"}
START, END = "<!-- results: written by results/collect.py -->", "<!-- end of results -->"


def spread(values: list[float]) -> dict[str, Any]:
    return {"mean": round(sum(values) / len(values), 5), "range": [min(values), max(values)], "n": len(values)}


def add(claim: str, runs: list[Path]) -> Path:
    summaries = [json.loads((run / "summary.json").read_text()) for run in runs]
    envs = [json.loads((run / "env.json").read_text()) for run in runs]
    first, env = summaries[0], envs[0]
    if len({(s["recipe"], s["data"]) for s in summaries}) != 1:
        raise SystemExit("runs of one result must share recipe and data")
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
        "data": Path(first["data"]).name,
        "recipe": first["recipe"],
        "command": shlex.join(command),
        "top1": spread([s["top1"] for s in summaries]),
        "val_top1": spread([s["val_top1"] for s in summaries]),
        "seeds": [s["seed"] for s in summaries],
        "nll": spread([s["test"]["nll"] for s in summaries]),
        "ece": spread([s["test"]["ece"] for s in summaries]),
        "test_images": first["test"]["n"],
        "train_images": first["train_images"],
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
    (out / "README.md").write_text(
        f"# {claim}\n\nTest top-1 **{percent(top1)}** ({seeds(top1)}), {summary['test_images']:,} images. "
        f"Validation {percent(summary['val_top1'])}. {summary['params']:,} parameters, {summary['steps']:,} steps, "
        f"{minutes(train_s['mean'])} of training at {summary['images_per_s']['mean']:.0f} images/s, peak "
        f"{summary['peak_mib']:.0f} MiB.\nHardware: {env['device']}, {first['precision']}.\n\n"
        f"    {summary['command']}\n\n"
        f"Seeds: {', '.join(map(str, summary['seeds']))}. {COUNTS[first.get('kept', 'last')]}.\n\n![curve](curve.png)\n"
    )
    return out


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
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def table() -> str:
    """The stored results as a Markdown table, newest of each recipe and data set."""
    rows = [
        "| data | test top-1 | seeds | parameters | training | hardware | command |",
        "|---|---|---|---|---|---|---|",
    ]
    newest: dict[tuple[str, str], Path] = {}
    for path in sorted(RESULTS.glob("*/*/*/summary.json"), key=begun):
        newest[(path.parts[-4], path.parts[-3])] = path
    for path in newest.values():
        s = json.loads(path.read_text())
        rows.append(
            f"| [{s['data']}]({path.parent.relative_to(ROOT).as_posix()}) | {percent(s['top1'])} | {seeds(s['top1'])} "
            f"| {s['params']:,} | {minutes(s['train_s']['mean'])} | {s['device']} | `{s['command']}` |"
        )
    return "\n".join(rows)


def begun(summary: Path) -> tuple[str, str, str]:
    """Sorts stored results by data, recipe and time."""
    return summary.parts[-4], summary.parts[-3], json.loads(summary.with_name("env.json").read_text())["date"]


def readme_with_table(readme: str) -> str:
    before, rest = readme.split(START)
    return f"{before}{START}\n{table()}\n{END}{rest.split(END)[1]}"


def main(args: list[str]) -> None:
    readme = ROOT / "README.md"
    if args[:1] == ["add"] and len(args) > 2:
        print(add(args[1], [Path(a) for a in args[2:]]).relative_to(ROOT))
    elif args != ["table"]:
        raise SystemExit(__doc__)
    readme.write_text(readme_with_table(readme.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
