"""MLP-Mixer in PyTorch. The names below are the public ones; each is loaded when it is first used, torch too."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlpmixer.data.config import Data
    from mlpmixer.evaluation.compare import compare
    from mlpmixer.evaluation.evaluate import evaluate
    from mlpmixer.evaluation.probe import probe
    from mlpmixer.exporters.benchmark import bench
    from mlpmixer.exporters.export import export
    from mlpmixer.inference.load import load
    from mlpmixer.models.configs import (
        ASMLPConfig,
        EAMLPConfig,
        GMLPConfig,
        MixerConfig,
        RepMLPNetConfig,
        ResMLPConfig,
        ResNetConfig,
        S2MLPConfig,
        S2MLPv2Config,
        ViPConfig,
        ViTConfig,
    )
    from mlpmixer.models.mixer import Mixer
    from mlpmixer.training.cross_validation import cross_validate
    from mlpmixer.training.recipe import Augment, Distill, Init, Optim, Recipe, Run
    from mlpmixer.training.run import train
    from mlpmixer.weights.create import create_model, from_pretrained
    from mlpmixer.weights.published import list_models

__version__ = "0.3.0"
__all__ = [
    "ASMLPConfig",
    "Augment",
    "Data",
    "Distill",
    "EAMLPConfig",
    "GMLPConfig",
    "Init",
    "Mixer",
    "MixerConfig",
    "Optim",
    "Recipe",
    "RepMLPNetConfig",
    "ResMLPConfig",
    "ResNetConfig",
    "Run",
    "S2MLPConfig",
    "S2MLPv2Config",
    "ViPConfig",
    "ViTConfig",
    "bench",
    "compare",
    "create_model",
    "cross_validate",
    "evaluate",
    "export",
    "from_pretrained",
    "list_models",
    "load",
    "probe",
    "train",
]

_HOME = dict.fromkeys(("Augment", "Distill", "Init", "Optim", "Recipe", "Run"), "training.recipe") | {
    "Data": "data.config",
    **dict.fromkeys((name for name in __all__ if name.endswith("Config")), "models.configs"),
    "Mixer": "models.mixer",
    "bench": "exporters.benchmark",
    "compare": "evaluation.compare",
    **dict.fromkeys(("create_model", "from_pretrained"), "weights.create"),
    "cross_validate": "training.cross_validation",
    "evaluate": "evaluation.evaluate",
    "export": "exporters.export",
    "list_models": "weights.published",
    "load": "inference.load",
    "probe": "evaluation.probe",
    "train": "training.run",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = globals()[name] = getattr(import_module(f"mlpmixer.{_HOME[name]}"), name)
        return value
    raise AttributeError(f"module 'mlpmixer' has no attribute {name!r}; it has: {', '.join(__all__)}")


def __dir__() -> list[str]:
    """The public names alone, and Python's own."""
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
