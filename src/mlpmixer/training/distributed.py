"""Several processes that train one network, by torch.distributed: who does what, and what they tell each other.

Each holds the whole network, computes its rows of every batch and adds its gradients to the others' (data parallelism).
One process alone is the trivial case of the same calls. Who calls them does so on all ranks, in the same order.
"""

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from mlpmixer.hardware import choose_device
from mlpmixer.training.batches import Rows, rows_of

T = TypeVar("T")
TIMEOUT_S = 600.0  # of one exchange; gloo's default is 30 minutes
LOSSES = ("gloo", "by peer", "pair closure", "timed out")  # gloo raises plain RuntimeErrors that say one of these


class Lost(RuntimeError):
    """Another process has died, is stuck, or is far too slow."""


class FailedElsewhere(ValueError):
    """Another process could not do its part; it says why."""


@dataclass(frozen=True)
class Ranks:
    """This process among `size`: its number, and its number on its machine. More than one need `joined` around the
    calls below."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def leads(self) -> bool:
        """Whether this is the one that writes files and reports."""
        return self.rank == 0

    def rows(self, n: int, lent: int = 0) -> Rows:
        """The rows of n that are this rank's: contiguous, all of them somebody's once, at most one more here than
        there."""
        return rows_of(n, self.rank, self.size, lent)

    def device(self, name: str) -> torch.device:
        """As `choose_device`, but of several processes on a machine with GPUs each takes its own. ValueError when it
        cannot."""
        device = choose_device(name)
        if self.size == 1 or device.type == "cpu":
            return device
        if device.type != "cuda" or device.index is not None:
            raise ValueError(
                f"{self.size} processes cannot train on {name!r}: choose cuda (each takes its own GPU) or cpu"
            )
        if self.local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"process {self.local_rank + 1} on a machine with {torch.cuda.device_count()} GPUs: start one for each "
                f"GPU "
                "(torchrun --nproc-per-node gpu)"
            )
        torch.cuda.set_device(self.local_rank)
        return torch.device("cuda", self.local_rank)

    def parallel(self, network: nn.Module) -> nn.Module:
        """The same network, whose gradients after a backward pass are the mean over all ranks; it goes on from rank 0's
        weights.

        All parameters that ask for a gradient now must get one in every pass.
        """
        if self.size == 1:
            return network
        return DistributedDataParallel(network, gradient_as_bucket_view=True)

    def sum(self, values: list[float]) -> list[float]:
        """Each value added up over the ranks, in float64."""
        if self.size == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return total.tolist()

    def agree(self, meeting: bool, *wishes: bool) -> tuple[bool, ...]:
        """What any rank wishes, told to all, where they meet; `meeting` is the same on all, and elsewhere nothing is
        granted.

        Who is alone need not meet.
        """
        if self.size == 1:
            return wishes
        if not meeting:
            return (False,) * len(wishes)
        return tuple(count > 0 for count in self.sum([float(wish) for wish in wishes]))

    def same(self, value: T) -> T:
        """Rank 0's value, on all."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in their order, on all."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def together(self, work: Callable[[], T]) -> T:
        """work() on every rank, which must not exchange anything. When it fails on some with a ValueError or OSError,
        all end here.

        The first of those raises what happened to it, the others FailedElsewhere: so it is told once.
        """
        if self.size == 1:
            return work()
        problem: Exception | None = None
        try:
            result = work()
        except (ValueError, OSError) as e:
            problem = e
        failed = self.gather(problem is not None)
        if any(failed):
            if problem is not None and failed.index(True) == self.rank:
                raise problem
            raise FailedElsewhere(f"rank {failed.index(True)} could not go on")
        return result

    def lead(self, work: Callable[[], T]) -> T:
        """work() on rank 0 alone, its result on all."""
        return self.same(self.together(lambda: work() if self.leads else None))  # type: ignore[return-value]


def exchanging(network: nn.Module, now: bool) -> AbstractContextManager[None]:
    """Within, a pass through `network` (of `Ranks.parallel`) shares its gradients now, or leaves them to the next one
    that does."""
    return nullcontext() if now or not isinstance(network, DistributedDataParallel) else network.no_sync()


def _session(store: Store, ranks: Ranks, timeout_s: float) -> str:
    """A new name that the ranks of this attempt agree on, and no process that died before.

    torchrun keeps its store over restarts, and gloo would look in it for the addresses of the dead and wait for them
    without end.
    """
    own = uuid.uuid4().hex
    if ranks.leads:
        store.set("session", own)
        here = [store.get(f"{own}/{rank}").decode() for rank in range(1, ranks.size)]
        store.set(f"{own}/all", " ".join(here))
        return own
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        session = store.get("session").decode()  # the last attempt's, until rank 0 is here
        store.set(f"{session}/{ranks.rank}", own)
        if store.check([f"{session}/all"]) and own in store.get(f"{session}/all").decode().split():
            return session
        time.sleep(0.05)
    raise dist.DistStoreError("timed out: the processes have not all been started")


@contextmanager
def joined(ranks: Ranks, timeout_s: float = TIMEOUT_S, meeting: str = "env://") -> Iterator[None]:
    """Within, the ranks can talk: gloo on CPUs, NCCL between GPUs. Alone, nothing happens.

    meeting: torch's init_method; env:// is what torchrun provides.
    Errors: Lost when another process cannot be reached or keeps this one waiting for more than `timeout_s`. (Where that
    happens between GPUs, NCCL ends the process itself.)
    """
    if ranks.size == 1:
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    try:
        timeout = timedelta(seconds=timeout_s)
        store, _, _ = next(rendezvous(meeting, ranks.rank, ranks.size, timeout=timeout))
        store = PrefixStore(_session(store, ranks, timeout_s), store)
        dist.init_process_group(backend, store=store, timeout=timeout, world_size=ranks.size, rank=ranks.rank)
        try:
            yield
        finally:
            dist.destroy_process_group()
    except RuntimeError as e:
        if not isinstance(e, dist.DistError) and not any(words in str(e).lower() for words in LOSSES):
            raise
        raise Lost(
            f"rank {ranks.rank} of {ranks.size} has lost another: it died, or it has been stuck for {timeout_s:g} s "
            f"({str(e).strip().splitlines()[0]})"
        ) from e
