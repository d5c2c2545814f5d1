"""The arrays of a step in tiles whose sizes are powers of two, as Triton requires.

Concatenated gates are adjacent tiles, so splitting or replacing them moves no data. Three gates are
three tiles, not one array of a size that Triton does not support.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# The number of rows in a trace: a size that no other axis has.
ROWS = 7919
# The rows of one program of a kernel, as many as a tensor core multiplies at a time.
BLOCK = 16
# The features of a tile. Products of 64 by 64 leave room in the registers and in shared memory.
_WIDEST, _FEWEST = 64, 16
# Shorter axes, such as one of gates, are cut into ones.
_SHORT = 8

Index = tuple[int, ...]


class UntiledError(Exception):
    """The reason why a step cannot run on tiles, as the end of a sentence.

    It is a separate class, so that errors of JAX are not mistaken for it.
    """


class Tiled(NamedTuple):
    """An array that is split into tiles.

    Attributes:
        shape: the shape of the array, with `ROWS` as its rows.
        tiles: the tiles, by their index along each axis.
        zero: whether the array is known to be zero.
    """

    shape: tuple[int, ...]
    tiles: Mapping[Index, Any]
    zero: bool = False


class Lazy(dict[Index, Any]):
    """Tiles that are computed or loaded at their first use."""

    def __init__(self, tile: Callable[[Index], Any]) -> None:
        self.tile = tile

    def __missing__(self, index: Index) -> Any:
        self[index] = self.tile(index)
        return self[index]


class Block(NamedTuple):
    """A part of an axis: its number of valid entries, its padded size, and its start."""

    valid: Any
    size: int
    start: int


@dataclasses.dataclass(frozen=True)
class Tiles:
    """How arrays are split into tiles, stored and loaded.

    Args:
        unit: a common divisor of the sizes of states, gates and other arrays that are split.
        rows: the number of valid rows of a program.
    """

    unit: int
    rows: Any = BLOCK

    def pieces(self, size: int) -> list[Block]:
        """Return the tiles of an axis; all axes of one size are split alike."""
        if size == ROWS:
            return [Block(self.rows, BLOCK, 0)]
        if (size % self.unit and size <= _SHORT) or size == 1:
            return [Block(1, 1, k) for k in range(size)]
        unit = size if size % self.unit else self.unit
        widest = max(_FEWEST, min(_WIDEST, 1 << (unit - 1).bit_length()))
        counts = [min(widest, unit - k) for k in range(0, unit, widest)] * (size // unit)
        sizes = [max(_FEWEST, 1 << (count - 1).bit_length()) for count in counts]
        starts = itertools.accumulate(sizes, initial=0)
        return list(map(Block, counts, sizes, starts))

    def stored(self, shape: Sequence[int], rows: int = BLOCK) -> tuple[int, ...]:
        """Return the shape that an array has in memory."""
        if not shape:
            return (1,)
        lasts = [self.pieces(n)[-1] for n in shape]
        return tuple(
            rows if n == ROWS else last.start + last.size
            for n, last in zip(shape, lasts, strict=True)
        )

    def put(self, array: jax.Array, shape: Sequence[int], time: int = 0) -> jax.Array:
        """Lay an array out in memory, each block padded with zeros."""
        for axis, size in enumerate(shape, time):
            if size == ROWS:
                parts = [(array, -array.shape[axis] % BLOCK)]
            else:
                pieces = self.pieces(size)
                if all(piece.valid == piece.size for piece in pieces):
                    continue
                ends = list(itertools.accumulate(piece.valid for piece in pieces))
                cut = jnp.split(array, ends[:-1], axis)
                parts = [(a, p.size - p.valid) for a, p in zip(cut, pieces, strict=True)]
            widths = [(0, 0)] * array.ndim
            padded = [
                jnp.pad(a, [*widths[:axis], (0, more), *widths[axis + 1 :]]) for a, more in parts
            ]
            array = jnp.concatenate(padded, axis)
        return array if shape else array.reshape(*array.shape[:time], 1)

    def get(self, array: jax.Array, shape: Sequence[int], rows: int, time: int = 0) -> jax.Array:
        """Rebuild the array from its layout in memory."""
        for axis, size in enumerate(shape, time):
            if size == ROWS:
                array = jax.lax.slice_in_dim(array, 0, rows, axis=axis)
                continue
            pieces = self.pieces(size)
            if any(piece.valid != piece.size for piece in pieces):
                cut = [
                    jax.lax.slice_in_dim(array, p.start, p.start + p.valid, axis=axis)
                    for p in pieces
                ]
                array = jnp.concatenate(cut, axis)
        return array if shape else array.reshape(array.shape[:time])

    def indices(self, shape: Sequence[int]) -> Iterator[Index]:
        """Yield the indices of an array's tiles, in order."""
        return itertools.product(*(range(len(self.pieces(n))) for n in shape))

    def place(self, shape: Sequence[int], index: Index) -> int:
        """Return which tile of a gate or state it is; equal places hold the same units."""
        whole = shape and shape[-1] % self.unit == 0
        return index[-1] % len(self.pieces(self.unit)) if whole else 0

    def tile(self, shape: Sequence[int], index: Index) -> tuple[int, ...]:
        """Return the padded shape of one tile."""
        return tuple(self.pieces(n)[k].size for n, k in zip(shape, index, strict=True))

    def _where(self, shape: Sequence[int], index: Index) -> tuple[Any, ...]:
        """Return the slices of a tile in memory."""
        at = [self.pieces(n)[k] for n, k in zip(shape, index, strict=True)]
        return tuple(slice(piece.start, piece.start + piece.size) for piece in at) or (0,)

    def read(self, ref: Any, shape: tuple[int, ...], *time: Any) -> Tiled:
        """Read an array from memory; each tile is loaded at its first use."""
        return Tiled(shape, Lazy(lambda index: ref[*time, *self._where(shape, index)]))

    def write(self, ref: Any, array: Tiled, index: Index, *time: Any) -> None:
        """Write one tile of an array to memory."""
        ref[*time, *self._where(array.shape, index)] = array.tiles[index]

    def full(self, shape: tuple[int, ...], value: Any, dtype: Any) -> Tiled:
        """Return tiles that all hold one number."""
        return Tiled(shape, Lazy(lambda index: jnp.full(self.tile(shape, index), value, dtype)))

    def masked(self, tile: Any, piece: Block, axis: int, instead: Any) -> Any:
        """Replace the padding of a tile by another value."""
        if isinstance(piece.valid, int) and piece.valid == piece.size:
            return tile
        counts = jax.lax.iota(jnp.int32, piece.size) < piece.valid
        counts = jax.lax.broadcast_in_dim(counts, tile.shape, (axis,))
        return jnp.where(counts, tile, jnp.asarray(instead, tile.dtype))

    def first(self, size: int, start: int, part: int) -> int:
        """Return the first tile of a part of an axis, which must consist of whole tiles."""
        valid = [piece.valid for piece in self.pieces(size)]
        within = [piece.valid for piece in self.pieces(part)] if part else []
        begins = [sum(valid[:k]) for k in range(len(valid) + 1)] if size != ROWS else []
        if start in begins:
            first = begins.index(start)
            if valid[first : first + len(within)] == within:
                return first
        raise UntiledError(f"{part} of {size} from {start} on are no tiles")
