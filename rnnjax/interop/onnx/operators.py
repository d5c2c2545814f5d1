"""The operators of ONNX that stand around recurrent ones: one table, one entry for each.

An entry is a function of `At` and the inputs, None where one is left out, to the output or a tuple.
Where all inputs are known before it runs, NumPy computes it: the shapes that a graph computes stay
known under ``jit``, and what follows from them can have a shape.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rnnjax.errors import RnnjaxError
from rnnjax.interop import operators as shared
from rnnjax.interop.functions import FUNCTIONS, SPELLINGS
from rnnjax.interop.onnx import control
from rnnjax.interop.onnx.at import At, by_jax, is_fixed, is_known, module_of, traced_dtype
from rnnjax.interop.onnx.files import dtype_of
from rnnjax.layers import Dropout

Run = Callable[..., Any]

# --- One element by itself ---


def _each(name: str) -> Run:
    """A function of one array that NumPy and JAX have by the same name."""
    return lambda at, x: getattr(module_of(x), name)(x)


def _by_jax(function: Callable[..., Any]) -> Run:
    """A function of one array that JAX alone has."""
    return lambda at, x: by_jax(function, x)


def _activation(ours: str | type[Any]) -> Run:
    """A function by our name, or a class of `rnnjax.interop.functions` with its numbers."""

    def run(at: At, x: Any) -> Any:
        if isinstance(ours, str):
            if at.attributes:
                raise at.fail(f"its numbers {dict(at.attributes)} are not read here; drop them")
            return by_jax(FUNCTIONS[ours], x)
        return by_jax(ours(**at.attributes), x)

    return run


def _gelu(at: At, x: Any) -> Any:
    return by_jax(lambda x: jax.nn.gelu(x, at.get("approximate", "none") == "tanh"), x)


def _clip(at: At, x: Any, low: Any = None, high: Any = None) -> Any:
    """``x`` between two bounds, attributes in old models."""
    bounds = at.get("min", low), at.get("max", high)
    xp = module_of(x, *(bound for bound in bounds if not isinstance(bound, float)))
    for bound, function in zip(bounds, (xp.maximum, xp.minimum), strict=True):
        x = x if bound is None else function(x, xp.asarray(bound, x.dtype))
    return x


def _as_type(at: At, x: Any, dtype: np.dtype[Any]) -> Any:
    if not is_known(x):
        dtype = traced_dtype(dtype, f"node {at.name} casts to it")
    return x.astype(dtype)


def _dropout(at: At, x: Any, ratio: Any = None, training_mode: Any = None) -> Any:
    """``x``; with a key, some entries are 0 and the others larger."""
    ratio = at.get("ratio", ratio)
    if training_mode is not None and (not is_known(training_mode) or bool(training_mode)):
        raise at.fail("it drops in training mode; export the model for inference")
    if at.key is not None:
        if isinstance(ratio, jax.Array):
            raise at.fail(
                "its ratio follows from an input, so it cannot drop with a key; leave out the "
                "key, or make the ratio constant"
            )
        x = Dropout(0.5 if ratio is None else float(ratio)).apply(at.key, jnp.asarray(x))
    return (x, np.ones(x.shape, np.bool_)) if at.num_outputs > 1 else x


# --- Several arrays, broadcast ---


def _broadcast(function: str | Callable[..., Any]) -> Run:
    """A function of arrays: by the name that NumPy and JAX have, or of that module and them."""

    def run(at: At, *xs: Any) -> Any:
        if at.get("axis") is not None:
            raise at.fail("broadcasting along a named axis, of opsets before 7, is not read here")
        at.bound(jnp.broadcast_shapes(*(x.shape for x in xs)))
        xp = module_of(*xs)
        return getattr(xp, function)(*xs) if isinstance(function, str) else function(xp, *xs)

    return run


def _folded(name: str) -> Run:
    """A function of two arrays, applied to any number of them."""
    return _broadcast(lambda xp, *xs: functools.reduce(getattr(xp, name), xs))


def _mean(xp: Any, *xs: Any) -> Any:
    return functools.reduce(xp.add, xs) / np.asarray(len(xs), xs[0].dtype)


def _divide(xp: Any, x: Any, y: Any) -> Any:
    """The quotient; that of integers is cut off, not floored."""
    if jnp.issubdtype(x.dtype, jnp.floating):
        return x / y
    return x // y + ((x % y != 0) & ((x < 0) != (y < 0)))


def _power(xp: Any, x: Any, y: Any) -> Any:
    """``x ** y``, of the type of ``x``."""
    return xp.power(x, y).astype(x.dtype if xp is np else jax.dtypes.canonicalize_dtype(x.dtype))


# --- Sums, and what is normalised by them ---


def _matmul(at: At, x: Any, y: Any) -> Any:
    batch = jnp.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    at.bound((*batch, *x.shape[-2:-1], *(y.shape[-1:] if y.ndim > 1 else ())))
    return module_of(x, y).matmul(x, y)


def _gemm(at: At, a: Any, b: Any, c: Any = None) -> Any:
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


def _reduction(name: str) -> Run:
    """A reduction that NumPy and JAX have by that name."""

    def run(at: At, x: Any, axes_input: Any = None) -> Any:
        axes = at.listed("axes", axes_input)
        if not axes:
            axes = [] if at.get("noop_with_empty_axes", 0) else list(range(x.ndim))
        where = tuple(at.axis(axis, x.ndim) for axis in axes)
        at.bound(1 if axis in where else size for axis, size in enumerate(x.shape))
        keepdims = bool(at.get("keepdims", 1))
        return getattr(module_of(x), name)(x, axis=where, keepdims=keepdims).astype(x.dtype)

    return run


def _reduce_l2(at: At, x: Any, axes_input: Any = None) -> Any:
    return module_of(x).sqrt(_reduction("sum")(at, x * x, axes_input))


def _argmax(at: At, x: Any) -> Any:
    axis = at.axis(at.get("axis", 0), x.ndim)
    if at.get("select_last_index", 0):
        raise at.fail("the last of several places, its select_last_index, is not read here")
    return module_of(x).argmax(x, axis=axis, keepdims=bool(at.get("keepdims", 1)))


def _softmax(function: Callable[..., Any]) -> Run:
    """JAX's function over an axis; before opset 13 over all axes from it on, as one."""

    def run(at: At, x: Any) -> Any:
        first = at.axis(at.get("axis", -1 if at.opset >= 13 else 1), x.ndim)
        axes = first if at.opset >= 13 else tuple(range(first, x.ndim))
        return by_jax(lambda x: function(x, axis=axes), x)

    return run


