"""Learns to act from memory in a T-maze and in a game of cards, by replayed sequences (R2D2).

A replay holds pieces of the rows' streams, each with the carry with which it began (Kapturowski et
al., "Recurrent experience replay in distributed reinforcement learning", 2019). That carry is of
older parameters, so what is learned from is the **second** of two pieces in a row: the first one
brings the carry up to date, without a gradient. Double Q-learning over several steps, a network
that follows for its targets, and rows of unlike curiosity are the paper's; its many machines,
priorities and rescaled values are left out. The memory is written twice, as a GRU under
``nn.scan`` and as `rnnjax.linen.RNN`: same parameters, same seeds.

    python -m experiments.cookbook.r2d2 --tasks t_maze
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.cookbook.common.agents import Agent, AgentOptions, Task, Train, compare, look
from experiments.shared import runs

DISCOUNT = 0.9  # of a reward per step
PACE = 0.02  # at which the target network follows at each step of the optimiser


@dataclasses.dataclass(frozen=True)
class Config(AgentOptions):
    """Learn to act from memory, by Q-learning from a replay."""

    rows: int = 32
    """The number of environments in a batch."""
    piece: int = 16
    """The number of steps of a segment: of the burn-in, and of the training part."""
    pieces: int = 128
    """The number of segments of each row in the replay buffer."""
    updates: int = 400
    """The number of times that every row acts for a segment."""
    turns: int = 8
    """The number of steps of the optimiser after each."""
    batch: int = 32
    """The number of sequences per optimiser step."""
    learning_rate: float = 2e-3
    """The learning rate of Adam."""
    horizon: int = 3
    """The number of steps whose rewards are summed before the target network's value."""


class Piece(NamedTuple):
    """Steps of all rows, ``(time, rows, ...)``, and the carry before them, ``(rows, units)``."""

    seen: jax.Array
    resets: jax.Array
    action: jax.Array
    reward: jax.Array
    ended: jax.Array
    carry: jax.Array


def learner(config: Config, task: Task, agent: Agent, remembers: bool) -> Train:
    """The whole training as one function of a key."""
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(config.learning_rate))
    # From 0.4 of all actions at random down to nearly none, as in the paper.
    curiosity = 0.4 ** (1 + 7 * jnp.arange(config.rows) / max(1, config.rows - 1))

    def act(params: Any, at: Any, key: jax.Array) -> tuple[Any, Any]:
        state, carry = at
        action_key, lot_key, task_key = jax.random.split(key, 3)
        seen, resets = look(task, state, remembers)
        carry, (values,) = agent.run(params, carry, seen[None], resets[None])
        tries = jax.random.uniform(lot_key, (config.rows,)) < curiosity
        lots = jax.random.randint(action_key, (config.rows,), 0, task.actions)
        action = jnp.where(tries, lots, values[0].argmax(axis=-1))
        state, outcome = task.environment.step(task_key, state, action)
        return (state, carry), (seen, resets, action, outcome.reward, outcome.ended)

    # --8<-- [start:loss]
    def values_of(params: Any, burn_in: Piece, piece: Piece) -> jax.Array:
        # Nothing is learned from the burn-in, so no residuals of it are stored.
        fixed = jax.lax.stop_gradient(params)
        carry, _ = agent.run(fixed, burn_in.carry, burn_in.seen, burn_in.resets)
        return agent.run(params, carry, piece.seen, piece.resets)[1][0]

    def pick(values: jax.Array, actions: jax.Array) -> jax.Array:
        return jnp.take_along_axis(values, actions[..., None], axis=-1)[..., 0]

    def loss(params: Any, slow: Any, burn_in: Piece, piece: Piece) -> jax.Array:
        values = values_of(params, burn_in, piece)
        later = pick(values_of(slow, burn_in, piece), values.argmax(axis=-1))
        goes_on = jnp.where(piece.ended, 0.0, DISCOUNT)
        target = later
        for _ in range(config.horizon):  # fewer steps where the piece ends before
            target = piece.reward[:-1] + goes_on[:-1] * target[1:]
            target = jnp.concatenate([target, later[-1:]])
        target = jax.lax.stop_gradient(target)
        return optax.huber_loss(pick(values, piece.action)[:-1], target[:-1]).mean()
        # --8<-- [end:loss]

    def update(at: Any, given: Any) -> tuple[Any, Any]:
        params, slow, moments, before, replay = at
        count, key = given
        act_key, learn_key = jax.random.split(key)

        def one(at: Any, key: jax.Array) -> Any:
            return act(params, at, key)

        after, steps = jax.lax.scan(one, before, jax.random.split(act_key, config.piece))
        place = count % config.pieces
        replay = jax.tree.map(
            lambda whole, new: whole.at[place].set(new), replay, Piece._make([*steps, before[1]])
        )

        def learn(at: Any, key: jax.Array) -> tuple[Any, None]:
            params, slow, moments = at
            age_key, row_key = jax.random.split(key)
            # The first of two pieces is at least one old, and both are still there.
            oldest = jnp.clip(count, 1, config.pieces - 1)
            ages = jax.random.randint(age_key, (config.batch,), 1, oldest + 1)
            rows = jax.random.randint(row_key, (config.batch,), 0, config.rows)
            first, second = (
                _taken(replay, (count - a) % config.pieces, rows) for a in (ages, ages - 1)
            )
            gradients = jax.grad(loss)(params, slow, first, second)
            gradients = jax.tree.map(lambda g: jnp.where(count > 0, g, 0.0), gradients)
            changes, moments = optimizer.update(gradients, moments)
            params = optax.apply_updates(params, changes)
            return (params, optax.incremental_update(params, slow, PACE), moments), None

        keys = jax.random.split(learn_key, config.turns)
        params, slow, moments = jax.lax.scan(learn, (params, slow, moments), keys)[0]
        return (params, slow, moments, after, replay), steps[3:]

    def train(key: jax.Array) -> tuple[Any, Any]:
        init_key, begin_key, key = jax.random.split(key, 3)
        params = agent.begin(init_key, task)
        before = (
            task.environment.reset(begin_key, (config.rows,)),
            jnp.zeros((config.rows, config.units)),
        )
        shapes = jax.eval_shape(lambda: act(params, before, key)[1])
        empty = [jnp.zeros((config.pieces, config.piece, *s.shape), s.dtype) for s in shapes]
        replay = Piece._make([*empty, jnp.zeros((config.pieces, *before[1].shape))])
        begin: Any = params, params, optimizer.init(params), before, replay
        given = jnp.arange(config.updates), jax.random.split(key, config.updates)
        (params, *_), path = jax.lax.scan(update, begin, given)
        return params, path

    return train


def _taken(replay: Piece, places: jax.Array, rows: jax.Array) -> Piece:
    """Pieces of the replay, ``(time, batch, ...)``."""
    *steps, carry = replay
    taken = [jnp.swapaxes(leaf[places, :, rows], 0, 1) for leaf in steps]
    return Piece._make([*taken, carry[places, rows]])


def run(config: Config) -> int:
    """Train all agents, and compare."""
    return compare("r2d2", config, lambda task: (task.actions,), learner)


main = runs.command(run, Config, "cookbook.r2d2", "--tasks t_maze")
if __name__ == "__main__":
    runs.exit_with(main)
