"""ReaL labels: which file, which images, which classes."""

import json

import numpy as np
import pytest
from PIL import Image

from mlpmixer.data.image_set import ImageSet
from mlpmixer.data.preprocess import Preprocess
from mlpmixer.data.real_labels import read_real, real_labels
from mlpmixer.evaluation.evaluate import evaluate
from mlpmixer.evaluation.metrics import real_metrics
from mlpmixer.evaluation.significance import wilson
from mlpmixer.inference.classifier import Classifier
from mlpmixer.weights import published

IDS = published.wordnet_ids("imagenet1k")


@pytest.fixture
def file(tmp_path):
    """Images 1 to 5 have the labels [7], [1, 3], none, [999], [0]; all others none."""
    path = tmp_path / "real.json"
    path.write_text(json.dumps([[7], [1, 3], [], [999], [0]] + [[]] * 49_995))
    return path


def named(number):
    return f"val/n01440764/ILSVRC2012_val_{number:08d}.JPEG"


def test_labels_by_number_in_the_name(file):
    got = real_labels(
        file, [named(2), "ILSVRC2012_val_00000001.JPEG", "a/n1_ILSVRC2012_val_00000003_n1.png", named(50_000)]
    )
    assert got == [{1, 3}, {7}, set(), set()]
    assert len(read_real(file)) == 50_000


@pytest.mark.parametrize(
    "name",
    [
        "n01440764/photo.jpg",
        "val[3]",
        "ILSVRC2012_val_00050001.JPEG",
        "ILSVRC2012_val_00000000.JPEG",
        "ILSVRC2012_val_123",
    ],
)
def test_name_without_number_is_refused(file, name):
    with pytest.raises(ValueError, match=r"expected ILSVRC2012_val_00000001 to .* and 1 more of 3 images") as e:
        real_labels(file, [named(1), name, name])
    assert repr(name) in str(e.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[[1]]", "50,000 lists of class numbers 0..999, got 1"),
        ('{"a": 1}', "got a dict"),
        ("no json", "is not the ReaL labels"),
    ]
    + [
        (json.dumps([wrong] + [[]] * 49_999), "expected 50,000 lists")
        for wrong in (3, [1000], [-1], [True], ["7"], [1.0])
    ],
)
def test_any_other_file_is_refused(tmp_path, content, says):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError, match=says):
        read_real(tmp_path / "x.json")
    with pytest.raises(ValueError, match="no file"):
        read_real(tmp_path / "y.json")


def test_any_real_label_counts():
    got = real_metrics(np.array([7, 3, 5, 998]), [frozenset({7}), frozenset({1, 3}), frozenset(), frozenset({999})])
    assert (got.n, got.skipped, got.top1, got.top1_interval) == (3, 1, 2 / 3, wilson(2, 3))
    with pytest.raises(ValueError, match="none of the 2 images"):
        real_metrics(np.array([1, 2]), [frozenset(), frozenset()])


def always(answers, classes):
    """A model of ImageNet's classes that says answers[i] of an image whose pixels all are i."""

    def logits(x):
        number = np.round((x[:, 0, 0, 0] + 1) * 127.5).astype(int)
        return (10 * np.eye(len(classes))[[answers[i] for i in number]]).astype(np.float32)

    return Classifier(classes=classes, preprocess=Preprocess(image_size=(8, 8)), logits=logits, pre_logits=logits)


def imagenet(numbers, labels, classes):
    pictures = [Image.fromarray(np.full((8, 8, 3), i, np.uint8)) for i in range(len(numbers))]
    return ImageSet(classes, np.array(labels), [named(n) for n in numbers], pictures)


@pytest.mark.parametrize(
    "model_classes",
    [published.class_names("imagenet1k"), IDS, published.numbered(1000)],
    ids=["names", "ids", "numbers"],
)
def test_real_top1_beside_top1(file, model_classes):
    images = imagenet([1, 2, 3, 4, 5], [7, 1, 2, 4, 5], IDS)
    model = always([7, 3, 2, 999, 5], model_classes)
    plain, both = evaluate(model, images), evaluate(model, images, real=file)
    assert plain.top1 == both.top1 == 3 / 5 and plain.real is None
    assert (both.real.n, both.real.skipped, both.real.top1) == (
        4,
        1,
        3 / 4,
    )  # 7: right; 3 of {1, 3}: right; none; 999: right; 5, not 0: wrong
    assert both.to_json()["real"] == {"n": 4, "top1": 0.75, "top1_interval": list(wilson(3, 4)), "skipped": 1}


def test_order_of_folders_and_classes(file):
    turned = IDS[::-1]
    images = imagenet([1, 2], [999 - 7, 999 - 1], turned)
    assert evaluate(always([7, 3], published.class_names("imagenet1k")), images, real=file).real.top1 == 1
    assert evaluate(always([999 - 7, 999 - 3], turned), images, real=file).real.top1 == 1


def test_other_classes_are_refused_first(file):
    images = imagenet([1, 2], [0, 1], ("cat", "dog"))
    with pytest.raises(ValueError, match=r"ImageNet's 1000 classes; these images have 2 classes, such as 'cat', 'dog'"):
        evaluate(always([], ("cat", "dog")), images, real=file)
