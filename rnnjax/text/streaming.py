"""Streamed texts, stop strings, and reading given text, on top of `rnnjax.text.sampling`."""

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from rnnjax.checks import check_size
from rnnjax.errors import InvalidInputError
from rnnjax.text.sampling import Sampling, State, StepFunction, begin, check_drawn, draw, stepped
from rnnjax.text.vocabulary import as_ids, as_integers


class Text(NamedTuple):
    """The state of a model within texts, one per row.

    Attributes:
        carry: the state after all characters except the last; each leaf begins with the batch.
        tokens: ``(*batch,)``, the ids of the last characters.
    """

    carry: Any
    tokens: jax.Array


def stream(
    step: StepFunction,
    params: Any,
    carry: Any,
    tokens: jax.Array,
    *,
    key: jax.Array,
    length: int,
    sampling: Sampling | None = None,
    history: npt.ArrayLike | None = None,
    stops: Sequence[npt.ArrayLike] = (),
    chunk: int = 16,
) -> "Stream":
    """Continue texts with a model, and yield the characters as they are written.

    The characters are those of `sample`, whatever ``chunk`` is. Each row ends separately, before
    the first stop string that the model writes in full. Characters that may begin a stop string are
    held back until it is clear. The text before the call is not part of a stop string.

    Args:
        step: as in `sample`.
        params: as in `sample`.
        carry: the state after all characters except the last; each leaf begins with the batch.
        tokens: ``(batch,)`` ids of the last character of each text.
        key: as in `sample`.
        length: the largest number of characters of a row.
        sampling: how to sample; by default as predicted.
        history: ids of the text so far, for the repetition penalty.
        stops: the stop strings, each as ids ``(n,)``.
        chunk: the number of characters sampled on the device at a time.

    Returns:
        an iterator, whose ``text`` is the state to continue from; see `Stream`.

    Raises:
        InvalidInputError: as in `sample`; or ``tokens`` are not ``(batch,)``, ``chunk`` is below
            1, or a stop string is empty.
        NonFiniteError: as in `sample`, while iterating.

    >>> def count(params, carry, tokens):
    ...     return carry, jax.nn.one_hot((tokens + 1) % 9, 9)
    >>> tokens = jnp.array([0, 5])
    >>> made = stream(count, (), (), tokens, key=jax.random.key(0), length=4, chunk=3,
    ...               sampling=Sampling(temperature=0), stops=[[7, 8]])
    >>> for pieces in made:
    ...     print([piece.tolist() for piece in pieces])
    [[1, 2, 3], [6]]
    [[4], []]
    >>> made.stopped.tolist(), made.text.tokens.tolist()
    ([False, True], [4, 6])
    """
    sampling = Sampling() if sampling is None else sampling
    check_size("length", length)
    check_size("chunk", chunk)
    if np.ndim(tokens) != 1:
        raise InvalidInputError(
            f"tokens of a stream must be (batch,), one character of each text, but their shape is "
            f"{np.shape(tokens)}; of one text pass tokens[None]"
        )
    # `_spelled` adds 1 to an id, and the result must be a character of Python.
    ends = [as_ids(stop, sys.maxunicode) for stop in stops]
    if any(len(stop) == 0 for stop in ends):
        raise InvalidInputError(
            "a stop string must have at least one character, but an empty one came; leave it out"
        )
    state = begin(sampling, carry, tokens, key, history, length)
    write = functools.partial(draw, step, min(chunk, length), params, numbers=sampling.numbers)
    reread = functools.partial(read, step, params)
    return Stream(write, reread, state, length, [_spelled(stop) for stop in ends])


