"""Penalties against their sums written out."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnjax import InvalidInputError
from rnnjax.training.optimizers import activity_penalty, slowness_penalty, weight_penalty

YS = np.random.default_rng(0).standard_normal((5, 3, 2), np.float32)
MASK = np.array([[1, 1, 0], [1, 1, 1], [0, 1, 1], [1, 1, 1], [1, 0, 1]], bool)
RESETS = np.array([[1, 1, 1], [0, 0, 1], [0, 0, 0], [0, 1, 0], [0, 0, 0]], bool)


def test_weight_penalty_by_hand() -> None:
    params = {"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.array([0.5]), "rest": ()}
    np.testing.assert_allclose(weight_penalty(params, l1=2.0), 2 * 3.5)
    np.testing.assert_allclose(weight_penalty(params, l2=3.0), 3 * 5.25)
    np.testing.assert_allclose(weight_penalty(params, l1=2.0, l2=3.0), 7 + 15.75)
    assert weight_penalty(params) == 0
    assert weight_penalty({}, l1=1.0) == 0


def test_weights_in_bfloat16_are_summed_in_float32() -> None:
    penalty = weight_penalty({"kernel": jnp.ones(1001, jnp.bfloat16)}, l2=1.0)
    assert penalty.dtype == jnp.float32
    assert penalty == 1001


def test_gradient_of_the_weight_penalty() -> None:
    """Zero for l1 at zero, where biases begin: in JAX the derivative of ``abs`` there is 1."""
    params = ({"kernel": YS}, {"bias": np.zeros(3, np.float32)})
    gradient = jax.jit(jax.grad(lambda p: weight_penalty(p, l1=0.1, l2=0.2)))(params)
    np.testing.assert_allclose(gradient[0]["kernel"], 0.1 * np.sign(YS) + 0.4 * YS, rtol=1e-5)
    assert np.all(gradient[1]["bias"] == 0)


@pytest.mark.parametrize("masked", [False, True])
def test_activity_by_hand(masked: bool) -> None:
    counted = [
        YS[t, row, unit] ** 2
        for t in range(5)
        for row in range(3)
        for unit in range(2)
        if MASK[t, row] or not masked
    ]
    actual = jax.jit(activity_penalty)(YS, mask=MASK if masked else None)
    np.testing.assert_allclose(actual, np.mean(counted), rtol=1e-6)


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_slowness_by_hand(masked: bool, reset: bool) -> None:
    """A pair counts where both of its entries do, and no reset lies between them."""
    counted = [
        (YS[t, row, unit] - YS[t - 1, row, unit]) ** 2
        for t in range(1, 5)
        for row in range(3)
        for unit in range(2)
        if (not masked or (MASK[t, row] and MASK[t - 1, row])) and not (reset and RESETS[t, row])
    ]
    given = {"mask": MASK if masked else None, "resets": RESETS if reset else None}
    actual = jax.jit(slowness_penalty)(YS, **given)
    np.testing.assert_allclose(actual, np.mean(counted), rtol=1e-6)


@pytest.mark.parametrize(
    "penalty",
    [
        lambda ys: weight_penalty(ys, l1=1.0, l2=1.0),
        activity_penalty,
        slowness_penalty,
        lambda ys: activity_penalty(ys, mask=jnp.zeros((4, 3), bool)),
        lambda ys: slowness_penalty(ys, mask=jnp.ones((4, 3), bool), resets=jnp.ones((4, 3), bool)),
        lambda ys: slowness_penalty(ys[:1]),
    ],
    ids=["weights", "activity", "slowness", "all-masked", "all-reset", "one-step"],
)
def test_nothing_is_penalised_at_zero_with_a_finite_gradient(penalty: Any) -> None:
    value, gradient = jax.jit(jax.value_and_grad(penalty))(np.zeros((4, 3, 2), np.float32))
    assert value == 0
    assert np.all(np.asarray(gradient) == 0)


def test_masked_entries_have_no_gradient() -> None:
    for penalty in (activity_penalty, slowness_penalty):
        gradient = jax.jit(jax.grad(functools.partial(penalty, mask=MASK)))(YS)
        assert np.all(np.asarray(gradient)[~MASK] == 0)
        nan = jax.jit(jax.grad(functools.partial(penalty, mask=MASK)))(
            np.where(MASK[..., None], YS, np.nan)
        )
        np.testing.assert_array_equal(nan, gradient)


@pytest.mark.parametrize("mask", [None, np.ones((70_000, 1), bool)])
def test_a_mean_over_more_than_float16_can_count(mask: Any) -> None:
    ys = np.full((70_000, 1, 1), 2.0, np.float16)
    np.testing.assert_allclose(activity_penalty(ys, mask=mask), 4.0)


@pytest.mark.parametrize("name", ["mask", "resets"])
def test_marks_are_booleans(name: str) -> None:
    with pytest.raises(InvalidInputError, match=f"^{name} must be booleans .* but are int32"):
        slowness_penalty(YS, **{name: MASK.astype(np.int32)})
    with pytest.raises(InvalidInputError, match="mask must be booleans"):
        activity_penalty(YS, mask=0.5 * MASK)
    for penalty in (activity_penalty, slowness_penalty):
        with pytest.raises(InvalidInputError, match=r"mask must be .*has the shape .* is time"):
            penalty(YS, mask=MASK.T)
