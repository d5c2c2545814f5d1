"""From layers of rnnjax to the configs that Keras 3 opens."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from rnnjax.cells import GRUCell, LSTMCell
from rnnjax.cells.base import Cell
from rnnjax.errors import InteropError
from rnnjax.interop.functions import Function
from rnnjax.interop.keras.arrays import CELLS, snake, unique, units_of
from rnnjax.interop.keras.functions import layer_of, name_of
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
from rnnjax.interop.model import Network, Sequential
from rnnjax.layers import Bidirectional, Regularized, Stack

_INITIALIZERS = [
    "glorot_uniform",
    "glorot_normal",
    "he_uniform",
    "he_normal",
    "lecun_uniform",
    "lecun_normal",
    "orthogonal",
    "zeros",
    "ones",
]


def written_layers(network: Network) -> list[Layer]:
    """The layers that Keras gets: all, but for ids at the start, which Keras takes as vectors.

    Raises:
        InteropError: the layers are no row, or one of them is not known to Keras.
    """
    if not isinstance(network, Sequential):
        raise InteropError(
            f"a model for Keras should be a Sequential, but is a {type(network).__name__}; make "
            "one of its layers"
        )
    layers = list(network.chain)
    if isinstance(layers[0], OneHotIds):
        layers = layers[1:]
    for layer in layers:
        kind_of(layer)
        units_of(layer)
    return layers


def kind_of(layer: Layer, form: str | None = None) -> str:
    """The class of Keras that the layer becomes; ``form`` is the one it came from, where kept.

    Raises:
        InteropError: Keras has none.
    """
    if isinstance(layer, Recurrent):
        cell = _bare(layer.cell)
        if isinstance(cell, Bidirectional):
            return "Bidirectional"
        plain = type(cell) in CELLS and form != "RNN"
        return CELLS[type(cell)] if plain else "RNN"
    if isinstance(layer, Dense | Activation) and form == "TimeDistributed":
        return form
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


def groups_of(layers: list[Layer], forms: Mapping[str, str]) -> dict[str, str]:
    """Where Keras 3 puts the arrays of each layer in a file, by the layer's name."""
    used: dict[str, int] = {}
    return {
        layer.name: f"layers/{unique(snake(kind_of(layer, forms.get(layer.name))), used)}"
        for layer in layers
    }


def config_of(
    layers: list[Layer], forms: Mapping[str, str], features: int | None
) -> dict[str, Any]:
    """The config of a Sequential; ``features`` of the input, or None where it takes ids.

    Raises:
        InteropError: a layer does what Keras's does not.
    """
    ids = isinstance(layers[0], Embedding)
    start = {
        "name": "input_layer",
        "batch_shape": [None, None] if ids else [None, None, features],
        "dtype": "int32" if ids else "float32",
    }
    entries = [_entry("InputLayer", start)]
    entries += [layer_config(layer, forms.get(layer.name)) for layer in layers]
    whole = _entry("Sequential", {"name": "sequential", "layers": entries})
    return {**whole, "module": "keras"}


def layer_config(layer: Layer, form: str | None = None) -> dict[str, Any]:
    """The dict of class name and options of one layer.

    Raises:
        InteropError: it does what Keras's layer does not.

    >>> entry = layer_config(Dense("head", 3, "softmax"))
    >>> entry["class_name"], entry["config"]
    ('Dense', {'name': 'head', 'units': 3, 'activation': 'softmax', 'use_bias': True})
    """
    kind = kind_of(layer, form)
    if kind == "TimeDistributed":
        inner = layer_config(layer)
        inner["config"]["name"] = f"{layer.name}_step"
        return _entry(kind, {"name": layer.name, "layer": inner})
    if isinstance(layer, Recurrent):
        return _recurrent(layer, kind, form)
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
    return {
        "module": "keras.layers",
        "class_name": kind,
        "config": config,
        "registered_name": None,
    }


def _bare(cell: Cell) -> Cell:
    return cell.cell if isinstance(cell, Regularized) else cell


def _recurrent(layer: Recurrent, kind: str, form: str | None) -> dict[str, Any]:
    cell = _bare(layer.cell)
    usual = "zero" if layer.return_sequences else "last"
    masked = layer.masked_outputs or usual
    if layer.reverse and layer.keep_order and layer.return_sequences:
        raise InteropError(
            f"layer {layer.name!r} runs in reverse and gives its outputs in the order of the "
            "inputs, but Keras gives them in reverse; set keep_order=False, or make it a direction "
            "of a Bidirectional"
        )
    if not isinstance(cell, Bidirectional):
        return _one_direction(layer.cell, kind, layer.name, layer, layer.reverse, masked == "zero")
    if masked != usual:
        raise InteropError(
            f"masked_outputs of layer {layer.name!r} is {masked!r}, but Keras's Bidirectional has "
            f"{usual!r}; set that"
        )
    directions = []
    for i, part in enumerate(cell.cells):
        plain = type(_bare(part)) in CELLS and form != "RNN"
        name = f"{('forward', 'backward')[i]}_{layer.name}"
        part_kind = CELLS[type(_bare(part))] if plain else "RNN"
        reverse = layer.reverse != (i == 1)
        directions.append(
            _one_direction(part, part_kind, name, layer, reverse, layer.return_sequences)
        )
    merge = {"average": "ave"}.get(cell.merge, cell.merge) if layer.merged else None
    return _entry(
        kind,
        {
            "name": layer.name,
            "merge_mode": merge,
            "layer": directions[0],
            "backward_layer": directions[1],
        },
    )


def _one_direction(
    cell: Cell, kind: str, name: str, layer: Recurrent, reverse: bool, zero: bool
) -> dict[str, Any]:
    config: dict[str, Any] = {
        "name": name,
        "return_sequences": layer.return_sequences,
        "go_backwards": reverse,
        "zero_output_for_mask": zero,
    }
    if kind == "RNN":
        return _entry(kind, {**config, "cell": _cell(cell, layer.name)})
    return _entry(kind, config | _cell_options(cell, layer.name))


def _cell(cell: Cell, name: str) -> dict[str, Any]:
    if isinstance(cell, Stack):
        cells = [_cell(part, name) for part in cell.cells]
        return _entry("StackedRNNCells", {"cells": cells})
    return _entry(f"{CELLS[type(_bare(cell))]}Cell", _cell_options(cell, name))


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
        "activation": _activation(bare.activation, where),
        "use_bias": bare.use_bias,
    }
    for ours, theirs in (
        ("kernel_init", "kernel_initializer"),
        ("recurrent_kernel_init", "recurrent_initializer"),
        ("bias_init", "bias_initializer"),
    ):
        if getattr(bare, ours) in _INITIALIZERS:
            options[theirs] = getattr(bare, ours)
    if isinstance(bare, LSTMCell | GRUCell):
        options["recurrent_activation"] = _activation(bare.recurrent_activation, where)
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


def _activation(function: str | Function, where: str) -> str | dict[str, Any]:
    return name_of(function, where)
