"""What the programs of reinforcement learning share: their tasks, and an agent with a memory.

Both tasks are pure JAX, one call for all rows, and begin their next episode at once. An agent is
called as PureJaxRL's (Lu et al., 2022): with a carry, observations ``(time, rows, features)`` and
``resets (time, rows)``, True where an episode begins with that step.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as flax
import jax
import jax.numpy as jnp
import numpy as np

from experiments.cookbook.common.maze import NUM_ACTIONS, OBSERVATION_SIZE, Outcome, TMaze
from experiments.shared import plots, runs
from experiments.shared.report import Options, Report
from rnnjax import linen as nn

SUITS, RANKS = 4, 13


class Cards(NamedTuple):
    """A pack in each row: how many of each suit are left in it, and the suits seen last."""

    left: jax.Array  # (rows, SUITS)
    seen: jax.Array  # (rows, back + 1)
    time: jax.Array  # (rows,)


@dataclasses.dataclass(frozen=True)
class RepeatPrevious:
    """Name the suit of the card ``back`` steps before this one (POPGym: Morad et al., 2023).

    A pack of 52 cards is shown one by one, without the last one. From the step on at which there
    is such a card, a right answer is worth 1 and a wrong one -1, divided by how many there are: a
    return is between -1 and 1. POPGym's ``RepeatPreviousEasy`` has k = 4, which is ``back`` = 3.
    """

    back: int = 3

    @property
    def limit(self) -> int:
        """Steps of an episode."""
        return SUITS * RANKS - 1

    def reset(self, key: jax.Array, batch: tuple[int, ...] = ()) -> Cards:
        """Shuffle, and show a card."""
        suit = jax.random.randint(key, batch, 0, SUITS)
        left = RANKS - jax.nn.one_hot(suit, SUITS, dtype=int)
        seen = jnp.repeat(suit[..., None], self.back + 1, axis=-1)
        return Cards(left, seen, jnp.zeros(batch, int))

    def begins(self, state: Cards) -> jax.Array:
        """Whether the step that comes is the first of its episode."""
        return state.time == 0

    def observe(self, state: Cards) -> jax.Array:
        """The suit of the card on the table, ``(*batch, SUITS)``."""
        return jax.nn.one_hot(state.seen[..., -1], SUITS)

    def step(self, key: jax.Array, state: Cards, action: jax.Array) -> tuple[Cards, Outcome]:
        """Answer ``action (*batch,)``, and show the next card, of a new pack after the last."""
        draw_key, reset_key = jax.random.split(key)
        asked, right = state.time >= self.back, action == state.seen[..., 0]
        reward = jnp.where(asked, jnp.where(right, 1.0, -1.0) / (self.limit - self.back), 0.0)
        ended = state.time == self.limit - 1
        suit = jax.random.categorical(draw_key, jnp.log(state.left))
        left = state.left - jax.nn.one_hot(suit, SUITS, dtype=int)
        seen = jnp.concatenate([state.seen[..., 1:], suit[..., None]], axis=-1)
        new, fresh = Cards(left, seen, state.time + 1), self.reset(reset_key, action.shape)

        def choose(new: jax.Array, fresh: jax.Array) -> jax.Array:
            return jnp.where(
                ended.reshape(*ended.shape, *[1] * (new.ndim - ended.ndim)), fresh, new
            )

        return jax.tree.map(choose, new, fresh), Outcome(reward, ended, asked & right)


class Task(NamedTuple):
    """An environment, and what is known of it.

    Attributes:
        environment: with ``reset``, ``begins``, ``observe`` and ``step``.
        features: of an observation.
        actions: how many there are.
        limit: steps of the longest episode.
        best: the return of an agent that remembers all.
        without: the best expected return of one that sees the present alone.
    """

    environment: Any
    features: int
    actions: int
    limit: int
    best: float
    without: float


# Who sees one card alone best names another suit: 13 of the 51 other cards are of it.
TASKS = {
    "t_maze": Task(TMaze(8, 40), OBSERVATION_SIZE, NUM_ACTIONS, 40, 1.0, 0.0),
    "repeat_previous": Task(RepeatPrevious(), SUITS, SUITS, 51, 1.0, 2 * 13 / 51 - 1),
}


@dataclasses.dataclass(frozen=True)
class AgentOptions(Options):
    """What every program asks for."""

    tasks: tuple[str, ...] = ("t_maze", "repeat_previous")
    """A T-maze (Bakker, 2002), and a task of POPGym (Morad et al., 2023)."""
    seeds: int = 3
    """The number of agents of each kind."""
    units: int = 64
    """The number of units of each layer of the agent."""


# ---- the memory, as it is written by hand, and as a layer


class ScannedRNN(flax.Module):
    """A GRU of Flax under ``nn.scan``, with resets by hand: what these programs have so far."""

    units: int

    @functools.partial(
        flax.scan, variable_broadcast="params", in_axes=0, out_axes=0, split_rngs={"params": False}
    )
    @flax.compact
    def __call__(self, carry: Any, x: Any) -> Any:
        """One step, over which ``nn.scan`` puts the loop."""
        inputs, resets = x
        carry = jnp.where(resets[:, None], jnp.zeros_like(carry), carry)
        return flax.GRUCell(self.units)(carry, inputs)


# --8<-- [start:model]
class LayerRNN(flax.Module):
    """Compute the same numbers with rnnjax's layer and the same parameters."""

    units: int

    @flax.compact
    def __call__(self, carry: Any, x: Any) -> Any:
        """All steps at once."""
        inputs, resets = x
        layer = nn.RNN(nn.GRUCell(self.units), time_major=True, return_carry=True)
        return layer(inputs, initial_carry=carry, resets=resets)


