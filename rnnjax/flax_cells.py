"""Shared code of the two Flax wrappers: a table of Flax's cells, and a call over a sequence."""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Literal, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.recurrent import flip_sequences
from flax.traverse_util import flatten_dict
from jax.core import eval_jaxpr
from jax.typing import DTypeLike

from rnnjax.cells import (
    Carry,
    Cell,
    GRUCell,
    LSTMCarry,
    LSTMCell,
    MGUCell,
    OneHot,
    Params,
    SimpleRNNCell,
)
from rnnjax.cells.activations import named
from rnnjax.cells.base import Inputs
from rnnjax.cells.onehot import Beside
from rnnjax.cells.validation import as_inputs, check_array, is_pair
from rnnjax.checks import as_array, brief, check_instance
from rnnjax.engine import unroll
from rnnjax.errors import InvalidInputError, calling

Form = Literal["linen", "nnx"]
Tree = Mapping[Any, Any]
"""Parameters as Flax nests them: ``{"hi": {"kernel": ..., "bias": ...}, ...}``."""
Place = tuple[str, str]
"""A leaf of such a tree, as ``("hi", "kernel")``."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where a class of Flax has the parameters of rnnjax's cell.

    Attributes:
        form: Flax Linen or NNX.
        names: the names of the classes with this layout; they compute the same.
        cell: the cell of rnnjax.
        blocks: for each parameter of that cell, in the order of ``_PARAMETERS``, the blocks that
            hold it, in the order of its gates: one each, or one for all; ``-`` where Flax has none.
    """

    form: Form
    names: tuple[str, ...]
    cell: Any
    blocks: tuple[str, ...]

    @property
    def places(self) -> dict[str, list[Place]]:
        """By a parameter of rnnjax's cell, the leaves in Flax's tree that make it up."""
        return {
            name: [(block, name.removeprefix("recurrent_")) for block in blocks.split()]
            for name, blocks in zip(_PARAMETERS, self.blocks, strict=False)
        }

    @property
    def leaves(self) -> set[Place]:
        """All leaves of the tree."""
        return {place for among in self.places.values() for place in among if place[0] != "-"}

    def make(self, hidden_size: int, activation_fn: Any, gate_fn: Any, **options: Any) -> Any:
        """Return the cell with the functions of Flax's."""
        if self.cell is not SimpleRNNCell:
            options["recurrent_activation"] = gate_fn
        return self.cell(hidden_size, activation=activation_fn, **options)


_PARAMETERS = ("kernel", "recurrent_kernel", "bias", "recurrent_bias")
_LSTMS, _HIDDEN = ("LSTMCell", "OptimizedLSTMCell"), "hi hf hg ho"

LAYOUTS = (
    Layout("linen", _LSTMS, LSTMCell, ("ii if ig io", _HIDDEN, _HIDDEN)),
    Layout("linen", ("GRUCell",), GRUCell, ("ir iz in", "hr hz hn", "ir iz in", "- - hn")),
    Layout("linen", ("MGUCell",), MGUCell, ("if in", "hf hn", "if in", "- hn")),
    Layout("linen", ("SimpleCell",), SimpleRNNCell, ("i", "h", "i")),
    Layout("nnx", _LSTMS[:1], LSTMCell, ("ii if_ ig io", _HIDDEN, _HIDDEN)),
    Layout("nnx", _LSTMS[1:], LSTMCell, ("dense_i", "dense_h", "dense_h")),
    Layout("nnx", ("GRUCell",), GRUCell, ("dense_i", "dense_h", "dense_i", "- - -")),
    Layout("nnx", ("SimpleCell",), SimpleRNNCell, ("dense_i", "dense_h", "dense_i")),
)


def by_class(form: Form, package: Any) -> dict[type, Layout]:
    """Return the layouts of ``flax.linen`` or ``flax.nnx`` by class."""
    return {getattr(package, name): e for e in LAYOUTS if e.form == form for name in e.names}


