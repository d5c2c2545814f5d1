"""`unroll` checks the arguments and runs a cell over a sequence, layer by layer."""

import dataclasses
import functools
import operator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rnnjax.cells.base import Carry, CarryT, Cell, Inputs, Params, ParamTree
from rnnjax.cells.composite import over_layers, without_initializers
from rnnjax.checks import advised, brief, check_choice, check_flag, check_key, usual_promotion
from rnnjax.engine.auto import Auto
from rnnjax.engine.core.custom_primitive import traced
from rnnjax.engine.core.masking import StepMarks, Steps, zero_masked
from rnnjax.engine.core.method import Method, check_method, known_platform
from rnnjax.engine.core.validation import (
    check_noise,
    checked,
    entered,
    marks_of,
    start_of,
    without_noise,
)
from rnnjax.errors import InvalidInputError
from rnnjax.meshes import automatic, match_devices


@advised
@usual_promotion()
def unroll(
    cell: Cell[CarryT],
    params: ParamTree,
    xs: Inputs = None,  # type: ignore[assignment]  # left out, it gets a sentence
    carry: CarryT | None = None,
    *,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    resets: ArrayLike | None = None,
    reset_carry: CarryT | None = None,
    masked_outputs: Literal["zero", "last"] = "zero",
    outputs: Literal["all", "last"] = "all",
    reverse: bool = False,
    key: jax.Array | None = None,
    method: Method = Auto(),
) -> tuple[CarryT, jax.Array]:
    """Run a cell, or a stack of them, over a sequence.

    Outputs and gradients equal those of this loop, whatever the method::

        for t in range(len(xs)):              # from the last step to the first with reverse
            carry = where(resets[t], reset_carry, carry)
            new, ys[t] = cell.step(params, carry, xs[t])
            carry = where(mask[t], new, carry)
            ys[t] = where(mask[t], ys[t], 0)

    State goes in and comes out. Pass the carry back for Keras's ``stateful=True``, or leave it out
    for ``reset_states()``. ``jax.lax.stop_gradient`` on it truncates backpropagation through time.

    Args:
        cell: what one time step computes.
        params: the cell's parameters, as ``cell.init`` returns them.
        xs: ``(time, *batch, input_size)``, time first, usually with one batch axis; or one-hot
            vectors as ``rnnjax.OneHot(ids, input_size)``. For a cell with raw features also a pair
            ``(xs, raw)`` of either and an array ``(time, *batch, raw_size)``; in a single array
            they come last.
        carry: the state before the first step; by default ``reset_carry`` if given, else
            ``cell.start``: zeros for most cells, in float32 or the type of the parameters or inputs
            if wider. It is differentiable, and `rnnjax.LearnedCarry` learns it.
        lengths: integers ``(*batch,)``, the number of valid steps of each row, 0 to ``time``. Later
            steps are padding and masked. Inside ``jit`` values are unknown, and larger ones count
            as ``time``. `rnnjax.pad` makes ``xs`` and lengths of a list of sequences.
        mask: booleans ``(time, *batch)``, False to skip a step of a row: the carry is held, the
            output is zero, and the inputs have no influence, even if NaN. The final carry is that
            of each row's last valid step. With ``lengths`` a step must be valid by both.
        resets: booleans ``(time, *batch)``, True where a new sequence begins at that step of that
            row. A reset cuts off everything before it: values, NaN included, and first derivatives.
            Running forward, ``reset_carry`` replaces the carry before step t; in reverse, the carry
            between t and t - 1. A reset counts at a masked step too.
        reset_carry: the state that a reset restores, shaped like the carry or without the batch
            axes; by default ``cell.start``. Its gradient is summed over all resets.
        masked_outputs: ``"zero"``, or ``"last"`` for the output of the row's last valid step, zeros
            if the sequence had none yet (Keras's default).
        outputs: ``"all"``, or ``"last"`` for each row's output of its valid step that ran last,
            ``(*batch, output_size)``, zeros for a row without one. With ``reverse`` that is the
            first valid step. A `Bidirectional` layer merges the last output of each direction
            (Keras's ``return_sequences=False``). If the carry holds the output, no others are
            stored.
        reverse: run from the last step to the first. ``ys[t]`` still belongs to ``xs[t]``. With
            ``lengths`` each row begins at its own last valid step.
        key: a random key for `Regularized` cells and for dropout in a `Stack`. Without one they are
            off, as for prediction, and a gradient comes with a warning.
        method: how to run, a `Method`: ``Auto()``, ``Scan()``, ``Fused()`` ... All give the same
            numbers. A named method runs or raises.

    ``lengths``, ``mask`` and ``resets`` may leave out trailing batch axes, and then apply to all
    rows along these. A NaN in a valid step reaches the gradients as in plain JAX, resets or not.

    Returns:
        the carry after the last step that ran, and ``ys (time, *batch, output_size)``, or with
        ``outputs="last"`` a single output.

    Raises:
        InvalidInputError: an argument has the wrong rank, type, features, structure or batch, or
            the named method cannot run this cell.

    >>> import rnnjax
    >>> cell = rnnjax.LSTMCell(hidden_size=5)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> xs = jnp.ones((10, 8, 3))
    >>> carry, ys = rnnjax.unroll(cell, params, xs)
    >>> carry.hidden.shape, ys.shape
    ((8, 5), (10, 8, 5))
    >>> carry, first = rnnjax.unroll(cell, params, xs[:4])
    >>> carry, second = rnnjax.unroll(cell, params, xs[4:], carry)
    >>> bool(jnp.allclose(ys, jnp.concatenate([first, second])))
    True

    The first row has three steps, and a new sequence begins at its second:

    >>> lengths = jnp.array([3] + [10] * 7)
    >>> resets = jnp.zeros((10, 8), bool).at[1, 0].set(True)
    >>> carry, ys = rnnjax.unroll(cell, params, xs, lengths=lengths, resets=resets)
    >>> bool(jnp.all(ys[3:, 0] == 0)), bool(jnp.allclose(ys[1, 0], ys[0, 0]))
    (True, True)
    """
    xs, carry = checked(cell, params, xs, carry, reset_carry, method)
    marks = marks_of(xs, lengths, mask, resets, method.along)
    if marks.resets is not None:
        start = start_of(cell, params, xs, reset_carry, carry)
        # Both are one tree, which a stack or a `Bidirectional` splits like a carry.
        carry = jax.tree.map(_Leaf, carry, start)
    elif reset_carry is not None:
        start_of(cell, params, xs, reset_carry, carry)
    check_choice("masked_outputs", masked_outputs, ("zero", "last"))
    check_choice("outputs", outputs, ("all", "last"))
    if key is not None:
        check_key(key)
    elif cell.is_stochastic:
        params = without_noise(cell, params)
    check_flag("reverse", reverse)
    how = method, masked_outputs, outputs, bool(reverse)
    return _unroll(without_initializers(cell), params, xs, carry, marks, key, *how)


