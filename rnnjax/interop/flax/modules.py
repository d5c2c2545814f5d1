"""Which modules a tree of Flax's parameters holds, and how each becomes a layer."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.cells import Cell, SimpleRNNCell
from rnnjax.cells.activations import Activation
from rnnjax.cells.base import Carry, Params
from rnnjax.errors import InteropError, InvalidInputError
from rnnjax.interop.arrays import as_jax, float_array
from rnnjax.interop.chain import Reading
from rnnjax.interop.flax.cells import find_layout, read_cell
from rnnjax.interop.functions import Function
from rnnjax.interop.layers import Context, Dense, Embedding, Flow, Layer, Recurrent, single
from rnnjax.layers import Bidirectional, Directions
from rnnjax.layout import Form, Layout

Path = tuple[Any, ...]


class CellOptions(NamedTuple):
    """What a cell of Flax's is told and its parameters do not say; see its attributes."""

    gate_fn: str | Activation = "sigmoid"
    activation_fn: str | Activation = "tanh"
    residual: bool = False
    dtype: Any = None


class Module(NamedTuple):
    """A module of a tree."""

    name: str  # its path, with dots
    paths: tuple[Path, ...]  # of its subtrees: two for both directions, else one
    trees: tuple[Any, ...]  # those
    layouts: tuple[Layout, ...] = ()  # of its cells; none for Embed and Dense

    def __str__(self) -> str:
        if self.layouts:
            return f"{self.name[:60]!r} ({', '.join(each.names[0] for each in self.layouts)})"
        shapes = [
            f"{jax.tree_util.keystr(path)} {np.shape(leaf)}"
            for path, leaf in jax.tree_util.tree_leaves_with_path(self.trees[0])
        ]
        return f"{self.name[:60]!r} ({', '.join(shapes[:3])}{', ...' * (len(shapes) > 3)})"


class Place(NamedTuple):
    """Where a layer came from, and goes back to."""

    paths: tuple[Path, ...]  # as in `Module`
    layouts: tuple[Layout, ...] = ()  # as there
    # for each cell, the recurrent kernel that came if it is residual
    residual_of: tuple[np.ndarray | None, ...] = (None, None)


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


@dataclasses.dataclass(frozen=True)
class FlipValid(Layer):
    """Turns the order of the valid steps of each row round; padding stays at the end.

    It stands behind a reversed `Recurrent` in the place of Flax's ``keep_order=False``. A row goes
    to its last valid step. It has no parameters.
    """

    name: str

    def run(
        self, params: Params, flow: Flow, carry: Carry | None, context: Context
    ) -> tuple[None, Flow]:
        """Flip outputs and mask."""
        if flow.mask is None:
            return None, flow._replace(xs=jnp.flip(flow.xs, axis=0))
        num_steps = flow.mask.shape[0]
        steps = jnp.arange(num_steps).reshape(-1, *[1] * (flow.mask.ndim - 1))
        length = jnp.max(jnp.where(flow.mask, steps + 1, 0), axis=0)
        order = jnp.where(steps < length, length - 1 - steps, steps)
        mask = jnp.take_along_axis(flow.mask, order, axis=0)
        order = order.reshape(*order.shape, *[1] * (flow.xs.ndim - order.ndim))
        return None, Flow(jnp.take_along_axis(flow.xs, order, axis=0), mask)

    def __str__(self) -> str:
        return "FlipValid()"


