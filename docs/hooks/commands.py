"""Pages written from the commands themselves: one for each, the cheat sheet, and the tables of models and weights."""

import html
import re
from collections.abc import Iterator

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from mlpmixer.cli import COMMANDS, command
from mlpmixer.cli.arguments import Line, read, usage_of
from mlpmixer.cli.help import Rows, everything, most_needed
from mlpmixer.cli.list import own_weights, published_weights
from mlpmixer.cli.printing import multiply_adds
from mlpmixer.config import pair
from mlpmixer.models.configs import NetworkConfig
from mlpmixer.models.names import MODELS

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


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    tables = "" if page.file.src_uri != "reference/models.md" else f"\n{_networks()}\n\n{_weights()}\n"
    return markdown + tables


def _networks() -> str:
    names: dict[tuple[object, ...], list[str]] = {}  # of a network: ours, and timm's if it has one
    for name, c in MODELS.items():
        names.setdefault((c.architecture, c.grid, c.num_params), []).append(name)
    rows = [[_code(ours), " ".join(map(_code, timms)), *_sizes(MODELS[ours])] for ours, *timms in names.values()]
    head = ["model", "in timm", "architecture", "image, px", "grid", "parameters", "multiply-adds"]
    return f"## Networks\n\n{_table(head, rows)}\n\n" + (
        "Counts are per image of this size, with 1,000 classes from 224 px on and 10 below; a RepMLPNet is counted as "
        "trained, with its convolutions. The grid is that of the patches, or of the last stage. timm's names "
        "compute what timm computes: a Mixer has the erf form of GELU, where the paper's sizes have the tanh form."
    )


def _sizes(c: NetworkConfig) -> list[str]:
    size, grid = (" x ".join(map(str, sides)) for sides in (pair(c.image_size), c.grid))
    return [c.architecture, size, grid, f"{c.num_params:,}", multiply_adds(sum(layer.flops for layer in c.layers()))]


def _weights() -> str:
    (*own_head, _), own, _ = own_weights()
    (*head, _, _), rows, _ = published_weights()
    ours = [[_code(name), *rest] for name, *rest, _ in own]
    others = [[_code(name), _code(timm), *rest] for name, timm, *rest, _, _ in rows]
    return f"## Weights of ours\n\n{_table(own_head, ours)}\n\n" + (
        "This project trained them, and their cards say how. `digits` comes with the package, the others with the "
        "repository: [where they are found](../how-to/transfer.md#weights-of-ours).\n\n"
        f"## Weights of others\n\n{_table(head, others)}\n\n"
        "top-1 is on ImageNet-1k, as reported by others. These weights are fetched when they are first used. "
        "[Which weights](../how-to/transfer.md#which-weights) also covers files and the Hub."
    )


def _table(head: list[str], rows: list[list[str]]) -> str:
    unbroken = [[cell.replace(" ", "\N{NO-BREAK SPACE}") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *unbroken])


def _code(name: str) -> str:
    return f"`{name}`" if name else ""


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
            "[cheat sheet](../cheat-sheet.md) has all commands on one screen.",
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
