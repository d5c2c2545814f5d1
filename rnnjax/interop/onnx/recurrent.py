"""ONNX's RNN, GRU and LSTM as cells and their parameters, and the way back."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.cells import CoupledLSTMCell, GRUCell, LSTMCell, PeepholeLSTMCell, SimpleRNNCell
from rnnjax.cells.base import Cell, Params
from rnnjax.errors import InteropError
from rnnjax.interop.functions import (
    ELU,
    Affine,
    Function,
    HardSigmoid,
    LeakyReLU,
)
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


# --- Activations ---

ACTIVATIONS: Mapping[str, str | type[Any]] = {
    "Tanh": "tanh",
    "Sigmoid": "sigmoid",
    "Relu": "relu",
    "Softplus": "softplus",
    "Softsign": "softsign",
    "Elu": ELU,
    "HardSigmoid": HardSigmoid,
    "LeakyRelu": LeakyReLU,
    "Affine": Affine,
}
"""By ONNX's name our name, or the class of functions with numbers."""

# Ours that are one of those with certain numbers.
_NAMED_CASES: Mapping[str, Function] = {
    "linear": Affine(1.0, 0.0),
    "legacy_hard_sigmoid": HardSigmoid(0.2, 0.5),
    "hard_sigmoid": HardSigmoid(1 / 6, 0.5),
    "elu": ELU(1.0),
}


def activations_from_onnx(
    names: Sequence[str], alphas: Sequence[float] = (), betas: Sequence[float] = ()
) -> list[str | Function]:
    """Our activations for the attributes ``activations, activation_alpha, activation_beta``.

    Each activation that takes a number consumes the next one; where none is left, it has that of
    ONNX's operator.

    >>> activations_from_onnx(["Sigmoid", "LeakyRelu", "Tanh"], alphas=[0.25])
    ['sigmoid', LeakyReLU(alpha=0.25), 'tanh']
    """
    spelled = {known.lower(): kind for known, kind in ACTIVATIONS.items()}  # any case is taken
    for name in names:
        if name.lower() not in spelled:
            raise InteropError(
                f"{name!r} is not an activation of ONNX's recurrent operators; those are "
                f"{', '.join(ACTIVATIONS)}"
            )
    kinds = [spelled[name.lower()] for name in names]
    left = {
        "alpha": _consumed("alpha", names, kinds, alphas),
        "beta": _consumed("beta", names, kinds, betas),
    }
    functions: list[str | Function] = []
    for kind in kinds:
        if isinstance(kind, str):
            functions.append(kind)
            continue
        # The shortest decimal with the same 32 bits: ONNX's 0.2 is read as 0.20000000298.
        numbers = {
            one.name: float(str(np.float32(left[one.name].pop(0))))
            for one in dataclasses.fields(kind)
            if left[one.name]
        }
        if kind is Affine and len(numbers) < 2:
            raise InteropError(
                "the activation Affine needs an activation_alpha and an activation_beta, "
                "for which ONNX has no default; add them to the node"
            )
        function = kind(**numbers)
        same = (name for name, case in _NAMED_CASES.items() if _singles(case) == _singles(function))
        functions.append(next(same, function))
    return functions


def _consumed(
    key: str, names: Sequence[str], kinds: Sequence[Any], given: Sequence[float]
) -> list[float]:
    """The numbers of those activations that take one."""
    takes = [
        not isinstance(kind, str) and key in {one.name for one in dataclasses.fields(kind)}
        for kind in kinds
    ]
    # Some exporters write a number for each activation, those without one too, and runtimes do not
    # agree on what that means, where it makes a difference.
    by_place = [number for number, taken in zip(given, takes, strict=False) if taken]
    consumed = list(given[: sum(takes)])
    if (
        any(takes)
        and len(given) > sum(takes)
        and (len(given) != len(names) or by_place != consumed)
    ):
        raise InteropError(
            f"activation_{key} has {len(given)} numbers, but only {sum(takes)} of the activations "
            f"{', '.join(names)} take one; leave out the others"
        )
    return consumed


def _singles(function: Function) -> tuple[Any, ...]:
    return type(function), *map(np.float32, vars(function).values())


def activation_to_onnx(function: str | Function) -> tuple[str, dict[str, float]]:
    """ONNX's name of an activation of ours, and its numbers.

    >>> activation_to_onnx("legacy_hard_sigmoid")
    ('HardSigmoid', {'alpha': 0.2, 'beta': 0.5})
    """
    if isinstance(function, str):
        function = _NAMED_CASES.get(function, function)
    for name, kind in ACTIVATIONS.items():
        if kind == function:
            return name, {}
        if type(function) is kind:
            return name, vars(function)
    raise InteropError(
        f"ONNX's recurrent operators have no activation like {function!r}; those they have are "
        f"{', '.join(ACTIVATIONS)}"
    )


# --- Cells ---

_SATURATED = frozenset({"sigmoid", "tanh", "hard_sigmoid", "legacy_hard_sigmoid"})


