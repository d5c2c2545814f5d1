"""Forget gates that see the inputs alone: the quasi-recurrent network and the GILR."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rnnjax.cells.activations import Activation, Initializer, activate_gates
from rnnjax.cells.arguments import brief
from rnnjax.cells.base import Cell, Coupling, Params
from rnnjax.cells.simple import SimpleRNNCarry
from rnnjax.errors import InvalidInputError


@dataclasses.dataclass(frozen=True)
class QRNNCell(Cell[SimpleRNNCarry]):
    r"""Quasi-recurrent network (Bradbury et al., 2017), with a window of one step.

    .. math::
        z, f, o &= \text{split}(x W + b), \qquad z = \tanh(z), \quad f, o = \sigma(f), \sigma(o) \\
        h' &= f h + (1 - f) z \\
        y &= o h' \text{ with fo-pooling, and } h' \text{ with f-pooling}

    with :math:`W` = ``kernel (input_size, 3 * hidden_size)`` and :math:`b` = ``bias (3 *
    hidden_size,)``, in the order z, f, o; with f-pooling two parts, z and f. (A wider window of the
    paper's convolutions is one of the inputs: several steps side by side as features.)

    Args:
        hidden_size: the number of hidden units.
        pooling: ``"fo"`` or ``"f"``.
        activation: of the candidate z, by name or as a callable.
        use_bias: whether there is a bias.
        kernel_init: initialiser of ``kernel``, by name or as ``(key, shape, dtype) -> array``.
        bias_init: the same of the biases.
        dtype: of the operands of the matrix products and of the outputs. With None the products run
            in the promoted type of input and parameters, and outputs have the type of the carry.
            Sums are in float32 at least, and the carry stays float32: ``dtype=jnp.bfloat16`` does
            not make the state forget.
        param_dtype: of the parameters that `init` draws.

    Raises:
        InvalidInputError: a hyperparameter is of the wrong type, or no name that is known.

    >>> cell = QRNNCell(hidden_size=50)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> carry, y = cell.step(params, cell.initial_carry((8,)), jnp.ones((8, 3)))
    >>> params["kernel"].shape, y.shape
    ((3, 150), (8, 50))
    """

    hidden_size: int
    _: dataclasses.KW_ONLY
    pooling: str = "fo"
    activation: str | Activation = "tanh"
    use_bias: bool = True
    kernel_init: str | Initializer = "glorot_uniform"
    bias_init: str | Initializer = "zeros"
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    carry = SimpleRNNCarry
    coupling = Coupling.CONTRACTING
    recurrent = None
    output = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pooling not in ("f", "fo"):
            raise InvalidInputError(f"pooling must be 'f' or 'fo', but is {brief(self.pooling)}")

    @property
    def gates(self) -> tuple[str, ...]:
        """z, f, and with fo-pooling o."""
        return "z", *self.pooling

    def update(
        self, params: Params, x: jax.Array, carry: SimpleRNNCarry
    ) -> tuple[SimpleRNNCarry, jax.Array]:
        """The equations of the class."""
        count = len(self.gates)
        activated = activate_gates(x, (self.activation, *["sigmoid"] * (count - 1)))
        z, f, *o = jnp.split(activated, count, axis=-1)
        hidden = f * carry.hidden + (1 - f) * z
        return SimpleRNNCarry(hidden), o[0] * hidden if o else hidden


@dataclasses.dataclass(frozen=True)
class GILRCell(Cell[SimpleRNNCarry]):
    r"""Gated impulse linear recurrence (Martin & Cundy, 2018).

    .. math::
        g, i &= \text{split}(x W + b), \qquad g = \sigma(g), \quad i = \tanh(i) \\
        h' &= g h + (1 - g) i, \qquad y = h'

    with :math:`W` = ``kernel (input_size, 2 * hidden_size)`` and :math:`b` = ``bias (2 *
    hidden_size,)``, in the order g, i.

    Args:
        hidden_size: the number of hidden units.
        activation: of the impulse i, by name or as a callable.
        use_bias: whether there is a bias.
        kernel_init: initialiser of ``kernel``, by name or as ``(key, shape, dtype) -> array``.
        bias_init: the same of the biases.
        dtype: of the operands of the matrix products and of the outputs. With None the products run
            in the promoted type of input and parameters, and outputs have the type of the carry.
            Sums are in float32 at least, and the carry stays float32: ``dtype=jnp.bfloat16`` does
            not make the state forget.
        param_dtype: of the parameters that `init` draws.

    Raises:
        InvalidInputError: a hyperparameter is of the wrong type, or no name that is known.

    >>> cell = GILRCell(hidden_size=50)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> carry, y = cell.step(params, cell.initial_carry((8,)), jnp.ones((8, 3)))
    >>> params["kernel"].shape, y.shape
    ((3, 100), (8, 50))
    """

    hidden_size: int
    _: dataclasses.KW_ONLY
    activation: str | Activation = "tanh"
    use_bias: bool = True
    kernel_init: str | Initializer = "glorot_uniform"
    bias_init: str | Initializer = "zeros"
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    carry = SimpleRNNCarry
    gates = "g", "i"
    coupling = Coupling.CONTRACTING
    recurrent = None

    def update(self, params: Params, x: jax.Array, carry: SimpleRNNCarry) -> SimpleRNNCarry:
        """The equations of the class."""
        g, i = jnp.split(activate_gates(x, ("sigmoid", self.activation)), 2, axis=-1)
        return SimpleRNNCarry(g * carry.hidden + (1 - g) * i)
