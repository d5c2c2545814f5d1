"""What several formats compute around recurrent layers, in JAX: batch first, channels last."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Padding = str | Sequence[tuple[int, int]]
"""``"VALID"`` or ``"SAME"``, or what is put before and after each axis of space."""


def conv(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    strides: Sequence[int],
    padding: Padding,
    dilation: Sequence[int],
    groups: int = 1,
) -> jax.Array:
    """Products with a kernel ``(*space, channels / groups, filters)`` at every place of ``x``."""
    space = "HWD"[: x.ndim - 2]
    ys = lax.conv_general_dilated(
        x, kernel, strides, padding, None, dilation, (f"N{space}C", f"{space}IO", f"N{space}C"),
        feature_group_count=groups,
    )  # fmt: skip
    return ys if bias is None else ys + bias


def pool(
    x: jax.Array,
    maximum: bool,
    window: Sequence[int],
    strides: Sequence[int],
    padding: Padding,
    dilation: Sequence[int] | None = None,
    whole: bool = False,
) -> jax.Array:
    """The largest entry of each window, or the mean; ``whole`` counts what is around too."""

    def slide(x: jax.Array, start: Any, function: Any) -> jax.Array:
        around = padding if isinstance(padding, str) else [(0, 0), *padding, (0, 0)]
        return lax.reduce_window(
            x, np.array(start, x.dtype), function, (1, *window, 1), (1, *strides, 1), around,
            window_dilation=None if dilation is None else (1, *dilation, 1),
        )  # fmt: skip

    if maximum:
        floats = jnp.issubdtype(x.dtype, jnp.floating)
        return slide(x, -np.inf if floats else jnp.iinfo(x.dtype).min, lax.max)
    count = np.prod(window) if whole else slide(jnp.ones_like(x), 0, lax.add)
    return slide(x, 0, lax.add) / count


def normalize(
    x: jax.Array, mean: jax.Array, variance: jax.Array, epsilon: float, scale: Any, shift: Any
) -> jax.Array:
    """By a mean and a variance, then scaled and shifted where these are given."""
    ys = (x - mean) * lax.rsqrt(variance + epsilon)
    ys = ys if scale is None else ys * scale
    return ys if shift is None else ys + shift


def standardize(
    x: jax.Array, axes: int | Sequence[int], epsilon: float, scale: Any, shift: Any
) -> jax.Array:
    """By mean and variance over axes of its own, which narrow numbers get in 32 bits."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = wide.mean(axes, keepdims=True)
    variance = jnp.square(wide - mean).mean(axes, keepdims=True)
    ys = normalize(wide, mean, variance, epsilon, None, None).astype(x.dtype)
    ys = ys if scale is None else ys * scale
    return ys if shift is None else ys + shift
