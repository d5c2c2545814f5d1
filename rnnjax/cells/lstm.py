"""Long short-term memory, and the base class of its variants."""

import dataclasses
from typing import NamedTuple

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
from rnnjax.cells.base import Cell, Coupling, Param, Params, exportable
from rnnjax.cells.initializers import Chrono, remembering


@exportable
class LSTMCarry(NamedTuple):
    """The state of an LSTM: ``hidden`` and ``cell``, both ``(*batch, hidden_size)``."""

    hidden: jax.Array
    cell: jax.Array


@dataclasses.dataclass(frozen=True)
class LSTMCell(Cell[LSTMCarry]):
    r"""Long short-term memory (Hochreiter & Schmidhuber, 1997; forget gate: Gers et al., 2000).

    .. math::
        i, f, g, o &= \text{split}(x W + h U + b) \\
        i, f, o &= \sigma(i), \sigma(f), \sigma(o) \\
        g &= \tanh(g) \\
        c' &= f c + i g \\
        h' &= o \tanh(c'), \qquad y = h'

    with :math:`W` = ``kernel (input_size, 4 * hidden_size)``, :math:`U` = ``recurrent_kernel
    (hidden_size, 4 * hidden_size)`` and :math:`b` = ``bias (4 * hidden_size,)``. Gates are in the
    order i, f, g, o along the last axis. Defaults are those of Keras's ``LSTM``.

    Args:
        hidden_size: the number of hidden units.
        activation: the activation of the candidate and the output, by name or as a callable.
        recurrent_activation: :math:`\sigma`, the activation of the gates i, f and o.
        unit_forget_bias: whether the forget gate's bias starts at 1 rather than at ``bias_init``
            (Jozefowicz, Zaremba & Sutskever, 2015).
        use_bias: whether there is a bias.
        use_recurrent_bias: whether there is a second bias ``recurrent_bias``, added to :math:`h U`,
            as in PyTorch. The function is the same, but an optimizer moves the sum twice as far.
        kernel_init: initialiser of ``kernel``, by name or as ``(key, shape, dtype) -> array``.
        recurrent_kernel_init: initialiser of ``recurrent_kernel``.
        bias_init: initialiser of the biases.
        dtype: the type of the operands of matrix products, and of the outputs. With None, products
            run in the promoted type of input and parameters, and outputs have the type of the
            carry. Sums and the carry stay in float32 at least: ``dtype=jnp.bfloat16`` does not make
            the state forget.
        param_dtype: the type of the parameters that `init` returns.

    Raises:
        InvalidInputError: a hyperparameter has the wrong type, or is an unknown name.

    >>> cell = LSTMCell(hidden_size=50)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> {name: array.shape for name, array in params.items()}
    {'kernel': (3, 200), 'recurrent_kernel': (50, 200), 'bias': (200,)}
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
    use_recurrent_bias: bool = False
    kernel_init: str | Initializer = "glorot_uniform"
    recurrent_kernel_init: str | Initializer = "orthogonal"
    bias_init: str | Initializer = "zeros"
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    carry = LSTMCarry
    gates = "i", "f", "g", "o"
    coupling = Coupling.ELEMENTWISE

    def parameters(self, input_size: int) -> dict[str, Param]:
        """Declare the parameters ``kernel``, ``recurrent_kernel`` and ``bias``."""
        return forgets_little(super().parameters(input_size), self.unit_forget_bias)

    def update(self, params: Params, x: jax.Array, carry: LSTMCarry) -> LSTMCarry:
        """Compute the new state by the equations of the class, from the second on."""
        return lstm_update(x, carry, self.recurrent_activation, self.activation)


@dataclasses.dataclass(frozen=True)
class LSTMRelative(Cell[LSTMCarry]):
    """A cell with the state, the gates and the hyperparameters of an `LSTMCell`."""

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
    gates = "i", "f", "g", "o"

    def parameters(self, input_size: int) -> dict[str, Param]:
        """Declare the parameters of an `LSTMCell`."""
        return forgets_little(super().parameters(input_size), self.unit_forget_bias)


def lstm_update(
    x: jax.Array, carry: LSTMCarry, gate: str | Activation, activation: str | Activation
) -> LSTMCarry:
    """Compute an LSTM's new state from the sums ``x (*batch, 4 * hidden_size)`` of its gates."""
    i, f, g, o = jnp.split(activate_gates(x, (gate, gate, activation, gate)), 4, axis=-1)
    # With f and i near 1 the cell counts steps, |c'| <= |c| + 1, without a bound; its tanh has one.
    # The backward pass computes that again from c', which is saved with the carry.
    cell = f * carry.cell + i * g
    return LSTMCarry(o * get_activation(activation)(cell), cell)


def forgets_little(params: dict[str, Param], unit_forget_bias: bool) -> dict[str, Param]:
    """Set the initial bias of gates i, f, g, o: 1 for f with ``unit_forget_bias``, or chrono's."""
    # sigmoid(1)^10 = 0.04 of a state is left after ten steps, for sigmoid(0)^10 = 0.001 without.
    # The second bias stays at 0, because both are added; chrono sets its own values.
    params = remembering(params, (-1, 1, 0, 0))
    if unit_forget_bias and "bias" in params and not isinstance(params["bias"].init, Chrono):
        bias = params["bias"]
        params["bias"] = bias._replace(init=WithGates(bias.init, (None, 1.0, None, None)))
    return params
