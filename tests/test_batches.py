"""Batches depend on (seed, epoch, index) and nothing else."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mlpmixer.data.batches import batch_indices, batches, steps_per_epoch


class Numbers:
    """A store whose images are their own numbers."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def array(self, indices: np.ndarray) -> np.ndarray:
        return indices.astype(np.uint8)


@given(n=st.integers(1, 200), batch=st.integers(1, 250), seed=st.integers(0, 5), epoch=st.integers(0, 4))
def test_an_epoch_shows_each_image_at_most_once_in_whole_batches(n: int, batch: int, seed: int, epoch: int) -> None:
    per = steps_per_epoch(n, batch)
    parts = [batch_indices(n, batch, seed, epoch * per + i + 1) for i in range(per)]
    assert all(len(p) == min(batch, n) for p in parts)
    seen = np.concatenate(parts)
    assert len(set(seen.tolist())) == len(seen) > n - batch


def test_a_resumed_sequence_is_the_tail_of_the_whole() -> None:
    whole = list(batches(Numbers(23), 4, 7, 1, 17))
    tail = list(batches(Numbers(23), 4, 7, 9, 17))
    assert [s for s, _, _ in tail] == list(range(9, 18))
    assert all(np.array_equal(a[1], b[1]) and np.array_equal(a[2], b[2]) for a, b in zip(whole[8:], tail, strict=True))


def test_epochs_and_seeds_differ() -> None:
    orders = [batch_indices(50, 50, seed, step).tolist() for seed in (0, 1) for step in (1, 2)]
    assert len({tuple(o) for o in orders}) == 4
