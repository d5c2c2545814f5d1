import csv
import json

import numpy as np
import pytest

from experiments.cookbook import forecast
from experiments.cookbook.common import baselines, tables
from experiments.cookbook.forecast import Config
from rnnjax.errors import InvalidInputError

QUICK = {"seeds": 2, "epochs": 1}


def months(values, **options):
    """A problem of monthly values."""
    times = np.datetime64("2000-01") + np.arange(len(values))
    values = np.array(values, float).reshape(len(values), -1)
    names = [f"x{k}" for k in range(values.shape[1])]
    series = tables.Series(names, values, np.zeros((*values.shape, 0)), times, (12,))
    return forecast.pose(Config(**options), series, "my.csv")


def wave(length, seed=0):
    time = np.arange(length)
    noise = np.random.default_rng(seed).normal(size=length)
    return 100 + time + 20 * np.sin(time * np.pi / 6) + noise


def table(folder):
    with (folder / "forecasts.csv").open(encoding="utf-8") as file:
        return list(csv.reader(file))


def test_a_file_is_forecast_and_its_network_goes_on_with_a_longer_one(tmp_path, monkeypatch):
    for module in (forecast, baselines):
        monkeypatch.setattr(module, "find_spec", lambda name: None)
    file = tmp_path / "sales.csv"
    values = wave(90) - 150
    lines = ["Tag;Umsatz (€);Laden", *(
        f"{np.datetime64('2024-01-01') + i};{values[i]:.2f};a".replace(".", ",")
        for i in range(90) if i != 40
    )]  # fmt: skip
    file.write_text("\ufeff" + "\n".join(lines[:81]), encoding="utf-8")
    config = Config(file, ("Umsatz (€)",), horizon=3, run_dir=tmp_path / "run", **QUICK)
    assert forecast.run(config) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    told = {row["name"].split(": ")[1]: row for row in result["rows"]}
    assert [label.split()[0] for label in told][:4] == ["last", "value", "change", "GRU,"]
    for kind in ("ETS", "ARIMA"):
        assert told[kind]["source"] == "needs statsmodels"
        assert told[kind]["score"] is None
    rows = table(tmp_path / "run")
    assert rows[0] == ["time", "series", "forecast", "error"]
    assert [row[0][:10] for row in rows[1:]] == ["2024-03-22", "2024-03-23", "2024-03-24"]
    # The same file again has the same forecasts, a longer one has later ones.
    for length, first in ((81, "2024-03-22"), (85, "2024-03-26")):
        file.write_text("\n".join(lines[:length]), encoding="utf-8")
        folder = tmp_path / f"again {length}"
        assert forecast.run(Config(file, load=tmp_path / "run", run_dir=folder)) == 0
        others = table(folder)
        assert (others == rows) == (length == 81)
        assert others[1][0].startswith(first)


def test_a_forecast_knows_all_before_it_and_nothing_else():
    horizon, values = 3, wave(120)
    changed = values.copy()
    changed[90] += 20
    config = Config(horizon=horizon, **QUICK)
    ys, others = (
        forecast.learn(config, months(each, horizon=horizon), "", True, 80, 1)[0]
        for each in (values, changed)
    )
    assert ys.shape == (2, 120, 1, horizon)
    np.testing.assert_array_equal(ys[:, 13:90], others[:, 13:90])
    differs = np.abs(ys - others)[:, :, 0]
    assert (differs[:, 90] > 5).all()  # the level of which the change is forecast
    assert (differs[:, 105:] > 0).any(axis=1).all()  # by the state alone, which was carried on


def test_series_of_other_lengths_and_gaps():
    values = np.stack([wave(120), wave(120, 1)], axis=1)
    values[:30, 1] = values[50, 0] = values[100:104, 0] = np.nan
    problem = months(values, horizon=2)
    steps = forecast.read(problem, "", False, 60)
    assert steps["valid"].argmax(axis=0).tolist() == [13, 43]
    assert steps["known"][97:104, 0].tolist() == [
        [True, True], [True, False], *[[False, False]] * 3, [False, True], [True, True]
    ]  # fmt: skip
    assert np.isfinite(steps["xs"]).all()
    ys, _ = forecast.learn(Config(horizon=2, **QUICK), problem, "", False, 60, 1)
    assert np.isfinite(ys[:, 45:]).all()
    assert np.isfinite(problem.errors(ys.mean(axis=0), 80, 120)).all()
    for found in baselines.compare(problem).values():
        assert np.isfinite(problem.errors(found, 80, 120)).all()


