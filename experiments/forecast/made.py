"""Made series: to see whether intervals cover, and what one model learns of many series."""

import numpy as np

from experiments.forecast.tables import Series


def single(kind: str, seed: int = 0, length: int = 360) -> Series:
    """A monthly series: ``seasonal``, ``regime`` (it changes near the end) or ``tails``.

    A season of twelve months, a trend, and noise that follows itself. The regime changes its level
    and doubles its noise; heavy tails are Student's t of 2.5 degrees of freedom.
    """
    rng, time = np.random.default_rng(seed), np.arange(length)
    noise = rng.standard_t(2.5, length) if kind == "tails" else rng.normal(size=length)
    change = 5 * length // 6
    late = time >= change
    if kind == "regime":
        noise = noise * np.where(late, 2, 1)
    follows = np.zeros(length)
    for t in range(1, length):
        follows[t] = 0.6 * follows[t - 1] + 4 * noise[t]
    values = 200 + 0.2 * time + 20 * np.sin(time * np.pi / 6) + follows
    if kind == "regime":
        values = values + late * (60 + 0.5 * (time - change))
    none = np.zeros((length, 1, 0))
    return Series([kind], values[:, None], none, none, none[0], _months(length), (12,))


def many(seed: int = 0, count: int = 60, length: int = 168, horizon: int = 12) -> Series:
    """Series of uneven length with gaps, and effects that only all of them together tell.

    A promotion, known beforehand, multiplies sales by what the kind of the shop and the month of
    the year make of it; an index that all share is known afterwards, and moves the next month.
    """
    rng, time = np.random.default_rng(seed), np.arange(length + horizon)
    kind = rng.integers(0, 2, count)
    index = np.zeros(len(time))
    for t in range(1, len(time)):
        index[t] = 0.8 * index[t - 1] + 0.1 * rng.normal()
    promotion = rng.uniform(size=(len(time), count)) < 0.2
    season = np.sin(2 * np.pi * (time[:, None] + rng.integers(0, 12, count)) / 12)
    effect = np.where(kind, 0.5, 0.15) * (1 + 0.6 * np.cos(2 * np.pi * time[:, None] / 12))
    level = np.cumsum(0.02 * rng.normal(size=(len(time), count)), axis=0)
    logs = rng.normal(4, 0.7, count) + level + 0.25 * season + effect * promotion
    logs = logs + np.roll(index, 1)[:, None] + 0.05 * rng.normal(size=logs.shape)
    values = np.exp(logs)
    values[length:] = np.nan
    for k, begin in enumerate(rng.integers(0, length // 2, count)):
        values[:begin, k] = np.nan
    values[rng.uniform(size=values.shape) < 0.03] = np.nan
    past = np.broadcast_to(index[:, None, None], (*values.shape, 1)).copy()
    past[length:] = np.nan
    static = (kind[:, None] - kind.mean()) / kind.std()
    names = [f"shop {k + 1}" for k in range(count)]
    known = promotion[..., None].astype(float)
    return Series(names, values, past, known, static, _months(len(values)), (12,))


def _months(count: int) -> np.ndarray:
    return np.datetime64("2000-01") + np.arange(count)
