"""Truncated backpropagation through time over streams with a carried state."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.cells.arguments import (
    as_array,
    brief,
    check_instance,
    is_integer,
    usual_promotion,
)
from rnnjax.cells.products import at_least_float32
from rnnjax.errors import InvalidInputError
from rnnjax.training.step import LossFunction

RunPiece = Callable[[Any, Any, Any, jax.Array], tuple[Any, Any]]
"""``(params, carry, inputs, key) -> (carry, outputs)``, over some steps of the streams."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Window:
    """What one update reads: steps of all streams, with time first.

    Attributes:
        inputs: any pytree of arrays ``(k2, rows, ...)``: inputs, resets ...
        targets: any pytree of arrays ``(k2, rows, ...)``.
        counted: booleans ``(k2, rows)``: the steps whose loss counts in this update.
        k1: after how many steps the next window begins; None: where this one ends.
    """

    inputs: Any
    targets: Any
    counted: jax.Array
    k1: int | None = dataclasses.field(default=None, metadata={"static": True})


@usual_promotion()
def windows(
    inputs: Any, targets: Any, *, k1: int, k2: int | None = None, mask: Any = None
) -> Window:
    """Cut streams into the windows of truncated backpropagation, BPTT(k2; k1).

    An update is made every ``k1`` steps, and its gradient flows back through ``k2`` of them
    (Williams & Peng, 1990). Window ``i`` covers steps ``i * k1`` to ``i * k1 + k2 - 1``, and the
    last ``k1`` of them count in its loss; in the first window all do. With ``k2 = k1``, the usual
    case, windows do not overlap. Steps at the end that do not fill a window are dropped.

    Args:
        inputs: a pytree of arrays ``(time, rows, ...)``.
        targets: likewise.
        k1: steps between two updates.
        k2: steps through which the gradient flows, at least ``k1``; left out, ``k1``.
        mask: booleans ``(time, rows)``, False where a step is never to count.

    Returns:
        a `Window` whose leaves have a leading axis of updates, as `make_train_steps` takes batches.

    Raises:
        InvalidInputError: ``k1`` or ``k2`` is out of range, the streams are shorter than ``k2``, or
            differ in their steps, targets and mask in their rows.

    >>> steps = windows(jnp.arange(8).reshape(8, 1), jnp.arange(8).reshape(8, 1), k1=2, k2=4)
    >>> steps.inputs[..., 0].tolist()
    [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7]]
    >>> steps.counted[..., 0].astype(int).tolist()
    [[1, 1, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1]]
    """
    k2 = k1 if k2 is None else k2
    if not (is_integer(k1) and is_integer(k2) and 1 <= k1 <= k2):
        raise InvalidInputError(
            f"k1 and k2 must be steps with 1 <= k1 <= k2, but are {k1!r} and {k2!r}: the "
            "gradient flows through k2 steps at every k1 steps; leave k2 out for k1"
        )
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(targets)]
    if min(map(len, shapes), default=0) < 2:
        raise InvalidInputError(
            "targets must be arrays (time, rows, ...), but one has fewer than two axes; for a "
            "single stream add an axis of one row"
        )
    mask = None if mask is None else as_array("mask", mask)
    if mask is not None and (mask.ndim != 2 or mask.dtype != jnp.bool_):
        raise InvalidInputError(
            f"mask must be booleans (time, rows), but is {mask.dtype} of shape {mask.shape}; "
            "write mask.astype(bool)"
        )
    if mask is not None and mask.shape[1] != 1:
        shapes.append(mask.shape)
    rows = {shape[1] for shape in shapes}
    lengths = {(*np.shape(leaf), 0)[0] for leaf in jax.tree.leaves((inputs, targets, mask))}
    if len(rows) != 1 or len(lengths) != 1 or min(lengths) < k2:
        raise InvalidInputError(
            f"inputs, targets and mask must be (time, rows, ...) with the same number of steps, at "
            f"least k2 = {k2}, and of rows, but have {sorted(lengths)} steps and {sorted(rows)} "
            "rows; cut them alike"
        )
    return _cut(inputs, targets, mask, k1, k2)


@functools.partial(jax.jit, static_argnums=(3, 4))
def _cut(inputs: Any, targets: Any, mask: Any, k1: int, k2: int) -> Window:
    leaves = jax.tree.leaves(targets)
    first = jnp.arange(0, len(leaves[0]) - k2 + 1, k1)
    steps = first[:, None] + jnp.arange(k2)
    counted = (jnp.arange(k2) >= k2 - k1) | (first[:, None] == 0)
    counted = jnp.broadcast_to(counted[..., None], (*steps.shape, leaves[0].shape[1]))
    if mask is not None:
        counted = counted & mask[steps]
    inputs, targets = jax.tree.map(lambda leaf: leaf[steps], (inputs, targets))
    return Window(inputs, targets, counted, k1)


