"""Pictures of explanations and weights."""

import re
from pathlib import Path

import numpy as np
from helpers.models import digits_classifier
from PIL import Image

from mlpmixer.explanation import pictures
from mlpmixer.weights.model_file import save_model


def test_heat_maps_align_with_patches():
    values = np.zeros((2, 6))
    values[1, 3], values[0, 5] = 2.0, -2.0
    picture = np.asarray(pictures.heat_map(np.full((8, 12, 3), 128, np.uint8), values))
    assert picture.shape[0] == 8 * 21  # 256 / 12, rounded
    body = picture[: 8 * 21, : 12 * 21].reshape(2, 4 * 21, 6, 2 * 21, 3)
    assert (body == body[:, :1, :, :1]).all()  # one colour in each patch, up to its border
    cells = body[:, 0, :, 0].astype(int)
    assert (np.abs(cells - cells[0, 0]).sum(axis=2) > 0).tolist() == [
        [False] * 5 + [True],
        [False] * 3 + [True] + [False] * 2,
    ]
    red, blue = cells[1, 3], cells[0, 5]
    assert red[0] > red[2] and blue[2] > blue[0]
    bar = picture[:, 12 * 21 + pictures.GAP_PX + 7]
    coloured = bar[(bar.astype(int).max(axis=1) - bar.min(axis=1)) > 60].astype(int)
    assert coloured[0, 0] > coloured[0, 2] and coloured[-1, 2] > coloured[-1, 0]  # red, for, is above


def test_zeros_can_be_drawn():
    assert pictures.heat_map(np.zeros((4, 4, 1), np.uint8), np.zeros((2, 2))).height > 0
    assert pictures.units_picture(np.zeros((3, 2, 2))).width > 0


def test_units_and_filters_keep_their_order():
    units = np.stack([np.full((2, 4), v) for v in (1.0, -1.0, 3.0)])
    picture = np.asarray(pictures.units_picture(units, columns=2))
    step_y, step_x = 2 * 16 + 3, 4 * 16 + 3
    assert picture.shape == (2 * step_y - 3, 2 * step_x - 3, 3)
    assert (
        tuple(picture[0, 0]) == tuple(picture[step_y, 0]) == pictures.RED and tuple(picture[0, step_x]) == pictures.BLUE
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
