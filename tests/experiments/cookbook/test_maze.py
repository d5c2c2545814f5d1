"""The T-maze: what is seen and earned, and where its episodes end."""

import functools

import jax
import numpy as np
import pytest

from experiments.cookbook.common import maze
from experiments.cookbook.common.maze import FORWARD, LEFT, RIGHT, MazeState, TMaze

KEY = jax.random.key(0)
SIGNS = {LEFT: maze.SIGN_LEFT, RIGHT: maze.SIGN_RIGHT}


@functools.partial(jax.jit, static_argnums=0)
def look_and_step(maze, key, state, action):
    return maze.observe(state), *maze.step(key, state, action)


CORRIDOR, JUNCTION = maze.CORRIDOR, maze.JUNCTION


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
