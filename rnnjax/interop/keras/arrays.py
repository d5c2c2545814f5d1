"""Keras's arrays and configs, and our parameters and layers: gates in order, biases apart.

A layer is made of units: a cell, a dense layer, an embedding. Each has a place below its layer, by
which Keras 3 names its arrays in files, and its arrays in an order of their own.
"""

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rnnjax.cells import Cell, ConvLSTMCell, GRUCell
from rnnjax.errors import InteropError, InvalidInputError
from rnnjax.interop.arrays import as_jax, float_array, with_one_bias
from rnnjax.interop.files import check_path
from rnnjax.interop.functions import FORMS, places, reordered
from rnnjax.interop.keras.config import class_of, graph_config, in_keras_3, layer_entry, row_config
from rnnjax.interop.keras.files import KerasFile, plain, write_file
from rnnjax.interop.keras.graph import network_of
from rnnjax.interop.keras.layers import MODELS, entry_of, layers_in, version_of
from rnnjax.interop.keras.operators import TimeDistributed
from rnnjax.interop.layers import Dropout, Layer, OneHotIds, Recurrent, Weights, describe_cell, fits
from rnnjax.interop.model import Model, Network, Sequential, cells_of, with_axes, with_layers
from rnnjax.layers import Bidirectional, Directions, Regularized, Stack

CELLS = FORMS["keras"]
"""The cells that Keras has."""


@dataclasses.dataclass(frozen=True)
class Unit:
    """What has one dict of parameters."""

    owner: Cell | Layer  # a cell of `CELLS`, or a layer
    path: str  # its place below the layer, such as "forward_layer/cell"; empty for the layer
    # by the place below that the shapes of arrays, by our names for them; None for a size of inputs
    weights: Mapping[str, Weights]

    @property
    def shapes(self) -> Weights:
        """The shapes of all arrays, in Keras's order."""
        return {name: shape for own in self.weights.values() for name, shape in own.items()}


def units_of(layer: Layer) -> Any:
    """The units of a layer, in the tree of its parameters.

    >>> import rnnjax
    >>> units = units_of(Recurrent("rnn", rnnjax.Bidirectional(rnnjax.LSTMCell(2))))
    >>> units.forward.path, list(units.forward.shapes)
    ('forward_layer/cell', ['kernel', 'recurrent_kernel', 'bias'])
    """
    if isinstance(layer, TimeDistributed):
        return units_of(layer.layer)
    if isinstance(layer, Recurrent):
        return _units(layer.cell, "cell", layer.name)
    return Unit(layer, "", layer.weights) if layer.weights else None


def _units(cell: Cell, path: str, name: str) -> Any:
    if type(cell) is Regularized:  # a class derived from one of these may compute something else
        cell = cell.cell
    if type(cell) is Bidirectional and path == "cell":
        ways = zip(("forward_layer", "backward_layer"), cell.cells, strict=True)
        return Directions(*(_units(part, f"{place}/cell", name) for place, part in ways))
    if type(cell) is Stack and path.endswith("cell") and not cell.dropout.rate:
        units, used = (_units(part, "", name) for part in cell.cells), dict[str, int]()
        paths = ((unit, unique(snake(class_of(unit.owner)), used)) for unit in units)
        return tuple(dataclasses.replace(unit, path=f"{path}/cells/{at}") for unit, at in paths)
    if type(cell) in CELLS and (path or not isinstance(cell, ConvLSTMCell)):
        return Unit(cell, path, {"": _shapes_of(cell)})
    raise InteropError(
        f"layer {name!r} is made of {describe_cell(cell)}, which Keras has not at this place; "
        f"it has {', '.join(kind.__name__ for kind in CELLS)}, a Stack of them without "
        "dropout, and a Bidirectional of these; give each layer a Recurrent of its own"
    )


def _shapes_of(cell: Cell) -> Weights:
    """Return the shapes of a cell's arrays: of two biases there is the sum, of a GRU a stack."""
    one, two = ({name: p.shape for name, p in cell.parameters(n).items()} for n in (1, 2))
    second = one.pop("recurrent_bias", None)
    if second is not None and isinstance(cell, GRUCell):
        one["bias"] = two["bias"] = 2, *second
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


