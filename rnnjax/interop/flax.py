"""Parameters of Flax's recurrent modules, ``flax.linen`` and ``flax.nnx``, in and out.

Parameters do not contain activations: they are options here. Flax's ``Dense`` (nnx's ``Linear``)
and ``Embed`` have the arrays of `rnnjax.interop.Dense` and `rnnjax.interop.Embedding` by the same
names, and need no conversion. `RNN` and `Bidirectional` of `rnnjax.linen` and `rnnjax.nnx` around
Flax's cells have Flax's trees, and are read like Flax's own. Around rnnjax's own cells no
conversion is needed: pass ``variables["params"]["cell"]`` of an ``RNN``, in nnx its `cell_params`,
to `rnnjax.unroll`.

Sequences are time-major here, and batch-major by default in Flax. Flax's LSTM carry ``(c, h)`` is
``LSTMCarry(hidden=h, cell=c)`` here. The carry ``h`` of its other cells is ``GRUCarry(hidden=h)``
or ``SimpleRNNCarry(hidden=h)``.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.core
import flax.traverse_util
import jax
import numpy as np
from flax import nnx

from rnnjax.cells import Cell
from rnnjax.cells.activations import Activation, get_activation, named
from rnnjax.checks import check_instance
from rnnjax.errors import InteropError, InvalidInputError
from rnnjax.flax_cells import LAYOUTS, Form, Layout, Place, Tree, params_of
from rnnjax.interop.arrays import (
    as_jax,
    cell_arrays,
    check_one_type,
    check_shapes,
    float_array,
    in_prediction,
    with_one_bias,
)
from rnnjax.interop.layers import Recurrent
from rnnjax.interop.model import Model, rows_of, with_parameters
from rnnjax.interop.options import check_options
from rnnjax.layers import Bidirectional, Directions

__all__ = ["from_params", "to_params"]

Arrays = Mapping[str, np.ndarray]
Path = tuple[Any, ...]
Found = list[tuple[Path, Layout, Tree]]
"""The cells of a tree, two for both directions, else one: where they are, their layout, arrays."""

_WAYS = "forward_rnn", "backward_rnn"
_FUNCTIONS = "recurrent_activation", "activation"  # the fields of a cell that Flax's have too


def from_params(
    params: Any,
    *,
    gate_fn: str | Activation = "sigmoid",
    activation_fn: str | Activation = "tanh",
    name: str = "rnn",
) -> Model:
    """Convert the parameters of one recurrent module of Flax to a model.

    It is one of linen's ``LSTMCell``, ``OptimizedLSTMCell``, ``GRUCell``, ``MGUCell`` and
    ``SimpleCell``, of nnx's ``LSTMCell``, ``OptimizedLSTMCell``, ``GRUCell`` and ``SimpleCell``, or
    an ``RNN`` or ``Bidirectional`` around them. Names and shapes say which. Of a model with more
    modules give the part of one, as in ``variables["params"]["encoder"]``.

    For an ``RNN`` with ``reverse=True`` set that field of the layer by `dataclasses.replace`. A
    residual ``SimpleCell`` becomes a cell with the identity added to the recurrent kernel. In a
    compact module of linen the cells of a ``Bidirectional`` have no common parent: read
    ``{"forward_rnn": one, "backward_rnn": other}``.

    Args:
        params: ``variables`` of linen, or what it holds as ``"params"``; a ``nnx.State``, a
            dict of `nnx.to_pure_dict`, or a module of nnx.
        gate_fn: the ``gate_fn`` of all Flax cells, by name or as a callable.
        activation_fn: the ``activation_fn`` of all Flax cells, by name or as a callable.
        name: the name of the layer.

    Raises:
        InteropError: there is no such module, or more than one; an array has another shape or type.
        InvalidInputError: ``params`` is no such tree, or a function has an unknown name.

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
    for function in (gate_fn, activation_fn):
        get_activation(function)  # raises for a name that is none
    if isinstance(params, nnx.Module):
        params = nnx.state(params, nnx.Param)
    if isinstance(params, nnx.State):
        params = nnx.to_pure_dict(params)
    expected = "parameters of Flax: a dict, a nnx.State or a module of nnx"
    check_instance("params", params, Mapping, expected)
    tree = flax.core.meta.unbox(params)
    found = _find(tree, ())
    functions = named(activation_fn), named(gate_fn)  # by their names they run fast
    read = [_read_cell(part, _spelled(path), layout, functions) for path, layout, part in found]
    cells, entries = [*zip(*read, strict=True)]
    sizes = [entry["kernel"].shape[0] for entry in entries]
    if len({*sizes}) > 1:
        raise InteropError(
            f"both directions should take inputs of one size, but take {sizes}; check the tree"
        )
    whole, params = cells[0], entries[0]
    if len(cells) == 2:
        # A second cell like the first is left out, as in Bidirectional(cell).
        whole = Bidirectional(cells[0], None if cells[0] == cells[1] else cells[1])
        params = Directions(*entries)
    laid_out = [(path, layout) for path, layout, _ in found]
    origin = {"laid_out": laid_out, "functions": functions}
    return dataclasses.replace(Model.of(whole, params, name), origin=origin)


