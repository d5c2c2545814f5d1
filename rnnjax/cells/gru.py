"""Gated recurrent unit."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.export import register_namedtuple_serialization
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
from rnnjax.cells.projected import product


class GRUCarry(NamedTuple):
    """The state of a `GRUCell`: ``hidden (*batch, hidden_size)``."""

    hidden: jax.Array


register_namedtuple_serialization(GRUCarry, serialized_name="rnnjax.GRUCarry")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GRUCell(DenseCell):
    r"""Gated recurrent unit (Cho et al., 2014).

    With ``reset_after=True``, the form of cuDNN, PyTorch and Keras's default, the reset gate
    scales the candidate's recurrent product:

    .. math::
        r &= \sigma(x W_r + b_r + h U_r + c_r) \\
        z &= \sigma(x W_z + b_z + h U_z + c_z) \\
        n &= \tanh(x W_n + b_n + r (h U_n + c_n)) \\
        h' &= (1 - z) n + z h, \qquad y = h'

    and with ``reset_after=False``, the form of the paper's first version, the hidden state that
    enters it: :math:`n = \tanh(x W_n + b_n + (r h) U_n)`, with no :math:`c`.

    ``kernel (input_size, 3 * hidden_size)``, ``recurrent_kernel (hidden_size, 3 * hidden_size)``,
    ``bias (3 * hidden_size,)`` and, with ``reset_after``, ``recurrent_bias (3 * hidden_size,)``,
    here :math:`c`; gates in the order r, z, n along the last axis. Defaults are those of Keras's
    ``GRU``.

    Args:
        recurrent_activation: :math:`\sigma`, the activation of the gates r and z.
        reset_after: which of the two forms. Reset-before has two products in a row in the loop,
            so it runs on the plain scan alone.

    For the other arguments see `DenseCell`.

    >>> cell = GRUCell(hidden_size=50)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> {name: array.shape for name, array in params.items()}  # doctest: +NORMALIZE_WHITESPACE
    {'kernel': (3, 150), 'recurrent_kernel': (50, 150), 'bias': (150,), 'recurrent_bias': (150,)}
    >>> carry, y = cell.step(params, cell.initial_carry((8,)), jnp.ones((8, 3)))
    >>> carry.hidden.shape, y.shape
    ((8, 50), (8, 50))
    """

    recurrent_activation: str | Activation = "sigmoid"
    reset_after: bool = True

    num_gates: ClassVar[int] = 3
    sums: ClassVar[bool] = False

    @property
    def splits(self) -> bool:
        """Only with ``reset_after``: otherwise the reset gate stands between two products."""
        own = type(self)
        return self.reset_after and own.step is GRUCell.step and keeps_pieces(own)

    def init(self, key: jax.Array, input_size: int) -> dict[str, jax.Array]:
        """Draw ``kernel``, ``recurrent_kernel``, ``bias``, and with reset_after a second bias."""
        params = super().init(key, input_size)
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
        size = self.hidden_size
        x_rz, x_n = jnp.split(projected, [2 * size], axis=-1)
        h_rz, h_n = jnp.split(recurrent, [2 * size], axis=-1)
        r, z = jnp.split(activate_gates(x_rz + h_rz, [self.recurrent_activation] * 2), 2, axis=-1)
        # The derivative of r needs it.
        n = activate_gates(x_n + r * checkpoint_name(h_n, KEPT), [self.activation])
        return GRUCarry((1 - z) * n + z * carry.hidden)

    def step(self, params: Params, carry: GRUCarry, x: Inputs) -> tuple[GRUCarry, jax.Array]:
        """Run one time step, as in `DenseCell.step`; with reset-before in two products."""
        if self.reset_after:
            return super().step(params, carry, x)
        x = as_inputs(x)
        check_step(self, carry, x)
        tanh, sigmoid = get_activation(self.activation), get_activation(self.recurrent_activation)
        size = self.hidden_size
        x_rz, x_n = jnp.split(self.project(params, x), [2 * size], axis=-1)
        kernel_rz, kernel_n = jnp.split(params["recurrent_kernel"], [2 * size], axis=-1)
        rz = sigmoid(x_rz + product(carry.hidden, kernel_rz, self.dtype))
        r, z = jnp.split(rz, 2, axis=-1)
        n = tanh(x_n + product(r * carry.hidden, kernel_n, self.dtype))
        hidden = (1 - z) * n + z * carry.hidden
        return self.settle(GRUCarry(hidden), hidden, carry)
