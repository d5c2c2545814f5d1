"""`Chunked`: the numbers of the plain scan, from chunks as rows of the batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cell_table import OwnStepCell, nowhere_zero

import rnnjax
from rnnjax import Chunked, InvalidInputError, Scan

TIME, BATCH = 14, 3
KEY = jax.random.key(0)
MASK = np.random.default_rng(0).random((TIME, BATCH)) < 0.8
RESETS = np.random.default_rng(1).random((TIME, BATCH)) < 0.2
LENGTHS = np.array([TIME, 5, 0])

CELLS = {
    "lstm": rnnjax.LSTMCell(4),
    "gru": rnnjax.GRUCell(4),
    "diagonal-gru": rnnjax.DiagonalGRUCell(4),
    "peephole": rnnjax.PeepholeLSTMCell(4, peephole_init="ones"),
    "lru": rnnjax.LRUCell(4, state_size=3),
    "zoneout": rnnjax.Regularized(rnnjax.LSTMCell(4), zoneout_hidden=0.3, recurrent_dropout=0.2),
    "convolution": rnnjax.ConvLSTMCell(2, kernel_shape=(3,)),
    "step": OwnStepCell(4),
}


def results(name, method):
    """Outputs and gradients, with all marks at once."""
    cell = CELLS[name]
    batch = (BATCH, 2) if name == "convolution" else (BATCH,)
    params, xs, carry, start = nowhere_zero(cell, TIME, batch)

    def loss(params, xs, carry, start):
        carry, ys = rnnjax.unroll(
            cell, params, xs, carry, mask=MASK, lengths=LENGTHS, resets=RESETS, reset_carry=start,
            reverse=True, key=KEY if name == "zoneout" else None, method=method,
        )  # fmt: skip
        return sum((x**2).sum() for x in jax.tree.leaves(carry)) + jnp.sin(ys).sum(), (carry, ys)

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True))(params, xs, carry, start)


# How a sequence is cut does not depend on the cell: into chunks that do not fit, for two of them.
# Nor does it see more of one than the leaves of its carry, the axes of its rows and what it draws.
ALIKE = ["lstm", "gru", "diagonal-gru", "peephole", "lru", "zoneout", "step"]
ROWS = [
    *(
        pytest.param(
            name, Chunked(chunks=7, warmup=1), marks=pytest.mark.slow if name in ALIKE else []
        )
        for name in CELLS
    ),
    ("zoneout", Chunked(chunks=4, warmup=1)),
    pytest.param("lstm", Chunked(chunks=4), marks=pytest.mark.slow),
    ("step", Chunked(chunks=3, warmup=0)),
]


@pytest.mark.parametrize(("name", "method"), ROWS)
@pytest.mark.usefixtures("x64")
def test_it_gives_the_numbers_of_the_scan(name, method, assert_close):
    assert_close(results(name, method), expected(name), 1e-11)


@functools.cache
def expected(name):
    return results(name, Scan())


def drawn(*shape):
    return np.random.default_rng(2).normal(size=shape).astype("float32")


@functools.cache
def params_of_gru(longest=None):
    cell = rnnjax.GRUCell(4, bias_init=rnnjax.Chrono(longest) if longest else "zeros")
    return jax.jit(cell.init, static_argnums=1)(KEY, 2)


@functools.partial(jax.jit, static_argnums=2)
def gradients(params, xs, method):
    def loss(params, xs):
        carry, ys = rnnjax.unroll(rnnjax.GRUCell(4), params, xs, method=method)
        return (ys**2).sum() + sum(leaf.sum() for leaf in jax.tree.leaves(carry)), ys

    return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, xs)


def test_a_warm_up_is_all_that_a_short_memory_needs(assert_close):
    """Whatever comes out of the first time is taken, forward and backwards."""
    args = params_of_gru(), drawn(240, 2, 2)
    once = gradients(*args, Chunked(6, tolerance=1e9))
    assert_close(once, gradients(*args, Scan()), 2e-5)
    with pytest.raises(AssertionError):
        assert_close(once, gradients(*args, Chunked(6, 0, tolerance=1e9)), 1e-2)


def test_ends_are_handed_on_where_the_memory_is_long(assert_close):
    args = params_of_gru(longest=500), drawn(240, 2, 2)
    assert_close(gradients(*args, Chunked(6)), gradients(*args, Scan()), 2e-5)


def test_vmap_and_forward_mode(random_like, assert_close):
    cell, xs = rnnjax.SimpleRNNCell(3), drawn(10, 2, 2)
    params = random_like(lambda: cell.init(KEY, 2), 1)

    def run(xs, method):
        return rnnjax.unroll(cell, params, xs, method=method)[1]

    @functools.partial(jax.jit, static_argnums=(1, 2))
    def each(xs, method, rows):
        gradient = jax.grad(lambda xs: jnp.sin(run(xs, method)).sum())
        forwards = jax.jvp(lambda xs: run(xs, method), (xs,), (jnp.cos(xs),))
        return (jax.vmap(gradient, 1, 1) if rows else gradient)(xs), forwards

    assert_close(each(xs, Chunked(3), True), each(xs, Scan(), False), 1e-5)


def test_no_nan_crosses_a_reset(random_like, assert_close):
    cell, xs = rnnjax.SimpleRNNCell(3), drawn(TIME, BATCH, 2)
    params = random_like(lambda: cell.init(KEY, 2), 1)
    resets, counts = np.zeros((TIME, BATCH), bool), np.ones((TIME, BATCH, 1), bool)
    xs[2, 0], resets[5, 0], counts[:5, 0] = np.nan, True, False

    @functools.partial(jax.jit, static_argnums=0)
    def gradients(method):
        def loss(params, xs):
            _, ys = rnnjax.unroll(cell, params, xs, resets=resets, method=method)
            return jnp.where(counts, ys, 0).sum()

        return jax.value_and_grad(loss, (0, 1))(params, xs)

    found = gradients(Chunked(7, 1))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    assert_close(found, gradients(Scan()), 1e-5)


def test_rows_of_a_step_of_its_own_may_see_each_other(random_like, assert_close):
    """Attention's memory stands in the parameters, with a batch of its own."""
    cell = rnnjax.AttentionCell(rnnjax.GRUCell(4), memory_size=3, attention_size=2)
    memory, xs = drawn(5, 2, 3), drawn(9, 2, 2)
    params = jax.jit(cell.over)(random_like(lambda: cell.init(KEY, 2), 1), memory)
    _, ys = rnnjax.unroll(cell, params, xs, method=Scan())
    assert_close(rnnjax.unroll(cell, params, xs, method=Chunked(3))[1], ys, 1e-5)


