"""Pages and other texts from jinja2 templates."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

Filters = Mapping[str, Callable[..., Any]]


def render(template: Path, *folders: Path, filters: Filters | None = None, **values: object) -> str:
    """Fill in a template, which may extend and import those beside it and in `folders`.

    In HTML every value is escaped. What is not UTF-8, such as the bytes of a strange file name, becomes "?".
    """
    environment = Environment(
        loader=FileSystemLoader([template.parent, *folders]),
        autoescape=template.suffix == ".html",
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= filters or {}
    return environment.get_template(template.name).render(values).encode("utf-8", "replace").decode("utf-8")
