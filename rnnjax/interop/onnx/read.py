"""From an ONNX message to a `Graph`, its layers and their parameters."""

import collections
import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.cells.base import Cell, Params
from rnnjax.errors import InteropError
from rnnjax.interop.arrays import as_jax
from rnnjax.interop.layers import Layer, Recurrent
from rnnjax.interop.model import Input
from rnnjax.interop.onnx.at import At, Budget, traced_dtype
from rnnjax.interop.onnx.files import dtype_of, import_onnx, read_tensor
from rnnjax.interop.onnx.graph import (
    CONSTANTS,
    WEIGHTS,
    Body,
    Constant,
    Constants,
    Graph,
    Node,
    all_nodes,
    check_weights,
)
from rnnjax.interop.onnx.operators import OPERATORS, run_operator
from rnnjax.interop.onnx.recurrent import (
    RECURRENT,
    activations_from_onnx,
    cell_from_onnx,
    params_from_onnx,
)
from rnnjax.layers import Bidirectional

Scope = collections.ChainMap[str, str]
"""By each name that a graph sees, that of the value, which no other has."""

_TENSOR, _GRAPH = 4, 5  # AttributeProto.AttributeType
_CONSTANT = "Constant"  # the operator that only holds an array
_KNOWN = frozenset({_CONSTANT, *OPERATORS, *RECURRENT})


@dataclasses.dataclass(frozen=True, eq=False)
class Imported:
    """`Model.origin` of an imported model: the message, and how parameters belong to it."""

    model: Any
    slots: Mapping[str, tuple[str, ...]]  # by the layer, the names of its tensors; "" for none
    arrays: Mapping[str, np.ndarray]  # the tensors, as they came


def read_graph(model: Any, folder: pathlib.Path | None) -> tuple[Graph, Params, Imported]:
    """The network, its parameters, and what it takes to write them back."""
    opset = _read_opset(model)
    reader = _Reader(opset, folder)
    read = reader.nodes(model.graph, collections.ChainMap(), "")
    outputs = tuple(output.name for output in model.graph.output)
    inputs = _read_inputs(model.graph, reader.constants, read, outputs)
    alive = _folded(_alive(read, outputs), reader.constants, outputs, opset)
    layers = _Layers(reader, alive, outputs, inputs)
    nodes = tuple(map(layers.read, alive))
    static = layers.read_constants(nodes, outputs)
    states = {name for node in nodes if node.op_type in RECURRENT for name in node.outputs[1:]}
    graph = Graph(
        opset,
        tuple(inputs.values()),
        tuple(name for name in outputs if name not in states) or outputs,
        nodes,
        tuple(layers.layers.values()),
        static,
    )
    taken = {name for tensors in layers.slots.values() for name in tensors if name}
    arrays = {name: reader.constants[name] for name in taken}
    return graph, layers.params, Imported(model, layers.slots, arrays)


def _read_opset(model: Any) -> int:
    versions = {entry.domain: entry.version for entry in model.opset_import}
    version = versions.get("", versions.get("ai.onnx", 1))
    newest = import_onnx().defs.onnx_opset_version()
    if not 1 <= version <= newest:
        raise InteropError(
            f"the model is of ONNX's opset {version}, but the installed package onnx knows those "
            f"up to {newest}; update it, or convert the model"
        )
    return int(version)


def _read_inputs(
    graph: Any, constants: Mapping[str, Any], nodes: Sequence[Node], outputs: Sequence[str]
) -> dict[str, Input]:
    """The graph's inputs that are no initialisers."""
    inputs = {}
    for one in graph.input:
        if one.name in constants:
            continue
        what = f"input {one.name!r}"
        if one.name in inputs or not one.name or not one.type.HasField("tensor_type"):
            raise InteropError(f"{what} occurs twice, or is no array")
        described = one.type.tensor_type
        dtype = dtype_of(described.elem_type, what)
        traced_dtype(dtype, what)
        shape = None
        if described.HasField("shape"):
            # Some write 0 or -1 where a size is not fixed.
            shape = tuple(
                int(n.dim_value) if n.dim_value > 0 else None for n in described.shape.dim
            )
        inputs[one.name] = Input(one.name, shape, dtype.name)
    made = {name for node in nodes for name in node.outputs} | set(inputs) | set(constants)
    for name in outputs:
        if not name or name not in made:
            raise InteropError(f"nothing makes the graph's output {name!r}")
    if not outputs or len(set(outputs)) < len(outputs):
        raise InteropError("the graph has no outputs, or one of them twice")
    return inputs


