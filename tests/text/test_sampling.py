import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rnnjax import InvalidInputError
from rnnjax.errors import NonFiniteError
from rnnjax.text import Sampling, read, sample, stream

# Some examples, or at length.
EXAMPLES = pytest.mark.parametrize("examples", [25, pytest.param(500, marks=pytest.mark.slow)])


def drawn(examples, *strategies):
    """A property as a decorator, which calls what it decorates; the same each time."""
    fixed = settings(max_examples=examples, derandomize=True, deadline=None, database=None)
    return lambda function: fixed(given(*strategies)(function))()


def plain(logits, sampling, recent=()):
    """The distribution of one row by a loop over its characters, in float64."""
    x = np.array(logits, np.float64)
    for i in set(recent):
        x[i] = (
            x[i] / sampling.repetition_penalty if x[i] > 0 else x[i] * sampling.repetition_penalty
        )
    if sampling.temperature == 0:
        return np.eye(len(x))[int(np.argmax(x))]
    p = np.exp((x - x.max()) / sampling.temperature)
    if sampling.top_k:
        p[[i for i in range(len(p)) if (p > p[i]).sum() >= sampling.top_k]] = 0
    p /= p.sum()
    if sampling.top_p < 1:
        p[[i for i in range(len(p)) if p[p > p[i]].sum() >= sampling.top_p]] = 0
    return p / p.sum()


def fixed(params, carry, tokens):
    """A model that predicts the same whatever it reads."""
    return carry, jnp.broadcast_to(params, (*tokens.shape, params.shape[-1]))


def table(params, carry, tokens):
    """A model that predicts from the last character alone."""
    return carry, params[tokens]


LOGITS = np.log([0.36, 0.03, 0.25, 0.2, 0.11, 0.05]).astype(np.float32)


def test_sequences_have_the_distribution_of_the_equations():
    """All 27 sequences of three characters, where the penalty looks back on the last two."""
    logits = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)
    sampling = Sampling(0.9, top_p=0.93, repetition_penalty=1.6, penalty_window=2)
    rows = 30_000
    history = np.tile([[2], [0], [1]], rows)
    _, ids = sample(table, logits, (), history[-1], key=jax.random.key(3), length=3,
                    sampling=sampling, history=history)  # fmt: skip
    expected = np.full(27, float(rows))
    for n, text in enumerate(itertools.product(range(3), repeat=3)):
        for *before, last in zip((0, 1, text[0]), (1, *text), text, strict=False):
            expected[n] *= plain(logits[before[-1]], sampling, before)[last]
    counts, possible = np.bincount(np.asarray(ids.T) @ [9, 3, 1], minlength=27), expected > 0
    assert (possible.sum(), counts[~possible].sum()) == (22, 0)
    # Chi-square: over its bound once in 10,000 runs, and the draws are always the same.
    assert ((counts - expected)[possible] ** 2 / expected[possible]).sum() < 54


options = st.builds(
    Sampling,
    st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    st.sampled_from([0, 1, 2, 5, 7, 10**12]),
    st.sampled_from([1e-30, 0.2, 0.6, 0.95, 1.0]),
    st.sampled_from([0.5, 1.0, 1.5]),
    st.sampled_from([1, 3]),
)


@EXAMPLES
def test_the_filters_are_those_of_a_loop_over_the_characters(examples):
    @drawn(examples, options, st.integers(0, 2**32 - 1))
    def check(sampling, seed):
        rng = np.random.default_rng(seed)
        logits = rng.normal(scale=2, size=(4, 7)).astype(np.float32)
        logits[0, :3] = logits[0, 3]  # ties
        logits[1, 2:6] = -np.inf
        recent = rng.integers(-1, 7, (5, 4))
        expected = [
            plain(row, sampling, [i for i in last[-sampling.penalty_window :] if i >= 0])
            for row, last in zip(logits, recent.T, strict=True)
        ]
        # A share that is reached exactly is a matter of rounding.
        weights = np.exp(sampling.filter(logits, recent))
        probabilities = weights / weights.sum(axis=-1, keepdims=True)
        np.testing.assert_allclose(probabilities, expected, atol=2e-6)


