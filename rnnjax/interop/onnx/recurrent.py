"""ONNX's RNN, GRU and LSTM as cells and their parameters, and the way back."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax.numpy as jnp
import numpy as np

from rnnjax.cells import GRUCell, LSTMCell, SimpleRNNCell
from rnnjax.cells.base import Cell, Params
from rnnjax.errors import InteropError
from rnnjax.interop.functions import SPELLINGS, Function, Spelling
from rnnjax.interop.registry import FORMS, names_of, places
from rnnjax.layers import Bidirectional, Directions

Weights = tuple[Any, Any, Any]
"""The parameters W, R and B of one RNN, GRU or LSTM node, as ONNX has them.

They are ``(directions, gates * hidden_size, input_size)``, ``(..., hidden_size)``, and the biases
of the inputs and then of the state, ``(directions, 2 * gates * hidden_size)``, or None.
"""

RECURRENT: Mapping[str, tuple[str, ...]] = {
    "RNN": ("Tanh",),
    "GRU": ("Sigmoid", "Tanh"),
    "LSTM": ("Sigmoid", "Tanh", "Tanh"),
}
"""By the name of a recurrent operator its activations where they are left out, as f, g, h."""


# --- Activations ---

_IN_CELLS = {one.onnx: name for name, one in SPELLINGS.items() if one.in_cells}


def activations_from_onnx(
    names: Sequence[str], alphas: Sequence[float] = (), betas: Sequence[float] = ()
) -> list[str | Function]:
    """Our activations for the attributes ``activations, activation_alpha, activation_beta``.

    Each activation that takes a number consumes the next one; where none is left, it has that of
    ONNX's operator.

    >>> activations_from_onnx(["Sigmoid", "LeakyRelu", "Tanh"], alphas=[0.25])
    ['sigmoid', LeakyReLU(alpha=0.25), 'tanh']
    """
    spelled = {name.lower(): name for name in _IN_CELLS}  # any case is taken
    left, taken = {"alpha": list(alphas), "beta": list(betas)}, set[str]()
    functions: list[str | Function] = []
    for name in names:
        known = spelled.get(name.lower())
        if known is None:
            raise InteropError(
                f"{name!r} is not an activation of ONNX's recurrent operators; those are "
                f"{', '.join(_IN_CELLS)}"
            )
        kind = _IN_CELLS[known]
        fields = ("alpha", "beta") if known == "Affine" else getattr(kind, "__match_args__", ())
        taken.update(fields)
        # The shortest decimal with the same 32 bits: ONNX's 0.2 is read as 0.20000000298.
        given = {key: float(str(np.float32(left[key].pop(0)))) for key in fields if left[key]}
        functions.append(_function(known, kind, given))
    more = [key for key in taken if left[key]]
    if more:  # runtimes do not agree on whose numbers these are
        raise InteropError(
            f"activation_{min(more)} has numbers that none of the activations {', '.join(names)} "
            "takes; leave them out"
        )
    return functions


def _function(onnx: str, kind: Any, given: Mapping[str, float]) -> str | Function:
    """Ours, by a name if it has one with these numbers."""
    numbers = vars(kind(**given)) if isinstance(kind, type) else given
    for name, one in SPELLINGS.items():
        same = {key: np.float32(value) for key, value in one.numbers.items()} == {
            key: np.float32(value) for key, value in numbers.items()
        }
        if isinstance(name, str) and one.onnx == onnx and same:
            return name
    if not isinstance(kind, type):
        raise InteropError(
            f"the activation {onnx} with {dict(given) or 'no numbers'} is none that a cell has"
        )
    function: Function = kind(**given)
    return function


def activation_to_onnx(function: str | Function) -> tuple[str, Mapping[str, float]]:
    """The operator of ONNX that computes a function of ours, or "", and its numbers.

    >>> activation_to_onnx("legacy_hard_sigmoid")
    ('HardSigmoid', {'alpha': 0.2, 'beta': 0.5})
    """
    if isinstance(function, str):
        named = SPELLINGS.get(function, Spelling())
        return named.onnx, named.numbers
    kind: Any = type(function)
    return (SPELLINGS[kind].onnx, vars(function)) if kind in SPELLINGS else ("", {})


# --- Cells ---

_SATURATED = frozenset({"sigmoid", "tanh", "hard_sigmoid", "legacy_hard_sigmoid"})


def cell_from_onnx(
    op_type: str,
    hidden_size: int,
    activations: Sequence[str | Function],
    *,
    biases: int,
    reset_after: bool = False,
    clip: float | None = None,
    param_dtype: Any = jnp.float32,
) -> Cell:
    """The cell of one direction of a node; ``activations`` are ours, in ONNX's order f, g, h.

    ``biases`` of each gate are 0, 1 or 2; ``reset_after`` is its ``linear_before_reset``.

    >>> cell_from_onnx("LSTM", 5, ["sigmoid", "tanh", "tanh"], biases=1) == LSTMCell(5)
    True
    """
    # Some exporters write a bound that nothing reaches: beyond it these functions are constant.
    if clip is not None and not (clip >= 50 and _SATURATED.issuperset(activations[:2])):
        raise InteropError(f"it clips at {clip}, which no cell does; export it without clip")
    shared: dict[str, Any] = {"use_bias": biases > 0, "param_dtype": param_dtype}
    second: dict[str, Any] = {"use_recurrent_bias": biases > 1}
    if op_type == "RNN":
        return SimpleRNNCell(hidden_size, activation=activations[0], **shared, **second)
    shared |= {"recurrent_activation": activations[0], "activation": activations[1]}
    if op_type == "GRU":
        return GRUCell(hidden_size, reset_after=reset_after, **shared)
    if activations[1] != activations[2]:
        raise InteropError(
            "it has different activations of candidate and output, which no cell has; write the "
            "LSTM of basic operators"
        )
    return LSTMCell(hidden_size, **shared, **second)


def attributes_to_onnx(cell: Cell, *, reverse: bool = False) -> tuple[str, dict[str, Any]]:
    """The operator of the node that computes a cell, and its attributes where not at their default.

    The cell is one that `cell_from_onnx` gives.

    >>> attributes_to_onnx(LSTMCell(5))
    ('LSTM', {'hidden_size': 5})
    >>> attributes_to_onnx(GRUCell(5, activation="relu"))
    ('GRU', {'hidden_size': 5, 'activations': ['Sigmoid', 'Relu'], 'linear_before_reset': 1})
    """
    op_type, given = operator_of(cell), cast("Any", cell)
    attributes: dict[str, Any] = {"hidden_size": int(given.hidden_size)}
    if reverse:
        attributes["direction"] = "reverse"
    spelled = [activation_to_onnx(function) for function in _activations(cell)]
    names = [name for name, _ in spelled]
    if not set(names) <= set(_IN_CELLS):
        raise InteropError(
            f"ONNX's recurrent operators have not all activations of {cell!r}; those they have are "
            f"{', '.join(_IN_CELLS)}"
        )
    if names != [*RECURRENT[op_type]]:
        attributes["activations"] = names
    for key in ("alpha", "beta"):
        numbers = [numbers[key] for _, numbers in spelled if key in numbers]
        if numbers:
            attributes[f"activation_{key}"] = numbers
    if isinstance(cell, GRUCell) and cell.reset_after:
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


def _activations(cell: Any) -> tuple[str | Function, ...]:
    """In ONNX's order f, g, h."""
    if isinstance(cell, SimpleRNNCell):
        return (cell.activation,)
    if isinstance(cell, GRUCell):
        return cell.recurrent_activation, cell.activation
    return cell.recurrent_activation, cell.activation, cell.activation


