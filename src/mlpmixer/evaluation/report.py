"""A run, or one evaluation, as one self-contained HTML page: no script, no request, everything inline.

Every string that comes from data (class names, file names, recipe values) goes through `esc`; matplotlib draws numbers
only, and class names never reach it.
"""

import base64
import html
import io
import json
import math
import os
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mlpmixer.data.image_set import ImageSet
from mlpmixer.data.images import ImageError, decode
from mlpmixer.evaluation.significance import wilson
from mlpmixer.weights.run_folder import read_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TABLE_CLASSES = 20  # up to here the confusion matrix is a table of numbers, above it a picture
LABELLED_CLASSES = 200  # up to here the picture names its rows and columns
MAX_BAD_ROWS = 200
THUMBNAIL_PX = 160


class ToJson(Protocol):
    """What the page needs of Metrics."""

    def to_json(self) -> dict[str, Any]: ...


Json = Mapping[str, Any]
Thumbnails = Sequence[NDArray[np.uint8] | None]


def write_report(
    run_dir: str | os.PathLike[str], metrics: ToJson | Json | None = None, thumbnails: Thumbnails = ()
) -> Path:
    """Write report.html into a run directory from its JSON files and return the path.

    metrics: of the test split, or of validation when the data has no test split; None takes those in summary.json.
    thumbnails: uint8 pictures (H,W), (H,W,1) or (H,W,3), or None, in the order of `metrics.most_wrong`. Raises
    ValueError when the directory is no run.
    """
    run = Path(run_dir)
    if not (run / "recipe.json").is_file():
        raise ValueError(f"{run} is not a run: it has no recipe.json; expected a folder that `mlpmixer train` wrote")
    recipe, env, summary = (_read(run / f"{name}.json") for name in ("recipe", "env", "summary"))
    lines = read_metrics(run / "metrics.jsonl")
    test = _plain(metrics) or summary.get("test") or summary.get("val")
    split = "validation" if summary.get("val") and not summary.get("test") else "test"
    bad = [list(b) for b in (test or {}).get("bad") or []]
    train_bad = [b for b in summary.get("bad_images") or [] if b not in bad]
    title = f"{recipe.get('name', 'run')} · {run.resolve().name}"
    body = [
        _headline(title, test, f"{split} images", summary, recipe, env),
        _curves_section(lines),
        *_metrics_sections(test, thumbnails),
        _bad_section(f"Skipped {split} images", bad),
        _bad_section("Skipped training images", train_bad),
        _use_section(run),
        _facts_section("Recipe", recipe),
        _facts_section("Environment", env),
    ]
    path = run / "report.html"
    part = path.with_name(".report.html.part")
    part.write_text(page(title, body), encoding="utf-8")
    os.replace(part, path)
    return path


def evaluation_html(
    metrics: ToJson | Json, thumbnails: Thumbnails = (), *, title: str = "Evaluation", model: str = "", data: str = ""
) -> str:
    """The page of one evaluation; thumbnails as in `write_report`. `model` and `data` say what was evaluated on
    what."""
    test = _plain(metrics)
    facts = [("model", model), ("data", data)]
    body = [
        _header(title, test, [(k, v) for k, v in facts if v], "images"),
        *_metrics_sections(test, thumbnails),
        _bad_section("Skipped images", test.get("bad") or []),
    ]
    return page(title, body)


def thumbnails_of(
    images: ImageSet, indices: Iterable[int], size_px: int = THUMBNAIL_PX
) -> list[NDArray[np.uint8] | None]:
    """Pictures, uint8 (H,W,3), of some images of a set, at most `size_px` on a side; None for one that cannot be
    read."""
    out: list[NDArray[np.uint8] | None] = []
    for i in indices:
        try:
            image = decode(images.source(i), "RGB", max_px=size_px)
        except ImageError:
            out.append(None)
            continue
        shown = image.copy()  # the set may hold this very object
        shown.thumbnail((size_px, size_px))
        out.append(np.asarray(shown))
    return out


def esc(value: object) -> str:
    """Any value as text that HTML shows and does not obey, in element content and in double-quoted attributes."""
    return html.escape(str(value).encode("utf-8", "replace").decode("utf-8"), quote=True)


