"""An affine recurrence in blocks side by side, and some of its steps as if they were one."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rnnjax.cells.base import Carry
from rnnjax.engine.core.masking import StepMarks, without
from rnnjax.engine.fused.loops import LoopArgs, by_columns

Factors = list[list[jax.Array]]
"""``factors[i][j]`` multiplies leaf ``j`` of the state before in leaf ``i`` of the new one."""


def times(factors: Factors, state: list[jax.Array]) -> list[jax.Array]:
    """The state before, as the factors of a step take it over."""
    return [functools.reduce(jnp.add, map(jnp.multiply, row, state)) for row in factors]


@jax.custom_jvp
def _moved(factor: jax.Array, leaf: jax.Array) -> jax.Array:
    """The product, where zeros stay zeros whatever the factor is.

    That of many factors above 1 is soon infinite, and zero times it would be a NaN.
    """
    return jnp.where(leaf == 0, 0, factor * leaf)


@_moved.defjvp
def _moved_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    """Differentiate the product itself: a state that is zero may still change."""
    (factor, leaf), (d_factor, d_leaf) = primals, tangents
    return _moved(factor, leaf), factor * d_leaf + d_factor * leaf


def plus(one: list[jax.Array], other: list[jax.Array]) -> list[jax.Array]:
    """Add leaf by leaf."""
    return [a + b for a, b in zip(one, other, strict=True)]


Block = tuple[Factors, list[jax.Array], jax.Array | None]
"""What some steps do as if they were one: its factors, its constants, and where it begins anew."""


def one_step(state: list[jax.Array], at: Block) -> list[jax.Array]:
    """The state after a step, or after a block of them."""
    factors, constants, resets = at
    given = without(resets, state)
    moved = [functools.reduce(jnp.add, map(_moved, row, given)) for row in factors]
    return plus([m.astype(b.dtype) for m, b in zip(moved, constants, strict=True)], constants)


def with_previous(state: list[jax.Array], at: Block) -> Any:
    """Do as `one_step`, in a scan that returns the state before each."""
    return one_step(state, at), state


def block_carries(before: list[jax.Array], ends: Block, reverse: bool = False) -> list[jax.Array]:
    """The state before each block, from the one before all.

    Four blocks at a turn: such a turn takes longer to begin than to run.
    """
    return jax.lax.scan(with_previous, before, ends, reverse=reverse, unroll=4)[1]


def transposed(factors: Factors) -> Factors:
    """Transpose the matrix that the factors are for each unit."""
    return [list(column) for column in zip(*factors, strict=True)]


Body = Callable[[list[jax.Array], Block], tuple[list[jax.Array], list[jax.Array]]]
"""A step in a loop: the state that it hands on, and the one that it shows."""


def onwards(state: list[jax.Array], at: Block) -> tuple[list[jax.Array], list[jax.Array]]:
    """The state after a step."""
    new = one_step(state, at)
    return new, new


def backwards(state: list[jax.Array], at: Block) -> tuple[list[jax.Array], list[jax.Array]]:
    """Return the cotangent that leaves a step, and its total there with the constants."""
    factors, constants, resets = at
    total = plus(state, constants)
    nothing = [jnp.zeros_like(b) for b in constants]
    return without(resets, one_step(total, (factors, nothing, None))), total


def _compose(body: Body, one: tuple[Factors, list[jax.Array]], at: Block) -> Any:
    """A block and one more step, as one block. What a reset cuts off has no factors."""
    factors, constants = one
    nothing = [jnp.zeros_like(b) for b in constants]
    columns = [body(column, (at[0], nothing, at[2]))[0] for column in transposed(factors)]
    return transposed(columns), body(constants, at)[0]


def _no_step(like: list[jax.Array]) -> tuple[Factors, list[jax.Array]]:
    """Return a step that changes nothing."""
    eye = [[jnp.full_like(b, float(i == j)) for j in range(len(like))] for i, b in enumerate(like)]
    return eye, [jnp.zeros_like(b) for b in like]


def split_blocks(leaf: jax.Array, length: int, instead: float = 0) -> jax.Array:
    """An array over time as ``(blocks, length, ...)``, the last filled up with another value."""
    blocks = -(-leaf.shape[0] // length)
    spare = blocks * length - leaf.shape[0]
    if spare:
        rest = jnp.full_like(leaf, instead, shape=(spare, *leaf.shape[1:]))
        leaf = jnp.concatenate([leaf, rest])
    return leaf.reshape(blocks, length, *leaf.shape[1:])


def pad_blocks(xs: Any, per_step: StepMarks, length: int) -> tuple[Any, StepMarks]:
    """Inputs and marks padded with masked steps, up to the end of the last block.

    The inputs there repeat the last step: at zeros, which nobody gave, a slope may be infinite.
    """
    num_steps = jax.tree.leaves(xs)[0].shape[0]
    spare = -num_steps % length
    if not spare:
        return xs, per_step
    if per_step.valid is None:
        per_step = per_step._replace(valid=jnp.ones(num_steps, bool))

    def again(leaf: jax.Array) -> jax.Array:
        rest = jnp.broadcast_to(leaf[-1:], (spare, *leaf.shape[1:]))
        return jnp.concatenate([leaf, rest])

    return jax.tree.map(again, xs), per_step


def blocked(tree: Any, length: int, axis: int) -> Any:
    """Arrays over time split into blocks, whose steps become this axis, 0 or 1."""

    def cut(leaf: jax.Array) -> jax.Array:
        leaf = split_blocks(leaf, length)
        return leaf if axis else leaf.swapaxes(0, 1)

    return jax.tree.map(cut, tree)


def merge_blocks(leaf: jax.Array, axis: int) -> jax.Array:
    """An array split by `blocked` as one over time again."""
    length, number = leaf.shape[:2]
    leaf = leaf if axis else leaf.swapaxes(0, 1)
    return leaf.reshape(length * number, *leaf.shape[2:])


def whole(found: tuple[Carry, jax.Array], xs: Any, axis: int) -> tuple[Carry, jax.Array]:
    """The carry after the last block, and the outputs of all steps of ``xs`` in their order."""
    ends, ys = found
    num_steps = jax.tree.leaves(xs)[0].shape[0]
    return jax.tree.map(lambda leaf: leaf[-1], ends), merge_blocks(ys, axis)[:num_steps]


class Blocks(NamedTuple):
    """The recurrence in blocks side by side.

    The ends first and then the whole again from the true beginnings: to keep the products of all
    factors of a block, and mend its states by them, takes as long and a quarter more memory.

    Attributes:
        per_step: of each step, ``(blocks, steps of a block, ...)``.
        ends: of each block as one step, ``(blocks, ...)``.
        num_steps: how many there are.
        reverse: whether it is the transpose, from the last step to the first.
    """

    per_step: Block
    ends: Block
    num_steps: int
    reverse: bool

    @classmethod
    def of(
        cls,
        factors: Factors,
        constants: list[jax.Array],
        resets: jax.Array | None,
        length: int,
        reverse: bool = False,
    ) -> "Blocks":
        """Split a recurrence into blocks of so many steps."""
        num_steps = constants[0].shape[0]
        cut = functools.partial(split_blocks, length=length)
        # Steps after the end change nothing.
        rows = [[cut(leaf, instead=float(i == j)) for j, leaf in enumerate(row)]
                for i, row in enumerate(transposed(factors) if reverse else factors)]  # fmt: skip
        cuts = None if resets is None else cut(resets)
        per_step = rows, [cut(b) for b in constants], cuts
        body = _body(reverse)

        def compose(one: Any, first: jax.Array, others: Any) -> Any:
            return _compose(body, one, _at(first, others)), None, None

        begin = _no_step([b[:, 0] for b in per_step[1]])
        whole, last = by_columns(LoopArgs(compose, begin, *_parts(per_step), reverse, False))[0]
        ends = whole, last, None if cuts is None else cuts.any(axis=1)
        return cls(per_step, ends, num_steps, reverse)

    def as_one(self) -> Block:
        """Return all steps as one."""
        begin = _no_step([b[0] for b in self.ends[1]])
        (whole, last), _ = jax.lax.scan(
            lambda one, at: (_compose(onwards, one, at), None),
            begin,
            self.ends,
            reverse=self.reverse,
        )
        resets = self.ends[2]
        return whole, last, None if resets is None else resets.any(axis=0)

    def states(self, before: list[jax.Array]) -> tuple[list[jax.Array], list[jax.Array]]:
        """Return the states of all steps and the last one, from the state before the first."""
        body = _body(self.reverse)

        def step(state: list[jax.Array], first: jax.Array, others: Any) -> Any:
            new, (first, *rest) = body(state, _at(first, others))
            return new, first, rest

        starts = block_carries(before, self.ends, self.reverse)
        args = LoopArgs(step, starts, *_parts(self.per_step), self.reverse, False)
        ends, first, rest = by_columns(args)
        steps = first.shape[0] * first.shape[1]  # which -1 does not find without any row
        emitted = [
            leaf.reshape(steps, *leaf.shape[2:])[: self.num_steps] for leaf in (first, *rest)
        ]
        return emitted, [leaf[0 if self.reverse else -1] for leaf in ends]


def _body(reverse: bool) -> Body:
    return backwards if reverse else onwards


def _parts(per_step: Block) -> tuple[jax.Array, Any]:
    """Split a block as a loop reads it, which writes the states over the first constants."""
    factors, (first, *rest), resets = per_step
    return first, (factors, rest, resets)


def _at(first: jax.Array, others: Any) -> Block:
    """The step of these parts."""
    factors, rest, resets = others
    return factors, [first, *rest], resets


def solve_in_blocks(
    factors: Factors, constants: list[jax.Array], resets: jax.Array | None, length: int
) -> list[jax.Array]:
    """The recurrence from zeros, in blocks of so many steps side by side."""
    zeros = [jnp.zeros_like(b[0]) for b in constants]
    return Blocks.of(factors, constants, resets, length).states(zeros)[0]


def block_length(num_steps: int, requested: int | None) -> int:
    """The steps of each block of a sequence: as wished, or about the root of half of all steps.

    >>> block_length(200, None), block_length(192, None), block_length(194, None)
    (10, 8, 9)
    >>> block_length(9, 4)
    4
    """
    if requested is not None:
        return min(num_steps, requested)
    length = max(1, math.isqrt(num_steps // 2))
    divisors = [d for d in range(1, num_steps + 1) if num_steps % d == 0]
    near = min(divisors, key=lambda d: abs(math.log(d / length)))
    # What is no divisor is padded, which costs a copy of everything.
    return near if length / 2 <= near <= 2 * length else length
