"""Real-time recurrent learning."""

import dataclasses

from rnnjax.cells.arguments import check_flag
from rnnjax.online.dense import Dense
from rnnjax.online.influence import Influence
from rnnjax.online.learner import Learner
from rnnjax.online.units import Units, why_not_unitwise


@dataclasses.dataclass(frozen=True)
class RTRL(Learner):
    r"""Real-time recurrent learning (Williams & Zipser, 1989): the exact gradient, going forward.

    .. math::
        J_t &= \frac{\partial s_t}{\partial w} + \frac{\partial s_t}{\partial s_{t-1}} J_{t-1} \\
        \frac{\partial L_t}{\partial w} &= \frac{\partial L_t}{\partial w}\Big|_{s_{t-1}}
            + \frac{\partial L_t}{\partial s_{t-1}} J_{t-1}

    with the state :math:`s_t`, the parameters :math:`w`, and :math:`J_0 = 0`. The sum over the
    steps is what backpropagation through time computes, **exactly**, as long as the parameters
    stand still. Where each step updates them, :math:`J` still has of each step what the parameters
    of that step did, as in the paper, so updates have to be small.

    Where units do not see each other (`IndRNNCell`, `MinGRUCell`, `LRUCell`, `DiagonalLSTMCell` and
    others of their families) each parameter influences its own unit alone (Zucchet et al., 2023),
    and :math:`J` has, for each row of the batch, the numbers of the parameters times the leaves of
    the carry. That is derived from the cell's update by `jax.jvp`. Where a product mixes units each
    parameter influences each of them: state times parameters for each row, and a product of
    matrices of that size at each step. That is for small networks, so it has to be asked for.

    Args:
        cell: one without a recurrent product, whose coupling is `rnnjax.Coupling.ELEMENTWISE` or
            more, and of whose parameters entry ``k`` belongs to unit ``k % hidden_size``, as where
            gates stand side by side; with ``dense`` any whose step runs row by row, a `Stack` too.
        dense: whether to keep the influence of each parameter on each unit.

    Raises:
        InvalidInputError: the cell is none of these, and ``dense`` is not given; or it looks back
            on a memory, draws random numbers or is a convolution.

    ``pull`` is called where it was made. A loop that never stores a sequence, with one update a
    step:

    >>> import jax, jax.numpy as jnp, rnnjax
    >>> learner = RTRL(rnnjax.MinGRUCell(5))
    >>> params = learner.cell.init(jax.random.key(0), input_size=3)
    >>> def update(both, at):
    ...     (params, state), (x, target) = both, at
    ...     state, y, pull = learner.step(params, state, x)
    ...     gradients = pull(y - target)
    ...     params = jax.tree.map(lambda p, g: p - 0.01 * g, params, gradients)
    ...     return (params, state), jnp.square(y - target).mean()
    >>> xs, targets = jnp.ones((100, 8, 3)), jnp.zeros((100, 8, 5))
    >>> both = params, learner.init(params, (8,))
    >>> (params, state), errors = jax.lax.scan(update, both, (xs, targets))
    >>> bool(errors[-1] < errors[5])
    True
    >>> state.influence["kernel"][0].shape  # (batch, inputs, gates, units)
    (8, 3, 2, 5)
    """

    dense: bool = dataclasses.field(default=False, kw_only=True)

    def refusal(self) -> str | None:
        """Units that see each other, unless all of the influence is asked for."""
        check_flag("dense", self.dense)
        if self.dense:
            return None
        reason = why_not_unitwise(self.cell)
        if reason is None and self.cell.recurrent is not None:
            reason = "its units see each other's state in a product"
        advice = (
            "give dense=True, which keeps a number for each pair of a parameter and a unit, or "
            "take SnAp1 or UORO"
        )
        return reason and f"{reason}; {advice}"

    @property
    def influence(self) -> Influence:
        """Of each parameter on the units that it touches, or on all."""
        return Dense(self.cell) if self.dense else Units(self.cell)
