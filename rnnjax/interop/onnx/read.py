"""Read ONNX files that nobody vouches for, and make a `Graph` and its parameters of the message.

What a file declares is checked, then believed.
"""

import collections
import importlib
import math
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.errors import InteropError, InvalidInputError
from rnnjax.interop.arrays import as_jax
from rnnjax.interop.files import in_a_line, opened, package
from rnnjax.interop.layers import Layer, Recurrent
from rnnjax.interop.model import Input, Model
from rnnjax.interop.onnx.control import dtype_of, naming, traced_dtype
from rnnjax.interop.onnx.graph import CONSTANTS, Body, Graph, Node, all_nodes
from rnnjax.interop.onnx.operators import OPERATORS
from rnnjax.interop.onnx.recurrent import (
    PLACES,
    RECURRENT,
    cell_from_onnx,
    check_weights,
    params_from_onnx,
)

_EXTERNAL = 1  # TensorProto.DataLocation
TENSOR, GRAPH = 4, 5  # AttributeProto.AttributeType


def import_onnx() -> Any:
    """The package, which is needed for nothing but files of its format."""
    return package("onnx", "ONNX models", "onnx")


def read_model(source: Any) -> tuple[Any, pathlib.Path | None]:
    """The model as a message of its own, and the folder in which external data may lie."""
    onnx = import_onnx()
    model, folder = onnx.ModelProto(), None
    if isinstance(source, onnx.ModelProto):
        model.CopyFrom(source)
        return model, None
    if isinstance(source, bytes | bytearray | memoryview):
        content, where = bytes(source), "the bytes given"
    elif isinstance(source, str | os.PathLike):
        folder, where = pathlib.Path(source).parent, os.fspath(source)
        with opened(source) as file:
            content = file.read()
    else:
        raise InvalidInputError(
            f"source must be a path, bytes, or an onnx.ModelProto, but is a {type(source).__name__}"
        )
    decode_error = importlib.import_module("google.protobuf.message").DecodeError
    try:
        model.ParseFromString(content)
    except (decode_error, RuntimeError, ValueError, RecursionError):
        model.Clear()
    if not model.HasField("graph"):
        raise InteropError(f"{where} holds no whole ONNX graph; get it again, or check its format")
    return model, folder


