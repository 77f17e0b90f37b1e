"""The step rule: parameter groups, optimizers, the learning rate of a step, and the moving average of the weights."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from mlpmixer.config import Optim
from mlpmixer.model import Mixer

Group = dict[str, object]


class Muon(torch.optim.Muon):
    """torch.optim.Muon with the Newton-Schulz iterations of equally shaped matrices done in one batch: the same update, sooner."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            (a, b, c), lr = group["ns_coefficients"], group["lr"]
            shapes: dict[tuple[int, int], list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    shapes.setdefault((min(p.shape), max(p.shape)), []).append(p)
            for matrices in shapes.values():
                updates = []
                for p in matrices:
                    assert p.grad is not None
                    buffer = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                    buffer.lerp_(p.grad, 1 - group["momentum"])
                    update = p.grad.lerp(buffer, group["momentum"])  # Nesterov
                    updates.append((update if p.shape[0] <= p.shape[1] else update.T).bfloat16())
                x = torch.stack(updates)  # (matrices of this shape, short side, long side)
                x /= x.flatten(1).norm(dim=1).clamp(min=group["eps"])[:, None, None]
                for _ in range(group["ns_steps"]):
                    gram = x @ x.mT
                    x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
                for p, update in zip(matrices, x.unbind(), strict=True):
                    p.mul_(1 - lr * group["weight_decay"])
                    scale = 0.2 * math.sqrt(max(p.shape))  # match_rms_adamw: Liu et al. 2025, "Muon is scalable", equation 4
                    p.add_(update if p.shape[0] <= p.shape[1] else update.T, alpha=-lr * scale)


def make_optimizers(model: Mixer, cfg: Optim) -> list[torch.optim.Optimizer]:
    """One optimizer, or two for muon. Weight decay is for matrices only; each group keeps its peak rate as `peak_lr`.

    Muon (orthogonalised momentum) is made for hidden matrices: it gets the W1..W4 of the blocks, AdamW the stem, the head,
    the biases and the LayerNorms.
    """
    named = list(model.named_parameters())
    hidden = [p for name, p in named if p.ndim == 2 and name.startswith("blocks.")] if cfg.name == "muon" else []
    taken = {id(p) for p in hidden}
    matrices = [p for _, p in named if p.ndim == 2 and id(p) not in taken]
    vectors = [p for _, p in named if p.ndim != 2]
    groups: list[Group] = [{"params": matrices, "weight_decay": cfg.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizers: list[torch.optim.Optimizer] = []
    if cfg.name == "sgd":
        optimizers.append(torch.optim.SGD(groups, lr=cfg.lr, momentum=cfg.momentum))
    else:
        optimizers.append(torch.optim.AdamW(groups, lr=cfg.lr, betas=cfg.betas, fused=True))
    if hidden:
        optimizers.append(
            Muon(
                hidden,
                lr=cfg.muon_lr,
                weight_decay=cfg.weight_decay,
                momentum=cfg.muon_momentum,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def lr_factor(step: int, total: int, cfg: Optim) -> float:
    """Share of the peak learning rate at `step` (1..total): linear warm-up, then cosine, linear or no decay to 0 after the last step."""
    warmup = min(cfg.warmup_steps, total // 2)
    if step <= warmup:
        return step / warmup
    progress = (step - 1 - warmup) / max(total - warmup, 1)
    return {"cosine": 0.5 * (1 + math.cos(math.pi * progress)), "linear": 1 - progress, "constant": 1.0}[cfg.schedule]


def set_lr(optimizers: Iterable[torch.optim.Optimizer], factor: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """ema <- decay * ema + (1 - decay) * model, with a shorter memory at the start: decay_t = min(decay, (1 + t) / (10 + t))."""
    weight = 1 - min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(ema.parameters()), [p.detach() for p in model.parameters()], weight)


def state_tensors(optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """The state of the optimizers as named tensors ("optim.0.17.exp_avg")."""
    return {
        f"optim.{i}.{index}.{key}": value
        for i, optimizer in enumerate(optimizers)
        for index, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def load_state_tensors(optimizers: list[torch.optim.Optimizer], tensors: dict[str, Tensor]) -> None:
    """The reverse of `state_tensors`; other names are ignored."""
    for i, optimizer in enumerate(optimizers):
        whole = optimizer.state_dict()
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith(f"optim.{i}."):
                _, _, index, key = name.split(".", 3)
                state.setdefault(int(index), {})[key] = value
        optimizer.load_state_dict({**whole, "state": state})
