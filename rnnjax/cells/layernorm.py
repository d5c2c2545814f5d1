"""Layer normalisation inside the LSTM and the GRU."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rnnjax.cells.activations import Activation, Initializer, activate_gates, get_activation
from rnnjax.cells.base import Cell, Param, Params, Role
from rnnjax.cells.gru import GRUCarry
from rnnjax.cells.lstm import LSTMCarry, LSTMRelative
from rnnjax.cells.products import add_bias


@dataclasses.dataclass(frozen=True)
class LayerNormLSTMCell(LSTMRelative):
    r"""Long short-term memory with layer normalisation (Ba, Kiros & Hinton, 2016).

    .. math::
        i, f, g, o &= \text{split}(s_x \, \text{LN}(x W) + s_h \, \text{LN}(h U) + b) \\
        i, f, o &= \sigma(i), \sigma(f), \sigma(o), \qquad g = \tanh(g) \\
        c' &= f c + i g \\
        h' &= o \tanh(s_c \, \text{LN}(c') + b_c), \qquad y = h'

    LN subtracts the mean and divides by the standard deviation, over all four gates together, and
    over the units of the cell. Parameters are those of `LSTMCell` and four more: :math:`s_x` =
    ``kernel_scale`` and :math:`s_h` = ``recurrent_scale``, both ``(4 * hidden_size,)``, and
    :math:`s_c` = ``cell_scale`` and :math:`b_c` = ``cell_bias``, both ``(hidden_size,)``.

    Args:
        epsilon: added to the variances.

    Arguments that are not listed, and errors, are those of `LSTMCell`.

    >>> cell = LayerNormLSTMCell(hidden_size=50)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> params["kernel_scale"].shape, params["cell_scale"].shape
    ((200,), (50,))
    >>> carry, y = cell.step(params, cell.initial_carry((8,)), jnp.ones((8, 3)))
    >>> carry.cell.shape, y.shape
    ((8, 50), (8, 50))
    """

    _: dataclasses.KW_ONLY
    epsilon: float = 1e-5

    additive = False

    def parameters(self, input_size: int) -> dict[str, Param]:
        """Declare the parameters of `LSTMCell`, and the gains, which begin at 1."""
        params, units = _gained(super().parameters(input_size)), (self.hidden_size,)
        return params | {"cell_scale": Param(units, "ones"), "cell_bias": Param(units)}

    def update(self, params: Params, x: Any, carry: LSTMCarry) -> LSTMCarry:
        """Compute the new state by the equations of the class."""
        gate = self.recurrent_activation
        projected, recurrent = _both_normalized(params, x, self.epsilon)
        gates = activate_gates(projected + recurrent, (gate, gate, self.activation, gate))
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        cell = f * carry.cell + i * g
        normalized = _normalized(cell, params["cell_scale"], self.epsilon)
        normalized = add_bias(normalized, params, "cell_bias")
        return LSTMCarry(o * get_activation(self.activation)(normalized), cell)


@dataclasses.dataclass(frozen=True)
class LayerNormGRUCell(Cell[GRUCarry]):
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
        activation: the activation of the candidate n, by name or as a callable.
        recurrent_activation: :math:`\sigma`, the activation of the gates r and z.
        epsilon: added to the variances.

    Arguments that are not listed, and errors, are those of `LSTMCell`.

    >>> cell = LayerNormGRUCell(hidden_size=50)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> carry, y = cell.step(params, cell.initial_carry((8,)), jnp.ones((8, 3)))
    >>> carry.hidden.shape, y.shape
    ((8, 50), (8, 50))
    """

    hidden_size: int
    _: dataclasses.KW_ONLY
    activation: str | Activation = "tanh"
    recurrent_activation: str | Activation = "sigmoid"
    epsilon: float = 1e-5
    use_bias: bool = True
    kernel_init: str | Initializer = "glorot_uniform"
    recurrent_kernel_init: str | Initializer = "orthogonal"
    bias_init: str | Initializer = "zeros"
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    # The coupling is ELEMENTWISE, but not declared: the norms mix units, and learners of
    # `rnnjax.online` would assume that each parameter belongs to one unit.
    carry = GRUCarry
    gates = "r", "z", "n"
    additive = False

    def parameters(self, input_size: int) -> dict[str, Param]:
        """Declare ``kernel``, ``recurrent_kernel``, ``bias`` and the gains, which begin at 1."""
        return _gained(super().parameters(input_size))

    def update(self, params: Params, x: Any, carry: GRUCarry) -> GRUCarry:
        """Compute the new state by the equations of the class."""
        projected, recurrent = _both_normalized(params, x, self.epsilon)
        at = [2 * self.hidden_size]
        x_rz, x_n = jnp.split(projected, at, axis=-1)
        h_rz, h_n = jnp.split(recurrent, at, axis=-1)
        r, z = jnp.split(activate_gates(x_rz + h_rz, [self.recurrent_activation] * 2), 2, axis=-1)
        n = activate_gates(x_n + r * h_n, [self.activation])
        return GRUCarry((1 - z) * n + z * carry.hidden)


def _gained(params: dict[str, Param]) -> dict[str, Param]:
    """Add a gain for each of the two products; the update adds the bias after them."""
    # The engine adds a BIAS to the product, before the norm, which would subtract its mean again.
    if "bias" in params:
        params["bias"] = params["bias"]._replace(role=Role.UNIT)
    gain = Param(params["kernel"].shape[-1:], "ones")
    return params | {"kernel_scale": gain, "recurrent_scale": gain}


def _both_normalized(params: Params, x: Any, epsilon: float) -> tuple[jax.Array, jax.Array]:
    """Normalise both products over all gates, multiply by gains, and add the bias to the first."""
    # Stacked, they are half as many small loops: 0.97 of a layer's time, forward and backward.
    scale = jnp.stack([params["kernel_scale"], params["recurrent_scale"]])
    both = _normalized(jnp.stack(x, axis=-2), scale, epsilon)
    return add_bias(both[..., 0, :], params, "bias"), both[..., 1, :]


def _normalized(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
    """Compute ``LN(x) * scale`` over the last axis."""
    # Centred first: the mean of squares less the square of the mean cancels for rows far from 0,
    # and can be negative. Without epsilon a constant row would be 0 / 0.
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred * centred).mean(axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + epsilon) * scale.astype(x.dtype)
