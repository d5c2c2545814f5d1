"""`RNN` for Flax NNX, in the place of ``flax.nnx.RNN``."""

from typing import Any

import jax
from flax import nnx

from rnnjax.cells import Carry, Cell, Params
from rnnjax.cells.base import Inputs
from rnnjax.engine import Auto, Method
from rnnjax.layout import unroll_like_flax


class RNN(nnx.Module):  # type: ignore[misc]  # mypy follows no imports of flax
    """Run a cell, or a stack of them, over a sequence; takes the place of ``flax.nnx.RNN``.

    The parameters are the pytree of ``cell.init`` with an ``nnx.Param`` at each leaf, so
    ``nnx.split``, ``nnx.jit``, ``nnx.grad`` and ``nnx.Optimizer`` see them; `cell_params` is the
    same pytree of plain arrays, for `rnnjax.unroll`. State is explicit, as everywhere in rnnjax:
    the module holds no carry.

    Args:
        cell: what one time step computes: a cell, or a `rnnjax.Stack`.
        in_features: the size of the last axis of the inputs.
        rngs: the parameters are drawn with ``rngs.params()``.
        time_major: whether inputs and outputs are ``(time, *batch, features)`` rather than
            ``(*batch, time, features)``.
        return_carry: whether a call returns ``(carry, outputs)`` rather than the outputs.
        reverse: whether to run from the last step to the first.
        keep_order: whether, with ``reverse``, ``outputs[t]`` belongs to ``inputs[t]``, as in
            `rnnjax.unroll`. Without it outputs come in the order in which they were computed.
        method: how to run, as in `rnnjax.unroll`.

    Raises:
        InvalidInputError: ``in_features`` is not positive.

    >>> import jax.numpy as jnp
    >>> import rnnjax
    >>> model = RNN(rnnjax.LSTMCell(50), in_features=3, rngs=nnx.Rngs(0))
    >>> inputs = jnp.ones((8, 10, 3))
    >>> model(inputs).shape
    (8, 10, 50)
    >>> carry, outputs = model(inputs, return_carry=True)
    >>> carry.hidden.shape
    (8, 50)
    >>> _, ys = rnnjax.unroll(model.cell, model.cell_params, jnp.swapaxes(inputs, 0, 1))
    >>> bool(jnp.allclose(outputs, jnp.swapaxes(ys, 0, 1)))
    True
    """

    def __init__(
        self,
        cell: Cell,
        in_features: int,
        *,
        rngs: nnx.Rngs,
        time_major: bool = False,
        return_carry: bool = False,
        reverse: bool = False,
        keep_order: bool = False,
        method: Method = Auto(),  # noqa: B008  (frozen, so one instance serves all)
    ) -> None:
        self.cell = cell
        self.in_features = in_features
        self.time_major = time_major
        self.return_carry = return_carry
        self.reverse = reverse
        self.keep_order = keep_order
        self.method = method
        self.params = nnx.data(jax.tree.map(nnx.Param, cell.init(rngs.params(), in_features)))

    @property
    def cell_params(self) -> Params:
        """The parameters as ``cell.init`` shapes them, without the ``nnx.Param`` around each."""
        return jax.tree.map(
            lambda param: param[...],
            self.params,
            is_leaf=lambda node: isinstance(node, nnx.Variable),
        )

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
            inputs: ``(*batch, time, in_features)``, or ``(time, *batch, in_features)`` if
                ``time_major``; any number of batch axes, or none.
            initial_carry: the state before the first step that runs, every leaf beginning with
                ``*batch``; left out, ``cell.initial_carry(batch)``.
            return_carry: overrides the attribute, unless it is None; so do the three below.
            time_major: see the class.
            reverse: see the class.
            keep_order: see the class.

        Returns:
            outputs ``(*batch, time, output_size)``, or ``(time, *batch, output_size)`` if
            ``time_major``; with ``return_carry`` a tuple of the final carry and the outputs.

        Raises:
            InvalidInputError: ``inputs`` has fewer than two axes or another number of features, the
                carry does not fit, or the named method cannot run this cell.
        """
        return unroll_like_flax(
            self.cell,
            self.cell_params,
            inputs,
            initial_carry,
            return_carry=self.return_carry if return_carry is None else return_carry,
            time_major=self.time_major if time_major is None else time_major,
            reverse=self.reverse if reverse is None else reverse,
            keep_order=self.keep_order if keep_order is None else keep_order,
            method=self.method,
        )
