"""`Parallel`: the numbers of the plain scan, from the factors of all steps at once."""

import collections
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cell_table import CELLS as TABLE
from cell_table import OwnPastCell, OwnStepCell, refusals
from jax.sharding import AxisType, PartitionSpec
from test_linear_family import MEMORIES

import rnnjax
from rnnjax import InvalidInputError, Parallel, Scan
from rnnjax.checks import brief
from rnnjax.engine.core.method import check_method
from rnnjax.engine.parallel.linear_recurrence import AffineRecurrence

TIME, BATCH = 12, 3
KEY = jax.random.key(0)
MASK = np.random.default_rng(0).random((TIME, BATCH)) < 0.8
RESETS = np.random.default_rng(1).random((TIME, BATCH)) < 0.2
NO_STEPS = dict.fromkeys(("mask", "resets"), np.zeros((0, BATCH), bool))
MARKS = {
    # Of one row there is nothing yet in the first pieces.
    "all": {"mask": MASK, "lengths": np.array([TIME, TIME, 6]), "resets": RESETS, "reverse": True},
    "lengths": {"lengths": np.array([TIME, 5, 0]), "masked_outputs": "last", "resets": RESETS},
    # Whose axis is taken away for the loops, of what a reset puts there too.
    "one row": {"resets": RESETS[:, :1]},
    "no steps": NO_STEPS,
    "no steps in reverse": NO_STEPS | {"reverse": True},
}


class TanhOutput(rnnjax.MinGRUCell):
    """Its output is no leaf of its state."""

    coupling = rnnjax.Coupling.CONTRACTING
    output = None

    def update(self, params, x, carry):
        new = super().update(params, x, carry)
        return new, jnp.tanh(new.hidden)


CELLS = TABLE | MEMORIES
CELLS |= {
    "output": TanhOutput(4),
    "both-ways": rnnjax.Bidirectional(rnnjax.MinGRUCell(3)),
    "zoneout": rnnjax.Regularized(rnnjax.MinGRUCell(4), zoneout_hidden=0.3),
}
LSTM, XS = TABLE["lstm"], np.ones((100, 2, 2), "float32")
ALONG = Parallel(axis_name="time")


def shapes(cell):
    return jax.eval_shape(lambda: cell.init(KEY, 2))


@functools.cache
def parameters(cell):
    """Drawn by NumPy, and nothing is zero."""
    rng = np.random.default_rng(3)
    return jax.tree.map(lambda leaf: 0.6 * rng.normal(size=leaf.shape), shapes(cell))


def drawn(*shape):
    return np.random.default_rng(2).normal(size=shape)


@functools.cache
def start(cell, value=0.3):
    shapes = jax.eval_shape(lambda: cell.initial_carry((BATCH,)))
    return jax.tree.map(lambda leaf: np.full(leaf.shape, value), shapes)


def divided(cell, params, xs, carry, **given):
    """`rnnjax.unroll` on four devices, each with a quarter of the steps."""
    mesh = jax.make_mesh((4,), ("time",), axis_types=(AxisType.Auto,))
    whole, steps = PartitionSpec(), PartitionSpec("time")
    specs = {"mask": steps, "resets": steps, "lengths": whole, "reset_carry": whole}
    specs = {name: spec for name, spec in specs.items() if name in given}
    arrays = {name: given.pop(name) for name in specs}
    run = functools.partial(rnnjax.unroll, cell, method=ALONG, **given)
    return jax.shard_map(
        lambda args, arrays: run(*args, **arrays),
        mesh=mesh, in_specs=((whole, steps, whole), specs), out_specs=(whole, steps),
    )((params, xs, carry), arrays)  # fmt: skip


# For what a method may see of cells, and in chunks of a memory that do not fit. All cells of the
# library run by it in tests/test_reference.py, and with all marks in tests/test_laws.py.
ROWS = [
    *((name, Parallel(), "all") for name in ("output", "zoneout")),
    *((name, Parallel(5), "all") for name in ("mlstm", "deltanet")),
    *((name, divided, "all") for name in ("both-ways", "output")),
    *((name, Parallel(), "one row") for name in ("lru", "deltanet")),
    ("lru", divided, "lengths"),
    *(("mingru", divided, f"no steps{way}") for way in ("", " in reverse")),
    *(pytest.param(name, divided, "all", marks=pytest.mark.slow) for name in ("rglru", "s6")),
]


