import csv
import itertools
import json

import jax
import numpy as np
import pytest
from c_helpers import Stream, library

from experiments.forecast import baselines, intervals, made, model, output, scores
from experiments.forecast.__main__ import run
from experiments.forecast.config import Config
from experiments.forecast.features import ahead
from experiments.forecast.problem import Problem, needed, pose
from experiments.forecast.smoothing import expect
from experiments.forecast.tables import Series, read_series
from rnnjax.errors import InvalidInputError
from rnnjax.training import load_params

INIT, APPLY = jax.jit(model.init, static_argnums=(1, 2, 3, 4)), jax.jit(model.apply)
QUICK = {"seeds": 1, "epochs": 1, "horizon": 3, "origins": 12}


def wave(length, seed=0):
    time = np.arange(length)
    noise = np.random.default_rng(seed).normal(size=length)
    return 100 + time + 20 * np.sin(time * np.pi / 6) + noise


def months(values, horizon=3, origins=12, **inputs):
    """A problem of monthly values."""
    values = np.array(values, float).reshape(len(values), -1)
    none = np.zeros((*values.shape, 0))
    names = [f"x{k}" for k in range(values.shape[1])]
    times = np.datetime64("2000-01") + np.arange(len(values))
    parts = {"past": none, "future": none, "static": none[0]} | inputs
    series = Series(names=names, values=values, times=times, periods=(12,), **parts)
    return pose(series, "my.csv", horizon, 80, origins, ())


def rows(path):
    with path.open(encoding="utf-8") as file:
        return list(csv.reader(file))


def shops(path, length=80, later=3):
    """Two shops of other lengths, one with a gap, with a holiday known beforehand."""
    lines = ["Monat;Laden;Art;Ferien;Wetter;Umsatz"]
    for shop, begin in (("a", 0), ("b", 9)):
        for t, value in enumerate(wave(length, seed=begin)):
            if t < begin or (shop, t) == ("a", 40):
                continue
            month = np.datetime64("2015-01") + np.timedelta64(t, "M")
            text = f"{value:.2f}".replace(".", ",") if t < length - later else ""
            lines.append(f"{month};{shop};{shop * 3};{t % 5 == 0};{t % 7};{text}")
    path.write_text("\n".join(lines), encoding="utf-8")


