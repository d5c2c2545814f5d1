"""Matrix memories chunk by chunk, as matrix products."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rnnjax.cells.base import Carry, Cell, Params
from rnnjax.cells.matrix import MatrixCarry, Memory, StabilizedCarry, in_groups
from rnnjax.cells.step import apply_update, multiplied, update_input, update_params
from rnnjax.engine.core.masking import Steps, expand, without, zero_masked
from rnnjax.engine.parallel.linear_recurrence import shift

# ---- the products of a chunk

# The rows of the diagonal blocks of a triangular system, and the precision of its products: that of
# the platform's solver, which rounds no operand to bfloat16.
_BLOCK = 16
_product = functools.partial(jnp.matmul, precision="highest")


class _Chunk(NamedTuple):
    """The matrices of a chunk, computed from its inputs; axes (chunks, *rows, heads) come first.

    With one decay for each key entry, queries and keys hold the decays. With one for each head the
    results do, so that heads which share queries and keys share these products too.

    Attributes:
        reads: ``(steps, writes)``, the weight of each written value in the read of each step.
        query: ``(steps, key_size)``, for reads of the memory before the chunk.
        since: ``(steps, 1)``, the decay of these reads, or 1.
        value: ``(writes, value_size)``, the written values.
        erased: ``(writes, key_size)``, reads of that memory that are taken away; else None.
        key: ``(writes, key_size)``.
        until: ``(writes, 1)``, the decay of the written values to the end of the chunk, or 1.
        keeps: ``(1 or key_size)``, the decay of that memory over the chunk.
        restarted: ``(steps,)``, whether a reset lies between the start of the chunk and the step.
    """

    reads: jax.Array
    query: jax.Array
    since: Any
    value: jax.Array
    erased: jax.Array | None
    key: jax.Array
    until: Any
    keeps: jax.Array
    restarted: jax.Array


def _run(
    length: int, rows: int, memory: Memory, carry: Any, start: Any, valid: Any, resets: Any
) -> Any:
    """Run a memory chunk by chunk.

    Within a chunk, the reads of written values are a product of queries and keys with the decay
    between them. If steps erase first, the written values solve a triangular system (Yang et al.,
    2024). Only the memory at the end of a chunk goes to the next.

    Args:
        length: the steps of a chunk.
        rows: the number of axes before the heads, with time, and with that of groups if any.
        memory: as in `run_memory`, and so the others.
        carry: the state before the first step.
        start: the state that a reset restores.
        valid: which steps run, for each row, or None.
        resets: where a new sequence begins, for each row, or None.

    Returns:
        the reads of each step, the stabilizers or None, and the last carry.
    """
    num_steps, groups, given = memory.key.shape[0], memory.groups, carry
    memory = memory.widened(carry.memory).grouped()
    carry, start = jax.tree.map(lambda leaf: in_groups(leaf, rows - 2, groups), (carry, start))
    if groups:
        valid, resets = (None if m is None else m[..., None] for m in (valid, resets))
    split = functools.partial(_in_chunks, length, rows)
    marks = None if resets is None else split(resets[..., None])
    stabilizers = None
    # A masked step writes nothing and decays by 1, so that the products below need no mask.
    memory = memory if valid is None else _with_masked_idle(memory, valid)
    if memory.log_beta is not None:
        decay, added = memory.log_decay, memory.log_beta
        if resets is not None:  # where nothing comes from before
            begun = jnp.maximum(decay + start.stabilizer, added)
            added = jnp.where(resets[..., None], begun, added)
        found = _stabilizers(split(decay), split(added, -jnp.inf), carry.stabilizer, marks)
        stabilizers = _joined(rows, found[..., None])[:num_steps, ..., 0]
        # S is stored as S exp(-m). A step multiplies the old one by exp(log A + m - m') and the
        # new value by exp(log beta - m'). As m' is the larger of log A + m and log beta, one of
        # both factors is 1. The other is below it, and may underflow to 0 without harm.
        before = shift(stabilizers).at[0].set(carry.stabilizer)
        if resets is not None:
            before = jnp.where(resets[..., None], start.stabilizer, before)
        memory = memory.stabilized(before, stabilizers)
    fresh = None if resets is None else start.memory
    chunk = _chunk(jax.tree.map(split, memory), fresh, marks)
    written = (chunk.until * chunk.value).mT @ chunk.key
    erased = None if chunk.erased is None else (chunk.until * chunk.erased).mT @ chunk.key
    ends = chunk.keeps, written, erased, chunk.restarted[..., -1]
    state, starts = jax.lax.scan(functools.partial(_over, fresh=fresh), carry.memory, ends)
    # With S_0 the memory before the chunk, D_t the product of the decays of its steps up to t,
    # D_(s..t) that of the steps s + 1 to t, and u_s the value that step s writes, the read is
    # y_t = S_0 D_t q_t + sum_(s<=t) (k_s^T D_(s..t) q_t) u_s. `reads` has the brackets;
    # `since` and `query` are D_t and q_t, or 1 and D_t q_t with a decay per key entry.
    value = chunk.value
    if chunk.erased is not None:
        value = value - chunk.erased @ starts.mT
    found = chunk.query @ starts.mT
    if fresh is not None:
        found = jnp.where(chunk.restarted[..., None], chunk.query @ fresh.mT, found)
    reads = _joined(rows, chunk.reads @ value + chunk.since * found)[:num_steps]
    reads = reads.reshape(num_steps, *given.memory.shape[:-1])
    last = state.reshape(given.memory.shape)
    if stabilizers is None:
        return reads, None, MatrixCarry(last)
    stabilizers = stabilizers.reshape(num_steps, *given.stabilizer.shape)
    return reads, stabilizers, StabilizedCarry(last, stabilizers[-1])


def _over(state: jax.Array, at: Any, fresh: Any) -> tuple[jax.Array, jax.Array]:
    """Return the memory after a chunk, and the memory before it."""
    keeps, written, erased, restarted = at
    new = state
    if fresh is not None:
        new = jnp.where(restarted[..., None, None], fresh, new)
    # S_L = S_0 D_L + sum_s u_s k_s^T D_(s..L). If steps erase, u_s = a_s - S_0 b_s, where a_s
    # and b_s are the rows of `_Chunk.value` and `_Chunk.erased`. With a_s in place of u_s the
    # sum is `written`, and with b_s it is `erased`.
    new = keeps[..., None, :] * new + written
    if erased is not None:
        new = new - state @ erased
    return new.astype(state.dtype), state


# ---- of arrays in chunks, (chunks, *rows, heads, steps, ...)


def _stabilizers(decay: jax.Array, added: jax.Array, first: jax.Array, marks: Any) -> jax.Array:
    """Compute ``m' = max(log_decay + m, log_beta)`` at each step."""
    sums, whole, linked = _sums(decay, marks, by_key=False)
    # Unrolled, m_t is the largest of m_0 + d_1 + .. + d_t and of all b_s + d_(s+1) + .. + d_t,
    # s <= t: a linear recurrence with max for plus and + for times, which distributes over it.
    own = jnp.where(linked, sums + added[..., None, :], -jnp.inf)
    # By its place: the slope of `jnp.max` asks which entries equal the result, and where XLA
    # rounds one differently when it computes it again, for a gradient, it is another one.
    largest = own.argmax(-1, keepdims=True) == jnp.arange(decay.shape[-1])
    own = jnp.where(largest, own, 0).sum(-1)
    whole = jnp.where(_restarted(own, marks), -jnp.inf, whole)

    def over(state: jax.Array, at: Any) -> tuple[jax.Array, jax.Array]:
        whole, own = at
        return jnp.maximum(state + whole, own).astype(state.dtype), state

    starts = jax.lax.scan(over, first, (whole[..., -1], own[..., -1]))[1]
    before = starts[..., None] + whole
    return jnp.where(before > own, before, own)


