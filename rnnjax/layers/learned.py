"""An initial carry that is a learned parameter."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rnnjax.cells.base import CarryT, Cell, Params, PickLast
from rnnjax.cells.composite import CompositeCell, LayerRun, WrappedCell
from rnnjax.checks import brief, number_types
from rnnjax.errors import InvalidInputError


@dataclasses.dataclass(frozen=True)
class LearnedCarry(WrappedCell[CarryT], CompositeCell[CarryT]):
    """A cell whose initial carry is one of its parameters.

    `rnnjax.unroll` begins with it if no carry is given, and at each reset. The parameters are
    ``{"cell": those of the cell, "initial_carry": a carry without batch axes}``. They are
    initialised with the cell's own initial carry, zeros for most cells.

    Args:
        cell: a cell, or a `Stack` or `Bidirectional` of cells.

    Raises:
        InvalidInputError: the argument is not a cell, or its carry may not hold arbitrary numbers:
            counters and random keys are not learned.

    >>> import rnnjax
    >>> cell = LearnedCarry(rnnjax.GRUCell(5))
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> def loss(params):
    ...     return rnnjax.unroll(cell, params, jnp.ones((10, 8, 3)))[1].sum()
    >>> jax.grad(loss)(params)["initial_carry"].hidden.shape
    (5,)
    """

    cell: Cell[CarryT]

    def __post_init__(self) -> None:
        if not isinstance(self.cell, Cell):
            raise InvalidInputError(
                f"LearnedCarry needs a cell such as rnnjax.LSTMCell(50), but got {brief(self.cell)}"
            )
        carry = jax.eval_shape(self.cell.initial_carry)
        # Leaves that depend on each other, as a sum and its stabilizer, would be moved alone by
        # an optimiser, to a state that no sequence reaches.
        for part in jax.tree.leaves(carry, is_leaf=lambda node: hasattr(node, "free")):
            if hasattr(part, "free") or not number_types(part):
                raise InvalidInputError(
                    f"a LearnedCarry may be any floating-point numbers, but {brief(part)} in that "
                    f"of {brief(self.cell)} may not; take another cell"
                )

    def last_output(self, carry: Any, ys: jax.Array, pick: PickLast) -> jax.Array:
        """Return the last output of the cell."""
        return self.cell.last_output(carry, ys, pick)

    @property
    def is_stochastic(self) -> bool:
        """Whether the wrapped cell draws random numbers."""
        return self.cell.is_stochastic

    def init(self, key: jax.Array, input_size: int) -> dict[str, Any]:
        """Initialise the cell's parameters, and the carry with its initial carry."""
        return {"cell": self.cell.init(key, input_size), "initial_carry": self.cell.initial_carry()}

    def start(
        self, params: Params, batch_shape: tuple[int, ...] = (), dtype: DTypeLike | None = None
    ) -> CarryT:
        """Return the learned carry, the same for every row."""
        check_learned(params)
        # One array for all rows: the transpose of a broadcast sums the gradient over them.
        return jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (*batch_shape, *leaf.shape)).astype(
                leaf.dtype if dtype is None else dtype
            ),
            params["initial_carry"],
        )

    def unroll_layers(
        self, run: LayerRun, params: Params, xs: Any, carry: CarryT, key: jax.Array | None
    ) -> tuple[CarryT, jax.Array]:
        """Run the wrapped cell over ``xs``."""
        check_learned(params)
        return run(self.cell, params["cell"], xs, carry, key=key)


def check_learned(params: Any) -> None:
    """Raise unless ``params`` are the parameters of a `LearnedCarry`."""
    if not isinstance(params, Mapping) or set(params) != {"cell", "initial_carry"}:
        raise InvalidInputError(
            "params of a LearnedCarry must be {'cell': those of the cell, 'initial_carry': a carry}"
            f", but are {brief(params)}; of a whole network give its part, or make them with init"
        )