def test_a_file_is_forecast_and_its_network_goes_on_with_a_longer_one(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(baselines, "find_spec", lambda name: None)
    file = tmp_path / "sales.csv"
    shops(file)
    inputs = {"past": ("Wetter",), "future": ("Ferien",), "static": ("Art",)}
    config = Config(file, ("Umsatz",), by="Laden", run_dir=tmp_path / "run", **inputs, **QUICK)
    assert run(config) == 0
    told = capsys.readouterr().out
    assert "sales.csv: 2 series, 77 times from 2015-01 to 2021-05, 3 ahead" in told
    assert "backtest from 12 origins" in told
    assert "naive" in told
    assert "The network (MASE " in told
    assert "2021-06" in told
    found = rows(tmp_path / "run" / "forecasts.csv")
    assert found[0] == ["time", "series", "forecast", "lower", "upper"]
    assert [row[:2] for row in found[1:]] == [
        [month, f"Umsatz, {shop}"] for shop in "ab" for month in ("2021-06", "2021-07", "2021-08")
    ]
    assert all(float(row[3]) < float(row[2]) < float(row[4]) for row in found[1:])
    table = rows(tmp_path / "run" / "backtest.csv")
    assert [row[:2] for row in table[1:]] == [
        ["GRU", "1"], ["GRU", "2 to 3"], ["GRU", "all"], ["naive", "all"],
        ["seasonal naive", "all"],
    ]  # fmt: skip
    assert (tmp_path / "run" / "forecasts.png").stat().st_size > 3_000
    # What leaves Python gives the numbers of the network, from its states on.
    onnxruntime = pytest.importorskip("onnxruntime")
    assert run(Config(export=tmp_path / "run")) == 0
    assert "which begin with tanh(static @ W)" in capsys.readouterr().out
    raw = read_series(file.read_bytes(), "sales.csv", ("Umsatz",), by="Laden", **inputs)
    problem = pose(raw, "sales.csv", 3, 80, 12, ())
    params = load_params(tmp_path / "run" / "network.safetensors")
    xs, later, static, _ = model.arrays_of(problem)
    expected = APPLY(jax.tree.map(lambda leaf: leaf[0], params), xs, later, static)
    session = onnxruntime.InferenceSession(tmp_path / "run" / "network.onnx")
    fed = np.concatenate([xs, later.reshape(*xs.shape[:2], -1)], axis=-1)
    name = session.get_inputs()[1].name
    begin = np.tanh(static @ np.asarray(params["static"][0]))[None]
    given, state = session.run(None, {"xs": fed[:50], name: begin})
    rest, _ = session.run(None, {"xs": fed[50:], name: state})
    ys = np.concatenate([given, rest]).reshape(expected.shape)
    np.testing.assert_allclose(ys, expected, rtol=1e-4, atol=1e-5)
    in_c = Stream(library(tmp_path / "run"), tmp_path / "run", "network")
    for row in range(fed.shape[1]):
        in_c.state[: begin.shape[-1]] = begin[0, row]
        ys = np.stack([in_c.step(x) for x in fed[:, row]])
        np.testing.assert_allclose(ys, expected[:, row].reshape(ys.shape), rtol=1e-4, atol=1e-5)
    # The same file again has the same forecasts, a longer one has later ones.
    for length, first in ((80, "2021-06"), (84, "2021-10")):
        shops(file, length)
        folder = tmp_path / f"again {length}"
        assert run(Config(file, load=tmp_path / "run", run_dir=folder)) == 0
        others = rows(folder / "forecasts.csv")
        assert others[1][0] == first
        if length == 80:
            for one, other in zip(found[1:], others[1:], strict=True):
                np.testing.assert_allclose(np.array(one[2:], float), np.array(other[2:], float),
                                           rtol=1e-5)  # fmt: skip
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert {"program", "measure", "seconds", "rows", "accepts"} <= set(result)


def test_no_origin_knows_what_comes_after_it():
    values = np.stack([wave(90), wave(90, 1)], axis=1)
    values[:20, 1] = values[50, 0] = np.nan
    changed = values.copy()
    changed[80:] += 30  # behind the last cut of those that are tested
    ys = []
    for each in (values, changed):
        problem = months(each)
        assert problem.cuts[-2] < 80
        trained = model.train(problem, 1, 0, 2)
        found = intervals.scores(trained.ys, problem.steps.targets)
        factors = intervals.factors(found, problem.cuts[0], problem.first, 0.8)
        ys.append(problem.values_of(intervals.widened(trained.ys, factors)))
    one, other = (each[problem.first : problem.last - 2] for each in ys)
    before = 80 - problem.first
    assert np.isfinite(one).all()
    np.testing.assert_allclose(one[:before], other[:before], rtol=1e-5)
    assert (np.abs(one - other)[before:] > 1).all()


def test_how_long_a_group_trains_is_chosen_by_what_is_known_at_its_cut():
    problem = months(wave(90))
    best, targets = model.Best(problem, 2), problem.steps.targets
    best.expect = lambda params, _: params
    then = np.arange(90)[:, None] + np.arange(1, 4)
    behind = np.zeros(then.shape, bool)
    for begin, end in itertools.pairwise(problem.cuts):
        behind[begin:end] = then[begin:end] > end
    assert behind.any()
    for missed in (np.where(behind, 1000.0, 0.0), np.full(then.shape, 1.0)):
        ys = (targets + missed[:, None])[..., None] + np.array([-0.1, 0, 0.1])
        best.evaluate(np.stack([ys] * len(problem.cuts)))
    assert best.epochs == [1] * len(problem.cuts)


def test_smoothing_expects_a_season_with_a_trend_and_knows_nothing_of_later():
    values = np.stack([wave(120), wave(120, 1)], axis=1)
    values[:30, 1] = values[70, 0] = np.nan
    found = expect(values, (12,), 6)
    missed = np.abs(found - ahead(values, 6))[72:]
    assert np.nanmean(missed) < 3
    changed = values.copy()
    changed[90:] = 0
    np.testing.assert_array_equal(expect(changed, (12,), 6)[:90], found[:90])
    assert np.isnan(found[:30, 1]).all()
    assert np.isfinite(found[30:, 1]).all()


def test_gaps_and_what_is_behind_a_cut_have_no_weight():
    values = np.stack([wave(90), wave(90, 1)], axis=1)
    values[:20, 1] = values[40:43, 0] = np.nan
    problem = months(values)
    arrays, axes = model.rows_of(problem)
    assert axes["static"] == 0
    truth, first = problem.steps.targets, problem.steps.valid.argmax(axis=0)
    for row in range(2):
        begin = first[row]
        for t in (begin, 38, 60):
            for k in range(3):
                behind = t + k + 1
                known = np.isfinite(truth[t, row, k])
                when = arrays["when"][t - begin, row, k]
                assert when == behind if known else when > len(values)
    assert (arrays["when"][38 - first[0], 0] > len(values)).tolist() == [False, True, True]


def test_the_level_is_read_standardised_and_training_begins_behind_a_season():
    for length, shift, began in ((100, 0, 11), (100, 1000, 11), (90, 0, 0)):
        values = wave(length) + shift
        problem = months(values)
        known = problem.cuts[0]
        assert (known >= 4 * 12) == (began > 0)  # of four seasons the first is waited for
        assert problem.steps.valid[:, 0].argmax() == began
        level = (values - values[:known].mean()) / values[:known].std()
        np.testing.assert_allclose(problem.steps.xs[:, 0, 2], level, rtol=1e-5, atol=1e-6)


@pytest.mark.smoke
def test_what_is_known_beforehand_is_read_at_its_step():
    values = wave(90)
    values[87:] = np.nan  # times of which the inputs alone are known
    problem = months(values, future=np.random.default_rng(0).normal(size=(90, 1, 1)))
    later, xs = problem.steps.later, problem.steps.xs
    assert later.shape == (90, 1, 3, 2)
    np.testing.assert_array_equal(later[30:80, 0, 1, 0], xs[32:82, 0, -1])
    np.testing.assert_array_equal(later[30:80, 0, 1, 1], xs[20:70, 0, -1])  # a season before
    params = INIT(jax.random.key(0), xs.shape[-1], 2, 0, 3)
    shape = params["later"]["kernel"].shape
    params["later"]["kernel"] = np.random.default_rng(1).standard_normal(shape, np.float32)
    changed = later.copy()
    changed[40, 0, 2] += 1
    one, other = (np.asarray(APPLY(params, xs, x, np.zeros((1, 0)))) for x in (later, changed))
    assert np.argwhere((one != other).any(axis=-1)).tolist() == [[40, 0, 2]]


def test_what_does_not_change_is_in_the_first_carry():
    params = INIT(jax.random.key(0), 4, 0, 2, 3)
    shape = params["kernel"].shape
    params["kernel"] = np.random.default_rng(1).standard_normal(shape, np.float32)
    xs, later = np.zeros((5, 2, 4), np.float32), np.zeros((5, 2, 3, 0))
    ys = np.asarray(APPLY(params, xs, later, np.array([[0.0, 0.0], [1.0, -1.0]])))
    assert (ys[:, 0] != ys[:, 1]).any(axis=(1, 2)).all()
    assert (ys[..., 0] < ys[..., 1]).all()
    assert (ys[..., 1] < ys[..., 2]).all()


def test_scores_of_forecasts_that_are_known():
    problem = months(wave(90))
    truth = ahead(problem.series.values, 3)
    ys = np.stack([truth - 1, truth + 2, truth + 3], axis=-1)
    ys[::2, ..., 0] += 1.5  # every second interval misses
    one = scores.score(problem, ys)
    size = problem.size[0]
    assert one.mase == pytest.approx(2 / size)
    assert one.coverage == 0.5
    assert one.width == pytest.approx((4 + 2.5) / 2 / size)
    # Twice the mean over the quantiles 0.1, 0.5 and 0.9: of misses of -1 or 0.5, 2 and 3.
    lower = (0.1 * 1 + 0.9 * 0.5) / 2
    assert one.pinball == pytest.approx(2 * (lower + 0.5 * 2 + 0.1 * 3) / 3 / size)
    assert list(scores.groups(12)) == ["1", "2 to 3", "4 to 6", "7 to 12"]
    assert list(scores.groups(1)) == ["1"]


def test_a_conformal_level_needs_so_many_scores():
    assert [needed(level / 100) for level in (50, 80, 90, 95, 99)] == [1, 4, 9, 19, 99]


def test_the_scale_is_that_on_which_changes_are_alike():
    rng = np.random.default_rng(0)
    grows = np.exp(0.02 * np.arange(120) + np.cumsum(0.05 * rng.normal(size=120)))
    assert months(grows).scale == " of logs"
    assert months(100 + np.cumsum(rng.normal(size=120))).scale == ""
    assert months(np.append(rng.normal(size=119), -9.0)).scale == ""


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (
            wave(30),
            {},
            "must have at least 36 times for windows with a --horizon of 3 and 12 --orig",
        ),
        (wave(60), {"horizon": 20}, "must have at least 87 times"),
        (np.ones(90), {}, "x0 of my.csv must have at least 16 values that are not all alike"),
        (np.r_[np.full(80, np.nan), wave(10)], {}, "x0 of my.csv must have at least 16 values"),
        (np.r_[np.full(50, np.nan), wave(40)], {}, "must have more than 1 values before the first"),
    ],
)
def test_what_cannot_be_forecast_is_one_sentence(values, options, message):
    with pytest.raises(InvalidInputError, match=message) as error:
        _ = months(values, **options).steps
    assert str(error.value).count(". ") == 0


