"""The relatives equal the official codes: every stage, the gradients, the counts, and the names of their weights.

S2-MLP has no official code; its numbers are those of the papers' equations in numpy.
"""

import copy
import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures.family import seeded
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mlpmixer.models import asmlp, external_attention, repmlp, repmlpnet, s2mlp, vip
from mlpmixer.models.architecture import build, count_params
from mlpmixer.models.configs import (
    ASMLPConfig,
    GMLPConfig,
    NetworkConfig,
    RepMLPNetConfig,
    S2MLPConfig,
    S2MLPv2Config,
    ViPConfig,
)
from mlpmixer.models.layers import MapLinear, TokenLinear
from mlpmixer.models.names import MODELS
from mlpmixer.weights.formats import name_table, to_foreign
from mlpmixer.weights.load import load_weights

FIXTURES = Path(__file__).parents[1] / "fixtures" / "family"
CASES: dict[str, Any] = json.loads((FIXTURES / "manifest.json").read_text())["cases"]
SMALL: dict[str, NetworkConfig] = {
    "vip": ViPConfig(
        image_size=32, patch_size=4, num_classes=10, hidden_dims=(16, 24, 24), depths=(2, 1, 1), strides=(2, 1)
    ),
    "asmlp": ASMLPConfig(image_size=(32, 40), num_classes=10, hidden_dims=(22, 44), depths=(2, 1)),
    "gmlp": GMLPConfig(
        image_size=32, patch_size=8, num_classes=10, num_blocks=2, hidden_dim=16, channels_mlp_dim=96
    ),
    "repmlpnet": RepMLPNetConfig(
        image_size=(32, 24), num_classes=10, hidden_dims=(16, 32), depths=(2, 1), share_sets=(2, 4)
    ),
    "s2mlp": S2MLPConfig(
        image_size=(16, 24), patch_size=4, num_classes=10, num_blocks=2, hidden_dim=16, channels_mlp_dim=64
    ),
    "s2mlp_affine": S2MLPConfig(
        image_size=(16, 24), patch_size=4, num_classes=10, num_blocks=2, hidden_dim=16, channels_mlp_dim=64,
        norm="affine",
    ),
    "s2mlp_v2": S2MLPv2Config(
        image_size=(16, 24), patch_size=4, num_classes=10, hidden_dims=(16, 24), depths=(2, 1)
    ),
}  # fmt: skip
STAGES = {  # outputs of the fixtures -> modules
    "vip": {
        "permute_mlp0": "stages.0.0.permute_mlp", "block0": "stages.0.0", "stage0": "stages.0.1", "down0": "merges.1",
        "stage1": "stages.1.0", "stage2": "stages.2.0", "norm": "norm",
    },
    "asmlp": {
        "stem": "merges.0", "axial_shift0": "stages.0.0.axial_shift", "block0": "stages.0.0", "block1": "stages.0.1",
        "stage0": "merges.1", "stage1": "stages.1.0", "norm": "norm",
    },
    "gmlp": {"stem": "stem", "gate0": "blocks.0.gate", "block0": "blocks.0", "block1": "blocks.1", "norm": "norm"},
    "repmlpnet": {
        "rep0": "stages.0.0.repmlp_block", "block0": "stages.0.0", "stage0": "stages.0.1", "embed0": "merges.1",
        "stage1": "stages.1.0", "norm": "norm",
    },
    "s2mlp": {"stem": "stem_norm", "block0": "blocks.0", "block1": "blocks.1"},
    "s2mlp_affine": {"stem": "stem_norm", "block0": "blocks.0", "block1": "blocks.1"},
    "s2mlp_v2": {
        "component0": "stages.0.0.mlp2", "block0": "stages.0.0", "stage0": "stages.0.1", "merge1": "merges.1",
        "stage1": "stages.1.0",
    },
}  # fmt: skip


def fixture_state(case: str) -> dict[str, np.ndarray]:
    state: dict[str, np.ndarray] = seeded.state(case, CASES[case]["state"])
    assert seeded.digest(state) == CASES[case]["state_sha256"]
    return state


