import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from experiments.cookbook import flip_flop
from experiments.cookbook.flip_flop import Config


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["SimpleRNN", "GRU", "LSTM"])
def test_one_bit_is_two_memories_and_a_saddle(ran, cell):
    result, rows = ran(flip_flop, "fixed-points", cell=cell, units=8, bits=1, epochs=6, starts=200)
    assert rows[f"bits, by the {cell}"] > 99
    assert (rows["stable"], rows["one way out"], rows["fixed points"]) == (2, 1, 3)
    assert result["residual"] < 1e-10


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
    config = Config(bits=2, units=2, starts=300)
    with jax.enable_x64(True):
        states, ways, residuals, paths = flip_flop.fixed_points(config, cell, params)
    assert np.bincount(ways).tolist() == [4, 4, 1]
    root = 0.9575040240772687
    np.testing.assert_allclose(np.abs(states[ways == 0]), root, rtol=1e-9)
    np.testing.assert_allclose(np.sort(np.abs(states[ways == 1])), [[0, root]] * 4, atol=1e-9)
    assert residuals.max() < 1e-10
    # Each saddle's two ways end in memories.
    assert paths.shape[1:] == (8, 2)
    np.testing.assert_allclose(np.abs(paths[-1]), root, rtol=1e-6)
