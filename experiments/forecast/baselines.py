"""What forecasts without a network, with intervals: naive ways, and ETS and ARIMA of `statsmodels`.

Each is fitted to what is known at the first tested origin, and goes on from there with what was
fitted (Hyndman & Athanasopoulos, "Forecasting: principles and practice", 2021, says what they are).
"""

import functools
import itertools
import sys
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from experiments.forecast.features import SCALES
from experiments.forecast.problem import Problem

LONGEST = 24  # season of ETS and ARIMA, whose states are as long


class Ahead(NamedTuple):
    """Forecasts of one series, and their variance, each ``(time, horizon)``."""

    mean: np.ndarray
    variance: np.ndarray


Method = Callable[[np.ndarray, int, int], Ahead]
"""From values, how many of them it may be fitted to, and a horizon."""


def compare(problem: Problem) -> dict[str, np.ndarray]:
    """Quantiles ``(time, series, horizon, 3)`` by the name of the baseline.

    The season is the one whose last value forecast best before the test; ETS and ARIMA take it if
    it has at most 24 steps.
    """
    season, scale, some = _season(problem), problem.scale, functools.partial
    ways: dict[str, tuple[Method, str]] = {"naive": (some(naive, lag=0), "")}
    if season:
        ways["seasonal naive"] = some(naive, lag=season), ""
    if find_spec("statsmodels"):
        short = season if season <= LONGEST else 0
        ways |= {
            "ETS": (some(ets, period=short), scale),
            "ARIMA": (some(arima, period=short), scale),
        }
    return {name: _all(problem, name, *way) for name, way in ways.items()}


def _season(problem: Problem) -> int:
    values = problem.series.values[: problem.first]

    def missed(m: int) -> float:
        return float(np.nanmean(np.abs(values[m:] - values[:-m])))

    fitting = [m for m in problem.periods if 2 * m <= len(values)]
    return min(fitting, key=missed, default=0)


def _all(problem: Problem, name: str, method: Method, scale: str) -> np.ndarray:
    """Every series by itself, from its first value to its last; after two it says how long."""
    there, back = SCALES[scale]
    far = NormalDist().inv_cdf((1 + problem.level) / 2)
    values = problem.series.values
    found = np.full((*values.shape, problem.horizon, 3), np.nan)
    began = time.perf_counter()
    with warnings.catch_warnings(action="ignore"), np.errstate(all="ignore"):
        for k, column in enumerate(there(values).T):
            begin, end = int(np.isfinite(column).argmax()), int(problem.ends[k]) + 1
            known = min(problem.first + 1, end) - begin
            if known < 10:
                continue
            ahead = method(column[begin:end], known, problem.horizon)
            left = (time.perf_counter() - began) / (k + 1) * (values.shape[1] - k - 1)
            if k == 1 and left > 5:
                print(f"{name}: about {left:.0f} s more", file=sys.stderr, flush=True)
            spread = far * np.sqrt(ahead.variance)[..., None] * np.array([-1, 0, 1])
            ys = ahead.mean[..., None] + spread
            found[begin:end, k] = back(np.maximum(ys, 0) if scale == " of roots" else ys)
    return found


