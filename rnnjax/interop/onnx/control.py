"""Operators that run graphs inside of them: branches and loops."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rnnjax.interop.onnx.at import At, is_known

MOST_TRIPS = 2**20
"""The largest product of the trips of loops in each other."""


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
    """The graph once for each trip, as long as it says so: how often has to be known."""
    body: Inner = at.get("body")
    count = None if trips is None else trips.reshape(())
    more = np.bool_(True) if condition is None else condition.reshape(())
    steps = _steps(at, body, count, more, states)
    if steps is None:
        raise at.fail(
            "how many steps it runs follows from an input, and a loop without an end has no "
            "gradient; make the number of trips constant before exporting"
        )

    def step(carry: Any, i: Any) -> list[Any]:
        return body.trace(steps, i, np.bool_(True), *carry)[1:]

    return _scanned(at, step, states, steps, None)


def _steps(at: At, body: Inner, count: Any, more: Any, states: Sequence[Any]) -> int | None:
    """How many steps it runs; None if that does not follow from what is known."""
    if not is_known(count) or not is_known(more):
        return None
    if more and body.known(None, np.bool_(True), *[None] * len(states))[0]:  # whatever the state
        if count is None:
            raise at.fail("nothing ends it: it has no number of trips, and always goes on")
        return max(0, int(count))
    values: list[Any] = [state if is_known(state) else None for state in states]
    steps = 0
    while more and (count is None or steps < count):
        more, *made = body.known(np.int64(steps), np.bool_(True), *values)
        if more is None:
            return None
        values = made[: len(values)]
        steps += 1
    return steps


def scan(at: At, *inputs: Any) -> Any:
    """The graph once for each slice of some inputs, with states from step to step."""
    body: Inner = at.get("body")
    scanned = at.get("num_scan_inputs")
    others = [name for name in at.attributes if name not in ("body", "num_scan_inputs")]
    if at.opset < 9 or not 0 < scanned <= len(inputs) or any(any(at.get(n)) for n in others):
        raise at.fail(
            f"it scans {scanned} of {len(inputs)} inputs in opset {at.opset}, with "
            f"{', '.join(others) or 'no options'}; read is what opset 9 scans forward over first "
            "axes"
        )
    xs = list(map(jnp.asarray, inputs[-scanned:]))
    steps = xs[0].shape[0]

    def step(carry: Any, one: Any) -> list[Any]:
        return body.trace(steps, *carry, *one)

    return _scanned(at, step, inputs[:-scanned], steps, xs)


def _scanned(at: At, step: Any, states: Sequence[Any], steps: Any, xs: Any) -> Any:
    """The last states, and what all steps made; the step's number stands for no inputs."""
    states = tuple(map(jnp.asarray, states))

    def one(carry: Any, x: Any) -> Any:
        made = list(map(jnp.asarray, step(carry, x)))
        return tuple(made[: len(states)]), tuple(made[len(states) :])

    # Before anything is made of the steps, so that there are not too many.
    number = jnp.zeros((), jnp.result_type(int))
    _, ys = jax.eval_shape(one, states, number if xs is None else [x[0] for x in xs])
    for y in ys:
        at.bound((steps, *y.shape))
    last, ys = lax.scan(one, states, jnp.arange(steps, dtype=number.dtype) if xs is None else xs)
    return (*last, *ys)
