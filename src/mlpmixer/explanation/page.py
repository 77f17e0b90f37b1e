"""The page of `mlpmixer explain`, and its pictures as files."""

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mlpmixer.evaluation.html import data_uri, render, write_page
from mlpmixer.explanation.pictures import as_seen, curves_png, heat_map, mixing_picture

if TYPE_CHECKING:
    from mlpmixer.explanation.attribution import Explanation
    from mlpmixer.explanation.faithfulness import Faithfulness
    from mlpmixer.inference.classifier import Failure
    from mlpmixer.models.mixing import Mixing

TEMPLATE = Path(__file__).with_name("templates") / "explanation.html"
ABOUT = {
    "evidence": "What each patch adds to the logit. Exact: everything after the last norm is linear, so red and blue and the head's bias "
    "sum to the logit. A patch's token has heard of other patches by then, so it speaks for what was seen from there.",
    "occlusion": "By how much the logit falls when this patch alone is filled.",
    "gradient-x-input": "The gradient times what filling would change: a straight-line guess at occlusion, without meaning as a sum.",
    "integrated-gradients": "The gradient's mean on the straight way from the filled image, times the change. It sums to the logit less "
    "that of the filled image.",
}


def write_explanations(
    out: Path,
    explained: Sequence["Explanation"],
    failures: "Sequence[Failure]" = (),
    *,
    model: str,
    fill: str,
    measured: "Faithfulness | None" = None,
    data: str = "",
) -> Path:
    """Write explanation.html and its pictures, a PNG for each image and method, into the folder `out`; give its path.

    model, fill: what was explained, and what patches were filled with, in words. data: what `measured` was measured on.
    """
    out.mkdir(parents=True, exist_ok=True)
    images = []
    for i, one in enumerate(explained, start=1):
        stem = re.sub(r"[^A-Za-z0-9._-]+", "_", Path(one.name).stem)[:60]
        images.append(_image(one, f"{out / f'{i:02d}-{stem}'}-"))
    page = render(
        TEMPLATE,
        title=f"What {model} saw",
        model=model,
        fill=fill,
        images=images,
        measured=_measured(measured, out / "faithfulness.png") if measured else None,
        data=data,
        about=[(method, ABOUT[method]) for method in explained[0].maps] if explained else [],
        failures=[(failure.name, failure.reason) for failure in failures],
    )
    write_page(out / "explanation.html", page)
    return out / "explanation.html"


def _image(one: "Explanation", prefix: str) -> dict[str, Any]:
    """What the template shows of one image; its pictures are written to files whose names begin with `prefix`."""
    target = one.target
    height, width = one.pixels.shape[:2]
    return {
        "name": one.name,
        "target": target,
        "size": f"{height}x{width}",
        "seen": _saved(as_seen(one.pixels), f"{prefix}seen.png"),
        "maps": [
            (method, _saved(heat_map(one.pixels, values), f"{prefix}{method}.png"), _sums(one, method))
            for method, values in one.maps.items()
        ],
        "mixing": _mixing(one.mixing, one.grid, f"{prefix}mixing.png") if one.mixing else None,
        "classes": one.top if target in one.top else (*one.top, target),
    }


def _sums(one: "Explanation", method: str) -> str:
    """What the map sums to, and what it should."""
    values, target = one.maps[method], one.target
    if method == "evidence":
        parts = f"{target.evidence_for:+.3f} {target.evidence_against:+.3f} {target.bias:+.3f} (bias)"
        return f"{parts} = {target.logit:.3f}, the logit"
    if method == "occlusion":
        return f"from {values.min():+.3f} to {values.max():+.3f} a patch"
    change = one.filled_logit - target.logit
    return f"sums to {float(values.sum()):+.3f}; filling all changes the logit by {change:+.3f}"


def _mixing(mixing: "Mixing", grid: tuple[int, int], file: str) -> dict[str, Any]:
    relative = mixing.whole_error / np.maximum(mixing.whole, np.finfo(np.float32).tiny)
    error = 50 * np.median(relative)  # in percent of the norm: half of the square's
    return {
        "picture": _saved(mixing_picture(mixing, grid), file),
        "how": f"estimated, each with a standard error of about {error:.0f} %" if mixing.whole_error.any() else "exact",
        "spread": mixing.spread.tolist(),
    }


def _measured(measured: "Faithfulness", file: Path) -> dict[str, Any]:
    def cell(row: dict[str, Any], name: str, sign: str = "") -> str:
        return "" if sign and row["method"] == "random" else f"{row[name]:{sign}.3f} ± {row[f'{name}_se']:.3f}"

    columns = (("deletion", ""), ("deletion_gain", "+"), ("insertion", ""), ("insertion_gain", "+"))
    rows = [[row["method"], *(cell(row, *column) for column in columns)] for row in measured.areas()]
    file.write_bytes(picture := curves_png(measured))
    return {"n": measured.n, "picture": data_uri(picture), "rows": rows}


def _saved(image: Image.Image, file: str) -> str:
    """The picture's address in the page; the PNG is written to `file`, too."""
    out = io.BytesIO()
    image.save(out, "PNG")
    Path(file).write_bytes(out.getvalue())
    return data_uri(out.getvalue())
