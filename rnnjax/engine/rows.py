"""Whether the rows of a batch know nothing of each other in a cell's step."""

import functools
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.cells.arguments import made_carry
from rnnjax.cells.base import Carry, Cell, Params
from rnnjax.engine.apart import computed_apart

# Numbers of rows that hardly any other axis has, so that an axis of so many is that of the rows.
_ROWS, _OTHERS = 1009, 1013

# What takes each number by itself.
_POINTWISE = {
    "abs", "add", "add_any", "and", "atan2", "cbrt", "ceil", "clamp", "complex", "conj",
    "convert_element_type", "copy", "cos", "cosh", "div", "eq", "erf", "erf_inv", "erfc", "exp",
    "exp2", "expm1", "floor", "ge", "gt", "imag", "integer_pow", "is_finite", "le", "log",
    "log1p", "logistic", "lt", "max", "min", "mul", "name", "ne", "neg", "nextafter", "not",
    "optimization_barrier", "or", "pow", "pvary", "real", "reduce_precision", "rem", "round",
    "rsqrt", "select_n", "sign", "sin", "sinh", "sqrt", "square", "stop_gradient", "sub", "tan",
    "tanh", "xor"
}  # fmt: skip
# What keeps the rows apart where their axis comes out of it.
_BY_AXES = {
    "argmax", "argmin", "broadcast_in_dim", "concatenate", "dot_general", "expand_dims",
    "reduce_and", "reduce_max", "reduce_min", "reduce_or", "reduce_prod", "reduce_sum", "reshape",
    "slice", "split", "squeeze", "stack", "transpose"
}  # fmt: skip
# What is as its inner program is.
_CALLS = {
    "checkpoint", "closed_call", "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr",
    "jit", "pjit", "remat", "remat2"
}  # fmt: skip

# What of a cell reads its inputs, and so may ask for a number of features.
_READERS = {Cell.project, Cell.readout}


def why_not_by_rows(cell: Cell) -> str | None:
    """Why a cell's step cannot be taken apart for each row by itself; None where it can."""
    if cell.carry is None:
        return "it declares no carry and update, but a step"
    return why_rows_meet(cell)


def why_not_beside(cell: Cell) -> str | None:
    """Why steps cannot be put beside each other along an axis before the rows, or None.

    An update may have counted the axes that it names from the first.
    """
    if reason := why_not_by_rows(cell):
        return reason
    if reason := why_rows_meet(cell, 1):
        return f"{reason} where a batch has another axis before them: count axes from the last"
    return None


@functools.lru_cache(maxsize=1024)
def why_rows_meet(cell: Cell, before: int = 0) -> str | None:
    """Why what a row of a batch comes to may depend on other rows; None where it does not.

    As in a norm over the batch. Only the plain scan gives a step the rows of that step and no
    others. Nothing is computed where the operations of a step are of the usual kinds (34 ms a cell
    on a CPU, JAX 0.10.2); where it has others, as a sum along an axis or a sorting, three rows are
    run at once and one by one (0.1 to 0.4 s).

    Args:
        cell: any.
        before: so many axes of one entry stand before that of the rows.
    """
    failed = None
    for features in tried_features(cell):
        try:
            with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
                one, other = (
                    jax.make_jaxpr(cell.step)(*_given(cell, (*[1] * before, rows), features))
                    for rows in (_ROWS, _OTHERS)
                )
            apart = _kept_apart(one.jaxpr) and _in_words(one) == _in_words(other)
            meet = not (apart and _alike(one.consts, other.consts)) and _differs(
                cell, before, features
            )
        except Exception as error:  # whatever a user's own method raises
            failed = failed or f"{type(error).__name__}: {error}".split("\n", 1)[0]
        else:
            return "the rows of a batch see each other in its step" if meet else None
    if cell.carry is not None and {type(cell).project, type(cell).readout} <= _READERS:
        return None  # `update` is given the same shapes where it runs, and raises it there
    tried = ", ".join(map(str, tried_features(cell)))
    return f"its step could not be tried with any of {tried} features ({failed})"


def tried_features(cell: Cell) -> list[int]:
    """How many are tried: one first, and others for a cell that halves its inputs, or heads."""
    size = getattr(cell, "hidden_size", 1)  # which a user's own step need not have
    return sorted({1, 2, 3, 4, *(times * size for times in (1, 2, 3, 4))})


