"""The layers of a model as Flax has modules, and their way into a tree of parameters."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from rnnjax.cells import Cell
from rnnjax.interop.arrays import as_jax, in_prediction, layer_arrays
from rnnjax.interop.chain import rows_of, with_parameters
from rnnjax.interop.flax.cells import layout_of, write_cell
from rnnjax.interop.flax.modules import Path, Place
from rnnjax.interop.layers import Recurrent
from rnnjax.interop.model import Model
from rnnjax.layers import Stack
from rnnjax.layout import Form


class Unit(NamedTuple):
    """A layer of the model as Flax has modules: a row of a `Stack` is one by itself."""

    name: str  # of the layer, with a number for a row
    cells: tuple[Cell, ...]  # two for both directions, none for a layer without
    params: Any  # a tuple with those of each cell; of a layer without cells, its own arrays


def list_units(model: Model) -> list[Unit]:
    """The layers that have parameters."""
    units = []
    for name, layer, params in with_parameters(model, "Flax"):
        if not isinstance(layer, Recurrent):
            units.append(Unit(name, (), layer_arrays(layer, params)))
            continue
        for i, (_, parts) in enumerate(rows_of(name, layer.cell, params)):
            own = f"{name}_{i}" if isinstance(layer.cell, Stack) else name
            cells = tuple(in_prediction(cell, repr(own), "Flax") for cell, _ in parts)
            units.append(Unit(own, cells, tuple(one for _, one in parts)))
    return units


def default_place(unit: Unit, path: Path, form: Form) -> Place:
    """Where Flax has the parameters of an ``RNN`` or ``Bidirectional`` at ``path``."""
    layouts = tuple(layout_of(repr(unit.name), cell, form) for cell in unit.cells)
    if len(layouts) == 2:
        return Place(
            tuple((*path, f"{way}_rnn", "cell") for way in ("forward", "backward")), layouts
        )
    return Place(((*path, "cell"),) if layouts else (path,), layouts)


def write_unit(unit: Unit, place: Place) -> list[Any]:
    """The subtrees of a layer, one for each path of ``place``."""
    if not unit.cells:
        return [{key: as_jax(array) for key, array in unit.params.items()}]
    return [
        write_cell(repr(unit.name), *each)
        for each in zip(place.layouts, unit.cells, unit.params, place.residual_of, strict=False)
    ]


def copy_tree(tree: Any) -> Any:
    """The same dicts anew, with the same leaves."""
    return {k: copy_tree(v) for k, v in tree.items()} if isinstance(tree, Mapping) else tree


def put(tree: Any, path: Path, entry: Any) -> Any:
    """The tree with ``entry`` at ``path``."""
    if not path:
        return entry
    head, *rest = path
    return {**tree, head: put(tree.get(head, {}), tuple(rest), entry)}