# --- Parameters ---


def params_from_onnx(cell: Cell, W: Any, R: Any, B: Any = None) -> Params:
    """The parameters of a cell from the arrays of a node, see `Weights` for their shapes.

    They are arrays of NumPy unless JAX's came; `rnnjax.Directions` of two for two directions. The
    two biases of a gate are added up where the cell has one.
    """
    cells = cell.cells if isinstance(cell, Bidirectional) else (cell,)
    params = [
        _params_of_direction(one, W[i], R[i], None if B is None else B[i])
        for i, one in enumerate(cells)
    ]
    return Directions(*params) if isinstance(cell, Bidirectional) else params[0]


def params_to_onnx(cell: Cell, params: Params) -> Weights:
    """The arrays of a node from the parameters of a cell: the inverse of `params_from_onnx`.

    Second biases that the cell does not have are zeros.

    >>> import jax
    >>> cell = LSTMCell(5)
    >>> W, R, B = params_to_onnx(cell, cell.init(jax.random.key(0), 3))
    >>> W.shape, R.shape, B.shape
    ((1, 20, 3), (1, 20, 5), (1, 40))
    """
    cells = cell.cells if isinstance(cell, Bidirectional) else (cell,)
    each = params if isinstance(cell, Bidirectional) else (params,)
    directions = [
        _weights_of_direction(one, {name: np.asarray(array) for name, array in own.items()})
        for one, own in zip(cells, each, strict=True)
    ]
    kernels, recurrent, biases = zip(*directions, strict=True)
    return (
        np.stack(kernels),
        np.stack(recurrent),
        None if any(b is None for b in biases) else np.stack(biases),
    )


def input_size(params: Any) -> int:
    """How many features a layer takes: the rows of its kernel, or of that of its first cell."""
    while not (isinstance(params, Mapping) and "kernel" in params):
        params = params["cell"] if isinstance(params, Mapping) else params[0]
    return int(np.shape(params["kernel"])[0])


def _params_of_direction(cell: Cell, W: Any, R: Any, B: Any) -> dict[str, Any]:
    order = places("onnx", cell)
    params = {"kernel": _in_order(W, order).T, "recurrent_kernel": _in_order(R, order).T}
    if B is not None:
        half = B.shape[0] // 2
        first, second = B[:half], B[half:]
        if _has_two_biases(cell):
            params["bias"] = _in_order(first, order)
            params["recurrent_bias"] = _in_order(second, order)
        else:
            params["bias"] = _in_order(first + second, order)
    return params


def _has_two_biases(cell: Any) -> bool:
    return cell.use_recurrent_bias or (isinstance(cell, GRUCell) and cell.reset_after)


def _weights_of_direction(cell: Cell, params: Mapping[str, np.ndarray]) -> Weights:
    order, biases = np.argsort(places("onnx", cell)).tolist(), None
    if "bias" in params:
        first = params["bias"]
        second = params.get("recurrent_bias", np.zeros_like(first))
        biases = np.concatenate([_in_order(one, order) for one in (first, second)])
    kernel, recurrent = (_in_order(params[f"{n}kernel"].T, order) for n in ("", "recurrent_"))
    return kernel, recurrent, biases


def _in_order(array: Any, order: Sequence[int]) -> Any:
    """The equal parts of the first axis, in that order."""
    parts = array.reshape(len(order), -1, *array.shape[1:])
    return parts[np.array(order)].reshape(array.shape)
