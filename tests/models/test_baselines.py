"""The ViT and the ResNet: as large as published, and trained by the Mixer's own loop."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mlpmixer.config import from_json, pair, to_json
from mlpmixer.data.config import Data
from mlpmixer.evaluation.evaluate import evaluate
from mlpmixer.inference.load import load
from mlpmixer.models import architecture
from mlpmixer.models.architecture import build, count_params
from mlpmixer.models.configs import NetworkConfig, ResNetConfig, ViTConfig
from mlpmixer.models.names import MODELS
from mlpmixer.training.recipe import Optim, Recipe, Run
from mlpmixer.training.run import train
from mlpmixer.weights.run_folder import read_metrics

TINY = {
    "vit": ViTConfig(
        image_size=8, in_channels=1, num_classes=10, patch_size=2, num_blocks=1, hidden_dim=16, num_heads=2, mlp_dim=32
    ),
    "resnet": ResNetConfig(
        image_size=8, in_channels=1, num_classes=10, depths=(1, 1), width=8, bottleneck=False, small_images=True
    ),
}


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(architecture, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'vit needs the package transformers.*pip install "mlpmixer\[rivals\]"'):
        build(ViTConfig())


@pytest.mark.parametrize(
    ("name", "params"),  # as torchvision's and timm's have with 1000 classes
    [("resnet-18", 11_689_512), ("resnet-50", 25_557_032), ("vit-s/16", 22_050_664), ("vit-b/16", 86_567_656)],
)
def test_parameters_are_as_published(name: str, params: int) -> None:
    pytest.importorskip("transformers", reason='pip install "mlpmixer[rivals]"')
    with torch.device("meta"):
        assert count_params(build(MODELS[name])) == MODELS[name].num_params == params


@pytest.mark.parametrize(
    "cfg", [*TINY.values(), MODELS["resnet-50"], MODELS["vit-ti/16"]], ids=lambda c: c.architecture
)
def test_layers_count_what_torch_counts(cfg: NetworkConfig) -> None:
    pytest.importorskip("transformers", reason='pip install "mlpmixer[rivals]"')
    with torch.device("meta"):
        model, images = build(cfg).eval(), torch.zeros(1, cfg.in_channels, *pair(cfg.image_size))
    with FlopCounterMode(display=False) as flops:
        model(images)
    assert sum(layer.flops for layer in cfg.layers()) == flops.get_total_flops()
    assert cfg.num_params == count_params(model)
    assert from_json(NetworkConfig, to_json(cfg)) == cfg


@pytest.mark.parametrize("name", TINY)
def test_trained_resumed_and_loaded_by_the_config_alone(name: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason='pip install "mlpmixer[rivals]"')
    recipe = Recipe(
        model=TINY[name], data=Data(name="digits"), optim=Optim(lr=2e-3), run=Run(steps=60, batch_size=64, log_every=1)
    )
    with torch.random.fork_rng():
        assert not build(TINY[name]).head.weight.any()
    result = train(recipe, out=tmp_path / "run")
    losses = [line["loss"] for line in read_metrics(result.path / "metrics.jsonl") if line["kind"] == "step"]
    assert losses[0] == pytest.approx(math.log(10), abs=1e-4) and losses[-1] < 0.95 * losses[0]
    assert train(dataclasses.replace(recipe), out=tmp_path / "run", resume=True).summary == result.summary
    assert evaluate(load(tmp_path / "run")).top1 == result.summary["top1"]