def cell_from_onnx(
    op_type: str,
    hidden_size: int,
    activations: Sequence[str | Function],
    *,
    biases: int,
    peephole: bool = False,
    coupled: bool = False,
    reset_after: bool = False,
    clip: float | None = None,
    param_dtype: Any = jnp.float32,
) -> Cell:
    """The cell of one direction of a node; ``activations`` are ours, in ONNX's order f, g, h.

    ``biases`` of each gate are 0, 1 or 2; ``peephole`` is whether it has P, ``coupled`` its
    ``input_forget``, and ``reset_after`` its ``linear_before_reset``.

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
    if activations[1] != activations[2] or (peephole and coupled):
        raise InteropError(
            "it has different activations of candidate and output, or peepholes with coupled "
            "gates, which no cell has; write the LSTM of basic operators"
        )
    if peephole:
        return PeepholeLSTMCell(hidden_size, **shared)
    if coupled:
        return CoupledLSTMCell(hidden_size, **shared)
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
    if names != [*RECURRENT[op_type].activations]:
        attributes["activations"] = names
    for key in ("alpha", "beta"):
        numbers = [numbers[key] for _, numbers in spelled if key in numbers]
        if numbers:
            attributes[f"activation_{key}"] = numbers
    if isinstance(cell, CoupledLSTMCell):
        attributes["input_forget"] = 1
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


def params_from_onnx(cell: Cell, W: Any, R: Any, B: Any = None, P: Any = None) -> Params:
    """The parameters of a cell from the arrays of a node, see `Weights` for their shapes.

    They are arrays of NumPy unless JAX's came; `rnnjax.Directions` of two for two directions. The
    two biases of a gate are added up where the cell has one; a coupled cell has no forget gate.
    """
    weights = Weights(W, R, B, P)
    cells = cell.cells if isinstance(cell, Bidirectional) else (cell,)
    params = [
        _params_of_direction(one, Weights(*(None if a is None else a[i] for a in weights)))
        for i, one in enumerate(cells)
    ]
    return Directions(*params) if isinstance(cell, Bidirectional) else params[0]


def params_to_onnx(cell: Cell, params: Params) -> Weights:
    """The arrays of a node from the parameters of a cell: the inverse of `params_from_onnx`.

    Second biases that the cell does not have, and the rows of the forget gate in a coupled cell,
    are zeros.

    >>> import jax
    >>> cell = LSTMCell(5)
    >>> W, R, B, P = params_to_onnx(cell, cell.init(jax.random.key(0), 3))
    >>> W.shape, R.shape, B.shape, P
    ((1, 20, 3), (1, 20, 5), (1, 40), None)
    """
    cells = cell.cells if isinstance(cell, Bidirectional) else (cell,)
    each = params if isinstance(cell, Bidirectional) else (params,)
    directions = [
        _weights_of_direction(one, {name: np.asarray(array) for name, array in own.items()})
        for one, own in zip(cells, each, strict=True)
    ]
    return Weights(
        *(
            None if any(array is None for array in arrays) else np.stack(arrays)
            for arrays in zip(*directions, strict=True)
        )
    )


def input_size(params: Any) -> int:
    """How many features a layer takes: the rows of its kernel, or of that of its first cell."""
    while not (isinstance(params, Mapping) and "kernel" in params):
        params = params["cell"] if isinstance(params, Mapping) else params[0]
    return int(np.shape(params["kernel"])[0])


def _params_of_direction(cell: Cell, weights: Weights) -> dict[str, Any]:
    gates, order = _gates_and_order(cell)
    params = {
        "kernel": _take(weights.W, gates, order).T,
        "recurrent_kernel": _take(weights.R, gates, order).T,
    }
    if weights.B is not None:
        half = weights.B.shape[0] // 2
        first, second = weights.B[:half], weights.B[half:]
        if _has_two_biases(cell):
            params["bias"] = _take(first, gates, order)
            params["recurrent_bias"] = _take(second, gates, order)
        else:
            params["bias"] = _take(first + second, gates, order)
    if weights.P is not None:
        params["peephole"] = _take(weights.P, 3, _PEEPHOLES).reshape(3, -1)
    return params


_PEEPHOLES = (0, 2, 1)  # where ONNX has those of i, f and o


def _has_two_biases(cell: Any) -> bool:
    return cell.use_recurrent_bias or (isinstance(cell, GRUCell) and cell.reset_after)


def _weights_of_direction(cell: Cell, params: Mapping[str, np.ndarray]) -> Weights:
    gates, order = _gates_and_order(cell)
    biases = peepholes = None
    if "bias" in params:
        first = params["bias"]
        second = params.get("recurrent_bias", np.zeros_like(first))
        biases = np.concatenate([_put(one, gates, order) for one in (first, second)])
    if "peephole" in params:
        peepholes = _put(params["peephole"].reshape(-1), 3, _PEEPHOLES)
    return Weights(
        _put(params["kernel"].T, gates, order),
        _put(params["recurrent_kernel"].T, gates, order),
        biases,
        peepholes,
    )


def _gates_and_order(cell: Cell) -> tuple[int, tuple[int, ...]]:
    return RECURRENT[operator_of(cell)].gates, places("onnx", cell)


def _take(array: Any, parts: int, order: Sequence[int]) -> Any:
    """Some of the equal parts of the first axis, in that order."""
    size = array.shape[0] // parts
    split = [array[place * size : (place + 1) * size] for place in order]
    return (jnp if isinstance(array, jax.Array) else np).concatenate(split)


def _put(array: np.ndarray, parts: int, order: Sequence[int]) -> np.ndarray:
    """The inverse of `_take`; parts that were not taken are zeros."""
    size = len(array) // len(order)
    out = np.zeros((parts * size, *array.shape[1:]), array.dtype)
    for place, part in zip(order, np.split(array, len(order)), strict=True):
        out[place * size : (place + 1) * size] = part
    return out
