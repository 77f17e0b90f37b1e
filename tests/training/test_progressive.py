"""Progressive resizing: small images first, in one run that stops and goes on exactly."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.training import Stopped, batch_of, stop_at, weights

from mlpmixer.data.config import Data
from mlpmixer.models import locality
from mlpmixer.models.configs import MixerConfig
from mlpmixer.models.mixer import Mixer
from mlpmixer.models.names import MODELS
from mlpmixer.training import optimizers, progressive
from mlpmixer.training.augment import augment, mix, normalise, resize
from mlpmixer.training.inputs import load_images
from mlpmixer.training.recipe import Augment, Init, Optim, Recipe, Run, read_recipe, variant
from mlpmixer.training.run import train
from mlpmixer.training.step import TrainingStep
from mlpmixer.weights import model_file, run_folder
from mlpmixer.weights.adapt import adapt

MODEL = MixerConfig(
    image_size=8,
    patch_size=2,
    in_channels=1,
    num_classes=10,
    num_blocks=2,
    hidden_dim=24,
    tokens_mlp_dim=16,
    channels_mlp_dim=48,
)
BASE = Recipe(
    name="grows",
    model=dataclasses.replace(MODEL, dropout=0.1),
    data=Data(name="digits"),
    init=Init(stem="whitened"),
    augment=Augment(pad_crop_px=1, cutmix=1.0),
    optim=Optim(name="muon", warmup_steps=3, ema_decay=0.9, locality=3),
    run=Run(steps=12, batch_size=64, save_every_s=0, progressive="4:0.3,6:0.6", test=False, log_every=1),
)  # 4 px in steps 1-3, 6 px in 4-7, 8 px in 8-12


def recipe(**run: Any) -> Recipe:
    return dataclasses.replace(BASE, run=dataclasses.replace(BASE.run, **run))


def noisy(model: Mixer, seed: int) -> Mixer:
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(100 * seed + i)))
    return model


def test_stages_end_at_their_share_of_steps() -> None:
    sizes = [progressive.image_size(step, 12, BASE) for step in range(13)]
    assert sizes == [4] * 4 + [6] * 4 + [8] * 5
    assert all(progressive.image_size(total, total, BASE) == 8 for total in range(1, 100)), (
        "however short, a run ends at its own size"
    )
    wide = dataclasses.replace(
        BASE, model=dataclasses.replace(MODEL, image_size=(8, 16)), run=Run(progressive="4x8:.5, 8x8:0.75")
    )
    assert [progressive.image_size(step, 4, wide) for step in range(1, 5)] == [(4, 8), (4, 8), 8, (8, 16)]
    assert {progressive.image_size(step, 9, recipe(progressive="")) for step in range(10)} == {8}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "4",
            "expected sizes and the shares of the steps after which they end, growing and less than 1, such as "
            "16:0.3,24:0.6",
        ),
        ("4:0.3;6:0.6", "expected sizes and the shares"),
        ("4:0.6,6:0.3", "growing and less than 1"),
        ("4:1.0", "less than 1"),
        ("4:0", "expected sizes"),
        ("6:0.3,4:0.6", "images must grow up to model.image_size, not be 4x4 after 6x6 px"),
        ("8:0.5", "not be 8x8 after 8x8 px"),
        ("5:0.5", "5x5 px is not a multiple of patch_size 2x2 px; nearest that is: 4x4"),
    ],
)
def test_wrong_stages_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipe(progressive=text)


def test_early_stopping_is_refused() -> None:
    with pytest.raises(ValueError, match="images of different sizes; leave one of the two out"):
        recipe(patience=3)


@pytest.mark.parametrize(
    ("model", "sizes"),
    [
        (MODELS["Nano/8"], [32, 48, 64]),
        (MODELS["S/16"], [112, 160, 224]),  # 168 px are 10.5 patches
        (MODELS["S/32"], [96, 160, 224]),
        (dataclasses.replace(MODELS["Nano/8"], image_size=(64, 96)), [(32, 48), (48, 72), (64, 96)]),
        (dataclasses.replace(MODELS["Nano/8"], image_size=24), [16, 24]),  # 12 px would be 8
        (dataclasses.replace(MODELS["Nano/8"], image_size=8), [8]),
        (MODELS["as-mlp-t"], [96, 160, 224]),
        (MODELS["gmlp-s/16"], [224]),
        (MODELS["vip-s/7"], [224]),
    ],
    ids=lambda value: getattr(value, "architecture", str(value)),
)
def test_auto_is_half_and_three_quarters_of_the_size_in_whole_patches(model: Any, sizes: list[Any]) -> None:
    growing = Recipe(model=model, run=Run(progressive="auto"))
    assert [size for size, _ in growing.stages] == sizes
    ends = [end for _, end in growing.stages]
    assert ends[-1] == 1 and set(ends) <= {0.3, 0.6, 1}
    assert sizes != [32, 48, 64] or variant(growing, run={"progressive": "32:0.3,48:0.6"}).stages == growing.stages


def test_auto_gives_way_where_sizes_cannot_change() -> None:
    growing = recipe(progressive="auto")
    assert [size for size, _ in growing.stages] == [4, 6, 8]
    for other in (
        variant(growing, run={"patience": 3}),
        variant(growing, init=Init(weights="runs/other")),
        dataclasses.replace(growing, network="mine.Net"),
    ):
        assert other.stages == ((8, 1.0),)


def test_auto_trains_as_the_sizes_that_it_stands_for(tmp_path: Path) -> None:
    auto, named = (train(recipe(progressive=text), out=tmp_path / text[:1]) for text in ("auto", "4:0.3,6:0.6"))
    assert all(
        torch.equal(a, b) for a, b in zip(weights(auto.path).values(), weights(named.path).values(), strict=True)
    )


def test_locality_is_folded_before_resizing() -> None:
    small = Mixer(dataclasses.replace(MODEL, image_size=4))
    locality.inject(small, 3)
    noisy(small, 1)
    large = progressive.resized(small, 8, 3)
    images = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(large(images), adapt(locality.folded(small), image_size=8)(images))
    kernels = [p for name, p in large.named_parameters() if name.endswith("kernel")]
    assert len(kernels) == 4 and not any(kernel.any() for kernel in kernels)


def test_resized_average_is_average_of_resized() -> None:
    a, b = (noisy(Mixer(dataclasses.replace(MODEL, image_size=4)), seed) for seed in (1, 2))
    mean = Mixer(a.cfg)
    mean.load_state_dict({name: (p + b.state_dict()[name]) / 2 for name, p in a.state_dict().items()})
    first, second, both = (progressive.resized(m, 8).state_dict() for m in (a, b, mean))
    for name, p in both.items():
        torch.testing.assert_close(p, (first[name] + second[name]) / 2)


@pytest.mark.parametrize("name", ["adamw", "sgd", "muon"])
def test_optimizers_forget_only_what_changed_shape(name: str) -> None:
    cfg = Optim(name=name)  # type: ignore[arg-type]
    small = noisy(Mixer(dataclasses.replace(MODEL, image_size=4)), 1)
    before = optimizers.make_optimizers(small, cfg)
    small(torch.ones(1, 1, 4, 4)).square().sum().backward()
    for o in before:
        o.step()
    large = progressive.resized(small, 8)
    after = optimizers.make_optimizers(large, cfg)
    optimizers.transfer_optimizer_state(before, after)
    new, old = (dict(model.named_parameters()) for model in (large, small))
    with_state = {k for k, p in new.items() if any(p in o.state for o in after)}
    tokens = {f"blocks.{i}.token_mixing.{k}" for i in range(2) for k in ("fc1.weight", "fc2.weight", "fc2.bias")}
    assert with_state == new.keys() - tokens
    for key in with_state:
        a, b = (next(o.state[p] for o in os if p in o.state) for os, p in ((before, old[key]), (after, new[key])))
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_images_are_reduced_after_augmentation() -> None:
    stores = load_images(BASE.data, BASE.model)
    step = TrainingStep(BASE, stores, torch.device("cpu"), torch.float32)
    batch = batch_of(stores.train, 1, np.arange(64))
    assert step.image_size == (4, 4)
    small, targets = step.prepare(batch)
    step.resize(8)
    large, same = step.prepare(batch)
    assert small.shape[2:] == (4, 4) and torch.equal(targets, same)
    generator = torch.Generator().manual_seed(step.seed(1, 0))
    images = augment(torch.from_numpy(batch.images), BASE.augment, (8, 8), generator)
    images, _ = mix(images, targets, BASE.augment, generator)
    torch.testing.assert_close(large, normalise(images, stores.preprocess))
    torch.testing.assert_close(small, normalise(resize(images, (4, 4)), stores.preprocess))
    assert torch.equal(resize(images, (8, 8)), images)
    torch.testing.assert_close(small.mean(), large.mean(), atol=0.03, rtol=0)


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(BASE, out=tmp_path_factory.mktemp("runs") / "whole").path


def test_run_leaves_a_plain_mixer_of_full_size(grown: Path) -> None:
    model, meta = model_file.load_model(grown / run_folder.MODEL_FILE)
    assert meta.config == BASE.model and meta.preprocess.image_size == (8, 8)
    assert model(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
    states = model_file.states(grown)
    assert model_file.read_tensors(states[0])[0]["model.blocks.0.token_mixing.fc1.weight"].shape == (16, 16)


@pytest.mark.parametrize("last", [3, 4, 5, 7, 10])
def test_run_resumes_bit_for_bit_around_a_growth(last: int, grown: Path, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(BASE, out=tmp_path / "run", report=stop_at(last))
    train(BASE, out=tmp_path / "run", resume=True)
    whole, resumed = weights(grown), weights(tmp_path / "run")
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[k], resumed[k]) for k in whole)
    plain, again = (
        [
            {k: v for k, v in line.items() if not k.endswith(("_s", "_mib"))}
            for line in run_folder.read_metrics(out / "metrics.jsonl")
        ]
        for out in (grown, tmp_path / "run")
    )
    assert plain == again


@pytest.mark.slow
def test_run_learns_before_and_after_a_growth(tmp_path: Path) -> None:
    plain = dataclasses.replace(recipe(steps=150, batch_size=128, progressive="6:0.3"), model=MODEL, augment=Augment())
    result = train(dataclasses.replace(plain, optim=Optim(name="muon", lr=5e-3, muon_lr=1e-2)), out=tmp_path / "run")
    losses = {
        x["step"]: x["loss"] for x in run_folder.read_metrics(result.path / "metrics.jsonl") if x["kind"] == "step"
    }
    assert losses[45] < losses[1] / 2 and losses[150] < losses[46] / 2
    assert result.summary["val_top1"] > 0.65
    assert result.summary["params"] == sum(p.numel() for p in Mixer(MODEL).parameters())


def test_trained_weights_start_small(grown: Path, tmp_path: Path) -> None:
    still = Optim(name="sgd", lr=1e-12, weight_decay=0.0)
    start = dataclasses.replace(recipe(steps=2, progressive="4:0.5"), init=Init(weights=str(grown)), optim=still)
    after = weights(train(start, out=tmp_path / "run").path)
    there_and_back = adapt(
        adapt(model_file.load_model(grown / run_folder.MODEL_FILE)[0], image_size=4), image_size=8
    ).state_dict()
    for name, p in there_and_back.items():
        torch.testing.assert_close(after[name], p)


def test_time_budget_counts_cheap_steps(tmp_path: Path) -> None:
    summary = train(recipe(steps=0, time="1s", save_every_s=1e9), out=tmp_path / "run").summary
    assert summary["steps"] == read_recipe(tmp_path / "run").run.steps >= 1
