"""The sparse n-step approximation, for n = 1."""

import dataclasses

from rnnjax.online.influence import Influence
from rnnjax.online.learner import Learner
from rnnjax.online.units import Units, why_not_unitwise


@dataclasses.dataclass(frozen=True)
class SnAp1(Learner):
    r"""SnAp-1 (Menick et al., 2021): the influence of a parameter on its own unit.

    .. math::
        J_t = M \odot \Big(\frac{\partial s_t}{\partial w}
            + \frac{\partial s_t}{\partial s_{t-1}} J_{t-1}\Big)

    with :math:`M` = 1 where a parameter reaches a unit in one step, and 0 elsewhere: a column of a
    kernel reaches one unit, in all leaves of the carry. Of :math:`\partial s_t / \partial s_{t-1}`
    this needs each unit's own block, with the diagonal of ``recurrent_kernel``.

    **Not exact**, and biased: what a unit does to others by the recurrent product, and gets back,
    is left out. The gradient of a step's output by the parameters of that step is exact. For a cell
    without a recurrent product nothing is left out, and it is `RTRL`. For each row of the
    batch, :math:`J` has as many numbers as the parameters times the number of leaves of the carry.

    Args:
        cell: one whose coupling is `rnnjax.Coupling.ELEMENTWISE` or more, after products that may
            mix units, and of whose parameters entry ``k`` belongs to unit ``k % hidden_size``, as
            where gates stand side by side: `LSTMCell`, `GRUCell`, `SimpleRNNCell` and others.

    Raises:
        InvalidInputError: the cell declares no such coupling, as one with a layer norm or a product
            in its update; or it is made of others, or has a step of its own.

    >>> import jax, jax.numpy as jnp, rnnjax
    >>> learner = SnAp1(rnnjax.GRUCell(5))
    >>> params = learner.cell.init(jax.random.key(0), input_size=3)
    >>> state = learner.init(params, (8,))
    >>> for x in jnp.ones((10, 8, 3)):
    ...     state, y, pull = learner.step(params, state, x)
    >>> gradients = pull(y - 1)  # of half the squared distance of the last output from 1
    >>> state.influence["recurrent_kernel"][0].shape, gradients["recurrent_kernel"].shape
    ((8, 5, 3, 5), (5, 15))
    """

    def refusal(self) -> str | None:
        """Whether the update mixes units."""
        reason = why_not_unitwise(self.cell)
        return reason and f"{reason}; take RTRL(cell, dense=True) or UORO(cell)"

    @property
    def influence(self) -> Influence:
        """The influence of each parameter on its own unit."""
        return Units(self.cell)
