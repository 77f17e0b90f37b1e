import csv
import io
import json
import os
import subprocess
import sys
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlpmixer.data.images import ImageError
from mlpmixer.data.preprocess import Preprocess, create_preprocess
from mlpmixer.inference.classifier import Classifier, Exported, Failure, Prediction, load
from mlpmixer.inference.engines import Runtime
from mlpmixer.inference.exported import Export
from mlpmixer.inference.files import find_images, predict_files
from mlpmixer.inference.output import FeatureFile, csv_lines, json_lines, jsonl_lines

GREYS = ("dark", "middle", "bright")


def by_brightness(**kwargs):
    """Three classes by mean brightness; no torch."""

    def logits(x):  # (B,3,H,W) in -1..1
        mean = x.mean(axis=(1, 2, 3))
        return -8 * np.abs(mean[:, None] - np.array([-1, 0, 1], dtype=np.float32)[None])

    return Classifier(
        classes=GREYS,
        preprocess=Preprocess(image_size=(8, 8)),
        logits=logits,
        pre_logits=lambda x: x.mean(axis=(2, 3)),
        **kwargs,
    )


def grey(path, value, size=(20, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value,) * 3).save(path)
    return str(path)


def test_paths_pictures_and_arrays_get_the_same_answer(tmp_path):
    path = grey(tmp_path / "x.png", 255)
    model = by_brightness()
    picture = Image.open(path)
    array = np.asarray(picture)
    answers = model.predict([path, picture, array, array[:, :, 0]])
    assert [a.label for a in answers] == ["bright"] * 4
    assert len({a.top for a in answers}) == 1
    assert answers[0].name == path and answers[2].name == "image[2]"
    assert model.predict(array)[0].top == model.predict([array])[0].top == model.predict(np.stack([array]))[0].top


def test_probabilities_sum_to_one_and_do_not_depend_on_the_chunks():
    images = np.random.default_rng(0).integers(0, 256, (300, 8, 8, 3), dtype=np.uint8)
    model = by_brightness()
    p = model.probabilities(images)
    assert p.shape == (300, 3) and p.dtype == np.float32
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(p[130:140], model.probabilities(images[130:140]))
    assert model.features(images).shape == (300, 3)


def test_a_sigmoid_model_answers_each_class_on_its_own():
    p = by_brightness(multi_label=True).probabilities(np.zeros((1, 8, 8, 3), dtype=np.uint8))
    np.testing.assert_allclose(p[0], 1 / (1 + np.exp([0.0, 8.0, 16.0])), rtol=1e-5)


def test_top_k_is_sorted_and_never_longer_than_the_classes():
    top = by_brightness().predict(np.zeros((8, 8), dtype=np.uint8), top_k=10)[0].top
    assert [label for label, _ in top] == ["dark", "middle", "bright"]
    with pytest.raises(ValueError, match="top_k"):
        by_brightness().predict(np.zeros((8, 8), dtype=np.uint8), top_k=0)


@pytest.mark.parametrize(
    "array", [np.zeros((8, 8), dtype=np.float32), np.zeros((8, 8, 7), dtype=np.uint8), np.zeros(3, dtype=np.uint8)]
)
def test_arrays_of_another_kind_are_refused(array):
    with pytest.raises(ValueError, match="expected"):
        by_brightness().predict(array)


def test_one_unreadable_image_raises_in_predict(tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"")
    with pytest.raises(ImageError):
        by_brightness().predict(str(tmp_path / "x.jpg"))


def test_weights_that_give_nan_are_an_error():
    def logits(x):
        return np.full((len(x), 3), np.nan, dtype=np.float32)

    nan = Classifier(classes=GREYS, preprocess=Preprocess(image_size=(8, 8)), logits=logits, pre_logits=logits)
    with pytest.raises(ValueError, match="not finite"):
        nan.probabilities(np.zeros((1, 8, 8, 3), dtype=np.uint8))


