"""The page of a training run: its result, its curves, its recipe, as self-contained HTML."""

import json
import math
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from mlpmixer.durable import read_json, write_text
from mlpmixer.evaluation.html import FIRST, INK, SECOND, percent, render, svg
from mlpmixer.evaluation.metrics import Metrics
from mlpmixer.evaluation.multi_label import MultiLabelMetrics
from mlpmixer.evaluation.report import Json, Thumbnail, view
from mlpmixer.weights.privacy import without_folders
from mlpmixer.weights.run_folder import ENV_FILE, metric_of, read_metrics, read_recipe_json, read_summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATE = Path(__file__).with_name("templates") / "run.html"


def write_report(
    run_dir: str | os.PathLike[str],
    metrics: Metrics | MultiLabelMetrics | None = None,
    thumbnails: Sequence[Thumbnail] = (),
    summary: Json | None = None,
) -> Path:
    """Write report.html into a run directory from its JSON files and return the path.

    metrics: on the test split, or on validation when the data has none; default: those in summary.json. thumbnails: see
    `report.evaluation_html`. summary: of a run that is ending; default: summary.json.

    ValueError when the directory is not a run, and when its recipe or summary is damaged; a damaged env.json is said on
    the page.
    """
    run = Path(run_dir)
    recipe = read_recipe_json(run)
    summary = summary or read_summary(run) or {}
    try:
        env = read_json(run / ENV_FILE)
    except FileNotFoundError:
        env = {}
    except ValueError as e:
        env = {"env.json": str(e)}
    recipe, name = without_folders(recipe), run.resolve().name
    env |= {key: without_folders(words) for key, words in env.items() if key == "command"}
    test = metrics or summary.get("test") or summary.get("val")
    result = view(test, thumbnails) if test else None
    bad = result["bad"] if result else []
    page = render(
        TEMPLATE,
        title=" · ".join(dict.fromkeys([recipe.get("name", "run"), name])),
        split="validation" if summary.get("val") and not summary.get("test") else "test",
        result=result,
        details=_details(summary, recipe, env),
        advice=summary.get("advice") or [],
        data=str((recipe.get("data") or {}).get("name") or ""),
        charts=_charts(read_metrics(run / "metrics.jsonl"), summary.get("best_step")),
        chosen=_chosen(summary),
        bad=bad,
        train_bad=[image for image in summary.get("bad_images") or [] if image not in bad],
        command=f"mlpmixer predict {shlex.quote(name)} photo.jpg",
        code=f"import mlpmixer\nmodel = mlpmixer.load({name!r})\nprint(model.predict('photo.jpg'))",
        recipe=list(_flat(recipe)),
        env=list(_flat(env)),
    )
    write_text(run / "report.html", page)
    return run / "report.html"


def _details(summary: Json, recipe: Json, env: Json) -> list[tuple[str, str]]:
    """The facts of the run that are known, for the head of the page."""
    model = {} if recipe.get("network") else dict(recipe.get("model") or {})
    if isinstance(model.get("patch_size"), list):
        model["patch_size"] = "x".join(map(str, model["patch_size"]))
    parts = {"num_blocks": "{} blocks", "hidden_dim": "width {}", "patch_size": "patches of {} px"}
    shape = [text.format(model[key]) for key, text in parts.items() if model.get(key)]
    numbers = {"steps": ("steps", ""), "images_per_s": ("speed", " images/s"), "peak_mib": ("peak memory", " MiB")}
    val = f"val_{metric_of(summary)}"
    details = {
        "validation": percent(summary[val]) if summary.get(val) is not None else "",
        "parameters": f"{summary['params']:,}" if summary.get("params") else "",
        "network": str(recipe.get("network") or model.get("architecture") or ""),
        "model": ", ".join(shape),
        "training time": _duration(summary["train_s"]) if summary.get("train_s") is not None else "",
        **{name: f"{summary[key]:,.0f}{unit}" for key, (name, unit) in numbers.items() if summary.get(key)},
        "hardware": str(env.get("device") or ""),
        "data": str((recipe.get("data") or {}).get("name") or ""),
        "state": "" if summary else "not finished",
    }
    return [(name, text) for name, text in details.items() if text]


def _chosen(summary: Json) -> str:
    """Legend of the charts' dotted line; older runs do not say which step they kept."""
    if not summary.get("best_step"):
        return ""
    why = "the best on validation" if summary.get("kept") == "best" else "the last one"
    return f" · dotted line: step {summary['best_step']:,}, {why}, which gave the model its weights"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{int(minutes // 60)} h {int(minutes % 60)} min"


def _flat(values: Json, prefix: str = "") -> Iterable[tuple[str, str]]:
    """Nested settings as (optim.lr, 0.001)."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif key == "command" and isinstance(value, list):
            yield f"{prefix}{key}", shlex.join(map(str, value))
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# --- curves ---------------------------------------------------------------------------------------------------------

Curve = tuple[list[float], list[float]]


def _charts(lines: Sequence[Json], chosen: int | None) -> list[tuple[str, Markup]]:
    """(title, picture) of loss, accuracy and learning rate over steps, of those that metrics.jsonl has.

    chosen: the step to mark.
    """

    def curve(kind: str, key: str, scale: float = 1.0) -> Curve:
        rows = [line for line in lines if line.get("kind") == kind and isinstance(line.get(key), int | float)]
        points = [(float(row["step"]), scale * float(row[key])) for row in rows if math.isfinite(row[key])]
        return [x for x, _ in points], [y for _, y in points]

    charts = {
        "Loss, nats": (curve("step", "loss"), curve("eval", "nll"), curve("eval", "train_nll")),
        "Top-1 accuracy, %": (curve("step", "top1", 100), curve("eval", "top1", 100), curve("eval", "train_top1", 100)),
        "Mean average precision, %": (([], []), curve("eval", "map", 100), curve("eval", "train_map", 100)),
        "Learning rate": (([], []), curve("step", "lr"), ([], [])),
    }
    return [(title, _chart(*curves, chosen)) for title, curves in charts.items() if any(x for x, _ in curves)]


def _chart(train: Curve, main: Curve, evaluated: Curve, chosen: int | None) -> Markup:
    """Curves over steps, whose unit the title says; a long first one also as a moving mean."""
    from matplotlib.ticker import MaxNLocator

    def draw(figure: "Figure") -> None:
        axes, (x, y) = figure.add_subplot(), train
        if len(y) > 60:
            axes.plot(x, y, color=SECOND, linewidth=0.7, alpha=0.35)
            x, y = _smooth(x), _smooth(y)
        axes.plot(x, y, color=SECOND, linewidth=1.4)
        axes.plot(*evaluated, color=SECOND, linewidth=1.4, linestyle="--")
        x, y = main
        axes.plot(x, y, color=FIRST, linewidth=1.8, marker="o" if len(x) <= 30 else None, markersize=3)
        if chosen:
            axes.axvline(chosen, color=INK, linewidth=1.2, linestyle=(0, (1, 2)))
        axes.set_xlabel("step", color=INK)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))

    return svg(draw, 4.2, 2.6)


def _smooth(values: list[float]) -> list[float]:
    """Means over about forty windows, so that a noisy curve shows where it goes."""
    width = max(1, len(values) // 40)
    return [float(np.mean(values[i : i + width])) for i in range(0, len(values), width)]
