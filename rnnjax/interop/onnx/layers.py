"""The layers of a `rnnjax.interop.Sequential`, and their functions, as nodes of an ONNX graph."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.cells.base import Cell, Params
from rnnjax.errors import InteropError, InvalidInputError
from rnnjax.interop.arrays import in_prediction
from rnnjax.interop.functions import SPELLINGS, Function
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
from rnnjax.interop.model import Sequential
from rnnjax.interop.onnx.files import import_onnx
from rnnjax.interop.onnx.recurrent import (
    RECURRENT,
    activation_to_onnx,
    attributes_to_onnx,
    input_size,
    params_to_onnx,
)
from rnnjax.layers import Bidirectional, LearnedCarry, Regularized, Stack

Axes = list[str | int]
"""The shape of an input or output: a size, or the name of an axis whose size is free."""


class Writer:
    """The nodes, constants, inputs and outputs of a graph that is being written.

    Values are known by their names. Those inside of the graph are named after the layer that is
    being written and the operator, as in ``dense/MatMul``.
    """

    def __init__(self) -> None:
        self.onnx = import_onnx()
        self.layer = ""
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self._taken: set[str] = set()

    def add(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """Write a node with one output, and return the output's name."""
        return self.add_many(op_type, inputs, [self.value(op_type)], **attributes)[0]

    def add_many(
        self,
        op_type: str,
        inputs: Sequence[str],
        outputs: list[str],
        node: str | None = None,
        **attributes: Any,
    ) -> list[str]:
        """Write a node with named outputs, and return these."""
        node = outputs[0] if node is None else node
        made = self.onnx.helper.make_node(op_type, list(inputs), outputs, node, **attributes)
        self.nodes.append(made)
        return outputs

    def constant(self, name: str, value: Any) -> str:
        """Write an array that is part of the model, and return its name."""
        name = self.value(name)
        array = np.ascontiguousarray(value).reshape(np.shape(value))  # it makes one axis of none
        self.constants.append(self.onnx.numpy_helper.from_array(array, name))
        return name

    def scalar(self, value: float) -> str:
        """Write a number."""
        return self.constant("number", np.float32(value))

    def ints(self, *values: int) -> str:
        """Write a list of integers, such as axes."""
        return self.constant("integers", np.array(values, np.int64))

    def add_input(self, name: str, dtype: Any, axes: Axes) -> str:
        """Declare an input of the graph."""
        self.inputs.append(self._info(self.claim(name), dtype, axes))
        return name

    def add_output(self, name: str, axes: Axes, first: bool = False) -> None:
        """Declare a value to be an output of the graph, the last one or the first."""
        self.outputs.insert(0 if first else len(self.outputs), self._info(name, np.float32, axes))

    def claim(self, name: str) -> str:
        """Take a name that is seen from outside."""
        if name in self._taken:
            raise InteropError(
                f"two values of the ONNX graph would be named {name!r}; give the layers names that "
                "do not end like those of others, such as 'first' and 'second'"
            )
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

    def _info(self, name: str, dtype: Any, axes: Axes) -> Any:
        kind = self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return self.onnx.helper.make_tensor_value_info(name, kind, axes)


class _Value(NamedTuple):
    """What goes from layer to layer in the graph."""

    name: str
    size: int | None  # of its last axis; None where it is not known
    sequence: bool = True  # whether it has an axis of time


class _Part(NamedTuple):
    """A cell, or a combination of cells, that runs in one direction."""

    name: str  # of its node; its states are <name>_h and, in an LSTM, <name>_c
    cell: Cell
    params: Params
    reverse: bool

    def parts(self) -> list["_Part"]:
        """The cells of a combination, each with its own."""
        assert isinstance(self.cell, Stack | Bidirectional)
        names, turned = [*map(str, range(len(self.cell.cells)))], [False] * len(self.cell.cells)
        if isinstance(self.cell, Bidirectional):
            names, turned = ["forward", "backward"], [False, True]
        return [
            _Part(f"{self.name}_{names[i]}", cell, self.params[i], self.reverse != turned[i])
            for i, cell in enumerate(self.cell.cells)
        ]


