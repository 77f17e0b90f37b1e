"""Every augmentation against Pillow's, numpy's or its paper's definition; `augment` draws, in order, from one seed."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers.training import augmented
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from mlpmixer.data.preprocess import Preprocess
from mlpmixer.training import augment as ops
from mlpmixer.training.augment import normalise, prepare_eval
from mlpmixer.training.recipe import Augment

ALL = Augment(
    inception_crop=0.3, pad_crop_px=2, flip=True, rotate_deg=20, zoom=0.2, zoom_out=0.3,
    shear=0.2, invert=0.5, color_jitter=0.4, noise=0.05, erasing=0.5, mixup=0.4, cutmix=1.0,
)  # fmt: skip


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photos(n: int, height: int, width: int, channels: int = 3, seed: int = 0) -> Tensor:
    """Smooth in places, noisy in others: (N,H,W,C) uint8."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (n, 5, 5, channels)).astype(np.uint8)
    fine = rng.integers(-20, 21, (n, height, width, channels))
    planes = np.moveaxis(coarse, -1, 1).reshape(-1, 5, 5)
    big = np.stack(
        [np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.BICUBIC)) for plane in planes]
    )
    return torch.from_numpy(
        (np.moveaxis(big.reshape(n, channels, height, width), 1, -1) + fine).clip(0, 255).astype(np.uint8)
    )


def one_hot(n: int, classes: int = 4) -> Tensor:
    return torch.eye(classes)[torch.arange(n) % classes]


def planar(images: Tensor) -> Tensor:
    return images.permute(0, 3, 1, 2)


def pil(image: Tensor) -> Image.Image:
    return Image.fromarray(image.numpy())


def levels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image).astype(np.float32)).permute(2, 0, 1)


def worst(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def test_everything_off_draws_and_changes_nothing() -> None:
    images, targets, generator = photos(3, 7, 9), one_hot(3), seeded()
    before = generator.get_state()
    out, out_targets = augmented(images, targets, Augment(), (7, 9), generator)
    assert torch.equal(out, planar(images).float()) and torch.equal(out_targets, targets)
    assert torch.equal(generator.get_state(), before)
    assert out.is_contiguous() and out.dtype == torch.float32
    assert torch.equal(prepare_eval(images), out) and prepare_eval(images).is_contiguous()


def test_float_images_are_copied() -> None:
    images = photos(2, 6, 6, 1).float()
    out, _ = augmented(images, one_hot(2), Augment(), (6, 6), seeded())
    out.zero_()
    assert images.any()


def test_mirror_equals_pillow() -> None:
    images = photos(2, 6, 9)
    zero = torch.zeros(2, dtype=torch.int64)
    out = ops.crop(planar(images), zero, zero, (6, 9), mirror=torch.tensor([True, False]))
    assert torch.equal(out[0].float(), levels(ImageOps.mirror(pil(images[0]))))
    assert torch.equal(out[1], planar(images)[1])


@pytest.mark.parametrize("mode", ["reflect", "constant"])
@pytest.mark.parametrize("pad", [0, 2, 13])
def test_pad_crop_equals_numpy_pad(mode: Any, pad: int) -> None:
    images, (h, w) = photos(5, 7, 6, 2), (5, 6)
    top = torch.randint(7 + 2 * pad - h + 1, (5,), generator=seeded(1))
    left = torch.randint(6 + 2 * pad - w + 1, (5,), generator=seeded(2))
    mirror = torch.tensor([True, False, True, False, True])
    out = ops.crop(planar(images), top, left, (h, w), mirror=mirror, pad_px=pad, pad_mode=mode)
    assert out.dtype == torch.uint8 and out.is_contiguous()
    for i in range(5):
        padded = np.pad(images[i].numpy(), ((pad, pad), (pad, pad), (0, 0)), mode=mode)
        window = padded[top[i] : top[i] + h, left[i] : left[i] + w]
        assert np.array_equal(out[i].permute(1, 2, 0), window[:, ::-1] if mirror[i] else window)


def test_pad_crop_reaches_every_place_and_flip_half() -> None:
    ramp = torch.arange(36, dtype=torch.uint8).view(1, 6, 6, 1).expand(2000, 6, 6, 1)
    out, _ = augmented(ramp, one_hot(2000), Augment(pad_crop_px=2, pad_mode="constant", flip=True), (6, 6), seeded())
    rows = out.flatten(1)
    assert len(torch.unique(rows, dim=0)) == 2 * 5 * 5
    ascending = (out[:, 0, 3].diff(dim=-1).clamp(-1, 1).sum(-1) > 0).float().mean()  # the sign of most steps in a row
    assert 0.4 < ascending < 0.6


def test_larger_images_are_cut_not_resampled() -> None:
    images = photos(64, 9, 8)
    out, _ = augmented(images, one_hot(64), Augment(), (6, 6), seeded())
    places = set()
    for i in range(64):
        hits = [
            (y, x)
            for y in range(4)
            for x in range(3)
            if torch.equal(out[i], planar(images)[i, :, y : y + 6, x : x + 6].float())
        ]
        assert len(hits) == 1
        places.update(hits)
    assert len(places) == 12


def test_smaller_images_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"5x5 px are smaller than the model's 6x6 px.*train_scale.*inception_crop"):
        augmented(photos(2, 5, 5), one_hot(2), Augment(pad_crop_px=4), (6, 6), seeded())
    augmented(photos(2, 5, 5), one_hot(2), Augment(inception_crop=0.5), (6, 6), seeded())
    with pytest.raises(ValueError, match="expected as many images as targets"):
        augmented(photos(2, 5, 5), one_hot(3), Augment(), (5, 5), seeded())


