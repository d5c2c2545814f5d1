"""What Keras 3 has in a config: layers, and graphs of them, with what older versions computed."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from rnnjax.cells import Cell
from rnnjax.errors import InteropError
from rnnjax.interop.functions import FORMS
from rnnjax.interop.keras.files import plain
from rnnjax.interop.keras.graph import is_tensor
from rnnjax.interop.keras.layers import check_known, options_of, scaled
from rnnjax.interop.keras.operators import MERGES, Operation, TimeDistributed, keeps_mask
from rnnjax.interop.layers import Dropout, Layer, Masking, Recurrent
from rnnjax.interop.model import Call, Functional, Value
from rnnjax.layers import Bidirectional, Regularized, Stack

_ATTENTION = "AdditiveAttention", "Attention", "MultiHeadAttention"
_LEAVE_OUT = "Multiply", "Maximum", "Minimum"  # what is masked, from Keras 3.4 on
_WAYS = "layer", "backward_layer"  # of a Bidirectional
_OPS = "keras.src.ops.numpy"
_KEEP = "write it to .onnx, which has that"


def class_of(cell: Any) -> str:
    """The class that Keras has for a cell."""
    axes = f"{len(cell.kernel_shape)}D" if hasattr(cell, "kernel_shape") else ""
    return f"{FORMS['keras'][type(cell)][0]}{axes}Cell"


def keras_layer(
    kind: str, config: Mapping[str, Any], module: str = "keras.layers"
) -> dict[str, Any]:
    """A layer as it stands in a config."""
    config = {**config, "name": plain(config["name"])} if "name" in config else config
    return {"module": module, "registered_name": None, "class_name": kind, "config": config}


def check_names(names: Sequence[str]) -> None:
    """Raise InteropError if two would be one in Keras 3."""
    if len({*map(plain, names)}) < len(names):
        raise InteropError("two layers or inputs of the model would have one name; rename one")


def input_entry(name: str, shape: Sequence[Any], dtype: str) -> dict[str, Any]:
    """An input as it stands in a config."""
    told = {"name": name, "batch_shape": [None, *shape], "dtype": dtype}
    return keras_layer("InputLayer", told)


def row_config(configs: Mapping[str, Any], size: Any) -> dict[str, Any]:
    """The config of a Sequential, with the size of its inputs if they are no ids."""
    check_names([*configs])
    ids = next(iter(configs.values()))["class_name"] == "Embedding"
    begin = ([None], "int32") if ids else ([None, size], "float32")
    entries = [input_entry("input_layer", *begin), *configs.values()]
    return keras_layer("Sequential", {"name": "sequential", "layers": entries}, "keras")


# --- A graph of layers ---


def _key(parts: Sequence[Any]) -> list[Any]:
    """An index, as Keras writes what is between brackets."""
    ends = "start", "stop", "step"
    return [
        {"class_name": "__slice__", "config": dict(zip(ends, part, strict=True))}
        if isinstance(part, tuple)
        else {"class_name": "__ellipsis__", "config": {}} if part is ... else part
        for part in parts
    ]  # fmt: skip


class _Graph:
    """The nodes of a graph, as Keras 3 lists them at their layers."""

    def __init__(self, network: Functional, configs: Mapping[str, Any]) -> None:
        self.network, self.layers = network, network.layers
        self.entries: dict[str, Any]
        self.entries = {plain(one.name): input_entry(*one[:3]) for one in network.inputs}
        self.entries |= {plain(name): config for name, config in configs.items()}
        check_names([*configs, *(one.name for one in network.inputs)])
        # Of inputs and calls, the layer and its node.
        self.at = {one.name: (plain(one.name), 0) for one in network.inputs}
        self.parents: dict[tuple[str, int], list[tuple[str, int]]] = {}  # of nodes, what they read
        # Of values with a mask the call that makes it, or the value that it is.
        self.marks: dict[Value, str | None] = {}
        read = [*network.outputs, *(value for call in network.calls for value in call.reads)]
        ends = {value.source for value in read if value.output}
        for call in network.calls:
            if call.name in ends:
                told = configs[call.layer]["config"]
                for one in [told[n]["config"] for n in _WAYS if n in told] or [told]:
                    one["return_state"] = True
            self.call(call)

    def tensor(self, value: Value) -> dict[str, Any]:
        history = [*self.at[value.source], value.output]
        config = {"shape": [None], "dtype": "float32", "keras_history": history}
        return {"class_name": "__keras_tensor__", "config": config}

    def node(self, name: str, key: str, args: Any, options: Mapping[str, Any]) -> None:
        """Let a layer be called, and what it gives be known by a key."""
        name = plain(name)
        nodes = self.entries[name].setdefault("inbound_nodes", [])
        self.at[key] = name, len(nodes)
        read = jax.tree.leaves((args, dict(options)), is_leaf=is_tensor)
        sources = [one["config"]["keras_history"] for one in read if is_tensor(one)]
        self.parents[name, len(nodes)] = [(source, place) for source, place, _ in sources]
        nodes.append({"args": args, "kwargs": dict(options)})

    def call(self, call: Call) -> None:
        layer = self.layers[call.layer]
        kind, told = getattr(layer, "kind", ""), dict(getattr(layer, "config", ()))
        takes, options = [self.tensor(value) for value in call.takes], dict[str, Any]()
        if call.states:
            options["initial_state"] = self.states(layer, call.states)
        masks, given = [self.marks.get(value) for value in call.takes], call.mask
        marked, version = any(masks), told.get("version", 3)
        uses = isinstance(layer, Recurrent) or kind in (*_ATTENTION, "GlobalAveragePooling1D")
        # Sequences one after the other are merged as they were, and so are equal masks.
        joined = kind == "Concatenate" and told["axis"] in (1, -2)
        merged = kind in MERGES and version < 3.04 and not joined
        # Keras 3 hands on a mask to each layer that uses one but those that begin with states, and
        # takes it off what its heads read.
        if (
            (uses and masks[0] and given == bool(call.states))
            or (merged and marked and (kind in _LEAVE_OUT or len({*masks}) > 1))
            or (marked and kind == "MultiHeadAttention" and version < 3)
        ):
            raise InteropError(
                f"layer {layer.name!r}, {layer}, has masks that Keras 3 merges or uses otherwise; "
                f"{_KEEP}"
            )
        if uses and isinstance(given, Value):
            options["mask"] = self.tensor(given)
        if told.get("use_causal_mask"):
            options["use_causal_mask"] = True
        several = len(takes) > 1 and kind != "MultiHeadAttention"
        args: list[Any] = [takes] if several else takes
        if "arguments" in told:  # of an operation: None is a tensor
            rest = iter(takes)
            args = [next(rest) if one is None else one for one in told["arguments"]]
        elif kind == "ops.GetItem":
            args = [*takes, _key(told["key"])]
        self.node(call.layer, call.name, args, options)
        if isinstance(layer, Masking) or getattr(layer, "mask_zero", False):
            self.marks[Value(call.name)] = call.name
        elif keeps_mask(layer):
            own = str(given) if isinstance(given, Value) else masks[0]
            self.marks[Value(call.name)] = call.name if marked and joined else own

    def states(self, layer: Any, values: Sequence[Value]) -> list[Any]:
        """The states that a layer begins with, those of each of several cells in a list."""
        tensors = map(self.tensor, values)
        if not isinstance(layer.cell, Stack):
            return [*tensors]
        carry = jax.eval_shape(layer.cell.initial_carry)
        return [[next(tensors) for _ in jax.tree.leaves(own)] for own in carry]

    def order(self, ends: Sequence[tuple[str, int]]) -> list[str]:
        """The layers as Keras 3 lists them: by their distance from the outputs, the farthest first.

        Those of one distance come in the order in which a walk from the outputs meets them. By this
        order the places of their arrays are counted.
        """
        met, done = dict[str, int](), dict[tuple[str, int], int]()
        stack = [*reversed(ends)]
        while stack:
            node = stack[-1]
            met.setdefault(node[0], len(met))
            rest = [one for one in self.parents.get(node, ()) if one not in done]
            if node in done or not rest:
                done.setdefault(stack.pop(), 0)
            else:
                stack.append(rest[0])
        depths = dict.fromkeys(met, 0)
        for node in reversed([*done]):
            depths[node[0]] = done[node] = max(done[node], depths[node[0]])
            for one in self.parents.get(node, ()):
                done[one] = max(done[one], done[node] + 1)
        return sorted(depths, key=lambda name: (-depths[name], met[name]))


def graph_config(network: Functional, configs: dict[str, Any]) -> dict[str, Any]:
    """The config of a functional model of Keras 3, with its layers in Keras's order."""
    graph = _Graph(network, configs)
    begin = [[plain(one.name), 0, 0] for one in network.inputs]
    ends = [[*graph.at[value.source], value.output] for value in network.outputs]
    walked = [graph.at[value.source] for value in network.outputs]
    if network.names is not None:  # Keras goes through a dict in the order of its keys
        walked = [end for _, end in sorted(zip(network.names, walked, strict=True))]
    order = graph.order(walked)
    order = [*dict.fromkeys([*(plain(one.name) for one in network.inputs), *order])]
    listed = [{"name": name, "inbound_nodes": [], **graph.entries[name]} for name in order]
    inputs: Any = begin if begin[1:] else begin[0]  # one by itself, as it is called
    outputs: Any = ends if ends[1:] else ends[0]
    if network.names is not None:
        outputs = dict(zip(network.names, ends, strict=True))
    config = {"name": "functional", "layers": listed, "input_layers": inputs}
    made = keras_layer("Functional", {**config, "output_layers": outputs})
    return made | {"module": "keras.src.models.functional", "registered_name": "Functional"}


