"""Names that may leave this machine: those of data, models and files, without the folders, users and hosts around them.
No torch."""

import os
import re
from typing import Any

from mlpmixer.models.names import MODELS
from mlpmixer.weights.published import WEIGHTS

FOLDER = "DIR"  # stands for a folder whose own name says nothing about the model
FOLDER_OPTION = re.compile(r"--((data\.)?data|weights)[-_]dir")


def without_folders(value: Any) -> Any:
    """A path, the words of a command line, or a recipe as JSON, with every path in it cut to its last name.

    What only looks like a path stays: names of networks and published weights, hf:owner/name.
    """
    if isinstance(value, dict):
        return {k: FOLDER if k == "data_dir" and v else without_folders(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        pairs = zip(["", *value], value, strict=False)
        return [FOLDER if FOLDER_OPTION.fullmatch(str(before)) else without_folders(word) for before, word in pairs]
    if not isinstance(value, str | os.PathLike):
        return value
    text = os.fspath(value)
    option, equals, path = text.partition("=") if text.startswith("--") else ("", "", text)
    return option + equals + (FOLDER if FOLDER_OPTION.fullmatch(option) and equals else _last_name(path))


def _last_name(path: str) -> str:
    if path.startswith("hf:") or path in MODELS or path in WEIGHTS:
        return path
    below = re.sub(r"^[a-z][a-z0-9+.-]*://[^/?#]*([^?#]*).*", r"\1", path, flags=re.DOTALL)  # of a web address
    return re.split(r"[/\\]", below.rstrip("/\\"))[-1] or (FOLDER if path else "")