@dataclasses.dataclass
class Export:
    """Writes layers one by one."""

    writer: Writer  # to which they are written
    states: bool  # whether the states go in and out
    lengths: bool  # whether rows have lengths
    source: str = "xs"  # the name of the data input

    def write(self, network: Sequential, params: Any) -> None:
        """Write all."""
        chain = [layer for layer in network.chain if not isinstance(layer, Dropout)]
        if self.lengths and not any(isinstance(layer, Recurrent) for layer in chain):
            raise InvalidInputError(
                "lengths are for recurrent layers, but the model has none; leave them out"
            )
        value = self._inputs(chain, params)
        for i, layer in enumerate(chain):
            self.writer.layer = layer.name
            value = self._layer(layer, params.get(layer.name, {}), value, first=i == 0)
        self.writer.add_many("Identity", [value.name], ["ys"])
        steps: Axes = ["time", "batch"] if value.sequence else ["batch"]
        self.writer.add_output("ys", [*steps, value.size or "features"], first=True)

    def _inputs(self, chain: list[Layer], params: Any) -> _Value:
        first = chain[0] if chain else None
        size = None
        if isinstance(first, Embedding | OneHotIds):
            self.source = self.writer.add_input("ids", np.int64, ["time", "batch"])
        else:
            if isinstance(first, Recurrent | Dense):
                size = input_size(params[first.name])
            self.writer.add_input("xs", np.float32, ["time", "batch", size or "features"])
        if self.lengths:
            self.writer.add_input("lengths", np.int32, ["batch"])
        self.writer.claim("ys")
        return _Value(self.source, size)

    def _layer(self, layer: Layer, params: Any, value: _Value, first: bool) -> _Value:
        writer, x = self.writer, value.name
        if isinstance(layer, Recurrent):
            y = self._recurrent(layer, params, x)
            return _Value(y, layer.cell.output_size, layer.return_sequences)
        if isinstance(layer, Dense):
            y = writer.add("MatMul", x, writer.constant("kernel", _array(layer, params, "kernel")))
            if layer.use_bias:
                y = writer.add("Add", y, writer.constant("bias", _array(layer, params, "bias")))
            return value._replace(name=apply_function(writer, y, layer.activation), size=layer.size)
        if isinstance(layer, Activation):
            return value._replace(name=apply_function(writer, x, layer.function))
        if isinstance(layer, Embedding | OneHotIds):
            if not first:
                raise InteropError(
                    f"layer {layer.name!r} takes ids, so it has to be the first; put it there"
                )
            return _Value(self._look_up(layer, params), layer.size)
        if isinstance(layer, Masking):
            raise InteropError(
                f"layer {layer.name!r} masks steps by their features, which the ONNX export does "
                "not write; leave it out and export with lengths=True"
            )
        raise InteropError(
            f"layer {layer.name!r} is a {type(layer).__name__}, which the ONNX export does not "
            "write; it takes the layers of rnnjax.interop"
        )

    def _look_up(self, layer: Embedding | OneHotIds, params: Any) -> str:
        writer = self.writer
        if isinstance(layer, OneHotIds):
            depth = writer.constant("depth", np.int64(layer.size))
            # Integers, because a reader may take constants that are floats for parameters.
            vectors = writer.add("OneHot", self.source, depth, writer.ints(0, 1))
            return writer.add("Cast", vectors, to=writer.onnx.TensorProto.FLOAT)
        if layer.mask_zero:
            raise InteropError(
                f"layer {layer.name!r} masks the steps of id 0, which the ONNX export does not "
                "write; build it with mask_zero=False and export with lengths=True"
            )
        table = writer.constant("embedding", _array(layer, params, "embedding"))
        return writer.add("Gather", table, self.source, axis=0)

    # --- Recurrent layers, as `Recurrent.run` has them ---

    def _recurrent(self, layer: Recurrent, params: Any, x: str) -> str:
        if not layer.merged or (
            self.lengths and layer.return_sequences and layer.masked_outputs == "last"
        ):
            raise InteropError(
                f"layer {layer.name!r} does not merge its two directions, or has masked_outputs "
                "'last' where rows have lengths, which the ONNX export does not write; merge them, "
                "or leave masked_outputs out"
            )
        ys, end = self._cell(_Part(layer.name, layer.cell, params, layer.reverse), x)
        if not layer.return_sequences:
            return self.writer.add("Squeeze", end, self.writer.ints(0))
        return self._flip(ys) if layer.reverse and not layer.keep_order else ys

    def _cell(self, part: _Part, x: str) -> tuple[str, str]:
        """The outputs ``(time, batch, size)`` of a cell, or of a combination, and its last one."""
        cell = part.cell
        if isinstance(cell, LearnedCarry):
            raise InteropError(
                f"layer {part.name!r} has a LearnedCarry, which the ONNX export does not write; "
                "write the cell and params['cell'], and feed params['initial_carry'] as its states"
            )
        if isinstance(cell, Regularized):
            return self._cell(part._replace(cell=in_prediction(cell, part.name, "ONNX")), x)
        if isinstance(cell, Stack):
            for one in part.parts():
                x, end = self._cell(one, x)
            return x, end
        if isinstance(cell, Bidirectional):
            sides = [self._cell(one, x) for one in part.parts()]
            ys, end = (self._merge(cell.merge, *each) for each in zip(*sides, strict=True))
            return ys, end
        return self._node(part, x)

    def _node(self, part: _Part, x: str) -> tuple[str, str]:
        writer, outer, cell = self.writer, self.writer.layer, part.cell
        op_type, attributes = attributes_to_onnx(cell, reverse=part.reverse)
        if getattr(cell, "dtype", None) not in (None, np.float32):
            raise InteropError(
                f"layer {part.name!r} computes in {np.dtype(cell.dtype).name}, but ONNX models are "
                "written in float32; build the cell without dtype, and compare the outputs"
            )
        writer.layer = part.name
        params = jax.tree.map(lambda a: float32(f"layer {part.name!r}", a), part.params)
        weights = [
            "" if array is None else writer.constant(name, array)
            for name, array in params_to_onnx(cell, params)._asdict().items()
        ]
        starts, outputs = [], []
        for letter in "hc"[: RECURRENT[op_type].states]:
            name, size = f"{part.name}_{letter}", attributes["hidden_size"]
            if self.states:
                starts.append(writer.add_input(name, np.float32, [1, "batch", size]))
                outputs.append(writer.claim(f"{name}_out"))
                writer.add_output(outputs[-1], [1, "batch", size])
            else:
                outputs.append(writer.value(f"Y_{letter}"))
        inputs = [x, *weights, "lengths" * self.lengths, *starts]
        while not inputs[-1]:  # what is left out at the end is not named
            inputs.pop()
        y, end, *_ = writer.add_many(
            op_type, inputs, [writer.value("Y"), *outputs], part.name, **attributes
        )
        ys = writer.add("Squeeze", y, writer.ints(1))
        writer.layer = outer
        return ys, end

    def _merge(self, merge: str, forward: str, backward: str) -> str:
        writer = self.writer
        if merge == "concat":
            return writer.add("Concat", forward, backward, axis=-1)
        if merge == "mul":
            return writer.add("Mul", forward, backward)
        total = writer.add("Add", forward, backward)
        return total if merge == "sum" else writer.add("Div", total, writer.scalar(2))

    def _flip(self, value: str) -> str:
        """The steps in the order in which they were computed."""
        ints = self.writer.ints
        end = np.iinfo(np.int64).min  # as far as there is
        return self.writer.add("Slice", value, ints(-1), ints(end), ints(0), ints(-1))


