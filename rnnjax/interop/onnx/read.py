"""From an ONNX message to a `Graph`, its layers and their parameters."""

import collections
import dataclasses
import math
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.cells.base import Cell, Params
from rnnjax.errors import InteropError
from rnnjax.interop.arrays import as_jax
from rnnjax.interop.layers import Dense, Embedding, Layer, Recurrent
from rnnjax.interop.onnx.activations import activations_from_onnx
from rnnjax.interop.onnx.at import traced_dtype
from rnnjax.interop.onnx.contents import (
    Contents,
    RawBody,
    RawNode,
    all_nodes,
    count_uses,
    read_contents,
)
from rnnjax.interop.onnx.files import dtype_of
from rnnjax.interop.onnx.graph import CONSTANTS, Constants, Graph, check_weights
from rnnjax.interop.onnx.nodes import (
    Body,
    Constant,
    Input,
    LayerNode,
    Node,
    Operation,
    RecurrentNode,
)
from rnnjax.interop.onnx.operators import kind_of
from rnnjax.interop.onnx.recurrent import RECURRENT, Weights, cell_from_onnx, params_from_onnx
from rnnjax.interop.onnx.rewrite import Imported, Slot
from rnnjax.interop.onnx.roles import data_outputs, input_roles
from rnnjax.layers import Bidirectional


def read_graph(model: Any, folder: pathlib.Path | None) -> tuple[Graph, Params, Imported]:
    """The network, its parameters, and what it takes to write them back: the message is kept."""
    contents = read_contents(model, folder)
    inputs = _read_inputs(model.graph, contents)
    found = _Layers(contents, inputs)
    found.read()
    roles = input_roles(inputs, contents.nodes, contents.outputs)
    graph = Graph(
        contents.opset,
        tuple(dataclasses.replace(one, role=roles[one.name]) for one in inputs.values()),
        data_outputs(contents.outputs, contents.nodes, streams="state" in roles.values()),
        tuple(found.nodes),
        tuple(found.layers.values()),
        found.static,
    )
    taken = {name for slot in found.slots for name in slot.tensors if name}
    arrays = {name: contents.constants[name] for name in taken}
    return graph, found.params, Imported(model, tuple(found.slots), arrays)


def _read_inputs(graph: Any, contents: Contents) -> dict[str, Input]:
    """The graph's inputs that are no initialisers."""
    inputs = {}
    for one in graph.input:
        if one.name in contents.constants:
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
        inputs[one.name] = Input(one.name, dtype.name, shape)
    made = {name for node in contents.nodes for name in node.outputs}
    for name in contents.outputs:
        if not name or not (name in made or name in inputs or name in contents.constants):
            raise InteropError(f"nothing makes the graph's output {name!r}")
    if not contents.outputs or len(set(contents.outputs)) < len(contents.outputs):
        raise InteropError("the graph has no outputs, or one of them twice")
    return inputs


