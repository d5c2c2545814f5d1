"""`unroll`: check the arguments, and run the cell over the sequence, layer by layer."""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rnnjax.cells.arguments import brief, check_flag, check_key, usual_promotion
from rnnjax.cells.base import Carry, CarryT, Cell, Inputs, Params, ParamTree, without_initializers
from rnnjax.cells.composite import Noise, over_layers
from rnnjax.cells.devices import automatic, match_devices
from rnnjax.engine.auto import Auto
from rnnjax.engine.core.custom_primitive import closes_over_tracers
from rnnjax.engine.core.masking import Steps, zero_masked
from rnnjax.engine.core.method import Method, check_method
from rnnjax.engine.core.validation import (
    begin,
    check_noise,
    checked,
    checked_marks,
    valid_steps,
    without_noise,
)
from rnnjax.engine.fused.plan import known_platform
from rnnjax.errors import InvalidInputError


@usual_promotion()
def unroll(
    cell: Cell[CarryT],
    params: ParamTree,
    xs: Inputs = None,  # type: ignore[assignment]  # `checked` refuses it
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

    Equal to this loop, in outputs and gradients, whatever the method::

        for t in range(len(xs)):              # from the last step to the first with reverse
            carry = where(resets[t], reset_carry, carry)
            new, ys[t] = cell.step(params, carry, xs[t])
            carry = where(mask[t], new, carry)
            ys[t] = where(mask[t], ys[t], 0)

    State goes in and comes out. Feeding the carry back is Keras's ``stateful=True``; leaving it out
    is ``reset_states()``; ``jax.lax.stop_gradient`` on it truncates backpropagation through time.

    Args:
        cell: what one time step computes.
        params: the cell's parameters, as ``cell.init`` returns them.
        xs: ``(time, *batch, input_size)``, time first; usually one batch axis. One-hot vectors can
            be given as ``rnnjax.OneHot(ids, input_size)``.
        carry: the state before the first step; left out, that with which a sequence begins:
            ``reset_carry`` if that is given, else ``cell.start``, which is zeros for most cells,
            in float32 or the parameters' type if that is wider.
        lengths: integers ``(*batch,)``, the valid steps of each row, of which those after them are
            padding: masked. Of 0 to ``time``; inside of ``jit``, where values are not known, larger
            ones count as ``time``.
        mask: booleans ``(time, *batch)``, False where a step of a row is to be skipped: it holds
            the carry, its output is zero, and its inputs have no influence, be they NaN. The final
            carry is that of each row's last valid step. With ``lengths`` both must be true.
        resets: booleans ``(time, *batch)``, True where a new sequence begins with that step of that
            row: whatever came before is cut off, values, NaN included, and first derivatives.
            Running forward, ``reset_carry`` takes the place of the carry before step t, and running
            in reverse, of that between t and t - 1. A reset counts at a masked step too.
        reset_carry: the state with which a sequence begins at a reset, shaped like the carry or
            without the batch axes; its gradient is that of all resets. Left out, ``cell.start``.
        masked_outputs: ``"zero"``, or ``"last"`` for the output of the row's last valid step, zeros
            where there is none since the sequence began (Keras's default).
        outputs: ``"all"``, or ``"last"`` for the output of each row's valid step that ran last,
            ``(*batch, output_size)``: zeros for a row without one. With ``reverse`` that is the
            first valid step, and a `Bidirectional` layer merges the last output of each direction
            (Keras's ``return_sequences=False``). Where the carry holds the output, no others are
            stored.
        reverse: run from the last step to the first. ``ys[t]`` still belongs to ``xs[t]``; with
            ``lengths`` each row begins at its own last step.
        key: of the random numbers of `Regularized` cells and of dropout in a `Stack`, which without
            one draw nothing, as for prediction; a gradient that is taken so comes with a warning.
        method: how to run, a `Method`: ``Auto()``, ``Scan()``, ``Fused()`` ... All give the same
            numbers; one that is named runs or raises, but for `Kernel` where there is none.

    ``lengths``, ``mask`` and ``resets`` may leave out batch axes at the end, and then are for all
    rows along those. A NaN in a valid step reaches the gradients as in plain JAX, resets or not.

    Returns:
        the carry after the last step that ran, and ``ys (time, *batch, output_size)``, or with
        ``outputs="last"`` one of them.

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
    valid = valid_steps(xs, lengths, mask, method.along)
    if resets is not None:
        resets = checked_marks("resets", resets, xs)
        start = begin(cell, params, xs, reset_carry, carry)
        # Both travel as one tree, which a stack or both directions part as they part a carry.
        carry = jax.tree.map(_Leaf, carry, start)
    elif reset_carry is not None:
        begin(cell, params, xs, reset_carry, carry)
    if masked_outputs not in ("zero", "last"):
        raise InvalidInputError(
            f'masked_outputs must be "zero" or "last", but is {brief(masked_outputs)}'
        )
    if outputs not in ("all", "last"):
        raise InvalidInputError(f'outputs must be "all" or "last", but is {brief(outputs)}')
    if key is not None:
        check_key(key)
    elif cell.is_stochastic:
        params = without_noise(cell, params)
    check_flag("reverse", reverse)
    how = _How(method, masked_outputs == "last", outputs == "last")
    marks = _Marks(valid, resets)
    return _unroll(without_initializers(cell), params, xs, carry, marks, key, how, bool(reverse))


class _Leaf(NamedTuple):
    """A leaf of the carry together with that of the start of a sequence, where there are resets.

    So that composites split both with one tree.
    """

    now: jax.Array
    start: jax.Array


class _Marks(NamedTuple):
    valid: jax.Array | None = None
    resets: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class _How:
    """The static arguments of a call, which all layers share."""

    method: Method
    last_outputs: bool  # in the place of masked ones
    last_alone: bool


@functools.partial(jax.jit, static_argnums=(0, 6, 7))
def _unroll(
    cell: Cell,
    params: Params,
    xs: Any,
    carry: Carry,
    marks: _Marks,
    key: jax.Array | None,
    how: _How,
    reverse: bool,
) -> tuple[Carry, jax.Array]:
    """Compiled here, so that calls outside of jit compile once per shape too."""

    def run(*args: Any) -> tuple[Carry, jax.Array]:
        return _unroll(cell, *args, how, reverse)

    args = params, xs, carry, marks, key
    if (results := automatic(run, args, xs, len(xs.shape) - 1)) is not None:
        return results
    # Before the first product, for all layers: a NaN in padding has no influence anywhere.
    xs = zero_masked(xs, marks.valid)

    def single(
        cell: Cell, params: Params, xs: Any, carry: Carry, noise: Noise, reverse: bool
    ) -> tuple[Carry, jax.Array]:
        return _unroll_layer(cell, params, xs, carry, marks, noise, how, reverse)

    carry, ys = over_layers(single)(cell, params, xs, carry, key=key, reverse=reverse)
    if not how.last_alone:
        return carry, ys
    if not ys.shape[0]:
        return carry, jnp.zeros(ys.shape[1:], ys.dtype)
    valid, resets = marks

    def pick(ys: jax.Array, against: bool) -> jax.Array:
        return how.method.last(ys, valid, reverse != against)

    # Where the final carry holds it, XLA writes no other output. A reset at a masked step after the
    # last valid one puts another carry in its place.
    known = valid is None or resets is None
    y = cell.last_output(carry if known else None, ys, pick)
    return carry, zero_masked(y, None if valid is None else valid.any(axis=0))


# Compiled by itself, so that equal layers of a stack are traced once.
@functools.partial(jax.jit, static_argnums=(0, 6, 7))
def _unroll_layer(
    cell: Cell,
    params: Params,
    xs: Any,
    carry: Carry,
    marks: _Marks,
    noise: Noise,
    how: _How,
    reverse: bool,
) -> tuple[Carry, jax.Array]:
    # Of a layer, when its turn comes: only its composite knows which cells and noise it runs with.
    check_method(cell, how.method)
    check_noise(cell, noise)
    params, xs, carry, marks, noise = match_devices((params, xs, carry, marks, noise))
    valid, resets = marks
    start = None
    if resets is not None:
        carry, start = (_part(carry, part) for part in ("now", "start"))
        if reverse:  # the border before step t is crossed after it
            resets = jnp.concatenate([resets[1:], how.method.along.next(resets[:1])])
    steps = Steps.of(valid, resets, start, noise)
    with how.method.precisely():
        carry, ys = how.method.run(cell, params, xs, carry, reverse, steps)
    if how.last_outputs and valid is not None:
        ys = how.method.held(ys, valid, resets, reverse)
    return carry, ys


def _part(carry: Carry, name: str) -> Carry:
    return jax.tree.map(
        lambda leaf: getattr(leaf, name), carry, is_leaf=lambda node: isinstance(node, _Leaf)
    )


# ---- explain

_PLAIN = "its plain steps, differentiated by JAX, because the cell closes over a traced value"


@dataclasses.dataclass(frozen=True)
class Explanation:
    """How each layer would run; its string is meant to be read.

    Attributes:
        layers: for each layer its cell, the shape of its inputs, and phrases on how it runs.
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
    """Say which method and form `unroll` would run each layer by, and why; nothing is computed.

    Args:
        cell: as in `unroll`, and so are the other arguments; arrays can be given as
            ``jax.ShapeDtypeStruct``.
        params: see there.
        xs: see there.
        carry: see there.
        method: see there.
        platform: for which the program would be lowered: ``"cpu"``, ``"cuda"``, ``"rocm"``,
            ``"gpu"`` for either of these, or ``"tpu"``; None for that of JAX's first device.

    Raises:
        InvalidInputError: as `unroll` would; or ``platform`` is none that is known.

    >>> import rnnjax
    >>> cell = rnnjax.LSTMCell(hidden_size=5)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> print(explain(cell, params, jax.numpy.ones((10, 8, 3)), method=rnnjax.Scan()))
    LSTMCell(5) over inputs (10, 8, 3)
    - the cell's step at each time step, differentiated by JAX
    """
    layers, platform = [], known_platform(platform)

    def single(
        cell: Cell, params: Params, xs: Any, carry: Carry, noise: Noise, reverse: bool
    ) -> tuple[Carry, jax.Array]:
        check_method(cell, method)
        check_noise(cell, noise)

        # Traced, so that whatever `unroll` would refuse is refused here, in the same words.
        def run(params: Params, xs: Any, carry: Carry) -> tuple[Carry, jax.Array]:
            return method.run(cell, params, xs, carry, reverse, Steps())

        result = run(params, xs, carry)
        if closes_over_tracers(run, params, xs, carry):
            phrases = [_PLAIN]
        else:
            phrases = method.explain(cell, params, xs.shape, platform)
        layers.append((cell, xs.shape, (*phrases, *method.arithmetic(platform))))
        return result

    def whole(params: Params, xs: Any, carry: Carry | None) -> Any:
        xs, carry = checked(cell, params, xs, carry, None, method)
        return over_layers(single)(cell, params, xs, carry)

    jax.eval_shape(whole, params, xs, carry)
    return Explanation(tuple(layers))
