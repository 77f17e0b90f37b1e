"""The HTTP service: answers, limits, batching and the schema."""

import asyncio
import base64
import io
import logging
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints
from urllib.parse import urljoin, urlsplit

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("prometheus_client", reason="the extra serve is not installed")
pytest.importorskip("python_multipart", reason="the extra serve is not installed")
pytest.importorskip("httpx2", reason="the extra test is not installed")

import uvicorn
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.testclient import TestClient as AnyClient
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors.multiprocess import Process

from mlpmixer.cli import serve as serving
from mlpmixer.cli.options import RuntimeOptions
from mlpmixer.cli.serve import Serve
from mlpmixer.data.images import _heic
from mlpmixer.data.preprocess import Preprocess
from mlpmixer.inference.classifier import Classifier
from mlpmixer.serve import page, server
from mlpmixer.serve.app import make_app
from mlpmixer.serve.batcher import Batcher, QueueClosed, QueueFull
from mlpmixer.serve.headers import MAX_PARTS, read_header
from mlpmixer.serve.limits import LimitsMiddleware
from mlpmixer.serve.schemas import EvidenceResponse, FeaturesResponse, PredictResponse
from mlpmixer.serve.server import TimeoutProtocol, Workers, listen
from mlpmixer.serve.settings import Settings

JPEG = {"content-type": "image/jpeg"}
SETTINGS = Settings(
    max_bytes=200_000, max_pixels=1_000_000, max_request_pixels=4_000_000, max_images=4, max_batch=8, queue=8
)


class TestClient(AnyClient):
    """Holds every answer against the description that the service itself gives."""

    __test__ = False

    def request(self, method: str, url: Any, **more: Any) -> Any:
        answer = super().request(method, url, **more)
        api = self.app.openapi()  # type: ignore[attr-defined]
        schemas = api["components"]["schemas"]
        operation = api["paths"].get(urlsplit(str(url)).path, {}).get(method.lower())
        if operation:
            content = operation["responses"][str(answer.status_code)]["content"]
            kind = answer.headers["content-type"].partition(";")[0]
            conform(answer.json() if kind == "application/json" else answer.text, content[kind]["schema"], schemas)
        elif answer.status_code >= 400:
            conform(answer.json(), schemas["ErrorResponse"], schemas)
        return answer


def conform(value: Any, schema: dict[str, Any], schemas: dict[str, Any]) -> None:
    """Fails where a value is not what the JSON schema says. Knows only what the service's schemas use; objects have all
    their fields."""
    if ref := schema.get("$ref"):
        return conform(value, schemas[ref.rpartition("/")[2]], schemas)
    if kinds := schema.get("anyOf"):  # something or null
        assert kinds[1:] == [{"type": "null"}], schema
        return conform(value, kinds[0], schemas) if value is not None else None
    assert schema.keys() <= {
        "type",
        "title",
        "description",
        "properties",
        "required",
        "items",
        "prefixItems",
        "minItems",
        "maxItems",
    }, schema
    kind = {"object": dict, "array": list, "string": str, "number": int | float, "integer": int, "boolean": bool}[
        schema["type"]
    ]
    assert isinstance(value, kind) and isinstance(value, bool) == (schema["type"] == "boolean"), (value, schema)
    if schema["type"] == "object":
        assert value.keys() == schema["properties"].keys() == set(schema["required"]), (value, schema)
        for name, field in schema["properties"].items():
            conform(value[name], field, schemas)
    if schema["type"] == "array":
        assert schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)), (value, schema)
        for item, each in zip(value, schema.get("prefixItems") or [schema["items"]] * len(value), strict=True):
            conform(item, each, schemas)


def by_brightness(wait: threading.Event | None = None, **preprocess: Any) -> Classifier:
    """Tells dark from bright by the mean of the pixels; the engine waits for `wait`."""

    def mean(images: np.ndarray) -> np.ndarray:
        assert wait is None or wait.wait(10)
        return images.mean(axis=(1, 2, 3))[:, None]

    return Classifier(
        classes=("dark", "bright"),
        preprocess=Preprocess(**{"image_size": (8, 8), "fit": "squash"} | preprocess),
        logits=lambda images: np.hstack([-mean(images), mean(images)]),
        pre_logits=mean,
    )


def picture(value: int, size: tuple[int, int] = (9, 7), kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (value,) * 3).save(file, kind, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with TestClient(make_app(by_brightness(), SETTINGS, name="<greys>")) as client:
        yield client


def detail(answer: Any, status: int) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["x-content-type-options"] == "nosniff"
    return str(answer.json()["detail"])


# --- answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "value"),
    [("JPEG", 0), ("PNG", 255), ("WEBP", 255), ("GIF", 0), ("BMP", 255), ("TIFF", 0), ("AVIF", 255)],
)
def test_predict_matches_the_model(client: TestClient, kind: str, value: int) -> None:
    data = picture(value, kind=kind)
    answer = client.post("/predict?top_k=2", content=data, headers={"content-type": f"image/{kind.lower()}"})
    model = by_brightness()
    (expected,) = model.probabilities(model.preprocess_image(data)[None])
    (found,) = PredictResponse.model_validate(answer.json()).results
    assert found.label == ("bright" if value else "dark") and found.image == "image"
    assert {r.label: r.probability for r in found.top} == pytest.approx(
        dict(zip(model.classes, expected, strict=True)), abs=1e-6
    )
    assert answer.headers["cache-control"] == "no-store"


def test_forms_and_json_keep_image_order(client: TestClient) -> None:
    values = [255, 0, 0, 255]
    files = [("file", (f"{i}.png", picture(v))) for i, v in enumerate(values)]
    form = client.post("/predict?top_k=1", files=files).json()["results"]
    said = client.post(
        "/predict?top_k=1", json={"images": [base64.b64encode(picture(v)).decode() for v in values]}
    ).json()["results"]
    assert [r["label"] for r in form] == [r["label"] for r in said] == [("bright" if v else "dark") for v in values]
    assert [r["image"] for r in form] == ["0.png", "1.png", "2.png", "3.png"] and said[2]["image"] == "images[2]"
    one = client.post("/predict", json={"image": base64.b64encode(picture(255)).decode()}).json()["results"]
    assert [r["label"] for r in one] == ["bright"] and len(one[0]["top"]) == 2


@pytest.mark.parametrize("kind", ["image/jpg", "image/x-ms-bmp", "application/octet-stream", "IMAGE/PNG; q=1"])
def test_any_image_type_may_hold_any_image(client: TestClient, kind: str) -> None:
    for data in (picture(255), picture(255, kind="JPEG")):
        answer = client.post("/predict", content=data, headers={"content-type": kind})
        assert answer.json()["results"][0]["label"] == "bright"


