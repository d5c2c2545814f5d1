"""Newton's method over a whole sequence, for cells whose new state is not affine in the old one.

All steps are linearised at once around a guess of all states, which leaves an affine recurrence for
the correction of the guess. The derivative of a step by the state would be a matrix of all units by
all units; of it only what each unit makes of its own state is taken. The guess is corrected by how
far the cell's own step departs from it, so what does not change any more obeys that step.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from rnnjax.cells.base import Carry, Cell, Params, Role, roles_of
from rnnjax.engine.affine import Solved, affine
from rnnjax.engine.iterations import (
    Newton,
    OwnKernel,
    Solution,
    iterated,
    residual_of,
    tolerance_of,
)
from rnnjax.engine.pieces import Factors, in_pieces
from rnnjax.engine.primitive import Function
from rnnjax.engine.steps import AtStep, Steps


@dataclasses.dataclass(frozen=True)
class AllSteps(Function):
    """``(params, steps, xs, each, carry) -> (carry, ys)``, forward in time.

    Args:
        cell: one that declares its equation.
        newton: when to stop.
        length: of the pieces in which the affine recurrences are solved.
    """

    cell: Cell
    newton: Newton
    length: int

    def refused(self, what: str) -> str:
        """Of the cell's update."""
        return f"all steps cannot run at once where the update has {what}; use method=Scan()"

    def plain(self, params: Params, steps: Steps, xs: Any, each: AtStep, carry: Carry) -> Any:
        """A scan of the step."""
        states, ys = self._one_by_one(params, steps, xs, each, carry)
        return _last(states), ys

    def run(self, platform: str, *args: Any) -> Any:
        """The iterations, and the scan where they do not converge."""
        return self.forward(platform, *args)[0]

    def forward(
        self, platform: str, params: Params, steps: Steps, xs: Any, each: AtStep, carry: Carry
    ) -> Any:
        """The states are all that is kept."""
        found = self.states(params, steps, xs, each, carry)

        def instead() -> Any:
            return self._one_by_one(params, steps, xs, each, carry)

        states, ys = _unless(found.residual <= self._tolerance(carry), found.value, instead)
        return (_last(states), ys), states

    def backward(self, platform: str, args: Any, kept: Any, d: Any, wanted: Any) -> Any:
        """What comes back to each state by the same iterations; the rest is one derivative.

        What comes back obeys the transpose of the step's own derivative, with all its units, for
        which the factors steer again: taken for it alone, they would give a gradient that is wrong
        by a fifth.
        """
        (params, steps, xs, each, carry), (d_last, d_ys) = args, d
        before = _before(carry, kept)
        projected = self.cell.project(params, xs)
        found = self._cotangents(params, steps, projected, each, before, d)

        def step(back: Carry, at: Any) -> tuple[Carry, Carry]:
            """One step backwards."""
            projected, each, before, d_y = at
            _, pull = jax.vjp(
                lambda carry: self._step(params, steps, projected, each, carry), before
            )
            return pull((back, d_y))[0], back

        def instead() -> Carry:
            inputs = projected, each, before, d_ys
            return jax.lax.scan(step, d_last, inputs, reverse=True)[1]

        back = _unless(found.residual <= self._tolerance(carry), found.value, instead)

        def all_steps(params: Params, start: Any, xs: Any, before: Carry) -> Any:
            projected = self.cell.project(params, xs)
            return self._step(params, steps._replace(start=start), projected, each, before)

        _, pull = jax.vjp(all_steps, params, steps.start, xs, before)
        d_params, d_start, d_xs, d_before = pull((back, d_ys))
        nothing = jax.tree.map(lambda _: None, (steps, each))
        d_carry = jax.tree.map(lambda leaf: leaf[0], d_before)
        return d_params, nothing[0]._replace(start=d_start), d_xs, nothing[1], d_carry

    def states(self, params: Params, steps: Steps, xs: Any, each: AtStep, carry: Carry) -> Solution:
        """The states and outputs of all steps, and how they were found."""
        projected = self.cell.project(params, xs)

        def linearised(states: Carry) -> tuple[Carry, Factors]:
            return self._linearised(params, steps, projected, each, _before(carry, states))

        def step(states: Carry) -> tuple[Carry, jax.Array]:
            return self._step(params, steps, projected, each, _before(carry, states))

        def solve(factors: Factors, given: list[jax.Array]) -> list[jax.Array]:
            return in_pieces(factors, given, None, self.length)

        num_steps = projected.shape[0]
        zeros = jax.tree.map(lambda leaf: jnp.zeros((num_steps, *leaf.shape), leaf.dtype), carry)
        # Zeros themselves are a bad place to linearise at: a layer norm is a step there.
        guess = step(zeros)[0]
        found = iterated(self.newton, linearised, solve, lambda states: step(states)[0], guess)
        new, ys = step(found.value)
        return found._replace(value=(new, ys), residual=residual_of(new, found.value))

    def _cotangents(
        self,
        params: Params,
        steps: Steps,
        projected: jax.Array,
        each: AtStep,
        before: Carry,
        d: tuple[Carry, jax.Array],
    ) -> Solution:
        """What comes back to the state behind each step."""
        d_last, d_ys = d
        _, pull = jax.vjp(lambda carry: self._step(params, steps, projected, each, carry), before)
        _, factors = self._linearised(params, steps, projected, each, before)

        def from_behind(back: Carry) -> Carry:
            d_before = pull((back, d_ys))[0]
            return jax.tree.map(lambda d, e: jnp.concatenate([d[1:], e[None]]), d_before, d_last)

        def solve(factors: Factors, given: list[jax.Array]) -> list[jax.Array]:
            return Solved(self.length).backwards(factors, given, None)

        guess = jax.tree.map(jnp.zeros_like, before)
        found = iterated(
            self.newton, lambda back: (from_behind(back), factors), solve, from_behind, guess
        )
        new = from_behind(found.value)
        return found._replace(value=new, residual=residual_of(new, found.value))

    def _tolerance(self, carry: Carry) -> float:
        return tolerance_of(self.newton.tolerance, carry)

    def _step(
        self, params: Params, steps: Steps, projected: jax.Array, each: AtStep, carry: Carry
    ) -> tuple[Carry, jax.Array]:
        """A step with its marks, or all of them at once, each from its own state before."""
        begun = steps.begin(carry, each)
        recurrent = self.cell.recur(params, _entering(self.cell, steps, begun))
        new, y = self.cell.advance(params, self.cell.meet(projected, recurrent), begun)
        return steps.end(begun, new, y, each, self.cell.output)

    def _linearised(
        self, params: Params, steps: Steps, projected: jax.Array, each: AtStep, before: Carry
    ) -> tuple[Carry, Factors]:
        """All new states, and of each unit's the derivative by its own state before."""
        cell, roles, tree = self.cell, roles_of(self.cell), jax.tree.structure(before)
        read = {
            name: OwnKernel(leaf, cell.dtype) if roles.get(name) is Role.LOOP else leaf
            for name, leaf in cell.in_update(params).items()
        }

        def step(carry: Carry) -> Carry:
            begun = steps.begin(carry, each)
            recurrent = None
            if cell.recurrent is not None:
                entering = getattr(_entering(cell, steps, begun), cell.recurrent)
                recurrent = entering @ OwnKernel(params["recurrent_kernel"], cell.dtype)
                recurrent = cell.biased(recurrent, params, "recurrent_bias")
            new = cell.update(read, cell.meet(projected, recurrent), begun)
            new = new[0] if cell.output is None else new
            new = jax.tree.map(lambda leaf, old: leaf.astype(old.dtype), new, begun)
            return steps.end(begun, new, jax.tree.leaves(new)[0], each, None)[0]

        new, factors = affine(step, before)
        return jax.tree.unflatten(tree, new), factors

    def _one_by_one(
        self, params: Params, steps: Steps, xs: Any, each: AtStep, carry: Carry
    ) -> tuple[Carry, jax.Array]:
        """The states and outputs of all steps, each from the one before.

        As `rnnjax.Scan` does it, inputs and all: where weights are chaotic, a rounding is soon a
        number.
        """

        def step(carry: Carry, at: Any) -> Any:
            x, each = at
            new, y = self._step(params, steps, self.cell.project(params, x), each, carry)
            return new, (new, y)

        return jax.lax.scan(step, carry, (xs, each))[1]


def _entering(cell: Cell, steps: Steps, carry: Carry) -> Carry:
    """The carry as the product with the recurrent kernel sees it."""
    if cell.recurrent is None:
        return carry
    return carry._replace(**{cell.recurrent: steps.entering(getattr(carry, cell.recurrent))})


def _before(carry: Carry, states: Carry) -> Carry:
    """The state before each step, from the first and those behind the steps."""
    return jax.tree.map(lambda c, s: jnp.concatenate([c[None], s[:-1]]), carry, states)


def _last(states: Carry) -> Carry:
    return jax.tree.map(lambda leaf: leaf[-1], states)


def _unless(good: jax.Array, found: Any, instead: Any) -> Any:
    """What was found if it is good, and something else instead where it is not.

    A loop of one turn at most: under `jax.vmap` a condition becomes a choice between both, and the
    steps would run one by one in any case; a loop has a turn only if some row needs it.
    """

    def turn(_: Any) -> Any:
        return jnp.ones_like(good), instead()

    return jax.lax.while_loop(lambda at: ~at[0], turn, (good, found))[1]
