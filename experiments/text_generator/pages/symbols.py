"""How characters look on a page, so that every one of them can be seen, and none does harm."""

import unicodedata
from typing import NamedTuple

from experiments.text_generator.reading import AnyVocabulary
from rnnjax.text import Vocabulary


class Symbol(NamedTuple):
    """One entry of a vocabulary, as it is shown.

    Attributes:
        shown: what stands in the text.
        name: what it is called where it stands alone.
        kind: ``plain``, ``space``, ``break`` (a line ends with it), or ``code`` (a stand-in for
            what could not be seen).
    """

    shown: str
    name: str
    kind: str = "plain"


_NAMED = {
    "\n": Symbol("↵", "line break", "break"),
    " ": Symbol(" ", "space", "space"),
    "\t": Symbol("⇥", "tab", "code"),
}


def symbol_of(index: int, vocabulary: AnyVocabulary) -> Symbol:
    """The entry of that id.

    >>> from rnnjax.text import ByteVocabulary
    >>> symbol_of(195, ByteVocabulary())
    Symbol(shown='C3', name='byte C3', kind='code')
    >>> symbol_of(0, Vocabulary("é")).shown
    'é'
    """
    if isinstance(vocabulary, Vocabulary):
        return symbol(vocabulary.characters[index])
    return (
        symbol(chr(index)) if index < 128 else Symbol(f"{index:02X}", f"byte {index:02X}", "code")
    )


def symbol(character: str) -> Symbol:
    r"""How one character is shown.

    Control characters are shown by their keys (`^G`), and what else cannot be seen (lone
    surrogates, marks that turn the direction of writing, spaces of other widths) by its number; an
    accent gets a circle to stand on.

    >>> symbol("\x00").shown, symbol("\u202e").shown, symbol("\ud800").shown
    ('^@', 'U+202E', 'U+D800')
    """
    if character in _NAMED:
        return _NAMED[character]
    point, category = ord(character), unicodedata.category(character)
    number = f"U+{point:04X}"
    if category == "Cc" and (point < 0x20 or point == 0x7F):
        return Symbol(f"^{chr(point ^ 0x40)}", number, "code")
    if category[0] in "CZ":
        return Symbol(number, number, "code")
    if category[0] == "M":
        return Symbol("◌" + character, number)
    return Symbol(character, character)
