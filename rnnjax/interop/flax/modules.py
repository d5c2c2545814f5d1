"""Which modules a tree of Flax's parameters holds, and how each becomes a layer."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from rnnjax.cells import SimpleRNNCell
from rnnjax.cells.activations import Activation
from rnnjax.errors import InteropError
from rnnjax.interop.arrays import as_jax, float_array
from rnnjax.interop.chain import Reading
from rnnjax.interop.flax.cells import find_layout, read_cell
from rnnjax.interop.layers import Dense, Embedding, Recurrent
from rnnjax.layers import Bidirectional, Directions
from rnnjax.layout import Form, Layout

Path = tuple[Any, ...]


class Place(NamedTuple):
    """Where the parameters of a layer are in a tree."""

    paths: tuple[Path, ...]  # of its subtrees: two for both directions, else one
    layouts: tuple[Layout, ...] = ()  # of its cells; none for Embed and Dense


class Module(NamedTuple):
    """A module of a tree."""

    name: str  # its path, with dots
    place: Place  # where it is
    trees: tuple[Any, ...]  # what is there

    def __str__(self) -> str:
        if self.place.layouts:
            kinds = ", ".join(layout.names[0] for layout in self.place.layouts)
            return f"{self.name[:60]!r} ({kinds})"
        shapes = [
            f"{jax.tree_util.keystr(path)} {np.shape(leaf)}"
            for path, leaf in jax.tree_util.tree_leaves_with_path(self.trees[0])
        ]
        return f"{self.name[:60]!r} ({', '.join(shapes[:3])}{', ...' * (len(shapes) > 3)})"


@dataclasses.dataclass(frozen=True, eq=False)
class FlaxOrigin:
    """What a tree of Flax's parameters says and a `Model` does not.

    Attributes:
        form: whose tree.
        wrapped: whether it came as ``{"params": tree}``.
        places: by the name of the layer.
    """

    form: Form = "linen"
    wrapped: bool = False
    places: Mapping[str, Place] = dataclasses.field(default_factory=dict)


def find_modules(tree: Any, top_name: str) -> dict[str, Module]:
    """The modules of a tree by their names, in the order of the tree."""
    found: dict[str, Module] = {}
    for module in _walk(tree, (), top_name):
        if module.name in found:
            raise InteropError(
                f"two modules have the path {module.name!r}; rename one in the parameters"
            )
        found[module.name] = module
    return found


def _walk(tree: Any, path: Path, top_name: str) -> Iterator[Module]:
    name = ".".join(map(str, path[:-1] if path[-1:] == ("cell",) else path)) or top_name
    if not isinstance(tree, Mapping):
        yield Module(name, Place((path,)), (tree,))
        return
    if set(tree) == {"count", "key"} or not tree:
        return  # the random numbers of a module of nnx
    layout = find_layout(name, tree)
    if layout is not None:
        yield Module(name, Place((path,), (layout,)), (tree,))
    elif set(tree) >= {"forward_rnn", "backward_rnn"}:
        halves = [
            [*_walk(tree[half], (*path, half), top_name)]
            for half in ("forward_rnn", "backward_rnn")
        ]
        if not all(len(half) == 1 and half[0].place.layouts for half in halves):
            raise InteropError(
                f"both directions of {name!r} should be an RNN of a cell that is known here, but "
                f"hold {[str(module) for half in halves for module in half][:4]}; check the "
                "parameters"
            )
        yield join(name, halves[0][0], halves[1][0])
    elif any(not isinstance(child, Mapping) for child in tree.values()):
        yield Module(name, Place((path,)), (tree,))
    else:
        for key, child in tree.items():
            yield from _walk(child, (*path, key), top_name)


def join(name: str, forward: Module, backward: Module) -> Module:
    """Both directions as one module."""
    one, other = forward.place, backward.place
    place = Place(one.paths + other.paths, one.layouts + other.layouts)
    return Module(name, place, forward.trees + backward.trees)


def read_module(module: Module, gate_fn: str | Activation, activation_fn: str | Activation) -> Any:
    """The layer that a module is read as."""
    if not module.place.layouts:
        return _read_feedforward(module)
    cells, params = [], []
    for layout, tree in zip(module.place.layouts, module.trees, strict=True):
        options: dict[str, Any] = {"activation": activation_fn}
        if layout.cell is not SimpleRNNCell:
            options["recurrent_activation"] = gate_fn
        cell, entry = read_cell(module.name, layout, tree, options)
        cells.append(cell)
        params.append(entry)
    sizes = [entry["kernel"].shape[0] for entry in params]
    if len({*sizes}) > 1:
        raise InteropError(
            f"both directions of {module.name!r} should take inputs of one size, but take "
            f"{sizes}; check the parameters"
        )
    if len(cells) == 1:
        layer = Recurrent(module.name, cells[0])
        return Reading(layer, params[0], sizes[0], cells[0].output_size, module.place)
    # A second cell like the first is left out, as in Bidirectional(cell).
    both = Bidirectional(cells[0], None if cells[0] == cells[1] else cells[1])
    layer = Recurrent(module.name, both)
    return Reading(layer, Directions(*params), sizes[0], both.output_size, module.place)


def _read_feedforward(module: Module) -> Reading:
    tree = module.trees[0]
    names = set(tree) if isinstance(tree, Mapping) else set()
    if names not in ({"embedding"}, {"kernel"}, {"kernel", "bias"}):
        raise InteropError(
            f"parameters are read of the recurrent cells of Flax, of Embed and of Dense or Linear, "
            f"but {module} is none of these; leave it out with modules=[...]"
        )
    arrays = {name: float_array(f"{module.name}.{name}", leaf) for name, leaf in tree.items()}
    params = {name: as_jax(array) for name, array in arrays.items()}
    matrix = arrays["embedding" if names == {"embedding"} else "kernel"]
    if (
        matrix.ndim != 2
        or not matrix.size
        or ("bias" in arrays and arrays["bias"].shape != matrix.shape[1:])
    ):
        raise InteropError(
            f"{module} should be one matrix, and a bias of its width; check the parameters"
        )
    rows, width = matrix.shape
    if names == {"embedding"}:
        return Reading(Embedding(module.name, rows, width), params, None, width, module.place)
    dense = Dense(module.name, width, use_bias="bias" in arrays)
    return Reading(dense, params, rows, width, module.place)
