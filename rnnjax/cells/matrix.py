"""States with one matrix per head, which the inputs write and read."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rnnjax.cells.declarations import exportable
from rnnjax.checks import state_type
from rnnjax.errors import InvalidInputError


@exportable
class MatrixCarry(NamedTuple):
    """A matrix state: ``memory (*batch, heads, value_size, key_size)``."""

    memory: jax.Array


@exportable
class StabilizedCarry(NamedTuple):
    """A memory divided by the exponential of ``stabilizer (*batch, heads)``."""

    memory: jax.Array
    stabilizer: jax.Array


@exportable
class Memory(NamedTuple):
    r"""The write and the read of one step for each head, as `rnnjax.Cell.memory` declares them.

    .. math::
        S' = S \, (A - r w^\top) + \beta \, v k^\top, \qquad \text{read } S' q

    with :math:`A` diagonal or a scalar. With ``erase`` it is :math:`S' = S A \, (I - (e \odot k) \,
    k^\top) + \beta \, v k^\top`: what is removed lies at the key that is written. Everything is
    computed from the inputs alone.

    Each of the ``heads`` of the values has a memory. Keys may have fewer, ``key_heads``, a divisor
    of these: head ``h`` then uses key head ``h // (heads / key_heads)``. Queries and what is
    removed may have as few. The products of queries and keys are made once for all heads of a
    group.

    Attributes:
        query: :math:`q` ``(*batch, heads, key_size)``.
        key: :math:`k` ``(*batch, key_heads, key_size)``.
        value: :math:`v` ``(*batch, heads, value_size)``.
        log_decay: :math:`\log A`, ``-inf`` to forget all: ``(*batch, heads)``, or ``(*batch, heads,
            key_size)`` for one decay per key entry.
        beta: :math:`\beta` ``(*batch, heads)``; None for 1.
        erase: :math:`e` ``(*batch, heads)`` or ``(*batch, heads, key_size)``: the share of the
            key's old value that is erased first (:math:`\beta` in the delta rule); None for 0.
        log_beta: :math:`\log \beta` instead of ``beta``, of any magnitude, also ``-inf``. The carry
            must be a `StabilizedCarry`, whose stabilizer :math:`m' = \max(\log A + m, \log \beta)`
            bounds the exponentials, and ``log_decay`` must be ``(*batch, heads)``.
        removal_query: :math:`r` ``(*batch, heads, key_size)``, where the old memory is read; with
            ``removal_key``, and instead of ``erase``.
        removal_key: :math:`w`, of that shape, from where what was read is taken away.
    """

    query: jax.Array
    key: jax.Array
    value: jax.Array
    log_decay: jax.Array
    beta: jax.Array | None = None
    erase: jax.Array | None = None
    log_beta: jax.Array | None = None
    removal_query: jax.Array | None = None
    removal_key: jax.Array | None = None

    @property
    def by_key(self) -> bool:
        """Whether each key entry has its own decay."""
        return self.log_decay.ndim == self.key.ndim

    @property
    def groups(self) -> int:
        """How many groups the axis of heads is split into, each with a key; 0 if it is not split.

        A key for each head needs no axis of groups, and one for all is an axis of size 1. Loops
        over arrays with an axis more of that size take up to four times as long on a CPU.
        """
        heads, key_heads = self.value.shape[-2], self.key.shape[-2]
        return key_heads if 1 < key_heads < heads else 0

    def grouped(self) -> "Memory":
        """Split the axis of heads into ``(groups, heads of a group)``, where there are groups.

        The products of what a group shares with what each of its heads has are then those of
        matrices with a broadcast axis.
        """
        axis = self.key.ndim - 2
        return jax.tree.map(lambda leaf: in_groups(leaf, axis, self.groups), self)

    def widened(self, state: jax.Array) -> "Memory":
        """Cast all arrays to the type in which a state is computed, with finite decays."""
        removal = self.removal_query is not None, self.removal_key is not None
        if removal[0] != removal[1] or (removal[0] and self.erase is not None):
            given = ", ".join(n for n, x in self._asdict().items() if x is not None)
            raise InvalidInputError(
                "memory must have removal_query and removal_key both or neither, and not erase "
                f"with them, but has {given}; leave one out"
            )
        dtype = state_type(self, state)
        memory = jax.tree.map(lambda leaf: leaf.astype(dtype), self)
        # Zero times minus infinity is NaN, in the sums of decays over a chunk. The exponential of
        # this number is zero too, in all types, and sums of it over any sequence are finite.
        decay, lowest = memory.log_decay, -1e6
        real = jnp.maximum(decay.real, lowest)
        decay = jax.lax.complex(real, decay.imag) if jnp.iscomplexobj(decay) else real
        return memory._replace(log_decay=decay)

    def stabilized(self, before: jax.Array, after: jax.Array) -> "Memory":
        """Rescale the step for a memory divided by the exponentials of these stabilizers."""
        log_beta = self.log_beta
        assert log_beta is not None
        # With S = e^m M for the stored M, S' = A S + beta v k^T becomes
        #     M' = A e^(m - m') M + beta e^(-m') v k^T.
        # Both factors are at most 1, as m' = max(log A + m, log beta), and one of them is 1. What
        # is removed was read from S too: its factor e^(m - m') may exceed 1, up to 1 / A.
        beta, removal_key = jnp.exp(log_beta - after), self.removal_key
        if removal_key is not None:
            removal_key = jnp.exp(before - after)[..., None] * removal_key
        log_decay = self.log_decay + before - after
        return self._replace(log_decay=log_decay, beta=beta, log_beta=None, removal_key=removal_key)


def in_groups(leaf: jax.Array, axis: int, groups: int) -> jax.Array:
    """Split an axis into ``(groups, rest)``, if there are groups."""
    if not groups:
        return leaf
    before, size, after = leaf.shape[:axis], leaf.shape[axis], leaf.shape[axis + 1 :]
    return leaf.reshape(*before, groups, size // groups, *after)


def remembered(memory: Memory, carry: Any) -> tuple[Any, jax.Array, jax.Array | None]:
    """Return one step's new carry, read ``(*batch, heads, value_size)``, and stabilizer or None."""
    shape, axis, groups = carry.memory.shape, memory.key.ndim - 2, memory.groups
    memory, stabilizer = memory.widened(carry.memory).grouped(), None
    if memory.log_beta is not None:
        before = in_groups(carry.stabilizer, axis, groups)
        stabilizer = jnp.maximum(memory.log_decay + before, memory.log_beta)
        memory = memory.stabilized(before, stabilizer)
        stabilizer = stabilizer.reshape(carry.stabilizer.shape)
    query, key = memory.query[..., None, :], memory.key[..., None, :]
    # A multiplies from the right, and so scales the last axis, over which S k and S q are sums.
    decay = memory.log_decay if memory.by_key else memory.log_decay[..., None]
    old = in_groups(carry.memory, axis, groups)
    state = jnp.exp(decay)[..., None, :] * old
    written = memory.value if memory.beta is None else memory.beta[..., None] * memory.value
    if memory.removal_query is not None and memory.removal_key is not None:
        # Read from the state before its decay: S (A - r w^T) = S A - (S r) w^T.
        removed = (old * memory.removal_query[..., None, :]).sum(-1, keepdims=True)
        state = state - removed * memory.removal_key[..., None, :]
    if memory.erase is not None:
        # Read after the decay: S A (I - (e k) k^T) + beta v k^T = S A + (beta v - S A (e k)) k^T,
        # so that what is erased joins what is written.
        erase = memory.erase
        if erase.ndim == memory.key.ndim:
            written = written - (state * (erase[..., None, :] * key)).sum(-1)
        else:  # a product fewer for each key
            written = written - erase[..., None] * (state * key).sum(-1)
    state = state + written[..., None] * key
    read, state = (state * query).sum(-1).reshape(shape[:-1]), state.reshape(shape)
    new = MatrixCarry(state) if stabilizer is None else StabilizedCarry(state, stabilizer)
    return new, read, stabilizer


def joined(read: jax.Array) -> jax.Array:
    """Reshape ``(..., heads, size)`` to ``(..., heads * size)``, also without rows."""
    # JAX infers no -1 for an array of no numbers.
    return read.reshape(*read.shape[:-2], read.shape[-2] * read.shape[-1])
