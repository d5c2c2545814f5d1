"""The simple recurrent network of Elman."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
from jax.export import register_namedtuple_serialization
from jax.typing import DTypeLike

from rnnjax.cells.activations import activate_gates
from rnnjax.cells.base import Params
from rnnjax.cells.dense import DenseCell


class SimpleRNNCarry(NamedTuple):
    """The state of a `SimpleRNNCell`: ``hidden (*batch, hidden_size)``."""

    hidden: jax.Array


register_namedtuple_serialization(SimpleRNNCarry, serialized_name="rnnjax.SimpleRNNCarry")


@dataclasses.dataclass(frozen=True)
class SimpleRNNCell(DenseCell):
    r"""Simple recurrent network (J. L. Elman, "Finding structure in time", 1990).

    .. math::
        h' = \tanh(x W + h U + b), \qquad y = h'

    with :math:`W` = ``kernel (input_size, hidden_size)``, :math:`U` = ``recurrent_kernel
    (hidden_size, hidden_size)`` and :math:`b` = ``bias (hidden_size,)``. Defaults are those of
    Keras's ``SimpleRNN``. For the arguments see `DenseCell`.

    >>> cell = SimpleRNNCell(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> carry, y = cell.step(params, cell.initial_carry((8,)), jax.numpy.ones((8, 3)))
    >>> y.shape
    (8, 4)
    """

    num_gates: ClassVar[int] = 1
    one_piece: ClassVar[bool] = True

    def initial_carry(
        self, batch_shape: tuple[int, ...] = (), dtype: DTypeLike | None = None
    ) -> SimpleRNNCarry:
        """Zeros: ``hidden (*batch_shape, hidden_size)``."""
        return SimpleRNNCarry(self.zeros(batch_shape, dtype))

    def update(self, params: Params, x: jax.Array, carry: SimpleRNNCarry) -> SimpleRNNCarry:
        """``h'`` is the activated sum."""
        return SimpleRNNCarry(activate_gates(x, (self.activation,)))
