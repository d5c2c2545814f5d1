"""The gated delta network, with one matrix memory per head."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rnnjax.cells.activations import Initializer
from rnnjax.cells.base import Param, Params, Role
from rnnjax.cells.heads import MatrixCell, in_heads
from rnnjax.cells.initializers import softplus_steps
from rnnjax.cells.mamba2 import spread_decays
from rnnjax.cells.matrix import MatrixCarry, Memory, joined


@dataclasses.dataclass(frozen=True)
class GatedDeltaNetCell(MatrixCell[MatrixCarry]):
    r"""Gated DeltaNet (Yang, Kautz & Hatamizadeh, 2025): a write first erases the key's old value.

    .. math::
        q, k, v, r, a, \beta &= \text{split}(x W), \qquad \beta = \sigma(\beta) \\
        q, k &= \text{unit}(\text{silu}(q)), \text{unit}(\text{silu}(k)), \qquad
            v = \text{silu}(v) \\
        \alpha &= \exp(-e^c \, \text{softplus}(a + b)) \\
        S' &= \alpha S \, (I - \beta k k^\top) + \beta \, v k^\top \\
        y &= \text{silu}(r) \odot g \odot \text{norm}(S' q)

    for each head. A head has vectors :math:`q, k` of ``key_size``, its part of :math:`v, r`, and
    scalars :math:`a, \beta, b, c`. unit divides by the length, norm by the root mean square of the
    head. :math:`W` = ``kernel (input_size, 2 * heads * key_size + 2 * hidden_size + 2 * heads)``,
    in that order, :math:`b` = ``step_bias (heads,)``, :math:`c` = ``log_decay (heads,)`` and
    :math:`g` = ``gain (hidden_size / heads,)``. The carry is `MatrixCarry`, :math:`S` = ``memory
    (*batch, heads, hidden_size / heads, key_size)``. (The paper's block has a short convolution
    before q, k and v, and an output projection.)

    Args:
        hidden_size: the number of outputs.
        heads: the number of memories, which divides ``hidden_size``.
        key_size: the size of each key; by default ``hidden_size / heads``.
        epsilon: added to the squares of lengths and norms.
        negative_eigenvalues: whether :math:`\beta = 2 \sigma(\beta)`, so that :math:`I - \beta k
            k^\top` may reflect: a layer can then track parity (Grazzi et al., 2025).
        log_decay_init: initialiser of ``log_decay``; by default :math:`e^c` is between 1 and 16.
        step_bias_init: initialiser of ``step_bias``; by default softplus makes it 0.001 to 0.1.

    Arguments that are not listed are those of `LSTMCell`.

    Raises:
        InvalidInputError: ``heads`` do not divide ``hidden_size``; or as `LSTMCell`.

    >>> cell = GatedDeltaNetCell(hidden_size=48, heads=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> carry, y = cell.step(params, cell.initial_carry((8,)), jnp.ones((8, 3)))
    >>> params["kernel"].shape, carry.memory.shape, y.shape
    ((3, 200), (8, 4, 12, 12), (8, 48))
    """

    _: dataclasses.KW_ONLY
    key_size: int | None = None
    epsilon: float = 1e-5
    negative_eigenvalues: bool = False
    log_decay_init: str | Initializer = spread_decays
    step_bias_init: str | Initializer = softplus_steps
    kernel_init: str | Initializer = "glorot_uniform"
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    gates = "q", "k", "v", "r", "a", "beta"

    def parameters(self, input_size: int) -> dict[str, Param]:
        """Declare ``kernel``, ``step_bias``, ``log_decay`` and ``gain``."""
        return {
            "kernel": Param((input_size, sum(self.widths)), self.kernel_init, Role.INPUT),
            "step_bias": Param((self.heads,), self.step_bias_init),
            "log_decay": Param((self.heads,), self.log_decay_init),
            "gain": Param((self.hidden_size // self.heads,), "ones"),
        }

    def memory(self, params: Params, x: jax.Array) -> Memory:
        """Compute the step by the first four equations of the class."""
        q, k, v, _, a, beta = self.parts(x)
        q, k, v = (in_heads(jax.nn.silu(part), self.heads) for part in (q, k, v))
        step = jax.nn.softplus(a + params["step_bias"].astype(x.dtype))
        # Minus a product of two positive numbers, so alpha < 1 for all parameters. It stays a
        # logarithm: the decay between two steps is the exponential of a sum, where a quotient of
        # products of alpha would be 0 / 0 as soon as these underflow.
        log_decay = -jnp.exp(params["log_decay"].astype(x.dtype)) * step
        # With s the sum of squares of silu(k), |k|^2 = s / (s + epsilon) < 1. So I - beta k k^T has
        # the eigenvalue 1 - beta |k|^2 along k, which lies between 0 and 1, or between -1 and 1 for
        # a beta up to 2, and the eigenvalue 1 across k: erasing never makes a memory grow.
        beta = (1 + self.negative_eigenvalues) * jax.nn.sigmoid(beta)
        return Memory(self._unit(q), self._unit(k), v, log_decay, beta=beta, erase=beta)

    def recall(self, params: Params, x: jax.Array, read: jax.Array, stabilizer: Any) -> jax.Array:
        """Compute the output by the last equation of the class."""
        norm = read * jax.lax.rsqrt(jnp.square(read).mean(-1, keepdims=True) + self.epsilon)
        return jax.nn.silu(self.parts(x)[3]) * joined(norm * params["gain"].astype(x.dtype))

    def _unit(self, x: jax.Array) -> jax.Array:
        # Epsilon stands inside the root: x / |x| has no value at 0, and a NaN for its gradient.
        return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + self.epsilon)