@pytest.mark.parametrize(("name", "method", "marks"), ROWS)
@pytest.mark.usefixtures("x64")
def test_it_gives_the_numbers_of_the_scan(name, method, marks, equal_to_scan):
    """Guards a single row, whose start has no axis of rows."""
    given, (steps, *rows) = MARKS[marks], MARKS[marks]["resets"].shape
    equal_to_scan(
        CELLS[name], [method], tuple(rows), steps=steps, dtype="float64", tolerance=1e-12,
        key=KEY if name == "zoneout" else None, **given,
    )  # fmt: skip


def random_recurrence(leaves, seed=5):
    """Constants, factors, a first state and resets, whose factors go up to 1."""
    rng = np.random.default_rng(seed)
    shape = TIME, BATCH, 4
    return (
        [rng.normal(size=shape) for _ in range(leaves)],
        [[rng.uniform(-1, 1, shape) / leaves for _ in range(leaves)] for _ in range(leaves)],
        [rng.normal(size=shape[1:]) for _ in range(leaves)],
    )


@pytest.mark.parametrize("leaves", [1, 3])
@pytest.mark.parametrize("resets", [None, RESETS], ids=["whole", "resets"])
@pytest.mark.usefixtures("x64")
def test_prefix_sums_have_the_numbers_of_a_loop(leaves, resets, assert_close):
    """An accelerator's path, run here; JAX's own gradient of the loop is the reference."""
    recurrence = AffineRecurrence()

    @jax.jit
    def by_all(*args):
        out, vjp_fn = jax.vjp(lambda *args: recurrence.plain(*args, resets), *args)
        d, found, args = jax.tree.map(jnp.cos, out), [], (*args, resets)
        for platform in ("cpu", "any"):
            run, saved = recurrence.forward(platform, *args)
            found.append((run, recurrence.backward(platform, args, saved, d, None)[:3]))
        return *found, (out, vjp_fn(d))

    *found, expected = by_all(*random_recurrence(leaves))
    for each in found:
        assert_close(each, expected, 1e-12)


@pytest.mark.parametrize("platform", ["cpu", "any"])
@pytest.mark.usefixtures("x64")
def test_a_reset_drops_whatever_came_before_it(platform, assert_close):
    """A NaN, and factors whose product is infinite, in values and in cotangents."""
    recurrence, (constants, factors, start) = AffineRecurrence(), random_recurrence(1)
    resets = np.arange(TIME)[:, None] == np.full((1, BATCH), 5)
    d = jax.tree.map(np.ones_like, (constants, start, start))

    @jax.jit
    def run(b, a):
        args = [b], [[a]], start, resets
        (states, _, last), saved = recurrence.forward(platform, *args)
        back, d_factors, *_ = recurrence.backward(platform, args, saved, d, None)
        return states[0][5:], last, back[0][5:], d_factors[0][0][5:], states[0][:2]

    b, a = np.array(constants[0]), np.array(factors[0][0])
    expected = run(b, a)
    b[2], a[3] = np.nan, np.inf
    assert_close(run(b, a), expected, 1e-12)


def test_a_slope_that_is_infinite_at_zero_is_asked_for_nowhere(assert_close):
    """A root has none at zero, which nobody gave. And what a mask skips keeps its own."""
    cell = rnnjax.MinGRUCell(4, activation=lambda n: jnp.sign(n) * jnp.sqrt(jnp.abs(n)))
    params, xs = parameters(cell), drawn(TIME + 1, BATCH, 2)

    def grad(method, bias, mask=None):
        def loss(params):
            return rnnjax.unroll(cell, params, xs, mask=mask, method=method)[1].sum()

        found = jax.grad(loss)(params | {"bias": bias * params["bias"]})
        assert all(np.isfinite(leaf).all() for leaf in found.values())
        return found

    assert_close(grad(Parallel(), 0), grad(Scan(), 0), 1e-5)
    mask = drawn(TIME + 1, BATCH) > 0
    for method in (rnnjax.Fused(), Parallel()):
        assert_close(grad(method, 1, mask), grad(Scan(), 1, mask), 1e-5)


