"""Data by name and by path, splits cut and checked, hostile files refused."""

import builtins
import dataclasses
import gzip
import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
import types
from pathlib import Path

import numpy as np
import pytest
from helpers.datasets import MNIST_IMAGES, write_idx
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mlpmixer.config import from_json, to_json
from mlpmixer.data.catalog import DATASETS
from mlpmixer.data.config import Data
from mlpmixer.data.datasets import open_data, open_images, stratified_cut
from mlpmixer.data.image_set import Splits
from mlpmixer.data.images import ImageError, _heic, decode
from mlpmixer.data.preprocess import Preprocess
from mlpmixer.data.store import Store
from mlpmixer.data.streaming.datasets import open_streamed

RNG = np.random.default_rng(0)


def png(seed: int, size: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def make_folder(root: Path, layout: dict[str, int]) -> Path:
    """{"train/cat": 3} -> three images in root/train/cat."""
    seed = 0
    for folder, n in layout.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            seed += 1
            (root / folder / f"{i}.png").write_bytes(png(seed))
    return root


def write_parquet(path: Path, labels, *, names=None, image="image", label="label", metadata=True, images=None) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = images or [{"bytes": png(i), "path": None} for i in range(len(labels))]
    table = pa.table(
        {image: pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())])), label: labels}
    )
    features = {label: {"names": names, "_type": "ClassLabel"}, image: {"_type": "Image"}}
    if metadata:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


# ---- by name


def test_digits_is_the_default() -> None:
    s = open_data(Data())
    assert (len(s.train), len(s.val), len(s.test)) == (1293, 144, 360)
    assert s.name == "digits" and s.classes == tuple("0123456789") and s.train.channels == 1
    pixels = np.asarray(s.train.source(0))
    assert pixels.shape == (8, 8) and pixels.dtype == np.uint8
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    raw = load_digits()
    _, test = train_test_split(np.arange(1797), test_size=0.2, stratify=raw.target, random_state=0)
    first = np.sort(test)[0]
    assert s.test.names[0] == f"digits[{first}]"
    assert np.array_equal(np.asarray(s.test.source(0)), np.floor(raw.images[first] * 255 / 16 + 0.5))
    assert any("360 images cut" in n for n in s.notes) and any("144 images cut" in n for n in s.notes)


def test_split_seed_redraws_the_test_images() -> None:
    a, b, c = (open_data(Data(split_seed=seed)) for seed in (0, 0, 1))
    assert list(a.test.names) == list(b.test.names) != list(c.test.names)
    assert list(a.val.names) == list(b.val.names)


def test_wrong_name_or_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="did you mean digits"):
        open_data(Data(name="digts"))
    make_folder(tmp_path / "flowers", {"a": 3, "b": 3})
    with pytest.raises(ValueError, match=r"did you mean .*flowers"):
        open_data(Data(name=str(tmp_path / "flovers")))
    with pytest.raises(ValueError, match=r"cifar10.*digits"):
        open_data(Data(name="zzzzzz"))
    with pytest.raises(ValueError, match="no data given"):
        open_data(Data(name=""))
    with pytest.raises(ValueError, match=r"no folder .*did you mean .*flowers"):
        open_data(Data(name="mnist", data_dir=str(tmp_path / "flower")))
    (tmp_path / "x.zip").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"not \.parquet"):
        open_data(Data(name=str(tmp_path / "x.zip")))


@pytest.mark.parametrize(("dot", "suffix"), [("-", ""), ("-", ".gz"), ("-", ".xz"), (".", ""), (".", ".gz")])
@pytest.mark.parametrize("below", ["", "fashion-mnist", "FashionMNIST/raw"])
def test_mnist_files(tmp_path: Path, dot: str, suffix: str, below: str) -> None:
    write_idx(tmp_path / below, dot, suffix)
    s = open_data(Data(name="fashion_mnist", data_dir=str(tmp_path)))
    assert (len(s.train), len(s.val), len(s.test)) == (50, 10, 20) or len(s.train) + len(s.val) == 60
    assert s.classes[0] == "T-shirt/top" and s.test.channels == 1
    assert np.array_equal(np.asarray(s.test.source(3)), MNIST_IMAGES[3]) and s.test.names[3] == "test[3]"


def test_damaged_mnist_files(tmp_path: Path) -> None:
    write_idx(tmp_path)
    good = (tmp_path / "train-images-idx3-ubyte").read_bytes()
    for content in (good[:-5], good + b"x", b"", b"\0\0\x08\x03" + b"\xff" * 12, b"GIF89a" + good):
        (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
        with pytest.raises(ValueError, match="train-images-idx3-ubyte"):
            open_data(Data(name="mnist", data_dir=str(tmp_path)))
    (tmp_path / "train-images-idx3-ubyte").unlink()
    with pytest.raises(ValueError, match="train-images-idx3-ubyte is missing"):
        open_data(Data(name="mnist", data_dir=str(tmp_path)))
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(good)[:-20])
    with pytest.raises(ValueError, match="damaged or cut short"):
        open_data(Data(name="mnist", data_dir=str(tmp_path)))


