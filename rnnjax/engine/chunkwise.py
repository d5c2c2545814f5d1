"""Matrix memories chunk by chunk, for cells that declare them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from rnnjax.cells.base import Carry, Cell, Params
from rnnjax.cells.matrix import Memory
from rnnjax.engine.matrices import Matrices
from rnnjax.engine.steps import Steps, expand, without, zero_masked

# Of one decay a head there are as many numbers for a chunk as of the products of its keys; where
# each key decays by itself there are those times the keys, which are never more than the states of
# all steps if a chunk has fewer steps than a value has entries.
_LENGTH, _LENGTH_BY_KEY = 64, 16


def chunk_length(cell: Cell, num_steps: int, wished: int | None) -> int:
    """The steps of each chunk: as wished, or what its decays allow."""
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 1))
    memory = jax.eval_shape(lambda p: _declared(cell, p, jnp.zeros((1, 1, 1))), params)
    usual = _LENGTH_BY_KEY if memory.by_key else _LENGTH
    return min(num_steps, usual if wished is None else wished)


def chunkwise(
    cell: Cell, params: Params, xs: Any, carry: Carry, steps: Steps, wished: int | None
) -> tuple[Carry, jax.Array]:
    """The last carry, and what the loop shows, of a cell that declares its memory.

    Args:
        cell: it.
        params: its parameters.
        xs: ``(time, *batch, features)``, in the order in which they run.
        carry: the state before them.
        steps: their marks, in that order.
        wished: the steps of a chunk, if they are wished.
    """
    whole = jnp.ones(xs.shape[:-1], bool)  # marks may have fewer axes than there are of rows
    valid, resets = (None if m is None else expand(m, whole) & whole for m in steps.each[:2])
    first = jax.tree.map(lambda leaf: leaf[0], xs)
    # Whatever is wrong with what the cell declares is said here, in its words.
    step = jax.eval_shape(lambda: cell.advance(params, cell.project(params, first), carry))
    matrices = Matrices(chunk_length(cell, xs.shape[0], wished), xs.ndim - 1)
    # Only the arguments are saved, as many numbers as the inputs. Where XLA sees both passes it may
    # merge them: kept apart, a gradient takes 1.2 to 1.7 times as long.
    run = jax.checkpoint(matrices.run, prevent_cse=False)
    memory, old, spoils = _finite(_declared(cell, params, xs), carry, resets, xs.ndim - 1)
    reads, stabilizers, last = run(memory, old, steps.start, valid, resets)
    reads = reads * expand(spoils, reads)
    last = jax.tree.map(lambda leaf: leaf * expand(spoils[-1], leaf), last)
    recall = functools.partial(cell.recall, cell.in_update(params))
    ys = jax.vmap(recall)(cell.project(params, xs), reads, stabilizers)
    ys = zero_masked(ys.astype(step[1].dtype), valid)
    last = jax.tree.map(lambda new, old: new.astype(old.dtype), last, carry)
    return last, ys


def _declared(cell: Cell, params: Params, xs: Any) -> Memory:
    """What a cell declares, of all steps at once."""
    own = cell.in_update(params)
    return jax.vmap(lambda x: cell.memory(own, x))(cell.project(params, xs))


def _finite(
    memory: Memory, carry: Carry, resets: jax.Array | None, rows: int
) -> tuple[Memory, Carry, jax.Array]:
    """The arguments with zeros for what is non-finite, and factors that put a NaN in its place.

    In the products of a chunk it would reach all of its steps, earlier ones too. The factors are
    NaN from its step up to the next reset, and 1 elsewhere.
    """

    def non_finite(tree: Any, rows: int) -> jax.Array:
        leaves = jax.tree.leaves(tree)
        marks = [~jnp.isfinite(x).all(tuple(range(rows, x.ndim))) for x in leaves]
        return functools.reduce(jnp.logical_or, marks)

    steps, before = non_finite(memory, rows), non_finite(carry, rows - 1)
    times = jnp.arange(steps.shape[0], dtype=jnp.int32).reshape(-1, *[1] * (rows - 1))
    begun: Any = -1
    if resets is not None:
        begun = jax.lax.cummax(jnp.where(resets, times, -1))
    last = jax.lax.cummax(jnp.where(steps, times, jnp.where(before, -1, -2)))
    spoils = jnp.where(last >= begun, jnp.nan, 1)
    return without(steps, memory), without(before, carry), spoils
