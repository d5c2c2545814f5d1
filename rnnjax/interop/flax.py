"""Parameters of Flax's recurrent modules, ``flax.linen`` and ``flax.nnx``, in and out.

`from_params` reads the tree of one recurrent module, and `to_params` is its inverse, for both.
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
import functools
import operator
from collections.abc import Mapping
from typing import Any

import flax.core
import flax.traverse_util
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
from rnnjax.interop.layers import Recurrent
from rnnjax.interop.model import Model, rows_of, with_parameters
from rnnjax.layers import Bidirectional, Directions, Stack
from rnnjax.layout import LAYOUTS, Form, Layout, Tree, params_of

__all__ = ["from_params", "to_params"]

Path = tuple[Any, ...]
Found = list[tuple[Path, Layout]]
"""The cells of a tree, two for both directions, else one: where they are, and their layout."""

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
    if not isinstance(params, Mapping):
        raise InvalidInputError(
            f"parameters of Flax should be a dict, a nnx.State or a module of nnx, but are "
            f"{type(params).__name__}; give module.init(key, inputs) or nnx.state(module)"
        )
    tree = flax.core.meta.unbox(params)
    found = _find(tree, ())
    cells, entries = [], []
    for path, layout in found:
        options: dict[str, Any] = {"activation": named(activation_fn)}  # by which it runs fast
        if layout.cell is not SimpleRNNCell:
            options["recurrent_activation"] = named(gate_fn)
        part = functools.reduce(operator.getitem, path, tree)
        cell, entry = _read_cell(part, _spelled(path), layout, options)
        cells.append(cell)
        entries.append(entry)
    sizes = [entry["kernel"].shape[0] for entry in entries]
    if len({*sizes}) > 1:
        raise InteropError(
            f"both directions should take inputs of one size, but take {sizes}; check the "
            "parameters"
        )
    if len(cells) == 1:
        model = Model.of(cells[0], entries[0], name)
    else:
        # A second cell like the first is left out, as in Bidirectional(cell).
        both = Bidirectional(cells[0], None if cells[0] == cells[1] else cells[1])
        model = Model.of(both, Directions(*entries), name)
    return dataclasses.replace(model, origin={"laid_out": found})


def to_params(model: Model, *, form: Form | None = None) -> Any:
    """Convert the parameters to a tree that Flax's modules take.

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
    found: Found = model.origin.get("laid_out", [])
    theirs: Form = found[0][1].form if found else "linen"
    alone = [name for name in model.layers if model.params.get(name)]
    leaves: dict[Path, jax.Array] = {}
    for name, layer, params in with_parameters(model, "Flax"):
        if not isinstance(layer, Recurrent):
            arrays = layer_arrays(layer, params)
            leaves |= {(name, key): as_jax(array) for key, array in arrays.items()}
            continue
        for i, parts in enumerate(rows_of(name, layer.cell, params, "Flax")):
            own = f"{name}_{i}" if isinstance(layer.cell, Stack) else name
            cells = [in_prediction(cell, repr(own), "Flax") for cell, _ in parts]
            places = found
            came = len(alone) == 1 and [each.cell for _, each in found] == [*map(type, cells)]
            if not came or form not in (None, theirs):
                top = () if alone == ["rnn"] and own == name else (own,)
                ways = [(way,) for way in _WAYS] if len(cells) == 2 else [()]
                places = [
                    ((*top, *way, "cell"), _layout_of(repr(own), cell, form or theirs))
                    for way, cell in zip(ways, cells, strict=True)
                ]
            for (path, layout), cell, (_, one) in zip(places, cells, parts, strict=True):
                blocks = _blocks(repr(own), layout, cell, cell_arrays(cell, one))
                for block, held in blocks.items():
                    leaves |= {(*path, block, key): as_jax(leaf) for key, leaf in held.items()}
    return flax.traverse_util.unflatten_dict(leaves)


def _spelled(path: Path) -> str:
    return ".".join(map(str, path)) or "the tree"


def _find(tree: Any, path: Path) -> Found:
    """Find the cells of the one recurrent module of a tree, and their layouts."""
    layout = _find_layout(_spelled(path), tree)
    if layout is not None:
        return [(path, layout)]
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
        f"the parameters should be those of one recurrent module, a cell of Flax or an RNN or "
        f"Bidirectional of such cells, but {_spelled(path)} has "
        f"{', '.join(map(repr, inside))[:400] or 'none'}; give the part of one, as in "
        "params['encoder']"
    )


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
    tree: Tree, where: str, layout: Layout, options: Mapping[str, Any]
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
