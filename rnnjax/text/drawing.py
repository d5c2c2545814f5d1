"""The loop on the device in which a model writes: below `sample`, and the samples of a run."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

StepFunction = Callable[[Any, Any, jax.Array], tuple[Any, jax.Array]]
"""``(params, carry, tokens (*batch,)) -> (carry, logits (*batch, vocabulary))``."""

NONE = -1
"""Stands for "no character": before the beginning of a text, and where nothing could be drawn."""


class State(NamedTuple):
    """Where the drawing stands.

    Attributes:
        carry: the state of the model after all characters but the last.
        tokens: ``(*batch,)``, the last characters.
        keys: ``(*batch,)``; character ``n`` of a row is drawn with ``fold_in(its key, n)``.
        position: characters drawn so far.
        recent: ``(window, *batch)``, the last characters, of which a score may make something.
    """

    carry: Any
    tokens: Any
    keys: jax.Array
    position: Any
    recent: Any


Scores = Callable[[Any, jax.Array, State], jax.Array]
"""``(numbers, logits, state) -> (*batch, vocabulary)``: the character with the largest is taken."""


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def draw(
    step: StepFunction, length: int, scores: Scores, params: Any, state: State, numbers: Any
) -> tuple[State, jax.Array]:
    """Draw so many characters of each row; returns where that leads, and ids ``(length, *batch)``.

    ``step`` and ``scores`` are compiled in, and ``numbers``, which the scores are given, are not.
    """

    def one(state: State, _: None) -> tuple[State, jax.Array]:
        carry, logits = step(params, state.carry, state.tokens)
        # Of NaN, plus infinity, or minus infinity alone: nothing to draw from.
        drawable = jnp.isfinite(jnp.max(logits, axis=-1))
        best = jnp.argmax(scores(numbers, logits, state), axis=-1)
        tokens = jnp.where(drawable, best, NONE).astype(jnp.int32)
        recent = jnp.concatenate([state.recent, tokens[None]])[1:]
        return State(carry, tokens, state.keys, state.position + 1, recent), tokens

    return jax.lax.scan(one, state, length=length)


def noise(state: State, logits: jax.Array) -> jax.Array:
    """Gumbel noise: the largest of logits plus noise is a draw from their softmax."""

    def row(key: jax.Array) -> jax.Array:
        key = jax.random.fold_in(key, state.position)
        return jax.random.gumbel(key, logits.shape[-1:], logits.dtype)

    drawn = each_alone(state.keys)(row)(state.keys.reshape(-1))
    return drawn.reshape(*state.keys.shape, *drawn.shape[1:])


def each_alone(keys: jax.Array) -> Callable[..., Any]:
    """`jax.vmap` for a function that draws, or what draws for each row as for it alone.

    With keys of another kind than threefry's, `jax.vmap` lets a row depend on the others.
    """
    if jax.random.key_impl(keys) == "threefry2x32":
        return jax.vmap
    return lambda function: functools.partial(jax.lax.map, function)


def at_temperature(temperature: Any, logits: jax.Array, state: State) -> jax.Array:
    """The scores of a draw at a temperature; at 0 the most probable character is taken."""
    warm = logits / jnp.maximum(temperature, np.finfo(np.float32).tiny)
    return jnp.where(temperature > 0, warm + noise(state, logits), logits)