def draw(sampling, logits):
    tokens = np.zeros(200, np.int32)
    _, ids = sample(fixed, logits, (), tokens, key=jax.random.key(0), length=1,
                    sampling=sampling)  # fmt: skip
    return np.asarray(ids[0])


@pytest.mark.parametrize(
    ("logits", "left", "samplings"),
    [
        (LOGITS, set(range(6)), [None, Sampling(), Sampling(top_k=10**12)]),
        (1000 * LOGITS, {0}, [Sampling(0.0), Sampling(0.0, 3, 0.5), Sampling(top_k=1)]),
        (1000 * LOGITS, {0}, [Sampling(top_p=1e-45), *map(Sampling, (1e-30, 1e-45, 5e-324))]),
        # The filters cannot tell equals apart; greedy takes one.
        ([0, 2, 2, -1, 2, -1], {1, 2, 4}, [Sampling(top_k=1), Sampling(top_k=2)]),
        ([0, 2, 2, -1, 2, -1], {1, 2, 4}, [Sampling(top_p=0.01)]),
        ([0, 2, 2, -1, 2, -1], {1}, [Sampling(0.0, top_k=1)]),
        ([-np.inf, 0, -np.inf, 0.5], {1, 3}, [Sampling(100.0), Sampling(top_k=3, top_p=0.99999)]),
        ([-np.inf, 0, -np.inf, 0.5], {3}, [Sampling(0.0)]),
    ],
)  # fmt: skip
def test_what_is_left_is_drawn(logits, left, samplings):
    for sampling in samplings:
        assert set(draw(sampling, np.array(logits, np.float32))) == left


def test_character_n_is_drawn_with_fold_in_of_n():
    key = jax.random.key(5)
    _, ids = sample(fixed, LOGITS, (), np.int32(0), key=key, length=4)
    drawn = jax.jit(lambda n: jax.random.categorical(jax.random.fold_in(key, n), LOGITS))
    assert ids.tolist() == [drawn(n) for n in range(4)]


def test_wide_logits_are_filtered_in_their_own_type(x64):
    logits = jnp.array([0.0, 1e-12, -1e-12, 2e-12])
    assert logits.dtype == jnp.float64
    kept = Sampling(top_k=2, top_p=0.9).filter(logits)
    assert jnp.isfinite(kept).tolist() == [False, True, False, True]
    assert Sampling(0.0).filter(logits).tolist() == [*[-np.inf] * 3, 0]


def test_draws_from_narrow_logits_are_as_fine_as_those_from_wide_ones():
    """Sums of 200 equal probabilities, and noise, would be rounded away in bfloat16."""
    logits, sampling = np.where(np.arange(200) == 0, np.float32(-9), 0), Sampling(top_p=0.9999)
    narrow = draw(sampling, logits.astype(jnp.bfloat16))
    np.testing.assert_array_equal(narrow, draw(sampling, logits))
    assert len(set(narrow)) > 100


def step(params, carry, tokens):
    carry = jnp.tanh(params["read"][tokens] + carry @ params["recur"])
    return carry, carry @ params["write"]


@pytest.fixture(scope="module")
def params(random_like):
    shapes = {"read": (4, 5), "recur": (5, 5), "write": (5, 4)}
    return random_like({name: np.zeros(shape) for name, shape in shapes.items()}, 0, scale=1.5)


def carry_of(*rows):
    return np.zeros((*rows, 5), np.float32)


