"""A teacher's answers become targets: of a function, of a trained network, or stored."""

import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.training import Stopped, batch_of, stop_at
from torch import Tensor

from mlpmixer.data.config import Data
from mlpmixer.data.datasets import open_images
from mlpmixer.data.store import content_hashes
from mlpmixer.inference.load import load
from mlpmixer.models.names import MIXERS
from mlpmixer.training.augment import prepare_eval
from mlpmixer.training.distillation import (
    FUNCTION,
    StoredLogits,
    make_teacher,
    open_teacher,
    store_teacher,
    stored_teacher,
)
from mlpmixer.training.inputs import load_images
from mlpmixer.training.recipe import Augment, Distill, Init, Optim, Recipe, Run, read_recipe
from mlpmixer.training.run import train
from mlpmixer.training.step import TrainingStep
from mlpmixer.weights import model_file, run_folder
from mlpmixer.weights.load import load_weights

SMALL = dataclasses.replace(MIXERS["Pico/2"], num_blocks=1, hidden_dim=16, tokens_mlp_dim=8, channels_mlp_dim=32)
BASE = Recipe(
    name="test",
    model=SMALL,
    data=Data(name="digits"),
    init=Init(stem="whitened"),
    optim=Optim(name="muon", lr=1e-2, muon_lr=1e-2),
    run=Run(steps=30, batch_size=64, precision="float32", test=False, save_every_s=1e9),
)
DIGITS = tuple("0123456789")
CPU, FLOAT = torch.device("cpu"), torch.float32


@pytest.fixture(scope="module")
def teacher_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(BASE, out=tmp_path_factory.mktemp("runs") / "teacher").path


def distilled(**fields: Any) -> Recipe:
    return dataclasses.replace(BASE, distill=Distill(**fields))


def test_function_teaches_from_augmented_images(tmp_path: Path) -> None:
    asked: list[Tensor] = []

    def always_three(images: Tensor) -> Tensor:
        asked.append(images.clone())
        return torch.nn.functional.one_hot(torch.full((len(images),), 3), 10).float()

    recipe = dataclasses.replace(distilled(alpha=1.0, hard=True), augment=Augment(noise=0.1))
    result = train(recipe, out=tmp_path / "run", teacher=always_three)
    assert len(asked) == 30 and asked[0].shape == (64, 1, 8, 8) and asked[0].max() == 255
    model, images = load(result.path), load_images(recipe.data, recipe.model).val
    assert (model.probabilities(images.array(np.arange(len(images)))).argmax(1) == 3).all()
    stored = read_recipe(result.path)
    assert stored.distill.teacher == FUNCTION
    with pytest.raises(ValueError, match="this run's teacher is a Python function"):
        train(stored, out=tmp_path / "other")


def test_random_function_resumes_bit_for_bit(tmp_path: Path) -> None:
    def moody(images: Tensor) -> Tensor:
        return torch.randn(len(images), 10)

    recipe = distilled(temperature=2.0)
    recipe = dataclasses.replace(recipe, run=dataclasses.replace(recipe.run, steps=5, save_every_s=0))
    whole = train(recipe, out=tmp_path / "whole", teacher=moody).path
    with pytest.raises(Stopped):
        train(recipe, out=tmp_path / "stopped", teacher=moody, report=stop_at(3))
    train(recipe, out=tmp_path / "stopped", teacher=moody, resume=True)
    assert (whole / run_folder.MODEL_FILE).read_bytes() == (tmp_path / "stopped" / run_folder.MODEL_FILE).read_bytes()


@pytest.mark.parametrize("saved", [True, False])
@pytest.mark.parametrize("kind", ["network", "logits", "order"])
def test_run_resumes_without_the_teachers_file(kind: str, saved: bool, teacher_run: Path, tmp_path: Path) -> None:
    if kind == "network":
        teacher = shutil.copy(teacher_run / run_folder.MODEL_FILE, tmp_path / "teacher.safetensors")
    else:
        images, teacher = open_images(BASE.data, "train"), tmp_path / "logits.npz"
        known = {"hashes": content_hashes(images), "classes": images.classes} if kind == "logits" else {}
        np.savez(teacher, logits=np.random.default_rng(0).normal(size=(len(images), 10)), **known)
    recipe = distilled(teacher=str(teacher), temperature=2.0)
    recipe = dataclasses.replace(recipe, run=dataclasses.replace(recipe.run, steps=6, save_every_s=0))
    whole = train(recipe, out=tmp_path / "whole").path

    run = tmp_path / "stopped"
    with pytest.raises(Stopped):
        train(recipe, out=run, report=stop_at(3))
    Path(teacher).unlink()
    if not saved:  # as if it had been killed before the first state
        for state in model_file.states(run):
            state.unlink()
    assert len(list((run / "checkpoints").glob("teacher.*"))) == 1
    train(recipe, out=run, resume=True)
    assert (whole / run_folder.MODEL_FILE).read_bytes() == (run / run_folder.MODEL_FILE).read_bytes()
    assert {path.name for path in (run / "checkpoints").iterdir()} == {
        path.name for path in (whole / "checkpoints").iterdir()
    }
    assert not list((run / "checkpoints").glob("teacher.*")), "a run that is over needs it no more"


