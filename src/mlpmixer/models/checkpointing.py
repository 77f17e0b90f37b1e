"""Activation checkpointing: less memory for a slower backward pass, and the same gradients."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def buffers_unchanged(module: nn.Module) -> Iterator[None]:
    """Within, the module computes as always; afterwards its buffers are as before: no batch counts twice in the running
    statistics of a BatchNorm."""
    before = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)


def recomputed(block: nn.Module, x: Tensor) -> Tensor:
    """The output of a block, whose activations the backward pass computes again instead of finding them stored."""
    contexts = partial(lambda block: (nullcontext(), buffers_unchanged(block)), block)
    return cast(Tensor, checkpoint(block, x, use_reentrant=False, context_fn=contexts))
