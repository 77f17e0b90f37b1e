"""The step rule: parameter groups, optimizers, the learning rate of a step, and the average of the weights."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mlpmixer.hardware import has_bf16
from mlpmixer.models.mixer import Mixer
from mlpmixer.training.recipe import Optim

Group = dict[str, object]


class Muon(torch.optim.Muon):
    """torch.optim.Muon with the Newton-Schulz iterations of equally shaped matrices done in one batch: the same update,
    sooner.

    They are in bfloat16, as torch's, where the device has it in hardware, else in float32: emulated they take 10 to 20
    times as long.
    """

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
                grads = [p.grad for p in matrices if p.grad is not None]
                buffers = [self.state[p].setdefault("momentum_buffer", torch.zeros_like(p)) for p in matrices]
                torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
                nesterov = torch._foreach_lerp(grads, buffers, group["momentum"])
                lying = [update if update.shape[0] <= update.shape[1] else update.T for update in nesterov]
                x = torch.stack(lying)  # (matrices of this shape, short side, long side)
                x = x.bfloat16() if has_bf16(x.device) else x.float()
                x /= x.flatten(1).norm(dim=1).clamp(min=group["eps"])[:, None, None]
                for _ in range(group["ns_steps"]):
                    gram = x @ x.mT
                    x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
                scale = 0.2 * math.sqrt(
                    max(matrices[0].shape)
                )  # match_rms_adamw: Liu et al. 2025, "Muon is scalable", equation 4
                updates = [
                    u if p.shape[0] <= p.shape[1] else u.T
                    for p, u in zip(matrices, x.to(matrices[0].dtype), strict=True)
                ]
                torch._foreach_mul_(matrices, 1 - lr * group["weight_decay"])
                torch._foreach_add_(matrices, updates, alpha=-lr * scale)


class HalfMomentumSGD(torch.optim.SGD):
    """SGD that keeps its momentum in bfloat16: optax.sgd(momentum, accumulator_dtype=bfloat16), the official
    fine-tuning rule.

    m <- gradient + bfloat16(momentum) * m, added up in float32; p <- p - lr * m; then m is rounded. Not Nesterov's.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            decay = torch.tensor(
                group["momentum"], dtype=torch.bfloat16
            )  # JAX takes 0.9 in the accumulator's type: 0.8984375
            for p in group["params"]:
                if p.grad is None:
                    continue
                if p not in self.state:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p, dtype=torch.bfloat16)
                buffer = self.state[p]["momentum_buffer"]
                update = p.grad.add(p, alpha=group["weight_decay"]).add_(buffer * decay)
                buffer.copy_(update)
                p.add_(update, alpha=-group["lr"])


def layer_of(name: str, num_blocks: int) -> int:
    """How deep the parameter of that name lies: 0 is the stem, 1..num_blocks the blocks, num_blocks + 1 the final norm
    and the head."""
    owner, *rest = name.split(".")
    if owner == "blocks":
        return 1 + int(rest[0])
    return 0 if owner == "stem" else num_blocks + 1


def make_optimizers(model: nn.Module, cfg: Optim) -> list[torch.optim.Optimizer]:
    """One optimizer, or two for muon. Weight decay is for matrices only, of another network than a Mixer for
    convolutions, too.

    Groups carry `peak_lr` and the `from_step` they learn from.

    Muon (orthogonalised momentum) is made for hidden matrices: it gets the W1..W4 of the blocks, AdamW the stem, the
    head, the biases and the LayerNorms. Frozen layers are in no group and take no gradient. `layer_decay` is ELECTRA's
    (Clark et al. 2020), which BEiT brought to images (Bao et al. 2022).

    Errors: ValueError when more layers are to be frozen than lie below the final norm.
    """
    # another network is one layer, the last; its parameters of three axes are position embeddings and class tokens
    top, decayed = (model.cfg.num_blocks + 1, (2,)) if isinstance(model, Mixer) else (0, (2, 4))
    if cfg.frozen_layers > top:
        raise ValueError(
            f"optim.frozen_layers={cfg.frozen_layers}, but the model has a stem and {top - 1} blocks: at most {top}"
        )
    groups: dict[tuple[bool, bool, float, int], list[nn.Parameter]] = {}
    for name, p in model.named_parameters():
        layer, matrix = layer_of(name, top - 1) if top else 0, p.ndim in decayed
        p.requires_grad_(layer >= cfg.frozen_layers)
        if p.requires_grad:
            for_muon = cfg.name == "muon" and matrix and name.startswith("blocks.")
            peak_lr = (cfg.muon_lr if for_muon else cfg.lr) * cfg.layer_decay ** (top - layer)
            from_step = 1 if name.startswith("head.") else 1 + cfg.head_steps
            groups.setdefault((for_muon, matrix, peak_lr, from_step), []).append(p)

    def groups_of(muon: bool) -> list[Group]:
        return [
            {
                "params": params,
                "weight_decay": cfg.weight_decay if matrix else 0.0,
                "lr": peak_lr,
                "peak_lr": peak_lr,
                "from_step": from_step,
            }
            for (for_muon, matrix, peak_lr, from_step), params in groups.items()
            if for_muon == muon
        ]

    optimizers: list[torch.optim.Optimizer] = []
    if cfg.name == "sgd":
        sgd = torch.optim.SGD if cfg.momentum_dtype == "float32" else HalfMomentumSGD
        optimizers.append(sgd(groups_of(muon=False), lr=cfg.lr, momentum=cfg.momentum))
    else:
        optimizers.append(torch.optim.AdamW(groups_of(muon=False), lr=cfg.lr, betas=cfg.betas, fused=True))
    if hidden := groups_of(muon=True):
        optimizers.append(Muon(hidden, momentum=cfg.muon_momentum, adjust_lr_fn="match_rms_adamw"))
    return optimizers


