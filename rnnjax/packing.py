"""Sequences of different lengths in one array: packed end to end in rows, or padded."""

import bisect
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from rnnjax.checks import brief, check_instance, check_known, check_size, is_integer
from rnnjax.errors import InvalidInputError

__all__ = ["Packed", "Padded", "pack", "pad", "unpack"]

_OUTSIDE = "pack, pad, lay and unpack outside of it, and inside use packed.mask or packed.last"


class Packed(NamedTuple):
    """Packed sequences, as from `pack`. A pytree of arrays, and so a valid argument under ``jit``.

    Attributes:
        xs: ``(row_length, rows, ...)``, zeros at padding.
        resets: booleans ``(row_length, rows)``, True where a sequence or the padding begins.
        mask: booleans ``(row_length, rows)``, False at padding.
        rows: integers ``(sequences,)``, the row of each sequence.
        starts: integers ``(sequences,)``, the first step of each sequence.
        lengths: integers ``(sequences,)``, the number of steps of each sequence.
    """

    xs: Any
    resets: Any
    mask: Any
    rows: Any
    starts: Any
    lengths: Any

    def lay(self, sequences: Sequence[Any]) -> np.ndarray[Any, Any]:
        """Pack other sequences of the same lengths, such as targets, in the same places.

        Raises:
            InvalidInputError: the number of sequences, or a length, differs.
        """
        arrays = _as_arrays(sequences)
        check_known("lengths", self.lengths, _OUTSIDE)
        lengths = np.asarray(self.lengths)
        came = [len(array) for array in arrays]
        if came != lengths.tolist():
            raise InvalidInputError(
                f"sequences must have the {len(lengths)} lengths that were packed, but have "
                f"{len(came)}, and differ; give them in the same order"
            )
        out = np.zeros((*self.resets.shape, *arrays[0].shape[1:]), arrays[0].dtype)
        for array, row, start in zip(arrays, self.rows, self.starts, strict=True):
            out[start : start + len(array), row] = array
        return out

    def last(self, ys: jax.Array) -> jax.Array:
        """Return the entries of ``ys (row_length, rows, ...)`` at the last step of each sequence.

        After a forward run these are the final outputs ``(sequences, ...)``.

        Raises:
            InvalidInputError: ``ys`` has another number of steps or rows.
        """
        _check_steps_and_rows(self, ys)
        return ys[self.starts + self.lengths - 1, self.rows]


def pack(sequences: Sequence[Any], row_length: int, *, num_rows: int | None = None) -> Packed:
    """Pack sequences end to end in rows of one length, longest first, by best fit.

    Run the result with its resets, so that no sequence affects its neighbours. This also works in
    reverse and in a `Bidirectional` layer. ::

        packed = rnnjax.pack(sequences, row_length=400)
        _, ys = rnnjax.unroll(cell, params, packed.xs, resets=packed.resets)
        outputs = rnnjax.unpack(packed, ys)

    In training leave the outputs packed, pack the targets with `Packed.lay`, and weight the losses
    by ``packed.mask``.

    Args:
        sequences: arrays ``(length, ...)`` that differ only in the length, none of them empty; or
            integers for `OneHot`.
        row_length: the number of steps of a row, at least the longest length. Longer rows have less
            padding.
        num_rows: the number of rows, of which some may be empty, so that batches have one shape and
            compile once; by default as few as needed.

    Raises:
        InvalidInputError: there is no sequence; one is empty, longer than a row, or of another
            shape or type; or more rows are needed.

    >>> packed = pack([np.array([1, 2]), np.array([3, 4, 5]), np.array([6])], row_length=3)
    >>> packed.xs.T.tolist(), packed.resets.T.astype(int).tolist()
    ([[3, 4, 5], [1, 2, 6]], [[1, 0, 0], [1, 0, 1]])
    >>> [part.tolist() for part in unpack(packed, packed.xs * 10)]
    [[10, 20], [30, 40, 50], [60]]
    """
    arrays = _as_arrays(sequences)
    check_size("row_length", row_length)
    lengths = np.array([len(array) for array in arrays])
    for i, length in enumerate(lengths):
        if not 1 <= length <= row_length:
            raise InvalidInputError(
                f"sequence {i} has {length} steps, but each must have 1 to row_length = "
                f"{row_length}; cut it, leave it out, or take longer rows"
            )
    rows, starts, needed = _places(lengths, row_length)
    if num_rows is None:
        num_rows = needed
    check_size("num_rows", num_rows)
    if num_rows < needed:
        raise InvalidInputError(
            f"the sequences need {needed} rows of {row_length} steps, but num_rows is {num_rows}; "
            "give fewer sequences or more rows"
        )
    mask = np.arange(row_length)[:, None] < np.bincount(rows, lengths, num_rows)
    resets = np.zeros_like(mask)
    resets[0] = resets[starts, rows] = True
    resets[1:] |= mask[:-1] & ~mask[1:]  # where the padding begins
    packed = Packed(None, resets, mask, rows, starts, lengths)
    return packed._replace(xs=packed.lay(arrays))


def unpack(packed: Packed, ys: Any) -> list[Any]:
    """Return the sequences in their original order, from ``ys (row_length, rows, ...)``.

    Raises:
        InvalidInputError: ``ys`` has another number of steps or rows, or is traced: under ``jit``
            the lengths are unknown, so leave the outputs packed.
    """
    check_instance("packed", packed, Packed, "what pack returned")
    check_known("lengths", packed.lengths, _OUTSIDE)
    _check_steps_and_rows(packed, ys)
    return [
        ys[start : start + length, row]
        for row, start, length in zip(packed.rows, packed.starts, packed.lengths, strict=True)
    ]


