"""RandAugment's operations against Pillow's and their sources' rules; draws that belong to an image, not to its
batch."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers.training import augmented
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from mlpmixer.training import randaugment as ops
from mlpmixer.training.augment import prepare_eval
from mlpmixer.training.randaugment import Op, big_vision_ops, one_of, randaugment, torchvision_ops, trivialaugment
from mlpmixer.training.recipe import Augment

CLEAN = torchvision_ops(shear=0.3, down_px=10, right_px=10, rotate_deg=30, enhance=0.9, bits=4)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photos(n: int, height: int, width: int, channels: int = 3, seed: int = 0) -> Tensor:
    """(n,C,h,w) uint8: noise over ramps of different contrast, so that histograms are neither flat nor full."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 1, height * width).reshape(height, width)
    low, high = rng.integers(0, 100, (2, n, channels, 1, 1))
    pixels = low + (255 - low - high) * ramp + rng.integers(-9, 10, (n, channels, height, width))
    return torch.from_numpy(pixels.clip(0, 255).astype(np.uint8))


def pil(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy() if len(image) == 3 else image[0].numpy())


def pixels(image: Image.Image) -> Tensor:
    array = torch.from_numpy(np.array(image))
    return array.permute(2, 0, 1) if array.ndim == 3 else array[None]


def same(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def worst(a: Tensor, b: Tensor) -> int:
    return int((a.int() - b.int()).abs().max())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(32, 32), (7, 45), (1, 1), (2, 3)])
@pytest.mark.parametrize(
    ("ours", "theirs", "values"),
    [
        (ops.autocontrast, lambda image, _: ImageOps.autocontrast(image), [0.0]),
        (ops.equalize, lambda image, _: ImageOps.equalize(image), [0.0]),
        (ops.posterize, lambda image, bits: ImageOps.posterize(image, int(bits)), [8.0, 6.0, 4.0, 2.0, 1.0]),
        (ops.solarize, lambda image, threshold: ImageOps.solarize(image, threshold), [0.0, 127.5, 128.0, 255.0]),
        (ops.brightness, lambda image, f: ImageEnhance.Brightness(image).enhance(f), [0.1, 0.73, 1.0, 1.9, 2.8]),
        (ops.contrast, lambda image, f: ImageEnhance.Contrast(image).enhance(f), [0.1, 0.73, 1.0, 1.9, 2.8]),
        (ops.color, lambda image, f: ImageEnhance.Color(image).enhance(f), [0.1, 0.73, 1.0, 1.9, 2.8]),
        (ops.sharpness, lambda image, f: ImageEnhance.Sharpness(image).enhance(f), [0.1, 0.73, 1.0, 1.9, 2.8]),
    ],
)
def test_operations_equal_pillow_to_one_level(
    ours: Callable[..., Tensor],
    theirs: Callable[..., Image.Image],
    values: list[float],
    size: tuple[int, int],
    channels: int,
) -> None:
    images = photos(len(values) + 2, *size, channels)
    images[-1] = 77  # flat, for operations that divide by a range
    values = [*values, values[0], values[0]]
    out = ours(images, same(values))
    assert out.dtype == torch.uint8 and out.shape == images.shape
    for i, value in enumerate(values):
        assert worst(out[i], pixels(theirs(pil(images[i]), value))) <= 1, value


def test_tables_and_grey_levels_equal_pillow() -> None:
    images = photos(20, 32, 32, seed=3)
    assert torch.equal(
        ops.equalize(images, same([])), torch.stack([pixels(ImageOps.equalize(pil(image))) for image in images])
    )
    assert torch.equal(ops._grey(images), torch.stack([pixels(pil(image).convert("L")) for image in images]).int())
    noise = torch.randint(256, (20, 3, 32, 32), dtype=torch.uint8, generator=seeded())
    for theirs, op in (
        (ImageEnhance.Contrast, ops.contrast),
        (ImageEnhance.Sharpness, ops.sharpness),
        (ImageEnhance.Color, ops.color),
    ):
        assert torch.equal(
            op(noise, same([1.5] * 20)), torch.stack([pixels(theirs(pil(image)).enhance(1.5)) for image in noise])
        )


AFFINE = Image.Transform.AFFINE


