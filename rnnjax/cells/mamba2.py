"""The state space of Mamba-2, with one decay per head."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rnnjax.cells.activations import Initializer
from rnnjax.cells.base import Param, Params, Role
from rnnjax.cells.heads import MatrixCell, in_heads
from rnnjax.cells.initializers import softplus_steps
from rnnjax.cells.matrix import MatrixCarry, Memory, joined


def spread_decays(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Sample the logarithms of numbers uniform between 1 and 16 (Dao & Gu, 2024)."""
    # With the usual steps of 0.001 to 0.1, states decay within 0.6 to 1,000 steps.
    return jnp.log(jax.random.uniform(key, shape, dtype, 1, 16))


@dataclasses.dataclass(frozen=True)
class Mamba2Cell(MatrixCell[MatrixCarry]):
    r"""Mamba-2's state space (SSD: Dao & Gu, 2024): one decay for each head.

    .. math::
        \Delta, u, B, C &= \text{split}(x W), \qquad \Delta = \text{softplus}(\Delta + b) \\
        S' &= \exp(-\Delta e^a) \, S + \Delta \, u B^\top \\
        y &= S' C + d \, u

    for each head. A head has scalars :math:`\Delta, b, a, d` and its part of :math:`u`; all heads
    share :math:`B, C`. :math:`W` = ``kernel (input_size, heads + hidden_size + 2 * state_size)``,
    in the order :math:`\Delta, u, B, C`, :math:`b` = ``step_bias (heads,)``, :math:`a` =
    ``log_decay (heads,)`` and :math:`d` = ``skip (heads,)``. The carry is `MatrixCarry`,
    :math:`S` = ``memory (*batch, heads, hidden_size / heads, state_size)``. (The paper's block adds
    a short convolution before :math:`u, B, C`, and a gate and a norm after the output.)

    Args:
        hidden_size: the number of channels, and of outputs.
        heads: the number of memories, which divides ``hidden_size``.
        state_size: the number of states of each channel.
        log_decay_init: initialiser of ``log_decay``; by default :math:`e^a` is between 1 and 16.
        step_bias_init: initialiser of ``step_bias``; by default steps of 0.001 to 0.1.
        skip_init: initialiser of ``skip``.

    Arguments that are not listed are those of `LSTMCell`.

    Raises:
        InvalidInputError: ``heads`` do not divide ``hidden_size``; or as `LSTMCell`.

    >>> cell = Mamba2Cell(hidden_size=48, heads=4, state_size=5)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> carry, y = cell.step(params, cell.initial_carry((8,)), jnp.ones((8, 3)))
    >>> params["kernel"].shape, carry.memory.shape, y.shape
    ((3, 62), (8, 4, 12, 5), (8, 48))
    """

    _: dataclasses.KW_ONLY
    state_size: int = 64
    log_decay_init: str | Initializer = spread_decays
    step_bias_init: str | Initializer = softplus_steps
    skip_init: str | Initializer = "ones"
    kernel_init: str | Initializer = "glorot_uniform"
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    gates = "delta", "u", "b", "c"

    @property
    def keys(self) -> int:
        """The size of each key, which is ``state_size``."""
        return self.state_size

    @property
    def widths(self) -> list[int]:
        """The sizes of the parts of ``x W``."""
        return [self.heads, self.hidden_size, self.state_size, self.state_size]

    def parameters(self, input_size: int) -> dict[str, Param]:
        """Declare ``kernel``, ``step_bias``, ``log_decay`` and ``skip``."""
        return {
            "kernel": Param((input_size, sum(self.widths)), self.kernel_init, Role.INPUT),
            "step_bias": Param((self.heads,), self.step_bias_init),
            "log_decay": Param((self.heads,), self.log_decay_init),
            "skip": Param((self.heads,), self.skip_init),
        }

    def memory(self, params: Params, x: jax.Array) -> Memory:
        """Compute the step by the first two equations of the class."""
        delta, u, b, c = self.parts(x)
        delta = jax.nn.softplus(delta + params["step_bias"].astype(x.dtype))
        # Delta > 0 and e^a > 0, so no state grows. All heads share B and C, as keys and queries
        # with one head, so their products are made once.
        log_decay = -delta * jnp.exp(params["log_decay"].astype(x.dtype))
        u = in_heads(u, self.heads)
        return Memory(c[..., None, :], b[..., None, :], u, log_decay, beta=delta)

    def recall(self, params: Params, x: jax.Array, read: jax.Array, stabilizer: Any) -> jax.Array:
        """Compute the output by the third equation of the class."""
        u = in_heads(self.parts(x)[1], self.heads)
        y = read + params["skip"].astype(x.dtype)[:, None] * u
        return joined(y)
