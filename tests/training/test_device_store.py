"""A training step on CUDA: what can be said of it without one, on a pretended device that has shapes and no numbers."""

import dataclasses
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.training import Stopped, assert_same_run, batch_of, stop_at
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mlpmixer.data.config import Data
from mlpmixer.models.architecture import create_model
from mlpmixer.models.names import MIXERS
from mlpmixer.training import device_store, randaugment, step
from mlpmixer.training.augment import augment
from mlpmixer.training.device_store import DeviceStore, on_device, to_device
from mlpmixer.training.distillation import StoredLogits, make_teacher
from mlpmixer.training.inputs import batches, load_images
from mlpmixer.training.recipe import Augment, Distill, Optim, Recipe, Run
from mlpmixer.training.run import train
from mlpmixer.training.step import TrainingStep
from mlpmixer.weights.model_file import ModelMeta

CPU, DEVICE = torch.device("cpu"), torch.device("meta")
SMALL = dataclasses.replace(
    MIXERS["Pico/2"], num_blocks=2, hidden_dim=24, tokens_mlp_dim=16, channels_mlp_dim=48, drop_path=0.1
)
BASE = Recipe(
    name="test",
    model=dataclasses.replace(SMALL, num_classes=10),
    data=Data(name="digits"),
    optim=Optim(name="muon", ema_decay=0.9, clip_norm=1.0, label_smoothing=0.1, locality=3, mirror=True),
    run=Run(steps=8, batch_size=32, precision="float32", test=False),
)
AUGMENTS = {
    "none": Augment(),
    "shifts": Augment(pad_crop_px=1, flip=True, cutmix=1.0, mixup=0.2, mix_probability=0.5),
    "all": Augment(
        inception_crop=0.3, pad_crop_px=1, pad_mode="constant", flip=True, randaugment_layers=2, trivialaugment=True,
        rotate_deg=5,
        zoom=0.1, zoom_out=0.2, shear=0.1, invert=0.5, color_jitter=0.3, noise=0.02, erasing=0.5, mixup=0.2,
    ),
    "big_vision": Augment(randaugment_layers=2, randaugment_magnitude=15, randaugment_form="big_vision", cutmix=0.5),
}  # fmt: skip


class NeverWaits(TorchDispatchMode):
    """Counts what is sent to the device, and refuses what the host would wait for. That a value is asked for, meta
    tensors refuse."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if (
            func is torch.ops.aten._to_copy.default
            and args[0].device == CPU
            and torch.device(kwargs.get("device", CPU)) == DEVICE
        ):
            assert kwargs.get("non_blocking"), "the host waits until the device has copied"
            self.sent += 1
        return func(*args, **kwargs)


def pretended(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> TrainingStep:
    """A Step on a device that works alone, before the first batch: meta, whose tensors have shapes and no numbers,
    treated like CUDA."""
    for module in (device_store, step):
        monkeypatch.setattr(module, "is_async", lambda device: device == DEVICE)
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 30, 1 << 30))
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr(
        import_module("torch.optim.optimizer"), "_get_fused_kernels_supported_devices", lambda: ["meta"]
    )
    return TrainingStep(recipe, load_images(recipe.data, recipe.model), DEVICE, torch.float32)


RULES: dict[str, dict[str, Any]] = {
    "muon": {},
    "adamw": {"name": "adamw"},
    "sgd": {"name": "sgd"},
    "sam": {"sam_rho": 0.1},
}


@pytest.mark.parametrize(
    ("name", "rule"), [*((name, "muon") for name in AUGMENTS), *(("shifts", rule) for rule in RULES if rule != "muon")]
)
def test_step_never_waits_for_the_device(name: str, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = dataclasses.replace(BASE, augment=AUGMENTS[name], optim=dataclasses.replace(BASE.optim, **RULES[rule]))
    step = pretended(recipe, monkeypatch)
    assert isinstance(step.images, DeviceStore) and step.images.pixels.device == DEVICE
    with NeverWaits() as watch:
        for batch in batches(step.images, recipe.run, 1, 3):
            loss, right = step(batch, 1.0)
            step.average_in(0.1)
            assert batch.images.device == loss.device == right.device == DEVICE
    assert watch.sent <= 3 * 5  # image numbers, labels, partners, shares, boxes; never the images


def test_teacher_never_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = dataclasses.replace(BASE, augment=AUGMENTS["shifts"], distill=Distill(teacher="function", temperature=2.0))
    step = pretended(recipe, monkeypatch)
    classes, train = step.stores.splits.classes, step.stores.train
    meta = ModelMeta(config=recipe.model, classes=classes, preprocess=step.stores.preprocess)
    stored = StoredLogits(np.zeros((len(train.images), 10), np.float32))
    for source in ((create_model(recipe.model), meta), stored):
        step.teacher = make_teacher(source, recipe.distill, train, classes, DEVICE, torch.float32)
        with NeverWaits():
            for batch in batches(step.images, recipe.run, 1, 2):
                step(batch, 1.0)


def test_pretended_device_notices_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    step = pretended(BASE, monkeypatch)
    batch = batch_of(step.images, 1, np.arange(32))
    for ask in (lambda x: x.sum().item(), lambda x: x.cpu(), lambda x: x[x > 0], lambda x: (x > 0).nonzero()):
        monkeypatch.setattr(step, "compute_gradients", lambda images, *_, ask=ask: ask(images))
        with pytest.raises((RuntimeError, NotImplementedError)):
            step(batch, 1.0)
    with NeverWaits(), pytest.raises(AssertionError, match="the host waits"):
        torch.zeros(3).to(DEVICE)


def test_only_small_sets_move_to_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    store = load_images(BASE.data, BASE.model).train
    assert on_device(store, CPU) is store
    monkeypatch.setattr(device_store, "is_async", lambda device: True)
    for free, moves in ((4 * store.nbytes, True), (4 * store.nbytes - 1, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, free))
        assert isinstance(on_device(store, DEVICE), DeviceStore) == moves
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 40, 1 << 40))
    store.in_memory = False
    assert on_device(store, DEVICE) is store


def test_device_batches_equal_store_batches() -> None:
    store = load_images(BASE.data, BASE.model).train
    there = batches(DeviceStore(store, CPU), BASE.run, 3, 5)
    for stored, moved in zip(batches(store, BASE.run, 3, 5), there, strict=True):
        assert stored.step == moved.step and np.array_equal(stored.numbers, moved.numbers)
        assert np.array_equal(stored.images, moved.images.numpy()) and np.array_equal(stored.labels, moved.labels)


def operations(form: str) -> tuple[Tensor, dict[str, randaugment.Op], tuple[Tensor, ...]]:
    """Images, the operations of a form, and what each image draws."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (64, 3, 16, 12), generator=generator, dtype=torch.uint8)
    enhance: dict[str, Any] = {"shear": 0.3, "down_px": 7, "right_px": 5, "rotate_deg": 30, "enhance": 0.9, "bits": 4}
    ops = randaugment.big_vision_ops(16, 12) if form == "big_vision" else randaugment.torchvision_ops(**enhance)
    which, sign = torch.arange(64) % len(ops), 2 * torch.randint(2, (64,), generator=generator) - 1
    return (
        images,
        ops,
        (which, torch.rand(64, generator=generator).double(), sign, torch.rand((64, 2), generator=generator)),
    )


