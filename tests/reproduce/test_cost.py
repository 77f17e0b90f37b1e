"""What networks cost over the number of patches: the counts, the fit, and a page from a short run."""

import json
from pathlib import Path

import pytest
import torch

from mlpmixer.models.configs import MixerConfig, ResNetConfig, ViTConfig
from mlpmixer.reproduce import cost, run
from mlpmixer.reproduce.cost import NETWORKS, SCALES, Bench, CostSettings, LiveMemory, count_all, exponent, make_page

CPU = torch.device("cpu")
TINY = CostSettings(
    mixer=MixerConfig(
        image_size=16, patch_size=4, num_classes=10, num_blocks=2, hidden_dim=16, tokens_mlp_dim=8, channels_mlp_dim=32
    ),
    vit=ViTConfig(patch_size=4, num_blocks=2, hidden_dim=16, num_heads=2, mlp_dim=32),
    resnet=ResNetConfig(depths=(1, 1), width=8, bottleneck=False, small_images=True),
    sides=(4, 6, 8),
    batch_patches=128,
    turns=2,
    least_s=0.0,
)


def test_exponent_of_a_power_law() -> None:
    patches = [49, 100, 196, 400]
    assert exponent(patches, [3.0 * s**1.5 for s in patches]) == pytest.approx(1.5)
    assert exponent(patches[-2:], [float(s**2) for s in patches[-2:]]) == pytest.approx(2)


def test_peak_of_live_bytes_is_counted() -> None:
    with LiveMemory() as memory:
        a = torch.zeros(1000)
        b = a + 1  # 8,000 bytes
        b.view(10, 100).mul_(2)  # the same memory
        del a
        c = b + 1  # 8,000 again
        del b, c
        torch.ones(500)
    assert (memory.peak, memory.now) == (8000, 0)


def test_flops_and_memory_fit_the_networks() -> None:
    pytest.importorskip("transformers", reason='pip install "mlpmixer[rivals]"')
    counted = count_all(TINY, CPU, torch.float32)
    summary = TINY.networks(8)["Mixer"].layers()
    assert counted["Mixer 8"]["one image flops"] == sum(layer.flops for layer in summary)
    assert counted["Mixer 8"]["mixing forward flops"] == next(
        x.flops for x in summary if x.name == "blocks.0.token_mixing"
    )
    s, c, mlp = 64 + 1, 16, 32
    attention = 8 * s * c * c + 4 * s * s * c
    assert counted["ViT 8"]["mixing forward flops"] == attention
    assert counted["ViT 8"]["one image flops"] == 2 * (attention + 4 * s * c * mlp) + 2 * 64 * 48 * c + 2 * c * 10
    for counts in counted.values():
        weights_mib = 4 * counts["params"] / 2**20
        assert counts["forward mib"] > weights_mib and counts["train mib"] > 4 * weights_mib  # gradients, two moments


def test_networks_of_a_scale_have_one_size() -> None:
    pytest.importorskip("transformers", reason='pip install "mlpmixer[rivals]"')
    from mlpmixer.models.architecture import count_params

    for settings in SCALES.values():
        benches = [Bench(settings, name, 14, torch.device("meta"), torch.float32) for name in NETWORKS]
        params = [count_params(bench.model) for bench in benches]
        assert max(params) < 1.12 * min(params), params


def test_page_tells_linear_from_quadratic() -> None:
    names, sides = ("Mixer", "ViT", "ResNet"), TINY.sides
    power = {"Mixer": 1.0, "ViT": 2.0, "ResNet": 1.0}
    rows = ("forward", "train", "one image", "mixing forward", "mixing train")
    least = {
        f"{n} {side} {row}": TINY.batch(side) * 1e-6 * side ** (2 * power[n])
        for n in names
        for side in sides
        for row in rows
    }
    counts = {"params": 1000, "forward mib": 1, "train mib": 2}
    counted = {
        f"{n} {side}": counts
        | {"one image flops": 1e6 * side ** (2 * power[n]), "mixing forward flops": 1e5 * side ** (2 * power[n])}
        for n in names
        for side in sides
    }
    page = make_page(TINY, counted, least, 1.01, "float32")
    assert "Mixer 1.00, ViT 2.00, ResNet 1.00" in page.findings[0] and "from 36 to 64 patches" in page.findings[0]
    assert "token mixing 1.00, attention with its projections 2.00; in FLOPs 1.00 and 2.00" in page.findings[2]
    assert "16.00 times the Mixer's time at 16 patches and 64.00 times at 64" in page.findings[4]
    assert page.figures["shares"]["ViT"]["time"] == pytest.approx(
        [2.0] * 3
    )  # two blocks as dear as the whole: these are made-up times


def test_short_run_writes_its_page_and_reads_its_turns_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers", reason='pip install "mlpmixer[rivals]"')
    monkeypatch.setitem(SCALES, "small", TINY)
    page, path = run("cost", out=tmp_path, device="cpu")
    text = path.read_text()
    assert "![Seconds an image over patches" in text and (tmp_path / "time.png").exists()
    assert "is a small part of a ViT at small S" in text and "Equal parameters at 64 patches: Mixer" in text
    assert all(value > 0 for values in page.figures["seconds_per_image"].values() for value in values)
    monkeypatch.setattr(cost, "time_all", lambda *_: pytest.fail("measured twice"))
    assert run("cost", out=tmp_path, device="cpu")[0].figures == json.loads(json.dumps(page.figures))
