"""The parts of a step outside the cell's equation: masks, resets, dropout and zoneout.

Every method runs each step between `Steps.reset` and `Steps.mask`, so all methods agree.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rnnjax.cells.base import Carry, Cell, Params
from rnnjax.cells.onehot import OneHot
from rnnjax.cells.step import apply_readout, plain_step
from rnnjax.cells.validation import check_stepped
from rnnjax.meshes import MeshAxis, match_devices


class StepMarks(NamedTuple):
    """The marks of each step, in running order once they are `crossed`; None if there are none.

    Attributes:
        valid: booleans ``(time, *rows)``, False if a row holds its state.
        resets: booleans ``(time, *rows)``, True if a new sequence of a row begins at the step.
        zoneout: by field of the carry, booleans ``(time, *batch, size)``, True if a unit keeps its
            old value.
        raw: by name, the features ``(time, *batch, size)`` that an update gets as they are. They
            are differentiated. Behind the inputs' product they would make it too wide for the
            residuals of a step to be written in its place.
    """

    valid: jax.Array | None = None
    resets: jax.Array | None = None
    zoneout: Mapping[str, jax.Array] = {}
    raw: Mapping[str, jax.Array] = {}

    def crossed(self, reverse: bool, along: MeshAxis) -> "StepMarks":
        """Return the marks with each reset at the step before which its border is crossed.

        A reset at step t is the border between t - 1 and t. Running forward it is crossed before
        step t, but in reverse before step t - 1, whose mark may be the next device's.
        """
        if self.resets is None or not reverse:
            return self
        return self._replace(resets=jnp.concatenate([self.resets[1:], along.next(self.resets[:1])]))


class Steps(NamedTuple):
    """The marks of each step and the values that all steps share: a pytree, usually empty.

    Attributes:
        per_step: see `StepMarks`.
        start: the carry that a reset writes into a row.
        recurrent: factors of the state in the recurrent product.
        leaks: by field of the carry, the share of the old value that stays.
    """

    per_step: StepMarks = StepMarks()
    start: Carry | None = None
    recurrent: jax.Array | None = None
    leaks: Mapping[str, Any] = {}

    def reset(self, carry: Carry, at: StepMarks) -> Carry:
        """Return the carry that the step starts from: ``start`` in rows that are reset."""
        if at.resets is None:
            return carry
        resets = at.resets
        # Selected, not multiplied by zero: a NaN before the reset must not pass it.
        return jax.tree.map(
            lambda start, leaf: jnp.where(expand(resets, leaf), start, leaf), self.start, carry
        )

    def drop_state(self, state: jax.Array) -> jax.Array:
        """Apply recurrent dropout to the state for the recurrent product."""
        if self.recurrent is None:
            return state
        return state * self.recurrent.astype(state.dtype)

    def mask(
        self, old: Carry, new: Carry, y: jax.Array, at: StepMarks, output: str | None
    ) -> tuple[Carry, jax.Array]:
        """Apply zoneout and the mask to the carry and output of the equation.

        Args:
            old: the carry before the equation.
            new: the carry after it.
            y: its output.
            at: the marks of the step.
            output: the leaf of the new carry that ``y`` equals, and is held with; or None.
        """
        mixed = {}
        # Sampled for all steps before the loop, which would sample only a few numbers at a time.
        for name, keep in at.zoneout.items():
            mixed[name] = jnp.where(keep, getattr(old, name), getattr(new, name))
        for name, leak in self.leaks.items():
            before, now = getattr(old, name), getattr(new, name)
            # (1 - leak) now + leak before, in a form that is exactly `now` where nothing changed.
            mixed[name] = now + jnp.asarray(leak, now.dtype) * (before - now)
        if mixed:
            new = new._replace(**mixed)
            if output in mixed:
                y = mixed[output].astype(y.dtype)
        valid = at.valid
        # Last, so that neither noise nor the equation touches a row that is skipped.
        if valid is not None:
            new = jax.tree.map(lambda o, n: jnp.where(expand(valid, n), n, o), old, new)
            y = zero_masked(y, valid)
        return new, y

    def run(self, cell: Cell, params: Params, carry: Carry, x: Any, at: StepMarks) -> Any:
        """Run one step of ``cell`` with reset, noise and mask; return the new carry and output."""
        carry = self.reset(carry, at)
        if cell.carry is None:  # a step of its own
            returned = cell.step(params, carry, x)
            check_stepped(cell, carry, returned)
            new, y = returned
        else:
            new, y = plain_step(cell, params, carry, x, at.raw, self.drop_state)
        return self.mask(carry, new, y, at, cell.output)


def read_out(
    cell: Cell,
    params: Params,
    emitted: jax.Array,
    xs: Any,
    per_step: StepMarks,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Compute the outputs of all steps from what the loop of a cell emits.

    Args:
        cell: a cell that declares its equation.
        params: its parameters.
        emitted: ``(time, *batch, size)``, zeros at masked steps.
        xs: its inputs.
        per_step: the marks, in the order of ``emitted``.
        dtype: the type of the operands of products, if not the cell's.
    """
    if not cell.has_readout:
        return emitted
    ys = jax.vmap(lambda emitted, x: apply_readout(cell, params, emitted, x, dtype))(emitted, xs)
    return zero_masked(ys, per_step.valid)


