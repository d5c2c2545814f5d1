"""Which of ONNX's recurrent nodes a cell, or a combination of cells, becomes."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from rnnjax.cells.base import Carry, Cell, Params
from rnnjax.errors import InteropError
from rnnjax.interop.onnx.recurrent import attributes_to_onnx
from rnnjax.layers import Bidirectional, Directions, LearnedCarry, Regularized, Stack


@dataclasses.dataclass(frozen=True)
class Node:
    """One RNN, GRU or LSTM node: a cell, or a `rnnjax.Bidirectional` of two alike."""

    name: str  # of the node; its state is <name>_h and, in an LSTM, <name>_c
    cell: Cell  # without what only training or the start of a sequence needs
    params: Params  # those of cell
    # for each direction the learned carry with which sequences begin, or None
    starts: tuple[Carry | None, ...]
    path: tuple[int, ...]  # where in the carry of the layer its own carry is
    reverse: bool  # whether it runs from the last step to the first

    def states(self, carry: Carry) -> dict[str, np.ndarray]:
        """By input, ``(directions, batch, hidden_size)``: the state out of the layer's carry."""
        for index in self.path:
            carry = carry[index]
        directions = carry if isinstance(self.cell, Bidirectional) else (carry,)
        return {
            f"{self.name}_{kind}": np.stack([np.asarray(leaf, np.float32) for leaf in leaves])
            for kind, leaves in zip("hc", zip(*directions, strict=True), strict=False)
        }

    def learned(self) -> dict[str, np.ndarray]:
        """By input, ``(directions, 1, hidden_size)``: the learned start; empty if there is none."""
        if all(start is None for start in self.starts):
            return {}
        cells = self.cell.cells if isinstance(self.cell, Bidirectional) else (self.cell,)
        carries = [
            jax.tree.map(lambda leaf: np.asarray(leaf)[None], start) if start is not None else zeros
            for start, zeros in zip(
                self.starts, [cell.initial_carry((1,)) for cell in cells], strict=True
            )
        ]
        whole = carries if isinstance(self.cell, Bidirectional) else carries[0]
        return dataclasses.replace(self, path=()).states(whole)


@dataclasses.dataclass(frozen=True)
class Row:
    """Plans one after the other."""

    parts: tuple["Plan", ...]


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two plans that read the same inputs, and how their outputs are merged."""

    forward: "Plan"
    backward: "Plan"
    merge: str


Plan = Node | Row | Pair


def make_plan(name: str, cell: Cell, params: Params, reverse: bool, merged: bool = True) -> Plan:
    """The nodes for the cell of a layer, whose name is that of the node.

    Those of a `rnnjax.Stack` are ``<name>_0``, ``<name>_1`` and so on, and two directions that do
    not fit into one node are ``<name>_forward`` and ``<name>_backward``.

    >>> import rnnjax
    >>> cell = Stack([rnnjax.GRUCell(4), Bidirectional(rnnjax.LSTMCell(4))])
    >>> plan = make_plan("rnn", cell, cell.init(jax.random.key(0), 3), reverse=False)
    >>> [node.name for node in nodes(plan)]
    ['rnn_0', 'rnn_1']
    """
    return _plan(_Place(name, (), reverse, merged), cell, params, None)


def nodes(plan: Plan) -> Iterator[Node]:
    """The nodes of a plan, in the order in which they run."""
    if isinstance(plan, Node):
        yield plan
    elif isinstance(plan, Row):
        for part in plan.parts:
            yield from nodes(part)
    else:
        yield from nodes(plan.forward)
        yield from nodes(plan.backward)


@dataclasses.dataclass(frozen=True)
class _Place:
    name: str
    path: tuple[int, ...]
    reverse: bool
    merged: bool = True

    def part(self, suffix: int | str, index: int, turned: bool = False) -> "_Place":
        return _Place(f"{self.name}_{suffix}", (*self.path, index), self.reverse != turned)


def _plan(place: _Place, cell: Cell, params: Params, start: Carry | None) -> Plan:
    cell, params, start = _unwrapped(place.name, cell, params, start)
    if isinstance(cell, Stack):
        parts = zip(cell.cells, params, _each(start, len(cell.cells)), strict=True)
        return Row(tuple(_plan(place.part(i, i), *part) for i, part in enumerate(parts)))
    if isinstance(cell, Bidirectional):
        halves = list(zip(cell.cells, params, _each(start, 2), strict=True))
        if place.merged and not place.reverse and cell.merge == "concat":
            bare = [_unwrapped(place.name, *half) for half in halves]
            if _alike(bare):
                cells, both, starts = zip(*bare, strict=True)
                whole = Bidirectional(*cells)
                return Node(place.name, whole, Directions(*both), starts, place.path, False)
        return Pair(
            _plan(place.part("forward", 0), *halves[0]),
            _plan(place.part("backward", 1, turned=True), *halves[1]),
            cell.merge,
        )
    _check(place.name, cell)
    return Node(place.name, cell, params, (start,), place.path, place.reverse)


def _each(start: Carry | None, count: int) -> tuple[Carry | None, ...]:
    return (None,) * count if start is None else start


def _unwrapped(
    name: str, cell: Cell, params: Params, start: Carry | None
) -> tuple[Cell, Params, Carry | None]:
    """The cell inside of wrappers that do not change what a step computes."""
    while isinstance(cell, Regularized | LearnedCarry):
        if isinstance(cell, Regularized):
            if cell.zoneout_hidden or cell.zoneout_cell:
                raise InteropError(
                    f"layer {name!r} has zoneout, whose expectation is part of every step of a "
                    "prediction and which ONNX cannot express; export the cell without it, if its "
                    "outputs are good enough for you"
                )
        else:
            # Of two around each other the outer one is where sequences begin.
            start = params["initial_carry"] if start is None else start
            params = params["cell"]
        cell = cell.cell
    return cell, params, start


def _check(name: str, cell: Any) -> None:
    attributes_to_onnx(cell)
    if cell.dtype not in (None, np.float32):
        raise InteropError(
            f"layer {name!r} computes in {np.dtype(cell.dtype).name}, but ONNX models are written "
            "in float32; build the cell without dtype, and compare the outputs"
        )


def _alike(halves: list[tuple[Cell, Params, Carry | None]]) -> bool:
    """Whether two cells are what one node with two directions can be: equal but in activations."""
    cells = [cell for cell, _, _ in halves]
    if any(isinstance(cell, Stack | Bidirectional) for cell in cells):
        return False
    both = []
    for cell, params, _ in halves:
        op_type, attributes = attributes_to_onnx(cell)
        rest = {k: v for k, v in attributes.items() if not k.startswith("activation")}
        shapes = {name: np.shape(array) for name, array in params.items()}
        both.append((type(cell), op_type, rest, shapes, getattr(cell, "dtype", None)))
    for cell in cells:
        _check("of two directions", cell)
    return both[0] == both[1]
