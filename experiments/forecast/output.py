"""What a run shows and writes: the values that come, the table of the backtest, a picture."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.forecast.problem import Problem
from experiments.forecast.scores import Score, groups, score

OURS = "GRU"
SHOWN = 3  # series of which the coming values are printed


class Coming(NamedTuple):
    """The next values of each series: ``times (series, horizon)``, ``ys (series, horizon, 3)``."""

    times: np.ndarray
    ys: np.ndarray

    @classmethod
    def of(cls, problem: Problem, ys: np.ndarray) -> "Coming":
        """From quantiles ``(time, series, horizon, 3)``: what was forecast at each series' end."""
        times, ends, place = problem.series.times, problem.ends, np.arange(len(problem.ends))
        steps = np.arange(1, problem.horizon + 1)
        then = times[ends][:, None] + steps * (times[1] - times[0])
        return cls(then, ys[ends, place])


class Result(NamedTuple):
    """What a run makes of one file: the forecasts, what comes, the backtest's rows, what to keep.

    ``ys (time, series, horizon, 3)`` and ``rows`` are those of a backtest, if there was one.
    """

    ys: np.ndarray | None
    coming: Coming
    rows: list[tuple[str, str, Score]]
    about: dict[str, Any]


def backtest_rows(
    problem: Problem, found: Mapping[str, np.ndarray]
) -> list[tuple[str, str, Score]]:
    """Rows of the backtest's table: the network by steps ahead, then all of everyone's."""
    rows = [
        (OURS, steps, score(problem, found[OURS], part))
        for steps, part in groups(problem.horizon).items()
    ]
    return rows + [(name, "all", score(problem, ys)) for name, ys in found.items()]


def table(rows: Iterable[tuple[str, str, Score]]) -> list[str]:
    """The lines of the backtest's table."""
    lines = [
        f"{'':<16}{'steps':>9}{'MASE':>8}{'sMAPE':>8}{'pinball':>9}{'coverage':>10}{'width':>8}"
    ]
    for name, steps, one in rows:
        lines.append(
            f"{name:<16}{steps:>9}{one.mase:>8.3f}{one.smape:>8.2f}{one.pinball:>9.3f}"
            f"{one.coverage:>10.3f}{one.width:>8.3f}"
        )
    return lines


def verdict(rows: Sequence[tuple[str, str, Score]]) -> str:
    """Which baselines the network does not beat, by MASE."""
    whole = {name: one.mase for name, steps, one in rows if steps == "all"}
    ours = whole.pop(OURS)
    ahead = [f"{name} ({mase:.3f})" for name, mase in whole.items() if mase <= ours]
    if ahead:
        return f"The network (MASE {ours:.3f}) does not beat {', '.join(ahead)}: take that one."
    return f"The network (MASE {ours:.3f}) beats {', '.join(whole)}."


def coming_lines(problem: Problem, coming: Coming, level: int) -> list[str]:
    """The next values of the first series, as they are in forecasts.csv."""
    lines = []
    names = problem.series.names
    for name, times, ys in zip(names[:SHOWN], *(part[:SHOWN] for part in coming), strict=True):
        lines.append(f"{name:<20}{'forecast':>12}{f'{level} % within':>26}")
        for time, (low, middle, high) in zip(times[:12], ys[:12], strict=False):
            lines.append(f"  {written(time):<18}{middle:>12.6g}{low:>13.6g}{high:>13.6g}")
        if len(times) > 12:
            lines.append(f"  and {len(times) - 12} more")
    if len(names) > SHOWN:
        lines.append(f"and {len(names) - SHOWN} more series")
    return lines


def span(problem: Problem) -> str:
    """Which times a file has, or that it has none."""
    times = problem.series.times[: problem.last + 1]
    if times.dtype.kind != "M":
        return f"{len(times)} times (no dates: the rows are taken in the order of the file)"
    return f"{len(times)} times from {written(times[0])} to {written(times[-1])}"


def written(time: Any) -> str:
    """A time as a spreadsheet writes it.

    >>> written(np.datetime64("2024-03-15T06:00:00")), written(np.datetime64("2024-03"))
    ('2024-03-15 06:00', '2024-03')
    """
    return str(time).replace("T", " ").removesuffix(":00")


def forecast_rows(problem: Problem, coming: Coming, title: str = "") -> list[tuple[Any, ...]]:
    """Rows of forecasts.csv."""
    return [
        (written(time), title or name, middle, low, high)
        for name, times, each in zip(problem.series.names, *coming, strict=True)
        for time, (low, middle, high) in zip(times, each, strict=True)
    ]


def panel(problem: Problem, result: Result, k: int) -> dict[str, Any]:
    """The lines of a picture: the end of a series, forecasts of its test, and what comes.

    The forecasts of the test are pieces, one from every ``horizon``-th origin.
    """
    times, horizon, end = problem.series.times, problem.horizon, int(problem.ends[k])
    begin = max(0, end + 1 - max(4 * horizon, 48))
    lines = {"measured": (times[begin : end + 1], problem.series.values[begin : end + 1, k])}
    if result.ys is not None:
        first, pieces = max(problem.first, (begin + end) // 2), []
        for origin in range(end - horizon, first - 1, -horizon)[::-1]:
            then = np.minimum(np.arange(origin + 1, origin + horizon + 2), origin + horizon)
            piece = np.concatenate([result.ys[origin, k], np.full((1, 3), np.nan)])
            # What is one step ahead is a line; what is more is broken where an origin ends.
            pieces.append(
                (times[then][: horizon + (horizon > 1)], piece[: horizon + (horizon > 1)])
            )
        if pieces:
            label = f"{OURS}, an origin every {horizon} steps" if horizon > 1 else OURS
            then, values = zip(*pieces, strict=True)
            lines[label] = np.concatenate(then), np.concatenate(values)
    lines[f"{OURS}, what comes"] = result.coming.times[k], result.coming.ys[k]
    return lines
