"""The one evaluation preprocessing."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mlpmixer.config import from_json, to_json
from mlpmixer.data.preprocess import Preprocess

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_an_image_of_the_models_size_passes_unchanged(fit: str, channels: int) -> None:
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


def test_crop_takes_the_centre_and_pad_keeps_everything() -> None:
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200
    assert (Preprocess(image_size=(10, 10)).array(wide) == 200).all()
    padded = Preprocess(image_size=(30, 30), fit="pad").array(wide)
    assert np.array_equal(padded[10:20], wide) and (padded[:10] == 128).all() and (padded[20:] == 128).all()
    assert np.array_equal(Preprocess(image_size=(10, 30), fit="squash").array(wide), wide)


def test_resizing_is_antialiased() -> None:
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    assert np.abs(Preprocess(image_size=(8, 8), in_channels=1).array(board).astype(int) - 128).max() < 25


def test_normalise_maps_0_and_255_to_minus_1_and_1_channels_first() -> None:
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