def test_images_are_found_in_order_each_once(tmp_path):
    for name in ("b/2.PNG", "b/1.jpg", "a.png", ".hidden/x.png", "b/.x.png", "photo[1].png"):
        grey(tmp_path / name, 0)
    (tmp_path / "notes.txt").write_text("x")
    at = str(tmp_path)
    everything = [f"{at}/a.png", f"{at}/photo[1].png", f"{at}/b/1.jpg", f"{at}/b/2.PNG"]
    assert list(find_images([at])) == everything
    assert list(find_images([at, f"{at}/b", f"{at}/b/../a.png"])) == everything
    assert list(find_images([f"{at}/b/*"])) == [f"{at}/b/1.jpg", f"{at}/b/2.PNG"]
    assert sorted(find_images([f"{at}/**/*"])) == sorted(everything)
    assert list(find_images([f"{at}/photo[1].png"])) == [f"{at}/photo[1].png"]  # a name before it is a pattern
    assert list(find_images([f"{at}/notes.txt"])) == [f"{at}/notes.txt"]  # a named file is taken at its word


def test_what_is_not_there_is_reported_in_its_place(tmp_path):
    path = grey(tmp_path / "a.png", 0)
    (tmp_path / "empty").mkdir()
    missing, pattern, empty, found = find_images([f"{tmp_path}/no.png", f"{tmp_path}/*.gif", f"{tmp_path}/empty", path])
    assert isinstance(missing, Failure) and "no such file" in missing.reason
    assert isinstance(pattern, Failure) and "matches" in pattern.reason
    assert isinstance(empty, Failure) and "no image files" in empty.reason
    assert found == path


def test_folders_linked_in_a_circle_are_walked_once(tmp_path):
    path = grey(tmp_path / "a" / "x.png", 0)
    (tmp_path / "a" / "again").symlink_to(tmp_path / "a", target_is_directory=True)
    assert list(find_images([str(tmp_path)])) == [path]


def test_bad_files_are_reported_and_the_rest_is_done(tmp_path):
    paths = [grey(tmp_path / f"{i}.png", 255 * (i % 2)) for i in range(7)]
    (tmp_path / "2.png").write_bytes(b"")
    (tmp_path / "5.png").write_bytes((tmp_path / "4.png").read_bytes()[:30])
    results = list(predict_files(by_brightness(), find_images([str(tmp_path), f"{tmp_path}/none.png"]), batch_size=3))
    assert [r.name for r in results] == [*paths, f"{tmp_path}/none.png"]  # input order
    assert [i for i, r in enumerate(results) if isinstance(r, Failure)] == [2, 5, 7]
    assert [r.label for r in results if isinstance(r, Prediction)] == ["dark", "bright", "bright", "dark", "dark"]


def test_a_batch_of_nothing_but_bad_files_is_no_error(tmp_path):
    (tmp_path / "x.png").write_bytes(b"")
    (result,) = predict_files(by_brightness(), [str(tmp_path / "x.png")])
    assert isinstance(result, Failure) and result.reason
    assert list(predict_files(by_brightness(), [])) == []


def test_results_come_while_paths_are_still_being_found(tmp_path):
    path = grey(tmp_path / "x.png", 0)
    asked = 0

    def endless():
        nonlocal asked
        while True:
            asked += 1
            yield path

    results = predict_files(by_brightness(), endless(), batch_size=4)
    assert next(results).label == "dark"
    assert asked <= 8  # two batches
    results.close()


RESULTS = [
    Prediction('a,"b"\n.png', "dark", 0.75, (("dark", 0.75), ("bright", 0.25))),
    Failure("bad\udcff.png", "empty file"),
]


def test_csv_has_a_header_and_quotes_what_needs_it():
    rows = list(csv.reader(io.StringIO("".join(csv_lines(RESULTS, top_k=3)))))
    assert rows[0] == ["image", "label", "probability", "label_2", "probability_2", "label_3", "probability_3", "error"]
    assert rows[1] == ['a,"b"\n.png', "dark", "0.750000", "bright", "0.250000", "", "", ""]
    assert rows[2][0].startswith("bad") and rows[2][-1] == "empty file"
    "".join(csv_lines(RESULTS)).encode("utf-8")  # a name that is no UTF-8 can be written


def test_json_and_jsonl_hold_the_same_records():
    lines = [json.loads(line) for line in jsonl_lines(RESULTS)]
    assert lines == json.loads("".join(json_lines(RESULTS)))
    assert lines[0]["top"][1] == {"label": "bright", "probability": 0.25}
    assert lines[1]["error"] == "empty file"
    assert json.loads("".join(json_lines([]))) == []


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