def _chunk(memory: Memory, fresh: Any, marks: Any) -> _Chunk:
    """Compute the matrices of all chunks at once."""
    query, key, value, by_key = memory.query, memory.key, memory.value, memory.by_key
    value = value if memory.beta is None else memory.beta[..., None] * value
    sums, whole, linked = _sums(memory.log_decay, marks, by_key)
    decays = _decays(sums, linked, by_key)
    keeps = jnp.exp(whole if by_key else whole[..., None])
    restarted = _restarted(key[..., 0], marks)
    reads, erased = _across(query, key, decays, by_key), None
    end = decays[..., -1, :, :] if by_key else decays[..., -1, :, None]
    if memory.erase is not None:
        value, erased = _solved(_erasing(memory, value, decays, keeps), fresh, restarted)
    elif memory.removal_key is not None:
        removing = _removing(memory, value, decays, sums, linked)
        target, erased = _solved(removing, fresh, restarted)
        away = memory.removal_key
        reads = jnp.concatenate([reads, _across(query, away, decays, by_key)], axis=-1)
        value = jnp.concatenate([value, target], axis=-2)
        erased = jnp.concatenate([jnp.zeros_like(erased), erased], axis=-2)
        key = jnp.concatenate(jnp.broadcast_arrays(key, away), axis=-2)
        end = jnp.concatenate([end, end], axis=-2)
    since, until = (1, 1) if by_key else (keeps, end)
    if by_key:
        query, key = keeps * query, end * key
    return _Chunk(reads, query, since, value, erased, key, until, keeps[..., -1, :], restarted)