def to_params(unit: Unit, arrays: Sequence[np.ndarray], where: str) -> dict[str, jax.Array]:
    """Our parameters from Keras's arrays, those of Keras 1, or those of CuDNN layers."""
    owner = unit.owner
    if isinstance(owner, Cell):
        order = places("keras", owner)
        arrays = [reordered(array, order) for array in _one_layout(owner, arrays)]
    named = dict(zip(unit.shapes, arrays, strict=False))
    came = {name: array.shape for name, array in named.items()}
    if not fits(unit.shapes, came) or len(arrays) != len(unit.shapes):
        raise InteropError(
            f"{where} should have arrays of the shapes {_list(unit.shapes)}, but they are "
            f"{', '.join(str(array.shape) for array in arrays) or 'none'}; give its own weights"
        )
    if _has_second(unit):
        named["recurrent_bias"] = np.zeros_like(named["bias"])
    elif isinstance(owner, GRUCell) and len(unit.shapes.get("bias") or ()) == 2:
        named["bias"], named["recurrent_bias"] = named["bias"]
    if "count" in named:  # of what a Normalization saw, which no number depends on
        named["count"] = np.asarray(named["count"], np.float32)
    return {n: as_jax(float_array(f"{n} of {where}", array)) for n, array in named.items()}


def _has_second(unit: Unit) -> bool:
    """Whether it adds a second bias, where Keras has one."""
    cell: Any = unit.owner
    return getattr(cell, "use_recurrent_bias", False) and cell.use_bias


def to_arrays(unit: Unit, params: Any, where: str) -> list[np.ndarray]:
    """Keras 3's arrays from our parameters, the numbers untouched."""
    params = params if isinstance(params, Mapping) else {}
    params = with_one_bias(params) if _has_second(unit) else params
    named = {name: np.asarray(array) for name, array in params.items()}
    if isinstance(unit.owner, Cell):
        order = np.argsort(places("keras", unit.owner)).tolist()
        named = {name: reordered(array, order) for name, array in named.items()}
    biases = [named.get(name, np.zeros(())) for name in ("bias", "recurrent_bias")]
    if isinstance(unit.owner, GRUCell) and biases[0].shape == biases[1].shape != ():
        named["bias"], _ = np.stack(biases), named.pop("recurrent_bias")
    came = {name: array.shape for name, array in named.items()}
    if not fits(unit.shapes, came):
        raise InteropError(
            f"{where} should have parameters {_list(unit.shapes)}, but they are {_list(came)}; "
            "take those of this model"
        )
    return [named[name] for name in unit.shapes]


