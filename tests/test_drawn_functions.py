"""Recurrences without a cell, drawn at random, beside a loop in float64.

Types of each argument are drawn apart, and so are marks, axes, lengths and transformations.
`python -m pytest -m slow tests/test_drawn_functions.py` prints the seed of what it finds wrong.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax import InvalidInputError, linear_recurrence, matrix_memory
from rnnjax.cells import MatrixCarry, Memory

pytestmark = pytest.mark.usefixtures("x64")

REAL = "bfloat16", "float16", "float32", "float64"
WHOLE = "int32", "int8", "bool"
STEPS = 0, 1, 2, 5, 17, 63, 64, 65, 130, 257, 600


def taken(rng: np.random.Generator, *choices: Any) -> Any:
    return choices[rng.integers(len(choices))]


class Drawn:
    """A program: a function, the types, shapes and options of its arguments, and their values.

    Attributes:
        name: "memory", "linear", or "matrices" for a linear recurrence by matrices.
        shapes: of each array.
        types: of each array.
    """

    def __init__(self, seed: int) -> None:
        self.rng = rng = np.random.default_rng(seed)
        self.name = taken(rng, "memory", "memory", "linear", "matrices")
        steps = self.steps = int(taken(rng, *STEPS))
        batch = tuple(int(rng.integers(1, 4)) for _ in range(rng.integers(0, 4)))
        self.batch = batch = batch if self.name == "memory" else batch[:2]
        complex_too = self.name != "matrices" and rng.random() < 0.25
        if self.name == "memory":
            heads, keys, values = (int(rng.integers(1, 4)) for _ in range(3))
            rows = (steps, *batch, heads)
            shapes = dict.fromkeys(("query", "key"), (*rows, keys)) | {"value": (*rows, values)}
            shapes["log_decay"] = (*rows, keys) if rng.random() < 0.4 else rows
            if rng.random() < 0.5:
                shapes["beta"] = rows
            if rng.random() < 0.4:
                shapes["erase"] = (*rows, keys) if rng.random() < 0.3 else rows
            elif rng.random() < 0.5:
                shapes |= dict.fromkeys(("removal_query", "removal_key"), (*rows, keys))
            few = int(taken(rng, *(k for k in (1, 2, 3) if heads % k == 0)))
            for name in ("query", "key", "removal_query", "removal_key"):
                if name in shapes and (name == "key" or rng.random() < 0.5):
                    shapes[name] = (steps, *batch, few, keys)
            carry = (*batch, heads, values, keys)
        else:
            units, size = int(rng.integers(1, 5)), int(rng.integers(1, 4))
            more = (size,) if self.name == "matrices" else ()
            shapes = {"drive": (steps, *batch, units, *more)}
            shapes["decay"] = (steps, *batch, units, *more, *more)
            if not more and rng.random() < 0.3:
                shapes["decay"] = (steps, *[1] * len(batch), 1)
            carry = (*batch, units, *more)
        if rng.random() < 0.7:
            shapes["carry"] = carry
        kinds = [*REAL, *WHOLE, *(["complex64", "complex128"] if complex_too else [])]
        one = taken(rng, *REAL) if rng.random() < 0.3 else None  # all alike, as users have them
        self.types = {name: one or str(taken(rng, *kinds)) for name in shapes}
        if self.name == "memory" and self.types["log_decay"] in WHOLE:
            self.types["log_decay"] = "bfloat16"  # integers are no decays
        self.shapes, self.carry_shape = shapes, carry
        self.marks = {"reverse": bool(rng.integers(2))}
        for name in ("lengths", "mask", "resets"):
            if rng.random() < 0.4 and (batch or name != "lengths"):
                self.marks[name] = int(rng.integers(1, len(batch) + 1)) if batch else 0
        methods = [rnnjax.Auto(), rnnjax.Scan(), rnnjax.Parallel()]
        if self.name == "memory":
            methods.append(rnnjax.Parallel(int(taken(rng, 1, 3, 16, 100))))
        self.methods = methods
        self.transform = str(taken(rng, "none", "grad", "grad", "jvp", "vmap", "remat"))

    def values(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Draw numbers of the types, and marks."""
        rng, arrays = self.rng, {}
        forget = taken(rng, 3.0, 0.3, 1e-3)
        for name, shape in self.shapes.items():
            numbers = rng.normal(size=shape)
            kind = self.types[name]
            if name == "key" or name.startswith("removal"):  # so short that no state grows
                numbers = numbers / np.maximum(1, np.linalg.norm(numbers, axis=-1, keepdims=True))
                if name == "removal_key":
                    numbers = numbers * min(0.5, 5 / max(1, self.steps))
                if kind in WHOLE:
                    numbers = np.eye(shape[-1])[rng.integers(shape[-1], size=shape[:-1])]
                    if name == "removal_key":
                        numbers *= self.steps < 20
            elif name == "log_decay":
                numbers = -forget * rng.random(shape)
                if rng.random() < 0.2:
                    numbers = np.where(rng.random(shape) < 0.05, -np.inf, numbers)
            elif name in ("beta", "erase"):
                numbers = rng.random(shape)
            elif name == "decay":
                numbers = np.exp(-forget * rng.random(shape)) * rng.choice([-1, 1], shape)
                if self.name == "matrices":
                    numbers = numbers / shape[-1]
            elif kind in WHOLE:
                numbers = rng.integers(-2, 3, shape)
            if kind.startswith("complex"):
                turned = 1j * rng.normal(size=shape)
                numbers = numbers + turned if name == "log_decay" else numbers * np.exp(turned)
                numbers = np.where(np.isfinite(numbers), numbers, -np.inf)
            elif kind in WHOLE and name in ("beta", "erase", "decay"):
                numbers = rng.integers(0, 2, shape)
                if self.name == "matrices":  # that make no state grow
                    numbers = numbers * np.eye(shape[-1], dtype=int)
            arrays[name] = np.asarray(jnp.asarray(numbers).astype(kind))
        marks: dict[str, Any] = {}
        for name, axes in self.marks.items():
            if name == "lengths":
                marks[name] = rng.integers(0, self.steps + 1, self.batch[:axes])
            elif name != "reverse":
                marks[name] = rng.random((self.steps, *self.batch[:axes])) < 0.7
                if name == "resets":
                    marks[name] = ~marks[name] & (rng.random(marks[name].shape) < 0.3)
        return arrays, marks

    def ours(self, method: Any, arrays: Any, marks: Any) -> Any:
        """The last state and the outputs, by the library."""
        carry = arrays.get("carry")
        options = {**marks, "reverse": self.marks["reverse"], "method": method}
        if self.name != "memory":
            return linear_recurrence(arrays["decay"], arrays["drive"], carry, **options)
        memory = Memory(**{name: x for name, x in arrays.items() if name != "carry"})
        begin = None if carry is None else MatrixCarry(carry)
        last, reads = matrix_memory(memory, begin, **options)
        return last.memory, reads

    def loop(self, arrays: Any, marks: Any) -> Any:
        """Run a plain loop in float64 or complex128: the last state and the outputs."""
        rows = (self.steps, *self.batch)
        kinds = [
            np.dtype("complex128" if jnp.iscomplexobj(x) else "float64") for x in arrays.values()
        ]
        dtype = np.result_type("float64", *kinds)
        arrays = {name: x.astype(dtype) for name, x in arrays.items()}

        def whole(marks: Any) -> Any:
            return jnp.broadcast_to(
                marks.reshape(marks.shape + (1,) * (len(rows) - marks.ndim)), rows
            )

        valid = whole(marks["mask"]) if "mask" in marks else jnp.ones(rows, bool)
        if "lengths" in marks:
            times = jnp.arange(self.steps).reshape(-1, *[1] * marks["lengths"].ndim)
            valid &= whole(times < marks["lengths"])
        borders = whole(marks["resets"]) if "resets" in marks else jnp.zeros(rows, bool)
        if self.marks["reverse"]:  # the border before a step is crossed after it
            borders = jnp.concatenate([borders[1:], jnp.zeros_like(borders[:1])])[: self.steps]
        state = arrays.pop("carry", jnp.zeros(self.carry_shape, dtype))
        # A masked step has no influence, whatever it holds.
        arrays = {n: jnp.where(spread(valid, x), x, 0) for n, x in self.spread_out(arrays).items()}
        equation = {"memory": memory_step, "linear": linear_step, "matrices": matrices_step}

        def step(state: Any, at: Any) -> Any:
            arrays, valid, border = at
            state = jnp.where(spread(border, state), 0, state)
            new, y = equation[self.name](state, arrays)
            return jnp.where(spread(valid, new), new, state), jnp.where(spread(valid, y), y, 0)

        return jax.lax.scan(step, state, (arrays, valid, borders), reverse=self.marks["reverse"])

    def spread_out(self, arrays: Any) -> Any:
        if self.name == "linear":
            arrays["decay"] = jnp.broadcast_to(arrays["decay"], arrays["drive"].shape)
        return arrays

    @functools.cached_property
    def program(self) -> Any:
        """All ways of ours and the loop as one compiled program of arrays, marks and directions."""

        def transformed(run: Any, arrays: Any, marks: Any, tangents: Any) -> Any:
            def numbers(found: Any) -> Any:
                return sum(
                    (jnp.sin(x.real) + jnp.cos(x.imag)).sum() for x in jax.tree.leaves(found)
                )

            smooth = {n: x for n, x in arrays.items() if jnp.issubdtype(x.dtype, jnp.inexact)}

            def loss(some: Any) -> Any:
                return numbers(run({**arrays, **some}, marks))

            if self.transform == "grad" and smooth:
                return run(arrays, marks), jax.grad(loss)(smooth)
            if self.transform == "remat" and smooth:
                return jax.grad(jax.checkpoint(loss))(smooth)
            if self.transform == "jvp" and smooth:
                given = {n: tangents[n] for n in smooth}
                return jax.jvp(lambda some: run({**arrays, **some}, marks), (smooth,), (given,))
            if self.transform == "vmap":
                two = jax.tree.map(lambda x: jnp.stack([x, x[..., ::-1]]), arrays)
                return jax.vmap(run, in_axes=(0, None))(two, marks)
            return run(arrays, marks)

        def every(arrays: Any, marks: Any, tangents: Any) -> Any:
            ways = [functools.partial(self.ours, method) for method in self.methods]
            return [transformed(run, arrays, marks, tangents) for run in (*ways, self.loop)]

        return jax.jit(every)


