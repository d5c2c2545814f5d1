"""What the writers of ONNX and of C read alike in programs of JAX, whose names change with it."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jax import lax

_CALLS = ("jit", "call", "closed_call", "eval_jaxpr", "remat2", "composite",
          "custom_jvp_call", "custom_vjp_call")  # fmt: skip
SAME = "copy", "name", "optimization_barrier", "pvary", "sharding_constraint", "stop_gradient"
"""Operations that give what they are given."""


def program_of(equation: Any) -> Any:
    """The program that a call runs once on all that it is given; None where this is no call."""
    p = equation.params if equation.primitive.name in _CALLS else {}
    return p.get("jaxpr", p.get("call_jaxpr"))


def scan_sizes(equation: Any) -> tuple[int, int]:
    """Count the constants and the carried arrays of a scan.

    By their axes, for from JAX 0.12 on it has no such numbers: all others have the axis of steps.
    """
    step = equation.params["jaxpr"].jaxpr
    pairs = zip(equation.invars + equation.outvars, step.invars + step.outvars, strict=True)
    alike = [len(a.aval.shape) == len(b.aval.shape) for a, b in pairs]
    carried = sum(alike[len(step.invars) :])
    return sum(alike[: len(step.invars)]) - carried, carried


OTHERS: Mapping[str, Callable[..., Any]] = {
    "clamp": lambda p, low, x, high: jnp.minimum(jnp.maximum(x, low), high),
    "one_minus_square": lambda p, x: (1 + x) * (1 - x),  # which keeps its digits near 1
    "polynomial": lambda p, x, *of: functools.reduce(lambda y, c: y * x + c, reversed(of)),
    "rsqrt": lambda p, x: 1 / jnp.sqrt(x),
    "stack": lambda p, *xs: jnp.concatenate(
        [lax.expand_dims(x, [p["axis"]]) for x in xs], p["axis"]
    ),
    "unstack": lambda p, x: [
        lax.index_in_dim(x, i, p["axis"], keepdims=False) for i in range(x.shape[p["axis"]])
    ],
}
"""By an operation what it is in terms of others: a function of its parameters and operands."""
