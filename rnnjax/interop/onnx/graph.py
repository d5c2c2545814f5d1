"""The network of an imported ONNX model: its nodes as data, and how they run."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from rnnjax.cells.base import Params
from rnnjax.errors import InvalidInputError
from rnnjax.interop.causal import keeps_apart
from rnnjax.interop.layers import Carries, Context, Layer, Shape, fits
from rnnjax.interop.model import Input, Network, Result
from rnnjax.interop.onnx.control import At, fitting, is_fixed, made, naming, traced_dtype
from rnnjax.interop.onnx.operators import run_operator

# Of the elements that a run may make: whatever is given, for each element that is given, and for
# each parameter. A file is small that asks for very much. What is known does not grow with what is
# given: it is computed while the shapes of all others are looked at, before one of them is made.
_ELEMENTS, _ELEMENTS_PER_INPUT, _ELEMENTS_PER_PARAMETER, _KNOWN = 2**24, 2**20, 16, 2**23

_NODES = 2**18  # that are run to count the steps of loops, in 20 s

CONSTANTS = "constants"
"""Where the parameters are that belong to no layer, by their names in the graph."""


@dataclasses.dataclass(frozen=True)
class Node:
    """A node of the graph, read and checked."""

    op_type: str  # its operator
    label: str  # by which errors call it
    inputs: tuple[str, ...]  # the names of the values it takes; empty for one that is left out
    outputs: tuple[str, ...]  # the names of those it makes
    # pairs of names and values; a graph is a `Body`
    attributes: tuple[tuple[str, Any], ...] = ()
    layer: str = ""  # the name of that of a recurrent node

    def input(self, index: int) -> str:
        """The name of an input; empty if it is left out."""
        return self.inputs[index] if index < len(self.inputs) else ""

    def get(self, name: str, default: Any = None) -> Any:
        """Return an attribute, or the default."""
        return dict(self.attributes).get(name, default)

    @property
    def bodies(self) -> tuple["Body", ...]:
        """The graphs in the node's attributes."""
        return tuple(value for _, value in self.attributes if isinstance(value, Body))


@dataclasses.dataclass(frozen=True)
class Body:
    """A graph inside of a node, which sees the values around it by their names."""

    inputs: tuple[str, ...]  # the names of its own
    outputs: tuple[str, ...]  # the names of what it makes
    nodes: tuple[Node, ...]  # in an order in which they can run


def all_nodes(nodes: Sequence[Node]) -> Iterator[Node]:
    """The nodes, and the ones inside of them."""
    for node in nodes:
        yield node
        for body in node.bodies:
            yield from all_nodes(body.nodes)


@dataclasses.dataclass(frozen=True)
class Graph(Network):
    """An ONNX graph as a network; `rnnjax.interop.onnx.load` makes it.

    Attributes:
        opset: the version of ONNX's operators.
        inputs: of the graph, without its initialisers.
        outputs: the names of those that are no states of a node, which are in the carry.
        nodes: in an order in which they can run.
        layer_list: the recurrent layers.
        constants: arrays that are no parameters, integers and single numbers: of each its name,
            type, shape and bytes, which can be hashed.
    """

    opset: int
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    layer_list: tuple[Layer, ...]
    constants: tuple[tuple[str, str, Shape, bytes], ...] = dataclasses.field(repr=False)

    axes = "the graph's own"

    def num_steps(self, params: Params, xs: Any) -> int:
        """The number of steps along the axis of time.

        Raises:
            InvalidInputError: there is no open axis along which all recurrent nodes go, and whose
                steps all others keep apart.
        """
        known = {one.name: one.shape or () for one in self.inputs}
        given = xs if isinstance(xs, Mapping) else {next(iter(known), "xs"): xs}
        leaves, tree = jax.tree.flatten(params)
        axis = _time_axis(self, tree, tuple((np.shape(x), jnp.result_type(x)) for x in leaves))
        for name, x in given.items():
            if axis is not None and known.get(name, ())[axis : axis + 1] == (None,):
                return int(np.shape(x)[axis])
        raise InvalidInputError(
            "lengths and mask mark steps of time, but the graph has no open axis along which its "
            "recurrent nodes go, and whose steps all others keep apart; leave them out, or use its "
            "own sequence_lens"
        )

    def run(self, params: Params, xs: Any, carry: Carries, mask: Any, context: Context) -> Result:
        """Run the nodes; ``xs`` and the outputs are dicts by name where there are several."""
        if context.resets is not None:
            raise InvalidInputError(
                "a graph of ONNX has no place for resets; leave them out, or begin with a new carry"
            )
        if mask is not None and context.language != "steps":
            self.num_steps(params, xs)
        carries, values = self.values(params, xs, carry, context, mask)
        absent = [one.name for one in self.inputs if one.name not in values]
        if absent and not values.keys() >= set(self.outputs):
            raise InvalidInputError(
                f"the graph takes {[one.name for one in self.inputs]}, but its outputs do not "
                f"follow without {absent}; give xs as a dict with these"
            )
        ys = {n: jnp.asarray(fitting(made(values, n), n)) for n in self.outputs}
        return carries, ys if len(ys) > 1 else ys[self.outputs[0]]

    def shapes(self, steps: int, axis: int) -> Iterator[tuple[str, Any]]:
        """The shapes and types of the inputs that are no states, with as many steps along an axis.

        Other sizes that are open are 1.
        """
        states = {name for node in self.nodes if node.layer for name in node.inputs[4:]}
        for one in self.inputs:
            if one.name not in states:
                shape = [n or (1, steps)[i == axis] for i, n in enumerate(one.shape)]
                dtype = jax.dtypes.canonicalize_dtype(one.dtype)
                yield one.name, jax.ShapeDtypeStruct(shape, dtype)

    def values(
        self, params: Params, xs: Any, carry: Carries, context: Context, mask: Any = None
    ) -> Result:
        """The carries, and all values of the graph by their names."""
        known = {one.name: one for one in self.inputs}
        if not isinstance(xs, Mapping):
            xs = {next(iter(known), "xs"): xs}
        if not set(xs) <= set(known):
            came = sorted(map(str, xs))
            raise InvalidInputError(f"the graph takes {list(known)}, but xs has {came}; give those")
        given = {name: _as_input(known[name], x) for name, x in xs.items()}
        each = _ELEMENTS_PER_PARAMETER * _size(params)
        elements = _ELEMENTS + each + _ELEMENTS_PER_INPUT * _size(given)
        values: dict[str, Any] = {
            name: np.frombuffer(data, jnp.dtype(dtype)).reshape(shape)
            for name, dtype, shape, data in self.constants
        }
        values |= {name: jnp.asarray(x) for name, x in params.get(CONSTANTS, {}).items()}
        values |= given

        def run() -> Result:
            left = {"known": _KNOWN + each, "elements": elements, "nodes": _NODES}
            one, made = _Run(self, params, carry, context, left, mask), {**values}
            one.nodes(self.nodes, made)
            return one.carries, made

        if not any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((params, given, carry))):
            jax.eval_shape(lambda: run() and None)  # raises before there is anything in memory
        return run()

    def initial_carry(
        self, params: Params, batch_shape: tuple[int, ...] = (), dtype: DTypeLike | None = None
    ) -> Carries:
        """The state with which a sequence begins; layers inside of branches and loops have none."""
        states = super().initial_carry(params, batch_shape, dtype)
        return {node.layer: states[node.layer] for node in self.nodes if node.layer}


