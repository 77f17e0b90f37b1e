"""The measured batch size: by speed and memory, written down, and then as if it had been typed."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.training import Stopped, assert_same_run, stop_at

from mlpmixer.data.config import Data
from mlpmixer.hardware import control_group_bytes, free_bytes
from mlpmixer.models.names import MIXERS
from mlpmixer.training import batch_size
from mlpmixer.training.batch_size import Trial, choose, sizes_to_try
from mlpmixer.training.batches import Batch
from mlpmixer.training.inputs import ImageCache
from mlpmixer.training.lr_finder import find_lr
from mlpmixer.training.recipe import Augment, Optim, Recipe, Run, read_recipe, variant
from mlpmixer.training.run import train
from mlpmixer.training.step import TrainingStep
from mlpmixer.weights.run_folder import measured_fields

AUTO = Recipe(
    name="digits",  # whose batch is 64
    model=dataclasses.replace(MIXERS["Pico/2"], num_blocks=1, hidden_dim=16),
    data=Data(name="digits"),
    augment=Augment(mixup=0.2),
    optim=Optim(name="muon", warmup_steps=2),
    run=Run(steps=6, batch_size="auto", save_every_s=0),
)


@pytest.mark.parametrize(
    ("speeds", "mib_per_image", "room_mib", "chosen", "tried", "why"),
    [
        ({}, 1, 10_000, 64, 256, "none up to 256 is 5% faster"),  # flat: as the recipe says
        ({128: 2, 256: 2.04, 512: 2.04}, 1, 10_000, 128, 512, "none up to 512 is 5% faster"),
        ({128: 0.9, 256: 1.5, 512: 1.6, 1024: 1.61}, 1, 10_000, 512, 1024, "none up to 1,024"),  # one slow moment
        ({128: 2, 256: 4, 512: 8, 1024: 16}, 1, 10_000, 1024, 1024, "an epoch of larger ones"),
        ({128: 2, 256: 4, 512: 8, 1024: 16}, 1, 400, 256, 256, "512 would take more than 80% of the 0.4 GiB"),
        ({}, 10, 450, 32, 32, "64 would take more than 80%"),  # less than the recipe's own
    ],
)
def test_smallest_of_the_fastest_that_fit(
    speeds: dict[int, float], mib_per_image: int, room_mib: int, chosen: int, tried: int, why: str
) -> None:
    seen = []

    def measure(size: int) -> Trial:
        seen.append(size)
        return Trial(size, 1000 * speeds.get(size, 1.0), size * mib_per_image * 2**20)

    trial, reason = choose([2**k for k in range(11)], 64, room_mib * 2**20, measure)
    assert (trial.batch_size, max(seen)) == (chosen, tried), "what will not fit is not even tried"
    assert why in reason


def test_sizes_share_parts_and_processes_and_leave_an_epoch_its_steps() -> None:
    assert sizes_to_try(1, 64, 1365) == [1, 2, 4, 8, 16, 32, 64, 128]
    assert sizes_to_try(6, 64, 1365) == [6, 12, 24, 48, 96]
    assert sizes_to_try(1, 64, 50) == [1, 2, 4, 8, 16, 32]  # there are no more
    assert sizes_to_try(1, 512, 1365)[-1] == 512  # the recipe's own is not lowered


@pytest.mark.parametrize(("fits", "chosen"), [(40, 32), (0, None)])
def test_out_of_memory_ends_the_search(
    fits: int, chosen: int | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    update = TrainingStep.__call__

    def limited(self: TrainingStep, batch: Batch, lr_factor: float) -> tuple[torch.Tensor, torch.Tensor]:
        if len(batch.labels) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return update(self, batch, lr_factor)

    monkeypatch.setattr(TrainingStep, "__call__", limited)
    if chosen is None:
        with pytest.raises(MemoryError):
            train(AUTO, out=tmp_path / "run")
        return
    assert read_recipe(train(AUTO, out=tmp_path / "run").path).run.batch_size == chosen


def test_measured_run_is_the_run_of_that_number_and_resumes_without_measuring(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said, images = [], ImageCache()
    auto = train(
        AUTO, out=tmp_path / "auto", report=lambda event: said.append(event.get("what")), image_cache=images
    ).path
    number = read_recipe(auto).run.batch_size
    assert number in (64, 128) and measured_fields(auto) == ["run.batch_size", "run.threads"]
    line = next(text for text in said if text and text.startswith(f"batch size {number}, by measuring: "))
    assert line.endswith("The learning rate stays 0.001" + ", which was chosen for batches of 64" * (number != 64))
    typed = variant(AUTO, run={"batch_size": number})
    assert_same_run(train(typed, out=tmp_path / "typed", image_cache=images).path, auto)
    with pytest.raises(Stopped):
        train(typed, out=tmp_path / "stopped", report=stop_at(3), image_cache=images)
    monkeypatch.setattr("mlpmixer.training.run.fix_batch_size", lambda *_: pytest.fail("measured again"))
    # as --out DIR --resume asks, whose recipe still says auto
    assert_same_run(train(read_recipe(tmp_path / "stopped"), out=tmp_path / "stopped", resume=True).path, auto)
    assert measured_fields(tmp_path / "stopped") == ["run.threads"], "also after a resume"
    assert train(AUTO, out=auto, resume=True).path == auto


def test_range_test_measures_it_as_training_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_size, "measured_batch_size", lambda *_: (32, "by measuring"))
    said: list[Any] = []
    sweep = find_lr(AUTO, steps=20, report=lambda event: said.append(event.get("what")))
    assert sweep == find_lr(variant(AUTO, run={"batch_size": 32}), steps=20) and "by measuring" in said


def test_other_words_are_refused() -> None:
    with pytest.raises(ValueError, match=r"run\.batch_size='Auto': expected int \| 'auto', got str"):
        Run(batch_size="Auto")  # type: ignore[arg-type]


def test_system_that_does_not_tell_its_free_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(batch_size, "free_bytes", lambda device: None)
    with pytest.raises(ValueError, match=r"run\.batch_size=auto needs the size of the free memory"):
        train(AUTO, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_free_memory_is_what_machine_and_control_groups_leave(tmp_path: Path) -> None:
    free = free_bytes(torch.device("cpu"))
    assert free is None or 0 < free < 2**50
    mounted, groups = tmp_path / "mounted", tmp_path / "groups"
    new, old = mounted / "job", mounted / "memory" / "job" / "inner"
    for folder in (new, old):
        folder.mkdir(parents=True)
    (new / "memory.max").write_text("max\n")
    (mounted / "memory.max").write_text("1000\n")
    for folder in (new, mounted):
        (folder / "memory.current").write_text("700\n")
        (folder / "memory.stat").write_text("anon 500\ninactive_file 100\n")
    (old / "memory.limit_in_bytes").write_text("5000\n")
    (old / "memory.usage_in_bytes").write_text("4000\n")
    (old / "memory.stat").write_text("total_inactive_file 10\n")
    groups.write_text("5:devices:/\n4:cpu,memory:/job/inner\n0::/job\n")
    assert control_group_bytes(groups, mounted) == [1010, 400]
    assert control_group_bytes(tmp_path / "none", mounted) == []
