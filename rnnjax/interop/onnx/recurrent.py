"""ONNX's RNN, GRU and LSTM: as cells and their parameters, the way back, and how they run."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.cells import GRUCell, LSTMCell, PeepholeLSTMCell, SimpleRNNCell
from rnnjax.cells.base import Carry, Cell, Params
from rnnjax.engine import unroll
from rnnjax.errors import InteropError, InvalidInputError
from rnnjax.interop.functions import (
    FORMS,
    IN_CELLS,
    NUMBERED,
    Function,
    Nonlinearity,
    places,
    reordered,
)
from rnnjax.interop.layers import fits
from rnnjax.interop.onnx.control import At
from rnnjax.interop.options import options_beyond
from rnnjax.layers import Bidirectional, Directions

Weights = tuple[Any, ...]
"""The parameters W, R, B and P of one RNN, GRU or LSTM node, as ONNX has them.

They are ``(directions, gates * hidden_size, input_size)``, ``(..., hidden_size)``, the biases of
the inputs and then of the state, ``(directions, 2 * gates * hidden_size)``, or None, and the
peepholes of the gates i, o, f, ``(directions, 3 * hidden_size)``, or None.
"""

PLACES = 1, 2, 3, 7  # of these among the inputs of a node
_PEEPHOLES = np.array([0, 2, 1])  # ours among those of ONNX, and the other way round

RECURRENT: Mapping[str, tuple[str, ...]] = {
    "RNN": ("activation",),
    "GRU": ("recurrent_activation", "activation"),
    "LSTM": ("recurrent_activation", "activation", "activation"),
}
"""By its operator, the fields of a cell that are its activations f, g, h."""

_FIELDS = "reset_after", "dtype"  # the writer refuses what computes in another than float32
_DEFAULTS = {"recurrent_activation": "Sigmoid", "activation": "Tanh"}


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


_SATURATED = frozenset({"sigmoid", "tanh", "hard_sigmoid", "legacy_hard_sigmoid"})


def cell_from_onnx(node: Any, weights: Sequence[Any], owned: bool) -> Cell:
    """The cell of a node, whose weights are None where they are not known.

    ``owned`` says whether the parameters of a layer are made of them.
    """
    kernel, recurrent, bias, _ = weights
    op_type, direction = node.op_type, node.get("direction", "forward")
    if direction not in ("forward", "reverse", "bidirectional"):
        raise InteropError(f"{direction!r} is no direction")
    sides, fields = 1 + (direction == "bidirectional"), RECURRENT[op_type]
    default = tuple(map(_DEFAULTS.__getitem__, fields))
    size = node.get("hidden_size", np.shape(recurrent)[-1] if np.ndim(recurrent) else 0)
    if not 0 < size <= 2**24:
        raise InteropError(f"its hidden_size is {size}, but should be a positive integer")
    names = node.get("activations", default * sides)
    # ONNX's own default for one activation has two, whatever the direction.
    if len(default) == sides == 1 and names == default * 2:
        names = default
    if len(names) != len(default) * sides:
        takes = f"{op_type} takes {len(default) * sides}"
        raise InteropError(f"it has {len(names)} activations, but {takes}")
    numbers = (node.get(f"activation_{key}", ()) for key in ("alpha", "beta"))
    functions, clip = activations_from_onnx(names, *numbers), node.get("clip")
    options: dict[str, Any] = {
        "use_bias": bool(node.input(3)),
        "param_dtype": jnp.float32 if kernel is None else kernel.dtype,
    }
    if op_type == "GRU":
        options["reset_after"] = bool(node.get("linear_before_reset", 0))
    elif not node.input(7):
        # Whether the second bias of each gate is one: Keras has none, and its exporters write 0.
        second = owned and np.ndim(bias) == 2 and np.any(bias[:, bias.shape[1] // 2 :] != 0)
        options["use_recurrent_bias"] = bool(second)
    lstm = PeepholeLSTMCell if node.input(7) else LSTMCell
    kinds: Mapping[str, Any] = {"RNN": SimpleRNNCell, "GRU": GRUCell, "LSTM": lstm}
    cells = []
    for i in range(0, len(functions), len(default)):
        own = functions[i : i + len(default)]
        # Some exporters write a bound that nothing reaches: beyond it these functions are constant.
        if clip is not None and not (clip >= 50 and _SATURATED.issuperset(own[:2])):
            raise InteropError(f"it clips at {clip}, which no cell does; export it without clip")
        if op_type == "LSTM" and own[1] != own[2]:
            raise InteropError(
                "its candidate and output have unlike activations, as no cell; use basic operators"
            )
        cells.append(kinds[op_type](int(size), **dict(zip(fields, own, strict=True)),
                                    **options))  # fmt: skip
    if sides == 1:
        return cells[0]
    return Bidirectional(cells[0], None if cells[0] == cells[1] else cells[1])


def attributes_to_onnx(cell: Cell, *, reverse: bool = False) -> tuple[str, dict[str, Any]]:
    """The operator that computes a cell, or "", and its attributes where not at their default.

    >>> attributes_to_onnx(LSTMCell(5))
    ('LSTM', {'hidden_size': 5})
    >>> attributes_to_onnx(GRUCell(5, activation="relu"))
    ('GRU', {'hidden_size': 5, 'activations': ['Sigmoid', 'Relu'], 'linear_before_reset': 1})
    """
    own: Any = cell
    op_type, _ = FORMS["onnx"].get(type(cell), ("", ()))
    fields = RECURRENT.get(op_type, ())
    spelled = [_spelled(getattr(own, field)) for field in fields]
    names = [name for name, _ in spelled]
    if not op_type or "" in names or options_beyond(cell, (*fields, *_FIELDS)):
        return "", {}
    attributes: dict[str, Any] = {"hidden_size": int(own.hidden_size)}
    if reverse:
        attributes["direction"] = "reverse"
    if names != [_DEFAULTS[field] for field in fields]:
        attributes["activations"] = names
    for key in ("alpha", "beta"):
        numbers = [numbers[key] for _, numbers in spelled if key in numbers]
        if numbers:
            attributes[f"activation_{key}"] = numbers
    if isinstance(cell, GRUCell) and cell.reset_after:
        attributes["linear_before_reset"] = 1
    return op_type, attributes


def _spelled(function: Any) -> tuple[str, Mapping[str, Any]]:
    """What recurrent operators call a function, or "", and its numbers."""
    if isinstance(function, Nonlinearity):
        return function.kind, {key: getattr(function, key) for key in NUMBERED[function.kind]}
    return IN_CELLS.get(function, ("", {})) if isinstance(function, str) else ("", {})


def params_from_onnx(cell: Any, W: Any, R: Any, B: Any = None, P: Any = None) -> Params:
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
            if getattr(one, "use_recurrent_bias", False) or getattr(one, "reset_after", False):
                params["recurrent_bias"] = reordered(second, order, 0)
            else:
                first = first + second
            params["bias"] = reordered(first, order, 0)
        if P is not None:
            params["peephole"] = P[i].reshape(3, -1)[_PEEPHOLES]
        sides.append(params)
    return Directions(*sides) if isinstance(cell, Bidirectional) else sides[0]


def params_to_onnx(cell: Cell, params: Params) -> Weights:
    """The arrays of a node from the parameters of a cell: the inverse of `params_from_onnx`.

    Second biases that the cell does not have are zeros.

    >>> import jax
    >>> cell = LSTMCell(5)
    >>> W, R, B, P = params_to_onnx(cell, cell.init(jax.random.key(0), 3))
    >>> W.shape, R.shape, B.shape, P
    ((1, 20, 3), (1, 20, 5), (1, 40), None)
    """
    cells = cell.cells if isinstance(cell, Bidirectional) else (cell,)
    each = params if isinstance(cell, Bidirectional) else (params,)
    sides = []
    for one, own in zip(cells, each, strict=True):
        order = np.argsort(places("onnx", one)).tolist()
        arrays = {name: reordered(np.asarray(a).T, order, 0) for name, a in own.items()}
        peephole = None
        if "peephole" in own:
            peephole = np.asarray(own["peephole"])[_PEEPHOLES].reshape(-1)
        biases = None
        if "bias" in arrays:
            second = arrays.get("recurrent_bias", np.zeros_like(arrays["bias"]))
            biases = np.concatenate([arrays["bias"], second])
        sides.append((arrays["kernel"], arrays["recurrent_kernel"], biases, peephole))
    return tuple(
        None if any(part is None for part in parts) else np.stack(parts)
        for parts in zip(*sides, strict=True)
    )


def check_weights(cell: Cell, weights: Sequence[Any]) -> None:
    """Raise unless W, R, B and P are of the shapes that the attributes of a node ask for."""
    cells = cell.cells if isinstance(cell, Bidirectional) else (cell,)
    size, sides = cells[0].output_size, len(cells)
    rows = len(places("onnx", cells[0])) * size
    shapes = (sides, rows, None), (sides, rows, size), (sides, 2 * rows), (sides, 3 * size)
    for name, shape, array in zip("WRBP", shapes, weights, strict=True):
        if array is None:
            continue
        well = fits({"": shape}, {"": array.shape}) and 0 not in array.shape
        if not well or not jnp.issubdtype(array.dtype, jnp.floating):
            sizes = ", ".join("input size" if n is None else str(n) for n in shape)
            raise InteropError(
                f"its {name} is {array.dtype}{list(array.shape)}, but with {size} hidden units and "
                f"{sides} directions it should be floats ({sizes})"
            )


def recurrent(
    at: At, x: Any, w: Any = None, r: Any = None, b: Any = None, lengths: Any = None, h: Any = None,
    c: Any = None, p: Any = None,
) -> tuple[Any, ...]:  # fmt: skip
    """Run the cell of a node, and keep its carry; what is returned is Y, Y_h and Y_c."""
    name, run, batch_first = at.node.layer, at.run, at.get("layout", 0)
    cell, carry = run.graph.recurrent[name].cell, run.carry.get(name)
    if run.trips and (carry is not None or run.mask is not None):
        raise InvalidInputError(
            f"node {at.node.label} runs in a loop, or in a branch that is chosen at run time, so "
            f"that {name!r} has no state of its own; leave it out of carry, and lengths too"
        )
    xs, *states = jax.tree.map(jnp.asarray, (x, h, c))
    if xs.ndim != 3:
        raise InteropError(f"its input X is {list(xs.shape)}, but should have three axes")
    if batch_first:  # of all that it takes and gives
        xs, *states = jax.tree.map(lambda one: jnp.swapaxes(one, 0, 1), (xs, *states))
    params = run.params.get(name)
    if params is None:
        check_weights(cell, (w, r, b, p))
        params = params_from_onnx(cell, w, r, b, p)
    if carry is None:
        carry = _carry_of(cell, states, xs)
    method, reverse = run.context.method, run.graph.recurrent[name].reverse
    each = carry if isinstance(carry, Directions) else (carry,)
    if run.mask is not None and run.mask.shape != xs.shape[:2]:
        raise InvalidInputError(f"node {at.node.label} does not go along {run.mask.shape[0]} steps")
    if run.mask is not None and run.context.language == "steps":  # each step by itself
        kept = jnp.where(run.mask[..., None], xs, 0).sum(-1, keepdims=True)
        ys = jnp.broadcast_to(kept, (*xs.shape[:2], len(each) * each[0][0].shape[-1]))
    else:
        options = {"lengths": lengths, "mask": run.mask, "reverse": reverse, "method": method}
        carry, ys = unroll(cell, params, xs, carry, **options)
    run.carries[name] = carry
    each = carry if isinstance(carry, Directions) else (carry,)
    ys = jnp.stack(jnp.split(ys, len(each), axis=-1), axis=1)
    outputs = ys, *(jnp.stack(leaves) for leaves in zip(*each, strict=True))
    if batch_first:
        outputs = tuple(jnp.moveaxis(y, -2, 0) for y in outputs)
    return tuple(y.astype(xs.dtype) for y in outputs)


def _carry_of(cell: Cell, states: Sequence[Any], xs: jax.Array) -> Carry:
    zeros = cell.initial_carry((xs.shape[1],), jnp.promote_types(xs.dtype, jnp.float32))
    leaves, tree = jax.tree.flatten(zeros)
    sides = 1 + isinstance(zeros, Directions)
    each = len(leaves) // sides
    for i, leaf in enumerate(leaves):
        state, shape = states[i % each], (sides, *leaf.shape)
        if state is not None and state.shape != shape:
            raise InteropError(
                f"an initial state has shape {list(state.shape)}, but should be {list(shape)}"
            )
        leaves[i] = leaf if state is None else state[i // each].astype(leaf.dtype)
    return jax.tree.unflatten(tree, leaves)
