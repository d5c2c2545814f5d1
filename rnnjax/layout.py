"""What the two Flax wrappers share: Flax's cells in one table, and its axes and flags."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from rnnjax.cells import (
    Carry,
    Cell,
    GRUCarry,
    GRUCell,
    LSTMCarry,
    LSTMCell,
    MGUCell,
    OneHot,
    Params,
    SimpleRNNCarry,
    SimpleRNNCell,
)
from rnnjax.cells.arguments import as_inputs, brief
from rnnjax.cells.base import Inputs
from rnnjax.engine import Method, unroll
from rnnjax.errors import InvalidInputError

NOTHING_TO_LIFT = (
    "the cells that run here keep no variables besides their parameters, so there is nothing to "
    "lift; leave it out"
)
"""Why the arguments by which Flax's ``RNN`` lifts variables through its loop are void here."""

Form = Literal["linen", "nnx"]
Tree = Mapping[Any, Any]
"""Of parameters, as Flax nests them: ``{"hi": {"kernel": ..., "bias": ...}, ...}``."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """How one class of Flax's lays out its parameters.

    Attributes:
        form: whose class.
        names: of the classes that lay them out so; they compute the same.
        cell: ours.
        gates: how many.
        inputs: the names of the input kernels, in the order of our gates: one for each, or one for
            all.
        hiddens: the same for the recurrent kernels.
        input_bias: whether the input's products have biases.
        hidden_bias: by gate, whether the recurrent products have.
    """

    form: Form
    names: tuple[str, ...]
    cell: type[SimpleRNNCell] | type[LSTMCell] | type[GRUCell] | type[MGUCell]
    gates: int
    inputs: tuple[str, ...]
    hiddens: tuple[str, ...]
    input_bias: bool
    hidden_bias: tuple[bool, ...]


_LSTM_BIAS, _GRU_BIAS = (True,) * 4, (False, False, True)
_DENSE = ("dense_i",), ("dense_h",)

LAYOUTS = (
    Layout(
        "linen",
        ("LSTMCell", "OptimizedLSTMCell"),
        LSTMCell,
        4,
        ("ii", "if", "ig", "io"),
        ("hi", "hf", "hg", "ho"),
        False,
        _LSTM_BIAS,
    ),
    Layout(
        "linen", ("GRUCell",), GRUCell, 3, ("ir", "iz", "in"), ("hr", "hz", "hn"), True, _GRU_BIAS
    ),
    Layout("linen", ("MGUCell",), MGUCell, 2, ("if", "in"), ("hf", "hn"), True, (False, True)),
    Layout("linen", ("SimpleCell",), SimpleRNNCell, 1, ("i",), ("h",), True, (False,)),
    Layout(
        "nnx",
        ("LSTMCell",),
        LSTMCell,
        4,
        ("ii", "if_", "ig", "io"),
        ("hi", "hf", "hg", "ho"),
        False,
        _LSTM_BIAS,
    ),
    Layout("nnx", ("OptimizedLSTMCell",), LSTMCell, 4, *_DENSE, False, _LSTM_BIAS),
    Layout("nnx", ("GRUCell",), GRUCell, 3, *_DENSE, True, (False,) * 3),
    Layout("nnx", ("SimpleCell",), SimpleRNNCell, 1, *_DENSE, True, (False,)),
)


class Adapted(NamedTuple):
    """A cell of Flax's as `rnnjax.unroll` takes it.

    Attributes:
        cell: of rnnjax.
        params: of that cell.
        into: makes its carry of one of Flax's.
        out_of: the way back.
    """

    cell: Cell
    params: Params
    into: Callable[[Any], Carry] = lambda carry: carry
    out_of: Callable[[Carry], Any] = lambda carry: carry


@dataclasses.dataclass(frozen=True)
class ForeignCell(Cell):
    """A cell of which only the step is known: it runs on ``Scan()``.

    Args:
        call: ``(params, carry, x) -> (carry, y)``, a value that can be compared.
        tree: of its carry.
        leaves: of its carry, the shape behind the axes of the batch, and the type.
    """

    call: Callable[[Params, Carry, Any], tuple[Carry, jax.Array]]
    tree: Any
    leaves: tuple[tuple[tuple[int, ...], Any], ...]

    @classmethod
    def of(cls, call: Any, start: Carry, shape: tuple[int, ...]) -> "ForeignCell":
        """The cell whose carry ``start`` is for a step's inputs of that shape."""
        leaves, tree = jax.tree.flatten(start)
        own = tuple((leaf.shape[len(shape) - 1 :], leaf.dtype) for leaf in leaves)
        return cls(call, tree, own)

    def initial_carry(
        self, batch_shape: tuple[int, ...] = (), dtype: DTypeLike | None = None
    ) -> Carry:
        """Zeros; the wrappers begin with what the module says."""
        leaves = [jnp.zeros((*batch_shape, *shape), kind) for shape, kind in self.leaves]
        return jax.tree.unflatten(self.tree, leaves)

    def step(self, params: Params, carry: Carry, x: Inputs) -> tuple[Carry, jax.Array]:
        """A call of the module."""
        if isinstance(x, OneHot):
            raise InvalidInputError(
                "a cell of Flax's that runs step by step reads arrays, but the inputs are OneHot; "
                "give jax.nn.one_hot(ids, size)"
            )
        return self.call(params, carry, x)


