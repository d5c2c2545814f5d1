"""The cells of a CSV file as numbers and dates; one that cannot be read is named by its line."""

import csv
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

import numpy as np
import pandas as pd

from rnnjax.errors import InvalidInputError

_MISSING = {"", "na", "n/a", "#n/a", "nan", "null", "none", "-", "?", ".", "..."}
_GROUPED = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d*)?")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?")
# Day and month stand both ways, so that where either can be meant both are found.
_DATES = ("%Y-%m-%d", "%d-%m-%Y", "%m-%d-%Y", "%y-%m-%d", "%d-%m-%y", "%m-%d-%y", "%d-%b-%Y",
         "%b-%d-%Y", "%d-%b-%y", "%d-%B-%Y", "%B-%d-%Y", "%Y-%m", "%m-%Y", "%b-%Y", "%B-%Y",
         "%b-%y", "%Y-%b", "%Y-M%m", "M%m-%Y")  # fmt: skip
_CLOCKS = ("", " %H:%M", " %H:%M:%S", " %H:%M:%S.%f", " %I:%M %p", " %I:%M:%S %p")
_ISO, _SECONDS, _MILLISECONDS = "ISO 8601", "Unix seconds", "Unix milliseconds"
# Forms of strptime and some of ours, each with what a cell must match: those by which columns of
# numbers are tried, from the year 1000 to 2999, and all.
DIGITS = {"%Y": r"[12]\d{3}", "%Y%m%d": r"[12]\d{7}", "%d%m%Y": r"\d{4}[12]\d{3}",
          "%m%d%Y": r"\d{4}[12]\d{3}", "%Y%m%d%H%M%S": r"[12]\d{13}", "%Y.%m": r"[12]\d{3}\.\d\d",
          "%m.%Y": r"\d\d\.[12]\d{3}",
          _SECONDS: r"\d{9,10}", _MILLISECONDS: r"\d{12,13}"}  # fmt: skip
FORMS = {_ISO: ".*", **DIGITS} | dict.fromkeys([
    "%YM%m", "%b %d, %Y", "%B %d, %Y",
    *(date.replace("-", mark) + clock for mark in "-/. " for date in _DATES for clock in _CLOCKS),
], ".*")  # fmt: skip


def read_cells(raw: bytes, file: str) -> tuple[pd.DataFrame, str]:
    """The cells as text, by their lines and the names of their columns, and the decimal mark."""
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
    tables = {mark: _rows(text, mark, file) for mark in ";,\t|"}
    mark = max(tables, key=lambda mark: tables[mark][1])
    rows, (_, _, width) = tables[mark]
    for line, row in rows.items():
        if len(row) != width:
            raise InvalidInputError(
                f"the lines of {file} must have {width} cells, as most have, but line {line}, "
                f"beginning with {_shown(row[0])}, has {len(row)}; correct that line, or delete it"
            )
    frame = pd.DataFrame(list(rows.values()), index=list(rows), dtype=object)

    def left(points: str) -> int:  # columns that hold something else
        return int(np.isinf(frame[1:].map(number, points=points).astype(float)).any().sum())

    # Where cells are separated by semicolons, a comma is a decimal one if it can be.
    points = min(",." if mark == ";" else ".,", key=left)
    first = next(iter(rows.values()), [])
    titled = not np.isfinite([number(cell, points) for cell in first]).any()
    titled = titled and not likely_forms([cell for cell in first if cell], FORMS, 0)
    frame.columns = [cell if titled and cell else f"column {k}" for k, cell in enumerate(first, 1)]
    frame = frame[int(titled) :]
    if not frame.columns.is_unique:
        raise InvalidInputError(
            f"{file} must have another name for each column, but line {next(iter(rows))} has "
            f"{_shown(frame.columns[frame.columns.duplicated()][0])} twice; rename one"
        )
    if len(frame) < 2:
        raise InvalidInputError(
            f"{file} must have several rows, but has {len(frame)}; give a file with a series"
        )
    return frame, points


def _rows(text: str, mark: str, file: str) -> tuple[dict[int, list[str]], tuple[bool, float, int]]:
    """The rows by the lines where they begin; whether they make a table, how well, and how wide.

    pandas says neither on which line a row begins, nor that it lacks cells.
    """
    rows, line, reader = {}, 1, csv.reader(io.StringIO(text, newline=None), delimiter=mark)
    try:
        for row in reader:
            rows[line], line = [cell.strip() for cell in row], reader.line_num + 1
    except csv.Error as error:
        raise InvalidInputError(
            f"{file} must be a table, but line {line} is none ({error}); save it as CSV"
        ) from error
    rows = {line: row for line, row in rows.items() if any(row)}
    width = Counter(map(len, rows.values())).most_common(1)[0][0] if rows else 0
    rows = {  # without comments
        line: row
        for line, row in rows.items()
        if not row[0].startswith("#") or (len(row) == width and width > 1)
    }
    alike = sum(len(row) == width for row in rows.values()) / max(1, len(rows))
    return rows, (alike > 0.5 and width > 1, alike, width)


