"""Operators that sum: products of matrices, reductions, and what is normalised by them."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.interop.onnx.at import At, by_jax, module_of


def matmul(at: At, x: Any, y: Any) -> Any:
    """Products of matrices, batch by batch."""
    batch = np.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    at.bound((*batch, *x.shape[-2:-1], *(y.shape[-1:] if y.ndim > 1 else ())))
    at.same_type(x, y)
    return module_of(x, y).matmul(x, y)


def gemm(at: At, a: Any, b: Any, c: Any = None) -> Any:
    """``alpha a b + beta c``."""
    if a.ndim != 2 or b.ndim != 2:
        raise at.fail(f"it needs two matrices, but got shapes {list(a.shape)} and {list(b.shape)}")
    a = a.T if at.get("transA", 0) else a
    b = b.T if at.get("transB", 0) else b
    at.bound((a.shape[0], b.shape[1]))
    xp = module_of(a, b, c)
    y = xp.asarray(at.get("alpha", 1.0), a.dtype) * xp.matmul(a, b)
    if c is not None:
        y = y + xp.asarray(at.get("beta", 1.0), a.dtype) * xp.broadcast_to(c, y.shape)
    return y


def einsum(at: At, *arrays: Any) -> Any:
    """A sum of products over the letters of an equation."""
    at.same_type(*arrays)
    return at.computed(lambda *arrays: jnp.einsum(at.get("equation"), *arrays), *arrays)


def reduction(function: str | Callable[..., Any], start: float | None = None) -> Callable[..., Any]:
    """One that NumPy and JAX have by the same name, or of that module, an array and axes.

    ``start`` is what it makes of nothing, where that is not said.
    """

    def run(at: At, x: Any, axes_input: Any = None) -> Any:
        axes = at.listed("axes", axes_input)
        if not axes:  # of no axis only the sum is left out: what is summed is not
            axes = [] if at.get("noop_with_empty_axes", 0) else list(range(x.ndim))
        where = tuple(at.axis(axis, x.ndim) for axis in axes)
        options = {"axis": where, "keepdims": bool(at.get("keepdims", 1))}
        at.bound(1 if axis in where else size for axis, size in enumerate(x.shape))
        if start is not None and not math.prod(x.shape[axis] for axis in where):
            options["initial"] = _limit(x.dtype, start)
        xp = module_of(x)
        if isinstance(function, str):
            y = getattr(xp, function)(x, **options)
        else:
            y = function(xp, x, **options)
        return y.astype(x.dtype)

    return run


def _limit(dtype: Any, sign: float) -> Any:
    """The least number of a type, or the largest."""
    if jnp.issubdtype(dtype, jnp.floating):
        return sign * np.inf
    if jnp.issubdtype(dtype, jnp.bool_):
        return sign > 0
    return jnp.iinfo(dtype).max if sign > 0 else jnp.iinfo(dtype).min


def place_of(name: str) -> Callable[..., Any]:
    """``argmax`` or ``argmin``."""

    def run(at: At, x: Any) -> Any:
        axis = at.axis(at.get("axis", 0), x.ndim)
        xp = module_of(x)
        last = bool(at.get("select_last_index", 0))
        place = getattr(xp, name)(
            xp.flip(x, axis) if last else x, axis=axis, keepdims=bool(at.get("keepdims", 1))
        )
        return x.shape[axis] - 1 - place if last else place

    return run


def softmax(function: Callable[..., Any]) -> Callable[..., Any]:
    """JAX's function over an axis."""

    def run(at: At, x: Any) -> Any:
        first = at.axis(at.get("axis", -1 if at.opset >= 13 else 1), x.ndim)
        # Before opset 13 over all axes from this one on, as one.
        axes = first if at.opset >= 13 else tuple(range(first, x.ndim))
        return by_jax(lambda x: function(x, axis=axes), x)

    return run


def hardmax(x: Any, axis: Any) -> Any:
    """1 at the first of the largest, else 0."""
    axes = (axis,) if isinstance(axis, int) else axis
    flat = x.reshape(*x.shape[: axes[0]], -1) if len(axes) > 1 else jnp.moveaxis(x, axis, -1)
    hot = jax.nn.one_hot(jnp.argmax(flat, axis=-1), flat.shape[-1], dtype=x.dtype)
    return hot.reshape(x.shape) if len(axes) > 1 else jnp.moveaxis(hot, -1, axes[0])


def cumulative(function: Callable[..., Any], start: int) -> Callable[..., Any]:
    """JAX's function over the entries up to each, from either side; ``start`` before all."""

    def run(at: At, x: Any, axis_input: Any) -> Any:
        (number,) = at.integers(axis_input, "axis")
        axis = at.axis(number, x.ndim)

        def along(x: Any) -> Any:
            x = jnp.flip(x, axis) if at.get("reverse", 0) else x
            if at.get("exclusive", 0):
                first = jnp.full_like(
                    jax.lax.slice_in_dim(x, 0, min(1, x.shape[axis]), axis=axis), start
                )
                x = jnp.concatenate([first, jax.lax.slice_in_dim(x, 0, -1, axis=axis)], axis)
            y = function(x, axis=axis).astype(x.dtype)
            return jnp.flip(y, axis) if at.get("reverse", 0) else y

        return by_jax(along, x)

    return run


