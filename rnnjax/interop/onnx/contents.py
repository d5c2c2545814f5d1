"""What an ONNX message holds: nodes, checked, and constants, of which all that follows is known."""

import collections
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from rnnjax.errors import InteropError
from rnnjax.interop.onnx.at import ALWAYS, At, TooLargeError, is_known
from rnnjax.interop.onnx.files import dtype_of, import_onnx, read_tensor
from rnnjax.interop.onnx.operators import OPERATORS, SAME, kind_of, run_operator
from rnnjax.interop.onnx.recurrent import RECURRENT

Scope = collections.ChainMap[str, str]
"""By each name that a graph sees, that of the value, which no other has."""

_TENSOR, _GRAPH = 4, 5  # AttributeProto.AttributeType
_LONGEST_NAME = 2**12  # each value inside of a node has its node's in its own
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

    @property
    def bodies(self) -> dict[str, "RawBody"]:
        """The graphs inside of it, by the names of the attributes."""
        return {k: v for k, v in self.attributes.items() if isinstance(v, RawBody)}

    @functools.cached_property
    def reads(self) -> tuple[str, ...]:
        """The names of all values that it or what is inside of it reads."""
        inside = [name for body in self.bodies.values() for name in body.reads]
        return (*filter(None, self.inputs), *inside)

    def input(self, index: int) -> str:
        """The name of an input; empty if it is left out."""
        return self.inputs[index] if index < len(self.inputs) else ""


