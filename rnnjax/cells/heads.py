"""The base class of cells with one matrix memory per head."""

import dataclasses
import itertools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from rnnjax.cells.base import CarryT, Cell, declared
from rnnjax.cells.matrix import MatrixCarry
from rnnjax.checks import check_size
from rnnjax.errors import InvalidInputError


def check_heads(cell: Any) -> None:
    """Raise unless the heads divide the hidden size."""
    check_size("heads", cell.heads)
    if cell.hidden_size % cell.heads:
        raise InvalidInputError(
            f"heads must divide the hidden_size of {cell.hidden_size}, but are {cell.heads}"
        )


@dataclasses.dataclass(frozen=True)
class MatrixCell(Cell[CarryT]):
    """A cell that declares a `memory` with one matrix per head.

    Args:
        hidden_size: the number of outputs.
        heads: the number of memories, which divides ``hidden_size``.

    Raises:
        InvalidInputError: ``heads`` do not divide ``hidden_size``, or a size is not positive.
    """

    hidden_size: int
    _: dataclasses.KW_ONLY
    heads: int = 1

    carry: ClassVar[Any] = MatrixCarry
    recurrent = None
    output = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_heads(self)

    @property
    def keys(self) -> int:
        """The size of each key: ``key_size``, or by default the size of a value."""
        size: int | None = getattr(self, "key_size", None)
        return self.hidden_size // self.heads if size is None else size

    @property
    def widths(self) -> list[int]:
        """The sizes of the parts of ``x W``: q, k, v, the output gate, and two scalars per head."""
        keys, units = self.heads * self.keys, self.hidden_size
        return [keys, keys, units, units, self.heads, self.heads]

    def parts(self, x: jax.Array) -> list[jax.Array]:
        """Split ``x W`` into parts of these `widths`."""
        return jnp.split(x, list(itertools.accumulate(self.widths[:-1])), axis=-1)

    @declared
    def carry_shapes(self) -> dict[str, tuple[int, ...]]:
        """``memory (heads, hidden_size / heads, keys)``."""
        return {"memory": (self.heads, self.hidden_size // self.heads, self.keys)}


def in_heads(x: jax.Array, heads: int) -> jax.Array:
    """``(..., heads * size)`` as ``(..., heads, size)``."""
    # The last size is spelled out, because JAX infers no -1 for a batch of no rows.
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)
