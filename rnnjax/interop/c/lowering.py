"""Equations of JAX as fewer kinds of equations, which C is written of."""

import contextlib
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import jaxpr_as_fun

from rnnjax.interop import jaxprs
from rnnjax.interop.jaxprs import MOVES, OTHERS, SLIDING, Walker, scan_sizes

_JAX = pathlib.PurePath(jax.__file__).parent
_RULES = {pathlib.PurePath(one) for one in (__file__, jaxprs.__file__)}

# ---- rules (parameters, *operands), which give None where they apply not


def _product(p: Any, x: Any, w: Any) -> Any:
    """``x (*batch, rows, inputs) @ w (*batch, inputs, outputs)``, where ``w`` is known.

    Without weights that are known it is a sum of products.
    """
    (of, batch), known = p["dimension_numbers"], p["known"]
    wide = jnp.result_type(x, w, p["made"].dtype)  # two integers may make a floating-point number
    x, w = (_matrices(*each).astype(wide) for each in zip((x, w), batch, of, strict=True))
    weights = any(known) and jnp.issubdtype(w.dtype, jnp.floating)
    if weights and known[0]:
        x, w = w, x
    w = jnp.matrix_transpose(w)
    if weights:
        each = list(range(x.ndim - 2))
        y = p["by"](x, w, (([x.ndim - 1], [x.ndim - 2]), (each, each)))
        y = jnp.matrix_transpose(y) if known[0] else y
    else:
        y = x[..., None] * w[..., None, :, :]
        y = y[..., 0, :] if y.shape[-2] == 1 else y.sum(-2)  # of one each it is an outer product
    return y.reshape(p["made"].shape).astype(p["made"].dtype)


def _matrices(x: Any, batch: Sequence[int], of: Sequence[int]) -> Any:
    """An array as ``(*batch, rows, of)``."""
    rows = [axis for axis in range(x.ndim) if axis not in (*batch, *of)]
    shape = [x.shape[axis] for axis in batch] + [math.prod(x.shape[i] for i in rows)]
    return x.transpose([*batch, *rows, *of]).reshape(*shape, math.prod(x.shape[i] for i in of))


def _gather(p: Any, table: Any, ids: Any) -> Any:
    """A row of a table by one id, or another block by the indices of its corner."""
    numbers, sizes = p["dimension_numbers"], p["slice_sizes"]
    axes = numbers.start_index_map
    if p["known"][1] or ids.size != len(axes) or numbers.operand_batching_dims:
        return None
    at = dict(zip(axes, ids.ravel(), strict=True))
    starts = [at.get(axis, jnp.zeros((), ids.dtype)) for axis in range(table.ndim)]
    block = lax.dynamic_slice_p.bind(table, *starts, slice_sizes=sizes)
    if p["mode"] == lax.GatherScatterMode.FILL_OR_DROP:
        for axis, i in at.items():
            inside = (i >= 0) & (i <= table.shape[axis] - sizes[axis])
            block = jnp.where(inside, block, jnp.asarray(p["fill_value"], block.dtype))
    return block.reshape(p["made"].shape)


def _scan(p: Any, *given: Any) -> Any:
    """What a loop of one turn computes."""
    if p["length"] != 1:
        return None
    consts, carried = scan_sizes(p["equation"])
    start = consts + carried
    made = jaxpr_as_fun(p["jaxpr"])(*given[:start], *(x[0] for x in given[start:]))
    return [*made[:carried], *(y[None] for y in made[carried:])]


def _power(p: Any, x: Any) -> Any:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return math.prod([x] * p["y"], start=jnp.ones_like(x))
    if p["y"] == 2:
        return lax.square(x)
    return 1 / x if p["y"] == -1 else lax.pow(x, jnp.full(x.shape, p["y"], x.dtype))


RULES: Mapping[str, Callable[..., Any]] = {
    **OTHERS,
    **SLIDING,
    "dot_general": _product,
    "gather": _gather,
    "scan": _scan,
    "integer_pow": _power,
    "reduce_precision": lambda p, x: (
        x if p["mantissa_bits"] > 22 and p["exponent_bits"] > 7 else None
    ),
}
"""By an operation what it is in terms of others."""


class Lowering(Walker):
    """Evaluates what is known, and traces the rest, by the rules below.

    Args:
        params: the parameters by name; what is computed from them alone is named after them.
        product: ``(x, w, dimension numbers) -> x @ w`` for vectors ``x (*batch, ..., inputs)`` and
            known weights ``w (*batch, inputs, outputs)``.
    """

    unknown = jax.core.Tracer
    rules = RULES

    def __init__(
        self, params: Mapping[str, np.ndarray], product: Callable[..., Any] = lax.dot_general
    ) -> None:
        self.names = {array.tobytes(): name for name, array in params.items()}
        self._product, self._done = product, ""  # the operation that stays
        self._gates = dict[int, tuple[Any, Any]]()  # by its id what is a logistic function, of what

    def made(self, equation: Any, given: list[Any]) -> Sequence[Any]:
        """Trace an equation under the name of its line."""
        where = _origin(equation)  # a function of JAX knows no line of ours
        with jax.named_scope(where) if where else contextlib.nullcontext():
            return super().made(equation, given)

    def known(self, equation: Any, given: list[Any]) -> Any:
        """Compute what is known, and name it after what it follows from."""
        made = super().known(equation, given)
        of = [self.names.get(_bytes(one), "").split(" and ") for one in given]
        name = " and ".join(dict.fromkeys(n for names in of for n in names if n))
        self.names = {_bytes(one): name for one in jax.tree.leaves(made) if name} | self.names
        return made

    def result(self, equation: Any, given: list[Any]) -> Any:
        """Trace what is not known."""
        name, p, first = equation.primitive.name, equation.params, id(given[0])
        known = [not isinstance(one, jax.core.Tracer) for one in given]
        if name == "log" and first in self._gates:  # whose errors are absolute
            x = self._gates[first][1]
            return lax.neg(lax.log1p(lax.exp(lax.neg(x))))
        if name != self._done:
            outer, self._done = self._done, "dot_general" * (name == "dot_general")
            result = self.ruled(equation, given, by=self._product, known=known)  # of itself
            self._done = outer
            if result is not None:
                return result
        made = equation.primitive.bind(*given, **p)
        each = jax.tree.leaves(made)
        if name == "logistic":
            self._gates[id(made)] = made, given[0]
        elif first in self._gates and name in MOVES:
            moved = jax.tree.leaves(equation.primitive.bind(self._gates[first][1], **p))
            self._gates |= {id(y): (y, x) for y, x in zip(each, moved, strict=True)}
        return made


def _bytes(array: Any) -> bytes:
    """What an array is known by; nothing of random keys."""
    keys = jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
    return b"" if keys else np.asarray(array).tobytes()


def _origin(equation: Any) -> str:
    """The file and line of the cell, or of what it called, that made an equation.

    Empty if a function of JAX did that, or a rule: what an operation is made of has its line.
    """
    trace = equation.source_info.traceback
    for frame in trace.frames if trace is not None else []:
        path = pathlib.PurePath(frame.file_name)
        if not path.is_relative_to(_JAX):
            if path in _RULES:
                return ""
            return f"{path.name}:{frame.line_num}, {frame.function_name}"
    return ""
