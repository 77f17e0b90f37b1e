"""Every recipe resolves, equals its golden file, and runs.

After an intended change: python tests/training/test_recipes.py writes the golden files again.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlpmixer.config import from_json, to_json
from mlpmixer.training.recipe import Recipe
from mlpmixer.training.recipes import AUGREG, RECIPES, augreg, bit_hyperrule, grid, recipe_for
from mlpmixer.training.run import train

GOLDEN = Path(__file__).parents[1] / "golden"
NARROW = {"num_blocks": 2, "hidden_dim": 16, "tokens_mlp_dim": 8, "channels_mlp_dim": 32}  # quick to step


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_equals_its_golden_file(name: str) -> None:
    recipe = RECIPES[name]()
    stored = json.loads((GOLDEN / f"{name}.json").read_text())
    assert to_json(recipe) == stored and from_json(Recipe, stored) == recipe and recipe.name == name


def test_no_golden_file_without_recipe() -> None:
    assert {p.stem for p in GOLDEN.iterdir()} == set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_states_its_result_or_that_it_was_not_run(name: str) -> None:
    claim = " ".join((RECIPES[name].__doc__ or "").split())
    assert ("Result:" in claim) != ("not run here." in claim)


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
def test_recipe_takes_two_steps(name: str, photos: Path, tmp_path: Path) -> None:
    recipe = RECIPES[name]()
    data = (
        recipe.data
        if name == "digits"
        else dataclasses.replace(recipe.data, name=str(photos), val_fraction=0.2, val_is_test=False)
    )
    run = dataclasses.replace(recipe.run, steps=2, batch_size=8, accumulate=min(recipe.run.accumulate, 8))
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, **NARROW), data=data, run=run)
    assert train(recipe, out=tmp_path / "run").summary["steps"] == 2


@pytest.mark.parametrize(
    ("data", "recipe"),
    [("cifar10", "cifar10"), ("cifar100", "cifar10"), ("kmnist", "mnist"), ("some/folder", "photos")],
)
def test_data_gets_its_own_recipe_or_that_of_similar_images(data: str, recipe: str) -> None:
    assert (recipe_for(data).name, recipe_for(data).data.name) == (recipe, data)


def test_trained_weights_get_a_quarter_of_the_epochs() -> None:
    scratch, again, other, published = (
        recipe_for("cifar10", s) for s in ("scratch", "same data", "other data", "published")
    )  # type: ignore[arg-type]
    for tuned in (again, other, published):
        assert (
            tuned.run.epochs == scratch.run.epochs / 4
            and tuned.augment == scratch.augment
            and tuned.data == scratch.data
        )
        assert tuned.init.stem == "lecun"
    assert (again.name, other.name, published.name) == ("retune", "finetune", "finetune-published")
    assert again.optim.name == other.optim.name == "muon" and again.optim.muon_lr < other.optim.muon_lr
    official = RECIPES["finetune-official"]()
    assert (published.optim.name, published.optim.clip_norm) == ("sgd", 1.0)
    assert published.optim.lr / published.run.batch_size == official.optim.lr / official.run.batch_size


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("finetune-official", [0.003, 0.01, 0.03, 0.06]),
        ("finetune-flowers", [0.003, 0.01, 0.03, 0.06]),
        ("finetune-imagenet", [0.003, 0.01, 0.03, 0.06]),
        ("finetune-vtab1k", [0.003, 0.01, 0.03]),
    ],
)
def test_grid_changes_the_rate_alone_without_test(name: str, rates: list[float]) -> None:
    runs = grid(name)
    assert [r.optim.lr for r in runs] == rates and not any(r.run.test for r in runs)
    assert runs[0].name == f"{name}-lr0.003" and len({r.name for r in runs}) == len(runs)
    base = RECIPES[name]()
    for r in runs:
        optim = dataclasses.replace(r.optim, lr=base.optim.lr)
        assert dataclasses.replace(r, name=name, optim=optim, run=base.run) == base


def test_unknown_grid_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="finetune-official"):
        grid("finetune-oficial")


def test_augreg_level_sets_randaugment_and_mixing_only() -> None:
    base = RECIPES["cifar10"]().augment
    medium = augreg(base, "medium1")
    assert (medium.randaugment_layers, medium.randaugment_magnitude, medium.randaugment_form) == (2, 15, "big_vision")
    assert (medium.mixup, medium.cutmix, medium.mix_probability) == (0.2, 0, 1)
    assert (medium.pad_crop_px, medium.flip) == (4, True)
    none = augreg(medium, "none")
    assert none.randaugment_layers == none.mixup == 0 and none.flip
    with pytest.raises(ValueError, match="did you mean medium"):
        augreg(base, "medium")
    assert list(AUGREG) == ["none", "light1", "light2", "medium1", "medium2", "strong1", "strong2"]


@pytest.mark.parametrize(
    ("name", "magnitude", "mixup", "images"),
    [("pretrain-imagenet1k", 15, 0.5, 1_268_355), ("pretrain-imagenet21k", 10, 0.2, 14_145_922)],
)
def test_pretraining_is_the_papers_table_4(name: str, magnitude: int, mixup: float, images: int) -> None:
    recipe = RECIPES[name]()
    assert (recipe.model.num_blocks, recipe.model.hidden_dim) == (12, 768)
    assert (recipe.optim.lr, recipe.optim.weight_decay, recipe.model.drop_path) == (1e-3, 0.1, 0.1)
    augment = recipe.augment
    assert (augment.randaugment_layers, augment.randaugment_magnitude, augment.mixup) == (2, magnitude, mixup)
    assert recipe.run.steps == round(300 * images / recipe.run.batch_size)


@pytest.mark.parametrize(
    ("num_images", "area", "steps", "warmup_steps", "mixup", "image_size"),
    [
        (1_000, 32 * 32, 500, 100, 0.0, 224),
        (19_999, 96 * 96, 500, 100, 0.0, 448),
        (20_000, 95 * 96, 10_000, 500, 0.1, 224),
        (500_000, 500 * 375, 20_000, 500, 0.1, 448),
    ],
)
def test_bit_hyperrule_at_its_limits(
    num_images: int, area: int, steps: int, warmup_steps: int, mixup: float, image_size: int
) -> None:
    recipe = bit_hyperrule(num_images, area)
    got = (recipe.run.steps, recipe.optim.warmup_steps, recipe.augment.mixup, recipe.model.image_size, recipe.optim.lr)
    assert got == (steps, warmup_steps, mixup, image_size, 0.003)


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name in RECIPES:
        (GOLDEN / f"{name}.json").write_text(json.dumps(to_json(RECIPES[name]()), indent=2) + "\n")