def test_baselines_of_a_series_that_they_know():
    time = np.arange(120)  # two percents more each month, and a season
    exact = 100 * 1.02**time * (1 + 0.5 * np.sin(np.pi * time / 6))
    values = exact * np.exp(0.02 * np.random.default_rng(0).normal(size=120))
    problem = months(values, horizon=2)
    kinds = {label: each for kind in baselines.rivals(problem) for label, each in kind.items()}
    found = {label: each(80)[:, 0] for label, each in kinds.items()}
    np.testing.assert_array_equal(found["last value"][79:119], np.stack([values[79:119]] * 2, 1))
    np.testing.assert_array_equal(found["value 12 before"][79:119, 0], values[68:108])
    np.testing.assert_array_equal(found["value 12 before"][79:118, 1], values[69:108])
    for label in ("change 12 before of logs", "ETS, season 12 of logs",
                  "ARIMA(0,1,1), season 12 of logs"):  # fmt: skip
        for step in (1, 2):
            ys = found[label][80 - step : 120 - step, step - 1]
            np.testing.assert_allclose(ys, exact[80:], rtol=0.2, err_msg=label)
    chosen = baselines.compare(problem)
    assert len(chosen) == 6
    assert sum("season 12 of logs" in label for label in chosen) == 2


def test_the_airline_model_and_ets_are_those_of_statsmodels():
    from statsmodels.tsa.api import SARIMAX, ETSModel

    values = np.random.default_rng(0).normal(size=(30, 2)).cumsum(axis=0).ravel()
    airline = SARIMAX(values[:50], order=(0, 1, 1), seasonal_order=(0, 1, 1, 2))
    kind = {"trend": "add", "damped_trend": True, "seasonal": "add", "seasonal_periods": 2}
    smoothing = ETSModel(values[:50], **kind)
    for method, model in ((baselines.arima, airline), (baselines.ets, smoothing)):
        found = method(values, 50, 4, period=2)[49]
        np.testing.assert_allclose(found, model.fit(disp=False).forecast(4), rtol=1e-6)


def test_a_season_is_read_where_it_tells_more_than_the_last_value():
    assert months(np.stack([wave(120)] * 2, axis=1), horizon=3).lag == 12
    late = wave(120)
    late[:40] = np.nan  # 16 values are left
    assert months(late).lag == 0
    assert months(np.cumsum(np.random.default_rng(0).normal(size=120))).lag == 0


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (wave(30), {}, "must have at least 46 times .* but has 30"),
        (wave(60), {"horizon": 12}, "must have at least 112 times"),
        (np.ones(90), {}, "x0 of my.csv must have at least 11 values that differ"),
        (np.r_[np.full(60, np.nan), wave(60)], {}, "x0 of my.csv must have at least 11 values"),
    ],
)
def test_what_cannot_be_forecast_is_one_sentence(values, options, message):
    with pytest.raises(InvalidInputError, match=message):
        months(values, **options)


def test_errors_are_of_the_test_part_alone():
    problem = months(wave(120), horizon=2)
    ys = problem.ahead(problem.values)
    ys[:78] = np.nan  # of origins whose next values are known
    ys[79:118] += [1, 3]
    assert problem.errors(ys, 80, 120)[0] == pytest.approx([1, 3])
    assert baselines.overall(problem.errors(ys, 80, 120)).tolist() == pytest.approx([5**0.5])


def test_a_picture_shows_what_every_third_origin_says_of_three_times():
    problem, ys = months(wave(120), horizon=3), np.arange(360).reshape(120, 1, 3)
    times, shown = forecast.drawn(problem, np.arange(120), 0, {"GRU": ys})["GRU"]
    assert shown.tolist() == ys[times[0] - 1 :: 3, 0].ravel()[: len(times)].tolist()
