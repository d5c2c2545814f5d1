"""SimpleRNN, LSTM and GRU against Keras 3, run live on its JAX backend."""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax import Fused, GRUCell, LSTMCell, Scan, SimpleRNNCell

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
        weights.append(jnp.stack([params["bias"], params["recurrent_bias"]]))
    elif "bias" in params:
        weights.append(params["bias"])
    if isinstance(cell, GRUCell):
        for i, weight in enumerate(weights):
            r, z, n = jnp.split(weight, 3, axis=-1)
            weights[i] = jnp.concatenate([z, r, n], axis=-1)
    return weights


@pytest.mark.parametrize("go_backwards", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("name", CASES)
def test_equals_keras(
    name: str, go_backwards: bool, random_like: Callable[..., Any], assert_close: Any
) -> None:
    cell, layer_name, options = CASES[name]
    layer = getattr(keras.layers, layer_name)(
        HIDDEN, return_sequences=True, return_state=True, go_backwards=go_backwards, **options
    )
    layer.build((BATCH, TIME, FEATURES))
    shapes = jax.eval_shape(lambda: cell.init(jax.random.key(0), FEATURES))
    params, xs, carry, w_ys, w_carry = (
        random_like(tree, seed)
        for seed, tree in enumerate(
            (
                shapes,
                jnp.zeros((TIME, BATCH, FEATURES)),
                cell.initial_carry((BATCH,)),
                jnp.zeros((TIME, BATCH, HIDDEN)),
                cell.initial_carry((BATCH,)),
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

    gradients, expected = jax.jit(jax.grad(keras_loss, argnums=(0, 1, 2), has_aux=True))(
        weights, xs, carry
    )
    for method in (Scan(), Fused()):

        def our_loss(params: Any, xs: jax.Array, carry: Any, method: Any = method) -> Any:
            carry, ys = rnnjax.unroll(cell, params, xs, carry, reverse=go_backwards, method=method)
            return jnp.vdot(w_ys, ys) + sum(map(jnp.vdot, w_carry, carry)), (carry, ys)

        (d_params, *rest), actual = jax.jit(jax.grad(our_loss, argnums=(0, 1, 2), has_aux=True))(
            params, xs, carry
        )
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