@pytest.mark.parametrize("fill", [0, 128])
@pytest.mark.parametrize(
    ("ours", "theirs", "values"),
    [
        (ops.shear_x, lambda v: (1, v, 0, 0, 1, 0), [0.0, 0.31, -0.99]),
        (ops.shear_y, lambda v: (1, 0, 0, v, 1, 0), [0.0, 0.31, -0.99]),
        (ops.translate_x, lambda v: (1, 0, int(v), 0, 1, 0), [3.0, -4.9, 40.0]),
        (ops.translate_y, lambda v: (1, 0, 0, 0, 1, int(v)), [3.0, -4.9, 40.0]),
    ],
)
def test_warps_equal_pillow_nearest(ours: Any, theirs: Any, values: list[float], fill: int) -> None:
    images = photos(len(values), 21, 30)
    out = ours(images, same(values), fill=fill)
    for i, v in enumerate(values):
        wanted = pixels(
            pil(images[i]).transform((30, 21), AFFINE, theirs(v), Image.Resampling.NEAREST, fillcolor=(fill,) * 3)
        )
        assert (out[i] != wanted).float().mean() < 0.005, (
            v
        )  # Pillow steps in 1/65536 px, and may fall on the other side of a border


def test_rotation_equals_pillow() -> None:
    images = photos(4, 24, 24)
    out = ops.rotate(images, same([20, -50, 90, 180]), fill=128)
    for i, degrees in enumerate((20, -50)):
        assert (out[i] != pixels(pil(images[i]).rotate(degrees, fillcolor=(128,) * 3))).float().mean() < 0.02
    assert torch.equal(out[2], images[2].rot90(1, (1, 2))) and torch.equal(out[3], images[3].rot90(2, (1, 2)))
    assert (out[0][:, 0, 0] == 128).all() and not (images[0][:, 0, 0] == 128).all()


def test_cutout_is_a_square_cut_at_the_border() -> None:
    images = torch.zeros(3, 2, 10, 12, dtype=torch.uint8)
    out = ops.cutout(images, same([3, 3, 0]), torch.tensor([[0.5, 0.5], [0.0, 0.99], [0.5, 0.5]]), fill=128)
    wanted = torch.zeros_like(images)
    wanted[0, :, 2:8, 3:9] = 128
    wanted[1, :, 0:3, 8:12] = 128
    assert torch.equal(out, wanted)


def test_solarize_add_changes_the_dark_half() -> None:
    row = torch.tensor([0, 100, 127, 128, 250], dtype=torch.uint8).view(1, 1, 1, 5).expand(2, 1, 1, 5)
    out = ops.solarize_add(row, same([165, 0]))
    assert out.flatten(1).tolist() == [[165, 255, 255, 128, 250], [0, 100, 127, 128, 250]]


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_color_needs_three_channels(channels: int) -> None:
    images = photos(2, 9, 9, channels)
    assert torch.equal(ops.color(images, same([0.1, 1.9])), images)


def value(op: Op, level: float) -> float:
    return op.start + level * (op.end - op.start)


def test_ranges_equal_torchvision() -> None:
    seen: list[dict[str, Op]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "one_of", lambda table, images, *_: (seen.append(table), images)[1])
        randaugment(photos(1, 331, 662), 1, 9, "torchvision", seeded())
        trivialaugment(photos(1, 331, 662), seeded())
    rand, trivial = seen
    ends = {k: (op.start, round(op.end, 9), op.signed) for k, op in rand.items()}
    assert len(ends) == 14 and ends["translate_x"] == (0, 300, True) and ends["translate_y"] == (0, 150, True)
    assert ends["shear_x"] == ends["shear_y"] == (0, 0.3, True) and ends["rotate"] == (0, 30, True)
    assert ends["posterize"] == (8, 4, False) and ends["solarize"] == (255, 0, False)
    assert {ends[k] for k in ("brightness", "contrast", "color", "sharpness")} == {(1, 1.9, True)}
    wide = {k: (op.start, round(op.end, 9), op.signed) for k, op in trivial.items()}
    assert list(wide) == list(ends) and wide["translate_x"] == wide["translate_y"] == (0, 32, True)
    assert wide["shear_x"] == (0, 0.99, True) and wide["rotate"] == (0, 135, True)
    assert wide["posterize"] == (8, 2, False) and wide["color"] == (1, 1.99, True)


