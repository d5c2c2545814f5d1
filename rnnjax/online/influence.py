"""What a learner carries forward with the state, and the step that it differentiates."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rnnjax.cells.base import Carry, Cell, Params
from rnnjax.engine.core.masking import StepMarks, Steps


@dataclasses.dataclass(frozen=True)
class Influence(abc.ABC):
    r"""How parameters influence the state: all, or a part, of :math:`\partial s_t / \partial w`.

    Its arrays begin with the batch axes: each row has its own influence.
    """

    cell: Cell

    def step(self, params: Params, carry: Carry, x: Any) -> tuple[Carry, jax.Array]:
        """The values of ``cell.step``, with the derivatives that the learner follows."""
        return self.cell.step(params, carry, x)

    @abc.abstractmethod
    def initial(self, params: Params, batch_shape: tuple[int, ...], key: jax.Array | None) -> Any:
        """The influence on the initial state of a sequence."""

    @abc.abstractmethod
    def after(
        self,
        params: Params,
        influence: Any,
        carry: Carry,
        x: Any,
        reset: jax.Array | None,
        key: jax.Array | None,
    ) -> Any:
        """The influence on the state after a step.

        Args:
            params: of the step.
            influence: on the state before the step, zeros where a row is reset.
            carry: the state before the step and its reset.
            x: ``(*batch, input_size)``.
            reset: booleans ``(*batch,)``, or None.
            key: for what is drawn, or None.
        """

    @abc.abstractmethod
    def credit(self, params: Params, influence: Any, d_carry: Carry) -> Params:
        """The gradients by the parameters for the cotangent of the state, over all rows."""

    def start(self, params: Params, batch_shape: tuple[int, ...]) -> Carry:
        """The state with which a sequence begins, in float32 or the parameters' type if wider."""
        given = [leaf.dtype for leaf in jax.tree.leaves(params)]
        return self.cell.start(params, batch_shape, jnp.result_type(jnp.float32, *given))

    def begin(self, params: Params, carry: Carry, reset: jax.Array | None) -> Carry:
        """The state at the start of the step: the initial one where a row is reset."""
        if reset is None:
            return carry
        start = self.start(params, reset.shape)
        start = jax.tree.map(lambda leaf, now: leaf.astype(now.dtype), start, carry)
        return Steps(start=start).reset(carry, StepMarks(resets=reset))

    def run(
        self, params: Params, carry: Carry, x: Any, reset: jax.Array | None
    ) -> tuple[Carry, jax.Array]:
        """A step after its reset; an initial state that is learned depends on parameters too."""
        return self.step(params, self.begin(params, carry, reset), x)


def over_rows(function: Callable[..., Any], axes: int) -> Callable[..., Any]:
    """Map a function of one row over so many batch axes."""
    for _ in range(axes):
        function = jax.vmap(function)
    return function
