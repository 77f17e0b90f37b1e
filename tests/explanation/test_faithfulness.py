"""Deletion and insertion curves."""

import numpy as np
import pytest
import torch
from helpers.models import OBLONG, digits_classifier, random_images, random_mixer

from mlpmixer.data.config import Data
from mlpmixer.data.datasets import open_images
from mlpmixer.explanation import faithfulness
from mlpmixer.explanation.faithfulness import Faithfulness

CLASSES = torch.tensor([4, 0, 2])
FILL = torch.tensor([0.1, -0.2, 0.3])


def test_curves_end_at_the_filled_image():
    model, images = random_mixer(), random_images()
    shares, gone, come = faithfulness.curves(model, images, CLASSES, torch.rand(3, 12), FILL, OBLONG.grid, points=5)
    whole = model(images).softmax(dim=1)[range(3), CLASSES]
    empty = model(FILL[:, None, None].expand_as(images)).softmax(dim=1)[range(3), CLASSES]
    assert shares[0] == 0 and shares[-1] == 1 and gone.shape == come.shape == (3, 6)
    for curve, first, last in ((gone, whole, empty), (come, empty, whole)):
        torch.testing.assert_close(curve[:, 0], first.detach())
        torch.testing.assert_close(curve[:, -1], last.detach())


def test_curves_follow_the_importance():
    model, images = random_mixer(), random_images(n=1)
    importance = torch.arange(12.0)[None]  # the last patch is the most important
    _, gone, come = faithfulness.curves(
        model, images, CLASSES[:1], importance, FILL, OBLONG.grid, points=12, sigmoid=True
    )
    without = images.clone()
    without[..., 4:8, 10:12] = FILL[:, None, None]
    alone = FILL[:, None, None].expand_as(images).clone()
    alone[..., 4:8, 10:12] = images[..., 4:8, 10:12]
    torch.testing.assert_close(gone[0, 1], model(without)[0, 4].sigmoid().detach())
    torch.testing.assert_close(come[0, 1], model(alone)[0, 4].sigmoid().detach())


def test_gains_are_paired_by_image():
    shares = np.array([0, 0.5, 1])
    falls, stays = np.array([[1, 0, 0], [1, 0.4, 0]], np.float32), np.array([[1, 1, 0], [1, 1.4, 0]], np.float32)
    found = Faithfulness(shares=shares, deletion={"x": falls, "random": stays}, insertion={"x": stays, "random": stays})
    row, random = found.areas()
    assert row["deletion"] == pytest.approx((0.25 + 0.45) / 2) and row["deletion_se"] == pytest.approx(0.1)
    assert row["deletion_gain"] == pytest.approx(-0.5) and row["deletion_gain_se"] == pytest.approx(0, abs=1e-6)
    assert row["insertion_gain"] == random["deletion_gain"] == 0 and found.n == 2


def test_occlusion_beats_random_order():
    classifier = digits_classifier()
    images = open_images(Data(name="digits"), "test")
    found = faithfulness.faithfulness(classifier, images, torch.zeros(1), methods=("occlusion", "evidence"), at_most=20)
    occlusion, _, random = found.areas()
    assert found.n == 20 and set(found.deletion) == {"occlusion", "evidence", "random"} and random["deletion_gain"] == 0
    assert occlusion["deletion_gain"] < -2 * occlusion["deletion_gain_se"]
    assert occlusion["insertion_gain"] > 2 * occlusion["insertion_gain_se"]
    with pytest.raises(ValueError, match="did you mean occlusion"):
        faithfulness.faithfulness(classifier, images, torch.zeros(1), methods=("oclusion",))
    with pytest.raises(ValueError, match="at least 1"):
        faithfulness.faithfulness(classifier, images, torch.zeros(1), at_most=0)
