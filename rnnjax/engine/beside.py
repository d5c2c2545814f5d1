"""Pieces of an affine recurrence side by side, as rows of the batch, from their true beginnings."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from rnnjax.cells.base import Carry, Cell, Params
from rnnjax.cells.products import product
from rnnjax.engine.affine import Solved, affine, later
from rnnjax.engine.chunks import filled, in_chunks, joined, whole
from rnnjax.engine.layer import step_of
from rnnjax.engine.over_time import LoopArgs
from rnnjax.engine.pieces import Factors, keeping_before, plus, times, transposed
from rnnjax.engine.primitive import Function
from rnnjax.engine.readout import Cut
from rnnjax.engine.recurrence import Recurrence
from rnnjax.engine.steps import AtStep, Steps, expand


@dataclasses.dataclass(frozen=True)
class Beside(Function):
    """``(params, steps, xs, each, carry) -> (carry, ys)`` of an affine cell, forward in time.

    A piece makes of the state ``s`` before it ``A s + b``. Its own steps, from zeros, give ``b``,
    and their derivatives ``A``, with nothing written down but these two; so all true beginnings are
    known, and from them the pieces run as rows of the batch, by the loops of the recurrence. What
    comes back is affine too: through the pieces once for the part that begins in them, and once
    more for the gradients.

    The factors of every step, which for a state of sixteen numbers a unit are sixteen times the
    inputs, are never in memory, but in `plain`: its derivatives of every order are those of a
    linear solve, forwards and in reverse.

    Args:
        recurrence: of the cell, whose resets are at the end of a step.
        length: of the pieces.
    """

    recurrence: Recurrence
    length: int

    def refused(self, what: str) -> str:
        """Of the cell's update."""
        return f"pieces cannot run side by side where the update has {what}; use method=Scan()"

    def plain(self, params: Params, steps: Steps, xs: Any, each: AtStep, carry: Carry) -> Any:
        """As a linear solve."""
        if each.resets is not None:  # the state before the first step has begun already
            each = each._replace(resets=later(each.resets))
        solved = Solved(self.length)
        return solved_states(self.recurrence.cell, solved, params, steps, xs, each, carry)

    def run(self, platform: str, *args: Any) -> Any:
        """What the pieces make of any state, and then their outputs."""
        cut, _ = self._from_beginnings(platform, *args)
        return whole(self.recurrence.run(platform, *cut), args[2])

    def forward(self, platform: str, *args: Any) -> tuple[Any, Any]:
        """What is kept of all steps, where each piece began, and its factors."""
        cut, factors = self._from_beginnings(platform, *args)
        found, kept = self.recurrence.forward(platform, *cut)
        return whole(found, args[2]), (kept, cut[-1], factors)

    def backward(self, platform: str, args: Any, kept: Any, d: Any, wanted: Any) -> Any:
        """What comes back to the end of each piece, and from there the pieces' own gradients."""
        (params, steps, xs, each, _), (kept, starts, factors), (d_last, d_ys) = args, kept, d
        num_steps = d_ys.shape[0]
        xs, each, d_ys = in_chunks((xs, filled(xs, each, self.length), d_ys), self.length)
        cut = params, steps, xs, each, starts
        nothing = jax.tree.map(jnp.zeros_like, starts)
        begun = self.recurrence.sent_back(platform, cut, kept, (nothing, d_ys))
        leaves, tree = jax.tree.flatten(d_last)
        cuts = _any_reset(each)
        if cuts is None and each.valid is not None:
            # With marks, zero times a NaN of a step that no loss reads is zero, in the loops too.
            cuts = jnp.zeros_like(each.valid[0])
        across = transposed(factors), jax.tree.leaves(begun), cuts
        ends = jax.lax.scan(keeping_before, leaves, across, reverse=True)[1]
        all_but = (*wanted[:4], jax.tree.map(lambda _: True, starts))
        d = jax.tree.unflatten(tree, ends), d_ys
        *d_shared, d_xs, d_each, d_starts = self.recurrence.backward(
            platform, cut, kept, d, all_but
        )
        d_xs = jax.tree.map(lambda leaf: joined(leaf)[:num_steps], d_xs)
        return *d_shared, d_xs, d_each, jax.tree.map(lambda leaf: leaf[0], d_starts)

    def _from_beginnings(
        self, platform: str, params: Params, steps: Steps, xs: Any, each: AtStep, carry: Carry
    ) -> tuple[Any, Factors]:
        """The arguments of the recurrence with the pieces as rows, and the factors of each."""
        xs, each = in_chunks((xs, filled(xs, each, self.length)), self.length)
        number = jax.tree.leaves(xs)[0].shape[1]
        # Like the carry, which inside of `jax.shard_map` varies over the devices.
        zeros = jax.tree.map(lambda leaf: jnp.zeros_like(leaf, shape=(number, *leaf.shape)), carry)
        factors, constants = self._as_one(platform, params, steps, xs, each, zeros)
        leaves, tree = jax.tree.flatten(carry)
        pieces = factors, constants, _any_reset(each)
        starts = jax.lax.scan(keeping_before, leaves, pieces)[1]
        return (params, steps, xs, each, jax.tree.unflatten(tree, starts)), factors

    def _as_one(self, platform: str, *cut: Any) -> tuple[Factors, list[jax.Array]]:
        """What the steps of each piece are as one: its factors, and its constants."""
        layer = self.recurrence.layer(platform, "run", *cut)
        step, (_, _, xs, each, zeros) = step_of(layer), cut
        leaves, tree = jax.tree.flatten(zeros)
        columns = [
            jax.tree.unflatten(
                tree, [jnp.full_like(b, float(i == j)) for i, b in enumerate(leaves)]
            )
            for j in range(len(leaves))
        ]

        def turn(state: Any, projected: jax.Array, at: AtStep) -> Any:
            before, columns = state
            new, along = jax.linearize(lambda carry: step(carry, projected, at)[0], before)
            return (new, [along(column) for column in columns]), None, None

        projected = self.recurrence.project(layer, xs)
        args = LoopArgs(turn, (zeros, columns), projected, each, False, layer.plan.reads_ahead)
        (ends, columns), _, _ = layer.loop(args)
        return transposed([jax.tree.leaves(column) for column in columns]), jax.tree.leaves(ends)


