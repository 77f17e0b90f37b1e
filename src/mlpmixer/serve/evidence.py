"""Per-patch contributions to each class.

A network whose head reads the mean of its tokens provides them, and so do exports made with `--evidence`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlpmixer.data.images import Pixels
from mlpmixer.inference.classifier import Classifier
from mlpmixer.inference.exported import EVIDENCE, LOGITS
from mlpmixer.inference.exported_classifier import Exported
from mlpmixer.models.architecture import has

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Evidence:
    """How to compute patch evidence. Shapes: B images, S patches in a grid of h x w, K classes."""

    grid: tuple[int, int]
    """Patches down and across: h, w."""
    bias: Floats
    """Bias of the head, (K,)."""
    of: Callable[[Pixels], Floats]
    """Pixels (B,H,W,C) -> contribution of each patch to each logit (B,S,K). Logit = bias + sum over S."""


def evidence_of(classifier: Classifier) -> Evidence | None:
    """Evidence of a classifier; None for an export made without it, and for a network whose evidence is not exact."""
    if isinstance(classifier, Exported):
        return _of_export(classifier)
    network = classifier.network
    if network is None or not classifier.classes or not has(network, "tokens"):
        return None
    import torch

    from mlpmixer.explanation.attribution import grid_of, head_bias, network_input, patch_evidence

    bias, grid = head_bias(network), grid_of(classifier)

    def of(pixels: Pixels) -> Floats:
        with torch.inference_mode():
            own = patch_evidence(network, network_input(classifier, pixels)) - bias
            return np.asarray((own / own.shape[1]).cpu().numpy(), np.float32)

    return Evidence(grid, np.asarray(bias.cpu().numpy(), np.float32), of)


def _of_export(classifier: Exported) -> Evidence | None:
    export, pre = classifier.export, classifier.preprocess
    if EVIDENCE not in export.outputs:
        return None
    logits, own = export(np.zeros((1, *pre.image_size, pre.in_channels), pre.dtype), LOGITS, EVIDENCE)
    return Evidence(export.meta.config.grid, logits[0] - own[0].sum(axis=0), lambda pixels: export(pixels, EVIDENCE)[0])
