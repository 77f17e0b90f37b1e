"""What a target is given, and which of the rules for other sizes of images it may have."""

from dataclasses import dataclass
from typing import Any

from mlpmixer.checkpoint import ModelMeta
from mlpmixer.data.preprocess import Preprocess
from mlpmixer.predict import Classifier

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
    made: dict[str, Any]
    """How the export was made; stored in it."""


def require_fit(preprocess: Preprocess) -> None:
    """ValueError for a rule that `fit.Fitted` does not know.

    Bicubic is not there because which axis Pillow takes first, and so what is cut at black and white in between, depends on its version.
    """
    if preprocess.fit not in FITS or preprocess.interpolation != "bilinear":
        raise ValueError(
            f"a graph of any size knows fit={', '.join(FITS)}, bilinear; this model has {preprocess.fit}, {preprocess.interpolation}: "
            "leave the resize to mlpmixer or Pillow"
        )