# --- What Keras 2 computed ---


def in_keras_3(owner: Any, arrays: list[np.ndarray]) -> list[np.ndarray]:
    """The arrays of a cell or a layer for Keras 3, whose hard_sigmoid is Keras 2's of 1.2 times x.

    So where the old one follows a product, kernels and biases of those gates take the factor.
    """
    old = scaled(owner)
    if not old or not isinstance(owner, Cell):
        return [array * np.float32(1.2) for array in arrays] if old else arrays
    gates = FORMS["keras"][type(owner)][1] or owner.gates
    inner = gates if len(gates) < 2 else ("g", "n")  # the gates of `activation`
    named = ["activation" if gate in inner else "recurrent_activation" for gate in gates]
    times = np.repeat([1.2 if name in old else 1.0 for name in named], owner.hidden_size)
    return [array * times.astype(np.float32) for array in arrays]


# --- A layer ---


def layer_entry(layer: Layer) -> dict[str, Any]:
    """The config of a layer, whose cells Keras has."""
    kind, where = type(layer).__name__, f"layer {layer.name!r}"
    own: Any = layer
    check_known(layer, where)
    if isinstance(layer, Recurrent):
        kind, config = _recurrent(own, where)
    elif isinstance(layer, Dropout):
        check_known(own.dropout, where)
        kind = "Dropout" if own.dropout.per == "step" else "SpatialDropout1D"
        config = {"rate": own.dropout.rate}
    elif isinstance(layer, Operation):
        return _operation(own, where)
    elif isinstance(layer, TimeDistributed):
        config = {"layer": layer_entry(dataclasses.replace(own.layer, name=f"{layer.name}_step"))}
    else:
        config = options_of(layer, where)
    return keras_layer(kind, {"name": layer.name, **config})


