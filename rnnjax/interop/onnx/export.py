"""Models as ONNX graphs, whose state goes in and comes out so that they can be streamed."""

import itertools
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import rnnjax
from rnnjax.errors import InteropError, InvalidInputError
from rnnjax.interop.files import write_whole
from rnnjax.interop.layers import Dense, Embedding, OneHotIds, Recurrent
from rnnjax.interop.model import Functional, Model, Sequential, check_model
from rnnjax.interop.onnx.files import import_onnx
from rnnjax.interop.onnx.graph import CONSTANTS
from rnnjax.interop.onnx.layers import Writer
from rnnjax.interop.onnx.read import Imported, body_prefix
from rnnjax.interop.onnx.recurrent import input_size, params_from_onnx, params_to_onnx

OPSET = 17
"""The version of ONNX's operators that is written: old enough for runtimes of the last years."""

# Protocol buffers hold no more.
_MOST_BYTES = 2**31 - 2**20


def to_proto(
    model: Model,
    *,
    states: bool = True,
    lengths: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> Any:
    """Write a model as an ONNX graph.

    Time comes first in it, as in rnnjax; the axes ``time`` and ``batch`` are free. It has

    - an input ``xs``, float32 ``(time, batch, features)``, or ``ids``, int64 ``(time, batch)``,
      where the first layer takes ids. They have to lie in ``0 .. size - 1``: ONNX counts negative
      ones from the end;
    - an output ``ys``, float32 ``(time, batch, size)``, or ``(batch, size)`` after a layer that
      returns its last output alone;
    - for each recurrent layer an input ``<layer>_h``, and ``<layer>_c`` for an LSTM's cell state,
      float32 ``(1, batch, hidden_size)``, and the state after the last step as outputs
      ``<layer>_h_out`` and ``<layer>_c_out``. In place of ``<layer>`` stand ``<layer>_0``,
      ``<layer>_1``... in a `rnnjax.Stack`, and ``<layer>_forward`` and ``<layer>_backward`` in a
      `rnnjax.Bidirectional`, each direction of which is a node. A sequence begins with
      zeros, and goes on with the outputs fed back;
    - with ``lengths`` an input of that name, int32 ``(batch,)``: the valid steps of each row, one
      at least.

    Dropout and the noise of `rnnjax.Regularized` are left out, as for prediction.

    Args:
        model: of layers in a row. A model that was read from ONNX is written as that graph, with
            the parameters it now has: a tensor whose parameters have not changed keeps its bits,
            and where a cell has one bias for the two of a node that changed, the first is that
            bias, and the second zeros. Of the options it takes ``metadata`` alone.
        states: False leaves out the states: every sequence begins anew.
        lengths: whether rows of a batch can have lengths of their own.
        metadata: written to the model's ``metadata_props``.

    Returns:
        an ``onnx.ModelProto``, which ONNX's checker has passed unless it was read from ONNX.

    Raises:
        InteropError: ONNX cannot express a layer or an option of it, or the package onnx is not
            installed.
        InvalidInputError: an option does not fit.

    >>> cell = rnnjax.Stack([rnnjax.GRUCell(5), rnnjax.LSTMCell(4)])
    >>> proto = to_proto(Model.of(cell, cell.init(jax.random.key(0), 3)))
    >>> [value.name for value in proto.graph.input]
    ['xs', 'rnn_0_h', 'rnn_1_h', 'rnn_1_c']
    >>> [value.name for value in proto.graph.output]
    ['ys', 'rnn_0_h_out', 'rnn_1_h_out', 'rnn_1_c_out']
    """
    check_model(model)
    if isinstance(model.network, Functional):
        raise InteropError(
            "ONNX is written of layers in a row, or of the graph that a model was read from, but "
            f"this model is a graph of layers, with {len(model.network.calls)} calls; write the "
            "rows that it is made of, each as a Sequential, or all of it by rnnjax.interop.export"
        )
    if not model.network.time_first:
        raise InteropError(
            f"ONNX is written time first, but this model is {model.network.axes}; load it with "
            "time_first=True"
        )
    if not isinstance(model.network, Sequential):
        if not states or lengths:
            raise InvalidInputError(
                "states and lengths are options of models made of layers, but this one is written "
                "as the graph that it was read from; leave them out"
            )
        return _with_metadata(written_back(model), metadata)
    writer = Writer(states, lengths)
    writer.write(model.network, model.params, _outputs(model))
    size = sum(len(constant.raw_data) for constant in writer.constants)
    if size > _MOST_BYTES:
        raise InteropError(
            f"the parameters take {size:,} bytes, but an ONNX file holds fewer than 2 GiB; "
            "write .safetensors instead"
        )
    helper = writer.onnx.helper
    graph = helper.make_graph(
        writer.nodes, "rnnjax", writer.inputs, writer.outputs, initializer=writer.constants
    )
    operators = [helper.make_opsetid("", OPSET)]
    proto = helper.make_model(
        graph,
        producer_name="rnnjax",
        producer_version=rnnjax.__version__,
        opset_imports=operators,
        # The oldest format that has these operators, for the same reason as OPSET.
        ir_version=helper.find_min_ir_version_for(operators),
    )
    proto = _with_metadata(proto, metadata)
    writer.onnx.checker.check_model(proto, full_check=True)
    return proto


def save(model: Model, path: str | os.PathLike[str], **options: Any) -> None:
    """Write a model as an ``.onnx`` file.

    Args:
        model: see `to_proto`.
        path: of the file; one that is there is replaced.
        options: those of `to_proto`.

    Raises:
        InteropError: as in `to_proto`, or the file cannot be written.
        InvalidInputError: ``path`` does not end in ``.onnx``, or an option does not fit.

    >>> import tempfile
    >>> cell = rnnjax.LSTMCell(5)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "model.onnx")
    ...     save(Model.of(cell, cell.init(jax.random.key(0), 3)), path)
    ...     path.stat().st_size > 4 * (3 * 20 + 5 * 20 + 20)
    True
    """
    path = pathlib.Path(path)
    if path.suffix != ".onnx":
        raise InvalidInputError(f"an ONNX file is named *.onnx, but path is {path}; rename it")
    write_whole(path, to_proto(model, **options).SerializeToString())


def _with_metadata(proto: Any, metadata: Mapping[str, str] | None) -> Any:
    for key, value in (metadata or {}).items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise InvalidInputError(f"metadata must be strings, but has {key!r}: {value!r}")
        there = [entry for entry in proto.metadata_props if entry.key == key]
        entry = there[0] if there else proto.metadata_props.add(key=key)
        entry.value = value
    return proto


def _outputs(model: Model) -> Any:
    """The shape of what comes of two steps; raises unless the parameters fit to the layers.

    None where the model says nothing of its features.
    """
    kinds = Embedding | OneHotIds | Recurrent | Dense
    first = next((layer for layer in model.layers.values() if isinstance(layer, kinds)), None)
    ids = isinstance(first, Embedding | OneHotIds)
    if first is None:
        return None
    try:
        raw = first.cell.raw_inputs if isinstance(first, Recurrent) else 0
        size = () if ids else (input_size(model.params[first.name]) + raw,)
        xs = jax.ShapeDtypeStruct((2, 1, *size), jnp.int32 if ids else jnp.float32)
        return jax.eval_shape(model.apply, model.params, xs)[1]
    except InvalidInputError:  # which is a ValueError, and says more
        raise
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise InvalidInputError(
            f"params do not belong to the layers {', '.join(model.layers)} ({error}); give each "
            "layer those that its kind has"
        ) from error


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
