"""An export in int8 computes its products in whole numbers, keeps its accuracy or layers in float32, and says what it
is worth."""

import dataclasses
import io
import json
import logging
import re
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.models import DIGITS, save_run
from PIL import Image
from torch import nn

from mlpmixer import cli
from mlpmixer.cli.export import print_int8
from mlpmixer.data.config import Data
from mlpmixer.data.datasets import open_data, open_images
from mlpmixer.data.preprocess import Preprocess
from mlpmixer.evaluation.data import open_for
from mlpmixer.evaluation.evaluate import evaluate
from mlpmixer.exporters import int8
from mlpmixer.exporters.export import ExportMismatch, Written, export
from mlpmixer.inference.classifier import Classifier
from mlpmixer.inference.exported import open_export
from mlpmixer.inference.exported_classifier import Exported
from mlpmixer.inference.load import load
from mlpmixer.inference.torch_classifier import from_network
from mlpmixer.models.configs import MixerConfig
from mlpmixer.models.mixer import Mixer
from mlpmixer.weights.model_file import ModelMeta

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")

CFG = MixerConfig(
    image_size=8,
    patch_size=2,
    in_channels=1,
    num_blocks=2,
    hidden_dim=32,
    tokens_mlp_dim=16,
    channels_mlp_dim=64,
    num_classes=10,
)
LAYERS = [
    "stem",
    *(
        f"blocks.{i}.{mixing}.{fc}"
        for i in (0, 1)
        for mixing in ("token_mixing", "channel_mixing")
        for fc in ("fc1", "fc2")
    ),
]
LAYERS.append("head")
WORST = "blocks.1.channel_mixing.fc2"
MANY = Data(name="digits", val_fraction=0.5)  # so many validation images that half a point is more than one


def learned(cfg: MixerConfig = CFG, *, outlier: bool = False, loss: str = "softmax") -> Classifier:
    """A random Mixer whose head has been fitted to the digits. outlier: one hidden unit is huge and adds nothing, so
    that the range of what a single layer, WORST, receives leaves no steps for all others."""
    torch.manual_seed(0)
    model = Mixer(cfg)
    if outlier:
        mlp = model.blocks[1].channel_mixing
        nn.init.constant_(mlp.fc1.bias[:1], 3000.0)
        nn.init.zeros_(mlp.fc2.weight[:, :1])
    meta = ModelMeta(
        config=cfg,
        classes=DIGITS,
        preprocess=Preprocess(
            image_size=(8, 8), in_channels=cfg.in_channels, mean=(0.3,) * cfg.in_channels, std=(0.3,) * cfg.in_channels
        ),
        network="",
        provenance={"loss": loss, "data": "digits"},
    )
    classifier = from_network(model, meta)
    train = open_data(Data(name="digits")).train
    images = np.stack([classifier.preprocess_image(train.source(i)) for i in range(len(train))])
    features = np.concatenate([classifier.features(images), np.ones((len(images), 1), np.float32)], axis=1)
    fitted = 20 * np.linalg.lstsq(features, np.eye(10)[train.labels] - 0.1, rcond=1e-5)[0].astype(np.float32)
    with torch.no_grad():
        model.head.weight.copy_(torch.from_numpy(fitted[:-1].T))  # type: ignore[union-attr]
        model.head.bias.copy_(torch.from_numpy(fitted[-1]))  # type: ignore[union-attr]
    return classifier


def to_int8(model: Classifier, path: Path, **options: Any) -> Written:
    return export(model, out=path, int8=True, **{"data": "digits", "images": 60, **options})


