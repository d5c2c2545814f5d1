"""What each cell declares holds: its coupling is as promised, and it is given what it asks for."""

import contextlib
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cell_table import (
    CELLS,
    OwnPastCell,
    OwnStepCell,
    UserCell,
    begun,
    blank,
    refusals,
    with_parameters,
)
from jax.extend.core import jaxprs_in_params

import rnnjax
import rnnjax.linen
import rnnjax.online
from rnnjax import Coupling, Fused, InvalidInputError, Parallel, Role, Scan
from rnnjax.cells.step import split_raw
from rnnjax.testing import _coupling_holds

# A memory is affine by what it is, and has no update of its own.
UPDATES = {n: cell for n, cell in CELLS.items() if cell.carry is not None and not cell.has_memory}
UPDATES |= {"own-past": OwnPastCell(5), "own-past-linear": OwnPastCell(5, linear=True)}
# Of which more holds than is promised, as the class says why.
WITHHELD = {"layernorm-gru"}


@pytest.mark.parametrize("name", UPDATES)
def test_the_coupling_is_all_that_holds(name, random_like):
    """By the law of `check_cell`, which the next stronger word breaks."""
    cell = UPDATES[name]
    params = jax.device_get(random_like(lambda: cell.init(jax.random.key(0), 3), 1))
    if cell.coupling > Coupling.ANY:
        _coupling_holds(cell, params, 3)
    # A product of the state mixes units, and no more is asked of the update around it.
    if cell.coupling < (Coupling.CONTRACTING if cell.recurrent is None else Coupling.ELEMENTWISE):
        fields = {field.name: getattr(cell, field.name) for field in dataclasses.fields(cell)}
        word = Coupling(cell.coupling + 1)
        stronger = type("Stronger", (type(cell),), {"coupling": word})(**fields)
        broken = pytest.raises(AssertionError, match=r"; declare (ANY|ELEMENTWISE|AFFINE)$")
        with contextlib.nullcontext() if name in WITHHELD else broken:
            _coupling_holds(stronger, params, 3)


# ---- what becomes of the word


class OwnUpdate(rnnjax.MinGRUCell):
    """Promises nothing, whatever the class above it does."""

    def update(self, params, x, carry):
        return super().update(params, x, carry)


def test_a_promise_is_inherited_with_its_update_alone():
    class Mixin:
        update = OwnUpdate.update

    class Mixed(Mixin, rnnjax.MinGRUCell):
        """Has its update from elsewhere than its word."""

    class OwnGates(rnnjax.MinGRUCell):
        """Has the update of the class above it, and so its promise."""

        def parameters(self, input_size):
            return super().parameters(input_size)

    assert OwnUpdate(4).coupling is Mixed(4).coupling is Coupling.ANY
    assert OwnGates(4).coupling is Coupling.CONTRACTING
    assert rnnjax.Cell.coupling.__get__(OwnUpdate(4)) is Coupling.ANY


@pytest.mark.parametrize(
    ("word", "method"), [(Coupling.AFFINE, Fused()), (Coupling.CONTRACTING, Parallel())]
)
def test_auto_takes_a_promise_at_its_word(word, method):
    cell = type("Declared", (OwnUpdate,), {"coupling": word})(4)
    assert rnnjax.Auto().choose(cell, 1024, rows=1) == method
    assert Parallel().refusal(cell) is None


# ---- rows that interact


class NormedStepCell(OwnStepCell):
    """A norm over the batch, in a step of its own."""

    def step(self, params, carry, x):
        return super().step(params, carry, (x - x.mean(0)) / jnp.sqrt(x.var(0) + 0.1))


