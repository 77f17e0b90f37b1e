"""A page that classifies in the browser: its folder, where its runtime comes from, and, in Chromium, that it answers as
the model."""

import base64
import dataclasses
import functools
import hashlib
import http.server
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures.preprocessing import MODELS, Case, cases
from helpers.chromium import Chromium
from helpers.exports import web_runtime
from helpers.models import GREY, SMALL, Flat, save_run
from PIL import Image, ImageCms
from torch import nn

from mlpmixer import cli
from mlpmixer.data.preprocess import Preprocess
from mlpmixer.exporters import onnxruntime_web
from mlpmixer.exporters.export import export
from mlpmixer.exporters.onnxruntime_web import FILES, VERSION
from mlpmixer.exporters.web_page import page, policy
from mlpmixer.inference.classifier import Classifier
from mlpmixer.inference.load import load
from mlpmixer.inference.torch_classifier import from_network
from mlpmixer.models.configs import MixerConfig
from mlpmixer.models.mixer import Mixer
from mlpmixer.serve.evidence import evidence_of
from mlpmixer.weights.model_file import ModelMeta

pytest.importorskip("onnx", reason="the extra onnx is not installed")
pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")

CLASSES = ("</script><b>0</b>", *"123456789")
COLOUR = MixerConfig(image_size=(32, 48), patch_size=8, **SMALL)


