"""A trained Mixer comes to another head, size, patch and number of channels with what it has learnt."""

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import Tensor, nn

from mlpmixer.config import pair
from mlpmixer.data.preprocess import Preprocess
from mlpmixer.models.architecture import count_params
from mlpmixer.models.configs import MixerConfig
from mlpmixer.models.mixer import Mixer
from mlpmixer.models.mixer_resize import to_dense
from mlpmixer.weights.adapt import adapt, adapt_trained
from mlpmixer.weights.model_file import ModelMeta, load_model, save_model

SMALL = MixerConfig(
    image_size=(12, 8),
    patch_size=(4, 2),
    num_classes=5,
    num_blocks=2,
    hidden_dim=12,
    tokens_mlp_dim=6,
    channels_mlp_dim=20,
)  # a grid of 3 x 4 patches


def random(cfg: MixerConfig = SMALL) -> Mixer:
    """A model in float64 in which no weight is zero, so that nothing hides."""
    model = Mixer(cfg).double().eval()
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    return model


def images(cfg: MixerConfig, n: int = 2) -> Tensor:
    return torch.randn(n, cfg.in_channels, *pair(cfg.image_size), dtype=torch.float64)


def crops(x: Tensor, down: int, across: int) -> list[Tensor]:
    return [crop for band in x.chunk(down, 2) for crop in band.chunk(across, 3)]


def resize(x: Tensor, size: tuple[int, int], mode: str = "bilinear") -> Tensor:
    return x if x.shape[2:] == size else F.interpolate(x, size, mode=mode, antialias=True, align_corners=False)


def same_weights(a: Mixer, b: Mixer) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


# --- the head


def test_another_number_of_classes_is_a_fresh_zero_head_on_the_same_features() -> None:
    model = random()
    new, x = adapt(model, num_classes=7), images(SMALL)
    assert new.cfg == dataclasses.replace(SMALL, num_classes=7)
    assert new(x).shape == (2, 7) and not new(x).any()
    assert torch.equal(new.pre_logits(x), model.pre_logits(x))


def test_no_classes_is_no_head_and_a_head_can_come_back() -> None:
    model, x = random(), images(SMALL)
    bare = adapt(model, num_classes=0)
    assert torch.equal(bare(x), model.pre_logits(x))
    assert not adapt(bare, num_classes=3)(x).any()


def test_the_same_number_of_classes_keeps_the_head() -> None:
    model = random()
    assert same_weights(adapt(model, num_classes=5), model)


def test_the_given_model_is_untouched_and_shares_nothing_with_the_new_one() -> None:
    model = random().train().float()
    before = copy.deepcopy(model.state_dict())
    rng = torch.get_rng_state()
    new = adapt(model, num_classes=2, image_size=(16, 12), patch_size=(2, 3), in_channels=4)
    assert torch.equal(torch.get_rng_state(), rng)
    assert new.training and all(p.dtype == torch.float32 and p.requires_grad for p in new.parameters())
    with torch.no_grad():
        for p in [*new.parameters(), *adapt(model).parameters()]:
            p.zero_()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


# --- integer factors: the paper's scheme


@settings(max_examples=15, deadline=None)
@given(
    rows=st.integers(1, 3), cols=st.integers(1, 3), down=st.integers(1, 3), across=st.integers(1, 3),
    method=st.sampled_from(["blocks", "parts"]),
)  # fmt: skip
def test_the_logits_of_a_big_image_are_the_mean_of_those_of_its_crops(
    rows: int, cols: int, down: int, across: int, method: str
) -> None:
    cfg = dataclasses.replace(SMALL, image_size=(4 * rows, 2 * cols))
    model = random(cfg)
    big = adapt(model, image_size=(4 * rows * down, 2 * cols * across), method=method)  # type: ignore[arg-type]
    x = images(big.cfg)
    wanted = torch.stack([model(crop) for crop in crops(x, down, across)]).mean(0)
    torch.testing.assert_close(big(x), wanted, atol=1e-12, rtol=0)