@pytest.mark.parametrize("size", [(32, 32), (11, 17), (64, 48)])
def test_inception_crop_equals_pillow_resize(size: tuple[int, int]) -> None:
    images = photos(4, 40, 36)
    boxes = torch.tensor([[0, 0, 40, 36], [3, 5, 20, 30], [2.5, 1.25, 33.3, 17.1], [35.5, 30, 4.5, 6]])
    out = ops.resized_crop(planar(images), boxes, size)
    assert out.shape == (4, 3, *size) and out.is_contiguous()
    for i, (top, left, h, w) in enumerate(boxes.tolist()):
        theirs = pil(images[i]).resize(size[::-1], Image.Resampling.BILINEAR, box=(left, top, left + w, top + h))
        assert worst(out[i], levels(theirs)) < 1.1  # they round twice


@pytest.mark.parametrize(
    ("stored", "size"), [((64, 64), (32, 32)), ((48, 96), (24, 48)), ((60, 90), (32, 32)), ((3, 5), (7, 7))]
)
def test_inception_boxes_keep_area_and_aspect(stored: tuple[int, int], size: tuple[int, int]) -> None:
    boxes = ops.draw_crop_boxes(2000, stored, size, 0.08, seeded())
    top, left, h, w = boxes.unbind(1)
    assert (boxes >= 0).all() and (top + h <= stored[0] + 1e-4).all() and (left + w <= stored[1] + 1e-4).all()
    share, aspect = h * w / (stored[0] * stored[1]), w / h * size[0] / size[1]
    assert 0.08 - 1e-5 <= share.min() < 0.12 and share.max() <= 1 + 1e-5
    assert 0.75 - 1e-5 <= aspect.min() < 0.78 and 1.30 < aspect.max() <= 4 / 3 + 1e-5
    if stored[0] * size[1] == stored[1] * size[0]:
        assert share.max() > 0.95
        assert abs(float(aspect.log().mean())) < 0.02  # log-uniform: symmetric about 1


