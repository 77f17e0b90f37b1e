"""Figure 4: what shuffled pixels do to a Mixer and to a ResNet.

Letters: S patches, P patch_size, C channels of an image. One permutation is drawn from a seed and used for all images.
"""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from mlpmixer.config import pair
from mlpmixer.data.datasets import open_data
from mlpmixer.data.image_set import ImageSet
from mlpmixer.inference.load import load
from mlpmixer.models.architecture import build
from mlpmixer.models.configs import NetworkConfig
from mlpmixer.models.mixer import Mixer
from mlpmixer.reproduce.chance import interval, is_tie, mean_and_range
from mlpmixer.reproduce.comparison import COLOURS, COMPARISONS, Trial, cifar10, validation_curve
from mlpmixer.reproduce.experiment import ExperimentContext
from mlpmixer.reproduce.page import Page, Panel, Plot, Series, make_table, percent
from mlpmixer.training.augment import normalise, prepare_eval

Mode = Literal["original", "patches", "pixels"]
MODES: dict[Mode, str] = {
    "original": "original",
    "patches": "patches shuffled, and the pixels in each of them alike",
    "pixels": "all pixels shuffled",
}
STYLES: dict[Mode, str] = {"original": "-", "patches": "--", "pixels": ":"}
NUM_CHECKED = 256  # validation images that the identity is checked on
SCALES = {scale: comparison.only("Mixer", "ResNet") for scale, comparison in COMPARISONS.items()}
# fewer runs than in the other comparisons, and longer ones
SCALES["small"] = dataclasses.replace(SCALES["small"], steps=900, rate_steps=180, evaluations=10)
SCALES["long"] = dataclasses.replace(SCALES["long"], steps=1500)


