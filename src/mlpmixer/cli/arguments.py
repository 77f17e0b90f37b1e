"""The options of `train` before tyro reads them: short forms, and the recipe that all other options override."""

import dataclasses
import os
import re
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from tyro.conf import FlagCreatePairsOff

from mlpmixer.config import Init, Method, MixerConfig, Recipe

Flag = FlagCreatePairsOff[bool]
SHORT = {
    "epochs": "run.epochs",
    "steps": "run.steps",
    "time": "run.time",
    "batch-size": "run.batch-size",
    "seed": "run.seed",
    "progressive": "run.progressive",
    "device": "run.device",
    "precision": "run.precision",
    "patience": "run.patience",
    "compile": "run.compile",
    "test": "run.test",
    "lr": "optim.lr",
    "image-size": "model.image-size",
    "patch-size": "model.patch-size",
    "in-channels": "model.in-channels",
    "data-dir": "data.data-dir",
    "fit": "data.fit",
    "init": "init.weights",
    "resize": "init.resize",
    "magnified": "init.magnified",
    "teacher": "distill.teacher",
}


SWITCHES = {"--quiet", "--json", "--tensorboard", "-h", "--help"} | {
    f"--{owner}.{no}{name}"
    for owner, name in (
        ("data", "stream"),
        ("augment", "flip"),
        ("augment", "trivialaugment"),
        ("init", "magnified"),
        ("distill", "hard"),
        ("run", "checkpointing"),
        ("run", "compile"),
        ("run", "test"),
    )
    for no in ("", "no-")
}


def start_from(args: Sequence[str]) -> Recipe:
    """The recipe that the options will override, from a first look at the arguments: --recipe, --model, --augreg and DATA."""
    from mlpmixer.recipes import RECIPES, augreg, recipe_for

    data, name, model = first_positional(args), value_of(args, "--recipe"), value_of(args, "--model")
    weights = value_of(args, "--init.weights")
    recipe = RECIPES[name]() if name else recipe_for(data or "digits", kind_of_start(weights, data or "digits"))
    if model:
        from mlpmixer.zoo import MODELS

        recipe = dataclasses.replace(recipe, model=MODELS[model])
    if level := value_of(args, "--augreg"):
        recipe = dataclasses.replace(recipe, augment=augreg(recipe.augment, level))
    if weights:
        trained = architecture_of_weights(weights).adapted(  # with --patch-size alone the image follows, with --resize blocks a width
            image_size=size_of(args, "--model.image-size"),
            patch_size=size_of(args, "--model.patch-size"),
            method=typing.cast(Method, value_of(args, "--init.resize") or "bicubic"),
        )
        recipe = dataclasses.replace(recipe, model=trained, init=Init(weights=weights))
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, name=data or recipe.data.name))


def kind_of_start(weights: str, data: str) -> Literal["scratch", "same data", "other data", "published"]:
    if not weights:
        return "scratch"
    from mlpmixer.weights import trained_on

    before = trained_on(weights)
    return "published" if before is None else "same data" if before == Path(data).name else "other data"


def data_first(args: list[str]) -> list[str]:
    """DATA is taken from wherever it stands, so that an option of one or two values before it does not swallow it."""
    data = first_positional(args)
    if data:
        args.remove(data)
    return [data, *args] if data else args


def with_short(command: type) -> str:
    return f"{command.__doc__}\n\nShort forms of the options below: {', '.join(f'--{s}' for s in SHORT)}."


def long_form(a: str) -> str:
    """--batch_size=3 -> --run.batch-size=3"""
    if not a.startswith("--"):
        return a
    name, eq, value = a[2:].partition("=")
    name = name.replace("_", "-")
    negated = name.startswith("no-") and name[3:] in SHORT
    if negated:
        owner, _, leaf = SHORT[name[3:]].rpartition(".")
        name = f"{owner}.no-{leaf}"
    return "--" + SHORT.get(name, name) + eq + value


def value_of(args: Sequence[str], flag: str) -> str:
    for i, a in enumerate(args):
        if a.startswith(flag + "="):
            return a.partition("=")[2]
        if a == flag and i + 1 < len(args):
            return args[i + 1]
    return ""


def size_of(args: Sequence[str], flag: str) -> int | tuple[int, int] | None:
    """The one or two whole numbers after a flag."""
    found = re.search(rf"{re.escape(flag)}[= ](\d+)(?: (\d+))?(?= |$)", " ".join(args))
    if not found:
        return None
    return (int(found[1]), int(found[2])) if found[2] else int(found[1])


def first_positional(args: Sequence[str]) -> str:
    """The first argument that is no flag, no flag's value and no number (a size or a beta may take two)."""
    before = ""
    for a in args:
        takes_value = before.startswith("--") and "=" not in before and before not in SWITCHES
        if not a.startswith("-") and not takes_value and not re.fullmatch(r"[\d.]+", a):
            return a
        before = a
    return ""


def ranks_here() -> dict[str, int]:
    """The fields of `distributed.Ranks`, as torchrun passes them to each process it starts; none when nobody did."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return {}
    if missing := [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        size = os.environ["WORLD_SIZE"]
        raise ValueError(f"WORLD_SIZE={size}, but {', '.join(missing)} is not set; start several processes with torchrun")
    return {field: int(os.environ[name]) for field, name in (("rank", "RANK"), ("size", "WORLD_SIZE"), ("local_rank", "LOCAL_RANK"))}


def restarts_by_itself() -> bool:
    """Whether torchrun is to start this command again when it fails."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


def whole_numbers(option: str, text: str) -> tuple[int, ...]:
    """1,5,10 -> (1, 5, 10)"""
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise ValueError(f"{option} {text}: expected whole numbers with commas between them, such as {option} 1,5,10,25")
    return tuple(map(int, text.split(",")))


def architecture_of(name: str) -> MixerConfig:
    """Of a model's name, or of whatever holds weights."""
    from mlpmixer.zoo import MODELS, WEIGHTS

    is_weights = name in WEIGHTS or name.startswith("hf:") or (name not in MODELS and Path(name).exists())
    return architecture_of_weights(name) if is_weights else MODELS[name]


def architecture_of_weights(name: str) -> MixerConfig:
    """Without fetching what has a name."""
    from mlpmixer.zoo import WEIGHTS

    if name in WEIGHTS:
        return WEIGHTS[name].config
    from mlpmixer.weights import architecture

    return architecture(name)
