"""Networks whose weights know no grid run at another image size as they are; all others say that they do not."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mlpmixer import cli
from mlpmixer.inference.load import load
from mlpmixer.models.architecture import build
from mlpmixer.models.configs import (
    ASMLPConfig,
    EAMLPConfig,
    GMLPConfig,
    NetworkConfig,
    RepMLPNetConfig,
    ResMLPConfig,
    ResNetConfig,
    S2MLPConfig,
    S2MLPv2Config,
    ViPConfig,
)
from mlpmixer.weights.model_file import meta_of, save_model

GRID: dict[str, Any] = {"image_size": 8, "patch_size": 2, "num_classes": 3}
BLOCKS: dict[str, Any] = GRID | {"num_blocks": 2, "hidden_dim": 8, "channels_mlp_dim": 12}
STAGES: dict[str, Any] = GRID | {"hidden_dims": (8, 12), "depths": (1, 1)}
ANY_SIZE: list[NetworkConfig] = [
    S2MLPConfig(**BLOCKS), S2MLPv2Config(**STAGES), ASMLPConfig(**STAGES), EAMLPConfig(**BLOCKS)
]  # fmt: skip
FIXED: list[NetworkConfig] = [
    ViPConfig(**STAGES, strides=(2,)),
    GMLPConfig(**BLOCKS),
    RepMLPNetConfig(**STAGES, share_sets=(2, 4)),
    ResMLPConfig(**BLOCKS),
]


def saved(cfg: NetworkConfig, folder: Path) -> Path:
    """An untrained model file."""
    torch.manual_seed(0)
    model = build(cfg)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.5)
    save_model(folder / "model.safetensors", model, meta_of(model))
    return folder / "model.safetensors"


def refusal(words: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which a command is refused."""
    capsys.readouterr()
    assert cli.main(words.split()) == 2
    return capsys.readouterr().err.removeprefix("mlpmixer: ").rstrip("\n")


@pytest.mark.parametrize("cfg", ANY_SIZE, ids=lambda cfg: cfg.architecture)
def test_another_image_size_takes_the_weights_as_they_are(
    cfg: NetworkConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, notes = saved(cfg, tmp_path), list[str]()
    there = load(file, image_size=(4, 12), report=lambda event: notes.append(event["note"])).network
    state = load(file).network.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in there.state_dict().items())
    assert there(torch.zeros(1, 3, 4, 12)).isfinite().all()
    assert [bool(re.search(r"sums over the places.* \(4, 12\) .* differ from those at 8", n)) for n in notes] == (
        [True] if cfg.architecture == "s2-mlpv2" else []
    )
    Image.new("RGB", (20, 9), (200, 10, 90)).save(tmp_path / "x.png")
    predict = f"predict {file} {tmp_path}/x.png"
    assert cli.main(f"{predict} --image-size 12 4".split()) == 0
    assert "--image-size 9x9 px is not a multiple of" in refusal(f"{predict} --image-size 9", capsys)
    for how in ("--resize blocks", "--magnified"):
        said = refusal(f"{predict} --image-size 16 {how}", capsys)
        assert how.partition(" ")[0].strip("-") in said and cfg.architecture in said and said.endswith("leave it out")
    said = refusal(f"{predict} --patch-size 4", capsys)
    assert said == f"trained weights of {cfg.architecture} work at the --patch-size they were made for, 2, and not at 4"


@pytest.mark.parametrize("cfg", FIXED, ids=lambda cfg: cfg.architecture)
@pytest.mark.parametrize("command", ["predict {} x.png", "evaluate {} digits", "export {} --to onnx"])
def test_a_fixed_grid_refuses_another_image_size(
    command: str, cfg: NetworkConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refusal(f"{command.format(saved(cfg, tmp_path))} --image-size 16", capsys)
    assert (
        said == f"trained weights of {cfg.architecture} work at the --image-size they were made for, 8, and not at 16"
    )


def test_a_size_that_a_network_does_not_have_is_said() -> None:
    with pytest.raises(ValueError, match="resnet has no patch_size, got 4: leave it out"):
        ResNetConfig(image_size=8).adapted(patch_size=4)
