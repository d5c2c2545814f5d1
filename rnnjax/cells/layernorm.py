"""Layer normalisation inside of the LSTM and the GRU."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rnnjax.cells.activations import Activation, activate_gates, get_activation
from rnnjax.cells.arguments import check_features
from rnnjax.cells.base import Inputs, Params
from rnnjax.cells.dense import DenseCell
from rnnjax.cells.gru import GRUCarry
from rnnjax.cells.lstm import LSTMCarry, set_forget_bias
from rnnjax.cells.projected import add_bias, product


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerNormCell(DenseCell):
    r"""What the two cells share: both products are normalised over all gates before they meet.

    .. math::
        \text{LN}(a) = \frac{a - \text{mean}(a)}{\sqrt{\text{var}(a) + \epsilon}}

    with mean and variance over the last axis (Ba, Kiros & Hinton, 2016).
    """

    recurrent_activation: str | Activation = "sigmoid"
    epsilon: float = 1e-5

    sums: ClassVar[bool] = False

    def init(self, key: jax.Array, input_size: int) -> dict[str, jax.Array]:
        """Draw the parameters as in `DenseCell.init`, and add the gains, which begin at 1."""
        params = super().init(key, input_size)
        ones = jnp.ones(self.num_gates * self.hidden_size, self.param_dtype)
        return params | {"kernel_scale": ones, "recurrent_scale": ones}

    def project(self, params: Params, xs: Inputs) -> jax.Array:
        """``LN(xs @ kernel) * kernel_scale + bias``."""
        check_features(self, params, xs)
        projected = self.normalized(product(xs, params["kernel"], self.dtype))
        return add_bias(projected * params["kernel_scale"].astype(projected.dtype), params, "bias")

    def normalized(self, x: jax.Array) -> jax.Array:
        """``LN(x)`` over the last axis."""
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = (centred * centred).mean(axis=-1, keepdims=True)
        return centred * jax.lax.rsqrt(variance + self.epsilon)

    def scaled(self, params: Params, recurrent: jax.Array) -> jax.Array:
        """``LN(recurrent) * recurrent_scale``."""
        return self.normalized(recurrent) * params["recurrent_scale"].astype(recurrent.dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerNormLSTMCell(LayerNormCell):
    r"""Long short-term memory with layer normalisation (Ba, Kiros & Hinton, 2016).

    .. math::
        i, f, g, o &= \text{split}(s_x \, \text{LN}(x W) + s_h \, \text{LN}(h U) + b) \\
        i, f, o &= \sigma(i), \sigma(f), \sigma(o), \qquad g = \tanh(g) \\
        c' &= f c + i g \\
        h' &= o \tanh(s_c \, \text{LN}(c') + b_c), \qquad y = h'

    LN subtracts the mean and divides by the standard deviation, over all four gates together, and
    over the units of the cell. Parameters are those of `LSTMCell`, the gains :math:`s_x` =
    ``kernel_scale``, :math:`s_h` = ``recurrent_scale``, both ``(4 * hidden_size,)``, and
    :math:`s_c` = ``cell_scale``, :math:`b_c` = ``cell_bias``, both ``(hidden_size,)``.

    Args:
        recurrent_activation: :math:`\sigma`, the activation of the gates i, f and o.
        epsilon: added to the variances.
        unit_forget_bias: whether the forget gate's bias starts at 1 rather than at ``bias_init``.

    For the other arguments see `DenseCell`.

    >>> cell = LayerNormLSTMCell(hidden_size=50)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> params["kernel_scale"].shape, params["cell_scale"].shape
    ((200,), (50,))
    >>> carry, y = cell.step(params, cell.initial_carry((8,)), jnp.ones((8, 3)))
    >>> carry.cell.shape, y.shape
    ((8, 50), (8, 50))
    """

    unit_forget_bias: bool = True

    num_gates: ClassVar[int] = 4

    def init(self, key: jax.Array, input_size: int) -> dict[str, jax.Array]:
        """Draw the parameters; gains begin at 1."""
        params = super().init(key, input_size)
        if self.use_bias and self.unit_forget_bias:
            params["bias"] = set_forget_bias(params["bias"], self.hidden_size)
        params["cell_scale"] = jnp.ones(self.hidden_size, self.param_dtype)
        params["cell_bias"] = jnp.zeros(self.hidden_size, self.param_dtype)
        return params

    def initial_carry(
        self, batch_shape: tuple[int, ...] = (), dtype: DTypeLike | None = None
    ) -> LSTMCarry:
        """Zeros: ``hidden`` and ``cell``, both ``(*batch_shape, hidden_size)``."""
        return LSTMCarry(self.zeros(batch_shape, dtype), self.zeros(batch_shape, dtype))

    def update(self, params: Params, x: tuple[jax.Array, jax.Array], carry: LSTMCarry) -> LSTMCarry:
        """The equations of the class."""
        projected, recurrent = x
        gate = self.recurrent_activation
        gates = activate_gates(
            projected + self.scaled(params, recurrent), (gate, gate, self.activation, gate)
        )
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        cell = f * carry.cell + i * g
        shown = self.normalized(cell) * params["cell_scale"].astype(cell.dtype)
        shown = add_bias(shown, params, "cell_bias")
        return LSTMCarry(o * get_activation(self.activation)(shown), cell)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerNormGRUCell(LayerNormCell):
    r"""Gated recurrent unit with layer normalisation (Ba, Kiros & Hinton, 2016).

    .. math::
        x_r, x_z, x_n &= \text{split}(s_x \, \text{LN}(x W) + b) \\
        h_r, h_z, h_n &= \text{split}(s_h \, \text{LN}(h U)) \\
        r &= \sigma(x_r + h_r), \qquad z = \sigma(x_z + h_z) \\
        n &= \tanh(x_n + r h_n) \\
        h' &= (1 - z) n + z h, \qquad y = h'

    LN subtracts the mean and divides by the standard deviation, over all three gates together.
    Parameters are ``kernel``, ``recurrent_kernel`` and ``bias``, gates in the order r, z, n, and
    the gains :math:`s_x` = ``kernel_scale`` and :math:`s_h` = ``recurrent_scale``, both
    ``(3 * hidden_size,)``.

    Args:
        recurrent_activation: :math:`\sigma`, the activation of the gates r and z.
        epsilon: added to the variances.

    For the other arguments see `DenseCell`.

    >>> cell = LayerNormGRUCell(hidden_size=50)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> carry, y = cell.step(params, cell.initial_carry((8,)), jnp.ones((8, 3)))
    >>> carry.hidden.shape, y.shape
    ((8, 50), (8, 50))
    """

    num_gates: ClassVar[int] = 3

    def initial_carry(
        self, batch_shape: tuple[int, ...] = (), dtype: DTypeLike | None = None
    ) -> GRUCarry:
        """Zeros: ``hidden (*batch_shape, hidden_size)``."""
        return GRUCarry(self.zeros(batch_shape, dtype))

    def update(self, params: Params, x: tuple[jax.Array, jax.Array], carry: GRUCarry) -> GRUCarry:
        """The equations of the class."""
        projected, recurrent = x
        size = self.hidden_size
        recurrent = self.scaled(params, recurrent)
        rz = activate_gates(
            projected[..., : 2 * size] + recurrent[..., : 2 * size], [self.recurrent_activation] * 2
        )
        r, z = jnp.split(rz, 2, axis=-1)
        n = activate_gates(
            projected[..., 2 * size :] + r * recurrent[..., 2 * size :], [self.activation]
        )
        return GRUCarry((1 - z) * n + z * carry.hidden)
