"""What the README says is so: its commands parse, its table is the stored results."""

import dataclasses
import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from mlpmixer import cli
from mlpmixer.data.preprocess import Preprocess
from mlpmixer.models.architecture import create_model
from mlpmixer.training import recipes
from mlpmixer.weights import model_file, run_folder

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = sorted(
    {
        line.split("  #")[0].strip()
        for line in re.findall(r"^mlpmixer .*$", README, re.M) + re.findall(r"`(mlpmixer [^`]+)`", README)
    }
)


def collect() -> object:
    spec = importlib.util.spec_from_file_location("collect", ROOT / "results" / "collect.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_table_equals_stored_results() -> None:
    assert collect().readme_with_table(README) == README  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", COMMANDS)
def test_command_parses(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "runs" / "photos").mkdir(parents=True)
    recipe = recipes.photos()
    run_folder.write_recipe(tmp_path / "runs" / "photos", recipe)
    cfg = dataclasses.replace(recipe.model, num_classes=2)
    meta = model_file.ModelMeta(config=cfg, classes=("a", "b"), preprocess=Preprocess(image_size=(64, 64)))
    model_file.save_model(tmp_path / "runs" / "other" / run_folder.MODEL_FILE, create_model(cfg), meta)
    words = [word for word in shlex.split(command)[1:] if word != "--help"]
    if words != ["train"]:  # the help of a command that needs arguments
        cli.parse(words).make()


def test_readme_shows_commands() -> None:
    assert len(COMMANDS) >= 10
