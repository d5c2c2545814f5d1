"""Affine recurrences: what multiplies the state and what is added, and the states of all steps."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rnnjax.cells.devices import HERE, Along
from rnnjax.engine.primitive import Function
from rnnjax.engine.steps import any_of, expand

Factors = list[list[jax.Array]]
"""``factors[i][j]`` multiplies leaf ``j`` of the state before in leaf ``i`` of the new one."""


def affine(step: Any, at: Any) -> tuple[list[jax.Array], Factors]:
    """The constants and factors of a function that is affine, and takes each unit by itself."""
    leaves, tree = jax.tree.flatten(at)
    columns: list[list[jax.Array]] = []
    new = at
    for j in range(len(leaves)):
        ones = [jnp.full_like(leaf, float(i == j)) for i, leaf in enumerate(leaves)]
        new, column = jax.jvp(step, (at,), (jax.tree.unflatten(tree, ones),))
        columns.append(jax.tree.leaves(column))
    return jax.tree.leaves(new), [[column[i] for column in columns] for i in range(len(leaves))]


def times(factors: Factors, state: list[jax.Array]) -> list[jax.Array]:
    """The state before, as the factors of a step take it over."""
    return [functools.reduce(jnp.add, map(jnp.multiply, row, state)) for row in factors]


def _times_where_any(factors: Factors, state: list[jax.Array]) -> list[jax.Array]:
    """The same, where zeros stay zeros whatever the factors are: NaN times nothing is nothing."""

    def product(factor: jax.Array, leaf: jax.Array) -> jax.Array:
        return jnp.where(leaf == 0, 0, factor * leaf)

    return [functools.reduce(jnp.add, map(product, row, state)) for row in factors]


def plus(one: list[jax.Array], other: list[jax.Array]) -> list[jax.Array]:
    """Leaf by leaf."""
    return [a + b for a, b in zip(one, other, strict=True)]


def later(values: jax.Array) -> jax.Array:
    """Each step's value at the step behind it; zeros at the first."""
    return jnp.concatenate([jnp.zeros_like(values[:1]), values[:-1]])


def _of_next(values: jax.Array, last: float = 0) -> jax.Array:
    """At each step the value of the step behind it, and something else at the last."""
    return jnp.concatenate([values[1:], jnp.full_like(values[:1], last)])


def _without(resets: jax.Array | None, values: Any) -> Any:
    """What enters a step, of which nothing does where a row begins anew: not even a NaN."""
    if resets is None:
        return values
    return jax.tree.map(lambda leaf: jnp.where(expand(resets, leaf), 0, leaf), values)


@dataclasses.dataclass(frozen=True)
class Solved(Function):
    """The states of ``s_t = A_t s_(t-1) + b_t``: the solution of ``(I - A shift) s = b``.

    Its arguments are the constants, the factors, the state before the first step and the resets.
    Its result are the states, the one before those here, and the last of all.

    Args:
        length: of the pieces.
        along: the devices over which the steps are divided.
        reverse: whether the last of them has the first steps.
    """

    length: int
    along: Along = HERE
    reverse: bool = False

    def may_cross(self, axis: Any) -> bool:
        """Between those devices."""
        return axis == self.along.name

    def plain(
        self, constants: list[jax.Array], factors: Factors, start: list[jax.Array], resets: Any
    ) -> Any:
        """As a linear solve, of which JAX knows all derivatives; over devices as it runs."""
        if self.along.name is not None:
            return self.run("any", constants, factors, start, resets)

        def times_matrix(states: list[jax.Array]) -> list[jax.Array]:
            moved = times(factors, _without(resets, [later(s) for s in states]))
            return [s - m.astype(s.dtype) for s, m in zip(states, moved, strict=True)]

        solved: list[jax.Array] = jax.lax.custom_linear_solve(
            times_matrix,
            _all_changing(_with_start(constants, factors, start, resets)),
            lambda _, given: in_pieces(factors, given, resets, self.length),
            lambda _, given: self.backwards(factors, given, resets),
        )
        return solved, start, [h[-1] for h in solved]

    def run(self, platform: str, *args: Any) -> Any:
        """The pieces."""
        constants, factors, start, resets = args
        pieces = Pieces.of(factors, constants, resets, self.length)
        before, last = self._over_devices(pieces.as_one, start, self.reverse)
        states = pieces.states(before)
        return states, before, [h[-1] for h in states] if last is None else last

    def forward(self, platform: str, *args: Any) -> tuple[Any, Any]:
        """The states are all that is kept."""
        out = self.run(platform, *args)
        return out, out[:2]

    def backward(self, platform: str, args: Any, kept: Any, d: Any, wanted: Any) -> Any:
        """What comes back to each step, and from it each step's own gradients."""
        (_, factors, _, resets), (states, before), (d_states, d_before, d_last) = args, kept, d
        pieces = self._backwards(factors, d_states, resets)
        # What goes back out of the first step here, to the device before or to the start.
        first = _transposed([[leaf[0] for leaf in row] for row in factors])
        leave = first, d_before, None if resets is None else resets[0]

        def as_one() -> Piece:
            return _one_behind(pieces.as_one(), leave)

        entering, d_start = self._over_devices(as_one, d_last, not self.reverse)
        back = pieces.states(entering)
        if d_start is None:
            d_start = _one_step([g[0] for g in back], leave)
        else:
            d_start = self.along.only_first(d_start, self.reverse)
        # Where nothing comes back, the state may be anything, a NaN too.
        reached = any_of(back, back[0].ndim)
        before = [later(h).at[0].set(s) for h, s in zip(states, before, strict=True)]
        before = [jnp.where(reached, h, 0) for h in _without(resets, before)]
        d_factors = [[(g * h).astype(a.dtype) for h, a in zip(before, row, strict=True)]
                     for g, row in zip(back, factors, strict=True)]  # fmt: skip
        return back, d_factors, d_start, jax.tree.map(lambda _: None, resets)

    def backwards(self, factors: Factors, given: list[jax.Array], resets: Any) -> list[jax.Array]:
        """The transpose: the same recurrence from the last step to the first."""
        return self._backwards(factors, given, resets).states([jnp.zeros_like(g[0]) for g in given])

    def _backwards(self, factors: Factors, given: list[jax.Array], resets: Any) -> "Pieces":
        # What comes back to a step came out of the one behind it, and to the last as it is.
        across = [
            [_of_next(leaf, float(i == j)) for j, leaf in enumerate(row)]
            for i, row in enumerate(_transposed(factors))
        ]
        cuts = None if resets is None else _of_next(resets)
        return Pieces.of(across, given, cuts, self.length, reverse=True)

    def _over_devices(
        self, as_one: Callable[[], "Piece"], start: list[jax.Array], reverse: bool
    ) -> tuple[list[jax.Array], list[jax.Array] | None]:
        """The state before the steps here, and the last of all devices; None if there is one.

        One array of each device goes to all: what its steps make of the state before them.
        """
        if self.along.name is None:
            return start, None
        every, starts = self.along.gathered((as_one(), start))
        first = [leaf[-1 if reverse else 0] for leaf in starts]
        last, befores = jax.lax.scan(_keeping_before, first, every, reverse=reverse)
        return self.along.here(befores), last


