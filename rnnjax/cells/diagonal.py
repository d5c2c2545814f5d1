"""An LSTM in which each unit sees only its own state."""

import dataclasses

import jax

from rnnjax.cells.activations import Initializer
from rnnjax.cells.base import Coupling, Param, Params
from rnnjax.cells.lstm import LSTMCarry, LSTMRelative, lstm_update


@dataclasses.dataclass(frozen=True)
class DiagonalLSTMCell(LSTMRelative):
    r"""Long short-term memory with a diagonal recurrent kernel (ParaRNN: Danieli et al., 2025).

    .. math::
        i, f, g, o &= \text{split}(x W + b) + u_i \odot h, \, u_f \odot h, \, u_g \odot h, \,
            u_o \odot h \\
        i, f, o &= \sigma(i), \sigma(f), \sigma(o), \qquad g = \tanh(g) \\
        c' &= f c + i g \\
        h' &= o \tanh(c'), \qquad y = h'

    with :math:`W` = ``kernel (input_size, 4 * hidden_size)``, :math:`b` = ``bias (4 *
    hidden_size,)``, gates in the order i, f, g, o, and :math:`u_i, u_f, u_g, u_o` =
    ``recurrent_kernel (4, hidden_size)``. (The paper's LSTM couples i and f, and has peepholes.)

    Args:
        recurrent_kernel_init: initialiser of ``recurrent_kernel``; by default uniform in [0, 1).

    Arguments that are not listed, and errors, are those of `LSTMCell`.

    >>> cell = DiagonalLSTMCell(hidden_size=50)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> carry, y = cell.step(params, cell.initial_carry((8,)), jax.numpy.ones((8, 3)))
    >>> params["recurrent_kernel"].shape, carry.cell.shape, y.shape
    ((4, 50), (8, 50), (8, 50))
    """

    _: dataclasses.KW_ONLY
    recurrent_kernel_init: str | Initializer = "unit_uniform"

    coupling = Coupling.ELEMENTWISE
    recurrent = None

    def parameters(self, input_size: int) -> dict[str, Param]:
        """Declare the parameters ``kernel``, ``bias`` and ``recurrent_kernel``."""
        recurrent = Param((4, self.hidden_size), self.recurrent_kernel_init)
        return super().parameters(input_size) | {"recurrent_kernel": recurrent}

    def update(self, params: Params, x: jax.Array, carry: LSTMCarry) -> LSTMCarry:
        """Compute the new state by the equations of the class."""
        # (..., 4, hidden_size) in row-major order is the four gates side by side, as in x.
        own = params["recurrent_kernel"].astype(x.dtype) * carry.hidden[..., None, :]
        sums = x + own.reshape(x.shape)
        return lstm_update(sums, carry, self.recurrent_activation, self.activation)
