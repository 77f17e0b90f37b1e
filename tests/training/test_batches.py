"""Batches depend on (seed, epoch, index) and nothing else."""

import os
import sys
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlpmixer.training.batches import NICE, batch_indices, loading_pool, steps_per_epoch
from mlpmixer.training.inputs import batches
from mlpmixer.training.recipe import Run


class Numbers:
    """A store whose images are their own numbers, and whose labels are twice that."""

    def __init__(self, n: int) -> None:
        self.labels = 2 * np.arange(n)

    def __len__(self) -> int:
        return len(self.labels)

    def array(self, indices: np.ndarray) -> np.ndarray:
        return indices.astype(np.uint8)


@given(n=st.integers(1, 200), batch=st.integers(1, 250), seed=st.integers(0, 5), epoch=st.integers(0, 4))
def test_epoch_shows_each_image_at_most_once(n: int, batch: int, seed: int, epoch: int) -> None:
    per = steps_per_epoch(n, batch)
    parts = [batch_indices(n, batch, seed, epoch * per + i + 1) for i in range(per)]
    assert all(len(p) == min(batch, n) for p in parts)
    seen = np.concatenate(parts)
    assert len(set(seen.tolist())) == len(seen) > n - batch


def test_resumed_batches_are_the_tail_of_all() -> None:
    whole = list(batches(Numbers(23), Run(batch_size=4, seed=7), 1, 17))
    tail = list(batches(Numbers(23), Run(batch_size=4, seed=7), 9, 17))
    assert [batch.step for batch in tail] == list(range(9, 18))
    for a, b in zip(whole[8:], tail, strict=True):
        assert np.array_equal(a.numbers, b.numbers) and np.array_equal(a.images, b.images)
        assert np.array_equal(b.labels, 2 * b.images)


def test_epochs_and_seeds_differ() -> None:
    orders = [batch_indices(50, 50, seed, step).tolist() for seed in (0, 1) for step in (1, 2)]
    assert len({tuple(o) for o in orders}) == 4


def test_repeats_lengthen_a_pass() -> None:
    parts = [batch_indices(24, 12, 0, step, repeats=3) for step in range(1, 7)]
    for part in parts:
        assert [len(part), len(set(part.tolist()))] == [12, 4] and (np.bincount(part)[part] == 3).all()
    assert sorted(np.concatenate(parts).tolist()) == sorted([*range(24)] * 3)
    assert (batch_indices(24, 12, 0, 7, repeats=3) != parts[0]).any()
    batch, *_ = batches(Numbers(24), Run(batch_size=12, repeats=3), 1, 2)
    assert (batch.numbers == parts[0]).all() and (batch.images == parts[0]).all()


@pytest.mark.skipif(sys.platform != "linux", reason="threads have a priority of their own on Linux alone")
def test_threads_that_load_give_way() -> None:
    def priority() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    before = priority()
    with loading_pool(1, "batch") as pool:
        assert pool.submit(priority).result() == min(before + NICE, 19)
    assert priority() == before