MEMORIES = {"nn.scan of a GRUCell": ScannedRNN, "rnnjax.linen.RNN": LayerRNN}
WITHOUT = "without memory"


class Agent(flax.Module):
    """A layer, a memory, and what is read of it: an array ``(time, rows, size)`` for each head."""

    memory: Any
    units: int
    heads: tuple[int, ...]

    @flax.compact
    def __call__(self, carry: Any, observations: jax.Array, resets: jax.Array) -> Any:
        """The carry after all steps, and the heads."""
        x = flax.relu(flax.Dense(self.units)(observations))
        carry, x = self.memory(self.units, name="recurrent")(carry, (x, resets))
        return carry, [flax.Dense(size)(x) for size in self.heads]
        # --8<-- [end:model]

    def run(self, params: Any, carry: Any, observations: jax.Array, resets: jax.Array) -> Any:
        """Apply the network to given parameters."""
        return self.apply(params, carry, observations, resets)

    def begin(self, key: jax.Array, task: Task) -> Any:
        """Draw the parameters, in float64 where that is switched on."""
        observation = jnp.zeros((1, 1, task.features))
        begins = jnp.zeros((1, 1), bool)
        params = self.init(key, jnp.zeros((1, self.units)), observation, begins)
        return jax.tree.map(lambda leaf: leaf.astype(float), params)


def look(task: Task, state: Any, remembers: bool) -> tuple[jax.Array, jax.Array]:
    """What is seen, and which rows begin anew: all of them, for an agent without memory."""
    begins = task.environment.begins(state)
    return task.environment.observe(state), begins if remembers else jnp.ones_like(begins)


def returns(
    task: Task, agent: Agent, params: Any, remembers: bool, key: jax.Array, rows: int
) -> jax.Array:
    """The mean return of an episode of each row, with the action of the largest first head."""

    def step(at: Any, key: jax.Array) -> Any:
        state, carry, running, total = at
        seen, resets = look(task, state, remembers)
        carry, heads = agent.run(params, carry, seen[None], resets[None])
        state, outcome = task.environment.step(key, state, heads[0][0].argmax(axis=-1))
        total += jnp.where(running, outcome.reward, 0.0)
        return (state, carry, running & ~outcome.ended, total), None

    begin_key, key = jax.random.split(key)
    carry = jnp.zeros((rows, agent.units))
    begin = task.environment.reset(begin_key, (rows,)), carry, jnp.ones(rows, bool), jnp.zeros(rows)
    return jax.lax.scan(step, begin, jax.random.split(key, task.limit))[0][3].mean()


# ---- training all, and the report

Train = Callable[[jax.Array], tuple[Any, tuple[jax.Array, jax.Array]]]
"""From a key to the parameters, and all rewards and ends, ``(updates, time, rows)``."""
POINTS = 20  # of a curve


