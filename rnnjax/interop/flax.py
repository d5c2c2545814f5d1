"""Parameters of Flax's recurrent modules, ``flax.linen`` and ``flax.nnx``, in and out.

`from_params` reads a tree of parameters, and `to_params` is the way back, for both. What a module
says in code is not in its parameters: activations and the order of modules are options here. `RNN`
and `Bidirectional` of `rnnjax.linen` and `rnnjax.nnx` around Flax's cells hold Flax's trees, and
are read like Flax's own. Around rnnjax's own cells, and only there, nothing is to be read:
``variables["params"]["cell"]`` of an ``RNN``, in nnx its `cell_params`, goes to `rnnjax.unroll` as
it is.

Sequences are time-major here, and Flax's are batch-major unless told otherwise. Flax's carry of an
LSTM is the pair ``(c, h)``, and here it is ``LSTMCarry(hidden=h, cell=c)``; the carry of the other
cells is ``h`` there, and ``GRUCarry(hidden=h)`` or ``SimpleRNNCarry(hidden=h)`` here.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.core
import jax
import numpy as np
from flax import nnx

from rnnjax.cells import Cell, SimpleRNNCell
from rnnjax.cells.activations import Activation, get_activation, named
from rnnjax.errors import InteropError, InvalidInputError
from rnnjax.interop.arrays import (
    as_jax,
    cell_arrays,
    check_one_type,
    float_array,
    in_prediction,
    layer_arrays,
    with_one_bias,
)
from rnnjax.interop.chain import (
    Reading,
    check_modules,
    given_order,
    infer_order,
    rows_of,
    with_parameters,
)
from rnnjax.interop.layers import Dense, Embedding, Layer, Recurrent
from rnnjax.interop.model import Model, Sequential
from rnnjax.layers import Bidirectional, Directions, Stack
from rnnjax.layout import LAYOUTS, Form, Layout, Tree, params_of

__all__ = ["FlaxOrigin", "from_params", "to_params"]

Path = tuple[Any, ...]


class Place(NamedTuple):
    """Where the parameters of a layer are in a tree."""

    paths: tuple[Path, ...]  # of its subtrees: two for both directions, else one
    layouts: tuple[Layout, ...] = ()  # of its cells; none for Embed and Dense


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


def from_params(
    params: Any,
    *,
    modules: Sequence[str | Layer] | None = None,
    gate_fn: str | Activation = "sigmoid",
    activation_fn: str | Activation = "tanh",
    name: str = "rnn",
) -> Model:
    """The model of a tree of Flax's parameters.

    It may hold the parameters of linen's ``LSTMCell``, ``OptimizedLSTMCell``, ``GRUCell``,
    ``MGUCell`` and ``SimpleCell``, of nnx's ``LSTMCell``, ``OptimizedLSTMCell``, ``GRUCell`` and
    ``SimpleCell``, of ``RNN`` and ``Bidirectional`` around them, of ``Embed``, and of ``Dense`` or
    ``Linear``. Names and shapes say which. Layers have the paths of the modules for names, as in
    ``"encoder.rnn"``.

    An ``RNN`` with ``reverse=True`` is `dataclasses.replace` of the layer with that. A residual
    ``SimpleCell`` is our cell with the identity added to the recurrent kernel.

    Args:
        params: ``variables`` of linen, or what it holds as ``"params"``; a ``nnx.State``, a
            dict of `nnx.to_pure_dict`, or a module of nnx.
        modules: which modules run, in their order, and between them layers without parameters, as
            in `rnnjax.interop.torch.from_state_dict`. Left out, all of them, where their order is
            certain. In a compact module of linen's the cells of a ``Bidirectional`` have no parent
            of that name: read ``{"forward_rnn": {"cell": one}, "backward_rnn": {"cell": other}}``.
        gate_fn: of all cells, as Flax's attribute; by name or as a callable.
        activation_fn: the same.
        name: of a layer at the top of the tree.

    Raises:
        InteropError: a module is none of these, an array has another shape or type, or the order is
            not certain.
        InvalidInputError: ``params`` is no such tree, ``modules`` names a module that is not there,
            or a function has an unknown name.

    >>> import flax.linen as nn, jax, jax.numpy as jnp
    >>> layer = nn.RNN(nn.GRUCell(5))
    >>> variables = layer.init(jax.random.key(0), jnp.ones((8, 10, 3)))
    >>> model = from_params(variables)
    >>> print(model.layers["rnn"])
    GRUCell(5)
    >>> carry, ys = model(jnp.ones((10, 8, 3)))
    >>> bool(jnp.allclose(ys, layer.apply(variables, jnp.ones((8, 10, 3))).swapaxes(0, 1)))
    True
    """
    check_modules(modules)
    for function in (gate_fn, activation_fn):
        get_activation(function)  # raises for a name that is none
    gate_fn, activation_fn = named(gate_fn), named(activation_fn)  # which run on the fast path
    tree, form, wrapped = _nested(params)
    found: dict[str, _Module] = {}
    for module in _walk(tree, (), name):
        if found.setdefault(module.name, module) is not module:
            raise InteropError(
                f"two modules have the path {module.name!r}; rename one in the parameters"
            )
    if not found:
        raise InteropError("the parameters have no module to read; check what they are of")
    listed = {name: str(module) for name, module in found.items()}

    def read(name: str) -> list[Reading]:
        return [_read_module(found[name], gate_fn, activation_fn)]

    given = modules is not None
    order = given_order(listed, read, modules or ()) if given else infer_order(listed, read)
    places = {r.layer.name: r.came for r in order if r.came is not None}
    forms = [layout.form for place in places.values() for layout in place.layouts]
    origin = FlaxOrigin((forms or [form or "linen"])[0], wrapped, places)
    network = Sequential(tuple(reading.layer for reading in order))
    return Model(network, {r.layer.name: r.params for r in order if r.params}, origin)


def _nested(params: Any) -> tuple[Any, Form | None, bool]:
    """Parameters as nested dicts; of which form if that is known, and whether in "params"."""
    if isinstance(params, nnx.Module):
        params = nnx.state(params, nnx.Param)
    if isinstance(params, nnx.State):
        return nnx.to_pure_dict(params), "nnx", False
    if not isinstance(params, Mapping):
        raise InvalidInputError(
            f"parameters of Flax should be a dict, a nnx.State or a module of nnx, but are "
            f"{type(params).__name__}; give module.init(key, inputs) or nnx.state(module)"
        )
    wrapped = isinstance(params.get("params"), Mapping)
    others = sorted(str(key) for key in params if key != "params")
    if wrapped and others:
        raise InvalidInputError(
            f"variables should hold params alone, but hold {', '.join(others)} too, which rnnjax "
            "does not take; give variables['params']"
        )
    return flax.core.meta.unbox(params["params"] if wrapped else params), None, wrapped


def to_params(model: Model, *, form: Form | None = None) -> Any:
    """The parameters as a tree that Flax's modules take.

    `SimpleRNNCell`, `LSTMCell`, `GRUCell` and `MGUCell` become those of the cells of that equation,
    under the paths of ``RNN`` and ``Bidirectional``; `Dense` and `Embedding` those of ``Dense`` or
    ``Linear`` and ``Embed``. A `Stack` becomes one ``RNN`` for each of its layers, named
    ``"rnn_0"``, ``"rnn_1"`` ... What is code in Flax is left out: activations and directions.

    A model that came from Flax goes back to the same paths, to the bit where it is unchanged: for
    the tree of a module of your own, read its parameters with `from_params`, and give what
    ``with_params`` makes of that model. Flax's cells always have biases, so that those of
    ``use_bias=False`` are zeros. The reset and update gates of a ``GRUCell``, and the gate of an
    ``MGUCell``, have one bias in Flax and two here: they are added.

    Args:
        model: with parameters.
        form: ``"linen"`` or ``"nnx"``; left out, that of the tree that the model came as, or linen.

    Returns:
        a tree of dicts. For linen it is ``{"params": tree}`` if it came so. For nnx
        ``nnx.update(module, tree)`` takes it.

    Raises:
        InteropError: Flax has no cell for one of the model, a `Bidirectional` merges by another
            word than ``"concat"``, or there is no place for a bias that is not zero: a ``GRUCell``
            of nnx has none for the candidate's ``recurrent_bias``.
        InvalidInputError: ``form`` is another word.

    >>> import jax, numpy as np, rnnjax
    >>> cell = rnnjax.MGUCell(5)
    >>> params = to_params(Model.of(cell, cell.init(jax.random.key(0), 3)))
    >>> jax.tree.map(np.shape, params["cell"]["hn"])
    {'bias': (5,), 'kernel': (5, 5)}
    """
    if form not in (None, "linen", "nnx"):
        raise InvalidInputError(f"form should be 'linen' or 'nnx', but is {form!r}")
    origin = model.origin if isinstance(model.origin, FlaxOrigin) else FlaxOrigin()
    if form not in (None, origin.form):
        origin = FlaxOrigin(form)
    alone = [name for name in model.layers if model.params.get(name)] == ["rnn"]
    tree: Any = {}
    for name, layer, params in with_parameters(model, "Flax"):
        if not isinstance(layer, Recurrent):
            place = origin.places.get(name, Place(((name,),)))
            arrays = layer_arrays(layer, params)
            tree = _put(tree, place.paths[0], {key: as_jax(array) for key, array in arrays.items()})
            continue
        for i, parts in enumerate(rows_of(name, layer.cell, params, "Flax")):
            own = f"{name}_{i}" if isinstance(layer.cell, Stack) else name
            cells = [in_prediction(cell, repr(own), "Flax") for cell, _ in parts]
            given = origin.places.get(own)
            if given is None or [each.cell for each in given.layouts] != [*map(type, cells)]:
                top = () if alone and own == name else (own,)
                ways = [("forward_rnn",), ("backward_rnn",)] if len(cells) == 2 else [()]
                given = Place(
                    tuple((*top, *way, "cell") for way in ways),
                    tuple(_layout_of(repr(own), cell, origin.form) for cell in cells),
                )
            for path, layout, cell, (_, one) in zip(*given, cells, parts, strict=True):
                blocks = _blocks(repr(own), layout, cell, cell_arrays(cell, one))
                tree = _put(tree, path, jax.tree.map(as_jax, blocks))
    return {"params": tree} if origin.wrapped else tree


def _put(tree: Any, path: Path, entry: Any) -> Any:
    """The tree with ``entry`` at ``path``."""
    if not path:
        return entry
    head, *rest = path
    return {**tree, head: _put(tree.get(head, {}), tuple(rest), entry)}


# --- Modules ---


class _Module(NamedTuple):
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


def _walk(tree: Any, path: Path, top_name: str) -> Iterator[_Module]:
    """The modules of a tree, in its order."""
    name = ".".join(map(str, path[:-1] if path[-1:] == ("cell",) else path)) or top_name
    if isinstance(tree, Mapping) and (set(tree) == {"count", "key"} or not tree):
        return  # the random numbers of a module of nnx
    layout = _find_layout(name, tree) if isinstance(tree, Mapping) else None
    if layout is not None:
        yield _Module(name, Place((path,), (layout,)), (tree,))
    elif isinstance(tree, Mapping) and set(tree) >= {"forward_rnn", "backward_rnn"}:
        halves = [
            each
            for half in ("forward_rnn", "backward_rnn")
            for each in _walk(tree[half], (*path, half), top_name)
        ]
        ways = [half.place.paths[0][len(path)] for half in halves if len(half.place.layouts) == 1]
        if ways != ["forward_rnn", "backward_rnn"] or len(halves) != 2:
            raise InteropError(
                f"both directions of {name!r} should be an RNN of a cell that is known here, but "
                f"hold {[str(module) for module in halves][:4]}; check the parameters"
            )
        one, other = halves
        paths, layouts = (
            one.place.paths + other.place.paths,
            one.place.layouts + other.place.layouts,
        )
        yield _Module(name, Place(paths, layouts), one.trees + other.trees)
    elif isinstance(tree, Mapping) and all(isinstance(child, Mapping) for child in tree.values()):
        for key, child in tree.items():
            yield from _walk(child, (*path, key), top_name)
    else:
        yield _Module(name, Place((path,)), (tree,))


def _read_module(
    module: _Module, gate_fn: str | Activation, activation_fn: str | Activation
) -> Reading:
    """The layer that a module is read as."""
    if not module.place.layouts:
        return _read_feedforward(module)
    cells, params = [], []
    for layout, tree in zip(module.place.layouts, module.trees, strict=True):
        options: dict[str, Any] = {"activation": activation_fn}
        if layout.cell is not SimpleRNNCell:
            options["recurrent_activation"] = gate_fn
        cell, entry = _read_cell(module.name, layout, tree, options)
        cells.append(cell)
        params.append(entry)
    sizes = [entry["kernel"].shape[0] for entry in params]
    if len({*sizes}) > 1:
        raise InteropError(
            f"both directions of {module.name!r} should take inputs of one size, but take "
            f"{sizes}; check the parameters"
        )
    whole: Cell = cells[0]
    if len(cells) == 2:
        # A second cell like the first is left out, as in Bidirectional(cell).
        whole = Bidirectional(cells[0], None if cells[0] == cells[1] else cells[1])
    layer = Recurrent(module.name, whole)
    both = Directions(*params) if len(cells) == 2 else params[0]
    return Reading(layer, both, sizes[0], whole.output_size, module.place)


def _read_feedforward(module: _Module) -> Reading:
    tree = module.trees[0] if isinstance(module.trees[0], Mapping) else {}
    matrix = np.shape(tree.get("embedding", tree.get("kernel")))
    if (
        set(tree) not in ({"embedding"}, {"kernel"}, {"kernel", "bias"})
        or len(matrix) != 2
        or 0 in matrix
        or ("bias" in tree and np.shape(tree["bias"]) != matrix[1:])
    ):
        raise InteropError(
            f"parameters are read of the recurrent cells of Flax, of Embed and of Dense or Linear, "
            f"but {module} is none of these; leave it out with modules=[...]"
        )
    arrays = {name: float_array(f"{module.name}.{name}", leaf) for name, leaf in tree.items()}
    params = {name: as_jax(array) for name, array in arrays.items()}
    if "embedding" in tree:
        return Reading(Embedding(module.name, *matrix), params, None, matrix[1], module.place)
    dense = Dense(module.name, matrix[1], use_bias="bias" in tree)
    return Reading(dense, params, *matrix, module.place)


# --- Cells ---


def _find_layout(where: str, tree: Tree) -> Layout | None:
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


def _read_cell(
    where: str, layout: Layout, tree: Tree, options: Mapping[str, Any]
) -> tuple[Cell, dict[str, jax.Array]]:
    """The cell of ours that computes the same, and its parameters."""
    blocks = {
        name: {key: float_array(f"{where}.{name}.{key}", leaf) for key, leaf in block.items()}
        for name, block in tree.items()
    }
    kernels = [blocks[names[0]]["kernel"] for names in (layout.inputs, layout.hiddens)]
    inputs, hidden = map(len, kernels)
    cell = layout.cell(hidden, param_dtype=kernels[0].dtype, **options)
    zeros = {
        name: np.zeros(parameter.shape, kernels[0].dtype)
        for name, parameter in cell.parameters(inputs).items()
    }
    for name, block in _blocks(where, layout, cell, zeros).items():
        expected, came = (
            {key: array.shape for key, array in each.items()} for each in (block, blocks[name])
        )
        if came != expected:
            why = ""
            if name == "hn" and "MGUCell" in layout.names and "bias" not in came:
                why = " (without a bias it is one of reset_gate=False, which rnnjax does not have)"
            raise InteropError(
                f"{where}.{name} of a {layout.form} {layout.names[0]} of {hidden} units should "
                f"have {expected}, but has {came}{why}; check the parameters"
            )
    check_one_type(where, (array for block in blocks.values() for array in block.values()))
    return cell, params_of(layout, blocks, residual=False)


def _blocks(
    where: str, layout: Layout, cell: Cell, arrays: Mapping[str, np.ndarray]
) -> dict[str, dict[str, np.ndarray]]:
    """The parameters of a cell as a class of Flax lays them out."""
    arrays = with_one_bias(arrays) if cell.additive else arrays
    recurrent = arrays["recurrent_kernel"]
    first, second = (
        arrays.get(name, np.zeros(recurrent.shape[1], recurrent.dtype))
        for name in ("bias", "recurrent_bias")
    )
    if not layout.input_bias:
        first, second = second, first
    elif "recurrent_bias" in arrays:
        first, second = _fold(where, layout, first, second)
    blocks: dict[str, dict[str, np.ndarray]] = {}
    for names, kernel, bias, biased in (
        (layout.inputs, arrays["kernel"], first, [layout.input_bias] * len(layout.inputs)),
        (layout.hiddens, recurrent, second, layout.hidden_bias),
    ):
        kernels, biases = (np.split(each, len(names), axis=-1) for each in (kernel, bias))
        for name, part, own, has in zip(names, kernels, biases, biased, strict=False):
            blocks[name] = {"kernel": part} | ({"bias": own} if has else {})
    return blocks


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


def _layout_of(where: str, cell: Cell, form: Form) -> Layout:
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
