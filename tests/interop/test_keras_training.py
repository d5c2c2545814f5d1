"""Ten steps of Adam in Keras and in rnnjax, from the same weights, end at the same weights."""

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rnnjax.interop import keras as interop
from rnnjax.training import keras_adam

os.environ["KERAS_BACKEND"] = "jax"
keras = pytest.importorskip("keras", reason="keras is in the extra `test`")
layers = keras.layers

TIME, BATCH, FEATURES = 6, 8, 3


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize(
    "kind", ["LSTM", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("GRU", "SimpleRNN"))]
)
def test_ten_steps_of_adam(kind: str) -> None:
    model = keras.Sequential(
        [
            keras.Input((TIME, FEATURES)),
            getattr(layers, kind)(5, return_sequences=True),
            getattr(layers, kind)(4),
            layers.Dense(2),
        ]
    )
    rng = np.random.default_rng(0)
    for variable in model.weights:
        variable.assign(0.6 * rng.standard_normal(variable.shape).astype(np.float32))
    xs, targets = (
        rng.standard_normal(shape).astype(np.float32)
        for shape in ((10, BATCH, TIME, FEATURES), (10, BATCH, 2))
    )
    ours = interop.load(model)
    model.compile(keras.optimizers.Adam(0.01), loss="mse")
    theirs = [float(model.train_on_batch(x, y)) for x, y in zip(xs, targets, strict=True)]

    optimizer = keras_adam(0.01)

    @jax.jit
    def step(params: Any, state: Any, x: jax.Array, y: jax.Array) -> Any:
        def loss(params: Any) -> jax.Array:
            return jnp.mean((ours.apply(params, jnp.swapaxes(x, 0, 1))[1] - y) ** 2)

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    params, state, losses = ours.params, optimizer.init(ours.params), []
    for x, y in zip(xs, targets, strict=True):
        params, state, value = step(params, state, x, y)
        losses.append(float(value))

    np.testing.assert_allclose(losses, theirs, rtol=1e-4)
    trained = interop.load(model)
    for start, end, expected in zip(
        *map(jax.tree.leaves, (ours.params, params, trained.params)), strict=True
    ):
        np.testing.assert_allclose(end, expected, rtol=0, atol=1e-4)
        assert np.abs(np.asarray(end) - start).max() > 0.02
