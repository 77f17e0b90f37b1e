"""Parameter groups, optimizers and their state."""

from typing import Any

import pytest
import torch

from mlpmixer.models.architecture import build, create_model
from mlpmixer.models.configs import (
    ASMLPConfig,
    EAMLPConfig,
    GMLPConfig,
    NetworkConfig,
    RepMLPNetConfig,
    ResMLPConfig,
    S2MLPConfig,
    S2MLPv2Config,
    StagesConfig,
    ViPConfig,
)
from mlpmixer.models.mixer import Mixer
from mlpmixer.training import optimizers as optim
from mlpmixer.training.recipe import Optim


def small() -> Mixer:
    return create_model("Pico/2", num_blocks=2, hidden_dim=8, tokens_mlp_dim=4, channels_mlp_dim=12)


@pytest.mark.parametrize("name", ["adamw", "sgd", "muon"])
def test_only_matrices_decay(name: str) -> None:
    model = small()
    groups = [g for o in optim.make_optimizers(model, Optim(name=name, weight_decay=0.1)) for g in o.param_groups]  # type: ignore[arg-type]
    ids = [id(p) for g in groups for p in g["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())
    for group in groups:
        assert group["weight_decay"] == (0.1 if group["params"][0].ndim == 2 else 0.0)
        assert len({p.ndim for p in group["params"]}) == 1


def test_muon_gets_hidden_matrices_only() -> None:
    model = small()
    muon = optim.make_optimizers(model, Optim(name="muon"))[1]
    assert isinstance(muon, optim.Muon)
    taken = {id(p) for g in muon.param_groups for p in g["params"]}
    assert {n for n, p in model.named_parameters() if id(p) in taken} == {
        f"blocks.{i}.{m}.fc{k}.weight" for i in (0, 1) for m in ("token_mixing", "channel_mixing") for k in (1, 2)
    }


MLP = {"channel_mixing.fc1", "channel_mixing.fc2"}
HIDDEN: dict[type[NetworkConfig], set[str]] = {
    ResMLPConfig: MLP | {"token_mixing"},
    GMLPConfig: {"fc1", "gate.proj", "fc2"},
    S2MLPConfig: MLP | {"fc1", "fc2"},
    EAMLPConfig: {"attn.trans_dims", "attn.linear_0", "attn.linear_1", "attn.proj", "mlp.fc1", "mlp.fc2"},
    S2MLPv2Config: MLP | {"mlp1", "split_attention.fc1", "split_attention.fc2", "mlp2"},
    ASMLPConfig: MLP | {f"axial_shift.{fc}" for fc in ("fc1", "fc_rows", "fc_columns", "fc3")},
    ViPConfig: MLP
    | {f"permute_mlp.{fc}" for fc in ("mlp_c", "mlp_h", "mlp_w", "reweight.fc1", "reweight.fc2", "proj")},
    RepMLPNetConfig: {f"repmlp_block.{fc}" for fc in ("gp.fc1", "gp.fc2", "fc3")}
    | {f"ffn_block.ffn_fc{i}.conv" for i in (1, 2)},
}


@pytest.mark.parametrize("kind", HIDDEN, ids=lambda kind: kind.architecture)
def test_muon_gets_the_matrices_of_the_blocks_of_every_network(kind: type[NetworkConfig]) -> None:
    """Neither stem, merges (the embeddings of later stages) and head, nor norms, biases, scales and kernels."""
    stages: dict[str, Any] = {"hidden_dims": (8, 12), "depths": (1, 1)}
    own: dict[Any, dict[str, Any]] = {ViPConfig: {"strides": (2,)}, RepMLPNetConfig: {"share_sets": (1, 4)}}
    if not issubclass(kind, StagesConfig):
        stages = {"num_blocks": 2, "hidden_dim": 8, "channels_mlp_dim": 12}
    model = build(kind(image_size=16, num_classes=3, **{"patch_size": 4} | stages | own.get(kind, {})))
    muon = optim.make_optimizers(model, Optim(name="muon"))[1]
    taken = {id(p) for g in muon.param_groups for p in g["params"]}
    blocks = ("stages.0.0", "stages.1.0") if issubclass(kind, StagesConfig) else ("blocks.0", "blocks.1")
    assert {n for n, p in model.named_parameters() if id(p) in taken} == {
        f"{block}.{name}.weight" for block in blocks for name in HIDDEN[kind]
    }


def test_sam_gradient_in_a_bowl() -> None:
    model = torch.nn.ParameterDict({"w": torch.tensor([3.0, 4.0]), "frozen": torch.tensor([7.0])})
    model["frozen"].requires_grad_(False)
    before = {k: v.detach().clone() for k, v in model.items()}
    for _ in range(2):  # of w.w / 2 the gradient is w: norm 5
        (model["w"].square().sum() / 2).backward()
        with optim.sam_perturbation(model, 0.5):
            assert model["w"].grad is None and torch.equal(model["frozen"], before["frozen"])
            (model["w"].square().sum() / 2).backward()
        torch.testing.assert_close(model["w"].grad, torch.tensor([3.3, 4.4]))
        assert all(torch.equal(model[k], before[k]) for k in before)
        model.zero_grad()


def test_sam_with_zero_gradient_moves_nothing() -> None:
    model = torch.nn.ParameterDict({"w": torch.zeros(2)})
    (model["w"].square().sum() / 2).backward()
    with optim.sam_perturbation(model, 0.5):
        assert torch.equal(model["w"], torch.zeros(2))


def learn(model: Mixer, cfg: Optim, steps: int) -> None:
    """Steps 1..steps of the rule on a loss that reaches every weight but the dead biases."""
    optimizers = optim.make_optimizers(model, cfg)
    for step in range(1, steps + 1):
        optim.set_learning_rates(optimizers, step, 1.0)
        images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(step))
        torch.nn.functional.cross_entropy(model(images), torch.arange(4)).backward()
        for o in optimizers:
            o.step()
            o.zero_grad()


def changed(before: dict[str, torch.Tensor], model: Mixer) -> set[str]:
    """Names of the parameters that are not what they were; a dead bias (its gradient is rounding noise) is not looked
    at."""
    return {
        k
        for k, p in model.named_parameters()
        if not torch.equal(p, before[k]) and not k.endswith("token_mixing.fc2.bias")
    }


def with_a_head() -> tuple[Mixer, dict[str, torch.Tensor]]:
    model = small()
    torch.nn.init.normal_(model.head.weight)  # type: ignore[arg-type]
    return model, {k: p.detach().clone() for k, p in model.named_parameters()}


@pytest.mark.parametrize("name", ["adamw", "sgd", "muon"])
@pytest.mark.parametrize(
    ("frozen_layers", "kept"), [(1, ("stem",)), (2, ("stem", "blocks.0")), (3, ("stem", "blocks"))]
)
def test_frozen_layers_keep_their_weights(name: str, frozen_layers: int, kept: tuple[str, ...]) -> None:
    model, before = with_a_head()
    learn(model, Optim(name=name, weight_decay=0.5, frozen_layers=frozen_layers), 3)  # type: ignore[arg-type]
    wanted = {k for k in before if not k.startswith(kept) and not k.endswith("token_mixing.fc2.bias")}
    assert changed(before, model) == wanted
    assert not any(p.requires_grad for k, p in model.named_parameters() if k.startswith(kept))


def test_too_many_frozen_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="4 layers, of which the last learns in any case: at most 3"):
        optim.make_optimizers(small(), Optim(frozen_layers=4))


