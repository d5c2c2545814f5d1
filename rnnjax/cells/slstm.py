"""The scalar memory of the xLSTM: exponential gates and heads."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from rnnjax.cells.activations import (
    RESIDUAL,
    Activation,
    Initializer,
    activate_gates,
    get_initializer,
)
from rnnjax.cells.base import Cell, Param, Params, Role, exportable
from rnnjax.cells.heads import check_heads


@exportable
class SLSTMCarry(NamedTuple):
    """The state of an `SLSTMCell`: four arrays ``(*batch, hidden_size)``.

    ``normalizer`` sums the same weights as ``cell``, without the candidates, and is never negative.
    Both are divided by the exponential of ``stabilizer``. So these three depend on each other.
    """

    hidden: jax.Array
    cell: jax.Array
    normalizer: jax.Array
    stabilizer: jax.Array

    @property
    def free(self) -> tuple[str, ...]:
        """The leaves that may hold arbitrary numbers: learned or mixed with old ones."""
        return ("hidden",)


@dataclasses.dataclass(frozen=True)
class SLSTMCell(Cell[SLSTMCarry]):
    r"""sLSTM, the scalar memory of the xLSTM (Beck et al., 2024): exponential gates, and heads.

    .. math::
        i, f, z, o &= x W + b + h U \\
        z &= \tanh(z), \qquad o = \sigma(o), \qquad f = \log \sigma(f) \\
        m' &= \max(f + m, i) \\
        c' &= e^{f + m - m'} c + e^{i - m'} z \\
        n' &= e^{f + m - m'} n + e^{i - m'} \\
        h' &= o \, c' / n', \qquad y = h'

    with :math:`m' = i` at the start of a sequence, where :math:`n` is 0. :math:`W` = ``kernel
    (input_size, 4 * hidden_size)`` and :math:`b` = ``bias (4 * hidden_size,)``, in the order
    i, f, z, o. :math:`U` is block-diagonal, with one block per head. The blocks side by side are
    ``recurrent_kernel (hidden_size / heads, 4 * hidden_size)``, the gates of each in that order.
    The carry is `SLSTMCarry`, :math:`h, c, n, m`.

    Args:
        heads: the number of blocks, which divides ``hidden_size``.
        exponential_forget: whether the forget gate is an exponential too, without
            :math:`\log \sigma`.
        activation: the activation of the candidate z, by name or as a callable.
        recurrent_kernel_init: initialiser of ``recurrent_kernel``, applied to each head.
        bias_init: initialiser of ``bias``. The authors' code spreads the entries of f over units.

    Arguments that are not listed are those of `LSTMCell`.

    Raises:
        InvalidInputError: ``heads`` do not divide ``hidden_size``; or as `LSTMCell`.

    >>> cell = SLSTMCell(hidden_size=48, heads=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> carry, y = cell.step(params, cell.initial_carry((8,)), jnp.ones((8, 3)))
    >>> params["recurrent_kernel"].shape, carry.normalizer.shape, y.shape
    ((12, 192), (8, 48), (8, 48))
    """

    hidden_size: int
    _: dataclasses.KW_ONLY
    heads: int = 1
    exponential_forget: bool = False
    activation: str | Activation = "tanh"
    use_bias: bool = True
    kernel_init: str | Initializer = "glorot_uniform"
    recurrent_kernel_init: str | Initializer = "orthogonal"
    bias_init: str | Initializer = "zeros"
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    carry = SLSTMCarry
    gates = "i", "f", "z", "o"
    recurrent = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_heads(self)

    def parameters(self, input_size: int) -> dict[str, Param]:
        """Declare the parameters ``kernel``, ``bias`` and ``recurrent_kernel``."""
        shape = (self.hidden_size // self.heads, 4 * self.hidden_size)
        recurrent = Param(shape, self._by_head, Role.LOOP)
        return super().parameters(input_size) | {"recurrent_kernel": recurrent}

    def _by_head(self, key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        draw, block = get_initializer(self.recurrent_kernel_init), (shape[0], 4 * shape[0])
        keys = jax.random.split(key, self.heads)
        return jnp.concatenate([draw(key, block, dtype) for key in keys], axis=-1)

    def update(self, params: Params, x: jax.Array, carry: SLSTMCarry) -> SLSTMCarry:
        """Compute the new state by the equations of the class."""
        h, c, n, m = carry
        width = 4 * self.hidden_size // self.heads
        kernels = params["recurrent_kernel"].split(*range(width, 4 * self.hidden_size, width))
        heads = zip(jnp.split(h, self.heads, axis=-1), kernels, strict=True)
        # Each head's sums are (4 gates, its units); stacked before the units they are (4, heads,
        # units of a head), which in row-major order are the gates side by side, as in x.
        blocks = [(own @ u).reshape(*h.shape[:-1], 4, width // 4) for own, u in heads]
        sums = x + jnp.stack(blocks, axis=-2).reshape(x.shape)
        exponents, zo = jnp.split(sums, 2, axis=-1)
        # Saved, or the backward pass would multiply again.
        i, f = jnp.split(checkpoint_name(exponents, RESIDUAL), 2, axis=-1)
        z, o = jnp.split(activate_gates(zo, (self.activation, "sigmoid")), 2, axis=-1)
        f = f if self.exponential_forget else jax.nn.log_sigmoid(f)
        # At the start of a sequence m is 0, and not the size of anything: for i below -100 the new
        # weight e^(i - m') would be 0, and c / n NaN.
        kept = jnp.where(n == 0, i, f + m)
        stabilizer = jnp.maximum(kept, i)
        # m' = max(f + m, i), so e^(f + m - m') <= 1 and e^(i - m') <= 1, and one of them is 1.
        # Either i - m' = 0, and n' >= 1, or f + m - m' = 0, and n' >= n. So n >= 1 after the first
        # step, and |c / n| <= 1 for |z| <= 1, as c is the sum of the same weights times z. What m
        # does not bound is n itself, which may grow by 1 in each step.
        keeps, lets_in = jnp.exp(kept - stabilizer), jnp.exp(i - stabilizer)
        c, n = keeps * c + lets_in * z, keeps * n + lets_in
        return SLSTMCarry(o * c / n, c, n, stabilizer)