def _one_layout(cell: Cell, arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
    """The layout of Keras 2 and 3, which that of Keras 1 and that of CuDNN become.

    Keras 1 has W, U and b for each gate: of an LSTM i, c, f, o, of a GRU z, r, h. CuDNN stores each
    gate's kernel as its transpose, and both biases in a row. An LSTM adds them; a GRU needs them
    apart.
    """
    size, gates = cell.output_size, len(cell.gates)
    width = gates * size
    if gates > 1 and len(arrays) == 3 * gates:
        order = {4: (0, 2, 1, 3), 3: (0, 1, 2)}[gates]
        kinds = (np.stack([arrays[3 * i + kind] for i in order], -2) for kind in range(3))
        return [array.reshape(*array.shape[:-2], -1) for array in kinds]
    if gates < 2 or len(arrays) != 3 or arrays[2].shape != (2 * width,) or arrays[0].ndim != 2:
        return arrays
    kernel, recurrent, bias = arrays
    if kernel.shape[1] != width or recurrent.shape != (size, width):
        return arrays
    first, second = (np.split(array, gates, axis=1) for array in (kernel, recurrent))
    blocks = [np.ascontiguousarray(block).reshape(size, -1).T for block in first]
    turned, both = [block.T for block in second], bias.reshape(2, width)
    kernels = [np.concatenate(parts, axis=1) for parts in (blocks, turned)]
    return [*kernels, both[0] + both[1] if gates == 4 else both]


def _list(shapes: Weights) -> str:
    spelled = (f"{name} {shape}".replace("None", "any") for name, shape in shapes.items())
    return ", ".join(spelled) or "none"


Places = dict[str, list[str]]
"""For each layer by name, the paths of its arrays in a file, in the order of its units."""


def build(network: Network, file: KerasFile, places: Places) -> Model:
    """The model of these layers, with the parameters that their arrays become."""
    params = {}
    for layer in network.layers.values():
        units, tree = jax.tree.flatten(units_of(layer))
        parts = []
        for unit, paths in zip(units, _split(layer, units, places[layer.name]), strict=True):
            arrays = [file.arrays[path] for path in paths]
            place = f" at {unit.path!r}" if units[1:] else ""
            parts.append(to_params(unit, arrays, f"layer {layer.name[:80]!r}{place}"))
        if units:
            params[layer.name] = jax.tree.unflatten(tree, parts)
    return Model(network, params, {"file": file, "network": network, "places": places})


def _split(layer: Layer, units: Sequence[Unit], arrays: Sequence[str]) -> list[list[str]]:
    counts = [len(unit.shapes) for unit in units]
    old = [max(len(unit.shapes), 3 * len(getattr(unit.owner, "gates", ()))) for unit in units]
    counts = old if sum(old) == len(arrays) else counts  # Keras 1 has three for each gate
    if sum(counts) != len(arrays):
        raise InteropError(
            f"layer {layer.name[:80]!r} should have {sum(counts)} arrays, but has {len(arrays)}; "
            "build the model before it is saved, or give its own weights"
        )
    rest = iter(arrays)
    return [[next(rest) for _ in range(count)] for count in counts]


def arrays_of(layer: Layer, model: Model) -> Iterator[tuple[Unit, list[np.ndarray]]]:
    """The arrays of each unit of a layer, in the order and form of Keras."""
    units, params = jax.tree.leaves(units_of(layer)), [model.params.get(layer.name)]
    parts = jax.tree.leaves(
        params * bool(units), is_leaf=lambda one: not isinstance(one, tuple | list)
    )
    if len(parts) != len(units):
        raise InteropError(
            f"layer {layer.name!r} should have the parameters of {len(units)} cells, but has those "
            f"of {len(parts)}; take those of this model"
        )
    for unit, own in zip(units, parts, strict=True):
        yield unit, to_arrays(unit, own, f"layer {layer.name!r}")


def whole(file: KerasFile) -> Model:
    """The model of a file that says its layers."""
    kind, config = _model_in(file)
    if kind not in MODELS:
        raise InteropError(
            f"the file should hold a Sequential or a functional model, but holds {kind[:80]!r}; "
            "save its layers as a Sequential"
        )
    network = network_of(kind, config, version_of(file.version))
    if file.groups is not None:
        return build(network, file, _in_groups(network, file.groups))
    return build(network, file, _at_paths(network, dict(_groups_in(kind, config)), file))


def _groups_in(kind: str, config: Any, own: str = "", above: str = "") -> Iterator[tuple[str, str]]:
    """The name of each layer, and where Keras 3 has its arrays; models have theirs inside."""
    used: dict[str, int] = {}
    for entry, _ in layers_in(kind, config, 3):
        name, group = f"{own}{entry.name}", f"{above}{unique(snake(entry.kind), used)}"
        if model := entry.model:
            group = f"{group}/" if model is entry else f"{group}/layer/"
            yield from _groups_in(model.kind, model.config, f"{name}.", f"{group}layers/")
        else:
            yield name, group


def _model_in(file: KerasFile) -> tuple[str, Any]:
    """Class name and config of a model; in old files that of a Sequential is its layers."""
    if isinstance(file.config, dict) and isinstance(file.config.get("config"), list):
        return file.config["class_name"], file.config["config"]
    entry = entry_of(file.config, "the model", 3)
    return entry.kind, entry.config


def as_like(file: KerasFile, like: Model) -> Model:
    """The model ``like``, with the weights of a file that holds nothing else."""
    layers = Sequential(tuple(one for one in like.network.layers.values() if units_of(one)))
    if file.groups is None:
        known = like.origin["file"] if "file" in like.origin else _anew(like)
        places = _at_paths(layers, dict(_groups_in(*_model_in(known))), file)
    else:
        full = [_in_order(paths) for _, paths in file.groups if paths]
        if len(full) != len(layers.layer_list):
            raise InteropError(
                f"the file holds weights of {len(full)} layers, but the model given as like has "
                f"{len(layers.layer_list)} with weights; give one of the same layers"
            )
        places = dict(zip(layers.layers, full, strict=True))
    made = build(layers, file, places)
    try:
        return like.with_params({**like.params, **made.params})
    except InvalidInputError as error:
        raise InteropError(f"the file holds the weights of another model: {error}") from error


_INSIDE = "", "layer/", "layer/layer/", "_"


def _at_paths(network: Network, groups: Mapping[str, str], file: KerasFile) -> Places:
    """The arrays of Keras 3's layout, where each unit has a place of its own."""
    # Without the states of random numbers, which some versions of Keras write.
    arrays = (path for path in file.arrays if "/seed_generator/" not in path)
    rest = {path.partition("/")[2]: path for path in arrays}
    found: Places = {}
    for layer in network.layers.values():
        paths = found[layer.name] = []
        units = jax.tree.leaves(units_of(layer))
        for at, shapes in (
            (unit.path + at, own) for unit in units for at, own in unit.weights.items()
        ):
            # Those of a TimeDistributed are in its layer; Keras 2's heads begin with a line.
            places = [f"{groups[layer.name]}/{inner}{at}" for inner in _INSIDE]
            names = (f"{place}/vars/{i}".replace("//", "/") for i in range(9) for place in places)
            own = [rest.pop(name) for name in names if name in rest]
            paths += own
            if shapes and not own:
                raise InteropError(
                    f"the file has no arrays of layer {layer.name[:80]!r}: it is of another kind "
                    "there, was not built, or is shared; give each model layers of its own"
                )
    if rest:
        raise InteropError(
            f"the file has an array {min(rest.values())[:80]!r}, which no layer takes; give the "
            "model that its weights are of"
        )
    return found


def _in_groups(network: Network, groups: Sequence[tuple[str, Mapping[str, str]]]) -> Places:
    """The arrays of the old layout, where each layer has a list, but those of a model have one."""
    by_name = {name: dict(paths) for name, paths in groups}
    found: Places = {}
    for layer in network.layers.values():
        above, _, own = layer.name.rpartition(".")
        if layer.name in by_name or not above:
            paths = by_name.pop(layer.name, {})
        else:
            those = by_name.get(above.partition(".")[0], {})
            names = [name for name in those if name.partition("/")[0] == own]
            names = names or [name for name in those if own in name.split("/")]
            paths = {name: those.pop(name) for name in names}
        found[layer.name] = _in_order(paths)
    left = [name for name, paths in by_name.items() if paths]
    if left:
        raise InteropError(
            f"the file has weights of {left[0][:80]!r}, which is no layer; give the model that its "
            "weights are of"
        )
    return found


def _in_order(paths: Mapping[str, str]) -> list[str]:
    """The arrays of a layer, whose forward direction is behind the other where it is frozen."""

    def direction(name: str) -> list[str]:
        return re.findall(r"\b(backward|forward)_", name)[-1:]

    return [paths[name] for name in sorted(paths, key=lambda name: direction(name) == ["backward"])]


_WRITTEN_BY = "3.10.0"  # the version of Keras whose rules what is written follows


def save(model: Model, path: str | os.PathLike[str]) -> None:
    """Write a file that Keras reads.

    ``.keras`` holds the whole model for ``keras.saving.load_model`` of Keras 3; ``.weights.h5`` the
    weights alone, for ``load_weights`` of a live model of the same layers. A file of that name is
    replaced, and only by a whole one.

    A model that was read from a file of Keras 3 is written as that file, with the weights that it
    now has. Any other is written anew, a graph out of a file of Keras 1 and 2 too, and computes in
    Keras 3 what it did, with other numbers for the hard_sigmoid of Keras 2; a layer whose masks
    Keras 3 takes otherwise is refused. `OneHotIds` at the start of a row is left out, because Keras
    has no such layer that fits here: the model in Keras takes one-hot vectors. What concerns
    training alone is not written.

    Args:
        model: one that was loaded, or any whose layers Keras has: `rnnjax.SimpleRNNCell`,
            `rnnjax.LSTMCell`, `rnnjax.GRUCell`, `rnnjax.Regularized` without zoneout, a
            `rnnjax.Stack` or `rnnjax.Bidirectional` of them, and the other layers of
            `rnnjax.interop`. A stack in both directions, or with dropout, becomes layers.
        path: its name ends in ``.keras`` or ``.weights.h5``.

    Raises:
        InteropError: a layer does what no layer of Keras 3 does, the file cannot be written, or
            h5py is missing.
        InvalidInputError: the name ends in something else, or ``model`` is no model of layers.
    """
    with_layers(model, "a file of Keras")
    check_path(path, ".keras", ".weights.h5")
    came = model.origin if "file" in model.origin else {}
    new = came and came["file"].groups is None and version_of(came["file"].version) >= 3
    as_it_was = new and with_axes(model, True).network == came["network"]
    write_file(Path(path), _as_it_was(model) if as_it_was else _anew(model))


def _anew(model: Model) -> KerasFile:
    network: Any = model.network
    if network.is_row and network != Sequential(network.layer_list, network.time_first):
        raise InteropError(
            "the calls or outputs of the Sequential were changed, which one of Keras cannot say; "
            "make it a Functional, whose Input has a shape"
        )
    model = _layer_by_layer(model)
    network = model.network
    first, *rest = model.layers.values()
    configs = {}
    for layer in rest if isinstance(first, OneHotIds) else [first, *rest]:
        units_of(layer)  # raises where a cell is none of Keras
        configs[layer.name] = layer_entry(layer)
    if not configs:
        raise InteropError("the model has no layer that Keras knows; there is nothing to write")
    row = {"config": {"layers": [*configs.values()]}}
    whole = row if network.is_row else graph_config(network, configs)
    arrays = dict(_placed(model, dict(_groups_in("", whole["config"]))))
    if not network.is_row:
        return KerasFile(whole, _WRITTEN_BY, arrays)
    kernel = next((array.shape for array in arrays.values()), (None,))
    if len(kernel) > 2:
        raise InteropError(
            f"layer {first.name!r} runs over a grid, whose sizes Keras has to know; write a "
            "Functional, whose Input has them"
        )
    size = first.size if isinstance(first, OneHotIds) else kernel[0]
    return KerasFile(row_config(configs, size), _WRITTEN_BY, arrays)


def _layer_by_layer(model: Model) -> Model:
    """The model, where each cell of a stack that is no cell of Keras is a layer of its own.

    Keras stacks cells that run forward, without dropout. So an ``nn.LSTM`` of PyTorch with
    ``num_layers=2, bidirectional=True`` becomes two layers, and its dropout one between them.
    """
    network: Any = model.network
    if not network.is_row:
        return model
    layers, params = list[Layer](), dict(model.params)
    layer: Any
    for layer in network.layer_list:
        cell = layer.cell if isinstance(layer, Recurrent) and not layer.reverse else None
        both = type(cell) is Stack and any(isinstance(x, Bidirectional) for x in cell.cells)
        if type(cell) is not Stack or not (both or cell.dropout.rate):
            layers.append(layer)
            continue
        rows = cells_of(layer.name, cell, params.pop(layer.name, None), "Keras")
        for i, (row, own) in enumerate(rows):
            name, last = f"{layer.name}_{i}", i == len(cell.cells) - 1
            every = layer.return_sequences or not last
            layers.append(dataclasses.replace(layer, name=name, cell=row, return_sequences=every))
            params[name] = own
            if cell.dropout.rate and not last:
                layers.append(Dropout(f"{name}_dropout", cell.dropout))
    network = Sequential(layers, network.time_first)
    return dataclasses.replace(model, network=network, params=params)


def _placed(model: Model, groups: Mapping[str, str]) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of a model where Keras 3 has them."""
    for name, layer in model.layers.items():
        inside, step = "", layer
        while isinstance(step, TimeDistributed):
            inside, step = f"{inside}layer/", step.layer
        for unit, own in arrays_of(layer, model) if plain(name) in groups else ():
            rest = iter(in_keras_3(unit.owner, own))
            for at, shapes in unit.weights.items():
                place = f"layers/{groups[plain(name)]}/{inside}{unit.path}{at}".rstrip("/")
                yield from ((f"{place}/vars/{i}", next(rest)) for i in range(len(shapes)))


def _as_it_was(model: Model) -> KerasFile:
    """The file of Keras 3 that a model was read from, with other numbers in its arrays."""
    file, places = model.origin["file"], model.origin["places"]
    arrays = dict(file.arrays)
    for layer in model.network.layers.values():
        own = (array for _, each in arrays_of(layer, model) for array in each)
        for array, one in zip(own, places[layer.name], strict=True):
            arrays[one] = array.astype(arrays[one].dtype)
    return dataclasses.replace(file, arrays=arrays)