def _check_steps_and_rows(packed: Packed, ys: Any) -> None:
    """Raise unless ``ys`` have the steps and rows of the packed sequences."""
    if getattr(ys, "shape", ())[:2] != packed.resets.shape:
        raise InvalidInputError(
            f"ys must be an array (row_length, rows, ...) with {packed.resets.shape}, but is "
            f"{brief(ys)}; time comes first"
        )


class Padded(NamedTuple):
    """Padded sequences, as from `pad`. A pytree of arrays, and so a valid argument under ``jit``.

    Attributes:
        xs: a JAX array ``(time, sequences, ...)``, zeros after the end of each sequence; or a dict.
        lengths: integers ``(sequences,)``, the number of steps of each sequence.
    """

    xs: Any
    lengths: Any


def pad(sequences: Sequence[Any], *, sizes: Sequence[int] | None = None) -> Padded:
    """Pad sequences to the smallest of a few sizes that holds all of them.

    JAX compiles a program for each shape. Sequences of 1 to 60 steps have 60 shapes. Padded to
    powers of two from 8 on, they have four, and a sequence of 4 or more steps at most doubles. A
    whole data set has one shape, so pad it to its longest sequence. Call it outside ``jit``, since
    lengths must be known. Run the result with its lengths::

        xs, lengths = rnnjax.pad(sequences, sizes=(longest,))  # without sizes for one of many
        carry, ys = rnnjax.unroll(cell, params, xs, lengths=lengths)

    Args:
        sequences: arrays ``(length, ...)`` that differ only in the length, or integers for
            `OneHot`; or dicts of such arrays, as of ids and of amounts. Then ``xs`` is a dict.
        sizes: the allowed lengths of a padded batch, in steps; by default 8, 16, 32 and so on.

    Raises:
        InvalidInputError: there is no sequence; they differ in more than the length; or ``sizes``
            are not positive integers, or all below the longest length.

    >>> xs, lengths = pad([np.array([1, 2]), np.array([3, 4, 5])], sizes=(4, 16))
    >>> xs.T.tolist(), lengths.tolist()
    ([[1, 2, 0, 0], [3, 4, 5, 0]], [2, 3])
    """
    sizes = list(sizes) if isinstance(sizes, Iterable) else sizes
    if isinstance(sequences, list) and sequences and all(isinstance(s, dict) for s in sequences):
        names = dict.fromkeys(name for one in sequences for name in one)
        shapes = [{np.shape(x)[:1] for x in one.values()} for one in sequences]
        if any({*one} != {*names} for one in sequences) or any(len(one) != 1 for one in shapes):
            raise InvalidInputError(
                f"sequences that are dicts must all have the names {[*names]}, and each one length"
            )
        each = {name: pad([one[name] for one in sequences], sizes=sizes) for name in names}
        return Padded({n: of.xs for n, of in each.items()}, next(iter(each.values())).lengths)
    arrays = _as_arrays(sequences)
    lengths = np.array([len(array) for array in arrays])
    longest = int(lengths.max())
    sizes = [max(8, 1 << (longest - 1).bit_length())] if sizes is None else sizes
    if not isinstance(sizes, list) or not all(is_integer(k) and k >= 1 for k in sizes):
        raise InvalidInputError(
            f"sizes must be several positive integers, as in (16, 64), but are {sizes!r}"
        )
    fitting = [int(size) for size in sizes if size >= longest]
    if not fitting:
        raise InvalidInputError(
            f"the longest sequence has {longest} steps, but the sizes are {[*map(int, sizes)]}; "
            "give one that holds it, or cut the sequence"
        )
    if arrays[0].dtype.kind not in "biufcV":  # V: such as bfloat16
        raise InvalidInputError(f"sequences must hold numbers, but hold {arrays[0].dtype}")
    xs = np.zeros((min(fitting), len(arrays), *arrays[0].shape[1:]), arrays[0].dtype)
    for row, array in enumerate(arrays):
        xs[: len(array), row] = array
    # device_put, because jnp.asarray would compile a copy for each shape.
    return Padded(jax.device_put(xs), lengths)


def _as_arrays(sequences: Sequence[Any]) -> list[np.ndarray[Any, Any]]:
    check_instance("sequences", sequences, Iterable, "several arrays (length, ...)")
    sequences = list(sequences)
    check_known("sequences", sequences, _OUTSIDE)
    try:
        arrays = [np.asarray(sequence) for sequence in sequences]
    except ValueError as error:  # of a list of lists
        raise InvalidInputError(
            "sequences must be arrays (length, ...), but one has rows of several lengths; each of "
            "its steps must have the same shape"
        ) from error
    if not arrays:
        raise InvalidInputError("there must be at least one sequence, but none came")
    kinds = {(array.shape[1:], str(array.dtype)) for array in arrays}
    if len(kinds) != 1 or not all(array.ndim for array in arrays):
        raise InvalidInputError(
            "sequences must be arrays (length, ...) alike in all but the length, but came with "
            f"{sorted(kinds)}"
        )
    return arrays


def _places(lengths: np.ndarray[Any, Any], row_length: int) -> tuple[Any, Any, int]:
    """Return the row and start of each sequence and the number of rows: best fit, longest first."""
    rows, starts = np.zeros_like(lengths), np.zeros_like(lengths)
    free: list[tuple[int, int]] = []  # (steps left, row), sorted
    num_rows = 0
    for i in np.argsort(-lengths, kind="stable"):
        length = int(lengths[i])
        at = bisect.bisect_left(free, (length, -1))
        if at < len(free):
            left, row = free.pop(at)
        else:
            left, row, num_rows = row_length, num_rows, num_rows + 1
        rows[i], starts[i] = row, row_length - left
        if left > length:
            bisect.insort(free, (left - length, row))
    return rows, starts, num_rows
