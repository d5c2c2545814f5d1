"""`RNN` for Flax Linen, in the place of ``flax.linen.RNN``."""

from typing import Any

import flax.linen as nn

from rnnjax.cells import Carry, Cell
from rnnjax.cells.base import Inputs
from rnnjax.engine import Auto, Method
from rnnjax.layout import check_inputs, unroll_like_flax


class RNN(nn.Module):  # type: ignore[misc]  # mypy follows no imports of flax
    """Run a cell, or a stack of them, over a sequence; takes the place of ``flax.linen.RNN``.

    The flags are Flax's, and each of them can be set here or in the call. The parameters are those
    of ``cell.init``, under the name ``cell``: ``variables["params"]["cell"]`` can be given to
    `rnnjax.unroll` as it is. The carry is the cell's own, e.g. ``LSTMCarry(hidden, cell)``.

    Attributes:
        cell: what one time step computes: a cell, or a `rnnjax.Stack`.
        time_major: whether inputs and outputs are ``(time, *batch, features)`` rather than
            ``(*batch, time, features)``.
        return_carry: whether a call returns ``(carry, outputs)`` rather than the outputs.
        reverse: whether to run from the last step to the first.
        keep_order: whether, with ``reverse``, ``outputs[t]`` belongs to ``inputs[t]``, as in
            `rnnjax.unroll`. Without it outputs come in the order in which they were computed.
        method: how to run, as in `rnnjax.unroll`.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> import rnnjax
    >>> model = RNN(rnnjax.LSTMCell(50))
    >>> inputs = jnp.ones((8, 10, 3))
    >>> variables = model.init(jax.random.key(0), inputs)
    >>> model.apply(variables, inputs).shape
    (8, 10, 50)
    >>> carry, outputs = model.apply(variables, inputs, return_carry=True)
    >>> carry.hidden.shape
    (8, 50)
    >>> _, ys = rnnjax.unroll(model.cell, variables["params"]["cell"], jnp.swapaxes(inputs, 0, 1))
    >>> bool(jnp.allclose(outputs, jnp.swapaxes(ys, 0, 1)))
    True
    """

    cell: Cell
    time_major: bool = False
    return_carry: bool = False
    reverse: bool = False
    keep_order: bool = False
    method: Method = Auto()

    @nn.compact  # type: ignore[untyped-decorator]
    def __call__(
        self,
        inputs: Inputs,
        *,
        initial_carry: Carry | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
    ) -> Any:
        """Run over a sequence.

        Args:
            inputs: ``(*batch, time, input_size)``, or ``(time, *batch, input_size)`` if
                ``time_major``; any number of batch axes, or none.
            initial_carry: the state before the first step that runs, every leaf beginning with
                ``*batch``; left out, ``cell.initial_carry(batch)``.
            return_carry: overrides the attribute, unless it is None; so do the three below.
            time_major: see the attribute.
            reverse: see the attribute.
            keep_order: see the attribute.

        Returns:
            outputs ``(*batch, time, output_size)``, or ``(time, *batch, output_size)`` if
            ``time_major``; with ``return_carry`` a tuple of the final carry and the outputs.

        Raises:
            InvalidInputError: ``inputs`` has fewer than two axes, the carry does not fit, or the
                named method cannot run this cell.
            flax.errors.ScopeParamShapeError: ``inputs`` has another number of features than the
                parameters were made for.
        """
        time_major = self.time_major if time_major is None else time_major
        inputs = check_inputs(inputs, time_major)
        return unroll_like_flax(
            self.cell,
            self.param("cell", self.cell.init, inputs.shape[-1]),
            inputs,
            initial_carry,
            return_carry=self.return_carry if return_carry is None else return_carry,
            time_major=time_major,
            reverse=self.reverse if reverse is None else reverse,
            keep_order=self.keep_order if keep_order is None else keep_order,
            method=self.method,
        )
