"""Building an ONNX graph value by value; `apply_function` writes an activation as its nodes."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rnnjax.errors import InteropError
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
from rnnjax.interop.onnx.files import import_onnx

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

    def add_output(self, name: str, axes: Axes) -> None:
        """Declare a value to be an output of the graph."""
        self.outputs.append(self._info(name, np.float32, axes))

    def rename(self, value: str, name: str) -> None:
        """Give a value the name, claimed before, by which it is known outside."""
        if any(value in node.output for node in self.nodes):
            for node in self.nodes:
                for names in (node.input, node.output):
                    names[:] = [name if one == value else one for one in names]
        else:  # an input that no layer changes
            self.add_many("Identity", [value], [name])

    def claim(self, name: str) -> str:
        """Take a name that is seen from outside.

        Raises:
            InteropError: another value has it.
        """
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


# --- Functions ---


def apply_function(writer: Writer, x: str, function: str | Function) -> str:
    """Write ``function(x)``, and return the name of the result.

    Raises:
        InteropError: the function is not one that is known here.
    """
    write = _NAMED.get(function) if isinstance(function, str) else _CLASSES.get(type(function))
    if write is None:
        raise InteropError(
            f"layer {writer.layer!r} has the function {function!r}, which is not written to ONNX; "
            f"those that are: {', '.join(_NAMED)}, and the classes "
            f"{', '.join(kind.__name__ for kind in _CLASSES)} of rnnjax.interop.functions"
        )
    return write(writer, x, function)


def _operator(op_type: str, **attributes: Any) -> Callable[[Writer, str, Any], str]:
    """A function that is one operator."""
    return lambda w, x, _: w.add(op_type, x, **attributes)


def _clip(low: float, high: float) -> Callable[[Writer, str, Any], str]:
    return lambda w, x, _: w.add("Clip", x, w.scalar(low), w.scalar(high))


def _gelu(w: Writer, x: str, _: Any) -> str:
    """JAX's, with the tanh: ``x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))``."""
    # ONNX has it as one operator, but only in versions newer than many runtimes.
    cube = w.add("Mul", w.add("Mul", x, x), w.add("Mul", x, w.scalar(0.044715)))
    inner = w.add("Mul", w.add("Add", x, cube), w.scalar(math.sqrt(2 / math.pi)))
    return _half_of_one_plus(w, x, w.add("Tanh", inner))


def _exact_gelu(w: Writer, x: str, _: Any) -> str:
    """``x / 2 (1 + erf(x / sqrt(2)))``."""
    return _half_of_one_plus(w, x, w.add("Erf", w.add("Mul", x, w.scalar(math.sqrt(0.5)))))


def _half_of_one_plus(w: Writer, x: str, y: str) -> str:
    return w.add("Mul", w.add("Mul", x, w.scalar(0.5)), w.add("Add", y, w.scalar(1)))


def _affine(w: Writer, x: str, f: Any) -> str:
    return w.add("Add", w.add("Mul", x, w.scalar(f.alpha)), w.scalar(f.beta))


def _scaled_tanh(w: Writer, x: str, f: Any) -> str:
    return w.add("Mul", w.add("Tanh", w.add("Mul", x, w.scalar(f.beta))), w.scalar(f.alpha))


def _negative_softplus(w: Writer, x: str, _: Any) -> str:
    return w.add("Neg", w.add("Softplus", w.add("Neg", x)))


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
    "hard_sigmoid": _operator("HardSigmoid", alpha=1 / 6, beta=0.5),
    "legacy_hard_sigmoid": _operator("HardSigmoid", alpha=0.2, beta=0.5),
    "hard_tanh": _clip(-1, 1),
    "relu": _operator("Relu"),
    "relu6": _clip(0, 6),
    "elu": _operator("Elu", alpha=1.0),
    "celu": _operator("Elu", alpha=1.0),
    "selu": _operator("Selu"),
    "gelu": _gelu,
    "exact_gelu": _exact_gelu,
    "silu": lambda w, x, _: w.add("Mul", x, w.add("Sigmoid", x)),
    "hard_silu": _operator("HardSwish"),
    "mish": lambda w, x, _: w.add("Mul", x, w.add("Tanh", w.add("Softplus", x))),
    "softplus": _operator("Softplus"),
    "softsign": _operator("Softsign"),
    "squareplus": _squareplus,
    "soft_shrink": _operator("Shrink", lambd=0.5, bias=0.5),
    "hard_shrink": _operator("Shrink", lambd=0.5, bias=0.0),
    "tanh_shrink": lambda w, x, _: w.add("Sub", x, w.add("Tanh", x)),
    "softmax": _operator("Softmax", axis=-1),
    "log_softmax": _operator("LogSoftmax", axis=-1),
    "log_sigmoid": _negative_softplus,
    "exponential": _operator("Exp"),
}

_CLASSES: Mapping[type[Any], Callable[[Writer, str, Any], str]] = {
    Affine: _affine,
    HardSigmoid: lambda w, x, f: w.add("HardSigmoid", x, alpha=f.alpha, beta=f.beta),
    ScaledTanh: _scaled_tanh,
    LeakyReLU: lambda w, x, f: w.add("LeakyRelu", x, alpha=f.alpha),
    ThresholdedReLU: lambda w, x, f: w.add("ThresholdedRelu", x, alpha=f.alpha),
    CutReLU: _cut_relu,
    ELU: lambda w, x, f: w.add("Elu", x, alpha=f.alpha),
}