def test_inception_box_of_a_long_image_is_centred() -> None:
    boxes = ops.draw_crop_boxes(5, (10, 1000), (32, 32), 0.5, seeded())
    assert torch.allclose(boxes, torch.tensor([[0.0, 500 - 40 / 6, 10, 40 / 3]]).expand(5, 4), atol=1e-3)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_right_angles_equal_rot90(turns: int) -> None:
    images = planar(photos(2, 9, 9)).float()
    matrices = ops.draw_affine(2, 0, 0, 0, seeded()) @ torch.tensor(
        [
            [math.cos(turns * math.pi / 2), -math.sin(turns * math.pi / 2)],
            [math.sin(turns * math.pi / 2), math.cos(turns * math.pi / 2)],
        ]
    )
    theirs = np.rot90(images.numpy(), turns, axes=(2, 3)).copy()
    assert worst(ops.affine(images, matrices), torch.from_numpy(theirs)) < 0.01


def test_affine_equals_pillow_on_a_rectangle() -> None:
    images = photos(6, 21, 30)
    matrices = ops.draw_affine(6, 30, 0.3, 0.2, seeded())
    out = ops.affine(planar(images).float(), matrices, "constant")
    cx, cy = 15, 10.5
    for i, ((a, b), (c, d)) in enumerate(matrices.tolist()):
        whole = (a, b, cx - a * cx - b * cy, c, d, cy - c * cx - d * cy)
        theirs = levels(pil(images[i]).transform((30, 21), Image.Transform.AFFINE, whole, Image.Resampling.BILINEAR))
        y, x = torch.meshgrid(torch.arange(21) + 0.5, torch.arange(30) + 0.5, indexing="ij")
        from_x, from_y = whole[0] * x + whole[1] * y + whole[2], whole[3] * x + whole[4] * y + whole[5]
        core = (
            (from_x > 0.5) & (from_x < 29.5) & (from_y > 0.5) & (from_y < 20.5)
        )  # the two treat the outermost half pixel differently
        assert core.float().mean() > 0.4
        assert worst(out[i][:, core], theirs[:, core]) < 1.1
        outside = (from_x < -1) | (from_x > 31) | (from_y < -1) | (from_y > 22)
        assert (out[i][:, outside] == 0).all()


def test_affine_draws_keep_bounds_and_order() -> None:
    n = 500
    rotation = ops.draw_affine(n, 25, 0, 0, seeded())
    assert torch.allclose(rotation @ rotation.transpose(1, 2), torch.eye(2).expand(n, 2, 2), atol=1e-6)
    degrees = torch.rad2deg(torch.atan2(rotation[:, 1, 0], rotation[:, 0, 0]))
    assert 24 < degrees.max() <= 25.001 and -25.001 <= degrees.min() < -24
    scales = ops.draw_affine(n, 0, 0.3, 0, seeded()).diagonal(dim1=1, dim2=2).log()
    assert 0.29 < scales.abs().max() <= 0.3001 and not torch.allclose(scales[:, 0], scales[:, 1])
    smaller = ops.draw_affine(n, 0, 0, 0, seeded(), zoom_out=0.5).diagonal(dim1=1, dim2=2).log()
    assert torch.equal(smaller[:, 0], smaller[:, 1]) and 0 <= smaller.min() < 0.01 and 0.49 < smaller.max() <= 0.5001
    shear = ops.draw_affine(n, 0, 0, 0.4, seeded())
    assert 0.39 < shear[:, 0, 1].abs().max() <= 0.4 and (shear[:, 1, 0] == 0).all()
    whole = ops.draw_affine(n, 25, 0.3, 0.4, generator := seeded(3))
    parts, again = seeded(3), torch.eye(2).expand(n, 2, 2)
    for amounts in ((25, 0, 0), (0, 0.3, 0), (0, 0, 0.4)):
        again = again @ ops.draw_affine(n, *amounts, parts)
    assert torch.allclose(whole, again, atol=1e-6) and torch.equal(generator.get_state(), parts.get_state())


@pytest.mark.parametrize("factor", [0.0, 0.3, 0.8, 1.0, 1.5, 2.0])
def test_jitter_equals_pillow_enhance(factor: float) -> None:
    images = photos(2, 12, 10)
    one = torch.ones(2)
    for place, theirs in enumerate((ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)):
        factors = [one, one, one]
        factors[place] = one * factor
        out = ops.jitter(planar(images).float(), *factors)
        for i in range(2):
            rounding = 1 + 0.5 * abs(
                1 - factor
            )  # theirs truncates, and rounds the grey level that the factor then scales
            assert worst(out[i], levels(theirs(pil(images[i])).enhance(factor))) < rounding + 0.01


