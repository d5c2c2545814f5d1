"""Gated recurrent unit."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rnnjax.cells.activations import Activation, get_activation
from rnnjax.cells.base import DenseCell, Params, product


class GRUCarry(NamedTuple):
    """The state of a `GRUCell`: ``hidden (*batch, hidden_size)``."""

    hidden: jax.Array


@dataclasses.dataclass(frozen=True)
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

    @property
    def splits(self) -> bool:
        """Only with ``reset_after``: otherwise the reset gate stands between two products."""
        return self.reset_after and type(self).step is GRUCell.step

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

    def activate(
        self, params: Params, projected: jax.Array, recurrent: jax.Array, carry: GRUCarry
    ) -> tuple[GRUCarry, jax.Array]:
        """The equations of the class, with ``reset_after``."""
        tanh, sigmoid = get_activation(self.activation), get_activation(self.recurrent_activation)
        x_r, x_z, x_n = jnp.split(projected, 3, axis=-1)
        h_r, h_z, h_n = jnp.split(recurrent, 3, axis=-1)
        r, z = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
        n = tanh(x_n + r * h_n)
        hidden = (1 - z) * n + z * carry.hidden
        return GRUCarry(hidden), hidden

    def step(self, params: Params, carry: GRUCarry, x: jax.Array) -> tuple[GRUCarry, jax.Array]:
        """Run one time step, as in `DenseCell.step`; with reset-before in two products."""
        if self.reset_after:
            return super().step(params, carry, x)
        tanh, sigmoid = get_activation(self.activation), get_activation(self.recurrent_activation)
        size = self.hidden_size
        x_rz, x_n = jnp.split(self.project(params, jnp.asarray(x)), [2 * size], axis=-1)
        kernel_rz, kernel_n = jnp.split(params["recurrent_kernel"], [2 * size], axis=-1)
        rz = sigmoid(x_rz + product(carry.hidden, kernel_rz, self.dtype))
        r, z = jnp.split(rz, 2, axis=-1)
        n = tanh(x_n + product(r * carry.hidden, kernel_n, self.dtype))
        hidden = (1 - z) * n + z * carry.hidden
        return self.cast((GRUCarry(hidden), hidden), carry)
