"""The plain reference: `lax.scan` over the cell's step, differentiated by JAX."""

import dataclasses
from typing import Any

import jax

from rnnjax.cells.base import Carry, Cell, Params
from rnnjax.cells.products import at_least_float32
from rnnjax.checks import is_floating
from rnnjax.engine.core.masking import StepMarks, Steps
from rnnjax.engine.core.method import Method


@dataclasses.dataclass(frozen=True, repr=False)
class Scan(Method):
    """Run ``cell.step`` once per time step: the reference for every other method.

    It runs every cell under every transformation of JAX: ``grad`` to any order, ``jvp``, ``vmap``.
    Gradients of parameters are summed over time in float32 at least, whatever their type.
    """

    def refusal(self, cell: Cell) -> str | None:
        """Return None: the scan runs every cell."""
        return None

    def run(
        self, cell: Cell, params: Params, xs: Any, carry: Carry, reverse: bool, steps: Steps
    ) -> tuple[Carry, jax.Array]:
        """Run ``cell`` over ``xs (time, *batch, features)``."""
        shared = params, steps.start
        # A loop sums the gradients of shared arrays in the type that they have outside the step. In
        # bfloat16 such a sum stops growing after some 256 steps.
        wide = jax.tree.map(_widened, shared)

        def step(carry: Carry, inputs: tuple[Any, StepMarks]) -> tuple[Carry, jax.Array]:
            x, at = inputs
            params, start = jax.tree.map(_as_before, wide, shared)
            return steps._replace(start=start).run(cell, params, carry, x, at)

        if xs.shape[0] == 1:  # a loop of one step only costs compilation
            carry, y = step(carry, jax.tree.map(lambda leaf: leaf[0], (xs, steps.per_step)))
            return carry, y[None]
        return jax.lax.scan(step, carry, (xs, steps.per_step), reverse=reverse)

    def explain(
        self, cell: Cell, params: Params, shape: tuple[int, ...], platform: str
    ) -> list[str]:
        """Say that the steps run one by one, whatever the cell and the shape."""
        if shape[0] == 1:
            return ["one step of the cell, without a loop"]
        return ["the cell's step at each time step, differentiated by JAX"]


def _widened(leaf: Any) -> Any:
    sums = hasattr(leaf, "dtype") and is_floating(leaf.dtype)
    return leaf.astype(at_least_float32(leaf.dtype)) if sums else leaf


def _as_before(wide: Any, leaf: Any) -> Any:
    # The cast inside of the step rounds nothing: the value came from the narrow type. But its
    # transpose widens each step's gradient before the loop adds it up.
    return wide if wide is leaf else wide.astype(leaf.dtype)