def test_blocks_widen_token_mixing_and_parts_store_it_once() -> None:
    model = random()
    dense, frugal = (adapt(model, image_size=(24, 16), method=m) for m in ("blocks", "parts"))  # type: ignore[arg-type]
    assert dense.cfg == dataclasses.replace(SMALL, image_size=(24, 16), tokens_mlp_dim=4 * SMALL.tokens_mlp_dim)
    assert frugal.cfg == dataclasses.replace(SMALL, image_size=(24, 16), parts=2)
    assert count_params(frugal) == count_params(model) == frugal.cfg.num_params
    assert count_params(dense) == dense.cfg.num_params


def test_parts_and_their_dense_form_agree_at_every_stage() -> None:
    frugal = adapt(random(), image_size=(24, 24), method="parts")
    x = images(frugal.cfg)
    for name, wanted in frugal.intermediates(x).items():
        torch.testing.assert_close(to_dense(frugal).intermediates(x)[name], wanted, atol=1e-12, rtol=0)


def test_parts_of_parts_are_parts() -> None:
    twice = adapt(adapt(random(), image_size=(24, 8), method="parts"), image_size=(48, 24), method="parts")
    assert twice.cfg.parts == (4, 3)
    x = images(twice.cfg)
    torch.testing.assert_close(to_dense(twice)(x), twice(x), atol=1e-12, rtol=0)


def test_a_model_with_parts_is_resampled_part_by_part() -> None:
    frugal = adapt(random(), image_size=(24, 16), method="parts")
    assert adapt(frugal, image_size=(32, 24)).cfg.part_grid == (4, 6)
    with pytest.raises(ValueError, match="grid of 7x8 patches cannot be cut into 2x2"):
        adapt(frugal, image_size=(28, 16))


def test_a_model_with_parts_is_saved_loaded_and_trained(tmp_path: Path) -> None:
    frugal = adapt(random().float(), image_size=(24, 16), method="parts")
    save_model(
        tmp_path / "m",
        frugal,
        ModelMeta(config=frugal.cfg, classes=tuple("abcde"), preprocess=Preprocess(image_size=(24, 16))),
    )
    loaded, _ = load_model(tmp_path / "m")
    x = images(frugal.cfg).float()
    assert torch.equal(loaded(x), frugal(x))
    loaded(x).sum().backward()
    grads = [p.grad for name, p in loaded.named_parameters() if "token_mixing.fc1" in name]
    assert all(g is not None and g.any() for g in grads)


# --- any other grid: resampled weights


def repeated(x: Tensor, cfg: MixerConfig, down: int, across: int) -> Tensor:
    """Every patch of the images repeated down x across times beside itself."""
    (rows, cols), (p, q) = cfg.grid, pair(cfg.patch_size)
    tiles = x.view(len(x), -1, rows, p, cols, q).repeat_interleave(down, 2).repeat_interleave(across, 4)
    return tiles.reshape(len(x), -1, rows * down * p, cols * across * q)


@settings(max_examples=10, deadline=None)
@given(down=st.integers(1, 3), across=st.integers(1, 3))
def test_nearest_weights_on_repeated_patches_give_the_old_logits(down: int, across: int) -> None:
    model, x = random(), images(SMALL)
    new = adapt(model, image_size=(12 * down, 8 * across), method="nearest")
    torch.testing.assert_close(new(repeated(x, SMALL, down, across)), model(x), atol=1e-12, rtol=0)


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(3, 9), cols=st.integers(4, 9), method=st.sampled_from(["bilinear", "bicubic", "nearest"]))
def test_the_hidden_layer_sees_resized_tokens_as_it_saw_the_old_ones(rows: int, cols: int, method: str) -> None:
    model = random()
    new = adapt(model, image_size=(4 * rows, 2 * cols), method=method)  # type: ignore[arg-type]
    tokens = torch.randn(5, 12, dtype=torch.float64)  # (channels, S)
    grid = tokens.view(1, 5, 3, 4)
    if method == "nearest":
        bigger = F.interpolate(grid, (rows, cols), mode="nearest-exact")
    else:
        bigger = F.interpolate(grid, (rows, cols), mode=method, antialias=True, align_corners=False)
    for old_block, block in zip(model.blocks, new.blocks, strict=True):
        torch.testing.assert_close(
            block.token_mixing.fc1(bigger.view(5, -1)), old_block.token_mixing.fc1(tokens), atol=1e-10, rtol=0
        )  # type: ignore[union-attr, operator]


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(3, 9), cols=st.integers(4, 9), method=st.sampled_from(["bilinear", "bicubic"]))
def test_equal_tokens_are_mixed_as_before(rows: int, cols: int, method: str) -> None:
    """The number of tokens must not make the sum over them larger."""
    model = random()
    new = adapt(model, image_size=(4 * rows, 2 * cols), method=method)  # type: ignore[arg-type]
    for old_block, block in zip(model.blocks, new.blocks, strict=True):
        wanted = old_block.token_mixing.fc1.weight.sum(1)  # type: ignore[union-attr, operator]
        torch.testing.assert_close(block.token_mixing.fc1.weight.sum(1), wanted, atol=1e-10, rtol=0)  # type: ignore[union-attr, operator]