def test_rows_may_interact_in_a_step_of_its_own(assert_close):
    """Padding is zeros to them, whatever stands there."""
    cell, lengths = NormedStepCell(4), np.array([6, 3, 5, 2, 1])
    params = {"kernel": np.linspace(-1, 1, 28, dtype=np.float32).reshape(7, 4)}
    xs = np.random.default_rng(1).normal(size=(6, 5, 3)).astype(np.float32)
    valid = (np.arange(6)[:, None] < lengths)[..., None]

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def run(params, xs, marks):
        ys = jnp.where(valid, rnnjax.unroll(cell, params, xs, **marks)[1], 0)
        return jnp.sin(ys).sum(), ys

    (_, ys), (d_params, d_xs) = run(params, xs, {"lengths": lengths})
    (_, expected), (by_params, by_xs) = run(params, np.where(valid, xs, 0), {})
    assert_close((ys, d_params, d_xs), (expected, by_params, np.where(valid, by_xs, 0)), 1e-5)


# ---- what an update is given


class AxisOneCell(rnnjax.MinGRUCell):
    """An affine cell that counts its axes from the first: those of one step."""

    output = None
    coupling = Coupling.CONTRACTING

    def update(self, params, x, carry):
        z, n = jnp.split(x, 2, axis=-1)
        hidden = jax.nn.softmax(z, axis=1) * carry.hidden + n
        return type(carry)(hidden), jnp.tanh(hidden + carry.hidden)


class AxisOneRNNCell(rnnjax.SimpleRNNCell):
    """A recurrent cell that does so."""

    def update(self, params, x, carry):
        return rnnjax.SimpleRNNCarry(jnp.tanh(x - 0.1 * x.mean(axis=1, keepdims=True)))


@dataclasses.dataclass(frozen=True)
class MaskedKernelCell(rnnjax.SimpleRNNCell):
    """A cell that multiplies the state by a part of a kernel."""

    role: Role = Role.UNIT
    recurrent = None

    def parameters(self, input_size):
        own = rnnjax.Param((self.hidden_size, self.hidden_size), "orthogonal", self.role)
        return super().parameters(input_size) | {"own": own}

    def update(self, params, x, carry):
        kernel = params["own"] * (1 - jnp.eye(self.hidden_size))
        return rnnjax.SimpleRNNCarry(jnp.tanh(x + carry.hidden @ kernel))


@dataclasses.dataclass(frozen=True)
class Options:
    """Fields that end like those of initialisers, and are none."""

    scale_init: float = 1.0


@dataclasses.dataclass(frozen=True)
class ScaledCell(rnnjax.MinGRUCell):
    options: Any = (Options(),)

    def update(self, params, x, carry):
        options = self.options[0] if isinstance(self.options, tuple) else self.options
        return super().update(params, options.scale_init * x, carry)


class Several(tuple):
    """A tuple of a kind of its own, which a plain one does not replace."""


@pytest.mark.parametrize("options", [Options(2.0), (Options(2.0),), Several([Options(2.0)])])
def test_a_cell_keeps_its_own_options(options, random_like, assert_close):
    cell, plain = ScaledCell(3, options=options), rnnjax.MinGRUCell(3)
    params = random_like(lambda: plain.init(jax.random.key(0), 2), 1)
    xs = np.ones((4, 2), "float32")
    twice = jax.tree.map(lambda leaf: 2 * leaf, params)
    assert_close(rnnjax.unroll(cell, params, xs), rnnjax.unroll(plain, twice, xs), 1e-6)


# ---- features that an update reads as they are


class DecayingCell(UserCell):
    """A state that decays over the time since the last step, which is the last feature."""

    gates = "h", "d"
    raw = {"gap": 1}

    def update(self, params, x, carry, gap):
        h, d = jnp.split(x, 2, axis=-1)
        decay = jnp.exp(-jax.nn.softplus(d) * gap)
        return rnnjax.SimpleRNNCarry(decay * carry.hidden + self.added(h) * gap)

    def added(self, h):
        return jnp.tanh(h)


@dataclasses.dataclass(frozen=True)
class PairCell(DecayingCell):
    """One that is given both products by themselves."""

    use_recurrent_bias: bool = True
    additive = False

    def update(self, params, x, carry, gap):
        x, recurrent = x
        return super().update(params, x, carry, gap + 0.1 * recurrent.mean(-1, keepdims=True))