def lr_factor(step: int, total: int, cfg: Optim) -> float:
    """Share of the peak learning rate at `step` (1..total): linear warm-up, then cosine, linear or no decay to `lr_end`
    after the last."""
    warmup = min(cfg.warmup_steps, total // 2)
    if step <= warmup:
        return (step if cfg.warmup_from == "one" else step - 1) / warmup
    progress = (step - 1 - warmup) / max(total - warmup, 1)
    fall = {"cosine": 0.5 * (1 + math.cos(math.pi * progress)), "linear": 1 - progress, "constant": 1.0}[cfg.schedule]
    return cfg.lr_end + (1 - cfg.lr_end) * fall


def prepare(optimizers: Iterable[torch.optim.Optimizer], step: int, factor: float) -> None:
    """Before the forward pass of `step`: set the rates; parameters whose first step has not come take no gradient."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
            for p in group["params"]:
                p.requires_grad_(step >= group["from_step"])


@contextmanager
def up_the_slope(model: nn.Module, rho: float) -> Iterator[None]:
    """Within: the weights are w + rho g / |g|, with g their gradient and |g| its global norm; the gradients are
    cleared. After: exactly w.

    Sharpness-aware minimisation (Foret et al. 2021, arXiv:2010.01412, equation 2 with p = 2). Weights without a
    gradient, such as frozen ones, stay where they are.
    """
    moved = [(p.detach(), p.grad) for p in model.parameters() if p.grad is not None]
    weights, grads = [w for w, _ in moved], [g for _, g in moved]
    before = [w.clone() for w in weights]
    scale = rho / (nn.utils.get_total_norm(grads) + 1e-12)  # so that a gradient of 0 moves nothing
    torch._foreach_add_(weights, torch._foreach_mul(grads, scale))
    model.zero_grad(set_to_none=True)
    del moved, grads
    try:
        yield
    finally:
        torch._foreach_copy_(weights, before)


@torch.no_grad()
def clip_gradients(model: nn.Module, max_norm: float) -> None:
    """Scale the gradients so that their global norm is at most `max_norm`: optax.clip_by_global_norm, which adds no
    1e-6 to the norm."""
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    torch._foreach_mul_(grads, (max_norm / nn.utils.get_total_norm(grads)).clamp(max=1.0))


def average_weight(step: int, total: int, cfg: Optim) -> float:
    """Share of the weights after `step` (1..total) in their average, the rest being the average before it.

    Moving: 1 - min(decay, (1 + t) / (10 + t)), a shorter memory at the start. Mean of the last steps: 1 until then,
    1/2, 1/3...
    """
    if cfg.ema_decay:
        return 1 - min(cfg.ema_decay, (1 + step) / (10 + step))
    return 1 / max(step - total + round(cfg.average_last * total), 1)


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, weight: float) -> None:
    """average <- (1 - weight) * average + weight * model. Statistics of batches, which a Mixer has none of, are the
    model's."""
    torch._foreach_lerp_(list(average.parameters()), [p.detach() for p in model.parameters()], weight)
    for own, of_model in zip(average.buffers(), model.buffers(), strict=True):
        own.copy_(of_model)


def carry_over(old: Iterable[torch.optim.Optimizer], new: Iterable[torch.optim.Optimizer]) -> None:
    """Give `new` the state of `old`, parameter by parameter in their order, but for parameters that have got another
    shape.

    Those start as at the first step: what was gathered of their gradients is of sums over other patches, and a second
    moment has no resize.
    """
    for before, after in zip(old, new, strict=True):
        pairs = zip(before.param_groups, after.param_groups, strict=True)
        for p, q in ((p, q) for a, b in pairs for p, q in zip(a["params"], b["params"], strict=True)):
            if p.shape == q.shape and p in before.state:
                after.state[q] = before.state[p]


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
        for number, p in enumerate(p for group in optimizer.param_groups for p in group["params"]):
            for key, value in state.get(number, {}).items():
                optimizer.state[p][key] = optimizer.state[p][key].to(
                    value.dtype
                )  # torch makes it the parameter's: bfloat16 stays so
