"""Appendix A.1: each variant is the plain Mixer where it should be, and differs from it as its name says; and a run to
the page."""

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers.datasets import write_cifar10
from torch import nn

from mlpmixer.models.architecture import Build
from mlpmixer.models.configs import MixerConfig
from mlpmixer.models.mixer import Mixer
from mlpmixer.models.names import MIXERS
from mlpmixer.reproduce import ablation, run
from mlpmixer.reproduce.ablation import SCALES, VARIANTS, saving
from mlpmixer.reproduce.comparison import nano
from mlpmixer.reproduce.experiment import Scale
from mlpmixer.reproduce.variants import Grouped, PerChannel, Pyramid, PyramidBlock, Views, ViewsBlock, untied

CFG = MixerConfig(
    image_size=(16, 4),
    patch_size=(4, 2),
    in_channels=2,
    num_classes=5,
    num_blocks=2,
    hidden_dim=6,
    tokens_mlp_dim=7,
    channels_mlp_dim=9,
)
IMAGES = torch.randn(4, 2, 16, 4, generator=torch.Generator().manual_seed(0))


def random_weights(build: Build, cfg: MixerConfig = CFG) -> Mixer:
    model = build(cfg)
    assert isinstance(model, Mixer)
    torch.manual_seed(1)
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    return model


def test_equal_untied_mlps_are_the_tied_one() -> None:
    tied, apart = random_weights(Mixer), random_weights(untied)
    state = tied.state_dict()
    for name, tensor in state.items():
        if ".token_mixing." in name:
            state[name] = torch.cat([tensor] * CFG.hidden_dim)
    apart.load_state_dict(state)
    for model in (tied, apart):
        model(IMAGES).square().sum().backward()
    torch.testing.assert_close(apart(IMAGES), tied(IMAGES), rtol=1e-5, atol=1e-5)
    grads = dict(apart.named_parameters())
    for name, p in tied.named_parameters():
        grad, want = grads[name].grad, p.grad
        assert grad is not None and want is not None
        if ".token_mixing." in name:
            grad = grad.reshape(CFG.hidden_dim, *want.shape).sum(0)
        torch.testing.assert_close(grad, want, rtol=1e-4, atol=1e-4)


def test_untied_mlps_see_their_own_channel() -> None:
    layer, x = PerChannel(3, 4, 5), torch.randn(2, 3, 4)
    weight, bias = layer.weight.view(3, 5, 4), layer.bias.view(3, 5)
    want = torch.stack([F.linear(x[:, c], weight[c], bias[c]) for c in range(3)], 1)
    torch.testing.assert_close(layer(x), want)
    cfg = dataclasses.replace(CFG, hidden_dim=64, tokens_mlp_dim=64)
    torch.manual_seed(0)
    fresh = untied(cfg).state_dict()["blocks.1.token_mixing.fc1.weight"]
    assert fresh.shape == (64 * 64, 8) and fresh.std().item() == pytest.approx(8**-0.5, rel=0.02)


def test_groups_of_one_channel_are_the_plain_mixer() -> None:
    plain, grouped = random_weights(Mixer), random_weights(Grouped(1))
    assert torch.equal(grouped(IMAGES), plain(IMAGES))


@pytest.mark.parametrize("groups", [2, 3])
def test_block_diagonal_grouped_mlp_is_the_plain_one(groups: int) -> None:
    plain = random_weights(Mixer)
    wide = random_weights(Grouped(groups), dataclasses.replace(CFG, tokens_mlp_dim=groups * CFG.tokens_mlp_dim))
    state = plain.state_dict()
    for name, tensor in state.items():
        if ".token_mixing." in name:
            state[name] = torch.kron(torch.eye(groups), tensor) if tensor.ndim == 2 else torch.cat([tensor] * groups)
    wide.load_state_dict(state)
    torch.testing.assert_close(wide(IMAGES), plain(IMAGES), rtol=1e-5, atol=1e-5)


