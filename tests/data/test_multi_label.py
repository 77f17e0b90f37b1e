"""Several labels per image: what a table says, how it is cut, and what cannot be told."""

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlpmixer.config import from_json
from mlpmixer.data.check import check_data
from mlpmixer.data.config import Data
from mlpmixer.data.datasets import iterative_cut, open_data, open_images, open_raw, random_share
from mlpmixer.data.image_set import ImageSet
from mlpmixer.data.streaming.datasets import open_streamed

WANTED = {"0": {"cat"}, "1": {"cat", "dog"}, "2": set(), "3": {"dog"}, "4": {"cat", "ox"}, "5": {"ox"}}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(6):
        Image.new("L", (4, 4), 10 * i).save(folder / f"{i}.png")
    return folder


def read(photos: Path, *lines: str, **settings: str) -> ImageSet:
    (photos / "labels.csv").write_text("\n".join(lines))
    return open_raw(Data(name=str(photos / "labels.csv"), **settings)).sets["all"]  # type: ignore[arg-type]


def labels_of(images: ImageSet) -> dict[str, set[str]]:
    return {str(name)[0]: set(images.classes_of(i)) for i, name in enumerate(images.names)}


def joined(separator: str, quote: str = "") -> list[str]:
    return [f"{name}.png,{quote}{separator.join(sorted(own))}{quote}" for name, own in WANTED.items()]


ONE_HOT = ["file,cat,dog,ox,rust"]
ONE_HOT += [f"{n}.png,{','.join(str(int(c in own)) for c in ('cat', 'dog', 'ox'))},0" for n, own in WANTED.items()]
ROWS = [f"{name}.png,{label}" for name, own in WANTED.items() for label in sorted(own) or [""]]


@pytest.mark.parametrize(
    "lines",
    [
        ["file,label", *joined(";")],
        ["image_id,tags", *(line.replace(".png", "") for line in joined("|"))],
        joined(" ; "),
        ["path\tclass", *(line.replace(",", "\t") for line in joined("|"))],
        ["file;labels", *(line.replace(",", ";") for line in joined("|"))],
        ["file;labels", *(line.replace(",", ";") for line in joined(";", '"'))],
        ["filename,category", *ROWS, "1.png,dog"],
        ONE_HOT,
        [ONE_HOT[0], *(line.replace(",1", ",True").replace(",0", ",False") for line in ONE_HOT[1:])],
    ],
    ids=["semicolons", "bars", "spaces", "tsv", "semicolon file", "quoted", "rows", "one-hot", "one-hot too"],
)
def test_a_table_gives_several_labels(photos: Path, lines: list[str]) -> None:
    images = read(photos, *lines)
    assert images.multi_label and labels_of(images) == WANTED
    assert [c for c in images.classes if c != "rust"] == ["cat", "dog", "ox"]
    assert images.counts().tolist()[:3] == [3, 2, 2]


def test_one_label_each_is_one_class_unless_asked(photos: Path) -> None:
    lines = ["file,cat,dog", *(f"{i}.png,{i % 2},{1 - i % 2}" for i in range(6))]
    assert read(photos, *lines).labels.tolist() == [1, 0, 1, 0, 1, 0]
    images = read(photos, *lines, multi_label="yes")
    assert images.multi_label and images.labels.sum(axis=1).tolist() == [1] * 6
    numbers = read(photos, "file,class", *(f"{i}.png,{i % 2}" for i in range(6)))
    assert not numbers.multi_label and numbers.classes == ("0", "1")
    assert open_images(Data(name="digits", multi_label="yes"), "test").labels.shape[1] == 10


def test_a_row_of_zeros_is_an_image_with_none(photos: Path) -> None:
    images = read(photos, "file,cat,dog", *(f"{i}.png,{int(i == 1)},{int(i > 3)}" for i in range(6)))
    assert images.multi_label and images.labels.sum(axis=1).tolist() == [0, 1, 0, 0, 1, 1]


