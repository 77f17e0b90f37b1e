"""Mirror symmetry: the logits cannot tell an image from its mirror image, at the start, in training, and in what is
saved."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mlpmixer.data.config import Data
from mlpmixer.models import locality, mirror
from mlpmixer.models.architecture import create_model
from mlpmixer.models.configs import MixerConfig
from mlpmixer.models.initialization import whiten_stem
from mlpmixer.models.mixer import Mixer
from mlpmixer.training import progressive
from mlpmixer.training.recipe import Augment, Init, Optim, Recipe, Run
from mlpmixer.training.run import train
from mlpmixer.weights import model_file

CFG = MixerConfig(
    image_size=(6, 10),
    patch_size=2,
    in_channels=2,
    num_classes=3,
    num_blocks=2,
    hidden_dim=9,
    tokens_mlp_dim=5,
    channels_mlp_dim=12,
)
RECIPE = Recipe(
    name="test",
    model=MixerConfig(
        image_size=8,
        patch_size=2,
        in_channels=1,
        num_classes=10,
        num_blocks=2,
        hidden_dim=16,
        tokens_mlp_dim=8,
        channels_mlp_dim=24,
    ),
    data=Data(name="digits"),
    init=Init(stem="whitened"),
    augment=Augment(pad_crop_px=1, cutmix=1.0, mix_probability=0.5),
    optim=Optim(name="muon", lr=3e-3, muon_lr=0.01, warmup_steps=3, locality=3, mirror=True),
    run=Run(steps=12, batch_size=64, eval_every=1, save_every_s=0),
)


def changed(**parts: dict[str, Any]) -> Recipe:
    return dataclasses.replace(RECIPE, **{k: dataclasses.replace(getattr(RECIPE, k), **v) for k, v in parts.items()})


def symmetric(cfg: MixerConfig, seed: int, kernels: bool = False) -> Mixer:
    """A symmetric Mixer, everything of it drawn at random, in float64."""
    model = Mixer(cfg).double()
    if kernels:
        locality.inject(model, 3)
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        nn.init.normal_(p, std=0.3, generator=generator)
    mirror.begin(model)
    return model


def images(cfg: MixerConfig, seed: int = 1) -> Tensor:
    h, w = cfg.image_size if isinstance(cfg.image_size, tuple) else (cfg.image_size, cfg.image_size)
    return torch.randn(3, cfg.in_channels, h, w, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=60)
@given(
    part_grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    parts=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    patch_size=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    widths=st.tuples(*[st.integers(1, 9)] * 3),
    num_classes=st.sampled_from([0, 1, 4]),
    kernels=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_a_mirrored_image_has_the_same_logits(
    part_grid: tuple[int, int],
    parts: tuple[int, int],
    patch_size: tuple[int, int],
    widths: tuple[int, int, int],
    num_classes: int,
    kernels: bool,
    seed: int,
) -> None:
    h, w = (n * k * p for n, k, p in zip(part_grid, parts, patch_size, strict=True))
    hidden, tokens, channels = widths
    cfg = dataclasses.replace(
        CFG, image_size=(h, w), patch_size=patch_size, parts=parts, num_classes=num_classes,
        hidden_dim=hidden, tokens_mlp_dim=tokens, channels_mlp_dim=channels,
    )  # fmt: skip
    model, x = symmetric(cfg, seed, kernels), images(cfg, seed)
    logits, mirrored = model(x), model(x.flip(3))
    if num_classes == 0:  # pre-logits: the mirror image's are those of the partners
        half = hidden // 2
        mirrored = torch.cat([mirrored[:, half : 2 * half], mirrored[:, :half], mirrored[:, 2 * half :]], 1)
    atol = (
        1e-9 if hidden == 2 else 1e-12
    )  # a LayerNorm over two channels, nearly equal, magnifies rounding up to a thousand times
    torch.testing.assert_close(mirrored, logits, atol=atol, rtol=0)
    assert mirror.asymmetry(model) == 0
    if kernels:
        assert mirror.asymmetry(locality.folded(model)) < 1e-12


def test_an_unsymmetric_network_is_told_from_a_symmetric_one() -> None:
    model = symmetric(CFG, 0)
    assert mirror.asymmetry(model) == 0
    with torch.no_grad():
        model.blocks[1].channel_mixing.fc1.weight[0, 0] += 1
    assert mirror.asymmetry(model) > 0.05
    x = images(CFG)
    assert not torch.allclose(model(x), model(x.flip(3)))


def test_the_kept_gradient_is_that_of_the_images_and_their_mirror_images() -> None:
    model, x, labels = symmetric(CFG, 0, kernels=True), images(CFG), torch.tensor([0, 2, 1])
    F.cross_entropy(model(torch.cat([x, x.flip(3)])), labels.repeat(2)).backward()
    both = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    F.cross_entropy(model(x), labels).backward()
    assert any(
        not torch.allclose(p.grad, g) for p, g in zip(model.parameters(), both, strict=True) if p.grad is not None
    )
    mirror.keep(mirror.symmetric(model), gradients=True)
    for p, expected in zip(model.parameters(), both, strict=True):
        torch.testing.assert_close(p.grad, expected, atol=1e-12, rtol=0)


def test_a_start_keeps_the_scale_of_the_weights_and_a_whitened_stem_whitens() -> None:
    torch.manual_seed(0)
    model = create_model("Nano/4", num_classes=10)
    smooth = F.avg_pool2d(torch.randn(400, 3, 34, 34), 3, 1)
    whiten_stem(model, torch.cat([smooth, smooth.flip(3)]))
    before = {name: float(p.detach().std()) for name, p in model.named_parameters() if p.ndim == 2}
    mirror.begin(model)
    for name, p in model.named_parameters():
        if p.ndim == 2 and before[name]:
            assert float(p.detach().std()) == pytest.approx(before[name], rel=0.05)
    tokens = model.stem(model.patches(smooth)).flatten(0, 1).detach()
    correlation = tokens.T @ tokens / len(tokens)
    assert float(correlation.diag().mean()) == pytest.approx(1, abs=0.1)
    values = torch.linalg.eigvalsh(correlation)[-48:]  # of 128 channels, as many as a patch has values
    assert float(values.max() / values.median()) < 4


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(RECIPE, out=tmp_path_factory.mktemp("runs") / "mirror").path


def assert_symmetric(run: Path) -> None:
    model, _ = model_file.load_model(run / "model.safetensors")
    assert mirror.asymmetry(model) < 1e-5
    x = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(x), model(x.flip(3)), atol=1e-5, rtol=0)
    assert model(x).std() > 0.01


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"optim": {"name": "adamw", "sam_rho": 0.1, "ema_decay": 0.9, "clip_norm": 1.0}, "run": {"accumulate": 2}},
        {"optim": {"name": "sgd", "lr": 0.1, "average_last": 0.5}, "model": {"dropout": 0.1, "drop_path": 0.1}},
        {"run": {"progressive": "4:0.5"}},
        {"run": {"kernels": "torch", "precision": "float32"}},
    ],
    ids=["muon", "adamw-sam-ema", "sgd-mean", "progressive", "torch"],
)
def test_what_is_trained_and_saved_stays_symmetric(parts: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    assert_symmetric(train(changed(**parts), out=tmp_path / "run").path)


def test_a_symmetric_run_goes_on_elsewhere_and_any_other_is_refused(trained: Path, tmp_path: Path) -> None:
    start = {"stem": "lecun", "weights": str(trained)}
    again = train(changed(init=start, run={"steps": 2}, model={"image_size": 12}), out=tmp_path / "again")
    assert mirror.asymmetry(model_file.load_model(again.path / "model.safetensors")[0]) < 1e-5
    plain = train(changed(optim={"mirror": False}, run={"steps": 2}), out=tmp_path / "plain").path
    with pytest.raises(ValueError, match="start from a run that was trained with it"):
        train(changed(init={"stem": "lecun", "weights": str(plain)}), out=tmp_path / "refused")


def test_a_stopped_run_goes_on_exactly(trained: Path, tmp_path: Path) -> None:
    def stop(line: dict[str, Any]) -> None:
        if line["kind"] == "save" and line["step"] >= 4:
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        train(RECIPE, out=tmp_path / "run", report=stop)
    train(RECIPE, out=tmp_path / "run", resume=True)
    first, second = (model_file.read_tensors(run / "model.safetensors")[0] for run in (trained, tmp_path / "run"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_progressive_resizing_keeps_the_symmetry() -> None:
    model = symmetric(dataclasses.replace(CFG, hidden_dim=8), 0)
    assert mirror.asymmetry(progressive.resized(model, (12, 20))) < 1e-6