def _cumsum(at: At, x: Any, axis_input: Any) -> Any:
    """The sum of the entries up to each."""
    (number,) = at.integers(axis_input, "axis")
    axis = at.axis(number, x.ndim)
    if at.get("exclusive", 0) or at.get("reverse", 0):
        raise at.fail("sums from the end, or without an entry itself, are not read here; flip it")
    return by_jax(lambda x: jnp.cumsum(x, axis=axis, dtype=x.dtype), x)


def _last(x: Any) -> Any:
    """With its channels last, as `rnnjax.interop.operators` has them."""
    return jnp.moveaxis(x, 1, -1)


def _batch_norm(at: At, x: Any, scale: Any, bias: Any, mean: Any, variance: Any) -> Any:
    """Each channel by a mean and a variance that are given."""
    if at.get("training_mode", 0):
        raise at.fail("it takes mean and variance of the batch; export the model for inference")

    def run(x: Any, *others: Any) -> Any:
        scale, bias, mean, variance = others
        y = shared.normalize(_last(x), mean, variance, at.get("epsilon", 1e-5), scale, bias)
        return jnp.moveaxis(y, -1, 1).astype(x.dtype)

    return at.computed(run, x, scale, bias, mean, variance)


def _layer_norm(at: At, x: Any, scale: Any, bias: Any = None) -> Any:
    """Each row, over the axes from ``axis`` on, by its own mean and variance: the output alone."""
    axes = tuple(range(at.axis(at.get("axis", -1), x.ndim), x.ndim))
    return at.computed(
        lambda x, *by: shared.standardize(x, axes, at.get("epsilon", 1e-5), *by), x, scale, bias
    )


