import jax
import numpy as np
import pytest

from experiments.cookbook import autoencoder
from experiments.cookbook.autoencoder import Config
from experiments.cookbook.common import data


@pytest.mark.slow
def test_it_learns_what_images_differ_in(ran, monkeypatch):
    # The made digits take it too long; of these it has to learn how far the left or right is lit.
    rng, columns = np.random.default_rng(0), np.arange(28)
    edges = rng.integers(4, 24, 360)
    lit = (columns < edges[:, None]) ^ (rng.integers(0, 2, (360, 1)) == 1)
    images = np.repeat(255 * lit[:, None].astype(np.uint8), 28, axis=1)
    made = data.Digits(images[:300], edges[:300], images[300:], edges[300:])
    monkeypatch.setattr(data, "digits", lambda folder: made)
    _, scores = ran(autoencoder, "digits", seeds=1, hidden_size=32, epochs=30)
    mean, linear, (written,) = scores.values()
    assert linear < 1e-4 < mean
    assert written < 0.3 * mean


def test_all_that_the_decoder_gets_is_the_code(random_like):
    config = Config(hidden_size=8)
    params = random_like(lambda: autoencoder.init(config, jax.random.key(0)), 0)
    encode, decode, error = (
        jax.jit(function, static_argnums=0)
        for function in (autoencoder.encode, autoencoder.decode, autoencoder.error)
    )
    images = np.random.default_rng(0).uniform(size=(28, 3, 28)).astype(np.float32)
    codes = encode(config, params, images)
    assert codes.shape == (3, 32)
    written = np.asarray(decode(config, params, codes))
    np.testing.assert_allclose(
        error(config, params, images), ((written - images) ** 2).mean(), rtol=1e-5
    )
    # Each row of a batch is coded and written for itself.
    alone = decode(config, params, encode(config, params, images[:, 1:2]))
    np.testing.assert_allclose(written[:, 1:2], alone, rtol=1e-5)