class _Layers:
    """Finds the layers in the nodes, and takes for each the constants that are its parameters."""

    def __init__(self, contents: Contents, inputs: Mapping[str, Input]) -> None:
        self.constants = contents.constants
        self.roots = contents.roots
        self.raw = contents.nodes
        self.inputs = inputs
        self.uses = count_uses(contents.nodes, contents.outputs)
        self.readers: dict[str, list[RawNode]] = collections.defaultdict(list)
        for node in all_nodes(contents.nodes):
            for name in filter(None, node.inputs):
                self.readers[name].append(node)
        self.nodes: list[Node] = []
        self.layers: dict[str, Layer] = {}
        self.params: dict[str, Any] = {}
        self.slots: list[Slot] = []
        self.static: tuple[tuple[str, Constant], ...] = ()
        self.done: set[int] = set()
        self.namesakes: collections.Counter[str] = collections.Counter()

    def read(self) -> None:
        """All nodes, and the constants that are left."""
        self.read_nodes(self.raw)
        self.static = self.read_constants()

    def read_nodes(self, nodes: Iterable[RawNode]) -> None:
        """Those of a graph, one after the other."""
        for raw in nodes:
            if id(raw) in self.done:
                continue
            if raw.op_type in RECURRENT:
                self.read_recurrent(raw)
            elif not (self.read_dense(raw) or self.read_embedding(raw)):
                attributes = tuple((k, self.attribute(v)) for k, v in raw.attributes.items())
                self.nodes.append(
                    Operation(raw.op_type, raw.label, raw.inputs, raw.outputs, attributes)
                )

    def attribute(self, value: Any) -> Any:
        """As a node has it: a graph with its layers, and an array, so that they can be hashed."""
        if isinstance(value, RawBody):
            around, self.nodes = self.nodes, []
            self.read_nodes(value.nodes)
            inside, self.nodes = self.nodes, around
            return Body(value.inputs, value.outputs, tuple(inside))
        return Constant.of(value) if isinstance(value, np.ndarray) else value

    def is_free(self, name: str, rank: int) -> bool:
        """Whether a constant can become a parameter of one layer: none but that reads it."""
        array = self.constants.get(name)
        return (
            array is not None
            and array.ndim == rank
            and array.size > 0
            and bool(jnp.issubdtype(array.dtype, jnp.floating))
            and self.uses[name] == 1
        )

    def take(self, layer: Layer, kind: str, tensors: tuple[str, ...], params: Params) -> None:
        """Add a layer whose parameters come from those tensors."""
        self.layers[layer.name] = layer
        self.params[layer.name] = jax.tree.map(self.as_jax, params)
        self.slots.append(Slot(layer.name, kind, tensors))

    def as_jax(self, array: np.ndarray) -> jax.Array:
        traced_dtype(array.dtype, "its parameters are")
        return as_jax(array)

    def layer_name(self, raw: RawNode) -> str:
        """A name for people: ``lstm`` of ``/lstm/LSTM``, and of a node without one."""
        parts = [part for part in raw.name.split("/") if part]
        last = parts[-1] if parts else raw.op_type
        kind, _, number = last.partition("_")
        if kind == raw.op_type and (number.isdigit() or not number):
            # The exporter's own name; what is before it is the module's.
            base = "/".join(parts[:-1]) or raw.op_type.lower()
        else:
            base = "/".join(parts)
        name = base
        while name in self.layers or name == CONSTANTS:
            self.namesakes[base] += 1  # kept, so that many nodes do not count from the start
            name = f"{base}_{self.namesakes[base]}"
        return name

    def read_dense(self, raw: RawNode) -> bool:
        """MatMul with a constant, perhaps with one added, or Gemm: a Dense layer."""
        affine = kind_of(raw.op_type) == "affine"
        if not affine and kind_of(raw.op_type) != "product":
            return False
        x, kernel_name = raw.inputs[:2]
        if x in self.constants or not self.is_free(kernel_name, 2):
            return False
        kernel, output, bias_name, kind = self.constants[kernel_name], raw.outputs[0], "", "dense"
        if affine:
            plain = all(raw.attributes.get(key, 1.0) == 1.0 for key in ("alpha", "beta"))
            if not plain or raw.attributes.get("transA", 0):
                return False
            if raw.attributes.get("transB", 0):
                kernel, kind = kernel.T, "transposed dense"
            bias_name = raw.input(2)
            if bias_name and not self.is_bias(bias_name, kernel.shape[1]):
                return False
        else:
            added = self.added_bias(output, kernel.shape[1])
            if added is not None:
                bias_name, output = added
        layer = Dense(self.layer_name(raw), kernel.shape[1], "linear", bool(bias_name))
        params = {"kernel": kernel}
        if bias_name:
            params["bias"] = self.constants[bias_name].reshape(-1)
        self.take(layer, kind, (kernel_name, bias_name), params)
        self.nodes.append(LayerNode(raw.op_type, raw.label, (x,), (output,), layer.name))
        return True

    def is_bias(self, name: str, size: int) -> bool:
        return self.is_free(name, 1) and self.constants[name].shape == (size,)

    def added_bias(self, output: str, size: int) -> tuple[str, str] | None:
        """The constant that the only reader of ``output`` adds, and the name of the sum."""
        if self.uses[output] != 1 or len(self.readers[output]) != 1:
            return None
        (add,) = self.readers[output]
        if kind_of(add.op_type) != "sum" or "axis" in add.attributes:
            return None
        (other,) = [name for name in add.inputs if name != output]
        if not self.is_bias(other, size):
            return None
        self.done.add(id(add))
        return other, add.outputs[0]

    def read_embedding(self, raw: RawNode) -> bool:
        """Gather of the rows of a constant by ids that are none."""
        if kind_of(raw.op_type) != "look-up" or raw.attributes.get("axis", 0) not in (0, -2):
            return False
        table, ids = raw.inputs
        if ids in self.constants or not self.is_free(table, 2):
            return False
        array = self.constants[table]
        layer = Embedding(self.layer_name(raw), *array.shape)
        self.take(layer, "embedding", (table,), {"embedding": array})
        self.nodes.append(LayerNode(raw.op_type, raw.label, (ids,), raw.outputs, layer.name))
        return True

    def read_recurrent(self, raw: RawNode) -> None:
        """A recurrent operator."""
        direction = raw.attributes.get("direction", "forward")
        if direction not in ("forward", "reverse", "bidirectional"):
            raise InteropError(f"node {raw.label}: {direction!r} is no direction")
        names = (raw.input(1), raw.input(2), raw.input(3), raw.input(7))
        arrays = Weights(*(self.constants.get(name) for name in names))
        cell = self.cell(raw, names, arrays, 2 if direction == "bidirectional" else 1)
        layer = Recurrent(self.layer_name(raw), cell, reverse=direction == "reverse")
        layout = raw.attributes.get("layout", 0)
        if layout not in (0, 1):
            raise InteropError(f"node {raw.label}: layout is {layout}, but should be 0 or 1")
        states = (raw.input(5), raw.input(6))[: RECURRENT[raw.op_type].states]
        ranks = (3, 3, 2, 2)
        owned = all(
            not name or self.is_free(name, rank) for name, rank in zip(names, ranks, strict=True)
        )
        node = RecurrentNode(
            raw.op_type,
            raw.label,
            (raw.inputs[0], raw.input(4), *states),
            raw.outputs,
            layer.name,
            layout,
            None if owned else names,
        )
        check_weights(node, layer, arrays)
        self.check_features(raw, arrays)
        self.nodes.append(node)
        if owned:
            self.take(layer, "recurrent", names, params_from_onnx(cell, *arrays))
        else:
            self.layers[layer.name] = layer

    def cell(self, raw: RawNode, names: tuple[str, ...], arrays: Weights, directions: int) -> Cell:
        """The cell, or both cells, from the attributes."""
        size = raw.attributes.get("hidden_size")
        recurrent = arrays.R.shape if arrays.R is not None else None
        if recurrent is None and names[1] in self.inputs:
            recurrent = self.inputs[names[1]].shape
        if size is None and recurrent is not None and len(recurrent) == 3:
            size = recurrent[2]
        if size is None or not 0 < size <= 2**24:
            raise InteropError(
                f"node {raw.label}: its hidden_size is {size}, but should be a positive number of "
                "units"
            )
        clip = raw.attributes.get("clip")
        if clip is not None and not (math.isfinite(clip) and clip > 0):
            raise InteropError(f"node {raw.label}: clip is {clip}, but should be positive")
        functions = _activations(raw, directions)
        each = len(functions) // directions
        types = [array.dtype for array in arrays if array is not None]
        types += [
            np.dtype(jnp.dtype(self.inputs[name].dtype)) for name in names if name in self.inputs
        ]
        cells = [
            cell_from_onnx(
                raw.op_type,
                int(size),
                functions[i * each : (i + 1) * each],
                use_bias=bool(names[2]),
                peephole=bool(names[3]),
                coupled=bool(raw.attributes.get("input_forget", 0)),
                reset_after=bool(raw.attributes.get("linear_before_reset", 0)),
                clip=clip,
                param_dtype=types[0] if types else jnp.float32,
            )
            for i in range(directions)
        ]
        if directions == 1:
            return cells[0]
        return Bidirectional(cells[0], None if cells[0] == cells[1] else cells[1])

    def check_features(self, raw: RawNode, arrays: Weights) -> None:
        """Where the graph says how many features a node gets, its W has to take them."""
        shape = self.inputs[raw.inputs[0]].shape if raw.inputs[0] in self.inputs else None
        if shape is None or arrays.W is None:
            return
        if len(shape) != 3 or shape[2] not in (None, arrays.W.shape[2]):
            raise InteropError(
                f"node {raw.label}: the graph declares its input X as {list(shape)}, but its W "
                f"takes three axes, the last of {arrays.W.shape[2]} features"
            )

    def read_constants(self) -> tuple[tuple[str, Constant], ...]:
        """The constants that nodes still read: floats become parameters, others are static."""
        taken = {name for slot in self.slots for name in slot.tensors if name}
        names = [name for name in self.uses if name in self.constants and name not in taken]
        parameters = {name for name in names if self.roots[name] and self.is_trainable(name)}
        if parameters:
            arrays = {name: self.constants[name] for name in names if name in parameters}
            self.take(Constants(), "constants", tuple(arrays), arrays)
        return tuple(
            (name, Constant.of(self.constants[name])) for name in names if name not in parameters
        )

    def is_trainable(self, name: str) -> bool:
        """Whether a number changes what the model computes, but for the two of a one-hot vector."""
        readers = self.readers.get(name, [])
        return not readers or any(kind_of(node.op_type) != "one-hot" for node in readers)


def _activations(raw: RawNode, directions: int) -> list[Any]:
    """Ours, for all directions."""
    default = RECURRENT[raw.op_type].activations
    names = raw.attributes.get("activations", default * directions)
    # ONNX's own default for one activation has two, whatever the direction.
    if len(default) == directions == 1 and tuple(names) == default * 2:
        names = default
    if len(names) != len(default) * directions:
        raise InteropError(
            f"node {raw.label}: it has {len(names)} activations, but {raw.op_type} takes "
            f"{len(default) * directions} in {directions} directions"
        )
    alphas, betas = (raw.attributes.get(f"activation_{key}", ()) for key in ("alpha", "beta"))
    try:
        return list(activations_from_onnx(names, alphas, betas))
    except InteropError as error:
        raise InteropError(f"node {raw.label}: {error}") from None
