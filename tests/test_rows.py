"""Cells in which the rows of a batch see each other: Scan's numbers, or a refusal."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax.online import RTRL, UORO, EProp, SnAp1


@dataclasses.dataclass(frozen=True)
class NormedCell(rnnjax.Cell):
    """A norm over the batch."""

    hidden_size: int
    recurrent = None
    carry = rnnjax.SimpleRNNCarry
    gates = ("h",)

    def update(self, params: Any, x: jax.Array, carry: Any) -> rnnjax.SimpleRNNCarry:
        x = (x - x.mean(0)) / jnp.sqrt(x.var(0) + 0.1)
        return rnnjax.SimpleRNNCarry(0.5 * carry.hidden + x)


class MeetingCell(NormedCell):
    """Its states differ from their mean."""

    def update(self, params: Any, x: jax.Array, carry: Any) -> rnnjax.SimpleRNNCarry:
        return rnnjax.SimpleRNNCarry(x + 0.5 * carry.hidden - 0.3 * carry.hidden.mean(0))


class NeighboursCell(NormedCell):
    """Each row sees the one before, by an operation that keeps all shapes."""

    def update(self, params: Any, x: jax.Array, carry: Any) -> rnnjax.SimpleRNNCarry:
        return rnnjax.SimpleRNNCarry(0.5 * carry.hidden + jnp.cumsum(x, axis=0))


class ShuffledCell(NormedCell):
    """Rows and units exchange places."""

    def update(self, params: Any, x: jax.Array, carry: Any) -> rnnjax.SimpleRNNCarry:
        x = x.reshape(x.shape[::-1]).T
        return rnnjax.SimpleRNNCarry(0.5 * carry.hidden + x)


class ReadCell(NormedCell):
    """A norm over the batch behind the loop."""

    output = None

    def update(self, params: Any, x: jax.Array, carry: Any) -> Any:
        new = rnnjax.SimpleRNNCarry(0.5 * carry.hidden + x)
        return new, new.hidden

    def readout(self, params: Any, shown: jax.Array, xs: Any) -> jax.Array:
        return shown - shown.mean(0)


class CountedCell(NormedCell):
    """Divides by the number of rows, which no operation shows."""

    def update(self, params: Any, x: jax.Array, carry: Any) -> rnnjax.SimpleRNNCarry:
        return rnnjax.SimpleRNNCarry(0.5 * carry.hidden + x / len(x))


class HeldCell(NormedCell):
    """Divides by the number of rows, which is in an array that its program holds."""

    def update(self, params: Any, x: jax.Array, carry: Any) -> rnnjax.SimpleRNNCarry:
        return rnnjax.SimpleRNNCarry(0.5 * carry.hidden + x * jnp.asarray([1 / len(x)]))


class PowerCell(NormedCell):
    """Raises to the power of the number of rows."""

    def update(self, params: Any, x: jax.Array, carry: Any) -> rnnjax.SimpleRNNCarry:
        return rnnjax.SimpleRNNCarry(0.5 * carry.hidden + jnp.tanh(x) ** len(x))


class ClippedCell(NormedCell):
    """Scales all rows where they are large together, which small numbers do not show."""

    def update(self, params: Any, x: jax.Array, carry: Any) -> rnnjax.SimpleRNNCarry:
        return rnnjax.SimpleRNNCarry(0.5 * carry.hidden + x / jnp.maximum(x.max() / 20, 1))


class FromTheFirstCell(NormedCell):
    """Counts its axes from the first, and so takes chunks for the batch."""

    def update(self, params: Any, x: jax.Array, carry: Any) -> rnnjax.SimpleRNNCarry:
        return rnnjax.SimpleRNNCarry(0.5 * carry.hidden + jax.nn.softmax(x, axis=1))


class SortedCell(NormedCell):
    """Its units see each other, in operations that rows could be mixed by as well."""

    def update(self, params: Any, x: jax.Array, carry: Any) -> rnnjax.SimpleRNNCarry:
        x = jnp.cumsum(jnp.sort(x, axis=-1), axis=-1)
        return rnnjax.SimpleRNNCarry(0.5 * carry.hidden + x)


def loop(cell: Any, params: Any, xs: jax.Array, valid: jax.Array) -> jax.Array:
    """By hand; padding is zeros, and holds the state."""
    carry, ys = cell.initial_carry(xs.shape[1:-1]), []
    for x, real in zip(xs, valid[..., None], strict=True):
        new, y = cell.step(params, carry, jnp.where(real, x, 0))
        carry = jax.tree.map(lambda n, o, real=real: jnp.where(real, n, o), new, carry)
        ys.append(jnp.where(real, y, 0))
    return jnp.stack(ys)


@pytest.mark.parametrize(
    "kind", [NormedCell, MeetingCell, NeighboursCell, ShuffledCell, ReadCell, CountedCell]
)
def test_runs_as_the_plain_scan_or_is_refused(kind: type[NormedCell]) -> None:
    cell = kind(4)
    params = cell.init(jax.random.key(0), 3)
    xs, lengths = jax.random.normal(jax.random.key(1), (6, 5, 3)), jnp.array([6, 3, 5, 2, 1])

    @jax.jit
    def both(params: Any, xs: jax.Array) -> Any:
        def library(params: Any, xs: jax.Array) -> jax.Array:
            return jnp.sin(rnnjax.unroll(cell, params, xs, lengths=lengths)[1]).sum()

        def by_hand(params: Any, xs: jax.Array) -> jax.Array:
            valid = rnnjax.valid_steps(lengths, 6)
            return jnp.sin(loop(cell, params, xs, valid)).sum()

        return [jax.value_and_grad(f, (0, 1))(params, xs) for f in (library, by_hand)]

    ours, expected = map(jax.tree.leaves, both(params, xs))
    for one, other in zip(ours, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)

    assert "Scan(), because the rows of a batch see each other" in str(
        rnnjax.explain(cell, params, xs)
    )
    newton = rnnjax.Parallel(newton=rnnjax.Newton())
    for method in (rnnjax.Fused(), rnnjax.Parallel(), newton, rnnjax.Chunked(), rnnjax.Kernel()):
        with pytest.raises(rnnjax.InvalidInputError, match="rows of a batch see each other"):
            rnnjax.unroll(cell, params, xs, method=method)


@pytest.mark.parametrize("kind", [HeldCell, PowerCell, ClippedCell])
def test_what_operations_and_small_numbers_do_not_show(kind: type[NormedCell]) -> None:
    assert rnnjax.Fused().refusal(kind(4)) == "the rows of a batch see each other in its step"


def test_steps_are_not_put_beside_each_other_where_axes_are_counted_from_the_first() -> None:
    cell, newton = FromTheFirstCell(4), rnnjax.Parallel(newton=rnnjax.Newton())
    for method in (rnnjax.Chunked(), rnnjax.Parallel(), newton):
        assert str(method.refusal(cell)).endswith("count axes from the last")
    for method in (rnnjax.Fused(), rnnjax.Kernel()):
        assert method.refusal(cell) is None
    with pytest.raises(rnnjax.InvalidInputError, match="over 2 axes of rows"):
        rnnjax.unroll(
            cell, cell.init(jax.random.key(0), 3), jnp.ones((4, 2, 5, 3)), method=rnnjax.Kernel()
        )


@pytest.mark.parametrize("learner", [RTRL, functools.partial(RTRL, dense=True), SnAp1, EProp, UORO])
def test_no_learner_serves_them(learner: Any) -> None:
    cell = NormedCell(4)
    params = cell.init(jax.random.key(0), 3)
    with pytest.raises(rnnjax.InvalidInputError, match="see each other in its step; train it by"):
        learner(cell).init(params, (5,))


def test_units_may_see_each_other() -> None:
    cell = SortedCell(4)
    assert rnnjax.Fused().refusal(cell) is None
    assert rnnjax.Chunked().refusal(cell) is None
    assert rnnjax.Parallel().refusal(cell) is None


@dataclasses.dataclass(frozen=True)
class BlocksCell(NormedCell):
    """Reads its inputs in blocks, of which not every number of features makes whole ones."""

    blocks: int = 4

    output = None

    def update(self, params: Any, x: jax.Array, carry: Any) -> Any:
        new = rnnjax.SimpleRNNCarry(0.5 * carry.hidden + x)
        return new, new.hidden

    def readout(self, params: Any, shown: jax.Array, xs: Any) -> jax.Array:
        return shown * xs.reshape(*xs.shape[:-1], self.blocks, -1).mean((-2, -1))[..., None]


def test_the_number_of_features_that_a_cell_asks_for_is_found() -> None:
    assert rnnjax.Fused().refusal(BlocksCell(5)) is None
    assert rnnjax.Auto().choose(BlocksCell(5)) == rnnjax.Fused()


def test_what_cannot_be_tried_is_not_taken_apart() -> None:
    cell = BlocksCell(5, blocks=7)
    assert str(rnnjax.Fused().refusal(cell)).startswith(
        "its step could not be tried with any of 1, 2, 3, 4, 5, 10, 15, 20 features (TypeError: "
    )
    assert rnnjax.Auto().choose(cell) == rnnjax.Scan()
