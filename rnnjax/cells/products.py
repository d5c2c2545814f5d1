"""Products with kernels: matrix products, convolutions, and the kernels of a cell's update."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rnnjax.cells.onehot import is_array
from rnnjax.meshes import as_rows


def at_least_float32(dtype: DTypeLike) -> jnp.dtype[Any]:
    """Return the type, or float32 if it is narrower: the type of sums and states."""
    # bfloat16 has 8 bits of precision: 256 + 1 is 256, where a sum of ones would stop.
    return jnp.promote_types(dtype, jnp.float32)


def cast(leaf: jax.Array, dtype: Any) -> jax.Array:
    """Return ``leaf.astype(dtype)``; a random key, whose type is its own, stays as it is."""
    return leaf if jnp.issubdtype(leaf.dtype, jax.dtypes.extended) else leaf.astype(dtype)


def product(x: Any, kernel: jax.Array, dtype: DTypeLike | None) -> jax.Array:
    """Compute ``x @ kernel``, operands in ``dtype`` (None promotes), sums in float32 at least.

    A kernel ``(*window, features, width)`` is convolved with the axes before the last of
    ``x (..., *grid, features)``.
    """
    if not is_array(x):
        rows = x.rows(kernel)  # rounded after the look-up, so that the gradient's sums are not
        rows = rows if dtype is None else rows.astype(dtype)
        return rows.astype(at_least_float32(rows.dtype))
    if dtype is None:
        dtype = jnp.promote_types(x.dtype, kernel.dtype)
    if kernel.ndim > 2:
        return convolved(widened(x, dtype), widened(kernel, dtype))
    # Two axes, not three: the gradient is then two plain products, without transposed copies.
    # A product of two 16-bit numbers has at most 22 significant bits, and is exact in float32.
    rows = as_rows(x).astype(dtype)
    out = jnp.matmul(rows, kernel.astype(dtype), preferred_element_type=at_least_float32(dtype))
    return out.reshape(*x.shape[:-1], kernel.shape[-1])


def widened(x: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Round ``x`` to a type and widen it to at least float32, in which a convolution sums."""
    return x.astype(dtype).astype(at_least_float32(dtype))


@jax.custom_jvp
def convolved(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolve ``x (..., *grid, features)`` with ``kernel (*window, features, width)``.

    It is a cross-correlation with zero padding.

    >>> print(convolved(jnp.array([[1.0], [2.0], [3.0]]), jnp.array([[[1.0]], [[0.0]], [[5.0]]])))
    [[10.]
     [16.]
     [ 2.]]
    """
    return correlated(x, kernel, _same(kernel))


def _same(kernel: jax.Array) -> list[tuple[int, int]]:
    """Return the zero padding of each axis that preserves the shape of the grid."""
    # size - 1 zeros in all, and for an even size the odd one at the end, as in Keras.
    return [((size - 1) // 2, size // 2) for size in kernel.shape[:-2]]


def correlated(x: jax.Array, kernel: jax.Array, padding: Sequence[tuple[int, int]]) -> jax.Array:
    """Call XLA's convolution over the grid axes, with all axes before them as the batch."""
    spatial, first = "HW"[: len(padding)], x.ndim - len(padding) - 1
    out = jax.lax.conv_general_dilated(
        x.reshape(-1, *x.shape[first:]),
        kernel,
        window_strides=(1,) * len(padding),
        padding=padding,
        dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
    )
    return out.reshape(*x.shape[:-1], kernel.shape[-1])


@convolved.defjvp
def _convolved_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    """Differentiate by the kernel as a product with each point's neighbours.

    Its transpose, the kernel's gradient, is then one product too. XLA's own, a convolution over the
    batch, is slow inside a loop on a CPU: `Scan` would take 6.5 times as long.
    """
    (x, kernel), (d_x, d_kernel) = primals, tangents
    *window, _, width = kernel.shape
    near = neighbours(x, tuple(window))
    rows = near.reshape(-1, near.shape[-1]) @ d_kernel.reshape(-1, width)
    return convolved(x, kernel), convolved(d_x, kernel) + rows.reshape(*x.shape[:-1], width)


def neighbours(x: jax.Array, window: tuple[int, ...]) -> jax.Array:
    """Collect at each point of ``x (..., *grid, features)`` the features of the window around it.

    >>> print(neighbours(jnp.array([[1.0], [2.0], [3.0]]), (3,)))
    [[0. 1. 2.]
     [1. 2. 3.]
     [2. 3. 0.]]
    """
    # Each pass puts its axis of the window before the features collected so far. The last axis goes
    # first, so that they come in the order of a reshaped kernel: (*window, features).
    for i, size in reversed(list(enumerate(window))):
        axis, before = x.ndim - 1 - len(window) + i, (size - 1) // 2
        pads, length = [(0, 0)] * x.ndim, x.shape[axis]
        pads[axis] = (before, size - 1 - before)
        padded = jnp.pad(x, pads)
        shifted = [jax.lax.slice_in_dim(padded, k, k + length, axis=axis) for k in range(size)]
        x = jnp.concatenate(shifted, axis=-1)
    return x


def convolved_back(kernel: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """Return ``d -> gradient of x`` in ``convolved(x, kernel)``; the kernel is flipped once.

    XLA flips it at each step of a loop, and a layer's gradient takes 1.6 times as long.
    """
    # y[t] = sum_k x[t + k - b] W[k], with b zeros before, gives dx[s] = sum_k d[s - k + b] W[k]^T.
    # With k = K - 1 - j this is sum_j d[s + j - (K - 1 - b)] W[K - 1 - j]^T: a correlation with the
    # kernel flipped and transposed, and with the K - 1 - b zeros of the end before the start.
    flipped = jnp.flip(kernel, range(kernel.ndim - 2)).swapaxes(-1, -2)
    flipped = jax.lax.optimization_barrier(flipped)  # or XLA would move the flip into the loop
    padding = [(after, before) for before, after in _same(kernel)]
    return lambda d: correlated(d, flipped, padding)


def convolution_kernel_gradient(xs: jax.Array, d: jax.Array, kernel: jax.Array) -> jax.Array:
    """Compute the gradient of the kernel in ``convolved(xs, kernel)`` by XLA's own rule.

    Outside a loop, over all steps at once, it takes 0.55 of the time of `convolved`'s rule.
    """
    return jax.linear_transpose(lambda k: correlated(xs, k, _same(k)), kernel)(d)[0]


def add_bias(x: jax.Array, params: Mapping[str, Any], name: str) -> jax.Array:
    """Add the bias of that name to ``x``, in the type of ``x``; return ``x`` if there is none."""
    return x + params[name].astype(x.dtype) if name in params else x


@dataclasses.dataclass(frozen=True, eq=False)
class Operand:
    """A kernel in a cell's ``update``; `product` computes ``state @ kernel``.

    >>> print(jnp.ones((1, 2)) @ Operand(jnp.ones((2, 3)), None))
    [[2. 2. 2.]]
    """

    array: jax.Array
    dtype: DTypeLike | None

    __array_ufunc__ = None  # so that NumPy's arrays leave ``@`` to this class

    def __rmatmul__(self, x: jax.Array) -> jax.Array:
        return product(x, self.array, self.dtype)

    def split(self, *at: int) -> list["Operand"]:
        """Split the columns at these indices into kernels, like ``jnp.split``."""
        parts = jnp.split(self.array, at, axis=-1)
        return [dataclasses.replace(self, array=part) for part in parts]
