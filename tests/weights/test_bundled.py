"""The model that comes with the package is found by its name wherever a model is named, and is what its card says."""

import json
import platform
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.lines import RunLine
from PIL import Image

import mlpmixer
from mlpmixer import cli
from mlpmixer.weights import own
from mlpmixer.weights.model_file import read_meta, read_tensors

DIGITS = own.PACKAGED / "digits.safetensors"
CARD = DIGITS.with_suffix(".md").read_text(encoding="utf-8")
PICTURE = str(Path(__file__).parents[2] / "examples" / "digit.png")
TAKEN = (
    "mlpmixer: note: digits is a model of mlpmixer's own, trained on 1,221 images of scikit-learn's digits "
    "(CC BY 4.0); a folder or file of that name would come first\n"
)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunLine:
    """A command in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def line(*words: str) -> tuple[int, str, str]:
        code = cli.main(list(words))
        out, err = capsys.readouterr()
        return code, out, err

    return line


def test_picture_of_the_readme_is_recognised(run: RunLine) -> None:
    code, out, err = run("predict", "digits", PICTURE)
    assert (code, err) == (0, TAKEN) and out.splitlines()[1].split()[-1] == "5"
    assert mlpmixer.load("digits").predict(PICTURE)[0].label == "5"


def test_accuracy_is_what_the_card_says_without_naming_the_data(run: RunLine) -> None:
    code, out, _ = run("evaluate", "digits")
    assert code == 0 and out.startswith(
        "scored 360 of 1,797 images of digits: test, as split when the model was trained"
    )
    (top1,) = re.findall(r"digits, test, 360 images \| ([\d.]+ %)", CARD)
    assert f"top-1 {top1}" in out
    assert run("evaluate", "digits", "digits")[1] == out


def test_negatives_and_margins_are_read_too() -> None:
    from mlpmixer.data.catalog import DATASETS

    images = DATASETS["digits"].load().sets["all"]  # type: ignore[misc]
    pixels = np.stack([np.asarray(images.source(i)) for i in range(300)])
    model = mlpmixer.load("digits")
    for picture in (255 - pixels, np.pad(pixels, ((0, 0), (2, 2), (2, 2))), 40 + pixels // 2):
        found = [p.label for p in model.predict(list(picture), top_k=1)]
        assert np.mean([int(label) == images.labels[i] for i, label in enumerate(found)]) > 0.93


def test_every_command_takes_the_name(run: RunLine, tmp_path: Path) -> None:
    Image.new("L", (8, 8), 200).save(tmp_path / "grey.png")
    for words in (
        "explain digits grey.png --out explained",
        "train digits --init digits --steps 1 --out tuned",
        "compare digits tuned",
        "convert digits digits.npz",
        "push digits pushed",
        "summary digits",
        "probe digits --shots 1 --knn 0",
    ):
        code, _, err = run(*words.split())
        assert code == 0, (words, err)
    assert json.loads((tmp_path / "tuned" / "recipe.json").read_text())["model"]["image_size"] == 16
    both = (mlpmixer.load(name).network.state_dict() for name in ("digits", tmp_path / "pushed"))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*(state.values() for state in both), strict=True))
    assert {p.name for p in DIGITS.parent.iterdir()} == {"digits.safetensors", "digits.md"}, "nothing is written there"


def test_network_can_be_made_by_the_name() -> None:
    whole = mlpmixer.create_model("digits")
    assert torch.equal(whole.head.weight, mlpmixer.load("digits").network.head.weight) and whole.training
    assert mlpmixer.create_model("digits", pretrained=True, num_classes=3).head.out_features == 3
    assert torch.equal(mlpmixer.create_model("digits", head="drop").stem.weight, whole.stem.weight)


@pytest.mark.exports
def test_export_lies_where_the_command_was_typed(run: RunLine, tmp_path: Path) -> None:
    assert run("export", "digits", "--to", "bundle")[0] == 0
    assert run("predict", "bundle", PICTURE)[1] == run("predict", "digits", PICTURE)[1]


def test_folder_of_that_name_comes_first(run: RunLine, digits_run: Path, tmp_path: Path) -> None:
    shutil.copytree(digits_run, tmp_path / "digits")
    code, _, err = run("predict", "digits", PICTURE)
    assert (
        code == 0
        and f"note: digits is what lies in {tmp_path / 'digits'}; mlpmixer's own model digits is {DIGITS}" in err
    )
    assert run("predict", str(DIGITS), PICTURE)[1].splitlines()[1].split()[-1] == "5"
    shutil.rmtree(tmp_path / "digits")
    (tmp_path / "digits").mkdir()
    code, _, err = run("predict", "digits", PICTURE)
    assert code == 2 and "digits is not a run" in err and err.endswith(f"own model digits is {DIGITS}\n")
    with pytest.raises(ValueError, match=r"mlpmixer's own model digits is .*digits\.safetensors$"):
        mlpmixer.load("digits")


def test_wrong_name_suggests_it(run: RunLine) -> None:
    code, _, err = run("predict", "digit", PICTURE)
    assert code == 2 and "digit does not exist; did you mean digits?" in err


def test_list_shows_it(run: RunLine) -> None:
    out = run("list", "weights")[1]
    assert re.search(rf"^digits +1,221 images .* CC BY 4.0 +98.89 %  360 test images .* {DIGITS}$", out, re.MULTILINE)
    assert out.index("digits") < out.index("B/16")


def test_file_is_small_and_says_nothing_of_where_it_was_made() -> None:
    meta, header = read_meta(DIGITS), DIGITS.read_bytes()[:50_000].decode("latin-1")
    assert DIGITS.stat().st_size < 310_000 and {t.dtype for t in read_tensors(DIGITS)[0].values()} == {torch.float16}
    assert meta.provenance["stored_as"] == "float16" and meta.data and meta.data.data_dir is None
    assert meta.splits and not meta.splits.all_names
    header = re.sub(r'\\"hashes\\": \\"[^"]*', "", header.partition("}}")[0])
    assert "/" not in header and platform.node() not in header
