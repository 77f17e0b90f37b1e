"""The page of an evaluation."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from helpers.chromium import Chromium
from helpers.html import check_safe
from helpers.metrics import random_metrics
from PIL import Image

from mlpmixer.data.config import Data
from mlpmixer.data.datasets import open_images
from mlpmixer.evaluation.confusion import STRONGEST
from mlpmixer.evaluation.html import TEMPLATES
from mlpmixer.evaluation.metrics import Scored, calibrated_metrics, metrics_from_probabilities, real_metrics
from mlpmixer.evaluation.report import evaluation_html, pictured, thumbnails_of

EVIL = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "$\\frac{$",  # matplotlib would read it as a formula
    "\u65e5\u672c",
    "</style></title></svg><b>",
    "\u202e\u05e9\u05dc\u05d5\u05dd",  # turns what follows around
    "long " * 40,
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


@pytest.mark.parametrize("k", [21, 1000])
def test_many_classes_are_a_picture_with_their_names_and_numbers(k):
    text = evaluation_html(random_metrics([f"kind {i}" for i in range(k)], n=3000))
    page = check_safe(text)
    assert "image" in page.tags and "Most frequent confusions" in page.text
    across, down = (text[text.index(f'<svg class="{axis}"') :].split("</svg>")[0] for axis in ("across", "down"))
    for axis in (across, down):
        assert re.findall(r"<text [^>]*>(.*?)</text>", axis) == [f"kind {i}" for i in range(k)]
    counts = re.findall(r'<text x="(\d+)" y="(\d+)">(\d+)</text>', text)
    m = random_metrics([f"kind {i}" for i in range(k)], n=3000)
    found = {(int(y) // 22, int(x) // 22): int(n) for x, y, n in counts}
    assert found == {(i, j): n for i, row in enumerate(m.confusion) for j, n in enumerate(row) if n}


def test_a_page_of_a_thousand_classes_is_below_three_megabytes():
    m = random_metrics([f"{i:04d} " + "Ünïcode <b> " * 16 for i in range(1000)], n=20_000)
    rng = np.random.default_rng(0)
    smooth = np.linspace(0, 200, 160, dtype=np.float32)[:, None, None] + rng.normal(20, 8, (160, 120, 3))
    photos = [smooth.clip(0, 255).astype(np.uint8)] * len(pictured(m))
    assert len(photos) == 24 + 200 - sum(n == 1 for n in np.unique([e.true for e in m.examples], return_counts=True)[1])
    assert len(evaluation_html(m, photos).encode()) < 3e6


def test_each_class_has_its_most_typical_and_its_hardest_image():
    p = np.array([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3], [0.2, 0.8], [0.55, 0.45], [0.3, 0.7]])
    m = metrics_from_probabilities(
        p, np.array([0, 0, 0, 0, 0, 1]), ["cat", "dog"], list("abcdef"), indices=range(10, 16)
    )
    assert [(e.kind, e.true, e.index, e.predicted) for e in m.examples] == [
        ("typical", "cat", 10, "cat"),
        ("typical", "cat", 12, "cat"),
        ("hardest", "cat", 13, "dog"),
        ("hardest", "cat", 14, "cat"),
        ("typical", "dog", 15, "dog"),
    ]
    assert m.examples[2].probability == pytest.approx(0.2)
    pictures = [np.full((40, 40, 3), i, np.uint8) for i in range(len(pictured(m)))]
    assert pictured(m) == [13, 10, 12, 13, 14, 15]
    text = evaluation_html(m, pictures)
    assert text.count("<img") == 6 and "Taken for dog (1)." in re.sub(r"\s+", " ", check_safe(text).text)
    assert evaluation_html(m).count("<img") == 0  # made again from a stored summary, without the images


def test_the_page_begins_with_the_answer():
    m = dataclasses.replace(
        random_metrics(list("abc")), scored=Scored(data="pets", split="test", n=60, of=600, how="test", notes=())
    )
    text = re.sub(r"\s+", " ", check_safe(evaluation_html(m)).text.split("</style>")[-1])
    start = text.index("Evaluation ", 50)
    for words in (f"{100 * m.top1:.1f} % of 60 images of pets are classified correctly", "95 % interval (Wilson): "):
        assert start < text.index(words) < start + 200


def test_numbers_say_what_they_mean_without_a_script_or_a_mouse():
    text = evaluation_html(random_metrics([f"kind {i}" for i in range(9)]))
    for name in ("top-5", "negative log-likelihood", "calibration error", "Brier score"):
        assert re.search(rf'<details class="term"><summary>{name}</summary><p>[^<]{{30,}}</p>', text), name


def luminance(colour):
    values = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(values <= 0.03928, values / 12.92, ((values + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722)


def contrast(a, b):
    """The contrast ratio of WCAG 2.1 between two colours "#rrggbb"."""
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_text_can_be_read_in_light_and_in_dark(mode):
    css = (TEMPLATES / "style.css").read_text()
    light, dark = re.findall(r":root\{(.*?)\}", css, re.S)[:2]
    colours = dict(re.findall(r"--(\w+):(#\w+)", light + (dark if mode == "dark" else "")))
    colours = {name: c if len(c) == 7 else "#" + "".join(2 * x for x in c[1:]) for name, c in colours.items()}
    for name in ("ink", "ink2", "ok", "no", "accent"):
        for ground in ("card", "bg"):
            assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
    for name, strongest in (("hit", STRONGEST), ("miss", STRONGEST)):
        mixed = [
            round(
                (
                    strongest * int(colours[name][i : i + 2], 16)
                    + (100 - strongest) * int(colours["card"][i : i + 2], 16)
                )
                / 100
            )
            for i in (1, 3, 5)
        ]
        assert contrast(colours["ink"], "#{:02x}{:02x}{:02x}".format(*mixed)) >= 4.5, name


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


@pytest.mark.browser
def test_a_page_fits_a_phone_and_opens_by_keyboard(tmp_path):
    classes = [f"{name}{i}" for i in range(3) for name in (*EVIL[:-1], "no_space_" * 22)]
    (tmp_path / "page.html").write_text(evaluation_html(random_metrics(classes, n=400)), encoding="utf-8")
    with Chromium(390, 800) as browser:
        browser.open((tmp_path / "page.html").as_uri())
        browser.value("document.querySelector('details.term summary').focus()")
        browser.press("Enter")
        assert browser.value("document.querySelector('details.term p').getBoundingClientRect().height") > 10
        browser.value("document.querySelectorAll('details').forEach(fold => fold.open = true)")
        assert browser.value("document.documentElement.scrollWidth") == 390
        assert browser.value("document.querySelector('.matrix').scrollWidth") > 390  # in its own box
        assert not browser.problems
        assert [address for address in browser.asked if not address.startswith("data:")] == browser.asked[:1]