@pytest.fixture(scope="module", autouse=True)
def quick() -> Any:
    """What depends on the machine is not judged here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(int8, "SPEED_TURNS", 1)
        yield


@pytest.fixture(scope="module")
def model() -> Classifier:
    return learned()


@pytest.fixture(scope="module")
def written(model: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Written:
    return to_int8(model, tmp_path_factory.mktemp("int8") / "model.onnx")


def graph_of(path: Path) -> Any:
    return onnx.load(str(path)).graph


def pixels(n: int, *, seed: int = 0) -> np.ndarray:
    test = open_data(Data(name="digits")).test
    assert test
    return np.stack([Preprocess(image_size=(8, 8), in_channels=1).array(test.source(i)) for i in range(seed, seed + n)])


# --- what is written ----------------------------------------------------------------------------------------------


def test_answers_are_close_to_the_models(model: Classifier, written: Written) -> None:
    q = written.int8
    assert q and (q.layers, q.float_layers, q.calibrated_on, q.n) == (10, [], 256, 144)
    assert q.right_float > 0.8 * q.n and q.right >= q.right_float - 0.005 * q.n
    assert q.num_bytes < q.num_bytes_float and min(q.images_per_s, q.images_per_s_float) > 0 and q.batch == 4
    found = load(written.path)
    assert isinstance(found, Exported) and found.meta == model.meta
    assert found.export.made == written.made and written.made["int8"] == dataclasses.asdict(q)
    off = np.abs(found.probabilities(pixels(100)) - model.probabilities(pixels(100)))
    assert 1e-4 < off.max() < 0.3 and off.mean() < 0.01
    assert written.checked.probability_max_diff > 1e-4 and written.checked.agreement > 0.9
    val = open_data(Data(name="digits")).val
    assert (
        round(evaluate(found, val).top1 * len(val)) == q.right
        and round(evaluate(model, val).top1 * len(val)) == q.right_float
    )


def test_only_inputs_of_products_are_rounded(written: Written) -> None:
    graph = graph_of(written.path)
    made_by = {name: node for node in graph.node for name in node.output}
    weights = {value.name: onnx.numpy_helper.to_array(value) for value in graph.initializer}
    rounded = [node for node in graph.node if node.op_type == "DequantizeLinear"]
    assert len(rounded) == 2 * len(LAYERS) + 1  # the bias of a Gemm, too, in 32 bits
    users = [node for node in graph.node if {name for r in rounded for name in r.output} & set(node.input)]
    assert Counter(node.op_type for node in users) == {"MatMul": 9, "Gemm": 1}
    for node in users:
        taken, weight = made_by[node.input[0]], made_by[node.input[1]]
        assert weights[taken.input[2]].dtype == np.uint8 and weights[taken.input[1]].shape == ()
        stored, scale = weights[weight.input[0]], weights[weight.input[1]]
        outputs = stored.shape[0 if node.op_type == "Gemm" else 1]
        assert 2 * 255 * int(np.abs(stored).max()) < 2**15  # room for two products in 16 bits
        assert stored.dtype == np.int8 and scale.shape == (outputs,) and np.abs(stored).max() == 64
    given = {value.name for value in graph.output}
    assert not any(made_by[name].op_type == "DequantizeLinear" for name in given)
    assert {"features", "probabilities", "top_probabilities", "top_classes"} == given
    assert str(Path(cli.__file__).parent).encode() not in written.path.read_bytes() and {
        node.domain for node in graph.node
    } == {""}


def test_onnxruntime_computes_integer_products(written: Written, tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 4  # it warns that such a file is for one machine
    onnxruntime.InferenceSession(str(written.path), options, providers=["CPUExecutionProvider"])
    kinds = Counter(node.op_type for node in graph_of(tmp_path / "optimised.onnx").node)
    assert kinds["MatMulIntegerToFloat"] == 9 and kinds["QGemm"] == 1
    assert kinds["QuantizeLinear"] == 10 and not kinds["DequantizeLinear"] and not kinds["MatMul"] and not kinds["Gemm"]


def test_answers_do_not_depend_on_the_batch(written: Written) -> None:
    found, images = load(written.path), pixels(8)
    together = found.probabilities(images)
    for i in range(8):
        np.testing.assert_allclose(found.probabilities(images[i : i + 1])[0], together[i], atol=1e-5)


@pytest.fixture(scope="module")
def whole(model: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same export in float32."""
    return export(model, out=tmp_path_factory.mktemp("float") / "model.onnx", data="digits", images=5).path