def messages(function, *args):
    """How many of each kind there are in a program, and its text."""
    text = jax.jit(function).lower(*args).compile().as_text()
    kinds = r" (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
    return collections.Counter(re.findall(kinds, text)), text


# There it is a sum, which JAX does not take through `jax.vmap`.
has_gather = pytest.mark.skipif(jax.__version_info__ < (0, 10), reason="JAX has no such gather")


@has_gather
@pytest.mark.parametrize("reverse", [pytest.param(False, marks=pytest.mark.slow), True])
def test_only_ends_cross_between_devices(reverse):
    """Each device sends one array of a few states, and in reverse the first row of resets."""
    cell = rnnjax.MinGRUCell(4)
    args = parameters(cell), drawn(TIME, BATCH, 2), start(cell)
    given = {"resets": RESETS, "lengths": MARKS["lengths"]["lengths"]}
    run = functools.partial(divided, cell, **given, reverse=reverse)

    def loss(*args):
        carry, ys = run(*args)
        return carry.hidden.sum() + (ys**2).sum()

    shifted = {"collective-permute": 1} if reverse else {}
    assert messages(run, *args)[0] == {"all-gather": 1} | shifted
    found, text = messages(jax.grad(loss, (0, 1, 2)), *args)
    # The gradients of what all devices have are summed, together.
    assert found == {"all-gather": 2, "all-reduce": 1} | shifted
    gathered = re.findall(r" = f32\[4,(\d+)\]\S* all-gather", text)
    # Of each unit a factor, a constant and the first state; of each row whether it begins anew.
    assert gathered == [str(3 * BATCH * 4 + BATCH)] * 2


@has_gather
@pytest.mark.parametrize(("name", "size"), [("lru", 1), ("mingru", 0)], ids=["drawn", "zeros"])
@pytest.mark.usefixtures("x64")
def test_devices_along_rows_too_vmap_and_other_derivatives(name, size, assert_close):
    """A state of zeros changes forwards too."""
    cell, resets, xs = CELLS[name], RESETS[:8, :2], size * drawn(8, 2, 2)
    params = {n: leaf * (size or n != "bias") for n, leaf in parameters(cell).items()}
    mesh = jax.make_mesh((2, 2), ("rows", "time"), axis_types=(AxisType.Auto,) * 2)
    both = PartitionSpec("time", "rows")

    def run(params, xs, resets, method):
        def row(x, resets):
            return rnnjax.unroll(cell, params, x, resets=resets, method=method)[1]

        return jax.vmap(row, 1, 1)(xs, resets)

    def along(method):
        rows = functools.partial(run, method=method)
        if method.along.name:
            rows = jax.shard_map(
                rows, mesh=mesh, in_specs=(PartitionSpec(), both, both), out_specs=both
            )

        def ys(params):
            return rows(params, xs, resets)

        def loss(params):
            return jnp.sin(ys(params)).sum()

        ones = jax.tree.map(jnp.ones_like, params)
        changes = [lambda p, f=f: jax.jvp(f, (p,), (ones,)) for f in (ys, jax.grad(loss))]
        return jax.jit(lambda params: [change(params) for change in changes])(params)

    assert_close(along(ALONG), along(Scan()), 1e-12)


def test_steps_are_divided_by_an_axis_of_the_mesh_alone():
    cell, xs = rnnjax.MinGRUCell(4), drawn(8, 2, 2)
    given = {"method": ALONG, "lengths": np.array([8, 3])}
    run = functools.partial(rnnjax.unroll, cell, parameters(cell), **given)
    mesh = jax.make_mesh((4,), ("time",), axis_types=(AxisType.Auto,))
    steps = PartitionSpec("time")
    specs = {"mesh": mesh, "in_specs": steps, "out_specs": (PartitionSpec(), steps)}
    rows = jax.vmap(run, axis_name="time")
    for wrong in (
        lambda: run(xs),
        lambda: rows(xs[None]),
        lambda: jax.shard_map(run, **specs, check_vma=False)(xs),
    ):
        with pytest.raises(InvalidInputError, match="there is none named 'time' here"):
            wrong()


