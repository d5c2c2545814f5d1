"""`Parallel`: the numbers of the plain scan, from pieces side by side."""

import collections
import functools
import itertools
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

import rnnjax
from rnnjax import InvalidInputError, Parallel, Scan
from rnnjax.engine.core.masking import StepMarks, Steps
from rnnjax.engine.core.method import check_method
from rnnjax.engine.fused.recurrence import Recurrence
from rnnjax.engine.parallel import method as parallel_method
from rnnjax.engine.parallel.blocks_as_batch import BlocksAsBatch
from rnnjax.engine.parallel.linear_recurrence import AffineRecurrence

TIME, BATCH = 12, 3
KEY = jax.random.key(0)
MASK = np.random.default_rng(0).random((TIME, BATCH)) < 0.8
RESETS = np.random.default_rng(1).random((TIME, BATCH)) < 0.2
MARKS = {
    "plain": {},
    # Of one row there is nothing yet in the first pieces.
    "all": {"mask": MASK, "lengths": np.array([TIME, TIME, 6]), "resets": RESETS, "reverse": True},
    "lengths": {"lengths": np.array([TIME, 5, 0]), "masked_outputs": "last", "resets": RESETS},
}


class TanhOutput(rnnjax.MinGRUCell):
    """Its output is no leaf of its state."""

    coupling = rnnjax.Coupling.CONTRACTING
    output = None

    def update(self, params, x, carry):
        new = super().update(params, x, carry)
        return new, jnp.tanh(new.hidden)


class Turn(NamedTuple):
    hidden: jax.Array
    imag: jax.Array


class TurningCell(rnnjax.Cell):
    """A user's: two leaves that turn into each other, by an angle that is a parameter."""

    def __init__(self, hidden_size):
        object.__setattr__(self, "hidden_size", hidden_size)

    carry = Turn
    coupling = rnnjax.Coupling.AFFINE
    gates = "re", "im"
    recurrent = None

    def __hash__(self):
        return self.hidden_size

    def __eq__(self, other):
        return type(self) is type(other) and self.hidden_size == other.hidden_size

    def parameters(self, input_size):
        return super().parameters(input_size) | {"angle": rnnjax.Param((self.hidden_size,), "ones")}

    def update(self, params, x, carry):
        re, im = jnp.split(x, 2, axis=-1)
        cos, sin = 0.9 * jnp.cos(params["angle"]), 0.9 * jnp.sin(params["angle"])
        return Turn(
            cos * carry.hidden - sin * carry.imag + re, sin * carry.hidden + cos * carry.imag + im
        )


CELLS = {
    "mingru": rnnjax.MinGRUCell(4),
    "minlstm": rnnjax.MinLSTMCell(4),
    "output": TanhOutput(4),
    "turning": TurningCell(3),
    "lru": rnnjax.LRUCell(4, state_size=3),
    "s5": rnnjax.S5Cell(4, state_size=3),
    "rglru": rnnjax.RGLRUCell(4),
    "temporal-conv": rnnjax.TemporalConvCell(4),
    "griffin": rnnjax.GriffinCell(4, state_size=6, heads=3),
    "s6": rnnjax.S6Cell(4, state_size=3),
    "qrnn": rnnjax.QRNNCell(4, pooling="f"),
    "gilr": rnnjax.GILRCell(4),
    "sru": rnnjax.SRUCell(4),
    "hgrn": rnnjax.HGRNCell(4, lower_bound=0.3),
    "mlstm": rnnjax.MLSTMCell(4, heads=2, key_size=3),
    "gla": rnnjax.GLACell(4, heads=2, key_size=3),
    "mamba2": rnnjax.Mamba2Cell(4, heads=2, state_size=3),
    "deltanet": rnnjax.GatedDeltaNetCell(4, heads=2, key_size=3),
    "both-ways": rnnjax.Bidirectional(rnnjax.MinGRUCell(3)),
    "zoneout": rnnjax.Regularized(rnnjax.MinGRUCell(4), zoneout_hidden=0.3),
}


@functools.cache
def parameters(cell):
    """Drawn by NumPy, and nothing is zero."""
    rng, shapes = np.random.default_rng(3), jax.eval_shape(lambda: cell.init(KEY, 2))
    return jax.tree.map(lambda leaf: 0.6 * rng.normal(size=leaf.shape), shapes)


