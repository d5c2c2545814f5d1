"""Truncated backpropagation: windows, gradients by hand, and the carried state."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rnnjax
from rnnjax import InvalidInputError
from rnnjax.training import Silent, TrainState, fit, make_train_steps
from rnnjax.training.truncated import Window, truncated_loss, windows

TIME, ROWS, FEATURES, HIDDEN = 14, 3, 2, 4
CELL = rnnjax.LSTMCell(HIDDEN)
# At a window's first step, and inside of windows.
RESETS = np.zeros((TIME, ROWS), bool)
RESETS[[4, 7, 8, 11], [0, 1, 2, 0]] = True
MASK = np.ones((TIME, ROWS), bool)
MASK[[0, 3, 9], [1, 2, 0]] = False


def run(params: Any, carry: Any, inputs: Any, key: jax.Array) -> tuple[Any, jax.Array]:
    return rnnjax.unroll(CELL, params, inputs["xs"], carry, resets=inputs["resets"])


def losses(ys: jax.Array, targets: jax.Array) -> jax.Array:
    return jnp.square(ys - targets).sum(-1)


@pytest.fixture(scope="module")
def streams(random_like: Any) -> Any:
    xs = random_like(lambda: jnp.zeros((TIME, ROWS, FEATURES)), 1, scale=1.0)
    targets = random_like(lambda: jnp.zeros((TIME, ROWS, HIDDEN)), 2)
    return {"xs": xs, "resets": RESETS}, targets


def sgd(learning_rate: float) -> optax.GradientTransformation:
    """With the rate in its state, so that one compiled program serves every rate."""
    return optax.inject_hyperparams(optax.sgd)(learning_rate)


@functools.cache
def compiled() -> Any:
    return make_train_steps(truncated_loss(run, losses), sgd(0.0))


def new_state(optimizer: optax.GradientTransformation) -> TrainState:
    params = jax.jit(CELL.init, static_argnums=1)(jax.random.key(0), FEATURES)
    carry = CELL.initial_carry((ROWS,))
    return TrainState.create(params, optimizer, key=jax.random.key(1), carry=carry)


# ---- windows


@pytest.mark.parametrize(("length", "steps", "number"), [(12, 3, 4), (14, 3, 4), (5, 5, 1)])
@pytest.mark.parametrize("masked", [False, True])
def test_windows_follow_each_other(length: int, steps: int, number: int, masked: bool) -> None:
    """Two steps are left over of 14."""
    ids = np.arange(length * ROWS).reshape(length, ROWS)
    inputs = {"xs": np.stack([ids, -ids], axis=-1), "resets": ids % 5 == 0}
    mask = ids % 4 != 0 if masked else None
    batches = windows(inputs, ids, steps=steps, mask=mask)
    assert len(batches.targets) == len(batches.counted) == number
    for i in range(number):
        part = slice(i * steps, (i + 1) * steps)
        np.testing.assert_array_equal(batches.inputs["xs"][i], inputs["xs"][part])
        np.testing.assert_array_equal(batches.inputs["resets"][i], inputs["resets"][part])
        np.testing.assert_array_equal(batches.targets[i], ids[part])
        counted = mask[part] if mask is not None else np.ones((steps, ROWS), bool)
        np.testing.assert_array_equal(batches.counted[i], counted)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps must be a positive integer, but is 0"),
        ({"steps": 9}, r"at least the 9 of a window, .* but have \[8\] steps and \[3\] rows"),
        ({"steps": 2, "mask": np.ones((7, ROWS), bool)}, r"but have \[7, 8\] steps and \[3\] rows"),
        ({"steps": 2, "mask": [[True] * ROWS]}, r"but have \[1, 8\] steps and \[3\] rows"),
        ({"steps": 2, "targets": np.zeros((9, ROWS))}, r"but have \[8, 9\] steps and \[3\] rows"),
        ({"steps": 2, "inputs": [[1.0], [2.0]]}, r"but have \[0, 8\] steps and \[3\] rows"),
        ({"steps": 2, "targets": ()}, "targets must be arrays"),
        ({"steps": 2, "mask": np.ones((8, ROWS + 1), bool)}, r"have \[8\] steps and \[3, 4\] rows"),
    ],
)
def test_bad_windows(arguments: Any, message: str) -> None:
    arguments = {"inputs": np.zeros((8, ROWS)), "targets": np.zeros((8, ROWS)), **arguments}
    with pytest.raises(InvalidInputError, match=message):
        windows(**arguments)


# ---- the loss


def test_updates_are_those_by_hand(streams: Any, assert_close: Any) -> None:
    """The whole window from the carry at its start, where the gradient stops."""
    (inputs, targets), updates, steps = streams, 4, 3
    batches = windows(inputs, targets, steps=steps, mask=MASK)
    state, metrics = compiled()(new_state(sgd(0.1)), batches, 0, updates)

    @jax.jit
    def by_hand(params: Any, carry: Any, piece: Any, counted: Any) -> Any:
        def loss(params: Any) -> Any:
            xs, resets, wanted = piece
            after, ys = rnnjax.unroll(CELL, params, xs, carry, resets=resets)
            return (losses(ys, wanted) * counted).sum() / counted.sum(), after

        return jax.value_and_grad(loss, has_aux=True)(params)

    params, carry = new_state(sgd(0.1)).params, CELL.initial_carry((ROWS,))
    for i in range(updates):
        part = slice(i * steps, (i + 1) * steps)
        piece = inputs["xs"][part], inputs["resets"][part], targets[part]
        (loss, carry), gradient = by_hand(params, carry, piece, MASK[part])
        params, gradient = jax.tree.map(np.asarray, (params, gradient))
        params = jax.tree.map(lambda p, g: p - np.float32(0.1) * g, params, gradient)
        norm = np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(gradient)))
        np.testing.assert_allclose(np.asarray(metrics["loss"])[i], loss, rtol=1e-5)
        np.testing.assert_allclose(np.asarray(metrics["grad_norm"])[i], norm, rtol=1e-5)
    assert_close((state.params, state.carry), (params, carry), 1e-5)


@jax.jit
def carry_after(params: Any, xs: Any, lengths: Any, resets: Any) -> Any:
    return rnnjax.unroll(CELL, params, xs, lengths=lengths, resets=resets)[0]


def test_without_learning_the_state_is_that_of_an_uninterrupted_run(
    streams: Any, assert_close: Any
) -> None:
    inputs, targets = streams
    batches = windows(inputs, targets, steps=3)
    state = new_state(sgd(0.0))
    params = jax.tree.map(np.asarray, state.params)
    for i in range(4):
        state, _ = compiled()(state, batches, i, i + 1)
        done = (i + 1) * 3
        # Masking the steps that are not done yet keeps the shapes, and so compiles once.
        resets = RESETS & (np.arange(TIME)[:, None] < done)
        expected = carry_after(params, inputs["xs"], np.full(ROWS, done), resets)
        assert_close(state.carry, expected, 1e-5)
        assert_close(state.params, params, 0.0)


def test_a_window_without_a_counted_step_changes_nothing(streams: Any) -> None:
    inputs, targets = streams
    batches = windows(inputs, targets, steps=3, mask=np.zeros_like(MASK))
    state, metrics = compiled()(new_state(sgd(0.1)), batches, 0, 4)
    assert np.all(metrics["loss"] == 0)
    assert np.all(metrics["grad_norm"] == 0)
    jax.tree.map(np.testing.assert_array_equal, state.params, new_state(sgd(0.1)).params)


def test_targets_that_do_not_count_are_no_zeros_to_divide_by() -> None:
    """Nor do booleans become integers, whose ``~`` is true throughout."""
    ys, ratios = jnp.arange(1.0, 7.0).reshape(3, 2), jnp.array([[jnp.nan, 0], [2, 3], [4, 5]])
    targets = {"ratio": ratios, "off": jnp.array([[True, True], [False, True], [False, True]])}
    window = Window(ys, targets, jnp.array([[False] * 2, [True] * 2, [True] * 2]))

    def relative(ys: Any, targets: Any) -> Any:
        return jnp.where(~targets["off"], 0, (ys / targets["ratio"] - 1) ** 2)

    def scaled(scale: Any, carry: Any, inputs: Any, key: Any) -> Any:
        return carry, scale * inputs

    loss_fn = truncated_loss(scaled, relative)
    with jax.numpy_dtype_promotion("strict"):
        (loss, _), slope = jax.value_and_grad(loss_fn, has_aux=True)(
            jnp.ones(()), (), window, jax.random.key(0)
        )
    y, t = np.array([4.0, 6.0]), np.array([3.0, 5.0])
    np.testing.assert_allclose(loss, ((y / t - 1) ** 2).sum() / 4, rtol=1e-5)
    np.testing.assert_allclose(slope, (2 * (y / t - 1) * y / t).sum() / 4, rtol=1e-5)


def test_losses_in_float16_are_summed_in_float32() -> None:
    window = Window(jnp.full((300, 100), 3.0, jnp.float16), (), jnp.ones((300, 100), bool))
    loss_fn = truncated_loss(lambda params, carry, inputs, key: (carry, inputs), lambda ys, _: ys)
    assert loss_fn((), (), window, jax.random.key(0))[0] == 3


def test_what_does_not_fit_a_truncated_loss_is_said(streams: Any) -> None:
    window = Window(*streams, jnp.ones((TIME, ROWS), bool))
    state = new_state(sgd(0.1))

    def exchanged(*args: Any) -> Any:
        return run(*args)[::-1]

    def unsummed(ys: Any, targets: Any) -> Any:
        return jnp.square(ys - targets)

    for function, each, batch, message in [
        (run, losses, streams, "^batches must be a Window, .* but is a tuple of 2"),
        (exchanged, losses, window, r"^run must return \(carry, outputs\), .* float32 .* first;"),
        (run, unsummed, window, r"\(14, 3\), but returned \(14, 3, 4\)"),
    ]:
        loss_fn = truncated_loss(function, each)
        with pytest.raises(InvalidInputError, match=message):
            jax.eval_shape(loss_fn, state.params, state.carry, batch, state.key)


def test_the_loss_of_an_epoch_is_the_mean_over_the_steps_that_count(streams: Any) -> None:
    """Windows that count many steps, one, and none."""
    (inputs, targets), mask = streams, np.zeros((TIME, ROWS), bool)
    mask[:5], mask[8, 1] = MASK[:5], True
    batches = windows(inputs, targets, steps=4, mask=mask)
    params = jax.jit(CELL.init, static_argnums=1)(jax.random.key(0), FEATURES)
    begin = CELL.initial_carry((ROWS,))
    result = fit(
        truncated_loss(run, losses), params, optax.sgd(0.0), batches, 1,
        key=jax.random.key(1), carry=begin, hooks=[Silent()],
    )  # fmt: skip
    each = losses(run(params, begin, inputs, jax.random.key(1))[1], targets)
    np.testing.assert_allclose(result.history[0]["loss"], each[mask].mean(), rtol=1e-5)
