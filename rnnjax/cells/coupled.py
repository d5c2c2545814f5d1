"""Long short-term memory with one gate for both input and forgetting."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rnnjax.cells.activations import (
    Activation,
    Initializer,
    WithGates,
    activate_gates,
    get_activation,
)
from rnnjax.cells.base import Cell, Coupling, Param, Params
from rnnjax.cells.lstm import LSTMCarry


@dataclasses.dataclass(frozen=True)
class CoupledLSTMCell(Cell[LSTMCarry]):
    r"""Long short-term memory with coupled input and forget gates (CIFG: Greff et al., 2017).

    .. math::
        i, g, o &= \text{split}(x W + h U + b) \\
        i, o &= \sigma(i), \sigma(o), \qquad g = \tanh(g) \\
        c' &= (1 - i) c + i g \\
        h' &= o \tanh(c'), \qquad y = h'

    with ``kernel (input_size, 3 * hidden_size)``, ``recurrent_kernel (hidden_size, 3 *
    hidden_size)`` and ``bias (3 * hidden_size,)``, gates in the order i, g, o: a quarter of the
    LSTM's parameters and products less.

    Args:
        hidden_size: the number of hidden units.
        activation: of the candidate and of the output, by name or as a callable.
        recurrent_activation: :math:`\sigma`, the activation of the gates i and o.
        unit_forget_bias: whether the input gate's bias starts at -1, which for the forget gate
            :math:`1 - i` is 1, rather than at ``bias_init``.
        use_bias: whether there is a bias.
        kernel_init: initialiser of ``kernel``, by name or as ``(key, shape, dtype) -> array``.
        recurrent_kernel_init: the same of ``recurrent_kernel``.
        bias_init: the same of the biases.
        dtype: of the operands of the matrix products and of the outputs. With None the products run
            in the promoted type of input and parameters, and outputs have the type of the carry.
            Sums are in float32 at least, and the carry stays float32: ``dtype=jnp.bfloat16`` does
            not make the state forget.
        param_dtype: of the parameters that `init` draws.

    Raises:
        InvalidInputError: a hyperparameter is of the wrong type, or no name that is known.

    >>> cell = CoupledLSTMCell(hidden_size=50)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> params["kernel"].shape, float(params["bias"][0])
    ((3, 150), -1.0)
    >>> carry, y = cell.step(params, cell.initial_carry((8,)), jnp.ones((8, 3)))
    >>> carry.cell.shape, y.shape
    ((8, 50), (8, 50))
    """

    hidden_size: int
    _: dataclasses.KW_ONLY
    activation: str | Activation = "tanh"
    recurrent_activation: str | Activation = "sigmoid"
    unit_forget_bias: bool = True
    use_bias: bool = True
    kernel_init: str | Initializer = "glorot_uniform"
    recurrent_kernel_init: str | Initializer = "orthogonal"
    bias_init: str | Initializer = "zeros"
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    carry = LSTMCarry
    gates = "i", "g", "o"
    coupling = Coupling.ELEMENTWISE

    def parameters(self, input_size: int) -> dict[str, Param]:
        """``kernel``, ``recurrent_kernel`` and ``bias``."""
        params = super().parameters(input_size)
        if self.use_bias and self.unit_forget_bias:
            init = WithGates(self.bias_init, (-1.0, None, None))
            params["bias"] = params["bias"]._replace(init=init)
        return params

    def update(self, params: Params, x: jax.Array, carry: LSTMCarry) -> LSTMCarry:
        """The equations of the class, from the second on."""
        gate = self.recurrent_activation
        i, g, o = jnp.split(activate_gates(x, (gate, self.activation, gate)), 3, axis=-1)
        cell = (1 - i) * carry.cell + i * g
        return LSTMCarry(o * get_activation(self.activation)(cell), cell)
