"""Where time and batch are in the values of a graph: lengths and masks mean nothing elsewhere."""

from collections.abc import Mapping, Sequence

from rnnjax.errors import InvalidInputError
from rnnjax.interop.onnx.at import At
from rnnjax.interop.onnx.axes import Axes, Marks, Shape
from rnnjax.interop.onnx.nodes import LayerNode, Node, Operation, RecurrentNode, runs_layers
from rnnjax.interop.onnx.operators import OPERATORS


def follow(
    nodes: Sequence[Node], opset: int, shapes: Mapping[str, Shape], entries: Sequence[str]
) -> tuple[str, dict[str, Axes]]:
    """The one of the inputs ``entries`` that reaches all recurrent nodes step by step.

    Its name, and by the name of each value of ``shapes`` that has its axes, where these are.
    """
    misses: list[Node] = []
    for name in entries:
        for start in ((0, 1), (1, 0)) if len(shapes[name]) >= 2 else ():
            axes = {name: start}
            miss = _first_missed(nodes, opset, shapes, axes)
            if miss is None:
                return name, axes
            misses.append(miss)
    # Of the two ways to read the axes of an input, the one that goes further is what was meant.
    where = "no node gets"
    if misses:
        where = f"node {max(misses, key=list(nodes).index).name} does not get"
    raise InvalidInputError(
        f"lengths, mask and resets mark steps of time, but {where} the steps of an input as they "
        "are given; leave them out, or use the graph's own sequence_lens"
    )


def _first_missed(
    nodes: Sequence[Node], opset: int, shapes: Mapping[str, Shape], axes: dict[str, Axes]
) -> Node | None:
    """The first recurrent node whose X does not have the axes of an input where it expects them."""
    for node in nodes:
        if isinstance(node, RecurrentNode):
            if axes.get(node.inputs[0]) != ((1, 0) if node.layout else (0, 1)):
                return node
            if node.outputs[0]:
                axes[node.outputs[0]] = (1, 0) if node.layout else (0, 2)
            continue
        if runs_layers(node):  # which nothing follows into
            return node
        found = None
        if isinstance(node, LayerNode):
            found = axes.get(node.inputs[0])
        elif isinstance(node, Operation) and node.outputs[0] in shapes:
            found = _axes_of(node, opset, shapes, axes)
        if found is not None:  # of several outputs, those that are as large there as the first
            size = [shapes[node.outputs[0]][n] for n in found]
            for name in filter(shapes.__contains__, node.outputs):
                shape = shapes[name]
                if len(shape) > max(found) and [shape[n] for n in found] == size:
                    axes[name] = found
    return None


def _axes_of(
    node: Operation, opset: int, shapes: Mapping[str, Shape], axes: Mapping[str, Axes]
) -> Axes | None:
    inputs = [name for name in node.inputs if name]
    marks = Marks(
        At(node.name, opset, node.arguments()),
        tuple(shapes[name] for name in inputs),
        tuple(axes.get(name) for name in inputs),
        shapes[node.outputs[0]],
    )
    return OPERATORS[node.op_type].rule(marks) if marks.places else None
