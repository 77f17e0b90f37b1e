"""How results and progress are printed."""

import json
import logging
import re
import sys
from pathlib import Path
from pydoc import locate

import numpy as np
import pytest
from helpers.lines import RunLine

from mlpmixer.cli import printing, progress
from mlpmixer.cli.evaluate import print_metrics
from mlpmixer.evaluation.metrics import metrics_from_probabilities


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    printing.print_json({"loss": float("nan"), "rows": [float("inf"), 1.0]})
    assert json.loads(capsys.readouterr().out) == {"loss": None, "rows": [None, 1.0]}


SIZES = {"params": 1000, "train_images": 10, "val_images": 2, "classes": 3, "steps": 20}
START = {"kind": "start", "out": "runs/x", "device": "cpu", "precision": "float32", "kernels": "torch", **SIZES}
STEP = {
    "kind": "step",
    "step": 10,
    "loss": 1.5,
    "top1": 0.25,
    "images_per_s": 2000.0,
    "peak_mib": 1234.5,
    "eta_s": 75.0,
}


def be_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)


def test_progress_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    report = progress.shown(every_s=0)
    for event in (
        START | {"notes": ["val was cut from train"]},
        STEP,
        {"kind": "eval", "step": 10, "epoch": 1.0, "split": "val", "top1": 0.5, "nll": 1.25},
        {"kind": "save", "step": 10},
        {"kind": "doing", "what": "measuring"},
        {"kind": "note", "note": "the file leaves something open"},
        {"kind": "end", "summary": {}},
    ):
        report(event)
    out, err = capsys.readouterr()
    assert "float32 on cpu; kernels: torch\nrun: runs/x\nnote: val was cut from train\n" in out
    assert "step 10/20  loss 1.5000  train 25.00 %  2,000 images/s  1,234 MiB  1 min 15 s left" in out
    assert "epoch 1  step 10  val: top-1 50.00 %, loss 1.2500\nmeasuring\n" in out
    assert err == "mlpmixer: note: the file leaves something open\n"


def test_resumed_run_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    progress.shown()(START | {"step": 7})
    assert "run: runs/x, resumed at step 7\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("columns", "shows"),
    [
        (200, "step 10/20  loss 1.5000  train 25.00 %  2,000 images/s  1,234 MiB  1 min 15 s left"),
        (60, "step 10/20  loss 1.5000  train 25.00 %  1 min 15 s left"),
        (41, "step 10/20  loss 1.5000  1 min 15 s left"),
        (40, "step 10/20  1 min 15 s left"),
        (30, "step 10/20  1 min 15 s left"),
        (20, "step 10/20"),
        (5, "step"),
    ],
)
def test_live_line_drops_whole_parts_where_the_terminal_is_narrow(
    columns: int, shows: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    be_a_terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", str(columns))
    with progress.reporter() as report:
        report(START)
        capsys.readouterr()
        report(STEP)
    _, line, cleared, end = capsys.readouterr().err.split("\r")
    assert line == shows and len(line) < columns and (cleared, end) == (" " * len(line), "")


def test_line_that_stays_takes_the_place_of_the_live_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    be_a_terminal(monkeypatch)
    with progress.reporter() as report:
        report({"kind": "progress", "what": "image", "done": 3, "of": 75})
        printing.print_error("broken.png: empty file")
        report({"kind": "progress", "what": "image", "done": 40, "of": 75})
    first, second = capsys.readouterr().err.split("mlpmixer: broken.png: empty file\n")
    assert first == f"\rimage 3/75\r{' ' * 10}\r"
    assert re.fullmatch(r"\rimage 40/75  \d+ s left\r +\r", second)


def test_classes_without_images_are_counted_and_not_scored(capsys: pytest.CaptureFixture[str]) -> None:
    probabilities = np.tile(np.array([[0.7, 0.2, 0.1]]), (4, 1))
    print_metrics(metrics_from_probabilities(probabilities, np.zeros(4, np.int64), ["cat", "dog", "owl"], list("abcd")))
    out = capsys.readouterr().out
    assert "2 of the model's 3 classes have no image here" in out and "cat" in out
    assert "dog" not in out and "owl" not in out


def test_nothing_is_coloured_even_on_a_terminal(
    run: RunLine, digits_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    be_a_terminal(monkeypatch)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for line in ("--help", "train --help", "list models", "summary S/16", f"evaluate {digits_run}", "train digts"):
        assert "\x1b" not in "".join(run(*line.split())[1:])


def test_lines_of_the_service_are_not_coloured_even_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    config, record = pytest.importorskip("mlpmixer.serve.server").log_config(), logging.LogRecord
    be_a_terminal(monkeypatch)
    for name, args in (("default", ("a", "b", "c", "d", 1)), ("access", ("127.0.0.1", "GET", "/", "1.1", 200))):
        options = config["formatters"][name]
        formatter = locate(options.pop("()"))(**options)
        assert "\x1b" not in formatter.format(record("uvicorn", logging.INFO, "", 0, "%s %s %s %s %d", args, None))