def _instance_norm(at: At, x: Any, scale: Any, bias: Any) -> Any:
    """Each channel of each row by its own mean and variance."""

    def run(x: Any, scale: Any, bias: Any) -> Any:
        axes = tuple(range(1, x.ndim - 1))
        y = shared.standardize(_last(x), axes, at.get("epsilon", 1e-5), scale, bias)
        return jnp.moveaxis(y, -1, 1)

    return at.computed(run, x, scale, bias)


# --- Which slide over space ---


_Window = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[tuple[int, int], ...]]
"""The sizes of a window, the strides of its places, the dilations between its entries, and what is
put before and after each axis of space."""


def _window(at: At, x: Any, sizes: Sequence[int]) -> _Window:
    rank, space, automatic = len(sizes), x.shape[2:], at.get("auto_pad", "NOTSET")
    strides, dilations = (tuple(at.get(n) or (1,) * rank) for n in ("strides", "dilations"))
    given = tuple(at.get("pads") or (0,) * (2 * rank))
    numbers = (*sizes, *strides, *dilations)
    whole = len(space) == len(strides) == len(dilations) == rank > 0 and len(given) == 2 * rank
    if not whole or min(numbers) < 1 or min(given) < 0 or max(*numbers, *given) >= 2**31:
        raise at.fail(
            f"its window {list(sizes)[:8]}, strides, dilations and pads should be sizes for each "
            f"axis of space of {list(x.shape)}, of which there is one at least"
        )
    if at.get("ceil_mode", 0):
        raise at.fail("a window over the end, its ceil_mode, is not read here; pad the input")
    pads = list(zip(given[:rank], given[rank:], strict=True))
    if automatic != "NOTSET":
        reach = [(size - 1) * step + 1 for size, step in zip(sizes, dilations, strict=True)]
        pads = lax.padtype_to_pads(space, reach, strides, automatic.removesuffix("_UPPER"))
    at.bound((*x.shape[:2], *(n + low + high for n, (low, high) in zip(space, pads, strict=True))))
    return tuple(sizes), strides, dilations, tuple(pads)


def _conv(at: At, x: Any, kernel: Any, bias: Any = None) -> Any:
    """Products with a kernel at every place: cross-correlation, in groups of channels."""
    window, groups = _window(at, x, kernel.shape[2:]), at.get("group", 1)

    def run(x: Any, kernel: Any, bias: Any) -> Any:
        turned = jnp.moveaxis(kernel, (0, 1), (-1, -2))
        _, strides, dilations, pads = window
        y = shared.conv(_last(x), turned, bias, strides, pads, dilations, groups)
        return jnp.moveaxis(y, -1, 1)

    return at.computed(run, x, kernel, bias)


def _pool(maximum: bool) -> Run:
    """The largest entry of each window, or the mean, with what is around or without."""

    def run(at: At, x: Any) -> Any:
        if at.num_outputs > 1:
            raise at.fail("the places of the largest entries, its second output, are not read here")
        sizes, strides, dilations, pads = _window(at, x, at.get("kernel_shape"))
        whole = bool(at.get("count_include_pad", 0))

        def pooled(x: Any) -> Any:
            y = shared.pool(_last(x), maximum, sizes, strides, pads, dilations, whole)
            return jnp.moveaxis(y, -1, 1)

        return at.computed(pooled, x)

    return run


def _whole_pool(name: str) -> Run:
    """A reduction, by its name, over all of space."""

    def run(at: At, x: Any) -> Any:
        axes = tuple(range(2, x.ndim))
        return getattr(module_of(x), name)(x, axis=axes, keepdims=True).astype(x.dtype)

    return run


_PADS = "constant", "edge", "reflect", "wrap"


