"""Arrays to batches for `fit`: their rows in a new order every epoch."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.cells.arguments import brief, check_instance, is_integer
from rnnjax.errors import InvalidInputError
from rnnjax.training.sharding import Sharding, axis_of_each, cores_for


@dataclasses.dataclass(frozen=True, eq=False)
class Minibatches:
    """What `minibatches` returns: a function from the number of an epoch to its batches.

    Attributes:
        arrays: a pytree of arrays.
        batch_size: rows of a batch.
        seed: of the orders.
        axis: that of the rows in each leaf of ``arrays``, and of a batch: a tree like ``arrays``.
        rows: those of every batch that this process reads, as `Sharding.rows`; None: all of them.
    """

    arrays: Any
    batch_size: int
    seed: int
    axis: Any
    rows: np.ndarray | None = None

    def __call__(self, epoch: int) -> Any:
        """The batches of an epoch: each leaf with a first axis of steps."""
        return self.cut(self.order(epoch))

    def order(self, epoch: int) -> np.ndarray:
        """The rows of each batch of an epoch: ``(steps, batch_size)``."""
        leaf, axis = jax.tree.leaves(self.arrays)[0], jax.tree.leaves(self.axis)[0]
        rows, size = np.shape(leaf)[axis], self.batch_size
        order = np.random.default_rng((self.seed, epoch)).permutation(rows)
        order = order[: rows // size * size].reshape(-1, size)
        return order if self.rows is None else order[:, self.rows]

    def cut(self, order: np.ndarray) -> Any:
        """The batches of some steps of an `order`: each leaf with a first axis of steps."""

        def cut(leaf: Any, axis: int) -> Any:
            if jnp.issubdtype(getattr(leaf, "dtype", np.float32), jax.dtypes.prng_key):
                impl = jax.random.key_impl(leaf)
                return jax.random.wrap_key_data(cut(jax.random.key_data(leaf), axis), impl=impl)
            return np.moveaxis(np.take(np.asarray(leaf), order, axis), axis, 0)

        return jax.tree.map(cut, self.arrays, self.axis)

    def split(self, fraction: float) -> tuple["Minibatches", "Minibatches"]:
        """Batches to train with and to validate with: of the first rows, and of the last.

        Args:
            fraction: the part of the rows that is for validation, as Keras's ``validation_split``.

        Raises:
            InvalidInputError: one of the two would have no batch.

        >>> train, valid = minibatches(np.arange(10), 2, axis=0).split(0.2)
        >>> train(0).shape, sorted(valid(0).ravel().tolist())
        ((4, 2), [8, 9])
        """
        rows = np.shape(jax.tree.leaves(self.arrays)[0])[jax.tree.leaves(self.axis)[0]]
        part_of = isinstance(fraction, float) and 0 < fraction < 1
        most = math.floor(rows * (1 - fraction)) if part_of else 0
        if not self.batch_size <= most <= rows - self.batch_size:
            raise InvalidInputError(
                f"fraction must leave a batch of {self.batch_size} of the {rows} rows on both "
                f"sides, but is {fraction!r}; pass 0.2, say, or make the batches smaller"
            )

        def part(rows: slice) -> Minibatches:
            cut = jax.tree.map(
                lambda leaf, axis: leaf[(slice(None),) * axis + (rows,)], self.arrays, self.axis
            )
            return dataclasses.replace(self, arrays=cut)

        return part(slice(most)), part(slice(most, None))


def minibatches(arrays: Any, batch_size: int, *, axis: Any, seed: int = 0) -> Minibatches:
    """The rows of arrays in a new order every epoch, in batches, for `fit`.

    The axis of the rows has to be said, because nothing tells it from that of time: one is drawn
    in a new order, the other must not be.

    Args:
        arrays: a pytree of arrays with as many rows.
        batch_size: rows of a batch; those left over of an epoch are left out, others each time.
        axis: that of the rows: 1 for ``(time, rows, ...)``, as `rnnjax.unroll` takes it, 0 for
            ``(rows, ...)``, as lengths and labels are. One number for all leaves, or a tree prefix
            of ``arrays``, as ``in_axes`` of `jax.vmap`: ``{"xs": 1, "lengths": 0}``.
        seed: of the orders.

    Returns:
        a function from the number of an epoch to the tree, each leaf with a first axis of steps:
        ``(steps, time, rows, ...)`` and ``(steps, rows, ...)``.

    Raises:
        InvalidInputError: the arrays differ in their rows, or have too few; ``axis`` does not fit.

    What `rnnjax.pad` returns, with a label for each row:

    >>> import rnnjax
    >>> padded = rnnjax.pad([np.ones((5, 2)), np.ones((3, 2)), np.ones((4, 2))])
    >>> data = {"xs": padded.xs, "lengths": padded.lengths, "labels": np.array([1, 0, 1])}
    >>> batches = minibatches(data, 3, axis={"xs": 1, "lengths": 0, "labels": 0})
    >>> jax.tree.map(np.shape, batches(0))
    {'labels': (1, 3), 'lengths': (1, 3), 'xs': (1, 8, 3, 2)}
    """
    for name, value, least in (("batch_size", batch_size, 1), ("seed", seed, 0)):
        if not is_integer(value) or value < least:
            raise InvalidInputError(
                f"{name} must be a whole number from {least} up, but is {value!r}; pass {least} or "
                "more"
            )
    axes = axis_of_each("axis", axis, arrays)
    leaves, of_leaves = jax.tree.leaves(arrays), jax.tree.leaves(axes)
    shapes = [np.shape(leaf) for leaf in leaves]
    rows = {(*shape[axis:], 0)[0] for shape, axis in zip(shapes, of_leaves, strict=True)}
    if len(rows) != 1 or batch_size > min(rows):
        raise InvalidInputError(
            f"arrays must have the same number of rows along axis, at least a batch of "
            f"{batch_size}, but have the shapes {shapes} and {sorted(rows)} along {of_leaves}; say "
            'where rows stand in each of them, as axis={"xs": 1, "labels": 0}, or make the batch '
            "smaller"
        )
    return Minibatches(arrays, batch_size, seed, axes)


def divided(
    batches: Any,
    sharding: Sharding | Literal["cores"] | None,
    params: Any,
    say: Callable[[str], None],
) -> tuple[Any, Sharding | None]:
    """What `fit` reads, and how it lies over devices: `Minibatches` are cut where that is settled.

    Raises:
        InvalidInputError: ``sharding`` is none of these, the batches do not say where their rows
            stand though it is "cores", or they cannot be divided.
    """
    if sharding == "cores":
        if not isinstance(batches, Minibatches):
            raise InvalidInputError(
                'batches of sharding="cores" must be those of minibatches, which know their rows, '
                f"but are {brief(batches)}; pass these, or a Sharding with its rows_axis"
            )
        cores = cores_for(params, batches.batch_size)
        if cores == 1:
            say(
                'sharding="cores": training on one device, because JAX has no second core of a '
                "CPU (use_cores, before anything else, shows it them; Sharding.over() takes other "
                f"devices), or a batch of {batches.batch_size} rows would not be faster on more"
            )
        sharding = Sharding.over(cores) if cores > 1 else None
    if sharding is None:
        return batches, None
    check_instance("sharding", sharding, Sharding, 'a Sharding, "cores", or None')
    if isinstance(batches, Minibatches):
        axes = jax.tree.map(lambda axis: 1 + axis, batches.axis)
        sharding = dataclasses.replace(sharding, rows_axis=axes)
        batches = dataclasses.replace(batches, rows=sharding.rows(batches.batch_size))
    return batches, sharding
