"""Cells made of other cells, and the protocol by which they run each of them."""

import abc
import copy
import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rnnjax.cells.base import Carry, CarryT, Cell, Inputs, Params
from rnnjax.cells.onehot import Beside
from rnnjax.cells.validation import as_inputs
from rnnjax.checks import brief
from rnnjax.errors import InvalidInputError


class LayerRun(Protocol):
    """Runs one layer over a whole sequence, or over one step."""

    def __call__(
        self,
        cell: Cell,
        params: Params,
        xs: Any,
        carry: Carry,
        *,
        key: jax.Array | None = None,
        reverse: bool = False,
        noise: Any = None,
    ) -> tuple[Carry, jax.Array]:
        """Run a layer, possibly a composite, and return its carry and outputs.

        The carry is passed on unchanged: the engine may have put more than arrays into its leaves.
        A composite samples its noise from ``key``, unless it is None. ``reverse`` is relative to
        the direction of the composite. ``noise`` is for a cell that is not a composite: a
        `rnnjax.engine.Steps` with what a regulariser sampled before the loop, or None.
        """


class CompositeCell(Cell[CarryT]):
    """A cell made of layers, each of which runs over the whole sequence before the next."""

    @abc.abstractmethod
    def unroll_layers(
        self, run: LayerRun, params: Params, xs: Inputs, carry: CarryT, key: jax.Array | None
    ) -> tuple[CarryT, jax.Array]:
        """Run the layers over ``xs (time, *batch, input_size)``, each by calling ``run``.

        Pass the leaves of the carry on unchanged. ``key`` is for random numbers in training, or
        None.
        """

    def step(self, params: Params, carry: CarryT, x: Inputs) -> tuple[CarryT, jax.Array]:
        """Run one time step of every layer: ``x (*batch, input_size)``."""

        def one_step(cell: Cell, params: Params, xs: Any, carry: Carry, **_: Any) -> Any:
            return cell.step(params, carry, xs)

        return self.unroll_layers(one_step, params, as_inputs(x), carry, None)


class CellGroup(CompositeCell[CarryT]):
    """Several cells; their parameters and their carry are a tuple with one entry for each."""

    cells: Any

    def entries(self, made: Iterable[Any]) -> Any:
        """Return the tuple of these entries, of the type in which the cells are."""
        return getattr(type(self.cells), "_make", tuple)(made)

    @property
    def raw(self) -> Mapping[str, int]:
        """The raw features of all cells: each is given those that it names."""
        return {name: size for cell in self.cells for name, size in cell.raw.items()}

    @property
    def is_stochastic(self) -> bool:
        """Whether one of the cells draws random numbers."""
        return any(cell.is_stochastic for cell in self.cells)

    def initial_carry(
        self, batch_shape: tuple[int, ...] = (), dtype: DTypeLike | None = None
    ) -> CarryT:
        """Return the initial carries."""
        return self.entries(cell.initial_carry(batch_shape, dtype) for cell in self.cells)

    def start(
        self, params: Params, batch_shape: tuple[int, ...] = (), dtype: DTypeLike | None = None
    ) -> CarryT:
        """Return the states at the start of a sequence."""
        self.check_entries("params", params)
        pairs = zip(self.cells, params, strict=True)
        return self.entries(cell.start(own, batch_shape, dtype) for cell, own in pairs)

    def size_without_raw(self, input_size: int) -> int:
        """Return how many features are not raw."""
        # A first cell that names raw features may read these alone, with a kernel of no rows.
        size = input_size - self.raw_size
        if size < (0 if self.cells[0].raw else 1):
            raise InvalidInputError(
                f"input_size of a {type(self).__name__} must be more than that of the raw features "
                f"of its cells, {dict(self.raw)}, but is {input_size}; count both"
            )
        return size

    def check_cells(self) -> None:
        """Raise unless all are cells."""
        for cell in self.cells:
            if not isinstance(cell, Cell):
                raise InvalidInputError(
                    f"a {type(self).__name__} is made of cells such as rnnjax.LSTMCell(50), but "
                    f"got {brief(cell)}"
                )
            odd = [n for n, size in cell.raw.items() if self.raw[n] != size]
            if odd:
                raise InvalidInputError(
                    f"the raw features {odd[0]!r} of a {type(self).__name__} must have one size in "
                    f"all its cells, which share them, but have {cell.raw[odd[0]]} and "
                    f"{self.raw[odd[0]]}; give one of them another name"
                )

    def check_entries(self, name: str, entries: Any) -> None:
        """Raise unless ``entries``, the ``name`` of this cell, are a tuple with one for each."""
        if not isinstance(entries, tuple) or len(entries) != len(self.cells):
            came = f"{len(entries)} entries" if isinstance(entries, tuple) else brief(entries)
            raise InvalidInputError(
                f"{name} of a {type(self).__name__} must be a tuple with an entry for each of its "
                f"{len(self.cells)} cells, but came with {came}; of a whole network give its part, "
                "or make it with init or initial_carry"
            )