def adapted(layout: Layout, module: Any, features: int, tree: Tree) -> Adapted:
    """One of Flax's five cells, in the place of which rnnjax's runs: its numbers, and faster.

    Args:
        layout: of its class.
        module: the cell, for its options.
        features: the number of its hidden units.
        tree: its parameters, by the names of the layout.
    """
    options = {"activation": module.activation_fn, "dtype": module.dtype}
    if layout.cell is not SimpleRNNCell:
        options["recurrent_activation"] = module.gate_fn
    cell = layout.cell(features, param_dtype=module.param_dtype, **options)
    first, second = layout.inputs, layout.hiddens
    recurrent = _joined(tree, second, "kernel")
    if getattr(module, "residual", False):  # SimpleCell adds the hidden state
        recurrent = recurrent + jnp.eye(features, dtype=recurrent.dtype)
    params = {"kernel": _joined(tree, first, "kernel"), "recurrent_kernel": recurrent}
    if layout.cell in (GRUCell, MGUCell):
        params["bias"] = _joined(tree, first, "bias")
        params["recurrent_bias"] = _joined(tree, second, "bias")
    else:
        params["bias"] = _joined(tree, first if layout.input_bias else second, "bias")
    if layout.cell is LSTMCell:
        return Adapted(cell, params, _from_pair, lambda carry: (carry.cell, carry.hidden))
    kind = SimpleRNNCarry if layout.cell is SimpleRNNCell else GRUCarry
    return Adapted(cell, params, lambda carry: kind(_array(carry)), lambda carry: carry.hidden)


def _from_pair(carry: Any) -> LSTMCarry:
    if type(carry) not in (tuple, list) or len(carry) != 2:
        raise InvalidInputError(
            f"the carry of Flax's LSTM must be the pair (c, h), but is {brief(carry)}; start from "
            "the cell's initialize_carry"
        )
    return LSTMCarry(carry[1], carry[0])


def _array(carry: Any) -> Any:
    if isinstance(carry, tuple | list | Mapping):
        raise InvalidInputError(
            f"the carry of this cell of Flax's must be an array, its hidden state, but is "
            f"{brief(carry)}; start from the cell's initialize_carry"
        )
    return carry


def exact(module: Any) -> bool:
    """Whether rnnjax's cell computes what this one of the table does, to the last digits.

    Not an MGU whose gate leaves the candidate alone; and where products are narrower than float32 a
    residual SimpleCell adds the hidden state to them, not to the kernel.
    """
    narrow = module.dtype is not None and jnp.dtype(module.dtype).itemsize < 4
    return getattr(module, "reset_gate", True) and not (
        narrow and getattr(module, "residual", False)
    )


def _joined(tree: Tree, names: tuple[str, ...], leaf: str) -> jax.Array:
    """The kernels or biases of these blocks side by side, zeros where one has no bias."""
    parts = []
    for name in names:
        kernel = tree[name]["kernel"]
        parts.append(kernel if leaf == "kernel" else tree[name].get(leaf))
        if parts[-1] is None:
            parts[-1] = jnp.zeros(kernel.shape[-1], kernel.dtype)
    return jnp.concatenate(parts, axis=-1)


def concatenate(forward: jax.Array, backward: jax.Array) -> jax.Array:
    """The outputs of two directions side by side, which is how Flax merges them by default.

    >>> concatenate(jnp.ones((8, 10, 4)), jnp.ones((8, 10, 3))).shape
    (8, 10, 7)
    """
    return jnp.concatenate([forward, backward], axis=-1)


