"""ONNX's RNN, GRU and LSTM as cells and their parameters, and the way back."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax.numpy as jnp
import numpy as np

from rnnjax.cells import GRUCell, LSTMCell, SimpleRNNCell
from rnnjax.cells.base import Cell, Params
from rnnjax.errors import InteropError
from rnnjax.interop.functions import (
    FORMS,
    IN_CELLS,
    NUMBERED,
    ONNX,
    Function,
    Nonlinearity,
    places,
    reordered,
)
from rnnjax.interop.layers import fits
from rnnjax.layers import Bidirectional, Directions

Weights = tuple[Any, ...]
"""The parameters W, R and B of one RNN, GRU or LSTM node, as ONNX has them.

They are ``(directions, gates * hidden_size, input_size)``, ``(..., hidden_size)``, and the biases
of the inputs and then of the state, ``(directions, 2 * gates * hidden_size)``, or None.
"""

RECURRENT: Mapping[str, tuple[str, ...]] = {
    "RNN": ("Tanh",),
    "GRU": ("Sigmoid", "Tanh"),
    "LSTM": ("Sigmoid", "Tanh", "Tanh"),
}
"""The default activations f, g, h of each recurrent operator."""

_FIELDS = {
    "RNN": ("activation",),
    "GRU": ("recurrent_activation", "activation"),
    "LSTM": ("recurrent_activation", "activation", "activation"),
}
"""The fields of rnnjax's cells for these activations."""


def activations_from_onnx(
    names: Sequence[str], alphas: Sequence[float] = (), betas: Sequence[float] = ()
) -> list[str | Function]:
    """Our activations for the attributes ``activations, activation_alpha, activation_beta``.

    Each activation that takes a number consumes the next one; where none is left, it has that of
    ONNX's operator.

    >>> activations_from_onnx(["Sigmoid", "LeakyRelu", "Tanh"], alphas=[0.25])
    ['sigmoid', Nonlinearity(kind='LeakyRelu', alpha=0.25, beta=0.0), 'tanh']
    """
    left, taken = {"alpha": list(alphas), "beta": list(betas)}, set[str]()
    functions: list[str | Function] = []
    for name in names:
        kind = next((kind for kind in _KINDS if kind.lower() == name.lower()), None)
        if kind is None:
            known = ", ".join(_KINDS)
            raise InteropError(f"{name!r} is not an activation of a cell; use {known}")
        numbers = _narrow(_KINDS[kind])
        taken |= numbers.keys()
        numbers |= _narrow({key: left[key].pop(0) for key in numbers if left[key]})
        named = [n for n, (k, by) in IN_CELLS.items() if k == kind and _narrow(by) == numbers]
        if not named and kind not in NUMBERED:
            raise InteropError(f"the activation {name} with {numbers} is none that a cell has")
        functions.append(named[0] if named else Nonlinearity(kind, **numbers))
    more = [key for key in taken if left[key]]
    if more:  # runtimes do not agree on whose numbers these are
        raise InteropError(
            f"activation_{min(more)} has numbers that none of the activations {', '.join(names)} "
            "takes; leave them out"
        )
    return functions


_KINDS: Mapping[str, Mapping[str, float]] = {**dict(IN_CELLS.values()), **NUMBERED}
"""The activations of recurrent operators, and their numbers where none are given."""


def _narrow(numbers: Mapping[str, float]) -> dict[str, float]:
    """The shortest decimals with the same 32 bits: ONNX's 0.2 is read as 0.20000000298."""
    return {key: float(str(np.float32(number))) for key, number in numbers.items()}


def activation_to_onnx(function: str | Function) -> tuple[str, Mapping[str, Any]]:
    """The operator of ONNX that computes a function of ours, or "", and its numbers.

    >>> activation_to_onnx("legacy_hard_sigmoid")
    ('HardSigmoid', {'alpha': 0.2, 'beta': 0.5})
    """
    if isinstance(function, Nonlinearity):
        return function.kind, {key: getattr(function, key) for key in NUMBERED[function.kind]}
    return ONNX.get(function, ("", {})) if isinstance(function, str) else ("", {})


_SATURATED = frozenset({"sigmoid", "tanh", "hard_sigmoid", "legacy_hard_sigmoid"})


