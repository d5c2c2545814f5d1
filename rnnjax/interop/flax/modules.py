"""Which modules a tree of Flax's parameters holds, and how each becomes a layer or a cell."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from rnnjax.cells import Cell, SimpleRNNCell
from rnnjax.cells.activations import Activation
from rnnjax.cells.base import Params
from rnnjax.errors import InteropError
from rnnjax.interop.arrays import as_jax, cell_arrays, check_one_type, float_array, with_one_bias
from rnnjax.interop.chain import Reading
from rnnjax.interop.layers import Dense, Embedding, Recurrent
from rnnjax.layers import Bidirectional, Directions
from rnnjax.layout import LAYOUTS, Form, Layout, Tree, params_of


def find_layout(where: str, tree: Tree) -> Layout | None:
    """The layout of a cell's tree, from its names and, where nnx's are alike, its shapes."""
    named = [each for each in LAYOUTS if set(tree) == {*each.inputs, *each.hiddens}]
    if not named:
        return None
    for name in tree:
        kernel = tree[name].get("kernel") if isinstance(tree[name], Mapping) else None
        if kernel is None or np.ndim(kernel) != 2 or 0 in np.shape(kernel):
            raise InteropError(
                f"{where}.{name} should have a kernel of two axes, but has "
                f"{None if kernel is None else np.shape(kernel)}; check the parameters"
            )
    if len(named) == 1:
        return named[0]
    hidden, width = np.shape(tree["dense_h"]["kernel"])
    return next((each for each in named if each.gates * hidden == width), None)


def read_cell(
    where: str, layout: Layout, tree: Tree, options: Mapping[str, Any]
) -> tuple[Cell, dict[str, jax.Array]]:
    """The cell of ours that computes the same, and its parameters."""
    blocks = {
        name: {key: float_array(f"{where}.{name}.{key}", leaf) for key, leaf in block.items()}
        for name, block in tree.items()
    }
    _check_blocks(where, layout, blocks)
    params = params_of(layout, blocks, residual=False)
    kernel = params["kernel"]
    size = len(params["recurrent_kernel"])
    return layout.cell(size, param_dtype=kernel.dtype, **options), params


def _check_blocks(
    where: str, layout: Layout, blocks: Mapping[str, Mapping[str, np.ndarray]]
) -> None:
    inputs = blocks[layout.inputs[0]]["kernel"].shape[0]
    hidden = blocks[layout.hiddens[0]]["kernel"].shape[0]
    biased = _biased(layout)
    for name, block in blocks.items():
        width = hidden * layout.gates // len(layout.inputs)
        rows = inputs if name in layout.inputs else hidden
        expected = {"kernel": (rows, width)} | ({"bias": (width,)} if biased[name] else {})
        came = {key: array.shape for key, array in block.items()}
        if came != expected:
            why = ""
            if name == "hn" and "MGUCell" in layout.names and "bias" not in came:
                why = " (without a bias it is one of reset_gate=False, which rnnjax does not have)"
            raise InteropError(
                f"{where}.{name} of a {layout.form} {layout.names[0]} of {hidden} units should "
                f"have {expected}, but has {came}{why}; check the parameters"
            )
    check_one_type(where, (array for block in blocks.values() for array in block.values()))


def _biased(layout: Layout) -> dict[str, bool]:
    """By the name of the block, whether it has a bias."""
    hidden_bias = layout.hidden_bias if len(layout.hiddens) > 1 else layout.hidden_bias[:1]
    return dict.fromkeys(layout.inputs, layout.input_bias) | dict(
        zip(layout.hiddens, hidden_bias, strict=True)
    )


def write_cell(
    where: str, layout: Layout, cell: Cell, params: Params
) -> dict[str, dict[str, jax.Array]]:
    """The way back of `read_cell`."""
    arrays = cell_arrays(cell, params)
    arrays = with_one_bias(arrays) if cell.additive else arrays
    recurrent = arrays["recurrent_kernel"]
    width = recurrent.shape[1]
    first = arrays.get("bias", np.zeros(width, recurrent.dtype))
    second = arrays.get("recurrent_bias", np.zeros(width, recurrent.dtype))
    if not layout.input_bias:
        first, second = second, first
    elif "recurrent_bias" in arrays:
        first, second = _fold(where, layout, first, second)
    blocks: dict[str, dict[str, np.ndarray]] = {}
    for names, kernel, bias in (
        (layout.inputs, arrays["kernel"], first),
        (layout.hiddens, recurrent, second),
    ):
        kernels = np.split(kernel, len(names), axis=-1)
        for name, part, bias_part in zip(names, kernels, np.split(bias, len(names)), strict=True):
            blocks[name] = {"kernel": part}
            if _biased(layout)[name]:
                blocks[name]["bias"] = bias_part
    return jax.tree.map(as_jax, blocks)


def _fold(
    where: str, layout: Layout, first: np.ndarray, second: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Move second biases that the layout has no place for into the first, where they add up."""
    kept = np.repeat(layout.hidden_bias, len(first) // layout.gates)
    none = np.zeros_like(second)
    lost = np.where(kept, none, second)
    candidate = np.arange(len(first)) >= len(first) - len(first) // layout.gates
    if np.any(candidate & (lost != 0)):
        raise InteropError(
            f"{where} has a recurrent_bias of its candidate that is not zero, for which a "
            f"{layout.form} {layout.names[0]} has no place; hold it at zero in training, or write "
            "it with form='linen'"
        )
    # Where there is nothing to move, not even the sign of a zero changes.
    return np.where(lost != 0, first + lost, first), np.where(kept, second, none)


def layout_of(where: str, cell: Cell, form: Form) -> Layout:
    """The layout of the class of Flax that computes what ``cell`` does: the first of its form."""
    for layout in LAYOUTS:
        if layout.form == form and layout.cell is type(cell):
            if not getattr(cell, "reset_after", True):
                raise InteropError(
                    f"{form}'s {layout.names[0]} is that of reset_after=True, but {where} has "
                    "reset_after=False, which is another function of the same parameters"
                )
            return layout
    known = dict.fromkeys(each.cell.__name__ for each in LAYOUTS if each.form == form)
    raise InteropError(
        f"flax.{form} has cells for {', '.join(known)}, but {where} is {cell!r}; there are no "
        "parameters for it"
    )


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