def test_heic_is_named_and_says_what_to_do(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    _heic.cache_clear()
    data = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(60)
    for kind in ("image/heic", "image/jpeg", "application/octet-stream"):
        said = detail(client.post("/predict", content=data, headers={"content-type": kind}), 422)
        assert "a HEIC photo" in said and "convert it to JPEG" in said


def test_heic_is_served_with_its_extra(client: TestClient) -> None:
    pillow_heif = pytest.importorskip("pillow_heif", reason="the extra heic is not installed")
    pillow_heif.register_heif_opener()
    (result,) = client.post("/predict", content=picture(255, (64, 64), "HEIF"), headers=JPEG).json()["results"]
    assert result["label"] == "bright"


def test_first_frame_counts(client: TestClient) -> None:
    frames = [Image.new("L", (9, 7), value) for value in (255, 0, 0)]
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        file = io.BytesIO()
        frames[0].save(file, kind, save_all=True, append_images=frames[1:])
        (result,) = client.post("/predict", content=file.getvalue(), headers=JPEG).json()["results"]
        assert result["label"] == "bright", kind


def test_every_spelling_of_base64(client: TestClient) -> None:
    data = picture(255, (31, 33), "JPEG", comment=bytes(range(248, 256)) * 9)
    plain, url = base64.b64encode(data).decode(), base64.urlsafe_b64encode(data).decode()
    assert "-" in url and "_" in url and "=" in plain
    lines, crlf = base64.encodebytes(data).decode(), plain.replace("A", "A\r\n ")
    texts = [plain, url, url.rstrip("="), lines, crlf, f"data:image/jpeg;base64,{plain}", f"DATA:;x=y;BASE64,{url}"]
    for text in texts:
        (result,) = client.post("/predict", json={"image": text}).json()["results"]
        assert result["label"] == "bright", text[:40]
    for text in (
        "data:image/jpeg,abc",
        plain + "!",
        plain[:9] + "=" + plain[9:],
        "\u00e9" * 4,
    ):
        assert "not base64" in detail(client.post("/predict", json={"image": text}), 422)


def test_large_file_in_form(client: TestClient) -> None:
    noise = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (240, 240, 3), np.uint8)).save(noise, "PNG")
    assert 150_000 < len(noise.getvalue()) < SETTINGS.max_bytes
    assert client.post("/predict", files={"file": ("noise.png", noise.getvalue())}).status_code == 200


def test_features_match_the_model(client: TestClient) -> None:
    (found,) = FeaturesResponse.model_validate(
        client.post("/features", content=picture(255), headers=JPEG).json()
    ).results
    assert found.features == pytest.approx([1.0])


def test_unsupported_endpoint_is_404(client: TestClient) -> None:
    assert "does not provide evidence" in detail(client.post("/evidence", content=picture(0), headers=JPEG), 404)
    assert client.get("/model").json()["evidence"] is False and client.get("/model").json()["features"] is True


@pytest.mark.parametrize("exported", [False, True])
def test_evidence_sums_to_logit(exported: bool, tmp_path: Path) -> None:
    import torch

    from mlpmixer.inference.load import load
    from mlpmixer.models.configs import MixerConfig
    from mlpmixer.models.mixer import Mixer
    from mlpmixer.weights.model_file import ModelMeta, save_model

    torch.manual_seed(0)
    cfg = MixerConfig(
        image_size=(8, 12),
        patch_size=4,
        in_channels=1,
        num_classes=3,
        num_blocks=1,
        hidden_dim=8,
        tokens_mlp_dim=4,
        channels_mlp_dim=8,
    )
    network = Mixer(cfg)
    torch.nn.init.normal_(network.head.weight)
    torch.nn.init.normal_(network.head.bias)
    meta = ModelMeta(config=cfg, classes=("a", "b", "c"), preprocess=Preprocess(image_size=(8, 12), in_channels=1))
    save_model(tmp_path / "model.safetensors", network, meta)
    model = load(tmp_path / "model.safetensors")
    image = np.random.default_rng(0).integers(0, 256, (8, 12), np.uint8)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    with torch.inference_mode():
        logits = network.eval()(torch.from_numpy(model.preprocess.normalise(image[None, ..., None])))[0]
    if exported:
        pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
        from mlpmixer.exporters.export import export

        model = load(export(model, out=tmp_path / "model.onnx", data="digits", images=5, evidence=True).path)
    with TestClient(make_app(model)) as client:
        for k, name in enumerate("abc"):
            answer = client.post(
                f"/evidence?class={name}", content=file.getvalue(), headers={"content-type": "image/png"}
            )
            (found,) = EvidenceResponse.model_validate(answer.json()).results
            assert found.label == name and np.shape(found.evidence) == (2, 3)
            assert found.logit == pytest.approx(float(logits[k]), abs=1e-5) == found.bias + np.sum(found.evidence)
            assert found.probability == pytest.approx(float(logits.softmax(0)[k]), abs=1e-5)
        likeliest = client.post("/evidence", content=file.getvalue(), headers=JPEG).json()["results"][0]
        assert likeliest["label"] == "abc"[int(logits.argmax())]
        seen = Image.open(io.BytesIO(base64.b64decode(likeliest["seen"].removeprefix("data:image/png;base64,"))))
        np.testing.assert_array_equal(np.asarray(seen), image)
        assert "no class 'd'" in detail(client.post("/evidence?class=d", content=file.getvalue(), headers=JPEG), 422)


def test_unservable_models_raise_at_start() -> None:
    with pytest.raises(ValueError, match="takes 4"):
        make_app(by_brightness(in_channels=4))
    headless = Classifier(
        classes=(), preprocess=Preprocess(image_size=(8, 8)), logits=lambda x: x, pre_logits=lambda x: x
    )
    with pytest.raises(ValueError, match="no head"):
        make_app(headless)
    broken = Classifier(
        classes=("a",),
        preprocess=Preprocess(image_size=(8, 8)),
        logits=lambda x: np.full((1, 1), np.nan),
        pre_logits=len,
    )
    with pytest.raises(ValueError, match="not finite"):
        make_app(broken)


# --- refusals ---------------------------------------------------------------------------------------------------------


def png_of(width: int, height: int) -> bytes:
    """A header that says so much, and next to nothing behind it."""
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks
    )


def webp_of(width: int, height: int) -> bytes:
    body = (
        b"VP8X"
        + struct.pack("<I", 10)
        + bytes(4)
        + (width - 1).to_bytes(3, "little")
        + (height - 1).to_bytes(3, "little")
    )
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def jpeg_of(width: int, height: int) -> bytes:
    small = picture(0, (16, 16), "JPEG")
    at = small.index(b"\xff\xc0") + 5
    return small[:at] + struct.pack(">HH", height, width) + small[at + 4 :]


@pytest.mark.parametrize("bomb", [png_of(30_000, 30_000), webp_of(16_000, 16_000), jpeg_of(30_000, 30_000)])
def test_pixel_limit_uses_header(client: TestClient, bomb: bytes) -> None:
    assert "px exceeds the limit of 1,000,000 px" in detail(client.post("/predict", content=bomb, headers=JPEG), 413)


@pytest.mark.parametrize("size", [(9, 7), (300, 5)])
def test_size_from_header(size: tuple[int, int]) -> None:
    def found(data: bytes) -> tuple[int, int]:
        header = read_header(data)
        return header.width, header.height

    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"):
        assert found(picture(9, size, kind)) == size
    assert found(picture(9, size, "WEBP", lossless=True)) == size
    assert found(picture(9, size, "WEBP", exif=b"Exif\0\0" + b"x" * 20)) == size
    assert (
        found(picture(9, size, "JPEG", progressive=True, exif=b"Exif\0\0\xff\xc0" + bytes(60), comment=b"\xff")) == size
    )