def test_big_vision_quirks() -> None:
    table = big_vision_ops(224, 224)
    assert len(table) == 16 and "identity" not in table
    at_15 = {k: value(op, 1.5) for k, op in table.items()}
    assert at_15["rotate"] == 45 and at_15["translate_x"] == at_15["translate_y"] == 150 and at_15["cutout"] == 60
    assert at_15["shear_x"] == pytest.approx(0.45) and at_15["solarize_add"] == 165
    assert {round(at_15[k], 9) for k in ("color", "contrast", "brightness", "sharpness")} == {2.8}
    assert not table["color"].signed and table["rotate"].signed
    ramp = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)

    def run(name: str, magnitude: float) -> Tensor:
        return table[name].apply(ramp, same([value(table[name], magnitude / 10)]))

    for magnitude, bits in ((0, 1), (10, 4), (12, 4), (15, 6), (20, 8)):
        assert torch.equal(run("posterize", magnitude), ramp // 2 ** (8 - bits) * 2 ** (8 - bits))
    for magnitude in (0, 10, 20):
        assert torch.equal(run("solarize", magnitude), 255 - ramp)
    assert torch.equal(run("solarize", 15), torch.where(ramp < 128, ramp, 255 - ramp))
    grey_196 = run("contrast", 0).float() - 0.1 * ramp.float()  # 0.9 * 196, cut to whole levels
    assert (grey_196 - 0.9 * 196).abs().max() < 1
    assert run("invert", 15).flatten()[0] == 255


def test_big_vision_contrast_is_the_published_example() -> None:
    """big_vision issue 109: (192, 64, 64) at factor 1.9 became (188, 0, 0), where Pillow's rule gives (249, 6, 6)."""
    tile = torch.tensor([192, 64, 64], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    assert ops.contrast(tile, same([1.9]), grey=ops.BIG_VISION_GREY)[0, :, 0, 0].tolist() == [188, 0, 0]


def tables() -> list[Any]:
    return [pytest.param(CLEAN, id="torchvision"), pytest.param(big_vision_ops(24, 24), id="big_vision")]


@pytest.mark.parametrize("table", tables())
def test_every_image_gets_one_operation(table: dict[str, Op]) -> None:
    n = 640
    image = photos(1, 24, 24)
    out = one_of(table, image.expand(n, -1, -1, -1), torch.full((n,), 0.9, dtype=torch.float64), seeded())
    wanted: dict[str, list[Tensor]] = {}
    for name, op in table.items():
        if not op.placed:
            both = [op.start + s * 0.9 * (op.end - op.start) for s in ((1, -1) if op.signed else (1,))]
            wanted[name] = [op.apply(image, same([v]))[0] for v in both]
    counts = dict.fromkeys(table, 0)
    for one in out:
        names = [name for name, results in wanted.items() if any(torch.equal(one, result) for result in results)] or [
            "cutout"
        ]
        counts[names[0]] += 1
    share = n / len(table)
    assert sum(counts.values()) == n and all(0.4 * share < c < 2.1 * share for c in counts.values()), counts


@pytest.mark.parametrize("form", ["torchvision", "big_vision"])
def test_images_do_not_depend_on_each_other(form: Any) -> None:
    images, others = photos(12, 16, 16), photos(12, 16, 16, seed=9)
    mixed = torch.cat([images[:6], others[6:]])
    a, b = (randaugment(batch, 2, 15, form, seeded()) for batch in (images, mixed))
    assert torch.equal(a[:6], b[:6]) and not torch.equal(a[6:], b[6:])
    assert torch.equal(trivialaugment(images, seeded())[:6], trivialaugment(mixed, seeded())[:6])


def test_trivialaugment_draws_strengths_per_image() -> None:
    flat = torch.full((400, 1, 4, 4), 100, dtype=torch.uint8)
    out = trivialaugment(flat, seeded())
    assert len(torch.unique(out[:, 0, 1, 1])) > 20  # most of them by brightness, which has 61 strengths


@pytest.mark.parametrize("on", [{"randaugment_layers": 2}, {"trivialaugment": True}])
def test_randaugment_comes_after_crop_in_whole_levels(on: dict[str, Any]) -> None:
    images, targets = photos(64, 16, 16).permute(0, 2, 3, 1), torch.eye(2)[torch.arange(64) % 2]
    kept = images.clone()
    cfg = Augment(inception_crop=0.3, flip=True, **on)
    runs = [augmented(images, targets, cfg, (16, 16), seeded(seed))[0] for seed in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2]) and torch.equal(images, kept)
    assert torch.equal(runs[0], runs[0].round()) and runs[0].dtype == torch.float32 and runs[0].is_contiguous()
    generator = seeded(1)
    before = (
        augmented(images, targets, Augment(inception_crop=0.3, flip=True), (16, 16), generator)[0]
        .round()
        .to(torch.uint8)
    )
    after = (
        randaugment(before, 2, 9, "torchvision", generator)
        if "randaugment_layers" in on
        else trivialaugment(before, generator)
    )
    assert torch.equal(runs[0], after.float())
    floats = augmented(images.float(), targets, Augment(**on), (16, 16), seeded())[0]
    assert torch.equal(floats, augmented(images, targets, Augment(**on), (16, 16), seeded())[0])


def test_magnitude_zero_by_form() -> None:
    images = photos(300, 24, 24)
    out = randaugment(images, 1, 0, "torchvision", seeded())
    touched = (out != images).flatten(1).any(1).float().mean()
    assert 0.08 < touched < 0.22  # autocontrast and equalize have no strength; at 255 solarize spares all but white
    strong = randaugment(images, 1, 0, "big_vision", seeded())  # "Actually not nothing!", says its configuration
    assert (strong != images).flatten(1).any(1).float().mean() > 0.45


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 6),
    size=st.tuples(st.integers(1, 15), st.integers(1, 15)),
    channels=st.sampled_from([1, 2, 3, 5]),
    form=st.sampled_from(["torchvision", "big_vision"]),
    magnitude=st.integers(0, 20),
    seed=st.integers(0, 2**31),
)
def test_any_size_and_channels(
    n: int, size: tuple[int, int], channels: int, form: Any, magnitude: int, seed: int
) -> None:
    images = torch.randint(256, (n, *size, channels), dtype=torch.uint8, generator=seeded(seed))
    cfg = Augment(randaugment_layers=3, randaugment_magnitude=magnitude, randaugment_form=form, trivialaugment=True)
    out, _ = augmented(images, torch.ones(n, 1), cfg, size, seeded(seed))
    assert out.shape == (n, channels, *size) and out.min() >= 0 and out.max() <= 255 and torch.equal(out, out.round())


