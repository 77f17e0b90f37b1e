import csv
import dataclasses
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from helpers.greys import GREYS, by_brightness, grey
from helpers.models import GREY, classifier_of, pixels_for, random_mixer
from PIL import Image

from mlpmixer.data.images import ImageError
from mlpmixer.data.preprocess import Preprocess, create_preprocess
from mlpmixer.inference.classifier import Classifier
from mlpmixer.inference.engines import Runtime
from mlpmixer.inference.exported import Export
from mlpmixer.inference.exported_classifier import Exported
from mlpmixer.inference.files import predict_files
from mlpmixer.inference.load import load


def test_paths_images_and_arrays_agree(tmp_path):
    path = grey(tmp_path / "x.png", 255)
    model = by_brightness()
    picture = Image.open(path)
    array = np.asarray(picture)
    answers = model.predict([path, picture, array, array[:, :, 0]])
    assert [a.label for a in answers] == ["bright"] * 4
    assert len({a.top for a in answers}) == 1
    assert answers[0].name == path and answers[2].name == "image[2]"
    assert model.predict(array)[0].top == model.predict([array])[0].top == model.predict(np.stack([array]))[0].top


def test_probabilities_do_not_depend_on_the_chunk():
    images = np.random.default_rng(0).integers(0, 256, (300, 8, 8, 3), dtype=np.uint8)
    model = by_brightness()
    p = model.probabilities(images)
    assert p.shape == (300, 3) and p.dtype == np.float32
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(p[130:140], model.probabilities(images[130:140]))
    assert model.features(images).shape == (300, 3)


def test_sigmoid_probabilities():
    p = by_brightness(sigmoid=True).probabilities(np.zeros((1, 8, 8, 3), dtype=np.uint8))
    np.testing.assert_allclose(p[0], 1 / (1 + np.exp([0.0, 8.0, 16.0])), rtol=1e-5)


def test_top_k_is_sorted_and_at_most_all():
    top = by_brightness().predict(np.zeros((8, 8), dtype=np.uint8), top_k=10)[0].top
    assert [label for label, _ in top] == ["dark", "middle", "bright"]
    for wrong in (0, 2.5, "3", None):
        with pytest.raises(ValueError, match="top_k"):
            by_brightness().predict(np.zeros((8, 8), dtype=np.uint8), top_k=wrong)


def test_what_is_not_a_batch_of_arrays_is_refused():
    images = np.zeros((1, 8, 8, 3), np.uint8)
    for wrong, got in ((list(images), r"list \(1, 8, 8, 3\)"), (3, r"int \(\)"), (images / 255, "float64")):
        with pytest.raises(ValueError, match=rf"expected uint8 images of shape \(B, 8, 8, 3\), got {got}"):
            by_brightness().probabilities(wrong)


def test_every_output_has_a_name():
    model, image = by_brightness(), np.zeros((8, 8), np.uint8)
    model.classes = ["dark"]
    with pytest.raises(ValueError, match="gives 3 outputs for an image, and classes has 1 names"):
        model.predict(image)
    model.classes = np.array(["a", "b", "c"])
    assert model.classes == ("a", "b", "c") and type(model.predict(image)[0].label) is str
    for wrong in (range(3), {0: "a", 1: "b", 2: "c"}):
        with pytest.raises(ValueError, match=r"classes\[0\]=0: expected str, got int"):
            model.classes = wrong


def test_predict_raises_for_an_unreadable_image(tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"")
    with pytest.raises(ImageError, match=r"x\.jpg: empty file"):
        by_brightness().predict(str(tmp_path / "x.jpg"))


def test_nan_is_an_error():
    def logits(x):
        return np.full((len(x), 3), np.nan, dtype=np.float32)

    nan = Classifier(classes=GREYS, preprocess=Preprocess(image_size=(8, 8)), logits=logits, pre_logits=logits)
    with pytest.raises(ValueError, match="not finite"):
        nan.probabilities(np.zeros((1, 8, 8, 3), dtype=np.uint8))