class Adapted(NamedTuple):
    """A cell of Flax as `rnnjax.unroll` takes it.

    Attributes:
        cell: the cell of rnnjax.
        params: the parameters of that cell.
        into: converts a carry of Flax to that of the cell.
        out_of: converts the final carry and the outputs back.
    """

    cell: Cell
    params: Params
    into: Callable[[Any], Carry] = lambda carry: carry
    out_of: Callable[[Carry, Any], tuple[Any, Any]] = lambda carry, ys: (carry, ys)


@dataclasses.dataclass(frozen=True)
class _Program:
    """A jaxpr that equals another with the same text."""

    text: str
    jaxpr: Any = dataclasses.field(compare=False)


@dataclasses.dataclass(frozen=True)
class ForeignCell(Cell):
    """A cell of which only the step is known: it runs on ``Scan()``.

    Args:
        module: the module of the step, as a hashable value. Cells that are equal in module and
            program share compiled code.
        tree: the tree of its carry.
        leaves: for each leaf of its carry, the shape after the batch axes, and the type.
        program: the step, whose constants are the parameters.
        result: the tree of the step's result.
    """

    module: Any
    tree: Any
    leaves: tuple[tuple[tuple[int, ...], Any], ...]
    program: _Program
    result: Any

    def initial_carry(
        self, batch_shape: tuple[int, ...] = (), dtype: DTypeLike | None = None
    ) -> Carry:
        """Return zeros; the wrappers begin with the module's own carry."""
        leaves = [jnp.zeros((*batch_shape, *shape), kind) for shape, kind in self.leaves]
        return jax.tree.unflatten(self.tree, leaves)

    def step(self, params: Params, carry: Carry, x: Inputs) -> tuple[Carry, jax.Array]:
        """Run the step of the module."""
        check_array("a cell of Flax's that runs step by step", x)
        leaves = eval_jaxpr(self.program.jaxpr, params, *jax.tree.leaves((carry, x)))
        new, y = jax.tree.unflatten(self.result, leaves)
        return new, y