def test_groups_are_neighbours_or_views() -> None:
    grouped, views = random_weights(Grouped(2)), random_weights(Views(2))
    views.load_state_dict(grouped.state_dict(), strict=False)
    block, x = views.blocks[0], torch.randn(3, 8, 6)
    assert isinstance(block, ViewsBlock)
    columns = block.columns(x)
    assert columns.shape == (3, 3, 16)  # (B, C / G, G * S)
    seen = F.linear(x, block.views.weight, block.views.bias)
    assert torch.equal(columns[:, 1], torch.cat([seen[:, :, 2], seen[:, :, 3]], 1)) and torch.equal(
        block.rows(columns), seen
    )
    assert (views(IMAGES) - grouped(IMAGES)).abs().max() > 0.01
    for block in views.blocks:
        assert isinstance(block, ViewsBlock)
        nn.init.eye_(block.views.weight)
        nn.init.zeros_(block.views.bias)
    torch.testing.assert_close(views(IMAGES), grouped(IMAGES))


def test_pyramid_reduces_tokens_beside_a_mean() -> None:
    plain, same = random_weights(Mixer), random_weights(Pyramid(1))
    assert torch.equal(same(IMAGES), plain(IMAGES))
    cfg = dataclasses.replace(CFG, num_blocks=3)
    pyramid = random_weights(Pyramid(2), cfg)
    steps = pyramid.intermediates(IMAGES)
    assert [steps[f"block_{i}"].shape[1] for i in range(3)] == [8, 2, 2] and steps["logits"].shape == (4, 5)
    block, x = pyramid.blocks[1], torch.randn(3, 8, 6)
    assert isinstance(block, PyramidBlock) and block.token_mixing.fc2.weight.shape == (2, 7)
    for p in block.token_mixing.fc2.parameters():
        nn.init.zeros_(p)
    mean = F.avg_pool2d(x.transpose(1, 2).reshape(3, 6, 4, 2), 2).flatten(2).transpose(1, 2)
    torch.testing.assert_close(block.mix_tokens(x), mean)


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="divides hidden_dim=6, got 4"):
        Grouped(4)(CFG)
    with pytest.raises(ValueError, match="grid of 4 x 2 patches, mixed as one, got 3"):
        Pyramid(3)(CFG)


@pytest.mark.parametrize("scale", sorted(SCALES))
def test_untying_and_grouping_keep_the_flops(scale: Scale) -> None:
    flops = {name: SCALES[scale].size_of(name)["flops"] for name in SCALES[scale].networks}
    alike = {name for name, of in flops.items() if of == flops["tied"]}
    assert alike == {name for name in flops if name.split("-")[0] in ("tied", "untied", "grouped")}
    views = {of for name, of in flops.items() if name.startswith("views")}
    assert (
        len(views) == 1
        and flops["tied"] < views.pop() < 1.2 * flops["tied"]
        and flops["pyramid"] < 0.75 * flops["tied"]
    )


def test_tying_saves_what_arithmetic_says() -> None:
    mixing = 12 * (2 * 196 * 384 + 384 + 196)
    assert saving(MIXERS["B/16"].adapted(num_classes=0)) == {
        "channels": 768,
        "tied_mixing": mixing,
        "tied": 59_111_472,
        "untied_mixing": 768 * mixing,
        "untied": 59_111_472 + 767 * mixing,
    }


@pytest.mark.slow
def test_ablation_writes_its_page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = ("tied", "untied", "grouped-2", "views-2", "pyramid")
    tiny = dataclasses.replace(
        SCALES["small"],
        networks=dict.fromkeys(names, nano(2, 16, 8)),
        steps=4,
        rate_steps=2,
        builds={name: VARIANTS[name][0] for name in names},
        rates=dict.fromkeys(names, (1e-3,)) | {"tied": (1e-3, 1e-2)},
        batch_size=16,
        evaluations=2,
    )
    monkeypatch.setitem(ablation.SCALES, "small", tiny)
    page, path = run(
        "ablation", out=tmp_path / "out", data_dir=str(write_cifar10(tmp_path / "data", per_class=6)), device="cpu"
    )
    rows, text = page.figures["variants"], path.read_text()
    assert tuple(rows) == names and all(row["train_s"] > 0 and len(row["curve"]) == 2 for row in rows.values())
    assert {row["against_tied"] for name, row in rows.items() if name != "tied"} <= {"level", "above", "below"}
    assert rows["untied"]["params"] - rows["tied"]["params"] == 15 * 2 * (2 * 64 * 8 + 8 + 64)
    assert (
        "by 512 to 1,280, which is C" in text
        and "| 768 (C = 768) | 1,449,909,504 |" in text
        and "| 59 M | 59,111,472 |" in text
    )
    assert "untied level with tied" in text or "untied above tied" in text or "untied below tied" in text
    assert (tmp_path / "out" / "variants.png").exists()