def on_the_way(rewards: np.ndarray, ended: np.ndarray) -> np.ndarray:
    """The mean return of the episodes that ended in each twentieth of the training."""
    rewards, ended = (a.reshape(-1, a.shape[-1]) for a in (rewards, ended))
    sums, counts = np.zeros(POINTS), np.zeros(POINTS)
    for total, ends in zip(rewards.cumsum(axis=0, dtype=float).T, ended.T, strict=True):
        at = np.flatnonzero(ends)
        place = at * POINTS // len(rewards)
        np.add.at(sums, place, np.diff(total[at], prepend=0.0))
        np.add.at(counts, place, 1)
    return sums / np.where(counts, counts, np.nan)


def alike(one: np.ndarray, other: np.ndarray) -> float:
    """The share of the training before the first update with a reward that is another, in %."""
    differs = np.flatnonzero((one != other).any(axis=(1, 2)))
    return 100.0 * float(differs[0] if len(differs) else len(one)) / len(one)


def compare(
    program: str,
    config: Any,
    heads: Callable[[Task], tuple[int, ...]],
    learner: Callable[[Any, Task, Agent, bool], Train],
) -> int:
    """Train every memory on every task with the same seeds, and compare them.

    Args:
        program: its name.
        config: the program's, with ``tasks``, ``units``, ``seed`` and ``seeds``.
        heads: the sizes of the heads for a task.
        learner: the program's: makes of its options, a task, an agent, and whether that remembers,
            a function to be compiled.

    Raises:
        InvalidInputError: there is no such task.
    """
    runs.check_names("task", config.tasks, TASKS)
    report = Report.begin(program, "return of an episode", config, 3)
    curves, seconds, shares = {}, {}, {}
    for name in config.tasks:
        task = TASKS[name]
        made = {}
        for who, memory in {**MEMORIES, WITHOUT: LayerRNN}.items():
            agent = Agent(memory, config.units, heads(task))
            remembers = who != WITHOUT
            train = learner(config, task, agent, remembers)
            score = jax.jit(functools.partial(returns, task, agent), static_argnums=(1, 3))
            made[who] = jax.jit(train).lower(jax.random.key(0)).compile(), score, remembers
        found: dict[str, list[Any]] = {who: [] for who in made}
        for seed in range(config.seed, config.seed + config.seeds):
            for who, (train, score, remembers) in made.items():  # one after the other, in turn
                began = time.perf_counter()
                params, path = jax.block_until_ready(train(jax.random.key(seed)))
                lasted = time.perf_counter() - began
                result = float(score(params, remembers, jax.random.key(seed + 1000), 1000))
                found[who].append((result, jax.device_get(path), lasted))
                print(f"{name}, {who}, seed {seed}: return {result:.3f}, {lasted:.1f} s")
        report.add(f"{name}: all remembered", task.best, "the task")
        report.add(f"{name}: the present alone, at best", task.without, "the task")
        for who, results in found.items():
            report.add(f"{name}: {who}", [result for result, *_ in results])
            means = [on_the_way(*path) for _, path, _ in results]
            curves[f"{name}, {who}"] = np.mean(means, axis=0).tolist()
        old, new = (found[who] for who in MEMORIES)
        ratio = float(np.median([b[2] / a[2] for a, b in zip(old, new, strict=True)]))
        apart = max(abs(a[0] - b[0]) for a, b in zip(old, new, strict=True))
        shares[name] = [alike(a[1][0], b[1][0]) for a, b in zip(old, new, strict=True)]
        seconds[name] = {who: [lasted for *_, lasted in results] for who, results in found.items()}
        print(
            f"{name}: the layer takes {ratio:.2f} of the scan's time; every reward of both is the "
            f"same over {', '.join(f'{share:.0f} %' for share in shares[name])} of the training"
        )
        report.accept(
            f"{name}, rnnjax.linen.RNN", min(r for r, *_ in new), task.best - 0.1, "least"
        )
        report.accept(f"{name}, {WITHOUT}", max(r for r, *_ in found[WITHOUT]), task.without + 0.15)
        report.accept(f"{name}, between both memories", apart, 0.05)
    plots.curves(
        report.run_dir / "learning.png",
        curves,
        x="% of the training", y="return of an episode",
        xs=[100 * (k + 1) / POINTS for k in range(POINTS)],
    )  # fmt: skip
    return report.end(train_seconds=seconds, alike=shares, curves=curves)
