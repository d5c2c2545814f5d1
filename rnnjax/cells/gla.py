"""Gated linear attention."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rnnjax.cells.activations import Initializer
from rnnjax.cells.base import Param, Params
from rnnjax.cells.heads import MatrixCell, in_heads, normalized, parts, projections
from rnnjax.cells.matrix import MatrixCarry, Memory, joined


@dataclasses.dataclass(frozen=True)
class GLACell(MatrixCell[MatrixCarry]):
    r"""Gated linear attention (Yang et al., 2024): a matrix whose keys decay, each by itself.

    .. math::
        q, k, a, v, r &= \text{split}(x W + b) \\
        S' &= S \, \text{diag}(\sigma(a)^{1/16}) + v k^\top \\
        y &= \text{silu}(r) \odot g \odot \text{norm}(S' q / \sqrt{d})

    for each head, which has a vector :math:`q, k, a` of :math:`d` = ``key_size`` and its part of
    :math:`v, r`; norm divides by the root of the mean of a head's squares. :math:`W` = ``kernel
    (input_size, 3 * heads * key_size + 2 * hidden_size)`` and :math:`b` = ``bias``, in the order q,
    k, a, v, r, and :math:`g` = ``gain (hidden_size / heads,)``. The carry is `MatrixCarry`,
    :math:`S` = ``memory (*batch, heads, hidden_size / heads, key_size)``. (In the paper the
    part of the kernel for :math:`a` is a product of two, and another product follows.)

    Args:
        hidden_size: the number of outputs.
        heads: the number of memories, which divides ``hidden_size``.
        key_size: of the keys of each; left out, half of ``hidden_size / heads``, rounded up.
        temperature: what the logarithm of a decay is divided by: 16.
        epsilon: added to the mean of the squares.
        use_bias: whether there is a bias.
        kernel_init: initialiser of ``kernel``, by name or as ``(key, shape, dtype) -> array``.
        bias_init: the same of the bias.
        dtype: of the operands of the matrix products and of the outputs. With None the products run
            in the promoted type of input and parameters, and outputs have the type of the carry.
            Sums are in float32 at least, and the carry stays float32: ``dtype=jnp.bfloat16`` does
            not make the state forget.
        param_dtype: of the parameters that `init` draws.

    Raises:
        InvalidInputError: a hyperparameter is of the wrong type, or no name that is known, or
            ``heads`` do not divide ``hidden_size``.

    >>> cell = GLACell(hidden_size=48, heads=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> carry, y = cell.step(params, cell.initial_carry((8,)), jnp.ones((8, 3)))
    >>> params["kernel"].shape, carry.memory.shape, y.shape
    ((3, 168), (8, 4, 12, 6), (8, 48))
    """

    _: dataclasses.KW_ONLY
    key_size: int | None = None
    temperature: float = 16.0
    epsilon: float = 1e-5
    use_bias: bool = True
    kernel_init: str | Initializer = "glorot_uniform"
    bias_init: str | Initializer = "zeros"
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    gates = "q", "k", "a", "v", "r"

    @property
    def keys(self) -> int:
        """The size of each key."""
        return -(-self.hidden_size // (2 * self.heads)) if self.key_size is None else self.key_size

    @property
    def _widths(self) -> list[int]:
        return [*[self.heads * self.keys] * 3, self.hidden_size, self.hidden_size]

    def parameters(self, input_size: int) -> dict[str, Param]:
        """``kernel``, ``bias`` and ``gain``."""
        gain = Param((self.hidden_size // self.heads,), "ones")
        return projections(self, input_size, self._widths, self.bias_init) | {"gain": gain}

    def memory(self, params: Params, x: jax.Array) -> Memory:
        """The second equation of the class."""
        q, k, a, v = (in_heads(part, self.heads) for part in parts(x, self._widths)[:4])
        log_decay = jax.nn.log_sigmoid(a) / self.temperature
        return Memory(q / math.sqrt(self.keys), k, v, log_decay)

    def recall(self, params: Params, x: jax.Array, read: jax.Array, stabilizer: Any) -> jax.Array:
        """The third."""
        found = normalized(read, self.epsilon) * params["gain"].astype(x.dtype)
        return jax.nn.silu(parts(x, self._widths)[4]) * joined(found)
