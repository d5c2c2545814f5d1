"""A layer over a sequence: one product before the loop, one per step, one per weight gradient.

Autodiff through a scan carries the gradient of every weight in the loop and adds to it at every
step. For a recurrent layer that costs more than the products themselves. Here the backward loop
emits the cotangents of the gates instead, and each weight gradient is one product over all steps
after the loop. JAX differentiates the pointwise part, the cell's `update`.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rnnjax.cells.base import Carry, Cell, Params
from rnnjax.cells.products import at_least_float32
from rnnjax.cells.step import is_bias, multiplied, update_params
from rnnjax.checks import brief
from rnnjax.engine.core.custom_primitive import Function
from rnnjax.engine.core.masking import StepMarks, Steps
from rnnjax.engine.fused.loops import over_time, split_time, with_vectors
from rnnjax.engine.fused.plan import LayerPlan
from rnnjax.engine.fused.residuals import (
    Layer,
    after,
    given_of,
    residual_map_of,
    saving_step_of,
    step_of,
)


@dataclasses.dataclass(frozen=True)
class Recurrence(Function):
    """``(params, steps, xs, per_step, carry) -> (carry, ys)``.

    Args:
        cell: a cell that declares its equation.
        dtype: the type of the operands of its products.
        reverse: whether it runs from the last step to the first.
    """

    cell: Cell
    dtype: DTypeLike | None
    reverse: bool

    def refused(self, what: str) -> str:
        """Say why the update of the cell cannot run so."""
        return (
            f"update of {brief(self.cell)} has {what}, and so cannot be taken out of the order of "
            "its steps by Fused() or Auto(); use method=Scan()"
        )

    def layer(self, platform: str, params: Params, steps: Steps, xs: Any) -> Layer:
        """Return the `Layer` for one of the methods below."""
        plan = LayerPlan.of(self.cell, params, xs.shape, self.dtype, platform)
        loop = with_vectors if platform == "cpu" else over_time
        return Layer(self.cell, plan, self.reverse, params, steps, loop)

    def plain(
        self, params: Params, steps: Steps, xs: Any, per_step: StepMarks, carry: Carry
    ) -> Any:
        """Scan over the step, after the product of the inputs."""
        # For no platform: a form that is differentiated to any order has no barriers or copies.
        step = step_of(self.layer("any", params, steps, xs))
        projected = multiplied(self.cell, params, xs, self.dtype)
        return jax.lax.scan(
            lambda carry, at: step(carry, *at), carry, (projected, per_step), reverse=self.reverse
        )

    def run(
        self, platform: str, params: Params, steps: Steps, xs: Any, per_step: Any, carry: Carry
    ) -> Any:
        """Project the inputs of some steps at a time, and run the loop over them.

        A projection that fits the cache is read from there, and its memory is reused. `LayerPlan`
        says how many steps: too few make small products.
        """
        layer = self.layer(platform, params, steps, xs)

        def at_once(carry: Carry, inputs: tuple[Any, StepMarks]) -> tuple[Carry, jax.Array]:
            xs, per_step = inputs
            return _forward_loop(layer, project(layer, xs), per_step, carry)

        num_steps, length = xs.shape[0], layer.plan.block
        if length == 1:
            step = step_of(layer)
            return jax.lax.scan(
                lambda carry, at: step(carry, project(layer, at[0]), at[1]),
                carry,
                (xs, per_step),
                reverse=self.reverse,
            )
        if length == num_steps:
            return at_once(carry, (xs, per_step))
        carry, ys = jax.lax.scan(
            at_once, carry, split_time((xs, per_step), length), reverse=self.reverse
        )
        return carry, ys.reshape(num_steps, *ys.shape[2:])

    def forward(
        self, platform: str, params: Params, steps: Steps, xs: Any, per_step: Any, carry: Carry
    ) -> Any:
        """Project all inputs; return each step's residuals and the carry before it.

        Residuals of the size of the projected inputs, such as four gates, overwrite them. That
        saves the largest array of a layer.
        """
        layer = self.layer(platform, params, steps, xs)
        step = saving_step_of(layer)

        def keep(carry: Carry, projected: jax.Array, at: StepMarks) -> Any:
            new, y, (entry, rest) = step(carry, projected, at)
            return new, entry, (y, rest, carry)

        # Prefetched, as XLA may otherwise copy the array that is written over at each step.
        carry, first, (ys, rest, carries) = layer.loop(
            keep, carry, project(layer, xs), per_step, reverse=self.reverse, prefetch=True
        )
        return (carry, ys), (first, rest, carries)

    def backward(self, platform: str, args: Any, saved: Any, d: Any, needs_grad: Any) -> Any:
        """Run the backward loop, and one product for each weight."""
        (params, steps, xs, per_step, _), (first, rest, carries) = args, saved
        layer, cell = self.layer(platform, params, steps, xs), self.cell
        d_carry, d_ys = d
        (d_used, d_start), d_projected, (d_recurrent, d_raw), d_carry = _backward_loop(
            layer, first, (rest, d_ys, carries, per_step), d_carry
        )
        # Where the update reads a sum, the halves have the same cotangent, and one array holds it.
        if d_recurrent is None:
            d_recurrent = d_projected
        d_params, products = dict(d_used), layer.plan.products
        if cell.recurrent is not None:
            # z_t = x_t W + h_(t-1) U + b gives dW = sum_t x_t^T dz_t and dU = sum_t h_(t-1)^T dz_t.
            # With dz of all steps known, each sum over time and rows is one product of matrices.
            entering = steps.drop_state(getattr(carries, cell.recurrent))
            d_params["recurrent_kernel"] = products.kernel_gradient(
                entering, d_recurrent, params["recurrent_kernel"]
            )
        # The biases are added inside the loop, and their gradients are summed after it.
        for name, d_sum in (("bias", d_projected), ("recurrent_bias", d_recurrent)):
            if name in params and is_bias(cell, name):  # elsewhere the update adds it
                d_params[name] += d_sum.sum(axis=tuple(range(d_sum.ndim - 1)))
        kernel, d_xs = params["kernel"], jax.tree.map(lambda _: None, xs)
        wanted = any(jax.tree.leaves(needs_grad[2]))  # which ids are not
        if not kernel.size:  # all inputs are raw, or the cell has no gates
            d_params["kernel"], d_xs = kernel, jnp.zeros_like(xs) if wanted else d_xs
        else:
            d_params["kernel"] = products.kernel_gradient(xs, d_projected, kernel)
            if wanted:
                d_xs = products.inputs_gradient(d_projected, kernel).astype(xs.dtype)
        d_params = {name: d.astype(params[name].dtype) for name, d in d_params.items()}
        nothing = jax.tree.map(lambda _: None, (steps, per_step))
        d_start = jax.tree.map(lambda d, leaf: d.astype(leaf.dtype), d_start, steps.start)
        marks = nothing[1]._replace(raw=d_raw)
        return d_params, nothing[0]._replace(start=d_start), d_xs, marks, d_carry


def project(layer: Layer, xs: Any) -> jax.Array:
    """Multiply all inputs by the kernel; adding the bias in the loop saves a pass."""
    return multiplied(layer.cell, layer.params, xs, layer.plan.products.dtype)


def _forward_loop(
    layer: Layer, projected: jax.Array, per_step: StepMarks, carry: Carry
) -> tuple[Carry, jax.Array]:
    """Run the steps over ``projected (time, *batch, gates * hidden_size)``."""
    step = step_of(layer)

    def body(carry: Carry, projected: jax.Array, at: StepMarks) -> Any:
        new, y = step(carry, projected, at)
        return new, None, y

    prefetch = layer.plan.prefetch
    carry, _, ys = layer.loop(
        body, carry, projected, per_step, reverse=layer.reverse, prefetch=prefetch
    )
    return carry, ys


def _backward_loop(
    layer: Layer,
    first: jax.Array,
    others: Any,
    d_carry: Carry,
) -> tuple[Any, jax.Array, tuple[jax.Array | None, dict[str, jax.Array]], Carry]:
    """Run backwards over the residuals ``first`` and ``others = (rest, d_ys, carries, per_step)``.

    Args:
        layer: the layer of the backward pass.
        first: the residuals saved in place of the projected inputs.
        others: the other arrays over time.
        d_carry: the cotangent of the last carry.

    Returns:
        the gradients of the parameters that `update` reads and of the carry of resets; the
        cotangents of the projected inputs, written over ``first``; the cotangents of the recurrent
        products, None if equal to those, and of the raw features; and the cotangent of the carry
        before the first step.
    """
    cell, plan, _, params, steps, loop = layer
    used, pair = update_params(cell, params), cell.recurrent is not None and not cell.additive
    leaf = cell.recurrent
    if leaf is not None:
        times_transposed = plan.products.times_transposed(params["recurrent_kernel"])

    def step(state: Any, first: jax.Array, others: Any) -> Any:
        d_carry, d_so_far = state
        rest, d_y, carry, at = others
        # Traced and not run: the program contains the uses of the arrays, not their computation.
        # Which array is which follows from a trace of the forward step, which ``jit`` has in its
        # cache: see `_saving`.
        residual_map = residual_map_of(layer, carry, first, at.raw)
        # The derivative of a linear function does not ask where.
        zeros = jax.tree.map(jnp.zeros_like, (steps.start, carry, carry, d_y))
        _, vjp_fn = jax.vjp(functools.partial(after, cell, steps, at), *zeros)
        d_start, d_old, d_new, d_y = vjp_fn((d_carry, d_y))
        vjp_fn = residual_map.vjp_fn((first, rest), given_of(used, carry, at.raw))
        d_used, d_x, d_carry, d_raw = vjp_fn((d_new, d_y))
        if leaf is not None:
            # The barrier makes XLA compute it once, though the product and the outputs read it.
            d_x = jax.lax.optimization_barrier(d_x)
        d_projected, d_recurrent = d_x if pair else (d_x, d_x)
        # The state before a step reaches the one after it through the update, and through masks and
        # zoneout, which hold it. Its cotangent is the sum of both.
        d_carry = jax.tree.map(jnp.add, d_carry, d_old)
        if leaf is not None:
            d_state = getattr(d_carry, leaf)
            # The third way: z = drop(h) U gives dh = drop(dz U^T), as dropout scales each unit.
            d_state += steps.drop_state(times_transposed(d_recurrent).astype(d_state.dtype))
            d_carry = d_carry._replace(**{leaf: d_state})
        state = d_carry, jax.tree.map(jnp.add, d_so_far, (d_used, d_start))
        outputs = d_recurrent if pair else None, d_raw
        return state, d_projected.astype(first.dtype), outputs

    # In float32 at least: in bfloat16 a sum over time stops growing after some 256 steps.
    zeros = jax.tree.map(
        lambda leaf: jnp.zeros_like(leaf, dtype=at_least_float32(leaf.dtype)), (used, steps.start)
    )
    (d_carry, d_shared), d_projected, rest = loop(
        step, (d_carry, zeros), first, others, reverse=not layer.reverse, prefetch=True
    )
    return d_shared, d_projected, rest, d_carry
