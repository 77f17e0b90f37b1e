"""Pictures of explanations and weights: red is positive and speaks for a class, blue against. Imports no torch.

S patches in a grid of h x w, N blocks.
"""

import io
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from mlpmixer.explanation.faithfulness import Faithfulness
    from mlpmixer.models.mixing import Mixing

Values = NDArray[np.floating[Any]]
Colours = NDArray[np.uint8]

SIDE_PX = 256  # small images are enlarged by a whole factor to about this
ROW_PX, PANEL_PX, TILE_PX = 1000, 200, 64  # approximate widths
FONT_PX, GAP_PX, LEGEND_PX = 13, 8, 80
RED, BLUE = (178, 24, 43), (33, 102, 172)  # the ends of ColorBrewer's RdBu, which colour-blind readers can tell apart


def signed_colours(values: Values, background: Values | float = 255.0) -> Colours:
    """Values (..) in -1..1 as colours (.., 3): red at 1, `background` (.., 3), 0..255, at 0, blue at -1."""
    strength = np.abs(values)[..., None]
    colour = np.where(values[..., None] > 0, np.array(RED), np.array(BLUE))
    mixed: Colours = np.round(strength * colour + (1 - strength) * background).astype(np.uint8)
    return mixed


def input_picture(pixels: NDArray[Any]) -> Image.Image:
    """An image (H, W, C), 0..255, enlarged by a whole factor; channels other than RGB are shown as their mean."""
    rgb = pixels if pixels.shape[2] == 3 else pixels.mean(axis=2, keepdims=True).repeat(3, axis=2)
    factor = max(1, round(SIDE_PX / max(pixels.shape[:2])))
    return Image.fromarray(_enlarge(np.round(rgb).astype(np.uint8), factor))


def heat_map(pixels: NDArray[Any], values: Values) -> Image.Image:
    """Values of the patches (h, w), in logits, over the image (H, W, C), scaled to the largest, with a legend."""
    seen = input_picture(pixels)
    grey = np.asarray(seen.convert("L").convert("RGB"), dtype=np.float64)
    most = float(np.abs(values).max())
    down, across = (np.arange(n) * k // n for n, k in zip((seen.height, seen.width), values.shape, strict=True))
    scaled = values[down[:, None], across] / (most or 1)
    background = 70 + 0.7 * grey  # brighter, so that colours show on dark pictures
    over = Image.fromarray(signed_colours(0.85 * scaled, background))
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
    """Maps (n, h, w), such as `mixing.hidden_units` in the order of `mixing.opposite_pairs`, each with its own scale.

    columns: default: an even number, so that pairs stay together, for a picture about as wide as high.
    """
    most = np.abs(units).max(axis=(1, 2), keepdims=True)
    return _tiles(signed_colours(units / np.where(most > 0, most, 1)), columns)


def stem_picture(filters: Values, columns: int = 0) -> Image.Image:
    """The stem's filters (n, in_channels, P, P): colours around grey for 3 channels, else maps of the channels' sum."""
    if filters.shape[1] != 3:
        return units_picture(filters.sum(axis=1), columns)
    most = np.abs(filters).max(axis=(1, 2, 3), keepdims=True)
    rgb = 127.5 + 127.5 * (filters / np.where(most > 0, most, 1)).transpose(0, 2, 3, 1)
    return _tiles(np.round(rgb).astype(np.uint8), columns)


def _tiles(tiles: Colours, columns: int) -> Image.Image:
    """A picture of tiles (n, h, w, 3)."""
    n, h, w, _ = tiles.shape
    columns = columns or min(n, 2 * max(1, round((n * h / w) ** 0.5 / 2)))
    factor = max(1, min(round(TILE_PX / max(h, w)), ROW_PX // (columns * w)))
    return Image.fromarray(_mosaic(np.stack([_enlarge(tile, factor) for tile in tiles]), columns, gap=3))


def mixing_picture(mixing: "Mixing", grid: tuple[int, int]) -> Image.Image:
    """Two rows with a panel for each block: its token mixing alone, and everything from the image to its output.

    A panel has a small map for each output patch, at that patch's place, of how much it depends on each input patch
    (the norm of the Jacobian). Colours are scaled to the largest value off the diagonal, which is written below.
    """
    rows = {
        "each block's token mixing alone": mixing.layers,
        "from the image to the output of each block": mixing.whole,
    }
    high, wide = _panel(mixing.whole[0], grid)[0].shape[:2]
    in_a_row = min(len(mixing.whole), max(1, ROW_PX // (wide + 2 * GAP_PX)))
    step_x, step_y = wide + 2 * GAP_PX, high + 2 * FONT_PX + GAP_PX
    row_y = 2 * FONT_PX + -(-len(mixing.whole) // in_a_row) * step_y
    canvas = Image.new("RGB", (max(in_a_row * step_x, SIDE_PX), len(rows) * row_y), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(FONT_PX)
    for row, (title, maps) in enumerate(rows.items()):
        draw.text((0, row * row_y), title, "black", font)
        for i, squares in enumerate(maps):
            x, y = i % in_a_row * step_x, row * row_y + 2 * FONT_PX + i // in_a_row * step_y
            colours, most = _panel(squares, grid)
            canvas.paste(Image.fromarray(colours), (x, y))
            draw.text((x, y + high + 2), f"block {i + 1}, up to {most:.3g}", "dimgrey", font)
    return canvas


def _panel(squares: Values, grid: tuple[int, int]) -> tuple[Colours, float]:
    """A grid of grids of (S, S), and the value of its strongest colour."""
    norm = np.sqrt(squares)
    most = float((norm * (1 - np.eye(len(norm)))).max())
    tiles = signed_colours(np.minimum(norm / (most or 1), 1).reshape(-1, *grid))
    factor = max(1, PANEL_PX // (grid[0] * grid[1]))
    return _mosaic(np.stack([_enlarge(tile, factor) for tile in tiles]), grid[1], gap=1), most


def _enlarge(pixels: Colours, factor: int) -> Colours:
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


def curves_png(found: "Faithfulness") -> bytes:
    """Deletion and insertion curves, means with their standard errors."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
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
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110)
    return out.getvalue()
