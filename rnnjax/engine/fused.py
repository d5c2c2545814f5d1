"""The fast path: one product before the loop, one per step, and one after it for each gradient.

Autodiff through a scan carries the gradient of every weight in the loop and adds to it at every
step, which for a recurrent layer costs more than the products themselves. Here the backward loop
leaves the cotangents of the gates behind instead, and each weight gradient is one product over all
steps afterwards. The gradient of the pointwise part is JAX's own, of the cell's one equation, but
for the gates of a `GatedCell`, whose slopes follow from their values.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from rnnjax.cells.base import Carry, Cell, Params
from rnnjax.cells.dense import AdditiveCell, DenseCell, GatedCell
from rnnjax.cells.onehot import OneHot
from rnnjax.cells.projected import (
    ElementwiseCell,
    ProjectedCell,
    add_bias,
    check_params,
    product,
)
from rnnjax.engine.method import Method
from rnnjax.engine.products import Product, Products
from rnnjax.engine.scan import Scan
from rnnjax.engine.steps import AtStep, Steps, shows_hidden
from rnnjax.errors import InvalidInputError

# Projections of more than this are fetched from the system page by page, which is slow.
_MANY_BYTES = 16 * 10**6


@dataclasses.dataclass(frozen=True, repr=False)
class Fused(Method):
    """Project all inputs in one product, and schedule the backward pass by hand.

    It serves cells whose step splits into project, recurrent product and activate (`DenseCell`).
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
        """Cells whose step does not split are refused."""
        if not (isinstance(cell, DenseCell | ElementwiseCell) and cell.splits):
            return "its step does not split into project, recurrent product and activate"
        if self.product_dtype is not None and not cell.projects_plainly:
            return "its own project decides the type of its products (leave out product_dtype)"
        return None

    def run(
        self, cell: Cell, params: Params, xs: Any, carry: Carry, reverse: bool, steps: Steps
    ) -> tuple[Carry, jax.Array]:
        """Run ``cell`` over ``xs (time, *batch, features)``."""
        assert isinstance(cell, ProjectedCell)
        if len(xs) == 0:
            return Scan().run(cell, params, xs, carry, reverse, steps)
        if cell.projects_plainly:
            check_params(cell, params, xs)
        params = dict(params)  # in the order that JAX gives a dict, whatever mapping came
        layer = _Layer(cell, self._products(cell, params, xs.shape), reverse)
        run = _run if isinstance(cell, DenseCell) else _run_elementwise
        carry, steps = _resets_early(carry, steps, reverse)
        given = _Given(params, steps._replace(each=AtStep()))
        if self.keep_every is None or self.keep_every >= len(xs):
            return run(layer, given, (xs, steps.each), carry)
        again = functools.partial(run, layer, given)
        return _in_segments(again, self.keep_every, (xs, steps.each), carry, reverse)

    def explain(self, cell: Cell, params: Params, shape: tuple[int, ...]) -> list[str]:
        """The forms of the products, and what is kept for the backward pass."""
        length = min(self.keep_every or shape[0], shape[0])
        if isinstance(cell, ElementwiseCell):
            lines = [
                f"projects the inputs of {length} steps in one product",
                "pointwise steps, differentiated by JAX",
            ]
            if length < shape[0]:
                lines.append(
                    f"keeps the state before every {length} steps, and computes them again"
                )
            return lines
        assert isinstance(cell, DenseCell)
        products = self._products(cell, params, shape)
        kept = "the gates" if _keeps_gates(cell) else "both halves of the gates' inputs"
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

    def _products(self, cell: ProjectedCell, params: Params, shape: tuple[int, ...]) -> Products:
        dtype = cell.dtype if self.product_dtype is None else self.product_dtype
        kernel = params["recurrent_kernel" if isinstance(cell, DenseCell) else "kernel"]
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


