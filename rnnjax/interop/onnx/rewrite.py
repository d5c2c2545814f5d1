"""The way back: parameters into the ONNX message from which they came."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from rnnjax.errors import InvalidInputError
from rnnjax.interop.layers import Recurrent
from rnnjax.interop.model import Model
from rnnjax.interop.onnx.contents import prefix_of
from rnnjax.interop.onnx.files import import_onnx
from rnnjax.interop.onnx.graph import Graph
from rnnjax.interop.onnx.recurrent import Weights, params_to_onnx


@dataclasses.dataclass(frozen=True)
class Slot:
    """Where parameters of a layer come from: the names of tensors, empty where there is none."""

    layer: str
    kind: str  # "recurrent", "dense", "transposed dense", "embedding", "constants"
    tensors: tuple[str, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Imported:
    """`Model.origin` of an imported model: the message, and how parameters belong to it."""

    model: Any
    slots: tuple[Slot, ...]
    arrays: Mapping[str, np.ndarray]


def update(model: Model) -> Any:
    """The ONNX model that was imported, with the parameters as they are now.

    A parameter that has not changed keeps its bits. Where the sum of two biases changed, the first
    takes all of the difference.

    Args:
        model: as `load` returned it, perhaps with other parameters (`Model.with_params`).

    Returns:
        an ``onnx.ModelProto``; ``onnx.save`` writes it.

    Raises:
        InvalidInputError: ``model`` did not come from `load`, or its parameters do not fit.
    """
    if not isinstance(model.network, Graph) or not isinstance(model.origin, Imported):
        raise InvalidInputError(
            "update needs a model that came from rnnjax.interop.onnx.load, but this one did not; "
            "write it with rnnjax.interop.onnx.save"
        )
    imported, params = model.origin, model.params
    onnx = import_onnx()
    proto = onnx.ModelProto()
    proto.CopyFrom(imported.model)
    changed = {}
    for slot in imported.slots:
        try:
            arrays = _arrays(slot, model.network, params[slot.layer], imported.arrays)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InvalidInputError(
                f"params do not belong to this model: those of {slot.layer!r} do not fit "
                f"({error}); train from model.params"
            ) from error
        for name, array in arrays.items():
            original = imported.arrays[name]
            if array.shape != original.shape:
                raise InvalidInputError(
                    f"params do not belong to this model: {name!r} of {slot.layer!r} has shape "
                    f"{original.shape}, but got {array.shape}; train from model.params"
                )
            array = array.astype(original.dtype)
            if array.tobytes() != original.tobytes():
                changed[name] = onnx.numpy_helper.from_array(array, name)
    _replace(proto, changed)
    return proto


def _arrays(
    slot: Slot, graph: Graph, params: Any, originals: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The tensors that a layer's parameters make."""
    if slot.kind == "constants":
        return {name: np.asarray(params[name]) for name in slot.tensors}
    if slot.kind == "recurrent":
        layer = graph.layers[slot.layer]
        assert isinstance(layer, Recurrent)
        had = Weights(*(originals[name] if name else None for name in slot.tensors))
        made: Iterable[Any] = params_to_onnx(layer.cell, params, had)
    elif slot.kind == "embedding":
        made = [np.asarray(params["embedding"])]
    else:
        kernel, bias = np.asarray(params["kernel"]), slot.tensors[1]
        made = [
            kernel.T if slot.kind == "transposed dense" else kernel,
            np.reshape(params["bias"], originals[bias].shape) if bias else None,
        ]
    return {name: array for name, array in zip(slot.tensors, made, strict=True) if name}


def _replace(model: Any, changed: dict[str, Any]) -> None:
    """Put tensors in the place of initialisers, or of what nodes made of them."""
    _replace_in(model.graph, changed, "")
    if model.ir_version < 4:  # where every initialiser is an input as well
        inputs = {one.name for one in model.graph.input}
        for tensor in model.graph.initializer:
            if tensor.name not in inputs:
                info = import_onnx().helper.make_tensor_value_info
                model.graph.input.append(info(tensor.name, tensor.data_type, tensor.dims))


def _replace_in(graph: Any, changed: dict[str, Any], prefix: str) -> None:
    taken = {name for node in graph.node for name in node.output}
    for tensor in graph.initializer:
        if prefix + tensor.name in changed:
            name = tensor.name
            tensor.CopyFrom(changed.pop(prefix + name))
            tensor.name = name
    for node in graph.node:
        first = prefix + next(filter(None, node.output), "")
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _replace_in(attribute.g, changed, prefix_of(first, attribute.name))
        for i, name in enumerate(node.output):
            if prefix + name in changed:
                unused = f"{name}_before"  # still computed, and read by no one
                while unused in taken:
                    unused += "_"
                node.output[i] = unused
                tensor = changed.pop(prefix + name)
                tensor.name = name
                graph.initializer.append(tensor)
