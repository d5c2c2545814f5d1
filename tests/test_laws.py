"""The laws: every cell, run by every method, gives the numbers of its own equation.

Weights, biases, inputs and initial carries are random everywhere: with zeros or constants a swapped
gate or a forgotten bias would go unseen. Steps by themselves, with masks, lengths and resets.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cell_table import (
    BATCH,
    BROAD,
    CELLS,
    FEATURES,
    FEW,
    PARALLEL,
    TIME,
    TOLERANCES,
    both_ways,
    check_backwards,
    grid,
    in_reverse,
    layers,
    loop,
    make_cells,
    table,
    weighted,
)

import rnnjax
from rnnjax import Auto, Fused, Newton, Parallel, Regularized, Scan, Stack

# One row is whole, one has two steps, one has none; holes in two; borders at the first step, in
# the middle, two in a row, and at a masked step.
LENGTHS = np.array([5, 2, 0])
MASK = np.array([[1, 1, 1], [1, 1, 1], [0, 1, 1], [1, 1, 0], [1, 0, 1]], bool)
RESETS = np.array([[0, 1, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1], [1, 0, 1]], bool)
ALL = {"lengths": LENGTHS, "mask": MASK, "resets": RESETS}


@pytest.fixture(scope="module")
def draw(random_like):
    """Parameters, inputs, a carry and that of resets; and weights for a loss of every output."""

    @functools.cache
    def arguments(name, dtype="float64"):
        cell, batch = CELLS[name], (BATCH, *grid(name))
        params = jax.eval_shape(lambda: cell.init(jax.random.key(0), FEATURES))
        carry = jax.eval_shape(lambda: cell.initial_carry(batch))
        xs = jax.ShapeDtypeStruct((TIME, *batch, FEATURES), dtype)
        ys = jax.ShapeDtypeStruct((TIME, *batch, cell.output_size), dtype)
        trees = params, xs, carry, carry, (carry, ys)
        *given, weights = (random_like(tree, 20 + i, dtype) for i, tree in enumerate(trees))
        return tuple(given), weights

    return arguments


@functools.cache
def compiled(name, method, reverse, marks=()):
    """``((params, xs, carry, start), weights, marks) -> (outputs, gradients)``, for all laws."""

    def run(params, xs, carry, start, given):
        if "resets" in marks:
            given = {**given, "reset_carry": start}
        return rnnjax.unroll(
            CELLS[name], params, xs, carry, reverse=reverse, method=method, **given
        )

    return jax.jit(weighted(run))


@pytest.fixture(scope="module")
def results(draw):
    """Outputs and gradients of a run, computed once a module and kept as NumPy arrays."""

    @functools.cache
    def compute(name, how, reverse=None, marks=(), dtype="float64"):
        """In the direction in which an ordinary run takes the cell, if none is given."""
        reverse = in_reverse(name, bool(marks)) if reverse is None else reverse
        given = {one: ALL[one] for one in marks}
        with jax.enable_x64(dtype == "float64"):
            if how == "loop":
                out = loop(name, *draw(name, dtype), given, reverse)
            else:
                out = compiled(name, how, reverse, marks)(*draw(name, dtype), given)
            return jax.tree.map(np.asarray, out)

    return compute


# The other cells that run in parallel do so in tests/test_reference.py.
LOOPED = [*BROAD, "slstm", "deltanet"]
# With marks: with products before the update, in it and behind it, and with none; of states with a
# grid, with earlier inputs, in several layers, and of those that begin with other numbers than
# zeros. Cells of a state that is no vector run in parallel, with all marks: tests/test_parallel.py.
MARKED = both_ways(
    table(
        Auto,
        ordinary=[
            *("gru", "gru-reset-before", "user-peephole", "user-step", "projection", "mingru"),
            *("lru", "convlstm-2d", "temporal-conv", "stack", "slstm", "learned-carry"),
        ],
        by_all=["lstm"],
    ),
    marked=True,
)


@pytest.mark.parametrize(
    ("name", "method", "reverse", "marks"),
    [
        *(
            pytest.param(*row.values, marks, marks=row.marks)
            for rows, marks in ((both_ways(table(Auto, ordinary=LOOPED)), ()), (MARKED, (*ALL,)))
            for row in rows
        ),
        *(
            (name, method, False, (one,))
            for name, method in (("lstm", Fused()), ("mingru", Parallel()))
            for one in ("mask", "resets")
        ),
    ],
    ids=str,
)
def test_law_1_unroll_equals_a_loop_of_step(name, method, reverse, marks, results, assert_close):
    actual, expected = (results(name, how, reverse, marks) for how in (method, "loop"))
    assert all(leaf.dtype == np.float64 for leaf in jax.tree.leaves(actual))
    assert_close(actual, expected, TOLERANCES["float64"])


# Rounding does not depend on the method, but on what it makes of a cell.
NARROW = table(Auto, names=["simple", *FEW], ordinary=FEW, by_all=[])


@pytest.mark.parametrize(("name", "method"), NARROW)
def test_law_1_in_float32(name, method, results, assert_close):
    actual = results(name, method, dtype="float32")
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(actual))
    assert_close(actual, results(name, "loop"), TOLERANCES["float32"])


# By the programs of all marks, in the direction of the cell.
@pytest.mark.parametrize(
    ("name", "method"),
    [*(("lstm", m) for m in (Scan(), Fused(), Fused(keep_every=2))), ("gru", Fused())],
    ids=str,
)
@pytest.mark.usefixtures("x64")
def test_law_2_whatever_is_masked_has_no_influence(name, method, draw, assert_close):
    (params, xs, *rest), weights = draw(name)
    run = compiled(name, method, in_reverse(name, marked=True), (*ALL,))
    valid = MASK & (np.arange(TIME)[:, None] < LENGTHS)
    hostile = np.where(valid[..., None], xs, np.nan)
    expected, actual = (run((params, x, *rest), weights, ALL) for x in (xs, hostile))
    assert_close(actual, expected, 1e-12)
    assert np.all(np.asarray(actual[0][1])[~valid] == 0)


@pytest.mark.parametrize(("name", "method", "reverse"), MARKED)
@pytest.mark.usefixtures("x64")
def test_law_3_a_reset_cuts_a_nan_off(name, method, reverse, draw, assert_close):
    """One row has a NaN in the inputs of the step that runs first."""
    (params, xs, *rest), weights = draw(name)
    first, border = (TIME - 1, TIME - 1) if reverse else (0, 1)
    # The program of all marks is compiled already.
    marks = {"mask": np.ones((TIME, BATCH), bool), "resets": np.zeros((TIME, BATCH), bool)}
    marks["resets"][border, 0], marks["lengths"] = True, np.full(BATCH, TIME)
    run, hostile = compiled(name, method, reverse, (*ALL,)), np.array(xs)
    hostile[first, 0] = np.nan
    (carry, ys), (expected, others) = (
        run((params, given, *rest), weights, marks)[0] for given in (hostile, xs)
    )
    ys, others = np.array(ys), np.array(others)
    ys[first, 0] = others[first, 0] = 0
    assert_close((carry, ys), (expected, others), 1e-12)


# In every way, for each has its own for a batch without axes.
@pytest.mark.parametrize(("name", "method"), table(Auto, ordinary=LOOPED, by_all=[]))
@pytest.mark.usefixtures("x64")
def test_law_4_a_row_is_alone(name, method, draw, results, assert_close):
    (params, xs, carry, _), _ = draw(name)
    (expected_carry, expected_ys), _ = results(name, "loop")
    row, reverse = BATCH - 1, in_reverse(name)
    expected = jax.tree.map(lambda leaf: leaf[row], expected_carry), expected_ys[:, row]
    xs, alone = np.asarray(xs)[:, row], jax.tree.map(lambda leaf: np.asarray(leaf)[row], carry)
    actual = rnnjax.unroll(CELLS[name], params, xs, alone, reverse=reverse, method=method)
    assert_close(actual, expected, TOLERANCES["float64"])


# The second of these is JAX's own loop around the first.
@pytest.mark.parametrize(
    "method", [Fused(), pytest.param(Fused(keep_every=2), marks=pytest.mark.slow)], ids=str
)
@pytest.mark.usefixtures("x64")
def test_law_5_every_derivative_that_jax_has(method, draw, assert_close):
    (params, xs, carry, _), _ = draw("simple")

    @functools.partial(jax.jit, static_argnums=0)
    def derivatives(method, params, xs):
        def ys(params, xs):
            return rnnjax.unroll(CELLS["simple"], params, xs, carry, method=method)[1]

        def loss(bias):
            return (ys({**params, "bias": bias}, xs) ** 2).sum()

        bias = params["bias"]
        linear = jax.linearize(lambda xs: ys(params, xs), xs)[1]
        return {
            "jacfwd": jax.jacfwd(loss)(bias),
            "hessian": jax.hessian(loss)(bias),
            "reverse over reverse": jax.jacrev(jax.jacrev(loss))(bias),
            "linearize": linear(xs),
            "its transpose": jax.linear_transpose(linear, xs)(ys(params, xs)),
        }

    expected = derivatives(Scan(), params, xs)
    assert_close(derivatives(method, params, xs), expected, 1e-10)


@pytest.mark.usefixtures("x64")
def test_law_5_second_derivatives_with_marks(draw):
    (params, xs, carry, start), weights = draw("lstm")
    run = compiled("lstm", Fused(), False, (*ALL,))

    def gradients(params, xs, start):
        return run((params, xs, carry, start), weights, ALL)[1]

    check_backwards(gradients, params, xs, start)


@pytest.mark.usefixtures("x64")
def test_law_5_forward_mode_with_marks(draw, results, random_like, assert_close):
    arguments, weights = draw("gru")

    def run(params, xs, carry, start):
        return rnnjax.unroll(
            CELLS["gru"], params, xs, carry, **ALL, reset_carry=start, method=Fused()
        )

    direction = random_like(arguments, 40, "float64")
    out, tangents = jax.jit(lambda a, d: jax.jvp(run, a, d))(arguments, direction)
    expected, gradients = results("gru", "loop", False, (*ALL,))
    assert_close(out, expected, TOLERANCES["float64"])
    slope, expected_slope = (
        sum(map(np.vdot, jax.tree.leaves(ours), jax.tree.leaves(theirs)))
        for ours, theirs in ((weights, tangents), (gradients, direction))
    )
    np.testing.assert_allclose(slope, expected_slope, rtol=TOLERANCES["float64"])


def test_the_table_leaves_out_no_cell_that_runs_in_parallel():
    for name in CELLS.keys() - PARALLEL:
        assert any(map(Parallel().refusal, layers(CELLS[name])))


@pytest.mark.parametrize("name", CELLS)
def test_auto_is_one_of_the_others(name):
    for layer in layers(CELLS[name]):
        usual = Parallel() if layer.has_memory else Fused()
        assert Auto().choose(layer) == (Scan() if name == "user-step" else usual)


NOISE = {
    "recurrent_dropout": 0.5,
    "zoneout_hidden": 0.3,
    "zoneout_cell": 0.6,
    "weight_drop": 0.5,
    "input_dropout": 0.4,
}


def noisy(name):
    """The cell with what of the noise it can take."""
    cell, rates = CELLS[name], dict(NOISE)
    if "cell" not in jax.eval_shape(cell.initial_carry)._fields:
        del rates["zoneout_cell"]
    if cell.recurrent is None:
        del rates["recurrent_dropout"]
    if "recurrent_kernel" not in cell.parameters(1):
        del rates["weight_drop"]
    return Regularized(cell, **rates)


# Cells differ in what they take of it. Without a key tests/test_reference.py has them all.
@pytest.mark.parametrize(
    "name",
    [
        *("projection", "user-gain", "mingru"),
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("lstm", "gru", "layernorm-lstm")),
    ],
)
@pytest.mark.usefixtures("x64")
def test_law_6_noise_is_the_same_by_every_method(name, equal_to_scan):
    methods = [Fused(), *([Fused(keep_every=2)] if name == "projection" else [])]
    given = {"dtype": "float64", "tolerance": TOLERANCES["float64"], "key": jax.random.key(7)}
    equal_to_scan(noisy(name), methods, **given, **ALL)


@pytest.mark.parametrize("method", [Scan(), Parallel(newton=Newton()), Auto()], ids=str)
def test_law_6_an_activation_may_close_over_a_traced_value(method, random_like, assert_close):
    """Such as a slope that is learned: against a loop that is written out."""
    params = random_like(lambda: rnnjax.SimpleRNNCell(3).init(jax.random.key(0), 2), 1)
    xs, mask = np.random.default_rng(0).normal(size=(4, 2, 2)), np.ones((4, 2), bool)
    mask[2, 0] = False

    def loss(slope):
        cell = rnnjax.SimpleRNNCell(3, activation=lambda x: jnp.where(x > 0, x, slope * x))
        carry, ys = rnnjax.unroll(cell, params, xs, mask=mask, method=method)
        return (ys**2).sum() + carry.hidden.sum()

    def by_hand(slope):
        hidden, total = jnp.zeros((2, 3)), 0.0
        for x, valid in zip(xs, mask[..., None], strict=True):
            new = x @ params["kernel"] + hidden @ params["recurrent_kernel"] + params["bias"]
            new = jnp.where(new > 0, new, slope * new)
            hidden, total = jnp.where(valid, new, hidden), total + (valid * new**2).sum()
        return total + hidden.sum()

    found, expected = (jax.jit(jax.vmap(jax.value_and_grad(f))) for f in (loss, by_hand))
    slopes = jnp.array([0.1, 0.3])
    assert_close(found(slopes), expected(slopes), 1e-5)


@pytest.fixture(scope="module")
def compilations():
    """Grows by an entry whenever XLA compiles."""
    seen = []

    def listen(event, *_, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


def test_law_7_a_cell_built_again_is_the_same_cell():
    """So JAX takes what it has compiled for the first."""
    for name, again in make_cells().items():
        assert again == CELLS[name]
        assert hash(again) == hash(CELLS[name])


@pytest.mark.parametrize(
    ("name", "method"), table(names=BROAD, ordinary=["lstm-callable", "gru", "stack"], by_all=[])
)
def test_law_7_a_second_call_compiles_nothing(name, method, draw, compilations):
    (params, xs, carry, _), _ = draw(name, "float32")
    xs = np.concatenate([xs, xs])  # a shape that no other test has

    def call():
        cell = make_cells()[name]
        rnnjax.unroll(cell, params, xs, method=method)
        rnnjax.unroll(cell, params, xs, carry, method=method)

    before = len(compilations)
    call()
    first = len(compilations)
    assert first > before
    call()
    assert len(compilations) == first


@pytest.mark.parametrize(("name", "method"), NARROW)
def test_law_8_bfloat16_inputs_keep_a_float32_carry(name, method, draw, assert_close):
    (params, xs, carry, start), weights = draw(name, "float32")
    rounded, reverse = np.asarray(xs, jnp.bfloat16), in_reverse(name)
    out = rnnjax.unroll(CELLS[name], params, rounded, carry, reverse=reverse, method=method)
    # Against the float32 parameters the products run in float32, on the rounded inputs.
    given = params, rounded.astype(np.float32), carry, start
    expected, _ = compiled(name, method, reverse)(given, weights, {})
    assert {leaf.dtype for leaf in jax.tree.leaves(out)} == {jnp.dtype(jnp.float32)}
    assert_close(out, expected, 1e-6)


def in_bfloat16(cell):
    if isinstance(cell, Stack):
        return Stack([in_bfloat16(layer) for layer in cell.cells])
    return dataclasses.replace(cell, dtype=jnp.bfloat16)


@pytest.mark.parametrize(
    ("name", "method"),
    table(
        Auto,
        names=["simple", *FEW],
        ordinary=["lstm", "gru-reset-before", "user-peephole"],
        by_all=[],
    ),
)
def test_law_8_bfloat16_products_stay_near_float32(name, method, draw, results, assert_close):
    def narrow(params, xs, carry, _):
        cell = in_bfloat16(CELLS[name])
        return rnnjax.unroll(cell, params, xs, carry, reverse=in_reverse(name), method=method)

    (carry, ys), gradients = jax.jit(weighted(narrow))(*draw(name, "float32"))
    assert {leaf.dtype for leaf in jax.tree.leaves((carry, gradients))} == {jnp.dtype("float32")}
    assert ys.dtype == jnp.bfloat16
    # bfloat16 keeps 8 bits: 2**-9 a rounding. Five times that for outputs, more for gradients.
    expected, expected_gradients = results(name, "loop")
    assert_close((carry, ys), expected, 0.01)
    assert_close(gradients, expected_gradients, 0.04)


@pytest.mark.parametrize(("name", "method"), table(Auto, names=[*FEW, "stack"], by_all=[]))
def test_law_8_a_bfloat16_carry_if_asked(name, method, draw, results, assert_close):
    (params, xs, carry, _), _ = draw(name, "float32")
    carry = jax.tree.map(lambda leaf: np.asarray(leaf, jnp.bfloat16), carry)
    reverse = in_reverse(name)
    carry, _ = rnnjax.unroll(CELLS[name], params, xs, carry, reverse=reverse, method=method)
    assert {leaf.dtype for leaf in jax.tree.leaves(carry)} == {jnp.dtype(jnp.bfloat16)}
    (expected, _), _ = results(name, "loop")
    assert_close(carry, expected, 0.05)
