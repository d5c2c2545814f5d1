"""A layer over a sequence, and one step of it without residuals."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from rnnjax.cells.base import Carry, Cell, Params
from rnnjax.cells.step import apply_update, update_input
from rnnjax.engine.core.masking import StepMarks, Steps
from rnnjax.engine.fused.loops import Loop, over_time
from rnnjax.engine.fused.plan import LayerPlan


class Layer(NamedTuple):
    """A layer over a sequence, for one platform.

    Attributes:
        cell: a cell that declares its equation.
        plan: how it runs.
        reverse: whether it runs from the last step to the first.
        params: its parameters.
        steps: noise and start of sequence; the marks of each step come separately.
        loop: the loop that runs its steps, forward and backward.
    """

    cell: Cell
    plan: LayerPlan
    reverse: bool
    params: Params
    steps: Steps
    loop: Loop = over_time


def update_input_of(layer: Layer) -> Callable[[Carry, jax.Array], Any]:
    """Return ``(carry, projected) -> x``, the argument ``x`` of `update`."""
    cell, plan, _, params, steps, *_ = layer
    # Outside the loop, so that a kernel is cast or copied once and not at each step.
    times = None if cell.recurrent is None else plan.products.times(params["recurrent_kernel"])

    def made(carry: Carry, projected: jax.Array) -> Any:
        return update_input(cell, params, projected, carry, times, steps.drop_state)

    return made


def after(
    cell: Cell, steps: Steps, at: StepMarks, start: Carry, old: Carry, new: Carry, y: jax.Array
) -> tuple[Carry, jax.Array]:
    """Apply masks, noise and resets after the equation: linear in the arrays from ``start`` on."""
    new, y = steps.mask(old, new, y, at, cell.output)
    # Masks, zoneout and resets select, and leaks scale: each result is a sum of the arguments, each
    # times a factor that depends on none of them. So the derivative is the same at every point.
    return steps._replace(start=start).reset(new, at), y


def step_of(layer: Layer) -> Callable[[Carry, jax.Array, StepMarks], tuple[Carry, jax.Array]]:
    """Return ``(carry, projected, at) -> (carry, y)``, a step without residuals."""
    cell, steps = layer.cell, layer.steps
    made, dtype = update_input_of(layer), layer.plan.products.dtype

    def step(carry: Carry, projected: jax.Array, at: StepMarks) -> tuple[Carry, jax.Array]:
        x = made(carry, projected)
        new, y = apply_update(cell, layer.params, x, carry, at.raw, dtype)
        return after(cell, steps, at, steps.start, carry, new, y)

    return step
