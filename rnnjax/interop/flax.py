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

from rnnjax.cells import Cell, SimpleRNNCell
from rnnjax.cells.activations import Activation, get_activation, named
from rnnjax.checks import check_instance
from rnnjax.errors import InteropError, InvalidInputError
from rnnjax.flax_cells import LAYOUTS, Form, Layout, Tree, params_of
from rnnjax.interop.arrays import (
    as_jax,
    cell_arrays,
    check_one_type,
    float_array,
    in_prediction,
    with_one_bias,
)
from rnnjax.interop.layers import Recurrent
from rnnjax.interop.model import Model, rows_of, with_parameters
from rnnjax.layers import Bidirectional, Directions

__all__ = ["from_params", "to_params"]

Arrays = Mapping[str, np.ndarray]
Path = tuple[Any, ...]
Found = list[tuple[Path, Layout, Tree]]
"""The cells of a tree, two for both directions, else one: where they are, their layout, arrays."""

_WAYS = "forward_rnn", "backward_rnn"


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
    cells, entries = [], []
    for path, layout, part in found:
        options: dict[str, Any] = {"activation": named(activation_fn)}  # by which it runs fast
        if layout.cell is not SimpleRNNCell:
            options["recurrent_activation"] = named(gate_fn)
        cell, entry = _read_cell(part, _spelled(path), layout, options)
        cells.append(cell)
        entries.append(entry)
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
    origin = {"laid_out": laid_out, "functions": (named(gate_fn), named(activation_fn))}
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
            cell has other activations, a `Bidirectional` merges by another word than
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
    layers = [*with_parameters(model, "Flax")]
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
    gate_fn, activation_fn = model.origin.get("functions", ("sigmoid", "tanh"))
    leaves: dict[Path, jax.Array] = {}
    for (path, layout), cell, (_, one) in zip(places, cells, rows[0], strict=True):
        has = [named(getattr(cell, n, gate_fn)) for n in ("recurrent_activation", "activation")]
        if has != [gate_fn, activation_fn]:
            raise InteropError(
                f"gate_fn and activation_fn of {name!r} should be {gate_fn!r} and "
                f"{activation_fn!r}, but are {has[0]!r} and {has[1]!r}, which parameters do not "
                "hold; read those of its module by from_params with these, and give with_params"
            )
        blocks = _blocks(repr(name), layout, cell, cell_arrays(cell, one))
        for block, held in blocks.items():
            leaves |= {(*path, block, key): as_jax(leaf) for key, leaf in held.items()}
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
    if all(isinstance(tree.get(way), Mapping) for way in _WAYS):
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
    named = [each for each in LAYOUTS if set(tree) == {*each.inputs, *each.hiddens}]
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
    return next((each for each in named if len(each.cell.gates) * hidden == width), None)


def _read_cell(
    tree: Tree, where: str, layout: Layout, options: Mapping[str, Any]
) -> tuple[Cell, dict[str, jax.Array]]:
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
            kind = f"{layout.form} {layout.names[0]} of {hidden} units"
            raise InteropError(
                f"{where}.{name} of a {kind} should have {expected}, but has {came}; check the tree"
            )
    check_one_type(where, (array for block in blocks.values() for array in block.values()))
    return cell, params_of(layout, blocks, residual=False)


def _blocks(where: str, layout: Layout, cell: Cell, arrays: Arrays) -> dict[str, Arrays]:
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
    blocks: dict[str, Arrays] = {}
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
    kept = np.repeat(layout.hidden_bias, len(first) // len(layout.cell.gates))
    none = np.zeros_like(second)
    lost = np.where(kept, none, second)
    candidate = np.arange(len(first)) >= len(first) - len(first) // len(layout.cell.gates)
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
    return np.where(lost != 0, first + lost, first), np.where(kept, second, none)


def _layout_of(where: str, cell: Cell, form: Form) -> Layout:
    """The layout of the class of Flax that computes what ``cell`` does: the first of its form."""
    for layout in LAYOUTS:
        if layout.form == form and layout.cell is type(cell):
            if not getattr(cell, "reset_after", True):
                raise InteropError(
                    f"{where} has reset_after=False, which Flax's {layout.names[0]} has not; train "
                    "a cell of reset_after=True"
                )
            return layout
    known = dict.fromkeys(each.cell.__name__ for each in LAYOUTS if each.form == form)
    raise InteropError(
        f"flax.{form} has cells for {', '.join(known)}, but {where} is {cell!r}; use one of these"
    )
