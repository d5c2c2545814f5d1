import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from experiments.cookbook import gradients


@pytest.mark.slow
def test_a_gru_learns_to_add_few_numbers_and_gradients_are_measured(ran):
    result, rows = ran(gradients, "reach", seeds=2, numbers=10, epochs=4)
    assert 0.1 < rows["the mean, whatever comes"] < 0.25  # 1/6
    assert len(rows["GRU"]) == 2
    assert rows["GRU"][0] != rows["GRU"][1]
    assert max(rows["GRU"]) < 0.01
    reach = result["reach"]
    assert reach["SimpleRNN x 3"] > 1e12
    assert reach["SimpleRNN x 0.5"] < 1e-20 < 1e-4 < reach["SimpleRNN x 1"] < 0.1
    assert 0 < reach["GRU x 1"] < 1e-15
    weights, exploded, clipped = result["clipping"]
    assert exploded > 1e10 > weights
    assert clipped == pytest.approx(1, rel=1e-5)


def test_the_reach_of_a_linear_cell_is_that_of_its_powers():
    cell = rnnjax.SimpleRNNCell(3, activation=lambda x: x)
    params = {"cell": cell.init(jax.random.key(0), 2), "kernel": jnp.ones(3), "bias": jnp.zeros(())}
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
