"""An export is compared with its model on real images, and one wrong answer is enough to refuse it."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures.preprocessing import MODELS, cases
from helpers.exports import web_runtime
from helpers.models import DIGITS, GREY, PARTS, classifier_of, pixels_for
from PIL import Image

from mlpmixer.data.config import Data
from mlpmixer.evaluation.data import open_for
from mlpmixer.exporters import graph as graph_module
from mlpmixer.exporters.check import PIXEL_TOLERANCE, check, check_fit, sample
from mlpmixer.exporters.export import TARGETS, ExportMismatch, export
from mlpmixer.exporters.graph import Graph
from mlpmixer.exporters.graph_resize import Fitted
from mlpmixer.exporters.job import new_job
from mlpmixer.inference.classifier import Classifier
from mlpmixer.inference.engines import Runtime
from mlpmixer.inference.exported import Export
from mlpmixer.inference.exported_classifier import Exported
from mlpmixer.inference.load import load

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")


def test_resize_in_the_graph_but_for_rounding() -> None:
    different = []
    for case in cases(*MODELS):
        found = Fitted(case.preprocess)(torch.from_numpy(case.decoded[None].copy()))[0].permute(1, 2, 0).numpy()
        off = np.abs(found - case.pixels)
        assert off.max() <= PIXEL_TOLERANCE, case
        different.append((off > 0).mean())
    assert np.mean(different) < 0.03


def test_a_graph_of_any_size_equals_pillow(tmp_path: Path) -> None:
    cfg = dataclasses.replace(PARTS, in_channels=3)
    model = classifier_of(cfg, fit="pad")
    written = export(model, out=tmp_path / "model.onnx", data="digits", images=30, any_size=True)
    fit = written.checked.fit
    assert fit and fit.n == 60 and fit.pixel_max_diff <= 1 and fit.pixels_different < 0.03 and fit.agreeing == 60
    found = load(written.path)
    assert isinstance(found, Exported)
    own = pixels_for(model, 3)
    np.testing.assert_array_equal(found.export(own, "pixels")[0], own)  # an image of the model's size passes unchanged
    np.testing.assert_allclose(found.probabilities(own), model.probabilities(own), atol=1e-5)
    for case in cases(model.preprocess):
        pixels, p = found.export(np.stack([case.decoded, 255 - case.decoded]), "pixels", "probabilities")
        assert pixels.dtype == np.uint8 and np.abs(pixels[0].astype(int) - case.pixels).max() <= PIXEL_TOLERANCE, case
        np.testing.assert_allclose(p, model.probabilities(pixels), atol=1e-5)


def test_two_levels_off_pass_the_check(tmp_path: Path) -> None:
    """There many values lie just between two levels, after each axis."""
    rng = np.random.default_rng(0)
    for i in range(6):
        folder = tmp_path / "photos" / "test" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32), np.uint8)).save(folder / f"{i}.png")
    model = classifier_of(dataclasses.replace(GREY, image_size=48, patch_size=12))
    graph = Graph(new_job(model, top_k=2, any_size=True))

    def compute(images: Any, outputs: tuple[str, ...]) -> list[Any]:
        with torch.inference_mode():
            found = graph(torch.tensor(images))
        return [found[name].numpy() for name in outputs]

    exported = dataclasses.replace(answering(model), outputs=("pixels", "probabilities"), compute=compute)
    assert (
        check_fit(model, exported, sample(open_for(model, Data(name=str(tmp_path / "photos"))), 6)).pixel_max_diff == 2
    )


def test_a_wrong_resize_fails_the_check(tmp_path: Path) -> None:
    model = classifier_of(GREY)
    own = answering(model)

    def compute(images: Any, outputs: tuple[str, ...]) -> list[Any]:
        pixels = np.stack([model.preprocess_image(image) for image in images])
        pixels[..., 0, 0, 0] ^= 4
        return [pixels if name == "pixels" else own.compute(pixels, (name,))[0] for name in outputs]

    wrong = dataclasses.replace(own, outputs=(*own.outputs, "pixels"), compute=compute)
    with pytest.raises(ExportMismatch, match="differ from Pillow's by up to 4 levels of 255; expected at most 2"):
        check_fit(model, wrong, sample(open_for(model, Data(name="digits")), 5))
    with pytest.raises(ValueError, match="this model has short_side_crop, bicubic"):
        bicubic = classifier_of(GREY, fit="short_side_crop", interpolation="bicubic")
        export(bicubic, out=tmp_path / "a.onnx", data="digits", any_size=True)


def answering(model: Classifier, change: Any = lambda p, i: p) -> Export:
    """An export in numpy, whose probabilities (K,) of image i of a batch are changed."""
    assert model.meta is not None

    def compute(images: Any, outputs: tuple[str, ...]) -> list[Any]:
        p = np.stack([change(p, i) for i, p in enumerate(model.probabilities(images))])
        top = np.argsort(-p, axis=1, kind="stable")[:, :3]
        known = {"probabilities": p, "top_probabilities": np.take_along_axis(p, top, 1), "top_classes": top}
        return [known[name] if name in known else model.features(images) for name in outputs]

    runtime = Runtime(engine="numpy", version="2", precision="float32", threads=1)
    outputs = ("probabilities", "top_probabilities", "top_classes", "features")
    return Export(Path("x.onnx"), model.meta, {}, None, outputs, runtime, compute)


def test_one_wrong_answer_fails_the_check() -> None:
    model = classifier_of(GREY)
    given = sample(open_for(model, Data(name="digits")), 100)
    same = check(model, answering(model), given)
    same.require_float()
    assert (same.n, same.agreeing, same.agreement, same.probability_max_diff, same.unreadable) == (
        100,
        100,
        1.0,
        0.0,
        0,
    )
    labels = given.images.labels
    right = sum(
        p.label == DIGITS[y]
        for p, y in zip(model.predict([given.images.source(i) for i in range(100)]), labels, strict=True)
    )
    assert same.right == right

    def swapped(p: np.ndarray, i: int) -> np.ndarray:  # the second batch holds 36 images
        order = np.argsort(-p)
        p[order[:2]] = p[order[1::-1]] if i == 50 else p[order[:2]]
        return p

    other = check(model, answering(model, swapped), given)
    assert other.agreeing == 99
    with pytest.raises(ExportMismatch, match=r"on 100 images of digits top-1 is the same for 99"):
        other.require_float()
    blurred = check(model, answering(model, lambda p, i: p * np.float32(1 - 2e-4)), given)
    assert blurred.agreeing == 100
    with pytest.raises(ExportMismatch, match="expected all of them, and less than 1e-04"):
        blurred.require_float()
    with pytest.raises(ExportMismatch, match="features differ by up to nan"):
        dataclasses.replace(same, feature_max_diff=float("nan")).require_float()


def test_the_sample_takes_test_images_first() -> None:
    model = classifier_of(GREY)
    assert model.meta
    model.meta = dataclasses.replace(model.meta, data=Data(name="digits"))
    few, many, all_ = (sample(open_for(model, "digits"), n) for n in (10, 400, 10_000))
    assert (len(few.images), few.n_test) == (10, 10)
    assert (len(many.images), many.n_test) == (400, 360)
    assert all_.n_test == 360 and len(all_.images) == 360 + 1293
    with pytest.raises(ValueError, match="at least 1 image, got 0"):
        sample(open_for(model, Data(name="digits")), 0)


def test_a_test_split_is_enough(tmp_path: Path) -> None:
    for i in range(6):
        folder = tmp_path / "photos" / "test" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (i, i, i)).save(folder / f"{i}.png")
    model = classifier_of(GREY)
    given = sample(open_for(model, Data(name=str(tmp_path / "photos"))), 10)
    assert (given.data, len(given.images), given.n_test) == ("photos", 6, 6)
    (tmp_path / "photos" / "test" / "a" / "0.png").write_bytes(b"broken")
    checked = check(model, answering(model), given)
    assert (checked.n, checked.unreadable, checked.right) == (5, 1, None)  # its classes are others


@pytest.mark.parametrize(
    "to", [to if to in ("onnx", "pt2") else pytest.param(to, marks=pytest.mark.exports) for to in TARGETS]
)
def test_a_mismatch_leaves_nothing(
    to: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Brighter(Graph):
        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            return super().forward((images // 2 * 2 + 1).to(images.dtype))

    monkeypatch.setattr(graph_module, "Graph", Brighter)
    web = {"page_runtime": web_runtime(tmp_path_factory.mktemp("runtime") / "package")} if to == "web" else {}
    with pytest.raises(ExportMismatch, match="the export disagrees with the model"):
        export(
            classifier_of(GREY), to, **web, out=tmp_path / f"a{Path(TARGETS[to].name).suffix}", data="digits", images=20
        )
    assert not list(tmp_path.iterdir())
