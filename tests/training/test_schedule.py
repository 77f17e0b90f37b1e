"""The learning rate of each step."""

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from mlpmixer.training.recipe import Optim
from mlpmixer.training.schedule import lr_factor


@given(
    total=st.integers(1, 500), warmup=st.integers(0, 600), schedule=st.sampled_from(["cosine", "linear", "constant"])
)
def test_rate_rises_then_falls(total: int, warmup: int, schedule: str) -> None:
    cfg = Optim(warmup_steps=warmup, schedule=schedule)  # type: ignore[arg-type]
    rates = [lr_factor(step, total, cfg) for step in range(1, total + 1)]
    peak = min(warmup, total // 2)
    assert all(0 < r <= 1 for r in rates)
    assert rates[:peak] == sorted(rates[:peak]) and rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[peak] == 1 if peak < total else True


def test_linear_schedule_by_hand() -> None:
    cfg = Optim(warmup_steps=2, schedule="linear")
    assert [round(lr_factor(s, 6, cfg), 4) for s in range(1, 7)] == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]


def test_warmup_from_zero_and_final_rate() -> None:
    cfg = Optim(warmup_steps=2, schedule="linear", warmup_from="zero")
    assert [round(lr_factor(s, 6, cfg), 4) for s in range(1, 7)] == [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]
    cfg = dataclasses.replace(cfg, lr_end=0.2)
    assert [round(lr_factor(s, 6, cfg), 4) for s in range(3, 7)] == [1.0, 0.8, 0.6, 0.4]
