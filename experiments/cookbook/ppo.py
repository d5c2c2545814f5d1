"""Learns to act from memory in a T-maze and in a game of cards, by policy optimisation (PPO).

Acting calls the agent with one step, learning with a whole rollout, from the carry with which it
began (Schulman et al., "Proximal policy optimization algorithms", 2017). A reset stands where an
episode **begins**: it is stored as it was seen while acting, so both compute the same numbers.
Minibatches are rows, since steps of a row belong together. The memory is written twice, as a GRU
under ``nn.scan`` and as `rnnjax.linen.RNN`: same parameters, same seeds.

    python -m experiments.cookbook.ppo --tasks t_maze
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.cookbook.common.agents import Agent, AgentOptions, Task, Train, compare, look
from experiments.shared import runs

DISCOUNT, TRUST = 0.95, 0.9  # gamma and lambda of advantage estimation (Schulman et al., 2016)
ENTROPY_WEIGHT = 0.02


@dataclasses.dataclass(frozen=True)
class Config(AgentOptions):
    """Learn to act from memory, by policy gradients."""

    rows: int = 64
    """The number of environments in a batch."""
    rollout: int = 64
    """The number of steps of each environment between updates."""
    updates: int = 120
    """The number of rollouts."""
    epochs: int = 4
    """The number of passes over a rollout."""
    parts: int = 4
    """The number of minibatches of a rollout."""
    learning_rate: float = 2e-3
    """The first learning rate of Adam; it decreases to zero."""
    clip: float = 0.2
    """The largest relative change of a probability in one update."""


class Step(NamedTuple):
    """A step of all rows; of a rollout every leaf is ``(time, rows, ...)``."""

    seen: jax.Array
    resets: jax.Array
    action: jax.Array
    log_probability: jax.Array
    value: jax.Array
    reward: jax.Array
    ended: jax.Array


# --8<-- [start:advantages]
def advantages(steps: Step, last_value: jax.Array) -> jax.Array:
    """What each action brought beyond what was expected, ``(time, rows)``.

    ``last_value (rows,)`` is that of the observation after the rollout. Nothing flows back over the
    end of an episode: what follows there belongs to the next one.
    """

    def back(after: Any, step: Step) -> Any:
        advantage, next_value = after
        goes_on = jnp.where(step.ended, 0.0, DISCOUNT)
        surprise = step.reward + goes_on * next_value - step.value
        advantage = surprise + goes_on * TRUST * advantage
        return (advantage, step.value), advantage

    begin = jnp.zeros_like(last_value), last_value
    return jax.lax.scan(back, begin, steps, reverse=True)[1]
    # --8<-- [end:advantages]


def learner(config: Config, task: Task, agent: Agent, remembers: bool) -> Train:
    """The whole training as one function of a key."""
    steps = config.updates * config.epochs * config.parts
    optimizer = optax.chain(
        optax.clip_by_global_norm(0.5),
        optax.adam(optax.linear_schedule(config.learning_rate, 0.0, steps)),
    )

    def think(params: Any, carry: Any, seen: Any, resets: Any) -> tuple[Any, Any, Any]:
        carry, (logits, values) = agent.run(params, carry, seen, resets)
        return carry, jax.nn.log_softmax(logits), values[..., 0]

    def act(params: Any, at: Any, key: jax.Array) -> tuple[Any, Step]:
        state, carry = at
        action_key, task_key = jax.random.split(key)
        seen, resets = look(task, state, remembers)
        carry, logits, value = think(params, carry, seen[None], resets[None])
        action = jax.random.categorical(action_key, logits[0])
        state, outcome = task.environment.step(task_key, state, action)
        chosen = jnp.take_along_axis(logits[0], action[:, None], axis=-1)[:, 0]
        taken = Step(seen, resets, action, chosen, value[0], outcome.reward, outcome.ended)
        return (state, carry), taken

    # --8<-- [start:loss]
    def loss(params: Any, carry: Any, steps: Step, advantage: jax.Array) -> jax.Array:
        _, logits, values = think(params, carry, steps.seen, steps.resets)
        chosen = jnp.take_along_axis(logits, steps.action[..., None], axis=-1)[..., 0]
        ratio = jnp.exp(chosen - steps.log_probability)
        target = advantage + steps.value
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        clipped = jnp.clip(ratio, 1 - config.clip, 1 + config.clip)
        gain = jnp.minimum(ratio * advantage, clipped * advantage).mean()
        entropy = -(jnp.exp(logits) * logits).sum(axis=-1).mean()
        return 0.5 * ((values - target) ** 2).mean() - gain - ENTROPY_WEIGHT * entropy
        # --8<-- [end:loss]

    def update(at: Any, key: jax.Array) -> tuple[Any, Any]:
        params, moments, before = at
        act_key, last_key, part_key = jax.random.split(key, 3)

        def one(at: Any, key: jax.Array) -> Any:
            return act(params, at, key)

        after, steps = jax.lax.scan(one, before, jax.random.split(act_key, config.rollout))
        # A step more, for the value of what comes next alone.
        advantage = advantages(steps, act(params, after, last_key)[1].value)

        def learn(at: Any, rows: jax.Array) -> tuple[Any, None]:
            params, moments = at
            taken = jax.tree.map(lambda leaf: leaf[:, rows], (steps, advantage))
            gradients = jax.grad(loss)(params, before[1][rows], *taken)
            changes, moments = optimizer.update(gradients, moments)
            return (optax.apply_updates(params, changes), moments), None

        def shuffled(key: jax.Array) -> jax.Array:
            return jax.random.permutation(key, config.rows).reshape(config.parts, -1)

        rows = jax.vmap(shuffled)(jax.random.split(part_key, config.epochs))
        rows = rows.reshape(config.epochs * config.parts, -1)
        params, moments = jax.lax.scan(learn, (params, moments), rows)[0]
        return (params, moments, after), (steps.reward, steps.ended)

    def train(key: jax.Array) -> tuple[Any, Any]:
        init_key, begin_key, key = jax.random.split(key, 3)
        params = agent.begin(init_key, task)
        state = task.environment.reset(begin_key, (config.rows,))
        begin: Any = params, optimizer.init(params), (state, jnp.zeros((config.rows, config.units)))
        (params, *_), path = jax.lax.scan(update, begin, jax.random.split(key, config.updates))
        return params, path

    return train


def run(config: Config) -> int:
    """Train all agents, and compare."""
    return compare("ppo", config, lambda task: (task.actions, 1), learner)


main = runs.command(run, Config, "cookbook.ppo", "--tasks t_maze")
if __name__ == "__main__":
    runs.exit_with(main)