def check_default(name: str, value: Any, is_default: bool, advice: str) -> None:
    """Raise unless an argument that is there for Flax's sake alone was left at its default.

    Raises:
        InvalidInputError: ``is_default`` is False; the message names ``value`` and ``advice``.
    """
    if not is_default:
        raise InvalidInputError(f"{name} must be left at its default, but is {value!r}: {advice}")


def check_inputs(inputs: Inputs, time_major: bool, grid: int = 0) -> Inputs:
    """Return ``inputs``, an array or `OneHot`, with a time and a feature axis at least.

    Raises:
        InvalidInputError: ``inputs`` has fewer axes than these and those of the grid.
    """
    inputs = as_inputs(inputs)
    if inputs.ndim < 2 + grid:
        axes = ["time", "*batch"] if time_major else ["*batch", "time"]
        wanted = f"({', '.join([*axes, *['grid'] * grid, 'features'])})"
        raise InvalidInputError(
            f"inputs must be {wanted}, so {2 + grid} axes at least, but has shape {inputs.shape}; "
            "add the axes that are missing"
        )
    return inputs


def starts(
    make: Callable[[], Carry], initial_carry: Carry | None, resets: Any, reset_carry: Carry | None
) -> tuple[Carry, Carry | None]:
    """The carries that a cell of Flax's begins with, at first and at resets.

    It is asked to ``make`` one where none is given, which may draw random numbers.
    """
    lacks_reset = resets is not None and reset_carry is None
    start = make() if initial_carry is None or lacks_reset else None
    return start if initial_carry is None else initial_carry, start if lacks_reset else reset_carry


def step_shape(inputs: Inputs, time_major: bool, grid: int) -> tuple[int, ...]:
    """The shape of one step's inputs."""
    time = 0 if time_major else inputs.ndim - 2 - grid
    return (*inputs.shape[:time], *inputs.shape[time + 1 :])


def unroll_like_flax(
    adapted: Adapted,
    inputs: Inputs,
    initial_carry: Carry | None,
    *,
    return_carry: bool,
    time_major: bool,
    reverse: bool,
    keep_order: bool,
    method: Method,
    seq_lengths: jax.Array | None = None,
    mask: jax.Array | None = None,
    resets: jax.Array | None = None,
    reset_carry: Carry | None = None,
    key: jax.Array | None = None,
    grid: int = 0,
) -> Any:
    """`rnnjax.unroll` with the arguments and results of a call of Flax's ``RNN``.

    Args:
        adapted: what one time step computes, and its parameters.
        inputs: ``(*batch, time, input_size)``, or ``(time, *batch, input_size)`` if ``time_major``.
            `OneHot` is taken too.
        initial_carry: the state before the first step that runs, or None for the cell's own.
        return_carry: whether to return the final carry too.
        time_major: whether time is the first axis, of inputs, outputs, ``mask`` and ``resets``.
        reverse: whether to run from the last step to the first.
        keep_order: whether ``outputs[t]`` then belongs to ``inputs[t]``; otherwise the outputs come
            in the order in which they were computed, and with ``seq_lengths`` those of the padding
            stay at the end of their row.
        method: how to run.
        seq_lengths: integers ``(*batch,)``, the valid steps of each row; the others are padding.
            The outputs at padding are zeros, where Flax leaves what the cell made of it.
        mask: booleans ``(*batch, time)``, or ``(time, *batch)`` if ``time_major``, False where a
            step is to be skipped.
        resets: booleans of the same shape, True where a new sequence begins.
        reset_carry: the state with which a sequence begins at a reset.
        key: of the random numbers in training, or None for none.
        grid: how many axes stand between time and features, for a cell that convolves.

    Returns:
        the outputs, or ``(carry, outputs)``.

    Raises:
        InvalidInputError: as `rnnjax.unroll` does, and in the order of axes that was given.
    """
    xs = check_inputs(inputs, time_major, grid)
    steps = xs.shape[: -1 - grid]
    if not time_major:
        if isinstance(xs, OneHot):
            xs = OneHot(jnp.moveaxis(xs.ids, -1, 0), xs.size)
        else:
            xs = jnp.moveaxis(xs, -2 - grid, 0)
    lengths = _lengths(seq_lengths, xs.shape[0], xs.shape[1 : -1 - grid])
    cell, params, into, out_of = adapted
    carry, outputs = unroll(
        cell,
        params,
        xs,
        None if initial_carry is None else into(initial_carry),
        lengths=lengths,
        mask=_time_first("mask", mask, steps, time_major),
        resets=_time_first("resets", resets, steps, time_major),
        reset_carry=None if reset_carry is None else into(reset_carry),
        reverse=reverse,
        key=key,
        method=method,
    )
    if reverse and not keep_order:
        outputs = jax.tree.map(lambda ys: _in_order_of_computation(ys, lengths), outputs)
    if not time_major:  # behind the batch: an output may have other axes than an input
        outputs = jax.tree.map(lambda ys: jnp.moveaxis(ys, 0, xs.ndim - 2 - grid), outputs)
    return (out_of(carry), outputs) if return_carry else outputs


