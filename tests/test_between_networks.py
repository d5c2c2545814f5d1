"""What stands between networks: pooling, attention, restarts, gradients of states."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax import InvalidInputError
from rnnjax.layers import split_key

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


GRU = rnnjax.GRUCell(3)
ONES, FOUR = jnp.ones((3, 2, 4)), np.ones(4, bool)
SIZES = {"memory_size": 4, "attention_size": 5}


class MatrixCell(rnnjax.GRUCell):
    """With a matrix for a state."""

    @property
    def carry_shapes(self):
        return {"hidden": (2, self.hidden_size)}


def drawn(features):
    return GRU.init(KEY, features)


def restarted(where, of=GRU):
    return rnnjax.restart(GRU, drawn(2), of.initial_carry((4,)), where)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rnnjax.pool(ONES, "first"), "must be"),
        (lambda: rnnjax.pool(ONES, "max", jnp.ones((2, 3), bool)), "valid must have shape"),
        (lambda: rnnjax.pool(ONES, "max", jnp.ones((3, 2))), "must be"),
        (lambda: rnnjax.valid_steps(jnp.ones(3), 4), "must be"),
        (lambda: rnnjax.valid_steps(4, jnp.ones(3, int)), "must be"),
        (lambda: rnnjax.valid_steps(jnp.array([3, 5]), 4), "must lie"),
        (lambda: rnnjax.valid_steps(jnp.array([3, -1]), 4), "must lie"),
        (lambda: rnnjax.state_gradients(jnp.sum, {}, GRU, ONES), "must be"),
        (lambda: rnnjax.state_gradients(lambda *out: out[1], GRU, drawn(4), ONES), "must return"),
        (lambda: rnnjax.attend(*[ONES] * 3, valid=jnp.ones((2, 3), bool)), "but has shape"),
        (lambda: rnnjax.AttentionCell(MatrixCell(3), **SIZES), "a carry whose leaves are vectors"),
        (lambda: restarted(2), "^where must be booleans, .* but are int32"),
        (lambda: restarted(FOUR * 1.0), "^where must be booleans, .* but are float"),
        (lambda: restarted(FOUR[:3]), r"^where must .* shape of the batch, \(4,\), .* \(3,\)"),
        (
            lambda: restarted(FOUR, of=rnnjax.LSTMCell(3)),
            r"^carry.* like GRUCarry\(hidden\)",
        ),
        # Of one unit, which would be broadcast.
        (lambda: restarted(FOUR, of=rnnjax.GRUCell(1)), r"\.hidden must .* \(4, 3\), .* \(4, 1\)"),
    ],
    ids=range(16),
)
def test_what_does_not_fit_is_said(call, message):
    with pytest.raises(InvalidInputError, match=message):
        call()


def test_attention_by_products_against_its_definition():
    queries, keys, values = normal(4, 3, 2, 4), normal(5, 6, 2, 4), normal(6, 6, 2, 5)
    lengths = np.array([6, 2])
    attend = jax.jit(lambda *arrays: rnnjax.attend(*arrays, rnnjax.valid_steps(lengths, 6)))
    contexts, weights = attend(queries, keys, values)
    queries, keys, values = map(np.asarray, (queries, keys, values))
    for row, length in enumerate(lengths):
        for time in range(3):
            scores = np.exp(keys[:length, row] @ queries[time, row])
            own = scores / scores.sum()
            np.testing.assert_allclose(weights[time, :length, row], own, rtol=1e-5)
            np.testing.assert_allclose(contexts[time, row], own @ values[:length, row], atol=1e-5)
    assert not np.asarray(weights)[:, 2:, 1].any()


def test_a_cell_that_looks_back_against_its_definition(draw):
    cell = rnnjax.AttentionCell(rnnjax.LSTMCell(3), **SIZES)
    params = draw(cell)
    memory, xs, lengths = normal(7, 6, 2, 4), normal(8, 3, 2, 2), np.array([6, 2])

    def loss(memory):
        ready = cell.over(params, memory, rnnjax.valid_steps(lengths, 6))
        ys = rnnjax.unroll(cell, ready, xs)[1]
        return ys[..., :3].sum(), ys

    grads, ys = jax.device_get(jax.jit(jax.grad(loss, has_aux=True))(memory))
    step = jax.jit(cell.cell.step)
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
    with pytest.raises(InvalidInputError, match=r"give cell.over\(params, memory\)"):
        rnnjax.unroll(cell, params, xs)
    with pytest.raises(InvalidInputError, match="check memory_size"):
        cell.over(params, np.asarray(memory)[..., :3])
    with pytest.raises(InvalidInputError, match="reads arrays"):
        cell.step(cell.over(params, memory), cell.initial_carry((2,)),
                  rnnjax.OneHot(np.array([0, 1]), 2))  # fmt: skip


@pytest.mark.parametrize(
    "cell",
    [rnnjax.LSTMCell(3), rnnjax.LearnedCarry(rnnjax.Stack([rnnjax.SimpleRNNCell(3)] * 2))],
    ids=["lstm", "learned"],
)
def test_acting_with_restarts_is_unrolling_with_resets(cell, draw):
    params = draw(cell)
    xs, resets = normal(9, 6, 4, 2), np.random.default_rng(0).random((6, 4)) < 0.3
    carry, outputs = cell.start(params, (4,)), []

    @jax.jit
    def step(carry, x, reset):
        return cell.step(params, rnnjax.restart(cell, params, carry, reset), x)

    for x, reset in zip(np.asarray(xs), resets, strict=True):
        carry, y = step(carry, x, reset)
        outputs.append(y)
    after, ys = rnnjax.unroll(cell, params, xs, resets=resets)
    np.testing.assert_allclose(np.stack(outputs), ys, atol=1e-6)
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), carry)
    again = rnnjax.restart(cell, params, narrow, np.ones(4, bool))
    assert {leaf.dtype for leaf in jax.tree.leaves(again)} == {jnp.dtype(jnp.bfloat16)}
    for one, other in zip(*map(jax.tree.leaves, (carry, after)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_the_maximum_of_integers_and_of_nothing_but_minus_infinity():
    valid = np.array([[True], [False]])
    for ys in (np.array([[[-5]], [[7]]]), np.array([[[-np.inf]], [[7.0]]], np.float32)):
        assert rnnjax.pool(ys, "max", valid).tolist() == ys[0].tolist()


def test_the_gradient_by_a_state_is_that_of_a_sequence_that_begins_with_it(draw, random_like):
    cell = rnnjax.LSTMCell(3)
    begin = random_like(lambda: cell.initial_carry((2,)), 1)

    def loss(carry, ys):
        return (ys**2).sum() + carry.hidden.sum()

    @jax.jit
    def both(params, xs):
        def rest(state):
            carry, ys = rnnjax.unroll(cell, params, xs[4:], state)
            # It is also the output of its own step.
            return loss(carry, ys) + (state.hidden**2).sum()

        value = loss(*rnnjax.unroll(cell, params, xs, begin))
        by_rest = jax.grad(rest)(rnnjax.unroll(cell, params, xs[:4], begin)[0])
        return rnnjax.state_gradients(loss, cell, params, xs, begin), (value, by_rest)

    (value, gradients), (expected, by_rest) = jax.device_get(both(draw(cell), normal(10, 7, 2, 2)))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for one, other in zip(*map(jax.tree.leaves, (by_rest, gradients)), strict=True):
        np.testing.assert_allclose(one, other[3], rtol=1e-4, atol=1e-6)


def test_the_states_of_a_stack(draw):
    stack = rnnjax.Stack([rnnjax.SimpleRNNCell(3), rnnjax.SimpleRNNCell(2)])
    params = draw(stack)
    xs = normal(11, 4, 2, 2)

    def loss(carry, ys):
        return carry[1].hidden.sum()

    _, gradients = jax.jit(lambda: rnnjax.state_gradients(loss, stack, params, xs))()
    assert gradients[0].hidden.shape == (4, 2, 3)
    np.testing.assert_array_equal(np.asarray(gradients[1].hidden)[-1], 1)
    assert np.abs(np.asarray(gradients[0].hidden)[0]).sum() > 0


def test_a_key_may_be_none():
    assert split_key(None, 3) == (None, None, None)
    assert rnnjax.split_key(KEY, 3).shape == (3,)
