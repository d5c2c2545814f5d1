"""What a unit may follow: properties of a text, and how well each unit goes with each of them."""

import dataclasses
import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments.text_generator.reading import AnyVocabulary
from rnnjax.errors import InvalidInputError
from rnnjax.text import Vocabulary

BLOCK = 500
"""Characters of a block; every other block chooses, and those between report."""

CLEAR = 0.2
"""From this correlation up a unit is said to follow a property."""

HEADING = 40
"""The longest line that counts as a heading."""


def characters_of(ids: np.ndarray, vocabulary: AnyVocabulary) -> list[str]:
    r"""The character at each id; for bytes, the whole character that the byte is part of.

    >>> from rnnjax.text import ByteVocabulary
    >>> characters_of(np.array([110, 195, 169, 255]), ByteVocabulary())
    ['n', 'é', 'é', '\udcff']
    """
    whole, widths = _whole_characters(ids, vocabulary)
    return [c for c, width in zip(whole, widths, strict=True) for _ in range(width)]


def _whole_characters(ids: np.ndarray, vocabulary: AnyVocabulary) -> tuple[list[str], list[int]]:
    """The characters of a text, and how many ids each of them is."""
    if isinstance(vocabulary, Vocabulary):
        return list(vocabulary.decode(ids)), [1] * len(ids)
    text = ids.astype(np.uint8).tobytes().decode("utf-8", "surrogateescape")
    return list(text), [len(c.encode("utf-8", "surrogateescape")) for c in text]


def properties_at(ids: np.ndarray, vocabulary: AnyVocabulary) -> dict[str, np.ndarray]:
    """`properties` at each id; for bytes, those of the whole character that the byte is part of.

    >>> from rnnjax.text import ByteVocabulary
    >>> vocabulary = ByteVocabulary()
    >>> properties_at(vocabulary.encode("né."), vocabulary)["position in the word"].tolist()
    [1.0, 2.0, 2.0, 0.0]
    """
    whole, widths = _whole_characters(ids, vocabulary)
    return {name: np.repeat(values, widths) for name, values in properties(whole).items()}


def properties(characters: list[str]) -> dict[str, np.ndarray]:
    """Every property of a text by its name, float32 ``(time,)``; those that never change too.

    >>> inside = properties(list('so "he said" it'))["inside quotes"]
    >>> inside.astype(int).tolist()
    [0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0]
    """
    text = "".join(characters)
    return {
        name: np.asarray(property_of(characters, text), np.float32)
        for name, property_of in PROPERTIES.items()
    }


Property = Callable[[list[str], str], Any]


def _each(test: Callable[[str], bool]) -> Property:
    """Whether the character itself passes the test."""
    return lambda characters, _: [test(c) for c in characters]


def _after(test: Callable[[str], bool], itself: Callable[[str], bool] = bool) -> Property:
    """Whether the one before passes the test, and the character itself another."""

    def found(characters: list[str], _: str) -> list[bool]:
        pairs = zip(["\n", *characters], characters, strict=False)
        return [test(before) and itself(c) for before, c in pairs]

    return found


def _since(begins: Callable[[str], bool]) -> Property:
    """Characters since the last one that passes the test, which is at 0."""

    def count(characters: list[str], _: str) -> list[int]:
        counts, since = [], 0
        for c in characters:
            since = 0 if begins(c) else since + 1
            counts.append(since)
        return counts

    return count


def _within(pattern: str, test: Callable[[str], bool] = bool) -> Property:
    """Whether the character lies in a match of the pattern that passes the test."""
    compiled = re.compile(pattern, re.MULTILINE)

    def mark(characters: list[str], text: str) -> np.ndarray:
        marks = np.zeros(len(characters), bool)
        for match in compiled.finditer(text):
            marks[match.start() : match.end()] = test(match[0])
        return marks

    return mark


def _quoted(characters: list[str], _: str) -> list[bool]:
    """From an opening quotation mark up to the closing one, which is outside."""
    marks, inside, before = [], False, ""
    for c in characters:
        # A quotation that nobody closed ends with its paragraph, or all after it would be wrong.
        if c in "”»" or (c == before == "\n"):
            inside = False
        elif c in "“«":
            inside = True
        elif c == '"':
            inside = not inside
        marks.append(inside)
        before = c
    return marks


def _bracketed(characters: list[str], _: str) -> list[bool]:
    marks, depth, before = [], 0, ""
    for c in characters:
        if c in "([{":
            depth += 1
        elif c in ")]}":
            depth = max(0, depth - 1)
        elif c == before == "\n":
            depth = 0
        marks.append(depth > 0)
        before = c
    return marks


def _punctuation(c: str) -> bool:
    return unicodedata.category(c).startswith("P")


def _vowel(c: str) -> bool:
    return unicodedata.normalize("NFD", c)[0].lower() in "aeiou"


PROPERTIES: Mapping[str, Property] = {
    "inside quotes": _quoted,
    "inside brackets": _bracketed,
    "position in the line": _since(lambda c: c == "\n"),
    "position in the word": _since(lambda c: not c.isalnum()),
    "length of the sentence so far": _since(lambda c: c in ".!?"),
    "inside a word": _each(str.isalnum),
    "first letter of a word": _after(lambda c: not c.isalnum(), str.isalnum),
    "space": _each(lambda c: c == " "),
    "end of a line": _each(lambda c: c == "\n"),
    "blank line": _after(lambda c: c == "\n", lambda c: c == "\n"),
    "capital letter": _each(str.isupper),
    "word in capitals": _within(r"\b[^\W\d_]{2,}\b", str.isupper),
    "heading (a short line with a colon at its end)": _within(rf"^[^\n]{{1,{HEADING - 1}}}:$"),
    "indentation": _within(r"^[ \t]+(?=\S)"),
    "vowel": _each(_vowel),
    "consonant": _each(lambda c: c.isalpha() and not _vowel(c)),
    "digit": _each(str.isdigit),
    "punctuation": _each(_punctuation),
    "right after punctuation": _after(_punctuation),
    "odd line number (a control: nothing should follow it)": (
        lambda characters, _: np.cumsum([c == "\n" for c in characters]) % 2
    ),
}
"""By name, from the characters and their text to a number for each."""


