"""Predictions of images that have several classes, or none, in every form."""

import csv
import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from mlpmixer import cli, load
from mlpmixer.inference.output import csv_lines, to_record, write_parquet
from mlpmixer.inference.prediction import Prediction

P = np.array([0.9, 0.2, 0.7, 0.4], np.float32)


def classifier(squares_run: Path, threshold: float = 0.5):
    model = load(squares_run)
    model.classes, model.threshold = ("a", "b", "c", "d"), threshold
    return model


def test_all_classes_from_the_threshold_on_are_said(squares_run: Path) -> None:
    found = classifier(squares_run).prediction("x.png", P, 1)
    assert found.labels == ("a", "c") and [label for label, _ in found.top] == ["a", "c"]
    assert len(classifier(squares_run).prediction("x.png", P, 3).top) == 3
    none = classifier(squares_run, 0.95).prediction("x.png", P, 1)
    assert none.labels == () and none.label == "a" and "labels=()" in repr(none)
    assert Prediction("x", "a", 0.1, (("a", 0.1),)).labels == ("a",)
    exactly = classifier(squares_run, float(P[2])).prediction("x.png", P, 1)
    assert exactly.labels == ("a", "c")


def test_every_format_says_them(squares_run: Path, tmp_path: Path) -> None:
    model = classifier(squares_run)
    found = [model.prediction("x.png", P, 3), model.prediction("y.png", P / 3, 1)]
    assert to_record(found[0]) == {
        "image": "x.png",
        "labels": ["a", "c"],
        "threshold": 0.5,
        "top": [
            {"label": "a", "probability": 0.9},
            {"label": "c", "probability": 0.7},
            {"label": "d", "probability": 0.4},
        ],
    }
    assert list(csv.reader(csv_lines(found, 3, multi_label=True))) == [
        ["image", "labels", "probabilities", "error"],
        ["x.png", "a;c", "0.900000;0.700000", ""],
        ["y.png", "", "", ""],
    ]
    parquet = pytest.importorskip("pyarrow.parquet")
    write_parquet(tmp_path / "x.parquet", found, model.classes, 3, multi_label=True)
    assert parquet.read_table(tmp_path / "x.parquet").to_pydict()["labels"] == [["a", "c"], []]


def test_predictions_of_a_run(squares_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = squares_run.parent / "images"
    rows = csv.DictReader((images / "labels.csv").read_text().splitlines())
    wanted = {row["file"]: set(row["labels"].split(";")) - {""} for row in rows}
    names = [str(images / name) for name in list(wanted)[:40]]
    assert cli.main(["predict", str(squares_run), *names, "--format", "json"]) == 0
    records = json.loads(capsys.readouterr().out)
    assert np.mean([set(r["labels"]) == wanted[Path(r["image"]).name] for r in records]) > 0.8
    assert [list(p.labels) for p in load(squares_run).predict(names)] == [r["labels"] for r in records]
    assert cli.main(["predict", str(squares_run), *names, "--threshold", "0.999999"]) == 0
    out = capsys.readouterr().out
    assert "no class reaches 100.00 % (likeliest: " in out
    assert cli.main(["predict", str(squares_run), names[0], "--format", "csv"]) == 0
    assert capsys.readouterr().out.startswith("image,labels,probabilities,error\n")
    copied = pickle.loads(pickle.dumps(load(squares_run)))
    assert copied.threshold == load(squares_run).threshold and copied.sigmoid
