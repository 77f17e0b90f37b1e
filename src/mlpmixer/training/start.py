"""The start of a run: fresh weights, trained weights or a network of one's own; and the kernels it runs on."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mlpmixer.config import from_json, pair
from mlpmixer.data.catalog import DATASETS
from mlpmixer.data.preprocess import Preprocess
from mlpmixer.download import Report
from mlpmixer.models.architecture import Build, build, build_custom, capability, has, name_of
from mlpmixer.models.configs import NetworkConfig
from mlpmixer.models.initialization import set_head_bias, whiten_stem
from mlpmixer.training import progressive, recipes
from mlpmixer.training.augment import resize
from mlpmixer.training.distillation import StoredLogits, TeacherFunction, TeacherSource, open_teacher, stored_teacher
from mlpmixer.training.inputs import Stores, augmented_sample
from mlpmixer.training.recipe import Recipe
from mlpmixer.weights import model_file, own, run_folder
from mlpmixer.weights.adapt import adapt_to, adapt_trained
from mlpmixer.weights.load import load_weights
from mlpmixer.weights.own import OWN

Pretrained = tuple[Any, model_file.ModelMeta]
Start = Pretrained | Build
"""A trained network, or a function that builds a fresh one."""

FEW_IMAGES = 5_000
"""Training images up to which weights of ours are offered: about twice those of the larger set that they were tried on,
2,208. What is gained with more was not measured."""
FOLDED = "its convolutions are folded into matrices, and training goes on with the matrices alone"


def with_network(recipe: Recipe, network: Build | None) -> Recipe:
    """The recipe of a run that trains what `network` builds, if it is given.

    Errors: ValueError when the run was started with another network, or from trained weights.
    """
    if network is None:
        if recipe.network:
            raise ValueError(
                f"this run trains a network that a function builds, {recipe.network}: train it from Python, "
                "mlpmixer.train(recipe, ..., network=that function)"
            )
        return recipe
    name = name_of(network)
    if recipe.network not in ("", name):
        raise ValueError(f"two networks are given: the recipe says {recipe.network}, and network is {name}")
    if recipe.init.weights:
        raise ValueError(f"init.weights={recipe.init.weights} is not for a network of your own ({name}); leave it out")
    return dataclasses.replace(recipe, network=name)


def require_capabilities(model: nn.Module, recipe: Recipe) -> None:
    """ValueError in one sentence when the recipe has an option that the network cannot follow."""
    init, optim, run = recipe.init, recipe.optim, recipe.run
    options = {
        "init.stem=whitened": ("patches", init.stem == "whitened"),
        "optim.name=muon": ("hidden_matrices", optim.name == "muon"),
        "optim.layer_decay": ("layers", optim.layer_decay != 1),
        "optim.frozen_layers": ("layers", optim.frozen_layers > 0),
        "optim.locality": ("locality", optim.locality > 0),
        "optim.mirror": ("mirror", optim.mirror),
        "run.progressive": ("resize", len(recipe.stages) > 1),
        "run.checkpointing": ("checkpointing", run.checkpointing),
    }
    for option, (name, is_on) in options.items():
        if is_on:
            capability(model, name, option, "--optim.name adamw" if option == "optim.name=muon" else "")
    if not hasattr(model, "head") and (optim.head_steps or init.head_bias):
        option = "optim.head_steps" if optim.head_steps else "init.head_bias"
        raise ValueError(f"{name_of(model)} has no module named head, which {option} needs")


def require_one_part(model: nn.Module, parts: int, option: str) -> None:
    """ValueError when a batch is normalised by its own statistics and would come in several parts."""
    if parts > 1 and any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
        raise ValueError(
            f"{name_of(model)} normalises with the statistics of a batch (BatchNorm), so {option} would change what it "
            "computes; leave it out"
        )


def load_networks(
    recipe: Recipe,
    report: Report | None = None,
    teacher: TeacherFunction | None = None,
    run: Path | None = None,
    saved: Path | None = None,
) -> tuple[Pretrained | None, TeacherSource]:
    """The trained networks of a recipe, to start from and to learn from; `report` receives the progress of downloads.

    A run resumed from the state `saved` starts from nothing else, and its teacher is the copy in the folder `run`.
    ValueError for folds with a teacher whose logits are matched by order alone.
    """
    start: Pretrained | None = None
    if recipe.init.weights and stored_preprocess(saved) is None:
        start = adapt_trained(*load_weights(recipe.init.weights, report=report), in_channels=recipe.model.in_channels)
        trained = start[0].cfg
        for note in (trained.note_at(recipe.model.image_size), FOLDED if getattr(trained, "folded", False) else ""):
            if note and report:
                report({"kind": "note", "note": f"{recipe.init.weights}: {note}"})
    if teacher is not None:
        return start, teacher
    copy = stored_teacher(run) if run is not None and run_folder.is_run(run) else None
    source = open_teacher(recipe.distill.teacher, report, copy)
    if recipe.data.folds and isinstance(source, StoredLogits) and source.hashes is None:
        raise ValueError(
            f"{recipe.distill.teacher} holds no hashes of its images, but each fold trains on different ones: "
            "with data.folds, take an .npz that has them, or a network as teacher"
        )
    return start, source


def offer(recipe: Recipe, train_images: int, multi_label: bool) -> list[str]:
    """Sentences that offer weights of ours to a run from scratch like those that they helped; none of weights that are
    not here. They are never taken without being asked for."""
    usual, data = recipes.photos(), recipe.data
    is_usual = recipe.name == usual.name and recipe.model.adapted(num_classes=usual.model.num_classes) == usual.model
    if not is_usual or recipe.init.weights or recipe.network or data.name in DATASETS or data.fold > 1:
        return []
    if multi_label or train_images > FEW_IMAGES:
        return []
    for name, known in OWN.items():
        gains = sorted(100 * gain for gain in known.gains.values() if gain > 0)
        helps = 2 * len(gains) > len(known.gains)
        if helps and (file := own.here(name)) and _takes(model_file.read_meta(file).config, recipe.model):
            points = f"{gains[0]:+.1f}" + (f" to {gains[-1]:+.1f}" if len(gains) > 1 else "")
            return [
                f"--init {name} starts from weights trained on {known.data} ({known.terms}), which usually helps: "
                f"{points} points on {len(gains)} of {len(known.gains)} sets tried"
            ]
    return []


def _takes(trained: NetworkConfig, model: NetworkConfig) -> bool:
    return (pair(trained.image_size), trained.in_channels) == (pair(model.image_size), model.in_channels)


def origins_of(networks: Iterable[Start | TeacherSource]) -> str:
    """Sources of trained networks, with their terms: data or files, and what they learned from before."""
    found: list[str] = []
    for network in networks:
        origin = network[1].provenance if isinstance(network, tuple) else {}
        if terms := origin.get("terms"):
            found.append(f"{origin.get('images')} ({terms})")
        elif licence := origin.get("licence"):
            found.append(f"{origin.get('weights')} ({licence})")
        if before := origin.get("learned_from"):
            found.append(str(before))
    return "; ".join(dict.fromkeys(found))


def stored_preprocess(saved: Path | None) -> Preprocess | None:
    """The preprocessing in a training state; None without a state, and for old ones, which do not hold it."""
    stored = model_file.read_header(saved).get("preprocess") if saved is not None else None
    return from_json(Preprocess, stored) if stored is not None else None


def initial_model(recipe: Recipe, stores: Stores, start: Start | None, resumed: bool = False) -> Any:
    """The network before the first step: fresh, or from trained weights, with their head if the classes are the same.

    resumed: its weights will be loaded, so they may be any.

    Errors: ValueError when the network cannot follow the recipe.
    """
    cfg = recipe.model.adapted(image_size=progressive.image_size(0, 1, recipe))
    model: Any
    if start is None:
        model = build(cfg)
    elif isinstance(start, tuple):
        model = adapt_to(start[0], cfg, recipe.init.resize, recipe.init.magnified)
    else:
        model = build_custom(start, recipe.model)
    require_capabilities(model, recipe)
    if isinstance(start, tuple):
        if start[1].classes != stores.splits.classes:
            model.start_head()
            set_head_bias(model, recipe.init.head_bias)
        elif recipe.init.head_bias:
            raise ValueError(
                f"init.head_bias={recipe.init.head_bias} is for a new head, but that of {recipe.init.weights} is kept, "
                "as its classes are the same; leave it out"
            )
        if recipe.optim.mirror:
            _require_symmetric(model, recipe.init.weights)
    elif not resumed:
        if recipe.init.stem == "whitened":
            whiten_stem(model, resize(augmented_sample(recipe, stores), pair(model.cfg.image_size)))
        if recipe.init.head_bias:
            set_head_bias(model, recipe.init.head_bias)
        if recipe.optim.mirror:
            capability(model, "mirror", "optim.mirror").begin(model)
    if recipe.optim.locality:
        capability(model, "locality", "optim.locality").inject(model, recipe.optim.locality)
    if recipe.run.checkpointing:
        model.checkpointing = True
    return model


def _require_symmetric(model: Any, weights: str) -> None:
    if (share := capability(model, "mirror", "optim.mirror").asymmetry(model)) > 1e-3:
        raise ValueError(
            f"optim.mirror keeps a symmetric network symmetric, but {100 * share:.0f} % of a layer of {weights} is not"
            "; leave it out, or start from a run that was trained with it"
        )


def choose_kernels(model: nn.Module, recipe: Recipe, device: torch.device) -> str:
    """Make `model` run on what `recipe.run.kernels` says, in place; the name of what it is.

    Errors: ValueError when compiled kernels are required and unavailable.
    """
    if recipe.run.kernels == "torch" or device.type != "cpu":
        return "torch"
    if recipe.run.compile:
        reason = "the network is left to torch.compile"
    elif not has(model, "kernels"):
        reason = f"{name_of(model)} has no compiled kernels"
    else:
        kernels = capability(model, "kernels", "run.kernels")
        reason = kernels.unsupported_reason(model)
        if not reason:
            kernels.install(model)
            return "compiled"
    if recipe.run.kernels == "compiled":
        raise ValueError(f"run.kernels=compiled is unavailable: {reason}; use auto or torch")
    return f"torch ({reason})"