def both_directions(
    forward_rnn: Any,
    backward_rnn: Any,
    merge_fn: Callable[[jax.Array, jax.Array], jax.Array],
    inputs: Inputs,
    *,
    carries: Mapping[str, Any],
    marks: Mapping[str, Any],
    **arguments: Any,
) -> tuple[tuple[Carry, Carry], jax.Array]:
    """Call one module in each direction, and merge what comes out, as Flax's ``Bidirectional``.

    Args:
        forward_rnn: a module with the call of Flax's ``RNN``.
        backward_rnn: the same.
        merge_fn: makes one array of the outputs of both.
        inputs: of both.
        carries: by the name of the argument, pairs ``(forward, backward)``, or None.
        marks: by the name of the argument, what both get as it is, or None.
        arguments: more for both.

    Returns:
        the final carries ``(forward, backward)``, and the merged outputs.

    Raises:
        InvalidInputError: a pair of carries is not a pair.
    """
    # What is not given is left out of the calls, so that a module need not know all of it.
    arguments |= {name: value for name, value in marks.items() if value is not None}
    forward, backward = dict(arguments), dict(arguments)
    for name, pair in carries.items():
        if pair is None:
            continue
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise InvalidInputError(
                f"{name} must be a pair (forward, backward), one carry for each direction, but is "
                f"a {type(pair).__name__}; give (carry, None) for a single one"
            )
        forward[name], backward[name] = pair
    forward_carry, forward_outputs = forward_rnn(
        inputs, return_carry=True, reverse=False, **forward
    )
    backward_carry, backward_outputs = backward_rnn(
        inputs, return_carry=True, reverse=True, keep_order=True, **backward
    )
    return (forward_carry, backward_carry), merge_fn(forward_outputs, backward_outputs)


def _lengths(seq_lengths: Any, num_steps: int, batch: tuple[int, ...]) -> jax.Array | None:
    """The lengths as an array; checked here because `unroll` would speak of other arguments."""
    if seq_lengths is None:
        return None
    # By NumPy where they are known: inside of jit JAX would trace even constants.
    values = None if isinstance(seq_lengths, jax.core.Tracer) else np.asarray(seq_lengths)
    lengths = jnp.asarray(seq_lengths)
    if not jnp.issubdtype(lengths.dtype, jnp.integer) or lengths.shape != batch:
        raise InvalidInputError(
            f"seq_lengths must be integers of shape {batch}, one for each row of inputs, but is "
            f"{lengths.dtype} {lengths.shape}; booleans for each step are given as mask"
        )
    if values is not None and values.size:
        least, most = int(values.min()), int(values.max())
        if least < 0 or most > num_steps:
            raise InvalidInputError(
                f"seq_lengths must lie between 0 and the {num_steps} steps of inputs, but go from "
                f"{least} to {most}; check time_major, which says which axis of inputs is time"
            )
    # Inside of jit a length may be larger than there are steps, and then counts as all of them.
    return jnp.clip(lengths, 0, num_steps)


def _time_first(name: str, marks: Any, steps: tuple[int, ...], time_major: bool) -> Any:
    """``marks``, in the shape ``steps`` of the inputs, as ``(time, *batch)``."""
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


def _in_order_of_computation(ys: jax.Array, lengths: jax.Array | None) -> jax.Array:
    """``ys (time, *batch, size)`` of a reverse run, each row from its last valid step on."""
    if lengths is None:
        return jnp.flip(ys, axis=0)
    times = jnp.arange(len(ys)).reshape(-1, *[1] * lengths.ndim)
    sources = jnp.where(times < lengths, lengths - 1 - times, times)
    sources = sources.reshape(*sources.shape, *[1] * (ys.ndim - sources.ndim))
    return jnp.take_along_axis(ys, sources, axis=0)
