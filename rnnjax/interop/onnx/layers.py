"""The layers of a `rnnjax.interop.Sequential`, and their functions, as nodes of an ONNX graph."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.cells.base import Cell
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

    Args:
        states: whether the states go in and out.
        lengths: whether rows have lengths.
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

    # --- Layers ---

    def write(self, network: Sequential, params: Any, ys: Any) -> None:
        """Write all; ``ys`` is the shape of what comes of two steps, if that is known."""
        chain = [layer for layer in network.chain if not isinstance(layer, Dropout)]
        if self.lengths and not any(isinstance(layer, Recurrent) for layer in chain):
            raise InvalidInputError(
                "lengths are for recurrent layers, but the model has none; leave them out"
            )
        first = chain[0] if chain else None
        if isinstance(first, Embedding | OneHotIds):
            x = self.add_input("ids", np.int64, ["time", "batch"])
        else:
            known = isinstance(first, Recurrent | Dense)
            size = input_size(params[first.name]) if first and known else "features"
            x = self.add_input("xs", np.float32, ["time", "batch", size])
        if self.lengths:
            self.add_input("lengths", np.int32, ["batch"])
        self.claim("ys")
        for layer in chain:
            self.layer = layer.name
            x = self._layer(layer, params.get(layer.name, {}), x, first=layer is first)
        self.add_many("Identity", [x], ["ys"])
        axes = ["time", "batch", "features"] if ys is None else ["time", "batch", ys.shape[-1]]
        self.add_output("ys", axes if ys is None or len(ys.shape) > 2 else axes[1:], first=True)

    def _layer(self, layer: Layer, params: Any, x: str, first: bool) -> str:
        if isinstance(layer, Recurrent):
            return self._recurrent(layer, params, x)
        if isinstance(layer, Dense):
            y = self.add("MatMul", x, self.constant("kernel", _array(layer, params, "kernel")))
            if layer.use_bias:
                y = self.add("Add", y, self.constant("bias", _array(layer, params, "bias")))
            return apply_function(self, y, layer.activation)
        if isinstance(layer, Activation):
            return apply_function(self, x, layer.function)
        if isinstance(layer, OneHotIds) and first:
            depth = self.constant("depth", np.int64(layer.size))
            # Integers, because a reader may take constants that are floats for parameters.
            vectors = self.add("OneHot", x, depth, self.ints(0, 1))
            return self.add("Cast", vectors, to=self.onnx.TensorProto.FLOAT)
        if isinstance(layer, Embedding) and first and not layer.mask_zero:
            table = self.constant("embedding", _array(layer, params, "embedding"))
            return self.add("Gather", table, x, axis=0)
        if isinstance(layer, Masking | Embedding | OneHotIds):
            raise InteropError(
                f"layer {layer.name!r} masks steps by what they hold, or takes ids and is not the "
                "first, which the ONNX export does not write; leave it out and export with "
                "lengths=True, or put it there"
            )
        raise InteropError(
            f"layer {layer.name!r} is a {type(layer).__name__}, which the ONNX export does not "
            "write; it takes the layers of rnnjax.interop"
        )

    def _recurrent(self, layer: Recurrent, params: Any, x: str) -> str:
        if not layer.merged or (
            self.lengths and layer.return_sequences and layer.masked_outputs == "last"
        ):
            raise InteropError(
                f"layer {layer.name!r} does not merge its two directions, or has masked_outputs "
                "'last' where rows have lengths, which the ONNX export does not write; merge them, "
                "or leave masked_outputs out"
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
        if isinstance(cell, LearnedCarry):
            raise InteropError(
                f"layer {name!r} has a LearnedCarry, which the ONNX export does not write; write "
                "the cell and params['cell'], and feed params['initial_carry'] as its states"
            )
        if isinstance(cell, Regularized):
            return self._cell(name, in_prediction(cell, name, "ONNX"), params, reverse, x)
        if isinstance(cell, Stack):
            for i, one in enumerate(cell.cells):
                x, end = self._cell(f"{name}_{i}", one, params[i], reverse, x)
            return x, end
        if isinstance(cell, Bidirectional):
            sides = [
                self._cell(f"{name}_{side}", one, own, reverse != (side == "backward"), x)
                for side, one, own in zip(("forward", "backward"), cell.cells, params, strict=True)
            ]
            ys, end = (self._merge(cell.merge, *each) for each in zip(*sides, strict=True))
            return ys, end
        return self._node(name, cell, params, reverse, x)

    def _node(self, name: str, cell: Any, params: Any, reverse: bool, x: str) -> tuple[str, str]:
        op_type, attributes = attributes_to_onnx(cell, reverse=reverse)
        if getattr(cell, "dtype", None) not in (None, np.float32):
            raise InteropError(
                f"layer {name!r} computes in {np.dtype(cell.dtype).name}, but ONNX models are "
                "written in float32; build the cell without dtype, and compare the outputs"
            )
        self.layer = name
        params = jax.tree.map(lambda a: float32(f"layer {name!r}", a), params)
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
                self.add_output(outputs[-1], axes)
            else:
                outputs.append(self.value(f"Y_{letter}"))
        inputs = [x, *weights, "lengths" * self.lengths, *starts]
        while not inputs[-1]:  # what is left out at the end is not named
            inputs.pop()
        y, end, *_ = self.add_many(op_type, inputs, [self.value("Y"), *outputs], name, **attributes)
        return self.add("Squeeze", y, self.ints(1)), end

    def _merge(self, merge: str, forward: str, backward: str) -> str:
        if merge == "concat":
            return self.add("Concat", forward, backward, axis=-1)
        if merge == "mul":
            return self.add("Mul", forward, backward)
        total = self.add("Add", forward, backward)
        return total if merge == "sum" else self.add("Div", total, self.scalar(2))


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
