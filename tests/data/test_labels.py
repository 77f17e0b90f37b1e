"""A class keeps its name, whatever it is, from the file to the model and through shards."""

import io
import json
import tarfile
import tempfile
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mlpmixer.data.config import Data
from mlpmixer.data.datasets import open_data
from mlpmixer.data.image_set import ImageSet, array_images, numbered
from mlpmixer.data.labels import LabelEncoder, class_name, read_label, used_labels
from mlpmixer.data.streaming.datasets import StreamedSplits, open_streamed
from mlpmixer.data.streaming.shards import Kind, read_rows
from mlpmixer.data.streaming.write import write_shards
from mlpmixer.download import Retry

NFC, NFD = "Gr\u00f6\u00dfe", "Gro\u0308\u00dfe"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def tars(folder: Path, labels: Sequence[bytes], classes: bytes | None = None) -> Path:
    """train, val and test.tar with an image of each label, and classes.txt."""
    folder.mkdir(parents=True)
    buffer = io.BytesIO()
    Image.new("L", (4, 4)).save(buffer, "PNG")
    for split in ("train", "val", "test"):
        with tarfile.open(folder / f"{split}.tar", "w") as tar:
            for i, label in enumerate(labels):
                for suffix, content in (("png", buffer.getvalue()), ("cls", label)):
                    member = tarfile.TarInfo(f"{i}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    if classes is not None:
        (folder / "classes.txt").write_bytes(classes)
    return folder


def classes_of(splits: StreamedSplits) -> list[str]:
    """The class of each validation image, after comparing with those of the training images."""
    val = [splits.classes[i] for i in splits.val.labels.tolist()]
    train = [s.label for shard in splits.train for s in read_rows(shard, 0, shard.samples, Retry())]
    assert [splits.classes[splits.labels.encode(label, "")] for label in train] == val
    return val


def opened(folder: Path, **options: str) -> StreamedSplits:
    return open_streamed(Data(name=str(folder), **options))


@pytest.mark.parametrize("text", ["1_1", "001", " 1", "1 ", "+1", "٣", "1.0", "-0", "0x1", "1e3", "9" * 30])
def test_only_plain_digits_are_a_number(text: str) -> None:
    assert read_label(text.encode()) == text
    assert (read_label(b"\xef\xbb\xbf12\r\n"), read_label(b"0"), read_label(b"-1"), read_label(b"")) == (
        12,
        0,
        -1,
        None,
    )


def test_labels_without_a_list_of_classes_are_the_classes(tmp_path: Path) -> None:
    names = ["3", "10", " 1", "+1", "001", "0_2", "1_1", "٣", "cat", "\\xff"]
    splits = opened(tars(tmp_path / "a", [b"\xff" if n == "\\xff" else n.encode() for n in reversed(names)]))
    assert sorted(splits.classes) == sorted(names) and classes_of(splits) == names[::-1]


def test_names_that_permute_the_numbers_stay_names(tmp_path: Path) -> None:
    digits = [b"%d" % i for i in range(10)]
    splits = opened(tars(tmp_path / "a", digits, b"\n".join(digits[::-1])))
    assert splits.classes == tuple("9876543210") and classes_of(splits) == list("0123456789")
    assert any("names of classes, not their numbers" in note for note in splits.notes)
    splits = opened(tars(tmp_path / "b", digits, b"\n".join(digits)))
    assert classes_of(splits) == list("0123456789") and not any("not their numbers" in note for note in splits.notes)


def test_numbers_are_places_in_the_list_when_they_are_no_names(tmp_path: Path) -> None:
    assert classes_of(opened(tars(tmp_path / "a", [b"0", b"1"], b"1\n2\n"))) == ["1", "2"]
    assert classes_of(opened(tars(tmp_path / "b", [b"0", b"1"], b"ant\nbee\n"))) == ["ant", "bee"]
    for i, labels in enumerate([(b"ant", b"1"), (b"0", b"01"), (b"0", b"2"), (b"0", b" 1")]):
        with pytest.raises(ValueError, match="none of the 2 classes: ant, bee"):
            opened(tars(tmp_path / f"refused{i}", labels, b"ant\nbee\n"))


def test_class_files_with_bom_crlf_or_nfd(tmp_path: Path) -> None:
    nfd = f"\ufeff{NFD}\r\nbee\r\n".encode()
    splits = opened(tars(tmp_path / "a", [NFC.encode(), b"\xef\xbb\xbfbee\r\n"], nfd))
    assert splits.classes == (NFC, "bee") and classes_of(splits) == [NFC, "bee"]
    assert classes_of(opened(tars(tmp_path / "b", [NFD.encode(), b"bee"], nfd))) == [NFC, "bee"]
    assert opened(tars(tmp_path / "c", [NFD.encode(), NFC.encode(), b"bee"])).classes == (NFC, "bee")
    with pytest.raises(ValueError, match="has 2 names, 1 of them different"):
        opened(tars(tmp_path / "d", [b"0"], f"{NFC}\n{NFD}".encode()))


def test_json_numbers_and_text_of_the_same_digits_are_one_class() -> None:
    encoder = LabelEncoder.of_labels(used_labels([1, "1", "01", -1, None]))
    assert encoder.classes == ("1", "01") and [encoder.encode(v, "") for v in (1, "1", "01")] == [0, 0, 1]


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[31m", "\x00", "", " ", "a\u2028b", "a\ud800"])
def test_names_that_no_line_can_hold_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="expected a name that can be printed in one line"):
        class_name(name)
    with pytest.raises(ValueError, match="in one line"):
        LabelEncoder.of_classes(["b", name])


def test_a_name_longer_than_a_screen_is_refused() -> None:
    assert class_name("x" * 1000)
    with pytest.raises(ValueError, match="expected at most 1,000 characters, got 100,000"):
        class_name("x" * 100_000)


NAMES = st.one_of(
    st.integers(0, 12).map(str),
    st.sampled_from(
        ["1_1", "0_2", "001", "01", " 1", "1 ", "+1", "-1", "-0", "٣", "1e0", "None", "\\xff", NFC, NFD, "z" * 99]
    ),
    st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=5).filter(str.strip),
)


