"""The learning rate of a step."""

import math

from mlpmixer.training.recipe import Optim


def lr_factor(step: int, total: int, cfg: Optim) -> float:
    """Share of the peak learning rate at `step` (1..total): linear warm-up, then a decay to the end of `total`."""
    warmup = min(cfg.warmup_steps, total // 2)
    if step <= warmup:
        return (step if cfg.warmup_from == "one" else step - 1) / warmup
    progress = (step - 1 - warmup) / max(total - warmup, 1)
    fall = {"cosine": 0.5 * (1 + math.cos(math.pi * progress)), "linear": 1 - progress, "constant": 1.0}[cfg.schedule]
    return cfg.lr_end + (1 - cfg.lr_end) * fall
