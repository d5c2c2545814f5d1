"""One-hot inputs given as ids: the numbers of the vectors themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax import OneHot
from rnnjax.engine.core.masking import zero_masked

SIZE, IDS = 7, np.array([[3, 0, 6], [1, 3, 3], [-1, 7, 2], [5, 5, 0]], np.int32)
DENSE = np.float32(IDS[..., None] == np.arange(SIZE))  # -1 and 7 are out of range: zeros
METHODS = [rnnjax.Scan(), rnnjax.Fused(), rnnjax.Fused(keep_every=3), rnnjax.Auto()]


@pytest.mark.parametrize(
    ("cell", "methods"),
    [
        (rnnjax.SimpleRNNCell(4), METHODS[:3]),
        (rnnjax.Stack([rnnjax.GRUCell(4), rnnjax.SimpleRNNCell(3)]), METHODS[3:]),
        pytest.param(rnnjax.LSTMCell(4), METHODS, marks=pytest.mark.slow),
    ],
    ids=["sum", "stack", "lstm"],
)
def test_outputs_and_gradients_are_those_of_the_vectors(cell, methods, equal_to_scan):
    def by(method):
        def run(cell, params, dense, *given, **options):
            return rnnjax.unroll(cell, params, OneHot(IDS, SIZE), *given, **options, method=method)

        return run

    equal_to_scan(cell, [*map(by, methods)], steps=4, features=SIZE, xs=DENSE)


@pytest.mark.parametrize(
    ("cell", "method"),
    [
        (rnnjax.LSTMCell(4), rnnjax.Fused(product_dtype=jnp.bfloat16)),
        (rnnjax.SimpleRNNCell(4, dtype=jnp.bfloat16), rnnjax.Auto()),  # which rounds its rows
    ],
    ids=["products", "cell"],
)
def test_without_a_batch_in_bfloat16_and_under_vmap(cell, method, random_like, assert_close):
    params = random_like(lambda: cell.init(jax.random.key(0), SIZE), 1)

    def run(ids):
        return rnnjax.unroll(cell, params, OneHot(ids, SIZE), method=method)[1]

    ys, dense = jax.vmap(run, 1, 1)(IDS), rnnjax.unroll(cell, params, DENSE)[1]
    assert ys.dtype == dense.dtype == (cell.dtype or jnp.float32)
    assert_close(np.asarray(ys)[:, 1], run(IDS[:, 1]), 1e-6)
    assert_close(ys, dense, 2e-2)


def test_the_gradient_of_a_frequent_id_is_summed_in_float32(random_like, assert_close):
    cell = rnnjax.SimpleRNNCell(3)
    params = random_like(lambda: cell.init(jax.random.key(0), SIZE), 1)
    ids = np.full((5, 400), 2)

    @jax.jit
    def gradient(params, xs):
        method = rnnjax.Fused(product_dtype=jnp.bfloat16)
        return jax.grad(lambda p: rnnjax.unroll(cell, p, xs, method=method)[1].sum())(params)

    dense = gradient(params, np.float32(ids[..., None] == np.arange(SIZE)))
    assert_close(gradient(params, OneHot(ids, SIZE)), dense, 1e-2)


def test_ids_of_a_narrow_type():
    """-1 stands for masked ids, which uint8 does not have: it would be id 255.

    Guards the ids of a learner too, whose influence needs the vectors (`OneHot.dense`).
    """
    ids, valid = np.array([-1, 3], np.int8), np.array([True, False])
    rows = jax.jit(lambda ids: OneHot(ids, 128).rows(jnp.ones((128, 2))))(ids)
    assert rows.tolist() == [[0, 0], [1, 1]]
    assert [one.shape for one in OneHot(ids, 128)] == [(128,), (128,)]
    ids = np.array([[255, 3], [255, 3]], np.uint8)
    rows = jax.jit(lambda ids: zero_masked(OneHot(ids, 256), valid).rows(jnp.ones((256, 1))))(ids)
    assert rows.tolist() == [[[1], [1]], [[0], [0]]]
    assert OneHot(ids[0], 300).dense(bool).nonzero()[1].tolist() == [255, 3]  # of 259 too, as uint8


def test_the_flax_wrappers_take_them(assert_close):
    from flax import nnx

    import rnnjax.linen
    import rnnjax.nnx

    cell, ids, dense = rnnjax.GRUCell(4), OneHot(IDS.T, SIZE), DENSE.swapaxes(0, 1)
    model = rnnjax.linen.RNN(cell)
    variables = jax.jit(model.init)(jax.random.key(0), ids)
    assert_close(model.apply(variables, ids), model.apply(variables, dense), 1e-6)
    module = rnnjax.nnx.RNN(cell, SIZE, time_major=True, rngs=nnx.Rngs(0))
    assert_close(module(OneHot(IDS, SIZE)), module(DENSE), 1e-6)


def test_ids_can_be_checked_and_bad_ones_are_refused():
    assert OneHot(np.array([0, SIZE - 1]), SIZE).check().size == SIZE
    cell = rnnjax.LSTMCell(4)
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), SIZE))
    for call, message in [
        (lambda: OneHot(np.ones(3), 5), "ids of OneHot must be integers, but are"),
        (lambda: OneHot(IDS, 0), "size of OneHot must be a positive"),
        (lambda: rnnjax.unroll(cell, params, OneHot(IDS, 8)), r"8 features, but params.*for 7"),
        (OneHot(np.array([-1, 0, SIZE]), SIZE).check, r"0 and .*, but 2 of 3 .*first.* -1"),
        (jax.jit(lambda: OneHot(jnp.zeros(1, int), SIZE).check().ids), "outside of jit"),
    ]:
        with pytest.raises(rnnjax.InvalidInputError, match=message):
            call()


def test_few_symbols_are_not_made_for_all_steps_at_once():
    cell, steps, rows = rnnjax.LSTMCell(128), 2000, 64
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 16))
    ids = jax.ShapeDtypeStruct((steps, rows), jnp.int32)

    @jax.jit
    def last(params, ids):
        return rnnjax.unroll(cell, params, OneHot(ids, 16), method=rnnjax.Fused(), outputs="last")

    used = last.lower(params, ids).compile().memory_analysis().temp_size_in_bytes
    assert used < steps * rows * 16  # bytes: the vectors alone take four times this