@dataclasses.dataclass(frozen=True)
class RawBody:
    """A graph inside of a node. No other has values of the same names."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[RawNode, ...]

    @functools.cached_property
    def reads(self) -> tuple[str, ...]:
        """The names of all values that are read in it."""
        return (*(name for node in self.nodes for name in node.reads), *self.outputs)


def all_nodes(nodes: Iterable[RawNode]) -> Iterator[RawNode]:
    """Those, and the ones inside of them."""
    for node in nodes:
        yield node
        for body in node.bodies.values():
            yield from all_nodes(body.nodes)


def _joined(prefix: str, name: Any) -> str:
    if not isinstance(name, str):  # bytes that are no UTF-8
        raise InteropError(f"the name {name!r} of a value is no text")
    if len(prefix) + len(name) > _LONGEST_NAME:
        raise InteropError(
            f"the name {(prefix + name)[:40]!r}... of a value has {len(prefix) + len(name):,} "
            f"letters, but at most {_LONGEST_NAME:,} are read"
        )
    return prefix + name


def prefix_of(name: str, attribute: str) -> str:
    """Of the names in a graph inside of the node whose first output has that name."""
    return _joined(f"{name}/", attribute) + "/"


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
    """What a message holds, checked."""

    opset: int  # the version of ONNX's operators
    # those from which outputs follow, but for what follows from constants alone
    nodes: tuple[RawNode, ...]
    # all known arrays: initialisers, and what follows from them
    constants: Mapping[str, np.ndarray]
    # by the name of a constant, the parameters from which it follows
    roots: Mapping[str, frozenset[str]]
    outputs: tuple[str, ...]  # the names of the graph's outputs


def read_contents(model: Any, folder: pathlib.Path | None) -> Contents:
    """Check a message, and compute what follows from constants alone.

    External data may lie in the folder, and are put into ``model``.
    """
    opset = _read_opset(model)
    graph = model.graph
    reader = _Reader(opset, folder)
    nodes = reader.nodes(graph, collections.ChainMap(), "")
    outputs = tuple(output.name for output in graph.output)
    folding = _Folding(reader.constants, opset, frozenset())
    rest = folding.fold(nodes)
    # A parameter that reaches several places stays one, so that it is trained as one: what is made
    # of it is computed when the graph runs.
    reached: dict[str, set[str]] = collections.defaultdict(set)
    for name in count_uses(_alive(rest, outputs), outputs):
        for root in folding.roots.get(name, ()):
            reached[root].add(name)
    shared = frozenset(root for root, names in reached.items() if len(names) > 1)
    if shared:
        folding = _Folding(reader.constants, opset, shared)
        rest = folding.fold(nodes)
    alive = tuple(_alive(rest, outputs))
    return Contents(opset, alive, folding.constants, folding.roots, outputs)


def _alive(nodes: list[RawNode], outputs: Iterable[str]) -> list[RawNode]:
    """The nodes from which an output follows."""
    wanted = set(outputs)
    alive = []
    for node in reversed(nodes):
        if wanted & set(filter(None, node.outputs)):
            alive.append(node)
            wanted |= set(node.reads)
    return alive[::-1]


def count_uses(nodes: Iterable[RawNode], outputs: Iterable[str]) -> collections.Counter[str]:
    """How often each value is read, by nodes or as an output of the graph."""
    uses = collections.Counter(name for node in nodes for name in node.reads)
    uses.update(outputs)
    return uses


@dataclasses.dataclass
class _Reader:
    """Reads the nodes of a graph and of those inside of it, and the arrays that they hold."""

    opset: int  # the version of ONNX's operators
    folder: pathlib.Path | None  # where external data may lie
    constants: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)  # the initialisers
    made: set[str] = dataclasses.field(default_factory=set)  # the names of all values

    def nodes(self, graph: Any, scope: Scope, prefix: str) -> list[RawNode]:
        """Those of a graph; ``scope`` has by each name that it sees that of the value."""
        if len(graph.sparse_initializer) > 0:
            raise InteropError("sparse initialisers are not read here; store them densely")
        for tensor in graph.initializer:
            name = _joined(prefix, tensor.name)
            if not tensor.name or name in self.constants:
                raise InteropError(
                    f"two initialisers are named {tensor.name!r}, or one has no name"
                )
            self.constants[name] = _held(tensor, self.folder, f"initialiser {tensor.name!r}")
            scope[tensor.name] = name
        scope.update((one.name, _joined(prefix, one.name)) for one in graph.input)
        self.made |= {prefix + name for name in scope.maps[0]}
        return [self.node(node, i, scope, prefix) for i, node in enumerate(graph.node)]

    def node(self, node: Any, i: int, scope: Scope, prefix: str) -> RawNode:
        """One, checked."""
        label = f"{node.name!r} ({node.op_type})" if node.name else f"{i} ({node.op_type})"
        supported = node.op_type in OPERATORS or node.op_type in RECURRENT
        if node.domain not in ("", "ai.onnx") or not supported:
            where = f" of {node.domain!r}" if node.domain else ""
            raise InteropError(
                f"node {label}: the operator {node.op_type}{where} is not read here; those that "
                f"are, are {', '.join(sorted([*OPERATORS, *RECURRENT]))}"
            )
        missing = [name for name in node.input if name and name not in scope]
        if missing:
            raise InteropError(
                f"node {label}: no earlier node, input or initialiser makes its input "
                f"{missing[0]!r}; the nodes have to be in an order in which they can run"
            )
        first = _joined(prefix, next(filter(None, node.output), label))
        attributes = {
            one.name: self.body(one.g, label, scope, prefix_of(first, one.name))
            if one.type == _GRAPH and not one.ref_attr_name
            else _attribute(one, label, self.folder)
            for one in node.attribute
        }
        raw = RawNode(
            node.op_type,
            node.name,
            label,
            tuple(scope[name] if name else "" for name in node.input),
            tuple(_joined(prefix, name) if name else "" for name in node.output),
            attributes,
        )
        _check_against_schema(raw, self.opset, node)
        for name, body in raw.bodies.items() if kind_of(raw.op_type) == "branch" else ():
            if body.inputs:
                given = [one.removeprefix(prefix_of(first, name)) for one in body.inputs]
                raise InteropError(
                    f"node {label}: its {name} takes inputs, {given}, but a branch has none"
                )
        if "to" in attributes:  # a type, and a name before opset 6
            to = attributes["to"]
            dtype_of(to if isinstance(to, int) else 0, f"what node {label} casts to")
        for name in filter(None, node.output):
            if prefix + name in self.made or name in scope.maps[0]:
                raise InteropError(f"node {label}: its output {name!r} is made twice")
            self.made.add(prefix + name)
            scope[name] = prefix + name
        return raw

    def body(self, graph: Any, label: str, scope: Scope, prefix: str) -> RawBody:
        """A graph inside of a node."""
        inner = scope.new_child()
        nodes = self.nodes(graph, inner, prefix)
        missing = [one.name for one in graph.output if one.name not in inner]
        if missing:
            raise InteropError(f"node {label}: nothing makes the output {missing[0]!r} inside it")
        inputs = tuple(inner[one.name] for one in graph.input)
        return RawBody(
            tuple(name for name in inputs if name not in self.constants),
            tuple(inner[one.name] for one in graph.output),
            tuple(nodes),
        )


def _held(tensor: Any, folder: pathlib.Path | None, what: str) -> np.ndarray:
    """The array of a tensor; one that lies beside the model is put into it."""
    array = read_tensor(tensor, folder, what)
    if tensor.data_location:
        tensor.CopyFrom(import_onnx().numpy_helper.from_array(array, tensor.name))
    return array


# By AttributeProto.AttributeType; tensors and graphs are read elsewhere.
_ATTRIBUTES: Mapping[int, Callable[[Any], Any]] = {
    1: lambda one: float(one.f),
    2: lambda one: int(one.i),
    3: lambda one: one.s.decode(),
    6: lambda one: tuple(map(float, one.floats)),
    7: lambda one: tuple(map(int, one.ints)),
    8: lambda one: tuple(s.decode() for s in one.strings),
}


def _attribute(one: Any, label: str, folder: pathlib.Path | None) -> Any:
    if one.ref_attr_name:
        raise InteropError(f"node {label}: attributes of functions are not read here")
    if one.type == _TENSOR:
        return _held(one.t, folder, f"attribute {one.name!r} of node {label}")
    if one.type not in _ATTRIBUTES:
        raise InteropError(
            f"node {label}: attribute {one.name!r} holds something that is not read here"
        )
    try:
        return _ATTRIBUTES[one.type](one)
    except UnicodeDecodeError:
        raise InteropError(f"node {label}: attribute {one.name!r} is no text") from None


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


class _Folding:
    """Computes what follows from constants alone, but for what follows from ``shared`` ones.

    Attributes:
        constants: initialisers, and what was computed.
        roots: of each the parameters from which it follows.
    """

    def __init__(
        self, constants: Mapping[str, np.ndarray], opset: int, shared: frozenset[str]
    ) -> None:
        self.constants = dict(constants)
        self.opset = opset
        self.shared = shared
        self.roots = {name: _own_root(name, array) for name, array in constants.items()}
        self.left = max(_FEWEST_FOLDED, sum(array.size for array in constants.values()))

    def fold(self, nodes: Iterable[RawNode], surely: bool = True) -> list[RawNode]:
        """Those that remain; ``surely`` says whether they all run."""
        rest = []
        waiting = collections.deque(nodes)
        while waiting:
            raw = waiting.popleft()
            chosen = self.chosen(raw)
            if chosen is not None:  # its nodes take the place of the branch
                same = [
                    RawNode(SAME, raw.name, raw.label, (inner,), (outer,), {})
                    for inner, outer in zip(chosen.outputs, raw.outputs, strict=False)
                ]
                waiting.extendleft([*same[::-1], *chosen.nodes[::-1]])
            elif raw.bodies:
                inside = {
                    key: dataclasses.replace(body, nodes=tuple(self.fold(body.nodes, surely=False)))
                    for key, body in raw.bodies.items()
                }
                rest.append(dataclasses.replace(raw, attributes={**raw.attributes, **inside}))
            elif not self.compute(raw, surely):
                rest.append(raw)
        return rest

    def chosen(self, raw: RawNode) -> RawBody | None:
        """The branch that always runs, of a node whose condition is constant."""
        condition = self.constants.get(raw.input(0)) if kind_of(raw.op_type) == "branch" else None
        if condition is None or condition.dtype != bool or condition.size != 1:
            return None
        body = raw.attributes["then_branch" if condition.reshape(()) else "else_branch"]
        assert isinstance(body, RawBody)
        return body if len(body.outputs) >= len(raw.outputs) else None

    def compute(self, raw: RawNode, surely: bool) -> bool:
        """Whether it was computed: its inputs are known, and it makes a constant of them."""
        inputs = [name for name in raw.inputs if name]
        own = frozenset[str]().union(*(self.roots.get(name, ()) for name in inputs))
        operator = OPERATORS.get(raw.op_type)
        folds = operator is not None and (operator.folds or not own)
        if operator is not None and operator.costly and not own:
            folds = all(self.constants[n].size <= ALWAYS for n in inputs if n in self.constants)
        if not folds or own & self.shared or not all(name in self.constants for name in inputs):
            return False
        at = At(raw.label, self.opset, raw.attributes, len(raw.outputs), self.left)
        values = [self.constants[name] if name else None for name in raw.inputs]
        try:
            outputs = run_operator(raw.op_type, at, values)
        except TooLargeError:
            return False  # made when the graph runs, where more is allowed
        except InteropError:
            if surely:
                raise
            return False  # perhaps it never runs
        if not all(is_known(array) for array in outputs):
            return False
        for name, array in zip(raw.outputs, outputs, strict=False):
            self.constants[name] = array
            self.roots[name] = own
            self.left = max(0, self.left - array.size)
        return True


def _own_root(name: str, array: np.ndarray) -> frozenset[str]:
    """An initialiser of floats is a parameter; a single number is only if a layer takes it.

    What stands in a Constant node was a number in somebody's program, not in their weights.
    """
    is_parameter = jnp.issubdtype(array.dtype, jnp.floating) and array.size > 1
    return frozenset([name]) if is_parameter else frozenset()
