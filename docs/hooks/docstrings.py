"""Our docstrings for the API pages.

`name: text` lines of a function or a constructor become its parameters, `Errors: text` a paragraph of its own, and the
fields of a dataclass with the docstrings below them a list with types and defaults.
"""

import re
import textwrap

import griffe

PAGE = re.compile(r" ?\(docs/[\w/-]+\.md\)")  # the site has it in its navigation
NAMED = r"\w+(?: \([^)]*\))?"  # patch_size (pixels)


class Docstrings(griffe.Extension):
    def on_function(self, *, func: griffe.Function, **_: object) -> None:
        if func.docstring:
            names = {p.name for p in func.parameters}
            func.docstring.value = rewritten(func.docstring.value, names, "Args")

    def on_class(self, *, cls: griffe.Class, **_: object) -> None:
        if not cls.docstring:
            return
        arguments = {p.name for p in cls.parameters if p.name != "self" and "dataclass" not in cls.labels}
        text = rewritten(cls.docstring.value, arguments, "Args") if arguments else cls.docstring.value
        text = rewritten(text, set(cls.members), "Attributes")
        if "dataclass" in cls.labels and (fields := [m for m in cls.members.values() if is_field(m)]):
            text += "\n\nAttributes:\n" + "\n".join(textwrap.indent(described(field), "    ") for field in fields)
        cls.docstring.value = text


def is_field(member: griffe.Object | griffe.Alias) -> bool:
    is_public_value = member.is_attribute and not member.is_alias and not member.name.startswith("_")
    return (
        is_public_value
        and "property" not in member.labels
        and bool(member.annotation)
        and "ClassVar" not in str(member.annotation)
    )


def described(field: griffe.Object | griffe.Alias) -> str:
    text = literal(" ".join(field.docstring.value.split())) if field.docstring else ""
    value = str(field.value) if field.value is not None else ""
    default = f" Default: `{value}`." if value and "field(" not in value else ""
    return f"{field.name} ({field.annotation}): {PAGE.sub('', text)}{default}"


def literal(text: str) -> str:
    """What Markdown would take for a reference or a tag, confusion[true][predicted] and <name>, as it stands."""
    parts = re.split(r"(`[^`]*`)", text)
    plain = [p if p.startswith("`") else p.replace("][", "]\\[").replace("<", "&lt;") for p in parts]
    return "".join(plain)


def rewritten(text: str, names: set[str], section: str) -> str:
    """The text with its `name: ...` lines as a section of Google's style, and its errors at the end."""
    text = literal(text)
    kept: list[str] = []
    items: list[str] = []
    others: list[str] = []
    errors: list[str] = []
    target = kept
    for line in text.splitlines():
        pieces = re.split(rf"(?<=[.;]) (?=(?:(?:{'|'.join(names)}), )*(?:{'|'.join(names)}): )", line)
        starts = [re.match(rf"({NAMED}(?:, {NAMED})*): ", piece) for piece in pieces]
        found = [re.findall(r"(\w+)(?: \([^)]*\))?(?:, |$)", start[1]) if start else [""] for start in starts]
        if names.issuperset(found[0]):
            for piece, (first, *rest) in zip(pieces, found, strict=True):
                items.append(f"{first}: {piece.partition(': ')[2]}")
                others += [f"{name}: as `{first}`." for name in rest]
            target = items
        elif re.match(r"Errors: |Raises ", line):
            errors.append(re.sub(r"^(Errors: |Raises )", "**Errors:** ", line))
            target = errors
        elif not line.strip():
            kept.append("")
            target = kept
        elif target is items:
            items[-1] += " " + line.strip()
        else:
            target.append(line)
    parts = ["\n".join(kept).rstrip(), "\n".join(errors)]
    if items:
        parts.append(f"{section}:\n" + "\n".join(f"    {item}" for item in [*items, *others]))
    return "\n\n".join(part for part in parts if part)
