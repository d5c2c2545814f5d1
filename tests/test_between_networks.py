"""What stands between networks: pooling, attention, restarts, gradients of states."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cell_table import CELLS, WAYS, begun, grid, refusals

import rnnjax

KEY = jax.random.key(0)


def normal(number, *shape):
    """Drawn by NumPy, as JAX would compile a program for each shape."""
    return jax.device_put(np.random.default_rng(number).standard_normal(shape, np.float32))


@pytest.fixture(scope="module")
def draw(random_like):
    """Parameters of a cell whose inputs have two features."""
    return lambda cell: random_like(lambda: cell.init(KEY, 2), 0)


@pytest.mark.parametrize("how", ["last", "mean", "max"])
def test_pooling_is_that_of_each_row_alone(how):
    ys, lengths = np.asarray(normal(1, 5, 4, 3)) - 2, np.array([5, 3, 1, 0])

    @jax.jit
    def all_ways(ys, spoilt):
        valid = rnnjax.valid_steps(lengths, 5)
        whole = rnnjax.pool(ys, how), rnnjax.pool(ys, how, jnp.ones((5, 4), bool))
        gradient = jax.grad(lambda ys: rnnjax.pool(ys, how, valid).sum())(spoilt)
        return rnnjax.pool(ys, how, valid), whole, gradient

    # What is not valid has no gradient, whatever stands there.
    spoilt = np.where((np.arange(5)[:, None] < lengths)[..., None], ys, np.float32(np.nan))
    pooled, whole, gradient = jax.device_get(all_ways(ys, spoilt))
    own = {"last": lambda y: y[-1], "mean": lambda y: y.mean(0), "max": lambda y: y.max(0)}[how]
    for row, length in enumerate(lengths):
        expected = own(ys[:length, row]) if length else np.zeros(3)
        np.testing.assert_allclose(pooled[row], expected, rtol=1e-6)
    np.testing.assert_array_equal(*whole)
    assert np.isfinite(gradient).all()
    assert not gradient[3:, 1].any()
    np.testing.assert_array_equal(rnnjax.pool(ys[:0], how), np.zeros((4, 3)))  # of no steps


GRU = rnnjax.GRUCell(3)
NOISY = rnnjax.Regularized(GRU, zoneout_hidden=0.1)
ONES, FOUR = jnp.ones((3, 2, 4)), np.ones(4, bool)
SIZES = {"memory_size": 4, "attention_size": 5}


def drawn(features):
    return begun(GRU, features)


def restarted(where, of=GRU):
    return rnnjax.restart(GRU, drawn(2), of.initial_carry((4,)), where)


LOOKING = rnnjax.AttentionCell(rnnjax.LSTMCell(3), **SIZES)


def looking(memory=ONES, **given):
    return LOOKING.over(begun(LOOKING, 2), memory, **given)


def looked(x):
    return LOOKING.step(looking(), LOOKING.initial_carry((2,)), x)


test_what_does_not_fit_is_said = refusals(
    [
        (lambda: rnnjax.pool(ONES, "first"), "must be"),
        (lambda: rnnjax.pool(ONES, "max", jnp.ones((2, 3), bool)), "valid must have shape"),
        (lambda: rnnjax.pool(ONES, "max", jnp.ones((3, 2))), "must be"),
        (lambda: rnnjax.valid_steps(jnp.ones(3), 4), "must be"),
        (lambda: rnnjax.valid_steps(4, jnp.ones(3, int)), "must be"),
        (lambda: rnnjax.valid_steps(jnp.array([3, 5]), 4), "must lie"),
        (lambda: rnnjax.state_gradients(jnp.sum, {}, GRU, ONES), "must be"),
        (lambda: rnnjax.state_gradients(lambda *out: out[1], GRU, drawn(4), ONES), "must return"),
        (lambda: rnnjax.attend(*[ONES] * 3, valid=jnp.ones((2, 3), bool)), "valid must have shape"),
        (lambda: rnnjax.attend(*[ONES] * 3, valid=jnp.ones((3, 2))), "valid must be booleans"),
        (lambda: looking(valid=jnp.ones((2, 3), bool)), "valid must have shape"),
        (lambda: rnnjax.AttentionCell(rnnjax.MLSTMCell(3), **SIZES), "whose leaves are vectors"),
        (lambda: rnnjax.AttentionCell(NOISY, **SIZES), r"no noise, but .*; take the cell w"),
        (lambda: rnnjax.restart(drawn(2), GRU, GRU.initial_carry(), FOUR), "^cell must be a Cell"),
        (lambda: restarted(2), "^where must be booleans, .* but are int32"),
        (lambda: restarted(FOUR * 1.0), "^where must be booleans, .* but are float"),
        (lambda: restarted(FOUR[:3]), r"^where must .* shape of the batch, \(4,\), .* \(3,\)"),
        (lambda: restarted(FOUR, of=rnnjax.LSTMCell(3)), r"^carry.* like GRUCarry\(hidden\)"),
        # Of one unit, which would be broadcast.
        (lambda: restarted(FOUR, of=rnnjax.GRUCell(1)), r"\.hidden must .* \(4, 3\), .* \(4, 1\)"),
        (lambda: LOOKING.step(LOOKING.init(KEY, 2), None, ONES[0]), r"give cell.over\(params, mem"),
        (lambda: looking(ONES[..., :3]), "check memory_size"),
        (lambda: looked(rnnjax.OneHot(np.array([0, 1]), 2)), "AttentionCell needs vectors"),
    ]
)


def test_attention_by_products_against_its_definition(assert_close):
    queries, keys, values = normal(4, 3, 2, 4), normal(5, 6, 2, 4), normal(6, 6, 2, 5)
    lengths = np.array([6, 2])
    attend = jax.jit(lambda *arrays: rnnjax.attend(*arrays, rnnjax.valid_steps(lengths, 6)))
    contexts, weights = attend(queries, keys, values)
    scores = np.exp(np.einsum("tri,kri->tkr", queries, keys)) * (np.arange(6)[:, None] < lengths)
    expected = scores / scores.sum(1, keepdims=True)
    assert_close(weights, expected, 1e-5)
    assert_close(contexts, np.einsum("tkr,kri->tri", expected, values), 1e-5)
    assert not np.asarray(weights)[:, 2:, 1].any()


@pytest.mark.parametrize("seed", range(3))
def test_what_is_not_valid_reaches_no_context_and_no_gradient(seed, draw, assert_close):
    """Whatever stands there, as in images or files that were padded: 0 * NaN is NaN."""
    valid = np.random.default_rng(seed).random((5, 4)) < 0.5
    valid[:, 0] = False
    arrays = [normal(10 * seed + i, n, 4, 4) for i, n in enumerate((3, 5, 5))]

    def attended(queries, keys, values):
        return rnnjax.attend(queries, keys, values, valid)

    def looked_back(params, memory, xs):
        return rnnjax.unroll(LOOKING, LOOKING.over(params, memory, valid), xs)[1]

    def with_slopes(run, *given):
        out, pull = jax.vjp(run, *given)
        return out, pull(jax.tree.map(jnp.ones_like, out))

    @jax.jit
    def both(params, xs, other):
        queries, *memories = arrays
        keys, values = (jnp.where(valid[..., None], memory, other) for memory in memories)
        run = with_slopes(attended, queries, keys, values)
        return run, with_slopes(looked_back, params, values, xs)

    params, xs = draw(LOOKING), normal(40 + seed, 3, 4, 2)
    zeros, spoilt = jax.device_get([both(params, xs, other) for other in (0.0, np.nan)])
    assert_close(spoilt, zeros, 0)
    contexts, weights = spoilt[0][0]
    for context in (contexts, spoilt[1][0][..., 3:]):  # of the row without a valid step
        assert not context[:, 0].any()
    np.testing.assert_allclose(weights[:, :, 0], 0.2, rtol=1e-6)
    assert not [leaf for leaf in jax.tree.leaves(spoilt) if not np.isfinite(leaf).all()]


def test_a_cell_that_looks_back_begins_with_what_its_cell_has_learned():
    cell = rnnjax.AttentionCell(rnnjax.LearnedCarry(GRU), **SIZES)
    params = begun(cell, 2)
    params["cell"]["initial_carry"] = rnnjax.GRUCarry(jnp.array([0.1, 0.2, 0.3]))
    xs = normal(3, 2, 2, 2)

    def outputs(params, carry=None):
        return rnnjax.unroll(cell, cell.over(params, ONES), xs, carry)[1]

    carry = rnnjax.GRUCarry(jnp.broadcast_to(jnp.array([0.1, 0.2, 0.3]), (2, 3)))
    assert (outputs(params) == outputs(params, carry)).all()
    slopes = jax.grad(lambda params: outputs(params).sum())(params)
    assert (slopes["cell"]["initial_carry"].hidden != 0).all()


def test_a_cell_that_looks_back_against_its_definition(draw):
    params = draw(LOOKING)
    memory, xs, lengths = normal(7, 6, 2, 4), normal(8, 3, 2, 2), np.array([6, 2])

    def loss(memory):
        ready = LOOKING.over(params, memory, rnnjax.valid_steps(lengths, 6))
        ys = rnnjax.unroll(LOOKING, ready, xs)[1]
        return ys[..., :3].sum(), ys

    grads, ys = jax.device_get(jax.jit(jax.grad(loss, has_aux=True))(memory))
    step = jax.jit(LOOKING.cell.step)
    for row, length in enumerate(lengths):
        carry = rnnjax.LSTMCarry(*np.zeros((2, 3), np.float32))
        for time in range(3):
            state = np.concatenate([carry.hidden, carry.cell])
            known = np.asarray(memory)[:length, row]
            compared = np.tanh(state @ params["query_kernel"] + known @ params["memory_kernel"])
            scores = np.exp(compared @ params["score_kernel"])
            context = scores / scores.sum() @ known
            x = np.concatenate([np.asarray(xs)[time, row], context])
            carry, y = step(params["cell"], carry, x)
            np.testing.assert_allclose(ys[time, row], np.concatenate([y, context]), atol=1e-5)
    assert np.abs(grads[:2]).min() > 0
    assert not grads[2:, 1].any()
    np.testing.assert_array_equal(LOOKING.over(params, memory)["valid"], np.ones((6, 2), bool))


@pytest.mark.parametrize(
    "cell",
    [rnnjax.LSTMCell(3), rnnjax.LearnedCarry(rnnjax.Stack([rnnjax.SimpleRNNCell(3)] * 2))],
    ids=["lstm", "learned"],
)
def test_acting_with_restarts_is_unrolling_with_resets(cell, draw, assert_close):
    params = draw(cell)
    xs, resets = normal(9, 6, 4, 2), np.random.default_rng(0).random((6, 4)) < 0.3
    carry, outputs = cell.start(params, (4,)), []

    @jax.jit
    def step(carry, x, reset):
        return cell.step(params, rnnjax.restart(cell, params, carry, reset), x)

    for x, reset in zip(np.asarray(xs), resets, strict=True):
        carry, y = step(carry, x, reset)
        outputs.append(y)
    expected = rnnjax.unroll(cell, params, xs, resets=resets)
    assert_close((carry, np.stack(outputs)), expected, 1e-6)
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), carry)
    again = rnnjax.restart(cell, params, narrow, np.ones(4, bool))
    assert {leaf.dtype for leaf in jax.tree.leaves(again)} == {jnp.dtype(jnp.bfloat16)}


def test_the_maximum_of_integers_and_of_nothing_but_minus_infinity():
    valid = np.array([[True], [False]])
    for ys in (np.array([[[-5]], [[7]]]), np.array([[[-np.inf]], [[7.0]]], np.float32)):
        assert rnnjax.pool(ys, "max", valid).tolist() == ys[0].tolist()


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in WAYS else pytest.mark.slow) for n in CELLS],
)
def test_the_gradient_by_a_state_is_that_of_a_sequence_that_begins_with_it(
    name, draw, random_like, assert_close
):
    cell = CELLS[name]
    begin = random_like(lambda: cell.initial_carry((2, *grid(name))), 1)

    def loss(carry, ys):
        return (ys**2).sum() + sum(leaf.sum() for leaf in jax.tree.leaves(carry))

    @jax.jit
    def both(params, xs):
        def rest(state, first):  # the steps before the first one hold the state, and give zeros
            mask = jnp.arange(4) >= first
            return loss(*rnnjax.unroll(cell, params, xs, state, mask=mask, method=rnnjax.Scan()))

        def step(carry, x):
            return cell.step(params, carry, x)[0], carry

        states = jax.lax.scan(step, begin, xs)[1]
        expected = rest(begin, 0), jax.vmap(jax.grad(rest))(states, jnp.arange(4))
        return rnnjax.state_gradients(loss, cell, params, xs, begin), expected

    found, expected = jax.device_get(both(draw(cell), normal(10, 4, 2, *grid(name), 2)))
    assert_close(found, expected, 1e-4)
