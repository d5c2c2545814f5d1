"""The way back: parameters into the ONNX message from which they came."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from rnnjax.errors import InvalidInputError
from rnnjax.interop.layers import Recurrent
from rnnjax.interop.model import Model
from rnnjax.interop.onnx.files import import_onnx
from rnnjax.interop.onnx.graph import CONSTANTS
from rnnjax.interop.onnx.read import Imported, body_prefix
from rnnjax.interop.onnx.recurrent import params_from_onnx, params_to_onnx

_GRAPH = 5  # AttributeProto.AttributeType


def written_back(model: Model) -> Any:
    """The ONNX model that was imported, with the parameters as they are now.

    A tensor whose parameters have not changed keeps its bits. Where a cell has one bias for the two
    of a node that changed, the first is that bias, and the second zeros.
    """
    if not isinstance(model.origin, Imported):
        raise InvalidInputError(
            "a graph is written as the message that it was read from, but this model has none; "
            "keep the model that rnnjax.interop.onnx.load gave, and change its parameters by "
            "with_params"
        )
    imported, onnx = model.origin, import_onnx()
    proto = onnx.ModelProto()
    proto.CopyFrom(imported.model)
    holders = dict(_holders(proto.graph, "", itertools.count()))
    for layer, names in imported.slots.items():
        arrays = [imported.arrays[name] if name else None for name in names]
        try:
            before, after = _written(model, layer, names, arrays)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InvalidInputError(
                f"params do not belong to this model: those of {layer!r} do not fit ({error}); "
                "train from model.params"
            ) from error
        for name, was, now, original in zip(names, before, after, arrays, strict=True):
            if original is None:
                continue
            if now is None or now.shape != original.shape:
                raise InvalidInputError(
                    f"params do not belong to this model: {name!r} of {layer!r} has shape "
                    f"{original.shape}, but got {np.shape(now)}; train from model.params"
                )
            now = now.astype(original.dtype)
            if now.tobytes() != was.tobytes():
                if name in holders:
                    _put(holders[name], now)
                else:
                    _replace(proto.graph, name, now)
    return proto


def _written(model: Model, layer: str, names: tuple[str, ...], arrays: list[Any]) -> Any:
    """The tensors of the parameters that a layer came with, and of those that it has."""
    params = model.params[layer]
    if layer == CONSTANTS:
        return arrays, [np.asarray(params[name]) for name in names]
    recurrent = model.network.layers[layer]
    assert isinstance(recurrent, Recurrent)
    before = params_to_onnx(recurrent.cell, params_from_onnx(recurrent.cell, *arrays))
    return before, params_to_onnx(recurrent.cell, params)


def _holders(graph: Any, prefix: str, bodies: Iterator[int]) -> Iterator[tuple[str, Any]]:
    """What holds an array in a message, by the name that the reader gives it."""
    for tensor in graph.initializer:
        yield prefix + tensor.name, tensor
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == _GRAPH:
                yield from _holders(attribute.g, body_prefix(attribute.name, bodies), bodies)
            elif node.op_type == "Constant":
                yield prefix + node.output[0], attribute


def _replace(graph: Any, name: str, array: np.ndarray) -> None:
    """Put an array in the place of what nodes make of others."""
    for node in graph.node:
        node.output[:] = [f"{name}/before" if one == name else one for one in node.output]
    graph.initializer.append(import_onnx().numpy_helper.from_array(array, name))


def _put(holder: Any, array: np.ndarray) -> None:
    onnx = import_onnx()
    if isinstance(holder, onnx.TensorProto):
        holder.CopyFrom(onnx.numpy_helper.from_array(array, holder.name))
    else:
        tensor = onnx.numpy_helper.from_array(array)
        holder.CopyFrom(onnx.helper.make_attribute("value", tensor))
