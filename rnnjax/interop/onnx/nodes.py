"""The nodes of a graph that was read, as data."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np


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
class Input:
    """An input of the graph."""

    name: str  # of the input
    dtype: str  # of its arrays
    # of which None are not fixed; None as a whole if not even the number of axes is
    shape: tuple[int | None, ...] | None
    # "data" must be given; "state" becomes the initial state of recurrent layers,
    # "lengths" their sequence_lens, and nothing reads what is "unused"
    role: Literal["data", "state", "lengths", "unused"] = "data"


@dataclasses.dataclass(frozen=True)
class Node:
    """A node of the graph."""

    op_type: str  # its operator
    name: str  # by which errors call it
    inputs: tuple[str, ...]  # the names of the values it takes; empty for one that is left out
    outputs: tuple[str, ...]  # the names of those it makes


@dataclasses.dataclass(frozen=True)
class Body:
    """A graph inside of a node, which sees the values around it by their names."""

    inputs: tuple[str, ...]  # the names of its own
    outputs: tuple[str, ...]  # the names of what it makes
    nodes: tuple[Node, ...]  # in an order in which they can run


@dataclasses.dataclass(frozen=True)
class Operation(Node):
    """A node without parameters of its own."""

    # pairs of names and values; an array is a `Constant`, a graph a `Body`
    attributes: tuple[tuple[str, Any], ...] = ()

    @property
    def bodies(self) -> tuple[Body, ...]:
        """The graphs inside of it."""
        return tuple(value for _, value in self.attributes if isinstance(value, Body))

    def arguments(self) -> dict[str, Any]:
        """The attributes as operators take them."""
        return {
            name: value.array if isinstance(value, Constant) else value
            for name, value in self.attributes
        }


@dataclasses.dataclass(frozen=True)
class LayerNode(Node):
    """A node that is a Dense layer or the look-up of an Embedding."""

    layer: str = ""  # its name in the graph's layers


@dataclasses.dataclass(frozen=True)
class RecurrentNode(Node):
    """An RNN, GRU or LSTM; its inputs are X, sequence_lens, initial_h and initial_c."""

    layer: str = ""  # its name in the graph's layers
    layout: int = 0  # 0 for time first, 1 for batch first
    # the names of W, R, B and P if they are values of the graph: inputs, or arrays that other nodes
    # have too; None if they are parameters of the layer
    weights: tuple[str, ...] | None = None


def _inside(node: Node) -> list[Node]:
    return [one for body in getattr(node, "bodies", ()) for one in body.nodes]


def runs_layers(node: Node) -> bool:
    """Whether it is recurrent, or has recurrent nodes inside of it."""
    return isinstance(node, RecurrentNode) or any(map(runs_layers, _inside(node)))


def count_nodes(nodes: Sequence[Node]) -> int:
    """How many there are, with those inside of others."""
    return len(nodes) + sum(count_nodes(_inside(node)) for node in nodes)
