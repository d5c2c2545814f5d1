"""The network of an imported ONNX model: its nodes as data, and how they run."""

import collections
import dataclasses
import functools
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from rnnjax.cells.base import Carry, Params
from rnnjax.engine import unroll
from rnnjax.errors import InteropError, InvalidInputError
from rnnjax.interop.layers import Context, Flow, Layer, Recurrent, Shape, fits
from rnnjax.interop.model import Input, Network
from rnnjax.interop.onnx.at import At, Budget, is_fixed, is_known, traced_dtype
from rnnjax.interop.onnx.control import MOST_TRIPS, Inner
from rnnjax.interop.onnx.operators import run_operator
from rnnjax.interop.onnx.recurrent import RECURRENT, params_from_onnx
from rnnjax.interop.registry import places
from rnnjax.layers import Bidirectional, Directions

# Of the elements that a run may make: whatever is given, for each element that is given, and for
# each parameter. A file is small that asks for very much.
_ELEMENTS, _ELEMENTS_PER_INPUT, _ELEMENTS_PER_PARAMETER = 2**24, 2**20, 16

_NODES = 2**14  # of bodies, each time that one is traced or written out: loops in loops are many

CONSTANTS = "constants"
"""The layer that has the arrays of a graph that belong to no other."""


# --- The nodes ---


@dataclasses.dataclass(frozen=True)
class Constant:
    """An array that is no parameter: hashable, as it is a part of the network."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes = dataclasses.field(repr=False)

    @classmethod
    def of(cls, array: np.ndarray) -> "Constant":
        """A copy of the array."""
        return cls(array.dtype.name, array.shape, array.tobytes())

    @property
    def array(self) -> np.ndarray:
        """The array again."""
        return np.frombuffer(self.data, jnp.dtype(self.dtype)).reshape(self.shape)


@dataclasses.dataclass(frozen=True)
class Node:
    """A node of the graph."""

    op_type: str  # its operator
    label: str  # by which errors call it
    inputs: tuple[str, ...]  # the names of the values it takes; empty for one that is left out
    outputs: tuple[str, ...]  # the names of those it makes
    # pairs of names and values; an array is a `Constant`, a graph a `Body`
    attributes: tuple[tuple[str, Any], ...] = ()
    # of a recurrent node, the name of its layer; W, R and B are left out of its inputs if the
    # parameters of the layer are made of them
    layer: str = ""

    def input(self, index: int) -> str:
        """The name of an input; empty if it is left out."""
        return self.inputs[index] if index < len(self.inputs) else ""

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute, or the default."""
        return dict(self.attributes).get(name, default)

    @property
    def bodies(self) -> tuple["Body", ...]:
        """The graphs inside of it."""
        return tuple(value for _, value in self.attributes if isinstance(value, Body))

    @functools.cached_property
    def reads(self) -> tuple[str, ...]:
        """The names of all values that it or what is inside of it reads."""
        inside = [name for body in self.bodies for name in body.reads]
        return (*filter(None, self.inputs), *inside)


@dataclasses.dataclass(frozen=True)
class Body:
    """A graph inside of a node, which sees the values around it by their names."""

    inputs: tuple[str, ...]  # the names of its own
    outputs: tuple[str, ...]  # the names of what it makes
    nodes: tuple[Node, ...]  # in an order in which they can run

    @functools.cached_property
    def reads(self) -> tuple[str, ...]:
        """The names of all values that are read in it."""
        return (*(name for node in self.nodes for name in node.reads), *self.outputs)


def all_nodes(nodes: Sequence[Node]) -> Iterator[Node]:
    """The nodes, and the ones inside of them."""
    for node in nodes:
        yield node
        for body in node.bodies:
            yield from all_nodes(body.nodes)


@dataclasses.dataclass(frozen=True)
class Constants(Layer):
    """The arrays of a graph that belong to no layer, by their names in it."""

    name: str = CONSTANTS

    def run(
        self, params: Params, flow: Flow, carry: Carry | None, context: Context
    ) -> tuple[None, Flow]:
        """Change nothing: the nodes that read them do the work."""
        return None, flow

    def __str__(self) -> str:
        return "arrays of the graph"


# --- The network ---