def cell_from_onnx(
    op_type: str, size: int, activations: Sequence[str | Function], clip: Any = None, **options: Any
) -> Cell:
    """The cell of one direction of a node; ``activations`` are ours, in ONNX's order f, g, h.

    >>> cell_from_onnx("LSTM", 5, ["sigmoid", "tanh", "tanh"]) == LSTMCell(5)
    True
    """
    # Some exporters write a bound that nothing reaches: beyond it these functions are constant.
    if clip is not None and not (clip >= 50 and _SATURATED.issuperset(activations[:2])):
        raise InteropError(f"it clips at {clip}, which no cell does; export it without clip")
    options |= zip(_FIELDS[op_type], activations, strict=True)
    if [options[field] for field in _FIELDS[op_type]] != [*activations]:
        raise InteropError(
            "its candidate and output have unlike activations, as no cell; use basic operators"
        )
    kinds: Mapping[str, Any] = {"RNN": SimpleRNNCell, "GRU": GRUCell, "LSTM": LSTMCell}
    return kinds[op_type](size, **options)


def attributes_to_onnx(cell: Cell, *, reverse: bool = False) -> tuple[str, dict[str, Any]]:
    """The operator that computes a cell, or "", and its attributes where not at their default.

    >>> attributes_to_onnx(LSTMCell(5))
    ('LSTM', {'hidden_size': 5})
    >>> attributes_to_onnx(GRUCell(5, activation="relu"))
    ('GRU', {'hidden_size': 5, 'activations': ['Sigmoid', 'Relu'], 'linear_before_reset': 1})
    """
    op_type, _ = FORMS["onnx"].get(type(cell), ("", ()))
    if not op_type:
        return "", {}
    attributes: dict[str, Any] = {"hidden_size": int(cast("Any", cell).hidden_size)}
    if reverse:
        attributes["direction"] = "reverse"
    spelled = [activation_to_onnx(getattr(cell, field)) for field in _FIELDS[op_type]]
    names = [name for name, _ in spelled]
    if not set(names) <= set(_KINDS):
        return "", {}
    if names != [*RECURRENT[op_type]]:
        attributes["activations"] = names
    for key in ("alpha", "beta"):
        numbers = [numbers[key] for _, numbers in spelled if key in numbers]
        if numbers:
            attributes[f"activation_{key}"] = numbers
    if isinstance(cell, GRUCell) and cell.reset_after:
        attributes["linear_before_reset"] = 1
    return op_type, attributes


def params_from_onnx(cell: Any, W: Any, R: Any, B: Any = None) -> Params:
    """The parameters of a cell from the arrays of a node, see `Weights` for their shapes.

    They are arrays of NumPy unless JAX's came; `rnnjax.Directions` of two for two directions. The
    two biases of a gate are added up where the cell has one.
    """
    sides = []
    for i, one in enumerate(cell.cells if isinstance(cell, Bidirectional) else (cell,)):
        order, each = places("onnx", one), {"kernel": W[i], "recurrent_kernel": R[i]}
        params = {name: reordered(array, order, 0).T for name, array in each.items()}
        if B is not None:
            first, second = B[i].reshape(2, -1)
            if one.use_recurrent_bias or (isinstance(one, GRUCell) and one.reset_after):
                params["recurrent_bias"] = reordered(second, order, 0)
            else:
                first = first + second
            params["bias"] = reordered(first, order, 0)
        sides.append(params)
    return Directions(*sides) if isinstance(cell, Bidirectional) else sides[0]


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
    sides = []
    for one, own in zip(cells, each, strict=True):
        order = np.argsort(places("onnx", one)).tolist()
        arrays = {name: reordered(np.asarray(array).T, order, 0) for name, array in own.items()}
        biases = None
        if "bias" in arrays:
            second = arrays.get("recurrent_bias", np.zeros_like(arrays["bias"]))
            biases = np.concatenate([arrays["bias"], second])
        sides.append((arrays["kernel"], arrays["recurrent_kernel"], biases))
    return tuple(
        None if any(part is None for part in parts) else np.stack(parts)
        for parts in zip(*sides, strict=True)
    )


def check_weights(cell: Cell, weights: Sequence[Any]) -> None:
    """Raise unless W, R and B are of the shapes that the attributes of a node ask for."""
    cells = cell.cells if isinstance(cell, Bidirectional) else (cell,)
    size, sides = cells[0].output_size, len(cells)
    rows = len(places("onnx", cells[0])) * size
    shapes = (sides, rows, None), (sides, rows, size), (sides, 2 * rows)
    for name, shape, array in zip("WRB", shapes, weights, strict=True):
        if array is None:
            continue
        well = fits({"": shape}, {"": array.shape}) and 0 not in array.shape
        if not well or not jnp.issubdtype(array.dtype, jnp.floating):
            sizes = ", ".join("input size" if n is None else str(n) for n in shape)
            raise InteropError(
                f"its {name} is {array.dtype}{list(array.shape)}, but with {size} hidden units and "
                f"{sides} directions it should be floats ({sizes})"
            )
