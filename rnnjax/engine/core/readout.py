"""The readout: outputs after the loop, from what the loop emits."""

from typing import Any

import jax
from jax.typing import DTypeLike

from rnnjax.cells.base import Cell, Params
from rnnjax.engine.core.masking import StepMarks, zero_masked


def read_out(
    cell: Cell,
    params: Params,
    emitted: jax.Array,
    xs: Any,
    per_step: StepMarks,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Compute the outputs of all steps from what the loop of a cell emits.

    Args:
        cell: a cell that declares its equation.
        params: its parameters.
        emitted: ``(time, *batch, size)``, zeros at masked steps.
        xs: its inputs.
        per_step: the marks, in the order of ``emitted``.
        dtype: the type of the operands of products, if not the cell's.
    """
    if not cell.has_readout:
        return emitted
    ys = jax.vmap(lambda emitted, x: cell.read(params, emitted, x, dtype))(emitted, xs)
    return zero_masked(ys, per_step.valid)
