import dataclasses
import json
import sys
from pathlib import Path
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from experiments.tasks import networks, published, series
from experiments.tasks.published import ROWS, Config
from rnnjax import InvalidInputError
from rnnjax.testing import check_cell

RNG = np.random.default_rng
SMALL = series.Reservoir(20, leak=0.5, radius=0.8, density=0.3, scale=0.4, bias=0.1)


@pytest.mark.parametrize("substeps", [10, 20])
def test_a_mackey_glass_series_is_that_of_jaeger(substeps):
    """Euler's method, as Jaeger (2001) writes it, from 1.2 on."""
    back, h = 17 * substeps, 1 / substeps
    euler = np.full(back + 60 * substeps + 1, 1.2)
    for n in range(back, len(euler) - 1):
        past = euler[n - back]
        euler[n + 1] = euler[n] + h * (0.2 * past / (1 + past**10) - 0.1 * euler[n])
    mean = Mock(uniform=lambda low, high, shape: np.full(shape, (low + high) / 2))
    found = series.mackey_glass(mean, 60, 2, substeps=substeps, washout=0)
    np.testing.assert_allclose(found[:, 1], euler[back + substeps :: substeps], rtol=1e-12)
    rows = series.mackey_glass(RNG(0), 2000, 3)
    assert abs(rows[:, 0] - rows[:, 1]).max() > 0.1  # other histories, other series
    assert 0.04 < rows.var() < 0.08


def test_narma10_is_its_recursion():
    u, y = series.narma10(RNG(1), 300)
    assert 0 <= u.min() < u.max() <= 0.5
    for t in range(10, 300):
        expected = 0.3 * y[t - 1] + 0.05 * y[t - 1] * sum(y[t - 1 - i] for i in range(10))
        expected += 1.5 * u[t - 9] * u[t] + 0.1
        np.testing.assert_allclose(y[t], expected, rtol=1e-12)


def test_a_reservoir_has_the_radius_and_the_holes_that_it_states():
    with jax.enable_x64(True):
        cell, params = dataclasses.replace(SMALL, units=60).draw(3)
    weights = np.asarray(params["recurrent_kernel"])
    assert weights.dtype == np.float64
    np.testing.assert_allclose(abs(np.linalg.eigvals(weights)).max(), 0.8, rtol=1e-12)
    assert 0.25 < (weights != 0).mean() < 0.35
    assert 0.3 < abs(np.asarray(params["kernel"])).max() <= 0.4
    assert set(np.unique(params["bias"])) == {-0.1, 0.0, 0.1}
    assert cell.leak == 0.5


@pytest.mark.parametrize("which", ["run", "run_by_reservoirpy"])
def test_a_free_run_is_a_run_over_its_own_outputs(which):
    if which == "run_by_reservoirpy":
        pytest.importorskip("reservoirpy")
    xs, weights = RNG(2).normal(size=(12, 2)), RNG(3).normal(size=21) / 3
    outputs = getattr(SMALL, which)(xs, 5).free(weights, 4)
    assert outputs.shape == (4, 2)
    states = getattr(SMALL, which)(np.concatenate([xs, outputs[:-1]]), 5).states
    expected = states[11:] @ weights[:-1] + weights[-1]
    np.testing.assert_allclose(outputs, expected, rtol=1e-10)


def test_both_reservoirs_compute_the_same_of_the_same_weights(monkeypatch):
    nodes = pytest.importorskip("reservoirpy.nodes")
    with jax.enable_x64(True):
        _, params = SMALL.draw(1)
    given = {"Win": np.array(params["kernel"]).T, "W": np.array(params["recurrent_kernel"]).T}
    made = nodes.Reservoir
    monkeypatch.setattr(nodes, "Reservoir", lambda units, **named: made(units, **named | given))
    xs = RNG(2).normal(size=(30, 2))
    of_both = (SMALL.run(xs, 1).states, SMALL.run_by_reservoirpy(xs, 1).states)
    np.testing.assert_allclose(*of_both, rtol=1e-10, atol=1e-14)


def test_a_readout_solves_the_penalised_least_squares():
    features, targets, ridge = RNG(4).normal(size=(50, 6)), RNG(5).normal(size=50), 0.7
    a = np.concatenate([features, np.ones((50, 1))], axis=1)
    penalty = ridge * np.diag([1, 1, 1, 1, 1, 1, 0])
    expected = np.linalg.solve(a.T @ a + penalty, a.T @ targets)
    found = series.least_squares(features, targets, ridge)
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    pytest.importorskip("reservoirpy")
    theirs = series.ridge_of_reservoirpy(features, targets, ridge)
    np.testing.assert_allclose(theirs, expected, rtol=1e-6)


def test_the_memory_of_a_legendre_unit_holds_what_was_fed_theta_steps_ago():
    a, b = networks.legendre(12, 20.0)
    memory, us = np.zeros(12), np.sin(np.arange(300) / 8)
    last = []
    for u in us:
        memory = memory @ a + u * b
        last.append(memory.sum())  # all Legendre polynomials are 1 at the end of the window
    np.testing.assert_allclose(last[100:], us[80:-20], atol=0.1)
    held = np.sin((np.arange(300) + 0.5) / 8)  # seen half a step after it began to be held
    np.testing.assert_allclose(last[100:], held[80:-20], atol=5e-3)


