"""The axes and flags of Flax's ``RNN``, over `rnnjax.unroll`; shared by the two Flax wrappers."""

from typing import Any

import jax.numpy as jnp

from rnnjax.cells import Carry, Cell, OneHot, Params
from rnnjax.cells.base import Inputs, as_inputs
from rnnjax.engine import Method, unroll
from rnnjax.errors import InvalidInputError


def check_inputs(inputs: Inputs, time_major: bool) -> Inputs:
    """Return ``inputs``, an array or `OneHot`, with a time and a feature axis at least.

    Raises:
        InvalidInputError: ``inputs`` has fewer than two axes.
    """
    inputs = as_inputs(inputs)
    if inputs.ndim < 2:
        wanted = "(time, *batch, features)" if time_major else "(*batch, time, features)"
        raise InvalidInputError(
            f"inputs must be {wanted}, so two axes at least, but has shape {inputs.shape}; "
            "add the axes that are missing"
        )
    return inputs


def unroll_like_flax(
    cell: Cell,
    params: Params,
    inputs: Inputs,
    initial_carry: Carry | None,
    *,
    return_carry: bool,
    time_major: bool,
    reverse: bool,
    keep_order: bool,
    method: Method,
) -> Any:
    """`rnnjax.unroll` with the arguments and results of a call of Flax's ``RNN``.

    Args:
        cell: what one time step computes.
        params: the cell's parameters.
        inputs: ``(*batch, time, input_size)``, or ``(time, *batch, input_size)`` if ``time_major``.
            `OneHot` is taken too.
        initial_carry: the state before the first step that runs, or None for the cell's own.
        return_carry: whether to return the final carry too.
        time_major: whether time is the first axis, of inputs and outputs.
        reverse: whether to run from the last step to the first.
        keep_order: whether ``outputs[t]`` then belongs to ``inputs[t]``; otherwise the outputs come
            in the order in which they were computed.
        method: how to run.

    Returns:
        the outputs, or ``(carry, outputs)``.
    """
    xs = check_inputs(inputs, time_major)
    if not time_major:
        if isinstance(xs, OneHot):
            xs = OneHot(jnp.moveaxis(xs.ids, -1, 0), xs.size)
        else:
            xs = jnp.moveaxis(xs, -2, 0)
    carry, outputs = unroll(cell, params, xs, initial_carry, reverse=reverse, method=method)
    if reverse and not keep_order:
        outputs = jnp.flip(outputs, axis=0)
    if not time_major:
        outputs = jnp.moveaxis(outputs, 0, -2)
    return (carry, outputs) if return_carry else outputs
