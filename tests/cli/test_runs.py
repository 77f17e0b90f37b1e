"""mlpmixer runs: every run has a line, whatever has become of it."""

import json
import shutil
from pathlib import Path

import pytest
from helpers.lines import RunLine

from mlpmixer.config import to_json
from mlpmixer.training.recipe import read_recipe, variant
from mlpmixer.training.recipes import photos
from mlpmixer.weights.run_folder import locked, write_recipe

OLD = Path(__file__).parents[1] / "fixtures" / "version-0.1"


@pytest.fixture
def runs(digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """runs/ with one of each kind."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs"
    shutil.copytree(digits_run, folder / "done")
    shutil.copytree(OLD / "unfinished", folder / "sweep" / "old")
    for name in ("no-recipe", "torn-recipe", "torn-summary", "wrong-summary"):
        shutil.copytree(digits_run, folder / name)
    (folder / "no-recipe" / "recipe.json").unlink()
    (folder / "torn-recipe" / "recipe.json").write_text('{"name": "dig')
    (folder / "torn-summary" / "summary.json").write_text("")
    (folder / "wrong-summary" / "summary.json").write_text('{"steps": 1, "train_s": 2, "val": [], "test": null}')
    shutil.copytree(digits_run, folder / "cv" / "fold-1")
    recipe = variant(read_recipe(digits_run), data={"folds": 5})
    (folder / "cv" / "folds.json").write_text(json.dumps({"recipe": to_json(recipe)}))
    whole = {"top1": 0.5, "deviation": 0.0125, "train_s": 4000.0, "metrics": {"n": 1797}}
    (folder / "whole-cv").mkdir()
    (folder / "whole-cv" / "folds.json").write_text(json.dumps({"recipe": to_json(recipe), "summary": whole}))
    (folder / "empty").mkdir()
    (folder / "photos").mkdir()
    write_recipe(folder / "photos", photos())
    return folder


def test_every_run_has_a_line_that_fits(runs: Path, run: RunLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    (runs / "done").rename(runs / ("a-run-of-a-very-long-name-that-does-not-fit-" + "x" * 60))
    code, out, err = run("runs")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80 and len(out.splitlines()) == 1 + 9
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert "stopped at step 30 of 60" in lines["sweep/old"]
    assert "stopped, 1 of 5 folds done" in lines["cv"]
    assert "Nano/8" in lines["photos"] and "stopped at step 0" in lines["photos"]
    assert "50.00 % +- 1.25, 5 folds" in lines["whole-cv"] and lines["whole-cv"].endswith("67 min")
    for name in ("no-recipe", "torn-recipe", "torn-summary", "wrong-summary"):
        assert "damaged: " in next(line for start, line in lines.items() if name.startswith(start.rstrip("…")))
    [long] = [line for name, line in lines.items() if name.startswith("a-run")]
    assert "of 360" in long and "…" in long


def test_all_that_the_files_say_as_json(runs: Path, run: RunLine, digits_run: Path) -> None:
    found = {Path(row["path"]).name: row for row in json.loads(run("runs", "--json", "--sort", "name")[1])}
    stored = json.loads((digits_run / "summary.json").read_text())
    done = found["done"]
    assert (done["state"], done["split"], done["n"]) == ("finished", "test", 360)
    assert (done["metric"], done["score"]) == ("top1", stored["test"]["top1"]) and done["train_s"] == stored["train_s"]
    assert (done["data"], done["network"], done["step"], done["steps"]) == ("digits", "mixer", 40, 40)
    assert done["started"] == json.loads((digits_run / "env.json").read_text())["date"]
    assert found["torn-recipe"]["problem"].startswith("recipe.json is damaged: ")
    assert found["no-recipe"]["problem"] == "runs/no-recipe is not a run: it has no recipe.json"
    assert found["old"]["state"] == "stopped"


def test_a_run_that_trains_is_running(runs: Path, run: RunLine) -> None:
    for name, where in (("sweep/old", " at step 30 of 60"), ("cv", ", 1 of 5 folds")):
        with locked(runs / name):
            assert f"running{where}" in run("runs")[1]
        assert "running" not in run("runs")[1]


def test_several_labels_an_image_have_mean_average_precision(runs: Path, run: RunLine) -> None:
    whole = {"steps": 9, "train_s": 1.0, "val": {"map": 0.75, "n": 40}, "test": None}
    (runs / "done" / "summary.json").write_text(json.dumps(whole))
    assert "mAP 75.00 % of 40, val" in run("runs", "runs/done")[1]


def test_links_that_lead_back_are_followed_once(runs: Path, run: RunLine) -> None:
    (runs / "sweep" / "back").symlink_to("..")
    (runs / "elsewhere").symlink_to(runs / "sweep" / "old")
    paths = [row["path"] for row in json.loads(run("runs", "--json")[1])]
    assert len(paths) == 9 + 1 and "runs/elsewhere" in paths


def test_files_of_another_shape_are_named(runs: Path, run: RunLine) -> None:
    (runs / "cv" / "folds.json").write_text('{"recipe": {}}')
    (runs / "done" / "recipe.json").write_text('{"data": {"name": 5}, "model": 7, "run": 3}')
    found = {row["path"]: row["problem"] for row in json.loads(run("runs", "--json")[1]) if row["problem"]}
    assert found["runs/cv"].startswith("folds.json is damaged: not what a run writes (KeyError")
    assert found["runs/done"].startswith("recipe.json is damaged: not what a run writes (TypeError")
    assert "damaged: summary.json: " in run("runs")[1]


def test_order(runs: Path, run: RunLine) -> None:
    for name in ("no-recipe", "torn-recipe", "torn-summary", "wrong-summary", "sweep", "cv", "photos"):
        shutil.rmtree(runs / name)
    (runs / "done" / "env.json").write_text('{"date": "2999-01-01T00:00:00+00:00"}')
    for order, last in (("date", "done"), ("name", "whole-cv"), ("time", "whole-cv")):
        assert run("runs", "--sort", order)[1].splitlines()[-1].startswith(last)


def test_a_run_or_a_cross_validation_can_be_named(runs: Path, run: RunLine) -> None:
    assert run("runs", "runs/done")[1].splitlines()[1].startswith("done ")
    assert run("runs", "runs/cv")[1].splitlines()[1].startswith("fold-1 ")
    assert run("runs", "runs/empty")[1] == "no runs in runs/empty\n"
    code, _, err = run("runs", "rnus")
    assert code == 2 and "no folder rnus" in err
