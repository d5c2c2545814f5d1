"""The matrix products of a recurrent layer, each in the form that is fast for its shape.

All forms give the same numbers. On accelerators the plain form is always best. On a CPU the best
form depends on how the kernel fits the caches: ``python -m benchmarks.sequences products`` times
them, and docs/benchmarks.md has the table ("Forms of a product"). In bfloat16 the plain forms are
within 10 % of the best. For small kernels rows are best, and backwards a transposed copy.
"""

import dataclasses
import enum
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.export import is_symbolic_dim
from jax.typing import DTypeLike

from rnnjax.cells.onehot import is_array
from rnnjax.cells.products import (
    at_least_float32,
    convolution_kernel_gradient,
    convolved_back,
    product,
    widened,
)
from rnnjax.meshes import as_rows, divided

# Both bounds are of one processor, with 1 MiB of cache a core and 32 MiB for its two cores. Another
# was not tried: the command above, run there, would say from where on the copies pay.
# A kernel above this size does not stay in a core's cache between two steps.
_CACHE_BYTES = 4 * 2**20
# From this many bytes of kernel times rows on, transposed rows pay off.
_LARGE_BYTES = 200 * 2**20

Product = Callable[[jax.Array], jax.Array]


class Forward(enum.Enum):
    """How ``hidden @ kernel`` is computed at each step."""

    ROWS = "as written"
    ROWS_TRANSPOSED = "from a transposed copy of the hidden state"
    FEATURES_FIRST = "from the left: (kernel.T @ hidden.T).T"


class Backward(enum.Enum):
    """How ``d @ kernel.T`` is computed at each step, and once for all steps."""

    COPY = "with a transposed copy of the kernel, made once"
    DIRECT = "by contracting with the kernel's second axis"
    KERNEL_FIRST = "from the left: (kernel @ d.T).T"


