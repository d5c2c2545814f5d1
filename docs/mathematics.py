"""Equations as MathML, which browsers draw themselves: nothing has to be fetched or run."""

import re
from typing import Any

from latex2mathml.converter import convert

PRIME = "&#x02032;"


def inline(source: str, *_: Any, **__: Any) -> str:
    """An equation in a line, written as `` `#!math x^2` ``."""
    return _spaced(convert(source))


def block(source: str, *_: Any, **__: Any) -> str:
    """An equation, or several below each other, of a fenced block named math."""
    source = source.strip()
    if "&" in source or r"\\" in source:
        source = rf"\begin{{align*}} {source} \end{{align*}}"
    return f'<p class="equation">{_spaced(convert(source, display="block"))}</p>'


def _spaced(math: str) -> str:
    """A prime stands beside its letter, and a function apart from what is before."""
    math = re.sub(
        rf"<msup>(<mi>[^<]*</mi>)<mi>{PRIME}</mi></msup>",
        rf'<mrow>\1<mo lspace="0" rspace="0">{PRIME}</mo></mrow>',
        math,
    )
    return re.sub(r"(<mi>[a-z]{3,}</mi>)", r'<mspace width="0.17em"/>\1', math)