def test_jitter_order_is_brightness_contrast_saturation() -> None:
    images = photos(1, 12, 10)
    b, c, s = 1.4, 0.7, 1.3
    theirs = pil(images[0])
    for op, factor in ((ImageEnhance.Brightness, b), (ImageEnhance.Contrast, c), (ImageEnhance.Color, s)):
        theirs = op(theirs).enhance(factor)
    out = ops.jitter(planar(images).float(), *(torch.tensor([f]) for f in (b, c, s)))
    assert worst(out[0], levels(theirs)) < 4


def test_saturation_needs_three_channels() -> None:
    for channels in (1, 5):
        images, one = planar(photos(2, 6, 6, channels)).float(), torch.ones(2)
        assert worst(ops.jitter(images, one, one, one * 0.2), images) < 1e-4


def test_zoom_out_shows_the_whole_image_smaller() -> None:
    white = torch.full((64, 32, 32, 1), 255, dtype=torch.uint8)
    out, _ = augmented(white, one_hot(64), Augment(zoom_out=0.5, pad_mode="constant"), (32, 32), seeded())
    share = (out > 127).float().mean((1, 2, 3))
    assert math.exp(-1) - 0.05 < share.min() < 0.45 and share.max() > 0.9
    assert (out[:, :, 16, 16] > 254.9).all()


def test_invert_makes_negatives_of_its_share() -> None:
    images = photos(400, 6, 6)
    out, _ = augmented(images, one_hot(400), Augment(invert=0.25), (6, 6), seeded())
    before = planar(images).float()
    same, negative = ((out == x).all(3).all(2).all(1) for x in (before, 255 - before))
    assert (same ^ negative).all() and 0.2 < negative.float().mean() < 0.3
    assert torch.equal(ops.negative(before, torch.zeros(400, dtype=torch.bool)), before)


def test_noise_has_its_deviation() -> None:
    grey = torch.full((8, 32, 32, 3), 128, dtype=torch.uint8)
    out, _ = augmented(grey, one_hot(8), Augment(noise=0.1), (32, 32), seeded())
    assert abs(float(out.std()) / 25.5 - 1) < 0.03 and abs(float(out.mean()) - 128) < 0.6
    white = augmented(grey * 0 + 255, one_hot(8), Augment(noise=0.1), (32, 32), seeded())[0]
    assert white.max() == 255


@pytest.mark.parametrize("size", [(32, 32), (8, 8), (28, 60), (5, 3), (1, 1)])
def test_erasing_takes_one_rectangle(size: tuple[int, int]) -> None:
    h, w = size
    boxes = ops.draw_erasing_boxes(2000, size, seeded())
    top, left, tall, wide = boxes.unbind(1)
    share = tall * wide / (h * w)
    assert (boxes >= 0).all() and (top + tall <= h).all() and (left + wide <= w).all()
    erased = share > 0
    assert bool(erased.all()) == (size != (1, 1)) and (share[erased] >= 0.02).all() and (share[erased] <= 0.33).all()
    if size == (32, 32):
        assert share.min() < 0.03 and share.max() > 0.32
        aspect = (tall / wide).log()
        assert aspect.min() < -0.8 and aspect.max() > 0.8 and abs(float(aspect.mean())) < 0.05
        assert top.min() == 0 and (top + tall).max() == h
    images = torch.zeros(2000, 2, h, w)
    out = ops.erase(images, boxes, torch.full_like(images, 7))
    assert torch.equal((out[:, 0] == 7).sum((1, 2)), tall * wide)
    assert (out[:, :, 0, 0][(top == 0) & (left == 0) & erased] == 7).all()