@pytest.mark.parametrize("impl", ["threefry2x32", "unsafe_rbg"])
def test_a_row_draws_what_it_draws_alone_with_its_key(params, impl):
    tokens, key = np.array([0, 3, 1, 2, 2]), jax.random.key(7, impl=impl)
    options = {"length": 20, "sampling": Sampling(1.2, 3, 0.95, 9.0, 3)}
    history = np.random.default_rng(0).integers(0, 4, (4, 5))
    carry, together = sample(step, params, carry_of(5), tokens, key=key, history=history, **options)
    keys = jnp.stack([jax.random.fold_in(key, row) for row in range(5)])
    more = {"key": keys[1:], "history": history[:, 1:]}
    after, ids = sample(step, params, carry_of(4), tokens[1:], **more, **options)
    together = np.asarray(together)
    np.testing.assert_array_equal(ids, together[:, 1:])
    np.testing.assert_allclose(after, np.asarray(carry)[1:], atol=1e-6)
    assert not np.array_equal(together[:, 3], together[:, 4])
    # Nor does it need a batch, nor does the length matter; and the keys of old mean the same.
    last = keys[4] if impl == "unsafe_rbg" else jax.random.key_data(keys[4])
    options["length"] = 6
    more = {"key": last, "history": history[:, 4]}
    alone, ids = sample(step, params, carry_of(), tokens[4], **more, **options)
    np.testing.assert_array_equal(ids, together[:6, 4])
    assert alone.shape == (5,)


def test_only_what_is_in_use_is_compiled_and_once_for_all_numbers():
    traces = []

    def counted(params, carry, tokens):
        traces.append(1)
        return fixed(params, carry, tokens)

    def text(sampling):
        run = functools.partial(sample, counted, length=2, sampling=sampling)
        return str(jax.make_jaxpr(lambda key: run(LOGITS, (), jnp.int32(0), key=key))(
            jax.random.key(0)))  # fmt: skip

    # A filter works on the bits of the logits.
    plainly, greedy = text(Sampling()), text(Sampling(0.0, 3, 0.5))
    for sampling in (Sampling(top_k=2), Sampling(top_p=0.5)):
        assert text(sampling).count("bitcast") > plainly.count("bitcast")
    assert "random_bits" in plainly
    assert not any(name in greedy for name in ("bitcast", "random_bits"))
    text(Sampling(0.7, 3, 0.9, 1.1))
    once = len(traces)
    text(Sampling(1.4, 2, 0.5, 1.3))
    assert len(traces) == once
    text(Sampling(1.4, 0, 0.5, 1.3))
    assert len(traces) > once


def first_stop(text, stops):
    """Where a text ends, by a search that sees all of it; the stop that is complete first."""
    for end in range(1, len(text) + 1):
        begins = [end - len(s) for s in stops if len(s) <= end and text[end - len(s) : end] == s]
        if begins:
            return min(begins)
    return None


def check_text(params, text, tokens, got):
    """The state must be that of a reader of the whole text from its start."""
    for row, ids in enumerate(got):
        whole, carry = [int(tokens[row]), *ids], carry_of()
        for character in whole[:-1]:
            carry = np.tanh(params["read"][character] + carry @ params["recur"])
        np.testing.assert_allclose(text.carry[row], carry, atol=1e-5)
        assert int(text.tokens[row]) == whole[-1]


STOPS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5).map(tuple), max_size=3)
PENALTY = {"sampling": Sampling(0.9, repetition_penalty=1.3, penalty_window=3),
           "history": np.array([[1, -1, 2], [0, 3, 1]])}  # fmt: skip
STREAMS = [(chunk, more) for chunk in (1, 3, 14) for more in ({}, PENALTY)]


@EXAMPLES
def test_each_row_ends_before_its_stop_string_and_can_go_on(params, examples):
    """The characters are those of one call."""
    params = jax.tree.map(np.asarray, params)

    @drawn(examples, STOPS, st.sampled_from(STREAMS), st.integers(0, 9999), st.integers(0, 3))
    def check(stops, how, seed, pause):
        tokens, (chunk, more) = np.array([0, 3, 1]), how
        given = {"key": jax.random.key(seed), "length": 14, **more}
        _, ids = sample(step, params, carry_of(3), tokens, **given)
        texts = [tuple(row) for row in np.asarray(ids).T.tolist()]
        made = stream(step, params, carry_of(3), tokens, stops=stops, chunk=chunk, **given)
        got = [[], [], []]
        for count, pieces in enumerate(made):
            for row, piece in zip(got, pieces, strict=True):
                row.extend(piece.tolist())
            if count == pause:  # go on from the middle
                check_text(params, made.text, tokens, got)
        ends = [first_stop(text, stops) for text in texts]
        assert got == [list(text[:end]) for text, end in zip(texts, ends, strict=True)]
        assert made.stopped.tolist() == [end is not None for end in ends]
        check_text(params, made.text, tokens, got)