def drawn(*shape):
    return np.random.default_rng(2).normal(size=shape)


@functools.cache
def start(cell, value=0.3):
    shapes = jax.eval_shape(lambda: cell.initial_carry((BATCH,)))
    return jax.tree.map(lambda leaf: np.full(leaf.shape, value), shapes)


def over_time(run, given):
    """``run(params, xs, carry, **given)`` on four devices, each with a quarter of the steps."""
    mesh = jax.make_mesh((4,), ("time",), axis_types=(AxisType.Auto,))
    whole, steps = PartitionSpec(), PartitionSpec("time")
    specs = {"mask": steps, "resets": steps, "lengths": whole, "reset_carry": whole}
    arrays = {name: given[name] for name in given if name in specs}
    rest = {name: given[name] for name in given if name not in specs}
    return lambda *args: jax.shard_map(
        lambda args, arrays: run(*args, **arrays, **rest),
        mesh=mesh,
        in_specs=((whole, steps, whole), {name: specs[name] for name in arrays}),
        out_specs=(whole, steps),
    )(args, arrays)


@functools.cache
def results(name, marks, method):
    cell = CELLS[name]
    run = functools.partial(
        rnnjax.unroll, cell, method=method, key=KEY if name == "zoneout" else None
    )

    def loss(params, xs, carry):
        given = dict(MARKS[marks])
        if marks == "all":
            given["reset_carry"] = jax.tree.map(lambda leaf: -0.4 * leaf, carry)
        divided = method.along.name is not None
        unroll = over_time(run, given) if divided else functools.partial(run, **given)
        carry, ys = unroll(params, xs, carry)
        return sum((x**2).sum() for x in jax.tree.leaves(carry)) + jnp.sin(ys).sum(), (carry, ys)

    grad = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)
    return jax.jit(grad)(parameters(cell), drawn(TIME, BATCH, 2), start(cell))


# How a sequence is cut does not depend on the cell, nor do marks: without them for one cell of each
# form (factors of all steps, pieces as rows), and with all at once, in pieces that do not fit, for
# these, for one that has both (a minGRU, with zoneout), for each kind of matrix memory, and for
# what a method may see besides. All others, and stacks, are held against the reference by this
# method (tests/test_reference.py). With all marks an LRU and what remembers inputs run in
# tests/test_sequence_laws.py, Griffin in tests/test_linear_family.py.
WHOLE = ["minlstm", "turning"]
USUAL = [
    *((name, None, "plain") for name in WHOLE),
    *((name, 5, "all") for name in (*WHOLE, "output", "zoneout", "gla", "mlstm", "deltanet")),
]
ROWS = [
    pytest.param(*row, marks=[] if row in USUAL else pytest.mark.slow)
    for row in itertools.product(CELLS, [None, 5], MARKS)
]


# A quarter of the steps in one piece, and in two that do not fit.
OVER_TIME = [
    ("turning", 2, "lengths"),
    ("both-ways", 2, "all"),
    ("output", 2, "all"),
    *(pytest.param("mingru", None, marks, marks=pytest.mark.slow) for marks in MARKS),
    *(
        pytest.param(name, 2, "all", marks=pytest.mark.slow)
        for name in ("turning", "temporal-conv", "griffin", "s6")
    ),
]


@pytest.mark.parametrize(("name", "chunk", "marks"), ROWS)
@pytest.mark.usefixtures("x64")
def test_it_gives_the_numbers_of_the_scan(name, chunk, marks, assert_close):
    assert_close(results(name, marks, Parallel(chunk)), results(name, marks, Scan()), 1e-12)


def test_steps_that_fill_up_the_last_piece_have_a_slope(assert_close):
    """A root has none at zero, which nobody gave. And what a mask skips keeps its own."""
    cell = rnnjax.MinGRUCell(4, activation=lambda n: jnp.sign(n) * jnp.sqrt(jnp.abs(n)))
    params, xs = parameters(cell), drawn(TIME + 1, BATCH, 2)

    def grad(method, bias, mask=None):
        def loss(params):
            return rnnjax.unroll(cell, params, xs, mask=mask, method=method)[1].sum()

        found = jax.grad(loss)(params | {"bias": bias * params["bias"]})
        assert all(np.isfinite(leaf).all() for leaf in found.values())
        return found

    assert_close(grad(Parallel(5), 0), grad(Scan(), 0), 1e-5)
    mask = drawn(TIME + 1, BATCH) > 0
    for method in (rnnjax.Fused(), Parallel(5)):
        assert_close(grad(method, 1, mask), grad(Scan(), 1, mask), 1e-5)


