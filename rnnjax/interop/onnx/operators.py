"""The operators of ONNX, recurrent ones and those around them: one table, one entry for each.

An entry is a function of `At` and the inputs, None where one is left out, to the output or a tuple.
Where all inputs are known before it runs, NumPy computes it: the shapes that a graph computes stay
known under ``jit``, and what follows from them can have a shape.
"""

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rnnjax.errors import InteropError, RnnjaxError
from rnnjax.interop import functions as shared
from rnnjax.interop.functions import FUNCTIONS, NUMBERED, ONNX, Nonlinearity
from rnnjax.interop.onnx.control import (
    At,
    branch,
    dtype_of,
    fitting,
    is_fixed,
    is_known,
    loop,
    module_of,
    scan,
    traced_dtype,
)
from rnnjax.interop.onnx.recurrent import RECURRENT, recurrent
from rnnjax.layers import Dropout

Run = Callable[..., Any]


def _by_jax(function: Run) -> Run:
    """A function of `At` and arrays of JAX, which known arrays become as well."""
    return lambda at, *xs: at.by_jax(functools.partial(function, at), *xs)


def _channels_last(function: Run) -> Run:
    """One that has the channels of ``x`` last, as those of `rnnjax.interop.functions`."""

    def run(at: At, x: Any, *others: Any) -> Any:
        ys = function(at, jnp.moveaxis(x, 1, -1), *others)
        return jnp.moveaxis(ys, -1, 1).astype(x.dtype)

    return _by_jax(run)


def _activation(at: At, x: Any) -> Any:
    """A function by its operator, and by our name unless it has numbers."""
    kind, numbers = at.node.op_type, dict(at.node.attributes)
    if kind in NUMBERED:
        return at.by_jax(Nonlinearity(kind, **{**NUMBERED[kind], **numbers}), x)
    if numbers:
        raise InteropError(
            f"it should have ONNX's own numbers, but has {numbers}; export basic operators"
        )
    return at.by_jax(FUNCTIONS[_OURS[kind]], x)


def _clip(at: At, x: Any, min: Any = None, max: Any = None) -> Any:
    xp = module_of(x, min, max)
    for bound, function in ((min, xp.maximum), (max, xp.minimum)):
        x = x if bound is None else function(x, xp.asarray(bound, x.dtype))
    return x


def _as_type(at: At, x: Any, dtype: np.dtype[Any]) -> Any:
    if not is_known(x):
        dtype = traced_dtype(dtype, f"node {at.node.label} casts to it")
    return x.astype(dtype)


def _dropout(at: At, x: Any, ratio: Any = None, training_mode: Any = None) -> Any:
    """``x``; with a key, some entries are 0 and the others larger."""
    if training_mode is not None and (not is_known(training_mode) or bool(training_mode)):
        raise InteropError("it drops in training mode; export the model for inference")
    if at.key is not None:
        x = Dropout(0.5 if ratio is None else float(ratio)).apply(at.key, jnp.asarray(x))
    kind = np.bool_ if at.run.graph.opset >= 10 else x.dtype
    return (x, np.ones(x.shape, kind)) if len(at.node.outputs) > 1 else x


def _broadcast(function: str | Callable[..., Any]) -> Run:
    """A function of one or more arrays, of NumPy or JAX: by its name, or of the module and them."""

    def run(at: At, *xs: Any) -> Any:
        if at.get("axis") is not None:
            raise InteropError("broadcasting along an axis is not read here; convert it to opset 7")
        at.bound(jnp.broadcast_shapes(*(x.shape for x in xs)))
        xp = module_of(*xs)
        return getattr(xp, function)(*xs) if isinstance(function, str) else function(xp, *xs)

    return run


def _folded(name: str) -> Run:
    return _broadcast(lambda xp, *xs: functools.reduce(getattr(xp, name), xs))


def _divide(xp: Any, x: Any, y: Any) -> Any:
    """The quotient; that of integers is cut off, not floored."""
    if jnp.issubdtype(x.dtype, jnp.floating):
        return x / y
    return x // y + ((x % y != 0) & ((x < 0) != (y < 0)))


