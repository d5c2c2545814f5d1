"""The sampling loop on the device, used by `sample` and by the samples of a run."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

StepFunction = Callable[[Any, Any, jax.Array], tuple[Any, jax.Array]]
"""``(params, carry, tokens (*batch,)) -> (carry, logits (*batch, vocabulary))``."""

NONE = -1
"""The id of no character: before the start of a text, or if nothing could be sampled."""


class State(NamedTuple):
    """The state of the sampling loop.

    Attributes:
        carry: the state of the model after all characters except the last.
        tokens: ``(*batch,)``, the last characters.
        keys: ``(*batch,)``; character ``n`` of a row is sampled with ``fold_in(its key, n)``.
        position: the number of characters sampled so far.
        recent: ``(window, *batch)``, the last characters, for the scores.
    """

    carry: Any
    tokens: Any
    keys: jax.Array
    position: Any
    recent: Any


Scores = Callable[[Any, jax.Array, State], jax.Array]
"""``(numbers, logits, state) -> (*batch, vocabulary)``: the largest score wins."""


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def draw(
    step: StepFunction, length: int, scores: Scores, params: Any, state: State, numbers: Any
) -> tuple[State, jax.Array]:
    """Sample ``length`` characters of each row; return the new state and ids ``(length, *batch)``.

    ``step`` and ``scores`` are static. ``numbers``, an argument of the scores, are not.
    """

    def one(state: State, _: None) -> tuple[State, jax.Array]:
        carry, logits = step(params, state.carry, state.tokens)
        # NaN, plus infinity, or only minus infinity: there is nothing to sample from.
        drawable = jnp.isfinite(jnp.max(logits, axis=-1))
        best = jnp.argmax(scores(numbers, logits, state), axis=-1)
        tokens = jnp.where(drawable, best, NONE).astype(jnp.int32)
        recent = jnp.concatenate([state.recent, tokens[None]])[1:]
        return State(carry, tokens, state.keys, state.position + 1, recent), tokens

    return jax.lax.scan(one, state, length=length)


def noise(state: State, logits: jax.Array) -> jax.Array:
    """Sample Gumbel noise: the argmax of logits plus noise is a sample of their softmax."""

    def row(key: jax.Array) -> jax.Array:
        key = jax.random.fold_in(key, state.position)
        return jax.random.gumbel(key, logits.shape[-1:], logits.dtype)

    drawn = each_alone(state.keys)(row)(state.keys.reshape(-1))
    return drawn.reshape(*state.keys.shape, *drawn.shape[1:])


def each_alone(keys: jax.Array) -> Callable[..., Any]:
    """Map a sampling function over rows so that no row depends on the others.

    It is `jax.vmap` for threefry keys. With other kinds of keys `jax.vmap` would mix rows.
    """
    if jax.random.key_impl(keys) == "threefry2x32":
        return jax.vmap
    return lambda function: functools.partial(jax.lax.map, function)


def at_temperature(temperature: Any, logits: jax.Array, state: State) -> jax.Array:
    """Compute the scores at a temperature; at 0 the most probable character wins."""
    warm = logits / jnp.maximum(temperature, np.finfo(np.float32).tiny)
    return jnp.where(temperature > 0, warm + noise(state, logits), logits)