@pytest.mark.usefixtures("x64")
def test_so_it_does_over_many_inputs(monkeypatch, assert_close):
    """Where the gradient of a cell whose factors are fewer than its inputs is found by loops."""
    monkeypatch.setattr(parallel_method, "_MANY_INPUTS", 1)
    many = Parallel(3)  # in pieces that no other test has, as a program is traced once
    assert parallel_method.runs_again(CELLS["minlstm"], (TIME, BATCH, 2))
    assert_close(results("minlstm", "all", many), results("minlstm", "all", Scan()), 1e-12)


def test_outputs_alone_are_found_at_once_and_gradients_in_loops_where_that_pays(monkeypatch):
    """Where the factors are as many as the inputs, and of so many inputs; the gates are computed
    once for the outputs then, as Fused() does, where pieces as rows compute them twice."""
    written = []

    def beside(recurrence, length, at_once):
        written.append(at_once)
        return BlocksAsBatch(recurrence, length, at_once)

    monkeypatch.setattr(parallel_method, "BlocksAsBatch", beside)
    symbolic = jax.export.symbolic_shape("b")[0]

    def form(cell, *shape):
        return parallel_method.writes_more(cell), parallel_method.runs_again(cell, (*shape, 2))

    def gates(cell, method):
        params = jax.eval_shape(lambda: cell.init(KEY, 2))
        run = jax.jit(functools.partial(rnnjax.unroll, cell, method=method))
        xs = jax.ShapeDtypeStruct((97, 2, 2), jnp.float32)  # which nothing else has traced
        return len(re.findall("stablehlo.(?:logistic|exp|tanh)", run.lower(params, xs).as_text()))

    mingru, minlstm, lru = (CELLS[name] for name in ("mingru", "minlstm", "lru"))
    assert form(mingru, 100, 2) == form(mingru, 100, symbolic) == (False, True)
    assert form(minlstm, 100, 2) == form(minlstm, 2**20, symbolic) == (False, False)
    assert form(minlstm, 2**20 // 3, 1) == (False, False)
    assert form(minlstm, 2**19 // 3 + 1, 2) == (False, True)
    assert form(lru, 100, 2) == (True, True)
    assert gates(mingru, Parallel()) == gates(mingru, rnnjax.Fused()) == 1
    assert gates(CELLS["hgrn"], Parallel()) > gates(CELLS["hgrn"], rnnjax.Fused())
    assert written == [True, False]


@pytest.mark.parametrize(("name", "chunk", "marks"), OVER_TIME)
@pytest.mark.usefixtures("x64")
def test_steps_divided_over_devices_have_the_numbers_of_the_scan(name, chunk, marks, assert_close):
    divided = Parallel(chunk, axis_name="time")
    assert_close(results(name, marks, divided), results(name, marks, Scan()), 1e-12)


def test_no_steps_on_each_device(assert_close):
    cell, none = CELLS["mingru"], np.zeros((0, BATCH), bool)
    carry = start(cell)
    run = functools.partial(rnnjax.unroll, cell, method=Parallel(axis_name="time"))
    given = {"mask": none, "resets": none, "masked_outputs": "last"}
    for reverse in (False, True):
        each = jax.jit(over_time(run, {**given, "reverse": reverse}))
        last, ys = each(parameters(cell), drawn(0, BATCH, 2), carry)
        assert_close(last, carry, 1e-6)
        assert ys.shape == (0, BATCH, cell.output_size)


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
    """Of each device one array of a few states, and in reverse the first row of resets."""
    cell = rnnjax.MinGRUCell(4)
    args = parameters(cell), drawn(TIME, BATCH, 2), start(cell)
    given = {"resets": RESETS, "lengths": MARKS["lengths"]["lengths"]}
    method = Parallel(axis_name="time")
    run = over_time(functools.partial(rnnjax.unroll, cell, reverse=reverse, method=method), given)

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
@pytest.mark.usefixtures("x64")
def test_devices_along_rows_too_vmap_and_other_derivatives(assert_close):
    cell, resets, xs = CELLS["mingru"], RESETS[:8, :2], drawn(8, 2, 2)
    params = parameters(cell)
    mesh = jax.make_mesh((2, 2), ("rows", "time"), axis_types=(AxisType.Auto,) * 2)
    both = PartitionSpec("time", "rows")

    def run(params, xs, resets, method):
        def row(x, resets):
            return rnnjax.unroll(cell, params, x, resets=resets, method=method)[1]

        return jax.vmap(row, 1, 1)(xs, resets)

    def second(method):
        rows = functools.partial(run, method=method)
        if method.along.name:
            rows = jax.shard_map(
                rows, mesh=mesh, in_specs=(PartitionSpec(), both, both), out_specs=both
            )

        def loss(params):
            return jnp.sin(rows(params, xs, resets)).sum()

        def along(*params):
            return jax.jvp(jax.grad(loss), params, jax.tree.map(jnp.ones_like, params))

        return jax.jit(along)(params)

    assert_close(second(Parallel(axis_name="time")), second(Scan()), 1e-12)


@has_gather
@pytest.mark.usefixtures("x64")
def test_a_state_of_zeros_changes_forwards_where_steps_are_divided(assert_close):
    cell = CELLS["turning"]
    params = parameters(cell)
    args = params | {"bias": 0 * params["bias"]}, np.zeros((8, BATCH, 2)), start(cell, 0.0)

    @functools.partial(jax.jit, static_argnums=0)
    def forwards(method, *args):
        run, given = functools.partial(rnnjax.unroll, cell, method=method), {"resets": RESETS[:8]}
        divided = method.along.name is not None
        run = over_time(run, given) if divided else functools.partial(run, **given)
        return jax.jvp(run, args, jax.tree.map(jnp.ones_like, args))

    assert_close(forwards(Parallel(axis_name="time"), *args), forwards(Scan(), *args), 1e-12)


def test_what_cannot_be_divided_is_refused():
    cell, method = rnnjax.MinGRUCell(4), Parallel(axis_name="time")
    params, xs = parameters(cell), drawn(8, 2, 2)
    run = functools.partial(rnnjax.unroll, cell, params, method=method, lengths=np.array([8, 3]))
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
    memory = rnnjax.GLACell(4, heads=2)
    with pytest.raises(InvalidInputError, match="its matrix memory is not handed on"):
        check_method(memory, method)
    with pytest.raises(InvalidInputError, match="newton must be None"):
        Parallel(newton=rnnjax.Newton(), axis_name="time")
    with pytest.raises(InvalidInputError, match="axis_name must be"):
        Parallel(axis_name=0)


@pytest.mark.usefixtures("x64")
def test_a_state_that_takes_over_another_needs_no_first_carry(assert_close):
    """Then no input changes what is added to it, and no factor of it changes either."""
    cell, xs = rnnjax.TemporalConvCell(4), drawn(TIME, BATCH, 2)

    def run(params, method):
        return rnnjax.unroll(cell, params, xs, method=method)

    params = parameters(cell)
    every = [
        jax.jit(lambda p, m=m: jax.jvp(lambda p: run(p, m), (p,), (p,)))(params)
        for m in (Parallel(), Scan())
    ]
    assert_close(*every, 1e-12)


# Pieces as rows have the derivatives of factors of all steps, and in tests/test_reference.py what
# JAX differentiates of these and of matrix memories is, forwards.
@pytest.mark.parametrize(
    "name",
    [
        "mingru",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("turning", "lru", "gla", "mlstm", "deltanet")
        ),
    ],
)
@pytest.mark.usefixtures("x64")
def test_derivatives_of_second_order_and_forwards(name, assert_close):
    cell = CELLS[name]
    params, xs = parameters(cell), drawn(6, 2, 2)

    @functools.partial(jax.jit, static_argnums=1)
    def product(params, method):
        def loss(params):
            return jnp.sin(
                rnnjax.unroll(cell, params, xs, resets=RESETS[:6, :2], method=method)[1]
            ).sum()

        ones = jax.tree.map(jnp.ones_like, params)
        return jax.jvp(jax.grad(loss), (params,), (ones,))

    assert_close(product(params, Parallel()), product(params, Scan()), 1e-12)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        *((name, Parallel()) for name in ("mingru", "turning", "deltanet")),
        *(
            pytest.param(name, Parallel(), marks=pytest.mark.slow)
            for name in ("minlstm", "output", "s6", "mlstm")
        ),
        ("mingru", Parallel(axis_name="time")),  # the NaN on one device, the reset on the next
    ],
)
@pytest.mark.usefixtures("x64")
def test_no_nan_crosses_a_reset(name, method, assert_close):
    """In one chunk of a matrix memory, or of a device's steps and those of the next."""
    cell, xs, carry = CELLS[name], drawn(TIME, BATCH, 2), start(CELLS[name], 0.0)
    resets, spoilt = np.zeros((TIME, BATCH), bool), np.array(xs)
    spoilt[2, 0], resets[5, 0] = np.nan, True
    run = functools.partial(rnnjax.unroll, cell, method=method)
    divided = method.along.name is not None
    run = over_time(run, {"resets": resets}) if divided else functools.partial(run, resets=resets)
    (last, ys), (expected, others) = (
        jax.jit(run)(parameters(cell), x, carry) for x in (spoilt, xs)
    )
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
    "cell",
    [
        GrowingCell(3),
        rnnjax.IndRNNCell(
            3,
            activation="linear",
            recurrent_kernel_init=jax.nn.initializers.constant(1e30),
        ),
    ],
    ids=["factors", "rows"],
)
@pytest.mark.usefixtures("x64")
def test_an_infinite_product_of_factors_leaves_nothing_as_it_is(cell, assert_close):
    """Zeros until the last steps, and the gradient of the first."""
    params, xs = jax.jit(cell.init, static_argnums=1)(KEY, 2), drawn(40, BATCH, 2)
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    xs[:-4] = 0

    def loss(params, xs, method):
        ys = rnnjax.unroll(cell, params, xs, method=method)[1]
        return ys[:2].sum(), ys

    gradient = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True), static_argnums=2)
    found, expected = (gradient(params, xs, method) for method in (Parallel(12), Scan()))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    assert_close(found, expected, 1e-12)


