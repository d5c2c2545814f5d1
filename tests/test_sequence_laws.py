"""The laws of masks, lengths, resets and noise: every method equals a Python loop with them."""

import functools
from collections.abc import Callable
from typing import Any

import hypothesis
import hypothesis.strategies as st
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
    TIME,
    TOLERANCES,
    WAYS,
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
    (params, xs, carry, start), weights = arguments
    time, batch = xs.shape[:2]
    given = tuple(sorted(marks)) + (("reset_carry",) if "resets" in marks else ())
    actual = compiled(name, method, reverse, given)(
        (params, xs, carry, start), weights, {k: jnp.asarray(v) for k, v in marks.items()}
    )
    if expected is None:
        valid = np.asarray(marks.get("mask", np.ones((time, batch), bool)))
        if "lengths" in marks:
            valid = valid & (np.arange(time)[:, None] < marks["lengths"])
        resets = np.asarray(marks.get("resets", np.zeros((time, batch), bool)))
        expected = weighted(functools.partial(loop, name))(
            (params, xs, carry, start), weights, valid, resets, reverse
        )
    assert_close(actual, expected, TOLERANCES["float64"])
    return expected


ALL = {"lengths": LENGTHS, "mask": MASK, "resets": RESETS}


# By all methods, and in reverse, for one cell of each way through the engine.
BY_ALL = [*FEW, "mingru", "stack"]
MARKED = [*BROAD, "learned-carry", "stack-nested"]
ROWS = [
    row
    for row in both_ways(table(rnnjax.Auto, names=MARKED, by_all=BY_ALL))
    if not row.values[2] or row.values[0] in {"lstm", "gru", "gru-reset-before", "user-peephole"}
]


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


@pytest.mark.parametrize("one", list(ALL))
@pytest.mark.parametrize(("name", "method"), table(rnnjax.Auto, names=["lstm", "mingru"]))
@pytest.mark.usefixtures("x64")
def test_each_alone(name: str, method: Any, one: str, draw: Any, assert_close: Any) -> None:
    check(name, method, False, {one: ALL[one]}, draw(name), assert_close)


@st.composite
def marked(draw: st.DrawFn) -> tuple[int, int, dict[str, Any]]:
    """A shape and any marks for it: one of few shapes, since each is compiled."""
    time, batch = draw(st.sampled_from([(6, 3), (1, 2)]))
    booleans = st.lists(st.booleans(), min_size=time * batch, max_size=time * batch)
    return (
        time,
        batch,
        {
            "mask": np.reshape(draw(booleans), (time, batch)),
            "resets": np.reshape(draw(booleans), (time, batch)),
            "lengths": np.array(
                draw(st.lists(st.integers(0, time), min_size=batch, max_size=batch))
            ),
        },
    )


@pytest.mark.parametrize(
    ("name", "method"), [("gru", Scan()), ("gru", Fused()), ("lstm", Fused(keep_every=4))]
)
@hypothesis.given(case=marked(), reverse=st.booleans())
@hypothesis.settings(max_examples=15, deadline=None, derandomize=True)
def test_any_marks(
    name: str,
    method: Any,
    case: Any,
    reverse: bool,
    draw: Any,
    assert_close: Any,
) -> None:
    time, batch, marks = case
    with jax.enable_x64(True):
        check(name, method, reverse, marks, draw(name, time, batch), assert_close)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_law_3_a_reset_is_a_fresh_start(method: Any, reverse: bool, random_like: Any) -> None:
    """For that row alone; and no gradient crosses it."""
    cell = LSTMCell(4)
    params = random_like(lambda: cell.init(jax.random.key(0), 2), 1)
    xs = random_like(lambda: jnp.zeros((6, 2, 2)), 2)
    carry = random_like(lambda: cell.initial_carry((2,)), 3)
    resets = jnp.zeros((6, 2), bool).at[4, 1].set(True)
    unroll = functools.partial(rnnjax.unroll, cell, params, reverse=reverse, method=method)
    _, ys = unroll(xs, carry, resets=resets)
    _, plain = unroll(xs, carry)
    np.testing.assert_allclose(ys[:, 0], plain[:, 0], atol=1e-6)
    cut = (slice(None, 4), slice(4, None)) if not reverse else (slice(4, None), slice(None, 4))
    row = jax.tree.map(lambda leaf: leaf[1:], carry)
    _, first = unroll(xs[cut[0], 1:], row)
    _, second = unroll(xs[cut[1], 1:])
    np.testing.assert_allclose(ys[cut[0], 1:], first, atol=1e-6)
    np.testing.assert_allclose(ys[cut[1], 1:], second, atol=1e-6)

    def after(xs: Any, carry: Any) -> jax.Array:
        return unroll(xs, carry, resets=resets)[1][cut[1], 1].sum()

    d_xs, d_carry = jax.grad(after, argnums=(0, 1))(xs, carry)
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
    mask = jnp.ones((5, 2), bool).at[1, 0].set(False).at[3:, 1].set(False)

    def loss(params: Any, xs: Any) -> jax.Array:
        return (rnnjax.unroll(cell, params, xs, mask=mask, method=method)[1] ** 2).sum()

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    hostile = jnp.where(mask[..., None], xs, jnp.nan)
    expected, actual = run(params, xs), run(params, hostile)
    assert_close(actual, expected, 1e-6)
    assert np.all(np.asarray(actual[1][1])[~np.asarray(mask)] == 0)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_masked_sequence_is_the_shorter_one(
    method: Any, random_like: Any, assert_close: Any
) -> None:
    cell = GRUCell(4)
    params = random_like(lambda: cell.init(jax.random.key(0), 2), 1)
    xs = random_like(lambda: jnp.zeros((6, 2, 2)), 2)
    kept = np.array([0, 2, 3, 5])
    mask = np.zeros((6, 2), bool)
    mask[kept] = True
    for reverse in (False, True):
        unroll = functools.partial(rnnjax.unroll, cell, params, reverse=reverse, method=method)
        carry, ys = unroll(xs, mask=mask)
        expected, short = unroll(xs[kept])
        assert_close((carry, ys[kept]), (expected, short), 1e-6)


