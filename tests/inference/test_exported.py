"""What is not an export, or not a whole one, is not opened; what its files say is not trusted."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.exports import program, with_metadata
from helpers.models import DIGITS

from mlpmixer.inference.engines import open_session
from mlpmixer.inference.exported import metadata, open_export
from mlpmixer.inference.load import load
from mlpmixer.weights.model_file import ModelMeta

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")


@pytest.fixture(scope="module")
def bundle(digits_bundle: Path) -> Path:
    return digits_bundle


def test_a_swapped_model_is_refused(bundle: Path, tmp_path: Path) -> None:
    def damaged(name: str) -> Path:
        return shutil.copytree(bundle, tmp_path / name)

    swapped = damaged("swapped")
    model = onnx.load(str(swapped / "model.onnx"))
    model.doc_string = "another"
    onnx.save(model, str(swapped / "model.onnx"))
    for name in (swapped, swapped / "model.onnx"):
        with pytest.raises(ValueError, match="is not the file that the bundle was made with"):
            load(name)
    with pytest.raises(ValueError, match="is not the file that this bundle was made with"):
        program(swapped).Model()
    (damaged("gone") / "model.onnx").unlink()
    with pytest.raises(ValueError, match="the bundle is incomplete"):
        load(tmp_path / "gone")
    for i, text in enumerate(("", "[]", "{}", '{"format": 7, "files": {}}', '{"format": 1, "files": []}')):
        (damaged(str(i)) / "bundle.json").write_text(text)
        with pytest.raises(ValueError, match=r"bundle.json cannot be read"):
            load(tmp_path / str(i))


def test_foreign_metadata_is_refused(bundle: Path, tmp_path: Path) -> None:
    model, path = onnx.load(str(bundle / "model.onnx")), tmp_path / "model.onnx"
    meta, made = open_export(bundle / "model.onnx").meta, {"batch": None}
    good = json.loads(metadata(meta, made))
    larger = dataclasses.replace(
        meta,
        config=dataclasses.replace(meta.config, image_size=16),
        preprocess=dataclasses.replace(meta.preprocess, image_size=(16, 16)),
    )
    fewer = dataclasses.replace(meta, config=dataclasses.replace(meta.config, num_classes=3), classes=DIGITS[:3])
    cases = [
        (None, "not an export of this package: its metadata has no entry 'format'"),
        ("{", "its metadata cannot be read"),
        ("[]", "its metadata cannot be read"),
        (json.dumps(good | {"format": 2}), "this version reads format 1"),
        (json.dumps({k: v for k, v in good.items() if k != "export"}), "no entry 'export'"),
        (json.dumps(good | {"model": good["model"] | {"run": "rm"}}), "has no field 'run'"),
        (json.dumps(good | {"model": {}}), "its metadata cannot be read"),
        (json.dumps(good).replace("[8, 8]", "[1000000000, 8]"), "image_size must be at most"),
        (metadata(fewer, made), "names 3 classes"),
        (metadata(larger, made), r"says images \[16, 16, 1\]"),
    ]
    for text, says in cases:
        del model.metadata_props[:]
        if text is not None:
            onnx.helper.set_model_props(model, {"mlpmixer": text})
        onnx.save(model, str(path))
        with pytest.raises(ValueError, match=says):
            load(path)
    path.write_bytes((bundle / "model.onnx").read_bytes()[:1000])
    with pytest.raises(ValueError, match="onnxruntime cannot open"):
        load(path)


WRONG = (None, -1, 10**400, float("nan"), "../../etc/passwd", [[]], ["a", 5], [10**9, 10**9], {"a": 1})


FINE = (("mean", [10**9, 10**9]), ("std", [10**9, 10**9]))


DECIDES = (  # what the answers depend on; the rest of the metadata is told, not used
    ["format"],
    ["model"],
    ["export"],
    ["model", "classes"],
    ["model", "preprocess"],
    ["model", "provenance"],
    ["model", "config", "hidden_dim"],
    *(["model", "preprocess", field] for field in ("image_size", "in_channels", "fit", "mean", "std", "interpolation")),
)


def test_wrong_values_are_refused(bundle: Path, tmp_path: Path) -> None:
    model = onnx.load(str(bundle / "model.onnx"))
    found = open_export(bundle / "model.onnx")
    good = metadata(found.meta, {"batch": None})
    for place in DECIDES:
        for value in WRONG:
            if (isinstance(value, dict) and place[-1] in ("export", "provenance")) or (place[-1], value) in FINE:
                continue  # an object of anything, and numbers that may be
            stored = json.loads(good)
            inside = stored
            for key in place[:-1]:
                inside = inside[key]
            inside[place[-1]] = value
            with pytest.raises(ValueError, match=r"expected an \.onnx") as e:
                load(with_metadata(model, tmp_path / "model.onnx", json.dumps(stored)))
            assert len(str(e.value)) < 1000, place
    for text in ("[" * 100_000, good.replace("10", "9" * 5000), json.dumps("x" * 10**6)):
        with pytest.raises(ValueError, match=r"expected an \.onnx") as e:
            load(with_metadata(model, tmp_path / "model.onnx", text))
        assert len(str(e.value)) < 1000


def graph_with(path: Path, meta: ModelMeta, batch: Any, *outputs: Any) -> Path:
    """A graph without a network, which takes images of 8x8 px, with outputs (name, declared shape, value)."""
    from onnx import TensorProto, helper, numpy_helper

    values = {name: numpy_helper.from_array(np.asarray(value, np.float32)) for name, _, value in outputs}
    constants = [helper.make_node("Constant", [], [name], value=value) for name, value in values.items()]
    takes = [helper.make_tensor_value_info("images", TensorProto.UINT8, [batch, 8, 8, 1])]
    gives = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape, _ in outputs]
    model = helper.make_model(
        helper.make_graph(constants, "g", takes, gives), opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    return with_metadata(model, path, metadata(meta, {}))


def test_a_graph_must_fit_its_metadata(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meta, path, p = (
        open_export(bundle / "model.onnx").meta,
        tmp_path / "model.onnx",
        ("probabilities", ["b", 10], np.full((1, 10), 0.1)),
    )
    assert load(graph_with(path, meta, "b", p)).probabilities(np.zeros((1, 8, 8, 1), np.uint8)).shape == (1, 10)
    for outputs, says in (
        ([("probability", ["b", 10], np.ones((1, 10)))], "names 10 classes, its graph gives 'probability'"),
        ([p, ("features", ["b", 17], np.ones((1, 17)))], r"says features of shape \(16,\), its graph gives"),
        ([p, ("logits", ["b", 3], np.ones((1, 3)))], r"says logits of shape \(10,\)"),
        ([p, ("evidence", ["b", 9, 10], np.ones((1, 9, 10)))], r"says evidence of shape \(16, 10\)"),
    ):
        with pytest.raises(ValueError, match=says):
            load(graph_with(path, meta, "b", *outputs))
    with pytest.raises(ValueError, match=r"takes 1,000,000,000 images at a time, more than fit into 2 GiB"):
        load(graph_with(path, meta, 10**9, p))
    session, runtime = open_session(graph_with(path, meta, "b", p), None, "float32", 1, 1)
    lying = dataclasses.replace(session, compute=lambda images, outputs: [np.ones((1, 3), np.float32)])
    monkeypatch.setattr("mlpmixer.inference.exported.open_session", lambda *_: (lying, runtime))
    with pytest.raises(ValueError, match=r"answers 1 images with probabilities of shape \(1, 3\)"):
        load(path).probabilities(np.zeros((1, 8, 8, 1), np.uint8))


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_weights_outside_the_folder(engine: str, bundle: Path, tmp_path: Path) -> None:
    if engine == "openvino":
        pytest.importorskip("openvino", reason="the extra openvino is not installed")
    model = onnx.load(str(bundle / "model.onnx"))
    weights = max(model.graph.initializer, key=lambda t: len(t.raw_data))
    (tmp_path / "secret").write_bytes(weights.raw_data)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link").symlink_to(tmp_path / "secret")
    length = str(len(weights.raw_data))
    weights.ClearField("raw_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    for place in ("../secret", str(tmp_path / "secret"), "link", "/dev/zero", "missing"):
        del weights.external_data[:]
        for key, value in (("location", place), ("offset", "0"), ("length", length)):
            weights.external_data.add(key=key, value=value)
        (tmp_path / "folder" / "model.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(ValueError, match=f"{engine} cannot open .*model.onnx"):
            load(tmp_path / "folder" / "model.onnx", engine=engine)


def test_hostile_manifests(bundle: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(bundle, tmp_path / "bundle")
    other = json.dumps({"format": 1, "files": {"../model.onnx": "0" * 64, "/etc/passwd": "0" * 64}})
    for text in ("[" * 100_000, " " * 2**21, json.dumps({"format": 1, "files": {"model.onnx": {}}}), other):
        (moved / "bundle.json").write_text(text)
        with pytest.raises(
            ValueError, match=r"bundle.json cannot be read|is not the file that the bundle was made with"
        ) as e:
            load(moved)
        assert len(str(e.value)) < 1000
        with pytest.raises((ValueError, KeyError, RecursionError)):
            program(moved).Model()
