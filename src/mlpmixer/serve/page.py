"""HTML pages of the service: the classifier at / and the API reference at /docs. Neither makes third-party requests."""

from importlib.resources import files
from io import BytesIO
from itertools import islice
from typing import Any

from jinja2 import Environment

from mlpmixer.data.images import decode
from mlpmixer.exporters.web_page import page, policy, style
from mlpmixer.inference.files import find_images
from mlpmixer.inference.prediction import Failure

MOST_SAMPLES, SAMPLE_PX = 12, 640
HOME = page("server")
DOCS = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
    files("mlpmixer.serve").joinpath("docs.html").read_text(encoding="utf-8")
)


def policy_of(text: str) -> str:
    """The Content-Security-Policy of a page of the service."""
    return policy(text) + "; frame-ancestors 'none'"


POLICY = policy_of(HOME)


def docs(api: dict[str, Any], *, private: bool = False) -> str:
    """The API reference: an OpenAPI schema as HTML, in the style of the page. private: requests need a token."""
    return DOCS.render(api=api, style=style(HOME), private=private)


def read_samples(folder: str) -> list[bytes]:
    """The first images of a folder, by name, as PNG without metadata and file names, since strangers may see them.

    ValueError when there are none, and for a damaged one.
    """
    samples = []
    for found in islice(find_images([folder]), MOST_SAMPLES):
        if isinstance(found, Failure):
            raise ValueError(f"{found.name}: {found.reason}")
        image, file = decode(found, "RGB"), BytesIO()
        image.thumbnail((SAMPLE_PX, SAMPLE_PX))
        image.save(file, "PNG")
        samples.append(file.getvalue())
    return samples
