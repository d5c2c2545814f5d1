"""Matrix memories chunk by chunk, for cells that declare them."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from rnnjax.cells.base import Carry, Cell, Params
from rnnjax.cells.matrix import Memory
from rnnjax.engine.matrices import Matrices
from rnnjax.engine.primitive import Function
from rnnjax.engine.readout import Cut
from rnnjax.engine.steps import Steps, expand

# Of one decay a head there are as many numbers for a chunk as of the products of its keys; where
# each key decays by itself there are those times the keys, which are never more than the states of
# all steps if a chunk has fewer steps than a value has entries.
_LENGTH, _LENGTH_BY_KEY = 64, 16


@dataclasses.dataclass(frozen=True)
class Chunkwise(Function):
    """``(memory, carry, start, valid, resets) -> (reads, stabilizers, carry)``.

    Args:
        matrices: what computes it where everything is a number.
    """

    matrices: Matrices

    def plain(self, memory: Memory, carry: Carry, start: Any, valid: Any, resets: Any) -> Any:
        """Whatever read a number that is none is none."""
        args, spoilt = self._cleaned(memory, carry, start, valid, resets)
        return self._spoil(self.matrices.run(*args), spoilt, jnp.nan)

    def run(self, platform: str, *args: Any) -> Any:
        """The same on all platforms."""
        return self.plain(*args)

    def forward(self, platform: str, *args: Any) -> tuple[Any, Any]:
        """Nothing is kept but the arguments, of which there is a number for each of the inputs'."""
        return self.plain(*args), ()

    def backward(self, platform: str, args: Any, kept: Any, d: Any, wanted: Any) -> Any:
        """JAX's derivative; what comes back to a number that is none is none, unless it is 0."""
        args, spoilt = self._cleaned(*args)
        marks = self._spoil(jax.tree.map(jnp.zeros_like, d), spoilt, 1)
        d = jax.tree.map(lambda d, mark: jnp.where((mark != 0) & (d != 0), jnp.nan, d), d, marks)
        ds = jax.vjp(self.matrices.run, *args)[1](d)
        return jax.tree.map(lambda d: None if d.dtype == jax.dtypes.float0 else d, ds)

    def _cleaned(self, memory: Memory, carry: Any, start: Any, valid: Any, resets: Any) -> Any:
        """The arguments without what is no number, and the steps that such a number reaches.

        In a product of matrices it would reach the others too: nothing times that is no nothing.
        """

        def bad(tree: Any, rows: int) -> jax.Array:
            leaves = [
                ~jnp.isfinite(x).all(tuple(range(rows, x.ndim))) for x in jax.tree.leaves(tree)
            ]
            return functools.reduce(jnp.logical_or, leaves)

        def clean(tree: Any, marks: jax.Array) -> Any:
            return jax.tree.map(lambda x: jnp.where(expand(marks, x), 0, x), tree)

        rows = self.matrices.rows - 1
        steps = bad(memory, rows + 1)
        memory, before = clean(memory, steps), bad(carry, rows)
        carry = clean(carry, before)
        if valid is not None:
            steps &= valid
        times = jnp.arange(steps.shape[0], dtype=jnp.int32).reshape(-1, *[1] * rows)
        begun: Any = -1
        if resets is not None:
            first = bad(start, rows)
            start, steps = clean(start, first), steps | (resets & first)
            begun = jax.lax.cummax(jnp.where(resets, times, -1))
        last = jax.lax.cummax(jnp.where(steps, times, jnp.where(before, -1, -2)))
        return (memory, carry, start, valid, resets), last >= begun

    def _spoil(self, out: Any, spoilt: jax.Array, by: Any) -> Any:
        """The result with something else where a step is marked, and in the end if the last is."""
        reads, stabilizers, carry = out

        def mark(tree: Any, marks: jax.Array) -> Any:
            return jax.tree.map(lambda x: jnp.where(expand(marks, x), by, x), tree)

        return mark(reads, spoilt), mark(stabilizers, spoilt), mark(carry, spoilt[-1])


class _Declared(Cut):
    """``(params, xs, ()) -> memory``: what a cell declares, of all steps at once."""

    def plain(self, params: Params, xs: Any, carry: Any) -> Memory:
        """The cell's own at each step."""
        own = self.cell.in_update(params)
        return jax.vmap(lambda x: self.cell.memory(own, x))(self.cell.project(params, xs))


class _Recalled(Cut):
    """``(params, xs, (reads, stabilizers)) -> ys``, of all steps at once."""

    def plain(self, params: Params, xs: Any, carry: Any) -> jax.Array:
        """The cell's own at each step."""
        recall = functools.partial(self.cell.recall, self.cell.in_update(params))
        return jax.vmap(recall)(self.cell.project(params, xs), *carry)


def chunk_length(cell: Cell, num_steps: int, wished: int | None) -> int:
    """The steps of each chunk: as wished, or what its decays allow."""
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 1))
    memory = jax.eval_shape(lambda p: _Declared(cell, 2).plain(p, jnp.zeros((1, 1, 1)), ()), params)
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
    cuts, rows = valid is not None or resets is not None, xs.ndim - 1
    declared, recalled = _Declared(cell, rows), _Recalled(cell, rows)
    memory = (declared if cuts else declared.plain)(params, xs, ())
    run = Chunkwise(Matrices(chunk_length(cell, xs.shape[0], wished), rows))
    reads, stabilizers, last = run(memory, carry, steps.start, valid, resets)
    ys = (recalled if cuts else recalled.plain)(params, xs, (reads, stabilizers))
    ys = ys.astype(step[1].dtype)
    last = jax.tree.map(lambda new, old: new.astype(old.dtype), last, carry)
    return last, ys if valid is None else jnp.where(expand(valid, ys), ys, 0)
