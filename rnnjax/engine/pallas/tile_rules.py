"""Rules that evaluate the equations of a step's jaxpr on tiles."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from rnnjax.engine.pallas.interpreter import bound
from rnnjax.engine.pallas.tiles import Index, Lazy, Tiled, Tiles, UntiledError

# Elementwise primitives.
_NAMES = (
    "abs add add_any and cbrt ceil clamp convert_element_type copy cos div eq erf erf_inv exp exp2 "
    "expm1 floor ge gt integer_pow is_finite le log log1p logistic lt max min mul ne neg not or "
    "pow reduce_precision rem round rsqrt select_n sign sin sqrt square sub tan tanh xor"
)
_ELEMENTWISE = frozenset(_NAMES.split())


def _part(tiles: Tiles, x: Tiled, axis: int, start: int, size: int) -> Tiled:
    """Slice an array along one axis."""
    if x.shape[axis] == size:
        return x
    shape = (*x.shape[:axis], size, *x.shape[axis + 1 :])
    first = tiles.first(x.shape[axis], start, size)
    return Tiled(shape, Lazy(lambda i: x.tiles[*i[:axis], i[axis] + first, *i[axis + 1 :]]))


def _joined(tiles: Tiles, parts: Sequence[Tiled], axis: int, shape: tuple[int, ...]) -> Tiled:
    """Concatenate arrays along one axis, tile by tile."""
    found: list[tuple[Tiled, int]] = []
    start = 0
    for x in parts:
        first = tiles.first(shape[axis], start, x.shape[axis])
        found += [(x, first) for _ in tiles.pieces(x.shape[axis])]
        start += x.shape[axis]

    def tile(i: Index) -> Any:
        x, first = found[i[axis]]
        return x.tiles[*i[:axis], i[axis] - first, *i[axis + 1 :]]

    return Tiled(shape, Lazy(tile))


def _reshaped(tiles: Tiles, x: Tiled, shape: tuple[int, ...]) -> Tiled:
    """Add or drop axes that have a single tile; the order of the tiles stays."""
    before, after = list(tiles.indices(x.shape)), list(tiles.indices(shape))
    where, sizes = (
        dict(zip(after, before, strict=False)),
        [
            [[n for n in tiles.tile(of, i) if n > 1] for i in some]
            for of, some in ((x.shape, before), (shape, after))
        ],
    )
    if sizes[0] != sizes[1]:
        raise UntiledError(f"{x.shape} as {shape} is not the same tiles")
    return Tiled(shape, Lazy(lambda i: x.tiles[where[i]].reshape(tiles.tile(shape, i))))


def _concatenate(tiles: Tiles, equation: Any, shapes: Any, *xs: Tiled) -> list[Tiled]:
    return [_joined(tiles, xs, equation.params["dimension"], shapes[0])]


def _stack(tiles: Tiles, equation: Any, shapes: Any, *xs: Tiled) -> list[Tiled]:
    axis = equation.params["axis"]
    ones = [_reshaped(tiles, x, (*x.shape[:axis], 1, *x.shape[axis:])) for x in xs]
    return [_joined(tiles, ones, axis, shapes[0])]


def _unstack(tiles: Tiles, equation: Any, shapes: Any, x: Tiled) -> list[Tiled]:
    axis = equation.params["axis"]
    ones = [_part(tiles, x, axis, k, 1) for k in range(x.shape[axis])]
    return [_reshaped(tiles, one, shape) for one, shape in zip(ones, shapes, strict=True)]


def _split(tiles: Tiles, equation: Any, shapes: Any, x: Tiled) -> list[Tiled]:
    axis, sizes = equation.params["axis"], equation.params["sizes"]
    starts = itertools.accumulate(sizes, initial=0)
    return [_part(tiles, x, axis, *at) for at in zip(starts, sizes, strict=False)]


def _slice(tiles: Tiles, equation: Any, shapes: Any, x: Tiled) -> list[Tiled]:
    if set(equation.params["strides"] or [1]) != {1}:
        raise UntiledError("there is no slice of tiles with gaps")
    for axis, (start, size) in enumerate(
        zip(equation.params["start_indices"], shapes[0], strict=True)
    ):
        x = _part(tiles, x, axis, start, size)
    return [x]


def _pad(tiles: Tiles, equation: Any, shapes: Any, x: Tiled, value: Tiled) -> list[Tiled]:
    for axis, (low, high, inside) in enumerate(equation.params["padding_config"]):
        if low < 0 or high < 0 or inside:
            raise UntiledError("there is no padding of tiles with gaps")
        size, others = x.shape[axis] + low + high, (x.shape[:axis], x.shape[axis + 1 :])
        ends = [
            tiles.full(
                (*others[0], more, *others[1]), value.tiles[()], equation.outvars[0].aval.dtype
            )
            for more in (low, high)
        ]
        if low or high:
            parts = [part for part in (ends[0], x, ends[1]) if part.shape[axis]]
            x = _joined(tiles, parts, axis, (*others[0], size, *others[1]))
    return [x]


def _reshape(tiles: Tiles, equation: Any, shapes: Any, x: Tiled) -> list[Tiled]:
    if equation.params.get("dimensions") is not None and equation.primitive.name == "reshape":
        raise UntiledError("there is no reshape of tiles in another order")
    return [_reshaped(tiles, x, shapes[0])]


def _broadcast(tiles: Tiles, equation: Any, shapes: Any, x: Tiled) -> list[Tiled]:
    axes, shape = equation.params["broadcast_dimensions"], shapes[0]

    def tile(index: Index) -> Any:
        at = tuple(index[a] if n > 1 else 0 for n, a in zip(x.shape, axes, strict=True))
        size = tiles.tile(shape, index)
        return jax.lax.broadcast_in_dim(jnp.asarray(x.tiles[at]), size, axes)

    return [Tiled(shape, Lazy(tile), x.zero)]


def _transpose(tiles: Tiles, equation: Any, shapes: Any, x: Tiled) -> list[Tiled]:
    order = equation.params["permutation"]
    back = [order.index(k) for k in range(len(order))]
    turned = Lazy(lambda i: x.tiles[tuple(i[k] for k in back)].transpose(order))
    return [Tiled(shapes[0], turned)]


def _dot(tiles: Tiles, equation: Any, shapes: Any, x: Tiled, y: Tiled) -> list[Tiled]:
    (left, right), batch = equation.params["dimension_numbers"]
    if batch != ((), ()) or (len(x.shape), len(y.shape), len(left)) != (2, 2, 1):
        raise UntiledError("there is no product of tiles with more than two axes")

    size = x.shape[left[0]]
    pieces, indices = tiles.pieces(size), list(tiles.indices(shapes[0]))
    # In the order in which they are made, see `Tiles.place`.
    order = sorted(range(len(pieces)), key=lambda k: tiles.place((size,), (k,)))

    def part(index: Index, k: int) -> Any:
        both = [
            # Padding that is infinite, times zeros, would be NaN.
            tiles.masked(a.tiles[(n, k) if axis else (k, n)], pieces[k], axis, 0)
            for a, axis, n in zip((x, y), (left[0], right[0]), index, strict=True)
        ]
        return bound(equation, both)[0]

    @functools.cache
    def whole() -> dict[Index, Any]:
        found = {index: part(index, order[0]) for index in indices}
        for k in order[1:]:
            found = {index: found[index] + part(index, k) for index in indices}
        return found

    # Each warp holds all of a left operand, so of many, such as cotangents of gates, one at a time.
    if len(pieces) > len(indices):
        return [Tiled(shapes[0], Lazy(lambda index: whole()[index]))]
    return [
        Tiled(
            shapes[0],
            Lazy(lambda index: functools.reduce(jnp.add, (part(index, k) for k in order))),
        )
    ]


# For each reduction: how it joins two tiles, how it reduces an axis of one, and its identity.
_REDUCTIONS: dict[str, tuple[Any, Any, float]] = {
    "reduce_sum": (jnp.add, jnp.sum, 0),
    "reduce_max": (jnp.maximum, jnp.max, -math.inf),
    "reduce_min": (jnp.minimum, jnp.min, math.inf),
    # Triton supports it only for scalars.
    "reduce_or": (jnp.logical_or, lambda t, axis: jnp.where(t, 1.0, 0.0).max(axis) > 0, False),
    "reduce_and": (jnp.logical_and, lambda t, axis: jnp.where(t, 1.0, 0.0).min(axis) > 0, True),
}


def _reduce(tiles: Tiles, equation: Any, shapes: Any, x: Tiled) -> list[Tiled]:
    join, along, nothing = _REDUCTIONS[equation.primitive.name]

    def reduced(x: Tiled, axis: int) -> Tiled:
        def tile(i: Index) -> Any:
            parts = [
                along(tiles.masked(x.tiles[*i[:axis], k, *i[axis:]], piece, axis, nothing), axis)
                for k, piece in enumerate(tiles.pieces(x.shape[axis]))
            ]
            return functools.reduce(join, parts)

        return Tiled((*x.shape[:axis], *x.shape[axis + 1 :]), Lazy(tile))

    return [functools.reduce(reduced, sorted(equation.params["axes"], reverse=True), x)]


_RULES: dict[str, Callable[..., list[Tiled]]] = {
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "dot_general": _dot,
    "pad": _pad,
    "reshape": _reshape,
    "slice": _slice,
    "split": _split,
    "squeeze": _reshape,
    "stack": _stack,
    "transpose": _transpose,
    "unstack": _unstack,
    **dict.fromkeys(_REDUCTIONS, _reduce),
}


def _number(value: Any) -> Tiled:
    """Wrap a literal of a jaxpr as a tiled scalar."""
    if jnp.ndim(value):
        raise UntiledError("there are no tiles of an array that a function captured")
    return Tiled((), {(): value}, not isinstance(value, jax.Array) and bool(value == 0))


def computed(tiles: Tiles, equation: Any, operands: Sequence[Any]) -> list[Tiled]:
    """Evaluate an equation of a jaxpr on tiles.

    Raises:
        UntiledError: it splits tiles, or has no rule for them.
    """
    given = [a if isinstance(a, Tiled) else _number(a) for a in operands]
    name, shapes = equation.primitive.name, [var.aval.shape for var in equation.outvars]
    if name in _RULES:
        return _RULES[name](tiles, equation, shapes, *given)
    if name in ("add", "add_any"):
        for one, other in (given, given[::-1]):
            # For example the gradient of a bias, summed after the loop: it needs no register.
            if other.zero and one.shape == shapes[0]:
                return [one]
    if name not in _ELEMENTWISE:
        raise UntiledError(f"there is no {name} of tiles")

    def single(index: Index) -> Any:
        # An axis of size 1 is broadcast.
        at = [tuple(k if n > 1 else 0 for n, k in zip(a.shape, index, strict=False)) for a in given]
        return bound(equation, [a.tiles[i] for a, i in zip(given, at, strict=True)])[0]

    return [Tiled(shapes[0], Lazy(single))]
