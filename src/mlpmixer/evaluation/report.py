"""The page of an evaluation, as self-contained HTML."""

import io
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from mlpmixer.data.image_set import ImageSet
from mlpmixer.data.images import ImageError, decode
from mlpmixer.evaluation.confusion import confusion
from mlpmixer.evaluation.html import FIRST, INK, SECOND, TEMPLATES, data_uri, percent, ranged, render, svg
from mlpmixer.evaluation.metrics import Metrics, Scored
from mlpmixer.evaluation.multi_label import MultiLabelMetrics
from mlpmixer.evaluation.significance import wilson
from mlpmixer.weights.privacy import without_folders

if TYPE_CHECKING:
    from matplotlib.figure import Figure

THUMBNAIL_PX, EXAMPLE_PX = 160, 96

Json = Mapping[str, Any]
RATIOS = {
    "f1_micro": "F1 (micro)",
    "f1_macro": "F1 (macro)",
    "precision": "precision (micro)",
    "recall": "recall (micro)",
}
Thumbnail = NDArray[np.uint8] | None


def evaluation_html(
    metrics: Metrics | MultiLabelMetrics | Json,
    thumbnails: Sequence[Thumbnail] = (),
    *,
    title: str = "Evaluation",
    model: str = "",
    data: str = "",
) -> str:
    """The page of an evaluation.

    metrics: a Metrics, or its stored JSON. thumbnails: uint8 pictures (H,W), (H,W,1) or (H,W,3), or None, of the images
    `pictured(metrics)`. model, data: what was evaluated on what.
    """
    details = [(name, value) for name, value in (("model", without_folders(model)), ("data", data)) if value]
    result = view(metrics, thumbnails)
    return render(TEMPLATES / "evaluation.html", title=title, details=details, result=result)


def pictured(metrics: Metrics | MultiLabelMetrics) -> list[int]:
    """The images that the page shows, by their positions in the data: the mistakes, then the examples of classes."""
    examples = metrics.examples if isinstance(metrics, Metrics) else ()
    return [wrong.index for wrong in metrics.most_wrong] + [example.index for example in examples]


def thumbnails_of(images: ImageSet, indices: Iterable[int], size_px: int = THUMBNAIL_PX) -> list[Thumbnail]:
    """Pictures, uint8 (H,W,3), at most `size_px` on a side, of some images of a set; None for an unreadable one."""
    out: list[Thumbnail] = []
    for i in indices:
        try:
            shown = decode(images.source(i), "RGB").copy()  # the set may hold this very object
        except ImageError:
            out.append(None)
            continue
        shown.thumbnail((size_px, size_px))
        out.append(np.asarray(shown))
    return out


def view(metrics: Metrics | MultiLabelMetrics | Json, thumbnails: Sequence[Thumbnail] = ()) -> dict[str, Any]:
    """The values for the template `metrics.html`."""
    test = metrics.to_json() if isinstance(metrics, Metrics | MultiLabelMetrics) else metrics
    wrong, examples = test["most_wrong"], test.get("examples") or []
    sizes = (THUMBNAIL_PX if i < len(wrong) else EXAMPLE_PX for i in range(len(thumbnails)))
    pictures = list(map(picture, thumbnails, sizes))
    shared = {
        "n": test["n"],
        "data": _data(test),
        "mistakes": list(zip_longest(wrong, pictures[: len(wrong)])),
        "bad": test.get("bad") or [],
    }
    if "map" in test:
        return shared | _multi_label_view(test)
    return shared | {
        "multi_label": False,
        "top1": test["top1"],
        "interval": wilson(round(test["top1"] * test["n"]), test["n"]),
        "scores": _scores(test),
        "calibration": _calibration(test),
        "confusion": confusion(test),
        "per_class": _classes(test, list(zip(examples, pictures[len(wrong) :], strict=False))),
    }


def _multi_label_view(test: Json) -> dict[str, Any]:
    """The values for the macros of `multi_label.html`."""
    rows = [row for row in test["per_class"] if row["support"]]
    scores = [(name, percent(test[key])) for key, name in RATIOS.items()]
    scores.insert(0, ("threshold", f"{test['threshold']:g}"))
    scores.append(("exactly the true classes", ranged(test["exact_match"], test["n"])))
    if tta := test.get("tta"):
        scores.append((f"mAP with test-time augmentation ({', '.join(tta['kinds'])})", percent(tta["map"])))
    return {
        "multi_label": True,
        "map": test["map"],
        "scores": [*scores, ("negative log-likelihood", f"{test['nll']:.4f} nats"), *_counted(test)],
        "per_class": sorted(rows, key=lambda row: (row["average_precision"], row["name"])),
        "many": len(rows) > 20,
    }