# --- parts of the page ----------------------------------------------------------------------------------------------


def _headline(title: str, test: Json | None, what: str, summary: Json, recipe: Json, env: Json) -> str:
    model = recipe.get("model") or {}
    facts: list[tuple[str, str]] = []
    if summary.get("val_top1") is not None:
        facts.append(("validation", f"{_percent(summary['val_top1'])}"))
    if summary.get("params"):
        facts.append(("parameters", f"{summary['params']:,}"))
    if recipe.get("network"):
        facts.append(("network", str(recipe["network"])))
    elif model.get("num_blocks"):
        patch = model.get("patch_size")
        patch = "x".join(map(str, patch)) if isinstance(patch, list) else patch
        facts.append(("model", f"{model['num_blocks']} blocks, width {model.get('hidden_dim')}, patches of {patch} px"))
    if summary.get("train_s") is not None:
        facts.append(("training time", _duration(summary["train_s"])))
    if summary.get("steps"):
        facts.append(("steps", f"{summary['steps']:,}"))
    if summary.get("images_per_s"):
        facts.append(("speed", f"{summary['images_per_s']:,.0f} images/s"))
    if summary.get("peak_mib"):
        facts.append(("peak memory", f"{summary['peak_mib']:,.0f} MiB"))
    if env.get("device"):
        facts.append(("hardware", str(env["device"])))
    if (recipe.get("data") or {}).get("name"):
        facts.append(("data", str(recipe["data"]["name"])))
    if not summary:
        facts.append(("state", "not finished"))
    return _header(title, test, facts, what)


def _header(title: str, test: Json | None, facts: Sequence[tuple[str, str]], what: str) -> str:
    big = ""
    if test:
        n, top1 = int(test["n"]), float(test["top1"])
        low, high = wilson(round(top1 * n), n)
        big = (
            f'<p class="big">{_percent(top1)}<small> of {n:,} {esc(what)} are classified right</small></p>'
            f'<p class="muted">95 % interval {_percent(low)} to {_percent(high)}, from the number of images alone (Wilson)</p>'
        )
        facts = [*_scores(test), *facts]
    cells = "".join(f"<div><dt>{esc(k)}</dt><dd>{esc(v)}</dd></div>" for k, v in facts)
    return f'<header><h1>{esc(title)}</h1>{big}<dl class="facts">{cells}</dl></header>'


def _scores(test: Json) -> list[tuple[str, str]]:
    scores = [("top-5", _ranged(test["top5"], test["n"]))] if test.get("top5") is not None else []
    averaged = test.get("tta")
    if averaged:
        scores.append(
            (
                f"top-1 with test-time augmentation ({', '.join(averaged['kinds'])})",
                _ranged(averaged["top1"], test["n"]),
            )
        )
    if real := test.get("real"):
        scores.append((f"ReaL top-1, {real['n']:,} images", _ranged(real["top1"], real["n"])))
    return [
        *scores,
        ("negative log-likelihood", f"{test['nll']:.4f} nats"),
        ("calibration error", _percent(test["ece"])),
        *([("Brier score", f"{test['brier']:.4f}")] if "brier" in test else []),
        ("classes", f"{len(test['classes']):,}"),
    ]


def _metrics_sections(test: Json | None, thumbnails: Thumbnails) -> list[str]:
    if not test:
        return []
    return [
        _gallery_section(test["most_wrong"], thumbnails),
        _calibration_section(test),
        _confusion_section(test),
        _classes_section(test["per_class"]),
    ]


def _gallery_section(wrong: Sequence[Json], thumbnails: Thumbnails) -> str:
    if not wrong:
        return _section("Most wrong images", '<p class="muted">No image was classified wrong.</p>')
    cards = []
    for w, pixels in zip_longest(wrong, thumbnails[: len(wrong)]):
        cards.append(
            f"<figure>{_picture(pixels)}<figcaption>"
            f'taken for <span class="no name">{esc(w["predicted"])}</span> <span class="muted">{_percent(w["probability"])}</span>'
            f'<br>is <span class="ok name">{esc(w["true"])}</span>'
            f'<br><small class="muted name">{esc(w["name"])}</small></figcaption></figure>'
        )
    note = '<p class="muted">The mistakes the model was surest of.</p>'
    return _section("Most wrong images", f'{note}<div class="gallery">{"".join(cards)}</div>')


