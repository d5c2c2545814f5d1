"""The hierarchically gated recurrent network."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from rnnjax.cells.activations import Activation, Initializer, get_activation
from rnnjax.cells.base import Cell, Coupling, Param, Params
from rnnjax.cells.lru import ComplexCarry, turned
from rnnjax.errors import InvalidInputError


def spread_angles(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Angles a step from 1 down to nearly 1e-8, all magnitudes alike (Qin et al., 2023)."""
    return 10000.0 ** (-2 * jnp.arange(shape[-1], dtype=dtype) / shape[-1])


@dataclasses.dataclass(frozen=True)
class HGRNCell(Cell[ComplexCarry]):
    r"""Hierarchically gated recurrent network (Qin et al., 2023): forget gates with a lower bound.

    .. math::
        f, n, m, g &= \text{split}(x W + b) \\
        f &= \gamma + (1 - \gamma) \sigma(f), \qquad c = \text{silu}(n) + i \, \text{silu}(m) \\
        s' &= f e^{i \theta} \odot s + (1 - f) \odot c \\
        y &= \sigma(g) \odot [\text{Re}(s'), \text{Im}(s')]

    with :math:`W` = ``kernel (input_size, 5 * hidden_size)`` and :math:`b` = ``bias (5 *
    hidden_size,)``, of which g has two parts, and :math:`\theta` = ``angle (hidden_size,)``. The
    carry is ``ComplexCarry(real, imag)``, both ``(*batch, hidden_size)``, and y is ``(*batch, 2 *
    hidden_size)``; in the paper a layer norm and a product follow. There :math:`\gamma` is learned,
    and grows from layer to layer, as in ``Stack([HGRNCell(64, lower_bound=k / 4) for k in
    range(4)])``.

    Args:
        hidden_size: the number of complex units.
        lower_bound: :math:`\gamma`, which a forget gate never falls below.
        activation: of both parts of the candidate c, by name or as a callable.
        angle_init: initialiser of ``angle``; as it stands from 1 down, each a part of that before.
        use_bias: whether there is a bias.
        kernel_init: initialiser of ``kernel``, by name or as ``(key, shape, dtype) -> array``.
        bias_init: the same of the biases.
        dtype: of the operands of the matrix products and of the outputs. With None the products run
            in the promoted type of input and parameters, and outputs have the type of the carry.
            Sums are in float32 at least, and the carry stays float32: ``dtype=jnp.bfloat16`` does
            not make the state forget.
        param_dtype: of the parameters that `init` draws.

    Raises:
        InvalidInputError: a hyperparameter is of the wrong type, or no name that is known, or
            ``lower_bound`` is not in [0, 1).

    >>> cell = HGRNCell(hidden_size=50, lower_bound=0.5)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> carry, y = cell.step(params, cell.initial_carry((8,)), jnp.ones((8, 3)))
    >>> params["kernel"].shape, carry.imag.shape, y.shape
    ((3, 250), (8, 50), (8, 100))
    """

    hidden_size: int
    _: dataclasses.KW_ONLY
    lower_bound: float = 0.0
    activation: str | Activation = "silu"
    angle_init: str | Initializer = spread_angles
    use_bias: bool = True
    kernel_init: str | Initializer = "glorot_uniform"
    bias_init: str | Initializer = "zeros"
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    carry = ComplexCarry
    gates = "f", "n", "m", "g_real", "g_imag"
    coupling = Coupling.CONTRACTING
    recurrent = None
    output = None

    def __post_init__(self) -> None:
        super().__post_init__()
        bound = self.lower_bound
        if not isinstance(bound, int | float | np.number) or not 0 <= bound < 1:
            raise InvalidInputError(f"lower_bound must be in [0, 1), but is {bound!r}")

    @property
    def output_size(self) -> int:
        """Both parts of the state."""
        return 2 * self.hidden_size

    def parameters(self, input_size: int) -> dict[str, Param]:
        """``kernel``, ``bias`` and ``angle``."""
        angle = Param((self.hidden_size,), self.angle_init)
        return super().parameters(input_size) | {"angle": angle}

    def update(
        self, params: Params, x: jax.Array, carry: ComplexCarry
    ) -> tuple[ComplexCarry, jax.Array]:
        """The equations of the class."""
        f, n, m, g = jnp.split(x, [k * self.hidden_size for k in (1, 2, 3)], axis=-1)
        # What it lets in, written so: 1 - f would round where f is nearly 1.
        less = (1 - self.lower_bound) * jax.nn.sigmoid(-f)
        angle, act = params["angle"].astype(x.dtype), get_activation(self.activation)
        real, imag = (1 - less) * jnp.cos(angle), (1 - less) * jnp.sin(angle)
        new = turned(carry, real, imag, (less * act(n), less * act(m)))
        return new, jax.nn.sigmoid(g) * jnp.concatenate(new, axis=-1)
