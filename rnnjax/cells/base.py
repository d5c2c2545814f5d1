"""The contract of a cell: what one time step computes, apart from how it is run over time."""

import abc
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rnnjax.cells.onehot import OneHot

Params = Any
"""A pytree of arrays; for a single cell a dict such as ``{"kernel": ..., "bias": ...}``."""

Carry = Any
"""A pytree of arrays; for a single cell a NamedTuple such as ``LSTMCarry(hidden, cell)``."""

Inputs = jax.Array | OneHot
"""An array whose last axis are the features, or one-hot vectors given as their ids."""


class Cell(abc.ABC):
    """What one time step of a recurrent network computes, as pure functions.

    A cell is a frozen dataclass of hyperparameters. It owns no arrays and remembers nothing:
    parameters come from `init`, state from `initial_carry`, and both are passed to `step`
    explicitly. Because it is hashable it is static under ``jit``, and a cell that is built again
    from the same hyperparameters hits ``jit``'s cache.

    Every leaf of a carry begins with the axes of the batch.
    """

    @property
    @abc.abstractmethod
    def output_size(self) -> int:
        """The size of the last axis of ``y``."""

    @abc.abstractmethod
    def init(self, key: jax.Array, input_size: int) -> Params:
        """Draw the parameters for inputs with ``input_size`` features."""

    @abc.abstractmethod
    def initial_carry(
        self, batch_shape: tuple[int, ...] = (), dtype: DTypeLike | None = None
    ) -> Carry:
        """Return the state with which a sequence begins: zeros, unless the cell says otherwise."""

    @abc.abstractmethod
    def step(self, params: Params, carry: Carry, x: Inputs) -> tuple[Carry, jax.Array]:
        """Run one time step: ``x`` is ``(*batch, input_size)``, ``y`` ``(*batch, output_size)``."""

    def start(
        self, params: Params, batch_shape: tuple[int, ...] = (), dtype: DTypeLike | None = None
    ) -> Carry:
        """The state with which a sequence begins, where parameters may have a say in it.

        `rnnjax.unroll` begins with it where it is given no carry, and again at each reset. It is
        `initial_carry`, but for a layer that learns it: `rnnjax.LearnedCarry`.
        """
        return self.initial_carry(batch_shape, dtype)

    @property
    def splits(self) -> bool:
        """Whether `step` is also given in pieces, as a `ProjectedCell` has them.

        Every method but the plain scan needs to know these pieces apart.
        """
        return False


def at_least_float32(dtype: DTypeLike) -> jnp.dtype[Any]:
    """The type itself, or float32 if the type is narrower: sums and states are kept in it."""
    return jnp.promote_types(dtype, jnp.float32)
