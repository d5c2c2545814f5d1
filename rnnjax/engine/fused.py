"""The fast path: one product before the loop, one per step, and one after it for each gradient.

Autodiff through a scan carries the gradient of every weight in the loop and adds to it at every
step, which for a recurrent layer costs more than the products themselves. Here the backward loop
leaves the cotangents of the gates behind instead, and each weight gradient is one product over all
steps afterwards. The gradient of the pointwise part is JAX's own, of the cell's one equation.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.export import is_symbolic_dim
from jax.typing import DTypeLike

from rnnjax.cells.arguments import check_features
from rnnjax.cells.base import Carry, Cell, Params, is_elementwise
from rnnjax.cells.onehot import OneHot
from rnnjax.cells.products import product
from rnnjax.engine.loop import Given, Layer, differentiated_as, kept_numbers, loop
from rnnjax.engine.method import Method
from rnnjax.engine.products import Products
from rnnjax.engine.scan import Scan
from rnnjax.engine.steps import AtStep, Steps
from rnnjax.errors import InvalidInputError

# Projections of more than this are fetched from the system page by page, which is slow.
_MANY_BYTES = 16 * 10**6


@dataclasses.dataclass(frozen=True, repr=False)
class Fused(Method):
    """Project all inputs in one product, and schedule the backward pass by hand.

    It serves every cell that declares its equation (see `rnnjax.Cell`).
    It can be vmapped, and its gradient can be differentiated again by ``grad`` (reverse over
    reverse). Forward-mode differentiation (``jvp``, ``jacfwd``, ``hessian``) needs ``Scan()``, as
    for every function with a derivative rule of its own in JAX.

    Args:
        keep_every: the dial between memory and time. None keeps, for the backward pass, the gates
            of every step: ``(gates + 2) * hidden_size`` numbers a step and row for an LSTM. With k,
            only the state before every k-th step is kept, and the k steps are computed again when
            their turn comes (Chen et al., 2016): a third more products, and memory for k steps
            and ``time / k`` states. Near the square root of the number of steps it is least; a
            divisor of that number saves copies of the inputs and outputs. Its gradient cannot be
            differentiated again: JAX (0.10.2) fails with a TypeError.
        product_dtype: the type of the operands of all matrix products, forward and backward, if not
            the cell's own. With ``jnp.bfloat16`` the sums, the gates, the carry, the outputs and
            the gradients still are float32: faster where the processor multiplies bfloat16
            natively, at its 8 bits of precision.

    Raises:
        InvalidInputError: ``keep_every`` is not a positive integer, or ``product_dtype`` is not a
            floating-point type.
    """

    keep_every: int | None = None
    product_dtype: DTypeLike | None = None

    def __post_init__(self) -> None:
        every = self.keep_every
        if every is not None and (not isinstance(every, int) or every is True or every < 1):
            raise InvalidInputError(
                f"keep_every must be a positive number of steps, or None to keep all, but is "
                f"{every!r}"
            )
        if self.product_dtype is not None:
            # One spelling of a dtype, so that equal methods hash alike.
            object.__setattr__(self, "product_dtype", _product_dtype(self.product_dtype))

    def __repr__(self) -> str:
        set_fields = [
            f"{field.name}={getattr(self, field.name)!r}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) is not field.default
        ]
        return f"Fused({', '.join(set_fields)})"

    def refusal(self, cell: Cell) -> str | None:
        """A cell with a step of its own is refused."""
        return None if cell.carry is not None else "it declares no carry and update, but a step"

    def run(
        self, cell: Cell, params: Params, xs: Any, carry: Carry, reverse: bool, steps: Steps
    ) -> tuple[Carry, jax.Array]:
        """Run ``cell`` over ``xs (time, *batch, features)``."""
        num_steps = xs.shape[0]
        if num_steps == 0:
            return Scan().run(cell, params, xs, carry, reverse, steps)
        check_features(cell, params, xs)
        params = dict(params)  # in the order that JAX gives a dict, whatever mapping came
        layer = Layer(cell, self._products(cell, params, xs.shape), reverse)
        run = _run_elementwise if is_elementwise(cell) else _run
        carry, steps = _resets_early(carry, steps, reverse)
        given = Given(params, steps._replace(each=AtStep()))
        if self.keep_every is not None and is_symbolic_dim(num_steps):
            raise InvalidInputError(
                f"keep_every must be None where the number of steps is not known, but is "
                f"{self.keep_every} over {num_steps} steps"
            )
        if self.keep_every is None or self.keep_every >= num_steps:
            return run(layer, given, (xs, steps.each), carry)
        again = functools.partial(run, layer, given)
        return _in_segments(again, self.keep_every, (xs, steps.each), carry, reverse)

    def explain(self, cell: Cell, params: Params, shape: tuple[int, ...]) -> list[str]:
        """The forms of the products, and what is kept for the backward pass."""
        length = min(self.keep_every or shape[0], shape[0])
        if is_elementwise(cell):
            lines = [
                f"projects the inputs of {length} steps in one product",
                "pointwise steps, differentiated by JAX",
            ]
            if length < shape[0]:
                lines.append(
                    f"keeps the state before every {length} steps, and computes them again"
                )
            return lines
        products = self._products(cell, params, shape)
        kept = f"{kept_numbers(Layer(cell, products, False), params, shape[1:-1])} numbers a row"
        if length == shape[0]:
            memory = f"keeps {kept} of every step for the backward pass"
        else:
            memory = (
                f"keeps the state before every {self.keep_every} steps, and {kept} of "
                f"{self.keep_every} steps at a time, which the backward pass computes again"
            )
        steps = _steps_ahead(cell, math.prod(shape[1:-1]), length)
        ahead = f"the inputs of {length} steps"
        if steps < length:
            ahead += f", or of {steps} where no gradient is taken,"
        return [
            f"projects {ahead} in one product, operands {products.dtype or 'in their own type'}",
            f"recurrent product at each step: {products.forward.value}",
            f"its gradient at each step: {products.backward.value}",
            f"each weight's gradient: one product over {length} steps, after the backward loop",
            memory,
        ]

    def _products(self, cell: Cell, params: Params, shape: tuple[int, ...]) -> Products:
        dtype = cell.dtype if self.product_dtype is None else self.product_dtype
        kernel = params["kernel" if cell.recurrent is None else "recurrent_kernel"]
        return Products.choose(kernel, math.prod(shape[1:-1]), dtype)


def _product_dtype(given: Any) -> Any:
    try:
        dtype = jnp.dtype(given)
    except TypeError:
        dtype = given
    if dtype not in [jnp.dtype(name) for name in ("bfloat16", "float16", "float32", "float64")]:
        raise InvalidInputError(
            f"product_dtype must be bfloat16, float16, float32, float64 or None, but is {given!r}"
        )
    return dtype


def _resets_early(carry: Carry, steps: Steps, reverse: bool) -> tuple[Carry, Steps]:
    """Resets at the end of the step before, and of the carry where it is the first step's.

    There they are one pointwise function with the rest of the step; at the beginning of it they
    would be one of their own before the recurrent product.
    """
    resets = steps.each.resets
    if resets is None:
        return carry, steps
    none = jnp.zeros_like(resets[:1])
    if reverse:
        first, then = resets[-1], jnp.concatenate([none, resets[:-1]])
    else:
        first, then = resets[0], jnp.concatenate([resets[1:], none])
    carry = steps.begin(carry, AtStep(resets=first))
    return carry, steps._replace(each=steps.each._replace(resets=then))


Run = Callable[[Any, Carry], tuple[Carry, jax.Array]]


def _in_segments(
    run: Run, length: int, inputs: Any, carry: Carry, reverse: bool
) -> tuple[Carry, jax.Array]:
    """Run segment by segment, each of which is computed again in the backward pass."""
    num_steps = len(jax.tree.leaves(inputs)[0])
    whole = num_steps // length * length

    def segments(carry: Carry) -> tuple[Carry, jax.Array]:
        cut = _cut(jax.tree.map(lambda leaf: leaf[:whole], inputs), length)
        # In a scan XLA cannot merge what is computed again with what was computed before.
        again = jax.checkpoint(run, prevent_cse=False)
        carry, ys = jax.lax.scan(
            lambda carry, inputs: again(inputs, carry), carry, cut, reverse=reverse
        )
        return carry, ys.reshape(whole, *ys.shape[2:])

    if whole == num_steps:
        return segments(carry)
    rest = jax.checkpoint(run)
    last = jax.tree.map(lambda leaf: leaf[whole:], inputs)
    if reverse:
        carry, after = rest(last, carry)
        carry, before = segments(carry)
    else:
        carry, before = segments(carry)
        carry, after = rest(last, carry)
    return carry, jnp.concatenate([before, after])


def _cut(inputs: Any, length: int) -> Any:
    """Each array over time as segments of ``length`` steps; of an array without entries too."""
    return jax.tree.map(
        lambda leaf: leaf.reshape(len(leaf) // length, length, *leaf.shape[1:]), inputs
    )


def _run_elementwise(
    layer: Layer, given: Given, inputs: tuple[Any, AtStep], carry: Carry
) -> tuple[Carry, jax.Array]:
    """A cell without a product in the loop: only the inputs' product has to be taken out of it."""
    xs, each = inputs
    cell, steps = layer.cell, given.steps
    projected = cell.biased(_project(layer, given.params, xs), given.params, "bias")

    def step(carry: Carry, at_step: tuple[jax.Array, AtStep]) -> tuple[Carry, jax.Array]:
        projected, at = at_step
        new, y = cell.advance(given.params, projected, carry)
        new, y = steps.end(carry, new, y, at, cell.output)
        return steps.begin(new, at), y

    return jax.lax.scan(step, carry, (projected, each), reverse=layer.reverse)