@settings(max_examples=15, deadline=None)
@given(rows=st.integers(1, 9), cols=st.integers(1, 9), method=st.sampled_from(["bilinear", "bicubic", "nearest"]))
def test_every_grid_can_be_made(rows: int, cols: int, method: str) -> None:
    new = adapt(random(), image_size=(4 * rows, 2 * cols), method=method)  # type: ignore[arg-type]
    assert new.cfg == dataclasses.replace(SMALL, image_size=(4 * rows, 2 * cols))
    assert new(images(new.cfg)).isfinite().all()


# --- on trained networks


@dataclasses.dataclass
class Trained:
    model: Mixer
    labels: Tensor
    pictures: Tensor

    def at(self, *size: int) -> Tensor:
        return resize(self.pictures, size)  # type: ignore[arg-type]

    def top1(self, model: Mixer, size: tuple[int, int]) -> float:
        with torch.no_grad():
            return (model(self.at(*size)).argmax(1) == self.labels).double().mean().item()

    def variances(self, model: Mixer, size: tuple[int, int]) -> Tensor:
        """Over the channels, which is what a LayerNorm sees, for every block."""
        with torch.no_grad():
            stages = model.intermediates(self.at(*size))
        return torch.stack([x.var(-1).mean() for name, x in stages.items() if name.startswith("block")])


@pytest.fixture(scope="module")
def trained() -> Trained:
    """A small Mixer after a few seconds on scikit-learn's digits, drawn at 16 px; `pictures` and `labels` were not
    trained on. In float64, so that it is the same network on every machine."""
    digits = load_digits()
    pictures = F.interpolate(
        torch.tensor(digits.images)[:, None] / 8 - 1, (64, 64), mode="bilinear", align_corners=False
    )
    labels, order = (
        torch.tensor(digits.target),
        torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0)),
    )
    cfg = MixerConfig(
        image_size=16, patch_size=2, in_channels=1, num_classes=10, num_blocks=2, hidden_dim=24, tokens_mlp_dim=24,
        channels_mlp_dim=48,
        activation="gelu_erf",
    )  # fmt: skip
    torch.manual_seed(0)
    model, small, steps = Mixer(cfg).double(), resize(pictures, (16, 16)), 150
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.05)
    for step in range(steps):
        batch = order[torch.randint(1400, (64,))]
        F.cross_entropy(model(small[batch]), labels[batch]).backward()
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / steps)
        optimizer.step()
        optimizer.zero_grad()
    return Trained(model.eval(), labels[order[1400:]], pictures[order[1400:]])


BIGGER = [(18, 18), (20, 20), (20, 16), (24, 24), (24, 32), (32, 32)]
SMALLER = [(14, 14), (12, 12), (12, 16)]


def test_resampled_weights_beat_nearest_ones_right_after_the_resize(trained: Trained) -> None:
    gains = []
    for size in BIGGER + SMALLER:
        bicubic, nearest = (
            trained.top1(adapt(trained.model, image_size=size, method=m), size) for m in ("bicubic", "nearest")
        )  # type: ignore[arg-type]
        gains.append(bicubic - nearest)
    assert min(gains) > -0.01 and sum(gains) / len(gains) > 0.04


