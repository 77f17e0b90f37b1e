"""Which method of explanation is faithful to a model, by measurement: deletion and insertion curves.

Petsiuk et al. 2018, "RISE", arXiv:1806.07421, with patches for pixels. Letters: B and n images, S patches, P points of
a curve.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlpmixer.data.image_set import ImageSet
from mlpmixer.data.images import Pixels
from mlpmixer.explanation.attribution import CHUNK, METHODS, as_tensor, filled, network_of
from mlpmixer.inference.classifier import Classifier
from mlpmixer.inference.files import map_images
from mlpmixer.models.mixer import Mixer

POINTS = 16  # steps of a curve
RANDOM = "random"


@dataclass(frozen=True, kw_only=True)
class Faithfulness:
    """What the class's probability does when patches go, or come, in the order a method gives them. P points of a
    curve, n images."""

    shares: NDArray[np.float64]
    """(P,): of the patches, filled (deletion) or shown (insertion), from 0 to 1."""
    deletion: dict[str, NDArray[np.float32]]
    """Method -> (n, P). The most important patches are filled first: the sooner it falls, the more faithful."""
    insertion: dict[str, NDArray[np.float32]]
    """Method -> (n, P). The most important patches are shown first, in a filled image: the sooner it rises, the more
    faithful."""
    bad: tuple[tuple[str, str], ...] = ()
    """Unreadable images, (name, reason)."""

    @property
    def n(self) -> int:
        return len(self.deletion[RANDOM])

    def areas(self) -> list[dict[str, Any]]:
        """A row for each method: mean area under both curves, difference to random order on the same images, and
        standard errors."""
        rows = []
        for name in self.deletion:
            row: dict[str, Any] = {"method": name}
            for kind, curves in (("deletion", self.deletion), ("insertion", self.insertion)):
                area, random = (np.trapezoid(curves[m].astype(np.float64), self.shares, axis=1) for m in (name, RANDOM))
                row[kind], row[f"{kind}_se"] = _mean_se(area)
                row[f"{kind}_gain"], row[f"{kind}_gain_se"] = _mean_se(area - random)
            rows.append(row)
        return rows

    def to_json(self) -> dict[str, Any]:
        return {"images": self.n, "areas": self.areas(), "bad": [list(pair) for pair in self.bad]}


def _mean_se(values: Any) -> tuple[float, float]:
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


@torch.no_grad()
def curves(
    model: Mixer,
    images: Tensor,
    classes: Tensor,
    importance: Tensor,
    fill: Tensor,
    *,
    multi_label: bool = False,
    points: int = POINTS,
) -> tuple[Tensor, Tensor, Tensor]:
    """Probability of the class as patches go in descending `importance` (B, S), and as they come: shares (P,), (B, P),
    (B, P)."""
    s = model.cfg.num_patches
    place = importance.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    counts = torch.linspace(0, s, min(points, s) + 1).round().long()

    def probability(where: Tensor) -> Tensor:
        logits = model(filled(model, images, where, fill))
        p: Tensor = torch.sigmoid(logits) if multi_label else torch.softmax(logits, dim=1)
        return p.gather(1, classes[:, None])[:, 0]

    gone = torch.stack([probability(place < n) for n in counts.tolist()], dim=1)
    come = torch.stack([probability(place >= n) for n in counts.tolist()], dim=1)
    return counts / s, gone, come


def faithfulness(
    classifier: Classifier,
    images: ImageSet,
    fill: Tensor,
    *,
    methods: Sequence[str] = tuple(METHODS),
    at_most: int = 200,
    seed: int = 0,
    curve_fill: Tensor | None = None,
) -> Faithfulness:
    """Deletion and insertion curves of the predicted class on images spread evenly over a set.

    at_most: of how many images. seed: of the random order, one for each image. curve_fill: fills the patches of the
    curves; default `fill`, which favours occlusion, as it asks the same question. Errors: ValueError for an unknown
    method and where no image can be read.
    """
    chosen = [(name, METHODS[name]) for name in methods]
    network, generator = network_of(classifier), torch.Generator().manual_seed(seed)
    shown, shares = fill if curve_fill is None else curve_fill, np.zeros(0)

    def both(arrays: Pixels) -> NDArray[np.float32]:
        nonlocal shares
        x, of_method = as_tensor(classifier, arrays), []
        classes = network(x).argmax(dim=1)
        orders = [method(network, x, classes, fill) for _, method in chosen]
        orders.append(torch.rand(len(x), network.cfg.num_patches, generator=generator).to(x))
        for importance in orders:
            share, gone, come = curves(network, x, classes, importance, shown, multi_label=classifier.multi_label)
            of_method.append(torch.stack([gone, come], dim=1))
            shares = share.double().numpy()
        return torch.stack(of_method, dim=1).float().cpu().numpy()  # (B, methods, 2, P)

    _, values, bad = map_images(classifier, images.spread(at_most), both, CHUNK)
    names = [*methods, RANDOM]
    gone, come = ({name: values[:, i, side] for i, name in enumerate(names)} for side in (0, 1))
    return Faithfulness(shares=shares, deletion=gone, insertion=come, bad=tuple(bad))
