"""Pictures of explanations and weights."""

import re
from pathlib import Path

import numpy as np
from helpers.models import digits_classifier
from PIL import Image

from mlpmixer.explanation import pictures
from mlpmixer.weights.model_file import save_model


def test_heat_maps_align_with_patches_and_leave_the_photo_visible():
    values = np.zeros((2, 6))
    values[1, 3], values[0, 5] = 2.0, -2.0
    photo = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    picture = np.asarray(pictures.heat_map(photo, values)).astype(int)
    grey = np.asarray(pictures.grey_picture(photo).convert("RGB")).astype(int)
    assert picture.shape == (8 * 21 + pictures.SCALE_PX, 12 * 21, 3)  # 256 / 12, rounded
    picture = picture[: 8 * 21]
    orange, blue = (slice(4 * 21, None), slice(3 * 42, 4 * 42)), (slice(0, 4 * 21), slice(5 * 42, None))
    same = (picture == grey).all(axis=2)
    assert not same[orange].any() and not same[blue].any() and same.sum() == same.size * 10 / 12  # 0 is transparent
    assert (picture[orange][..., 0] > picture[orange][..., 2]).all() and (
        picture[blue][..., 2] > picture[blue][..., 0]
    ).all()
    light = picture[orange].sum(axis=2)
    assert light.max() - light.min() > 50  # the strongest patch, too


def test_the_scale_goes_from_against_to_for():
    picture = np.asarray(pictures.heat_map(np.zeros((8, 8, 3), np.uint8), np.ones((2, 2)))).astype(int)
    bar = picture[256 + pictures.GAP_PX + 6]
    assert bar[0, 2] > bar[0, 0] and bar[-1, 0] > bar[-1, 2] and np.ptp(bar[128]) <= 2


def test_zeros_can_be_drawn():
    assert pictures.heat_map(np.zeros((4, 4, 1), np.uint8), np.zeros((2, 2))).height > 0
    assert pictures.units_picture(np.zeros((3, 2, 2))).width > 0


def test_units_and_filters_keep_their_order():
    units = np.stack([np.full((2, 4), v) for v in (1.0, -1.0, 3.0)])
    picture = np.asarray(pictures.units_picture(units, columns=2))
    step_y, step_x = 2 * 16 + 3, 4 * 16 + 3
    assert picture.shape == (2 * step_y - 3, 2 * step_x - 3, 3)
    assert (
        tuple(picture[0, 0]) == tuple(picture[step_y, 0]) == pictures.POSITIVE
        and tuple(picture[0, step_x]) == pictures.NEGATIVE
    )
    filters = np.zeros((1, 3, 2, 2))
    filters[0, 1, 0, 1] = 5
    picture = np.asarray(pictures.stem_picture(filters))
    assert tuple(picture[0, -1]) == (128, 255, 128) and tuple(picture[-1, 0]) == (128, 128, 128)
    assert pictures.stem_picture(filters[:, :1]).size == pictures.stem_picture(filters).size


def test_the_example_of_the_docs_runs(tmp_path, monkeypatch):
    text = (Path(__file__).parents[2] / "docs" / "how-to" / "explain.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    classifier = digits_classifier()
    save_model(tmp_path / "runs" / "photos" / "model.safetensors", classifier.network, classifier.meta)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    for name in ("block-1.png", "stem.png"):
        with Image.open(name) as picture:
            assert picture.width > 100
