"""The network equals the paper's and the official code's."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mlpmixer.models.architecture import count_params, create_model
from mlpmixer.models.configs import MixerConfig
from mlpmixer.models.mixer import Mixer, MixerBlock
from mlpmixer.models.names import MIXERS

FIXTURES = Path(__file__).parents[1] / "fixtures"
TINY = MixerConfig(
    image_size=32, patch_size=8, num_classes=10, num_blocks=2, hidden_dim=48, tokens_mlp_dim=24, channels_mlp_dim=96
)
SMALL = MixerConfig(
    image_size=(12, 8),
    patch_size=(4, 2),
    num_classes=5,
    num_blocks=3,
    hidden_dim=16,
    tokens_mlp_dim=12,
    channels_mlp_dim=24,
)


def official(cfg: MixerConfig = TINY) -> Mixer:
    """The official network's weights (tests/fixtures/tiny_weights.npz) in ours."""
    flat = np.load(FIXTURES / "tiny_weights.npz")
    names = {"stem": "stem", "norm": "pre_head_layer_norm", "head": "head"}
    for i in range(cfg.num_blocks):
        names |= {f"blocks.{i}.norm{n + 1}": f"MixerBlock_{i}/LayerNorm_{n}" for n in (0, 1)}
        names |= {
            f"blocks.{i}.{m}.fc{n + 1}": f"MixerBlock_{i}/{m}/Dense_{n}"
            for m in ("token_mixing", "channel_mixing")
            for n in (0, 1)
        }
    state = {}
    for ours, theirs in names.items():
        if "norm" in ours:
            state[f"{ours}.weight"] = flat[f"{theirs}/scale"]
        elif ours == "stem":
            state[f"{ours}.weight"] = (
                flat[f"{theirs}/kernel"].transpose(3, 2, 0, 1).reshape(cfg.hidden_dim, -1)
            )  # HWIO -> (C, in*P*P)
        else:
            state[f"{ours}.weight"] = flat[f"{theirs}/kernel"].T
        state[f"{ours}.bias"] = flat[f"{theirs}/bias"]
    model = Mixer(cfg).eval()
    model.load_state_dict({k: torch.tensor(np.ascontiguousarray(v)) for k, v in state.items()})
    return model


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    arrays = {k: torch.from_numpy(v) for k, v in np.load(FIXTURES / "tiny_expected.npz").items()}
    arrays["images"] = arrays["images"].permute(0, 3, 1, 2)
    return arrays


def random(cfg: MixerConfig, seed: int = 0) -> Mixer:
    """A model in which no weight is zero, so that nothing hides."""
    torch.manual_seed(seed)
    model = Mixer(cfg)
    for p in model.parameters():
        nn.init.normal_(p, std=0.2)
    return model.eval()


@pytest.mark.parametrize("name", ["stem", "block_0", "block_1", "pre_logits", "logits"])
def test_every_stage_equals_the_official_network(name: str, expected: dict[str, Tensor]) -> None:
    wanted = expected[name].flatten(1, 2) if name == "stem" else expected[name]
    torch.testing.assert_close(official().intermediates(expected["images"])[name], wanted, atol=1e-5, rtol=0)


def test_float64_equals_the_official_network_to_rounding(expected: dict[str, Tensor]) -> None:
    logits = official().double()(expected["images"].double())
    torch.testing.assert_close(logits, expected["logits_f64"], atol=1e-13, rtol=0)


def test_a_small_stem_shows_that_the_layernorm_epsilon_is_the_official_one(expected: dict[str, Tensor]) -> None:
    model = official()
    with torch.no_grad():
        model.stem.weight.mul_(0.01)
        model.stem.bias.mul_(0.01)
    torch.testing.assert_close(model(expected["images"]), expected["logits_stem_x0p01"], atol=1e-5, rtol=0)
    for norm in (m for m in model.modules() if isinstance(m, nn.LayerNorm)):
        norm.eps = 1e-5
    assert (model(expected["images"]) - expected["logits_stem_x0p01"]).abs().max() > 1e-2


