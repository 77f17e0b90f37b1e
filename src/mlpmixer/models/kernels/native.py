"""block.c compiled for this machine by its C compiler, once, and loaded."""

import ctypes
import functools
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from mlpmixer.hardware import cache_folder, cpu_name

SOURCE = Path(__file__).with_name("block.c")
FLAGS = ["-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-std=gnu11", "-shared", "-fPIC"]


class Unavailable(RuntimeError):
    """There is no compiled code for this machine; the message says why."""


@functools.cache
def library(dtype: torch.dtype) -> ctypes.CDLL:
    """The functions of block.c for tensors of `dtype` (float32 or bfloat16). Unavailable without Linux or a C compiler
    that has OpenMP."""
    if sys.platform != "linux":
        raise Unavailable("compiled kernels are for Linux")
    flags = [*FLAGS, *(["-DBFLOAT16"] if dtype == torch.bfloat16 else [])]
    can = sorted(
        name for name, there in torch.cpu.get_capabilities().items() if there is True
    )  # two "AMD EPYC" may share a home
    what = "\n".join([SOURCE.read_text(encoding="utf-8"), *flags, platform.machine(), cpu_name(), *can])
    try:
        folder = cache_folder() / "kernels"
    except RuntimeError as e:
        raise Unavailable(f"there is no place for compiled code: {e}") from None
    path = folder / f"block-{hashlib.sha256(what.encode()).hexdigest()[:16]}.so"
    try:
        if not path.exists():
            compile_to(path, flags)
        return ctypes.CDLL(str(path))
    except OSError as e:
        raise Unavailable(f"the compiled code cannot be kept or loaded: {e}") from None


def compile_to(path: Path, flags: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        try:
            subprocess.run(
                ["cc", *flags, str(SOURCE), "-o", str(made), "-lm"], check=True, capture_output=True, text=True
            )
        except FileNotFoundError:
            raise Unavailable("there is no C compiler (cc) here") from None
        except subprocess.CalledProcessError as e:
            raise Unavailable(f"cc cannot compile {SOURCE.name}: {e.stderr.strip()[-500:]}") from None
        os.replace(made, path)  # whole or not at all, whoever else is compiling


def call(name: str, dtype: torch.dtype, *args: Tensor | int | None) -> None:
    """Run a function of block.c; tensors go as pointers and must be contiguous, None as a null pointer."""
    assert all(not isinstance(a, Tensor) or a.is_contiguous() for a in args)
    getattr(library(dtype), name)(
        *(
            ctypes.c_int64(a) if isinstance(a, int) else ctypes.c_void_p(None if a is None else a.data_ptr())
            for a in args
        )
    )
