"""The network of an imported ONNX model: its nodes, and how they run."""

import collections
import dataclasses
import functools
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from rnnjax.cells.base import Carry, Params
from rnnjax.engine import unroll
from rnnjax.errors import InteropError, InvalidInputError, RnnjaxError
from rnnjax.interop.layers import Context, Dense, Embedding, Flow, Layer, Recurrent, Shape, fits
from rnnjax.interop.model import Network
from rnnjax.interop.onnx.at import (
    MOST_ELEMENTS,
    MOST_KNOWN_ELEMENTS,
    At,
    TooLargeError,
    is_known,
    traced_dtype,
)
from rnnjax.interop.onnx.axes import Axes
from rnnjax.interop.onnx.control import Inner
from rnnjax.interop.onnx.follow import follow
from rnnjax.interop.onnx.layers import input_size
from rnnjax.interop.onnx.nodes import (
    Body,
    Constant,
    Input,
    LayerNode,
    Node,
    Operation,
    RecurrentNode,
    count_nodes,
)
from rnnjax.interop.onnx.operators import kind_of, run_operator
from rnnjax.interop.onnx.places import take_rows
from rnnjax.interop.onnx.recurrent import RECURRENT, Weights, params_from_onnx
from rnnjax.layers import Bidirectional, Directions

STEPS, BATCH = 6, 2  # of inputs whose sizes nothing tells

MOST_NODES_AGAIN = 2**13
"""Of loops that are written out, beside four times all there are: loops in loops are many."""

CONSTANTS = "constants"
"""The layer that has the arrays of a graph that belong to no other."""


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


@dataclasses.dataclass(frozen=True)
class Graph(Network):
    """An ONNX graph as a network; `rnnjax.interop.onnx.load` makes it.

    Attributes:
        opset: the version of ONNX's operators.
        inputs: of the graph, without its initialisers.
        outputs: the names of those that are data; the others are states, and are in the carry.
        nodes: in an order in which they can run.
        layer_list: the layers that some of them are.
        constants: arrays that are no parameters: integers, and single numbers.
        exchanged: the inputs and outputs that have batch first in the graph, and time first where
            they are given and returned; None where all keep the graph's own axes.
    """

    opset: int
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    layer_list: tuple[Layer, ...]
    constants: tuple[tuple[str, Constant], ...] = dataclasses.field(repr=False)
    exchanged: tuple[str, ...] | None = None

    @property
    def axes(self) -> str:
        """Time first, or those of the graph."""
        return "the graph's own" if self.exchanged is None else super().axes

    @property
    def layers(self) -> Mapping[str, Layer]:
        """The layers by their names, in the order of their nodes."""
        return {layer.name: layer for layer in self.layer_list}

    @property
    def data_inputs(self) -> tuple[str, ...]:
        """The names of the inputs that must be given."""
        return tuple(one.name for one in self.inputs if one.role == "data")

    def num_steps(self, params: Params, xs: Any) -> int:
        """The size of the axis of time of ``xs``.

        Raises:
            InvalidInputError: the axes of time and batch do not reach all recurrent layers as they
                are in ``xs``.
        """
        given = self.given(xs)
        name, axes = self.followed(params, given)
        return int(np.shape(given[name])[axes[name][0]])

    def followed(self, params: Params, given: Mapping[str, Any]) -> tuple[str, dict[str, Axes]]:
        """The data input that reaches all recurrent nodes, and where its axes go; see `follow`."""
        shapes: dict[str, tuple[int, ...]] = {}
        plain = dataclasses.replace(self, exchanged=None)
        known = {name: x for name, x in given.items() if is_known(x)}

        def trace(params: Params, given: dict[str, Any]) -> None:
            values = plain.values(params, known | given, {}, None, Context())[1]
            shapes.update({name: tuple(value.shape) for name, value in values.items()})

        jax.eval_shape(trace, params, {n: x for n, x in given.items() if n not in known})
        return follow(self.nodes, self.opset, shapes, self.data_inputs)

    def run(
        self, params: Params, xs: Any, carry: Mapping[str, Carry], mask: Any, context: Context
    ) -> tuple[dict[str, Carry], Any]:
        """Run the nodes; ``xs`` and the outputs are dicts by name where there are several."""
        if mask is not None or context.resets is not None:
            self.num_steps(params, xs)  # raises where marks of time mean nothing
        carries, values = self.values(params, xs, carry, mask, context)
        ys = {
            name: self._exchanged(name, jnp.asarray(_made(values, name))) for name in self.outputs
        }
        return carries, ys if len(ys) > 1 else ys[self.outputs[0]]

    def given(self, xs: Any) -> dict[str, Any]:
        """The arrays that were given, by the names of the inputs.

        Raises:
            InvalidInputError: one is missing or unknown, or of another type or rank.
        """
        needed = self.data_inputs
        if not isinstance(xs, Mapping):
            if len(needed) != 1:
                raise InvalidInputError(
                    f"the graph has the inputs {', '.join(needed) or 'none'}, so xs must be a dict "
                    "of arrays by their names"
                )
            xs = {needed[0]: xs}
        known = {one.name: one for one in self.inputs}
        if not set(needed) <= set(xs) <= set(known):
            raise InvalidInputError(
                f"xs has {sorted(xs)}, but the graph needs {list(needed)} and takes {list(known)}"
            )
        return {
            name: self._exchanged(name, _as_input(known[name], x, name in (self.exchanged or ())))
            for name, x in xs.items()
        }

    def _exchanged(self, name: str, x: jax.Array) -> jax.Array:
        return jnp.swapaxes(x, 0, 1) if name in (self.exchanged or ()) else x

    def values(
        self, params: Params, xs: Any, carry: Mapping[str, Carry], mask: Any, context: Context
    ) -> tuple[dict[str, Carry], dict[str, Any]]:
        """The carries, and all values of the graph by their names."""
        values: dict[str, Any] = {name: constant.array for name, constant in self.constants}
        values |= {name: jnp.asarray(x) for name, x in params.get(CONSTANTS, {}).items()}
        values |= self.given(xs)
        run = _Run(self, params, carry, mask, context)
        run.again[0] += 4 * count_nodes(self.nodes)
        run.nodes(self.nodes, values)
        return run.carries, values

    def initial_carry(
        self, batch_shape: tuple[int, ...] = (), dtype: DTypeLike | None = None
    ) -> dict[str, Carry]:
        """The state with which a sequence begins; layers inside of branches and loops have none."""
        states = super().initial_carry(batch_shape, dtype)
        own = [node.layer for node in self.nodes if isinstance(node, RecurrentNode)]
        return {name: states[name] for name in own}