@pytest.mark.parametrize("reverse", [False, True])
def test_the_last_output_is_held(reverse: bool, random_like: Any) -> None:
    cell = LSTMCell(4)
    params = random_like(lambda: cell.init(jax.random.key(0), 2), 1)
    xs, carry = (
        random_like(lambda: jnp.zeros((5, 3, 2)), 2),
        random_like(lambda: cell.initial_carry((3,)), 3),
    )
    for method in METHODS:
        unroll = functools.partial(
            rnnjax.unroll, cell, params, xs, carry, mask=MASK, resets=RESETS, reverse=reverse,
            method=method,
        )  # fmt: skip
        _, zeros = unroll()
        _, held = unroll(masked_outputs="last")
        last = np.zeros((3, 4), np.float32)
        for t in range(5)[::-1] if reverse else range(5):
            border = RESETS[t] if not reverse else (RESETS[t + 1] if t < 4 else np.zeros(3, bool))
            last = np.where(border[:, None], 0, last)
            last = np.where(MASK[t][:, None], zeros[t], last)
            np.testing.assert_allclose(held[t], last, atol=1e-6)


def test_marks_for_all_rows_and_without_a_batch(random_like: Any, assert_close: Any) -> None:
    cell = GRUCell(4)
    params = random_like(lambda: cell.init(jax.random.key(0), 2), 1)
    xs = random_like(lambda: jnp.zeros((5, 3, 2)), 2)
    one, all_ = MASK[:, 0], np.repeat(MASK[:, :1], 3, axis=1)
    resets, resets_all = RESETS[:, 0], np.repeat(RESETS[:, :1], 3, axis=1)
    for method in METHODS:
        unroll = functools.partial(rnnjax.unroll, cell, params, method=method)
        expected = unroll(xs, mask=all_, resets=resets_all)
        assert_close(unroll(xs, mask=one, resets=resets), expected, 1e-6)
        alone = unroll(xs[:, 1], mask=one, resets=resets, lengths=4)
        expected = unroll(xs, mask=all_, resets=resets_all, lengths=np.full(3, 4))
        assert_close(alone, jax.tree.map(lambda a: a[..., 1, :], expected), 1e-6)


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
    ids = jnp.array([[5, 0, 2], [1, 1, 4], [3, 2, 0], [9, 1, 0], [2, 5, 1]])
    dense = jax.nn.one_hot(ids, 6)
    for method in METHODS:
        unroll = functools.partial(
            rnnjax.unroll, cell, params, lengths=LENGTHS, mask=MASK, resets=RESETS, method=method
        )
        assert_close(unroll(rnnjax.OneHot(ids, 6)), unroll(dense), 1e-6)


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.usefixtures("x64")
def test_vmap_with_marks_equals_batching(method: Any, draw: Any, assert_close: Any) -> None:
    (params, xs, carry, start), _ = draw("lstm")

    def run(xs: Any, carry: Any, start: Any, mask: Any, resets: Any, lengths: Any) -> Any:
        return rnnjax.unroll(
            CELLS["lstm"], params, xs, carry, mask=mask, resets=resets, reset_carry=start,
            lengths=lengths, method=method,
        )  # fmt: skip

    rest = xs, carry, start, jnp.asarray(MASK), jnp.asarray(RESETS), jnp.asarray(LENGTHS)
    actual = jax.jit(jax.vmap(run, (1, 0, 0, 1, 1, 0), (0, 1)))(*rest)
    assert_close(actual, run(*rest), TOLERANCES["float64"])


