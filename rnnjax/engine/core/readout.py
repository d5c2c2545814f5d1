"""The readout: outputs after the loop, from what the loop emits."""

from typing import Any

import jax
from jax.typing import DTypeLike

from rnnjax.cells.base import Cell, Params
from rnnjax.engine.core.masking import StepMarks, zero_masked


def read_out(
    cell: Cell,
    params: Params,
    shown: jax.Array,
    xs: Any,
    each: StepMarks,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """The outputs of all steps, from what the loop of a cell shows.

    Args:
        cell: one that declares its equation.
        params: its parameters.
        shown: over time, zeros at masked steps.
        xs: its inputs.
        each: the marks, in the order of ``shown``.
        dtype: of the operands of products, if not the cell's.
    """
    if not cell.has_readout:
        return shown
    ys = jax.vmap(lambda shown, x: cell.read(params, shown, x, dtype))(shown, xs)
    return zero_masked(ys, each.valid)
