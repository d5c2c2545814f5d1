"""ONNX's RNN, GRU and LSTM as cells and their parameters, and the way back."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.cells import CoupledLSTMCell, GRUCell, LSTMCell, PeepholeLSTMCell, SimpleRNNCell
from rnnjax.cells.base import Cell, Params
from rnnjax.errors import InteropError
from rnnjax.interop.functions import Function
from rnnjax.interop.onnx.activations import activation_to_onnx
from rnnjax.interop.onnx.cells import Clipped, GeneralLSTMCell
from rnnjax.interop.registry import FORMS, names_of, places
from rnnjax.layers import Bidirectional, Directions


class Weights(NamedTuple):
    """The parameters of one RNN, GRU or LSTM node, as ONNX has them.

    The gates are i, o, f, c in an LSTM, whose peepholes are i, o, f, and z, r, h in a GRU.
    """

    W: Any  # (directions, gates * hidden_size, input_size)
    R: Any  # (directions, gates * hidden_size, hidden_size)
    # (directions, 2 * gates * hidden_size): biases of the inputs, then of the state; or None
    B: Any = None
    P: Any = None  # peepholes of an LSTM, (directions, 3 * hidden_size), or None


class RecurrentOperator(NamedTuple):
    """All that is known of a recurrent operator."""

    gates: int  # how many it has; `rnnjax.interop.registry` knows the cells and their orders
    activations: tuple[str, ...]  # those of one direction that are left out, in the order f, g, h
    states: int = 1  # how many arrays its state is


RECURRENT: Mapping[str, RecurrentOperator] = {
    "RNN": RecurrentOperator(1, ("Tanh",)),
    "GRU": RecurrentOperator(3, ("Sigmoid", "Tanh")),
    "LSTM": RecurrentOperator(4, ("Sigmoid", "Tanh", "Tanh"), states=2),
}
"""The recurrent operators, by their names."""

FORMS["onnx"][GeneralLSTMCell] = FORMS["onnx"][LSTMCell]


# --- Cells ---


def cell_from_onnx(
    op_type: str,
    hidden_size: int,
    activations: Sequence[str | Function],
    *,
    use_bias: bool,
    peephole: bool = False,
    coupled: bool = False,
    reset_after: bool = False,
    clip: float | None = None,
    param_dtype: Any = jnp.float32,
) -> Cell:
    """The cell of one direction of a node; ``activations`` are ours, in ONNX's order f, g, h.

    ``peephole`` is whether it has P, ``coupled`` its ``input_forget``, and ``reset_after`` its
    ``linear_before_reset``. ``clip`` bounds the inputs of f and g, and not of h: the specification
    can be read either way, and the runtimes that have it clip the gates alone.

    >>> cell_from_onnx("LSTM", 5, ["sigmoid", "tanh", "tanh"], use_bias=True) == LSTMCell(5)
    True
    """
    shared: dict[str, Any] = {"use_bias": use_bias, "param_dtype": param_dtype}
    gates = [f if clip is None else Clipped(f, clip) for f in activations[:2]]
    if op_type == "RNN":
        return SimpleRNNCell(hidden_size, activation=gates[0], **shared)
    shared |= {"recurrent_activation": gates[0], "activation": gates[1]}
    if op_type == "GRU":
        return GRUCell(hidden_size, reset_after=reset_after, **shared)
    if gates[1] != activations[2] or (peephole and coupled):
        return GeneralLSTMCell(
            hidden_size,
            output_activation=activations[2],
            peephole=peephole,
            coupled=coupled,
            **shared,
        )
    if peephole:
        return PeepholeLSTMCell(hidden_size, **shared)
    return (CoupledLSTMCell if coupled else LSTMCell)(hidden_size, **shared)


def attributes_to_onnx(cell: Cell, *, reverse: bool = False) -> tuple[str, dict[str, Any]]:
    """The operator of the node that computes a cell, and its attributes where not at their default.

    The cell is one that `cell_from_onnx` gives, or a `rnnjax.Bidirectional` that concatenates two
    that differ in nothing but their activations.

    >>> attributes_to_onnx(LSTMCell(5))
    ('LSTM', {'hidden_size': 5})
    >>> attributes_to_onnx(Bidirectional(GRUCell(5, activation="relu"))) # doctest: +ELLIPSIS
    ('GRU', {'hidden_size': 5, 'direction': 'bidirectional', ...'linear_before_reset': 1})
    """
    cells = cell.cells if isinstance(cell, Bidirectional) else (cell,)
    if isinstance(cell, Bidirectional) and (reverse or cell.merge != "concat"):
        raise InteropError(
            f"a node of ONNX with two directions reads forward first and concatenates, but "
            f"{cell!r} does not; write a node for each direction"
        )
    op_type = operator_of(cells[0])
    first: Any = cells[0]
    attributes: dict[str, Any] = {"hidden_size": int(first.hidden_size)}
    if len(cells) == 2 or reverse:
        attributes["direction"] = "bidirectional" if len(cells) == 2 else "reverse"
    bounds = {
        f.bound if isinstance(f, Clipped) else None for one in cells for f in _activations(one)[:2]
    }
    kinds = {(type(c), *(getattr(c, option, None) for option in _OPTIONS)) for c in cells}
    if len(kinds) > 1 or len(bounds) > 1:
        raise InteropError(
            "a node of ONNX has one kind of cell, size, bias and clip for all activations and "
            f"directions, but {cell!r} has several"
        )
    spelled = [
        activation_to_onnx(f.function if isinstance(f, Clipped) and i < 2 else f)
        for one in cells
        for i, f in enumerate(_activations(one))
    ]
    if [s.name for s in spelled] != [*RECURRENT[op_type].activations] * len(cells):
        attributes["activations"] = [s.name for s in spelled]
    for key in ("alpha", "beta"):
        numbers = [n for n in (getattr(s, key) for s in spelled) if n is not None]
        if numbers:
            attributes[f"activation_{key}"] = numbers
    (bound,) = bounds
    if bound is not None:
        attributes["clip"] = bound
    if _coupled(cells[0]):
        attributes["input_forget"] = 1
    if isinstance(first, GRUCell) and first.reset_after:
        attributes["linear_before_reset"] = 1
    return op_type, attributes


def operator_of(cell: Cell) -> str:
    """The name of the operator that computes a cell of one direction."""
    form = FORMS["onnx"].get(type(cell))
    if form is None:
        raise InteropError(
            f"no operator of ONNX computes {cell!r}; those it has are {names_of('onnx')}"
        )
    return form.name


_OPTIONS = "hidden_size", "use_bias", "reset_after", "peephole", "coupled"


def _activations(cell: Any) -> tuple[str | Function, ...]:
    """In ONNX's order f, g, h."""
    if isinstance(cell, SimpleRNNCell):
        return (cell.activation,)
    if isinstance(cell, GRUCell):
        return cell.recurrent_activation, cell.activation
    last = getattr(cell, "output_activation", cell.activation)
    return cell.recurrent_activation, cell.activation, last


