"""Models into files: the configs by which Keras builds their layers again, and their arrays."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rnnjax.cells import GRUCell, LSTMCell
from rnnjax.cells.base import Cell
from rnnjax.errors import InteropError, InvalidInputError
from rnnjax.interop.keras.arrays import (
    CELLS,
    KerasOrigin,
    arrays_of,
    class_of,
    snake,
    unique,
    units_of,
)
from rnnjax.interop.keras.files import KerasFile, write_file
from rnnjax.interop.keras.options import layer_of, name_of
from rnnjax.interop.layers import (
    Activation,
    Dense,
    Dropout,
    Embedding,
    Layer,
    Masking,
    OneHotIds,
    Recurrent,
)
from rnnjax.interop.model import Model, Network, Sequential, check_model, with_axes
from rnnjax.layers import Bidirectional, Regularized, Stack

_WRITTEN_BY = "3.0.0"  # the first version of Keras that reads what is written here


def save(model: Model, path: str | os.PathLike[str]) -> None:
    """Write a file that Keras reads.

    ``.keras`` holds the whole model for ``keras.saving.load_model`` of Keras 3; ``.weights.h5`` the
    weights alone, for ``load_weights`` of a live model of the same layers. A file of that name is
    replaced, and only by a whole one.

    A row of layers is written anew: `OneHotIds` at its start is left out, because Keras has no such
    layer that fits here: the model in Keras takes one-hot vectors. What concerns training alone is
    not written. A model that was read from a file in the layout of that name, of Keras 3 or in an
    ``.h5`` of Keras 1 and 2, is written as that file, with the weights that it now has.

    Args:
        model: one that was loaded, or any row whose layers Keras has: `rnnjax.SimpleRNNCell`,
            `rnnjax.LSTMCell`, `rnnjax.GRUCell`, `rnnjax.Regularized` without zoneout, a
            `rnnjax.Stack` or `rnnjax.Bidirectional` of them, and the other layers of
            `rnnjax.interop`.
        path: its name ends in ``.keras``, ``.weights.h5`` or ``.h5``.

    Raises:
        InteropError: a layer does what no layer of Keras does, a graph was read from no file of
            Keras or from one of another layout, the file cannot be written, or h5py is missing.
        InvalidInputError: the name ends in something else, or ``model`` is no model.
    """
    check_model(model)
    if not isinstance(path, str | os.PathLike):
        raise InvalidInputError(f"path should be the name of a file, but is {type(path)}")
    path, network, origin = Path(path), model.network, model.origin
    if not path.name.endswith((".keras", ".h5")):
        raise InvalidInputError(
            f"the name of the file should end in .keras, .weights.h5 or .h5, but is {path.name!r}"
        )
    new = path.name.endswith((".keras", ".weights.h5"))
    row = isinstance(network, Sequential)
    if (
        isinstance(origin, KerasOrigin)
        and with_axes(model, True).network == origin.network
        and (origin.file.groups is None) == new
    ):
        return write_file(path, _as_it_was(model, origin))
    if not row or not new:
        raise InteropError(
            f"{path} should get a row of layers, as *.keras or *.weights.h5, or the model that a "
            f"file of Keras in the {'new' if new else 'old'} layout holds, but this model is a "
            f"{type(network).__name__} that is none; name it by the file that it was read from, or "
            "write the rows that it is made of, each as a Sequential"
        )
    return write_file(path, _row(model))


def _row(model: Model) -> KerasFile:
    """Layers in a row, as Keras 3 has them."""
    layers = written_layers(model.network)
    if not layers:
        raise InteropError("the model has no layer that Keras knows; there is nothing to write")
    places = groups_of(layers)
    arrays = {
        f"layers/{places[layer.name]}/{unit.path}".rstrip("/") + f"/vars/{i}": array
        for layer in layers
        for unit, own in arrays_of(layer, model)
        for i, array in enumerate(own)
    }
    return KerasFile(config_of(layers, _features(model, layers)), _WRITTEN_BY, arrays)


def _as_it_was(model: Model, origin: KerasOrigin) -> KerasFile:
    """The file that a model was read from, with other numbers in its arrays."""
    arrays = dict(origin.file.arrays)
    for layer in model.network.layers.values():
        made = arrays_of(layer, model)
        for (_, own), paths in zip(made, origin.places[layer.name], strict=True):
            if [array.shape for array in own] != [arrays[one].shape for one in paths]:
                raise InteropError(
                    f"layer {layer.name!r} was read in the layout of Keras 1 or of CuDNN, which is "
                    "not written; write a row of layers as *.keras, or save the model again in "
                    "Keras 2, with plain layers"
                )
            for array, one in zip(own, paths, strict=True):
                arrays[one] = array.astype(arrays[one].dtype)
    return dataclasses.replace(origin.file, arrays=arrays)


def _features(model: Model, layers: Sequence[Layer]) -> int | None:
    """How many features the inputs have; None for ids, or where it does not matter."""
    first = model.network.layers[next(iter(model.network.layers))]
    if isinstance(first, OneHotIds):
        return first.size
    for layer in layers:
        for _, arrays in arrays_of(layer, model):
            return None if isinstance(layer, Embedding) else int(arrays[0].shape[0])
    return None


def written_layers(network: Network) -> list[Layer]:
    """The layers of a row that Keras gets: without one-hot ids, which it takes as vectors."""
    layers = list(network.layers.values())
    if isinstance(layers[0], OneHotIds):
        layers = layers[1:]
    for layer in layers:
        kind_of(layer)
        units_of(layer)
    return layers


def kind_of(layer: Layer) -> str:
    """The class of Keras that the layer becomes."""
    if isinstance(layer, Recurrent):
        cell = _bare(layer.cell)
        return "Bidirectional" if isinstance(cell, Bidirectional) else _class_of(cell)
    if isinstance(layer, Activation):
        special = layer_of(layer.function)
        return special[0] if special else "Activation"
    if isinstance(layer, Dropout):
        return "Dropout" if layer.dropout.per == "step" else "SpatialDropout1D"
    if isinstance(layer, Dense | Embedding | Masking):
        return type(layer).__name__
    raise InteropError(
        f"layer {layer.name!r} is a {type(layer).__name__}, which Keras has not at this place; "
        "leave it out, or put it into the data"
    )


def groups_of(layers: list[Layer]) -> dict[str, str]:
    """Where Keras 3 puts the arrays of each layer among those of all, by the layer's name."""
    used: dict[str, int] = {}
    return {layer.name: unique(snake(kind_of(layer)), used) for layer in layers}