def _pad(at: At, x: Any, pads: Any = None, value: Any = None, axes: Any = None) -> Any:
    """``x`` with more around it, or with less where a number is negative."""
    numbers = at.listed("pads", pads)
    along = list(range(x.ndim)) if axes is None else at.integers(axes, "axes")
    mode = at.get("mode", "constant")
    if numbers is None or len(numbers) != 2 * len(along) or mode not in _PADS:
        raise at.fail(
            f"its pads are {numbers} and its mode is {mode!r}, but they should be two for each of "
            f"{len(along)} axes, and one of {', '.join(_PADS)}"
        )
    around = [(0, 0)] * x.ndim
    for axis, *both in zip(along, numbers[: len(along)], numbers[len(along) :], strict=True):
        around[at.axis(axis, x.ndim)] = (both[0], both[1])
    at.bound(n + max(0, a) + max(0, b) for n, (a, b) in zip(x.shape, around, strict=True))
    less = any(n + min(0, a) + min(0, b) < 0 for n, (a, b) in zip(x.shape, around, strict=True))
    # Which JAX repeats piece by piece.
    sizes = zip(around, x.shape, strict=True)
    more = mode in ("reflect", "wrap") and any(is_fixed(n) and max(b) > n for b, n in sizes)
    if less or more or (mode != "constant" and (min(numbers) < 0 or not x.size)):
        raise at.fail(
            f"its pads {numbers} take away more than the sizes {list(x.shape)}, or its mode "
            f"{mode!r} can neither take away nor repeat what is not there, nor all of it twice"
        )

    def run(x: Any, value: Any) -> Any:
        if mode != "constant":
            return jnp.pad(x, around, mode)
        filling = jnp.asarray(0 if value is None else value, x.dtype).reshape(())
        return lax.pad(x, filling, [(low, high, 0) for low, high in around])

    return at.computed(run, x, at.get("value", value))


# --- Which put elements elsewhere ---


def _reshape(at: At, x: Any, shape: Any = None) -> Any:
    given = at.get("shape")
    sizes = [int(n) for n in given] if given is not None else at.integers(shape, "sizes")
    if not at.get("allowzero", 0):
        if any(n == 0 and i >= x.ndim for i, n in enumerate(sizes)):
            raise at.fail(f"its shape {sizes} copies a size that the input {list(x.shape)} lacks")
        sizes = [x.shape[i] if n == 0 else n for i, n in enumerate(sizes)]
    if sizes.count(-1) > 1 or any(n < -1 for n in sizes):
        raise at.fail(f"{sizes} is no shape")
    return x.reshape(sizes)


def _flatten(at: At, x: Any) -> Any:
    """Two axes: of those before ``axis``, and of the others."""
    axis = at.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    if not 0 <= axis <= x.ndim:
        raise at.fail(f"axis {axis} is not one of the {x.ndim} axes of its input")
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def _squeeze(at: At, x: Any, axes_input: Any = None) -> Any:
    axes = at.listed("axes", axes_input)
    if axes is None:
        axes = [i for i, size in enumerate(x.shape) if size == 1]
    where = {at.axis(axis, x.ndim) for axis in axes}
    if any(x.shape[axis] != 1 for axis in where):
        raise at.fail(f"axes {axes} of shape {list(x.shape)} are not all of size 1")
    return x.reshape([size for i, size in enumerate(x.shape) if i not in where])


def _unsqueeze(at: At, x: Any, axes_input: Any = None) -> Any:
    axes = at.listed("axes", axes_input)
    if axes is None:
        raise at.fail("it names no axes")
    rank = x.ndim + len(axes)
    where = {at.axis(axis, rank) for axis in axes}
    if len(where) < len(axes):
        raise at.fail(f"axes {axes} name one twice")
    sizes = iter(x.shape)
    return x.reshape([1 if i in where else next(sizes) for i in range(rank)])


def _transpose(at: At, x: Any) -> Any:
    return module_of(x).transpose(x, at.get("perm"))


def _concat(at: At, *arrays: Any) -> Any:
    axis = at.axis(at.get("axis", 1), arrays[0].ndim)
    at.bound([sum(x.size for x in arrays)])
    return module_of(*arrays).concatenate(arrays, axis=axis)