def _coupled(cell: Cell) -> bool:
    return isinstance(cell, CoupledLSTMCell) or (isinstance(cell, GeneralLSTMCell) and cell.coupled)


# --- Parameters ---


def params_from_onnx(cell: Cell, W: Any, R: Any, B: Any = None, P: Any = None) -> Params:
    """The parameters of a cell from the arrays of a node, see `Weights` for their shapes.

    They are arrays of NumPy unless JAX's came; `rnnjax.Directions` of two for two directions. The
    two biases of a gate are added up, but in a GRU with ``reset_after``, which has them apart; a
    coupled cell has no forget gate.
    """
    weights = Weights(W, R, B, P)
    cells = cell.cells if isinstance(cell, Bidirectional) else (cell,)
    params = [
        _params_of_direction(one, Weights(*(None if a is None else a[i] for a in weights)))
        for i, one in enumerate(cells)
    ]
    return Directions(*params) if isinstance(cell, Bidirectional) else params[0]


def params_to_onnx(cell: Cell, params: Params, original: Weights | None = None) -> Weights:
    """The arrays of a node from the parameters of a cell: the inverse of `params_from_onnx`.

    What the parameters do not tell is taken from the ``original`` arrays from which they once came:
    how a bias is the sum of two, and the rows of the forget gate that a coupled cell has not.
    Unchanged parameters give the same bits back; where the sum of two biases changed, the second
    stays as it was. Without them, second biases and those rows are zeros.

    >>> import jax
    >>> cell = LSTMCell(5)
    >>> W, R, B, P = params_to_onnx(cell, cell.init(jax.random.key(0), 3))
    >>> W.shape, R.shape, B.shape, P
    ((1, 20, 3), (1, 20, 5), (1, 40), None)
    """
    cells = cell.cells if isinstance(cell, Bidirectional) else (cell,)
    each = params if isinstance(cell, Bidirectional) else (params,)
    directions = [
        _weights_of_direction(
            one,
            {name: np.asarray(array) for name, array in own.items()},
            None if original is None else Weights(*(None if a is None else a[i] for a in original)),
        )
        for i, (one, own) in enumerate(zip(cells, each, strict=True))
    ]
    return Weights(
        *(
            None if any(array is None for array in arrays) else np.stack(arrays)
            for arrays in zip(*directions, strict=True)
        )
    )


