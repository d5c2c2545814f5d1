"""Independently recurrent neural network."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rnnjax.cells.activations import Activation, Initializer, get_activation
from rnnjax.cells.base import Cell, Coupling, Param, Params
from rnnjax.cells.simple import SimpleRNNCarry


@dataclasses.dataclass(frozen=True)
class IndRNNCell(Cell[SimpleRNNCarry]):
    r"""Independently recurrent neural network (Li et al., 2018): units see their own past alone.

    .. math::
        h' = \text{relu}(x W + u \odot h + b), \qquad y = h'

    with :math:`W` = ``kernel (input_size, hidden_size)``, :math:`u` = ``recurrent_kernel
    (hidden_size,)`` and :math:`b` = ``bias (hidden_size,)``. Over :math:`T` steps the gradient
    stays bounded where :math:`|u| \le \gamma^{1/T}` for a small :math:`\gamma` above 1.

    Args:
        hidden_size: the number of hidden units.
        activation: of the sum, by name or as a callable.
        use_bias: whether there is a bias.
        kernel_init: initialiser of ``kernel``, by name or as ``(key, shape, dtype) -> array``.
        recurrent_kernel_init: of ``recurrent_kernel``; the paper's is uniform in [0, 1).
        bias_init: the same of the biases.
        dtype: of the operands of the matrix products and of the outputs. With None the products run
            in the promoted type of input and parameters, and outputs have the type of the carry.
            Sums are in float32 at least, and the carry stays float32: ``dtype=jnp.bfloat16`` does
            not make the state forget.
        param_dtype: of the parameters that `init` draws.

    Raises:
        InvalidInputError: a hyperparameter is of the wrong type, or no name that is known.

    >>> cell = IndRNNCell(hidden_size=50)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> {name: array.shape for name, array in params.items()}
    {'kernel': (3, 50), 'bias': (50,), 'recurrent_kernel': (50,)}
    >>> carry, y = cell.step(params, cell.initial_carry((8,)), jax.numpy.ones((8, 3)))
    >>> carry.hidden.shape, y.shape
    ((8, 50), (8, 50))
    """

    hidden_size: int
    _: dataclasses.KW_ONLY
    activation: str | Activation = "relu"
    use_bias: bool = True
    kernel_init: str | Initializer = "glorot_uniform"
    recurrent_kernel_init: str | Initializer = "unit_uniform"
    bias_init: str | Initializer = "zeros"
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    carry = SimpleRNNCarry
    gates = ("h",)
    recurrent = None

    @property
    def coupling(self) -> Coupling:
        """``AFFINE`` where the activation is linear, else ``ELEMENTWISE``."""
        return Coupling.AFFINE if self.activation == "linear" else Coupling.ELEMENTWISE

    def parameters(self, input_size: int) -> dict[str, Param]:
        """``kernel``, ``bias`` and ``recurrent_kernel``."""
        recurrent = Param((self.hidden_size,), self.recurrent_kernel_init)
        return super().parameters(input_size) | {"recurrent_kernel": recurrent}

    def update(self, params: Params, x: jax.Array, carry: SimpleRNNCarry) -> SimpleRNNCarry:
        """The equation of the class."""
        recurrent = params["recurrent_kernel"].astype(carry.hidden.dtype) * carry.hidden
        return SimpleRNNCarry(get_activation(self.activation)(x + recurrent))
