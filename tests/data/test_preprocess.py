"""The one evaluation preprocessing."""

import io
import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from fixtures import preprocessing
from fixtures.seeded import preprocessing_image
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from mlpmixer.config import from_json, to_json
from mlpmixer.data.images import ImageError
from mlpmixer.data.preprocess import PREPROCESSINGS, Preprocess, create_preprocess

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_image_of_the_model_size_is_unchanged(fit: str, channels: int) -> None:
    pixels = RNG.integers(0, 256, (20, 30, channels), dtype=np.uint8)
    p = Preprocess(image_size=(20, 30), in_channels=channels, fit=fit)
    assert np.array_equal(p.array(pixels), pixels)
    if channels == 3:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        assert np.array_equal(p.array(buffer.getvalue()), pixels)


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(1, 200), st.integers(1, 200)),
    target=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    fit=st.sampled_from(["crop", "pad", "squash"]),
    channels=st.sampled_from([1, 3]),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
)
def test_every_shape_comes_out_at_the_models_size(size, target, fit, channels, interpolation) -> None:
    p = Preprocess(image_size=target, in_channels=channels, fit=fit, interpolation=interpolation)
    out = p.array(Image.new("RGB", size[::-1], (70, 70, 70)))
    assert out.shape == (*target, channels) and out.dtype == np.uint8 and out.flags.writeable
    assert set(np.unique(out)) <= {70, 128}
    if fit != "pad":
        assert (out == 70).all()


def test_crop_and_pad() -> None:
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200
    assert (Preprocess(image_size=(10, 10)).array(wide) == 200).all()
    padded = Preprocess(image_size=(30, 30), fit="pad").array(wide)
    assert np.array_equal(padded[10:20], wide) and (padded[:10] == 128).all() and (padded[20:] == 128).all()
    assert np.array_equal(Preprocess(image_size=(10, 30), fit="squash").array(wide), wide)


def test_resizing_is_antialiased() -> None:
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    assert np.abs(Preprocess(image_size=(8, 8), in_channels=1).array(board).astype(int) - 128).max() < 25


def test_normalise_range_and_layout() -> None:
    images = np.stack([np.zeros((4, 6, 3), np.uint8), np.full((4, 6, 3), 255, np.uint8)])
    out = Preprocess(image_size=(4, 6)).normalise(images)
    assert out.shape == (2, 3, 4, 6) and out.dtype == np.float32 and out.flags.c_contiguous
    assert (out[0] == -1).all() and (out[1] == 1).all()
    other = Preprocess(image_size=(4, 6), mean=(0.1, 0.2, 0.3), std=(1.0, 0.5, 0.25)).normalise(images)
    np.testing.assert_allclose(other[0, :, 0, 0], [-0.1, -0.4, -1.2], rtol=1e-6)


def test_it_survives_json() -> None:
    p = Preprocess(image_size=(4, 6), in_channels=1, fit="pad", mean=(0.3,), std=(0.2,), interpolation="bicubic")
    assert from_json(Preprocess, to_json(p)) == p
    assert Preprocess(image_size=(8, 8), in_channels=1).mean == (0.5,)
    assert p.scaled(1.5).image_size == (6, 9) and p.scaled(1.5).fit == "pad"


def test_wrong_values_are_named() -> None:
    with pytest.raises(ValueError, match="mean has 2 values for 3 channels"):
        Preprocess(image_size=(4, 4), mean=(0.1, 0.2))
    with pytest.raises(ValueError, match="std"):
        Preprocess(image_size=(4, 4), std=(0.0, 0.0, 0.0))
    with pytest.raises(ValueError, match="positive"):
        Preprocess(image_size=(0, 4))
    with pytest.raises(ValueError, match="5 channels"):
        Preprocess(image_size=(4, 4), in_channels=5).array(np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match="pass uint8 arrays"):
        Preprocess(image_size=(4, 4), in_channels=5).array("x.png")
    with pytest.raises(ValueError, match="uint8"):
        Preprocess(image_size=(4, 4)).array(np.zeros((4, 4, 3)))


