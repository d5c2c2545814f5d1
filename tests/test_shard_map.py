"""Arrays divided over devices: outputs and gradients are those of one device."""

import contextlib
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cell_table import OwnStepCell
from jax.sharding import AxisType, PartitionSpec

import rnnjax
from rnnjax import Fused, Scan
from rnnjax.checks import brief

KEY = jax.random.key(0)


def drawn(*shape):
    """Inputs of two features, masks and resets, of 5 steps and 6 rows."""
    rng = np.random.default_rng(1)
    xs = rng.normal(size=(5, 6, *shape, 2)).astype("float32")
    return xs, rng.random((5, 6)) < 0.8, rng.random((5, 6)) < 0.3


@functools.partial(jax.jit, static_argnums=(0, 1))
def squares(cell, method, *arguments):
    """The sum of the squared outputs, and its gradients."""

    def loss(params, xs, mask, resets):
        ys = rnnjax.unroll(cell, params, xs, mask=mask, resets=resets, method=method)[1]
        return (ys**2).sum()

    return jax.value_and_grad(loss, argnums=(0, 1))(*arguments)


@pytest.mark.parametrize(
    ("cell", "method"),
    [
        (rnnjax.LSTMCell(4), Scan()),
        (rnnjax.LSTMCell(4), Fused(keep_every=2)),
        (rnnjax.LRUCell(4, state_size=3), rnnjax.Parallel()),
    ],
    ids=brief,
)
def test_every_method_runs_under_shard_map(cell, method, random_like, assert_close):
    """Whatever is made inside varies over the devices, as the carry does."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    arguments = random_like(lambda: cell.init(KEY, 2), 1), *drawn()
    whole, rows = PartitionSpec(), PartitionSpec(None, "data")

    def inside(*arguments):
        # The gradient of what is the same on all devices is summed by JAX.
        value, gradients = squares(cell, method, *arguments)
        return jax.lax.psum(value, "data"), gradients

    specs = {"in_specs": (whole, rows, rows, rows), "out_specs": (whole, (whole, rows))}
    actual = jax.jit(jax.shard_map(inside, mesh=mesh, **specs))(*arguments)
    assert len(actual[1][1].sharding.device_set) == 2
    assert_close(actual, squares(cell, Scan(), *arguments), 1e-5)


NAMED = {
    "both-ways": rnnjax.Bidirectional(rnnjax.MinGRUCell(3)),
    "noisy": rnnjax.Regularized(rnnjax.SimpleRNNCell(4), recurrent_dropout=0.3),
    "stack": rnnjax.Stack([rnnjax.LSTMCell(4), rnnjax.MinGRUCell(3)]),
    "learned": rnnjax.LearnedCarry(rnnjax.LSTMCell(4)),
    "convolution": rnnjax.ConvLSTMCell(3),
    "memory": rnnjax.Mamba2Cell(4, heads=2, state_size=3),
    "step": OwnStepCell(4),
}


@pytest.mark.parametrize(
    ("name", "known"),  # whether `jax.set_mesh` says it too
    [
        *((name, True) for name in ("both-ways", "noisy", "step")),
        ("step", False),
        *(
            pytest.param(name, True, marks=pytest.mark.slow)
            for name in ("stack", "learned", "convolution", "memory")
        ),
    ],
)
def test_axes_that_types_name(name, known, random_like, assert_close):
    """`jax.make_mesh` makes such axes by default since JAX 0.9: rows are divided, and stay so."""
    mesh, cell = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,)), NAMED[name]
    grid = (4, 4) if name == "convolution" else ()
    params = random_like(lambda: cell.init(KEY, 2), 1)
    xs, mask, resets = drawn(*grid)
    lengths, key = np.array([5, 4, 3, 5, 0, 2]), KEY if name == "noisy" else None

    def run(params, xs, mask, resets, lengths):
        marks = {"mask": mask, "resets": resets, "lengths": lengths}
        return rnnjax.unroll(cell, params, xs, key=key, **marks)

    def loss(*arguments):
        out = run(*arguments)
        return sum((leaf**2).sum() for leaf in jax.tree.leaves(out)), out

    gradient = jax.jit(jax.grad(loss, (0, 1), has_aux=True))
    gradients, out = gradient(params, xs, mask, resets, lengths)
    rows = jax.sharding.NamedSharding(mesh, PartitionSpec(None, "data"))
    row = jax.sharding.NamedSharding(mesh, PartitionSpec("data"))
    arguments = params, *jax.device_put((xs, mask, resets), rows), jax.device_put(lengths, row)
    with jax.set_mesh(mesh) if known else contextlib.nullcontext():
        # Called as it is, and inside of a program.
        actual = run(*arguments), gradient(*arguments)[0]
    assert_close(actual, (out, gradients), 1e-5)
    (carry, ys), (_, d_xs) = actual
    for leaf, axis in [(ys, 1), (d_xs, 1), *((leaf, 0) for leaf in jax.tree.leaves(carry))]:
        spec = (*leaf.sharding.spec, None, None)
        assert spec[axis] == "data", spec


@pytest.mark.parametrize(
    "method",
    [Fused(keep_every=2), rnnjax.Parallel(), pytest.param(Scan(), marks=pytest.mark.slow)],
    ids=brief,
)
def test_units_divided_by_axes_that_types_name(method, random_like, assert_close):
    mesh = jax.make_mesh((2,), ("model",), axis_types=(AxisType.Explicit,))
    cell = rnnjax.MinGRUCell(4) if method == rnnjax.Parallel() else rnnjax.LSTMCell(4)
    params, xs = random_like(lambda: cell.init(KEY, 2), 1), np.ones((5, 3, 2), "float32")

    @jax.jit
    @jax.grad
    def gradient(params):
        return (rnnjax.unroll(cell, params, xs, method=method)[1] ** 2).sum()

    @jax.jit
    def step(params, x):
        return cell.step(params, cell.initial_carry((3,)), x)

    columns = jax.sharding.NamedSharding(mesh, PartitionSpec(None, "model"))
    divided = {**params, "kernel": jax.device_put(params["kernel"], columns)}
    with jax.set_mesh(mesh):
        actual = gradient(divided)
        assert actual["kernel"].sharding.spec == columns.spec
        stepped = step(params, xs[0])
    assert_close(actual, gradient(params), 1e-5)
    assert_close(stepped, step(params, xs[0]), 1e-6)


@pytest.mark.parametrize("cell", [rnnjax.SimpleRNNCell(16), rnnjax.LSTMCell(16)], ids=brief)
def test_of_divided_units_a_step_gathers_the_state(cell):
    """Once, and all else is what brings the columns of several gates together."""
    mesh = jax.make_mesh((4,), ("units",), axis_types=(AxisType.Auto,))

    def placed(a, *spec):
        sharding = jax.sharding.NamedSharding(mesh, PartitionSpec(*spec))
        return jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding)

    params = jax.eval_shape(lambda: cell.init(KEY, 16))
    params = {name: placed(a, *[None] * (a.ndim - 1), "units") for name, a in params.items()}
    xs = placed(jax.ShapeDtypeStruct((5, 8, 16), jnp.float32))
    text = jax.jit(lambda *given: rnnjax.unroll(cell, *given)[1]).lower(params, xs).compile()
    kinds = r"= (\S+?)\{\S* (all-reduce|all-gather|all-to-all|reduce-scatter)(?:-start)?\("
    assert re.findall(kinds, text.as_text()) == [("f32[8,16]", "all-gather")]
