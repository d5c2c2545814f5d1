"""Penalties on weights and activity, to be added to a loss."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.cells.arguments import as_array
from rnnjax.cells.products import at_least_float32
from rnnjax.errors import InvalidInputError


def weight_penalty(params: Any, *, l1: float = 0.0, l2: float = 0.0) -> jax.Array:
    r"""``l1 * sum(|w|) + l2 * sum(w ** 2)`` over all leaves, as Keras's ``l1_l2``.

    Give it the part of the parameters that is meant: ``params["recurrent_kernel"]``, say, or the
    kernels alone. (Decoupled weight decay is optax's: ``optax.adamw``.)

    >>> float(weight_penalty({"kernel": jnp.array([3.0, -4.0])}, l1=1.0, l2=0.1))
    9.5
    """
    leaves = [_wide(jnp.asarray(leaf)) for leaf in jax.tree.leaves(params)]
    # JAX's derivative of abs at 0 is 1, which would push weights that are 0 away from it.
    return sum(
        (l1 * (leaf * jnp.sign(leaf)).sum() + l2 * jnp.square(leaf).sum() for leaf in leaves),
        jnp.zeros(()),
    )


def activity_penalty(ys: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
    """The mean of ``ys ** 2``: activation regularisation, AR (Merity, McCann & Socher, 2017).

    Args:
        ys: outputs ``(time, *batch, features)``.
        mask: booleans ``(time, *batch)``; entries where it is False do not count.

    Raises:
        InvalidInputError: ``mask`` are not booleans, or of another shape.

    >>> ys = jnp.array([[[1.0, 3.0]], [[9.0, 9.0]]])
    >>> float(activity_penalty(ys, mask=jnp.array([[True], [False]])))
    5.0
    """
    return _mean_square(ys, _marks("mask", mask, ys))


def slowness_penalty(
    ys: jax.Array, *, mask: jax.Array | None = None, resets: jax.Array | None = None
) -> jax.Array:
    """The mean of ``(ys[t] - ys[t - 1]) ** 2``: temporal activation regularisation, TAR.

    (Merity, McCann & Socher, 2017.)

    Args:
        ys: outputs ``(time, *batch, features)``.
        mask: booleans ``(time, *batch)``; pairs with an entry where it is False do not count.
        resets: booleans ``(time, *batch)``; nor do pairs with a reset between them.

    Raises:
        InvalidInputError: ``mask`` or ``resets`` are not booleans, or of another shape.

    >>> float(slowness_penalty(jnp.array([[[1.0]], [[3.0]], [[4.0]]])))
    2.5
    """
    mask, resets = _marks("mask", mask, ys), _marks("resets", resets, ys)
    counted = None
    if mask is not None:
        counted = mask[1:] & mask[:-1]
    if resets is not None:
        counted = ~resets[1:] if counted is None else counted & ~resets[1:]
    return _mean_square(ys[1:] - ys[:-1], counted)


def _marks(name: str, marks: Any, ys: jax.Array) -> jax.Array | None:
    """Booleans as an array, or None; one axis of rows may stand for all."""
    if marks is None:
        return None
    marks = as_array(name, marks)
    if marks.dtype != jnp.bool_:
        raise InvalidInputError(
            f"{name} must be booleans (time, *batch), but are {marks.dtype}; write "
            f"{name}.astype(bool)"
        )
    wanted = np.shape(ys)[:-1]
    fits = all(m in (1, y) for m, y in zip(marks.shape[1:], wanted[1:], strict=False))
    if not fits or marks.ndim > len(wanted) or marks.shape[:1] != wanted[:1]:
        raise InvalidInputError(
            f"{name} must be booleans (time, *batch), {wanted} for these ys, but has the shape "
            f"{marks.shape}; check which axis is time"
        )
    return marks


def _wide(array: jax.Array) -> jax.Array:
    """In float32 or wider: narrow types hold no large sums, and float16 no count of 65,520."""
    return array.astype(at_least_float32(array.dtype))


def _mean_square(values: jax.Array, mask: jax.Array | None) -> jax.Array:
    values = _wide(values)
    if mask is None:
        return jnp.square(values).sum() / max(values.size, 1)
    mask = jnp.broadcast_to(
        mask.reshape(*mask.shape, *[1] * (values.ndim - mask.ndim)), values.shape
    )
    # Chosen before the square, so that a NaN that does not count has no gradient.
    squares = jnp.square(jnp.where(mask, values, 0))
    return squares.sum() / jnp.maximum(mask.sum(), 1).astype(values.dtype)
