"""What a target is given, and which of the rules for other sizes of images it may have."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mlpmixer.data.preprocess import Preprocess
from mlpmixer.exporters.int8 import Int8
from mlpmixer.inference.classifier import Classifier
from mlpmixer.weights.model_file import ModelMeta

FITS = ("crop", "pad", "squash")  # those of training; the others are rules of published weights


@dataclass(frozen=True, kw_only=True)
class Job:
    """One model on its way into another form."""

    classifier: Classifier
    """Around a torch network on the CPU."""
    meta: ModelMeta
    """What travels with the export."""
    batch: int | None
    """Images at a time; None: any number."""
    top_k: int
    """Not more than there are classes."""
    any_size: bool
    """Whether the graph resizes and fits images of any size, too."""
    evidence: bool
    """Whether the graph says what each patch adds to each logit, too."""
    page_runtime: Path | None
    """Where the files of onnxruntime-web are, for a page; None: they are fetched."""
    made: dict[str, Any]
    """How the export was made; stored in it."""
    onnx: Path | None = None
    """The model as an ONNX file, where that is ready: with layers in int8."""
    int8: Int8 | None = None
    """What became of them."""


def require_fit(preprocess: Preprocess, what: str = "a graph of any size") -> None:
    """ValueError for a rule that neither `fit.Fitted` nor the page knows.

    Bicubic is not there because which axis Pillow takes first, and so what is cut at black and white in between,
    depends on its version.
    """
    if preprocess.fit not in FITS or preprocess.interpolation != "bilinear":
        raise ValueError(
            f"{what} knows fit={', '.join(FITS)}, bilinear; this model has {preprocess.fit}, "
            f"{preprocess.interpolation}: "
            "leave the resize to mlpmixer or Pillow"
        )


def require_program(meta: ModelMeta, program: str) -> None:
    """ValueError for a model whose preprocessing a program that goes along with it does not have."""
    pre = meta.preprocess
    if pre.fit not in FITS or pre.in_channels not in (1, 3):
        what = (
            f"fit={pre.fit!r}, only {', '.join(FITS)}"
            if pre.fit not in FITS
            else f"images of {pre.in_channels} channels"
        )
        raise ValueError(f"{program} knows no {what}: export to onnx, and predict with mlpmixer")


def require_packages(form: str, extra: str, *names: str) -> None:
    """ValueError, with the command that installs them, unless these packages are there. Imports none of them."""
    for name in names:
        if find_spec(name) is None:
            needed = " and ".join(names)
            raise ValueError(f'the export to {form} needs {needed} (no {name} here): pip install "mlpmixer[{extra}]"')
