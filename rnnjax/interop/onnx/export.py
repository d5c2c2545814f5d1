"""Models as ONNX graphs, whose state goes in and comes out so that they can be streamed."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import rnnjax
from rnnjax.cells.base import Cell
from rnnjax.errors import InteropError, InvalidInputError
from rnnjax.interop.arrays import in_prediction
from rnnjax.interop.files import check_path, write_whole
from rnnjax.interop.functions import NUMBERED, ONNX, Function
from rnnjax.interop.layers import Activation, Dense, Dropout, Embedding, Layer, OneHotIds, Recurrent
from rnnjax.interop.model import Functional, Model, Sequential, check_model
from rnnjax.interop.onnx.graph import CONSTANTS
from rnnjax.interop.onnx.read import holders, import_onnx, read_array
from rnnjax.interop.onnx.recurrent import (
    activation_to_onnx,
    attributes_to_onnx,
    params_from_onnx,
    params_to_onnx,
)
from rnnjax.interop.serving import input_shapes
from rnnjax.layers import Bidirectional, Stack

OPSET = 20
"""The version of ONNX's operators that is written: the oldest that has every function of ours."""


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
      zeros, and continues with the outputs fed back;
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
            f"ONNX is written of layers in a row, but this model is a graph of layers, with "
            f"{len(model.network.calls)} calls; write its rows, each as a Sequential, or all of it "
            "by rnnjax.interop.export"
        )
    if not model.network.time_first:
        raise InteropError("ONNX is written time first, unlike this; load it with time_first=True")
    if isinstance(model.network, Sequential):
        proto = _Writer(states, lengths).write(model)
    elif states and not lengths:
        proto = _written_back(model)
    else:
        raise InvalidInputError(
            "states and lengths are for models of layers, but this one is written as the graph "
            "that it was read from; leave them out"
        )
    for key, value in (metadata or {}).items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise InvalidInputError(f"metadata must be strings, but has {key!r}: {value!r}")
        there = [entry for entry in proto.metadata_props if entry.key == key]
        entry = there[0] if there else proto.metadata_props.add(key=key)
        entry.value = value
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

    >>> import pathlib, tempfile
    >>> cell = rnnjax.LSTMCell(5)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "model.onnx")
    ...     save(Model.of(cell, cell.init(jax.random.key(0), 3)), path)
    ...     path.stat().st_size > 4 * (3 * 20 + 5 * 20 + 20)
    True
    """
    check_path(path, ".onnx")
    write_whole(path, to_proto(model, **options).SerializeToString())


def _written_back(model: Model) -> Any:
    """The ONNX model that was imported, with the parameters as they are now."""
    if "message" not in model.origin:
        raise InvalidInputError(
            "a graph is written as the message that it was read from, but this model has none; "
            "keep the model that load gave, and change its parameters by with_params"
        )
    params = Model(model.network, model.origin["shapes"]).with_params(model.params).params
    onnx = import_onnx()
    proto = onnx.ModelProto()
    proto.CopyFrom(model.origin["message"])
    held = dict(holders(proto.graph))
    for layer, names in model.origin["slots"].items():
        arrays = [read_array(held[name], None, name) if name else None for name in names]
        before: Sequence[Any] = arrays
        after: Sequence[Any]
        if layer == CONSTANTS:
            after = [np.asarray(params[layer][name]) for name in names]
        else:
            cell = model.network.recurrent[layer].cell
            before = params_to_onnx(cell, params_from_onnx(cell, *arrays))
            after = params_to_onnx(cell, params[layer])
        for name, was, now, array in zip(names, before, after, arrays, strict=True):
            if array is None:
                continue
            now = now.astype(array.dtype)
            if now.tobytes() == was.tobytes():
                continue
            tensor = onnx.numpy_helper.from_array(now, held[name].name)
            constant = not isinstance(held[name], onnx.TensorProto)
            held[name].CopyFrom(onnx.helper.make_attribute("value", tensor) if constant else tensor)
    return proto


class _Writer:
    """The nodes, constants, inputs and outputs of a graph that is being written.

    Values are known by their names. Those inside of the graph are named after the layer that is
    being written and the operator, as in ``dense/MatMul``.
    """

    def __init__(self, states: bool, lengths: bool) -> None:
        self.onnx = import_onnx()
        self.states, self.lengths = states, lengths
        self.layer = ""
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self._taken: set[str] = set()

    def add(
        self, op_type: str, *inputs: str, outputs: Sequence[str] = (), name: str = "", **more: Any
    ) -> str:
        """Write a node with its attributes, and return the name of its first output."""
        outputs = outputs or [self.value(op_type)]
        node = self.onnx.helper.make_node(op_type, inputs, outputs, name or outputs[0], **more)
        self.nodes.append(node)
        return outputs[0]

    def constant(self, name: str, value: Any) -> str:
        """Write an array that is part of the model, and return its name."""
        name = self.value(name)
        self.constants.append(self.onnx.numpy_helper.from_array(np.asarray(value), name))
        return name

    def ints(self, *values: int) -> str:
        return self.constant("integers", np.array(values, np.int64))

    def add_input(self, name: str, dtype: Any, axes: list[str | int]) -> str:
        """Declare an input of the graph; its axes are sizes, and the names of free ones."""
        self.inputs.append(self._info(self.claim(name), dtype, axes))
        return name

    def claim(self, name: str) -> str:
        """Take a name that is seen from outside."""
        if name in self._taken:
            raise InteropError(f"two values of the graph would be named {name!r}; rename a layer")
        self._taken.add(name)
        return name

    def value(self, name: str) -> str:
        """Make a name for a value inside of the graph, which other layers do not have."""
        base = name = f"{self.layer}/{name}"
        count = 1
        while name in self._taken:
            count += 1
            name = f"{base}_{count}"
        self._taken.add(name)
        return name

    def _info(self, name: str, dtype: Any, axes: list[str | int]) -> Any:
        kind = self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return self.onnx.helper.make_tensor_value_info(name, kind, axes)

    def write(self, model: Model) -> Any:
        xs, ys = _checked_shapes(model)
        chain = [layer for layer in model.layers.values() if not isinstance(layer, Dropout)]
        if self.lengths and not any(isinstance(layer, Recurrent) for layer in chain):
            raise InvalidInputError(
                "lengths are for recurrent layers, but the model has none; leave them out"
            )
        sized = any(isinstance(x, Recurrent | Dense | Embedding | OneHotIds) for x in chain)
        size = xs.shape[-1] if sized else "features"
        if jnp.issubdtype(xs.dtype, jnp.integer):
            x = self.add_input("ids", np.int64, ["time", "batch"])
        else:
            x = self.add_input("xs", np.float32, ["time", "batch", size])
        if self.lengths:
            self.add_input("lengths", np.int32, ["batch"])
        self.claim("ys")
        params = jax.tree.map(_float32, dict(model.params))
        for layer in chain:
            self.layer = layer.name
            x = self._layer(layer, params.get(layer.name, {}), x, layer is chain[0])
        self.add("Identity", x, outputs=["ys"])
        axes = ["time", "batch"][3 - len(ys.shape) :]
        size = ys.shape[-1] if sized else "features"
        self.outputs.insert(0, self._info("ys", np.float32, [*axes, size]))
        helper = self.onnx.helper
        graph = helper.make_graph(self.nodes, "rnnjax", self.inputs, self.outputs, self.constants)
        operators = [helper.make_opsetid("", OPSET)]
        proto = helper.make_model(
            graph,
            producer_name="rnnjax",
            producer_version=rnnjax.__version__,
            opset_imports=operators,
            # The oldest format that has these operators, for the sake of old runtimes.
            ir_version=helper.find_min_ir_version_for(operators),
        )
        self.onnx.checker.check_model(proto, full_check=True)
        return proto

    def _layer(self, layer: Layer, params: Any, x: str, first: bool) -> str:
        if isinstance(layer, Recurrent):
            return self._recurrent(layer, params, x)
        if isinstance(layer, Dense):
            y = self.add("MatMul", x, self.constant("kernel", params["kernel"]))
            if layer.use_bias:
                y = self.add("Add", y, self.constant("bias", params["bias"]))
            return self._function(y, layer.activation)
        if isinstance(layer, Activation):
            return self._function(x, layer.function)
        if isinstance(layer, OneHotIds) and first:
            depth = self.constant("depth", np.int64(layer.size))
            # Integers, because a reader may take constants that are floats for parameters.
            vectors = self.add("OneHot", x, depth, self.ints(0, 1))
            return self.add("Cast", vectors, to=self.onnx.TensorProto.FLOAT)
        if isinstance(layer, Embedding) and first and not layer.mask_zero:
            return self.add("Gather", self.constant("embedding", params["embedding"]), x, axis=0)
        raise InteropError(
            f"layer {layer.name!r}, a {type(layer).__name__}, masks steps by what they hold, takes "
            "ids and is not the first, or is none of rnnjax.interop; leave it out"
        )

    def _recurrent(self, layer: Recurrent, params: Any, x: str) -> str:
        if self.lengths and layer.return_sequences and layer.masked_outputs != "zero":
            raise InteropError(
                f"layer {layer.name!r} has masked_outputs {layer.masked_outputs!r}, but ONNX gives "
                "zeros after the lengths; leave masked_outputs or lengths out"
            )
        ys, end = self._cell(layer.name, layer.cell, params, layer.reverse, x)
        if not layer.return_sequences:
            return self.add("Squeeze", end, self.ints(0))
        if not layer.reverse or layer.keep_order:
            return ys
        least = np.iinfo(np.int64).min  # as far as there is
        return self.add("Slice", ys, self.ints(-1), self.ints(least), self.ints(0), self.ints(-1))

    def _cell(self, name: str, cell: Cell, params: Any, reverse: bool, x: str) -> tuple[str, str]:
        """The outputs ``(time, batch, size)`` of a cell, or of a combination, and its last one."""
        cell = in_prediction(cell, name, "ONNX")
        if isinstance(cell, Stack):
            for i, one in enumerate(cell.cells):
                x, end = self._cell(f"{name}_{i}", one, params[i], reverse, x)
            return x, end
        if isinstance(cell, Bidirectional):
            sides = [
                self._cell(f"{name}_{side}", one, own, reverse != (side == "backward"), x)
                for side, one, own in zip(("forward", "backward"), cell.cells, params, strict=True)
            ]
            ops = {"concat": "Concat", "sum": "Add", "mul": "Mul", "average": "Mean"}
            more: Any = {"axis": -1} if cell.merge == "concat" else {}
            pairs = zip(*sides, strict=True)
            ys, end = (self.add(ops[cell.merge], *each, **more) for each in pairs)
            return ys, end
        return self._node(name, cell, params, reverse, x)

    def _node(self, name: str, cell: Any, params: Any, reverse: bool, x: str) -> tuple[str, str]:
        op_type, attributes = attributes_to_onnx(cell, reverse=reverse)
        if getattr(cell, "dtype", None) not in (None, np.float32):
            raise InteropError(
                f"layer {name!r} computes in {np.dtype(cell.dtype).name}, but ONNX is written in "
                "float32; build the cell without dtype"
            )
        self.layer = name
        weights = [
            "" if array is None else self.constant(letter, array)
            for letter, array in zip("WRB", params_to_onnx(cell, params), strict=True)
        ]
        starts, outputs = [], []
        for letter in "hc" if op_type == "LSTM" else "h":
            state, axes = f"{name}_{letter}", [1, "batch", attributes["hidden_size"]]
            if self.states:
                starts.append(self.add_input(state, np.float32, axes))
                outputs.append(self.claim(f"{state}_out"))
                self.outputs.append(self._info(outputs[-1], np.float32, axes))
            else:
                outputs.append(self.value(f"Y_{letter}"))
        inputs = [x, *weights, "lengths" * self.lengths, *starts]
        y = self.add(op_type, *inputs, outputs=[self.value("Y"), *outputs], name=name, **attributes)
        return self.add("Squeeze", y, self.ints(1)), outputs[0]

    def _function(self, x: str, function: str | Function) -> str:
        """Write ``function(x)``, and return the name of the result."""
        if isinstance(function, str) and function in _COMPOSED:
            return _COMPOSED[function](self, x)
        op_type, numbers = activation_to_onnx(function)
        if not op_type:
            names = [*_COMPOSED, *ONNX, *NUMBERED]
            raise InteropError(
                f"layer {self.layer!r} has the function {function!r}, which is not written to "
                f"ONNX; those that are: {', '.join(dict.fromkeys(names))}"
            )
        return self.add(op_type, x, **numbers)


def _clip(low: float, high: float) -> Callable[[_Writer, str], str]:
    return lambda w, x: w.add("Clip", x, *(w.constant("bound", np.float32(n)) for n in (low, high)))


_COMPOSED: Mapping[str, Callable[[_Writer, str], str]] = {
    "linear": lambda w, x: x,
    "hard_tanh": _clip(-1, 1),
    "relu6": _clip(0, 6),
    "silu": lambda w, x: w.add("Mul", x, w.add("Sigmoid", x)),
    "log_sigmoid": lambda w, x: w.add("Neg", w.add("Softplus", w.add("Neg", x))),
}
"""The functions that are several operators, or none."""


def _float32(array: Any) -> np.ndarray:
    array = np.asarray(array)
    if array.dtype not in (np.float32, np.float16, jnp.bfloat16):
        raise InteropError(
            f"ONNX is written in float32, but params has {array.dtype}; convert them with "
            "jax.tree.map(lambda a: a.astype('float32'), model.params)"
        )
    return array.astype(np.float32)


def _checked_shapes(model: Model) -> tuple[Any, Any]:
    """Two steps, and what comes of them; raises unless the parameters fit to the layers."""
    try:
        xs = input_shapes(model, 2, 1)
        return xs, jax.eval_shape(model.apply, model.params, xs)[1]
    except InvalidInputError:  # which is a ValueError, and says more
        raise
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise InvalidInputError(
            f"params do not belong to {', '.join(model.layers)} ({error}); give each its own"
        ) from error
