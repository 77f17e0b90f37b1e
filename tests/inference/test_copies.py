"""A classifier is copied and pickled, whatever computes it, and `transform` is what it does to an image."""

import copy
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.greys import by_brightness, grey
from helpers.models import GREY, Flat, classifier_of, digits_classifier, pixels_for
from helpers.processes import python
from PIL import Image

from mlpmixer.inference.classifier import Classifier
from mlpmixer.inference.load import load
from mlpmixer.inference.prediction import Failure, Prediction
from mlpmixer.inference.transform import Transform

COPIES: dict[str, Callable[[Classifier], Classifier]] = {
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
}


def assert_equal(ours: Classifier, theirs: Classifier) -> None:
    images = pixels_for(ours, 5)
    np.testing.assert_array_equal(theirs.probabilities(images), ours.probabilities(images))
    np.testing.assert_array_equal(theirs.features(images), ours.features(images))
    assert type(theirs) is type(ours) and repr(theirs) == repr(ours)
    assert (theirs.classes, theirs.threshold, theirs.path) == (ours.classes, ours.threshold, ours.path)
    assert theirs.meta == ours.meta


@pytest.mark.parametrize("way", COPIES)
def test_a_torch_network_is_copied_with_its_weights(way: str) -> None:
    model = digits_classifier()
    model.classes, model.threshold = tuple("abcdefghij"), 0.25
    other = COPIES[way](model)
    assert_equal(model, other)
    before = model.probabilities(pixels_for(model, 2))
    with torch.no_grad():
        next(other.network.parameters()).zero_()
    np.testing.assert_array_equal(model.probabilities(pixels_for(model, 2)) == before, way != "copy")


def test_how_it_runs_is_copied(digits_run: Path) -> None:
    model = load(digits_run, precision="bfloat16", threads=1)
    assert_equal(model, copy.deepcopy(model))
    assert copy.deepcopy(model).runtime == model.runtime


def test_a_network_of_ones_own_is_copied() -> None:
    model = classifier_of(GREY, Flat())
    theirs = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(theirs.probabilities(pixels_for(model, 2)), model.probabilities(pixels_for(model, 2)))


def test_functions_of_ones_own_are_copied() -> None:
    model = by_brightness()
    image = np.zeros((8, 8), np.uint8)
    assert copy.deepcopy(model).predict(image) == model.predict(image)


@pytest.mark.parametrize("way", COPIES)
def test_an_export_is_opened_again(way: str, digits_bundle: Path) -> None:
    model = load(digits_bundle)
    model.classes = tuple("abcdefghij")
    assert_equal(model, COPIES[way](model))


@pytest.mark.exports
@pytest.mark.parametrize("target", ["openvino", "pt2"])
def test_other_exports_are_opened_again(target: str, digits_run: Path, tmp_path: Path) -> None:
    from mlpmixer.exporters.export import export

    path = export(digits_run, target, out=tmp_path / {"openvino": "m.xml", "pt2": "m.pt2"}[target]).path
    assert_equal(load(path), pickle.loads(pickle.dumps(load(path))))


def test_an_export_that_has_gone_or_changed_gets_a_sentence(
    digits_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "digits.onnx"
    shutil.copy(digits_bundle / "model.onnx", file)
    monkeypatch.chdir(tmp_path)
    model = load("digits.onnx")
    pickled = pickle.dumps(model)
    monkeypatch.chdir("/")
    images = pixels_for(model, 3)
    np.testing.assert_array_equal(pickle.loads(pickled).probabilities(images), model.probabilities(images))
    os.utime(file, (1, 1))
    with pytest.raises(ValueError, match=rf"{re.escape(str(file))} has changed: .* with mlpmixer\.load"):
        copy.deepcopy(model)
    file.unlink()
    with pytest.raises(ValueError, match=rf"{re.escape(str(file))} is not there: .* with mlpmixer\.load"):
        pickle.loads(pickled)


def test_joblib_keeps_it(tmp_path: Path) -> None:
    import joblib

    model = digits_classifier()
    joblib.dump(model, tmp_path / "model.joblib")
    assert_equal(model, joblib.load(tmp_path / "model.joblib"))
    found = joblib.Parallel(n_jobs=2, backend="threading")(
        joblib.delayed(model.predict)(pixels) for pixels in pixels_for(model, 4)
    )
    assert found == [model.predict(pixels) for pixels in pixels_for(model, 4)]


@pytest.mark.slow
def test_processes_of_joblib_and_of_a_data_loader_use_it(digits_bundle: Path, digits_run: Path, tmp_path: Path) -> None:
    """In a process of its own, which ends its workers."""
    for i in range(6):
        grey(tmp_path / f"{i}.png", 30 * i)
    (tmp_path / "dataset.py").write_text(
        "class Photos(list):\n    def __getitem__(self, i):\n        return self.transform(super().__getitem__(i))\n"
    )
    done = python(
        "import joblib, torch\n"
        "from dataset import Photos\n"
        "from mlpmixer import load\n"
        "paths = [f'{i}.png' for i in range(6)]\n"
        f"for model in (load('{digits_run}'), load('{digits_bundle}')):\n"
        "    wanted = [model.predict(path) for path in paths]\n"
        "    assert joblib.Parallel(n_jobs=2)(joblib.delayed(model.predict)(path) for path in paths) == wanted\n"
        "photos = Photos(paths)\n"
        "photos.transform = model.transform\n"
        "loader = torch.utils.data.DataLoader(photos, 3, num_workers=2, multiprocessing_context='spawn')\n"
        "assert torch.equal(torch.cat(list(loader)), torch.stack([*map(model.transform, paths)]))\n",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr


def test_transform_gives_the_network_what_predict_gives_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = digits_classifier(), []
    compute = model._logits
    monkeypatch.setattr(model, "_logits", lambda images: seen.append(images) or compute(images))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 13, 21, 3), np.uint8)
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)
    predicted = model.predict(paths, top_k=10)
    transform = pickle.loads(pickle.dumps(model.transform))
    assert transform == model.transform == Transform(model.preprocess)
    for forms in (paths, pixels, [Image.open(path) for path in paths], torch.from_numpy(pixels).permute(0, 3, 1, 2)):
        images = torch.stack([transform(image) for image in forms])
        assert images.dtype == torch.float32 and images.shape == (2, 1, 8, 8)
        assert torch.equal(images, torch.from_numpy(seen[0]))
    p = model.network(images).softmax(1)
    for row, prediction in zip(p, predicted, strict=True):
        np.testing.assert_allclose(
            [row[int(label)].item() for label, _ in prediction.top], [q for _, q in prediction.top], atol=1e-6
        )


def test_reprs_say_what_it_is(digits_run: Path, digits_bundle: Path) -> None:
    text = repr(load(digits_run))
    assert (
        text.startswith("<Classifier: mixer of ") and "10 classes ('0', '1', '2', ...), images of 8x8x1, torch" in text
    )
    assert text.endswith(f" in float32 on cpu, {digits_run}/model.safetensors>")
    text = repr(load(digits_bundle))
    assert text.startswith("<Exported: mixer of ") and ", onnxruntime " in text and text.endswith("/model.onnx>")
    assert repr(by_brightness()) == "<Classifier: 3 classes ('dark', 'middle', 'bright'), images of 8x8x3>"
    one = Prediction("a.png", "cat", 0.91237, (("cat", 0.91237), ("dog", 0.08763)))
    assert repr(one) == "Prediction(name='a.png', label='cat', probability=0.9124)"
    assert repr(Failure("a.png", "empty file")) == "Failure(name='a.png', reason='empty file')"
