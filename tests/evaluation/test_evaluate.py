"""Evaluation of whole models on images."""

import dataclasses
import json
import math

import numpy as np
import pytest
from PIL import Image

from mlpmixer.config import to_json
from mlpmixer.data.config import Data
from mlpmixer.data.datasets import open_images
from mlpmixer.data.preprocess import Preprocess
from mlpmixer.evaluation.calibration import (
    apply_temperature,
    fit_temperature,
    log_loss,
)
from mlpmixer.evaluation.evaluate import evaluate, match_classes, shifted
from mlpmixer.inference.classifier import Classifier
from mlpmixer.training.recipe import Recipe
from mlpmixer.weights import published


def test_classes_are_matched_by_name():
    assert match_classes(["b", "a", "c"], ["a", "b", "c"]).tolist() == [1, 0, 2]


def test_data_may_lack_classes():
    assert match_classes(["c", "a"], ["a", "b", "c"]).tolist() == [2, 0]
    assert match_classes(["Gr\u00f6\u00dfe"], ["b", "Gro\u0308\u00dfe"]).tolist() == [1]  # a model of before


def test_class_mismatches_are_named():
    with pytest.raises(ValueError, match=r"not in the data: 'dog'.*not in the model: 'wolf'"):
        match_classes(["cat", "wolf"], ["cat", "dog"])


def red_or_blue(classes, path=None):
    """Looks at the mean colour; class 0 of `classes` is whichever name comes first."""

    def logits(x):  # (B,3,H,W) in -1..1
        red, blue = x[:, 0].mean(axis=(1, 2)), x[:, 2].mean(axis=(1, 2))
        score = {"red": red, "blue": blue}
        return np.stack([score[c] for c in classes], axis=1).astype(np.float32)

    return Classifier(
        classes=classes, preprocess=Preprocess(image_size=(8, 8)), logits=logits, pre_logits=logits, path=path
    )


@pytest.fixture
def folder(tmp_path):
    for name, colour in (("red", (250, 10, 10)), ("blue", (10, 10, 250))):
        (tmp_path / name).mkdir()
        for i in range(5):
            Image.new("RGB", (9, 11), colour).save(tmp_path / name / f"{i}.png")
    (tmp_path / "red" / "broken.png").write_bytes((tmp_path / "red" / "0.png").read_bytes()[:40])
    return tmp_path


@pytest.mark.parametrize("classes", [("blue", "red"), ("red", "blue")])
def test_every_readable_image_counts_once(folder, classes):
    images = open_images(Data(name=str(folder)), "all")
    m = evaluate(red_or_blue(classes), images, batch_size=4)  # 11 files: a partial last batch
    assert m.n == 10 and m.top1 == 1
    assert m.classes == classes and sum(map(sum, m.confusion)) == 10
    assert len(m.bad) == 1 and m.bad[0][0].endswith("broken.png") and m.bad[0][1]


def test_data_can_be_a_path_and_a_split(folder):
    assert evaluate(red_or_blue(("blue", "red")), str(folder), split="all").n == 10


def left_or_right():
    """Looks at which half is the brighter one, and is sure of itself only on the left."""

    def logits(x):
        left = x[:, 0, :, :4].mean(axis=(1, 2)) - x[:, 0, :, 4:].mean(axis=(1, 2))
        return np.stack([np.where(left > 0, 4 * left, 0), np.where(left > 0, 0, 0.1)], axis=1).astype(np.float32)

    return Classifier(
        classes=("left", "right"), preprocess=Preprocess(image_size=(8, 8)), logits=logits, pre_logits=logits
    )


def test_tta_is_the_mean_over_views(folder):
    for name, columns in (("left", slice(0, 4)), ("right", slice(4, 8))):
        (folder / "halves" / name).mkdir(parents=True)
        pixels = np.zeros((8, 8, 3), np.uint8)
        pixels[:, columns] = 255
        Image.fromarray(pixels).save(folder / "halves" / name / "0.png")
    images = open_images(Data(name=str(folder / "halves")), "all")
    model = left_or_right()
    plain, both = evaluate(model, images), evaluate(model, images, tta=["flip"])
    assert (plain.tta, both.top1) == (None, 1.0)
    assert dataclasses.replace(both, tta=None) == plain
    # of an image and its mirror image one says left with certainty, the other right, hardly: the mean says left of both
    sure, unsure = 1 / (1 + math.exp(-8)), 1 / (1 + math.exp(0.1))
    left = (sure + unsure) / 2
    assert (both.tta.kinds, both.tta.views, both.tta.top1, both.tta.top5) == (("flip",), 2, 0.5, None)
    assert both.tta.nll == pytest.approx(-(math.log(left) + math.log(1 - left)) / 2, rel=1e-5)
    assert evaluate(model, images, tta=("flip", "shift")).tta.views == 10
    with pytest.raises(ValueError, match=r"no test-time augmentation named 'flop'; did you mean flip\?"):
        evaluate(model, images, tta=["flop"])


