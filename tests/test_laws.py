"""The laws: every cell, run by every method, gives the numbers of its own equation.

Weights, biases, inputs and initial carries are random everywhere: with zeros or constants a swapped
gate or a forgotten bias would go unseen. Steps by themselves, with masks, lengths and resets; and
what is around them: last outputs, no steps, noise. Held outputs, both directions, learned carries
and marks that are known inside of jit are drawn in tests/test_reference.py.
"""

import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cell_table import (
    ALL,
    BATCH,
    BROAD,
    CELLS,
    FEATURES,
    FEW,
    LENGTHS,
    MASK,
    RESETS,
    SINGLE,
    TIME,
    TOLERANCES,
    OwnStepCell,
    alike,
    blank,
    both_ways,
    grid,
    in_reverse,
    layers,
    loop,
    make_cells,
    refusals,
    table,
    weighted,
)

import rnnjax
from rnnjax import Auto, Fused, GRUCell, InvalidInputError, LSTMCell, Parallel, Scan, Stack


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
    """Outputs and gradients of a run, computed once a module and kept as NumPy arrays.

    What is masked is NaN, except for the loop: it has no influence (law 2).
    """

    @functools.cache
    def compute(name, how, reverse=None, marks=(), dtype="float64"):
        """In the direction in which an ordinary run takes the cell, if none is given."""
        reverse = in_reverse(name, bool(marks)) if reverse is None else reverse
        given = {one: ALL[one] for one in marks}
        with jax.enable_x64(dtype == "float64"):
            (params, xs, *rest), weights = draw(name, dtype)
            if how == "loop":
                out = loop(name, (params, xs, *rest), weights, given, reverse)
            else:
                hostile = np.array(xs)
                hostile[~given.get("mask", MASK | True)] = np.nan
                if "lengths" in given:
                    hostile[np.arange(TIME)[:, None] >= LENGTHS] = np.nan
                run = compiled(name, how, reverse, marks)
                out = run((params, hostile, *rest), weights, given)
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


# By a method what JAX differentiates of it depends on little of a cell: on whether its step reads
# parameters, takes a state over from another, or has a matrix. What else there is to differentiate
# is the same for all: tests/test_primitive.py.
@pytest.mark.parametrize(
    ("name", "method", "marks"),
    [
        ("simple", Fused(), ()),
        *((name, Fused(), (*ALL,)) for name in ("lstm", "gru")),
        *((name, Parallel(), (*ALL,)) for name in ("mingru", "rglru")),
        *(
            pytest.param(name, Parallel(), (*ALL,), marks=pytest.mark.slow)
            for name in ("mamba2", "deltanet")
        ),
    ],
    ids=str,
)
@pytest.mark.usefixtures("x64")
def test_law_5_derivatives_forwards_and_of_second_order(
    name, method, marks, draw, random_like, assert_close
):
    """Outputs and gradients, and how they change along a drawn direction of all arguments."""
    arguments, weights = draw(name)
    direction, given = random_like(arguments, 40, "float64"), {one: ALL[one] for one in marks}

    def along(how):
        run = compiled(name, how, False, marks)
        return jax.jit(functools.partial(jax.jvp, lambda args: run(args, weights, given)))(
            (arguments,), (direction,)
        )

    assert_close(along(method), along(Scan()), 1e-10)


@pytest.mark.parametrize("name", CELLS)
def test_auto_is_one_of_the_others(name):
    for layer in layers(CELLS[name]):
        usual = Parallel() if layer.has_memory else Fused()
        assert Auto().choose(layer) == (Scan() if name == "user-step" else usual)


# Cells differ in what they take of it. Without a key tests/test_reference.py has them all.
RATES = {"zoneout_hidden": 0.3, "input_dropout": 0.4}
OF_PRODUCT = RATES | {"recurrent_dropout": 0.5, "weight_drop": 0.5}
NOISY = {"projection": OF_PRODUCT | {"zoneout_cell": 0.6}, "user-gain": OF_PRODUCT, "mingru": RATES}


