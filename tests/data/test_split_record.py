"""The record of a run's images: small, exact, and of use to whoever meets the model later."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlpmixer.config import from_json, to_json
from mlpmixer.data.config import Data
from mlpmixer.data.datasets import open_data
from mlpmixer.data.images import content_hash
from mlpmixer.data.split_record import PARTS, SplitRecord, leaks
from mlpmixer.data.store import content_hashes


def record(**parts: dict[str, int]) -> SplitRecord:
    """Name -> hash of each part."""
    return SplitRecord.of({part: (list(of), np.array(list(of.values()), np.uint64)) for part, of in parts.items()})


BEFORE = record(train={"a/0.png": 1, "a/1.png": 2}, val={"b/0.png": 3}, test={"b/1.png": 4})


def parts_of(names: list[str], hashes: list[int], of: SplitRecord = BEFORE) -> list[str]:
    found = of.assign(names, np.array(hashes, np.uint64))
    return [PARTS[of.all_parts[place]] if place >= 0 else "new" for place in found]


def test_record_survives_json() -> None:
    again = from_json(SplitRecord, json.loads(json.dumps(to_json(BEFORE))))
    assert again == BEFORE and again.all_names == ("a/0.png", "a/1.png", "b/0.png", "b/1.png")
    assert again.hashes_of("train").tolist() == [1, 2] and again.hashes_of("unused").tolist() == []
    assert not again.without_names().all_names and again.without_names().hashes == again.hashes


def test_leaks_of_several_runs_add_up() -> None:
    first = record(train={"a": 1, "b": 2}, val={"c": 2}, test={"d": 4}).after([record(train={"x": 4})])
    second = record(train={"a": 1}, test={"e": 5, "f": 6}).after([record(train={"x": 6})])
    earlier = "among those that the initial weights or the teacher were trained on"
    assert leaks(first) == [
        "val: 1 of its 1 images is also in train, byte for byte",
        f"test: 1 of its 1 images is {earlier}",
    ]
    assert leaks(first, second)[1] == f"test: 2 of its 3 images are {earlier}"
    assert leaks(BEFORE) == leaks() == []


def test_images_are_known_by_content() -> None:
    assert parts_of(["x", "y", "z", "a/0.png"], [4, 1, 3, 9]) == ["test", "train", "val", "new"]


def test_same_content_is_told_apart_by_name_then_by_order() -> None:
    twins = record(train={"a": 5}, test={"b": 5})
    assert parts_of(["b", "a", "c"], [5, 5, 5], twins) == ["test", "train", "new"]
    assert parts_of(["x", "y", "z"], [5, 5, 5], twins) == ["train", "test", "new"]
    assert parts_of(["b", "a"], [5, 5], twins.without_names()) == ["train", "test"]


def test_unreadable_images_are_known_by_name_alone() -> None:
    broken = record(train={"a": 0}, test={"b": 7})
    assert parts_of(["x", "a", "b"], [0, 0, 7], broken) == ["new", "train", "test"]
    assert parts_of(["a", "b"], [0, 7], broken.without_names()) == ["new", "test"]
    assert broken.hashes_of("train").tolist() == []


def test_difference_names_what_changed() -> None:
    assert not BEFORE.difference(BEFORE)
    now = record(train={"a/0.png": 1, "a/1.png": 9}, val={"b/1.png": 4}, test={"c/0.png": 5})
    assert BEFORE.difference(now) == (
        "1 changed: a/1.png; 1 missing: b/0.png; 1 new: c/0.png; 1 in another split: b/1.png"
    )
    many = record(train={f"{i}.png": i + 1 for i in range(12)})
    assert record().difference(many).startswith("12 new: 0.png, 1.png") and "10.png" not in record().difference(many)


def test_earlier_training_counts() -> None:
    tuned = record(train={"x": 2, "y": 8}, test={"z": 1}).after([BEFORE])
    assert tuned.earlier_hashes.tolist() == [1] and sorted(tuned.trained.tolist()) == [1, 2, 8]


@pytest.mark.parametrize("field", ["hashes", "names", "earlier", "counts"])
def test_damaged_record_is_an_error(field: str) -> None:
    damaged = to_json(BEFORE) | {field: [1, 2, 3, 4] if field == "counts" else "AAAA"}
    with pytest.raises(ValueError, match=r"splits\.(hashes|names|earlier)"):
        _ = from_json(SplitRecord, damaged).all_names


def test_content_is_bytes_of_files_and_pixels_of_arrays(tmp_path: Path) -> None:
    image = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4))
    image.save(tmp_path / "a.png")
    assert content_hash(tmp_path / "a.png") == content_hash((tmp_path / "a.png").read_bytes()) != content_hash(image)
    assert content_hash(image) != content_hash(image.transpose(Image.Transpose.ROTATE_90))
    assert content_hash(tmp_path / "absent.png") == content_hash(tmp_path) == 0


def test_train_fraction_leaves_a_record_of_the_rest() -> None:
    whole, half = open_data(Data(name="digits")), open_data(Data(name="digits", train_fraction=0.5))
    assert whole.unused is None and half.unused is not None
    assert len(half.train) + len(half.unused) == len(whole.train)
    assert len(set(content_hashes(whole.train).tolist())) == len(whole.train)


def test_too_many_training_images_are_known_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlpmixer.data.split_record.MAX_TRAIN", 3)
    large = record(train={"a": 1, "b": 2}, val={"c": 3}, test={"d": 4})
    assert large.counts == (0, 1, 1, 0) and large.shards
    assert large.difference(record(train={"a": 1, "b": 9}, val={"c": 3}, test={"d": 4})).startswith(
        "the training images"
    )
