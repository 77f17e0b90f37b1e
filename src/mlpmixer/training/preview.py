"""A labelled contact sheet of augmented training images. Torch is imported when one is drawn."""

import dataclasses
import os
import textwrap
import unicodedata
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from mlpmixer.data.config import Data
from mlpmixer.data.images import Pixels
from mlpmixer.training.recipe import Augment

if TYPE_CHECKING:
    from mlpmixer.data.image_set import ImageSet, Splits
    from mlpmixer.data.preprocess import Preprocess

TILE_PX = 128  # small images are enlarged by a whole factor to about this
FONT_PX, GAP_PX = 13, 6


def preview(
    splits: "Splits",
    data: Data,
    augment: Augment,
    preprocess: "Preprocess",
    path: str | os.PathLike[str],
    *,
    rows: int = 6,
    cols: int = 8,
    seed: int = 0,
) -> Path:
    """Write a PNG of `rows` training images of different classes: the evaluation view, then `cols` - 1 augmented ones.

    Unreadable images are left out. Errors: ValueError when no image can be read, and for rows < 1 or cols < 2.
    """
    if rows < 1 or cols < 2:
        raise ValueError(f"a preview needs rows >= 1 and cols >= 2, got rows={rows}, cols={cols}")
    stored: list[Pixels] = []
    plain: list[Pixels] = []
    labels: list[npt.NDArray[Any]] = []
    for i in _spread(splits.train, seed):
        if len(labels) == rows:
            break
        try:
            views = [p.array(splits.train.source(int(i))) for p in (preprocess.scaled(data.train_scale), preprocess)]
        except ValueError:  # ImageError: a run reports these, a preview leaves them out
            continue
        stored.append(views[0])
        plain.append(views[1])
        labels.append(splits.train.labels[i])
    if not labels:
        raise ValueError(f"no image of the training split of {splits.name} can be read; look at: mlpmixer data check")
    return contact_sheet(
        np.stack(stored), np.stack(plain), np.stack(labels), splits.classes, augment, path, draws=cols - 1, seed=seed
    )