def _across(one: jax.Array, key: jax.Array, decays: jax.Array, by_key: bool) -> jax.Array:
    """Multiply each step's vectors with the decayed keys of earlier steps."""
    if by_key:
        return jnp.einsum("...td,...sd,...tsd->...ts", one, key, decays)
    return (one @ key.mT) * decays


def _erasing(memory: Memory, value: jax.Array, decays: jax.Array, keeps: jax.Array) -> Any:
    """Return the matrix, the target and what is seen of the memory, of the system for `erase`."""
    # What a step erases and what it writes lie at one key, and so are one value u_t.
    # The memory is read after the decay of the step, at x_t = e_t k_t:
    #   u_t = v_t - S_(t-1) A_t x_t
    #   S_(t-1) A_t = S_0 D_t + sum_(s<t) u_s k_s^T D_(s..t)
    # Hence u_t + sum_(s<t) (x_t^T D_(s..t) k_s) u_s = v_t - S_0 D_t x_t, a system for
    # all u whose matrix is I + `below`, unit lower triangular.
    part, key, by_key = memory.erase, memory.key, memory.by_key
    assert part is not None
    if part.ndim == key.ndim:
        below = _across(part * key, key, decays, by_key)
    else:
        part = part[..., None]
        below = part * _across(key, key, decays, by_key)
    return jnp.tril(below, -1), value, part * keeps * key


def _removing(
    memory: Memory, value: jax.Array, decays: jax.Array, sums: jax.Array, linked: jax.Array
) -> Any:
    """Return the same of the system for `removal_query` and `removal_key`."""
    # What is removed is a second, negative value of the step, x_t = -S_(t-1) r_t, at a
    # key of its own, w_t. It is read before the decay of the step, from
    #   S_(t-1) = S_0 D_(t-1) + sum_(s<t) (v_s k_s^T + x_s w_s^T) D_(s..t-1)
    # again a unit lower system. D_(s..t-1) comes from `sums`, moved down by a row.
    at, away, decay, by_key = (
        memory.removal_query, memory.removal_key, memory.log_decay, memory.by_key
    )  # fmt: skip
    assert at is not None
    assert away is not None
    strict = jnp.tril(linked, -1)
    before = strict.astype(decay.dtype) @ (decay if by_key else decay[..., None])
    earlier = _decays(jnp.roll(sums, 1, -3 if by_key else -2), strict, by_key)
    target = -_across(at, memory.key, earlier, by_key) @ value
    return _across(at, away, earlier, by_key), target, jnp.exp(before) * at


def _solved(system: Any, fresh: Any, restarted: Any) -> Any:
    """Solve a system for the values, and for what each takes away of the memory before it."""
    below, target, seen = system
    if fresh is not None:
        target = target - jnp.where(restarted[..., None], seen @ fresh.mT, 0)
        seen = jnp.where(restarted[..., None], 0, seen)
    solved = unit_lower_solve(below, jnp.concatenate([target, seen], axis=-1))
    return jnp.split(solved, [target.shape[-1]], axis=-1)