def spread(marks: jax.Array, leaf: jax.Array) -> jax.Array:
    return marks.reshape(*marks.shape, *[1] * (leaf.ndim - marks.ndim))


def linear_step(state: Any, at: Any) -> Any:
    new = at["decay"] * state + at["drive"]
    return new, new


def matrices_step(state: Any, at: Any) -> Any:
    new = jnp.einsum("...ij,...j->...i", at["decay"], state) + at["drive"]
    return new, new


def memory_step(state: Any, at: Any) -> Any:
    heads, decay = state.shape[-3], at["log_decay"]

    def each(name: str) -> Any:
        return jnp.repeat(at[name], heads // at[name].shape[-2], axis=-2)

    key, query, old = each("key"), each("query"), state
    state = state * jnp.exp(decay if decay.ndim == key.ndim else decay[..., None])[..., None, :]
    if "removal_key" in at:
        gone = jnp.einsum("...vk,...k->...v", old, each("removal_query"))
        state = state - gone[..., None] * each("removal_key")[..., None, :]
    if "erase" in at:
        erase = at["erase"] if at["erase"].ndim == key.ndim else at["erase"][..., None]
        gone = jnp.einsum("...vk,...k->...v", state, erase * key)
        state = state - gone[..., None] * key[..., None, :]
    value = at["value"] * at["beta"][..., None] if "beta" in at else at["value"]
    state = state + value[..., None] * key[..., None, :]
    return state, jnp.einsum("...vk,...k->...v", state, query)


def agree(found: Any, expected: Any, seed: Any) -> None:
    """No more apart than the precision of a result allows, which is float32 at least in a state."""
    for one, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert one.shape == other.shape, seed
        digits = 2e-4 if jnp.finfo(one.dtype).bits == 32 else float(16 * jnp.finfo(one.dtype).eps)
        if jnp.finfo(one.dtype).bits == 64:
            digits = 1e-9
        wide = np.complex128 if jnp.iscomplexobj(one) else np.float64
        one, other = np.asarray(one).astype(wide), np.asarray(other).astype(wide)
        scale = np.abs(other).max(initial=1e-3)
        np.testing.assert_allclose(one, other, rtol=0, atol=digits * scale, err_msg=str(seed))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_2000_draws_over_150_programs(part: int) -> None:
    for number in range(15):
        seed = 1000 * part + number
        drawn = Drawn(seed)
        for draw in range(14):
            arrays, marks = drawn.values()
            tangents = {
                name: np.asarray(jnp.asarray(drawn.rng.normal(size=x.shape)).astype(x.dtype))
                for name, x in arrays.items()
                if jnp.issubdtype(x.dtype, jnp.inexact)
            }
            try:
                *found, expected = drawn.program(arrays, marks, tangents)
            except InvalidInputError:
                raise
            except Exception as error:
                raise AssertionError(f"seed {seed} {vars(drawn)}") from error
            for method, each in zip(drawn.methods, found, strict=True):
                agree(each, expected, f"seed {seed}, draw {draw}, {method}: {vars(drawn)}")


@pytest.mark.slow
@pytest.mark.parametrize("part", range(5))
def test_50_programs_exported_for_any_number_of_steps(part: int) -> None:
    (time,) = jax.export.symbolic_shape("time")
    for seed in range(10_000 + 10 * part, 10_010 + 10 * part):
        drawn = Drawn(seed)
        of_time = {name for name in drawn.shapes if name != "carry"}

        def shaped(tree: Any, names: Any) -> Any:
            return {
                name: jax.ShapeDtypeStruct(
                    (time, *x.shape[1:]) if name in names else x.shape, x.dtype
                )
                for name, x in tree.items()
            }

        run = functools.partial(drawn.ours, rnnjax.Auto())
        arrays, marks = drawn.values()
        given = shaped(arrays, of_time), shaped(marks, {"mask", "resets"})
        export = jax.export.export(jax.jit(run), platforms=("cpu", "cuda", "tpu"))(*given)
        program = jax.export.deserialize(export.serialize())
        for steps in (1, 37):
            drawn.shapes = {
                n: (steps, *s[1:]) if n in of_time else s for n, s in drawn.shapes.items()
            }
            drawn.steps = steps
            arrays, marks = drawn.values()
            agree(program.call(arrays, marks), drawn.loop(arrays, marks), f"seed {seed}")
