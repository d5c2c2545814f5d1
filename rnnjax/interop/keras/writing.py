"""Models into files: the configs by which Keras builds their layers again, and their arrays."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rnnjax.cells.base import Cell
from rnnjax.errors import InteropError, InvalidInputError
from rnnjax.interop.keras.arrays import CELLS, arrays_of, class_of, snake, unique, units_of
from rnnjax.interop.keras.files import KerasFile, write_file
from rnnjax.interop.keras.layers import options_of
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
_NAMES = {name for name, _ in CELLS.values()}


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
        "file" in origin
        and with_axes(model, True).network == origin["network"]
        and (origin["file"].groups is None) == new
    ):
        return write_file(path, _as_it_was(model))
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
    configs = configs_of(model.network)
    if not configs:
        raise InteropError("the model has no layer that Keras knows; there is nothing to write")
    groups, arrays = groups_of(configs), dict[str, np.ndarray]()
    first = next(iter(model.layers.values()))
    features = first.size if isinstance(first, OneHotIds) else None
    for name in configs:
        for unit, own in arrays_of(model.layers[name], model):
            place = f"layers/{groups[name]}/{unit.path}".rstrip("/")
            arrays |= {f"{place}/vars/{i}": array for i, array in enumerate(own)}
            features = own[0].shape[0] if features is None else features
    ids = next(iter(configs.values()))["class_name"] == "Embedding"
    shape = [None, None] if ids else [None, None, features]
    told = {"name": "input_layer", "batch_shape": shape, "dtype": "int32" if ids else "float32"}
    entries = [_entry("InputLayer", told), *configs.values()]
    whole = _entry("Sequential", {"name": "sequential", "layers": entries})
    return KerasFile({**whole, "module": "keras"}, _WRITTEN_BY, arrays)


def _as_it_was(model: Model) -> KerasFile:
    """The file that a model was read from, with other numbers in its arrays."""
    file, places = model.origin["file"], model.origin["places"]
    arrays = dict(file.arrays)
    for layer in model.network.layers.values():
        made = arrays_of(layer, model)
        for (_, own), paths in zip(made, places[layer.name], strict=True):
            if [array.shape for array in own] != [arrays[one].shape for one in paths]:
                raise InteropError(
                    f"layer {layer.name!r} was read in the layout of Keras 1 or of CuDNN, which is "
                    "not written; write a row of layers as *.keras, or save the model again in "
                    "Keras 2, with plain layers"
                )
            for array, one in zip(own, paths, strict=True):
                arrays[one] = array.astype(arrays[one].dtype)
    return dataclasses.replace(file, arrays=arrays)


def configs_of(network: Network) -> dict[str, dict[str, Any]]:
    """By its name the config of each layer of a row: but of one-hot ids, in Keras vectors."""
    layers = list(network.layers.values())
    return {layer.name: _layer(layer) for layer in layers[isinstance(layers[0], OneHotIds) :]}


def groups_of(configs: Mapping[str, Any]) -> dict[str, str]:
    """Return where Keras 3 puts the arrays of each layer, by the layer's name."""
    used: dict[str, int] = {}
    return {name: unique(snake(one["class_name"]), used) for name, one in configs.items()}


def _entry(kind: str, config: dict[str, Any]) -> dict[str, Any]:
    own = {"module": "keras.layers", "registered_name": None}
    return {**own, "class_name": kind, "config": config}


def _layer(layer: Layer) -> dict[str, Any]:
    """The dict of class name and options of one layer."""
    kind, where = type(layer).__name__, f"layer {layer.name!r}"
    if isinstance(layer, Recurrent):
        units_of(layer)  # raises where Keras has no such cell
        kind, config = _recurrent(layer, where)
    elif isinstance(layer, Dropout):
        kind = "Dropout" if layer.dropout.per == "step" else "SpatialDropout1D"
        config = {"rate": layer.dropout.rate}
    elif isinstance(layer, Activation | Dense | Embedding | Masking):
        config = options_of(layer, where)
    else:
        raise InteropError(
            f"{where} is a {kind}, which Keras has not at this place; leave it out, or put it into "
            "the data"
        )
    return _entry(kind, {"name": layer.name, **config})


def _recurrent(layer: Recurrent, where: str) -> tuple[str, dict[str, Any]]:
    zero = layer.masked_outputs == "zero"
    if layer.reverse and layer.keep_order and layer.return_sequences:
        raise InteropError(
            f"{where} runs in reverse and gives its outputs in the order of the "
            "inputs, but Keras gives them in reverse; set keep_order=False, or make it a direction "
            "of a Bidirectional"
        )
    common = {
        "return_sequences": layer.return_sequences,
        "go_backwards": layer.reverse,
        "zero_output_for_mask": zero and layer.return_sequences,
    }
    if not isinstance(layer.cell, Bidirectional):
        kind, options = _direction(layer.cell, where)
        return kind, common | options
    if not zero:
        raise InteropError(
            f"masked_outputs of {where} is 'last', but Keras's Bidirectional has 'zero'; set that"
        )
    ways = []
    for way, cell, reverse in zip(
        ("forward", "backward"), layer.cell.cells, (layer.reverse, not layer.reverse), strict=True
    ):
        kind, options = _direction(cell, where)
        named = {"name": f"{way}_{layer.name}", **common, "go_backwards": reverse, **options}
        ways.append(_entry(kind, named))
    merge = {"average": "ave"}.get(layer.cell.merge, layer.cell.merge) if layer.merged else None
    return "Bidirectional", {"merge_mode": merge, "layer": ways[0], "backward_layer": ways[1]}


def _direction(cell: Cell, where: str) -> tuple[str, dict[str, Any]]:
    """The layer around a cell, by its class and what it is told of that."""
    entry = _cell(cell, where)
    kind = entry["class_name"].removesuffix("Cell")
    return (kind, entry["config"]) if kind in _NAMES else ("RNN", {"cell": entry})


def _cell(cell: Cell, where: str) -> dict[str, Any]:
    bare: Any = cell.cell if isinstance(cell, Regularized) else cell
    if isinstance(bare, Stack):
        return _entry("StackedRNNCells", {"cells": [_cell(part, where) for part in bare.cells]})
    if bare.dtype is not None:
        raise InteropError(
            f"{where} computes in {np.dtype(bare.dtype).name}, which in Keras is a policy of the "
            "whole program; set dtype=None, and keras.config.set_dtype_policy there"
        )
    options = options_of(bare, where)
    if isinstance(cell, Regularized):
        if cell.zoneout_hidden or cell.zoneout_cell or cell.weight_drop:
            raise InteropError(
                f"{where} has zoneout or weight_drop, which Keras has not; set them to 0"
            )
        options |= options_of(cell, where)
    return _entry(class_of(bare), options)
