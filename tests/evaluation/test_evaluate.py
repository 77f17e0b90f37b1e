import dataclasses
import json
import math
from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn import metrics as sklearn

from mlpmixer.config import to_json
from mlpmixer.data.config import Data
from mlpmixer.data.datasets import open_images
from mlpmixer.data.preprocess import Preprocess
from mlpmixer.evaluation.calibration import (
    apply_temperature,
    expected_calibration_error,
    fit_temperature,
    log_loss,
)
from mlpmixer.evaluation.evaluate import evaluate, match_classes, shifted
from mlpmixer.evaluation.metrics import metrics_from_probabilities
from mlpmixer.evaluation.significance import wilson
from mlpmixer.inference.classifier import Classifier
from mlpmixer.training.recipe import Recipe
from mlpmixer.weights import published


def random_case(seed, n=200, k=7):
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(k), rng.integers(0, k, n - k)])
    z = rng.normal(size=(n, k)) * 2
    z[np.arange(n), labels] += 1.5
    p = np.exp(z)
    return p / p.sum(axis=1, keepdims=True), labels, [f"c{i}" for i in range(k)], [f"{i}.png" for i in range(n)]


def test_metrics_equal_values_computed_by_hand():
    p = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7]])
    m = metrics_from_probabilities(p, np.array([0, 1, 1, 1]), ["cat", "dog"], list("abcd"))
    assert m.n == 4 and m.top1 == 0.75
    assert m.top5 is None  # two classes: it would say nothing
    assert m.nll == pytest.approx(-(math.log(0.9) + math.log(0.4) + math.log(0.8) + math.log(0.7)) / 4)
    assert m.ece == pytest.approx((0.1 + 0.6 + 0.2 + 0.3) / 4)  # four bins with one image each
    assert m.confusion == ((1, 0), (1, 2))
    cat, dog = m.per_class
    assert (cat.precision, cat.recall, cat.support) == (0.5, 1.0, 1)
    assert (dog.precision, dog.recall, dog.f1, dog.support) == (1.0, pytest.approx(2 / 3), pytest.approx(0.8), 3)
    assert [astuple(w) for w in m.most_wrong] == [("b", "dog", "cat", 0.6, 1)]


def test_metrics_agree_with_scikit_learn():
    p, labels, classes, names = random_case(0)
    m = metrics_from_probabilities(p, labels, classes, names)
    assert m.top1 == pytest.approx(sklearn.accuracy_score(labels, p.argmax(axis=1)))
    assert m.top5 == pytest.approx(sklearn.top_k_accuracy_score(labels, p, k=5))
    assert m.nll == pytest.approx(sklearn.log_loss(labels, p))
    rows = zip(*[(c.precision, c.recall, c.f1, c.support) for c in m.per_class], strict=True)
    theirs = sklearn.precision_recall_fscore_support(labels, p.argmax(axis=1))
    np.testing.assert_allclose(list(rows), theirs, rtol=1e-15)
    assert (np.array(m.confusion) == sklearn.confusion_matrix(labels, p.argmax(axis=1))).all()


def test_every_accuracy_has_wilsons_interval_and_the_bins_make_up_the_calibration_error():
    p, labels, classes, names = random_case(2)
    m = metrics_from_probabilities(p, labels, classes, names)
    assert m.top1_interval == wilson(round(200 * m.top1), 200) and m.top5_interval == wilson(round(200 * m.top5), 200)
    assert all(c.recall_interval == wilson(round(c.recall * c.support), c.support) for c in m.per_class)
    assert m.brier == pytest.approx(np.mean(((p - np.eye(7)[labels]) ** 2).sum(axis=1)))
    assert sum(b.count for b in m.reliability) == 200 and len(m.reliability) == 15
    assert m.ece == pytest.approx(sum(b.count * abs(b.accuracy - b.confidence) for b in m.reliability if b.count) / 200)
    assert metrics_from_probabilities(p[:, :3], np.zeros(200, int), list("abc"), names).top5_interval is None


def test_a_confidence_on_the_edge_of_a_bin_belongs_to_the_lower_bin():
    # 3/15 closes bin (2/15, 3/15]: together with 0.15 it forms one bin, apart from 0.21 it does not
    together = expected_calibration_error(np.array([3 / 15, 0.15]), np.array([True, False]))
    assert together == pytest.approx(abs(1 - 3 / 15 - 0.15) / 2)
    apart = expected_calibration_error(np.array([3 / 15, 0.21]), np.array([True, False]))
    assert apart == pytest.approx((0.8 + 0.21) / 2)


def test_calibration_error_is_zero_when_confidence_is_right():
    assert expected_calibration_error(np.full(4, 0.75), np.array([True, True, True, False])) == pytest.approx(0)
    assert expected_calibration_error(np.ones(3), np.ones(3, dtype=bool)) == 0


def test_equal_probabilities_count_for_the_lower_index_as_in_argmax():
    m = metrics_from_probabilities(np.full((8, 8), 1 / 8), np.arange(8), list("abcdefgh"), list("12345678"))
    assert m.top1 == 1 / 8 and m.top5 == 5 / 8


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), order=st.permutations(range(30)))
def test_the_order_of_the_images_changes_nothing(seed, order):
    p, labels, classes, names = random_case(seed, n=30)
    order = np.array(order)
    one = metrics_from_probabilities(p, labels, classes, names)
    two = metrics_from_probabilities(
        p[order], labels[order], classes, [names[i] for i in order], indices=[int(i) for i in order]
    )
    for name in ("top1", "top5", "nll", "ece"):
        assert getattr(one, name) == pytest.approx(getattr(two, name), abs=1e-12)
    assert (one.confusion, one.per_class, one.most_wrong) == (two.confusion, two.per_class, two.most_wrong)