@dataclasses.dataclass(frozen=True)
class LinearCell(DecayingCell):
    """An affine one."""

    recurrent = None
    coupling = Coupling.CONTRACTING

    def added(self, h):
        return h


@dataclasses.dataclass(frozen=True)
class SquaredCell(LinearCell):
    """An affine one, whose output is not its state."""

    output = None
    coupling = Coupling.CONTRACTING

    def update(self, params, x, carry, gap):
        new = super().update(params, x, carry, gap)
        return new, new.hidden * carry.hidden


def test_raw_features_are_not_in_a_product():
    cell = DecayingCell(4, dtype=jnp.bfloat16)
    params = begun(cell, 3)
    assert params["kernel"].shape == (2, 8)
    gap = 1 + 1 / 512  # which bfloat16 does not know
    xs, raw = split_raw(cell, jnp.full((2, 3), gap))
    assert xs.shape == (2, 2)
    assert raw["gap"].tolist() == [[gap]] * 2


class SumCell(UserCell):
    """A sum of what comes, all of which the update reads as it is."""

    gates = ()
    recurrent, use_bias = None, False
    coupling = Coupling.CONTRACTING
    raw = property(lambda self: {"value": self.hidden_size, "gap": 1})

    def update(self, params, x, carry, value, gap):
        return rnnjax.SimpleRNNCarry(jnp.exp(-gap * gap) * carry.hidden + value)


class Gateless(SumCell):
    """A kernel without columns is no sign that all inputs are raw."""

    raw = {"gap": 1}
    coupling = Coupling.CONTRACTING

    def update(self, params, x, carry, gap):
        more = 1 + x.sum(axis=-1, keepdims=True)
        return rnnjax.SimpleRNNCarry(jnp.exp(-gap * gap) * carry.hidden + more)


CODES = 5_000


@pytest.mark.parametrize("method", [Scan(), Fused(), Fused(keep_every=3)], ids=str)
def test_codes_beside_raw_features_make_no_vectors(method, random_like, assert_close):
    """Values, gradients, lengths and resets of a pair are those of one dense array."""
    cell = DecayingCell(4)
    params = random_like(lambda: cell.init(jax.random.key(0), CODES + 1), 1)
    ids = np.random.default_rng(0).integers(0, CODES, (7, 2))
    gaps = np.float32(np.random.default_rng(1).random((7, 2, 1)))
    resets = np.zeros((7, 2), bool)
    resets[3, 1] = True
    marks = {"lengths": np.array([7, 4]), "resets": resets}

    def loss(params, gaps, dense, method):
        codes = jax.nn.one_hot(ids, CODES) if dense else rnnjax.OneHot(jnp.asarray(ids), CODES)
        xs = jnp.concatenate([codes, gaps], axis=-1) if dense else (codes, gaps)
        carry, ys = rnnjax.unroll(cell, params, xs, method=method, **marks)
        return (ys**2).sum() + carry.hidden.sum()

    gradient = jax.value_and_grad(loss, (0, 1))
    run = jax.jit(gradient, static_argnums=(2, 3))
    assert_close(run(params, gaps, False, method), run(params, gaps, True, Scan()), 1e-5)
    made = _shapes(jax.make_jaxpr(gradient, (2, 3))(params, gaps, False, method))
    assert {shape for shape in made if CODES in shape} == {(CODES, 8)}


def _shapes(program):
    """The shapes of all arrays of a program, and of those within it."""
    found = set()
    for eqn in program.eqns:
        found |= {getattr(v.aval, "shape", ()) for v in (*eqn.invars, *eqn.outvars)}
        for inner in jaxprs_in_params(eqn.params):
            found |= _shapes(inner)
    return found