def test_old_copy_of_a_teacher_is_not_used(teacher_run: Path, tmp_path: Path) -> None:
    logits = StoredLogits(np.zeros((len(load_images(BASE.data, BASE.model).train), 10), np.float32))
    store_teacher(tmp_path / "run", logits)  # of a run that was killed before it wrote its recipe
    recipe = distilled(teacher=str(teacher_run))
    recipe = dataclasses.replace(recipe, run=dataclasses.replace(recipe.run, steps=2))
    seen: list[Path | None] = []
    train(recipe, out=tmp_path / "run", report=lambda line: seen.append(stored_teacher(tmp_path / "run")))
    assert seen[0] == tmp_path / "run" / "checkpoints" / "teacher.safetensors"


def test_images_that_the_teacher_has_seen_are_told(teacher_run: Path, tmp_path: Path) -> None:
    recipe = dataclasses.replace(distilled(teacher=str(teacher_run)), data=Data(name="digits", split_seed=1))
    recipe = dataclasses.replace(recipe, run=dataclasses.replace(recipe.run, steps=1))
    told = train(recipe, out=tmp_path / "run").summary["notes"]
    (seen,) = (n for n in told if "of its 360 images are among those that the initial weights or the teacher were" in n)
    assert not any("does not say" in note for note in told)
    images, teacher = open_images(recipe.data, "train"), tmp_path / "t.npz"
    of_teacher = content_hashes(open_images(BASE.data, "train"))
    np.savez(teacher, logits=np.zeros((len(images), 10)), hashes=content_hashes(images), trained=of_teacher)
    stored = dataclasses.replace(recipe, distill=Distill(teacher=str(teacher)))
    assert seen in train(stored, out=tmp_path / "stored").summary["notes"]


def test_teachers_without_a_record_are_told(teacher_run: Path) -> None:
    store = load_images(BASE.data, BASE.model).train
    network, meta = load_weights(teacher_run)
    assert meta.splits
    unknown = [
        dataclasses.replace(meta, splits=splits) for splits in (None, dataclasses.replace(meta.splits, shards="1"))
    ]
    for source in [*((network, of) for of in unknown), lambda images: images]:
        teacher = make_teacher(source, Distill(teacher="runs/a"), store, DIGITS, CPU, FLOAT)
        assert teacher.notes[0].startswith("the teacher (runs/a) does not say which images it was trained on: if those")
    assert not make_teacher((network, meta), Distill(teacher="runs/a"), store, DIGITS, CPU, FLOAT).notes


def test_network_answers_in_the_order_of_the_data(teacher_run: Path) -> None:
    store = load_images(BASE.data, BASE.model).train
    pixels = store.array(np.arange(20))
    wanted = load(teacher_run).probabilities(pixels)
    cfg = Distill(teacher=str(teacher_run))
    images = prepare_eval(torch.from_numpy(pixels))
    answer = make_teacher(open_teacher(cfg.teacher), cfg, store, DIGITS, CPU, FLOAT)
    np.testing.assert_allclose(answer.targets(images).numpy(), wanted, atol=1e-6)
    turned = make_teacher(open_teacher(cfg.teacher), cfg, store, DIGITS[::-1], CPU, FLOAT).targets(images)
    np.testing.assert_allclose(turned.numpy(), wanted[:, ::-1], atol=1e-6)
    hard = make_teacher(
        open_teacher(cfg.teacher), dataclasses.replace(cfg, hard=True), store, DIGITS, CPU, FLOAT
    ).targets(images)
    assert torch.equal(hard, torch.nn.functional.one_hot(torch.from_numpy(wanted.argmax(1)), 10).float())
    steps = (
        torch.linspace(0, 255, 8).view(1, 1, 1, 8).expand(1, 1, 8, 8)
    )  # a ramp of 16 px stays a ramp: the teacher sees 8
    ramp = torch.nn.functional.interpolate(steps, (16, 16), mode="bilinear")
    torch.testing.assert_close(answer.targets(ramp), answer.targets(steps), atol=0.05, rtol=0)
    with pytest.raises(ValueError, match="classes of data and model differ"):
        make_teacher(open_teacher(cfg.teacher), cfg, store, DIGITS[:9], CPU, FLOAT)


