"""The model as one graph, from pixels to probabilities, in plain operations that every engine has.

B images of H x W pixels with C channels, S patches, K classes, D features.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from mlpmixer.data.preprocess import standardise
from mlpmixer.exporters.graph_resize import Fitted
from mlpmixer.exporters.job import Job
from mlpmixer.inference.exported import (
    EVIDENCE,
    FEATURES,
    LOGITS,
    PIXELS,
    PROBABILITIES,
    TOP_CLASSES,
    TOP_PROBABILITIES,
)
from mlpmixer.models.architecture import architecture_of


class Graph(nn.Module):
    """Pixels (B,H,W,C) of `preprocess.dtype`, 0..255 -> outputs by name: see `exported.Export`.

    The modules of the network are copied; the weights are shared.
    """

    mean: Tensor
    std: Tensor
    network: Any

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.network, preprocess = plain(job.classifier.network), job.classifier.preprocess
        self.sigmoid, self.top_k, self.evidence = job.classifier.sigmoid, job.top_k, job.evidence
        self.has_features = bool(architecture_of(self.network))
        self.fitted = Fitted(preprocess) if job.any_size else None
        for name, values in zip(("mean", "std"), preprocess.statistics, strict=True):
            self.register_buffer(name, torch.from_numpy(values))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = self.fitted(images) if self.fitted else images.permute(0, 3, 1, 2).float()  # (B, C, H, W)
        pixels = {PIXELS: x.permute(0, 2, 3, 1).to(images.dtype)} if self.fitted else {}
        x = standardise(x, self.mean, self.std)
        further: dict[str, Tensor] = {}
        if self.evidence:
            tokens = self.network.tokens(x)  # (B, S, D), of which pre_logits is the mean
            further[FEATURES] = tokens.mean(dim=1)
            logits = further[LOGITS] = self.network.head(further[FEATURES])
            further[EVIDENCE] = F.linear(tokens / tokens.shape[1], self.network.head.weight)  # (B, S, K)
        elif self.has_features:
            further[FEATURES] = self.network.pre_logits(x)  # (B, D)
            logits = self.network.head(further[FEATURES])
        else:
            logits = self.network(x)
        probabilities = logits.sigmoid() if self.sigmoid else logits.softmax(1)
        top, classes = probabilities.topk(self.top_k)
        return {PROBABILITIES: probabilities, TOP_PROBABILITIES: top, TOP_CLASSES: classes} | further | pixels


def example_of(job: Job) -> tuple[Tensor, dict[int, Dim]]:
    """Images to trace the graph with, and their free axes.

    Two images, and an odd size if any is taken: torch.export treats 1, and sizes that happen to be equal, as constants.
    """
    pixels = job.classifier.preprocess
    size = (37, 53) if job.any_size else pixels.image_size
    example = torch.zeros(job.batch or 2, *size, pixels.in_channels, dtype=getattr(torch, pixels.dtype.name))
    free = [0] * (not job.batch) + [1, 2] * job.any_size
    return example, {axis: Dim(("batch", "height", "width")[axis]) for axis in free}


def plain(network: nn.Module | None) -> nn.Module:
    """A copy for evaluation, which shares the parameters."""
    assert network is not None
    return copy.deepcopy(network, {id(p): p for p in network.parameters()}).eval()