def _picture(pixels: NDArray[np.uint8] | None) -> str:
    """A small picture as PNG, enlarged without blur; a larger one as JPEG."""
    if pixels is None or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3)):
        return '<div class="noimg">no picture</div>'
    image = Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2:] == (1,) else pixels))
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    file, small = io.BytesIO(), max(image.size) <= 64
    image.save(file, "PNG") if small else image.save(file, "JPEG", quality=85)
    return f'<img class="{"px" if small else ""}" alt="" src="{_data_uri(file.getvalue())}">'


def _calibration_section(test: Json) -> str:
    """How sure the answers are against how often they are right; nothing for metrics that were stored without it."""
    if not test.get("reliability"):
        return ""
    lines, after = [("val", "as it is", test)], test.get("tempered")
    if after:
        what = f"logits divided by {after['temperature']:.3f}, the best on {after['n']:,} validation images"
        lines.append(("train", what, after))
    rows = [
        f'<tr><td><span class="key {kind}"></span>{what}</td><td class="r">{_percent(m["ece"])}</td><td class="r">{m["nll"]:.4f}</td>'
        f'<td class="r">{m["brier"]:.4f}</td></tr>'
        for kind, what, m in lines
    ]
    note = (
        "Up: the share of right answers, %, with its 95 % interval (Wilson), among those it was about as sure of; "
        "across: how sure, %. "
        "Below the dashed line it is surer than it should be. Underneath: how many of the images are there, %."
    )
    table = _table(["", "calibration error", "NLL, nats", "Brier score"], rows, numbers=3)
    chart = f'<figure class="chart">{_reliability_chart([m["reliability"] for _, _, m in lines])}</figure>'
    return _section("Calibration", f'<div class="charts">{chart}<div><p class="muted">{note}</p>{table}</div></div>')


def _confusion_section(test: Json) -> str:
    if not test["confusion"]:
        return ""
    counts = np.array(test["confusion"], dtype=np.int64)
    classes = [str(c) for c in test["classes"]]
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    picture = (
        _confusion_table(counts, share, classes)
        if len(classes) <= TABLE_CLASSES
        else _confusion_picture(counts, share, classes)
    )
    pairs = [(int(counts[i, j]), i, j) for i, j in zip(*np.nonzero(counts), strict=True) if i != j]
    rows = [
        f'<tr><td class="name">{esc(classes[i])}</td><td class="name">{esc(classes[j])}</td>'
        f'<td class="r">{n:,}</td><td class="r">{_percent(share[i, j])}</td></tr>'
        for n, i, j in sorted(pairs, key=lambda x: (-x[0], x[1], x[2]))[:10]
    ]
    table = _table(["is", "taken for", "images", "of the class"], rows, numbers=2) if rows else ""
    note = '<p class="muted">Rows: the true class. Columns: the prediction. The colour is the share of the row.</p>'
    frequent = f'<h3>Most frequent confusions</h3><div class="pairs">{table}</div>' if table else ""
    return _section("Confusion", note + picture + frequent)


def _confusion_table(counts: NDArray[np.int64], share: NDArray[np.float64], classes: Sequence[str]) -> str:
    head = "".join(f'<th class="turn"><span class="name" title="{esc(c)}">{esc(c)}</span></th>' for c in classes)
    rows = []
    for i, name in enumerate(classes):
        cells = []
        for j in range(len(classes)):
            tint = f' style="--s:{_tint(share[i, j]):.0f}%"' if counts[i, j] else ""
            kind = "hit" if i == j else "miss"
            cells.append(f'<td class="{kind}"{tint}>{counts[i, j] or ""}</td>')
        rows.append(f'<tr><th class="name" title="{esc(name)}">{esc(name)}</th>{"".join(cells)}</tr>')
    return f'<div class="scroll"><table class="confusion"><tr><td></td>{head}</tr>{"".join(rows)}</table></div>'


def _tint(share: float) -> float:
    """Strength of a cell's colour in percent: the square root keeps rare confusions visible."""
    return 100 * math.sqrt(share) * 0.85


