"""From an imported ONNX graph to layers in a row, which can be written in other formats."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from rnnjax.errors import InteropError, InvalidInputError
from rnnjax.interop.layers import Activation, Dense, Dropout, Embedding, Layer, OneHotIds, Recurrent
from rnnjax.interop.model import Model, Sequential
from rnnjax.interop.onnx.activations import function_of
from rnnjax.interop.onnx.files import dtype_of
from rnnjax.interop.onnx.graph import CONSTANTS, Graph
from rnnjax.interop.onnx.nodes import LayerNode, Node, Operation, RecurrentNode
from rnnjax.interop.onnx.operators import OPERATORS, kind_of
from rnnjax.layers import Bidirectional
from rnnjax.layers import Dropout as DropoutRate

# Of each axis of a value: what it is. That is all that Transpose, Squeeze and Reshape change.
Axes = tuple[str, ...]
_TIME, _BATCH, _FEATURES, _DIRECTIONS = "time", "batch", "features", "directions"
_ONE_STEP = "one step"  # an axis of time of which only the last is left

_MOVES = frozenset({"permute", "squeeze", "reshape", "flatten"})  # axes, by `Operator.kind`


def to_sequential(model: Model) -> Model:
    """The same model as layers in a row, where its graph is one: time first, whatever it had.

    It can then be written by the other modules of `rnnjax.interop`. What only moves axes is left
    out: the result takes ``(time, batch, features)``, or ids ``(time, batch)``, and gives
    ``(time, batch, size)``, or ``(batch, size)`` behind a last output. States are in the carry, and
    an input of lengths becomes the argument ``lengths``.

    Args:
        model: as `rnnjax.interop.onnx.load` returned it, perhaps with other parameters.

    Returns:
        a model whose network is a `rnnjax.interop.Sequential`, with the layers and parameters of
        ``model`` by their names.

    Raises:
        InteropError: the graph is no row of layers; it names the first node that does not fit.
        InvalidInputError: ``model`` is not an imported graph.
    """
    return find_layers(model).model


class Found(NamedTuple):
    """The layers that were found in a graph."""

    model: Model  # of these layers, which takes and gives time, batch and features in this order
    takes: Axes  # what the axes of the graph's input are: "time", "batch", "features"
    gives: Axes  # the same of its output, which may have others of size 1


def find_layers(model: Model) -> Found:
    """See `to_sequential`; returns as well which axes the graph has."""
    graph = model.network
    if not isinstance(graph, Graph):
        raise InvalidInputError(
            "to_sequential needs a model that came from rnnjax.interop.onnx.load, but this one is "
            f"a {type(graph).__name__}"
        )
    if len(graph.data_inputs) != 1 or len(graph.outputs) != 1:
        raise InteropError(
            f"a row of layers has one input and one output, but the graph has the inputs "
            f"{list(graph.data_inputs)} and the outputs {list(graph.outputs)}"
        )
    refusals = []
    for axes in _possible_axes(graph):
        walk = _Walk(model, graph, axes)
        try:
            chain = walk.layers()
        except _MisfitError as misfit:
            refusals.append((misfit.index, misfit))
            continue
        params = {layer.name: model.params.get(layer.name, {}) for layer in chain}
        kept = {name: own for name, own in params.items() if own}
        return Found(Model(Sequential(tuple(chain)), kept), axes, walk.axes)
    raise InteropError(str(max(refusals, key=lambda refusal: refusal[0])[1]))


def _possible_axes(graph: Graph) -> list[Axes]:
    """The input says how many axes it has at best, and never which is time."""
    (one,) = (one for one in graph.inputs if one.role == "data")
    orders = [(_TIME, _BATCH), (_BATCH, _TIME)]
    ids = np.dtype(one.dtype).kind in "iu" if one.dtype != "bfloat16" else False
    rank = (2 if ids else 3) if one.shape is None else len(one.shape)
    return [order if rank == 2 else (*order, _FEATURES) for order in orders]


class _MisfitError(InteropError):
    """A node does not fit, while other axes of the input might."""

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message)
        self.index = index


class _Walk:
    """From the input to the output, along the one value that goes from layer to layer."""

    def __init__(self, model: Model, graph: Graph, axes: Axes) -> None:
        self.graph = graph
        self.value = graph.data_inputs[0]
        self.axes = axes
        self.known = {name: constant.array for name, constant in graph.constants}
        arrays = model.params.get(CONSTANTS, {})
        self.fixed = {*self.known, *arrays}
        self.zeros = {
            name for name, array in (self.known | dict(arrays)).items() if not np.any(array)
        }
        self.states = {one.name for one in graph.inputs if one.role == "state"}
        self.lengths = {one.name for one in graph.inputs if one.role == "lengths"}
        self.chain: list[Layer] = []
        self.index = 0

    def layers(self) -> list[Layer]:
        """The layers."""
        for index, node in enumerate(self.needed()):
            self.index = index
            if isinstance(node, RecurrentNode):
                self.pass_recurrent(node)
            elif isinstance(node, LayerNode):
                self.pass_layer(node)
            elif isinstance(node, Operation) and not self.prepares_state(node):
                self.pass_operation(node)
        done = self.value == self.graph.outputs[0] and self.axes[-1:] == (_FEATURES,)
        if not done or self.has_loose_directions():
            raise _MisfitError(
                self.index,
                f"the output {self.graph.outputs[0]!r} is not what the last layer makes, with the "
                "features as its last axis and directions concatenated",
            )
        if not self.chain:
            raise _MisfitError(self.index, "the graph has no layers")
        return self.chain

    def needed(self) -> list[Node]:
        """The nodes from which the output follows."""
        wanted = {self.graph.outputs[0]}
        nodes = []
        for node in reversed(self.graph.nodes):
            if wanted & set(filter(None, node.outputs)):
                nodes.append(node)
                wanted |= set(node.inputs)
        return nodes[::-1]

    def misfit(self, node: Node, why: str) -> _MisfitError:
        """An error that names the node."""
        return _MisfitError(self.index, f"the graph is no row of layers: at node {node.name} {why}")

    def prepares_state(self, node: Operation) -> bool:
        """Whether it rearranges a state that comes in, or makes zeros or shapes."""
        inputs = tuple(name for name in node.inputs if name)
        operator = OPERATORS[node.op_type]
        if operator.kind == "shape":  # known when a graph runs, and only then
            self.fixed |= set(node.outputs)
        elif operator.kind == "fill":
            if np.any(node.arguments().get("value", 0)):
                return False
            self.zeros |= set(node.outputs)
        elif operator.moves and inputs[0] in self.zeros:
            if not self.zeros.issuperset(operator.moved(inputs)):
                return False
            self.zeros |= set(node.outputs)
        elif inputs and self.states & set(inputs):
            self.states |= set(node.outputs)
        elif inputs and self.fixed.issuperset(inputs):
            self.fixed |= set(node.outputs)
        else:
            return False
        return True

    def constant(self, node: Node, name: str) -> list[int]:
        """The integers of an input that has to be known."""
        array = self.known.get(name)
        if array is None:
            raise self.misfit(node, "the result depends on values that are not constant")
        return [int(n) for n in array.reshape(-1)]

    def take(self, output: str, axes: Sequence[str]) -> None:
        """Go on to the output of a node."""
        self.value, self.axes = output, tuple(axes)

    # --- Layers ---

    def pass_recurrent(self, node: RecurrentNode) -> None:
        """RNN, GRU or LSTM, whose outputs or last outputs are read."""
        layer = self.graph.layers[node.layer]
        assert isinstance(layer, Recurrent)
        steps = (_BATCH, _TIME) if node.layout else (_TIME, _BATCH)
        x, lengths, *states = node.inputs
        if x != self.value or self.axes != (*steps, _FEATURES):
            raise self.misfit(
                node,
                f"X is not what the layer before makes, with axes {', '.join(steps)}, features",
            )
        if node.weights is not None:
            raise self.misfit(node, "the weights are not parameters of this node alone")
        if lengths and lengths not in self.lengths:
            raise self.misfit(node, "the lengths of sequences are part of the graph")
        if not all(not name or name in self.states | self.zeros for name in states):
            raise self.misfit(node, "the initial state is neither an input nor zero")
        read = self.read_of(node)
        if read == 0:
            order: Axes = (*steps, _DIRECTIONS) if node.layout else (_TIME, _DIRECTIONS, _BATCH)
        elif read == 1:
            layer = dataclasses.replace(layer, return_sequences=False)
            order = (_BATCH, _DIRECTIONS) if node.layout else (_DIRECTIONS, _BATCH)
        else:
            raise self.misfit(node, "not its outputs or its last output alone are read")
        self.chain.append(layer)
        self.take(node.outputs[read], (*order, _FEATURES))

    def read_of(self, node: Node) -> int | None:
        """Which one of its outputs the rest of the graph reads."""
        later = self.needed()[self.index + 1 :]
        names = {name for other in later for name in other.inputs} | {self.graph.outputs[0]}
        read = [i for i, name in enumerate(node.outputs) if name and name in names]
        return read[0] if len(read) == 1 else None

    def pass_layer(self, node: LayerNode) -> None:
        """A Dense layer or the look-up of an Embedding."""
        layer = self.graph.layers[node.layer]
        self.check_flow(node)
        if isinstance(layer, Embedding):
            if self.axes[-1] == _FEATURES:
                raise self.misfit(node, "ids with features are looked up")
            self.axes = (*self.axes, _FEATURES)
        elif self.axes[-1] != _FEATURES:
            raise self.misfit(node, "the last axis is not that of features")
        self.chain.append(layer)
        self.take(node.outputs[0], self.axes)

    def check_flow(self, node: Node) -> None:
        """The value from the layer before is the first input, and the others are constant."""
        others = {name for name in node.inputs[1:] if name}
        if node.inputs[0] != self.value or not others <= self.fixed:
            raise self.misfit(node, "something else than the layer before comes in")
        moves = isinstance(node, Operation) and kind_of(node.op_type) in _MOVES
        if not moves and self.has_loose_directions():
            raise self.misfit(node, "two directions come in that are not concatenated")

    def has_loose_directions(self) -> bool:
        """Whether two directions have an axis of their own, which ours never have."""
        return _DIRECTIONS in self.axes and not self.is_one_direction()

    def pass_operation(self, node: Operation) -> None:
        """What moves axes, an activation, one-hot vectors, or dropout."""
        self.check_flow(node)
        kind = kind_of(node.op_type)
        if kind == "same":
            self.take(node.outputs[0], self.axes)
        elif kind == "type":
            to = dtype_of(node.arguments()["to"], f"what node {node.name} casts to")
            if _FEATURES in self.axes and not jnp.issubdtype(to, jnp.floating):
                raise self.misfit(node, f"features become {to}")
            self.take(node.outputs[0], self.axes)
        elif kind == "dropout":
            self.pass_dropout(node)
        elif kind == "one-hot":
            self.pass_one_hot(node)
        elif kind in ("look-up", "part"):
            self.pass_last_step(node)
        elif kind in _MOVES:
            self.take(node.outputs[0], self.moved(node))
        else:
            self.pass_activation(node)

    def pass_activation(self, node: Operation) -> None:
        """A function of the features, by a Dense layer right before."""
        numbers, operator = node.arguments(), OPERATORS[node.op_type]
        function: Any = operator.activation
        if function is None:
            raise self.misfit(node, f"{node.op_type} is not a layer")
        if isinstance(function, type):
            function = function_of(function, numbers.get("alpha"), numbers.get("beta"))
        elif operator.kind == "softmax":
            axis = numbers.get("axis", -1 if self.graph.opset >= 13 else 1)
            if axis % len(self.axes) != len(self.axes) - 1 or self.axes[-1] != _FEATURES:
                raise self.misfit(node, "the sum is over another axis than that of features")
        last = self.last
        if isinstance(last, Dense) and last.activation == "linear":
            self.chain[-1] = dataclasses.replace(last, activation=function)
        else:
            self.chain.append(Activation(self.new_name(node), function))
        self.take(node.outputs[0], self.axes)

    def new_name(self, node: Operation) -> str:
        """A name that no layer has."""
        taken = {*self.graph.layers, *(layer.name for layer in self.chain)}
        base = name = node.op_type.lower()
        count = 0
        while name in taken:
            count += 1
            name = f"{base}_{count}"
        return name

    def pass_dropout(self, node: Operation) -> None:
        """Dropout, which trains with a key."""
        ratio = node.arguments().get("ratio", 0.5)
        if len(node.inputs) > 1 and node.inputs[1]:
            array = self.known.get(node.inputs[1])
            ratio = None if array is None else float(array)
        if ratio is None or not 0 <= ratio < 1:
            raise self.misfit(node, f"the rate of dropout is {ratio}")
        if ratio > 0:
            rate = DropoutRate(float(np.format_float_positional(np.float32(ratio))))
            self.chain.append(Dropout(self.new_name(node), rate))
        self.take(node.outputs[0], self.axes)

    def pass_one_hot(self, node: Operation) -> None:
        """Ids as one-hot vectors."""
        (size,) = self.constant(node, node.inputs[1])
        values = self.known.get(node.inputs[2])
        if values is None or values.tolist() != [0, 1]:
            raise self.misfit(node, "the vectors are not of 0 and 1")
        if node.arguments().get("axis", -1) not in (-1, len(self.axes)) or _FEATURES in self.axes:
            raise self.misfit(node, "the vectors do not make a last axis")
        self.chain.append(OneHotIds(self.new_name(node), size))
        self.take(node.outputs[0], (*self.axes, _FEATURES))

    # --- Axes ---

    def pass_last_step(self, node: Operation) -> None:
        """One step of a recurrent layer's outputs: the last that ran."""
        arguments = node.arguments()
        if kind_of(node.op_type) == "look-up":
            axis = arguments.get("axis", 0)
            places = self.constant(node, node.inputs[1])
            scalar = self.known[node.inputs[1]].ndim == 0
            is_last, is_first = places == [-1], places == [0]
        else:
            given = {key: arguments.get(key) for key in ("starts", "ends", "axes", "steps")}
            for key, name in zip(given, node.inputs[1:], strict=False):
                given[key] = self.constant(node, name) if name else None
            places, ends = list(given["starts"] or ()), list(given["ends"] or ())
            if given["steps"] == [-1] and places == [-1] and ends[:1] <= [-(2**31 - 1)]:
                self.pass_flip(node, (given["axes"] or [0])[0])
                return
            if given["steps"] not in (None, [1]) or len(places) != 1 or len(ends) != 1:
                raise self.misfit(node, "more than one step is taken")
            axis, scalar = (given["axes"] or [0])[0], False
            is_last = places == [-1] and ends[0] >= 2**31 - 1
            is_first = places == [0] and ends == [1]
        axis %= len(self.axes)
        if self.axes[axis] == _DIRECTIONS and self.is_one_direction() and is_first and scalar:
            self.take(node.outputs[0], self.without(axis))
            return
        last = self.last
        if not isinstance(last, Recurrent) or isinstance(last.cell, Bidirectional):
            raise self.misfit(node, "a part of the values is taken")
        if self.axes[axis] != _TIME or not (is_first if last.reverse else is_last):
            raise self.misfit(node, "another step is taken than the last that ran")
        # Zero where a row is shorter than that, as the step of an operator's outputs is.
        self.chain[-1] = dataclasses.replace(last, return_sequences=False, masked_outputs="zero")
        left = self.without(axis)
        one_step = (*left[:axis], _ONE_STEP, *left[axis:])
        self.take(node.outputs[0], left if scalar else one_step)

    def pass_flip(self, node: Operation, axis: int) -> None:
        """The outputs of a reversed layer in the order in which they were computed."""
        last = self.last
        flips = isinstance(last, Recurrent) and last.reverse and last.keep_order
        if not flips or not isinstance(last, Recurrent) or self.axes[axis] != _TIME:
            raise self.misfit(node, "steps are turned round that no reversed layer has made")
        self.chain[-1] = dataclasses.replace(last, keep_order=False)
        self.take(node.outputs[0], self.axes)

    @property
    def last(self) -> Layer | None:
        """The layer before."""
        return self.chain[-1] if self.chain else None

    def without(self, axis: int) -> Axes:
        return self.axes[:axis] + self.axes[axis + 1 :]

    def is_one_direction(self) -> bool:
        last = self.last
        return isinstance(last, Recurrent) and not isinstance(last.cell, Bidirectional)

    def moved(self, node: Operation) -> Axes:
        """The axes behind Transpose, Squeeze, Reshape or Flatten."""
        arguments, kind = node.arguments(), kind_of(node.op_type)
        rank = len(self.axes)
        if kind == "permute":
            order = arguments.get("perm", tuple(reversed(range(rank))))
            return tuple(self.axes[n] for n in order)
        if kind == "squeeze":
            return self.squeezed(node)
        if kind == "flatten":
            merged = self.axes if rank == 2 else self.merged()
            if len(merged) != 2 or arguments.get("axis", 1) not in (1, 1 - rank):
                raise self.misfit(node, "axes are joined that belong to different things")
            return merged
        sizes = list(arguments.get("shape") or self.constant(node, node.inputs[1]))
        kept = self.merged()
        joins = len(kept) < rank and len(sizes) == len(kept)
        # [-1, size] does as well where but the batch stands before the features.
        last = self.last
        whole = isinstance(last, Recurrent) and [-1, last.cell.output_size] == sizes
        if not joins or not (not any(sizes[:-1]) or whole):
            raise self.misfit(node, f"values are arranged as {sizes}")
        return kept

    def squeezed(self, node: Operation) -> Axes:
        axes = node.arguments().get("axes")
        if axes is None and len(node.inputs) > 1 and node.inputs[1]:
            axes = self.constant(node, node.inputs[1])
        if axes is None:
            raise self.misfit(node, "all axes of size 1 go, whatever they are")
        gone = {n % len(self.axes) for n in axes}
        for n in gone:
            one = self.axes[n] == _DIRECTIONS and self.is_one_direction()
            if not (one or self.axes[n] == _ONE_STEP):
                raise self.misfit(node, f"the axis of {self.axes[n]} is taken away")
        return tuple(label for n, label in enumerate(self.axes) if n not in gone)

    def merged(self) -> Axes:
        """Directions and features as one axis, where they stand together."""
        if self.axes[-2:] == (_DIRECTIONS, _FEATURES):
            return (*self.axes[:-2], _FEATURES)
        return self.axes