def _at_once(
    layer: Layer, given: Given, inputs: tuple[Any, AtStep], carry: Carry
) -> tuple[Carry, jax.Array]:
    """Project all inputs, then run the loop."""
    xs, each = inputs
    projected = _project(layer, given.params, xs)
    return loop(layer, given, projected, each, carry)


@differentiated_as(_at_once)
def _run(
    layer: Layer, given: Given, inputs: tuple[Any, AtStep], carry: Carry
) -> tuple[Carry, jax.Array]:
    """`_at_once`; where nothing is kept for a backward pass, a few steps' inputs at a time.

    A projection that fits the cache is read from there, and no memory has to be fetched for the
    others: of the time of a whole LSTM layer at once, 0.85 at H = 512 and batch 128, 0.90 at
    H = 256 and batch 32; but 1.2 at H = 512 and batch 16, whose products would be too small. There
    it pays from some 16 MB of projections on, in pieces of 50 to 100 steps: 0.90 at 1,000 steps,
    and 0.79 to 0.87 at 10,000 steps of H = 64 to 256 and batch 1 to 16.
    """
    xs, _ = inputs
    num_steps = xs.shape[0]
    steps = _steps_ahead(layer.cell, math.prod(xs.shape[1:-1]), num_steps)
    if steps == num_steps:
        return _at_once(layer, given, inputs, carry)
    carry, ys = jax.lax.scan(
        lambda carry, inputs: _at_once(layer, given, inputs, carry),
        carry,
        _cut(inputs, steps),
        reverse=layer.reverse,
    )
    return carry, ys.reshape(num_steps, *ys.shape[2:])