@dataclasses.dataclass
class _Run:
    """One run of a graph."""

    graph: Graph  # which runs
    params: Params  # of its layers
    carry: Mapping[str, Carry]  # that was given
    mask: Any  # that was given
    context: Context  # that was given
    once: bool = True  # whether what runs here runs once, so that states can go in and come out
    carries: dict[str, Carry] = dataclasses.field(default_factory=dict)  # the states behind
    left: int = MOST_KNOWN_ELEMENTS  # how many elements may still be made of known ones
    # how many nodes of loops may still be run again, one by one
    again: list[int] = dataclasses.field(default_factory=lambda: [MOST_NODES_AGAIN])

    def nodes(self, nodes: Sequence[Node], values: MutableMapping[str, Any]) -> None:
        """Run nodes whose inputs are there, and put what they make into ``values``."""
        layers = self.graph.layers
        for i, node in enumerate(nodes):
            if isinstance(node, RecurrentNode):
                self.recurrent(node, values)
            elif isinstance(node, LayerNode):
                values[node.outputs[0]] = _run_layer(
                    node, layers[node.layer], self.params.get(node.layer, {}), values, self.context
                )
            # Nodes that only prepare a state have no inputs where there is no state.
            elif isinstance(node, Operation) and all(n in values for n in node.inputs if n):
                inputs = [values[name] if name else None for name in node.inputs]
                most = self.left if all(map(is_known, inputs)) else MOST_ELEMENTS
                key = self.context.key
                if key is not None and (node.bodies or kind_of(node.op_type) == "dropout"):
                    key = jax.random.fold_in(key, i)
                arguments = {
                    name: self.inner(value, values, key) if isinstance(value, Body) else value
                    for name, value in node.arguments().items()
                }
                at = At(node.name, self.graph.opset, arguments, len(node.outputs), most, key)
                outputs = run_operator(node.op_type, at, inputs)
                values.update(zip(node.outputs, outputs, strict=False))
                self.left = max(0, self.left - sum(y.size for y in outputs if is_known(y)))

    def recurrent(self, node: RecurrentNode, values: MutableMapping[str, Any]) -> None:
        """Run a recurrent node, and keep its state."""
        layer, state = self.graph.layers[node.layer], self.carry.get(node.layer)
        assert isinstance(layer, Recurrent)
        if state is not None and not self.once:
            raise InvalidInputError(
                f"node {node.name} runs in a loop, or in a branch that is chosen when the graph "
                f"runs, so that {node.layer!r} has no state of its own; leave it out of carry"
            )
        params = self.params.get(node.layer, {})
        self.carries[node.layer] = _run_recurrent(
            node, layer, params, values, state, self.mask, self.context
        )

    def inner(self, body: Body, around: MutableMapping[str, Any], key: Any) -> Inner:
        """A graph inside of a node, to be run by its operator."""
        context = dataclasses.replace(self.context, key=key)

        def run(once: bool, *inputs: Any) -> list[Any]:
            self.again[0] -= len(body.nodes)
            if self.again[0] < 0:
                raise TooLargeError(
                    f"loops in loops run more than {MOST_NODES_AGAIN:,} nodes one by one; let "
                    "their conditions and shapes be the same in all steps"
                )
            # States behind a node that runs often, or not at all, are not those of a layer.
            here = self if once else dataclasses.replace(self, once=False, carries={})
            here = dataclasses.replace(here, context=context)
            values = collections.ChainMap(dict(zip(body.inputs, inputs, strict=True)), around)
            here.nodes(body.nodes, values)
            self.left = here.left
            return [_made(values, name) for name in body.outputs]

        return Inner(functools.partial(run, self.once), functools.partial(run, False))


