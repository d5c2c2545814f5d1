import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.t_maze import environment
from experiments.t_maze.config import Config
from experiments.t_maze.environment import FORWARD, LEFT, RIGHT, MazeState, TMaze
from experiments.t_maze.training import Trainer
from rnnjax import InvalidInputError
from rnnjax.training import Silent

KEY = jax.random.key(0)
SIGNS = {LEFT: environment.SIGN_LEFT, RIGHT: environment.SIGN_RIGHT}


def at_start(goal):
    return MazeState(np.int32(goal), np.int32(0), np.int32(0))


@functools.partial(jax.jit, static_argnums=0)
def look_and_step(maze, key, state, action):
    return maze.observe(state), *maze.step(key, state, action)


def walk(maze, state, actions):
    """The observation before each action, and the outcome of each, by single steps."""
    seen, rewards, ends, successes = [], [], [], []
    for i, action in enumerate(actions):
        key = jax.random.fold_in(KEY, i)
        observation, state, outcome = look_and_step(maze, key, state, np.int32(action))
        seen.append(tuple(int(bit) for bit in np.asarray(observation)))
        rewards.append(round(float(outcome.reward), 3))
        ends.append(bool(outcome.ended))
        successes.append(bool(outcome.success))
    return state, seen, rewards, ends, successes


@pytest.mark.parametrize("goal", [LEFT, RIGHT])
@pytest.mark.parametrize("turn", [LEFT, RIGHT])
def test_the_way_to_the_junction_and_a_turn(goal, turn):
    maze = TMaze(corridor_length=3, step_limit=10)
    state, seen, rewards, ends, successes = walk(
        maze, at_start(goal), [FORWARD, FORWARD, FORWARD, turn]
    )
    corridor, junction = environment.CORRIDOR, environment.JUNCTION
    assert seen == [SIGNS[goal], corridor, corridor, junction]
    assert rewards == [0, 0, 0, 1 if goal == turn else -1]
    assert ends == [False, False, False, True]
    assert successes == [False, False, False, goal == turn]
    # The next episode has begun, and shows its own sign.
    assert (int(state.position), int(state.time)) == (0, 0)
    observation, *_ = look_and_step(maze, KEY, state, np.int32(FORWARD))
    assert tuple(np.asarray(observation, int).tolist()) == SIGNS[int(state.goal)]


def test_bumps_cost_and_do_not_move_and_the_sign_is_not_shown_again():
    maze = TMaze(corridor_length=1, step_limit=10)
    actions = [LEFT, RIGHT, FORWARD, FORWARD, RIGHT]
    state, seen, rewards, ends, successes = walk(maze, at_start(RIGHT), actions)
    corridor, junction = environment.CORRIDOR, environment.JUNCTION
    assert seen == [SIGNS[RIGHT], corridor, corridor, junction, junction]
    assert rewards == [-0.1, -0.1, 0, -0.1, 1]
    assert ends == [False] * 4 + [True]
    assert successes == ends
    assert int(state.time) == 0


def test_an_episode_ends_at_the_step_limit_without_a_turn():
    maze = TMaze(corridor_length=2, step_limit=4)
    state, _, rewards, ends, successes = walk(maze, at_start(LEFT), [FORWARD] * 5)
    assert ends == [False, False, False, True, False]
    assert rewards == [0, 0, -0.1, -0.1, 0]
    assert not any(successes)
    assert (int(state.position), int(state.time)) == (1, 1)


def test_only_the_rows_that_ended_begin_again_and_goals_are_drawn_by_lot():
    maze = TMaze(corridor_length=2, step_limit=20)
    rows = np.arange(1000)

    @jax.jit
    def reset_and_step():
        state = maze.reset(KEY, (1000,))._replace(position=rows % 3, time=rows % 3 + 1)
        return state, *maze.step(jax.random.key(1), state, np.full(1000, RIGHT))

    state, after, outcome = jax.tree.map(np.asarray, reset_and_step())
    assert set(state.goal.tolist()) == {LEFT, RIGHT}
    assert 400 < int((state.goal == LEFT).sum()) < 600
    turned = rows % 3 == 2
    assert outcome.ended.tolist() == turned.tolist()
    assert after.time.tolist() == np.where(turned, 0, state.time + 1).tolist()
    assert after.goal[~turned].tolist() == state.goal[~turned].tolist()
    assert 0.4 < float((after.goal[turned] == LEFT).mean()) < 0.6
    assert np.allclose(outcome.reward[turned], np.where(state.goal[turned] == RIGHT, 1, -1))


CONFIG = Config(corridor_length=2, step_limit=7, environments=8, rollout=15, discount=0.9,
                gae_lambda=0.8, value_weight=0.7, entropy_weight=0.3)  # fmt: skip


def some_params(trainer, random_like):
    """With heads that are not zeros, so that logits differ from step to step."""
    return random_like(lambda: trainer.agent.init(KEY), seed=1)


@functools.partial(jax.jit, static_argnums=0)
def collect(trainer, params, streams, memory, key):
    return trainer.collect(params, streams, memory, key)


@functools.partial(jax.jit, static_argnums=0)
def learned(trainer, params, carry, rollout, resets):
    return trainer.agent.unroll(params, carry, rollout.observations, resets)