def test_erasing_touches_its_share_of_images() -> None:
    images = torch.zeros(1000, 16, 16, 3, dtype=torch.uint8)
    out, _ = augmented(images, one_hot(1000), Augment(erasing=0.25), (16, 16), seeded())
    touched = out.flatten(1).any(1)
    assert 0.2 < touched.float().mean() < 0.3
    assert out.max() == 255 and abs(float(out[out > 0].mean()) - 128) < 5  # random values, as in the paper


def test_mixup_equals_the_paper() -> None:
    images, targets = planar(photos(4, 5, 6)).float(), one_hot(4)
    share, partner = torch.tensor([1.0, 0.0, 0.25, 0.9]), torch.tensor([1, 2, 3, 0])
    out, mixed = ops.mixup(images, targets, share, partner)
    for i, (a, j) in enumerate(zip(share.tolist(), partner.tolist(), strict=True)):
        assert worst(out[i], a * images[i] + (1 - a) * images[j]) < 1e-3
        assert worst(mixed[i], a * targets[i] + (1 - a) * targets[j]) < 1e-6


def test_cutmix_targets_count_pixels_exactly() -> None:
    n, h, w = 300, 11, 7
    images = (
        torch.arange(n).float()[:, None, None, None].expand(n, 1, h, w)
    )  # a pixel's value is the image it comes from
    share = torch.rand(n, generator=seeded())
    partner = torch.arange(n).roll(1)
    boxes = ops.draw_cutmix_boxes(share, (h, w), seeded(1))
    out, mixed = ops.cutmix(images, torch.eye(n), boxes, partner)
    own = (out[:, 0] == images[:, 0]).sum((1, 2)) / (h * w)
    assert torch.equal(mixed.diagonal(), own)
    assert torch.allclose(mixed.sum(1), torch.ones(n))
    top, left, tall, wide = boxes.unbind(1)
    clipped = (top < 0) | (left < 0) | (top + tall > h) | (left + wide > w)
    assert clipped.any() and (~clipped).any()
    area = (tall * wide / (h * w))[~clipped]
    assert torch.allclose(1 - own[~clipped], area)
    assert worst(area, 1 - share[~clipped]) < 0.5 / h + 0.5 / w + 0.25 / (h * w)  # whole pixels


def test_mixup_and_cutmix_take_turns() -> None:
    images = torch.tensor([0, 255], dtype=torch.uint8)[:, None, None, None].expand(2, 8, 8, 1)
    seen = {"nothing": 0, "mixup": 0, "cutmix": 0}
    for seed in range(400):
        out, targets = augmented(
            images, torch.eye(2), Augment(mixup=1, cutmix=1, mix_probability=0.6), (8, 8), seeded(seed)
        )
        if torch.equal(targets, torch.eye(2)):
            seen["nothing"] += 1
        else:
            seen["mixup" if ((out > 0) & (out < 255)).any() else "cutmix"] += 1
    assert abs(seen["nothing"] / 400 - 0.4) < 0.08
    assert abs(seen["mixup"] - seen["cutmix"]) < 50


@pytest.mark.parametrize("a", [1e-4, 0.2, 1.0, 50.0])
def test_mixing_proportions_are_beta_distributed(a: float) -> None:
    share = ops._beta(4000, a, seeded())
    assert share.isfinite().all() and share.min() >= 0 and share.max() <= 1
    assert abs(float(share.mean()) - 0.5) < 0.04
    assert abs(float(share.var()) - 1 / (4 * (2 * a + 1))) < 0.01


HOW = (
    "pad_mode",
    "randaugment_magnitude",
    "randaugment_form",
    "mix_probability",
)  # of another field, which turns it on


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Augment) if f.name not in HOW])
def test_each_field_alone_changes_the_batch(field: str) -> None:
    values = {"flip": True, "trivialaugment": True, "pad_crop_px": 2, "randaugment_layers": 2, "rotate_deg": 20.0}
    value = values.get(field, 0.5)
    images, targets = photos(8, 12, 12), one_hot(8)
    out, out_targets = augmented(images, targets, Augment(**{field: value}), (12, 12), seeded())
    assert not torch.equal(out, prepare_eval(images)) and out.is_contiguous()
    assert torch.equal(out_targets, targets) == (field not in ("mixup", "cutmix"))