def without_row(xs: Any, steps: Steps, carry: Carry) -> tuple[Any, Steps, Carry]:
    """Drop the batch axis of a single row; marks shared by all rows have none."""
    xs, per_step = jax.tree.map(
        lambda leaf: leaf if leaf.ndim == 1 else leaf[:, 0], (xs, steps.per_step)
    )
    shared = steps.start, steps.recurrent, carry
    start, recurrent, carry = jax.tree.map(lambda leaf: leaf[0], shared)
    return xs, steps._replace(per_step=per_step, start=start, recurrent=recurrent), carry


def zero_masked(tree: Any, valid: jax.Array | None) -> Any:
    """Set a tree of arrays and `OneHot` to zero where ``valid (*leading)`` is False."""
    if valid is None:
        return tree

    def zero(leaf: Any) -> Any:
        if isinstance(leaf, OneHot):  # an id out of range stands for zeros
            return OneHot(jnp.where(expand(valid, leaf.ids), leaf.wide_ids, -1), leaf.size)
        return jnp.where(expand(valid, leaf), leaf, 0)

    return jax.tree.map(zero, tree, is_leaf=lambda node: isinstance(node, OneHot))


def without(resets: jax.Array | None, state: Any) -> Any:
    """Set the state before a step to zero where a reset drops it."""
    return zero_masked(state, None if resets is None else ~resets)


def expand(marks: jax.Array, leaf: jax.Array) -> jax.Array:
    """Expand ``marks (*rows)`` to as many axes as ``leaf (*rows, ...)``."""
    return marks.reshape(*marks.shape, *[1] * (leaf.ndim - marks.ndim))


def last_valid(ys: jax.Array, valid: jax.Array | None, reverse: bool = False) -> jax.Array:
    """Return each row's output ``(*batch, features)`` of its last valid step, or zeros.

    Args:
        ys: ``(time, *batch, features)``.
        valid: booleans ``(time, *rows)``, possibly without some batch axes; None if all are valid.
        reverse: whether the steps run from the last to the first.
    """
    if not ys.shape[0]:
        return jnp.zeros(ys.shape[1:], ys.dtype)
    if valid is None:
        return ys[0 if reverse else -1]
    # The first valid step from the end, in reverse from the start: 0 steps from there where a row
    # has none, whose output is replaced below.
    away = (valid if reverse else valid[::-1]).argmax(axis=0)
    at = expand(away if reverse else ys.shape[0] - 1 - away, ys[0])
    found = jnp.take_along_axis(ys, jnp.broadcast_to(at, (*ys.shape[1:-1], 1))[None], axis=0)[0]
    return zero_masked(found, valid.any(axis=0))


def held_outputs(
    ys: jax.Array, valid: jax.Array, resets: jax.Array | None, reverse: bool
) -> jax.Array:
    """Replace the output of masked steps by that of the last valid step, in running order."""

    def step(last: jax.Array, at: Any) -> tuple[jax.Array, jax.Array]:
        y, valid, resets = at
        if resets is not None:
            last = jnp.where(expand(resets, last), 0, last)
        last = jnp.where(expand(valid, y), y, last)
        return last, last

    # A separate loop: in the loop of the layer it would save one more array per step.
    zeros, ys = match_devices((jnp.zeros(ys.shape[1:], ys.dtype), ys))
    return jax.lax.scan(step, zeros, (ys, valid, resets), reverse=reverse)[1]
