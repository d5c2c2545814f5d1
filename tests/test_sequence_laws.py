"""What is around the steps: last outputs, no steps, both directions, noise, wrong arguments.

That masks, lengths and resets have the numbers of a loop is tests/test_laws.py; that held outputs,
both directions and learned carries have those of NumPy is tests/test_reference.py.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cell_table import BATCH, CELLS, FEATURES, TIME, OwnStepCell

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
# Those of tests/test_laws.py.
LENGTHS = np.array([5, 2, 0])
MASK = np.array([[1, 1, 1], [1, 1, 1], [0, 1, 1], [1, 1, 0], [1, 0, 1]], bool)
RESETS = np.array([[0, 1, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1], [1, 0, 1]], bool)
MARKS = {"lengths": LENGTHS, "mask": MASK, "resets": RESETS}
OF_ONE_OUTPUT = {
    "a carry that holds it": GRUCell(4),
    "an output of its own": CELLS["user-peephole"],
    "a stack": Stack([SimpleRNNCell(3), LSTMCell(4)]),
    "both directions": Bidirectional(GRUCell(3)),
    "zoneout": Regularized(LSTMCell(3), zoneout_hidden=0.5),
}


@pytest.mark.parametrize("reverse", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", OF_ONE_OUTPUT)
def test_the_last_output_alone_is_that_of_the_last_valid_step(name, reverse, random_like):
    """One has it in its carry, from which a reset behind the last valid step takes it."""
    cell = OF_ONE_OUTPUT[name]
    params = random_like(lambda: cell.init(jax.random.key(0), FEATURES), 1)
    xs = random_like(lambda: jnp.zeros((TIME, BATCH, FEATURES)), 2)

    @functools.partial(jax.jit, static_argnums=1)
    def run(params, outputs, marks):
        return rnnjax.unroll(cell, params, xs, outputs=outputs, reverse=reverse, **marks)

    turned = [slice(None), slice(None, None, -1)]
    for given in ({}, {"lengths": LENGTHS}, {"mask": MASK}, MARKS):
        (carry, ys), (same, y) = (run(params, outputs, given) for outputs in ("all", "last"))
        jax.tree.map(np.testing.assert_array_equal, same, carry)
        valid = given.get("mask", np.ones((TIME, BATCH), bool))
        valid = valid & (np.arange(TIME)[:, None] < given.get("lengths", TIME))
        # The outputs of the direction that runs against the sequence stand behind the other's.
        ahead = [ys, ys[..., :0]] if name != "both directions" else jnp.split(ys, 2, -1)
        for at in (turned, turned[::-1])[reverse]:
            part, *ahead = ahead
            found, y = y[..., : part.shape[-1]], y[..., part.shape[-1] :]
            np.testing.assert_array_equal(found, rnnjax.pool(part[at], "last", valid[at]))
    with pytest.raises(InvalidInputError, match='outputs must be "all" or "last", but is \'one\''):
        rnnjax.unroll(cell, params, xs, outputs="one")
    for given in ({}, {"lengths": 0 * LENGTHS}, {"mask": MASK[:0], "resets": RESETS[:0]}):
        nothing = rnnjax.unroll(cell, params, xs[:0], outputs="last", **given)[1]
        np.testing.assert_array_equal(nothing, np.zeros((BATCH, cell.output_size)))


def test_the_last_outputs_of_merged_directions_are_those_of_their_carries(random_like):
    cell = rnnjax.LearnedCarry(Bidirectional(GRUCell(3), merge="sum"))
    params = random_like(lambda: cell.init(jax.random.key(0), FEATURES), 1)
    xs = random_like(lambda: jnp.zeros((TIME, BATCH, FEATURES)), 2)
    carry, y = rnnjax.unroll(cell, params, xs, outputs="last")
    np.testing.assert_array_equal(y, carry.forward.hidden + carry.backward.hidden)
    with pytest.raises(InvalidInputError, match="merged by 'sum' cannot be parted"):
        rnnjax.unroll(cell, params, xs, outputs="last", mask=MASK, resets=RESETS)


def blank(cell):
    """Parameters of two features, all zero; an initialiser would have to be compiled."""
    shapes = jax.eval_shape(lambda: cell.init(jax.random.key(0), 2))
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


CELL = LSTMCell(4)
PARAMS = blank(CELL)
XS = np.ones((5, 3, 2), np.float32)
IDS = rnnjax.OneHot(np.zeros((5, 3), int), 2)


def test_no_steps_and_no_rows():
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
        carry, ys = rnnjax.unroll(CELL, PARAMS, np.zeros((5, 0, 2), "f"), method=method)
        assert (carry.hidden.shape, ys.shape) == ((0, 4), (5, 0, 4))


def test_marks_that_are_known_inside_of_jit(random_like):
    params = random_like(PARAMS, 1)

    @jax.jit
    def run(xs):
        return rnnjax.unroll(CELL, params, xs, **MARKS)[1]

    expected = rnnjax.unroll(CELL, params, XS, **MARKS)[1]
    np.testing.assert_allclose(run(XS), expected, atol=1e-6)
    with pytest.raises(rnnjax.InvalidInputError, match="go from 1 to 6"):
        jax.eval_shape(lambda xs: rnnjax.unroll(CELL, params, xs, lengths=np.array([1, 6, 2])), XS)
    # Lengths that are not known there count as no more than there are steps.
    more = jax.jit(lambda n: rnnjax.unroll(CELL, params, XS, lengths=n)[1])(np.array([5, 9, 2]))
    np.testing.assert_allclose(
        more, rnnjax.unroll(CELL, params, XS, lengths=np.array([5, 5, 2]))[1], atol=1e-6
    )


# ---- noise


def test_recurrent_dropout_by_hand(random_like):
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


def test_zoneout_keeps_units(random_like):
    cell = LSTMCell(50)
    params = random_like(lambda: cell.init(jax.random.key(0), 2), 1)
    xs = random_like(lambda: jnp.zeros((40, 3, 2)), 2)
    layer = Regularized(cell, zoneout_hidden=0.25)
    _, ys = rnnjax.unroll(layer, params, xs, key=jax.random.key(3))
    ys = np.asarray(ys)
    kept = ys[1:] == ys[:-1]
    assert abs(kept.mean() - 0.25) < 0.02
    assert abs(kept[0].mean() - kept[-1].mean()) < 0.15
    assert not np.all(kept == kept[0])


def test_weight_drop_drops_weights(random_like, assert_close):
    cell = GRUCell(5)
    params = random_like(lambda: cell.init(jax.random.key(0), 2), 1)
    xs = random_like(lambda: jnp.zeros((5, 3, 2)), 2)
    layer = Regularized(cell, weight_drop=0.5)

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
    linear = SimpleRNNCell(4, activation="linear", use_bias=False)
    stack = Stack([linear, linear, linear], dropout=rnnjax.Dropout(0.5, per=per))
    identity = {"kernel": np.eye(4, dtype="f"), "recurrent_kernel": np.zeros((4, 4), "f")}
    xs = random_like(lambda: jnp.zeros((6, 3, 4)), 2)
    _, ys = rnnjax.unroll(stack, (identity,) * 3, xs, key=jax.random.key(0))
    ratio = np.round(np.asarray(ys) / np.asarray(xs), 3)
    assert set(ratio.ravel()) == {0.0, 4.0}  # two layers' outputs are dropped, not the third's
    assert np.all(ratio == ratio[0]) == (per == "sequence")
    assert_close(rnnjax.unroll(stack, (identity,) * 3, xs)[1], xs, 1e-6)


@pytest.mark.parametrize("kind", [lambda c: Stack([c, c]), Bidirectional], ids=["stack", "both"])
def test_each_cell_draws_its_own(kind):
    layer = Regularized(SimpleRNNCell(200, activation="linear", use_bias=False), input_dropout=0.5)
    identity = {"kernel": np.eye(200, dtype="f"), "recurrent_kernel": np.zeros((200, 200), "f")}
    cell, xs = kind(layer), np.ones((1, 1, 200), "f")
    one, other = (
        np.asarray(rnnjax.unroll(cell, (identity,) * 2, xs, key=jax.random.key(n))[1]) != 0
        for n in range(2)
    )
    assert np.any(one != other)
    if cell.output_size == 200:  # what both layers keep
        assert 0.15 < one.mean() < 0.35
    else:
        forward, backward = np.split(one, 2, axis=-1)
        assert 0.35 < (forward == backward).mean() < 0.65


# ---- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lengths": [5, 6, 1]}, r"between 0 and the 5 steps of xs, but go from 1 to 6"),
        ({"lengths": [5.0, 1.0, 2.0]}, r"lengths must be integers.* float"),
        ({"lengths": [True, False, True]}, r"lengths must be integers.* bool"),
        ({"mask": np.ones((3, 5), bool)}, r"mask must have shape \(5, 3\).* has \(3, 5\)"),
        ({"mask": np.ones((5, 3), "f")}, r"mask must be booleans.*float32.*mask.astype\(bool\)"),
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
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(rnnjax.InvalidInputError, match=message):
        rnnjax.unroll(CELL, PARAMS, XS, **arguments)


def run(cell, xs=XS, key=None):
    return rnnjax.unroll(cell, blank(cell), xs, key=key)


def noisy(cell, **rates):
    return run(Regularized(cell, **rates), key=jax.random.key(0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Regularized(Stack([CELL])), "wrap each cell by itself"),
        (lambda: Regularized(CELL, zoneout_cell=1.0), "zoneout_cell must be at least 0 and below"),
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
        (lambda: Bidirectional(CELL).step((PARAMS,) * 2, None, XS[0]), "cannot run step by step"),
        (lambda: rnnjax.unroll(Bidirectional(CELL), PARAMS, XS), r"be Directions\(forward, back"),
        (lambda: noisy(OwnStepCell(4), recurrent_dropout=0.1), "cannot reach inside of OwnStepCel"),
        (
            lambda: noisy(GRUCell(4, reset_after=False), recurrent_dropout=0.1),
            "needs a product of the state before the update",
        ),
        (lambda: noisy(rnnjax.MinGRUCell(4), recurrent_dropout=0.1), "needs a product of the sta"),
        (lambda: noisy(rnnjax.MinGRUCell(4), weight_drop=0.1), "needs a recurrent_kernel"),
        (
            lambda: run(Regularized(CELL, input_dropout=0.1), IDS, jax.random.key(0)),
            "inputs are OneHot; set ids to -1",
        ),
        (lambda: run(rnnjax.ConvLSTMCell(3), XS[..., None, :, :1]), r"xs has 1 features, but par"),
    ],
    ids=range(20),
)
def test_what_cannot_be_or_run_says_so(call, message):
    with pytest.raises(rnnjax.InvalidInputError, match=message):
        call()


def test_a_gradient_without_the_noise_of_training_comes_with_a_warning():
    cell = Stack([Regularized(LSTMCell(3), recurrent_dropout=0.5), LSTMCell(3)])
    params, xs = blank(cell), np.ones((4, 3, 2), np.float32)

    def loss(params, key):
        return rnnjax.unroll(cell, params, xs, key=key)[1].sum()

    jax.eval_shape(loss, params, None)  # prediction says nothing, and so does training with a key
    jax.eval_shape(jax.grad(loss), params, jax.random.key(1))
    with pytest.warns(UserWarning, match="without its dropout.*given no key"):
        jax.eval_shape(jax.grad(loss), params, None)
