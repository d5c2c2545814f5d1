import numpy as np
import pytest

from experiments.forecast import intervals

LEVEL = 0.8
FIRST = 60


def shares(sizes, method, horizon=1, seed=0):
    """How often intervals of width 1 on either side, so calibrated, cover noise of these sizes."""
    missed = (
        np.random.default_rng(seed).normal(size=(len(sizes), 1, horizon)) * sizes[:, None, None]
    )
    found = np.abs(missed)
    factors = intervals.factors(found, 0, FIRST, LEVEL, method)
    assert np.isnan(factors[:FIRST]).all()
    return (found <= factors)[FIRST:].mean(), factors[FIRST:]


@pytest.mark.parametrize("method", ["split", "rolling", "adaptive"])
def test_calibrated_intervals_cover_what_does_not_change(method):
    found = [shares(np.full(460, 2.0), method, seed=seed)[0] for seed in range(5)]
    assert np.mean(found) == pytest.approx(LEVEL, abs=0.03)


def test_only_what_adapts_covers_where_noise_becomes_three_times_as_large():
    sizes = np.where(np.arange(460) < 160, 1.0, 3.0)
    found = {m: np.mean([shares(sizes, m, seed=s)[0] for s in range(5)]) for m in intervals.METHODS}
    assert found["heads"] < 0.4
    assert found["split"] < 0.55
    assert found["split"] < found["rolling"] < found["adaptive"]
    assert found["adaptive"] == pytest.approx(LEVEL, abs=0.03)


@pytest.mark.parametrize("method", ["split", "rolling", "adaptive"])
def test_an_interval_is_made_of_what_was_known_at_its_origin(method):
    found = np.random.default_rng(0).exponential(size=(120, 2, 3))
    changed = found.copy()
    changed[80:] = 9.0  # of origins from 80 on
    one, other = (intervals.factors(each, 0, FIRST, LEVEL, method) for each in (found, changed))
    for step in range(3):
        # Scores are known a step ahead and more later; misses of any step widen all of them.
        known = 81 + (step if method != "adaptive" else 0)
        np.testing.assert_array_equal(one[:known, :, step], other[:known, :, step])
        differs = (one[known:, :, step] != other[known:, :, step]).any(axis=1)
        assert differs.all() == (method != "split")


def test_a_conformal_quantile_is_one_of_the_scores():
    found = np.array([3.0, np.nan, 1.0, 2.0, 5.0, 4.0])
    assert intervals.quantile(found, 0.5) == 3.0  # of (5 + 1) / 2 in order
    assert intervals.quantile(found, 0.8) == 5.0
    assert intervals.quantile(found, 0.9) == np.inf


def test_widths_are_counted_on_the_side_of_the_truth():
    ys = np.array([[1.0, 2.0, 6.0]] * 3)
    found = intervals.scores(ys, np.array([0.0, 2.0, 4.0]))
    assert found.tolist() == [2.0, 0.0, 0.5]
    assert intervals.widened(ys, found)[0].tolist() == [0.0, 2.0, 10.0]
