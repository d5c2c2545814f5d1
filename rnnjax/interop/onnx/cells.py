"""What ONNX's recurrent operators can compute and no cell of `rnnjax.cells` does."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rnnjax.cells.activations import Activation, Initializer, WithGates, get_activation
from rnnjax.cells.base import Cell, Coupling, Param, Params
from rnnjax.cells.lstm import LSTMCarry


@dataclasses.dataclass(frozen=True)
class Clipped:
    """``function(clip(x, -bound, bound))``: an activation of an operator with ``clip``.

    >>> print(Clipped("tanh", 0.5)(jnp.array([0.25, 9.0])))
    [0.24491866 0.46211717]
    """

    function: str | Activation
    bound: float

    def __post_init__(self) -> None:
        get_activation(self.function)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The function of ``x`` of any shape, clipped to between ``-bound`` and ``bound``."""
        return get_activation(self.function)(jnp.clip(x, -self.bound, self.bound))


@dataclasses.dataclass(frozen=True)
class GeneralLSTMCell(Cell[LSTMCarry]):
    r"""The whole of ONNX's LSTM: three activations, peepholes, and coupled gates.

    .. math::
        i, f, g, o &= \text{split}(x W + h U + b) \\
        i &= \sigma(i + p_i \odot c), \qquad f = \sigma(f + p_f \odot c), \qquad g = \phi(g) \\
        c' &= f c + i g \\
        o &= \sigma(o + p_o \odot c') \\
        h' &= o \, \psi(c'), \qquad y = h'

    With ``coupled``, :math:`f = 1 - i` after the activation, and the forget gate has no columns:
    kernels and bias have the gates i, g, o. With ``peephole``, the parameters have
    ``peephole (3, hidden_size)``, :math:`p_i, p_f, p_o`, or ``(2, hidden_size)``,
    :math:`p_i, p_o`; without, :math:`p = 0`. Where `rnnjax.LSTMCell`, `rnnjax.PeepholeLSTMCell` or
    `rnnjax.CoupledLSTMCell` say the same, they are what an import gives.

    Args:
        hidden_size: the number of hidden units.
        activation: :math:`\phi`, of the candidate g, by name or as a callable.
        recurrent_activation: :math:`\sigma`, of the gates i, f and o.
        output_activation: :math:`\psi`, of the new cell state.
        peephole: whether the gates see the cell state.
        coupled: whether one gate is both for input and forgetting.
        unit_forget_bias: whether the forget gate's bias starts at 1, with ``coupled`` the input
            gate's at -1, rather than at ``bias_init``.
        peephole_init: initialiser of ``peephole``.
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

    >>> cell = GeneralLSTMCell(5, output_activation="linear", peephole=True, coupled=True)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> params["kernel"].shape, params["peephole"].shape
    ((3, 15), (2, 5))
    >>> carry, y = cell.step(params, cell.initial_carry((8,)), jnp.ones((8, 3)))
    >>> carry.cell.shape, y.shape
    ((8, 5), (8, 5))
    """

    hidden_size: int
    _: dataclasses.KW_ONLY
    activation: str | Activation = "tanh"
    recurrent_activation: str | Activation = "sigmoid"
    output_activation: str | Activation = "tanh"
    peephole: bool = False
    coupled: bool = False
    unit_forget_bias: bool = True
    peephole_init: str | Initializer = "zeros"
    use_bias: bool = True
    kernel_init: str | Initializer = "glorot_uniform"
    recurrent_kernel_init: str | Initializer = "orthogonal"
    bias_init: str | Initializer = "zeros"
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    carry = LSTMCarry
    coupling = Coupling.ELEMENTWISE

    @property
    def gates(self) -> tuple[str, ...]:
        """Those of an LSTM; with ``coupled`` there is no f."""
        return ("i", "g", "o") if self.coupled else ("i", "f", "g", "o")

    def parameters(self, input_size: int) -> dict[str, Param]:
        """Those of an `LSTMCell`, and with ``peephole`` that."""
        params, gates = super().parameters(input_size), len(self.gates)
        if self.use_bias and self.unit_forget_bias:
            begin = (-1.0, None, None) if self.coupled else (None, 1.0, None, None)
            params["bias"] = params["bias"]._replace(init=WithGates(self.bias_init, begin))
        if self.peephole:
            params["peephole"] = Param((gates - 1, self.hidden_size), self.peephole_init)
        return params

    def update(self, params: Params, x: jax.Array, carry: LSTMCarry) -> LSTMCarry:
        """The equations of the class, from the second on."""
        sigma = get_activation(self.recurrent_activation)
        i, *f, g, o = jnp.split(x, len(self.gates), axis=-1)
        p_i, *p_f, p_o = (
            params["peephole"].astype(carry.cell.dtype)
            if self.peephole
            else [0.0] * (len(self.gates) - 1)
        )
        i = sigma(i + p_i * carry.cell)
        forget = 1 - i if self.coupled else sigma(f[0] + p_f[0] * carry.cell)
        cell = forget * carry.cell + i * get_activation(self.activation)(g)
        o = sigma(o + p_o * cell)
        return LSTMCarry(o * get_activation(self.output_activation)(cell), cell)