@dataclasses.dataclass(frozen=True)
class Graph(Network):
    """An ONNX graph as a network; `rnnjax.interop.onnx.load` makes it.

    Attributes:
        opset: the version of ONNX's operators.
        inputs: of the graph, without its initialisers.
        outputs: the names of those that are no states of a node, which are in the carry.
        nodes: in an order in which they can run.
        layer_list: the recurrent layers, and `Constants` if there are any.
        constants: arrays that are no parameters: integers, and single numbers.
    """

    opset: int
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    layer_list: tuple[Layer, ...]
    constants: tuple[tuple[str, Constant], ...] = dataclasses.field(repr=False)

    @property
    def axes(self) -> str:
        """The graph's own, in words."""
        return "the graph's own"

    def num_steps(self, params: Params, xs: Any) -> int:
        """Raise InvalidInputError: only the graph knows which of its axes is time."""
        raise InvalidInputError(
            "lengths, mask and resets mark steps of time, but which axis is time, and where it "
            "goes, is known to the graph alone; leave them out, or use its own sequence_lens"
        )

    def run(
        self, params: Params, xs: Any, carry: Mapping[str, Carry], mask: Any, context: Context
    ) -> tuple[dict[str, Carry], Any]:
        """Run the nodes; ``xs`` and the outputs are dicts by name where there are several."""
        if mask is not None or context.resets is not None:
            self.num_steps(params, xs)
        carries, values = self.values(params, xs, carry, context)
        absent = [one.name for one in self.inputs if one.name not in values]
        if absent and not values.keys() >= set(self.outputs):
            raise InvalidInputError(
                f"the graph takes {[one.name for one in self.inputs]}, but its outputs do not "
                f"follow without {absent}; give xs as a dict with these"
            )
        ys = {name: jnp.asarray(_made(values, name)) for name in self.outputs}
        return carries, ys if len(ys) > 1 else ys[self.outputs[0]]

    def given(self, xs: Any) -> dict[str, Any]:
        """The arrays that were given, by the names of the inputs.

        Raises:
            InvalidInputError: one is unknown, or of another type or rank.
        """
        known = {one.name: one for one in self.inputs}
        if not isinstance(xs, Mapping):
            xs = {next(iter(known), "xs"): xs}
        if not set(xs) <= set(known):
            raise InvalidInputError(
                f"the graph takes {list(known)}, but xs has {sorted(map(str, xs))}; give some of "
                "these"
            )
        return {name: _as_input(known[name], x) for name, x in xs.items()}

    def values(
        self, params: Params, xs: Any, carry: Mapping[str, Carry], context: Context
    ) -> tuple[dict[str, Carry], dict[str, Any]]:
        """The carries, and all values of the graph by their names."""
        given = self.given(xs)
        values: dict[str, Any] = {name: constant.array for name, constant in self.constants}
        elements = (
            _ELEMENTS + _ELEMENTS_PER_PARAMETER * _size(params) + _ELEMENTS_PER_INPUT * _size(given)
        )
        values |= {name: jnp.asarray(x) for name, x in params.get(CONSTANTS, {}).items()}
        values |= given
        nodes = _NODES + 4 * sum(1 for _ in all_nodes(self.nodes))
        run = _Run(self, params, carry, context, Budget(elements, nodes))
        run.nodes(self.nodes, values)
        return run.carries, values

    def initial_carry(
        self, batch_shape: tuple[int, ...] = (), dtype: DTypeLike | None = None
    ) -> dict[str, Carry]:
        """The state with which a sequence begins; layers inside of branches and loops have none."""
        states = super().initial_carry(batch_shape, dtype)
        return {node.layer: states[node.layer] for node in self.nodes if node.layer}