@pytest.fixture
def run(tmp_path):
    import torch

    from mlpmixer.models.configs import MixerConfig
    from mlpmixer.models.mixer import Mixer
    from mlpmixer.weights.model_file import ModelMeta, save_model

    torch.manual_seed(0)
    size = {"num_blocks": 1, "hidden_dim": 8, "tokens_mlp_dim": 4, "channels_mlp_dim": 8}
    cfg = MixerConfig(image_size=8, patch_size=4, num_classes=3, dropout=0.5, **size)
    model = Mixer(cfg)
    torch.nn.init.normal_(model.head.weight)
    folder = tmp_path / "runs" / "greys"
    folder.mkdir(parents=True)
    save_model(
        folder / "model.safetensors",
        model,
        ModelMeta(config=cfg, classes=GREYS, preprocess=Preprocess(image_size=(8, 8))),
    )
    return folder


def test_load_by_folder_or_file(run):
    import torch

    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    model = load(run)
    p = model.probabilities(images)
    np.testing.assert_array_equal(p, load(str(run / "model.safetensors")).probabilities(images))
    np.testing.assert_array_equal(p, model.probabilities(images))  # dropout is off
    with torch.inference_mode():
        logits = model.network(torch.from_numpy(model.preprocess.normalise(images)))
    np.testing.assert_allclose(p, logits.softmax(1).numpy(), atol=1e-6)
    assert model.features(images).shape == (5, 8)
    assert model.classes == GREYS


def test_load_reads_the_header_once(run, monkeypatch):
    opened = []

    def counting(file, *args, **kwargs):
        opened.append(os.path.basename(file))
        return open(file, *args, **kwargs)

    monkeypatch.setattr("mlpmixer.weights.model_file.open", counting, raising=False)
    load(run)
    assert opened == ["model.safetensors"]


def test_float_pixels_reach_the_network(tmp_path):
    model = by_brightness()
    model.preprocess = create_preprocess("vit_jax_eval", image_size=8)
    paths = [grey(tmp_path / f"{v}.png", v, (5, 9)) for v in (0, 127, 255)]
    assert [p.label for p in predict_files(model, paths)] == list(GREYS)
    image = np.zeros((2, 2, 3), np.uint8)
    image[0, 0] = 255
    pixels = model.preprocess_image(image)
    assert pixels.dtype == np.float32 and model.features(pixels[None])[0] == pytest.approx(-0.5)
    with pytest.raises(ValueError, match="expected float32 images"):
        model.probabilities(np.zeros((1, 8, 8, 3), np.uint8))


def test_load_says_what_it_expected(run, tmp_path):
    with pytest.raises(ValueError, match=r"is not a run.*mlpmixer train.*runs in it: .*greys"):
        load(run.parent)
    with pytest.raises(ValueError, match=r"does not exist.*did you mean .*greys"):
        load(run.parent / "grays")
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(ValueError, match="is not a model"):
        load(tmp_path / "x.txt")
    (run / "model.safetensors").rename(run / "other")
    (run / "recipe.json").write_text("{}")
    with pytest.raises(ValueError, match="has saved no"):
        load(run)


@pytest.mark.parametrize("options", [{"resize": "blocks"}, {"magnified": True, "in_channels": 1}])
def test_ways_of_resizing_need_another_size(run, options):
    with pytest.raises(ValueError, match="give image_size or patch_size"):
        load(run, **options)


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_damaged_weights_are_an_error(run, keep):
    file = run / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        load(run)


