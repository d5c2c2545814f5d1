"""Where an operator leaves the axes of time and batch: the rules that its entry may name."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from rnnjax.interop.onnx.at import At

Axes = tuple[int, int]
"""The places of time and batch."""

Shape = tuple[int, ...]


class Marks(NamedTuple):
    """What is known of the inputs of a node, those that are left out apart."""

    at: At  # the node's attributes
    shapes: tuple[Shape, ...]  # of its inputs
    axes: tuple[Axes | None, ...]  # of each input where time and batch are in it, or None
    after: Shape  # the shape of its first output

    @property
    def places(self) -> list[int]:
        """The inputs that have them."""
        return [i for i, axes in enumerate(self.axes) if axes is not None]

    @property
    def first(self) -> tuple[Shape, Axes]:
        """The shape of the first such input, and its axes."""
        return next((s, a) for s, a in zip(self.shapes, self.axes, strict=True) if a is not None)


Rule = Callable[[Marks], Axes | None]
"""Where the outputs have them, or None if it is not certain that they do."""


def lost(marks: Marks) -> None:
    """Nowhere: they are moved or mixed."""


def kept(marks: Marks) -> Axes:
    """Where the input has them."""
    return marks.first[1]


def of_first(marks: Marks) -> Axes | None:
    """Where the first of its inputs has them, whatever the others have."""
    return marks.axes[0]


def broadcast(marks: Marks) -> Axes | None:
    """Where they are in all inputs that have them, counted from the last axis."""
    places = {
        tuple(n + len(marks.after) - len(shape) for n in axes)
        for shape, axes in zip(marks.shapes, marks.axes, strict=True)
        if axes is not None
    }
    return _pair(places.pop()) if len(places) == 1 else None


def joined(marks: Marks) -> Axes | None:
    """Where they are in all inputs, unless these are put one behind the other along one of them."""
    first = marks.first[1]
    others = [s for s, a in zip(marks.shapes, marks.axes, strict=True) if a is None]
    if any(shape[n] != 1 for shape in others for n in first):
        return None
    return None if marks.at.get("axis", 1) % len(marks.after) in first else broadcast(marks)


def multiplied(marks: Marks) -> Axes | None:
    """Where the first input of a product has them, if its sum is over neither."""
    before, first = marks.first
    keeps = marks.places == [0] and len(before) == len(marks.after)
    return first if keeps and max(first) < len(before) - 1 else None


def permuted(marks: Marks) -> Axes:
    """Where the attribute ``perm`` puts them."""
    before, first = marks.first
    order = list(marks.at.get("perm", tuple(reversed(range(len(before))))))
    return _pair(order.index(n) for n in first)


def normalized(marks: Marks) -> Axes | None:
    """Where they were, unless numbers along them are taken together."""
    before, first = marks.first
    along = marks.at.get("axis", -1 if marks.at.opset >= 13 else 1) % len(before)
    mixed = {along} if marks.at.opset >= 13 else {*range(along, len(before))}
    return None if mixed & set(first) else first


def normalized_from(marks: Marks) -> Axes | None:
    """Where they were, if the axes from ``axis`` on are behind them."""
    before, first = marks.first
    return first if marks.at.get("axis", -1) % len(before) > max(first) else None


def reshaped(marks: Marks) -> Axes | None:
    """Behind a reshape an axis is where as many elements stand before it as did."""
    before, axes = marks.first
    after, found = marks.after, []
    for axis in axes:
        leading = int(np.prod(before[:axis], dtype=np.int64))
        places = [
            i
            for i, size in enumerate(after)
            if size == before[axis] and int(np.prod(after[:i], dtype=np.int64)) == leading
        ]
        if not places:
            return None
        found.append(places[0] if before[axis] == 1 else places[-1])
    return _pair(found) if len(set(found)) == 2 else None


def looked_up(marks: Marks) -> Axes | None:
    """Where the ids have them, behind the axes of the table before the one looked up."""
    if marks.places != [1]:
        return None
    axis = marks.at.get("axis", 0) % len(marks.shapes[0])
    return _pair(n + axis for n in marks.first[1])


def inserted(marks: Marks) -> Axes | None:
    """Where the ids have them, with the axis of one-hot vectors between."""
    axis = marks.at.get("axis", -1) % len(marks.after)
    return _pair(n + (n >= axis) for n in marks.first[1]) if marks.places == [0] else None


def _pair(places: Any) -> Axes:
    time, batch = places
    return time, batch
