"""Commands that use a trained model: evaluate, compare, predict, probe."""

import dataclasses
import io
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.lines import RunLine
from helpers.models import DIGITS, GREY, mixer
from PIL import Image

from mlpmixer.data.preprocess import Preprocess
from mlpmixer.training.recipe import read_recipe
from mlpmixer.training.run import train
from mlpmixer.weights.model_file import ModelMeta, save_model


def standard_input(content: bytes) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BufferedReader(io.BytesIO(content)), encoding="utf-8")


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    """Two image files in a folder of their own."""
    (tmp_path / "pictures").mkdir()
    rng = np.random.default_rng(0)
    files = [str(tmp_path / "pictures" / f"{i}.png") for i in range(2)]
    for file in files:
        Image.fromarray(rng.integers(0, 255, (9, 9, 3), dtype=np.uint8)).save(file)
    return files


def test_evaluate_prints_numbers_or_json_and_writes_a_page(digits_run: Path, run: RunLine, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    code, out, _ = run("evaluate", str(digits_run), "digits", "--html", str(page))
    assert code == 0
    assert "top-1" in out and "f1" in out and "most confident mistakes" in out and page.exists()
    assert "augmentation" not in out
    code, out, _ = run("evaluate", str(digits_run), "--tta", "flip,shift")
    scored, first, second = out.splitlines()[:3]
    numbers = r"360 images  top-1 +[\d.]+ % \([\d.]+-[\d.]+\)  top-5 .* nll [\d.]+  ece [\d.]+  brier [\d.]+$"
    assert scored == "scored 360 of 1,797 images of digits: test, as split when the model was trained"
    assert code == 0 and re.match(numbers, first)
    assert second.startswith("with test-time augmentation (flip, shift: the mean of 10 views)  top-1 ")
    found = json.loads(run("evaluate", str(digits_run), "--json")[1])
    assert (found["n"], found["trained_on"], found["scored"]["of"], found["scored"]["split"]) == (360, 0, 1797, "test")


def test_export_is_evaluated_on_the_images_its_run_kept_for_it(
    digits_run: Path, digits_bundle: Path, run: RunLine, tmp_path: Path
) -> None:
    weights = shutil.copy(digits_run / "model.safetensors", tmp_path / "copy.safetensors")
    own = json.loads((digits_run / "summary.json").read_text())["top1"]
    for model in (str(digits_bundle), str(weights)):
        found = json.loads(run("evaluate", model, "digits", "--json")[1])
        assert (found["n"], found["top1"], found["trained_on"]) == (360, own, 0)
    code, out, _ = run("evaluate", str(weights), "--split", "all")
    assert code == 0 and "the model was trained on 1,293 of these 1,797 images: top-1 is" in out
    code, out, _ = run("compare", str(weights), str(digits_bundle), "digits", "--split", "train")
    assert code == 0 and "A was trained on 1,293 of these 1,293 images" in out


def test_evaluate_fits_a_temperature(digits_run: Path, run: RunLine) -> None:
    code, out, _ = run("evaluate", str(digits_run), "--temperature")
    fitted = r"divided by the temperature [\d.]+ \(fitted on \d+ validation images; the model is left as it is\)  nll"
    assert code == 0 and re.search(fitted, out)
    tempered = json.loads(run("evaluate", str(digits_run), "--temperature", "--json")[1])["tempered"]
    assert tempered["n"] > 0 and tempered["temperature"] > 0 and len(tempered["reliability"]) == 15


def test_compare_says_which_model_is_better_or_that_it_is_a_draw(
    digits_run: Path, run: RunLine, tmp_path: Path
) -> None:
    recipe, other = read_recipe(digits_run), tmp_path / "b"
    train(dataclasses.replace(recipe, run=dataclasses.replace(recipe.run, seed=1)), out=other)
    code, out, _ = run("compare", str(digits_run), str(other))
    assert code == 0
    assert f"A  {digits_run}" in out and re.search(r"(A|B) is better than (A|B) \(|a draw: ", out)
    assert "one recipe with two seeds" in out and "largest differences" in out
    numbers = json.loads(run("compare", str(digits_run), str(other), "digits", "--json")[1])
    assert numbers["n"] == 360 == sum(numbers[k] for k in ("both_right", "only_a", "only_b", "both_wrong"))
    assert numbers["verdict"] in out and (numbers["a"], numbers["b"]) == (str(digits_run), str(other))
    code, out, _ = run("compare", str(digits_run), str(digits_run))
    assert code == 0 and "a draw: both have the same" in out and "two seeds" not in out


def test_predict_writes_every_format(digits_run: Path, run: RunLine, pictures: list[str], tmp_path: Path) -> None:
    for form, count in (("table", 2), ("csv", 1 + 2), ("json", 2 + 2), ("jsonl", 2)):
        code, out, _ = run("predict", str(digits_run), str(tmp_path / "pictures"), "--format", form, "--top-k", "1")
        assert code == 0
        assert all(file in out for file in pictures)
        assert len(out.splitlines()) == (2 * count if form == "table" else count)
    file = tmp_path / "out.jsonl"
    assert run("predict", str(digits_run), *pictures, "--format", "jsonl", "--out", str(file))[1] == ""
    assert [json.loads(line)["image"] for line in file.read_text().splitlines()] == pictures


def test_predict_writes_the_format_of_the_suffix(
    digits_run: Path, run: RunLine, pictures: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="the extra hf is not installed")
    for suffix in ("csv", "json", "jsonl", "parquet", "JSON"):
        file = str(tmp_path / f"out.{suffix}")
        assert run("predict", str(digits_run), *pictures, "--top-k", "3", "--out", file) == (0, "", "")
    records = json.loads((tmp_path / "out.json").read_text())
    assert records == json.loads((tmp_path / "out.JSON").read_text())
    assert records == [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    table = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["image"] for row in table] == pictures and [row["label_3"] for row in table] == [
        record["top"][2]["label"] for record in records
    ]
    assert [row["probability"] for row in table] == pytest.approx([r["probability"] for r in records], abs=1e-6)
    assert json.loads(parquet.read_schema(tmp_path / "out.parquet").metadata[b"classes"]) == list("0123456789")
    assert (tmp_path / "out.csv").read_text().startswith("image,label,probability,label_2,")
    for options in (["--format", "parquet"], ["--format", "csv", "--out", str(tmp_path / "x.parquet")]):
        code, _, err = run("predict", str(digits_run), *pictures, *options)
        assert code == 2 and "Parquet is written to a file whose name ends in .parquet" in err
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    code, _, err = run("predict", "no-such-run", *pictures, "--out", str(tmp_path / "y.parquet"))
    assert code == 2 and 'Parquet files need pyarrow: pip install "mlpmixer[hf]"' in err


def test_no_more_classes_are_listed_than_there_are(digits_run: Path, run: RunLine, pictures: list[str]) -> None:
    line = ["predict", str(digits_run), pictures[0], "--top-k", "50"]
    assert len(run(*line)[1].splitlines()) == 1 + 10
    assert len(json.loads(run(*line, "--format", "json")[1])[0]["top"]) == 10
    header = run(*line, "--format", "csv")[1].splitlines()[0].split(",")
    assert "label_10" in header and "label_11" not in header


def test_predict_names_bad_files_and_does_the_rest(
    digits_run: Path, run: RunLine, pictures: list[str], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"not an image")
    code, out, err = run("predict", str(digits_run), str(bad), pictures[0])
    assert code == 1
    assert pictures[0] in out and str(bad) in err and "1 of the images could not be read" in err


def test_predict_reads_a_list_from_standard_input(
    digits_run: Path, run: RunLine, pictures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", standard_input("\n".join(pictures).encode() + b"\n"))
    code, out, _ = run("predict", str(digits_run), "-", "--format", "jsonl")
    assert code == 0
    assert [json.loads(line)["image"] for line in out.splitlines()] == pictures


def test_predict_writes_features(digits_run: Path, run: RunLine, pictures: list[str], tmp_path: Path) -> None:
    assert run("predict", str(digits_run), *pictures, "--features", str(tmp_path / "f.npz"))[0] == 0
    with np.load(tmp_path / "f.npz") as stored:
        features = stored["features"]
        assert features.shape == (2, GREY.hidden_dim) and len(stored["names"]) == 2
    assert run("predict", str(digits_run), *pictures, "--features", str(tmp_path / "f.csv"))[0] == 0
    table = (tmp_path / "f.csv").read_text().splitlines()
    np.testing.assert_allclose(np.array(table[1].split(",")[1:], float), features[0], rtol=1e-6)


def test_model_at_another_size(digits_run: Path, run: RunLine, pictures: list[str], tmp_path: Path) -> None:
    sizes = ["--patch-size", "4", "--in-channels", "3", "--resize", "bilinear"]
    code, out, err = run("evaluate", str(digits_run), "--json", *sizes)
    assert (code, err) == (0, "") and json.loads(out)["n"] == 360
    answers = []
    for options in ([], ["--image-size", "16"], sizes):
        code, out, err = run("predict", str(digits_run), pictures[0], "--format", "json", *options)
        assert (code, err) == (0, "")
        answers.append(json.loads(out)[0]["probability"])
    assert len(set(answers)) == 3
    cache = str(tmp_path / "kept")
    code, out, _ = run("probe", str(digits_run), "--shots", "1", "--cache", cache, "--json", *sizes)
    assert code == 0 and json.loads(out)["num_features"] == GREY.hidden_dim


@pytest.mark.parametrize("suffix", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"])
def test_image_on_standard_input_is_read_as_one(
    suffix: str, digits_run: Path, run: RunLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (257, 300, 3), np.uint8)).save(file, suffix)
    monkeypatch.setattr("sys.stdin", standard_input(file.getvalue()))
    code, out, err = run("predict", str(digits_run), "-", "--format", "jsonl")
    assert (code, err) == (0, "") and json.loads(out)["image"] == "-"


def test_nothing_on_standard_input_and_an_address_get_a_sentence(
    digits_run: Path, run: RunLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for empty in (None, standard_input(b"")):
        monkeypatch.setattr("sys.stdin", empty)
        code, _, err = run("predict", str(digits_run), "-")
        assert code == 2 and "nothing on standard input: - expects an image, or a list" in err
    code, _, err = run("predict", str(digits_run), "https://example.org/cat.jpg")
    assert code == 1 and "https://example.org/cat.jpg: an address, and images are read from files: download it" in err


def test_predict_fetches_addresses_that_it_may(
    digits_run: Path, run: RunLine, pictures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"https://example.org/cat.jpg": Path(pictures[0]).read_bytes()}
    monkeypatch.setattr("mlpmixer.download.read_image", asked.__getitem__)
    lines = [
        run("predict", str(digits_run), source, "--allow-urls", "--format", "jsonl")[1]
        for source in (*asked, pictures[0])
    ]
    assert lines[0].replace(next(iter(asked)), pictures[0]) == lines[1]


def test_convert_to_half_precision_says_what_it_changes(digits_run: Path, run: RunLine, tmp_path: Path) -> None:
    small = tmp_path / "small.safetensors"
    code, out, err = run("convert", str(digits_run), str(small), "--precision", "float16")
    assert code == 0 and out == f"{small}\n"
    assert re.search(
        r"note: float16: [\d.]+ MB; on 360 images that the model was not trained on, top-1 is [\d.]+ % in float32 and "
        r"[\d.]+ % in float16, and no probability differs by more than [\d.]+e-\d\d\n$",
        err,
    )
    assert run("push", str(small), str(tmp_path / "hub"))[0] == 0
    assert "float16" in (tmp_path / "hub" / "README.md").read_text(encoding="utf-8")
    code, _, err = run("convert", str(tmp_path / "hub"), str(small), "--precision", "float16", "--data", "mnist")
    assert code == 2 and "mnist" in err
    assert "for --precision float16" in run("convert", str(digits_run), str(small), "--data", "digits")[2]


def test_convert_without_the_data_says_that_nothing_was_measured(run: RunLine, tmp_path: Path) -> None:
    meta = ModelMeta(config=GREY, classes=DIGITS, preprocess=Preprocess(image_size=(8, 8), in_channels=1))
    save_model(tmp_path / "untold.safetensors", mixer(), meta)
    files = str(tmp_path / "untold.safetensors"), str(tmp_path / "small.safetensors")
    code, _, err = run("convert", *files, "--precision", "float16")
    assert code == 0 and "the difference to float32 was not measured: which images? This model file does not say" in err
    code, _, err = run("export", files[0])
    assert (
        code == 2
        and "name a data set or a folder, as DATA after the model or, with export and convert, as --data " in err
    )
