"""What the options of a training override: the recipe of the data, another one, a model, trained weights."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from helpers.models import GREY

from mlpmixer import cli
from mlpmixer.cli.recipe_options import INEFFECTIVE
from mlpmixer.cli.train import Train
from mlpmixer.data.config import Data
from mlpmixer.models.names import MODELS
from mlpmixer.training.recipe import Recipe
from mlpmixer.training.recipes import RECIPES
from mlpmixer.weights.model_file import load_model, save_model
from mlpmixer.weights.run_folder import MODEL_FILE


def train(*args: str) -> Recipe:
    command = cli.parse(["train", *args]).make()
    assert isinstance(command, Train)
    return command.config


def test_without_options_the_recipe_is_the_one_of_the_data() -> None:
    assert train("cifar10") == RECIPES["cifar10"]()


def test_options_leave_the_rest_of_the_recipe() -> None:
    base = RECIPES["cifar10"]()
    got = train("cifar10", "--optim.lr", "0.5", "--no-compile")
    assert got == dataclasses.replace(base, optim=dataclasses.replace(base.optim, lr=0.5))


def test_model_by_name() -> None:
    assert train("cifar10", "--model", "S/16").model == MODELS["S/16"]
    larger = dataclasses.replace(MODELS["S/16"], image_size=64)
    assert train("cifar10", "--model", "S/16", "--image-size", "64").model == larger
    for weights in ("digits", "B/16:sam", "mixer_b16_224.miil_in21k"):
        with pytest.raises(ValueError, match=f"{weights} names trained weights; to start from them: --init {weights}"):
            train("cifar10", "--model", weights)


def test_recipe_by_name_on_other_data() -> None:
    got = train("mnist", "--recipe", "cifar10")
    assert (got.name, got.data.name) == ("cifar10", "mnist")


def test_augreg_level_and_an_option_over_it() -> None:
    chosen = train("cifar10", "--augreg", "strong1", "--augment.mixup", "0.1").augment
    assert (chosen.randaugment_magnitude, chosen.mixup, chosen.cutmix, chosen.flip) == (20, 0.1, 0, True)
    with pytest.raises(ValueError, match="no AugReg level named 'strong'; did you mean strong"):
        train("cifar10", "--augreg", "strong")


def test_init_brings_its_architecture_and_a_gentler_recipe(digits_run: Path) -> None:
    recipe = train("digits", "--init", str(digits_run), "--image-size", "16")
    assert recipe.init.weights == str(digits_run) and recipe.name == "retune" and recipe.run.epochs == 25
    assert train("mnist", "--init", str(digits_run), "--image-size", "16").name == "finetune"
    assert recipe.model == dataclasses.replace(GREY, image_size=16)
    named = train("cifar10", "--init=B/16:imagenet21k").model
    assert named == dataclasses.replace(MODELS["B/16"], num_classes=21843)
    assert train("cifar10", "--init=B/16:imagenet21k").name == "finetune-published"
    assert train("cifar10", "--init=B/16:imagenet21k", "--recipe", "cifar10").optim.name == "muon"


def test_data_that_has_only_the_name_of_the_weights_data_is_told(
    digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, meta = load_model(digits_run / MODEL_FILE)
    plain, weights = dataclasses.replace(meta, splits=None, provenance={"data": "plain"}), tmp_path / "w.safetensors"
    save_model(weights, model, dataclasses.replace(plain, data=Data(name=str(tmp_path / "gone/plain"))))
    (tmp_path / "plain").mkdir()
    line = [str(tmp_path / "plain"), "--init", str(weights)]
    assert train(*line).name == "retune"
    told = "was trained on, so the recipe is retune; if it is other data: --recipe finetune"
    assert told in capsys.readouterr().err and train(*line, "--recipe", "finetune").name == "finetune"
    (tmp_path / "gone/plain").mkdir(parents=True)
    assert train(*line).name == "finetune" and not capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ("--patch-size 3", {"patch_size": 3, "image_size": 12}),
        ("--patch-size=4 --resize blocks", {"patch_size": 4, "image_size": 16}),
        ("--model.patch-size 3 2", {"patch_size": (3, 2), "image_size": (12, 8)}),
        ("--patch-size 4 --image-size 8", {"patch_size": 4}),
        ("--image-size 16 8 --resize parts", {"image_size": (16, 8), "parts": (2, 1)}),
        ("--image-size 16 --resize blocks", {"image_size": 16, "tokens_mlp_dim": 4 * GREY.tokens_mlp_dim}),
        ("--in-channels 3", {"in_channels": 3}),
    ],
)
def test_architecture_of_init_follows_the_sizes(options: str, changes: dict[str, Any], digits_run: Path) -> None:
    recipe = train("digits", *options.split(), "--init", str(digits_run))
    assert recipe.model == dataclasses.replace(GREY, **changes)


def test_sizes_of_train_are_those_of_the_run(digits_run: Path, tmp_path: Path) -> None:
    out, sizes = tmp_path / "tuned", ["--patch-size", "4", "--in-channels", "3", "--resize", "bilinear"]
    line = ["train", "digits", "--init", str(digits_run), "--steps", "1", "--out", str(out), "--quiet", *sizes]
    assert cli.main(line) == 0
    tuned = json.loads((out / "recipe.json").read_text())
    assert (tuned["model"]["image_size"], tuned["model"]["in_channels"]) == (16, 3)
    assert tuned["init"]["resize"] == "bilinear"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--model.num-classes 3", "--model.num-classes is not an option here: the classes are those of DATA"),
        ("--model.num_classes=3", "--model.num-classes is not an option here: the classes are those of DATA"),
        ("--steps 10 --epochs 3", "--epochs and --steps each say how long to train: give one of them"),
        ("--time 5m --run.steps 3", "--run.steps and --time each say how long to train"),
        ("--distill.alpha 0.9", "--distill.alpha has no effect without --teacher RUN.FILE: add that, or leave it out"),
        (
            "--recipe photos --optim.name adamw --optim.muon-beta2 0.95",
            "muon-beta2 has no effect without --optim.name muon",
        ),
        ("--optim.momentum 0.8 --optim.name muon", "--optim.momentum has no effect without --optim.name sgd"),
        ("--optim.betas 0.9 0.95 --optim.name sgd", "--optim.betas has no effect without --optim.name adamw or muon"),
        (
            "--optim.lr_end 0.1 --optim.schedule constant",
            "--optim.lr-end has no effect without --optim.schedule cosine",
        ),
        ("--optim.warmup-steps 0 --optim.warmup-from zero", "warmup-from has no effect without --optim.warmup-steps"),
        ("--run.compile-mode max-autotune", "--run.compile-mode has no effect without --compile"),
        ("--augment.mix-probability 0.3", "mix-probability has no effect without --augment.mixup or --augment.cutmix"),
        ("--augment.randaugment-magnitude 5", "magnitude has no effect without --augment.randaugment-layers"),
        (
            "--augment.pad-crop-px 0 --recipe cifar10 --augment.pad-mode constant",
            "pad-mode has no effect without --augment.pad-c",
        ),
    ],
)
def test_option_that_something_overrides_is_refused(options: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train("digits", *options.split())


@pytest.mark.parametrize(
    "options",
    [
        "--optim.name muon --optim.muon-beta2 0.95",
        "--run.compile-mode max-autotune --compile",
        "--augment.mix-probability 0.3 --augment.cutmix 1",
        "--distill.alpha 0.9 --teacher teacher.onnx",
        "--augment.pad-mode constant --augment.zoom-out 0.5",
        "--augreg light1 --augment.randaugment-magnitude 5",
        "--recipe cifar10 --optim.muon-momentum 0.9 --augment.mix-probability 0.5",
    ],
)
def test_option_with_what_gives_it_an_effect_is_taken(options: str) -> None:
    train("digits", *options.split())


def test_options_that_need_another_exist() -> None:
    options = [option for options, _, _ in INEFFECTIVE for option in options.split()]
    assert all(cli.parse(["train", "digits", f"--{option}", "1"]).options[f"--{option}"] for option in options)


def test_run_of_before_goes_on_with_an_option_without_effect(digits_run: Path) -> None:
    line = ["train", "digits", "--recipe", "digits", "--run.compile-mode", "max-autotune", "--out", str(digits_run)]
    assert cli.parse([*line, "--resume"]).make()
    with pytest.raises(ValueError, match="has no effect"):
        cli.parse(line).make()


@pytest.mark.parametrize(
    ("options", "duration"),
    [("--epochs 3", (3.0, 0, "")), ("--time 5m", (10.0, 0, "5m")), ("--steps 7", (10.0, 7, ""))],
)
def test_duration_replaces_that_of_the_recipe(options: str, duration: tuple[float, int, str]) -> None:
    run = train("digits", "--recipe", "finetune-official", *options.split()).run  # which has steps
    assert (run.epochs, run.steps, run.time) == duration


def test_help_has_no_option_that_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "digits", "--help-all"]) == 0
    shown = capsys.readouterr().out
    assert "--model.in-channels" in shown and "num-classes" not in shown