def _confusion_picture(counts: NDArray[np.int64], share: NDArray[np.float64], classes: Sequence[str]) -> str:
    """One pixel for each cell, enlarged without blur, in an SVG that names rows and columns."""
    k = len(classes)
    hit = np.eye(k, dtype=bool)[:, :, None]
    colour = np.where(hit, np.array([47, 133, 90]), np.array([214, 69, 65]))
    alpha = np.round(255 * np.sqrt(share))[:, :, None]
    picture = io.BytesIO()
    Image.fromarray(np.concatenate([colour, alpha], axis=2).astype(np.uint8)).save(picture, "PNG")
    cell, margin = (min(16, max(8, 850 // k)), 120) if k <= LABELLED_CLASSES else (max(1, 900 // k), 4)
    side = margin + cell * k
    labels = []
    for i, name in enumerate(classes if k <= LABELLED_CLASSES else []):
        at = margin + cell * i + cell * 0.75
        text = esc(name if len(name) <= 20 else name[:19] + "…")
        labels.append(f'<text x="{margin - 4}" y="{at:.1f}" text-anchor="end">{text}<title>{esc(name)}</title></text>')
        labels.append(
            f'<text transform="translate({at:.1f} {margin - 4}) rotate(-90)">{text}<title>{esc(name)}</title></text>'
        )
    return (
        f'<div class="scroll"><svg class="matrix" viewBox="0 0 {side} {side}" width="{side}" height="{side}"'
        ' role="img" aria-label="confusion matrix">'
        f'<image x="{margin}" y="{margin}" width="{cell * k}" height="{cell * k}" href="{_data_uri(picture.getvalue())}"/>'
        f'<rect x="{margin}" y="{margin}" width="{cell * k}" height="{cell * k}"/>{"".join(labels)}</svg></div>'
    )


def _classes_section(rows: Sequence[Json]) -> str:
    many = len(rows) > TABLE_CLASSES
    rows = sorted(rows, key=lambda r: (r["f1"], r["name"])) if many else rows
    lines = [
        f'<tr><td class="name">{esc(r["name"])}</td><td class="bar" style="--s:{100 * r["f1"]:.1f}%">{_percent(r["f1"])}</td>'
        f'<td class="r">{_percent(r["precision"])}</td><td class="r">{_ranged(r["recall"], r["support"])}</td>'
        f'<td class="r">{r["support"]:,}</td></tr>'
        for r in rows
    ]
    note = f'<p class="muted">{"Sorted by F1, the weakest first. " if many else ""}In brackets: 95 % intervals (Wilson).</p>'
    return _section(
        "Classes", note + _table(["class", "F1", "precision", "recall", "images"], lines, numbers=4, tall=many)
    )


def _bad_section(title: str, bad: Sequence[Any]) -> str:
    if not bad:
        return ""
    rows = []
    for entry in bad[:MAX_BAD_ROWS]:
        name, reason = entry if isinstance(entry, list | tuple) and len(entry) == 2 else (entry, "")
        rows.append(f'<tr><td class="name">{esc(name)}</td><td class="name">{esc(reason)}</td></tr>')
    more = f'<p class="muted">and {len(bad) - MAX_BAD_ROWS:,} more</p>' if len(bad) > MAX_BAD_ROWS else ""
    left_out = "1 image was left out: it" if len(bad) == 1 else f"{len(bad):,} images were left out: they"
    note = f'<p class="muted">{left_out} could not be read.</p>'
    return _section(title, note + _table(["image", "reason"], rows, tall=True) + more)


def _use_section(run: Path) -> str:
    name = str(run)
    shell = f"mlpmixer predict {shlex.quote(name)} photo.jpg"
    python = f"import mlpmixer\nmodel = mlpmixer.load({name!r})\nprint(model.predict('photo.jpg'))"
    return _section(
        "Use the model", f"<pre>{esc(shell)}</pre><p class='muted'>or in Python</p><pre>{esc(python)}</pre>"
    )


def _facts_section(title: str, values: Json) -> str:
    if not values:
        return ""
    rows = [
        f'<tr><td>{esc(key)}</td><td class="name"><code>{esc(value)}</code></td></tr>' for key, value in _flat(values)
    ]
    table = f'<div class="scroll"><table class="plain">{"".join(rows)}</table></div>'
    return f"<section><details><summary><h2>{esc(title)}</h2></summary>{table}</details></section>"


def _flat(values: Json, prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif key == "command" and isinstance(value, list):
            yield f"{prefix}{key}", shlex.join(map(str, value))
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# --- curves ---------------------------------------------------------------------------------------------------------


def _curves_section(lines: Sequence[Json]) -> str:
    steps = [line for line in lines if line.get("kind") == "step"]
    evals = [line for line in lines if line.get("kind") == "eval"]

    def series(rows: Sequence[Json], key: str, scale: float = 1.0) -> tuple[list[float], list[float]]:
        points = [
            (float(r["step"]), scale * float(r[key]))
            for r in rows
            if isinstance(r.get(key), int | float) and math.isfinite(r[key])
        ]
        return [x for x, _ in points], [y for _, y in points]

    if not steps and not evals:
        return ""
    charts = [
        ("Loss", [("train", *series(steps, "loss")), ("validation", *series(evals, "nll"))]),
        ("Top-1 accuracy, %", [("train", *series(steps, "top1", 100)), ("validation", *series(evals, "top1", 100))]),
        ("Learning rate", [("", *series(steps, "lr"))]),
    ]
    drawn = [
        f'<figure class="chart"><figcaption>{esc(title)}</figcaption>{_chart(curves)}</figure>'
        for title, curves in charts
        if any(x for _, x, _ in curves)
    ]
    key = (
        '<p class="muted"><span class="key train"></span>training batches (with augmentation)'
        '<span class="key val"></span>validation · over steps</p>'
    )
    return _section("Training", key + '<div class="charts">' + "".join(drawn) + "</div>")


# matplotlib writes these stand-ins into the SVG; the page's own colours, light or dark, take their place
_COLOURS = {"#010101": "var(--ink2)", "#020202": "var(--line)", "#030303": "var(--train)", "#040404": "var(--accent)"}


def _chart(series: Sequence[tuple[str, list[float], list[float]]]) -> str:
    """Curves over steps as an inline SVG with nothing but numbers on its axes."""
    from matplotlib.ticker import MaxNLocator

    def draw(figure: "Figure") -> None:
        axes = figure.add_subplot()
        for name, x, y in series:
            main = name != "train"
            noisy = not main and len(y) > 60
            if noisy:
                axes.plot(x, y, color="#030303", linewidth=0.7, alpha=0.35)
                x, y = _smooth(x, y)
            marker = "o" if main and len(x) <= 30 and name else None
            axes.plot(
                x,
                y,
                color="#040404" if main else "#030303",
                linewidth=1.8 if main else 1.4,
                marker=marker,
                markersize=3,
            )
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))

    return _svg(draw, 4.2, 2.6)


def _reliability_chart(models: Sequence[Sequence[Json]]) -> str:
    """Accuracy over confidence, in percent, of the bins of one or two sets of probabilities, above the share of the
    images in each bin."""

    def draw(figure: "Figure") -> None:
        axes, below = figure.subplots(2, sharex=True, height_ratios=(4, 1))
        axes.plot((0, 100), (0, 100), color="#010101", linewidth=1, linestyle=(0, (4, 3)))
        for i, (bins, colour) in enumerate(zip(models, ("#040404", "#030303"), strict=False)):
            filled, total = [b for b in bins if b["count"]], sum(b["count"] for b in bins)
            x, y = ([100 * b[key] for b in filled] for key in ("confidence", "accuracy"))
            reach = [[100 * abs(b["accuracy_interval"][side] - b["accuracy"]) for b in filled] for side in (0, 1)]
            axes.errorbar(
                x, y, yerr=reach, color=colour, linewidth=0.8, elinewidth=1, marker="o", markersize=3.5, capsize=2
            )
            width = 90 / len(bins) / len(models)
            left = [100 / len(bins) * (k + 0.05) + width * i for k in range(len(bins))]
            below.bar(left, [100 * b["count"] / total for b in bins], width=width, color=colour, align="edge")
        axes.set(xlim=(0, 100), ylim=(0, 100))

    return _svg(draw, 4.6, 4.8)


def _svg(draw: Callable[["Figure"], None], width: float, height: float) -> str:
    """What `draw` puts on an empty figure of that size, in inches, as an inline SVG in the page's colours."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "mlpmixer", "font.family": "sans-serif", "font.size": 9}):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        for axes in figure.axes:
            axes.grid(color="#020202", linewidth=0.8)
            axes.set_axisbelow(True)
            axes.tick_params(colors="#010101", length=0)
            for spine in axes.spines.values():
                spine.set_visible(False)
        text = io.StringIO()
        figure.savefig(
            text, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    svg = text.getvalue()
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg[svg.index("<svg") :])  # not needed within HTML
    for stand_in, colour in _COLOURS.items():
        svg = svg.replace(stand_in, colour)
    return svg


def _smooth(x: list[float], y: list[float]) -> tuple[list[float], list[float]]:
    """Means over about forty windows, so that a noisy curve shows where it goes."""
    width = max(1, len(y) // 40)
    starts = range(0, len(y), width)
    return [float(np.mean(x[i : i + width])) for i in starts], [float(np.mean(y[i : i + width])) for i in starts]


# --- small pieces ---------------------------------------------------------------------------------------------------


def _section(title: str, inner: str) -> str:
    return f"<section><h2>{esc(title)}</h2>{inner}</section>"


def _table(head: Sequence[str], rows: Sequence[str], *, numbers: int = 0, tall: bool = False) -> str:
    """A table whose last `numbers` columns are right-aligned; a tall one scrolls in its own box."""
    cells = "".join(f'<th class="{"r" if i >= len(head) - numbers else ""}">{esc(h)}</th>' for i, h in enumerate(head))
    kind = "scroll tall" if tall else "scroll"
    return f'<div class="{kind}"><table class="rows"><thead><tr>{cells}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %" if 0.99 <= share < 1 else f"{100 * share:.1f} %"


def _ranged(share: float, n: int) -> str:
    """A share of n images with its 95 % interval: 85.1 % (84.4-85.8)"""
    low, high = wilson(round(share * n), n)
    return f"{_percent(share)} ({100 * low:.1f}-{100 * high:.1f})"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{int(minutes // 60)} h {int(minutes % 60)} min"


def _data_uri(data: bytes) -> str:
    kind = "png" if data[:4] == b"\x89PNG" else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _plain(metrics: ToJson | Json | None) -> Json:
    return {} if metrics is None else metrics if isinstance(metrics, Mapping) else metrics.to_json()


def _read(path: Path) -> dict[str, Any]:
    """A JSON object of the run; {} when the run has not written it (yet)."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    return value if isinstance(value, dict) else {}


def page(title: str, body: Iterable[str], style: str = "") -> str:
    """A whole page out of HTML that is safe already; `style` is CSS beside the common one."""
    # the policy forbids every request and every script, whatever a class name holds
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f"<title>{esc(title)}</title><style>{_STYLE}{style}</style></head><body><main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main></body></html>\n"
    )


_STYLE = """
:root{--bg:#f7f7f5;--card:#fff;--ink:#1f2328;--ink2:#6a737d;--line:#e4e5e3;--accent:#2f6fb4;--train:#d08a2e;--ok:#2f855a;--no:#d64541}
@media(prefers-color-scheme:dark){:root{--bg:#15181c;--card:#1d2126;--ink:#e6e8ea;--ink2:#98a2ad;--line:#30363d;--accent:#6cb0f5;
  --train:#e2a857;--ok:#58c08c;--no:#f07f7b}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1080px;margin:0 auto;padding:24px 16px 64px}
header,section{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:20px 24px;margin:0 0 16px}
h1{font-size:17px;font-weight:600;margin:0;color:var(--ink2);overflow-wrap:anywhere}
h2{font-size:17px;font-weight:600;margin:0 0 8px}h3{font-size:15px;font-weight:600;margin:20px 0 4px}
p{margin:0 0 10px}.big{font-size:52px;font-weight:650;letter-spacing:-.02em;line-height:1.15;margin:6px 0 2px}
.big small{font-size:16px;font-weight:400;letter-spacing:0;color:var(--ink2)}
.muted,small.muted{color:var(--ink2)}
.facts{display:grid;grid-template-columns:repeat(auto-fill,minmax(170px,1fr));gap:12px 20px;margin:16px 0 0}
.facts dt{font-size:12px;color:var(--ink2)}.facts dd{margin:0;font-weight:550;overflow-wrap:anywhere}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(280px,1fr));gap:16px}
.chart{margin:0}.chart figcaption{font-size:13px;color:var(--ink2)}.chart svg{width:100%;height:auto;display:block}
.chart text{font-family:inherit!important}
.key{display:inline-block;width:18px;height:3px;border-radius:2px;vertical-align:middle;margin:0 4px 0 10px}
.key:first-child{margin-left:0}.key.train{background:var(--train)}.key.val{background:var(--accent)}
.gallery{display:grid;grid-template-columns:repeat(auto-fill,minmax(132px,1fr));gap:16px}
.gallery figure{margin:0;min-width:0}.gallery figcaption{font-size:13px;line-height:1.4;margin-top:6px;overflow-wrap:anywhere}
.gallery img,.noimg{width:100%;aspect-ratio:1;object-fit:contain;background:var(--bg);border:1px solid var(--line);border-radius:8px;
  display:block}
.px{image-rendering:pixelated}.noimg{display:grid;place-items:center;color:var(--ink2);font-size:12px}
.ok{color:var(--ok);font-weight:550}.no{color:var(--no);font-weight:550}
.name{unicode-bidi:isolate;overflow-wrap:anywhere}
.scroll{overflow:auto}.tall{max-height:480px;border:1px solid var(--line);border-radius:8px}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:14px}
.rows{width:100%}.rows th,.rows td{text-align:left;padding:6px 10px;border-bottom:1px solid var(--line);vertical-align:top}
.rows th{font-size:12px;font-weight:500;color:var(--ink2);background:var(--card);position:sticky;top:0;z-index:1}
.rows th.r,.rows td.r{text-align:right;white-space:nowrap}.rows tr:last-child td{border-bottom:0}
td.bar{text-align:right!important;white-space:nowrap;min-width:130px;
  background:linear-gradient(to right,color-mix(in srgb,var(--accent) 22%,transparent) var(--s),
  transparent var(--s)) no-repeat center/calc(100% - 8px) 70%}
.confusion td,.confusion th{padding:0;font-weight:400;font-size:13px}
.confusion td{width:40px;min-width:30px;height:34px;text-align:center;border:1px solid var(--line)}
.confusion tr:first-child td{border:0}
.confusion th.name{text-align:right;padding-right:8px;max-width:150px;overflow:hidden;text-overflow:ellipsis;white-space:nowrap;
  color:var(--ink2);position:sticky;left:0;background:var(--card)}
.turn{height:1px;vertical-align:bottom}
.turn span{display:inline-block;writing-mode:vertical-rl;transform:rotate(180deg);max-height:120px;overflow:hidden;
  text-overflow:ellipsis;white-space:nowrap;padding-top:6px;color:var(--ink2)}
.hit{background:color-mix(in srgb,var(--ok) var(--s,0%),transparent)}.miss{
  background:color-mix(in srgb,var(--no) var(--s,0%),transparent)}
.matrix{max-width:none;display:block}.matrix image{image-rendering:pixelated}.matrix text{font-size:8px;fill:var(--ink2)}
.pairs{max-width:620px}.matrix rect{fill:none;stroke:var(--line)}
pre,code{font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
pre{background:var(--bg);border:1px solid var(--line);border-radius:8px;padding:10px 12px;overflow:auto;margin:0 0 10px}
.plain td{padding:3px 16px 3px 0;vertical-align:top;color:var(--ink2)}.plain code{color:var(--ink)}
summary{cursor:pointer}summary h2{display:inline}details[open] summary{margin-bottom:8px}
@media(max-width:600px){main{padding:12px 8px 40px}header,section{padding:16px 14px}.big{font-size:40px}.big small{display:block}
  .gallery{grid-template-columns:repeat(auto-fill,minmax(104px,1fr))}td.bar{min-width:84px}}
@media print{body{background:#fff}header,section{break-inside:avoid}}
""".strip()
