"""The machine: processor, memory, the user's cache, and the device and precision that torch computes with.

Importing this does not import torch; the functions about devices do.
"""

import os
import platform
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mlpmixer.registry import suggest

if TYPE_CHECKING:
    import torch


OLD_GROUPS = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")  # version 1


def cpu_name() -> str:
    """The processor's name as the system gives it.

    A name without a number ("AMD EPYC", on a virtual machine) gets family and model, since speeds differ by them.
    """
    facts: dict[str, str] = {}
    with suppress(OSError), open("/proc/cpuinfo") as f:  # Linux
        facts = {key.strip(): value.strip() for key, colon, value in (line.partition(":") for line in f) if colon}
    name = facts.get("model name") or platform.processor() or platform.machine()
    if re.search(r"\d", name) or "cpu family" not in facts:
        return name
    return f"{name} (family {facts['cpu family']}, model {facts['model']})"


def cpu_flags() -> set[str]:
    """Instruction-set names as Linux spells them; empty where /proc/cpuinfo is not there."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    lines = [line for line in text.splitlines() if line.startswith(("flags", "Features"))]
    return {flag for line in lines for flag in line.partition(":")[2].split()}


def cores() -> int:
    """The number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_mib(device: "torch.device | None" = None) -> float | None:
    """The most memory held so far, MiB: by torch's allocator on a CUDA device, otherwise by this process.

    None where the system does not tell (Windows).
    """
    if device is not None and device.type == "cuda":
        import torch

        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    try:
        with open("/proc/self/status") as f:  # on Linux getrusage also counts the process that started this one
            return round(next(int(line.split()[1]) for line in f if line.startswith("VmHWM:")) / 2**10, 1)
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def reset_peak(device: "torch.device") -> None:
    """Let `peak_mib` count from what is held now, where the system can."""
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def free_bytes(device: "torch.device") -> int | None:
    """The memory that this process can still take: of a CUDA device, or of the machine and its control groups.

    None where the system does not tell.
    """
    if device.type == "cuda":
        import torch

        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    try:
        with open("/proc/meminfo") as f:
            free = next(int(line.split()[1]) << 10 for line in f if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
    return min([free, *control_group_bytes()]) if device.type == "cpu" else None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python or torch ran out of memory."""
    return isinstance(error, MemoryError) or bool(re.search("can't allocate memory|out of memory", str(error)))


def control_group_bytes(groups: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """Memory that each limit of Linux's control groups, such as a container's, leaves this process, in bytes."""
    left: list[int] = []
    with suppress(OSError):
        for line in groups.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            names = ("memory.max", "memory.current", "inactive_file") if not controllers else OLD_GROUPS
            top = mounted / "memory" if controllers else mounted
            if controllers and "memory" not in controllers.split(","):
                continue
            group = top / path.lstrip("/")
            for folder in (group, *group.parents):
                with suppress(OSError, ValueError):  # a folder of the host, and "max"
                    limit, used = (int((folder / name).read_text()) for name in names[:2])
                    facts = dict(fact.split() for fact in (folder / "memory.stat").read_text().splitlines())
                    left.append(limit - used + int(facts.get(names[2], 0)))
                if folder == top:
                    break
    return left


def cache_folder() -> Path:
    """The user's folder for files that can be downloaded or built again."""
    return Path.home() / ".cache" / "mlpmixer"


def has_gpu() -> bool:
    """Whether Linux shows a GPU that torch may be able to compute on (NVIDIA's, AMD's, and Windows' behind WSL)."""
    return any(os.path.exists(f"/dev/{name}") for name in ("nvidiactl", "kfd", "dxg"))


def choose_device(device: "str | torch.device") -> "torch.device":
    """The device of that name; "auto" prefers cuda, then mps, then cpu. ValueError when it is not available."""
    import torch

    name = str(device)
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, here in available.items() if here)
    kind = name.split(":")[0]
    if kind not in available:
        raise ValueError(f"no device named {name!r}; {suggest(name, ['auto', 'cpu', 'cuda', 'mps'])}")
    if not available[kind]:
        here = ", ".join(sorted(kind for kind, here in available.items() if here))
        raise ValueError(f"device {name!r} is not available; this machine has: {here}")
    return torch.device(name)


def device_name(device: "torch.device") -> str:
    """The device's name; for a CPU also the number of threads that torch uses."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return "Apple GPU" if device.type == "mps" else f"{cpu_name()}, {threads} thread{'s' if threads > 1 else ''}"


def has_bf16(device: "torch.device") -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware (emulation is slower than float32)."""
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    features = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return any(features.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def choose_precision(precision: str, device: "torch.device") -> "torch.dtype":
    """bfloat16 (meaning autocast) or float32; "auto" is bfloat16 where the hardware has it (`has_bf16`)."""
    import torch

    if precision == "auto":
        return torch.bfloat16 if has_bf16(device) else torch.float32
    return {"bfloat16": torch.bfloat16, "float32": torch.float32}[precision]
