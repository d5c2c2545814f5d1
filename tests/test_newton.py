"""`Parallel(newton=Newton())`: the numbers of the plain scan for cells that are not affine."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cell_table import OwnStepCell

import rnnjax
from rnnjax import InvalidInputError, Newton, Parallel, Scan
from rnnjax.engine.parallel import newton as newton_module

TIME, BATCH = 12, 3
KEY = jax.random.key(0)
MASK = np.random.default_rng(0).random((TIME, BATCH)) < 0.8
RESETS = np.random.default_rng(1).random((TIME, BATCH)) < 0.2
LENGTHS = np.array([TIME, 5, 0])
# What no other test runs, since what was traced with and without the steps one by one is kept.
ITERATED, ONE_BY_ONE = Newton(max_iterations=24), Newton(max_iterations=1)

CELLS = {
    "lstm": rnnjax.LSTMCell(4),
    "gru": rnnjax.GRUCell(4),
    "diagonal": rnnjax.DiagonalLSTMCell(4),
    "peephole": rnnjax.PeepholeLSTMCell(4, peephole_init="ones"),
    "reset-before": rnnjax.GRUCell(4, reset_after=False),
    "zoneout": rnnjax.Regularized(rnnjax.LSTMCell(4), zoneout_hidden=0.3, recurrent_dropout=0.2),
    # Their units mix in other ways too, or are not as many in each leaf.
    "layernorm": rnnjax.LayerNormGRUCell(4),
    "projection": rnnjax.ProjectionLSTMCell(4, proj_size=2),
    "convolution": rnnjax.ConvLSTMCell(2, kernel_shape=(3,)),
}


def compared(name, method, equal_to_scan):
    """Outputs and gradients, with all marks at once."""
    batch = (BATCH, 2) if name == "convolution" else (BATCH,)
    marks = {"mask": MASK, "lengths": LENGTHS, "resets": RESETS, "reverse": True}
    equal_to_scan(
        CELLS[name], [Parallel(newton=method)], batch, steps=TIME, dtype="float64", scale=0.4,
        tolerance=1e-11, key=KEY if name == "zoneout" else None, **marks,
    )  # fmt: skip


# Of those whose units mix in the product of the gates alone one stands for all, with noise besides,
# and of those with a product in the update the projection.
ALIKE = ["lstm", "gru", "peephole", "reset-before", "layernorm"]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in ALIKE else []) for n in CELLS]
)
@pytest.mark.usefixtures("x64")
def test_the_iterations_give_the_numbers_of_the_scan(name, equal_to_scan, monkeypatch):
    monkeypatch.setattr(newton_module, "_unless", lambda good, found, instead: found)
    compared(name, ITERATED, equal_to_scan)


@pytest.mark.parametrize("name", ["diagonal", pytest.param("zoneout", marks=pytest.mark.slow)])
@pytest.mark.usefixtures("x64")
def test_so_do_the_steps_one_by_one(name, equal_to_scan):
    compared(name, ONE_BY_ONE, equal_to_scan)


def converges(cell, num_steps, tolerance=1e-6, scale=1.0):
    params = jax.device_get(jax.jit(cell.init, static_argnums=1)(KEY, 16))
    params["recurrent_kernel"] = scale * params["recurrent_kernel"]
    xs = np.random.default_rng(1).normal(size=(num_steps, 2, 16)).astype("float32")
    method = Parallel(newton=Newton(tolerance=tolerance))
    return params, xs, rnnjax.newton(cell, params, xs, method=method)


CHRONO = {"bias_init": rnnjax.cells.Chrono(512)}


@pytest.mark.parametrize(
    ("cell", "most", "tolerance"),
    [
        (rnnjax.LSTMCell(32), 14, 1e-6),
        pytest.param(rnnjax.GRUCell(32), 12, 1e-6, marks=pytest.mark.slow),
        pytest.param(rnnjax.LSTMCell(32, **CHRONO), 8, 1e-5, marks=pytest.mark.slow),
    ],
    ids=["lstm", "gru", "lstm-chrono"],
)
def test_it_takes_few_iterations(cell, most, tolerance):
    (layer,) = converges(cell, 512, tolerance)[2].layers
    assert layer.converged
    assert layer.iterations <= most
    assert len(layer.residuals) == layer.iterations
    assert layer.residuals[-1] <= tolerance
    assert layer.lyapunov < 0


@pytest.mark.parametrize(
    ("cell", "scale"),
    [
        (rnnjax.GRUCell(32), 8),
        pytest.param(
            rnnjax.DiagonalLSTMCell(32, recurrent_kernel_init=jax.nn.initializers.normal(3.0)),
            1,
            marks=pytest.mark.slow,
        ),
    ],
    ids=["gru", "diagonal"],
)
def test_what_does_not_converge_runs_step_by_step(cell, scale):
    params, xs, report = converges(cell, 256, scale=scale)
    run = functools.partial(rnnjax.unroll, cell, params, xs)
    (_, found), (_, ys) = run(method=Parallel(newton=Newton())), run(method=Scan())
    np.testing.assert_allclose(found, ys, atol=1e-5)
    assert report.layers[0].converged or "did not converge" in str(report)


def test_vmap_and_forward_mode(random_like, assert_close):
    cell = rnnjax.SimpleRNNCell(3)
    params, xs = random_like(lambda: (cell.init(KEY, 2), jnp.zeros((10, 2, 2))), 1)

    def run(xs, method):
        return rnnjax.unroll(cell, params, xs, method=method)[1]

    @functools.partial(jax.jit, static_argnums=(1, 2))
    def each(xs, method, rows):
        gradient = jax.grad(lambda xs: jnp.sin(run(xs, method)).sum())
        forwards = jax.jvp(lambda xs: run(xs, method), (xs,), (jnp.cos(xs),))
        return (jax.vmap(gradient, 1, 1) if rows else gradient)(xs), forwards

    found = each(xs, Parallel(newton=Newton()), True)
    assert_close(found, each(xs, Scan(), False), 1e-5)


def test_it_tells_of_each_layer_how_it_went(random_like):
    stack = rnnjax.Stack([rnnjax.MinGRUCell(3), rnnjax.Bidirectional(rnnjax.GRUCell(4))])
    params, xs = random_like(lambda: (stack.init(KEY, 2), jnp.zeros((20, 3, 2))), 1)
    report = rnnjax.newton(stack, params, xs)
    affine, forward, backward = report.layers
    assert (affine.iterations, affine.residuals, affine.converged) == (1, (0.0,), True)
    assert forward.cell == backward.cell == rnnjax.GRUCell(4)
    assert "MinGRUCell(3): converged, after 1 iterations" in str(report)
    # What exchanges the units and halves them shrinks every state by as much at each step.
    cell = rnnjax.SimpleRNNCell(4, activation="linear")
    params = random_like(lambda: cell.init(KEY, 2), 1)
    params["recurrent_kernel"] = 0.5 * np.eye(4, dtype="float32")[::-1]
    assert rnnjax.newton(cell, params, xs).layers[0].lyapunov == pytest.approx(np.log(0.5), 1e-4)


def test_it_says_how_it_runs_and_what_it_refuses():
    cell, method = rnnjax.GRUCell(4), Parallel(newton=Newton())
    params = jax.eval_shape(lambda: cell.init(KEY, 2))
    xs = np.ones((100, 2, 2), "float32")
    text = str(rnnjax.explain(cell, params, xs, method=method))
    assert "by Newton's method, because its units see each other's state in a product" in text
    assert "the factors and constants of 100 steps at once" in text
    with pytest.raises(InvalidInputError, match="units see each other"):
        rnnjax.newton(cell, params, xs, method=Parallel())
    affine = rnnjax.MinGRUCell(4)
    params = jax.eval_shape(lambda: affine.init(KEY, 2))
    assert "Newton" not in str(rnnjax.explain(affine, params, xs, method=method))
    own = OwnStepCell(4)
    with pytest.raises(InvalidInputError, match="no carry and update, but a step"):
        rnnjax.unroll(own, own.init(KEY, 2), xs, method=method)
    for bad in ({"tolerance": 0.0}, {"tolerance": "1"}, {"max_iterations": 0}):
        with pytest.raises(InvalidInputError, match=next(iter(bad))):
            Newton(**bad)
    with pytest.raises(InvalidInputError, match="newton must be"):
        Parallel(newton=True)