def _split(at: At, x: Any, sizes_input: Any = None) -> Any:
    """Parts of an axis, by their sizes or by their number."""
    axis = at.axis(at.get("axis", 0), x.ndim)
    length = x.shape[axis]
    sizes = at.listed("split", sizes_input)
    if sizes is None:
        parts = at.get("num_outputs", at.num_outputs)
        if parts != at.num_outputs:
            raise at.fail(f"it makes {parts} parts, but has {at.num_outputs} outputs")
        size = -(-length // parts)  # the last one may be smaller
        sizes = [max(0, min(size, length - i * size)) for i in range(parts)]
    if sum(sizes) != length or min(sizes) < 0 or len(sizes) < at.num_outputs:
        raise at.fail(f"parts of sizes {sizes} are not the {length} of axis {axis}")
    return tuple(module_of(x).split(x, np.cumsum(sizes)[:-1], axis=axis))


def _slice(
    at: At, x: Any, starts: Any = None, ends: Any = None, axes: Any = None, steps: Any = None
) -> Any:
    """From ``starts`` to ``ends`` along axes."""
    if starts is None:  # attributes, before opset 10
        first, last = at.get("starts"), at.get("ends")
    else:
        first, last = at.integers(starts, "starts"), at.integers(ends, "ends")
    along = at.listed("axes", axes) or list(range(len(first)))
    stride = [1] * len(first) if steps is None else at.integers(steps, "steps")
    if not len(first) == len(last) == len(along) == len(stride) or 0 in stride:
        raise at.fail(f"starts {first}, ends {last}, axes {along}, steps {stride} do not fit")
    where = [slice(None)] * x.ndim
    for start, end, axis, step in zip(first, last, along, stride, strict=True):
        axis = at.axis(axis, x.ndim)
        size = x.shape[axis]
        # As in ONNX: a negative end beyond the beginning is the place before it, not the last.
        if step > 0:
            begin, stop = (min(max(n + size * (n < 0), 0), size) for n in (start, end))
            where[axis] = slice(begin, stop, step)
        else:
            begin = min(max(start + size * (start < 0), 0), size - 1)
            stop = min(max(end + size * (end < 0), -1), size - 1)
            where[axis] = slice(begin, None if stop < 0 else stop, max(step, -(2**63) + 1))
            if not size:
                where[axis] = slice(0, 0)
    return x[tuple(where)]


def _wrapped(indices: Any, size: Any) -> Any:
    """Negative ones count from the end."""
    return jnp.where(indices < 0, indices + size, indices)


def _gather(at: At, x: Any, indices: Any) -> Any:
    """Slices of ``x`` by their places along an axis.

    Negative ones count from the end; those out of range give NaN, or the nearest slice of integers.
    """
    axis = at.axis(at.get("axis", 0), x.ndim)
    size = x.shape[axis]
    at.bound((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))
    if is_known(indices):
        if indices.size and (indices.min() < -size or indices.max() >= size):
            raise at.fail(f"an index is outside of the {size} of axis {axis}")
        return module_of(x).take(x, indices, axis=axis)
    x = jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jnp.inexact):
        return jnp.take(x, indices, axis=axis, mode="fill")
    return jnp.take(x, _wrapped(indices, size), axis=axis, mode="clip")


def _gather_elements(at: At, x: Any, indices: Any) -> Any:
    """``x`` at other places along one axis."""
    axis = at.axis(at.get("axis", 0), x.ndim)
    mode = "fill" if jnp.issubdtype(x.dtype, jnp.inexact) else "clip"

    def run(x: Any, indices: Any) -> Any:
        inside = tuple(
            slice(None) if n == axis else slice(0, indices.shape[n]) for n in range(x.ndim)
        )
        return jnp.take_along_axis(x[inside], _wrapped(indices, x.shape[axis]), axis, mode=mode)

    return at.computed(run, x, indices)


def _gather_nd(at: At, x: Any, indices: Any) -> Any:
    """Slices of ``x`` by places along its first axes."""
    if at.get("batch_dims", 0):
        raise at.fail("places row by row, its batch_dims, are not read here; number the rows too")

    def run(x: Any, indices: Any) -> Any:
        places = _wrapped(indices, np.array(x.shape[: indices.shape[-1]], np.int32))
        return x.at[tuple(jnp.moveaxis(places, -1, 0))].get(mode="clip")

    return at.computed(run, x, indices)


_SCATTERED = {"none": "set", "add": "add", "mul": "multiply", "min": "min", "max": "max"}


