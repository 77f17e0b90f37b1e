"""Faithfulness of attribution methods, measured by deletion and insertion curves.

Petsiuk et al. 2018, "RISE", arXiv:1806.07421, with patches instead of pixels. B and n images, S patches, P points of a
curve.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mlpmixer.data.image_set import ImageSet
from mlpmixer.data.images import Pixels
from mlpmixer.download import Report
from mlpmixer.explanation.attribution import (
    CHUNK,
    METHODS,
    Grid,
    fill_patches,
    grid_of,
    network_input,
    require_network,
    supported,
)
from mlpmixer.inference.classifier import Classifier
from mlpmixer.inference.files import map_images

POINTS = 16  # steps of a curve
RANDOM = "random"


@dataclass(frozen=True, kw_only=True)
class Faithfulness:
    """The probability of the class as patches are removed, or added, in the order of a method."""

    shares: NDArray[np.float64]
    """(P,): share of the patches that are filled (deletion) or shown (insertion), from 0 to 1."""
    deletion: dict[str, NDArray[np.float32]]
    """Method -> (n, P). The most important patches are filled first: the sooner it falls, the more faithful."""
    insertion: dict[str, NDArray[np.float32]]
    """Method -> (n, P). The most important patches are shown first: the sooner it rises, the more faithful."""
    bad: tuple[tuple[str, str], ...] = ()
    """Unreadable images, (name, reason)."""

    @property
    def n(self) -> int:
        return len(self.deletion[RANDOM])

    def areas(self) -> list[dict[str, Any]]:
        """A row per method: mean area under each curve, its gain over random order, image by image, standard errors."""
        rows = []
        for name in self.deletion:
            row: dict[str, Any] = {"method": name}
            for kind, curves in (("deletion", self.deletion), ("insertion", self.insertion)):
                area, random = (np.trapezoid(curves[m].astype(np.float64), self.shares, axis=1) for m in (name, RANDOM))
                row[kind], row[f"{kind}_se"] = _mean_se(area)
                row[f"{kind}_gain"], row[f"{kind}_gain_se"] = _mean_se(area - random)
            rows.append(row)
        return rows

    def table(self) -> list[tuple[str, ...]]:
        """A row per method: area of deletion, its gain over random order, area of insertion, its gain, as text."""

        def cell(row: dict[str, Any], name: str, sign: str = "") -> str:
            return "" if sign and row["method"] == RANDOM else f"{row[name]:{sign}.3f} ± {row[f'{name}_se']:.3f}"

        columns = (("deletion", ""), ("deletion_gain", "+"), ("insertion", ""), ("insertion_gain", "+"))
        return [(row["method"], *(cell(row, *column) for column in columns)) for row in self.areas()]

    def to_json(self) -> dict[str, Any]:
        return {"images": self.n, "areas": self.areas(), "bad": [list(pair) for pair in self.bad]}


def _mean_se(values: Any) -> tuple[float, float]:
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


@torch.no_grad()
def curves(
    network: nn.Module,
    images: Tensor,
    classes: Tensor,
    importance: Tensor,
    fill: Tensor,
    grid: Grid,
    *,
    sigmoid: bool = False,
    points: int = POINTS,
) -> tuple[Tensor, Tensor, Tensor]:
    """Shares (P,), and the probability of the class as patches are removed, and as they are added, (B, P) each.

    Patches go in descending order of `importance` (B, S).
    """
    s = importance.shape[1]
    rank = importance.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    counts = torch.linspace(0, s, min(points, s) + 1).round().long()

    def probability(where: Tensor) -> Tensor:
        logits = network(fill_patches(images, where, fill, grid))
        p: Tensor = torch.sigmoid(logits) if sigmoid else torch.softmax(logits, dim=1)
        return p.gather(1, classes[:, None])[:, 0]

    deletion = torch.stack([probability(rank < n) for n in counts.tolist()], dim=1)
    insertion = torch.stack([probability(rank >= n) for n in counts.tolist()], dim=1)
    return counts / s, deletion, insertion


def faithfulness(
    classifier: Classifier,
    images: ImageSet,
    fill: Tensor,
    *,
    methods: Sequence[str] | None = None,
    at_most: int = 200,
    seed: int = 0,
    curve_fill: Tensor | None = None,
    report: Report | None = None,
) -> Faithfulness:
    """Measure deletion and insertion curves of the predicted class on up to `at_most` images, spread evenly over a set.

    classifier, fill, methods: as in `explain`.
    seed: of the random order, one for each image.
    curve_fill: fills the patches of the curves; the default, `fill`, favours occlusion, which asks the same question.
    report: as of `map_images`.

    Errors: ValueError for an unknown method, for one that the network does not support, and where no image can be read.
    """
    network, grid = require_network(classifier), grid_of(classifier)
    names = supported(network) if methods is None else list(methods)
    chosen = [METHODS[name] for name in names]
    generator, shown, shares = (
        torch.Generator().manual_seed(seed),
        fill if curve_fill is None else curve_fill,
        np.zeros(0),
    )

    def both(arrays: Pixels) -> NDArray[np.float32]:
        nonlocal shares
        x = network_input(classifier, arrays)
        classes = network(x).argmax(dim=1)
        orders = [method(network, x, classes, fill, grid) for method in chosen]
        orders.append(torch.rand(len(x), grid[0] * grid[1], generator=generator).to(x))
        found = [curves(network, x, classes, order, shown, grid, sigmoid=classifier.sigmoid) for order in orders]
        shares = found[0][0].double().numpy()
        return torch.stack([torch.stack(sides, dim=1) for _, *sides in found], dim=1).float().cpu().numpy()

    _, values, bad = map_images(classifier, images.spread(at_most), both, CHUNK, report=report)  # (n, methods, 2, P)
    deletion, insertion = ({name: values[:, i, side] for i, name in enumerate([*names, RANDOM])} for side in (0, 1))
    return Faithfulness(shares=shares, deletion=deletion, insertion=insertion, bad=tuple(bad))
