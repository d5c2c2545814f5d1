"""The fast path: one product before the loop, one per step, and one after it for each gradient.

Autodiff through a scan carries the gradient of every weight in the loop and adds to it at every
step, which for a recurrent layer costs more than the products themselves. Here the backward loop
leaves the cotangents of the gates behind instead, and each weight gradient is one product over all
steps afterwards. The gradient of the pointwise part is JAX's own, of the cell's one equation.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp

from rnnjax.cells.activations import activate_gates, gate_slopes, slopes_follow_from_values
from rnnjax.cells.base import (
    AdditiveCell,
    Carry,
    Cell,
    DenseCell,
    Params,
    add_bias,
    at_least_float32,
    check_params,
    product,
)
from rnnjax.engine.method import Method

# A recurrent kernel above this size does not stay in a core's cache between two steps.
# Other forms of its two products are then faster: see _recurrent and _transposed_product.
_CACHE_BYTES = 4 * 2**20


@dataclasses.dataclass(frozen=True)
class Fused(Method):
    """Project all inputs in one product, and schedule the backward pass by hand.

    It serves cells whose step splits into project, recurrent product and activate (`DenseCell`).
    It can be vmapped, and its gradient can be differentiated again by ``grad`` (reverse over
    reverse). Forward-mode differentiation (``jvp``, ``jacfwd``, ``hessian``) needs ``Scan()``, as
    for every function with a derivative rule of its own in JAX.
    """

    def refusal(self, cell: Cell) -> str | None:
        """Cells whose step does not split are refused."""
        if isinstance(cell, DenseCell) and cell.splits:
            return None
        return "its step does not split into project, recurrent product and activate"

    def run(
        self, cell: Cell, params: Params, xs: jax.Array, carry: Carry, reverse: bool
    ) -> tuple[Carry, jax.Array]:
        """Run ``cell`` over ``xs (time, *batch, features)``."""
        assert isinstance(cell, DenseCell)
        if _keeps_gates(cell):
            # The loop adds the bias, which saves a pass over the largest array of the layer.
            check_params(cell, params, xs)
            projected = _input_product(cell.dtype, params["kernel"], xs)
        else:
            projected = cell.project(params, xs)
        return _loop(cell, reverse, params, projected, carry)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _input_product(dtype: Any, kernel: jax.Array, xs: jax.Array) -> jax.Array:
    """``xs @ kernel``, with both gradients in the forms that XLA computes without a copy."""
    return product(xs, kernel, dtype)


def _input_product_backward(
    dtype: Any, residuals: tuple[jax.Array, jax.Array], d: jax.Array
) -> tuple[jax.Array, jax.Array]:
    kernel, xs = residuals
    d_xs = _times_transposed(d, kernel, dtype).astype(xs.dtype)
    return _kernel_gradient(xs, d, kernel, dtype), d_xs


_input_product.defvjp(
    lambda dtype, kernel, xs: (product(xs, kernel, dtype), (kernel, xs)), _input_product_backward
)


def _kernel_gradient(xs: jax.Array, d: jax.Array, kernel: jax.Array, dtype: Any) -> jax.Array:
    """The gradient of ``kernel`` in ``xs @ kernel``: one product over all steps and rows.

    Written out, because JAX's own rule gives its transpose, which XLA then copies around.
    """
    left, right = (a.reshape(-1, a.shape[-1]) for a in (xs, d))
    return _transposed_times(left, right, dtype).astype(kernel.dtype)


def _transposed_times(left: jax.Array, right: jax.Array, dtype: Any) -> jax.Array:
    """``left.T @ right``, in the types of `product`."""
    dtype = jnp.promote_types(left.dtype, right.dtype) if dtype is None else dtype
    return jax.lax.dot_general(
        left.astype(dtype),
        right.astype(dtype),
        (((0,), (0,)), ((), ())),
        preferred_element_type=at_least_float32(dtype),
    )


def _times_transposed(d: jax.Array, kernel: jax.Array, dtype: Any) -> jax.Array:
    """``d @ kernel.T`` with the kernel as first operand, which large products prefer."""
    rows = d.reshape(-1, d.shape[-1])
    out = jax.lax.optimization_barrier(product(kernel, rows.T, dtype))
    return out.T.reshape(*d.shape[:-1], kernel.shape[0])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _loop(
    cell: DenseCell, reverse: bool, params: Params, projected: jax.Array, carry: Carry
) -> tuple[Carry, jax.Array]:
    """The sequential half, over ``projected (time, *batch, gates * hidden_size)``."""

    def step(carry: Carry, projected: jax.Array) -> tuple[Carry, jax.Array]:
        new, y, _ = _step(cell, params, projected, carry)
        return new, y

    return jax.lax.scan(step, carry, projected, reverse=reverse)


def _step(
    cell: DenseCell, params: Params, projected: jax.Array, carry: Carry
) -> tuple[Carry, jax.Array, jax.Array]:
    """One step: the new carry, the output, and what the backward pass needs of the step."""
    recurrent = _recurrent(cell, params, carry.hidden)
    if _keeps_gates(cell):
        gates = activate_gates(projected + recurrent, cell.gate_activations)
        return *cell.update_from_gates(params, gates, carry), gates
    return *cell.update(params, projected, recurrent, carry), recurrent


def _recurrent(cell: DenseCell, params: Params, hidden: jax.Array) -> jax.Array:
    """``hidden @ recurrent_kernel`` and the biases, in the form that is fast for the sizes.

    Forward, of the plain form's time (two cores, jaxlib 0.10.2): 0.95 at H = 700, batch 12;
    0.78 at H = 1024, batch 32; but 1.06 at H = 700, batch 64.
    """
    kernel, rows = params["recurrent_kernel"], hidden.reshape(-1, hidden.shape[-1])
    if _fits_in_cache(kernel) or len(rows) > 32:
        recurrent = cell.recurrent_product(params, hidden)
    else:
        out = _transposed_times(jax.lax.optimization_barrier(rows.T), kernel, cell.dtype)
        out = out.reshape(*hidden.shape[:-1], kernel.shape[1])
        recurrent = add_bias(out, params, "recurrent_bias")
    return add_bias(recurrent, params, "bias") if _keeps_gates(cell) else recurrent


def _forward(
    cell: DenseCell, reverse: bool, params: Params, projected: jax.Array, carry: Carry
) -> tuple[tuple[Carry, jax.Array], Any]:
    """`_loop`, and what the backward pass needs: the pointwise part's arguments at every step."""
    if _keeps_gates(cell):
        carry, ys, gates, carries = _in_place(cell, reverse, params, projected, carry)
        return (carry, ys), (params, (gates,), carries)
    carry, ys, recurrent, carries = _kept(cell, reverse, params, projected, carry)
    return (carry, ys), (params, (projected, recurrent), carries)


