"""Files on disk: whole or refused, never executed."""

import dataclasses
import json
import os
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.models import DIGITS, random_images, random_mixer

from mlpmixer.data.preprocess import Preprocess
from mlpmixer.models.architecture import create_model
from mlpmixer.models.mixer import Mixer
from mlpmixer.weights import model_file
from mlpmixer.weights.convert import convert
from mlpmixer.weights.load import load_weights
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


def test_the_last_bits_do_not_depend_on_where_the_header_ends(tmp_path: Path) -> None:
    model = random_mixer(create_model("Pico/2").cfg)
    image, size = random_images(model.cfg, 1), (8, 8)
    for n in range(0, 64, 8):
        provenance = {"data": "x" * n}
        meta = ModelMeta(config=model.cfg, classes=DIGITS, preprocess=Preprocess(image_size=size, in_channels=1))
        model_file.save_model(tmp_path / "x.safetensors", model, dataclasses.replace(meta, provenance=provenance))
        assert torch.equal(model_file.load_model(tmp_path / "x.safetensors")[0](image), model(image))


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


def split(path: Path) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file, and its data."""
    content = path.read_bytes()
    end = 8 + struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8:end]), content[end:]


def write(path: Path, header: dict[str, Any] | bytes, data: bytes) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def rewritten(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """The same file with another description of the model, and no digest that would tell."""
    header, data = split(path)
    stored = json.loads(header["__metadata__"]["mlpmixer"])
    change(stored["model"])
    del stored[model_file.DIGEST]
    write(path, header | {"__metadata__": {"mlpmixer": json.dumps(stored)}}, data)


def deep(levels: int) -> dict[str, Any]:
    return {"a": deep(levels - 1)} if levels else {}


HOSTILE: list[tuple[str, dict[str, Any], str]] = [
    ("config", {"num_blocks": 10**9}, "num_blocks must be at most 10,000"),
    ("config", {"num_blocks": 10**4}, r"bytes, too few for the [\d,]+ weights of the mixer"),
    ("config", {"hidden_dim": 10**18}, "hidden_dim must be at most"),
    ("config", {"hidden_dim": 10**6}, "bytes, too few for the"),
    ("config", {"hidden_dim": -(10**4000)}, "hidden_dim must be at least 1"),
    ("config", {"image_size": 10**400}, "image_size must be at most"),
    ("config", {"patch_size": 10**400}, "patch_size must be at most"),
    ("preprocess", {"std": [1e-300] * 3}, "std must be in 1e-06..1e\\+06"),
    ("preprocess", {"mean": [1e300] * 3}, "mean must be in -1e\\+06..1e\\+06"),
    ("config", {"image_size": 10**9, "patch_size": 1}, "image_size must be at most"),
    ("config", {"image_size": 10**9, "patch_size": 10**9}, "image_size must be at most"),
    ("", {"config": {"architecture": "resnet", "depths": [1] * 10**5}}, "depths must be at most 16 stages"),
    ("config", {"architecture": "x" * 10**6}, "no architecture named"),
    ("config", {"x" * 10**6: 1}, "has no field"),
    ("preprocess", {"image_size": [10**9, 8]}, "image_size must be at most"),
    (
        "preprocess",
        {"image_size": [16, 16]},
        r"preprocess makes images of \(16, 16, 1\), the network takes \(8, 8, 1\)",
    ),
    ("", {"classes": ["a"]}, "classes has 1 names for the 2 outputs"),
    ("", {"classes": ["a", "a"]}, "classes has a name twice"),
    ("", {"classes": ["a", 1]}, r"classes\[1\]=1: expected str"),
    ("", {"classes": ["a", "\ud800"]}, "its header cannot be read: .* surrogates"),
    ("", {"provenance": deep(70)}, "its header cannot be read: JSON nested deeper"),
    ("", {"provenance": {"a": [0] * 10**6}}, "its header cannot be read: JSON of more than"),
]


@pytest.mark.parametrize(("place", "fields", "says"), HOSTILE, ids=[says for *_, says in HOSTILE])
def test_description_that_cannot_be_true_is_refused_before_anything_is_built(
    saved: tuple[Path, Mixer, ModelMeta], place: str, fields: dict[str, Any], says: str
) -> None:
    path = saved[0]
    rewritten(path, lambda model: (model[place] if place else model).update(fields))
    for read in (model_file.read_meta, model_file.load_model, load_weights):
        with pytest.raises(CheckpointError, match=says) as e:
            read(path)
        assert len(str(e.value)) < 600 and "\n" not in str(e.value)


def test_half_precision_is_half_the_file_and_the_same_rounded_weights(
    saved: tuple[Path, Mixer, ModelMeta], tmp_path: Path
) -> None:
    path, model, meta = saved
    small = tmp_path / "small.safetensors"
    assert convert(path, small, precision="float16") == []
    again, again_meta = model_file.load_model(small)
    assert again_meta.provenance == meta.provenance | {"stored_as": "float16"}
    for name, tensor in again.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, model.state_dict()[name].half().float()), name
    tensors = model_file.read_tensors(small)[0]
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert small.stat().st_size < 0.52 * path.stat().st_size + 4000
    model_file.rewrite_meta(small, lambda m: dataclasses.replace(m, classes=("a", "b")))
    assert model_file.read_tensors(small)[0]["head.weight"].dtype == torch.float16
    convert(small, tmp_path / "large.safetensors")
    large, large_meta = model_file.load_model(tmp_path / "large.safetensors")
    assert large_meta.provenance == meta.provenance and torch.equal(large.stem.weight, again.stem.weight)


def test_half_precision_refuses_what_it_cannot_hold(saved: tuple[Path, Mixer, ModelMeta], tmp_path: Path) -> None:
    path, model, meta = saved
    with torch.no_grad():
        model.head.weight[0, 0] = 1e5
    with pytest.raises(ValueError, match=r"head\.weight has weights up to 1e\+05, and float16 ends at 65,504"):
        model_file.save_model(tmp_path / "small.safetensors", model, meta, "float16")
    for out, options in (("w.npz", {}), ("w.safetensors", {"timm": True})):
        with pytest.raises(ValueError, match=r"float16 is for FILE\.safetensors of this package"):
            convert(path, tmp_path / out, precision="float16", **options)
    assert not {p.name for p in tmp_path.iterdir()} - {path.name}


def test_file_that_claims_half_precision_is_still_compared_with_its_size(saved: tuple[Path, Mixer, ModelMeta]) -> None:
    path = saved[0]
    claim = {"provenance": {"stored_as": "float16"}}
    rewritten(path, lambda model: (model.update(claim), model["config"].update(num_blocks=50))[0])
    with pytest.raises(CheckpointError, match="bytes, too few for the"):
        model_file.read_meta(path)


@pytest.mark.parametrize("text", ["[" + "[]," * 10**7 + "[]]", "[" * 10**5, '{"a":' * 900 + "1" + "}" * 900])
def test_header_that_would_fill_memory_or_stack_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text.encode())
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged: its header cannot be read: JSON"):
        model_file.read_header(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * len(text) + 10**6


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        (torch.full((2, 16), torch.nan), "is not finite"),
        (torch.zeros(2, 16, dtype=torch.float8_e5m2), "is of torch.float8_e5m2; expected torch.float32"),
        (
            torch.zeros(2, 16, dtype=torch.bfloat16),
            "'head.weight' is of torch.bfloat16; expected torch.float32 or torch",
        ),
        (torch.full((2, 16), torch.inf, dtype=torch.float16), "'head.weight' is not finite"),
        (torch.zeros(2, 16, dtype=torch.int64), "do not fit"),
        (torch.zeros(2, 16, dtype=torch.complex64), "is of torch.complex64"),
    ],
    ids=str,
)
def test_weights_that_are_not_finite_floats_are_refused(
    saved: tuple[Path, Mixer, ModelMeta], tensor: torch.Tensor, says: str
) -> None:
    path, model, meta = saved
    state = model.state_dict() | {"head.weight": tensor.repeat(1, model.cfg.hidden_dim // 16)}
    model_file.write_tensors(path, state, {"model": _json(meta)})
    with pytest.raises(CheckpointError, match=says):
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


@pytest.mark.parametrize("where", [0.01, 0.1, 0.5, 0.9, 1.0])  # in the description, and in the first to the last tensor
def test_flipped_bit_is_refused_by_name(saved: tuple[Path, Mixer, ModelMeta], where: float) -> None:
    path = saved[0]
    content = bytearray(path.read_bytes())
    content[int(where * (len(content) - 1))] ^= 2
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        model_file.load_model(path)


def test_file_without_digest_loads(saved: tuple[Path, Mixer, ModelMeta]) -> None:
    header, data = split(saved[0])
    meta = json.loads(header["__metadata__"]["mlpmixer"])
    assert len(meta.pop(model_file.DIGEST)) == 64
    write(saved[0], header | {"__metadata__": {"mlpmixer": json.dumps(meta)}}, data)
    assert model_file.load_model(saved[0])[1] == saved[2]


def header_says(tensor: str, **values: Any) -> Callable[[Path], None]:
    """Damage to what the header says of a tensor."""

    def damage(path: Path) -> None:
        header, data = split(path)
        header[tensor] |= values
        write(path, header, data)

    return damage


def overwritten(end: int, content: bytes) -> Callable[[Path], None]:
    """Damage to the last `end` bytes."""

    def damage(path: Path) -> None:
        old = path.read_bytes()
        path.write_bytes(old[:-end] + content + old[len(old) - end + len(content) :])

    return damage


def becomes_a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def becomes_a_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def is_another_file(path: Path) -> None:
    model_file.write_tensors(path, {"a": torch.ones(2)}, {"model": {}})


DAMAGE: dict[str, Callable[[Path], None]] = {
    "flipped bit": overwritten(100, b"\x01"),
    "zeroed page": overwritten(8192, bytes(4096)),
    "NaN": overwritten(4, struct.pack("<f", float("nan"))),
    "dtype": header_says("a", dtype="F99"),
    "other dtype": header_says("a", dtype="I32"),
    "other shape": header_says("a", shape=[2, 2048]),
    "overlap": header_says("a", data_offsets=[16384, 32768]),
    "negative": header_says("a", data_offsets=[-8, 16384]),
    "absurd": header_says("a", shape=[10**18, 10**18]),
    "no number": header_says("a", data_offsets=["0", None]),
    "deep": lambda path: write(path, b"[" * 100_000, b""),
    "list": lambda path: write(path, b"[1, 2]", b""),
    "no JSON": lambda path: write(path, b"\xff\xfe{}", b""),
    "empty": lambda path: path.write_bytes(b""),
    "cut off": lambda path: os.truncate(path, 20_000),
    "directory": becomes_a_directory,
    "loop": becomes_a_loop,
    "other file": is_another_file,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_state_is_passed_over_with_a_word(damage: Callable[[Path], None], tmp_path: Path) -> None:
    for step in (1, 2, 3):
        tensors = {name: torch.full((4096,), float(step)) for name in "ab"}
        model_file.save_state(tmp_path, step, tensors, {"state": {"step": step}})
    newest, older = model_file.states(tmp_path)
    damage(newest)
    notes: list[str] = []
    assert model_file.last_state(tmp_path, notes.append) == older
    assert len(notes) == 1 and str(newest) in notes[0]
    model_file.set_aside(tmp_path, older)
    assert model_file.states(tmp_path) == [older]


def test_state_that_is_no_number_is_not_used(tmp_path: Path) -> None:
    for step, value in ((1, 0.0), (2, float("nan"))):
        model_file.save_state(tmp_path, step, {"a": torch.tensor([1.0, value])}, {"state": {}})
    saved = model_file.last_state(tmp_path)
    assert saved is not None and saved.name == "step-000000001.safetensors"
