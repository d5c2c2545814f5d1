"""Affine recurrences: what multiplies the state and what is added, and the states of all steps."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rnnjax.cells.base import Carry, Cell, Params
from rnnjax.cells.devices import LOCAL, MeshAxis
from rnnjax.engine.core.custom_primitive import Function
from rnnjax.engine.core.masking import StepMarks, Steps, without, zero_masked
from rnnjax.engine.parallel.blocked_scan import (
    Block,
    Blocks,
    Factors,
    plus,
    solve_in_blocks,
    times,
    with_previous,
)


def affine(step: Any, at: Any) -> tuple[list[jax.Array], Factors]:
    """The constants and factors of a function that is affine, and takes each unit by itself."""
    leaves, tree = jax.tree.flatten(at)
    columns: list[list[jax.Array]] = []
    new = at
    for j in range(len(leaves)):
        ones = [jnp.full_like(leaf, float(i == j)) for i, leaf in enumerate(leaves)]
        new, column = jax.jvp(step, (at,), (jax.tree.unflatten(tree, ones),))
        columns.append(jax.tree.leaves(column))
    return jax.tree.leaves(new), [[column[i] for column in columns] for i in range(len(leaves))]


def shift(values: jax.Array) -> jax.Array:
    """Each step's value at the step after it; zeros at the first."""
    return jnp.concatenate([jnp.zeros_like(values[:1]), values[:-1]])


@dataclasses.dataclass(frozen=True)
class AffineRecurrence(Function):
    """The states of ``s_t = A_t s_(t-1) + b_t``: the solution of ``(I - A shift) s = b``.

    Its arguments are the constants, the factors, the state before the first step and the resets.
    Its result are the states, the one before those here, and the last of all.

    Args:
        length: of the blocks.
        along: the devices over which the steps are divided.
        reverse: whether the last of them has the first steps.
    """

    length: int
    along: MeshAxis = LOCAL
    reverse: bool = False

    def may_cross(self, axis: Any) -> bool:
        """Allow collectives between those devices."""
        return axis == self.along.name

    def plain(
        self, constants: list[jax.Array], factors: Factors, start: list[jax.Array], resets: Any
    ) -> Any:
        """Run as a linear solve, of which JAX knows all derivatives; over devices as `run`."""
        if self.along.name is not None:
            return self.run("any", constants, factors, start, resets)

        def times_matrix(states: list[jax.Array]) -> list[jax.Array]:
            moved = times(factors, without(resets, [shift(s) for s in states]))
            return [s - m.astype(s.dtype) for s, m in zip(states, moved, strict=True)]

        solved: list[jax.Array] = jax.lax.custom_linear_solve(
            times_matrix,
            _all_changing(_with_start(constants, factors, start, resets)),
            lambda _, given: solve_in_blocks(factors, given, resets, self.length),
            lambda _, given: self.backwards(factors, given, resets),
        )
        return solved, start, [h[-1] for h in solved]

    def run(self, platform: str, *args: Any) -> Any:
        """Run the blocks."""
        constants, factors, start, resets = args
        blocks = Blocks.of(factors, constants, resets, self.length)
        before, last = self._over_devices(blocks.as_one, start, self.reverse)
        states, here = blocks.states(before)
        return states, before, here if last is None else last

    def forward(self, platform: str, *args: Any) -> tuple[Any, Any]:
        """The states are all that is saved."""
        out = self.run(platform, *args)
        return out, out[:2]

    def backward(self, platform: str, args: Any, saved: Any, d: Any, needs_grad: Any) -> Any:
        """Find the cotangent of each state, and from it each step's gradients."""
        (_, factors, _, resets), (states, before), (d_states, d_before, d_last) = args, saved, d
        blocks = Blocks.of(factors, d_states, resets, self.length, reverse=True)

        def as_one() -> Block:
            """Add the cotangent of the state before the steps of this device."""
            whole, last, cuts = blocks.as_one()
            return whole, plus(last, d_before), cuts

        entering, d_start = self._over_devices(as_one, d_last, not self.reverse)
        back, left = blocks.states(entering)
        if d_start is None:
            d_start = plus(left, d_before)
        else:
            d_start = self.along.only_first(d_start, self.reverse)
        before = [shift(h).at[0].set(s) for h, s in zip(states, before, strict=True)]
        d_factors = [[(g * h).astype(a.dtype)
                      for h, a in zip(without(resets, before), row, strict=True)]
                     for g, row in zip(back, factors, strict=True)]  # fmt: skip
        return back, d_factors, d_start, jax.tree.map(lambda _: None, resets)

    def backwards(self, factors: Factors, given: list[jax.Array], resets: Any) -> list[jax.Array]:
        """The transpose: the same recurrence from the last step to the first."""
        blocks = Blocks.of(factors, given, resets, self.length, reverse=True)
        return blocks.states([jnp.zeros_like(g[0]) for g in given])[0]

    def _over_devices(
        self, as_one: Callable[[], "Block"], start: list[jax.Array], reverse: bool
    ) -> tuple[list[jax.Array], list[jax.Array] | None]:
        """The state before the steps here, and the last of all devices; None if there is one.

        One array of each device goes to all: what its steps make of the state before them.
        """
        if self.along.name is None:
            return start, None
        every, starts = self.along.gathered((as_one(), start))
        first = [leaf[-1 if reverse else 0] for leaf in starts]
        last, befores = jax.lax.scan(with_previous, first, every, reverse=reverse)
        return self.along.here(befores), last


