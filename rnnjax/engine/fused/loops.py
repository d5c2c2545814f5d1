"""Loops over arrays that are written in place."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Step = Callable[[Any, jax.Array, Any], tuple[Any, jax.Array | None, Any]]
"""``(state, entry, entries) -> (state, replacement or None, output)``.

An array of the state without an axis of rows is a sum over rows: a step adds to it.
"""


Loop = Callable[..., tuple[Any, jax.Array, Any]]
"""`over_time`, or it `with_vectors`."""


def with_vectors(
    step: Step, state: Any, first: jax.Array, others: Any, *, reverse: bool, prefetch: bool
) -> tuple[Any, jax.Array, Any]:
    """Run `over_time` with the entries of ``first`` of a single row as vectors.

    XLA on a CPU copies the whole product ``(time, width)`` before a loop over ``(time, 1, width)``.
    With vectors a gradient of one row takes down to 0.6 of the memory. On a TPU they are slower.
    """
    num_steps, *rows, width = first.shape
    if not rows or any(not isinstance(size, int) or size != 1 for size in rows):
        return over_time(step, state, first, others, reverse=reverse, prefetch=prefetch)

    def vectors(state: Any, first: jax.Array, others: Any) -> Any:
        state, entry, output = step(state, first.reshape(*rows, width), others)
        return state, entry if entry is None else entry.reshape(width), output

    whole, first = first.shape, first.reshape(num_steps, width)
    state, first, outputs = over_time(
        vectors, state, first, others, reverse=reverse, prefetch=prefetch
    )
    return state, first.reshape(whole), outputs


def over_time(
    step: Step, state: Any, first: jax.Array, others: Any, *, reverse: bool, prefetch: bool
) -> tuple[Any, jax.Array, Any]:
    """Scan over ``first`` and ``others``, and replace entries of ``first``.

    With ``prefetch``, each step's entries are read at the end of the step before. XLA otherwise
    slices them out of the whole arrays in each fusion of a step, which is slow if there are
    several. They are read after the write: nothing needs the old array, and XLA does not copy it.

    Args:
        step: the body, see `Step`.
        state: the state before the first step.
        first: an array over time, whose entries a step may replace.
        others: a tree of arrays over time.
        reverse: whether to begin with the last entry.
        prefetch: whether XLA's loop reads a step's entries in the step before.

    Returns:
        the state after the last step, ``first`` with its replacements, the outputs of all steps.
    """
    last = first.shape[0] - 1  # of a program that is exported perhaps not known

    def read(first: jax.Array, t: jax.Array) -> Any:
        t = jnp.clip(t, 0, last)  # after the last step there is nothing to read
        return jax.tree.map(
            lambda leaf: jax.lax.dynamic_index_in_dim(leaf, t, keepdims=False), (first, others)
        )

    def write(first: jax.Array, entry: jax.Array | None, t: jax.Array) -> jax.Array:
        if entry is None:
            return first
        return jax.lax.dynamic_update_index_in_dim(first, entry, t, 0)

    def now(loop: Any, t: jax.Array) -> tuple[Any, Any]:
        state, first = loop
        state, entry, output = step(state, *read(first, t))
        return (state, write(first, entry, t)), output

    def prefetching(loop: Any, t: jax.Array) -> tuple[Any, Any]:
        (state, first), at = loop
        state, entry, output = step(state, *at)
        first = write(first, entry, t)
        return ((state, first), read(first, t - 1 if reverse else t + 1)), output

    # The indices are the only array that the scan slices. It would slice `first` as well, but a
    # scan's inputs cannot be written, and an output of the same size would be a second array.
    times = jnp.arange(last + 1)
    if prefetch:
        entering = (state, first), read(first, jnp.asarray(last if reverse else 0, jnp.int32))
        ((state, first), _), outputs = jax.lax.scan(prefetching, entering, times, reverse=reverse)
    else:
        (state, first), outputs = jax.lax.scan(now, (state, first), times, reverse=reverse)
    return state, first, outputs


def split_time(inputs: Any, length: int) -> Any:
    """Split each array over time into segments of ``length`` steps, even an empty array."""
    return jax.tree.map(
        lambda leaf: leaf.reshape(len(leaf) // length, length, *leaf.shape[1:]), inputs
    )
