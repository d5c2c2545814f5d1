import functools
import json
import re

import jax
import numpy as np
import pytest

from experiments.t_maze import environment
from experiments.t_maze.config import Config
from experiments.t_maze.environment import FORWARD, LEFT, RIGHT, MazeState, TMaze
from experiments.t_maze.training import Trainer
from rnnjax.training import Silent

KEY = jax.random.key(0)
SIGNS = {LEFT: environment.SIGN_LEFT, RIGHT: environment.SIGN_RIGHT}


@functools.partial(jax.jit, static_argnums=0)
def look_and_step(maze, key, state, action):
    return maze.observe(state), *maze.step(key, state, action)


CORRIDOR, JUNCTION = environment.CORRIDOR, environment.JUNCTION


@pytest.mark.parametrize(
    ("length", "limit", "goal", "actions", "seen", "rewards"),
    [
        (3, 10, LEFT, [FORWARD] * 3 + [LEFT], [CORRIDOR, CORRIDOR, JUNCTION], [0, 0, 0, 1]),
        (3, 10, RIGHT, [FORWARD] * 3 + [LEFT], [CORRIDOR, CORRIDOR, JUNCTION], [0, 0, 0, -1]),
        # Bumps cost, and do not move, and the sign is not shown again.
        (1, 10, RIGHT, [LEFT, RIGHT, FORWARD, FORWARD, RIGHT],
         [CORRIDOR, CORRIDOR, JUNCTION, JUNCTION], [-0.1, -0.1, 0, -0.1, 1]),
        # The limit ends an episode without a turn.
        (2, 4, LEFT, [FORWARD] * 4, [CORRIDOR, JUNCTION, JUNCTION], [0, 0, -0.1, -0.1]),
    ],
)  # fmt: skip
def test_an_episode(length, limit, goal, actions, seen, rewards):
    maze, got = TMaze(corridor_length=length, step_limit=limit), []
    state = MazeState(np.int32(goal), np.int32(0), np.int32(0))
    for i, action in enumerate(actions):
        key = jax.random.fold_in(KEY, i)
        observation, state, outcome = look_and_step(maze, key, state, np.int32(action))
        shown = tuple(np.asarray(observation, int).tolist())
        ends = bool(outcome.ended), bool(outcome.success)
        got.append((shown, round(float(outcome.reward), 3), *ends))
    last = len(actions) - 1
    expected = zip([SIGNS[goal], *seen], rewards, strict=True)
    assert got == [(*one, t == last, rewards[t] == 1) for t, one in enumerate(expected)]
    # The next episode has begun, and shows its own sign.
    assert (int(state.position), int(state.time)) == (0, 0)
    observation, *_ = look_and_step(maze, KEY, state, np.int32(FORWARD))
    assert tuple(np.asarray(observation, int).tolist()) == SIGNS[int(state.goal)]


def test_only_the_rows_that_ended_begin_again_and_goals_are_drawn_by_lot():
    maze = TMaze(corridor_length=2, step_limit=20)
    rows = np.arange(1000)
    turned = rows % 3 == 2

    @jax.jit
    def reset_and_step():
        state = maze.reset(KEY, (1000,))._replace(position=rows % 3, time=rows % 3 + 1)
        return state, *maze.step(jax.random.key(1), state, np.full(1000, RIGHT))

    state, after, outcome = jax.tree.map(np.asarray, reset_and_step())
    assert outcome.ended.tolist() == turned.tolist()
    assert after.time.tolist() == np.where(turned, 0, state.time + 1).tolist()
    assert after.goal[~turned].tolist() == state.goal[~turned].tolist()
    for goals in (state.goal, after.goal[turned]):
        assert 0.4 < float((goals == LEFT).mean()) < 0.6
    assert np.allclose(outcome.reward[turned], np.where(state.goal[turned] == RIGHT, 1, -1))


CONFIG = Config(corridor_length=2, step_limit=7, environments=8, rollout=15, discount=0.9,
                gae_lambda=0.8, value_weight=0.7, entropy_weight=0.3)  # fmt: skip


@functools.partial(jax.jit, static_argnums=0)
def collect(trainer, params, streams, memory, key):
    return trainer.collect(params, streams, memory, key)


@functools.partial(jax.jit, static_argnums=0)
def learned(trainer, params, carry, rollout, resets):
    return trainer.agent.unroll(params, carry, rollout.observations, resets)


