import jax
import numpy as np
import pytest

from experiments.cookbook import captions
from experiments.cookbook.common.images import LENGTH, SCENE, WORDS


@pytest.mark.slow
def test_made_scenes_are_put_into_words(ran):
    _, scores = ran(captions, "scenes", scenes=640, epochs=12)
    frequent, each, gru = map(np.mean, scores.values())
    assert gru > 3 * frequent
    assert each > 3 * frequent


def test_what_is_written_is_what_the_network_expects_behind_it():
    apply, rng = jax.jit(captions.apply), np.random.default_rng(3)
    params = jax.jit(captions.init)(jax.random.key(0))
    # With which sentences end at several places.
    noise = jax.tree.map(lambda leaf: 0.1 * rng.normal(size=leaf.shape).astype("f"), params)
    params = jax.tree.map(lambda leaf, more: leaf + more, params, noise)
    scenes = np.random.default_rng(0).random((1, 20, SCENE, SCENE), np.float32)
    part = {"scenes": scenes, "words": np.zeros((LENGTH, 20), np.int32)}
    alone, words = map(np.asarray, captions.write(params, part))
    assert alone.shape == words.shape == (LENGTH, 20)
    ended = np.cumsum(words == 0, axis=0) > 0
    assert (words[ended] == 0).all()
    assert 0 < ended.mean() < 1
    each, behind = apply(params, {**part, "words": words})
    first = np.cumsum(ended, axis=0) == 1
    counts = ~ended | first
    np.testing.assert_array_equal(np.argmax(behind, axis=-1)[counts], words[counts])
    # The first word knows the scene alone, the others those before it too.
    other = {**part, "words": np.concatenate([(words[:1] + 1) % len(WORDS), words[1:]])}
    each_changed, changed = apply(params, other)
    differs = (np.asarray(changed) != np.asarray(behind)).any(axis=(1, 2))
    assert differs.tolist() == [False] + [True] * (LENGTH - 1)
    np.testing.assert_array_equal(each, each_changed)