def test_a_run_is_loaded_from_its_folder_or_its_file_in_evaluation_mode(run):
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


def test_loading_a_model_reads_its_header_once(run, monkeypatch):
    opened = []

    def counting(file, *args, **kwargs):
        opened.append(os.path.basename(file))
        return open(file, *args, **kwargs)

    monkeypatch.setattr("mlpmixer.weights.model_file.open", counting, raising=False)
    load(run)
    assert opened == ["model.safetensors"]


def test_a_rule_that_never_rounds_reaches_the_network_as_floats(tmp_path):
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


def test_a_folder_that_is_no_run_says_what_was_expected(run, tmp_path):
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


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_a_damaged_weights_file_is_a_clear_error(run, keep):
    file = run / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        load(run)


def test_this_module_imports_no_torch():
    code = (
        "import sys, mlpmixer.inference.classifier, mlpmixer.evaluation.evaluate, mlpmixer.evaluation.report; "
        "print(*{'torch', 'sklearn', 'matplotlib'} & set(sys.modules))"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert (
        subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout.strip()
        == ""
    )


# --- features -----------------------------------------------------------------------------------------------------


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


def test_features_and_probabilities_come_from_one_pass(run, counted, tmp_path, capsys):
    from mlpmixer import cli

    paths = [grey(tmp_path / "pictures" / f"{i}.png", 40 * i, (9 + i, 12)) for i in range(5)]
    (tmp_path / "pictures" / "2.png").write_bytes(b"")
    options = ["--batch-size", "2", "--format", "jsonl"]
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


def test_an_export_gives_both_in_one_run(run):
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


def test_a_network_whose_head_is_not_known_is_asked_twice():
    model = by_brightness()
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    p, features = model.probabilities_and_features(images)
    np.testing.assert_array_equal(p, model.probabilities(images))
    np.testing.assert_array_equal(features, model.features(images))


@pytest.mark.parametrize("names", [["a", 'b,"c"\nd', "bad\udcff.png", "ü" * 300], []])
def test_a_feature_file_is_the_one_numpy_writes(names, tmp_path):
    rows = np.random.default_rng(0).standard_normal((len(names), 3)).astype(np.float32)
    with FeatureFile(tmp_path / "f.npz") as npz, FeatureFile(tmp_path / "f.csv") as table:
        for name, row in zip(names, rows, strict=True):
            npz.add(name, row)
            table.add(name, row)
        assert not (tmp_path / "f.npz").exists() and not (tmp_path / "f.csv").exists()
    np.savez(tmp_path / "wanted.npz", names=np.array(names, str), features=rows)
    with np.load(tmp_path / "f.npz") as found, np.load(tmp_path / "wanted.npz") as wanted:
        assert found.files == wanted.files
        assert found["names"].dtype == wanted["names"].dtype and found["names"].tolist() == names
        assert found["features"].dtype == np.float32
        np.testing.assert_array_equal(found["features"], rows if names else np.zeros((0, 0)))
    assert len(list(csv.reader(io.StringIO((tmp_path / "f.csv").read_text("utf-8"))))) == 1 + len(names)
    assert sorted(os.listdir(tmp_path)) == ["f.csv", "f.npz", "wanted.npz"]


@pytest.mark.parametrize("suffix", [".npz", ".csv"])
def test_an_interrupted_feature_file_leaves_the_one_before(suffix, tmp_path):
    file = tmp_path / f"f{suffix}"
    file.write_text("before")
    with pytest.raises(KeyboardInterrupt), FeatureFile(file) as rows:
        rows.add("a", np.zeros(3, np.float32))
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == [file.name] and file.read_text() == "before"
    with pytest.raises(OSError, match="nowhere"), FeatureFile(tmp_path / "nowhere" / file.name):
        pass


@pytest.mark.parametrize("suffix", [".npz", ".csv"])
def test_a_feature_file_takes_no_memory_for_its_rows(suffix, tmp_path):
    row = np.arange(500, dtype=np.float32)
    peaks = []
    for count in (100, 1_000):
        tracemalloc.start()
        with FeatureFile(tmp_path / f"f{suffix}") as rows:
            for i in range(count):
                rows.add(f"folder/{i}.png", row)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 100_000, peaks  # the rows alone are 2 MB
