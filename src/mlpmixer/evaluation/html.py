"""The frame of all HTML pages: templates that escape every value, and pictures that are part of the page.

A page needs no other file: no script, no request. matplotlib draws numbers only; class names never reach it.
"""

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from mlpmixer import templates
from mlpmixer.evaluation.significance import wilson

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATES = Path(__file__).with_name("templates")
# matplotlib writes these stand-ins into an SVG; the page's own colours, light or dark, take their place
INK, LINE, SECOND, FIRST = "#010101", "#020202", "#030303", "#040404"
COLOURS = {INK: "var(--ink2)", LINE: "var(--line)", SECOND: "var(--train)", FIRST: "var(--accent)"}


def render(template: Path, **values: object) -> str:
    """Fill in the template of a page, which finds those of this room beside its own: `base.html`, `parts.html`."""
    filters: templates.Filters = {"percent": percent, "ranged": ranged, "thousands": "{:,}".format}
    return templates.render(template, TEMPLATES, filters=filters, **values)


def percent(share: float) -> str:
    digits = 2 if 0.99 <= share < 1 else 1
    return f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def ranged(share: float, n: int) -> str:
    """A share of n images with its 95 % interval: 85.1 % (84.4-85.8)"""
    low, high = wilson(round(share * n), n)
    return f"{percent(share)} ({100 * low:.1f}-{100 * high:.1f})"


def data_uri(picture: bytes) -> str:
    """A PNG or JPEG file as the address of an image."""
    kind = "png" if picture[:4] == b"\x89PNG" else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode('ascii')}"


def svg(draw: "Callable[[Figure], None]", width: float, height: float) -> Markup:
    """An inline SVG, in the page's colours, of what `draw` puts on an empty figure of that size in inches."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "mlpmixer", "font.family": "sans-serif", "font.size": 9}):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        for axes in figure.axes:
            axes.grid(color=LINE, linewidth=0.8)
            axes.set_axisbelow(True)
            axes.tick_params(colors=INK, length=0)
            for spine in axes.spines.values():
                spine.set_visible(False)
        file, none = io.StringIO(), dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=none)
    text = file.getvalue()
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text[text.index("<svg") :])  # not needed within HTML
    for stand_in, colour in COLOURS.items():
        text = text.replace(stand_in, colour)
    return Markup(text)
