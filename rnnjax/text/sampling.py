"""Sampling text from a model that is stepped: one step for each character, state carried."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rnnjax.errors import InvalidInputError

StepFunction = Callable[[Any, Any, jax.Array], tuple[Any, jax.Array]]
"""``(params, carry, tokens (*batch,)) -> (carry, logits (*batch, vocabulary))``."""


def sample(
    step: StepFunction,
    params: Any,
    carry: Any,
    tokens: jax.Array,
    *,
    key: jax.Array,
    length: int,
    temperature: float = 1.0,
) -> tuple[Any, jax.Array]:
    """Let a model continue a text, in one loop on the device.

    Each character costs one step, whatever came before: the carry is all that the model knows of
    it.

    Args:
        step: one step of the model. Give the same function object each time: it is compiled in.
        params: given to ``step``.
        carry: the state after all characters but the last.
        tokens: ``(*batch,)`` ids of the last character of each text.
        key: the source of the draws.
        length: characters to draw.
        temperature: divides the logits; 0 takes the most probable character each time.

    Returns:
        the carry, which has seen all characters but the last one drawn, and ids
        ``(length, *batch)``, int32.

    Raises:
        InvalidInputError: the temperature is negative or not finite, or ``length`` is below 1.

    >>> def count(params, carry, tokens):
    ...     return carry, jax.nn.one_hot((tokens + 1) % 5, 5)
    >>> key = jax.random.key(0)
    >>> _, drawn = sample(count, (), (), jnp.int32(2), key=key, length=4, temperature=0)
    >>> drawn.tolist()
    [3, 4, 0, 1]
    """
    if length < 1:
        raise InvalidInputError(f"length must be at least 1 character, but is {length}")
    if not 0 <= temperature < float("inf"):
        raise InvalidInputError(
            f"temperature must be a number from 0 (always the most probable character) up, usually "
            f"at most 2, but is {temperature}"
        )
    tokens = jnp.asarray(tokens, jnp.int32)
    return _sample(step, length, params, carry, tokens, key, jnp.float32(temperature))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _sample(
    step: StepFunction,
    length: int,
    params: Any,
    carry: Any,
    tokens: jax.Array,
    key: jax.Array,
    temperature: jax.Array,
) -> tuple[Any, jax.Array]:
    def draw(state: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        carry, tokens = state
        carry, logits = step(params, carry, tokens)
        greedy = jnp.argmax(logits, axis=-1)
        # Where the temperature is 0 the drawn value is not used; 1 keeps it finite.
        scaled = logits / jnp.where(temperature > 0, temperature, 1.0)
        drawn = jax.random.categorical(key, scaled)
        tokens = jnp.where(temperature > 0, drawn, greedy).astype(jnp.int32)
        return (carry, tokens), tokens

    (carry, _), drawn = jax.lax.scan(draw, (carry, tokens), jax.random.split(key, length))
    return carry, drawn