@dataclasses.dataclass(frozen=True)
class Products:
    """The forms of a layer's products, and the type of their operands.

    Attributes:
        forward: the form of the recurrent product.
        backward: the form of its transpose.
        inputs_backward: the form of the gradient of all inputs, one product.
        dtype: the type of the operands; None promotes. Sums are in float32 at least.
    """

    forward: Forward = Forward.ROWS
    backward: Backward = Backward.DIRECT
    inputs_backward: Backward = Backward.DIRECT
    dtype: DTypeLike | None = None

    @classmethod
    def choose(cls, kernel: Any, rows: int, dtype: DTypeLike | None, platform: str) -> "Products":
        """Choose the forms for a recurrent kernel and a number of rows by the module's table."""
        if kernel.ndim > 2:  # XLA's convolutions
            return cls(dtype=dtype)
        width = jnp.dtype(at_least_float32(kernel.dtype) if dtype is None else dtype).itemsize
        if platform != "cpu" or width < 4:
            return cls(dtype=dtype)
        size = kernel.size * width
        if size <= _CACHE_BYTES:
            return cls(Forward.ROWS, Backward.COPY, Backward.DIRECT, dtype)
        if is_symbolic_dim(rows):  # taken for a few
            rows = 2
        if size * rows >= _LARGE_BYTES:
            return cls(Forward.FEATURES_FIRST, Backward.KERNEL_FIRST, Backward.KERNEL_FIRST, dtype)
        backward = Backward.COPY if rows > 1 else Backward.DIRECT
        return cls(Forward.ROWS_TRANSPOSED, backward, Backward.KERNEL_FIRST, dtype)

    def times(self, kernel: jax.Array) -> Product:
        """Return ``x -> x @ kernel`` for a loop; work that is needed once is done here."""
        laid_out = self.lay_out(kernel)
        if self.forward is Forward.FEATURES_FIRST:
            # The barrier keeps XLA from folding the copy back into the product.
            laid_out = jax.lax.optimization_barrier(laid_out)
        return lambda x: self.multiply(x, laid_out)

    def lay_out(self, kernel: jax.Array) -> jax.Array:
        """Return the kernel in the type and layout that `multiply` takes."""
        kernel = self._cast(kernel)
        return kernel.T if self.forward is Forward.FEATURES_FIRST else kernel

    def as_drawn(self, laid_out: Any) -> Any:
        """Return the shape that a kernel of `lay_out` had, by which `prepare` checks parameters."""
        if self.forward is Forward.FEATURES_FIRST and hasattr(laid_out, "shape"):
            return jax.ShapeDtypeStruct(laid_out.shape[::-1], laid_out.dtype)
        return laid_out

    def multiply(self, x: Any, laid_out: jax.Array) -> jax.Array:
        """Compute ``x @ kernel`` with a kernel of `lay_out`."""
        if not is_array(x):
            features_first = self.forward is Forward.FEATURES_FIRST
            return product(x, laid_out.T if features_first else laid_out, self.dtype)
        if self.forward is Forward.FEATURES_FIRST:
            return _from_the_left(laid_out, x, self.dtype)
        if self.forward is Forward.ROWS_TRANSPOSED:
            return _as_rows(
                lambda rows: contract(
                    jax.lax.optimization_barrier(self._cast(rows).T), laid_out, (0, 0)
                ),
                x,
            )
        return product(x, laid_out, self.dtype)

    def times_transposed(self, kernel: jax.Array) -> Product:
        """Return ``d -> d @ kernel.T`` for a loop; work that is needed once is done here."""
        return self._transposed(self.backward, self._cast(kernel))

    def inputs_gradient(self, d: jax.Array, kernel: jax.Array) -> jax.Array:
        """Compute ``d @ kernel.T`` for all steps at once."""
        if divided() and kernel.ndim == 2:
            return contract(self._cast(d), self._cast(kernel), (d.ndim - 1, 1))
        # y = x W gives dx = dy W^T, and no step waits for another: one product for all of them.
        return self._transposed(self.inputs_backward, self._cast(kernel))(d)

    def _transposed(self, form: Backward, kernel: jax.Array) -> Product:
        if kernel.ndim > 2:  # the forms are those of matrices
            back = convolved_back(kernel.astype(at_least_float32(kernel.dtype)))
            return lambda d: back(self._wide(d, kernel))
        if form is Backward.COPY:
            # With several rows, contracting the second axis of a kernel is mostly slower than a
            # product with a copy, transposed once for all steps. Without the barrier XLA undoes it.
            transposed = jax.lax.optimization_barrier(kernel.T)
            return lambda d: product(d, transposed, self.dtype)
        if form is Backward.KERNEL_FIRST:
            return lambda d: _from_the_left(kernel, d, self.dtype)
        return lambda d: _as_rows(lambda rows: contract(self._cast(rows), kernel, (1, 1)), d)

    def kernel_gradient(self, xs: Any, d: jax.Array, kernel: jax.Array) -> jax.Array:
        """Compute the gradient of ``kernel`` in ``xs @ kernel``, one product over steps and rows.

        JAX's own rule gives its transpose, which XLA then copies.
        """
        # The gradient of a lookup is a scatter, in which JAX adds up equal indices.
        if not is_array(xs):
            return jax.vjp(lambda kernel: product(xs, kernel, self.dtype), kernel)[1](d)[0]
        if kernel.ndim > 2:
            wide = self._wide(kernel, d)
            return convolution_kernel_gradient(self._wide(xs, d), self._wide(d, xs), wide)
        left, right = (self._cast(as_rows(a)) for a in (xs, d))
        # y = x W gives dW = sum of x^T dy over steps and rows: with these as the rows of X and D, a
        # single product X^T D. On several devices they stay separate axes, contracted together.
        rows = tuple(range(left.ndim - 1))
        return contract(left, right, (rows, rows))

    def _wide(self, array: jax.Array, other: jax.Array) -> jax.Array:
        """Cast an operand of a convolution to the type in which it sums."""
        promoted = jnp.promote_types(array.dtype, other.dtype)
        return widened(array, promoted if self.dtype is None else self.dtype)

    def _cast(self, array: jax.Array) -> jax.Array:
        return array if self.dtype is None else array.astype(self.dtype)


def _as_rows(function: Product, x: jax.Array) -> jax.Array:
    """Apply a function of matrices to ``x`` with any number of axes."""
    out = function(x.reshape(-1, x.shape[-1]))
    return out.reshape(*x.shape[:-1], out.shape[-1])


def _from_the_left(kernel: jax.Array, x: jax.Array, dtype: DTypeLike | None) -> jax.Array:
    """Compute ``x @ kernel.T`` as ``(kernel @ x.T).T``, without a transposed copy of either."""

    def on_rows(rows: jax.Array) -> jax.Array:
        rows = rows if dtype is None else rows.astype(dtype)
        # The barrier keeps XLA from transposing the product back.
        return jax.lax.optimization_barrier(contract(kernel, rows, (1, 1))).T

    return _as_rows(on_rows, x)


def contract(left: jax.Array, right: jax.Array, axes: Sequence[Any]) -> jax.Array:
    """Contract two arrays over one or more axes, in the types of `product`."""
    dtype = at_least_float32(jnp.promote_types(left.dtype, right.dtype))
    return jnp.tensordot(left, right, axes, preferred_element_type=dtype)
