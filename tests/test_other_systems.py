"""The package imports where what only POSIX has is missing, as on Windows."""

import subprocess
import sys

import pytest

WITHOUT = """
import importlib, os, pkgutil, signal, sys

for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
for name in ("fork", "getuid", "geteuid", "sched_getaffinity", "sysconf"):
    delattr(os, name)
for name in ("SIGHUP", "SIGKILL", "SIGUSR1", "SIGALRM", "alarm"):
    delattr(signal, name)
"""
SOME = """
import mlpmixer.cli
for name in mlpmixer.cli.COMMANDS:
    mlpmixer.cli.command(name)
"""
ALL = """
import mlpmixer
for module in pkgutil.walk_packages(mlpmixer.__path__, "mlpmixer."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""


@pytest.mark.parametrize("code", [SOME, pytest.param(ALL, marks=pytest.mark.slow)], ids=["commands", "all modules"])
def test_imports_without_posix(code: str) -> None:
    subprocess.run([sys.executable, "-c", WITHOUT + code], check=True, timeout=240)
