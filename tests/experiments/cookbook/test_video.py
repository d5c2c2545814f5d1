import jax
import numpy as np
import pytest

import rnnjax
from experiments.cookbook import video
from experiments.cookbook.common.images import FRAMES, draw_films, small_digits
from experiments.cookbook.video import SEEN


@pytest.mark.slow
def test_networks_go_on_with_made_films(ran, monkeypatch):
    few = {"CNN": (False, None, 1, 50), "ConvLSTM": (True, rnnjax.ConvLSTMCell(8), 3, 5)}
    monkeypatch.setattr(video, "NETWORKS", few)
    _, scores = ran(video, "films", films=100)
    (both,), (ways,), (conv,), last, _ = scores.values()
    assert list(scores) == [
        "CNN: both digits", "CNN: digits and ways", "ConvLSTM", "the last frame again",
        "the mean of all frames",
    ]  # fmt: skip
    assert ways <= both <= 1
    assert conv < 0.8 * last[0]


@pytest.mark.parametrize("cell", [rnnjax.LSTMCell(6), rnnjax.ConvLSTMCell(3)])
def test_what_is_drawn_follows_from_seen_frames_alone(cell):
    params = jax.jit(video.init, static_argnums=(0, 1))(True, cell, jax.random.key(0))
    films = draw_films(small_digits("made")["train"], 3, 1)["films"]
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