@pytest.mark.parametrize("method", METHODS[:2], ids=str)
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

    def loss(params: Any, xs: Any) -> jax.Array:
        return (rnnjax.unroll(cell, params, xs, **ALL, method=method)[1] ** 2).sum()

    plain = jax.jit(jax.value_and_grad(loss, (0, 1)))
    again = jax.jit(jax.value_and_grad(jax.checkpoint(loss), (0, 1)))
    assert_close(again(params, xs), plain(params, xs), 1e-6)


# ---- both directions


@pytest.mark.parametrize("merge", ["concat", "sum", "mul", "average"])
@pytest.mark.usefixtures("x64")
def test_bidirectional_is_two_runs(merge: Any, random_like: Any, assert_close: Any) -> None:
    layer = Bidirectional(LSTMCell(4), GRUCell(4), merge=merge)
    params = random_like(lambda: layer.init(jax.random.key(0), 2), 1, "float64")
    xs = random_like(lambda: jnp.zeros((5, 3, 2)), 2, "float64")
    carry = random_like(lambda: layer.initial_carry((3,)), 3, "float64")
    for method in METHODS:
        run = functools.partial(rnnjax.unroll, **ALL, method=method)
        final, ys = run(layer, params, xs, carry)
        forward, a = run(LSTMCell(4), params.forward, xs, carry.forward)
        backward, b = run(GRUCell(4), params.backward, xs, carry.backward, reverse=True)
        expected = {
            "concat": np.concatenate([a, b], -1),
            "sum": a + b,
            "mul": a * b,
            "average": (a + b) / 2,
        }[merge]
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
    for method in METHODS:
        unroll = functools.partial(rnnjax.unroll, cell, method=method)
        assert_close(unroll(params, xs), unroll(params, xs, start), 1e-6)
        actual = unroll(params, xs, resets=RESETS)
        expected = unroll(params, xs, start, resets=RESETS, reset_carry=start)
        assert_close(actual, expected, 1e-6)
    (first, second) = jax.grad(
        lambda p: rnnjax.unroll(cell, p, xs, cell.initial_carry((3,)), resets=RESETS)[1].sum()
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
NOISY_CELLS = ["lstm-callable", "projection", "layernorm-lstm", "user-gain", "mingru"]
NOISY_ROWS = [
    *(("lstm", kind, True) for kind in ("recurrent", "zoneout", "all")),
    # Which happen before the loop, and in "all" too.
    *(pytest.param("lstm", kind, True, marks=pytest.mark.slow) for kind in ("weights", "inputs")),
    ("gru", "recurrent", True),
    ("gru", "zoneout", True),
    *((name, "all", True) for name in NOISY_CELLS),
    ("lstm", "all", False),
    ("mingru", "all", False),
    ("user-gain", "all", False),
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
    masks = []
    for t in range(1, 5):  # y = x W + b + (m h) U, solved for m h
        rest = ys[t] - xs[t] @ params["kernel"] - params["bias"]
        dropped = rest @ jnp.linalg.inv(params["recurrent_kernel"])
        masks.append(np.asarray(dropped / ys[t - 1]))
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
    kept = np.asarray(ys[1:] == ys[:-1])
    assert abs(kept.mean() - 0.25) < 0.02
    assert abs(kept[0].mean() - kept[-1].mean()) < 0.15
    assert not np.all(kept == kept[0])
    # Without a key, the expectation: a quarter of the old and three quarters of the new.
    carry = random_like(lambda: cell.initial_carry((3,)), 3)
    (hidden, _), y = layer.step(params, carry, xs[0])
    (new, _), _ = cell.step(params, carry, xs[0])
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

    gradient = jax.grad(loss)(params)["recurrent_kernel"]
    kept = gradient != 0
    assert 0.3 < kept.mean() < 0.7
    dropped = {**params, "recurrent_kernel": jnp.where(kept, 2 * params["recurrent_kernel"], 0)}
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
    identity = {"kernel": jnp.eye(4), "recurrent_kernel": jnp.zeros((4, 4))}
    xs = random_like(lambda: jnp.zeros((6, 3, 4)), 2)
    _, ys = rnnjax.unroll(stack, (identity,) * 3, xs, key=jax.random.key(0))
    ratio = np.round(np.asarray(ys / xs), 3)
    assert set(ratio.ravel()) == {0.0, 4.0}  # two layers' outputs are dropped, not the third's
    assert np.all(ratio == ratio[0]) == (per == "sequence")
    assert_close(rnnjax.unroll(stack, (identity,) * 3, xs)[1], xs, 1e-6)


def test_each_cell_of_a_stack_draws_its_own(random_like: Any) -> None:
    layer = Regularized(SimpleRNNCell(200, activation="linear", use_bias=False), input_dropout=0.5)
    identity = {"kernel": jnp.eye(200), "recurrent_kernel": jnp.zeros((200, 200))}
    xs = jnp.ones((2, 1, 200))
    _, ys = rnnjax.unroll(Stack([layer, layer]), (identity,) * 2, xs, key=jax.random.key(0))
    assert 0.15 < (ys != 0).mean() < 0.35
    other = rnnjax.unroll(Stack([layer, layer]), (identity,) * 2, xs, key=jax.random.key(1))[1]
    assert np.any(other != ys)


def test_each_direction_draws_its_own() -> None:
    cell = SimpleRNNCell(200, activation="linear", use_bias=False)
    layer = Bidirectional(Regularized(cell, input_dropout=0.5))
    identity = {"kernel": jnp.eye(200), "recurrent_kernel": jnp.zeros((200, 200))}
    _, ys = rnnjax.unroll(layer, (identity, identity), jnp.ones((1, 1, 200)), key=jax.random.key(0))
    forward, backward = jnp.split(ys != 0, 2, axis=-1)
    assert 0.35 < (forward == backward).mean() < 0.65


# ---- streaming


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.usefixtures("x64")
def test_pieces_of_any_size_equal_the_whole(method: Any, draw: Any, assert_close: Any) -> None:
    (params, xs, carry, start), _ = draw("lstm", time=7)
    cell = CELLS["lstm"]
    mask = np.concatenate([MASK, MASK[:2]])
    resets = np.concatenate([RESETS, RESETS[:2]])
    unroll = functools.partial(rnnjax.unroll, cell, params, reset_carry=start, method=method)
    expected = unroll(xs, carry, mask=mask, resets=resets)
    for sizes in ([1] * 7, [3, 4], [2, 1, 4]):
        piece_carry, parts, begin = carry, [], 0
        for size in sizes:
            part = slice(begin, begin + size)
            piece_carry, ys = unroll(xs[part], piece_carry, mask=mask[part], resets=resets[part])
            parts.append(ys)
            begin += size
        assert_close((piece_carry, jnp.concatenate(parts)), expected, 1e-10)


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
NAN = [n for n in CELLS if n != "user-step"]


@pytest.mark.parametrize(
    ("name", "method"),
    table(rnnjax.Auto, names=NAN, ordinary=WAYS, by_all=BY_ALL),
)
@pytest.mark.usefixtures("x64")
def test_a_reset_cuts_a_nan_off(name: str, method: Any, draw: Any, assert_close: Any) -> None:
    """All gradients are those with any other numbers where the loss leaves out what they did.

    One row has a NaN in its first inputs, another begins with one and is masked throughout.
    """
    (params, xs, carry, start), (of_carry, of_ys) = draw(name)
    steps, rows = xs.shape[:2]
    marks = {"mask": np.ones((steps, rows), bool), "resets": np.zeros((steps, rows), bool)}
    marks["mask"][:, 1], marks["resets"][1, 0] = False, True
    given: tuple[str, ...] = "mask", "resets"
    if (name, method, False) in [row.values for row in ROWS]:  # that program is compiled already
        marks, given = marks | {"lengths": np.full(rows, steps)}, (*sorted(ALL), "reset_carry")
    weights = jax.tree.map(np.zeros_like, of_carry), np.array(of_ys)
    weights[1][0, 0] = 0
    gradients = compiled(name, method, False, given)

    def spoilt(leaf: Any, at: Any) -> Any:
        leaf = np.array(leaf)
        leaf[at] = np.nan
        return leaf

    hostile = spoilt(xs, (0, 0)), jax.tree.map(lambda leaf: spoilt(leaf, 1), carry)
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
