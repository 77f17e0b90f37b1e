"""A model meets its own images again: in any spelling, copied, changed, and among others."""

import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlpmixer.data.config import Data
from mlpmixer.data.datasets import open_data, open_images
from mlpmixer.data.preprocess import Preprocess
from mlpmixer.data.split_record import SplitRecord
from mlpmixer.data.store import content_hashes
from mlpmixer.evaluation.data import open_for
from mlpmixer.evaluation.evaluate import evaluate
from mlpmixer.evaluation.trained_on import was_trained_on
from mlpmixer.exporters.check import sample
from mlpmixer.exporters.int8 import images_for
from mlpmixer.inference.classifier import Classifier
from mlpmixer.models.configs import MixerConfig
from mlpmixer.weights.model_file import ModelMeta, public

CLASSES = ("bright", "dark")
LAYOUT = Data(name="shades", split_seed=7)


def write_shades(folder: Path, start: int = 0, count: int = 20) -> Path:
    """`count` images of each class, no two the same; another start gives others."""
    for name, level in (("dark", 10), ("bright", 200)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = np.full((4, 4), level, np.uint8)
            pixels[0, 0], pixels[0, 1] = start + i, i
            Image.fromarray(pixels).save(folder / name / f"{start + i}.png")
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_shades(tmp_path / "shades")
    return tmp_path


def model_of(data: Data = LAYOUT, *, recorded: bool = True) -> Classifier:
    """A model of brightness that knows which images of `data` it was trained on; half of its answers are wrong."""
    found = open_data(data)
    parts = {"train": found.train, "val": found.val, "test": found.test, "unused": found.unused}
    splits = SplitRecord.of({part: (images.names, content_hashes(images)) for part, images in parts.items() if images})
    preprocess = Preprocess(image_size=(4, 4), in_channels=1, mean=(0.5,), std=(0.5,))
    config = MixerConfig(patch_size=2, image_size=4, in_channels=1, num_classes=2, num_blocks=1, hidden_dim=4)
    config = dataclasses.replace(config, tokens_mlp_dim=4, channels_mlp_dim=4)
    meta = ModelMeta(
        config=config, classes=CLASSES, preprocess=preprocess, data=data, splits=splits if recorded else None
    )

    def logits(x: np.ndarray) -> np.ndarray:
        level = np.round((x[:, 0, 0, 1] + 1) * 127.5)  # the number of the image
        return np.stack([x[:, 0, 3, 3], np.where(level % 2 > 0.5, 1, -x[:, 0, 3, 3])], axis=1).astype(np.float32)

    return Classifier(classes=CLASSES, preprocess=preprocess, logits=logits, pre_logits=logits, meta=meta)


def names(model: Classifier, data: str | None, split: str | None = None) -> list[str]:
    return sorted(map(str, open_for(model, data).choose(split).images.names))


@pytest.mark.parametrize("spelling", ["shades/", "./shades", "{here}/shades", "shades/../shades", "link", "copy", "~x"])
def test_own_data_in_any_spelling_gives_the_runs_own_numbers(spelling: str, here: Path) -> None:
    model = model_of()
    own = evaluate(model)
    os.symlink(here / "shades", here / "link")
    shutil.copytree(here / "shades", here / "copy")
    shutil.copytree(here / "shades", here / "~x")
    metrics = evaluate(model, spelling.format(here=here))
    assert (metrics.n, metrics.trained_on, own.trained_on) == (8, 0, 0) and metrics.scored.of == 40
    assert dataclasses.replace(metrics, scored=None) == dataclasses.replace(own, scored=None)


def test_an_export_knows_its_images_without_names(here: Path) -> None:
    model = model_of()
    own = names(model, None)
    assert model.meta and own == sorted(map(str, open_data(LAYOUT).test.names))  # type: ignore[union-attr]
    model.meta = public(model.meta)
    assert model.meta.splits and not model.meta.splits.names and model.meta.data is None
    shutil.move(here / "shades", here / "moved")
    assert names(model, "moved") == own


def test_other_fractions_and_seeds_do_not_cut_again(here: Path) -> None:
    model = model_of()
    other = Data(name="shades", split_seed=1, test_fraction=0.5)
    assert sorted(map(str, open_for(model, other).choose().images.names)) == names(model, None)


def test_parquet_of_the_same_rows_is_the_same_data(here: Path) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    files = sorted((here / "shades").glob("*/*.png"), reverse=True)
    rows = {"image": [{"bytes": f.read_bytes()} for f in files], "label": [f.parent.name for f in files]}
    parquet.write_table(pa.table(rows), here / "rows.parquet")
    metrics, own = evaluate(model_of(), "rows.parquet"), evaluate(model_of())
    assert (metrics.n, metrics.top1, metrics.trained_on) == (own.n, own.top1, 0)
    assert metrics.nll == pytest.approx(own.nll, rel=1e-12)


def test_changed_new_and_missing_images_are_named_and_not_scored(here: Path) -> None:
    model = model_of()
    own = names(model, None)
    Image.new("L", (4, 4), 77).save(here / "shades" / own[0])
    Image.new("L", (4, 4), 78).save(here / "shades/dark/new.png")
    (here / "shades" / own[1]).unlink()
    chosen = open_for(model, "shades/").choose()
    assert sorted(map(str, chosen.images.names)) == own[2:]
    assert chosen.scored.notes == (
        f"1 image changed since the training, and in no split: {own[0]}",
        "1 image came after the training, and in no split: dark/new.png",
        f"1 image of the run missing: {own[1]}",
    )
    assert len(names(model, "shades", "all")) == 40


def test_data_of_the_same_name_elsewhere_is_known_by_its_images(here: Path) -> None:
    meta = model_of().meta
    assert meta
    meta = dataclasses.replace(meta, provenance={"data": "shades"})
    write_shades(here / "others/shades", start=100)
    shutil.copytree(here / "shades", here / "copy/shades")
    os.symlink(here / "shades", here / "link")
    unsaid, before = dataclasses.replace(meta, data=None), dataclasses.replace(meta, splits=None)
    nameless = dataclasses.replace(unsaid, splits=None)

    def trained_on(name: str) -> list[bool | None]:
        return [was_trained_on(one, Data(name=name)) for one in (meta, unsaid, before, nameless)]

    assert trained_on("./shades/") == [True, True, True, None] and trained_on("link") == [True, True, True, None]
    assert trained_on("others/shades") == [False, False, False, None]
    assert trained_on("copy/shades") == [True, True, False, None]
    assert trained_on("digits") == [False] * 4
    (here / "shades").rename(here / "gone")
    assert trained_on("copy/shades") == [True, True, None, None]
    hub = dataclasses.replace(before, data=Data(name="hf:one/shades"))
    assert was_trained_on(hub, Data(name="hf:one/shades")) and was_trained_on(hub, Data(name="hf:two/shades")) is False


def test_val_is_test_of_data_that_no_run_split_scores_val(here: Path) -> None:
    write_shades(here / "other/train", start=100, count=5)
    write_shades(here / "other/val", start=120, count=3)
    of_another_run, foreign, data = model_of(), model_of(), Data(name="other", val_is_test=True)
    foreign.meta = None
    for model, trained_on in ((of_another_run, 0), (foreign, None)):
        metrics = evaluate(model, data)
        assert (metrics.n, metrics.trained_on) == (6, trained_on)
        assert str(metrics.scored) == "6 of 16 images of other: test, as the data is split, whose val is test " + (
            "(data.val_is_test)"
        )
        splits = open_for(model, data).splits()
        assert splits.test and sorted(map(str, splits.test.names)) == sorted(
            map(str, open_for(model, data).choose().images.names)
        )
    write_shades(here / "alone/val", start=130, count=2)
    alone = dataclasses.replace(data, name="alone")
    assert evaluate(foreign, alone).n == len(open_images(alone, "test")) == 4
    write_shades(here / "other/test", start=140, count=1)
    with pytest.raises(ValueError, match="val_is_test is for data with val and without test; other has train, val"):
        evaluate(foreign, data)


def test_foreign_plain_data_is_scored_whole(here: Path) -> None:
    model = model_of()
    write_shades(here / "other", start=100, count=5)
    metrics = evaluate(model, "other")
    assert (metrics.n, metrics.trained_on, metrics.unseen) == (10, 0, None)
    assert str(metrics.scored) == "10 of 10 images of other: every image"
    with pytest.raises(ValueError, match="other has no test images and no other splits: leave --split out"):
        evaluate(model, "other", split="test")


def test_foreign_test_split_with_training_images_says_how_many(here: Path) -> None:
    model = model_of()
    trained = names(model, None, "train")[:3]
    write_shades(here / "other/test", start=100, count=5)
    write_shades(here / "other/train", start=120, count=9)
    for name in trained:
        shutil.copy(here / "shades" / name, here / "other/test" / name)
    metrics = evaluate(model, "other")
    assert (metrics.n, metrics.trained_on, metrics.unseen.n) == (13, 3, 10)  # type: ignore[union-attr]
    assert metrics.unseen and metrics.unseen.top1 == 0.8  # bright ones with odd numbers are wrong
    assert "trained on 3 of these 13 images" in metrics.leak
    assert str(metrics.scored) == "13 of 31 images of other: test, as the data is split"
    assert len(sample(open_for(model, "other"), 13).images) == 13 and sample(open_for(model, "other"), 13).n_test == 10


def test_copies_of_training_images_alone_are_all_known(here: Path) -> None:
    model = model_of()
    for name in names(model, None, "train"):
        (here / "copies" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(here / "shades" / name, here / "copies" / name)
    metrics = evaluate(model, "copies")
    assert metrics.trained_on == metrics.n == 28 and metrics.unseen is None and "all 28" in metrics.leak
    with pytest.raises(ValueError, match="trained on all 28 of these images of copies"):
        sample(open_for(model, "copies"), 10)


def test_new_test_folder_beside_the_training_folder_is_scored(here: Path) -> None:
    (here / "all").mkdir()
    shutil.move(here / "shades", here / "all/train")
    write_shades(here / "all/test", start=100, count=3)
    model = model_of(Data(name="all/train"))
    assert names(model, "all") == sorted(f"test/{c}/{i}.png" for c in CLASSES for i in (100, 101, 102))
    assert len(names(model, "all/train")) == 8  # the run's own


def test_data_with_a_test_split_of_its_own_has_not_changed(here: Path) -> None:
    write_shades(here / "own/test", start=100, count=4)
    shutil.move(here / "shades", here / "own/train")
    data = Data(name="own", train_fraction=0.5)
    model = model_of(data)
    chosen = open_for(model, "own/").choose()
    assert chosen.scored.notes == () and (chosen.scored.n, chosen.scored.of) == (8, 48)
    assert open_for(model, "own/").splits().notes == ()  # images that train_fraction leaves out are not new
    assert sorted(map(str, open_for(model, None).splits().val.names)) == sorted(map(str, open_data(data).val.names))


def test_images_sorted_into_folders_anew_keep_the_runs_cut(here: Path) -> None:
    model = model_of()
    own = {Path(name).name + Path(name).parent.name for name in names(model, None)}
    for i, file in enumerate(sorted((here / "shades").glob("*/*.png"))):
        to = here / "sorted" / ("test" if i % 4 == 0 else "train") / file.parent.name
        to.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, to)
    chosen = open_for(model, "sorted").choose()
    assert {Path(str(n)).name + Path(str(n)).parent.name for n in chosen.images.names} == own
    assert "split it otherwise than the run did" in chosen.scored.notes[0]


def test_val_that_was_test_has_not_changed(here: Path) -> None:
    shutil.move(here / "shades", here / "own/train")
    write_shades(here / "own/val", start=100, count=5)
    model, export = (model_of(Data(name="own", val_is_test=True)) for _ in range(2))
    shutil.copytree(here / "own", here / "copy")
    export.meta = public(export.meta)  # type: ignore[arg-type]
    for one, asked in ((model, None), (model, "./own"), (model, "copy"), (export, "own")):
        chosen = open_for(one, asked).choose()
        assert (chosen.scored.n, chosen.scored.notes) == (10, ())
    for moved, to in (("copy/val/dark/100.png", "copy/train/dark"), ("own/train/dark/3.png", "own/val/dark")):
        shutil.move(here / moved, here / to)
        for one in (model, export):
            (note,) = open_for(one, moved.split("/")[0]).choose().scored.notes
            assert "split it otherwise than the run did" in note


def test_replaced_data_is_refused(here: Path) -> None:
    model = model_of()
    shutil.rmtree(here / "shades")
    write_shades(here / "shades", start=100)
    for asked in (None, "./shades"):
        with pytest.raises(ValueError, match="shades is no longer what the run was trained on: it holds 0 of the 12"):
            evaluate(model, asked)
    assert evaluate(model, split="all").n == 40


def test_model_without_a_record_is_cut_again_by_its_settings(here: Path) -> None:
    model = model_of(recorded=False)
    expected = names(model_of(), None)
    for asked in (None, "shades", "shades/", str(here / "shades")):
        assert names(model, asked) == expected
    assert "cut again" in str(evaluate(model, "./shades").scored)
    write_shades(here / "other", start=100, count=5)
    assert (evaluate(model, "other").n, evaluate(model, "other").trained_on) == (10, None)


def test_test_folder_may_lack_classes(here: Path) -> None:
    model = model_of()
    write_shades(here / "other/test", start=100, count=5)
    shutil.rmtree(here / "other/test/dark")
    (here / "other/test/dark").mkdir()
    for split in (None, "test"):
        metrics = evaluate(model, "other", split=split)
        assert [c.support for c in metrics.per_class] == [5, 0] and metrics.n == 5
    (here / "other/test/dark").rmdir()
    assert evaluate(model, "other").n == 5
    (here / "other/test/grey").mkdir()
    assert evaluate(model, "other").n == 5  # an empty folder is no class
    Image.new("L", (4, 4)).save(here / "other/test/grey/0.png")
    with pytest.raises(ValueError, match="not in the model: 'grey'"):
        evaluate(model, "other")


def test_int8_is_judged_on_images_that_were_not_trained_on(here: Path) -> None:
    model = model_of()
    given = images_for(model, open_for(model, "shades/"))
    assert len(given.train) == 28 and sorted(map(str, given.val.names)) == names(model, None, "val")
    for name in names(model, None, "train"):
        (here / "other/val" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(here / "shades" / name, here / "other/val" / name)
    write_shades(here / "other/val", start=100, count=2)
    write_shades(here / "other/train", start=120, count=2)
    assert len(images_for(model, open_for(model, "other")).val) == 4


def test_data_without_a_test_split_names_what_it_has(here: Path) -> None:
    model = model_of()
    write_shades(here / "other/train", start=100, count=2)
    write_shades(here / "other/val", start=120, count=2)
    with pytest.raises(ValueError, match="other has no test images, only train and val: choose with --split"):
        evaluate(model, "other")
    assert evaluate(model, "other", split="val").n == 4
