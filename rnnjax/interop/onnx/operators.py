"""ONNX's operators that stand around recurrent ones: each a function of arrays.

Where all inputs of one are known before it runs, NumPy computes it: the shapes that a graph
computes stay known under ``jit``, and what follows from them can have a shape.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.errors import InteropError
from rnnjax.interop.functions import ELU, HardSigmoid, LeakyReLU, ThresholdedReLU
from rnnjax.interop.onnx.files import dtype_of

MOST_ELEMENTS = 2**28
"""In the largest array that a graph may ask for; more is a mistake or ill will."""

MOST_KNOWN_ELEMENTS = 2**24
"""In all arrays together that follow from constants, which are made when a graph is traced."""

_LONGEST = 2**63 - 1


@dataclasses.dataclass(frozen=True)
class At:
    """What an operator is told besides its inputs.

    Attributes:
        name: of the node, for errors.
        opset: the version of ONNX's operators in the model.
        attributes: of the node.
        num_outputs: how many outputs it has.
        most_elements: in the largest array that it may make.
    """

    name: str
    opset: int
    attributes: Mapping[str, Any]
    num_outputs: int = 1
    most_elements: int = MOST_ELEMENTS

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute, or the default."""
        return self.attributes.get(name, default)

    def fail(self, message: str) -> InteropError:
        """An error that names the node."""
        return InteropError(f"node {self.name}: {message}")

    def bound(self, shape: Any) -> tuple[int, ...]:
        """The shape, if an array of it may be made."""
        sizes = tuple(int(size) for size in shape)
        if any(size < 0 for size in sizes) or math.prod(sizes) > self.most_elements:
            raise TooLargeError(
                f"node {self.name}: it asks for an array of shape {list(sizes)[:8]}, but at most "
                f"{self.most_elements:,} elements are made"
            )
        return sizes


Operator = Callable[..., Any]
"""From `At` and the inputs, None where one is left out, to the output, or a tuple of several."""


def is_known(array: Any) -> bool:
    """Whether the values are known before the graph runs."""
    return array is None or isinstance(array, np.ndarray | np.generic)


class TooLargeError(InteropError):
    """A graph asks for a larger array than may be made where it runs."""


def run_operator(op_type: str, at: At, inputs: list[Any]) -> tuple[Any, ...]:
    """The outputs of a node.

    Raises:
        InteropError: the inputs do not fit, with the name of the node.
    """
    try:
        with np.errstate(all="ignore"):  # as JAX does: infinities and NaN are values
            outputs = OPERATORS[op_type](at, *inputs)
    except InteropError:
        raise
    except (TypeError, ValueError, IndexError, KeyError, OverflowError, ZeroDivisionError) as error:
        came = ", ".join("none" if x is None else f"{x.dtype}{list(x.shape)}" for x in inputs)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise at.fail(f"{op_type} cannot take inputs {came}: {reason}") from error
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return tuple(np.asarray(y) if isinstance(y, np.generic) else y for y in outputs)


def _module(*arrays: Any) -> Any:
    return np if all(map(is_known, arrays)) else jnp


def _integers(at: At, array: Any, what: str) -> list[int]:
    """Axes, shapes, and so on: they have to be known."""
    if not is_known(array):
        raise at.fail(
            f"its {what} follow from the values of an input, so that shapes are not known when the "
            "graph is compiled; make them constant before exporting"
        )
    if array.dtype.kind not in "iu" or array.ndim > 1:
        raise at.fail(f"its {what} are {array.dtype}{list(array.shape)}, but should be integers")
    return [int(number) for number in array.reshape(-1)]


def _axes(at: At, attribute: Any, given: Any) -> list[int] | None:
    """Axes from an attribute in old models and from an input in new ones."""
    if attribute is not None:
        return [int(axis) for axis in attribute]
    return None if given is None else _integers(at, given, "axes")


