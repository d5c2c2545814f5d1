"""A file of one's own as time series: over one regular axis, with gaps where it has no row."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from experiments.forecast.cells import (
    DIGITS,
    FORMS,
    Dates,
    likely_forms,
    number,
    read_cells,
    read_dates,
    wrong_cell,
)  # fmt: skip
from rnnjax.errors import InvalidInputError

_DAY = 86_400
_MONTH = 365.25 / 12 * _DAY
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
    date_form: str | None = None,
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
        time: the column of the times; left out, the first one that holds dates, or else the only
            one of whole numbers that are years, days or Unix seconds. Where a file has neither,
            nor any other column of words, the times are the numbers of the rows.
        date_form: how the times are written, as strptime says it; left out, one of `FORMS`.

    Raises:
        InvalidInputError: the file, a column or a cell is none of that; names the line.
    """
    frame, points = read_cells(raw, file)
    target, past, future, static = (
        [name for one in chosen for name in ([one] if one in frame else one.split(","))]
        for chosen in (target, past, future, static)
    )
    inputs = (*past, *future, *static)
    for name in (*target, *inputs, *filter(None, (by, time))):
        if name not in frame:
            raise InvalidInputError(
                f"{file} must have a column {name!r}, but has the columns {_some(frame)}; name one "
                "of them"
            )
    numbers = frame.map(number, points=points)
    bad = np.isinf(numbers)
    mostly = np.isfinite(numbers).sum() > bad.sum()
    free = [name for name in frame if name not in (*target, *inputs, by)]
    figures = [name for name in free if mostly[name]]
    words = [name for name in free if bad[name].any() and not mostly[name]]
    # What is to be forecast is no time, and so neither the only column nor the only numbers.
    tried = words * bool(target or free[1:]), figures * bool(target or figures[1:])
    dates = _dates(frame, file, *(tried if time is None else ([time], [])), by, date_form)
    taken = dates.column if dates else None
    left = [name for name in (*figures, *words) if name not in (time, taken)]
    whole = [name for name in left if mostly[name]] or left[:1]
    if not target and len(whole) != 1:
        raise InvalidInputError(
            f"{file} must have one column of numbers where no --target names it, but has "
            f"{_some(whole)}; name those to forecast by --target"
        )
    target = target or whole
    for name in (*target, *inputs):
        if bad[name].any() and (mostly[name] or name in target):
            raise wrong_cell(frame[name], bad[name], file, "numbers")
    groups = frame[by] if by is not None else pd.Series("", frame.index)
    names = sorted(groups.unique())
    times, place, periods = _axis(frame.index, file, dates)
    rows = pd.DataFrame({"place": place, "group": groups})
    if (twice := rows.duplicated()).any():
        one = rows[twice].iloc[0]
        lines = rows.index[(rows == one).all(axis=1)]
        raise InvalidInputError(
            f"{file} must have one row for each time, but lines {_some(lines)} are for "
            f"{times[one['place']]} of {taken!r}; leave one, or name the column that tells them "
            "apart by --by, or another column of times by --time"
        )
    where = place, groups.map(names.index).to_numpy()

    def table(chosen: Sequence[str]) -> np.ndarray:
        each = [one for name in chosen for one in _coded(frame[name], numbers[name])]
        return np.array(each, float).reshape(len(each), len(frame)).T

    def grid(cells: np.ndarray) -> np.ndarray:
        array = np.full((len(times), len(names), cells.shape[1]), np.nan)
        array[where] = cells
        return array

    return Series(
        names=[f"{name}, {group}" if group else name for group in names for name in target],
        values=grid(numbers[target].to_numpy()).reshape(len(times), -1),
        past=np.repeat(grid(table(past)), len(target), axis=1),
        future=np.repeat(grid(table(future)), len(target), axis=1),
        static=np.repeat(_static(pd.DataFrame(table(static)), groups, file), len(target), axis=0),
        times=times,
        periods=periods,
    )


def _some(names: Iterable[Any]) -> str:
    names = [str(name) for name in names]
    return ", ".join(names[:8] + [f"{len(names) - 8} more"] * (len(names) > 8)) or "none"


