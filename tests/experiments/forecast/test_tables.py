import numpy as np
import pytest

from experiments.forecast.tables import read_series
from rnnjax.errors import InvalidInputError


def of(text, *target, encoding="utf-8", **options):
    return read_series(text.encode(encoding), "my.csv", target, **options)


PLAIN = "month,x\n2024-01,1000.5\n2024-02,2000.5\n2024-03,-3\n"


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (PLAIN, "utf-8"),
        (PLAIN.replace(",", "\t").replace("\n", "\r\n"), "utf-16"),
        ("# from a machine\n\n" + PLAIN.replace(",", "|"), "utf-8-sig"),
        ("Monat;x\n01.2024;1.000,5\n02.2024;2.000,5\n03.2024;−3\n", "utf-8-sig"),
        ('month,x\n"Jan 2024","1,000.5"\n"Feb 2024","2,000.5"\n"Mar 2024","-3"\n', "cp1252"),
        ("x,month\n2000.5,2024-02-29\n-3,2024-03-31\n1000.5,2024-01-31\n", "utf-8"),
        ('month,x\n"2024-01","1000,5"\n"2024-02","2000,5"\n"2024-03","-3"\n', "utf-8"),
    ],
)
def test_a_table_is_read_as_it_comes(text, encoding):
    series = of(text, "x", encoding=encoding)
    assert series.names == ["x"]
    assert series.values.T.tolist() == [[1000.5, 2000.5, -3]]
    assert [str(time) for time in series.times] == ["2024-01", "2024-02", "2024-03"]
    assert series.periods == (12,)
    assert series.past.shape == series.future.shape == (3, 1, 0)
    assert series.static.shape == (1, 0)
    assert of(text, encoding=encoding).values.tolist() == series.values.tolist()  # the only one


def test_without_header_and_dates_there_are_numbers_of_rows():
    series = of("3\n\n4\n5e1\n")
    assert series.names == ["column 1"]
    assert series.times.tolist() == [0, 1, 2]
    assert series.values[:, 0].tolist() == [3, 4, 50]
    assert series.periods == ()


def test_gaps_are_there_and_rows_are_put_in_order():
    series = of("t;a;b\n5.1.2024;5;NA\n1.1.2024;1;10\n2.1.2024;;20\n", "a", past=["b"])
    nan = np.nan
    np.testing.assert_array_equal(series.values[:, 0], [1, nan, nan, nan, 5])
    np.testing.assert_array_equal(series.past[:, 0, 0], [10, 20, nan, nan, nan])
    assert str(series.times[2]) == "2024-01-03"
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
    with pytest.raises(InvalidInputError, match=r"one row for each time, but has 2 .* by --by"):
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
    with pytest.raises(InvalidInputError, match="must hold one value for each series, but has sev"):
        of(text, "sold", by="shop", static=["holiday"])


@pytest.mark.parametrize(
    ("dates", "first", "periods"),
    [
        (["03/04/2024", "04/04/2024", "05/04/2024"], "2024-04-03", (7, 365)),
        (["03/04/2024", "03/05/2024", "03/06/2024"], "2024-03-04", (7, 365)),
        ([f"01/{m:02}/{y}" for y in (2023, 2024) for m in range(1, 13)], "2023-01", (12,)),
        (["2024-01-01 00:30", "2024-01-01 01:30"], "2024-01-01T00:30:00", (24, 168)),
        (["2024-01-01", "2024-01-08"], "2024-01-01", (52,)),
        (["2023-10-01", "2024-01-01"], "2023-10", (4,)),
        (["2024-01-01", "2024-01-04"], "2024-01-01", ()),
    ],
)
def test_dates_and_the_seasons_they_have(dates, first, periods):
    series = of("when,x\n" + "".join(f"{date},{k}\n" for k, date in enumerate(dates)), "x")
    assert str(series.times[0]) == first
    assert len(series.times) == len(dates)
    assert series.periods == periods


def test_years_are_dates_where_they_are_named():
    text = "year,x\n2001,1\n2002,2\n2004,4\n"
    series = of(text, "x", time="year")
    np.testing.assert_array_equal(series.values[:, 0], [1, 2, np.nan, 4])
    assert series.periods == ()
    assert len(of(text, "x").times) == 3


@pytest.mark.parametrize(
    ("text", "target", "options", "message"),
    [
        ("", (), {}, "must have several rows, but has 0"),
        ("a,b\n1,2\n3\n4,5\n", ("a",), {}, "must have 2 cells, as the first one, but line 3 has 1"),
        ("a,b\n1,2\n3,4\n", (), {}, r"but has 2 \(a, b\); name those to forecast by --target"),
        ("a,b\nu,v\nw,z\n", (), {}, r"but has 0 \(\)"),
        ("a,b\n1,2\n3,4\n", ("c",), {}, "must have one column 'c', but has the columns a, b"),
        ("a,b\n1,2\n3,4 kg\n", ("b",), {}, "must hold numbers, but line 3 has '4 kg'"),
        ("a,b\nq,2\nr,3\n", ("b",), {"time": "a"}, "must hold dates, but begins with 'q'"),
        ("a,b\nq,2\nr,3\n", ("b",), {"by": "a"}, "must have a column of dates, as 'a' names"),
        ("a,b\n2024-01-01,2\n2024-01-01,3\n", ("b",), {}, "one row for each time, but has 2"),
        ("\0\1\0", (), {}, "must be a text, but is none"),
        ("t,x\n1000-01-01,1\n2024-01-01,1\n2024-01-02,1\n2024-01-03,1\n", ("x",), {},
         "times must be 86400 seconds apart, as most are"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_one_sentence(text, target, options, message):
    with pytest.raises(InvalidInputError, match=message) as error:
        of(text, *target, **options)
    assert str(error.value).count(". ") == 0
    assert ";" in str(error.value)