@pytest.mark.parametrize("memory", [True, False])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_learning_computes_what_acting_did(cell, memory, random_like, assert_close):
    trainer = Trainer(Config(corridor_length=2, step_limit=7, cell=cell, environments=16))
    params = some_params(trainer, random_like)
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
    # The comparison means something: rows hold several episodes, some go on over the border, and
    # without the resets, or without the carry handed on, the numbers are others.
    assert resets[1:].sum(0).min() >= 2
    assert not resets[0].all()
    ended = np.concatenate([resets[1:], trainer.maze.begins(streams.maze)[None]])
    assert ended.tolist() == rollout.outcomes.ended.tolist()
    for start, others in (
        (before.carry, np.zeros_like(resets)),
        (trainer.begin(KEY, 16).carry, resets),
    ):
        _, other = learned(trainer, params, start, rollout, others)
        assert np.abs(np.asarray(other.logits) - rollout.opinions.logits).max() > 1e-2


def test_no_gradient_crosses_the_border_of_an_episode(random_like):
    """A row's last logits depend on its last episode's observations alone."""
    trainer = Trainer(CONFIG)
    params = some_params(trainer, random_like)
    streams = trainer.begin(KEY, 8)
    _, rollout = collect(trainer, params, streams, True, KEY)

    def last(observations, carry):
        _, opinions = trainer.agent.unroll(params, carry, observations, rollout.resets)
        return opinions.logits[-1, :, 0].sum()

    gradient = jax.jit(jax.grad(last, argnums=(0, 1)))
    grads, d_carry = gradient(rollout.observations, streams.carry)
    size = np.abs(np.asarray(grads)).sum(-1)
    times = np.arange(15)[:, None]
    begin = np.where(np.asarray(rollout.resets), times, 0).max(0)
    np.testing.assert_array_equal(size != 0, times >= begin)
    assert begin.min() > 0
    assert not np.asarray(d_carry.hidden).any()


def test_advantages_against_their_definition(random_like):
    trainer = Trainer(CONFIG)
    params = some_params(trainer, random_like)
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
    params = some_params(trainer, random_like)
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


def test_success_counts_the_first_episode_of_each_row(monkeypatch):
    """An agent written by hand: forward in the corridor, and at the junction by the goal."""
    trainer = Trainer(Config(corridor_length=2, step_limit=12, episodes=50, hidden_size=1))
    params = jax.eval_shape(trainer.agent.init, KEY)
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), params)
    act = Trainer.act

    def by_hand(self, params, streams, memory, key, *, greedy=False):
        assert greedy
        maze = streams.maze
        sign = jnp.where(maze.goal == RIGHT, 1.0, -1.0) * params["sign_weight"]
        at_junction = maze.position == self.config.corridor_length
        logits = jnp.stack([jnp.where(at_junction, -9.0, 9.0), -sign, sign], -1)
        _, rollout = act(self, params["of_a_network"], streams, memory, key, greedy=True)
        maze, outcome = self.maze.step(key, maze, jnp.argmax(logits, -1))
        return streams._replace(maze=maze), rollout._replace(outcomes=outcome)

    monkeypatch.setattr(Trainer, "act", by_hand)
    success = jax.jit(trainer.success)
    for sign_weight, expected in ((5.0, 1.0), (-5.0, 0.0)):  # always right, always wrong
        given = {"sign_weight": sign_weight, "of_a_network": params}
        assert float(success(given, KEY, True)) == expected


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
    for number, line in enumerate(lines[:10]):
        assert re.match(rf"epoch {number + 1}: success \d+% with memory, \d+% without$", line)
    assert lines[10].startswith("4 agents, 256,000 environment steps each, trained and tested in ")
    for line in lines[11:15]:
        assert re.match(
            r"with(out)? memory, seed [01]: success \d+\.\d% of 2,000 fresh episodes; while ", line
        )


def test_an_agent_does_not_depend_on_those_beside_it():
    """Nor does it begin anew at every epoch of the curve: state and streams go on."""
    trainer = Trainer(Config(corridor_length=2, step_limit=7, environments=4, rollout=5, updates=4,
                             hidden_size=4))  # fmt: skip
    halves = []

    class Seen(Silent):
        def on_epoch(self, state, summary):
            halves.append(np.asarray(state.params["cell"]["kernel"]))

    both = trainer.train(np.array([0, 1]), np.array([True, False]), 2, Seen())
    again = trainer.train(np.array([7, 1]), np.array([False, False]), 1, Silent())
    both, again = (jax.tree.map(np.asarray, fit.params) for fit in (both, again))
    for one, other in zip(*map(jax.tree.leaves, (both, again)), strict=True):
        np.testing.assert_allclose(one[1], other[1], atol=1e-6)
    assert not np.allclose(both["cell"]["kernel"][0], again["cell"]["kernel"][0])
    assert not np.allclose(halves[0][1], again["cell"]["kernel"][1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"corridor_length": 0}, "--corridor-length must be at least 1, but is 0"),
        ({"episodes": 0}, "--episodes must be at least 1, but is 0"),
        ({"corridor_length": 40}, "--step-limit must be above --corridor-length 40, so that"),
        ({"learning_rate": 0.0}, "--learning-rate must be above 0"),
        ({"clip_norm": float("nan")}, "--clip-norm must be above 0, but is nan"),
        ({"discount": 1.5}, "--discount must be from 0 to 1, but is 1.5"),
        ({"gae_lambda": -0.1}, "--gae-lambda must be from 0 to 1"),
        ({"entropy_weight": -1.0}, "--entropy-weight must not be negative"),
        ({"seed": -1}, "--seed must not be negative"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(InvalidInputError, match=message):
        Config(**options)


@pytest.mark.slow
def test_five_seeds_solve_the_long_corridor(program, tmp_path):
    program("t_maze", "--seeds", 5, "--run-dir", "out")
    for r in json.loads((tmp_path / "out" / "result.json").read_text())["results"]:
        assert r["success"] > 0.95 if r["memory"] else 0.4 < r["success"] < 0.6