@pytest.mark.parametrize(
    ("name", "method"),
    [
        *((name, Parallel()) for name in MEMORIES),
        ("mingru", divided),  # the NaN on one device, the reset on the next
    ],
)
@pytest.mark.usefixtures("x64")
def test_no_nan_crosses_a_reset(name, method, assert_close):
    """In one chunk of a matrix memory, or of a device's steps and those of the next.

    Nor reaches it an earlier step, or another row.
    """
    cell, xs, carry = CELLS[name], drawn(TIME, BATCH, 2), start(CELLS[name], 0.0)
    resets, spoilt = np.zeros((TIME, BATCH), bool), np.array(xs)
    spoilt[2, 0], resets[5, 0] = np.nan, True
    run = method if method is divided else functools.partial(rnnjax.unroll, method=method)
    run = jax.jit(functools.partial(run, cell, resets=resets))
    (last, ys), (expected, others) = (run(parameters(cell), x, carry) for x in (spoilt, xs))
    assert_close((last, ys[5:], ys[:, 1:]), (expected, others[5:], others[:, 1:]), 1e-12)
    assert_close(ys[:2], others[:2], 1e-12)
    assert np.isnan(ys[2:5, 0]).all()


class GrowingCell(rnnjax.MinGRUCell):
    """Affine, and a state that is not zero soon is infinite."""

    coupling = rnnjax.Coupling.AFFINE

    def update(self, params, x, carry):
        new = super().update(params, x, carry)
        return type(new)(new.hidden + 1e30 * carry.hidden)


@pytest.mark.parametrize(
    "cell", [GrowingCell(3), OwnPastCell(3, linear=True)], ids=["factors", "rows"]
)
@pytest.mark.usefixtures("x64")
def test_an_infinite_product_of_factors_leaves_nothing_as_it_is(cell, assert_close):
    """Zeros until the last steps, and the gradient of the first."""
    params, xs = jax.jit(cell.init, static_argnums=1)(KEY, 2), drawn(40, BATCH, 2)
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    if "own" in params:
        params["own"] = np.full(3, 1e30)
    xs[:-4] = 0

    def loss(params, xs, method):
        ys = rnnjax.unroll(cell, params, xs, method=method)[1]
        return ys[:2].sum(), ys

    gradient = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True), static_argnums=2)
    found, expected = (gradient(params, xs, method) for method in (Parallel(), Scan()))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    assert_close(found, expected, 1e-12)


test_what_it_cannot_run_is_refused = refusals(
    [
        (lambda: check_method(LSTM, Parallel()), "see each other's state in a product"),
        (lambda: check_method(CELLS["diagonal-lstm"], Parallel()), "as ELEMENTWISE, not as AFFINE"),
        (
            lambda: check_method(CELLS["gru-reset-before"], Parallel()),
            "declared as ANY, not as AFFINE",
        ),
        (lambda: check_method(CELLS["lru"], Parallel(5)), "no matrix memory to split into chunks"),
        (lambda: check_method(CELLS["mamba2"], ALONG), "its matrix memory is not handed on"),
        (lambda: check_method(OwnStepCell(4), Parallel()), "no carry and update, but a step"),
        (lambda: Parallel(0), "chunk must be"),
        (lambda: Parallel(axis_name=0), "axis_name must be"),
    ]
)


@pytest.mark.parametrize(
    ("cell", "method", "platform", "told"),
    [
        (OwnPastCell(4, linear=True), Parallel(), "cpu", "of 100 steps at once; the states by a l"),
        (OwnPastCell(4, linear=True), Parallel(), "tpu", "at once; the states by a prefix sum"),
        (rnnjax.MinGRUCell(4), Parallel(), "cpu", "at once; the states by a loop"),
        (TABLE["deltanet"], Parallel(), "cpu", "64 steps at a time as those of matrices"),
        (TABLE["deltanet"], Parallel(), "cpu", "2 memories wait for the one before"),
        (MEMORIES["by-key"], Parallel(), "cpu", "16 steps at a time"),
    ],
    ids=range(6),
)
def test_it_says_how_it_runs(cell, method, platform, told):
    text = str(rnnjax.explain(cell, shapes(cell), XS, method=method, platform=platform))
    assert told in text