def top_k(at: At, x: Any, k: Any = None) -> Any:
    """The largest or smallest along an axis, and their places."""
    (count,) = [at.get("k")] if k is None else at.integers(k, "number of entries")
    axis = at.axis(at.get("axis", -1), x.ndim)
    if not 0 <= count <= x.shape[axis]:
        raise at.fail(f"it takes {count} of the {x.shape[axis]} entries of axis {axis}")

    def run(x: Any) -> Any:
        order = jnp.argsort(x, axis, descending=bool(at.get("largest", 1)), stable=True)
        places = jax.lax.slice_in_dim(order, 0, count, axis=axis)
        return jnp.take_along_axis(x, places, axis), places

    return by_jax(run, x)


# --- What is normalised by its mean and variance ---


def _per_channel(array: Any, x: Any) -> Any:
    return array.reshape(-1, *[1] * (x.ndim - 2))


def batch_norm(at: At, x: Any, scale: Any, bias: Any, mean: Any, variance: Any) -> Any:
    """Each channel by a mean and a variance that are given, or by those of the batch."""

    def run(x: Any, scale: Any, bias: Any, mean: Any, variance: Any) -> Any:
        more = ()
        if at.get("training_mode", 0):
            others = tuple(n for n in range(x.ndim) if n != 1)
            kept = at.get("momentum", 0.9)
            was, mean, variance = (mean, variance), jnp.mean(x, others), jnp.var(x, others)
            more = tuple(
                kept * a + (1 - kept) * b for a, b in zip(was, (mean, variance), strict=True)
            )
        factor = scale / jnp.sqrt(variance + at.get("epsilon", 1e-5))
        y = (x - _per_channel(mean, x)) * _per_channel(factor, x) + _per_channel(bias, x)
        return (y.astype(x.dtype), *more) if more else y.astype(x.dtype)

    return at.computed(run, x, scale, bias, mean, variance)


def _standard(x: Any, axes: Any, epsilon: float) -> tuple[Any, Any, Any]:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = jnp.mean(wide, axes, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.var(wide, axes, keepdims=True) + epsilon)
    return (wide - mean) * inverse, mean, inverse


def layer_norm(at: At, x: Any, scale: Any, bias: Any = None) -> Any:
    """Each row, over the axes from ``axis`` on, by its own mean and variance."""
    axes = tuple(range(at.axis(at.get("axis", -1), x.ndim), x.ndim))

    def run(x: Any, scale: Any, bias: Any) -> Any:
        y, mean, inverse = _standard(x, axes, at.get("epsilon", 1e-5))
        y = y.astype(x.dtype) * scale
        return (y if bias is None else y + bias), mean, inverse

    return at.computed(run, x, scale, bias)


def rms_norm(at: At, x: Any, scale: Any) -> Any:
    """Each row, over the axes from ``axis`` on, by the root of its mean square."""
    axes = tuple(range(at.axis(at.get("axis", -1), x.ndim), x.ndim))

    def run(x: Any, scale: Any) -> Any:
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        square = jnp.mean(wide * wide, axes, keepdims=True)
        return (wide * jax.lax.rsqrt(square + at.get("epsilon", 1e-5))).astype(x.dtype) * scale

    return at.computed(run, x, scale)


def group_norm(at: At, x: Any, scale: Any, bias: Any) -> Any:
    """Each group of channels by its own mean and variance; a channel is one where none is said."""
    groups = at.get("num_groups", x.shape[1])

    def run(x: Any, scale: Any, bias: Any) -> Any:
        parts = x.reshape(x.shape[0], groups, -1)
        y = _standard(parts, (2,), at.get("epsilon", 1e-5))[0].astype(x.dtype)
        if scale.shape[0] != x.shape[1]:  # of the groups, in old models
            y = y * scale[:, None] + bias[:, None]
            return y.reshape(x.shape)
        return y.reshape(x.shape) * _per_channel(scale, x) + _per_channel(bias, x)

    return at.computed(run, x, scale, bias)


def mean_variance_norm(at: At, x: Any) -> Any:
    """Over some axes, by mean and variance."""
    axes = tuple(at.axis(n, x.ndim) for n in at.get("axes", (0, 2, 3)))
    return by_jax(
        lambda x: (x - x.mean(axes, keepdims=True)) / (x.std(axes, keepdims=True) + 1e-9), x
    )


def power_norm(at: At, x: Any) -> Any:
    """Along an axis, by the sum of absolute values or the root of that of squares."""
    axis, order = at.axis(at.get("axis", -1), x.ndim), at.get("p", 2)

    def run(x: Any) -> Any:
        size = jnp.linalg.norm(x, order, axis, keepdims=True)
        return jnp.where(size == 0, 0, x / size).astype(x.dtype)

    return by_jax(run, x)
