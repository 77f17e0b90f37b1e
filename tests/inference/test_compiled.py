"""A run on compiled kernels without torch: the same answers, or torch as before."""

import dataclasses
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.models import DIGITS, GREY, OBLONG, PARTS, classifier_of, pixels_for, random_mixer, save_run
from helpers.processes import python
from PIL import Image

from mlpmixer import cli
from mlpmixer.inference import compiled_classifier
from mlpmixer.inference.engines.compiled import on_threads
from mlpmixer.inference.load import load
from mlpmixer.models import kernels, native
from mlpmixer.models.architecture import build
from mlpmixer.models.configs import GMLPConfig, MixerConfig
from mlpmixer.weights.model_file import CheckpointError, read_tensors, save_model, write_tensors

pytestmark = pytest.mark.skipif(bool(kernels.missing()), reason="needs Linux and a C compiler")

ODD = MixerConfig(
    image_size=(20, 28),
    patch_size=4,
    num_classes=10,
    num_blocks=3,
    hidden_dim=19,
    tokens_mlp_dim=50,
    channels_mlp_dim=65,
    activation="gelu_erf",
    dropout=0.1,
    drop_path=0.1,
)


def run_of(cfg: MixerConfig, folder: Path, **options: object) -> Path:
    classes = tuple(DIGITS[: cfg.num_classes])
    return save_run(classifier_of(cfg, random_mixer(cfg), classes=classes, **options), folder)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_classifier, "has_gpu", lambda: False)


@pytest.mark.parametrize(
    ("cfg", "loss"),
    [(GREY, "softmax"), (OBLONG, "sigmoid"), (ODD, "softmax"), (dataclasses.replace(GREY, num_classes=0), "softmax")],
    ids=["grey", "sigmoid", "odd sizes", "no head"],
)
def test_the_answers_are_those_of_torch(cfg: MixerConfig, loss: str, tmp_path: Path) -> None:
    run = run_of(cfg, tmp_path / "run", loss=loss)
    ours, theirs = load(run, engine="compiled"), load(run)
    assert ours.runtime and ours.runtime.engine == "compiled" and ours.network is None and "compiled" in repr(ours)
    images = pixels_for(theirs, 7)
    np.testing.assert_allclose(ours.features(images), theirs.features(images), atol=2e-5, rtol=1e-5)
    if cfg.num_classes:
        np.testing.assert_allclose(ours.probabilities(images), theirs.probabilities(images), atol=1e-5)
        both = ours.probabilities_and_features(images)
        np.testing.assert_array_equal(both[0], ours.probabilities(images))
        assert ours.probabilities(images[:0]).shape == (0, cfg.num_classes)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(ours)).features(images), ours.features(images))
    assert (ours.classes, ours.preprocess, ours.meta, ours.sigmoid) == (
        *(theirs.classes, theirs.preprocess, theirs.meta, theirs.sigmoid),
    )


def test_weights_in_float16_are_taken(tmp_path: Path) -> None:
    made = classifier_of()
    assert made.network and made.meta
    save_model(tmp_path / "half.safetensors", made.network, made.meta, "float16")
    ours, theirs = (load(tmp_path / "half.safetensors", engine=engine) for engine in ("compiled", "torch"))
    images = pixels_for(theirs, 3)
    np.testing.assert_allclose(ours.probabilities(images), theirs.probabilities(images), atol=1e-5)


def test_what_is_not_a_plain_mixer_is_computed_by_torch(tmp_path: Path) -> None:
    sizes = {"image_size": 8, "patch_size": 2, "in_channels": 1, "num_classes": 10, "num_blocks": 1, "hidden_dim": 8}
    gmlp = classifier_of(GREY).meta
    assert gmlp
    gmlp = dataclasses.replace(gmlp, config=GMLPConfig(**sizes, channels_mlp_dim=16))
    save_model(tmp_path / "gmlp.safetensors", build(gmlp.config), gmlp)
    for name, run in (("gmlp", tmp_path / "gmlp.safetensors"), ("Mixer in parts", run_of(PARTS, tmp_path / "run"))):
        with pytest.raises(ValueError, match=f"without torch: .* for the plain Mixer, and .* holds a {name}"):
            load(run, engine="compiled")
        assert str(load(run, engine="auto").runtime).startswith("torch")


@pytest.mark.parametrize(
    "options", [{"precision": "bfloat16"}, {"image_size": 16}, {"device": "mps"}], ids=["bfloat16", "size", "device"]
)
def test_what_only_torch_can_do_is_refused(options: dict[str, object], tmp_path: Path) -> None:
    run = run_of(GREY, tmp_path / "run")
    with pytest.raises(ValueError, match="cannot be computed without torch"):
        load(run, engine="compiled", **options)  # type: ignore[arg-type]


