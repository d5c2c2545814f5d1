"""Penalties on weights and activity, to be added to a loss."""

from typing import Any

import jax
import jax.numpy as jnp

from rnnjax.errors import InvalidInputError


def weight_penalty(params: Any, *, l1: float = 0.0, l2: float = 0.0) -> jax.Array:
    r"""``l1 * sum(|w|) + l2 * sum(w ** 2)`` over all leaves, as Keras's ``l1_l2``.

    Give it the part of the parameters that is meant: ``params["recurrent_kernel"]``, say, or the
    kernels alone. (Decoupled weight decay is optax's: ``optax.adamw``.)

    >>> float(weight_penalty({"kernel": jnp.array([3.0, -4.0])}, l1=1.0, l2=0.1))
    9.5
    """
    leaves = [
        leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)) for leaf in jax.tree.leaves(params)
    ]
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

    >>> ys = jnp.array([[[1.0, 3.0]], [[9.0, 9.0]]])
    >>> float(activity_penalty(ys, mask=jnp.array([[True], [False]])))
    5.0
    """
    return _mean(jnp.square(ys), mask)


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
        InvalidInputError: ``mask`` or ``resets`` are not booleans.

    >>> float(slowness_penalty(jnp.array([[[1.0]], [[3.0]], [[4.0]]])))
    2.5
    """
    for name, marks in (("mask", mask), ("resets", resets)):
        if marks is not None and marks.dtype != jnp.bool_:
            raise InvalidInputError(
                f"{name} must be booleans (time, *batch), but are {marks.dtype}; write "
                f"{name}.astype(bool)"
            )
    counted = None
    if mask is not None:
        counted = mask[1:] & mask[:-1]
    if resets is not None:
        counted = ~resets[1:] if counted is None else counted & ~resets[1:]
    return _mean(jnp.square(ys[1:] - ys[:-1]), counted)


def _mean(values: jax.Array, mask: jax.Array | None) -> jax.Array:
    if mask is None:
        return values.sum() / max(values.size, 1)
    weights = mask.reshape(*mask.shape, *[1] * (values.ndim - mask.ndim)).astype(values.dtype)
    weights = jnp.broadcast_to(weights, values.shape)
    return jnp.where(weights > 0, values, 0).sum() / jnp.maximum(weights.sum(), 1)
