"""`check_cell` on cells that break what they promise, each in one way, and on all that do not."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cell_table import CELLS, UserCell, with_parameters

import rnnjax
from rnnjax import Coupling, Param, Role, SimpleRNNCarry
from rnnjax.online import why_not_unitwise
from rnnjax.testing import check_cell

APART = "rows of a batch must not interact"
AXES = "over any number of batch axes"
MIXED = "units see each other's state"
NOT_AFFINE = "not affine in the old one; declare ELEMENTWISE"
GROWS = "a state grows by"
NOT_FINITE = "must be finite where masked inputs alone are NaN"
DEAD = "own of Lie.4. must begin where it can learn, but the gradient of {} of its {} numbers is 0"
AFFINE, ELEMENTWISE = {"coupling": Coupling.AFFINE}, {"coupling": Coupling.ELEMENTWISE}
GAPS = {"raw": {"gap": 1}}


class Honest(UserCell):
    """A leaky sum, of which each lie changes one line."""

    recurrent = None
    coupling = Coupling.CONTRACTING

    def update(self, params: Any, x: Any, carry: Any, **raw: Any) -> Any:
        x = jnp.concatenate([x, *raw.values()], axis=-1)
        return SimpleRNNCarry(self.new(params, x, carry.hidden))

    def new(self, params: Any, x: jax.Array, h: jax.Array) -> jax.Array:
        return 0.5 * h + x


class Read(Honest):
    """With something after the loop."""

    output = None
    coupling = Coupling.CONTRACTING

    def update(self, params: Any, x: Any, carry: Any) -> Any:
        new = SimpleRNNCarry(0.5 * carry.hidden + x)
        return new, new.hidden


def lie(new: Any = None, base: type = Honest, **changed: Any) -> rnnjax.Cell:
    """Four units of the honest cell, but for what is given."""
    methods = changed if new is None else {"new": lambda self, p, x, h: new(x, h), **changed}
    return type("Lie", (base,), methods)(4)


def adds(function: Any, **changed: Any) -> rnnjax.Cell:
    """Units that keep half of themselves, and add a function of what comes in."""
    return lie(lambda x, h: 0.5 * h + function(x), **changed)


def reads(readout: Any) -> rnnjax.Cell:
    return lie(base=Read, readout=lambda self, params, emitted, xs: readout(emitted, xs))


def mean(x: jax.Array) -> jax.Array:
    return x.mean(-1, keepdims=True)


def unit(x: jax.Array) -> jax.Array:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def backwards(rule: Any) -> Any:
    """The identity, with another derivative."""
    function = jax.custom_vjp(lambda x: x)
    function.defvjp(lambda x: (x, None), lambda _, d: (rule(d),))
    return function


def with_parameter(shape: tuple[int, ...], new: Any, init: str = "zeros", **more: Any) -> Any:
    def update(self: Any, p: Any, x: Any, carry: Any, **raw: Any) -> Any:
        x = jnp.concatenate([x, *raw.values()], axis=-1)
        return SimpleRNNCarry(new(p["own"], x, carry.hidden))

    base = with_parameters(Honest, lambda *_: {"own": Param(shape, init)})
    return lie(base=base, update=update, **{"coupling": Coupling.CONTRACTING} | more)


def declares(change: Any, new: Any = None, **more: Any) -> Any:
    """Other parameters, which may depend on the number of features."""
    return lie(new, with_parameters(Honest, lambda _, size: change(size)), **more)


class Remembers(UserCell):
    """A matrix memory."""

    carry = rnnjax.MatrixCarry
    gates = "q", "k", "v"
    recurrent = None
    output = None
    carry_shapes = property(lambda self: {"memory": (1, self.hidden_size, self.hidden_size)})

    def memory(self, params: Any, x: jax.Array) -> rnnjax.Memory:
        q, k, v = jnp.split(x[..., None, :], 3, axis=-1)
        return rnnjax.Memory(q, k, self.values(v), log_decay=jnp.full_like(q[..., 0], -0.1))

    def values(self, v: jax.Array) -> jax.Array:
        return v


class Interleaved(Honest):
    """The gates of a unit stand side by side, and not the units of a gate."""

    gates = "a", "b"
    coupling = Coupling.CONTRACTING

    def update(self, params: Any, x: Any, carry: Any) -> Any:
        a, b = jnp.moveaxis(x.reshape(*x.shape[:-1], self.hidden_size, 2), -1, 0)
        decay = jax.nn.sigmoid(a)
        return SimpleRNNCarry(decay * carry.hidden + (1 - decay) * b)


def half_below(key: Any, shape: Any, dtype: Any) -> jax.Array:
    return jnp.array([0.5, -0.5, 0.5, -0.5], dtype)


class Closed(rnnjax.MLSTMCell):
    """Decays and weights of zero, whose logarithms are minus infinity."""

    def memory(self, params: Any, x: Any) -> Any:
        memory = super().memory(params, x)
        decay = memory.log_decay + jnp.where(x[..., :1] > 0, -jnp.inf, 0)
        return memory._replace(log_decay=decay, log_beta=jnp.where(x[..., 1:2] > 1, -jnp.inf, 0))


COUNT = itertools.count()
LIES = {
    # rows that interact
    "row-norm": (adds(lambda x: x - x.mean(0)), APART),
    "state-norm": (lie(lambda x, h: x + 0.5 * h - 0.3 * h.mean(0)), APART),
    "four-apart": (adds(lambda x: (x.at[4:].add(x[:-4]) if len(x) > 4 else x)), APART),
    "number-of-rows": (adds(lambda x: x / len(x)), APART),
    "clipped-by-all": (adds(lambda x: x / jnp.maximum(x.max() / 20, 1)), APART),
    "largest-rows": (
        adds(lambda x: x * (x.sum(-1) >= jax.lax.top_k(x.sum(-1), 1)[0][-1])[..., None]), AXES,
    ),
    "on-the-mean": (adds(lambda x: jax.lax.cond(x.mean() > 0, jnp.tanh, jnp.negative, x)), APART),
    "gradient-of-all-rows": (adds(backwards(lambda d: d / (1 + jnp.abs(d).max()))), APART),
    # axes that are counted from the first
    "update-axis-1": (adds(lambda x: jax.nn.softmax(x, axis=1)), AXES),
    "update-axis-1-of-two": (adds(lambda x: jax.nn.softmax(x, axis=min(1, x.ndim - 1))), APART),
    "readout-axis-1": (reads(lambda emitted, xs: emitted / jnp.linalg.norm(emitted, axis=1)), AXES),
    "readout-reversed": (reads(lambda emitted, xs: emitted[:, ::-1]), "Too many indices"),
    "readout-rows": (reads(lambda emitted, xs: emitted - emitted.mean(0)), APART),
    "memory-axis-1": (lie(base=Remembers, values=lambda self, v: jax.nn.softmax(v, axis=1)), APART),
    # couplings
    "mixing-a-little": (lie(lambda x, h: jnp.tanh(h - 0.1 * mean(h)) + x, **ELEMENTWISE), MIXED),
    "mixing-by-a-threshold": (lie(lambda x, h: x + (mean(h) > 0), **ELEMENTWISE), MIXED),
    "mixing-late": (
        with_parameter((4, 4), lambda own, x, h: 0.5 * h + x + h @ own, **AFFINE), MIXED,
    ),
    "mixing-at-large": (lie(lambda x, h: 0.5 * h + jax.nn.relu(x - 3) * mean(h)), MIXED),
    "spike": (
        lie(lambda x, h: 0.9 * h + x - jax.lax.stop_gradient((h > 2).astype(x.dtype)), **AFFINE),
        NOT_AFFINE,
    ),
    "saturates": (lie(lambda x, h: jnp.clip(h, -1e5, 1e5) + x), NOT_AFFINE),
    "growth-by-inputs": (lie(lambda x, h: h * jax.nn.softplus(x)), GROWS),
    "growth-by-a-gap": (lie(lambda x, h: h * jnp.exp(x[..., 4:]) + x[..., :4], **GAPS), GROWS),
    "unmarked": (
        lie(lambda x, h: jnp.where(x[..., 4:] > 0, x[..., :4], jnp.sin(h)), **GAPS), NOT_AFFINE,
    ),
    "growth-by-a-parameter": (with_parameter((4,), lambda own, x, h: own * h + x, "zeros"), GROWS),
    "no-derivative": (
        lie(lambda x, h: backwards(lambda d: jnp.clip(d, -0.1, 0.1))(0.5 * h) + x),
        "its update raised TypeError",
    ),
    "two-shapes": (
        type("Lie", (rnnjax.ProjectionLSTMCell,), ELEMENTWISE)(4, proj_size=3),
        r"has the leaves float32 \(3,\), float32 \(4,\), of which no units are made",
    ),
    # parameters
    "skip": (declares(lambda n: {"skip": Param((4,))} if n != 4 else {}), "skip is another with 4"),
    "wider-bias": (declares(lambda n: {"bias": Param((4 + n,), "ones", Role.BIAS)}), "bias is ano"),
    # masks
    "zero-inputs": (adds(unit), NOT_FINITE),
    "zero-inputs-read": (reads(lambda emitted, xs: emitted / mean(xs)), NOT_FINITE),
    "zero-cotangents": (
        lie(lambda x, h: 0.5 * h + backwards(unit)(x), **ELEMENTWISE), NOT_FINITE,
    ),
    # where they begin
    "begins-at-a-relu": (
        with_parameter((4,), lambda own, x, h: jnp.exp(-jax.nn.relu(own)) * h + x),
        DEAD.format(4, 4),
    ),
    # Half cannot be woken by a gap, which is never below 0; and each waits for the other, for ever.
    "begins-before-a-gap": (
        with_parameter(
            (4,), lambda own, x, h: jnp.exp(-jax.nn.relu(own * x[..., 4:])) * h + x[..., :4],
            half_below, **GAPS,
        ),
        DEAD.format(2, 4),
    ),
    "begin-waiting": (
        with_parameter((2, 4), lambda own, x, h: 0.5 * h + (1 + own[0] * own[1]) * x),
        DEAD.format(8, 8),
    ),
    # randomness
    "drawn": (adds(lambda x: x * np.random.default_rng().random()), "must be a func"),
    "counted": (adds(lambda x: x * next(COUNT)), "must be a function of its arguments"),
}  # fmt: skip


@pytest.mark.parametrize("name", LIES)
def test_a_broken_promise_is_named(name: str) -> None:
    cell, message = LIES[name]
    with pytest.raises(AssertionError, match=message) as error:
        check_cell(cell)
    text = str(error.value)
    assert "Lie(4)" in text or type(cell).__name__ in text
    assert "\n" not in text
    assert ". " not in text


TRUTHS = {
    # One number waits for the other, which learns; and one is held.
    "gain": with_parameter((4,), lambda own, x, h: 0.5 * h + own * jnp.tanh(x)),
    "held": with_parameter((4,), lambda own, x, h: jax.lax.stop_gradient(own) * x, "ones"),
    "honest": lie(),
    "read": lie(base=Read),
    "remembers": lie(base=Remembers),
    "closed": Closed(4),
    # What is read of a memory that is empty, behind a mask, is divided by too.
    "remembers-a-mean": lie(
        base=Remembers,
        memory=lambda self, params, x: Remembers.memory(self, params, jax.nn.softplus(x)),
        recall=lambda self, params, x, read, _: (read[..., :-1] / read[..., -1:]).sum(-2),
        output_size=3,
    ),
    # Whose units see each other.
    "sorted": adds(lambda x: jnp.cumsum(jnp.sort(x, axis=-1), axis=-1)),
    "undeclared": lie(lambda x, h: jnp.roll(h, 1, -1) + x, coupling=Coupling.ANY),
    # Of which no learner takes parameters unit by unit.
    "shared": with_parameter((1,), lambda own, x, h: jax.nn.sigmoid(own) * h + x),
    "overflows": adds(lambda x: jnp.exp(12 * x)),
    "grows": lie(lambda x, h: 2 * h + x, **AFFINE),
    "elementwise": lie(lambda x, h: jnp.tanh(h) + x, **ELEMENTWISE),
    # The same for every number of features that it can have beside its gap.
    "decays": declares(
        lambda size: {"own": Param((4,))} if size > 1 else {},
        lambda x, h: h * jnp.exp(-x[..., 4:]) + x[..., :4],
        **GAPS,
    ),
    "grid": declares(lambda size: {"kernel": Param((3, size, 4), role=Role.INPUT)}),
}


@pytest.mark.parametrize("name", TRUTHS)
def test_a_kept_promise_passes(name: str) -> None:
    """Guards that gaps of time are drawn above zero, and what a chunk reads behind a mask."""
    check_cell(TRUTHS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", CELLS)
def test_every_cell_of_the_table_passes(name: str) -> None:
    """Whose laws tests/test_laws.py and tests/test_declarations.py hold one by one."""
    check_cell(CELLS[name], online=why_not_unitwise(CELLS[name]) is None)


def test_learners_take_gates_side_by_side() -> None:
    check_cell(Interleaved(4))
    for cell, message in (
        (Interleaved(4), "must belong to unit k % 4, as learners"),
        (TRUTHS["undeclared"], "cannot learn online unit by unit, because its coup"),
    ):
        with pytest.raises(AssertionError, match=message):
            check_cell(cell, online=True)


def test_other_numbers_of_features_and_types() -> None:
    check_cell(rnnjax.GRUCell(3, dtype=jnp.bfloat16), input_size=5)
    check_cell(lie(lambda x, h: 0.5 * h + x[..., :4] * x[..., 4:], raw={"gap": 2, "marks": 2}))


@pytest.mark.usefixtures("x64")
def test_whatever_a_program_forbids_itself() -> None:
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        check_cell(TRUTHS["honest"])