def test_temperature_is_fitted_on_validation_images(tmp_path):
    for split, levels in (("val", (100, 120, 130, 140, 150)), ("test", (90, 110, 125, 135, 160, 170))):
        for i, level in enumerate(levels):
            name = (
                "red" if (level > 127) != (i == 1) else "blue"
            )  # the second image of each split is of the other class
            (tmp_path / split / name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (level, 127, 255 - level)).save(tmp_path / split / name / f"{level}.png")
    model = red_or_blue(("blue", "red"))
    val, test = (open_images(Data(name=str(tmp_path / split)), "all") for split in ("val", "test"))
    plain, both = evaluate(model, test), evaluate(model, test, validation=val)
    assert dataclasses.replace(both, tempered=None) == plain and plain.tempered is None

    def probabilities(images):
        return model.probabilities(np.stack([model.preprocess_image(images.source(i)) for i in range(len(images))]))

    temperature = fit_temperature(probabilities(val), val.labels)
    assert (both.tempered.temperature, both.tempered.n) == (temperature, 5)
    assert (
        both.tempered.nll
        == log_loss(apply_temperature(probabilities(test), temperature), test.labels).mean()
        != plain.nll
    )
    assert sum(b.count for b in both.tempered.reliability) == 6 and both.tempered.brier != plain.brier
    assert json.loads(json.dumps(both.to_json())) == both.to_json()
    with pytest.raises(ValueError, match="sigmoid loss"):
        model.sigmoid = True
        evaluate(model, test, validation=val)


def test_shifted_views_move_by_a_32nd():
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 6, 1), dtype=np.uint8)
    down, right = shifted(1, 0)(images), shifted(0, 1)(images)
    up, left = shifted(-1, 0)(images), shifted(0, -1)(images)
    assert all(view.shape == images.shape for view in (down, right, up, left))
    assert (down[:, 2:] == images[:, :-2]).all() and (down[:, :2] == images[:, [2, 1]]).all()
    assert (up[:, :-2] == images[:, 2:]).all()
    assert (right[:, :, 1:] == images[:, :, :-1]).all() and (
        left[:, :, :-1] == images[:, :, 1:]
    ).all()  # 6 / 32 of a pixel: one


def test_no_readable_image_is_an_error(tmp_path):
    for name in ("red", "blue"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"none of the 2 images could be read .*x\.png"):
        evaluate(red_or_blue(("red", "blue")), open_images(Data(name=str(tmp_path)), "all"))


def test_a_model_without_a_run_needs_data():
    with pytest.raises(ValueError, match="which images"):
        evaluate(red_or_blue(("red", "blue")))


def test_a_run_is_evaluated_on_its_own_split(folder, tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    own = Data(name=str(folder), test_fraction=0.5, split_seed=3)
    (run / "recipe.json").write_text(json.dumps(to_json(Recipe(data=own))))
    model = red_or_blue(("blue", "red"), path=run / "model.safetensors")
    m = evaluate(model)
    assert m == evaluate(model, str(folder)) == evaluate(model, own)
    assert m.n + len(m.bad) == len(open_images(own, "test"))


def test_wordnet_ids_match_imagenet_classes() -> None:
    ids = published.wordnet_ids("imagenet1k")
    assert match_classes(ids, published.class_names("imagenet1k")).tolist() == list(range(1000))
    assert match_classes(ids[::-1], published.class_names("imagenet1k")).tolist() == list(range(1000))[::-1]
    assert match_classes(ids[5:3:-1], published.class_names("imagenet1k")).tolist() == [5, 4]


def test_unnamed_classes_take_the_order_of_the_data() -> None:
    assert match_classes(("b", "a"), ("class 0", "class 1")).tolist() == [0, 1]
    with pytest.raises(ValueError, match="differ"):
        match_classes(("b", "a"), ("class 0", "class 2"))
