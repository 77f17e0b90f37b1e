"""Paths are cut to their last names, and nothing else is."""

from pathlib import Path
from typing import Any

import pytest

from mlpmixer.weights.privacy import without_folders


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/disk/birders/birds", "birds"),
        ("~/birds/", "birds"),
        ("../ada/my birds", "my birds"),
        ("data\\birds", "birds"),
        ("C:\\Users\\ada\\birds\\", "birds"),
        (Path("/disk/birders/init.npz"), "init.npz"),
        ("https://ada:secret@host.example:8080/data/birds?token=secret", "birds"),
        ("https://host.example/", "DIR"),
        ("/", "DIR"),
        ("s3://bucket/ada/train-{000..146}.tar", "train-{000..146}.tar"),
        *((same, same) for same in ("", ".", "birds", "hf:ada/birds", "S/16", "B/16:imagenet21k", "resmlp-b24/8")),
    ],
)
def test_of_a_path_the_last_name_stays(path: Any, name: str) -> None:
    assert without_folders(path) == name


def test_every_path_of_a_recipe_is_cut() -> None:
    recipe = {
        "data": {
            "name": "/disk/birders/birds",
            "data_dir": "/disk/birders",
            "classes": "/disk/birders/names.txt",
            "lanes": 16,
        },
        "init": {"weights": "/disk/birders/runs/birds"},
        "run": {"progressive": "16:0.3,24:0.6", "stages": ["/disk/birders/x", None, 0.5]},
    }
    assert without_folders(recipe) == {
        "data": {"name": "birds", "data_dir": "DIR", "classes": "names.txt", "lanes": 16},
        "init": {"weights": "birds"},
        "run": {"progressive": "16:0.3,24:0.6", "stages": ["x", None, 0.5]},
    }


def test_every_path_of_a_command_is_cut() -> None:
    command = [
        "mlpmixer",
        "train",
        "/disk/birders/birds",
        "--out=/disk/birders/r",
        "--model",
        "S/16",
        "--data-dir",
        "/disk/birders",
    ]
    command += ["--weights-dir", "/disk/birders/weights"]
    assert without_folders([*command, "--data.data-dir=/disk/birders", "--quiet", "--init", "../ada/w.npz"]) == [
        *("mlpmixer", "train", "birds", "--out=r", "--model", "S/16", "--data-dir", "DIR", "--weights-dir", "DIR"),
        *("--data.data-dir=DIR", "--quiet", "--init", "w.npz"),
    ]
