"""The layers of a `rnnjax.interop.Sequential`, and their functions, as nodes of an ONNX graph."""

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.errors import InteropError, InvalidInputError
from rnnjax.interop.functions import (
    ELU,
    Affine,
    CutReLU,
    Function,
    HardSigmoid,
    LeakyReLU,
    ScaledTanh,
    ThresholdedReLU,
)
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
from rnnjax.interop.onnx.plan import Node, Pair, Plan, Row, make_plan, nodes
from rnnjax.interop.onnx.recurrent import RECURRENT, attributes_to_onnx, input_size, params_to_onnx
from rnnjax.interop.onnx.writer import Axes, Writer
from rnnjax.layers import Bidirectional


class _Value(NamedTuple):
    """What goes from layer to layer in the graph: one value, or one for each direction."""

    names: tuple[str, ...]  # of the values
    sizes: tuple[int | None, ...]  # of their last axes; None where it is not known
    sequence: bool = True  # whether they have an axis of time


class _Run(NamedTuple):
    """What a plan computes."""

    ys: str  # (time, batch, size)
    # writes the outputs of the last step that ran, (batch, size); None where those of several
    # directions are not of one step
    end: Callable[[], str] | None


@dataclasses.dataclass
class Export:
    """Writes layers one by one."""

    writer: Writer  # to which they are written
    states: bool  # whether the states go in and out
    lengths: bool  # whether rows have lengths
    source: str = "xs"  # the name of the data input

    def write(self, network: Sequential, params: Any) -> dict[str, str]:
        """Write all; returns what the metadata say about learned states."""
        chain = [layer for layer in network.chain if not isinstance(layer, Dropout)]
        recurrent = [layer for layer in chain if isinstance(layer, Recurrent)]
        if self.lengths and not recurrent:
            raise InvalidInputError(
                "lengths are for recurrent layers, but the model has none; leave them out"
            )
        value = self._inputs(chain, params)
        plans = {layer.name: plan_of(layer, params[layer.name]) for layer in recurrent}
        state_nodes = [node for plan in plans.values() for node in nodes(plan) if self.states]
        outputs = [axes for node in state_nodes for axes in self._declare(node)]
        for i, layer in enumerate(chain):
            self.writer.layer = layer.name
            value = self._layer(layer, params.get(layer.name, {}), value, plans, first=i == 0)
        names = ("ys",) if len(value.names) == 1 else ("ys_forward", "ys_backward")
        for name, written, size in zip(names, value.names, value.sizes, strict=True):
            self.writer.rename(written, name, "Identity")
            steps: Axes = ["time", "batch"] if value.sequence else ["batch"]
            self.writer.add_output(name, [*steps, size or "features"])
        for name, axes in outputs:
            self.writer.add_output(name, axes)
        return {
            f"initial_state:{name}": json.dumps(array[:, 0].tolist())
            for node in state_nodes
            for name, array in node.learned().items()
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
        for name in ("ys", "ys_forward", "ys_backward"):
            self.writer.claim(name)
        return _Value((self.source,), (size,))

    def _declare(self, node: Node) -> list[tuple[str, Axes]]:
        """The inputs of a node's state; returns the names and axes of its outputs."""
        outputs = []
        for name in _state_names(node):
            axes: Axes = [len(node.starts), "batch", _hidden_size(node)]
            self.writer.add_input(name, np.float32, axes)
            outputs.append((self.writer.claim(f"{name}_out"), axes))
        return outputs

    def _layer(
        self, layer: Layer, params: Any, value: _Value, plans: Mapping[str, Plan], first: bool
    ) -> _Value:
        writer, x = self.writer, value.names[0]
        if isinstance(layer, Recurrent):
            return self._recurrent(layer, plans[layer.name], x)
        if isinstance(layer, Dense):
            y = writer.add("MatMul", x, writer.constant("kernel", _array(layer, params, "kernel")))
            if layer.use_bias:
                y = writer.add("Add", y, writer.constant("bias", _array(layer, params, "bias")))
            y = apply_function(writer, y, layer.activation)
            return value._replace(names=(y,), sizes=(layer.size,))
        if isinstance(layer, Activation):
            return value._replace(names=(apply_function(writer, x, layer.function),))
        if isinstance(layer, Embedding | OneHotIds):
            if not first:
                raise InteropError(
                    f"layer {layer.name!r} takes ids, so it has to be the first; put it there"
                )
            return _Value((self._look_up(layer, params),), (layer.size,))
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

    def _recurrent(self, layer: Recurrent, plan: Plan, x: str) -> _Value:
        both = isinstance(layer.cell, Bidirectional)
        if both and isinstance(plan, Pair) and not (layer.return_sequences and layer.merged):
            return self._directions(layer, plan, x)
        masked = layer.masked_outputs or ("zero" if layer.return_sequences else "last")
        run = self._run(plan, x, fill=masked == "last")
        valid_end = masked == "last" or not self.lengths
        if layer.return_sequences:
            y = self._flip(run.ys) if layer.reverse and not layer.keep_order else run.ys
        elif run.end and valid_end and (both or not _ends_in_two_directions(plan)):
            y = run.end()
        elif both:
            half = layer.cell.output_size // 2
            forward = self._features(self._step(run.ys, -1), 0, half)
            y = self._merge(
                "concat", forward, self._features(self._step(run.ys, 0), half, 2 * half)
            )
        else:
            y = self._step(run.ys, 0 if layer.reverse else -1)
        return _Value((y,), (layer.cell.output_size,), layer.return_sequences)

    def _directions(self, layer: Recurrent, plan: Pair, x: str) -> _Value:
        """Both directions by themselves: their last outputs are those of different steps."""
        assert isinstance(layer.cell, Bidirectional)
        ys: list[str] = []
        for cell, part, turned in zip(
            layer.cell.cells, (plan.forward, plan.backward), (False, True), strict=True
        ):
            reverse = layer.reverse != turned
            one = dataclasses.replace(
                layer, cell=cell, reverse=reverse, keep_order=True, merged=True
            )
            ys.extend(self._recurrent(one, part, x).names)
        if layer.return_sequences and layer.reverse and not layer.keep_order:
            ys = [self._flip(y) for y in ys]
        if layer.merged:
            y = self._merge(plan.merge, *ys)
            return _Value((y,), (layer.cell.output_size,), layer.return_sequences)
        sizes = tuple(cell.output_size for cell in layer.cell.cells)
        return _Value(tuple(ys), sizes, layer.return_sequences)

    def _run(self, plan: Plan, x: str, fill: bool) -> _Run:
        """``fill`` has masked steps repeat the last valid output, as ``masked_outputs`` does."""
        if isinstance(plan, Node):
            return self._node(plan, x, fill)
        if isinstance(plan, Row):
            run = _Run(x, None)
            for part in plan.parts:
                run = self._run(part, run.ys, fill)
            return run
        forward, backward = (self._run(part, x, fill) for part in (plan.forward, plan.backward))
        return _Run(self._merge(plan.merge, forward.ys, backward.ys), None)

    def _node(self, node: Node, x: str, fill: bool) -> _Run:
        writer, outer = self.writer, self.writer.layer
        writer.layer = node.name
        op_type, attributes = attributes_to_onnx(node.cell, reverse=node.reverse)
        params = jax.tree.map(functools.partial(float32, f"layer {node.name!r}"), node.params)
        weights = [
            "" if array is None else writer.constant(name, array)
            for name, array in params_to_onnx(node.cell, params)._asdict().items()
        ]
        names = _state_names(node)
        starts = list(names) if self.states else self._starts(node)
        inputs = [x, *weights[:3], "lengths" * self.lengths, *starts]
        if weights[3]:
            inputs += [""] * (len(names) - len(starts)) + weights[3:]
        while not inputs[-1]:  # what is left out at the end is not named
            inputs.pop()
        outputs = [f"{name}_out" for name in names]
        if not self.states:
            outputs = [writer.value(name) for name in ("Y_h", "Y_c")[: len(names)]]
        y, state, *_ = writer.add_many(
            op_type, inputs, [writer.value("Y"), *outputs], node.name, **attributes
        )
        two = len(node.starts) == 2
        if fill and self.lengths and not node.reverse:
            y = self._filled(y, state, two)
        ys = self._flat(y, [0, 2, 1, 3]) if two else writer.add("Squeeze", y, writer.ints(1))

        def end() -> str:
            writer.layer = outer
            if two:
                return self._flat(state, [1, 0, 2])
            return writer.add("Squeeze", state, writer.ints(0))

        writer.layer = outer
        return _Run(ys, end)

    def _starts(self, node: Node) -> list[str]:
        """The learned states as values of the graph; none where sequences begin with zeros."""
        writer = self.writer
        axes = (writer.ints(1), self._axis(1), writer.ints(1)) if node.learned() else ()
        return [
            writer.add("Expand", writer.constant(name, array), writer.add("Concat", *axes, axis=0))
            for name, array in node.learned().items()
        ]

    def _filled(self, y: str, state: str, two: bool) -> str:
        """Behind a row's length its last output; the backward direction has not begun there."""
        writer = self.writer
        number = writer.add("Squeeze", self._axis(0))
        zero, one = (writer.constant("step", np.int64(n)) for n in (0, 1))
        times = writer.add("Unsqueeze", writer.add("Range", zero, number, one), writer.ints(1))
        int64 = writer.onnx.TensorProto.INT64
        valid = writer.add("Less", times, writer.add("Cast", "lengths", to=int64))
        valid = writer.add("Unsqueeze", valid, writer.ints(1, 3))
        if two:
            forward = np.array([1, 0], np.float32).reshape(2, 1, 1)
            state = writer.add("Mul", state, writer.constant("forward", forward))
        return writer.add("Where", valid, y, state)

    def _axis(self, axis: int) -> str:
        """The size of an axis of the input: a list of one integer."""
        shape = self.writer.add("Shape", self.source)
        return self.writer.add("Gather", shape, self.writer.ints(axis), axis=0)

    def _flat(self, value: str, order: Sequence[int]) -> str:
        """``(..., directions, batch, size)`` to ``(..., batch, directions * size)``."""
        moved = self.writer.add("Transpose", value, perm=order)
        return self.writer.add("Reshape", moved, self.writer.ints(*[0] * (len(order) - 2), -1))

    def _merge(self, merge: str, forward: str, backward: str) -> str:
        writer = self.writer
        if merge == "concat":
            return writer.add("Concat", forward, backward, axis=-1)
        if merge == "mul":
            return writer.add("Mul", forward, backward)
        total = writer.add("Add", forward, backward)
        return total if merge == "sum" else writer.add("Div", total, writer.scalar(2))

    def _step(self, ys: str, step: int) -> str:
        """The outputs of one step."""
        return self.writer.add("Gather", ys, self.writer.constant("step", np.int64(step)), axis=0)

    def _features(self, y: str, start: int, stop: int) -> str:
        ints = self.writer.ints
        return self.writer.add("Slice", y, ints(start), ints(stop), ints(-1))

    def _flip(self, value: str) -> str:
        """The steps in the order in which they were computed."""
        ints = self.writer.ints
        end = np.iinfo(np.int64).min  # as far as there is
        return self.writer.add("Slice", value, ints(-1), ints(end), ints(0), ints(-1))


def plan_of(layer: Recurrent, params: Any) -> Plan:
    """The nodes of a layer; see `make_plan`."""
    return make_plan(layer.name, layer.cell, params, layer.reverse, layer.merged)


def _ends_in_two_directions(plan: Plan) -> bool:
    while isinstance(plan, Row):
        plan = plan.parts[-1]
    return isinstance(plan, Pair) or len(plan.starts) == 2


def _state_names(node: Node) -> list[str]:
    states = RECURRENT[attributes_to_onnx(node.cell)[0]].states
    return [f"{node.name}_{kind}" for kind in "hc"[:states]]


def _hidden_size(node: Node) -> int:
    return int(attributes_to_onnx(node.cell)[1]["hidden_size"])


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
    write = _NAMED.get(function) if isinstance(function, str) else _CLASSES.get(type(function))
    if write is None:
        raise InteropError(
            f"layer {writer.layer!r} has the function {function!r}, which is not written to ONNX; "
            f"those that are: {', '.join(_NAMED)}, and the classes "
            f"{', '.join(kind.__name__ for kind in _CLASSES)} of rnnjax.interop.functions"
        )
    return write(writer, x, function)


def _operator(op_type: str, **attributes: Any) -> Callable[[Writer, str, Any], str]:
    """A function that is one operator, whose numbers are attributes."""
    return lambda w, x, f: w.add(
        op_type, x, **(attributes if isinstance(f, str) else dataclasses.asdict(f))
    )


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


def _squareplus(w: Writer, x: str, _: Any) -> str:
    """``(x + sqrt(x^2 + 4)) / 2``."""
    root = w.add("Sqrt", w.add("Add", w.add("Mul", x, x), w.scalar(4)))
    return w.add("Mul", w.add("Add", x, root), w.scalar(0.5))


def _cut_relu(w: Writer, x: str, f: Any) -> str:
    above = x if f.max_value is None else _clip(0, f.max_value)(w, x, f)
    shifted = w.add("Sub", x, w.scalar(f.threshold))
    below = w.add("Mul", shifted, w.scalar(f.slope))
    return w.add("Where", w.add("Greater", x, w.scalar(f.threshold)), above, below)


_NAMED: Mapping[str, Callable[[Writer, str, Any], str]] = {
    "linear": lambda w, x, _: x,
    "tanh": _operator("Tanh"),
    "sigmoid": _operator("Sigmoid"),
    "relu": _operator("Relu"),
    "softplus": _operator("Softplus"),
    "softsign": _operator("Softsign"),
    "exponential": _operator("Exp"),
    "hard_silu": _operator("HardSwish"),
    "softmax": _operator("Softmax", axis=-1),
    "log_softmax": _operator("LogSoftmax", axis=-1),
    "hard_sigmoid": _operator("HardSigmoid", alpha=1 / 6, beta=0.5),
    "legacy_hard_sigmoid": _operator("HardSigmoid", alpha=0.2, beta=0.5),
    "hard_tanh": _clip(-1, 1),
    "relu6": _clip(0, 6),
    "elu": _operator("Elu", alpha=1.0),
    "celu": _operator("Elu", alpha=1.0),
    "selu": _operator("Selu"),
    "gelu": _gelu,
    # x / 2 (1 + erf(x / sqrt(2)))
    "exact_gelu": lambda w, x, _: _half_of_one_plus(
        w, x, w.add("Erf", w.add("Mul", x, w.scalar(math.sqrt(0.5))))
    ),
    "silu": lambda w, x, _: w.add("Mul", x, w.add("Sigmoid", x)),
    "mish": lambda w, x, _: w.add("Mul", x, w.add("Tanh", w.add("Softplus", x))),
    "squareplus": _squareplus,
    "soft_shrink": lambda w, x, f: w.add("Sub", x, _clip(-0.5, 0.5)(w, x, f)),
    "hard_shrink": lambda w, x, _: w.add(
        "Where", w.add("Greater", w.add("Abs", x), w.scalar(0.5)), x, w.scalar(0)
    ),
    "tanh_shrink": lambda w, x, _: w.add("Sub", x, w.add("Tanh", x)),
    "log_sigmoid": lambda w, x, _: w.add("Neg", w.add("Softplus", w.add("Neg", x))),
}

_CLASSES: Mapping[type[Any], Callable[[Writer, str, Any], str]] = {
    ELU: _operator("Elu"),
    HardSigmoid: _operator("HardSigmoid"),
    LeakyReLU: _operator("LeakyRelu"),
    ThresholdedReLU: _operator("ThresholdedRelu"),
    Affine: lambda w, x, f: w.add("Add", w.add("Mul", x, w.scalar(f.alpha)), w.scalar(f.beta)),
    ScaledTanh: lambda w, x, f: w.add(
        "Mul", w.add("Tanh", w.add("Mul", x, w.scalar(f.beta))), w.scalar(f.alpha)
    ),
    CutReLU: _cut_relu,
}