def test_a_pair_goes_wherever_inputs_go(random_like, assert_close):
    """One step, prepared steps, a stack, both directions, Flax's layers, an exported program."""
    stack = rnnjax.Stack(
        [
            DecayingCell(4),
            rnnjax.GRUCell(3),
            rnnjax.Bidirectional(DecayingCell(2), rnnjax.GRUCell(2)),
        ]
    )
    assert stack.raw == {"gap": 1}
    params = random_like(lambda: stack.init(jax.random.key(0), 9), 1)
    xs = random_like(jax.ShapeDtypeStruct((7, 2, 9), "f"), 2)
    pair = xs[..., :8], xs[..., 8:]

    @jax.jit
    def unrolled(params):
        # The gaps reach the third layer too, beside the outputs of the second.
        _, ys = rnnjax.unroll(rnnjax.Stack(stack.cells[:2]), params[:2], xs)
        last = rnnjax.unroll(stack.cells[2], params[2], (ys, pair[1]))
        return *(rnnjax.unroll(stack, params, given) for given in (xs, pair)), last

    expected, of_pair, last = unrolled(params)
    assert_close(of_pair, expected, 1e-6)
    assert_close(last[1], expected[1], 1e-6)
    cell, own = rnnjax.Stack(stack.cells[:1]), params[:1]
    codes = rnnjax.OneHot(jnp.array([[3, 1], [0, 7]]), 8)
    both = codes, jnp.ones((2, 2, 1))

    def by_each(own, both):
        yield rnnjax.unroll(cell, own, both)[1]
        by_row = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), both)
        found = rnnjax.linen.RNN(cell).apply({"params": {"cell": own}}, by_row)
        yield jnp.swapaxes(found, 0, 1)
        first, second = (jax.tree.map(lambda leaf, t=t: leaf[t], both) for t in range(2))
        for one, parameters in ((cell, own), rnnjax.prepare(cell, own, first)):
            carry, begin = one.step(parameters, one.initial_carry((2,)), first)
            yield jnp.stack([begin, one.step(parameters, carry, second)[1]])

    ys, *others = jax.jit(lambda *given: [*by_each(*given)])(own, both)
    for found in others:
        assert_close(found, ys, 1e-6)
    program = jax.export.export(jax.jit(functools.partial(rnnjax.unroll, cell)))(own, both)
    again = jax.export.deserialize(program.serialize())
    assert_close(again.call(own, both)[1], ys, 1e-6)


def test_dropout_of_inputs_drops_no_raw_features():
    cell = rnnjax.Regularized(SumCell(4), input_dropout=0.9)
    xs = jnp.ones((7, 2, 5))
    params = begun(cell, 5)
    noisy = rnnjax.unroll(cell, params, xs, key=jax.random.key(1))
    np.testing.assert_array_equal(noisy[1], rnnjax.unroll(SumCell(4), params, xs)[1])


def test_attention_beside_a_time_gap(random_like, assert_close):
    cell = rnnjax.AttentionCell(DecayingCell(4), memory_size=3, attention_size=2)
    params = random_like(lambda: cell.init(jax.random.key(0), 3), 1)
    memory = random_like(jax.ShapeDtypeStruct((5, 2, 3), "f"), 2)

    @jax.jit
    def both(params, x):
        carry, ready = cell.initial_carry((2,)), cell.over(params, memory)
        context = jnp.einsum("sb,sbm->bm", cell.weights(ready, carry), memory)
        inner = jnp.concatenate([x[:, :2], context, x[:, 2:]], axis=-1)  # with the gap at the end
        expected = DecayingCell(4).step(params["cell"], carry, inner)[1]
        return cell.step(ready, carry, x)[1][:, :4], expected

    assert_close(*both(params, np.ones((2, 3), np.float32)), 1e-6)


