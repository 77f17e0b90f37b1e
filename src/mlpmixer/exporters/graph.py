"""The model as one graph, from pixels to probabilities, in plain operations that every runtime has.

B images of H x W pixels with C channels, K classes, k of them on top, D features; S patches and hidden_dim as in
`model`.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from mlpmixer.data.preprocess import Preprocess, standardise
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
from mlpmixer.models.architecture import architecture_of, capability, has


class Graph(nn.Module):
    """Pixels (B,H,W,C) of `preprocess.dtype`, 0..255 -> `outputs`, in that order: see `exported.Export`.

    any_size: take images of any size, all of one size, and resize and fit them first.
    evidence: also output the logits and what each patch adds to them; needs a network with tokens.
    The modules are copied; the weights are shared with `network`.
    """

    mean: Tensor
    std: Tensor
    network: Any

    def __init__(
        self,
        network: nn.Module,
        preprocess: Preprocess,
        *,
        multi_label: bool,
        top_k: int,
        any_size: bool = False,
        evidence: bool = False,
    ) -> None:
        super().__init__()
        self.network, self.multi_label, self.top_k, self.evidence = plain(network), multi_label, top_k, evidence
        for name, values in zip(("mean", "std"), preprocess.statistics, strict=True):
            self.register_buffer(name, torch.from_numpy(values))
        self.fitted = Fitted(preprocess) if any_size else None
        self.has_features = bool(architecture_of(network))
        self.outputs: tuple[str, ...] = (PROBABILITIES, TOP_PROBABILITIES, TOP_CLASSES)
        self.outputs += (FEATURES,) * self.has_features + (LOGITS, EVIDENCE) * evidence + (PIXELS,) * any_size

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        x = self.fitted(images) if self.fitted else images.permute(0, 3, 1, 2).float()  # (B, C, H, W)
        pixels = (x.permute(0, 2, 3, 1).to(images.dtype),) if self.fitted else ()
        x = standardise(x, self.mean, self.std)
        further: tuple[Tensor, ...] = ()
        if self.evidence:
            tokens = self.network.tokens(x)  # (B, S, D), of which pre_logits is the mean
            features = tokens.mean(dim=1)
            logits = self.network.head(features)
            own = F.linear(tokens / tokens.shape[1], self.network.head.weight)  # (B, S, K)
            further = (features,) * self.has_features + (logits, own)
        elif self.has_features:
            features = self.network.pre_logits(x)  # (B, D)
            logits = self.network.head(features)
            further = (features,)
        else:
            logits = self.network(x)
        probabilities = logits.sigmoid() if self.multi_label else logits.softmax(1)
        return (probabilities, *probabilities.topk(self.top_k), *further, *pixels)


class Named(nn.Module):
    """A graph whose outputs are a dict, by name."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.model = graph  # not "graph", which a program of torch has for itself

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.model.outputs, self.model(images), strict=True))


def graph_of(job: Job) -> Graph:
    """For evaluation."""
    network, pixels = job.classifier.network, job.classifier.preprocess
    assert network is not None
    further = {"any_size": job.any_size, "evidence": job.evidence}
    return Graph(network, pixels, multi_label=job.classifier.multi_label, top_k=job.top_k, **further).eval()


def example_of(job: Job) -> tuple[Tensor, dict[int, Dim]]:
    """Images to trace the graph with, and which of their axes are free.

    Two images, and an odd size where any is taken: torch.export takes a size of 1, or what is equal by accident, for a
    constant.
    """
    pixels = job.classifier.preprocess
    size = (37, 53) if job.any_size else pixels.image_size
    example = torch.zeros(job.batch or 2, *size, pixels.in_channels, dtype=getattr(torch, pixels.dtype.name))
    free = [0] * (not job.batch) + [1, 2] * job.any_size
    return example, {axis: Dim(("batch", "height", "width")[axis]) for axis in free}


def plain(network: nn.Module) -> nn.Module:
    """A copy for evaluation without compiled kernels, which a graph cannot hold; it shares the parameters."""
    copied = copy.deepcopy(network, {id(p): p for p in network.parameters()})
    if has(copied, "kernels"):
        capability(copied, "kernels", "export").uninstall(copied)
    return copied.eval()