def test_it_says_how_it_runs_and_what_it_refuses():
    cell = rnnjax.LSTMCell(4)
    params, xs = jax.eval_shape(lambda: cell.init(KEY, 2)), np.ones((16384, 1, 2), "float32")
    text = str(rnnjax.explain(cell, params, xs, method=Chunked()))
    assert "128 chunks of 128 steps as rows of the batch" in text
    assert "192 of 16384 steps wait" in text
    assert "projects the inputs of 128 steps in one product" in text
    single = str(rnnjax.explain(cell, params, xs[:3], method=Chunked(chunks=1)))
    assert "one chunk of all steps" in single
    for bad in ({"chunks": 0}, {"warmup": -1}, {"warmup": True}, {"tolerance": -1.0}):
        with pytest.raises(InvalidInputError, match=next(iter(bad))):
            Chunked(**bad)


class CountingCell(OwnStepCell):
    """Its carry counts."""

    def initial_carry(self, batch_shape=(), dtype=None):
        return jnp.zeros((*batch_shape, self.hidden_size), jnp.int32)


class ForgetfulCell(OwnStepCell):
    """It has no carry."""

    def initial_carry(self, batch_shape=(), dtype=None):
        return ()


@pytest.mark.parametrize(
    ("cell", "message"),
    [(CountingCell(4), "floating-point numbers alone"), (ForgetfulCell(4), "carry is empty")],
)
def test_a_carry_that_cannot_stand_still_is_refused(cell, message):
    with pytest.raises(InvalidInputError, match=message):
        rnnjax.unroll(cell, cell.init(KEY, 2), jnp.ones((4, 2, 2)), method=Chunked())
