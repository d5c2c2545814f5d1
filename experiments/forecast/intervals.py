"""Intervals that cover as often as they say: conformal calibration on rolling origins.

The quantiles of a network are those of its training. How far the values really miss the middle
quantile, in widths of the network's own interval, is seen from the origins that it had not seen:
these are the scores, and an interval is widened by their quantile (Romano et al., 2019, on scores
relative to the width). A split conformal interval takes the scores of one part and keeps them. A
series in time breaks its promise, since what comes is not exchangeable with what was: so here each
origin is calibrated by all that were known at it, and the width goes on following the misses (Gibbs
& Candès, 2021; Angelopoulos et al., 2023). Then the share of misses is right in the long run,
whatever the series does.
"""

import numpy as np

METHODS = ("heads", "split", "rolling", "adaptive")
NEWEST = 500  # origins by whose scores an interval is calibrated, at most
PACE = 0.1  # how far a miss of all steps widens the next intervals, on the scale of logarithms


def scores(ys: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """How far the truth is from the middle quantile, in widths on its side.

    Args:
        ys: quantiles ``(..., 3)``.
        truth: ``(...,)``, NaN where it is not known, as is the score then.

    Returns:
        ``(...,)``: 1 on the border of the interval.

    >>> scores(np.array([[0.0, 2.0, 3.0]]), np.array([4.0])).tolist()
    [2.0]
    """
    low, middle, high = np.moveaxis(ys, -1, 0)
    missed = truth - middle
    return np.maximum(missed / (high - middle), -missed / (middle - low))


def quantile(found: np.ndarray, level: float) -> np.ndarray:
    """The conformal quantile of scores ``(n, ...)``: number ``ceil((n + 1) level)`` of n, sorted.

    NaN is no score; infinite where there are too few.

    >>> quantile(np.arange(9.0), 0.8).item(), quantile(np.arange(3.0), 0.8).item()
    (7.0, inf)
    """
    count = np.isfinite(found).sum(axis=0)
    place = np.ceil((count + 1) * level - 1e-9).astype(int) - 1
    ordered = np.sort(np.where(np.isnan(found), np.inf, found), axis=0)
    taken = np.take_along_axis(ordered, np.minimum(place, len(found) - 1)[None], axis=0)[0]
    return np.where(place < count, taken, np.inf)


def factors(
    found: np.ndarray, begin: int, first: int, level: float, method: str = "adaptive"
) -> np.ndarray:
    """By what the width of each origin's intervals is multiplied, ``(time, series, horizon)``.

    Args:
        found: the scores, of the same shape, NaN before ``begin`` and where the truth is not known.
        begin: the first origin with scores.
        first: the first origin that is tested, from which there are factors.
        level: the share of values that are to be inside.
        method: "heads" (the network's own intervals), "split" (the scores that are known at
            ``first``, for ever), "rolling" (all that are known), or "adaptive": these, times what
            follows from the misses of the intervals of a series, over all steps ahead.

    Returns:
        NaN before ``first``. A step ``k`` ahead is known ``k`` times later. The scores of all
        series are one sample.
    """
    time, count, horizon = found.shape
    out = np.full(found.shape, np.nan)
    if method == "heads":
        out[first:] = 1.0
        return out
    excess = np.zeros((count, 1))
    used = np.full(found.shape, np.nan)  # from where misses are counted
    for t in range(begin, time):
        since = max(begin, t - NEWEST)
        sample = [found[since : max(t + 1 - k, since), :, k - 1] for k in range(1, horizon + 1)]
        if t < first and any(np.isfinite(each).sum() * (1 - level) < 1 for each in sample):
            continue
        if method != "split" or t <= first:
            base = np.array([quantile(each.reshape(-1, 1), level)[0] for each in sample])
        if method == "adaptive":
            then = t - np.arange(1, horizon + 1)  # each step is of another origin
            score, limit = (
                each[np.maximum(then, 0), :, np.arange(horizon)].T for each in (found, used)
            )
            told = np.isfinite(score) & np.isfinite(limit) & (then >= 0)
            surplus = np.where(told, (score > limit) - (1 - level), 0)
            excess += PACE * surplus.mean(axis=1, keepdims=True)
        used[t] = base * np.exp(excess)
    out[first:] = used[first:]
    return out


def widened(ys: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Quantiles ``(..., 3)`` whose distances from the middle one are multiplied."""
    middle = ys[..., 1:2]
    return middle + (ys - middle) * factor[..., None]