@pytest.mark.parametrize("size", BIGGER)
def test_on_a_finer_grid_of_magnified_pictures_every_block_stays_as_strong_as_it_was(
    trained: Trained, size: tuple[int, int]
) -> None:
    ratios = trained.variances(adapt(trained.model, image_size=size, magnified=True), size) / trained.variances(
        trained.model, (16, 16)
    )
    assert ratios.min() > 0.9 and ratios.max() < 1.1


# --- patches and channels


def patchwise(x: Tensor, cfg: MixerConfig, patch: tuple[int, int]) -> Tensor:
    """The images with every patch resized by itself."""
    (rows, cols), (p, q) = cfg.grid, pair(cfg.patch_size)
    tiles = x.view(len(x), -1, rows, p, cols, q).permute(0, 2, 4, 1, 3, 5).reshape(-1, cfg.in_channels, p, q)
    tiles = resize(tiles, patch, "bicubic").view(len(x), rows, cols, -1, *patch)
    return tiles.permute(0, 3, 1, 4, 2, 5).reshape(len(x), -1, rows * patch[0], cols * patch[1])


@settings(max_examples=20, deadline=None)
@given(p=st.integers(4, 11), q=st.integers(2, 7))
def test_magnified_patches_give_the_same_logits(p: int, q: int) -> None:
    model, x = random(), images(SMALL)
    new = adapt(model, patch_size=(p, q), magnified=True)
    assert new.cfg.grid == SMALL.grid and pair(new.cfg.image_size) == (3 * p, 4 * q)
    torch.testing.assert_close(new(patchwise(x, SMALL, (p, q))), model(x), atol=1e-10, rtol=0)


@settings(max_examples=20, deadline=None)
@given(p=st.integers(4, 11), q=st.integers(2, 7))
def test_bigger_patches_are_read_as_if_they_were_resized_to_the_old_size(p: int, q: int) -> None:
    model = random()
    new = adapt(model, patch_size=(p, q))
    x = images(new.cfg)  # with detail in every pixel
    torch.testing.assert_close(new(x), model(patchwise(x, new.cfg, (4, 2))), atol=1e-10, rtol=0)


def test_smaller_patches_are_read_as_the_least_picture_that_would_shrink_to_them() -> None:
    model = random()
    new = adapt(model, patch_size=(3, 2))
    x = images(new.cfg)
    basis = torch.eye(4 * 2, dtype=torch.float64).view(8, 1, 4, 2)
    shrink = resize(basis, (3, 2), "bicubic").flatten(1)  # (8, 6): one patch of pixels to a smaller one
    patches = new.patches(x).view(len(x), new.cfg.num_patches, 3, 6) @ torch.linalg.pinv(shrink)
    torch.testing.assert_close(new.stem(new.patches(x)), model.stem(patches.flatten(2)), atol=1e-10, rtol=0)


def test_patch_and_image_can_change_together() -> None:
    cfg = dataclasses.replace(SMALL, image_size=24, patch_size=4)
    new = adapt(random(cfg), patch_size=6, image_size=(24, 36))
    assert new.cfg == dataclasses.replace(cfg, patch_size=6, image_size=(24, 36))
    assert adapt(random(cfg), patch_size=2).cfg == dataclasses.replace(cfg, patch_size=2, image_size=12)


def test_grey_images_give_what_the_same_grey_in_three_channels_gave() -> None:
    model, grey = random(), images(dataclasses.replace(SMALL, in_channels=1))
    new = adapt(model, in_channels=1)
    torch.testing.assert_close(new(grey), model(grey.expand(-1, 3, -1, -1)), atol=1e-12, rtol=0)


