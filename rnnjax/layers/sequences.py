"""Tools around a sequence: valid steps, pooling, restarts and keys."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.export import is_symbolic_dim

from rnnjax.cells.base import CarryT, Cell, Params
from rnnjax.cells.products import cast
from rnnjax.cells.validation import check_carry
from rnnjax.checks import brief, check_choice, check_instance, check_lengths, is_integer
from rnnjax.engine.core.masking import expand, last_valid
from rnnjax.engine.core.validation import checked_marks
from rnnjax.errors import InvalidInputError

Pooling = Literal["last", "mean", "max"]


def valid_steps(lengths: jax.Array, num_steps: int) -> jax.Array:
    """Return which steps of a padded batch are valid: the mask that equals ``lengths``.

    Args:
        lengths: integers ``(*batch,)``, the number of valid steps of each row.
        num_steps: the number of steps of the padded sequences.

    Returns:
        booleans ``(num_steps, *batch)``.

    Raises:
        InvalidInputError: ``lengths`` or ``num_steps`` are not integers; or, outside ``jit``, a
            length is negative or above ``num_steps``.

    >>> valid_steps(jnp.array([3, 1]), 4).astype(int).T.tolist()
    [[1, 1, 1, 0], [1, 0, 0, 0]]
    """
    lengths = jnp.asarray(lengths)
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise InvalidInputError(
            f"lengths must be integers (*batch,), the valid steps of each row, but are "
            f"{lengths.dtype}; booleans for each step are a mask already"
        )
    if not (is_integer(num_steps) or is_symbolic_dim(num_steps)):
        raise InvalidInputError(
            f"num_steps must be an integer, the steps of the padded sequences, but is "
            f"{brief(num_steps)}; write valid_steps(lengths, len(xs))"
        )
    if not isinstance(lengths, jax.core.Tracer):
        advice = "cut the longer ones, or pad to more steps"
        check_lengths(lengths, num_steps, "the padded sequences", advice)
    # A traced length is not checked. Above num_steps it counts as all of them.
    return jnp.arange(num_steps).reshape(-1, *[1] * lengths.ndim) < lengths


def pool(ys: jax.Array, how: Pooling, valid: jax.Array | None = None) -> jax.Array:
    """Pool the valid outputs of each sequence into one vector.

    Args:
        ys: outputs ``(time, *batch, features)``.
        how: ``"last"``, ``"mean"`` or ``"max"``, along time.
        valid: booleans ``(time, *batch)``, as from `valid_steps`; by default all True.

    Returns:
        ``(*batch, features)``; zeros for a row without a valid step.

    Raises:
        InvalidInputError: ``how`` is another word, or ``valid`` has another shape.

    >>> ys = jnp.array([[[1.0], [5.0]], [[3.0], [6.0]], [[9.0], [9.0]]])
    >>> valid = valid_steps(jnp.array([2, 1]), 3)
    >>> [pool(ys, how, valid)[:, 0].tolist() for how in ("last", "mean", "max")]
    [[3.0, 5.0], [2.0, 5.0], [3.0, 5.0]]
    """
    check_choice("how", how, ("last", "mean", "max"))
    ys = jnp.asarray(ys)
    valid = jnp.ones(ys.shape[:-1], bool) if valid is None else valid
    valid = checked_marks("valid", valid, ys, of="ys")
    if not ys.shape[0]:
        return jnp.zeros(ys.shape[1:], ys.dtype)
    marks, any_valid = expand(valid, ys), expand(valid.any(axis=0), ys[0])
    if how == "max":
        whole = jnp.issubdtype(ys.dtype, jnp.integer)
        least = jnp.iinfo(ys.dtype).min if whole else -jnp.inf
        # Integers have no -inf. A row without a valid step has the least number, replaced by 0.
        return jnp.where(any_valid, jnp.where(marks, ys, least).max(axis=0), 0)
    if how == "mean":
        # Selected, not multiplied: padding may be NaN. Of no step the mean is 0 / 1.
        return jnp.where(marks, ys, 0).sum(axis=0) / jnp.maximum(marks.sum(axis=0), 1)
    return last_valid(ys, valid)


def restart(cell: Cell[CarryT], params: Params, carry: CarryT, where: jax.Array) -> CarryT:
    """Restart some rows with the carry at the start of a sequence, before a `Cell.step`.

    It equals ``resets`` in `rnnjax.unroll`, for an agent that acts step by step.

    Args:
        cell: any cell.
        params: its parameters.
        carry: the state, every leaf ``(*batch, ...)``.
        where: booleans ``(*batch,)``, True where a new sequence begins.

    Raises:
        InvalidInputError: ``cell`` is no cell, ``where`` not booleans, or the carry another cell's.

    >>> import rnnjax
    >>> cell = rnnjax.GRUCell(2)
    >>> carry = rnnjax.GRUCarry(jnp.ones((2, 2)))
    >>> restart(cell, cell.init(jax.random.key(0), 3), carry, jnp.array([True, False])).hidden
    Array([[0., 0.],
           [1., 1.]], dtype=float32)
    """
    where = jnp.asarray(where)
    if where.dtype != jnp.bool_:
        raise InvalidInputError(
            f"where must be booleans, one for each row, but are {where.dtype}; write "
            "where.astype(bool), or for the row i jnp.arange(batch) == i"
        )
    check_instance("cell", cell, Cell, "a Cell such as rnnjax.LSTMCell(50)")
    alone = jax.eval_shape(cell.initial_carry)
    wanted: Any = jax.tree.structure(alone)
    if wanted == jax.tree.structure(carry):
        leaves = zip(jax.tree.leaves(carry), jax.tree.leaves(alone), strict=True)
        batch = {leaf.shape[: leaf.ndim - one.ndim] for leaf, one in leaves}
        if batch != {where.shape}:
            raise InvalidInputError(
                f"where must have the shape of the batch, {', '.join(map(str, sorted(batch)))}, "
                f"with which the carry begins, but has {where.shape}; give one for each row"
            )
    check_carry("carry", cell, carry, where.shape)

    def select(new: jax.Array, old: jax.Array) -> jax.Array:
        # Or a state in bfloat16 would become float32, and the next step compile again.
        return jnp.where(expand(where, old), cast(new, old.dtype), old)

    return jax.tree.map(select, cell.start(params, where.shape), carry)


def split_key(key: jax.Array | None, num: int) -> Any:
    """Call `jax.random.split`; for the key None, return ``num`` times None.

    >>> split_key(None, 2)
    (None, None)
    >>> split_key(jax.random.key(0), 2).shape
    (2,)
    """
    return (None,) * num if key is None else jax.random.split(key, num)