class _Leaf(NamedTuple):
    """A leaf of the carry and, with resets, of the start: composites split both with one tree."""

    now: jax.Array
    start: jax.Array


@functools.partial(jax.jit, static_argnums=(0, 6, 7, 8, 9))
def _unroll(
    cell: Cell,
    params: Params,
    xs: Any,
    carry: Carry,
    marks: StepMarks,
    key: jax.Array | None,
    method: Method,
    masked_outputs: str,
    outputs: str,
    reverse: bool,
) -> tuple[Carry, jax.Array]:
    """Run under ``jit``, so that calls outside it compile once per shape too."""

    def run(*args: Any) -> tuple[Carry, jax.Array]:
        return _unroll(cell, *args, method, masked_outputs, outputs, reverse)

    args = params, xs, carry, marks, key
    if (results := automatic(run, args, xs, len(xs.shape) - 1)) is not None:
        return results
    # Before the first product, for all layers: a NaN in padding has no influence anywhere.
    xs = zero_masked(xs, marks.valid)
    options = {"marks": marks, "method": method, "masked_outputs": masked_outputs}
    single = functools.partial(_unroll_layer, **options)
    carry, ys = over_layers(single)(cell, params, xs, carry, key=key, reverse=reverse)
    if outputs == "all":
        return carry, ys
    if not ys.shape[0]:
        return carry, jnp.zeros(ys.shape[1:], ys.dtype)
    valid, resets = marks.valid, marks.resets

    def pick(ys: jax.Array, against: bool) -> jax.Array:
        return method.last(ys, valid, reverse != against)

    # If the final carry holds it, XLA stores no other output. But a reset at a masked step after
    # the last valid one replaces the carry.
    known = valid is None or resets is None
    y = cell.last_output(carry if known else None, ys, pick)
    return carry, zero_masked(y, None if valid is None else valid.any(axis=0))


