"""Truncated backpropagation: windows, gradients by hand, the carried state, and resuming."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rnnjax
from rnnjax import InvalidInputError
from rnnjax.training import Checkpoints, Silent, TrainState, fit, make_train_steps
from rnnjax.training.truncated import Window, truncated_loss, windows

TIME, ROWS, FEATURES, HIDDEN = 14, 3, 2, 4
CELL = rnnjax.LSTMCell(HIDDEN)
# At a window's first step, inside of windows, and in both parts of those that overlap.
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


@pytest.mark.parametrize(
    ("length", "k1", "k2", "starts"),
    [
        (12, 3, None, [0, 3, 6, 9]),
        (14, 3, 3, [0, 3, 6, 9]),  # two steps are left over
        (12, 2, 5, [0, 2, 4, 6]),  # and here one
        (11, 1, 4, [0, 1, 2, 3, 4, 5, 6, 7]),
        (5, 5, 5, [0]),
        (5, 2, 5, [0]),
    ],
)
def test_windows_begin_every_k1_steps_and_count_the_last_k1(
    length: int, k1: int, k2: int | None, starts: list[int]
) -> None:
    ids = np.arange(length * ROWS).reshape(length, ROWS)
    inputs = {"xs": np.stack([ids, -ids], axis=-1), "resets": ids % 5 == 0}
    mask = ids % 4 != 0
    batches = windows(inputs, ids, k1=k1, k2=k2)
    masked = windows(inputs, ids, k1=k1, k2=k2, mask=mask)
    batches, masked = jax.tree.map(np.asarray, (batches, masked))
    size = k2 or k1
    assert len(batches.targets) == len(starts)
    seen = np.zeros((length, ROWS), int)
    for i, start in enumerate(starts):
        part = slice(start, start + size)
        np.testing.assert_array_equal(batches.inputs["xs"][i], inputs["xs"][part])
        np.testing.assert_array_equal(batches.inputs["resets"][i], inputs["resets"][part])
        np.testing.assert_array_equal(batches.targets[i], ids[part])
        counted = np.zeros((size, ROWS), bool)
        counted[0 if i == 0 else size - k1 :] = True
        np.testing.assert_array_equal(batches.counted[i], counted)
        np.testing.assert_array_equal(masked.counted[i], counted & mask[part])
        seen[part] += counted
    # The loss of every step of the windows counts in exactly one update.
    np.testing.assert_array_equal(seen[: starts[-1] + size], 1)
    assert length - (starts[-1] + size) < k1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k1": 0}, "1 <= k1 <= k2, but are 0 and 0"),
        ({"k1": 4, "k2": 3}, "but are 4 and 3"),
        ({"k1": 2, "k2": 9}, r"at least k2 = 9, and of rows, but have \[8\] steps and \[3\] rows"),
        ({"k1": 2, "mask": np.ones((7, ROWS), bool)}, r"but have \[7, 8\] steps and \[3\] rows"),
        ({"k1": 2, "mask": [[True] * ROWS]}, r"but have \[1, 8\] steps and \[3\] rows"),
        ({"k1": 2, "targets": np.zeros((9, ROWS))}, r"but have \[8, 9\] steps and \[3\] rows"),
        ({"k1": 2, "inputs": [[1.0], [2.0]]}, r"but have \[0, 8\] steps and \[3\] rows"),
        ({"k1": 2, "targets": ()}, "targets must be arrays"),
        ({"k1": 2, "mask": np.ones((8, ROWS + 1), bool)}, r"have \[8\] steps and \[3, 4\] rows"),
    ],
)
def test_bad_windows(arguments: Any, message: str) -> None:
    arguments = {"inputs": np.zeros((8, ROWS)), "targets": np.zeros((8, ROWS)), **arguments}
    with pytest.raises(InvalidInputError, match=message):
        windows(**arguments)


# ---- the loss


@pytest.mark.parametrize(("k1", "k2"), [(3, 3), (2, 5)])
def test_updates_are_those_by_hand(k1: int, k2: int, streams: Any, assert_close: Any) -> None:
    """The whole window from the carry at its start, where the gradient stops, and its last k1."""
    (inputs, targets), updates = streams, 4
    batches = windows(inputs, targets, k1=k1, k2=k2, mask=MASK)
    state, metrics = compiled()(new_state(sgd(0.1)), batches, 0, updates)

    @jax.jit
    def by_hand(params: Any, carry: Any, piece: Any, counted: Any) -> Any:
        def loss(params: Any) -> jax.Array:
            xs, resets, wanted = piece
            _, ys = rnnjax.unroll(CELL, params, xs, carry, resets=resets)
            return (losses(ys, wanted) * counted).sum() / counted.sum()

        xs, resets, _ = piece
        after, _ = rnnjax.unroll(CELL, params, xs[:k1], carry, resets=resets[:k1])
        return *jax.value_and_grad(loss)(params), after

    params, carry = new_state(sgd(0.1)).params, CELL.initial_carry((ROWS,))
    for i in range(updates):
        part = slice(i * k1, i * k1 + k2)
        counted = MASK[part].copy()
        if i > 0:
            counted[: k2 - k1] = False
        piece = inputs["xs"][part], inputs["resets"][part], targets[part]
        loss, gradient, carry = by_hand(params, carry, piece, counted)
        params, gradient = jax.tree.map(np.asarray, (params, gradient))
        params = jax.tree.map(lambda p, g: p - np.float32(0.1) * g, params, gradient)
        norm = np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(gradient)))
        np.testing.assert_allclose(np.asarray(metrics["loss"])[i], loss, rtol=1e-5)
        np.testing.assert_allclose(np.asarray(metrics["grad_norm"])[i], norm, rtol=1e-5)
    assert_close((state.params, state.carry), (params, carry), 1e-5)


@jax.jit
def carry_after(params: Any, xs: Any, lengths: Any, resets: Any) -> Any:
    return rnnjax.unroll(CELL, params, xs, lengths=lengths, resets=resets)[0]


@pytest.mark.parametrize(("k1", "k2"), [(3, 3), (2, 5)])
def test_without_learning_the_state_is_that_of_an_uninterrupted_run(
    k1: int, k2: int, streams: Any, assert_close: Any
) -> None:
    inputs, targets = streams
    batches = windows(inputs, targets, k1=k1, k2=k2)
    state = new_state(sgd(0.0))
    params = jax.tree.map(np.asarray, state.params)
    for i in range(4):
        state, _ = compiled()(state, batches, i, i + 1)
        done = (i + 1) * k1
        # Masking the steps that are not done yet keeps the shapes, and so compiles once.
        resets = RESETS & (np.arange(TIME)[:, None] < done)
        expected = carry_after(params, inputs["xs"], np.full(ROWS, done), resets)
        assert_close(state.carry, expected, 1e-5)
        assert_close(state.params, params, 0.0)


def test_a_window_without_a_counted_step_changes_nothing(streams: Any) -> None:
    inputs, targets = streams
    batches = windows(inputs, targets, k1=3, mask=np.zeros_like(MASK))
    state, metrics = compiled()(new_state(sgd(0.1)), batches, 0, 4)
    assert np.all(metrics["loss"] == 0)
    assert np.all(metrics["grad_norm"] == 0)
    jax.tree.map(np.testing.assert_array_equal, state.params, new_state(sgd(0.1)).params)


def test_both_parts_of_a_window_draw_their_own_numbers() -> None:
    keys = []

    def noisy(params: Any, carry: Any, inputs: Any, key: jax.Array) -> Any:
        keys.append(key)
        return carry, inputs

    key, window = jax.random.key(3), Window(jnp.ones((5, 2)), (), jnp.ones((5, 2), bool), k1=2)
    loss, (carry, metrics) = truncated_loss(noisy, lambda ys, _: ys)((), 7, window, key)
    assert (float(loss), carry, metrics) == (1.0, 7, {"weight": window.counted.sum()})
    assert keys[0] == key
    assert keys[1] != key
    whole = dataclasses.replace(window, k1=None)
    truncated_loss(noisy, lambda ys, _: ys)((), 7, whole, key)
    assert len(keys) == 3


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


def test_losses_of_another_shape_are_refused(streams: Any) -> None:
    inputs, targets = streams
    window = Window(inputs, targets, jnp.ones((TIME, ROWS), bool))
    state = new_state(sgd(0.1))
    loss_fn = truncated_loss(run, lambda ys, targets: jnp.square(ys - targets))
    with pytest.raises(InvalidInputError, match=r"\(14, 3\), but returned \(14, 3, 4\)"):
        jax.eval_shape(loss_fn, state.params, state.carry, window, state.key)


@pytest.mark.parametrize("k1", [0, TIME + 1, 2.0])
def test_a_window_begins_the_next_within_itself(k1: Any, streams: Any) -> None:
    inputs, targets = streams
    window = Window(inputs, targets, jnp.ones((TIME, ROWS), bool), k1)
    state = new_state(sgd(0.1))
    loss_fn = truncated_loss(run, lambda ys, targets: jnp.square(ys - targets).sum(-1))
    message = f"^k1 of a Window must be a number of steps from 1 to its 14, but is {k1};"
    with pytest.raises(InvalidInputError, match=message):
        jax.eval_shape(loss_fn, state.params, state.carry, window, state.key)


def test_what_does_not_fit_a_truncated_loss_is_said(streams: Any) -> None:
    window = Window(*streams, jnp.ones((TIME, ROWS), bool))
    state = new_state(sgd(0.1))

    def exchanged(*args: Any) -> Any:
        return run(*args)[::-1]

    for function, batch, message in [
        (run, streams, "^batches must be a Window, .* but is a tuple of 2"),
        (
            exchanged,
            window,
            r"^run must return \(carry, outputs\), .* returned float32 .* first;",
        ),
    ]:
        loss_fn = truncated_loss(function, lambda ys, targets: jnp.square(ys - targets).sum(-1))
        with pytest.raises(InvalidInputError, match=message):
            jax.eval_shape(loss_fn, state.params, state.carry, batch, state.key)


# ---- resuming


@pytest.mark.parametrize(
    # The second does what the first does, and more.
    ("k1", "k2"),
    [pytest.param(2, 2, marks=pytest.mark.slow), (2, 4)],
)
def test_a_resumed_run_is_exact(k1: int, k2: int, streams: Any, tmp_path: Any) -> None:
    """Parameters, optimiser and carry after 3 + 3 updates are bit for bit those after 6."""
    (inputs, targets), optimizer = streams, optax.adam(1e-2)
    cell = rnnjax.Regularized(CELL, recurrent_dropout=0.3, zoneout_cell=0.2)

    def noisy(params: Any, carry: Any, inputs: Any, key: jax.Array) -> Any:
        return rnnjax.unroll(cell, params, inputs["xs"], carry, resets=inputs["resets"], key=key)

    train_steps = make_train_steps(truncated_loss(noisy, losses), optimizer)
    batches = windows(inputs, targets, k1=k1, k2=k2)
    whole, _ = train_steps(new_state(optimizer), batches, 0, 6)

    half, _ = train_steps(new_state(optimizer), batches, 0, 3)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(half, {})
    restored = checkpoints.latest().restore(jax.eval_shape(lambda: new_state(optimizer)))
    assert int(restored.step) == 3
    assert any(np.any(leaf != 0) for leaf in restored.carry)
    resumed, _ = train_steps(restored, batches, 3, 6)

    assert int(resumed.step) == int(whole.step) == 6
    for name in ("params", "opt_state", "carry"):
        actual, expected = getattr(resumed, name), getattr(whole, name)
        assert jax.tree.structure(actual) == jax.tree.structure(expected)
        jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize(("k1", "k2"), [(4, 4), (2, 5)])
def test_the_loss_of_an_epoch_is_the_mean_over_the_steps_that_count(
    k1: int, k2: int, streams: Any
) -> None:
    """Of windows that count many steps, one, and none."""
    (inputs, targets), mask = streams, np.zeros((TIME, ROWS), bool)
    mask[:5], mask[8, 1] = MASK[:5], True
    batches = windows(inputs, targets, k1=k1, k2=k2, mask=mask)
    params = jax.jit(CELL.init, static_argnums=1)(jax.random.key(0), FEATURES)
    begin = CELL.initial_carry((ROWS,))
    result = fit(
        truncated_loss(run, losses), params, optax.sgd(0.0), batches, 1,
        key=jax.random.key(1), carry=begin, hooks=[Silent()],
    )  # fmt: skip
    each = losses(run(params, begin, inputs, jax.random.key(1))[1], targets)
    np.testing.assert_allclose(result.history[0]["loss"], each[mask].mean(), rtol=1e-5)
