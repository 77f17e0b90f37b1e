"""The optimizers: parameter groups, Muon, gradient clipping, sharpness-aware minimisation, and their state on disk."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from mlpmixer.hardware import has_bf16
from mlpmixer.models.architecture import capability, has
from mlpmixer.training.recipe import Optim

Group = dict[str, object]


class Muon(torch.optim.Optimizer):
    """torch.optim.Muon (adjust_lr_fn="match_rms_adamw") with the Newton-Schulz iterations of equal shapes in one batch.

    The same update, faster; and a parameter (S, m, n) is S matrices. With `beta2` the momentum is divided by the
    root of the second moment first, as Adam divides it: PolarAdamW (Zhang 2026, arXiv:2605.07067).

    The iterations run in bfloat16, as in torch, where the device has it in hardware, otherwise in float32 (emulated
    bfloat16 takes 10 to 20 times as long).
    """

    NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
    NUM_ITERATIONS, EPS, ADAM_EPS = 5, 1e-7, 1e-8

    def __init__(
        self, params: Iterable[nn.Parameter] | list[Group], momentum: float, beta2: float = 0.0, lr: float = 1e-3
    ) -> None:
        super().__init__(cast(Any, params), {"lr": lr, "weight_decay": 0.1, "momentum": momentum, "beta2": beta2})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        assert closure is None
        a, b, c = self.NEWTON_SCHULZ
        for group in self.param_groups:
            lr = group["lr"]
            kept = ("momentum_buffer", "exp_avg_sq") if group["beta2"] else ("momentum_buffer",)
            shapes: dict[tuple[int, int], list[tuple[Tensor, ...]]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    short, long = sorted(p.shape[-2:])
                    buffers = [self.state[p].setdefault(name, torch.zeros_like(p)) for name in kept]
                    shapes.setdefault((short, long), []).extend(
                        zip(*map(_matrices, (p, p.grad, *buffers)), strict=True)
                    )
            for (_, long), found in shapes.items():
                matrices, grads, momenta, *squares = map(list, zip(*found, strict=True))
                torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
                nesterov = torch._foreach_lerp(grads, momenta, group["momentum"])
                for moments in squares:  # without Adam's correction of the first steps, which x /= norm takes out again
                    torch._foreach_mul_(moments, group["beta2"])
                    torch._foreach_addcmul_(moments, grads, grads, 1 - group["beta2"])
                    roots = torch._foreach_sqrt(moments)
                    torch._foreach_add_(roots, self.ADAM_EPS)
                    torch._foreach_div_(nesterov, roots)
                wide = [update if update.shape[0] <= update.shape[1] else update.T for update in nesterov]
                x = torch.stack(wide)  # (matrices of this shape, short side, long side)
                x = x.bfloat16() if has_bf16(x.device) else x.float()
                x /= x.flatten(1).norm(dim=1).clamp(min=self.EPS)[:, None, None]
                for _ in range(self.NUM_ITERATIONS):
                    gram = x @ x.mT
                    x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
                updates = [
                    u if p.shape[0] <= p.shape[1] else u.T
                    for p, u in zip(matrices, x.to(matrices[0].dtype), strict=True)
                ]
                torch._foreach_mul_(matrices, 1 - lr * group["weight_decay"])
                # match_rms_adamw: Liu et al. 2025, "Muon is scalable", equation 4
                torch._foreach_add_(matrices, updates, alpha=-lr * 0.2 * math.sqrt(long))


def _matrices(p: Tensor) -> tuple[Tensor, ...]:
    return p.unbind(0) if p.ndim == 3 else (p,)


class HalfMomentumSGD(torch.optim.SGD):
    """SGD with its momentum in bfloat16, as in official fine-tuning: optax.sgd(momentum, accumulator_dtype=bfloat16).

    m <- gradient + bfloat16(momentum) * m, added up in float32; p <- p - lr * m; then m is rounded. No Nesterov.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            decay = torch.tensor(group["momentum"], dtype=torch.bfloat16)  # as in JAX: 0.9 becomes 0.8984375
            for p in group["params"]:
                if p.grad is None:
                    continue
                if p not in self.state:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p, dtype=torch.bfloat16)
                buffer = self.state[p]["momentum_buffer"]
                update = p.grad.add(p, alpha=group["weight_decay"]).add_(buffer * decay)
                buffer.copy_(update)
                p.add_(update, alpha=-group["lr"])


