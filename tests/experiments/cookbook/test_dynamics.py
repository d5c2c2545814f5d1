"""Fixed points, exponents and memories against closed forms and the constants of known systems.

And the program that trains a network of rates to decide.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from experiments.cookbook import dynamics as program
from experiments.cookbook.common import dynamics
from rnnjax.errors import InvalidInputError


@dataclasses.dataclass(frozen=True)
class System(rnnjax.Cell):
    """A system without input and parameters: a subclass writes the next state."""

    hidden_size: int
    carry = rnnjax.SimpleRNNCarry
    gates = ()
    recurrent = None
    use_bias = False

    def update(self, params, x, carry):
        return rnnjax.SimpleRNNCarry(self.next(carry.hidden))


class Henon(System):
    """Henon's map (1976), with a = 1.4 and b = 0.3."""

    def next(self, state):
        x, y = state
        return jnp.stack([1 - 1.4 * x**2 + y, 0.3 * x])


@dataclasses.dataclass(frozen=True)
class Counter(System):
    """Has a leaf that is no real number."""

    def initial_carry(self, batch_shape=(), dtype=None):
        return rnnjax.SimpleRNNCarry(jnp.zeros((*batch_shape, 4), int))


def linear(eigenvalues, seed=0):
    """A linear cell of these eigenvalues, its parameters, and its matrix: h' = h U + x W + b."""
    rng = np.random.default_rng(seed)
    size = len(eigenvalues)
    basis = rng.normal(size=(size, size))
    turn = np.linalg.inv(basis) @ np.diag(eigenvalues) @ basis
    params = {"kernel": rng.normal(size=(2, size)), "recurrent_kernel": turn}
    params["bias"] = rng.normal(size=size)
    return rnnjax.SimpleRNNCell(size, activation="linear"), params


def test_the_fixed_point_of_a_linear_map_and_its_slow_directions():
    eigenvalues = [0.98, 0.5, -0.8, 1.1]
    cell, params = linear(eigenvalues)
    x = np.array([0.3, -0.7])
    points = dynamics.fixed_points(cell, params, np.zeros((3, 4)), x)
    turn = params["recurrent_kernel"]
    expected = (x @ params["kernel"] + params["bias"]) @ np.linalg.inv(np.eye(4) - turn)
    np.testing.assert_allclose(points.states, [expected], atol=1e-6)
    np.testing.assert_allclose(points.jacobians, [turn.T], atol=1e-12)
    assert points.residuals.max() < dynamics.RESIDUAL
    np.testing.assert_allclose(points.eigenvalues, [[1.1, 0.98, -0.8, 0.5]], atol=1e-9)
    assert points.ways_out.tolist() == [1]
    constants = [-1 / np.log(size) for size in (1.1, 0.98, 0.8, 0.5)]
    np.testing.assert_allclose(points.time_constants, [constants], rtol=1e-6)
    held = dynamics.FixedPoints(np.zeros((1, 2)), np.diag([1.0, 0.0])[None], np.zeros(1))
    assert held.time_constants.tolist() == [[np.inf, 0]]  # what is held does not grow
    for value, direction in zip(points.eigenvalues[0], points.directions[0], strict=True):
        np.testing.assert_allclose(direction @ turn, value * direction, atol=1e-9)


@pytest.mark.smoke
def test_the_fixed_points_and_exponents_of_henons_map():
    cell = Henon(2)
    params = cell.init(jax.random.key(0), 1)
    points = dynamics.fixed_points(cell, params, np.random.default_rng(0).normal(size=(40, 2)), [0])
    roots = (-0.7 + np.array([1, -1]) * np.sqrt(0.49 + 5.6)) / 2.8  # 1.4 x^2 + 0.7 x - 1 = 0
    states = points.states[np.argsort(-points.states[:, 0])]
    np.testing.assert_allclose(states, np.stack([roots, 0.3 * roots], axis=1), atol=1e-6)
    assert points.ways_out.tolist() == [1, 1]
    found = dynamics.lyapunov_spectrum(cell, params, np.zeros((40_000, 1)), skip=100)
    assert found[0] == pytest.approx(0.4192, rel=0.02)  # and 0.4192 + ln 0.3
    # Each step shrinks areas by b, whatever the state.
    assert found.sum() == pytest.approx(np.log(0.3), abs=1e-6)


CELLS = {
    "lstm": rnnjax.LSTMCell(4), "lru": rnnjax.LRUCell(4), "slstm": rnnjax.SLSTMCell(4),
    "mlstm": rnnjax.MLSTMCell(4, heads=2),
    "stack": rnnjax.Stack([rnnjax.GRUCell(3), rnnjax.SimpleRNNCell(2)]),
    "learned": rnnjax.LearnedCarry(rnnjax.GRUCell(3)),
}  # fmt: skip
# In an ordinary run one whose state is a matrix beside others, and one of several layers.
USUAL = {"mlstm", "stack"}


