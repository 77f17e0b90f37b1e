"""Files that version 0.1 wrote, when the only network was a Mixer, are read as they were meant.

fixtures/version-0.1 holds a finished run of 60 steps, the same run stopped after step 30, and the logits of four
images. The run has mirror symmetry, locality and an average of its weights, so that all of these are in its state.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import mlpmixer
from mlpmixer import cli
from mlpmixer.models.mixer import Mixer
from mlpmixer.weights.model_file import load_model

OLD = Path(__file__).parent / "fixtures" / "version-0.1"
MODEL = OLD / "finished" / "model.safetensors"


def test_weights_load_bit_for_bit() -> None:
    model, meta = load_model(MODEL)
    stored, loaded = load_file(MODEL), model.state_dict()
    assert isinstance(model, Mixer) and meta.config.hidden_dim == 8 and meta.classes == tuple("0123456789")
    assert stored.keys() == loaded.keys()
    for name, tensor in loaded.items():
        np.testing.assert_array_equal(tensor.numpy(), stored[name], err_msg=name)


def test_logits_equal_the_stored_ones() -> None:
    old = np.load(OLD / "logits.npz")
    with torch.no_grad():
        logits = load_model(MODEL)[0](torch.from_numpy(old["images"]))
    np.testing.assert_allclose(logits.numpy(), old["logits"], rtol=0, atol=1e-5)


def test_evaluation_gives_the_stored_result() -> None:
    summary = json.loads((OLD / "finished" / "summary.json").read_text())
    metrics = mlpmixer.evaluate(mlpmixer.load(OLD / "finished"))  # on the run's own data, cut as it was
    assert (metrics.n, metrics.top1) == (summary["test"]["n"], summary["top1"])
    assert metrics.nll == pytest.approx(summary["test"]["nll"], abs=1e-5)


def test_predict_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    Image.new("L", (8, 8), 120).save(tmp_path / "grey.png")
    assert cli.main(["predict", str(OLD / "finished"), str(tmp_path / "grey.png"), "--format", "jsonl"]) == 0
    assert json.loads(capsys.readouterr().out)["label"] in "0123456789"


def test_unfinished_run_resumes_to_the_same_end(tmp_path: Path) -> None:
    run = shutil.copytree(OLD / "unfinished", tmp_path / "run")
    assert cli.main(["train", "--resume", str(run), "--quiet"]) == 0
    old = json.loads((OLD / "finished" / "summary.json").read_text())
    new = json.loads((run / "summary.json").read_text())
    assert (new["steps"], new["train_images"]) == (old["steps"], old["train_images"]) == (60, 1365)
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [
        json.loads(line)["step"] for line in (OLD / "finished" / "metrics.jsonl").read_text().splitlines()
    ]
    expected, found = load_file(MODEL), load_file(run / "model.safetensors")
    assert found.keys() == expected.keys()
    for name in expected:  # not bit for bit: processors add in different orders
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=1e-4, err_msg=name)


def test_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    run = shutil.copytree(OLD / "finished", tmp_path / "run")
    assert cli.main(["train", "--resume", str(run), "--quiet"]) == 0
    assert (run / "model.safetensors").read_bytes() == MODEL.read_bytes()
