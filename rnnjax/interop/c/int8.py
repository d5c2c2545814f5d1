"""Weights of 8 bits: a scale for each output, and for each vector that is multiplied its own."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, Literal

from rnnjax.errors import InvalidInputError
from rnnjax.interop.c.equations import inner_of, shape_of
from rnnjax.interop.c.loops import Writer
from rnnjax.interop.c.operations import convolution
from rnnjax.interop.c.program import Program
from rnnjax.interop.c.values import Known, Stored

_LARGEST = 127


def multiply(writer: Writer, into: Stored, rows: Stored, w: Known) -> None:
    """Write ``into += rows @ w`` with weights of 8 bits, and sums of 32."""
    scale = np.abs(w.array).max(-2, keepdims=True) / np.float32(_LARGEST)
    steps = np.rint(w.array / np.where(scale == 0, 1, scale)).astype(np.int8)
    weights = writer.constant(Known(np.ascontiguousarray(steps), w.name))
    scales = writer.constant(Known(np.ascontiguousarray(scale), f"scales of {w.name}"))
    inputs, outputs = w.shape[-2:]
    space = [writer.buffer([inputs], "int8_t").name, writer.buffer([outputs], "int32_t").name]
    writer.call("@product8", into, rows, [weights, scales], [*space, str(inputs), str(outputs)])


def error(program: Program, data: Any) -> str:
    """How far outputs are from float32, over sequences ``(time, batch, ...)``, in words."""
    shapes = [one.shape for one in program.inputs.values()]
    sizes, array = [math.prod(shape) for shape in shapes], np.asarray(data)
    dtype = next(iter(program.inputs.values())).dtype
    if array.ndim < 2 or math.prod(array.shape[2:]) != sum(sizes) or array.dtype.kind != dtype.kind:
        raise InvalidInputError(
            f"data should be sequences (time, batch, {sum(sizes)}) of {dtype}, but is "
            f"{array.dtype}{list(array.shape)}; give those that the error is measured on"
        )
    parts = np.split(array.reshape(*array.shape[:2], -1), np.cumsum(sizes)[:-1], -1)
    xs = [x.reshape(*x.shape[:2], *s).astype(dtype) for x, s in zip(parts, shapes, strict=True)]
    state, params = [*program.state.values()], [*program.params.values()]

    def run(xs: Any, rounded: bool) -> Any:
        def step(state: Any, x: Any) -> Any:
            given = [*((p, True) for p in params), *((a, False) for a in (*state, *x))]
            made = evaluate(program.jaxpr.jaxpr, program.jaxpr.consts, given, rounded)
            return [a for a, _ in made[: len(state)]], [a for a, _ in made[len(state) :]]

        return jax.lax.scan(step, state, xs)[1]

    both = [jax.jit(jax.vmap(functools.partial(run, rounded=r), 1, 1))(xs) for r in (False, True)]
    exact, ours = (np.concatenate([np.ravel(y) for y in ys]) for ys in both)
    largest, apart = np.abs(exact).max(), np.abs(ours - exact)
    return (
        f"Weights have 8 bits: over {array.shape[1]} sequences of {array.shape[0]} steps outputs "
        f"differ by {apart.max() / largest:.2g} of the largest at most, and "
        f"{apart.mean() / largest:.2g} on average."
    )


def evaluate(jaxpr: Jaxpr, consts: Sequence[Any], given: Sequence[Any], rounded: bool) -> list[Any]:
    """Evaluate equations on pairs of an array and whether it depends on parameters alone.

    If ``rounded``, products with such arrays are those of `multiply`.
    """
    values = dict(zip(jaxpr.invars, given, strict=True))
    values |= {var: (c, True) for var, c in zip(jaxpr.constvars, consts, strict=True)}

    def read(atom: Any) -> Any:
        return (atom.val, True) if isinstance(atom, Literal) else values[atom]

    for e in jaxpr.eqns:
        ins, name, inner = [read(atom) for atom in e.invars], e.primitive.name, inner_of(e)
        arrays, known = [a for a, _ in ins], [k for _, k in ins]
        if name == "conv_general_dilated" and not known[0]:
            inner = jax.make_jaxpr(convolution(e.params, shape_of(e.outvars[0])))(*arrays)
        if inner is not None:
            made = evaluate(
                getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), ins, rounded
            )
        else:
            if name == "dot_general" and rounded and sum(known) == 1:
                arrays = list(map(_rounded, arrays, e.params["dimension_numbers"][0]))
            outs = e.primitive.bind(*arrays, **e.params)
            outs = outs if e.primitive.multiple_results else [outs]
            made = [(out, all(known)) for out in outs]
        values.update(zip(e.outvars, made, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _rounded(array: Any, axes: Sequence[int]) -> jax.Array:
    x = jnp.asarray(array)
    scale = jnp.abs(x).max(axes, keepdims=True) / _LARGEST
    return jnp.rint(x / jnp.where(scale == 0, 1, scale)) * scale