def test_cost_follows_what_decoding_takes() -> None:
    size = (400, 300)
    deep = png_of(*size)[:24] + bytes([16, 6]) + png_of(*size)[26:]  # four channels of 16 bits
    costs = [read_header(data).cost_px for data in (picture(9, size, "JPEG"), picture(9, size), deep)]
    progressive = read_header(picture(9, size, "JPEG", progressive=True)).cost_px
    assert costs[0] < costs[1] < costs[2] / 2 and costs[0] < progressive
    assert 400 * 300 <= costs[1] < 1.1 * 400 * 300


def test_request_pixel_limit_comes_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = by_brightness()
    decoded = list[bytes]()
    preprocess = classifier.preprocess_image
    monkeypatch.setattr(classifier, "preprocess_image", lambda data: [decoded.append(data), preprocess(data)][1])
    images = [("file", (f"{i}.png", picture(0, (100, 50)))) for i in range(4)]
    with TestClient(make_app(classifier, Settings(max_pixels=15_000, max_request_pixels=15_000))) as client:
        assert "more than 15,000 px in one request" in detail(client.post("/predict", files=images), 413)
        assert not decoded
        assert client.post("/predict", files=images[:3]).status_code == 200 and len(decoded) == 3
        assert client.get("/model").json()["max_request_pixels"] == 15_000


def test_large_request_does_not_delay_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    classifier, gate, inside = by_brightness(), threading.Event(), threading.Event()
    preprocess = classifier.preprocess_image

    def slow(data: bytes) -> Any:
        if len(data) > 500:
            inside.set()
            assert gate.wait(10)
        return preprocess(data)

    monkeypatch.setattr(classifier, "preprocess_image", slow)
    large = picture(255, (3000, 3000), "PNG")
    with TestClient(make_app(classifier)) as client:
        answers: list[Any] = []
        asking = threading.Thread(
            target=lambda: answers.append(client.post("/predict", files=[("f", (str(i), large)) for i in range(3)]))
        )
        asking.start()
        assert inside.wait(10)
        assert client.post("/predict", content=picture(0), headers=JPEG).json()["results"][0]["label"] == "dark"
        assert not answers
        gate.set()
        asking.join(10)
        assert [r["label"] for r in answers[0].json()["results"]] == ["bright"] * 3


def test_files_of_endless_parts_are_refused(client: TestClient) -> None:
    png, jpeg = picture(9), picture(9, kind="JPEG")
    chunk = b"\0\0\0\0tEXu" + struct.pack(">I", zlib.crc32(b"tEXu"))
    for data in (
        png[:33] + (MAX_PARTS + 1) * chunk + png[33:],
        jpeg[:2] + (MAX_PARTS + 1) * b"\xff\xfe\0\2" + jpeg[2:],
    ):
        assert f"more than {MAX_PARTS:,}" in detail(client.post("/predict", content=data, headers=JPEG), 422)
    few = png[:33] + 100 * chunk + png[33:]
    assert client.post("/predict", content=few, headers=JPEG).status_code == 200


def test_jpeg_scan_limit() -> None:
    data = picture(9, (900, 900), "JPEG", progressive=True)
    bomb = data + b"\xff\xda" * 90_000
    with TestClient(make_app(by_brightness(), SETTINGS)) as client:
        assert "too many scans" in detail(client.post("/predict", content=bomb, headers=JPEG), 413)
        assert client.post("/predict", content=data, headers=JPEG).status_code == 200


@pytest.mark.parametrize(
    ("data", "status", "says"),
    [
        (b"", 415, "got an empty file"),
        (b"<svg/>", 415, "expected a JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF file"),
        (b"\x80\x04cposix\nsystem\n", 415, "expected a JPEG, PNG, WebP"),
        (b"/etc/passwd", 415, "expected a JPEG, PNG, WebP"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", 415, "expected a JPEG, PNG, WebP"),
        (
            picture(0, kind="TIFF", compression="tiff_lzw"),
            415,
            "a TIFF file with tiff_lzw compression: save it without",
        ),
        (picture(0, kind="TIFF", compression="jpeg"), 415, "jpeg compression"),
        (b"GIF89a" + bytes(20), 422, "image: "),
        (b"BM" + bytes(60), 422, "image: "),
        (b"II*\0" + bytes(60), 422, "image: "),
        (b"\0\0\0\x1cftypavif" + bytes(60), 422, "image: "),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(60), 422, "image: "),
        (picture(0, (64, 64), "JPEG")[:-20], 422, "image: cannot be decoded"),
        (picture(0, (64, 64), "JPEG")[:200], 422, "a damaged JPEG file"),
        (picture(0)[:40], 422, "image: "),
        (b"\xff\xd8\xff", 422, "a damaged JPEG file"),
        (b"\x89PNG\r\n\x1a\n", 422, "a damaged PNG file"),
        (b"RIFF\x04\x00\x00\x00WEBP", 422, "a damaged WEBP file"),
        (webp_of(5, 5), 422, "image: "),
        (png_of(0, 5), 422, "image: "),
    ],
)
def test_invalid_images_are_refused(client: TestClient, data: bytes, status: int, says: str) -> None:
    assert says in detail(client.post("/predict", content=data, headers=JPEG), status)


@pytest.mark.parametrize(
    "kind", ["", "text/plain", "application/x-www-form-urlencoded", "application/octet", "x" * 4000]
)
def test_unknown_content_type_is_415(client: TestClient, kind: str) -> None:
    assert "expected content-type image/jpeg" in detail(
        client.post("/predict", content=picture(0), headers={"content-type": kind}), 415
    )


def test_what_curl_sends_by_itself_is_told_the_header(client: TestClient) -> None:
    headers = {"content-type": "application/x-www-form-urlencoded"}
    assert "add -H 'content-type: image/jpeg'" in detail(
        client.post("/predict", content=picture(0), headers=headers), 415
    )


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"image": null}',
        '{"image": "aGk=", "images": null}',
        '{"image": 5}',
        '{"image": "a", "images": []}',
        '{"images": []}',
        '{"image": "aGk="} x',
        '{"path": "/etc/passwd"}',
        '{"image": "data:image/png,aGk="}',
        '{"image": "http://localhost/x.png"}',
        '{"images": ' + "[" * 50_000,
        '{"image": "\\ud800"}',
        '{"image": "é"}',
    ],
)
def test_malformed_json_is_422(client: TestClient, body: str) -> None:
    assert detail(client.post("/predict", content=body.encode(), headers={"content-type": "application/json"}), 422)


FILE_PART = b'--x\r\nContent-Disposition: form-data; name="f"; filename="a"\r\n\r\n' + picture(255)