@jax.custom_jvp
def _all_changing(leaves: list[jax.Array]) -> list[jax.Array]:
    """The same, with zeros for a tangent where there is none.

    JAX's rule for a linear solve fails where some parts of the right side change and others do not
    (jax 0.10.2), as of a state that only takes over what another one was.
    """
    return leaves


_all_changing.defjvp(lambda primals, tangents: (primals[0], tangents[0]))


def _with_start(
    constants: list[jax.Array], factors: Factors, start: list[jax.Array], resets: Any
) -> list[jax.Array]:
    """The constants, the first of which has the state before it in it."""
    first = [[leaf[0] for leaf in row] for row in factors]
    begun = times(first, _without(None if resets is None else resets[0], start))
    return [b.at[0].add(f.astype(b.dtype)) for b, f in zip(constants, begun, strict=True)]


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


Piece = tuple[Factors, list[jax.Array], jax.Array | None]
"""What some steps do as if they were one: its factors, its constants, and where it begins anew."""


def _one_step(state: list[jax.Array], at: Piece) -> list[jax.Array]:
    """The state behind a step, or behind a piece of them."""
    factors, constants, resets = at
    product = times if resets is None else _times_where_any
    moved = product(factors, _without(resets, state))
    return plus([m.astype(b.dtype) for m, b in zip(moved, constants, strict=True)], constants)


def _keeping_before(state: list[jax.Array], at: Piece) -> Any:
    return _one_step(state, at), state


def _transposed(factors: Factors) -> Factors:
    return [list(column) for column in zip(*factors, strict=True)]


def _one_behind(one: Piece, at: Piece) -> Piece:
    """Two steps as one. What begins anew in it has no factors, and so no mark is needed."""
    factors, constants, resets = one
    nothing = [jnp.zeros_like(b) for b in constants]
    columns = [_one_step(column, (at[0], nothing, at[2])) for column in _transposed(factors)]
    if at[2] is not None:
        resets = at[2] if resets is None else resets | at[2]
    return _transposed(columns), _one_step(constants, at), resets


def _as_one(each: Piece, reverse: bool) -> Piece:
    """All steps as one, along the first axis."""
    _, constants, resets = each
    nothing = [jnp.zeros_like(b[0]) for b in constants]
    eye = [[jnp.full_like(b, float(i == j)) for j in range(len(nothing))]
           for i, b in enumerate(nothing)]  # fmt: skip

    def onwards(one: Any, at: Piece) -> Any:
        return _one_behind((*one, None), at)[:2], None

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
            new = _one_step(state, at)
            return new, new

        scan = functools.partial(jax.lax.scan, reverse=self.reverse)
        starts = scan(_keeping_before, before, self.ends)[1]
        states = scan(onwards, starts, self.each)[1]
        return [
            leaf.swapaxes(0, 1).reshape(-1, *leaf.shape[2:])[: self.num_steps] for leaf in states
        ]


def in_pieces(
    factors: Factors, constants: list[jax.Array], resets: jax.Array | None, length: int
) -> list[jax.Array]:
    """The recurrence from zeros, in pieces of so many steps side by side."""
    zeros = [jnp.zeros_like(b[0]) for b in constants]
    return Pieces.of(factors, constants, resets, length).states(zeros)
