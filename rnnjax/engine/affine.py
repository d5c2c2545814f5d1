"""Affine recurrences: what multiplies the state and what is added, and the states of all steps."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

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


def _of_next(values: jax.Array) -> jax.Array:
    """At each step the value of the step behind it; zeros at the last."""
    return jnp.concatenate([values[1:], jnp.zeros_like(values[:1])])


def _without(resets: jax.Array | None, values: Any) -> Any:
    """What enters a step, of which nothing does where a row begins anew: not even a NaN."""
    if resets is None:
        return values
    return jax.tree.map(lambda leaf: jnp.where(expand(resets, leaf), 0, leaf), values)


@dataclasses.dataclass(frozen=True)
class Solved(Function):
    """The states of ``s_t = A_t s_(t-1) + b_t``: the solution of ``(I - A shift) s = b``.

    Its arguments are the constants, the factors, the state before the first step and the resets.
    """

    length: int

    def plain(
        self, constants: list[jax.Array], factors: Factors, start: list[jax.Array], resets: Any
    ) -> list[jax.Array]:
        """As a linear solve, of which JAX knows all derivatives."""

        def times_matrix(states: list[jax.Array]) -> list[jax.Array]:
            moved = times(factors, _without(resets, [later(s) for s in states]))
            return [s - m.astype(s.dtype) for s, m in zip(states, moved, strict=True)]

        solved: list[jax.Array] = jax.lax.custom_linear_solve(
            times_matrix,
            _all_changing(_with_start(constants, factors, start, resets)),
            lambda _, given: in_pieces(factors, given, resets, self.length),
            lambda _, given: self.backwards(factors, given, resets),
        )
        return solved

    def run(self, platform: str, *args: Any) -> list[jax.Array]:
        """The pieces."""
        constants, factors, start, resets = args
        begun = _with_start(constants, factors, start, resets)
        return in_pieces(factors, begun, resets, self.length)

    def forward(self, platform: str, *args: Any) -> tuple[Any, Any]:
        """The states are all that is kept."""
        states = self.run(platform, *args)
        return states, states

    def backward(self, platform: str, args: Any, kept: Any, d: Any, wanted: Any) -> Any:
        """What comes back to each step, and from it each step's own gradients."""
        _, factors, start, resets = args
        back = self.backwards(factors, d, resets)
        before = [later(h).at[0].set(s) for h, s in zip(kept, start, strict=True)]
        # Where nothing comes back, the state may be anything, a NaN too.
        reached = any_of(back, back[0].ndim)
        before = [jnp.where(reached, h, 0) for h in _without(resets, before)]
        d_factors = [[(g * h).astype(a.dtype) for h, a in zip(before, row, strict=True)]
                     for g, row in zip(back, factors, strict=True)]  # fmt: skip
        first = [[row[j][0] for row in factors] for j in range(len(start))]
        d_start = _times_where_any(first, [g[0] for g in back])
        cut = None if resets is None else resets[0]
        return back, d_factors, _without(cut, d_start), jax.tree.map(lambda _: None, resets)

    def backwards(self, factors: Factors, given: list[jax.Array], resets: Any) -> list[jax.Array]:
        """The transpose: the same recurrence from the last step to the first."""
        count = range(len(given))
        # What comes back to a step came out of the one behind it.
        across = [[_of_next(factors[j][i]) for j in count] for i in count]
        cuts = None if resets is None else _of_next(resets)
        return in_pieces(across, given, cuts, self.length, reverse=True)


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


def in_pieces(
    factors: Factors,
    constants: list[jax.Array],
    resets: jax.Array | None,
    length: int,
    reverse: bool = False,
) -> list[jax.Array]:
    """The recurrence from zeros, in pieces of so many steps side by side; in reverse from the last.

    The ends first and then the whole again from the true beginnings: to keep the products of all
    factors of a piece, and mend its states by them, takes as long and a quarter more memory.
    """
    num_steps, scan = constants[0].shape[0], functools.partial(jax.lax.scan, reverse=reverse)
    pieces = -(-num_steps // length)

    def cut(values: jax.Array) -> jax.Array:
        spare = pieces * length - num_steps
        if spare:  # behind the end: nothing is read there, and in reverse it is all zeros
            rest = jnp.zeros((spare, *values.shape[1:]), values.dtype)
            values = jnp.concatenate([values, rest])
        return values.reshape(pieces, length, *values.shape[1:]).swapaxes(0, 1)

    each = jax.tree.map(cut, (factors, constants, resets))
    product = times if resets is None else _times_where_any
    nothing = [jnp.zeros_like(leaf[0]) for leaf in each[1]]
    count = range(len(nothing))

    def onwards(state: list[jax.Array], at: Any) -> Any:
        factors, constants, resets = at
        moved = product(factors, _without(resets, state))
        new = plus([m.astype(b.dtype) for m, b in zip(moved, constants, strict=True)], constants)
        return new, new

    def to_end(both: Any, at: Any) -> Any:
        columns, state = both
        moved = [product(at[0], _without(at[2], column)) for column in columns]
        columns = [
            [m.astype(c.dtype) for m, c in zip(new, old, strict=True)]
            for new, old in zip(moved, columns, strict=True)
        ]
        return (columns, onwards(state, at)[0]), None

    eye = [[jnp.full_like(nothing[i], float(i == j)) for i in count] for j in count]
    (columns, ends), _ = scan(to_end, (eye, nothing), each)
    whole = [[columns[j][i] for j in count] for i in count]

    def over_piece(state: list[jax.Array], at: Any) -> Any:
        return onwards(state, at)[0], state

    # Nothing comes through a piece with a reset in it.
    within = None if resets is None else each[2].any(axis=0)
    starts = scan(over_piece, [leaf[0] for leaf in nothing], (whole, ends, within))[1]
    states = scan(onwards, starts, each)[1]
    return [
        leaf.swapaxes(0, 1).reshape(pieces * length, *leaf.shape[2:])[:num_steps] for leaf in states
    ]