def test_form_content_type_ignores_case(client: TestClient) -> None:
    answer = client.post(
        "/predict", content=FILE_PART + b"\r\n--x--\r\n", headers={"content-type": "Multipart/Form-Data; boundary=x"}
    )
    assert [result["image"] for result in answer.json()["results"]] == ["a"]


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"--x--\r\n", "multipart/form-data; boundary=x"),
        (b"--x\r\nbroken", "multipart/form-data; boundary=x"),
        (b"", "multipart/form-data; boundary=x"),
        (b"--x", "multipart/form-data"),
        (
            b'--x\r\nContent-Disposition: form-data; name="url"\r\n\r\nfile:///etc/passwd\r\n--x--\r\n',
            "multipart/form-data; boundary=x",
        ),
        (
            b'--x\r\nContent-Disposition: form-data; name="f"; filename="a"\r\n\r\ncut',
            "multipart/form-data; boundary=x",
        ),
        (
            FILE_PART + b"\r\n--x\r\nContent-Dispo",
            "multipart/form-data; boundary=x",
        ),  # a whole file, and a second one cut off
        (FILE_PART.replace(b"filename", b"name") + b"\r\n--x--\r\n", "multipart/form-data; boundary=x"),
        (
            FILE_PART.replace(b"\r\n\r\n", b"\r\nContent-Transfer-Encoding: x\r\n\r\n", 1) + b"\r\n--x--\r\n",
            "multipart/form-data; boundary=x",
        ),
    ],
)
def test_malformed_forms_are_422(client: TestClient, body: bytes, kind: str) -> None:
    answer = client.post("/predict", content=body, headers={"content-type": kind})
    assert detail(answer, 422)


def test_image_count_limit(client: TestClient) -> None:
    files = [("file", (f"{i}.png", picture(0))) for i in range(SETTINGS.max_images + 1)]
    assert "more than 4 images" in detail(client.post("/predict", files=files), 413)
    data = base64.b64encode(picture(0)).decode()
    assert "more than 4 images" in detail(client.post("/predict", json={"images": [data] * 5}), 413)


def test_byte_limit_with_and_without_length(client: TestClient) -> None:
    assert "more than 200,000 bytes" in detail(client.post("/predict", content=bytes(200_001), headers=JPEG), 413)

    def parts() -> Iterator[bytes]:
        for _ in range(30):
            yield bytes(10_000)

    assert "more than 200,000 bytes" in detail(client.post("/predict", content=parts(), headers=JPEG), 413)


@pytest.mark.parametrize("value", ["0", "-1", "x", "", "1e3", "9" * 5000])
def test_invalid_top_k_is_422(client: TestClient, value: str) -> None:
    assert "top_k" in detail(client.post(f"/predict?top_k={value}", content=picture(0), headers=JPEG), 422)


def test_unknown_methods_and_paths(client: TestClient) -> None:
    assert (
        client.head("/").status_code == client.head("/health").status_code == client.head("/ready").status_code == 200
    )
    assert client.get("/predict").status_code == client.put("/predict", content=bytes(10**6)).status_code == 405
    assert (
        client.get("/../../etc/passwd").status_code
        == client.post("/nothing", content=picture(0), headers=JPEG).status_code
        == 404
    )


def test_wrong_method_is_405_and_says_which_are_right(client: TestClient) -> None:
    for path in ("/", "/docs", "/health", "/ready", "/metrics", "/model", "/openapi.json"):
        assert client.head(path).status_code == 200
        for method in ("POST", "PUT", "DELETE", "OPTIONS"):
            answer = client.request(method, path, content=b"x" * 300_000, headers={"content-type": "text/plain"})
            assert detail(answer, 405) and answer.headers["allow"] == "GET, HEAD", path
    for method in ("GET", "PUT"):
        assert client.request(method, "/predict").headers["allow"] == "POST"
    assert detail(client.post("/nothing", content=b"x", headers={"content-type": "text/plain"}), 404)


@pytest.mark.parametrize("path", ["predict/?top_k=2", "docs/", "evidence/?class=a%2Fb"])
def test_redirects_are_relative(client: TestClient, path: str) -> None:
    method = "GET" if path == "docs/" else "POST"
    answer = client.request(method, f"/{path}", content=b"", follow_redirects=False)
    location = answer.headers["location"]
    assert answer.status_code == 307 and urljoin(
        f"https://a.b/mixer/{path}", location
    ) == f"https://a.b/mixer/{path}".replace("/?", "?").removesuffix("/")
    prefixed = TestClient(client.app, root_path="/mixer").request(method, f"/mixer/{path}", follow_redirects=False)
    assert prefixed.headers["location"] == location
    assert client.get("/docs//").status_code == 404


@pytest.mark.parametrize("name", ["content-type", "authorization", "origin", "host"])
def test_doubled_header_is_400(client: TestClient, name: str) -> None:
    headers = [("content-type", "image/png"), *[(name, "image/png")] * 2]
    assert f"the header {name} came" in detail(client.post("/predict", content=picture(0), headers=headers), 400)


def test_length_and_chunks_together_are_400_and_close(client: TestClient) -> None:
    for method in (b"POST /predict", b"GET /health"):
        with listening(client, 20) as connect:
            connection = connect()
            head = b" HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\ncontent-length: 5\r\n"
            connection.sendall(
                method + head + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /health HTTP/1.1\r\nhost: x\r\n\r\n"
            )
            answer = b""
            while part := connection.recv(1000):
                answer += part
            assert answer.startswith(b"HTTP/1.1 400 ") and answer.count(b"HTTP/1.1") == 1
            assert b"content-length and transfer-encoding came together" in answer


def test_requests_for_other_hosts_are_421() -> None:
    hosts = Serve(run="a.onnx").hosts("127.0.0.1")
    with TestClient(make_app(by_brightness(), SETTINGS, hosts=hosts)) as client:
        for host in ("localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000"):
            assert client.get("/model", headers={"host": host}).status_code == 200
        for host in (
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example:8000",
            "",
            "[",
            "0.0.0.0",
            "a@b",
        ):
            for path in ("/", "/model", "/health"):
                assert "--allow-host" in detail(client.get(path, headers={"host": host}), 421)
            answer = client.post("/predict", content=picture(0), headers=JPEG | {"host": host})
            assert detail(answer, 421) and answer.headers["connection"] == "close"


def test_default_hosts() -> None:
    serve = Serve(run="a.onnx")
    assert serve.hosts("192.168.0.5") is serve.hosts("0.0.0.0") is None
    assert replace(serve, token_file="t").hosts("127.0.0.1") is None
    assert {"localhost", "::1"} <= (serve.hosts("::1") or set())
    allowed = replace(serve, allow_host="mixer.example, B.example", host="0.0.0.0").hosts("0.0.0.0")
    assert allowed and {"mixer.example", "b.example", "localhost"} <= allowed and "evil.example" not in allowed
    for wrong in ("mixer.example:80", "http://mixer.example"):
        with pytest.raises(ValueError, match="--allow-host takes names without"):
            replace(serve, allow_host=wrong).hosts("0.0.0.0")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site", "origin": "http://testserver"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://testserver:81"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://["}, 403),
        ({"origin": "https://TestServer"}, 200),
        ({"sec-fetch-site": "same-origin", "origin": "https://named.by.a.proxy"}, 200),
        ({"sec-fetch-site": "none"}, 200),
    ],
)
def test_cross_site_posts_are_refused(client: TestClient, headers: dict[str, str], status: int) -> None:
    assert client.post("/predict", content=picture(0), headers=JPEG | headers).status_code == status
    assert client.get("/health", headers=headers).status_code == 200


