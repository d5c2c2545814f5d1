"""Operators of every element by itself, of one array or of several that are broadcast."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.interop.functions import ELU
from rnnjax.interop.onnx.at import At, by_jax, divided, is_known, module_of, traced_dtype
from rnnjax.interop.onnx.files import dtype_of
from rnnjax.layers import Dropout

Run = Callable[..., Any]


def each(name: str) -> Run:
    """A function of one array that NumPy and JAX have by the same name."""
    return lambda at, x: getattr(module_of(x), name)(x)


def each_by_jax(function: Callable[..., Any], *numbers: str) -> Run:
    """A function of one array and of attributes that are numbers, which it has defaults for."""

    def run(at: At, x: Any) -> Any:
        given = {name: at.get(name) for name in numbers if name in at.attributes}
        return by_jax(lambda x: function(x, **given), x)

    return run


def each_by_class(kind: type[Any]) -> Run:
    """One of `rnnjax.interop.functions`, whose defaults are those of the operator."""
    return each_by_jax(lambda x, **numbers: kind(**numbers)(x), "alpha", "beta")


def pair(function: str | Callable[[Any, Any, Any], Any]) -> Run:
    """A function of two arrays: by the name that NumPy and JAX have, or of that module too."""

    def run(at: At, x: Any, y: Any) -> Any:
        if at.get("axis") is not None:
            raise at.fail("broadcasting along a named axis, of opsets before 7, is not read here")
        at.bound(np.broadcast_shapes(x.shape, y.shape))
        at.same_type(x, y)
        xp = module_of(x, y)
        return getattr(xp, function)(x, y) if isinstance(function, str) else function(xp, x, y)

    return run


def folded(function: str) -> Run:
    """A function of two arrays, of any number of them."""
    two = pair(function)

    def run(at: At, first: Any, *others: Any) -> Any:
        for other in others:
            first = two(at, first, other)
        return first

    return run


def selu(
    x: Any, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875
) -> Any:
    """``gamma`` times `ELU`."""
    return gamma * ELU(alpha)(x)


def shrink(x: Any, bias: float = 0.0, lambd: float = 0.5) -> Any:
    """``x`` moved towards 0 by ``bias`` where it is further away than ``lambd``, else 0."""
    return jnp.where(x < -lambd, x + bias, jnp.where(x > lambd, x - bias, 0))


def prelu(at: At, x: Any, slope: Any) -> Any:
    """``x`` where it is not negative, else ``slope x``."""
    at.bound(np.broadcast_shapes(x.shape, slope.shape))
    return by_jax(lambda x, slope: jnp.where(x >= 0, x, slope * x), x, slope)


def divide(xp: Any, x: Any, y: Any) -> Any:
    """The quotient; of integers without the remainder."""
    if jnp.issubdtype(x.dtype, jnp.floating):
        return divided(x, y)
    quotient = x // y
    return quotient + ((x % y != 0) & ((x < 0) != (y < 0)))  # integers are cut off, not floored


def power(at: At, x: Any, y: Any) -> Any:
    """``x ** y``, of the type of ``x``."""
    at.bound(np.broadcast_shapes(x.shape, y.shape))
    xp = module_of(x, y)
    return xp.power(x, y).astype(x.dtype if xp is np else jax.dtypes.canonicalize_dtype(x.dtype))


def clip(at: At, x: Any, low: Any = None, high: Any = None) -> Any:
    """``x`` between two bounds."""
    low = at.get("min", low)
    high = at.get("max", high)
    xp = module_of(x, *(bound for bound in (low, high) if not isinstance(bound, float)))
    if low is not None:
        x = xp.maximum(x, xp.asarray(low, x.dtype))
    if high is not None:
        x = xp.minimum(x, xp.asarray(high, x.dtype))
    return x


def where(at: At, condition: Any, x: Any, y: Any) -> Any:
    """``x`` where the condition is true, else ``y``."""
    at.bound(np.broadcast_shapes(condition.shape, x.shape, y.shape))
    if condition.dtype != bool:
        raise at.fail(f"its condition is {condition.dtype}, but should be booleans")
    return module_of(condition, x, y).where(condition, x, y)


def as_type(at: At, x: Any, dtype: np.dtype[Any]) -> Any:
    """``x`` as another type; what one of 8 bits cannot hold is the largest that it can."""
    if not is_known(x):
        dtype = traced_dtype(dtype, f"node {at.name} casts to it")
    narrow = dtype.itemsize == 1 and jnp.issubdtype(dtype, jnp.floating)
    if narrow and at.get("saturate", 1) and jnp.issubdtype(x.dtype, jnp.floating):
        limits = jnp.finfo(dtype)
        x = module_of(x).clip(x, limits.min.astype(x.dtype), limits.max.astype(x.dtype))
    if dtype.name.endswith("fnuz"):  # which have no -0: its bits are NaN, which XLA makes of it
        least = float(jnp.finfo(dtype).smallest_subnormal)
        x = module_of(x).where(abs(x) <= least / 2, 0, x)
    return x.astype(dtype)


def cast(at: At, x: Any) -> Any:
    """``x`` as the type that the attribute ``to`` names."""
    return as_type(at, x, dtype_of(at.get("to", 0), f"what node {at.name} casts to"))


def dropout(at: At, x: Any, ratio: Any = None, training_mode: Any = None) -> Any:
    """``x``; with a key, some entries are 0 and the others larger."""
    ratio = at.get("ratio", ratio)
    if training_mode is not None and (not is_known(training_mode) or bool(training_mode)):
        if not is_known(training_mode) or not is_known(ratio):
            raise at.fail("whether it drops follows from an input; export the model for inference")
        if ratio is None or float(ratio):
            raise at.fail("it drops in training mode; export the model for inference")
    if at.key is not None:
        if isinstance(ratio, jax.Array):
            raise at.fail(
                "its ratio follows from an input, so it cannot drop with a key; leave out the "
                "key, or make the ratio constant"
            )
        x = Dropout(0.5 if ratio is None else float(ratio)).apply(at.key, jnp.asarray(x))
    return (x, np.ones(x.shape, np.bool_)) if at.num_outputs > 1 else x


def shift(at: At, x: Any, y: Any) -> Any:
    """The bits moved by ``y`` places."""
    return pair("left_shift" if at.get("direction") == "LEFT" else "right_shift")(at, x, y)


def infinite(at: At, x: Any) -> Any:
    """Whether entries are infinite, of either sign or of one."""
    signs = [at.get("detect_positive", 1), at.get("detect_negative", 1)]
    return module_of(x).isinf(x) & (((x > 0) & bool(signs[0])) | ((x < 0) & bool(signs[1])))
