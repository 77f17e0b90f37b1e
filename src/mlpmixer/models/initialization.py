"""Starts of the weights other than the official one, which is `Mixer.reset_parameters`."""

from typing import Any

import torch
from torch import Tensor, nn

RIDGE = (
    0.01  # share of the mean eigenvalue added to each: keeps directions without variance (black borders) from exploding
)


@torch.no_grad()
def whiten_stem(model: Any, images: Tensor) -> None:
    """Make the stem a random rotation of the whitened patches of `images` (B, in_channels, H, W; normalised).

    W = Q (E[p p^T] + ridge)^(-1/2), Q with orthonormal rows or columns from torch's global generator: the outputs are
    uncorrelated over the patches p and have mean square 1. Neighbouring pixels are so alike that a plain random stem
    passes on little but the brightness of a patch. (Whitened patches: Coates, Lee, Ng 2011, "An analysis of
    single-layer networks in unsupervised feature learning"; as the start of a first layer: Jordan 2024,
    arXiv:2404.00498.)
    """
    patches = model.patches(images).flatten(0, 1).double()  # (B*S, in*P*P)
    values, axes = torch.linalg.eigh(patches.T @ patches / len(patches))
    ridge = RIDGE * values.mean().clamp(
        min=RIDGE
    )  # about RIDGE, as pixels have variance 1: less if images are constant
    root = axes / (values + ridge).sqrt() @ axes.T
    dim, patch = model.stem.weight.shape
    rotation = torch.nn.init.orthogonal_(root.new_empty(dim, patch), gain=max(dim / patch, 1) ** 0.5)
    model.stem.weight.copy_(rotation @ root)


@torch.no_grad()
def set_head_bias(model: Any, value: float) -> None:
    """Start every class of the head at `value` instead of 0 (big_vision's init_head_bias); nothing happens to a model
    without a head."""
    if isinstance(model.head, nn.Linear):
        model.head.bias.fill_(value)