def _made(values: Mapping[str, Any], name: str) -> Any:
    """A value of a graph that is an output."""
    if name not in values:
        raise InteropError(
            f"the graph gives {name!r}, which no node makes: an operator before it has fewer "
            "outputs than are named; export the model again, for inference"
        )
    return values[name]


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
        axes = graph.followed(params, {entries[0].name: x})[1]
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


def _as_input(known: Input, came: Any, exchanged: bool) -> Any:
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
    fixed = known.shape
    if fixed is not None and exchanged:
        fixed = (fixed[1], fixed[0], *fixed[2:])
    if fixed is not None and not fits({known.name: fixed}, {known.name: x.shape}):
        sizes = ", ".join("any" if n is None else str(n) for n in fixed)
        raise InvalidInputError(
            f"input {known.name!r} has shape ({sizes}), but got {x.shape}; the axes are "
            + ("time first" if exchanged else "those of the graph, in its own order")
        )
    if not x.ndim and not isinstance(came, jax.Array) and not jnp.issubdtype(dtype, jnp.floating):
        return np.asarray(came).astype(dtype)  # stays known: branches and shapes may follow from it
    return x.astype(expected)


def _run_layer(
    node: LayerNode, layer: Layer, params: Params, values: Mapping[str, Any], context: Context
) -> Any:
    x = jnp.asarray(values[node.inputs[0]])
    if isinstance(layer, Embedding):  # whose negative ids count from the end, unlike an Embedding's
        if not jnp.issubdtype(x.dtype, jnp.integer):
            raise InteropError(f"node {node.name}: its ids are {x.dtype}, but should be integers")
        return take_rows(jnp.asarray(params["embedding"]), x, 0)
    if not x.ndim:
        raise InteropError(f"node {node.name}: its input is a single number, but needs axes")
    return layer.run(params, Flow(x), None, context)[1].xs


# --- Recurrent nodes ---


