"""Data-parallel training by torch.distributed: each process has the whole network and some rows of every batch.

The processes average their gradients. A single process makes the same calls, which then exchange nothing. All methods
that exchange something are called on every process, in the same order.
"""

import pickle
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from mlpmixer.hardware import choose_device
from mlpmixer.training.batches import RowRange, row_range

T = TypeVar("T")
TIMEOUT_S = 600.0  # for one exchange; gloo's default is 30 minutes
# gloo raises plain RuntimeErrors that contain one of these
PEER_LOST = ("gloo", "by peer", "pair closure", "timed out")
_lost: list[BaseException] = []
"""Errors kept until the process ends. Through its traceback, such an error holds the network and gloo. Dropping gloo
waits, with the GIL held, for gloo's thread, which may need the GIL to free the tensors of the failed exchange."""


class PeerLostError(RuntimeError):
    """Another process has died, is stuck, or is far too slow."""


class PeerFailedError(ValueError):
    """Another process failed, and reports why."""


@dataclass(frozen=True)
class ProcessGroup:
    """One process among `size` that train together: its rank, and its rank on its machine.

    With more than one, the calls below need a surrounding `connected`.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    def rows(self, batch_size: int, overlap: int = 0) -> RowRange:
        """The rows of a batch that this process computes, as `row_range`."""
        return row_range(batch_size, self.rank, self.size, overlap)

    def device(self, name: str) -> torch.device:
        """The device to train on: `choose_device`, and with several processes on a machine a GPU for each.

        Errors: ValueError when there is no such device, or no GPU is left for this process.
        """
        device = choose_device(name)
        if self.size == 1 or device.type == "cpu":
            return device
        if device.type != "cuda" or device.index is not None:
            raise ValueError(f"{self.size} processes cannot share {name!r}: use cuda (a GPU for each) or cpu")
        if self.local_rank >= (gpus := torch.cuda.device_count()):
            raise ValueError(
                f"process {self.local_rank + 1} on a machine with {gpus} GPUs: start one process for each GPU "
                "(torchrun --nproc-per-node gpu)"
            )
        torch.cuda.set_device(self.local_rank)
        return torch.device("cuda", self.local_rank)

    def data_parallel(self, network: nn.Module) -> nn.Module:
        """The network with gradients averaged over the processes in each backward pass, starting from rank 0's weights.

        All parameters that require a gradient now must get one in every pass.
        """
        return network if self.size == 1 else DistributedDataParallel(network, gradient_as_bucket_view=True)

    def all_reduce(self, values: list[float]) -> list[float]:
        """The sum of each value over the processes, in float64."""
        if self.size == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64)
        sum_over_processes(total)
        return total.tolist()

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Whether each flag is set in any of the processes."""
        return tuple(count > 0 for count in self.all_reduce([float(flag) for flag in flags]))

    def gather(self, value: T) -> list[T]:
        """The values of all processes by rank, on every process. They are pickled."""
        if self.size == 1:
            return [value]
        own = np.frombuffer(pickle.dumps(value), np.uint8)
        lengths = [int(n) for n in self.all_reduce([len(own) * (rank == self.rank) for rank in range(self.size)])]
        rows = torch.zeros(self.size, max(lengths), dtype=torch.uint8)
        rows.numpy()[self.rank, : len(own)] = own
        sum_over_processes(rows)
        return [pickle.loads(row[:n].tobytes()) for row, n in zip(rows.numpy(), lengths, strict=True)]

    def broadcast(self, value: T) -> T:
        """Rank 0's value, on every process. It is pickled."""
        return self.gather(value if self.is_main else None)[0]  # type: ignore[return-value]

    def on_all(self, work: Callable[[], T]) -> T:
        """work() on every process; it must not exchange anything.

        When it fails with a ValueError or OSError on some, all of them stop: the first raises that error, the others
        PeerFailedError, so that the user reads it once.
        """
        if self.size == 1:
            return work()
        error: Exception | None = None
        try:
            result = work()
        except (ValueError, OSError) as e:
            error = e
        failed = self.gather(error is not None)
        if any(failed):
            if error is not None and failed.index(True) == self.rank:
                raise error
            raise PeerFailedError(f"rank {failed.index(True)} failed")
        return result

    def on_main(self, work: Callable[[], T]) -> T:
        """work() on rank 0 alone, and its result on every process. Errors as in `on_all`."""
        return self.broadcast(self.on_all(lambda: work() if self.is_main else None))  # type: ignore[return-value]


def sum_over_processes(tensor: Tensor) -> None:
    """Replace a tensor on the CPU by its sum over the processes; return when gloo no longer holds it.

    A thread of gloo holds it a little longer than the exchange takes, and needs the GIL to let it go. If the process
    ended meanwhile it would abort, and if it dropped the process group it would wait for that thread for ever.
    """
    references = sys.getrefcount(tensor)
    dist.all_reduce(tensor)
    while sys.getrefcount(tensor) > references:
        time.sleep(0.001)


def gradient_exchange(network: nn.Module, now: bool) -> AbstractContextManager[None]:
    """Within, backward passes of a `data_parallel` network average their gradients now, or leave it to a later one."""
    return nullcontext() if now or not isinstance(network, DistributedDataParallel) else network.no_sync()


@contextmanager
def connected(group: ProcessGroup, timeout_s: float = TIMEOUT_S, init_method: str = "env://") -> Iterator[None]:
    """Within, the processes can exchange values: by gloo between CPUs, by NCCL between GPUs. Nothing for a single one.

    init_method: as in torch; env:// is what torchrun provides.
    Errors: PeerLostError when another process cannot be reached or takes longer than `timeout_s`. (Between GPUs, NCCL
    then ends the process itself.)
    """
    if group.size == 1:
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    try:
        timeout = timedelta(seconds=timeout_s)
        store, _, _ = next(rendezvous(init_method, group.rank, group.size, timeout=timeout))
        store = PrefixStore(_session(store, group, timeout_s), store)
        dist.init_process_group(backend, store=store, timeout=timeout, world_size=group.size, rank=group.rank)
        try:
            yield
        finally:
            dist.destroy_process_group()
    except RuntimeError as e:
        if not isinstance(e, dist.DistError) and not any(words in str(e).lower() for words in PEER_LOST):
            raise
        _lost.append(e)
        raise PeerLostError(
            f"rank {group.rank} of {group.size} has lost another process: it died, or it has been stuck for "
            f"{timeout_s:g} s ({str(e).strip().splitlines()[0]})"
        ) from e


def _session(store: Store, group: ProcessGroup, timeout_s: float) -> str:
    """A new name for this attempt, the same on all processes of it and unknown to those that died before.

    torchrun keeps its store over restarts; without a new name gloo would find the addresses of dead processes there and
    wait for them forever.
    """
    own = uuid.uuid4().hex
    if group.is_main:
        store.set("session", own)
        here = [store.get(f"{own}/{rank}").decode() for rank in range(1, group.size)]
        store.set(f"{own}/all", " ".join(here))
        return own
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        session = store.get("session").decode()  # the last attempt's, until rank 0 is here
        store.set(f"{session}/{group.rank}", own)
        if store.check([f"{session}/all"]) and own in store.get(f"{session}/all").decode().split():
            return session
        time.sleep(0.05)
    raise dist.DistStoreError("timed out: not all processes have been started")
