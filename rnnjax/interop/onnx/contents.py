"""What an ONNX message holds: nodes, checked, and constants, of which all that follows is known."""

import collections
import dataclasses
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from rnnjax.errors import InteropError
from rnnjax.interop.onnx.at import At, TooLargeError
from rnnjax.interop.onnx.files import dtype_of, import_onnx, read_tensor
from rnnjax.interop.onnx.operators import OPERATORS, run_operator
from rnnjax.interop.onnx.recurrent import RECURRENT

_FEWEST_FOLDED = 2**22  # elements that are always made, however small the model


@dataclasses.dataclass(frozen=True)
class RawNode:
    """A node as it stands in the message, checked against ONNX's own description of operators."""

    op_type: str
    name: str
    label: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]

    def input(self, index: int) -> str:
        """The name of an input; empty if it is left out."""
        return self.inputs[index] if index < len(self.inputs) else ""


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


@dataclasses.dataclass(frozen=True, eq=False)
class Contents:
    """What a message holds, checked.

    Attributes:
        opset: the version of ONNX's operators.
        nodes: those from which outputs follow, but for what follows from constants alone.
        constants: all known arrays: initialisers, and what follows from them.
        roots: by the name of a constant, the parameters from which it follows.
        outputs: the names of the graph's outputs.
    """

    opset: int
    nodes: tuple[RawNode, ...]
    constants: Mapping[str, np.ndarray]
    roots: Mapping[str, frozenset[str]]
    outputs: tuple[str, ...]


def read_contents(model: Any, folder: pathlib.Path | None) -> Contents:
    """Check a message, and compute what follows from constants alone.

    External data are put into ``model``.

    Args:
        model: an ``onnx.ModelProto``.
        folder: where external data may lie.

    Raises:
        InteropError: something is damaged, or not read here.
    """
    opset = _read_opset(model)
    graph = model.graph
    if len(graph.sparse_initializer) > 0:
        raise InteropError("sparse initialisers are not read here; store them densely")
    constants: dict[str, np.ndarray] = {}
    for tensor in graph.initializer:
        if not tensor.name or tensor.name in constants:
            raise InteropError(f"two initialisers are named {tensor.name!r}, or one has no name")
        constants[tensor.name] = _held(tensor, folder, f"initialiser {tensor.name!r}")
    nodes = _nodes(graph, opset, folder, constants)
    outputs = tuple(output.name for output in graph.output)
    rest, folded, roots = _fold(nodes, constants, opset, frozenset())
    # A parameter that reaches several places stays one, so that it is trained as one: what is made
    # of it is computed when the graph runs.
    reached: dict[str, set[str]] = collections.defaultdict(set)
    for name in count_uses(_alive(rest, outputs), outputs):
        for root in roots.get(name, ()):
            reached[root].add(name)
    shared = frozenset(root for root, names in reached.items() if len(names) > 1)
    if shared:
        rest, folded, roots = _fold(nodes, constants, opset, shared)
    return Contents(opset, tuple(_alive(rest, outputs)), folded, roots, outputs)


def _alive(nodes: list[RawNode], outputs: Iterable[str]) -> list[RawNode]:
    """The nodes from which an output follows."""
    wanted = set(outputs)
    alive = []
    for node in reversed(nodes):
        if wanted & set(filter(None, node.outputs)):
            alive.append(node)
            wanted |= set(node.inputs)
    return alive[::-1]


def count_uses(nodes: Iterable[RawNode], outputs: Iterable[str]) -> collections.Counter[str]:
    """How often each value is read, by nodes or as an output of the graph."""
    uses = collections.Counter(name for node in nodes for name in node.inputs if name)
    uses.update(outputs)
    return uses


def _nodes(
    graph: Any, opset: int, folder: pathlib.Path | None, constants: Mapping[str, Any]
) -> list[RawNode]:
    known = {*constants, *(one.name for one in graph.input)}
    made: set[str] = set()
    nodes = []
    for i, node in enumerate(graph.node):
        label = f"{node.name!r} ({node.op_type})" if node.name else f"{i} ({node.op_type})"
        supported = node.op_type in OPERATORS or node.op_type in RECURRENT
        if node.domain not in ("", "ai.onnx") or not supported:
            where = f" of {node.domain!r}" if node.domain else ""
            raise InteropError(
                f"node {label}: the operator {node.op_type}{where} is not read here; those that "
                f"are, are {', '.join(sorted([*OPERATORS, *RECURRENT]))}"
            )
        attributes = {
            attribute.name: _attribute(attribute, label, folder) for attribute in node.attribute
        }
        raw = RawNode(
            node.op_type, node.name, label, tuple(node.input), tuple(node.output), attributes
        )
        _check_against_schema(raw, opset, node)
        if "to" in attributes:  # a type, and a name before opset 6
            to = attributes["to"]
            dtype_of(to if isinstance(to, int) else 0, f"what node {label} casts to")
        missing = [name for name in raw.inputs if name and name not in known]
        if missing:
            raise InteropError(
                f"node {label}: no earlier node, input or initialiser makes its input "
                f"{missing[0]!r}; the nodes have to be in an order in which they can run"
            )
        for name in filter(None, raw.outputs):
            if name in made or name in known:
                raise InteropError(f"node {label}: its output {name!r} is made twice")
            made.add(name)
            known.add(name)
        nodes.append(raw)
    return nodes


