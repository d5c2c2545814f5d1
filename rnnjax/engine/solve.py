"""An affine recurrence from the factors and constants of every step, written down."""

from typing import Any

import jax
import jax.numpy as jnp

from rnnjax.cells.base import Carry, Cell, Params
from rnnjax.cells.products import product
from rnnjax.engine.affine import Solved, affine, later
from rnnjax.engine.pieces import plus, times
from rnnjax.engine.readout import Cut
from rnnjax.engine.steps import AtStep, Steps, expand


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
