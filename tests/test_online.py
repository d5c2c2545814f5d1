"""The online learners, compared with backpropagation through time and dense influences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cell_table import BATCH, CELLS, FEATURES, SINGLE, TOLERANCES, blank, refusals, with_parameters

import rnnjax
from rnnjax import Scan
from rnnjax.online import RTRL, Learner, SnAp1, why_not_unitwise

TIME = 9
KEY = jax.random.key(0)
RESETS = np.random.default_rng(1).random((TIME, BATCH)) < 0.2
# No two of the rows and no step alike, and one where several rows begin anew.
RESETS[4, :2] = True
ELEMENTWISE = [
    name
    for name in SINGLE
    if CELLS[name].carry is not None
    and CELLS[name].recurrent is None
    and why_not_unitwise(CELLS[name]) is None
]
assert len(ELEMENTWISE) == 6
MIXED = [
    "simple", "lstm", "lstm-no-bias", "lstm-hard", "gru", "gru-no-bias", "peephole",
    "mgu", "leaky", "user-peephole", "user-gain", "user-gap",
]  # fmt: skip
# In an ordinary run those cells that differ in what a learner reads of one: one leaf or several,
# parameters of the update, of the readout, raw features.
ORDINARY = {"lru", "minlstm", "diagonal-lstm", "gru", "user-peephole", "user-gap"}


def chosen(names):
    return [n if n in ORDINARY else pytest.param(n, marks=pytest.mark.slow) for n in names]


@pytest.fixture
def drawn(random_like):
    """Parameters of a cell, inputs and targets: no entry is zero, so no part can hide."""

    def draw(name, dtype="float32"):
        cell = CELLS[name]
        params = random_like(lambda: cell.init(KEY, FEATURES), 1, dtype)
        xs = np.random.default_rng(2).normal(size=(TIME, BATCH, FEATURES)).astype(dtype)
        targets = np.random.default_rng(3).normal(size=(TIME, BATCH, cell.output_size))
        return params, *jax.device_put((xs, targets.astype(dtype)))

    return draw


@functools.partial(jax.jit, static_argnums=0)
def online(learner, params, xs, targets, resets):
    """Outputs, and the gradients of half the squared distances, summed step by step in a scan."""

    def step(both, at):
        (state, total), (x, target, reset) = both, at
        state, y, pull = learner.step(params, state, x, reset)
        return (state, jax.tree.map(jnp.add, total, pull(y - target))), y

    begin = learner.init(params, xs.shape[1:-1]), jax.tree.map(jnp.zeros_like, params)
    (_, total), ys = jax.lax.scan(step, begin, (xs, targets, resets))
    return ys, total


@functools.partial(jax.jit, static_argnums=0)
def through_time(cell, params, xs, targets, resets):
    """Return gradients and outputs by backpropagation through time."""

    def loss(params):
        ys = rnnjax.unroll(cell, params, xs, resets=resets, method=Scan())[1]
        return ((ys - targets) ** 2).sum() / 2, ys

    gradients, ys = jax.grad(loss, has_aux=True)(params)
    return ys, gradients


@pytest.mark.parametrize("name", chosen(ELEMENTWISE))
def test_rtrl_is_backpropagation_through_time(name, drawn, assert_close, x64):
    args = *drawn(name, "float64"), RESETS
    expected = through_time(CELLS[name], *args)
    assert_close(online(RTRL(CELLS[name]), *args), expected, TOLERANCES["float64"])


@functools.partial(jax.jit, static_argnums=0)
def masked(cell, params, xs, targets, resets):
    """Dense influences of one row after the other, masked: SnAp-1 as in its paper.

    The last axis of each parameter has the units of each of its gates, one gate after the other.
    The output is treated as one more leaf of the state.
    """
    units = cell.hidden_size

    def step(params, leaves, x):
        carry, y = cell.step(params, cell.carry(*leaves), x)
        return [*carry, y]

    def mask(param):
        of_unit = np.arange(units)[:, None] == np.arange(param.shape[-1]) % units
        return of_unit.reshape(units, *[1] * (param.ndim - 1), param.shape[-1])

    nothing = {name: jnp.zeros((units, *param.shape)) for name, param in params.items()}
    first = list(cell.initial_carry((), xs.dtype))

    def turn(before, at):
        x, target, reset = at
        begun = first, [nothing] * len(first)
        leaves, influence = jax.tree.map(functools.partial(jnp.where, reset), begun, before)
        new = [
            {
                name: mask(param)
                * sum(
                    (jnp.tensordot(m, i[name], 1) for m, i in zip(by, influence, strict=True)),
                    start=own[name],
                )
                for name, param in params.items()
            }
            for own, by in jax.jacfwd(step, (0, 1))(params, leaves, x)
        ]
        (*leaves, y), (*influence, of_y) = step(params, leaves, x), new
        return (leaves, influence), {n: jnp.tensordot(y - target, of_y[n], 1) for n in params}

    def row(xs, targets, resets):
        begin = first, [nothing] * len(first)
        return jax.lax.scan(turn, begin, (xs, targets, resets))[1]

    each = jax.vmap(row, in_axes=1)(xs, targets, resets)
    return jax.tree.map(lambda leaf: leaf.sum((0, 1)), each)


@pytest.mark.parametrize("name", chosen(MIXED))
def test_snap1_is_a_masked_dense_rtrl(name, drawn, assert_close, x64):
    args = *drawn(name, "float64"), RESETS
    ys, gradients = online(SnAp1(CELLS[name]), *args)
    assert_close(gradients, masked(CELLS[name], *args), 1e-10)
    exact_ys, exact = through_time(CELLS[name], *args)
    assert_close(ys, exact_ys, 1e-12)
    along = sum(np.vdot(gradients[n], exact[n]) for n in exact)
    lengths = [np.sqrt(sum(np.vdot(g, g) for g in tree.values())) for tree in (gradients, exact)]
    assert 0.5 < along / (lengths[0] * lengths[1]) < 1 - 1e-6


# ---- sizes


@pytest.mark.parametrize(
    ("learner", "leaves"),
    [(RTRL(CELLS["mingru"]), 1), (RTRL(CELLS["diagonal-lstm"]), 2), (SnAp1(CELLS["lstm"]), 2)],
    ids=["one leaf", "two leaves", "snap"],
)
def test_the_influence_has_the_numbers_of_the_parameters(learner, leaves):
    params = jax.eval_shape(lambda: learner.cell.init(KEY, 3))
    state = jax.eval_shape(lambda params: learner.init(params, (2,)), params)
    trees = state.influence, params
    influence, own = (sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in trees)
    assert influence == 2 * leaves * own


# ---- how it is called


def test_pull_leaves_jit_and_serves_several_signals(drawn, assert_close):
    params, xs, targets = drawn("mingru")
    learner = RTRL(CELLS["mingru"])
    state = learner.init(params, (BATCH,))
    jitted = jax.jit(learner.step)
    for x in np.asarray(xs)[:3]:
        state, y, pull = jitted(params, state, x)
    assert jitted._cache_size() == 1
    assert RTRL(rnnjax.MinGRUCell(5)) == learner
    pulled = jax.jit(lambda pull, dy: pull(dy))
    y, target = np.asarray(y), np.asarray(targets[2])
    one, other = pulled(pull, y - target), pulled(pull, target)
    assert_close(jax.tree.map(np.add, *jax.device_get((one, other))), pull(y), 1e-5)
    assert_close(pulled(pull, y), pull(y), 1e-5)


def test_nothing_crosses_a_reset_not_even_a_nan(drawn, assert_close):
    """All that a step knows of those before it is in its state."""
    params, xs, targets = drawn("gru")
    learner = SnAp1(CELLS["gru"])
    begun = jax.jit(learner.init, static_argnums=1)(params, (BATCH,))
    xs, resets = np.array(xs[:5]), np.arange(5)[:, None] == np.full(BATCH, 4)
    xs[3, 0] = np.nan

    @jax.jit
    def step(state, x, reset):
        state, y, pull = learner.step(params, state, x, reset)
        return state, y, pull(y - targets[4])

    state = begun
    for x, reset in zip(xs, resets, strict=True):
        before, found = state, step(state, x, reset)
        state = found[0]
    assert np.isnan(before.carry.hidden).any(-1).tolist() == [True, False, False]
    assert_close(found, step(begun, xs[4], resets[4]), 1e-5)


def test_rows_may_have_several_axes(drawn, assert_close):
    params, xs, targets = drawn("gru")
    learner, arrays = SnAp1(CELLS["gru"]), (*map(np.asarray, (xs, targets)), RESETS)
    grid = [a.reshape(TIME, 1, BATCH, *a.shape[2:]) for a in arrays]
    assert_close(online(learner, params, *grid)[1], online(learner, params, *arrays)[1], 1e-5)


def test_ids_are_one_hot_vectors(drawn, assert_close):
    params, _, targets = drawn("gru")
    ids = rnnjax.OneHot(jax.device_put(RESETS.astype("int32")), FEATURES)
    dense = np.eye(FEATURES, dtype="float32")[RESETS.astype(int)]
    found, expected = (
        online(SnAp1(CELLS["gru"]), params, xs, targets, RESETS)[1] for xs in (ids, dense)
    )
    assert_close(found, expected, 1e-5)


# ---- refusals


SharedCell = with_parameters(
    rnnjax.MinGRUCell,
    lambda *_: {"shared": rnnjax.Param((1,))},  # which all units read
    update=lambda self, p, x, carry: rnnjax.MinGRUCell.update(self, p, x + p["shared"], carry),
    coupling=rnnjax.Coupling.CONTRACTING,
)
DrawnCell = type("DrawnCell", (rnnjax.MinGRUCell,), {"is_stochastic": True})


class CountingCell(rnnjax.MinGRUCell):
    def initial_carry(self, batch_shape=(), dtype=None):
        carry = super().initial_carry(batch_shape, dtype)
        return jax.tree.map(lambda leaf: leaf.astype("int32"), carry)


PARAMS, X = blank(CELLS["mingru"], FEATURES), np.ones((3, 2), "float32")


def learn(x=X, reset=None, dy=X, params=PARAMS, swapped=False, batch=(3,)):
    """A step of a learner, and its gradient."""
    learner = RTRL(CELLS["mingru"])
    state = jax.device_get(learner.init(params, batch))
    given = (state, params) if swapped else (params, state)
    return learner.step(*given, x, reset)[2](dy)


test_what_cannot_be_served_is_refused = refusals(
    [
        (lambda: RTRL(DrawnCell(4)), "it draws in training, for which a learner has no key"),
        (lambda: RTRL(CountingCell(4)), "carry does not hold floating-point numbers alone"),
        (lambda: RTRL(CELLS["lstm"]), "see each other's state in a product; take SnAp1"),
        (lambda: RTRL(CELLS["stack"]), "made of other cells; train it by rnnjax.unroll"),
        (lambda: RTRL(CELLS["user-step"]), "declares no carry and update"),
        (lambda: RTRL(CELLS["s6"]), "not all one number for each unit; train it by"),
        (lambda: RTRL(SharedCell(4)), r"shared of shape \(1,\) has not as many entries"),
        (lambda: SnAp1(CELLS["layernorm-lstm"]), "coupling is declared as ANY.*; train it by"),
        (lambda: SnAp1(CELLS["gru-reset-before"]), "coupling is declared as ANY"),
        (lambda: SnAp1(CELLS["learned-carry"]), "made of other cells"),
        (lambda: SnAp1(CELLS["convlstm-1d"]), "a grid whose points see each other"),
        (lambda: SnAp1(rnnjax.AttentionCell(CELLS["gru"], 2, attention_size=2)), "a step"),
        (lambda: SnAp1(5), "cell must be a Cell such as"),
        (lambda: Learner(CELLS["mingru"]), "what learners are made of; take RTRL or SnAp1"),
        (lambda: learn(np.ones((3, 5))), "xs has 5 features"),
        (lambda: learn(X[:2]), "carry.*shape"),
        (lambda: learn(reset=np.ones(3)), "reset must be booleans"),
        (lambda: learn(reset=np.ones(2, bool)), "reset must have shape"),
        (lambda: learn(dy=np.ones(4)), "dy must have the shape of y"),
        (lambda: learn(dy=None), "dy must be an array, but is None"),
        (lambda: learn(swapped=True), r"state must be that of init, .* a dict with"),
        (lambda: learn(batch=3), "batch_shape must be a tuple"),
    ]
)


def test_no_rows_have_no_gradient(drawn):
    learner, (params, _, _) = SnAp1(CELLS["gru"]), drawn("gru")
    _, y, pull = learner.step(params, learner.init(params, (0,)), jnp.ones((0, 2)))
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(pull(y)))
