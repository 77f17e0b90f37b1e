"""Parts of a batch on threads of their own: the gradients of the whole, the same bits on resume, and where not."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.training import Stopped, assert_same_run, stop_at

from mlpmixer.data.config import Data
from mlpmixer.models.configs import MixerConfig
from mlpmixer.models.names import MODELS
from mlpmixer.training import parts
from mlpmixer.training.distributed import ProcessGroup
from mlpmixer.training.inputs import load_images
from mlpmixer.training.parts import MIN_FLOPS, can_split, num_parts
from mlpmixer.training.recipe import Recipe, Run, variant
from mlpmixer.training.run import train
from mlpmixer.training.step import TrainingStep
from mlpmixer.training.threads import on_threads

SIZES = {"image_size": 8, "patch_size": 2, "in_channels": 1, "num_classes": 10, "num_blocks": 2, "hidden_dim": 16}
RECIPE = Recipe(
    model=MixerConfig(**SIZES, tokens_mlp_dim=8, channels_mlp_dim=32),  # type: ignore[arg-type]
    data=Data(name="digits"),
    run=Run(steps=6, batch_size=32, save_every_s=0, test=False, precision="float32", threads=3),
)
CPU, ALONE = torch.device("cpu"), ProcessGroup()


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts for a network that is too small for them."""
    monkeypatch.setattr(parts, "MIN_FLOPS", 1.0)


@pytest.mark.parametrize(
    ("threads", "images", "flops", "num"),
    [(2, 64, MIN_FLOPS, 2), (8, 64, MIN_FLOPS, 8), (64, 64, MIN_FLOPS, 8), (4, 7, 1e12, 1), (1, 64, 1e12, 1)],
)
def test_number_of_parts(threads: int, images: int, flops: float, num: int) -> None:
    assert num_parts(threads, images, flops) == num


def test_small_networks_share_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "MIN_FLOPS", MIN_FLOPS)
    assert num_parts(2, 64, 5e6) == 1 and num_parts(2, 64, 160e6) == 2 and num_parts(2, 32, 160e6) == 1


@pytest.mark.parametrize(
    ("changes", "accumulate"),
    [
        ({}, 1),
        ({}, 3),
        ({"optim": {"sam_rho": 0.1, "name": "adamw"}}, 1),
        ({"optim": {"frozen_layers": 2}}, 1),
        ({"optim": {"locality": 3, "mirror": True}}, 2),
    ],
)
def test_gradients_are_those_of_the_whole(changes: dict[str, Any], accumulate: int) -> None:
    recipe = variant(RECIPE, run={"batch_size": 48, "accumulate": accumulate}, **changes)
    stores = load_images(recipe.data, recipe.model)
    gen = torch.Generator().manual_seed(0)
    images, targets = torch.rand(48, 1, 8, 8, generator=gen), torch.eye(10)[torch.arange(48) % 10]
    found = []
    for threads in (1, 3):
        step = TrainingStep(recipe, stores, CPU, torch.float32)
        torch.nn.init.normal_(step.model.head.weight, generator=torch.Generator().manual_seed(1))  # type: ignore[union-attr,arg-type]
        with on_threads(threads):
            step.set_learning_rates(1, 1.0)
            loss, right = step.compute_gradients(images, targets, 1)
        assert (step.parts is not None) == (threads > 1)
        found.append(([loss, right], [p.grad for p in step.model.parameters() if p.grad is not None]))
    assert len(found[0][1]) == len(found[1][1]) > 0
    torch.testing.assert_close(found[1], found[0], atol=1e-6, rtol=1e-4)


def test_a_run_in_parts_resumes_to_the_same_bits(tmp_path: Path) -> None:
    recipe = variant(RECIPE, optim={"ema_decay": 0.9})
    for name in ("whole", "again"):
        train(recipe, out=tmp_path / name)
    assert_same_run(tmp_path / "whole", tmp_path / "again")
    with pytest.raises(Stopped):
        train(recipe, out=tmp_path / "stopped", report=stop_at(3))
    train(recipe, out=tmp_path / "stopped", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_threads_of_others_keep_their_number() -> None:
    def in_a_new_thread() -> int:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(torch.get_num_threads).result()

    def work(network: torch.nn.Module, images: torch.Tensor, _: torch.Tensor) -> int:
        network(images).sum().backward()
        return torch.get_num_threads()

    images = torch.zeros(4, 2)
    with on_threads(3):
        halves = parts.Parts(torch.nn.Linear(2, 2), 2, 1)
        assert torch.get_num_threads() == in_a_new_thread() == 3
        torch.set_num_threads(2)
        used = [halves.run(work, images, images) for _ in range(5)]
        assert used == [[1, 1]] * 5
    assert torch.get_num_threads() == in_a_new_thread()


def test_parts_follow_the_number_of_threads() -> None:
    step = TrainingStep(
        variant(RECIPE, run={"batch_size": 16}), load_images(RECIPE.data, RECIPE.model), CPU, torch.float32
    )
    images, targets = torch.rand(16, 1, 8, 8), torch.eye(10)[torch.arange(16) % 10]
    step.set_learning_rates(1, 1.0)
    for threads, each in ((4, 2), (2, 1)):
        with on_threads(threads):
            step.compute_gradients(images, targets, 1)
        assert step.parts is not None and (len(step.parts.networks), step.parts.threads) == (2, each)


def test_a_failure_in_a_part_is_raised() -> None:
    def fail(*_: object) -> None:
        raise ArithmeticError("in a part")

    network = torch.nn.Linear(2, 2)
    with pytest.raises(ArithmeticError, match="in a part"):
        parts.Parts(network, 2, 1).run(fail, torch.zeros(4, 2), torch.zeros(4, 2))


@pytest.mark.parametrize(
    ("model", "changes", "splits"),
    [
        ("Nano/4", {}, True),
        ("Nano/4", {"model": {"dropout": 0.1}}, False),
        ("Nano/4", {"model": {"drop_path": 0.1}}, False),
        ("Nano/4", {"run": {"checkpointing": True}}, False),
        ("Nano/4", {"run": {"compile": True}}, False),
        ("repmlpnet-t224", {}, False),  # BatchNorm
        ("as-mlp-t", {}, True),
    ],
)
def test_what_is_random_or_of_the_whole_batch_stays_whole(model: str, changes: dict[str, Any], splits: bool) -> None:
    from mlpmixer.models.architecture import create_model

    recipe = variant(Recipe(model=MODELS[model], data=Data(name="digits")), **changes)
    with torch.device("meta"):
        network = create_model(recipe.model)
    assert can_split(network, recipe, CPU, ALONE) == splits
    assert not can_split(network, recipe, torch.device("cuda"), ALONE)
    assert not can_split(network, recipe, CPU, ProcessGroup(rank=0, size=2))