def test_the_erf_form_of_gelu_is_not_the_official_one(expected: dict[str, Tensor]) -> None:
    model = official(dataclasses.replace(TINY, activation="gelu_erf"))
    assert 5e-5 < (model(expected["images"]) - expected["logits"]).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("S/32", 19_104_624),
        ("S/16", 18_528_264),
        ("S/8", 20_646_504),
        ("B/32", 60_293_428),
        ("B/16", 59_880_472),
        ("L/32", 206_939_264),
        ("L/16", 208_196_168),
        ("H/14", 432_350_952),
        ("Pico/1", 167_562),
        ("Pico/2", 138_762),
        ("Nano/2", 1_126_506),
        ("Nano/4", 1_132_170),
        ("Nano/8", 1_150_602),
        ("Mini/4", 650_610),
        ("Tiny/8", 4_397_834),
    ],
)
def test_parameter_counts_are_exact(name: str, params: int) -> None:
    with torch.device("meta"):
        assert count_params(Mixer(MIXERS[name])) == MIXERS[name].num_params == params


def test_every_model_of_the_zoo_has_a_counted_size() -> None:
    counted = test_parameter_counts_are_exact.pytestmark[0].args[1]
    assert {name for name, _ in counted} == set(MIXERS)


def test_initialisation_is_the_official_one() -> None:
    torch.manual_seed(0)
    model = create_model("S/32", num_classes=10)
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            assert not layer.bias.any()
            if name == "head":
                assert not layer.weight.any()
            else:
                std = layer.in_features**-0.5
                assert layer.weight.std().item() == pytest.approx(std, rel=0.02)
                assert layer.weight.abs().max().item() <= 2.2737 * std


def as_convolutions(model: Mixer, images: Tensor) -> Tensor:
    """The same network in the words of convolutions: a strided one, full-size depth-wise ones with shared weights, and
    1x1 ones."""
    cfg = model.cfg
    (p, q), c = cfg.patch_size, cfg.hidden_dim
    rows, cols = cfg.grid
    x = F.conv2d(
        images, model.stem.weight.view(c, cfg.in_channels, p, q), model.stem.bias, stride=(p, q)
    )  # (B, C, rows, cols)

    def layer_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
        return norm(x.movedim(1, -1)).movedim(-1, 1)

    for block in model.blocks:
        assert isinstance(block, MixerBlock)
        y, mlp = layer_norm(block.norm1, x), block.token_mixing
        kernel = mlp.fc1.weight.view(-1, 1, rows, cols).repeat(
            c, 1, 1, 1
        )  # the same D_S full-size filters for every channel
        h = F.gelu(
            F.conv2d(y, kernel, mlp.fc1.bias.repeat(c), groups=c), approximate=mlp.approximate
        )  # (B, C*D_S, 1, 1)
        kernel = mlp.fc2.weight.t().reshape(-1, 1, rows, cols).repeat(c, 1, 1, 1)
        x = x + F.conv_transpose2d(h, kernel, groups=c) + mlp.fc2.bias.view(rows, cols)
        y, mlp = layer_norm(block.norm2, x), block.channel_mixing
        h = F.gelu(F.conv2d(y, mlp.fc1.weight[:, :, None, None], mlp.fc1.bias), approximate=mlp.approximate)
        x = x + F.conv2d(h, mlp.fc2.weight[:, :, None, None], mlp.fc2.bias)
    return model.head(layer_norm(model.norm, x).mean((2, 3)))


def test_a_mixer_with_parts_is_the_mean_of_the_plain_one_on_its_crops() -> None:
    cfg = dataclasses.replace(SMALL, image_size=(24, 24), parts=(2, 3))
    plain, parted = random(SMALL).double(), Mixer(cfg).double().eval()
    parted.load_state_dict(plain.state_dict())  # the same weights, of the same shapes
    images = torch.randn(2, 3, 24, 24, dtype=torch.float64)
    crops = [crop for band in images.chunk(2, 2) for crop in band.chunk(3, 3)]
    torch.testing.assert_close(parted(images), torch.stack([plain(crop) for crop in crops]).mean(0), atol=1e-12, rtol=0)


def test_parts_that_do_not_divide_the_grid_are_refused() -> None:
    with pytest.raises(ValueError, match="a grid of 3x4 patches cannot be cut into 2x1 equal parts"):
        dataclasses.replace(SMALL, parts=(2, 1))


def test_a_mixer_is_a_convolutional_network_of_a_special_kind() -> None:
    model, images = random(SMALL).double(), torch.randn(2, 3, 12, 8, dtype=torch.float64)
    torch.testing.assert_close(as_convolutions(model, images), model(images), atol=1e-10, rtol=0)