@pytest.mark.parametrize(
    ("cell", "method"),
    [
        (CELLS["turning"], Parallel()),
        (rnnjax.GRUCell(3), Parallel(newton=rnnjax.Newton())),
    ],
    ids=["affine", "newton"],
)
def test_rows_divided_over_devices(cell, method, assert_close):
    """Whatever is made inside varies over the devices, as the carry does."""
    args = parameters(cell), drawn(5, 2, 2)
    mesh = jax.make_mesh((2,), ("rows",), axis_types=(AxisType.Auto,))
    whole, rows = PartitionSpec(), PartitionSpec(None, "rows")

    def gradient(params, xs, method=method):
        def loss(params):
            return jnp.sin(rnnjax.unroll(cell, params, xs, method=method)[1]).sum()

        return jax.grad(loss)(params)

    shared = jax.shard_map(gradient, mesh=mesh, in_specs=(whole, rows), out_specs=whole)
    expected = jax.jit(functools.partial(gradient, method=Scan()))
    assert_close(jax.jit(shared)(*args), expected(*args), 1e-5)


@pytest.mark.parametrize("name", ["mingru", "turning"])
def test_no_rows(name):
    cell, xs = CELLS[name], np.zeros((TIME, 0, 2), "float32")

    def loss(params):
        return rnnjax.unroll(cell, params, xs, method=Parallel())[1].sum()

    params = jax.eval_shape(lambda: cell.init(KEY, 2))
    assert jax.eval_shape(jax.grad(loss), params) == params


