"""Long short-term memory with a recurrent projection."""

import dataclasses

import jax

from rnnjax.cells.activations import Initializer
from rnnjax.cells.base import Param, Params, Role, declared
from rnnjax.cells.lstm import LSTMCarry, LSTMRelative, lstm_update


@dataclasses.dataclass(frozen=True)
class ProjectionLSTMCell(LSTMRelative):
    r"""Long short-term memory with a recurrent projection (LSTMP: Sak, Senior & Beaufays, 2014).

    .. math::
        i, f, g, o &= \text{split}(x W + h U + b) \\
        i, f, o &= \sigma(i), \sigma(f), \sigma(o), \qquad g = \tanh(g) \\
        c' &= f c + i g \\
        h' &= (o \tanh(c')) R, \qquad y = h'

    with ``kernel (input_size, 4 * hidden_size)``, ``recurrent_kernel (proj_size,
    4 * hidden_size)``, ``bias (4 * hidden_size,)`` and :math:`R` = ``projection_kernel
    (hidden_size, proj_size)``, as with PyTorch's ``proj_size``. The carry is ``LSTMCarry`` of
    ``hidden (*batch, proj_size)`` and ``cell (*batch, hidden_size)``.

    Args:
        proj_size: the size of the hidden state and of the outputs.
        projection_kernel_init: initialiser of ``projection_kernel``.

    Arguments that are not listed, and errors, are those of `LSTMCell`.

    >>> cell = ProjectionLSTMCell(hidden_size=50, proj_size=20)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> params["recurrent_kernel"].shape, params["projection_kernel"].shape
    ((20, 200), (50, 20))
    >>> carry, y = cell.step(params, cell.initial_carry((8,)), jax.numpy.ones((8, 3)))
    >>> carry.cell.shape, y.shape
    ((8, 50), (8, 20))
    """

    _: dataclasses.KW_ONLY
    proj_size: int
    projection_kernel_init: str | Initializer = "glorot_uniform"
    use_recurrent_bias: bool = False

    @declared
    def carry_shapes(self) -> dict[str, tuple[int, ...]]:
        """Declare ``hidden (proj_size,)`` and ``cell (hidden_size,)``."""
        return {"hidden": (self.proj_size,), "cell": (self.hidden_size,)}

    def parameters(self, input_size: int) -> dict[str, Param]:
        """Declare the parameters of `LSTMCell`, and ``projection_kernel``."""
        shape = (self.hidden_size, self.proj_size)
        projection = Param(shape, self.projection_kernel_init, Role.LOOP)
        return super().parameters(input_size) | {"projection_kernel": projection}

    def update(self, params: Params, x: jax.Array, carry: LSTMCarry) -> LSTMCarry:
        """Compute the new state by the equations of the class, from the second on."""
        # The projection cannot wait until after the loop: the next step multiplies its result by U.
        hidden, cell = lstm_update(x, carry, self.recurrent_activation, self.activation)
        return LSTMCarry(hidden @ params["projection_kernel"], cell)