def test_an_empty_cell_among_single_classes_is_left_out_with_what_to_type(photos: Path) -> None:
    lines = ["file,label", *(f"{i}.png,{'cat' if i % 2 else ''}" for i in range(6))]
    assert not read(photos, *lines).multi_label
    notes = open_raw(Data(name=str(photos / "labels.csv"))).notes
    assert any("3 rows without a class left out; if" in note and "--data.multi-label yes" in note for note in notes)


def test_the_index_that_pandas_writes_is_not_a_class(photos: Path) -> None:
    images = read(photos, "," + ONE_HOT[0], *(f"{i},{line}" for i, line in enumerate(ONE_HOT[1:])))
    assert labels_of(images) == WANTED
    assert read(photos, ",file,sort", *(f"{i},{i}.png,{'ab'[i % 2]}" for i in range(6))).classes == ("a", "b")


def test_lists_in_cells_are_refused_with_what_to_write(photos: Path) -> None:
    lines = ["file,labels", *(f'{name}.png,"{sorted(own)}"' for name, own in WANTED.items())]
    with pytest.raises(ValueError, match=r"lists such as \['cat', 'dog'\] in its cells: .*by ; as in cat;dog"):
        read(photos, *lines)
    assert "['cat', 'dog']" in read(photos, *lines, multi_label="no").classes


def test_a_few_files_in_two_rows_are_mistakes(photos: Path) -> None:
    for i in range(6, 30):
        (photos / f"{i}.png").write_bytes((photos / "0.png").read_bytes())
    lines = ["file,class", *(f"{i}.png,{'cat' if i % 2 else 'dog'}" for i in range(30))]
    images = read(photos, *lines, "0.png,cat")
    assert not images.multi_label and len(images) == 29
    notes = open_raw(Data(name=str(photos / "labels.csv"))).notes
    assert any("0.png (dog and cat)" in note and "--data.multi-label yes" in note for note in notes)
    assert read(photos, *lines, "0.png,cat", multi_label="yes").classes_of(0) == ("cat", "dog")
    assert read(photos, *lines, "0.png,cat", "2.png,cat", "4.png,cat").multi_label


@pytest.mark.parametrize("separator", [" ", ",", ", "])
def test_what_may_be_one_class_or_several_is_asked(photos: Path, separator: str) -> None:
    lines = ["file,label", *joined(separator, '"')]
    with pytest.raises(
        ValueError, match=r"is 'cat.*dog' one class, or 'cat' and 'dog'.*multi-label no.*multi-label yes"
    ):
        read(photos, *lines)
    assert labels_of(read(photos, *lines, multi_label="yes")) == WANTED
    assert f"cat{separator}dog" in read(photos, *lines, multi_label="no").classes


def test_names_of_several_words_are_names(photos: Path) -> None:
    names = ["hot dog", "dog", "Smith, John", "golden retriever", "cat", "New York"]
    images = read(photos, "file,label", *(f'{i}.png,"{name}"' for i, name in enumerate(names)))
    assert not images.multi_label and sorted(images.classes) == sorted(names)
    assert read(photos, "0.png,a;b", "1.png,c", multi_label="no").classes == ("a;b", "c")
    with pytest.raises(ValueError, match=r"cells with ; and cells with \|"):
        read(photos, "0.png,a;b", "1.png,b|c")


def test_files_are_found_by_name(photos: Path) -> None:
    (photos / "images").mkdir()
    for i in range(3):
        (photos / f"{i}.png").rename(photos / "images" / f"{i}.png")
    images = read(photos, "id,label", *(f"{i},{i % 2}" for i in range(6)))
    assert labels_of(images) == {str(i): {str(i % 2)} for i in range(6)}
    (photos / "more").mkdir()
    (photos / "more" / "0.png").write_bytes((photos / "3.png").read_bytes())
    assert len(read(photos, *(f"{i}.png,{i % 2}" for i in range(6)))) == 5  # two are called 0.png


def test_is_valid_is_a_split(photos: Path) -> None:
    (photos / "labels.csv").write_text(
        "\n".join(["fname,labels,is_valid", *(f"{i}.png,{i % 2},{i > 3}" for i in range(6))])
    )
    splits = open_data(Data(name=str(photos / "labels.csv")))
    assert (len(splits.val), splits.val.names[0]) == (2, "4.png") and splits.test is not None