def beside(cell: Cell, xs: Any, raw: Mapping[str, jax.Array]) -> Any:
    """Return the inputs of one of several cells: with those of the raw features that it names."""
    if not cell.raw:
        return xs
    return Beside(xs, jnp.concatenate([raw[name] for name in cell.raw], axis=-1))


class WrappedCell(Cell[CarryT]):
    """A cell around another one, with the same outputs, carry and parameters by default."""

    cell: Cell[CarryT]

    @property
    def raw(self) -> Mapping[str, int]:
        """The raw features of the wrapped cell."""
        return self.cell.raw

    @property
    def output_size(self) -> int:
        """The output size of the wrapped cell."""
        return self.cell.output_size

    def initial_carry(
        self, batch_shape: tuple[int, ...] = (), dtype: DTypeLike | None = None
    ) -> CarryT:
        """Return the wrapped cell's initial carry, which does not depend on parameters."""
        return self.cell.initial_carry(batch_shape, dtype)

    def start(
        self, params: Params, batch_shape: tuple[int, ...] = (), dtype: DTypeLike | None = None
    ) -> CarryT:
        """Return the wrapped cell's state at the start of a sequence."""
        return self.cell.start(params, batch_shape, dtype)


SingleRun = Callable[[Cell, Params, Any, Carry, Any, bool], tuple[Carry, jax.Array]]
"""``(cell, params, xs, carry, noise, reverse) -> (carry, ys)``, for a cell without layers."""


def over_layers(single: SingleRun) -> LayerRun:
    """Return a function that runs a cell, or each layer of nested composites, by ``single``."""

    def run(
        cell: Cell,
        params: Params,
        xs: Any,
        carry: Carry,
        *,
        key: jax.Array | None = None,
        reverse: bool = False,
        noise: Any = None,
        outer_reverse: bool = False,
    ) -> tuple[Carry, jax.Array]:
        # Inside a backward direction, forward is against the sequence.
        reverse = reverse != outer_reverse
        if isinstance(cell, CompositeCell):
            inner = functools.partial(run, outer_reverse=reverse)
            return cell.unroll_layers(inner, params, xs, carry, key)
        return single(cell, params, xs, carry, noise, reverse)

    return run


def without_initializers(cell: Any) -> Any:
    """Return the cell with the default initialisers, which only `init` reads.

    A cell is static: equal cells share a compiled program. A new initialiser object equals no
    earlier one and would force another compilation.
    """
    if type(cell) is tuple:  # those of a combination
        entries = tuple(map(without_initializers, cell))
        return entries if any(a is not b for a, b in zip(entries, cell, strict=True)) else cell
    changes: dict[str, Any] = {}
    fields = dataclasses.fields(cell) if dataclasses.is_dataclass(cell) else ()
    for field in fields if isinstance(cell, Cell) else ():  # other values are the user's
        value = runs = getattr(cell, field.name)
        if field.name.endswith("_init") and field.default is not dataclasses.MISSING:
            runs = field.default
        elif isinstance(value, Cell) or type(value) is tuple:
            runs = without_initializers(value)
        if runs is not value:
            changes[field.name] = runs
    if not changes:
        return cell
    # Without its constructor, which would check everything again.
    new = copy.copy(cell)
    for name, value in changes.items():
        object.__setattr__(new, name, value)
    return new
