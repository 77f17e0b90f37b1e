"""Whatever engine computes an export, it answers as the model; and what is no export, no engine opens."""

import dataclasses
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import typing
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from fixtures.preprocessing import cases
from helpers.exports import CASES
from helpers.models import DIGITS, GREY, PARTS, classifier_of, mixer, pixels_for
from helpers.processes import OF_THE_COMMAND, alone
from PIL import Image

from mlpmixer import cli
from mlpmixer.cli.options import RuntimeOptions
from mlpmixer.data.config import Data
from mlpmixer.evaluation.features import extract_features
from mlpmixer.exporters.check import PIXEL_TOLERANCE
from mlpmixer.exporters.export import TARGETS, export
from mlpmixer.inference.engines import ENGINES
from mlpmixer.inference.engines.openvino import import_openvino
from mlpmixer.inference.engines.torch import computing
from mlpmixer.inference.exported import digest, metadata, open_export
from mlpmixer.inference.exported_classifier import Exported
from mlpmixer.inference.load import load
from mlpmixer.inference.torch_classifier import from_network
from mlpmixer.models.mixer import Mixer

pytest.importorskip("openvino", reason="the extra openvino is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")

OF = {"openvino": "openvino", "pt2": "torch"}  # which engine is there for what


@pytest.fixture(scope="module")
def run(digits_run: Path) -> Path:
    return digits_run