@pytest.mark.parametrize("name", NOISY)
@pytest.mark.usefixtures("x64")
def test_law_6_noise_is_the_same_by_every_method(name, equal_to_scan):
    methods = [Fused(), *([Fused(keep_every=2)] if name == "projection" else [])]
    given = {"dtype": "float64", "tolerance": TOLERANCES["float64"], "key": jax.random.key(7)}
    equal_to_scan(rnnjax.Regularized(CELLS[name], **NOISY[name]), methods, **given, **ALL)


@pytest.mark.parametrize("method", [Scan(), Auto()], ids=str)
def test_law_6_an_activation_may_close_over_a_traced_value(method, random_like, assert_close):
    """Such as a slope that is learned; none is left behind by an earlier trace."""
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

    def every(f):
        gradient = jax.grad(f)
        return (
            gradient(0.1), gradient(0.2), jax.jit(jax.grad(gradient))(0.1),
            jax.jit(jax.vmap(gradient))(jnp.array([0.1, 0.3])), jax.jvp(f, (0.1,), (1.0,)),
        )  # fmt: skip

    assert_close(every(loss), jax.jit(functools.partial(every, by_hand))(), 1e-5)


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


# Rounding does not depend on the method, but on what it makes of a cell.
@pytest.mark.parametrize("rounded", ["inputs", "carry"])
@pytest.mark.parametrize(
    ("name", "method"), table(Auto, names=["simple", *FEW, "stack"], ordinary=FEW, by_all=[])
)
def test_law_8_a_carry_keeps_its_type(name, method, rounded, draw, assert_close):
    """It is that of float32 inputs or parameters, or bfloat16 if asked."""
    (params, xs, carry, start), weights = draw(name, "float32")
    narrow = jax.tree.map(lambda leaf: np.asarray(leaf, jnp.bfloat16), (xs, carry))
    given = (narrow[0], carry) if rounded == "inputs" else (xs, narrow[1])
    reverse = in_reverse(name)
    out = rnnjax.unroll(CELLS[name], params, *given, reverse=reverse, method=method)
    types = {leaf.dtype for leaf in jax.tree.leaves(out if rounded == "inputs" else out[0])}
    assert types == {jnp.dtype(jnp.float32 if rounded == "inputs" else jnp.bfloat16)}
    # Against the float32 parameters the products run in float32, on what was rounded.
    exactly = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), given)
    expected, _ = compiled(name, method, reverse)((params, *exactly, start), weights, {})
    assert_close(out, expected, 1e-6 if rounded == "inputs" else 0.05)


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
        cell = dataclasses.replace(CELLS[name], dtype=jnp.bfloat16)
        return rnnjax.unroll(cell, params, xs, carry, reverse=in_reverse(name), method=method)

    (carry, ys), gradients = jax.jit(weighted(narrow))(*draw(name, "float32"))
    assert {leaf.dtype for leaf in jax.tree.leaves((carry, gradients))} == {jnp.dtype("float32")}
    assert ys.dtype == jnp.bfloat16
    # bfloat16 keeps 8 bits: 2**-9 a rounding. Ten times that for outputs, more for gradients.
    expected, expected_gradients = results(name, "loop")
    assert_close((carry, ys), expected, 0.02)
    assert_close(gradients, expected_gradients, 0.04)


# Parameters that begin alike for all units, and why they may: tests/test_gallery.py says more.
ALIKE = {
    **dict.fromkeys(
        [
            *(f"layernorm-lstm.{of}_scale" for of in ("kernel", "recurrent", "cell")),
            *(f"layernorm-gru.{of}_scale" for of in ("kernel", "recurrent")),
            *("user-peephole.a_gain", "user-gain.gain"),
            *("s6.skip", "mamba2.skip", "deltanet.gain"),
        ],
        "a gain of 1 on what differs, as in the papers",
    ),
    **dict.fromkeys(
        ["layernorm-lstm.cell_bias", "temporal-conv.taps_bias"], "a bias on what differs"
    ),
    **dict.fromkeys(
        ["peephole.peephole", "user-peephole.peephole"],
        "weights of the unit's own state, beside a product",
    ),
    "s5.eigenvalue": "HiPPO has one decay; the states turn and step at speeds of their own",
    "user-step.kernel": "a cell of these tests, in which nothing is learned",
}