@pytest.mark.parametrize(("cell", "memory"), [("gru", True), ("lstm", False)])
def test_learning_computes_what_acting_did(cell, memory, random_like, assert_close):
    trainer = Trainer(Config(corridor_length=2, step_limit=7, cell=cell, environments=16))
    params = random_like(lambda: trainer.agent.init(KEY), seed=1)  # the heads, too
    streams = trainer.begin(KEY, 16)
    for i in range(3):
        before = streams
        key = jax.random.fold_in(KEY, i)
        streams, rollout = collect(trainer, params, before, memory, key)
        carry, opinions = learned(trainer, params, before.carry, rollout, rollout.resets)
        assert_close(opinions, rollout.opinions, 1e-5)
        assert_close(carry, streams.carry, 1e-5)
    resets = np.asarray(rollout.resets)
    if not memory:
        assert resets.all()
        return
    # The comparison means something: rows hold several episodes, some go on over the border.
    assert resets[1:].sum(0).min() >= 2
    assert not resets[0].all()
    ended = np.concatenate([resets[1:], trainer.maze.begins(streams.maze)[None]])
    assert ended.tolist() == rollout.outcomes.ended.tolist()


def test_advantages_against_their_definition(random_like):
    trainer = Trainer(CONFIG)
    params = random_like(lambda: trainer.agent.init(KEY), seed=1)  # the heads, too
    _, rollout = collect(trainer, params, trainer.begin(KEY, 8), True, KEY)
    last_value = np.arange(8, dtype=np.float32)
    values = np.concatenate([np.asarray(rollout.opinions.value), last_value[None]])
    rewards, ended = np.asarray(rollout.outcomes.reward), np.asarray(rollout.outcomes.ended)
    expected = np.zeros_like(rewards)
    for row in range(8):
        for t in range(15):
            weight = 1.0
            for later in range(t, 15):
                following = 0 if ended[later, row] else 0.9 * values[later + 1, row]
                surprise = rewards[later, row] + following - values[later, row]
                expected[t, row] += weight * surprise
                weight *= 0.9 * 0.8
                if ended[later, row]:
                    break
    advantages = jax.jit(trainer.advantages)(rollout, last_value)
    np.testing.assert_allclose(advantages, expected, atol=1e-5)


def test_the_loss_against_its_definition(random_like):
    trainer = Trainer(CONFIG)
    params = random_like(lambda: trainer.agent.init(KEY), seed=1)  # the heads, too
    streams = trainer.begin(KEY, 8)
    _, rollout = collect(trainer, params, streams, True, KEY)
    advantages = np.random.default_rng(0).normal(size=(15, 8))
    loss, entropy = jax.jit(trainer.loss)(params, streams.carry, rollout, advantages)
    logits = np.asarray(rollout.opinions.logits, np.float64)
    policy = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    chosen = np.take_along_axis(policy, np.asarray(rollout.actions)[..., None], -1)[..., 0]
    unsure = -(policy * np.log(policy)).sum(-1).mean()
    # The value that is to become advantages + value is off by the advantages.
    expected = -(advantages * np.log(chosen)).mean() + 0.7 * (advantages**2).mean() / 2
    np.testing.assert_allclose(entropy, unsure, rtol=1e-4)
    np.testing.assert_allclose(loss, expected - 0.3 * unsure, rtol=1e-4)


@pytest.mark.slow
def test_the_program_learns_with_memory_and_not_without(program, tmp_path):
    result = program(
        "t_maze", "--corridor-length", 3, "--step-limit", 15, "--rollout", 16, "--updates", 250,
        "--seeds", 2, "--run-dir", "out",
    )  # fmt: skip
    saved = json.loads((tmp_path / "out" / "result.json").read_text())
    assert saved["config"]["corridor_length"] == 3
    assert [(r["memory"], r["seed"]) for r in saved["results"]] == [
        (True, 0), (True, 1), (False, 0), (False, 1),
    ]  # fmt: skip
    for r in saved["results"]:
        assert r["success"] > 0.95 if r["memory"] else 0.3 < r["success"] < 0.7
        assert len(r["while_learning"]) == 10
        assert r["environment_steps"] == 250 * 16 * 64
    lines = result.stdout.splitlines()
    assert re.match(r"epoch 10: success \d+% with memory, \d+% without$", lines[9])
    assert lines[10].startswith("4 agents, 256,000 environment steps each, trained and tested in ")
    assert re.match(r"with memory, seed 0: success \d+\.\d% of 2,000 fresh episodes; ", lines[11])


def test_an_agent_does_not_depend_on_those_beside_it():
    trainer = Trainer(Config(corridor_length=2, step_limit=7, environments=4, rollout=5, updates=4,
                             hidden_size=4))  # fmt: skip
    both = trainer.train(np.array([0, 1]), np.array([True, False]), 2, Silent())
    again = trainer.train(np.array([7, 1]), np.array([False, False]), 2, Silent())
    both, again = (jax.tree.map(np.asarray, fit.params) for fit in (both, again))
    for one, other in zip(*map(jax.tree.leaves, (both, again)), strict=True):
        np.testing.assert_allclose(one[1], other[1], atol=1e-6)
    assert not np.allclose(both["cell"]["kernel"][0], again["cell"]["kernel"][0])
