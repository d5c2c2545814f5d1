"""Operators that run graphs inside of them: branches and loops."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rnnjax.errors import InteropError
from rnnjax.interop.onnx.at import At, TooLargeError, is_known

MOST_TRIPS = 2**20
"""The largest product of the trips of loops in each other."""

MOST_STEPS = 256
"""Steps of a loop that is written out, because its steps differ in more than numbers."""


class Inner(NamedTuple):
    """A graph inside of a node, as its operator is given it."""

    run: Callable[..., list[Any]]  # from its inputs to its outputs, where it runs once, here
    # trace(times, *inputs): the same where it may run so many times, or not at all
    trace: Callable[..., list[Any]]
    # known(*inputs): what follows from inputs that are known; None where one is not
    known: Callable[..., list[Any]]


def branch(at: At, condition: Any) -> Any:
    """One of two graphs: chosen here if the condition is known, and else where it runs."""
    if condition.size != 1 or condition.dtype != bool:
        raise at.fail(
            f"its condition is {condition.dtype}{list(condition.shape)}, but should be one boolean"
        )
    condition = condition.reshape(())
    then, other = at.get("then_branch"), at.get("else_branch")
    if is_known(condition):
        return tuple((then if condition else other).run())
    return tuple(
        lax.cond(
            condition,
            lambda: list(map(jnp.asarray, then.trace(1))),
            lambda: list(map(jnp.asarray, other.trace(1))),
        )
    )


def loop(at: At, trips: Any, condition: Any, *states: Any) -> Any:
    """The graph once for each trip, as long as it says so.

    A scan where the number of steps is known, or follows from states that are known; written out
    where steps are few and their shapes follow from their number; else a while loop.
    """
    body: Inner = at.get("body")
    count = None if trips is None else trips.reshape(())
    more = np.bool_(True) if condition is None else condition.reshape(())
    steps = _steps(at, body, count, more, states)
    if steps is None:
        if at.num_outputs > len(states):
            raise at.fail(
                "how many steps it runs follows from an input, so its outputs of all steps have no "
                "shape that is known; make the number of trips constant before exporting"
            )
        return _while(body, count, more, states)
    few = 0 < steps <= MOST_STEPS
    first = body.known(np.int64(0), np.bool_(True), *map(_known, states)) if few else [None]
    if all(made is not None for made in first):
        return _written_out(at, body, steps, states)  # what it makes stays known
    try:
        return _scanned(at, body, steps, states)
    except TooLargeError:
        raise
    except (InteropError, TypeError, ValueError):
        if not few:
            raise
        return _written_out(at, body, steps, states)


def _known(array: Any) -> Any:
    return array if is_known(array) else None


def _steps(at: At, body: Inner, count: Any, more: Any, states: Sequence[Any]) -> int | None:
    """How many steps it runs; None if that does not follow from what is known."""
    if not is_known(count) or not is_known(more):
        return None
    if more and body.known(None, np.bool_(True), *[None] * len(states))[0]:  # whatever the state
        if count is None:
            raise at.fail("nothing ends it: it has no number of trips, and always goes on")
        return max(0, int(count))
    values: list[Any] = list(map(_known, states))
    steps = 0
    while more and (count is None or steps < count):
        more, *made = body.known(np.int64(steps), np.bool_(True), *values)
        if more is None:
            return None
        values = made[: len(values)]
        steps += 1
    return steps


def _scanned(at: At, body: Inner, count: int, states: Sequence[Any]) -> Any:
    states = tuple(map(jnp.asarray, states))

    def step(carry: Any, i: Any) -> Any:
        made = list(map(jnp.asarray, body.trace(count, i, np.bool_(True), *carry)[1:]))
        return tuple(made[: len(states)]), tuple(made[len(states) :])

    # Before the numbers of the steps are made, so that there are not too many.
    _, ys = jax.eval_shape(step, states, jnp.zeros((), jnp.result_type(int)))
    for y in ys:
        at.bound((count, *y.shape))
    last, stacked = lax.scan(step, states, jnp.arange(count, dtype=jnp.result_type(int)))
    return (*last, *stacked)


def _while(body: Inner, count: Any, more: Any, states: Sequence[Any]) -> Any:
    """Step after step while it goes on; NaN, or the least integer, if that has no end."""
    limit: Any = MOST_TRIPS + 1  # what is known may not fit into JAX's integers
    if count is not None:
        limit = min(int(count), limit) if is_known(count) else jnp.minimum(count, limit)

    def step(carry: Any) -> Any:
        i, more, states = carry
        made = list(map(jnp.asarray, body.trace(1, i, more, *states)))
        return i + 1, made[0].reshape(()), tuple(made[1 : len(states) + 1])

    begin = (
        jnp.zeros((), jnp.result_type(int)),
        jnp.asarray(more),
        tuple(map(jnp.asarray, states)),
    )
    i, more, last = lax.while_loop(
        lambda carry: carry[1] & (carry[0] < jnp.minimum(limit, MOST_TRIPS)), step, begin
    )
    endless = more & (i < limit)  # so that the limit is beyond the most
    return tuple(jnp.where(endless, _nothing(y.dtype), y) for y in last)


def _nothing(dtype: Any) -> Any:
    if jnp.issubdtype(dtype, jnp.inexact):
        return jnp.nan
    return jnp.iinfo(dtype).min if jnp.issubdtype(dtype, jnp.integer) else False


def _written_out(at: At, body: Inner, count: int, states: Sequence[Any]) -> tuple[Any, ...]:
    """Step after step."""
    values, rows = list(states), []
    for step in range(count):
        _, *made = body.trace(1, np.int64(step), np.bool_(True), *values)
        values = made[: len(states)]
        rows.append(made[len(states) :])
    at.bound([sum(y.size for row in rows for y in row)])
    stacked = ((np if all(map(is_known, ys)) else jnp).stack(ys) for ys in zip(*rows, strict=True))
    return (*values, *stacked)


def scan(at: At, *inputs: Any) -> Any:
    """The graph once for each slice of some inputs, with states from step to step."""
    if at.opset < 9:
        raise at.fail("the Scan of opset 8, over rows of a batch, is not read; export opset 9")
    body: Inner = at.get("body")
    scanned = at.get("num_scan_inputs")
    if not 0 < scanned <= len(inputs):
        raise at.fail(f"it scans {scanned} of {len(inputs)} inputs")
    states = tuple(map(jnp.asarray, inputs[:-scanned]))
    axes = at.get("scan_input_axes", (0,) * scanned)
    reverse = at.get("scan_input_directions", (0,) * scanned)
    xs = [
        jnp.flip(jnp.moveaxis(x, at.axis(axis, x.ndim), 0), [0] if backwards else [])
        for x, axis, backwards in zip(inputs[-scanned:], axes, reverse, strict=True)
    ]
    steps = xs[0].shape[0]

    def step(carry: Any, one: Any) -> Any:
        made = list(map(jnp.asarray, body.trace(steps, *carry, *one)))
        return tuple(made[: len(states)]), tuple(made[len(states) :])

    _, shapes = jax.eval_shape(step, states, [x[0] for x in xs])
    for y in shapes:
        at.bound((steps, *y.shape))
    last, ys = lax.scan(step, states, xs)
    axes = at.get("scan_output_axes", (0,) * len(ys))
    reverse = at.get("scan_output_directions", (0,) * len(ys))
    outputs = zip(ys, axes, reverse, strict=True)
    return (
        *last,
        *(
            jnp.moveaxis(jnp.flip(y, [0] if backwards else []), 0, axis)
            for y, axis, backwards in outputs
        ),
    )