@dataclasses.dataclass(frozen=True)
class _Run:
    """One run of a graph, or of a body in it."""

    graph: Graph
    params: Params  # of its layers
    carry: Mapping[str, Carry]  # that was given
    context: Context  # that was given
    budget: Budget  # what may still be made
    once: bool = True  # whether what runs here runs once, so that states can go in and come out
    trips: int = 1  # how often what runs here runs, at most
    carries: dict[str, Carry] = dataclasses.field(default_factory=dict)  # the states after it

    def nodes(self, nodes: Sequence[Node], values: MutableMapping[str, Any]) -> None:
        """Run nodes whose inputs are there, and put what they make into ``values``."""
        for i, node in enumerate(nodes):
            if node.op_type in RECURRENT:
                if node.inputs[0] in values:
                    self.recurrent(node, values)
            # Nodes that only prepare a state have no inputs where there is no state.
            elif all(name in values for name in node.inputs if name):
                key = self.context.key
                if key is not None and (node.bodies or node.op_type == "Dropout"):
                    key = jax.random.fold_in(key, i)
                attributes = {
                    name: self.inner(value, values, key)
                    if isinstance(value, Body)
                    else value.array
                    if isinstance(value, Constant)
                    else value
                    for name, value in node.attributes
                }
                inputs = [values[name] if name else None for name in node.inputs]
                count = len(node.outputs)
                at = At(node.label, self.graph.opset, attributes, count, self.budget, key)
                outputs = run_operator(node.op_type, at, inputs)
                values.update(zip(node.outputs, outputs, strict=False))

    def recurrent(self, node: Node, values: MutableMapping[str, Any]) -> None:
        """Run a recurrent node, and keep its state."""
        layer, state = self.graph.layers[node.layer], self.carry.get(node.layer)
        assert isinstance(layer, Recurrent)
        if state is not None and not self.once:
            raise InvalidInputError(
                f"node {node.label} runs in a loop, or in a branch that is chosen when the graph "
                f"runs, so that {node.layer!r} has no state of its own; leave it out of carry"
            )
        params = self.params.get(node.layer, {})
        self.carries[node.layer] = _run_recurrent(node, layer, params, values, state, self.context)

    def inner(self, body: Body, around: MutableMapping[str, Any], key: Any) -> Inner:
        """A graph inside of a node, to be run by its operator."""
        here = dataclasses.replace(self, context=dataclasses.replace(self.context, key=key))

        def run(here: "_Run", nodes: Sequence[Node], around: Any, cost: float, inputs: Any) -> Any:
            self.budget.nodes -= cost
            if self.budget.nodes < 0:
                raise InteropError(
                    f"loops in loops run more than {_NODES:,} nodes one by one; let their "
                    "conditions and shapes be the same in all steps"
                )
            given = zip(body.inputs, inputs, strict=True)
            values: Any = collections.ChainMap({n: x for n, x in given if x is not None}, around)
            here.nodes(nodes, values)
            return values

        def once(*inputs: Any) -> list[Any]:
            values = run(here, body.nodes, around, len(body.nodes), inputs)
            return [_made(values, name) for name in body.outputs]

        def trace(times: int, *inputs: Any) -> list[Any]:
            trips = self.trips * max(1, times)
            if trips > MOST_TRIPS:
                raise InteropError(
                    f"loops in each other run {trips:,} trips, but at most {MOST_TRIPS:,} are run; "
                    "check the numbers of trips in the file, or give shorter sequences"
                )
            # States after a node that runs often, or not at all, are not those of a layer.
            often = dataclasses.replace(here, once=False, trips=trips, carries={})
            values = run(often, body.nodes, around, len(body.nodes), inputs)
            return [_made(values, name) for name in body.outputs]

        @functools.cache
        def before() -> tuple[list[Node], dict[str, Any]]:
            """What may run on known values, and those that are there."""
            plain = [n for n in body.nodes if not n.bodies and n.op_type not in RECURRENT]
            return plain, {name: x for name, x in around.items() if is_known(x)}

        def known(*inputs: Any) -> list[Any]:
            plain, seen = before()
            values = run(self, plain, seen, len(plain) / 64, inputs)  # NumPy is so much faster
            return [values.get(name) for name in body.outputs]

        return Inner(once, trace, known)


def _size(arrays: Any) -> int:
    """How many elements there are, of arrays whose sizes are numbers."""
    sizes = (jnp.size(x) for x in jax.tree.leaves(arrays))
    return sum(size for size in sizes if is_fixed(size))


def _made(values: Mapping[str, Any], name: str) -> Any:
    """A value of a graph that is an output."""
    if name not in values:
        raise InteropError(
            f"the graph gives {name!r}, which no node makes: an operator before it has fewer "
            "outputs than are named; export the model again, for inference"
        )
    return values[name]


def _as_input(known: Input, came: Any) -> Any:
    dtype = jnp.dtype(known.dtype)
    try:
        x = jnp.asarray(came)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f"input {known.name!r} must be an array of numbers, but {type(came).__name__} came: "
            f"{str(error).splitlines()[0]}"
        ) from error
    expected = traced_dtype(dtype, f"input {known.name}")
    kinds = [np.floating, np.integer, np.bool_]
    if not any(jnp.issubdtype(x.dtype, k) and jnp.issubdtype(expected, k) for k in kinds):
        raise InvalidInputError(
            f"input {known.name!r} is {expected}, but got {x.dtype}{list(x.shape)}"
        )
    if known.shape is not None and not fits({known.name: known.shape}, {known.name: x.shape}):
        sizes = ", ".join("any" if n is None else str(n) for n in known.shape)
        raise InvalidInputError(
            f"input {known.name!r} has shape ({sizes}), but got {x.shape}; the axes are those of "
            "the graph, in its own order"
        )
    if not x.ndim and not isinstance(came, jax.Array) and not jnp.issubdtype(dtype, jnp.floating):
        return np.asarray(came).astype(dtype)  # stays known: branches and shapes may follow from it
    return x.astype(expected)