def _scatter_nd(at: At, x: Any, indices: Any, updates: Any) -> Any:
    """``x`` with slices replaced, or changed, at places along its first axes."""

    def run(x: Any, indices: Any, updates: Any) -> Any:
        places = _wrapped(indices, np.array(x.shape[: indices.shape[-1]], np.int32))
        where = x.at[tuple(jnp.moveaxis(places, -1, 0))]
        return getattr(where, _SCATTERED[at.get("reduction", "none")])(updates, mode="drop")

    return at.computed(run, x, indices, updates)


def _expand(at: At, x: Any, shape: Any) -> Any:
    sizes = jnp.broadcast_shapes(x.shape, tuple(at.integers(shape, "sizes")))
    return module_of(x).broadcast_to(x, at.bound(sizes))


def _tile(at: At, x: Any, repeats: Any) -> Any:
    times = at.integers(repeats, "repeats")
    at.bound(a * b for a, b in zip(x.shape, times, strict=True))
    return module_of(x).tile(x, times)


def _reverse_sequence(at: At, x: Any, lengths: Any) -> Any:
    """Each row with its first steps in reverse."""
    time, batch = at.get("time_axis", 0), at.get("batch_axis", 1)
    if {time, batch} != {0, 1} or x.ndim < 2 or lengths.shape != (x.shape[batch],):
        raise at.fail("it needs the axes 0 and 1, and a length for each row")

    def reverse(x: Any, lengths: Any) -> Any:
        x = x if time == 0 else jnp.swapaxes(x, 0, 1)
        steps = jnp.arange(x.shape[0])[:, None]
        places = jnp.where(steps < lengths, lengths - 1 - steps, steps)
        y = jnp.take_along_axis(x, places.reshape(*places.shape, *[1] * (x.ndim - 2)), axis=0)
        return y if time == 0 else jnp.swapaxes(y, 0, 1)

    return by_jax(reverse, x, lengths)


# --- Which make elements, or count them ---


def _constant_of_shape(at: At, shape: Any) -> Any:
    value = np.asarray(at.get("value", np.zeros(1, np.float32)))
    if value.size != 1:
        raise at.fail(f"its value has {value.size} elements, but should have one")
    return np.full(at.bound(at.integers(shape, "sizes")), value.reshape(()))


def _range(at: At, start: Any, limit: Any, delta: Any) -> Any:
    if not (is_known(start) and is_known(limit) and is_known(delta)):
        raise at.fail(
            "its bounds follow from the values of an input, so that its size is not known"
        )
    if start.size != 1 or limit.size != 1 or delta.size != 1 or not delta.reshape(()):
        raise at.fail("it needs three single numbers, the last of which is not 0")
    first, last, step = (n.reshape(()) for n in (start, limit, delta))
    (size,) = at.bound([max(0, math.ceil((last.item() - first.item()) / step.item()))])
    return (first + np.arange(size) * step).astype(start.dtype)


def _one_hot(at: At, indices: Any, depth: Any, values: Any) -> Any:
    """A vector for each id that differs in one entry."""
    (size,) = at.integers(depth if not is_known(depth) else depth.astype(np.int64), "depth")
    axis = at.axis(at.get("axis", -1), indices.ndim + 1)
    at.bound((*indices.shape, size))

    def vectors(indices: Any, values: Any) -> Any:
        ids = indices.astype(jnp.result_type(int))  # the sum below may not fit into fewer bits
        hot = _wrapped(ids, size)[..., None] == jnp.arange(size)
        return jnp.where(jnp.moveaxis(hot, -1, axis), values[1], values[0])

    return by_jax(vectors, indices, values)


def _nonzero(at: At, x: Any) -> Any:
    if not is_known(x):
        raise at.fail("how many entries are not 0 follows from an input, so its size is not known")
    x = np.atleast_1d(x)
    at.bound((x.ndim, np.count_nonzero(x)))
    return np.stack(np.nonzero(x)).astype(np.int64)


def _shape(at: At, x: Any) -> Any:
    return np.array(x.shape[at.get("start", 0) : at.get("end", None)], np.int64)


# By the name that NumPy has for them, which is the rest of the name here in small letters.
_SMALL = ("Abs", "Ceil", "Cos", "Floor", "Log", "Reciprocal", "Round", "Sign", "Sin", "Sqrt")

