"""Networks of one size against each other: permutation, data-scaling and frontier, each run to its page in small, and
what they rest on."""

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
from mlpmixer.reproduce import comparison, frontier, permutation, run
from mlpmixer.reproduce.comparison import CONTESTS, Sized, against, draw, size_of
from mlpmixer.reproduce.permutation import MODES, Shuffled, ShuffledMixer, for_shuffled, orders, pixel_order, reordered

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


def test_permuting_stem_w1_w2_and_b2_undoes_the_shuffle() -> None:
    model, images = random_mixer(CFG), torch.randn(4, 2, 12, 8)
    twin = for_shuffled(model, seed=3)
    logits = model(images)
    torch.testing.assert_close(twin(images), logits, rtol=1e-5, atol=1e-5)
    plain = ShuffledMixer(CFG, pixel_order("patches", CFG, 3))
    plain.load_state_dict(model.state_dict())
    assert (plain(images) - logits).abs().max() > 0.1  # it is no accident


def test_the_orders_are_what_they_are_called() -> None:
    (patches, inside), places = orders(CFG, 5), torch.arange(96).float()[None, None].reshape(1, 1, 12, 8)
    cut = Mixer(dataclasses.replace(CFG, in_channels=1)).patches
    before, after = cut(places)[0], cut(reordered(places, pixel_order("patches", CFG, 5)))[0]
    assert torch.equal(after, before[patches][:, inside]) and not torch.equal(patches, torch.arange(12))
    for mode in MODES:
        order = pixel_order(mode, CFG, 5)
        assert torch.equal(order.sort().values, torch.arange(96)) and torch.equal(order, pixel_order(mode, CFG, 5))
    assert torch.equal(pixel_order("original", CFG, 5), torch.arange(96))


def test_all_networks_see_the_same_shuffled_image() -> None:
    pytest.importorskip("transformers", reason='pip install "mlpmixer[rivals]"')
    cfg, images = dataclasses.replace(CFG, image_size=8, patch_size=4), torch.randn(2, 2, 8, 8)
    shuffled = Shuffled(
        mode="patches", of=Sized(of=ResNetConfig(depths=(1, 1), width=4, bottleneck=False, small_images=True))
    )(cfg).eval()
    inner = shuffled.network
    assert isinstance(inner, torch.nn.Module)
    torch.nn.init.normal_(inner.head.weight)  # type: ignore[union-attr, arg-type]
    assert torch.equal(shuffled(images), inner(reordered(images, pixel_order("patches", cfg, 0))))
    assert not any("order" in name for name in shuffled.state_dict())


# --- what the comparisons rest on ---------------------------------------------------------------------------------


def test_a_share_of_the_images_is_stratified_and_part_of_a_larger_one() -> None:
    labels = np.repeat([0, 1, 2], [100, 50, 3])
    small, large = stratified_share(labels, 0.1, 0), stratified_share(labels, 0.3, 0)
    assert np.bincount(labels[small]).tolist() == [10, 5, 1] and np.bincount(labels[large]).tolist() == [30, 15, 1]
    assert set(small) <= set(large) and (np.diff(large) > 0).all()
    assert set(stratified_share(labels, 0.1, 1)) != set(small)


@pytest.mark.parametrize("scale", sorted(CONTESTS))
def test_the_networks_of_a_scale_have_one_size(scale: comparison.Scale) -> None:
    pytest.importorskip("transformers", reason='pip install "mlpmixer[rivals]"')
    sizes = [size_of(CONTESTS[scale], name) for name in ("Mixer", "ViT", "ResNet")]
    for what in ("params", "flops"):
        values = [size[what] for size in sizes]
        assert max(values) < 1.45 * min(values), (what, values)


def test_a_draw_is_called_a_draw() -> None:
    assert draw(0.5, 0.5, 100) and draw(0.50, 0.51, 1000) and not draw(0.5, 0.6, 1000)
    assert against("A", 0.7, "B", 0.5, 1000) == "A above B (70.0 % against 50.0 %, on 1,000 images)"
    assert against("A", 0.5, "B", 0.51, 100) == "A and B: a draw (50.0 % against 51.0 %, on 100 images)"


def test_the_frontier_is_what_no_other_point_beats() -> None:
    assert frontier.frontier([3, 1, 2, 2, 4], [0.5, 0.1, 0.4, 0.3, 0.5]) == [1, 2, 0]


# --- whole runs ---------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """A stand-in for CIFAR-10, and networks that are soon trained."""
    pytest.importorskip("transformers", reason='pip install "mlpmixer[rivals]"')
    small = comparison.Contest(
        mixer=comparison.nano(1, 16, 8),
        vit=ViTConfig(patch_size=4, num_blocks=1, hidden_dim=16, num_heads=1, mlp_dim=32),
        resnet=ResNetConfig(depths=(1, 1), width=4, bottleneck=False, small_images=True),
        steps=4,
        rate_steps=2,
        rates={"Mixer": (1e-3, 1e-2), "ViT": (1e-3,), "ResNet": (1e-2,)},
        batch_size=16,
        evaluations=2,
    )
    monkeypatch.setitem(CONTESTS, "small", small)
    monkeypatch.setitem(permutation.SCALES, "small", small)
    monkeypatch.setitem(
        frontier.SCALES,
        "small",
        frontier.Settings(sizes={"1 x 8": (1, 8, 4), "1 x 16": (1, 16, 8)}, epochs=(0.2, 0.5), turns=2),
    )
    yield str(write_cifar10(tmp_path / "data", per_class=6))


def test_permutation_runs_to_its_page(tiny: str, tmp_path: Path) -> None:
    page, path = run("permutation", out=tmp_path / "out", data_dir=tiny, device="cpu")
    assert page.figures["identity"]["max_abs_difference"] < 1e-5
    assert {name: sorted(modes) for name, modes in page.figures["top1"].items()} == dict.fromkeys(
        ("Mixer", "ResNet"), sorted(MODES)
    )
    assert page.figures["rates"].keys() == {"Mixer", "ResNet"} and [
        step for step, _ in page.figures["curves"]["Mixer"]["pixels"]
    ] == [2, 4]
    assert "about 45 %" in path.read_text() and "(an end of what was tried)" in path.read_text()


def test_data_scaling_runs_to_its_page(tiny: str, tmp_path: Path) -> None:
    page, path = run("data-scaling", out=tmp_path / "out", data_dir=tiny, device="cpu")
    cells = page.figures["cells"]
    assert [cell["images"] for cell in cells["ViT"].values()] == [[10], [30], [90], [285]]
    assert all(
        0 <= cell["few"][0] <= 1 and cell["best_step"][0] in (2, 4) for of in cells.values() for cell in of.values()
    )
    assert "Linear 5-shot top-1" in path.read_text() and (tmp_path / "out" / "scaling.png").exists()


def test_frontier_runs_to_its_page(tiny: str, tmp_path: Path) -> None:
    page, path = run("frontier", out=tmp_path / "out", data_dir=tiny, device="cpu")
    points = page.figures["points"]
    assert len(points) == 4 and any(p["frontier_time"] for p in points) and all(p["images_per_s"] > 0 for p in points)
    assert "| Mixer-H/14 | 14 | 86.32 % | 194 | 1010 |" in path.read_text()
