"""Affine recurrences: factors, constants, and the states of all steps."""

import dataclasses
import functools
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp

from rnnjax.cells.base import Carry, Cell, Params
from rnnjax.cells.step import apply_update, multiplied, update_input
from rnnjax.checks import brief
from rnnjax.engine.core.custom_primitive import Function, equations, traced
from rnnjax.engine.core.masking import Steps, without, zero_masked
from rnnjax.errors import InvalidInputError
from rnnjax.meshes import LOCAL, MeshAxis

Leaves = list[jax.Array]
Factors = list[Leaves]
"""``factors[i][j]`` times leaf ``j`` of the old state adds to leaf ``i`` of the new one."""

Element = tuple[Factors, Leaves, jax.Array | None]
"""Several steps as one: factors, constants, and where a reset drops the state before them."""


def times(factors: Factors, state: Leaves) -> Leaves:
    """Multiply each unit's state by its matrix of factors."""
    return [functools.reduce(jnp.add, map(jnp.multiply, row, state)) for row in factors]


def transposed(factors: Factors) -> Factors:
    """Transpose each unit's matrix of factors."""
    return [list(column) for column in zip(*factors, strict=True)]


def plus(one: Leaves, other: Leaves) -> Leaves:
    """Add two states leaf by leaf."""
    return [a + b for a, b in zip(one, other, strict=True)]


def like(leaves: Leaves, others: Leaves) -> Leaves:
    """Cast each leaf to the type of its counterpart."""
    return [leaf.astype(other.dtype) for leaf, other in zip(leaves, others, strict=True)]


def shift(values: jax.Array) -> jax.Array:
    """Shift each step's value to the next step; zeros at the first."""
    return jnp.concatenate([jnp.zeros_like(values[:1]), values[:-1]])


def apply(element: Element, state: Leaves) -> Leaves:
    """Apply the steps of an element to a state."""
    factors, constants, resets = element
    return plus(like(times(factors, without(resets, state)), constants), constants)


def compose(one: Element, other: Element) -> Element:
    """Compose two elements, in running order, to one."""
    # A2 (A1 s + b1) + b2 = (A2 A1) s + (A2 b1 + b2): affine maps are closed under composition, and
    # composition is associative, which is all that a prefix sum asks for. A reset in the second
    # part sets A1 and b1 to zero, as nothing of the state before it is left: before the product,
    # since an infinite factor times zero would be NaN.
    first, constants = without(other[2], one[:2])
    factors = transposed([times(other[0], column) for column in transposed(first)])
    earlier, resets = one[2], other[2]
    both = None if earlier is None or resets is None else earlier | resets
    return factors, apply((other[0], other[1], None), constants), both


def states_of(platform: str, element: Element, start: Leaves, reverse: bool = False) -> Leaves:
    """Compute the states after all steps, whose elements lie along the first axis.

    On a CPU it is a loop, which is faster there than any parallel form:
    ``python -m benchmarks.sequences recurrences``. Elsewhere it is a parallel prefix sum.
    """
    if platform == "cpu":

        def step(state: Leaves, at: Element) -> tuple[Leaves, Leaves]:
            new = apply(at, state)
            return new, new

        return jax.lax.scan(step, start, element, reverse=reverse)[1]
    prefixes = jax.lax.associative_scan(compose, element, reverse=reverse)
    start = [jnp.broadcast_to(s, c.shape) for s, c in zip(start, element[1], strict=True)]
    return apply(prefixes, start)