def _given(cell: Cell, rows: tuple[int, ...], features: int) -> tuple[Any, Any, Any]:
    """The shapes of parameters, of the carry before a step, and of its inputs."""
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), features))
    grid = 0 if cell.carry is None else len(params["kernel"].shape) - 2
    batch = *rows, *[3] * grid
    carry = jax.eval_shape(lambda: made_carry(cell, batch))
    return params, carry, jax.ShapeDtypeStruct((*batch, features), jnp.float32)


def _in_words(jaxpr: Any) -> str:
    """A program without the number of its rows, but where it computes with it, as a mean does."""
    return re.sub(rf"(?<![=\w])(?:{_ROWS}|{_OTHERS})(?![.:\w])|0x[0-9a-f]+", "", str(jaxpr))


def _alike(some: Sequence[Any], others: Sequence[Any]) -> bool:
    """Whether the arrays that two programs hold are the same; what they hold is not in words."""
    return len(some) == len(others) and all(map(np.array_equal, some, others))


def _kept_apart(jaxpr: Any) -> bool:
    """Whether each operation is one that leaves each row by itself, and no row has a number."""
    if any(map(_axes_of_rows, jaxpr.constvars)):
        return False
    return all(_leaves_apart(equation) for equation in jaxpr.eqns)


def _leaves_apart(equation: Any) -> bool:
    name = equation.primitive.name
    came = [_axes_of_rows(variable) for variable in equation.invars]
    left = [_axes_of_rows(variable) for variable in equation.outvars]
    if not any(came) and not any(left):
        return True
    if name in _CALLS:
        inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
        inner = getattr(inner, "jaxpr", inner)
        return inner is not None and _kept_apart(inner)
    if name in _POINTWISE:
        return max(came) == 1
    if not any(came):
        return name == "broadcast_in_dim"
    if name == "conv_general_dilated":
        batch = equation.params["dimension_numbers"].lhs_spec[0]
        return came == [1, 0] and equation.invars[0].aval.shape[batch] == _ROWS
    if name == "reshape" and _stands_behind(equation.invars[0]) != _stands_behind(
        equation.outvars[0]
    ):
        return False
    return name in _BY_AXES and max(came) == 1 and all(axes == 1 for axes in left)


def _axes_of_rows(variable: Any) -> int:
    return sum(size == _ROWS for size in variable.aval.shape)


def _stands_behind(variable: Any) -> int | None:
    """How many numbers the axes before that of the rows make."""
    shape = variable.aval.shape
    return math.prod(shape[: shape.index(_ROWS)]) if _ROWS in shape else None


def _differs(cell: Cell, before: int, features: int) -> bool:
    """Whether three rows come to something else at once than each by itself.

    Once with numbers of one size, and once with a row of large ones, which whatever all rows must
    not exceed, as a norm or a number in a condition, would show in the others.
    """
    rng = np.random.default_rng(0)
    shapes = _given(cell, (*[1] * before, 3), features)
    params, *given = jax.tree.map(
        lambda leaf: (0.5 * rng.normal(size=leaf.shape)).astype(leaf.dtype), shapes
    )

    def with_a_large(leaf: Any) -> Any:
        last = (slice(None),) * before + (2,)
        large = leaf.copy()
        large[last] = 2000 * leaf[last]
        return np.stack([leaf, large])

    def row(carry: Carry, x: jax.Array) -> Any:
        carry, x = jax.tree.map(lambda leaf: jnp.expand_dims(leaf, before), (carry, x))
        one = cell.step(params, carry, x)
        return jax.tree.map(lambda leaf: leaf.squeeze(before), one)

    def both(params: Params, given: Any) -> Any:
        def run(given: Any) -> Any:
            return cell.step(params, *given), jax.vmap(row, before, before)(*given)

        return jax.lax.map(run, given)

    found = computed_apart(both, params, jax.tree.map(with_a_large, given))
    for one, other in zip(*map(jax.tree.leaves, found), strict=True):
        near = 1e-4 if one.dtype.itemsize >= 4 else 0.1
        one, other = (np.moveaxis(leaf, before + 1, 1).astype(complex) for leaf in (one, other))
        for rows in (np.s_[0], np.s_[1, :2]):  # and not the large row, whose roundings are large
            if not np.allclose(one[rows], other[rows], rtol=near, atol=near, equal_nan=True):
                return True
    return False
