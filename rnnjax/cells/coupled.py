"""Long short-term memory with one gate for both input and forgetting."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rnnjax.cells.activations import Activation, activate_gates, get_activation
from rnnjax.cells.base import Params
from rnnjax.cells.dense import DenseCell
from rnnjax.cells.lstm import LSTMCarry


@dataclasses.dataclass(frozen=True, kw_only=True)
class CoupledLSTMCell(DenseCell):
    r"""Long short-term memory with coupled input and forget gates (CIFG: Greff et al., 2017).

    .. math::
        i, g, o &= \text{split}(x W + h U + b) \\
        i, o &= \sigma(i), \sigma(o), \qquad g = \tanh(g) \\
        c' &= (1 - i) c + i g \\
        h' &= o \tanh(c'), \qquad y = h'

    with ``kernel (input_size, 3 * hidden_size)``, ``recurrent_kernel (hidden_size, 3 *
    hidden_size)`` and ``bias (3 * hidden_size,)``, gates in the order i, g, o: a quarter of the
    LSTM's parameters and products less.

    Args:
        recurrent_activation: :math:`\sigma`, the activation of the gates i and o.
        unit_forget_bias: whether the input gate's bias starts at -1, which for the forget gate
            :math:`1 - i` is 1, rather than at ``bias_init``.

    For the other arguments see `DenseCell`.

    >>> cell = CoupledLSTMCell(hidden_size=50)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> params["kernel"].shape, float(params["bias"][0])
    ((3, 150), -1.0)
    >>> carry, y = cell.step(params, cell.initial_carry((8,)), jnp.ones((8, 3)))
    >>> carry.cell.shape, y.shape
    ((8, 50), (8, 50))
    """

    recurrent_activation: str | Activation = "sigmoid"
    unit_forget_bias: bool = True

    num_gates: ClassVar[int] = 3
    one_piece: ClassVar[bool] = True

    def init(self, key: jax.Array, input_size: int) -> dict[str, jax.Array]:
        """Draw ``kernel``, ``recurrent_kernel`` and ``bias``, as in `DenseCell.init`."""
        params = super().init(key, input_size)
        if self.use_bias and self.unit_forget_bias:
            params["bias"] = params["bias"].at[: self.hidden_size].set(-1)
        return params

    def initial_carry(
        self, batch_shape: tuple[int, ...] = (), dtype: DTypeLike | None = None
    ) -> LSTMCarry:
        """Zeros: ``hidden`` and ``cell``, both ``(*batch_shape, hidden_size)``."""
        return LSTMCarry(self.zeros(batch_shape, dtype), self.zeros(batch_shape, dtype))

    def update(self, params: Params, x: jax.Array, carry: LSTMCarry) -> LSTMCarry:
        """The equations of the class, from the second on."""
        gate = self.recurrent_activation
        i, g, o = jnp.split(activate_gates(x, (gate, self.activation, gate)), 3, axis=-1)
        cell = (1 - i) * carry.cell + i * g
        return LSTMCarry(o * get_activation(self.activation)(cell), cell)
