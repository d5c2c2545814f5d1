"""Recurrences without a cell, drawn at random, beside the loops of test_functions.py in float64.

Types of each argument are drawn apart, and so are marks, axes, steps, methods and transformations.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_functions import loop, memory_step

import rnnjax
from rnnjax import linear_recurrence, matrix_memory
from rnnjax.cells import MatrixCarry, Memory

pytestmark = pytest.mark.usefixtures("x64")

REAL, WHOLE = ("bfloat16", "float16", "float32", "float64"), ("int32", "int8", "bool")
STEPS = 0, 1, 2, 5, 17, 63, 64, 65, 130, 257, 600


def shapes_of(rng: np.random.Generator, name: str, rows: tuple[int, ...]) -> dict[str, Any]:
    """The shapes of the arrays, some of which are left out, and of the last carry."""
    n, heads, keys, values = map(int, rng.integers(1, 4, 4))
    if name != "memory":
        more = (n,) if name == "matrices" else ()
        few = not more and rng.random() < 0.3
        decay = (rows[0], *[1] * len(rows)) if few else (*rows, keys, *more, *more)
        return {"drive": (*rows, keys, *more), "decay": decay, "carry": (*rows[1:], keys, *more)}
    shapes = {"value": (*rows, heads, values)}
    few = int(rng.choice([k for k in (1, 2, 3) if heads % k == 0]))  # of which heads share keys
    removes = rng.random() < 0.3
    for vector in ("query", "key", *(("removal_query", "removal_key") if removes else ())):
        own = vector != "key" and rng.random() < 0.5
        shapes[vector] = (*rows, heads if own else few, keys)
    for number, rate in (("log_decay", 1), ("beta", 0.5), ("erase", 0.4 * (not removes))):
        if rng.random() < rate:
            by_key = number != "beta" and rng.random() < 0.4
            shapes[number] = (*rows, heads, *[keys] * by_key)
    return shapes | {"carry": (*rows[1:], heads, values, keys)}


def array_of(rng: np.random.Generator, name: str, shape: Any, kind: str, steps: int) -> Any:
    """Numbers by which no state grows."""
    numbers, forget = rng.normal(size=shape), rng.choice([3.0, 0.3, 1e-3])
    if kind in WHOLE:
        numbers = rng.integers(0 if name == "beta" else -2, 2 if name == "beta" else 3, shape)
    elif "key" in name or "removal" in name:
        numbers /= np.maximum(1, np.linalg.norm(numbers, axis=-1, keepdims=True))
        numbers *= min(0.5, 5 / max(1, steps)) if name == "removal_key" else 1
    elif name in ("beta", "erase"):
        numbers = rng.random(shape)
    elif name == "log_decay":
        numbers = np.where(rng.random(shape) < 0.05, -np.inf, -forget * rng.random(shape))
    elif name == "decay":
        numbers = np.exp(-forget * rng.random(shape)) * rng.choice([-1, 1], shape) / shape[-1]
    return np.asarray(jnp.asarray(numbers).astype(kind))


def linear_step(state: Any, at: Any) -> Any:
    matrices = at["decay"].ndim > at["drive"].ndim
    product = "...ij,...j->...i" if matrices else "...,...->..."
    new = jnp.einsum(product, at["decay"], state) + at["drive"]
    return new, new


def by_loop(arrays: Any, marks: Any, rows: tuple[int, ...]) -> Any:
    """The last state and the outputs of a plain loop, with the marks spread over all rows."""
    arrays = {name: x.astype("float64") for name, x in arrays.items()}
    state = arrays.pop("carry")

    def spread(marks: Any, leaf: Any) -> Any:
        return marks.reshape(*marks.shape, *[1] * (leaf.ndim - marks.ndim))

    valid, again = np.ones(rows, bool), np.zeros(rows, bool)
    if "lengths" in marks:
        times = np.arange(rows[0]).reshape(-1, *[1] * marks["lengths"].ndim)
        valid &= spread(times < marks["lengths"], valid)
    valid &= spread(marks["mask"], valid) if "mask" in marks else True
    again |= spread(marks["resets"], valid) if "resets" in marks else False
    # A masked step has no influence, whatever it holds.
    wide = {n: jnp.broadcast_to(x, np.broadcast_shapes(x.shape, rows + (1,) * (x.ndim - len(rows))))
            for n, x in arrays.items()}  # fmt: skip
    arrays = {name: jnp.where(spread(valid, x), x, 0) for name, x in wide.items()}

    def step(state: Any, at: Any) -> Any:
        return memory_step(state, Memory(**at)) if "key" in at else linear_step(state, at)

    return loop(step, state, arrays, marks["reverse"], valid, again)


def ours(arrays: Any, marks: Any, method: Any) -> Any:
    arrays = dict(arrays)
    carry = arrays.pop("carry")
    if "key" not in arrays:
        return linear_recurrence(arrays["decay"], arrays["drive"], carry, **marks, method=method)
    last, reads = matrix_memory(Memory(**arrays), MatrixCarry(carry), **marks, method=method)
    return last.memory, reads


def transformed(how: str, run: Any, arrays: Any, tangents: Any) -> Any:
    """What runs, changes along a direction, or has a gradient, of all numbers that are smooth."""
    smooth = {n: x for n, x in arrays.items() if jnp.issubdtype(x.dtype, jnp.inexact)}

    def some(smooth: Any) -> Any:
        return run({**arrays, **smooth})

    def loss(smooth: Any) -> Any:
        return sum(jnp.sin(x).sum() for x in jax.tree.leaves(some(smooth)))

    if how == "jvp":
        return jax.jvp(some, (smooth,), ({n: tangents[n] for n in smooth},))
    if how == "vmap":
        return jax.vmap(run)(jax.tree.map(lambda x: jnp.stack([x, x[..., ::-1]]), arrays))
    return jax.grad(jax.checkpoint(loss) if how == "remat" else loss)(smooth), run(arrays)


@pytest.mark.parametrize(
    "seed", [n if n < 2 else pytest.param(n, marks=pytest.mark.slow) for n in range(150)]
)
def test_a_drawn_call_is_the_loop_of_its_steps(seed: int) -> None:
    """No more apart than a result's precision allows, which is float32 at least in a state."""
    rng = np.random.default_rng(seed)
    name = str(rng.choice(["memory", "memory", "linear", "matrices"]))
    rows = (int(rng.choice(STEPS)), *map(int, rng.integers(1, 4, rng.integers(0, 4))))
    one = str(rng.choice(REAL)) if rng.random() < 0.3 else ""  # all alike, as users have them
    whole = {"query", "value", "drive", "carry", "beta"}
    arrays = {
        n: array_of(rng, n, shape, one or str(rng.choice(REAL + WHOLE * (n in whole))), rows[0])
        for n, shape in shapes_of(rng, name, rows).items()
    }
    marks: dict[str, Any] = {"reverse": bool(rng.integers(2))}
    for mark, rate in (("mask", 0.7), ("resets", 0.2)):
        if rng.random() < 0.4:
            marks[mark] = rng.random(rows[: int(rng.integers(1, len(rows) + 1))]) < rate
    if rows[1:] and rng.random() < 0.4:
        marks["lengths"] = rng.integers(
            0, rows[0] + 1, rows[1 : int(rng.integers(2, len(rows) + 1))]
        )
    chunks = [rnnjax.Parallel(int(rng.choice([1, 3, 16, 100])))] * (name == "memory")
    methods = [rnnjax.Auto(), rnnjax.Scan(), rnnjax.Parallel(), *chunks]
    how = str(rng.choice(["grad", "jvp", "vmap", "remat"]))
    tangents = {n: jnp.asarray(rng.normal(size=x.shape)).astype(x.dtype) for n, x in arrays.items()}

    @jax.jit
    def every(arrays: Any) -> Any:
        ways = [lambda arrays, m=m: ours(arrays, marks, m) for m in methods]
        runs = [*ways, lambda arrays: by_loop(arrays, marks, rows)]
        return [transformed(how, run, arrays, tangents) for run in runs]

    *found, expected = jax.device_get(every(arrays))
    for method, each in zip(methods, found, strict=True):
        for a, b in zip(*map(jax.tree.leaves, (each, expected)), strict=True):
            bits, eps = jnp.finfo(a.dtype).bits, float(jnp.finfo(a.dtype).eps)
            digits = {32: 2e-4, 64: 1e-9}.get(bits, 16 * eps)
            a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
            atol = digits * np.abs(b).max(initial=1e-3)
            np.testing.assert_allclose(a, b, rtol=0, atol=atol, err_msg=f"{method}, {how}, {rows}")