def _sums(decay: jax.Array, marks: Any, by_key: bool) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sum log decays between each two steps of a chunk, and from its start to each step.

    The sums are added up, not differences of cumulative sums: a small one would be lost next to
    a large one. The last result says for each two steps whether the second is no later than the
    first, and no reset lies between them.
    """
    steps = decay.shape[-2 if by_key else -1]
    lower = linked = jnp.tril(jnp.ones((steps, steps), bool))
    if marks is not None:
        count = jnp.cumsum(marks.astype(jnp.int32), axis=-1)
        linked = lower & (count[..., :, None] == count[..., None, :])
    # sums[t, s] = sum_j [j <= t] [j > s] d_j, by products: on a CPU a cumulative sum of them
    # takes three times as long.
    later = jnp.tril(lower, -1).astype(decay.dtype)  # the steps after each step
    own, until = linked.astype(decay.dtype), lower.astype(decay.dtype)
    if by_key:
        sums = jnp.einsum("tj,js,...jk->...tsk", until, later, decay, precision="highest")
        return sums, _product(own, decay), linked
    sums = _product(until, later * decay[..., :, None])
    return sums, _product(own, decay[..., None])[..., 0], linked


def _restarted(like: jax.Array, marks: Any) -> jax.Array:
    """Return whether a reset lies between the start of the chunk and each step."""
    if marks is None:
        return jnp.zeros_like(like, bool)
    return jnp.cumsum(marks.astype(jnp.int32), axis=-1) > 0


def _in_chunks(length: int, rows: int, leaf: jax.Array, fill: Any = 0) -> jax.Array:
    """Reshape ``(time, *rows, heads, ...)`` to ``(chunks, *rows, heads, steps, ...)``."""
    spare = -leaf.shape[0] % length
    if spare:
        rest = jnp.full_like(leaf, fill, shape=(spare, *leaf.shape[1:]))
        leaf = jnp.concatenate([leaf, rest])
    leaf = leaf.reshape(leaf.shape[0] // length, length, *leaf.shape[1:])
    return jnp.moveaxis(leaf, 1, rows + 1)


def _joined(rows: int, leaf: jax.Array) -> jax.Array:
    """Undo the reshape of `_in_chunks`; what that padded stays."""
    leaf = jnp.moveaxis(leaf, rows + 1, 1)
    return leaf.reshape(leaf.shape[0] * leaf.shape[1], *leaf.shape[2:])


def _with_masked_idle(memory: Memory, valid: jax.Array) -> Memory:
    """Replace masked steps by steps that do not change the memory."""

    def held(leaf: Any, otherwise: float) -> Any:
        return None if leaf is None else jnp.where(expand(valid, leaf), leaf, otherwise)

    return memory._replace(
        value=held(memory.value, 0), log_decay=held(memory.log_decay, 0),
        erase=held(memory.erase, 0), log_beta=held(memory.log_beta, -jnp.inf),
        removal_key=held(memory.removal_key, 0),
    )  # fmt: skip


def _decays(sums: jax.Array, marks: jax.Array, by_key: bool) -> jax.Array:
    """Return the decay between two steps from its logarithm; zeros where none is marked."""
    return jnp.exp(jnp.where(marks[..., None] if by_key else marks, sums, -jnp.inf))


def unit_lower_solve(below: jax.Array, right: jax.Array) -> jax.Array:
    """Solve ``(I + below) x = right`` by substitution in blocks of rows.

    Args:
        below: ``(..., steps, steps)``, zero on its diagonal and above.
        right: ``(..., steps, columns)``.
    """
    # `jax.lax.linalg.triangular_solve` of a batch can deadlock the thread pool of a CPU (jaxlib
    # 0.10.2). Powers of `below` would need no substitution, but cancel: for keys that are alike
    # they grow like binomials, while the solution stays small.
    steps = below.shape[-1]
    size = min(_BLOCK, steps)
    blocks = [(i, min(i + size, steps)) for i in range(0, steps, size)]
    known = jax.lax.stop_gradient(below)  # the derivative is that of the linear system
    padded = jnp.pad(known, [(0, 0)] * (below.ndim - 2) + [(0, -steps % size)] * 2)
    inverses = _unit_lower_inverse(
        jnp.stack([padded[..., i : i + size, i : i + size] for i, _ in blocks], axis=-3)
    )

    def inverse(block: int) -> jax.Array:
        rows = blocks[block][1] - blocks[block][0]
        return inverses[..., block, :rows, :rows]

    # Block row i: x_i = (I + L_ii)^-1 (b_i - sum_(j<i) L_ij x_j), from the first to the last. For
    # the transpose: x_i = (I + L_ii)^-T (b_i - sum_(j>i) L_ji^T x_j), from the last to the first.
    def forward(_: Any, right: jax.Array) -> jax.Array:
        x = right[..., :0, :]
        for block, (start, end) in enumerate(blocks):
            rest = right[..., start:end, :] - _product(known[..., start:end, :start], x)
            x = jnp.concatenate([x, _product(inverse(block), rest)], axis=-2)
        return x

    def backward(_: Any, right: jax.Array) -> jax.Array:
        x = right[..., :0, :]
        for block, (start, end) in reversed(list(enumerate(blocks))):
            rest = right[..., start:end, :] - _product(known[..., end:, start:end].mT, x)
            x = jnp.concatenate([_product(inverse(block).mT, rest), x], axis=-2)
        return x

    # One solve more for a gradient, instead of the transposes of all the steps above.
    return jax.lax.custom_linear_solve(
        lambda x: x + _product(below, x), right, solve=forward, transpose_solve=backward
    )


def _unit_lower_inverse(below: jax.Array) -> jax.Array:
    """Invert ``I + below``, one column of ``below`` after the other."""
    size = below.shape[-1]

    def eliminate(j: Any, inverse: jax.Array) -> jax.Array:
        # I + L is the product of I + l_j e_j^T over the columns l_j, from left to right, as
        # e_i^T l_j = 0 for i <= j. Their inverses I - l_j e_j^T are applied from the first on.
        column, row = below[..., :, j, None], inverse[..., j, None, :]
        return inverse - column * row

    # The first column is taken here, so that the loop begins with an array of the type of `below`.
    first = jnp.eye(size, dtype=below.dtype) - below.at[..., 1:].set(0)
    return jax.lax.fori_loop(1, size - 1, eliminate, first)


# With one decay per head, a chunk has as many decays as products of keys. With one per key entry it
# has those times the key size: never more than the states of all steps, if a chunk has fewer steps
# than a value has entries. Whether a GPU wants longer chunks is not known, as nothing here ran on
# one: the rows of matrix memories in ``benchmarks.sequences parallel`` there would decide.
_LENGTH, _LENGTH_BY_KEY = 64, 16


def chunk_length(cell: Cell, params: Params, shape: tuple[int, ...], requested: int | None) -> int:
    """Return the steps of a chunk for inputs of a shape: as requested, or what decays allow."""
    width = params["kernel"].shape[-1]
    raw = {name: jax.ShapeDtypeStruct((size,), "float32") for name, size in cell.raw.items()}
    x = jax.ShapeDtypeStruct((width,), jnp.float32)
    own = update_params(cell, params)
    memory = jax.eval_shape(lambda own, x, raw: cell.memory(own, x, **raw), own, x, raw)
    return usual_length(memory, shape[0], requested)


def usual_length(memory: Memory, num_steps: int, requested: int | None) -> int:
    """Return the steps of a chunk for a memory: as requested, or what its decays allow."""
    usual = _LENGTH_BY_KEY if memory.by_key else _LENGTH
    return min(num_steps, usual if requested is None else requested)


def chunkwise(
    cell: Cell, params: Params, xs: Any, carry: Carry, steps: Steps, requested: int | None
) -> tuple[Carry, jax.Array]:
    """Return the last carry and the emitted values of a cell that declares its memory.

    Args:
        cell: the cell.
        params: its parameters.
        xs: ``(time, *batch, features)``, in running order.
        carry: the state before the first step.
        steps: the marks, in running order.
        requested: the steps of a chunk, or None.
    """
    projected = update_input(cell, params, multiplied(cell, params, xs, cell.dtype), carry)
    valid, raw = steps.per_step.valid, steps.per_step.raw
    first = jax.tree.map(lambda leaf: leaf[0], (projected, raw))
    # Errors in the cell's declaration are raised here.
    step = jax.eval_shape(lambda: apply_update(cell, params, first[0], carry, first[1]))
    own = update_params(cell, params)
    memory = jax.vmap(lambda x, raw: cell.memory(own, x, **raw))(projected, raw)
    length = usual_length(memory, xs.shape[0], requested)
    last, reads, stabilizers = run_memory(memory, carry, steps, length)
    if valid is not None:  # recall may divide by it, and nothing is read before the first write
        reads = jnp.where(expand(valid, reads), reads, 1)
    ys = jax.vmap(functools.partial(cell.recall, own))(projected, reads, stabilizers)
    return last, zero_masked(ys.astype(step[1].dtype), valid)


def run_memory(
    memory: Memory, carry: Carry, steps: Steps, length: int
) -> tuple[Carry, jax.Array, jax.Array | None]:
    """Return the last carry, the read of each step, and the stabilizers or None.

    Args:
        memory: the memory of all steps, in running order.
        carry: the state before the first step.
        steps: the marks, in running order.
        length: the steps of a chunk.
    """
    rows = memory.key.ndim - 2
    whole = jnp.ones(memory.key.shape[:rows], bool)  # marks may have fewer axes than the rows
    valid, resets = (None if m is None else expand(m, whole) & whole for m in steps.per_step[:2])
    # Only the arguments are saved, as many numbers as the inputs. XLA may merge both passes: kept
    # separate, a gradient takes 1.2 to 1.7 times as long.
    before = rows + bool(memory.groups)
    run = jax.checkpoint(functools.partial(_run, length, before), prevent_cse=False)
    memory, old, spoils, lost = _finite(memory, carry, resets, rows)
    reads, stabilizers, last = run(memory, old, steps.start, valid, resets)
    reads = jnp.where(expand(lost, reads), jnp.nan, reads * expand(spoils, reads))
    last = jax.tree.map(lambda leaf: leaf * expand(spoils[-1], leaf), last)
    last = jax.tree.map(lambda new, old: new.astype(old.dtype), last, carry)
    return last, reads, stabilizers


def _finite(
    memory: Memory, carry: Carry, resets: jax.Array | None, rows: int
) -> tuple[Memory, Carry, jax.Array, jax.Array]:
    """Replace non-finite values by zeros, and return factors that put the NaN back.

    A NaN in a chunk's products would reach all steps, even earlier ones. The factors are NaN from
    its step to the next reset, and 1 elsewhere. The last result marks the steps whose query is not
    finite: a read goes to no state.
    """

    def non_finite(tree: Any, rows: int) -> jax.Array:
        leaves = jax.tree.leaves(tree)
        marks = [~jnp.isfinite(x).all(tuple(range(rows, x.ndim))) for x in leaves]
        return functools.reduce(jnp.logical_or, marks)

    def closed(gate: jax.Array) -> jax.Array:  # minus infinity is a gate of zero
        return jnp.where(gate.real == -jnp.inf, gate.imag, gate)

    decay, added = memory.log_decay, memory.log_beta
    gates = {"log_decay": closed(decay), "log_beta": None if added is None else closed(added)}
    written = memory._asdict() | gates | {"query": None}
    steps, before = non_finite(written, rows), non_finite(carry, rows - 1)
    lost = non_finite(memory.query, rows)
    times = jnp.arange(steps.shape[0], dtype=jnp.int32).reshape(-1, *[1] * (rows - 1))
    last_reset: Any = -1
    if resets is not None:
        last_reset = jax.lax.cummax(jnp.where(resets, times, -1))
    # The last step so far that was not finite; -1 for the carry, -2 for none.
    last = jax.lax.cummax(jnp.where(steps, times, jnp.where(before, -1, -2)))
    spoils = jnp.where(last >= last_reset, jnp.nan, 1)
    memory = memory._replace(query=without(lost, memory.query))
    return without(steps, memory), without(before, carry), spoils, lost
