"""Exponential smoothing of many fixed rates: from what it expects a network's forecast begins.

A network that forecasts a series from nothing first has to learn its level and its season. Smyl's
hybrid (2020), which won the M4 competition, smooths, and lets the network learn what is left. Here
no rate is learned: all of a small grid run side by side, and each weighs as its forecasts were good
so far, as in prediction with expert advice (Cesa-Bianchi & Lugosi, 2006). So what is expected at a
time follows from the values until then, and from nothing else.
"""

import itertools
from collections import deque
from collections.abc import Sequence

import numpy as np

LEVELS, TRENDS, SEASONS = (0.03, 0.1, 0.3, 0.6, 1.0), (0.0, 0.03, 0.1), (0.03, 0.1, 0.3, 0.6)
DAMPING = 0.97  # of the trend, a step
SHARPNESS, MEMORY = 1.0, 0.99  # of the weights: the first, by how many errors; the other, a step


class Smoother:
    """All rates of one period, for several series.

    With the error ``e = y - (l + phi b + s)`` of a step (Hyndman et al., 2008):
    ``l += phi b + alpha e``, ``b = phi b + alpha beta e``, ``s += gamma e``. A gap has no error.
    Level and season begin as those of the first ``period`` values, and expect nothing before.
    """

    def __init__(self, values: np.ndarray, period: int, horizon: int) -> None:
        seasons = SEASONS if period > 1 else (0.0,)
        rates = np.array(list(itertools.product(LEVELS, TRENDS, seasons)))
        self.alpha, self.beta, self.gamma = rates.T[..., None]
        self.period, self.ahead = period, np.arange(1, horizon + 1)
        self.damped = np.cumsum(DAMPING**self.ahead)
        self.begins = np.isfinite(values).argmax(axis=0)
        self.level = np.zeros((len(rates), values.shape[1]))
        self.trend = np.zeros_like(self.level)
        self.season = np.zeros((period, *self.level.shape))
        for k, begin in enumerate(self.begins):
            first = values[begin : begin + period, k]
            self.level[:, k] = np.nanmean(first)
            if period > 1:
                place = (begin + np.arange(len(first))) % period
                self.season[place, :, k] = np.nan_to_num(first - np.nanmean(first))[:, None]

    def step(self, time: int, value: np.ndarray) -> np.ndarray:
        """Read the values of a time, and return what is expected, ``(rates, series, horizon)``."""
        drift, place = DAMPING * self.trend, time % self.period
        error = np.nan_to_num(value - (self.level + drift + self.season[place]))
        error = np.where(time >= self.begins, error, 0.0)
        self.level = self.level + drift + self.alpha * error
        self.trend = drift + self.alpha * self.beta * error
        self.season[place] += self.gamma * error
        expected = self.level[..., None] + self.damped * self.trend[..., None]
        if self.period > 1:
            then = (time + self.ahead) % self.period
            expected = expected + np.moveaxis(self.season[then], 0, -1)
        early = time < self.begins + self.period - 1
        return np.where(early[:, None], np.nan, expected)


def expect(values: np.ndarray, periods: Sequence[int], horizon: int) -> np.ndarray:
    """What all rates of all periods together expect of the next values at each time.

    Args:
        values: ``(time, series)``, NaN where there is none.
        periods: of the seasons; without one there is none.
        horizon: how many steps ahead.

    Returns:
        ``(time, series, horizon)``, NaN before the first value.
    """
    smoothers = [Smoother(values, period, horizon) for period in (1, *periods)]
    steps = sorted({1, (horizon + 1) // 2, horizon})
    made: deque[np.ndarray] = deque(maxlen=horizon)  # the newest last
    found = np.full((*values.shape, horizon), np.nan)
    loss = np.zeros((0, values.shape[1]))
    count = np.zeros(values.shape[1])
    for time, value in enumerate(values):
        if len(made) >= horizon:
            misses = np.mean([np.abs(value - made[-k][..., k - 1]) for k in steps], axis=0)
            known = np.isfinite(misses).any(axis=0)
            behind = np.where(known, np.nanmin(np.where(known, misses, 0), axis=0), 0)
            # Rates that expect nothing yet are as good as the best.
            loss = np.where(known, MEMORY * loss + np.where(np.isnan(misses), behind, misses), loss)
            count = np.where(known, MEMORY * count + 1, count)
        made.append(np.concatenate([each.step(time, value) for each in smoothers]))
        loss = loss if len(loss) else np.zeros(made[0].shape[:2])
        best = loss.min(axis=0)
        weights = np.exp(-SHARPNESS * count * (loss - best) / np.maximum(best, 1e-12))
        weights = np.where(np.isnan(made[-1][..., 0]), 0, weights)[..., None]
        total = weights.sum(axis=0)
        expected = (weights * np.nan_to_num(made[-1])).sum(axis=0)
        found[time] = np.where(total > 0, expected / np.maximum(total, 1e-300), np.nan)
    return found
