"""Classes from a CSV or TSV beside the images."""

import csv
import dataclasses
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mlpmixer import cli
from mlpmixer.data.check import check_data
from mlpmixer.data.config import Data
from mlpmixer.data.datasets import open_data, open_images, open_raw
from mlpmixer.data.image_set import ImageSet


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """photos/0.png .. 7.png, of different grey."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(8):
        Image.new("L", (4, 4), 10 * i).save(folder / f"{i}.png")
    return folder


def classes_of(images: ImageSet) -> dict[str, str]:
    return {str(name): images.classes[label] for name, label in zip(images.names, images.labels, strict=True)}


def read(photos: Path, text: str | bytes, name: str = "labels.csv") -> Data:
    (photos / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return Data(name=str(photos), labels=name)


EIGHT = {f"{i}.png": "cat" if i % 3 else "dog" for i in range(8)}


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|", ", "])
@pytest.mark.parametrize("titles", [[], ["file", "label"], ["image_id", "breed"]])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_table_of_files_and_classes(photos: Path, delimiter: str, titles: list[str], end: str) -> None:
    rows = [titles] * bool(titles) + [[name, label] for name, label in EIGHT.items()]
    text = end.join(delimiter.join(row) for row in rows) + end
    for content in (text.encode(), b"\xef\xbb\xbf" + text.encode(), text.encode("utf-16")):
        data = read(photos, content)
        assert classes_of(open_images(data, "all")) == EIGHT
    s = open_data(data)
    assert s.classes == ("cat", "dog") and s.name == "photos" and s.test is not None
    assert len(s.train) + len(s.val) + len(s.test) == 8
    assert any(note.startswith("classes from labels.csv") for note in s.notes)
    assert classes_of(open_raw(Data(name=str(photos / "labels.csv"))).sets["all"]) == EIGHT


def test_columns_by_their_titles(photos: Path) -> None:
    lines = [f"{i},x{i},{'train' if i < 6 else 'Test'},{name},{label}" for i, (name, label) in enumerate(EIGHT.items())]
    s = open_data(read(photos, "\n".join(["number,note,split,path,class", *lines])))
    assert s.test is not None and classes_of(s.test) == {k: EIGHT[k] for k in ("6.png", "7.png")}
    s = open_data(
        read(photos, "\n".join(f"{name},{i % 2},{'valid' if i < 2 else 'train'}" for i, name in enumerate(EIGHT)))
    )
    assert list(s.val.names) == ["0.png", "1.png"] and s.classes == ("0", "1")
    with pytest.raises(
        ValueError, match=r"has the columns path, age, rust; which one has the classes\? .*age has others"
    ):
        open_data(read(photos, "\n".join(["path,age,rust", *(f"{name},7,1" for name in EIGHT)])))
    with pytest.raises(ValueError, match=r"labels\.csv, row 3: expected train, val or test, got 'public'"):
        open_data(read(photos, "file,label,split\n0.png,cat,train\n1.png,dog,public"))


def test_names_are_names(photos: Path) -> None:
    names = ["7", "007", "1_1", "+1", "10", "9", "e\u0301", "\u00e9"]
    data = read(photos, "\n".join(f"{i}.png,{name}" for i, name in enumerate(names)))
    found = classes_of(open_images(data, "all"))
    assert list(found.values()) == [unicodedata.normalize("NFC", name) for name in names]
    assert open_images(data, "all").classes == ("7", "9", "10", "+1", "007", "1_1", "\u00e9")


def test_files_are_relative_to_the_data_or_to_the_table(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tables").mkdir()
    for prefix in ("", "./", "../photos/", f"{photos}/"):
        (tmp_path / "tables" / "t.tsv").write_text(
            "\n".join(f"{prefix}{name}\t{label}" for name, label in EIGHT.items())
        )
        images = open_images(Data(name=str(photos), labels=str(tmp_path / "tables" / "t.tsv")), "all")
        assert [Path(str(name)).name for name in images.names] == list(EIGHT) and len(images) == 8
    monkeypatch.chdir(tmp_path / "tables")
    assert len(open_images(Data(name=str(photos), labels="t.tsv"), "all")) == 8
    with pytest.raises(ValueError, match=r"no file 't\.csv' here or in .*photos \(data\.labels\); did you mean t\.tsv"):
        open_data(Data(name=str(photos), labels="t.csv"))
    (photos / "Größe").mkdir()
    (photos / "0.png").rename(photos / "Größe" / "0.png")
    nfd = unicodedata.normalize("NFD", "Größe/0.png")
    assert len(open_images(read(photos, f"{nfd},a\n1.png,b"), "all")) == 2


def test_what_does_not_fit_is_said(photos: Path) -> None:
    rows = [f"{i}.png,{'cat' if i % 2 else 'dog'}" for i in range(6)]
    rows += ["0.png,cat", "1.png,cat", "5.png,", *(f"gone{i}.png,cat" for i in range(12))]
    data = dataclasses.replace(read(photos, "\n".join(["file,label", *rows])), multi_label="no")
    assert classes_of(open_images(data, "all")) == {f"{i}.png": "cat" if i % 2 else "dog" for i in range(1, 6)}
    notes = "\n".join(open_data(data).notes)
    assert (
        "12 files left out, gone0.png, " in notes and "gone9.png, ...: are listed in labels.csv, but not there" in notes
    )
    assert "1 file left out, 0.png (dog and cat): are listed in labels.csv with two classes" in notes
    assert "2 files left out, 6.png, 7.png: are not listed in labels.csv" in notes
    assert "1 row repeated, 1 row without a class left out" in notes
    report = check_data(data)
    assert not report.ok and len(report.misplaced) == 15
    assert ("gone0.png", "listed in labels.csv, but not there") in report.misplaced


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected rows of a file and its class"),
        (b"0.png\n1.png\n", "expected rows of a file and its class"),
        (b"a.png,cat\nb.png,dog\n", "names no file that is in .*photos or beside it, e.g. 'b.png'"),
        (b"0.png,cat\n1.png,dog,x\n", "row 2: expected 2 cells as in the first row, got 3"),
        (b"0.png,cat\n1.png,caf\xe9\n", r"is not text in UTF-8 \(byte 19\): save it as CSV, in UTF-8"),
        (b"0.png,cat\n1.png," + b"x" * 200_000, "is not a table: field larger than field limit"),
        (b"0.png,c\x00t\n1.png,dog", "expected a name that can be printed in one line"),
        (b"file,label\n0.png,\n1.png,", "lists no existing image that has exactly one class"),
        (b"0.png,cat\n1.png,cat", "only one class with images"),
    ],
)
def test_tables_that_are_none_are_refused_in_a_line(photos: Path, content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_data(read(photos, content))


def test_labels_are_for_folders(photos: Path, tmp_path: Path) -> None:
    data = read(photos, "0.png,cat\n1.png,dog")
    for name in ("digits", "hf:a/b"):
        with pytest.raises(ValueError, match="is for folders of images, not for"):
            open_data(dataclasses.replace(data, name=name))
    with pytest.raises(ValueError, match=r"data\.layout is about the names of folders"):
        open_data(dataclasses.replace(data, layout="splits"))
    (photos / "train-0.tar").touch()
    (photos / "val-0.tar").touch()
    with pytest.raises(ValueError, match="streamed"):
        open_data(data)


def test_a_folder_with_a_table_says_how_to_use_it(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = read(photos, "\n".join(",".join(row) for row in EIGHT.items()))
    with pytest.raises(ValueError, match=r"To take the classes from a table: --data\.labels labels\.csv"):
        open_data(Data(name=str(photos)))
    (tmp_path / "labels.csv").write_text("\n".join(f"photos/{name},{label}" for name, label in EIGHT.items()))
    with pytest.raises(
        ValueError, match=r"only one class .*'photos'.*--data\.labels labels\.csv takes the classes from it"
    ):
        open_data(Data(name=str(tmp_path)))
    assert len(open_images(Data(name=str(tmp_path), labels="labels.csv"), "all")) == 8
    assert cli.main(["data", "check", data.name, "--data.labels", "labels.csv"]) == 0
    assert "classes from labels.csv" in capsys.readouterr().out
    assert cli.main(["data", "shards", data.name, str(tmp_path / "out"), "--data.labels", "labels.csv"]) == 0


CELLS = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=8).filter(
    lambda s: s == s.strip() and s not in ("-1", "\ufeff") and not s.startswith("\ufeff")
)


@settings(max_examples=60, deadline=None)
@given(labels=st.lists(CELLS, min_size=8, max_size=8), delimiter=st.sampled_from(",\t;|"))
def test_what_csv_writes_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, labels: list[str], delimiter: str
) -> None:
    folder = tmp_path_factory.mktemp("photos")
    for i in range(8):
        (folder / f"{i}.png").touch()
    with open(folder / "t.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerows([["file", "label"], *([f"{i}.png", label] for i, label in enumerate(labels))])
    images = open_raw(Data(name=str(folder), labels="t.csv", multi_label="no")).sets["all"]
    assert [images.classes[k] for k in images.labels] == [unicodedata.normalize("NFC", label) for label in labels]
    assert np.array_equal(images.names, [f"{i}.png" for i in range(8)])
