"""The page of a run."""

import json

import numpy as np
import pytest
from helpers.html import check_safe
from helpers.metrics import random_metrics

from mlpmixer.config import to_json
from mlpmixer.training.recipe import Recipe
from mlpmixer.training.run_report import write_report


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "runs" / "my first"
    folder.mkdir(parents=True)
    (folder / "recipe.json").write_text(json.dumps(to_json(Recipe(name="digits<i>"))))
    env = {"device": "a CPU, 2 threads", "command": ["mlpmixer", "train", "digits"], "packages": {"torch": "2"}}
    (folder / "env.json").write_text(json.dumps(env))
    lines = [
        {"kind": "step", "step": s, "epoch": s / 10, "loss": 2 / s, "lr": 1e-3, "top1": 0.5} for s in range(1, 100)
    ]
    lines += [{"kind": "eval", "step": s, "epoch": s / 10, "split": "val", "top1": 0.6, "nll": 1.0} for s in (50, 99)]
    killed = '{"kind": "st'  # while writing
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + killed)
    summary = {
        "val_top1": 0.61,
        "test": random_metrics(list("abc")).to_json(),
        "params": 12345,
        "train_s": 7600.0,
        "steps": 99,
    }
    (folder / "summary.json").write_text(json.dumps(summary | {"bad_images": [["x<y.png", "empty file"]]}))
    return folder


def test_the_page_shows_the_run_and_how_to_use_it(run):
    path = write_report(run)
    assert path == run / "report.html"
    page = check_safe(path.read_text(encoding="utf-8"))
    top1 = json.loads((run / "summary.json").read_text())["test"]["top1"]
    for text in (f"{100 * top1:.1f} %", "60 test images", "12,345", "2 h 6 min", "a CPU, 2 threads", "61.0 %"):
        assert text in page.text, text
    for text in ("digits<i>", "x<y.png", "empty file", "mlpmixer train digits"):
        assert text in page.text, text
    assert f"mlpmixer predict '{run.name}' photo.jpg" in page.text  # quoted: the name has a space
    assert path.read_text(encoding="utf-8").count("<svg") == 4  # loss, accuracy, learning rate, reliability


def test_the_charts_mark_the_step_that_was_kept(run):
    plain = write_report(run).read_text(encoding="utf-8")
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"best_step": 50, "kept": "best"}))
    text = write_report(run).read_text(encoding="utf-8")
    assert "dotted line: step 50, the best on validation" in check_safe(text).text and "dotted line" not in plain
    assert text.count("stroke-dasharray: 1.2,2.4") == 3 + plain.count("stroke-dasharray: 1.2,2.4")


def test_the_page_says_what_limits_the_run(run):
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"advice": ["the network overfits: <99 %>"]}))
    assert "The network overfits: <99 %>." in check_safe(write_report(run).read_text(encoding="utf-8")).text


def test_given_metrics_replace_stored_ones(run):
    m = random_metrics(list("abcdefg"), n=200, bad=[("torn.jpg", "image file is truncated")])
    pictures = [np.zeros((300, 200, 3), dtype=np.uint8), None, np.zeros((8, 8, 1), dtype=np.uint8)]
    page = check_safe(write_report(run, m, pictures).read_text(encoding="utf-8"))
    assert (
        "200 test images" in page.text and "torn.jpg" in page.text and "img" in page.tags and "no picture" in page.text
    )


def test_an_unfinished_run_has_a_page(run):
    for name in ("summary.json", "env.json", "metrics.jsonl"):
        (run / name).unlink()
    page = check_safe(write_report(run).read_text(encoding="utf-8"))
    assert "not finished" in page.text


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a run"):
        write_report(tmp_path)


def test_without_a_test_split_the_page_shows_validation(run):
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"test": None, "val": summary["test"]}))
    assert "60 validation images" in check_safe(write_report(run).read_text(encoding="utf-8")).text
