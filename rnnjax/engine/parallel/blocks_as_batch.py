"""Pieces of an affine recurrence side by side, as rows of the batch, from their true beginnings."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from rnnjax.cells.base import Carry, Params
from rnnjax.engine.core.custom_primitive import Function
from rnnjax.engine.core.masking import AtStep, Steps
from rnnjax.engine.fused.loops import LoopArgs
from rnnjax.engine.fused.plan import step_of
from rnnjax.engine.fused.recurrence import Recurrence, project
from rnnjax.engine.parallel.blocked_scan import (
    Factors,
    beginnings,
    filled,
    in_chunks,
    joined,
    transposed,
    whole,
)
from rnnjax.engine.parallel.linear_recurrence import Solved, later, solved_states


@dataclasses.dataclass(frozen=True)
class Beside(Function):
    """``(params, steps, xs, each, carry) -> (carry, ys)`` of an affine cell, forward in time.

    A piece makes of the state ``s`` before it ``A s + b``. Its own steps, from zeros, give ``b``,
    and their derivatives ``A``, with nothing written down but these two; so all true beginnings are
    known, and from them the pieces run as rows of the batch, by the loops of the recurrence. What
    comes back is affine too: through the pieces once for the part that begins in them, and once
    more for the gradients.

    The factors of every step, which for a state of sixteen numbers a unit are sixteen times the
    inputs, are never in memory, but in `plain`, by which the outputs alone are found where these
    are fewer. Its derivatives of every order are those of a linear solve, forwards and in reverse.

    Args:
        recurrence: of the cell, whose resets are at the end of a step.
        length: of the pieces.
        written: whether the outputs alone are found as in `plain`, which takes 0.5 to 1.0 of the
            time where a step has no more factors and constants than inputs.
    """

    recurrence: Recurrence
    length: int
    written: bool = False

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
        """What the pieces make of any state, and then their outputs.

        On a CPU where the pieces lie, elsewhere as a copy with time first: a program for an H100
        needs 0.56 of the memory so (LRU(128), 4,096 steps, 8 rows).
        """
        if self.written:
            return self.plain(*args)
        recurrence = dataclasses.replace(self.recurrence, axis=int(platform == "cpu"))
        cut, _ = self._from_beginnings(platform, recurrence, *args)
        return whole(recurrence.run(platform, *cut), args[2], recurrence.axis)

    def forward(self, platform: str, *args: Any) -> tuple[Any, Any]:
        """What is kept of all steps, where each piece began, and its factors.

        Where the pieces lie, on all platforms, as what is kept is alike on all: on a CPU an LRU(64)
        over 4,096 steps of 4 rows takes 0.7 of the memory of copies, and 0.8 to 0.95 of the time.
        """
        recurrence = dataclasses.replace(self.recurrence, axis=1)
        cut, factors = self._from_beginnings(platform, recurrence, *args)
        found, kept = recurrence.forward(platform, *cut)
        return whole(found, args[2], recurrence.axis), (kept, cut[-1], factors)

    def backward(self, platform: str, args: Any, kept: Any, d: Any, wanted: Any) -> Any:
        """What comes back to the end of each piece, and from there the pieces' own gradients."""
        (params, steps, xs, each, _), (kept, starts, factors), (d_last, d_ys) = args, kept, d
        num_steps, recurrence = d_ys.shape[0], dataclasses.replace(self.recurrence, axis=1)
        given = *filled(xs, each, self.length), d_ys
        xs, each, d_ys = in_chunks(given, self.length, recurrence.axis)
        cut = params, steps, xs, each, starts
        nothing = jax.tree.map(jnp.zeros_like, starts)
        begun = recurrence.sent_back(platform, cut, kept, (nothing, d_ys))
        leaves, tree = jax.tree.flatten(d_last)
        across = transposed(factors), jax.tree.leaves(begun), _any_reset(each, recurrence.axis)
        ends = beginnings(leaves, across, reverse=True)
        all_but = (*wanted[:4], jax.tree.map(lambda _: True, starts))
        d = jax.tree.unflatten(tree, ends), d_ys
        *d_shared, d_xs, d_each, d_starts = recurrence.backward(platform, cut, kept, d, all_but)
        d_xs = jax.tree.map(lambda leaf: joined(leaf, recurrence.axis)[:num_steps], d_xs)
        return *d_shared, d_xs, d_each, jax.tree.map(lambda leaf: leaf[0], d_starts)

    def _from_beginnings(
        self,
        platform: str,
        recurrence: Recurrence,
        params: Params,
        steps: Steps,
        xs: Any,
        each: AtStep,
        carry: Carry,
    ) -> tuple[Any, Factors]:
        """The arguments of the recurrence with the pieces as rows, and the factors of each."""
        axis = recurrence.axis
        xs, each = in_chunks(filled(xs, each, self.length), self.length, axis)
        number = jax.tree.leaves(xs)[0].shape[1 - axis]
        # Like the carry, which inside of `jax.shard_map` varies over the devices.
        zeros = jax.tree.map(lambda leaf: jnp.zeros_like(leaf, shape=(number, *leaf.shape)), carry)
        factors, constants = self._as_one(platform, recurrence, params, steps, xs, each, zeros)
        leaves, tree = jax.tree.flatten(carry)
        pieces = factors, constants, _any_reset(each, axis)
        starts = beginnings(leaves, pieces)
        return (params, steps, xs, each, jax.tree.unflatten(tree, starts)), factors

    def _as_one(
        self, platform: str, recurrence: Recurrence, *cut: Any
    ) -> tuple[Factors, list[jax.Array]]:
        """What the steps of each piece are as one: its factors, and its constants."""
        layer = recurrence.layer(platform, "run", *cut)
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

        projected = project(layer, xs)
        args = LoopArgs(turn, (zeros, columns), projected, each, False, layer.plan.reads_ahead)
        (ends, columns), _, _ = layer.loop(args)
        return transposed([jax.tree.leaves(column) for column in columns]), jax.tree.leaves(ends)


def _any_reset(each: AtStep, axis: int) -> jax.Array | None:
    """In which pieces a row begins anew."""
    return None if each.resets is None else each.resets.any(axis=axis)
