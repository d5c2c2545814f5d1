"""What stands between networks: pooling, bridges, attention, restarts, gradients of states."""

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


def init(cell, size=2):
    return jax.jit(cell.init, static_argnums=1)(KEY, size)


@pytest.mark.parametrize("how", ["last", "mean", "max"])
def test_pooling_is_that_of_each_row_alone(how):
    ys, lengths = normal(1, 5, 4, 3) - 2, np.array([5, 3, 1, 0])
    pooled = rnnjax.pool(ys, how, rnnjax.valid_steps(lengths, 5))
    own = {"last": lambda y: y[-1], "mean": lambda y: y.mean(0), "max": lambda y: y.max(0)}[how]
    for row, length in enumerate(lengths):
        expected = own(np.asarray(ys)[:length, row]) if length else np.zeros(3)
        np.testing.assert_allclose(pooled[row], expected, rtol=1e-6)
    np.testing.assert_array_equal(
        rnnjax.pool(ys, how), rnnjax.pool(ys, how, jnp.ones((5, 4), bool))
    )
    # What is not valid has no gradient, whatever stands there.
    spoilt = jnp.where(rnnjax.valid_steps(lengths, 5)[..., None], ys, jnp.nan)
    loss = jax.grad(lambda ys: rnnjax.pool(ys, how, rnnjax.valid_steps(lengths, 5)).sum())
    grads = jax.jit(loss)(spoilt)
    assert np.isfinite(grads).all()
    assert not np.asarray(grads)[3:, 1].any()


def test_the_last_valid_output_is_the_last_state():
    cell, lengths = rnnjax.LSTMCell(3), jnp.array([4, 2])
    params = init(cell)
    carry, ys = rnnjax.unroll(cell, params, normal(2, 5, 2, 2), lengths=lengths)
    last = rnnjax.pool(ys, "last", rnnjax.valid_steps(lengths, 5))
    np.testing.assert_allclose(last, carry.hidden, rtol=1e-6)


class MatrixCell(rnnjax.GRUCell):
    """With a matrix for a state."""

    @property
    def carry_shapes(self):
        return {"hidden": (2, self.hidden_size)}


@pytest.mark.parametrize(
    "call",
    [
        lambda: rnnjax.pool(jnp.ones((3, 2, 1)), "first"),
        lambda: rnnjax.pool(jnp.ones((3, 2, 1)), "max", jnp.ones((2, 3), bool)),
        lambda: rnnjax.pool(jnp.ones((3, 2, 1)), "max", jnp.ones((3, 2))),
        lambda: rnnjax.valid_steps(jnp.ones(3), 4),
        lambda: rnnjax.attend(*[jnp.ones((3, 2, 4))] * 3, valid=jnp.ones((2, 3), bool)),
        lambda: rnnjax.Bridge(MatrixCell(3), rnnjax.GRUCell(3)),
    ],
)
def test_what_does_not_fit_is_said(call):
    with pytest.raises(InvalidInputError, match=r"must be|but has shape|leaves are vectors"):
        call()


ENDS = {
    "gru to lstm": (rnnjax.GRUCell(3), rnnjax.LSTMCell(4)),
    "bidirectional to stack": (
        rnnjax.Bidirectional(rnnjax.LSTMCell(2)),
        rnnjax.Stack([rnnjax.GRUCell(4), rnnjax.LSTMCell(3)]),
    ),
}


@pytest.mark.parametrize("ends", ENDS)
def test_a_bridge_makes_any_carry_of_any_other(ends):
    source, target = ENDS[ends]
    bridge = rnnjax.Bridge(source, target)
    params = jax.jit(bridge.init)(KEY)
    encoder = init(source)

    def first(encoder, params):
        carry, _ = rnnjax.unroll(source, encoder, normal(3, 6, 5, 2))
        return carry, bridge(params, carry)

    carry, made = first(encoder, params)
    like = target.initial_carry((5,))
    assert jax.tree.structure(made) == jax.tree.structure(like)
    assert [x.shape for x in jax.tree.leaves(made)] == [x.shape for x in jax.tree.leaves(like)]
    flat = np.concatenate([np.asarray(x) for x in jax.tree.leaves(carry)], axis=1)
    expected = np.tanh(flat @ params["kernel"] + params["bias"])
    got = np.concatenate([np.asarray(x) for x in jax.tree.leaves(made)], axis=1)
    np.testing.assert_allclose(got, expected, atol=1e-6)
    # The decoder's loss reaches the encoder.
    loss = jax.grad(lambda e: sum(x.sum() for x in jax.tree.leaves(first(e, params)[1])))
    grads = jax.jit(loss)(encoder)
    assert all(np.abs(x).sum() > 0 for x in jax.tree.leaves(grads))
    with pytest.raises(InvalidInputError, match="must be that of the source"):
        bridge(params, rnnjax.GRUCell(9).initial_carry((5,)))


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