@dataclasses.dataclass(frozen=True)
class _Layer:
    """All that is static about a run."""

    cell: Any  # a DenseCell or an ElementwiseCell
    products: Products
    reverse: bool


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


class _Given(NamedTuple):
    """The arrays that all steps share: the parameters, and what of `Steps` is for all of them."""

    params: Params
    steps: Steps


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
    layer: _Layer, given: _Given, inputs: tuple[Any, AtStep], carry: Carry
) -> tuple[Carry, jax.Array]:
    """A cell without a product in the loop: only the inputs' product has to be taken out of it."""
    xs, each = inputs
    cell, steps = layer.cell, given.steps
    projected = _project(layer, given.params, xs)
    if cell.projects_plainly:
        projected = add_bias(projected, given.params, "bias")

    def step(carry: Carry, at_step: tuple[jax.Array, AtStep]) -> tuple[Carry, jax.Array]:
        projected, at = at_step
        shown = bool(at.kept or steps.leaks) and shows_hidden(
            cell, given.params, (projected,), carry
        )
        new, y = cell.update(given.params, projected, carry)
        new, y = steps.end(carry, new, y, at, shown)
        return steps.begin(new, at), y

    return jax.lax.scan(step, carry, (projected, each), reverse=layer.reverse)


# ---- forward


