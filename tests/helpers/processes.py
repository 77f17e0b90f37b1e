"""Programs in a Python of their own."""

import os
import subprocess
import sys
from pathlib import Path

SOURCES = Path(__file__).parents[2] / "src"
OF_ONNXRUNTIME = ("google", "flatbuffers", "packaging")  # what it depends on
OF_THE_COMMAND = ("mlpmixer", "tyro", "typeguard", "docstring_parser", "typing_extensions", "shtab", "rich")
ALONE = """
import sys
from importlib.abc import MetaPathFinder
allowed = {"numpy", "PIL", "onnxruntime", *%r}
class Blocker(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in allowed | set(sys.stdlib_module_names):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
"""


def python(code: str, *, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    """Python with this package."""
    env = os.environ | {"PYTHONPATH": str(SOURCES)}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, env=env)


def alone(code: str, packages: tuple[str, ...] = (), *, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    """Python with nothing but its standard library, the three packages of a bundle, and these."""
    return python(ALONE % ((*OF_ONNXRUNTIME, *packages),) + code, cwd=cwd)
