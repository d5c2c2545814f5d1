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
"""Of a loop that is written out, because its steps differ in more than numbers."""


class Inner(NamedTuple):
    """A graph inside of a node, as its operator is given it."""

    run: Callable[..., list[Any]]  # from its inputs to its outputs, where it runs once, here
    trace: Callable[..., list[Any]]  # the same where it may run often or not at all


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
            lambda: list(map(jnp.asarray, then.trace())),
            lambda: list(map(jnp.asarray, other.trace())),
        )
    )


def loop(at: At, trips: Any, condition: Any, *states: Any) -> Any:
    """The graph once for each trip, as long as it says so.

    A scan where the number of trips is known; written out where they are few and their shapes or
    conditions follow from their number; a while loop where the condition is not known.
    """
    body: Inner = at.get("body")
    count = None if trips is None else trips.reshape(())
    more = np.bool_(True) if condition is None else condition.reshape(())
    if is_known(count) and is_known(more) and all(map(is_known, states)):
        written = _written_out(at, body, count, more, states)
        if written is not None:
            return written
    states = tuple(map(jnp.asarray, states))
    try:
        goes_on, ys = _first_step(body, more, states)
        if goes_on and is_known(count) and is_known(more):
            if count is None and more:
                raise at.fail("nothing ends it: it has no number of trips, and always goes on")
            return _scanned(at, body, int(count or 0) if more else 0, ys, states)
        if ys:
            raise at.fail(
                "how many steps it runs follows from an input, so its outputs of all steps have no "
                "shape that is known; make the number of trips constant before exporting"
            )
        return _while(body, count, more, states)
    except (InteropError, TypeError, ValueError):
        written = _written_out(at, body, count, more, states)
        if written is None:
            raise
        return written


def _first_step(
    body: Inner, more: Any, states: Sequence[Any]
) -> tuple[bool, list[jax.ShapeDtypeStruct]]:
    """Whether it is known to go on behind each step, and the shapes of a step's outputs."""
    known: list[Any] = []

    def step(states: Sequence[Any]) -> Any:
        made = body.trace(jnp.zeros((), jnp.result_type(int)), more, *states)
        known.append(made[0])
        return list(map(jnp.asarray, made[1:]))

    made = jax.eval_shape(step, states)
    return is_known(known[0]) and bool(known[0]), made[len(states) :]


def _scanned(at: At, body: Inner, count: int, shapes: Sequence[Any], states: Sequence[Any]) -> Any:
    for y in shapes:
        at.bound((max(0, count), *y.shape))
    (count,) = at.bound([max(0, count)])

    def step(carry: Any, i: Any) -> Any:
        made = list(map(jnp.asarray, body.trace(i, np.bool_(True), *carry)[1:]))
        return tuple(made[: len(states)]), tuple(made[len(states) :])

    last, ys = lax.scan(step, tuple(states), jnp.arange(count, dtype=jnp.result_type(int)))
    return (*last, *ys)


def _while(body: Inner, count: Any, more: Any, states: Sequence[Any]) -> Any:
    limit = jnp.iinfo(jnp.result_type(int)).max if count is None else count

    def step(carry: Any) -> Any:
        i, more, states = carry
        made = list(map(jnp.asarray, body.trace(i, more, *states)))
        return i + 1, made[0].reshape(()), tuple(made[1:])

    begin = (jnp.zeros((), jnp.result_type(int)), jnp.asarray(more), tuple(states))
    return lax.while_loop(lambda carry: carry[1] & (carry[0] < limit), step, begin)[2]


def _written_out(
    at: At, body: Inner, count: Any, more: Any, states: Sequence[Any]
) -> tuple[Any, ...] | None:
    """Step after step; None where these are many, or when they end is not known."""
    if not is_known(count) or not is_known(more) or (count is not None and count > MOST_STEPS):
        return None
    values, rows = list(states), []
    steps = 0
    while more and (count is None or steps < count):
        if steps == MOST_STEPS:
            return None
        more, *made = body.trace(np.int64(steps), np.bool_(more), *values)
        if not is_known(more):
            return None
        values = made[: len(states)]
        rows.append(made[len(states) :])
        at.bound([sum(y.size for y in made) * (steps + 1)])
        steps += 1
    if not rows:
        _, ys = _first_step(body, np.bool_(True), tuple(map(jnp.asarray, states)))
        return (*values, *(np.zeros((0, *y.shape), y.dtype) for y in ys))
    stacked = ((np if all(map(is_known, ys)) else jnp).stack(ys) for ys in zip(*rows, strict=True))
    return (*values, *stacked)


def scan(at: At, *inputs: Any) -> Any:
    """The graph once for each slice of some inputs, with states from step to step."""
    body: Inner = at.get("body")
    if at.opset < 9:  # rows of a batch, each with its length
        lengths, *rest = inputs
        if lengths is not None:
            raise at.fail("lengths of rows, of opset 8, are not read here")
        directions = at.get("directions", ())
        return jax.vmap(lambda *one: _scan(at, body, one, directions, (), (), ()))(
            *map(jnp.asarray, rest)
        )
    names = ("input_directions", "input_axes", "output_directions", "output_axes")
    return _scan(at, body, inputs, *(at.get(f"scan_{name}", ()) for name in names))


def _scan(
    at: At,
    body: Inner,
    inputs: Sequence[Any],
    directions: Sequence[int],
    axes: Sequence[int],
    out_directions: Sequence[int],
    out_axes: Sequence[int],
) -> Any:
    scanned = at.get("num_scan_inputs")
    if not 0 < scanned <= len(inputs):
        raise at.fail(f"it scans {scanned} of {len(inputs)} inputs")
    states = tuple(map(jnp.asarray, inputs[:-scanned]))
    xs = [
        jnp.moveaxis(x, at.axis(axis, x.ndim), 0)
        for x, axis in zip(inputs[-scanned:], axes or (0,) * scanned, strict=True)
    ]
    xs = [
        x[::-1] if turned else x for x, turned in zip(xs, directions or (0,) * scanned, strict=True)
    ]

    def step(carry: Any, one: Any) -> Any:
        made = list(map(jnp.asarray, body.trace(*carry, *one)))
        return tuple(made[: len(states)]), tuple(made[len(states) :])

    (_, shapes), steps = jax.eval_shape(step, states, [x[0] for x in xs]), xs[0].shape[0]
    for y in shapes:
        at.bound((steps, *y.shape))
    last, ys = lax.scan(step, states, xs)
    count = len(ys)
    ys = [
        y[::-1] if turned else y
        for y, turned in zip(ys, out_directions or (0,) * count, strict=True)
    ]
    ys = [jnp.moveaxis(y, 0, axis) for y, axis in zip(ys, out_axes or (0,) * count, strict=True)]
    return (*last, *ys)
