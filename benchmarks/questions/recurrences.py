"""What a linear recurrence and a gated delta rule take as functions of arrays, beside JAX's own."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from benchmarks.questions import layers
from benchmarks.questions.gradients import Call, compared, repeated
from benchmarks.reports import Point, Report
from benchmarks.timing import Contender, Question

__all__ = ["QUICK", "Settings", "question", "remarks", "tables"]


WRITTEN_OUT = "associative_scan, or chunks"
"""In parallel over time, written by hand: a linear recurrence by the one, a delta rule by these."""
MEMAX = "memax's scan"
"""By ``semigroup_scan``, with its `GDNSemigroup`; of a linear recurrence it has the sum alone."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Every number of steps, rows and units is a point; and so of the delta rule, of two heads."""

    linear: tuple[tuple[int, int, int], ...] = ((1024, 1, 64), (4096, 4, 64), (16384, 1, 128))
    delta: tuple[tuple[int, int, int], ...] = ((1024, 1, 64), (1024, 8, 64), (4096, 1, 64))


QUICK = Settings(((9, 2, 4),), ((70, 2, 4),))


def _linear(name: str) -> Callable[[Any, Any], Any]:
    """``h = a h + b`` over ``(time, rows, units)``: the states."""
    import jax

    import rnnjax

    def step(h: Any, at: Any) -> Any:
        h = at[0] * h + at[1]
        return h, h

    def joined(one: Any, other: Any) -> Any:
        return one[0] * other[0], other[0] * one[1] + other[1]

    def semigroup(a: Any, b: Any) -> Any:
        from memax.equinox.scans import semigroup_scan

        return semigroup_scan(joined, (0 * a[0] + 1, 0 * b[0]), (a, b))[1]

    return {
        MEMAX: semigroup,
        "rnnjax": lambda a, b: rnnjax.linear_recurrence(a, b)[1],
        "lax.scan": lambda a, b: jax.lax.scan(step, 0 * b[0], (a, b))[1],
        WRITTEN_OUT: lambda a, b: jax.lax.associative_scan(joined, (a, b))[1],
    }[name]


def _delta(name: str) -> Callable[..., Any]:
    """A gated delta rule over ``(time, rows, heads, size)``: what is read."""
    import jax
    import jax.numpy as jnp

    import rnnjax

    def functions(q: Any, k: Any, v: Any, decay: Any, beta: Any) -> Any:
        return rnnjax.matrix_memory(rnnjax.Memory(q, k, v, decay, beta, beta))[1]

    def scan(*args: Any) -> Any:
        def step(state: Any, at: Any) -> Any:
            q, k, v, decay, beta = at
            state = jnp.exp(decay)[..., None, None] * state
            found = jnp.einsum("...vk,...k->...v", state, k)
            state += (beta[..., None] * (v - found))[..., None] * k[..., None, :]
            return state, jnp.einsum("...vk,...k->...v", state, q)

        q, v = args[0], args[2]
        return jax.lax.scan(step, jnp.zeros((*v.shape[1:], q.shape[-1])), args)[1]

    def chunks(*args: Any, length: int = 64) -> Any:
        """As the papers write it (Yang et al., 2024), with the platform's triangular solver."""
        time = args[0].shape[0]

        def cut(x: Any) -> Any:
            x = jnp.concatenate([x, jnp.zeros((-time % length, *x.shape[1:]), x.dtype)])
            return jnp.moveaxis(x.reshape(-1, length, *x.shape[1:]), 1, 3)

        q, k, v, decay, beta = map(cut, args)
        sums = jnp.cumsum(decay, axis=-1)
        between = jnp.exp(jnp.tril(sums[..., :, None] - sums[..., None, :]))
        below = jnp.tril(beta[..., None] * (k @ k.mT) * between, -1)
        both = beta[..., None] * jnp.concatenate([v, jnp.exp(sums)[..., None] * k], -1)
        solved = jax.lax.linalg.triangular_solve(
            below, both, left_side=True, lower=True, unit_diagonal=True
        )
        value, erased = jnp.split(solved, [v.shape[-1]], axis=-1)
        rest = jnp.exp(sums[..., -1:] - sums)[..., None] * k

        def over(state: Any, at: Any) -> Any:
            q, k, value, erased, rest, sums, between = at
            new = value - erased @ state.mT
            read = jnp.exp(sums)[..., None] * (q @ state.mT)
            read += jnp.tril((q @ k.mT) * between) @ new
            return jnp.exp(sums[..., -1])[..., None, None] * state + new.mT @ rest, read

        start = jnp.zeros((*v.shape[1:3], v.shape[-1], q.shape[-1]))
        reads = jax.lax.scan(over, start, (q, k, value, erased, rest, sums, between))[1]
        return jnp.moveaxis(reads, 3, 1).reshape(-1, *v.shape[1:3], v.shape[-1])[:time]

    def semigroup(*args: Any) -> Any:
        """Make two matrices of each row and head at a step: one erases, the other is written."""
        from memax.equinox.scans import semigroup_scan
        from memax.equinox.semigroups.gdn import GDNSemigroup

        algebra = GDNSemigroup(args[0].shape[-1])

        def head(q: Any, k: Any, v: Any, decay: Any, beta: Any) -> Any:
            decay, beta = jnp.exp(decay)[:, None, None], beta[:, None, None]
            erased = decay * (jnp.eye(k.shape[-1]) - beta * k[:, :, None] * k[:, None, :])
            inputs = erased, beta * k[:, :, None] * v[:, None, :]
            states = semigroup_scan(algebra, algebra.initialize_carry(), inputs)[1]
            return jnp.einsum("tk,tkv->tv", q, states)

        return jax.vmap(jax.vmap(head, 1, 1), 1, 1)(*args)

    ways = {"rnnjax": functions, "lax.scan": scan, WRITTEN_OUT: chunks, MEMAX: semigroup}
    return ways[name]


