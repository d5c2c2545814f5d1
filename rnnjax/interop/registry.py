"""Which cells a format knows, by what names, and with its gates in which order."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rnnjax.cells import Cell, GRUCell, LSTMCell, ProjectionLSTMCell, SimpleRNNCell


class Form(NamedTuple):
    """A cell as another format has it.

    Attributes:
        name: there: of a class, an operator or a module.
        gates: in the order of that format, by the names that the cell declares; left out, its own.
    """

    name: str
    gates: tuple[str, ...] = ()


_GRU = Form("GRU", ("z", "r", "n"))

FORMS: Mapping[str, dict[type[Cell], Form]] = {
    "keras": {SimpleRNNCell: Form("SimpleRNN"), LSTMCell: Form("LSTM"), GRUCell: _GRU},
    "torch": {
        SimpleRNNCell: Form("RNN"),
        LSTMCell: Form("LSTM"),
        GRUCell: Form("GRU"),
        ProjectionLSTMCell: Form("LSTM"),
    },
    "onnx": {
        SimpleRNNCell: Form("RNN"),
        GRUCell: _GRU,
        LSTMCell: Form("LSTM", ("i", "o", "f", "g")),
    },
}
"""By the format, the cells that it has."""


def names_of(where: str) -> str:
    """The cells that a format has, in words."""
    return ", ".join(cell.__name__ for cell in FORMS[where])


def places(where: str, cell: Cell) -> tuple[int, ...]:
    """Of each gate of a cell, in its order, the place that a format has it in."""
    theirs = FORMS[where][type(cell)].gates or cell.gates
    return tuple(theirs.index(gate) for gate in cell.gates)


def reordered(array: Any, order: Sequence[int], axis: int = -1) -> Any:
    """Equal parts of an axis, put in another order; as it is where it has no such parts."""
    if [*order] == sorted(order) or array.ndim == 0 or array.shape[axis] % len(order):
        return array
    places = np.arange(array.shape[axis]).reshape(len(order), -1)[[*order]].reshape(-1)
    return array.take(places, axis)
