"""Inputs that are no single array: one-hot vectors as ids, and features beside others.

Such a class is a pytree with ``shape``, ``ndim`` and indices, and without ``dtype``. What a kernel
multiplies has ``rows`` and ``dense``. `as_inputs`, `zero_masked` and `split_raw` alone know which
class it is. All other places ask `is_array`.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.export import register_pytree_node_serialization
from jax.typing import DTypeLike

from rnnjax.checks import check_size
from rnnjax.errors import InvalidInputError
from rnnjax.meshes import as_rows


def is_array(x: Any) -> bool:
    """Whether inputs are an array, or the shape and type of one."""
    return hasattr(x, "dtype")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class OneHot:
    """The input ``jax.nn.one_hot(ids, size)`` of a cell, without the dense vectors.

    `rnnjax.unroll` and ``cell.step`` take it instead of ``xs`` and ``x``. The product with a kernel
    becomes a lookup of its rows, as fast for a vocabulary of 50,000 as for one of 50.

    Args:
        ids: integers, ``(time, *batch)`` for a sequence and ``(*batch,)`` for a step. An id outside
            ``0 .. size - 1`` stands for the zero vector, as in ``jax.nn.one_hot``.
        size: the size of the vectors, which is the cell's ``input_size``.

    Raises:
        InvalidInputError: ``ids`` are not integers, or ``size`` is not a positive integer.

    >>> import rnnjax
    >>> cell = rnnjax.GRUCell(4)
    >>> params = cell.init(jax.random.key(0), input_size=68)
    >>> ids = jnp.array([[5, 0], [67, 5], [1, 2]])
    >>> carry, ys = rnnjax.unroll(cell, params, OneHot(ids, 68))
    >>> _, dense = rnnjax.unroll(cell, params, jax.nn.one_hot(ids, 68))
    >>> ys.shape, bool(jnp.allclose(ys, dense, atol=1e-6))
    ((3, 2, 4), True)
    """

    ids: jax.Array
    size: int = dataclasses.field(metadata={"static": True})

    def __post_init__(self) -> None:
        # JAX rebuilds pytrees with placeholders for leaves, which have no dtype.
        dtype = getattr(self.ids, "dtype", None)
        if dtype is not None and dtype != jax.dtypes.float0 and dtype.kind not in "iu":
            raise InvalidInputError(
                f"ids of OneHot must be integers, but are {dtype}; vectors are given as they are"
            )
        check_size("size of OneHot", self.size)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the vectors, ``(*ids.shape, size)``."""
        return (*self.ids.shape, self.size)

    @property
    def ndim(self) -> int:
        """The number of axes of the vectors."""
        return self.ids.ndim + 1

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator["OneHot"]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: Any) -> "OneHot":
        """The vectors at ``index`` of the leading axes."""
        return OneHot(self.ids[index], self.size)

    def check(self) -> "OneHot":
        """Return self if all ids are in ``0 .. size - 1``; call it outside ``jit``.

        Raises:
            InvalidInputError: an id is out of range, or traced.

        >>> OneHot(jnp.array([0, 4]), 5).check().shape
        (2, 5)
        """
        if isinstance(self.ids, jax.core.Tracer):
            raise InvalidInputError(
                "ids of OneHot can be checked where their values are known, outside of jit; check "
                "the data before"
            )
        ids = np.asarray(self.ids)
        wrong = ids[(ids < 0) | (ids >= self.size)]
        if wrong.size:
            raise InvalidInputError(
                f"ids of OneHot must lie between 0 and {self.size - 1}, but {wrong.size} of "
                f"{ids.size} do not, the first of them {wrong[0]}; their vectors would be zeros"
            )
        return self

    def rows(self, kernel: jax.Array) -> jax.Array:
        """Multiply by ``kernel``: one row per id, zeros for ids out of range."""
        # A negative index would count from the end; on one axis the gradient needs no copy.
        wide = self.wide_ids
        ids = as_rows(jnp.where(wide < 0, self.size, wide), features=0)
        rows = kernel.at[ids].get(mode="fill", fill_value=0)
        return rows.reshape(*self.ids.shape, kernel.shape[1])

    def dense(self, dtype: DTypeLike) -> jax.Array:
        """Return the vectors, for the few places that need each of their numbers."""
        return jax.nn.one_hot(self.wide_ids, self.size, dtype=dtype)

    @property
    def wide_ids(self) -> jax.Array:
        """The ids in a type that has every size, and -1: uint8 would take 261 for 5."""
        return self.ids.astype(jnp.promote_types(self.ids.dtype, jnp.int32))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Beside:
    """Inputs with raw features of their own: the pair ``(xs, raw)`` that `rnnjax.unroll` takes.

    Beside one-hot vectors they make no dense ones, as of event codes and the time between events.

    Args:
        xs: vectors ``(..., features)``, or a `OneHot`.
        raw: ``(..., size)``, the features that a cell's ``raw`` names, in their order.
    """

    xs: Any
    raw: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of both side by side."""
        return (*self.xs.shape[:-1], self.xs.shape[-1] + self.raw.shape[-1])

    @property
    def ndim(self) -> int:
        """The number of axes of both."""
        return self.raw.ndim

    def __getitem__(self, index: Any) -> "Beside":
        """The inputs at ``index`` of the leading axes."""
        return Beside(self.xs[index], self.raw[index])


# The auxiliary data of a dataclass are its static fields, in their order.
register_pytree_node_serialization(
    OneHot,
    serialized_name="rnnjax.OneHot",
    serialize_auxdata=lambda sizes: str(sizes[0]).encode(),
    deserialize_auxdata=lambda size: (int(size),),
)
register_pytree_node_serialization(
    Beside,
    serialized_name="rnnjax.Beside",
    serialize_auxdata=lambda _: b"",
    deserialize_auxdata=lambda _: (),
)
