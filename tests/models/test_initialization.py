"""Starts of the weights other than the official one."""

import pytest
import torch

from mlpmixer.models.architecture import create_model
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
