"""A layer over a sequence, and one step of it, as the fast path takes it apart."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from rnnjax.cells.base import Carry, Cell, Params
from rnnjax.engine.over_time import Loop, over_time
from rnnjax.engine.plan import LayerPlan
from rnnjax.engine.steps import AtStep, Steps


class Layer(NamedTuple):
    """A layer over a sequence, for one platform.

    Attributes:
        cell: one that declares its equation.
        plan: how it runs.
        reverse: whether it runs from the last step to the first.
        params: its parameters.
        steps: what happens besides the equation, but for what differs between the steps.
        loop: what runs its steps, forward and backward.
    """

    cell: Cell
    plan: LayerPlan
    reverse: bool
    params: Params
    steps: Steps
    loop: Loop = over_time


def inputs_of(layer: Layer) -> Callable[[Carry, jax.Array], Any]:
    """``(carry, projected) -> x``, what `update` reads beside the carry."""
    cell, plan, _, params, steps, _ = layer
    if cell.recurrent is None:
        return lambda carry, projected: cell.biased(projected, params, "bias")
    # Here, outside of the loop, so that a kernel is cast or copied once and not at each step.
    times, leaf = plan.products.times(params["recurrent_kernel"]), cell.recurrent

    def inputs(carry: Carry, projected: jax.Array) -> Any:
        recurrent = times(steps.entering(getattr(carry, leaf)))
        return cell.meet(
            cell.biased(projected, params, "bias"),
            cell.biased(recurrent, params, "recurrent_bias"),
        )

    return inputs


def after(
    cell: Cell, steps: Steps, at: AtStep, start: Carry, old: Carry, new: Carry, y: jax.Array
) -> tuple[Carry, jax.Array]:
    """What happens at a step besides the equation; linear in the arrays from ``start`` on."""
    new, y = steps.end(old, new, y, at, cell.output)
    return steps._replace(start=start).begin(new, at), y


def step_of(layer: Layer) -> Callable[[Carry, jax.Array, AtStep], tuple[Carry, jax.Array]]:
    """``(carry, projected, at) -> (carry, y)``, of which nothing is kept."""
    cell, plan, _, params, steps, _ = layer
    inputs = inputs_of(layer)

    def step(carry: Carry, projected: jax.Array, at: AtStep) -> tuple[Carry, jax.Array]:
        new, y = cell.advance(params, inputs(carry, projected), carry, plan.products.dtype)
        return after(cell, steps, at, steps.start, carry, new, y)

    return step