def s2_name(theirs: str, affine: bool) -> str:
    """The name here of a parameter of the numpy reference."""
    name = re.sub(r"^embed\.0\.", "stem.", theirs)
    name = re.sub(r"^embed\.(\d+)\.", r"merges.\1.linear.", name)
    name = re.sub(r"^(stages\.\d+\.\d+)\.(fc\d)\.", r"\1.channel_mixing.\2.", name)
    name = name.replace("fc3", "channel_mixing.fc1").replace("fc4", "channel_mixing.fc2")
    return name.replace("weight", "alpha").replace("bias", "beta") if affine and "norm" in name else name


def ours(case: str) -> dict[str, str]:
    """Names over there -> names here."""
    cfg = SMALL[case]
    if isinstance(cfg, S2MLPConfig | S2MLPv2Config):
        affine = getattr(cfg, "norm", "") == "affine"
        return {theirs: s2_name(theirs, affine) for theirs, _ in CASES[case]["state"]}
    form = "timm" if case == "gmlp" else "official"
    return {row.theirs: row.ours for row in name_table(cfg, form).rows(cfg)}


def network(case: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The small network of a case with the weights of the fixture."""
    model, names = build(SMALL[case]).eval(), ours(case)
    wanted = model.state_dict()
    state = {names[k]: torch.from_numpy(np.asarray(v)) for k, v in fixture_state(case).items()}
    assert state.keys() == wanted.keys()
    model = model.to(dtype)
    model.load_state_dict({k: v.reshape(wanted[k].shape).to(dtype if v.is_floating_point() else v.dtype)
                           for k, v in state.items()})  # fmt: skip
    return model


def inputs(case: str, dtype: torch.dtype = torch.float64) -> Tensor:
    shape = CASES[case]["input"]["shape"]
    if CASES[case]["input"]["kind"] == "images":
        return torch.from_numpy(seeded.images(case, shape[0], *shape[2:])).to(dtype)
    return torch.from_numpy(np.asarray(seeded.features(case, tuple(shape)))).to(dtype)


def wanted(case: str, output: str) -> np.ndarray:
    return np.asarray(np.load(FIXTURES / CASES[case]["file"])[f"{case}/{output}"])


def error(got: Tensor, case: str, output: str) -> float:
    """Largest difference, relative to the largest value. Maps are (B, H, W, C) here and (B, C, H, W) in some codes."""
    want = wanted(case, output)
    if got.ndim == 4 and want.ndim == 4 and got.shape != want.shape:
        got = got.permute(0, 3, 1, 2)
    if got.ndim != want.ndim:  # tokens in a row, or on their grid
        want = want.reshape(got.shape)
    assert got.shape == want.shape, (output, got.shape, want.shape)
    return float(np.abs(got.detach().numpy() - want).max() / np.abs(want).max())


def gradient_error(case: str, model: nn.Module, names: dict[str, str], out: Callable[[Tensor], Tensor]) -> float:
    images = inputs(case).requires_grad_()
    (out(images).square().sum() / 2).backward()
    parameters, shapes = dict(model.named_parameters()), dict(map(tuple, CASES[case]["state"]))
    got = []
    for name in CASES[case]["grad_names"]:
        grad = images.grad if name == "input" else parameters[names[name]].grad
        assert grad is not None
        direction = seeded.uniform(f"{case}/direction", name, images.shape if name == "input" else shapes[name], 1.0)
        got.append((grad.reshape(-1).numpy() * direction.reshape(-1)).sum())
    want = wanted(case, "grad_dot")
    return float(np.abs(np.array(got) - want).max() / np.abs(want).max())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)], ids=str)
@pytest.mark.parametrize("case", SMALL)
def test_every_stage_equals_the_official_code(case: str, dtype: torch.dtype, tolerance: float) -> None:
    model, got = network(case, dtype), {}
    for output, place in STAGES[case].items():
        model.get_submodule(place).register_forward_hook(
            lambda module, args, value, output=output: got.__setitem__(output, value)
        )
    with torch.no_grad():
        got["logits"] = model(inputs(case, dtype))
    for output, value in got.items():
        assert error(value, case, output) <= tolerance, output


@pytest.mark.parametrize("case", SMALL)
def test_gradients_equal_the_official_code(case: str) -> None:
    model = network(case)
    assert gradient_error(case, model, ours(case), model) <= 1e-10


OPERATORS: dict[str, Callable[[], nn.Module]] = {
    "vip_op": lambda: vip.WeightedPermuteMlp(24, 4, bias=True),
    "external_attention": lambda: external_attention.ExternalAttention(20),
    "external_attention_sharp": lambda: external_attention.ExternalAttention(12),
    "eamlp_attention": lambda: external_attention.MultiHeadExternalAttention(24, 2),
    "eamlp_attention_sharp": lambda: external_attention.MultiHeadExternalAttention(12, 1),
    "eamlp_block": lambda: external_attention.EAMLPBlock(24, 2, 48),
    "repmlp_v1": lambda: repmlp.RepMLP(8, 8, (8, 6), (4, 3), (1, 3), reduction=2, groups=4),
    "repmlp_v1_notile": lambda: repmlp.RepMLP(6, 6, (4, 5), (4, 5), (1, 3, 5), groups=3),
}


def operator(case: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    module = OPERATORS[case]().to(dtype).eval()
    module.load_state_dict({k: torch.from_numpy(np.asarray(v)) for k, v in fixture_state(case).items()})
    return module


@pytest.mark.parametrize("case", OPERATORS)
def test_operators_equal_the_official_code(case: str) -> None:
    module = operator(case)
    assert error(module(inputs(case)), case, "out") <= 1e-10
    if "attention" in CASES[case]["outputs"]:
        assert error(module.attention(inputs(case)), case, "attention") <= 1e-10
    if CASES[case].get("grad_names"):
        names = {name: name for name, _ in CASES[case]["state"]}
        assert gradient_error(case, module, names, module) <= 1e-10
    if not case.endswith("_sharp"):  # there 1e-9 matters, which float32 does not hold
        assert error(operator(case, torch.float32)(inputs(case, torch.float32)), case, "out") <= 1e-4


@pytest.mark.parametrize("case", ["repmlpnet_tiles_s_eq_c", "repmlpnet_tiles_s_lt_c"])
def test_tiles_of_repmlpnet_stay_apart(case: str) -> None:
    block = repmlpnet.RepBlock(8, 4, 3, CASES[case]["config"]["num_sharesets"], (1, 3), 4).double().eval()
    state = {k: torch.from_numpy(np.asarray(v)) for k, v in fixture_state(case).items()}
    block.load_state_dict({k: v.reshape(block.state_dict()[k].shape) for k, v in state.items()})
    assert error(block(inputs(case).permute(0, 2, 3, 1)), case, "out_straight") <= 1e-10


def test_the_norm_of_a_map_has_gradients_after_frozen_layers() -> None:
    # torch's own backward crashes the process for maps of this layout whose input has no gradient
    norm, x = asmlp.MapNorm(8).double(), torch.rand(2, 3, 4, 8, dtype=torch.float64)
    grads = []
    for maps in (x, x.clone().requires_grad_()):
        norm.zero_grad()
        norm(maps).pow(2).sum().backward()
        grads.append([p.grad for p in norm.parameters()])
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-12, atol=1e-12)


def test_shifts_are_the_official_ones() -> None:
    for case in (name for name in CASES if name.startswith("asmlp_shift")):
        c, size = CASES[case]["config"]["channels"], CASES[case]["config"]["shift_size"]
        x = torch.arange(1.0, c * 30 + 1, dtype=torch.float64).view(1, c, 5, 6).permute(0, 2, 3, 1)
        for axis, output in ((1, "dim2"), (2, "dim3")):
            np.testing.assert_array_equal(asmlp.shift(x, size, axis).permute(0, 3, 1, 2).numpy(), wanted(case, output))
    x = torch.arange(1.0, 301, dtype=torch.float64).view(1, 5, 6, 10)
    np.testing.assert_array_equal(s2mlp.shift(x).numpy(), wanted("s2_shift", "ss1"))
    np.testing.assert_array_equal(s2mlp.shift(x, 2, 1).numpy(), wanted("s2_shift", "ss2"))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(TokenLinear(6, 6), (2, 6, 5)), (MapLinear(5, 7), (2, 3, 4, 5)), (MapLinear(5, 7, bias=False), (2, 1, 1, 5))],
    ids=["tokens", "maps", "maps without bias"],
)
def test_a_traced_layer_computes_the_same(
    layer: nn.Module, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(shape)
    computed = layer(x)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(layer(x), computed)


def test_repmlpnet_folds_into_mlps() -> None:
    model = network("repmlpnet")
    plain = repmlpnet.folded(model)
    assert error(plain(inputs("repmlpnet")), "repmlpnet", "deploy_logits") <= 1e-10
    rows = {row.theirs: row for row in name_table(plain.cfg, "official").rows(plain.cfg)}
    assert {name: list(row.shape) for name, row in rows.items()} == dict(map(tuple, CASES["repmlpnet"]["deploy_state"]))
    state = plain.state_dict()
    for name in CASES["repmlpnet"]["outputs"]:
        if name.startswith("deploy.stages"):
            assert error(state[rows[name.removeprefix("deploy.")].ours], "repmlpnet", name) <= 1e-10


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"kernels": (1, 2)}, r"kernels must be odd, got \(1, 2\)"),
        ({"kernels": (-1,)}, r"kernels must be odd, got \(-1,\)"),
        ({"tile": (0, 4)}, r"tile, .* must be positive, got 4, 4, \(4, 4\), \(0, 4\), 1 and 1"),
        ({"groups": 0}, "groups must be positive"),
        ({"groups": 3}, "groups must divide 4 and 4 channels, got 3"),
        ({"tile": (2, 3)}, r"tile must divide image_size \(4, 4\), got \(2, 3\)"),
        ({"tile": (2, 4), "reduction": 9}, r"reduction must be at most 8 \(channels times tiles\), got 9"),
    ],
)
def test_repmlp_refuses_sizes_that_do_not_fit(sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        repmlp.RepMLP(4, 4, **{"image_size": (4, 4), "tile": (4, 4)} | sizes)


def test_heads_of_external_attention_share_the_channels() -> None:
    with pytest.raises(ValueError, match="num_heads must divide dim 24, got 5"):
        external_attention.MultiHeadExternalAttention(24, 5)


@pytest.mark.parametrize("channels", [(8, 8), (4, 6)])
def test_repmlp_folds_into_mlps(channels: tuple[int, int]) -> None:
    torch.manual_seed(0)
    block = repmlp.RepMLP(*channels, (8, 6), (4, 3), (1, 3), reduction=2, groups=2).double()
    images = torch.randn(3, channels[0], 8, 6, dtype=torch.float64)
    for _ in range(3):
        block(images)  # statistics that differ from 0 and 1
    before = block.eval()(images)
    block.fold()
    torch.testing.assert_close(block(images), before, rtol=1e-12, atol=1e-12)
    assert sum(isinstance(m, nn.Conv2d) for m in block.modules()) == 1
    if channels == (8, 8):
        folding = operator("repmlp_v1")
        folding.fold()
        for name, tensor in folding.state_dict().items():
            if f"deploy.{name}" in CASES["repmlp_v1"]["outputs"]:
                assert error(tensor, "repmlp_v1", f"deploy.{name}") <= 1e-10


@pytest.mark.parametrize(
    ("name", "params", "multiply_adds"),
    [
        ("vip-s/14", 29_892_904, 6_855_613_440),
        ("vip-s/7", 25_114_984, 6_901_767_168),
        ("vip-m/7", 55_272_488, 16_284_307_456),
        ("vip-l/7", 87_784_936, 24_340_320_256),
        ("as-mlp-t", 28_282_696, 4_350_425_088),
        ("as-mlp-s", 49_594_696, 8_512_223_232),
        ("as-mlp-b", 87_752_808, 15_126_077_440),
        ("repmlpnet-t224", 38_293_608, 2_807_987_200),
        ("repmlpnet-b224", 68_242_712, 6_675_721_728),
        ("repmlpnet-t256", 58_687_848, 4_258_078_720),
        ("repmlpnet-b256", 96_447_512, 9_640_209_408),
        ("repmlpnet-d256", 86_887_648, 8_636_207_360),
        ("repmlpnet-l256", 117_641_560, 11_609_484_288),
        ("s2-mlp-wide", 72_241_384, 13_989_033_984),
        ("s2-mlp-deep", 53_917_288, 10_462_682_112),
        ("s2-mlpv2-s/7", 25_113_448, 6_901_767_168),
        ("s2-mlpv2-m/7", 55_269_864, 16_284_307_456),
        ("s2-mlpv2-s/14", 29_891_176, 6_855_613_440),
        ("gmlp-ti/16", 5_867_328, 1_328_989_184),
        ("gmlp-s/16", 19_422_656, 4_392_060_928),
        ("gmlp-b/16", 73_075_392, 15_720_452_096),
        ("eamlp-nano", 1_183_978, None),
    ],
)
def test_sizes_are_the_published_ones(name: str, params: int, multiply_adds: int | None) -> None:
    cfg = MODELS[name]
    with torch.device("meta"):
        assert count_params(build(cfg)) == cfg.num_params == params
    assert multiply_adds is None or sum(layer.flops for layer in cfg.layers()) == 2 * multiply_adds


@pytest.mark.parametrize(
    ("name", "params", "multiply_adds"),
    [
        ("repmlpnet-t224", 38_331_720, 2_798_453_760),
        ("repmlpnet-b224", 68_332_664, 6_656_905_728),
        ("repmlpnet-t256", 58_739_400, 4_245_626_880),
        ("repmlpnet-b256", 96_568_184, 9_615_633_408),
        ("repmlpnet-d256", 86_985_280, 8_610_812_160),
        ("repmlpnet-l256", 117_820_600, 11_579_010_048),
    ],
)
def test_sizes_of_folded_repmlpnets(name: str, params: int, multiply_adds: int) -> None:
    cfg = dataclasses.replace(MODELS[name], folded=True)
    with torch.device("meta"):
        assert count_params(build(cfg)) == cfg.num_params == params
    assert sum(layer.flops for layer in cfg.layers()) == 2 * multiply_adds


@pytest.mark.parametrize("cfg", [*SMALL.values(), MODELS["eamlp-nano"]], ids=[*SMALL, "eamlp"])
def test_layers_count_what_torch_counts(cfg: NetworkConfig) -> None:
    cfg = cfg.deployed()  # convolutions of a network in training are computed as larger products
    size = cfg.image_size if isinstance(cfg.image_size, tuple) else (cfg.image_size,) * 2
    with FlopCounterMode(display=False) as flops:
        build(cfg).eval()(torch.zeros(1, 3, *size))
    assert sum(layer.flops for layer in cfg.layers()) == flops.get_total_flops()


@pytest.mark.parametrize(
    ("name", "form", "file"),
    [
        ("vip-s/7", "official", "vip_s7"),
        ("as-mlp-t", "official", "asmlp_t"),
        ("gmlp-s/16", "timm", "gmlp_s16_timm"),
        ("repmlpnet-t224", "official", "repmlpnet_t224_train"),
    ],
)
def test_names_are_those_of_the_published_files(name: str, form: str, file: str) -> None:
    cfg = MODELS[name]
    theirs = {row.theirs: list(row.shape) for row in name_table(cfg, form).rows(cfg)}
    assert theirs == json.loads((FIXTURES / "keys" / f"{file}.json").read_text())["state"]
    if name.startswith("repmlpnet"):
        cfg = dataclasses.replace(cfg, folded=True)
        theirs = {row.theirs: list(row.shape) for row in name_table(cfg, form).rows(cfg)}
        assert theirs == json.loads((FIXTURES / "keys" / "repmlpnet_t224_deploy.json").read_text())["state"]


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("case", ["vip", "asmlp", "gmlp", "repmlpnet"])
def test_a_file_of_other_code_comes_back_bit_for_bit(case: str, suffix: str, tmp_path: Path) -> None:
    cfg, model, file = SMALL[case], network(case, torch.float32), tmp_path / f"w{suffix}"
    theirs = to_foreign(cfg, model.state_dict(), "timm" if case == "gmlp" else "official")
    if suffix == ".pth":
        torch.save({"state_dict": theirs}, file)
    else:
        save_file(theirs, file)
    size = cfg.image_size if isinstance(cfg.image_size, tuple) else (cfg.image_size,) * 2
    notes: list[dict[str, object]] = []
    loaded, meta = load_weights(file, image_size=size, report=notes.append)
    left_open = "leaves this open: shift_size 5 assumed; for another, create_model(config, weights=FILE)"
    assert [str(note["note"]) for note in notes] == ([f"{file} {left_open}"] if case == "asmlp" else [])
    assert dataclasses.replace(meta.config, image_size=cfg.image_size) == cfg
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    again = to_foreign(cfg, loaded.state_dict(), "timm" if case == "gmlp" else "official")
    assert all(torch.equal(again[name], tensor) for name, tensor in theirs.items())


def test_what_a_file_leaves_open_is_assumed_and_said(tmp_path: Path) -> None:
    cfg = dataclasses.replace(SMALL["asmlp"], image_size=224)
    save_file(to_foreign(cfg, network("asmlp", torch.float32).state_dict(), "official"), tmp_path / "w.safetensors")
    for like, said in ((None, "image_size 224 and shift_size 5 assumed"), (cfg, "")):
        notes: list[dict[str, object]] = []
        assert load_weights(tmp_path / "w.safetensors", like=like, report=notes.append)[1].config == cfg
        assert said in str(notes) and bool(notes) == bool(said)


def test_memories_of_external_attention_start_equal_and_train_apart() -> None:
    module = external_attention.ExternalAttention(20)
    assert torch.equal(module.linear_1.weight, module.linear_0.weight.transpose(0, 1))
    assert module.linear_1.weight.data_ptr() != module.linear_0.weight.data_ptr()
    with pytest.raises(ValueError, match=r"expected maps of shape \(B, 20, H, W\), got \(2, 12, 4, 4\)"):
        module(torch.zeros(2, 12, 4, 4))


@pytest.mark.parametrize(
    ("size", "tile", "share_sets", "kernels"),
    [((4, 3), (4, 3), 2, (1, 3)), ((8, 6), (4, 3), 4, (3, 5)), ((3, 2), (3, 2), 8, (1, 7)), ((5, 5), (5, 5), 1, ())],
)
def test_repmlpnet_trains_as_with_convolutions(
    size: tuple[int, int], tile: tuple[int, int], share_sets: int, kernels: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    (rows, cols), (h, w) = size, tile
    ours = repmlpnet.RepBlock(8, h, w, share_sets, kernels, 4).double()
    theirs = copy.deepcopy(ours)

    def explicit(x: Tensor) -> Tensor:
        """As the paper writes it: (B, C, H, W) -> (B, C, H, W), every tile on its own."""
        gate = torch.sigmoid(theirs.gp.fc2(torch.relu(theirs.gp.fc1(x.mean((2, 3))))))
        b, down, across = x.shape[0], rows // h, cols // w
        tiles = x.view(b, 8 // share_sets, share_sets, down, h, across, w).permute(0, 1, 3, 5, 2, 4, 6)
        tiles = tiles.reshape(-1, share_sets, h, w)
        y = theirs.fc3_bn(torch.einsum("spq,nsq->nsp", theirs.fc3.weight, tiles.flatten(2)).view(tiles.shape))
        for k in kernels:
            y = y + theirs.get_submodule(f"repconv{k}")(tiles)
        y = y.view(b, 8 // share_sets, down, across, share_sets, h, w).permute(0, 1, 4, 2, 5, 3, 6)
        return y.reshape(b, 8, rows, cols) * gate[:, :, None, None]

    for _ in range(2):
        x = torch.randn(3, 8, rows, cols, dtype=torch.float64)
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        got, want = ours(a.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), explicit(b)
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
        for out in (got, want):
            (out.square().sum() / 2).backward()
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=1e-10)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-9)
    for p, q in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-10)


def test_repmlpnet_can_be_traced_before_it_is_folded() -> None:
    model = network("repmlpnet", torch.float32)
    images = inputs("repmlpnet", torch.float32)
    program = torch.export.export(model, (images,))
    torch.testing.assert_close(program.module()(images), model(images))
