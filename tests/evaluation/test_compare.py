"""Two models on the same images."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from mlpmixer.config import to_json
from mlpmixer.data.config import Data
from mlpmixer.data.datasets import open_images
from mlpmixer.data.image_set import ImageSet
from mlpmixer.data.preprocess import Preprocess
from mlpmixer.evaluation.compare import compare, compare_answers
from mlpmixer.evaluation.significance import mcnemar, paired_difference, wilson
from mlpmixer.inference.classifier import Classifier
from mlpmixer.training.recipe import Recipe, Run


def answers(both, only_a, only_b, neither):
    """Right answers of A and B with these counts."""
    right_a = np.repeat([True, True, False, False], [both, only_a, only_b, neither])
    right_b = np.repeat([True, False, True, False], [both, only_a, only_b, neither])
    return right_a, right_b


def test_discordant_pairs_are_tested():
    right_a, right_b = answers(300, 40, 15, 45)
    c = compare_answers(right_a, right_b, np.zeros(400, int), ["one"])
    assert (c.n, c.both_right, c.only_a, c.only_b, c.both_wrong) == (400, 300, 40, 15, 45)
    assert (c.top1_a, c.top1_b, c.difference) == (340 / 400, 315 / 400, 25 / 400)
    assert (c.top1_a_interval, c.top1_b_interval) == (wilson(340, 400), wilson(315, 400))
    assert (c.p, c.mid_p) == mcnemar(40, 15) and c.difference_interval == paired_difference(40, 15, 400)
    assert c.better == "A" and c.verdict.startswith(
        "A is better than B (+6.25 points for A, 95 % interval +2.59 to +9.85, p = 0.001)"
    )
    plain = c.to_json()
    assert json.loads(json.dumps(plain)) == plain and plain["better"] == "A"


def test_swapped_models_swap_the_verdict():
    right_a, right_b = answers(300, 15, 40, 45)
    c = compare_answers(right_a, right_b, np.zeros(400, int), ["one"])
    assert c.better == "B" and c.verdict.startswith("B is better than A (-6.25 points for A")


def test_a_chance_difference_is_a_draw():
    c = compare_answers(*answers(300, 24, 20, 56), np.zeros(400, int), ["one"])
    assert c.better is None and c.verdict.startswith("a draw: the difference may be chance (+1.00 points")
    same = compare_answers(*answers(300, 0, 0, 100), np.zeros(400, int), ["one"])
    assert same.p == 1 and same.verdict == "a draw: both have the same 300 of 400 images right"


def test_per_class_p_values_are_adjusted():
    labels = np.repeat([0, 1, 2], [100, 60, 40])
    right_a, right_b = np.ones(200, bool), np.ones(200, bool)
    right_b[:12] = False  # 12 images of class 0 that only A has right
    right_a[100:103] = False  # 3 of class 1 that only B has right
    c = compare_answers(right_a, right_b, labels, ["x", "y", "z", "no image"])
    assert [row.name for row in c.per_class] == ["x", "y", "z"]
    x, y, z = c.per_class
    assert (x.n, x.only_a, x.only_b, x.difference) == (100, 12, 0, pytest.approx(0.12))
    assert (y.n, y.only_a, y.only_b, y.difference) == (60, 0, 3, pytest.approx(-0.05))
    assert x.p == pytest.approx(3 * mcnemar(12, 0)[0]) and y.p == pytest.approx(2 * mcnemar(0, 3)[0]) and z.p == 1


def by_brightness(classes, threshold, path=None):
    """Says "bright" of images whose mean is above the threshold, in 0..255."""

    def logits(x):
        over = (x.mean(axis=(1, 2, 3)) + 1) * 127.5 - threshold
        return np.stack([over if c == "bright" else -over for c in classes], axis=1).astype(np.float32)

    return Classifier(
        classes=classes, preprocess=Preprocess(image_size=(8, 8)), logits=logits, pre_logits=logits, path=path
    )


def greys(levels):
    pictures = [Image.fromarray(np.full((8, 8, 3), level, np.uint8)) for level in levels]
    return ImageSet(
        ("dark", "bright"), (np.array(levels) > 127).astype(int), [f"{i}.png" for i in range(len(levels))], pictures
    )


def test_models_may_order_classes_differently():
    images = greys([10, 60, 100, 140, 180, 240])
    c = compare(by_brightness(("dark", "bright"), 127), by_brightness(("bright", "dark"), 80), images, batch_size=4)
    assert (c.n, c.top1_a, c.top1_b, c.only_a, c.only_b) == (6, 1.0, 5 / 6, 1, 0)  # only 100 is taken for bright, by B
    assert c.a == c.b == "in memory" and not c.seeds_apart


def test_unreadable_images_count_for_neither_model():
    images = greys([10, 60, 240])
    images.sources[1] = b"no image"
    c = compare(by_brightness(("dark", "bright"), 127), by_brightness(("dark", "bright"), 50), images)
    assert c.n == 2 and c.bad[0][0] == "1.png" and c.only_a == 0


def test_other_classes_are_refused():
    with pytest.raises(ValueError, match="model B: the classes of data and model differ"):
        compare(by_brightness(("dark", "bright"), 127), by_brightness(("cat", "bright"), 127), greys([1, 255]))


@pytest.fixture
def folder(tmp_path):
    for name, levels in (("dark", range(0, 120, 6)), ("bright", range(130, 250, 6))):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for level in levels:
            Image.fromarray(np.full((8, 8, 3), level, np.uint8)).save(tmp_path / "photos" / name / f"{level}.png")
    return tmp_path / "photos"


def run_of(folder, name, recipe, threshold=127):
    run = folder.parent / name
    run.mkdir()
    (run / "recipe.json").write_text(json.dumps(to_json(recipe)))
    return by_brightness(("bright", "dark"), threshold, run / "model.safetensors")


def test_runs_that_differ_in_the_seed_are_recognised(folder):
    recipe = Recipe(data=Data(name=str(folder)))
    first = run_of(folder, "first", recipe)
    second = run_of(folder, "second", dataclasses.replace(recipe, run=Run(seed=1)), 110)
    other = run_of(folder, "other", dataclasses.replace(recipe, run=Run(seed=1, batch_size=7)))
    assert compare(first, second).seeds_apart and compare(first, second, str(folder)).seeds_apart
    assert not compare(first, other).seeds_apart and not compare(first, first).seeds_apart
    assert compare(first, second).n == 8  # a fifth of 40 is cut off for test


@pytest.mark.parametrize(
    ("of_first", "of_second", "measured", "apart"),
    [
        ({"threads": 1}, {"threads": 2}, ["run.threads"], True),
        ({"threads": 0}, {"threads": 2}, [], True),  # a run of before
        ({"time": "1m", "steps": 10}, {"time": "1m", "steps": 12}, [], True),
        ({"time": "1m", "steps": 10}, {"time": "2m", "steps": 20}, ["run.steps"], False),
        ({"steps": 10}, {"steps": 12}, [], False),
        ({"batch_size": 64}, {"batch_size": 128}, ["run.batch_size", "run.threads"], True),
        ({"batch_size": 64}, {"batch_size": 128}, [], False),
        ({"device": "cpu"}, {"save_every_s": 1.0}, [], True),
        ({"precision": "float32"}, {}, [], False),
    ],
)
def test_what_is_measured_at_the_start_makes_no_other_recipe(folder, of_first, of_second, measured, apart):
    pair = [
        run_of(folder, name, Recipe(data=Data(name=spelling), run=Run(seed=seed, **run)))
        for seed, (name, spelling, run) in enumerate(
            [("first", str(folder), of_first), ("second", f"{folder}/../{folder.name}/", of_second)]
        )
    ]
    for model in pair:
        (model.path.parent / "env.json").write_text(json.dumps({"measured": measured} if measured else {}))
    assert compare(*pair).seeds_apart == apart


def test_images_that_either_was_trained_on_are_left_out(folder):
    first = run_of(folder, "first", Recipe(data=Data(name=str(folder))))
    second = run_of(folder, "second", Recipe(data=Data(name=str(folder), split_seed=5)))
    own = {seed: set(open_images(Data(name=str(folder), split_seed=seed), "test").names) for seed in (0, 5)}
    train = set(open_images(Data(name=str(folder), split_seed=5), "train").names)
    c = compare(first, second)
    assert c.n == len(own[0] - train) < 8 and c.trained_on_a == c.trained_on_b == 0
    assert c.scored.notes == (f"{8 - c.n} of 8 images are left out, as they were trained on",)
    everything = compare(first, second, str(folder) + "/", split="all")
    assert (everything.n, everything.trained_on_a, everything.trained_on_b) == (40, 28, 28)
