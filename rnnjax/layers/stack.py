"""Cells on top of each other."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
from jax.typing import DTypeLike

from rnnjax.cells.base import Cell, CompositeCell, Inputs, LayerRun
from rnnjax.errors import InvalidInputError


@dataclasses.dataclass(frozen=True)
class Stack(CompositeCell):
    """Layers of cells; the outputs of each are the inputs of the next.

    A stack is a cell: it has `init`, `initial_carry` and `step`, `rnnjax.unroll` runs it, and it
    can be a layer of another stack. Its parameters and its carry are tuples with one entry a layer.

    Args:
        cells: the layers, from the input up; any iterable of cells, kept as a tuple.

    Raises:
        InvalidInputError: there is no layer, or one of them is not a cell.

    >>> import rnnjax
    >>> stack = Stack([rnnjax.LSTMCell(7), rnnjax.GRUCell(5)])
    >>> params = stack.init(jax.random.key(0), input_size=3)
    >>> carry, ys = rnnjax.unroll(stack, params, jax.numpy.ones((10, 8, 3)))
    >>> ys.shape, [type(entry).__name__ for entry in carry]
    ((10, 8, 5), ['LSTMCarry', 'GRUCarry'])
    """

    cells: Sequence[Cell]

    def __post_init__(self) -> None:
        object.__setattr__(self, "cells", tuple(self.cells))
        if not self.cells:
            raise InvalidInputError("a Stack needs at least one cell, but got none")
        for cell in self.cells:
            if not isinstance(cell, Cell):
                raise InvalidInputError(
                    f"a Stack is made of cells such as rnnjax.LSTMCell(50), but got {cell!r}"
                )

    @property
    def output_size(self) -> int:
        """The output size of the last layer."""
        return self.cells[-1].output_size

    def init(self, key: jax.Array, input_size: int) -> tuple[Any, ...]:
        """Draw the parameters: a tuple, one entry a layer."""
        sizes = [input_size, *(cell.output_size for cell in self.cells)]
        keys = jax.random.split(key, len(self.cells))
        return tuple(
            cell.init(key, size) for cell, key, size in zip(self.cells, keys, sizes, strict=False)
        )

    def initial_carry(
        self, batch_shape: tuple[int, ...] = (), dtype: DTypeLike | None = None
    ) -> tuple[Any, ...]:
        """The layers' initial carries: a tuple, one entry a layer."""
        return tuple(cell.initial_carry(batch_shape, dtype) for cell in self.cells)

    def step(
        self, params: tuple[Any, ...], carry: tuple[Any, ...], x: Inputs
    ) -> tuple[tuple[Any, ...], jax.Array]:
        """Run one time step of every layer: ``x (*batch, input_size)``."""

        def one_step(cell: Cell, params: Any, x: Any, carry: Any) -> tuple[Any, jax.Array]:
            return cell.step(params, carry, x)

        return self.unroll_layers(one_step, params, x, carry)

    def unroll_layers(
        self, run: LayerRun, params: tuple[Any, ...], xs: Any, carry: tuple[Any, ...]
    ) -> tuple[tuple[Any, ...], jax.Array]:
        """Run the layers one after the other, each over the whole of the outputs before it."""
        for name, entries in (("params", params), ("carry", carry)):
            if not isinstance(entries, tuple) or len(entries) != len(self.cells):
                came = f"{len(entries)} entries" if isinstance(entries, tuple) else type(entries)
                raise InvalidInputError(
                    f"{name} of a Stack must be a tuple with an entry for each of its "
                    f"{len(self.cells)} layers, but came with {came}; make it with stack.init or "
                    "stack.initial_carry"
                )
        carries = []
        for cell, layer_params, layer_carry in zip(self.cells, params, carry, strict=True):
            layer_carry, xs = run(cell, layer_params, xs, layer_carry)
            carries.append(layer_carry)
        return tuple(carries), xs