@_by_jax
def _gemm(at: At, a: Any, b: Any, c: Any = None) -> Any:
    """``alpha a b + beta c``."""
    if a.ndim != 2 or b.ndim != 2:
        raise InteropError(f"it needs two matrices, but got {list(a.shape)} and {list(b.shape)}")
    a, b = (x.T if at.get(n, 0) else x for x, n in ((a, "transA"), (b, "transB")))
    alpha, beta = (jnp.asarray(at.get(n, 1.0), a.dtype) for n in ("alpha", "beta"))
    y = alpha * (a @ b)
    return y if c is None else y + beta * jnp.broadcast_to(c, y.shape)


def _reduction(name: str) -> Run:
    def run(at: At, x: Any, axes: Any = None) -> Any:
        every = [] if at.get("noop_with_empty_axes") else range(x.ndim)
        where = tuple(at.axis(axis, x.ndim) for axis in at.integers(axes, "axes") or every)
        at.bound(1 if axis in where else size for axis, size in enumerate(x.shape))
        keepdims = bool(at.get("keepdims", 1))
        return getattr(module_of(x), name)(x, axis=where, keepdims=keepdims).astype(x.dtype)

    return run


@_by_jax
def _softmax(at: At, x: Any) -> Any:
    """Over an axis, also its logarithm; before opset 13 over it and all later axes, as one."""
    function = jax.nn.softmax if at.node.op_type == "Softmax" else jax.nn.log_softmax
    new = at.run.graph.opset >= 13
    first = at.axis(at.get("axis", -1 if new else 1), x.ndim)
    return function(x, axis=first if new else tuple(range(first, x.ndim)))


def _placed(at: At, x: Any, sizes: Sequence[int]) -> tuple[Any, Any, Any]:
    """The strides and dilations of a window of these sizes, and the pads of each axis of space."""
    rank, space = len(sizes), x.shape[1:-1]
    strides, dilations = (tuple(at.get(n) or (1,) * rank) for n in ("strides", "dilations"))
    given, more = at.get("pads") or (0,) * (2 * rank), at.get("output_padding") or (0,) * rank
    numbers = (*sizes, *strides, *dilations)
    whole = len(space) == len(strides) == len(dilations) == rank > 0 and len(given) == 2 * rank
    around = (*given, *more)
    if not whole or min(numbers) < 1 or min(around) < 0 or max(*numbers, *around) >= 2**31:
        raise InteropError(
            f"its window, strides, dilations and pads do not fit its space {list(space)}"
        )
    return strides, dilations, list(zip(given[:rank], given[rank:], strict=True))


def _window(at: At, x: Any, sizes: Sequence[int]) -> tuple[Any, Any, Any, Any]:
    """Strides, dilations and pads of a window that moves over ``x (batch, *space, channels)``.

    The last are the pads with what a last window takes beyond them.
    """
    strides, dilations, given = _placed(at, x, sizes)
    space, automatic = x.shape[1:-1], at.get("auto_pad", "NOTSET")
    if automatic != "NOTSET":
        reach = [(size - 1) * step + 1 for size, step in zip(sizes, dilations, strict=True)]
        given = lax.padtype_to_pads(space, reach, strides, automatic.removesuffix("_UPPER"))
    pads = [*given]
    if automatic == "NOTSET" and at.get("ceil_mode", 0):  # one that is not whole, but begins inside
        for i, (n, (low, high)) in enumerate(zip(space, given, strict=True)):
            reach = (sizes[i] - 1) * dilations[i] + 1
            more = -(n + low + high - reach) % strides[i]
            pads[i] = low, high + (more if high + more < reach else 0)
    wide = [n + low + high for n, (low, high) in zip(space, pads, strict=True)]
    at.bound((x.shape[0], x.shape[-1], *wide))
    return strides, dilations, given, pads


