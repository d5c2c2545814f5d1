import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rnnjax
from rnnjax import InvalidInputError
from rnnjax.training import TrainState, make_train_steps

CELL = rnnjax.LSTMCell(5)
OPTIMIZER = optax.adam(1e-2)


def loss_fn(params, carry, batch, key):
    carry, ys = rnnjax.unroll(CELL, params, batch, carry)
    noise = jax.random.normal(key, ys.shape)
    return jnp.mean((ys - 0.1 * noise) ** 2), (carry, {"largest": jnp.max(jnp.abs(ys))})


@pytest.fixture(scope="module")
def train_steps():
    return make_train_steps(loss_fn, OPTIMIZER)


@pytest.fixture(scope="module")
def batches():
    return np.random.default_rng(5).standard_normal((7, 4, 2, 3), np.float32)


@pytest.fixture(scope="module")
def broken(batches):
    """With something that is no number in one step."""
    broken = batches.copy()
    broken[3, 0, 0, 0] = np.nan
    return broken


def new_state():
    params = jax.jit(CELL.init, static_argnums=1)(jax.random.key(0), 3)
    carry = CELL.initial_carry((2,))
    return TrainState.create(params, OPTIMIZER, key=jax.random.key(1), carry=carry)


def bits(state):
    state = jax.tree.map(np.asarray, (state.params, state.opt_state, state.carry))
    return b"".join(leaf.tobytes() for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize("cuts", [[1, 2, 3, 4, 5, 6], [3], [1, 6]])
def test_any_division_into_dispatches_gives_the_same_bits(train_steps, batches, cuts):
    whole, metrics = train_steps(new_state(), batches, 0, 7)
    state, losses = new_state(), []
    for start, stop in zip([0, *cuts], [*cuts, 7], strict=True):
        state, part = train_steps(state, batches, start, stop)
        losses.append(np.asarray(part["loss"])[start:stop])
    assert bits(state) == bits(whole)
    assert int(state.step) == 7
    np.testing.assert_array_equal(np.concatenate(losses), metrics["loss"])


def test_a_step_is_the_plain_optax_step_with_the_carry_as_a_value(train_steps, batches):
    """The carry goes on, and no gradient flows back through it."""

    @jax.jit
    def one(params, opt_state, carry, i, batch):
        key = jax.random.fold_in(jax.random.key(1), i)
        grads, (carry, _) = jax.grad(loss_fn, has_aux=True)(params, carry, batch, key)
        updates, opt_state = OPTIMIZER.update(grads, opt_state)
        params = optax.apply_updates(params, updates)
        return params, opt_state, carry, optax.tree.norm(grads)

    state = new_state()
    params, opt_state, carry = state.params, state.opt_state, state.carry
    for i in range(3):
        params, opt_state, carry, norm = one(params, opt_state, carry, i, batches[i])
    state, metrics = train_steps(state, batches, 0, 3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
                 (state.params, state.carry), (params, carry))  # fmt: skip
    np.testing.assert_allclose(metrics["grad_norm"][2], norm, rtol=1e-4)
    assert set(metrics) == {"loss", "grad_norm", "largest"}


def test_the_first_step_that_is_not_finite_is_the_last(train_steps, broken):
    state, metrics = train_steps(new_state(), broken, 0, 7)
    assert int(state.step) == 4
    assert np.isfinite(metrics["loss"][:3]).all()
    assert np.isnan(metrics["loss"][3])


def test_the_state_is_donated(train_steps, batches):
    state = new_state()
    train_steps(state, batches, 0, 1)
    assert state.params["kernel"].is_deleted()


def test_a_step_that_is_skipped_changes_nothing_but_the_number_of_steps(batches, broken):
    train_steps = make_train_steps(loss_fn, OPTIMIZER, skip_nonfinite=True)
    before, _ = train_steps(new_state(), batches, 0, 3)
    kept = bits(before)
    state, metrics = train_steps(before, broken, 3, 4)
    assert int(state.step) == 4
    assert bits(state) == kept
    assert metrics["skipped"].tolist() == [False] * 3 + [True] + [False] * 3
    # And what comes after is an ordinary step, of its own number.
    state, metrics = train_steps(state, batches, 4, 5)
    assert bits(state) != kept
    assert not metrics["skipped"][4]


@pytest.mark.parametrize(
    ("change", "start", "stop"),
    [({}, 0, 8), ({}, -1, 3), ({}, 4, 3), ({}, 0.5, 3), ({"rows": np.ones(6)}, 0, 2)],
)
def test_steps_that_are_not_there_are_not_done(train_steps, batches, change, start, stop):
    """JAX would take the last one again."""
    with pytest.raises(InvalidInputError, match=f"axis of steps, .*{start} to {stop} came"):
        train_steps(new_state(), {"xs": batches, **change}, start, stop)


def test_the_norm_of_a_gradient_in_float16():
    def loss_fn(params, carry, batch, key):
        return (params * batch).sum().astype(jnp.float32), (carry, {})

    state = TrainState.create(jnp.zeros(4, jnp.float16), optax.sgd(0.0), key=jax.random.key(0))
    batches = np.array([[300.0] * 4, [1e-5] * 4], np.float16)
    _, metrics = make_train_steps(loss_fn, optax.sgd(0.0))(state, batches, 0, 2)
    norms = np.linalg.norm(batches.astype(np.float32), axis=1)
    np.testing.assert_allclose(metrics["grad_norm"], norms, rtol=1e-6)
