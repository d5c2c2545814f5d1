"""An interpreter that runs the jaxpr of a step as the body of a kernel."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

# Primitives that order XLA's fusions, or name or shard arrays, mean nothing in a kernel.
_NOTHING = {"optimization_barrier", "name", "pvary", "pcast", "reshard"}
_CALLS = {"jit", "pjit", "closed_call", "remat2", "checkpoint"}
Bind = Callable[[Any, Sequence[Any]], Sequence[Any]]
_CALLS |= {"custom_jvp_call", "custom_vjp_call"}


def _expm1(x: jax.Array) -> jax.Array:
    """Compute exp(x) - 1, near zero by a tanh, which is exact there."""
    half = jnp.tanh(x / 2)
    return jnp.where(jnp.abs(x) < 1, 2 * half / (1 - half), jnp.exp(x) - 1)


# Primitives that Mosaic, the TPU's kernel compiler, does not support (JAX 0.10.2).
_WRITTEN = {"expm1": _expm1}


def _keeps_precision(equation: Any) -> bool:
    """Whether it only rounds to a type's own precision, as `jax.checkpoint` does with residuals."""
    if equation.primitive.name != "reduce_precision":
        return False
    kind = jnp.finfo(equation.invars[0].aval.dtype)
    bits = equation.params["exponent_bits"], equation.params["mantissa_bits"]
    return bits == (kind.nexp, kind.nmant)


def bound(equation: Any, operands: Sequence[Any]) -> list[Any]:
    """Evaluate one equation of a jaxpr by its own primitive."""
    if equation.primitive.name in _WRITTEN:
        return [_WRITTEN[equation.primitive.name](*operands)]
    outs = equation.primitive.bind(*operands, **equation.params)
    return outs if equation.primitive.multiple_results else [outs]


def by_entries(equation: Any, operands: Sequence[Any]) -> Sequence[Any]:
    """Do as `bound`, but compute batched matrix-vector products by multiplication and sums.

    Mosaic has no such products (`rnnjax.S6Cell` has one). XLA computes them this way on a TPU.
    """
    if equation.primitive.name != "dot_general" or not equation.params["dimension_numbers"][1][0]:
        return bound(equation, operands)
    contracted, batch = equation.params["dimension_numbers"]
    # Numbers of axes: two that are one and the same have one, which is below 0 if it is summed.
    same, summed = (len(pairs[0]) for pairs in (batch, contracted))
    axes: list[list[int]] = []
    for array, rows, sums in zip(operands, batch, contracted, strict=True):
        own = {axis: k for k, axis in enumerate(rows)}
        own |= {axis: k - summed for k, axis in enumerate(sums)}
        free = itertools.count(same + sum(map(len, axes)))
        axes.append([own[axis] if axis in own else next(free) for axis in range(array.ndim)])
    # In the layout of the larger one, so that neither it nor its gradient is transposed.
    order = sorted(axes, key=len)[1]
    order = [*order, *(axis for axis in sorted({*axes[0], *axes[1]}) if axis not in order)]
    kind = equation.outvars[0].aval.dtype
    factors = [
        jnp.expand_dims(
            array.astype(kind).transpose([own.index(axis) for axis in order if axis in own]),
            [k for k, axis in enumerate(order) if axis not in own],
        )
        for array, own in zip(operands, axes, strict=True)
    ]
    product = factors[0] * factors[1]
    product = product.sum([k for k, axis in enumerate(order) if axis < 0])
    left = [axis for axis in order if axis >= 0]
    return [product.transpose([left.index(axis) for axis in sorted(left)])]


def evaluated(
    jaxpr: Any, shared: Sequence[Any], args: Sequence[Any], bind: Bind = bound
) -> list[Any]:
    """Evaluate a jaxpr, without the equations that mean nothing inside a kernel.

    Args:
        jaxpr: the jaxpr of a step.
        shared: the values that it captures.
        args: the values of its arguments; both as ``bind`` takes them.
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
