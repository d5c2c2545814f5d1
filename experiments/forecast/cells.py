"""The cells of a CSV file as numbers and dates, with separators and decimal commas as they come."""

import csv
import io
import re
from collections.abc import Sequence
from datetime import datetime

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


def read_cells(raw: bytes, file: str) -> tuple[list[str], list[list[str]], list[int], str]:
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
        cells = [[number(cell, points) is None for cell in row] for row, _ in table[1:]]
        return sum(map(any, zip(*cells, strict=True)))

    # Where cells are separated by semicolons, a comma is a decimal one if it can be.
    points = min(",." if mark == ";" else ".,", key=left)
    first = [number(cell, points) for cell in table[0][0]] if table else []
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


def number(cell: str, points: str = ".") -> float | None:
    """A number; NaN where the cell is empty, None where it holds something else."""
    cell = re.sub(r"\s", "", cell).replace("−", "-").lower()
    if cell in _MISSING:
        return np.nan
    if points == ",":
        cell = cell.translate({ord(","): ".", ord("."): ","})
    if _GROUPED.fullmatch(cell):
        cell = cell.replace(",", "")
    return float(cell) if _NUMBER.fullmatch(cell) else None


def read_dates(cells: Sequence[str]) -> np.ndarray | None:
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