def _array(layer: Layer, params: Any, name: str) -> np.ndarray:
    return float32(f"layer {layer.name!r}", params[name])


def float32(where: str, array: Any) -> np.ndarray:
    """A parameter as it is written."""
    array = np.asarray(array)
    if array.dtype not in (np.float32, np.float16, jnp.bfloat16):
        raise InteropError(
            f"{where} has parameters in {array.dtype}, but ONNX models are written in float32; "
            "convert them with model.with_params(jax.tree.map(lambda a: a.astype('float32'), "
            "model.params))"
        )
    return array.astype(np.float32)


# --- Functions ---


def apply_function(writer: Writer, x: str, function: str | Function) -> str:
    """Write ``function(x)``, and return the name of the result."""
    if isinstance(function, str) and function in _COMPOSED:
        return _COMPOSED[function](writer, x)
    op_type, numbers = activation_to_onnx(function)
    if not op_type:
        names = [*_COMPOSED, *(n if isinstance(n, str) else n.__name__ for n in SPELLINGS)]
        raise InteropError(
            f"layer {writer.layer!r} has the function {function!r}, which is not written to ONNX; "
            f"those that are: {', '.join(dict.fromkeys(names))}"
        )
    return writer.add(op_type, x, **numbers)


def _clip(low: float, high: float) -> Callable[[Writer, str], str]:
    return lambda w, x: w.add("Clip", x, w.scalar(low), w.scalar(high))


def _gelu(w: Writer, x: str) -> str:
    """JAX's, with the tanh: ``x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))``."""
    # ONNX has it as one operator, but only in versions newer than many runtimes.
    cube = w.add("Mul", w.add("Mul", x, x), w.add("Mul", x, w.scalar(0.044715)))
    inner = w.add("Mul", w.add("Add", x, cube), w.scalar(math.sqrt(2 / math.pi)))
    return _half_of_one_plus(w, x, w.add("Tanh", inner))


def _half_of_one_plus(w: Writer, x: str, y: str) -> str:
    return w.add("Mul", w.add("Mul", x, w.scalar(0.5)), w.add("Add", y, w.scalar(1)))


_COMPOSED: Mapping[str, Callable[[Writer, str], str]] = {
    "linear": lambda w, x: x,
    "hard_tanh": _clip(-1, 1),
    "relu6": _clip(0, 6),
    "gelu": _gelu,
    # x / 2 (1 + erf(x / sqrt(2)))
    "exact_gelu": lambda w, x: _half_of_one_plus(
        w, x, w.add("Erf", w.add("Mul", x, w.scalar(math.sqrt(0.5))))
    ),
    "silu": lambda w, x: w.add("Mul", x, w.add("Sigmoid", x)),
    "mish": lambda w, x: w.add("Mul", x, w.add("Tanh", w.add("Softplus", x))),
    "log_sigmoid": lambda w, x: w.add("Neg", w.add("Softplus", w.add("Neg", x))),
}
"""The functions that are several operators, or none."""
