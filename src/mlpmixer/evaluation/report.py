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
from mlpmixer.evaluation.html import FIRST, INK, SECOND, TEMPLATES, data_uri, percent, ranged, render, svg
from mlpmixer.evaluation.metrics import Metrics, Scored
from mlpmixer.evaluation.multi_label import MultiLabelMetrics
from mlpmixer.evaluation.significance import wilson
from mlpmixer.weights.privacy import without_folders

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TABLE_CLASSES = 20  # up to here the confusion matrix is a table of numbers, above it a picture
LABELLED_CLASSES = 200  # up to here the picture names its rows and columns
THUMBNAIL_PX = 160

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

    metrics: a Metrics, or its stored JSON. thumbnails: uint8 pictures (H,W), (H,W,1) or (H,W,3), or None, in the order
    of `metrics.most_wrong`. model, data: what was evaluated on what.
    """
    details = [(name, value) for name, value in (("model", without_folders(model)), ("data", data)) if value]
    result = view(metrics, thumbnails)
    return render(TEMPLATES / "evaluation.html", title=title, details=details, result=result)


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
    if "map" in test:
        return _multi_label_view(test, thumbnails)
    rows = [row for row in test["per_class"] if row["support"]]
    many = len(rows) > TABLE_CLASSES
    return {
        "multi_label": False,
        "n": test["n"],
        "top1": test["top1"],
        "interval": wilson(round(test["top1"] * test["n"]), test["n"]),
        "scores": _scores(test),
        "mistakes": list(zip_longest(test["most_wrong"], map(picture, thumbnails[: len(test["most_wrong"])]))),
        "calibration": _calibration(test),
        "confusion": _confusion(test),
        "per_class": sorted(rows, key=lambda row: (row["f1"], row["name"])) if many else rows,
        "many": many,
        "bad": test.get("bad") or [],
    }


def _multi_label_view(test: Json, thumbnails: Sequence[Thumbnail]) -> dict[str, Any]:
    """The values for the macros of `multi_label.html`."""
    rows = [row for row in test["per_class"] if row["support"]]
    scores = [(name, percent(test[key])) for key, name in RATIOS.items()]
    scores.insert(0, ("threshold", f"{test['threshold']:g}"))
    scores.append(("exactly its classes", ranged(test["exact_match"], test["n"])))
    if tta := test.get("tta"):
        scores.append((f"mAP with test-time augmentation ({', '.join(tta['kinds'])})", percent(tta["map"])))
    return {
        "multi_label": True,
        "n": test["n"],
        "map": test["map"],
        "scores": [*scores, ("negative log-likelihood", f"{test['nll']:.4f} nats"), *_counted(test)],
        "mistakes": list(zip_longest(test["most_wrong"], map(picture, thumbnails[: len(test["most_wrong"])]))),
        "per_class": sorted(rows, key=lambda row: (row["average_precision"], row["name"])),
        "many": len(rows) > TABLE_CLASSES,
        "bad": test.get("bad") or [],
    }


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


def _counted(test: Json) -> list[tuple[str, str]]:
    """What was scored."""
    empty = sum(not row["support"] for row in test["per_class"])
    scores = [("classes", f"{len(test['classes']):,}" + (f", {empty:,} of them without an image" if empty else ""))]
    if scored := test.get("scored"):
        chosen = Scored(**scored)
        scores += [("images", str(chosen)), *(("", note) for note in chosen.notes)]
    if trained_on := test.get("trained_on"):
        left = f"; without them top-1 is {ranged(rest['top1'], rest['n'])}" if (rest := test.get("unseen")) else ""
        scores.append(("trained on", f"{trained_on:,} of these {test['n']:,} images{left}"))
    return scores


def picture(pixels: Thumbnail) -> str:
    """A picture's address: a small one as PNG, to be enlarged without blur, a larger one as JPEG; "" for None."""
    if pixels is None or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3)):
        return ""
    image = Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2:] == (1,) else pixels))
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    file, small = io.BytesIO(), max(image.size) <= 64
    image.save(file, "PNG") if small else image.save(file, "JPEG", quality=85)
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

    return svg(draw, 4.6, 4.8)


# --- confusion ------------------------------------------------------------------------------------------------------


def _confusion(test: Json) -> dict[str, Any] | None:
    """The ten most frequent confusions, and the matrix: cells (count, colour's strength in percent) for up to
    TABLE_CLASSES classes, else a picture; None above 1000 classes."""
    if not test["confusion"]:
        return None
    counts = np.array(test["confusion"], dtype=np.int64)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    strength = np.sqrt(share)  # the square root keeps rare confusions visible
    classes = [str(c) for c in test["classes"]]
    pairs = [(int(counts[i, j]), int(i), int(j)) for i, j in zip(*np.nonzero(counts), strict=True) if i != j]
    most = sorted(pairs, key=lambda pair: (-pair[0], pair[1], pair[2]))[:10]
    found = {"classes": classes, "pairs": [(classes[i], classes[j], n, share[i, j]) for n, i, j in most]}
    if len(classes) > TABLE_CLASSES:
        return found | {"cells": None} | _confusion_picture(strength, classes)
    cells = [list(zip(*row, strict=True)) for row in zip(counts.tolist(), (85 * strength).tolist(), strict=True)]
    return found | {"cells": list(zip(classes, cells, strict=True))}


def _confusion_picture(strength: NDArray[np.float64], classes: Sequence[str]) -> dict[str, Any]:
    """One pixel for each cell, to be enlarged without blur, and where its rows and columns are named."""
    k = len(classes)
    hit = np.eye(k, dtype=bool)[:, :, None]
    colour = np.where(hit, np.array([47, 133, 90]), np.array([214, 69, 65]))
    alpha = np.round(255 * strength)[:, :, None]
    file = io.BytesIO()
    Image.fromarray(np.concatenate([colour, alpha], axis=2).astype(np.uint8)).save(file, "PNG")
    named = k <= LABELLED_CLASSES
    cell, margin = (min(16, max(8, 850 // k)), 120) if named else (max(1, 900 // k), 4)
    labels = [(name, margin + cell * (i + 0.75)) for i, name in enumerate(classes)] if named else []
    width = cell * k
    return {
        "picture": data_uri(file.getvalue()),
        "side": margin + width,
        "margin": margin,
        "width": width,
        "labels": labels,
    }
