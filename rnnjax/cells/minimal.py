"""minGRU and minLSTM, whose gates depend only on the inputs."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rnnjax.cells.activations import Activation, Initializer, get_activation
from rnnjax.cells.base import Cell, Coupling, Params
from rnnjax.cells.simple import SimpleRNNCarry


@dataclasses.dataclass(frozen=True)
class MinGRUCell(Cell[SimpleRNNCarry]):
    r"""minGRU (Feng et al., 2024): a GRU whose gate and candidate do not depend on the state.

    .. math::
        z, n &= \text{split}(x W + b), \qquad z = \sigma(z) \\
        h' &= (1 - z) h + z n, \qquad y = h'

    with :math:`W` = ``kernel (input_size, 2 * hidden_size)`` and :math:`b` = ``bias (2 *
    hidden_size,)``, in the order z, n. (As in that paper, :math:`z` weighs the new state; in
    `GRUCell` it weighs the old one.)

    Args:
        activation: the activation of the candidate n, by name or as a callable.

    Arguments that are not listed, and errors, are those of `LSTMCell`.

    >>> cell = MinGRUCell(hidden_size=50)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> carry, y = cell.step(params, cell.initial_carry((8,)), jnp.ones((8, 3)))
    >>> params["kernel"].shape, y.shape
    ((3, 100), (8, 50))
    """

    hidden_size: int
    _: dataclasses.KW_ONLY
    activation: str | Activation = "linear"
    use_bias: bool = True
    kernel_init: str | Initializer = "glorot_uniform"
    bias_init: str | Initializer = "zeros"
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    carry = SimpleRNNCarry
    gates = "z", "n"
    # The factor 1 - z of the old state is between 0 and 1, and depends on the inputs alone.
    coupling = Coupling.CONTRACTING
    recurrent = None

    def update(self, params: Params, x: jax.Array, carry: SimpleRNNCarry) -> SimpleRNNCarry:
        """Compute the new state by the equation of the class."""
        z, n = jnp.split(x, 2, axis=-1)
        z = jax.nn.sigmoid(z)
        return SimpleRNNCarry((1 - z) * carry.hidden + z * get_activation(self.activation)(n))


@dataclasses.dataclass(frozen=True)
class MinLSTMCell(Cell[SimpleRNNCarry]):
    r"""minLSTM (Feng et al., 2024): gates depend only on the inputs and sum to 1.

    .. math::
        i, f, g &= \text{split}(x W + b), \qquad i, f = \sigma(i), \sigma(f) \\
        h' &= \frac{f}{f + i} h + \frac{i}{f + i} g, \qquad y = h'

    with :math:`W` = ``kernel (input_size, 3 * hidden_size)`` and :math:`b` = ``bias (3 *
    hidden_size,)``, in the order i, f, g.

    Args:
        activation: the activation of the candidate g, by name or as a callable.

    Arguments that are not listed, and errors, are those of `LSTMCell`.

    >>> cell = MinLSTMCell(hidden_size=50)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> carry, y = cell.step(params, cell.initial_carry((8,)), jnp.ones((8, 3)))
    >>> params["kernel"].shape, y.shape
    ((3, 150), (8, 50))
    """

    hidden_size: int
    _: dataclasses.KW_ONLY
    activation: str | Activation = "linear"
    use_bias: bool = True
    kernel_init: str | Initializer = "glorot_uniform"
    bias_init: str | Initializer = "zeros"
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    carry = SimpleRNNCarry
    gates = "i", "f", "g"
    coupling = Coupling.CONTRACTING
    recurrent = None

    def update(self, params: Params, x: jax.Array, carry: SimpleRNNCarry) -> SimpleRNNCarry:
        """Compute the new state, with i / (f + i) as one sigmoid of a difference of logs."""
        i, f, g = jnp.split(x, 3, axis=-1)
        # i / (f + i) = 1 / (1 + f / i) = sigmoid(log i - log f), and f / (f + i) is the rest to 1.
        # In float32 both gates are 0 for arguments below about -100, and their quotient NaN.
        share = jax.nn.sigmoid(jax.nn.log_sigmoid(i) - jax.nn.log_sigmoid(f))
        g = get_activation(self.activation)(g)
        return SimpleRNNCarry((1 - share) * carry.hidden + share * g)