CIFAR = RNG.integers(0, 256, (20, 3072), dtype=np.uint8)


def cifar_binary(labels: np.ndarray, coarse: bool = False) -> bytes:
    columns = [labels[:, None].astype(np.uint8)] * (2 if coarse else 1)
    return np.concatenate([*columns, CIFAR[: len(labels)]], axis=1).astype(np.uint8).tobytes()


def cifar_files(kind: str, protocol: int = 2) -> dict[str, bytes]:
    labels = np.arange(20) % 10
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    if kind == "binary":
        return {f"{n}.bin": cifar_binary(labels) for n in names}
    return {
        n: pickle.dumps({"data": CIFAR, "labels": labels.tolist(), "filenames": ["x"] * 20}, protocol) for n in names
    }


@pytest.mark.parametrize(("kind", "protocol"), [("binary", 0), ("python", 2), ("python", 4), ("python", 5)])
@pytest.mark.parametrize("below", ["", "cifar10", "cifar-10-batches-py", "tar"])
def test_cifar10_original_files(tmp_path: Path, kind: str, protocol: int, below: str) -> None:
    files = cifar_files(kind, protocol)
    if below == "tar":
        with tarfile.open(tmp_path / f"cifar-10-{kind}.tar.gz", "w:gz") as tar:
            for name, content in files.items():
                info = tarfile.TarInfo(f"cifar-10-batches/{name}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    else:
        (tmp_path / below).mkdir(exist_ok=True)
        for name, content in files.items():
            (tmp_path / below / name).write_bytes(content)
    s = open_data(Data(name="cifar10", data_dir=str(tmp_path)))
    assert len(s.train) + len(s.val) == 100 and len(s.test) == 20 and s.classes[3] == "cat" and s.test.channels == 3
    assert np.array_equal(np.asarray(s.test.source(7)), CIFAR[7].reshape(3, 32, 32).transpose(1, 2, 0))


def test_cifar100_fine_labels(tmp_path: Path) -> None:
    labels = np.repeat(np.arange(10), 2)
    for name in ("train", "test"):
        rows = np.concatenate([np.full((20, 1), 7, np.uint8), labels[:, None].astype(np.uint8), CIFAR], axis=1)
        (tmp_path / f"{name}.bin").write_bytes(rows.tobytes())
    s = open_data(Data(name="cifar100", data_dir=str(tmp_path)))
    assert s.classes[:3] == ("apple", "aquarium_fish", "baby") and len(s.classes) == 10  # the others have no image here
    assert s.test.labels.tolist() == labels.tolist() and any("90 empty classes" in n for n in s.notes)


class Evil:
    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


class EvilDtype:
    def __reduce__(self):
        return np.dtype, ("O",)


@pytest.mark.parametrize("what", ["system", "eval", "dtype", "truncated", "list", "shape", "labels", "wide"])
def test_hostile_cifar_pickles(tmp_path: Path, what: str) -> None:
    files = cifar_files("python")
    target = tmp_path / "ran"
    files["data_batch_2"] = {
        "system": pickle.dumps({"data": Evil(str(target)), "labels": []}),
        "eval": b"c__builtin__\neval\n(S'1'\ntR.",
        "dtype": pickle.dumps({"data": EvilDtype(), "labels": []}),
        "truncated": files["data_batch_2"][:-500],
        "list": pickle.dumps([1]),
        "shape": pickle.dumps({"data": CIFAR[:, :100], "labels": [0] * 20}, 2),
        "labels": pickle.dumps({"data": CIFAR, "labels": ["a"] * 20}, 2),
        "wide": pickle.dumps({"data": CIFAR.astype(np.int64), "labels": [0] * 20}, 2),
    }[what]
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="data_batch_2"):
        open_data(Data(name="cifar10", data_dir=str(tmp_path)))
    assert not target.exists()


def test_a_folder_with_the_name_of_a_data_set_is_mentioned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert not any("./digits" in note for note in open_data(Data(name="digits")).notes)
    (tmp_path / "digits").mkdir()
    assert "digits is the data set of that name; for the folder here: ./digits" in open_data(Data(name="digits")).notes


