"""Cross-validation: each image predicted by a network that has not seen it, exact after a kill, wrong labels found."""

import csv
import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.datasets
from helpers.html import Page
from helpers.processes import Forks
from helpers.shared import Once
from helpers.training import assert_same_run
from PIL import Image

from mlpmixer.cli.train import print_folds
from mlpmixer.config import to_json
from mlpmixer.data.config import Data
from mlpmixer.evaluation.evaluate import evaluate
from mlpmixer.inference.load import load
from mlpmixer.models.names import MIXERS
from mlpmixer.training import finish
from mlpmixer.training.cross_validation import cross_validate
from mlpmixer.training.recipe import Optim, Recipe, Run, read_recipe, variant
from mlpmixer.training.run import train
from mlpmixer.weights import run_folder

MODEL = dataclasses.replace(MIXERS["Pico/2"], num_blocks=1, hidden_dim=24)
NUM_IMAGES, NUM_WRONG = 300, 15


def recipe_for(data: Path) -> Recipe:
    return Recipe(
        name="digits",
        model=MODEL,
        data=Data(name=str(data), folds=3),
        optim=Optim(name="muon", lr=5e-3, muon_lr=2e-2, warmup_steps=3),
        run=Run(steps=60, batch_size=32),
    )


@pytest.fixture(scope="session")
def data(once: Once) -> Path:
    """Digits 0 to 3, of which 15 lie in the folder of another one; wrong.json has their names."""

    def make(folder: Path) -> None:
        digits, rng = sklearn.datasets.load_digits(), np.random.default_rng(0)
        few = np.flatnonzero(digits.target < 4)[:NUM_IMAGES].tolist()
        wrong = set(rng.choice(few, NUM_WRONG, replace=False).tolist())
        for i in few:
            label = (int(digits.target[i]) + (int(rng.integers(1, 4)) if i in wrong else 0)) % 4
            path = folder / "images" / str(label) / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((digits.images[i] * 15.9).astype(np.uint8)).save(path)
        (folder / "wrong.json").write_text(json.dumps([f"{i}.png" for i in wrong]))

    return once("noisy-digits", make)