@settings(max_examples=20, deadline=None)
@given(before=st.integers(1, 6), after=st.integers(1, 13))
def test_equal_channels_give_the_same_logits_however_many_they_are(before: int, after: int) -> None:
    model, grey = (
        random(dataclasses.replace(SMALL, in_channels=before)),
        images(dataclasses.replace(SMALL, in_channels=1)),
    )
    new = adapt(model, in_channels=after)
    torch.testing.assert_close(
        new(grey.expand(-1, after, -1, -1)), model(grey.expand(-1, before, -1, -1)), atol=1e-12, rtol=0
    )


def test_more_channels_start_as_copies_of_the_first_ones() -> None:
    model = random()
    weight = adapt(model, in_channels=5).stem.weight.view(12, 5, -1)
    old = model.stem.weight.view(12, 3, -1)
    assert torch.equal(weight[:, 0], weight[:, 3]) and torch.equal(weight[:, 1], weight[:, 4])
    torch.testing.assert_close(weight[:, 2], old[:, 2], atol=0, rtol=0)
    torch.testing.assert_close(weight[:, 0], old[:, 0] / 2, atol=1e-15, rtol=0)


# --- what does not fit together


def test_wrong_wishes_are_answered() -> None:
    model = random()
    with pytest.raises(ValueError, match="did you mean bilinear"):
        adapt(model, image_size=(16, 8), method="bilinar")  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"whole number of times 3x4 patches, got 4x4; for any other grid use method='bicubic'"
    ):
        adapt(model, image_size=(16, 8), method="blocks")
    with pytest.raises(ValueError, match="not a multiple of patch_size 4x2 px; nearest that is: 16x16"):
        adapt(model, image_size=(15, 16))
    with pytest.raises(ValueError, match="num_classes must be 0"):
        adapt(model, num_classes=-1)
    with pytest.raises(ValueError, match="in_channels must be at least 1"):
        adapt(model, in_channels=0)


# --- what belongs to the model


@pytest.mark.parametrize(("old", "new"), [(3, 1), (1, 3), (4, 3), (3, 5)])
def test_a_grey_image_is_the_same_to_any_number_of_channels_however_each_was_normalised(old: int, new: int) -> None:
    cfg = dataclasses.replace(SMALL, in_channels=old)
    mean, std = (0.2, 0.5, 0.7, 0.4)[:old], (0.1, 0.3, 0.2, 0.6)[:old]
    model = random(cfg)
    meta = ModelMeta(
        config=cfg,
        classes=tuple("abcde"),
        preprocess=Preprocess(image_size=(12, 8), in_channels=old, mean=mean, std=std),
    )
    adapted, after = adapt_trained(model, meta, in_channels=new)
    assert after.preprocess.in_channels == after.config.in_channels == new and after.classes == meta.classes
    grey = np.random.default_rng(0).integers(0, 255, (4, 12, 8, 1), dtype=np.uint8)
    before, now = (
        net(torch.from_numpy(m.preprocess.normalise(grey.repeat(m.config.in_channels, 3))).double())
        for net, m in ((model, meta), (adapted, after))
    )
    torch.testing.assert_close(now, before, rtol=0, atol=1e-4)  # normalise is float32
    assert meta.preprocess.mean == mean, "the model that came stays as it is"


def test_the_preprocessing_follows_the_image_which_follows_the_patch() -> None:
    meta = ModelMeta(
        config=SMALL, classes=tuple("abcde"), preprocess=Preprocess(image_size=(12, 8), fit="pad", mean=(0.1, 0.2, 0.3))
    )
    model, after = adapt_trained(random(), meta, patch_size=(8, 6))
    assert model.cfg == after.config and after.config.grid == SMALL.grid and after.config.image_size == 24
    assert after.preprocess == dataclasses.replace(meta.preprocess, image_size=(24, 24))
    with pytest.raises(ValueError, match="in_channels must be at least 1, got 0"):
        adapt_trained(random(), meta, in_channels=0)


@pytest.mark.parametrize("method", ["bicubic", "blocks", "parts"])
def test_the_architecture_is_told_without_the_weights(method: str) -> None:
    sizes = {"image_size": (24, 24), "in_channels": 1, "num_classes": 2}
    assert adapt(random(), **sizes, method=method).cfg == SMALL.adapted(**sizes, method=method)  # type: ignore[arg-type]
