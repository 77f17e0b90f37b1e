"""Commands about models, names, data and the machine: summary, list, data check, data preview, doctor."""

import importlib
import json
import re
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from helpers.lines import RunLine
from PIL import Image


@pytest.mark.parametrize("what", ["models", "weights", "datasets", "recipes"])
def test_list_prints_a_line_for_each_name(what: str, run: RunLine) -> None:
    code, out, _ = run("list", what)
    assert code == 0
    assert {"models": "S/16", "weights": "B/16:imagenet21k", "datasets": "cifar10", "recipes": "digits"}[what] in out


def test_models_are_listed_with_their_sizes(run: RunLine) -> None:
    out = run("list", "models", "*mlp*")[1]
    assert re.search(r"^as-mlp-t +as-mlp +224x224 +7x7 +28,282,696  +4\.35 G$", out, re.M)
    assert re.search(r"^eamlp-nano +eamlp +32x32 +8x8 +1,183,978  +94\.8 M$", out, re.M) and "places of the last" in out


def test_summary_of_a_model_has_the_papers_parameter_count(run: RunLine) -> None:
    short, full = run("summary", "B/16")[1], run("summary", "B/16", "--layers")[1]
    assert (
        "3 x 224 x 224 images -> 1000 logits\n59,880,472 parameters, 12.60 G multiply-adds for an image (25.2 GFLOPs)"
        in short
    )
    assert re.search(r"^blocks\.\*\.norm1 +12  196 x 768 +18,432 +0$", short, re.M) and short.count("\n") < 20
    assert re.search(r"^blocks\.11\.norm1 +1  196 x 768 +1,536 +0$", full, re.M) and full.count("\n") > 50
    assert json.loads(run("summary", "B/16", "--json")[1])["params"] == 59_880_472


def test_summary_of_a_run_is_its_architecture(digits_run: Path, run: RunLine) -> None:
    stored = json.loads((digits_run / "summary.json").read_text())
    assert json.loads(run("summary", str(digits_run), "--json")[1])["params"] == stored["params"]


def test_data_check_and_preview(run: RunLine, tmp_path: Path) -> None:
    rng, data = np.random.default_rng(0), tmp_path / "data"
    for name in ("cat", "dog"):
        (data / name).mkdir(parents=True)
        for i in range(10):
            Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(data / name / f"{i}.png")
    code, out, _ = run("data", "check", str(data))
    assert code == 0 and "no problems found" in out
    (data / "cat" / "broken.png").write_bytes(b"not an image")
    code, out, _ = run("data", "check", str(data))
    assert code == 1 and "broken.png" in out
    assert any("broken.png" in name for name, _ in json.loads(run("data", "check", str(data), "--json")[1])["broken"])
    picture = tmp_path / "p.png"
    assert run("data", "preview", str(data), "--out", str(picture), "--rows", "2", "--augment.flip")[0] == 0
    assert picture.exists()


def test_doctor_finds_a_broken_torchvision(run: RunLine, monkeypatch: pytest.MonkeyPatch) -> None:
    version, import_module = metadata.version, importlib.import_module

    def broken(name: str) -> ModuleType:
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")
        return import_module(name)

    monkeypatch.setattr(metadata, "version", lambda name: "0.28.0" if name == "torchvision" else version(name))
    monkeypatch.setattr(importlib, "import_module", broken)
    code, out, _ = run("doctor")
    assert code == 1
    assert "operator torchvision::nms does not exist" in out and "pip uninstall torchvision" in out
    assert "torch " in out and "cpu features" in out


def test_serve_without_its_extra_says_what_to_install(run: RunLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "mlpmixer.serve.server", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    code, _, err = run("serve", "digits")
    assert code == 2 and err.endswith('(uvicorn is missing): pip install "mlpmixer[serve]"\n')
