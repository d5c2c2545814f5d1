"""Loops over arrays that are written in place."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

Step = Callable[[Any, jax.Array, Any], tuple[Any, jax.Array | None, Any]]
"""``(state, entry, entries) -> (state, replacement or None, output)``.

An array of the state that has no axis of rows is a sum over them: a step adds to it.
"""


class LoopArgs(NamedTuple):
    """What a loop is given.

    Attributes:
        step: one turn, see `Step`.
        state: before the first step.
        first: an array over time, whose entries a step may replace.
        others: a tree of arrays over time.
        reverse: whether to begin with the last entry.
        ahead: whether XLA's loop reads a step's entries at the step before, see `over_time`.
    """

    step: Step
    state: Any
    first: jax.Array
    others: Any
    reverse: bool
    ahead: bool


Loop = Callable[[LoopArgs], tuple[Any, jax.Array, Any]]
"""From its arguments to the state after the last step, the first array with its replacements, and
the outputs of all steps."""


class Turns(NamedTuple):
    """Which loop of a layer it is, by which it can be traced again, for other rows.

    Attributes:
        recurrence: of `rnnjax.engine.recurrence`.
        kind: its method whose loop it is: ``run``, ``forward`` or ``backward``.
        args: of the layer.
    """

    recurrence: Any
    kind: str
    args: tuple[Any, ...]


class Loops(Protocol):
    """A way of running loops: a hashable value."""

    @property
    def unasked(self) -> bool:
        """Whether nobody named it, and so it is not for a program that is exported."""

    def on(self, platform: str, turns: Turns) -> tuple[str, Loop]:
        """The loop for a platform, and that for which the rest of a layer is planned."""


def over_time(args: LoopArgs) -> tuple[Any, jax.Array, Any]:
    """A scan over ``first`` and ``others`` that can replace the entries of ``first``: a `Loop`.

    With ``ahead``, each step's entries are read at the end of the step before and carried into it.
    XLA slices them out of the whole arrays again in each of the small loops that read them, which
    is slow where there are several: a GRU's forward pass takes 0.44 to 0.76 of the time, an LSTM's,
    with one such loop, 1.05 to 1.2. They are read after the write, so that nothing still needs the
    array as it was before, and no copy of it is made.
    """
    step, state, first, others, reverse, ahead = args
    last = first.shape[0] - 1  # of a program that is exported perhaps not known

    def read(first: jax.Array, t: jax.Array) -> Any:
        t = jnp.clip(t, 0, last)  # one ahead of the last step there is nothing to read
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

    def one_ahead(loop: Any, t: jax.Array) -> tuple[Any, Any]:
        (state, first), at = loop
        state, entry, output = step(state, *at)
        first = write(first, entry, t)
        return ((state, first), read(first, t - 1 if reverse else t + 1)), output

    times = jnp.arange(last + 1)
    if ahead:
        begin = (state, first), read(first, jnp.asarray(last if reverse else 0, jnp.int32))
        ((state, first), _), outputs = jax.lax.scan(one_ahead, begin, times, reverse=reverse)
    else:
        (state, first), outputs = jax.lax.scan(now, (state, first), times, reverse=reverse)
    return state, first, outputs


def in_slices(args: LoopArgs) -> tuple[Any, jax.Array, Any]:
    """As `over_time`, but all entries come as slices, and the replacements are an array anew."""

    def turn(state: Any, at: Any) -> Any:
        state, *made = args.step(state, *at)
        return state, made

    entries = args.first, args.others
    state, (first, output) = jax.lax.scan(turn, args.state, entries, reverse=args.reverse)
    return state, first, output


def at_first_step(tree: Any) -> Any:
    """The shapes of one step, of arrays over time."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), tree)


def cut(inputs: Any, length: int) -> Any:
    """Each array over time as segments of ``length`` steps; of an array without entries too."""
    return jax.tree.map(
        lambda leaf: leaf.reshape(len(leaf) // length, length, *leaf.shape[1:]), inputs
    )
