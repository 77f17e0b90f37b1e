"""mlpmixer doctor."""

import importlib
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from mlpmixer import __version__
from mlpmixer.cli.arguments import Command

if TYPE_CHECKING:
    import torch

NEEDED = ("torch", "numpy", "pillow", "safetensors", "scikit-learn", "matplotlib", "jinja2")
EXTRAS = {
    "hf": ("datasets", "pyarrow", "huggingface-hub"),
    "tensorboard": ("tensorboard",),
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
    "openvino": ("openvino",),
    "serve": ("fastapi", "uvicorn"),
}
CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "asimd", "bf16")


@dataclass(frozen=True, kw_only=True)
class Doctor(Command):
    """Show the environment and diagnose problems."""

    def __call__(self) -> int:
        findings = diagnose()
        width = max(len(f.name) for f in findings)
        for f in findings:
            print(f"{'!!' if f.problem else '  '} {f.name:{width}}  {f.value}")
        problems = [f for f in findings if f.problem]
        for f in problems:
            print(f"\n!! {f.name}: {f.problem}")
        return 1 if problems else 0


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis. `problem` says what is wrong and how to put it right; empty: all is well."""

    name: str
    value: str
    problem: str = ""


def diagnose() -> list[Finding]:
    """Versions, CPU, matrix products, threads, GPU, and known breakages, in that order."""
    import torch

    from mlpmixer.hardware import choose_device, cpu_flags, cpu_name, device_name
    from mlpmixer.models import kernels

    cpu = torch.device("cpu")
    best = choose_device("auto")
    return [
        Finding("mlpmixer", f"{__version__} at {Path(__file__).parents[1]}"),
        Finding("python", f"{platform.python_version()} on {platform.platform()}"),
        *(_package(name) for name in NEEDED),
        *(_package(name, extra) for extra, names in EXTRAS.items() for name in names),
        Finding("cpu", cpu_name()),
        Finding(
            "cpu features", ", ".join(sorted(cpu_flags() & set(CPU_FEATURES))) or f"none of {', '.join(CPU_FEATURES)}"
        ),
        Finding("threads", f"{torch.get_num_threads()} for operations, {torch.get_num_interop_threads()} between them"),
        Finding("matrix products", _matrix_path()),
        Finding("bfloat16 on cpu", _bf16(cpu)),
        Finding("kernels", f"torch's operations ({reason})" if (reason := kernels.missing()) else "compiled"),
        Finding(
            "device", f"{best} ({device_name(best)})" + (f"; bfloat16 {_bf16(best)}" if best.type != "cpu" else "")
        ),
        *torchvision_findings(),
    ]


def torchvision_findings() -> list[Finding]:
    """mlpmixer does not use torchvision, but a torchvision that does not match torch breaks other packages' imports."""
    try:
        version = metadata.version("torchvision")
    except metadata.PackageNotFoundError:
        return []
    try:
        importlib.import_module("torchvision")
    except Exception as e:  # a broken extension raises whatever it likes
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        advice = "mlpmixer does not need it: pip uninstall torchvision, or install the build that matches this torch"
        return [Finding("torchvision", version, f"installed, but it cannot be imported ({reason}); {advice}")]
    return [Finding("torchvision", f"{version} (not used)")]


def _package(name: str, extra: str = "") -> Finding:
    try:
        return Finding(name, metadata.version(name))
    except metadata.PackageNotFoundError:
        if extra:
            return Finding(name, f"not installed (optional: pip install 'mlpmixer[{extra}]')")
        return Finding(name, "missing", f"needed: pip install {name}")


def _matrix_path() -> str:
    from torch import backends

    libraries = (("MKL", backends.mkl), ("oneDNN", backends.mkldnn))
    found = " + ".join(name for name, backend in libraries if backend.is_available()) or "neither MKL nor oneDNN"
    return f"{found}, CPU capability {backends.cpu.get_cpu_capability()}"


def _bf16(device: "torch.device") -> str:
    from mlpmixer.hardware import has_bf16

    return "in hardware" if has_bf16(device) else "emulated, slower than float32; --precision auto avoids it"