@pytest.mark.parametrize("name", sorted(CLEAN))
def test_operations_do_not_modify_input(name: str) -> None:
    images = photos(3, 8, 8)
    kept, op = images.clone(), CLEAN[name]
    op.apply(images, same([value(op, 0.7)] * 3))
    assert torch.equal(images, kept)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"randaugment_magnitude": 31}, "at most 30 with randaugment_form=torchvision, got 31"),
        (
            {"randaugment_magnitude": 25, "randaugment_form": "big_vision"},
            "at most 20 with randaugment_form=big_vision, got 25",
        ),
        ({"randaugment_layers": -1}, "augment.randaugment_layers must not be negative, got -1"),
    ],
)
def test_magnitudes_beyond_the_scale_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Augment(**wrong)


def test_off_draws_nothing() -> None:
    generator, images = seeded(), photos(2, 5, 5).permute(0, 2, 3, 1)
    before = generator.get_state()
    out, _ = augmented(
        images, torch.ones(2, 1), dataclasses.replace(Augment(), randaugment_magnitude=20), (5, 5), generator
    )
    assert torch.equal(out, prepare_eval(images)) and torch.equal(generator.get_state(), before)


@pytest.mark.gpu
@pytest.mark.parametrize("on", [{"randaugment_layers": 2}, {"trivialaugment": True}])
def test_cuda_gives_the_same_batch(on: dict[str, Any]) -> None:
    images, targets = photos(256, 32, 32).permute(0, 2, 3, 1).contiguous(), torch.ones(256, 1)
    here = augmented(images, targets, Augment(**on), (32, 32), seeded())[0]
    there = augmented(images.cuda(), targets.cuda(), Augment(**on), (32, 32), seeded())[0]
    assert there.is_cuda and ((here - there.cpu()).abs() > 1).float().mean() < 0.01