def config_of(layers: list[Layer], features: int | None) -> dict[str, Any]:
    """The config of a row; ``features`` of its input, or None where it takes ids."""
    ids = isinstance(layers[0], Embedding)
    shape = [None, None] if ids else [None, None, features]
    told = {"name": "input_layer", "batch_shape": shape, "dtype": "int32" if ids else "float32"}
    entries = [_entry("InputLayer", told), *map(layer_config, layers)]
    whole = _entry("Sequential", {"name": "sequential", "layers": entries})
    return {**whole, "module": "keras"}


def layer_config(layer: Layer) -> dict[str, Any]:
    """The dict of class name and options of one layer.

    >>> entry = layer_config(Dense("head", 3, "softmax"))
    >>> entry["class_name"], entry["config"]
    ('Dense', {'name': 'head', 'units': 3, 'activation': 'softmax', 'use_bias': True})
    """
    kind = kind_of(layer)
    if isinstance(layer, Recurrent):
        return _recurrent(layer, kind)
    where = f"layer {layer.name!r}"
    config: dict[str, Any] = {"name": layer.name}
    if isinstance(layer, Dense):
        activation = name_of(layer.activation, where)
        config |= {"units": layer.size, "activation": activation, "use_bias": layer.use_bias}
    elif isinstance(layer, Embedding):
        config |= {"input_dim": layer.vocabulary_size, "output_dim": layer.size}
        config["mask_zero"] = layer.mask_zero
    elif isinstance(layer, Masking):
        config["mask_value"] = layer.value
    elif isinstance(layer, Dropout):
        config["rate"] = layer.dropout.rate
    elif isinstance(layer, Activation):
        special = layer_of(layer.function)
        config |= special[1] if special else {"activation": name_of(layer.function, where)}
    return _entry(kind, config)