def cotangents_of(
    platform: str, factors: Factors, d_states: Leaves, resets: Any, d_last: Leaves
) -> tuple[Leaves, Leaves]:
    """Compute the cotangents of all states, and of the state before the first step.

    Args:
        platform: the platform that the program is lowered for.
        factors: the factors of the recurrence.
        d_states: the cotangents of the states as outputs.
        resets: the resets of the recurrence.
        d_last: the cotangent of the last state from later steps.
    """
    if platform == "cpu":

        def step(entering: Leaves, at: Element) -> tuple[Leaves, Leaves]:
            factors, d, resets = at
            total = plus(like(entering, d), d)
            return without(resets, like(times(factors, total), entering)), total

        element = transposed(factors), d_states, resets
        left, totals = jax.lax.scan(step, d_last, element, reverse=True)
        return totals, left
    # With e_t the cotangent of state t from later steps, the total is g_t = e_t + d_t. `left` is
    # e_(t-1) = A_t^T g_t = A_t^T e_t + A_t^T d_t, an affine recurrence from the end.
    left = states_of(platform, back_element(factors, d_states, resets), d_last, reverse=True)
    entering = [jnp.concatenate([h[1:], e[None]]) for h, e in zip(left, d_last, strict=True)]
    return plus(entering, d_states), [h[0] for h in left]


def back_element(factors: Factors, d_states: Leaves, resets: Any) -> Element:
    """Return the element that maps the cotangent after each step to the one before it."""
    back = transposed(factors)
    return *without(resets, (back, times(back, d_states))), resets


def affine(step: Any, at: Any) -> tuple[Leaves, Factors]:
    """Compute the constants and factors of a function that is affine and elementwise."""
    leaves, tree = jax.tree.flatten(at)
    columns: list[Leaves] = []
    new = at
    for j in range(len(leaves)):
        # A unit sees its own state alone, so one tangent of ones in leaf j has, for all units at
        # once, the derivative with respect to their own leaf j: column j of each unit's matrix.
        ones = [jnp.full_like(leaf, float(i == j)) for i, leaf in enumerate(leaves)]
        new, column = jax.jvp(step, (at,), (jax.tree.unflatten(tree, ones),))
        columns.append(jax.tree.leaves(column))
    return jax.tree.leaves(new), transposed(columns)


@dataclasses.dataclass(frozen=True)
class AffineRecurrence(Function):
    """The states of ``s_t = A_t s_(t-1) + b_t``.

    The arguments are the constants, the factors, the state before the first step and the resets.
    The results are the states, the state before this device's steps, and the last state of all.

    Args:
        along: the mesh axis over which the steps are sharded.
        reverse: whether the last device has the first steps.
    """

    along: MeshAxis = LOCAL
    reverse: bool = False

    def may_cross(self, axis: Any) -> bool:
        """Return whether the steps are sharded over this axis."""
        return axis == self.along.name

    def plain(self, *args: Any) -> Any:
        """Run as a loop that JAX can differentiate to any order."""
        return self.run("cpu", *args)

    def run(
        self, platform: str, constants: Leaves, factors: Factors, start: Leaves, resets: Any
    ) -> Any:
        """Compute the states of all steps, without residuals."""
        element = factors, constants, resets
        before, last = self._over_devices(element, start, self.reverse)
        states = states_of(platform, element, before)
        return states, before, [h[-1] for h in states] if last is None else last

    def forward(self, platform: str, *args: Any) -> tuple[Any, Any]:
        """Compute the states, which are the only residuals."""
        out = self.run(platform, *args)
        return out, out[:2]

    def backward(self, platform: str, args: Any, saved: Any, d: Any, needs_grad: Any) -> Any:
        """Compute the cotangent of each state, and from it the gradients of each step."""
        (_, factors, _, resets), (states, before), (d_states, d_before, d_last) = args, saved, d
        entering, d_start = d_last, None
        if self.along.name is not None:
            back, constants, dropped = back_element(factors, d_states, resets)
            # The state before this device's steps is a result too. Its cotangent is added to what
            # leaves the first of them backwards, as a constant of that step.
            constants = [c.at[0].add(b) for c, b in zip(constants, d_before, strict=True)]
            element = back, constants, dropped
            entering, d_start = self._over_devices(element, d_last, not self.reverse, True)
        totals, left = cotangents_of(platform, factors, d_states, resets, entering)
        if d_start is None:
            d_start = plus(left, d_before)
        else:
            d_start = self.along.only_first(d_start, self.reverse)
        # g_t is the gradient of b_t, and for each unit the outer product g_t s_(t-1)^T that of A_t.
        before = [shift(h).at[0].set(s) for h, s in zip(states, before, strict=True)]
        d_factors = [[(g * h).astype(a.dtype)
                      for h, a in zip(without(resets, before), row, strict=True)]
                     for g, row in zip(totals, factors, strict=True)]  # fmt: skip
        return totals, d_factors, d_start, jax.tree.map(lambda _: None, resets)

    def _over_devices(
        self, element: Element, start: Leaves, reverse: bool, backwards: bool = False
    ) -> tuple[Leaves, Leaves | None]:
        """Return the state before this device's steps and the last state; None on one device.

        Each device sends one element to all others: the composition of its steps.
        """
        if self.along.name is None:
            return start, None
        prefixes = jax.lax.associative_scan(compose, element, reverse=backwards)
        whole = jax.tree.map(lambda leaf: leaf[0 if backwards else -1], prefixes)
        every, starts = self.along.gathered((whole, start))
        first = [leaf[-1 if reverse else 0] for leaf in starts]

        def step(state: Leaves, at: Element) -> tuple[Leaves, Leaves]:
            return apply(at, state), state

        # Each device runs this short loop over all devices: no state goes from one to the next.
        last, befores = jax.lax.scan(step, first, every, reverse=reverse)
        return self.along.here(befores), last


