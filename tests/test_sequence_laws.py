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
    BROAD,
    CELLS,
    FEATURES,
    TIME,
    TOLERANCES,
    OwnStepCell,
    both_ways,
    check_backwards,
    grid,
    loop,
    table,
    weighted,
)
from jax.test_util import check_grads

import rnnjax
from rnnjax import Bidirectional, Fused, GRUCell, LSTMCell, Regularized, Scan, SimpleRNNCell, Stack

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


# Cells of a state that is no vector run in parallel, with all marks: tests/test_parallel.py.
ROWS = both_ways(
    table(
        rnnjax.Auto,
        ordinary=[*BROAD, "temporal-conv", "slstm", "learned-carry"],
        by_all=["lstm", "gru", "user-peephole", "mingru"],
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


@pytest.mark.parametrize(
    ("name", "method", "one"),
    [
        *((*row.values, one) for row in ALONE for one in ("mask", "resets")),
        # Which are a mask before any method sees them.
        ("lstm", Fused(), "lengths"),
        ("mingru", rnnjax.Parallel(), "lengths"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("x64")
def test_each_alone(name: str, method: Any, one: str, draw: Any, assert_close: Any) -> None:
    check(name, method, False, {one: ALL[one]}, draw(name), assert_close)


# Of many rows with marks drawn for each, none of which sees another; and of all marks of one step.
ROWS_DRAWN = 100


@pytest.mark.parametrize(("time", "reverse"), [(6, False), (6, True), (1, True)])
@pytest.mark.parametrize(
    ("name", "method"), [("gru", Scan()), ("gru", Fused()), ("lstm", Fused(keep_every=4))]
)
@pytest.mark.usefixtures("x64")
def test_any_marks(
    name: str, method: Any, time: int, reverse: bool, draw: Any, assert_close: Any
) -> None:
    rng = np.random.default_rng(time)
    marks = {
        "mask": rng.random((time, ROWS_DRAWN)) < 0.6,
        "resets": rng.random((time, ROWS_DRAWN)) < 0.4,
        "lengths": rng.integers(0, time + 1, ROWS_DRAWN),
    }
    check(name, method, reverse, marks, draw(name, time, ROWS_DRAWN), assert_close)


@pytest.mark.parametrize(
    ("method", "reverse"),
    [
        (Scan(), False),
        (Fused(), False),
        (Fused(), True),
        (Fused(keep_every=2), True),
        pytest.param(Scan(), True, marks=pytest.mark.slow),
        pytest.param(Fused(keep_every=2), False, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_law_3_a_reset_is_a_fresh_start(method: Any, reverse: bool, random_like: Any) -> None:
    """For that row alone; and no gradient crosses it."""
    cell = LSTMCell(4)
    params = random_like(lambda: cell.init(jax.random.key(0), 2), 1)
    xs = np.asarray(random_like(lambda: jnp.zeros((6, 2, 2)), 2))
    carry = jax.device_get(random_like(lambda: cell.initial_carry((2,)), 3))
    resets = np.zeros((6, 2), bool)
    resets[4, 1] = True
    unroll = functools.partial(rnnjax.unroll, cell, params, reverse=reverse)
    cut = (slice(None, 4), slice(4, None)) if not reverse else (slice(4, None), slice(None, 4))

    @jax.jit
    def after(xs: Any, carry: Any) -> Any:
        def run(xs: Any, carry: Any) -> Any:
            ys = unroll(xs, carry, resets=resets, method=method)[1]
            return ys[cut[1], 1].sum(), ys

        return jax.grad(run, (0, 1), has_aux=True)(xs, carry)

    (d_xs, d_carry), ys = jax.device_get(after(xs, carry))
    # The others by the scan, whatever the method.
    _, plain = unroll(xs, carry, method=Scan())
    np.testing.assert_allclose(ys[:, 0], plain[:, 0], atol=1e-6)
    row = jax.tree.map(lambda leaf: leaf[1:], carry)
    _, first = unroll(xs[cut[0], 1:], row, method=Scan())
    _, second = unroll(xs[cut[1], 1:], method=Scan())
    np.testing.assert_allclose(ys[cut[0], 1:], first, atol=1e-6)
    np.testing.assert_allclose(ys[cut[1], 1:], second, atol=1e-6)
    assert np.all(d_xs[cut[0]] == 0)
    assert np.all(d_xs[cut[1], 1] != 0)
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(d_carry))


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_whatever_is_masked_has_no_influence(
    method: Any, random_like: Any, assert_close: Any
) -> None:
    cell = Stack([LSTMCell(4), GRUCell(3)])
    params = random_like(lambda: cell.init(jax.random.key(0), 2), 1)
    xs = random_like(lambda: jnp.zeros((5, 2, 2)), 2)
    mask = np.ones((5, 2), bool)
    mask[1, 0] = mask[3:, 1] = False

    def loss(params: Any, xs: Any) -> jax.Array:
        return (rnnjax.unroll(cell, params, xs, mask=mask, method=method)[1] ** 2).sum()

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    hostile = np.where(mask[..., None], xs, np.float32(np.nan))
    expected, actual = run(params, xs), run(params, hostile)
    assert_close(actual, expected, 1e-6)
    assert np.all(np.asarray(actual[1][1])[~mask] == 0)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_masked_sequence_is_the_shorter_one(
    method: Any, random_like: Any, assert_close: Any
) -> None:
    cell = GRUCell(4)
    params = random_like(lambda: cell.init(jax.random.key(0), 2), 1)
    xs = np.asarray(random_like(lambda: jnp.zeros((6, 2, 2)), 2))
    kept = np.array([0, 2, 3, 5])
    mask = np.zeros((6, 2), bool)
    mask[kept] = True
    for reverse in (False, True):
        unroll = functools.partial(rnnjax.unroll, cell, params, reverse=reverse)
        carry, ys = unroll(xs, mask=mask, method=method)
        expected, short = unroll(xs[kept], method=Scan())
        assert_close((carry, np.asarray(ys)[kept]), (expected, short), 1e-6)


@pytest.mark.parametrize("reverse", [False, True])
def test_the_last_output_is_held(reverse: bool, random_like: Any) -> None:
    cell = LSTMCell(4)
    params = random_like(lambda: cell.init(jax.random.key(0), 2), 1)
    xs, carry = (
        random_like(lambda: jnp.zeros((5, 3, 2)), 2),
        random_like(lambda: cell.initial_carry((3,)), 3),
    )
    unroll = functools.partial(
        rnnjax.unroll, cell, params, xs, carry, mask=MASK, resets=RESETS, reverse=reverse
    )
    zeros, last, expected = np.asarray(unroll(method=Scan())[1]), np.zeros((3, 4), np.float32), {}
    for t in range(5)[::-1] if reverse else range(5):
        border = RESETS[t] if not reverse else (RESETS[t + 1] if t < 4 else np.zeros(3, bool))
        last = np.where(border[:, None], 0, last)
        expected[t] = last = np.where(MASK[t][:, None], zeros[t], last)
    for method in METHODS:
        _, held = unroll(method=method, masked_outputs="last")
        np.testing.assert_allclose(held, [expected[t] for t in range(5)], atol=1e-6)


def test_marks_for_all_rows_and_without_a_batch(random_like: Any, assert_close: Any) -> None:
    cell = GRUCell(4)
    params = random_like(lambda: cell.init(jax.random.key(0), 2), 1)
    xs = np.asarray(random_like(lambda: jnp.zeros((5, 3, 2)), 2))
    one, all_ = MASK[:, 0], np.repeat(MASK[:, :1], 3, axis=1)
    resets, resets_all = RESETS[:, 0], np.repeat(RESETS[:, :1], 3, axis=1)
    unroll = functools.partial(rnnjax.unroll, cell, params)
    whole = unroll(xs, mask=all_, resets=resets_all, method=Scan())
    cut = unroll(xs, mask=all_, resets=resets_all, lengths=np.full(3, 4), method=Scan())
    second = jax.tree.map(lambda a: np.asarray(a)[..., 1, :], cut)
    for method in METHODS:
        assert_close(unroll(xs, mask=one, resets=resets, method=method), whole, 1e-6)
        alone = unroll(xs[:, 1], mask=one, resets=resets, lengths=4, method=method)
        assert_close(alone, second, 1e-6)


def test_no_steps_at_all() -> None:
    cell = Stack([Bidirectional(LSTMCell(4)), rnnjax.MinGRUCell(3)])
    params = cell.init(jax.random.key(0), 2)
    nothing = jnp.zeros((0, 3), bool)
    start = cell.initial_carry((3,))
    for method in METHODS:
        carry, ys = rnnjax.unroll(
            cell, params, jnp.zeros((0, 3, 2)), start, mask=nothing, resets=nothing,
            lengths=np.zeros(3, int), masked_outputs="last", method=method,
        )  # fmt: skip
        assert ys.shape == (0, 3, 3)
        assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(carry))


def test_no_rows_at_all() -> None:
    params = CELL.init(jax.random.key(0), 2)
    for method in METHODS:
        carry, ys = rnnjax.unroll(CELL, params, jnp.zeros((5, 0, 2)), method=method)
        assert (carry.hidden.shape, ys.shape) == ((0, 4), (5, 0, 4))


def test_marks_that_are_known_inside_of_jit() -> None:
    params = CELL.init(jax.random.key(0), 2)

    @jax.jit
    def run(xs: jax.Array) -> jax.Array:
        return rnnjax.unroll(CELL, params, xs, lengths=LENGTHS, mask=MASK, resets=RESETS)[1]

    expected = rnnjax.unroll(CELL, params, XS, lengths=LENGTHS, mask=MASK, resets=RESETS)[1]
    np.testing.assert_allclose(run(XS), expected, atol=1e-6)
    with pytest.raises(rnnjax.InvalidInputError, match="go from 1 to 6"):
        jax.jit(lambda xs: rnnjax.unroll(CELL, params, xs, lengths=np.array([1, 6, 2])))(XS)
    # Lengths that are not known there count as no more than there are steps.
    more = jax.jit(lambda n: rnnjax.unroll(CELL, params, XS, lengths=n)[1])(jnp.array([5, 9, 2]))
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


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.usefixtures("x64")
def test_vmap_with_marks_equals_batching(method: Any, draw: Any, assert_close: Any) -> None:
    (params, xs, carry, start), _ = draw("lstm")

    def run(method: Any, xs: Any, carry: Any, start: Any, marks: Any) -> Any:
        return rnnjax.unroll(
            CELLS["lstm"], params, xs, carry, **marks, reset_carry=start, method=method
        )

    axes = 1, 0, 0, {"mask": 1, "resets": 1, "lengths": 0}
    rows = jax.jit(jax.vmap(functools.partial(run, method), axes, (0, 1)))
    rest = xs, carry, start, ALL
    assert_close(rows(*rest), run(Scan(), *rest), TOLERANCES["float64"])


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
def test_forward_mode_with_marks(draw: Any) -> None:
    (params, xs, carry, start), _ = draw("gru")

    def run(params: Any, xs: Any, carry: Any, start: Any) -> Any:
        return rnnjax.unroll(
            CELLS["gru"], params, xs, carry, **ALL, reset_carry=start, method=Scan()
        )

    check_grads(jax.jit(run), (params, xs, carry, start), order=1, modes=("fwd", "rev"))


@pytest.mark.parametrize("method", METHODS[:2], ids=str)
def test_checkpoint_over_marks(method: Any, random_like: Any, assert_close: Any) -> None:
    cell = GRUCell(4)
    params = random_like(lambda: cell.init(jax.random.key(0), 2), 1)
    xs = random_like(lambda: jnp.zeros((5, 3, 2)), 2)

    def loss(method: Any, params: Any, xs: Any) -> jax.Array:
        return (rnnjax.unroll(cell, params, xs, **ALL, method=method)[1] ** 2).sum()

    plain = jax.jit(jax.value_and_grad(functools.partial(loss, Scan()), (0, 1)))
    again = jax.checkpoint(functools.partial(loss, method))
    actual = jax.jit(jax.value_and_grad(again, (0, 1)))(params, xs)
    assert_close(actual, plain(params, xs), 1e-6)


# ---- both directions


@pytest.mark.parametrize("merge", ["concat", "sum", "mul", "average"])
@pytest.mark.usefixtures("x64")
def test_bidirectional_is_two_runs(merge: Any, random_like: Any, assert_close: Any) -> None:
    layer = Bidirectional(LSTMCell(4), GRUCell(4), merge=merge)
    params = random_like(lambda: layer.init(jax.random.key(0), 2), 1, "float64")
    xs = random_like(lambda: jnp.zeros((5, 3, 2)), 2, "float64")
    carry = random_like(lambda: layer.initial_carry((3,)), 3, "float64")
    run = functools.partial(rnnjax.unroll, **ALL)
    by_scan = functools.partial(run, method=Scan())
    forward, a = by_scan(LSTMCell(4), params.forward, xs, carry.forward)
    backward, b = by_scan(GRUCell(4), params.backward, xs, carry.backward, reverse=True)
    a, b = np.asarray(a), np.asarray(b)
    expected = {
        "concat": np.concatenate([a, b], -1),
        "sum": a + b,
        "mul": a * b,
        "average": (a + b) / 2,
    }[merge]
    for method in METHODS if merge == "concat" else [Fused()]:
        final, ys = run(layer, params, xs, carry, method=method)
        assert_close((tuple(final), ys), ((forward, backward), expected), 1e-10)


@pytest.mark.parametrize("method", METHODS[1:2], ids=str)
@pytest.mark.usefixtures("x64")
def test_bidirectional_in_a_stack_and_of_stacks(
    method: Any, random_like: Any, assert_close: Any
) -> None:
    inner = Stack([SimpleRNNCell(3), LSTMCell(4)])
    stack = Stack([Bidirectional(inner), GRUCell(3)])
    params = random_like(lambda: stack.init(jax.random.key(0), 2), 1, "float64")
    xs = random_like(lambda: jnp.zeros((5, 3, 2)), 2, "float64")

    def by_hand(params: Any, xs: Any, **more: Any) -> jax.Array:
        def run(cell: Any, params: Any, xs: Any, reverse: bool = False) -> jax.Array:
            return rnnjax.unroll(cell, params, xs, reverse=reverse, method=Scan(), **more)[1]

        first, second = params
        xs = jnp.concatenate(
            [run(inner, first.forward, xs), run(inner, first.backward, xs, reverse=True)], -1
        )
        return run(GRUCell(3), second, xs)

    def loss(run: Any, params: Any, xs: Any) -> jax.Array:
        return jnp.sin(3 * run(params, xs)).sum()

    unroll = functools.partial(rnnjax.unroll, stack, method=method, **ALL)
    plain = functools.partial(by_hand, **ALL)
    assert_close(
        *(
            jax.jit(jax.value_and_grad(functools.partial(loss, run), (0, 1)))(params, xs)
            for run in (lambda *arguments: unroll(*arguments)[1], plain)
        ),
        1e-10,
    )


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
    start = cell.start(params, (3,))
    unroll = functools.partial(rnnjax.unroll, cell, params, xs)
    plain = unroll(start, method=Scan())
    cut = unroll(start, resets=RESETS, reset_carry=start, method=Scan())
    for method in METHODS:
        assert_close(unroll(method=method), plain, 1e-6)
        assert_close(unroll(resets=RESETS, method=method), cut, 1e-6)
    zeros = cell.initial_carry((3,))
    (first, second) = jax.jit(
        jax.grad(lambda p: rnnjax.unroll(cell, p, xs, zeros, resets=RESETS)[1].sum())
    )(params)
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
# take of it.
NOISY_ROWS = [
    ("gru", "zoneout", True),
    *((name, "all", True) for name in ("lstm", "projection", "user-gain", "mingru")),
    *((name, "all", False) for name in ("lstm", "mingru")),
    *(
        pytest.param(*row, marks=pytest.mark.slow)
        for row in [
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
    if "recurrent_kernel" not in cell.parameters(1) or name in ("indrnn",):
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
    for method in METHODS[1:] if (name, kind) == ("lstm", "all") else [Fused()]:
        actual = jax.jit(weighted(functools.partial(run, method)))(arguments, weights)
        assert_close(actual, expected, TOLERANCES["float64"])


def test_recurrent_dropout_by_hand(random_like: Any) -> None:
    """The same units of the state are dropped at all steps, where it enters the product alone."""
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


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.usefixtures("x64")
def test_pieces_of_any_size_equal_the_whole(method: Any, draw: Any, assert_close: Any) -> None:
    (params, xs, carry, start), _ = draw("lstm", time=7)
    cell, xs = CELLS["lstm"], np.asarray(xs)
    mask = np.concatenate([MASK, MASK[:2]])
    resets = np.concatenate([RESETS, RESETS[:2]])
    unroll = functools.partial(rnnjax.unroll, cell, params, reset_carry=start)
    expected = unroll(xs, carry, mask=mask, resets=resets, method=Scan())
    for sizes in ([1] * 7, [3, 4], [1, 3, 3]):
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
PARAMS = CELL.init(jax.random.key(0), 2)
XS = jnp.ones((5, 3, 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lengths": [5, 6, 1]}, r"between 0 and the 5 steps of xs, but go from 1 to 6"),
        ({"lengths": [5, -1, 1]}, r"go from -1 to 5"),
        ({"lengths": [5, 1]}, r"lengths must have shape \(3,\).* has \(2,\)"),
        ({"lengths": [5.0, 1.0, 2.0]}, r"lengths must be integers.* float"),
        ({"lengths": [True, False, True]}, r"lengths must be integers.* bool"),
        ({"mask": jnp.ones((3, 5), bool)}, r"mask must have shape \(5, 3\).* has \(3, 5\)"),
        ({"mask": jnp.ones((5, 3, 2), bool)}, r"mask must have shape \(5, 3\)"),
        ({"mask": jnp.ones((5, 3))}, r"mask must be booleans.*float32.*mask.astype\(bool\)"),
        ({"resets": jnp.ones((5, 3), int)}, r"resets must be booleans.*int32"),
        ({"resets": jnp.ones((4, 3), bool)}, r"resets must have shape \(5, 3\).* has \(4, 3\)"),
        ({"carry": CELL.initial_carry((2,))}, r"carry.hidden must have shape \(3, 4\)"),
        ({"reset_carry": CELL.initial_carry((2,))}, r"reset_carry.hidden must have shape \(3, 4\)"),
        ({"reset_carry": jnp.zeros(4)}, r"reset_carry must be shaped like"),
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
    layer = Bidirectional(CELL)
    params = layer.init(jax.random.key(0), 2)
    with pytest.raises(rnnjax.InvalidInputError, match="cannot run step by step"):
        layer.step(params, layer.initial_carry((3,)), XS[0])
    with pytest.raises(rnnjax.InvalidInputError, match=r"must be Directions\(forward, backward\)"):
        rnnjax.unroll(layer, PARAMS, XS)
    for cell, message in [
        (OwnStepCell(4), "cannot reach inside of OwnStepCell"),
        (GRUCell(4, reset_after=False), "needs a product of the state before the update"),
        (rnnjax.MinGRUCell(4), "needs a product of the state before the update"),
    ]:
        noisy = Regularized(cell, recurrent_dropout=0.1)
        with pytest.raises(rnnjax.InvalidInputError, match=message):
            rnnjax.unroll(noisy, noisy.init(jax.random.key(0), 2), XS, key=jax.random.key(0))
    elementwise = Regularized(rnnjax.MinGRUCell(4), weight_drop=0.1)
    with pytest.raises(rnnjax.InvalidInputError, match="needs a recurrent_kernel"):
        rnnjax.unroll(
            elementwise, elementwise.init(jax.random.key(0), 2), XS, key=jax.random.key(0)
        )
    dropped = Regularized(CELL, input_dropout=0.1)
    ids = rnnjax.OneHot(jnp.zeros((5, 3), int), 2)
    with pytest.raises(rnnjax.InvalidInputError, match="inputs are OneHot; set ids to -1"):
        rnnjax.unroll(dropped, PARAMS, ids, key=jax.random.key(0))
    conv = rnnjax.ConvLSTMCell(3)
    with pytest.raises(rnnjax.InvalidInputError, match=r"xs has 3 features, but params .* 2"):
        rnnjax.unroll(conv, conv.init(jax.random.key(0), 2), jnp.ones((5, 3, 4, 4, 3)))


# Of a step of a user's own nobody knows whether rows see each other.
@pytest.mark.parametrize(
    ("name", "method", "reverse"), [row for row in ROWS if row.values[0] != "user-step"]
)
@pytest.mark.usefixtures("x64")
def test_a_reset_cuts_a_nan_off(
    name: str, method: Any, reverse: bool, draw: Any, assert_close: Any
) -> None:
    """All gradients are those with any other numbers where the loss leaves out what they did.

    One row has a NaN in the inputs of the step that runs first, another begins with one and is
    masked throughout.
    """
    (params, xs, carry, start), (of_carry, of_ys) = draw(name)
    steps, rows = xs.shape[:2]
    first, border = (steps - 1, steps - 1) if reverse else (0, 1)
    marks = {"mask": np.ones((steps, rows), bool), "resets": np.zeros((steps, rows), bool)}
    marks["mask"][:, 1], marks["resets"][border, 0] = False, True
    # The program of all of them is compiled already.
    marks["lengths"] = np.full(rows, steps)
    weights = jax.tree.map(np.zeros_like, of_carry), np.array(of_ys)
    weights[1][first, 0] = 0
    gradients = compiled(name, method, reverse, (*sorted(ALL), "reset_carry"))

    def spoilt(leaf: Any, at: Any) -> Any:
        leaf = np.array(leaf)
        leaf[at] = np.nan
        return leaf

    hostile = spoilt(xs, (first, 0)), jax.tree.map(lambda leaf: spoilt(leaf, 1), carry)
    expected = gradients((params, xs, carry, start), weights, marks)[1]
    assert_close(gradients((params, *hostile, start), weights, marks)[1], expected, 1e-12)


def test_a_gradient_without_the_noise_of_training_comes_with_a_warning() -> None:
    cell = Stack([Regularized(LSTMCell(3), recurrent_dropout=0.5), LSTMCell(3)])
    params, xs = cell.init(jax.random.key(0), 2), jnp.ones((4, 3, 2))

    def loss(params: Any, key: Any) -> Any:
        return rnnjax.unroll(cell, params, xs, key=key)[1].sum()

    loss(params, None)  # prediction says nothing, and so does training with a key
    jax.eval_shape(jax.grad(loss), params, jax.random.key(1))
    with pytest.warns(UserWarning, match="without its dropout.*given no key"):
        jax.eval_shape(jax.grad(loss), params, None)
