"""Tiny networks, classifiers and runs, made in milliseconds."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mlpmixer.data.config import Data
from mlpmixer.data.preprocess import Preprocess
from mlpmixer.inference.classifier import Classifier
from mlpmixer.inference.torch_classifier import from_network
from mlpmixer.models.configs import MixerConfig
from mlpmixer.models.mixer import Mixer
from mlpmixer.training.recipe import Recipe
from mlpmixer.weights.model_file import ModelMeta, save_model
from mlpmixer.weights.run_folder import MODEL_FILE, write_recipe

DIGITS = tuple("0123456789")
SMALL = {"num_blocks": 2, "hidden_dim": 16, "tokens_mlp_dim": 8, "channels_mlp_dim": 32, "num_classes": 10}
GREY = MixerConfig(image_size=8, patch_size=2, in_channels=1, **SMALL)
PARTS = MixerConfig(image_size=(8, 16), patch_size=(2, 4), parts=(2, 1), activation="gelu_erf", **SMALL)
OBLONG = MixerConfig(
    image_size=(8, 12),
    patch_size=(4, 2),
    num_classes=5,
    num_blocks=2,
    hidden_dim=10,
    tokens_mlp_dim=7,
    channels_mlp_dim=12,
)
OBLONG_PARTS = dataclasses.replace(OBLONG, parts=(1, 3), in_channels=1, activation="gelu_erf")


class Flat(nn.Module):
    """A network that is not a Mixer and has no features."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(images.flatten(1))  # type: ignore[no-any-return]


def mixer(cfg: MixerConfig = GREY) -> Mixer:
    """A Mixer as it is initialised, but with a random head, so that its answers differ."""
    torch.manual_seed(0)
    model = Mixer(cfg)
    if cfg.num_classes:
        nn.init.normal_(model.head.weight)  # type: ignore[arg-type]
    return model


def random_mixer(cfg: MixerConfig = OBLONG, seed: int = 0) -> Mixer:
    """A Mixer in which every parameter is random, biases and head, too."""
    torch.manual_seed(seed)
    model = Mixer(cfg)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.3 * torch.randn_like(p)
    return model.eval()


def random_images(cfg: MixerConfig = OBLONG, n: int = 3, seed: int = 1) -> torch.Tensor:
    """Images as a network takes them: standardised, (n, C, H, W)."""
    height, width = cfg.image_size if isinstance(cfg.image_size, tuple) else (cfg.image_size, cfg.image_size)
    return torch.randn(n, cfg.in_channels, height, width, generator=torch.Generator().manual_seed(seed))


def classifier_of(
    cfg: MixerConfig = GREY,
    network: nn.Module | None = None,
    *,
    classes: tuple[str, ...] = DIGITS,
    loss: str = "softmax",
    **preprocess: Any,
) -> Classifier:
    """A classifier of the digits; `mixer(cfg)` unless a network is given."""
    size = cfg.image_size if isinstance(cfg.image_size, tuple) else (cfg.image_size, cfg.image_size)
    meta = ModelMeta(
        config=cfg,
        classes=classes,
        preprocess=Preprocess(image_size=size, in_channels=cfg.in_channels, **preprocess),
        network="" if network is None or isinstance(network, Mixer) else type(network).__name__,
        provenance={"loss": loss, "data": "digits", "licence": "mit"},
    )
    return from_network(network or mixer(cfg), meta)  # type: ignore[arg-type]


def digits_classifier() -> Classifier:
    """A classifier of one block in which every parameter is random."""
    cfg = dataclasses.replace(GREY, num_blocks=1, hidden_dim=8, channels_mlp_dim=8)
    return classifier_of(cfg, random_mixer(cfg))


def pixels_for(classifier: Classifier, n: int) -> np.ndarray:
    """Random images as a classifier takes them: after resizing, (n, H, W, C)."""
    pre = classifier.preprocess
    return np.random.default_rng(n).integers(0, 256, (n, *pre.image_size, pre.in_channels)).astype(pre.dtype)


def save_run(model: Classifier, folder: Path, data: Data | None = None) -> Path:
    """A run of digits that has ended with this model."""
    assert model.meta is not None and model.network is not None
    folder.mkdir()
    save_model(folder / MODEL_FILE, model.network, model.meta)
    write_recipe(folder, Recipe(name="digits", model=model.meta.config, data=data or Data(name="digits")))
    return folder
