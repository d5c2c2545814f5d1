import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from training_helpers import bits

from rnnjax import InvalidInputError
from rnnjax.training import TrainState, make_train_steps
from rnnjax.training.step import make_eval_steps, parts_of_step

OPTIMIZER = optax.adam(1e-2)
BATCHES = np.random.default_rng(5).standard_normal((7, 2, 3), np.float32)
# With something that is no number in one step.
BROKEN = np.where(np.arange(7)[:, None, None] == 3, np.nan, BATCHES).astype(np.float32)


def loss_fn(params, carry, batch, key):
    carry = jnp.tanh(carry + batch @ params["kernel"])
    noise = 0 if key is None else jax.random.normal(key, carry.shape)
    return jnp.mean((carry - 0.1 * noise) ** 2), (carry, {"largest": jnp.max(jnp.abs(carry))})


TRAIN_STEPS = make_train_steps(loss_fn, OPTIMIZER)


def new_state():
    params = {"kernel": np.linspace(-1, 1, 15, dtype=np.float32).reshape(3, 5)}
    carry = np.zeros((2, 5), np.float32)
    return TrainState.create(params, OPTIMIZER, key=jax.random.key(1), carry=carry)


@pytest.mark.parametrize("cuts", [[1, 2, 3, 4, 5, 6], [3, 3], [1, 6]])
def test_any_division_into_dispatches_gives_the_same_bits(cuts):
    whole, metrics = TRAIN_STEPS(new_state(), BATCHES, 0, 7)
    state, losses = new_state(), []
    for start, stop in zip([0, *cuts], [*cuts, 7], strict=True):
        given = state
        state, part = TRAIN_STEPS(state, BATCHES, start, stop)
        assert given.params["kernel"].is_deleted()  # donated
        losses.append(np.asarray(part["loss"])[start:stop])
    assert bits(state) == bits(whole)
    assert int(state.step) == 7
    np.testing.assert_array_equal(np.concatenate(losses), metrics["loss"])


def test_a_step_is_the_plain_optax_step_with_the_carry_as_a_value():
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
        params, opt_state, carry, norm = one(params, opt_state, carry, i, BATCHES[i])
    state, metrics = TRAIN_STEPS(state, BATCHES, 0, 3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
                 (state.params, state.carry), (params, carry))  # fmt: skip
    np.testing.assert_allclose(metrics["grad_norm"][2], norm, rtol=1e-4)
    assert set(metrics) == {"loss", "grad_norm", "largest"}


def test_the_first_step_that_is_not_finite_is_the_last():
    state, metrics = TRAIN_STEPS(new_state(), BROKEN, 0, 7)
    assert int(state.step) == 4
    assert np.isnan(metrics["loss"]).tolist() == [False] * 3 + [True] + [False] * 3
    # But not where nothing is learned.
    state = new_state()
    carry, metrics = make_eval_steps(loss_fn)(state.carry, BROKEN, 0, 7, state.params)
    assert np.isnan(metrics["loss"]).tolist() == [False] * 3 + [True] * 4
    after = loss_fn(state.params, state.carry, BATCHES[0], None)
    np.testing.assert_allclose(metrics["loss"][0], after[0], rtol=1e-6)
    assert np.isnan(carry).all()


def test_a_step_that_is_skipped_changes_nothing_but_the_number_of_steps():
    train_steps = make_train_steps(loss_fn, OPTIMIZER, skip_nonfinite=True)
    before, _ = train_steps(new_state(), BATCHES, 0, 3)
    kept = bits(before)
    state, metrics = train_steps(before, BROKEN, 3, 4)
    assert int(state.step) == 4
    assert bits(state) == kept
    assert metrics["skipped"].tolist() == [False] * 3 + [True] + [False] * 3
    # And what comes after is an ordinary step, of its own number.
    state, metrics = train_steps(state, BATCHES, 4, 5)
    assert bits(state) != kept
    assert not metrics["skipped"][4]


def test_a_state_that_was_given_away_and_what_is_none_is_told():
    state = new_state()
    TRAIN_STEPS(state, BATCHES, 0, 1)
    with pytest.raises(InvalidInputError, match="but was given to a call before, which took its"):
        TRAIN_STEPS(state, BATCHES, 0, 1)
    with pytest.raises(
        InvalidInputError, match=r"state must be a TrainState, .* but is a dict wit"
    ):
        TRAIN_STEPS(new_state().params, BATCHES, 0, 1)
    shapes = jax.eval_shape(lambda state: TRAIN_STEPS(state, BATCHES, 0, 1)[0], new_state())
    assert shapes.params["kernel"].shape == (3, 5)


@pytest.mark.parametrize(
    ("change", "start", "stop"),
    [({}, 0, 8), ({}, -1, 3), ({}, 4, 3), ({}, 0.5, 3), ({}, "first", 1), ({}, 0, None),
     ({"rows": np.ones(6)}, 0, 2)],
)  # fmt: skip
def test_steps_that_are_not_there_are_not_done(change, start, stop):
    """JAX would take the last one again."""
    with pytest.raises(InvalidInputError, match=f"axis of steps, .*{start} to {stop} came"):
        TRAIN_STEPS(new_state(), {"xs": BATCHES, **change}, start, stop)


def test_an_optimizer_gets_what_it_takes():
    def some(grads, state, params, *, value, value_fn):
        return -(value + value_fn(params)) * grads, state

    def everything(grads, state, params, **more):
        return -len(more) * grads, state

    def named(grad, value, params=None):  # words of its own
        return -grad, value

    for update, expected in (
        (some, 3 - 2 * 6 * 2), (everything, 3 - 5 * 2), (lambda *a: a[:2], 5), (named, 1)
    ):  # fmt: skip
        optimizer = optax.GradientTransformationExtraArgs(lambda params: (), update)
        state = TrainState.create(np.float32(3), optimizer, key=jax.random.key(0))
        _, update_of_step = parts_of_step(lambda p, c, b, k: (p * b, ()), optimizer)
        params, _ = update_of_step(state, 2, None, 6, 2)
        assert params == expected


def test_the_norm_of_a_gradient_in_float16():
    def loss_fn(params, carry, batch, key):
        return (params * batch).sum().astype(jnp.float32), (carry, {})

    state = TrainState.create(jnp.zeros(4, jnp.float16), optax.sgd(0.0), key=jax.random.key(0))
    batches = np.array([[300.0] * 4, [1e-5] * 4], np.float16)
    _, metrics = make_train_steps(loss_fn, optax.sgd(0.0))(state, batches, 0, 2)
    norms = np.linalg.norm(batches.astype(np.float32), axis=1)
    np.testing.assert_allclose(metrics["grad_norm"], norms, rtol=1e-6)