def test_errors_do_not_echo_the_body(client: TestClient) -> None:
    mark = "GEHEIM" * 100
    field = f'--x\r\nContent-Disposition: form-data; name="{mark}"\r\n'
    for kind, body in (
        ("application/json", f'{{"{mark}": 1}}'),
        ("application/json", f'{{"image": "{mark}", "{mark}": 1}}'),
        ("application/json", f'{{"images": [{{"{mark}": 1}}]}}'),
        ("application/json", f'{{"image": "{mark}!"}}'),
        ("application/json", f'"{mark}"'),
        ("image/png", mark),
        ("image/png", "\x89PNG\r\n\x1a\n" + mark[:10]),
        ("multipart/form-data; boundary=x", f"{field}\r\n{mark}\r\n--x--\r\n"),
        ("multipart/form-data; boundary=x", f"{field}Content-Transfer-Encoding: {mark}\r\n\r\n{mark}\r\n--x--\r\n"),
        ("multipart/form-data; boundary=x", f"{mark}"),
    ):
        answer = client.post("/predict", content=body.encode("latin-1"), headers={"content-type": kind})
        assert answer.status_code in (415, 422) and "GEHEIM" not in answer.text and len(answer.text) < 300
    named = [("f", (mark, b"x"))]
    assert len(client.post("/predict", files=named).text) < 400


def test_hangup_drains_like_sigterm() -> None:
    app, stopped = make_app(by_brightness(), SETTINGS), list[int]()
    before = (
        signal.signal(signal.SIGTERM, lambda sig, _: stopped.append(sig)),
        signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )

    async def run() -> None:
        async with server.draining(app, 0.05).router.lifespan_context(app):
            signal.raise_signal(signal.SIGHUP)
            await asyncio.sleep(0)
            assert app.state.service.unready_reason() == "shutting down" and not stopped
            await asyncio.sleep(0.2)
            assert stopped == [signal.SIGTERM] and app.state.service.draining

    try:
        asyncio.run(run())
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGHUP, before[1])


def test_warnings_do_not_fill_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    filters, now = server.Seldom(), 0.0
    monkeypatch.setattr(server, "time", SimpleNamespace(monotonic=lambda: now))

    def passed(level: int, line: int) -> str:
        record = logging.LogRecord("uvicorn.error", level, "h11.py", line, "Invalid HTTP.", (), None)
        return record.getMessage() if filters.filter(record) else ""

    assert [passed(logging.WARNING, 1) for _ in range(4)] == ["Invalid HTTP.", "", "", ""]
    assert passed(logging.WARNING, 2) and passed(logging.ERROR, 1) and passed(logging.ERROR, 1)
    now = server.WARN_EVERY_S
    assert passed(logging.WARNING, 1) == "Invalid HTTP. (3 more since the last such line)"


def test_damaged_images_do_not_fill_the_log() -> None:
    tags = [(256, 10), (257, 10), (258, 8), (259, 1), (262, 1), (273, 8), (277, 60000)]  # the last: samples a pixel
    tiff = b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(struct.pack("<HHII", t, 3, 1, v) for t, v in tags)
    code = (
        "import logging.config; from mlpmixer.serve import headers, server; "
        f"logging.config.dictConfig(server.log_config()); headers.read_header({tiff + bytes(200)!r})"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 1 and "ImageError" in found.stderr and "samples per pixel" not in found.stderr


def test_openapi_names_the_token(client: TestClient) -> None:
    with TestClient(make_app(by_brightness(), SETTINGS, token="geheim")) as closed:
        api = closed.get("/openapi.json", headers={"authorization": "Bearer geheim"}).json()
    assert [(s["type"], s["scheme"]) for s in api["components"]["securitySchemes"].values()] == [("http", "bearer")]
    secured = {path for path, methods in api["paths"].items() for o in methods.values() if o.get("security")}
    assert secured == {"/metrics", "/model", "/predict", "/features", "/evidence"}
    assert all("401" in o["responses"] for p in secured for o in api["paths"][p].values())
    assert "securitySchemes" not in client.get("/openapi.json").json()["components"]


def test_token_is_required() -> None:
    with TestClient(make_app(by_brightness(), SETTINGS, token="geheim")) as client:
        for path in ("/", "/docs", "/health", "/ready"):
            assert client.get(path).status_code == 200
        for given in (None, "", "Bearer", "Bearer x", "Basic geheim", "geheim", "Bearer geheimer", "Bearer \xfc"):
            headers = JPEG | ({"authorization": given.encode("latin-1")} if given is not None else {})
            answer = client.post("/predict", content=picture(0), headers=headers)
            assert (
                "Authorization: Bearer TOKEN" in detail(answer, 401) and answer.headers["www-authenticate"] == "Bearer"
            )
        for path in ("/metrics", "/model", "/samples/0", "/openapi.json"):
            assert client.get(path).status_code == 401
            assert client.get(path, headers={"authorization": "bearer geheim"}).status_code == (
                404 if path == "/samples/0" else 200
            )
        assert (
            client.post("/predict", content=picture(0), headers=JPEG | {"authorization": "Bearer geheim"}).status_code
            == 200
        )


# --- how much at once -------------------------------------------------------------------------------------------------


def together(client: TestClient, count: int, gate: threading.Event, inside: int, **more: Any) -> list[Any]:
    """`count` requests at a time; the gate opens when `inside` of them are inside."""
    answers: list[Any] = [None] * count
    service = client.app.state.service  # type: ignore[attr-defined]

    def ask(i: int) -> None:
        answers[i] = client.post("/predict", content=picture(255 * (i % 2)), headers=JPEG, **more)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 10
    while time.monotonic() < until and not (
        service.batcher.admitted >= inside and sum(a is not None for a in answers) >= count - inside
    ):
        time.sleep(0.01)
    gate.set()
    for thread in threads:
        thread.join(10)
    return answers


@pytest.mark.parametrize(
    ("settings", "let_in", "status"),
    [
        (Settings(client_requests=2, answer_s=10), 2, 429),
        (Settings(requests=3, client_requests=0, answer_s=10), 3, 503),
        (Settings(queue=2, max_images=1, answer_s=10), 2, 503),
    ],
)
def test_excess_requests_are_told_to_retry(settings: Settings, let_in: int, status: int) -> None:
    gate = threading.Event()
    gate.set()
    with TestClient(make_app(by_brightness(gate), settings)) as client:
        gate.clear()
        answers = together(client, 6, gate, let_in)
        assert sorted(a.status_code for a in answers) == [200] * let_in + [status] * (6 - let_in)
        for i, answer in enumerate(answers):
            if answer.status_code == 200:
                assert answer.json()["results"][0]["label"] == ("bright" if i % 2 else "dark")
            else:
                assert detail(answer, status) and answer.headers["retry-after"] == "1"
        assert client.app.state.service.batcher.admitted == 0  # type: ignore[attr-defined]
        assert (
            client.post("/predict", content=picture(0), headers=JPEG).status_code == 200
        )  # and then there is room again


def test_answer_timeout() -> None:
    gate = threading.Event()
    gate.set()
    with TestClient(make_app(by_brightness(gate), Settings(answer_s=1))) as client:
        gate.clear()
        assert "no response within 1 s" in detail(client.post("/predict", content=picture(0), headers=JPEG), 503)
        gate.set()
        assert client.post("/predict", content=picture(0), headers=JPEG).status_code == 200


def test_shutdown_completes_accepted_requests() -> None:
    gate = threading.Event()
    gate.set()
    with ExitStack() as stack:
        client = stack.enter_context(TestClient(make_app(by_brightness(gate), SETTINGS)))
        service = client.app.state.service  # type: ignore[attr-defined]
        assert client.get("/ready").status_code == 200
        gate.clear()
        answers: list[Any] = []
        asking = threading.Thread(
            target=lambda: answers.append(client.post("/predict", content=picture(255), headers=JPEG))
        )
        asking.start()
        while not service.batcher.admitted:
            time.sleep(0.01)
        assert "connection" not in client.get("/health").headers
        service.leaving = True
        assert client.get("/ready").status_code == 503 and client.get("/health").status_code == 200
        assert client.get("/health").headers["connection"] == "close"
        service.draining = True
        refused = client.post("/predict", content=picture(255), headers=JPEG)
        assert (
            "shutting down" in detail(refused, 503)
            and refused.headers["retry-after"] == "1"
            and refused.headers["connection"] == "close"
        )
        gate.set()
        asking.join(10)
        assert answers[0].json()["results"][0]["label"] == "bright"


def asgi(app: Any, parts: list[Any], headers: dict[str, str], host: str = "1.2.3.4") -> tuple[int, dict[bytes, bytes]]:
    """One request by hand: `parts` are pieces of a body, or seconds to wait."""
    sent: list[Any] = []
    left = list(parts)

    async def receive() -> dict[str, Any]:
        while left and isinstance(left[0], float):
            await asyncio.sleep(left.pop(0))
        return (
            {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}
            if left
            else {"type": "http.disconnect"}
        )

    async def send(message: Any) -> None:
        sent.append(message)

    raw = [(key.encode(), value.encode()) for key, value in headers.items()]
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/predict",
        "headers": raw,
        "client": (host, 1),
        "query_string": b"",
        "state": {},
    }
    asyncio.run(app(scope, receive, send))
    return (sent[0]["status"], dict(sent[0]["headers"])) if sent else (0, {})


