"""What a network reads of series at each time, and what it is to say."""

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.forecast import smoothing
from experiments.forecast.tables import Series
from rnnjax.errors import InvalidInputError

# The scale on which a series varies alike, and back.
SCALES: dict[str, tuple[Any, Any]] = {
    "": (np.array, np.array), " of logs": (np.log, np.exp), " of roots": (np.sqrt, np.square),
}  # fmt: skip


def last_of(values: np.ndarray) -> np.ndarray:
    """The time of the last value of each series."""
    return len(values) - 1 - np.isfinite(values)[::-1].argmax(axis=0)


def ahead(values: np.ndarray, horizon: int) -> np.ndarray:
    """The next values ``(time, series, horizon)`` of ``(time, series)``; NaN behind the end.

    >>> ahead(np.arange(3.0)[:, None], 2)[0].tolist()
    [[1.0, 2.0]]
    """
    long = np.concatenate([values, np.full((horizon, *values.shape[1:]), np.nan)])
    return np.stack([long[k : k + len(values)] for k in range(1, horizon + 1)], axis=-1)


@dataclasses.dataclass(frozen=True)
class Steps:
    """What a network reads and is to say, on the scale, as multiples of a series' own changes.

    Attributes:
        xs: ``(time, series, features)``, what is read at each time.
        later: ``(time, series, horizon, columns)``, what is known of the next times, and of those
            a season before, from which the expectation comes.
        static: ``(series, columns)``, what does not change.
        base: ``(time, series, horizon)``, what exponential smoothing expects.
        size: ``(series,)``, the size of its errors, one step ahead.
        targets: ``(time, series, horizon)``, in how many of these sizes the values miss ``base``.
        valid: ``(time, series)``, from the first expectation to the last value.
    """

    xs: np.ndarray
    later: np.ndarray
    static: np.ndarray
    base: np.ndarray
    size: np.ndarray
    targets: np.ndarray
    valid: np.ndarray

    @classmethod
    def of(
        cls, series: Series, scale: str, horizon: int, periods: Sequence[int], known: int
    ) -> "Steps":
        """Read series; what is learned for that is of the time before ``known``.

        Raises:
            InvalidInputError: no series has a season before that.
        """
        with np.errstate(invalid="ignore"):
            values = SCALES[scale][0](series.values)
        base = smoothing.expect(values, periods, horizon)
        place = np.arange(len(values))[:, None]
        # Before a season is known, the expectation is of another kind.
        begins = np.isfinite(values).argmax(axis=0)
        season = min([m for m in periods if 4 * m <= known], default=1)
        valid = (
            np.isfinite(base[..., 0]) & (place >= begins + season - 1) & (place <= last_of(values))
        )
        if not valid[:known].any():
            raise InvalidInputError(
                f"a series must have more than {season} values before the first origin, "
                f"{series.times[known]}, but none has; take fewer --origins, or a longer file"
            )
        before = np.concatenate([np.full((1, values.shape[1]), np.nan), base[:-1, :, 0]])
        filled = np.where(np.isnan(values), before, values)
        size = _spread(values - before, known)
        errors = (filled - before) / size
        changes = np.diff(filled, axis=0, prepend=np.nan) / size
        level = (filled - _mean(values, known)) / _spread(values, known)
        next_one = (base[..., 0] - filled) / size
        angles = 2 * np.pi * place[..., None] / np.array(periods[:2] or (1,))
        angles = np.broadcast_to(angles, (*values.shape, angles.shape[-1]))
        columns = [errors, changes, level, next_one, np.isfinite(values)]
        xs = np.concatenate(
            [np.stack(columns, axis=-1), np.sin(angles), np.cos(angles),
             _standard(series.past, known), _standard(series.future, known)], axis=-1,
        )  # fmt: skip
        later = _later(_standard(series.future, known), horizon, periods)
        return cls(
            np.nan_to_num(xs).astype(np.float32), later, series.static, base, size,
            (ahead(values, horizon) - base) / size[:, None], valid,
        )  # fmt: skip


def _mean(values: np.ndarray, known: int) -> np.ndarray:
    """The mean of each series before a time; of all of it where it began later."""
    early = np.isfinite(values[:known]).sum(axis=0) >= 8
    return np.where(early, _nan(np.nanmean, values[:known]), _nan(np.nanmean, values))


def _spread(values: np.ndarray, known: int) -> np.ndarray:
    """The standard deviation of each series before a time; of all of it where it began later."""
    early = np.isfinite(values[:known]).sum(axis=0) >= 8
    found = np.where(early, _nan(np.nanstd, values[:known]), _nan(np.nanstd, values))
    return np.maximum(np.nan_to_num(found, nan=1.0), 1e-9)


def _later(future: np.ndarray, horizon: int, periods: Sequence[int]) -> np.ndarray:
    """What is known of the next times, and of those a season before them."""
    steps = np.arange(1, horizon + 1)
    then = np.arange(len(future))[:, None] + steps
    parts = [future[np.minimum(then, len(future) - 1)]]
    for m in periods[:2]:
        parts.append(future[np.maximum(then - m * -(-steps // m), 0)])
    return np.concatenate(parts, axis=-1).swapaxes(1, 2).astype(np.float32)


def _standard(inputs: np.ndarray, known: int) -> np.ndarray:
    """Inputs as multiples of what they vary before a time; in a gap, the last known one."""
    place = np.arange(len(inputs)).reshape(-1, *[1] * (inputs.ndim - 1))
    last = np.maximum.accumulate(np.where(np.isnan(inputs), 0, place), axis=0)
    filled = np.take_along_axis(inputs, last, axis=0)
    early = filled[:known]
    spread = _nan(np.nanstd, early, (0, 1))
    mean = _nan(np.nanmean, early, (0, 1))
    return np.nan_to_num((filled - mean) / np.where(spread > 0, spread, 1.0))


def _nan(function: Any, values: np.ndarray, axis: Any = 0) -> np.ndarray:
    with warnings.catch_warnings(action="ignore"):
        return function(values, axis=axis)
