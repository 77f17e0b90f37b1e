"""The page of an evaluation."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from helpers.html import check_safe
from helpers.metrics import random_metrics
from PIL import Image

from mlpmixer.data.config import Data
from mlpmixer.data.datasets import open_images
from mlpmixer.evaluation.metrics import calibrated_metrics, metrics_from_probabilities, real_metrics
from mlpmixer.evaluation.report import evaluation_html, thumbnails_of

EVIL = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "$\\frac{$",  # matplotlib would read it as a formula
    "\u65e5\u672c",
    "</style></title></svg><b>",
    "\udcff",
)


@pytest.mark.parametrize("copies", [1, 4], ids=["as a table", "as a picture"])
def test_hostile_names_are_escaped(copies):
    classes = [name + "!" * i for i in range(copies) for name in EVIL]
    m = random_metrics(classes, bad=[("<b>x.png", "<i>reason")])
    text = evaluation_html(
        m, [np.zeros((4, 4), dtype=np.uint8) for _ in m.most_wrong], title="<u>", model='"<m>', data="</dl>"
    )
    page = check_safe(text)
    text.encode("utf-8")
    assert not page.tags & {"b", "i", "u", "m"}
    for name in EVIL[:-1]:
        assert name in page.text
    assert "<b>x.png" in page.text


def test_many_classes_are_a_picture():
    page = check_safe(evaluation_html(random_metrics([f"kind {i}" for i in range(100)], n=3000)))
    assert "image" in page.tags and "kind 99" in page.text and "Most frequent confusions" in page.text


def test_a_perfect_model_has_a_page():
    m = metrics_from_probabilities(np.eye(3), np.arange(3), list("abc"), list("xyz"))
    page = check_safe(evaluation_html(m))
    assert "100.0 %" in page.text and "No image was misclassified" in page.text


def test_calibration_is_shown_with_and_without_temperature():
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


def test_thumbnails_are_small(tmp_path):
    for name, size in (("a/big.png", (900, 300)), ("b/small.png", (8, 8))):
        (tmp_path / name).parent.mkdir()
        Image.new("RGB", size, "blue").save(tmp_path / name)
    (tmp_path / "a" / "bad.png").write_bytes(b"no")
    images = open_images(Data(name=str(tmp_path)), "all")
    pictures = zip(images.names, thumbnails_of(images, range(3)), strict=True)
    shapes = {Path(name).name: getattr(picture, "shape", None) for name, picture in pictures}
    assert shapes == {"big.png": (53, 160, 3), "small.png": (8, 8, 3), "bad.png": None}
