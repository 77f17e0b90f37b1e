"""The ViT and the ResNet: as large as published, and trained by the Mixer's own loop."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from mlpmixer.data.config import Data
from mlpmixer.evaluation.evaluate import evaluate
from mlpmixer.inference.classifier import load
from mlpmixer.models import baselines
from mlpmixer.models.baselines import ResNet, ViT
from mlpmixer.models.configs import MixerConfig
from mlpmixer.models.mixer import count_params
from mlpmixer.models.names import MODELS
from mlpmixer.training.recipe import Optim, Recipe, Run
from mlpmixer.training.run import train
from mlpmixer.weights.run_folder import read_metrics

TINY = MODELS["Pico/2"]


def test_without_the_library_one_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'pip install "mlpmixer\[rivals\]"'):
        ViT()(MixerConfig())


@pytest.mark.parametrize(
    (
        "network",
        "params",
    ),  # torchvision's resnet18 and resnet50, timm's vit_small_patch16_224 and vit_base_patch16_224, with 1000 classes
    [
        (ResNet(depths=(2, 2, 2, 2), bottleneck=False), 11_689_512),
        (ResNet(), 25_557_032),
        (ViT(), 22_050_664),
        (ViT(hidden_dim=768, num_heads=12, mlp_dim=3072), 86_567_656),
    ],
    ids=["resnet18", "resnet50", "vit-s16", "vit-b16"],
)
def test_they_have_as_many_parameters_as_published(network: ResNet | ViT, params: int) -> None:
    pytest.importorskip("transformers", reason='pip install "mlpmixer[rivals]"')
    with torch.device("meta"):
        assert count_params(network(MixerConfig())) == params


@pytest.mark.parametrize(
    "network",
    [
        ViT(patch_size=2, num_blocks=1, hidden_dim=16, num_heads=2, mlp_dim=32),
        ResNet(depths=(1, 1), width=8, bottleneck=False, small_images=True),
    ],
    ids=["vit", "resnet"],
)
def test_they_are_trained_resumed_and_evaluated_like_a_mixer(network: ResNet | ViT, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason='pip install "mlpmixer[rivals]"')
    recipe = Recipe(
        model=TINY, data=Data(name="digits"), optim=Optim(lr=2e-3), run=Run(steps=60, batch_size=64, log_every=1)
    )
    with torch.random.fork_rng():
        assert not network(TINY).head.weight.any()
    result = train(recipe, out=tmp_path / "run", network=network)
    losses = [line["loss"] for line in read_metrics(result.path / "metrics.jsonl") if line["kind"] == "step"]
    assert losses[0] == pytest.approx(math.log(10), abs=1e-4) and losses[-1] < 0.95 * losses[0]
    again = dataclasses.replace(recipe, network=repr(network))
    assert train(again, out=tmp_path / "run", network=network, resume=True).summary == result.summary
    assert evaluate(load(tmp_path / "run", network=network)).top1 == result.summary["top1"]
