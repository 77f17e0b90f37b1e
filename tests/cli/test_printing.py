"""How results and progress are printed."""

import json

import pytest

from mlpmixer.cli import printing, progress


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    printing.print_json({"loss": float("nan"), "rows": [float("inf"), 1.0]})
    assert json.loads(capsys.readouterr().out) == {"loss": None, "rows": [None, 1.0]}


def test_progress_off_a_terminal_and_on_one(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"params": 1000, "train_images": 10, "val_images": 2, "classes": 3, "steps": 20}
    start = {"kind": "start", "out": "runs/x", "device": "cpu", "precision": "float32", "kernels": "torch", **sizes}
    speed = {"images_per_s": 2000.0, "peak_mib": 1234.5, "eta_s": 75.0}
    events = [
        start | {"notes": ["val was cut from train"]},
        {"kind": "step", "step": 10, "epoch": 1.0, "loss": 1.5, "top1": 0.25, "lr": 0.1, **speed},
        {"kind": "eval", "step": 10, "epoch": 1.0, "split": "val", "top1": 0.5, "nll": 1.25},
        {"kind": "save", "step": 10},
        {"kind": "end", "summary": {}},
    ]
    report = progress.plain_training(every_s=0)
    for event in events:
        report(event)
    out = capsys.readouterr().out
    assert "float32 on cpu; kernels: torch\n" in out and "note: val was cut from train" in out
    assert "step 10/20  loss 1.5000  train 25.00 %  2,000 images/s  1,234 MiB  1 min 15 s left" in out
    assert "epoch 1  step 10  val: top-1 50.00 %, loss 1.2500" in out
    with progress.live_training() as live:
        for event in events:
            live(event)
    assert "val: top-1 50.00 %" in capsys.readouterr().out
