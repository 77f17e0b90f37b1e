"""Explanations and weights as pictures, and the page of `mlpmixer explain`. Red is positive and speaks for a class,
blue against. No torch.

Letters: S patches in a grid of h x w, N blocks.
"""

import base64
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mlpmixer.evaluation.report import esc, page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mlpmixer.explanation.attribution import Explained
    from mlpmixer.explanation.faithfulness import Faithfulness
    from mlpmixer.inference.classifier import Failure
    from mlpmixer.models.mixing import Mixing

Values = NDArray[np.floating[Any]]
Colours = NDArray[np.uint8]

SIDE_PX = 256  # small images are enlarged by a whole factor to about this
WIDTH_PX, PANEL_PX = 1000, 200  # of a row of panels, about, and of a panel
FONT_PX, GAP_PX, LEGEND_PX = 13, 8, 80
RED, BLUE = (178, 24, 43), (33, 102, 172)  # the ends of ColorBrewer's RdBu, which colour-blind readers can tell apart

ABOUT = {
    "evidence": "What each patch adds to the logit. Exact: everything after the last norm is linear, so red and blue and the head's bias "
    "sum to the logit. A patch's token has heard of other patches by then, so it speaks for what was seen from there.",
    "occlusion": "By how much the logit falls when this patch alone is filled.",
    "gradient-x-input": "The gradient times what filling would change: a straight-line guess at occlusion, without meaning as a sum.",
    "integrated-gradients": "The gradient's mean on the straight way from the filled image, times the change. It sums to the logit less "
    "that of the filled image.",
}


def signed_colours(values: Values, ground: Values | float = 255.0) -> Colours:
    """Values (..) in -1..1 as colours (.., 3): `ground` (.., 3), 0..255, where they are 0, red at 1, blue at -1."""
    strength = np.abs(values)[..., None]
    colour = np.where(values[..., None] > 0, np.array(RED), np.array(BLUE))
    mixed: Colours = np.round(strength * colour + (1 - strength) * ground).astype(np.uint8)
    return mixed


def as_seen(pixels: NDArray[Any]) -> Image.Image:
    """(H, W, C) in 0..255, enlarged by a whole factor; other than 1 or 3 channels are shown as their mean."""
    rgb = pixels if pixels.shape[2] == 3 else pixels.mean(axis=2, keepdims=True).repeat(3, axis=2)
    factor = max(1, round(SIDE_PX / max(pixels.shape[:2])))
    return Image.fromarray(_enlarged(np.round(rgb).astype(np.uint8), factor))


def heat_map(pixels: NDArray[Any], values: Values) -> Image.Image:
    """Signed values of the patches (h, w), in logits, over the image (H, W, C), with a legend. The colours reach to the
    largest value."""
    seen = as_seen(pixels)
    grey = np.asarray(seen.convert("L").convert("RGB"), dtype=np.float64)
    most = float(np.abs(values).max())
    rows, cols = seen.height // values.shape[0], seen.width // values.shape[1]
    scaled = values.repeat(rows, axis=0).repeat(cols, axis=1) / (most or 1)
    over = Image.fromarray(
        signed_colours(0.85 * scaled, 70 + 0.7 * grey)
    )  # brighter, so that dark pictures show colours
    canvas = Image.new("RGB", (seen.width + LEGEND_PX, max(seen.height, 100)), "white")
    canvas.paste(over, (0, 0))
    _legend(canvas, seen.width + GAP_PX, most)
    return canvas


def _legend(canvas: Image.Image, left: int, most: float) -> None:
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(FONT_PX)
    top, bottom = 2 * FONT_PX, min(canvas.height, 240) - GAP_PX
    draw.text((left, GAP_PX), "logits", "black", font)
    bar = signed_colours(0.85 * np.linspace(1, -1, bottom - top)[:, None].repeat(14, axis=1), 200.0)
    canvas.paste(Image.fromarray(bar), (left, top))
    for share, text in ((0, f"+{most:.2g}"), (0.5, "0"), (1, f"-{most:.2g}")):
        y = top + share * (bottom - top)
        draw.text((left + 18, y), text, "black", font, anchor="lt" if share == 0 else "lm" if share < 1 else "lb")


def units_picture(units: Values, columns: int = 0) -> Image.Image:
    """Maps (n, h, w), such as `mixing.hidden_units` in the order of `mixing.opposite_pairs`, row by row; each has its
    own scale.

    columns: how many in a row; default: even, so that pairs stay together, for a picture about as wide as high.
    """
    most = np.abs(units).max(axis=(1, 2), keepdims=True)
    return _tiles(signed_colours(units / np.where(most > 0, most, 1)), columns)


