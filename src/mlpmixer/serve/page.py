"""HTML pages of the service: the classifier at / and the API reference at /docs. Neither makes third-party requests."""

from importlib.resources import files
from typing import Any

from jinja2 import Environment

from mlpmixer.exporters.web_page import page, policy, style

HOME = page("server")
POLICY = policy(HOME) + "; frame-ancestors 'none'"
DOCS = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
    files("mlpmixer.serve").joinpath("docs.html").read_text(encoding="utf-8")
)


def docs(api: dict[str, Any]) -> str:
    """The API reference: an OpenAPI schema as HTML, in the style of the page."""
    return DOCS.render(api=api, style=style(HOME))
