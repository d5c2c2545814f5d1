import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from experiments.cookbook import translation
from experiments.cookbook.translation import BEGIN, END, PADDING, UNKNOWN, Model, numbered


def test_words_and_sentences():
    sentence = "a man's red-haired boy (left) doesn't run, or stop!"
    words = translation.words_of(sentence)
    assert words[:4] == ["a", "man", "'s", "red"]
    assert translation.NO_SPACE.sub("", " ".join(words)) == sentence


def test_numbers_of_words_in_parts():
    known = {"ein": 4, "hund": 5}, {"a": 4, "dog": 5}
    pairs = [("hund", "dog"), ("ein hund", "a dog"), ("ein alter hund", "an old dog")]
    (short, _, long), ((german, english),) = numbered(pairs, known), numbered(pairs, known, 1)
    assert [part.T.tolist() for part in short] == [[[5]], [[5, END]]]
    assert long[0].T.tolist() == [[4, UNKNOWN, 5]]
    assert german.T.tolist()[:2] == [[5, PADDING, PADDING], [4, 5, PADDING]]
    assert english.T.tolist()[1:] == [[4, 5, END, PADDING], [UNKNOWN, UNKNOWN, 5, END]]


@pytest.fixture(scope="module")
def small():
    model = Model(8, 0.5)
    params = jax.jit(model.init, static_argnums=(1, 2))(jax.random.key(0), 7, 6)
    # Compiled as a whole: each operation for itself takes several times as long.
    model.read, model.choose = jax.jit(model.read), jax.jit(model.choose)
    model.search = jax.jit(model.search, static_argnums=(2, 3))
    # Large ones, so that what is read makes a difference.
    return model, jax.tree.map(lambda x: 3 * np.asarray(x), params)


@pytest.mark.smoke
def test_padding_changes_nothing(small):
    model, params = small
    german, english = np.array([[4, 5, 6], [6, 4, 0]]).T, np.array([[4, 5, END], [4, END, 0]]).T
    longer = [np.pad(x, ((0, 2), (0, 0))) for x in (german, english)]

    @jax.jit
    def all_of_them(params):
        found = [model.losses(params, german, english), model.losses(params, *longer)]
        alone, _ = model.losses(params, german[:2, 1:], english[:2, 1:])
        mean = model.loss(params, [longer, (german, english)])
        return *found, alone, mean, model.loss(params, [longer], jax.random.key(1))

    found = jax.tree.map(np.asarray, all_of_them(params))
    (losses, weights), (padded, padded_weights), alone, mean, noisy = found
    np.testing.assert_allclose(padded[:3], losses, rtol=1e-5)
    np.testing.assert_allclose(padded_weights[:3, :3], weights, rtol=1e-5)
    assert (padded[3:] == 0).all()
    assert losses[2, 1] == 0
    assert (weights[:, 2, 1] == 0).all()
    np.testing.assert_allclose(losses[:2, 1:], alone, rtol=1e-5)
    np.testing.assert_allclose(mean, losses.sum() / 5, rtol=1e-5)
    assert noisy != mean


def test_a_wide_beam_finds_the_best_of_all_translations(small):
    model, params = small
    german, most = np.array([6, 6, 4]), 3
    every = np.array(list(itertools.product([END, 4, 5], repeat=most)))
    before = np.insert(every[:, :-1], 0, BEGIN, axis=1).T

    @jax.jit
    def logarithms(params):
        """Return the log probabilities of words ``(time, sentences, words)`` after those before."""
        carry, memory = model.read(params, german)
        carry = jax.tree.map(lambda x: jnp.broadcast_to(x, (before.shape[1], *x.shape)), carry)
        _, ys = rnnjax.unroll(model.decoder, params["decoder"], params["english"][before], carry)
        logits, _ = model.choose(params, ys.reshape(-1, 8), memory)
        return jax.nn.log_softmax(logits.at[:, :END].set(-jnp.inf)).reshape(*before.shape, -1)

    log, scores = np.asarray(logarithms(params)), []
    for row, words in enumerate(every):
        length = [*words, END].index(END)
        total = sum(log[time, row, words[time]] for time in range(min(length + 1, most)))
        scores.append(total / (length + 1) ** 0.6)
    best = every[int(np.argmax(scores))]
    found = model.search(params, german, 27, most)
    assert found.tolist() == [*itertools.takewhile(lambda w: w != END, best), END, END, END][:most]
