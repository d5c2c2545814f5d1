import os

os.environ["KERAS_BACKEND"] = "jax"

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rnnjax import InvalidInputError
from rnnjax.training import constrain, keras_adam


def gradients():
    rng = np.random.default_rng(0)
    # From ordinary ones to those that the epsilon dominates.
    scale = 10.0 ** rng.integers(-9, 1, size=(1, 40))
    return (scale * rng.normal(size=(30, 40))).astype(np.float32)


def updated(optimizer):
    @jax.jit
    def all_of_them(gradients):
        def one(state, grads):
            params, state = state
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        params = jnp.zeros(40)
        return jax.lax.scan(one, (params, optimizer.init(params)), gradients)[0][0]

    return np.asarray(all_of_them(gradients()))


def test_equals_the_adam_of_keras():
    keras = pytest.importorskip("keras", reason="Keras is in the extra `test`")
    theirs = keras.optimizers.Adam(1e-2)
    variable = keras.Variable(np.zeros(40, np.float32))
    theirs.build([variable])
    for grads in gradients():
        theirs.apply([jax.device_put(grads)])
    np.testing.assert_allclose(updated(keras_adam(1e-2)), variable.value, rtol=2e-5, atol=1e-9)


def test_differs_from_optax_only_where_epsilon_matters():
    ours, plain = updated(keras_adam(1e-2)), updated(optax.adam(1e-2, eps=1e-7))
    large = np.abs(gradients()).mean(axis=0) > 1e-2
    np.testing.assert_allclose(ours[large], plain[large], rtol=1e-3)
    assert np.abs(ours / plain)[~large].min() < 0.5


def test_updates_have_the_type_of_the_parameters():
    """Which a `lax.cond` around them needs; and a program may forbid itself to mix types."""
    optimizer, params = optax.apply_if_finite(keras_adam(0.1), 3), jnp.zeros(2, jnp.bfloat16)
    with jax.numpy_dtype_promotion("strict"):
        updates, _ = jax.jit(optimizer.update)(params + 1, optimizer.init(params))
    assert updates.dtype == jnp.bfloat16
    np.testing.assert_allclose(updates.astype(jnp.float32), -0.1, rtol=1e-2)


def test_takes_a_schedule():
    optimizer = keras_adam(lambda count: jnp.where(count < 1, 1.0, 0.0))
    state = optimizer.init(jnp.zeros(()))
    first, state = optimizer.update(jnp.ones(()), state)
    second, state = optimizer.update(jnp.ones(()), state)
    assert float(first) == pytest.approx(-1.0, rel=1e-3)
    assert float(second) == 0.0


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
