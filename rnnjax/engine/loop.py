"""The loop of the fast path, and its derivative: what is sequential of a cell with products.

The forward loop keeps, of each step, what the derivative of the cell's `update` needs; the backward
loop leaves the cotangents of the gates behind, and each weight gradient is one product over all
steps afterwards. Both derivatives are JAX's own, of the cell's one equation. What they need of it
follows from names alone: JAX saves what `rnnjax.cells.activations.KEPT` names, and computes the
rest again, from that and from the carry.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.cells.activations import KEPT
from rnnjax.cells.base import Carry, Cell, Params, is_bias
from rnnjax.engine.over_time import over_time
from rnnjax.engine.products import Products
from rnnjax.engine.steps import AtStep, Steps

Kept = tuple[jax.Array | None, list[jax.Array]]
"""Of a step: what takes the place of its projected inputs, if anything does; and the rest."""


@dataclasses.dataclass(frozen=True)
class Layer:
    """All that is static about a run."""

    cell: Any  # a Cell that declares its equation
    products: Products
    reverse: bool


class Given(NamedTuple):
    """The arrays that all steps share: the parameters, and what of `Steps` is for all of them."""

    params: Params
    steps: Steps


def differentiated_as(plain: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
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


# ---- one step


@dataclasses.dataclass(frozen=True, eq=False)
class _Layout:
    """Where the derivative of a step finds each array that it needs.

    Attributes:
        tree: of the function that `jax.vjp` returned, which is a pytree of these arrays.
        places: of each the kind (``"kept"``, ``"params"``, ``"carry"`` or ``"constant"``) and which
            of that kind it is, or the constant itself.
        written: which of those kept, side by side, take the place of the projected inputs: none, or
            as many as have their size.
    """

    tree: Any
    places: tuple[tuple[str, Any], ...]
    written: tuple[int, ...]
    sizes: tuple[int, ...]

    @classmethod
    def of(
        cls, pull: Any, params: Params, carry: Carry, projected: jax.Array
    ) -> tuple["_Layout", list[jax.Array]]:
        """The layout of a derivative ``pull``, and the arrays that are its own."""
        leaves, tree = jax.tree.flatten(pull)
        shared = [("params", i, leaf) for i, leaf in enumerate(jax.tree.leaves(params))]
        shared += [("carry", i, leaf) for i, leaf in enumerate(jax.tree.leaves(carry))]
        places: list[tuple[str, Any]] = []
        kept: list[jax.Array] = []
        for leaf in leaves:
            # An array that the step was given is handed through as the same object.
            place = next(((kind, i) for kind, i, own in shared if own is leaf), None)
            if place is None and not isinstance(leaf, jax.core.Tracer):
                place = "constant", leaf
            if place is None:
                place = "kept", len(kept)
                kept.append(leaf)
            places.append(place)
        written, room = [], projected.shape[-1]
        for i in sorted(range(len(kept)), key=lambda i: -kept[i].shape[-1] if kept[i].ndim else 0):
            alike = kept[i].dtype == projected.dtype and kept[i].shape[:-1] == projected.shape[:-1]
            if alike and kept[i].shape[-1] <= room:
                written.append(i)
                room -= kept[i].shape[-1]
        if room:
            written = []
        sizes = tuple(kept[i].shape[-1] for i in written)
        return cls(tree, tuple(places), tuple(written), sizes), kept

    def kept_of(self, pull: Any) -> list[jax.Array]:
        """The arrays of a derivative ``pull`` of this layout that are its own."""
        leaves = zip(self.places, jax.tree.leaves(pull), strict=True)
        return [leaf for (kind, _), leaf in leaves if kind == "kept"]

    def split(self, kept: list[jax.Array]) -> Kept:
        """What is kept, in two parts."""
        rest = [leaf for i, leaf in enumerate(kept) if i not in self.written]
        entry = jnp.concatenate([kept[i] for i in self.written], -1) if self.written else None
        return entry, rest

    def pull(self, kept: Kept, params: Params, carry: Carry) -> Any:
        """The derivative, made of its arrays."""
        entry, rest = kept
        parts: dict[int, jax.Array] = {}
        if entry is not None and self.written:
            pieces = jnp.split(entry, np.cumsum(self.sizes)[:-1], -1)
            parts = dict(zip(self.written, pieces, strict=True))
        others = iter(rest)
        number = len(parts) + len(rest)
        own = {
            "kept": [parts[i] if i in parts else next(others) for i in range(number)],
            "params": jax.tree.leaves(params),
            "carry": jax.tree.leaves(carry),
        }
        leaves = [own[kind][i] if kind in own else i for kind, i in self.places]
        return jax.tree.unflatten(self.tree, leaves)


def _inputs(layer: Layer, given: Given) -> Callable[[Carry, jax.Array], Any]:
    """``(carry, projected) -> x``, what `update` reads beside the carry."""
    cell, params, steps = layer.cell, *given
    if cell.recurrent is None:
        return lambda carry, projected: cell.biased(projected, params, "bias")
    times = layer.products.times(params["recurrent_kernel"])

    def inputs(carry: Carry, projected: jax.Array) -> Any:
        recurrent = times(steps.entering(getattr(carry, cell.recurrent)))
        return cell.meet(
            cell.biased(projected, params, "bias"),
            cell.biased(recurrent, params, "recurrent_bias"),
        )

    return inputs


def _after(
    cell: Cell, steps: Steps, at: AtStep, start: Carry, old: Carry, new: Carry, y: jax.Array
) -> tuple[Carry, jax.Array]:
    """What happens at a step besides the equation; linear in the arrays from ``start`` on."""
    new, y = steps.end(old, new, y, at, cell.output)
    return steps._replace(start=start).begin(new, at), y


def _step(layer: Layer, given: Given) -> Callable[..., tuple[Carry, jax.Array, Kept, _Layout]]:
    """``(carry, projected, at) -> (carry, y, kept, layout)``: all that the backward pass needs."""
    cell, params, steps = layer.cell, *given
    inputs = _inputs(layer, given)
    # In a scan XLA cannot merge what is computed again with what was computed before.
    advance = jax.checkpoint(
        functools.partial(cell.advance, dtype=layer.products.dtype),
        prevent_cse=False,
        policy=jax.checkpoint_policies.save_only_these_names(KEPT),
    )

    def step(
        carry: Carry, projected: jax.Array, at: AtStep
    ) -> tuple[Carry, jax.Array, Kept, _Layout]:
        used = cell.in_update(params)
        (new, y), pull = jax.vjp(advance, used, inputs(carry, projected), carry)
        if isinstance(projected, jax.core.Tracer):
            layout, kept = _Layout.of(pull, used, carry, projected)
        else:  # under `jax.disable_jit`, where nothing tells what is constant from what is not
            layout = _layout(step, carry, projected, at)
            kept = layout.kept_of(pull)
        new, y = _after(cell, steps, at, steps.start, carry, new, y)
        return new, y, layout.split(kept), layout

    return step


def _layout(step: Callable[..., Any], *given: Any) -> _Layout:
    """That of a forward step, which is traced for it and not run."""
    layouts: list[_Layout] = []
    jax.eval_shape(lambda *given: layouts.append(step(*given)[3]), *given)
    return layouts[0]


def kept_numbers(layer: Layer, params: Params, batch: tuple[int, ...]) -> int:
    """How many numbers the backward pass needs of each row of a step, its carry counted in."""
    cell = layer.cell

    def step(params: Params) -> tuple[Kept, Carry]:
        carry = cell.initial_carry(batch)
        projected = jnp.zeros((*batch, params["kernel"].shape[-1]))
        step = _step(layer, Given(dict(params), Steps()))
        entry, rest = step(carry, projected, AtStep())[2]
        return (projected if entry is None else entry, rest), carry

    leaves = jax.tree.leaves(jax.eval_shape(step, params))
    return sum(leaf.size for leaf in leaves) // max(1, math.prod(batch))


# ---- forward


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def loop(
    layer: Layer, given: Given, projected: jax.Array, each: AtStep, carry: Carry
) -> tuple[Carry, jax.Array]:
    """The sequential half, over ``projected (time, *batch, gates * hidden_size)``."""
    cell, params, steps = layer.cell, *given
    inputs = _inputs(layer, given)

    def step(carry: Carry, projected: jax.Array, at: AtStep) -> Any:
        new, y = cell.advance(params, inputs(carry, projected), carry, layer.products.dtype)
        new, y = _after(cell, steps, at, steps.start, carry, new, y)
        return new, None, y

    ahead = not cell.reads_whole
    carry, _, ys = over_time(step, carry, projected, each, layer.reverse, ahead)
    return carry, ys


def _forward(
    layer: Layer, given: Given, projected: jax.Array, each: AtStep, carry: Carry
) -> tuple[tuple[Carry, jax.Array], Any]:
    """`loop`, and what the backward pass needs: what each step keeps, and the carry before it."""
    carry, ys, first, rest, carries = _in_place(layer, given, projected, each, carry)
    return (carry, ys), (given, first, rest, carries, each)


def _kept(
    layer: Layer, given: Given, projected: jax.Array, each: AtStep, carry: Carry
) -> tuple[Carry, jax.Array, jax.Array, Any, Carry]:
    """The loop with what every step keeps, in both parts, and the carry before it."""
    step = _step(layer, given)

    def keep(carry: Carry, at_step: tuple[jax.Array, AtStep]) -> tuple[Carry, Any]:
        new, y, (entry, rest), _ = step(carry, *at_step)
        return new, (y, at_step[0] if entry is None else entry, rest, carry)

    carry, (ys, first, rest, carries) = jax.lax.scan(
        keep, carry, (projected, each), reverse=layer.reverse
    )
    return carry, ys, first, rest, carries


@differentiated_as(_kept)
def _in_place(
    layer: Layer, given: Given, projected: jax.Array, each: AtStep, carry: Carry
) -> tuple[Carry, jax.Array, jax.Array, Any, Carry]:
    """`_kept`, with the first part written over ``projected``, which is read no more.

    It saves the largest array of a layer.
    """
    step = _step(layer, given)

    def keep(carry: Carry, projected: jax.Array, at: AtStep) -> Any:
        new, y, (entry, rest), _ = step(carry, projected, at)
        return new, entry, (y, rest, carry)

    ahead = not layer.cell.reads_whole
    carry, first, (ys, rest, carries) = over_time(
        keep, carry, projected, each, layer.reverse, ahead
    )
    return carry, ys, first, rest, carries


# ---- backward


def _backward(
    layer: Layer, residuals: Any, cotangents: tuple[Carry, jax.Array]
) -> tuple[Given, jax.Array, Any, Carry]:
    given, first, rest, carries, each = residuals
    params, steps = given
    d_carry, d_ys = cotangents
    (d_used, d_start), d_projected, d_recurrent, d_carry = _cotangents_in_place(
        layer, given, first, (rest, d_ys, carries, each), d_carry
    )
    cell, d_params = layer.cell, dict(d_used)
    if d_recurrent is None:
        d_recurrent = d_projected
    if cell.recurrent is not None:
        entering = steps.entering(getattr(carries, cell.recurrent))
        d_params["recurrent_kernel"] = layer.products.kernel_gradient(
            entering, d_recurrent, params["recurrent_kernel"]
        )
    for name, d in (("bias", d_projected), ("recurrent_bias", d_recurrent)):
        if name in params and is_bias(cell, name):
            d_params[name] += d.sum(axis=tuple(range(d.ndim - 1)))
    d_params = {name: d.astype(params[name].dtype) for name, d in d_params.items()}
    # The kernel of the inputs, which are projected before, what was drawn at random and the marks
    # have no gradient here, which None says.
    d_params["kernel"] = None
    d_steps = jax.tree.map(lambda _: None, steps)._replace(start=d_start)
    return Given(d_params, d_steps), d_projected, jax.tree.map(lambda _: None, each), d_carry


loop.defvjp(_forward, _backward)


def _cotangents(
    layer: Layer, given: Given, first: jax.Array, others: Any, d_carry: Carry
) -> tuple[Any, jax.Array, jax.Array | None, Carry]:
    """The backward loop, over ``first`` and ``others``, which are (rest, d_ys, carries, each).

    Returns the gradients of the parameters that `update` reads and of the carry that resets put in;
    the cotangents of the projected inputs and of the recurrent products at every step, the second
    None where it is the first; and the cotangent of the carry before the first step.
    """
    d_shared, step = _backward_step(layer, given)
    (d_carry, d_shared), (d_projected, d_recurrent) = jax.lax.scan(
        lambda state, at: step(state, *at), (d_carry, d_shared), (first, others),
        reverse=not layer.reverse,
    )  # fmt: skip
    return d_shared, d_projected, d_recurrent, d_carry


@differentiated_as(_cotangents)
def _cotangents_in_place(
    layer: Layer, given: Given, first: jax.Array, others: Any, d_carry: Carry
) -> tuple[Any, jax.Array, jax.Array | None, Carry]:
    """`_cotangents`, with those of the projected inputs written over ``first``."""
    d_shared, step = _backward_step(layer, given)

    def replace(state: Any, first: jax.Array, others: Any) -> Any:
        state, (d_projected, d_recurrent) = step(state, first, others)
        return state, d_projected, d_recurrent

    (d_carry, d_shared), d_projected, d_recurrent = over_time(
        replace, (d_carry, d_shared), first, others, not layer.reverse, ahead=True
    )
    return d_shared, d_projected, d_recurrent, d_carry


def _backward_step(layer: Layer, given: Given) -> Any:
    """Zeros for the gradients summed in the loop, and the step of the backward loop."""
    cell, params, steps = layer.cell, *given
    used, pair = cell.in_update(params), cell.recurrent is not None and not cell.sums
    forward = _step(layer, given)
    times_transposed = None
    if cell.recurrent is not None:
        times_transposed = layer.products.times_transposed(params["recurrent_kernel"])

    def step(state: Any, first: jax.Array, others: Any) -> tuple[Any, Any]:
        d_carry, d_so_far = state
        rest, d_y, carry, at = others
        layout = _layout(forward, carry, first, at)
        # The derivative of a linear function does not ask where.
        zeros = jax.tree.map(jnp.zeros_like, (steps.start, carry, carry, d_y))
        _, pull = jax.vjp(functools.partial(_after, cell, steps, at), *zeros)
        d_start, d_old, d_new, d_y = pull((d_carry, d_y))
        pull = layout.pull((first, rest), used, carry)
        d_used, d_x, d_carry = pull((d_new, d_y))
        # The barrier has them computed once, though the product and the outputs both read them.
        d_x = jax.lax.optimization_barrier(d_x)
        d_projected, d_recurrent = d_x if pair else (d_x, d_x)
        d_carry = jax.tree.map(jnp.add, d_carry, d_old)
        if times_transposed is not None:
            d_state = getattr(d_carry, cell.recurrent)
            d_state += steps.entering(times_transposed(d_recurrent).astype(d_state.dtype))
            d_carry = d_carry._replace(**{cell.recurrent: d_state})
        state = d_carry, jax.tree.map(jnp.add, d_so_far, (d_used, d_start))
        return state, (d_projected.astype(first.dtype), d_recurrent if pair else None)

    return jax.tree.map(jnp.zeros_like, (used, steps.start)), step