@functools.lru_cache(256)
def _time_axis(graph: Graph, tree: Any, leaves: Any) -> int | None:
    """The axis of time, which recurrent nodes go along: for them it comes before the batch."""
    params = jax.tree.unflatten(tree, [jax.ShapeDtypeStruct(*leaf) for leaf in leaves])

    def run(given: Any) -> Any:
        params, xs, mask = given
        return graph.run(params, xs, {}, mask, Context(language="steps"))[1]

    def inputs(axis: int, steps: int) -> Any:
        mask = jax.ShapeDtypeStruct((steps, 1), np.bool_)
        return params, dict(graph.shapes(steps, axis)), mask

    for axis in range(2 * bool(graph.recurrent)):
        if keeps_apart(run, functools.partial(inputs, axis)):
            return axis
    return None


def _size(arrays: Any) -> int:
    sizes = (jnp.size(x) for x in jax.tree.leaves(arrays))
    return sum(size for size in sizes if is_fixed(size))


def _as_input(known: Input, came: Any) -> Any:
    dtype, what = jnp.dtype(known.dtype), f"input {known.name!r}"
    try:
        x = jnp.asarray(came)
    except (TypeError, ValueError) as error:
        kind = type(came).__name__
        raise InvalidInputError(f"{what} must be an array of numbers, but {kind} came") from error
    fitting(came, what)
    expected = traced_dtype(dtype, what)
    kinds = [np.floating, np.integer, np.bool_]
    if not any(jnp.issubdtype(x.dtype, k) and jnp.issubdtype(expected, k) for k in kinds):
        raise InvalidInputError(f"{what} is {expected}, but got {x.dtype}{list(x.shape)}")
    if known.shape is not None and not fits({"": known.shape}, {"": x.shape}):
        sizes = ", ".join("any" if n is None else str(n) for n in known.shape)
        raise InvalidInputError(
            f"{what} has shape ({sizes}), but got {x.shape}; give the axes in the graph's order"
        )
    if not x.ndim and not isinstance(came, jax.Array) and not jnp.issubdtype(dtype, jnp.floating):
        return np.asarray(came).astype(dtype)  # stays known: branches and shapes may follow from it
    return x.astype(expected)


@dataclasses.dataclass(frozen=True)
class _Run:
    """One run of a graph, or of a body in it."""

    graph: Graph
    params: Params  # of its layers
    carry: Carries  # that was given
    context: Context  # that was given
    left: dict[str, int]  # what may still be done: elements to make, and nodes to count steps by
    mask: Any = None  # which steps are valid, (time, batch)
    trips: int = 0  # how often what runs here runs, at most; 0 for once, with states in and out
    carries: Carries = dataclasses.field(default_factory=dict)  # the states after it

    def nodes(self, nodes: Sequence[Node], values: MutableMapping[str, Any]) -> int:
        """Run nodes whose inputs are there, put what they make into ``values``, and count them."""
        ran = 0
        for i, node in enumerate(nodes):
            # Of a recurrent node states may be left out, and weights be parameters of its layer.
            weights = 1 if node.layer in self.params else 4
            needed = node.inputs[:weights] if node.layer else node.inputs
            # Nodes that only prepare a state have no inputs where there is no state.
            if all(name in values for name in needed if name):
                inputs = [values.get(name) if name else None for name in node.inputs]
                with naming(node.label):
                    outputs = run_operator(node.op_type, At(node, i, self, values, nodes), inputs)
                values.update(zip(node.outputs, outputs, strict=False))
                ran += 1
        return ran
