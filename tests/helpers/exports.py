"""What exports are tried with."""

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
