"""Writes what the blocks of pages print and draw: ``python docs/outputs.py docs/learn/state.md``.

What a block prints stands in a block named text right after it. Its picture stands after that, as
``![What it shows](../plots/name.png)``, and is what matplotlib's figure holds at the block's end.
"""

import contextlib
import io
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt

BLOCK = re.compile(
    r"^```python\n(?P<code>.*?)^```$(?:\n\n```text\n(?P<printed>.*?)^```$)?"
    r"(?P<shown>\n\n!\[[^\]]*\]\((?P<picture>\S*plots/[\w-]+\.png)\)\S*)?",
    re.MULTILINE | re.DOTALL,
)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


class Ran(NamedTuple):
    """A block that ran: its match in the page, and what it printed."""

    block: re.Match[str]
    printed: str


def run(page: Path, text: str) -> Iterator[Ran]:
    """Run the blocks of a page in turn; a figure is open until the next one is asked for."""
    names: dict[str, Any] = {"__name__": "page"}
    for block in BLOCK.finditer(text):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block["code"], str(page), "exec"), names)
        yield Ran(block, printed.getvalue())
        plt.close("all")


def same(printed: str, shown: str) -> bool:
    """Whether two texts are equal but for spaces, and for a unit of a decimal's last digit.

    Where ``...`` stands in what is shown, anything may be printed.
    """
    one, other = (" ".join(text.split()) for text in (printed, shown))
    texts = (re.escape(text).replace(re.escape("..."), ".*") for text in NUMBER.split(other))
    found = re.fullmatch(f"({NUMBER.pattern})".join(texts), one)
    if not found:
        return False
    return all(
        abs(float(number) - float(expected[0])) <= 1.1 * _last_digit(expected[0])
        for number, expected in zip(found.groups(), NUMBER.finditer(other), strict=True)
    )


def _last_digit(number: str) -> float:
    mantissa, _, exponent = number.partition("e")
    if mantissa == number and "." not in number:
        return 0  # integers are equal
    return float(10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2])))


def write(page: Path) -> None:
    """Put below each block what it prints now, and draw its picture."""
    page = page.resolve()
    text, written, end = page.read_text(encoding="utf-8"), [], 0
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for block, printed in run(page, text):
            if block["picture"]:
                style = {"dpi": 80, "bbox_inches": "tight", "metadata": {"Software": None}}
                plt.savefig(page.parent / block["picture"], **style)
            shown = block["printed"] or ""
            if (len(printed) == len(shown) or "..." in shown) and same(printed, shown):
                printed = shown  # as it is, where rounding alone differs
            shown = f"\n\n```text\n{printed.rstrip()}\n```" if printed else ""
            code = f"```python\n{block['code']}```"
            written += [text[end : block.start()], code, shown, block["shown"] or ""]
            end = block.end()
    page.write_text("".join([*written, text[end:]]), encoding="utf-8")


if __name__ == "__main__":
    os.environ.setdefault("KERAS_BACKEND", "jax")
    plt.switch_backend("agg")
    plt.rcParams |= {"figure.figsize": (7, 2.6), "figure.constrained_layout.use": True}
    for name in sys.argv[1:]:
        write(Path(name))
