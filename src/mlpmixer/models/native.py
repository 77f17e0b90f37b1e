"""kernels/block.c compiled for this machine by its C compiler, once, and loaded. No torch."""

import ctypes
import functools
import hashlib
import os
import platform
import stat
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mlpmixer.hardware import cache_folder, cpu_flags, cpu_name

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SOURCE = Path(__file__).parent / "kernels" / "block.c"
FLAGS = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-std=gnu11", "-shared", "-fPIC"]


class Unavailable(RuntimeError):
    """There is no compiled code for this machine; the message says why."""


@functools.cache
def library(dtype: str) -> ctypes.CDLL:
    """The functions of block.c for float32 or bfloat16. Unavailable without Linux or a C compiler that has OpenMP."""
    if sys.platform != "linux":
        raise Unavailable("compiled kernels are for Linux")
    target = ["-march=haswell", "-mtune=native"] if leaves_avx512() else ["-march=native"]
    flags = [*FLAGS, *target, *(["-DBFLOAT16"] if dtype == "bfloat16" else [])]
    machine = platform.machine(), cpu_name(), *sorted(cpu_flags())  # two "AMD EPYC" may share a home
    what = "\n".join([SOURCE.read_text(encoding="utf-8"), *flags, *machine])
    name = f"block-{hashlib.sha256(what.encode()).hexdigest()[:16]}.so"
    with suppress(OSError):  # a disk that is full or read-only, or that nothing may be run from
        if folder := private_folder():
            if is_own(path := folder / name):
                with suppress(OSError):  # damaged
                    return ctypes.CDLL(str(path))
            compile_to(path, flags)
            return ctypes.CDLL(str(path))
    try:
        with tempfile.TemporaryDirectory() as other:  # what is loaded stays when its file is gone
            compile_to(path := Path(other) / name, flags)
            return ctypes.CDLL(str(path))
    except OSError as e:
        raise Unavailable(f"the compiled code cannot be kept or loaded: {e}") from None


def leaves_avx512() -> bool:
    """Whether torch, where it is imported, was told to do without this processor's AVX-512 (ATEN_CPU_CAPABILITY=avx2):
    then we do, too."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.backends.cpu.get_cpu_capability() == "AVX2" and "avx512f" in cpu_flags()


def is_own(path: Path) -> bool:
    """Whether a file or folder, not a link to one, belongs to this user or to root, and nobody else can change it."""
    try:
        info = os.lstat(path)
    except FileNotFoundError:
        return False
    return not stat.S_ISLNK(info.st_mode) and info.st_uid in (0, os.geteuid()) and not info.st_mode & 0o022


def private_folder() -> Path | None:
    """This user's folder for compiled code, which is made where it is not there; None where the user has no home, or
    the folder is not theirs alone: code that is loaded runs with all that the user may do."""
    try:
        folder = cache_folder() / "kernels"
    except RuntimeError:
        return None
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    info = os.lstat(folder)
    if stat.S_ISDIR(info.st_mode) and info.st_uid == os.geteuid() and info.st_mode & 0o077:
        folder.chmod(0o700)
    return folder if is_own(folder) else None


def compile_to(path: Path, flags: list[str]) -> None:
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
        made.chmod(0o700)
        with made.open("rb") as file:
            os.fsync(file.fileno())  # a cut library would end the process that loads it
        os.replace(made, path)  # whole or not at all, whoever else is compiling


def call(name: str, dtype: "torch.dtype | str", *args: "Tensor | NDArray[Any] | int | None") -> None:
    """Run a function of block.c; tensors and arrays go as pointers and must be contiguous, None as a null pointer."""
    getattr(library(str(dtype).removeprefix("torch.")), name)(*map(_argument, args))


def _argument(value: "Tensor | NDArray[Any] | int | None") -> ctypes.c_int64 | ctypes.c_void_p:
    if value is None or isinstance(value, int):
        return ctypes.c_void_p(None) if value is None else ctypes.c_int64(value)
    if isinstance(value, np.ndarray):
        assert value.flags.c_contiguous
        return ctypes.c_void_p(value.ctypes.data)
    assert value.is_contiguous()
    return ctypes.c_void_p(value.data_ptr())


@functools.cache
def constant(name: str) -> int:
    """A constant of block.c for float32."""
    return ctypes.c_int64.in_dll(library("float32"), name).value