@pytest.mark.parametrize("file", ["logits.npy", "logits.npz"])
def test_stored_logits_follow_order_and_mixing(file: str, tmp_path: Path) -> None:
    stores = load_images(BASE.data, BASE.model)
    logits = np.where(np.eye(10)[stores.train.labels], 0.0, -np.inf).astype(
        np.float32
    )  # log-probabilities of one who knows the labels
    np.save(tmp_path / file, logits) if file.endswith("npy") else np.savez(tmp_path / file, logits=logits)
    recipe = dataclasses.replace(
        distilled(teacher=str(tmp_path / file), temperature=3.0),
        augment=Augment(mixup=0.5, cutmix=0.5),
        run=dataclasses.replace(BASE.run, batch_size=6),
    )
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, num_classes=10))
    teacher = make_teacher(open_teacher(recipe.distill.teacher), recipe.distill, stores.train, DIGITS, CPU, FLOAT)
    step = TrainingStep(recipe, stores, CPU, FLOAT, None, teacher)
    batch = batch_of(stores.train, 1, np.array([7, 700, 77, 1, 2, 3]))
    _, targets = step.prepare(batch)
    assert targets.shape == (6, 20) and torch.equal(targets[:, :10], targets[:, 10:])
    assert targets.max(1).values.min() < 1, "some are mixed"


def test_stored_logits_count_unreadable_images() -> None:
    store: Any = SimpleNamespace(images=range(5), indices=np.array([0, 2, 4]))
    logits = np.log(np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4], [0.4, 0.6]]))
    cfg = Distill(teacher="logits.npy")
    teacher = make_teacher(StoredLogits(logits), cfg, store, ("a", "b"), CPU, FLOAT)
    torch.testing.assert_close(teacher.targets(np.array([2, 1])), torch.tensor([[0.4, 0.6], [0.7, 0.3]]))
    assert "rows are matched by their order alone" in teacher.notes[0]
    with pytest.raises(ValueError, match=r"shape \(4, 2\); this run has 5 training images"):
        make_teacher(StoredLogits(logits[:4]), cfg, store, ("a", "b"), CPU, FLOAT)
    with pytest.raises(ValueError, match=r"logits.npy has logits of 2 classes; this run has 3"):
        make_teacher(StoredLogits(logits), cfg, store, ("a", "b", "c"), CPU, FLOAT)


def test_stored_logits_are_found_by_content_and_class() -> None:
    hashes, names = np.array([5, 0, 9, 7, 9], np.uint64), list("vwxyz")
    store: Any = SimpleNamespace(images=range(5), hashes=hashes, indices=np.array([0, 2, 3, 4]), names=names)
    rows = {7: [0.7, 0.2, 0.1], 1: [0.4, 0.4, 0.2], 9: [0.1, 0.1, 0.8], 5: [0.5, 0.3, 0.2]}  # 1: of another image
    stored = StoredLogits(np.log(list(rows.values())), np.array(list(rows), np.uint64), np.array(["c", "a", "b"]))
    teacher = make_teacher(stored, Distill(teacher="t.npz"), store, ("a", "b", "c"), CPU, FLOAT)
    wanted = [[rows[n][i] for i in (1, 2, 0)] for n in (5, 9, 7, 9)]
    torch.testing.assert_close(teacher.targets(np.arange(4)), torch.tensor(wanted))
    assert len(teacher.notes) == 1 and "does not say which images it was trained on" in teacher.notes[0]
    assert not make_teacher(
        dataclasses.replace(stored, trained=stored.hashes), Distill(teacher="t.npz"), store, ("a", "b", "c"), CPU, FLOAT
    ).notes
    fewer = dataclasses.replace(stored, hashes=np.array([7, 1, 8, 5], np.uint64))
    with pytest.raises(ValueError, match=r"t.npz has no row for 2 of the 4 training images, such as w: its rows are"):
        make_teacher(fewer, Distill(teacher="t.npz"), store, ("a", "b", "c"), CPU, FLOAT)
    with pytest.raises(ValueError, match=r"classes of data and model differ.*not in the data: 'c'"):
        make_teacher(stored, Distill(teacher="t.npz"), store, ("a", "b", "d"), CPU, FLOAT)


