"""Advantage actor-critic over rollouts with a carried state, and the count of successes."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.t_maze.config import Config
from experiments.t_maze.environment import MazeState, Outcome, TMaze
from experiments.t_maze.model import Agent, Opinion
from rnnjax.training import Fit, Progress, fit


class Streams(NamedTuple):
    """What is carried from rollout to rollout: the mazes, and what the agent remembers in each."""

    maze: MazeState
    carry: Any


class Rollout(NamedTuple):
    """Some steps of all mazes, with time first: every leaf is ``(time, environments, ...)``.

    A row holds several episodes, one after the other; ``resets`` says where they begin.
    """

    observations: jax.Array
    resets: jax.Array
    actions: jax.Array
    opinions: Opinion
    outcomes: Outcome


@dataclasses.dataclass(frozen=True)
class Trainer:
    """Acting, learning and testing, each a pure function.

    ``memory`` is a boolean that may be traced, so that one compiled program trains both agents.
    Without it the carry is reset before every step: the agent sees what it sees, and no more.
    """

    config: Config

    @property
    def maze(self) -> TMaze:
        """The environment."""
        return TMaze(self.config.corridor_length, self.config.step_limit)

    @property
    def agent(self) -> Agent:
        """The network."""
        return Agent(self.config)

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """Adam, after the gradient is cut."""
        return optax.chain(
            optax.clip_by_global_norm(self.config.clip_norm), optax.adam(self.config.learning_rate)
        )

    def begin(self, key: jax.Array, rows: int) -> Streams:
        """New mazes, and a carry that the first step resets."""
        return Streams(self.maze.reset(key, (rows,)), self.agent.cell.initial_carry((rows,)))

    def act(
        self, params: Any, streams: Streams, memory: Any, key: jax.Array, *, greedy: bool = False
    ) -> tuple[Streams, Rollout]:
        """Do one step in every maze: a `Rollout` without the axis of time."""
        action_key, maze_key = jax.random.split(key)
        observation = self.maze.observe(streams.maze)
        reset = self.maze.begins(streams.maze) | jnp.logical_not(memory)
        carry, opinion = self.agent.step(params, streams.carry, observation, reset)
        if greedy:
            action = jnp.argmax(opinion.logits, axis=-1)
        else:
            action = jax.random.categorical(action_key, opinion.logits)
        maze, outcome = self.maze.step(maze_key, streams.maze, action)
        return Streams(maze, carry), Rollout(observation, reset, action, opinion, outcome)

    def collect(
        self, params: Any, streams: Streams, memory: Any, key: jax.Array
    ) -> tuple[Streams, Rollout]:
        """Act for a whole rollout."""

        def step(streams: Streams, key: jax.Array) -> tuple[Streams, Rollout]:
            return self.act(params, streams, memory, key)

        return jax.lax.scan(step, streams, jax.random.split(key, self.config.rollout))

    def advantages(self, rollout: Rollout, last_value: jax.Array) -> jax.Array:
        """Generalised advantage estimates ``(time, environments)`` (Schulman et al., 2016).

        ``last_value (environments,)`` is that of the observation after the rollout. Nothing flows
        back over the end of an episode: what follows there belongs to the next one.
        """
        discount, trust = self.config.discount, self.config.gae_lambda

        def step(after: Any, now: Any) -> Any:
            advantage, next_value = after
            value, reward, ended = now
            going_on = jnp.where(ended, 0.0, discount)
            surprise = reward + going_on * next_value - value
            advantage = surprise + going_on * trust * advantage
            return (advantage, value), advantage

        values, outcomes = rollout.opinions.value, rollout.outcomes
        start = (jnp.zeros_like(last_value), last_value)
        steps = (values, outcomes.reward, outcomes.ended)
        return jax.lax.scan(step, start, steps, reverse=True)[1]

    # --8<-- [start:loss]
    def loss(
        self, params: Any, carry: Any, rollout: Rollout, advantages: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Return the loss of advantage actor-critic (Mnih et al., 2016) and the policy's entropy.

        ``carry`` is the state with which the rollout began. It comes in as a value, so the gradient
        ends there: truncated backpropagation through time. Inside of the rollout it flows back
        through every step of an episode, and ``resets`` stop it where another one begins.
        """
        _, opinions = self.agent.unroll(params, carry, rollout.observations, rollout.resets)
        log_policy = jax.nn.log_softmax(opinions.logits)
        chosen = jnp.take_along_axis(log_policy, rollout.actions[..., None], axis=-1)[..., 0]
        entropy = -jnp.sum(jnp.exp(log_policy) * log_policy, axis=-1).mean()
        targets = advantages + rollout.opinions.value
        value_loss = jnp.mean((opinions.value - targets) ** 2) / 2
        loss = (
            -jnp.mean(advantages * chosen)
            + self.config.value_weight * value_loss
            - self.config.entropy_weight * entropy
        )
        return loss, entropy
        # --8<-- [end:loss]

    def update(
        self, params: Any, before: Streams, memory: Any, key: jax.Array
    ) -> tuple[jax.Array, tuple[Streams, dict[str, jax.Array]]]:
        """Act for a rollout, and compute the loss over it.

        Returns:
            the loss, and where the streams stand with what happened: the ``episodes`` that ended,
            how many of them were ``successes``, and the ``entropy`` of the policy.
        """
        act_key, last_key = jax.random.split(key)
        acting = jax.lax.stop_gradient(params)
        after, rollout = self.collect(acting, before, memory, act_key)
        # One step more, for the value of what comes next alone: the mazes stay where they are.
        _, beyond = self.act(acting, after, memory, last_key)
        advantages = self.advantages(rollout, beyond.opinions.value)
        loss, entropy = self.loss(params, before.carry, rollout, advantages)
        happened = {
            "episodes": rollout.outcomes.ended.sum(),
            "successes": rollout.outcomes.success.sum(),
            "entropy": entropy,
        }
        return loss, (after, happened)

    def train(self, seeds: jax.Array, memory: jax.Array, epochs: int, progress: Progress) -> Fit:
        """Train agents ``(agents,)`` side by side, each with its seed, and with memory or without.

        An agent does not depend on the others: its numbers come from its seed, and the
        optimiser sees each gradient by itself.
        """
        one = self.optimizer
        optimizer = optax.GradientTransformation(jax.vmap(one.init), jax.vmap(one.update))

        def loss_fn(params: Any, streams: Streams, agents: Any, key: jax.Array) -> Any:
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, agents["seed"])
            losses, aux = jax.vmap(self.update)(params, streams, agents["memory"], keys)
            return losses.sum(), aux

        @jax.jit
        @jax.vmap
        def begin(seed: jax.Array) -> tuple[Any, Streams]:
            init_key, begin_key = jax.random.split(jax.random.key(seed))
            return self.agent.init(init_key), self.begin(begin_key, self.config.environments)

        params, streams = begin(seeds)
        agents = {"seed": seeds, "memory": memory}
        steps = self.config.updates // epochs
        return fit(
            loss_fn, params, optimizer,
            jax.tree.map(lambda leaf: np.stack([leaf] * steps), agents), epochs,
            key=jax.random.key(0), carry=streams, keep_carry=True, hooks=[progress],
        )  # fmt: skip

    def success(self, params: Any, key: jax.Array, memory: Any) -> jax.Array:
        """The share of fresh episodes in which the most probable actions lead to the goal."""

        def step(state: Any, key: jax.Array) -> Any:
            streams, running, found = state
            streams, rollout = self.act(params, streams, memory, key, greedy=True)
            # Only the first episode of each row counts, or short ones would count more often.
            found |= running & rollout.outcomes.success
            return (streams, running & ~rollout.outcomes.ended, found), None

        rows = self.config.episodes
        begin_key, key = jax.random.split(key)
        start = (self.begin(begin_key, rows), jnp.ones(rows, bool), jnp.zeros(rows, bool))
        keys = jax.random.split(key, self.config.step_limit)
        (_, _, found), _ = jax.lax.scan(step, start, keys)
        return found.mean()