def _entry(kind: str, config: dict[str, Any]) -> dict[str, Any]:
    own = {"module": "keras.layers", "registered_name": None}
    return {**own, "class_name": kind, "config": config}


def _class_of(cell: Cell) -> str:
    """The layer around a cell."""
    return CELLS[type(cell)].name if type(cell) in CELLS else "RNN"


def _bare(cell: Cell) -> Cell:
    return cell.cell if isinstance(cell, Regularized) else cell


def _recurrent(layer: Recurrent, kind: str) -> dict[str, Any]:
    cell = _bare(layer.cell)
    zero = layer.masked_outputs == "zero"
    if layer.reverse and layer.keep_order and layer.return_sequences:
        raise InteropError(
            f"layer {layer.name!r} runs in reverse and gives its outputs in the order of the "
            "inputs, but Keras gives them in reverse; set keep_order=False, or make it a direction "
            "of a Bidirectional"
        )
    if not isinstance(cell, Bidirectional):
        return _one_direction(layer.cell, kind, layer.name, layer, layer.reverse, zero)
    if not zero:
        raise InteropError(
            f"masked_outputs of layer {layer.name!r} is 'last', but Keras's Bidirectional has "
            "'zero'; set that"
        )
    directions = []
    for i, part in enumerate(cell.cells):
        name = f"{('forward', 'backward')[i]}_{layer.name}"
        part_kind = _class_of(_bare(part))
        reverse = layer.reverse != (i == 1)
        directions.append(_one_direction(part, part_kind, name, layer, reverse, True))
    merge = {"average": "ave"}.get(cell.merge, cell.merge) if layer.merged else None
    both = {"layer": directions[0], "backward_layer": directions[1]}
    return _entry(kind, {"name": layer.name, "merge_mode": merge, **both})


def _one_direction(
    cell: Cell, kind: str, name: str, layer: Recurrent, reverse: bool, zero: bool
) -> dict[str, Any]:
    config: dict[str, Any] = {
        "name": name,
        "return_sequences": layer.return_sequences,
        "go_backwards": reverse,
        "zero_output_for_mask": zero and layer.return_sequences,
    }
    if kind == "RNN":
        return _entry(kind, {**config, "cell": _cell(cell, layer.name)})
    return _entry(kind, config | _cell_options(cell, layer.name))


def _cell(cell: Cell, name: str) -> dict[str, Any]:
    if isinstance(cell, Stack):
        cells = [_cell(part, name) for part in cell.cells]
        return _entry("StackedRNNCells", {"cells": cells})
    return _entry(class_of(_bare(cell)), _cell_options(cell, name))


def _cell_options(cell: Cell, name: str) -> dict[str, Any]:
    where = f"layer {name!r}"
    bare: Any = _bare(cell)
    if bare.dtype is not None:
        raise InteropError(
            f"{where} computes in {np.dtype(bare.dtype).name}, which in Keras is a policy of the "
            "whole program; set dtype=None, and keras.config.set_dtype_policy there"
        )
    options: dict[str, Any] = {
        "units": bare.hidden_size,
        "activation": name_of(bare.activation, where),
        "use_bias": bare.use_bias,
    }
    if isinstance(bare, LSTMCell | GRUCell):
        options["recurrent_activation"] = name_of(bare.recurrent_activation, where)
    if isinstance(bare, LSTMCell):
        options["unit_forget_bias"] = bare.unit_forget_bias
    if isinstance(bare, GRUCell):
        options["reset_after"] = bare.reset_after
    if isinstance(cell, Regularized):
        if cell.zoneout_hidden or cell.zoneout_cell or cell.weight_drop:
            raise InteropError(
                f"{where} has zoneout or weight_drop, which Keras has not; set them to 0"
            )
        options["dropout"] = cell.input_dropout
        options["recurrent_dropout"] = cell.recurrent_dropout
    return options