def classifier_of(cfg: MixerConfig, **preprocess: Any) -> Classifier:
    torch.manual_seed(0)
    network = Mixer(cfg)
    nn.init.normal_(network.head.weight)  # type: ignore[arg-type]
    nn.init.normal_(network.head.bias)  # type: ignore[arg-type]
    size = cfg.image_size if isinstance(cfg.image_size, tuple) else (cfg.image_size, cfg.image_size)
    pre = Preprocess(image_size=size, in_channels=cfg.in_channels, **preprocess)
    return from_network(
        network, ModelMeta(config=cfg, classes=CLASSES, preprocess=pre, provenance={"data": "digits", "licence": "mit"})
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of digits, as training leaves it."""
    return save_run(classifier_of(GREY), tmp_path_factory.mktemp("runs") / "digits")


@pytest.fixture(scope="module")
def web(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(run, "web", images=30, page_runtime=web_runtime(tmp_path_factory.mktemp("package"))).path


def known(web: Path) -> dict[str, Any]:
    """What the page knows of its model."""
    found = re.search(r"^const MODEL = (.*);$", (web / "index.html").read_text("utf-8"), re.M)
    assert found
    model: dict[str, Any] = json.loads(found[1])
    return model


# --- the folder -------------------------------------------------------------------------------------------------------


def test_the_folder_is_complete(web: Path, run: Path) -> None:
    assert web == run / "web"
    files = ["LICENSE", "README.md", "bundle.json", "index.html", "model.onnx", "onnxruntime-web"]
    assert sorted(os.listdir(web)) == files and "Apache License" in (web / "LICENSE").read_text()
    assert sorted(os.listdir(web / "onnxruntime-web")) == ["LICENSE", "ThirdPartyNotices.txt", "ort.js", "ort.wasm"]
    assert "MIT License" in (web / "onnxruntime-web" / "LICENSE").read_text()
    model = known(web)
    assert model["classes"] == list(CLASSES) and model["image_size"] == [8, 8] and model["fit"] == "crop"
    assert model["evidence"] is True and model["grid"] == [4, 4] and model["batch"] is None
    for name, integrity in model["files"].items():
        assert integrity == "sha256-" + base64.b64encode(hashlib.sha256((web / name).read_bytes()).digest()).decode()
    assert set(model["files"]) == {"model.onnx", "onnxruntime-web/ort.wasm"}
    readme = (web / "README.md").read_text("utf-8")
    assert (
        "on 30 images the likeliest class is the same for 100.00 %" in readme and "Licence of the model: mit" in readme
    )
    assert not [
        f for f in ("README.md", "index.html", "bundle.json") if str(run.parent) in (web / f).read_text("utf-8")
    ]


def test_the_policy_allows_only_the_folder(web: Path) -> None:
    content = (web / "index.html").read_text("utf-8")
    assert content.count("<script>") == content.count("</script>") == 1, "a class name does not end the script"
    rule = re.search(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', content)
    assert rule and content.index(rule[0]) < content.index("<style>")
    assert rule[1] == policy(content, "'self'", "'wasm-unsafe-eval'") and rule[1].startswith(
        "default-src 'none'; script-src 'sha256-"
    )
    assert "unsafe-inline" not in rule[1] and "frame-ancestors" not in rule[1], "which no page may say of itself"
    assert not re.findall(r"(?:src|href)=[\"']?(?:https?:)?//|url\(|@import", content)


def test_both_pages_share_one_source(web: Path) -> None:
    served, written = page("server"), (web / "index.html").read_text("utf-8")
    shared = page("server").split("// --- the page asks the service")
    assert (
        all(part in written for part in shared[1].rsplit("async function open()", 1)[1:])
        and shared[0].split("<style>")[1] in written
    )
    assert "onnxruntime" not in served and "authorization" not in written


def test_the_folder_loads_like_a_bundle(web: Path, run: Path) -> None:
    model, found = load(run), load(web)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    np.testing.assert_allclose(found.probabilities(pixels), model.probabilities(pixels), atol=1e-5)
    wanted, ours = evidence_of(model), evidence_of(found)
    assert wanted and ours and wanted.grid == ours.grid
    np.testing.assert_allclose(ours.bias, wanted.bias, atol=1e-5)
    np.testing.assert_allclose(ours.of(pixels), wanted.of(pixels), atol=1e-5)


def test_a_network_without_tokens_has_no_evidence(tmp_path: Path) -> None:
    meta = classifier_of(GREY).meta
    assert meta is not None
    model = from_network(Flat(), dataclasses.replace(meta, network="Flat"))  # type: ignore[arg-type]
    written = export(
        model, "web", out=tmp_path / "page", data="digits", images=5, page_runtime=web_runtime(tmp_path / "package")
    )
    assert (
        known(written.path)["evidence"] is False
        and "A classifier (Flat) for 10 classes" in (written.path / "README.md").read_text()
    )
    assert evidence_of(load(written.path)) is None


# --- the runtime ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", ["dist", "package/dist", "."])
def test_the_runtime_of_an_unpacked_package(inside: str, tmp_path: Path) -> None:
    place = tmp_path / "given" / inside
    place.mkdir(parents=True, exist_ok=True)
    for name in (*FILES, "LICENSE"):
        (place / name).write_text(name)
    onnxruntime_web.place(tmp_path / "to", tmp_path / "given")
    assert {f.name: f.read_text() for f in (tmp_path / "to").iterdir()} == {
        "ort.js": "ort.wasm.bundle.min.mjs",
        "ort.wasm": "ort-wasm-simd-threaded.wasm",
        "LICENSE": "LICENSE",
    }


def npm(folder: Path, script: str) -> None:
    folder.mkdir()
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "npm").chmod(0o755)


@pytest.mark.exports
def test_npm_must_fetch_the_tested_version(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = web_runtime(tmp_path / "source")
    with tarfile.open(tmp_path / "made.tgz", "w:gz") as package:
        package.add(source, "package")
    npm(
        tmp_path / "bin",
        f'echo "$@" > {tmp_path}/asked; pwd > {tmp_path}/where; cp {tmp_path}/made.tgz onnxruntime-web-{VERSION}.tgz',
    )
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    line = ["export", str(run), "--to", "web", "--out", str(tmp_path / "out"), "--images", "20"]
    assert cli.main(line) == 2
    assert "npm fetched another onnxruntime-web" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    integrity = "sha512-" + base64.b64encode(hashlib.sha512((tmp_path / "made.tgz").read_bytes()).digest()).decode()
    monkeypatch.setattr(onnxruntime_web, "INTEGRITY", integrity)
    assert cli.main(line) == 0
    said = capsys.readouterr().out
    assert f"python -m http.server --bind 127.0.0.1 --directory {tmp_path / 'out'}" in said
    assert (tmp_path / "out" / "onnxruntime-web" / "ort.js").read_text() == "made up: ort.wasm.bundle.min.mjs"
    assert (tmp_path / "asked").read_text().startswith(f"pack onnxruntime-web@{VERSION} ")
    assert not Path((tmp_path / "where").read_text().strip()).exists(), "a temporary folder"


@pytest.mark.parametrize(
    ("script", "says"),
    [
        (None, "which npm fetches, and npm is not installed. Or elsewhere: npm pack onnxruntime-web@"),
        (
            "echo 'npm error code E404' >&2; echo 'npm error 404 Not Found.' >&2; exit 1",
            "could not fetch onnxruntime-web .*: 404 Not Found. ",
        ),
        ("exit 1", "it did not say why. Or"),
        ("exit 0", "it did not say why. Or"),
        ("exec sleep 20", "within 0.5 s. Or"),
    ],
)
def test_npm_failures_are_one_line(
    script: str | None,
    says: str,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    npm(tmp_path / "bin", script or "")
    if script is None:
        (tmp_path / "bin" / "npm").unlink()
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    else:
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(onnxruntime_web, "TIMEOUT_S", 0.5 if says.startswith("within") else 60)
    monkeypatch.setattr("mlpmixer.exporters.targets.onnx.write", lambda *_: pytest.fail("worked before it asked"))
    (tmp_path / "here").mkdir()
    assert (
        cli.main(
            ["export", str(run), "--to", "web", "--int8", "--out", str(tmp_path / "here" / "out"), "--images", "5"]
        )
        == 2
    )
    err = re.sub(r"[\s│]+", " ", capsys.readouterr().err)
    assert re.search(says, err) and "--runtime FOLDER" in err and "Traceback" not in err
    assert not list((tmp_path / "here").iterdir())


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (
            "--to web --runtime {tmp} --data nowhere",
            "there is no ort.wasm.bundle.min.mjs in {tmp}: expected the folder of onnxruntime-web",
        ),
        ("--to web --runtime {half}", "there is no ort-wasm-simd-threaded.wasm in {half}"),
        ("--to onnx --runtime {tmp}", "is for --to web only; add --to web or leave --runtime out"),
        ("--to web", "exists already: name another (--out)"),
    ],
)
def test_mistakes_are_one_line(
    line: str, says: str, run: Path, web: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = web_runtime(tmp_path / "half")
    (half / "dist" / "ort-wasm-simd-threaded.wasm").unlink()
    names = {"tmp": tmp_path, "half": half}
    out = [] if "exists" in says else ["--out", str(tmp_path / "out")]
    assert cli.main(["export", str(run), *line.format(**names).split(), *out]) == 2
    err = re.sub(r"[\s│]+", " ", capsys.readouterr().err)
    assert says.format(**names) in err and "Traceback" not in err
    assert os.listdir(tmp_path) == ["half"]


def test_unsupported_preprocessing_is_refused(tmp_path: Path) -> None:
    for preprocess, says in (
        ({"fit": "bv_resmall_crop"}, "the page does not support fit='bv_resmall_crop'"),
        (
            {"interpolation": "bicubic"},
            "the page supports fit=crop, pad, squash, bilinear; this model has crop, bicubic",
        ),
    ):
        with pytest.raises(ValueError, match=says):
            export(classifier_of(GREY, **preprocess), "web", out=tmp_path / "out", data="digits", page_runtime=tmp_path)
    four = dataclasses.replace(GREY, in_channels=4)
    with pytest.raises(ValueError, match="the page does not support images of 4 channels"):
        export(classifier_of(four), "web", out=tmp_path / "out", data="digits", page_runtime=tmp_path)
    with pytest.raises(ValueError, match=r"is for a page .web., not for bundle"):
        export(classifier_of(GREY), "bundle", out=tmp_path / "out", data="digits", page_runtime=tmp_path)
    assert not list(tmp_path.iterdir())


# --- its pixels -------------------------------------------------------------------------------------------------------

NODE = """
const MODEL = {}, element = () => ({}), $ = element;
const document = {createElement() {  // a canvas
  let image, top;
  return {getContext: () => ({
    fillRect() {}, drawImage(bitmap, x, y) { [image, top] = [bitmap, -y]; },
    getImageData: (x, y, w, h) => ({data: image.rgba.slice(4 * w * top, 4 * w * (top + h))}),
  })};
}};
%s
const {models, images} = JSON.parse(require("fs").readFileSync(0));
const base64 = bytes => Buffer.from(bytes).toString("base64");
const bitmaps = images.map(image => ({...image, rgba: new Uint8ClampedArray(Buffer.from(image.rgba, "base64"))}));
console.log(JSON.stringify(models.map(model => {
  Object.assign(MODEL, model);
  return bitmaps.map(bitmap => base64(fitted(bitmap)));
})));
"""


def require_pixels(case: Case, found: np.ndarray) -> None:
    """To the bit, but for a level where Pillow may go down before it goes across, and for 16 bit."""
    (height, width), (h, w) = case.preprocess.image_size, case.decoded.shape[:2]
    tolerance = int(h / height > w / width or case.image == "16 bit")
    assert np.abs(found.astype(int) - case.pixels).max() <= tolerance, case


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_script_equals_the_preprocessing() -> None:
    """Without a browser: of decoded images."""
    images, table = [], list(cases(*MODELS))
    for case in cases(Preprocess(image_size=(1, 1))):
        opaque = np.dstack([case.decoded, np.full(case.decoded.shape[:2], 255, np.uint8)])
        rgba = base64.b64encode(opaque.tobytes()).decode()
        images.append({"width": opaque.shape[1], "height": opaque.shape[0], "rgba": rgba})
    models = [{"fit": m.fit, "image_size": m.image_size, "in_channels": m.in_channels} for m in MODELS]
    script = NODE % files("mlpmixer.exporters.web_page").joinpath("browser.js").read_text("utf-8")
    given = json.dumps({"models": models, "images": images})
    done = subprocess.run(["node", "-e", script], input=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = [base64.b64decode(pixels) for row in json.loads(done.stdout) for pixels in row]
    for case, pixels in zip(table, found, strict=True):
        require_pixels(case, np.frombuffer(pixels, np.uint8).reshape(case.pixels.shape))


# --- in a browser -----------------------------------------------------------------------------------------------------

Hosted = Callable[[Path], str]
CARD = "document.querySelector('article')"


def browser_test(function: Any) -> Any:
    for mark in (pytest.mark.browser, pytest.mark.network):
        function = mark(function)
    return pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")(function)


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real one."""
    folder = tmp_path_factory.mktemp("npm") / "runtime"
    onnxruntime_web.place(folder, None)
    for name, called in FILES.items():
        (folder / called).rename(folder / name)
    return folder


@pytest.fixture(scope="module")
def digits(run: Path, runtime: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(run, "web", out=tmp_path_factory.mktemp("pages") / "digits", images=30, page_runtime=runtime).path


@pytest.fixture
def hosted() -> Iterator[Hosted]:
    """A server of files that sends no header of its own; gives the address of a folder."""
    running: list[tuple[http.server.ThreadingHTTPServer, threading.Thread]] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    def start(folder: Path) -> str:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        running.append((server, thread))
        return f"http://127.0.0.1:{server.server_address[1]}/"

    yield start
    for server, thread in running:
        server.shutdown()
        server.server_close()
        thread.join()


def asked(browser: Chromium, call: str, data: bytes) -> Any:
    """What a function of the page makes of a file."""
    content = base64.b64encode(data).decode()
    return browser.value(
        f"(async blob => {call})(new Blob([Uint8Array.from(atob('{content}'), c => c.charCodeAt(0))]))"
    )


def pixels_in(browser: Chromium, pre: Preprocess, data: bytes) -> np.ndarray:
    """An image as the page shows it to a model with this preprocessing."""
    changed = json.dumps({"fit": pre.fit, "image_size": pre.image_size, "in_channels": pre.in_channels})
    browser.value(f"void Object.assign(MODEL, {changed})")
    return np.array(asked(browser, "[...await pixelsOf(blob)]", data), np.uint8).reshape(
        *pre.image_size, pre.in_channels
    )


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def ready(browser: Chromium, address: str) -> None:
    browser.open(address)
    browser.wait("model !== null")


@browser_test
def test_an_image_is_classified_and_explained(digits: Path, run: Path, hosted: Hosted, tmp_path: Path) -> None:
    picture = tmp_path / "<i>noise.png"
    picture.write_bytes(encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8))))
    model = load(run)
    (expected,) = model.predict(picture)
    with Chromium() as browser:
        ready(browser, address := hosted(digits))
        assert not browser.value("crossOriginIsolated") and browser.value("document.title") == "digits"
        browser.choose("#file", [picture])
        assert browser.wait(f"{CARD}?.querySelector('h3')?.textContent") == expected.label
        rows = browser.value(
            f"[...{CARD}.querySelectorAll('.row')].map(r => [...r.querySelectorAll('span')].map(s => s.textContent))"
        )
        assert len(rows) == 10 and rows[0] == [expected.label, f"{100 * expected.probability:.1f} %"]
        assert not browser.value("document.querySelector('#out b, #out figcaption i')"), "names are text"
        browser.value(f"{CARD}.querySelector('button.row').click()")
        browser.wait(f"{CARD}.querySelector('canvas').width === 4")
        browser.screenshot(tmp_path / "picture.png")
        found = asked(browser, f"backEnd.evidence(blob, {json.dumps(CLASSES[3])})", picture.read_bytes())
        evidence = evidence_of(model)
        assert evidence
        np.testing.assert_allclose(
            found["evidence"], evidence.of(model.preprocess_image(picture)[None])[0, :, 3].reshape(4, 4), atol=1e-5
        )
        assert found["bias"] == pytest.approx(float(evidence.bias[3]), abs=1e-5)
        seen = Image.open(io.BytesIO(base64.b64decode(found["seen"].removeprefix("data:image/png;base64,"))))
        np.testing.assert_array_equal(np.asarray(seen.convert("L")), model.preprocess_image(picture)[..., 0])
        own = [f"{address}{name}" for name in ("", "onnxruntime-web/ort.js", "onnxruntime-web/ort.wasm", "model.onnx")]
        assert sorted(url for url in browser.asked if not url.startswith(("blob:", "data:"))) == sorted(own)
        assert not browser.problems, browser.problems


