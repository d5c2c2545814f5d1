"""Whether what is computed again and again stands still: to a tolerance, relative to its size."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.cells.arguments import brief
from rnnjax.errors import InvalidInputError

# As many roundings of the type as a step's own sums may differ by from one program to another.
_ROUNDINGS = 16


def check_tolerance(value: Any) -> None:
    """Raise unless a tolerance is a positive number, or None."""
    number = isinstance(value, int | float | np.floating) and not isinstance(value, bool)
    if value is not None and not (number and math.isfinite(value) and value > 0):
        raise InvalidInputError(
            f"tolerance must be a positive number, relative to the largest entry of the state, or "
            f"None for {_ROUNDINGS} roundings of its type, but is {brief(value)}"
        )


def tolerance_of(given: float | None, tree: Any) -> float:
    """The tolerance that was given, or what rounding alone makes in the types of ``tree``.

    >>> tolerance_of(1e-3, jnp.ones(2)), tolerance_of(None, jnp.ones(2)) < 2e-6
    (0.001, True)
    """
    if given is not None:
        return given
    return _ROUNDINGS * max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(tree))


def relative(differences: Any, values: Any) -> jax.Array:
    """The largest difference, leaf by leaf as a part of the largest value; infinite for a NaN.

    >>> print(relative([jnp.array([0.5, 0.0])], [jnp.array([1.0, -2.0])]))
    0.25
    """

    def part(difference: jax.Array, value: jax.Array) -> jax.Array:
        largest, size = (jnp.abs(leaf).max(initial=0) for leaf in (difference, value))
        share = jnp.where(largest == 0, 0, largest / size).astype(jnp.float32)
        # Asked for by itself: the largest of numbers, as XLA:CPU compiles it, can lose a NaN.
        return jnp.where(jnp.isfinite(difference).all(), share, jnp.inf)

    parts = jax.tree.leaves(jax.tree.map(part, differences, values))
    return jnp.stack(parts).max()


def moved(one: Any, other: Any) -> jax.Array:
    """`relative` of what differs between two trees; a NaN or an infinity that stands is still.

    >>> print(moved([jnp.array([jnp.nan, 2.0])], [jnp.array([jnp.nan, 1.0])]))
    1.0
    """

    def difference(a: jax.Array, b: jax.Array) -> jax.Array:
        still = (a == b) | (jnp.isnan(a) & jnp.isnan(b))
        return jnp.where(still, 0, jnp.nan_to_num(jnp.abs(a - b), nan=jnp.inf))

    finite = jax.tree.map(lambda leaf: jnp.where(jnp.isfinite(leaf), leaf, 0), other)
    return relative(jax.tree.map(difference, one, other), finite)
