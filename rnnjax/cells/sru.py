"""The simple recurrent unit."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rnnjax.cells.activations import Activation, Initializer, activate_gates, get_activation
from rnnjax.cells.base import Cell, Coupling, Param, Params
from rnnjax.cells.simple import SimpleRNNCarry


@dataclasses.dataclass(frozen=True)
class SRUCell(Cell[SimpleRNNCarry]):
    r"""Simple recurrent unit (Lei et al., 2018): light gates, and a highway past the state.

    .. math::
        z, f, r, n &= \text{split}(x W + b), \qquad f, r = \sigma(f), \sigma(r) \\
        h' &= f h + (1 - f) z \\
        y &= r h' + (1 - r) n

    with :math:`W` = ``kernel (input_size, 4 * hidden_size)`` and :math:`b` = ``bias (4 *
    hidden_size,)``, in the order z, f, r, n. These are the gates of the paper's first version. With
    ``peephole`` they are those of its second, :math:`f = \sigma(f + v_f \odot h)` and :math:`r =
    \sigma(r + v_r \odot h)` with :math:`v_f, v_r` = ``peephole (2, hidden_size)``, and no longer
    affine in the state. (In the paper :math:`n` is the input itself, where the sizes agree.)

    Args:
        hidden_size: the number of hidden units.
        peephole: whether the gates see the state before.
        activation: of the state in the output, by name or as a callable; the first version's is
            ``"tanh"``.
        peephole_init: initialiser of ``peephole``.
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

    >>> cell = SRUCell(hidden_size=50)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> carry, y = cell.step(params, cell.initial_carry((8,)), jnp.ones((8, 3)))
    >>> params["kernel"].shape, y.shape
    ((3, 200), (8, 50))
    """

    hidden_size: int
    _: dataclasses.KW_ONLY
    peephole: bool = False
    activation: str | Activation = "linear"
    peephole_init: str | Initializer = "zeros"
    use_bias: bool = True
    kernel_init: str | Initializer = "glorot_uniform"
    bias_init: str | Initializer = "zeros"
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    carry = SimpleRNNCarry
    gates = "z", "f", "r", "n"
    recurrent = None
    output = None

    @property
    def coupling(self) -> Coupling:
        """``CONTRACTING``; ``ELEMENTWISE`` with ``peephole``, by which gates read the state."""
        return Coupling.ELEMENTWISE if self.peephole else Coupling.CONTRACTING

    def parameters(self, input_size: int) -> dict[str, Param]:
        """``kernel``, ``bias``, and with peephole ``peephole``."""
        params = super().parameters(input_size)
        if self.peephole:
            params["peephole"] = Param((2, self.hidden_size), self.peephole_init)
        return params

    def update(
        self, params: Params, x: jax.Array, carry: SimpleRNNCarry
    ) -> tuple[SimpleRNNCarry, jax.Array]:
        """The equations of the class."""
        z, f, r, n = jnp.split(x, 4, axis=-1)
        if self.peephole:
            v_f, v_r = params["peephole"].astype(x.dtype)
            f, r = f + v_f * carry.hidden, r + v_r * carry.hidden
        gates = activate_gates(jnp.concatenate([f, r], axis=-1), ("sigmoid", "sigmoid"))
        f, r = jnp.split(gates, 2, axis=-1)
        hidden = f * carry.hidden + (1 - f) * z
        return SimpleRNNCarry(hidden), r * get_activation(self.activation)(hidden) + (1 - r) * n
