"""Arrays to batches for `fit`: their rows in a new order every epoch."""

import dataclasses
from typing import Any

import jax
import numpy as np

from rnnjax.cells.arguments import is_integer
from rnnjax.errors import InvalidInputError
from rnnjax.training.sharding import Sharding, cores_for


@dataclasses.dataclass(frozen=True, eq=False)
class Minibatches:
    """What `minibatches` returns: a function from the number of an epoch to its batches.

    Attributes:
        arrays: a pytree of arrays.
        batch_size: rows of a batch.
        seed: of the orders.
        axis: that of the rows, in ``arrays`` and in a batch.
    """

    arrays: Any
    batch_size: int
    seed: int
    axis: int

    def over_cores(self, params: Any) -> Sharding | None:
        """How batches lie over the cores of the CPU; None where dividing them does not pay."""
        cores = cores_for(params, self.batch_size)
        return None if cores == 1 else Sharding.over(cores, rows_axis=1 + self.axis)

    def __call__(self, epoch: int) -> Any:
        """The batches of an epoch: each leaf with a first axis of steps."""
        axis, size = self.axis, self.batch_size
        rows = np.shape(jax.tree.leaves(self.arrays)[0])[axis]
        order = np.random.default_rng((self.seed, epoch)).permutation(rows)
        order = order[: rows // size * size].reshape(-1, size)
        return jax.tree.map(
            lambda x: np.moveaxis(np.take(np.asarray(x), order, axis), axis, 0), self.arrays
        )


def minibatches(arrays: Any, batch_size: int, *, seed: int = 0, axis: int = 0) -> Minibatches:
    """The rows of arrays in a new order every epoch, in batches, for `fit`.

    Args:
        arrays: a pytree of arrays with as many rows.
        batch_size: rows of a batch; those left over of an epoch are left out, others each time.
        seed: of the orders.
        axis: that of the rows: 1 for arrays with time first.

    Returns:
        a function from the number of an epoch to the tree, each leaf with a first axis of steps.

    Raises:
        InvalidInputError: the arrays differ in their rows, or have too few.

    >>> batches = minibatches({"xs": np.arange(12).reshape(2, 6)}, 3, axis=1)
    >>> batches(0)["xs"].shape, sorted(batches(1)["xs"][:, 0].ravel().tolist())
    ((2, 2, 3), [0, 1, 2, 3, 4, 5])
    """
    for name, value, least in (("batch_size", batch_size, 1), ("axis", axis, 0), ("seed", seed, 0)):
        if not is_integer(value) or value < least:
            raise InvalidInputError(
                f"{name} must be a whole number from {least} up, but is {value!r}; pass {least} or "
                "more"
            )
    leaves = jax.tree.leaves(arrays)
    rows = sorted({np.shape(leaf)[axis] if np.ndim(leaf) > axis else 0 for leaf in leaves})
    if len(rows) != 1 or batch_size > rows[0]:
        raise InvalidInputError(
            f"arrays must have the same number of rows along axis {axis}, at least a batch of "
            f"{batch_size}, but have {rows}; give all the same number, or make the batch smaller"
        )
    return Minibatches(arrays, batch_size, seed, axis)
