"""Links that leave docs/: pages of results become pages of the site, other files are named. On GitHub and on disk such
links work as they are. And an option in a sentence is not broken after its hyphens.
"""

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
MEASURED = "results/measured"  # where the site has the folder results/


def on_files(files: Files, config: MkDocsConfig) -> None:
    for file in sorted((ROOT / "results").rglob("*")):
        if file.name == "README.md" or file.suffix == ".png":
            place = file.relative_to(ROOT / "results").as_posix().replace("README.md", "index.md")
            files.append(File.generated(config, f"{MEASURED}/{place}", abs_src_path=str(file)))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    uri = page.file.src_uri
    here = (ROOT / re.sub(f"^{MEASURED}/", "results/", uri) if uri.startswith(MEASURED) else ROOT / "docs" / uri).parent

    def link(found: re.Match[str]) -> str:
        bang, text, target, anchor = found.groups(default="")
        path = Path(os.path.normpath(here / target))
        if ROOT / "docs" in path.parents or not path.exists():
            return found[0]
        inside = path.relative_to(ROOT).as_posix()
        for name in (inside, f"{inside}/index.md"):
            place = re.sub("^results/", f"{MEASURED}/", name)
            if files.get_file_from_path(place):
                return f"{bang}[{text}]({os.path.relpath(place, Path(uri).parent)}{anchor})"
        return f"{text} (`{inside}` in the repository)" if text.strip("`") != inside else f"`{inside}`"

    return re.sub(r"(!?)\[([^\]]*)\]\(((?!\w+:)[^)\s#]+)(#[^)\s]*)?\)", link, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    def unbroken(code: re.Match[str]) -> str:
        return re.sub(r"(?<![\w-])--?\w[\w.-]*", r'<span class="option">\g<0></span>', code[0])

    return re.sub(r"(?<=<code>)[^<]+(?=</code>)", unbroken, html)
