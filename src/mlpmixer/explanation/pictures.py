"""Pictures of explanations and weights. Imports no torch.

Maps over an image: orange speaks for a class, blue against it. Weights: red is positive, blue negative. Readers with
any kind of colour blindness can tell both pairs apart. S patches in a grid of h x w, N blocks.
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
FONT_PX, GAP_PX, SCALE_PX = 13, 8, 40
ORANGE, BLUE = (213, 94, 0), (0, 114, 178)  # Okabe and Ito 2008, "Color Universal Design"
OPACITY = 0.75  # of the strongest patch: the image shows through
POSITIVE, NEGATIVE = (178, 24, 43), (33, 102, 172)  # the ends of ColorBrewer's RdBu


def signed_colours(values: Values) -> Colours:
    """Values (..) in -1..1 as colours (.., 3): red at 1, white at 0, blue at -1."""
    strength = np.abs(values)[..., None]
    colour = np.where(values[..., None] > 0, np.array(POSITIVE), np.array(NEGATIVE))
    mixed: Colours = np.round(strength * colour + (1 - strength) * 255).astype(np.uint8)
    return mixed


def input_picture(pixels: NDArray[Any]) -> Image.Image:
    """An image (H, W, C), 0..255, enlarged by a whole factor; channels other than RGB are shown as their mean."""
    rgb = pixels if pixels.shape[2] == 3 else pixels.mean(axis=2, keepdims=True).repeat(3, axis=2)
    factor = max(1, round(SIDE_PX / max(pixels.shape[:2])))
    return Image.fromarray(_enlarge(np.round(rgb).astype(np.uint8), factor))


def overlay(values: Values) -> Image.Image:
    """Values of the patches (h, w) as one RGBA pixel each: orange speaks for, blue against, 0 is transparent."""
    most = float(np.abs(values).max()) or 1.0
    colour = np.where(values[..., None] > 0, np.array(ORANGE), np.array(BLUE))
    alpha = np.round(255 * OPACITY * np.abs(values) / most)[..., None]
    return Image.fromarray(np.concatenate([colour, alpha], axis=2).astype(np.uint8))


def grey_picture(photo: NDArray[Any]) -> Image.Image:
    """The background of `overlay`: the image (H, W, C) in grey, neither black nor white, so that colours show on it."""
    grey = np.asarray(input_picture(photo).convert("L"), dtype=np.float64)
    return Image.fromarray(np.round(60 + 0.75 * grey).astype(np.uint8))


def heat_map(photo: NDArray[Any], values: Values) -> Image.Image:
    """Values of the patches (h, w), in logits, over the image (H, W, C), above a scale that ends at the largest."""
    grey = grey_picture(photo).convert("RGBA")
    over = overlay(values).resize(grey.size, Image.Resampling.NEAREST)
    canvas = Image.new("RGB", (grey.width, grey.height + SCALE_PX), "white")
    canvas.paste(Image.alpha_composite(grey, over), (0, 0))
    bar = Image.new("RGBA", (grey.width, 12), (180, 180, 180, 255))
    bar.alpha_composite(overlay(np.linspace(-1, 1, grey.width)[None]).resize(bar.size))
    canvas.paste(bar, (0, grey.height + GAP_PX))
    draw, font, most = ImageDraw.Draw(canvas), ImageFont.load_default(FONT_PX), float(np.abs(values).max())
    ends = ((0, "la", f"-{most:.2g} against"), (0.5, "ma", "0"), (1, "ra", f"for +{most:.2g}"))
    for share, anchor, text in ends:
        draw.text((share * grey.width, grey.height + GAP_PX + 14), text, "black", font, anchor=anchor)
    return canvas


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
        ax.set_prop_cycle(color=("#0072b2", "#d55e00", "#009e73", "#cc79a7"), linestyle=("-", "-.", (0, (6, 2)), ":"))
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
