"""The T-maze (Bakker, 2002) as pure functions over a batch of mazes."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

FORWARD, LEFT, RIGHT = range(3)
NUM_ACTIONS = 3
# What the agent sees, in the paper's code. Each bit by itself is seen in several places.
SIGN_LEFT, SIGN_RIGHT, CORRIDOR, JUNCTION = (0, 1, 1), (1, 1, 0), (1, 0, 1), (0, 1, 0)
OBSERVATION_SIZE = 3
REWARD_GOAL, REWARD_WRONG_TURN, REWARD_BUMP = 1.0, -1.0, -0.1


class MazeState(NamedTuple):
    """Where each maze stands; every leaf is ``(*batch,)``.

    Attributes:
        goal: `LEFT` or `RIGHT`.
        position: steps from the start; the junction is at ``corridor_length``.
        time: steps since the episode began.
    """

    goal: jax.Array
    position: jax.Array
    time: jax.Array


class Outcome(NamedTuple):
    """What one step led to; every leaf is ``(*batch,)``.

    Attributes:
        reward: `REWARD_GOAL`, `REWARD_WRONG_TURN`, `REWARD_BUMP`, or 0 for a step forward.
        ended: the step was the last one of its episode.
        success: the step was the turn to the goal.
    """

    reward: jax.Array
    ended: jax.Array
    success: jax.Array


@dataclasses.dataclass(frozen=True)
class TMaze:
    """A corridor with a junction at its end, whose goal is shown once, at the start.

    Going forward in the corridor and turning at the junction move the agent. Anything else bumps
    into a wall: the agent stays where it is. A turn at the junction ends the episode, and so does
    its step number ``step_limit``. The next episode begins at once, with a new goal.

    Args:
        corridor_length: steps forward from the start to the junction.
        step_limit: steps of the longest episode.
    """

    corridor_length: int
    step_limit: int

    def reset(self, key: jax.Array, batch: tuple[int, ...] = ()) -> MazeState:
        """Begin an episode in each maze, with the goal on a side drawn by lot."""
        zeros = jnp.zeros(batch, jnp.int32)
        goal = jnp.where(jax.random.bernoulli(key, shape=batch), RIGHT, LEFT)
        return MazeState(goal, zeros, zeros)

    def begins(self, state: MazeState) -> jax.Array:
        """Whether the step that comes is the first of its episode, ``(*batch,)``."""
        return state.time == 0

    def observe(self, state: MazeState) -> jax.Array:
        """What the agent sees, ``(*batch, OBSERVATION_SIZE)``.

        The sign belongs to the first step, not to the place: who bumps at the start does not see it
        again.
        """
        sign = _where(state.goal == LEFT, SIGN_LEFT, SIGN_RIGHT)
        place = _where(state.position == self.corridor_length, JUNCTION, CORRIDOR)
        return _where(self.begins(state), sign, place)

    def step(
        self, key: jax.Array, state: MazeState, action: jax.Array
    ) -> tuple[MazeState, Outcome]:
        """Do ``action (*batch,)``; where that ends the episode, the state is that of a new one."""
        forward = action == FORWARD
        at_junction = state.position == self.corridor_length
        turned = at_junction & ~forward
        success = turned & (action == state.goal)
        time = state.time + 1
        ended = turned | (time == self.step_limit)
        reward = jnp.select(
            [success, turned, forward != at_junction],
            [REWARD_GOAL, REWARD_WRONG_TURN, 0.0],
            REWARD_BUMP,
        )
        moved = MazeState(state.goal, state.position + (forward & ~at_junction), time)
        fresh = self.reset(key, action.shape)
        state = jax.tree.map(lambda new, old: jnp.where(ended, new, old), fresh, moved)
        return state, Outcome(reward, ended, success)


def _where(condition: jax.Array, yes: object, no: object) -> jax.Array:
    """Choose between two vectors for each maze."""
    return jnp.where(condition[..., None], jnp.asarray(yes, float), jnp.asarray(no, float))