def foreign(
    module: Any, step: Callable[..., Any], start: Carry, x: jax.ShapeDtypeStruct
) -> Adapted:
    """Adapt a cell of Flax that is not in the table, or has options beyond it.

    Its parameters are all arrays that the step ``(carry, x) -> (carry, y)`` reads: of the module,
    of one that it shares, or of the closure of a function.
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise InvalidInputError(
            f"inputs of a cell of Flax's that runs step by step must be floating-point, but are "
            f"{x.dtype}; write inputs.astype(jnp.float32), and look up ids before the RNN"
        )
    leaves, tree = jax.tree.flatten(start)
    closed, result = jax.make_jaxpr(step, return_shape=True)(start, x)
    try:
        hash(module)
    except TypeError:
        module = object()  # equal to nothing else, so it is compiled for each call outside of jit
    own = tuple((leaf.shape[len(x.shape) - 1 :], leaf.dtype) for leaf in leaves)
    program = _Program(str(closed.jaxpr), closed.jaxpr)
    cell = ForeignCell(module, tree, own, program, jax.tree.structure(result))
    return Adapted(cell, closed.consts)


def known(layouts: Mapping[type, Layout], module: Any, tree: Tree) -> Adapted | None:
    """Adapt one of Flax's five cells, so that rnnjax's cell computes the same numbers, faster.

    Return None if it is not such a cell, or has more than they have: an activation with parameters,
    a low-rank kernel, a function that is not a plain value. The parameters in ``tree`` have the
    names of the layout.
    """
    layout, leaves = layouts.get(type(module)), flatten_dict(tree)
    if layout is None or leaves.keys() != layout.leaves or not _exact(module):
        return None
    params = params_of(layout, leaves, getattr(module, "residual", False))
    cell = layout.make(
        len(params["recurrent_kernel"]),
        module.activation_fn,
        getattr(module, "gate_fn", None),
        dtype=module.dtype,
        param_dtype=module.param_dtype,
    )

    def out_of(carry: Any, ys: jax.Array) -> tuple[Any, jax.Array]:
        # Flax's outputs are its hidden states, in their type, also where ``dtype`` is narrower.
        returned = (carry.cell, carry.hidden) if layout.cell is LSTMCell else carry.hidden
        return returned, ys.astype(carry.hidden.dtype)

    return Adapted(cell, params, functools.partial(_from_flax, cell), out_of)


def _from_flax(cell: Any, carry: Any) -> Carry:
    """Convert a carry of Flax, the pair (c, h) of an LSTM or an array, to that of the cell."""
    if isinstance(cell, LSTMCell):
        if type(carry) not in (tuple, list) or len(carry) != 2:
            raise InvalidInputError(
                f"the carry of Flax's LSTM must be the pair (c, h), but is {brief(carry)}; start "
                "from the cell's initialize_carry"
            )
        return LSTMCarry(carry[1], carry[0])
    if isinstance(carry, tuple | list | Mapping):
        raise InvalidInputError(
            f"the carry of this cell of Flax's must be an array, its hidden state, but is "
            f"{brief(carry)}; start from the cell's initialize_carry"
        )
    return cell.carry(carry)


def _exact(module: Any) -> bool:
    """Whether rnnjax's cell computes exactly what this cell of the table does.

    It does not for an MGU whose gate does not scale the candidate. Nor for a residual SimpleCell
    with products narrower than float32: it adds the hidden state to them, not to the kernel.
    """
    narrow = module.dtype is not None and jnp.dtype(module.dtype).itemsize < 4
    functions = (module.activation_fn, getattr(module, "gate_fn", "sigmoid"))
    return (
        getattr(module, "reset_gate", True)
        and not (narrow and getattr(module, "residual", False))
        and all(map(_is_value, functions))
    )


def _is_value(function: Any) -> bool:
    """Whether a function is only code: not a module, and without captured arrays.

    A compiled program would hold on to captured arrays, traced or changed since.
    """
    kind: Any = type(function)
    if hasattr(kind, "sow") or not issubclass(kind, Hashable):
        return False
    one = jax.ShapeDtypeStruct((1,), jnp.float32)
    return isinstance(named(function), str) or not jax.make_jaxpr(function)(one).consts


def params_of(layout: Layout, leaves: Mapping[Any, Any], residual: bool) -> dict[str, jax.Array]:
    """Convert the leaves of Flax's tree to the parameters of rnnjax's cell.

    A ``residual`` SimpleCell adds the hidden state, which is an identity added to the kernel.
    """
    places = layout.places
    kernel = leaves[places["recurrent_kernel"][0]]
    none = jnp.zeros(len(kernel), kernel.dtype)
    params = {
        name: jnp.concatenate([leaves.get(place, none) for place in among], axis=-1)
        for name, among in places.items()
    }
    if residual:
        params["recurrent_kernel"] += jnp.eye(len(kernel), dtype=kernel.dtype)
    return params


def check_is_cell(cell: Any, base: type, example: str) -> None:
    """Raise unless a cell is one of rnnjax, or of Flax with the class ``base``."""
    expected = f"a cell of rnnjax or an RNNCellBase of Flax's, such as {example}"
    check_instance("cell", cell, Cell | base, expected)


def check_default(name: str, value: Any, default: Any) -> None:
    """Raise unless an argument of Flax's lifted loop is at its default."""
    if value != default:
        raise InvalidInputError(
            f"{name} must be left at its default, but is {value!r}: the cells that run here keep "
            "no variables besides their parameters, so there is nothing to lift; leave it out"
        )


class Call(TypedDict, total=False):
    """The arguments of a call besides its inputs and its source of random numbers."""

    initial_carry: Carry | None
    reset_carry: Carry | None
    seq_lengths: jax.Array | None
    mask: jax.Array | None
    resets: jax.Array | None
    return_carry: bool | None
    time_major: bool | None
    reverse: bool | None
    keep_order: bool | None