def test_what_may_begin_a_stop_string_is_held_back():
    following = 9 * np.eye(9, k=1, dtype=np.float32)  # 0 to 1 to 2 ...
    made = stream(table, following, (), np.array([0, 4]), key=jax.random.key(0), length=6,
                  stops=[[2, 4], [3], [6, 7]], chunk=1, sampling=Sampling(0.0))  # fmt: skip
    assert made.text.tokens.tolist() == [0, 4]
    found = [[piece.tolist() for piece in pieces] for pieces in made]
    assert found == [[[1], [5]], [[2], []]]
    assert made.stopped.all()
    assert made.text.tokens.tolist() == [2, 5]


def test_reading_needs_no_characters(params):
    carry = carry_of(2)
    assert read(step, params, carry, np.zeros((0, 2), int)) is carry
    assert read(step, params, carry, [[1, 2]], lengths=[0, 0]) is carry


@pytest.mark.parametrize("time", [16, 17])  # padded to a power of two
def test_each_character_is_read_once(time):
    def add(params, carry, tokens):
        return carry + tokens, carry[:, None]

    ids, carry = np.ones((time, 2), int), np.zeros(2, int)
    assert read(add, (), carry, ids, lengths=[time, 3]).tolist() == [time, 3]


@pytest.mark.parametrize("bad", [[0, np.nan, 0, 0], [0, np.inf, 0, 0], [-np.inf] * 4], ids=str)
def test_logits_with_nothing_to_draw_from_are_an_error(bad):
    logits = np.array([[0, 0, 9, 0], [9, 0, 0, 0], bad, [0, 0, 0, 0]], np.float32)  # 1 to 0 to 2
    stays = logits + 9 * np.eye(4, dtype=np.float32)[3] * (np.arange(4) == 3)[:, None]
    options = {"key": jax.random.key(0), "length": 9}
    for sampling in (Sampling(0.0), Sampling(1e-3, 3, 0.9, 1.1)):
        with pytest.raises(NonFiniteError, match="character 2 of row 1 have NaN, plus infinity"):
            sample(table, stays, (), np.array([3, 1]), sampling=sampling, **options)
    options |= {"chunk": 2, "sampling": Sampling(0.0)}
    made = stream(table, logits, (), np.array([1]), **options)
    assert next(made)[0].tolist() == [0, 2]
    with pytest.raises(NonFiniteError, match="character 2 of row 0"):
        next(made)
    # Behind a stop string nothing matters; inside of `jit` nothing is raised.
    made = stream(table, logits, (), np.array([1]), stops=[[2]], **options)
    assert next(made)[0].tolist() == [0]
    inside = jax.jit(lambda: sample(table, logits, (), np.array([3, 1]), key=jax.random.key(0),
                                    length=3, temperature=0)[1])  # fmt: skip
    assert inside()[2, 1] == -1


def called(function=sample, tokens=(0, 0, 0), **changed):
    given = {"key": jax.random.key(0), "length": 2, **changed}
    return function(fixed, LOGITS, (), tokens, **given)


def returning(what):
    return sample(lambda params, carry, tokens: what(carry), (), (), np.zeros(3, int),
                  key=jax.random.key(0), length=2)  # fmt: skip