def test_the_same_run_gives_the_same_file(
    model: Classifier, whole: Path, written: Written, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = list(logging.root.handlers)
    int8.quantise(whole, tmp_path / "again.onnx", int8.images_for(model, open_for(model, Data(name="digits"))))
    again, first = graph_of(tmp_path / "again.onnx"), graph_of(written.path)
    assert list(again.node) == list(first.node) and list(again.initializer) == list(first.initializer)
    assert logging.root.handlers == before and capfd.readouterr() == ("", "")


@pytest.mark.exports
def test_with_a_fixed_batch_and_evidence(model: Classifier, tmp_path: Path) -> None:
    done = to_int8(model, tmp_path / "model.onnx", batch=5, top_k=3, evidence=True)
    q, found = done.int8, load(done.path)
    assert q and (q.layers, q.batch) == (10, 5) and isinstance(found, Exported) and found.export.batch == 5
    np.testing.assert_allclose(found.probabilities(pixels(7)), model.probabilities(pixels(7)), atol=0.3)
    top, tokens, features = found.export(pixels(7), "top_classes", "evidence", "features")
    assert top.shape == (7, 3) and model.network
    head = model.network.head.weight.detach().numpy()  # type: ignore[union-attr]
    np.testing.assert_allclose(tokens.sum(1), features @ head.T, atol=1e-4)  # what each patch adds is not rounded
    assert done.checked.evidence_max_diff and 1e-4 < done.checked.evidence_max_diff < 0.2


@pytest.mark.exports
def test_with_any_size_sigmoids_and_parts(tmp_path: Path) -> None:
    model = learned(dataclasses.replace(CFG, parts=(2, 1), activation="gelu_erf"), loss="sigmoid")
    done = to_int8(model, tmp_path / "model.onnx", any_size=True, data=MANY)
    assert done.int8 and (done.int8.layers, done.int8.float_layers) == (10, [])  # not the products that resize
    assert done.checked.fit and done.checked.fit.pixel_max_diff <= 1
    found = load(done.path)
    assert isinstance(found, Exported)
    np.testing.assert_allclose(found.probabilities(pixels(7)), model.probabilities(pixels(7)), atol=0.3)
    larger = pixels(3).repeat(3, axis=1).repeat(2, axis=2)
    np.testing.assert_array_equal(
        found.export(larger, "pixels")[0], np.stack([model.preprocess_image(image) for image in larger])
    )


@pytest.mark.exports
def test_openvino_judges_its_own_form(model: Classifier, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    done = to_int8(model, tmp_path / "model.xml", to="openvino")
    q, found = done.int8, load(done.path)
    assert re.fullmatch(r"openvino [\d.]+ in int8 and float32", done.checked.runtime)
    assert q and q.layers == 10 and done.path.with_suffix(".bin").is_file()
    assert b'element_type="i8"' in done.path.read_bytes() and done.num_bytes < 200_000
    val = open_data(Data(name="digits")).val
    assert isinstance(found, Exported) and round(evaluate(found, val).top1 * len(val)) == q.right


@pytest.mark.exports
def test_bundle_readme_reports_int8(model: Classifier, written: Written, tmp_path: Path) -> None:
    done = to_int8(model, tmp_path / "bundle", to="bundle")
    q = done.int8
    assert q and re.fullmatch(r"onnxruntime [\d.]+ in int8 and float32", done.checked.runtime)
    readme = (done.path / "README.md").read_text()
    assert (
        f"Int8: on 144 validation images top-1 is {100 * q.right / q.n:.2f} %, in float32 "
        f"{100 * q.right_float / q.n:.2f} %" in readme
    )
    assert "with all its cores, 10 layers in int8." in readme
    namespace: dict[str, Any] = {"__name__": "bundled", "__file__": str(done.path / "predict.py")}
    exec(compile((done.path / "predict.py").read_text(), "predict.py", "exec"), namespace)
    np.testing.assert_array_equal(
        namespace["Model"]().probabilities(pixels(9)), load(done.path).probabilities(pixels(9))
    )
    np.testing.assert_array_equal(load(done.path).probabilities(pixels(9)), load(written.path).probabilities(pixels(9)))


# --- which layers -------------------------------------------------------------------------------------------------


def test_layers_are_named_as_in_the_network(whole: Path) -> None:
    layers = int8.layers_of(graph_of(whole))
    assert list(layers) == LAYERS and all(len(nodes) == 1 for nodes in layers.values())


@pytest.mark.exports
def test_the_worst_layer_returns_to_float(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = save_run(learned(outlier=True), tmp_path / "run", MANY)
    assert cli.main(["export", str(run), "--int8", "--images", "9", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["int8"]
    assert (
        told["float_layers"] == [WORST]
        and told["layers"] == 9
        and told["right"] >= told["right_float"] - 0.005 * told["n"]
    )
    assert open_export(run / "model.onnx").made["int8"] == told
    graph = graph_of(run / "model.onnx")
    assert sum(node.op_type == "QuantizeLinear" for node in graph.node) == 9
    sizes = [
        onnx.numpy_helper.to_array(value).shape
        for value in graph.initializer
        if value.data_type == onnx.TensorProto.FLOAT
    ]
    assert sizes.count((64, 32)) == 1  # its weights stay as they were


def test_layers_are_ranked_once_if_needed() -> None:
    asked: list[list[str]] = []

    def good_at(n: int) -> Any:
        return lambda left: asked.append(list(left)) or len(left) >= n

    def never() -> list[str]:
        raise AssertionError("all layers were good enough")

    assert int8.choose("abc", good_at(0), never) == [] and asked == [[]]
    asked.clear()
    assert int8.choose("abc", good_at(2), lambda: ["c", "a", "b"]) == ["c", "a"] and asked == [[], ["c"], ["c", "a"]]
    with pytest.raises(ExportMismatch, match="no layer of this model can be int8: even with only one of the 3"):
        int8.choose("abc", good_at(3), lambda: ["c", "a", "b"])


def test_a_model_that_loses_too_much_is_refused(
    model: Classifier, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8, "MAX_LOSS", -2.0)
    with pytest.raises(ExportMismatch, match="no layer of this model can be int8: even with only one of the 10"):
        int8.quantise(whole, tmp_path / "model.onnx", int8.images_for(model, open_for(model, Data(name="digits"))))


@pytest.mark.exports
def test_the_float_form_is_checked_first(model: Classifier, tmp_path: Path, monkeypatch: Any) -> None:
    from mlpmixer.exporters import graph

    class Brighter(graph.Graph):
        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            return super().forward((images // 2 * 2 + 1).to(images.dtype))

    monkeypatch.setattr(graph, "Graph", Brighter)
    with pytest.raises(ExportMismatch, match="the export disagrees with the model"):
        to_int8(model, tmp_path / "model.onnx")


# --- which images -------------------------------------------------------------------------------------------------


def test_test_images_are_not_used(model: Classifier) -> None:
    splits = open_data(Data(name="digits"))
    given = int8.images_for(model, open_for(model, Data(name="digits")))
    assert (
        given.train.shape == (256, 8, 8, 1)
        and given.train.dtype == np.uint8
        and list(given.val.names) == list(splits.val.names)
    )
    train = {model.preprocess_image(splits.train.source(i)).tobytes() for i in range(len(splits.train))}
    assert all(image.tobytes() in train for image in given.train)
    np.testing.assert_array_equal(given.train, int8.images_for(model, open_for(model, Data(name="digits"))).train)


def test_shards_and_unreadable_images(model: Classifier, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    for shard in range(4):
        with tarfile.open(folder / f"{shard:03}.tar", "w") as tar:
            for i in range(20):
                content = io.BytesIO()
                Image.new("L", (8, 8), 20 * shard + i).save(content, "png")
                for suffix, file in (("png", content.getvalue()), ("cls", str(i % 10).encode())):
                    member = tarfile.TarInfo(f"{shard}-{i}.{suffix}")
                    member.size = len(file)
                    tar.addfile(member, io.BytesIO(file))
    given = int8.images_for(model, open_for(model, Data(name=str(folder), classes="10")))
    assert len(given.train) == 40 and len(given.val) == 20
    for label in DIGITS:
        (tmp_path / "photos" / "train" / label).mkdir(parents=True)
        for i in range(3):
            (tmp_path / "photos" / "train" / label / f"{i}.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"none of the 10 images could be read \("):
        int8.images_for(
            model, open_for(model, Data(name=str(tmp_path / "photos"), val_fraction=0.34, test_fraction=0.34))
        )


def test_a_network_without_products_is_refused(tmp_path: Path) -> None:
    class Bare(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)[:, :10]

    meta = learned().meta
    assert meta
    bare = from_network(Bare(), dataclasses.replace(meta, network="Bare"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="int8 needs matrix products with weights, and this network has none"):
        to_int8(bare, tmp_path / "model.onnx")


# --- the command --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(model: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(model, tmp_path_factory.mktemp("runs") / "digits", Data(name="digits"))


@pytest.mark.exports
def test_the_command_prints_layers_and_accuracy(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "model.onnx")
    assert cli.main(["export", str(run), "--int8", "--out", out, "--images", "50"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("calibrating and measuring int8 on validation images: minutes for a large model\n")
    assert (
        "\nint8 in 10 of 10 layers, calibrated on 256 training images\n" in said
        and "\ncompared on 50 images of digits" in said
    )
    top1 = re.search(
        r"top-1 on 144 validation images: float32 [\d.]+ % \([\d.]+-[\d.]+\), int8 ([\d.]+) % \([\d.]+-[\d.]+\)\n", said
    )
    assert top1
    assert f"{100 * evaluate(out, open_images(Data(name='digits'), 'val')).top1:.2f}" == top1[1]


@pytest.mark.parametrize(
    ("images_per_s", "says"), [(250.0, None), (104.0, "hardly faster than"), (50.0, "slower than")]
)
def test_the_command_says_if_int8_is_not_faster(
    images_per_s: float, says: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    q = int8.Int8(
        layers=9,
        float_layers=["stem"],
        calibrated_on=256,
        n=1000,
        right=896,
        right_float=900,
        batch=4,
        images_per_s=images_per_s,
        images_per_s_float=100.0,
        num_bytes=1_500_000,
        num_bytes_float=4_000_000,
    )
    print_int8(q)
    said = capsys.readouterr().out
    assert "int8 in 9 of 10 layers, calibrated on 256 training images; left in float32, the worst first: stem\n" in said
    assert "top-1 on 1,000 validation images: float32 90.00 % (88.0-91.7), int8 89.60 % (87.6-91.3)\n" in said
    speed = (
        f"images/s on one thread, 4 at a time: float32 100.0, int8 {images_per_s:.1f}: {images_per_s / 100:.2f} times"
    )
    assert f"{speed}; model 4.0 MB in float32, 1.5 MB in int8\n" in said
    assert q.pays == (says is None) and said.endswith(
        "in int8\n" if q.pays else f"it is {says} float32. Only the file is smaller\n"
    )


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (
            "{run} --int8 --data {tmp}/tested",
            "validation images of the model's classes: tested has only test images, and none to train on",
        ),
        (
            "{run} --int8 --data {tmp}/others",
            "the classes of data and model differ: the model has 10 classes, the data 2",
        ),
        ("{run} --int8 --to pt2", "pt2 has no int8: export to one of onnx, openvino, bundle, web"),
        ("{run}/model.safetensors --int9", "int9"),
    ],
)
def test_unsuitable_data_is_refused_first(
    line: str, says: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i, part in enumerate(("tested/test/0", "tested/test/1", "others/a", "others/b")):
        (tmp_path / part).mkdir(parents=True)
        for j in range(6):
            Image.new("L", (8, 8), 40 * i + j).save(tmp_path / part / f"{j}.png")
    out = tmp_path / ("x.pt2" if "pt2" in line else "x.onnx")
    assert cli.main(["export", *line.format(run=run, tmp=tmp_path).split(), "--out", str(out)]) == 2
    err = re.sub(r"[\s│]+", " ", capsys.readouterr().err)
    assert says in err and "Traceback" not in err and not out.exists()