# Under its own ``jit``, so that equal layers of a stack are traced once.
@functools.partial(jax.jit, static_argnums=(0, 5), static_argnames=("method", "masked_outputs"))
def _unroll_layer(
    cell: Cell,
    params: Params,
    xs: Any,
    carry: Carry,
    noise: Steps | None,
    reverse: bool,
    *,
    marks: StepMarks,
    method: Method,
    masked_outputs: str,
) -> tuple[Carry, jax.Array]:
    # Checked per layer: only its composite knows which cells and noise it runs with.
    check_method(cell, method)
    check_noise(cell, noise)
    noise = noise or Steps()
    # Inside `jax.shard_map` a loop's state must vary over the mesh axes that its results vary over.
    # Made so here, once, for every method.
    params, xs, carry, marks, noise = match_devices((params, xs, carry, marks, noise))
    marks = marks.crossed(reverse, method.along)
    start = None
    if marks.resets is not None:
        both = functools.partial(jax.tree.map, is_leaf=lambda node: isinstance(node, _Leaf))
        carry, start = (both(operator.itemgetter(part), carry) for part in (0, 1))
    xs, raw = entered(cell, params, xs)
    steps = noise._replace(
        per_step=marks._replace(zoneout=noise.per_step.zoneout, raw=raw), start=start
    )
    with method.precisely():
        carry, ys = method.run(cell, params, xs, carry, reverse, steps)
    if masked_outputs == "last" and marks.valid is not None:
        ys = method.held(ys, marks.valid, marks.resets, reverse)
    return carry, ys


# ---- explain

_PLAIN = "its plain steps, differentiated by JAX, because the cell closes over a traced value"


@dataclasses.dataclass(frozen=True)
class Explanation:
    """How each layer would run; print it.

    Attributes:
        layers: for each layer its cell, the shape of its inputs, and phrases that say how it runs.
    """

    layers: tuple[tuple[Cell, tuple[int, ...], tuple[str, ...]], ...]

    def __str__(self) -> str:
        lines = []
        for cell, shape, phrases in self.layers:
            name = f"{type(cell).__name__}({getattr(cell, 'hidden_size', cell.output_size)})"
            lines += [f"{name} over inputs {shape}", *(f"- {phrase}" for phrase in phrases)]
        return "\n".join(lines)


def explain(
    cell: Cell[CarryT],
    params: ParamTree,
    xs: Any,
    carry: CarryT | None = None,
    *,
    method: Method = Auto(),
    platform: str | None = None,
) -> Explanation:
    """Say how `unroll` would run each layer, and why, without computing anything.

    Args:
        cell: as in `unroll`.
        params: as in `unroll`; here and below ``jax.ShapeDtypeStruct`` can stand for arrays.
        xs: as in `unroll`.
        carry: as in `unroll`.
        method: as in `unroll`.
        platform: the platform to lower for: ``"cpu"``, ``"cuda"``, ``"rocm"``, ``"gpu"`` for either
            of these, or ``"tpu"``; None for the platform of JAX's first device.

    Raises:
        InvalidInputError: as `unroll`; or ``platform`` is unknown.

    >>> import rnnjax
    >>> cell = rnnjax.LSTMCell(hidden_size=5)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> print(explain(cell, params, jax.numpy.ones((10, 8, 3)), method=rnnjax.Scan()))
    LSTMCell(5) over inputs (10, 8, 3)
    - the cell's step at each time step, differentiated by JAX
    """
    layers, platform = [], known_platform(platform)
    if isinstance(xs, tuple | list) and all(isinstance(size, int) for size in xs):
        raise InvalidInputError(
            f"xs must be an array, for which jax.ShapeDtypeStruct({tuple(xs)}, jnp.float32) can "
            f"stand, but is {brief(xs)} of integers; write that"
        )

    def single(
        cell: Cell, params: Params, xs: Any, carry: Carry, noise: Any, reverse: bool
    ) -> tuple[Carry, jax.Array]:
        check_method(cell, method)
        check_noise(cell, noise)
        shape = xs.shape
        xs, raw = entered(cell, params, xs)

        # Traced, so that it raises the same errors as `unroll`.
        def run(params: Params, xs: Any, carry: Carry, raw: Any) -> tuple[Carry, jax.Array]:
            return method.run(cell, params, xs, carry, reverse, Steps(StepMarks(raw=raw)))

        result = run(params, xs, carry, raw)
        if traced(run, params, xs, carry, raw)[2]:
            phrases = [_PLAIN]
        else:
            phrases = method.explain(cell, params, xs.shape, platform)
        layers.append((cell, shape, (*phrases, *method.arithmetic(platform))))
        return result

    def whole(params: Params, xs: Any, carry: Carry | None) -> Any:
        xs, carry = checked(cell, params, xs, carry, None, method)
        return over_layers(single)(cell, params, xs, carry)

    jax.eval_shape(whole, params, xs, carry)
    (first, (steps, rows, *features), phrases), *others = layers
    if len(features) == 1 and 1 < steps <= min(16, rows // 4):  # perhaps the batch came first
        axes = f"time is the first axis: {steps} steps of {rows} rows"
        phrases = (*phrases, f"{axes}; else write xs.swapaxes(0, 1)")
    return Explanation(((first, layers[0][1], phrases), *others))