def stem_picture(filters: Values, columns: int = 0) -> Image.Image:
    """The stem's filters (n, in_channels, P, P): in colour around grey for 3 channels, else the sum over the channels
    as a map."""
    if filters.shape[1] != 3:
        return units_picture(filters.sum(axis=1), columns)
    most = np.abs(filters).max(axis=(1, 2, 3), keepdims=True)
    rgb = 127.5 + 127.5 * (filters / np.where(most > 0, most, 1)).transpose(0, 2, 3, 1)
    return _tiles(np.round(rgb).astype(np.uint8), columns)


def _tiles(tiles: Colours, columns: int) -> Image.Image:
    """(n, h, w, 3)."""
    n, h, w, _ = tiles.shape
    columns = columns or min(n, 2 * max(1, round((n * h / w) ** 0.5 / 2)))
    factor = max(1, min(round(64 / max(h, w)), WIDTH_PX // (columns * w)))
    return Image.fromarray(_mosaic(np.stack([_enlarged(tile, factor) for tile in tiles]), columns, gap=3))


def mixing_picture(mixing: "Mixing", grid: tuple[int, int]) -> Image.Image:
    """Two parts with a panel for each block: its token mixing alone, and everything from the image to there.

    A panel has a small map for each output patch, at that patch's place, of how much it depends on each input patch
    (the norm of the Jacobian). Each panel's colours reach to its largest value of another patch than its own, which is
    written below; above it they stay.
    """
    parts = (
        ("each block's token mixing alone", mixing.layers),
        ("from the image to the output of each block", mixing.whole),
    )
    high, wide = _panel(mixing.whole[0], grid)[0].shape[:2]
    in_a_row = min(len(mixing.whole), max(1, WIDTH_PX // (wide + 2 * GAP_PX)))
    step_x, step_y = wide + 2 * GAP_PX, high + 2 * FONT_PX + GAP_PX
    part_y = 2 * FONT_PX + -(-len(mixing.whole) // in_a_row) * step_y
    canvas = Image.new("RGB", (max(in_a_row * step_x, SIDE_PX), len(parts) * part_y), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(FONT_PX)
    for part, (title, maps) in enumerate(parts):
        draw.text((0, part * part_y), title, "black", font)
        for i, squares in enumerate(maps):
            x, y = i % in_a_row * step_x, part * part_y + 2 * FONT_PX + i // in_a_row * step_y
            colours, most = _panel(squares, grid)
            canvas.paste(Image.fromarray(colours), (x, y))
            draw.text((x, y + high + 2), f"block {i + 1}, up to {most:.3g}", "dimgrey", font)
    return canvas


def _panel(squares: Values, grid: tuple[int, int]) -> tuple[Colours, float]:
    """(S, S) as a grid of grids, and what its colours reach to."""
    norm = np.sqrt(squares)
    most = float((norm * (1 - np.eye(len(norm)))).max())
    tiles = signed_colours(np.minimum(norm / (most or 1), 1).reshape(-1, *grid))
    factor = max(1, PANEL_PX // (grid[0] * grid[1]))
    return _mosaic(np.stack([_enlarged(tile, factor) for tile in tiles]), grid[1], gap=1), most


def _enlarged(pixels: Colours, factor: int) -> Colours:
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1)


def _mosaic(tiles: Colours, columns: int, gap: int) -> Colours:
    """Tiles (n, h, w, 3) row by row, with dark grey between them."""
    n, h, w, _ = tiles.shape
    rows = -(-n // columns)
    out = np.full((rows * (h + gap) - gap, columns * (w + gap) - gap, 3), 70, np.uint8)
    for i in range(rows * columns):
        y, x = i // columns * (h + gap), i % columns * (w + gap)
        out[y : y + h, x : x + w] = tiles[i] if i < n else 255
    return out


def draw_curves(found: "Faithfulness", figure: "Figure") -> None:
    """Deletion and insertion curves, means with their standard errors, into an empty figure."""
    axes = figure.subplots(1, 2, sharey=True)
    sides = (
        ("deletion", "most important patches filled, share", found.deletion),
        ("insertion", "most important patches shown, share", found.insertion),
    )
    for ax, (title, label, curves) in zip(axes, sides, strict=True):
        for name, values in curves.items():
            mean = values.mean(axis=0)
            error = values.std(axis=0, ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0 * mean
            plain = {"color": "grey", "linestyle": "--"} if name == "random" else {}
            (line,) = ax.plot(found.shares, mean, label=name, linewidth=1.6, **plain)
            ax.fill_between(found.shares, mean - error, mean + error, color=line.get_color(), alpha=0.2, linewidth=0)
        ax.set(title=title, xlabel=label)
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("probability of the class")
    axes[1].legend(frameon=False, fontsize=9)


def curves_png(found: "Faithfulness") -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    draw_curves(found, figure)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110)
    return out.getvalue()


# --- files and the page -----------------------------------------------------------------------------------------------


def write_explanations(
    out: Path,
    explained: Sequence["Explained"],
    failures: "Sequence[Failure]" = (),
    *,
    model: str,
    fill: str,
    measured: "Faithfulness | None" = None,
    data: str = "",
) -> Path:
    """Write a PNG for each image and method, and the page with all of them, explanation.html, into the folder `out`;
    the page's path.

    model, fill: what was explained, and what patches were filled with, in words. data: what `measured` was measured on.
    """
    out.mkdir(parents=True, exist_ok=True)
    body = [_head(model, fill, len(explained))]
    for i, one in enumerate(explained, start=1):
        stem = re.sub(r"[^A-Za-z0-9._-]+", "_", Path(one.name).stem)[:60]
        body.append(_image_section(one, out / f"{i:02d}-{stem}"))
    if measured:
        body.append(_faithfulness_section(measured, data, out / "faithfulness.png"))
    if explained:
        body.append(_about_section(explained))
    body.append(_failures_section(failures))
    path = out / "explanation.html"
    path.write_text(page(f"What {model} saw", body, _STYLE), encoding="utf-8")
    return path


def _head(model: str, fill: str, images: int) -> str:
    facts = (("model", model), ("images", f"{images:,}"), ("patches are filled with", fill))
    cells = "".join(f"<div><dt>{esc(k)}</dt><dd>{esc(v)}</dd></div>" for k, v in facts)
    return f'<header><h1>What the model saw</h1><dl class="facts">{cells}</dl></header>'


def _image_section(one: "Explained", stem: Path) -> str:
    asked = one.asked
    height, width = one.pixels.shape[:2]
    figures = [_figure(as_seen(one.pixels), f"{stem}-seen.png", f"as the network saw it, {height}x{width} px")]
    figures += [
        _figure(heat_map(one.pixels, v), f"{stem}-{m}.png", f"<b>{esc(m)}</b><br>{_sums(one, m)}")
        for m, v in one.maps.items()
    ]
    mixing = "" if one.mixing is None else _mixing_part(one.mixing, one.grid, stem)
    beliefs = one.beliefs if any(b.label == asked.label for b in one.beliefs) else (*one.beliefs, asked)
    rows = [
        (
            f'<span class="name">{esc(b.label)}</span>',
            f"{100 * b.probability:.2f} %",
            f"{b.logit:.3f}",
            *(f"{part:+.3f}" for part in (b.evidence_for, b.evidence_against, b.bias)),
        )
        for b in beliefs
    ]
    table = _table(("class", "probability", "logit", "evidence for", "evidence against", "bias"), rows)
    return (
        f'<section><h2 class="name">{esc(one.name)}</h2><p>Why <b class="name">{esc(asked.label)}</b>, '
        f"{100 * asked.probability:.1f} %? Red speaks for it, blue against.</p>"
        f'<div class="maps">{"".join(figures)}</div>{mixing}{table}</section>'
    )


def _sums(one: "Explained", method: str) -> str:
    """What the map sums to, and what it should."""
    values, asked, change = one.maps[method], one.asked, one.asked.logit - one.filled_logit
    total = float(values.sum())
    if method == "evidence":
        return f"{asked.evidence_for:+.3f} {asked.evidence_against:+.3f} {asked.bias:+.3f} (bias) = {asked.logit:.3f}, the logit"
    if method == "integrated-gradients":
        return f"sums to {total:+.3f}; filling all changes the logit by {-change:+.3f}"
    if method == "gradient-x-input":
        return f"sums to {total:+.3f}; filling all changes the logit by {-change:+.3f}"
    return f"from {values.min():+.3f} to {values.max():+.3f} a patch"


def _mixing_part(mixing: "Mixing", grid: tuple[int, int], stem: Path) -> str:
    error = 50 * np.median(
        mixing.whole_error / np.maximum(mixing.whole, np.finfo(np.float32).tiny)
    )  # of a root: half of the square's
    how = f"estimated, each with a standard error of about {error:.0f} %" if mixing.whole_error.any() else "exact"
    caption = (
        "Which input patches each patch depends on: a small map for each output patch, at its place, of the norm of "
        "the Jacobian. "
        f"Above, of one token-mixing MLP without its skip connection (exact); below, of all layers from the pixels on "
        f"({how}). Colours "
        "reach to the largest value of another patch than its own."
    )
    rows = [
        (f"{i}", f"{100 * own:.1f} %", f"{far:.2f}", f"{n:.1f}")
        for i, (own, far, n) in enumerate(mixing.spread.tolist(), start=1)
    ]
    table = _table(("after block", "of its own patch", "mean distance, patches", "patches that matter"), rows)
    picture = _figure(mixing_picture(mixing, grid), f"{stem}-mixing.png", caption)
    return f'<div class="scroll wide">{picture}</div><details><summary>How far a patch sees</summary>{table}</details>'


def _faithfulness_section(measured: "Faithfulness", data: str, file: Path) -> str:
    picture = curves_png(measured)
    file.write_bytes(picture)

    def cell(row: dict[str, Any], name: str, sign: str = "") -> str:
        return "" if sign and row["method"] == "random" else f"{row[name]:{sign}.3f} ± {row[f'{name}_se']:.3f}"

    rows = [
        (
            esc(r["method"]),
            cell(r, "deletion"),
            cell(r, "deletion_gain", "+"),
            cell(r, "insertion"),
            cell(r, "insertion_gain", "+"),
        )
        for r in measured.areas()
    ]
    table = _table(
        ("method", "area, deletion", "against random order", "area, insertion", "against random order"), rows
    )
    note = (
        f"Measured on {measured.n:,} images of {esc(data)}: the patches that a method calls most important are filled "
        f"first (deletion: "
        "the lower the area under the curve, the more faithful) or shown first in a filled image (insertion: the "
        "higher, the more "
        "faithful). ± is a standard error over images; the differences to random order are taken image by image."
    )
    plot = f'<img class="plot" alt="curves" src="{_uri(picture)}">'
    return f'<section><h2>Which method is faithful</h2><p class="muted">{note}</p>{plot}{table}</section>'


def _about_section(explained: Sequence["Explained"]) -> str:
    lines = [f"<dt>{esc(m)}</dt><dd>{esc(ABOUT[m])}</dd>" for m in explained[0].maps]
    return f'<section><h2>What the maps are</h2><dl class="about">{"".join(lines)}</dl></section>'


def _failures_section(failures: "Sequence[Failure]") -> str:
    if not failures:
        return ""
    rows = [(f'<span class="name">{esc(f.name)}</span>', esc(f.reason)) for f in failures]
    return f"<section><h2>Images that could not be read</h2>{_table(('image', 'reason'), rows, numbers=0)}</section>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: int | None = None) -> str:
    """Cells of safe HTML; the last `numbers` columns (default: all but the first) are to the right."""
    left = len(head) - (len(head) - 1 if numbers is None else numbers)

    def line(cells: Sequence[str], tag: str) -> str:
        return (
            "<tr>"
            + "".join(f'<{tag} class="{"r" if i >= left else ""}">{c}</{tag}>' for i, c in enumerate(cells))
            + "</tr>"
        )

    return f'<div class="scroll"><table class="rows">{line(head, "th")}{"".join(line(row, "td") for row in rows)}</table></div>'


def _figure(image: Image.Image, file: str, caption: str) -> str:
    out = io.BytesIO()
    image.save(out, "PNG")
    Path(file).write_bytes(out.getvalue())
    return f'<figure><img alt="" src="{_uri(out.getvalue())}"><figcaption>{caption}</figcaption></figure>'


def _uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


_STYLE = """
.maps{display:flex;flex-wrap:wrap;gap:16px 20px;margin:0 0 16px}.maps figure{margin:0;width:min-content}
.wide figure{margin:0 0 8px}.plot{max-width:100%;display:block;margin:0 0 12px;border-radius:4px}
figcaption{font-size:13px;line-height:1.4;margin-top:4px;color:var(--ink2)}figcaption b{color:var(--ink)}
details{margin:0 0 16px}.about dt{font-weight:600}.about dd{margin:0 0 10px;color:var(--ink2)}
""".strip()