def run(
    rnn: Any,
    inputs: Inputs,
    draw: Callable[[int], Params],
    initial: Callable[[tuple[int, ...]], Carry],
    adapt: Callable[[Carry, jax.ShapeDtypeStruct], Adapted],
    key: jax.Array | None,
    *,
    initial_carry: Carry | None = None,
    reset_carry: Carry | None = None,
    seq_lengths: Any = None,
    mask: Any = None,
    resets: Any = None,
    return_carry: bool | None = None,
    time_major: bool | None = None,
    reverse: bool | None = None,
    keep_order: bool | None = None,
) -> Any:
    """Run a call of Flax's ``RNN`` by `rnnjax.unroll`; keyword arguments are those of the call.

    The module ``rnn`` has a ``cell``, a ``method`` and the flags that a call may override. ``draw``
    returns the parameters of a cell of rnnjax for a number of features. ``initial`` returns the
    initial carry of a cell of Flax for the shape of a step's inputs; it may use random numbers, so
    it is called only if no carry is given. ``adapt`` converts that cell to one of rnnjax. ``key``
    is for noise in training, or None.

    Raises:
        InvalidInputError: as `rnnjax.unroll`, but with the caller's arguments and axes.
    """
    return_carry = rnn.return_carry if return_carry is None else return_carry
    time_major = bool(rnn.time_major if time_major is None else time_major)
    keep_order = rnn.keep_order if keep_order is None else keep_order
    backwards: bool = rnn.reverse if reverse is None else reverse
    with calling(_WORDS if time_major else _ROWS_FIRST):
        grid = _grid_axes(rnn.cell)
        xs = _checked(inputs, time_major, grid)
        steps, time = xs.shape[: -1 - grid], 0 if time_major else xs.ndim - 2 - grid
        if isinstance(rnn.cell, Cell):
            adapted = Adapted(rnn.cell, draw(xs.shape[-1]))
        else:
            shape = (*xs.shape[:time], *xs.shape[time + 1 :])
            lacks_reset = resets is not None and reset_carry is None
            start = initial(shape) if initial_carry is None or lacks_reset else None
            initial_carry = start if initial_carry is None else initial_carry
            reset_carry = start if lacks_reset else reset_carry
            shapes = [np.shape(leaf) for leaf in jax.tree.leaves(initial_carry)]
            if any(each[: len(shape) - 1] != shape[:-1] for each in shapes):
                raise InvalidInputError(
                    f"each leaf of initial_carry must begin with {shape[:-1]}, the batch of "
                    f"inputs, but they are {shapes}; start from the cell's initialize_carry"
                )
            kind = getattr(xs, "dtype", jnp.float32)
            adapted = adapt(initial_carry, jax.ShapeDtypeStruct(shape, kind))
        cell, params, into, out_of = adapted
        integers = isinstance(xs, jax.Array) and not jnp.issubdtype(xs.dtype, jnp.inexact)
        if integers and not isinstance(rnn.cell, Cell):  # which Flax promotes
            xs = xs.astype(cell.dtype or jnp.promote_types(xs.dtype, params["kernel"].dtype))
        xs = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, time, 0), xs)
        carry, ys = unroll(
            cell,
            params,
            xs,
            None if initial_carry is None else into(initial_carry),
            lengths=seq_lengths,
            mask=_time_first("mask", mask, steps, time_major),
            resets=_time_first("resets", resets, steps, time_major),
            reset_carry=None if reset_carry is None else into(reset_carry),
            reverse=backwards,
            key=key,
            method=rnn.method,
        )
    if backwards and not keep_order:
        batch = (*steps[:time], *steps[time + 1 :])
        ends = None if seq_lengths is None else _of_each_row(seq_lengths, batch, steps[time])
        ys = jax.tree.map(lambda leaf: flip_sequences(leaf, ends, len(steps) - 1, True), ys)
    # After the batch axes: an output may have other axes than an input.
    ys = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, time), ys)
    carry, ys = out_of(carry, ys)
    return (carry, ys) if return_carry else ys


