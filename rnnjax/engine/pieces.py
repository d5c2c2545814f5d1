"""An affine recurrence in pieces side by side, and some of its steps as if they were one."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rnnjax.engine.steps import expand

Factors = list[list[jax.Array]]
"""``factors[i][j]`` multiplies leaf ``j`` of the state before in leaf ``i`` of the new one."""


def times(factors: Factors, state: list[jax.Array]) -> list[jax.Array]:
    """The state before, as the factors of a step take it over."""
    return [functools.reduce(jnp.add, map(jnp.multiply, row, state)) for row in factors]


@jax.custom_jvp
def _moved(factor: jax.Array, leaf: jax.Array) -> jax.Array:
    """The product, where zeros stay zeros whatever the factor is.

    It is infinite where many factors above 1 are multiplied, and a NaN where an input is one.
    """
    return jnp.where(leaf == 0, 0, factor * leaf)


@_moved.defjvp
def _moved_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    """That of the product: a state that is zero may still change."""
    (factor, leaf), (d_factor, d_leaf) = primals, tangents
    return _moved(factor, leaf), factor * d_leaf + d_factor * leaf


def plus(one: list[jax.Array], other: list[jax.Array]) -> list[jax.Array]:
    """Leaf by leaf."""
    return [a + b for a, b in zip(one, other, strict=True)]


def without(resets: jax.Array | None, values: Any) -> Any:
    """What enters a step, of which nothing does where a row begins anew: not even a NaN."""
    if resets is None:
        return values
    return jax.tree.map(lambda leaf: jnp.where(expand(resets, leaf), 0, leaf), values)


Piece = tuple[Factors, list[jax.Array], jax.Array | None]
"""What some steps do as if they were one: its factors, its constants, and where it begins anew."""


def one_step(state: list[jax.Array], at: Piece) -> list[jax.Array]:
    """The state behind a step, or behind a piece of them."""
    factors, constants, resets = at
    given = without(resets, state)
    moved = [functools.reduce(jnp.add, map(_moved, row, given)) for row in factors]
    return plus([m.astype(b.dtype) for m, b in zip(moved, constants, strict=True)], constants)


def keeping_before(state: list[jax.Array], at: Piece) -> Any:
    """The same, in a scan that leaves behind the state before each."""
    return one_step(state, at), state


def transposed(factors: Factors) -> Factors:
    """Of the matrix that they are for each unit."""
    return [list(column) for column in zip(*factors, strict=True)]


def one_behind(one: Piece, at: Piece) -> Piece:
    """Two steps as one. What begins anew in it has no factors, and so no mark is needed."""
    factors, constants, resets = one
    nothing = [jnp.zeros_like(b) for b in constants]
    columns = [one_step(column, (at[0], nothing, at[2])) for column in transposed(factors)]
    if at[2] is not None:
        resets = at[2] if resets is None else resets | at[2]
    return transposed(columns), one_step(constants, at), resets


def _as_one(each: Piece, reverse: bool) -> Piece:
    """All steps as one, along the first axis."""
    _, constants, resets = each
    nothing = [jnp.zeros_like(b[0]) for b in constants]
    eye = [[jnp.full_like(b, float(i == j)) for j in range(len(nothing))]
           for i, b in enumerate(nothing)]  # fmt: skip

    def onwards(one: Any, at: Piece) -> Any:
        return one_behind((*one, None), at)[:2], None

    (whole, ends), _ = jax.lax.scan(onwards, (eye, nothing), each, reverse=reverse)
    return whole, ends, None if resets is None else resets.any(axis=0)


class Pieces(NamedTuple):
    """The recurrence in pieces side by side.

    The ends first and then the whole again from the true beginnings: to keep the products of all
    factors of a piece, and mend its states by them, takes as long and a quarter more memory.

    Attributes:
        each: of each step, ``(steps of a piece, pieces, ...)``.
        ends: of each piece as one step, ``(pieces, ...)``.
        num_steps: how many there are.
        reverse: whether the last step is the first.
    """

    each: Piece
    ends: Piece
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
    ) -> "Pieces":
        """In pieces of so many steps."""
        num_steps = constants[0].shape[0]
        pieces = -(-num_steps // length)

        def cut(values: jax.Array, instead: float = 0) -> jax.Array:
            spare = pieces * length - num_steps
            if spare:  # steps behind the end, which change nothing
                rest = jnp.full_like(values, instead, shape=(spare, *values.shape[1:]))
                values = jnp.concatenate([values, rest])
            return values.reshape(pieces, length, *values.shape[1:]).swapaxes(0, 1)

        rows = [[cut(leaf, float(i == j)) for j, leaf in enumerate(row)]
                for i, row in enumerate(factors)]  # fmt: skip
        each = rows, [cut(b) for b in constants], None if resets is None else cut(resets)
        return cls(each, _as_one(each, reverse), num_steps, reverse)

    def as_one(self) -> Piece:
        """All steps as one."""
        return _as_one(self.ends, self.reverse)

    def states(self, before: list[jax.Array]) -> list[jax.Array]:
        """Those behind all steps, from the one before the first."""

        def onwards(state: list[jax.Array], at: Piece) -> Any:
            new = one_step(state, at)
            return new, new

        scan = functools.partial(jax.lax.scan, reverse=self.reverse)
        starts = scan(keeping_before, before, self.ends)[1]
        states = scan(onwards, starts, self.each)[1]
        steps = len(starts[0]) * len(states[0])  # which -1 does not find without any row
        return [
            leaf.swapaxes(0, 1).reshape(steps, *leaf.shape[2:])[: self.num_steps] for leaf in states
        ]


def in_pieces(
    factors: Factors, constants: list[jax.Array], resets: jax.Array | None, length: int
) -> list[jax.Array]:
    """The recurrence from zeros, in pieces of so many steps side by side."""
    zeros = [jnp.zeros_like(b[0]) for b in constants]
    return Pieces.of(factors, constants, resets, length).states(zeros)


def piece_length(num_steps: int, wished: int | None) -> int:
    """The steps of each piece of a sequence: as wished, or about the square root of all steps.

    >>> piece_length(100, None), piece_length(96, None), piece_length(97, None), piece_length(9, 4)
    (10, 8, 9, 4)
    """
    if wished is not None:
        return min(num_steps, wished)
    root = max(1, math.isqrt(num_steps))
    divisors = [d for d in range(1, num_steps + 1) if num_steps % d == 0]
    near = min(divisors, key=lambda d: abs(math.log(d / root)))
    # What is no divisor is filled up, which costs a copy of everything.
    return near if root / 2 <= near <= 2 * root else root