def truncated_loss(run: RunPiece, losses: Callable[[Any, Any], jax.Array]) -> LossFunction:
    """The loss of one `Window`, for `fit`: it takes and returns the streams' carry.

    The loss is the mean over the steps that count. Their number is the metric ``weight``, by which
    the mean of an epoch is that over all its steps that count.

    The carry that an update returns is that after the window's first ``k1`` steps, where the
    next one begins. Rows whose stream ends and another begins are reset by ``run`` itself, with
    ``rnnjax.unroll(..., resets=inputs["resets"])``; nothing else is needed for them. The carry is
    part of the `TrainState`, so a run that is resumed from a checkpoint goes on exactly.

    Args:
        run: runs the model over some steps; called twice where windows overlap.
        losses: ``(outputs, targets) -> (steps, rows)``, the loss of each step.

    >>> import optax, rnnjax
    >>> from rnnjax.training import TrainState, make_train_steps
    >>> cell = rnnjax.GRUCell(1)
    >>> def run(params, carry, inputs, key):
    ...     return rnnjax.unroll(cell, params, inputs["xs"], carry, resets=inputs["resets"])
    >>> loss_fn = truncated_loss(run, lambda ys, targets: (ys[..., 0] - targets) ** 2)
    >>> xs, resets = jnp.ones((20, 8, 3)), jnp.zeros((20, 8), bool).at[7, 2].set(True)
    >>> batches = windows({"xs": xs, "resets": resets}, jnp.zeros((20, 8)), k1=5, k2=10)
    >>> params, optimizer = cell.init(jax.random.key(0), 3), optax.adam(0.01)
    >>> state = TrainState.create(
    ...     params, optimizer, key=jax.random.key(1), carry=cell.initial_carry((8,)))
    >>> state, metrics = make_train_steps(loss_fn, optimizer)(state, batches, 0, 3)
    >>> int(state.step), state.carry.hidden.shape
    (3, (8, 1))
    """

    def loss_fn(params: Any, carry: Any, batch: Window, key: jax.Array) -> Any:
        check_instance("batches", batch, Window, "a Window, as windows(inputs, targets, k1=20)")
        steps = batch.counted.shape[0]
        k1 = steps if batch.k1 is None else batch.k1
        if not (is_integer(k1) and 1 <= k1 <= steps):
            raise InvalidInputError(
                f"k1 of a Window must be a number of steps from 1 to its {steps}, but is {k1!r}; "
                "leave it out where the next window begins at its end"
            )
        first, then = (
            jax.tree.map(lambda leaf, part=part: leaf[part], batch.inputs)
            for part in (slice(k1), slice(k1, None))
        )
        carry, outputs = _ran(run, params, carry, first, key)
        if k1 < steps:
            _, rest = _ran(run, params, carry, then, jax.random.fold_in(key, 1))
            outputs = jax.tree.map(lambda *parts: jnp.concatenate(parts), outputs, rest)
        targets = jax.tree.map(functools.partial(_filled, batch.counted), batch.targets)
        each = losses(outputs, targets)
        if each.shape != batch.counted.shape:
            raise InvalidInputError(
                f"losses must return one loss for each step and row, {batch.counted.shape}, but "
                f"returned {each.shape}; sum or average over the other axes"
            )
        # A sum over all steps may be more than a narrow type holds.
        counted = jnp.where(batch.counted, each, 0).astype(at_least_float32(each.dtype))
        number = batch.counted.sum().astype(counted.dtype)
        return counted.sum() / jnp.maximum(number, 1), (carry, {"weight": number})

    return loss_fn


def _ran(run: RunPiece, params: Any, carry: Any, inputs: Any, key: jax.Array) -> tuple[Any, Any]:
    """A piece, of which is asked that it returns its pair in the right order."""
    returned = run(params, carry, inputs, key)
    wanted: Any = jax.tree.structure(carry)
    pair = isinstance(returned, tuple) and len(returned) == 2
    if not pair or wanted != jax.tree.structure(returned[0]):
        came = f"{brief(returned[0])} first" if pair else brief(returned)
        raise InvalidInputError(
            f"run must return (carry, outputs), the carry like the one that it was given, "
            f"{brief(carry)}, but returned {came}; return them as unroll does"
        )
    return returned


def _filled(counted: jax.Array, leaf: jax.Array) -> jax.Array:
    """Targets with one that counts, and zero where there is none, in the place of all that do not.

    Those may be anything, NaN too, which must not reach the gradient; nor must what a loss makes of
    a zero that is no target, by dividing by it.
    """
    if not counted.size:
        return leaf
    step, row = jnp.unravel_index(counted.argmax(), counted.shape)
    one = jnp.where(counted.any(), leaf[step, row], jnp.zeros_like(leaf[step, row]))
    return jnp.where(counted.reshape(*counted.shape, *[1] * (leaf.ndim - 2)), leaf, one)
