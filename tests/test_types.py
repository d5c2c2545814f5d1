"""What type checkers know of a cell: `make lint` has mypy read this file, and pytest runs it."""

import dataclasses
from typing import Any, assert_type

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax import GRUCarry, InvalidInputError, LSTMCarry, MatrixCarry, SimpleRNNCarry, unroll

XS = jnp.ones((3, 2, 4))


def drawn(cell: rnnjax.Cell) -> Any:
    return cell.init(jax.random.key(0), 4)


def test_a_carry_has_the_type_that_its_cell_declares() -> None:
    cell = rnnjax.LSTMCell(5)
    carry, ys = unroll(cell, drawn(cell), XS)
    assert_type(carry, LSTMCarry)
    assert_type(carry.cell, jax.Array)
    assert_type(cell.initial_carry((2,)), LSTMCarry)
    assert_type(cell.step(drawn(cell), carry, XS[0])[0], LSTMCarry)
    assert isinstance(carry, LSTMCarry)
    assert ys.shape == (3, 2, 5)
    carry, _ = unroll(cell, drawn(cell), np.ones((3, 2, 4), "f"), lengths=np.array([3, 2]))


def test_the_types_of_combinations_follow() -> None:
    gru = rnnjax.GRUCell(4)
    for wrapped in (rnnjax.LearnedCarry(gru), rnnjax.Regularized(gru, zoneout_hidden=0.1)):
        carry, _ = unroll(wrapped, drawn(wrapped), XS)
        assert_type(carry, GRUCarry)
        assert isinstance(carry, GRUCarry)
    ready, laid_out = rnnjax.prepare(gru, drawn(gru), XS[0])
    assert_type(ready.step(laid_out, ready.initial_carry((2,)), XS[0])[0], GRUCarry)
    both = rnnjax.Bidirectional(gru)
    assert_type(unroll(both, drawn(both), XS)[0], rnnjax.Directions)
    stack = rnnjax.Stack([gru])
    assert_type(unroll(stack, drawn(stack), XS)[0], tuple[Any, ...])
    assert_type(rnnjax.Mamba2Cell(4).initial_carry(), MatrixCarry)


@dataclasses.dataclass(frozen=True)
class Named(rnnjax.Cell[SimpleRNNCarry]):
    """A cell of one's own that names its carry."""

    hidden_size: int
    carry = SimpleRNNCarry
    gates = ("h",)

    def update(self, params: Any, x: Any, carry: SimpleRNNCarry) -> SimpleRNNCarry:
        return SimpleRNNCarry(jnp.tanh(x))


@dataclasses.dataclass(frozen=True)
class Unnamed(rnnjax.Cell):
    """A cell that does not."""

    hidden_size: int
    carry = SimpleRNNCarry
    gates = ("h",)

    def update(self, params: Any, x: Any, carry: Any) -> Any:
        return SimpleRNNCarry(jnp.tanh(x))


def test_a_cell_of_ones_own_may_name_its_carry() -> None:
    named, unnamed = Named(5), Unnamed(5)
    assert_type(unroll(named, drawn(named), XS)[0], SimpleRNNCarry)
    carry, _ = unroll(unnamed, drawn(unnamed), XS)
    assert_type(carry, Any)
    assert isinstance(carry, SimpleRNNCarry)


def test_arguments_in_another_order_are_a_type_error() -> None:
    """mypy is strict: a comment below that ignored no error would be one itself."""
    cell = rnnjax.LSTMCell(5)
    with pytest.raises(InvalidInputError):
        unroll(cell, XS, drawn(cell))  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError):
        unroll(drawn(cell), cell, XS)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError):
        unroll(rnnjax.LSTMCell, drawn(cell), XS)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError):
        unroll(cell, drawn(cell), XS, GRUCarry(XS[0]))  # type: ignore[misc]
