"""Comparisons of networks: permutation, data-scaling and frontier, each run to its page in small, and their parts."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.datasets import write_cifar10

from mlpmixer.data.datasets import stratified_share
from mlpmixer.models.configs import MixerConfig, ResNetConfig, ViTConfig
from mlpmixer.models.mixer import Mixer
from mlpmixer.reproduce import frontier, permutation, run
from mlpmixer.reproduce.chance import describe_difference, error_bars, is_tie
from mlpmixer.reproduce.comparison import COMPARISONS, Comparison, nano, rate_cells
from mlpmixer.reproduce.experiment import Scale
from mlpmixer.reproduce.permutation import MODES, Shuffled, for_shuffled, orders, pixel_order, reordered

CFG = MixerConfig(
    image_size=(12, 8),
    patch_size=(4, 2),
    in_channels=2,
    num_classes=5,
    num_blocks=2,
    hidden_dim=6,
    tokens_mlp_dim=7,
    channels_mlp_dim=9,
)


def random_mixer(cfg: MixerConfig) -> Mixer:
    torch.manual_seed(0)
    model = Mixer(cfg)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model.eval()


# --- permutation --------------------------------------------------------------------------------------------------


SIZES = (12, 8), (4, 2)  # of CFG: image, patch


def test_permuted_weights_undo_the_shuffle() -> None:
    model, images = random_mixer(CFG), torch.randn(4, 2, 12, 8)
    logits, shuffled = model(images), reordered(images, pixel_order("patches", *SIZES, seed=3))
    torch.testing.assert_close(for_shuffled(model, seed=3)(shuffled), logits, rtol=1e-5, atol=1e-5)
    assert (model(shuffled) - logits).abs().max() > 0.1  # the weights as they were do not


def test_orders_are_what_they_are_called() -> None:
    (patches, inside), positions = orders(CFG.grid, CFG.cell, 5), torch.arange(96).float().reshape(1, 1, 12, 8)
    cut = Mixer(dataclasses.replace(CFG, in_channels=1)).patches
    before, after = cut(positions)[0], cut(reordered(positions, pixel_order("patches", *SIZES, seed=5)))[0]
    assert torch.equal(after, before[patches][:, inside]) and not torch.equal(patches, torch.arange(12))
    for mode in MODES:
        order = pixel_order(mode, *SIZES, seed=5)
        assert torch.equal(order.sort().values, torch.arange(96))
        assert torch.equal(order, pixel_order(mode, *SIZES, seed=5))
    assert torch.equal(pixel_order("original", *SIZES, seed=5), torch.arange(96))


def test_all_networks_see_the_same_shuffled_image() -> None:
    pytest.importorskip("transformers", reason='pip install "mlpmixer[rivals]"')
    resnet = ResNetConfig(image_size=8, in_channels=2, num_classes=5, depths=(1, 1), width=4, small_images=True)
    images, order = torch.randn(2, 2, 8, 8), pixel_order("patches", (8, 8), (4, 4), seed=0)
    for cfg in (resnet, dataclasses.replace(CFG, image_size=8, patch_size=4)):
        shuffled = Shuffled(mode="patches")(cfg).eval()
        torch.nn.init.normal_(shuffled.network.head.weight)
        assert torch.equal(shuffled(images), shuffled.network(reordered(images, order)))
        assert not any("order" in name for name in shuffled.state_dict())


# --- what the comparisons rest on ---------------------------------------------------------------------------------


def test_shares_are_stratified_and_nested() -> None:
    labels = np.repeat([0, 1, 2], [100, 50, 3])
    small, large = stratified_share(labels, 0.1, 0), stratified_share(labels, 0.3, 0)
    assert np.bincount(labels[small]).tolist() == [10, 5, 1] and np.bincount(labels[large]).tolist() == [30, 15, 1]
    assert set(small) <= set(large) and (np.diff(large) > 0).all()
    assert set(stratified_share(labels, 0.1, 1)) != set(small)


@pytest.mark.parametrize("scale", sorted(COMPARISONS))
def test_networks_of_a_scale_have_one_size(scale: Scale) -> None:
    pytest.importorskip("transformers", reason='pip install "mlpmixer[rivals]"')
    sizes = [COMPARISONS[scale].size_of(name) for name in ("Mixer", "ViT", "ResNet")]
    for what in ("params", "flops"):
        values = [size[what] for size in sizes]
        assert max(values) < 1.45 * min(values), (what, values)


def test_ties_are_told_from_differences() -> None:
    assert is_tie(0.5, 0.5, 100) and is_tie(0.50, 0.51, 1000) and not is_tie(0.5, 0.6, 1000)
    assert describe_difference("A", 0.7, "B", 0.5, 1000) == "A above B (70.0 % against 50.0 %, on 1,000 images)"
    assert describe_difference("A", 0.5, "B", 0.51, 100) == "A level with B (50.0 % against 51.0 %, on 100 images)"
    below, above = error_bars([0.5, 1.0], 100)
    assert below == pytest.approx([0.0962, 0.0370], abs=1e-4) and above == pytest.approx([0.0962, 0.0], abs=1e-4)


def test_best_rate_at_an_end_is_told() -> None:
    inside = {"tried": "0.1: 50.0 %, 0.3: 70.0 %, 1: 60.0 %", "taken": "0.3"}
    assert rate_cells({0.1: 0.5, 0.3: 0.7, 1.0: 0.6}) == inside
    assert rate_cells({0.1: 0.5, 0.3: 0.7})["taken"] == "0.3 (an end of what was tried)"
    assert rate_cells({0.3: 0.7})["taken"] == "0.3"


def test_frontier_has_the_points_that_no_other_beats() -> None:
    assert frontier.frontier([3, 1, 2, 2, 4], [0.5, 0.1, 0.4, 0.3, 0.5]) == [1, 2, 0]


# --- whole runs ---------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """A stand-in for CIFAR-10, and networks that are soon trained."""
    pytest.importorskip("transformers", reason='pip install "mlpmixer[rivals]"')
    images = {"image_size": 32, "num_classes": 10}
    small = Comparison(
        networks={
            "Mixer": nano(1, 16, 8),
            "ViT": ViTConfig(patch_size=4, num_blocks=1, hidden_dim=16, num_heads=1, mlp_dim=32, **images),
            "ResNet": ResNetConfig(depths=(1, 1), width=4, bottleneck=False, small_images=True, **images),
        },
        steps=4,
        rate_steps=2,
        rates={"Mixer": (1e-3, 1e-2), "ViT": (1e-3,), "ResNet": (1e-2,)},
        batch_size=16,
        evaluations=2,
    )
    monkeypatch.setitem(COMPARISONS, "small", small)
    monkeypatch.setitem(permutation.SCALES, "small", small.only("Mixer", "ResNet"))
    family = frontier.Family(sizes={"1 x 8": (1, 8, 4), "1 x 16": (1, 16, 8)}, epochs=(0.2, 0.5), turns=2)
    monkeypatch.setitem(frontier.SCALES, "small", family)
    yield str(write_cifar10(tmp_path / "data", per_class=6))


@pytest.mark.slow
def test_permutation_writes_its_page(tiny: str, tmp_path: Path) -> None:
    page, path = run("permutation", out=tmp_path / "out", data_dir=tiny, device="cpu")
    assert page.figures["identity"]["max_abs_difference"] < 1e-5
    assert {name: sorted(modes) for name, modes in page.figures["top1"].items()} == dict.fromkeys(
        ("Mixer", "ResNet"), sorted(MODES)
    )
    assert page.figures["rates"].keys() == {"Mixer", "ResNet"} and [
        step for step, _ in page.figures["curves"]["Mixer"]["pixels"]
    ] == [2, 4]
    assert "about 45 %" in path.read_text() and "(an end of what was tried)" in path.read_text()


@pytest.mark.slow
def test_data_scaling_writes_its_page(tiny: str, tmp_path: Path) -> None:
    page, path = run("data-scaling", out=tmp_path / "out", data_dir=tiny, device="cpu")
    cells = page.figures["cells"]
    assert [cell["images"] for cell in cells["ViT"].values()] == [[10], [30], [90], [285]]
    assert all(
        0 <= cell["few"][0] <= 1 and cell["best_step"][0] in (2, 4) for of in cells.values() for cell in of.values()
    )
    assert "Linear 5-shot top-1" in path.read_text() and (tmp_path / "out" / "scaling.png").exists()


def test_frontier_writes_its_page(tiny: str, tmp_path: Path) -> None:
    page, path = run("frontier", out=tmp_path / "out", data_dir=tiny, device="cpu")
    points = page.figures["points"]
    assert len(points) == 4 and any(p["frontier_time"] for p in points) and all(p["images_per_s"] > 0 for p in points)
    assert "| Mixer-H/14 | 14 | 86.32 % | 194 | 1010 |" in path.read_text()