@pytest.mark.parametrize("seed", range(3))
def test_a_cut_has_its_share_of_every_class(seed: int) -> None:
    rng = np.random.default_rng(seed)
    targets = rng.random((600, 8)) < np.array([0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01, 0.4])
    targets[:3, 7] |= True
    keep, cut = iterative_cut(targets, 0.2, seed)
    assert np.array_equal(np.sort([*keep, *cut]), np.arange(600)) and abs(len(cut) - 120) <= 12
    share, size = targets[cut].sum(axis=0), targets.sum(axis=0)
    assert (np.abs(share - 0.2 * size) <= np.maximum(2, 0.05 * size)).all()
    assert np.array_equal(cut, iterative_cut(targets, 0.2, seed)[1])
    at_least = targets[iterative_cut(targets, 0.01, seed, at_least=1)[1]].sum(axis=0)
    assert (at_least[size > 1] >= 1).all()
    assert targets[keep].any(axis=0).all()
    small, large = random_share(targets, 0.1, seed), random_share(targets, 0.5, seed)
    assert (len(small), len(large)) == (60, 300) and np.isin(small, large).all()


def test_the_notes_say_what_was_done(photos: Path) -> None:
    (photos / "labels.csv").write_text("\n".join(["file,label", *joined(";"), "gone.png,cat"]))
    splits = open_data(Data(name=str(photos / "labels.csv"), test_fraction=0.3))
    notes = "\n".join(splits.notes)
    assert "several labels per image: 1.17 of 3 classes on average, 2 at most, 1 image with none" in notes
    assert "stratified by each of the labels" in notes and "gone.png" in notes
    assert splits.train.labels.shape[1] == 3 and splits.train.multi_label
    report = check_data(Data(name=str(photos / "labels.csv")))
    assert report.counts == {"all": {"cat": 3, "dog": 2, "ox": 2}} and not report.broken


def test_the_same_image_with_other_labels_is_found(photos: Path) -> None:
    (photos / "3.png").write_bytes((photos / "1.png").read_bytes())
    (photos / "labels.csv").write_text("\n".join(["file,label", *joined(";")]))
    found = check_data(Data(name=str(photos / "labels.csv"))).misplaced
    assert ("3.png", "class 'dog', but the same image is 1.png in class 'cat and dog'") in found


def test_recipes_of_before_keep_their_classes() -> None:
    assert from_json(Data, {"name": "x"}).multi_label == "no" and Data().multi_label == "auto"
    assert from_json(Data, dataclasses.asdict(Data())) == Data()


@pytest.mark.parametrize("stated", ["Sequence", "List", "old", ""])
def test_parquet_with_lists_of_labels(tmp_path: Path, stated: str) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    names = {"names": ["cat", "dog", "ox"], "_type": "ClassLabel"}
    feature = [names] if stated == "old" else {"feature": names, "_type": stated}
    about = {"huggingface": json.dumps({"info": {"features": {"image": {"_type": "Image"}, "labels": feature}}})}
    image = io.BytesIO()
    Image.new("L", (4, 4)).save(image, "PNG")
    lists = [[0], [0, 1], [], [1], [0, 2], None]
    if not stated:
        lists = [None if own is None else [names["names"][k] for k in own] for own in lists]
    table = pa.table({"image": [{"bytes": image.getvalue(), "path": None}] * 6, "labels": lists})
    parquet.write_table(table.replace_schema_metadata(about if stated else None), tmp_path / "x.parquet")
    images = open_raw(Data(name=str(tmp_path / "x.parquet"))).sets["all"]
    assert images.classes == ("cat", "dog", "ox") and images.multi_label
    assert [set(images.classes_of(i)) for i in range(6)] == [
        {"cat"},
        {"cat", "dog"},
        set(),
        {"dog"},
        {"cat", "ox"},
        set(),
    ]
    for split in ("train-0", "val-0"):
        (tmp_path / f"{split}.parquet").write_bytes((tmp_path / "x.parquet").read_bytes())
    (tmp_path / "x.parquet").unlink()
    with pytest.raises(ValueError, match="labels must be one per image to be read as shards"):
        open_streamed(Data(name=str(tmp_path), stream=True))
