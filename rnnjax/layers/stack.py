"""Layers of cells, each on the outputs of the one before."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax

from rnnjax.cells.base import Cell, Params, PickLast
from rnnjax.cells.composite import CellGroup, LayerRun, beside
from rnnjax.cells.step import split_raw
from rnnjax.cells.validation import check_init
from rnnjax.checks import brief, check_instance
from rnnjax.errors import InvalidInputError
from rnnjax.layers.dropout import Dropout


@dataclasses.dataclass(frozen=True)
class Stack(CellGroup[tuple[Any, ...]]):
    """Layers of cells; the outputs of each are the inputs of the next.

    A stack is a cell: it has `init`, `initial_carry` and `step`, `rnnjax.unroll` runs it, and it
    can be a layer of another stack. Parameters and carry are tuples with one entry per layer. Raw
    features, such as time gaps, go to every layer that names them, and come last in the inputs.

    Args:
        cells: the layers, first to last: any iterable of cells, stored as a tuple.
        dropout: dropout of the outputs of every layer except the last; `rnnjax.unroll` applies it
            if it is given a key.

    Raises:
        InvalidInputError: there is no layer, or a layer is not a cell.

    >>> import rnnjax
    >>> stack = Stack([rnnjax.LSTMCell(7), rnnjax.GRUCell(5)])
    >>> params = stack.init(jax.random.key(0), input_size=3)
    >>> carry, ys = rnnjax.unroll(stack, params, jax.numpy.ones((10, 8, 3)))
    >>> ys.shape, [type(entry).__name__ for entry in carry]
    ((10, 8, 5), ['LSTMCarry', 'GRUCarry'])
    """

    cells: Sequence[Cell]
    dropout: Dropout = Dropout(0.0)

    def __post_init__(self) -> None:
        if isinstance(self.cells, Cell | type) or not isinstance(self.cells, Iterable):
            raise InvalidInputError(
                f"the cells of a Stack come in a list, Stack([LSTMCell(50), ...]), but "
                f"{brief(self.cells)} came"
            )
        object.__setattr__(self, "cells", tuple(self.cells))
        if not self.cells:
            raise InvalidInputError("a Stack needs at least one cell, but got none")
        self.check_cells()
        check_instance("dropout of a Stack", self.dropout, Dropout, "rnnjax.Dropout(rate)")

    @property
    def output_size(self) -> int:
        """The output size of the last layer."""
        return self.cells[-1].output_size

    def last_output(self, carry: Any, ys: jax.Array, pick: PickLast) -> jax.Array:
        """Return the last output of the last layer."""
        return self.cells[-1].last_output(None if carry is None else carry[-1], ys, pick)

    @property
    def is_stochastic(self) -> bool:
        """Whether there is dropout between layers, or a layer draws random numbers."""
        return self.dropout.rate > 0 or super().is_stochastic

    def init(self, key: jax.Array, input_size: int) -> tuple[Any, ...]:
        """Initialise the parameters: a tuple with one entry per layer."""
        check_init(key, input_size)
        # Raw features are added layer by layer, where they are named: no layer outputs them.
        sizes = [self.size_without_raw(input_size), *(cell.output_size for cell in self.cells)]
        keys = jax.random.split(key, len(self.cells))
        return tuple(
            cell.init(key, size + cell.raw_size)
            for cell, key, size in zip(self.cells, keys, sizes, strict=False)
        )

    def unroll_layers(
        self, run: LayerRun, params: Params, xs: Any, carry: tuple[Any, ...], key: jax.Array | None
    ) -> tuple[tuple[Any, ...], jax.Array]:
        """Run the layers one after the other, each over all outputs of the one before."""
        self.check_entries("params", params)
        self.check_entries("carry", carry)
        carries = []
        xs, raw = split_raw(self, xs)
        for i, cell in enumerate(self.cells):
            # By the layer's number: noise of a layer does not depend on how many follow it.
            inner, between = (
                (None, None) if key is None else jax.random.split(jax.random.fold_in(key, i))
            )
            xs = beside(cell, xs, raw)
            layer_carry, xs = run(cell, params[i], xs, carry[i], key=inner)
            carries.append(layer_carry)
            # Not of the last outputs: what follows a stack drops its own inputs, or does not.
            if i < len(self.cells) - 1:
                xs = self.dropout.apply(between, xs)
        return tuple(carries), xs
