"""The layers of a `rnnjax.interop.Sequential`, and their functions, as nodes of an ONNX graph."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.cells.base import Carry, Cell, Params
from rnnjax.errors import InteropError, InvalidInputError
from rnnjax.interop.functions import Affine, CutReLU, Function
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
from rnnjax.interop.onnx.recurrent import (
    ACTIVATIONS,
    RECURRENT,
    activation_to_onnx,
    attributes_to_onnx,
    input_size,
    params_to_onnx,
)
from rnnjax.interop.onnx.writer import Axes, Writer
from rnnjax.layers import Bidirectional, LearnedCarry, Regularized, Stack


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
    start: Carry | None  # that was learned; None for zeros
    reverse: bool

    def inner(self) -> "_Part":
        """Without wrappers that do not change what a step computes."""
        cell, params, start = self.cell, self.params, self.start
        while isinstance(cell, Regularized | LearnedCarry):
            if isinstance(cell, LearnedCarry):
                # Of two around each other the outer one is where sequences begin.
                start = params["initial_carry"] if start is None else start
                params = params["cell"]
            elif cell.zoneout_hidden or cell.zoneout_cell:
                raise InteropError(
                    f"layer {self.name!r} has zoneout, whose expectation is part of every step of "
                    "a prediction and which ONNX cannot express; export the cell without it, if "
                    "its outputs are good enough for you"
                )
            cell = cell.cell
        return self._replace(cell=cell, params=params, start=start)

    def parts(self) -> list["_Part"]:
        """The cells of a combination, each with its own."""
        assert isinstance(self.cell, Stack | Bidirectional)
        names, turned = [*map(str, range(len(self.cell.cells)))], [False] * len(self.cell.cells)
        if isinstance(self.cell, Bidirectional):
            names, turned = ["forward", "backward"], [False, True]
        return [
            _Part(
                f"{self.name}_{names[i]}",
                cell,
                self.params[i],
                None if self.start is None else self.start[i],
                self.reverse != turned[i],
            )
            for i, cell in enumerate(self.cell.cells)
        ]


@dataclasses.dataclass
class Export:
    """Writes layers one by one."""

    writer: Writer  # to which they are written
    states: bool  # whether the states go in and out
    lengths: bool  # whether rows have lengths
    source: str = "xs"  # the name of the data input
    # by their names, the states that were written and learned
    learned: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def write(self, network: Sequential, params: Any) -> dict[str, str]:
        """Write all; returns what the metadata say about learned states."""
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
        return {
            f"initial_state:{name}": json.dumps(array.tolist())
            for name, array in self.learned.items()
        }

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
        if isinstance(layer.cell, Bidirectional) and not layer.merged:
            raise InteropError(
                f"layer {layer.name!r} does not merge its two directions, which the ONNX export "
                "does not write; merge them"
            )
        masked = layer.masked_outputs or ("zero" if layer.return_sequences else "last")
        fill = masked == "last" and self.lengths
        part = _Part(layer.name, layer.cell, params, None, layer.reverse)
        if isinstance(layer.cell, Bidirectional) and not layer.return_sequences:
            # Their last outputs are those of different steps.
            ends = [self._end(self._cell(one, x, fill), one) for one in part.parts()]
            return self._merge(layer.cell.merge, *ends)
        ys = self._cell(part, x, fill)
        if not layer.return_sequences:
            return self._end(ys, part)
        return self._flip(ys) if layer.reverse and not layer.keep_order else ys

    def _cell(self, part: _Part, x: str, fill: bool) -> str:
        """The outputs ``(time, batch, size)`` of a cell, or of a combination.

        ``fill`` has masked steps repeat the last valid output, as ``masked_outputs`` does.
        """
        part = part.inner()
        if isinstance(part.cell, Stack):
            for one in part.parts():
                x = self._cell(one, x, fill)
            return x
        if isinstance(part.cell, Bidirectional):
            return self._merge(part.cell.merge, *(self._cell(one, x, fill) for one in part.parts()))
        return self._node(part, x, fill)

    def _node(self, part: _Part, x: str, fill: bool) -> str:
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
        for i in range(RECURRENT[op_type].states):
            name, size = f"{part.name}_{'hc'[i]}", attributes["hidden_size"]
            learned = None if part.start is None else np.asarray(part.start[i], np.float32)
            if self.states:
                writer.add_input(name, np.float32, [1, "batch", size])
                outputs.append(writer.claim(f"{name}_out"))
                writer.add_output(outputs[i], [1, "batch", size])
                starts.append(name)
                if learned is not None:
                    self.learned[name] = learned[None]
            else:
                outputs.append(writer.value("Y_h" if i == 0 else "Y_c"))
                starts.append("" if learned is None else self._start(name, learned))
        inputs = [x, *weights[:3], "lengths" * self.lengths, *starts]
        if weights[3]:
            inputs += [""] * (7 - len(inputs)) + weights[3:]
        while not inputs[-1]:  # what is left out at the end is not named
            inputs.pop()
        y, state, *_ = writer.add_many(
            op_type, inputs, [writer.value("Y"), *outputs], part.name, **attributes
        )
        if fill and not part.reverse:  # after a row's length a backward one has not begun
            y = self._filled(y, state)
        ys = writer.add("Squeeze", y, writer.ints(1))
        writer.layer = outer
        return ys

    def _start(self, name: str, learned: np.ndarray) -> str:
        """A learned state, for each row of the batch."""
        writer = self.writer
        axes = writer.ints(1), self._axis(1), writer.ints(1)
        shape = writer.add("Concat", *axes, axis=0)
        return writer.add("Expand", writer.constant(name, learned[None, None]), shape)

    def _filled(self, y: str, state: str) -> str:
        """After a row's length its last output."""
        writer = self.writer
        number = writer.add("Squeeze", self._axis(0))
        zero, one = (writer.constant("step", np.int64(n)) for n in (0, 1))
        times = writer.add("Unsqueeze", writer.add("Range", zero, number, one), writer.ints(1))
        int64 = writer.onnx.TensorProto.INT64
        valid = writer.add("Less", times, writer.add("Cast", "lengths", to=int64))
        return writer.add("Where", writer.add("Unsqueeze", valid, writer.ints(1, 3)), y, state)

    def _axis(self, axis: int) -> str:
        """The size of an axis of the input: a list of one integer."""
        shape = self.writer.add("Shape", self.source)
        return self.writer.add("Gather", shape, self.writer.ints(axis), axis=0)

    def _merge(self, merge: str, forward: str, backward: str) -> str:
        writer = self.writer
        if merge == "concat":
            return writer.add("Concat", forward, backward, axis=-1)
        if merge == "mul":
            return writer.add("Mul", forward, backward)
        total = writer.add("Add", forward, backward)
        return total if merge == "sum" else writer.add("Div", total, writer.scalar(2))

    def _end(self, ys: str, part: _Part) -> str:
        """The outputs of the step that ran last."""
        step = self.writer.constant("step", np.int64(0 if part.reverse else -1))
        return self.writer.add("Gather", ys, step, axis=0)

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
    key = function if isinstance(function, str) else type(function)
    write = _COMPOSED.get(key)
    if write is not None:
        return write(writer, x, function)
    if key in _OPERATORS:
        op_type, attributes = _OPERATORS[key]
    else:
        try:
            op_type, attributes = activation_to_onnx(function)
        except InteropError:
            known = [*_COMPOSED, *_OPERATORS, *ACTIVATIONS.values()]
            names = ", ".join(one if isinstance(one, str) else one.__name__ for one in known)
            raise InteropError(
                f"layer {writer.layer!r} has the function {function!r}, which is not written to "
                f"ONNX; those that are: {names}"
            ) from None
    return writer.add(op_type, x, **attributes)


