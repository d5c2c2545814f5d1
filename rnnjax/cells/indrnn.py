"""Independently recurrent neural network."""

import dataclasses
from typing import ClassVar

import jax
from jax.typing import DTypeLike

from rnnjax.cells.activations import Activation, Initializer, get_activation
from rnnjax.cells.base import Params
from rnnjax.cells.projected import ElementwiseCell
from rnnjax.cells.simple import SimpleRNNCarry


@dataclasses.dataclass(frozen=True)
class IndRNNCell(ElementwiseCell):
    r"""Independently recurrent neural network (Li et al., 2018): units see their own past alone.

    .. math::
        h' = \text{relu}(x W + u \odot h + b), \qquad y = h'

    with :math:`W` = ``kernel (input_size, hidden_size)``, :math:`u` = ``recurrent_kernel
    (hidden_size,)`` and :math:`b` = ``bias (hidden_size,)``. Over :math:`T` steps the gradient
    stays bounded where :math:`|u| \le \gamma^{1/T}` for a small :math:`\gamma` above 1.

    Args:
        activation: ``"relu"`` unless given.
        recurrent_kernel_init: of ``recurrent_kernel``; the paper's is uniform in [0, 1).

    For the other arguments see `ProjectedCell`.

    >>> cell = IndRNNCell(hidden_size=50)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> {name: array.shape for name, array in params.items()}
    {'kernel': (3, 50), 'bias': (50,), 'recurrent_kernel': (50,)}
    >>> carry, y = cell.step(params, cell.initial_carry((8,)), jax.numpy.ones((8, 3)))
    >>> carry.hidden.shape, y.shape
    ((8, 50), (8, 50))
    """

    activation: str | Activation = dataclasses.field(default="relu", kw_only=True)
    recurrent_kernel_init: str | Initializer = dataclasses.field(
        default="unit_uniform", kw_only=True
    )

    num_gates: ClassVar[int] = 1

    def init(self, key: jax.Array, input_size: int) -> dict[str, jax.Array]:
        """Draw ``kernel``, ``bias`` and ``recurrent_kernel``."""
        params = super().init(key, input_size)
        _, recurrent_key, _ = jax.random.split(key, 3)
        params["recurrent_kernel"] = self.draw(
            self.recurrent_kernel_init, recurrent_key, (self.hidden_size,)
        )
        return params

    def initial_carry(
        self, batch_shape: tuple[int, ...] = (), dtype: DTypeLike | None = None
    ) -> SimpleRNNCarry:
        """Zeros: ``hidden (*batch_shape, hidden_size)``."""
        return SimpleRNNCarry(self.zeros(batch_shape, dtype))

    def update(self, params: Params, x: jax.Array, carry: SimpleRNNCarry) -> SimpleRNNCarry:
        """The equation of the class."""
        recurrent = params["recurrent_kernel"].astype(carry.hidden.dtype) * carry.hidden
        return SimpleRNNCarry(get_activation(self.activation)(x + recurrent))