def _classes(test: Json, examples: Sequence[tuple[Json, str]]) -> list[dict[str, Any]]:
    """The classes that have images, the weakest first, each with what it was taken for and with its examples."""
    mistaken: dict[str, list[tuple[str, int]]] = {}
    for i, counts in enumerate(test["confusion"]):
        others = [(test["classes"][j], n) for j, n in enumerate(counts) if n and i != j]
        mistaken[test["classes"][i]] = sorted(others, key=lambda pair: -pair[1])[:3]
    rows = sorted((row for row in test["per_class"] if row["support"]), key=lambda row: (row["f1"], row["name"]))
    shown: dict[str, list[tuple[Json, str]]] = {}
    for example, address in examples:
        shown.setdefault(example["true"], []).append((example, address))
    return [row | {"taken_for": mistaken.get(row["name"]), "examples": shown.get(row["name"], [])} for row in rows]


def _scores(test: Json) -> list[tuple[str, str]]:
    scores = [("top-5", ranged(test["top5"], test["n"]))] if test.get("top5") is not None else []
    if tta := test.get("tta"):
        name = f"top-1 with test-time augmentation ({', '.join(tta['kinds'])})"
        scores.append((name, ranged(tta["top1"], test["n"])))
    if real := test.get("real"):
        scores.append((f"ReaL top-1, {real['n']:,} images", ranged(real["top1"], real["n"])))
    scores += [("negative log-likelihood", f"{test['nll']:.4f} nats"), ("calibration error", percent(test["ece"]))]
    scores += [("Brier score", f"{test['brier']:.4f}")] if "brier" in test else []
    return scores + _counted(test)


def _data(test: Json) -> str:
    return str(without_folders((test.get("scored") or {}).get("data", "")))


def _counted(test: Json) -> list[tuple[str, str]]:
    """Rows about what was scored: classes, images, those left out."""
    empty = sum(not row["support"] for row in test["per_class"])
    scores = [("classes", f"{len(test['classes']):,}" + (f", {empty:,} of them without an image" if empty else ""))]
    if scored := test.get("scored"):
        chosen = Scored(**scored)
        scores += [("images", str(chosen)), *(("", note) for note in chosen.notes)]
    if trained_on := test.get("trained_on"):
        left = f"; without them top-1 is {ranged(rest['top1'], rest['n'])}" if (rest := test.get("unseen")) else ""
        scores.append(("trained on", f"{trained_on:,} of these {test['n']:,} images{left}"))
    return scores


def picture(pixels: Thumbnail, size_px: int = THUMBNAIL_PX) -> str:
    """A picture's address: a small one as PNG, to be enlarged without blur, a larger one as JPEG; "" for None."""
    if pixels is None or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3)):
        return ""
    image = Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2:] == (1,) else pixels))
    image.thumbnail((size_px, size_px))
    file, small = io.BytesIO(), max(image.size) <= 32
    image.save(file, "PNG") if small else image.save(file, "JPEG", quality=80)
    return data_uri(file.getvalue())


# --- calibration ----------------------------------------------------------------------------------------------------


def _calibration(test: Json) -> dict[str, Any] | None:
    """The reliability diagram and its numbers, before and after a temperature; None for metrics stored without it."""
    if not test.get("reliability"):
        return None
    rows = [("val", "as trained", test)]
    if after := test.get("tempered"):
        name = f"logits divided by {after['temperature']:.3f}, the best on {after['n']:,} validation images"
        rows.append(("train", name, after))
    return {"rows": rows, "chart": _reliability_chart([numbers["reliability"] for _, _, numbers in rows])}


def _reliability_chart(models: Sequence[Sequence[Json]]) -> Markup:
    """Accuracy over confidence, in percent, of the bins of one or two sets of probabilities, above the share of the
    images in each bin."""

    def draw(figure: "Figure") -> None:
        axes, below = figure.subplots(2, sharex=True, height_ratios=(4, 1))
        axes.plot((0, 100), (0, 100), color=INK, linewidth=1, linestyle=(0, (4, 3)))
        for i, (bins, colour) in enumerate(zip(models, (FIRST, SECOND), strict=False)):
            filled, total = [b for b in bins if b["count"]], sum(b["count"] for b in bins)
            x, y = ([100 * b[key] for b in filled] for key in ("confidence", "accuracy"))
            reach = [[100 * abs(b["accuracy_interval"][side] - b["accuracy"]) for b in filled] for side in (0, 1)]
            lines = {"linewidth": 0.8, "elinewidth": 1, "capsize": 2}
            axes.errorbar(x, y, yerr=reach, color=colour, marker="o", markersize=3.5, **lines)
            width = 90 / len(bins) / len(models)
            left = [100 / len(bins) * (k + 0.05) + width * i for k in range(len(bins))]
            below.bar(left, [100 * b["count"] / total for b in bins], width=width, color=colour, align="edge")
        axes.set(xlim=(0, 100), ylim=(0, 100))
        axes.set_ylabel("right answers, %", color=INK)
        below.set_ylabel("images, %", color=INK)
        below.set_xlabel("confidence, %", color=INK)

    return svg(draw, 4.6, 4.8)
