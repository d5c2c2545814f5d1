"""The agent: a recurrent cell with a policy and a value function on top."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import rnnjax
from experiments.t_maze.config import Config
from experiments.t_maze.environment import NUM_ACTIONS, OBSERVATION_SIZE

CELLS: dict[str, type[rnnjax.Cell]] = {"gru": rnnjax.GRUCell, "lstm": rnnjax.LSTMCell}


class Opinion(NamedTuple):
    """What the agent makes of its observations.

    Attributes:
        logits: of the actions, ``(..., NUM_ACTIONS)``.
        value: the discounted rewards that it expects, ``(...,)``.
    """

    logits: jax.Array
    value: jax.Array


@dataclasses.dataclass(frozen=True)
class Agent:
    """One recurrent network that is run in two ways.

    `step` acts: one observation at a time, since the next one depends on the action. `unroll`
    learns: a whole rollout at once, as all of its observations are known by then. With the same
    resets both compute the same numbers.
    """

    config: Config

    @property
    def cell(self) -> rnnjax.Cell:
        """The recurrent cell."""
        return CELLS[self.config.cell](self.config.hidden_size)

    def init(self, key: jax.Array) -> dict[str, Any]:
        """Draw the parameters; the heads are zeros, so that every action is as likely at first."""
        size = self.config.hidden_size
        return {
            "cell": self.cell.init(key, OBSERVATION_SIZE),
            "policy": {"kernel": jnp.zeros((size, NUM_ACTIONS)), "bias": jnp.zeros(NUM_ACTIONS)},
            "value": {"kernel": jnp.zeros((size, 1)), "bias": jnp.zeros(1)},
        }

    # --8<-- [start:model]
    def step(
        self, params: Any, carry: Any, observation: jax.Array, reset: jax.Array
    ) -> tuple[Any, Opinion]:
        """Read ``observation (batch, features)``; where ``reset (batch,)``, from an empty state."""
        start = self.cell.start(params["cell"], reset.shape)
        carry = jax.tree.map(lambda new, old: jnp.where(reset[:, None], new, old), start, carry)
        carry, y = self.cell.step(params["cell"], carry, observation)
        return carry, self._opinion(params, y)

    def unroll(
        self, params: Any, carry: Any, observations: jax.Array, resets: jax.Array
    ) -> tuple[Any, Opinion]:
        """Read ``observations (time, batch, features)`` with ``resets (time, batch)`` at once."""
        carry, ys = rnnjax.unroll(self.cell, params["cell"], observations, carry, resets=resets)
        return carry, self._opinion(params, ys)
        # --8<-- [end:model]

    def _opinion(self, params: Any, y: jax.Array) -> Opinion:
        def head(name: str) -> jax.Array:
            return y @ params[name]["kernel"] + params[name]["bias"]

        return Opinion(head("policy"), head("value")[..., 0])
