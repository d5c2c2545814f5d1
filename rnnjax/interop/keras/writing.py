"""Models into files: the configs by which Keras builds their layers again, and their arrays."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rnnjax.cells import GRUCell, LSTMCell
from rnnjax.cells.base import Cell
from rnnjax.errors import InteropError, InvalidInputError
from rnnjax.interop.keras.arrays import (
    CELLS,
    arrays_of,
    class_of,
    forms_of,
    snake,
    unique,
    units_of,
)
from rnnjax.interop.keras.files import write_archive, write_hdf5
from rnnjax.interop.keras.functions import layer_of, name_of
from rnnjax.interop.keras.operators import OPERATORS, Operation
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
from rnnjax.interop.model import Functional, Input, Model, Network, Sequential, Value, check_model
from rnnjax.layers import Bidirectional, Regularized, Stack

_WRITTEN_BY = "3.0.0"  # the first version of Keras that reads what is written here


def save(model: Model, path: str | os.PathLike[str]) -> None:
    """Write a file that Keras 3 reads.

    ``.keras`` holds the whole model for ``keras.saving.load_model``; ``.weights.h5`` the weights
    alone, for ``load_weights`` of the model that is read from the first. A file of that name is
    replaced, and only by a whole one.

    `OneHotIds` at the start of the model is left out, because Keras has no such layer that fits
    here: the model in Keras takes one-hot vectors. What concerns training alone is not written, and
    models that were layers of the model are written as the layers that they are made of.

    Args:
        model: one that was loaded, or any other whose layers Keras has: `rnnjax.SimpleRNNCell`,
            `rnnjax.LSTMCell`, `rnnjax.GRUCell`, `rnnjax.Regularized` without zoneout, a
            `rnnjax.Stack` or `rnnjax.Bidirectional` of them, and the other layers of
            `rnnjax.interop`.
        path: its name ends in ``.keras`` or ``.weights.h5``.

    Raises:
        InteropError: a layer does what no layer of Keras does, the file cannot be written, or h5py
            is missing.
        InvalidInputError: the name ends in something else, or ``model`` is no model.
    """
    check_model(model)
    if not isinstance(path, str | os.PathLike):
        raise InvalidInputError(f"path should be the name of a file, but is {type(path)}")
    path = Path(path)
    layers, forms = written_layers(model.network), forms_of(model)
    if not path.name.endswith((".keras", ".weights.h5")):
        raise InvalidInputError(
            f"the name of the file should end in .keras or .weights.h5, but is {path.name!r}"
        )
    if not layers:
        raise InteropError("the model has no layer that Keras knows; there is nothing to write")
    places = groups_of(layers, forms)
    groups: dict[str, tuple[str, list[np.ndarray]]] = {"": ("sequential", [])}
    for layer in layers:
        for unit, arrays in arrays_of(layer, model, forms):
            place = f"{places[layer.name]}/{unit.path}".rstrip("/")
            groups[place] = (layer.name, arrays)
    if path.name.endswith(".weights.h5"):
        write_hdf5(path, groups)
        return
    config = config_of(model.network, layers, forms, _features(model, layers))
    write_archive(path, config, {"keras_version": _WRITTEN_BY}, groups)


def _features(model: Model, layers: Sequence[Layer]) -> int | None:
    """How many features the inputs have; None for ids, or where it does not matter."""
    if isinstance(model.network, Functional):  # which says it of each input
        return None
    first = model.network.layers[next(iter(model.network.layers))]
    if isinstance(first, OneHotIds):
        return first.size
    for layer in layers:
        for _, arrays in arrays_of(layer, model):
            return None if isinstance(layer, Embedding) else int(arrays[0].shape[0])
    return None


# Where Keras looks for a function of ``keras.ops`` that is not among those of NumPy.
_OPS = {"ConvertToTensor": "core"}


def written_layers(network: Network) -> list[Layer]:
    """Return the layers that Keras gets: without one-hot ids, which it takes as vectors."""
    if not isinstance(network, Sequential | Functional):
        raise InteropError(
            f"a model for Keras should be a Sequential or a Functional, but is a "
            f"{type(network).__name__}; make one of its layers"
        )
    layers = list(network.layers.values())
    if isinstance(network, Functional):
        layers = _as_keras_sorts(network)
    if isinstance(layers[0], OneHotIds):
        layers = layers[1:]
    for layer in layers:
        kind_of(layer)
        units_of(layer)
    return layers


def _as_keras_sorts(network: Functional) -> list[Layer]:
    """The layers by the longest way from each to an output, by which Keras 3 finds their arrays.

    Those that are as far are in the order in which a search from the outputs meets them.
    """
    calls, first = network.calls, len(network.inputs)
    before = [
        [
            value.source - first
            for value in (*call.takes, *call.states, call.mask)
            if isinstance(value, Value) and value.source >= first
        ]
        for call in calls
    ]
    ends = sorted(zip(network.names or range(len(network.outputs)), network.outputs, strict=True))
    met: dict[str, int] = {}
    done: dict[int, int] = {}  # calls, and how far they are
    stack = [value.source - first for _, value in reversed(ends)]
    while stack:
        i = stack[-1]
        left = [] if i < 0 or i in done else [j for j in before[i] if j not in done]
        if i >= 0:
            met.setdefault(calls[i].layer, len(met))
        if left:
            stack.append(left[0])
            continue
        if i >= 0:
            done.setdefault(i, 0)
        stack.pop()
    far: dict[str, int] = {}
    for i in reversed(done):
        name = calls[i].layer
        far[name] = done[i] = max(done[i], far.get(name, 0))
        for j in before[i]:
            done[j] = max(done[j], far[name] + 1)
    return [network.layers[name] for name in sorted(far, key=lambda name: (-far[name], met[name]))]


def kind_of(layer: Layer, form: str | None = None) -> str:
    """The class of Keras that the layer becomes; ``form`` is the one it came from, where kept."""
    if isinstance(layer, Recurrent):
        cell = _bare(layer.cell)
        if isinstance(cell, Bidirectional):
            return "Bidirectional"
        return _class_of(cell, form)
    if isinstance(layer, Operation):
        return "TimeDistributed" if layer.each_step else layer.kind
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
    network: Network, layers: list[Layer], forms: Mapping[str, str], features: int | None
) -> dict[str, Any]:
    """The config of a model; ``features`` of the input of a row, or None where it takes ids."""
    if isinstance(network, Functional):
        return _functional(network, layers, forms)
    ids = isinstance(layers[0], Embedding)
    shape = (None,) if ids else (None, features)
    entries = [_input(Input("input_layer", shape, "int32" if ids else "float32"))]
    entries += [layer_config(layer, forms.get(layer.name)) for layer in layers]
    whole = _entry("Sequential", {"name": "sequential", "layers": entries})
    return {**whole, "module": "keras"}


def _input(one: Input) -> dict[str, Any]:
    config = {"name": one.name, "batch_shape": [None, *one.shape], "dtype": one.dtype}
    return _entry("InputLayer", config)


def _functional(
    network: Functional, layers: list[Layer], forms: Mapping[str, str]
) -> dict[str, Any]:
    """The config of a graph: beside each layer its calls."""
    names = [(one.name, 0) for one in network.inputs]
    for call in network.calls:
        names.append((call.layer, sum(call.layer == name for name, _ in names)))

    def tensor(value: Value) -> dict[str, Any]:
        history = [*names[value.source], value.output]
        # Keras finds the tensor by these, and reads no more of its shape.
        config = {"shape": [None], "dtype": "float32", "keras_history": history}
        return {"class_name": "__keras_tensor__", "config": config}

    nodes: dict[str, list[Any]] = {one.name: [] for one in network.inputs}
    for call in network.calls:
        takes, layer = [*map(tensor, call.takes)], network.layers[call.layer]
        args = _arguments(layer, takes) if isinstance(layer, Operation) else takes
        kwargs: dict[str, Any] = {}
        if call.states:
            kwargs["initial_state"] = [*map(tensor, call.states)]
        if isinstance(call.mask, Value):
            kwargs["mask"] = tensor(call.mask)
        nodes.setdefault(call.layer, []).append({"args": args, "kwargs": kwargs})
    used = [*network.outputs, *(v for call in network.calls for v in (*call.takes, *call.states))]
    states = {names[value.source][0] for value in used if value.output}
    entries = [_input(one) for one in network.inputs]
    for layer in layers:
        entries.append(layer_config(layer, forms.get(layer.name)))
        if isinstance(layer, Recurrent) and layer.name in states:
            config = entries[-1]["config"]
            for part in ("layer", "backward_layer"):
                config.get(part, {"config": config})["config"]["return_state"] = True
    listed = []
    for entry in entries:
        name, own = entry["config"]["name"], entry["module"] == "keras.layers"
        own = own and entry["class_name"] != "SpatialDropout1D"  # which is not told it
        config = entry["config"] | ({"trainable": True} if own else {})  # unlike a function
        listed.append({**entry, "config": config, "name": name, "inbound_nodes": nodes[name]})
    ends: Any = [[*names[value.source], value.output] for value in network.outputs]
    if network.names is not None:
        ends = dict(zip(network.names, ends, strict=True))
    elif len(ends) == 1:
        ends = ends[0]
    starts: Any = [[one.name, 0, 0] for one in network.inputs]
    starts = starts if len(starts) > 1 else starts[0]
    whole = {"name": "functional", "layers": listed, "input_layers": starts, "output_layers": ends}
    return {**_entry("Functional", whole), "module": "keras.src.models.functional"}


def _arguments(layer: Operation, takes: list[Any]) -> list[Any]:
    """How an operation is called."""
    config = dict(layer.config)
    if "key" in config:
        return [*takes, [_part(one) for one in config["key"]]]
    if "arguments" in config:
        rest = iter(takes)
        return [next(rest) if a is None else a for a in config["arguments"]]
    together = OPERATORS[layer.kind].arrays != (1, 1) and layer.kind != "MultiHeadAttention"
    return [takes] if together else takes


def _part(one: Any) -> Any:
    """How Keras writes what may stand in brackets."""
    if isinstance(one, tuple):
        config = dict(zip(("start", "stop", "step"), one, strict=True))
        return {"class_name": "__slice__", "config": config}
    return {"class_name": "__ellipsis__", "config": {}} if one is ... else one


def _operation(layer: Operation) -> dict[str, Any]:
    where, config = f"layer {layer.name!r}", dict(layer.config)
    for name in ("arguments", "key"):
        config.pop(name, None)
    if "activation" in config:
        config["activation"] = name_of(config["activation"], where)
    if layer.kind.startswith("ops."):
        kind = layer.kind.removeprefix("ops.")
        module = f"keras.src.ops.{_OPS.get(kind, 'numpy')}"
        return {**_entry(kind, {"name": layer.name, **config}), "module": module,
                "registered_name": kind}  # fmt: skip
    return _entry(layer.kind, {"name": layer.name, **config})


def layer_config(layer: Layer, form: str | None = None) -> dict[str, Any]:
    """The dict of class name and options of one layer.

    >>> entry = layer_config(Dense("head", 3, "softmax"))
    >>> entry["class_name"], entry["config"]
    ('Dense', {'name': 'head', 'units': 3, 'activation': 'softmax', 'use_bias': True})
    """
    kind = kind_of(layer, form)
    if isinstance(layer, Operation) and not layer.each_step:
        return _operation(layer)
    if kind == "TimeDistributed":
        inner = _operation(layer) if isinstance(layer, Operation) else layer_config(layer)
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
    own = {"module": "keras.layers", "registered_name": None}
    return {**own, "class_name": kind, "config": config}


def _class_of(cell: Cell, form: str | None) -> str:
    """The layer around a cell."""
    name = CELLS[type(cell)].name if type(cell) in CELLS and form != "RNN" else "RNN"
    return "RNN" if ">" in name else name


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
        name = f"{('forward', 'backward')[i]}_{layer.name}"
        part_kind = _class_of(_bare(part), form)
        reverse = layer.reverse != (i == 1)
        directions.append(
            _one_direction(part, part_kind, name, layer, reverse, layer.return_sequences)
        )
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
        "zero_output_for_mask": zero,
    }
    if kind == "RNN":
        return _entry(kind, {**config, "cell": _cell(cell, layer.name)})
    return _entry(kind, config | _cell_options(cell, layer.name))


def _cell(cell: Cell, name: str) -> dict[str, Any]:
    if isinstance(cell, Stack):
        cells = [_cell(part, name) for part in cell.cells]
        return _entry("StackedRNNCells", {"cells": cells})
    bare: Any = _bare(cell)
    if ">" not in CELLS[type(bare)].name:
        return _entry(class_of(bare), _cell_options(cell, name))
    fields = {one.name: getattr(cell, one.name, None) for one in dataclasses.fields(bare)}
    config = {"units": fields.pop("hidden_size"), **fields}
    odd = [key for key, value in config.items() if not isinstance(value, str | int | float | None)]
    if bare is not cell or odd:
        raise InteropError(
            f"layer {name!r} is made of {cell!r}, of which Keras's config holds numbers, texts and "
            f"None alone; change {', '.join(odd) or 'its dropout'}"
        )
    registered = CELLS[type(bare)].name
    return {**_entry(class_of(bare), config), "module": None, "registered_name": registered}


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
