"""What cells with a matrix memory for each head have in common."""

import abc
import dataclasses
import itertools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from rnnjax.cells.activations import Initializer
from rnnjax.cells.arguments import check_size
from rnnjax.cells.base import CarryT, Cell, Param, Role
from rnnjax.cells.matrix import MatrixCarry
from rnnjax.errors import InvalidInputError


def check_heads(cell: Any) -> None:
    """Raise unless the heads divide the hidden size, and their keys have a size.

    Raises:
        InvalidInputError: they do not.
    """
    check_size("heads", cell.heads)
    if cell.hidden_size % cell.heads:
        raise InvalidInputError(
            f"heads must divide the hidden_size of {cell.hidden_size}, but are {cell.heads}"
        )
    if getattr(cell, "key_size", None) is not None:
        check_size("key_size", cell.key_size)


@dataclasses.dataclass(frozen=True)
class MatrixCell(Cell[CarryT]):
    """A cell that declares a `memory`, of a matrix for each head.

    Args:
        hidden_size: the number of outputs.
        heads: the number of memories, which divides ``hidden_size``.

    Raises:
        InvalidInputError: ``heads`` do not divide ``hidden_size``, or a size is none.
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
    @abc.abstractmethod
    def keys(self) -> int:
        """The size of each key."""

    @property
    def carry_shapes(self) -> dict[str, tuple[int, ...]]:
        """``memory (heads, hidden_size / heads, keys)``."""
        return {"memory": (self.heads, self.hidden_size // self.heads, self.keys)}


def projections(
    cell: Any, input_size: int, widths: list[int], bias_init: str | Initializer
) -> dict[str, Param]:
    """``kernel`` with so wide parts, and ``bias`` where the cell has one."""
    params = {"kernel": Param((input_size, sum(widths)), cell.kernel_init, Role.INPUT)}
    if cell.use_bias:
        params["bias"] = Param((sum(widths),), bias_init, Role.BIAS)
    return params


def parts(x: jax.Array, widths: list[int]) -> list[jax.Array]:
    """The parts of the last axis, each so wide."""
    return jnp.split(x, list(itertools.accumulate(widths[:-1])), axis=-1)


def in_heads(x: jax.Array, heads: int) -> jax.Array:
    """``(..., heads * size)`` as ``(..., heads, size)``."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


def normalized(x: jax.Array, epsilon: float) -> jax.Array:
    """``x`` over the root of the mean of its squares (Zhang & Sennrich, 2019)."""
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + epsilon)
