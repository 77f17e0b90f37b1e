"""A run's folder: one training at a time, and a log that is read as far as it can be."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.processes import SOURCES

from mlpmixer.weights import run_folder
from mlpmixer.weights.run_folder import LOCK_FILE, MetricsFile, drop_parts, locked, new_directory, read_metrics


def test_folder_is_locked_once(tmp_path: Path) -> None:
    again = locked(tmp_path / "run")
    with locked(tmp_path / "run") as problem:
        assert problem == ""
        with pytest.raises(ValueError, match=f"run is in use: process {os.getpid()} on .* trains in it; wait"), again:
            pass
        assert (tmp_path / "run").is_dir()
    assert not (tmp_path / "run").exists()  # nothing was written there


def test_lock_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(KeyError), locked(tmp_path):
        (tmp_path / "recipe.json").touch()
        raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.json"]


HOLD = """
import os, sys, time
from pathlib import Path
from mlpmixer.weights.run_folder import locked
with locked(Path(sys.argv[1])):
    if len(sys.argv) == 2 or os.fork() == 0:
        print("locked", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("with_a_child", [False, True], ids=["alone", "with a forked child that lives on"])
def test_lock_of_a_killed_process_is_taken_over(with_a_child: bool, tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path), *["fork"] * with_a_child]
    env = os.environ | {"PYTHONPATH": str(SOURCES)}
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env, start_new_session=True)
    try:
        assert holder.stdout and holder.stdout.readline() == "locked\n"
        with pytest.raises(ValueError, match=f"process {holder.pid} on"), locked(tmp_path):
            pass
        holder.kill()
        holder.wait()
        assert (tmp_path / LOCK_FILE).exists()
        with locked(tmp_path):
            assert f"process {os.getpid()} on" in (tmp_path / LOCK_FILE).read_text()
    finally:
        os.killpg(holder.pid, signal.SIGKILL) if with_a_child else holder.kill()
        holder.communicate()


@pytest.mark.parametrize("content", [b"", b"\xff\0\n" * 1000])
def test_what_an_old_lock_file_holds_does_not_matter(content: bytes, tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).write_bytes(content)
    with locked(tmp_path), pytest.raises(ValueError, match="in use: process"), locked(tmp_path):
        pass


def test_files_that_cannot_be_locked_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(file: Any, operation: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with locked(tmp_path) as problem:
        assert "Operation not supported" in problem
    monkeypatch.setattr(run_folder, "fcntl", None)  # as on Windows
    with locked(tmp_path) as problem:
        assert "no such locks" in problem


RACE = """
import sys
from pathlib import Path
from mlpmixer.weights.run_folder import locked, new_directory
folder, refused = Path(sys.argv[1]), 0
made = [new_directory(folder / "runs" / "digits").name for _ in range(20)]
for _ in range(200):
    try:
        with locked(folder / "run"):
            (folder / "alone").mkdir()  # FileExistsError when another one holds it
            (folder / "alone").rmdir()
    except ValueError:
        refused += 1
print(made, refused)
"""


def test_processes_that_start_together_never_share_a_folder(tmp_path: Path) -> None:
    command, env = [sys.executable, "-c", RACE, str(tmp_path)], os.environ | {"PYTHONPATH": str(SOURCES)}
    racers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) for _ in range(3)]
    said = [racer.communicate()[0] for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0, 0]
    made = [name for text in said for name in json.loads(text[: text.index("]") + 1].replace("'", '"'))]
    assert len(set(made)) == len(made) == 60 and not (tmp_path / "run").exists()


def test_new_directory_is_the_first_free_one(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "digits-2").touch()
    names = [new_directory(tmp_path / "runs" / "digits").name for _ in range(3)]
    assert names == ["digits", "digits-3", "digits-4"]


def test_unfinished_files_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "checkpoints"):
        folder.mkdir(exist_ok=True)
        for name in (".splits.json.123.part", ".tmpa9Z_xY", ".of-someone-else.part"):
            (folder / name).touch()
    drop_parts(tmp_path)  # no run was started here: the temporary file may be anyone's
    assert (tmp_path / ".tmpa9Z_xY").exists()
    (tmp_path / "recipe.json").touch()
    drop_parts(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob(".*")) == [".of-someone-else.part"] * 2


def test_log_is_read_as_far_as_it_can_be(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    good = [json.dumps({"kind": "step", "step": step, "loss": 1.0}).encode() for step in (1, 2, 3, 4)]
    bad = [b"\xff\xfe", b"12", b"[1]", b'{"kind": "step"}', b'{"kind": "step", "step": "3"}', b"[" * 100_000, bytes(99)]
    path.write_bytes(b"\n".join([*good[:2], *bad, *good[2:], b'{"kind": "st']))  # the last one: killed while writing
    assert [line["step"] for line in read_metrics(path)] == [1, 2, 3, 4]
    metrics = MetricsFile(path, 3)
    metrics.write({"kind": "step", "step": 4})
    metrics.sync()
    metrics.close()
    assert metrics.num_lost == len(bad)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4]


def test_missing_log_is_empty(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_a_resumed_run_keeps_the_date_and_command_that_began_it() -> None:
    command = ["mlpmixer", "train", "digits"]
    began = {"date": "2026-01-01T00:00:00+00:00", "command": command, "device": "another"}
    once = run_folder.environment("a CPU", "float32", "torch", began=began)
    twice = run_folder.environment("a CPU", "float32", "torch", began=once)
    assert (twice["date"], twice["command"], twice["device"]) == (began["date"], command, "a CPU")
    assert len(once["resumed"]) == 1 and twice["resumed"][:1] == once["resumed"] and len(twice["resumed"]) == 2
    fresh = run_folder.environment("a CPU", "float32", "torch")
    assert fresh["resumed"] == [] and fresh["command"] != command
