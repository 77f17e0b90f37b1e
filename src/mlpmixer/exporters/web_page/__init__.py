"""The page that classifies images, with one of two back ends: a service (server.js) or the browser (browser.js)."""

import base64
import hashlib
import json
import re
from importlib.resources import files
from typing import Any, Literal


def page(back_end: Literal["server", "browser"], model: dict[str, Any] | None = None) -> str:
    """The page as one file. model: MODEL of browser.js."""
    script = _text(f"{back_end}.js")
    if model is not None:
        values = json.dumps(model).replace("<", "\\u003c")  # a class name cannot end the script
        script = f"const MODEL = {values};\n{script}"
    return _text("page.html").replace("/* back end */", script)


def policy(page: str, *scripts: str) -> str:
    """Its Content-Security-Policy: its own script and style, images it was given, and requests to its own server only.

    scripts: further sources of scripts.
    """
    allowed = {
        kind: " ".join(map(_hash, re.findall(rf"<{kind}>(.*?)</{kind}>", page, re.S))) for kind in ("script", "style")
    }
    return (
        f"default-src 'none'; script-src {' '.join((allowed['script'], *scripts))}; style-src {allowed['style']}; "
        f"img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'"
    )


def standing_alone(page: str, *scripts: str) -> str:
    """The page with its policy inside, for servers that send none."""
    head = '<meta charset="utf-8">'
    return page.replace(
        head, f'{head}\n<meta http-equiv="Content-Security-Policy" content="{policy(page, *scripts)}">', 1
    )


def style(page: str) -> str:
    """The <style> of the page, for other pages."""
    return page[page.index("<style>") : page.index("</style>") + len("</style>")]


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _text(name: str) -> str:
    return files("mlpmixer.exporters.web_page").joinpath(name).read_text(encoding="utf-8")