@pytest.mark.parametrize("kind", [rnnjax.LRUCell, rnnjax.S5Cell])
def test_intervals_of_a_state_space(kind, assert_close):
    """An interval of 1 is a step; one of 3 is three steps, two of them without an input."""
    cell, timed = kind(4), kind(4, intervals=True)
    params = begun(cell, 2)
    xs = np.random.default_rng(1).standard_normal((7, 2, 2), np.float32)
    assert_close(begun(timed, 3), params, 0)
    ones = np.concatenate([xs, np.ones((7, 2, 1), np.float32)], -1)
    late = np.concatenate([xs[0], np.full((2, 1), 3, np.float32)], -1)

    def pairs(params):
        carry, ys = rnnjax.unroll(cell, params, xs)
        for method in (Scan(), Parallel()):
            yield rnnjax.unroll(timed, params, ones, method=method), (carry, ys)
        yield timed.step(params, carry, ones[0]), cell.step(params, carry, xs[0])
        if kind is rnnjax.LRUCell:  # of a state space that holds its inputs, they count for longer
            after = carry
            for _ in range(2):
                after, _ = cell.step(params, after, jnp.zeros((2, 2)))
            yield timed.step(params, carry, late), cell.step(params, after, xs[0])

    found = jax.jit(lambda params: [*pairs(params)])(params)
    for i, pair in enumerate(found):
        assert_close(*pair, 1e-6 if i < 3 else 1e-5)


class CountedCarry(NamedTuple):
    count: jax.Array
    hidden: jax.Array


class CountedCell(UserCell):
    """A mean over all steps: its state begins with a counter."""

    carry = CountedCarry
    gates = ("i",)
    recurrent = None

    def initial_carry(self, batch_shape=(), dtype=None):
        zeros = jnp.zeros((*batch_shape, self.hidden_size), dtype or jnp.float32)
        return CountedCarry(zeros.astype(jnp.int32), zeros)

    def update(self, params, x, carry):
        count = carry.count + 1
        return CountedCarry(count, carry.hidden + (x - carry.hidden) / count)


@pytest.mark.parametrize("method", [Scan(), rnnjax.Auto()], ids=str)
def test_a_counter_before_the_state_does_not_make_the_outputs_integers(method, random_like):
    cell = CountedCell(3)
    params = random_like(lambda: cell.init(jax.random.key(0), 2), 1)
    xs = random_like(jax.ShapeDtypeStruct((5, 4, 2), "f"), 2)

    def loss(params):
        out = rnnjax.unroll(cell, params, xs, method=method)
        return out[1].sum(), out

    assert rnnjax.Auto().choose(cell) == Scan()
    slopes, (carry, ys) = jax.jit(jax.grad(loss, has_aux=True))(params)
    assert all(np.isfinite(leaf).all() for leaf in slopes.values())
    projected = xs @ params["kernel"] + params["bias"]
    steps = 1 + np.arange(5)[:, None, None]
    np.testing.assert_allclose(ys, np.cumsum(projected, axis=0) / steps, rtol=1e-5, atol=1e-6)
    assert carry.count.dtype == jnp.int32


class TurnedCell(rnnjax.SimpleRNNCell):
    recurrent = None

    def update(self, params, x, carry):
        return rnnjax.SimpleRNNCarry(1j * carry.hidden + x)


class FractionCell(CountedCell):
    def update(self, params, x, carry):
        return CountedCarry(carry.count + 0.5, x)


class PartCell(TurnedCell):
    """A complex state, of which the output is the real part, by itself a real array."""

    output = None
    output_size = 3

    def initial_carry(self, batch_shape=(), dtype=None):
        return rnnjax.SimpleRNNCarry(jnp.zeros((*batch_shape, self.hidden_size), jnp.complex64))

    def update(self, params, x, carry):
        carry = super().update(params, x, carry)
        return carry, carry.hidden.real


@pytest.mark.parametrize("method", [Scan(), Fused()], ids=str)
def test_a_real_output_of_a_complex_state_is_real(method):
    cell = PartCell(3)
    params, xs = begun(cell, 2), jnp.ones((4, 3, 2))
    assert rnnjax.unroll(cell, params, xs, method=method)[1].dtype == jnp.float32


@pytest.mark.usefixtures("x64")
def test_a_state_is_as_wide_as_the_inputs_and_a_reset_rounds_nothing():
    cell = rnnjax.GRUCell(3)
    params, xs = begun(cell, 2), np.ones((4, 3, 2))
    narrow, wide = (cell.initial_carry((3,), dtype) for dtype in (jnp.float32, jnp.float64))
    assert rnnjax.unroll(cell, params, xs)[0].hidden.dtype == jnp.float64
    resets = np.ones((4, 3), bool)
    for start in (narrow, wide):
        carry, _ = rnnjax.unroll(cell, params, np.float32(xs), reset_carry=start, resets=resets)
        assert carry.hidden.dtype == start.hidden.dtype
    message = "reset_carry must have the types of the carry.* float64 for float32.*cast one of them"
    with pytest.raises(InvalidInputError, match=message):
        rnnjax.unroll(cell, params, xs, narrow, reset_carry=wide, resets=resets)


