"""What hands that know timm and torch expect of a network, by value: features, heads, checkpointing, copies, graphs."""

import copy
import dataclasses
import io
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mlpmixer.config import pair
from mlpmixer.models import kernels
from mlpmixer.models.architecture import ARCHITECTURES, build, has
from mlpmixer.models.configs import (
    ASMLPConfig,
    EAMLPConfig,
    GMLPConfig,
    MixerConfig,
    NetworkConfig,
    RepMLPNetConfig,
    ResMLPConfig,
    ResNetConfig,
    S2MLPConfig,
    S2MLPv2Config,
    ViPConfig,
    ViTConfig,
)
from mlpmixer.models.mixer import Mixer

SIZES = {"image_size": (8, 12), "in_channels": 2, "num_classes": 5}
CONFIGS = {
    "mixer": MixerConfig(**SIZES, patch_size=4, num_blocks=2, hidden_dim=16, tokens_mlp_dim=7, channels_mlp_dim=24),
    "resmlp": ResMLPConfig(**SIZES, patch_size=4, num_blocks=2, hidden_dim=16, channels_mlp_dim=24),
    "gmlp": GMLPConfig(**SIZES, patch_size=4, num_blocks=2, hidden_dim=16, channels_mlp_dim=24),
    "s2-mlp": S2MLPConfig(**SIZES, patch_size=4, num_blocks=2, hidden_dim=16, channels_mlp_dim=24),
    "s2-mlpv2": S2MLPv2Config(**SIZES, patch_size=2, hidden_dims=(8, 16), depths=(1, 1)),
    "as-mlp": ASMLPConfig(**SIZES, patch_size=2, hidden_dims=(8, 16), depths=(1, 1)),
    "vip": ViPConfig(
        image_size=8, in_channels=2, num_classes=5, patch_size=2, hidden_dims=(8, 16), depths=(1, 1), strides=(2,)
    ),
    "repmlpnet": RepMLPNetConfig(**SIZES, patch_size=2, hidden_dims=(8, 16), depths=(1, 1), share_sets=(1, 4)),
    "eamlp": EAMLPConfig(**SIZES, patch_size=4, num_blocks=2, hidden_dim=16, num_heads=2, channels_mlp_dim=24),
    "vit": ViTConfig(**SIZES, patch_size=4, num_blocks=1, hidden_dim=16, num_heads=2, mlp_dim=24),
    "resnet": ResNetConfig(**SIZES, depths=(1, 1), width=8, bottleneck=False, small_images=True),
}
FEATURES = dict.fromkeys(CONFIGS, (6, 16)) | {"vip": (4, 16), "vit": (1 + 6, 16), "resnet": (16, 4, 6)}
needs_kernels = pytest.mark.skipif(bool(kernels.missing()), reason="needs Linux and a C compiler")


def random(cfg: NetworkConfig) -> Any:
    """A network in evaluation mode in which no parameter is zero."""
    torch.manual_seed(0)
    model: Any = build(cfg).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.1)
    return model


def images_for(model: Any) -> Tensor:
    return torch.randn(3, model.cfg.in_channels, *pair(model.cfg.image_size))


@pytest.fixture(params=CONFIGS)
def model(request: pytest.FixtureRequest) -> Any:
    name: str = request.param
    if ARCHITECTURES[name].extra:
        pytest.importorskip("transformers", reason='pip install "mlpmixer[rivals]"')
    return random(CONFIGS[name])


@pytest.fixture(params=[*CONFIGS, pytest.param("kernels", marks=needs_kernels)])
def any_model(request: pytest.FixtureRequest) -> Any:
    """A network of each architecture, and a Mixer on compiled kernels."""
    if request.param == "kernels":
        fast = random(CONFIGS["mixer"])
        kernels.install(fast)
        return fast
    if ARCHITECTURES[request.param].extra:
        pytest.importorskip("transformers", reason='pip install "mlpmixer[rivals]"')
    return random(CONFIGS[request.param])


def test_every_architecture_is_tried() -> None:
    assert CONFIGS.keys() == ARCHITECTURES.keys()


# --- features and heads -----------------------------------------------------------------------------------------------


