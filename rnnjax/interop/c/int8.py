"""Weights of 8 bits: a scale for each output, and for each vector that is multiplied its own."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import jaxpr_as_fun

from rnnjax.errors import InvalidInputError


def product(x: jax.Array, w: jax.Array, axes: Any) -> jax.Array:
    """The product ``x (*batch, rows, inputs) @ w (*batch, inputs, outputs)`` of integers of 8 bits.

    They sum up to one of 32. A column of zeros, and a vector of zeros, give zeros.
    """
    (q, scale), (weights, scales) = _rounded(x, -1), _rounded(w, -2)
    y = lax.dot_general(q, weights, axes, preferred_element_type=jnp.int32)
    return y.astype(jnp.float32) * scale * scales


def _rounded(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    scale = jnp.abs(x).max(axis, keepdims=True) / 127
    return jnp.rint(x / jnp.where(scale == 0, 1, scale)).astype(jnp.int8), scale


def error(exact: Any, rounded: Any, start: list[Any], inputs: list[Any], data: Any) -> str:
    """How far outputs are from float32, over sequences ``(time, batch, ...)``, in words."""
    sizes, array, dtype = [math.prod(x.shape) for x in inputs], np.asarray(data), inputs[0].dtype
    fits = array.ndim > 1 and array.size and math.prod(array.shape[2:]) == sum(sizes)
    if not fits or array.dtype.kind != dtype.kind or not np.isfinite(array).all():
        raise InvalidInputError(
            f"data should be sequences (time, batch, {sum(sizes)}) of finite {dtype}, but is "
            f"{array.dtype}{list(array.shape)}; give those that the error is measured on"
        )
    parts = np.split(array.reshape(*array.shape[:2], -1), np.cumsum(sizes)[:-1], -1)
    xs = [x.reshape(*x.shape[:2], *one.shape).astype(dtype)
          for x, one in zip(parts, inputs, strict=True)]  # fmt: skip

    def run(program: Any) -> np.ndarray:
        def step(state: Any, x: Any) -> Any:
            made = jaxpr_as_fun(program)(*state, *x)
            return made[: len(state)], made[len(state) :]

        over = jax.vmap(lambda xs: lax.scan(step, start, xs)[1], 1, 1)
        return np.concatenate([np.ravel(y) for y in jax.jit(over)(xs)])

    expected, ours = run(exact), run(rounded)
    largest, apart = np.abs(expected).max() or 1, np.abs(ours - expected)
    return (
        f"Weights have 8 bits: over {array.shape[1]} sequences of {array.shape[0]} steps outputs "
        f"differ by {apart.max() / largest:.2g} of the largest at most, and "
        f"{apart.mean() / largest:.2g} on average."
    )
