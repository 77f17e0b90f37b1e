"""Curves for TensorBoard: what metrics.jsonl says, each point once, however often the run was stopped."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mlpmixer import cli
from mlpmixer.data.config import Data
from mlpmixer.models.configs import MixerConfig
from mlpmixer.training.recipe import Recipe, Run
from mlpmixer.training.run import train
from mlpmixer.training.tensorboard import FOLDER, curves
from mlpmixer.weights import run_folder

RECIPE = Recipe(
    name="curves",
    model=MixerConfig(
        image_size=8, patch_size=4, in_channels=1, num_blocks=1, hidden_dim=8, tokens_mlp_dim=4, channels_mlp_dim=8
    ),
    data=Data(name="digits"),
    run=Run(steps=8, batch_size=16, log_every=2, eval_every=0.05, save_every_s=0),
)


def points(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Of each curve: (step, value)."""
    found = EventAccumulator(str(run / FOLDER))
    found.Reload()
    return {tag: [(p.step, p.value) for p in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def assert_curves_are_the_metrics(run: Path) -> None:
    drawn, lines = points(run), run_folder.read_metrics(run / "metrics.jsonl")
    assert {
        "train/loss",
        "train/top1",
        "train/lr",
        "train/images_per_s",
        "val/top1",
        "val/nll",
        "test/top1",
    } <= drawn.keys()
    assert not {"train/epoch", "train/step", "train/eta_s"} & drawn.keys()
    for tag, kind in (("train/loss", "step"), ("train/lr", "step"), ("val/top1", "eval"), ("val/nll", "eval")):
        wanted = [(line["step"], line[tag.partition("/")[2]]) for line in lines if line["kind"] == kind]
        assert [step for step, _ in drawn[tag]] == [step for step, _ in wanted]
        assert [value for _, value in drawn[tag]] == pytest.approx([value for _, value in wanted], rel=1e-6)
    assert [step for step, _ in drawn["test/top1"]] == [8]


def test_resumed_run_has_each_point_once(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stop"), curves(tmp_path) as draw:

        def stop(event: dict[str, Any]) -> None:
            draw(event)
            if event["kind"] == "eval" and event["step"] == 4:  # after the points of step 4, before its checkpoint
                raise RuntimeError("stop")

        train(RECIPE, out=tmp_path, report=stop)
    assert [step for step, _ in points(tmp_path)["train/loss"]] == [1, 2, 3, 4], "written as they come"
    with curves(tmp_path) as draw:
        train(RECIPE, out=tmp_path, resume=True, report=draw)
    assert len(list((tmp_path / FOLDER).iterdir())) == 1
    assert_curves_are_the_metrics(tmp_path)


def test_finished_run_gets_curves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(dataclasses.replace(RECIPE, name="before"), out=tmp_path)
    assert not (tmp_path / FOLDER).exists()
    for _ in "ab":
        assert cli.main(["train", "--resume", str(tmp_path), "--tensorboard"]) == 0
        assert f"tensorboard --logdir {tmp_path}" in capsys.readouterr().out
        assert_curves_are_the_metrics(tmp_path)


def test_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [
        name
        for name in sys.modules
        if name.partition(".")[0] == "tensorboard" or name.startswith("torch.utils.tensorboard")
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert cli.main(["train", "digits", "--tensorboard", "--out", str(tmp_path / "run")]) == 2
    assert 'pip install "mlpmixer[tensorboard]"' in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