class Stream(Iterator[list[npt.NDArray[np.int32]]]):
    """An iterator over the new characters of texts, made by `stream`.

    Each item has one array of ids ``(n,)`` per row, the new characters since the last item. It is
    empty if a row has ended, or if its characters may begin a stop string.

    Attributes:
        stopped: booleans ``(batch,)``, True where a stop string was written.
    """

    def __init__(
        self,
        write: Callable[[State], tuple[State, jax.Array]],
        read: Callable[..., Any],
        begin: State,
        length: int,
        stops: Sequence[str],
    ):
        self._write, self._read, self._length, self._stops = write, read, length, stops
        batch = len(begin.tokens)
        self.stopped = np.zeros(batch, bool)
        # States after some numbers of characters, and the ids from the last one of the first on.
        self._states, self._ids = [(0, begin.carry)], np.asarray(begin.tokens)[None]
        self._kept = np.zeros(batch, np.int64)
        self._pieces = self._run(begin)

    def __next__(self) -> list[npt.NDArray[np.int32]]:
        return next(self._pieces)

    @property
    def text(self) -> Text:
        """The state to continue from: after the characters yielded so far.

        Characters sampled after these, of a stop string or the rest of a chunk, have no effect. The
        model reads again what was written since the last state that no row is before: a chunk or
        two, or, once a row has stopped, all that the others wrote meanwhile.
        """
        (first, carry), kept = self._states[0], self._kept
        carry = self._read(carry, self._ids[: kept.max() - first], lengths=kept - first)
        return Text(carry, jnp.asarray(self._ids[kept - first, np.arange(len(kept))]))

    def _run(self, state: State) -> Iterator[list[npt.NDArray[np.int32]]]:
        made = 0
        while made < self._length and not self.stopped.all():
            state, drawn = self._write(state)
            new = np.asarray(drawn)[: self._length - made]
            made += len(new)
            self._ids = np.concatenate([self._ids, new])
            pieces = self._known(made)
            # Not of more characters than count, nor where a row stays behind for good.
            if len(new) == len(drawn) and not self.stopped.any():
                self._states.append((made, state.carry))
            # States that no row needs are dropped, and their ids: a long stream stays small.
            first = self._states[0][0]
            while len(self._states) > 1 and self._states[1][0] <= self._kept.min():
                del self._states[0]
            self._ids = self._ids[self._states[0][0] - first :]
            if any(len(piece) for piece in pieces):
                yield pieces

    def _known(self, made: int) -> list[npt.NDArray[np.int32]]:
        """Return the characters of each row that can no longer be part of a stop string."""
        pieces = [self._ids[:0, row] for row in range(len(self._kept))]
        for row in np.flatnonzero(~self.stopped):
            pending = self._ids[self._kept[row] + 1 - self._states[0][0] :, row]
            text = _spelled(pending)
            # Of those that are complete first, the longest.
            ends = [(text.find(s) + len(s), text.find(s)) for s in self._stops if s in text]
            begun = (s[:n] for s in self._stops for n in range(len(s)) if text.endswith(s[:n]))
            held_back = max(map(len, begun), default=0) if made < self._length else 0
            known = min(ends)[1] if ends else len(pending) - held_back
            self.stopped[row] = bool(ends)
            check_drawn(pending[:known], int(self._kept[row]), f" of row {row}")
            pieces[row] = pending[:known]
            self._kept[row] += known
        return pieces


def read(
    step: StepFunction,
    params: Any,
    carry: Any,
    ids: npt.ArrayLike,
    *,
    lengths: npt.ArrayLike | None = None,
) -> Any:
    """Run a model over given characters, step by step.

    It compiles only for lengths that are powers of two.

    Args:
        step: one step of the model, as in `sample`.
        params: the first argument of ``step``.
        carry: the state before the text; each leaf begins with the batch.
        ids: ``(time, batch)``; time may be 0.
        lengths: ``(batch,)``, the number of characters of each row; by default all.

    Returns:
        the state of each row after its last character.

    Raises:
        InvalidInputError: ``ids`` are not integers ``(time, batch)``, or ``lengths`` not integers
            ``(batch,)`` from 0 to ``time``.

    >>> def last(params, carry, tokens):
    ...     return tokens, jax.nn.one_hot(tokens, 9)
    >>> read(last, (), jnp.array([0, 0]), [[1, 2], [3, 4], [5, 6]], lengths=[3, 1]).tolist()
    [5, 2]
    """
    ids = np.asarray(as_integers("ids", ids), np.int32)
    if ids.ndim != 2:
        raise InvalidInputError(
            f"ids must be (time, batch), but their shape is {ids.shape}; one text is ids[:, None]"
        )
    time, batch = ids.shape
    lengths = np.full(batch, time) if lengths is None else np.asarray(lengths)
    whole = not lengths.size or np.issubdtype(lengths.dtype, np.integer)
    if lengths.shape != (batch,) or not whole or ((lengths < 0) | (lengths > time)).any():
        raise InvalidInputError(
            f"lengths must be ({batch},) whole numbers from 0 to {time}, steps of each row, but "
            f"are {lengths.tolist()}; give one for each row"
        )
    if not lengths.any():
        return carry
    # At least 16, so that the common short rests share one program.
    padded = np.zeros((max(16, 1 << (time - 1).bit_length()), batch), np.int32)
    padded[:time] = ids
    return _read(step, params, carry, padded, lengths.astype(np.int32))


@functools.partial(jax.jit, static_argnums=0)
def _read(step: StepFunction, params: Any, carry: Any, ids: jax.Array, lengths: jax.Array) -> Any:
    def one(state: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
        time, carry = state
        new, _ = stepped(step, params, carry, ids[time])

        def chosen(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where((time < lengths).reshape(-1, *[1] * (new.ndim - 1)), new, old)

        return time + 1, jax.tree.map(chosen, new, carry)

    # Not a scan: padding costs no time.
    return jax.lax.while_loop(lambda state: state[0] < lengths.max(), one, (jnp.int32(0), carry))[1]


def _spelled(ids: npt.NDArray[np.integer]) -> str:
    """Return a text with a character for each id, -1 too, in which stop strings are found."""
    return "".join(chr(i + 1) for i in ids)
