"""A faster implementation of the Mixer block on a CPU: matrix products by oneDNN or our own, compiled code between.

`mixer.MixerBlock` defines what is computed, and tests hold the two equal, forward and backward. GPUs have torch.compile
instead.
"""

import copy
import ctypes
import sys
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from mlpmixer.models.configs import MixerConfig
from mlpmixer.models.kernels.block import Block, WholeBlock, computes_whole, infer, pack
from mlpmixer.models.layers import Mlp
from mlpmixer.models.locality import LocalLinear
from mlpmixer.models.mixer import EPS, Mixer, MixerBlock
from mlpmixer.models.native import Unavailable, library

DTYPES = (torch.float32, torch.bfloat16)


class Kernels:
    """Compiled computation of a block instead of torch's operations: (block, x) -> the block's output, (B, S, C).

    Under another precision than DTYPES, with parameters that are not float32, off the CPU and while a graph is traced,
    it is torch's operations after all; with tokens of another shape, too, which they refuse. A copy or a pickle of a
    network takes its kernels along, to a machine that has none as None.
    """

    def __call__(self, block: MixerBlock, x: Tensor) -> Tensor:
        tracing = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        own = [] if tracing or x.dtype not in DTYPES or x.device.type != "cpu" else weights(block)
        fits = own and x.shape[1:] == (own[2].shape[1], len(own[0]))  # gamma1 (C), W1 (DS, S)
        if not fits or any(p.dtype != torch.float32 or p.device.type != "cpu" for p in own):
            return block.mix_channels(block.mix_tokens(x))
        masks = [block.drop_path_mask(x) for _ in range(2)]  # drawn in the order of the plain block
        keep = [mask.float().flatten() for mask in masks if mask is not None]
        erf, x = block.token_mixing.approximate == "none", x.contiguous()
        with torch.autocast("cpu", enabled=False):
            if not keep and not torch.is_grad_enabled():
                return infer(x, erf, *self.operands(own, x.dtype))
            scales = torch.stack(keep) if keep else None
            kind = WholeBlock if computes_whole(x.dtype) else Block
            return cast(Tensor, kind.apply(x, erf, scales, *own))  # type: ignore[no-untyped-call]

    def operands(self, own: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
        """The `weights` of a block as `infer` takes them: matrices and their biases in `dtype`."""
        own = [p if i % 6 < 2 else p.to(dtype) for i, p in enumerate(own)]
        return [pack(p) if p.dim() == 2 else p for p in own] if computes_whole(dtype) else own

    def __reduce__(self) -> "tuple[Callable[..., Kernels | None], tuple[type[Kernels]]]":
        return _on_this_machine, (type(self),)


class InferenceKernels(Kernels):
    """Kernels of one block that keep its matrices as `infer` takes them for the next call, as long as they stay what
    they are."""

    converted: tuple[object, list[Tensor]] | None = None

    def operands(self, own: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
        if dtype == torch.float32 and not computes_whole(dtype):
            return own
        if any(p.is_inference() for p in own):  # whose changes nobody counts
            return super().operands(own, dtype)
        now = dtype, [(p.data_ptr(), p._version) for p in own]
        if self.converted is None or self.converted[0] != now:
            self.converted = now, super().operands(own, dtype)
        return self.converted[1]


def _on_this_machine(kind: type[Kernels]) -> Kernels | None:
    return None if missing() else kind()


def weights(block: MixerBlock) -> list[Tensor]:
    """gamma1, beta1, W1, b1, W2, b2, gamma2, beta2, W3, b3, W4, b4."""
    mixers = ((block.norm1, block.token_mixing), (block.norm2, block.channel_mixing))
    return [
        p
        for norm, mlp in mixers
        for p in (norm.weight, norm.bias, weight(mlp.fc1), mlp.fc1.bias, weight(mlp.fc2), mlp.fc2.bias)
    ]


def weight(layer: nn.Linear) -> Tensor:
    return layer.whole_weight() if isinstance(layer, LocalLinear) else layer.weight


def is_plain(block: nn.Module) -> bool:
    """Whether a block is the paper's, of the layers that it was built with: others in their place, such as adapters or
    layers in int8, compute something else."""
    if type(block) is not MixerBlock:
        return False
    norms, mlps = (block.norm1, block.norm2), (block.token_mixing, block.channel_mixing)
    layers = [layer for mlp in mlps if type(mlp) is Mlp for layer in (mlp.fc1, mlp.fc2)]
    return (
        all(type(norm) is nn.LayerNorm and norm.eps == EPS and norm.bias is not None for norm in norms)
        and len(layers) == 4
        and all(type(layer) in (nn.Linear, LocalLinear) and layer.bias is not None for layer in layers)
    )


def missing(dtypes: Sequence[torch.dtype] = DTYPES) -> str:
    """Why this machine has no compiled kernels for these; empty when it has."""
    try:
        for dtype in dtypes:
            library(str(dtype).removeprefix("torch."))
    except Unavailable as e:
        return str(e)
    return ""


def unsupported_reason(model: Mixer, dtypes: Sequence[torch.dtype] = DTYPES) -> str:
    """Why `install` and `for_inference` cannot speed this model up on this machine; empty when they can."""
    if not all(is_plain(block) for block in model.blocks):
        return "compiled kernels compute the paper's block and no other"
    if model.cfg.dropout:
        return "compiled kernels have no dropout"
    if model.cfg.part_grid != model.cfg.grid:
        return "compiled kernels do not cut the grid into parts"
    return missing(dtypes)


def install(model: Mixer) -> None:
    """Let the blocks of `model` run on compiled kernels on a CPU, in place: the same function and parameters, sooner.
    See `unsupported_reason`.

    Also lets this process keep the memory that it frees, up to 1 GiB: a step frees and takes the same large tensors
    again, and the system would clear every page of them anew (a fifth of the step of a small model).
    """
    for block in model.blocks:
        assert isinstance(block, MixerBlock)
        block.kernels = Kernels()
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(M_TRIM_THRESHOLD, 1 << 30)


def for_inference(model: Mixer) -> Mixer:
    """The same network on compiled kernels, for evaluation on a CPU: a copy of its modules that shares all parameters.
    See `unsupported_reason`."""
    copied = copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}).eval()
    for block in copied.blocks:
        assert isinstance(block, MixerBlock)
        block.kernels = InferenceKernels()
    return copied


def images_per_chunk(cfg: MixerConfig) -> int:
    """How many images go through a block together, so that what lies between two products stays in the cache."""
    values = max(
        cfg.num_patches * cfg.channels_mlp_dim, cfg.hidden_dim * cfg.tokens_mlp_dim
    )  # of a hidden layer, for one image
    return max(torch.get_num_threads() * PORTION // values, 1)


PORTION = 1 << 21  # values: 8 MiB in float32
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1  # malloc.h of glibc