def test_default_is_pillow_antialiased() -> None:
    image = Image.fromarray(RNG.integers(0, 256, (90, 120, 3), dtype=np.uint8))
    for name, resample in (("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC)):
        cropped = Preprocess(image_size=(32, 32), interpolation=name).array(image)
        assert np.array_equal(cropped, image.resize((32, 32), resample, box=(15, 0, 105, 90)))
        squashed = Preprocess(image_size=(32, 24), fit="squash", interpolation=name).array(image)
        assert np.array_equal(squashed, image.resize((24, 32), resample))
        padded = Preprocess(image_size=(32, 32), fit="pad", interpolation=name).array(image)
        assert (
            np.array_equal(padded[4:28], image.resize((32, 24), resample))
            and (padded[:4] == 128).all()
            and (padded[28:] == 128).all()
        )


def test_pixels_equal_the_stored_table() -> None:
    stored, found = json.loads(preprocessing.STORED.read_text("utf-8")), preprocessing.checksums()
    assert [case for case in stored.keys() | found.keys() if stored.get(case) != found.get(case)] == []


def test_arrays_and_files_give_the_same_pixels() -> None:
    for case in preprocessing.cases(*preprocessing.MODELS, *preprocessing.BICUBIC):
        assert np.array_equal(case.preprocess.array(case.decoded), case.pixels), case


# --- what published weights are evaluated with ---------------------------------------------------------------------

FIXTURES = Path(__file__).parents[1] / "fixtures"
OFFICIAL = ("vit_jax_eval", "bv_resmall_crop", "bv_resize_crop")
SIZES = ((375, 500), (600, 400), (256, 256), (200, 180), (32, 32))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", OFFICIAL)
def test_official_rules_give_official_pixels(name: str, size: tuple[int, int]) -> None:
    case = f"{name}/{size[0]}x{size[1]}"
    p = create_preprocess(name, image_size=224)
    out = p.normalise(p.array(preprocessing_image(*size))[None])[0].transpose(1, 2, 0)
    with np.load(FIXTURES / "pp_expected.npz") as expected:
        away = np.abs(out[::16, ::16] - expected[case])
    whole = json.loads((FIXTURES / "pp_manifest.json").read_text())["cases"][case]
    assert away.max() < 1e-6
    assert out.mean(dtype=np.float64) == pytest.approx(whole["mean"], abs=1e-7)
    assert np.abs(out).sum(dtype=np.float64) == pytest.approx(whole["sum_abs"], rel=1e-7)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("name", "resample", "scale"), [("timm", Image.Resampling.BICUBIC, 2.0), ("miil", Image.Resampling.BILINEAR, 1.0)]
)
def test_timm_and_miil_are_plain_pillow_calls(
    name: str, resample: Image.Resampling, scale: float, size: tuple[int, int]
) -> None:
    image = Image.fromarray(preprocessing_image(*size))
    larger = {(375, 500): (341, 256), (600, 400): (256, 384), (200, 180): (256, 284)}.get(
        size, (256, 256)
    )  # (width, height)
    left, top = {(341, 256): (58, 16), (256, 384): (16, 80), (256, 284): (16, 30)}.get(
        larger, (16, 16)
    )  # 117 / 2 to the even 58
    expected = np.asarray(image.resize(larger, resample))[top : top + 224, left : left + 224]
    p = create_preprocess(name, image_size=(224, 224))
    assert np.array_equal(p.array(image), expected)
    scaled = expected.astype(np.float64) / 255 * scale - (scale - 1)
    np.testing.assert_allclose(p.normalise(p.array(image)[None])[0].transpose(1, 2, 0), scaled, atol=1e-6)


def test_other_sizes_keep_the_margin_of_224() -> None:
    image = Image.fromarray(preprocessing_image(300, 500))
    timm = create_preprocess("timm", image_size=384)  # timm: floor(384 / 0.875) = 438
    assert np.array_equal(
        timm.array(image), np.asarray(image.resize((730, 438), Image.Resampling.BICUBIC))[27:411, 173:557]
    )
    squashed = create_preprocess("bv_resize_crop", image_size=7).array(preprocessing_image(8, 8))
    assert np.array_equal(squashed, preprocessing_image(8, 8)[:7, :7])  # 8 for 7: only the cut is left to do
    assert np.array_equal(
        create_preprocess("bv_resmall_crop", image_size=7).array(preprocessing_image(8, 12)),
        preprocessing_image(8, 12)[:7, 2:9],
    )


@settings(max_examples=30, deadline=None)
@given(h=st.integers(1, 40), w=st.integers(1, 40), height=st.integers(1, 12), width=st.integers(1, 12))
def test_area_filter_is_the_exact_mean(h: int, w: int, height: int, width: int) -> None:
    pixels = np.random.default_rng(h * w).integers(0, 256, (h, w), dtype=np.uint8)
    out = create_preprocess("bv_resmall_crop", image_size=(height, width), in_channels=1).array(pixels)[..., 0]
    ratio = max(Fraction(height * 8 // 7, h), Fraction(width * 8 // 7, w))
    assume(all(n * ratio % 1 != Fraction(1, 2) for n in (h, w)))  # float32 decides those
    rows, columns = round(h * ratio), round(w * ratio)

    def shares(n: int, m: int, i: int) -> list[Fraction]:
        """Of each of n old pixels under new pixel i of m."""
        start, end = Fraction(i * n, m), Fraction((i + 1) * n, m)
        return [max(Fraction(0), min(end, Fraction(j + 1)) - max(start, Fraction(j))) * m / n for j in range(n)]

    for y, x in {(0, 0), (height - 1, width - 1), (height // 2, width // 3)}:
        down = shares(h, rows, (rows - height) // 2 + y)
        across = shares(w, columns, (columns - width) // 2 + x)
        mean = sum(a * b * int(pixels[i, j]) for i, a in enumerate(down) if a for j, b in enumerate(across) if b)
        assert sum(down) == sum(across) == 1
        assert -1e-3 < mean - int(out[y, x]) < 1 + 1e-3  # truncated, after float32 sums


@pytest.mark.parametrize("name", PREPROCESSINGS)
@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (5, 7), (48, 90)])
def test_flat_image_stays_flat(name: str, size: tuple[int, int]) -> None:
    for target in ((1, 1), (8, 8), (13, 30)):
        out = create_preprocess(name, image_size=target).array(np.full((*size, 3), 70, np.uint8))
        assert out.shape == (*target, 3) and out.flags.writeable
        assert (out == 70).all() or (
            name == "bv_resmall_crop" and set(np.unique(out)) <= {69, 70}
        )  # as in the official code
        assert (
            out.dtype
            == create_preprocess(name, image_size=target).dtype
            == (np.float32 if name == "vit_jax_eval" else np.uint8)
        )


@pytest.mark.parametrize("name", PREPROCESSINGS)
def test_channels_are_resized_alike(name: str) -> None:
    pixels = preprocessing_image(60, 90)
    rgb = create_preprocess(name, image_size=28).array(pixels)
    grey = create_preprocess(name, image_size=28, in_channels=1)
    assert np.array_equal(grey.array(pixels[..., 1]), rgb[..., 1:2]) and len(grey.mean) == 1
    assert np.array_equal(
        create_preprocess(name, image_size=28).array(Image.fromarray(pixels[..., 1])), rgb[..., [1, 1, 1]]
    )
    five = create_preprocess(name, image_size=28, in_channels=5).array(pixels[..., [0, 1, 2, 1, 0]])
    assert np.array_equal(five, rgb[..., [0, 1, 2, 1, 0]])


@pytest.mark.parametrize("size", ["32x32", "24x40"])
@pytest.mark.parametrize("name", ["timm", "miil"])
def test_timm_transforms_give_the_same_pixels(name: str, size: str) -> None:
    """timm.npz: written by benchmarks/timm_parity.py --fixture with timm 1.0.31, from each tag's own configuration."""
    height, width = map(int, size.split("x"))
    p = create_preprocess(name, image_size=(height, width))
    with np.load(FIXTURES / "timm.npz") as stored:
        cases = {key: stored[key] for key in stored.files if f"/{name}/{size}/" in key}
    assert len(cases) == 6
    for key, expected in cases.items():
        pixels = p.array(preprocessing_image(*map(int, key.split("/")[-1].split("x"))))
        if key.startswith("pixels/"):
            assert np.array_equal(pixels.transpose(2, 0, 1), expected), key
        else:
            np.testing.assert_allclose(p.normalise(pixels[None])[0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", PREPROCESSINGS)
def test_published_rules_decode_jpeg_in_full(name: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(preprocessing_image(400, 500)).save(buffer, "JPEG")
    p = create_preprocess(name, image_size=14)
    assert np.array_equal(p.array(buffer.getvalue()), p.array(np.asarray(Image.open(buffer))))


@pytest.mark.parametrize("name", PREPROCESSINGS)
def test_a_published_rule_survives_json(name: str) -> None:
    p = create_preprocess(name, image_size=(224, 112))
    assert from_json(Preprocess, json.loads(json.dumps(to_json(p)))) == p
    assert p.scaled(0.5) == create_preprocess(name, image_size=(112, 56))


def test_older_preprocessing_still_loads() -> None:
    stored = '{"image_size": [32, 24], "in_channels": 1, "fit": "pad", "mean": [0.3], "std": [0.2]}'
    assert from_json(Preprocess, json.loads(stored) | {"interpolation": "bilinear"}) == Preprocess(
        image_size=(32, 24), in_channels=1, fit="pad", mean=(0.3,), std=(0.2,)
    )
    assert from_json(Preprocess, {"image_size": [8, 8]}) == Preprocess(
        image_size=(8, 8), fit="crop", interpolation="bilinear"
    )


def test_normalise_does_not_modify_floats() -> None:
    p = create_preprocess("vit_jax_eval", image_size=8, in_channels=1)
    images = np.full((2, 8, 8, 1), 63.75, np.float32)
    assert (p.normalise(images) == -0.5).all() and (images == 63.75).all()


def test_wrong_rules_are_answered() -> None:
    with pytest.raises(ValueError, match=r"no preprocessing named 'bv_resmall'; did you mean bv_resmall_crop"):
        create_preprocess("bv_resmall", image_size=224)
    with pytest.raises(ValueError, match="has its own filter: leave interpolation"):
        Preprocess(image_size=(8, 8), fit="bv_resize_crop", interpolation="bicubic")
    for name in ("timm", "bv_resmall_crop"):
        with pytest.raises(ImageError, match="too long and narrow"):
            create_preprocess(name, image_size=224).array(Image.new("L", (100_000, 8)))
