"""The matrix memory of the xLSTM: exponential gates and heads."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rnnjax.cells.activations import Initializer, get_initializer
from rnnjax.cells.base import Param, Params, Role, declared
from rnnjax.cells.heads import MatrixCell, in_heads
from rnnjax.cells.matrix import Memory, StabilizedCarry, joined


@dataclasses.dataclass(frozen=True)
class MLSTMCell(MatrixCell[StabilizedCarry]):
    r"""mLSTM, the matrix memory of the xLSTM (Beck et al., 2024): exponential gates, and heads.

    .. math::
        q, k, v, o, i, f &= \text{split}(x W + b) \\
        C' &= \sigma(f) \, C + e^i \, v \, (k / \sqrt{d})^\top \\
        n' &= \sigma(f) \, n + e^i \, k / \sqrt{d} \\
        y &= \sigma(o) \odot \frac{C' q}{\max(|n' \cdot q|, 1)}

    for each head. A head has vectors :math:`q, k` of :math:`d` = ``key_size``, its part of
    :math:`v, o`, and scalars :math:`i, f`. :math:`W` = ``kernel (input_size, 2 * heads * key_size +
    2 * hidden_size + 2 * heads)`` and :math:`b` = ``bias``, in the order q, k, v, o, i, f. The
    carry is `StabilizedCarry`. Its ``memory (*batch, heads, hidden_size / heads + 1, key_size)`` is
    :math:`C` with :math:`n` as its last row, both divided by the exponential of ``stabilizer
    (*batch, heads)``. (The authors' blocks also normalise each head's output, and have a short
    convolution before q and k.)

    Args:
        hidden_size: the number of outputs.
        heads: the number of memories, which divides ``hidden_size``.
        key_size: the size of each key; by default ``hidden_size / heads``.
        exponential_forget: whether the forget gate is an exponential too, instead of
            :math:`\sigma`.
        bias_init: initialiser of ``bias``, except for the forget gates, spread from 3 to 6.

    Arguments that are not listed are those of `LSTMCell`.

    Raises:
        InvalidInputError: ``heads`` do not divide ``hidden_size``; or as `LSTMCell`.

    >>> cell = MLSTMCell(hidden_size=48, heads=4, key_size=6)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> carry, y = cell.step(params, cell.initial_carry((8,)), jnp.ones((8, 3)))
    >>> params["kernel"].shape, carry.memory.shape, y.shape
    ((3, 152), (8, 4, 13, 6), (8, 48))
    """

    _: dataclasses.KW_ONLY
    key_size: int | None = None
    exponential_forget: bool = False
    use_bias: bool = True
    kernel_init: str | Initializer = "glorot_uniform"
    bias_init: str | Initializer = "zeros"
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    carry = StabilizedCarry
    gates = "q", "k", "v", "o", "i", "f"

    @declared
    def carry_shapes(self) -> dict[str, tuple[int, ...]]:
        """Declare ``memory``, whose last row is the normaliser, and ``stabilizer``."""
        rows = self.hidden_size // self.heads + 1
        return {"memory": (self.heads, rows, self.keys), "stabilizer": (self.heads,)}

    def parameters(self, input_size: int) -> dict[str, Param]:
        """Declare the parameters ``kernel`` and ``bias``."""
        width = sum(self.widths)
        params = {"kernel": Param((input_size, width), self.kernel_init, Role.INPUT)}
        if self.use_bias:
            params["bias"] = Param((width,), self._forgets_little, Role.BIAS)
        return params

    def _forgets_little(self, key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        # 1 / (1 - sigmoid(3)) = 21 and 1 / (1 - sigmoid(6)) = 400: heads forget within these steps.
        drawn = get_initializer(self.bias_init)(key, shape, dtype)
        return drawn.at[-self.heads :].set(jnp.linspace(3, 6, self.heads, dtype=dtype))

    def memory(self, params: Params, x: jax.Array) -> Memory:
        """Declare the second equation, and the third as one more value, always 1."""
        q, k, v, _, i, f = self.parts(x)
        q, k, v = (in_heads(part, self.heads) for part in (q, k, v))
        ones = jnp.ones_like(v[..., :1])
        # log sigmoid(f) itself: the logarithm of a sigmoid that rounds to 0 would be -inf.
        f = f if self.exponential_forget else jax.nn.log_sigmoid(f)
        value = jnp.concatenate([v, ones], axis=-1)
        return Memory(q, k / math.sqrt(self.keys), value, log_decay=f, log_beta=i)

    def recall(self, params: Params, x: jax.Array, read: jax.Array, stabilizer: Any) -> jax.Array:
        """Compute the output by the fourth equation of the class."""
        # What is stored lacks the factor e^m: C q = e^m r and n q = e^m s, so
        #     C q / max(|n q|, 1) = r / max(|s|, e^-m).
        # Both sides times e^min(m, 0) make e^-m to e^-max(m, 0), which cannot overflow.
        read = read * jnp.exp(jnp.minimum(stabilizer, 0))[..., None]
        # For a large m that rounds to 0, and s may be 0 too.
        least = jnp.exp(-jnp.maximum(stabilizer, 0))
        least = jnp.maximum(least, jnp.finfo(read.dtype).tiny)
        found = read[..., :-1] / jnp.maximum(jnp.abs(read[..., -1]), least)[..., None]
        return jax.nn.sigmoid(self.parts(x)[3]) * joined(found)
