"""Command lines."""

from collections.abc import Callable

RunLine = Callable[..., tuple[int, str, str]]
"""A line's words -> exit code, standard output, standard error: the fixture `run` of tests/cli."""
