"""The page that classifies images: one page, and two back ends that answer it, a service (server.js) or the browser
itself (browser.js)."""

import base64
import hashlib
import json
import re
from importlib.resources import files
from typing import Any, Literal


def page(back_end: Literal["server", "browser"], model: dict[str, Any] | None = None) -> str:
    """The page as one file. `model`: what browser.js calls MODEL."""
    script = _text(f"{back_end}.js")
    if model is not None:
        script = (
            "const MODEL = " + json.dumps(model).replace("<", "\\u003c") + ";\n" + script
        )  # no name ends the script
    return _text("page.html").replace("/* back end */", script)


def policy(page: str, *scripts: str) -> str:
    """What the page may do, a Content-Security-Policy: run and look as written in it, show pictures it was given, ask
    where it comes from.

    scripts: further sources of them. Nothing else is allowed.
    """
    allowed = {
        kind: " ".join(map(_hash, re.findall(rf"<{kind}>(.*?)</{kind}>", page, re.S))) for kind in ("script", "style")
    }
    return (
        f"default-src 'none'; script-src {' '.join((allowed['script'], *scripts))}; style-src {allowed['style']}; "
        f"img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'"
    )


def standing_alone(page: str, *scripts: str) -> str:
    """The page with its policy in it, for servers that know nothing of it."""
    head = '<meta charset="utf-8">'
    return page.replace(
        head, f'{head}\n<meta http-equiv="Content-Security-Policy" content="{policy(page, *scripts)}">', 1
    )


def style(page: str) -> str:
    """Its <style>, for other pages."""
    return page[page.index("<style>") : page.index("</style>") + len("</style>")]


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _text(name: str) -> str:
    return files("mlpmixer.exporters.web_page").joinpath(name).read_text(encoding="utf-8")
