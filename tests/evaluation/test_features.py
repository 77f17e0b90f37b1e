"""The cache of features: the same values, and never outdated ones."""

import os

import numpy as np
import pytest

from mlpmixer.data.config import Data
from mlpmixer.data.datasets import open_data
from mlpmixer.data.preprocess import Preprocess
from mlpmixer.evaluation.features import extract_features
from mlpmixer.inference.classifier import Classifier
from mlpmixer.inference.load import load


def other_weights(model, photos):
    model.path.write_bytes(b"wEights")


def other_preprocessing(model, photos):
    model.preprocess = Preprocess(image_size=(4, 4), fit="pad")


def other_pixels_of_the_same_size(model, photos):
    file = photos / "test" / "red" / "0.png"
    before = os.stat(file)
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def one_image_less(model, photos):
    (photos / "test" / "red" / "0.png").unlink()


def another_image_in_its_place(model, photos):
    (photos / "test" / "green" / "0.png").replace(photos / "test" / "red" / "0.png")


@pytest.mark.parametrize(
    "change",
    [other_weights, other_preprocessing, other_pixels_of_the_same_size, one_image_less, another_image_in_its_place],
)
def test_outdated_features_are_never_used(change, model, photos, network, tmp_path):
    extract_features(model, open_data(Data(name=str(photos))).test, cache=tmp_path / "cache")
    change(model, photos)
    network.seen = 0
    images = open_data(Data(name=str(photos))).test
    extract_features(model, images, cache=tmp_path / "cache")
    assert network.seen > 0


def test_the_key_covers_what_changes_the_network(digits_run, tmp_path):
    images = open_data(Data(name="digits")).test.subset(range(8))
    ways = [
        {},
        {"image_size": 16},
        {"image_size": 16, "resize": "nearest"},
        {"patch_size": 4},
        {"patch_size": (4, 2)},
        {"in_channels": 3},
    ]
    fresh = [extract_features(load(digits_run, **way), images).values for way in ways]
    assert all(not np.allclose(fresh[1], fresh[i], atol=1e-4) for i in (2, 3)), "of one size, and not the same"
    for files in (len(ways), len(ways)):
        kept = [extract_features(load(digits_run, **way), images, cache=tmp_path).values for way in ways]
        assert all(np.array_equal(a, b) for a, b in zip(fresh, kept, strict=True))
        assert len(list(tmp_path.iterdir())) == files


def test_a_change_in_memory_changes_the_key(digits_run, tmp_path):
    images = open_data(Data(name="digits")).test.subset(range(8))
    model = load(digits_run)
    before = extract_features(model, images, cache=tmp_path).values
    model.network.norm.bias.data += 1
    np.testing.assert_allclose(extract_features(model, images, cache=tmp_path).values, before + 1, atol=1e-5)


def test_images_in_memory_are_keyed_by_pixels(model, network, tmp_path):
    images = open_data(Data(name="digits")).test
    few = images.subset([0, 1, 2])
    extract_features(model, few, cache=tmp_path)
    extract_features(model, images.subset([0, 1, 2]), cache=tmp_path)
    assert network.seen == 3
    extract_features(model, images.subset([2, 1, 0]), cache=tmp_path)
    assert network.seen == 6


def test_a_damaged_cache_file_is_named(model, tmp_path):
    images = open_data(Data(name="digits")).test.subset([0, 1, 2])
    extract_features(model, images, cache=tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(ValueError, match=rf"{file.name} is damaged: delete it and try again"):
        extract_features(model, images, cache=tmp_path / "cache")


def test_a_bare_function_cannot_be_cached(network, tmp_path):
    model = Classifier(classes=("a", "b"), preprocess=Preprocess(image_size=(4, 4)), logits=network, pre_logits=network)
    with pytest.raises(ValueError, match="leave cache out"):
        extract_features(model, open_data(Data(name="digits")).test, cache=tmp_path)
