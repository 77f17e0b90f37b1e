"""Folds: every image is left out once, classes are spread evenly, and files of the same content stay together."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlpmixer.data.config import Data
from mlpmixer.data.datasets import open_data
from mlpmixer.data.folds import fold_of_each
from mlpmixer.data.image_set import ImageSet


def images_of(contents: Sequence[bytes], labels: Sequence[int]) -> ImageSet:
    names = [str(i) for i in range(len(contents))]
    return ImageSet([f"class {k}" for k in range(max(labels) + 1)], np.array(labels), names, list(contents))


def test_classes_are_spread_evenly() -> None:
    rng = np.random.default_rng(0)
    labels = rng.choice(4, 333, p=(0.5, 0.3, 0.15, 0.05))
    images = images_of([rng.bytes(8) for _ in labels], labels.tolist())
    folds = fold_of_each(images, 5, seed=0)
    for k in range(4):
        counts = np.bincount(folds[labels == k], minlength=6)[1:]
        assert counts.sum() == (labels == k).sum() and np.ptp(counts) <= 1
    sizes = np.bincount(folds)[1:]
    assert np.ptp(sizes) <= 1 and len(sizes) == 5, "what is left over of the classes goes to the smallest folds"
    assert (fold_of_each(images, 5, seed=0) == folds).all() and (fold_of_each(images, 5, seed=1) != folds).any()


def test_duplicates_stay_in_one_fold_whatever_their_labels() -> None:
    rng = np.random.default_rng(1)
    contents = [rng.bytes(8) for _ in range(30)]
    twice = [*contents, *contents[:10], contents[0]]  # and one of them three times
    labels = [i % 2 for i in range(30)] + [(i + 1) % 2 for i in range(10)] + [0]
    folds = fold_of_each(images_of(twice, labels), 3, seed=0)
    assert (folds[30:40] == folds[:10]).all() and folds[40] == folds[0]
    assert sorted(set(folds.tolist())) == [1, 2, 3]


def test_class_of_fewer_different_images_than_folds_is_named() -> None:
    contents = [b"%d" % i for i in range(20)]
    images = images_of([*contents, b"same", b"same", b"same", b"other"], [0] * 20 + [1] * 4)
    with pytest.raises(
        ValueError, match=r"needs 5 different images .* 'class 1' has 2: use at most 2, or give it more"
    ):
        fold_of_each(images, 5, seed=0)
    with pytest.raises(ValueError, match="'class 1' has 1: give it more images"):
        fold_of_each(images.subset(range(23)), 2, seed=0)


def test_each_fold_is_test_once_and_the_datas_own_test_images_are_left_alone(tmp_path: Path) -> None:
    for split, count in (("train", 12), ("test", 4)):
        for i in range(count):
            path = tmp_path / split / "ab"[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), 7 * i + (100 if split == "test" else 0)).save(path)
    splits = [open_data(Data(name=str(tmp_path), folds=3, fold=fold)) for fold in (1, 2, 3)]
    tested = [name for s in splits if s.test for name in s.test.names]
    assert len(tested) == len(set(tested)) == 12 and all("train" in name for name in tested)
    for s in splits:
        assert s.test and s.unused and len(s.test) == 4 and s.test.counts().tolist() == [2, 2]
        assert len(s.train) + len(s.val) == 8 and not {*s.train.names, *s.val.names} & {*s.test.names}
        assert len(s.unused) == 4 and all("test" in name for name in s.unused.names)
        assert any("the 4 test images that were found are left alone" in note for note in s.notes)


def test_settings_that_make_no_sense_are_refused() -> None:
    for wrong, message in (
        ({"folds": 1}, "data.folds must be 2 to 1,000"),
        ({"folds": -2}, "data.folds must be 2 to 1,000"),
        ({"fold": 1}, "data.folds is 0"),
        ({"folds": 3, "fold": 4}, "data.folds is 3"),
    ):
        with pytest.raises(ValueError, match=message):
            Data(name="digits", **wrong)
    with pytest.raises(ValueError, match=r"also needs data\.fold"):
        open_data(Data(name="digits", folds=3))


def test_several_labels_an_image_are_refused(tmp_path: Path) -> None:
    for i in range(8):
        Image.new("L", (8, 8), 20 * i).save(tmp_path / f"{i}.png")
    (tmp_path / "labels.csv").write_text(
        "file,label\n" + "".join(f"{i}.png,{'a;b' if i % 2 else 'b'}\n" for i in range(8))
    )
    with pytest.raises(ValueError, match="one class for each image"):
        open_data(Data(name=str(tmp_path / "labels.csv"), folds=2, fold=1))
