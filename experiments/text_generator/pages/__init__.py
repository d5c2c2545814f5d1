"""Pages to look at in a browser: one file each, which asks the network for nothing.

What a page shows comes as numbers from `recording` and `properties`; how it looks lies beside this,
under `templates`. Whatever a text holds is written as escaped HTML, or as JSON without ``<``.
"""

import base64
import hashlib
import html
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.text_generator.pages.embedded import halves, packed, quantized, text_data
from experiments.text_generator.pages.properties import CLEAR, Finding, Scores, passage
from experiments.text_generator.pages.recording import Recording
from experiments.text_generator.pages.sections import (
    gate_title,
    gates_section,
    histogram,
    notes,
    units_section,
)
from experiments.text_generator.reading import AnyVocabulary
from rnnjax.errors import InvalidInputError

LIMIT = 2_900_000
"""Bytes that a page may have."""

EVALUATED = 20_000
"""Characters that the page of `evaluate` shows."""

_WHOLE_UNITS = 40
_CARDS = 24
_CARDS_OF_A_PROPERTY = 3
_PASSAGE = 150

_TEMPLATES = Path(__file__).parent / "templates"


class About(NamedTuple):
    """The heading of a page.

    Attributes:
        title: one line.
        text: a sentence or two on the model and what it read.
    """

    title: str
    text: str