def _operation(layer: Operation, where: str) -> dict[str, Any]:
    config = {"name": layer.name, **options_of(layer, where)}
    if layer.kind == "BatchNormalization" and isinstance(config["axis"], tuple):
        (config["axis"],) = config["axis"]
    # Which stand in no config, or at the call.
    for told in ("version", "arguments", "key", "use_causal_mask"):
        config.pop(told, None)
    if layer.kind.startswith("ops."):
        core = "keras.src.ops.core" if layer.kind == "ops.ConvertToTensor" else _OPS
        return keras_layer(layer.kind[4:], config, core)
    return keras_layer(layer.kind, config)


def _recurrent(layer: Recurrent, where: str) -> tuple[str, dict[str, Any]]:
    both, outputs = isinstance(layer.cell, Bidirectional), layer.masked_outputs
    if outputs != "zero" and (both or outputs != "last"):
        has = "Keras's Bidirectional has 'zero'" if both else "Keras has 'zero' and 'last'"
        raise InteropError(
            f"masked_outputs of {where} is {outputs!r}, but {has}; set that, or {_KEEP}"
        )
    if layer.reverse and layer.keep_order and layer.return_sequences:
        raise InteropError(
            f"{where} runs in reverse and keeps the order of the inputs, which Keras does not; set "
            "keep_order=False, or make it a direction of a Bidirectional"
        )
    common = options_of(layer, where)
    common["zero_output_for_mask"] = outputs == "zero" and layer.return_sequences
    if not isinstance(layer.cell, Bidirectional):
        kind, options = _direction(layer.cell, where)
        same = {"padding": "same"} if "kernel_size" in options else {}  # unless it says otherwise
        return kind, same | common | options
    check_known(layer.cell, where)
    ways = []
    for way, cell in zip(("forward", "backward"), layer.cell.cells, strict=True):
        kind, options = _direction(cell, where)
        common["go_backwards"] = layer.reverse != (way == "backward")
        ways.append(keras_layer(kind, {"name": f"{way}_{layer.name}", **common, **options}))
    merge = {"average": "ave"}.get(layer.cell.merge, layer.cell.merge)
    return "Bidirectional", {"merge_mode": merge, "layer": ways[0], "backward_layer": ways[1]}


def _direction(cell: Cell, where: str) -> tuple[str, dict[str, Any]]:
    """The layer around a cell, by its class and its options."""
    inner = _cell(cell, where)
    alone = inner["class_name"].endswith("Cell")
    return (inner["class_name"][:-4], inner["config"]) if alone else ("RNN", {"cell": inner})


def _cell(cell: Cell, where: str) -> dict[str, Any]:
    bare: Any = cell.cell if isinstance(cell, Regularized) else cell
    if isinstance(bare, Stack):
        check_known(bare, where)
        return keras_layer(
            "StackedRNNCells", {"cells": [_cell(part, where) for part in bare.cells]}
        )
    if bare.dtype is not None:
        raise InteropError(
            f"{where} computes in {np.dtype(bare.dtype).name}, which in Keras is a policy; set "
            "dtype=None, and keras.config.set_dtype_policy there"
        )
    options = options_of(bare, where)
    if isinstance(cell, Regularized):
        options |= options_of(cell, where)
    return keras_layer(class_of(bare), options)
