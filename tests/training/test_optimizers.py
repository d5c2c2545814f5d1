import os

os.environ["KERAS_BACKEND"] = "jax"

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rnnjax import InvalidInputError
from rnnjax.training import constrain, keras_adam


def test_equals_the_adam_of_keras():
    keras = pytest.importorskip("keras", reason="Keras is in the extra `test`")
    rng = np.random.default_rng(0)
    # From ordinary ones to those that the epsilon dominates.
    gradients = (10.0 ** rng.integers(-9, 1, (1, 40)) * rng.normal(size=(30, 40))).astype("float32")
    theirs, ours = keras.optimizers.Adam(1e-2), keras_adam(1e-2)
    variable = keras.Variable(np.zeros(40, np.float32))
    theirs.build([variable])
    update, state, params = jax.jit(ours.update), ours.init(jnp.zeros(40)), np.zeros(40, np.float32)
    for grads in gradients:
        theirs.apply([jax.device_put(grads)])
        updates, state = update(grads, state)
        params = params + np.asarray(updates)
    np.testing.assert_allclose(params, variable.value, rtol=2e-5, atol=1e-9)


def test_two_updates_by_hand_with_a_schedule():
    optimizer = keras_adam(lambda count: 0.5**count, b1=0.5, b2=0.75, eps=0.25)
    state = optimizer.init(jnp.zeros(()))
    moments = (0.5 * 1, 0.25 * 1), (0.5 * 0.5 - 0.5 * 2, 0.75 * 0.25 + 0.25 * 4)
    for t, grad, (mean, square) in zip((1, 2), (1, -2), moments, strict=True):
        update, state = optimizer.update(jnp.float32(grad), state)
        alpha = 0.5 ** (t - 1) * np.sqrt(1 - 0.75**t) / (1 - 0.5**t)
        assert update == pytest.approx(-alpha * mean / (np.sqrt(square) + 0.25), rel=1e-5)


def test_updates_have_the_type_of_the_parameters():
    """Which a `lax.cond` around them needs; and a program may forbid itself to mix types."""
    optimizer, params = optax.apply_if_finite(keras_adam(0.1), 3), jnp.zeros(2, jnp.bfloat16)
    with jax.numpy_dtype_promotion("strict"):
        updates, _ = jax.jit(optimizer.update)(params + 1, optimizer.init(params))
    assert updates.dtype == jnp.bfloat16
    np.testing.assert_allclose(updates.astype(jnp.float32), -0.1, rtol=1e-2)


CONSTRAINTS = {
    "NonNeg": ({}, lambda w: jnp.maximum(w, 0)),
    "MaxNorm": ({"max_value": 2}, lambda w: w / jnp.maximum(jnp.linalg.norm(w, axis=0) / 2, 1)),
    "UnitNorm": ({}, lambda w: w / jnp.linalg.norm(w, axis=0)),
}


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_constraints_equal_those_of_keras(name):
    """Constraints of the page about Keras; other parameters are updated freely."""
    keras = pytest.importorskip("keras", reason="Keras is in the extra `test`")
    options, ours = CONSTRAINTS[name]
    kernel, grads = (np.random.default_rng(seed).normal(size=(2, 3, 5)) for seed in (0, 1))
    params = {"kernel": kernel[0].astype(np.float32), "bias": np.ones(5, np.float32)}
    free = optax.sgd(0.5)
    chained = optax.chain(free, constrain(lambda p: {**p, "kernel": ours(p["kernel"])}))
    state = chained.init(params)
    for grad in grads:
        grads_of_all = {"kernel": grad.astype(np.float32), "bias": np.ones(5, np.float32)}
        theirs = optax.apply_updates(params, free.update(grads_of_all, free.init(params))[0])
        expected = getattr(keras.constraints, name)(**options)(theirs["kernel"])
        updates, state = jax.jit(chained.update)(grads_of_all, state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params["kernel"], expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(params["bias"], theirs["bias"])


def test_a_constraint_sees_and_returns_the_parameters():
    optimizer, params = constrain(lambda params: params["kernel"]), {"kernel": jnp.ones(2)}
    with pytest.raises(InvalidInputError, match="constrain must know the parameters"):
        optimizer.update(params, optimizer.init(params))
    with pytest.raises(InvalidInputError, match="a constraint must return a tree like the param"):
        optimizer.update(params, optimizer.init(params), params)