@settings(max_examples=40, deadline=None)
@given(names=st.lists(NAMES, min_size=2, max_size=12, unique_by=lambda n: unicodedata.normalize("NFC", n)))
@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_what_shards_are_written_from_is_read_back(kind: Kind, names: list[str]) -> None:
    labels = np.arange(2 * len(names)) % len(names)
    pixels = np.broadcast_to(np.arange(len(labels), dtype=np.uint8)[:, None, None], (len(labels), 2, 2)).copy()
    images = ImageSet([class_name(n) for n in names], labels, numbered("image", len(labels)), array_images(pixels))
    with tempfile.TemporaryDirectory() as folder:
        write_shards({"train": images, "val": images}, Path(folder) / "out", kind=kind, per_shard=1000)
        splits = open_streamed(Data(name=f"{folder}/out", stream=True), cache_dir=folder)
        assert splits.classes == images.classes
        greys = [Image.open(io.BytesIO(splits.val.source(i))).getpixel((0, 0)) for i in range(len(splits.val))]
        assert classes_of(splits) == [images.classes[labels[grey]] for grey in greys]


def test_older_lists_that_permute_the_numbers_are_refused(tmp_path: Path) -> None:
    folder = tars(tmp_path / "a", [b"0", b"1"])
    splits = {s: {"filenames": [f"{s}.tar"], "shard_lengths": [2]} for s in ("train", "val")}
    info = {"classes": ["1", "0"], "splits": splits}
    (folder / "_info.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match=r'add "labels": "numbers" or "labels": "names" to _info\.json'):
        opened(folder)
    for meaning, expected in (("numbers", ["1", "0"]), ("names", ["0", "1"])):
        (folder / "_info.json").write_text(json.dumps(info | {"labels": meaning}))
        assert classes_of(opened(folder)) == expected
    (folder / "_info.json").write_text(json.dumps(info | {"labels": "places"}))
    with pytest.raises(ValueError, match="to be numbers or names, got 'places'"):
        opened(folder)


def test_folders_that_are_one_name_are_refused_in_a_split_and_matched_across(tmp_path: Path) -> None:
    def images(*folders: str) -> Data:
        for folder in folders:
            (tmp_path / folder).mkdir(parents=True)
            for i in range(2):
                Image.new("L", (4, 4), i).save(tmp_path / folder / f"{i}.png")
        return Data(name=str(tmp_path / folders[0].partition("/")[0]))

    splits = open_data(images(f"a/train/{NFC}", "a/train/b", f"a/test/{NFD}", "a/test/b"))
    assert splits.classes == (NFC, "b") and splits.test is not None and splits.test.counts().tolist() == [2, 2]
    with pytest.raises(ValueError, match=r"the folders 'Gro\\u0308\\xdfe' and 'Gr\\xf6\\xdfe' are the same class"):
        open_data(images(f"b/{NFC}", f"b/{NFD}", "b/c"))


def test_parquet_names_are_compared_in_nfc(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    def data(labels: list[str] | list[int], names: list[str] | None) -> Data:
        buffer = io.BytesIO()
        Image.new("L", (4, 4)).save(buffer, "PNG")
        table = pa.table({"image": [buffer.getvalue()] * len(labels), "label": labels})
        if names:
            table = table.replace_schema_metadata(
                {"huggingface": json.dumps({"info": {"features": {"label": {"names": names}}}})}
            )
        pq.write_table(table, tmp_path / "x.parquet")
        return Data(name=str(tmp_path / "x.parquet"))

    assert open_data(data([NFC, NFD, "b", "b"] * 3, None)).classes == (NFC, "b")
    assert open_data(data([NFC, NFD, "b", "b"] * 3, [NFD, "b"])).classes == (NFC, "b")
    assert open_data(data([0, 1] * 6, ["1", "0"])).classes == ("1", "0")
    assert open_data(data(["0", "1", "01"] * 4, ["1", "0", "01"])).classes == ("1", "0", "01")
    with pytest.raises(ValueError, match="two classes have the same name"):
        open_data(data([0, 1] * 6, [NFD, NFC]))