@pytest.fixture(scope="module")
def made(run: Path, digits_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the same model in three forms: model.onnx, model.xml and model.bin, model.pt2."""
    folder = tmp_path_factory.mktemp("made")
    shutil.copy(digits_bundle / "model.onnx", folder)
    for to in ("openvino", "pt2"):
        export(run, to, out=folder / TARGETS[to].name, images=40)
    return folder


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "copied")


def has_bfloat16() -> bool:
    return "BF16" in import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


# --- the same answers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "to"),
    [
        pytest.param(case, to, marks=[pytest.mark.exports] if to == "openvino" and "oblong" not in case else [])
        for case in CASES
        for to in OF
        if case != "digits"  # which `made` is
    ],
)
def test_each_form_gives_the_models_answers(case: str, to: str, tmp_path: Path) -> None:
    make, options = CASES[case]
    model = make()
    written = export(model, to, out=tmp_path / "new" / TARGETS[to].name, data="digits", images=20, **options)
    files = {"openvino": ["model.bin", "model.xml"], "pt2": ["model.pt2"]}[to]
    assert sorted(os.listdir(tmp_path / "new")) == files
    assert written.num_bytes == sum((tmp_path / "new" / name).stat().st_size for name in files)
    checked = written.checked
    assert checked.n == checked.agreeing == 20 and checked.probability_max_diff < 1e-5
    assert checked.runtime.startswith(f"{OF[to]} 2") and checked.runtime.endswith(" in float32")

    found = load(written.path)
    assert isinstance(found, Exported)
    for n in (0, 1, 2, 7):
        pixels = pixels_for(model, n)
        p, top_p, top = found.export(pixels, "probabilities", "top_probabilities", "top_classes")
        k = min(options.get("top_k", 5), 10)
        assert p.shape == (n, 10) and top.shape == (n, k) and top.dtype == np.int64
        np.testing.assert_array_equal(top_p, -np.sort(-p, axis=1)[:, :k])
        np.testing.assert_array_equal(np.take_along_axis(p, top, 1), top_p)
        if n:
            np.testing.assert_allclose(found.probabilities(pixels), model.probabilities(pixels), atol=1e-5)
            if isinstance(model.network, Mixer):
                np.testing.assert_allclose(found.features(pixels), model.features(pixels), atol=1e-5)
    if not isinstance(model.network, Mixer):
        with pytest.raises(ValueError, match="gives no features"):
            found.features(pixels_for(model, 1))
    assert model.meta is not None and found.meta is not None
    assert found.meta == dataclasses.replace(
        model.meta, provenance=model.meta.provenance | {"licence": options.get("licence", "mit")}
    )
    assert (found.export.batch, found.export.made) == (options.get("batch"), written.made)


@pytest.mark.exports
@pytest.mark.parametrize("to", OF)
def test_each_form_resizes_as_pillow_does(to: str, tmp_path: Path) -> None:
    model = classifier_of(dataclasses.replace(PARTS, in_channels=3), fit="crop")
    written = export(model, to, out=tmp_path / TARGETS[to].name, data="digits", images=20, any_size=True)
    fit = written.checked.fit
    assert fit and fit.n == 40 and fit.pixel_max_diff <= 1 and fit.pixels_different < 0.03 and fit.agreeing == 40
    found = open_export(written.path)
    for case in cases(model.preprocess):
        pixels, p = found(case.decoded[None].copy(), "pixels", "probabilities")
        assert np.abs(pixels[0].astype(int) - case.pixels).max() <= PIXEL_TOLERANCE, case
        np.testing.assert_allclose(p, model.probabilities(pixels), atol=1e-5)


def test_two_engines_agree_on_one_onnx_file(made: Path) -> None:
    one, other = (open_export(made / "model.onnx", engine=name) for name in ("onnxruntime", "openvino"))
    assert (one.meta, one.made, one.outputs) == (other.meta, other.made, other.outputs)
    assert (one.runtime.engine, other.runtime.engine) == ("onnxruntime", "openvino")
    pixels = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 1), dtype=np.uint8)
    for name in one.outputs:
        np.testing.assert_allclose(one(pixels, name)[0], other(pixels, name)[0], atol=1e-5)


@pytest.mark.parametrize("name", ["model.onnx", "model.xml", "model.pt2", "run"])
def test_bfloat16_only_if_asked(name: str, made: Path, run: Path) -> None:
    path = run if name == "run" else made / name
    engine = "openvino" if name == "model.onnx" else None
    if name in ("model.onnx", "model.xml") and not has_bfloat16():  # openvino's; torch emulates it
        with pytest.raises(ValueError, match="this processor has no bfloat16"):
            load(path, engine=engine, precision="bfloat16")
        return
    exact, rough = load(path, engine=engine), load(path, engine=engine, precision="bfloat16")
    assert (
        exact.runtime
        and exact.runtime.precision == "float32"
        and rough.runtime
        and rough.runtime.precision == "bfloat16"
    )
    wanted, pixels = load(run), pixels_for(exact, 50)
    np.testing.assert_allclose(exact.probabilities(pixels), wanted.probabilities(pixels), atol=1e-5)
    off = np.abs(rough.probabilities(pixels) - wanted.probabilities(pixels)).max()
    assert 1e-5 < off < 0.05
    assert rough.features(pixels).dtype == np.float32


def test_cached_features_per_precision(made: Path, tmp_path: Path) -> None:
    if not has_bfloat16():
        pytest.skip("this processor has no bfloat16")
    from mlpmixer.data.datasets import open_images

    images = open_images(Data(name="digits"), "test").subset(np.arange(5))
    exact, rough = (
        extract_features(load(made / "model.xml", precision=precision), images, cache=tmp_path).values
        for precision in ("float32", "bfloat16")
    )
    assert len(list(tmp_path.iterdir())) == 2 and np.abs(exact - rough).max() > 1e-5


def test_threads_are_limited_and_restored(made: Path) -> None:
    before = torch.get_num_threads()
    with computing("cpu", "float32", before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    pixels = np.zeros((2, 8, 8, 1), np.uint8)
    for name in ("model.onnx", "model.xml", "model.pt2"):
        one, free = open_export(made / name, threads=1), open_export(made / name)
        assert str(one.runtime).endswith("in float32, 1 thread")
        np.testing.assert_allclose(one(pixels, "probabilities")[0], free(pixels, "probabilities")[0], atol=1e-6)


@pytest.fixture
def torch_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("name", ["model.onnx", "model.xml", "model.pt2", "run"])
def test_concurrent_calls(name: str, streams: int, made: Path, run: Path, torch_threads: None) -> None:
    found = load(run if name == "run" else made / name, streams=streams)
    assert found.runtime and found.runtime.streams == streams
    assert (", 2 streams of " in str(found.runtime)) == (streams == 2) and bool(found.runtime.threads) == (streams == 2)
    batches = [pixels_for(found, n) for n in range(1, 9)]
    alone_ = [found.probabilities(batch) for batch in batches]
    start = threading.Barrier(4)

    def ask(turn: int) -> list[np.ndarray]:
        start.wait()
        return [found.probabilities(batches[(i + turn) % 8]) for i in range(16)]

    with ThreadPoolExecutor(4) as pool:
        for turn, answers in enumerate(pool.map(ask, range(4))):
            for i, answer in enumerate(answers):
                np.testing.assert_allclose(answer, alone_[(i + turn) % 8], atol=1e-6)


@pytest.mark.parametrize(("streams", "threads", "of_the_session"), [(1, 0, 0), (1, 3, 3), (2, 1, 1), (2, 8, 15)])
def test_onnxruntime_counts_the_callers_threads(
    streams: int, threads: int, of_the_session: int, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, real = list[int](), onnxruntime.InferenceSession

    def session(file: str, options: Any, **more: Any) -> Any:
        opened.append(options.intra_op_num_threads)
        return real(file, options, **more)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    open_export(made / "model.onnx", streams=streams, threads=threads)
    assert opened == [of_the_session]


# --- OpenVINO: no torch, no network -----------------------------------------------------------------------------------


def test_predict_needs_openvino_alone_and_no_telemetry(made: Path, run: Path, tmp_path: Path) -> None:
    Image.new("L", (20, 30), 90).save(tmp_path / "grey.png")
    code = (
        f"from mlpmixer.cli import main; code = main(['predict', {str(made / 'model.xml')!r}, "
        f"{str(tmp_path / 'grey.png')!r}, "
    )
    code += (
        "'--format', 'json']); assert not {'torch', 'onnxruntime', 'onnx', 'openvino_telemetry'} & "
        "set(sys.modules); sys.exit(code)"
    )
    done = alone(code, (*OF_THE_COMMAND, "openvino"))
    assert done.returncode == 0, done.stderr
    assert f"{made / 'model.xml'} is computed by openvino 2" in done.stderr and len(done.stderr.splitlines()) == 1
    [answer], [wanted] = json.loads(done.stdout), load(run).predict(tmp_path / "grey.png")
    assert answer["label"] == wanted.label and answer["probability"] == pytest.approx(wanted.probability, abs=1e-5)

    home = tmp_path / "home"  # where its telemetry would leave the number of this user
    home.mkdir()
    code = (
        f"import sys, mlpmixer; mlpmixer.load({str(made / 'model.xml')!r}); import "
        f"openvino.tools.ovc.telemetry_utils as t; "
    )
    code += "assert t.tm.__name__ == 'openvino.tools.ovc.telemetry_stub' and 'openvino_telemetry' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"HOME": str(home)}
    )
    assert done.returncode == 0 and not list(home.iterdir()), done.stderr


def test_pt2_without_torch_is_one_line(made: Path) -> None:
    done = alone(
        f"from mlpmixer.cli import main; sys.exit(main(['predict', {str(made / 'model.pt2')!r}, 'x.png']))",
        OF_THE_COMMAND,
    )
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert 'model.pt2 needs torch, which is not installed (no torch here): pip install "torch"' in done.stderr


@pytest.mark.parametrize("package", ["openvino", "onnx"])
def test_missing_packages_are_named(package: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf'no {package} here\): pip install "mlpmixer\[{package}\]"'):
        export(
            classifier_of(GREY), "openvino", out=tmp_path / "model.xml", data="nowhere"
        )  # said before any data is opened
    assert not list(tmp_path.iterdir())
    if package == "openvino":
        with pytest.raises(
            ValueError, match=r'needs openvino, which is not installed.*pip install "mlpmixer\[openvino\]"'
        ):
            load(made / "model.xml")


def test_service_names_its_engine(made: Path) -> None:
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    pytest.importorskip("httpx2", reason="the extra test is not installed")
    from starlette.testclient import TestClient

    from mlpmixer.serve.app import make_app

    model, file = load(made / "model.xml", threads=1), io.BytesIO()
    Image.new("L", (9, 9), 200).save(file, "PNG")
    with TestClient(make_app(model, name="digits")) as client:
        assert client.get("/model").json()["runtime"] == str(model.runtime)
        answer = client.post("/predict", content=file.getvalue(), headers={"content-type": "image/png"}).json()[
            "results"
        ][0]
    assert answer["label"] == model.predict(Image.new("L", (9, 9), 200))[0].label


# --- what is no export ------------------------------------------------------------------------------------------------


def xml_with(path: Path, content: bytes, text: str | None) -> None:
    """`content` with another text, or none, in the place of the metadata."""
    tree = ElementTree.ElementTree(ElementTree.fromstring(content))
    parent, entry = tree.find("rt_info/framework"), tree.find("rt_info/framework/mlpmixer")
    assert parent is not None and entry is not None
    if text is None:
        parent.remove(entry)
    else:
        entry.set("value", text)
    tree.write(path, encoding="utf-8", xml_declaration=True)


def pt2_with(path: Path, content: bytes, text: str | None) -> None:
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.infolist():
            is_text = entry.filename.endswith("extra/mlpmixer.json")
            if not is_text or text is not None:
                new.writestr(entry.filename, text if is_text and text is not None else old.read(entry))


@pytest.mark.parametrize(("name", "write"), [("model.xml", xml_with), ("model.pt2", pt2_with)])
def test_foreign_metadata_is_refused(name: str, write: Any, copied: Path) -> None:
    path, found = copied / name, open_export(copied / name)
    whole, weights = path.read_bytes(), digest(copied / "model.bin") if name == "model.xml" else ""
    good, config = json.loads(metadata(found.meta, found.made)), found.meta.config
    larger = dataclasses.replace(found.meta.preprocess, image_size=(16, 16))

    def text(**meta: Any) -> str:
        return metadata(dataclasses.replace(found.meta, **meta), found.made, weights)

    cases = [
        (None, "not an export of this package: its metadata has no entry 'format'"),
        ("", "not an export of this package"),
        ("{", "its metadata cannot be read"),
        ("[]", "its metadata cannot be read"),
        ("[" * 100_000, "its metadata cannot be read"),
        (json.dumps(good | {"format": 2}), "this version reads format 1"),
        (json.dumps({k: v for k, v in good.items() if k != "export"}), "no entry 'export'"),
        (json.dumps(good | {"model": good["model"] | {"run": "rm"}}), "has no field 'run'"),
        (json.dumps(good | {"model": {}}), "its metadata cannot be read"),
        (json.dumps(good | {"model": good["model"] | {"classes": DIGITS[:3]}}), "3 names for the 10 outputs"),
        (text(classes=DIGITS[:3], config=dataclasses.replace(config, num_classes=3)), "names 3 classes"),
        (text(preprocess=larger, config=dataclasses.replace(config, image_size=16)), r"says images \[16, 16, 1\]"),
    ]
    for content, says in cases:
        write(path, whole, content)
        with pytest.raises(ValueError, match=says):
            load(path)
    write(path, whole, text())
    assert load(path).classes == DIGITS


def test_xml_refuses_another_bin(copied: Path, capfd: pytest.CaptureFixture[str]) -> None:
    xml, weights = copied / "model.xml", copied / "model.bin"
    content = weights.read_bytes()
    opened, pixels = load(xml), np.full((1, 8, 8, 1), 7, np.uint8)
    before = opened.probabilities(pixels)
    turned = bytearray(content)
    turned[len(content) // 2] ^= 1
    for other, says in (
        (bytes(turned), "model.bin is not the file that .*model.xml was written with"),
        (content + b"x", "model.bin is not the file that .*model.xml was written with"),
        (content[:1000], "openvino cannot open .*model.xml: Incorrect weights in bin file"),
        (b"", "openvino cannot open .*model.xml"),
    ):
        weights.write_bytes(other)
        with pytest.raises(ValueError, match=says):
            load(xml)
    np.testing.assert_array_equal(opened.probabilities(pixels), before)  # what was opened stays as it was
    weights.unlink()
    with pytest.raises(
        ValueError, match=r"model.bin does not exist: an .xml needs its weights, in the .bin of the same name"
    ):
        load(xml)
    renamed = [xml.rename(copied / "other.xml"), weights.with_name("other.bin")]
    renamed[1].write_bytes(content)
    assert load(renamed[0]).classes == DIGITS
    assert capfd.readouterr() == ("", "")


def test_foreign_files_are_refused(copied: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    xml = copied / "model.xml"
    for content, says in (
        (b"", "is not a model of OpenVINO"),
        (b"<annotation><object/></annotation>", "is not a model of OpenVINO"),
        (xml.read_bytes()[:5000], "openvino cannot open .*model.xml"),
    ):
        xml.write_bytes(content)
        with pytest.raises(ValueError, match=says):
            load(xml)

    class Other(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, int]:
            return images + 1, 2

    torch.export.save(torch.export.export(Other(), (torch.zeros(2, 3),)), tmp_path / "other.pt2")
    with pytest.raises(
        ValueError, match=r"other.pt2 is not an export of this package: its metadata has no entry 'format'"
    ):
        load(tmp_path / "other.pt2")
    pt2 = copied / "model.pt2"
    for content in (b"", b"nothing", pt2.read_bytes()[:3000]):
        pt2.write_bytes(content)
        with pytest.raises(ValueError, match=r"torch cannot open .*model.pt2: "):
            load(pt2)
    assert capfd.readouterr() == ("", "")


def test_xml_entities_are_not_expanded(copied: Path) -> None:
    xml = copied / "model.xml"
    (copied / "secret").write_text("told")
    body = xml.read_text(encoding="utf-8").partition("?>")[2]
    nested = '<!ENTITY a0 "ha">' + "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 10))
    for entities, name in ((f'<!ENTITY x SYSTEM "file://{copied}/secret">', "x"), (nested, "a9")):
        named = re.sub(r'(<mlpmixer value=")[^"]*"', rf'\1&{name};"', body)
        xml.write_text(f'<?xml version="1.0"?><!DOCTYPE net [{entities}]>{named}', encoding="utf-8")
        with pytest.raises(ValueError, match="its metadata cannot be read") as e:
            load(xml)
        assert "told" not in str(e.value) and "haha" not in str(e.value)


@pytest.mark.exports
def test_class_names_survive_xml(tmp_path: Path) -> None:
    names = ("<&>\"'", "a\nb\tc\r", "\x00\x1f\x7f", "\uffff\ufffe", "日本 🙂", "\ufffd", " ", "]]>", "&#10;", "<!--")
    meta = classifier_of(GREY).meta
    assert meta is not None
    model = from_network(mixer(GREY), dataclasses.replace(meta, classes=names))
    for to in ("openvino", "pt2"):
        path = export(model, to, out=tmp_path / TARGETS[to].name, data="digits", images=3).path
        assert load(path).classes == names


def test_pt2_runs_in_torch_and_holds_no_paths(made: Path, run: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), dtype=np.uint8)
    answers = torch.export.load(made / "model.pt2").module()(torch.from_numpy(pixels))
    assert list(answers) == ["probabilities", "top_probabilities", "top_classes", "features"]
    np.testing.assert_allclose(answers["probabilities"].detach().numpy(), load(run).probabilities(pixels), atol=1e-5)
    places = (
        str(Path(cli.__file__).parents[2]).encode(),
        str(run.parent).encode(),
        os.path.expanduser("~").encode() + b"/",
        b".py",
    )
    with zipfile.ZipFile(made / "model.pt2") as archive:
        for name in archive.namelist():
            assert not [place for place in places if place in archive.read(name)], name
    for name in ("model.xml", "model.bin"):
        assert not [place for place in places if place in (made / name).read_bytes()], name


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_options_list_all_engines() -> None:
    hints = typing.get_type_hints(RuntimeOptions)
    assert set(typing.get_args(hints["engine"])) == {"auto", *ENGINES}
    assert set(typing.get_args(hints["precision"])) == {p for engine in ENGINES.values() for p in engine.precisions}


def test_commands_take_each_form(made: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    xml, pt2 = str(made / "model.xml"), str(made / "model.pt2")
    tops = []
    for path in (str(run), xml, pt2):
        assert cli.main(["evaluate", path, "digits", "--json"]) == 0
        said = capsys.readouterr()
        tops.append(json.loads(said.out)["top1"])
        assert ("is computed by" in said.err) == (path != str(run))
    assert tops[0] == tops[1] == tops[2]
    assert cli.main(["evaluate", str(run), "digits", "--json", "--precision", "bfloat16", "--threads", "1"]) == 0
    said = capsys.readouterr()
    assert f"{run} is computed by torch {torch.__version__}" in said.err and " in bfloat16, 1 thread" in said.err
    assert cli.main(["compare", xml, pt2, "digits", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["only_a"] == 0
    assert cli.main(["probe", xml, "digits", "--shots", "1", "--json", "--cache", str(made / "features")]) == 0


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (
            "predict {made}/model.xml x.png --engine onnxruntime",
            "does not open .xml files such as {made}/model.xml; openvino can",
        ),
        (
            "predict {made}/model.onnx x.png --engine torch",
            "such as {made}/model.onnx; onnxruntime and openvino can",
        ),
        (
            "predict {made}/model.onnx x.png --precision bfloat16",
            "computes in float32, not in bfloat16; openvino and torch can",
        ),
        ("predict {made}/model.xml x.png --precision int8", "expected float32 or bfloat16"),
        ("predict {made}/model.xml x.png --threads -1", "threads must be at least 0"),
        ("predict {run} x.png --threads -1", "threads must be at least 0"),
        (
            "predict {run} x.png --engine openvino",
            "{run} is not an export; only torch and compiled can run it (engine=openvino given)",
        ),
        ("predict {made}/modle.xml x.png", "did you mean {made}/model.xml?"),
        ("predict {made}/model.pt2 x.png --image-size 16", "is an export, whose size is fixed"),
        ("explain {made}/model.xml x.png", "an export cannot be explained"),
        ("export {made}/model.xml", "is an export already: export the run that it was made from"),
        ("export {run} --to openvino --out {tmp}/model.onnx", "expected a file that ends in .xml"),
        ("export {run} --to pt2 --out {tmp}/model", "expected a file that ends in .pt2"),
        ("export {run} --to bundle --out {tmp}/model.xml", "expected a folder"),
        (
            "export {run} --to openvino --out {made}/model.xml",
            "model.bin exists already: name another (--out), or remove it",
        ),
    ],
)
def test_mistakes_are_one_line(
    line: str, says: str, run: Path, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"run": run, "made": made, "tmp": tmp_path}
    assert cli.main(line.format(**names).split()) == 2
    err = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert says.format(**names) in err and "Traceback" not in err
    assert not list(tmp_path.iterdir())
