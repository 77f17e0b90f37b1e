"""Checks of the pages that are written: well formed, and nothing in them runs or is fetched."""

import re
from html.parser import HTMLParser

FORBIDDEN_TAGS = {"script", "iframe", "object", "embed", "link", "base", "form", "audio", "video"}


class Page(HTMLParser):
    """Collects the tags, attributes and text of a page and checks that it is well formed."""

    VOID = frozenset({"meta", "img", "br", "image", "rect", "path", "use"})

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data.replace("\N{NO-BREAK SPACE}", " ")


def check_safe(text: str) -> Page:
    """The page, in which nothing is a script and nothing is fetched from anywhere."""
    page = Page(text)
    assert not page.tags & FORBIDDEN_TAGS
    for name, value in page.attributes:
        assert not name.startswith("on"), (name, value)
        if name in ("src", "href", "xlink:href"):
            assert value is not None and value.startswith(("data:image/", "#")), value
    assert "://" not in text
    assert not re.search(r"url\((?!#)|@import", text)
    return page
