import jax
import numpy as np
import pytest

from experiments.cookbook import spirals
from experiments.cookbook.spirals import Config


@pytest.mark.slow
def test_s5_tells_spirals_apart_by_the_times_of_their_points(ran):
    result, scores = ran(spirals, "points", seeds=2, epochs=8)
    regular, irregular, _ = scores.values()
    assert min(regular) > 95
    assert len(irregular) == 2
    assert min(irregular) > 90
    assert result["rows"][2]["source"] == "Diffrax's page"
    assert len(result["seen"]["S5, time as its step"]) == Config().points


def test_a_spiral_turns_and_shrinks_with_the_time():
    for irregular in (False, True):
        xs, left = spirals.draw(0, 40, 12, 0, irregular)
        assert xs.shape == (12, 40, 3)
        assert left.sum() == 20
        places = xs[..., 0] + 1j * xs[..., 1]
        times = xs[..., 2].cumsum(axis=0) * spirals.SPAN / 11
        first = np.abs(places[0]) if irregular else 1  # the first point's time is not told
        np.testing.assert_allclose(np.abs(places), first * np.exp(-0.3 * times), rtol=1e-4)
        turned = np.where(left, 2j, -2j) * times
        np.testing.assert_allclose(places / places[0], np.exp(turned - 0.3 * times), atol=1e-4)
        steps = np.diff(xs[..., 2][1:], axis=0)
        assert (np.abs(steps).max() > 0.1) == irregular
    noisy = spirals.draw(0, 40, 12, 0.1, True)[0] - xs
    assert 0.09 < noisy[..., :2].std() < 0.11
    assert not noisy[..., 2].any()


def test_answers_are_counted_after_each_point():
    batch = spirals.draw(0, 8, 5, 0, True)
    kind = "S5, time as its step"
    params = spirals.learn(Config(seeds=2), kind, jax.tree.map(lambda v: v[None], batch), 1, 0.0)
    measure, logits = (jax.jit(f, static_argnums=0) for f in (spirals.measure, spirals.logits))
    losses, right = jax.device_get(measure(kind, params, batch))
    sure = np.asarray(logits(kind, jax.tree.map(lambda v: v[1], params), batch[0]))
    assert sure.shape == (5, 8)
    np.testing.assert_allclose(right[1], 100 * ((sure > 0) == batch[1]).mean(axis=1))
    signs = np.where(batch[1], 1, -1)
    np.testing.assert_allclose(losses[1], np.log1p(np.exp(-signs * sure[-1])).mean(), rtol=1e-4)
