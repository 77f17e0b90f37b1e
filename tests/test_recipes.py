"""Every recipe resolves, is the one that was reviewed, and runs.

After a change on purpose: python tests/test_recipes.py writes the golden files anew.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlpmixer.config import Recipe, from_json, to_json
from mlpmixer.recipes import RECIPES, recipe_for
from mlpmixer.train import train

GOLDEN = Path(__file__).parent / "golden"
NARROW = {"num_blocks": 2, "hidden_dim": 16, "tokens_mlp_dim": 8, "channels_mlp_dim": 32}  # the paper's sizes, made quick to step


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_the_one_that_was_reviewed(name: str) -> None:
    recipe = RECIPES[name]()
    stored = json.loads((GOLDEN / f"{name}.json").read_text())
    assert to_json(recipe) == stored and from_json(Recipe, stored) == recipe and recipe.name == name


def test_there_is_no_golden_file_without_a_recipe() -> None:
    assert {p.stem for p in GOLDEN.iterdir()} == set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_states_its_result(name: str) -> None:
    assert "Result:" in (RECIPES[name].__doc__ or "")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (root / name).mkdir()
        for i in range(20):
            Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(root / name / f"{i}.png")
    return root


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_takes_two_steps(name: str, photos: Path, tmp_path: Path) -> None:
    recipe = RECIPES[name]()
    data = recipe.data if name == "digits" else dataclasses.replace(recipe.data, name=str(photos), val_fraction=0.2)
    run = dataclasses.replace(recipe.run, steps=2, batch_size=8, accumulate=min(recipe.run.accumulate, 8))
    model = recipe.model if recipe.model.hidden_dim < 512 else dataclasses.replace(recipe.model, **NARROW)
    assert train(dataclasses.replace(recipe, model=model, data=data, run=run), out=tmp_path / "run").summary["steps"] == 2


def test_data_without_a_recipe_of_its_own_is_taken_for_photographs() -> None:
    assert recipe_for("some/folder").name == "photos" and recipe_for("some/folder").data.name == "some/folder"
    assert recipe_for("cifar10").name == "cifar10"


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name in RECIPES:
        (GOLDEN / f"{name}.json").write_text(json.dumps(to_json(RECIPES[name]()), indent=2) + "\n")