def test_a_gpu_and_a_missing_compiler_leave_it_to_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(GREY, tmp_path / "run")
    monkeypatch.setattr(compiled_classifier, "has_gpu", lambda: True)
    assert str(load(run, engine="auto", device="auto").runtime).startswith("torch")
    assert str(load(run, engine="auto", device="cpu").runtime).startswith("compiled")
    assert str(load(run, engine="compiled", device="auto").runtime).startswith("compiled")  # which has but the CPU
    monkeypatch.setattr(native, "FLAGS", ["--no-such-option"])
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    native.library.cache_clear()
    try:
        assert str(load(run, engine="auto").runtime).startswith("torch")
        with pytest.raises(ValueError, match=r"cc cannot compile block\.c"):
            load(run, engine="compiled")
    finally:
        native.library.cache_clear()


def test_damaged_compiled_code_is_compiled_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, open_library, tried = run_of(GREY, tmp_path / "run"), native.ctypes.CDLL, []

    def fails_first(path: str) -> object:
        tried.append(path)
        if len(tried) == 2:  # the first compiles, and the second finds what it left
            raise OSError("file too short")
        return open_library(path)

    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(native.ctypes, "CDLL", fails_first)
    try:
        for _ in range(2):
            native.library.cache_clear()
            load(run, engine="compiled")
        assert len(tried) == 3 and len(set(tried)) == 1
    finally:
        native.library.cache_clear()


def test_activations_that_overflow_are_refused_as_by_torch(tmp_path: Path) -> None:
    model = random_mixer(GREY)
    torch.nn.init.constant_(model.stem.weight[0, :1].detach(), 1e30)
    run = save_run(classifier_of(GREY, model, classes=tuple(DIGITS)), tmp_path / "run")
    for engine in ("compiled", "torch"):
        classifier = load(run, engine=engine)
        with pytest.raises(ValueError, match="not finite"):
            classifier.probabilities(pixels_for(classifier, 2) | 1)


def test_a_damaged_file_is_refused_as_by_torch(tmp_path: Path) -> None:
    run = run_of(GREY, tmp_path / "run")
    file = run / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    said = []
    for engine in ("compiled", "auto", "torch"):
        with pytest.raises(ValueError, match="is damaged: its content") as raised:
            load(run, engine=engine)
        said.append(str(raised.value))
    assert len(set(said)) == 1


@pytest.mark.parametrize(
    "model",
    [{"config": {"patch_size": 3}}, {"config": {"num_blocks": 10_000}}, {"config": None}, {"network": "build"}],
    ids=["patches", "blocks", "no config", "a function's"],
)
def test_a_description_that_cannot_be_is_refused_as_by_torch(model: dict[str, object], tmp_path: Path) -> None:
    file = run_of(GREY, tmp_path / "run") / "model.safetensors"
    tensors, meta = read_tensors(file)
    for name, value in model.items():
        meta["model"][name] = meta["model"][name] | value if isinstance(value, dict) else value
    write_tensors(file, tensors, {"model": meta["model"]})
    said = []
    for engine in ("auto", "torch"):
        with pytest.raises(CheckpointError, match=re.escape(str(file))) as raised:
            load(file, engine=engine)
        said.append(str(raised.value))
    assert said[0] == said[1]


def test_images_of_another_size_are_refused_as_by_torch(tmp_path: Path) -> None:
    run = run_of(GREY, tmp_path / "run")
    for engine in ("compiled", "torch"):
        for change in ({"image_size": (16, 16)}, {"in_channels": 3, "mean": (0.5,), "std": (0.5,)}):
            classifier = load(run, engine=engine)
            classifier.preprocess = dataclasses.replace(classifier.preprocess, **change)  # type: ignore[arg-type]
            with pytest.raises(ValueError, match=r"expected .*\(B, 1, 8, 8\)"):
                classifier.probabilities(pixels_for(classifier, 3))


@pytest.mark.parametrize("what", ["nan", "shape"])
def test_wrong_weights_are_left_to_torch_to_explain(what: str, tmp_path: Path) -> None:
    run = run_of(GREY, tmp_path / "run")
    tensors, meta = read_tensors(run / "model.safetensors")
    bias = tensors["head.bias"]
    tensors["head.bias"] = bias.fill_(torch.nan) if what == "nan" else bias[:-1]
    write_tensors(run / "model.safetensors", tensors, {"model": meta["model"]})
    with pytest.raises(ValueError, match="is not finite: training diverged" if what == "nan" else "do not fit"):
        load(run, engine="auto")


def test_threads_are_those_of_the_call() -> None:
    openmp = native.library("float32")
    before = openmp.omp_get_max_threads()
    with on_threads(3):
        assert openmp.omp_get_max_threads() == 3
    assert openmp.omp_get_max_threads() == before


def test_predict_does_without_torch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "5.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30), np.uint8)).save(picture)
    assert cli.main(["predict", "digits", str(picture), "--engine", "torch"]) == 0
    torchs = capsys.readouterr().out
    done = python(
        f"import sys\nfrom mlpmixer import hardware\nfrom mlpmixer.cli import main\n"
        f"assert main(['predict', 'digits', {str(picture)!r}, '--device', 'cpu', '--threads', '1']) == 0\n"
        f"assert 'torch' not in sys.modules and hardware.peak_mib() < 120, hardware.peak_mib()"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == torchs and "is computed by compiled" in done.stderr
