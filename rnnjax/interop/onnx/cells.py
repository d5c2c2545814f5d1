"""What ONNX's recurrent operators can compute and no cell of `rnnjax.cells` does."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rnnjax.cells.activations import Activation, Initializer, get_activation
from rnnjax.cells.base import Params
from rnnjax.cells.dense import DenseCell
from rnnjax.cells.lstm import LSTMCarry, set_forget_bias


@dataclasses.dataclass(frozen=True)
class Clipped:
    """``function(clip(x, -bound, bound))``: an activation of an operator with ``clip``.

    >>> print(Clipped("tanh", 0.5)(jnp.array([0.25, 9.0])))
    [0.24491866 0.46211717]
    """

    function: str | Activation
    bound: float

    def __post_init__(self) -> None:
        get_activation(self.function)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The function of ``x`` of any shape, clipped to between ``-bound`` and ``bound``."""
        return get_activation(self.function)(jnp.clip(x, -self.bound, self.bound))


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeneralLSTMCell(DenseCell):
    r"""The whole of ONNX's LSTM: three activations, peepholes, and coupled gates.

    .. math::
        i, f, g, o &= \text{split}(x W + h U + b) \\
        i &= \sigma(i + p_i \odot c), \qquad f = \sigma(f + p_f \odot c), \qquad g = \phi(g) \\
        c' &= f c + i g \\
        o &= \sigma(o + p_o \odot c') \\
        h' &= o \, \psi(c'), \qquad y = h'

    With ``coupled``, :math:`f = 1 - i` after the activation, and the forget gate has no columns:
    kernels and bias have the gates i, g, o. With ``peephole``, the parameters have
    ``peephole (3, hidden_size)``, :math:`p_i, p_f, p_o`, or ``(2, hidden_size)``,
    :math:`p_i, p_o`; without, :math:`p = 0`. Where `rnnjax.LSTMCell`, `rnnjax.PeepholeLSTMCell` or
    `rnnjax.CoupledLSTMCell` say the same, they are what an import gives.

    Args:
        recurrent_activation: :math:`\sigma`, of the gates i, f and o.
        output_activation: :math:`\psi`, of the new cell state; ``activation`` is :math:`\phi`.
        peephole: whether the gates see the cell state.
        coupled: whether one gate is both for input and forgetting.
        unit_forget_bias: whether the forget gate's bias starts at 1, with ``coupled`` the input
            gate's at -1, rather than at ``bias_init``.
        peephole_init: initialiser of ``peephole``.

    For the other arguments see `DenseCell`.

    >>> cell = GeneralLSTMCell(5, output_activation="linear", peephole=True, coupled=True)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> params["kernel"].shape, params["peephole"].shape
    ((3, 15), (2, 5))
    >>> carry, y = cell.step(params, cell.initial_carry((8,)), jnp.ones((8, 3)))
    >>> carry.cell.shape, y.shape
    ((8, 5), (8, 5))
    """

    recurrent_activation: str | Activation = "sigmoid"
    output_activation: str | Activation = "tanh"
    peephole: bool = False
    coupled: bool = False
    unit_forget_bias: bool = True
    peephole_init: str | Initializer = "zeros"

    @property
    def num_gates(self) -> int:  # type: ignore[override]  # here it depends on an option
        """Three with ``coupled``, else four."""
        return 3 if self.coupled else 4

    def init(self, key: jax.Array, input_size: int) -> dict[str, jax.Array]:
        """Draw the parameters of an `LSTMCell`, and with ``peephole`` that."""
        params = super().init(key, input_size)
        if self.use_bias and self.unit_forget_bias:
            bias = params["bias"]
            params["bias"] = (
                bias.at[: self.hidden_size].set(-1)
                if self.coupled
                else set_forget_bias(bias, self.hidden_size)
            )
        if self.peephole:
            shape = (self.num_gates - 1, self.hidden_size)
            params["peephole"] = self.draw(self.peephole_init, jax.random.fold_in(key, 3), shape)
        return params

    def initial_carry(
        self, batch_shape: tuple[int, ...] = (), dtype: DTypeLike | None = None
    ) -> LSTMCarry:
        """Zeros: ``hidden`` and ``cell``, both ``(*batch_shape, hidden_size)``."""
        return LSTMCarry(self.zeros(batch_shape, dtype), self.zeros(batch_shape, dtype))

    def update(self, params: Params, x: jax.Array, carry: LSTMCarry) -> LSTMCarry:
        """The equations of the class, from the second on."""
        sigma = get_activation(self.recurrent_activation)
        i, *f, g, o = jnp.split(x, self.num_gates, axis=-1)
        p_i, *p_f, p_o = (
            params["peephole"].astype(carry.cell.dtype)
            if self.peephole
            else [0.0] * (self.num_gates - 1)
        )
        i = sigma(i + p_i * carry.cell)
        forget = 1 - i if self.coupled else sigma(f[0] + p_f[0] * carry.cell)
        cell = forget * carry.cell + i * get_activation(self.activation)(g)
        o = sigma(o + p_o * cell)
        return LSTMCarry(o * get_activation(self.output_activation)(cell), cell)