@jax.custom_jvp
def _all_changing(leaves: list[jax.Array]) -> list[jax.Array]:
    """Return the leaves, with zeros for a tangent where there is none.

    JAX's rule for a linear solve fails where some parts of the right side change and others do not
    (jax 0.10.2), as of a state that only takes over what another one was.
    """
    return leaves


_all_changing.defjvp(lambda primals, tangents: (primals[0], tangents[0]))


def _with_start(
    constants: list[jax.Array], factors: Factors, start: list[jax.Array], resets: Any
) -> list[jax.Array]:
    """The constants, the first of which has the state before it in it."""
    first = [[leaf[0] for leaf in row] for row in factors]
    begun = times(first, without(None if resets is None else resets[0], start))
    return [b.at[0].add(f.astype(b.dtype)) for b, f in zip(constants, begun, strict=True)]


# ---- a recurrence whose factors and constants are stored


def affine_states(
    cell: Cell,
    solved: AffineRecurrence,
    params: Params,
    steps: Steps,
    xs: Any,
    per_step: StepMarks,
    carry: Carry,
) -> tuple[Carry, jax.Array]:
    """The last state and the outputs, from the factors and constants of every step."""
    projected = cell.biased(cell.multiplied(params, xs, cell.dtype), params, "bias")
    nothing = jax.tree.map(lambda s: jnp.zeros((xs.shape[0], *s.shape), s.dtype), carry)
    # What `update` is given is one step.
    apply_update = jax.vmap(functools.partial(cell.apply_update, params))
    constants, factors = affine(lambda c: apply_update(projected, c)[0], nothing)
    start, tree = jax.tree.flatten(carry)

    def step(before: Carry) -> Carry:
        """A step with its marks, all of which are affine too."""
        begun = steps.reset(before, per_step)
        new = [
            total.astype(b.dtype)
            for total, b in zip(
                plus(constants, times(factors, jax.tree.leaves(begun))), start, strict=True
            )
        ]
        return steps.mask(begun, jax.tree.unflatten(tree, new), new[0], per_step, None)[0]

    states, first, ends = solved(*affine(step, nothing), start, per_step.resets)
    if cell.output is not None:
        ys = getattr(jax.tree.unflatten(tree, states), cell.output)
        ys = ys if cell.dtype is None else ys.astype(cell.dtype)
    else:
        before = [shift(h).at[0].set(s) for h, s in zip(states, first, strict=True)]
        begun = steps.reset(jax.tree.unflatten(tree, before), per_step)
        ys = apply_update(projected, begun)[1]
    return jax.tree.unflatten(tree, ends), zero_masked(ys, per_step.valid)
