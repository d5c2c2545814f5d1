"""What a step computes, as the body of a kernel."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

# What orders XLA's fusions, names arrays or divides them over devices means nothing in a kernel.
_NOTHING = {"optimization_barrier", "name", "pvary", "pcast", "reshard"}
_CALLS = {"jit", "pjit", "closed_call", "remat2", "checkpoint"}
Bind = Callable[[Any, Sequence[Any]], Sequence[Any]]
_CALLS |= {"custom_jvp_call", "custom_vjp_call"}


def _expm1(x: jax.Array) -> jax.Array:
    """exp(x) - 1, near zero by a tanh, which is exact there."""
    half = jnp.tanh(x / 2)
    return jnp.where(jnp.abs(x) < 1, 2 * half / (1 - half), jnp.exp(x) - 1)


# What Mosaic, which compiles a kernel for a TPU, does not know (JAX 0.10.2).
_WRITTEN = {"expm1": _expm1}


def _keeps_precision(equation: Any) -> bool:
    """Whether it states a type's precision once more, as `jax.checkpoint` of what it saves."""
    if equation.primitive.name != "reduce_precision":
        return False
    kind = jnp.finfo(equation.invars[0].aval.dtype)
    bits = equation.params["exponent_bits"], equation.params["mantissa_bits"]
    return bits == (kind.nexp, kind.nmant)


def bound(equation: Any, operands: Sequence[Any]) -> list[Any]:
    """What an equation of a jaxpr computes."""
    if equation.primitive.name in _WRITTEN:
        return [_WRITTEN[equation.primitive.name](*operands)]
    outs = equation.primitive.bind(*operands, **equation.params)
    return outs if equation.primitive.multiple_results else [outs]


def evaluated(
    jaxpr: Any, shared: Sequence[Any], args: Sequence[Any], bind: Bind = bound
) -> list[Any]:
    """What a jaxpr returns, without what means nothing inside of a kernel.

    Args:
        jaxpr: of a step.
        shared: the values of what it captures.
        args: and of what it is given; both as ``bind`` takes them.
        bind: computes one equation from the values of its operands.
    """
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*shared, *args], strict=True))

    def value(atom: Any) -> Any:
        return atom.val if hasattr(atom, "val") else values[atom]

    for equation in jaxpr.eqns:
        operands, name = [value(atom) for atom in equation.invars], equation.primitive.name
        if name in _NOTHING or _keeps_precision(equation):
            outs = operands
        elif name in _CALLS:
            inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
            consts = getattr(inner, "consts", ())
            outs = evaluated(getattr(inner, "jaxpr", inner), consts, operands, bind)
        else:
            outs = [*bind(equation, operands)]
        values.update(zip(equation.outvars, outs, strict=True))
    return [value(atom) for atom in jaxpr.outvars]