def _normal(at: At, axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise at.fail(f"axis {axis} is not one of the {rank} axes of its input")
    return axis % rank


# --- Pointwise ---


def _pointwise(function: Callable[[Any, Any], Any]) -> Operator:
    def run(at: At, x: Any) -> Any:
        return function(_module(x), x)

    return run


_NUMBERS = ("alpha", "beta", "gamma", "bias", "lambd")


def _by_jax(function: Callable[..., Any]) -> Operator:
    """One input, computed by JAX; a known input gives a known output all the same."""

    def run(at: At, x: Any) -> Any:
        numbers = {key: at.get(key) for key in _NUMBERS if key in at.attributes}
        return _by_jax_of(lambda x: function(x, **numbers), x)

    return run


def _by_jax_of(function: Callable[..., Any], *arrays: Any) -> Any:
    if not all(map(is_known, arrays)):
        return function(*map(jnp.asarray, arrays))
    with jax.ensure_compile_time_eval():  # under jit as well
        return np.asarray(function(*map(jnp.asarray, arrays)))


def _by_class(kind: type[Any]) -> Operator:
    """One of `rnnjax.interop.functions`, whose defaults are those of the operator."""
    return _by_jax(lambda x, **numbers: kind(**numbers)(x))


def _selu(
    x: Any, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875
) -> Any:
    return gamma * ELU(alpha)(x)


def _shrink(x: Any, bias: float = 0.0, lambd: float = 0.5) -> Any:
    return jnp.where(x < -lambd, x + bias, jnp.where(x > lambd, x - bias, 0))


def _prelu(at: At, x: Any, slope: Any) -> Any:
    at.bound(np.broadcast_shapes(x.shape, slope.shape))
    return _by_jax_of(lambda x, slope: jnp.where(x >= 0, x, slope * x), x, slope)


def _gelu(at: At, x: Any) -> Any:
    tanh = at.get("approximate", "none") == "tanh"
    return _by_jax_of(lambda x: jax.nn.gelu(x, approximate=tanh), x)


def _binary(function: Callable[[Any, Any, Any], Any]) -> Operator:
    def run(at: At, x: Any, y: Any) -> Any:
        if at.get("axis") is not None:
            raise at.fail("broadcasting along a named axis, of opsets before 7, is not read here")
        at.bound(np.broadcast_shapes(x.shape, y.shape))
        _same_type(at, x, y)
        return function(_module(x, y), x, y)

    return run


def _same_type(at: At, *arrays: Any) -> None:
    kinds = {x.dtype.kind for x in arrays if x is not None}
    if len(kinds) > 1:
        names = ", ".join(str(x.dtype) for x in arrays if x is not None)
        raise at.fail(f"its inputs are of types {names}, but have to be of one")


def _divide(xp: Any, x: Any, y: Any) -> Any:
    if jnp.issubdtype(x.dtype, jnp.floating):
        return x / y
    quotient = x // y
    return quotient + ((x % y != 0) & ((x < 0) != (y < 0)))  # integers are cut off, not floored


def _power(at: At, x: Any, y: Any) -> Any:
    at.bound(np.broadcast_shapes(x.shape, y.shape))
    xp = _module(x, y)
    return xp.power(x, y).astype(x.dtype)


def _variadic(function: Callable[[Any, Any, Any], Any]) -> Operator:
    pair = _binary(function)

    def run(at: At, first: Any, *others: Any) -> Any:
        for other in others:
            first = pair(at, first, other)
        return first

    return run


def _clip(at: At, x: Any, low: Any = None, high: Any = None) -> Any:
    low = at.get("min", low)
    high = at.get("max", high)
    xp = _module(x, *(bound for bound in (low, high) if not isinstance(bound, float)))
    if low is not None:
        x = xp.maximum(x, xp.asarray(low, x.dtype))
    if high is not None:
        x = xp.minimum(x, xp.asarray(high, x.dtype))
    return x


def _where(at: At, condition: Any, x: Any, y: Any) -> Any:
    at.bound(np.broadcast_shapes(condition.shape, x.shape, y.shape))
    if condition.dtype != bool:
        raise at.fail(f"its condition is {condition.dtype}, but should be booleans")
    return _module(condition, x, y).where(condition, x, y)


def _cast(at: At, x: Any) -> Any:
    dtype = dtype_of(at.get("to", 0), f"what node {at.name} casts to")
    if is_known(x):
        return x.astype(dtype)
    return x.astype(traced_dtype(dtype, f"node {at.name} casts to it"))


def traced_dtype(dtype: np.dtype[Any], what: str) -> np.dtype[Any]:
    """JAX's type for one of ONNX: integers of 64 bits are of 32 where JAX has no others.

    Raises:
        InteropError: it is float64, and JAX was not told to have it.
    """
    canonical = jax.dtypes.canonicalize_dtype(dtype)
    if dtype == np.float64 and canonical != dtype:
        raise InteropError(
            f"the model computes in float64 ({what}), which JAX has only where it is told so: "
            'jax.config.update("jax_enable_x64", True), or convert the model to float32'
        )
    return canonical


def _dropout(at: At, x: Any, ratio: Any = None, training_mode: Any = None) -> Any:
    if training_mode is not None and (not is_known(training_mode) or bool(training_mode)):
        raise at.fail("it drops in training mode; export the model for inference")
    return (x, np.ones(x.shape, np.bool_)) if at.num_outputs > 1 else x


# --- Products and sums ---


def _matmul(at: At, x: Any, y: Any) -> Any:
    if not x.ndim or not y.ndim:
        raise at.fail("MatMul needs inputs with axes")
    batch = np.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    at.bound((*batch, *x.shape[-2:-1], *(y.shape[-1:] if y.ndim > 1 else ())))
    _same_type(at, x, y)
    return _module(x, y).matmul(x, y)


def _gemm(at: At, a: Any, b: Any, c: Any = None) -> Any:
    if a.ndim != 2 or b.ndim != 2:
        raise at.fail(
            f"Gemm needs two matrices, but got shapes {list(a.shape)} and {list(b.shape)}"
        )
    a = a.T if at.get("transA", 0) else a
    b = b.T if at.get("transB", 0) else b
    at.bound((a.shape[0], b.shape[1]))
    xp = _module(a, b, c)
    y = xp.asarray(at.get("alpha", 1.0), a.dtype) * xp.matmul(a, b)
    if c is not None:
        y = y + xp.asarray(at.get("beta", 1.0), a.dtype) * xp.broadcast_to(c, y.shape)
    return y


def _reduction(name: str) -> Operator:
    def run(at: At, x: Any, axes_input: Any = None) -> Any:
        axes = _axes(at, at.get("axes"), axes_input)
        if not axes:
            if at.get("noop_with_empty_axes", 0):
                return x
            axes = list(range(x.ndim))
        where = tuple(_normal(at, axis, x.ndim) for axis in axes)
        y = getattr(_module(x), name)(x, axis=where, keepdims=bool(at.get("keepdims", 1)))
        return y.astype(x.dtype)

    return run


def _arg_max(at: At, x: Any) -> Any:
    axis = _normal(at, at.get("axis", 0), x.ndim)
    xp = _module(x)
    last = bool(at.get("select_last_index", 0))
    place = xp.argmax(
        xp.flip(x, axis) if last else x, axis=axis, keepdims=bool(at.get("keepdims", 1))
    )
    return x.shape[axis] - 1 - place if last else place


def _softmax(function: Callable[..., Any]) -> Operator:
    def run(at: At, x: Any) -> Any:
        first = _normal(at, at.get("axis", -1 if at.opset >= 13 else 1), x.ndim)
        # Before opset 13 over all axes from this one on, as one.
        axes = first if at.opset >= 13 else tuple(range(first, x.ndim))
        return _by_jax_of(lambda x: function(x, axis=axes), x)

    return run


# --- Shapes and places ---


def _shape(at: At, x: Any) -> Any:
    return np.array(x.shape[at.get("start", 0) : at.get("end", None)], np.int64)


def _size(at: At, x: Any) -> Any:
    return np.array(math.prod(x.shape), np.int64)


def _reshape(at: At, x: Any, shape: Any = None) -> Any:
    given = at.get("shape")
    sizes = [int(n) for n in given] if given is not None else _integers(at, shape, "sizes")
    if not at.get("allowzero", 0):
        if any(n == 0 and i >= x.ndim for i, n in enumerate(sizes)):
            raise at.fail(f"its shape {sizes} copies a size that the input {list(x.shape)} lacks")
        sizes = [x.shape[i] if n == 0 else n for i, n in enumerate(sizes)]
    if sizes.count(-1) > 1 or any(n < -1 for n in sizes):
        raise at.fail(f"{sizes} is no shape")
    at.bound(abs(n) for n in sizes)
    return x.reshape(sizes)


def _flatten(at: At, x: Any) -> Any:
    axis = at.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    if not 0 <= axis <= x.ndim:
        raise at.fail(f"axis {axis} is not one of the {x.ndim} axes of its input")
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def _squeeze(at: At, x: Any, axes_input: Any = None) -> Any:
    axes = _axes(at, at.get("axes"), axes_input)
    if axes is None:
        axes = [i for i, size in enumerate(x.shape) if size == 1]
    where = {_normal(at, axis, x.ndim) for axis in axes}
    if any(x.shape[axis] != 1 for axis in where):
        raise at.fail(f"axes {axes} of shape {list(x.shape)} are not all of size 1")
    return x.reshape([size for i, size in enumerate(x.shape) if i not in where])


def _unsqueeze(at: At, x: Any, axes_input: Any = None) -> Any:
    axes = _axes(at, at.get("axes"), axes_input)
    if axes is None:
        raise at.fail("it names no axes")
    rank = x.ndim + len(axes)
    where = {_normal(at, axis, rank) for axis in axes}
    if len(where) < len(axes):
        raise at.fail(f"axes {axes} name one twice")
    sizes = iter(x.shape)
    return x.reshape([1 if i in where else next(sizes) for i in range(rank)])


def _transpose(at: At, x: Any) -> Any:
    return _module(x).transpose(x, at.get("perm"))


def _concat(at: At, *arrays: Any) -> Any:
    if not all(x.ndim for x in arrays):
        raise at.fail("Concat needs arrays with axes")
    axis = _normal(at, at.get("axis", 1), arrays[0].ndim)
    at.bound([sum(x.size for x in arrays)])
    _same_type(at, *arrays)
    return _module(*arrays).concatenate(arrays, axis=axis)


def _split(at: At, x: Any, sizes_input: Any = None) -> Any:
    axis = _normal(at, at.get("axis", 0), x.ndim)
    length = x.shape[axis]
    sizes = _axes(at, at.get("split"), sizes_input)
    if sizes is None:
        parts = at.get("num_outputs", at.num_outputs)
        if not 0 < parts <= MOST_ELEMENTS:
            raise at.fail(f"it has {parts} outputs")
        size = -(-length // parts)  # the last one may be smaller
        sizes = [max(0, min(size, length - i * size)) for i in range(parts)]
    if sum(sizes) != length or min(sizes) < 0 or len(sizes) < at.num_outputs:
        raise at.fail(f"parts of sizes {sizes} are not the {length} of axis {axis}")
    places = np.cumsum(sizes)[:-1]
    return tuple(_module(x).split(x, places, axis=axis))


def _slice(
    at: At, x: Any, starts: Any = None, ends: Any = None, axes: Any = None, steps: Any = None
) -> Any:
    if starts is None:  # attributes, before opset 10
        first, last = at.get("starts"), at.get("ends")
    else:
        first, last = _integers(at, starts, "starts"), _integers(at, ends, "ends")
    along = _axes(at, at.get("axes"), axes) or list(range(len(first)))
    stride = [1] * len(first) if steps is None else _integers(at, steps, "steps")
    if not len(first) == len(last) == len(along) == len(stride) or 0 in stride:
        raise at.fail(f"starts {first}, ends {last}, axes {along}, steps {stride} do not fit")
    where = [slice(None)] * x.ndim
    for start, end, axis, step in zip(first, last, along, stride, strict=True):
        axis = _normal(at, axis, x.ndim)
        size = x.shape[axis]
        # As in ONNX: a negative end beyond the beginning is the place before it, not the last.
        if step > 0:
            begin, stop = (min(max(n + size * (n < 0), 0), size) for n in (start, end))
            where[axis] = slice(begin, stop, step)
        else:
            begin = min(max(start + size * (start < 0), 0), size - 1)
            stop = min(max(end + size * (end < 0), -1), size - 1)
            where[axis] = slice(begin, None if stop < 0 else stop, max(step, -_LONGEST))
            if not size:
                where[axis] = slice(0, 0)
    return x[tuple(where)]


def _gather(at: At, x: Any, indices: Any) -> Any:
    axis = _normal(at, at.get("axis", 0), x.ndim)
    if indices.dtype.kind not in "iu":
        raise at.fail(f"its indices are {indices.dtype}, but should be integers")
    at.bound((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))
    if is_known(indices):
        size = x.shape[axis]
        if indices.size and (indices.min() < -size or indices.max() >= size):
            raise at.fail(f"an index is outside of the {size} of axis {axis}")
        return _module(x).take(x, indices, axis=axis)
    return take_rows(jnp.asarray(x), indices, axis)


def take_rows(x: jax.Array, indices: jax.Array, axis: int) -> jax.Array:
    """Rows by ids: negative ones count from the end, those out of range give NaN.

    Where there is no NaN, they give the nearest row.
    """
    if jnp.issubdtype(x.dtype, jnp.inexact):
        return jnp.take(x, indices, axis=axis, mode="fill")
    places = jnp.where(indices < 0, indices + x.shape[axis], indices)
    return jnp.take(x, places, axis=axis, mode="clip")


def _constant(at: At) -> Any:
    for name, dtype in (
        ("value", None),
        ("value_float", np.float32),
        ("value_floats", np.float32),
        ("value_int", np.int64),
        ("value_ints", np.int64),
    ):
        if name in at.attributes:
            return np.asarray(at.attributes[name], dtype)
    raise at.fail("a Constant that is neither numbers nor an array is not read here")


def _constant_of_shape(at: At, shape: Any) -> Any:
    value = np.asarray(at.get("value", np.zeros(1, np.float32)))
    if value.size != 1:
        raise at.fail(f"its value has {value.size} elements, but should have one")
    return np.full(at.bound(_integers(at, shape, "sizes")), value.reshape(()))


def _expand(at: At, x: Any, shape: Any) -> Any:
    sizes = np.broadcast_shapes(x.shape, tuple(_integers(at, shape, "sizes")))
    return _module(x).broadcast_to(x, at.bound(sizes))


def _tile(at: At, x: Any, repeats: Any) -> Any:
    times = _integers(at, repeats, "repeats")
    if len(times) != x.ndim:
        raise at.fail(f"repeats {times} are not one for each axis of shape {list(x.shape)}")
    at.bound(a * b for a, b in zip(x.shape, times, strict=True))
    return _module(x).tile(x, times)


def _range(at: At, start: Any, limit: Any, delta: Any) -> Any:
    if not (is_known(start) and is_known(limit) and is_known(delta)):
        raise at.fail(
            "its bounds follow from the values of an input, so that its size is not known"
        )
    if start.size != 1 or limit.size != 1 or delta.size != 1 or not delta.reshape(()):
        raise at.fail("Range needs three single numbers, the last of which is not 0")
    first, last, step = (n.reshape(()) for n in (start, limit, delta))
    (size,) = at.bound([max(0, math.ceil((last.item() - first.item()) / step.item()))])
    return (first + np.arange(size) * step).astype(start.dtype)


def _one_hot(at: At, indices: Any, depth: Any, values: Any) -> Any:
    (size,) = _integers(at, depth if not is_known(depth) else depth.astype(np.int64), "depth")
    axis = _normal(at, at.get("axis", -1), indices.ndim + 1)
    at.bound((*indices.shape, size))

    def vectors(indices: Any, values: Any) -> Any:
        ids = indices.astype(jnp.result_type(int))  # the sum below may not fit into fewer bits
        hot = jnp.where(ids < 0, ids + size, ids)[..., None] == jnp.arange(size)
        return jnp.where(jnp.moveaxis(hot, -1, axis), values[1], values[0])

    return _by_jax_of(vectors, indices, values)


def _reverse_sequence(at: At, x: Any, lengths: Any) -> Any:
    time, batch = at.get("time_axis", 0), at.get("batch_axis", 1)
    if {time, batch} != {0, 1} or x.ndim < 2 or lengths.shape != (x.shape[batch],):
        raise at.fail("ReverseSequence needs the axes 0 and 1, and a length for each row")

    def reverse(x: Any, lengths: Any) -> Any:
        x = x if time == 0 else jnp.swapaxes(x, 0, 1)
        steps = jnp.arange(x.shape[0])[:, None]
        places = jnp.where(steps < lengths, lengths - 1 - steps, steps)
        y = jnp.take_along_axis(x, places.reshape(*places.shape, *[1] * (x.ndim - 2)), axis=0)
        return y if time == 0 else jnp.swapaxes(y, 0, 1)

    return _by_jax_of(reverse, x, lengths)


OPERATORS: Mapping[str, Operator] = {
    "Abs": _pointwise(lambda xp, x: xp.abs(x)),
    "Add": _binary(lambda xp, x, y: xp.add(x, y)),
    "And": _binary(lambda xp, x, y: xp.logical_and(x, y)),
    "ArgMax": _arg_max,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Div": _binary(_divide),
    "Dropout": _dropout,
    "Elu": _by_class(ELU),
    "Equal": _binary(lambda xp, x, y: xp.equal(x, y)),
    "Erf": _by_jax(jax.scipy.special.erf),
    "Exp": _pointwise(lambda xp, x: xp.exp(x)),
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "Greater": _binary(lambda xp, x, y: xp.greater(x, y)),
    "GreaterOrEqual": _binary(lambda xp, x, y: xp.greater_equal(x, y)),
    "HardSigmoid": _by_class(HardSigmoid),
    "HardSwish": _by_jax(jax.nn.hard_silu),
    "Identity": lambda at, x: x,
    "LeakyRelu": _by_class(LeakyReLU),
    "Less": _binary(lambda xp, x, y: xp.less(x, y)),
    "LessOrEqual": _binary(lambda xp, x, y: xp.less_equal(x, y)),
    "Log": _pointwise(lambda xp, x: xp.log(x)),
    "LogSoftmax": _softmax(jax.nn.log_softmax),
    "MatMul": _matmul,
    "Max": _variadic(lambda xp, x, y: xp.maximum(x, y)),
    "Min": _variadic(lambda xp, x, y: xp.minimum(x, y)),
    "Mul": _binary(lambda xp, x, y: xp.multiply(x, y)),
    "Neg": _pointwise(lambda xp, x: xp.negative(x)),
    "Not": _pointwise(lambda xp, x: xp.logical_not(x)),
    "OneHot": _one_hot,
    "Or": _binary(lambda xp, x, y: xp.logical_or(x, y)),
    "PRelu": _prelu,
    "Pow": _power,
    "Range": _range,
    "Reciprocal": _pointwise(lambda xp, x: xp.reciprocal(x)),
    "ReduceMax": _reduction("max"),
    "ReduceMean": _reduction("mean"),
    "ReduceMin": _reduction("min"),
    "ReduceSum": _reduction("sum"),
    "Relu": _by_jax(jax.nn.relu),  # whose derivative at 0 is 0, unlike that of a maximum
    "Reshape": _reshape,
    "ReverseSequence": _reverse_sequence,
    "Selu": _by_jax(_selu),
    "Shape": _shape,
    "Shrink": _by_jax(_shrink),
    "Sigmoid": _by_jax(jax.nn.sigmoid),
    "Size": _size,
    "Slice": _slice,
    "Softmax": _softmax(jax.nn.softmax),
    "Softplus": _by_jax(jax.nn.softplus),
    "Softsign": _by_jax(jax.nn.soft_sign),
    "Split": _split,
    "Sqrt": _pointwise(lambda xp, x: xp.sqrt(x)),
    "Squeeze": _squeeze,
    "Sub": _binary(lambda xp, x, y: xp.subtract(x, y)),
    "Sum": _variadic(lambda xp, x, y: xp.add(x, y)),
    "Tanh": _pointwise(lambda xp, x: xp.tanh(x)),
    "ThresholdedRelu": _by_class(ThresholdedReLU),
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