def _alive(nodes: Sequence[Node], outputs: Iterable[str]) -> list[Node]:
    """The nodes from which an output follows."""
    wanted = set(outputs)
    alive = []
    for node in reversed(nodes):
        if wanted & set(filter(None, node.outputs)):
            alive.append(node)
            wanted |= set(node.reads)
    return alive[::-1]


def _folded(
    nodes: Sequence[Node], constants: dict[str, np.ndarray], outputs: Sequence[str], opset: int
) -> list[Node]:
    """The nodes without those that put together weights of recurrent nodes, which are computed."""
    readers: dict[str, list[Node]] = collections.defaultdict(list)
    for node in all_nodes(nodes):
        for name in filter(None, node.inputs):
            readers[name].append(node)
    weights: set[str] = set()  # what becomes part of such weights, and nothing else

    def becomes_weights(name: str) -> bool:
        return name not in outputs and all(
            name in (node.input(place) for place in WEIGHTS)
            if node.op_type in RECURRENT
            else node.op_type in _MOVES and weights.issuperset(filter(None, node.outputs))
            for node in readers[name]
        )

    for node in reversed(nodes):
        weights.update(filter(becomes_weights, filter(None, node.outputs)))
    for name, array in constants.items():
        if not jnp.issubdtype(array.dtype, jnp.floating) or becomes_weights(name):
            weights.add(name)
    budget = Budget(16 * sum(array.size for array in constants.values()), 0)
    rest = []
    for node in nodes:
        names = [*filter(None, (*node.inputs, *node.outputs))]
        known = all(name in constants for name in node.inputs if name)
        if node.op_type in _MOVES and known and weights.issuperset(names):
            at = At(node.label, opset, dict(node.attributes), len(node.outputs), budget)
            inputs = [constants[name] if name else None for name in node.inputs]
            made = run_operator(node.op_type, at, inputs)
            constants.update(zip(node.outputs, made, strict=False))
        else:
            rest.append(node)
    return rest


# --- Nodes ---


