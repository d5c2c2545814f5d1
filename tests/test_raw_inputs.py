"""Features that an update reads as they are: the numbers of the plain step by every method."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax import Coupling, Fused, InvalidInputError, Parallel
from rnnjax.online import SnAp1

TIME = 7


@dataclasses.dataclass(frozen=True)
class DecayingCell(rnnjax.Cell):
    """A state that decays over the time since the last step, which is the last feature."""

    hidden_size: int
    dtype: Any = None
    carry = rnnjax.SimpleRNNCarry
    gates = "h", "d"
    raw_inputs = 1

    def update(self, params, x, carry):
        h, d, gap = x[..., : self.hidden_size], x[..., self.hidden_size : -1], x[..., -1:]
        decay = jnp.exp(-jax.nn.softplus(d) * gap)
        return rnnjax.SimpleRNNCarry(decay * carry.hidden + jnp.tanh(h) * gap)


@dataclasses.dataclass(frozen=True)
class PairCell(DecayingCell):
    """One that is given both products by themselves."""

    use_recurrent_bias: bool = True
    additive = False

    def update(self, params, x, carry):
        x, recurrent = x
        product, gap = x[..., :-1], x[..., -1:]
        gap += 0.1 * recurrent.mean(-1, keepdims=True)
        return super().update(params, jnp.concatenate([product, gap], -1), carry)


@dataclasses.dataclass(frozen=True)
class LinearCell(DecayingCell):
    """An affine one."""

    recurrent = None
    coupling = Coupling.CONTRACTING

    def update(self, params, x, carry):
        h, d, gap = x[..., : self.hidden_size], x[..., self.hidden_size : -1], x[..., -1:]
        return rnnjax.SimpleRNNCarry(jnp.exp(-jax.nn.softplus(d) * gap) * carry.hidden + h * gap)


@dataclasses.dataclass(frozen=True)
class SquaredCell(LinearCell):
    """An affine one, whose output is not its state."""

    output = None
    coupling = Coupling.CONTRACTING

    def update(self, params, x, carry):
        new = super().update(params, x, carry)
        return new, new.hidden * carry.hidden


@pytest.mark.parametrize(
    ("cell", "methods"),
    [
        (DecayingCell(4), [Fused(), Fused(keep_every=3), Parallel(newton=rnnjax.Newton())]),
        (PairCell(4), [Fused()]),
        (LinearCell(4), [Fused(), Parallel()]),
        (SquaredCell(4), [Parallel()]),
    ],
    ids=str,
)
def test_every_method_gives_the_numbers_of_the_step(cell, methods, equal_to_scan):
    resets = np.zeros((TIME, 2), bool)
    resets[2, 1] = resets[5] = True
    marks = {"lengths": np.array([7, 4]), "resets": resets}
    equal_to_scan(cell, methods, (2,), steps=TIME, features=3, **marks)


def test_they_are_not_in_a_product():
    cell = DecayingCell(4, dtype=jnp.bfloat16)
    params = cell.init(jax.random.key(0), input_size=3)
    assert params["kernel"].shape == (2, 8)
    gap = 1 + 1 / 512  # which bfloat16 does not know
    assert cell.project(params, jnp.full((2, 3), gap))[0, -1] == jnp.float32(gap)


@dataclasses.dataclass(frozen=True)
class LastSeenCell(rnnjax.Cell):
    """One without a product: a value, and whether it is there."""

    hidden_size: int
    carry = rnnjax.SimpleRNNCarry
    gates = ()
    recurrent = None
    raw_inputs = property(lambda self: 2 * self.hidden_size)

    def update(self, params, x, carry):
        value, seen = jnp.split(x, 2, axis=-1)
        return rnnjax.SimpleRNNCarry(jnp.where(seen > 0, value, carry.hidden))


def test_they_may_be_all():
    cell = LastSeenCell(1)
    params = cell.init(jax.random.key(0), input_size=2)
    assert params["kernel"].shape == (0, 0)
    xs = jnp.array([[5.0, 0], [3, 1], [7, 0], [2, 1], [8, 0]])
    _, ys = rnnjax.unroll(cell, params, xs)
    assert ys[:, 0].tolist() == [0, 3, 3, 2, 2]


def test_where_they_are_refused():
    cell, xs = DecayingCell(4), jnp.ones((TIME, 2, 3))
    params = cell.init(jax.random.key(0), input_size=3)
    with pytest.raises(InvalidInputError, match="raw inputs are read by no kernel"):
        rnnjax.unroll(cell, params, xs, method=rnnjax.Kernel())
    none = {**params, "kernel": params["kernel"][:0]}
    with pytest.raises(InvalidInputError, match=r"input_size of DecayingCell.* at least 2"):
        rnnjax.unroll(cell, none, xs[..., :1])
    with pytest.raises(InvalidInputError, match="at least 2"):
        cell.init(jax.random.key(0), input_size=1)
    with pytest.raises(InvalidInputError, match=r"give jax\.nn\.one_hot"):
        rnnjax.unroll(cell, params, rnnjax.OneHot(jnp.zeros((TIME, 2), int), 3))
    assert "numbers a row" in str(rnnjax.explain(cell, params, xs, method=Fused()))
    ready, laid_out = rnnjax.prepare(cell, params, xs[0])
    assert ready == cell
    assert laid_out is params
    with pytest.raises(InvalidInputError, match="no part of a product"):
        SnAp1(cell)


@pytest.mark.parametrize("kind", [rnnjax.LRUCell, rnnjax.S5Cell])
def test_intervals_of_a_state_space(kind, assert_close):
    """An interval of 1 is a step; one of 3 is three steps, two of them without an input."""
    cell, timed = kind(4), kind(4, intervals=True)
    params = cell.init(jax.random.key(0), input_size=2)
    xs = jax.random.normal(jax.random.key(1), (TIME, 2, 2))
    assert_close(timed.init(jax.random.key(0), input_size=3), params, 0)
    ones = jnp.concatenate([xs, jnp.ones((TIME, 2, 1))], -1)
    expected = rnnjax.unroll(cell, params, xs)
    for method in (rnnjax.Scan(), Parallel()):
        assert_close(rnnjax.unroll(timed, params, ones, method=method), expected, 1e-6)
    carry, _ = expected
    assert_close(timed.step(params, carry, ones[0]), cell.step(params, carry, xs[0]), 1e-6)
    if kind is rnnjax.LRUCell:  # of a state space that holds its inputs, they count for longer
        late = timed.step(params, carry, ones[0].at[:, -1].set(3))
        for _ in range(2):
            carry, _ = cell.step(params, carry, jnp.zeros((2, 2)))
        assert_close(late, cell.step(params, carry, xs[0]), 1e-5)