def holders(graph: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """What holds an array in a graph and inside of its nodes, by the name of the value."""
    for tensor in graph.initializer:
        yield prefix + text(tensor.name), tensor
    for i, node in enumerate(graph.node):
        for attribute in node.attribute:
            if attribute.type == GRAPH:
                yield from holders(attribute.g, inside(prefix, i, attribute.name))
            elif node.op_type == "Constant" and node.output:
                yield prefix + text(node.output[0]), attribute


def inside(prefix: str, place: int, attribute: str) -> str:
    """What stands before the names in a graph inside of a node; no two graphs have the same."""
    return f"{prefix}{place}.{attribute}/"


def text(name: Any) -> str:
    """The name of a value or a node, which may be any bytes."""
    if not isinstance(name, str):  # bytes that are no UTF-8
        raise InteropError(f"the name {name!r} is no text; get the file again")
    return name


def read_array(holder: Any, folder: pathlib.Path | None, what: str) -> np.ndarray:
    """The array of a ``TensorProto`` or of an attribute; data that lie in the folder are put in.

    Nothing is allocated for numbers that are not there: shape and type have to account for every
    byte present.
    """
    onnx = import_onnx()
    tensor = holder if isinstance(holder, onnx.TensorProto) else holder.t
    if tensor is not holder and holder.type != TENSOR:
        if holder.name.removesuffix("s") not in ("value_float", "value_int"):
            raise InteropError(f"{what} is neither numbers nor an array, which is not read here")
        value = onnx.helper.get_attribute_value(holder)
        return np.asarray(value, np.float32 if "float" in holder.name else np.int64)
    dtype, shape = dtype_of(tensor.data_type, what), tuple(tensor.dims)
    # Beyond 2^48 sizes next to one of 0 overflow; NumPy has no more than 64 axes.
    absurd = len(shape) > 64 or math.prod(max(1, size) for size in shape) > 2**48
    if any(size < 0 for size in shape) or tensor.HasField("segment") or absurd:
        raise InteropError(f"{what} is damaged: its shape is {list(shape)[:8]}; get it again")
    size = math.prod(shape) * dtype.itemsize
    if tensor.data_location == _EXTERNAL:
        tensor.raw_data = _external(tensor, folder, size, what)
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
    if tensor.HasField("raw_data") and len(tensor.raw_data) != size:
        raise InteropError(
            f"{what} is damaged: {dtype.name}{list(shape)} takes {size} bytes, but "
            f"{len(tensor.raw_data)} are there"
        )
    try:
        array: np.ndarray = onnx.numpy_helper.to_array(tensor)
    except (TypeError, ValueError, OverflowError) as error:
        raise InteropError(f"{what} is damaged: {in_a_line(error)}") from error
    return array


def _external(tensor: Any, folder: pathlib.Path | None, size: int, what: str) -> bytes:
    """The bytes of a tensor from a file in the model's folder, which could name any other."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    name = entries.get("location", "")
    if folder is None:
        raise InteropError(
            f"{what} lies in another file, {name!r}, and the model has none next to it; give the "
            "path of the .onnx file"
        )
    try:
        path = folder / name
        odd = path.name != name or "\\" in name or ":" in name
        if odd or path.is_symlink() or not path.is_file():
            raise ValueError("it is no plain file next to the model")
        offset, length = (int(entries.get(k, n)) for k, n in (("offset", 0), ("length", size)))
        # O_NOFOLLOW: a link could lead out of the folder. Not every system has it.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        with open(descriptor, "rb") as file:
            there = os.fstat(descriptor).st_size
            if offset < 0 or length != size or offset + length > there:
                raise ValueError(f"{length} bytes from {offset} of {there} are not its {size}")
            file.seek(offset)
            return file.read(length)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or in_a_line(error)
        raise InteropError(
            f"{what} lies in {name!r}, which cannot be read: {reason}; save the model in one file"
        ) from None


Scope = collections.ChainMap[str, str]
"""The unique name of the value for each name that a graph sees."""

_CONSTANT = "Constant"  # the operator that only holds an array
_KNOWN = frozenset({_CONSTANT, *OPERATORS})
_PRODUCTS = ("MatMul", "Gemm", "Conv", "ConvTranspose")
_WITH_WEIGHTS = (*_PRODUCTS, *RECURRENT, "Gather", "PRelu")
_READ = {"spatial": 1, **dict.fromkeys((
    "exclusive", "input_forget", "reverse", "scan_input_axes",
    "scan_input_directions", "scan_output_axes", "scan_output_directions", "select_last_index",
    "training_mode",
), 0)}  # fmt: skip
"""Attributes that no exporter of a recurrent model was seen to set to anything but this."""


def read_graph(model: Any, folder: pathlib.Path | None) -> Model:
    """Return the model of a message, which it stores to write the parameters back."""
    reader = _Reader(model, folder)
    whole = reader.body(model.graph, collections.ChainMap(), "")
    inputs, outputs = reader.inputs(model.graph), whole.outputs
    if not outputs or len(set(outputs)) < len(outputs):
        raise InteropError("the graph has no outputs, or one of them twice")
    nodes = _alive(whole.nodes, outputs)
    reader.take_arrays(nodes, outputs)
    states = {name for node in nodes if node.op_type in RECURRENT for name in node.outputs[1:]}
    graph = Graph(
        reader.opset,
        inputs,
        tuple(name for name in outputs if name not in states) or outputs,
        tuple(nodes),
        tuple(reader.layers.values()),
        tuple((n, a.dtype.name, a.shape, a.tobytes()) for n, a in reader.static.items()),
    )
    shapes = jax.eval_shape(lambda: reader.params)
    origin = {"message": model, "slots": reader.slots, "shapes": shapes}
    return Model(graph, reader.params, origin)


def _read_opset(model: Any) -> int:
    versions = {entry.domain: entry.version for entry in model.opset_import}
    version = versions.get("", versions.get("ai.onnx", 1))
    newest = import_onnx().defs.onnx_opset_version()
    if not 1 <= version <= newest:
        raise InteropError(
            f"the model is of ONNX's opset {version}, but the package onnx here knows those up to "
            f"{newest}; update it, or convert the model"
        )
    return int(version)


def _alive(nodes: Sequence[Node], outputs: Sequence[str]) -> list[Node]:
    wanted = set(outputs)
    alive = []
    for node in reversed(nodes):
        if wanted & set(filter(None, node.outputs)):
            alive.append(node)
            wanted |= {name for name, _ in _reads([node])}
    return alive[::-1]


def _reads(nodes: Sequence[Node], outputs: Sequence[str] = ()) -> Iterator[tuple[str, Node | None]]:
    """Each value that is read, with the node; None for what is an output of a graph."""
    yield from ((name, None) for name in outputs)
    for node in all_nodes(nodes):
        yield from ((name, node) for name in node.inputs if name)
        yield from ((name, None) for body in node.bodies for name in body.outputs)


def _check_against_schema(node: Any, opset: int) -> None:
    """Raise unless the node is what ONNX's own description of its operator says."""
    if node.op_type in ("If", "Loop", "Scan"):
        return  # those inside of it are checked one by one
    checker = import_onnx().checker
    context = checker.C.CheckerContext()
    context.ir_version, context.opset_imports = 8, {"": opset}
    if node.domain:  # "ai.onnx", which is the same, and unknown to the checker
        node = type(node).FromString(node.SerializeToString())
        node.domain = ""
    try:
        checker.check_node(node, context)
    except (checker.ValidationError, UnicodeDecodeError) as error:  # whose words may be no text
        raise InteropError(str(error).splitlines()[0]) from None


class _Reader:
    """Reads the nodes of a graph and of those inside of it, their layers, and their arrays."""

    def __init__(self, model: Any, folder: pathlib.Path | None) -> None:
        self.opset = _read_opset(model)
        self.folder = folder  # where external data may lie
        self.constants: dict[str, np.ndarray] = {}  # initialisers, and what Constant nodes hold
        self.initializers: set[str] = set()  # the names of the former
        for name, holder in holders(model.graph):
            if not holder.name or name in self.constants:
                raise InteropError(f"two arrays are named {name!r}, or one has no name")
            self.constants[name] = read_array(holder, folder, f"the array {name!r}")
            if isinstance(holder, import_onnx().TensorProto):
                self.initializers.add(name)
        self.made: set[str] = set()  # the names of all values
        self.layers: dict[str, Layer] = {}
        self.params: dict[str, Any] = {}
        self.static: dict[str, np.ndarray] = {}  # by name, what is no parameter
        self.slots: dict[str, tuple[str, ...]] = {}  # by the layer, its tensors; "" for none
        self.namesakes = {CONSTANTS: 0}  # by the name of a layer, how many others would have it

    def body(self, graph: Any, scope: Scope, prefix: str) -> Body:
        """A graph; ``scope`` has by each name that is seen around it that of the value."""
        if len(graph.sparse_initializer) > 0:
            raise InteropError("sparse initialisers are not read here; store them densely")
        for one in (*graph.initializer, *graph.input):
            scope[one.name] = prefix + text(one.name)
        self.made.update(scope.maps[0].values())
        nodes = []
        for i, node in enumerate(graph.node):
            op_type = repr(node.op_type[:60])[1:-1]  # which may hold what moves a terminal
            label = f"{repr(node.name[:60]) if node.name else i} ({op_type})"
            with naming(label):
                nodes.append(self.node(node, i, label, scope, prefix))
        missing = [one.name for one in graph.output if one.name not in scope]
        if missing:
            raise InteropError(f"nothing makes the graph's output {missing[0]!r}; export it again")
        inputs = [scope[one.name] for one in graph.input]
        return Body(
            tuple(name for name in inputs if name not in self.constants),
            tuple(scope[one.name] for one in graph.output),
            tuple(node for node in nodes if node.op_type != _CONSTANT),
        )

    def node(self, node: Any, place: int, label: str, scope: Scope, prefix: str) -> Node:
        if node.domain not in ("", "ai.onnx") or node.op_type not in _KNOWN:
            where = f" of {node.domain[:60]!r}" if node.domain else ""
            raise InteropError(
                f"the operator {repr(node.op_type[:60])[1:-1]}{where} is not read here; export the "
                f"model without it, or run it in onnxruntime; read are {', '.join(sorted(_KNOWN))}"
            )
        missing = [name for name in node.input if name and name not in scope]
        if missing:
            raise InteropError(
                f"no earlier node, input or initialiser makes its input {missing[0]!r}; sort them"
            )
        attributes = [
            (one.name, self.attribute(one, scope, inside(prefix, place, one.name)))
            for one in node.attribute
            if node.op_type != _CONSTANT
        ]
        read = Node(
            node.op_type,
            label,
            tuple(scope[name] if name else "" for name in node.input),
            tuple(prefix + text(name) if name else "" for name in node.output),
            tuple(attributes),
            self.layer_name(node) if node.op_type in RECURRENT else "",
        )
        _check_against_schema(node, self.opset)  # whose tensors have their data now
        odd = [n for n, value in attributes if n in _READ and np.any(np.not_equal(value, _READ[n]))]
        if odd:
            raise InteropError(
                f"{odd[0]} is not read here; export the model without it, or run it in onnxruntime"
            )
        if node.op_type == "If" and any(body.inputs for body in read.bodies):
            raise InteropError("its branches should have no inputs, but one has; get it again")
        dtype_of(read.get("to", 1), "what it casts to")  # a name before opset 6
        for name in filter(None, node.output):
            if prefix + name in self.made:
                raise InteropError(f"its output {name!r} is made twice; rename one")
            self.made.add(prefix + name)
            scope[name] = prefix + name
        return read

    def attribute(self, one: Any, scope: Scope, prefix: str) -> Any:
        """The value of an attribute, that can be hashed."""
        what = f"attribute {one.name!r}"
        if one.ref_attr_name:
            raise InteropError(f"{what} is one of a function, which is not read here")
        if one.type == GRAPH:
            return self.body(one.g, scope.new_child(), prefix)
        if one.type == TENSOR and math.prod(one.t.dims) == 1:
            return read_array(one, self.folder, what).reshape(-1)[0]
        if one.type not in (1, 2, 3, 6, 7, 8):  # numbers and texts, and lists of these
            raise InteropError(f"{what} holds something that is not read here")
        value = import_onnx().helper.get_attribute_value(one)
        listed = one.type > GRAPH
        try:
            read = [
                v.decode() if isinstance(v, bytes) else v for v in (value if listed else [value])
            ]
        except UnicodeDecodeError:
            raise InteropError(f"{what} is no text") from None
        return tuple(read) if listed else read[0]

    def inputs(self, graph: Any) -> tuple[Input, ...]:
        inputs = {}
        for one in graph.input:
            if one.name in self.constants:
                continue
            what = f"input {one.name!r}"
            if one.name in inputs or not one.name or not one.type.HasField("tensor_type"):
                raise InteropError(f"{what} occurs twice, or is no array")
            described = one.type.tensor_type
            dtype, shape = dtype_of(described.elem_type, what), None
            traced_dtype(dtype, what)
            if described.HasField("shape"):
                # Some write 0 or -1 where a size is not fixed.
                sizes = (int(n.dim_value) for n in described.shape.dim)
                shape = tuple(n if n > 0 else None for n in sizes)
            inputs[one.name] = Input(one.name, shape, dtype.name)
        return tuple(inputs.values())

    def take_arrays(self, nodes: Sequence[Node], outputs: Sequence[str]) -> None:
        """Let layers have the arrays that nothing else reads; other weights are parameters too."""
        self.readers: dict[str, list[Node | None]] = collections.defaultdict(list)
        for name, node in _reads(nodes, outputs):
            self.readers[name].append(node)
        every = list(all_nodes(nodes))
        self.products = {name for one in every if one.op_type in _PRODUCTS for name in one.outputs}
        for node in every:
            if node.layer:
                self.add_layer(node)
        taken = {name for tensors in self.slots.values() for name in tensors}
        names = [name for name in self.readers if name in self.constants and name not in taken]
        weights = {name: self.constants[name] for name in names if self.is_weight(name)}
        if weights:
            self.take(CONSTANTS, tuple(weights), weights)
        self.static = {n: self.constants[n] for n in names if n not in weights}

    def take(self, layer: str, tensors: tuple[str, ...], params: Mapping[str, Any]) -> None:
        """Let a layer have parameters that come from those tensors."""
        for name in filter(None, tensors):
            traced_dtype(self.constants[name].dtype, "its parameters are")
        self.slots[layer] = tensors
        self.params[layer] = jax.tree.map(as_jax, params)

    def add_layer(self, node: Node) -> None:
        """The layer of a recurrent node, which has its weights unless others read or make them."""
        names = tuple(map(node.input, PLACES))
        arrays = [self.constants.get(name) for name in names]
        owned = all(not n or (n in self.constants and len(self.readers[n]) == 1) for n in names)
        with naming(node.label):
            cell = cell_from_onnx(node, arrays, owned)
            check_weights(cell, arrays)
        self.layers[node.layer] = Recurrent(
            node.layer, cell, reverse=node.get("direction") == "reverse"
        )
        if owned:
            self.take(node.layer, names, params_from_onnx(cell, *arrays))

    def layer_name(self, node: Any) -> str:
        """A name for people: ``lstm`` of ``/lstm/LSTM``, and of a node without one."""
        parts = [part for part in text(node.name).split("/") if part] or [""]
        kind, _, number = parts[-1].partition("_")
        if kind in (node.op_type, "") and (number.isdigit() or not number):
            parts.pop()  # the exporter's own name; what is before it is the module's
        name = base = "/".join(parts) or node.op_type.lower()
        while name in self.namesakes:
            self.namesakes[base] += 1  # so that many nodes do not count from the start
            name = f"{base}_{self.namesakes[base]}"
        self.namesakes[name] = 0
        return name

    def is_weight(self, name: str) -> bool:
        """Whether it is trained: floats, and no single number in somebody's program.

        The mean and variance of a BatchNormalization and the values of one-hot vectors are not.
        """
        array, readers = self.constants[name], [one for one in self.readers[name] if one]
        if not jnp.issubdtype(array.dtype, jnp.floating) or not array.size:
            return False
        none = {"OneHot": 0, "BatchNormalization": 3}  # from which input on there are none
        if readers and all(name in one.inputs[none.get(one.op_type, 99) :] for one in readers):
            return False
        if not readers or (name in self.initializers and array.size > 1):
            return True
        return array.ndim > 0 and any(
            one.op_type in _WITH_WEIGHTS or (one.op_type == "Add" and self.products & {*one.inputs})
            for one in readers
        )