class UndeclaredCell(rnnjax.MinGRUCell):
    """Affine, but its own update promises nothing of that."""

    def update(self, params, x, carry):
        return super().update(params, x, carry)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (rnnjax.LSTMCell(4), "its units see each other's state in a product"),
        (rnnjax.IndRNNCell(4), "coupling is declared as ELEMENTWISE, not as AFFINE"),
        (rnnjax.SRUCell(4, peephole=True), "coupling is declared as ELEMENTWISE, not as AFFINE"),
        (rnnjax.GRUCell(4, reset_after=False), "coupling is declared as ANY, not as AFFINE"),
        (UndeclaredCell(4), "coupling is declared as ANY, not as AFFINE"),
        (rnnjax.Stack([rnnjax.MinGRUCell(4), rnnjax.GRUCell(4)]), "see each other's state"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, rnnjax.Cell) else "",
)
def test_what_is_not_declared_affine_is_refused(cell, message):
    def run():
        return rnnjax.unroll(cell, cell.init(KEY, 2), jnp.ones((5, 2, 2)), method=Parallel())

    with pytest.raises(InvalidInputError, match=message):
        jax.eval_shape(run)


def test_a_linear_indrnn_is_affine_and_says_how_it_runs():
    cell = rnnjax.IndRNNCell(4, activation="linear")
    params, xs = parameters(cell), drawn(100, 2, 2)
    text = str(rnnjax.explain(cell, params, xs, method=Parallel()))
    assert "20 blocks of 5 steps side by side, twice: 30 of 100 steps wait" in text
    assert "then the blocks as rows of a batch" in text  # its one factor is no number of each step
    for name, again in (("mingru", True), ("minlstm", False)):
        cell = CELLS[name]
        text = str(rnnjax.explain(cell, parameters(cell), xs, method=Parallel()))
        assert ("where a gradient is taken, by its steps and their derivative" in text) == again
    with pytest.raises(InvalidInputError, match="chunk must be"):
        Parallel(0)