def _any_reset(each: AtStep) -> jax.Array | None:
    """In which pieces a row begins anew."""
    return None if each.resets is None else each.resets.any(axis=0)


def solved_states(
    cell: Cell,
    solved: Solved,
    params: Params,
    steps: Steps,
    xs: Any,
    each: AtStep,
    carry: Carry,
) -> tuple[Carry, jax.Array]:
    """The last state and the outputs, from the factors and constants of every step."""
    num_steps, rows = xs.shape[0], xs.ndim - 1
    of_cell = _OfCell(cell, rows)
    cuts = each.valid is not None or each.resets is not None
    constants, factors = (of_cell if cuts else of_cell.plain)(params, xs, carry)
    start, tree = jax.tree.flatten(carry)

    def step(before: Carry) -> Carry:
        """A step with its marks, all of which are affine too."""
        begun = steps.begin(before, each)
        new = [
            total.astype(b.dtype)
            for total, b in zip(
                plus(constants, times(factors, jax.tree.leaves(begun))), start, strict=True
            )
        ]
        return steps.end(begun, jax.tree.unflatten(tree, new), new[0], each, None)[0]

    nothing = jax.tree.map(lambda s: jnp.zeros((num_steps, *s.shape), s.dtype), carry)
    states, first, ends = solved(*affine(step, nothing), start, each.resets)
    if cell.output is not None:
        ys = getattr(jax.tree.unflatten(tree, states), cell.output)
        ys = ys if cell.dtype is None else ys.astype(cell.dtype)
    else:
        before = [later(h).at[0].set(s) for h, s in zip(states, first, strict=True)]
        begun = steps.begin(jax.tree.unflatten(tree, before), each)
        ys = (of_cell.outputs if cuts else of_cell.outputs.plain)(params, xs, begun)
    if each.valid is not None:
        ys = jnp.where(expand(each.valid, ys), ys, 0)
    return jax.tree.unflatten(tree, ends), ys


class _OfCell(Cut):
    """The constants and factors of a cell's update at every step; ``carry`` is but a shape."""

    axis = None

    def plain(self, params: Params, xs: Any, carry: Carry) -> Any:
        """By `jax.jvp` at a state of zeros."""
        projected, num_steps = _projected(self.cell, params, xs), xs.shape[0]
        nothing = jax.tree.map(lambda s: jnp.zeros((num_steps, *s.shape), s.dtype), carry)
        return affine(lambda c: self.cell.advance(params, projected, c)[0], nothing)

    @property
    def outputs(self) -> "_Outputs":
        """The outputs that are no leaf of the state."""
        return _Outputs(self.cell, self.rows)


class _Outputs(Cut):
    """The outputs of a cell's update at every step, from the states before, which are known."""

    def plain(self, params: Params, xs: Any, carry: Carry) -> jax.Array:
        """The step itself, of all steps at once."""
        return self.cell.advance(params, _projected(self.cell, params, xs), carry)[1]


def _projected(cell: Cell, params: Params, xs: Any) -> jax.Array:
    """What the update reads beside the carry, of all steps."""
    return cell.biased(product(xs, params["kernel"], cell.dtype), params, "bias")