class _Reader:
    """Reads the nodes of a graph and of those inside of it, and the arrays that they hold."""

    def __init__(self, opset: int, folder: pathlib.Path | None) -> None:
        self.opset = opset
        self.folder = folder  # where external data may lie
        self.constants: dict[str, np.ndarray] = {}  # initialisers, and what Constant nodes hold
        self.initializers: set[str] = set()  # the names of the former
        self.made: set[str] = set()  # the names of all values
        self.bodies = itertools.count()

    def nodes(self, graph: Any, scope: Scope, prefix: str) -> list[Node]:
        """The nodes of a graph; ``scope`` has by each name that it sees that of the value."""
        if len(graph.sparse_initializer) > 0:
            raise InteropError("sparse initialisers are not read here; store them densely")
        for tensor in graph.initializer:
            name = prefix + _text(tensor.name)
            if not tensor.name or name in self.constants:
                raise InteropError(
                    f"two initialisers are named {tensor.name!r}, or one has no name"
                )
            self.constants[name] = read_tensor(tensor, self.folder, f"initialiser {tensor.name!r}")
            self.initializers.add(name)
            scope[tensor.name] = name
        scope.update((one.name, prefix + _text(one.name)) for one in graph.input)
        self.made |= {prefix + name for name in scope.maps[0]}
        read = [self.node(node, i, scope, prefix) for i, node in enumerate(graph.node)]
        return [node for node in read if node.op_type != _CONSTANT]

    def node(self, node: Any, i: int, scope: Scope, prefix: str) -> Node:
        """One node, checked."""
        label = f"{node.name!r} ({node.op_type})" if node.name else f"{i} ({node.op_type})"
        if node.domain not in ("", "ai.onnx") or node.op_type not in _KNOWN:
            where = f" of {node.domain!r}" if node.domain else ""
            raise InteropError(
                f"node {label}: the operator {node.op_type}{where} is not read here; export the "
                f"model without it, or run it in onnxruntime; read are {', '.join(sorted(_KNOWN))}"
            )
        missing = [name for name in node.input if name and name not in scope]
        if missing:
            raise InteropError(
                f"node {label}: no earlier node, input or initialiser makes its input "
                f"{missing[0]!r}; the nodes have to be in an order in which they can run"
            )
        read = Node(
            node.op_type,
            label,
            tuple(scope[name] if name else "" for name in node.input),
            tuple(prefix + _text(name) if name else "" for name in node.output),
            tuple((one.name, self.attribute(one, label, scope)) for one in node.attribute),
            node.name if node.op_type in RECURRENT else "",
        )
        _check_against_schema(node, label, self.opset)  # whose tensors have their data now
        if node.op_type == "If" and any(body.inputs for body in read.bodies):
            raise InteropError(
                f"node {label}: one of its branches takes inputs, but a branch has none"
            )
        to = read.get("to", 1)  # a type, and a name before opset 6
        dtype_of(to if isinstance(to, int) else 0, f"what node {label} casts to")
        for name in filter(None, node.output):
            if prefix + name in self.made or name in scope.maps[0]:
                raise InteropError(f"node {label}: its output {name!r} is made twice")
            self.made.add(prefix + name)
            scope[name] = prefix + name
        if node.op_type == _CONSTANT:
            self.constants[read.outputs[0]] = _constant(read)
        return read

    def attribute(self, one: Any, label: str, scope: Scope) -> Any:
        """The value of an attribute, that can be hashed."""
        what = f"attribute {one.name!r} of node {label}"
        if one.ref_attr_name:
            raise InteropError(f"{what} is one of a function, which is not read here")
        if one.type == _GRAPH:
            return self.body(one.g, label, scope, body_prefix(one.name, self.bodies))
        if one.type == _TENSOR:
            return Constant.of(read_tensor(one.t, self.folder, what))
        if one.type not in _ATTRIBUTES:
            raise InteropError(f"{what} holds something that is not read here")
        try:
            return _ATTRIBUTES[one.type](one)
        except UnicodeDecodeError:
            raise InteropError(f"{what} is no text") from None

    def body(self, graph: Any, label: str, scope: Scope, prefix: str) -> Body:
        """A graph inside of a node."""
        inner = scope.new_child()
        nodes = self.nodes(graph, inner, prefix)
        missing = [one.name for one in graph.output if one.name not in inner]
        if missing:
            raise InteropError(f"node {label}: nothing makes the output {missing[0]!r} inside it")
        inputs = tuple(inner[one.name] for one in graph.input)
        return Body(
            tuple(name for name in inputs if name not in self.constants),
            tuple(inner[one.name] for one in graph.output),
            tuple(nodes),
        )


def _text(name: Any) -> str:
    if not isinstance(name, str):  # bytes that are no UTF-8
        raise InteropError(f"the name {name!r} of a value is no text")
    return name


def body_prefix(attribute: str, bodies: Iterator[int]) -> str:
    """What stands before the names in a graph inside of a node; no two graphs have the same."""
    return f"{attribute}{next(bodies)}/"


# By AttributeProto.AttributeType; tensors and graphs are read elsewhere.
_ATTRIBUTES: Mapping[int, Callable[[Any], Any]] = {
    1: lambda one: float(one.f),
    2: lambda one: int(one.i),
    3: lambda one: one.s.decode(),
    6: lambda one: tuple(map(float, one.floats)),
    7: lambda one: tuple(map(int, one.ints)),
    8: lambda one: tuple(s.decode() for s in one.strings),
}


def _constant(node: Node) -> np.ndarray:
    """What a Constant node holds."""
    for name, value in node.attributes:
        if isinstance(value, Constant):
            return value.array
        if name.removesuffix("s") in ("value_float", "value_int"):
            return np.asarray(value, np.float32 if "float" in name else np.int64)
    raise InteropError(
        f"node {node.label}: a constant that is neither numbers nor an array is not read here"
    )


def _check_against_schema(node: Any, label: str, opset: int) -> None:
    """Raise unless the node is what ONNX's own description of its operator says."""
    if node.op_type in ("If", "Loop", "Scan"):
        return  # those inside of it are checked one by one
    checker = import_onnx().checker
    context = checker.C.CheckerContext()
    context.ir_version, context.opset_imports = 8, {"": opset}
    try:
        checker.check_node(node, context)
    except (checker.ValidationError, UnicodeDecodeError) as error:  # whose words may be no text
        raise InteropError(f"node {label}: {str(error).splitlines()[0]}") from None