def test_the_head_of_the_features_is_the_network(model: Any) -> None:
    images = images_for(model)
    features = model.forward_features(images)
    assert features.shape[1:] == FEATURES[model.cfg.architecture]
    assert torch.equal(model.forward_head(features), model(images))
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (3, model.num_features) and torch.equal(pooled, model.pre_logits(images))
    assert torch.equal(model.get_classifier()(pooled), model(images))
    if has(model, "tokens"):
        assert torch.equal(features, model.tokens(images))


def test_a_fresh_head_starts_as_that_of_a_new_network(model: Any) -> None:
    images = images_for(model)
    body = model.pre_logits(images)
    model.reset_classifier(7)
    assert model.num_classes == model.cfg.num_classes == 7 and model.get_classifier() is model.head
    assert model(images).shape == (3, 7) and torch.equal(model.pre_logits(images), body)
    fresh: Any = build(dataclasses.replace(model.cfg, num_classes=7))
    assert model.head.weight.std().item() == pytest.approx(fresh.head.weight.std().item(), rel=0.5)
    assert model.head.bias.any() == fresh.head.bias.any() and model.head.weight.requires_grad
    assert model.state_dict().keys() == fresh.state_dict().keys()
    fresh.load_state_dict(model.state_dict())


def test_the_head_goes_and_comes_back(model: Any) -> None:
    images = images_for(model)
    model.double().reset_classifier(0)
    assert isinstance(model.head, nn.Identity) and model.num_classes == 0
    assert torch.equal(model(images.double()), model.pre_logits(images.double()))
    model.reset_classifier(3)
    assert model(images.double()).shape == (3, 3) and model.head.weight.dtype == torch.float64
    with pytest.raises(ValueError, match="num_classes must be 0"):
        model.reset_classifier(-1)
    with pytest.raises(ValueError, match="num_classes='3': expected int"):
        model.reset_classifier("3")
    with pytest.raises(ValueError, match="no field 'global_pool'; forward_features"):
        model.reset_classifier(4, global_pool="")
    assert model.num_classes == 3
    model.reset_classifier(4, "token" if model.cfg.architecture == "vit" else "avg")  # as timm has it
    assert model.num_classes == 4


def test_a_fresh_head_of_zeros_draws_nothing() -> None:
    model = random(CONFIGS["mixer"])
    before = torch.random.get_rng_state()
    model.reset_classifier(4)
    assert torch.equal(torch.random.get_rng_state(), before) and not model.head.weight.any()


def gradients(model: Any, images: Tensor) -> list[Tensor]:
    model.zero_grad()
    model(images).square().sum().backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def test_checkpointing_changes_no_gradient(model: Any) -> None:
    images = images_for(model)
    model.train()
    wanted = gradients(model, images)
    model.set_grad_checkpointing(False)
    if not has(model, "checkpointing"):
        with pytest.raises(ValueError, match=r"has no activation checkpointing, which set_grad_checkpointing needs"):
            model.set_grad_checkpointing()
        return
    model.set_grad_checkpointing()
    assert model.checkpointing
    assert all(torch.equal(got, want) for got, want in zip(gradients(model, images), wanted, strict=True))


def test_statistics_of_a_batch_are_counted_once(model: Any) -> None:
    model.train()
    again = copy.deepcopy(model)
    if has(model, "checkpointing"):
        again.set_grad_checkpointing()
    images = images_for(model)
    for network in (model, again):
        network(images).sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), again.buffers(), strict=True))


def test_layers_hold_every_parameter_once(model: Any) -> None:
    if not has(model, "layers"):
        return
    found = [p for modules in model.layers() for module in modules for p in module.parameters()]
    assert len(found) == len({id(p) for p in found}) == len(list(model.parameters()))


def test_the_first_line_of_the_repr_says_what_it_is(model: Any) -> None:
    said = repr(model).splitlines()[1].strip()
    params = sum(p.numel() for p in model.parameters())
    h, w = pair(model.cfg.image_size)
    assert said == f"{model.cfg.architecture}: 2 x {h} x {w} px -> 5 classes, {params:,} parameters"
    model.reset_classifier(0)
    assert "-> 16 features" in repr(model)


# --- copies and graphs, with and without compiled kernels -------------------------------------------------------------