def reading(ids, lengths=None):
    return read(fixed, LOGITS, (), ids, lengths=lengths)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Sampling(-1.0), "temperature must be a number from 0"),
        (lambda: Sampling(np.nan), "but is nan"),
        (lambda: Sampling(np.inf), "but is inf"),
        (lambda: Sampling(10**400), "temperature must be a number from 0"),
        (lambda: Sampling("hot"), "temperature must be a number from 0 .*, but is 'hot'"),
        (lambda: Sampling(top_k=-1), "top_k must be an integer from 0 up, but is -1"),
        (lambda: Sampling(top_k=2.5), "but is 2.5"),
        (lambda: Sampling(top_p=0.0), "top_p must be a number above 0 and at .*, but is 0.0"),
        (lambda: Sampling(top_p=1.1), "but is 1.1"),
        (lambda: Sampling(repetition_penalty=0.0), "repetition_penalty must be a number above 0"),
        (lambda: Sampling(penalty_window=0), "penalty_window must be a positive integer"),
        (lambda: Sampling(repetition_penalty=2.0).filter(LOGITS), "recent was left out"),
        (lambda: Sampling(repetition_penalty=2.0).filter(jnp.ones((3, 4)), [1, 2]),
         r"recent must be \(n, \*batch\)"),
        (lambda: called(length=0), "length must be a positive integer"),
        (lambda: called(temperature=1.0, sampling=Sampling()), "leave one out"),
        (lambda: called(sampling=0.5), "sampling must be a Sampling, as Sampling.*, but is 0.5"),
        (lambda: called(key=jax.random.split(jax.random.key(0), 2)), r"each row, \(3,\)"),
        (lambda: called(key=3), "key must be a JAX random key"),
        (lambda: called(history=[[0.5, 0, 1]]), "history must be integers, .* but are float64"),
        (lambda: called(history=jnp.zeros((5, 2), int)), r"history must be \(n, \*batch\)"),
        (lambda: called(tokens=jnp.zeros(3)), "tokens must be integers, the ids of"),
        (lambda: called(stream, jnp.int32(0)), r"must be \(batch,\)"),
        (lambda: called(stream, chunk=0), "chunk must be a positive integer"),
        (lambda: called(stream, stops=[[]]), "at least one character"),
        (lambda: called(stream, stops=[[1.5]]), "ids must be integers"),
        (lambda: called(key=np.zeros(2)), r"key must be a JAX random key .* is float64 \(2,\)"),
        (lambda: called(key=np.zeros(3, np.uint32)), r"a JAX random key .* is uint32 \(3,\)"),
        (lambda: returning(lambda carry: (LOGITS, carry)), r"step must return \(carry, logits\)"),
        (lambda: returning(lambda carry: LOGITS), r"but returned float32\[6\]; return both"),
        (lambda: returning(lambda carry: (carry, LOGITS)), r"logits \(3, 'vocabulary'\), but"),
        (lambda: reading([[1], [2, 3]]), "ids must be integers, .* but are object"),
        (lambda: called(stream, stops=[[-1]]), "but -1 came at position 0"),
        (lambda: reading([1, 2]), "time, batch"),
        (lambda: reading([[1, 2]], [1, 2]), "from 0 to 1"),
        (lambda: reading([[1, 2]], [0.5, 1.0]), "whole numbers from 0 to 1"),
    ],
)  # fmt: skip
def test_refuses(call, message):
    with pytest.raises(InvalidInputError, match=message):
        call()


def test_a_long_stream_keeps_few_characters_and_states():
    """One row may always begin a stop string, while the other writes on."""
    stops, length, chunk = [[0, 0, 1]], 4096, 16
    logits = 9 * np.eye(3, dtype=np.float32)  # each character follows itself
    made = stream(table, logits, (), np.array([0, 2]), key=jax.random.key(0), length=length,
                  chunk=chunk, sampling=Sampling(temperature=0), stops=stops)  # fmt: skip
    written, held = [0, 0], 0
    for pieces in made:
        written = [n + len(piece) for n, piece in zip(written, pieces, strict=True)]
        held = max(held, len(made._ids), chunk * len(made._states))
    assert written == [length, length]
    assert held <= 3 * chunk