# --- Recurrent nodes ---


def _run_recurrent(
    node: Node,
    layer: Recurrent,
    params: Params,
    values: MutableMapping[str, Any],
    carry: Carry | None,
    context: Context,
) -> Carry:
    """Run the cell, put Y, Y_h and Y_c into ``values``, and return its carry."""
    xs = jnp.asarray(values[node.inputs[0]])
    if xs.ndim != 3:
        raise InteropError(
            f"node {node.label}: its input X has shape {list(xs.shape)}, but should have three axes"
        )
    steps, batch = xs.shape[:2]
    if node.input(1):
        names = [node.input(place) for place in WEIGHTS]
        weights = [jnp.asarray(values[name]) if name else None for name in names]
        check_weights(node, layer, weights)
        params = params_from_onnx(layer.cell, *weights)
    states = [values.get(name) if name else None for name in node.inputs[5:7]]
    if carry is None and any(state is not None for state in states):
        carry = _carry_of(node, layer, states, batch)
    lengths = values.get(node.input(4)) if node.input(4) else None
    if lengths is not None and lengths.shape != (batch,):
        raise InteropError(
            f"node {node.label}: its sequence_lens have shape {list(lengths.shape)}, but should be "
            f"{batch} integers"
        )
    carry, ys = unroll(
        layer.cell,
        params,
        xs,
        carry,
        lengths=None if lengths is None else jnp.asarray(lengths),
        reverse=layer.reverse,
        method=context.method,
    )
    sides = _directions(layer)
    ys = ys.reshape(steps, batch, sides, ys.shape[-1] // sides)
    each = carry if isinstance(carry, Directions) else (carry,)
    finals = [jnp.stack(leaves) for leaves in zip(*each, strict=True)]
    made = jnp.swapaxes(ys, 1, 2), *finals
    values.update(
        (name, y.astype(xs.dtype)) for name, y in zip(node.outputs, made, strict=False) if name
    )
    return carry


WEIGHTS = (1, 2, 3)
"""The places of W, R and B in the inputs of a recurrent node."""


def _directions(layer: Recurrent) -> int:
    return 2 if isinstance(layer.cell, Bidirectional) else 1


def check_weights(node: Node, layer: Recurrent, weights: Sequence[Any]) -> None:
    """Raise unless the arrays are of the shapes that the node's attributes ask for."""
    cell = layer.cell.cells[0] if isinstance(layer.cell, Bidirectional) else layer.cell
    size: int = cell.output_size
    gates = len(places("onnx", cell))
    directions = _directions(layer)
    shapes: dict[str, Shape] = {
        "W": (directions, gates * size, None),
        "R": (directions, gates * size, size),
        "B": (directions, 2 * gates * size),
    }
    for (name, shape), array in zip(shapes.items(), weights, strict=True):
        if array is None:
            continue
        well = fits({name: shape}, {name: array.shape}) and 0 not in array.shape
        if not well or not jnp.issubdtype(array.dtype, jnp.floating):
            sizes = ", ".join("input size" if n is None else str(n) for n in shape)
            raise InteropError(
                f"node {node.label}: its {name} is {array.dtype}{list(array.shape)}, but with "
                f"{size} hidden units and {directions} directions it should be floats ({sizes})"
            )


def _carry_of(node: Node, layer: Recurrent, states: Sequence[Any], batch: int) -> Carry:
    """The cell's carry from initial_h and initial_c."""
    zeros = layer.cell.initial_carry((batch,))
    sides = len(zeros) if isinstance(zeros, Directions) else 1

    def one(leaf: jax.Array, state: Any, side: int) -> jax.Array:
        if state is None:
            return leaf
        expected = (sides, batch, leaf.shape[-1])
        if state.shape != expected:
            raise InteropError(
                f"node {node.label}: an initial state has shape {list(state.shape)}, but should "
                f"have {list(expected)}"
            )
        return jnp.asarray(state)[side].astype(leaf.dtype)

    given = [*states, None][:2]
    each = [
        type(carry)(*(one(*pair, side) for pair in zip(carry, given, strict=False)))
        for side, carry in enumerate(zeros if isinstance(zeros, Directions) else (zeros,))
    ]
    return Directions(*each) if isinstance(zeros, Directions) else each[0]