def passage(characters: list[str], values: np.ndarray, length: int) -> int:
    r"""Where a passage of so many characters begins in which a property changes the most.

    It begins after a line break where there is one, and looks at the property alone, not at any
    unit.

    >>> passage(list("aa\nbb\ncc"), np.array([0, 0, 0, 0, 1, 0, 0, 0]), 3)
    3
    """
    last = max(0, len(characters) - length)
    lines = [t + 1 for t, c in enumerate(characters[:last]) if c == "\n" != characters[t + 1]]
    begins = [0, *lines] if lines else list(range(0, last + 1, 20))
    return max(begins, key=lambda begin: float(np.var(values[begin : begin + length])))


class Finding(NamedTuple):
    """The property that goes best with a unit.

    Attributes:
        unit: the column of the states.
        name: of the property.
        chosen: the correlation in the blocks that chose the property, by its absolute value.
        reported: that in the blocks between, which chose nothing.
    """

    unit: int
    name: str
    chosen: float
    reported: float


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """The correlation of every unit with every property that changes in both halves of the text.

    Attributes:
        names: of these properties.
        chosen: in the even blocks, ``(properties, units)``.
        reported: in the odd blocks, likewise.
        unchanging: the names of the other properties.
        block: characters of a block of the text.
    """

    names: tuple[str, ...]
    chosen: np.ndarray
    reported: np.ndarray
    unchanging: tuple[str, ...]
    block: int

    def of_units(self) -> list[Finding]:
        """For every unit the property that goes best with it; the clearest first.

        Both the choice and the order are by the absolute correlation in the even blocks, so that
        the other number is that of a text which had no say in it.
        """
        if not self.names:
            return []
        best = np.abs(self.chosen).argmax(axis=0)
        return self._sorted(zip(best, range(len(best)), strict=True))

    def of_properties(self) -> list[Finding]:
        """For every property the unit that goes best with it; the clearest first."""
        if not self.names:
            return []
        best = np.abs(self.chosen).argmax(axis=1)
        return self._sorted(zip(range(len(best)), best, strict=True))

    def _sorted(self, pairs: Any) -> list[Finding]:
        found = [
            Finding(int(u), self.names[p], float(self.chosen[p, u]), float(self.reported[p, u]))
            for p, u in pairs
        ]
        return sorted(found, key=lambda finding: -abs(finding.chosen))


def score(states: np.ndarray, values: Mapping[str, np.ndarray]) -> Scores:
    """Correlate units with properties, on two halves of the text.

    The text is cut into blocks of 500 characters (of an eighth of it, if it is shorter than eight
    of these). Pearson's correlation, for a property that is or is not the point-biserial one, is
    taken once over the blocks of even number and once over those of odd number.

    Args:
        states: ``(time, units)``.
        values: properties by name, each ``(time,)``.

    Raises:
        InvalidInputError: a property has another length than the states.

    >>> rng = np.random.default_rng(0)
    >>> values = {"a": rng.normal(size=4000), "b": np.zeros(4000)}
    >>> states = np.stack([rng.normal(size=4000), -values["a"]], axis=1)
    >>> scores = score(states, values)
    >>> scores.of_units()[0]
    Finding(unit=1, name='a', chosen=-1.0, reported=-1.0)
    >>> scores.unchanging
    ('b',)
    """
    time = len(states)
    for name, value in values.items():
        if np.shape(value) != (time,):
            raise InvalidInputError(
                f"the property {name!r} should be one number for each of {time} characters, but "
                f"its shape is {np.shape(value)}"
            )
    block = max(1, min(BLOCK, time // 8))
    odd = np.arange(time) // block % 2 == 1
    names = [n for n, v in values.items() if np.ptp(v[odd]) and np.ptp(v[~odd])] if time > 1 else []
    table = np.stack([values[name] for name in names], axis=1) if names else np.zeros((time, 0))
    return Scores(
        names=tuple(names),
        chosen=_correlation(table[~odd], states[~odd]),
        reported=_correlation(table[odd], states[odd]),
        unchanging=tuple(name for name in values if name not in names),
        block=block,
    )


def _correlation(values: np.ndarray, states: np.ndarray) -> np.ndarray:
    """Pearson's, ``(properties, units)``; 0 for a unit that does not change."""
    return np.round(_standard(values).T @ _standard(states) / max(1, len(values)), 6)


def _standard(columns: np.ndarray) -> np.ndarray:
    if not len(columns):
        return columns
    centred = columns - columns.mean(axis=0, dtype=np.float64).astype(columns.dtype)
    deviation = np.sqrt(np.mean(centred * centred, axis=0, dtype=np.float64)).astype(columns.dtype)
    # What remains of a constant after rounding is no signal.
    still = deviation <= 1e-6 * np.abs(columns).max(axis=0, initial=0)
    return np.where(still, 0.0, centred / np.where(still, 1.0, deviation))