def _shown(cell: str) -> str:
    return repr(cell if len(cell) < 40 else cell[:37] + "...")


def wrong_cell(
    cells: pd.Series, bad: pd.Series, file: str, what: str, way: str = "or leave it empty"
) -> InvalidInputError:
    """The error of a column whose first bad cell is not what it must be."""
    line = bad.idxmax()
    return InvalidInputError(
        f"the column {cells.name!r} of {file} must hold {what}, but line {line} has "
        f"{_shown(cells[line])}; correct it, {way}"
    )


def number(cell: str, points: str = ".") -> float:
    """A number; NaN where the cell is empty, infinite where it holds something else."""
    # A space is in a number behind its sign, or before three digits: 2020 01 31 is none.
    cell = re.sub(r"(?<!\d)\s|\s(?=\d{3}(?!\d))", "", cell).replace("−", "-").lower()
    if cell in _MISSING:
        return np.nan
    if points == ",":
        cell = cell.translate({ord(","): ".", ord("."): ","})
    if _GROUPED.fullmatch(cell):
        cell = cell.replace(",", "")
    return float(cell) if _NUMBER.fullmatch(cell) else np.inf


def _date(cell: str, form: str, like: str) -> datetime | None:
    """The time in a cell that is like that, by a form; None if it is none."""
    try:
        if not re.fullmatch(like, cell):
            return None
        if form == _ISO:
            return datetime.fromisoformat(cell)
        if form in (_SECONDS, _MILLISECONDS):
            scale = 1000 if form == _MILLISECONDS else 1
            return datetime(1970, 1, 1) + timedelta(seconds=int(cell) / scale)
        # A quarter is written as the month in which it begins: 2010Q3 as 2010M7.
        cell = re.sub(r"[Qq]([1-4])(?!\d)", lambda found: f"M{3 * int(found[1]) - 2}", cell)
        return datetime.strptime(cell, form)
    except ValueError:
        return None


def _marks(text: str) -> str:
    return re.sub(r"%.|\w|\s", "", text)


def likely_forms(cells: Sequence[str], forms: Mapping[str, str], least: float) -> list[str]:
    """The forms by which more than so many of the cells are dates."""
    there = {_marks(cell) for cell in cells}
    return [
        form
        for form, like in forms.items()
        # It is quick to see that a form has other marks than the cells.
        if (form == _ISO or form not in FORMS or _marks(form) in there)
        and sum(_date(cell, form, like) is not None for cell in cells) > least
    ]


class Dates(NamedTuple):
    """What a column says of times: what clocks showed, and how far they were ahead of UTC."""

    column: str
    clock: np.ndarray
    ahead: np.ndarray


def read_dates(cells: pd.Series, file: str, forms: Mapping[str, str]) -> Dates | None:
    """The dates in a column; None if no form reads more than a third of what is not empty.

    Raises:
        InvalidInputError: a cell is no date of that form, or another form reads other dates.
    """
    different = [cell for cell in cells.unique() if cell]
    some = different[:: len(different) // 20 + 1]
    found = {
        form: {cell: _date(cell, form, forms[form]) for cell in cells.unique()}
        for form in likely_forms(some, forms, len(some) // 3)
    }
    if not found:
        return None
    form = min(found, key=lambda form: [*found[form].values()].count(None))
    times, one = found[form], next(cell for cell in different if found[form][cell])
    way = "name another column by --time, or a form by --date-form"
    if None in times.values():
        bad = cells.map(lambda cell: times[cell] is None)
        raise wrong_cell(cells, bad, file, f"dates, as {one!r} is", f"delete the line, {way}")
    for other, others in found.items():
        if None not in others.values() and others != times:
            one = next(cell for cell in different if others[cell] != times[cell])
            raise InvalidInputError(
                f"the column {cells.name!r} of {file} must have one meaning, but {one!r} in line "
                f"{cells.index[cells == one][0]} is {times[one]} by {form} and {others[one]} by "
                f"{other}; {way}"
            )
    dates = {cell: time for cell, time in times.items() if time is not None}
    shifts = {cell: date.utcoffset() for cell, date in dates.items()}
    bad = cells.map(lambda cell: (shifts[cell] is None) != (shifts[one] is None))
    if bad.any():
        kind = "without" if shifts[one] is None else "with"
        raise wrong_cell(cells, bad, file, f"dates {kind} a zone, as {one!r} is", way)
    return Dates(
        str(cells.name),
        np.array([dates[cell].replace(tzinfo=None) for cell in cells], "datetime64[s]"),
        np.array([shifts[cell] or timedelta() for cell in cells], "timedelta64[s]"),
    )
