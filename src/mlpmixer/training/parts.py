"""A batch in parts, each of which goes forward and backward on a thread of its own.

Threads that share an operation meet after every operation, and beside other programs one of them always waits for the
other; threads that share a batch meet once a step.
"""

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Barrier
from typing import TypeVar

import torch
from torch import Tensor, nn

from mlpmixer.training.distributed import ProcessGroup
from mlpmixer.training.recipe import Recipe

T = TypeVar("T")
MIN_IMAGES = 8  # of a part: with fewer, adding up its gradients counts
MIN_FLOPS = 4e9  # of a part's forward pass: with fewer, its thread waits for the interpreter, which one at a time has


def can_split(network: nn.Module, recipe: Recipe, device: torch.device, group: ProcessGroup) -> bool:
    """Whether parts of a batch give what the whole gives: on a CPU, and where nothing in the network is random or of
    the whole batch. With torch.compile and activation checkpointing, which are not made for it, they are not tried."""
    run, cfg = recipe.run, recipe.model
    random = recipe.network or any(getattr(cfg, name, 0) for name in ("dropout", "drop_path"))
    return not (
        random
        or device.type != "cpu"
        or group.size > 1
        or run.compile
        or run.checkpointing
        or any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules())
    )


def num_parts(threads: int, num_images: int, flops: float) -> int:
    """Into how many parts to cut so many images of `flops` each (2 for a multiply-add) for so many threads."""
    return max(1, min(threads, num_images // MIN_IMAGES, int(num_images * flops / MIN_FLOPS)))


class Parts:
    """A network on as many threads as there are parts: each has parameters of its own, which share their values."""

    def __init__(self, network: nn.Module, num: int, threads: int) -> None:
        """threads: of each part, for its operations."""
        self.networks = [network, *(copy.deepcopy(network) for _ in range(num - 1))]
        self.params = [list(net.parameters()) for net in self.networks]
        self.threads = threads
        before, all_there = torch.get_num_threads(), Barrier(num)

        def start() -> None:
            torch.get_num_threads()  # torch takes the number of the process at the first call in a thread
            torch.set_num_threads(threads)
            all_there.wait()

        self.pool = ThreadPoolExecutor(num, "part")
        wait([self.pool.submit(start) for _ in range(num)])
        torch.set_num_threads(before)  # for threads that start later, whose number was set, too

    def run(self, work: Callable[[nn.Module, Tensor, Tensor], T], images: Tensor, targets: Tensor) -> list[T]:
        """work(network, images, targets) of each part, which goes backward, too. The gradients add up, in the order of
        the parts, in the network that was given."""
        own, *others = self.params
        for params in others:
            for p, shared in zip(params, own, strict=True):
                p.data, p.grad = shared.data, None
        num = len(self.networks)
        futures = [
            self.pool.submit(work, *args)
            for args in zip(self.networks, images.tensor_split(num), targets.tensor_split(num), strict=True)
        ]
        wait(futures)
        results = [future.result() for future in futures]
        for params in others:
            found = [(p.grad, q.grad) for p, q in zip(own, params, strict=True) if p.grad is not None]
            torch._foreach_add_(*map(list, zip(*found, strict=True)))
        return results