def test_missing_or_foreign_files_of_a_named_set(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cifar-10-binary.tar.gz.*--data-dir"):
        open_data(Data(name="cifar10", data_dir=str(tmp_path)))
    files = cifar_files("binary")
    del files["data_batch_4.bin"]
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"data_batch_4.bin missing"):
        open_data(Data(name="cifar10", data_dir=str(tmp_path)))
    write_parquet(tmp_path / "other" / "train.parquet", [0, 1, 0, 1], names=["a", "b"])
    with pytest.raises(ValueError, match="10 classes, these files have 2"):
        open_data(Data(name="cifar10", data_dir=str(tmp_path / "other")))


def test_missing_folder_is_looked_for_in_data_dir_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trash-net").mkdir()
    monkeypatch.chdir(tmp_path)
    for name, folder in (("trashnet", "."), ("trahs-net", str(tmp_path))):
        with pytest.raises(ValueError, match=r"here or in .* \(--data-dir\); did you mean trash-net"):
            open_data(Data(name=name, data_dir=folder))


def test_several_named_sets_in_a_folder(tmp_path: Path) -> None:
    write_idx(tmp_path / "mnist")
    names = list(DATASETS["cifar10"].classes)
    write_parquet(
        tmp_path / "cifar10" / "plain_text" / "train-00000-of-00001.parquet",
        list(range(10)) * 3,
        names=names,
        image="img",
    )
    write_parquet(
        tmp_path / "cifar10" / "plain_text" / "test-00000-of-00001.parquet", list(range(10)), names=names, image="img"
    )
    assert len(open_data(Data(name="mnist", data_dir=str(tmp_path))).test) == 20
    assert len(open_data(Data(name="cifar10", data_dir=str(tmp_path))).test) == 10
    with pytest.raises(ValueError, match="no files of cifar100"):
        open_data(Data(name="cifar100", data_dir=str(tmp_path)))


# ---- Parquet