def inspection_page(
    about: About,
    recording: Recording,
    scores: Scores,
    values: dict[str, np.ndarray],
    characters: list[str],
    vocabulary: AnyVocabulary,
    *,
    limit: int = LIMIT,
) -> str:
    """The page of `inspect`.

    The units with the clearest properties are kept for the whole text, and all units for as much of
    its beginning as fits; the page says for how much.

    Args:
        about: its heading.
        recording: what the model did.
        scores: of its units.
        values: the properties that these are of.
        characters: of the text.
        vocabulary: what the ids mean.
        limit: bytes that the page may have.

    Raises:
        InvalidInputError: not even one unit fits for a text of this length.
    """
    findings = scores.of_units()
    length = len(recording.ids)
    levels, scales = quantized(recording.states)
    cards = _cards(findings, values, characters)
    # In this order the units are kept for the whole text, until no more fit.
    wanted = [card["unit"] for card in cards]
    wanted += [finding.unit for finding in scores.of_properties()]
    wanted += [finding.unit for finding in findings] + list(range(levels.shape[1]))
    wanted = list(dict.fromkeys(wanted))
    data = {
        **text_data(recording.ids, recording.surprise, vocabulary, recording.expected),
        "probabilities": packed(np.rint(255 * np.sqrt(recording.probabilities)), "u1"),
        "width": recording.expected.shape[1],
        "groups": [group._asdict() for group in recording.groups],
        "scales": packed(scales, "<f4"),
        "properties": list(scores.names),
        "findings": _findings_data(findings, scores),
        "passage": _PASSAGE,
        "gates": _gates_data(recording),
    }

    def page(whole: list[int], kept: int) -> str:
        """With so many characters of all units, and these for the whole text."""
        shown = [card for card in cards if card["unit"] in set(whole)]
        embedded = {
            "whole": {"units": whole, "data": packed(halves(levels[:, whole]), "u1")},
            "excerpt": {"length": kept, "data": packed(halves(levels[:kept]), "u1")},
            "cards": shown,
        }
        main = fill(
            "inspect.html",
            reader=_reader(of_units=True),
            units=units_section(scores, recording, vocabulary.unit),
            gates=gates_section(recording),
            notes=notes(recording, scores, len(whole), kept),
        )
        return _page(about, main, data | embedded, ["reader.js", "inspect.js"])

    room = limit - len(page([], 0).encode()) - 2000 - 200 * len(cards)
    each = len(packed(np.zeros((length + 1) // 2), "u1"))
    if room < 8 * each:
        raise InvalidInputError(
            f"the page may have {limit:,} bytes, in which {length:,} characters leave too little "
            "for the units; set a smaller --characters"
        )
    if len(wanted) * (each + 8) <= room:
        return page(wanted, 0)
    whole = wanted[: min(_WHOLE_UNITS, room // 2 // (each + 8))]
    left = room - len(whole) * (each + 8)
    return page(whole, min(length, left * 3 // 4 // len(wanted) * 2))


def evaluation_page(
    about: About, ids: np.ndarray, bits: np.ndarray, vocabulary: AnyVocabulary
) -> str:
    """The page of `evaluate`: the mean, a histogram, and the text coloured by surprise.

    Args:
        about: its heading.
        ids: of the text.
        bits: the surprise of every character but the first, ``(len(ids) - 1,)``.
        vocabulary: what the ids mean.
    """
    shown, unit = min(len(ids), EVALUATED), vocabulary.unit
    surprise = np.concatenate([[np.nan], bits])[:shown]
    note = "This is the whole text."
    if shown < len(ids):
        note = (
            f"These are the first {shown:,} of {len(ids):,} {unit}s; the average and the "
            "histogram are over all of them."
        )
    main = fill(
        "evaluate.html",
        bits=f"{bits.mean():.3f}",
        unit=unit,
        histogram=histogram(bits, unit),
        shown=note,
        reader=_reader(of_units=False),
    )
    data = text_data(ids[:shown], surprise, vocabulary)
    return _page(about, main, data, ["reader.js", "evaluate.js"])


def write(path: Path, text: str) -> None:
    """Write a file in one move, so that it is never there by half.

    Raises:
        InvalidInputError: it cannot be written there.
    """
    new = path.with_name(path.name + ".new")
    try:
        new.write_text(text, encoding="utf-8")
        new.replace(path)
    except OSError as error:
        raise InvalidInputError(
            f"{path} should be a file that can be written, but writing failed ({error.strerror}); "
            "name another"
        ) from error


def fill(template: str, **parts: str) -> str:
    """A template with ``{{name}}`` replaced by the parts, which are HTML already.

    All in one pass, so that what a part holds is never taken for a name.
    """
    text = (_TEMPLATES / template).read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], text)


def _cards(
    findings: list[Finding], values: dict[str, np.ndarray], characters: list[str]
) -> list[dict[str, int]]:
    """The units to show first: those that follow something, of no property more than three."""
    counts: dict[str, int] = {}
    begins: dict[str, int] = {}
    cards: list[dict[str, int]] = []
    for finding in (f for f in findings if abs(f.chosen) >= CLEAR):
        counts[finding.name] = counts.get(finding.name, 0) + 1
        if counts[finding.name] <= _CARDS_OF_A_PROPERTY and len(cards) < _CARDS:
            if finding.name not in begins:
                begins[finding.name] = passage(characters, values[finding.name], _PASSAGE)
            cards.append({"unit": finding.unit, "from": begins[finding.name]})
    return cards


def _findings_data(findings: list[Finding], scores: Scores) -> list[list[float]]:
    """By unit: the number of its property, and both correlations."""
    return [
        [scores.names.index(f.name), round(f.chosen, 2), round(f.reported, 2)]
        for f in sorted(findings)
    ]


def _gates_data(recording: Recording) -> list[dict[str, Any]]:
    names = dict.fromkeys(gate.name for gate in recording.gates)
    return [
        {
            "name": name,
            "title": gate_title(name),
            "layers": [
                [gate.layer, packed(np.rint(255 * gate.saturation()), "u1")]
                for gate in recording.gates
                if gate.name == name
            ],
        }
        for name in names
    ]


def _reader(*, of_units: bool) -> str:
    """The text, its legend and what is under the cursor."""
    if not of_units:
        return fill("reader.html", more_keys="", unit_value="", predictions="")
    return fill(
        "reader.html",
        more_keys="; n and p take the next and the previous unit",
        unit_value='<div><dt>Unit</dt><dd id="value">–</dd></div>',
        predictions='<table class="predictions"><caption>Expected next</caption>'
        '<tbody id="predictions"></tbody></table><p class="note" id="came"></p>',
    )


def _page(about: About, main: str, data: dict[str, Any], scripts: list[str]) -> str:
    style = (_TEMPLATES / "style.css").read_text(encoding="utf-8")
    script = "".join((_TEMPLATES / name).read_text(encoding="utf-8") for name in scripts)
    # A "<" could end the element; lone surrogates are written as escapes, so any text is UTF-8.
    stored = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return fill(
        "page.html",
        title=html.escape(_seen(about.title)),
        about=html.escape(_seen(about.text)),
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
        main=main,
        data=stored,
    )


def _seen(text: str) -> str:
    """A line that UTF-8 can hold: the name of a file may have bytes of another encoding."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
