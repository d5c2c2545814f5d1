"""The plain reference: `lax.scan` over the cell's step, differentiated by JAX."""

import dataclasses
import functools
from typing import Any

import jax

from rnnjax.cells.arguments import brief, is_floating
from rnnjax.cells.base import Carry, Cell, Params
from rnnjax.cells.products import at_least_float32
from rnnjax.engine.method import Method
from rnnjax.engine.primitive import Function
from rnnjax.engine.steps import AtStep, Steps, any_of, row_axes, stepped, where_reached


@dataclasses.dataclass(frozen=True, repr=False)
class Scan(Method):
    """Run ``cell.step`` once per time step; every other method is held to its numbers.

    It serves every cell and every transformation of JAX: ``grad`` to any order, ``jvp``, ``vmap``.
    The gradients of parameters are summed over time in float32 at least, whatever their type.
    """

    def refusal(self, cell: Cell) -> str | None:
        """Nothing is refused."""
        return None

    def run(
        self, cell: Cell, params: Params, xs: Any, carry: Carry, reverse: bool, steps: Steps
    ) -> tuple[Carry, jax.Array]:
        """Run ``cell`` over ``xs (time, *batch, features)``."""
        # Without marks nothing is cut off, and JAX differentiates the step as it is.
        cuts = steps.each.valid is not None or steps.each.resets is not None
        shared = params, steps.start
        # A loop sums the gradients of what all its steps share in the type that it has outside of
        # the step: in bfloat16 such a sum stands still after some 256 steps.
        wide = jax.tree.map(_widened, shared)

        def step(carry: Carry, inputs: tuple[Any, AtStep]) -> tuple[Carry, jax.Array]:
            x, at = inputs
            own = _CutStep(cell, row_axes(cell, x)) if cuts else None
            params, start = jax.tree.map(_as_before, wide, shared)
            return steps._replace(start=start).run(cell, params, carry, x, at, own)

        if xs.shape[0] == 1:  # a loop of one step only costs compilation
            carry, y = step(carry, jax.tree.map(lambda leaf: leaf[0], (xs, steps.each)))
            return carry, y[None]
        return jax.lax.scan(step, carry, (xs, steps.each), reverse=reverse)

    def explain(
        self, cell: Cell, params: Params, shape: tuple[int, ...], platform: str
    ) -> list[str]:
        """The same for every cell and shape."""
        if shape[0] == 1:
            return ["one step of the cell, without a loop"]
        return ["the cell's step at each time step, differentiated by JAX"]


def _widened(leaf: Any) -> Any:
    sums = hasattr(leaf, "dtype") and is_floating(leaf.dtype)
    return leaf.astype(at_least_float32(leaf.dtype)) if sums else leaf


def _as_before(wide: Any, leaf: Any) -> Any:
    return wide if wide is leaf else wide.astype(leaf.dtype)


@dataclasses.dataclass(frozen=True)
class _CutStep(Function):
    """A step of a sequence with masks or resets: what these cut off cannot spoil a gradient.

    A row that no cotangent comes back to would give the weights zero times whatever its inputs or
    its state are, which is no zero where these are infinite or no numbers.
    """

    cell: Cell
    rows: int

    def refused(self, what: str) -> str:
        """Of the cell's step: rows that see each other cannot be cut off one by one."""
        return (
            f"the step of {brief(self.cell)} has {what}, and so no rows can be cut out of it by "
            "lengths, mask or resets; leave these out, or the other"
        )

    def plain(self, params: Params, carry: Carry, x: Any, recurrent: Any) -> Any:
        """The step itself."""
        return stepped(self.cell, params, carry, x, recurrent)

    def run(self, platform: str, *args: Any) -> Any:
        """The same on all platforms."""
        return self.plain(*args)

    def forward(self, platform: str, *args: Any) -> tuple[Any, Any]:
        """Nothing is kept: the backward pass takes the step again, from cleaned arguments."""
        return self.plain(*args), ()

    def backward(self, platform: str, args: Any, kept: Any, d: Any, wanted: Any) -> Any:
        """JAX's derivative, where rows that nothing comes back to start from zeros."""
        params, carry, x, recurrent = args
        clean = functools.partial(where_reached, any_of(d, self.rows))
        carry, x = jax.tree.map(clean, (carry, x))
        return jax.vjp(self.plain, params, carry, x, recurrent)[1](d)