_PEEPHOLE_ORDER, _COUPLED_PEEPHOLE_ORDER = (0, 2, 1), (0, 1)


def _params_of_direction(cell: Cell, weights: Weights) -> dict[str, Any]:
    gates, order = _gates_and_order(cell)
    params = {
        "kernel": _take(weights.W, gates, order).T,
        "recurrent_kernel": _take(weights.R, gates, order).T,
    }
    if weights.B is not None:
        half = weights.B.shape[0] // 2
        first, second = weights.B[:half], weights.B[half:]
        if isinstance(cell, GRUCell) and cell.reset_after:
            params["bias"] = _take(first, gates, order)
            params["recurrent_bias"] = _take(second, gates, order)
        else:
            params["bias"] = _take(first + second, gates, order)
    if weights.P is not None:
        peepholes = _COUPLED_PEEPHOLE_ORDER if _coupled(cell) else _PEEPHOLE_ORDER
        params["peephole"] = _take(weights.P, 3, peepholes).reshape(len(peepholes), -1)
    return params


def _weights_of_direction(
    cell: Cell, params: Mapping[str, np.ndarray], original: Weights | None
) -> Weights:
    gates, order = _gates_and_order(cell)
    had = Weights(None, None) if original is None else original
    biases = peepholes = None
    if "bias" in params:
        firsts, seconds = (None, None) if had.B is None else np.split(had.B, 2)
        if "recurrent_bias" in params:
            first = _put(params["bias"], gates, order, firsts)
            second = _put(params["recurrent_bias"], gates, order, seconds)
        else:
            total = None if firsts is None or seconds is None else firsts + seconds
            first = _put(params["bias"], gates, order, total)
            second = np.zeros_like(first)
            if firsts is not None and seconds is not None and total is not None:
                same = (first == total) | (np.isnan(first) & np.isnan(total))
                first, second = np.where(same, firsts, first - seconds), seconds
        biases = np.concatenate([first, second])
    if "peephole" in params:
        places = _COUPLED_PEEPHOLE_ORDER if _coupled(cell) else _PEEPHOLE_ORDER
        peepholes = _put(params["peephole"].reshape(-1), 3, places, had.P)
    return Weights(
        _put(params["kernel"].T, gates, order, had.W),
        _put(params["recurrent_kernel"].T, gates, order, had.R),
        biases,
        peepholes,
    )


def _gates_and_order(cell: Cell) -> tuple[int, tuple[int, ...]]:
    return RECURRENT[operator_of(cell)].gates, places("onnx", cell)


def _take(array: Any, parts: int, order: Sequence[int]) -> Any:
    """Those of the equal parts of the first axis, in that order."""
    size = array.shape[0] // parts
    split = [array[place * size : (place + 1) * size] for place in order]
    return (jnp if isinstance(array, jax.Array) else np).concatenate(split)


def _put(
    array: np.ndarray, parts: int, order: Sequence[int], onto: np.ndarray | None
) -> np.ndarray:
    """The inverse of `_take`; parts that were not taken come from ``onto``, or are zeros."""
    size = len(array) // len(order)
    shape = (parts * size, *array.shape[1:])
    out = np.zeros(shape, array.dtype) if onto is None else onto.astype(array.dtype)
    for place, part in zip(order, np.split(array, len(order)), strict=True):
        out[place * size : (place + 1) * size] = part
    return out
