"""Cells made of other cells, and how they ask for each of these to be run."""

import abc
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
from jax.typing import DTypeLike

from rnnjax.cells.arguments import brief
from rnnjax.cells.base import Carry, CarryT, Cell, Inputs, Params
from rnnjax.errors import InvalidInputError


class Noise(NamedTuple):
    """What a regulariser changes inside the loop of a cell; all of it is drawn before.

    Attributes:
        recurrent: factors ``(*batch, recurrent_size)`` of the hidden state where it enters the
            recurrent product (recurrent dropout), or None.
        zoneout: by the name of a field of the carry, which of its units keep their old value:
            booleans ``(time, *batch, size)``, or its expectation, the part of the old value that
            stays.
    """

    recurrent: jax.Array | None = None
    zoneout: Mapping[str, Any] = {}

    def __bool__(self) -> bool:
        return self.recurrent is not None or bool(self.zoneout)


_QUIET = Noise()


class LayerRun(Protocol):
    """Runs one layer over a whole sequence, or over one step."""

    def __call__(
        self,
        cell: Cell,
        params: Params,
        xs: Any,
        carry: Carry,
        *,
        key: jax.Array | None = None,
        reverse: bool = False,
        noise: Noise = _QUIET,
    ) -> tuple[Carry, jax.Array]:
        """Run a layer, perhaps a composite itself, and return its carry and outputs.

        Its carry is handed on as it came: the engine may have put more into its leaves than arrays.
        A composite that draws does so with the ``key``, unless it is None; ``reverse`` is against
        the direction of the composite, and ``noise`` for a cell that is none.
        """


class CompositeCell(Cell[CarryT]):
    """A cell made of layers, each of which runs over the whole sequence before the next."""

    @abc.abstractmethod
    def unroll_layers(
        self, run: LayerRun, params: Params, xs: Inputs, carry: CarryT, key: jax.Array | None
    ) -> tuple[CarryT, jax.Array]:
        """Run the layers over ``xs (time, *batch, input_size)``, each of them by calling ``run``.

        The leaves of the carry are handed on as they are. The ``key`` is for what is random in
        training, or None.
        """


class WrappedCell(Cell[CarryT]):
    """A cell around another, whose outputs and carry it has unless it says otherwise."""

    cell: Cell[CarryT]

    @property
    def output_size(self) -> int:
        """That of the cell."""
        return self.cell.output_size

    def initial_carry(
        self, batch_shape: tuple[int, ...] = (), dtype: DTypeLike | None = None
    ) -> CarryT:
        """That of the cell, which does not know the parameters."""
        return self.cell.initial_carry(batch_shape, dtype)


def check_free(what: str, cell: Cell) -> None:
    """Raise unless the carry of ``cell`` may hold any numbers, as ``what`` makes them."""
    carry = jax.eval_shape(cell.initial_carry)
    for part in jax.tree.leaves(carry, is_leaf=lambda node: hasattr(node, "free")):
        if hasattr(part, "free"):
            raise InvalidInputError(
                f"{what} makes any numbers a carry, but of {brief(part)} only "
                f"{', '.join(part.free)} may hold any; begin it from its initial_carry, or take "
                "another cell"
            )


def vector_sizes(what: str, cell: Cell) -> list[int]:
    """The sizes of the leaves of a carry, each of them a vector of each row."""
    shapes = [leaf.shape for leaf in jax.tree.leaves(jax.eval_shape(cell.initial_carry))]
    if any(len(shape) != 1 for shape in shapes):
        raise InvalidInputError(
            f"{what} a carry whose leaves are vectors, but that of {brief(cell)} has leaves of "
            f"shapes {shapes}; take another cell"
        )
    return [size for (size,) in shapes]


SingleRun = Callable[[Cell, Params, Any, Carry, Noise, bool], tuple[Carry, jax.Array]]
"""``(cell, params, xs, carry, noise, reverse) -> (carry, ys)``, of a cell that is no composite."""


def over_layers(single: SingleRun) -> LayerRun:
    """Run a cell, or each layer of a composite, however deep in others, by ``single``."""

    def run(
        cell: Cell,
        params: Params,
        xs: Any,
        carry: Carry,
        *,
        key: jax.Array | None = None,
        reverse: bool = False,
        noise: Noise = _QUIET,
        outer_reverse: bool = False,
    ) -> tuple[Carry, jax.Array]:
        # Inside of a backward direction, forward is against the sequence.
        reverse = reverse != outer_reverse
        if isinstance(cell, CompositeCell):
            inner = functools.partial(run, outer_reverse=reverse)
            return cell.unroll_layers(inner, params, xs, carry, key)
        return single(cell, params, xs, carry, noise, reverse)

    return run