def contact_sheet(
    stored: Pixels,
    plain: Pixels,
    labels: Sequence[int] | npt.NDArray[Any],
    classes: Sequence[str],
    cfg: Augment,
    path: str | os.PathLike[str],
    *,
    draws: int = 7,
    seed: int = 0,
) -> Path:
    """Write a row for each image: `plain` (N,h,w,C), then `draws` augmentations of `stored` (N,H,W,C), both in 0..255.

    labels: (N,) numbers, or targets (N,K). Each column is a batch as in training, so images are mixed with those of
    other rows. Below an image is the class that it is trained as, or the shares of several. A class whose letters no
    font here has is called by its number.
    """
    import torch

    from mlpmixer.training.augment import augment, mix
    from mlpmixer.training.loss import soft_targets

    size = (plain.shape[1], plain.shape[2])
    targets = soft_targets(torch.as_tensor(np.asarray(labels)), len(classes))
    generator = torch.Generator().manual_seed(seed)
    columns = [(plain.round().astype(np.uint8), [_shares(t.tolist()) for t in targets])]
    for _ in range(draws):
        images = augment(torch.from_numpy(stored), cfg, size, generator)
        images, mixed = mix(images, targets, cfg, generator)
        pixels = images.permute(0, 2, 3, 1).round().to(torch.uint8).numpy()
        columns.append((pixels, [_shares(t.tolist()) for t in mixed]))

    factor = max(1, round(TILE_PX / max(size)))
    tile_h, tile_w = size[0] * factor, max(size[1] * factor, TILE_PX // 2)
    lines = max(1, *(len(caption) for _, captions in columns for caption in captions))
    step_y, step_x = tile_h + lines * (FONT_PX + 2) + 2 * GAP_PX, tile_w + GAP_PX
    width = GAP_PX + step_x * len(columns)
    font = _font("")
    letter_px = font.getlength("abcdefghijklmnopqrstuvwxyz") / 26
    fonts = {k: font_for(classes[k]) for k in {k for _, captions in columns for lines in captions for _, k in lines}}
    text = f"{stored.shape[1]}x{stored.shape[2]} px to {size[0]}x{size[1]} px, seed {seed}. {describe(cfg)}"
    if None in fonts.values():
        text += ". A class that is called by its number, from 0 on, has letters that no font on this machine has"
    title = textwrap.wrap(text, int((width - 2 * GAP_PX) / letter_px))
    top = GAP_PX + (len(title) + 1) * (FONT_PX + GAP_PX)
    canvas = Image.new("RGB", (width, top + step_y * len(labels)), "white")
    draw = ImageDraw.Draw(canvas)
    for i, line in enumerate(title):
        draw.text((GAP_PX, GAP_PX + i * (FONT_PX + GAP_PX)), line, "black", font)
    for x, (pixels, captions) in enumerate(columns):
        left = GAP_PX + x * step_x
        mixed_here = ", mixed" if any(share for lines in captions for share, _ in lines) else ""
        draw.text((left, top - FONT_PX - GAP_PX), f"draw {x}{mixed_here}" if x else "evaluation", "dimgrey", font)
        for y, caption in enumerate(captions):
            tile = _picture(pixels[y]).resize((size[1] * factor, tile_h), Image.Resampling.NEAREST)
            canvas.paste(tile, (left, top + y * step_y))
            for i, (share, k) in enumerate(caption):
                place = left, top + y * step_y + tile_h + 2 + i * (FONT_PX + 2)
                draw.text(place, share, "dimgrey", font)  # apart from the name, which may run from right to left
                indent = font.getlength(share)
                name, of_name = (classes[k], found) if (found := fonts[k]) else (f"class {k}", font)
                draw.text((place[0] + indent, place[1]), _cut(name, of_name, tile_w - indent), "black", of_name)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(path, "PNG")
    return path


def describe(cfg: Augment) -> str:
    """The augmentations that are on, in words: "flip, pad_crop_px=4, pad_mode=reflect"."""
    values: dict[str, Any] = {f.name: getattr(cfg, f.name) for f in dataclasses.fields(cfg)}
    if not (cfg.mixup or cfg.cutmix):
        del values["mix_probability"]
    if not cfg.randaugment_layers:
        del values["randaugment_magnitude"], values["randaugment_form"]
    if not cfg.fills:
        del values["pad_mode"]
    on = [name if value is True else f"{name}={value}" for name, value in values.items() if value]
    return ", ".join(on) or "no augmentation"


def _spread(images: "ImageSet", seed: int) -> npt.NDArray[np.int64]:
    """All image numbers in a random order in which the classes take turns."""
    order = np.random.default_rng(seed).permutation(len(images))
    _, group = np.unique(images.labels[order], axis=0, return_inverse=True)  # of the same class, or the same classes
    sizes, turn = np.bincount(group.reshape(-1)), np.zeros(len(order), np.int64)
    turn[np.argsort(group.reshape(-1), kind="stable")] = np.arange(len(order)) - np.repeat(
        sizes.cumsum() - sizes, sizes
    )
    return order[np.argsort(turn, kind="stable")]


def _shares(target: Sequence[float]) -> list[tuple[str, int]]:
    """(share in words, class) of what a target is made of, the largest first; a whole one has no share."""
    parts = sorted(((share, k) for k, share in enumerate(target) if share > 0), reverse=True)
    return [(f"{100 * share:.0f} % of ", k) if share < 1 else ("", k) for share, k in parts]


def _cut(name: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """The name, or as much of its beginning as has room."""
    if font.getlength(name) <= width:
        return name
    while name and font.getlength(f"{name}...") > width:
        name = name[:-1]
    return f"{name}..."


def font_for(text: str) -> ImageFont.FreeTypeFont | None:
    """A font that has all letters of a text; None when there is none on this machine."""
    letters = {ord(c) for c in text if not c.isspace() and unicodedata.category(c) not in ("Cf", "Mn")}
    path = "" if text.isascii() else next((path for path in _font_files() if letters <= _letters(path)), None)
    return None if path is None else _font(path)


@cache
def _font(path: str) -> ImageFont.FreeTypeFont:
    """Pillow's own without a path, which has ASCII."""
    font = ImageFont.truetype(path, FONT_PX) if path else ImageFont.load_default(FONT_PX)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


@cache
def _font_files() -> list[str]:
    """The one that comes with matplotlib, then those of the system, sans serif and upright ones first."""
    from matplotlib import font_manager

    def odd(path: str) -> tuple[bool, bool, str]:
        name = os.path.basename(path).lower()
        return "sans" not in name, any(style in name for style in ("bold", "italic", "oblique", "light", "mono")), path

    return [font_manager.findfont("DejaVu Sans"), *sorted(font_manager.findSystemFonts(), key=odd)]


@cache
def _letters(path: str) -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(path).get_charmap())
    except (RuntimeError, OSError):  # a font of a kind that FreeType does not read
        return frozenset()


def _picture(pixels: Pixels) -> Image.Image:
    """(H,W,C) -> RGB; one or two channels are shown as grey (the first), more than three as the first three."""
    shown = pixels[..., :3] if pixels.shape[2] >= 3 else pixels[..., 0]
    return Image.fromarray(np.ascontiguousarray(shown)).convert("RGB")