def test_this_module_imports_no_torch():
    code = (
        "import sys, mlpmixer.inference.load, mlpmixer.evaluation.evaluate, mlpmixer.evaluation.report; "
        "print(*{'torch', 'sklearn', 'matplotlib'} & set(sys.modules))"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert (
        subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout.strip()
        == ""
    )


@pytest.fixture
def counted(monkeypatch):
    """Counts the images decoded and those that go through the blocks of a Mixer."""
    from mlpmixer.models.mixer import Mixer

    count, decode, features = Counter(), Preprocess.array, Mixer.tokens

    def counting_decode(self, source):
        count["decoded"] += 1
        return decode(self, source)

    def counting_features(self, images):
        count["computed"] += len(images)
        return features(self, images)

    monkeypatch.setattr(Preprocess, "array", counting_decode)
    monkeypatch.setattr(Mixer, "tokens", counting_features)
    return count


def test_features_and_probabilities_in_one_pass(run, counted, tmp_path, capsys):
    from mlpmixer import cli

    paths = [grey(tmp_path / "pictures" / f"{i}.png", 40 * i, (9 + i, 12)) for i in range(5)]
    (tmp_path / "pictures" / "2.png").write_bytes(b"")
    options = ["--batch-size", "2", "--format", "jsonl", "--engine", "torch"]
    assert cli.main(["predict", str(run), str(tmp_path / "pictures"), *options]) == 1
    alone = capsys.readouterr().out
    model, names = load(run), [p for p in paths if "2.png" not in p]
    batches = (names[:2], names[2:3], names[3:])
    features = np.concatenate(
        [model.features(np.stack([model.preprocess_image(p) for p in batch])) for batch in batches]
    )
    for file in (tmp_path / "f.npz", tmp_path / "f.csv"):
        counted.clear()
        assert cli.main(["predict", str(run), str(tmp_path / "pictures"), "--features", str(file), *options]) == 1
        assert counted == {"decoded": 5, "computed": 4}
        assert capsys.readouterr().out == alone
    with np.load(tmp_path / "f.npz") as stored:
        assert stored["names"].tolist() == names
        np.testing.assert_array_equal(stored["features"], features)
    header, *table = csv.reader((tmp_path / "f.csv").read_text().splitlines())
    assert header == ["image", *(f"f{i}" for i in range(8))] and [row[0] for row in table] == names
    np.testing.assert_allclose(np.array([row[1:] for row in table], np.float32), features, rtol=1e-7)


def test_an_export_gives_both_in_one_call(run):
    model, asked = load(run), []
    known = {"probabilities": model.probabilities, "features": model.features}

    def compute(images, outputs):
        asked.append(outputs)
        return [known[name](images) for name in outputs]

    runtime = Runtime(engine="numpy", version="2", precision="float32", threads=1)
    exported = Exported(Export(Path("x.onnx"), model.meta, {}, None, tuple(known), runtime, compute))
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    p, features = exported.probabilities_and_features(images)
    assert asked == [("probabilities", "features")]
    np.testing.assert_array_equal(p, model.probabilities(images))
    np.testing.assert_array_equal(features, model.features(images))


def test_an_unknown_network_runs_twice():
    model = by_brightness()
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    p, features = model.probabilities_and_features(images)
    np.testing.assert_array_equal(p, model.probabilities(images))
    np.testing.assert_array_equal(features, model.features(images))


def test_a_network_is_computed_as_it_is_now():
    """With another head, other parameters, and in training mode."""
    import copy

    import torch

    model, other = classifier_of(GREY, random_mixer(GREY)), random_mixer(GREY, seed=5)
    images = pixels_for(model, 3)

    def wanted(network):
        with torch.no_grad():
            return network(torch.from_numpy(model.preprocess.normalise(images))).softmax(1).numpy()

    model.network.load_state_dict(other.state_dict(), assign=True)
    np.testing.assert_allclose(model.probabilities(images), wanted(other), atol=1e-6)
    model.network.reset_classifier(3)
    torch.nn.init.normal_(model.network.head.weight)
    with pytest.raises(ValueError, match="gives 3 outputs for an image, and classes has 10 names"):
        copy.deepcopy(model).predict(images[0])
    model.classes = tuple("abc")
    np.testing.assert_allclose(model.probabilities(images), wanted(model.network), atol=1e-6)
    with pytest.raises(AttributeError):
        model.network = other


def test_a_network_in_training_mode_is_evaluated_and_left_in_it():
    model = classifier_of(dataclasses.replace(GREY, dropout=0.5))
    images = pixels_for(model, 3)
    before = model.features(images)
    model.network.train().blocks[0].eval()
    np.testing.assert_array_equal(model.features(images), before)
    assert [block.training for block in model.network.blocks] == [False, True]


@pytest.mark.parametrize("wrong", [0, 1, 2.0, float("nan"), "0.5", True])
def test_a_threshold_is_a_probability(wrong):
    model = by_brightness()
    with pytest.raises(ValueError, match="threshold"):
        model.threshold = wrong
    assert model.threshold is None
    model.threshold = np.float32(0.25)
    assert type(model.threshold) is float and model.multi_label


def test_a_device_of_torch_is_a_device(run):
    import torch

    assert load(run, device=torch.device("cpu")).network.head.weight.device.type == "cpu"
    with pytest.raises(ValueError, match="precision='float16' is not one of float32, bfloat16"):
        load(run, precision="float16")
