"""Compiled kernels are the plain block: forward and backward, on odd sizes, in both precisions."""

import copy
import dataclasses
import errno
import functools
import os
import platform
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mlpmixer.config import pair
from mlpmixer.data.preprocess import Preprocess
from mlpmixer.inference.torch_classifier import from_network
from mlpmixer.models import kernels, locality, native
from mlpmixer.models.configs import MixerConfig
from mlpmixer.models.kernels import block
from mlpmixer.models.kernels.block import gelu, gelu_backward
from mlpmixer.models.mixer import Mixer, MixerBlock
from mlpmixer.training.recipe import Recipe, Run
from mlpmixer.training.start import choose_kernels
from mlpmixer.weights.model_file import ModelMeta

SMALL = MixerConfig(
    image_size=12, patch_size=4, num_classes=5, num_blocks=2, hidden_dim=24, tokens_mlp_dim=7, channels_mlp_dim=33
)
ODD = dataclasses.replace(
    SMALL, image_size=(20, 28), hidden_dim=19, tokens_mlp_dim=50, channels_mlp_dim=65, activation="gelu_erf"
)

WIDE = dataclasses.replace(
    ODD, image_size=(20, 20), num_blocks=1, hidden_dim=300, tokens_mlp_dim=400, channels_mlp_dim=900
)  # in parts

needs_compiler = pytest.mark.skipif(
    bool(kernels.unsupported_reason(Mixer(SMALL))), reason="needs Linux and a C compiler"
)


def twins(cfg: MixerConfig, *, local: bool = False) -> tuple[Mixer, Mixer]:
    """The same network on torch's operations and on compiled kernels, no parameter of it at a special value."""
    torch.manual_seed(0)
    plain = Mixer(cfg)
    if local:
        locality.inject(plain, 3)
    with torch.no_grad():
        for p in plain.parameters():
            p.add_(torch.randn_like(p), alpha=0.1)
    fast = copy.deepcopy(plain)
    kernels.install(fast)
    return plain, fast


