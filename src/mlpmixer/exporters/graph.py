"""The model as one graph, from pixels to probabilities, in plain operations that every runtime has.

B images of H x W pixels with C channels, K classes, k of them on top, D features; S patches and hidden_dim as in
`model`.
"""

import copy
from typing import cast

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
from mlpmixer.models.kernels import FastBlock
from mlpmixer.models.mixer import Mixer, MixerBlock


class WholeGridBlock(MixerBlock):
    """A MixerBlock whose token mixing sees the whole grid: a transpose there and back, where parts take six axes."""

    def columns(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)  # (B, hidden_dim, S)

    rows = columns  # (B, S, hidden_dim)


class Graph(nn.Module):
    """Pixels (B,H,W,C) of `preprocess.dtype`, 0..255 -> `outputs`, in that order: see `exported.Export`.

    any_size: images of any other size, too, all of one size; they are resized and fitted first.
    evidence: of a Mixer, the logits and what each patch adds to them, too.
    The network is copied in structure and shares its weights with `network`.
    """

    mean: Tensor
    std: Tensor

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
        self.outputs: tuple[str, ...] = (PROBABILITIES, TOP_PROBABILITIES, TOP_CLASSES)
        self.outputs += (FEATURES,) * isinstance(network, Mixer) + (LOGITS, EVIDENCE) * evidence + (PIXELS,) * any_size

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        x = self.fitted(images) if self.fitted else images.permute(0, 3, 1, 2).float()  # (B, C, H, W)
        pixels = (x.permute(0, 2, 3, 1).to(images.dtype),) if self.fitted else ()
        x = standardise(x, self.mean, self.std)
        further: tuple[Tensor, ...] = ()
        if isinstance(self.network, Mixer):
            tokens = self.network.tokens(x)  # (B, S, hidden_dim)
            features = tokens.mean(dim=1)  # as Mixer.pre_logits
            logits = self.network.head(features)
            further = (features,)
            if self.evidence:
                head = cast(nn.Linear, self.network.head)
                further += (logits, F.linear(tokens / self.network.cfg.num_patches, head.weight))  # (B, K), (B, S, K)
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
    """A copy for evaluation without compiled kernels, which are no operations of a graph; it shares its parameters with
    `network`."""
    copied = copy.deepcopy(network, {id(p): p for p in network.parameters()})
    for block in copied.modules():
        if isinstance(block, MixerBlock) and type(block) in (MixerBlock, FastBlock):
            block.__class__ = MixerBlock if block.parts != (1, 1) else WholeGridBlock
    return copied.eval()