@settings(max_examples=15, deadline=None)
@given(
    rows=st.integers(1, 4), cols=st.integers(1, 4), p=st.integers(1, 5), q=st.integers(1, 5),
    channels=st.integers(1, 5), classes=st.integers(0, 4),
)  # fmt: skip
def test_rectangles_and_any_number_of_channels_work(
    rows: int, cols: int, p: int, q: int, channels: int, classes: int
) -> None:
    cfg = MixerConfig(
        image_size=(rows * p, cols * q), patch_size=(p, q), in_channels=channels, num_classes=classes, num_blocks=1,
        hidden_dim=6, tokens_mlp_dim=3, channels_mlp_dim=5,
    )  # fmt: skip
    model = random(cfg)
    out = model(torch.randn(2, channels, rows * p, cols * q))
    assert out.shape == (2, classes or 6) and out.isfinite().all()
    assert count_params(model) == cfg.num_params


@pytest.mark.parametrize("shape", [(2, 3, 30, 32), (2, 3, 64, 16), (2, 1, 32, 32), (3, 32, 32)])
def test_an_image_of_another_size_is_refused_with_both_sizes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected images of shape \(B, 3, 32, 32\), got"):
        Mixer(TINY)(torch.zeros(shape))


def test_a_patch_that_does_not_divide_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match="nearest that is: 224x224"):
        create_model("S/16", image_size=230)


def test_unknown_names_get_the_nearest_ones() -> None:
    with pytest.raises(ValueError, match="did you mean S/16"):
        create_model("s16")
    with pytest.raises(ValueError, match="did you mean num_classes"):
        create_model("S/16", num_clases=3)


def test_the_residual_stream_stays_contiguous() -> None:
    model, seen = random(SMALL), []
    for block in model.blocks:
        block.register_forward_hook(lambda m, args, out: seen.append(out.is_contiguous()))
    model(torch.randn(2, 3, 12, 8))
    assert seen == [True] * 3


def test_checkpointing_changes_nothing_but_memory() -> None:
    cfg = dataclasses.replace(SMALL, dropout=0.1, drop_path=0.2)
    grads = []
    for checkpointing in (False, True):
        model = random(cfg).train()
        model.checkpointing = checkpointing
        torch.manual_seed(1)
        model(torch.ones(4, 3, 12, 8)).square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=0, rtol=0)


def drop_path_model(form: str) -> Mixer:
    return random(dataclasses.replace(SMALL, drop_path=0.5, drop_path_form=form, num_classes=0))


def test_stochastic_depth_grows_linearly_and_is_off_in_evaluation() -> None:
    model = drop_path_model("unscaled")
    assert [b.drop_path for b in model.blocks] == [0.0, 0.25, 0.5]
    plain = Mixer(dataclasses.replace(SMALL, num_classes=0)).eval()
    plain.load_state_dict(model.state_dict())
    images = torch.randn(3, 3, 12, 8)
    assert torch.equal(model(images), plain(images)) and not torch.equal(model.train()(images), plain(images))


@pytest.mark.parametrize(("form", "scale"), [("unscaled", 1.0), ("rescaled", 2.0)])
def test_stochastic_depth_drops_both_branches_of_single_samples(form: str, scale: float) -> None:
    block = drop_path_model(form).train().blocks[2]
    assert isinstance(block, MixerBlock)
    x = torch.randn(1, SMALL.num_patches, 16).expand(2000, -1, -1)
    branch = block.token_mixing(block.norm1(x[:1]).transpose(1, 2)).transpose(1, 2)
    moved = block.mix_tokens(x) - x
    kept = moved.flatten(1).abs().sum(1) > 0
    assert 0.45 < kept.float().mean() < 0.55
    torch.testing.assert_close(moved[kept][:1], scale * branch, atol=1e-5, rtol=1e-5)
    again = (block.mix_channels(x) - x).flatten(1).abs().sum(1) > 0
    assert 0.45 < again.float().mean() < 0.55 and not torch.equal(again, kept)


def test_compiles_in_one_graph_exports_and_runs_in_bfloat16() -> None:
    model, images = random(SMALL), torch.randn(2, 3, 12, 8)
    wanted = model(images)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images), wanted)
    exported = torch.export.export(model, (images,)).module()
    torch.testing.assert_close(exported(images), wanted)
    with torch.autocast("cpu", torch.bfloat16):
        assert (model(images).float() - wanted).abs().max() < 0.1 * wanted.abs().max()
    assert model.bfloat16()(images.bfloat16()).dtype == torch.bfloat16
