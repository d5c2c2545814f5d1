"""A file of one's own as time series: over one regular axis, with gaps where it has no row."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.forecast.cells import number, read_cells, read_dates
from rnnjax.errors import InvalidInputError

_DAY = 86_400
Axis = tuple[np.ndarray, np.ndarray, tuple[int, ...]]


class Series(NamedTuple):
    """Series over one regular time axis.

    Attributes:
        names: of the series.
        values: ``(time, series)``, NaN where the file has none. Behind the last value there are
            times whose inputs alone are known.
        past: ``(time, series, columns)``, what is read up to the time of a forecast, NaN as above.
        future: ``(time, series, columns)``, what is known of later times too.
        static: ``(series, columns)``, what does not change.
        times: ``(time,)``, datetime64, or the numbers of the rows.
        periods: steps of the seasons that such times may have.
    """

    names: list[str]
    values: np.ndarray
    past: np.ndarray
    future: np.ndarray
    static: np.ndarray
    times: np.ndarray
    periods: tuple[int, ...]


def read_series(
    raw: bytes,
    file: str,
    target: Sequence[str] = (),
    *,
    past: Sequence[str] = (),
    future: Sequence[str] = (),
    static: Sequence[str] = (),
    by: str | None = None,
    time: str | None = None,
) -> Series:
    """Read series from the bytes of a file: a row for each time, or for each time and series.

    The cells may be separated by commas, semicolons, tabs or bars, and quoted. Numbers have points
    or commas. Rows may come in any order, and those that are missing are gaps. A column of inputs
    that holds words becomes a column of zeros and ones for each word.

    Args:
        raw: the bytes, in UTF-8, UTF-16 with its mark, or Windows-1252.
        file: its name, for errors.
        target: the columns that are series; left out, the only one of numbers. Here and below one
            string may name several, with commas between them.
        past: columns that are read up to the time of a forecast.
        future: columns that are known of later times too, as holidays are.
        static: columns with one value for a series.
        by: the column that says to which series a row belongs.
        time: the column of the times; left out, the first one that holds dates, or else none.

    Raises:
        InvalidInputError: the file, a column or a cell is none of that; names the line.
    """
    header, rows, lines, points = read_cells(raw, file)
    columns = dict(zip(header, zip(*rows, strict=True), strict=True))
    target, past, future, static = (
        [name for one in chosen for name in ([one] if one in header else one.split(","))]
        for chosen in (target, past, future, static)
    )
    inputs = (*past, *future, *static)
    for name in (*target, *inputs, *filter(None, (by, time))):
        if header.count(name) != 1:
            raise InvalidInputError(
                f"{file} must have one column {name!r}, but has the columns {', '.join(header)}; "
                "name one of them"
            )
    numbers = {name: [number(cell, points) for cell in cells] for name, cells in columns.items()}
    full = [name for name in header if None not in numbers[name] and name not in (by, time)]
    whole = [
        name
        for name in full
        if name not in inputs and not np.isnan(np.array(numbers[name], float)).all()
    ]
    if not target and len(whole) != 1:
        raise InvalidInputError(
            f"{file} must have one column of numbers where no --target names it, but has "
            f"{len(whole)} ({', '.join(whole)}); name those to forecast by --target"
        )
    target = target or whole
    for name in target:
        if None in numbers[name]:
            bad = numbers[name].index(None)
            raise InvalidInputError(
                f"the column {name!r} of {file} must hold numbers, but line {lines[bad]} has "
                f"{columns[name][bad]!r}; correct it, or leave the cell empty"
            )
    maybe = [time] if time is not None else [name for name in header if name not in (*full, by)]
    found = (read_dates(columns[name]) for name in maybe)
    times, place, periods = _times(next((d for d in found if d is not None), None), columns, file,
                                   by, time)  # fmt: skip
    groups = columns[by] if by is not None else [""] * len(rows)
    names = sorted(set(groups))
    (at, group), count = Counter(zip(place, groups, strict=True)).most_common(1)[0]
    if count > 1:
        raise InvalidInputError(
            f"{file} must have one row for each time, but has {count} for {times[at]} {group}; "
            "name the column that tells them apart by --by, or leave one"
        )
    where = place, [names.index(group) for group in groups]

    def grid(cells: Sequence[np.ndarray]) -> np.ndarray:
        array = np.full((len(times), len(names), len(cells)), np.nan)
        array[where] = np.array(cells, float).reshape(len(cells), len(rows)).T
        return array

    def coded(chosen: Sequence[str]) -> list[np.ndarray]:
        return [one for name in chosen for one in _coded(columns[name], numbers[name])]

    def repeated(array: np.ndarray, axis: int) -> np.ndarray:
        return np.repeat(array, len(target), axis=axis)

    return Series(
        names=[f"{name}, {group}" if group else name for group in names for name in target],
        values=grid([np.array(numbers[name], float) for name in target]).reshape(len(times), -1),
        past=repeated(grid(coded(past)), 1),
        future=repeated(grid(coded(future)), 1),
        static=repeated(_static(grid(coded(static)), names, file), 0),
        times=times,
        periods=periods,
    )


def _coded(cells: Sequence[str], numbers: Sequence[float | None]) -> list[np.ndarray]:
    """A column of numbers, or for each word of it whether a row has that word."""
    if None not in numbers:
        return [np.array(numbers, float)]
    words = sorted(set(cells) - {""})
    return [np.array([cell == word for cell in cells], float) for word in words]


def _static(cells: np.ndarray, names: Sequence[str], file: str) -> np.ndarray:
    """What does not change, from ``(time, series, columns)``, as multiples of how series differ."""
    low, high = (
        function(np.where(np.isnan(cells), other, cells), axis=0)
        for function, other in ((np.min, np.inf), (np.max, -np.inf))
    )
    for name, differs in zip(names, (high > low).any(axis=-1), strict=True):
        if differs:
            raise InvalidInputError(
                f"a --static column of {file} must hold one value for each series, but has several "
                f"for {name or 'the only one'}; name it by --past or --future"
            )
    spread = high.std(axis=0)
    return np.where(np.isfinite(high), high - high.mean(axis=0), 0) / np.where(spread, spread, 1)


def _times(
    dates: np.ndarray | None,
    columns: dict[str, tuple[str, ...]],
    file: str,
    by: str | None,
    time: str | None,
) -> Axis:
    """The axis of the dates, or of the numbers of the rows."""
    if time is not None and dates is None:
        raise InvalidInputError(
            f"the column {time!r} of {file} must hold dates, but begins with "
            f"{columns[time][0]!r}; write them as 2024-12-31 or 2024-12-31 18:00"
        )
    if by is not None and dates is None:
        raise InvalidInputError(
            f"{file} must have a column of dates, as {by!r} names several series, but has none "
            "that can be read; write them as 2024-12-31"
        )
    if dates is None:
        rows = np.arange(len(next(iter(columns.values()))))
        return rows, rows, ()
    return _axis(dates)


def _axis(dates: np.ndarray) -> Axis:
    """A regular axis of times, the place of each date on it, and seasons' lengths in its steps."""
    steps, counts = np.unique(np.diff(np.unique(dates)).astype(int), return_counts=True)
    step = int(steps[counts.argmax()]) if len(steps) else _DAY  # the smallest of the most frequent
    for days, months, periods in ((30.4, 1, (12,)), (91.3, 3, (4,)), (365.25, 12, ())):
        if abs(step / _DAY - days) < 0.05 * days:  # which are not equally long
            place = dates.astype("datetime64[M]").astype(int) // months
            first, last = place.min(), place.max()
            times = (np.arange(first, last + 1) * months).astype("datetime64[M]")
            return times, place - first, periods
    place = np.rint((dates - dates.min()).astype(int) / step).astype(int)
    if place.max() > 50 * len(dates):
        raise InvalidInputError(
            f"times must be {step} seconds apart, as most are, but with the gaps between "
            f"{dates.min()} and {dates.max()} there are {place.max():,} steps; give means of days, "
            "say"
        )
    times = dates.min() + np.arange(place.max() + 1) * np.timedelta64(step, "s")
    if step % _DAY == 0:
        days = times.astype("datetime64[D]")
        return days, place, {1: (7, 365), 7: (52,)}.get(step // _DAY, ())
    return times, place, (_DAY // step, 7 * _DAY // step) if _DAY % step == 0 else ()
