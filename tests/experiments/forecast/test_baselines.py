import numpy as np
import pytest

from experiments.forecast import baselines, made

STATSMODELS = pytest.importorskip("statsmodels.tsa.api")


def test_the_naive_ways_repeat_and_their_width_grows():
    values = np.arange(10.0)
    values[7] = np.nan
    last = baselines.naive(values, 7, 3, lag=0)
    assert last.mean[[6, 7, 9]].tolist() == [[6] * 3, [6] * 3, [9] * 3]
    assert last.variance[0].tolist() == [1, 2, 3]  # it grows by 1 a step
    season = baselines.naive(values, 7, 3, lag=2)
    assert season.mean[9].tolist() == [8, 9, 8]
    assert season.mean[7].tolist() == [6, 5, 6]
    assert season.variance[0].tolist() == [4, 4, 8]


def test_arima_and_its_variance_are_those_of_statsmodels():
    values = np.random.default_rng(0).normal(size=80).cumsum()
    values[30] = np.nan
    ahead = baselines.arima(values, 60, 4, period=0)
    kinds = [{"order": (0, 1, 1)}, {"order": (1, 1, 1)}, {"order": (1, 0, 0), "trend": "c"},
             {"order": (3, 0, 0), "trend": "c"}]  # fmt: skip
    differences = []
    for kind in kinds:
        model = STATSMODELS.SARIMAX(values[:60], **kind)
        found = model.fit(disp=False, maxiter=50).append(values[60:70]).get_forecast(4)
        both = np.stack([found.predicted_mean, found.var_pred_mean])
        differences.append(np.abs(both - [ahead.mean[69], ahead.variance[69]]).max())
    assert min(differences) < 1e-6


@pytest.mark.parametrize("growth", [0.0, 1.0])
def test_ets_and_its_variance_are_those_of_statsmodels(growth):
    pandas = pytest.importorskip("pandas")
    values = made.single("seasonal", length=72).values[:, 0] + (growth - 0.2) * np.arange(72)
    ahead = baselines.ets(values, 72, 15, period=12)
    model = STATSMODELS.ETSModel
    trends = [{}, {"trend": "add"}, {"trend": "add", "damped_trend": True}]
    kinds = [trend | {"seasonal": "add", "seasonal_periods": 12} for trend in trends]
    fitted = min(
        (model(pandas.Series(values), **kind).fit(disp=False) for kind in kinds),
        key=lambda f: f.aic,
    )
    found = fitted.get_prediction(72, 86)
    np.testing.assert_allclose(ahead.mean[71], found.predicted_mean, rtol=1e-6)
    np.testing.assert_allclose(ahead.variance[71], found.var_pred_mean, rtol=1e-6)