@_channels_last
def _conv(at: At, x: Any, kernel: Any, bias: Any = None) -> Any:
    """Products with a kernel at every place: cross-correlation, in groups of channels."""
    strides, dilations, pads, _ = _window(at, x, kernel.shape[2:])
    turned = jnp.moveaxis(kernel, (0, 1), (-1, -2))
    return shared.conv(x, turned, bias, strides, pads, dilations, at.get("group", 1))


@_channels_last
def _conv_transpose(at: At, x: Any, kernel: Any, bias: Any = None) -> Any:
    """The transpose of a convolution: entries of ``x`` far apart, and the kernel turned around."""
    strides, steps, pads = _placed(at, x, kernel.shape[2:])
    rank, groups, automatic = len(strides), at.get("group", 1), at.get("auto_pad", "NOTSET")
    more, sizes = at.get("output_padding") or (0,) * rank, at.get("output_shape")
    reach = [(size - 1) * step for size, step in zip(kernel.shape[2:], steps, strict=True)]
    if automatic.startswith("SAME") and not sizes:
        sizes = [n * stride for n, stride in zip(x.shape[1:-1], strides, strict=True)]
    if sizes:
        every = zip(x.shape[1:-1], strides, more, reach, sizes[-rank:], strict=True)
        away = [stride * (n - 1) + m + r + 1 - size for n, stride, m, r, size in every]
        less = [n // 2 if automatic == "SAME_UPPER" else n - n // 2 for n in away]
        pads = [(low, n - low) for n, low in zip(away, less, strict=True)]
    around = [(r - low, r - high + m) for r, (low, high), m in zip(reach, pads, more, strict=True)]
    places = zip(x.shape[1:-1], strides, around, strict=True)
    wide = [n * stride + max(0, low) + max(0, high) for n, stride, (low, high) in places]
    at.bound((x.shape[0], x.shape[-1], *wide))
    apart = jnp.flip(kernel, tuple(range(2, 2 + rank))).reshape(groups, -1, *kernel.shape[1:])
    turned = jnp.moveaxis(apart, (1, 0, 2), (-3, -2, -1))
    turned = turned.reshape(*turned.shape[:-2], -1)
    return shared.conv(x, turned, bias, (1,) * rank, around, steps, groups, strides)


@_channels_last
def _pool(at: At, x: Any) -> Any:
    if any(at.node.outputs[1:]):
        raise InteropError("its second output, of places, is not read here; leave it out")
    sizes, maximum = at.get("kernel_shape"), at.node.op_type == "MaxPool"
    strides, dilations, given, pads = _window(at, x, sizes)
    if at.get("count_include_pad", 0):  # zeros that are given count; those beyond them do not
        x = jnp.pad(x, [(0, 0), *given, (0, 0)])
        pads = [(0, high - own) for (_, high), (_, own) in zip(pads, given, strict=True)]
    return shared.pool(x, maximum, sizes, strides, pads, dilations)


def _whole_pool(name: str) -> Run:
    # Without space there is nothing to reduce, and a reduction over no axes is one over all.
    return lambda at, x: _reduction(name)(at, x, np.arange(2, x.ndim)) if x.ndim > 2 else x


_PADS = "constant", "edge", "reflect", "wrap"


def _pad(at: At, x: Any, pads: Any = None, value: Any = None, axes: Any = None) -> Any:
    """``x`` with more around it, or with less where a number is negative."""
    numbers, mode = at.integers(pads, "pads"), at.get("mode", "constant")
    every = range(x.ndim) if axes is None else at.integers(axes, "axes")
    along = [at.axis(axis, x.ndim) for axis in every]
    if len(numbers) != 2 * len({*along}) or mode not in _PADS:
        raise InteropError(
            f"its pads {numbers} should be two for each of the axes {along}, and its mode "
            f"{mode!r} one of {', '.join(_PADS)}"
        )
    around = [(0, 0)] * x.ndim
    for axis, *both in zip(along, numbers[: len(along)], numbers[len(along) :], strict=True):
        around[axis] = (both[0], both[1])
    sizes = list(zip(x.shape, around, strict=True))
    at.bound(n + max(0, low) + max(0, high) for n, (low, high) in sizes)
    # What is not there cannot be taken away or repeated; nor all of it twice, which JAX would do
    # piece by piece.
    less = any(n + min(0, low) + min(0, high) < 0 for n, (low, high) in sizes)
    more = mode in ("reflect", "wrap") and any(is_fixed(n) and max(b) > n for n, b in sizes)
    if less or more or (mode != "constant" and not x.size):
        raise InteropError(
            f"its pads {numbers} take away more than {list(x.shape)} has, or repeat more; fix them"
        )

    def run(x: Any, value: Any) -> Any:
        if mode != "constant":
            return jnp.pad(x, around, mode)
        filling = jnp.asarray(0 if value is None else value, x.dtype).reshape(())
        return lax.pad(x, filling, [(low, high, 0) for low, high in around])

    return at.by_jax(run, x, value)


def _reshape(at: At, x: Any, shape: Any = None) -> Any:
    """``x`` in another shape, in which 0 copies a size, and one -1 is what is left."""
    sizes, copies = at.integers(shape, "shape"), not at.get("allowzero", 0)
    if any(n < -1 or (copies and n == 0 and i >= x.ndim) for i, n in enumerate(sizes)):
        raise InteropError(f"{sizes} is no shape for its input {list(x.shape)}")
    return x.reshape([x.shape[i] if copies and n == 0 else n for i, n in enumerate(sizes)])


def _flatten(at: At, x: Any) -> Any:
    axis = at.get("axis", 1)
    axis = axis if axis == x.ndim else at.axis(axis, x.ndim)
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def _split(at: At, x: Any, split: Any = None) -> Any:
    axis, parts = at.axis(at.get("axis", 0), x.ndim), len(at.node.outputs)
    length, sizes = x.shape[axis], at.integers(split, "split")
    if split is None:
        # From opset 18 on, which has this attribute, the last one may be smaller.
        size = -(-length // parts) if at.get("num_outputs") else length // parts
        sizes = [max(0, min(size, length - i * size)) for i in range(parts)]
    if sum(sizes) != length or min(sizes) < 0 or at.get("num_outputs", len(sizes)) != parts:
        raise InteropError(
            f"parts of sizes {sizes} are not the {length} of axis {axis} for {parts} outputs"
        )
    return tuple(module_of(x).split(x, np.cumsum(sizes)[:-1], axis=axis))


def _slice(
    at: At, x: Any, starts: Any = None, ends: Any = None, axes: Any = None, steps: Any = None
) -> Any:
    """Slice from ``starts`` to ``ends`` along axes, like Python except for some negative steps."""
    if not is_known(starts) and starts.shape == (1,):  # x[i] of a number that the graph computes
        axis = at.axis((at.integers(axes, "axes") or [0])[0], x.ndim)
        for other in at.nodes:
            if other.op_type == "Squeeze" and other.inputs[0] == at.node.outputs[0]:
                without = other.get("axes", at.values.get(other.input(1), ()))
                if not isinstance(without, jax.Array) and axis in np.ravel(without) % x.ndim:
                    return _entries(x, starts, axis)  # one, or the Squeeze would not fit
    first, last = at.integers(starts, "starts"), at.integers(ends, "ends")
    along = [at.axis(n, x.ndim) for n in at.integers(axes, "axes") or range(len(first))]
    stride = [1] * len(first) if steps is None else at.integers(steps, "steps")
    if not len(first) == len(last) == len({*along}) == len(stride) or 0 in stride:
        raise InteropError(f"starts {first}, ends {last}, axes {along}, steps {stride} do not fit")
    where = [slice(None)] * x.ndim
    for start, end, axis, step in zip(first, last, along, stride, strict=True):
        if step < 0 and is_fixed(x.shape[axis]):  # it begins within the axis
            start = max(start, -x.shape[axis])
        # XLA ends the process where a step beyond the axis overflows its 64 bits.
        where[axis] = slice(start, end, min(max(step, 1 - 2**31), 2**31 - 1))
    return x[tuple(where)]


def _entries(x: Any, indices: Any, axis: int) -> Any:
    x = jnp.asarray(fitting(x))
    return x.at[(*[slice(None)] * axis, indices)].get(mode=_outside(x))


def _outside(x: Any) -> str:
    """Return the mode for indices out of range: NaN, or for integers the nearest entry."""
    return "fill" if jnp.issubdtype(x.dtype, jnp.inexact) else "clip"


def _gather(at: At, x: Any, indices: Any) -> Any:
    """Slices of ``x`` by their places along an axis; negative ones count from the end."""
    axis = at.axis(at.get("axis", 0), x.ndim)
    at.bound((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))
    if is_known(x) and is_known(indices):
        return np.take(x, indices, axis)
    return _entries(x, indices, axis)


@_by_jax
def _gather_elements(at: At, x: Any, indices: Any) -> Any:
    axis = at.axis(at.get("axis", 0), x.ndim)
    inside = [slice(None) if n == axis else slice(0, s) for n, s in enumerate(indices.shape)]
    return jnp.take_along_axis(x[tuple(inside)], indices, axis, mode=_outside(x))


@_by_jax
def _gather_nd(at: At, x: Any, indices: Any) -> Any:
    def gather(x: Any, indices: Any) -> Any:
        return x.at[tuple(jnp.moveaxis(indices, -1, 0))].get(mode=_outside(x))

    for _ in range(at.get("batch_dims", 0)):
        gather = jax.vmap(gather)
    return gather(x, indices)


@_by_jax
def _scatter_nd(at: At, x: Any, indices: Any, updates: Any) -> Any:
    where = x.at[tuple(jnp.moveaxis(indices, -1, 0))]
    how = {"none": "set", "add": "add", "mul": "mul", "min": "min", "max": "max"}
    return getattr(where, how[at.get("reduction", "none")])(updates, mode="drop")


def _tile(at: At, x: Any, repeats: Any) -> Any:
    times = at.integers(repeats, "repeats")
    at.bound(a * b for a, b in zip(x.shape, times, strict=True))
    return module_of(x).tile(x, times)


@_by_jax
def _reverse_sequence(at: At, x: Any, lengths: Any) -> Any:
    time, batch = at.get("time_axis", 0), at.get("batch_axis", 1)
    if {time, batch} != {0, 1} or x.ndim < 2 or lengths.shape != (x.shape[batch],):
        raise InteropError(
            f"its axes should be 0 and 1 of {list(x.shape)}, with a length for each row, but are "
            f"{time} and {batch}, with lengths {list(lengths.shape)}"
        )
    steps = jnp.arange(x.shape[time])[:, None]
    places = jnp.where(steps < lengths, lengths - 1 - steps, steps)
    places = jnp.expand_dims(places.T if time else places, tuple(range(2, x.ndim)))
    return jnp.take_along_axis(x, places, axis=time)


def _range(at: At, start: Any, limit: Any, delta: Any) -> Any:
    first, last, step = (at.known(n, "bounds").item() for n in (start, limit, delta))
    (size,) = at.bound([max(0, math.ceil((last - first) / step))])
    return (first + np.arange(size) * step).astype(start.dtype)


def _one_hot(at: At, indices: Any, depth: Any, values: Any) -> Any:
    (size,) = at.integers(at.known(depth, "depth").astype(np.int64), "depth")
    axis = at.axis(at.get("axis", -1), indices.ndim + 1)
    at.bound((*indices.shape, size))

    def vectors(indices: Any, values: Any) -> Any:
        ids = indices.astype(jnp.result_type(int))  # the sum below may not fit into fewer bits
        ids = jnp.where(ids < 0, ids + size, ids)
        hot = jax.nn.one_hot(ids, size, dtype=bool, axis=axis)
        return jnp.where(hot, values[1], values[0])

    return at.by_jax(vectors, indices, values)


def _nonzero(at: At, x: Any) -> Any:
    x = np.atleast_1d(at.known(x, "places"))
    at.bound((x.ndim, np.count_nonzero(x)))
    return np.stack(np.nonzero(x)).astype(np.int64)


# By the name that NumPy has for them, which is the rest of the name here in small letters.
_SMALL = (
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Cos", "Cosh", "Equal",
    "Floor", "Greater", "Less", "Log", "Reciprocal", "Round", "Sign", "Sin", "Sinh", "Sqrt", "Tan",
    "Where",
)  # fmt: skip
_OTHER = "Affine", "Softmax", "LogSoftmax", "Gelu"
_OURS = {kind: name for name, (kind, _) in ONNX.items() if kind not in _OTHER}
_REDUCTIONS = ("Max", "Mean", "Min", "Prod", "Sum")

# Left out on purpose, for no recurrent model was seen to have them: quantised numbers, Affine,
# GroupNormalization, ScaledTanh, ThresholdedRelu, TopK and Trilu.
OPERATORS: Mapping[str, Run] = {
    **dict.fromkeys(RECURRENT, recurrent),
    **{name: _broadcast(name.lower()) for name in _SMALL},
    # A relu's derivative at 0 is 0, unlike that of a maximum.
    **dict.fromkeys((*_OURS, *NUMBERED), _activation),
    **{name: _broadcast(f"logical_{name.lower()}") for name in ("And", "Or", "Xor")},
    **{f"Reduce{name}": _reduction(name.lower()) for name in _REDUCTIONS},
    "Cast": lambda at, x: _as_type(at, x, dtype_of(at.get("to", 0), "what a Cast makes")),
    "CastLike": lambda at, x, y: _as_type(at, x, y.dtype),
    "Einsum": _by_jax(lambda at, *xs: jnp.einsum(at.get("equation"), *xs)),
    "Erf": _by_jax(lambda at, x: jax.scipy.special.erf(x)),
    "Gelu": _by_jax(lambda at, x: jax.nn.gelu(x, at.get("approximate") == "tanh")),
    "Identity": lambda at, x: x,
    "Mod": lambda at, x, y: _broadcast("fmod" if at.get("fmod", 0) else "mod")(at, x, y),
    "PRelu": _broadcast(lambda xp, x, slope: xp.where(x >= 0, x, slope * x)),
    "Shape": lambda at, x: np.array(x.shape[at.get("start", 0) : at.get("end")], np.int64),
    "Size": lambda at, x: np.array(math.prod(x.shape), np.int64),
    "Transpose": lambda at, x: module_of(x).transpose(x, at.get("perm")),
    "Unsqueeze": lambda at, x, axes: module_of(x).expand_dims(x, at.integers(axes, "axes")),
    "Add": _broadcast("add"), "Div": _broadcast(_divide), "Max": _folded("maximum"),
    "Mean": _broadcast(lambda xp, *xs: functools.reduce(xp.add, xs) / len(xs)),
    "Min": _folded("minimum"), "Mul": _broadcast("multiply"),
    "Pow": _broadcast(lambda xp, x, y: xp.power(x, y).astype(xp.asarray(x).dtype)),  # of x's type
    "Sub": _broadcast("subtract"), "Sum": _folded("add"),
    "GreaterOrEqual": _broadcast("greater_equal"), "LessOrEqual": _broadcast("less_equal"),
    "Neg": _broadcast("negative"), "Not": _broadcast("logical_not"),
    "LogSoftmax": _softmax, "Softmax": _softmax, "AveragePool": _pool, "MaxPool": _pool,
    "GlobalAveragePool": _whole_pool("mean"), "GlobalMaxPool": _whole_pool("max"),
    "ArgMax": lambda at, x: module_of(x).argmax(
        x, axis=at.axis(at.get("axis", 0), x.ndim), keepdims=bool(at.get("keepdims", 1))
    ),
    "ReduceL2": lambda at, x, axes=None: module_of(x).sqrt(
        _reduction("sum")(at, x * x, axes)
    ).astype(x.dtype),
    "BatchNormalization": _channels_last(
        lambda at, x, scale, bias, mean, variance: shared.normalize(
            x, mean, variance, at.get("epsilon", 1e-5), scale, bias)),
    "InstanceNormalization": _channels_last(lambda at, x, *by: shared.standardize(
        x, range(1, x.ndim - 1), at.get("epsilon", 1e-5), *by)),
    # Over the axes from one on; only its first output is made.
    "LayerNormalization": _by_jax(lambda at, x, scale, bias=None: shared.standardize(
        x, range(at.axis(at.get("axis", -1), x.ndim), x.ndim), at.get("epsilon", 1e-5), scale, bias,
    )),
    "CumSum": lambda at, x, axis: at.by_jax(functools.partial(
        jnp.cumsum, axis=at.axis(*at.integers(axis, "axis"), x.ndim), dtype=x.dtype), x),
    "Clip": _clip, "Conv": _conv, "Dropout": _dropout,
    "ConvTranspose": _conv_transpose,
    "Concat": lambda at, *xs: at.bound([sum(x.size for x in xs)])
    and module_of(*xs).concatenate(xs, axis=at.get("axis", 1)),
    "ConstantOfShape": lambda at, shape: np.full(
        at.bound(at.integers(shape, "sizes")), at.get("value", np.float32(0))
    ),
    "Expand": lambda at, x, shape: module_of(x).broadcast_to(
        x, at.bound(jnp.broadcast_shapes(x.shape, tuple(at.integers(shape, "sizes"))))
    ),
    "Squeeze": lambda at, x, axes=None: module_of(x).squeeze(
        x, None if axes is None else tuple(at.integers(axes, "axes"))
    ),
    "Flatten": _flatten, "Gather": _gather, "GatherElements": _gather_elements,
    "GatherND": _gather_nd, "Gemm": _gemm,
    "MatMul": _by_jax(lambda at, *xs: jnp.matmul(*xs)),
    "NonZero": _nonzero, "OneHot": _one_hot, "Pad": _pad, "Range": _range, "Reshape": _reshape,
    "ReverseSequence": _reverse_sequence, "ScatterND": _scatter_nd, "Slice": _slice,
    "Split": _split, "Tile": _tile, "If": branch, "Loop": loop, "Scan": scan,
}  # fmt: skip
"""The functions that run operators, by name."""

_OF_INPUTS = (
    AttributeError, TypeError, ValueError, IndexError, KeyError, OverflowError, ZeroDivisionError,
    MemoryError, jax.errors.JaxRuntimeError,
)  # fmt: skip


@functools.cache
def _parameters(function: Run) -> tuple[str, ...]:
    """The names of its inputs, without a last one that stands for any number of them."""
    named = inspect.signature(function).parameters.values()
    return tuple(one.name for one in named if one.kind is not one.VAR_POSITIONAL)[1:]


def run_operator(op_type: str, at: At, inputs: list[Any]) -> tuple[Any, ...]:
    """Compute the outputs of a node."""
    function = OPERATORS[op_type]
    # What is an input of new models is an attribute of old ones.
    attributes = map(at.get, _parameters(function)[len(inputs) :])
    inputs = [*inputs, *(None if one is None else np.asarray(one) for one in attributes)]
    try:
        with np.errstate(all="ignore"):  # as JAX does: infinities and NaN are values
            outputs = function(at, *inputs)
    except RnnjaxError:
        raise
    except _OF_INPUTS as error:
        came = ", ".join("none" if x is None else f"{x.dtype}{list(x.shape)}" for x in inputs)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InteropError(f"{op_type} cannot take inputs {came}: {reason}") from error
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    for y in outputs:
        at.bound(y.shape)
        at.run.left[at.budget] -= y.size if is_fixed(y.size) else 0
    return tuple(np.asarray(y) if isinstance(y, np.generic) else y for y in outputs)
