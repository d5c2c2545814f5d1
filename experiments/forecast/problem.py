"""Series, and the origins from which they are forecast: to learn, to calibrate and to test."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.forecast.features import SCALES, Steps, ahead, last_of
from experiments.forecast.tables import Series
from rnnjax.errors import InvalidInputError

LEAST = 16  # times of which a network can learn one step ahead
REFITS = 3  # parts of the origins, each forecast by networks that know all before it


@dataclasses.dataclass(frozen=True)
class Problem:
    """Series, and the origins from which they are forecast.

    An origin is the time of the last value that a forecast knows. Origins roll: a forecast of
    ``horizon`` steps is made from each. The first ones, from ``cuts[0]`` on, only calibrate; the
    last ``origins`` are tested, and each is calibrated by what was known at it.

    Attributes:
        series: as they were read.
        horizon: how many steps ahead.
        periods: the steps of each season.
        origins: how many are tested.
        level: the share of values that are to be inside of the intervals.
        known: the first cut; left out, as early as the calibration wants it.
    """

    series: Series
    horizon: int
    periods: tuple[int, ...]
    origins: int
    level: float
    known: int | None = None

    @functools.cached_property
    def ends(self) -> np.ndarray:
        """The time of the last value of each series."""
        return last_of(self.series.values)

    @property
    def last(self) -> int:
        """The time of the last value of all."""
        return int(self.ends.max())

    @property
    def first(self) -> int:
        """The first origin that is tested."""
        return self.last - self.horizon - self.origins + 1

    @functools.cached_property
    def cuts(self) -> tuple[int, ...]:
        """The times up to which networks know all: to calibrate and to test, and for what comes."""
        enough = -(-2 * needed(self.level) // len(self.series.names))
        calibrating = max(enough, min(self.first // 3, 120))
        begin = self.known or max(self.first - self.horizon - calibrating, self.least)
        parts = np.linspace(begin, self.last - self.horizon + 1, REFITS + 1)[:-1]
        return (*(int(part) for part in parts), self.last)

    @property
    def least(self) -> int:
        """How many times the first networks need."""
        return LEAST + self.horizon

    @functools.cached_property
    def scale(self) -> str:
        """The scale on which the size of changes depends least on the level (Guerrero, 1993)."""
        values = self.series.values
        size = max(8, self.periods[0] if self.periods else 0)

        def unequal(there: Any) -> float:
            ratios = []
            for column in values[: self.cuts[0]].T:
                known = there(column[np.isfinite(column)])
                blocks = known[: len(known) // size * size].reshape(-1, size)
                spread = np.diff(blocks, axis=1).std(axis=1)
                if len(blocks) > 2 and spread.mean() > 0:
                    ratios.append(spread.std() / spread.mean())
            return float(np.mean(ratios)) if ratios else np.inf

        least = float(np.nanmin(values))
        scales = ["", *[" of logs"] * (least > 0), *[" of roots"] * (least == 0)]
        return min(scales, key=lambda scale: unequal(SCALES[scale][0]))

    @functools.cached_property
    def steps(self) -> Steps:
        """What a network reads and is to say at each time."""
        return Steps.of(self.series, self.scale, self.horizon, self.periods, self.cuts[0])

    def values_of(self, ys: np.ndarray) -> np.ndarray:
        """The quantiles of a network, in the sizes of `Steps`, as values of the series."""
        steps = self.steps
        ys = steps.base[..., None] + steps.size[:, None, None] * ys
        with np.errstate(over="ignore"):
            return SCALES[self.scale][1](np.maximum(ys, 0) if self.scale == " of roots" else ys)

    def for_network(self, file: str, known: int, scale: str) -> "Problem":
        """The problem as a network of an earlier run reads it, which knew less.

        Raises:
            InvalidInputError: the values do not go with the scale of the network.
        """
        problem = dataclasses.replace(self, known=known)
        if problem.scale != scale:
            raise InvalidInputError(
                f"the values of {file} must allow the scale{scale} that the network reads, but the "
                f"least is {np.nanmin(self.series.values):g}; train another one"
            )
        return problem

    @functools.cached_property
    def truth(self) -> np.ndarray:
        """What comes next, ``(time, series, horizon)``."""
        return ahead(self.series.values, self.horizon)

    @functools.cached_property
    def size(self) -> np.ndarray:
        """The mean change of a season, by which MASE divides, of each series before the test.

        A series that began later is divided by its mean change of a step, whenever that was.
        """
        season, values = self.periods[0] if self.periods else 1, self.series.values

        def changes(values: np.ndarray, lag: int) -> np.ndarray:
            each = np.abs(values[lag:] - values[:-lag])
            there = np.isfinite(each)
            mean = np.where(there, each, 0).sum(axis=0) / np.maximum(there.sum(axis=0), 1)
            return np.where(there.sum(axis=0) >= 2, mean, 0)

        early = changes(values[: self.first + 1], season)
        return np.maximum(np.where(early > 0, early, changes(values, 1)), 1e-9)


def pose(
    series: Series, file: str, horizon: int, level: int, origins: int | None, periods: Sequence[int]
) -> Problem:
    """The problem of a file.

    Raises:
        InvalidInputError: a series is too short or does not change, what is known beforehand ends
            before the forecast, or there are too few origins for the level.
    """
    least = LEAST + 2 * horizon
    for name, values in zip(series.names, series.values.T, strict=True):
        known = values[np.isfinite(values)]
        if len(known) < LEAST or np.ptp(known) == 0:
            raise InvalidInputError(
                f"{name} of {file} must have at least {LEAST} values that are not all alike, but "
                f"has {len(set(known.tolist()))}; leave it out"
            )
    ends = last_of(series.values)
    total = int(max(ends)) + 1
    number = origins or max(total // 4, 1)
    periods = tuple(m for m in periods or series.periods if 1 < m <= total // 4)
    problem = Problem(series, horizon, periods, number, level / 100)
    if problem.first < least:
        raise InvalidInputError(
            f"{file} must have at least {least + horizon + number - 1} times for windows with a "
            f"--horizon of {horizon} and {number} --origins, but has {total}; take smaller ones, "
            "or a longer file"
        )
    there = (problem.first - problem.horizon - problem.least + 1) * len(series.names)
    if there < needed(level / 100):
        raise InvalidInputError(
            f"a --level of {level} must have {needed(level / 100)} origins to calibrate by, but "
            f"{file} has {there} before the {number} that are tested; take a lower level, fewer "
            "--origins, a smaller --horizon, or a longer file"
        )
    _check_future(series, file, horizon, ends)
    return problem


def _check_future(series: Series, file: str, horizon: int, ends: np.ndarray) -> None:
    """Raise InvalidInputError unless what is said to be known of the next times is."""
    for k, end in enumerate(ends) if series.future.shape[-1] else ():
        known = np.isfinite(series.future[end + 1 : end + 1 + horizon, k]).all(axis=-1)
        count = int(np.append(known, False).argmin())
        if count < horizon:
            raise InvalidInputError(
                f"the --future columns of {file} must go on for {horizon} times behind the last "
                f"value of {series.names[k]}, {series.times[end]}, but go on for {count}; add rows "
                "with an empty target, or take a smaller --horizon"
            )


def needed(level: float) -> int:
    """How many scores a conformal quantile needs: ``ceil((n + 1) level) <= n``."""
    return int(np.ceil(level / (1 - level) - 1e-9))
