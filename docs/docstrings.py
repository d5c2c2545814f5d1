"""Docstrings as the site shows them: with equations, sessions of the interpreter, and links."""

import re
from pathlib import Path
from typing import Any

import griffe

PAGES = Path(__file__).parent / "reference"
# What the pages of the reference show.
PATHS = [
    path
    for page in sorted(PAGES.glob("*.md"))
    for path in re.findall(r"^::: (rnnjax\.\S+)", page.read_text(encoding="utf-8"), re.M)
]


class Docstrings(griffe.Extension):
    """From the little reStructuredText that the docstrings have to Markdown."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite a docstring before its sections are parsed."""
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        """The options of a program are the fields of a class: a list of them, in their order."""
        if cls.docstring and cls.path.startswith("experiments."):
            fields = [a for a in cls.attributes.values() if a.docstring]
            cls.docstring.value += "\n\n" + "\n".join(map(option, fields))


def option(field: griffe.Attribute) -> str:
    """A line of a list: the option, its values, what it means, and its default."""
    name, text = field.name.replace("_", "-"), field.docstring.value if field.docstring else ""
    shown = f"`{name.upper()}`" if "Positional" in str(field.annotation) else f"`--{name}`"
    default = "" if field.value is None else f" (default `{field.value}`)"
    return f"- {shown}: {' '.join(text.split())}{default}"


def markdown(text: str) -> str:
    """The text of a docstring, with the indentation of its lines kept."""
    text = re.sub(
        r"^( *)\.\. math::\n\n?((?:\1    .*\n|[ ]*\n)+)",
        lambda m: f"{m[1]}```math\n{m[2].rstrip()}\n{m[1]}```\n\n",
        f"{text}\n",
        flags=re.M,
    )
    text = re.sub(r":math:`([^`]+)`", lambda m: f"`#!math {' '.join(m[1].split())}`", text)
    text = re.sub(
        r"^( *)>>> .*\n(?:\1\S.*\n)*",
        lambda m: f"{m[1]}```pycon\n{m[0]}{m[1]}```\n",
        text,
        flags=re.M,
    )
    text = re.sub(r"(?<=\w)::$", ":", text, flags=re.M)  # before an indented block
    return re.sub(r"(?<![`\w])`([A-Za-z_][\w.]*)`(?!`)", _link, text).rstrip()


def _link(match: re.Match[str]) -> str:
    """A name becomes a link where one path, and no other, ends in it."""
    name = match[1]
    last = name.rpartition(".")[2] if name.startswith("rnnjax.") else name
    paths = [name] if name in PATHS else [p for p in PATHS if p.endswith(f".{last}")]
    return f"[`{name}`][{paths[0]}]" if len(paths) == 1 else match[0]
