"""What exports are tried with."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers.models import GREY, PARTS, Flat, classifier_of

from mlpmixer.exporters.onnxruntime_web import FILES
from mlpmixer.inference.classifier import Classifier

CASES: dict[str, tuple[Callable[[], Classifier], dict[str, Any]]] = {  # a model, and options of its export
    "digits": (lambda: classifier_of(GREY, mean=(0.2,), std=(0.3,)), {}),
    "parts, oblong, erf, three at a time": (
        lambda: classifier_of(PARTS, fit="pad"),
        {"batch": 3, "top_k": 2, "licence": "apache-2.0"},
    ),
    "sigmoid, pixels that are never rounded": (
        lambda: classifier_of(GREY, loss="sigmoid", fit="vit_jax_eval"),
        {"top_k": 99},
    ),
    "another network": (lambda: classifier_of(GREY, Flat()), {"batch": 1}),
}


def web_runtime(folder: Path) -> Path:
    """Made-up files of onnxruntime-web, where its package has them, for tests that open no browser."""
    (folder / "dist").mkdir(parents=True)
    for name in FILES:
        (folder / "dist" / name).write_text(f"made up: {name}")
    return folder


def program(bundle: Path) -> Any:
    """The predict.py of a bundle, as a module."""
    spec = importlib.util.spec_from_file_location("bundled_predict", bundle / "predict.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def with_metadata(model: Any, path: Path, text: str) -> Path:
    """An ONNX model at `path`, whose metadata is `text`."""
    import onnx

    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {"mlpmixer": text})
    onnx.save(model, str(path))
    return path
