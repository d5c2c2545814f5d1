"""A file of one's own as time series: separators, decimal commas, dates and gaps as they come."""

import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import numpy as np

from rnnjax.errors import InvalidInputError

_MISSING = {"", "na", "n/a", "#n/a", "nan", "null", "none", "-", "?", ".", "..."}
_GROUPED = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d*)?")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?")
# In the order in which they are tried, after those of ISO 8601.
_DATES = ("%Y-%m", "%Y/%m/%d", "%Y/%m", "%d.%m.%Y", "%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y",
          "%m/%Y", "%d.%m.%y", "%d/%m/%y", "%m/%d/%y", "%b %Y", "%B %Y", "%b-%y", "%d %b %Y",
          "%b %d, %Y", "%Y")  # fmt: skip
_CLOCKS = ("", " %H:%M", " %H:%M:%S")
_DAY = 86_400
Axis = tuple[np.ndarray, np.ndarray, tuple[int, ...]]


class Series(NamedTuple):
    """Series over one regular time axis.

    Attributes:
        names: of the series.
        values: ``(time, series)``, NaN where the file has none.
        inputs: ``(time, series, columns)``, what else is read, NaN as above.
        times: ``(time,)``, datetime64, or the numbers of the rows.
        periods: steps of the seasons that such times may have.
    """

    names: list[str]
    values: np.ndarray
    inputs: np.ndarray
    times: np.ndarray
    periods: tuple[int, ...]


def read_series(
    raw: bytes,
    file: str,
    target: Sequence[str] = (),
    *,
    inputs: Sequence[str] = (),
    by: str | None = None,
    time: str | None = None,
) -> Series:
    """Read series from the bytes of a file: a row for each time, or for each time and series.

    The cells may be separated by commas, semicolons, tabs or bars, and quoted. Numbers have points
    or commas. Rows may come in any order, and those that are missing are gaps.

    Args:
        raw: the bytes, in UTF-8, UTF-16 with its mark, or Windows-1252.
        file: its name, for errors.
        target: the columns that are series; left out, the only one of numbers.
        inputs: other columns of numbers.
        by: the column that says to which series a row belongs.
        time: the column of the times; left out, the first one that holds dates, or else none.

    Raises:
        InvalidInputError: the file, a column or a cell is none of that; names the line.
    """
    header, rows, lines, points = _cells(raw, file)
    columns = dict(zip(header, zip(*rows, strict=True), strict=True))
    for name in (*target, *inputs, *filter(None, (by, time))):
        if header.count(name) != 1:
            raise InvalidInputError(
                f"{file} must have one column {name!r}, but has the columns {', '.join(header)}; "
                "name one of them"
            )
    numbers = {name: [_number(cell, points) for cell in cells] for name, cells in columns.items()}
    full = [name for name in header if None not in numbers[name] and name not in (by, time)]
    whole = [name for name in full if not np.isnan(np.array(numbers[name], float)).all()]
    if not target and len(whole) != 1:
        raise InvalidInputError(
            f"{file} must have one column of numbers where no --target names it, but has "
            f"{len(whole)} ({', '.join(whole)}); name those to forecast by --target"
        )
    target = target or whole
    for name in (*target, *inputs):
        if None in numbers[name]:
            bad = numbers[name].index(None)
            raise InvalidInputError(
                f"the column {name!r} of {file} must hold numbers, but line {lines[bad]} has "
                f"{columns[name][bad]!r}; correct it, or leave the cell empty"
            )
    maybe = [time] if time is not None else [name for name in header if name not in (*full, by)]
    dates = next((found for name in maybe if (found := _dates(columns[name])) is not None), None)
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
    numbered: Axis = np.arange(len(rows)), np.arange(len(rows)), ()
    times, place, periods = numbered if dates is None else _axis(dates)
    groups = columns[by] if by is not None else [""] * len(rows)
    names = sorted(set(groups))
    cells = Counter(zip(place, groups, strict=True))
    (at, group), count = cells.most_common(1)[0]
    if count > 1:
        raise InvalidInputError(
            f"{file} must have one row for each time, but has {count} for {times[at]} {group}; "
            "name the column that tells them apart by --by, or leave one"
        )
    grid = np.full((len(times), len(names), len(target) + len(inputs)), np.nan)
    found = np.array([numbers[name] for name in (*target, *inputs)], float).T
    grid[place, [names.index(group) for group in groups]] = found
    values, more = grid[..., : len(target)], grid[..., len(target) :]
    return Series(
        [f"{name}, {group}" if group else name for group in names for name in target],
        values.reshape(len(times), -1), np.repeat(more, len(target), axis=1), times, periods,
    )  # fmt: skip


