"""Operators that run graphs inside of them: branches and loops."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rnnjax.errors import InteropError
from rnnjax.interop.onnx.at import At, is_known

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
    if is_known(count) and is_known(more) and all(map(is_known, states)):
        written = _written_out(at, body, count, more, states)
        if written is not None:
            return written
    arrays = tuple(map(jnp.asarray, states))
    try:
        goes_on, ys = _first_step(body, more, arrays)
        if is_known(count) and is_known(more):
            if goes_on and count is None and more:
                raise at.fail("nothing ends it: it has no number of trips, and always goes on")
            steps = (int(count or 0) if more else 0) if goes_on else None
            steps = _counted(body, count, more, states) if steps is None else steps
            if steps is not None:
                return _scanned(at, body, steps, ys, arrays)
        if ys:
            raise at.fail(
                "how many steps it runs follows from an input, so its outputs of all steps have no "
                "shape that is known; make the number of trips constant before exporting"
            )
        return _while(body, count, more, arrays)
    except (InteropError, TypeError, ValueError):
        written = _written_out(at, body, count, more, states)
        if written is None:
            raise
        return written


def _first_step(
    body: Inner, more: Any, states: Sequence[Any]
) -> tuple[bool, list[jax.ShapeDtypeStruct]]:
    """Whether it is known to go on after each step, and the shapes of a step's outputs."""
    known: list[Any] = []

    def step(states: Sequence[Any]) -> Any:
        made = body.trace(1, jnp.zeros((), jnp.result_type(int)), more, *states)
        known.append(made[0])
        return list(map(jnp.asarray, made[1:]))

    made = jax.eval_shape(step, states)
    return is_known(known[0]) and bool(known[0]), made[len(states) :]


def _counted(body: Inner, count: Any, more: Any, states: Sequence[Any]) -> int | None:
    """How many steps it runs, if its condition follows from known states alone: it is a counter."""
    values: list[Any] = [state if is_known(state) else None for state in states]
    steps = 0
    while more and (count is None or steps < count):
        more, *made = body.known(np.int64(steps), np.bool_(True), *values)
        if more is None:
            return None
        values = made[: len(values)]
        steps += 1
    return steps


def _scanned(at: At, body: Inner, count: int, shapes: Sequence[Any], states: Sequence[Any]) -> Any:
    count = max(0, count)
    for y in shapes:
        at.bound((count, *y.shape))

    def step(carry: Any, i: Any) -> Any:
        made = list(map(jnp.asarray, body.trace(count, i, np.bool_(True), *carry)[1:]))
        return tuple(made[: len(states)]), tuple(made[len(states) :])

    # Before the numbers of the steps are made, so that there are not too many.
    jax.eval_shape(step, states, jnp.zeros((), jnp.result_type(int)))
    last, ys = lax.scan(step, tuple(states), jnp.arange(count, dtype=jnp.result_type(int)))
    return (*last, *ys)


def _while(body: Inner, count: Any, more: Any, states: Sequence[Any]) -> Any:
    limit = jnp.iinfo(jnp.result_type(int)).max if count is None else count

    def step(carry: Any) -> Any:
        i, more, states = carry
        made = list(map(jnp.asarray, body.trace(1, i, more, *states)))
        return i + 1, made[0].reshape(()), tuple(made[1:])

    begin = (jnp.zeros((), jnp.result_type(int)), jnp.asarray(more), tuple(states))
    return lax.while_loop(lambda carry: carry[1] & (carry[0] < limit), step, begin)[2]


def _written_out(
    at: At, body: Inner, count: Any, more: Any, states: Sequence[Any]
) -> tuple[Any, ...] | None:
    """Step after step; None where these are many, or when they end is not known."""
    if not is_known(count) or not is_known(more):
        return None
    values, rows = list(states), []
    steps = 0
    while more and (count is None or steps < count):
        if steps == MOST_STEPS:
            return None
        more, *made = body.trace(1, np.int64(steps), np.bool_(more), *values)
        if not is_known(more):
            return None
        values = made[: len(states)]
        rows.append(made[len(states) :])
        steps += 1
    if not rows:
        _, ys = _first_step(body, np.bool_(True), tuple(map(jnp.asarray, states)))
        return (*values, *(np.zeros((0, *y.shape), y.dtype) for y in ys))
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
