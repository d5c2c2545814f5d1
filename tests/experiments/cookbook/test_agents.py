"""The two programs of reinforcement learning, and the task of POPGym that they share."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.cookbook import ppo, r2d2
from experiments.cookbook.common import agents
from experiments.cookbook.common.agents import TASKS, Agent, LayerRNN, RepeatPrevious
from experiments.cookbook.common.maze import TMaze

KEY = jax.random.key(0)
TINY = {
    ppo: {"units": 8, "rows": 4, "rollout": 12, "updates": 3, "epochs": 2, "parts": 2},
    r2d2: {"units": 8, "rows": 4, "piece": 6, "pieces": 3, "updates": 5, "turns": 2, "batch": 3},
}
PROGRAMS = pytest.mark.parametrize("program", TINY, ids=["ppo", "r2d2"])


def heads(program, task):
    return (task.actions, 1) if program is ppo else (task.actions,)


def test_a_pack_has_thirteen_cards_of_each_suit_and_the_one_before_is_asked_for():
    """In two episodes and a little more of 50 rows, with an action that is always 0."""
    task = RepeatPrevious()

    def step(state, key):
        action = jnp.zeros(50, int)
        later, outcome = task.step(key, state, action)
        return later, (task.begins(state), task.observe(state), *outcome)

    keys = jax.random.split(KEY, 110)
    played = jax.lax.scan(step, task.reset(KEY, (50,)), keys)[1]
    begins, seen, reward, ended, success = map(np.asarray, played)
    assert np.flatnonzero(begins[:, 0]).tolist() == [0, 51, 102]
    assert np.flatnonzero(ended[:, 0]).tolist() == [50, 101]
    suits, expected = seen.argmax(axis=-1), np.zeros((102, 50))
    for first in (0, 51):
        shown = seen[first : first + 51].sum(axis=0)  # all but one card
        assert shown.max() == 13
        assert np.sort(shown, axis=-1)[:, 0].tolist() == [12] * 50
        for t in range(first + 3, first + 51):  # three steps before
            expected[t] = np.where(suits[t - 3] == 0, 1, -1) / 48
    assert len({tuple(pack) for pack in suits[:51].T.tolist()}) == 50
    assert not np.array_equal(suits[:51], suits[51:102])
    np.testing.assert_allclose(reward[:102], expected, atol=1e-7)
    np.testing.assert_array_equal(success[:102], expected > 0)


def test_learning_computes_what_acting_did(random_like, assert_close):
    """Also where a row holds several episodes, and one goes on over the border of a rollout."""
    task = TASKS["t_maze"]._replace(environment=TMaze(corridor_length=2, step_limit=7))
    agent = Agent(LayerRNN, 8, (task.actions, 1))
    params = random_like(lambda: agent.begin(KEY, task), seed=1)

    @jax.jit
    def roll(before, key):
        def act(at, key):
            state, carry = at
            action_key, task_key = jax.random.split(key)
            seen, resets = agents.look(task, state, True)
            carry, (logits, values) = agent.run(params, carry, seen[None], resets[None])
            action = jax.random.categorical(action_key, logits[0])
            state, outcome = task.environment.step(task_key, state, action)
            return (state, carry), (seen, resets, outcome.ended, logits[0], values[0])

        after, steps = jax.lax.scan(act, before, jax.random.split(key, 15))
        return after, steps, agent.run(params, before[1], *steps[:2])

    at = task.environment.reset(KEY, (16,)), np.zeros((16, 8), np.float32)
    for key in jax.random.split(KEY, 3):
        at, (_, resets, ended, *acted), (carry, learned) = roll(at, key)
        assert_close(learned, acted, 1e-5)
        assert_close(carry, at[1], 1e-5)
    resets, ended = np.asarray(resets), np.asarray(ended)
    assert resets[1:].sum(0).min() >= 2
    assert not resets[0].all()
    np.testing.assert_array_equal(resets[1:], ended[:-1])


def test_advantages_against_their_definition():
    rng = np.random.default_rng(0)
    rewards, values = rng.normal(size=(15, 8)), rng.normal(size=(16, 8))
    ended, expected = rng.random((15, 8)) < 0.2, np.zeros((15, 8))
    for t, row in np.ndindex(15, 8):
        weight = 1.0
        for later in range(t, 15):
            following = 0 if ended[later, row] else ppo.DISCOUNT * values[later + 1, row]
            expected[t, row] += weight * (rewards[later, row] + following - values[later, row])
            weight *= ppo.DISCOUNT * ppo.TRUST
            if ended[later, row]:
                break
    steps = ppo.Step(*[None] * 4, values[:15], rewards, ended)
    np.testing.assert_allclose(jax.jit(ppo.advantages)(steps, values[15]), expected, atol=1e-5)


@pytest.mark.smoke
@PROGRAMS
def test_which_of_three_actions_is_worth_most_is_learned(program):
    shown = SimpleNamespace(
        reset=lambda key, batch: jnp.arange(*batch) % 3, begins=lambda state: state < 0,
        observe=lambda state: jax.nn.one_hot(state, 3),
        step=lambda key, state, action: (
            (state + 1) % 3, agents.Outcome(1.0 * (action == state), state < 0, action == state)
        ),
    )  # fmt: skip
    table = SimpleNamespace(
        begin=lambda key, task: [jnp.zeros((3, size)) for size in heads(program, task)],
        run=lambda params, carry, seen, resets: (carry, [seen @ head for head in params]),
    )
    config = program.Config(**{**TINY[program], "units": 1, "updates": 150, "learning_rate": 0.1})
    train = program.learner(config, agents.Task(shown, 3, 3, 1, 1.0, 1.0), table, True)
    (worth, *_), (rewards, _) = jax.device_get(jax.jit(train)(KEY))
    assert worth.argmax(axis=1).tolist() == [0, 1, 2]
    assert rewards[:3].mean() < 0.6 < 0.8 < rewards[-3:].mean()


@pytest.mark.slow
@PROGRAMS
@pytest.mark.usefixtures("x64")
def test_without_memory_something_else_is_learned(program):
    task, config = TASKS["t_maze"], program.Config(**TINY[program])
    agent = Agent(LayerRNN, config.units, heads(program, task))
    with_memory, without = (
        jax.jit(program.learner(config, task, agent, remembers))(jax.random.key(3))[0]
        for remembers in (True, False)
    )
    apart = jax.tree.map(lambda a, b: np.abs(a - b).max(), with_memory, without)
    assert max(jax.tree.leaves(apart)) > 1e-3


@pytest.mark.slow
@PROGRAMS
def test_a_program_runs_on_all_tasks(program, ran):
    result, rows = ran(program, "learning", seeds=2, **TINY[program])
    assert len(rows) == 2 * 5
    for name in TASKS:
        for who in (*agents.MEMORIES, agents.WITHOUT):
            assert len(rows[f"{name}: {who}"]) == len(result["train_seconds"][name][who]) == 2
            assert max(rows[f"{name}: {who}"]) <= rows[f"{name}: all remembered"] + 1e-6
