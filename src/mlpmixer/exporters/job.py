"""A model on its way to another form, and what may be refused on the way."""

import dataclasses
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mlpmixer import __version__
from mlpmixer.config import checked
from mlpmixer.data.preprocess import Preprocess
from mlpmixer.exporters.check import Checked
from mlpmixer.exporters.int8 import Int8
from mlpmixer.inference.classifier import Classifier
from mlpmixer.models.architecture import capability
from mlpmixer.weights.model_file import ModelMeta

FITS = ("crop", "pad", "squash")  # those of training; the others are rules of published weights
INSTEAD = "export to onnx, and predict with mlpmixer"


@dataclass(frozen=True, kw_only=True)
class Job:
    """A model, the options of its export, and what has been found of it so far. Make one with `new_job`."""

    classifier: Classifier
    """Around a torch network on the CPU."""
    meta: ModelMeta
    """Stored in the export."""
    batch: int | None = None
    """Images at a time; None: any number."""
    top_k: int = 5
    """At most the number of classes."""
    any_size: bool = False
    """Whether the graph resizes and fits images of any size."""
    evidence: bool = False
    """Whether the graph outputs what each patch adds to each logit."""
    page_runtime: Path | None = None
    """For a page, the folder with onnxruntime-web; None: npm fetches it."""
    date: str = field(default_factory=lambda: datetime.now(UTC).date().isoformat())
    onnx: Path | None = None
    """The model as an ONNX file with layers in int8, once there is one."""
    int8: Int8 | None = None
    """The layers in it."""
    checked: Checked | None = None
    """The findings of the check, once it has passed."""

    @property
    def made(self) -> dict[str, Any]:
        """How the export was made, as it is stored in it."""
        import torch

        made: dict[str, Any] = {"batch": self.batch, "any_size": self.any_size, "evidence": self.evidence}
        made |= {"mlpmixer": __version__, "torch": torch.__version__, "date": self.date}
        found = {"int8": self.int8, "check": self.checked}
        return made | {name: dataclasses.asdict(value) for name, value in found.items() if value}


def new_job(classifier: Classifier, *, licence: str = "", top_k: int = 5, **options: Any) -> Job:
    """A job with these fields. ValueError for a model that cannot be exported, or not so."""
    meta, network = classifier.meta, classifier.network
    if meta is None or network is None:
        raise ValueError(
            "expected a run, a weight file, or a classifier that mlpmixer.load made of one: only a torch model can be "
            "exported"
        )
    meta = classifier.current_meta(meta)
    if not meta.classes:
        raise ValueError("this model has no head (num_classes=0), and an export needs one: train it on some data first")
    if any(p.device.type != "cpu" for p in network.parameters()):
        raise ValueError("the model to export must be on the CPU: mlpmixer.load(..., device='cpu')")
    options["batch"], top_k = checked(int | None, options.get("batch"), "batch"), checked(int, top_k, "top_k")
    for name, value in (("batch", options["batch"]), ("top_k", top_k)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if licence:
        meta = dataclasses.replace(meta, provenance=meta.provenance | {"licence": licence})
    job = Job(classifier=classifier, meta=meta, top_k=min(top_k, len(meta.classes)), **options)
    if job.evidence:
        capability(network, "tokens", "evidence")
    if job.any_size:
        require_fit(meta.preprocess)
    return job


def require_fit(preprocess: Preprocess, what: str = "a graph of any size") -> None:
    """ValueError for a rule that neither `graph_resize` nor the page knows.

    Bicubic is missing because which axis Pillow takes first, and so what is clipped at black and white in between,
    depends on its version.
    """
    if preprocess.fit not in FITS or preprocess.interpolation != "bilinear":
        raise ValueError(
            f"{what} supports fit={', '.join(FITS)}, bilinear; this model has {preprocess.fit}, "
            f"{preprocess.interpolation}: resize with mlpmixer or Pillow instead"
        )


def require_program(meta: ModelMeta, program: str) -> None:
    """ValueError for a model whose preprocessing a program inside the export does not have."""
    pre = meta.preprocess
    if pre.fit not in FITS:
        raise ValueError(f"{program} does not support fit={pre.fit!r}, only {', '.join(FITS)}: {INSTEAD}")
    if pre.in_channels not in (1, 3):
        raise ValueError(f"{program} does not support images of {pre.in_channels} channels, only 1 or 3: {INSTEAD}")


def require_packages(form: str, extra: str, *names: str) -> None:
    """ValueError, with the command that installs them, unless these packages are there. Imports none of them."""
    for name in names:
        if find_spec(name) is None:
            needed = " and ".join(names)
            raise ValueError(f'the export to {form} needs {needed} (no {name} here): pip install "mlpmixer[{extra}]"')
