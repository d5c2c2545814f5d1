"""What stands behind the loop, for all steps at once, and functions whose rows can be cut off."""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rnnjax.cells.base import Cell, Params
from rnnjax.engine.primitive import Function
from rnnjax.engine.steps import AtStep, any_of, expand, row_axes, where_reached


@dataclasses.dataclass(frozen=True)
class Cut(Function):
    """A function of parameters and of rows that know nothing of each other.

    A row that no cotangent comes back to would give the parameters zero times whatever stands in
    it, which is no zero where that is infinite or no number: the backward pass takes the function
    again, and there such rows begin from zeros.
    """

    cell: Cell
    rows: int
    axis: ClassVar[int | None] = 0
    """The first axis of the carry's rows; None where it has none."""

    def run(self, platform: str, *args: Any) -> Any:
        """The same on all platforms."""
        return self.plain(*args)

    def forward(self, platform: str, *args: Any) -> tuple[Any, Any]:
        """Nothing is kept."""
        return self.plain(*args), ()

    def backward(self, platform: str, args: Any, kept: Any, d: Any, wanted: Any) -> Any:
        """JAX's derivative, from cleaned arguments."""
        params, xs, carry = args
        clean = functools.partial(where_reached, any_of(d, self.rows))
        xs = jax.tree.map(clean, xs)
        carry = jax.tree.map(functools.partial(clean, axis=self.axis), carry)
        return jax.vjp(self.plain, params, xs, carry)[1](d)


@dataclasses.dataclass(frozen=True)
class _Readout(Cut):
    """``(params, xs, shown) -> ys``."""

    dtype: DTypeLike | None

    def plain(self, params: Params, xs: Any, carry: Any) -> jax.Array:
        """The cell's own at each step; ``carry`` is what its loop emits."""
        return jax.vmap(lambda shown, x: self.cell.read(params, shown, x, self.dtype))(carry, xs)


def read_out(
    cell: Cell,
    params: Params,
    shown: jax.Array,
    xs: Any,
    each: AtStep,
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
    if not cell.reads_out:
        return shown
    readout = _Readout(cell, row_axes(cell, xs), dtype)
    if each.valid is None and each.resets is None:
        return readout.plain(params, xs, shown)
    ys: jax.Array = readout(params, xs, shown)
    return ys if each.valid is None else jnp.where(expand(each.valid, ys), ys, 0)
