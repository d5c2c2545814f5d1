"""An affine recurrence from the factors and constants of every step, written down."""

from typing import Any

import jax
import jax.numpy as jnp

from rnnjax.cells.base import Carry, Cell, Params
from rnnjax.cells.products import product
from rnnjax.engine.affine import Solved, affine, later
from rnnjax.engine.pieces import plus, times
from rnnjax.engine.steps import AtStep, Steps, zero_masked


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
    projected = cell.biased(product(xs, params["kernel"], cell.dtype), params, "bias")
    nothing = jax.tree.map(lambda s: jnp.zeros((xs.shape[0], *s.shape), s.dtype), carry)
    constants, factors = affine(lambda c: cell.advance(params, projected, c)[0], nothing)
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

    states, first, ends = solved(*affine(step, nothing), start, each.resets)
    if cell.output is not None:
        ys = getattr(jax.tree.unflatten(tree, states), cell.output)
        ys = ys if cell.dtype is None else ys.astype(cell.dtype)
    else:
        before = [later(h).at[0].set(s) for h, s in zip(states, first, strict=True)]
        begun = steps.begin(jax.tree.unflatten(tree, before), each)
        ys = cell.advance(params, projected, begun)[1]
    return jax.tree.unflatten(tree, ends), zero_masked(ys, each.valid)
