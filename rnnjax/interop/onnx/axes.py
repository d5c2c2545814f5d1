"""Where time and batch are in the values of a graph: lengths and masks mean nothing elsewhere."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.cells.base import Params
from rnnjax.errors import InvalidInputError, RnnjaxError
from rnnjax.interop.layers import Context, Dense, Recurrent
from rnnjax.interop.onnx.graph import Graph, Input, LayerNode, Node, Operation, RecurrentNode
from rnnjax.interop.onnx.layers import input_size
from rnnjax.interop.onnx.operators import traced_dtype

STEPS, BATCH = 6, 2  # of inputs whose sizes nothing tells

Axes = tuple[int, int]
"""The places of time and batch."""

_POINTWISE = frozenset(
    {
        "Abs",
        "Cast",
        "Clip",
        "Dropout",
        "Elu",
        "Erf",
        "Exp",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "LeakyRelu",
        "Log",
        "Neg",
        "Not",
        "Reciprocal",
        "Relu",
        "Selu",
        "Shrink",
        "Sigmoid",
        "Softplus",
        "Softsign",
        "Sqrt",
        "Tanh",
        "ThresholdedRelu",
    }
)
_BINARY = frozenset(
    {"Add", "And", "Div", "Equal", "Max", "Min", "Mul", "Or", "PRelu", "Pow", "Sub", "Sum", "Where"}
)


def with_time_first(graph: Graph, params: Params) -> Graph:
    """The graph that takes and gives time first, if it has one input of data and steps run in it.

    Where those steps are follows from small inputs, of sizes that are not fixed. If it does not,
    the graph stays what it is.
    """
    entries = [entry for entry in graph.inputs if entry.role == "data"]
    if len(entries) != 1 or not any(isinstance(node, RecurrentNode) for node in graph.nodes):
        return graph
    shape = assumed_shape(entries[0], graph, params, (13, 11))  # hardly a size of anything else
    x = jax.ShapeDtypeStruct(shape, traced_dtype(jnp.dtype(entries[0].dtype), entries[0].name))
    try:
        axes = _followed(graph, params, {entries[0].name: x})[1]
    except (RnnjaxError, TypeError, ValueError):  # of JAX, for sizes that do not fit the graph
        return graph
    ends = (entries[0].name, *graph.outputs)
    return dataclasses.replace(graph, exchanged=tuple(n for n in ends if axes.get(n) == (1, 0)))


def assumed_shape(
    entry: Input, graph: Graph, params: Params, sizes: tuple[int, int] = (STEPS, BATCH)
) -> tuple[int, ...]:
    """Of an input: which of its free axes is time is not known, most often the first."""
    ids = jnp.issubdtype(jnp.dtype(entry.dtype), jnp.integer)
    shape = entry.shape
    if shape is None:
        shape = (None,) * (2 if ids else 3)
    features = [
        input_size(params[name])
        for name, layer in graph.layers.items()
        if isinstance(layer, Recurrent | Dense) and name in params
    ]
    if len(shape) == 3 and shape[-1] is None and not ids and features:
        shape = (*shape[:-1], features[0])
    free = iter((sizes[0], *sizes[1:] * len(shape)))
    return tuple(next(free) if size is None else size for size in shape)


def time_axis(graph: Graph, params: Params, xs: Any) -> tuple[str, int]:
    """The data input that reaches all recurrent nodes step by step, and which axis time is.

    Raises:
        InvalidInputError: there is none, because a node between moves the axes or mixes them.
    """
    name, axes = _followed(graph, params, graph.given(xs))
    return name, axes[name][0]


def _followed(
    graph: Graph, params: Params, given: Mapping[str, Any]
) -> tuple[str, dict[str, Axes]]:
    """The data input that reaches all recurrent nodes step by step, and where its axes go."""
    shapes: dict[str, tuple[int, ...]] = {}
    graph = dataclasses.replace(graph, exchanged=None)

    def trace(params: Params, given: dict[str, Any]) -> None:
        values = graph.values(params, given, {}, None, Context())[1]
        shapes.update({name: tuple(value.shape) for name, value in values.items()})

    jax.eval_shape(trace, params, dict(given))
    lost: list[Node] = []
    for name in graph.data_inputs:
        for start in ((0, 1), (1, 0)):
            if len(shapes[name]) < 2:
                continue
            axes = {name: start}
            first = _first_lost(graph, shapes, axes)
            if first is None:
                return name, axes
            lost.append(first)
    # Of the two ways to read the axes of an input, the one that goes further is what was meant.
    where = "no node gets"
    if lost:
        where = f"node {max(lost, key=graph.nodes.index).name} does not get"
    raise InvalidInputError(
        f"lengths, mask and resets mark steps of time, but {where} the steps of an input as they "
        "are given; leave them out, or use the graph's own sequence_lens"
    )


def _first_lost(graph: Graph, shapes: Mapping[str, Any], axes: dict[str, Axes]) -> Node | None:
    """The first recurrent node whose X does not have the axes of an input where it expects them."""
    for node in graph.nodes:
        if isinstance(node, RecurrentNode):
            if axes.get(node.inputs[0]) != ((1, 0) if node.layout else (0, 1)):
                return node
            if node.outputs[0]:
                axes[node.outputs[0]] = (1, 0) if node.layout else (0, 2)
        elif isinstance(node, LayerNode):
            _keep(node, axes, axes.get(node.inputs[0]))
        elif isinstance(node, Operation) and node.outputs[0] in shapes:
            _keep(node, axes, _axes_of(node, graph.opset, shapes, axes))
    return None


def _keep(node: Node, axes: dict[str, Axes], found: Axes | None) -> None:
    if found is not None:
        axes.update(dict.fromkeys(node.outputs, found))


def _axes_of(
    node: Operation, opset: int, shapes: Mapping[str, Any], axes: Mapping[str, Axes]
) -> Axes | None:
    """Where the output has them, or None if it is not certain that it does."""
    inputs = [name for name in node.inputs if name]
    marked = [name for name in inputs if name in axes]
    if not marked:
        return None
    first = axes[marked[0]]
    before, after = shapes[marked[0]], shapes[node.outputs[0]]
    if node.op_type in _POINTWISE:
        return first
    if node.op_type in _BINARY or node.op_type == "Concat":
        shift = {name: len(after) - len(shapes[name]) for name in inputs}
        places = {tuple(n + shift[name] for n in axes[name]) for name in marked}
        others_move = any(
            n != 1
            for name in inputs
            if name not in axes
            for n in _sizes(shapes[name], after, first)
        )
        if len(places) > 1 or (others_move and node.op_type == "Concat"):
            return None
        time, batch = places.pop()
        along = node.arguments().get("axis", 1) % len(after)
        concatenated = node.op_type == "Concat" and along in (time, batch)
        return None if concatenated else (time, batch)
    if node.op_type == "MatMul" and marked == inputs[:1]:
        return first if len(before) == len(after) and max(first) < len(before) - 1 else None
    if node.op_type == "Transpose":
        order = node.arguments().get("perm", tuple(reversed(range(len(before)))))
        return _pair(list(order).index(n) for n in first)
    if node.op_type in ("Softmax", "LogSoftmax"):
        along = node.arguments().get("axis", -1 if opset >= 13 else 1) % len(before)
        mixed = {along} if opset >= 13 else {*range(along, len(before))}
        return None if mixed & set(first) else first
    if node.op_type in ("Squeeze", "Unsqueeze", "Reshape", "Flatten"):
        return _same_sizes(before, after, first)
    if node.op_type == "Gather" and inputs[1] in marked and inputs[0] not in axes:
        axis = node.arguments().get("axis", 0) % len(shapes[inputs[0]])
        return _pair(n + axis for n in first)
    if node.op_type == "OneHot" and marked == inputs[:1]:
        axis = node.arguments().get("axis", -1) % len(after)
        return _pair(n + (n >= axis) for n in first)
    return None


def _sizes(shape: tuple[int, ...], after: tuple[int, ...], axes: Axes) -> list[int]:
    """The sizes of an unmarked input along time and batch: 1 where it is the same for all."""
    shift = len(after) - len(shape)
    return [shape[n - shift] if n >= shift else 1 for n in axes]


def _pair(places: Any) -> Axes:
    time, batch = places
    return time, batch


def _same_sizes(before: tuple[int, ...], after: tuple[int, ...], axes: Axes) -> Axes | None:
    """Behind a reshape an axis is where as many elements stand before it as did."""
    found = []
    for axis in axes:
        leading = int(np.prod(before[:axis], dtype=np.int64))
        places = [
            i
            for i, size in enumerate(after)
            if size == before[axis] and int(np.prod(after[:i], dtype=np.int64)) == leading
        ]
        if not places:
            return None
        found.append(places[0] if before[axis] == 1 else places[-1])
    return _pair(found) if len(set(found)) == 2 else None
