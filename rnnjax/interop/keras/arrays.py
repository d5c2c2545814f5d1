"""Keras's arrays and rnnjax's parameters: gates in order, biases apart, kernels as they stand.

A layer is made of units: a cell, a dense layer, an embedding. Each has a place below its layer, by
which Keras 3 names its arrays in files, and its arrays in an order of their own.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from rnnjax.cells import Cell, GRUCell, LSTMCell, SimpleRNNCell
from rnnjax.errors import InteropError
from rnnjax.interop.arrays import as_jax, float_array, with_one_bias
from rnnjax.interop.functions import FORMS, places, reordered
from rnnjax.interop.keras.files import KerasFile
from rnnjax.interop.layers import Layer, Recurrent, Shape, Weights, describe_cell, fits
from rnnjax.interop.model import Model, Network
from rnnjax.layers import Bidirectional, Directions, Regularized, Stack

Arrays = Sequence[np.ndarray]

CELLS = FORMS["keras"]
"""The cells that Keras has."""


@dataclasses.dataclass(frozen=True)
class Unit:
    """A unit of a layer with its own arrays."""

    owner: Cell | Layer  # a cell of `CELLS`, or a layer
    path: str  # its place below the layer, such as "forward_layer/cell"; empty for the layer
    shapes: Weights  # of its parameters, by our names for them; None for a size of the inputs

    @property
    def count(self) -> int:
        """The number of its arrays, except in Keras 1, which has one for each gate."""
        return len(self.shapes) - (isinstance(self.owner, GRUCell) and self.owner.reset_after
                                   and self.owner.use_bias)  # fmt: skip


def units_of(layer: Layer) -> list[Unit]:
    """The units of a layer in the order of its arrays.

    >>> import rnnjax
    >>> units = units_of(Recurrent("rnn", rnnjax.Bidirectional(LSTMCell(2))))
    >>> [(unit.path, unit.count) for unit in units]
    [('forward_layer/cell', 3), ('backward_layer/cell', 3)]
    """
    if not isinstance(layer, Recurrent):
        return [Unit(layer, path, weights) for path, weights in layer.weights.items()]
    return list(_cells(layer.cell, "cell", layer.name))


def _cells(cell: Cell, path: str, name: str) -> Iterator[Unit]:
    if isinstance(cell, Regularized):
        cell = cell.cell
    if isinstance(cell, Bidirectional) and path == "cell":
        for place, part in zip(("forward_layer", "backward_layer"), cell.cells, strict=True):
            yield from _cells(part, f"{place}/cell", name)
    elif isinstance(cell, Stack) and path.endswith("cell") and not cell.dropout.rate:
        used: dict[str, int] = {}
        for part in cell.cells:
            for unit in _cells(part, "", name):
                place = unique(snake(class_of(unit.owner)), used)
                yield dataclasses.replace(unit, path=f"{path}/cells/{place}")
    elif type(cell) in CELLS:
        yield Unit(cell, path, _shapes_of(cell))
    else:
        raise InteropError(
            f"layer {name!r} is made of {describe_cell(cell)}, which Keras has not at this place; "
            f"it has {', '.join(kind.__name__ for kind in CELLS)}, a Stack of them without "
            "dropout, and a Bidirectional of these; give each layer a Recurrent of its own"
        )


def class_of(cell: Any) -> str:
    """Keras's name for the class of a cell."""
    return f"{CELLS[type(cell)][0]}Cell"


def _shapes_of(cell: Cell) -> dict[str, Shape]:
    """Return the shapes of a cell's parameters, without the second of two additive biases."""
    one, two = ({name: p.shape for name, p in cell.parameters(n).items()} for n in (1, 2))
    if isinstance(cell, SimpleRNNCell | LSTMCell):
        one.pop("recurrent_bias", None)
    return {
        name: tuple(a if a == b else None for a, b in zip(shape, two[name], strict=True))
        for name, shape in one.items()
    }


