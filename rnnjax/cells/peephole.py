"""Long short-term memory whose gates see the cell state."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rnnjax.cells.activations import Activation, Initializer, activate_gates, get_activation
from rnnjax.cells.base import Params
from rnnjax.cells.dense import DenseCell
from rnnjax.cells.lstm import LSTMCarry, set_forget_bias


@dataclasses.dataclass(frozen=True, kw_only=True)
class PeepholeLSTMCell(DenseCell):
    r"""Long short-term memory with peephole connections (Gers & Schmidhuber, 2000).

    .. math::
        i, f, g, o &= \text{split}(x W + h U + b) \\
        i &= \sigma(i + p_i \odot c), \qquad f = \sigma(f + p_f \odot c) \\
        c' &= f c + i \tanh(g) \\
        o &= \sigma(o + p_o \odot c') \\
        h' &= o \tanh(c'), \qquad y = h'

    with the parameters of `LSTMCell` and :math:`p_i, p_f, p_o` = ``peephole (3, hidden_size)``.

    Args:
        recurrent_activation: :math:`\sigma`, the activation of the gates i, f and o.
        unit_forget_bias: whether the forget gate's bias starts at 1 rather than at ``bias_init``.
        peephole_init: initialiser of ``peephole``.

    For the other arguments see `DenseCell`.

    >>> cell = PeepholeLSTMCell(hidden_size=50)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> params["peephole"].shape
    (3, 50)
    >>> carry, y = cell.step(params, cell.initial_carry((8,)), jnp.ones((8, 3)))
    >>> carry.cell.shape, y.shape
    ((8, 50), (8, 50))
    """

    recurrent_activation: str | Activation = "sigmoid"
    unit_forget_bias: bool = True
    peephole_init: str | Initializer = "zeros"

    num_gates: ClassVar[int] = 4

    def init(self, key: jax.Array, input_size: int) -> dict[str, jax.Array]:
        """Draw the parameters of an `LSTMCell`, and ``peephole``."""
        params = super().init(key, input_size)
        if self.use_bias and self.unit_forget_bias:
            params["bias"] = set_forget_bias(params["bias"], self.hidden_size)
        shape = (3, self.hidden_size)
        params["peephole"] = self.draw(self.peephole_init, jax.random.fold_in(key, 3), shape)
        return params

    def initial_carry(
        self, batch_shape: tuple[int, ...] = (), dtype: DTypeLike | None = None
    ) -> LSTMCarry:
        """Zeros: ``hidden`` and ``cell``, both ``(*batch_shape, hidden_size)``."""
        return LSTMCarry(self.zeros(batch_shape, dtype), self.zeros(batch_shape, dtype))

    def update(self, params: Params, x: jax.Array, carry: LSTMCarry) -> LSTMCarry:
        """The equations of the class, from the second on."""
        gate, tanh = self.recurrent_activation, get_activation(self.activation)
        p_i, p_f, p_o = params["peephole"].astype(carry.cell.dtype)
        i, f, g, o = jnp.split(x, 4, axis=-1)
        early = jnp.concatenate([i + p_i * carry.cell, f + p_f * carry.cell, g], axis=-1)
        i, f, g = jnp.split(activate_gates(early, (gate, gate, self.activation)), 3, axis=-1)
        cell = f * carry.cell + i * g
        return LSTMCarry(activate_gates(o + p_o * cell, (gate,)) * tanh(cell), cell)