def test_parquet_shards_of_all_splits(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-00000-of-00002.parquet", [0, 1, 0, 1], names=["dog", "cat"])
    write_parquet(tmp_path / "train-00001-of-00002.parquet", [1, 0], names=["dog", "cat"])
    write_parquet(tmp_path / "validation-00000-of-00001.parquet", [1], names=["dog", "cat"])
    write_parquet(tmp_path / "test-00000-of-00001.parquet", [0, 1], names=["dog", "cat"])
    s = open_data(Data(name=str(tmp_path)))
    assert s.classes == ("dog", "cat") and s.train.labels.tolist() == [0, 1, 0, 1, 1, 0]
    assert s.train.source(4) == png(0) and s.train.names[4] == "train[4]" and len(s.val) == 1 and len(s.test) == 2
    assert len(open_images(Data(name=str(tmp_path)), "all")) == 9
    (tmp_path / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(ValueError, match=r"train-00001-of-00002.parquet missing"):
        open_data(Data(name=str(tmp_path)))


def test_parquet_labels_as_text_or_numbers(tmp_path: Path) -> None:
    import pyarrow as pa

    for labels in (["b", "a", "b", "a"], pa.array(["b", "a", "b", "a"]).dictionary_encode()):
        write_parquet(tmp_path / "t" / "train.parquet", labels, metadata=False)
        assert open_data(Data(name=str(tmp_path / "t" / "train.parquet"))).classes == ("a", "b")
    write_parquet(tmp_path / "n.parquet", [10, 2, 10, 2, 10, 2], metadata=False)
    s = open_data(Data(name=str(tmp_path / "n.parquet")))
    assert s.classes == ("2", "10")
    assert sorted(open_images(Data(name=str(tmp_path / "n.parquet")), "all").labels.tolist()) == [0, 0, 0, 1, 1, 1]


def test_hostile_parquet(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match="not a readable Parquet"):
        open_data(Data(name=str(tmp_path / "x.parquet")))
    write_parquet(tmp_path / "y.parquet", [0, 1], image="picture", names=["a", "b"])
    with pytest.raises(ValueError, match="expected a column image or img"):
        open_data(Data(name=str(tmp_path / "y.parquet")))
    write_parquet(tmp_path / "z.parquet", [0, 5], names=["a", "b"])
    with pytest.raises(ValueError, match=r"z\.parquet has the label 5, which is none of the 2 classes: a, b"):
        open_data(Data(name=str(tmp_path / "z.parquet")))
    write_parquet(tmp_path / "f.parquet", [0.5, 1.5], metadata=False)
    with pytest.raises(ValueError, match="whole numbers or text"):
        open_data(Data(name=str(tmp_path / "f.parquet")))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(png(1))
    rows = [
        {"bytes": png(0), "path": None},
        {"bytes": None, "path": "a.png"},
        {"bytes": None, "path": "../secret.png"},
        None,
    ]
    (tmp_path / "secret.png").write_bytes(png(2))
    write_parquet(tmp_path / "in" / "rows.parquet", [0, 1, 0, 1], names=["a", "b"], images=rows)
    images = open_images(Data(name=str(tmp_path / "in" / "rows.parquet")), "all")
    assert decode(images.source(1), "RGB").size == (8, 8)
    for i in (2, 3):
        with pytest.raises(ImageError):
            decode(images.source(i), "RGB")
    write_parquet(tmp_path / "m.parquet", [0, 1, -1, None, 0, 1], names=["a", "b"])
    assert len(open_images(Data(name=str(tmp_path / "m.parquet")), "all")) == 4


def test_lone_test_split(tmp_path: Path) -> None:
    write_parquet(tmp_path / "cifar_test.parquet", [0, 1, 1], names=["a", "b"])
    assert len(open_images(Data(name=str(tmp_path / "cifar_test.parquet")), "test")) == 3
    with pytest.raises(ValueError, match="only test images"):
        open_data(Data(name=str(tmp_path / "cifar_test.parquet")))
    with pytest.raises(ValueError, match="no train images"):
        open_images(Data(name=str(tmp_path / "cifar_test.parquet")), "train")
    with pytest.raises(ValueError, match="no split 'tset'"):
        open_images(Data(), "tset")


def test_several_parquet_sets_in_a_folder(tmp_path: Path) -> None:
    write_parquet(tmp_path / "one" / "train.parquet", [0, 1], names=["a", "b"])
    write_parquet(tmp_path / "two" / "train.parquet", [0, 1], names=["c", "d"])
    with pytest.raises(ValueError, match=r"several data sets; pass one of .*one, .*two"):
        open_data(Data(name=str(tmp_path)))


def without(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.split(".")[0] == package:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    for module in [m for m in sys.modules if m.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(builtins, "__import__", refuse)


@pytest.mark.parametrize(
    ("package", "name"), [("pyarrow", "x.parquet"), ("huggingface_hub", "mnist"), ("datasets", "hf:a/b")]
)
def test_missing_extras(package: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    monkeypatch.chdir(tmp_path)
    without(monkeypatch, package)
    with pytest.raises(ValueError, match=r'pip install "mlpmixer\[hf\]"'):
        open_data(Data(name=name))


# ---- the hub, as a stand-in


def fake_hub(monkeypatch: pytest.MonkeyPatch, folder: Path, *, offline: bool = False) -> None:
    """A Hub whose repositories all hold the Parquet files of `folder`: links to files named by hash."""

    def dataset_info(self, repo, **_):
        if offline:
            raise OSError("Network is unreachable")

    def snapshot_download(repo, *, repo_type, allow_patterns, local_files_only=False):
        assert (repo_type, allow_patterns) == ("dataset", "*.parquet")
        if local_files_only:
            raise FileNotFoundError("nothing in the cache")
        if offline:
            raise FileNotFoundError("Network is unreachable.\nPlease check your connection.")
        return str(folder / "snapshots" / "abc123")

    for path in [*folder.rglob("*.parquet")]:
        blob = folder / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        link = folder / "snapshots" / "abc123" / path.relative_to(folder)
        blob.parent.mkdir(exist_ok=True)
        link.parent.mkdir(parents=True)
        path.rename(blob)
        link.symlink_to(blob)
    hub = types.ModuleType("huggingface_hub")
    hub.HfApi = type("HfApi", (), {"dataset_info": dataset_info})
    hub.snapshot_download = snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)


def test_downloads_are_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = list(DATASETS["cifar10"].classes)
    for split, n in (("train", 3), ("test", 2)):
        write_parquet(tmp_path / split / f"{split}-0.parquet", list(range(10)) * n, names=names, image="img")
    fake_hub(monkeypatch, tmp_path)
    s = open_data(Data(name="cifar10"))
    assert len(s.test) == 20 and s.notes[0] == "cifar10 from hf.co/datasets/uoft-cs/cifar10, revision abc123"
    blob = sorted((tmp_path / "blobs").iterdir())[0]
    blob.write_bytes(blob.read_bytes() + b"x")
    with pytest.raises(
        ValueError, match=rf"has the sha256 .*, expected {blob.name}: delete .*{blob.name} and try again"
    ):
        open_data(Data(name="cifar10"))
    fake_hub(monkeypatch, tmp_path / "nowhere", offline=True)
    with pytest.raises(ValueError, match=r"\(Network is unreachable\).*train-\*.parquet.*--data-dir"):
        open_data(Data(name="cifar10"))


def test_hf_data_stays_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["dog", "cat"])})
    rows = {"image": [{"bytes": png(i), "path": None} for i in range(6)], "label": [0, 1] * 3}
    loaded = datasets.DatasetDict(
        {s: datasets.Dataset.from_dict(rows, features=features) for s in ("train", "validation", "test")}
    )
    fake_hub(monkeypatch, Path("nowhere"))
    monkeypatch.setattr(datasets, "load_dataset", lambda repo: loaded)
    s = open_data(Data(name="hf:someone/pets"))
    assert s.classes == ("dog", "cat") and (len(s.train), len(s.val), len(s.test)) == (6, 6, 6)
    assert s.train.source(2) == png(2) and s.name == "pets"
    fake_hub(monkeypatch, Path("nowhere"), offline=True)
    with pytest.raises(ValueError, match=r"hf:someone/pets could not be loaded \(Network is unreachable\)"):
        open_data(Data(name="hf:someone/pets"))


def test_hf_names_are_checked() -> None:
    with pytest.raises(ValueError, match="hf:owner/name"):
        open_data(Data(name="hf:../../x y"))


# ---- folders


def test_plain_folder_is_cut_into_three(tmp_path: Path) -> None:
    make_folder(tmp_path, {"cat": 20, "dog": 10})
    s = open_data(Data(name=str(tmp_path)))
    assert s.classes == ("cat", "dog") and (len(s.train), len(s.val), len(s.test)) == (21, 3, 6)
    assert sorted([*s.train.names, *s.val.names, *s.test.names]) == sorted(
        f"{c}/{i}.png" for c, n in (("cat", 20), ("dog", 10)) for i in range(n)
    )
    assert len(open_images(Data(name=str(tmp_path)), "all")) == 30
    assert len(open_images(Data(name=str(tmp_path)), "test")) == 6


@pytest.mark.parametrize(
    "words",
    [
        ("train", "val", "test"),
        ("Train", "VALID", "Test"),
        ("training", "validation", "testing"),
        ("train", "dev", "test"),
    ],
)
def test_split_folder_names(tmp_path: Path, words: tuple[str, str, str]) -> None:
    make_folder(tmp_path, {f"{w}/{c}": n for w, n in zip(words, (4, 2, 3), strict=True) for c in "ab"})
    s = open_data(Data(name=str(tmp_path)))
    assert (len(s.train), len(s.val), len(s.test)) == (8, 4, 6) and s.test.names[0] == f"{words[2]}/a/0.png"


def test_own_val_can_be_the_test_as_for_imagenet(tmp_path: Path) -> None:
    make_folder(tmp_path, {"train/a": 10, "train/b": 10, "val/a": 3, "val/b": 3})
    usual = open_data(Data(name=str(tmp_path)))
    assert (len(usual.train), len(usual.val), len(usual.test or ())) == (16, 6, 4)
    assert "data.val_is_test takes val instead" in notes_of(usual)
    splits = open_data(Data(name=str(tmp_path), val_is_test=True))
    assert (len(splits.train), len(splits.val), len(splits.test or ())) == (18, 2, 6)
    assert splits.test and list(splits.test.names) == list(usual.val.names)
    assert "test: what the data calls val" in notes_of(splits)


@pytest.mark.parametrize("others", [{}, {"val/a": 1, "val/b": 1, "test/a": 1, "test/b": 1}])
def test_val_is_test_needs_val_and_no_test(tmp_path: Path, others: dict[str, int]) -> None:
    make_folder(tmp_path, {"train/a": 3, "train/b": 3} | others)
    with pytest.raises(ValueError, match=r"data\.val_is_test is for data with val and without test; .* has train"):
        open_data(Data(name=str(tmp_path), val_is_test=True))


def notes_of(splits: Splits) -> str:
    return "\n".join(splits.notes)


def test_flat_folders_named_after_splits_are_classes_and_said_to_be(tmp_path: Path) -> None:
    make_folder(tmp_path, {"bus": 5, "train": 5, "test": 5})
    s = open_data(Data(name=str(tmp_path)))
    assert s.classes == ("bus", "test", "train")
    for name in ("train", "test"):
        assert f"folder {name!r} is taken for a class, as it has no folders in it" in notes_of(s)
    assert "taken for" not in notes_of(open_data(Data(name=str(tmp_path), layout="classes")))
    make_folder(tmp_path, {"car": 5})
    s = open_data(Data(name=str(tmp_path), layout="splits"))
    assert s.classes == ("bus", "car") and "not used: 'test', 'train', with no class folders in it" in notes_of(s)
    make_folder(tmp_path / "none", {"a": 2, "b": 2})
    with pytest.raises(ValueError, match=r"no folder named train, val or test .*/train/CLASS/image"):
        open_data(Data(name=str(tmp_path / "none"), layout="splits"))


def test_lone_folder_named_after_a_split_is_a_class_beside_other_images(tmp_path: Path) -> None:
    make_folder(tmp_path / "a", {"bus": 5, "car": 5, "train/steam": 3, "train/diesel": 3})
    s = open_data(Data(name=str(tmp_path / "a")))
    assert s.classes == ("bus", "car", "train")
    assert "folder 'train' is taken for a class like those beside it, 'bus', 'car', and not for the train" in notes_of(
        s
    )
    s = open_data(Data(name=str(tmp_path / "a"), layout="splits"))
    assert s.classes == ("diesel", "steam")
    assert "not used: 'bus', 'car', beside train, which are taken for splits (--data.layout classes)" in notes_of(s)
    make_folder(tmp_path / "b", {"train/a": 5, "train/b": 5, "test": 5, "notes": 0})
    s = open_data(Data(name=str(tmp_path / "b")))
    assert s.classes == ("a", "b") and "not used: 'notes', 'test', beside train" in notes_of(s)
    make_folder(tmp_path / "c", {"cat": 5, "dog": 5, "test/cat": 5, "test/dog": 5})
    with pytest.raises(ValueError, match="has only test images, and none to train on"):
        open_data(Data(name=str(tmp_path / "c")))


def test_classes_named_after_splits_within_splits(tmp_path: Path) -> None:
    make_folder(tmp_path, {f"{split}/{c}": 4 for split in ("train", "test") for c in ("train", "val", "test")})
    s = open_data(Data(name=str(tmp_path)))
    assert s.classes == ("test", "train", "val") and (len(s.train) + len(s.val), len(s.test)) == (12, 12)
    assert "taken for" not in notes_of(s)
    s = open_data(Data(name=str(tmp_path), layout="classes"))
    assert s.classes == ("test", "train") and len(s.train) + len(s.val) + len(s.test) == 24


def test_split_in_the_name_of_a_parquet_file_can_be_overruled(tmp_path: Path) -> None:
    write_parquet(tmp_path / "bullet-train.parquet", [0, 1] * 8, names=["a", "b"])
    write_parquet(tmp_path / "test_cat.parquet", [0, 1] * 8, names=["a", "b"])
    s = open_data(Data(name=str(tmp_path)))
    assert (
        len(s.test) == 16 and "test: test_cat.parquet" in notes_of(s) and "train: bullet-train.parquet" in notes_of(s)
    )
    s = open_data(Data(name=str(tmp_path), layout="classes"))
    assert len(s.train) + len(s.val) + len(s.test) == 32 and len(s.test) == 7
    one = Data(name=str(tmp_path / "test_cat.parquet"))
    with pytest.raises(ValueError, match=r"only test images, and none to train on; .*--data\.layout classes"):
        open_data(one)
    assert len(open_data(dataclasses.replace(one, layout="classes")).test) == 4
    write_parquet(tmp_path / "x.parquet", [0, 1] * 8, names=["a", "b"])
    assert "not used, as the name says no split: x.parquet (--data.layout classes" in notes_of(
        open_data(Data(name=str(tmp_path)))
    )
    with pytest.raises(ValueError, match=r"no file's name says train, val or test \(data\.layout=splits\)"):
        open_data(Data(name=str(tmp_path / "x.parquet"), layout="splits"))
    with pytest.raises(ValueError, match="for folders and files, not for digits"):
        open_data(Data(layout="classes"))


def test_class_only_in_test_is_refused(tmp_path: Path) -> None:
    make_folder(tmp_path, {"train/cat": 5, "train/dog": 5, "test/cat": 2, "test/Zebra": 2})
    with pytest.raises(ValueError, match="'Zebra' is in test"):
        open_data(Data(name=str(tmp_path)))


def test_strange_files_and_names(tmp_path: Path) -> None:
    make_folder(tmp_path, {"größe 1": 4, "日本": 4, "empty": 0, "deep/er": 4, ".hidden": 3})
    (tmp_path / "größe 1" / "UPPER.PNG").write_bytes(png(1))
    (tmp_path / "größe 1" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "größe 1" / "notes.txt").write_text("x")
    (tmp_path / "loose.png").write_bytes(png(2))
    (tmp_path / "日本" / "loop").symlink_to(tmp_path)
    (tmp_path / "日本" / "self.png").symlink_to(tmp_path / "日本" / "self.png")
    (tmp_path / "日本" / "gone.jpg").symlink_to(tmp_path / "gone.jpg")
    (tmp_path / "日本" / "linked.png").symlink_to(tmp_path / "loose.png")
    (tmp_path / os.fsdecode(b"bad\xff")).mkdir()
    (tmp_path / os.fsdecode(b"bad\xff") / "0.png").write_bytes(png(3))
    images = open_images(Data(name=str(tmp_path)), "all")
    s = open_data(Data(name=str(tmp_path)))
    assert s.classes == ("bad\ufffd", "deep", "größe 1", "日本")
    assert "größe 1/UPPER.PNG" in list(images.names) and "deep/er/0.png" in list(images.names)
    assert {"日本/gone.jpg", "日本/self.png", "日本/linked.png"} <= set(images.names)
    assert not any("hidden" in n or "loop" in n for n in images.names)
    notes = "\n".join(s.notes)
    assert "2 hidden" in notes and "1 empty class left out: empty" in notes
    assert "left out: 2 files that no class has" in notes
    json.dumps(list(images.names)).encode()
    for i, name in enumerate(images.names):
        if "gone" in name or "self" in name:
            with pytest.raises(ImageError):
                decode(images.source(i), "RGB")
        else:
            decode(images.source(i), "RGB")


def test_files_without_a_suffix_are_read(tmp_path: Path) -> None:
    make_folder(tmp_path, {"a": 4, "b": 4})
    for path in tmp_path.glob("*/*.png"):
        path.rename(path.with_suffix(""))
    (tmp_path / "a" / "LICENSE").write_text("words")
    images = open_images(Data(name=str(tmp_path)), "all")
    assert sorted(images.names) == sorted(f"{c}/{i}" for c in "ab" for i in range(4))
    assert [decode(images.source(i), "RGB").size for i in range(8)] == [(8, 8)] * 8


def test_folder_of_heic_says_so_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    _heic.cache_clear()
    for i in range(24):
        (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
        (tmp_path / "ab"[i % 2] / f"IMG_{i}.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99))
    images = open_images(Data(name=str(tmp_path)), "all")
    assert len(images) == 24
    with pytest.raises(ValueError, match=r"24 of 24 images cannot be read.*IMG_0\.HEIC, .*: a HEIC photo") as e:
        Store(images, Preprocess(image_size=(8, 8)), cache_mib=1, workers=1, max_bad_share=0.25)
    assert len(str(e.value)) < 600


def test_folder_without_classes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected .*/CLASS/image.jpg"):
        open_data(Data(name=str(tmp_path)))
    (tmp_path / "a.png").write_bytes(png(1))
    with pytest.raises(ValueError, match="side by side"):
        open_data(Data(name=str(tmp_path)))
    make_folder(tmp_path, {"only": 5})
    with pytest.raises(ValueError, match="only one class"):
        open_data(Data(name=str(tmp_path)))
    make_folder(tmp_path / "two", {"train/a": 1, "Train/a": 1})
    with pytest.raises(ValueError, match="both"):
        open_data(Data(name=str(tmp_path / "two")))
    write_idx(tmp_path / "idx")
    with pytest.raises(ValueError, match="original files: use mnist or "):
        open_data(Data(name=str(tmp_path / "idx")))


# ---- cutting


@settings(max_examples=80, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=2, max_size=12),
    fraction=st.floats(0.01, 0.9),
    seed=st.integers(0, 2**31),
)
@pytest.mark.parametrize("at_least", [0, 1])
def test_stratified_cut(sizes: list[int], fraction: float, seed: int, at_least: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    keep, cut = stratified_cut(labels, fraction, seed, at_least)
    assert np.array_equal(np.sort(np.concatenate([keep, cut])), np.arange(len(labels)))
    kept, taken = np.bincount(labels[keep], minlength=len(sizes)), np.bincount(labels[cut], minlength=len(sizes))
    assert (kept >= 1).all()
    assert (np.abs(taken - np.array(sizes) * fraction) <= 1 + 1e-9).all()
    assert (taken >= np.minimum(at_least, np.array(sizes) - 1)).all()
    assert len(cut) >= 1 or max(sizes) == 1
    again = stratified_cut(labels, fraction, seed, at_least)
    assert np.array_equal(again[0], keep) and np.array_equal(again[1], cut)
    plain = stratified_cut(labels, fraction, seed)[1]
    assert set(plain.tolist()) <= set(cut.tolist()), "nothing moves from test to train, so older models stay judged"
    if (np.bincount(labels[plain], minlength=len(sizes)) >= np.minimum(at_least, np.array(sizes) - 1)).all():
        assert np.array_equal(plain, cut)


@pytest.mark.parametrize(
    ("seed", "digests"),
    [
        (0, ("3a1cfa125d0a59a5", "a97ebe2b33110337", "3d30407f3ce4a8fa")),
        (7, ("2b6be4f0b357a13c", "57840e4183bc8c80", "e2d66815335f97a9")),
    ],
)
def test_cut_of_the_digits_stays_as_it_was(seed: int, digests: tuple[str, str, str]) -> None:
    s = open_data(Data(split_seed=seed))
    assert s.test is not None and s.doubt == ""
    assert digests == tuple(
        hashlib.sha256("\n".join(images.names).encode()).hexdigest()[:16] for images in (s.train, s.val, s.test)
    )


def test_each_class_that_can_has_an_image_in_val_and_test() -> None:
    labels = np.repeat(np.arange(300), 4)
    left, test = stratified_cut(labels, 0.2, 0, 1)
    train, val = stratified_cut(labels[left], 0.1, 0, 1)
    for part, expected in ((labels[test], 1), (labels[left][val], 1), (labels[left][train], 2)):
        assert (np.bincount(part) == expected).all()
    labels = np.repeat(np.arange(3), (1000, 1000, 3))  # where scikit-learn gives the third class none
    assert np.bincount(labels[stratified_cut(labels, 0.05, 0)[1]], minlength=3).tolist() == [51, 50, 0]
    assert np.bincount(labels[stratified_cut(labels, 0.05, 0, 1)[1]], minlength=3).tolist() == [51, 50, 1]


def test_recipes_of_before_keep_their_cut(tmp_path: Path) -> None:
    make_folder(tmp_path, {"a": 40, "b": 40, "c": 4})
    old = to_json(Data(name=str(tmp_path), val_fraction=0.05))
    del old["min_per_class"]
    before, now = open_data(from_json(Data, old)), open_data(from_json(Data, old | {"min_per_class": 1}))
    assert before.val.counts().tolist() == [2, 2, 0] and now.val.counts().tolist() == [2, 2, 1]
    assert any("1 of each class at least" in n for n in open_data(Data(name=str(tmp_path), val_fraction=0.01)).notes)


def test_validation_that_cannot_judge_says_so(tmp_path: Path) -> None:
    make_folder(tmp_path, {"a": 8, "b": 8})
    s = open_data(Data(name=str(tmp_path)))
    assert len(s.val) == 2 and s.doubt in s.notes
    assert s.doubt.startswith("val: 2 images cannot tell networks apart: an accuracy of 50 % on so few means 9 to 91 %")
    assert open_data(Data(name=str(tmp_path), val_fraction=0.8, test_fraction=0.1)).doubt
    make_folder(tmp_path / "one", {"a": 1, "b": 1})
    assert "training images" in open_data(Data(name=str(tmp_path / "one"))).doubt


def test_classes_of_one_image_do_not_crash(tmp_path: Path) -> None:
    make_folder(tmp_path, {"a": 1, "b": 1})
    s = open_data(Data(name=str(tmp_path)))
    assert len(s.train) == 2 and len(s.val) == 2 and s.test is None and any("train itself" in n for n in s.notes)
    with pytest.raises(ValueError, match="no test images"):
        open_images(Data(name=str(tmp_path)), "test")
    make_folder(tmp_path, {"a": 12, "b": 1, "c": 2})
    s = open_data(Data(name=str(tmp_path)))
    assert set(s.train.labels.tolist()) == {0, 1, 2} and len(s.val) and len(s.test)


def test_subsets_and_slices_are_views() -> None:
    images = open_images(Data(), "all")
    part = images.subset([5, 3, 1]).subset(np.array([2, 0]))
    assert list(part.names) == ["digits[1]", "digits[5]"] and part.labels.tolist() == images.labels[[1, 5]].tolist()
    assert images.names[-1] == "digits[1796]" and list(images.names[1:3]) == ["digits[1]", "digits[2]"]
    with pytest.raises(IndexError):
        images.names[1797]


def test_no_torch_is_imported() -> None:
    code = """
import importlib, pkgutil, sys, mlpmixer.data
for module in pkgutil.walk_packages(mlpmixer.data.__path__, "mlpmixer.data."):
    importlib.import_module(module.name)
assert "mlpmixer.data.streaming.shards" in sys.modules
assert not {"torch", "pyarrow", "datasets", "huggingface_hub", "sklearn"} & set(sys.modules)
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=env)


def test_train_fraction_keeps_val_and_test() -> None:
    whole, tenth, third = (open_data(Data(name="digits", train_fraction=share)) for share in (1.0, 0.1, 0.3))
    assert tenth.test is not None and whole.test is not None
    assert list(tenth.val.names) == list(whole.val.names) and list(tenth.test.names) == list(whole.test.names)
    assert set(tenth.train.names) < set(third.train.names) < set(whole.train.names)
    assert (np.abs(tenth.train.counts() - whole.train.counts() / 10) < 1).all()
    assert any("fraction 0.1" in note for note in tenth.notes)
    with pytest.raises(ValueError, match="leave it at 1"):
        open_streamed(Data(name="shards", stream=True, train_fraction=0.5))
    with pytest.raises(ValueError, match=r"must be in \(0, 1\], got 0"):
        Data(train_fraction=0)