@pytest.mark.parametrize("form", ["torchvision", "big_vision"])
def test_operations_on_all_equal_operations_on_some(form: str) -> None:
    images, ops, drawn = operations(form)
    some, everything = (way(ops, images, *drawn) for way in (randaugment.for_some, randaugment.for_all))
    assert torch.equal(some, everything) and not torch.equal(some, images)


@pytest.mark.parametrize("name", AUGMENTS)
def test_device_draws_have_the_same_distribution(name: str) -> None:
    images = torch.randint(256, (512, 16, 12, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    cfg = AUGMENTS[name]
    drawn = augment(images, cfg, (16, 12), torch.Generator().manual_seed(1))
    torch.manual_seed(1)
    there = augment(images, cfg, (16, 12), CPU)
    assert there.shape == drawn.shape and there.dtype == torch.float32 and there.min() >= 0 and there.max() <= 255
    torch.manual_seed(1)
    assert torch.equal(there, augment(images, cfg, (16, 12), CPU))
    for of in (torch.mean, torch.std):  # the same distribution, by its first moments
        torch.testing.assert_close(of(there), of(drawn), rtol=0.02, atol=0)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "all" else [pytest.mark.slow]) for name in AUGMENTS]
)
def test_augmentation_compiles_as_a_whole(name: str) -> None:
    images = torch.randint(256, (8, 16, 12, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch._dynamo.reset()
    whole = torch.compile(augment, backend="eager", fullgraph=True)
    torch.manual_seed(1)
    plain = augment(images, AUGMENTS[name], (16, 12), CPU)
    torch.manual_seed(1)
    assert torch.equal(whole(images, AUGMENTS[name], (16, 12), CPU), plain)


def test_to_device_cpu_is_no_copy() -> None:
    tensor = torch.arange(3)
    assert to_device(tensor, CPU) is tensor


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "compiled"), [*((name, False) for name in AUGMENTS), ("all", True)])
def test_cuda_step_never_waits(name: str, compiled: bool) -> None:
    run = dataclasses.replace(BASE.run, compile=compiled, precision="bfloat16")
    recipe = dataclasses.replace(BASE, augment=AUGMENTS[name], run=run)
    step = TrainingStep(recipe, load_images(recipe.data, recipe.model), torch.device("cuda"), torch.bfloat16)
    for batch in batches(step.images, recipe.run, 1, 20):  # at first kernels are compiled and states are made
        torch.cuda.set_sync_debug_mode("error" if batch.step > 8 else "default")
        try:
            loss, _ = step(batch, 1.0)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert loss.isfinite()


@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize(
    "where", [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=pytest.mark.gpu)]
)
@pytest.mark.parametrize("form", ["torchvision", "big_vision"])
def test_compiled_operations_equal_plain_ones(form: str, where: str) -> None:
    images, ops, drawn = operations(form)
    compiled = torch.compile(lambda images, *numbers: randaugment.for_all(ops, images, *numbers))
    there = compiled(images.to(where), *(numbers.to(where) for numbers in drawn)).cpu().int()
    difference = (there - randaugment.for_some(ops, images, *drawn).int()).abs()
    for k, name in enumerate(
        ops
    ):  # a product that is rounded elsewhere may fall to the next level, a warp to the next pixel
        assert (difference[drawn[0] == k] <= 1).float().mean() > 0.97, name


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", ["", "default", "reduce-overhead"])
def test_cuda_run_resumes_bit_for_bit(mode: str, tmp_path: Path) -> None:
    run = dataclasses.replace(
        BASE.run, device="cuda", precision="bfloat16", save_every_s=0, steps=12, compile=bool(mode)
    )
    run = dataclasses.replace(run, compile_mode=mode or "default")
    recipe = dataclasses.replace(BASE, augment=AUGMENTS["shifts" if mode else "all"], run=run)

    whole = train(recipe, out=tmp_path / "whole").path
    with pytest.raises(Stopped):
        train(recipe, out=tmp_path / "stopped", report=stop_at(5))
    train(recipe, out=tmp_path / "stopped", resume=True)
    assert_same_run(whole, tmp_path / "stopped")