def _run_recurrent(
    node: RecurrentNode,
    layer: Recurrent,
    params: Params,
    values: MutableMapping[str, Any],
    carry: Carry | None,
    mask: Any,
    context: Context,
) -> Carry:
    """Run the cell, put Y, Y_h and Y_c into ``values``, and return its carry."""
    x_name, lengths_name, *state_names = node.inputs
    if x_name not in values:
        raise InteropError(f"node {node.name}: its input {x_name!r} follows from a state alone")
    xs = jnp.asarray(values[x_name])
    if xs.ndim != 3:
        raise InteropError(
            f"node {node.name}: its input X has shape {list(xs.shape)}, but should have three axes"
        )
    xs = jnp.swapaxes(xs, 0, 1) if node.layout else xs
    steps, batch = xs.shape[:2]
    if node.weights is not None:
        arrays = [jnp.asarray(values[name]) if name else None for name in node.weights]
        check_weights(node, layer, Weights(*arrays))
        params = params_from_onnx(layer.cell, *arrays)
    states = [values.get(name) if name else None for name in state_names]
    if carry is None and any(state is not None for state in states):
        carry = _carry_of(node, layer, states, batch)
    lengths = values.get(lengths_name) if lengths_name else None
    valid = mask if lengths is None else _valid(node, lengths, steps, batch, mask)
    carry, ys = unroll(
        layer.cell,
        params,
        xs,
        carry,
        mask=valid,
        resets=context.resets,
        reverse=layer.reverse,
        method=context.method,
    )
    sides = _directions(layer)
    ys = ys.reshape(steps, batch, sides, ys.shape[-1] // sides)
    made = _outputs(node, carry, ys)
    values.update(
        (name, y.astype(xs.dtype)) for name, y in zip(node.outputs, made, strict=False) if name
    )
    return carry


def _directions(layer: Recurrent) -> int:
    return 2 if isinstance(layer.cell, Bidirectional) else 1


def check_weights(node: RecurrentNode, layer: Recurrent, weights: Weights) -> None:
    """Raise unless the arrays are of the shapes that the node's attributes ask for."""
    cell = layer.cell.cells[0] if isinstance(layer.cell, Bidirectional) else layer.cell
    size: int = cell.output_size
    gates = RECURRENT[node.op_type].gates
    directions = _directions(layer)
    shapes: dict[str, Shape] = {
        "W": (directions, gates * size, None),
        "R": (directions, gates * size, size),
        "B": (directions, 2 * gates * size),
        "P": (directions, 3 * size),
    }
    for (name, shape), array in zip(shapes.items(), weights, strict=True):
        if array is None:
            continue
        well = fits({name: shape}, {name: array.shape}) and 0 not in array.shape
        if not well or not jnp.issubdtype(array.dtype, jnp.floating):
            sizes = ", ".join("input size" if n is None else str(n) for n in shape)
            raise InteropError(
                f"node {node.name}: its {name} is {array.dtype}{list(array.shape)}, but with "
                f"{size} hidden units and {directions} directions it should be floats ({sizes})"
            )


def _carry_of(node: RecurrentNode, layer: Recurrent, states: list[Any], batch: int) -> Carry:
    """The cell's carry from initial_h and initial_c."""
    zeros = layer.cell.initial_carry((batch,))
    each = zeros if isinstance(zeros, Directions) else (zeros,)
    axis = 1 if node.layout else 0
    made = []
    for i, carry in enumerate(each):
        leaves = []
        for leaf, state in zip(carry, states, strict=False):
            expected = (batch, len(each)) if axis else (len(each), batch)
            if state is not None and state.shape != (*expected, leaf.shape[-1]):
                raise InteropError(
                    f"node {node.name}: an initial state has shape {list(state.shape)}, but "
                    f"should have {[*expected, leaf.shape[-1]]}"
                )
            one = leaf if state is None else jnp.take(jnp.asarray(state), i, axis=axis)
            leaves.append(one.astype(leaf.dtype))
        made.append(type(carry)(*leaves))
    return Directions(*made) if isinstance(zeros, Directions) else made[0]


def _valid(node: RecurrentNode, lengths: Any, steps: int, batch: int, mask: Any) -> jax.Array:
    if lengths.shape != (batch,) or not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise InteropError(
            f"node {node.name}: its sequence_lens are {lengths.dtype}{list(lengths.shape)}, but "
            f"should be {batch} integers"
        )
    if is_known(lengths) and lengths.size and not 0 <= lengths.min() <= lengths.max() <= steps:
        raise InteropError(
            f"node {node.name}: its sequence_lens are constants of up to {lengths.max()}, but the "
            f"input has {steps} steps"
        )
    valid = jnp.arange(steps)[:, None] < jnp.asarray(lengths)
    if mask is None:
        return valid
    mask = jnp.asarray(mask)
    return valid & mask.reshape(*mask.shape, *[1] * (2 - mask.ndim))


def _outputs(node: RecurrentNode, carry: Carry, ys: jax.Array) -> tuple[jax.Array, ...]:
    """Y, Y_h and Y_c, from ``ys (time, batch, directions, hidden)``."""
    each = carry if isinstance(carry, Directions) else (carry,)
    axis = 1 if node.layout else 0
    states = [jnp.stack(leaves, axis=axis) for leaves in zip(*each, strict=True)]
    order = (1, 0, 2, 3) if node.layout else (0, 2, 1, 3)
    return jnp.transpose(ys, order), *states