def _call(name: str, settings: dict[str, Any]) -> Call:
    import jax
    import jax.numpy as jnp

    time, rows, units = settings["shape"]
    keys = jax.random.split(jax.random.key(0), 5)
    if settings["rule"] == "linear":
        run = _linear(name)
        args: Any = (
            jax.nn.sigmoid(jax.random.normal(keys[0], (time, rows, units)) + 2),
            jax.random.normal(keys[1], (time, rows, units)),
        )
    else:
        run, shape = _delta(name), (time, rows, 2, units // 2)
        q, k, v = (jax.random.normal(key, shape) for key in keys[:3])
        k = k / jnp.linalg.norm(k, axis=-1, keepdims=True)
        decay = -0.1 * jnp.exp(jax.random.normal(keys[3], shape[:3]))
        args = q, k, v, decay, jax.nn.sigmoid(jax.random.normal(keys[4], shape[:3]))
    if not settings["backward"]:
        return jax.jit(lambda *args: (run(*args),)), args
    return jax.jit(jax.grad(lambda *args: jnp.sum(run(*args) ** 2), range(len(args)))), args


def question(settings: Settings) -> Question:
    """What is asked, and of whom."""
    points = [
        Point(
            f"{rule}, {shape}, {name}",
            {"rule": rule, "shape": shape, "backward": backward},
        )
        for rule, shapes in (("linear", settings.linear), ("delta rule", settings.delta))
        for shape in shapes
        for name, backward in (("forward", False), ("gradient", True))
    ]
    names = "rnnjax", "lax.scan", WRITTEN_OUT
    memax = repeated(functools.partial(_call, MEMAX))
    asked = compared(
        "recurrences",
        "The states of a linear recurrence, and what a gated delta rule of two heads reads, at "
        "several (steps, rows, units), or the gradients of all arguments; a repetition is as many "
        "calls as take 0.1 s.",
        {name: functools.partial(_call, name) for name in names},
        points,
    )
    contenders = [*asked.contenders, Contender(MEMAX, memax, ["memax", "equinox", "jax"])]
    return dataclasses.replace(asked, contenders=contenders)


def tables(report: Report) -> str:
    """A row a rule, shape and pass."""
    header = ["rule, (steps, rows, units)"]
    return layers.peer_table(report, report.points, header, lambda point: [point.name])


remarks = layers.remarks
