"""The average of the weights over the steps: exponential, or the plain mean of the last ones."""

import torch
from torch import nn

from mlpmixer.training.recipe import Optim


def average_weight(step: int, total: int, cfg: Optim) -> float:
    """Share of the weights after `step` (1..total) in their average; the average before it has the rest.

    Exponential: 1 - min(decay, (1 + t) / (10 + t)), a shorter memory at the start. Mean of the last steps: 1 before
    them, then 1/2, 1/3, ...
    """
    if cfg.ema_decay:
        return 1 - min(cfg.ema_decay, (1 + step) / (10 + step))
    return 1 / max(step - total + round(cfg.average_last * total), 1)


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, weight: float) -> None:
    """average <- (1 - weight) * average + weight * model, with the statistics of BatchNorm; its counts are copied."""
    torch._foreach_lerp_(list(average.parameters()), [p.detach() for p in model.parameters()], weight)
    for own, of_model in zip(average.buffers(), model.buffers(), strict=True):
        own.lerp_(of_model, weight) if own.is_floating_point() else own.copy_(of_model)
