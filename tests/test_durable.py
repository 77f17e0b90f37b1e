"""Files are written whole, with the mode that the umask gives them; damaged JSON is named."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from mlpmixer.durable import read_json, replacing, write_json, write_text
from mlpmixer.evaluation.metrics import CONFUSION_MAX_CLASSES


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_mode_is_the_umasks_whatever_writes_the_file(umask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        write_json(tmp_path / "a.json", {"naïve": 1})
        with replacing(tmp_path / "b.safetensors") as part:
            save_file({"x": np.zeros(3)}, part)  # by itself 0600
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in sorted(tmp_path.iterdir())] == [mode, mode]
    assert read_json(tmp_path / "a.json") == {"naïve": 1}


def test_threads_that_write_one_file_do_not_mix_their_content(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    with replacing(file) as first:
        first.write_text("first")
        with ThreadPoolExecutor(1) as pool:
            pool.submit(write_text, file, "second").result()
        assert file.read_text() == "second" and first.read_text() == "first"
    assert file.read_text() == "first" and [*tmp_path.iterdir()] == [file]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_failed_write_leaves_the_old_file_and_no_rest(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": True})

    def fail(fd: int) -> None:
        raise error

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(type(error)):
        write_json(path, {"new": True})
    assert read_json(path) == {"old": True} and list(tmp_path.iterdir()) == [path]


def test_summary_of_a_thousand_classes_is_read(tmp_path: Path) -> None:
    confusion = [[0] * CONFUSION_MAX_CLASSES] * CONFUSION_MAX_CLASSES
    text = json.dumps({"val": {"confusion": confusion}, "test": {"confusion": confusion}})
    (tmp_path / "summary.json").write_text(text)
    assert len(read_json(tmp_path / "summary.json")["test"]["confusion"]) == CONFUSION_MAX_CLASSES


@pytest.mark.parametrize(
    "content", [b"", b'{"half": ', b"12", b"[]", b'{"a": "\xff"}', b"[" * 100_000, b'{"a": ' * 100_000, b"9" * 5000]
)
def test_damaged_json_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"recipe\.json is damaged: ") as error:
        read_json(tmp_path / "recipe.json")
    assert len(str(error.value)) < 300