def test_a_legendre_unit_is_its_equation():
    cell = networks.LMUCell(5, order=3, theta=6.0)
    params = cell.init(jax.random.key(0), 2)
    params["memory_encoder"] = jnp.array([0.3, -0.2, 0.1])
    params["bias"] = jnp.linspace(-0.2, 0.2, 6)
    xs, p = RNG(6).normal(size=(7, 4, 2)).astype(np.float32), jax.tree.map(np.asarray, params)
    hidden, memory, (a, b) = np.zeros((4, 5)), np.zeros((4, 3)), networks.legendre(3, 6.0)
    carry, ys = rnnjax.unroll(cell, params, xs)
    for x, y in zip(xs, ys, strict=True):
        sums = x @ p["kernel"] + hidden @ p["recurrent_kernel"] + p["bias"]
        u = sums[:, 5:] + (memory @ p["memory_encoder"])[:, None]
        memory = memory @ a + u * b
        hidden = np.tanh(sums[:, :5] + memory @ p["memory_kernel"])
        np.testing.assert_allclose(y, hidden, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(carry.cell, memory, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_legendre_unit_obeys_the_laws_of_a_cell():
    check_cell(networks.LMUCell(4))


def test_numbers_of_one_dimension_tell_their_templates():
    up = np.array([0, 1, 2, 3, 3, 3, 3, 3, 3, 2, 1, 0.0])
    xs, labels = networks.digits_1d(RNG(7), np.stack([up, -up]), 200)
    assert xs.shape == (40, 200)
    assert xs.dtype == np.float32
    assert np.bincount(labels).tolist() == [100, 100]
    assert abs(xs.mean()) < 1e-6
    assert abs(xs.std() - 1) < 1e-6
    highest = np.take_along_axis(xs, abs(xs).argmax(axis=0)[None], axis=0)[0]
    assert ((highest < 0) == labels).all()
    places = abs(xs).argmax(axis=0)
    assert places.min() < 6 < 30 < places.max()  # moved about


def test_numbers_of_one_dimension_are_as_the_package_makes_them():
    theirs = pytest.importorskip("mnist1d.data")
    made, _ = networks.digits_1d(RNG(0), theirs.get_templates()["x"], 5000)
    given = theirs.make_dataset(theirs.get_dataset_args())
    given = np.concatenate([given["x"], given["x_test"]]).T
    for power in (3, 4):
        assert abs((made**power).mean() - (given**power).mean()) < 0.1
    roughness = [np.square(np.diff(xs, axis=0)).mean() for xs in (made, given)]
    np.testing.assert_allclose(*roughness, rtol=0.03)


def test_a_row_prints_ours_beside_theirs(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "reservoirpy", None)
    monkeypatch.setattr(published.importlib.util, "find_spec", lambda name: None)
    config = Config(("narma10",), quick=True, run_dir=tmp_path / "run", seeds=2)
    assert published.run(config) == 0
    shown = capsys.readouterr().out
    assert "pip install reservoirpy" in shown
    lines = (tmp_path / "run" / "table.md").read_text().splitlines()
    assert lines[0] == "| row | network | here | published | by |"
    assert lines[2].startswith("| `narma10` | LeakyRNNCell | 0.")
    assert lines[2].endswith(" | 0.107 | Vinckier et al. 2015 |")
    assert lines[-1] in shown
    result = json.loads((tmp_path / "run" / "narma10" / "result.json").read_text())
    (first, second), of_theirs = result["rows"][0]["score"], result["rows"][2]["score"]
    assert first != second
    assert max(first, second) < 0.4  # without an input it would be 1
    assert of_theirs == 0.107
    assert result["seeds"] == 2


def test_a_row_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(InvalidInputError, match=r"no row narma20; there are mackey_glass, narma10"):
        published.run(Config(("narma20",), run_dir=tmp_path))


def test_the_page_has_every_row_and_what_was_published():
    page = (Path(__file__).parents[2] / "docs" / "published.md").read_text(encoding="utf-8")
    for name, row in ROWS.items():
        assert f"`{name}" in page or f"--tasks {name}`" in page, name
        for number, paper in row.published.values():
            assert str(number) in page, name
            assert paper.partition(",")[0] in page, paper


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ROWS if name != "narma10"])
def test_every_row_runs(name, tmp_path):
    assert published.run(Config((name,), quick=True, run_dir=tmp_path / "run")) == 0
    table = (tmp_path / "run" / "table.md").read_text()
    assert f"| `{name}` | " in table
    for number, paper in ROWS[name].published.values():
        assert f"| {number} | {paper} |" in table


@pytest.mark.slow
def test_echo_states_go_on_with_an_attractor():
    found = published.mackey_glass(Config(), range(2))["LeakyRNNCell"]
    assert max(found) < 0.002  # a guess is 1


@pytest.mark.slow
def test_a_legendre_unit_learns_what_comes():
    made = np.tanh(series.mackey_glass(RNG(0), 300, 24) - 1)
    parts = np.split(made - made.mean(), [16, 20], axis=1)
    named = dict(zip(("train", "validation", "test"), parts, strict=True))
    assert networks.predict_ahead([networks.LMUCell(20)], named, 15, 300, 0) < 0.6


@pytest.mark.slow
def test_a_gru_tells_curves_apart():
    templates = np.cumsum(RNG(0).normal(size=(10, 12)), axis=1) / 6
    xs, labels = networks.digits_1d(RNG(1), templates - templates[:, :1], 2500)
    parts = {"train": (xs[:, :2000], labels[:2000]), "test": (xs[:, 2000:], labels[2000:])}
    assert networks.classify_1d(6, parts, 1500, 0) > 60
