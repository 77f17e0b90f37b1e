"""MLP-Mixer in PyTorch. The names below are the public ones; each is loaded when it is first used, torch too."""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlpmixer.bench import bench
    from mlpmixer.compare import compare
    from mlpmixer.config import Augment, Data, Distill, Init, MixerConfig, Optim, Recipe, Run
    from mlpmixer.evaluate import evaluate
    from mlpmixer.export import export
    from mlpmixer.model import Mixer
    from mlpmixer.predict import load
    from mlpmixer.probe import probe
    from mlpmixer.train import train
    from mlpmixer.weights import create_model

__version__ = "0.1.0"
__all__ = [
    "Augment",
    "Data",
    "Distill",
    "Init",
    "Mixer",
    "MixerConfig",
    "Optim",
    "Recipe",
    "Run",
    "bench",
    "compare",
    "create_model",
    "evaluate",
    "export",
    "load",
    "probe",
    "train",
]

_HOME = dict.fromkeys(("Augment", "Data", "Distill", "Init", "MixerConfig", "Optim", "Recipe", "Run"), "config") | {
    "Mixer": "model",
    "create_model": "weights",
    "load": "predict",
}
_VERBS = ("bench", "compare", "evaluate", "export", "probe", "train")  # a function in a module of its own name


def __getattr__(name: str) -> Any:
    if name in _VERBS:
        return import_module(f"mlpmixer.{name}")
    if name in _HOME:
        value = globals()[name] = getattr(import_module(f"mlpmixer.{_HOME[name]}"), name)
        return value
    raise AttributeError(f"module 'mlpmixer' has no attribute {name!r}; it has: {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Verb(ModuleType):
    """The module `mlpmixer.train`, called, is its function `train`: so `mlpmixer.train(recipe)`, `import mlpmixer.train` and
    `from mlpmixer.train import train` all work, in whatever order things are imported."""

    @property
    def __wrapped__(self) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__wrapped__(*args, **kwargs)


class _Package(ModuleType):
    """Python binds a module that it has imported to the package; there the verbs become callable."""

    def __setattr__(self, name: str, value: object) -> None:
        if name in _VERBS and isinstance(value, ModuleType):
            value.__class__ = _Verb
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