@dataclasses.dataclass(frozen=True)
class FlaxFunction(Layer):
    """A function between Flax's modules, which sees the axes as these have them.

    It may look at other steps, or take one of them, as ``lambda xs: xs[:, -1]``. It has no
    parameters.

    Args:
        name: of the layer.
        function: from an array to another.
        time_major: whether the modules around it have the time first.
    """

    name: str
    function: Function
    time_major: bool

    def run(
        self, params: Params, flow: Flow, carry: Carry | None, context: Context
    ) -> tuple[None, Flow]:
        """Call it; what is longer for a longer sequence still has a time."""
        xs = single(self, flow)
        if not flow.sequence:
            return None, flow._replace(xs=self.function(xs))
        features = not jnp.issubdtype(xs.dtype, jnp.integer) or xs.ndim > 2  # which ids have not
        place = 0 if self.time_major else xs.ndim - 1 - features
        theirs = jnp.moveaxis(xs, 0, place)
        shape = [*theirs.shape]
        shape[place] = 2 * shape[place] + 1
        ys = self.function(theirs)
        try:
            longer = jax.eval_shape(self.function, jax.ShapeDtypeStruct(shape, xs.dtype)).shape
        except (TypeError, ValueError) as error:  # of JAX
            raise InvalidInputError(
                f"layer {self.name!r}, {self}, should take sequences of any length, but takes "
                f"none of {shape[place]} steps ({str(error).splitlines()[0]}); call it behind the "
                "model"
            ) from error
        sequence = len(longer) > place and longer[place] != ys.shape[place]
        if flow.mask is not None and not (sequence and ys.shape[place] == len(xs)):
            raise InvalidInputError(
                f"layer {self.name!r}, {self}, would take what is masked for steps; leave the mask "
                "and the lengths out"
            )
        ys = jnp.moveaxis(ys, place, 0) if sequence else ys
        return None, Flow(ys, flow.mask, sequence)

    def __str__(self) -> str:
        return f"Function({getattr(self.function, '__name__', self.function)})"


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
        yield Module(name, (path,), (tree,))
        return
    if set(tree) == {"count", "key"} or not tree:
        return  # the random numbers of a module of nnx
    layout = find_layout(name, tree)
    if layout is not None:
        yield Module(name, (path,), (tree,), (layout,))
    elif set(tree) >= {"forward_rnn", "backward_rnn"}:
        halves = [
            [*_walk(tree[half], (*path, half), top_name)]
            for half in ("forward_rnn", "backward_rnn")
        ]
        if not all(len(half) == 1 and half[0].layouts for half in halves):
            raise InteropError(
                f"both directions of {name!r} should be an RNN of a cell that is known here, but "
                f"hold {[str(module) for half in halves for module in half][:4]}; check the "
                "parameters"
            )
        yield join(name, halves[0][0], halves[1][0])
    elif any(not isinstance(child, Mapping) for child in tree.values()):
        yield Module(name, (path,), (tree,))
    else:
        for key, child in tree.items():
            yield from _walk(child, (*path, key), top_name)


def join(name: str, forward: Module, backward: Module) -> Module:
    """Both directions as one module."""
    return Module(
        name,
        forward.paths + backward.paths,
        forward.trees + backward.trees,
        forward.layouts + backward.layouts,
    )


def read_module(module: Module, options: CellOptions | Mapping[Path, CellOptions]) -> list[Reading]:
    """The layer that a module is read as; options are of all cells, or by the path of a cell."""
    if not module.layouts:
        return [_read_feedforward(module)]
    cells: list[Cell] = []
    params, kernels = [], []
    for path, layout, tree in zip(module.paths, module.layouts, module.trees, strict=True):
        told = options if isinstance(options, CellOptions) else options.get(path, CellOptions())
        settings: dict[str, Any] = {"activation": told.activation_fn, "dtype": told.dtype}
        residual = told.residual and layout.cell is SimpleRNNCell
        if layout.cell is not SimpleRNNCell:
            settings["recurrent_activation"] = told.gate_fn
        cell, entry = read_cell(module.name, layout, tree, settings, residual)
        cells.append(cell)
        params.append(entry)
        kernels.append(
            float_array("kernel", tree["h" if "h" in tree else "dense_h"]["kernel"])
            if residual
            else None
        )
    sizes = [entry["kernel"].shape[0] for entry in params]
    takes = sizes[0]
    if sizes != [takes] * len(sizes):
        raise InteropError(
            f"both directions of {module.name!r} should take inputs of one size, but take "
            f"{sizes}; check the parameters"
        )
    place = Place(module.paths, module.layouts, tuple(kernels))
    if len(cells) == 1:
        layer = Recurrent(module.name, cells[0])
        return [Reading(layer, params[0], takes, layer.cell.output_size, place)]
    # A second cell like the first is left out, as in Bidirectional(cell).
    both = Bidirectional(cells[0], None if cells[0] == cells[1] else cells[1])
    return [
        Reading(Recurrent(module.name, both), Directions(*params), takes, both.output_size, place)
    ]


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
    place = Place(module.paths)
    rows, width = matrix.shape
    if names == {"embedding"}:
        return Reading(Embedding(module.name, rows, width), params, None, width, place)
    dense = Dense(module.name, width, use_bias="bias" in arrays)
    return Reading(dense, params, rows, width, place)