def snake(name: str) -> str:
    """Keras 3's spelling of a class in files.

    >>> [snake(name) for name in ("LSTM", "SimpleRNN", "TimeDistributed", "SpatialDropout1D")]
    ['lstm', 'simple_rnn', 'time_distributed', 'spatial_dropout1d']
    """
    name = re.sub(r"\W+", "", name)
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def unique(name: str, used: dict[str, int]) -> str:
    """The name, or where it is used already the name with a number, as Keras counts them."""
    used[name] = used.get(name, -1) + 1
    return f"{name}_{used[name]}" if used[name] else name


def _tree(cell: Cell) -> Any:
    """The cells in the structure of their parameters."""
    if isinstance(cell, Bidirectional):
        return Directions(*map(_tree, cell.cells))
    return tuple(map(_tree, cell.cells)) if isinstance(cell, Stack) else cell


def to_params(unit: Unit, arrays: Arrays, where: str) -> dict[str, jax.Array]:
    """Our parameters from Keras's arrays: of Keras 1, 2 or 3, or of its CuDNN layers."""
    owner = unit.owner
    if isinstance(owner, Cell):
        order = places("keras", owner)
        arrays = [reordered(array, order) for array in _one_layout(owner, arrays, where)]
    named = dict(zip(unit.shapes, arrays, strict=False))
    if isinstance(owner, GRUCell) and owner.reset_after and owner.use_bias:
        bias = named.get("bias")
        if bias is not None and bias.ndim == 2 and len(bias) == 2:
            named["bias"], named["recurrent_bias"] = bias
    came = {name: array.shape for name, array in named.items()}
    if not fits(unit.shapes, came) or len(arrays) != unit.count:
        raise InteropError(
            f"{where} should have arrays of the shapes {_list(unit.shapes)}, but they are "
            f"{', '.join(str(array.shape) for array in arrays) or 'none'}; its weights are those "
            "of another layer"
        )
    if _has_second(unit):
        named["recurrent_bias"] = np.zeros_like(named["bias"])
    return {n: as_jax(float_array(f"{n} of {where}", array)) for n, array in named.items()}


def _has_second(unit: Unit) -> bool:
    """Whether it adds a second bias, where Keras has one."""
    owner = unit.owner
    return (
        isinstance(owner, SimpleRNNCell | LSTMCell) and owner.use_bias and owner.use_recurrent_bias
    )


def to_arrays(unit: Unit, params: Any, where: str) -> list[np.ndarray]:
    """Keras 3's arrays from our parameters, the numbers untouched."""
    if not isinstance(params, Mapping) or not all(
        hasattr(leaf, "shape") for leaf in params.values()
    ):
        raise InteropError(f"{where} should have a dict of arrays, but has {type(params).__name__}")
    params = with_one_bias(params) if _has_second(unit) else params
    named = {name: np.asarray(array) for name, array in params.items()}
    if isinstance(unit.owner, Cell):
        order = np.argsort(places("keras", unit.owner)).tolist()
        named = {name: reordered(array, order) for name, array in named.items()}
    came = {name: array.shape for name, array in named.items()}
    if not fits(unit.shapes, came):
        raise InteropError(
            f"{where} should have parameters {_list(unit.shapes)}, but they are {_list(came)}; "
            "take those of this model"
        )
    if isinstance(unit.owner, GRUCell) and "recurrent_bias" in named:
        named["bias"] = np.stack([named["bias"], named.pop("recurrent_bias")])
    return [named[name] for name in unit.shapes if name in named]


