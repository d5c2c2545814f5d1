"""A layer, a step of it, and its residuals: the arrays that the derivative of a step needs.

JAX differentiates a cell's `update`. It saves the values that have the name
`rnnjax.cells.activations.RESIDUAL`, and recomputes the rest from these and the carry. `jax.vjp`
returns the derivative as a pytree of arrays. Those of the step itself are saved. The others are
parameters, the carry before the step, or constants, and are not saved.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import eval_jaxpr
from jax.stages import Traced
from jax.typing import DTypeLike

from rnnjax.cells.activations import RESIDUAL
from rnnjax.cells.base import Carry, Cell, Params
from rnnjax.cells.step import apply_update, update_input, update_params
from rnnjax.engine.core.masking import StepMarks, Steps
from rnnjax.engine.fused.loops import Loop, over_time
from rnnjax.engine.fused.plan import LayerPlan


class Layer(NamedTuple):
    """A layer over a sequence, for one platform.

    Attributes:
        cell: a cell that declares its equation.
        plan: how it runs.
        reverse: whether it runs from the last step to the first.
        params: its parameters.
        steps: noise and start of sequence; the marks of each step come separately.
        loop: the loop that runs its steps, forward and backward.
    """

    cell: Cell
    plan: LayerPlan
    reverse: bool
    params: Params
    steps: Steps
    loop: Loop = over_time


def update_input_of(layer: Layer) -> Callable[[Carry, jax.Array], Any]:
    """Return ``(carry, projected) -> x``, the argument ``x`` of `update`."""
    cell, plan, _, params, steps, *_ = layer
    # Outside the loop, so that a kernel is cast or copied once and not at each step.
    times = None if cell.recurrent is None else plan.products.times(params["recurrent_kernel"])

    def made(carry: Carry, projected: jax.Array) -> Any:
        return update_input(cell, params, projected, carry, times, steps.drop_state)

    return made


def after(
    cell: Cell, steps: Steps, at: StepMarks, start: Carry, old: Carry, new: Carry, y: jax.Array
) -> tuple[Carry, jax.Array]:
    """Apply masks, noise and resets after the equation: linear in the arrays from ``start`` on."""
    new, y = steps.mask(old, new, y, at, cell.output)
    # Masks, zoneout and resets select, and leaks scale: each result is a sum of the arguments, each
    # times a factor that depends on none of them. So the derivative is the same at every point.
    return steps._replace(start=start).reset(new, at), y


def step_of(layer: Layer) -> Callable[[Carry, jax.Array, StepMarks], tuple[Carry, jax.Array]]:
    """Return ``(carry, projected, at) -> (carry, y)``, a step without residuals."""
    cell, steps = layer.cell, layer.steps
    made, dtype = update_input_of(layer), layer.plan.products.dtype

    def step(carry: Carry, projected: jax.Array, at: StepMarks) -> tuple[Carry, jax.Array]:
        x = made(carry, projected)
        new, y = apply_update(cell, layer.params, x, carry, at.raw, dtype)
        return after(cell, steps, at, steps.start, carry, new, y)

    return step


# ---- residuals

Saved = tuple[jax.Array | None, list[jax.Array]]
"""The residuals of a step: those that overwrite its projected inputs, or None; and the rest."""


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False)
class ResidualMap:
    """The place of each array that the derivative of a step needs.

    Attributes:
        tree: the tree of the function that `jax.vjp` returned.
        places: for each array its kind (``"saved"``, ``"params"``, ``"carry"``, ``"raw"`` or
            ``"constant"``) and its index among that kind, or the constant itself.
        written: which saved arrays, concatenated, overwrite the projected inputs: none, or as many
            as have their size.
        sizes: the size of the last axis of each of these.
    """

    tree: Any
    places: tuple[tuple[str, Any], ...]
    written: tuple[int, ...]
    sizes: tuple[int, ...]

    @classmethod
    def of(
        cls, vjp_fn: Any, given: "Given", projected: jax.ShapeDtypeStruct
    ) -> tuple["ResidualMap", list[jax.Array]]:
        """Return the residual map of a derivative ``vjp_fn``, and the arrays to save."""
        # `jax.vjp` returns a function that is a pytree. Its leaves are the arrays that it reads and
        # its tree is the program. With leaves of another step it is the derivative of that step.
        leaves, tree = jax.tree.flatten(vjp_fn)
        shared = [(name, i, leaf) for name, own in given.items() for i, leaf in enumerate(own)]
        places: list[tuple[str, Any]] = []
        saved: list[jax.Array] = []
        for leaf in leaves:
            # An argument of the step that is also a residual is the same object.
            place = next(((kind, i) for kind, i, own in shared if own is leaf), None)
            if place is None and not isinstance(leaf, jax.core.Tracer):
                place = "constant", leaf
            if place is None:
                place = "saved", len(saved)
                saved.append(leaf)
            places.append(place)
        # Nothing reads the projected inputs of a step once its gates are computed. So gates may
        # overwrite them, and the largest array of a layer is allocated once. An LSTM saves four
        # gates, as wide as its projected inputs; a GRU three and one product. Largest first, those
        # that fit are written.
        written, room = [], projected.shape[-1]
        for i in sorted(
            range(len(saved)), key=lambda i: -saved[i].shape[-1] if saved[i].ndim else 0
        ):
            alike = (
                saved[i].dtype == projected.dtype and saved[i].shape[:-1] == projected.shape[:-1]
            )
            if alike and saved[i].ndim and saved[i].shape[-1] <= room:
                written.append(i)
                room -= saved[i].shape[-1]
        if room:  # a part of an entry cannot be written: the array would have to be copied
            written = []
        sizes = tuple(saved[i].shape[-1] for i in written)
        return cls(tree, tuple(places), tuple(written), sizes), saved

    def split(self, saved: list[jax.Array]) -> Saved:
        """Split residuals into those that replace the projected inputs, and the rest."""
        rest = [leaf for i, leaf in enumerate(saved) if i not in self.written]
        entry = jnp.concatenate([saved[i] for i in self.written], -1) if self.written else None
        return entry, rest

    def vjp_fn(self, saved: Saved, given: "Given") -> Any:
        """Rebuild the derivative from its arrays."""
        entry, rest = saved
        parts: dict[int, jax.Array] = {}
        if entry is not None and self.written:
            pieces = jnp.split(entry, np.cumsum(self.sizes)[:-1], -1)
            parts = dict(zip(self.written, pieces, strict=True))
        others = iter(rest)
        number = len(parts) + len(rest)
        own = {"saved": [parts[i] if i in parts else next(others) for i in range(number)], **given}
        leaves = [own[kind][i] if kind in own else i for kind, i in self.places]
        return jax.tree.unflatten(self.tree, leaves)


Given = dict[str, list[jax.Array]]
"""The leaves of the arguments of a step that its derivative may need and no step saves."""


def given_of(params: Params, carry: Carry, raw: Any) -> Given:
    """Return the parameters that the update reads, the carry and the raw features, as leaves."""
    return {
        name: jax.tree.leaves(tree)
        for name, tree in (("params", params), ("carry", carry), ("raw", raw))
    }


SavingStep = Callable[[Carry, jax.Array, StepMarks], tuple[Carry, jax.Array, Saved]]


def saving_step_of(layer: Layer) -> SavingStep:
    """Return ``(carry, projected, at) -> (carry, y, saved)``, a step with its residuals."""
    cell, steps, made = layer.cell, layer.steps, update_input_of(layer)

    def step(carry: Carry, projected: jax.Array, at: StepMarks) -> tuple[Carry, jax.Array, Saved]:
        # Traced and evaluated, not called: a residual that is a tracer is saved, or an argument if
        # it is the same tracer. Under `jax.disable_jit` a call would have arrays in their place,
        # which would be taken for constants.
        trace, given = _traced(layer, made, carry, projected, at.raw)
        leaves = eval_jaxpr(trace.jaxpr.jaxpr, trace.jaxpr.consts, *jax.tree.leaves(given))
        (new, y), saved, residual_map = jax.tree.unflatten(
            jax.tree.structure(trace.out_info), leaves
        )
        new, y = after(cell, steps, at, steps.start, carry, new, y)
        return new, y, residual_map.split(saved)

    return step


def residual_map_of(layer: Layer, carry: Carry, projected: jax.Array, raw: Any) -> ResidualMap:
    """Trace a forward step for its residual map, without running it."""

    def run(carry: Carry, projected: jax.Array, raw: Any) -> ResidualMap:
        return _traced(layer, update_input_of(layer), carry, projected, raw)[0].out_info[2]

    return jax.eval_shape(run, carry, projected, raw)  # a pytree without arrays


def _traced(layer: Layer, made: Any, carry: Carry, projected: Any, raw: Any) -> tuple[Traced, Any]:
    """Trace a step with its residuals; also return its arguments."""
    # Without the kernels of the products outside: derivatives would hold zeros of their size.
    given = update_params(layer.cell, layer.params), made(carry, projected), carry, raw
    entry = jax.ShapeDtypeStruct(projected.shape, projected.dtype)
    return _saving.trace(layer.cell, layer.plan.products.dtype, entry, *given), given


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _saving(
    cell: Cell,
    dtype: DTypeLike | None,
    projected: jax.ShapeDtypeStruct,
    used: Params,
    x: Any,
    carry: Carry,
    raw: Any,
) -> tuple[tuple[Carry, jax.Array], list[jax.Array], ResidualMap]:
    """Return the result of `update`, the residuals of its derivative, and their map.

    Under ``jit`` JAX traces it once for the forward and backward loop, equal layers and other
    programs. Otherwise it would be a third of all tracing.
    """
    # Without a checkpoint JAX would save whatever its rules of derivatives read, with one but
    # without a policy nothing. Named are gates s = sigmoid(z) and g = tanh(z), from which follow
    # their derivatives s (1 - s) and 1 - g^2, and what a cell names besides.
    saving = jax.checkpoint(
        functools.partial(apply_update, cell, dtype=dtype),
        prevent_cse=False,  # in a scan XLA cannot merge a recomputation with the first computation
        policy=jax.checkpoint_policies.save_only_these_names(RESIDUAL),
    )
    out, vjp_fn = jax.vjp(saving, used, x, carry, raw)
    residual_map, saved = ResidualMap.of(vjp_fn, given_of(used, carry, raw), projected)
    return out, saved, residual_map


def saved_numbers(layer: Layer, batch: tuple[int, ...]) -> int:
    """Return how many numbers the backward pass needs per step and row, with the carry."""

    def step(params: Params) -> tuple[Saved, Carry]:
        carry = layer.cell.initial_carry(batch)
        projected = jnp.zeros((*batch, params["kernel"].shape[-1]))
        raw = {name: jnp.zeros((*batch, size)) for name, size in layer.cell.raw.items()}
        step = saving_step_of(layer._replace(params=dict(params)))
        entry, rest = step(carry, projected, StepMarks(raw=raw))[2]
        return (projected if entry is None else entry, rest), carry

    leaves = jax.tree.leaves(jax.eval_shape(step, layer.params))
    return sum(leaf.size for leaf in leaves) // max(1, math.prod(batch))