def naive(values: np.ndarray, known: int, horizon: int, *, lag: int) -> Ahead:
    """The last value, or that of a season ago; in a gap, the one before.

    Its errors are those of a random walk: their variance grows with each step, or season.
    """
    place, steps = np.arange(len(values)), np.arange(1, horizon + 1)
    m = max(lag, 1)
    filled = pd.Series(values).groupby(place % m).ffill().to_numpy()
    rounds = -(-steps // m)
    at = place[:, None] + steps - m * rounds
    mean = np.where(at >= 0, filled[np.maximum(at, 0)], np.nan)
    variance = np.nanmean((filled[m:known] - filled[: known - m]) ** 2)
    return Ahead(mean, np.broadcast_to(variance * rounds, mean.shape))


def ets(values: np.ndarray, known: int, horizon: int, *, period: int = 0) -> Ahead:
    """Exponential smoothing with additive errors: trend and season as Akaike's criterion wants.

    The variance is that of the linear models (Hyndman et al., 2008, chapter 6): with
    ``c_j = alpha (1 + beta* (phi + ... + phi^j)) + gamma [j is a season]`` it is
    ``sigma^2 (1 + c_1^2 + ... + c_(h-1)^2)``.
    """
    from statsmodels.tsa.api import ETSModel

    values, best = _filled(values, period), None
    trends: list[dict[str, Any]] = [{}, {"trend": "add"}, {"trend": "add", "damped_trend": True}]
    season: dict[str, Any] = {"seasonal": "add", "seasonal_periods": period}
    for trend, seasonal in itertools.product(trends, [{}, season] if 2 <= period <= known // 3
                                             else [{}]):  # fmt: skip
        try:
            fitted = ETSModel(values[:known], **trend, **seasonal).fit(disp=False)
        except (ValueError, np.linalg.LinAlgError):
            continue
        if np.isfinite(fitted.aic) and (best is None or fitted.aic < best[0].aic):
            best = fitted, trend | seasonal
    if best is None:
        return naive(values, known, horizon, lag=period)
    fitted, kind = best
    states = ETSModel(values, **kind).smooth(fitted.params, return_raw=True)[1]
    steps = np.arange(1, horizon + 1)
    phi = getattr(fitted, "damping_trend", 1.0) if "damped_trend" in kind else 1.0
    damped = np.cumsum(phi**steps)
    mean = np.repeat(states[:, :1], horizon, axis=1)
    weights = np.full(horizon, fitted.smoothing_level)
    if "trend" in kind:
        mean = mean + states[:, 1:2] * damped
        weights = weights + fitted.smoothing_trend * damped
    if "seasonal" in kind:  # the newest of each month, say
        then = np.arange(len(values))[:, None] + steps - period * -(-steps // period)
        mean = mean + states[np.maximum(then, 0), 2 if "trend" in kind else 1]
        weights = weights + fitted.smoothing_seasonal * (steps % period == 0)
    variance = fitted.scale * (1 + np.cumsum(np.concatenate([[0], weights[:-1] ** 2])))
    return Ahead(mean, np.broadcast_to(variance, mean.shape))


def arima(values: np.ndarray, known: int, horizon: int, *, period: int = 0) -> Ahead:
    """ARIMA: the airline model (Box & Jenkins), or an autoregression.

    Akaike's criterion cannot compare them, as they explain other numbers; the one with the
    smaller error in the last fifth of what is known is taken.
    """
    from statsmodels.tsa.api import SARIMAX

    kinds: list[dict[str, Any]] = [{"order": (0, 1, 1)}, {"order": (1, 1, 1)}]
    kinds += [{"order": (p, 0, 0), "trend": "c"} for p in (1, 3, 9) if p < known // 10]
    if 2 <= period <= known // 3:
        kinds.append({"order": (0, 1, 1), "seasonal_order": (0, 1, 1, period)})
    part = known - max(8, known // 5)
    tried: list[tuple[float, int, dict[str, Any]]] = []
    for kind in kinds:
        try:
            fitted = SARIMAX(values[:part], **kind).fit(disp=False, maxiter=50)
            ahead = _ahead(SARIMAX(values[:known], **kind), fitted.params, horizon)
        except (ValueError, np.linalg.LinAlgError):
            continue
        missed = ahead.mean[part - 1 : known - 1, 0] - values[part:known]
        tried.append((float(np.nanmean(np.abs(missed))), len(tried), kind))
    kind = min(tried)[2]
    params = SARIMAX(values[:known], **kind).fit(disp=False, maxiter=50).params
    return _ahead(SARIMAX(values, **kind), params, horizon)


def _ahead(model: Any, params: Any, horizon: int) -> Ahead:
    """Forecasts of a state space at each time: Kalman's filter, and steps without a value."""
    found = model.filter(params).filter_results
    state, cov = found.predicted_state[:, 1:], np.moveaxis(found.predicted_state_cov, -1, 0)[1:]
    design, transition = found.design[0, :, 0], found.transition[..., 0]
    selection = found.selection[..., 0]
    noise = selection @ found.state_cov[..., 0] @ selection.T
    mean, variance = [], []
    for _ in range(horizon):
        mean.append(design @ state)
        variance.append(np.einsum("i,tij,j->t", design, cov, design) + found.obs_cov[0, 0, 0])
        state = transition @ state + found.state_intercept[:, :1]
        cov = transition @ cov @ transition.T + noise
    return Ahead(np.stack(mean, axis=-1), np.stack(variance, axis=-1))


def _filled(values: np.ndarray, period: int) -> np.ndarray:
    """ETS takes no gaps: in each is the value of a season ago, or the last one."""
    filled = values.copy()
    for t in range(len(values)):
        if np.isnan(filled[t]) and t:
            filled[t] = filled[t - period] if t >= period > 0 else filled[t - 1]
    return filled
