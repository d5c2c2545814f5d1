"""Minimal gated unit: a GRU with a single gate."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from rnnjax.cells.activations import RESIDUAL, Activation, Initializer, WithGates, activate_gates
from rnnjax.cells.base import Cell, Coupling, Param, Params, declared
from rnnjax.cells.gru import GRUCarry, two_products


@dataclasses.dataclass(frozen=True)
class MGUCell(Cell[GRUCarry]):
    r"""Minimal gated unit (Zhou et al., 2016): a GRU with one gate.

    With ``reset_after=True``, the form of Flax's ``MGUCell``:

    .. math::
        f &= \sigma(x W_f + b_f + h U_f + c_f) \\
        n &= \tanh(x W_n + b_n + f (h U_n + c_n)) \\
        h' &= (1 - f) n + f h, \qquad y = h'

    With ``reset_after=False``, the form of the paper, :math:`n = \tanh(x W_n + b_n + (f h) U_n)`,
    with no :math:`c`. (In the last line the paper's :math:`f` is our :math:`1 - f`.)

    Parameters are ``kernel (input_size, 2 * hidden_size)``, ``recurrent_kernel (hidden_size, 2 *
    hidden_size)``, ``bias (2 * hidden_size,)`` and, with ``reset_after``, ``recurrent_bias (2 *
    hidden_size,)``, which is :math:`c`. Their last axis is in the order f, n.

    Args:
        activation: the activation of the candidate n, by name or as a callable.
        recurrent_activation: :math:`\sigma`, the activation of the gate.
        reset_after: which form to use. Reset-before has two products in sequence in the loop.
        unit_forget_bias: whether the gate's bias starts at 1, as in Flax, rather than at
            ``bias_init``.

    Arguments that are not listed, and errors, are those of `LSTMCell`.

    >>> cell = MGUCell(hidden_size=50)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> params["kernel"].shape
    (3, 100)
    >>> carry, y = cell.step(params, cell.initial_carry((8,)), jnp.ones((8, 3)))
    >>> carry.hidden.shape, y.shape
    ((8, 50), (8, 50))
    """

    hidden_size: int
    _: dataclasses.KW_ONLY
    activation: str | Activation = "tanh"
    recurrent_activation: str | Activation = "sigmoid"
    reset_after: bool = True
    unit_forget_bias: bool = True
    use_bias: bool = True
    kernel_init: str | Initializer = "glorot_uniform"
    recurrent_kernel_init: str | Initializer = "orthogonal"
    bias_init: str | Initializer = "zeros"
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    carry = GRUCarry
    gates = "f", "n"
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
        params = two_products(self, super().parameters(input_size))
        if self.use_bias and self.unit_forget_bias:
            init = WithGates(self.bias_init, (1.0, None))
            params["bias"] = params["bias"]._replace(init=init)
        return params

    def update(self, params: Params, x: Any, carry: GRUCarry) -> GRUCarry:
        """Compute the new state by the equations of the class."""
        h: jax.Array = carry.hidden
        if self.reset_after:
            projected, recurrent = x
            h_f, h_n = jnp.split(recurrent, 2, axis=-1)
        else:
            projected = x
            kernel_f, kernel_n = params["recurrent_kernel"].split(self.hidden_size)
            h_f = h @ kernel_f
        x_f, x_n = jnp.split(projected, 2, axis=-1)
        f = activate_gates(x_f + h_f, [self.recurrent_activation])
        # n = tanh(x_n + f h_n), so dn/df = (1 - n^2) h_n: see `GRUCell.update`.
        h_n = f * checkpoint_name(h_n, RESIDUAL) if self.reset_after else (f * h) @ kernel_n
        n = activate_gates(x_n + h_n, [self.activation])
        return GRUCarry((1 - f) * n + f * h)
