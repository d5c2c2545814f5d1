"""What the two Flax wrappers share: Flax's axes, flags and constructors, over `rnnjax.unroll`."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from rnnjax.cells import Carry, Cell, OneHot, Params
from rnnjax.cells.activations import (
    ACTIVATIONS,
    INITIALIZERS,
    Activation,
    Initializer,
    get_initializer,
)
from rnnjax.cells.arguments import as_inputs
from rnnjax.cells.base import Inputs
from rnnjax.engine import Method, unroll
from rnnjax.errors import InvalidInputError

NOTHING_TO_LIFT = (
    "rnnjax's cells keep no variables besides params, so there is nothing to lift; leave it out"
)
"""Why the arguments by which Flax's ``RNN`` lifts variables through its loop are void here."""


def concatenate(forward: jax.Array, backward: jax.Array) -> jax.Array:
    """The outputs of two directions side by side, which is how Flax merges them by default.

    >>> concatenate(jnp.ones((8, 10, 4)), jnp.ones((8, 10, 3))).shape
    (8, 10, 7)
    """
    return jnp.concatenate([forward, backward], axis=-1)


def check_cell(cell: Any, module: str) -> None:
    """Raise unless ``cell`` is one of rnnjax's; Flax's own is the likely mistake.

    Raises:
        InvalidInputError: ``cell`` is not a `rnnjax.Cell`.
    """
    if not isinstance(cell, Cell):
        kind = type(cell)
        raise InvalidInputError(
            f"cell must be a rnnjax cell, but is a {kind.__module__}.{kind.__qualname__}; take the "
            f"cell from rnnjax too: rnnjax.LSTMCell(50) or, with Flax's arguments, one made by "
            f"{module}.LSTMCell"
        )


def check_default(name: str, value: Any, is_default: bool, advice: str) -> None:
    """Raise unless an argument that is there for Flax's sake alone was left at its default.

    Raises:
        InvalidInputError: ``is_default`` is False; the message names ``value`` and ``advice``.
    """
    if not is_default:
        raise InvalidInputError(f"{name} must be left at its default, but is {value!r}: {advice}")


def check_inputs(inputs: Inputs, time_major: bool) -> Inputs:
    """Return ``inputs``, an array or `OneHot`, with a time and a feature axis at least.

    Raises:
        InvalidInputError: ``inputs`` has fewer than two axes.
    """
    inputs = as_inputs(inputs)
    if inputs.ndim < 2:
        wanted = "(time, *batch, features)" if time_major else "(*batch, time, features)"
        raise InvalidInputError(
            f"inputs must be {wanted}, so two axes at least, but has shape {inputs.shape}; "
            "add the axes that are missing"
        )
    return inputs


def unroll_like_flax(
    cell: Cell,
    params: Params,
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
) -> Any:
    """`rnnjax.unroll` with the arguments and results of a call of Flax's ``RNN``.

    Args:
        cell: what one time step computes.
        params: the cell's parameters.
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

    Returns:
        the outputs, or ``(carry, outputs)``.

    Raises:
        InvalidInputError: as `rnnjax.unroll` does, and in the order of axes that was given.
    """
    xs = check_inputs(inputs, time_major)
    steps = xs.shape[:-1]
    if not time_major:
        if isinstance(xs, OneHot):
            xs = OneHot(jnp.moveaxis(xs.ids, -1, 0), xs.size)
        else:
            xs = jnp.moveaxis(xs, -2, 0)
    lengths = _lengths(seq_lengths, xs.shape[0], xs.shape[1:-1])
    carry, outputs = unroll(
        cell,
        params,
        xs,
        initial_carry,
        lengths=lengths,
        mask=_time_first("mask", mask, steps, time_major),
        resets=_time_first("resets", resets, steps, time_major),
        reset_carry=reset_carry,
        reverse=reverse,
        key=key,
        method=method,
    )
    if reverse and not keep_order:
        outputs = _in_order_of_computation(outputs, lengths)
    if not time_major:
        outputs = jnp.moveaxis(outputs, 0, -2)
    return (carry, outputs) if return_carry else outputs


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
    return jnp.take_along_axis(ys, sources[..., None], axis=0)


