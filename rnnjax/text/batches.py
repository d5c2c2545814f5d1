"""Training batches from the ids of one long text: independent windows, or streams."""

import numpy as np
import numpy.typing as npt

from rnnjax.checks import check_size
from rnnjax.errors import InvalidInputError
from rnnjax.text.vocabulary import as_ids

Ids = npt.NDArray[np.int32]


def windows(ids: npt.ArrayLike, seq_length: int) -> tuple[Ids, Ids]:
    """Split a text into windows that do not overlap, with targets shifted by one character.

    Window `i` is `ids[i * seq_length : (i + 1) * seq_length]`. The rest at the end is dropped.

    Args:
        ids: integers, shape `(length,)`, at least `seq_length + 1` of them.
        seq_length: the number of characters of a window.

    Returns:
        `(inputs, targets)`, int32, each of shape `(num_windows, seq_length)`, where
        `num_windows = (length - 1) // seq_length`.

    Raises:
        InvalidInputError: `seq_length` is below 1, the text is too short, or `ids` are not
            integers in one dimension.

    Example:
        >>> inputs, targets = windows([0, 1, 2, 3, 4, 5, 6, 7], seq_length=3)
        >>> inputs.tolist(), targets.tolist()
        ([[0, 1, 2], [3, 4, 5]], [[1, 2, 3], [4, 5, 6]])
    """
    ids = as_ids(ids)
    return _cut(ids, window_starts(len(ids), seq_length), seq_length)


def window_starts(length: int, seq_length: int, stride: int | None = None) -> Ids:
    """Return where the windows of a text begin; targets begin one character later.

    Args:
        length: the number of characters of the text, at least `seq_length + 1`.
        seq_length: the number of characters of a window.
        stride: the distance between windows; by default `seq_length`, without overlap.

    Returns:
        int32, shape `(num_windows,)`, with `num_windows = (length - 1 - seq_length) // stride + 1`.

    Raises:
        InvalidInputError: `seq_length` or `stride` is below 1, or the text is too short.

    Example:
        >>> window_starts(8, seq_length=3).tolist(), window_starts(8, 3, stride=2).tolist()
        ([0, 3], [0, 2, 4])
    """
    stride = seq_length if stride is None else stride
    check_size("seq_length", seq_length)
    check_size("stride", stride)
    if length < seq_length + 1:
        raise InvalidInputError(
            f"a window of seq_length {seq_length} needs at least {seq_length + 1} ids (its targets "
            f"lie one on), but {length} came; take a longer text or a smaller seq_length"
        )
    _check_length(length)
    return np.arange(0, length - seq_length, stride, dtype=np.int32)


def shuffled_batches(
    num_windows: int, batch_size: int, *, seed: int, epoch: int
) -> tuple[Ids, npt.NDArray[np.float32]]:
    """Shuffle the windows of one epoch into batches, in an order that `(seed, epoch)` determines.

    Every window occurs once with weight 1. Window 0 with weight 0 fills the last batch, so that all
    batches have one shape and the step compiles once.

    Args:
        num_windows: the number of windows.
        batch_size: the number of windows of a batch.
        seed: the seed of the run, not negative.
        epoch: the number of the epoch, not negative.

    Returns:
        `(indices, weights)`, int32 and float32, each of shape `(steps, batch_size)`, where
        `steps = ceil(num_windows / batch_size)`.

    Raises:
        InvalidInputError: `num_windows` or `batch_size` is below 1, `seed` or `epoch` below 0.

    Example:
        >>> indices, weights = shuffled_batches(5, 2, seed=7, epoch=0)
        >>> indices.shape, sorted(indices[weights == 1].tolist())
        ((3, 2), [0, 1, 2, 3, 4])
        >>> weights.tolist()
        [[1.0, 1.0], [1.0, 1.0], [1.0, 0.0]]
    """
    check_size("num_windows", num_windows)
    check_size("batch_size", batch_size)
    check_size("seed", seed, 0)
    check_size("epoch", epoch, 0)
    steps = -(-num_windows // batch_size)
    indices = np.zeros(steps * batch_size, np.int32)
    # Of both numbers, not one stream of draws: a run that resumes needs no epoch before its own.
    indices[:num_windows] = np.random.default_rng([seed, epoch]).permutation(num_windows)
    weights = (np.arange(steps * batch_size) < num_windows).astype(np.float32)
    return indices.reshape(steps, batch_size), weights.reshape(steps, batch_size)


def streams(ids: npt.ArrayLike, batch_size: int, seq_length: int) -> tuple[Ids, Ids]:
    """Split a text into `batch_size` contiguous streams, read in parallel.

    Row `b` of step `t + 1` continues row `b` of step `t`, as truncated backpropagation through
    time with a carried state requires. The rest that does not fill a step is dropped.

    Args:
        ids: integers, shape `(length,)`, at least `batch_size * seq_length + 1` of them.
        batch_size: the number of streams.
        seq_length: the number of characters of a stream in one step.

    Returns:
        `(inputs, targets)`, int32, each of shape `(steps, batch_size, seq_length)`, where
        `steps = (length - 1) // (batch_size * seq_length)`; targets are one character later.

    Raises:
        InvalidInputError: `batch_size` or `seq_length` is below 1, the text is too short, or
            `ids` are not integers in one dimension.

    Example:
        >>> inputs, targets = streams(range(10), batch_size=2, seq_length=2)
        >>> inputs.tolist()
        [[[0, 1], [4, 5]], [[2, 3], [6, 7]]]
        >>> targets.tolist()
        [[[1, 2], [5, 6]], [[3, 4], [7, 8]]]
    """
    ids = as_ids(ids)
    return _cut(ids, stream_starts(len(ids), batch_size, seq_length), seq_length)


def stream_starts(length: int, batch_size: int, seq_length: int) -> Ids:
    """Return where the windows of `streams` begin in a text of `length` ids.

    Returns:
        int32, shape `(steps, batch_size)`.

    Raises:
        InvalidInputError: `batch_size` or `seq_length` is below 1, or the text is too short.

    Example:
        >>> stream_starts(10, batch_size=2, seq_length=2).tolist()
        [[0, 4], [2, 6]]
    """
    check_size("batch_size", batch_size)
    check_size("seq_length", seq_length)
    step_size = batch_size * seq_length
    steps = (length - 1) // step_size
    if steps < 1:
        raise InvalidInputError(
            f"{batch_size} streams of seq_length {seq_length} need at least {step_size + 1} ids "
            f"(targets lie one on), but {length} came; "
            "take a longer text, fewer streams or a smaller seq_length"
        )
    _check_length(length)
    starts = np.arange(batch_size * steps, dtype=np.int32) * seq_length
    # By rows, then transposed: the windows of a row follow each other in the text.
    return starts.reshape(batch_size, steps).T


def _check_length(length: int) -> None:
    # int32, the type of JAX's indices: from 2^31 on NumPy would count on below 0, and not say so.
    # No text of that size was tried; the first one needs int64 in both functions that count starts.
    if length >= 2**31:
        raise InvalidInputError(
            f"a text must have fewer than 2^31 ids, but has {length}; cut it into several"
        )


def _cut(ids: npt.NDArray[np.integer], starts: Ids, seq_length: int) -> tuple[Ids, Ids]:
    # `astype` copies, so writing to a batch changes neither its targets nor the caller's text.
    found = np.lib.stride_tricks.sliding_window_view(ids, seq_length + 1)[starts]
    return found[..., :-1].astype(np.int32), found[..., 1:].astype(np.int32)