def _cells(raw: bytes, file: str) -> tuple[list[str], list[list[str]], list[int], str]:
    """The header, the rows, the line of each, and the decimal mark."""
    encodings = ("utf-16",) if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else ("utf-8-sig", "cp1252")
    text = None
    for encoding in encodings:
        try:
            text = raw.decode(encoding)
            break
        except UnicodeDecodeError:
            continue
    if text is None or "\0" in text:
        raise InvalidInputError(f"{file} must be a text, but is none; save the table as CSV")
    tables = {}
    for mark in ";,\t|":
        reader = csv.reader(io.StringIO(text), delimiter=mark)
        try:
            rows = [([cell.strip() for cell in row], reader.line_num) for row in reader]
        except csv.Error as error:
            raise InvalidInputError(
                f"{file} must be a table, but line {reader.line_num} is none ({error}); save it as "
                "CSV"
            ) from error
        tables[mark] = [(row, n) for row, n in rows if any(row) and not row[0].startswith("#")]

    def fitting(mark: str) -> tuple[bool, float, int]:
        widths = [len(row) for row, _ in tables[mark]]
        alike = sum(width == widths[0] for width in widths) / max(1, len(widths))
        return alike > 0.5 and widths[0] > 1, alike, widths[0] if widths else 0

    mark = max(tables, key=fitting)
    table = tables[mark]
    width = len(table[0][0]) if table else 0
    for row, line in table:
        if len(row) != width:
            raise InvalidInputError(
                f"the lines of {file} must have {width} cells, as the first one, but line {line} "
                f"has {len(row)}; correct it"
            )

    def left(points: str) -> int:  # columns that hold something else
        cells = [[_number(cell, points) is None for cell in row] for row, _ in table[1:]]
        return sum(map(any, zip(*cells, strict=True)))

    # Where cells are separated by semicolons, a comma is a decimal one if it can be.
    points = min(",." if mark == ";" else ".,", key=left)
    first = [_number(cell, points) for cell in table[0][0]] if table else []
    titled = all(value is None or np.isnan(value) for value in first) and table
    header = [
        cell if titled and cell else f"column {k + 1}"
        for k, cell in enumerate(table[0][0] if table else [])
    ]
    table = table[1:] if titled else table
    if len(table) < 2:
        raise InvalidInputError(
            f"{file} must have several rows, but has {len(table)}; give a file with a series"
        )
    return header, [row for row, _ in table], [line for _, line in table], points


def _number(cell: str, points: str = ".") -> float | None:
    """A number; NaN where the cell is empty, None where it holds something else."""
    cell = re.sub(r"\s", "", cell).replace("−", "-").lower()
    if cell in _MISSING:
        return np.nan
    if points == ",":
        cell = cell.translate({ord(","): ".", ord("."): ","})
    if _GROUPED.fullmatch(cell):
        cell = cell.replace(",", "")
    return float(cell) if _NUMBER.fullmatch(cell) else None


def _dates(cells: Sequence[str]) -> np.ndarray | None:
    """The times in cells, datetime64; None if they are none."""

    def parsed(form: str) -> np.ndarray | None:
        try:
            read = (
                datetime.fromisoformat if not form else lambda cell: datetime.strptime(cell, form)
            )
            times = [read(cell) for cell in cells]
            shifts = [time.utcoffset() for time in times]
            return np.array([
                time.replace(tzinfo=None) - shift if shift else time.replace(tzinfo=None)
                for time, shift in zip(times, shifts, strict=True)
            ], "datetime64[s]")  # fmt: skip
        except ValueError:
            return None

    forms = ["", *(date + clock for date in _DATES for clock in _CLOCKS)]
    found = [times for form in forms if (times := parsed(form)) is not None]

    def uneven(times: np.ndarray) -> float:
        steps = np.diff(np.unique(times)).astype(float)
        return float(np.std(steps) / np.mean(steps)) if len(steps) else 0.0

    # 03/04 is in April where that makes the times more regular, else in March.
    return min(found, key=uneven, default=None)


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