def _clip(low: float, high: float) -> Callable[[Writer, str, Any], str]:
    return lambda w, x, _: w.add("Clip", x, w.scalar(low), w.scalar(high))


def _gelu(w: Writer, x: str, _: Any) -> str:
    """JAX's, with the tanh: ``x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))``."""
    # ONNX has it as one operator, but only in versions newer than many runtimes.
    cube = w.add("Mul", w.add("Mul", x, x), w.add("Mul", x, w.scalar(0.044715)))
    inner = w.add("Mul", w.add("Add", x, cube), w.scalar(math.sqrt(2 / math.pi)))
    return _half_of_one_plus(w, x, w.add("Tanh", inner))


def _half_of_one_plus(w: Writer, x: str, y: str) -> str:
    return w.add("Mul", w.add("Mul", x, w.scalar(0.5)), w.add("Add", y, w.scalar(1)))


def _cut_relu(w: Writer, x: str, f: Any) -> str:
    above = x if f.max_value is None else _clip(0, f.max_value)(w, x, f)
    shifted = w.add("Sub", x, w.scalar(f.threshold))
    below = w.add("Mul", shifted, w.scalar(f.slope))
    return w.add("Where", w.add("Greater", x, w.scalar(f.threshold)), above, below)


_OPERATORS: Mapping[Any, tuple[str, dict[str, Any]]] = {
    "exponential": ("Exp", {}),
    "hard_silu": ("HardSwish", {}),
    "softmax": ("Softmax", {"axis": -1}),
    "log_softmax": ("LogSoftmax", {"axis": -1}),
    "selu": ("Selu", {}),
}
"""Functions that are one operator of ONNX, and no activation of its recurrent nodes."""

_COMPOSED: Mapping[Any, Callable[[Writer, str, Any], str]] = {
    "linear": lambda w, x, _: x,
    "hard_tanh": _clip(-1, 1),
    "relu6": _clip(0, 6),
    "gelu": _gelu,
    # x / 2 (1 + erf(x / sqrt(2)))
    "exact_gelu": lambda w, x, _: _half_of_one_plus(
        w, x, w.add("Erf", w.add("Mul", x, w.scalar(math.sqrt(0.5))))
    ),
    "silu": lambda w, x, _: w.add("Mul", x, w.add("Sigmoid", x)),
    "mish": lambda w, x, _: w.add("Mul", x, w.add("Tanh", w.add("Softplus", x))),
    "log_sigmoid": lambda w, x, _: w.add("Neg", w.add("Softplus", w.add("Neg", x))),
    Affine: lambda w, x, f: w.add("Add", w.add("Mul", x, w.scalar(f.alpha)), w.scalar(f.beta)),
    CutReLU: _cut_relu,
}
"""The functions that are several, by their names or classes."""
