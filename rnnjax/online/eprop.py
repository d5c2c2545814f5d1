"""Eligibility propagation."""

import dataclasses

from rnnjax.cells.arguments import brief
from rnnjax.online.influence import Influence
from rnnjax.online.learner import Learner
from rnnjax.online.units import Units, why_not_unitwise


@dataclasses.dataclass(frozen=True)
class EProp(Learner):
    r"""E-prop (Bellec et al., 2020): eligibility traces, and the learning signal of the moment.

    .. math::
        \epsilon_t &= \frac{\partial s_t}{\partial w}
            + \frac{\partial s_t}{\partial s_{t-1}}\Big|_{h_{t-1} U} \epsilon_{t-1} \\
        \frac{dE}{dw} &\approx \sum_t \frac{\partial E}{\partial y_t} \,
            \frac{\partial y_t}{\partial (w, s_{t-1})} (1, \epsilon_{t-1})

    with the recurrent product :math:`h_{t-1} U` held constant: the trace of a parameter follows the
    memory inside its unit, in an LSTM :math:`\epsilon_t = f_t \epsilon_{t-1} + \partial c_t /
    \partial w`, and no recurrent connection, not even that of the unit with itself.

    **Not exact**, and biased: later effects count through the memory of the unit alone, and the
    learning signal knows no later loss. The gradient of a step's output by the parameters of that
    step is exact. For each row of the batch, :math:`\epsilon` has as many numbers as the parameters
    times the number of leaves of the carry.

    ``pull`` takes the learning signal: :math:`\partial E / \partial y_t` ("symmetric"), or the
    error times random weights ("random").

    Args:
        cell: one with a recurrent product, whose coupling is `rnnjax.Coupling.ELEMENTWISE` or more,
            and of whose parameters entry ``k`` belongs to unit ``k % hidden_size``, as where gates
            stand side by side: `LSTMCell`, `GRUCell`, `PeepholeLSTMCell`.

    Raises:
        InvalidInputError: the cell declares no such coupling, or there is no product, where `RTRL`
            is exact; or the cell is made of others, or has a step of its own.

    >>> import jax, jax.numpy as jnp, rnnjax
    >>> learner = EProp(rnnjax.LSTMCell(5))
    >>> params = learner.cell.init(jax.random.key(0), input_size=3)
    >>> state = learner.init(params, (8,))
    >>> for x in jnp.ones((10, 8, 3)):
    ...     state, y, pull = learner.step(params, state, x)
    >>> gradients = pull(y - 1)  # of half the squared distance of the last output from 1
    >>> [trace.shape for trace in state.influence["kernel"]]  # of hidden and cell
    [(8, 3, 4, 5), (8, 3, 4, 5)]
    """

    def refusal(self) -> str | None:
        """Whether the update mixes units, or there is no recurrent product."""
        reason = why_not_unitwise(self.cell)
        if reason:
            return f"{reason}; take RTRL(cell, dense=True) or UORO(cell)"
        if self.cell.recurrent is None:
            return f"{brief(self.cell)} has no recurrent product to hold still; take RTRL, exact"
        return None

    @property
    def influence(self) -> Influence:
        """Eligibility traces: the influence of each parameter through the memory of its unit."""
        return Units(self.cell, own=False)
