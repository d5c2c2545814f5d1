"""Penalties against their sums written out."""

import functools
import itertools
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
    assert weight_penalty(params) == weight_penalty({}, l1=1.0) == 0
    narrow = weight_penalty({"kernel": jnp.ones(1001, jnp.bfloat16)}, l2=1.0)
    assert (narrow.dtype, narrow) == (jnp.float32, 1001)


def test_gradient_of_the_weight_penalty() -> None:
    """Zero for l1 at zero, where biases begin: in JAX the derivative of ``abs`` there is 1."""
    params = ({"kernel": YS}, {"bias": np.zeros(3, np.float32)})
    gradient = jax.jit(jax.grad(lambda p: weight_penalty(p, l1=0.1, l2=0.2)))(params)
    np.testing.assert_allclose(gradient[0]["kernel"], 0.1 * np.sign(YS) + 0.4 * YS, rtol=1e-5)
    assert np.all(gradient[1]["bias"] == 0)


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_activity_and_slowness_by_hand(masked: bool, reset: bool) -> None:
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


@pytest.mark.parametrize(
    "penalty",
    [
        lambda ys: activity_penalty(ys, mask=jnp.zeros((4, 3), bool)),
        lambda ys: slowness_penalty(ys, mask=jnp.ones((4, 3), bool), resets=jnp.ones((4, 3), bool)),
        lambda ys: slowness_penalty(ys[:1]),
    ],
    ids=["all-masked", "all-reset", "one-step"],
)
def test_nothing_to_penalise_is_zero_with_a_finite_gradient(penalty: Any) -> None:
    value, gradient = jax.jit(jax.value_and_grad(penalty))(np.ones((4, 3, 2), np.float32))
    assert value == 0
    assert np.all(np.asarray(gradient) == 0)


def test_masked_entries_have_no_gradient() -> None:
    for penalty in (activity_penalty, slowness_penalty):
        of = jax.jit(jax.grad(functools.partial(penalty, mask=MASK)))
        gradient = of(YS)
        assert np.all(np.asarray(gradient)[~MASK] == 0)
        np.testing.assert_array_equal(of(np.where(MASK[..., None], YS, np.nan)), gradient)


@pytest.mark.parametrize("mask", [None, np.ones((70_000, 1), bool)])
def test_a_mean_over_more_than_float16_can_count(mask: Any) -> None:
    ys = np.full((70_000, 1, 1), 2.0, np.float16)
    np.testing.assert_allclose(activity_penalty(ys, mask=mask), 4.0)


@pytest.mark.parametrize("name", ["mask", "resets"])
def test_marks_are_booleans_of_time(name: str) -> None:
    with pytest.raises(InvalidInputError, match=f"^{name} must be booleans .* but are int32"):
        slowness_penalty(YS, **{name: MASK.astype(np.int32)})
    for marks in (MASK.T, MASK[:1], MASK[..., None], MASK[:, :2]):
        with pytest.raises(InvalidInputError, match=rf"{name} must be .*has the shape .* is time"):
            slowness_penalty(YS, **{name: marks})
    shared = slowness_penalty(YS, **{name: MASK[:, :1]})
    np.testing.assert_array_equal(shared, slowness_penalty(YS, **{name: MASK[:, [0, 0, 0]]}))
