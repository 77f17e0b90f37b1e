"""The page of `mlpmixer explain`, and its pictures as files."""

import io
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mlpmixer.durable import write_text
from mlpmixer.evaluation.html import data_uri, render
from mlpmixer.explanation.pictures import (
    curves_png,
    grey_picture,
    heat_map,
    input_picture,
    mixing_picture,
    overlay,
)
from mlpmixer.inference.prediction import Failure
from mlpmixer.weights.privacy import without_folders

if TYPE_CHECKING:
    from mlpmixer.explanation.attribution import Explanation
    from mlpmixer.explanation.faithfulness import Faithfulness
    from mlpmixer.models.mixing import Mixing

TEMPLATE = Path(__file__).with_name("templates") / "explanation.html"
FAITHFUL = ("integrated-gradients", "occlusion", "gradient-x-input", "evidence")
"""The most faithful method first, where a model's own are not measured: the order on the data of ELSEWHERE."""
ELSEWHERE = (
    "0.11 to 0.19 (integrated-gradients), 0.08 to 0.17 (occlusion), 0.00 to 0.08 (gradient-x-input), "
    "0.00 to 0.06 (evidence)"
)
"""The gain over random order, in area under the deletion curve, on the four data sets of docs/how-to/explain.md."""


class ExplanationFolder:
    """A folder with explanation.html and a PNG for each image and method, which are written as the images come."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.failures: list[Failure] = []
        self._images: list[tuple[Explanation, dict[str, Any]]] = []

    def add(self, one: "Explanation | Failure") -> None:
        """Write the pictures of an image, or note why there are none."""
        if isinstance(one, Failure):
            self.failures.append(one)
            return
        self.out.mkdir(parents=True, exist_ok=True)
        stem = re.sub(r"[^A-Za-z0-9._-]+", "_", Path(one.name).stem)[:60]
        self._images.append((one, _pictures(one, f"{self.out / f'{len(self._images) + 1:02d}-{stem}'}-")))

    @property
    def explained(self) -> "list[Explanation]":
        return [one for one, _ in self._images]

    def write_page(self, *, model: str, fill: str, measured: "Faithfulness | None" = None, data: str = "") -> Path:
        """Write the page of the images so far; give its path.

        model: what was explained. fill: a description of what patches were filled with. data: what `measured` is about.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        curves = curves_png(measured) if measured else b""
        if measured:
            (self.out / "faithfulness.png").write_bytes(curves)
        areas = {row["method"]: row for row in measured.areas()} if measured else {}
        best = sorted(areas, key=lambda name: areas[name]["deletion"]) if areas else list(FAITHFUL)
        model = without_folders(model)
        page = render(
            TEMPLATE,
            title=f"What {model} saw",
            model=model,
            fill=fill,
            images=[_image(i, one, pictures, best) for i, (one, pictures) in enumerate(self._images)],
            elsewhere=ELSEWHERE,
            measured=measured,
            areas=areas,
            curves=data_uri(curves),
            data=data,
            failures=[(without_folders(failure.name), failure.reason) for failure in self.failures],
        )
        write_text(self.out / "explanation.html", page)
        return self.out / "explanation.html"


def _pictures(one: "Explanation", prefix: str) -> dict[str, Any]:
    """The pictures of an image, as addresses for the page; they are also written to files that begin with `prefix`."""
    photo, seen = input_picture(one.photo), input_picture(one.pixels)
    seen.save(f"{prefix}seen.png")
    for method in one.maps:
        heat_map(one.photo, one.lead_map(method)).save(f"{prefix}{method}.png")
    if one.mixing:
        mixing_picture(one.mixing, one.grid).save(f"{prefix}mixing.png")
    return {
        "photo": _address(photo),
        "pixelated": one.photo is one.pixels,
        "width": photo.width,
        "height": photo.height,
        "grey": _address(grey_picture(one.photo)),
        "overlays": {method: _address(overlay(one.lead_map(method))) for method in one.maps},
        "mixing": _mixing(one.mixing, f"{prefix}mixing.png") if one.mixing else None,
    }


def _image(number: int, one: "Explanation", pictures: dict[str, Any], best: list[str]) -> dict[str, Any]:
    """The values for the template of one image. best: methods, the most faithful first."""
    target, rival = one.target, one.rival
    maps = {method: _map(one, method) for method in one.maps}
    rest = sorted(maps, key=lambda name: best.index(name) if name in best else len(best))
    first = "evidence" if "evidence" in maps else next(iter(rest), "")
    shown = [c for c in (target, rival) if c and c not in one.top]
    return pictures | {
        "number": number,
        "name": without_folders(one.name),
        "target": target,
        "rival": rival,
        "ahead": one.lead >= 0,
        "threshold": one.threshold,
        "least_lead": one.least_lead,
        "times": _times(abs(one.lead)),
        "lead": one.lead,
        "bias": one.lead_bias,
        "size": "{} x {}".format(*reversed(one.pixels.shape[:2])),
        "squares": one.grid[0] * one.grid[1],
        "grid": f"{one.grid[1]} x {one.grid[0]}",
        "first": first,
        "maps": maps,
        "others": [method for method in rest if method != first],
        "classes": (*one.top, *shown),
    }


def _map(one: "Explanation", method: str) -> dict[str, float]:
    values = one.lead_map(method)
    above, below = float(values.clip(min=0).sum()), float(values.clip(max=0).sum())
    return {"most": float(abs(values).max()), "above": above, "below": below, "filled": one.lead - one.filled_lead}


def _times(lead: float) -> str:
    """How many times as likely a class is whose logit leads by so much."""
    times = math.exp(min(lead, 20.0))
    return "more than a million" if times > 1e6 else f"{times:,.0f}" if times >= 10 else f"{times:.1f}"


def _mixing(mixing: "Mixing", file: str) -> dict[str, Any]:
    relative = mixing.whole_error / np.maximum(mixing.whole, np.finfo(np.float32).tiny)
    error = 50 * np.median(relative)  # in percent of the norm: half of the square's
    return {
        "picture": data_uri(Path(file).read_bytes()),
        "how": f"estimated, each with a standard error of about {error:.0f} %" if mixing.whole_error.any() else "exact",
        "spread": mixing.spread.tolist(),
    }


def _address(image: Image.Image) -> str:
    """The picture as part of the page: a photo as JPEG, what is small or transparent as PNG."""
    out = io.BytesIO()
    small = image.mode == "RGBA" or len(image.getcolors(1 << 20) or range(1 << 20)) <= 256
    image.save(out, "PNG") if small else image.save(out, "JPEG", quality=85)
    return data_uri(out.getvalue())
