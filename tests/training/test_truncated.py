"""Truncated backpropagation: windows, gradients by hand, and the carried state."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rnnjax
from rnnjax import InvalidInputError
from rnnjax.training import TrainState, make_train_steps
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


OPTIMIZER = optax.sgd(0.1)
TRAIN_STEPS = make_train_steps(truncated_loss(run, losses), OPTIMIZER)


@pytest.fixture(scope="module")
def streams(random_like: Any) -> Any:
    xs = random_like(lambda: jnp.zeros((TIME, ROWS, FEATURES)), 1, scale=1.0)
    targets = random_like(lambda: jnp.zeros((TIME, ROWS, HIDDEN)), 2)
    return {"xs": xs, "resets": RESETS}, targets


@pytest.fixture
def state(random_like: Any) -> TrainState:
    params = random_like(lambda: CELL.init(jax.random.key(0), FEATURES), 3)
    carry = CELL.initial_carry((ROWS,))
    return TrainState.create(params, OPTIMIZER, key=jax.random.key(1), carry=carry)


# ---- windows


@pytest.mark.parametrize(("length", "steps", "number"), [(12, 3, 4), (14, 3, 4), (5, 5, 1)])
def test_windows_follow_each_other(length: int, steps: int, number: int) -> None:
    """Two steps are left over of 14."""
    ids = np.arange(length * ROWS).reshape(length, ROWS)
    inputs = {"xs": np.stack([ids, -ids], axis=-1), "resets": ids % 5 == 0}
    for mask in (None, ids % 4 != 0):
        batches = windows(inputs, ids, steps=steps, mask=mask)
        whole = Window(inputs, ids, np.ones_like(ids, bool) & (True if mask is None else mask))
        for found, leaf in zip(jax.tree.leaves(batches), jax.tree.leaves(whole), strict=True):
            assert found.shape[:2] == (number, steps)
            np.testing.assert_array_equal(np.concatenate(found), leaf[: number * steps])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps must be a positive integer, but is 0"),
        ({"steps": 9}, r"at least the 9 of a window, .* but have \[8\] steps and \[3\] rows"),
        ({"steps": 2, "mask": np.ones((7, ROWS), bool)}, r"mask must have shape \(8, 3\)"),
        ({"steps": 2, "mask": [[True] * ROWS]}, r"mask must have shape \(8, 3\)"),
        ({"steps": 2, "targets": np.zeros((9, ROWS))}, r"but have \[8, 9\] steps and \[3\] rows"),
        ({"steps": 2, "inputs": [[1.0], [2.0]]}, r"but have \[0, 8\] steps and \[3\] rows"),
        ({"steps": 2, "targets": ()}, "targets must be arrays"),
        ({"steps": 2, "targets": np.zeros(8)}, "targets must be arrays"),
        ({"steps": 2, "mask": np.ones((8, ROWS))}, "mask must be booleans, but are float32"),
        ({"steps": 2, "mask": np.ones((8, ROWS + 1), bool)}, r"has \(8, 4\); check which"),
    ],
)
def test_bad_windows(arguments: Any, message: str) -> None:
    arguments = {"inputs": np.zeros((8, ROWS)), "targets": np.zeros((8, ROWS)), **arguments}
    with pytest.raises(InvalidInputError, match=message):
        windows(**arguments)


# ---- the loss


def test_updates_are_those_by_hand(streams: Any, state: TrainState, assert_close: Any) -> None:
    """The whole window from the carry at its start, where the gradient stops."""
    (inputs, targets), updates, steps = streams, 4, 3
    batches = windows(inputs, targets, steps=steps, mask=MASK)
    params, carry = jax.tree.map(np.asarray, (state.params, state.carry))
    state, metrics = TRAIN_STEPS(state, batches, 0, updates)

    @jax.jit
    def by_hand(params: Any, carry: Any, piece: Any, counted: Any) -> Any:
        def loss(params: Any) -> Any:
            xs, resets, wanted = piece
            after, ys = rnnjax.unroll(CELL, params, xs, carry, resets=resets)
            return (losses(ys, wanted) * counted).sum() / counted.sum(), after

        return jax.value_and_grad(loss, has_aux=True)(params)

    for i in range(updates):
        part = slice(i * steps, (i + 1) * steps)
        piece = inputs["xs"][part], inputs["resets"][part], targets[part]
        (loss, carry), gradient = by_hand(params, carry, piece, MASK[part])
        params, gradient = jax.tree.map(np.asarray, (params, gradient))
        params = jax.tree.map(lambda p, g: p - np.float32(0.1) * g, params, gradient)
        norm = np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(gradient)))
        found = [np.asarray(metrics[name])[i] for name in ("loss", "grad_norm", "weight")]
        np.testing.assert_allclose(found, [loss, norm, MASK[part].sum()], rtol=1e-5)
    assert_close((state.params, state.carry), (params, carry), 1e-5)


def test_a_window_without_a_counted_step_changes_nothing(streams: Any, state: TrainState) -> None:
    inputs, targets = streams
    batches = windows(inputs, targets, steps=3, mask=np.zeros_like(MASK))
    before = jax.tree.map(np.asarray, state.params)
    state, metrics = TRAIN_STEPS(state, batches, 0, 4)
    assert not any(np.any(metrics[name]) for name in ("loss", "grad_norm", "weight"))
    jax.tree.map(np.testing.assert_array_equal, state.params, before)


def test_targets_that_do_not_count_are_no_zeros_to_divide_by() -> None:
    """Nor do booleans become integers, whose ``~`` is true throughout."""
    ys, ratios = jnp.arange(1.0, 7.0).reshape(3, 2), jnp.array([[jnp.nan, 0], [2, 3], [4, 5]])
    targets = {"ratio": ratios, "off": jnp.array([[True, True], [False, True], [False, True]])}
    # A single one counts, by which it is divided.
    window = Window(ys, targets, jnp.array([[False] * 2, [False, True], [False] * 2]))

    def relative(ys: Any, targets: Any) -> Any:
        return jnp.where(~targets["off"], 0, (ys / targets["ratio"] - 1) ** 2)

    def scaled(scale: Any, carry: Any, inputs: Any, key: Any) -> Any:
        return carry, scale * inputs

    loss_fn = truncated_loss(scaled, relative)
    with jax.numpy_dtype_promotion("strict"):
        (loss, _), slope = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(
            jnp.ones(()), (), window, jax.random.key(0)
        )
    np.testing.assert_allclose(
        [loss, slope], [(4 / 3 - 1) ** 2, 2 * (4 / 3 - 1) * 4 / 3], rtol=1e-5
    )


def test_losses_in_float16_are_summed_in_float32() -> None:
    window = Window(jnp.full((300, 100), 3.0, jnp.float16), (), jnp.ones((300, 100), bool))
    loss_fn = truncated_loss(lambda params, carry, inputs, key: (carry, inputs), lambda ys, _: ys)
    assert loss_fn((), (), window, jax.random.key(0))[0] == 3


def test_what_does_not_fit_a_truncated_loss_is_said(streams: Any, state: TrainState) -> None:
    window = Window(*streams, jnp.ones((TIME, ROWS), bool))

    def exchanged(*args: Any) -> Any:
        return run(*args)[::-1]

    for function, each, batch, message in [
        (run, losses, streams, "^batches must be a Window, .* but is a tuple of 2"),
        (exchanged, losses, window, r"^run must return a carry like .* return \(carry, outputs\)"),
        (lambda *_: [1, 2], losses, window, r"^run must return .*, but returned a list of 2"),
        (run, lambda *_: None, window, r"^losses must return .*, but returned None"),
        (
            run,
            lambda ys, targets: ys - targets,
            window,
            r"\(14, 3\), but returned float32 \(14, 3, 4\)",
        ),
    ]:
        loss_fn = truncated_loss(function, each)
        with pytest.raises(InvalidInputError, match=message):
            jax.eval_shape(loss_fn, state.params, state.carry, batch, state.key)