def test_copies_and_pickles_are_the_same_network(any_model: Any) -> None:
    images = images_for(any_model)
    wanted = any_model(images)
    file = io.BytesIO()
    torch.save(any_model, file)
    file.seek(0)
    for other in (
        copy.deepcopy(any_model),
        pickle.loads(pickle.dumps(any_model)),
        torch.load(file, weights_only=False),
    ):
        assert torch.equal(other(images), wanted) and other.cfg == any_model.cfg
        with torch.no_grad():
            other.head.bias.add_(1)
    assert torch.equal(any_model(images), wanted)


def test_an_exported_graph_is_the_same_network(any_model: Any) -> None:
    images = images_for(any_model)
    batch = {0: torch.export.Dim("batch")}
    graph = torch.export.export(any_model, (images,), dynamic_shapes={"images": batch}).module()
    more = torch.cat([images, images_for(any_model)])
    torch.testing.assert_close(graph(more), any_model(more), rtol=1e-4, atol=1e-5)


@needs_kernels
@pytest.mark.filterwarnings("ignore")  # tracing is deprecated, and warns of the check of the images' shape
def test_a_traced_graph_has_no_kernels_in_it() -> None:
    model = random(CONFIGS["mixer"])
    kernels.install(model)
    images, others = images_for(model), images_for(model)
    traced = torch.jit.trace(model, images)
    torch.testing.assert_close(traced(others), model(others), rtol=1e-4, atol=1e-5)


@needs_kernels
def test_on_a_machine_without_kernels_a_pickle_is_on_torchs_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = random(CONFIGS["mixer"])
    kernels.install(fast := copy.deepcopy(plain))
    stored = pickle.dumps(fast)
    assert pickle.loads(stored).blocks[0].kernels is not None
    monkeypatch.setattr(kernels, "missing", lambda: "no compiler")
    images = images_for(plain)
    assert torch.equal(pickle.loads(stored)(images), plain(images))


@pytest.mark.slow  # a compiler for each network
@pytest.mark.filterwarnings("ignore")  # torch's own, of what it imports then
def test_a_compiled_network_is_the_same_forward_and_backward(any_model: Any) -> None:
    images = images_for(any_model)
    wanted, slopes = any_model(images), gradients(any_model, images)
    compiled = torch.compile(any_model)
    torch.testing.assert_close(compiled(images), wanted, rtol=1e-4, atol=1e-5)
    for got, want in zip(gradients(compiled, images), slopes, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


@pytest.fixture
def process_group(tmp_path: Any) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_a_distributed_network_has_the_same_gradients(any_model: Any, process_group: None) -> None:
    images = images_for(any_model)
    wanted = gradients(copy.deepcopy(any_model), images)
    parallel = nn.parallel.DistributedDataParallel(any_model)
    assert all(torch.equal(a, b) for a, b in zip(gradients(parallel, images), wanted, strict=True))


HALF_OF_THE_IMAGES = """
import sys, torch
from torch import nn
from mlpmixer.models.architecture import create_model
rank, store, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
torch.manual_seed(0)
model = create_model("Pico/2", num_blocks=1)
images = torch.randn(4, 1, 8, 8)
parallel = nn.parallel.DistributedDataParallel(model)
parallel(images[rank::2]).logsumexp(1).mean().backward()
together = [p.grad.clone() for p in model.parameters()]
model.zero_grad()
model(images).logsumexp(1).mean().backward()
for a, p in zip(together, model.parameters()):
    torch.testing.assert_close(a, p.grad)
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_share_a_gradient(tmp_path: Any) -> None:
    import subprocess
    import sys

    command = [sys.executable, "-c", HALF_OF_THE_IMAGES]
    started = [subprocess.Popen([*command, str(rank), str(tmp_path / "store"), "-"]) for rank in range(2)]
    assert [process.wait(timeout=120) for process in started] == [0, 0]


def test_a_mixer_is_itself_however_it_was_made() -> None:
    """`kernels.install` changes no class, so whoever asks for one is answered right."""
    model = random(CONFIGS["mixer"])
    kernels.install(model)
    assert type(model) is Mixer and {type(block).__name__ for block in model.blocks} == {"MixerBlock"}