def to_params(model: Model, *, form: Form | None = None) -> Any:
    """Convert the parameters to a tree that Flax's modules take.

    `SimpleRNNCell`, `LSTMCell`, `GRUCell` and `MGUCell` become those of the cells of that equation,
    under the paths of ``RNN`` and ``Bidirectional``. What is code in Flax is left out: directions,
    and the activations with which the model was read, or Flax's own.

    A model that came from Flax goes back to the same paths, to the bit where it is unchanged: for
    the tree of a module of your own, read its parameters with `from_params`, and give what
    ``with_params`` makes of that model. Flax's cells always have biases, so that those of
    ``use_bias=False`` are zeros. The reset and update gates of a ``GRUCell``, and the gate of an
    ``MGUCell``, have one bias in Flax and two here: they are added.

    Args:
        model: with parameters, of one recurrent layer.
        form: ``"linen"`` or ``"nnx"``; left out, that of the tree that the model came as, or linen.

    Returns:
        a tree of dicts. For linen it is ``{"params": tree}`` if it came so. For nnx
        ``nnx.update(module, tree)`` takes it.

    Raises:
        InteropError: the model has other layers or a `Stack`, Flax has no cell for one of it, a
            cell has other activations or options, a `Bidirectional` merges by another word than
            ``"concat"``, or there is no place for a bias that is not zero: a ``GRUCell`` of nnx has
            none for the candidate's ``recurrent_bias``.
        InvalidInputError: ``form`` is another word.

    >>> import jax, numpy as np, rnnjax
    >>> cell = rnnjax.MGUCell(5)
    >>> params = to_params(Model.of(cell, cell.init(jax.random.key(0), 3)))
    >>> jax.tree.map(np.shape, params["cell"]["hn"])
    {'bias': (5,), 'kernel': (5, 5)}
    """
    if form not in (None, "linen", "nnx"):
        raise InvalidInputError(f"form should be 'linen' or 'nnx', but is {form!r}")
    layers = with_parameters(model, "Flax")
    name, layer, params = layers[0] if len(layers) == 1 else ("", None, None)
    rows = [*rows_of(name, layer.cell, params, "Flax")] if isinstance(layer, Recurrent) else []
    if len(rows) != 1:
        raise InteropError(
            f"Flax has a module for each cell, but this model is of "
            f"{[*map(str, model.layers.values())]}; write each by itself, as Model.of(cell, params)"
        )
    cells = [in_prediction(cell, repr(name), "Flax") for cell, _ in rows[0]]
    places: list[tuple[Path, Layout]] = model.origin.get("laid_out", [])
    came = [each.cell for _, each in places] == [*map(type, cells)]
    if not came or form not in (None, places[0][1].form):
        theirs: Form = form or (places[0][1].form if places else "linen")
        ways = [(way, "cell") for way in _WAYS] if len(cells) == 2 else [("cell",)]
        places = [
            (path, _layout_of(repr(name), cell, theirs))
            for path, cell in zip(ways, cells, strict=True)
        ]
    activation_fn, gate_fn = model.origin.get("functions", ("tanh", "sigmoid"))
    leaves: dict[Path, jax.Array] = {}
    for (path, layout), cell, (_, one) in zip(places, cells, rows[0], strict=True):
        check_options(cell, _FUNCTIONS, repr(name), "Flax")
        has = [named(getattr(cell, field, gate_fn)) for field in _FUNCTIONS]
        if has != [gate_fn, activation_fn]:
            raise InteropError(
                f"gate_fn and activation_fn of {name!r}, its {' and '.join(_FUNCTIONS)}, should be "
                f"{gate_fn!r} and {activation_fn!r}, but are {has[0]!r} and {has[1]!r}, which "
                "parameters do not hold; read those of its module by from_params with these, and "
                "give with_params"
            )
        held = _leaves(repr(name), layout, cell, cell_arrays(cell, one))
        leaves |= {(*path, *place): as_jax(leaf) for place, leaf in held.items()}
    return flax.traverse_util.unflatten_dict(leaves)


def _spelled(path: Path) -> str:
    return ".".join(map(str, path)) or "the tree"


