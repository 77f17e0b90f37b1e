"""Weights by name, path and address, and what can be made of them."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import mlpmixer
from mlpmixer.data.preprocess import Preprocess
from mlpmixer.models.architecture import create_model as fresh
from mlpmixer.models.mixer import Mixer
from mlpmixer.models.names import MIXERS
from mlpmixer.weights import load, model_file
from mlpmixer.weights.convert import convert
from mlpmixer.weights.create import create_model
from mlpmixer.weights.formats import write_foreign
from mlpmixer.weights.load import load_weights
from mlpmixer.weights.published import WEIGHTS

TINY = Path(__file__).parents[1] / "fixtures" / "tiny_weights.npz"
SIZE = {"num_blocks": 2, "hidden_dim": 48, "tokens_mlp_dim": 24, "channels_mlp_dim": 96}
TINY_CONFIG = dataclasses.replace(MIXERS["Nano/4"], patch_size=8, activation="gelu_tanh", **SIZE)


def same_weights(a: Mixer, b: Mixer, but: str = "-") -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(
        torch.equal(first[k], second[k]) for k in first if not k.startswith(but)
    )


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    model = fresh("Nano/4", **SIZE)
    preprocess = Preprocess(image_size=(32, 32), mean=(0.4, 0.5, 0.6))
    meta = model_file.ModelMeta(config=model.cfg, classes=tuple("abcdefghij"), preprocess=preprocess)
    model_file.save_model(tmp_path / "ours.safetensors", model, meta)
    return tmp_path / "ours.safetensors"


def test_an_official_file_brings_activation_preprocessing_and_a_name_for_each_class() -> None:
    model, meta = load_weights(TINY)
    assert model.cfg.activation == "gelu_tanh" and not model.training
    assert meta.preprocess.fit == "bv_resmall_crop" and meta.preprocess.image_size == (32, 32)
    assert meta.classes == tuple(f"class {i}" for i in range(10))
    assert meta.provenance == {"weights": "tiny_weights.npz", "form": "official"}


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pth"])
def test_a_foreign_file_predicts_like_a_run(suffix: str, tmp_path: Path) -> None:
    model = fresh("Nano/4", num_classes=1000, **SIZE)
    torch.nn.init.normal_(model.head.weight)  # type: ignore[union-attr, arg-type]
    path = tmp_path / f"w{suffix}"
    if suffix == ".pth":
        from mlpmixer.weights.formats import to_foreign

        torch.save(to_foreign(model.cfg, model.state_dict(), "timm"), path)
    else:
        write_foreign(path, model.cfg, model.state_dict(), "official" if suffix == ".npz" else "timm")
    found = mlpmixer.load(path)
    assert found.network is not None and same_weights(found.network, model)
    assert found.network.cfg.activation == ("gelu_tanh" if suffix == ".npz" else "gelu_erf")
    picture = np.random.default_rng(0).integers(0, 255, (50, 40, 3), dtype=np.uint8)
    assert found.predict(picture)[0].label in found.classes
    assert found.classes[0] == "tench, Tinca tinca"


def test_a_model_is_created_with_weights_and_its_head_kept_reset_or_dropped() -> None:
    kept = create_model(TINY_CONFIG, weights=TINY)
    assert kept.training and kept.cfg == dataclasses.replace(TINY_CONFIG, num_classes=10)
    reset = create_model(TINY_CONFIG, weights=TINY, head="reset", num_classes=3)
    assert same_weights(reset, kept, but="head.") and reset.head.weight.shape == (3, 48)  # type: ignore[union-attr]
    assert not reset.head.weight.any()  # type: ignore[union-attr, operator]
    same_size = create_model(TINY_CONFIG, weights=TINY, head="reset")
    assert same_weights(same_size, kept, but="head.") and not same_size.head.weight.any()  # type: ignore[union-attr, operator]
    assert create_model(TINY_CONFIG, weights=TINY, head="drop").cfg.num_classes == 0


def test_another_size_is_reached_through_transfer() -> None:
    model = create_model(TINY_CONFIG, weights=TINY, image_size=(48, 64), in_channels=1, dropout=0.1)
    assert model.cfg.grid == (6, 8) and model.cfg.in_channels == 1 and model.cfg.dropout == 0.1
    assert model(torch.randn(2, 1, 48, 64)).isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 3}, "has a head of 10 classes, asked for 3: use head='reset'"),
        ({"head": "drop", "num_classes": 3}, "leave num_classes=3 out"),
        ({"head": "forget"}, "head='forget' is not one of keep, reset, drop; did you mean reset"),
        ({"hidden_dim": 64}, "hidden_dim 48 instead of 64"),
        ({"hiden_dim": 64}, "mixer has no field 'hiden_dim'; did you mean hidden_dim"),
    ],
)
def test_what_does_not_fit_is_said(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model(TINY_CONFIG, weights=TINY, **arguments)  # type: ignore[arg-type]


def test_another_patch_size_is_resampled_when_asked_for() -> None:
    other = dataclasses.replace(TINY_CONFIG, patch_size=4)
    with pytest.raises(ValueError, match=r"another mixer: patch_size 8 instead of 4; say patch_size=4 to have them"):
        create_model(other, weights=TINY)
    assert create_model(other, weights=TINY, patch_size=4).cfg.grid == (8, 8)
    assert create_model(dataclasses.replace(TINY_CONFIG, patch_size=(8, 8)), weights=TINY).cfg.grid == (4, 4)


def test_weights_of_another_architecture_are_refused() -> None:
    with pytest.raises(ValueError, match="num_blocks 2 instead of 8"):
        create_model("S/16", weights=TINY)
    with pytest.raises(ValueError, match="names weights already"):
        create_model("B/16:imagenet21k", weights=TINY)
    with pytest.raises(ValueError, match="about trained weights, and there are none"):
        create_model("S/16", head="reset")


def test_a_published_name_is_fetched_checked_and_told_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fresh("S/32", num_classes=1000)
    write_foreign(tmp_path / "Mixer-S_32.npz", model.cfg, model.state_dict(), "official")
    asked = []

    def fetch(url: str, **options: object) -> Path:
        asked.append((url, options["num_bytes"]))
        return tmp_path / "Mixer-S_32.npz"

    monkeypatch.setattr("mlpmixer.download.fetch", fetch)
    found = create_model("S/32:gsam")
    assert asked == [(WEIGHTS["S/32:gsam"].url, 76_449_368)]
    assert (
        tmp_path / "Mixer-S_32.npz"
    ).stat().st_size == 76_449_368  # what we write has the size of the published file
    assert same_weights(found, model) and found.cfg.activation == "gelu_tanh"
    _, meta = load_weights("S/32:gsam")
    assert meta.classes[0] == "tench, Tinca tinca" and meta.provenance["source"] == WEIGHTS["S/32:gsam"].source
    with pytest.raises(ValueError, match="are of another mixer: patch_size 32 instead of 16"):
        create_model("S/16:gsam")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("B/16:imagenet21", "did you mean B/16:imagenet21k"),
        ("nowhere.npz", "nowhere.npz does not exist: expected a run folder"),
        (__file__, "is not a model: expected a run folder"),
    ],
)
def test_a_wrong_name_gets_help(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_weights(name)


@pytest.mark.parametrize("out", ["w.npz", "w.safetensors", "timm.safetensors"])
def test_a_model_goes_to_another_form_and_comes_back(out: str, ours: Path, tmp_path: Path) -> None:
    notes = convert(ours, tmp_path / out, timm=out.startswith("timm"))
    before, meta = load_weights(ours)
    after, found = load_weights(tmp_path / out)
    assert same_weights(before, after)
    assert (found == meta) == (out == "w.safetensors")
    assert ("gelu_erf" in " ".join(notes)) == (
        out == "w.npz"
    )  # the small sizes are trained with gelu_erf, official readers take gelu_tanh


def test_a_form_that_is_not_known_is_refused(ours: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot write .*w\.pth: expected FILE\.npz"):
        convert(ours, tmp_path / "w.pth")
    assert not (tmp_path / "w.pth").exists()


def test_a_model_is_used_at_another_size_without_training(ours: Path) -> None:
    larger = mlpmixer.load(ours, image_size=48)
    assert larger.preprocess.image_size == (48, 48) and larger.preprocess.mean == (0.4, 0.5, 0.6)
    assert larger.classes == tuple("abcdefghij")
    assert larger.predict(np.zeros((60, 60, 3), np.uint8))[0].label in larger.classes
    assert load.architecture(str(ours)).image_size == 32


def test_a_model_is_used_with_larger_patches_and_on_grey_images(ours: Path) -> None:
    other = mlpmixer.load(ours, patch_size=6, in_channels=1, resize="nearest")
    assert other.network is not None and other.network.cfg.grid == (8, 8)
    assert other.preprocess.image_size == (48, 48) and other.preprocess.mean == pytest.approx((0.5,))
    picture = np.random.default_rng(0).integers(0, 255, (48, 48), dtype=np.uint8)
    grey, colour = other.predict(picture)[0], mlpmixer.load(ours, patch_size=6).predict(picture)[0]
    assert grey.label == colour.label and grey.probability == pytest.approx(colour.probability, abs=1e-5)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_named_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "w.pth")
    with pytest.raises(ValueError, match="not a regular file"):
        load_weights(tmp_path / "w.pth")