def affine_states(
    cell: Cell, params: Params, xs: Any, carry: Carry, steps: Steps, solved: AffineRecurrence
) -> tuple[Carry, jax.Array]:
    """Compute the last state and the outputs from the factors and constants of every step."""
    # The carry is not read: an affine cell has no product of the state (`why_not_affine`).
    projected = update_input(cell, params, multiplied(cell, params, xs, cell.dtype), carry)
    # The constants are the states that follow a state of zeros.
    nothing = jax.tree.map(lambda s: jnp.zeros((xs.shape[0], *s.shape), s.dtype), carry)
    # `update` gets one step.
    updated = jax.vmap(functools.partial(apply_update, cell, params))
    per_step, raw = steps.per_step, steps.per_step.raw

    def new_state(old: Carry) -> Carry:
        return updated(projected, old, raw)[0]

    program, results, _ = traced(lambda: affine(new_state, nothing))
    # JAX's own error comes where it lowers, and names no cell.
    if any(one.primitive.name == "custom_lin" for one in equations(program)):
        raise InvalidInputError(
            f"update of {brief(cell)} must have a derivative forwards, by which its factors are "
            "found, but calls a jax.custom_vjp; write a jax.custom_jvp, or use method=Fused()"
        )
    constants, factors = jax.tree.unflatten(
        jax.tree.structure(results), jax.extend.core.jaxpr_as_fun(program)()
    )
    start, tree = jax.tree.flatten(carry)

    def step(before: Carry) -> Carry:
        """Run a step with its marks, which are affine too."""
        reset = steps.reset(before, per_step)
        new = like(plus(constants, times(factors, jax.tree.leaves(reset))), start)
        return steps.mask(reset, jax.tree.unflatten(tree, new), new[0], per_step, None)[0]

    states, first, ends = solved(*affine(step, nothing), start, per_step.resets)
    if cell.output is not None:
        ys = getattr(jax.tree.unflatten(tree, states), cell.output)
        ys = ys if cell.dtype is None else ys.astype(cell.dtype)
    else:
        before = [shift(h).at[0].set(s) for h, s in zip(states, first, strict=True)]
        reset = steps.reset(jax.tree.unflatten(tree, before), per_step)
        ys = updated(projected, reset, raw)[1]
    return jax.tree.unflatten(tree, ends), zero_masked(ys, per_step.valid)
