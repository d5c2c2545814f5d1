"""How good forecasts are: errors of the middle, and how honest and how wide intervals are."""

import itertools
import warnings
from typing import NamedTuple

import numpy as np

from experiments.forecast.problem import Problem


class Score(NamedTuple):
    """The mean of all tested origins and series, over some steps ahead.

    Attributes:
        mase: the absolute error of the middle quantile by the mean change of a season in the part
            before the test (Hyndman & Koehler, 2006): below 1 is better than the last season was.
        smape: ``200 |y - f| / (|y| + |f|)``, in percent (Makridakis, 1993).
        pinball: the mean pinball loss of the three quantiles, twice, divided as MASE is.
        coverage: the share of values inside of the interval.
        width: of the interval, divided as MASE is.
    """

    mase: float
    smape: float
    pinball: float
    coverage: float
    width: float


def parts(problem: Problem, ys: np.ndarray) -> np.ndarray:
    """What each origin, series and step adds, ``(origins, series, horizon, 5)``; NaN if unknown."""
    tested = slice(problem.first, problem.first + problem.origins)
    truth, (low, middle, high) = problem.truth[tested], np.moveaxis(ys[tested], -1, 0)
    size = problem.size[:, None]
    error = np.abs(truth - middle)
    both = np.maximum(np.abs(truth) + np.abs(middle), 1e-12)
    taus = np.array([(1 - problem.level) / 2, 0.5, (1 + problem.level) / 2])
    missed = truth[..., None] - ys[tested]
    pinball = 2 * np.maximum(taus * missed, (taus - 1) * missed).mean(axis=-1) / size
    inside = np.where(np.isnan(truth), np.nan, (low <= truth) & (truth <= high))
    each = [error / size, 200 * error / both, pinball, inside, (high - low) / size]
    there = np.isfinite(truth) & np.isfinite(middle)
    return np.where(there[..., None], np.stack(each, axis=-1), np.nan)


def score(problem: Problem, ys: np.ndarray, steps: slice = slice(None)) -> Score:
    """The score of some steps ahead, each series with the same weight."""
    with warnings.catch_warnings(action="ignore"):  # a series may have ended before
        each = np.nanmean(parts(problem, ys)[:, :, steps], axis=(0, 2))
        return Score(*np.nanmean(each, axis=0).tolist())


def groups(horizon: int) -> dict[str, slice]:
    """Steps ahead that a table puts together: at most four."""
    cuts = sorted({0, 1, max(1, horizon // 4), max(1, horizon // 2), horizon})
    return {
        f"{a + 1}" if b == a + 1 else f"{a + 1} to {b}": slice(a, b)
        for a, b in itertools.pairwise(cuts)
    }
