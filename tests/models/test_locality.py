"""Locality injection: convolutions of the tokens and the folded plain Mixer are one function."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mlpmixer.models import locality
from mlpmixer.models.configs import MixerConfig
from mlpmixer.models.mixer import Mixer, MixerBlock
from mlpmixer.training import optimizers
from mlpmixer.training.recipe import Optim

CFG = MixerConfig(
    image_size=(6, 10),
    patch_size=2,
    in_channels=2,
    num_classes=3,
    num_blocks=2,
    hidden_dim=8,
    tokens_mlp_dim=5,
    channels_mlp_dim=12,
)


def injected(cfg: MixerConfig, size: int, seed: int = 0) -> Mixer:
    """A Mixer with kernels and everything else drawn at random."""
    model = Mixer(cfg)
    locality.inject(model, size)
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        nn.init.normal_(p, std=0.3, generator=generator)
    return model


def images(cfg: MixerConfig, dtype: torch.dtype = torch.float32) -> Tensor:
    h, w = cfg.image_size if isinstance(cfg.image_size, tuple) else (cfg.image_size, cfg.image_size)
    return torch.randn(3, cfg.in_channels, h, w, dtype=dtype, generator=torch.Generator().manual_seed(1))


class Convolved(nn.Module):
    """The same token mixing written on the tokens (..., C, S): a convolution beside the identity, W1, GELU, W2, another
    convolution."""

    def __init__(self, block: MixerBlock) -> None:
        super().__init__()
        self.mlp, self.grid = block.token_mixing, block.part_grid

    def local(self, tokens: Tensor, kernel: Tensor) -> Tensor:
        maps = tokens.reshape(-1, 1, *self.grid)
        return tokens + F.conv2d(maps, kernel, padding=kernel.shape[-1] // 2).reshape(tokens.shape)

    def forward(self, x: Tensor) -> Tensor:
        read, write = self.mlp.fc1, self.mlp.fc2
        assert isinstance(read, locality.LocalLinear) and isinstance(write, locality.LocalLinear)
        hidden = F.gelu(
            F.linear(self.local(x, read.kernel.flip(2, 3)), read.weight, read.bias), approximate=self.mlp.approximate
        )
        return self.local(F.linear(hidden, write.weight), write.kernel) + write.bias


@settings(deadline=None, max_examples=60)
@given(
    part_grid=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    parts=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    size=st.sampled_from([1, 3, 5, 9]),
    activation=st.sampled_from(["gelu_tanh", "gelu_erf"]),
    seed=st.integers(0, 1000),
)
def test_convolutions_of_the_tokens_fold_exactly(
    part_grid: tuple[int, int], parts: tuple[int, int], size: int, activation: str, seed: int
) -> None:
    image_size = (2 * part_grid[0] * parts[0], 2 * part_grid[1] * parts[1])
    cfg = dataclasses.replace(CFG, image_size=image_size, parts=parts, activation=activation)
    model = injected(cfg, size, seed).double().eval()
    plain = locality.folded(model)
    assert {type(layer) for layer in plain.modules() if isinstance(layer, nn.Linear)} == {nn.Linear}
    x = images(cfg, torch.float64)
    trained = model(x)
    for block in model.blocks:
        assert isinstance(block, MixerBlock)
        block.token_mixing = Convolved(block)  # type: ignore[assignment]
    convolved = model(x)
    assert (plain(x) - convolved).abs().max() < 1e-10 and (trained - convolved).abs().max() < 1e-10


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_trains_is_bit_for_bit_what_is_folded_under_autocast_too(dtype: torch.dtype) -> None:
    model = injected(CFG, 3).eval()
    plain, x = (
        locality.folded(model).requires_grad_(False),
        images(CFG),
    )  # F.linear has another order for weights that ask for gradients
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        assert torch.equal(plain(x), model(x))


def test_injected_kernels_change_neither_the_function_nor_the_random_numbers() -> None:
    model, x = Mixer(CFG), images(CFG)
    nn.init.normal_(model.head.weight)  # type: ignore[arg-type]
    before, random = model(x), torch.get_rng_state()
    names = list(model.state_dict())
    locality.inject(model, 5)
    assert torch.equal(model(x), before) and torch.equal(torch.get_rng_state(), random)
    assert list(locality.folded(model).state_dict()) == names


def test_a_folded_mixer_is_a_copy() -> None:
    model = injected(CFG, 3)
    plain = locality.folded(model)
    assert not {p.data_ptr() for p in plain.parameters()} & {p.data_ptr() for p in model.parameters()}
    assert all(p.is_leaf and p.requires_grad for p in plain.parameters())


def test_kernels_learn_by_adamw_without_decay_at_the_rate_of_their_layer() -> None:
    model = injected(CFG, 3)
    adamw, muon = optimizers.make_optimizers(model, Optim(name="muon", lr=0.01, layer_decay=0.5, frozen_layers=2))
    kernels = {p: name for name, p in model.named_parameters() if name.endswith(".kernel")}
    rates = {
        kernels[p]: (g["peak_lr"], g["weight_decay"]) for g in adamw.param_groups for p in g["params"] if p in kernels
    }
    assert rates == {f"blocks.1.token_mixing.fc{i}.kernel": (0.005, 0.0) for i in (1, 2)}
    assert not model.blocks[0].token_mixing.fc1.kernel.requires_grad  # type: ignore[union-attr]
    assert not any(p in kernels for g in muon.param_groups for p in g["params"])


def test_the_centre_of_a_kernel_scales_and_a_neighbour_shifts() -> None:
    layer = nn.Linear(6, 1)  # a row of W1 over a grid of 2 x 3
    with torch.no_grad():
        layer.weight.copy_(torch.arange(1.0, 7.0)[None])
        local = locality.LocalLinear(layer, locality.moves((2, 3), 3), columns=False)
        local.kernel[0, 0, 1, 1], local.kernel[0, 0, 1, 2] = 2.0, 10.0  # itself, and its neighbour on the right
    assert local.whole_weight().tolist() == [[3 + 20, 6 + 30, 9, 12 + 50, 15 + 60, 18]]


@pytest.mark.parametrize("size", [2, -1, -3])
def test_a_kernel_without_a_centre_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"odd kernel size such as 3, or 0 for none, got {size}"):
        Optim(locality=size)
