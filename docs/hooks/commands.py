"""Pages of the command line, written from the commands themselves: one for each, and the cheat sheet."""

import html
import re
from collections.abc import Iterator

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from mlpmixer.cli import COMMANDS, command
from mlpmixer.cli.arguments import Line, read, usage_of
from mlpmixer.cli.help import Rows, everything, most_needed

GROUPS = {
    "Data": ["data check", "data preview", "data shards"],
    "Train": ["train", "lr-find", "runs"],
    "Evaluate": ["evaluate", "compare", "predict", "probe", "explain"],
    "Deploy": ["export", "bench", "serve", "push", "convert"],
    "Research and help": ["reproduce", "summary", "list", "doctor"],
}


def on_config(config: MkDocsConfig) -> None:
    pages = [{"All commands": "reference/cli/index.md"}, *({f"mlpmixer {name}": _place(name)} for name in COMMANDS)]
    (reference,) = (section["Reference"] for section in config.nav or () if "Reference" in section)
    (commands,) = (section for section in reference if "Commands" in section)
    commands["Commands"] = pages


def on_files(files: Files, config: MkDocsConfig) -> None:
    pages = {_place(name): _page(name) for name in COMMANDS}
    pages |= {"reference/cli/index.md": _index(), "reference/cheat-sheet.md": _cheat_sheet()}
    for place, text in pages.items():
        files.append(File.generated(config, place, content=text))


def _place(name: str) -> str:
    return f"reference/cli/{name.replace(' ', '-')}.md"


def _help_of(name: str) -> Line:
    return read(command(name), f"mlpmixer {name}", ["--help-all"])


def _page(name: str) -> str:
    line = _help_of(name)
    text = [f"# mlpmixer {name}", f"    {usage_of(line.prog, line.command)} [OPTION]..."]
    text += [_markdown(" ".join(paragraph.split())) for paragraph in (line.command.__doc__ or "").split("\n\n")]
    for heading, rows in everything(line):
        if rows:
            text += [f"## {heading[:1].upper()}{heading[1:]}"] if heading else []
            text += [f"`{usage.strip()}`\n:   {_markdown(words)}" for usage, words in rows]
    return "\n\n".join(text) + "\n"


def _index() -> str:
    rows = [f"| [`{name}`]({_place(name).rpartition('/')[2]}) | {words} |" for name, words in COMMANDS.items()]
    return "\n".join(
        [
            "# Commands",
            "",
            "`mlpmixer COMMAND --help` shows the options that most people need, `--help-all` all of them. The",
            "[cheat sheet](../cheat-sheet.md) has the whole on one screen.",
            "",
            "| command | what it does |",
            "|---|---|",
            *rows,
            "",
            "Exit codes: 0 done; 1 done, with failures that were printed; 2 a wrong command, name, value or path;",
            "3 the time is up, and the same command resumes; 130 interrupted.",
        ]
    )


def _cheat_sheet() -> str:
    left_out = set(COMMANDS) - {name for names in GROUPS.values() for name in names}
    groups = GROUPS | {"More": sorted(left_out)} if left_out else GROUPS
    cards = []
    for title, names in groups.items():
        cards += [f"<section><h2>{title}</h2>", *(_card(name) for name in names if name in COMMANDS), "</section>"]
    head = "---\nhide: [navigation, toc]\nsearch: {exclude: true}\n---\n\n# Cheat sheet\n\n"
    return head + '<div class="cheat-sheet">\n' + "\n".join(cards) + "\n</div>\n"


def _card(name: str) -> str:
    line = _help_of(name)
    link = (
        f'<a href="cli/{name.replace(" ", "-")}.html"><code>{html.escape(usage_of(line.prog, line.command))}</code></a>'
    )
    options = "".join(f"<code>{html.escape(usage)}</code> " for usage in _options(most_needed(line)))
    return f"<p>{link}<br>{html.escape(COMMANDS[name])}<br><small>{options}</small></p>"


def _options(sections: Iterator[tuple[str, Rows]]) -> list[str]:
    """The options that most people need, without those that every command has."""
    names = [usage.strip() for _, rows in sections for usage, _ in rows if usage.startswith("--")]
    return [name for name in names if not re.match("--(quiet|json|device|data-dir|peer-timeout)", name)]


def _markdown(text: str) -> str:
    """Plain help text as Markdown; what names a page of the documentation links to it."""
    parts = re.split(r"(`[^`]+`)", text.replace("\N{NO-BREAK SPACE}", " "))
    plain = [part if part.startswith("`") else re.sub(r"([*_<\[\\])", r"\\\1", part) for part in parts]
    return re.sub(r"docs/([\w/-]+)\.md", r"[\1](../../\1.md)", "".join(plain))
