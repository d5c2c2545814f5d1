"""Gated recurrent unit, with its reset gate after or before the product."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from rnnjax.cells.activations import RESIDUAL, Activation, Initializer, activate_gates
from rnnjax.cells.base import Cell, Coupling, Param, Params, Role, declared, exportable
from rnnjax.cells.initializers import remembering


@exportable
class GRUCarry(NamedTuple):
    """The state of a `GRUCell`: ``hidden (*batch, hidden_size)``."""

    hidden: jax.Array


@dataclasses.dataclass(frozen=True)
class GRUCell(Cell[GRUCarry]):
    r"""Gated recurrent unit (Cho et al., 2014).

    With ``reset_after=True``, the form of cuDNN, PyTorch and Keras's default, the reset gate
    scales the candidate's recurrent product:

    .. math::
        r &= \sigma(x W_r + b_r + h U_r + c_r) \\
        z &= \sigma(x W_z + b_z + h U_z + c_z) \\
        n &= \tanh(x W_n + b_n + r (h U_n + c_n)) \\
        h' &= (1 - z) n + z h, \qquad y = h'

    With ``reset_after=False``, the form of the paper's first version, it scales the hidden state
    before that product: :math:`n = \tanh(x W_n + b_n + (r h) U_n)`, with no :math:`c`.

    Parameters are ``kernel (input_size, 3 * hidden_size)``, ``recurrent_kernel (hidden_size, 3 *
    hidden_size)``, ``bias (3 * hidden_size,)`` and, with ``reset_after``, ``recurrent_bias (3 *
    hidden_size,)``, which is :math:`c`. Gates are in the order r, z, n along the last axis.
    Defaults are those of Keras's ``GRU``.

    Args:
        hidden_size: the number of hidden units.
        activation: the activation of the candidate n, by name or as a callable.
        recurrent_activation: :math:`\sigma`, the activation of the gates r and z.
        reset_after: which form to use. Reset-before has two products in sequence in the loop.
        use_bias: whether there is a bias.
        kernel_init: initialiser of ``kernel``, by name or as ``(key, shape, dtype) -> array``.
        recurrent_kernel_init: initialiser of ``recurrent_kernel``.
        bias_init: initialiser of the biases.
        dtype: the type of the products' operands and of the outputs; see `LSTMCell`.
        param_dtype: the type of the parameters that `init` returns.

    Raises:
        InvalidInputError: a hyperparameter has the wrong type, or is an unknown name.

    >>> cell = GRUCell(hidden_size=50)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> {name: array.shape for name, array in params.items()}  # doctest: +NORMALIZE_WHITESPACE
    {'kernel': (3, 150), 'recurrent_kernel': (50, 150), 'bias': (150,), 'recurrent_bias': (150,)}
    >>> carry, y = cell.step(params, cell.initial_carry((8,)), jnp.ones((8, 3)))
    >>> carry.hidden.shape, y.shape
    ((8, 50), (8, 50))
    """

    hidden_size: int
    _: dataclasses.KW_ONLY
    activation: str | Activation = "tanh"
    recurrent_activation: str | Activation = "sigmoid"
    reset_after: bool = True
    use_bias: bool = True
    kernel_init: str | Initializer = "glorot_uniform"
    recurrent_kernel_init: str | Initializer = "orthogonal"
    bias_init: str | Initializer = "zeros"
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    carry = GRUCarry
    gates = "r", "z", "n"
    additive = False

    @declared
    def recurrent(self) -> str | None:
        """``"hidden"`` with ``reset_after``; without, the update makes both products."""
        return "hidden" if self.reset_after else None

    @declared
    def coupling(self) -> Coupling:
        """``ELEMENTWISE`` with ``reset_after``; without, the update mixes units by a product."""
        return Coupling.ELEMENTWISE if self.reset_after else Coupling.ANY

    def parameters(self, input_size: int) -> dict[str, Param]:
        """Declare ``kernel``, ``recurrent_kernel`` and ``bias``; with reset_after one more bias."""
        return remembering(two_products(self, super().parameters(input_size)), (0, 1, 0))

    def update(self, params: Params, x: Any, carry: GRUCarry) -> GRUCarry:
        """Compute the new state by the equations of the class."""
        at, h = [2 * self.hidden_size], carry.hidden
        if self.reset_after:
            projected, recurrent = x
            h_rz, h_n = jnp.split(recurrent, at, axis=-1)
        else:
            projected = x
            kernel_rz, kernel_n = params["recurrent_kernel"].split(*at)
            h_rz = h @ kernel_rz
        x_rz, x_n = jnp.split(projected, at, axis=-1)
        r, z = jnp.split(activate_gates(x_rz + h_rz, [self.recurrent_activation] * 2), 2, axis=-1)
        # n = tanh(x_n + r h_n), so dn/dr = (1 - n^2) h_n. The values of r and n are saved as gates;
        # h_n has a name too, or the whole product of the state would be saved for it.
        h_n = r * checkpoint_name(h_n, RESIDUAL) if self.reset_after else (r * h) @ kernel_n
        n = activate_gates(x_n + h_n, [self.activation])
        # Two products, not n + z (h - n), which differs from h by a rounding where z = 1.
        return GRUCarry((1 - z) * n + z * h)


def two_products(cell: Any, params: dict[str, Param]) -> dict[str, Param]:
    """Return the parameters of a cell with both forms; ``reset_after`` adds a second bias."""
    width = params["kernel"].shape[-1]
    if not cell.reset_after:
        recurrent = Param((cell.hidden_size, width), cell.recurrent_kernel_init, Role.LOOP)
        # In the order of the other form, by which files of Keras list their arrays.
        return {"kernel": params.pop("kernel"), "recurrent_kernel": recurrent, **params}
    if cell.use_bias:
        params["recurrent_bias"] = Param((width,), cell.bias_init, Role.BIAS)
    return params