def _steps_ahead(cell: Cell, rows: int, num_steps: int) -> int:
    """How many steps to project at a time where there is no backward pass."""
    if jax.default_backend() != "cpu" or any(map(is_symbolic_dim, (rows, num_steps))):
        return num_steps
    if rows >= 32 and cell.hidden_size >= 128:
        counts = range(10, 20)
    elif 4 * num_steps * rows * len(cell.gates) * cell.hidden_size > _MANY_BYTES:
        counts = range(100, 49, -1)
    else:
        return num_steps
    return next((k for k in counts if num_steps % k == 0), num_steps)


def _project(layer: Layer, params: Params, xs: Any) -> jax.Array:
    """All steps' inputs times the kernel; the bias is added in the loop, which saves a pass."""
    if isinstance(xs, OneHot):
        return product(xs, params["kernel"], layer.products.dtype)
    return _input_product(layer, params["kernel"], xs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _input_product(layer: Layer, kernel: jax.Array, xs: jax.Array) -> jax.Array:
    """``xs @ kernel``, with both gradients in the forms that XLA computes without a copy."""
    return product(xs, kernel, layer.products.dtype)


def _input_product_backward(
    layer: Layer, residuals: tuple[jax.Array, jax.Array], d: jax.Array
) -> tuple[jax.Array, jax.Array]:
    kernel, xs = residuals
    d_kernel = layer.products.kernel_gradient(xs, d, kernel).astype(kernel.dtype)
    return d_kernel, layer.products.inputs_gradient(d, kernel).astype(xs.dtype)


_input_product.defvjp(
    lambda layer, kernel, xs: (_input_product(layer, kernel, xs), (kernel, xs)),
    _input_product_backward,
)