# --- Layers and parameters ---

_PRODUCTS = ("MatMul", "Gemm", "Conv")
_WITH_WEIGHTS = (*_PRODUCTS, *RECURRENT, "Gather", "PRelu")


class _Layers:
    """Makes layers of the recurrent nodes, and finds the arrays that are parameters."""

    def __init__(
        self,
        reader: _Reader,
        nodes: Sequence[Node],
        outputs: Sequence[str],
        inputs: Mapping[str, Input],
    ) -> None:
        self.constants = reader.constants
        self.initializers = reader.initializers
        self.inputs = inputs
        self.uses = _count_uses(nodes, outputs)
        self.readers: dict[str, list[Node]] = collections.defaultdict(list)
        self.makers: dict[str, str] = {}
        for node in all_nodes(nodes):
            for name in filter(None, node.inputs):
                self.readers[name].append(node)
            self.makers.update((name, node.op_type) for name in node.outputs)
        self.layers: dict[str, Layer] = {}
        self.params: dict[str, Any] = {}
        self.slots: dict[str, tuple[str, ...]] = {}
        self.namesakes: collections.Counter[str] = collections.Counter()

    def take(self, layer: Layer, tensors: tuple[str, ...], params: Mapping[str, Any]) -> None:
        """Let a layer have parameters that come from those tensors."""
        for name in filter(None, tensors):
            traced_dtype(self.constants[name].dtype, "its parameters are")
        self.layers[layer.name] = layer
        self.slots[layer.name] = tensors
        self.params[layer.name] = jax.tree.map(as_jax, params)

    def read(self, node: Node) -> Node:
        """The node with layers for what is recurrent, in it as well."""
        if node.op_type in RECURRENT:
            return self.read_recurrent(node)
        attributes = tuple(
            (
                name,
                dataclasses.replace(value, nodes=tuple(map(self.read, value.nodes)))
                if isinstance(value, Body)
                else value,
            )
            for name, value in node.attributes
        )
        return dataclasses.replace(node, attributes=attributes)

    def read_recurrent(self, node: Node) -> Node:
        """The node with its layer, which has its weights unless others read them as well."""
        direction = node.get("direction", "forward")
        if direction not in ("forward", "reverse", "bidirectional"):
            raise InteropError(f"node {node.label}: {direction!r} is no direction")
        if node.get("layout", 0):
            raise InteropError(
                f"node {node.label}: its layout has the batch first, which is not read here; "
                "transpose around it, as exporters do"
            )
        names = tuple(node.input(place) for place in WEIGHTS)
        arrays = [self.constants.get(name) for name in names]
        owned = all(
            not name or (array is not None and self.uses[name] == 1)
            for name, array in zip(names, arrays, strict=True)
        )
        cell = self.cell(node, names, arrays, 2 if direction == "bidirectional" else 1, owned)
        layer = Recurrent(self.layer_name(node), cell, reverse=direction == "reverse")
        check_weights(node, layer, arrays)
        self.layers[layer.name] = layer
        if not owned:
            return dataclasses.replace(node, layer=layer.name)
        self.take(layer, names, params_from_onnx(cell, *arrays))
        inputs = tuple("" if i in WEIGHTS else name for i, name in enumerate(node.inputs))
        return dataclasses.replace(node, layer=layer.name, inputs=inputs)

    def layer_name(self, node: Node) -> str:
        """A name for people: ``lstm`` of ``/lstm/LSTM``, and of a node without one."""
        parts = [part for part in node.layer.split("/") if part]
        last = parts[-1] if parts else node.op_type
        kind, _, number = last.partition("_")
        if kind == node.op_type and (number.isdigit() or not number):
            # The exporter's own name; what is before it is the module's.
            base = "/".join(parts[:-1]) or node.op_type.lower()
        else:
            base = "/".join(parts)
        name = base
        while name in self.layers or name == CONSTANTS:
            self.namesakes[base] += 1  # so that many nodes do not count from the start
            name = f"{base}_{self.namesakes[base]}"
        return name

    def cell(
        self,
        node: Node,
        names: tuple[str, ...],
        arrays: Sequence[Any],
        directions: int,
        owned: bool,
    ) -> Cell:
        """The cell, or both cells, from the attributes."""
        shapes = {name: one.shape for name, one in self.inputs.items()} | {
            name: array.shape
            for name, array in zip(names, arrays, strict=True)
            if array is not None
        }
        recurrent = shapes.get(names[1])
        given = recurrent[2] if recurrent is not None and len(recurrent) == 3 else None
        size = node.get("hidden_size", given)
        if size is None or not 0 < size <= 2**24:
            raise InteropError(
                f"node {node.label}: its hidden_size is {size}, but should be a positive number of "
                "units"
            )
        types = [array.dtype for array in arrays if array is not None]
        types += [jnp.dtype(self.inputs[name].dtype) for name in names if name in self.inputs]
        default = RECURRENT[node.op_type]
        activations = node.get("activations", default * directions)
        # ONNX's own default for one activation has two, whatever the direction.
        if len(default) == directions == 1 and activations == default * 2:
            activations = default
        try:
            if node.get("input_forget", 0) or node.input(7):
                raise InteropError(
                    "it has peepholes or an input_forget, which are not read here; run it in "
                    "onnxruntime, or write the LSTM of basic operators"
                )
            if len(activations) != len(default) * directions:
                raise InteropError(
                    f"it has {len(activations)} activations, but {node.op_type} takes "
                    f"{len(default) * directions} in {directions} directions"
                )
            numbers = (node.get(f"activation_{key}", ()) for key in ("alpha", "beta"))
            functions = activations_from_onnx(activations, *numbers)
            cells = [
                cell_from_onnx(
                    node.op_type,
                    int(size),
                    functions[i * len(default) : (i + 1) * len(default)],
                    biases=0 if not names[2] else 1 + (owned and _adds_two(arrays[2])),
                    reset_after=bool(node.get("linear_before_reset", 0)),
                    clip=node.get("clip"),
                    param_dtype=types[0] if types else jnp.float32,
                )
                for i in range(directions)
            ]
        except InteropError as error:
            raise InteropError(f"node {node.label}: {error}") from None
        if directions == 1:
            return cells[0]
        return Bidirectional(cells[0], None if cells[0] == cells[1] else cells[1])

    def read_constants(
        self, nodes: Sequence[Node], outputs: Sequence[str]
    ) -> tuple[tuple[str, Constant], ...]:
        """The arrays that nodes still read: weights become parameters, others are static."""
        names = [name for name in _count_uses(nodes, outputs) if name in self.constants]
        weights = {name: self.constants[name] for name in names if self.is_weight(name)}
        if weights:
            self.take(Constants(), tuple(weights), weights)
        return tuple((n, Constant.of(self.constants[n])) for n in names if n not in weights)

    def is_weight(self, name: str) -> bool:
        """Whether it is trained: floats, and no single number in somebody's program.

        The mean and variance of a BatchNormalization and the values of one-hot vectors are not.
        """
        array, readers = self.constants[name], self.readers[name]
        if not jnp.issubdtype(array.dtype, jnp.floating) or not array.size:
            return False
        if all(
            node.op_type == "OneHot"
            or (node.op_type == "BatchNormalization" and name in node.inputs[3:])
            for node in readers
        ):
            return not readers
        if name in self.initializers and array.size > 1:
            return True
        return array.ndim > 0 and any(
            node.op_type in _WITH_WEIGHTS
            or (
                node.op_type == "Add"
                and any(self.makers.get(other) in _PRODUCTS for other in node.inputs)
            )
            for node in readers
        )


def _adds_two(biases: np.ndarray) -> bool:
    """Whether the second bias of each gate is one: Keras has none, and its exporters write 0."""
    second = biases[:, biases.shape[1] // 2 :] if biases.ndim == 2 else biases
    return bool(np.any(second != 0))


def _count_uses(nodes: Iterable[Node], outputs: Iterable[str]) -> collections.Counter[str]:
    """How often each value is read, by nodes or as an output of the graph."""
    uses = collections.Counter(name for node in nodes for name in node.reads)
    uses.update(outputs)
    return uses


# What only puts elements elsewhere.
_MOVES = frozenset({
    "Cast", "Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split",
    "Squeeze", "Tile", "Transpose", "Unsqueeze",
})  # fmt: skip
