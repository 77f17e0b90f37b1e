"""check_data names what is wrong."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from mlpmixer.data.check import check_data
from mlpmixer.data.config import Data
from mlpmixer.data.datasets import open_data


def image(seed: int, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 7, 3), dtype=np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def test_a_clean_set_is_ok() -> None:
    report = check_data(Data())
    assert (
        report.broken == ()
        and report.misplaced == ()
        and report.sizes == {"8x8": 1797}
        and report.modes == {"array L": 1797}
    )
    assert report.counts["all"]["0"] == 178
    json.dumps(report.to_json())


def test_everything_wrong_is_reported(tmp_path: Path) -> None:
    seed = 0
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(3):
                seed += 1
                (tmp_path / split / name / f"{i}.png").write_bytes(image(seed))
    assert check_data(Data(name=str(tmp_path))).ok
    (tmp_path / "train/cat/again.png").write_bytes(image(1))  # train/cat/0.png
    (tmp_path / "train/dog/cat.bmp").write_bytes(image(2, "BMP"))  # train/cat/1.png, in another format
    (tmp_path / "test/cat/leak.png").write_bytes(image(3))  # train/cat/2.png
    (tmp_path / "train/cat/cut.png").write_bytes(image(90)[:60])
    (tmp_path / "train/cat/zero.png").write_bytes(b"")
    (tmp_path / "train/cat/text.jpg").write_text("hello")
    (tmp_path / "train/cat/link.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "train/cat/list.csv").write_text("a,b")
    (tmp_path / "train/loose.png").write_bytes(image(91))
    (tmp_path / "test/owl").mkdir()
    (tmp_path / "test/owl/0.png").write_bytes(image(92))
    report = check_data(Data(name=str(tmp_path)))
    assert not report.ok
    assert {n for n, _ in report.broken} == {f"train/cat/{f}" for f in ("cut.png", "zero.png", "text.jpg", "link.png")}
    assert set(report.duplicates) == {
        ("train/cat/again.png", "train/cat/0.png"),
        ("train/dog/cat.bmp", "train/cat/1.png"),
        ("test/cat/leak.png", "train/cat/2.png"),
    }
    misplaced = dict(report.misplaced)
    assert set(misplaced) == {
        "train/dog/cat.bmp",
        "test/cat/leak.png",
        "train/cat/list.csv",
        "train/loose.png",
        "test: owl",
    }
    assert "train/cat/1.png" in misplaced["train/dog/cat.bmp"] and "train" in misplaced["test/cat/leak.png"]
    assert report.counts["train"] == {"cat": 8, "dog": 4, "owl": 0} and report.counts["test"]["owl"] == 1
    assert report.modes["PNG RGB"] == 15 and report.modes["BMP RGB"] == 1 and report.sizes == {"7x9": 16}
    written = json.loads(json.dumps(report.to_json()))
    assert written["ok"] is False and written["misplaced"] == [list(pair) for pair in report.misplaced]
    assert "class 'owl' is in test but has no image in train" in report.refused and dict(report.few) == {
        "owl": "0 images, the median class has 6"
    }


def fill(folder: Path, sizes: dict[str, int]) -> Data:
    """A folder of so many different images of each class."""
    for k, (name, n) in enumerate(sizes.items()):
        (folder / name).mkdir(parents=True)
        for i in range(n):
            (folder / name / f"{i}.png").write_bytes(image(1000 * k + i))
    return Data(name=str(folder))


def test_what_train_refuses_is_reported(tmp_path: Path) -> None:
    assert "only one class" in check_data(fill(tmp_path / "one", {"a": 5})).refused
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "labels.csv").write_text("file,label\n0.png,cat\n")
    report = check_data(fill(tmp_path / "table", {"images": 5}))
    assert "only one class with images, 'images'" in report.refused and not report.ok
    assert "none to train on" in check_data(fill(tmp_path / "test", {"test/a": 5, "test/b": 5})).refused


def test_classes_of_few_images_are_reported(tmp_path: Path) -> None:
    report = check_data(fill(tmp_path / "a", {"none": 0, "one": 1, "two": 2, "many": 30, "more": 40}))
    assert dict(report.few) == {
        "none": "0 images, the median class has 16",
        "one": "1 image, the median class has 16",
    }
    assert not report.ok and any("too few images to have one in it: 1 class" in note for note in report.notes)
    report = check_data(fill(tmp_path / "b", {"few": 2, "many": 30, "more": 40}))
    assert dict(report.few) == {"few": "2 images, the median class has 30"}
    assert check_data(fill(tmp_path / "c", {"few": 3, "many": 30, "more": 40})).ok


def test_names_that_look_alike_are_reported(tmp_path: Path) -> None:
    report = check_data(fill(tmp_path, {"Cat": 5, "cat ": 5, "dog": 5}))
    assert report.misplaced == (("class 'cat '", "there is a class 'Cat', too"),)


def test_duplicates_that_the_cut_tears_apart_are_reported(tmp_path: Path) -> None:
    data = fill(tmp_path, {"a": 20, "b": 20})
    splits = open_data(data)
    assert splits.test is not None
    test, train = splits.test.names[0], next(name for name in splits.train.names if name.startswith("b"))
    (tmp_path / test).write_bytes((tmp_path / train).read_bytes())
    report = check_data(data)
    assert len(report.duplicates) == 1 and any("but the same image is" in why for _, why in report.misplaced)
    assert any(why.startswith("cut off for") for _, why in report.misplaced)