@pytest.mark.parametrize("name", ["adamw", "sgd", "muon"])
def test_head_learns_alone_at_first(name: str) -> None:
    cfg = Optim(name=name, weight_decay=0.5, head_steps=2)  # type: ignore[arg-type]
    for steps, wanted in ((2, "head"), (3, "")):
        model, before = with_a_head()
        learn(model, cfg, steps)
        assert changed(before, model) == {
            k for k in before if k.startswith(wanted) and not k.endswith("token_mixing.fc2.bias")
        }


@pytest.mark.parametrize("name", ["adamw", "sgd", "muon"])
def test_layer_decay_halves_the_rate_by_layer(name: str) -> None:
    model = small()
    cfg = Optim(name=name, lr=0.8, muon_lr=0.8, layer_decay=0.5)  # type: ignore[arg-type]
    optimizers = optim.make_optimizers(model, cfg)
    optim.set_learning_rates(optimizers, 1, 0.1)
    rates = {id(p): g["lr"] for o in optimizers for g in o.param_groups for p in g["params"]}
    wanted = {"stem": 0.01, "blocks.0": 0.02, "blocks.1": 0.04, "norm": 0.08, "head": 0.08}
    for key, p in model.named_parameters():
        assert rates[id(p)] == pytest.approx(next(rate for owner, rate in wanted.items() if key.startswith(owner)))


