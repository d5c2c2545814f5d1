"""Checks of the arguments of `unroll`, from shapes and types alone."""

import functools
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.export import is_symbolic_dim

from rnnjax.cells.base import Carry, Cell, Params
from rnnjax.cells.products import cast
from rnnjax.cells.step import split_raw
from rnnjax.cells.validation import as_inputs, check_carry, check_features, check_pair, made_carry
from rnnjax.checks import as_array, brief, check_flag, check_instance, check_lengths, state_type
from rnnjax.engine.core.masking import StepMarks, Steps
from rnnjax.engine.core.method import Method
from rnnjax.errors import InvalidInputError, called
from rnnjax.meshes import MeshAxis


def checked(
    cell: Cell, params: Params, xs: Any, carry: Carry | None, reset_carry: Carry, method: Method
) -> tuple[Any, Carry]:
    """Return the inputs as arrays, and the carry or the initial one."""
    if not isinstance(cell, Cell):
        raise InvalidInputError(
            f"cell must be a Cell such as rnnjax.LSTMCell(50), but is {_not_a_cell(cell)}"
        )
    if xs is None or isinstance(xs, Mapping):
        raise InvalidInputError(
            f"xs must be an array, (time, batch, features), but is {brief(xs)}; call unroll(cell, "
            "params, xs), with params from cell.init(key, input_size)"
        )
    check_runs(method)
    try:
        hash(cell)
    except TypeError as error:
        raise InvalidInputError(
            f"{brief(cell)} must be a value that can be hashed, as it is static, but {error}; "
            "decorate its class by dataclasses.dataclass(frozen=True), and give tuples for lists"
        ) from error
    xs = as_inputs(xs)
    if xs.ndim < 2:
        raise InvalidInputError(
            f"xs must be (time, batch, features), or (time, features) without a batch, but has "
            f"shape {xs.shape}; add the axes that are missing"
        )
    if carry is None:
        inputs = xs if cell.dtype is None else None  # which are rounded to it
        carry = cell.start(params, xs.shape[1:-1], state_type(params, inputs, reset_carry))
        if reset_carry is not None:
            carry = start_of(cell, params, xs, reset_carry, carry)
    else:
        carry = jax.tree.map(functools.partial(as_array, "carry"), carry)
        check_carry(called("carry"), cell, carry, xs.shape[1:-1])
    return xs, carry


def check_runs(method: Any, reverse: Any = False) -> None:
    """Raise unless ``method`` is a method, the mesh has its axis, and ``reverse`` is a boolean."""
    check_instance("method", method, Method, "Auto(), Scan(), Fused() or Parallel()")
    check_flag("reverse", reverse)
    if not method.along.known():
        raise InvalidInputError(
            "axis_name must be that of an axis over which jax.shard_map divides the steps, with "
            f"check_vma=True, but there is none named {method.along.name!r} here; run inside of it"
        )


def _not_a_cell(value: Any) -> str:
    """Say what came instead of a cell, and what to do."""
    if isinstance(value, jax.core.Tracer):
        return (
            "traced; it is static: write jax.jit(rnnjax.unroll, static_argnums=0), or close over it"
        )
    for flax in ("linen", "nnx"):
        if any(kind.__module__.startswith(f"flax.{flax}.") for kind in type(value).__mro__):
            return f"{brief(value)} of flax.{flax}; run it by rnnjax.{flax}.RNN"
    return f"{brief(value)}; call unroll(cell, params, xs), with a cell that has its hidden size"


def start_of(cell: Cell, params: Params, xs: Any, reset_carry: Carry | None, like: Carry) -> Carry:
    """Return the carry at the start of a sequence, in the shapes and types of ``like``."""
    batch = xs.shape[1:-1]
    if reset_carry is None:
        reset_carry = cell.start(params, batch)
    else:
        reset_carry = jax.tree.map(functools.partial(as_array, "reset_carry"), reset_carry)
        shapes = [np.shape(leaf) for leaf in jax.tree.leaves(reset_carry)]
        # Most callers pass one state for all rows, without batch axes.
        alone = [
            leaf.shape for leaf in jax.tree.leaves(jax.eval_shape(lambda: made_carry(cell, ())))
        ]
        check_carry("reset_carry", cell, reset_carry, () if shapes == alone else batch)
        odd = [
            f"{leaf.dtype} for {now.dtype}"
            for leaf, now in zip(*map(jax.tree.leaves, (reset_carry, like)), strict=True)
            if leaf.dtype != now.dtype and jnp.promote_types(leaf.dtype, now.dtype) != now.dtype
        ]
        if odd:
            raise InvalidInputError(
                f"reset_carry must have the types of the carry, whose place it takes, but has "
                f"{odd[0]}, and would be rounded; cast one of them by astype"
            )
    # A state without batch axes is broadcast, and the transpose sums its gradient over the rows.
    return jax.tree.map(
        lambda leaf, now: cast(jnp.broadcast_to(leaf, now.shape), now.dtype), reset_carry, like
    )


