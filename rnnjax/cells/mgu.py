"""Minimal gated unit."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from rnnjax.cells.activations import (
    KEPT,
    Activation,
    activate_gates,
    get_activation,
)
from rnnjax.cells.arguments import as_inputs, check_step
from rnnjax.cells.base import Inputs, Params
from rnnjax.cells.dense import DenseCell, keeps_pieces
from rnnjax.cells.gru import GRUCarry
from rnnjax.cells.projected import product


@dataclasses.dataclass(frozen=True, kw_only=True)
class MGUCell(DenseCell):
    r"""Minimal gated unit (Zhou et al., 2016): a GRU with one gate.

    With ``reset_after=True``, the form of Flax's ``MGUCell``:

    .. math::
        f &= \sigma(x W_f + b_f + h U_f + c_f) \\
        n &= \tanh(x W_n + b_n + f (h U_n + c_n)) \\
        h' &= (1 - f) n + f h, \qquad y = h'

    and with ``reset_after=False``, the form of the paper but for the name of the gate (its
    :math:`f` is :math:`1 - f` in the last line), :math:`n = \tanh(x W_n + b_n + (f h) U_n)`, with
    no :math:`c`.

    ``kernel (input_size, 2 * hidden_size)``, ``recurrent_kernel (hidden_size, 2 * hidden_size)``,
    ``bias (2 * hidden_size,)`` and, with ``reset_after``, ``recurrent_bias (2 * hidden_size,)``,
    here :math:`c`; in the order f, n along the last axis.

    Args:
        recurrent_activation: :math:`\sigma`, the activation of the gate.
        reset_after: which of the two forms. Reset-before has two products in a row in the loop,
            so it runs on the plain scan alone.
        unit_forget_bias: whether the gate's bias starts at 1, as in Flax, rather than at
            ``bias_init``.

    For the other arguments see `DenseCell`.

    >>> cell = MGUCell(hidden_size=50)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> params["kernel"].shape
    (3, 100)
    >>> carry, y = cell.step(params, cell.initial_carry((8,)), jnp.ones((8, 3)))
    >>> carry.hidden.shape, y.shape
    ((8, 50), (8, 50))
    """

    recurrent_activation: str | Activation = "sigmoid"
    reset_after: bool = True
    unit_forget_bias: bool = True

    num_gates: ClassVar[int] = 2
    sums: ClassVar[bool] = False

    @property
    def splits(self) -> bool:
        """Only with ``reset_after``: otherwise the gate stands between two products."""
        own = type(self)
        return self.reset_after and own.step is MGUCell.step and keeps_pieces(own)

    def init(self, key: jax.Array, input_size: int) -> dict[str, jax.Array]:
        """Draw ``kernel``, ``recurrent_kernel``, ``bias``, and with reset_after a second bias."""
        params = super().init(key, input_size)
        if self.use_bias and self.unit_forget_bias:
            params["bias"] = params["bias"].at[: self.hidden_size].set(1)
        if self.use_bias and self.reset_after:
            params["recurrent_bias"] = self.draw(
                self.bias_init, jax.random.fold_in(key, 3), params["bias"].shape
            )
        return params

    def initial_carry(
        self, batch_shape: tuple[int, ...] = (), dtype: DTypeLike | None = None
    ) -> GRUCarry:
        """Zeros: ``hidden (*batch_shape, hidden_size)``."""
        return GRUCarry(self.zeros(batch_shape, dtype))

    def update(self, params: Params, x: tuple[jax.Array, jax.Array], carry: GRUCarry) -> GRUCarry:
        """The equations of the class, with ``reset_after``."""
        projected, recurrent = x
        x_f, x_n = jnp.split(projected, 2, axis=-1)
        h_f, h_n = jnp.split(recurrent, 2, axis=-1)
        f = activate_gates(x_f + h_f, [self.recurrent_activation])
        # The derivative of f needs it.
        n = activate_gates(x_n + f * checkpoint_name(h_n, KEPT), [self.activation])
        return GRUCarry((1 - f) * n + f * carry.hidden)

    def step(self, params: Params, carry: GRUCarry, x: Inputs) -> tuple[GRUCarry, jax.Array]:
        """Run one time step, as in `DenseCell.step`; with reset-before in two products."""
        if self.reset_after:
            return super().step(params, carry, x)
        x = as_inputs(x)
        check_step(self, carry, x)
        x_f, x_n = jnp.split(self.project(params, x), 2, axis=-1)
        kernel_f, kernel_n = jnp.split(params["recurrent_kernel"], 2, axis=-1)
        f = get_activation(self.recurrent_activation)(
            x_f + product(carry.hidden, kernel_f, self.dtype)
        )
        n = get_activation(self.activation)(x_n + product(f * carry.hidden, kernel_n, self.dtype))
        hidden = (1 - f) * n + f * carry.hidden
        return self.settle(GRUCarry(hidden), hidden, carry)
