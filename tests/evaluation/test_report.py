import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from helpers.html import check_safe
from PIL import Image

from mlpmixer.config import to_json
from mlpmixer.data.config import Data
from mlpmixer.data.datasets import open_images
from mlpmixer.evaluation.metrics import calibrated_metrics, metrics_from_probabilities, real_metrics
from mlpmixer.evaluation.report import evaluation_html, thumbnails_of
from mlpmixer.training.recipe import Recipe
from mlpmixer.training.run_report import write_report

EVIL = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "$\\frac{$",  # matplotlib would read it as a formula
    "\u65e5\u672c",
    "</style></title></svg><b>",
    "\udcff",
)


def metrics(classes, n=60, seed=0, **kwargs):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(classes), n)
    p = rng.dirichlet(np.ones(len(classes)), n)
    return metrics_from_probabilities(
        p, labels, classes, [f"{classes[c]}/{i}.png" for i, c in enumerate(labels)], **kwargs
    )


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "my runs" / "first"
    folder.mkdir(parents=True)
    (folder / "recipe.json").write_text(json.dumps(to_json(Recipe(name="digits<i>"))))
    env = {"device": "a CPU, 2 threads", "command": ["mlpmixer", "train", "digits"], "packages": {"torch": "2"}}
    (folder / "env.json").write_text(json.dumps(env))
    lines = [
        {"kind": "step", "step": s, "epoch": s / 10, "loss": 2 / s, "lr": 1e-3, "top1": 0.5} for s in range(1, 100)
    ]
    lines += [{"kind": "eval", "step": s, "epoch": s / 10, "split": "val", "top1": 0.6, "nll": 1.0} for s in (50, 99)]
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "st'
    )  # killed while writing
    summary = {
        "val_top1": 0.61,
        "test": metrics(list("abc")).to_json(),
        "params": 12345,
        "train_s": 7600.0,
        "steps": 99,
    }
    (folder / "summary.json").write_text(json.dumps(summary | {"bad_images": [["x<y.png", "empty file"]]}))
    return folder


def test_a_report_shows_the_run_and_how_to_use_it(run):
    path = write_report(run)
    assert path == run / "report.html"
    page = check_safe(path.read_text(encoding="utf-8"))
    top1 = json.loads((run / "summary.json").read_text())["test"]["top1"]
    for text in (f"{100 * top1:.1f} %", "60 test images", "12,345", "2 h 6 min", "a CPU, 2 threads", "61.0 %"):
        assert text in page.text, text
    for text in ("digits<i>", "x<y.png", "empty file", "mlpmixer train digits"):
        assert text in page.text, text
    assert f"mlpmixer predict '{run}' photo.jpg" in page.text  # quoted: the path has a space
    assert path.read_text(encoding="utf-8").count("<svg") == 4  # loss, accuracy, learning rate, reliability


def test_given_metrics_take_the_place_of_the_stored_ones(run):
    m = metrics(list("abcdefg"), n=200, bad=[("torn.jpg", "image file is truncated")])
    pictures = [np.zeros((300, 200, 3), dtype=np.uint8), None, np.zeros((8, 8, 1), dtype=np.uint8)]
    page = check_safe(write_report(run, m, pictures).read_text(encoding="utf-8"))
    assert (
        "200 test images" in page.text and "torn.jpg" in page.text and "img" in page.tags and "no picture" in page.text
    )


def test_an_unfinished_run_has_a_report_too(run):
    for name in ("summary.json", "env.json", "metrics.jsonl"):
        (run / name).unlink()
    page = check_safe(write_report(run).read_text(encoding="utf-8"))
    assert "not finished" in page.text


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a run"):
        write_report(tmp_path)


@pytest.mark.parametrize("copies", [1, 4], ids=["as a table", "as a picture"])
def test_hostile_class_names_are_shown_and_not_obeyed(copies):
    classes = [name + "!" * i for i in range(copies) for name in EVIL]
    m = metrics(classes, bad=[("<b>x.png", "<i>reason")])
    text = evaluation_html(
        m, [np.zeros((4, 4), dtype=np.uint8) for _ in m.most_wrong], title="<u>", model='"<m>', data="</dl>"
    )
    page = check_safe(text)
    text.encode("utf-8")
    assert not page.tags & {"b", "i", "u", "m"}
    for name in EVIL[:-1]:
        assert name in page.text
    assert "<b>x.png" in page.text


def test_a_hundred_classes_are_a_picture_with_named_rows_and_a_list_of_confusions():
    page = check_safe(evaluation_html(metrics([f"kind {i}" for i in range(100)], n=3000)))
    assert "image" in page.tags and "kind 99" in page.text and "Most frequent confusions" in page.text


def test_a_perfect_model_has_a_page():
    m = metrics_from_probabilities(np.eye(3), np.arange(3), list("abc"), list("xyz"))
    page = check_safe(evaluation_html(m))
    assert "100.0 %" in page.text and "No image was misclassified" in page.text


def test_calibration_is_drawn_and_told_before_and_after_a_temperature():
    rng = np.random.default_rng(0)
    p, labels = rng.dirichlet(np.ones(3), 60), rng.integers(0, 3, 60)
    m = metrics_from_probabilities(p, labels, list("abc"), [str(i) for i in range(60)])
    plain = evaluation_html(m)
    after = calibrated_metrics(p, labels, 2.5, 17)
    m = dataclasses.replace(
        m,
        tempered=after,
        real=real_metrics(labels, [frozenset({int(label)}) for label in labels[:40]] + [frozenset()] * 20),
    )
    page = check_safe(evaluation_html(m))
    for text in (
        "logits divided by 2.500, the best on 17 validation images",
        f"{after.nll:.4f}",
        "ReaL top-1, 40 images",
    ):
        assert text in page.text and text not in plain
    assert f"{m.brier:.4f}" in page.text and f"{m.brier:.4f}" in plain
    stored = {k: v for k, v in m.to_json().items() if k not in ("reliability", "brier", "tempered", "real")}
    assert "Calibration" not in check_safe(evaluation_html(stored)).text  # of an older run


def test_thumbnails_are_small_pictures_and_unreadable_images_have_none(tmp_path):
    for name, size in (("a/big.png", (900, 300)), ("b/small.png", (8, 8))):
        (tmp_path / name).parent.mkdir()
        Image.new("RGB", size, "blue").save(tmp_path / name)
    (tmp_path / "a" / "bad.png").write_bytes(b"no")
    images = open_images(Data(name=str(tmp_path)), "all")
    pictures = zip(images.names, thumbnails_of(images, range(3)), strict=True)
    shapes = {Path(name).name: getattr(picture, "shape", None) for name, picture in pictures}
    assert shapes == {"big.png": (53, 160, 3), "small.png": (8, 8, 3), "bad.png": None}


def test_without_a_test_split_the_page_speaks_of_validation(run):
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"test": None, "val": summary["test"]}))
    assert "60 validation images" in check_safe(write_report(run).read_text(encoding="utf-8")).text