def make_optimizers(model: nn.Module, cfg: Optim) -> list[torch.optim.Optimizer]:
    """The optimizer of a network, or the two of muon. Groups carry `peak_lr` and the `from_step` they learn from.

    Muon (orthogonalised momentum) gets the hidden matrices, AdamW everything else. Weight decay is for matrices and
    convolutions, but not for a kernel that all channels share (`optim.locality`). Frozen layers are in no group and
    take no gradient. `layer_decay` is ELECTRA's (Clark et al. 2020), which BEiT brought to images (Bao et al. 2022).

    Errors: ValueError when all layers or more are to be frozen, and when the network does not declare what it takes.
    """
    depth_of: dict[nn.Parameter, int] = {}
    if cfg.frozen_layers or cfg.layer_decay != 1:
        layers = capability(model, "layers", "optim.frozen_layers" if cfg.frozen_layers else "optim.layer_decay")()
        depth_of = {p: depth for depth, modules in enumerate(layers) for m in modules for p in m.parameters()}
    last = max(depth_of.values(), default=0)
    if cfg.frozen_layers > last:
        raise ValueError(
            f"optim.frozen_layers={cfg.frozen_layers}, but the network has {last + 1} layers, of which the last learns "
            f"in any case: at most {last}"
        )
    if cfg.name == "muon":
        capability(model, "hidden_matrices", "optim.name=muon")
    matrices = set(capability(model, "hidden_matrices", "optim")() if has(model, "hidden_matrices") else ())
    hidden = matrices if cfg.name == "muon" else set()
    groups: dict[tuple[bool, bool, float, int], list[nn.Parameter]] = {}
    for name, p in model.named_parameters():
        depth = depth_of.get(p, last)
        p.requires_grad_(depth >= cfg.frozen_layers)
        if p.requires_grad:
            decays = p.ndim == 2 or (p.ndim == 4 and len(p) > 1) or p in matrices
            peak_lr = (cfg.muon_lr if p in hidden else cfg.lr) * cfg.layer_decay ** (last - depth)
            from_step = 1 if name.startswith("head.") else 1 + cfg.head_steps
            groups.setdefault((p in hidden, decays, peak_lr, from_step), []).append(p)

    def groups_of(muon: bool) -> list[Group]:
        return [
            {
                "params": params,
                "weight_decay": cfg.weight_decay if decays else 0.0,
                "lr": peak_lr,
                "peak_lr": peak_lr,
                "from_step": from_step,
            }
            for (in_muon, decays, peak_lr, from_step), params in groups.items()
            if in_muon == muon
        ]

    optimizers: list[torch.optim.Optimizer] = []
    if cfg.name == "sgd":
        sgd = torch.optim.SGD if cfg.momentum_dtype == "float32" else HalfMomentumSGD
        optimizers.append(sgd(groups_of(muon=False), lr=cfg.lr, momentum=cfg.momentum))
    else:
        optimizers.append(torch.optim.AdamW(groups_of(muon=False), lr=cfg.lr, betas=cfg.betas, fused=True))
    if muon := groups_of(muon=True):
        optimizers.append(Muon(muon, momentum=cfg.muon_momentum, beta2=cfg.muon_beta2))
    return optimizers


def set_learning_rates(optimizers: Iterable[torch.optim.Optimizer], step: int, factor: float) -> None:
    """Set the rates to `factor` times their peaks; parameters that learn only after `step` take no gradient."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
            for p in group["params"]:
                p.requires_grad_(step >= group["from_step"])


@contextmanager
def sam_perturbation(model: nn.Module, rho: float) -> Iterator[None]:
    """Within, the weights w are w + rho g / |g|, where g is their gradient; afterwards they are exactly w again.

    |g| is the global norm; the gradients are cleared on entry. Sharpness-aware minimisation (Foret et al. 2021,
    arXiv:2010.01412, equation 2 with p = 2). Weights without a gradient, such as frozen ones, do not move.
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
    """Scale the gradients to a global norm of at most `max_norm`: optax.clip_by_global_norm, without torch's 1e-6."""
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    torch._foreach_mul_(grads, (max_norm / nn.utils.get_total_norm(grads)).clamp(max=1.0))


def transfer_optimizer_state(old: Iterable[torch.optim.Optimizer], new: Iterable[torch.optim.Optimizer]) -> None:
    """Give `new` the state of `old`, parameter by parameter in their order, except for parameters of another shape.

    Those start without state: their moments are of sums over other patches, and a second moment cannot be resized.
    """
    for before, after in zip(old, new, strict=True):
        pairs = zip(before.param_groups, after.param_groups, strict=True)
        for p, q in ((p, q) for a, b in pairs for p, q in zip(a["params"], b["params"], strict=True)):
            if p.shape == q.shape and p in before.state:
                after.state[q] = before.state[p]


def state_tensors(optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """The state of the optimizers as named tensors, such as "optim.0.17.exp_avg"."""
    return {
        f"optim.{i}.{index}.{key}": value
        for i, optimizer in enumerate(optimizers)
        for index, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def load_state_tensors(optimizers: list[torch.optim.Optimizer], tensors: dict[str, Tensor]) -> None:
    """The reverse of `state_tensors`; other names are ignored. (torch's own way would cast bfloat16 to float32.)"""
    for i, optimizer in enumerate(optimizers):
        params = [p for group in optimizer.param_groups for p in group["params"]]
        for name, value in tensors.items():
            if name.startswith(f"optim.{i}."):
                _, _, index, key = name.split(".", 3)
                p = params[int(index)]
                optimizer.state[p][key] = value.to(p.device, copy=True)
