"""The plan of a layer: data that the methods follow and `rnnjax.explain` prints."""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
from jax.export import is_symbolic_dim
from jax.typing import DTypeLike

from rnnjax.cells.base import Cell, Params, Role
from rnnjax.cells.declarations import kernels_outside, roles_of
from rnnjax.engine.fused.matmul import Products

# All of these are of two cores of a CPU. With more cores a product of a few steps is a smaller part
# of what they could do at once, so the blocks may be too short there: not tried.
# The system allocates larger projections page by page, which is slow.
_MANY_BYTES = 16 * 10**6
# Up to this many features, a product in the loop is faster than one before it.
_FEW_FEATURES = 16
# From this many rows and units on, products of a few steps are large enough.
_SOME_ROWS, _SOME_UNITS = 32, 128


@dataclasses.dataclass(frozen=True)
class LayerPlan:
    """How the fast path runs one layer on one platform.

    Attributes:
        products: the forms of the products.
        block: how many steps' inputs are projected at a time if no gradient is taken.
        prefetch: whether the loop without a backward pass prefetches, see `over_time`.
    """

    products: Products
    block: int
    prefetch: bool

    @classmethod
    def of(
        cls,
        cell: Cell,
        params: Params,
        shape: tuple[int, ...],
        dtype: DTypeLike | None,
        platform: str,
    ) -> "LayerPlan":
        """Plan ``cell`` over inputs ``(time, *batch, features)``.

        Args:
            cell: a cell that declares its equation.
            params: its parameters, or their shapes.
            shape: the shape of the inputs.
            dtype: the type of the operands of the products.
            platform: the platform to lower for: ``"cpu"``, ``"tpu"``, ``"cuda"``, ...
        """
        kernel = params[kernels_outside(cell)[-1]]  # of the product that is made at each step
        rows = math.prod(shape[1:-1])
        return cls(
            Products.choose(kernel, rows, dtype, platform),
            _block_of_steps(cell, params["kernel"].shape, rows, shape[0], platform),
            # If several gates are functions of slices, XLA's loop on a CPU is slow without it:
            # ``python -m benchmarks.sequences loops``.
            platform == "cpu" and len(cell.gates) > 1,
        )

    def phrases(self, cell: Cell, num_steps: int) -> list[str]:
        """Describe in short phrases how this many steps run."""
        inputs = f"the inputs of {num_steps} steps"
        if self.block < num_steps:
            inputs += f", or of {self.block} where no gradient is taken,"
        given = self.products.dtype
        operands = "in their own type" if given is None else jnp.dtype(given).name
        lines = [f"projects {inputs} in one product, operands {operands}"]
        if cell.recurrent is not None:
            lines += [
                f"recurrent product at each step: {self.products.forward.value}",
                f"its gradient at each step: {self.products.backward.value}",
            ]
        outside, roles = kernels_outside(cell), roles_of(cell)
        inside = [n for n, role in roles.items() if role is Role.LOOP and n not in outside]
        if inside:
            lines.append(f"multiplies with {', '.join(inside)} in the update")
        lines.append(
            f"the gradient of {', '.join(outside)}: one product over {num_steps} steps each, after "
            "the backward loop"
        )
        after_loop = [n for n, role in roles.items() if role is Role.OUT]
        if after_loop:
            lines.append(
                f"multiplies with {', '.join(after_loop)} after the loop, all steps at once"
            )
        summed = [n for n, role in roles.items() if n in inside or role is Role.UNIT]
        if summed:
            lines.append(f"the gradient of {', '.join(summed)}: summed in the backward loop")
        return lines


def _block_of_steps(
    cell: Cell, kernel: tuple[int, ...], rows: Any, num_steps: Any, platform: str
) -> Any:
    """Return how many steps to project at a time if there is no backward pass."""
    # Other platforms were not measured, and an unknown size chooses nothing.
    if platform != "cpu" or any(map(is_symbolic_dim, (rows, num_steps))):
        return num_steps
    *features, width = kernel
    # A product of few features takes less than to write its result and read it again. One feature
    # is no product, and a single gate reads it once.
    if len(features) == 1 and 1 < features[0] <= _FEW_FEATURES and len(cell.gates) > 1:
        return 1
    units = max(size for shape in cell.carry_shapes.values() for size in shape[-1:])
    if rows >= _SOME_ROWS and units >= _SOME_UNITS:
        # A product of 320 rows, ten steps of 32, is near the speed of a large one. What it writes
        # for few steps may still be in the cache when the loop reads it.
        counts = range(10, 20)
    elif 4 * num_steps * rows * width > _MANY_BYTES:
        counts = range(100, 49, -1)
    else:
        return num_steps
    # A divisor of the steps: a rest would be a second loop, which takes as long to compile.
    return next((k for k in counts if num_steps % k == 0), num_steps)
