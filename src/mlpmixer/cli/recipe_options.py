"""The options of commands that start from a recipe: train, lr-find and data preview."""

import dataclasses
import os
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from mlpmixer.cli.arguments import Arg, Command, Line, Short, converted, require_words
from mlpmixer.cli.options import DATA, WeightsDir
from mlpmixer.cli.printing import print_error
from mlpmixer.data.config import Data
from mlpmixer.models.configs import Method, NetworkConfig
from mlpmixer.training.recipe import Init, Recipe, variant

Start = Literal["scratch", "same data", "other data", "published"]
SHORT = {
    "epochs": Short("run.epochs", "Passes over the training images."),
    "steps": Short("run.steps", "Optimizer steps, instead of epochs."),
    "time": Short("run.time", "Time budget such as 30m or 2h, instead of epochs."),
    "batch-size": Short("run.batch-size", "Images per step."),
    "lr": Short("optim.lr", "Peak learning rate."),
    "patience": Short("run.patience", "Stop after N evaluations without improvement."),
    "image-size": Short("model.image-size", "Image size in pixels; or height, width."),
    "patch-size": Short("model.patch-size", "Patch size in pixels; or height, width."),
    "in-channels": Short("model.in-channels", "1 for grey images, 3 for RGB."),
    "progressive": Short("run.progressive", "Smaller images first: auto, or 16:0.3,24:0.6.", "SIZES"),
    "folds": Short("data.folds", "Cross-validate: N runs, each on all but one part."),
    "fit": Short("data.fit", "How images of another shape are resized."),
    "data-dir": Short("data.data-dir", "Folder with the files of a named data set."),
    "init": Short("init.weights", "Trained weights to start from (as RUN of predict).", "RUN"),
    "resize": Short("init.resize", "How token mixing adapts to another grid of patches."),
    "magnified": Short("init.magnified", "The images are upsampled from the old size."),
    "teacher": Short("distill.teacher", "Model or stored logits to distil from.", "RUN|FILE"),
    "seed": Short("run.seed", "Random seed."),
    "device": Short("run.device", "auto, cpu, cuda, cuda:1 or mps."),
    "precision": Short("run.precision", "Data type of the computation."),
    "threads": Short("run.threads", "CPU threads; 0: measured when the run starts."),
    "compile": Short("run.compile", "Use torch.compile."),
    "test": Short("run.test", "Score the test split at the end."),
}


INEFFECTIVE: Sequence[tuple[str, str, Callable[[Recipe], Any]]] = (
    ("optim.muon-lr optim.muon-momentum optim.muon-beta2", "--optim.name muon", lambda r: r.optim.name == "muon"),
    ("optim.momentum optim.momentum-dtype", "--optim.name sgd", lambda r: r.optim.name == "sgd"),
    ("optim.betas", "--optim.name adamw or muon", lambda r: r.optim.name != "sgd"),
    ("optim.lr-end", "--optim.schedule cosine or linear", lambda r: r.optim.schedule != "constant"),
    ("optim.warmup-from", "--optim.warmup-steps", lambda r: r.optim.warmup_steps),
    ("augment.mix-probability", "--augment.mixup or --augment.cutmix", lambda r: r.augment.mixup or r.augment.cutmix),
    (
        "augment.randaugment-magnitude augment.randaugment-form",
        "--augment.randaugment-layers",
        lambda r: r.augment.randaugment_layers,
    ),
    ("augment.pad-mode", "--augment.pad-crop-px, rotate-deg, zoom, zoom-out or shear", lambda r: r.augment.fills),
    ("distill.alpha distill.temperature distill.hard", "--teacher RUN|FILE", lambda r: r.distill.teacher),
    ("run.compile-mode", "--compile", lambda r: r.run.compile),
)
"""Options, what they have no effect without, and whether a recipe has it."""
DURATIONS = ("--run.epochs", "--run.steps", "--run.time")


@dataclass(frozen=True, kw_only=True)
class RecipeCommand(Command):
    """A command on DATA, with a recipe that its options override."""

    short: ClassVar[Mapping[str, Short]] = SHORT
    common: ClassVar[Sequence[str]] = [name for name in SHORT if name not in ("resize", "magnified", "threads")]
    heading: ClassVar[str] = "common options; their defaults are the recipe's, shown when DATA is given"
    refused: ClassVar[Mapping[str, str]] = {"--model.num-classes": "the classes are those of DATA"}

    data: Annotated[str, Arg("DATA", DATA, positional=True, name="data.name")]
    recipe: Annotated[str, Arg("NAME")] = ""
    """Recipe (mlpmixer list recipes); default: that of DATA."""
    model: Annotated[str, Arg("NAME")] = ""
    """Architecture (mlpmixer list models)."""
    augreg: Annotated[str, Arg("LEVEL")] = ""
    """RandAugment and mixup level of AugReg. none, light1, light2, medium1, medium2, strong1 or strong2."""
    weights_dir: WeightsDir = ""
    config: Recipe = field(default_factory=Recipe)

    @classmethod
    def of(cls, line: Line) -> Self:
        command = super().of(line)
        require_effect(line, command.config)
        return command

    @classmethod
    def configs(cls, line: Line) -> dict[str, Any]:
        return {"config": start_from(line)}


