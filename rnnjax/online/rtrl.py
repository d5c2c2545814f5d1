"""Real-time recurrent learning."""

import dataclasses

from rnnjax.cells.arguments import check_flag
from rnnjax.online.dense import Dense
from rnnjax.online.influence import Influence
from rnnjax.online.learner import Learner
from rnnjax.online.units import Units, why_not_unitwise


@dataclasses.dataclass(frozen=True)
class RTRL(Learner):
    r"""Real-time recurrent learning (Williams & Zipser, 1989): the exact gradient, forward in time.

    .. math::
        J_t &= \frac{\partial s_t}{\partial w} + \frac{\partial s_t}{\partial s_{t-1}} J_{t-1} \\
        \frac{\partial L_t}{\partial w} &= \frac{\partial L_t}{\partial w}\Big|_{s_{t-1}}
            + \frac{\partial L_t}{\partial s_{t-1}} J_{t-1}

    with the state :math:`s_t`, the parameters :math:`w`, and :math:`J_0 = 0`. The sum over the
    steps is what backpropagation through time computes, **exactly**, as long as the parameters do
    not change. Where each step updates them, :math:`J` keeps the influence of the parameters that
    each step ran with, as in the paper, so updates have to be small.

    Where units do not interact (`MinGRUCell`, `LRUCell`, `DiagonalLSTMCell` and
    others of their families), each parameter influences its own unit alone (Zucchet et al., 2023):
    for each row of the batch, :math:`J` has as many numbers as the parameters times the number of
    leaves of the carry, and `jax.jvp` of the cell's update gives it. Where a product mixes units,
    each parameter influences every unit: :math:`J` has the size of the state times that of the
    parameters for each row, and each step multiplies matrices of that size. That suits small
    networks alone, so it has to be asked for.

    Args:
        cell: one without a recurrent product, whose coupling is `rnnjax.Coupling.ELEMENTWISE` or
            more, and of whose parameters entry ``k`` belongs to unit ``k % hidden_size``, as where
            gates stand side by side; with ``dense`` any whose step runs row by row, a `Stack` too.
        dense: whether to carry the influence of each parameter on every unit.

    Raises:
        InvalidInputError: the cell is none of these, and ``dense`` is not given; or it looks back
            on a memory, draws random numbers or is a convolution.

    A loop that stores no sequence, with one update a step, and ``pull`` in the step that made it:

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
        """Why units interact, unless ``dense`` asks for the whole influence."""
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
        """The influence of each parameter on its own unit, or on all."""
        return Dense(self.cell) if self.dense else Units(self.cell)