@pytest.fixture(scope="module")
def begun():
    """The initial parameters of all cells of the table, by one program."""
    draw = jax.jit(lambda key: {n: cell.init(key, FEATURES) for n, cell in CELLS.items()})
    return jax.device_get(draw(jax.random.key(0)))


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.usefixtures("x64")
def test_law_13_every_number_can_learn_from_where_it_begins(name, begun, draw):
    """No gradient is 0 in all steps and rows where a number begins, but not where all are drawn."""
    (drawn, xs, *carries), weights = draw(name)
    given = xs, *jax.tree.map(np.zeros_like, carries)  # as each cell of the table begins
    own = jax.tree.map(lambda leaf: np.asarray(leaf, "float64"), begun[name])
    now, then = (loop(name, (p, *given), weights, {}, False)[1][0] for p in (own, drawn))
    now, then = jax.device_get((now, then))
    dead = jax.tree.map(lambda one, other: np.sum((one == 0) & (other != 0)), now, then)
    assert not any(jax.tree.leaves(dead)), dead


@pytest.mark.parametrize("name", SINGLE)
def test_law_13_units_begin_apart_unless_there_is_a_reason(name, begun):
    found = {f"{name}.{leaf}" for leaf in alike(begun[name])}
    assert found == {one for one in ALIKE if one.partition(".")[0] == name}, (
        f"what begins alike for all units of {name} must be in ALIKE of tests/test_laws.py, with "
        "the reason why it may; a decay or a clock may not"
    )


# ---- what is around the steps


@pytest.fixture
def sample(random_like):
    """Parameters of a layer, and inputs."""

    def drawn(cell, *shape):
        params = random_like(lambda: cell.init(jax.random.key(0), shape[-1]), 1)
        return params, random_like(lambda: jnp.zeros(shape), 2)

    return drawn


OF_ONE_OUTPUT = {
    "a carry that holds it": GRUCell(4),
    "an output of its own": CELLS["user-peephole"],
    "a stack": Stack([rnnjax.SimpleRNNCell(3), LSTMCell(4)]),
    "both directions": rnnjax.Bidirectional(GRUCell(3)),
    "zoneout": rnnjax.Regularized(LSTMCell(3), zoneout_hidden=0.5),
}