def test_bfloat16_momentum_equals_sgd_up_to_rounding() -> None:
    options = {"lr": 0.1, "momentum": 0.8984375, "weight_decay": 0.1}  # a momentum that bfloat16 holds exactly
    ours, theirs = (torch.nn.Parameter(torch.randn(50, 20, generator=torch.Generator().manual_seed(3))) for _ in "ab")
    half, full = optim.HalfMomentumSGD([ours], **options), torch.optim.SGD([theirs], **options)  # type: ignore[arg-type]
    for seed in range(5):
        ours.grad = torch.randn(50, 20, generator=torch.Generator().manual_seed(seed))
        theirs.grad = ours.grad.clone()
        half.step()
        full.step()
    assert half.state[ours]["momentum_buffer"].dtype == torch.bfloat16
    torch.testing.assert_close(ours, theirs, atol=1e-2, rtol=0)  # five steps of up to 0.1 * 5, rounded at 2 ** -9
    assert not torch.equal(ours, theirs)


@pytest.mark.parametrize("norm", [0.5, 0.9999999, 5.0])
def test_clipping_scales_exactly_to_the_norm(norm: float) -> None:
    model = small()
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    whole = torch.nn.utils.get_total_norm(grads)
    for g in grads:
        g.mul_(norm / whole)
    before = [g.clone() for g in grads]
    optim.clip_gradients(model, 1.0)
    assert torch.nn.utils.get_total_norm(grads).item() == pytest.approx(min(norm, 1.0), rel=3e-7)
    if norm < 1:
        assert all(torch.equal(a, b) for a, b in zip(before, grads, strict=True))


@pytest.mark.parametrize(
    "options",
    [
        {"name": "adamw"},
        {"name": "sgd"},
        {"name": "muon"},
        {"name": "sgd", "momentum_dtype": "bfloat16", "layer_decay": 0.5},
    ],
)
def test_optimizer_state_round_trips_as_tensors(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    a, b = small(), small()
    b.load_state_dict(a.state_dict())
    first, second = (optim.make_optimizers(m, Optim(**options)) for m in (a, b))

    def step(model: Mixer, optimizers: list[torch.optim.Optimizer]) -> None:
        model(torch.ones(2, 1, 8, 8)).logsumexp(1).sum().backward()
        for o in optimizers:
            o.step()
            o.zero_grad()

    step(a, first)
    b.load_state_dict(a.state_dict())
    optim.load_state_tensors(second, {k: v.clone() for k, v in optim.state_tensors(first).items()})
    step(a, first)
    step(b, second)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize(("in_hardware", "apart"), [(True, 2e-3), (False, 5e-3)])
def test_batched_muon_equals_torch(in_hardware: bool, apart: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optim, "has_bf16", lambda device: in_hardware)
    torch.manual_seed(0)
    shapes = [(12, 5), (5, 12), (5, 12), (7, 7), (7, 7), (3, 7, 7), (2, 12, 5)]  # three: as many matrices
    ours, theirs = (
        [torch.nn.Parameter(torch.randn(s, generator=torch.Generator().manual_seed(3))) for s in shapes] for _ in "ab"
    )
    alone = [torch.nn.Parameter(m.detach().clone()) for q in theirs for m in (q if q.ndim == 3 else (q,))]
    single = torch.optim.Muon(alone, lr=0.02, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    batched = optim.Muon(ours, lr=0.02, momentum=0.9)
    for _ in range(4):
        for p in ours:
            p.grad = torch.randn(p.shape)
        grads = [g for p in ours if p.grad is not None for g in (p.grad if p.ndim == 3 else (p.grad,))]
        for q, grad in zip(alone, grads, strict=True):
            q.grad = grad.clone()
        batched.step()
        single.step()
    for p, q in zip([m for r in ours for m in (r if r.ndim == 3 else (r,))], alone, strict=True):
        torch.testing.assert_close(p, q, atol=apart, rtol=0)  # bfloat16 inside torch's


def test_muon_divides_by_the_root_of_the_second_moment_before_it_orthogonalises(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(optim, "has_bf16", lambda device: True)
    start = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    polar = optim.Muon([ours], lr=0.02, momentum=0.9, beta2=0.99)
    plain = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, momentum=0.0, adjust_lr_fn="match_rms_adamw")
    first, second = torch.zeros(6, 9), torch.zeros(6, 9)
    scale = torch.logspace(-3, 0, 9)  # columns whose gradients differ a thousandfold
    for i in range(4):
        grad = scale * torch.randn(6, 9, generator=torch.Generator().manual_seed(i + 1))
        first, second = first.lerp(grad, 0.1), 0.99 * second + 0.01 * grad**2
        ours.grad, theirs.grad = grad.clone(), grad.lerp(first, 0.9) / (second.sqrt() + 1e-8)
        polar.step()
        plain.step()
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=0)
    assert polar.state[ours].keys() == {"momentum_buffer", "exp_avg_sq"}
