"""Attention with a cache and rotary positions, against loops in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.language_models import blocks
from experiments.language_models.blocks import Cache, Carry, Place
from rnnjax import InvalidInputError

STEPS, BATCH, HEADS, KEY_HEADS, SIZE = 9, 2, 6, 2, 4
THROUGH, ATTEND = jax.jit(Place.through), jax.jit(blocks.attend, static_argnums=5)


def drawn() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    heads = HEADS, KEY_HEADS, KEY_HEADS
    q, k, v = (rng.normal(size=(STEPS, BATCH, n, SIZE)).astype(np.float32) for n in heads)
    return q, k, v


def resets() -> np.ndarray:
    marks = np.zeros((STEPS, BATCH), bool)
    marks[[2, 3], 0] = marks[6, 1] = True
    return marks


def looped(window: int | None, marks: np.ndarray) -> np.ndarray:
    """Attend token by token, in each row from its last reset on."""
    q, k, v = drawn()
    y = np.zeros_like(q)
    for t, row, head in np.ndindex(STEPS, BATCH, HEADS):
        begins = [0, *np.flatnonzero(marks[: t + 1, row])]
        first = begins[-1] if window is None else max(begins[-1], t - window + 1)
        key = head // (HEADS // KEY_HEADS)
        scores = k[first : t + 1, row, key] @ q[t, row, head] / np.sqrt(SIZE)
        weights = np.exp(scores) / np.exp(scores).sum()
        y[t, row, head] = weights @ v[first : t + 1, row, key]
    return y


def attended(cuts: list[int], window: int | None, marks: np.ndarray | None) -> np.ndarray:
    """Attend in several calls."""
    place, found = Place.start(BATCH), []
    cache = Cache.empty(BATCH, KEY_HEADS, STEPS if window is None else window, SIZE, jnp.float32)
    for a, b in zip([0, *cuts], [*cuts, STEPS], strict=True):
        tokens, part = jnp.zeros((b - a, BATCH), int), [x[a:b] for x in drawn()]
        place, at = THROUGH(place, tokens, None if marks is None else marks[a:b])
        cache, y = ATTEND(*part, cache, at, window)
        found.append(y)
    return np.concatenate(found)


@pytest.mark.parametrize("window", [None, 1, 3, 20])
@pytest.mark.parametrize("cuts", [[], [4], list(range(1, STEPS))], ids=["once", "two", "steps"])
@pytest.mark.parametrize("reset", [False, True])
def test_it_equals_a_loop(window: int | None, cuts: list[int], reset: bool) -> None:
    marks = resets() if reset else None
    wanted = looped(window, np.zeros((STEPS, BATCH), bool) if marks is None else marks)
    np.testing.assert_allclose(attended(cuts, window, marks), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("window", [None, 3])
def test_blocks_of_queries_change_no_number(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor a gradient: nine queries in blocks of four or two, the last of which has one."""
    _, at = THROUGH(Place.start(BATCH), np.zeros((STEPS, BATCH), int), resets())
    cache = Cache.empty(BATCH, KEY_HEADS, STEPS if window is None else window, SIZE, jnp.float32)

    def run(heads: tuple[np.ndarray, ...]) -> tuple[jax.Array, jax.Array]:
        y = blocks.attend(*heads, cache, at, window)[1]
        return jnp.sin(y).sum(), y

    gradient = jax.value_and_grad(run, has_aux=True)
    whole = jax.jit(lambda heads: gradient(heads))(drawn())
    for name, size in (("FEWEST", 2), ("QUERIES", 4)):
        monkeypatch.setattr(blocks, name, size)
        parts = jax.jit(lambda heads: gradient(heads))(drawn())
        for one, two in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)


def test_positions_begin_at_each_document() -> None:
    place, at = Place.start(BATCH).through(jnp.zeros((STEPS, BATCH), int), resets())
    assert at.position.T.tolist() == [[0, 1, 0, 0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5, 0, 1, 2]]
    assert at.document.T.tolist() == [[0, 0, 1, 2, 2, 2, 2, 2, 2], [0, 0, 0, 0, 0, 0, 1, 1, 1]]
    assert place.read == STEPS
    _, at = place.through(jnp.zeros((2, BATCH), int), None)
    assert at.position.T.tolist() == [[6, 7], [3, 4]]
    assert at.document.T.tolist() == [[2, 2], [1, 1]]


def test_what_has_no_room_is_refused() -> None:
    q, k, v = drawn()
    cache = Cache.empty(BATCH, KEY_HEADS, 5, SIZE, jnp.float32)
    place, at = Place.start(BATCH).through(jnp.zeros((3, BATCH), int), None)
    cache, y = blocks.attend(q[:3], k[:3], v[:3], cache, at)
    assert np.isfinite(y).all()
    carry = Carry(place, (cache,))
    carry.check_room(2)
    with pytest.raises(InvalidInputError, match="at most 2 more, but got 3; begin with a larger"):
        carry.check_room(3)
    with pytest.raises(InvalidInputError, match="capacity 5 must be given at most 5 more, but got"):
        jax.eval_shape(lambda carry: carry.check_room(6), carry)
    # What was read is not known under jit, so nobody gets a wrong number.
    _, at = place.through(jnp.zeros((3, BATCH), int), None)
    _, y = ATTEND(q[3:6], k[3:6], v[3:6], cache, at)
    assert np.isnan(y).all()


def test_pairs_of_entries_are_rotated() -> None:
    x, _, _ = drawn()
    positions = np.arange(STEPS)[:, None] * np.array([1, 100])
    rotary = jax.jit(blocks.rotary, static_argnums=(2, 3))
    y = rotary(x, positions, SIZE - 2, 10.0)
    turned = (x[..., 0] + 1j * x[..., 1]) * np.exp(1j * positions)[..., None]
    wanted = np.stack([turned.real, turned.imag, x[..., 2], x[..., 3]], axis=-1)
    np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-5)
    y = np.asarray(rotary(x, positions, SIZE, 10.0))
    for i, rate in ((0, 1.0), (1, 10.0**-0.5)):
        turned = (x[..., i] + 1j * x[..., i + 2]) * np.exp(1j * rate * positions)[..., None]
        np.testing.assert_allclose(y[..., i], turned.real, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(y[..., i + 2], turned.imag, rtol=1e-4, atol=1e-4)


def test_bfloat16_is_attended_in_its_type() -> None:
    q, k, v = (x.astype(jnp.bfloat16) for x in drawn())
    _, at = THROUGH(Place.start(BATCH), np.zeros((STEPS, BATCH), int), None)
    cache, y = ATTEND(q, k, v, Cache.empty(BATCH, KEY_HEADS, STEPS, SIZE, k.dtype), at, None)
    assert (y.dtype, cache.keys.dtype) == (jnp.bfloat16, jnp.bfloat16)
    wanted = looped(None, np.zeros((STEPS, BATCH), bool))
    np.testing.assert_allclose(np.asarray(y, np.float32), wanted, atol=0.05)