def test_batch_is_a_function_of_the_seed() -> None:
    images, targets = photos(6, 14, 14), one_hot(6)
    runs = []
    for seed in (5, 5, 6):
        torch.manual_seed(len(runs))  # the global generator plays no part
        np.random.seed(len(runs))
        runs.append(augmented(images, targets, ALL, (12, 12), seeded(seed)))
    assert torch.equal(runs[0][0], runs[1][0]) and torch.equal(runs[0][1], runs[1][1])
    assert not torch.equal(runs[0][0], runs[2][0])


def test_input_is_not_modified() -> None:
    images, targets = photos(4, 12, 12), one_hot(4)
    kept = images.clone(), targets.clone()
    augmented(images, targets, ALL, (12, 12), seeded())
    assert torch.equal(images, kept[0]) and torch.equal(targets, kept[1])


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 5),
    stored=st.tuples(st.integers(1, 23), st.integers(1, 23)),
    size=st.tuples(st.integers(1, 19), st.integers(1, 19)),
    channels=st.sampled_from([1, 2, 3, 5]),
    off=st.sets(st.sampled_from([f.name for f in dataclasses.fields(Augment)])),
    pad_mode=st.sampled_from(["reflect", "constant"]),
    seed=st.integers(0, 2**31),
)
def test_any_size_gives_valid_pixels_and_targets(
    n: int, stored: tuple[int, int], size: tuple[int, int], channels: int, off: set[str], pad_mode: Any, seed: int
) -> None:
    defaults = Augment()
    cfg = dataclasses.replace(ALL, **{name: getattr(defaults, name) for name in off} | {"pad_mode": pad_mode})
    if not cfg.inception_crop:
        stored = (max(stored[0], size[0]), max(stored[1], size[1]))
    images = torch.randint(256, (n, *stored, channels), dtype=torch.uint8, generator=seeded(seed))
    out, targets = augmented(images, one_hot(n), cfg, size, seeded(seed))
    assert out.shape == (n, channels, *size) and out.is_contiguous() and out.dtype == torch.float32
    assert out.isfinite().all() and out.min() >= -1e-3 and out.max() <= 255.001
    assert torch.allclose(targets.sum(1), torch.ones(n), atol=1e-6) and (targets >= 0).all()


def test_normalise_is_per_channel() -> None:
    images = planar(photos(2, 4, 5, 5)).float()
    mean, std = (0.1, 0.2, 0.3, 0.4, 0.5), (0.5, 0.4, 0.3, 0.2, 0.1)
    out = normalise(images, Preprocess(image_size=(5, 5), in_channels=5, mean=mean, std=std))
    for k in range(5):
        assert worst(out[:, k], (images[:, k] / 255 - mean[k]) / std[k]) < 1e-5
    grey = Preprocess(image_size=(5, 5), in_channels=1, std=(0.25,))
    assert worst(normalise(images, grey), (images / 255 - 0.5) / 0.25) < 1e-5
    with pytest.raises(ValueError, match="the preprocessing is for 3 channels, but the images have 5"):
        normalise(images, Preprocess(image_size=(5, 5)))


def test_evaluation_equals_the_preprocessing() -> None:
    images = photos(3, 8, 8)
    preprocess = Preprocess(image_size=(8, 8), mean=(0.49, 0.48, 0.45), std=(0.25, 0.24, 0.26))
    stored = torch.from_numpy(preprocess.normalise(images.numpy()))
    assert torch.equal(normalise(prepare_eval(images), preprocess), stored)


@pytest.mark.gpu
def test_cuda_gives_the_same_batch() -> None:
    images, targets = photos(8, 40, 40), one_hot(8)
    here = augmented(images, targets, ALL, (32, 32), seeded())
    there = augmented(images.cuda(), targets.cuda(), ALL, (32, 32), seeded())
    assert there[0].is_cuda and worst(here[0], there[0].cpu()) < 0.1 and worst(here[1], there[1].cpu()) < 1e-6