def test_another_split_has_no_stored_logits(tmp_path: Path) -> None:
    images, teacher = open_images(BASE.data, "train"), tmp_path / "t.npz"
    np.savez(teacher, logits=np.zeros((len(images), 10), np.float32), hashes=content_hashes(images))
    recipe = distilled(teacher=str(teacher))
    for change in ({"split_seed": 1}, {"folds": 3, "fold": 2}):
        with pytest.raises(ValueError, match=r"t.npz has no row for \d+ of the [\d,]+ training images, such as"):
            train(dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, **change)), out=tmp_path / "run")
    part = dataclasses.replace(recipe.data, train_fraction=0.5)
    found = train(dataclasses.replace(recipe, data=part, run=Run(steps=1, test=False)), out=tmp_path / "part")
    (note,) = (note for note in found.summary["notes"] if "t.npz" in note)
    assert note.startswith(f"the teacher ({teacher}) does not say which images it was trained on: if those of")


def test_folds_need_hashes(tmp_path: Path) -> None:
    recipe = distilled(teacher=str(tmp_path / "t.npy"))
    recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, folds=3, fold=1))
    np.save(tmp_path / "t.npy", np.zeros((len(open_images(recipe.data, "train")), 10), np.float32))
    with pytest.raises(ValueError, match=r"t.npy holds no hashes of its images, but each fold"):
        train(recipe, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_wrong_teachers_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "labels.npy", np.arange(5))
    with pytest.raises(ValueError, match=r"labels.npy holds int64 of shape \(5,\); expected logits"):
        open_teacher(str(tmp_path / "labels.npy"))
    for wrong, says in (
        ({"hashes": np.arange(5)}, r"hashes in t.npz: expected uint64 of shape \(5,\), got int64 of shape \(5,\)"),
        ({"hashes": np.zeros(4, np.uint64)}, r"hashes in t.npz: expected uint64 of shape \(5,\), got uint64 of"),
        ({"trained": np.zeros((1, 2), np.uint64)}, r"trained in t.npz: expected uint64 of shape \(2,\), got uint64"),
        ({"classes": np.array(["a", "b"])}, r"classes in t.npz: expected text of shape \(3,\), got <U1 of shape"),
    ):
        np.savez(tmp_path / "t.npz", logits=np.zeros((5, 3)), **wrong)
        with monkeypatch.context() as here, pytest.raises(ValueError, match=says):
            here.chdir(tmp_path)
            open_teacher("t.npz")
    for row in ([0.0, np.nan], [np.inf, 0.0], [-np.inf, -np.inf], [1e39, 0.0]):
        np.save(tmp_path / "broken.npy", np.array([[0.0, 1.0], row]))
        with pytest.raises(ValueError, match=r"broken\.npy holds rows without a finite maximum"):
            open_teacher(str(tmp_path / "broken.npy"))
    np.save(tmp_path / "never.npy", np.array([[0.0, -np.inf]]))
    assert isinstance(open_teacher(str(tmp_path / "never.npy")), StoredLogits)
    for damaged in (b"", b"\x93NUMPY\x01", b"\x80\x04."):
        (tmp_path / "damaged.npy").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"damaged\.npy cannot be read as an array of logits: "):
            open_teacher(str(tmp_path / "damaged.npy"))
    for suffix in (".npy", ".npz"):
        with pytest.raises(
            FileNotFoundError, match=r"expected a file of a teacher's logits.* did you mean .*damaged.npy"
        ):
            open_teacher(str(tmp_path / f"damage{suffix}"))
    with pytest.raises(ValueError, match="no/such/run does not exist"):
        train(distilled(teacher="no/such/run"), out=tmp_path / "run")
    with pytest.raises(ValueError, match="two teachers are given"):
        train(distilled(teacher="runs/x"), out=tmp_path / "run", teacher=lambda images: images)
    with pytest.raises(ValueError, match=r"answer has shape \(64, 1, 8, 8\); expected logits \(64, 10\)"):
        train(BASE, out=tmp_path / "run", teacher=lambda images: images)
