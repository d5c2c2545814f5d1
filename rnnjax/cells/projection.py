"""Long short-term memory whose hidden state is a smaller projection of its output."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rnnjax.cells.activations import Activation, Initializer, activate_gates, get_activation
from rnnjax.cells.arguments import check_size
from rnnjax.cells.base import Params
from rnnjax.cells.dense import DenseCell
from rnnjax.cells.lstm import LSTMCarry, set_forget_bias
from rnnjax.cells.projected import product


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProjectionLSTMCell(DenseCell):
    r"""Long short-term memory with a recurrent projection (LSTMP: Sak, Senior & Beaufays, 2014).

    .. math::
        i, f, g, o &= \text{split}(x W + h U + b) \\
        i, f, o &= \sigma(i), \sigma(f), \sigma(o), \qquad g = \tanh(g) \\
        c' &= f c + i g \\
        h' &= (o \tanh(c')) R, \qquad y = h'

    with ``kernel (input_size, 4 * hidden_size)``, ``recurrent_kernel (proj_size,
    4 * hidden_size)``, ``bias (4 * hidden_size,)`` and :math:`R` = ``projection_kernel
    (hidden_size, proj_size)``, as PyTorch's ``proj_size`` has it. The carry is ``LSTMCarry`` of
    ``hidden (*batch, proj_size)`` and ``cell (*batch, hidden_size)``.

    Args:
        proj_size: the size of the hidden state and of the outputs.
        recurrent_activation: :math:`\sigma`, the activation of the gates i, f and o.
        unit_forget_bias: whether the forget gate's bias starts at 1 rather than at ``bias_init``.
        projection_kernel_init: initialiser of ``projection_kernel``.

    For the other arguments see `DenseCell`.

    Raises:
        InvalidInputError: ``proj_size`` is not a positive integer.

    >>> cell = ProjectionLSTMCell(hidden_size=50, proj_size=20)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> params["recurrent_kernel"].shape, params["projection_kernel"].shape
    ((20, 200), (50, 20))
    >>> carry, y = cell.step(params, cell.initial_carry((8,)), jnp.ones((8, 3)))
    >>> carry.cell.shape, y.shape
    ((8, 50), (8, 20))
    """

    proj_size: int
    recurrent_activation: str | Activation = "sigmoid"
    unit_forget_bias: bool = True
    projection_kernel_init: str | Initializer = "glorot_uniform"

    num_gates: ClassVar[int] = 4
    one_piece: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_size("proj_size", self.proj_size)

    @property
    def output_size(self) -> int:
        """``proj_size``."""
        return self.proj_size

    @property
    def recurrent_size(self) -> int:
        """``proj_size``."""
        return self.proj_size

    def init(self, key: jax.Array, input_size: int) -> dict[str, jax.Array]:
        """Draw the parameters of an `LSTMCell`, and ``projection_kernel``."""
        params = super().init(key, input_size)
        if self.use_bias and self.unit_forget_bias:
            params["bias"] = set_forget_bias(params["bias"], self.hidden_size)
        params["projection_kernel"] = self.draw(
            self.projection_kernel_init,
            jax.random.fold_in(key, 3),
            (self.hidden_size, self.proj_size),
        )
        return params

    def initial_carry(
        self, batch_shape: tuple[int, ...] = (), dtype: DTypeLike | None = None
    ) -> LSTMCarry:
        """Zeros: ``hidden (*batch_shape, proj_size)`` and ``cell (*batch_shape, hidden_size)``."""
        cell = self.zeros(batch_shape, dtype)
        return LSTMCarry(jnp.zeros((*batch_shape, self.proj_size), cell.dtype), cell)

    def update(self, params: Params, x: jax.Array, carry: LSTMCarry) -> LSTMCarry:
        """The equations of the class, from the second on."""
        gate = self.recurrent_activation
        gates = activate_gates(x, (gate, gate, self.activation, gate))
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        cell = f * carry.cell + i * g
        shown = o * get_activation(self.activation)(cell)
        return LSTMCarry(product(shown, params["projection_kernel"], self.dtype), cell)