def _one_layout(cell: Cell, arrays: Arrays, where: str) -> Arrays:
    """The layout of Keras 2 and 3, whichever of the three it was."""
    order = {4: (0, 2, 1, 3), 3: (0, 1, 2)}.get(len(cell.gates), ())
    size, width = cell.output_size, len(order) * cell.output_size
    if order and len(arrays) == 3 * len(order):
        # Keras 1 has W, U and b for each gate: of an LSTM i, c, f, o, of a GRU z, r, h.
        kinds = [[arrays[3 * gate + kind] for gate in order] for kind in range(3)]
        if any(len({part.shape for part in parts} | {()}) != 2 for parts in kinds):
            raise InteropError(
                f"{where} should have arrays W, U and b for each gate, but they are of the shapes "
                f"{', '.join(str(array.shape) for array in arrays)}; its weights are damaged"
            )
        return [np.concatenate(parts, axis=-1) for parts in kinds]
    if order and len(arrays) == 3 and arrays[2].shape == (2 * width,) and arrays[0].ndim == 2:
        # CuDNN's own layout: each gate's kernel is stored as its transpose, and both biases in a
        # row. An LSTM adds them; a GRU needs them apart.
        kernel, recurrent, bias = arrays
        if kernel.shape[1] == width and recurrent.shape == (size, width):
            first, second = (np.split(array, len(order), axis=1) for array in (kernel, recurrent))
            blocks = [np.ascontiguousarray(block).reshape(size, -1).T for block in first]
            turned, both = [block.T for block in second], bias.reshape(2, width)
            kernels = [np.concatenate(parts, axis=1) for parts in (blocks, turned)]
            return [*kernels, both[0] + both[1] if len(order) == 4 else both]
    return arrays


def _list(shapes: Weights) -> str:
    spelled = (f"{name} {shape}".replace("None", "any") for name, shape in shapes.items())
    return ", ".join(spelled) or "none"


# --- of whole layers ---


Places = dict[str, list[list[str]]]
"""For each layer by name, the paths of the arrays of its units in a file."""


def build(network: Network, file: KerasFile, places: Places) -> Model:
    """The model of these layers, with the parameters that their arrays become."""
    params = {}
    for layer in network.layers.values():
        units = units_of(layer)
        if not units:
            continue
        parts = []
        for unit, paths in zip(units, places[layer.name], strict=True):
            arrays = [file.arrays[path] for path in paths]
            place = f" at {unit.path!r}" if len(units) > 1 else ""
            parts.append(to_params(unit, arrays, f"layer {layer.name[:80]!r}{place}"))
        if isinstance(layer, Recurrent):
            structure = jax.tree.structure(_tree(layer.cell))
            params[layer.name] = jax.tree.unflatten(structure, parts)
        else:
            params[layer.name] = {name: array for part in parts for name, array in part.items()}
    return Model(network, params, {"file": file, "network": network, "places": places})


def split(layer: Layer, arrays: Sequence[str]) -> list[list[str]]:
    """Which of the arrays belongs to which unit: Keras 1 has three for each gate."""
    units = units_of(layer)
    counts_now = [unit.count for unit in units]
    gates = [len(getattr(unit.owner, "gates", ("y",))) for unit in units]
    of_keras_1 = [3 * n if n > 1 else count for n, count in zip(gates, counts_now, strict=True)]
    for counts in (counts_now, of_keras_1):
        if sum(counts) == len(arrays):
            rest = iter(arrays)
            return [[next(rest) for _ in range(count)] for count in counts]
    raise InteropError(
        f"layer {layer.name[:80]!r} should have {sum(counts_now)} arrays, but has {len(arrays)}; "
        "build the model before it is saved, or take the weights that belong to it"
    )


def arrays_of(layer: Layer, model: Model) -> Iterator[tuple[Unit, list[np.ndarray]]]:
    """The arrays of each unit of a layer, in the order and form of Keras."""
    units, params = units_of(layer), model.params.get(layer.name)
    parts: list[Any] = [params] * bool(units)
    if isinstance(layer, Recurrent):
        parts = jax.tree.leaves(params, is_leaf=lambda part: not isinstance(part, tuple))
    elif len(units) > 1 and isinstance(params, Mapping):
        parts = [{k: v for k, v in params.items() if k in unit.shapes} for unit in units]
    if len(parts) != len(units):
        raise InteropError(
            f"layer {layer.name!r} should have the parameters of {len(units)} cells, but has those "
            f"of {len(parts)}; take those of this model"
        )
    for unit, own in zip(units, parts, strict=True):
        yield unit, to_arrays(unit, own, f"layer {layer.name!r}")
