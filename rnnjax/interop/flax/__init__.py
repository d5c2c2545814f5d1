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

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.core
from flax import nnx

from rnnjax.cells import Cell
from rnnjax.cells.activations import Activation, get_activation, named
from rnnjax.errors import InteropError, InvalidInputError
from rnnjax.interop.arrays import as_jax, in_prediction, layer_arrays
from rnnjax.interop.chain import (
    Modules,
    check_modules,
    given_order,
    infer_order,
    rows_of,
    with_parameters,
)
from rnnjax.interop.flax.modules import (
    FlaxOrigin,
    Path,
    Place,
    find_modules,
    join,
    layout_of,
    read_module,
    write_cell,
)
from rnnjax.interop.layers import Layer, Recurrent
from rnnjax.interop.model import Model, Sequential
from rnnjax.layers import Stack
from rnnjax.layout import Form

__all__ = ["FlaxOrigin", "from_params", "to_params"]


def from_params(
    params: Any,
    *,
    modules: Sequence[str | tuple[str, str] | Layer] | None = None,
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
            in `rnnjax.interop.torch.from_state_dict`. A pair of names is a forward and a backward
            direction: in a compact module of linen's the cells of a ``Bidirectional`` have no
            parent of that name. Left out, all of them, where their order is certain.
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
    found = find_modules(tree, name)
    if not found:
        raise InteropError("the parameters have no module to read; check what they are of")
    names: list[Any] = []
    for entry in modules or ():
        if isinstance(entry, tuple | list):
            if len(entry) != 2 or not all(
                isinstance(half, str) and half in found and len(found[half].place.layouts) == 1
                for half in entry
            ):
                raise InvalidInputError(
                    f"a pair in modules should be the names of two cells, forward and backward, of "
                    f"{[*found][:12]}, but is {entry!r}"
                )
            joined = join("+".join(entry), found[entry[0]], found[entry[1]])
            found[joined.name] = joined
            entry = joined.name
        names.append(entry)
    known = Modules(
        {name: str(module) for name, module in found.items()},
        frozenset(name for name, module in found.items() if module.place.layouts),
        lambda name: [read_module(found[name], gate_fn, activation_fn)],
    )
    order = infer_order(known) if modules is None else given_order(known, names)
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
    units = [*_units(model)]
    top = len(units) == 1 and units[0].name == "rnn" and units[0].cells
    tree: Any = {}
    for unit in units:
        place = origin.places.get(unit.name)
        if place is None or [each.cell for each in place.layouts] != [*map(type, unit.cells)]:
            place = _default_place(unit, () if top else (unit.name,), origin.form)
        if not unit.cells:
            tree = _put(tree, place.paths[0], unit.params)
            continue
        for path, *one in zip(place.paths, place.layouts, unit.cells, unit.params, strict=True):
            tree = _put(tree, path, write_cell(repr(unit.name), *one))
    return {"params": tree} if origin.wrapped else tree


class _Unit(NamedTuple):
    """A layer of the model as Flax has modules: a row of a `Stack` is one by itself."""

    name: str  # of the layer, with a number for a row
    cells: tuple[Cell, ...]  # two for both directions, none for a layer without
    params: Any  # a tuple with those of each cell; of a layer without cells, its own arrays


def _units(model: Model) -> Iterator[_Unit]:
    """The layers that have parameters."""
    for name, layer, params in with_parameters(model, "Flax"):
        if not isinstance(layer, Recurrent):
            arrays = layer_arrays(layer, params)
            yield _Unit(name, (), {key: as_jax(array) for key, array in arrays.items()})
            continue
        for i, parts in enumerate(rows_of(name, layer.cell, params, "Flax")):
            own = f"{name}_{i}" if isinstance(layer.cell, Stack) else name
            cells = tuple(in_prediction(cell, repr(own), "Flax") for cell, _ in parts)
            yield _Unit(own, cells, tuple(one for _, one in parts))


def _default_place(unit: _Unit, path: Path, form: Form) -> Place:
    """Where Flax has the parameters of an ``RNN`` or ``Bidirectional`` at ``path``."""
    layouts = tuple(layout_of(repr(unit.name), cell, form) for cell in unit.cells)
    if len(layouts) == 2:
        return Place(
            tuple((*path, f"{way}_rnn", "cell") for way in ("forward", "backward")), layouts
        )
    return Place(((*path, "cell"),) if layouts else (path,), layouts)


def _put(tree: Any, path: Path, entry: Any) -> Any:
    """The tree with ``entry`` at ``path``."""
    if not path:
        return entry
    head, *rest = path
    return {**tree, head: _put(tree.get(head, {}), tuple(rest), entry)}
