"""Pulses, numbers, letters and spirals as they are made, and the programs that read them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from experiments.cookbook import flip_flop, gradients, online, spirals


@pytest.mark.smoke
def test_each_bit_is_that_of_its_last_pulse():
    task = flip_flop.draw(0, 3, 40, 5, 2)
    pulses, held = task["pulses"], task["held"]
    assert pulses.shape == held.shape == (3, 40, 5, 2)
    assert set(np.unique(pulses)) == {-1, 0, 1}
    last = np.zeros((3, 5, 2))
    for time in range(40):
        last = np.where(pulses[:, time] != 0, pulses[:, time], last)
        np.testing.assert_array_equal(held[:, time], last)
    assert 0.05 < (pulses[:, 1:] != 0).mean() < 0.15


def test_the_fixed_points_of_units_that_are_known():
    """Two units, each h' = tanh(2 h): 0 and the two roots of h = tanh(2 h), and their pairs."""
    cell = rnnjax.SimpleRNNCell(2)
    params = {"kernel": jnp.eye(2) * 3, "recurrent_kernel": jnp.eye(2) * 2, "bias": jnp.zeros(2)}
    config = flip_flop.Config(bits=2, units=2, starts=300)
    points, paths = flip_flop.fixed_points(config, cell, params)
    states, ways, residuals = points.states, points.ways_out, points.residuals
    assert np.bincount(ways).tolist() == [4, 4, 1]
    root = 0.9575040240772687
    np.testing.assert_allclose(np.abs(states[ways == 0]), root, rtol=1e-9)
    np.testing.assert_allclose(np.sort(np.abs(states[ways == 1])), [[0, root]] * 4, atol=1e-9)
    assert residuals.max() < 1e-10
    # Each saddle's two ways end in memories.
    assert paths.shape[1:] == (8, 2)
    np.testing.assert_allclose(np.abs(paths[-1]), root, rtol=1e-6)


@pytest.mark.slow
def test_a_gru_learns_to_add_few_numbers_and_gradients_are_measured(ran):
    result, rows = ran(gradients, "reach", seeds=2, numbers=10, epochs=4)
    assert 0.1 < rows["the mean, whatever comes"] < 0.25  # 1/6
    assert rows["GRU"][0] != rows["GRU"][1]
    assert max(rows["GRU"]) < 0.01
    reach = result["reach"]
    assert reach["SimpleRNN x 3"] > 1e12
    assert reach["SimpleRNN x 0.5"] < 1e-20 < 1e-4 < reach["SimpleRNN x 1"] < 0.1
    assert 0 < reach["GRU x 1"] < 1e-15
    weights, exploded, clipped = result["clipping"]
    assert exploded > 1e10 > weights
    assert clipped == pytest.approx(1, rel=1e-5)


@pytest.mark.smoke
def test_the_reach_of_a_linear_cell_is_that_of_its_powers():
    cell = rnnjax.SimpleRNNCell(3, activation=lambda x: x)
    drawn = jax.device_get(jax.jit(cell.init, static_argnums=1)(jax.random.key(0), 2))
    params = {"cell": drawn, "kernel": np.ones(3, "f"), "bias": np.zeros((), "f")}
    params = jax.tree.map(lambda x: x[None], params)
    xs = np.random.default_rng(0).normal(size=(12, 4, 2)).astype(np.float32)
    found = gradients.reach(cell, params, xs, (0.5, 2.0))
    kernel = np.asarray(params["cell"]["recurrent_kernel"][0])
    for scale, row in zip((0.5, 2.0), found, strict=True):
        by_state = np.ones(3)
        for time in reversed(range(12)):
            expected = np.linalg.norm(by_state) / np.sqrt(3)
            assert row[time] == pytest.approx(expected, rel=1e-4)
            by_state = scale * kernel @ by_state
    last, _ = jax.jit(functools.partial(rnnjax.unroll, cell))(drawn, xs)
    expected = np.mean((np.asarray(last.hidden).sum(axis=1) - 1) ** 2)
    np.testing.assert_allclose(gradients.losses(cell, params, xs, 1.0), [expected], rtol=1e-5)


@pytest.mark.smoke
def test_a_stream_asks_for_the_letter_that_was_marked():
    config = online.Config(wait=3, rows=5)
    places, answers = np.arange(5), np.zeros(5, np.int32)
    read = jax.jit(functools.partial(online.read, config))
    last = np.zeros(5, int)
    asked_rows = set()
    for time in range(20):
        x, marked, asked, answers = map(np.asarray, read(7, time, places, answers))
        assert x.shape == (5, 6)
        assert marked.sum() == asked.sum() == 1  # each row at another place
        assert (x[:, 4] == marked).all()
        assert (x[:, 5] == asked).all()
        assert (x[:, :4].sum(axis=1) == 1 - asked).all()
        last = np.where(marked, x[:, :4].argmax(axis=1), last)
        if time >= 4:  # rows have begun before
            row = int(asked.argmax())
            assert answers[row] == last[row]
            asked_rows.add(row)
    assert asked_rows == set(range(5))


@pytest.mark.smoke
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
    config, batches = spirals.Config(seeds=2), jax.tree.map(lambda v: v[None], batch)
    params = spirals.learn(config, kind, batches, 1, 0.0)
    measure, logits = (jax.jit(f, static_argnums=0) for f in (spirals.measure, spirals.logits))
    params = jax.device_get(params)
    losses, right = jax.device_get(measure(kind, params, batch))
    sure = np.asarray(logits(kind, jax.tree.map(lambda v: v[1], params), batch[0]))
    assert sure.shape == (5, 8)
    np.testing.assert_allclose(right[1], 100 * ((sure > 0) == batch[1]).mean(axis=1))
    signs = np.where(batch[1], 1, -1)
    np.testing.assert_allclose(losses[1], np.log1p(np.exp(-signs * sure[-1])).mean(), rtol=1e-4)
    moved = batch[0] + np.eye(5)[0][:, None, None] * [1, 1, 0]  # the first point alone
    other = logits(kind, jax.tree.map(lambda v: v[1], params), moved.astype(np.float32))
    later = np.diff(np.stack([sure, other]) * np.arange(1, 6)[:, None], axis=1)  # after the others
    assert np.abs(later[1] - later[0]).max() > 1e-4
