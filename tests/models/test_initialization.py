"""Starts of the weights: the official one of every relative, and others."""

import re

import pytest
import torch
from torch import Tensor

from mlpmixer.models.architecture import build, create_model
from mlpmixer.models.configs import (
    ASMLPConfig,
    EAMLPConfig,
    GMLPConfig,
    NetworkConfig,
    RepMLPNetConfig,
    ResMLPConfig,
    S2MLPConfig,
    S2MLPv2Config,
    ViPConfig,
)
from mlpmixer.models.initialization import RIDGE, set_head_bias, whiten_stem
from mlpmixer.models.mixer import Mixer


def smooth_images(n: int, size: int) -> torch.Tensor:
    """Images whose neighbouring pixels are alike, as in photographs."""
    noise = torch.randn(n, 3, size // 4, size // 4, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(noise, size=size, mode="bilinear")


@torch.no_grad()
def second_moment(model: Mixer, images: torch.Tensor) -> torch.Tensor:
    out = model.stem(model.patches(images)).flatten(0, 1)
    return out.T @ out / len(out)


@pytest.mark.parametrize("dim", [48, 16])
def test_a_whitened_stem_makes_the_patches_uncorrelated_with_mean_square_one(dim: int) -> None:
    model = create_model("Nano/4", hidden_dim=dim)
    images = smooth_images(200, 32) + 0.5 * torch.randn(200, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    before = second_moment(model, images)
    whiten_stem(model, images)
    after = second_moment(model, images)
    off = ~torch.eye(dim, dtype=torch.bool)
    assert (
        after[off].abs().max() < 0.15 < before[off].abs().max()
    )  # the ridge takes a little from the weakest directions
    assert after.diagonal().mean() == pytest.approx(1, abs=0.1)


def test_with_more_channels_than_pixels_the_mean_square_stays_one() -> None:
    model = create_model("Nano/4")  # 128 channels, 48 values in a patch
    images = torch.randn(100, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    whiten_stem(model, images)
    assert second_moment(model, images).diagonal().mean() == pytest.approx(1 / (1 + RIDGE), abs=0.02)


def test_pixels_that_never_change_do_not_explode() -> None:
    model = create_model("Nano/4")
    images = torch.randn(50, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    images[:, :, ::4] = 0  # one row of every patch is black
    whiten_stem(model, images)
    assert model.stem.weight.isfinite().all()
    assert model.stem.weight.abs().max() < 20


@pytest.mark.parametrize("kind", ["black", "one grey", "nearly constant", "one channel", "one image", "one patch"])
def test_images_without_variance_give_a_finite_stem(kind: str) -> None:
    model = create_model("Nano/4", image_size=4 if kind == "one patch" else 32)
    noise = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    images = {
        "black": torch.zeros(8, 3, 32, 32),
        "one grey": torch.full((8, 3, 32, 32), 0.7),
        "nearly constant": 1e-4 * noise,
        "one channel": noise * torch.tensor([1.0, 0.0, 0.0])[:, None, None],
        "one image": noise[:1],
        "one patch": noise[:1, :, :4, :4],  # of 48 values
    }[kind]
    whiten_stem(model, images)
    assert model.stem.weight.isfinite().all()
    assert model.stem.weight.abs().max() < 200


def test_the_rotation_comes_from_the_seed() -> None:
    stems = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        model = create_model("Nano/4")
        whiten_stem(model, smooth_images(20, 32))
        stems.append(model.stem.weight)
    assert torch.equal(stems[0], stems[1]) and not torch.equal(stems[0], stems[2])


def test_the_heads_bias_starts_where_it_is_told() -> None:
    model = create_model("Nano/4")
    set_head_bias(model, -6.9)
    assert torch.equal(model.head.bias, torch.full((10,), -6.9))  # type: ignore[arg-type]
    set_head_bias(create_model("Nano/4", num_classes=0), -6.9)


def is_normal(p: Tensor, std: float) -> bool:
    """Cut nowhere near: a uniform distribution has nothing beyond 1.74 deviations."""
    far = p.abs().max() / std
    return p.numel() < 500 or (abs(p.std() / std - 1) < 0.1 and 2.7 < float(far) < 6)


def is_uniform(p: Tensor, most: float) -> bool:
    wide = p.numel() < 500 or abs(p.std() / (most / 3**0.5) - 1) < 0.1
    return bool(wide and p.any() and p.abs().max() <= most)


def starts_as(rule: str, p: Tensor, weight: Tensor) -> bool:
    """weight: the one that a bias belongs to; (S, m, n) is S matrices."""
    inputs = weight.shape[-1] if weight.ndim < 4 else weight[0].numel()
    if rule == "torch":  # kaiming_uniform_(a=sqrt(5)), and the same bound for biases
        return is_uniform(p, inputs**-0.5)
    if rule == "xavier":
        return is_uniform(p, (6 / (inputs + len(weight))) ** 0.5)
    if rule == "lecun":  # cut at two deviations of the untruncated distribution
        std = inputs**-0.5
        return bool(abs(p.std() / std - 1) < 0.1 and 2 * std < p.abs().max() <= 2.2737 * std)
    kind, number = rule.split()
    return is_normal(p, float(number)) if kind == "normal" else bool((p == float(number)).all())


NORMS = {r"(norm|bn)\d?\.(weight|alpha)$": "all 1", r"(norm|bn)\d?\.(bias|beta)$": "all 0"}
TRUNCATED = {"^(stem|merges)": "torch", "weight$": "normal 0.02", "bias$": "all 0"}
STARTS: list[tuple[NetworkConfig, dict[str, str]]] = [
    (ViPConfig(image_size=32, patch_size=4, hidden_dims=(32, 64), depths=(1, 1), strides=(2,)), TRUNCATED),
    (ASMLPConfig(image_size=32, hidden_dims=(32, 64), depths=(1, 1)), {
        r"^merges\.0\.weight": "all 1", r"^(merges\.0|head)\.bias": "all 0",
        r"^head\.weight": "normal 0.02", "": "torch"}),
    (RepMLPNetConfig(image_size=32, hidden_dims=(32, 64), depths=(1, 1), share_sets=(1, 4)), {"": "torch"}),
    (S2MLPConfig(image_size=32, num_blocks=1, hidden_dim=48, channels_mlp_dim=96), {"^head": "all 0"} | TRUNCATED),
    (S2MLPv2Config(image_size=28, hidden_dims=(32, 64), depths=(1, 1)), TRUNCATED),
    (ResMLPConfig(image_size=96, num_blocks=1, hidden_dim=48, channels_mlp_dim=96), {"gamma": "all 0.1"} | TRUNCATED),
    (GMLPConfig(image_size=96, num_blocks=1, hidden_dim=48, channels_mlp_dim=1200), {
        "^head": "all 0", r"stem\.weight": "lecun", r"stem\.bias": "all 0", r"gate\.proj\.weight": "normal 1e-6",
        r"gate\.proj\.bias": "all 1", "weight$": "xavier", "bias$": "normal 1e-6"}),
    (EAMLPConfig(image_size=32, hidden_dim=64, num_heads=2, channels_mlp_dim=96), TRUNCATED),
]  # fmt: skip


@pytest.mark.parametrize(("cfg", "rules"), STARTS, ids=[cfg.architecture for cfg, _ in STARTS])
def test_every_relative_starts_as_its_authors_start_it(cfg: NetworkConfig, rules: dict[str, str]) -> None:
    torch.manual_seed(0)
    parameters = {name: p.detach() for name, p in build(cfg).named_parameters()}
    for name, p in parameters.items():
        rule = next(rule for pattern, rule in (NORMS | rules).items() if re.search(pattern, name))
        weight = parameters.get(re.sub(r"\w+$", "weight", name), p)
        assert starts_as(rule, p, weight), (name, rule)