@pytest.mark.parametrize("reverse", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", OF_ONE_OUTPUT)
def test_the_last_output_alone_is_that_of_the_last_valid_step(name, reverse, sample):
    """One has it in its carry, from which a reset behind the last valid step takes it."""
    cell = OF_ONE_OUTPUT[name]
    params, xs = sample(cell, TIME, BATCH, FEATURES)

    @functools.partial(jax.jit, static_argnums=1)
    def run(params, outputs, marks):
        return rnnjax.unroll(cell, params, xs, outputs=outputs, reverse=reverse, **marks)

    turned, pool = [slice(None), slice(None, None, -1)], jax.jit(rnnjax.pool, static_argnums=1)
    for given in ({}, {"lengths": LENGTHS}, {"mask": MASK}, ALL):
        both = [run(params, outputs, given) for outputs in ("all", "last")]
        (carry, ys), (same, y) = jax.device_get(both)
        jax.tree.map(np.testing.assert_array_equal, same, carry)
        valid = given.get("mask", np.ones((TIME, BATCH), bool))
        valid = valid & (np.arange(TIME)[:, None] < given.get("lengths", TIME))
        # The outputs of the direction that runs against the sequence stand behind the other's.
        ahead = [ys, ys[..., :0]] if name != "both directions" else np.split(ys, 2, -1)
        for at in (turned, turned[::-1])[reverse]:
            part, *ahead = ahead
            found, y = y[..., : part.shape[-1]], y[..., part.shape[-1] :]
            np.testing.assert_array_equal(found, pool(part[at], "last", valid[at]))
    with pytest.raises(InvalidInputError, match='outputs must be "all" or "last", but is \'one\''):
        rnnjax.unroll(cell, params, xs, outputs="one")
    for given in ({}, {"lengths": 0 * LENGTHS}, {"mask": MASK[:0], "resets": RESETS[:0]}):
        nothing = rnnjax.unroll(cell, params, xs[:0], outputs="last", **given)[1]
        np.testing.assert_array_equal(nothing, np.zeros((BATCH, cell.output_size)))


@pytest.mark.parametrize("part", [GRUCell(3), rnnjax.Regularized(GRUCell(3), zoneout_hidden=0.5)])
def test_the_last_outputs_of_merged_directions_are_those_of_their_carries(part, sample):
    cell = rnnjax.LearnedCarry(rnnjax.Bidirectional(part, merge="sum"))
    params, xs = sample(cell, TIME, BATCH, FEATURES)
    carry, y = rnnjax.unroll(cell, params, xs, outputs="last")
    np.testing.assert_array_equal(y, carry.forward.hidden + carry.backward.hidden)
    with pytest.raises(InvalidInputError, match="merged by 'sum' cannot be parted"):
        rnnjax.unroll(cell, params, xs, outputs="last", mask=MASK, resets=RESETS)


CELL = LSTMCell(4)
PARAMS = blank(CELL)
XS = np.ones((5, 3, 2), np.float32)
IDS = rnnjax.OneHot(np.zeros((5, 3), int), 2)


def test_no_steps_and_no_rows():
    cell = Stack([rnnjax.Bidirectional(LSTMCell(4)), rnnjax.MinGRUCell(3)])
    params, nothing = blank(cell), np.zeros((0, 3), bool)
    start = jax.eval_shape(lambda: cell.initial_carry((3,)))
    start = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), start)
    for method in (Scan(), Fused(), Fused(keep_every=2)):
        carry, ys = rnnjax.unroll(
            cell, params, np.zeros((0, 3, 2), "f"), start, mask=nothing, resets=nothing,
            lengths=np.zeros(3, int), masked_outputs="last", method=method,
        )  # fmt: skip
        assert ys.shape == (0, 3, 3)
        assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(carry))
        carry, ys = rnnjax.unroll(CELL, PARAMS, np.zeros((5, 0, 2), "f"), method=method)
        assert (carry.hidden.shape, ys.shape) == ((0, 4), (5, 0, 4))


# ---- noise


def passing(size, keeps=0):
    """A cell that passes its inputs on, and keeps its state if asked."""
    eye = np.eye(size, dtype="f")
    cell = rnnjax.SimpleRNNCell(size, activation="linear", use_bias=False)
    return cell, {"kernel": eye, "recurrent_kernel": keeps * eye}


def test_recurrent_dropout_by_hand():
    """Dropout drops the same units of the state at all steps, only where it enters the product."""
    cell, params = passing(6, keeps=1)
    xs = np.zeros((4, 3, 6), "f") + (np.arange(4) == 0)[:, None, None]
    layer = rnnjax.Regularized(cell, recurrent_dropout=0.5)
    ys = np.asarray(rnnjax.unroll(layer, params, xs, key=jax.random.key(3))[1])
    assert set(ys[1].ravel()) == {0, 2}
    np.testing.assert_array_equal(ys, ys[1] ** np.arange(4)[:, None, None])
    assert not np.all(ys[1] == ys[1, 0])  # each row has its own