def test_a_cell_that_looks_back_against_its_definition():
    cell = rnnjax.AttentionCell(rnnjax.LSTMCell(3), memory_size=4, attention_size=5)
    params = init(cell)
    memory, xs, lengths = normal(7, 6, 2, 4), normal(8, 3, 2, 2), np.array([6, 2])

    def outputs(memory):
        ready = cell.over(params, memory, rnnjax.valid_steps(lengths, 6))
        return rnnjax.unroll(cell, ready, xs)[1]

    ys, step = np.asarray(jax.jit(outputs)(memory)), jax.jit(cell.cell.step)
    for row, length in enumerate(lengths):
        carry = cell.initial_carry()
        for time in range(3):
            state = np.concatenate([carry.hidden, carry.cell])
            known = np.asarray(memory)[:length, row]
            compared = np.tanh(state @ params["query_kernel"] + known @ params["memory_kernel"])
            scores = np.exp(compared @ params["score_kernel"])
            context = scores / scores.sum() @ known
            x = np.concatenate([np.asarray(xs)[time, row], context])
            carry, y = step(params["cell"], carry, x)
            np.testing.assert_allclose(ys[time, row], np.concatenate([y, context]), atol=1e-5)
    loss = jax.grad(lambda memory: outputs(memory)[..., :3].sum())
    grads = np.asarray(jax.jit(loss)(memory))
    assert np.abs(grads[:2]).min() > 0
    assert not grads[2:, 1].any()
    with pytest.raises(InvalidInputError, match=r"give cell.over\(params, memory\)"):
        rnnjax.unroll(cell, params, xs)
    with pytest.raises(InvalidInputError, match="check memory_size"):
        cell.over(params, memory[..., :3])
    with pytest.raises(InvalidInputError, match="reads arrays"):
        cell.step(cell.over(params, memory), cell.initial_carry((2,)),
                  rnnjax.OneHot(jnp.array([0, 1]), 2))  # fmt: skip


def test_masks_and_resets_reach_a_cell_that_looks_back():
    cell = rnnjax.AttentionCell(rnnjax.GRUCell(3), memory_size=4, attention_size=5)
    ready = jax.jit(cell.over)(init(cell), normal(7, 6, 2, 4))
    xs, resets = normal(8, 5, 2, 2), jnp.zeros((5, 2), bool).at[3, 0].set(True)
    _, ys = rnnjax.unroll(cell, ready, xs, resets=resets, lengths=jnp.array([5, 2]))
    _, whole = rnnjax.unroll(cell, ready, xs)
    _, after = rnnjax.unroll(cell, ready, xs[3:])
    np.testing.assert_allclose(ys[3:, 0], after[:, 0], atol=1e-6)
    np.testing.assert_allclose(ys[:2, 1], whole[:2, 1], atol=1e-6)
    assert not np.asarray(ys)[2:, 1].any()


@pytest.mark.parametrize(
    "cell",
    [rnnjax.LSTMCell(3), rnnjax.LearnedCarry(rnnjax.Stack([rnnjax.GRUCell(3)] * 2))],
    ids=["lstm", "learned"],
)
def test_acting_with_restarts_is_unrolling_with_resets(cell):
    params = jax.tree.map(lambda leaf: np.asarray(leaf) + np.float32(0.1), init(cell))
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
    for one, other in zip(*map(jax.tree.leaves, (carry, after)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (2, "where must be booleans, .* but are int32"),
        (np.ones(4, np.float32), "where must be booleans, .* but are float32"),
        (np.ones(3, bool), r"where must have the shape of the batch, \(4,\), .* has \(3,\)"),
        (np.ones((4, 3), bool), r"where must have the shape of the batch, \(4,\), .* \(4, 3\)"),
    ],
)
def test_a_restart_is_of_rows_by_booleans(where, message):
    cell = rnnjax.GRUCell(3)
    with pytest.raises(InvalidInputError, match=f"^{message}"):
        rnnjax.restart(cell, init(cell), cell.initial_carry((4,)), where)


@pytest.mark.parametrize("cell", [rnnjax.GRUCell(3), rnnjax.LSTMCell(3)], ids=["gru", "lstm"])
def test_the_gradient_by_a_state_is_that_of_a_sequence_that_begins_with_it(cell):
    params, xs = init(cell), normal(10, 7, 2, 2)

    def loss(carry, ys):
        return (ys**2).sum() + carry.hidden.sum()

    state_gradients = jax.jit(lambda *more: rnnjax.state_gradients(loss, cell, params, xs, *more))
    value, gradients = state_gradients()
    carry, ys = rnnjax.unroll(cell, params, xs)
    np.testing.assert_allclose(value, loss(carry, ys), rtol=1e-5)
    before, _ = rnnjax.unroll(cell, params, xs[:4])

    def rest(state):
        carry, ys = rnnjax.unroll(cell, params, xs[4:], state)
        return loss(carry, ys) + (state.hidden**2).sum()  # it is also the output of its own step

    by_rest = jax.jit(jax.grad(rest))(before)
    for one, other in zip(*map(jax.tree.leaves, (by_rest, gradients)), strict=True):
        np.testing.assert_allclose(one, other[3], rtol=1e-4, atol=1e-6)
    whole = jax.jit(jax.grad(lambda s: loss(*rnnjax.unroll(cell, params, xs, s))))
    whole = whole(cell.initial_carry((2,)))
    start = state_gradients(cell.initial_carry((2,)))[1]
    assert float(jnp.abs(start.hidden[0]).sum()) > 0
    assert np.isfinite(whole.hidden).all()


def test_the_states_of_a_stack():
    stack = rnnjax.Stack([rnnjax.GRUCell(3), rnnjax.GRUCell(2)])
    params = init(stack)
    loss = lambda carry, ys: carry[1].hidden.sum()  # noqa: E731
    xs = normal(11, 4, 2, 2)
    _, gradients = jax.jit(lambda: rnnjax.state_gradients(loss, stack, params, xs))()
    assert gradients[0].hidden.shape == (4, 2, 3)
    np.testing.assert_array_equal(gradients[1].hidden[-1], 1)
    assert float(jnp.abs(gradients[0].hidden[0]).sum()) > 0


def test_a_key_may_be_none():
    assert split_key(None, 3) == (None, None, None)
    assert rnnjax.split_key(KEY, 3).shape == (3,)


def test_attention_compares_vectors() -> None:
    with pytest.raises(InvalidInputError, match="a carry whose leaves are vectors"):
        rnnjax.AttentionCell(rnnjax.S6Cell(3, state_size=2), memory_size=4, attention_size=5)
