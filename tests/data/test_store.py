"""Decoded images by index: the same from memory and from files, for any number of threads."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlpmixer.data.image_set import ImageSet, numbered
from mlpmixer.data.preprocess import Preprocess, create_preprocess
from mlpmixer.data.store import Store

PREPROCESS = Preprocess(image_size=(12, 10))


def image_set(folder: Path, n: int = 150, broken: tuple[int, ...] = ()) -> ImageSet:
    paths = []
    for i in range(n):
        buffer = io.BytesIO()
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (10 + i % 7, 15, 3), dtype=np.uint8)).save(
            buffer, "PNG"
        )
        path = folder / f"{i}.png"
        path.write_bytes(buffer.getvalue()[:40] if i in broken else buffer.getvalue())
        paths.append(str(path))
    return ImageSet(("a", "b"), np.arange(n) % 2, numbered("train", n), paths)


def test_memory_and_files_give_the_same_arrays(tmp_path: Path) -> None:
    images = image_set(tmp_path, broken=(0, 64, 149))
    in_memory = Store(images, PREPROCESS, cache_mib=10, workers=3)
    from_files = Store(images, PREPROCESS, cache_mib=0, workers=2)
    picks = np.array([5, 0, 146, 5, 63])
    expected = np.stack([PREPROCESS.array(images.source(int(in_memory.indices[p]))) for p in picks])
    for store in (in_memory, from_files):
        assert len(store) == 147 and store.indices[0] == 1 and store.labels.tolist() == (store.indices % 2).tolist()
        assert [name for name, _ in store.bad] == ["train[0]", "train[64]", "train[149]"] and all(
            r for _, r in store.bad
        )
        assert store.names[0] == "train[1]"
        assert np.array_equal(store.array(picks), expected)
        assert store.array(picks).dtype == np.uint8 and store.array(np.array([], dtype=int)).shape == (0, 12, 10, 3)


def test_too_many_bad_images(tmp_path: Path) -> None:
    images = image_set(tmp_path, 40, broken=tuple(range(20)))
    with pytest.raises(ValueError, match=r"20 of 40 images cannot be read.*train\[0\].*train\[9\][^\[]*$"):
        Store(images, PREPROCESS, cache_mib=1, workers=2, max_bad_share=0.25)
    assert len(Store(images, PREPROCESS, cache_mib=1, workers=2, max_bad_share=0.5)) == 20


def test_image_gone_bad_is_replaced(tmp_path: Path) -> None:
    store = Store(image_set(tmp_path, 20), PREPROCESS, cache_mib=0, workers=2)
    before = store.array(np.arange(20))
    (tmp_path / "6.png").write_bytes(b"")
    (tmp_path / "4.png").unlink()
    after = store.array(np.arange(20))
    assert np.array_equal(after[6], before[8]) and np.array_equal(after[4], before[2])
    assert np.array_equal(np.delete(after, [4, 6], axis=0), np.delete(before, [4, 6], axis=0))
    assert sorted(name for name, _ in store.bad) == ["train[4]", "train[6]"]
    for i in range(20):
        (tmp_path / f"{i}.png").write_bytes(b"")
    with pytest.raises(ValueError, match="no readable image is left"):
        store.array(np.array([0]))


def test_nothing_readable_gives_an_empty_store(tmp_path: Path) -> None:
    store = Store(image_set(tmp_path, 3, broken=(0, 1, 2)), PREPROCESS, cache_mib=1, workers=0)
    assert len(store) == 0 and len(store.bad) == 3 and len(store.labels) == 0


def test_grey_arrays_are_exact() -> None:
    from mlpmixer.data.config import Data
    from mlpmixer.data.datasets import open_images

    images = open_images(Data(), "all")
    store = Store(images, Preprocess(image_size=(8, 8), in_channels=1), cache_mib=1, workers=0)
    assert np.array_equal(store.array(np.array([3]))[0, :, :, 0], np.asarray(images.source(3)))


def test_unrounded_rule_is_stored_as_float(tmp_path: Path) -> None:
    images, rule = image_set(tmp_path, 6), create_preprocess("vit_jax_eval", image_size=(12, 10))
    in_memory, from_files = (Store(images, rule, cache_mib=mib, workers=2) for mib in (1, 0))
    picks = np.array([3, 0])
    expected = np.stack([rule.array(images.source(i)) for i in (3, 0)])
    assert expected.dtype == np.float32 and (expected % 1 != 0).any()
    for store in (in_memory, from_files):
        assert store.array(picks).dtype == np.float32 and np.array_equal(store.array(picks), expected)
