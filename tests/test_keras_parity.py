"""SimpleRNN, LSTM and GRU against Keras 3, run live on its JAX backend."""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax import GRUCell, LSTMCell, SimpleRNNCell

os.environ["KERAS_BACKEND"] = "jax"
keras = pytest.importorskip("keras", reason="keras is in the extra `test`")
assert keras.backend.backend() == "jax", "keras was imported with another backend before"

BATCH, TIME, FEATURES, HIDDEN = 3, 5, 2, 4
TOLERANCE = 1e-5  # of the largest entry of each array

CASES = {
    "simple": (SimpleRNNCell(HIDDEN), "SimpleRNN", {}),
    "simple-no-bias": (SimpleRNNCell(HIDDEN, use_bias=False), "SimpleRNN", {"use_bias": False}),
    "simple-relu": (SimpleRNNCell(HIDDEN, activation="relu"), "SimpleRNN", {"activation": "relu"}),
    "lstm": (LSTMCell(HIDDEN), "LSTM", {}),
    "lstm-no-bias": (LSTMCell(HIDDEN, use_bias=False), "LSTM", {"use_bias": False}),
    "lstm-hard": (
        LSTMCell(HIDDEN, recurrent_activation="hard_sigmoid", activation="softsign"),
        "LSTM",
        {"recurrent_activation": "hard_sigmoid", "activation": "softsign"},
    ),
    "gru": (GRUCell(HIDDEN), "GRU", {}),
    "gru-no-bias": (GRUCell(HIDDEN, use_bias=False), "GRU", {"use_bias": False}),
    "gru-hard": (
        GRUCell(HIDDEN, recurrent_activation="hard_sigmoid"),
        "GRU",
        {"recurrent_activation": "hard_sigmoid"},
    ),
    "gru-reset-before": (GRUCell(HIDDEN, reset_after=False), "GRU", {"reset_after": False}),
}


def to_keras(cell: rnnjax.Cell, params: Any) -> list[jax.Array]:
    """Keras's list of weights; its GRU has the gates z, r, n and both biases in one array."""
    weights = [params["kernel"], params["recurrent_kernel"]]
    if "recurrent_bias" in params:
        weights.append(np.stack([params["bias"], params["recurrent_bias"]]))
    elif "bias" in params:
        weights.append(params["bias"])
    if isinstance(cell, GRUCell):
        for i, weight in enumerate(weights):
            r, z, n = np.split(weight, 3, axis=-1)
            weights[i] = np.concatenate([z, r, n], axis=-1)
    return weights


# Each layer once, and both directions. What the other options make of a cell is compared with the
# equations in tests/test_reference.py.
USUAL = {("simple", False), ("lstm", True), ("gru", False), ("gru-reset-before", True)}


@pytest.mark.parametrize(
    ("name", "go_backwards"),
    [
        pytest.param(name, back, marks=[] if (name, back) in USUAL else pytest.mark.slow)
        for name in CASES
        for back in (False, True)
    ],
)
def test_equals_keras(
    name: str, go_backwards: bool, random_like: Callable[..., Any], assert_close: Any
) -> None:
    cell, layer_name, options = CASES[name]
    layer = getattr(keras.layers, layer_name)(
        HIDDEN, return_sequences=True, return_state=True, go_backwards=go_backwards, **options
    )
    layer.build((BATCH, TIME, FEATURES))
    state = jax.eval_shape(lambda: cell.initial_carry((BATCH,)))
    params, xs, carry, w_ys, w_carry = (
        random_like(tree, seed)
        for seed, tree in enumerate(
            (
                jax.eval_shape(lambda: cell.init(jax.random.key(0), FEATURES)),
                jax.ShapeDtypeStruct((TIME, BATCH, FEATURES), float),
                state,
                jax.ShapeDtypeStruct((TIME, BATCH, HIDDEN), float),
                state,
            )
        )
    )
    weights = to_keras(cell, params)
    assert [weight.shape for weight in weights] == [v.shape for v in layer.trainable_variables]

    def keras_loss(weights: Any, xs: jax.Array, carry: Any) -> Any:
        fixed = [variable.value for variable in layer.non_trainable_variables]
        (ys, *states), _ = layer.stateless_call(
            weights, fixed, jnp.swapaxes(xs, 0, 1), initial_state=list(carry)
        )
        ys = jnp.swapaxes(ys, 0, 1)
        if go_backwards:  # Keras leaves the outputs in the order in which they were computed.
            ys = ys[::-1]
        loss = jnp.vdot(w_ys, ys) + sum(map(jnp.vdot, w_carry, states))
        return loss, (type(carry)(*states), ys)

    def our_loss(params: Any, xs: jax.Array, carry: Any) -> Any:
        carry, ys = rnnjax.unroll(cell, params, xs, carry, reverse=go_backwards)
        return jnp.vdot(w_ys, ys) + sum(map(jnp.vdot, w_carry, carry)), (carry, ys)

    @jax.jit
    def both(params: Any, *rest: Any) -> Any:
        theirs, ours = (
            jax.grad(loss, argnums=(0, 1, 2), has_aux=True) for loss in (keras_loss, our_loss)
        )
        return theirs(weights, *rest), ours(params, *rest)

    (gradients, expected), ((d_params, *rest), actual) = both(params, xs, carry)
    assert_close(actual, expected, TOLERANCE)
    assert_close((to_keras(cell, d_params), *rest), gradients, TOLERANCE)


@pytest.mark.parametrize("name", CASES)
def test_defaults_of_the_initial_parameters_are_those_of_keras(name: str) -> None:
    cell, layer_name, options = CASES[name]
    layer = getattr(keras.layers, layer_name)(HIDDEN, **options)
    layer.build((BATCH, TIME, FEATURES))
    ours = to_keras(cell, cell.init(jax.random.key(0), FEATURES))
    assert [weight.shape for weight in ours] == [v.shape for v in layer.trainable_variables]
    for bias, theirs in zip(ours[2:], layer.trainable_variables[2:], strict=True):
        np.testing.assert_array_equal(bias, np.asarray(theirs.value))