async def nothing(scope: Any, receive: Any, send: Any) -> None:
    message = await receive()
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"size", str(len(message["body"])).encode())]}
    )
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def test_slow_and_disconnected_clients() -> None:
    limited = LimitsMiddleware(nothing, Settings(upload_s=1), token="", draining=lambda: False, post_paths=["/predict"])
    assert asgi(limited, [b"a", 0.1, b"b"], JPEG) == (200, {b"size": b"2"})
    assert asgi(limited, [b"a", 60.0, b"b"], JPEG)[0] == 408
    assert asgi(limited, [], JPEG)[0] == 0  # no more than a header, and gone
    assert not limited.inside


def test_body_is_not_read_beyond_limit() -> None:
    limited = LimitsMiddleware(nothing, SETTINGS, token="", draining=lambda: False, post_paths=["/predict"])
    for parts, headers in (
        ([bytes(70_000)] * 4, {}),
        ([b"1"], {"content-length": "200001"}),
        ([bytes(200_001)], {"content-length": "5"}),
    ):
        status, answered = asgi(limited, parts, JPEG | headers)
        assert status == 413 and answered[b"connection"] == b"close"
    assert asgi(limited, [bytes(100_000), bytes(100_000)], JPEG) == (200, {b"size": b"200000"})


# --- batches ----------------------------------------------------------------------------------------------------------


def numbers(*values: float) -> list[np.ndarray]:
    return [np.full((1, 1, 1), v, np.float32) for v in values]


class Engine:
    """Answers the number in each image; notes its batches; waits for the gate."""

    def __init__(self) -> None:
        self.gate, self.batches = threading.Event(), list[list[float]]()

    def __call__(self, images: np.ndarray) -> list[float]:
        self.gate.wait(10)
        self.batches.append(images[:, 0, 0, 0].tolist())
        if -1 in self.batches[-1]:
            raise ValueError("minus one")
        return self.batches[-1]


def batched(engine: Engine, *asked: tuple[str, list[np.ndarray]], max_batch: int = 4) -> list[Any]:
    """The answers to requests that all wait while the engine is busy with a first one."""

    async def run() -> list[Any]:
        batcher = Batcher(
            {"a": engine, "b": engine}, batch_s=1e9, max_batch=max_batch, capacity=100, observe=lambda *_: None
        )
        first = asyncio.create_task(batcher.ask("a", numbers(0)))
        while batcher.busy_since is None:
            await asyncio.sleep(0.005)
        tasks = [asyncio.create_task(batcher.ask(kind, images)) for kind, images in asked]
        await asyncio.sleep(0)  # all of them wait now
        engine.gate.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert await first == [0]
        await asyncio.to_thread(batcher.close, 5)
        return answers

    return asyncio.run(run())


def test_batches_interleave_requests() -> None:
    engine = Engine()
    answers = batched(engine, ("a", numbers(1, 2, 3, 4, 5, 6)), ("a", numbers(7)), ("a", numbers(8, 9)))
    assert answers == [[1, 2, 3, 4, 5, 6], [7], [8, 9]]
    assert engine.batches[:2] == [[0], [1, 7, 8, 2]] and all(len(b) <= 4 for b in engine.batches)
    assert sorted(number for batch in engine.batches for number in batch) == list(range(10))


def test_kinds_take_turns() -> None:
    engine = Engine()
    answers = batched(engine, ("a", numbers(1, 2, 3, 4, 5, 6)), ("b", numbers(7)))
    assert answers == [[1, 2, 3, 4, 5, 6], [7]]
    assert engine.batches[1:] == [[1, 2, 3, 4], [7], [5, 6]]


def test_engine_error_reaches_its_requests_only() -> None:
    engine = Engine()
    first, second, third = batched(engine, ("a", numbers(-1, 1, 2, 3, 4, 5)), ("b", numbers(6)), ("b", numbers(7)))
    assert isinstance(first, ValueError) and (second, third) == ([6], [7])


def test_capacity_cancellation_and_close() -> None:
    engine = Engine()

    async def run() -> None:
        batcher = Batcher({"a": engine}, batch_s=1, max_batch=1, capacity=3, observe=lambda *_: None)
        with batcher.admit(2):
            with pytest.raises(QueueFull), batcher.admit(2):
                pass
            with batcher.admit(1):
                pass
        first = asyncio.create_task(batcher.ask("a", numbers(1)))
        given_up = asyncio.create_task(batcher.ask("a", numbers(2, 3)))
        last = asyncio.create_task(batcher.ask("a", numbers(4)))
        await asyncio.sleep(0.05)
        given_up.cancel()
        await asyncio.sleep(0.05)
        closing = asyncio.create_task(asyncio.to_thread(batcher.close, 5))
        await asyncio.sleep(0.05)
        with pytest.raises(QueueClosed):
            await batcher.ask("a", numbers(5))
        engine.gate.set()
        assert await first == [1] and await last == [4]  # accepted before the close
        assert await closing and not batcher.alive
        with pytest.raises(QueueClosed), batcher.admit(1):
            pass

    asyncio.run(run())
    assert engine.batches == [[1], [4]]


