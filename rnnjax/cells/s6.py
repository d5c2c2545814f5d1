"""The selective state space of Mamba: each input sets its own step."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rnnjax.cells.activations import Initializer
from rnnjax.cells.base import Cell, Coupling, Param, Params, Role, declared
from rnnjax.cells.initializers import softplus_steps
from rnnjax.cells.simple import SimpleRNNCarry


def counted_decays(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Return ``log(1), log(2), ...`` along the last axis (S4D-Real: Gu et al., 2022)."""
    return jnp.broadcast_to(jnp.log(jnp.arange(1, shape[-1] + 1, dtype=dtype)), shape)


@dataclasses.dataclass(frozen=True)
class S6Cell(Cell[SimpleRNNCarry]):
    r"""S6, Mamba's selective state space (Gu & Dao, 2023): each input sets its own step.

    .. math::
        \Delta, u, B, C &= \text{split}(x W), \qquad \Delta = \text{softplus}(\Delta + b) \\
        s'_{kn} &= \exp(-\Delta_k e^{a_{kn}}) s_{kn} + \Delta_k B_n u_k \\
        y_k &= \textstyle\sum_n C_n s'_{kn} + d_k u_k

    with :math:`W` = ``kernel (input_size, 2 * hidden_size + 2 * state_size)``, in the order
    :math:`\Delta, u, B, C`, :math:`b` = ``step_bias (hidden_size,)``, :math:`a` = ``log_decay
    (hidden_size, state_size)`` and :math:`d` = ``skip (hidden_size,)``. The carry is
    ``SimpleRNNCarry`` of ``hidden (*batch, hidden_size, state_size)``. (In the paper :math:`u` is
    the input itself, and the kernel of :math:`\Delta` is a product of two. As in the authors' code
    an input is multiplied by :math:`\Delta`, not held over the step.)

    Args:
        hidden_size: the number of channels, and of outputs.
        state_size: the number of states of each channel.
        log_decay_init: initialiser of ``log_decay``; by default :math:`e^a` is 1, 2, 3, ...
        step_bias_init: initialiser of ``step_bias``; by default steps of 0.001 to 0.1.
        skip_init: initialiser of ``skip``.

    Arguments that are not listed, and errors, are those of `LSTMCell`.

    >>> cell = S6Cell(hidden_size=50, state_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> carry, y = cell.step(params, cell.initial_carry((8,)), jnp.ones((8, 3)))
    >>> params["kernel"].shape, carry.hidden.shape, y.shape
    ((3, 108), (8, 50, 4), (8, 50))
    """

    hidden_size: int
    _: dataclasses.KW_ONLY
    state_size: int = 16
    log_decay_init: str | Initializer = counted_decays
    step_bias_init: str | Initializer = softplus_steps
    skip_init: str | Initializer = "ones"
    kernel_init: str | Initializer = "glorot_uniform"
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    carry = SimpleRNNCarry
    gates = "delta", "u", "b", "c"
    coupling = Coupling.CONTRACTING
    recurrent = None
    output = None

    @declared
    def carry_shapes(self) -> dict[str, tuple[int, ...]]:
        """Declare the carry's leaf ``hidden (hidden_size, state_size)``."""
        return {"hidden": (self.hidden_size, self.state_size)}

    def parameters(self, input_size: int) -> dict[str, Param]:
        """Declare ``kernel``, ``step_bias``, ``log_decay`` and ``skip``."""
        units, states = self.hidden_size, self.state_size
        return {
            "kernel": Param((input_size, 2 * (units + states)), self.kernel_init, Role.INPUT),
            "step_bias": Param((units,), self.step_bias_init),
            "log_decay": Param((units, states), self.log_decay_init),
            "skip": Param((units,), self.skip_init),
        }

    def update(
        self, params: Params, x: jax.Array, carry: SimpleRNNCarry
    ) -> tuple[SimpleRNNCarry, jax.Array]:
        """Compute the new state by the equations of the class."""
        units, own = self.hidden_size, {name: p.astype(x.dtype) for name, p in params.items()}
        delta, u, b, c = jnp.split(x, [units, 2 * units, 2 * units + self.state_size], axis=-1)
        delta = jax.nn.softplus(delta + own["step_bias"])
        # Delta > 0 and e^a > 0 for all parameters, so a state decays, as CONTRACTING promises.
        keeps = jnp.exp(-delta[..., None] * jnp.exp(own["log_decay"]))
        # Matrix products: on a CPU a step takes 0.6 to 0.7 of the time. On a GPU and a TPU, XLA
        # makes the same of multiplications and sums. In full precision: a TPU would round the
        # operands to bfloat16, the state among them.
        einsum = functools.partial(jnp.einsum, precision="highest")
        state = keeps * carry.hidden + einsum("...k,...n->...kn", delta * u, b)
        return SimpleRNNCarry(state), einsum("...kn,...n->...k", state, c) + own["skip"] * u