def test_zoneout_keeps_units(sample):
    """Guards that they are others at each step."""
    cell = LSTMCell(50)
    params, xs = sample(cell, 40, 3, 2)
    layer = rnnjax.Regularized(cell, zoneout_hidden=0.25)
    _, ys = rnnjax.unroll(layer, params, xs, key=jax.random.key(3))
    ys = np.asarray(ys)
    kept = ys[1:] == ys[:-1]
    assert abs(kept.mean() - 0.25) < 0.02
    assert abs(kept[0].mean() - kept[-1].mean()) < 0.15
    assert not np.all(kept == kept[0])


def test_weight_drop_drops_weights(sample, assert_close):
    cell = GRUCell(5)
    params, xs = sample(cell, 5, 3, 2)
    layer = rnnjax.Regularized(cell, weight_drop=0.5)

    def loss(params):
        return (rnnjax.unroll(layer, params, xs, key=jax.random.key(3))[1] ** 2).sum()

    kept = np.asarray(jax.jit(jax.grad(loss))(params)["recurrent_kernel"]) != 0
    assert 0.3 < kept.mean() < 0.7
    doubled = 2 * np.asarray(params["recurrent_kernel"])
    dropped = {**params, "recurrent_kernel": np.where(kept, doubled, np.float32(0))}
    assert_close(
        rnnjax.unroll(layer, params, xs, key=jax.random.key(3)),
        rnnjax.unroll(cell, dropped, xs),
        1e-6,
    )
    assert_close(rnnjax.unroll(layer, params, xs), rnnjax.unroll(cell, params, xs), 1e-6)


@pytest.mark.parametrize("per", ["step", "sequence"])
def test_dropout_between_the_layers_of_a_stack(per, random_like, assert_close):
    """Guards that dropout of a sequence is one draw for all steps."""
    cell, params = passing(4)
    stack, params = Stack([cell] * 3, dropout=rnnjax.Dropout(0.5, per=per)), (params,) * 3
    xs = random_like(np.zeros((6, 3, 4)), 2)
    _, ys = rnnjax.unroll(stack, params, xs, key=jax.random.key(0))
    ratio = np.round(np.asarray(ys) / np.asarray(xs), 3)
    assert set(ratio.ravel()) == {0.0, 4.0}  # two layers' outputs are dropped, not the third's
    assert np.all(ratio == ratio[0]) == (per == "sequence")
    assert_close(rnnjax.unroll(stack, params, xs)[1], xs, 1e-6)


@pytest.mark.parametrize("kind", [lambda c: Stack([c, c]), rnnjax.Bidirectional], ids=range(2))
def test_each_cell_draws_its_own(kind):
    """Guards the keys of a stack's layers, and of both directions."""
    layer, params = passing(200)
    cell, xs = kind(rnnjax.Regularized(layer, input_dropout=0.5)), np.ones((1, 1, 200), "f")
    one, other = (
        np.asarray(rnnjax.unroll(cell, (params,) * 2, xs, key=jax.random.key(n))[1]) != 0
        for n in range(2)
    )
    assert np.any(one != other)
    if cell.output_size == 200:  # what both layers keep
        assert 0.15 < one.mean() < 0.35
    else:
        forward, backward = np.split(one, 2, axis=-1)
        assert 0.35 < (forward == backward).mean() < 0.65


# ---- bad input


def traced(**arguments):
    """Also where what is wrong is known inside of jit."""
    return jax.eval_shape(lambda xs: rnnjax.unroll(CELL, PARAMS, xs, **arguments), XS)


RESET_BEFORE, CONV = GRUCell(4, reset_after=False), rnnjax.ConvLSTMCell(3)


def noised(cell, xs=XS, **rates):
    layer = rnnjax.Regularized(cell, **rates)
    return rnnjax.unroll(layer, blank(layer), xs, key=jax.random.key(0))


