"""Exports of a model of several classes per image: the same threshold, and the same answers everywhere."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from helpers.shared import Once

from mlpmixer import cli, load
from mlpmixer.exporters.export import export
from mlpmixer.serve.app import make_app


@pytest.fixture(scope="module")
def bundle(once: Once, squares_run: Path) -> Path:
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")

    def make(folder: Path) -> None:
        export(shutil.copytree(squares_run, folder / "run"), "bundle", out=folder / "bundle", images=40)

    return once("squares-exported", make) / "bundle"


def images(squares_run: Path) -> list[str]:
    return [str(squares_run.parent / "images" / f"{i}.png") for i in range(20)]


def test_the_bundle_gives_the_same_classes(bundle: Path, squares_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = load(squares_run).predict(images(squares_run))
    exported = load(bundle)
    assert exported.threshold == load(squares_run).threshold and exported.sigmoid and exported.multi_label
    assert [p.labels for p in exported.predict(images(squares_run))] == [p.labels for p in wanted]
    program = subprocess.run(
        [sys.executable, bundle / "predict.py", "--json", "--top", "1", *images(squares_run)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    records = [json.loads(line) for line in program.stdout.splitlines()]
    assert [tuple(record["labels"]) for record in records] == [p.labels for p in wanted]
    assert [len(record["top"]) for record in records] == [max(1, len(p.labels)) for p in wanted]
    assert f"at least {exported.threshold}" in (bundle / "README.md").read_text()
    assert "Exactly the true classes" in (bundle / "README.md").read_text()


def test_the_service_gives_the_same_classes(squares_run: Path) -> None:
    model, names = load(squares_run), images(squares_run)
    wanted = model.predict(names)
    with TestClient(make_app(model)) as client:
        assert client.get("/model").json()["threshold"] == model.threshold
        found = [
            client.post(
                "/predict?top_k=1", content=Path(name).read_bytes(), headers={"content-type": "image/png"}
            ).json()
            for name in names
        ]
    assert [tuple(answer["results"][0]["labels"]) for answer in found] == [p.labels for p in wanted]
    assert {frozenset(answer["results"][0]) for answer in found} == {frozenset(("image", "labels", "threshold", "top"))}
    assert any(not p.labels for p in wanted) and any(len(p.labels) > 1 for p in wanted)


def test_int8_is_refused(squares_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", str(squares_run), "--to", "onnx", "--int8", "--out", str(tmp_path / "x.onnx")]) == 2
    assert "int8 is judged by top-1" in capsys.readouterr().err


def test_explanations_name_a_class(squares_run: Path, tmp_path: Path) -> None:
    assert cli.main(["explain", str(squares_run), images(squares_run)[0], "--out", str(tmp_path / "x.html")]) == 0


def test_the_card_names_the_metric(squares_run: Path, tmp_path: Path) -> None:
    assert cli.main(["push", str(squares_run), str(tmp_path / "repo"), "--licence", "mit"]) == 0
    card = (tmp_path / "repo" / "README.md").read_text()
    assert "mAP" in card and "mean_average_precision" in card and "top-1" not in card
    assert np.isclose(load(tmp_path / "repo").threshold or 0, load(squares_run).threshold or 1)
