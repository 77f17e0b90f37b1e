"""The page of `mlpmixer explain`, and its pictures as files."""

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mlpmixer.durable import write_text
from mlpmixer.evaluation.html import data_uri, render
from mlpmixer.explanation.pictures import curves_png, heat_map, input_picture, mixing_picture
from mlpmixer.weights.privacy import without_folders

if TYPE_CHECKING:
    from mlpmixer.explanation.attribution import Explanation
    from mlpmixer.explanation.faithfulness import Faithfulness
    from mlpmixer.inference.classifier import Failure
    from mlpmixer.models.mixing import Mixing

TEMPLATE = Path(__file__).with_name("templates") / "explanation.html"


class ExplanationFolder:
    """A folder with explanation.html and a PNG for each image and method, which are written as the images come."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self._images: list[dict[str, Any]] = []
        self._methods: list[str] = []

    def add(self, one: "Explanation") -> None:
        """Write the pictures of an image."""
        self.out.mkdir(parents=True, exist_ok=True)
        stem = re.sub(r"[^A-Za-z0-9._-]+", "_", Path(one.name).stem)[:60]
        self._images.append(_image(one, f"{self.out / f'{len(self._images) + 1:02d}-{stem}'}-"))
        self._methods = list(one.maps)

    def write_page(
        self,
        failures: "Sequence[Failure]" = (),
        *,
        model: str,
        fill: str,
        measured: "Faithfulness | None" = None,
        data: str = "",
    ) -> Path:
        """Write the page of the images so far; give its path.

        model: what was explained. fill: a description of what patches were filled with. data: what `measured` is about.
        """
        curves = curves_png(measured) if measured else b""
        if measured:
            self.out.mkdir(parents=True, exist_ok=True)
            (self.out / "faithfulness.png").write_bytes(curves)
        model = without_folders(model)
        page = render(
            TEMPLATE,
            title=f"What {model} saw",
            model=model,
            fill=fill,
            images=self._images,
            measured=measured,
            curves=data_uri(curves),
            data=data,
            methods=self._methods,
            failures=[(without_folders(failure.name), failure.reason) for failure in failures],
        )
        write_text(self.out / "explanation.html", page)
        return self.out / "explanation.html"


def _image(one: "Explanation", prefix: str) -> dict[str, Any]:
    """The values for the template of one image; its pictures are also written to files that begin with `prefix`."""
    target = one.target
    height, width = one.pixels.shape[:2]
    return {
        "name": without_folders(one.name),
        "target": target,
        "size": f"{height}x{width}",
        "seen": _saved(input_picture(one.pixels), f"{prefix}seen.png"),
        "maps": [
            (method, _saved(heat_map(one.pixels, values), f"{prefix}{method}.png"), _sums(one, method))
            for method, values in one.maps.items()
        ],
        "mixing": _mixing(one.mixing, one.grid, f"{prefix}mixing.png") if one.mixing else None,
        "classes": one.top if target in one.top else (*one.top, target),
    }


def _sums(one: "Explanation", method: str) -> str:
    """The sum of a map, and the sum that it should have."""
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


def _saved(image: Image.Image, file: str) -> str:
    """The picture's address in the page; the PNG is written to `file`, too."""
    out = io.BytesIO()
    image.save(out, "PNG")
    Path(file).write_bytes(out.getvalue())
    return data_uri(out.getvalue())
