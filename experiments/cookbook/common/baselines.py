"""What forecasts series without a network, and what all forecasts have in common.

Exponential smoothing and ARIMA are those of `statsmodels` (Hyndman & Athanasopoulos, "Forecasting:
principles and practice", 2021, says what they are).
"""

import functools
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np

# The scale on which a series varies alike, and back; which one, the part to choose by says.
SCALES: dict[str, tuple[Any, Any]] = {
    "": (np.array, np.array), " of logs": (np.log, np.exp), " of roots": (np.sqrt, np.square),
}  # fmt: skip
LONGEST = 24  # season of ETS and ARIMA, whose states are as long


class Problem(NamedTuple):
    """Series and how to forecast them: what the network and its baselines have in common."""

    values: np.ndarray  # (time, series), NaN where the file has none
    filled: np.ndarray  # the last known one instead; NaN before the first
    inputs: np.ndarray  # (time, series, columns), filled too
    periods: tuple[int, ...]
    horizon: int
    lag: int = 0  # the season whose values the network reads

    @property
    def parts(self) -> tuple[int, int]:
        """Where those to choose by, and those to test, begin."""
        known = len(self.values) - len(self.values) // 3
        return known - max(known // 10, min(24, known // 4)), known

    @property
    def shortest(self) -> int:
        """How many values the shortest series has to learn from."""
        return int(np.isfinite(self.values[: self.parts[0]]).sum(axis=0).min())

    def later(self, values: np.ndarray, steps: int) -> np.ndarray:
        """At each time, the values so many steps later."""
        at = np.arange(len(values)) + steps
        inside = (at >= 0) & (at < len(values))
        return np.where(inside[:, None], values[np.clip(at, 0, len(values) - 1)], np.nan)

    def ahead(self, values: np.ndarray, period: int = 0) -> np.ndarray:
        """The next values, ``(time, series, horizon)``, or in their place those of a season ago."""
        steps = [k - period * -(-k // period) if period else k for k in range(1, self.horizon + 1)]
        return np.stack([self.later(values, step) for step in steps], axis=-1)

    def telling(self) -> int:
        """The shortest season, if the part to choose by has more of it than of the last value."""
        last = np.stack([self.filled] * self.horizon, axis=-1)
        for m in [m for m in self.periods[:1] if m <= min(200, self.shortest - self.horizon - 10)]:
            ago = self.ahead(self.filled, m)
            tries = ago, last - self.later(self.filled, -m)[..., None] + ago, last
            losses = [self.loss(each, *self.parts) for each in tries]
            return m if min(losses) < losses[-1] else 0
        return 0

    @property
    def scales(self) -> list[str]:
        """Return the scales that these values allow."""
        least = float(np.nanmin(self.values))
        return ["", *[" of logs"] * (least > 0), *[" of roots"] * (least == 0)]

    def errors(self, forecasts: np.ndarray, first: int, last: int) -> np.ndarray:
        """Root mean squared errors ``(series, horizon)``, of times from ``first`` to ``last``."""
        origins = slice(first - 1, last - self.horizon)
        missed = forecasts[origins] - self.ahead(self.values)[origins]
        with warnings.catch_warnings(action="ignore"):  # a series may have no value there
            return np.sqrt(np.nanmean(missed**2, axis=0))

    def loss(self, forecasts: np.ndarray, first: int, last: int) -> float:
        """The mean error, each series by the size of its changes until then."""
        size = np.nanstd(np.diff(self.filled[:first], axis=0), axis=0)
        return float(np.nanmean(overall(self.errors(forecasts, first, last)) / size))


def overall(errors: np.ndarray) -> np.ndarray:
    """The root mean squared error over all steps ahead."""
    return np.sqrt((errors**2).mean(axis=-1))


def rivals(problem: Problem) -> list[dict[str, Callable[[int], np.ndarray]]]:
    """Baselines, fitted to so many values: of each kind several, of which one is chosen."""
    now, periods = problem.filled, problem.periods

    def grown(period: int, scale: str, _: int) -> np.ndarray:
        there, back = SCALES[scale]
        before = problem.later(there(now), -period)
        return back((there(now) - before)[..., None] + problem.ahead(there(now), period))

    def fitted(method: Any, scale: str, known: int) -> np.ndarray:
        there, back = SCALES[scale]
        found = np.full((*now.shape, problem.horizon), np.nan)
        with warnings.catch_warnings(action="ignore"), np.errstate(all="ignore"):
            for column, values in enumerate(there(now).T):
                begin = int(np.isnan(values).sum())
                found[begin:, column] = method(values[begin:], known - begin, problem.horizon)
            return back(found)

    some, scales = functools.partial, problem.scales
    kinds: list[dict[str, Any]] = [
        {"last value": lambda _: np.stack([now] * problem.horizon, axis=-1)},
        {f"value {m} before": lambda _, m=m: problem.ahead(now, m) for m in periods},
        {f"change {m} before{of}": some(grown, m, of) for m in periods for of in scales},
    ]
    if find_spec("statsmodels"):
        kinds += [
            {f"{label}{of}": some(fitted, each[label], of) for label in each for of in scales}
            for each in methods([m for m in periods if m <= min(LONGEST, problem.shortest // 3)])
        ]
    return [kind for kind in kinds if kind]


def compare(problem: Problem) -> dict[str, np.ndarray]:
    """What baselines forecast: of each kind the one that the part to choose by likes best."""
    begin, known = problem.parts
    found = {}
    for kind in rivals(problem):
        label = min(kind, key=lambda label: problem.loss(kind[label](begin), begin, known))
        found[label] = kind[label](known)
    return found


def methods(periods: Sequence[int]) -> list[dict[str, Callable[..., np.ndarray]]]:
    """By name: the kinds of exponential smoothing, of ARIMA and of AR, of a single series.

    Each is fitted to the ``known`` first of its ``values``, runs over the others with what was
    fitted, and forecasts at each time the next ``horizon`` ones, ``(time, horizon)``.
    """
    seasons = {"": 0} | {f", season {m}": m for m in periods}
    smoothing: dict[str, Any] = {
        f"ETS{of}": functools.partial(ets, period=m) for of, m in seasons.items()
    }
    moving: dict[str, Any] = {
        f"ARIMA(0,1,1){of}": functools.partial(arima, period=m) for of, m in seasons.items()
    }
    return [smoothing, moving, {"AR": ar}]


def ets(values: np.ndarray, known: int, horizon: int, *, period: int = 0) -> np.ndarray:
    """Exponential smoothing of a level, a damped trend and a season."""
    from statsmodels.tsa.api import ETSModel

    kind: dict[str, Any] = {"trend": "add", "damped_trend": True}
    kind |= {"seasonal": "add", "seasonal_periods": period} if period else {}
    found = ETSModel(values[:known], **kind).fit(disp=False)
    states = ETSModel(values, **kind).smooth(found.params, return_raw=True)[1]
    steps = np.arange(1, horizon + 1)
    ys = states[:, :1] + states[:, 1:2] * np.cumsum(found.damping_trend**steps)
    if period:  # the newest of each month, say
        then = np.arange(len(values))[:, None] + steps - period * -(-steps // period)
        ys += states[np.maximum(then, 0), 2]
    return ys


def arima(values: np.ndarray, known: int, horizon: int, *, period: int = 0) -> np.ndarray:
    """ARIMA(0, 1, 1), of the changes since a season ago too: the airline model (Box & Jenkins)."""
    from statsmodels.tsa.api import SARIMAX

    kind = {"order": (0, 1, 1), "seasonal_order": (0, 1, 1, period) if period else (0, 0, 0, 0)}
    found = SARIMAX(values[:known], **kind).fit(disp=False)
    return _ahead(SARIMAX(values, **kind), found.params, horizon)


def ar(values: np.ndarray, known: int, horizon: int) -> np.ndarray:
    """Autoregression, of as many lags as Akaike's criterion wants."""
    from statsmodels.tsa.api import SARIMAX, AutoReg
    from statsmodels.tsa.ar_model import ar_select_order

    lags = ar_select_order(values[:known], min(30, known // 10)).ar_lags or [1]
    found = AutoReg(values[:known], max(lags)).fit()
    order = (max(lags), 0, 0)
    model = SARIMAX(values, order=order, trend="c", enforce_stationarity=False)
    return _ahead(model, [*found.params, found.sigma2], horizon)


def _ahead(model: Any, params: Any, horizon: int) -> np.ndarray:
    result = model.filter(params).filter_results
    state, ys = result.predicted_state[:, 1:], []
    for _ in range(horizon):
        ys.append(result.design[0, :, 0] @ state)
        state = result.transition[..., 0] @ state + result.state_intercept[:, :1]
    return np.stack(ys, axis=-1)