# A derivative rule is traced only if a gradient is taken, inside jit or not.
@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def without_noise(cell: Cell, params: Params) -> Params:
    """Return ``params``, and warn if they are differentiated without a key.

    Differentiation means training, and without a key the cell's dropout would be off.
    """
    return params


@without_noise.defjvp
def _without_noise_jvp(cell: Cell, primals: Any, tangents: Any) -> tuple[Params, Params]:
    warnings.warn(
        f"the gradient of {brief(cell)} is taken without its dropout, zoneout or weight drop, for "
        "unroll was given no key; give it one in training, or take the noise out of the cell",
        stacklevel=2,
    )
    return primals[0], tangents[0]


def marks_of(xs: Any, lengths: Any, mask: Any, resets: Any, along: MeshAxis) -> StepMarks:
    """Check the marks of inputs ``xs (time, *batch, features)``, and return them in that order."""
    valid = _valid_steps(xs, lengths, mask, along)
    return StepMarks(valid, None if resets is None else checked_marks("resets", resets, xs))


def _valid_steps(xs: Any, lengths: Any, mask: Any, along: MeshAxis) -> jax.Array | None:
    """Return which steps are valid by lengths and mask; None if all are."""
    if mask is not None:
        mask = checked_marks("mask", mask, xs)
    if lengths is None:
        return mask
    # By NumPy if known, because inside jit JAX would trace even constants.
    known: Any = None if isinstance(lengths, jax.core.Tracer) else lengths
    name, advice = called("lengths"), called("check which axis is time")
    lengths, batch = as_array(name, lengths), xs.shape[1:-1]
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise InvalidInputError(
            f"{name} must be integers, the number of valid steps of each row, but are "
            f"{lengths.dtype}; booleans for each step are given as mask"
        )
    if lengths.shape != batch[: lengths.ndim]:
        raise InvalidInputError(
            f"{name} must have shape {batch}, for the batch {batch} of {called('xs')}, but has "
            f"{lengths.shape}; give one for each row, and {advice}"
        )
    # Check values only if that does not wait for a computation.
    first, num_steps = along.steps(xs.shape[0])
    if known is not None:
        check_lengths(known, num_steps, called("xs"), advice)
    # By NumPy outside jit, where JAX would compile three programs for each new shape. Not inside,
    # where the marks of all steps would become a constant of the program.
    inside = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(xs))
    outside = known is not None and not inside and not is_symbolic_dim(num_steps)
    module, lengths = (np, np.asarray(known)) if outside else (jnp, lengths)
    times = module.arange(xs.shape[0]) + first
    valid: Any = times.reshape(-1, *[1] * lengths.ndim) < lengths
    if mask is None:
        return valid
    # Either may leave out trailing batch axes: axes of size 1 in their place apply to all rows.
    axes = max(valid.ndim, mask.ndim)
    valid, mask = (m.reshape(*m.shape, *[1] * (axes - m.ndim)) for m in (valid, mask))
    return valid & mask


def checked_marks(
    name: str, marks: Any, xs: Any, of: str = "xs", *, steps: bool = True
) -> jax.Array:
    """Return booleans for the steps of an array, or for the rows of one step, as an array."""
    marks, wanted = as_array(name, marks), xs.shape[:-1]
    if marks.dtype != jnp.bool_:
        numbers = name == "mask" and marks.ndim == 1  # which would be cast to all valid
        advice = f"give numbers of steps as {called('lengths')}, or " if numbers else ""
        raise InvalidInputError(
            f"{name} must be booleans, but are {marks.dtype}; {advice}write {name}.astype(bool)"
        )
    if (wanted and marks.ndim == 0) or marks.shape != wanted[: marks.ndim]:
        raise InvalidInputError(
            f"{name} must have shape {wanted}, {'(time, *batch)' if steps else 'a row each'}, for "
            f"{of} {xs.shape}, but has {marks.shape}; "
            + ("check which axis is time" if steps else "give those of this step alone")
        )
    return marks


def entered(cell: Cell, params: Params, xs: Any) -> tuple[Any, Mapping[str, jax.Array]]:
    """Check the inputs of a layer, and split off its raw features."""
    if cell.carry is None:  # its own step does
        check_pair(cell, xs)
        return xs, {}
    check_features(cell, params, xs, "time, ")
    return split_raw(cell, xs)


def check_noise(cell: Cell, noise: Steps | None) -> None:
    """Raise unless ``cell`` supports this noise of a regulariser."""
    if cell.carry is None and jax.tree.leaves(noise):
        raise InvalidInputError(
            f"recurrent dropout and zoneout cannot reach inside of {brief(cell)}, because it "
            "declares no carry and update, but a step; use them with another cell"
        )
    if noise is not None and noise.recurrent is not None and cell.recurrent is None:
        raise InvalidInputError(
            f"recurrent dropout needs a product of the state before the update, which "
            f"{brief(cell)} has not; leave it out"
        )
