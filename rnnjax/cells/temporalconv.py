"""A short causal convolution over time, as used before a linear recurrence."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.export import register_namedtuple_serialization
from jax.typing import DTypeLike

from rnnjax.cells.activations import Initializer
from rnnjax.cells.base import Cell, Coupling, Param, Params


class WindowCarry(NamedTuple):
    """The inputs of one, two and three steps before, each ``(*batch, hidden_size)``."""

    last: jax.Array
    second_last: jax.Array
    third_last: jax.Array


register_namedtuple_serialization(WindowCarry, serialized_name="rnnjax.WindowCarry")


@dataclasses.dataclass(frozen=True)
class TemporalConvCell(Cell[WindowCarry]):
    r"""Causal convolution of four steps, of each channel by itself (Griffin: De et al., 2024).

    .. math::
        u_t &= x_t W + b \\
        y_t &= k_3 \odot u_t + k_2 \odot u_{t-1} + k_1 \odot u_{t-2} + k_0 \odot u_{t-3} + d

    with :math:`W` = ``kernel (input_size, hidden_size)``, :math:`b` = ``bias (hidden_size,)``,
    :math:`k` = ``taps (4, hidden_size)`` and :math:`d` = ``taps_bias (hidden_size,)``. The carry
    ``WindowCarry(last, second_last, third_last)`` holds :math:`u` of the last three steps. It
    begins with zeros, and masked steps do not enter it. (In Mamba and Griffin the product is a
    separate layer.)

    Args:
        hidden_size: the number of channels.
        taps_init: initialiser of ``taps``.
        use_bias: whether there are biases.

    Arguments that are not listed, and errors, are those of `LSTMCell`.

    >>> cell = TemporalConvCell(hidden_size=50)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> carry, y = cell.step(params, cell.initial_carry((8,)), jnp.ones((8, 3)))
    >>> params["taps"].shape, carry.third_last.shape, y.shape
    ((4, 50), (8, 50), (8, 50))
    """

    hidden_size: int
    _: dataclasses.KW_ONLY
    taps_init: str | Initializer = "lecun_normal"
    use_bias: bool = True
    kernel_init: str | Initializer = "glorot_uniform"
    bias_init: str | Initializer = "zeros"
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    carry = WindowCarry
    gates = ("u",)
    # Not CONTRACTING, though no A has a norm above 1: most entries of A are zeros. `Parallel` would
    # multiply them by a NaN, which would stay in the window, so `Auto` must not choose it.
    coupling = Coupling.AFFINE
    recurrent = None
    output = None

    def parameters(self, input_size: int) -> dict[str, Param]:
        """Declare ``kernel`` and ``taps``; with ``use_bias`` also ``bias`` and ``taps_bias``."""
        params = super().parameters(input_size)
        params["taps"] = Param((4, self.hidden_size), self.taps_init)
        if self.use_bias:
            params["taps_bias"] = Param((self.hidden_size,), self.bias_init)
        return params

    def update(
        self, params: Params, x: jax.Array, carry: WindowCarry
    ) -> tuple[WindowCarry, jax.Array]:
        """Compute the new state by the second equation of the class."""
        k0, k1, k2, k3 = params["taps"].astype(x.dtype)
        y = k3 * x + k2 * carry.last + k1 * carry.second_last + k0 * carry.third_last
        if self.use_bias:
            y += params["taps_bias"].astype(x.dtype)
        return WindowCarry(x, carry.last, carry.second_last), y
