import json

import jax
import numpy as np
import pytest

import rnnjax
from experiments.cookbook import video
from experiments.cookbook.common.images import DIGIT, FRAMES, draw_films, small_digits
from experiments.cookbook.video import SEEN, Config


@pytest.fixture(scope="module")
def source():
    return small_digits("made")["train"]


@pytest.mark.slow
def test_networks_go_on_with_made_films(tmp_path, monkeypatch):
    few = {"CNN": (False, None, 1, 50), "ConvLSTM": (True, rnnjax.ConvLSTMCell(8), 3, 5)}
    monkeypatch.setattr(video, "NETWORKS", few)
    run_dir = tmp_path / "run"
    assert video.run(Config(data="made", run_dir=run_dir, films=100)) == 0
    rows = json.loads((run_dir / "result.json").read_text())["rows"]
    scores = {row["name"]: row["score"][0] for row in rows}
    assert list(scores) == [
        "CNN: both digits", "CNN: digits and ways", "ConvLSTM", "the last frame again",
        "the mean of all frames",
    ]  # fmt: skip
    assert scores["CNN: digits and ways"] <= scores["CNN: both digits"] <= 1
    assert scores["ConvLSTM"] < 0.8 * scores["the last frame again"]
    assert (run_dir / "films.png").stat().st_size > 5_000


@pytest.mark.slow
def test_a_gru_over_frames_knows_where_digits_go(monkeypatch):
    # Three digits that are easy to tell apart: a square, a bar, a small square.
    digits = np.zeros((3, DIGIT, DIGIT))
    digits[0], digits[1, :, :3], digits[2, 3:7, 3:7] = 0.3, 1, 0.6
    source = digits, np.array([0, 3, 7])
    part = draw_films(source, 100, 5)
    few = {"CNN + GRU": (False, rnnjax.GRUCell(64), 8, 10)}
    monkeypatch.setattr(video, "NETWORKS", few)
    logits = video.learn(Config(films=400), "CNN + GRU", source, {"validation": part}, 0)
    both, ways = video.right(logits["validation"], part)
    assert both[-1] > 0.8
    # In the first frame nothing has moved: each digit goes one of four ways.
    assert ways[0] < 0.15 < 0.25 < ways[5:].mean()


@pytest.mark.parametrize("cell", [rnnjax.LSTMCell(6), rnnjax.ConvLSTMCell(3)])
def test_what_is_drawn_follows_from_seen_frames_alone(source, cell):
    params = jax.jit(video.init, static_argnums=(0, 1))(True, cell, jax.random.key(0))
    films = draw_films(source, 3, 1)["films"]
    apply = jax.jit(lambda films: jax.nn.sigmoid(video.go_on(cell, params, films)))
    drawn = np.asarray(apply(films))
    unseen, last = films.copy(), films.copy()
    unseen[SEEN:] = 0.5
    np.testing.assert_array_equal(apply(unseen), drawn)
    last[SEEN - 1] = 0.5
    differs = (np.asarray(apply(last)) != drawn).any(axis=(1, 2, 3, 4))
    assert differs.tolist() == [False] * (SEEN - 1) + [True] * (FRAMES - SEEN)
    # Given for a frame what it would draw, it draws the same.
    once = films.copy()
    once[SEEN:] = drawn[SEEN - 1 :]
    shape = films.shape[1:] if cell.hidden_size == 3 else (3, -1)

    @jax.jit
    def given(params, films):
        _, ys = rnnjax.unroll(cell, params["cell"], films.reshape(FRAMES - 1, *shape))
        return jax.nn.sigmoid(ys @ params["head"] + params["bias"]).reshape(drawn.shape)

    np.testing.assert_allclose(given(params, once[:-1]), drawn, atol=1e-5)


def test_what_is_right():
    targets = np.zeros((1, 3, 10), int)
    targets[0, :, 2], targets[0, :, 7] = 1, 4
    logits = np.zeros((1, 3, 10, 5))
    logits[..., 0] = 3
    logits[0, :, 2, 1] = logits[0, :, 7, 4] = 5
    logits[0, 1, 7, 2] = 6  # another way
    logits[0, 2, 7], logits[0, 2, 8, 4] = [3, 0, 0, 0, 0], 5  # another digit
    found = video.right(logits, {"targets": targets})
    np.testing.assert_allclose(found, [[2 / 3], [1 / 3]], rtol=1e-6)