OPERATORS: Mapping[str, Run] = {
    **{name: _each(name.lower()) for name in _SMALL},
    # A relu's derivative at 0 is 0, unlike that of a maximum.
    **{
        one.onnx: _activation(name)
        for name, one in SPELLINGS.items()
        if one.onnx not in ("", "Affine", "Softmax", "LogSoftmax")
    },
    "Cast": lambda at, x: _as_type(at, x, dtype_of(at.get("to", 0), f"what node {at.name} makes")),
    "CastLike": lambda at, x, y: _as_type(at, x, y.dtype),
    "Clip": _clip,
    "Dropout": _dropout,
    "Erf": _by_jax(jax.scipy.special.erf),
    "Gelu": _gelu,
    "Neg": _each("negative"),
    "Not": _each("logical_not"),
    **{name: _broadcast(name.lower()) for name in ("Equal", "Greater", "Less", "Where")},
    **{name: _broadcast(f"logical_{name.lower()}") for name in ("And", "Or", "Xor")},
    "Add": _broadcast("add"),
    "Div": _broadcast(_divide),
    "GreaterOrEqual": _broadcast("greater_equal"),
    "LessOrEqual": _broadcast("less_equal"),
    "Max": _folded("maximum"),
    "Mean": _broadcast(_mean),
    "Min": _folded("minimum"),
    "Mod": lambda at, x, y: _broadcast("fmod" if at.get("fmod", 0) else "mod")(at, x, y),
    "Mul": _broadcast("multiply"),
    "PRelu": _broadcast(lambda xp, x, slope: xp.where(x >= 0, x, slope * x)),
    "Pow": _broadcast(_power),
    "Sub": _broadcast("subtract"),
    "Sum": _folded("add"),
    "ArgMax": _argmax,
    "BatchNormalization": _batch_norm,
    "CumSum": _cumsum,
    "Gemm": _gemm,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "LogSoftmax": _softmax(jax.nn.log_softmax),
    "MatMul": _matmul,
    "ReduceL2": _reduce_l2,
    "ReduceMax": _reduction("max"),
    "ReduceMean": _reduction("mean"),
    "ReduceMin": _reduction("min"),
    "ReduceProd": _reduction("prod"),
    "ReduceSum": _reduction("sum"),
    "Softmax": _softmax(jax.nn.softmax),
    "AveragePool": _pool(False),
    "Conv": _conv,
    "GlobalAveragePool": _whole_pool("mean"),
    "GlobalMaxPool": _whole_pool("max"),
    "MaxPool": _pool(True),
    "Pad": _pad,
    "Concat": _concat,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Identity": lambda at, x: x,
    "Reshape": _reshape,
    "ReverseSequence": _reverse_sequence,
    "ScatterND": _scatter_nd,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "ConstantOfShape": _constant_of_shape,
    "NonZero": _nonzero,
    "OneHot": _one_hot,
    "Range": _range,
    "Shape": _shape,
    "Size": lambda at, x: np.array(math.prod(x.shape), np.int64),
    "If": control.branch,
    "Loop": control.loop,
    "Scan": control.scan,
}
"""By the name of the operator, what runs it."""

_OF_INPUTS = (
    AttributeError, TypeError, ValueError, IndexError, KeyError, OverflowError, ZeroDivisionError,
    MemoryError, jax.errors.JaxRuntimeError,
)  # fmt: skip


def run_operator(op_type: str, at: At, inputs: list[Any]) -> tuple[Any, ...]:
    """The outputs of a node."""
    try:
        with np.errstate(all="ignore"):  # as JAX does: infinities and NaN are values
            outputs = OPERATORS[op_type](at, *inputs)
    except RnnjaxError:
        raise
    except _OF_INPUTS as error:
        came = ", ".join("none" if x is None else f"{x.dtype}{list(x.shape)}" for x in inputs)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise at.fail(f"{op_type} cannot take inputs {came}: {reason}") from error
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    made = sum(y.size for y in outputs if is_fixed(y.size))
    at.bound([made])
    at.budget.elements -= made
    return tuple(np.asarray(y) if isinstance(y, np.generic) else y for y in outputs)
