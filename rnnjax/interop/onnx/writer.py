"""Building an ONNX graph value by value."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rnnjax.errors import InteropError
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