def gradients(model: Mixer, images: Tensor, dtype: torch.dtype) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        logits = model(images)
    logits.float().square().sum().backward()
    return logits.float(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def distance(got: Tensor, wanted: Tensor) -> float:
    return ((got - wanted).norm() / wanted.norm()).item()


def distances(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> list[float]:
    """Of each gradient, but for the biases that shift all channels of a token alike: every LayerNorm takes that away,
    so theirs is 0."""
    assert got.keys() == wanted.keys()
    idle = [name for name in wanted if name.endswith("token_mixing.fc2.bias")]
    largest = max(g.norm() for g in wanted.values())
    assert all(got[name].norm() < 1e-2 * largest for name in idle)
    return [distance(got[name], wanted[name]) for name in wanted if name not in idle]


CAN: dict[str, Callable[..., bool]] = {
    "whole": lambda *instructions: instructions == ("avx2",),  # products by block.c
    "apart": lambda *instructions: False,  # by torch and oneDNN
    "fused": lambda *instructions: True,  # by oneDNN, with what follows them
}


@pytest.fixture(params=CAN)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every way to compute a block, whatever this processor takes."""
    monkeypatch.setattr(block, "can", CAN[request.param])
    return str(request.param)


@needs_compiler
@pytest.mark.parametrize("way", ["whole", "apart"], indirect=True)
@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("form", ["unscaled", "rescaled"])
@pytest.mark.parametrize("drop_path", [0.0, 0.5])
@pytest.mark.parametrize("cfg", [SMALL, ODD])
def test_float32_is_the_plain_block(cfg: MixerConfig, drop_path: float, form: str, local: bool, way: str) -> None:
    plain, fast = twins(dataclasses.replace(cfg, drop_path=drop_path, drop_path_form=form), local=local)  # type: ignore[arg-type]
    images = torch.randn(7, 3, *pair(cfg.image_size))
    logits, wanted = gradients(plain, images, torch.float32)
    got_logits, got = gradients(fast, images, torch.float32)
    assert distance(got_logits, logits) < 1e-6
    assert max(distances(got, wanted)) < 1e-5


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# grid, hidden_dim, tokens_mlp_dim, channels_mlp_dim, images: tiles have 6 rows and 16 columns, with AVX-512 32; chunks
# have 96 rows
SIZES = [
    ((1, 1), 1, 1, 1, 1),  # less than a tile, and than a tile for each thread
    ((2, 3), 16, 16, 32, 2),  # tiles filled exactly
    ((3, 5), 17, 31, 15, 3),  # one more and one less
    ((4, 8), 33, 32, 63, 3),  # the same of 32
    ((5, 5), 97, 7, 400, 9),  # a chunk ends within an image; hidden values in two parts
    ((7, 7), 40, 300, 500, 30),  # several groups of chunks
]


@needs_compiler
@pytest.mark.parametrize("way", ["whole"], indirect=True)
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(("grid", "c", "ds", "dc", "n"), SIZES)
def test_a_whole_block_of_any_size_on_any_threads(
    grid: tuple[int, int], c: int, ds: int, dc: int, n: int, count: int, way: str, threads: Callable[[int], None]
) -> None:
    threads(count)
    size = (4 * grid[0], 4 * grid[1])
    cfg = dataclasses.replace(SMALL, image_size=size, hidden_dim=c, tokens_mlp_dim=ds, channels_mlp_dim=dc)
    plain, fast = twins(dataclasses.replace(cfg, num_blocks=1))
    images = torch.randn(n, 3, *size)
    with torch.no_grad():
        torch.testing.assert_close(fast(images), plain(images), atol=1e-5, rtol=1e-5)
    _, wanted = gradients(plain, images, torch.float32)
    _, got = gradients(fast, images, torch.float32)
    _, again = gradients(fast, images, torch.float32)
    largest = max(float(g.norm()) for g in wanted.values())
    assert all((got[name] - wanted[name]).norm() < 1e-5 * largest for name in wanted)
    assert all(torch.equal(got[name], again[name]) for name in got)


@needs_compiler
@pytest.mark.parametrize("way", ["whole"], indirect=True)
def test_gradients_have_the_bits_of_the_threads_of_the_forward_pass(way: str, threads: Callable[[int], None]) -> None:
    _, fast = twins(ODD)
    tokens, parameters = torch.randn(9, 35, 19), [*fast.blocks[0].parameters()]
    found = []
    for after in (2, 1):
        threads(2)
        out = fast.blocks[0](tokens)
        threads(after)
        found.append(torch.autograd.grad(out, parameters, tokens))
    assert all(map(torch.equal, *found))


@needs_compiler
@pytest.mark.parametrize("way", ["whole", "apart"], indirect=True)
def test_no_images_have_no_gradient(way: str) -> None:
    _, fast = twins(SMALL)
    logits, got = gradients(fast, torch.empty(0, 3, 12, 12), torch.float32)
    assert logits.shape == (0, 5) and not any(g.any() for g in got.values())


@needs_compiler
@pytest.mark.parametrize("cfg", [SMALL, ODD])
def test_bfloat16_is_nearer_to_float32_than_autocast(cfg: MixerConfig) -> None:
    plain, fast = twins(cfg)
    images = torch.randn(64, 3, *pair(cfg.image_size))
    _, truth = gradients(plain, images, torch.float32)
    _, autocast = gradients(plain, images, torch.bfloat16)
    _, got = gradients(fast, images, torch.bfloat16)
    error, usual = distances(got, truth), distances(autocast, truth)
    assert sum(error) < sum(usual)
    assert all(e < 2 * u + 0.02 for e, u in zip(error, usual, strict=True))


@needs_compiler
def test_equal_inputs_give_equal_bits() -> None:
    _, fast = twins(ODD)
    images = torch.randn(9, 3, *pair(ODD.image_size))
    first, second = (gradients(fast, images, torch.bfloat16)[1] for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


FORMS = pytest.mark.parametrize(("erf", "form"), [(False, "tanh"), (True, "none")])


@needs_compiler
@FORMS
def test_every_bfloat16_has_the_nearest_gelu(erf: bool, form: str) -> None:
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)
    u = every[every.isfinite() & (every.abs() < 1e20)]
    exact = torch.nn.functional.gelu(u.double(), approximate=form)
    got = gelu(u, erf).double()
    assert ((got - exact).abs() <= exact.abs() * 2**-8 + 1e-7).all()  # half a unit in the last place is 2^-9


@needs_compiler
@FORMS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_derivative_of_gelu_is_autograds(dtype: torch.dtype, erf: bool, form: str) -> None:
    u = torch.linspace(-30, 30, 6000, dtype=torch.float64).view(60, 100).to(dtype)
    x = u.double().requires_grad_()
    torch.nn.functional.gelu(x, approximate=form).sum().backward()
    assert x.grad is not None
    h, du, db = gelu_backward(u, torch.ones_like(u), erf)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(du.double(), x.grad, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(db.double(), x.grad.sum(0), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(
        h.double(), torch.nn.functional.gelu(u.double(), approximate=form), atol=tolerance, rtol=tolerance
    )


@needs_compiler
@pytest.mark.parametrize("way", ["whole", "apart"], indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_not_finite_stays_seen(dtype: torch.dtype, way: str) -> None:
    _, fast = twins(SMALL)
    images = torch.randn(4, 3, 12, 12)
    images[1, 0, 3, 3] = torch.nan
    logits, grads = gradients(fast, images, dtype)
    assert logits.isnan().any(1).tolist() == [False, True, False, False]
    assert all(g.isnan().any() for g in grads.values())


@needs_compiler
@pytest.mark.parametrize("way", ["whole", "apart"], indirect=True)
def test_evaluation_and_memory_saving_take_them_too(way: str) -> None:
    plain, fast = twins(SMALL)
    images = torch.randn(3, 3, 12, 12)
    with torch.inference_mode():
        torch.testing.assert_close(fast.eval()(images), plain.eval()(images), atol=1e-5, rtol=1e-5)
    _, wanted = gradients(plain.train(), images, torch.float32)
    fast.train().checkpointing = True
    _, got = gradients(fast, images, torch.float32)
    assert max(distances(got, wanted)) < 1e-5


def outputs(model: Mixer, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        return model.eval()(images).float()


@needs_compiler
@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("cfg", [SMALL, ODD, WIDE])
def test_inference_is_the_plain_network(cfg: MixerConfig, local: bool, way: str) -> None:
    plain, _ = twins(dataclasses.replace(cfg, drop_path=0.5), local=local)
    ready = kernels.for_inference(plain)
    for n in (0, 1, 7):
        images = torch.randn(n, 3, *pair(cfg.image_size))
        wanted = outputs(plain, images)
        assert not n or ((outputs(ready, images) - wanted).abs().max() <= 1e-5 * wanted.abs().max()).item()
        assert outputs(ready, images).shape == wanted.shape


@needs_compiler
@pytest.mark.parametrize("way", ["apart", "fused"], indirect=True)
@pytest.mark.parametrize("cfg", [SMALL, ODD])
def test_inference_in_bfloat16_is_no_further_from_float32_than_autocast(cfg: MixerConfig, way: str) -> None:
    if way == "fused" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("oneDNN has no bfloat16 on this processor")
    plain, _ = twins(cfg)
    images = torch.randn(64, 3, *pair(cfg.image_size))
    truth = outputs(plain, images)
    ready = outputs(kernels.for_inference(plain), images, torch.bfloat16)
    assert distance(ready, truth) < 1.2 * distance(outputs(plain, images, torch.bfloat16), truth)


@needs_compiler
def test_inference_keeps_what_is_not_finite_in_sight(way: str) -> None:
    plain, _ = twins(SMALL)
    images = torch.randn(4, 3, 12, 12)
    images[1, 0, 3, 3] = torch.nan
    assert outputs(kernels.for_inference(plain), images).isnan().any(1).tolist() == [False, True, False, False]


@needs_compiler
@pytest.mark.parametrize("way", ["whole"], indirect=True)
def test_an_image_gets_the_same_bits_in_any_company(way: str) -> None:
    ready, tokens = kernels.for_inference(twins(WIDE)[0]).blocks[0], torch.randn(5, 25, 300)
    with torch.inference_mode():
        assert torch.equal(ready(tokens), torch.cat([ready(t[None]) for t in tokens]))


@needs_compiler
@pytest.mark.parametrize("way", ["whole", "apart"], indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inference_shares_the_parameters_and_follows_them(dtype: torch.dtype, way: str) -> None:
    plain, _ = twins(SMALL)
    ready, images = kernels.for_inference(plain), torch.randn(3, 3, 12, 12)
    assert {type(b) for b in plain.blocks} == {MixerBlock} and all(
        a is b for a, b in zip(plain.parameters(), ready.parameters(), strict=True)
    )
    before = outputs(ready, images, dtype)
    assert torch.equal(outputs(ready, images, dtype), before)
    with torch.no_grad():
        plain.blocks[1].channel_mixing.fc1.weight.mul_(1.5)
    after = outputs(ready, images, dtype)
    assert distance(after, before) > 0.01 and torch.equal(after, outputs(kernels.for_inference(plain), images, dtype))
    plain.load_state_dict(twins(SMALL)[0].state_dict())
    assert torch.equal(outputs(ready, images, dtype), before)


@needs_compiler
@pytest.mark.parametrize("way", ["whole", "apart"], indirect=True)
def test_they_are_differentiated_once_and_say_so(way: str) -> None:
    _, fast = twins(SMALL)
    loss = fast(torch.randn(2, 3, 12, 12)).square().sum()
    slope = torch.autograd.grad(loss, fast.stem.weight, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="differentiate twice"):
        slope.square().sum().backward()


@needs_compiler
def test_a_run_is_computed_on_them_and_says_so() -> None:
    plain, _ = twins(SMALL)
    meta = ModelMeta(config=SMALL, classes=tuple("abcde"), preprocess=Preprocess(image_size=(12, 12)))
    classifier = from_network(plain, meta)
    assert classifier.network is plain and " with compiled kernels in float32" in str(classifier.runtime)
    images = np.random.default_rng(0).integers(0, 256, (9, 12, 12, 3), dtype=np.uint8)
    with torch.inference_mode():
        wanted = plain(torch.from_numpy(meta.preprocess.normalise(images))).softmax(1).numpy()
    np.testing.assert_allclose(classifier.probabilities(images), wanted, atol=1e-5)
    assert classifier.features(images[:0]).shape == (0, SMALL.hidden_dim)


def test_float64_stays_float64() -> None:
    plain, fast = twins(SMALL)
    images = torch.randn(2, 3, 12, 12, dtype=torch.float64)
    assert torch.equal(fast.double()(images), plain.double()(images))


@needs_compiler
def test_parameters_that_are_not_float32_are_left_to_torch() -> None:
    plain, fast = twins(SMALL)
    images = torch.randn(2, 3, 12, 12, dtype=torch.bfloat16)
    assert torch.equal(fast.bfloat16()(images), plain.bfloat16()(images))
    with torch.no_grad():
        assert torch.equal(kernels.for_inference(plain)(images), plain.eval()(images))


@needs_compiler
@pytest.mark.parametrize("shape", [(3, 10, 24), (3, 8, 24), (3, 9, 32), (9, 24)])
def test_tokens_of_another_shape_are_refused_as_by_torch(shape: tuple[int, ...], way: str) -> None:
    tokens, said = torch.randn(shape), []
    for model in twins(SMALL):
        for grad in (True, False):
            with torch.set_grad_enabled(grad), pytest.raises((RuntimeError, IndexError)) as raised:
                model.blocks[0](tokens)
            said.append(str(raised.value))
    assert len(set(said)) == 1


class Adapted(torch.nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x.sum(-1, keepdim=True)


def adapt(model: Mixer) -> Mixer:
    mlp = model.blocks[0].channel_mixing
    mlp.fc1, before = Adapted(24, 33), mlp.fc1
    mlp.fc1.load_state_dict(before.state_dict())
    return model


def wrap(model: Mixer) -> Mixer:
    mlp = model.blocks[0].token_mixing
    mlp.fc2 = torch.nn.Sequential(mlp.fc2, torch.nn.Tanh())
    return model


def with_another_eps(model: Mixer) -> Mixer:
    model.blocks[1].norm2.eps = 0.1
    return model


@needs_compiler
@pytest.mark.parametrize("change", [adapt, wrap, with_another_eps])
def test_layers_that_were_put_into_a_block_are_not_passed_over(change: Callable[[Mixer], Mixer]) -> None:
    meta = ModelMeta(config=SMALL, classes=tuple("abcde"), preprocess=Preprocess(image_size=(12, 12)))
    images = np.random.default_rng(0).integers(0, 256, (2, 12, 12, 3), dtype=np.uint8)
    network = change(twins(SMALL)[0]).eval()
    wanted = network(torch.from_numpy(meta.preprocess.normalise(images))).softmax(1).detach().numpy()
    np.testing.assert_allclose(from_network(network, meta).probabilities(images), wanted, atol=1e-6)


@needs_compiler
def test_an_adapter_counts_also_when_it_comes_later() -> None:
    meta = ModelMeta(config=SMALL, classes=tuple("abcde"), preprocess=Preprocess(image_size=(12, 12)))
    images = np.random.default_rng(0).integers(0, 256, (2, 12, 12, 3), dtype=np.uint8)
    classifier = from_network(twins(SMALL)[0], meta)
    before = classifier.probabilities(images)
    network = adapt(classifier.network)  # type: ignore[arg-type]
    wanted = network(torch.from_numpy(meta.preprocess.normalise(images))).softmax(1).detach().numpy()
    assert abs(wanted - before).max() > 1e-3
    np.testing.assert_allclose(classifier.probabilities(images), wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "run", "reason"),
    [
        ({"dropout": 0.1}, {}, "dropout"),
        ({"image_size": 16, "parts": 2}, {}, "parts"),
        ({}, {"compile": True}, "torch.compile"),
    ],
)
def test_what_they_cannot_do_is_said(fields: dict[str, object], run: dict[str, object], reason: str) -> None:
    cfg = dataclasses.replace(SMALL, **fields)  # type: ignore[arg-type]
    recipe = Recipe(model=cfg, run=Run(**run))  # type: ignore[arg-type]
    assert reason in choose_kernels(Mixer(cfg), recipe, torch.device("cpu"))
    insisting = dataclasses.replace(recipe, run=dataclasses.replace(recipe.run, kernels="compiled"))
    with pytest.raises(ValueError, match=reason):
        choose_kernels(Mixer(cfg), insisting, torch.device("cpu"))


def test_without_a_compiler_torch_does_the_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(*args: object, **options: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", missing)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    native.library.cache_clear()
    try:
        model = Mixer(SMALL)
        said = choose_kernels(model, Recipe(model=SMALL), torch.device("cpu"))
        assert said.startswith("torch (") and ("compiler" in said or "Linux" in said)
        assert type(model.blocks[0]).__name__ == "MixerBlock"
        meta = ModelMeta(config=SMALL, classes=tuple("abcde"), preprocess=Preprocess(image_size=(12, 12)))
        assert "compiled" not in str(from_network(model, meta).runtime)
    finally:
        native.library.cache_clear()


@needs_compiler
def test_a_compiler_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "broken.c"
    broken.write_text("int broken( {\n")
    monkeypatch.setattr(native, "SOURCE", broken)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    with pytest.raises(native.Unavailable, match=r"cannot compile broken\.c"):
        native.library.__wrapped__("float32")
    assert list((tmp_path / ".cache" / "mlpmixer" / "kernels").iterdir()) == []


@pytest.fixture
def small_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Code that is compiled in no time, into a home of its own."""
    (tmp_path / "small.c").write_text("int one(void) { return 1; }\n")
    monkeypatch.setattr(native, "SOURCE", tmp_path / "small.c")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")


@needs_compiler
@pytest.mark.usefixtures("small_source")
@pytest.mark.parametrize("fails", ["home", "mkdir", "mkdtemp"])
def test_code_that_cannot_be_kept_is_compiled_for_the_process(fails: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    mkdir, mkdtemp = Path.mkdir, tempfile.mkdtemp

    def elsewhere(make: Callable[..., Any], path: Any, *args: Any, **options: Any) -> Any:
        if "mlpmixer" in str(path or options.get("dir")):
            raise OSError(errno.EROFS, "Read-only file system")
        return make(path, *args, **options)

    if fails == "home":
        monkeypatch.setattr(Path, "home", no_home)
    elif fails == "mkdir":
        monkeypatch.setattr(Path, "mkdir", functools.partialmethod(lambda path, **how: elsewhere(mkdir, path, **how)))
    else:
        monkeypatch.setattr(tempfile, "mkdtemp", functools.partial(elsewhere, mkdtemp))
    assert native.library.__wrapped__("float32").one() == 1


@needs_compiler
@pytest.mark.usefixtures("small_source")
def test_code_in_a_folder_that_cannot_be_changed_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    native.library.__wrapped__("float32")

    def read_only(*args: object, **options: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "chmod", read_only)
    monkeypatch.setattr(native, "compile_to", read_only)
    assert native.library.__wrapped__("float32").one() == 1


@needs_compiler
def test_both_names_of_a_type_are_one_library(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(native, "library", lambda dtype: asked.append(dtype) or native.ctypes.CDLL(None))
    for dtype in (torch.float32, "float32"):
        native.call("getpid", dtype)
    assert asked == ["float32", "float32"]


@needs_compiler
@pytest.mark.usefixtures("small_source")
def test_a_processor_with_other_instructions_gets_code_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for avx512 in (False, True):  # one name for both, as clouds have it, and one home
        monkeypatch.setattr(native, "cpu_flags", lambda avx512=avx512: {"avx2", *(["avx512f"] if avx512 else [])})
        native.library.__wrapped__("float32")
    assert len(list((tmp_path / ".cache" / "mlpmixer" / "kernels").iterdir())) == 2


@needs_compiler
@pytest.mark.usefixtures("small_source")
def test_a_processor_with_avx512_can_do_without_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    can = block.can.__wrapped__
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_f": True, "amx_int8": False})
    monkeypatch.setattr(native, "cpu_flags", lambda: {"avx2", "avx512f"})
    assert can("avx2", "avx512_f") and not can("amx_int8")
    native.library.__wrapped__("float32")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert can("avx2") and not can("avx512_f")
    if platform.machine() == "x86_64":
        native.library.__wrapped__("float32")
        assert len(list((tmp_path / ".cache" / "mlpmixer" / "kernels").iterdir())) == 2


@needs_compiler
@pytest.mark.usefixtures("small_source")
def test_code_that_others_could_have_put_there_is_not_loaded(tmp_path: Path) -> None:
    kernels = tmp_path / ".cache" / "mlpmixer" / "kernels"
    kernels.mkdir(parents=True, mode=0o777)
    kernels.chmod(0o777)
    native.library.__wrapped__("float32")
    (code,) = kernels.iterdir()
    assert kernels.stat().st_mode & 0o777 == code.stat().st_mode & 0o777 == 0o700
    good = code.read_bytes()

    def planted(mode: int, owner: int = os.geteuid()) -> None:
        code.unlink()
        code.write_bytes(b"not code; that of this name is loaded already")
        code.chmod(mode)
        os.chown(code, owner, -1)

    planted(0o700)
    native.library.__wrapped__("float32")
    assert code.read_bytes() != good
    others = [12345] if os.geteuid() == 0 else []
    for mode, owner in [(0o777, os.geteuid()), (0o720, os.geteuid()), *((0o700, uid) for uid in others)]:
        planted(mode, owner)
        native.library.__wrapped__("float32")
        assert code.read_bytes() == good and code.stat().st_uid == os.geteuid()
    code.unlink()
    code.symlink_to(tmp_path / "elsewhere.so")
    native.library.__wrapped__("float32")
    assert code.read_bytes() == good and not code.is_symlink()
    kernels.rename(tmp_path / "elsewhere")
    kernels.symlink_to(tmp_path / "elsewhere")  # a folder that is not this one: left alone, its code not loaded
    (tmp_path / "elsewhere" / code.name).write_bytes(b"not code")
    native.library.__wrapped__("float32")
    assert (tmp_path / "elsewhere" / code.name).read_bytes() == b"not code"
    if others:
        kernels.unlink()
        kernels.mkdir()
        os.chown(kernels, 12345, -1)
        native.library.__wrapped__("float32")
        assert not list(kernels.iterdir())