@jax.custom_vjp
def clipped(state):
    return state


clipped.defvjp(lambda state: (state, None), lambda _, d: (jnp.clip(d, -1, 1),))


class ClippedCell(rnnjax.MinGRUCell):
    coupling = Coupling.CONTRACTING

    def update(self, params, x, carry):
        return super().update(params, x, jax.tree.map(clipped, carry))


# ---- all of them, by every method; and what is declared or given wrongly

AXES = (AxisOneCell(4), Parallel()), (AxisOneRNNCell(4), rnnjax.Auto())


@pytest.mark.parametrize(
    ("cell", "methods", "given"),
    [
        (MaskedKernelCell(4), [Fused(), *map(Fused, (1, 9))], {}),  # of seven steps
        (DecayingCell(4), [Fused(), Fused(keep_every=3)], {}),
        (PairCell(4), [Fused()], {}),
        (LinearCell(4), [Fused(), Parallel()], {}),
        (SquaredCell(4), [Parallel()], {}),
        (ClippedCell(3), [Fused()], {}),
        (Gateless(4), [Fused(), Parallel()], {"features": 5}),
        *(
            (SumCell(4), [Fused(), Fused(2), Parallel()], {"features": 5, "reverse": reverse})
            for reverse in (False, True)
        ),
        *(
            (cell, [Fused(), other], {"steps": steps, "scale": 0.3})
            for cell, other in AXES
            for steps in (2, 600)
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, rnnjax.Cell) else "",
)
def test_what_only_an_update_reads_by_every_method(cell, methods, given, equal_to_scan):
    """Guards the gradient of raw features, and that an update is given one step."""
    given = {"steps": 7, "features": 3} | given
    resets = np.zeros((given["steps"], 2), bool)
    resets[2:3, 1] = resets[5:6] = True
    lengths = np.array([given["steps"], given["steps"] // 2])
    equal_to_scan(cell, methods, (2,), lengths=lengths, resets=resets, **given)


KEY, XS, IDS = jax.random.key(0), np.ones((7, 2, 3), "f"), np.zeros((7, 2), int)
X, GAP, ONE_HOT = XS[..., :2], XS[..., 2:], rnnjax.OneHot(IDS, 3)
CELL, LSTM, STEP = DecayingCell(4), rnnjax.LSTMCell(4), OwnStepCell(4)
NONE = {**blank(CELL, 3), "kernel": np.zeros((0, 8), "f")}


def over(xs, cell=CELL, features=3, params=None, **given):
    return rnnjax.unroll(cell, params or blank(cell, features), xs, **given)


def declared(cell, features, method):
    params = {name: np.zeros(of[0], "f") for name, of in cell.parameters(features).items()}
    return over(np.ones((5, 2, features), "f"), cell, params=params, method=method)


def odd(*base, name="Odd", **declared):
    return type(name, base or (DecayingCell,), declared)


SIMPLE, SQUARE = rnnjax.SimpleRNNCell, lambda n, role: rnnjax.Param((n, n), "orthogonal", role)
# A kernel only where the sizes differ; one as for a gate of several; a bias without a product.
SkipCell = with_parameters(SIMPLE, lambda h, n: {"skip": SQUARE(h, Role.UNIT)} if n != h else {})
NarrowCell = with_parameters(
    SIMPLE, lambda h, n: {"recurrent_kernel": SQUARE(h, Role.LOOP)}, gates=("f", "n")
)
BiasedCell = with_parameters(
    SIMPLE, lambda h, n: {"recurrent_bias": rnnjax.Param((h,), role=Role.BIAS)}, recurrent=None
)
ALONE = r"input_size of DecayingCell.* at least 2, .*gap, but is 1; .*write gates = \(\)"
UNADDED = r"of Odd\({0}\) must .* {1} and {0}; write additive = False"
CANNOT = r"update of {}\(3\) cannot run: it returned .{}"
COMPLEX = r"carry\.hidden must be complex64, but is float32"
test_what_is_declared_or_given_wrongly_names_the_cure = refusals(
    [
        (lambda: SkipCell(4).init(KEY, 4), "skip differs between 1 and 4 features; make it"),
        *(
            (functools.partial(declared, *given, method), message)
            for method in (Scan(), Fused())
            for *given, message in (
                (odd(rnnjax.MinGRUCell, coupling="affine")(4), 3, r"be a rnnjax\.Coup"),
                (SkipCell(4), 4, "same names and roles"),
                (MaskedKernelCell(4, role=Role.LOOP), 3, r"Role\.LOOP knows only state @ params"),
                (NarrowCell(1), 3, UNADDED.format(1, 2)),
                (NarrowCell(4), 3, UNADDED.format(4, 8)),
                (BiasedCell(4), 3, "recurrent_bias is one too.*role UNIT"),
            )
        ),
        *(
            (lambda of={name: sizes}: odd(**of), rf"^{name} of Odd must have names other than")
            for name, all_sizes in (
                ("raw", [("gap",), {"x": 1}, {"gap": 0}]),
                ("loop", [("kernel_2",), {"own": 1.5}, {"own": (4, 0)}, {"kernel": 1}, None]),
            )
            for sizes in all_sizes
        ),
        # raw features
        (lambda: over(GAP, params=NONE), ALONE),
        (lambda: CELL.init(KEY, input_size=1), ALONE),
        (lambda: over(ONE_HOT), r"but has 0; give the pair \(xs, raw\), .* with its gap \(1\)"),
        (lambda: over((X, XS)), r"but has 3; give the pair .* its gap \(1\)"),
        (lambda: over((X, GAP[1:])), "same axes before the last, .* check the order of both"),
        (lambda: over((X, ONE_HOT)), "vectors or a OneHot, and an array of raw features"),
        (lambda: over((IDS, GAP)), r"ids are given as rnnjax\.OneHot\(ids, size\)"),
        (lambda: over((X, GAP), LSTM, 2), r"LSTMCell\(4\) names.* give the first part alone"),
        (lambda: over((XS, XS), STEP), "OwnStep.* names, .* the first part alone"),
        # A combination speaks of its own raw features, not of those of a layer.
        (lambda: over(ONE_HOT, rnnjax.Stack([CELL, LSTM])), "that a Stack names"),
        (lambda: over((XS, XS), rnnjax.Stack([CELL, LSTM])), "that a Stack names"),
        (lambda: rnnjax.Stack([LSTM, CELL]).init(KEY, 1), "input_size of a Stack must be .*gap"),
        (lambda: rnnjax.Stack([CELL, odd(raw={"gap": 2})(4)]), "'gap' of a Stack .* 1 and 2"),
        (lambda: over(XS, odd(update=lambda self, params, x, carry: carry)(4)),
         r"update of Odd.*unexpected keyword.*'gap'"),
        # states
        *(
            (functools.partial(over, X, cell, 2, method=method), CANNOT.format(*said))
            for method in (Scan(), rnnjax.Auto())
            for cell, *said in (
                (TurnedCell(3), "TurnedCell", "hidden complex64"),
                (FractionCell(3), "FractionCell", "count float32"),
            )
        ),
        *(
            (functools.partial(over, X, PartCell(3), 2, carry=begun, method=method), COMPLEX)
            for begun in [rnnjax.SimpleRNNCarry(np.zeros((2, 3), "f"))]
            for method in (Scan(), Fused())
        ),
        (lambda: over(X, ClippedCell(3), 2),
         r"update of ClippedCell\(3\) must have a derivative forwards.*custom_vjp; .*Fused"),
    ]
)  # fmt: skip
