"""The machine this runs on, without torch: its processor, the memory of this process, the user's cache."""

import os
import platform
import re
import sys
from contextlib import suppress
from pathlib import Path


def cpu_name() -> str:
    """As the system calls it; without a number ("AMD EPYC", on a virtual machine) with family and model, since speeds
    differ by them."""
    facts: dict[str, str] = {}
    with suppress(OSError), open("/proc/cpuinfo") as f:  # Linux
        facts = {key.strip(): value.strip() for key, colon, value in (line.partition(":") for line in f) if colon}
    name = facts.get("model name") or platform.processor() or platform.machine()
    if re.search(r"\d", name) or "cpu family" not in facts:
        return name
    return f"{name} (family {facts['cpu family']}, model {facts['model']})"


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_mib() -> float | None:
    """The most memory this process has held so far, MiB; None where the system does not tell (Windows)."""
    try:
        with open("/proc/self/status") as f:  # getrusage counts what the process held that started this one (Linux)
            return round(next(int(line.split()[1]) for line in f if line.startswith("VmHWM:")) / 2**10, 1)
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def cache_folder() -> Path:
    """Where what can be had again is kept for this user."""
    return Path.home() / ".cache" / "mlpmixer"
