"""The result for one image: a prediction, or why it could not be read."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Prediction:
    """The likeliest class of one image, and the `top` classes with their probabilities, likeliest first."""

    name: str
    """The image's path or address, or image[i]."""
    label: str
    """The likeliest class."""
    probability: float
    """Its probability, 0..1."""
    top: tuple[tuple[str, float], ...]
    """(class, probability) of the likeliest classes, this one first."""
    features: Floats | None = field(default=None, compare=False, repr=False)
    """pre_logits (D,), if they were asked for."""
    threshold: float | None = None
    """Lowest probability at which a class counts as present, where an image may have several or none; `top` has all
    that reach it. None where an image has one class."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The predicted classes, likeliest first: one, or all at or above the threshold, perhaps none."""
        if self.threshold is None:
            return (self.label,)
        return tuple(label for label, p in self.top if p >= self.threshold)

    def __repr__(self) -> str:
        what = f"label={self.label!r}, probability={self.probability:.4f}"
        if self.threshold is not None:
            what = f"labels={self.labels!r}, threshold={self.threshold:g}"
        return f"Prediction(name={self.name!r}, {what})"


@dataclass(frozen=True)
class Failure:
    """A source that could not be read as an image, and why."""

    name: str
    """Its path, address or pattern, as it was given or found."""
    reason: str
    """Its error, without its name."""
