"""Beam search, by which a decoder writes what is most probable as a whole."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


# --8<-- [start:search]
def search(
    think: Callable[[Any, jax.Array, jax.Array], tuple[Any, jax.Array]],
    carry: Any, begin: int, beam: int, most: int, end: int | None = None,
) -> tuple[Any, jax.Array, jax.Array]:  # fmt: skip
    """Write by following the ``beam`` most probable beginnings; with one of them it is greedy.

    Args:
        think: from a carry, the numbers ``(beam,)`` written last and the step to the new carry and
            the logits ``(beam, numbers)`` of what comes next.
        carry: the first; all of its leaves have the axis ``beam`` first.
        begin: the number that stands before all.
        beam: how many beginnings are followed.
        most: how many numbers are written.
        end: the number that ends a text, after which it alone comes, at no cost.

    Returns:
        the carry, the numbers ``(beam, most)`` and the logarithms of their probabilities
        ``(beam,)``, the most probable first.
    """

    def step(state: Any, time: jax.Array) -> tuple[Any, None]:
        carry, before, written, scores = state
        carry, logits = think(carry, before, time)
        more = jax.nn.log_softmax(logits)
        if end is not None:
            free = jnp.where(jnp.arange(logits.shape[1]) == end, 0, -jnp.inf)
            more = jnp.where((before == end)[:, None], free, more)
        scores, best = jax.lax.top_k((scores[:, None] + more).ravel(), beam)
        parents, numbers = jnp.divmod(best, logits.shape[1])
        carry, written = jax.tree.map(lambda x: x[parents], (carry, written))
        return (carry, numbers, written.at[:, time].set(numbers), scores), None

    scores = jnp.full(beam, -jnp.inf).at[0].set(0)  # all begin alike: one of them counts
    start = carry, jnp.full(beam, begin), jnp.zeros((beam, most), int), scores
    (carry, _, written, scores), _ = jax.lax.scan(step, start, jnp.arange(most))
    return carry, written, scores
    # --8<-- [end:search]
