"""Operators that sum: products of matrices, reductions, and what is normalised by them."""

from collections.abc import Callable
from typing import Any

import numpy as np

from rnnjax.interop.onnx.at import At, by_jax, module_of


def matmul(at: At, x: Any, y: Any) -> Any:
    """Products of matrices, batch by batch."""
    if not x.ndim or not y.ndim:
        raise at.fail("it needs inputs with axes")
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


def reduction(name: str) -> Callable[..., Any]:
    """One that NumPy and JAX have by the same name."""

    def run(at: At, x: Any, axes_input: Any = None) -> Any:
        axes = at.listed("axes", axes_input)
        if not axes:
            if at.get("noop_with_empty_axes", 0):
                return x
            axes = list(range(x.ndim))
        where = tuple(at.axis(axis, x.ndim) for axis in axes)
        y = getattr(module_of(x), name)(x, axis=where, keepdims=bool(at.get("keepdims", 1)))
        return y.astype(x.dtype)

    return run


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