def _coded(cells: pd.Series, numbers: pd.Series) -> list[pd.Series]:
    """A column of numbers, or for each word of it whether a row has that word."""
    if not np.isinf(numbers).any():
        return [numbers]
    return [cells == word for word in sorted(cells.unique()) if word]


def _static(cells: pd.DataFrame, groups: pd.Series, file: str) -> np.ndarray:
    """What does not change, of each series, as multiples of how series differ."""
    each = cells.groupby(groups.to_numpy())
    low, high = each.min(), each.max()
    differs = (high > low).any(axis=1)
    if differs.any():
        raise InvalidInputError(
            f"a --static column of {file} must hold one value for each series, but has several "
            f"for {differs.idxmax() or 'the only one'}; name it by --past or --future"
        )
    spread = high.std(ddof=0).replace(0, 1)
    return ((high - high.mean()) / spread).fillna(0).to_numpy(float)


def _dates(
    frame: pd.DataFrame,
    file: str,
    words: Sequence[str],
    figures: Sequence[str],
    by: str | None,
    form: str | None,
) -> Dates | None:
    """The dates of the first column of words, or of the only one of numbers, that holds them."""
    forms, digits = ({form: ".*"}, {form: ".*"}) if form else (FORMS, DIGITS)
    for name in words:
        if dates := read_dates(frame[name], file, forms):
            return dates
    # With one cell in ten wrong numbers are refused, with more they are no times.
    whole = {name: frame[name].unique() for name in figures}
    sure = [name for name in figures if likely_forms(whole[name], digits, 0.9 * len(whole[name]))]
    if len(sure) > 1:
        raise InvalidInputError(
            f"{file} must have one column of times, but {_some(sure)} can all be; name it by --time"
        )
    if sure:
        return read_dates(frame[sure[0]], file, digits)
    if words:
        cells = frame[words[0]]
        way = "say how they are written by --date-form, or delete the column"
        raise wrong_cell(cells, cells == cells.iloc[0], file, "dates", way)
    if form or by is not None:
        raise InvalidInputError(
            f"{file} must have a column of dates where --by or --date-form is given, but has none; "
            "add one, of dates such as 2024-12-31"
        )
    return None


def _axis(lines: pd.Index, file: str, dates: Dates | None) -> Axis:
    """A regular axis of times, the place of each row on it, and seasons' lengths in its steps."""
    if dates is None:
        rows = np.arange(len(lines))
        return rows, rows, ()
    utc = dates.clock - dates.ahead
    steps, counts = np.unique(np.diff(np.unique(utc)).astype(int), return_counts=True)
    step = int(steps[counts.argmax()]) if len(steps) else _DAY  # the smallest of the most frequent
    # A day begins by the clock of a place, and hours go on when that is changed.
    then = dates.clock if step >= _DAY else utc
    # Months are not equally long.
    count, month = round(step / _MONTH), then.astype("datetime64[M]").astype(int)
    near = count > 0 and abs(step / _MONTH / count - 1) < 0.05
    # The month of a year or quarter may change, but not that of other multiples.
    if near and (count in (1, 3, 12) or len(set(month % count)) == 1):
        place, within = month // count, np.bincount(month % count).argmax()
        times = np.arange(place.min(), place.max() + 1) * count + within
        periods = (12 // count,) if count in (1, 2, 3, 4, 6) else ()
        return times.astype("datetime64[M]"), place - place.min(), periods
    place = np.rint((then - then.min()).astype(int) / step).astype(int)
    if place.max() > 50 * len(place):
        order = np.argsort(place)
        gap = np.diff(place[order]).argmax()
        before, behind = order[gap : gap + 2]
        raise InvalidInputError(
            f"the times of {file} must be {step} seconds apart, as most are, but those of lines "
            f"{lines[before]} and {lines[behind]}, {then[before]} and {then[behind]}, are "
            f"{place[behind] - place[before]:,} steps apart; correct them, or give means of days, "
            "say"
        )
    times = then.min() + np.arange(place.max() + 1) * np.timedelta64(step, "s")
    if step % _DAY == 0:
        days = times.astype("datetime64[D]")
        return days, place, {1: (7, 365), 7: (52,)}.get(step // _DAY, ())
    return times, place, (_DAY // step, 7 * _DAY // step) if _DAY % step == 0 else ()