def require_effect(line: Line, recipe: Recipe) -> None:
    """ValueError for an option on the line that has no effect in `recipe`, which the line led to.

    A recipe itself may hold such values: they wait for the setting that gives them an effect.
    """
    for options, needed, has_it in INEFFECTIVE:
        given = [line.options[f"--{option}"][0] for option in options.split() if f"--{option}" in line.options]
        if given and not has_it(recipe):
            raise ValueError(f"{given[0]} has no effect without {needed}: add that, or leave it out")


def start_from(line: Line, resumed: Recipe | None = None) -> Recipe:
    """The recipe that the options override: of DATA or --recipe, with --model, --augreg and --init.

    resumed: the recipe of the run that the line goes on with. Weights that it started from need not be there any more.
    """
    from mlpmixer.training.recipes import RECIPES, augreg, recipe_for

    require_words(line)
    data, name, weights = line.words[0], line.value("--recipe"), line.value("--init.weights")
    durations = [line.options[option][0] for option in DURATIONS if option in line.options]
    if len(durations) > 1:
        raise ValueError(f"{' and '.join(durations)} each say how long to train: give one of them")
    if resumed and weights and resumed.init.weights == weights:
        return resumed
    if name:
        recipe = RECIPES[name]()
    else:
        kind, note = kind_of_start(weights, Data(name=data, data_dir=line.value("--data.data-dir") or None))
        recipe = recipe_for(data, kind)
        if note and not line.help and os.environ.get("LOCAL_RANK", "0") == "0":
            print_error(f"note: {note}")
    if model := line.value("--model"):
        from mlpmixer.models.names import MODELS
        from mlpmixer.weights.own import OWN
        from mlpmixer.weights.published import WEIGHTS

        if model in WEIGHTS or model in OWN:
            raise ValueError(f"--model {model} names trained weights; to start from them: --init {model}")
        recipe = dataclasses.replace(recipe, model=MODELS[model])
    if level := line.value("--augreg"):
        recipe = dataclasses.replace(recipe, augment=augreg(recipe.augment, level))
    if weights:  # with --patch-size alone the image follows, with --resize blocks a width
        method = typing.cast(Method, line.value("--init.resize") or "bicubic")
        sizes = {name: _size(line, f"--model.{name.replace('_', '-')}") for name in ("image_size", "patch_size")}
        found = architecture_of_weights(weights)
        if model and (different := _differences(found, recipe.model, sizes)):
            raise ValueError(
                f"--model {model} is not the network of --init {weights}: {', '.join(different)}; leave --model out"
                + (", or add --patch-size" if different[0].startswith("patch_size") and len(different) == 1 else "")
            )
        trained = found.adapted(**sizes, method=method)
        recipe = dataclasses.replace(recipe, model=trained, init=Init(weights=weights))
    if durations:  # instead of the recipe's
        recipe = variant(recipe, run={"steps": 0, "time": ""})
    return variant(recipe, data={"name": data})


def _differences(found: NetworkConfig, asked: NetworkConfig, sizes: Mapping[str, Any]) -> list[str]:
    """In what trained weights are not the network that is asked for, but for what they adapt to: `sizes` are the ones
    to come to."""
    free = {"image_size", "in_channels", "num_classes", *asked.weight_free, *(name for name in sizes if sizes[name])}
    return found.differences(asked, free)


def _size(line: Line, option: str) -> Any:
    return converted(int | tuple[int, int], line.options[option]) if option in line.options else None


def kind_of_start(weights: str, data: Data) -> tuple[Start, str]:
    """How a training on `data` starts, and a note where only the name of the data tells."""
    if not weights:
        return "scratch", ""
    from mlpmixer.evaluation.trained_on import was_trained_on
    from mlpmixer.weights.load import own_meta

    if (meta := own_meta(weights)) is None:
        return "published", ""
    if (same := was_trained_on(meta, data)) is not None:
        return "same data" if same else "other data", ""
    taken = f"judging by its name alone, {data.name} is the data that {weights} was trained on"
    return "same data", f"{taken}, so the recipe is retune; if it is other data: --recipe finetune"


def architecture_of(name: str) -> NetworkConfig:
    """The architecture of a model by name, or of whatever holds weights."""
    from mlpmixer.models.names import MODELS
    from mlpmixer.weights.load import split_key
    from mlpmixer.weights.own import OWN, require_model
    from mlpmixer.weights.published import WEIGHTS

    is_file = name not in MODELS and Path(split_key(name)[0]).exists()
    if name in (*WEIGHTS, *OWN) or name.startswith("hf:") or is_file:
        return architecture_of_weights(name)
    require_model(name)
    return MODELS[name]


def architecture_of_weights(name: str) -> NetworkConfig:
    """The architecture of trained weights; those that have a name are not fetched for it."""
    from mlpmixer.weights.published import WEIGHTS

    if name in WEIGHTS:
        return WEIGHTS[name].config
    from mlpmixer.weights.load import architecture

    return architecture(name)