@browser_test
def test_a_digit_is_drawn_on_a_phone(digits: Path, hosted: Hosted, tmp_path: Path) -> None:
    with Chromium(width=390, height=800) as browser:
        ready(browser, hosted(digits))
        box = browser.value("(b => [b.x, b.y, b.width])(document.querySelector('#board').getBoundingClientRect())")
        browser.draw([(box[0] + box[2] * x, box[1] + box[2] * y) for x, y in ((0.4, 0.2), (0.5, 0.4), (0.5, 0.8))])
        browser.wait(f"!!{CARD}?.querySelector('h3')")
        assert browser.value(f"{CARD}.querySelector('figcaption').textContent") == "drawing"
        assert browser.value("document.documentElement.scrollWidth <= innerWidth"), "nothing stands over on a phone"
        browser.screenshot(tmp_path / "drawing.png")
        assert not browser.problems, browser.problems


@browser_test
def test_errors_are_shown(digits: Path, hosted: Hosted, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(encoded(Image.new("RGB", (90, 90), "red"))[:60])
    swapped = shutil.copytree(digits, tmp_path / "swapped")
    (swapped / "model.onnx").write_bytes((digits / "model.onnx").read_bytes() + b" ")
    lacking = shutil.copytree(digits, tmp_path / "lacking")
    (lacking / "onnxruntime-web" / "ort.wasm").unlink()
    with Chromium() as browser:
        ready(browser, hosted(digits))
        browser.choose("#file", [tmp_path / "broken.png"])
        assert "This browser cannot read the file as an image" in browser.wait(
            f"{CARD}?.querySelector('.bad')?.textContent"
        )
        for folder, says in (
            (swapped, "model.onnx cannot be loaded, or is not the file that this page was made with"),
            (lacking, "ort.wasm cannot be loaded"),
        ):
            browser.open(hosted(folder))
            assert says in browser.wait("document.querySelector('#say').textContent")
        browser.open((digits / "index.html").as_uri())
        assert "python -m http.server --bind 127.0.0.1" in browser.wait("document.querySelector('#say').textContent")
        browser.screenshot(tmp_path / "file.png")


@browser_test
def test_the_page_equals_the_preprocessing(digits: Path, hosted: Hosted) -> None:
    with Chromium() as browser:
        ready(browser, hosted(digits))
        for case in cases(*MODELS):
            require_pixels(case, pixels_in(browser, case.preprocess, case.file))


@browser_test
def test_the_page_decodes_files_alike(digits: Path, hosted: Hosted) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 4), np.uint8)
    rgb = Image.fromarray(noise[..., :3])
    smooth = rgb.resize((6, 4)).resize((200, 190))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profile = (
        profile.replace(b"rXYZ", b"?XYZ").replace(b"bXYZ", b"rXYZ").replace(b"?XYZ", b"bXYZ")
    )  # red for blue, for whoever heeds it
    files = {  # and by how many levels a value may be off
        "turned.jpg": (encoded(smooth, "JPEG", exif=exif), 0),
        "profile.jpg": (encoded(smooth, "JPEG", icc_profile=profile), 0),
        "noise.jpg": (encoded(rgb, "JPEG"), 0),
        "cmyk.jpg": (encoded(smooth.convert("CMYK"), "JPEG"), 0),
        "grey.jpg": (encoded(smooth.convert("L"), "JPEG"), 0),
        "lossy.webp": (encoded(smooth, "WEBP"), 0),
        "alpha.webp": (encoded(Image.fromarray(noise), "WEBP", lossless=True), 1),
    }
    with Chromium() as browser:
        ready(browser, hosted(digits))
        for name, (data, tolerance) in files.items():
            for channels in (1, 3):
                pre = Preprocess(image_size=(32, 32), in_channels=channels)
                off = np.abs(pixels_in(browser, pre, data).astype(int) - pre.array(Image.open(io.BytesIO(data))))
                assert off.max() <= tolerance, (name, channels, off.max())


@browser_test
def test_photographs_get_pythons_answers(runtime: Path, hosted: Hosted, tmp_path: Path) -> None:
    import sklearn.datasets

    model = classifier_of(COLOUR, fit="pad")
    options: dict[str, Any] = {"data": "digits", "images": 20, "page_runtime": runtime, "batch": 3, "any_size": True}
    written = export(model, "web", out=tmp_path / "page", **options)
    photos = sorted((Path(sklearn.datasets.__file__).parent / "images").glob("*.jpg"))
    assert len(photos) == 2
    with Chromium() as browser:
        ready(browser, hosted(written.path))
        for photo in photos:
            said = asked(browser, "backEnd.predict(blob, 10)", photo.read_bytes())["top"]
            (expected,) = model.predict(photo, 10)
            assert [t["label"] for t in said] == [label for label, _ in expected.top]
            assert [t["probability"] for t in said] == pytest.approx([p for _, p in expected.top], abs=1e-5)