def test_no_step_waits_for_another_on_an_accelerator():
    leaf = jax.ShapeDtypeStruct((4096, 1, 4), jnp.float32)
    start = jax.ShapeDtypeStruct((1, 4), jnp.float32)

    def loops(platform):
        def run(constant, factor, start):
            args = [constant], [[factor]], [start], None
            out, saved = AffineRecurrence().forward(platform, *args)
            return AffineRecurrence().backward(platform, args, saved, out, None)

        return str(jax.make_jaxpr(run)(leaf, leaf, start)).count("scan[")

    assert (loops("cpu"), loops("tpu"), loops("cuda")) == (2, 0, 0)


@pytest.mark.parametrize(
    ("cell", "method", "most"),
    [
        (rnnjax.MinGRUCell(32), rnnjax.Fused(), 4.5),
        (rnnjax.MinGRUCell(32), Parallel(), 6.5),
        (rnnjax.MinLSTMCell(32), Parallel(), 10.5),
    ],
    ids=["Fused", "factors", "more factors"],
)
def test_a_gradient_of_one_row_copies_no_projections(cell, method, most):
    """In arrays of the size of the inputs: 4.0 (with copies 5.0); 6.0; and 10.0 (13.0)."""
    xs = jnp.ones((2048, 1, 32))

    def loss(params, xs):
        return (rnnjax.unroll(cell, params, xs, method=method)[1] ** 2).sum()

    params = jax.eval_shape(lambda: cell.init(KEY, 32))
    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(params, xs).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < most * xs.nbytes


def test_a_gradient_is_lowered_for_all_platforms():
    """What is kept for it is alike on all, though a platform's forward pass is its own."""
    cell, xs = CELLS["lru"], jax.ShapeDtypeStruct((12, 2, 2), jnp.float32)
    params = shapes(cell)

    def loss(params, xs):
        return rnnjax.unroll(cell, params, xs, method=Parallel())[1].sum()

    export = jax.export.export(jax.jit(jax.grad(loss)), platforms=("cpu", "cuda", "tpu"))
    assert export(params, xs).platforms == ("cpu", "cuda", "tpu")


@pytest.mark.parametrize(
    ("cell", "most"),
    [
        (rnnjax.MinGRUCell(2**17), 4),  # of 2^18 columns: two rows of four steps are two million
        (rnnjax.MinGRUCell(3), 6),
        (GrowingCell(3), 0),  # whose product of factors may be infinite
        (TanhOutput(4), 0),  # whose output is not its state
        (rnnjax.TemporalConvCell(4), 0),  # which forgets a NaN
        (rnnjax.LRUCell(4), 0),  # whose factors are more numbers than its inputs
        (rnnjax.S6Cell(4, state_size=16), 0),
        (rnnjax.DiagonalLSTMCell(4), 0),
        (rnnjax.LSTMCell(4), 0),
    ],
    ids=brief,
)
def test_auto_stores_no_more_than_it_reads(cell, most):
    for steps in range(2, 7):
        chosen = rnnjax.Auto().choose(cell, steps, rows=2)
        assert chosen == (Parallel() if steps <= most else rnnjax.Fused())


def test_auto_counts_all_axes_of_rows_and_knows_when_it_cannot():
    cell = CELLS["mingru"]
    params = shapes(cell)

    def lowered(method, *rows):
        run = jax.jit(functools.partial(rnnjax.unroll, cell, method=method))
        xs = jax.ShapeDtypeStruct((512, *rows, 2), jnp.float32)
        return jax.export.export(run)(params, xs).mlir_module()

    def told(*rows, platform="cpu"):
        xs = jax.ShapeDtypeStruct((512, *rows, 2), jnp.float32)
        return re.findall(r"chose (\w+)", str(rnnjax.explain(cell, params, xs, platform=platform)))

    (symbolic,) = jax.export.symbolic_shape("b")
    auto, fused = rnnjax.Auto(), rnnjax.Fused()
    assert lowered(auto, 3, 4) == lowered(Parallel(), 3, 4) != lowered(fused, 3, 4)
    assert lowered(auto, symbolic) == lowered(fused, symbolic)
    for platform in ("cpu", "cuda", "tpu"):
        assert told(platform=platform) == told(3, 4, platform=platform) == ["Parallel"]
        assert told(60, 20, platform=platform) == ["Fused"]