def orders(grid: tuple[int, int], patch: tuple[int, int], seed: int) -> tuple[Tensor, Tensor]:
    """A permutation of the patches (S,) and one of the pixels of a patch (P*P,)."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.permutation(math.prod(grid))), torch.from_numpy(rng.permutation(math.prod(patch)))


def pixel_order(mode: Mode, image_size: tuple[int, int], patch: tuple[int, int], seed: int) -> Tensor:
    """The position that each pixel of the flattened image (H*W,) comes from."""
    (h, w), (p, q) = image_size, patch
    positions, grid = torch.arange(h * w), (h // p, w // q)
    if mode == "original":
        return positions
    if mode == "pixels":
        return torch.from_numpy(np.random.default_rng(seed).permutation(h * w))
    patches, inside = orders(grid, patch, seed)
    cut = positions.reshape(grid[0], p, grid[1], q).permute(0, 2, 1, 3).reshape(-1, p * q)  # (S, P*P)
    return cut[patches][:, inside].reshape(*grid, p, q).permute(0, 2, 1, 3).flatten()


def reordered(images: Tensor, order: Tensor) -> Tensor:
    """Images (B, C, H, W) with the pixels of each channel in another order."""
    return images.flatten(2).index_select(2, order).reshape(images.shape)


@dataclass(frozen=True, kw_only=True)
class Shuffled:
    """Builds a network that sees every image with its pixels in another order, for `train(network=)`.

    The order is part of the network, behind augmentation, as in the paper: a crop of a shuffled image would move pixels
    from one patch to another.
    """

    mode: Mode
    seed: int = 0
    patch: tuple[int, int] = (4, 4)
    """Height and width of the patches that are shuffled."""

    def __call__(self, cfg: NetworkConfig) -> "ShuffledNetwork":
        return ShuffledNetwork(build(cfg), pixel_order(self.mode, pair(cfg.image_size), self.patch, self.seed))


class ShuffledNetwork(nn.Module):
    def __init__(self, network: Any, order: Tensor) -> None:
        super().__init__()
        self.network = network
        self.order: Tensor
        self.register_buffer("order", order, persistent=False)  # it follows from the seed

    def pre_logits(self, images: Tensor) -> Tensor:
        features: Tensor = self.network.pre_logits(reordered(images, self.order))
        return features

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(reordered(images, self.order))
        return logits


@torch.no_grad()
def for_shuffled(model: Mixer, seed: int) -> Mixer:
    """The Mixer that computes from images shuffled by "patches" what `model` computes from the original ones.

    Stem, W1, W2 and b2 are permuted alike in every block. This identity is behind the figure: a Mixer knows the order
    of patches, and of the pixels in them, from its weights alone.
    """
    cfg = model.cfg
    patches, inside = orders(cfg.grid, cfg.cell, seed)
    state = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
    stem = state["stem.weight"].reshape(cfg.hidden_dim, cfg.in_channels, -1)
    state["stem.weight"] = stem[:, :, inside].reshape(cfg.hidden_dim, -1)
    for i in range(cfg.num_blocks):
        mixing = f"blocks.{i}.token_mixing"
        state[f"{mixing}.fc1.weight"] = state[f"{mixing}.fc1.weight"][:, patches]
        for name in ("weight", "bias"):
            state[f"{mixing}.fc2.{name}"] = state[f"{mixing}.fc2.{name}"][patches]
    counterpart = Mixer(cfg)
    counterpart.load_state_dict(state)
    return counterpart.eval()


def train_on_shuffled_pixels(context: ExperimentContext) -> Page:
    comparison, data = SCALES[context.scale], cifar10(context)
    networks, splits = comparison.networks, open_data(data)
    assert splits.test is not None
    n, patch = len(splits.test), comparison.networks["Mixer"].cell
    trials = {
        f"{name}-{mode}": Trial(name, data, Shuffled(mode=mode, patch=patch)) for name in networks for mode in MODES
    }
    results, rates, tried = comparison.train(context, trials, further_parts=1)
    runs = {name: {mode: results[f"{name}-{mode}"] for mode in MODES} for name in networks}
    top1 = {name: {mode: [r.summary["top1"] for r in of[mode]] for mode in MODES} for name, of in runs.items()}
    curves = {name: {mode: validation_curve(of[mode][0]) for mode in MODES} for name, of in runs.items()}
    original = context.out / "runs" / f"Mixer-original-{context.seed}"
    identity = context.measure("identity", lambda: _check_identity(original, splits.val))
    sizes = comparison.sizes()
    mean = {name: {mode: fmean(values) for mode, values in modes.items()} for name, modes in top1.items()}

    def change(name: str, mode: Mode) -> str:
        before, after = mean[name]["original"], mean[name][mode]
        lost = f"{100 * abs(after / before - 1):.0f} % of it {'lost' if after < before else 'gained'}"
        return f"{name} {percent(before)} to {percent(after)} ({'level' if is_tie(before, after, n) else lost})"

    rows = [
        {
            "network": name,
            "images": text,
            "top-1": mean_and_range(top1[name][mode]),
            "95 % interval": interval(mean[name][mode], n),
        }
        for name in networks
        for mode, text in MODES.items()
    ]
    panels = [
        Panel("step", "validation top-1", [Series(curves[name][m], m, STYLES[m], COLOURS[name]) for m in MODES], name)
        for name in networks
    ]
    return Page(
        template="permutation.md",
        values={"comparison": comparison, "sizes": sizes, "train_images": len(splits.train), "n": n},
        findings=(
            f"Patches and the pixels in them shuffled: {'; '.join(change(name, 'patches') for name in networks)}.",
            f"All pixels shuffled: {'; '.join(change(name, 'pixels') for name in networks)}.",
            "The identity: the trained Mixer with stem, W1, W2 and b2 permuted gives on shuffled images the logits of "
            f"the original, to {identity['max_abs_difference']:.1e} (logits up to {identity['max_abs_logit']:.1f}).",
        ),
        tables=(make_table("Test top-1", rows), tried),
        plots=(Plot("curves", "Validation top-1, first seed", panels, share_y=True),),
        figures={"top1": top1, "curves": curves, "sizes": sizes, "rates": rates, "n": n, "identity": identity},
    )


def _check_identity(run: Path, images: ImageSet) -> dict[str, float]:
    """The trained Mixer against its counterpart for shuffled images, on some validation images."""
    classifier = load(run, network=Shuffled(mode="original"))
    model: Any = classifier.network
    pixels = [classifier.preprocess_image(images.source(i)) for i in range(min(NUM_CHECKED, len(images)))]
    seen = normalise(prepare_eval(torch.from_numpy(np.stack(pixels))), classifier.preprocess)
    cfg = model.network.cfg
    order = pixel_order("patches", pair(cfg.image_size), cfg.cell, seed=0)
    with torch.no_grad():
        logits, counterparts = model(seen), for_shuffled(model.network, seed=0)(reordered(seen, order))
    difference = float((logits - counterparts).abs().max())
    return {"max_abs_difference": difference, "max_abs_logit": float(logits.abs().max())}
