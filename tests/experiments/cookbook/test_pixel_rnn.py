import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.cookbook import pixel_rnn
from experiments.cookbook.pixel_rnn import ABOVE, SIZE, Config

CONFIG = Config(data="made", channels=8, layers=2)


@pytest.fixture(scope="module")
def params(random_like):
    """Parameters with which no pixel is sure, and each counts."""
    return random_like(lambda: pixel_rnn.init(CONFIG, jax.random.key(0)), 0, scale=0.4)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 2, (SIZE, 6, SIZE), np.uint8)


@jax.jit
def logits_of(params, images):
    """Pixels of whole images, images first, in the order in which they are drawn."""
    padded = jnp.pad(images, ((ABOVE, 0), (0, 0), (0, 0)))
    logits = pixel_rnn.network(CONFIG, params, padded)[1]
    return logits.swapaxes(0, 1).reshape(logits.shape[1], SIZE * SIZE)


@pytest.mark.smoke
def test_a_pixel_follows_from_those_before_it_alone(params, images):
    before = np.asarray(logits_of(params, images))
    for row, column in [(0, 0), (5, 0), (13, 20), (14, 26), (27, 26)]:
        changed = images.copy()
        changed[row, :, column] ^= 1
        differs = (before != np.asarray(logits_of(params, changed))).any(axis=0).nonzero()[0]
        assert differs[0] == row * SIZE + column + 1
        # By the states of the layers, much further down than the masked convolution reads.
        assert differs[-1] >= min((row + 2 * ABOVE) * SIZE, SIZE * SIZE - 1)


def test_probabilities_of_all_ends_of_an_image_add_up_to_one(params, images):
    ends = np.array(list(itertools.product((0, 1), repeat=5)), np.uint8)
    every = np.repeat(images[:, :1], len(ends), axis=1)
    every[-1, :, -5:] = ends
    nats = np.asarray(jax.jit(functools.partial(pixel_rnn.nats, CONFIG))(params, every), float)
    begin = np.asarray(logits_of(params, images[:, :1]), float)[0, :-5]
    signs = np.where(images[:, 0].ravel()[:-5], -1, 1)
    assert np.exp(np.logaddexp(0, signs * begin).sum() - nats).sum() == pytest.approx(1, abs=1e-3)
    assert np.ptp(nats) > 0.1


def test_a_completion_draws_what_the_network_over_whole_images_expects(params, images):
    key, known = jax.random.key(3), 9
    drawn = np.asarray(
        jax.jit(lambda images: pixel_rnn.complete(CONFIG, params, images, known, key))(images)
    )
    np.testing.assert_array_equal(drawn[:known], images[:known])
    assert (drawn[known:] != images[known:]).any()
    # Without carried states, of the finished images: each pixel is drawn again as it was.

    @jax.jit
    @jax.vmap
    def draw(place, logits):
        return jax.random.bernoulli(jax.random.fold_in(key, place), jax.nn.sigmoid(logits))

    expected = np.asarray(logits_of(params, drawn)).T[known * SIZE :]
    again = draw(np.arange(known * SIZE, SIZE * SIZE), expected)
    again = np.asarray(again).reshape(SIZE - known, SIZE, -1).swapaxes(1, 2)
    np.testing.assert_array_equal(again, drawn[known:])


def test_pixels_for_themselves_and_completed_images(ran, pictures, monkeypatch):
    monkeypatch.setattr(pixel_rnn, "learn", lambda config, *_: (None, 90.0 + config.layers))
    monkeypatch.setattr(pixel_rnn, "complete", lambda config, params, images, *_: 1 - images)
    _, scores = ran(pixel_rnn)
    train, _, test = (part.astype(float) for part in pixel_rnn.binary_digits(CONFIG).values())
    lit = (1 + train.sum(axis=1)) / (2 + train.shape[1])
    nats = [-np.log(x * lit + (1 - x) * (1 - lit)).sum() for x in test.swapaxes(0, 1)]
    assert scores["each pixel for itself"] == pytest.approx(np.mean(nats))
    assert scores["Row LSTM, 2 x 16 channels"] == [92]
    images, _, *drawn = pictures["completions"].values()
    np.testing.assert_array_equal(images, test[:, :10].swapaxes(0, 1))
    np.testing.assert_array_equal(drawn, [1 - images] * 3)
