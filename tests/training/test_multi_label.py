"""Training on images that have several classes, or none."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.multi_label import write_squares
from helpers.training import Stopped, lines, stop_at

from mlpmixer import load
from mlpmixer.data.config import Data
from mlpmixer.evaluation.evaluate import evaluate
from mlpmixer.training import inputs
from mlpmixer.training.augment import mix
from mlpmixer.training.loss import soft_targets, training_loss
from mlpmixer.training.recipe import Augment, Distill, Optim, read_recipe, variant
from mlpmixer.training.run import train
from mlpmixer.weights.model_file import read_meta
from mlpmixer.weights.run_folder import read_metrics, read_summary


def test_the_run_is_judged_by_average_precision(squares_run: Path) -> None:
    summary = read_summary(squares_run)
    assert summary and summary["map"] > 0.9 and summary["val_map"] > 0.9 and "top1" not in summary
    assert summary["map"] == summary["test"]["map"] and 0 < summary["test"]["threshold"] < 1
    log = read_metrics(squares_run / "metrics.jsonl")
    assert not any("top1" in line for line in log)
    evaluations = [line for line in log if line["kind"] == "eval"]
    assert all({"map", "train_map", "nll", "train_nll"} <= line.keys() for line in evaluations)
    assert any("sigmoid loss, as an image may have several classes" in note for note in summary["notes"])
    assert read_recipe(squares_run).optim.loss == "sigmoid"
    meta = read_meta(squares_run / "model.safetensors")
    assert meta.threshold == summary["test"]["threshold"] and meta.provenance["loss"] == "sigmoid"
    model = load(squares_run)
    assert model.multi_label and model.threshold == meta.threshold
    assert evaluate(model).to_json()["map"] == summary["map"]
    model.threshold = 0.9
    assert evaluate(model).to_json()["threshold"] == 0.9
    page = (squares_run / "report.html").read_text()
    assert "mean average precision" in page.lower() and "top-1" not in page.lower()


def test_sigmoid_with_one_class_an_image_stays_what_it_is(tmp_path: Path, squares_run: Path) -> None:
    recipe = variant(read_recipe(squares_run), data=Data(name="digits"), model={"in_channels": 1}, run={"steps": 2})
    train(recipe, out=tmp_path / "run")
    model, summary = load(tmp_path / "run"), read_summary(tmp_path / "run")
    assert model.sigmoid and not model.multi_label and summary and "top1" in summary and "map" not in summary


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optim": {"loss": "softmax"}}, "optim.loss=softmax makes the classes exclude each other"),
        ({"data": {"class_weights": "balanced"}}, "weights each image by its class"),
        ({"distill": Distill(teacher="x.npy")}, "distill.teacher is for images of one class each"),
    ],
)
def test_what_needs_one_class_is_refused(squares_run: Path, tmp_path: Path, change: dict, message: str) -> None:
    np.save(tmp_path / "x.npy", np.zeros((1, 1), np.float32))
    if "distill" in change:
        change = {"distill": {"teacher": str(tmp_path / "x.npy")}}
    with pytest.raises(ValueError, match=message):
        train(variant(read_recipe(squares_run), **change), out=tmp_path / "run")


def test_a_killed_run_resumes_to_the_same_bits(tmp_path: Path, squares_run: Path) -> None:
    recipe = variant(
        read_recipe(squares_run),
        data={"name": str(write_squares(tmp_path / "images", 60))},
        augment=Augment(flip=True, mixup=0.2, cutmix=0.5),
        optim={"ema_decay": 0.5, "label_smoothing": 0.1, "loss": "auto"},
        run={"steps": 6, "save_every_s": 0.0, "keep": "best", "batch_size": 16},
    )
    train(recipe, out=tmp_path / "a")
    with pytest.raises(Stopped):
        train(recipe, out=tmp_path / "b", report=stop_at(3))
    train(recipe, out=tmp_path / "b", resume=True)
    assert lines(tmp_path / "a", "eval", "map") == lines(tmp_path / "b", "eval", "map")
    with pytest.raises(ValueError, match="another recipe"):
        train(variant(recipe, optim={"lr": 1.0}), out=tmp_path / "b", resume=True)


def test_targets_and_loss_are_those_of_torch() -> None:
    labels = torch.tensor([[True, False, True], [False, False, False]])
    targets, logits = soft_targets(labels, 3), torch.tensor([[2.0, -1.0, 0.5], [0.3, -0.2, 9.0]])
    assert targets.tolist() == [[1, 0, 1], [0, 0, 0]]
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(1)
    assert torch.allclose(training_loss(logits, targets, Optim(loss="sigmoid"), Distill()), wanted)
    images = torch.rand(2, 3, 4, 4) * 255
    _, mixed = mix(images, targets, Augment(mixup=1.0), torch.Generator().manual_seed(0))
    assert ((mixed >= 0) & (mixed <= 1)).all() and (mixed[:, 1] == 0).all()


@pytest.mark.parametrize("split", ["val", "test"])
def test_splits_without_any_class_are_refused_before_the_training(
    squares_run: Path, tmp_path: Path, split: str
) -> None:
    table = write_squares(tmp_path / "squares", 40)
    title, *rows = table.read_text().splitlines()
    named = [(row, ("train", "val", "test")[min(i % 6, 2)]) for i, row in enumerate(rows)]
    lines = [f"{row.split(',')[0]},{'' if of == split else row.split(',')[1]},{of}" for row, of in named]
    table.write_text("\n".join([f"{title},split", *lines]))
    recipe = variant(read_recipe(squares_run), data=Data(name=str(table)), run={"steps": 2})
    with pytest.raises(ValueError, match=f"images of the {split} split has a class, but mean average precision needs"):
        train(recipe, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    if split == "test":
        train(variant(recipe, run={"test": False}), out=tmp_path / "run")


def test_the_sample_of_training_images_has_one_with_a_class(
    squares_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "SCORED", 2)
    table = write_squares(tmp_path / "squares", 30)
    title, *rows = table.read_text().splitlines()
    few = [row if i % 5 == 2 else f"{row.split(',')[0]}," for i, row in enumerate(rows)]
    table.write_text("\n".join([title, *few]))
    recipe = variant(read_recipe(squares_run), data=Data(name=str(table), multi_label="yes"), run={"steps": 2})
    stores = inputs.load_images(recipe.data, recipe.model)
    assert not stores.train.images.labels[stores.train.indices[[0, -1]]].any(), "or the test says nothing"
    assert len(stores.train_sample) == 2 and stores.train_sample.labels.any()
    assert len(train(recipe, out=tmp_path / "run").summary) > 0
