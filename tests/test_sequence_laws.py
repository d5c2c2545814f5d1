"""The laws of masks, lengths, resets and noise: every method equals a Python loop with them."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cell_table import (
    BATCH,
    CELLS,
    FEATURES,
    TIME,
    TOLERANCES,
    OwnStepCell,
    both_ways,
    check_backwards,
    grid,
    in_reverse,
    loop,
    table,
    weighted,
)

import rnnjax
from rnnjax import (
    Bidirectional,
    Fused,
    GRUCell,
    InvalidInputError,
    LSTMCell,
    Regularized,
    Scan,
    SimpleRNNCell,
    Stack,
)

METHODS = [Scan(), Fused(), Fused(keep_every=2)]
# One row is whole, one has two steps, one has none; holes in two; borders at the first step, in
# the middle, two in a row, and at a masked step.
LENGTHS = np.array([5, 2, 0])
MASK = np.array([[1, 1, 1], [1, 1, 1], [0, 1, 1], [1, 1, 0], [1, 0, 1]], bool)
RESETS = np.array([[0, 1, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1], [1, 0, 1]], bool)


@functools.cache
def compiled(name: str, method: rnnjax.Method, reverse: bool, given: tuple[str, ...]) -> Any:
    def run(params: Any, xs: Any, carry: Any, start: Any, marks: Any) -> Any:
        if "reset_carry" in given:
            marks = {**marks, "reset_carry": start}
        return rnnjax.unroll(
            CELLS[name], params, xs, carry, reverse=reverse, method=method, **marks
        )

    return jax.jit(weighted(run))


@pytest.fixture(scope="module")
def draw(random_like: Callable[..., Any]) -> Callable[..., Any]:
    @functools.cache
    def arguments(name: str, time: int = TIME, batch: int = BATCH) -> tuple[Any, Any]:
        cell, batch_shape = CELLS[name], (batch, *grid(name))
        params = jax.eval_shape(lambda: cell.init(jax.random.key(0), FEATURES))
        carry = jax.eval_shape(lambda: cell.initial_carry(batch_shape))
        xs = jax.ShapeDtypeStruct((time, *batch_shape, FEATURES), float)
        ys = jax.ShapeDtypeStruct((time, *batch_shape, cell.output_size), float)
        trees = [params, xs, carry, carry]
        drawn = tuple(random_like(tree, 20 + i, "float64") for i, tree in enumerate(trees))
        return drawn, random_like((carry, ys), 30, "float64")

    return arguments


def check(
    name: str,
    method: rnnjax.Method,
    reverse: bool,
    marks: dict[str, Any],
    arguments: Any,
    assert_close: Any,
    expected: Any = None,
) -> Any:
    """Outputs and gradients, against those of the loop, which are returned for other methods."""
    smooth, weights = arguments
    given = tuple(sorted(marks)) + (("reset_carry",) if "resets" in marks else ())
    actual = compiled(name, method, reverse, given)(
        smooth, weights, {k: np.asarray(v) for k, v in marks.items()}
    )
    if expected is None:
        expected = loop(name, smooth, weights, marks, reverse)
    assert_close(actual, expected, TOLERANCES["float64"])
    return expected


ALL = {"lengths": LENGTHS, "mask": MASK, "resets": RESETS}


# With products before the update, in it and behind it, and with none; of states with a grid, with
# earlier inputs, in several layers, and of those that begin with other numbers than zeros. Cells of
# a state that is no vector run in parallel, with all marks: tests/test_parallel.py.
ROWS = both_ways(
    table(
        rnnjax.Auto,
        ordinary=[
            *("gru", "gru-reset-before", "user-peephole", "user-step", "projection", "mingru"),
            *("lru", "convlstm-2d", "temporal-conv", "stack", "slstm", "learned-carry"),
        ],
        by_all=["lstm"],
    ),
    marked=True,
)


@pytest.fixture(scope="module")
def of_loop() -> dict[tuple[str, bool], Any]:
    """Outputs and gradients of the loop with all marks, by the cell and whether in reverse."""
    return {}


@pytest.mark.parametrize(("name", "method", "reverse"), ROWS)
@pytest.mark.usefixtures("x64")
def test_all_together(
    name: str, method: Any, reverse: bool, draw: Any, of_loop: Any, assert_close: Any
) -> None:
    of_loop[name, reverse] = check(
        name, method, reverse, ALL, draw(name), assert_close, of_loop.get((name, reverse))
    )


ALONE = table(rnnjax.Auto, names=["lstm", "mingru"], by_all=["lstm", "mingru"])
USUAL = {("lstm", Scan()), ("lstm", Fused()), ("mingru", rnnjax.Parallel())}


@pytest.mark.parametrize(
    ("name", "method", "one"),
    [
        *(
            pytest.param(*row.values, one, marks=[] if row.values in USUAL else pytest.mark.slow)
            for row in ALONE
            for one in ("mask", "resets")
        ),
        # Which are a mask before any method sees them.
        ("lstm", Fused(), "lengths"),
        pytest.param("mingru", rnnjax.Parallel(), "lengths", marks=pytest.mark.slow),
    ],
    ids=str,
)
@pytest.mark.usefixtures("x64")
def test_each_alone(name: str, method: Any, one: str, draw: Any, assert_close: Any) -> None:
    check(name, method, False, {one: ALL[one]}, draw(name), assert_close)


# By the programs of all marks, of which one more is compiled: that for one step.
@pytest.mark.parametrize(
    ("name", "method", "time"),
    [
        *(("lstm", method, TIME) for method in METHODS),
        ("gru", Fused(), TIME),
        ("gru", Fused(), 1),
        *(
            pytest.param("lstm", method, 1, marks=pytest.mark.slow)
            for method in (Scan(), Fused(keep_every=2))
        ),
    ],
    ids=str,
)
@pytest.mark.usefixtures("x64")
def test_any_marks(name: str, method: Any, time: int, draw: Any, assert_close: Any) -> None:
    rng = np.random.default_rng(time)
    for _ in range(20):
        marks = {
            "mask": rng.random((time, BATCH)) < 0.6,
            "resets": rng.random((time, BATCH)) < 0.4,
            "lengths": rng.integers(0, time + 1, BATCH),
        }
        check(name, method, in_reverse(name, marked=True), marks, draw(name, time), assert_close)


EVERY = (*sorted(ALL), "reset_carry")


# By the programs of all marks, in the direction of the cell.
MARKED = [*(("lstm", method) for method in METHODS), ("gru", Fused())]


@pytest.mark.parametrize(("name", "method"), MARKED, ids=str)
@pytest.mark.usefixtures("x64")
def test_whatever_is_masked_has_no_influence(
    name: str, method: Any, draw: Any, assert_close: Any
) -> None:
    (params, xs, *rest), weights = draw(name)
    run = compiled(name, method, in_reverse(name, marked=True), EVERY)
    valid = MASK & (np.arange(TIME)[:, None] < LENGTHS)
    hostile = np.where(valid[..., None], xs, np.nan)
    expected, actual = (run((params, x, *rest), weights, ALL) for x in (xs, hostile))
    assert_close(actual, expected, 1e-12)
    assert np.all(np.asarray(actual[1][1])[~valid] == 0)


# Where it is held is the same for the scan and the fast path.
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.usefixtures("x64")
def test_the_last_output_is_held(reverse: bool, draw: Any) -> None:
    (params, xs, carry, start), weights = draw("lstm")
    marks = {"mask": MASK, "resets": RESETS}
    (_, zeros), _ = loop("lstm", (params, xs, carry, start), weights, marks, reverse)
    last, expected = np.zeros(zeros.shape[1:]), {}
    for t in range(TIME)[:: -1 if reverse else 1]:
        border = RESETS[t] if not reverse else (RESETS[t + 1] if t < 4 else np.zeros(3, bool))
        last = np.where(border[:, None], 0, last)
        expected[t] = last = np.where(MASK[t][:, None], zeros[t], last)
    _, held = rnnjax.unroll(
        CELLS["lstm"], params, xs, carry, **marks, reset_carry=start, reverse=reverse,
        masked_outputs="last", method=Fused(),
    )  # fmt: skip
    np.testing.assert_allclose(held, [expected[t] for t in range(TIME)], atol=1e-12)


OF_ONE_OUTPUT = {
    "a carry that holds it": GRUCell(4),
    "an output of its own": CELLS["user-peephole"],
    "a stack": Stack([SimpleRNNCell(3), LSTMCell(4)]),
    "both directions": Bidirectional(GRUCell(3)),
    "zoneout": Regularized(LSTMCell(3), zoneout_hidden=0.5),
}


@pytest.mark.parametrize(
    ("name", "reverse"),
    [
        *((name, False) for name in OF_ONE_OUTPUT),
        ("both directions", True),
        *(
            pytest.param(name, True, marks=pytest.mark.slow)
            for name in OF_ONE_OUTPUT
            if name != "both directions"
        ),
    ],
)
def test_the_last_output_alone_is_that_of_the_last_valid_step(
    name: str, reverse: bool, random_like: Any
) -> None:
    """One has it in its carry, from which a reset behind the last valid step takes it."""
    cell = OF_ONE_OUTPUT[name]
    params = random_like(lambda: cell.init(jax.random.key(0), FEATURES), 1)
    xs = random_like(lambda: jnp.zeros((TIME, BATCH, FEATURES)), 2)

    @functools.partial(jax.jit, static_argnums=1)
    def run(params: Any, outputs: Any, marks: Any) -> Any:
        return rnnjax.unroll(cell, params, xs, outputs=outputs, reverse=reverse, **marks)

    marks = {"lengths": LENGTHS, "mask": MASK, "resets": RESETS}
    for given in ({}, {"lengths": LENGTHS}, {"mask": MASK}, marks):
        (carry, ys), (same, y) = (run(params, outputs, given) for outputs in ("all", "last"))
        jax.tree.map(np.testing.assert_array_equal, same, carry)
        valid = np.ones((TIME, BATCH), bool)
        if "lengths" in given:
            valid &= np.arange(TIME)[:, None] < LENGTHS
        if "mask" in given:
            valid &= MASK
        # The outputs of the direction that runs against the sequence stand behind the other's.
        ahead = 3 if name == "both directions" else y.shape[-1]
        expected = np.zeros_like(y)
        for own, features in ((reverse, slice(ahead)), (not reverse, slice(ahead, None))):
            for t in range(TIME)[:: -1 if own else 1]:
                last = np.where(valid[t, :, None], ys[t], expected)
                expected[:, features] = last[:, features]
        np.testing.assert_array_equal(y, expected)
    with pytest.raises(InvalidInputError, match='outputs must be "all" or "last", but is \'one\''):
        rnnjax.unroll(cell, params, xs, outputs="one")
    for given in ({}, {"lengths": 0 * LENGTHS}, {"mask": MASK[:0], "resets": RESETS[:0]}):
        nothing = rnnjax.unroll(cell, params, xs[:0], outputs="last", **given)[1]
        np.testing.assert_array_equal(nothing, np.zeros((BATCH, cell.output_size)))


def test_the_last_outputs_of_merged_directions_are_those_of_their_carries(random_like: Any) -> None:
    cell = rnnjax.LearnedCarry(Bidirectional(GRUCell(3), merge="sum"))
    params = random_like(lambda: cell.init(jax.random.key(0), FEATURES), 1)
    xs = random_like(lambda: jnp.zeros((TIME, BATCH, FEATURES)), 2)
    carry, y = rnnjax.unroll(cell, params, xs, outputs="last")
    np.testing.assert_array_equal(y, carry.forward.hidden + carry.backward.hidden)
    with pytest.raises(InvalidInputError, match="merged by 'sum' cannot be parted"):
        rnnjax.unroll(cell, params, xs, outputs="last", mask=MASK, resets=RESETS)


def blank(cell: rnnjax.Cell) -> Any:
    """Parameters of two features, all zero; an initialiser would have to be compiled."""
    shapes = jax.eval_shape(lambda: cell.init(jax.random.key(0), 2))
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


def test_no_steps_at_all() -> None:
    cell = Stack([Bidirectional(LSTMCell(4)), rnnjax.MinGRUCell(3)])
    params, nothing = blank(cell), np.zeros((0, 3), bool)
    start = jax.eval_shape(lambda: cell.initial_carry((3,)))
    start = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), start)
    for method in METHODS:
        carry, ys = rnnjax.unroll(
            cell, params, np.zeros((0, 3, 2), "f"), start, mask=nothing, resets=nothing,
            lengths=np.zeros(3, int), masked_outputs="last", method=method,
        )  # fmt: skip
        assert ys.shape == (0, 3, 3)
        assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(carry))


def test_no_rows_at_all() -> None:
    for method in METHODS:
        carry, ys = rnnjax.unroll(CELL, PARAMS, np.zeros((5, 0, 2), "f"), method=method)
        assert (carry.hidden.shape, ys.shape) == ((0, 4), (5, 0, 4))


def test_marks_that_are_known_inside_of_jit(random_like: Any) -> None:
    params = random_like(PARAMS, 1)

    @jax.jit
    def run(xs: jax.Array) -> jax.Array:
        return rnnjax.unroll(CELL, params, xs, lengths=LENGTHS, mask=MASK, resets=RESETS)[1]

    expected = rnnjax.unroll(CELL, params, XS, lengths=LENGTHS, mask=MASK, resets=RESETS)[1]
    np.testing.assert_allclose(run(XS), expected, atol=1e-6)
    with pytest.raises(rnnjax.InvalidInputError, match="go from 1 to 6"):
        jax.eval_shape(lambda xs: rnnjax.unroll(CELL, params, xs, lengths=np.array([1, 6, 2])), XS)
    # Lengths that are not known there count as no more than there are steps.
    more = jax.jit(lambda n: rnnjax.unroll(CELL, params, XS, lengths=n)[1])(np.array([5, 9, 2]))
    np.testing.assert_allclose(
        more, rnnjax.unroll(CELL, params, XS, lengths=np.array([5, 5, 2]))[1], atol=1e-6
    )


def test_one_hot_inputs_are_masked_too(random_like: Any, assert_close: Any) -> None:
    cell = LSTMCell(4)
    params = random_like(lambda: cell.init(jax.random.key(0), 6), 1)
    ids = np.array([[5, 0, 2], [1, 1, 4], [3, 2, 0], [9, 1, 0], [2, 5, 1]])
    unroll = functools.partial(
        rnnjax.unroll, cell, params, lengths=LENGTHS, mask=MASK, resets=RESETS
    )
    dense = (ids[..., None] == np.arange(6)).astype(np.float32)
    expected = unroll(dense, method=Scan())
    for method in METHODS:
        assert_close(unroll(rnnjax.OneHot(jnp.asarray(ids), 6), method=method), expected, 1e-6)


@pytest.mark.parametrize("method", [Fused(), pytest.param(Scan(), marks=pytest.mark.slow)], ids=str)
@pytest.mark.usefixtures("x64")
def test_second_derivatives_with_marks(method: Any, draw: Any) -> None:
    (params, xs, carry, start), weights = draw("lstm")

    def gradients(params: Any, xs: Any, start: Any) -> Any:
        def loss(params: Any, xs: Any, start: Any) -> jax.Array:
            out = rnnjax.unroll(
                CELLS["lstm"], params, xs, carry, **ALL, reset_carry=start, method=method
            )
            return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, weights, out)))

        return jax.grad(loss, argnums=(0, 1, 2))(params, xs, start)

    check_backwards(jax.jit(gradients), params, xs, start)


@pytest.mark.usefixtures("x64")
def test_forward_mode_with_marks(draw: Any, random_like: Any, assert_close: Any) -> None:
    arguments, weights = draw("gru")

    def run(params: Any, xs: Any, carry: Any, start: Any) -> Any:
        return rnnjax.unroll(
            CELLS["gru"], params, xs, carry, **ALL, reset_carry=start, method=Fused()
        )

    direction = random_like(arguments, 40, "float64")
    out, tangents = jax.jit(lambda a, d: jax.jvp(run, a, d))(arguments, direction)
    expected, gradients = loop("gru", arguments, weights, ALL, False)
    assert_close(out, expected, TOLERANCES["float64"])
    slope, expected_slope = (
        sum(map(np.vdot, jax.tree.leaves(ours), jax.tree.leaves(theirs)))
        for ours, theirs in ((weights, tangents), (gradients, direction))
    )
    np.testing.assert_allclose(slope, expected_slope, rtol=TOLERANCES["float64"])


# ---- both directions


# Other merges are compared in tests/test_reference.py.
@pytest.mark.usefixtures("x64")
def test_bidirectional_is_two_runs(draw: Any, assert_close: Any) -> None:
    given, weights = zip(*map(draw, ("lstm", "gru")), strict=True)
    (forward, a), (backward, b) = (
        loop(name, *of_cell, ALL, reverse)[0]
        for name, *of_cell, reverse in zip(
            ("lstm", "gru"), given, weights, (False, True), strict=True
        )
    )
    params, xs, carry, start = (rnnjax.Directions(*both) for both in zip(*given, strict=True))
    np.testing.assert_array_equal(xs.forward, xs.backward)
    layer = Bidirectional(CELLS["lstm"], CELLS["gru"])
    final, ys = rnnjax.unroll(
        layer, params, xs.forward, carry, **ALL, reset_carry=start, method=Fused()
    )
    expected = (forward, backward), np.concatenate([a, b], -1)
    assert_close((tuple(final), ys), expected, TOLERANCES["float64"])


def test_a_reversed_bidirectional_swaps_its_directions(random_like: Any, assert_close: Any) -> None:
    layer = Bidirectional(LSTMCell(4))
    params = random_like(lambda: layer.init(jax.random.key(0), 2), 1)
    xs = random_like(lambda: jnp.zeros((5, 3, 2)), 2)
    carry, ys = rnnjax.unroll(layer, params, xs, reverse=True)
    expected, flipped = rnnjax.unroll(layer, params, xs[::-1])
    assert_close((carry, ys), (expected, flipped[::-1]), 1e-6)


# ---- learned carry


def test_a_learned_carry_begins_every_sequence(random_like: Any, assert_close: Any) -> None:
    cell = Stack([rnnjax.LearnedCarry(LSTMCell(4)), Bidirectional(rnnjax.LearnedCarry(GRUCell(3)))])
    params = random_like(lambda: cell.init(jax.random.key(0), 2), 1)
    xs = random_like(lambda: jnp.zeros((5, 3, 2)), 2)
    zeros = jax.eval_shape(lambda: cell.initial_carry((3,)))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), zeros)

    @jax.jit
    def runs(params: Any) -> Any:
        unroll = functools.partial(rnnjax.unroll, cell, params, xs)
        start = cell.start(params, (3,))
        given = unroll(start, resets=RESETS, reset_carry=start, method=Scan())
        return unroll(resets=RESETS, method=Fused()), given

    assert_close(*runs(params), 1e-6)

    def behind_resets(params: Any) -> jax.Array:
        return rnnjax.unroll(cell, params, xs, zeros, resets=RESETS)[1].sum()

    first, second = jax.jit(jax.grad(behind_resets))(params)
    for gradient in (first, *second):
        assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(gradient["initial_carry"]))


# ---- noise


NOISY = {
    "recurrent": {"recurrent_dropout": 0.5},
    "zoneout": {"zoneout_hidden": 0.3, "zoneout_cell": 0.6},
    "weights": {"weight_drop": 0.5},
    "inputs": {"input_dropout": 0.4},
    "all": {
        "recurrent_dropout": 0.5,
        "zoneout_hidden": 0.3,
        "zoneout_cell": 0.6,
        "weight_drop": 0.5,
        "input_dropout": 0.4,
    },
}
# What is drawn before the loop, for weights and inputs, is in "all" too; cells differ in what they
# take of it. Without a key tests/test_reference.py has them all.
NOISY_ROWS = [
    *((name, "all", True) for name in ("projection", "user-gain", "mingru")),
    *(
        pytest.param(*row, marks=pytest.mark.slow)
        for row in [
            ("lstm", "all", True),
            ("lstm", "all", False),
            ("mingru", "all", False),
            ("gru", "zoneout", True),
            ("lstm", "recurrent", True),
            ("lstm", "zoneout", True),
            ("lstm", "weights", True),
            ("lstm", "inputs", True),
            ("gru", "recurrent", True),
            ("lstm-callable", "all", True),
            ("layernorm-lstm", "all", True),
            ("user-gain", "all", False),
        ]
    ),
]


def noisy(name: str, kind: str) -> Regularized:
    """The cell with what of the noise it can take."""
    cell, rates = CELLS[name], dict(NOISY[kind])
    if "cell" not in jax.eval_shape(cell.initial_carry)._fields:
        rates.pop("zoneout_cell", None)
    if cell.recurrent is None:
        del rates["recurrent_dropout"]
    if "recurrent_kernel" not in cell.parameters(1):
        del rates["weight_drop"]
    return Regularized(cell, **rates)


@pytest.mark.filterwarnings("ignore:the gradient of a Regularized is taken without its dropout")
@pytest.mark.parametrize(("name", "kind", "drawn"), NOISY_ROWS)
@pytest.mark.usefixtures("x64")
def test_noise_is_the_same_by_every_method(
    name: str, kind: str, drawn: bool, draw: Any, assert_close: Any
) -> None:
    cell = noisy(name, kind)
    arguments, weights = draw(name)
    key = jax.random.key(7) if drawn else None

    def run(method: rnnjax.Method, params: Any, xs: Any, carry: Any, start: Any) -> Any:
        return rnnjax.unroll(
            cell, params, xs, carry, **ALL, reset_carry=start, key=key, method=method
        )

    expected = jax.jit(weighted(functools.partial(run, Scan())))(arguments, weights)
    for method in METHODS[1:] if (name, kind) == ("projection", "all") else [Fused()]:
        actual = jax.jit(weighted(functools.partial(run, method)))(arguments, weights)
        assert_close(actual, expected, TOLERANCES["float64"])


def test_recurrent_dropout_by_hand(random_like: Any) -> None:
    """Dropout drops the same units of the state at all steps, only where it enters the product."""
    cell = SimpleRNNCell(6, activation="linear")
    params = random_like(lambda: cell.init(jax.random.key(0), 2), 1)
    xs = random_like(lambda: jnp.zeros((5, 3, 2)), 2)
    layer = Regularized(cell, recurrent_dropout=0.5)
    _, ys = rnnjax.unroll(layer, params, xs, key=jax.random.key(3))
    params, xs, ys = jax.device_get((params, xs, ys))
    masks = []
    for t in range(1, 5):  # y = x W + b + (m h) U, solved for m h
        rest = ys[t] - xs[t] @ params["kernel"] - params["bias"]
        dropped = rest @ np.linalg.inv(params["recurrent_kernel"])
        masks.append(dropped / ys[t - 1])
    for mask in masks:
        np.testing.assert_allclose(mask, masks[0], atol=1e-2)
    rounded = np.round(masks[0])
    np.testing.assert_allclose(masks[0], rounded, atol=1e-2)
    assert set(rounded.ravel().tolist()) == {0.0, 2.0}
    assert not np.all(rounded == rounded[0])  # each row has its own


def test_zoneout_keeps_units(random_like: Any) -> None:
    cell = LSTMCell(50)
    params = random_like(lambda: cell.init(jax.random.key(0), 2), 1)
    xs = random_like(lambda: jnp.zeros((40, 3, 2)), 2)
    layer = Regularized(cell, zoneout_hidden=0.25)
    _, ys = rnnjax.unroll(layer, params, xs, key=jax.random.key(3))
    xs, ys = jax.device_get((xs, ys))
    kept = ys[1:] == ys[:-1]
    assert abs(kept.mean() - 0.25) < 0.02
    assert abs(kept[0].mean() - kept[-1].mean()) < 0.15
    assert not np.all(kept == kept[0])
    # Without a key, the expectation: a quarter of the old and three quarters of the new.
    carry = jax.device_get(random_like(lambda: cell.initial_carry((3,)), 3))
    (hidden, _), y = jax.jit(layer.step)(params, carry, xs[0])
    (new, _), _ = jax.jit(cell.step)(params, carry, xs[0])
    np.testing.assert_allclose(hidden, 0.25 * carry.hidden + 0.75 * new, atol=1e-6)
    np.testing.assert_allclose(y, hidden)
    carried, ys = rnnjax.unroll(layer, params, xs[:1], carry)
    np.testing.assert_allclose(carried.hidden, hidden, atol=1e-6)


def test_weight_drop_drops_weights(random_like: Any, assert_close: Any) -> None:
    cell = GRUCell(5)
    params = random_like(lambda: cell.init(jax.random.key(0), 2), 1)
    xs = random_like(lambda: jnp.zeros((5, 3, 2)), 2)
    layer = Regularized(cell, weight_drop=0.5)

    def loss(params: Any) -> jax.Array:
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
def test_dropout_between_the_layers_of_a_stack(
    per: Any, random_like: Any, assert_close: Any
) -> None:
    linear = SimpleRNNCell(4, activation="linear", use_bias=False)
    stack = Stack([linear, linear, linear], dropout=rnnjax.Dropout(0.5, per=per))
    identity = {"kernel": np.eye(4, dtype="f"), "recurrent_kernel": np.zeros((4, 4), "f")}
    xs = random_like(lambda: jnp.zeros((6, 3, 4)), 2)
    _, ys = rnnjax.unroll(stack, (identity,) * 3, xs, key=jax.random.key(0))
    ratio = np.round(np.asarray(ys) / np.asarray(xs), 3)
    assert set(ratio.ravel()) == {0.0, 4.0}  # two layers' outputs are dropped, not the third's
    assert np.all(ratio == ratio[0]) == (per == "sequence")
    assert_close(rnnjax.unroll(stack, (identity,) * 3, xs)[1], xs, 1e-6)


def test_each_cell_of_a_stack_draws_its_own(random_like: Any) -> None:
    layer = Regularized(SimpleRNNCell(200, activation="linear", use_bias=False), input_dropout=0.5)
    identity = {"kernel": np.eye(200, dtype="f"), "recurrent_kernel": np.zeros((200, 200), "f")}
    xs = np.ones((2, 1, 200), "f")
    _, ys = rnnjax.unroll(Stack([layer, layer]), (identity,) * 2, xs, key=jax.random.key(0))
    assert 0.15 < (np.asarray(ys) != 0).mean() < 0.35
    other = rnnjax.unroll(Stack([layer, layer]), (identity,) * 2, xs, key=jax.random.key(1))[1]
    assert np.any(np.asarray(other) != np.asarray(ys))


def test_each_direction_draws_its_own() -> None:
    cell = SimpleRNNCell(200, activation="linear", use_bias=False)
    layer = Bidirectional(Regularized(cell, input_dropout=0.5))
    identity = {"kernel": np.eye(200, dtype="f"), "recurrent_kernel": np.zeros((200, 200), "f")}
    xs = np.ones((1, 1, 200), "f")
    _, ys = rnnjax.unroll(layer, (identity, identity), xs, key=jax.random.key(0))
    forward, backward = np.split(np.asarray(ys) != 0, 2, axis=-1)
    assert 0.35 < (forward == backward).mean() < 0.65


# ---- streaming


@pytest.mark.parametrize(
    "method", [pytest.param(Scan(), marks=pytest.mark.slow), *METHODS[1:]], ids=str
)
@pytest.mark.usefixtures("x64")
def test_pieces_of_any_size_equal_the_whole(method: Any, draw: Any, assert_close: Any) -> None:
    (params, xs, carry, start), weights = draw("lstm", time=7)
    mask = np.concatenate([MASK, MASK[:2]])
    resets = np.concatenate([RESETS, RESETS[:2]])
    unroll = functools.partial(rnnjax.unroll, CELLS["lstm"], params, reset_carry=start)
    marks = {"mask": mask, "resets": resets}
    expected, _ = loop("lstm", (params, xs, carry, start), weights, marks, False)
    for sizes in ([1] * 7, [3, 1, 3]):
        piece_carry, parts, begin = carry, [], 0
        for size in sizes:
            part = slice(begin, begin + size)
            piece_carry, ys = unroll(
                xs[part], piece_carry, mask=mask[part], resets=resets[part], method=method
            )
            parts.append(ys)
            begin += size
        assert_close((piece_carry, np.concatenate(parts)), expected, 1e-10)


# ---- bad input


CELL = LSTMCell(4)
PARAMS = blank(CELL)
XS = np.ones((5, 3, 2), np.float32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lengths": [5, 6, 1]}, r"between 0 and the 5 steps of xs, but go from 1 to 6"),
        ({"lengths": [5, -1, 1]}, r"go from -1 to 5"),
        ({"lengths": [5, 1]}, r"lengths must have shape \(3,\).* has \(2,\)"),
        ({"lengths": [5.0, 1.0, 2.0]}, r"lengths must be integers.* float"),
        ({"lengths": [True, False, True]}, r"lengths must be integers.* bool"),
        ({"mask": np.ones((3, 5), bool)}, r"mask must have shape \(5, 3\).* has \(3, 5\)"),
        ({"mask": np.ones((5, 3, 2), bool)}, r"mask must have shape \(5, 3\)"),
        ({"mask": np.ones((5, 3), "f")}, r"mask must be booleans.*float32.*mask.astype\(bool\)"),
        ({"resets": np.ones((5, 3), np.int32)}, r"resets must be booleans.*int32"),
        ({"resets": np.ones((4, 3), bool)}, r"resets must have shape \(5, 3\).* has \(4, 3\)"),
        (
            {"carry": rnnjax.LSTMCarry(*np.zeros((2, 2, 4), "f"))},
            r"carry.hidden must have shape \(3, 4\)",
        ),
        (
            {"reset_carry": rnnjax.LSTMCarry(*np.zeros((2, 2, 4), "f"))},
            r"reset_carry.hidden must have shape \(3, 4\)",
        ),
        ({"reset_carry": np.zeros(4, "f")}, r"reset_carry must be shaped like"),
        ({"masked_outputs": "hold"}, r'must be "zero" or "last", but is \'hold\''),
        ({"key": 3}, r"key must be a JAX random key"),
    ],
)
def test_bad_arguments(arguments: Any, message: str) -> None:
    with pytest.raises(rnnjax.InvalidInputError, match=message):
        rnnjax.unroll(CELL, PARAMS, XS, **arguments)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Regularized(Stack([CELL])), "wrap each cell by itself"),
        (
            lambda: Regularized(CELL, zoneout_cell=1.0),
            "zoneout_cell must be at least 0 and below 1",
        ),
        (lambda: Regularized(GRUCell(3), zoneout_cell=0.1), "a field 'cell'"),
        (lambda: rnnjax.Dropout(-0.1), "rate must be at least 0"),
        (lambda: rnnjax.Dropout(0.1, per="row"), "per must be"),
        (lambda: Stack([CELL], dropout=0.1), r"must be rnnjax.Dropout\(rate\)"),
        (lambda: Bidirectional(CELL, GRUCell(3), merge="sum"), "outputs of one size"),
        (lambda: Bidirectional(CELL, merge="cat"), "merge must be one of"),
        (lambda: Bidirectional(LSTMCell), "Bidirectional needs cells"),
        (lambda: rnnjax.LearnedCarry(LSTMCell), "LearnedCarry needs a cell"),
        (lambda: rnnjax.ConvLSTMCell(3, kernel_shape=(3, 3, 3)), "one or two sizes"),
        (lambda: rnnjax.ProjectionLSTMCell(3, proj_size=0), "proj_size must be a positive"),
    ],
)
def test_bad_layers(make: Any, message: str) -> None:
    with pytest.raises(rnnjax.InvalidInputError, match=message):
        make()


def test_what_cannot_run_says_so() -> None:
    layer, key = Bidirectional(CELL), jax.random.key(0)
    with pytest.raises(rnnjax.InvalidInputError, match="cannot run step by step"):
        jax.eval_shape(lambda: layer.step(blank(layer), layer.initial_carry((3,)), XS[0]))
    with pytest.raises(rnnjax.InvalidInputError, match=r"must be Directions\(forward, backward\)"):
        rnnjax.unroll(layer, PARAMS, XS)
    for cell, message in [
        (OwnStepCell(4), "cannot reach inside of OwnStepCell"),
        (GRUCell(4, reset_after=False), "needs a product of the state before the update"),
        (rnnjax.MinGRUCell(4), "needs a product of the state before the update"),
    ]:
        noisy = Regularized(cell, recurrent_dropout=0.1)
        with pytest.raises(rnnjax.InvalidInputError, match=message):
            rnnjax.unroll(noisy, blank(noisy), XS, key=key)
    elementwise = Regularized(rnnjax.MinGRUCell(4), weight_drop=0.1)
    with pytest.raises(rnnjax.InvalidInputError, match="needs a recurrent_kernel"):
        rnnjax.unroll(elementwise, blank(elementwise), XS, key=key)
    dropped = Regularized(CELL, input_dropout=0.1)
    ids = rnnjax.OneHot(np.zeros((5, 3), int), 2)
    with pytest.raises(rnnjax.InvalidInputError, match="inputs are OneHot; set ids to -1"):
        rnnjax.unroll(dropped, PARAMS, ids, key=key)
    conv = rnnjax.ConvLSTMCell(3)
    with pytest.raises(rnnjax.InvalidInputError, match=r"xs has 3 features, but params .* 2"):
        rnnjax.unroll(conv, blank(conv), np.ones((5, 3, 4, 4, 3), "f"))


@pytest.mark.parametrize(("name", "method", "reverse"), ROWS)
@pytest.mark.usefixtures("x64")
def test_a_reset_cuts_a_nan_off(
    name: str, method: Any, reverse: bool, draw: Any, assert_close: Any
) -> None:
    """One row has a NaN in the inputs of the step that runs first."""
    (params, xs, *rest), weights = draw(name)
    steps, rows = xs.shape[:2]
    first, border = (steps - 1, steps - 1) if reverse else (0, 1)
    # The program of all marks is compiled already.
    marks = {"mask": np.ones((steps, rows), bool), "resets": np.zeros((steps, rows), bool)}
    marks["resets"][border, 0], marks["lengths"] = True, np.full(rows, steps)
    run, hostile = compiled(name, method, reverse, (*sorted(ALL), "reset_carry")), np.array(xs)
    hostile[first, 0] = np.nan
    (carry, ys), (expected, others) = (
        run((params, given, *rest), weights, marks)[0] for given in (hostile, xs)
    )
    ys, others = np.array(ys), np.array(others)
    ys[first, 0] = others[first, 0] = 0
    assert_close((carry, ys), (expected, others), 1e-12)


def test_a_gradient_without_the_noise_of_training_comes_with_a_warning() -> None:
    cell = Stack([Regularized(LSTMCell(3), recurrent_dropout=0.5), LSTMCell(3)])
    params, xs = blank(cell), np.ones((4, 3, 2), np.float32)

    def loss(params: Any, key: Any) -> Any:
        return rnnjax.unroll(cell, params, xs, key=key)[1].sum()

    jax.eval_shape(loss, params, None)  # prediction says nothing, and so does training with a key
    jax.eval_shape(jax.grad(loss), params, jax.random.key(1))
    with pytest.warns(UserWarning, match="without its dropout.*given no key"):
        jax.eval_shape(jax.grad(loss), params, None)
