"""Blocks of an affine recurrence as rows of a batch, each from its true first state."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from rnnjax.cells.base import Carry, Params
from rnnjax.engine.core.custom_primitive import Function
from rnnjax.engine.core.masking import StepMarks, Steps
from rnnjax.engine.fused.loops import LoopArgs
from rnnjax.engine.fused.plan import step_of
from rnnjax.engine.fused.recurrence import Recurrence, project
from rnnjax.engine.parallel.blocked_scan import (
    Factors,
    block_carries,
    blocked,
    merge_blocks,
    pad_blocks,
    transposed,
    whole,
)
from rnnjax.engine.parallel.linear_recurrence import AffineRecurrence, affine_states, shift


@dataclasses.dataclass(frozen=True)
class BlocksAsBatch(Function):
    """``(params, steps, xs, each, carry) -> (carry, ys)`` of an affine cell, forward in time.

    A block turns the state ``s`` before it into ``A s + b``. Its steps, run from zeros, give ``b``,
    and their derivatives ``A``. So the first states of all blocks follow from one another, and from
    these the blocks run as rows of a batch, by the loops of `Recurrence`. Cotangents obey an affine
    recurrence as well: one pass over the blocks for those at their ends, a second for gradients.

    The factors of single steps are never stored, except in `plain`, whose derivatives are those of
    a linear solve: of every order, forwards and in reverse.

    Args:
        recurrence: of the cell, whose resets are at the end of a step.
        length: of a block.
        written: whether the outputs alone are found as in `plain`, which is faster where factors
            and constants are no more numbers than the inputs.
    """

    recurrence: Recurrence
    length: int
    written: bool = False

    def refused(self, what: str) -> str:
        """Say why the update of the cell cannot run so."""
        return f"blocks cannot run side by side where the update has {what}; use method=Scan()"

    def plain(
        self, params: Params, steps: Steps, xs: Any, per_step: StepMarks, carry: Carry
    ) -> Any:
        """Run as a linear solve."""
        if per_step.resets is not None:  # the state before the first step has begun already
            per_step = per_step._replace(resets=shift(per_step.resets))
        solved = AffineRecurrence(self.length)
        return affine_states(self.recurrence.cell, solved, params, steps, xs, per_step, carry)

    def run(self, platform: str, *args: Any) -> Any:
        """Find the first states of all blocks, and then their outputs.

        On a CPU the blocks are read where they lie. Elsewhere they are copied with time first,
        which took half of the memory in a program compiled for an H100.
        """
        if self.written:
            return self.plain(*args)
        recurrence = dataclasses.replace(self.recurrence, axis=int(platform == "cpu"))
        cut, _ = self._from_beginnings(platform, recurrence, *args)
        return whole(recurrence.run(platform, *cut), args[2], recurrence.axis)

    def forward(self, platform: str, *args: Any) -> tuple[Any, Any]:
        """Also return the residuals of all steps, the first state of each block, and its factors.

        Residuals have one layout on all platforms, and so blocks are read where they lie.
        """
        recurrence = dataclasses.replace(self.recurrence, axis=1)
        cut, factors = self._from_beginnings(platform, recurrence, *args)
        found, saved = recurrence.forward(platform, *cut)
        return whole(found, args[2], recurrence.axis), (saved, cut[-1], factors)

    def backward(self, platform: str, args: Any, saved: Any, d: Any, needs_grad: Any) -> Any:
        """Find the cotangents at the ends of the blocks, and from these each block's gradients."""
        (params, steps, xs, per_step, _), (saved, starts, factors), (d_last, d_ys) = args, saved, d
        num_steps, recurrence = d_ys.shape[0], dataclasses.replace(self.recurrence, axis=1)
        given = *pad_blocks(xs, per_step, self.length), d_ys
        xs, per_step, d_ys = blocked(given, self.length, recurrence.axis)
        cut = params, steps, xs, per_step, starts
        nothing = jax.tree.map(jnp.zeros_like, starts)
        begun = recurrence.sent_back(platform, cut, saved, (nothing, d_ys))
        leaves, tree = jax.tree.flatten(d_last)
        across = transposed(factors), jax.tree.leaves(begun), _any_reset(per_step, recurrence.axis)
        ends = block_carries(leaves, across, reverse=True)
        all_but = (*needs_grad[:4], jax.tree.map(lambda _: True, starts))
        d = jax.tree.unflatten(tree, ends), d_ys
        *d_shared, d_xs, d_each, d_starts = recurrence.backward(platform, cut, saved, d, all_but)
        d_xs = jax.tree.map(lambda leaf: merge_blocks(leaf, recurrence.axis)[:num_steps], d_xs)
        return *d_shared, d_xs, d_each, jax.tree.map(lambda leaf: leaf[0], d_starts)

    def _from_beginnings(
        self,
        platform: str,
        recurrence: Recurrence,
        params: Params,
        steps: Steps,
        xs: Any,
        per_step: StepMarks,
        carry: Carry,
    ) -> tuple[Any, Factors]:
        """Return the arguments of the recurrence with blocks as rows, and each block's factors."""
        axis = recurrence.axis
        xs, per_step = blocked(pad_blocks(xs, per_step, self.length), self.length, axis)
        number = jax.tree.leaves(xs)[0].shape[1 - axis]
        # Like the carry, which inside of `jax.shard_map` varies over the devices.
        zeros = jax.tree.map(lambda leaf: jnp.zeros_like(leaf, shape=(number, *leaf.shape)), carry)
        factors, constants = self._as_one(platform, recurrence, params, steps, xs, per_step, zeros)
        leaves, tree = jax.tree.flatten(carry)
        blocks = factors, constants, _any_reset(per_step, axis)
        starts = block_carries(leaves, blocks)
        return (params, steps, xs, per_step, jax.tree.unflatten(tree, starts)), factors

    def _as_one(
        self, platform: str, recurrence: Recurrence, *cut: Any
    ) -> tuple[Factors, list[jax.Array]]:
        """Return the factors and the constants of each block as one step."""
        layer = recurrence.layer(platform, "run", *cut)
        step, (_, _, xs, per_step, zeros) = step_of(layer), cut
        leaves, tree = jax.tree.flatten(zeros)
        columns = [
            jax.tree.unflatten(
                tree, [jnp.full_like(b, float(i == j)) for i, b in enumerate(leaves)]
            )
            for j in range(len(leaves))
        ]

        def body(state: Any, projected: jax.Array, at: StepMarks) -> Any:
            before, columns = state
            new, along = jax.linearize(lambda carry: step(carry, projected, at)[0], before)
            return (new, [along(column) for column in columns]), None, None

        projected = project(layer, xs)
        args = LoopArgs(body, (zeros, columns), projected, per_step, False, layer.plan.reads_ahead)
        (ends, columns), _, _ = layer.loop(args)
        return transposed([jax.tree.leaves(column) for column in columns]), jax.tree.leaves(ends)


def _any_reset(per_step: StepMarks, axis: int) -> jax.Array | None:
    """Whether a row is reset in each block."""
    return None if per_step.resets is None else per_step.resets.any(axis=axis)
