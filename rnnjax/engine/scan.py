"""The plain reference: `lax.scan` over the cell's step, differentiated by JAX."""

import dataclasses
import functools
from typing import Any

import jax

from rnnjax.cells.base import Carry, Cell, Params
from rnnjax.engine.method import Method
from rnnjax.engine.primitive import Function
from rnnjax.engine.steps import AtStep, Steps, any_of, row_axes, stepped, where_reached


@dataclasses.dataclass(frozen=True)
class Scan(Method):
    """Run ``cell.step`` once per time step; every other method is held to its numbers.

    It serves every cell and every transformation of JAX: ``grad`` to any order, ``jvp``, ``vmap``.
    JAX sums the gradients of parameters in their type: in bfloat16 such a sum stands still after
    some 256 steps, where that of `rnnjax.Fused`, in float32, goes on.
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

        def step(carry: Carry, inputs: tuple[Any, AtStep]) -> tuple[Carry, jax.Array]:
            x, at = inputs
            own = _CutStep(cell, row_axes(cell, x)) if cuts else None
            return steps.run(cell, params, carry, x, at, own)

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


@dataclasses.dataclass(frozen=True)
class _CutStep(Function):
    """A step of a sequence with masks or resets: what these cut off cannot spoil a gradient.

    A row that no cotangent comes back to would give the weights zero times whatever its inputs or
    its state are, which is no zero where these are infinite or no numbers.
    """

    cell: Cell
    rows: int

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