def test_the_loops_are_as_short_as_it_says():
    """Forward, so many trips as wait for each other in three loops, and none of all the steps."""

    def trips(jaxpr):
        total = 0
        for equation in jaxpr.eqns:
            if equation.primitive.name == "scan":
                total += equation.params["length"]
            for value in equation.params.values():
                inner = getattr(value, "jaxpr", None)
                if inner is not None:
                    total += trips(getattr(inner, "jaxpr", inner))
        return total

    leaf = jax.ShapeDtypeStruct((4096, 1, 4), jnp.float32)
    start = jax.ShapeDtypeStruct((1, 4), jnp.float32)

    def run(constant, factor, start):
        return AffineRecurrence(64).run("cpu", [constant], [[factor]], [start], None)

    assert trips(jax.make_jaxpr(run)(leaf, leaf, start).jaxpr) == 3 * 64
    cell = rnnjax.LRUCell(4)
    beside = BlocksAsBatch(Recurrence(cell, None, False), 64)
    used = jax.eval_shape(lambda: cell.loop_params(cell.init(KEY, 4)))
    args = used, Steps(), leaf, StepMarks(), jax.eval_shape(lambda: cell.initial_carry((1,)))
    assert trips(jax.make_jaxpr(functools.partial(beside.run, "tpu"))(*args).jaxpr) == 3 * 64


@pytest.mark.parametrize(
    ("cell", "method", "most"),
    [
        (rnnjax.MinGRUCell(32), rnnjax.Fused(), 4.5),
        (rnnjax.MinGRUCell(32), Parallel(), 4),
        (rnnjax.MinLSTMCell(32), Parallel(), 10.5),
    ],
    ids=["Fused", "loops", "factors"],
)
def test_a_gradient_of_one_row_copies_no_projections(cell, method, most):
    """In arrays of the size of the inputs: 4.0 (with copies 5.0); 3.4, which the factors of all
    steps would make 6.0; and 10.0 (13.0)."""
    xs = jnp.ones((2048, 1, 32))

    def loss(params, xs):
        return (rnnjax.unroll(cell, params, xs, method=method)[1] ** 2).sum()

    params = jax.eval_shape(lambda: cell.init(KEY, 32))
    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(params, xs).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < most * xs.nbytes


@pytest.mark.parametrize("name", ["mingru", "turning"])
def test_a_gradient_is_lowered_for_all_platforms(name):
    """What is kept for it is alike on all, though a platform's forward pass is its own."""
    cell, xs = CELLS[name], jax.ShapeDtypeStruct((12, 2, 2), jnp.float32)
    params = jax.eval_shape(lambda: cell.init(KEY, 2))

    def loss(params, xs):
        return rnnjax.unroll(cell, params, xs, method=Parallel(4))[1].sum()

    export = jax.export.export(jax.jit(jax.grad(loss)), platforms=("cpu", "cuda", "tpu"))
    assert export(params, xs).platforms == ("cpu", "cuda", "tpu")


