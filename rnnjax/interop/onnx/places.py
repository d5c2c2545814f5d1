"""Operators that put elements elsewhere, make them, or say how many there are."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.interop.onnx.at import At, by_jax, is_known, module_of
from rnnjax.interop.onnx.files import dtype_of

_LONGEST = 2**63 - 1


def reshape(at: At, x: Any, shape: Any = None) -> Any:
    """The elements in their order, with other axes."""
    given = at.get("shape")
    sizes = [int(n) for n in given] if given is not None else at.integers(shape, "sizes")
    if not at.get("allowzero", 0):
        if any(n == 0 and i >= x.ndim for i, n in enumerate(sizes)):
            raise at.fail(f"its shape {sizes} copies a size that the input {list(x.shape)} lacks")
        sizes = [x.shape[i] if n == 0 else n for i, n in enumerate(sizes)]
    if sizes.count(-1) > 1 or any(n < -1 for n in sizes):
        raise at.fail(f"{sizes} is no shape")
    at.bound(abs(n) for n in sizes)
    return x.reshape(sizes)


def flatten(at: At, x: Any) -> Any:
    """Two axes: of those before ``axis``, and of the others."""
    axis = at.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    if not 0 <= axis <= x.ndim:
        raise at.fail(f"axis {axis} is not one of the {x.ndim} axes of its input")
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def squeeze(at: At, x: Any, axes_input: Any = None) -> Any:
    """Without axes of size 1."""
    axes = at.listed("axes", axes_input)
    if axes is None:
        axes = [i for i, size in enumerate(x.shape) if size == 1]
    where = {at.axis(axis, x.ndim) for axis in axes}
    if any(x.shape[axis] != 1 for axis in where):
        raise at.fail(f"axes {axes} of shape {list(x.shape)} are not all of size 1")
    return x.reshape([size for i, size in enumerate(x.shape) if i not in where])


def unsqueeze(at: At, x: Any, axes_input: Any = None) -> Any:
    """With axes of size 1 more."""
    axes = at.listed("axes", axes_input)
    if axes is None:
        raise at.fail("it names no axes")
    rank = x.ndim + len(axes)
    where = {at.axis(axis, rank) for axis in axes}
    if len(where) < len(axes):
        raise at.fail(f"axes {axes} name one twice")
    sizes = iter(x.shape)
    return x.reshape([1 if i in where else next(sizes) for i in range(rank)])


def concatenate(at: At, *arrays: Any) -> Any:
    """Arrays one behind the other along an axis."""
    axis = at.axis(at.get("axis", 1), arrays[0].ndim)
    at.bound([sum(x.size for x in arrays)])
    at.same_type(*arrays)
    return module_of(*arrays).concatenate(arrays, axis=axis)


def split(at: At, x: Any, sizes_input: Any = None) -> Any:
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
    places = np.cumsum(sizes)[:-1]
    return tuple(module_of(x).split(x, places, axis=axis))


def part(
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
            where[axis] = slice(begin, None if stop < 0 else stop, max(step, -_LONGEST))
            if not size:
                where[axis] = slice(0, 0)
    return x[tuple(where)]


def gather(at: At, x: Any, indices: Any) -> Any:
    """Slices of ``x`` by their places along an axis."""
    axis = at.axis(at.get("axis", 0), x.ndim)
    _check_indices(at, indices)
    at.bound((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))
    if is_known(indices):
        size = x.shape[axis]
        if indices.size and (indices.min() < -size or indices.max() >= size):
            raise at.fail(f"an index is outside of the {size} of axis {axis}")
        return module_of(x).take(x, indices, axis=axis)
    return take_rows(jnp.asarray(x), indices, axis)


def take_rows(x: jax.Array, indices: jax.Array, axis: int) -> jax.Array:
    """Rows by ids: negative ones count from the end, those out of range give NaN.

    Where there is no NaN, they give the nearest row.
    """
    if jnp.issubdtype(x.dtype, jnp.inexact):
        return jnp.take(x, indices, axis=axis, mode="fill")
    places = jnp.where(indices < 0, indices + x.shape[axis], indices)
    return jnp.take(x, places, axis=axis, mode="clip")


def constant(at: At) -> Any:
    """What stands in the node."""
    for name, dtype in (
        ("value", None),
        ("value_float", np.float32),
        ("value_floats", np.float32),
        ("value_int", np.int64),
        ("value_ints", np.int64),
    ):
        if name in at.attributes:
            return np.asarray(at.attributes[name], dtype)
    raise at.fail("a constant that is neither numbers nor an array is not read here")


def filled(at: At, shape: Any) -> Any:
    """An array of one number."""
    value = np.asarray(at.get("value", np.zeros(1, np.float32)))
    if value.size != 1:
        raise at.fail(f"its value has {value.size} elements, but should have one")
    return np.full(at.bound(at.integers(shape, "sizes")), value.reshape(()))


def expand(at: At, x: Any, shape: Any) -> Any:
    """``x``, broadcast to a shape."""
    sizes = np.broadcast_shapes(x.shape, tuple(at.integers(shape, "sizes")))
    return module_of(x).broadcast_to(x, at.bound(sizes))


def tile(at: At, x: Any, repeats: Any) -> Any:
    """``x``, repeated along each axis."""
    times = at.integers(repeats, "repeats")
    if len(times) != x.ndim:
        raise at.fail(f"repeats {times} are not one for each axis of shape {list(x.shape)}")
    at.bound(a * b for a, b in zip(x.shape, times, strict=True))
    return module_of(x).tile(x, times)


def count(at: At, start: Any, limit: Any, delta: Any) -> Any:
    """Numbers from ``start`` to ``limit``."""
    if not (is_known(start) and is_known(limit) and is_known(delta)):
        raise at.fail(
            "its bounds follow from the values of an input, so that its size is not known"
        )
    if start.size != 1 or limit.size != 1 or delta.size != 1 or not delta.reshape(()):
        raise at.fail("it needs three single numbers, the last of which is not 0")
    first, last, step = (n.reshape(()) for n in (start, limit, delta))
    (size,) = at.bound([max(0, math.ceil((last.item() - first.item()) / step.item()))])
    return (first + np.arange(size) * step).astype(start.dtype)


def one_hot(at: At, indices: Any, depth: Any, values: Any) -> Any:
    """A vector for each id that differs in one entry."""
    (size,) = at.integers(depth if not is_known(depth) else depth.astype(np.int64), "depth")
    axis = at.axis(at.get("axis", -1), indices.ndim + 1)
    at.bound((*indices.shape, size))

    def vectors(indices: Any, values: Any) -> Any:
        ids = indices.astype(jnp.result_type(int))  # the sum below may not fit into fewer bits
        hot = jnp.where(ids < 0, ids + size, ids)[..., None] == jnp.arange(size)
        return jnp.where(jnp.moveaxis(hot, -1, axis), values[1], values[0])

    return by_jax(vectors, indices, values)


def reverse_sequence(at: At, x: Any, lengths: Any) -> Any:
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


# --- By indices that are arrays ---


def _wrapped(indices: Any, size: Any) -> Any:
    """Negative ones count from the end."""
    return jnp.where(indices < 0, indices + size, indices)


def _check_indices(at: At, indices: Any) -> None:
    if indices.dtype.kind not in "iu":
        raise at.fail(f"its indices are {indices.dtype}, but should be integers")


def gather_elements(at: At, x: Any, indices: Any) -> Any:
    """``x`` at other places along one axis."""
    _check_indices(at, indices)
    axis = at.axis(at.get("axis", 0), x.ndim)
    mode = "fill" if jnp.issubdtype(x.dtype, jnp.inexact) else "clip"

    def run(x: Any, indices: Any) -> Any:
        inside = tuple(
            slice(None) if n == axis else slice(0, indices.shape[n]) for n in range(x.ndim)
        )
        return jnp.take_along_axis(x[inside], _wrapped(indices, x.shape[axis]), axis, mode=mode)

    return at.computed(run, x, indices)


def _take_nd(x: Any, places: Any) -> Any:
    return x.at[tuple(jnp.moveaxis(places, -1, 0))].get(mode="clip")


def gather_nd(at: At, x: Any, indices: Any) -> Any:
    """Slices of ``x`` by places along its first axes, row by row of the batch."""
    _check_indices(at, indices)
    rows = at.get("batch_dims", 0)

    def run(x: Any, indices: Any) -> Any:
        if not 0 <= rows < indices.ndim:
            raise ValueError(f"batch_dims are {rows}")
        sizes = np.array(x.shape[rows : rows + indices.shape[-1]], np.int32)
        taken = functools.reduce(lambda take, _: jax.vmap(take), range(rows), _take_nd)
        return taken(x, _wrapped(indices, sizes))

    return at.computed(run, x, indices)


_SCATTERED = {"none": "set", "add": "add", "mul": "multiply", "min": "min", "max": "max"}


def _put(at: At, x: Any, places: Any, updates: Any) -> Any:
    return getattr(x.at[places], _SCATTERED[at.get("reduction", "none")])(updates, mode="drop")


def scatter_nd(at: At, x: Any, indices: Any, updates: Any) -> Any:
    """``x`` with slices replaced, or changed, at places along its first axes."""
    _check_indices(at, indices)
    at.same_type(x, updates)

    def run(x: Any, indices: Any, updates: Any) -> Any:
        places = _wrapped(indices, np.array(x.shape[: indices.shape[-1]], np.int32))
        return _put(at, x, tuple(jnp.moveaxis(places, -1, 0)), updates)

    return at.computed(run, x, indices, updates)


def scatter_elements(at: At, x: Any, indices: Any, updates: Any) -> Any:
    """``x`` with entries replaced, or changed, at other places along one axis."""
    _check_indices(at, indices)
    at.same_type(x, updates)
    axis = at.axis(at.get("axis", 0), x.ndim)

    def run(x: Any, indices: Any, updates: Any) -> Any:
        places = list(jnp.meshgrid(*map(np.arange, indices.shape), indexing="ij", sparse=True))
        places[axis] = _wrapped(indices, x.shape[axis])
        return _put(at, x, tuple(places), updates)

    return at.computed(run, x, indices, updates)


def triangle(at: At, x: Any, k: Any = None) -> Any:
    """What is not below a diagonal, or not above it."""
    at.bound(x.shape)
    if not x.size:
        return x

    def run(x: Any, k: Any) -> Any:
        beyond = np.arange(x.shape[-1]) - np.arange(x.shape[-2])[:, None]
        diagonal = 0 if k is None else k.reshape(())
        kept = beyond >= diagonal if at.get("upper", 1) else beyond <= diagonal
        return jnp.where(kept, x, jnp.zeros((), x.dtype))

    return by_jax(run, x, k)


def eye_like(at: At, x: Any) -> Any:
    """Ones on a diagonal."""
    dtype = x.dtype if at.get("dtype") is None else dtype_of(at.get("dtype"), f"node {at.name}")
    rows, columns = at.bound(x.shape)
    return np.eye(rows, columns, at.get("k", 0), dtype)


def nonzero(at: At, x: Any) -> Any:
    """The places of what is not 0; there have to be as many as is known."""
    if not is_known(x):
        raise at.fail("how many entries are not 0 follows from an input, so its size is not known")
    x = np.atleast_1d(x)
    at.bound((x.ndim, np.count_nonzero(x)))
    return np.stack(np.nonzero(x)).astype(np.int64)


def compress(at: At, x: Any, condition: Any) -> Any:
    """The slices for which a condition is true."""
    if not is_known(condition):
        raise at.fail("how many slices it keeps follows from an input, so its size is not known")
    axis = at.get("axis")
    x = x.reshape(-1) if axis is None else x
    axis = 0 if axis is None else at.axis(axis, x.ndim)
    return module_of(x).take(x, np.flatnonzero(condition), axis=axis)


def depth_to_space(at: At, x: Any) -> Any:
    """Blocks of channels as blocks of space."""
    size, (batch, depth, height, width) = at.get("blocksize"), x.shape
    if at.get("mode", "DCR") == "DCR":
        y = x.reshape(batch, size, size, -1, height, width).transpose(0, 3, 4, 1, 5, 2)
    else:
        y = x.reshape(batch, -1, size, size, height, width).transpose(0, 1, 4, 2, 5, 3)
    return y.reshape(batch, depth // size**2, height * size, width * size)


def space_to_depth(at: At, x: Any) -> Any:
    """Blocks of space as blocks of channels."""
    size, (batch, depth, height, width) = at.get("blocksize"), x.shape
    y = x.reshape(batch, depth, height // size, size, width // size, size)
    first = (0, 3, 5, 1, 2, 4) if at.get("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    return y.transpose(first).reshape(batch, depth * size**2, height // size, width // size)
