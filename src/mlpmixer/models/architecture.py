"""Another network than a Mixer in the same loop, on the same data: a rival, or a variant. It is given in Python, by
what builds it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from mlpmixer.config import pair
from mlpmixer.models.configs import MixerConfig

Build = Callable[[MixerConfig], nn.Module]
"""Makes a network of images (B, in_channels, H, W) -> logits (B, K), its weights drawn from torch's global generator.
Of the configuration it must take image_size, in_channels and num_classes. With a method `pre_logits`, images -> (B, D),
it can be probed, too."""


def name_of(network: Build) -> str:
    """What files and errors call it: of a dataclass its fields, too, so that a run goes on with the same network."""
    return (
        repr(network) if dataclasses.is_dataclass(network) else getattr(network, "__qualname__", type(network).__name__)
    )


def build(network: Build, cfg: MixerConfig) -> nn.Module:
    """A fresh network. ValueError when it does not answer images with logits of the right shape."""
    model = network(cfg)
    with torch.no_grad():
        logits: Any = model.eval()(torch.zeros(2, cfg.in_channels, *pair(cfg.image_size)))
    shape = tuple(getattr(logits, "shape", ()))
    if shape != (2, cfg.num_classes):
        got = f"shape {shape}" if shape else type(logits).__name__
        raise ValueError(
            f"{name_of(network)} answers two images with {got}; expected logits of shape (2, {cfg.num_classes})"
        )
    return model