def _held(tensor: Any, folder: pathlib.Path | None, what: str) -> np.ndarray:
    """The array of a tensor; one that lies beside the model is put into it."""
    array = read_tensor(tensor, folder, what)
    if tensor.data_location:
        tensor.CopyFrom(import_onnx().numpy_helper.from_array(array, tensor.name))
    return array


def _attribute(attribute: Any, label: str, folder: pathlib.Path | None) -> Any:
    kind = attribute.type
    if attribute.ref_attr_name:
        raise InteropError(f"node {label}: attributes of functions are not read here")
    try:
        if kind == 1:
            return float(attribute.f)
        if kind == 2:
            return int(attribute.i)
        if kind == 3:
            return attribute.s.decode()
        if kind == 4:
            return _held(attribute.t, folder, f"attribute {attribute.name!r} of node {label}")
        if kind == 6:
            return tuple(float(n) for n in attribute.floats)
        if kind == 7:
            return tuple(int(n) for n in attribute.ints)
        if kind == 8:
            return tuple(s.decode() for s in attribute.strings)
    except UnicodeDecodeError:
        raise InteropError(f"node {label}: attribute {attribute.name!r} is no text") from None
    raise InteropError(
        f"node {label}: attribute {attribute.name!r} holds a graph or something else that is not "
        "read here"
    )


def _check_against_schema(raw: RawNode, opset: int, node: Any) -> None:
    defs = import_onnx().defs
    try:
        schema = defs.get_schema(raw.op_type, opset, "")
    except defs.SchemaError:
        raise InteropError(
            f"node {raw.label}: opset {opset} has no operator {raw.op_type}"
        ) from None
    kinds = {attribute.name: attribute.type for attribute in node.attribute}
    for name, described in schema.attributes.items():
        if name in kinds and kinds[name] != described.type.value:
            raise InteropError(f"node {raw.label}: attribute {name!r} is of another type")
        if described.required and name not in kinds:
            raise InteropError(f"node {raw.label}: attribute {name!r} is missing")
    unknown = sorted(set(kinds) - set(schema.attributes))
    if unknown or len(kinds) < len(node.attribute):
        raise InteropError(
            f"node {raw.label}: {raw.op_type} of opset {opset} has no attributes "
            f"{unknown or 'that occur twice'}"
        )
    given, made = len(raw.inputs), len(raw.outputs)
    if not schema.min_input <= given <= schema.max_input or (
        not schema.min_output <= made <= schema.max_output
    ):
        raise InteropError(f"node {raw.label}: it has {given} inputs and {made} outputs")
    optional = defs.OpSchema.FormalParameterOption.Optional
    options = [schema.inputs[min(i, len(schema.inputs) - 1)].option for i in range(given)]
    if any(not x and o != optional for x, o in zip(raw.inputs, options, strict=True)):
        raise InteropError(f"node {raw.label}: an input that it needs is left out")


def _fold(
    nodes: list[RawNode], initializers: Mapping[str, np.ndarray], opset: int, shared: frozenset[str]
) -> tuple[list[RawNode], dict[str, np.ndarray], dict[str, frozenset[str]]]:
    """Compute what follows from constants alone, but for what follows from ``shared`` ones.

    Returns:
        the nodes that remain, all constants, and for each the parameters from which it follows.
    """
    constants = dict(initializers)
    roots = {name: _own_root(name, array) for name, array in constants.items()}
    left = max(_FEWEST_FOLDED, sum(array.size for array in constants.values()))
    rest = []
    for raw in nodes:
        inputs = [name for name in raw.inputs if name]
        own = frozenset[str]().union(*(roots.get(name, ()) for name in inputs))
        known = all(name in constants for name in inputs)
        outputs = None
        operator = OPERATORS.get(raw.op_type)
        folds = operator is not None and (operator.folds or not own)
        if folds and known and not own & shared:
            at = At(raw.label, opset, raw.attributes, len(raw.outputs), left)
            values = [constants[name] if name else None for name in raw.inputs]
            try:
                outputs = run_operator(raw.op_type, at, values)
            except TooLargeError:
                outputs = None  # made when the graph runs, where more is allowed
        if outputs is None:
            rest.append(raw)
            continue
        for name, array in zip(raw.outputs, outputs, strict=False):
            constants[name] = array
            roots[name] = own
            left -= array.size
        left = max(left, 0)
    return rest, constants, roots


def _own_root(name: str, array: np.ndarray) -> frozenset[str]:
    """An initialiser of floats is a parameter; a single number is only if a layer takes it.

    What stands in a Constant node was a number in somebody's program, not in their weights.
    """
    is_parameter = jnp.issubdtype(array.dtype, jnp.floating) and array.size > 1
    return frozenset([name]) if is_parameter else frozenset()