def test_a_class_without_images_and_a_certain_mistake_give_finite_numbers():
    m = metrics_from_probabilities(np.array([[1.0, 0.0, 0.0]]), np.array([1]), ["a", "b", "never"], ["x"])
    assert math.isfinite(m.nll) and m.per_class[2].support == 0 and m.per_class[2].f1 == 0


def test_metrics_become_json_and_back_unchanged():
    m = metrics_from_probabilities(*random_case(1), bad=[("x.png", "empty file")])
    plain = m.to_json()
    assert json.loads(json.dumps(plain)) == plain
    assert plain["bad"] == [["x.png", "empty file"]]
    assert set(plain["most_wrong"][0]) == {"name", "true", "predicted", "probability", "index"}


@pytest.mark.parametrize("p", [np.zeros((0, 2)), np.full((1, 2), np.nan), np.zeros((2, 2))])
def test_nonsense_is_refused(p):
    with pytest.raises(ValueError):
        metrics_from_probabilities(p, np.zeros(min(len(p), 1), dtype=int), ["a", "b"], ["x"][: len(p)])


def test_classes_are_matched_by_name_whatever_their_order():
    assert match_classes(["b", "a", "c"], ["a", "b", "c"]).tolist() == [1, 0, 2]


def test_different_classes_are_refused_by_name():
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
def test_every_readable_image_counts_once_and_bad_ones_are_named(folder, classes):
    images = open_images(Data(name=str(folder)), "all")
    m = evaluate(red_or_blue(classes), images, batch_size=4)  # 11 files: a partial last batch
    assert m.n == 10 and m.top1 == 1
    assert m.classes == classes and sum(map(sum, m.confusion)) == 10
    assert len(m.bad) == 1 and m.bad[0][0].endswith("broken.png") and m.bad[0][1]


def test_a_path_and_a_split_say_which_images(folder):
    assert evaluate(red_or_blue(("blue", "red")), str(folder), split="all").n == 10


def left_or_right():
    """Looks at which half is the brighter one, and is sure of itself only on the left."""

    def logits(x):
        left = x[:, 0, :, :4].mean(axis=(1, 2)) - x[:, 0, :, 4:].mean(axis=(1, 2))
        return np.stack([np.where(left > 0, 4 * left, 0), np.where(left > 0, 0, 0.1)], axis=1).astype(np.float32)

    return Classifier(
        classes=("left", "right"), preprocess=Preprocess(image_size=(8, 8)), logits=logits, pre_logits=logits
    )


def test_test_time_augmentation_stands_beside_the_plain_numbers_and_is_the_mean_over_the_views(folder):
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


def test_a_temperature_is_fitted_on_other_images_and_changes_nothing_but_how_sure_the_model_is(tmp_path):
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
        model.multi_label = True
        evaluate(model, test, validation=val)


def test_a_shifted_view_is_the_image_a_32nd_of_its_side_further():
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 6, 1), dtype=np.uint8)
    down, right = shifted(1, 0)(images), shifted(0, 1)(images)
    up, left = shifted(-1, 0)(images), shifted(0, -1)(images)
    assert all(view.shape == images.shape for view in (down, right, up, left))
    assert (down[:, 2:] == images[:, :-2]).all() and (down[:, :2] == images[:, [2, 1]]).all()
    assert (up[:, :-2] == images[:, 2:]).all()
    assert (right[:, :, 1:] == images[:, :, :-1]).all() and (
        left[:, :, :-1] == images[:, :, 1:]
    ).all()  # 6 / 32 of a pixel: one


def test_no_readable_image_is_an_error_with_a_reason(tmp_path):
    for name in ("red", "blue"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"none of the 2 images could be read .*x\.png"):
        evaluate(red_or_blue(("red", "blue")), open_images(Data(name=str(tmp_path)), "all"))


def test_without_data_a_model_in_memory_asks_which_images():
    with pytest.raises(ValueError, match="which images"):
        evaluate(red_or_blue(("red", "blue")))


def test_a_run_is_tested_on_its_own_data_cut_as_in_training(folder, tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    own = Data(name=str(folder), test_fraction=0.5, split_seed=3)
    (run / "recipe.json").write_text(json.dumps(to_json(Recipe(data=own))))
    model = red_or_blue(("blue", "red"), path=run / "model.safetensors")
    m = evaluate(model)
    assert m == evaluate(model, str(folder)) == evaluate(model, own)
    assert m.n + len(m.bad) == len(open_images(own, "test"))


def test_folders_named_by_wordnet_id_are_the_classes_of_imagenet() -> None:
    ids = published.wordnet_ids("imagenet1k")
    assert match_classes(ids, published.class_names("imagenet1k")).tolist() == list(range(1000))
    assert match_classes(ids[::-1], published.class_names("imagenet1k")).tolist() == list(range(1000))[::-1]
    with pytest.raises(ValueError, match="differ"):
        match_classes(ids[:999], published.class_names("imagenet1k"))


def test_a_model_without_class_names_takes_the_order_of_the_data() -> None:
    assert match_classes(("b", "a"), ("class 0", "class 1")).tolist() == [0, 1]
    with pytest.raises(ValueError, match="differ"):
        match_classes(("b", "a"), ("class 0", "class 2"))
