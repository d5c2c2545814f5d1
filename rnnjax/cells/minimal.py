"""minGRU and minLSTM, whose gates see the inputs alone."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rnnjax.cells.activations import Activation, get_activation
from rnnjax.cells.base import Params
from rnnjax.cells.projected import ElementwiseCell
from rnnjax.cells.simple import SimpleRNNCarry


@dataclasses.dataclass(frozen=True)
class MinGRUCell(ElementwiseCell):
    r"""minGRU (Feng et al., 2024): a GRU whose gate and candidate do not see the state.

    .. math::
        z, n &= \text{split}(x W + b), \qquad z = \sigma(z) \\
        h' &= (1 - z) h + z n, \qquad y = h'

    with :math:`W` = ``kernel (input_size, 2 * hidden_size)`` and :math:`b` = ``bias (2 *
    hidden_size,)``, in the order z, n. (:math:`z` lets the new in, as in that paper; in `GRUCell`
    it keeps the old.)

    Args:
        activation: of the candidate n, ``"linear"`` unless given.

    For the other arguments see `ProjectedCell`.

    >>> cell = MinGRUCell(hidden_size=50)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> carry, y = cell.step(params, cell.initial_carry((8,)), jnp.ones((8, 3)))
    >>> params["kernel"].shape, y.shape
    ((3, 100), (8, 50))
    """

    activation: str | Activation = dataclasses.field(default="linear", kw_only=True)

    num_gates: ClassVar[int] = 2

    def initial_carry(
        self, batch_shape: tuple[int, ...] = (), dtype: DTypeLike | None = None
    ) -> SimpleRNNCarry:
        """Zeros: ``hidden (*batch_shape, hidden_size)``."""
        return SimpleRNNCarry(self.zeros(batch_shape, dtype))

    def update(self, params: Params, x: jax.Array, carry: SimpleRNNCarry) -> SimpleRNNCarry:
        """The equation of the class."""
        z, n = jnp.split(x, 2, axis=-1)
        z = jax.nn.sigmoid(z)
        return SimpleRNNCarry((1 - z) * carry.hidden + z * get_activation(self.activation)(n))


@dataclasses.dataclass(frozen=True)
class MinLSTMCell(ElementwiseCell):
    r"""minLSTM (Feng et al., 2024): gates of the inputs alone, scaled to a sum of 1.

    .. math::
        i, f, g &= \text{split}(x W + b), \qquad i, f = \sigma(i), \sigma(f) \\
        h' &= \frac{f}{f + i} h + \frac{i}{f + i} g, \qquad y = h'

    with :math:`W` = ``kernel (input_size, 3 * hidden_size)`` and :math:`b` = ``bias (3 *
    hidden_size,)``, in the order i, f, g.

    Args:
        activation: of the candidate g, ``"linear"`` unless given.

    For the other arguments see `ProjectedCell`.

    >>> cell = MinLSTMCell(hidden_size=50)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> carry, y = cell.step(params, cell.initial_carry((8,)), jnp.ones((8, 3)))
    >>> params["kernel"].shape, y.shape
    ((3, 150), (8, 50))
    """

    activation: str | Activation = dataclasses.field(default="linear", kw_only=True)

    num_gates: ClassVar[int] = 3

    def initial_carry(
        self, batch_shape: tuple[int, ...] = (), dtype: DTypeLike | None = None
    ) -> SimpleRNNCarry:
        """Zeros: ``hidden (*batch_shape, hidden_size)``."""
        return SimpleRNNCarry(self.zeros(batch_shape, dtype))

    def update(self, params: Params, x: jax.Array, carry: SimpleRNNCarry) -> SimpleRNNCarry:
        """The equation of the class, with i / (f + i) as one sigmoid of a difference of logs."""
        i, f, g = jnp.split(x, 3, axis=-1)
        # i / (f + i) without a quotient of two numbers that may both be tiny.
        share = jax.nn.sigmoid(jax.nn.log_sigmoid(i) - jax.nn.log_sigmoid(f))
        g = get_activation(self.activation)(g)
        return SimpleRNNCarry((1 - share) * carry.hidden + share * g)