@dataclasses.dataclass(frozen=True)
class PerGate:
    """An initialiser that draws the columns of each gate by themselves.

    Some of Flax's cells have a ``Dense`` for each gate, rnnjax's one kernel for all. For an
    initialiser that looks at the whole of the shape this differs: of an orthogonal kernel for four
    gates the entries are half as large as of four orthogonal kernels.

    Args:
        initializer: of one gate, by name or as ``(key, shape, dtype) -> array``.
        num_gates: how many equal parts the last axis has.

    >>> kernel = PerGate("orthogonal", 4)(jax.random.key(0), (3, 12))
    >>> bool(jnp.allclose(kernel[:, 3:6] @ kernel[:, 3:6].T, jnp.eye(3), atol=1e-5))
    True
    """

    initializer: str | Initializer
    num_gates: int

    def __post_init__(self) -> None:
        get_initializer(self.initializer)

    def __call__(
        self, key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
    ) -> jax.Array:
        """Draw an array of ``shape``, whose last axis holds the gates."""
        part = (*shape[:-1], shape[-1] // self.num_gates)
        draw = get_initializer(self.initializer)
        keys = jax.random.split(key, self.num_gates)
        return jnp.concatenate([draw(key, part, dtype) for key in keys], axis=-1)


@dataclasses.dataclass(frozen=True)
class _LastGate:
    """Zeros, but for the last of two gates, which is drawn."""

    initializer: str | Initializer

    def __call__(
        self, key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
    ) -> jax.Array:
        part = (*shape[:-1], shape[-1] // 2)
        drawn = get_initializer(self.initializer)(key, part, dtype)
        return jnp.concatenate([jnp.zeros(part, dtype), drawn], axis=-1)


def per_gate(initializer: str | Initializer, num_gates: int) -> str | Initializer:
    """`PerGate`, or the initialiser itself where that comes to the same.

    >>> per_gate("lecun_normal", 4), per_gate("orthogonal", 3)
    ('lecun_normal', PerGate(initializer='orthogonal', num_gates=3))
    """
    # The variance of lecun_normal follows from the number of inputs alone.
    if num_gates == 1 or initializer == "lecun_normal" or is_constant(initializer, "zeros"):
        return initializer
    return PerGate(initializer, num_gates)


def named_activation(activation: str | Activation) -> str | Activation:
    """The name of a function that has one in rnnjax: the fast path knows derivatives by name.

    >>> named_activation(jax.nn.sigmoid), named_activation(jnp.tanh)
    ('sigmoid', 'tanh')
    >>> named_activation(jnp.sin) is jnp.sin
    True
    """
    for name, function in ACTIVATIONS.items():
        if activation is function:
            return name
    return activation


def is_constant(initializer: Any, name: str) -> bool:
    """Whether an initialiser is that of "zeros" or "ones", by name or as the function.

    >>> is_constant(jax.nn.initializers.zeros, "zeros"), is_constant("orthogonal", "zeros")
    (True, False)
    """
    return initializer is INITIALIZERS[name] or initializer == name


def check_carry_init(carry_init: Any) -> None:
    """Raise unless the carry of Flax's cell would begin with zeros.

    Raises:
        InvalidInputError: ``carry_init`` is neither left out nor zeros.
    """
    check_default(
        "carry_init",
        carry_init,
        carry_init is None or is_constant(carry_init, "zeros"),
        "rnnjax's cells begin with zeros; give the call an initial_carry, or wrap the cell in "
        "rnnjax.LearnedCarry",
    )


def check_gru_bias_init(bias_init: Any) -> None:
    """Raise unless the biases of Flax's GRU would begin with zeros.

    Raises:
        InvalidInputError: ``bias_init`` is not zeros.
    """
    check_default(
        "bias_init",
        bias_init,
        is_constant(bias_init, "zeros"),
        "rnnjax.GRUCell has two biases for each gate, and would draw both with it; use "
        "rnnjax.GRUCell(features, bias_init=...) if that is meant, or change the parameters",
    )


def check_residual(residual: bool) -> None:
    """Raise unless Flax's ``SimpleCell`` is the plain one.

    Raises:
        InvalidInputError: ``residual`` is true.
    """
    check_default(
        "residual",
        residual,
        not residual,
        "rnnjax.SimpleRNNCell has no residual connection; add the identity to its "
        "recurrent_kernel, which is the same function",
    )


def mgu_biases(
    forget_bias_init: str | Initializer, activation_bias_init: str | Initializer
) -> dict[str, Any]:
    """Flax's two initialisers of an MGU's biases as arguments of `rnnjax.MGUCell`.

    Raises:
        InvalidInputError: ``forget_bias_init`` is neither ones nor zeros.

    >>> mgu_biases("ones", "zeros")
    {'unit_forget_bias': True, 'bias_init': 'zeros'}
    """
    ones = is_constant(forget_bias_init, "ones")
    check_default(
        "forget_bias_init",
        forget_bias_init,
        ones or is_constant(forget_bias_init, "zeros"),
        "rnnjax.MGUCell begins with ones or zeros there; change the parameters after init",
    )
    zeros = is_constant(activation_bias_init, "zeros")
    return {
        "unit_forget_bias": ones,
        "bias_init": "zeros" if zeros else _LastGate(activation_bias_init),
    }
