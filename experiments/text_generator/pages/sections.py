"""The parts of the pages that are words, tables and plots: HTML, from numbers."""

import html

import numpy as np

from experiments.text_generator.pages.properties import BLOCK, CLEAR, Scores
from experiments.text_generator.pages.recording import CLOSED, OPEN, Recording


def units_section(scores: Scores, recording: Recording, unit: str) -> str:
    """The units that follow something: how that is measured, their cards, and a table.

    Args:
        scores: of the units.
        recording: what was read.
        unit: what the text is counted in, ``character`` or ``byte``.
    """
    if not scores.names:
        return (
            '<p class="notice">No property changes in both halves of this text, so none could be '
            "measured; take a longer text.</p>"
        )
    rows = []
    for finding in scores.of_properties():
        name = html.escape(_unit_name(finding.unit, recording))
        show = f'<button type="button" data-unit="{finding.unit}">{name}</button>'
        rows.append(
            f'<tr><th scope="row">{html.escape(finding.name)}</th><td>{show}</td>'
            f'<td class="number">{_signed(finding.reported)}</td>'
            f'<td class="number">{_signed(finding.chosen)}</td></tr>'
        )
    short = ""
    if scores.block < BLOCK:
        short = (
            f'<p class="notice">This is a text of less than {8 * BLOCK:,} {unit}s. Over so few a '
            "large correlation can be chance; take a longer one to be sure.</p>"
        )
    most = max(abs(finding.chosen) for finding in scores.of_units())
    cards = '<ol class="cards" id="cards"></ol>'
    if most < CLEAR:
        cards = (
            f'<p class="notice">No unit follows any of the properties: no correlation reaches '
            f"{CLEAR}, and the largest, where it was chosen, is {most:.2f}.</p>"
        )
    return (
        '<p class="note">Every unit is compared with every property by the absolute value of their '
        f"correlation over every other block of {scores.block} {unit}s, which chooses the unit's "
        "property and its place here. The large number is the correlation over the blocks between, "
        f"which had no say in it. Of each property the first three units from {CLEAR} up are "
        "shown, in the passage in which the property itself changes the most.</p>"
        f"{short}{cards}"
        '<details open><summary>The best unit of each property</summary><div class="table">'
        '<table class="facts"><caption>Correlation of the unit with the property</caption><tr>'
        '<th scope="col">Property</th><th scope="col">Unit</th><th scope="col">Measured</th>'
        f'<th scope="col">Where chosen</th></tr>{"".join(rows)}</table></div></details>'
    )


def gates_section(recording: Recording) -> str:
    """The gates: their plots, and a table of how many units are closed or open."""
    silent = _without_gates(recording)
    if not recording.gates:
        return (
            '<p class="notice">The cells of this model have no gates, or compute them in one piece '
            "with their state, so there are no values of gates to show.</p>"
        )
    layers = dict.fromkeys(gate.layer for gate in recording.gates)
    marks = "".join(f'<li data-mark="{layer}">layer {layer + 1}</li>' for layer in layers)
    rows = []
    for gate in recording.gates:
        closed, opened = gate.saturation().T
        shares = [np.mean(closed > 0.9), np.mean(closed > 0.5), np.mean(opened > 0.5),
                  np.mean(opened > 0.9)]  # fmt: skip
        cells = "".join(f'<td class="number">{100 * share:.0f} %</td>' for share in shares)
        rows.append(
            f'<tr><th scope="row">layer {gate.layer + 1}, {gate_title(gate.name)}</th>{cells}</tr>'
        )
    return (
        f'<p class="note">A gate counts as closed below {CLOSED} and as open above {OPEN}. Each '
        "mark is a unit; on the dashed line it is always one or the other, at the lower left "
        f"corner neither. {silent}</p>"
        f'<ul class="marks">{marks}</ul><div class="plots" id="plots"></div>'
        '<div class="table"><table class="facts"><caption>Share of the units that are closed or '
        'open for more than so much of the time</caption><tr><th scope="col">Gate</th>'
        '<th scope="col">closed 90 %</th><th scope="col">closed 50 %</th>'
        f'<th scope="col">open 50 %</th><th scope="col">open 90 %</th></tr>{"".join(rows)}'
        "</table></div>"
    )


