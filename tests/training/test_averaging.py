"""The average of the weights."""

import pytest
import torch

from mlpmixer.training.averaging import average_weight, update_average
from mlpmixer.training.recipe import Optim


def test_moving_average_by_hand() -> None:
    model, average = (torch.nn.Linear(8, 4) for _ in "ab")
    before = [p.clone() for p in average.parameters()]
    update_average(average, model, average_weight(1000, 2000, Optim(ema_decay=0.9)))
    for old, new, p in zip(before, average.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * p)
    assert average_weight(2, 2000, Optim(ema_decay=0.9)) == 1 - 3 / 12, "its memory is short at the start"


def test_statistics_of_batch_norm_are_averaged_and_its_steps_copied() -> None:
    model, average = (torch.nn.BatchNorm1d(3) for _ in "ab")
    model(torch.randn(20, 3))
    update_average(average, model, 0.25)
    torch.testing.assert_close(average.running_mean, 0.25 * model.running_mean)
    torch.testing.assert_close(average.running_var, 0.75 + 0.25 * model.running_var)
    assert average.num_batches_tracked == model.num_batches_tracked == 1


@pytest.mark.parametrize(("share", "steps"), [(0.4, 4), (1.0, 10), (0.0, 0), (0.04, 0)])
def test_average_of_last_steps_is_their_mean(share: float, steps: int) -> None:
    total, cfg = 10, Optim(average_last=share)
    values = torch.randn(total, 3, generator=torch.Generator().manual_seed(0))
    model, average = (torch.nn.ParameterDict({"w": torch.zeros(3)}) for _ in "ab")
    for step in range(1, total + 1):
        with torch.no_grad():
            model["w"].copy_(values[step - 1])
        update_average(average, model, average_weight(step, total, cfg))
        tail = values[min(total - steps, step - 1) : step]
        torch.testing.assert_close(average["w"].detach(), tail.mean(0))


def test_wrong_averages_are_refused() -> None:
    with pytest.raises(ValueError, match="two averages; set one of them to 0"):
        Optim(ema_decay=0.9, average_last=0.2)
    with pytest.raises(ValueError, match="a share of the steps, from 0 to 1, got 20"):
        Optim(average_last=20)
