import json

import numpy as np
import pytest

from experiments.cookbook import time_series
from experiments.cookbook.common import data
from experiments.cookbook.time_series import Config


@pytest.mark.slow
def test_made_series_is_forecast_better_than_by_what_needs_no_network(tmp_path):
    run_dir = tmp_path / "run"
    config = Config(data="made", run_dir=run_dir, seeds=3, epochs=25)
    assert time_series.run(config) == 0
    rows = {
        row["name"].split(": ")[1]: row["score"]
        for row in json.loads((run_dir / "result.json").read_text())["rows"]
    }
    assert list(rows) == [
        "last value", "last year's", "last year's x growth", "ARIMA(0,1,1)(0,1,1)12",
        "GRU, mean forecast", "GRU, each",
    ]  # fmt: skip
    assert rows["GRU, mean forecast"] < rows["last year's x growth"]
    assert rows["ARIMA(0,1,1)(0,1,1)12"] < rows["last year's x growth"]
    assert len(rows["GRU, each"]) == 3
    # Seeds differ, and each forecasts: none is only carried along by the others.
    assert 0 < np.ptp(rows["GRU, each"]) < rows["last value"] - max(rows["GRU, each"])
    assert (run_dir / "forecasts.png").stat().st_size > 10_000


def test_a_forecast_knows_all_before_it_and_nothing_else():
    values, known = data.series("daily-min-temperatures", "made"), 96
    changed = values.copy()
    changed[known + 5] += 20
    config = Config(seeds=2, epochs=1)
    ys, epoch = time_series.learn(config, "daily-min-temperatures", values, known, 1)
    others, _ = time_series.learn(config, "daily-min-temperatures", changed, known, 1)
    assert ys.shape == (2, 48)
    assert epoch == 1
    np.testing.assert_array_equal(ys[:, :6], others[:, :6])
    differs = np.abs(ys - others)
    assert (differs[:, 6] > 5).all()  # the level of which the change is forecast
    assert (differs[:, 12:20] > 0).any(axis=1).all()  # by the state alone, which was carried on


def test_baselines_of_a_series_that_they_know():
    time = np.arange(120)  # two percents more each month, and a season
    exact = 100 * 1.02**time * (1 + 0.5 * np.sin(np.pi * time / 6))
    values = exact * np.exp(0.02 * np.random.default_rng(0).normal(size=120))
    found = time_series.baselines("airline-passengers", values, 80)
    np.testing.assert_array_equal(found["last value"], values[79:119])
    np.testing.assert_array_equal(found["last year's"], values[68:108])
    np.testing.assert_allclose(found["last year's x growth"], exact[80:], rtol=0.15)
    np.testing.assert_allclose(found["ARIMA(0,1,1)(0,1,1)12"], exact[80:], rtol=0.15)
    wave = np.sin(time / 5) + 0.01 * np.random.default_rng(1).normal(size=120)
    found = time_series.baselines("monthly-sunspots", wave, 80)
    assert time_series.error(found["AR(27)"], wave[80:]) < 0.03
    assert time_series.error(found["last value"], wave[80:]) > 0.1