@pytest.mark.parametrize(
    "name",
    [
        "mingru",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("minlstm", "lru", "s5", "rglru", "s6", "qrnn", "gilr", "sru", "hgrn")
        ),
    ],
)
@pytest.mark.usefixtures("x64")
def test_auto_gives_the_numbers_of_the_scan_where_it_takes_blocks(name, assert_close):
    cell, steps, rows = CELLS[name], 512, 2
    assert rnnjax.Auto().choose(cell, steps, rows) == Parallel()
    rng = np.random.default_rng(4)
    marks = {"mask": rng.random((steps, rows)) < 0.9, "resets": rng.random((steps, rows)) < 0.01}
    args = parameters(cell), rng.normal(size=(steps, rows, 2))

    @functools.partial(jax.jit, static_argnums=2)
    def both(params, xs, method):
        def loss(params, xs):
            ys = rnnjax.unroll(cell, params, xs, method=method, reverse=True, **marks)[1]
            return jnp.sin(ys).sum(), ys

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, xs)

    assert_close(both(*args, rnnjax.Auto()), both(*args, Scan()), 1e-11)


@pytest.mark.parametrize(
    ("cell", "most"),
    [
        (rnnjax.MinGRUCell(64), 2),  # of 128 columns
        (rnnjax.SRUCell(16), 4),  # of 64
        (rnnjax.S6Cell(4, state_size=16), 4),  # of fewer than the 64 numbers of its state
        (rnnjax.LSTMCell(4), 0),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, rnnjax.Cell) else "",
)
def test_auto_takes_blocks_of_so_few_rows(cell, most):
    chosen = [rnnjax.Auto().choose(cell, 512, rows) for rows in range(1, 8)]
    assert chosen == [Parallel()] * most + [rnnjax.Fused()] * (7 - most)
    assert rnnjax.Auto().choose(cell, 511, rows=1) == rnnjax.Fused()


def test_auto_counts_all_axes_of_rows_and_knows_when_it_cannot():
    cell = CELLS["mingru"]
    params = jax.eval_shape(lambda: cell.init(KEY, 2))

    def lowered(method, *rows):
        run = jax.jit(functools.partial(rnnjax.unroll, cell, method=method))
        xs = jax.ShapeDtypeStruct((512, *rows, 2), jnp.float32)
        return jax.export.export(run)(params, xs).mlir_module().count("stablehlo.while")

    def told(*rows, platform="cpu"):
        xs = jax.ShapeDtypeStruct((512, *rows, 2), jnp.float32)
        return re.findall(r"chose (\w+)", str(rnnjax.explain(cell, params, xs, platform=platform)))

    (symbolic,) = jax.export.symbolic_shape("b")
    auto, fused = rnnjax.Auto(), rnnjax.Fused()
    assert lowered(auto, 3, 4) == lowered(Parallel(), 3, 4) > lowered(fused, 3, 4)
    assert lowered(auto, symbolic) == lowered(fused, symbolic)
    for platform in ("cpu", "cuda", "tpu"):
        assert told(platform=platform) == told(3, 4, platform=platform) == ["Parallel"]
        assert told(60, 10, platform=platform) == ["Fused"]


class GrowingCell(rnnjax.MinGRUCell):
    """Its factors are its inputs, of any size."""

    coupling = rnnjax.Coupling.AFFINE

    def update(self, params, x, carry):
        factor, n = jnp.split(x, 2, axis=-1)
        return rnnjax.SimpleRNNCarry(factor * carry.hidden + n)


def test_auto_takes_no_pieces_where_a_product_of_factors_is_no_number_before_a_state_is():
    """Fourteen factors of 1,000 of a state that they make large, and one of 0 behind them."""
    cell, auto = GrowingCell(4, use_bias=False), rnnjax.Auto()
    params = {"kernel": jnp.concatenate([jnp.eye(4), jnp.zeros((4, 4))], axis=1)}
    xs = jnp.full((512, 1, 4), 0.9).at[97:111].set(1000.0).at[113].set(0.0)
    ys = rnnjax.unroll(cell, params, xs, rnnjax.SimpleRNNCarry(jnp.full((1, 4), 1e-5)), method=auto)
    assert jnp.isfinite(ys[1]).all()


def test_auto_takes_no_pieces_where_a_nan_would_stay():
    """The inputs before the last four are forgotten, whatever they were."""
    cell = rnnjax.TemporalConvCell(4)
    xs = jnp.ones((512, 1, 4)).at[14].set(jnp.nan)
    ys = rnnjax.unroll(cell, cell.init(KEY, 4), xs)[1]
    assert jnp.isfinite(ys).all(axis=(1, 2)).sum() == 512 - 4