def test_a_level_needs_origins_and_future_inputs_go_on_to_the_horizon():
    series = months(wave(90)).series
    with pytest.raises(
        InvalidInputError, match=r"a --level of 99 must have 99 origins .* has 54 bef"
    ):
        pose(series, "my.csv", 3, 99, 12, ())
    series.values[-5:] = np.nan
    assert pose(series, "my.csv", 3, 80, 12, ()).last == 84
    known = np.ones((90, 1, 1))
    known[-3:] = np.nan
    with pytest.raises(
        InvalidInputError, match=r"must go on for 3 times behind .* but go on for 2;"
    ):
        pose(series._replace(future=known), "my.csv", 3, 80, 12, ())
    for count, horizon in ((5, 5), (2, 2)):
        known[85 : 85 + count] = 1
        assert pose(series._replace(future=known), "my.csv", horizon, 80, 12, ())


def test_a_picture_shows_pieces_and_what_comes():
    problem = months(wave(90))
    ys = np.arange(90 * 9.0).reshape(90, 1, 3, 3)
    coming = output.Coming.of(problem, ys)
    assert coming.times[0].astype(str).tolist() == ["2007-07", "2007-08", "2007-09"]
    lines = output.panel(problem, output.Result(ys, coming, [], {}), 0)
    times, values = lines["GRU, an origin every 3 steps"]
    assert len(times) == len(values)
    kept = np.isfinite(values[:, 0])
    assert kept.sum() == 3 * (~kept).sum()
    origin = times[kept][0] - np.timedelta64(1, "M")
    at = int((origin - problem.series.times[0]).astype(int))
    assert values[:3].tolist() == ys[at, 0].tolist()
    np.testing.assert_array_equal(lines["GRU, what comes"][1], ys[89, 0])


@pytest.mark.slow
def test_one_model_of_many_series_learns_what_they_share(monkeypatch):
    monkeypatch.setattr(baselines, "find_spec", lambda name: None)
    problem = Problem(made.many(count=24, length=120, horizon=6), 6, (12,), 24, 0.8)
    ours = scores.score(problem, problem.values_of(model.train(problem, 1, 0, 15).ys))
    for name, ys in baselines.compare(problem).items():
        assert ours.mase < 0.9 * scores.score(problem, ys).mase, name