def _of_each_row(lengths: Any, batch: tuple[int, ...], num_steps: int) -> jax.Array:
    """Return the length of each row, where ``lengths`` may leave out trailing batch axes."""
    # Inside jit a length may exceed the number of steps, and then counts as all of them.
    lengths = jnp.clip(jnp.asarray(lengths), 0, num_steps)
    missing = [1] * (len(batch) - lengths.ndim)
    return jnp.broadcast_to(lengths.reshape(*lengths.shape, *missing), batch)


def both_directions(module: Any, inputs: Inputs, **call: Any) -> Any:
    """Run a call of Flax's ``Bidirectional``: one module in each direction, outputs merged.

    Carries and the key are pairs ``(forward, backward)``, and marks are for both. The flags
    ``reverse`` and ``keep_order`` have no effect.
    """
    given = {"time_major": module.time_major, "return_carry": module.return_carry}
    # Omit arguments that are not given, so that a module need not support all of them.
    given |= {n: value for n, value in call.items() if value is not None and n != "keep_order"}
    return_carry = given.pop("return_carry")
    forward, backward = given | {"reverse": False}, given | {"reverse": True, "keep_order": True}
    for name in [n for n in ("initial_carry", "reset_carry", "init_key") if n in given]:
        pair = given[name]
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise InvalidInputError(
                f"{name} must be a pair (forward, backward), one carry for each direction, but is "
                f"a {type(pair).__name__}; give (carry, None) for a single one"
            )
        forward[name], backward[name] = pair
    forward_carry, outputs = module.forward_rnn(inputs, return_carry=True, **forward)
    backward_carry, more = module.backward_rnn(inputs, return_carry=True, **backward)
    outputs = jax.tree.map(module.merge_fn, outputs, more)
    return ((forward_carry, backward_carry), outputs) if return_carry else outputs


_WORDS = {
    "xs": "inputs",
    "carry": "initial_carry",
    "lengths": "seq_lengths",
    "check which axis is time": "check time_major",
}
_ROWS_FIRST = _WORDS | {
    "(time, batch, features)": "(batch, time, features)",
    "(time, *batch, features)": "(*batch, time, features)",
}


def _grid_axes(cell: Any) -> int:
    """Return how many grid axes a convolutional cell has between time and features."""
    if not isinstance(cell, Cell):
        return int(cell.num_feature_axes) - 1
    inner = (*getattr(cell, "cells", ()), getattr(cell, "cell", None))[0]
    return len(getattr(cell, "kernel_shape", ())) if inner is None else _grid_axes(inner)


def _checked(inputs: Any, time_major: bool, grid: int) -> Any:
    """Check ``inputs``, an array, a `OneHot` or a pair, which need axes of time and features."""
    known = isinstance(inputs, OneHot | Beside) or is_pair(inputs)
    inputs = as_inputs(inputs) if known else as_array("inputs", inputs)
    if inputs.ndim < 2 + grid:
        axes = ["time", "*batch"] if time_major else ["*batch", "time"]
        wanted = f"({', '.join([*axes, *['grid'] * grid, 'features'])})"
        raise InvalidInputError(
            f"inputs must be {wanted}, so {2 + grid} axes at least, but has shape {inputs.shape}; "
            "add the axes that are missing"
        )
    return inputs


def _time_first(name: str, marks: Any, steps: tuple[int, ...], time_major: bool) -> Any:
    """Transpose ``marks`` of the shape ``steps`` of the inputs to ``(time, *batch)``."""
    if marks is None:
        return None
    marks = jnp.asarray(marks)
    if marks.shape != steps:
        wanted = "(time, *batch)" if time_major else "(*batch, time)"
        raise InvalidInputError(
            f"{name} must have shape {steps}, {wanted} of inputs, but has {marks.shape}; check "
            "time_major, which says which axis is time"
        )
    return marks if time_major else jnp.moveaxis(marks, -1, 0)
