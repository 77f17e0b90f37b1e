"""ResMLP equals the official code, forward, backward and in the names of its weights."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.family import seeded
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mlpmixer.models.architecture import build, count_params, create_model
from mlpmixer.models.configs import ResMLPConfig
from mlpmixer.models.names import MODELS
from mlpmixer.models.resmlp import ResMLP
from mlpmixer.weights.create import create_model as create_trained
from mlpmixer.weights.formats import WeightsError, from_arrays, name_table, read_foreign, to_foreign
from mlpmixer.weights.load import load_weights

FIXTURES = Path(__file__).parents[1] / "fixtures" / "family"
CASE = json.loads((FIXTURES / "manifest.json").read_text())["cases"]["resmlp"]
WANTED = np.load(FIXTURES / "resmlp.npz")
CFG = ResMLPConfig(
    image_size=32, patch_size=8, num_classes=10, num_blocks=2, hidden_dim=24, channels_mlp_dim=96, layer_scale=0.1
)


def official_state() -> dict[str, np.ndarray]:
    state: dict[str, np.ndarray] = seeded.state("resmlp", CASE["state"])
    assert seeded.digest(state) == CASE["state_sha256"]
    return state


def official(dtype: torch.dtype = torch.float64) -> tuple[ResMLP, Tensor]:
    """The network with the official code's weights, and the images of the case."""
    state = from_arrays(official_state(), name_table(CFG, "official").rows(CFG), "fixture")
    model = build(CFG).eval()
    model.load_state_dict(state)
    return model.to(dtype), torch.from_numpy(seeded.images("resmlp", 2, 32, 32)).to(dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)], ids=str)
def test_every_stage_equals_the_official_code(dtype: torch.dtype, tolerance: float) -> None:
    model, images = official(dtype)
    with torch.no_grad():
        stages = {"stem": model.stem(model.patches(images))}
        for i, block in enumerate(model.blocks):
            stages[f"block{i}"] = block(stages["stem" if i == 0 else f"block{i - 1}"])
        stages |= {"norm": model.tokens(images), "logits": model(images)}
    for name, got in stages.items():
        wanted = WANTED[f"resmlp/{name}"]
        assert np.abs(got.numpy() - wanted).max() <= tolerance * np.abs(wanted).max(), name


def test_gradients_equal_the_official_code() -> None:
    model, images = official()
    images.requires_grad_()
    (model(images).square().sum() / 2).backward()
    rows = {row.theirs: row for row in name_table(CFG, "official").rows(CFG)}
    parameters, shapes = dict(model.named_parameters()), dict(map(tuple, CASE["state"]))
    got = []
    for name in CASE["grad_names"]:
        grad = images.grad if name == "input" else parameters[rows[name].ours].grad
        assert grad is not None
        shape = images.shape if name == "input" else shapes[name]
        direction = seeded.uniform("resmlp/direction", name, shape, 1.0)
        got.append((grad.reshape(-1).numpy() * direction.reshape(-1)).sum())
    wanted = WANTED["resmlp/grad_dot"]
    assert np.abs(np.array(got) - wanted).max() <= 1e-10 * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("name", "params", "multiply_adds"),  # as the official code instantiates them, with 1000 classes
    [
        ("resmlp-s12", 15_350_872, 3_009_739_776),
        ("resmlp-s24", 30_020_680, 5_961_292_800),
        ("resmlp-s36", 44_690_488, 8_912_845_824),
        ("resmlp-b24/16", 115_736_776, 23_020_713_984),
        ("resmlp-b24/8", 129_138_280, 100_230_739_968),
    ],
)
def test_sizes_are_the_published_ones(name: str, params: int, multiply_adds: int) -> None:
    cfg = MODELS[name]
    with torch.device("meta"):
        assert count_params(build(cfg)) == cfg.num_params == params
    assert sum(layer.flops for layer in cfg.layers()) == 2 * multiply_adds


def test_layers_count_what_torch_counts() -> None:
    with FlopCounterMode(display=False) as flops:
        build(CFG)(torch.zeros(1, 3, 32, 32))
    assert sum(layer.flops for layer in CFG.layers()) == flops.get_total_flops()


@pytest.mark.parametrize(("form", "file"), [("official", "resmlp_s12"), ("timm", "resmlp_12_timm")])
def test_names_are_those_of_the_published_files(form: str, file: str) -> None:
    cfg = MODELS["resmlp-s12"]
    theirs = {row.theirs: list(row.shape) for row in name_table(cfg, form).rows(cfg)}
    assert theirs == json.loads((FIXTURES / "keys" / f"{file}.json").read_text())["state"]


@pytest.mark.parametrize("form", ["official", "timm"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_file_of_other_code_comes_back_bit_for_bit(form: str, suffix: str, tmp_path: Path) -> None:
    model, _ = official(torch.float32)
    theirs, file = to_foreign(CFG, model.state_dict(), form), tmp_path / f"w{suffix}"
    if suffix == ".pth":
        torch.save({"model": theirs}, file)
    else:
        save_file(theirs, file)
    loaded, meta = load_weights(file)
    assert meta.config == CFG and meta.provenance["form"] == form
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert dataclasses.replace(create_trained(CFG, weights=file).cfg) == CFG
    if form == "timm":
        assert {name: list(t.shape) for name, t in theirs.items()} == dict(map(tuple, CASE["timm_state"]))


def test_a_file_that_does_not_fit_is_refused_by_name(tmp_path: Path) -> None:
    theirs = to_foreign(CFG, official(torch.float32)[0].state_dict(), "official")
    del theirs["blocks.1.attn.bias"]
    save_file(theirs, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"missing blocks\.1\.attn\.bias \(16,\)"):
        read_foreign(tmp_path / "w.safetensors")


def test_the_start_is_the_official_one() -> None:
    torch.manual_seed(0)
    model = create_model("resmlp-s12", num_blocks=2)
    block = model.blocks[0]
    assert block.token_mixing.weight.std().item() == pytest.approx(0.02, rel=0.05) and not block.token_mixing.bias.any()
    assert (block.gamma_1 == 0.1).all() and (block.norm1.alpha == 1).all() and not block.norm1.beta.any()
    assert model.head.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.stem.weight.abs().max() <= model.stem.in_features**-0.5


def test_checkpointing_changes_no_gradient() -> None:
    torch.manual_seed(0)
    model, images = build(dataclasses.replace(CFG, drop_path=0.2)).train(), torch.randn(4, 3, 32, 32)
    grads = []
    for model.checkpointing in (False, True):
        model.zero_grad()
        torch.manual_seed(1)
        model(images).square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(grads[0]) == len(list(model.parameters()))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)
