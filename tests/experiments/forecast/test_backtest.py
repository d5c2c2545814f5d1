import json

import numpy as np
import pytest

from experiments.forecast import backtest, intervals, made
from experiments.forecast.problem import Problem


def test_made_series_are_of_uneven_length_with_gaps_and_of_a_seed():
    series = made.many(seed=1, count=20, length=60, horizon=6)
    np.testing.assert_array_equal(series.values, made.many(1, 20, 60, 6).values)
    begins = np.isfinite(series.values).argmax(axis=0)
    assert len(set(begins)) > 10
    assert any(np.isnan(v[b:60]).any() for v, b in zip(series.values.T, begins, strict=True))
    assert np.isnan(series.values[60:]).all()
    assert np.isfinite(series.future).all()
    assert np.isnan(series.past[60:]).all()
    # Kinds differ by what a promotion does.
    promoted = series.future[..., 0] == 1
    effects = [
        np.nanmean(np.log(v[p])) - np.nanmean(np.log(v[~p]))
        for v, p in zip(series.values.T, promoted.T, strict=True)
    ]
    large = series.static[:, 0] > 0
    assert np.mean(np.array(effects)[large]) > np.mean(np.array(effects)[~large]) + 0.2


def test_a_regime_changes_and_tails_are_heavy():
    kinds = ("regime", "tails", "seasonal")
    regime, tails, plain = (made.single(kind).values[:, 0] for kind in kinds)
    assert regime[300:].mean() - regime[276:300].mean() > 50

    def kurtosis(values):
        time = np.arange(len(values))
        follows = values - 200 - 0.2 * time - 20 * np.sin(time * np.pi / 6)
        noise = follows[1:] - 0.6 * follows[:-1]
        return np.mean((noise - noise.mean()) ** 4) / noise.var() ** 2

    assert kurtosis(plain) == pytest.approx(3, abs=0.5)
    assert kurtosis(tails) > 6


def test_plain_split_conformal_takes_the_last_errors_that_are_known():
    series = made.single("seasonal", length=140)
    problem = Problem(series, 3, (12,), 40, 0.8)
    ys = np.repeat(problem.truth[..., None], 3, axis=-1) + 5.0
    ys[: problem.first - backtest.PLAIN - 3] += 90  # too early
    ys[problem.first :] += 90  # not known
    found = backtest.plain(problem, ys)[:-3]
    np.testing.assert_allclose(found[..., 2] - found[..., 0], 2 * 5.0)
    np.testing.assert_array_equal(found[..., 1], ys[:-3, ..., 1])


def test_a_table_marks_what_covers_too_little_and_too_much():
    coverages = {"GRU, heads": 0.69, "GRU, adaptive": 0.71, "naive": 0.8, "ETS": 0.91}
    one = {"series": "a", "n": 64, "bound": 0.1, "width": 2.0, "mase": 0.5}
    lines = backtest.tables([one | {"who": w, "coverage": c} for w, c in coverages.items()])
    assert lines[0] == "| coverage, width | n | bounds | heads | adaptive | ETS |"
    assert lines[2] == "| a | 64 | 0.70 to 0.90 | 0.69 ×, 2.00 | 0.71, 2.00 | 0.91 ×, 2.00 |"
    assert lines[4:] == ["| MASE | GRU | naive | ETS |", "| --- | --- | --- | --- |",
                         "| a | 0.500 | 0.500 | 0.500 |"]  # fmt: skip


@pytest.mark.slow
def test_the_table_is_made_again_by_its_seed(tmp_path, capsys):
    told = []
    for name in ("one", "two"):
        config = backtest.Config(
            names=("seasonal",), data="made", seeds=1, epochs=2, run_dir=tmp_path / name
        )
        assert backtest.run(config) == 0
        told.append(capsys.readouterr().out)
    assert told[0] == told[1]
    results = json.loads((tmp_path / "one" / "result.json").read_text())["results"]
    whos = [one["who"] for one in results]
    assert whos[:5] == ["GRU, plain split of 22", *(f"GRU, {m}" for m in intervals.METHODS)]
    assert whos[-2:] == ["ETS", "ARIMA"]
    assert all(one["width"] > 0 for one in results)