def _kept(
    cell: DenseCell, reverse: bool, params: Params, projected: jax.Array, carry: Carry
) -> tuple[Carry, jax.Array, jax.Array, Carry]:
    """The loop with, at every step, what `_step` keeps and the carry before it."""

    def step(carry: Carry, projected: jax.Array) -> tuple[Carry, Any]:
        new, y, kept = _step(cell, params, projected, carry)
        return new, (y, kept, carry)

    carry, (ys, kept, carries) = jax.lax.scan(step, carry, projected, reverse=reverse)
    return carry, ys, kept, carries


def _differentiated_as(plain: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """Make a loop's own derivative, which second derivatives need, that of its plain form.

    A loop that reads and writes whole arrays by index would carry them backwards whole, at a cost
    that grows with the square of the time steps.
    """

    def decorate(fast: Callable[..., Any]) -> Any:
        function = jax.custom_vjp(fast, nondiff_argnums=(0, 1))
        function.defvjp(
            lambda cell, reverse, *args: jax.vjp(functools.partial(plain, cell, reverse), *args),
            lambda cell, reverse, pull, cotangents: pull(cotangents),
        )
        return function

    return decorate


@_differentiated_as(_kept)
def _in_place(
    cell: AdditiveCell, reverse: bool, params: Params, projected: jax.Array, carry: Carry
) -> tuple[Carry, jax.Array, jax.Array, Carry]:
    """`_kept`, with the values of the gates written over ``projected``, which is read no more.

    It saves the largest array of a layer.
    """

    def step(state: Any, t: jax.Array) -> tuple[Any, Any]:
        carry, gates = state
        projected = jax.lax.dynamic_index_in_dim(gates, t, keepdims=False)
        new, y, kept = _step(cell, params, projected, carry)
        return (new, jax.lax.dynamic_update_index_in_dim(gates, kept, t, 0)), (y, carry)

    times = jnp.arange(len(projected))
    (carry, gates), (ys, carries) = jax.lax.scan(step, (carry, projected), times, reverse=reverse)
    return carry, ys, gates, carries


def _backward(
    cell: DenseCell, reverse: bool, residuals: Any, cotangents: tuple[Carry, jax.Array]
) -> tuple[Params, jax.Array, Carry]:
    params, halves, carries = residuals
    d_carry, d_ys = cotangents
    d_used, d_halves, d_carry = _gates_ahead(
        cell, reverse, params, (d_ys, halves, carries), d_carry
    )
    d_params = jax.tree.map(jnp.zeros_like, params)
    kernel, d_recurrent = params["recurrent_kernel"], d_halves[-1]
    d_params["recurrent_kernel"] = _kernel_gradient(carries.hidden, d_recurrent, kernel, cell.dtype)
    for name in ("recurrent_bias", "bias") if _keeps_gates(cell) else ("recurrent_bias",):
        if name in params:
            total = d_recurrent.sum(axis=tuple(range(d_recurrent.ndim - 1)))
            d_params[name] = total.astype(params[name].dtype)
    d_params |= {name: jax.tree.map(jnp.add, d_params[name], d) for name, d in d_used.items()}
    return d_params, d_halves[0], d_carry


def _gates(
    cell: DenseCell, reverse: bool, params: Params, arrays: Any, d_carry: Carry
) -> tuple[Params, Any, Carry]:
    """The backward loop over ``arrays``, which are (d_ys, halves, carries).

    Returns the gradients of the parameters that the pointwise part reads, the cotangents of the
    halves at every step, and that of the carry before the first.
    """
    state, step = _backward_step(cell, params, arrays, d_carry)
    (d_carry, d_used), d_halves = jax.lax.scan(step, state, arrays, reverse=not reverse)
    return d_used, d_halves, d_carry


@_differentiated_as(_gates)
def _gates_ahead(
    cell: DenseCell, reverse: bool, params: Params, arrays: Any, d_carry: Carry
) -> tuple[Params, Any, Carry]:
    """`_gates`, with each step's arrays read one step ahead and carried into it.

    XLA would otherwise slice them out of the whole arrays again in each of the small loops that
    read them.
    """
    state, step = _backward_step(cell, params, arrays, d_carry)
    last = len(arrays[0]) - 1

    def read(t: jax.Array) -> Any:
        t = jnp.clip(t, 0, last)
        return jax.tree.map(
            lambda leaf: jax.lax.dynamic_index_in_dim(leaf, t, keepdims=False), arrays
        )

    def step_and_read(state: Any, t: jax.Array) -> tuple[Any, Any]:
        state, at_step = state
        state, d_halves = step(state, at_step)
        return (state, read(t + 1 if reverse else t - 1)), d_halves

    first = read(jnp.int32(0 if reverse else last))
    times = jnp.arange(last + 1)
    ((d_carry, d_used), _), d_halves = jax.lax.scan(
        step_and_read, (state, first), times, reverse=not reverse
    )
    return d_used, d_halves, d_carry


def _backward_step(cell: DenseCell, params: Params, arrays: Any, d_carry: Carry) -> Any:
    """The state of the backward loop before its first step, and the step."""
    used = _parameters_in_loop(cell, params, *arrays[1:])
    transposed_product = _transposed_product(cell, params["recurrent_kernel"])

    def step(state: Any, at_step: Any) -> tuple[Any, Any]:
        d_carry, d_used = state
        d_y, halves, carry = at_step
        _, pull = jax.vjp(_pointwise(cell, params), used, halves, carry)
        d_params, d_halves, d_carry = pull((d_carry, d_y))
        if _keeps_gates(cell):
            d_gates = d_halves[0] * gate_slopes(halves[0], cell.gate_activations)
            # Computed once, though the product and the output both read it.
            d_halves = (jax.lax.optimization_barrier(d_gates),)
        d_hidden = transposed_product(d_halves[-1])
        d_carry = d_carry._replace(hidden=d_carry.hidden + d_hidden.astype(d_carry.hidden.dtype))
        return (d_carry, jax.tree.map(jnp.add, d_used, d_params)), d_halves

    return (d_carry, jax.tree.map(jnp.zeros_like, used)), step


_loop.defvjp(_forward, _backward)


def _transposed_product(cell: DenseCell, kernel: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """``d_recurrent @ kernel.T``, in the form that is fast for the kernel's size.

    A small kernel is copied transposed, once before the loop (the barrier keeps XLA from folding
    the copy back into it): contracting with the kernel's second axis is up to 1.7 times slower at
    H = 128. A kernel that has to be read from memory at each step anyway is fastest as the first
    operand: 1.2 times at H = 700, batch 12.
    """
    if _fits_in_cache(kernel):
        transposed = jax.lax.optimization_barrier(kernel.T)
        return lambda d_recurrent: product(d_recurrent, transposed, cell.dtype)

    return lambda d_recurrent: _times_transposed(d_recurrent, kernel, cell.dtype)


def _fits_in_cache(kernel: jax.Array) -> bool:
    return kernel.size * kernel.dtype.itemsize <= _CACHE_BYTES


def _keeps_gates(cell: DenseCell) -> TypeGuard[AdditiveCell]:
    """Whether the values of the gates are all that the backward pass needs of them."""
    return (
        isinstance(cell, AdditiveCell)
        and type(cell).project is DenseCell.project
        and type(cell).activate is AdditiveCell.activate
        and slopes_follow_from_values(cell.gate_activations)
    )


def _pointwise(cell: DenseCell, params: Params) -> Callable[..., tuple[Carry, jax.Array]]:
    """The pointwise part as a function of (parameters that it reads, what was kept, carry)."""

    def pointwise(used: Params, halves: tuple[jax.Array, ...], carry: Carry) -> Any:
        merged = {**params, **used}
        if _keeps_gates(cell):
            (gates,) = halves
            return cell.update_from_gates(merged, gates, carry)
        projected, recurrent = halves
        return cell.update(merged, projected, recurrent, carry)

    return pointwise


def _parameters_in_loop(
    cell: DenseCell, params: Params, halves: Any, carries: Carry
) -> dict[str, jax.Array]:
    """The parameters that the pointwise part reads, whose gradients are summed in the loop.

    They are vectors at most (a peephole, a gain), and for most cells there are none.
    """
    at_step = jax.eval_shape(lambda t: jax.tree.map(lambda leaf: leaf[t], (halves, carries)), 0)
    jaxpr = jax.make_jaxpr(_pointwise(cell, {}))(params, *at_step).jaxpr
    read = {id(v) for eqn in jaxpr.eqns for v in eqn.invars}
    inputs = iter(jaxpr.invars)  # the leaves of params come first, in JAX's order of a dict
    used = {}
    for name in sorted(params):
        variables = [next(inputs) for _ in jax.tree.leaves(params[name])]
        if any(id(v) in read for v in variables):
            used[name] = params[name]
    return used