def _find(tree: Any, path: Path) -> Found:
    layout = _find_layout(_spelled(path), tree)
    if layout is not None:
        return [(path, layout, tree)]
    # The random numbers of a module of nnx are no parameters.
    inside = {
        key: child
        for key, child in tree.items()
        if not isinstance(child, Mapping) or (child and set(child) != {"count", "key"})
    }
    if all(isinstance(tree.get(way), Mapping) for way in _WAYS) and inside.keys() <= {*_WAYS}:
        one, other = (_find(tree[way], (*path, way)) for way in _WAYS)
        if len(one) == len(other) == 1:
            return one + other
    elif len(inside) == 1:
        ((key, child),) = inside.items()
        if isinstance(child, Mapping):
            return _find(child, (*path, key))
    raise InteropError(
        f"params should be of one recurrent module, a cell, RNN or Bidirectional, but "
        f"{_spelled(path)} has {', '.join(map(repr, inside))[:400] or 'none'}; give the part of "
        "one, as in params['encoder']"
    )


def _find_layout(where: str, tree: Tree) -> Layout | None:
    """The layout of a cell's tree, from its names and, where nnx's are alike, its shapes."""
    named = [each for each in LAYOUTS if set(tree) == {block for block, _ in each.leaves}]
    if not named:
        return None
    for name in tree:
        kernel = tree[name].get("kernel") if isinstance(tree[name], Mapping) else None
        if kernel is None or np.ndim(kernel) != 2 or 0 in np.shape(kernel):
            shape = None if kernel is None else np.shape(kernel)
            raise InteropError(
                f"{where}.{name} should have a kernel of two axes, but has {shape}; check the tree"
            )
    if len(named) == 1:
        return named[0]
    hidden, width = np.shape(tree["dense_h"]["kernel"])
    cells = [(each, each.make(hidden, "tanh", "sigmoid")) for each in named]
    return next((each for each, cell in cells if len(cell.gates) * hidden == width), None)


def _read_cell(
    tree: Tree, where: str, layout: Layout, functions: tuple[Any, Any]
) -> tuple[Cell, dict[str, jax.Array]]:
    leaves = {
        (block, name): float_array(f"{where}.{block}.{name}", leaf)
        for block, held in tree.items()
        for name, leaf in held.items()
    }
    first, second = (leaves[layout.places[name][0]] for name in ("kernel", "recurrent_kernel"))
    cell = layout.make(len(second), *functions, param_dtype=first.dtype)
    zeros = {
        name: np.zeros(parameter.shape, first.dtype)
        for name, parameter in cell.parameters(len(first)).items()
    }
    expected, came = (
        {".".join(place): array.shape for place, array in each.items()}
        for each in (_leaves(where, layout, cell, zeros), leaves)
    )
    kind = f"{where}, a {layout.form} {layout.names[0]} of {len(second)} units,"
    check_shapes(kind, expected, came, "check the tree")
    check_one_type(where, leaves.values())
    return cell, params_of(layout, leaves, residual=False)


def _leaves(where: str, layout: Layout, cell: Cell, arrays: Arrays) -> dict[Place, np.ndarray]:
    """The parameters of a cell as a class of Flax lays them out."""
    recurrent = arrays["recurrent_kernel"]
    none = np.zeros(recurrent.shape[1], recurrent.dtype)  # Flax's cells always have biases
    arrays = {"bias": none, "recurrent_bias": none, **arrays}
    if cell.additive:
        arrays = with_one_bias(arrays)
    else:
        arrays |= _fold(where, layout, cell, arrays["bias"], arrays["recurrent_bias"])
    return {
        place: part
        for name, places in layout.places.items()
        for place, part in zip(places, np.split(arrays[name], len(places), axis=-1), strict=True)
        if place[0] != "-"
    }


def _fold(where: str, layout: Layout, cell: Cell, first: Any, second: Any) -> Arrays:
    """Move second biases that the layout has no place for into the first, where they add up."""
    places = layout.places["recurrent_bias"]
    kept = np.repeat([place[0] != "-" for place in places], len(second) // len(places))
    none = np.zeros_like(second)
    lost = np.where(kept, none, second)
    candidate = np.arange(len(first)) >= len(first) - len(first) // len(cell.gates)
    if np.any(candidate & (lost != 0)):
        raise InteropError(
            f"{where} has a recurrent_bias of its candidate that is not zero, but a {layout.form} "
            f"{layout.names[0]} has none; hold it at zero in training, or give form='linen'"
        )
    if np.any(lost) and first.dtype.itemsize < 4:
        raise InteropError(
            f"the biases of {where} add up in {first.dtype}, which rounds; cast them to float32"
        )
    # Where there is nothing to move, not even the sign of a zero changes.
    moved = np.where(lost != 0, first + lost, first)
    return {"bias": moved, "recurrent_bias": np.where(kept, second, none)}


def _layout_of(where: str, cell: Cell, form: Form) -> Layout:
    """The layout of the class of Flax that computes what ``cell`` does: the first of its form."""
    for layout in LAYOUTS:
        if layout.form == form and layout.cell is type(cell):
            return layout
    known = dict.fromkeys(each.cell.__name__ for each in LAYOUTS if each.form == form)
    raise InteropError(
        f"flax.{form} has cells for {', '.join(known)}, but {where} is {cell!r}; use one of these"
    )
