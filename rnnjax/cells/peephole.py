"""Long short-term memory whose gates see the cell state."""

import dataclasses

import jax
import jax.numpy as jnp

from rnnjax.cells.activations import Initializer, activate_gates, get_activation
from rnnjax.cells.base import Coupling, Param, Params
from rnnjax.cells.lstm import LSTMCarry, LSTMRelative


@dataclasses.dataclass(frozen=True)
class PeepholeLSTMCell(LSTMRelative):
    r"""Long short-term memory with peephole connections (Gers & Schmidhuber, 2000).

    .. math::
        i, f, g, o &= \text{split}(x W + h U + b) \\
        i &= \sigma(i + p_i \odot c), \qquad f = \sigma(f + p_f \odot c) \\
        c' &= f c + i \tanh(g) \\
        o &= \sigma(o + p_o \odot c') \\
        h' &= o \tanh(c'), \qquad y = h'

    with the parameters of `LSTMCell` and :math:`p_i, p_f, p_o` = ``peephole (3, hidden_size)``.

    Args:
        peephole_init: initialiser of ``peephole``.

    Arguments that are not listed, and errors, are those of `LSTMCell`.

    >>> cell = PeepholeLSTMCell(hidden_size=50)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> params["peephole"].shape
    (3, 50)
    >>> carry, y = cell.step(params, cell.initial_carry((8,)), jnp.ones((8, 3)))
    >>> carry.cell.shape, y.shape
    ((8, 50), (8, 50))
    """

    _: dataclasses.KW_ONLY
    peephole_init: str | Initializer = "zeros"

    # A peephole is a vector, not a matrix: a gate sees the cell state of its own unit alone.
    coupling = Coupling.ELEMENTWISE

    def parameters(self, input_size: int) -> dict[str, Param]:
        """Declare the parameters of `LSTMCell`, and ``peephole``."""
        peephole = Param((3, self.hidden_size), self.peephole_init)
        return super().parameters(input_size) | {"peephole": peephole}

    def update(self, params: Params, x: jax.Array, carry: LSTMCarry) -> LSTMCarry:
        """Compute the new state by the equations of the class, from the second on."""
        gate, tanh = self.recurrent_activation, get_activation(self.activation)
        p_i, p_f, p_o = params["peephole"].astype(carry.cell.dtype)
        i, f, g, o = jnp.split(x, 4, axis=-1)
        # Three gates at once, as one tanh. The output gate has to wait: it sees the new cell state.
        early = jnp.concatenate([i + p_i * carry.cell, f + p_f * carry.cell, g], axis=-1)
        i, f, g = jnp.split(activate_gates(early, (gate, gate, self.activation)), 3, axis=-1)
        cell = f * carry.cell + i * g
        return LSTMCarry(activate_gates(o + p_o * cell, (gate,)) * tanh(cell), cell)