@pytest.mark.parametrize(("waiting", "sizes"), [([1, 1], [1, 1]), ([5], [2, 3]), ([2, 9], [5, 6]), ([20], [8, 8])])
def test_streams_share_waiting_images(waiting: list[int], sizes: list[int]) -> None:
    both, first = threading.Barrier(2, timeout=10), list[int]()

    def engine(images: np.ndarray) -> list[float]:
        if images.any() and len(first) < 2:
            first.append(len(images))
            both.wait()  # one after the other they would never meet
        return images[:, 0, 0, 0].tolist()

    async def run() -> None:
        batcher = Batcher({"a": engine}, streams=2, batch_s=1e9, max_batch=8, capacity=100, observe=lambda *_: None)
        await batcher.ask("a", numbers(0))  # so that it knows how long one takes
        asked = [numbers(*range(i, i + count)) for i, count in enumerate(waiting, 1)]
        with batcher._changed:  # none is begun before all wait
            tasks = [asyncio.create_task(batcher.ask("a", images)) for images in asked]
            await asyncio.sleep(0)
        for images, answer in zip(asked, await asyncio.gather(*tasks), strict=True):
            assert answer == [image[0, 0, 0] for image in images]
        assert await asyncio.to_thread(batcher.close, 5) and not batcher.alive

    asyncio.run(run())
    assert sorted(first) == sizes


def test_batch_size_follows_target_time() -> None:
    sizes: list[int] = []
    seconds = 0.0

    def engine(images: np.ndarray) -> list[float]:
        sizes.append(len(images))
        time.sleep(seconds * len(images))
        return images[:, 0, 0, 0].tolist()

    async def run() -> None:
        nonlocal seconds
        batcher = Batcher({"a": engine}, batch_s=0.07, max_batch=16, capacity=200, observe=lambda *_: None)
        for each, count in ((0.02, 8), (0.0, 150), (0.08, 24)):
            seconds = each
            assert await batcher.ask("a", numbers(*range(count))) == list(range(count))
            sizes.append(0)
        await asyncio.to_thread(batcher.close, 5)

    asyncio.run(run())
    slow, fast, slower = (list(map(int, part.split())) for part in " ".join(map(str, sizes)).split(" 0")[:3])
    assert slow[0] == 1 and 1 < max(slow) <= 3  # a sleep takes longer, never less
    assert max(fast) == 16 and slower[-1] == 1


def test_fixed_batch_graphs_are_filled() -> None:
    sizes: list[int] = []

    def engine(images: np.ndarray) -> list[float]:
        sizes.append(len(images))
        time.sleep(0.05)
        return images[:, 0, 0, 0].tolist()

    async def run() -> None:
        batcher = Batcher({"a": engine}, batch_s=0.01, min_batch=8, max_batch=4, capacity=99, observe=lambda *_: None)
        assert await batcher.ask("a", numbers(*range(20))) == list(range(20))
        await asyncio.to_thread(batcher.close, 5)

    asyncio.run(run())
    assert sizes == [8, 8, 4]


def test_busy_since_is_oldest_batch() -> None:
    gates = [threading.Event(), threading.Event()]

    def engine(images: np.ndarray) -> list[int]:
        gates[int(images[0, 0, 0, 0])].wait(10)
        return [0]

    async def run() -> None:
        batcher = Batcher({"a": engine}, streams=2, batch_s=1, max_batch=1, capacity=9, observe=lambda *_: None)

        async def ask(i: int) -> "asyncio.Task[list[Any]]":
            task = asyncio.create_task(batcher.ask("a", numbers(i)))
            await asyncio.sleep(0.1)
            return task

        assert batcher.busy_since is None
        one, since = await ask(0), batcher.busy_since
        other = await ask(1)
        assert since and batcher.busy_since == since
        gates[0].set()
        await one
        await asyncio.sleep(0.05)
        assert batcher.busy_since and batcher.busy_since > since + 0.05
        closing = asyncio.create_task(asyncio.to_thread(batcher.close, 0.1))
        assert await closing is False and not batcher.alive  # the one that is free has ended
        gates[1].set()
        assert await other == [0] and await asyncio.to_thread(batcher.close, 5)

    asyncio.run(run())


# --- what else it says ------------------------------------------------------------------------------------------------


def test_metrics_count_known_paths_only(client: TestClient) -> None:
    def value(line: str) -> float:
        found = re.search(rf"^{re.escape(line)} (\S+)$", client.get("/metrics").text, re.M)
        return float(found[1]) if found else 0.0

    counted = (("/predict", 200), ("/predict", 422), ("other", 404))
    lines = [f'mlpmixer_answers_total{{path="{path}",status="{status}"}}' for path, status in counted]
    lines.append('mlpmixer_batch_images_sum{kind="predict"}')
    before = [value(line) for line in lines]
    client.post("/predict", files=[("f", ("a", picture(0))), ("f", ("b", picture(0)))])
    client.post("/predict", content=b"\xff\xd8\xff", headers=JPEG)
    client.get("/made/up")
    after = [value(line) for line in lines]
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 1, 1, 2]
    assert value("mlpmixer_images_inside") == 0 and value("process_resident_memory_bytes") > 1e6
    assert "made" not in client.get("/metrics").text


def test_page_content_security_policy(client: TestClient) -> None:
    answer = client.get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and policy.count("'sha256-") == 2
    assert not re.findall(r"(?:https?:)?//\w", answer.text)
    assert not re.findall(r"<[^>]+\s(?:on\w+|style|src)=", answer.text), "the policy forbids these"
    docs = client.get("/docs")
    assert docs.headers["content-security-policy"] == page.policy_of(docs.text) != policy
    assert "<style>" in docs.text and set(re.findall(r"(?:https?:)?//\w[^/]*", docs.text)) == {"http://127.0.0.1:8000"}


def test_docs_show_how_to_send_an_image(client: TestClient) -> None:
    docs = client.get("/docs").text
    assert "--data-binary @photo.jpg" in docs and "urllib.request.Request(" in docs and "await fetch(" in docs
    assert "authorization" not in docs.partition("<script>")[0] and 'name="token"' not in docs
    private = TestClient(make_app(by_brightness(), token="geheim", name="secret")).get("/docs").text
    assert "secret" not in private and "bright" not in private, "nothing of the model without the token"
    assert private.count("Bearer TOKEN") == 3 and 'name="token"' in private


def test_samples_are_small_and_without_names_and_metadata(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "taken at home"
    for i in range(14):
        Image.new("RGB", (1300, 900 + i), (200, 10, i)).save(tmp_path / f"secret-{i:02}.jpg", exif=exif)
    samples = page.read_samples(str(tmp_path))
    assert len(samples) == page.MOST_SAMPLES and not any(b"home" in file or b"secret" in file for file in samples)
    assert Image.open(io.BytesIO(samples[0])).size == (640, 443)
    with TestClient(make_app(by_brightness(), samples=samples)) as client:
        assert client.get("/model").json()["samples"] == 12
        answer = client.get("/samples/11")
        assert answer.content == samples[11] and answer.headers["content-type"] == "image/png"
        assert client.get("/samples/12").json() == {"detail": "there are 12 samples, counted from 0"}
        assert client.get("/samples/-1").status_code == 404 and client.get("/samples/a").status_code == 422
    with TestClient(make_app(by_brightness(), samples=samples, token="geheim")) as client:
        assert client.get("/samples/0").status_code == 401


def test_folder_without_samples_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the folder holds no image files"):
        page.read_samples(str(tmp_path))
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"a\.png"):
        page.read_samples(str(tmp_path))
    with pytest.raises(ValueError, match="--samples nowhere: expected a folder of images"):
        Serve(run="digits", samples="nowhere")()


