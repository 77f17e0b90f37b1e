"""Files on disk: whole or refused, never executed."""

import dataclasses
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mlpmixer.data.preprocess import Preprocess
from mlpmixer.models.architecture import create_model
from mlpmixer.models.mixer import Mixer
from mlpmixer.weights import model_file
from mlpmixer.weights.model_file import CheckpointError, ModelMeta


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Mixer, ModelMeta]:
    model = create_model("Pico/2", num_blocks=1, num_classes=2)
    meta = ModelMeta(
        config=model.cfg,
        classes=("naïve", "<b>"),
        preprocess=Preprocess(image_size=(8, 8), in_channels=1, mean=(0.3,), std=(0.4,)),
        provenance={"data": "test", "metrics": {"top1": 0.5}},
    )
    model_file.save_model(tmp_path / "model.safetensors", model, meta)
    return tmp_path / "model.safetensors", model, meta


def test_a_model_comes_back_as_it_was(saved: tuple[Path, Mixer, ModelMeta]) -> None:
    path, model, meta = saved
    again, again_meta = model_file.load_model(path)
    assert again_meta == meta and not again.training
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(again(images), model.eval()(images))


def test_the_header_is_read_without_torch(saved: tuple[Path, Mixer, ModelMeta]) -> None:
    code = f"from mlpmixer.weights.model_file import read_meta; print(read_meta({str(saved[0])!r}).classes)"
    code += "; import sys; assert 'torch' not in sys.modules"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "naïve" in out.stdout


def test_what_travels_with_the_weights_can_be_changed_alone(saved: tuple[Path, Mixer, ModelMeta]) -> None:
    path, model, meta = saved
    model_file.rewrite_meta(path, lambda m: dataclasses.replace(m, provenance={"data": "other"}))
    again, changed = model_file.load_model(path)
    assert changed.provenance == {"data": "other"} and changed.classes == meta.classes
    assert torch.equal(again.stem.weight, model.stem.weight)


@pytest.mark.parametrize("keep", [0, 4, 100, 3000, -1])
def test_a_file_that_is_cut_off_is_refused(saved: tuple[Path, Mixer, ModelMeta], keep: int) -> None:
    path = saved[0]
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=str(path.name)):
        model_file.load_model(path)


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04\x95cposix\nsystem\n",  # a pickle
        struct.pack("<Q", 10**10) + b"{}",  # a header of 10 GB
        struct.pack("<Q", 2) + b"{}",  # no metadata
        struct.pack("<Q", 8) + b"not json",
        b"PK\x03\x04" + bytes(100),
    ],
)
def test_hostile_files_are_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        model_file.load_model(path)


def test_weights_that_do_not_fit_the_stored_architecture_are_refused(saved: tuple[Path, Mixer, ModelMeta]) -> None:
    path, model, meta = saved
    state = model.state_dict()
    state["head.weight"] = torch.zeros(3, 64)
    model_file.write_tensors(path, state, {"model": json.loads(json.dumps(_json(meta)))})
    with pytest.raises(CheckpointError, match=r"head\.weight"):
        model_file.load_model(path)


def _json(meta: ModelMeta) -> dict[str, object]:
    from mlpmixer.config import to_json

    return to_json(meta)


def test_a_failed_write_leaves_the_old_file_and_no_rest(
    saved: tuple[Path, Mixer, ModelMeta], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, model, meta = saved
    before = path.read_bytes()

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        model_file.save_model(path, model, meta)
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == [path.name]


def test_odd_tensors_survive(tmp_path: Path) -> None:
    tensors = {"scalar": torch.tensor(3.0), "view": torch.arange(6.0).view(2, 3).t(), "empty": torch.zeros(0, 2)}
    model_file.write_tensors(tmp_path / "t.safetensors", tensors, {"note": 1})
    again, meta = model_file.read_tensors(tmp_path / "t.safetensors")
    assert meta["note"] == 1
    for name, value in tensors.items():
        np.testing.assert_array_equal(again[name].numpy(), value.numpy())
