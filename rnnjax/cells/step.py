"""The one place that puts a step of a cell together, for every way of running it.

A step is two calls. `update_input` makes the argument ``x`` of `Cell.update` from the products of
the inputs and of the state. `apply_update` calls it and casts its result. Before them stands
`multiplied` and after them `apply_readout`, both of which a method may call for all steps at once.
All are functions, so that a subclass cannot replace a part of a step, which a method that calls
the other parts would not see.
"""

import itertools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rnnjax.cells.declarations import Carry, Inputs, Params, Role, kernels_outside, roles_of
from rnnjax.cells.onehot import Beside
from rnnjax.cells.products import Operand, add_bias, at_least_float32, cast, product
from rnnjax.cells.validation import check_pair, check_updated, naming
from rnnjax.checks import brief, number_types, rounded
from rnnjax.errors import InvalidInputError
from rnnjax.meshes import match_vma

if TYPE_CHECKING:
    from rnnjax.cells.base import Cell


def split_raw(cell: "Cell", xs: Any) -> tuple[Any, dict[str, jax.Array]]:
    """Split inputs ``(..., input_size)`` into what the kernel multiplies, and raw features."""
    check_pair(cell, xs)
    if not cell.raw:
        return xs, {}
    if isinstance(xs, Beside):
        xs, rest = xs.xs, xs.raw
    else:
        xs, rest = xs[..., : -cell.raw_size], xs[..., -cell.raw_size :]
    rest = rest.astype(at_least_float32(rest.dtype))  # time gaps are no operands of products
    ends = list(itertools.accumulate(cell.raw.values()))
    return xs, dict(zip(cell.raw, jnp.split(rest, ends[:-1], axis=-1), strict=True))


def multiplied(cell: "Cell", params: Params, xs: Any, dtype: DTypeLike | None) -> jax.Array:
    """``xs @ kernel``, for inputs without raw features ``(..., features)``."""
    if not xs.shape[-1]:  # all of them are raw
        return xs
    return product(xs, params["kernel"], dtype)


def update_input(
    cell: "Cell",
    params: Params,
    projected: jax.Array,
    carry: Carry,
    times: Callable[[jax.Array], jax.Array] | None = None,
    drop: Callable[[jax.Array], jax.Array] | None = None,
) -> Any:
    """Make the argument ``x`` of `update`: the first half of a step, however it is run.

    Its derivative is written by hand in two places, which a term that is new here changes too:
    `Recurrence.backward` and its loop (``engine/fused/recurrence.py``), and the learners' products
    and their influence (``online.py``). Where they differ from it, law 1 and law 5 fail for
    `Fused` (``tests/test_laws.py``), and ``test_snap1_is_a_masked_dense_rtrl`` for the learners.

    Args:
        cell: a cell that declares its equation.
        params: the parameters.
        projected: the inputs' product, without its bias.
        carry: the state before the step.
        times: multiplies a state by ``recurrent_kernel``; by default as the cell declares it.
        drop: what the state goes through before that, as recurrent dropout.
    """
    projected = biased(cell, projected, params, "bias")
    if cell.recurrent is None:
        return projected
    state = getattr(carry, cell.recurrent)
    state = state if drop is None else drop(state)
    recurrent = times(state) if times else product(state, params["recurrent_kernel"], cell.dtype)
    recurrent = biased(cell, recurrent, params, "recurrent_bias")
    if not cell.additive:
        return projected, recurrent
    columns = projected.shape[-1], recurrent.shape[-1]
    if columns[0] != columns[1]:
        raise InvalidInputError(
            f"kernel and recurrent_kernel of {brief(cell)} must have the same number of "
            f"columns, because their products are added, but have {columns[0]} and "
            f"{columns[1]}; write additive = False, so that update is given both as a pair"
        )
    return projected + recurrent


def biased(cell: "Cell", x: jax.Array, params: Params, name: str) -> jax.Array:
    """Add the bias of that name to a product, if the cell declares one."""
    return add_bias(x, params, name) if is_bias(cell, name) else x


def loop_params(cell: "Cell", params: Params) -> Params:
    """Return the parameters that the loop reads: all except those of `readout`."""
    roles = roles_of(cell)
    return {name: leaf for name, leaf in params.items() if roles.get(name) is not Role.OUT}


def update_params(cell: "Cell", params: Params) -> Params:
    """Return the parameters that `update` may read: all except `kernels_outside`."""
    outside = kernels_outside(cell)
    return {name: p for name, p in loop_params(cell, params).items() if name not in outside}


def apply_update(
    cell: "Cell",
    params: Params,
    x: Any,
    carry: Carry,
    raw: Mapping[str, jax.Array],
    dtype: DTypeLike | None = None,
) -> tuple[Carry, jax.Array]:
    """Call `update` and cast its result to the types of the carry: the other half of a step.

    Errors name the cell.

    The state of a loop must not change its type, whatever the types of inputs and parameters.
    ``dtype`` is the type of the operands of products in `update`, if not the cell's.
    """
    dtype, roles = cell.dtype if dtype is None else dtype, roles_of(cell)
    read = {
        name: Operand(leaf, dtype) if roles.get(name) is Role.LOOP else leaf
        for name, leaf in update_params(cell, params).items()
    }
    advice = f"params has {sorted(read)}; check gates, additive, output, raw, and what it returns"
    with naming(cell, "update", advice, x=x, **{"the carry": carry}, **raw):
        new = cell.update(read, x, carry, **raw)
        own = new if isinstance(new, type(carry)) else carry  # what is none is refused below
        new, y = new if cell.output is None else (new, getattr(own, cell.output))
        check_updated(carry, new)
        new = jax.tree.map(lambda leaf, old: match_vma(cast(leaf, old.dtype), old), new, carry)
        types = number_types(new) if cell.dtype is None else [cell.dtype]
        return new, rounded(y, jnp.result_type(*types)) if types else y


def apply_readout(
    cell: "Cell", params: Params, emitted: jax.Array, xs: Inputs, dtype: DTypeLike | None = None
) -> jax.Array:
    """Call `readout` for one step or for all, and cast its result to the type of the outputs.

    ``dtype`` is the type of the operands of its products, if not the cell's.
    """
    if not cell.has_readout:
        return emitted
    dtype, roles = cell.dtype if dtype is None else dtype, roles_of(cell)
    given = {n: params[n] for n, role in roles.items() if role is Role.OUT}
    read = {n: p if jnp.ndim(p) == 1 else Operand(p, dtype) for n, p in given.items()}
    advice = f"params has those of Role.OUT alone, {sorted(read)}: matrices for @, and vectors"
    with naming(cell, "readout", advice, emitted=emitted, xs=xs):
        return cell.readout(read, emitted, xs).astype(emitted.dtype)


def is_bias(cell: "Cell", name: str) -> bool:
    """Whether the engine adds the parameter of that name to a product before the update."""
    return roles_of(cell).get(name) is Role.BIAS


def plain_step(
    cell: "Cell",
    params: Params,
    carry: Carry,
    x: Any,
    raw: Mapping[str, jax.Array],
    drop: Callable[[jax.Array], jax.Array] | None = None,
) -> tuple[Carry, jax.Array]:
    """Run a step whose products are made as the cell declares them; ``drop`` as in `update_input`.

    ``x`` are the inputs without the raw features.
    """
    projected = multiplied(cell, params, x, cell.dtype)
    given = update_input(cell, params, projected, carry, drop=drop)
    carry, emitted = apply_update(cell, params, given, carry, raw)
    return carry, apply_readout(cell, params, emitted, x)
