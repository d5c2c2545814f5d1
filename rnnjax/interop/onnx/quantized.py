"""Operators of integers that stand for real numbers: ``x = scale (q - zero_point)``."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from rnnjax.interop.onnx.at import At, divided
from rnnjax.interop.onnx.elementwise import as_type
from rnnjax.interop.onnx.files import dtype_of
from rnnjax.interop.onnx.windows import conv


def _along(at: At, x: Any, array: Any) -> Any:
    """A scale of the whole, of each slice of an axis, or of blocks along it, beside ``x``."""
    if array is None or not array.ndim or not x.ndim:
        return None if array is None else array.reshape(())
    if (array.ndim == 1 and x.ndim > 1) or array.size == 1:
        axis = 0 if array.size == 1 else at.axis(at.get("axis", 1), x.ndim)
        return array.reshape([-1 if n == axis else 1 for n in range(x.ndim)])
    axis = at.axis(at.get("axis", 1), x.ndim)
    block = at.get("block_size", 0) or -(-x.shape[axis] // max(1, array.shape[axis]))
    if not 0 < block <= max(1, x.shape[axis]):
        raise at.fail(f"its block_size is {block}, but axis {axis} has {x.shape[axis]} entries")
    repeated = jnp.repeat(array, block, axis=axis)
    return repeated[tuple(slice(0, n) for n in x.shape)]


def quantize(at: At, x: Any, scale: Any, zero_point: Any = None) -> Any:
    """``clip(round(x / scale) + zero_point)``."""
    number = at.get("output_dtype", 0)
    dtype = np.dtype(np.uint8) if zero_point is None else zero_point.dtype
    if number:
        dtype = dtype_of(number, f"what node {at.name} makes")

    def run(x: Any, scale: Any, zero_point: Any) -> Any:
        y = divided(x, _along(at, x, scale).astype(x.dtype)).astype(jnp.float32)
        if jnp.issubdtype(dtype, jnp.floating):
            return as_type(at, y, dtype)
        y = jnp.round(y)
        y = y if zero_point is None else y + _along(at, x, zero_point).astype(y.dtype)
        limits = jnp.iinfo(dtype)
        return jnp.clip(y, limits.min, limits.max).astype(dtype)

    return at.computed(run, x, scale, zero_point)


def dequantize(at: At, x: Any, scale: Any, zero_point: Any = None) -> Any:
    """``scale (x - zero_point)``."""
    number = at.get("output_dtype", 0)
    dtype = dtype_of(number, f"what node {at.name} makes") if number else scale.dtype

    def run(x: Any, scale: Any, zero_point: Any) -> Any:
        y = x.astype(jnp.float32)
        y = y if zero_point is None else y - _along(at, x, zero_point).astype(jnp.float32)
        return (y * _along(at, x, scale).astype(jnp.float32)).astype(dtype)

    return at.computed(run, x, scale, zero_point)


def quantize_by_range(at: At, x: Any) -> Any:
    """Bytes between the least and the largest of ``x`` and 0, their scale and zero point."""

    def run(x: Any) -> Any:
        low, high = jnp.minimum(jnp.min(x), 0), jnp.maximum(jnp.max(x), 0)
        scale = (high - low) / 255
        zero_point = jnp.clip(jnp.round(divided(-low, scale)), 0, 255)
        y = jnp.clip(jnp.round(divided(x, scale)) + zero_point, 0, 255)
        return y.astype(np.uint8), scale, zero_point.astype(np.uint8)

    return at.computed(run, x)


def _shifted(x: Any, zero_point: Any, rows: bool = False) -> Any:
    x = x.astype(jnp.int32)
    if zero_point is None:
        return x
    zero_point = zero_point.astype(jnp.int32)
    return x - (zero_point[..., None] if rows and zero_point.ndim else zero_point)


def matmul_integer(at: At, a: Any, b: Any, a_zero: Any = None, b_zero: Any = None) -> Any:
    """The product of matrices of bytes, less their zero points, in 32 bits."""
    return at.computed(
        lambda a, b, p, q: jnp.matmul(_shifted(a, p, rows=True), _shifted(b, q)),
        a, b, a_zero, b_zero,
    )  # fmt: skip


def conv_integer(at: At, x: Any, kernel: Any, x_zero: Any = None, zero: Any = None) -> Any:
    """The convolution of bytes, less their zero points, in 32 bits."""

    def run(x: Any, kernel: Any, x_zero: Any, zero: Any) -> Any:
        if zero is not None and zero.ndim:
            zero = zero.reshape(-1, *[1] * (kernel.ndim - 1))
        return conv(at, _shifted(x, x_zero), _shifted(kernel, zero))

    return at.computed(run, x, kernel, x_zero, zero)


def quantized_matmul(
    at: At, a: Any, a_scale: Any, a_zero: Any, b: Any, b_scale: Any, b_zero: Any, scale: Any,
    zero: Any,
) -> Any:  # fmt: skip
    """The product of quantised matrices, quantised."""

    def run(a: Any, b: Any, a_scale: Any, b_scale: Any, a_zero: Any, b_zero: Any) -> Any:
        y = jnp.matmul(_shifted(a, a_zero, rows=True), _shifted(b, b_zero)).astype(jnp.float32)
        factor = a_scale[..., None] if a_scale.ndim else a_scale
        return y * (factor * b_scale / scale).astype(jnp.float32)

    y = at.computed(run, a, b, a_scale, b_scale, a_zero, b_zero)
    return quantize(at, y, np.ones((), np.float32), zero)
