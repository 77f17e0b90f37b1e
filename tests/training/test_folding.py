"""A RepMLPNet trains with its convolutions and is saved as MLPs alone, which are the same function."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mlpmixer.data.config import Data
from mlpmixer.evaluation.evaluate import evaluate
from mlpmixer.models.configs import RepMLPNetConfig
from mlpmixer.training.recipe import Init, Optim, Recipe, Run
from mlpmixer.training.run import train
from mlpmixer.weights.create import create_model
from mlpmixer.weights.load import load_weights
from mlpmixer.weights.model_file import read_tensors
from mlpmixer.weights.run_folder import MODEL_FILE, read_metrics

RECIPE = Recipe(
    name="folding",
    model=RepMLPNetConfig(
        image_size=8, patch_size=2, in_channels=1, num_classes=10, hidden_dims=(8, 16), depths=(1, 1), share_sets=(2, 4)
    ),
    data=Data(name="digits", val_fraction=0.3),
    optim=Optim(name="adamw", lr=3e-3, ema_decay=0.5),
    run=Run(steps=6, batch_size=64, precision="float32", log_every=1, save_every_s=0),
)


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folding") / "run"
    train(RECIPE, out=folder)
    return folder


def test_a_folded_run_evaluates_as_it_did_in_training(run: Path) -> None:
    model, meta = load_weights(run)
    assert meta.config == model.cfg == dataclasses.replace(RECIPE.model, folded=True)  # type: ignore[call-arg]
    assert not any("repconv" in name or "fc3_bn" in name for name in model.state_dict())
    last = [line for line in read_metrics(run / "metrics.jsonl") if line["kind"] == "eval"][-1]
    summary = json.loads((run / "summary.json").read_text())
    assert summary["val"]["nll"] == pytest.approx(last["nll"], abs=1e-5)
    for split in ("val", "test"):
        measured: Any = evaluate(run, split=split)
        assert measured.nll == pytest.approx(summary[split]["nll"], abs=1e-5)
        assert measured.top1 == pytest.approx(summary[split]["top1"])


def test_a_folding_run_goes_on_after_a_crash(run: Path, tmp_path: Path) -> None:
    def report(event: dict[str, Any]) -> None:
        if event["kind"] == "step" and event["step"] == 4:
            raise Killed

    with pytest.raises(Killed):
        train(RECIPE, out=tmp_path / "run", report=report)
    train(RECIPE, out=tmp_path / "run", resume=True)
    again, undisturbed = (read_tensors(folder / MODEL_FILE)[0] for folder in (tmp_path / "run", run))
    assert again.keys() == undisturbed.keys() and all(torch.equal(again[name], undisturbed[name]) for name in again)


def test_a_start_from_folded_weights_trains_them_as_they_are_and_says_so(run: Path, tmp_path: Path) -> None:
    trained, notes = load_weights(run)[0], list[str]()
    recipe = dataclasses.replace(
        RECIPE, model=trained.cfg, init=Init(weights=str(run)), run=dataclasses.replace(RECIPE.run, steps=1)
    )
    train(recipe, out=tmp_path / "on", report=lambda e: notes.append(e["note"]) if e["kind"] == "note" else None)
    assert [f"{run}: its convolutions are folded into matrices" in note for note in notes] == [True]
    assert load_weights(tmp_path / "on")[0].cfg == trained.cfg
    with pytest.raises(ValueError, match=r"weights of repmlpnet are folded: .* leave folded=False out, or take"):
        train(dataclasses.replace(recipe, model=RECIPE.model), out=tmp_path / "unfolded")
    with pytest.raises(ValueError, match="weights of repmlpnet are folded"):
        create_model(RECIPE.model, weights=run, folded=False)
    assert create_model(RECIPE.model, weights=run).cfg == trained.cfg
