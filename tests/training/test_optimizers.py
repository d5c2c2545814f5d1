"""Adam as Keras has it, constraints, and penalties against their sums written out."""

import functools
import itertools
import os

os.environ["KERAS_BACKEND"] = "jax"

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rnnjax import InvalidInputError
from rnnjax.training import constrain, keras_adam
from rnnjax.training.optimizers import activity_penalty, slowness_penalty, weight_penalty

YS = np.random.default_rng(0).standard_normal((5, 3, 2), np.float32)
MASK = np.array([[1, 1, 0], [1, 1, 1], [0, 1, 1], [1, 1, 1], [1, 0, 1]], bool)
RESETS = np.array([[1, 1, 1], [0, 0, 1], [0, 0, 0], [0, 1, 0], [0, 0, 0]], bool)


@pytest.mark.parametrize(
    ("name", "given", "ours"),
    [("Adam", (1e-2,), keras_adam(1e-2)), ("RMSprop", (), optax.rmsprop(1e-3, eps=1e-7))],
)
def test_equals_an_optimizer_of_keras(name, given, ours):
    """Its Adam, and its default as the page about Keras has it."""
    keras = pytest.importorskip("keras", reason="Keras is in the group `test`")
    rng = np.random.default_rng(0)
    # From ordinary ones to those that the epsilon dominates.
    gradients = (10.0 ** rng.integers(-9, 1, (1, 40)) * rng.normal(size=(30, 40))).astype("float32")
    theirs = getattr(keras.optimizers, name)(*given)
    variable = keras.Variable(np.zeros(40, np.float32))
    theirs.build([variable])
    update, state, params = jax.jit(ours.update), ours.init(jnp.zeros(40)), np.zeros(40, np.float32)
    for grads in gradients:
        theirs.apply([jax.device_put(grads)])
        updates, state = update(grads, state)
        params = params + np.asarray(updates)
    np.testing.assert_allclose(params, variable.value, rtol=2e-5, atol=1e-9)


def test_outputs_may_be_a_list():
    assert float(activity_penalty([[1.0, 3.0]])) == 5
    assert float(slowness_penalty([[1.0], [3.0], [4.0]])) == 2.5


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


@pytest.mark.parametrize(
    ("name", "options", "ours"),
    [
        ("NonNeg", {}, lambda w: jnp.maximum(w, 0)),
        ("MaxNorm", {"max_value": 2}, lambda w: w / jnp.maximum(jnp.linalg.norm(w, axis=0) / 2, 1)),
        ("UnitNorm", {}, lambda w: w / jnp.linalg.norm(w, axis=0)),
    ],
)
def test_constraints_equal_those_of_keras(name, options, ours):
    """Constraints of the page about Keras; other parameters are updated freely."""
    keras = pytest.importorskip("keras", reason="Keras is in the group `test`")
    params, grads = ({"kernel": YS[i], "bias": np.ones(5, np.float32)} for i in (0, 1))
    optimizer = optax.chain(optax.sgd(0.5), constrain(lambda p: {**p, "kernel": ours(p["kernel"])}))
    updates, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
    found = optax.apply_updates(params, updates)
    expected = getattr(keras.constraints, name)(**options)(YS[0] - 0.5 * YS[1])
    np.testing.assert_allclose(found["kernel"], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["bias"], 0.5)


def test_a_constraint_sees_and_returns_the_parameters():
    optimizer, params = constrain(lambda params: params["kernel"]), {"kernel": jnp.ones(2)}
    with pytest.raises(InvalidInputError, match="constrain must know the parameters"):
        optimizer.update(params, optimizer.init(params))
    with pytest.raises(InvalidInputError, match="a constraint must return a tree like the param"):
        optimizer.update(params, optimizer.init(params), params)


# ---- penalties


def test_weight_penalty_by_hand():
    """The gradient is zero for l1 at zero, where biases begin: in JAX that of ``abs`` is 1."""
    params = {"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.zeros(3), "rest": ()}
    for l1, l2 in ((2.0, 0.0), (0.0, 3.0), (2.0, 3.0)):
        penalty = functools.partial(weight_penalty, l1=l1, l2=l2)
        found, gradient = jax.jit(jax.value_and_grad(penalty))(params)
        np.testing.assert_allclose(found, l1 * 3 + l2 * 5)
        np.testing.assert_allclose(gradient["kernel"], [[l1 + 2 * l2, -l1 - 4 * l2]])
        assert np.all(gradient["bias"] == 0)
    assert weight_penalty(params) == weight_penalty({}, l1=1.0) == 0
    narrow = weight_penalty({"kernel": jnp.ones(1001, jnp.bfloat16)}, l2=1.0)
    assert (narrow.dtype, narrow) == (jnp.float32, 1001)


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_activity_and_slowness_by_hand(masked, reset):
    """A pair counts where both of its entries do, and no reset lies between them."""
    mask = MASK if masked else np.ones_like(MASK)
    resets = RESETS if reset else np.zeros_like(RESETS)
    every = list(itertools.product(range(5), range(3)))
    squares = [YS[t, row] ** 2 for t, row in every if mask[t, row]]
    pairs = [
        (YS[t, row] - YS[t - 1, row]) ** 2
        for t, row in every
        if t and mask[t, row] and mask[t - 1, row] and not resets[t, row]
    ]
    given = {"mask": MASK if masked else None, "resets": RESETS if reset else None}
    np.testing.assert_allclose(jax.jit(slowness_penalty)(YS, **given), np.mean(pairs), rtol=1e-6)
    del given["resets"]
    np.testing.assert_allclose(jax.jit(activity_penalty)(YS, **given), np.mean(squares), rtol=1e-6)


def test_what_does_not_count_has_no_value_and_no_gradient():
    nothing, everything = np.zeros((4, 3), bool), np.ones((4, 3), bool)
    for penalty in (
        lambda ys: activity_penalty(ys, mask=nothing),
        lambda ys: slowness_penalty(ys, mask=everything, resets=everything),
        lambda ys: slowness_penalty(ys[:1]),
    ):
        value, gradient = jax.jit(jax.value_and_grad(penalty))(np.ones((4, 3, 2), np.float32))
        assert value == 0
        assert np.all(np.asarray(gradient) == 0)
    for penalty in (activity_penalty, slowness_penalty):
        of = jax.jit(jax.grad(functools.partial(penalty, mask=MASK)))
        gradient = of(YS)
        assert np.all(np.asarray(gradient)[~MASK] == 0)
        np.testing.assert_array_equal(of(np.where(MASK[..., None], YS, np.nan)), gradient)


@pytest.mark.parametrize("mask", [None, np.ones((70_000, 1), bool)])
def test_a_mean_over_more_than_float16_can_count(mask):
    ys = np.full((70_000, 1, 1), 2.0, np.float16)
    np.testing.assert_allclose(activity_penalty(ys, mask=mask), 4.0)


@pytest.mark.parametrize("name", ["mask", "resets"])
def test_marks_are_booleans_of_time(name):
    with pytest.raises(InvalidInputError, match=f"^{name} must be booleans, but are int32"):
        slowness_penalty(YS, **{name: MASK.astype(np.int32)})
    for marks in (MASK.T, MASK[:1], MASK[..., None], MASK[:, :2]):
        with pytest.raises(InvalidInputError, match=rf"{name} must have shape .* is time"):
            slowness_penalty(YS, **{name: marks})
