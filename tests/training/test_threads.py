"""How many threads a run takes, that it takes them again, and that they sleep where others want the cores."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.training import Stopped, assert_same_run, stop_at

from mlpmixer.data.config import Data
from mlpmixer.models.configs import MixerConfig
from mlpmixer.training import threads
from mlpmixer.training.batches import Batch
from mlpmixer.training.recipe import Recipe, Run, read_recipe, variant
from mlpmixer.training.run import train
from mlpmixer.training.step import TrainingStep
from mlpmixer.training.threads import Waiting, choose, on_threads
from mlpmixer.weights.run_folder import write_recipe

RECIPE = Recipe(
    model=MixerConfig(
        image_size=8,
        patch_size=2,
        in_channels=1,
        num_blocks=1,
        hidden_dim=16,
        tokens_mlp_dim=8,
        channels_mlp_dim=16,
        num_classes=10,
    ),
    data=Data(name="digits"),
    run=Run(steps=4, save_every_s=0, test=False),
)


@pytest.fixture
def speeds(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """Seconds of a step on each number of threads, instead of measuring; the process has two."""
    seconds = {2: 1.0, 1: 0.5}
    monkeypatch.setattr(threads, "seconds_per_step", lambda *_: seconds[torch.get_num_threads()])
    return seconds


def events(report: list[dict[str, Any]], kind: str) -> list[str]:
    return [event["what"] for event in report if event["kind"] == kind]


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [({1: 2.0, 2: 1.1, 4: 1.0}, 4), ({1: 0.9, 2: 1.0}, 2), ({1: 0.8, 2: 1.0}, 1), ({1: 0.5, 2: 0.7, 4: 1.0}, 1)],
)
def test_fewer_threads_must_be_clearly_faster(seconds: dict[int, float], chosen: int) -> None:
    assert choose(seconds) == chosen


def test_the_number_is_measured_said_and_taken_again(tmp_path: Path, speeds: dict[int, float]) -> None:
    report: list[dict[str, Any]] = []
    used = []
    with on_threads(2):
        whole = train(RECIPE, out=tmp_path / "whole", report=report.append)
        assert torch.get_num_threads() == 2
        assert events(report, "doing") == ["1 thread, by measuring (images/s on 1: 256, 2: 128)"]
        assert read_recipe(whole.path).run.threads == 1
        assert json.loads((whole.path / "env.json").read_text())["device"].endswith(", 1 thread")

        with pytest.raises(Stopped):
            train(RECIPE, out=tmp_path / "run", report=stop_at(2))
        speeds[1] = 2.0  # another number would be chosen now
        report.clear()

        def heard(event: dict[str, Any]) -> None:
            report.append(event)
            used.append(torch.get_num_threads())

        train(RECIPE, out=tmp_path / "run", resume=True, report=heard)
    assert not events(report, "doing") and set(used) == {1}
    assert_same_run(whole.path, tmp_path / "run")


def test_a_given_number_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "seconds_per_step", None)
    used = set()
    recipe = variant(RECIPE, run={"threads": 2})
    train(recipe, out=tmp_path / "run", report=lambda event: used.add(torch.get_num_threads()))
    assert 2 in used and torch.get_num_threads() == 1
    with pytest.raises(ValueError, match="another recipe"):
        train(variant(RECIPE, run={"threads": 1}), out=tmp_path / "run", resume=True)


def test_steps_like_most_of_the_run_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = variant(RECIPE, optim={"head_steps": 3}, run={"progressive": "4:0.5"})
    seen = []

    def measured(step: TrainingStep, given: Iterator[Batch], *_: object) -> float:
        first, second = next(given), next(given)
        step(first, 0.0)
        learning = [p.requires_grad for p in step.model.parameters()]
        seen.append((first is second, step.image_size, all(learning)))
        return 1.0

    monkeypatch.setattr(threads, "seconds_per_step", measured)
    with on_threads(2), pytest.raises(Stopped):
        train(recipe, out=tmp_path / "run", report=stop_at(1, "step"))
    assert seen == [(True, (8, 8), True)] * 4


def test_a_slow_step_is_announced_and_measured_once(
    tmp_path: Path, speeds: dict[int, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[int] = []

    def slow(*_: object) -> float:
        measured.append(torch.get_num_threads())
        return 10 + speeds[torch.get_num_threads()]

    monkeypatch.setattr(threads, "seconds_per_step", slow)
    report: list[dict[str, Any]] = []
    with on_threads(2):
        train(RECIPE, out=tmp_path / "run", report=report.append)
    assert measured == [2, 1]
    assert events(report, "doing") == [
        "measuring how many threads are fast: a step takes 11 s",
        "2 threads, by measuring (images/s on 1: 12, 2: 12)",
    ]


def test_more_threads_than_cores_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "cores", lambda: 2)
    recipe, notes = variant(RECIPE, run={"threads": 3}), []

    def heard(event: dict[str, Any]) -> None:
        if event["kind"] == "note":
            notes.append(event["note"])
        if event["kind"] == "step" and event["step"] == 2 and len(notes) == 1:
            raise Stopped

    with pytest.raises(Stopped):
        train(recipe, out=tmp_path / "run", report=heard)
    train(recipe, out=tmp_path / "run", resume=True, report=heard)
    assert notes == [
        "3 threads, and there are 2 cores: they wait for each other",
        "the run keeps the 3 threads that it began with, on which its last bits depend, and there are 2 cores: they "
        "wait for each other",
    ]
    assert threads.crowded(2, False) == threads.crowded(0, True) == ""


def test_an_old_state_keeps_to_the_threads_of_torch(tmp_path: Path, speeds: dict[int, float]) -> None:
    with pytest.raises(Stopped):
        train(RECIPE, out=tmp_path / "run", report=stop_at(2))
    assert read_recipe(tmp_path / "run").run.threads == 1  # written down where there is nothing to measure, too
    write_recipe(tmp_path / "run", RECIPE)
    report: list[dict[str, Any]] = []
    with on_threads(2):
        train(RECIPE, out=tmp_path / "run", resume=True, report=report.append)
    assert not events(report, "doing")


def test_a_number_below_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"run\.threads must be at least 0"):
        Run(threads=-1)
    with pytest.raises(ValueError, match=r"run\.threads must be at most 1,024"):
        Run(threads=2000)


@pytest.mark.skipif(sys.platform != "linux", reason="what is asked for is GNU's OpenMP on Linux")
def test_threads_sleep_while_others_want_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    now = {"s": 0.0, "waited": 0.0}
    monkeypatch.setattr(threads.time, "monotonic", lambda: now["s"])
    monkeypatch.setattr(threads, "waited_s", lambda: now["waited"])

    def after(seconds: float, share: float) -> None:
        now["s"] += seconds
        now["waited"] += share * seconds
        waiting.look()

    with on_threads(2):
        waiting = Waiting()
        before = set(os.listdir("/proc/self/task"))
        after(0.1, 1.0)
        assert waiting.over is None  # too short to say
        after(1.0, 0.5)
        assert waiting.over is not None and len(set(os.listdir("/proc/self/task")) - before) > 1
        after(1.0, 0.03)
        assert waiting.over is not None  # neither busy nor idle
        after(1.0, 0.0)
        assert waiting.over is None
    with on_threads(1):
        after(1.0, 0.9)
        assert waiting.over is None  # nothing to wait for


def test_the_wait_for_a_core_is_read() -> None:
    assert 0 <= threads.waited_s() < 1e6


def test_openmp_is_found_in_a_folder_with_spaces() -> None:
    mapped = """\
7f10-7f20 r-xp 00000000 00:31 12    /disk/A B/lib/libgomp-a34b.so.1
7f20-7f30 r--p 00002000 00:31 12    /disk/A B/lib/libgomp-a34b.so.1
7f30-7f40 r-xp 00000000 00:31 13    /usr/lib/libgomp.so.1.0.0 (deleted)
7f40-7f50 r-xp 00000000 00:31 14    /opt/libgomp/libc.so.6
7f50-7f60 rw-p 00000000 00:00 0
"""
    assert threads.openmp_libraries(mapped) == {"/disk/A B/lib/libgomp-a34b.so.1", "/usr/lib/libgomp.so.1.0.0"}