@pytest.fixture(scope="session")
def whole(once: Once, data: Path) -> Path:
    """A finished cross-validation of that data. Read only."""

    def make(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:  # the pages of the folds take longest
            patch.setattr(finish, "write_report", lambda *_: None)
            cross_validate(recipe_for(data / "images"), out=folder)

    return once("cross-validation", make)


def rows_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "out_of_fold.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_image_is_predicted_once_by_the_network_that_left_it_out(whole: Path, data: Path) -> None:
    rows = rows_of(whole)
    assert len({row["name"] for row in rows}) == len(rows) == NUM_IMAGES
    columns = ["name", "label", "label_probability", "prediction", "probability", "fold", "p_0", "p_1", "p_2", "p_3"]
    assert list(rows[0]) == columns
    confidence = [float(row["label_probability"]) for row in rows]
    assert confidence == sorted(confidence)
    for number in (1, 2, 3):
        record = run_folder.read_splits(whole / f"fold-{number}")
        assert record is not None
        left_out = {n for n, part in zip(record.all_names, record.all_parts.tolist(), strict=True) if part == 2}
        assert {row["name"] for row in rows if row["fold"] == str(number)} == left_out
    row = next(row for row in rows if row["fold"] == "2")
    found = dict(load(whole / "fold-2").predict(data / "images" / row["name"])[0].top)
    assert {k: pytest.approx(float(row[f"p_{k}"]), abs=1e-4) for k in found} == found


def test_planted_wrong_labels_are_found(whole: Path, data: Path) -> None:
    wrong = json.loads((data / "wrong.json").read_text())
    names = [Path(row["name"]).name for row in rows_of(whole)]
    assert len(set(wrong) & set(names[: 2 * NUM_WRONG])) >= NUM_WRONG - 3


def test_summary_is_mean_and_deviation_of_the_folds(whole: Path) -> None:
    summary = run_folder.read_cross_validation(whole)["summary"]
    scores = [evaluate(whole / f"fold-{number}").top1 for number in (1, 2, 3)]
    assert [fold["top1"] for fold in summary["per_fold"]] == pytest.approx(scores)
    assert (summary["top1"], summary["deviation"]) == pytest.approx((np.mean(scores), np.std(scores, ddof=1)))
    assert (summary["lowest"], summary["highest"], summary["folds"]) == (min(scores), max(scores), 3)
    rows = rows_of(whole)
    right = sum(row["label"] == row["prediction"] for row in rows)
    assert (summary["metrics"]["n"], summary["metrics"]["top1"]) == (NUM_IMAGES, pytest.approx(right / NUM_IMAGES))
    assert summary["num_wrong"] == NUM_IMAGES - right
    first = [row["name"] for row in rows if row["label"] != row["prediction"]][:40]
    assert [row["name"] for row in summary["suspicious"]] == first


def test_page_links_the_folds_and_shows_the_labels(whole: Path) -> None:
    page = (whole / "report.html").read_text()
    summary = run_folder.read_cross_validation(whole)["summary"]
    Page(page)
    assert all(f'href="fold-{n}/report.html"' in page for n in (1, 2, 3))
    assert page.count("labelled <span") == len(summary["suspicious"]) == page.count("<img")


KILLED = """
    import json, os, signal, sys
    from mlpmixer.config import from_json
    from mlpmixer.training import finish
    from mlpmixer.training.cross_validation import cross_validate
    from mlpmixer.training.recipe import Recipe

    fold = 0
    finish.write_report = lambda *_: None

    def die(event):
        global fold
        fold += event["kind"] == "start"
        if fold == 2 and event["kind"] == "step":
            os.kill(os.getpid(), signal.SIGKILL)

    cross_validate(from_json(Recipe, json.load(sys.stdin)), out=sys.argv[1], report=die)
"""


def test_killed_cross_validation_resumes_bit_for_bit(whole: Path, data: Path, tmp_path: Path, forked: Forks) -> None:
    recipe = recipe_for(data / "images")
    killed = tmp_path / "killed"
    assert forked(KILLED, killed, input=json.dumps(to_json(recipe))).returncode == -signal.SIGKILL
    assert (killed / "fold-1" / "summary.json").exists() and not (killed / "fold-2" / "summary.json").exists()
    with pytest.raises(ValueError, match=r"already holds a run: .* or go on with it"):
        cross_validate(recipe, out=killed)
    with pytest.raises(ValueError, match="already holds a cross-validation"):
        train(variant(recipe, data={"folds": 0}), out=killed, resume=True)
    with pytest.raises(ValueError, match=r"started with another recipe \(data.folds=3, not 4\)"):
        cross_validate(recipe, folds=4, out=killed, resume=True)
    trained: list[str] = []
    cross_validate(
        recipe, out=killed, resume=True, report=lambda e: trained.append(e["out"]) if e["kind"] == "start" else None
    )
    assert trained == [str(killed / "fold-2"), str(killed / "fold-3")], "finished folds are kept"
    for number in (1, 2, 3):
        assert_same_run(whole / f"fold-{number}", killed / f"fold-{number}")
    assert (killed / "out_of_fold.csv").read_bytes() == (whole / "out_of_fold.csv").read_bytes()
    assert not list(killed.rglob(".*"))


def test_batch_size_is_measured_once_for_all_folds(data: Path, tmp_path: Path) -> None:
    recipe = variant(recipe_for(data / "images"), run={"batch_size": "auto", "steps": 2})
    said: list[Any] = []
    folder = cross_validate(recipe, out=tmp_path / "run", report=lambda e: said.append(e.get("what"))).path
    assert sum("by measuring" in str(what) for what in said) == 1
    sizes = [read_recipe(folder / f"fold-{number}").run.batch_size for number in (1, 2, 3)]
    assert sizes == [read_recipe(folder).run.batch_size] * 3 and sizes[0] != "auto"
    assert cross_validate(recipe, out=folder, resume=True).summary["folds"] == 3  # finished


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"folds": 0}}, "needs data.folds"),
        ({"run": {"test": False}}, "leave --no-test out"),
        ({"data": {"folds": 200}}, "needs 200 different images of each class"),
        ({"data": {"name": "s3/{00..11}.tar"}}, "data.folds is for images in files, not for streamed shards"),
        ({"distill": {"teacher": "no/such/run"}}, "no/such/run does not exist"),
    ],
)
def test_what_cannot_be_cross_validated_is_refused_before_anything_is_written(
    changes: dict[str, Any], message: str, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        cross_validate(variant(recipe_for(data / "images"), **changes), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_changed_data_is_refused_in_the_end(tmp_path: Path) -> None:
    for i in range(12):
        path = tmp_path / "data" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 20 * i).save(path)
    recipe = variant(recipe_for(tmp_path / "data"), data={"folds": 2}, run={"steps": 1, "batch_size": 4})

    def change(event: dict[str, Any]) -> None:
        if event.get("what", "").startswith("predicting"):
            os.remove(tmp_path / "data" / "a" / "0.png")

    with pytest.raises(ValueError, match=r"data has changed since .*fold-\d was trained: 1 image of the run missing"):
        cross_validate(recipe, out=tmp_path / "run", report=change)


def test_images_that_the_initial_weights_have_seen_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(24):
        path = tmp_path / "data" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 10 * i).save(path)
    recipe = variant(recipe_for(tmp_path / "data"), data={"folds": 0}, run={"steps": 1, "batch_size": 4, "test": False})
    base = train(recipe, out=tmp_path / "base")
    again = variant(recipe, data={"folds": 2}, init={"weights": str(base.path)}, run={"test": True})
    result = cross_validate(again, out=tmp_path / "run")
    seen = f"test: {base.summary['train_images']} of its 24 images are among those that the initial weights"
    assert result.summary["advice"][-1].startswith(seen)
    assert seen.replace("test", "Test") in (tmp_path / "run" / "report.html").read_text()
    print_folds(result.path, result.summary, again)
    assert f"note    {seen}" in capsys.readouterr().out


def test_test_images_of_the_data_are_left_alone(tmp_path: Path) -> None:
    for i in range(24):
        path = tmp_path / "data" / ("train" if i < 12 else "test") / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 10 * i).save(path)
    recipe = variant(recipe_for(tmp_path / "data"), data={"folds": 2}, run={"steps": 1, "batch_size": 4})
    cross_validate(recipe, out=tmp_path / "run")
    assert {Path(row["name"]).name for row in rows_of(tmp_path / "run")} == {f"{i}.png" for i in range(12)}
