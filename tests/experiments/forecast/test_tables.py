import re
from datetime import datetime

import numpy as np
import pytest

from experiments.forecast.cells import FORMS
from experiments.forecast.output import span
from experiments.forecast.problem import Problem
from experiments.forecast.tables import read_series
from rnnjax.errors import InvalidInputError

nan = np.nan


def of(text, *target, **options):
    raw = text if isinstance(text, bytes) else text.encode()
    return read_series(raw, "my.csv", target, **options)


def refused(text, *target, **options):
    """The sentence by which a file is refused: what was expected, what came; what to do."""
    with pytest.raises(InvalidInputError) as error:
        of(text, *target, **options)
    sentence = str(error.value)
    assert ". " not in sentence
    assert sentence.count("; ") == 1
    return sentence


def assert_read(series, times, values):
    np.testing.assert_array_equal(series.times, times)
    np.testing.assert_allclose(series.values[:, 0], values, rtol=1e-12)


def axis(first, count, step=1):
    first = np.datetime64(first)
    return first + step * np.arange(count).astype(f"timedelta64[{np.datetime_data(first)[0]}]")


# A hundred values, and the times that they may have.
VALUES = 10 + np.arange(100) % 7 + 0.25 * (np.arange(100) % 3)
DAYS, MONTHS, YEARS = axis("2020-01-01", 100), axis("2010-01", 100), axis("1920-01", 100, 12)
HOURS = axis("2020-01-01T00", 400).astype("datetime64[s]")


def table(*columns, head=("date", "value"), mark=","):
    rows = [head, *zip(*(map(str, column) for column in columns), strict=True)]
    return "".join(mark.join(row) + "\n" for row in rows)


def newest_first(times, form, values=VALUES):
    """A file whose dates are written in a form of strptime, or otherwise, the last one first."""
    if isinstance(form, str):
        dates = [time.strftime(form) for time in times.astype(datetime)]
    else:
        dates = [form(time) for time in times]
    return table(dates[::-1], values[: len(times)][::-1])


def of_values(write, times=DAYS):
    return table(times, [write(value) for value in VALUES])


def line_42(date="2020-02-10", value="15.25"):
    """The file of days with other cells in line 42; these are those that it has."""
    lines = PLAIN.splitlines()
    lines[41] = f"{date},{value}"
    return "\n".join(lines)


def quarter(month):
    return f"Q{int(str(month)[5:]) // 3 + 1}"


def seconds(day):
    return str(day.astype("datetime64[s]").astype(int))


def zoned(day):  # from the 88th on it is summer
    return f"{day}T00:00+0{1 + (day > DAYS[87])}:00"


PLAIN = table(DAYS, VALUES)
BUSY = np.is_busday(DAYS)
SUMMER = [f"2020-03-{28 + k // 24} {k % 24:02}:00+0{1 + (k > 25)}:00" for k in range(72) if k != 26]
LATE = np.where(np.arange(100) < 60, DAYS, DAYS + np.timedelta64(730, "D"))
MIDDLES = MONTHS.astype("datetime64[D]") + np.tile(np.array([27, 14], "timedelta64[D]"), 50)
LOADED = table(["2021-01-01"] * 100, DAYS, VALUES, head=("loaded", "date", "value"))
TWO_YEARS = table(YEARS.astype("datetime64[Y]"), range(1500, 1600), VALUES,
                  head=("a", "b", "value"))  # fmt: skip


def number(cell, line=42):
    return f"column 'value' of my.csv must hold numbers, but line {line} has '{cell}'; correct it"


def date(cell, line=42, like="'2020-01-01'"):
    return f"must hold dates, as {like} is, but line {line} has '{cell}'; correct it, delete the"


def meanings(cell, *two):
    return f"one meaning, but '{cell}' in line 2 is {two[0]} and {two[1]}; name another column by -"


def twice(lines):
    return f"must have one row for each time, but lines {lines} are for "


