"""The real-gated linear recurrent unit of Griffin."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rnnjax.cells.activations import Initializer
from rnnjax.cells.base import Cell, Coupling, Param, Params
from rnnjax.cells.simple import SimpleRNNCarry


def griffin_decays(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Sample ``decay`` so that an open gate retains 0.9 to 0.999 of a state (De et al., 2024).

    >>> decay = griffin_decays(jax.random.key(0), (100,), jnp.float32)
    >>> kept = jnp.exp(-8 * jax.nn.softplus(decay))
    >>> bool(kept.min() > 0.899), bool(kept.max() < 0.9991)
    (True, True)
    """
    # exp(-8 softplus(decay)) = a, so softplus(decay) = s = -log(a) / 8, and log(1 + e^x) = s has
    # the solution x = log(e^s - 1). By expm1, as s is 0.0001 to 0.013.
    return jnp.log(jnp.expm1(-jnp.log(jax.random.uniform(key, shape, dtype, 0.9, 0.999)) / 8))


@dataclasses.dataclass(frozen=True)
class RGLRUCell(Cell[SimpleRNNCarry]):
    r"""Real-gated linear recurrent unit (RG-LRU of Griffin: De et al., 2024).

    .. math::
        r, i, n &= \text{split}(x W + b), \qquad r, i = \sigma(r), \sigma(i) \\
        a &= \exp(-8 \, \text{softplus}(\Lambda) \, r) \\
        h' &= a h + \sqrt{1 - a^2} \, (i n), \qquad y = h'

    with :math:`W` = ``kernel (input_size, 3 * hidden_size)``, :math:`b` = ``bias (3 *
    hidden_size,)``, in the order r, i, n, and :math:`\Lambda` = ``decay (hidden_size,)``. (In the
    paper :math:`n` is the input itself, after a product in the block. The authors' code omits the
    root at the start of a sequence.)

    Args:
        decay_init: initialiser of ``decay``; by default :math:`a` is 0.9 to 0.999 where r is 1.

    Arguments that are not listed, and errors, are those of `LSTMCell`.

    >>> cell = RGLRUCell(hidden_size=50)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> carry, y = cell.step(params, cell.initial_carry((8,)), jnp.ones((8, 3)))
    >>> params["kernel"].shape, params["decay"].shape, y.shape
    ((3, 150), (50,), (8, 50))
    """

    hidden_size: int
    _: dataclasses.KW_ONLY
    decay_init: str | Initializer = griffin_decays
    use_bias: bool = True
    kernel_init: str | Initializer = "glorot_uniform"
    bias_init: str | Initializer = "zeros"
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    carry = SimpleRNNCarry
    gates = "r", "i", "n"
    coupling = Coupling.CONTRACTING
    recurrent = None

    def parameters(self, input_size: int) -> dict[str, Param]:
        """Declare the parameters ``kernel``, ``bias`` and ``decay``."""
        decay = Param((self.hidden_size,), self.decay_init)
        return super().parameters(input_size) | {"decay": decay}

    def update(self, params: Params, x: jax.Array, carry: SimpleRNNCarry) -> SimpleRNNCarry:
        """Compute the new state by the equations of the class."""
        r, i, n = jnp.split(x, 3, axis=-1)
        log_a = -8 * jax.nn.softplus(params["decay"].astype(x.dtype)) * jax.nn.sigmoid(r)
        # For i n of variance 1, independent of h, the state has the variance a^2 + (1 - a^2) = 1.
        # By expm1, because a rounds to 1 for -log a below 3e-8. The floor is not 0, where the root
        # has an infinite slope, which times the slope 0 of the maximum would be NaN.
        rest = jnp.maximum(-jnp.expm1(2 * log_a), jnp.finfo(x.dtype).tiny)
        lets_in = jnp.sqrt(rest) * jax.nn.sigmoid(i) * n
        return SimpleRNNCarry(jnp.exp(log_a) * carry.hidden + lets_in)