@pytest.mark.parametrize(
    "name", [n if n in USUAL else pytest.param(n, marks=pytest.mark.slow) for n in CELLS]
)
def test_any_cell_is_taken_apart(name, random_like):
    cell = CELLS[name]
    params = random_like(lambda: cell.init(jax.random.key(0), 2), 1)
    xs = np.random.default_rng(0).normal(size=(6, 3, 2))
    # By differences: the last states of all rows, where the input of two steps before moves.
    moved = [xs + 1e-6 * (np.arange(6)[:, None, None] == 3) * one for one in np.eye(2)]
    ends = dynamics.visited(cell, params, np.concatenate([xs, *moved], axis=1))[-1]
    states, *others = np.split(ends, 3)
    carry, _ = jax.jit(functools.partial(rnnjax.unroll, cell))(params, np.float32(xs))
    last = np.concatenate([np.reshape(leaf, (3, -1)) for leaf in jax.tree.leaves(carry)], axis=1)
    np.testing.assert_allclose(states, last, atol=1e-5)
    found = dynamics.lyapunov_spectrum(cell, params, xs[:, 0], count=2)
    assert found.shape == (2,)
    assert found[0] >= found[1]
    memory = dynamics.memory_by_lag(cell, params, xs)
    assert memory.shape == (6,)
    slopes = (np.stack(others) - states) / 1e-6
    assert memory[2] == pytest.approx(np.sqrt((slopes**2).sum(axis=(0, 2)).mean()), rel=1e-4)


def test_what_cannot_be_taken_apart_is_said_in_a_sentence():
    cell, params = linear([0.5, 0.5])
    with pytest.raises(InvalidInputError, match=r"starts must be \(starts, 2\), .* is \(7, 3\)"):
        dynamics.fixed_points(cell, params, np.zeros((7, 3)), np.zeros(2))
    with pytest.raises(InvalidInputError, match="skip must be from 0 to 9"):
        dynamics.lyapunov_spectrum(cell, params, np.zeros((10, 2)), skip=10)
    with pytest.raises(InvalidInputError, match="count from 1 to 2"):
        dynamics.lyapunov_spectrum(cell, params, np.zeros((10, 2)), count=3)
    with pytest.raises(InvalidInputError, match=r"must hold real numbers .* holds int"):
        dynamics.visited(Counter(4), {"kernel": np.zeros((1, 0))}, np.zeros((5, 1, 1)))


def test_a_trial_shows_a_cue_and_evidence_and_asks_after_the_delay():
    trials = program.draw(0, 3, 400, delays=(2, 7))
    xs, answers, strengths = trials["xs"], trials["answers"], trials["strengths"]
    assert xs.shape == (3, 57, 400, 3)
    assert answers.shape == (3, 57, 400)
    np.testing.assert_array_equal(answers == 0, xs[..., 0] == 1)
    asked = (answers != 0).argmax(axis=1)
    assert set(np.unique(asked)) == set(range(45 + 2, 45 + 7 + 1))
    assert (answers[:, -1] == np.where(strengths > 0, 1, 2)).all()
    assert not xs[:, :5, :, 1:].any()
    assert not xs[:, 45:, :, 1:].any()
    evidence = xs[:, 5:45, :, 1] - xs[:, 5:45, :, 2]
    for strength in program.STRENGTHS:
        for sign in (-1, 1):
            of = evidence.swapaxes(1, 2)[strengths == np.float32(sign * strength)]
            spread = 5 * program.NOISE * np.sqrt(2 / of.size)
            assert of.mean() == pytest.approx(sign * strength, abs=spread)
    # Noise of both channels: sqrt(2) of one.
    assert (evidence - strengths[:, None]).std() == pytest.approx(0.5 * np.sqrt(2), rel=0.02)


def test_by_dales_law_a_neuron_excites_or_inhibits():
    cell = rnnjax.LeakyRNNCell(10, leak=0.2, activation=program.rates)
    params = program.begin(cell, True, jax.random.key(0))
    kernel = np.asarray(params["cell"]["recurrent_kernel"])
    assert (kernel[:8] > 0).all()
    assert (kernel[8:] < 0).all()
    assert np.abs(np.linalg.eigvals(kernel)).max() == pytest.approx(1.5, rel=1e-5)
    drawn = np.random.default_rng(0).normal(size=(10, 10)).astype(np.float32)
    params["cell"]["recurrent_kernel"] = jnp.array(drawn)
    allowed = program.by_dales_law(params)
    found = np.asarray(allowed["cell"]["recurrent_kernel"])
    np.testing.assert_array_equal(found[:8], np.maximum(drawn[:8], 0))
    np.testing.assert_array_equal(found[8:], np.minimum(drawn[8:], 0))
    assert jax.tree.structure(allowed) == jax.tree.structure(params)
    assert allowed["cell"]["kernel"] is params["cell"]["kernel"]
    np.testing.assert_allclose(program.rates(jnp.array([-1.0, 0.5, 99.0])), [0, np.tanh(0.5), 1])


@pytest.mark.slow
def test_a_network_of_rates_learns_to_decide_and_is_taken_apart(ran):
    result, rows = ran(program, "decisions", "dale", "memory", epochs=10, starts=200)
    best, last = rows["all evidence, summed"], rows["the last step of the evidence alone"]
    assert 50 < last < best
    # After 1,000 updates the decision is learned, if not yet how to hold it for long.
    assert last < max(rows["rates"], rows["rates, Dale's law"]) < best + 1
    for name in ("rates", "rates, Dale's law"):
        told = result["taken_apart"][name]
        assert told["exponent"] < 0.1
        assert told["early"] > told["early_before"]
        assert len(result["memory"][name]) == program.CUE + program.EVIDENCE


@pytest.mark.slow
def test_a_cell_by_its_name_is_taken_apart(ran):
    result, rows = ran(program, "decisions", "memory", cell="GRU", epochs=6, starts=100)
    assert rows["GRU"] > rows["the last step of the evidence alone"]
    assert result["taken_apart"].keys() == {"GRU"}
