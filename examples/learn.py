"""Draw every step of a Mixer on one image: python examples/learn.py RUN IMAGE OUT

docs/concepts/learn.md explains the pictures.

Letters: S patches in a grid of h x w, C hidden_dim, DS tokens_mlp_dim, K classes.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

import mlpmixer
from mlpmixer.explanation.attribution import network_input, patch_evidence, require_network
from mlpmixer.explanation.pictures import stem_picture
from mlpmixer.models.mixer import Mixer
from mlpmixer.models.mixing import dependence, frequency, hidden_units, stem_filters

UNITS = 4  # hidden units of token mixing that are shown: those that do most for the channel


@dataclass(frozen=True)
class Seen:
    """A trained Mixer and an image: its pixels (H, W, in_channels), and the network's normalised input (1, in_channels,
    H, W)."""

    model: Mixer
    image: Tensor
    pixels: NDArray[np.uint8]
    classes: tuple[str, ...]


def patches(seen: Seen, figure: Figure) -> None:
    """The image, and its patches as the stem reads them: (S, P*P*3)."""
    (h, w), (left, right) = seen.model.cfg.grid, figure.subplots(1, 2)
    show_image(
        left, seen.pixels, f"{seen.pixels.shape[0]} x {seen.pixels.shape[1]} pixels, {h} x {w} = {h * w} patches"
    )
    left.set_xticks(np.arange(w + 1) * seen.pixels.shape[1] / w - 0.5)
    left.set_yticks(np.arange(h + 1) * seen.pixels.shape[0] / h - 0.5)
    left.grid(color="white", linewidth=1)
    left.tick_params(length=0, labelbottom=False, labelleft=False)
    show_table(right, seen.model.patches(seen.image)[0], "patches: (S, values of a patch)", "value", "patch")


def stem(seen: Seen, figure: Figure) -> None:
    """The filters of the stem, lowest frequency first, and its output X: (S, C)."""
    filters, (left, right) = stem_filters(seen.model), figure.subplots(1, 2)
    left.imshow(stem_picture(filters[frequency(filters.mean(dim=1)).argsort()].numpy()))
    left.set_title(f"the {len(filters)} filters of the stem, smooth ones first", fontsize="medium")
    left.axis("off")
    show_table(right, seen.model.intermediates(seen.image)["stem"][0], "X after the stem: (S, C)", "channel", "patch")


def token_mixing(seen: Seen, figure: Figure) -> None:
    """One column of X through the token mixing of block 1: the column as a map, its strongest units, and what they
    add."""
    block, x, (h, w) = seen.model.blocks[0], seen.model.intermediates(seen.image)["stem"], seen.model.cfg.grid
    column = block.columns(block.norm1(x))  # (parts, C, S / parts)
    before = block.token_mixing.fc1(column)
    after = F.gelu(before, approximate=block.token_mixing.approximate)
    added = block.mix_tokens(x)[0] - x[0]  # (S, C)
    i = int(added.square().sum(dim=0).argmax())
    writes = block.token_mixing.fc2.weight  # (S / parts, DS): a column is what a unit writes
    units = (after[0, i].abs() * writes.norm(dim=0)).argsort(descending=True)[:UNITS].tolist()
    reads, grid = hidden_units(seen.model, 0), block.part_grid
    axes = figure.subplots(2, UNITS + 2)
    show_map(axes[0, 0], column[0, i].reshape(grid), f"LayerNorm(X)[:, {i}]")
    axes[1, 0].axis("off")
    for k, unit in enumerate(units, start=1):
        show_map(axes[0, k], reads[unit], f"row {unit} of W1: {float(before[0, i, unit]):+.2f}")
        show_map(axes[1, k], writes[:, unit].reshape(grid), f"column of W2 x {float(after[0, i, unit]):+.2f}")
    show_map(axes[0, -1], added[:, i].reshape(h, w), "all of them: added")
    show_map(axes[1, -1], (x[0] + added)[:, i].reshape(h, w), f"U[:, {i}]")


def channel_mixing(seen: Seen, figure: Figure) -> None:
    """What the channel mixing of block 1 adds: (S, C), and the row of one patch."""
    block, (left, right) = seen.model.blocks[0], figure.subplots(1, 2)
    u = block.mix_tokens(seen.model.intermediates(seen.image)["stem"])
    added = (block.mix_channels(u) - u)[0]
    j = int(added.square().sum(dim=1).argmax())
    show_table(left, added, "added by channel mixing: (S, C)", "channel", "patch")
    right.plot(u[0, j].numpy(), label=f"U[{j}, :]", linewidth=0.9)
    right.plot((u[0, j] + added[j]).numpy(), label=f"Y[{j}, :]", linewidth=0.9)
    right.set(xlabel="channel")
    right.set_title(f"patch {j}, which changes most", fontsize="medium")
    right.legend()


def depth(seen: Seen, figure: Figure) -> None:
    """How much the middle patch depends on each patch after each block: norms of Jacobians by the pixels."""
    (h, w), directions = seen.model.cfg.grid, None if seen.model.stem.in_features <= 64 else 16
    middle = h // 2 * w + w // 2
    reach = dependence(seen.model, seen.image[0], directions)[0][:, middle].sqrt().reshape(-1, h, w).numpy()
    axes = figure.subplots(1, len(reach) + 1)
    show_image(axes[0], seen.pixels, "the patch")
    (rows, cols), (y, x) = (seen.pixels.shape[0] / h, seen.pixels.shape[1] / w), divmod(middle, w)
    axes[0].add_patch(_frame((x * cols - 0.5, y * rows - 0.5), cols, rows))
    for n, ax in enumerate(axes[1:]):
        ax.imshow(reach[n], cmap="magma")
        ax.set_title(f"block {n + 1}", fontsize="small")
        ax.axis("off")


def head(seen: Seen, figure: Figure) -> None:
    """The logits of each patch for the two likeliest classes (their means are the logits of the image), and the
    probabilities."""
    each, (h, w) = patch_evidence(seen.model, seen.image)[0], seen.model.cfg.grid  # (S, K)
    probability = each.mean(dim=0).softmax(dim=0)
    best = probability.argsort(descending=True).tolist()
    names, axes = [seen.classes[k] for k in best], figure.subplots(1, 4)
    show_image(axes[0], seen.pixels, "the image")
    for ax, k, name in zip(axes[1:3], best, names, strict=False):
        show_map(ax, each[:, k].reshape(h, w), f"{name}: mean {float(each[:, k].mean()):+.2f}")
    shown = min(len(best), 5)
    axes[3].barh(range(shown), [float(probability[k]) for k in best[:shown]])
    axes[3].set_yticks(range(shown), names[:shown])
    axes[3].invert_yaxis()
    axes[3].set_title("softmax", fontsize="medium")


DRAWINGS: dict[str, tuple[Callable[[Seen, Figure], None], tuple[float, float]]] = {
    "1-patches": (patches, (9, 4)),
    "2-stem": (stem, (9, 4)),
    "3-token-mixing": (token_mixing, (11, 4.2)),
    "4-channel-mixing": (channel_mixing, (9, 4)),
    "5-depth": (depth, (11, 1.6)),
    "6-head": (head, (11, 2.8)),
}


def show_image(ax, pixels, title):
    ax.imshow(pixels if pixels.shape[2] == 3 else pixels.mean(axis=2), cmap="gray")
    ax.set_title(title, fontsize="medium")
    ax.tick_params(length=0, labelbottom=False, labelleft=False)


def show_map(ax, values, title):
    most = float(values.abs().max()) or 1.0
    ax.imshow(values.numpy(), cmap="RdBu_r", vmin=-most, vmax=most)
    ax.set_title(title, fontsize="small")
    ax.axis("off")


def show_table(ax, values, title, x, y):
    most = float(values.abs().quantile(0.995)) or 1.0
    ax.imshow(values.numpy(), cmap="RdBu_r", vmin=-most, vmax=most, aspect="auto", interpolation="nearest")
    ax.set_title(title, fontsize="medium")
    ax.set(xlabel=x, ylabel=y)


def _frame(corner, width, height):
    from matplotlib.patches import Rectangle

    return Rectangle(corner, width, height, fill=False, edgecolor="red", linewidth=1.5)


@torch.no_grad()
def main(run: str, path: str, out: str) -> None:
    classifier = mlpmixer.load(run)
    pixels = classifier.preprocess_image(path)
    seen = Seen(require_network(classifier), network_input(classifier, pixels[None]), pixels, classifier.classes)
    Path(out).mkdir(parents=True, exist_ok=True)
    for name, (drawing, size) in DRAWINGS.items():
        figure = Figure(figsize=size, layout="constrained")
        drawing(seen, figure)
        figure.savefig(Path(out) / f"{name}.png", dpi=100)
        print(Path(out) / f"{name}.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
