"""Another network than a Mixer in the same loop, on the same data: a rival, or a variant. It is given in Python, by
what builds it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from mlpmixer.config import MixerConfig, Recipe, pair

Build = Callable[[MixerConfig], nn.Module]
"""Makes a network of images (B, in_channels, H, W) -> logits (B, K), its weights drawn from torch's global generator.
Of the configuration it must take image_size, in_channels and num_classes. With a method `pre_logits`, images -> (B, D),
it can be probed, too."""

ONLY_A_MIXER = {
    "init": ("weights", "stem", "head_bias"),
    "optim": ("layer_decay", "frozen_layers", "head_steps", "locality", "mirror"),
    "run": ("progressive", "checkpointing"),
}
"""Settings about the layers of a Mixer; another network is trained with them at their defaults."""


def name_of(network: Build) -> str:
    """What files and errors call it: of a dataclass its fields, too, so that a run goes on with the same network."""
    return (
        repr(network) if dataclasses.is_dataclass(network) else getattr(network, "__qualname__", type(network).__name__)
    )


def with_network(recipe: Recipe, network: Build | None) -> Recipe:
    """The recipe of a run that trains what `network` builds, if there is one.

    ValueError when the run was started with another network, or when the recipe asks for what only a Mixer has.
    """
    if network is None:
        if recipe.network:
            raise ValueError(
                f"this run trains another network than a Mixer, {recipe.network}: train it from Python, "
                "mlpmixer.train(recipe, ..., network=what builds it)"
            )
        return recipe
    name, plain = name_of(network), Recipe()
    if recipe.network not in ("", name):
        raise ValueError(f"two networks: the recipe says {recipe.network}, and {name} is given")
    changed = [
        f"{owner}.{field}={getattr(getattr(recipe, owner), field)}"
        for owner, fields in ONLY_A_MIXER.items()
        for field in fields
        if getattr(getattr(recipe, owner), field) != getattr(getattr(plain, owner), field)
    ]
    changed += ["optim.name=muon"] if recipe.optim.name == "muon" else []
    if changed:
        raise ValueError(
            f"{name} is given as the network, and only a Mixer has what these are about: {', '.join(changed)}; leave "
            f"them out"
        )
    return dataclasses.replace(recipe, network=name)


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
