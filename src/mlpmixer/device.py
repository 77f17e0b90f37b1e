"""Which device and which precision: chosen once, before anything runs, and always told to the user."""

import torch

from mlpmixer import hardware
from mlpmixer.hardware import cpu_name
from mlpmixer.registry import suggest


def choose_device(name: str) -> torch.device:
    """auto takes cuda, then mps, then cpu. ValueError when the device is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind = name.split(":")[0]
    if kind not in ("cpu", "cuda", "mps"):
        raise ValueError(f"no device named {name!r}; {suggest(name, ['auto', 'cpu', 'cuda', 'mps'])}")
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available[kind]:
        raise ValueError(
            f"device {name!r} is not available here; this machine has: "
            f"{', '.join(k for k, ok in available.items() if ok)}"
        )
    return torch.device(name)


def has_bf16(device: torch.device) -> bool:
    """Whether the device computes bfloat16 matrix products in hardware (emulation would be slower than float32)."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and any(
        torch.cpu.get_capabilities().get(k, False) for k in ("avx512_bf16", "amx_bf16", "bf16")
    )


def choose_precision(precision: str, device: torch.device) -> torch.dtype:
    """bfloat16 (meaning autocast) or float32; auto takes bfloat16 where `has_bf16`."""
    if precision == "auto":
        return torch.bfloat16 if has_bf16(device) else torch.float32
    return {"bfloat16": torch.bfloat16, "float32": torch.float32}[precision]


def describe(device: torch.device) -> str:
    """The device in words: its name and, for a CPU, the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return "Apple GPU"
    return f"{cpu_name()}, {torch.get_num_threads()} threads"


def peak_mib(device: torch.device) -> float | None:
    """Most memory held so far, MiB: of the GPU's allocator, else of this process; None where the system does not tell
    (Windows)."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    return hardware.peak_mib()