test_bad_arguments = refusals(
    [
        (lambda: traced(lengths=[5, 6, 1]), "between 0 and the 5 steps of xs, but go from 1 to 6"),
        (lambda: traced(lengths=[5, 1, -1]), "go from -1 to 5"),
        (lambda: traced(mask=np.ones((5, 3), "f")), r"mask .* float32; write mask.astype\(bool\)"),
        (lambda: traced(mask=np.ones(3, int)), "mask must be .*; give numbers of steps as leng"),
        # Without resets, and with a carry, nothing else reads it.
        (lambda: traced(reset_carry=XS, carry=CELL.initial_carry((3,))), "^reset_carry must"),
        (lambda: traced(masked_outputs="hold"), r'must be "zero" or "last", but is \'hold\''),
        (lambda: rnnjax.Regularized(Stack([CELL])), "wrap each cell by itself"),
        (
            lambda: rnnjax.Regularized(CELL, zoneout_cell=1.0),
            "zoneout_cell must be at least 0 and",
        ),
        (lambda: rnnjax.Regularized(GRUCell(3), zoneout_cell=0.1), "a field 'cell'"),
        (lambda: rnnjax.Dropout(-0.1), "rate must be at least 0"),
        (lambda: rnnjax.Dropout(0.1, per="row"), "per must be"),
        (lambda: Stack([CELL], dropout=0.1), r"must be rnnjax.Dropout\(rate\)"),
        (lambda: rnnjax.Bidirectional(CELL, GRUCell(3), merge="sum"), "outputs of one size"),
        (lambda: rnnjax.Bidirectional(CELL, merge="cat"), 'merge must be "concat"'),
        (lambda: rnnjax.Bidirectional(LSTMCell), "Bidirectional is made of cells"),
        (lambda: rnnjax.LearnedCarry(LSTMCell), "LearnedCarry needs a cell"),
        (lambda: rnnjax.ConvLSTMCell(3, kernel_shape=(3, 3, 3)), "one or two sizes"),
        (lambda: rnnjax.ProjectionLSTMCell(3, proj_size=0), "proj_size must be a positive"),
        (
            lambda: rnnjax.Bidirectional(CELL).step((PARAMS,) * 2, None, XS[0]),
            "cannot run step by",
        ),
        (
            lambda: rnnjax.unroll(rnnjax.Bidirectional(CELL), PARAMS, XS),
            "params of a Bidirection",
        ),
        (lambda: noised(OwnStepCell(4), recurrent_dropout=0.1), "cannot reach inside of OwnStep"),
        (lambda: noised(RESET_BEFORE, recurrent_dropout=0.1), "a product of the state before the"),
        (lambda: noised(rnnjax.MinGRUCell(4), recurrent_dropout=0.1), "needs a product of the sta"),
        (lambda: noised(rnnjax.MinGRUCell(4), weight_drop=0.1), "needs a recurrent_kernel"),
        (lambda: noised(CELL, IDS, input_dropout=0.1), "inputs are OneHot; set ids to -1"),
        (lambda: rnnjax.unroll(CONV, blank(CONV), XS[..., :1, None]), "xs has 1 features, but pa"),
    ]
)


@pytest.mark.parametrize(("within", "between"), [(0.5, 0.0), (0.0, 0.5), (0.0, 0.0)])
def test_a_gradient_without_the_noise_of_training_comes_with_a_warning(within, between):
    first = rnnjax.Regularized(LSTMCell(3), recurrent_dropout=within)
    cell = Stack([first, LSTMCell(3)], dropout=rnnjax.Dropout(between))
    params, xs = blank(cell), np.ones((4, 3, 2), np.float32)

    def loss(params, key):
        return rnnjax.unroll(cell, params, xs, key=key)[1].sum()

    jax.eval_shape(loss, params, None)  # prediction says nothing, and so does training with a key
    jax.eval_shape(jax.grad(loss), params, jax.random.key(1))
    said = pytest.warns(UserWarning, match="without its dropout.*given no key")
    with said if within or between else contextlib.nullcontext():
        jax.eval_shape(jax.grad(loss), params, None)