def test_openapi_lists_endpoints_and_statuses(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/predict", "/features", "/evidence", "/model", "/health", "/ready", "/metrics"} == set(paths)
    for path in ("/predict", "/features", "/evidence"):
        assert {"200", "400", "403", "408", "413", "415", "421", "422", "429", "503"} <= set(
            paths[path]["post"]["responses"]
        )
        content = paths[path]["post"]["requestBody"]["content"]
        assert {"image/jpeg", "image/avif", "multipart/form-data", "application/json"} <= set(content)
        assert [s["required"] for s in content["application/json"]["schema"]["oneOf"]] == [["image"], ["images"]]
    (of_class,) = paths["/evidence"]["post"]["parameters"]
    assert of_class["schema"]["enum"] == ["dark", "bright"]
    docs = client.get("/docs").text
    assert "POST /predict" in docs and "?top_k" in docs and "&lt;greys&gt;" in docs and "<greys>" not in docs
    assert page.docs({"info": {"title": "t", "version": "1"}, "paths": {}, "components": {"schemas": {}}}).endswith(
        "</html>"
    )


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"max_bytes": 0}, "--max-bytes must be more than 0"),
        ({"max_request_pixels": 9}, "--max-request-pixels 9 is too small for one image"),
        ({"queue": 3}, "--queue 3 is too small"),
        ({"drain_s": -1}, "--drain-s"),
    ],
)
def test_invalid_settings_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Settings(**wrong)


@pytest.mark.parametrize(
    ("asked", "cores", "streams"),
    [
        ({}, 4, 2),
        ({}, 1, 1),
        ({"workers": 2}, 4, 1),
        ({"runtime": RuntimeOptions(threads=2)}, 4, 1),
        ({"run": "runs/a", "device": "cpu"}, 4, 2),
    ],
)
def test_default_number_of_streams(
    asked: dict[str, Any], cores: int, streams: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "cores", lambda: cores)
    assert Serve(**{"run": "a.onnx"} | asked).streams_of_a_worker() == streams
    assert Serve(**{"run": "a.onnx"} | asked, streams=3).streams_of_a_worker() == 3


def test_dead_worker_is_noticed_at_once() -> None:
    process = Process(uvicorn.Config(nothing), [])
    workers = object.__new__(Workers)  # without its signal handlers
    workers.processes, workers.should_exit = [process], threading.Event()
    workers.config = uvicorn.Config(nothing, timeout_worker_healthcheck=60)
    process.process = SimpleNamespace(
        is_alive=lambda: True, kill=lambda: None, join=lambda: None, exitcode=STARTUP_FAILURE, pid=1
    )
    start = time.monotonic()
    workers.keep_subprocess_alive()
    assert workers.should_exit.is_set() and time.monotonic() - start < 10


@contextmanager
def listening(client: TestClient, connections: int) -> Iterator[Callable[[], socket.socket]]:
    """The app behind a real socket: what opens a connection to it."""
    config = uvicorn.Config(
        client.app, http=TimeoutProtocol, ws="none", lifespan="off", limit_concurrency=connections, log_level="error"
    )
    with ExitStack() as stack:
        sock = stack.enter_context(listen("127.0.0.1", 0))
        sock.listen()  # whoever comes before the service is up waits
        service = uvicorn.Server(config)
        thread = threading.Thread(target=service.run, kwargs={"sockets": [sock]})
        thread.start()
        stack.callback(thread.join)
        stack.callback(setattr, service, "should_exit", True)
        yield lambda: stack.enter_context(socket.create_connection(sock.getsockname(), timeout=30))


def test_idle_connections_make_room(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(connection: socket.socket) -> bytes:
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        answer = b""
        while not answer.endswith(b"\r\n\r\nok") and (part := connection.recv(1000)):
            answer += part
        return answer.partition(b"\r\n")[0]

    monkeypatch.setattr(server, "CONNECTIONS", 20)
    monkeypatch.setattr(server, "MIN_IDLE_S", 0.0)
    with listening(client, 20) as connect:
        opened = []
        for _ in range(30):
            opened.append(connect())
            assert ask(opened[0]) == b"HTTP/1.1 200 OK"  # the one that asks stays, though it is the oldest
        assert opened[1].recv(1) == b""  # closed
        assert all(ask(connection) == b"HTTP/1.1 200 OK" for connection in opened[-9:])


def test_requests_that_wait_unread_at_shutdown_are_answered(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    connections: list[TimeoutProtocol] = []
    made = TimeoutProtocol.connection_made
    monkeypatch.setattr(TimeoutProtocol, "connection_made", lambda c, t: [connections.append(c), made(c, t)])
    loops: list[asyncio.AbstractEventLoop] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        loops.append(asyncio.get_running_loop())
        await client.app(scope, receive, send)

    ask = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
    with listening(SimpleNamespace(app=app), 20) as connect:  # type: ignore[arg-type]
        used, fresh = connect(), connect()
        used.sendall(ask)
        while not used.recv(1000).endswith(b"ok"):
            pass

        def shut_down() -> None:  # as the server does, with requests that came during something long
            time.sleep(0.3)
            for connection in connections:
                connection.shutdown()

        loops[0].call_soon_threadsafe(shut_down)
        time.sleep(0.1)
        for connection in (used, fresh):
            connection.sendall(ask)
        for connection in (used, fresh):
            answer = b""
            while part := connection.recv(1000):  # until it is closed
                answer += part
            assert answer.startswith(b"HTTP/1.1 200") and answer.endswith(b"ok")


@pytest.mark.parametrize("kind", [b"text/plain", b"image/jpeg"])  # refused before the body is read, and while it is
def test_non_http_body_is_400(client: TestClient, kind: bytes) -> None:
    header = b"POST /predict HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\ncontent-type: " + kind + b"\r\n\r\n"
    with listening(client, 20) as connect:
        at_once, later = connect(), connect()
        at_once.sendall(header + b"no chunk\r\n")
        assert at_once.recv(1000).startswith(b"HTTP/1.1 400 ")
        later.sendall(header)
        time.sleep(0.2)
        later.sendall(b"no chunk\r\n")
        assert re.match(b"HTTP/1.1 4[01][05] ", later.recv(1000))
        while later.recv(1000):
            pass
    assert 'status="500"' not in client.get("/metrics").text


def test_serve_does_not_import_torch() -> None:
    code = "import sys, mlpmixer.serve.app, mlpmixer.serve.server, mlpmixer.cli; print('torch' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert (
        subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout.strip()
        == "False"
    )


def test_answers_are_serialised_by_their_schema(client: TestClient) -> None:
    assert client.get("/openapi.json").json() == client.app.openapi()  # type: ignore[attr-defined]
    routes = [route for route in client.app.routes if isinstance(route, APIRoute)]  # type: ignore[attr-defined]
    modelled = {route.path for route in routes if route.response_model}
    assert modelled == {"/predict", "/features", "/evidence", "/model"}
    for route in routes:
        if route.path in modelled:
            model = get_type_hints(route.endpoint, include_extras=True)["return"]
            assert issubclass(model, BaseModel) and issubclass(route.response_model, model)


def test_engine_failure_is_500_json() -> None:
    classifier = by_brightness()
    with TestClient(make_app(classifier), raise_server_exceptions=False) as client:
        client.app.state.service.compute["features"] = lambda images: np.full((len(images), 1), np.nan)  # type: ignore[attr-defined]
        answer = client.post("/features", content=picture(0), headers=JPEG)
        assert answer.status_code == 500 and answer.json() == {"detail": "internal error; see the log of the service"}
