"""Which cells a format knows, by what names, and with its gates in which order."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np

from rnnjax.cells import (
    Cell,
    CoupledLSTMCell,
    GRUCell,
    LSTMCell,
    PeepholeLSTMCell,
    ProjectionLSTMCell,
    SimpleRNNCell,
)
from rnnjax.errors import InvalidInputError

C = TypeVar("C", bound=Cell)


class Form(NamedTuple):
    """A cell as another format has it.

    Attributes:
        name: there: of a class, an operator or a module.
        gates: in the order of that format, by the names that the cell declares; left out, its own.
    """

    name: str
    gates: tuple[str, ...] = ()


_LSTM, _GRU = Form("LSTM", ("i", "o", "f", "g")), Form("GRU", ("z", "r", "n"))

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
        LSTMCell: _LSTM,
        PeepholeLSTMCell: _LSTM,
        CoupledLSTMCell: _LSTM,
    },
}
"""By the format, the cells that it has."""


def register(cell: type[C], *, keras: str | Form) -> type[C]:
    """Let files and models of Keras hold a cell of your own, both ways.

    Keras knows it by a name with a package, as ``keras.saving.register_keras_serializable`` gives
    it, and has it in an ``RNN``. In a file its options are the fields of the cell, ``hidden_size``
    by the name ``units``; its arrays are its parameters in the order in which `rnnjax.Cell.init`
    gives them. To run it there, Keras needs a class of that name with the same weights.

    Args:
        cell: a class of cells, a frozen dataclass whose fields are numbers, texts and None.
        keras: ``"package>Name"``; a `Form` where Keras's class has its gates in another order.

    Returns:
        the class, so that this can stand above it as a decorator.

    Raises:
        InvalidInputError: the class is no such one or has a form already in Keras, the name is
            another's or has no package, or the gates are not those of the cell.

    >>> import functools, jax, rnnjax
    >>> @functools.partial(register, keras="mine>LeakyCell")
    ... @dataclasses.dataclass(frozen=True)
    ... class LeakyCell(rnnjax.Cell):  # leaky units: Jaeger et al., 2007
    ...     hidden_size: int
    ...     leak: float = 0.1
    ...     carry, gates = rnnjax.SimpleRNNCarry, ("a",)
    ...
    ...     def update(self, params, x, carry):
    ...         new = (1 - self.leak) * carry.hidden + self.leak * jnp.tanh(x)
    ...         return rnnjax.SimpleRNNCarry(new)
    >>> FORMS["keras"][LeakyCell].name
    'mine>LeakyCell'
    """
    form, given = keras if isinstance(keras, Form) else Form(keras), cast("Any", cell)
    declared = isinstance(given, type) and dataclasses.is_dataclass(given)
    if not declared or getattr(given, "carry", None) is None:
        raise InvalidInputError(
            f"expected a class of cells, a dataclass that declares its carry, but got {cell!r}"
        )
    if ">" not in FORMS["keras"].get(cell, Form(">")).name:
        raise InvalidInputError(
            f"{cell.__name__} is one of Keras's own cells; register a class of your own"
        )
    package, _, name = str(form.name).partition(">")
    other = cell_named("keras", form.name)
    if not package or not name.isidentifier() or other not in (None, cell):
        raise InvalidInputError(
            f"the name of {cell.__name__} should be 'package>Name' and its own, but is "
            f"{form.name!r}" + (f", which is that of {other.__name__}" if other else "")
        )
    if form.gates and sorted(form.gates) != sorted(getattr(cell, "gates", ())):
        raise InvalidInputError(
            f"gates of {cell.__name__} are {cell.gates}, but the form has {form.gates}; give these "
            "in another order"
        )
    FORMS["keras"][cell] = form
    return cell


def cell_named(where: str, name: Any) -> type[Cell] | None:
    """The first cell that a format has by a name."""
    return next((cell for cell, form in FORMS[where].items() if form.name == name), None)


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
    parts = np.split(np.asarray(array), len(order), axis)
    return np.concatenate([parts[place] for place in order], axis)
