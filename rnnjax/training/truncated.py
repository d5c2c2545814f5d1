"""Truncated backpropagation through time over streams with a carried state."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.cells.products import at_least_float32
from rnnjax.checks import brief, check_alike, check_instance, check_size
from rnnjax.engine.core.masking import expand
from rnnjax.engine.core.validation import checked_marks
from rnnjax.errors import InvalidInputError
from rnnjax.training.step import LossFunction

RunPiece = Callable[[Any, Any, Any, jax.Array], tuple[Any, Any]]
"""``(params, carry, inputs, key) -> (carry, outputs)``, over one window of the streams."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Window:
    """The data of one update: steps of all streams, time first.

    Attributes:
        inputs: any pytree of arrays ``(steps, rows, ...)``: inputs, resets ...
        targets: any pytree of arrays ``(steps, rows, ...)``.
        counted: booleans ``(steps, rows)``, True for steps whose loss counts.
    """

    inputs: Any
    targets: Any
    counted: Any


def windows(inputs: Any, targets: Any, *, steps: int, mask: Any = None) -> Window:
    """Split streams into the windows of truncated backpropagation (Williams & Peng, 1990).

    There is one update every ``steps`` steps, whose gradient flows back through these steps. Steps
    at the end that do not fill a window are dropped.

    Args:
        inputs: a pytree of arrays ``(time, rows, ...)``.
        targets: a pytree of arrays ``(time, rows, ...)``.
        steps: the number of steps of a window.
        mask: booleans ``(time, rows)``, False for steps that do not count.

    Returns:
        a `Window` whose leaves have a leading axis of updates: the batches of `make_train_steps`.

    Raises:
        InvalidInputError: the streams are shorter than a window, or differ in their steps; or
            targets and mask differ in their rows.

    >>> ids = np.arange(8).reshape(8, 1)
    >>> windows(ids, ids, steps=3).inputs[..., 0].tolist()
    [[0, 1, 2], [3, 4, 5]]
    """
    check_size("steps", steps)
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(targets)]
    if min(map(len, shapes), default=0) < 2:
        raise InvalidInputError(
            "targets must be arrays (time, rows, ...), but one has fewer than two axes; for a "
            "single stream add an axis of one row"
        )
    rows = {shape[1] for shape in shapes}
    lengths = {(*np.shape(leaf), 0)[0] for leaf in jax.tree.leaves((inputs, targets))}
    if len(rows) != 1 or len(lengths) != 1 or min(lengths) < steps:
        raise InvalidInputError(
            f"inputs and targets must be (time, rows, ...) with the same number of steps, at "
            f"least the {steps} of a window, and of rows, but have {sorted(lengths)} steps and "
            f"{sorted(rows)} rows; cut them alike"
        )
    number = min(lengths) // steps
    counted = jnp.ones(shapes[0][:2], bool)
    if mask is not None:
        counted &= expand(checked_marks("mask", mask, counted[..., None], of="targets"), counted)
    return jax.tree.map(
        lambda leaf: leaf[: number * steps].reshape(number, steps, *leaf.shape[1:]),
        Window(inputs, targets, counted),
    )


def truncated_loss(run: RunPiece, losses: Callable[[Any, Any], jax.Array]) -> LossFunction:
    """Make the loss function of one `Window`, for `fit`; it takes and returns the streams' carry.

    The loss is the mean over the steps that count. Their number is the metric ``weight``, so that
    the mean of an epoch is over all its steps that count.

    The returned carry is the state after the window, where the next window begins. If a new stream
    begins in a row, ``run`` resets it with ``rnnjax.unroll(..., resets=inputs["resets"])``.

    Args:
        run: runs the model over the steps of a window.
        losses: ``(outputs, targets) -> (steps, rows)``, the loss of each step.

    >>> import optax, rnnjax
    >>> from rnnjax.training import TrainState, make_train_steps
    >>> cell = rnnjax.GRUCell(1)
    >>> def run(params, carry, inputs, key):
    ...     return rnnjax.unroll(cell, params, inputs["xs"], carry, resets=inputs["resets"])
    >>> loss_fn = truncated_loss(run, lambda ys, targets: (ys[..., 0] - targets) ** 2)
    >>> xs, resets = jnp.ones((20, 8, 3)), jnp.zeros((20, 8), bool).at[7, 2].set(True)
    >>> batches = windows({"xs": xs, "resets": resets}, jnp.zeros((20, 8)), steps=5)
    >>> params, optimizer = cell.init(jax.random.key(0), 3), optax.adam(0.01)
    >>> state = TrainState.create(
    ...     params, optimizer, key=jax.random.key(1), carry=cell.initial_carry((8,)))
    >>> state, metrics = make_train_steps(loss_fn, optimizer)(state, batches, 0, 3)
    >>> int(state.step), state.carry.hidden.shape
    (3, (8, 1))
    """

    def loss_fn(params: Any, carry: Any, batch: Window, key: jax.Array) -> Any:
        check_instance("batches", batch, Window, "a Window, as windows(inputs, targets, steps=20)")
        returned = run(params, carry, batch.inputs, key)
        if not isinstance(returned, tuple) or len(returned) != 2:
            raise InvalidInputError(
                f"run must return (carry, outputs), but returned {brief(returned)}; return them as "
                "unroll does"
            )
        check_alike("run", carry, returned[0], "return (carry, outputs) as unroll does")
        carry, outputs = returned
        targets = jax.tree.map(functools.partial(_filled, batch.counted), batch.targets)
        each = losses(outputs, targets)
        if np.shape(each) != batch.counted.shape:
            raise InvalidInputError(
                f"losses must return one loss for each step and row, {batch.counted.shape}, but "
                f"returned {brief(each)}; sum or average over the other axes"
            )
        # A sum over all steps may overflow a narrow type.
        counted = jnp.where(batch.counted, each, 0).astype(at_least_float32(each.dtype))
        number = batch.counted.sum().astype(counted.dtype)
        return counted.sum() / jnp.maximum(number, 1), (carry, {"weight": number})

    return loss_fn


def _filled(counted: jax.Array, leaf: jax.Array) -> jax.Array:
    """Replace targets that do not count by one that does, or by zero if there is none.

    They may be anything, even NaN, which must not reach the gradient. Zeros alone would not do: a
    loss may divide by its target.
    """
    if not counted.size:
        return leaf
    step, row = jnp.unravel_index(counted.argmax(), counted.shape)
    one = jnp.where(counted.any(), leaf[step, row], jnp.zeros_like(leaf[step, row]))
    return jnp.where(expand(counted, leaf), leaf, one)