# Of each odd file the text, what is asked of it, and its times and values, or a part of the
# sentence by which it is refused. The order of the values is that of time, whatever the rows have.
DAILY = DAYS, VALUES
FILES = {
    "plain": (PLAIN, {}, DAILY),
    "UTF-8 with a mark": ("\ufeff" + PLAIN, {}, DAILY),
    "UTF-16": (PLAIN.encode("utf-16"), {}, DAILY),
    "UTF-16 without a mark": (PLAIN.encode("utf-16-le"), {}, "my.csv must be a text"),
    "Windows-1252": (PLAIN.replace("value", "Größe").encode("cp1252"), {}, DAILY),
    "CRLF": (PLAIN.replace("\n", "\r\n"), {}, DAILY),
    "decimal commas": (PLAIN.replace(",", ";").replace(".", ","), {}, DAILY),
    "quoted decimal commas": (of_values(lambda v: f'"{v}"'.replace(".", ",")), {}, DAILY),
    "tabs": (PLAIN.replace(",", "\t"), {}, DAILY),
    "spaces": (PLAIN.replace(",", ", "), {}, DAILY),
    "shuffled": (
        table(*np.random.default_rng(0).permutation([DAYS.astype(str), VALUES], axis=1)), {}, DAILY,
    ),
    "a gap of 2 years": (
        table(LATE, VALUES), {},
        (axis("2020-01-01", 830), np.r_[VALUES[:60], [nan] * 730, VALUES[60:]]),
    ),
    "a date twice": (line_42("2020-02-09", 15), {}, twice("41, 42") + "2020-02-09 of 'date'; "),
    "one row": (table(DAYS[:1], [1]), {}, "must have several rows, but has 1"),
    "two rows": (table(DAYS[:2], [1, 2]), {}, (DAYS[:2], [1, 2])),
    "empty": ("", {}, "must have several rows, but has 0"),
    "an empty line": ("\n", {}, "must have several rows, but has 0"),
    "huge": (of_values(lambda v: v * 1e300), {}, (DAYS, VALUES * 1e300)),
    "inf": (line_42(value="inf"), {}, number("inf")),
    "1e400": (line_42(value="1e400"), {}, number("1e400")),
    "a word": (line_42(value="twelve"), {}, number("twelve")),
    "percents": (of_values(lambda v: f"{v}%"), {}, number("10.0%", 2)),
    "0x10": (line_42(value="0x10"), {}, number("0x10")),
    "Arabic digits": (line_42(value="١٥.٢٥"), {}, DAILY),
    "a line break in a cell": (line_42('"2020-02-10\n"'), {}, DAILY),
    "a comma in a name": (PLAIN.replace("value", '"in EUR, €"'), {"target": "in EUR, €"}, DAILY),
    "a quote without end": (
        line_42('"2020-02-10'), {}, "have 2 cells, as most have, but line 42, beginning with '",
    ),
    "a title": (
        "Sales 2020\n\n" + PLAIN, {},
        "2 cells, as most have, but line 1, beginning with 'Sales 2020', has 1; correct that line",
    ),
    "a date that is none": (line_42("2020-02-30"), {}, date("2020-02-30")),
    "2010Q1": (
        newest_first(MONTHS[::3], lambda month: str(month)[:4] + quarter(month)), {},
        (MONTHS[::3], VALUES[:34]),
    ),
    "12 hours": (
        newest_first(HOURS[:200], "%m/%d/%Y %I:%M %p", HOURS), {},
        meanings(
            "01/09/2020 07:00 AM", "2020-09-01 07:00:00 by %d/%m/%Y %I:%M %p",
            "2020-01-09 07:00:00 by %m/%d/%Y %I:%M %p",
        ),
    ),
    "fractions of a second": (
        newest_first(HOURS[:100], lambda time: f"{time}.000"), {}, (HOURS[:100], VALUES),
    ),
    "20200131": (newest_first(DAYS, "%Y%m%d"), {}, DAILY),
    "Unix seconds": (newest_first(DAYS, seconds), {"target": "value"}, DAILY),
    "a change of the clock": (
        table(SUMMER, range(71)), {}, (axis("2020-03-27T23", 71), range(71)),
    ),
    "one zone": (
        line_42("2020-02-10T00:00:00+05:00"), {},
        "dates without a zone, as '2020-01-01' is, but line 42 has '2020-02-10T00:00:00+05:00'; ",
    ),
    "two digits of years": (
        table([f"{day:%d.%m.%y}" for day in DAYS.astype(datetime)], VALUES), {},
        meanings(
            "01.01.20", "2001-01-20 00:00:00 by %y.%m.%d", "2020-01-01 00:00:00 by %d.%m.%y"
        ),
    ),
    "31/12/2020": (newest_first(DAYS, "%d/%m/%Y"), {}, DAILY),
    "working days": (table(DAYS[BUSY], VALUES[BUSY]), {}, (DAYS, np.where(BUSY, VALUES, nan))),
    "another column of dates first": (
        LOADED, {}, twice("2, 3, 4, 5, 6, 7, 8, 9, 92 more") + "2021-01-01 of 'loaded'; leave",
    ),
    "two columns of a name": (
        table(DAYS, VALUES, VALUES, head=("date", "value", "value")), {"target": "value"},
        "another name for each column, but line 1 has 'value' twice; rename one",
    ),
    "points before three digits": (
        of_values(lambda v: f"1.{int(4 * v):03}"), {}, (DAYS, 1 + 4 * VALUES // 1 / 1000),
    ),
    "spaces before three digits": (
        of_values(lambda v: f"1 {int(4 * v):03}"), {}, (DAYS, 1000 + 4 * VALUES // 1),
    ),
    "quoted commas before three digits": (
        of_values(lambda v: f'"1,{int(4 * v):03}"'), {}, (DAYS, 1000 + 4 * VALUES // 1),
    ),
    "commas before three digits": (
        of_values(lambda v: f"1.{int(4 * v):03}").replace(",", ";").replace(".", ","), {},
        (DAYS, 1 + 4 * VALUES // 1 / 1000),
    ),
    "the year 1": (
        PLAIN + "0001-01-01,1\n", {},
        "but those of lines 102 and 2, 0001-01-01T00:00:00 and 2020-01-01T00:00:00, are 737,424",
    ),
    "middles and ends of months": (newest_first(MIDDLES, str), {}, "one row for each time, but "),
    "no values": (of_values(lambda _: ""), {}, "where no --target names it, but has none; name"),
    "empty holidays": (
        table(DAYS, VALUES, [""] * 99 + ["1"], head=("date", "value", "holiday")),
        {"target": "value", "future": ["holiday"]}, DAILY,
    ),
    "comments": ("# by me, for you, and all\n# another\n" + PLAIN, {}, DAILY),
    "bars": (PLAIN.replace(",", "|"), {}, DAILY),
    "an hour that is none": (line_42("2020-02-10 25:00"), {}, date("2020-02-10 25:00")),
    "Q1 2010": (
        newest_first(MONTHS[::3], lambda month: f"{quarter(month)} {str(month)[:4]}"), {},
        (MONTHS[::3], VALUES[:34]),
    ),
    "more days, of 12 hours": (
        newest_first(HOURS, "%m/%d/%Y %I:%M %p", HOURS.astype(int)), {}, (HOURS, HOURS.astype(int)),
    ),
    "Unix milliseconds": (newest_first(DAYS, lambda day: seconds(day) + "000"), {}, DAILY),
    "two forms": (
        PLAIN + newest_first(axis("2020-04-10", 60), "%d.%m.%Y")[11:], {}, date("08.06.2020", 102),
    ),
    "no form": (
        newest_first(DAYS, "%A %d %B %Y"), {},
        "'date' of my.csv must hold dates, but line 2 has 'Thursday 09 April 2020'; correct it,",
    ),
    "a form of one's own": (
        newest_first(DAYS, "%A %d %B %Y"), {"date_form": "%A %d %B %Y"}, DAILY,
    ),
    "a form of numbers": (newest_first(DAYS, "%y%j"), {"date_form": "%y%j"}, DAILY),
    "another form": (PLAIN, {"date_form": "%d/%m/%Y"}, "dates, but line 2 has '2020-01-01'; "),
    "a year that is none": (
        table([*range(1920, 1940), 19400], range(21)), {}, date("19400", 22, "'1920'"),
    ),
    "two columns of years": (
        TWO_YEARS, {}, "must have one column of times, but a, b can all be; name it by --time",
    ),
    "a note beside years": (
        table(YEARS.astype("datetime64[Y]"), "ab" * 50, VALUES, head=("year", "note", "value")),
        {"target": "value"}, (YEARS, VALUES),
    ),
    "one of them": (TWO_YEARS, {"time": "a", "target": "value"}, (YEARS, VALUES)),
    "the right column of dates": (LOADED, {"time": "date"}, DAILY),
    "values as years": (
        table(range(1920, 2020), head=["value"]), {}, (range(100), range(1920, 2020)),
    ),
    "other numbers": (table(range(100), VALUES), {"target": "value"}, (range(100), VALUES)),
    "no names": ("3\n\n4\n5e1\n", {}, (range(3), [3, 4, 50])),
    "no names, and a word": (PLAIN[11:].replace("10.0", "x", 1), {}, "numbers, but line 1 has 'x'"),
    "an input with a word": (
        table(DAYS, VALUES, [*range(99), "9°"], head=("date", "value", "heat")),
        {"target": "value", "past": ["heat"]}, "'heat' of my.csv must hold numbers, but line 101",
    ),
    "# in a cell": (
        table([*range(99), "#1"], DAYS, VALUES, head=("#", "date", "value")), {"target": "value"},
        DAILY,
    ),
    "midnights of a zone": (newest_first(DAYS, zoned), {}, DAILY),
    "months of a zone": (
        newest_first(MONTHS, lambda month: f"{month}-01T00:00+02:00"), {}, (MONTHS, VALUES),
    ),
    "every tenth year": (
        newest_first(axis("1920-01", 20, 120), str), {}, (axis("1920-01", 20, 120), VALUES[:20]),
    ),
    "two columns of numbers": ("a,b\n1,2\n3,4\n", {}, "but has a, b; name those to forecast by --"),
    "another name": ("a,b\n1,2\n3,4\n", {"target": "c"}, "column 'c', but has the columns a, b; "),
    "series without dates": (
        "a,b\n1,2\n3,4\n", {"target": "b", "by": "a"}, "dates where --by or --date-form is given",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_right_or_refused_by_line_and_cell(name):
    text, options, wanted = FILES[name]
    options = options.copy()
    target = [options.pop("target")] if "target" in options else []
    if isinstance(wanted, str):
        assert wanted in refused(text, *target, **options)
    else:
        assert_read(of(text, *target, **options), *wanted)


@pytest.mark.parametrize(
    "form", [form for form in FORMS if "%" in form and not re.search("[:/]|%H", form)]
)
def test_every_form_is_read_newest_first_or_has_two_meanings(form):
    times = DAYS if "%d" in form else MONTHS if re.search("%[mbB]", form) else YEARS
    text = newest_first(times, f'"{form}"')
    if re.fullmatch("%[dy].%m.%[dy]", form):  # 20-01-05 is a day of 2020, or of 2005
        assert "must have one meaning" in refused(text)
    else:
        assert_read(of(text), times, VALUES)
    assert_read(of(text, date_form=form), times, VALUES)
    lines = text.splitlines()
    for cell in ("Total", "", "31/31/2020"):
        lines[50] = f"{cell},1"
        assert f"line 51 has {cell!r}; correct it" in refused("\n".join(lines))


def test_the_program_says_from_when_to_when_or_that_there_are_no_dates():
    assert span(Problem(of(PLAIN), 1, (), 10, 0.8)) == "100 times from 2020-01-01 to 2020-04-09"
    rows = Problem(of("3\n4\n5\n"), 1, (), 1, 0.8)
    assert span(rows) == "3 times (no dates: the rows are taken in the order of the file)"


def test_gaps_are_there_and_rows_are_put_in_order():
    series = of("t;a;b\n15.1.2024;5;NA\n11.1.2024;1;10\n12.1.2024;;20\n", "a", past=["b"])
    nan = np.nan
    np.testing.assert_array_equal(series.values[:, 0], [1, nan, nan, nan, 5])
    np.testing.assert_array_equal(series.past[:, 0, 0], [10, 20, nan, nan, nan])
    assert str(series.times[2]) == "2024-01-13"
    assert series.periods == (7, 365)


def test_rows_of_several_series():
    text = "day,shop,sold\n" + "".join(
        f"2024-01-{day:02},{shop},{day * scale}\n"
        for day in range(1, 10)
        for shop, scale in (("b", 10), ("a", 1))
        if (day, shop) != (1, "a")
    )
    series = of(text, "sold", by="shop")
    assert series.names == ["sold, a", "sold, b"]
    np.testing.assert_array_equal(series.values[:, 0], [np.nan, *range(2, 10)])
    np.testing.assert_array_equal(series.values[:, 1], range(10, 100, 10))
    with pytest.raises(
        InvalidInputError, match=r"one row for each time, but lines 3, 4 .* by --by"
    ):
        of(text, "sold")


def test_inputs_are_numbers_or_words_and_what_does_not_change_is_of_a_series():
    text = "day,shop,kind,holiday,sold\n" + "".join(
        f"2024-01-{day:02},{shop},{kind},{'Easter' if day == 2 else ''},{day if day < 4 else ''}\n"
        for day in range(1, 5)
        for shop, kind in (("a", "small"), ("b", "large"), ("c", "large"))
    )
    series = of(text, "sold", by="shop", future=["holiday"], past=["kind,holiday"], static=["kind"])
    assert series.past.shape[-1] == 3
    np.testing.assert_array_equal(series.values[:, 1], [1, 2, 3, np.nan])
    assert series.future[:, 2, 0].tolist() == [0, 1, 0, 0]
    assert series.static.shape == (3, 2)
    np.testing.assert_allclose(series.static[0], -2 * series.static[1])
    sentence = refused(text, "sold", by="shop", static=["holiday"])
    assert "must hold one value for each series, but has several for a; name it" in sentence


@pytest.mark.parametrize(
    ("dates", "first", "periods"),
    [
        (["2024-01", "2024-03", "2024-05"], "2024-01", (6,)),
        (["2024-03-31", "2024-09-30"], "2024-03", (2,)),
        (["2024-01-01 00:30", "2024-01-01 01:30"], "2024-01-01T00:30:00", (24, 168)),
        (["2024-01-01", "2024-01-08"], "2024-01-01", (52,)),
        (["2023-10-01", "2024-01-01"], "2023-10", (4,)),
        (["2023-12-31", "2024-12-31"], "2023-12", ()),
        (["2024-01-01", "2024-01-04"], "2024-01-01", ()),
    ],
)
def test_dates_and_the_seasons_they_have(dates, first, periods):
    series = of("when,x\n" + "".join(f"{date},{k}\n" for k, date in enumerate(dates)), "x")
    assert str(series.times[0]) == first
    assert len(series.times) == len(dates)
    assert series.periods == periods
