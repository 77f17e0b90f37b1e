"""The one seam behind which a faster implementation of a Mixer block lives: on a CPU, products by oneDNN and compiled code between them.

`model.MixerBlock` says what is computed; tests hold the two equal, forward and backward. GPUs have torch.compile instead.
"""

import ctypes
import sys
from typing import cast

import torch
from torch import Tensor, nn

from mlpmixer.kernels.block import Block
from mlpmixer.kernels.native import Unavailable, library
from mlpmixer.locality import LocalLinear
from mlpmixer.model import Mixer, MixerBlock

DTYPES = (torch.float32, torch.bfloat16)


class FastBlock(MixerBlock):
    """A MixerBlock on compiled kernels; under another precision than DTYPES, or off the CPU, it is the plain one."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype not in DTYPES or x.device.type != "cpu":
            return super().forward(x)
        t, c = self.token_mixing, self.channel_mixing
        keep = [k.float().flatten() for k in (self.kept(x), self.kept(x)) if k is not None]  # drawn in the order of the plain block
        with torch.autocast("cpu", enabled=False):
            return cast(
                Tensor,
                Block.apply(  # type: ignore[no-untyped-call]
                    x.contiguous(), t.approximate == "none", torch.stack(keep) if keep else None,
                    self.norm1.weight, self.norm1.bias, weight(t.fc1), t.fc1.bias, weight(t.fc2), t.fc2.bias,
                    self.norm2.weight, self.norm2.bias, weight(c.fc1), c.fc1.bias, weight(c.fc2), c.fc2.bias,
                ),
            )  # fmt: skip


def weight(layer: nn.Linear) -> Tensor:
    return layer.whole_weight() if isinstance(layer, LocalLinear) else layer.weight


def missing() -> str:
    """Why this machine has no compiled kernels; empty when it has."""
    try:
        for dtype in DTYPES:
            library(dtype)
    except Unavailable as e:
        return str(e)
    return ""


def why_not(model: Mixer) -> str:
    """Why `install` cannot speed this model up on this machine; empty when it can."""
    if any(type(block) not in (MixerBlock, FastBlock) for block in model.blocks):
        return "compiled kernels compute the paper's block and no other"
    if model.cfg.dropout:
        return "compiled kernels have no dropout"
    if model.cfg.part_grid != model.cfg.grid:
        return "compiled kernels mix no parts"
    return missing()


def install(model: Mixer) -> None:
    """Let the blocks of `model` run on compiled kernels on a CPU, in place: the same function and parameters, sooner. See `why_not`.

    Also lets this process keep the memory that it frees, up to 1 GiB: a step frees and takes the same large tensors again, and the system
    would clear every page of them anew (a fifth of the step of a small model).
    """
    for block in model.blocks:
        block.__class__ = FastBlock
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(M_TRIM_THRESHOLD, 1 << 30)


M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1  # malloc.h of glibc
