"""Long short-term memory."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.export import register_namedtuple_serialization
from jax.typing import DTypeLike

from rnnjax.cells.activations import Activation, activate_gates, get_activation
from rnnjax.cells.base import Params
from rnnjax.cells.dense import DenseCell


class LSTMCarry(NamedTuple):
    """The state of an `LSTMCell`: ``hidden`` and ``cell``, both ``(*batch, hidden_size)``."""

    hidden: jax.Array
    cell: jax.Array


register_namedtuple_serialization(LSTMCarry, serialized_name="rnnjax.LSTMCarry")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LSTMCell(DenseCell):
    r"""Long short-term memory (Hochreiter & Schmidhuber, 1997; forget gate: Gers et al., 2000).

    .. math::
        i, f, g, o &= \text{split}(x W + h U + b) \\
        i, f, o &= \sigma(i), \sigma(f), \sigma(o) \\
        g &= \tanh(g) \\
        c' &= f c + i g \\
        h' &= o \tanh(c'), \qquad y = h'

    with :math:`W` = ``kernel (input_size, 4 * hidden_size)``, :math:`U` = ``recurrent_kernel
    (hidden_size, 4 * hidden_size)`` and :math:`b` = ``bias (4 * hidden_size,)``, gates in the order
    i, f, g, o along the last axis. Defaults are those of Keras's ``LSTM``.

    Args:
        recurrent_activation: :math:`\sigma`, the activation of the gates i, f and o.
        unit_forget_bias: whether the forget gate's bias starts at 1 rather than at ``bias_init``
            (Jozefowicz, Zaremba & Sutskever, 2015).

    For the other arguments see `DenseCell`.

    >>> cell = LSTMCell(hidden_size=50)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> {name: array.shape for name, array in params.items()}
    {'kernel': (3, 200), 'recurrent_kernel': (50, 200), 'bias': (200,)}
    >>> carry, y = cell.step(params, cell.initial_carry((8,)), jnp.ones((8, 3)))
    >>> carry.cell.shape, y.shape
    ((8, 50), (8, 50))
    """

    recurrent_activation: str | Activation = "sigmoid"
    unit_forget_bias: bool = True

    num_gates: ClassVar[int] = 4
    one_piece: ClassVar[bool] = True

    def init(self, key: jax.Array, input_size: int) -> dict[str, jax.Array]:
        """Draw ``kernel``, ``recurrent_kernel`` and ``bias``, as in `DenseCell.init`."""
        params = super().init(key, input_size)
        if self.use_bias and self.unit_forget_bias:
            params["bias"] = set_forget_bias(params["bias"], self.hidden_size)
        return params

    def initial_carry(
        self, batch_shape: tuple[int, ...] = (), dtype: DTypeLike | None = None
    ) -> LSTMCarry:
        """Zeros: ``hidden`` and ``cell``, both ``(*batch_shape, hidden_size)``."""
        return LSTMCarry(self.zeros(batch_shape, dtype), self.zeros(batch_shape, dtype))

    def update(self, params: Params, x: jax.Array, carry: LSTMCarry) -> LSTMCarry:
        """The equations of the class, from the second on."""
        gate = self.recurrent_activation
        gates = activate_gates(x, (gate, gate, self.activation, gate))
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        cell = f * carry.cell + i * g
        return LSTMCarry(o * get_activation(self.activation)(cell), cell)


def set_forget_bias(bias: jax.Array, hidden_size: int) -> jax.Array:
    """The bias of four gates with that of the forget gate, the second, at 1."""
    return bias.at[hidden_size : 2 * hidden_size].set(1)
