"""The simple recurrent network of Elman, and its leaky units."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from rnnjax.cells.activations import Activation, Initializer, activate_gates
from rnnjax.cells.base import Cell, Coupling, Params, exportable
from rnnjax.errors import InvalidInputError


@exportable
class SimpleRNNCarry(NamedTuple):
    """The state of a `SimpleRNNCell`: ``hidden (*batch, hidden_size)``."""

    hidden: jax.Array


@dataclasses.dataclass(frozen=True)
class SimpleRNNCell(Cell[SimpleRNNCarry]):
    r"""Simple recurrent network (J. L. Elman, "Finding structure in time", 1990).

    .. math::
        h' = \tanh(x W + h U + b), \qquad y = h'

    with :math:`W` = ``kernel (input_size, hidden_size)``, :math:`U` = ``recurrent_kernel
    (hidden_size, hidden_size)`` and :math:`b` = ``bias (hidden_size,)``. Defaults are those of
    Keras's ``SimpleRNN``.

    Args:
        hidden_size: the number of hidden units.
        activation: the activation of the sum, by name or as a callable.
        use_recurrent_bias: whether there is a second bias, ``recurrent_bias``, as in PyTorch.
        use_bias: whether there is a bias.
        kernel_init: initialiser of ``kernel``, by name or as ``(key, shape, dtype) -> array``.
        recurrent_kernel_init: initialiser of ``recurrent_kernel``.
        bias_init: initialiser of the biases.
        dtype: the type of the products' operands and of the outputs; see `LSTMCell`.
        param_dtype: the type of the parameters that `init` returns.

    Raises:
        InvalidInputError: a hyperparameter has the wrong type, or is an unknown name.

    >>> cell = SimpleRNNCell(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> carry, y = cell.step(params, cell.initial_carry((8,)), jax.numpy.ones((8, 3)))
    >>> y.shape
    (8, 4)
    """

    hidden_size: int
    _: dataclasses.KW_ONLY
    activation: str | Activation = "tanh"
    use_bias: bool = True
    use_recurrent_bias: bool = False
    kernel_init: str | Initializer = "glorot_uniform"
    recurrent_kernel_init: str | Initializer = "orthogonal"
    bias_init: str | Initializer = "zeros"
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    carry = SimpleRNNCarry
    gates = ("h",)
    coupling = Coupling.ELEMENTWISE

    def update(self, params: Params, x: jax.Array, carry: SimpleRNNCarry) -> SimpleRNNCarry:
        """Compute the new state ``h'``, the activated sum."""
        return SimpleRNNCarry(activate_gates(x, (self.activation,)))


@dataclasses.dataclass(frozen=True)
class LeakyRNNCell(SimpleRNNCell):
    r"""Leaky units: continuous-time and echo state networks (Jaeger et al., 2007).

    .. math::
        h' = (1 - a) h + a \tanh(x W + h U + b), \qquad y = h'

    which is an Euler step of :math:`\tau \dot{h} = -h + \tanh(x W + h U + b)` with :math:`a =
    \Delta t / \tau`. Parameters are those of `SimpleRNNCell`.

    Args:
        leak: :math:`a`, above 0 and at most 1, which is the simple network.

    Arguments that are not listed are those of `SimpleRNNCell`.

    Raises:
        InvalidInputError: ``leak`` is outside of its bounds; or as `SimpleRNNCell`.

    >>> cell = LeakyRNNCell(4, leak=0.1)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> carry, y = cell.step(params, cell.initial_carry((8,)), jax.numpy.ones((8, 3)))
    >>> bool(abs(y).max() <= 0.1)
    True
    """

    _: dataclasses.KW_ONLY
    leak: float

    # Declared again: a class that writes its own update inherits no promise about another one.
    coupling = Coupling.ELEMENTWISE

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.leak, int | float | np.number) or not 0 < self.leak <= 1:
            raise InvalidInputError(f"leak must be above 0 and at most 1, but is {self.leak!r}")

    def update(self, params: Params, x: jax.Array, carry: SimpleRNNCarry) -> SimpleRNNCarry:
        """Compute the new state by the equation of the class."""
        new = super().update(params, x, carry).hidden
        return SimpleRNNCarry((1 - self.leak) * carry.hidden + self.leak * new)