def _differentiated_as(plain: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """Give a function of a layer and arrays the derivative of its plain form.

    A loop that reads and writes whole arrays by index would carry them backwards whole, at a cost
    that grows with the square of the time steps.
    """

    def decorate(fast: Callable[..., Any]) -> Any:
        function = jax.custom_vjp(fast, nondiff_argnums=(0,))
        function.defvjp(
            lambda layer, *args: jax.vjp(functools.partial(plain, layer), *args),
            lambda layer, pull, cotangents: pull(cotangents),
        )
        return function

    return decorate


def _at_once(
    layer: _Layer, given: _Given, inputs: tuple[Any, AtStep], carry: Carry
) -> tuple[Carry, jax.Array]:
    """Project all inputs, then run the loop."""
    xs, each = inputs
    projected = _project(layer, given.params, xs)
    # The gates are written over it, so it has to have their type.
    first = jax.eval_shape(
        lambda *over_time: jax.tree.map(lambda a: a[0], over_time), projected, each
    )
    gates = jax.eval_shape(_step(layer, given), carry, *first)[2]
    projected = projected.astype(jax.tree.leaves(gates)[0].dtype)
    return _loop(layer, given, projected, each, carry)


@_differentiated_as(_at_once)
def _run(
    layer: _Layer, given: _Given, inputs: tuple[Any, AtStep], carry: Carry
) -> tuple[Carry, jax.Array]:
    """`_at_once`; where nothing is kept for a backward pass, a few steps' inputs at a time.

    A projection that fits the cache is read from there, and no memory has to be fetched for the
    others: of the time of a whole LSTM layer at once, 0.85 at H = 512 and batch 128, 0.90 at
    H = 256 and batch 32; but 1.2 at H = 512 and batch 16, whose products would be too small. There
    it pays from some 16 MB of projections on, in pieces of 50 to 100 steps: 0.90 at 1,000 steps,
    and 0.79 to 0.87 at 10,000 steps of H = 64 to 256 and batch 1 to 16.
    """
    xs, _ = inputs
    steps = _steps_ahead(layer.cell, math.prod(xs.shape[1:-1]), len(xs))
    if steps == len(xs):
        return _at_once(layer, given, inputs, carry)
    carry, ys = jax.lax.scan(
        lambda carry, inputs: _at_once(layer, given, inputs, carry),
        carry,
        _cut(inputs, steps),
        reverse=layer.reverse,
    )
    return carry, ys.reshape(len(xs), *ys.shape[2:])


def _steps_ahead(cell: DenseCell, rows: int, num_steps: int) -> int:
    """How many steps to project at a time where there is no backward pass."""
    if jax.default_backend() != "cpu":
        return num_steps
    if rows >= 32 and cell.hidden_size >= 128:
        counts = range(10, 20)
    elif 4 * num_steps * rows * cell.num_gates * cell.hidden_size > _MANY_BYTES:
        counts = range(100, 49, -1)
    else:
        return num_steps
    return next((k for k in counts if num_steps % k == 0), num_steps)


def _project(layer: _Layer, params: Params, xs: Any) -> jax.Array:
    """All steps' inputs times the kernel; the bias is added in the loop, which saves a pass."""
    if not layer.cell.projects_plainly:
        return layer.cell.project(params, xs)
    if isinstance(xs, OneHot):
        return product(xs, params["kernel"], layer.products.dtype)
    return _input_product(layer, params["kernel"], xs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _input_product(layer: _Layer, kernel: jax.Array, xs: jax.Array) -> jax.Array:
    """``xs @ kernel``, with both gradients in the forms that XLA computes without a copy."""
    return product(xs, kernel, layer.products.dtype)


def _input_product_backward(
    layer: _Layer, residuals: tuple[jax.Array, jax.Array], d: jax.Array
) -> tuple[jax.Array, jax.Array]:
    kernel, xs = residuals
    d_kernel = layer.products.kernel_gradient(xs, d).astype(kernel.dtype)
    return d_kernel, layer.products.inputs_gradient(d, kernel).astype(xs.dtype)


_input_product.defvjp(
    lambda layer, kernel, xs: (_input_product(layer, kernel, xs), (kernel, xs)),
    _input_product_backward,
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loop(
    layer: _Layer, given: _Given, projected: jax.Array, each: AtStep, carry: Carry
) -> tuple[Carry, jax.Array]:
    """The sequential half, over ``projected (time, *batch, gates * hidden_size)``."""
    step = _step(layer, given)

    def without_gates(carry: Carry, projected: jax.Array, at: AtStep) -> Any:
        carry, y, *_ = step(carry, projected, at)
        return carry, None, y

    ahead = not _reads_inputs_once(layer.cell)
    carry, _, ys = _over_time(without_gates, carry, projected, each, layer.reverse, ahead)
    return carry, ys


def _step(layer: _Layer, given: _Given) -> Callable[..., tuple[Carry, jax.Array, Any]]:
    """``(carry, projected, at) -> (carry, y, gates)``: all that the backward pass needs."""
    cell, params, steps = layer.cell, *given
    times = layer.products.times(params["recurrent_kernel"])

    def step(carry: Carry, projected: jax.Array, at: AtStep) -> tuple[Carry, jax.Array, Any]:
        if cell.projects_plainly:
            projected = add_bias(projected, params, "bias")
        recurrent = add_bias(times(steps.entering(carry.hidden)), params, "recurrent_bias")
        gates = cell.gates(projected, recurrent) if _keeps_gates(cell) else (projected, recurrent)
        return *_finish(cell, given, gates, carry, at), gates

    return step


def _forward(
    layer: _Layer, given: _Given, projected: jax.Array, each: AtStep, carry: Carry
) -> tuple[tuple[Carry, jax.Array], Any]:
    """`_loop`, and what the backward pass needs: each step's gates and the carry before it."""
    carry, ys, gates, carries = _in_place(layer, given, projected, each, carry)
    return (carry, ys), (given, gates, carries, each)


def _kept(
    layer: _Layer, given: _Given, projected: jax.Array, each: AtStep, carry: Carry
) -> tuple[Carry, jax.Array, Any, Carry]:
    """The loop with every step's gates and the carry before it."""
    step = _step(layer, given)

    def keep(carry: Carry, at_step: tuple[jax.Array, AtStep]) -> tuple[Carry, Any]:
        new, y, gates = step(carry, *at_step)
        return new, (y, gates, carry)

    carry, (ys, gates, carries) = jax.lax.scan(
        keep, carry, (projected, each), reverse=layer.reverse
    )
    return carry, ys, gates, carries


@_differentiated_as(_kept)
def _in_place(
    layer: _Layer, given: _Given, projected: jax.Array, each: AtStep, carry: Carry
) -> tuple[Carry, jax.Array, Any, Carry]:
    """`_kept`, with the first leaf of the gates written over ``projected``, which is read no more.

    It saves the largest array of a layer.
    """
    step = _step(layer, given)
    at_first = jax.tree.map(lambda leaf: leaf[0], each)
    structure = jax.tree.structure(jax.eval_shape(step, carry, projected[0], at_first)[2])

    def keep(carry: Carry, projected: jax.Array, at: AtStep) -> Any:
        new, y, gates = step(carry, projected, at)
        leaf, *rest = jax.tree.leaves(gates)
        return new, leaf, (y, rest, carry)

    ahead = not _reads_inputs_once(layer.cell)
    carry, first, (ys, rest, carries) = _over_time(
        keep, carry, projected, each, layer.reverse, ahead
    )
    return carry, ys, jax.tree.unflatten(structure, [first, *rest]), carries


# ---- backward


def _backward(
    layer: _Layer, residuals: Any, cotangents: tuple[Carry, jax.Array]
) -> tuple[_Given, jax.Array, None, Carry]:
    given, gates, carries, each = residuals
    params, steps = given
    d_carry, d_ys = cotangents
    (d_used, d_start), d_projected, d_recurrent, d_carry = _cotangents_in_place(
        layer, given, gates, (d_ys, carries, each), d_carry
    )
    if d_recurrent is None:
        d_recurrent = d_projected
    d_params = jax.tree.map(jnp.zeros_like, params)
    d_params["recurrent_kernel"] = layer.products.kernel_gradient(
        steps.entering(carries.hidden), d_recurrent
    )
    totals = {"recurrent_bias": d_recurrent}
    if layer.cell.projects_plainly:
        totals["bias"] = d_projected
    for name, total in totals.items():
        if name in params:
            d_params[name] = total.sum(axis=tuple(range(d_recurrent.ndim - 1)))
    d_params |= {name: jax.tree.map(jnp.add, d_params[name], d) for name, d in d_used.items()}
    d_params = jax.tree.map(lambda d, leaf: d.astype(leaf.dtype), d_params, params)
    # What was drawn at random has no gradient.
    d_steps = jax.tree.map(_no_gradient, steps)._replace(start=d_start)
    d_each = jax.tree.map(_no_gradient, each)
    return _Given(d_params, d_steps), d_projected, d_each, d_carry


def _no_gradient(leaf: jax.Array) -> Any:
    if jnp.issubdtype(leaf.dtype, jnp.inexact):
        return jnp.zeros_like(leaf)
    return np.zeros(leaf.shape, jax.dtypes.float0)


_loop.defvjp(_forward, _backward)


def _cotangents(
    layer: _Layer,
    given: _Given,
    gates: Any,
    others: tuple[jax.Array, Carry, AtStep],
    d_carry: Carry,
) -> tuple[Any, jax.Array, jax.Array | None, Carry]:
    """The backward loop, over ``gates`` and ``others``, which are (d_ys, carries, each).

    Returns the gradients of the parameters that `combine` reads and of the carry that resets put
    in; the cotangents of the projected inputs and of the recurrent products at every step, the
    second None where it is the first; and the cotangent of the carry before the first step.
    """
    d_shared, step = _backward_step(layer, given, gates, others[1])
    (d_carry, d_shared), (d_projected, d_recurrent) = jax.lax.scan(
        lambda state, at: step(state, *at), (d_carry, d_shared), (gates, others),
        reverse=not layer.reverse,
    )  # fmt: skip
    return d_shared, d_projected, d_recurrent, d_carry


@_differentiated_as(_cotangents)
def _cotangents_in_place(
    layer: _Layer,
    given: _Given,
    gates: Any,
    others: tuple[jax.Array, Carry, AtStep],
    d_carry: Carry,
) -> tuple[Any, jax.Array, jax.Array | None, Carry]:
    """`_cotangents`, with those of the projected inputs written over the gates' first leaf."""
    d_shared, step = _backward_step(layer, given, gates, others[1])
    (first, *rest), structure = jax.tree.flatten(gates)

    def replace(state: Any, first: jax.Array, at: Any) -> Any:
        rest, others = at
        state, (d_projected, d_recurrent) = step(
            state, jax.tree.unflatten(structure, [first, *rest]), others
        )
        return state, d_projected, d_recurrent

    (d_carry, d_shared), d_projected, d_recurrent = _over_time(
        replace, (d_carry, d_shared), first, (rest, others), not layer.reverse, ahead=True
    )
    return d_shared, d_projected, d_recurrent, d_carry


def _backward_step(layer: _Layer, given: _Given, gates: Any, carries: Carry) -> Any:
    """Zeros for the gradients summed in the loop, and the step of the backward loop."""
    cell, params, steps = layer.cell, *given
    used = _parameters_in_loop(cell, params, gates, carries)
    times_transposed: Product = layer.products.times_transposed(params["recurrent_kernel"])

    def step(state: Any, gates: Any, others: Any) -> tuple[Any, Any]:
        d_carry, d_so_far = state
        d_y, carry, at = others
        _, pull = jax.vjp(
            lambda used, start, gates, carry: _finish(
                cell,
                _Given({**params, **used}, steps._replace(start=start)),
                gates,
                carry,
                at,
            ),
            used,
            steps.start,
            gates,
            carry,
        )
        *d_shared, d_gates, d_carry = pull((d_carry, d_y))
        d_projected, d_recurrent = (
            cell.pull_gates(gates, d_gates) if _keeps_gates(cell) else d_gates
        )
        # The barrier has them computed once, though the product and the outputs both read them.
        if d_recurrent is d_projected:
            d_projected = d_recurrent = jax.lax.optimization_barrier(d_projected)
            outputs = d_projected, None
        else:
            outputs = d_projected, d_recurrent = jax.lax.optimization_barrier(
                (d_projected, d_recurrent)
            )
        d_hidden = steps.entering(times_transposed(d_recurrent).astype(d_carry.hidden.dtype))
        d_carry = d_carry._replace(hidden=d_carry.hidden + d_hidden)
        return (d_carry, jax.tree.map(jnp.add, d_so_far, tuple(d_shared))), outputs

    return jax.tree.map(jnp.zeros_like, (used, steps.start)), step


# ---- loops over arrays that are written in place


def _over_time(
    step: Callable[[Any, jax.Array, Any], tuple[Any, jax.Array | None, Any]],
    state: Any,
    first: jax.Array,
    others: Any,
    reverse: bool,
    ahead: bool,
) -> tuple[Any, jax.Array, Any]:
    """A scan over ``first`` and ``others`` that can replace the entries of ``first``.

    With ``ahead``, each step's entries are read at the end of the step before and carried into it.
    XLA slices them out of the whole arrays again in each of the small loops that read them, which
    is slow where there are several: a GRU's forward pass takes 0.44 to 0.76 of the time, an LSTM's,
    with one such loop, 1.05 to 1.2. They are read after the write, so that nothing still needs the
    array as it was before, and no copy of it is made.

    Args:
        step: ``(state, entry, entries) -> (state, replacement or None, output)``.
        state: before the first step.
        first: an array over time.
        others: a tree of arrays over time.
        reverse: whether to begin with the last entry.
        ahead: see above.

    Returns:
        the state after the last step, ``first`` with its replacements, and the outputs.
    """
    last = len(first) - 1

    def read(first: jax.Array, t: jax.Array) -> Any:
        t = jnp.clip(t, 0, last)
        return jax.tree.map(
            lambda leaf: jax.lax.dynamic_index_in_dim(leaf, t, keepdims=False), (first, others)
        )

    def write(first: jax.Array, entry: jax.Array | None, t: jax.Array) -> jax.Array:
        if entry is None:
            return first
        return jax.lax.dynamic_update_index_in_dim(first, entry, t, 0)

    def now(loop: Any, t: jax.Array) -> tuple[Any, Any]:
        state, first = loop
        state, entry, output = step(state, *read(first, t))
        return (state, write(first, entry, t)), output

    def one_ahead(loop: Any, t: jax.Array) -> tuple[Any, Any]:
        (state, first), at = loop
        state, entry, output = step(state, *at)
        first = write(first, entry, t)
        return ((state, first), read(first, t - 1 if reverse else t + 1)), output

    times = jnp.arange(last + 1)
    if ahead:
        begin = (state, first), read(first, jnp.int32(last if reverse else 0))
        ((state, first), _), outputs = jax.lax.scan(one_ahead, begin, times, reverse=reverse)
    else:
        (state, first), outputs = jax.lax.scan(now, (state, first), times, reverse=reverse)
    return state, first, outputs


# ---- what is known of a cell


def _keeps_gates(cell: DenseCell) -> TypeGuard[GatedCell]:
    """Whether the values of the gates are all that the backward pass needs of them.

    Not in a subclass that overrides what they stand for, or computes them in another way than its
    `pull_gates` was written for.
    """
    own = type(cell)
    return (
        isinstance(cell, GatedCell)
        and own.activate is GatedCell.activate
        and own.update is DenseCell.update
        and _definer(own, "pull_gates") <= _definer(own, "gates")
        and cell.keeps_gates
    )


def _definer(cell_type: type, name: str) -> int:
    """How far up the class is that defines a method, the cell's own class being 0."""
    return next(i for i, base in enumerate(cell_type.__mro__) if name in vars(base))


def _reads_inputs_once(cell: DenseCell) -> bool:
    """Whether a step reads its projected inputs in a single piece, as the sum of all gates does."""
    return isinstance(cell, AdditiveCell) and _keeps_gates(cell)


def _combine(cell: Any, params: Params, gates: Any, carry: Carry) -> tuple[Carry, jax.Array]:
    """The step from the gates on, or from both halves of their inputs where those are kept."""
    if _keeps_gates(cell):
        return cell.cast(cell.combine(params, gates, carry), carry)
    return cell.update(params, *gates, carry)


def _finish(
    cell: Any, given: _Given, gates: Any, carry: Carry, at: AtStep
) -> tuple[Carry, jax.Array]:
    """`_combine`, and what else happens at the step."""
    params, steps = given
    shown = False
    if at.kept or steps.leaks:
        like = jax.tree.leaves(gates)[0]  # both halves of the gates' inputs have its shape
        shown = shows_hidden(cell, params, (like, like), carry)
    new, y = _combine(cell, params, gates, carry)
    new, y = steps.end(carry, new, y, at, shown)
    return steps.begin(new, at), y


def _parameters_in_loop(
    cell: DenseCell, params: Params, gates: Any, carries: Carry
) -> dict[str, jax.Array]:
    """The parameters that `_combine` reads, whose gradients are summed in the loop.

    They are vectors at most (a peephole, a gain), and for most cells there are none.
    """
    at_step = jax.eval_shape(lambda t: jax.tree.map(lambda leaf: leaf[t], (gates, carries)), 0)
    jaxpr = jax.make_jaxpr(functools.partial(_combine, cell))(params, *at_step).jaxpr
    read = {id(v) for eqn in jaxpr.eqns for v in eqn.invars} | {id(v) for v in jaxpr.outvars}
    inputs = iter(jaxpr.invars)  # the leaves of params come first, in JAX's order of a dict
    used = {}
    for name in sorted(params):
        variables = [next(inputs) for _ in jax.tree.leaves(params[name])]
        if any(id(v) in read for v in variables):
            used[name] = params[name]
    return used
