"""The order in which the modules of a model run, where their parameters alone are known."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rnnjax.cells.base import Cell, Params
from rnnjax.errors import InteropError, InvalidInputError
from rnnjax.interop.layers import Dense, Embedding, Layer, OneHotIds, Recurrent
from rnnjax.interop.model import Model
from rnnjax.layers import Bidirectional, Stack

WithParameters = Recurrent | Dense | Embedding
"""The layers that are read of parameters; the others a caller says."""


def with_parameters(model: Model, where: str) -> Iterator[tuple[str, WithParameters, Any]]:
    """The layers that have parameters, with these, by their names."""
    for name, layer in model.layers.items():
        if name in model.params and isinstance(layer, WithParameters):
            yield name, layer, model.params[name]
        elif isinstance(layer, WithParameters):
            raise InvalidInputError(f"params have no entry for {name!r}; make them with its init")
        elif model.params.get(name):
            raise InteropError(f"{where} has no module for {name!r}, a {layer}; leave it out")


def rows_of(
    name: str, cell: Cell, params: Any, where: str
) -> Iterator[Sequence[tuple[Cell, Params]]]:
    """Yield the directions of each layer of a `Stack`, or of one cell, with their parameters."""
    stacked = isinstance(cell, Stack)
    rows = _entries(name, cell, params) if isinstance(cell, Stack) else [(cell, params)]
    for i, (row, own) in enumerate(rows):
        own_name = f"{name}[{i}]" if stacked else name
        if not isinstance(row, Bidirectional):
            yield [(row, own)]
            continue
        if row.merge != "concat":
            raise InteropError(
                f"{where} concatenates both directions, but {own_name!r} has merge={row.merge!r}, "
                "which its parameters do not say; write it with merge='concat', and merge in code "
                "there"
            )
        yield _entries(own_name, row, own)


def _entries(name: str, cell: Stack | Bidirectional, params: Any) -> list[tuple[Cell, Params]]:
    """The cells of a combination with theirs of the parameters, which are a tuple of as many."""
    count = len(cell.cells)
    if not isinstance(params, tuple) or len(params) != count:
        both = isinstance(cell, Bidirectional)
        what = "Directions(forward, backward)" if both else f"a tuple with {count} entries"
        raise InvalidInputError(f"params of {name!r} should be {what}")
    return [*zip(cell.cells, params, strict=True)]


_MOST_TO_ORDER = 8  # each is read, and a hostile file may hold any number


class Reading(NamedTuple):
    """A layer that a module can be read as."""

    layer: Layer  # without parameters
    params: Any  # of the layer
    takes: int | None  # the number of features of its inputs; None for ids
    gives: int  # that of its outputs


Read = Callable[[str], Sequence[Reading]]
"""By the name of a module, what it can be read as: one, or two for a weight alone."""


def infer_order(listed: Mapping[str, str], read: Read) -> list[Reading]:
    """An embedding if there is one, the recurrent modules, a linear one if there is one.

    ``listed`` is the modules by their names, in words: their arrays and their shapes.
    """
    orders: list[list[Reading]] = []
    if len(listed) <= _MOST_TO_ORDER:
        readings = [reading for name in listed for reading in read(name)]
        row = _row([one for one in readings if isinstance(one.layer, Recurrent)])
        ends = itertools.product(
            [[], *([one] for one in readings if isinstance(one.layer, Embedding))],
            [[], *([one] for one in readings if isinstance(one.layer, Dense))],
        )
        for first, last in ends if row else ():
            order = [*first, *row, *last]
            fits = all(one.gives == other.takes for one, other in itertools.pairwise(order))
            if fits and sorted(one.layer.name for one in order) == sorted(listed):
                orders.append(order)
    if len(orders) == 1:
        return orders[0]
    raise InteropError(
        "the order of the modules is certain only for an embedding, recurrent modules and a linear "
        "one whose sizes fit in one way alone; give it, as in modules=['embedding', 'lstm', "
        "'head'], where the modules are "
        + "; ".join([*listed.values()][:8])
        + "; ..." * (len(listed) > 8)
    )


def _row(left: list[Reading]) -> list[Reading]:
    """The recurrent modules in their order; none where not one alone fits at each place."""
    row: list[Reading] = []
    gives = [one.gives for one in left]
    fitting = [one for i, one in enumerate(left) if one.takes not in gives[:i] + gives[i + 1 :]]
    while len(fitting) == 1:
        row += fitting
        left = [one for one in left if one is not row[-1]]
        fitting = [one for one in left if one.takes == row[-1].gives]
    return [] if left else row


def given_order(
    listed: Mapping[str, str], read: Read, modules: Sequence[str | Layer]
) -> list[Reading]:
    """The modules in the order of ``modules``, and the layers that stand between them."""
    if not isinstance(modules, Sequence) or isinstance(modules, str) or not modules:
        raise InvalidInputError(
            f"modules should be a list such as ['embedding', 'lstm', 'head'], but is {modules!r}"
        )
    choices: list[Sequence[Reading]] = []
    for entry in modules:
        if isinstance(entry, OneHotIds):
            choices.append([Reading(entry, {}, None, entry.size)])
        elif isinstance(entry, Layer) and not isinstance(entry, WithParameters):
            choices.append([Reading(entry, {}, -1, -1)])  # of any size
        elif isinstance(entry, str) and entry in listed:
            choices.append(read(entry))
        else:
            raise InvalidInputError(
                f"modules should hold names of {[*listed][:12]}, or layers without "
                f"parameters such as Activation('relu', 'relu'), but holds {entry!r}; correct it"
            )
    order: list[Reading] = []
    gives: int | None = None
    for i, readings in enumerate(choices):
        following = next((c[0].takes for c in choices[i + 1 :] if c[0].takes != -1), None)
        reading = readings[0]
        if len(readings) == 2 and gives is None:
            # At the first place a weight alone is an embedding, unless only a Linear fits.
            linear = readings[0].gives == following != readings[1].gives
            reading = readings[0] if linear else readings[1]
        if gives is not None and reading.takes not in (gives, -1):
            takes = "ids" if reading.takes is None else f"{reading.takes} features"
            raise InteropError(
                f"{reading.layer.name!r} takes {takes}, but gets {gives} features from what "
                "modules names before it; correct the order"
            )
        gives = gives if reading.gives == -1 else reading.gives
        order.append(reading)
    return order