def notes(recording: Recording, scores: Scores, whole: int, kept: int) -> str:
    """What is on the page, and what is not.

    Args:
        recording: what was read.
        scores: of its units.
        whole: units that are there for the whole text.
        kept: characters for which all units are there, where not all are for the whole text.
    """
    units, length = recording.states.shape[1], len(recording.ids)
    notes = []
    if kept or whole < units:
        notes.append(
            f"There are {units:,} values of state at each of {length:,} characters, more than fit "
            f"in one page: {whole} units, those shown as cards and the next clearest, are here for "
            f"the whole text, and all of them for the first {kept:,} characters. The measures "
            "above are over the whole text."
        )
    else:
        notes.append(f"All {units:,} units are here for all {length:,} characters.")
    notes.append(
        "Values are rounded to 15 levels between minus and plus the 99th percentile of the unit's "
        "own absolute values, which the legend gives; beyond it the colour is the same. "
        "Probabilities are rounded to about half a per cent."
    )
    if all(group.kind != "cell" for group in recording.groups):
        notes.append("The cell of this model has a hidden state and no separate cell state.")
    notes.append(
        "A state, and what is expected next, are those after the model has read the character; the "
        "surprise is that of the character itself, given all before it. The model began with an "
        "empty state, so the first characters surprise it more."
    )
    if scores.unchanging:
        notes.append(
            "Not measured, because they do not change in both halves of this text: "
            f"{html.escape(', '.join(scores.unchanging))}."
        )
    return '<ul class="notes">' + "".join(f"<li>{note}</li>" for note in notes) + "</ul>"


def histogram(bits: np.ndarray, unit: str) -> str:
    """The shares of characters (or bytes: ``unit``) by whole bits of surprise, as SVG."""
    last = 12
    counts = np.bincount(np.minimum(bits.astype(int).clip(0), last), minlength=last + 1)
    shares = counts / counts.sum()
    step, height, top = 36, 120, 16
    parts = []
    for k, share in enumerate(shares):
        tall = height * share / np.max(shares)
        name = f"{k} to {k + 1} bits" if k < last else f"{last} bits or more"
        parts.append(
            f'<rect class="bar" x="{k * step + 3}" y="{top + height - tall:.1f}" '
            f'width="{step - 6}" height="{tall:.1f}"><title>{name}: {100 * share:.1f} %</title>'
            f'</rect><text x="{(k + 0.5) * step}" y="{top + height - tall - 4:.1f}" '
            f'text-anchor="middle">{_percent(share)}</text><text x="{(k + 0.5) * step}" '
            f'y="{top + height + 15}" text-anchor="middle">{k}{"+" if k == last else ""}</text>'
        )
    label = "; ".join(f"{k} bits: {_percent(s)}" for k, s in enumerate(shares) if s > 0)
    width = step * (last + 1)
    return (
        f'<svg viewBox="0 0 {width} {top + height + 34}" role="img" '
        f'aria-label="Histogram of the surprise, {label}">'
        f'{"".join(parts)}<text x="{width / 2}" y="{top + height + 31}" text-anchor="middle">'
        f"bits of surprise, from here to the next, and the share of {unit}s</text></svg>"
    )


_GATE_TITLES = {"i": "input", "f": "forget", "o": "output", "r": "reset", "z": "update"}


def gate_title(name: str) -> str:
    """What a gate is called, with its letter."""
    return f"{_GATE_TITLES[name]} gate {name}"


def _percent(share: float) -> str:
    if not share:
        return ""
    return f"{100 * share:.0f}%" if share >= 0.01 else "&lt;1%"


def _signed(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def _unit_name(unit: int, recording: Recording) -> str:
    for group in recording.groups:
        if unit < group.size:
            return f"layer {group.layer + 1}, {group.kind} {unit + 1}"
        unit -= group.size
    raise AssertionError("a unit is a column of the states")


def _without_gates(recording: Recording) -> str:
    layers = {group.layer for group in recording.groups} - {gate.layer for gate in recording.gates}
    if not layers:
        return ""
    return f"No values of gates for layer {', '.join(str(layer + 1) for layer in sorted(layers))}."
