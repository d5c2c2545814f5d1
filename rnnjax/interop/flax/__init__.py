"""Parameters of Flax's recurrent modules, ``flax.linen`` and ``flax.nnx``, in and out.

`from_module` reads a module and its parameters, `from_params` the parameters alone, and `to_params`
is the way back, for both. `RNN` and `Bidirectional` of `rnnjax.linen` and `rnnjax.nnx` around
Flax's cells hold Flax's trees, and are read like Flax's own. Around rnnjax's own cells, and only
there, nothing is to be read: ``variables["params"]["cell"]`` of an ``RNN``, in nnx its
`cell_params`, goes to `rnnjax.unroll` as it is.

Sequences are time-major here, and Flax's are batch-major unless told otherwise. Flax's carry of an
LSTM is the pair ``(c, h)``, and here it is ``LSTMCarry(hidden=h, cell=c)``; the carry of the other
cells is ``h`` there, and ``GRUCarry(hidden=h)`` or ``SimpleRNNCarry(hidden=h)`` here.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.core
import jax
import numpy as np
from flax import nnx

from rnnjax.cells.activations import Activation
from rnnjax.errors import InteropError, InvalidInputError
from rnnjax.interop.chain import Modules, Reading, check_modules, given_order, infer_order
from rnnjax.interop.flax.cells import name_activation
from rnnjax.interop.flax.code import walk_module
from rnnjax.interop.flax.modules import (
    CellOptions,
    FlaxOrigin,
    FlipValid,
    Path,
    find_modules,
    join,
    read_module,
)
from rnnjax.interop.flax.write import Unit, copy_tree, default_place, list_units, put, write_unit
from rnnjax.interop.layers import Layer, Recurrent
from rnnjax.interop.model import Model, Sequential
from rnnjax.layout import Form

__all__ = ["FlaxOrigin", "FlipValid", "from_module", "from_params", "to_params"]


def from_params(
    params: Any,
    *,
    modules: Sequence[str | tuple[str, str] | Layer] | None = None,
    gate_fn: str | Activation = "sigmoid",
    activation_fn: str | Activation = "tanh",
    residual: bool = False,
    reverse: bool = False,
    keep_order: bool = False,
    name: str = "rnn",
) -> Model:
    """The model of a tree of Flax's parameters.

    It may hold the parameters of linen's ``LSTMCell``, ``OptimizedLSTMCell``, ``GRUCell``,
    ``MGUCell`` and ``SimpleCell``, of nnx's ``LSTMCell``, ``OptimizedLSTMCell``, ``GRUCell`` and
    ``SimpleCell``, of ``RNN`` and ``Bidirectional`` around them, of ``Embed``, and of ``Dense`` or
    ``Linear``. Names and shapes say which. Layers have the paths of the modules for names, as in
    ``"encoder.rnn"``.

    Args:
        params: ``variables`` of linen, or what it holds as ``"params"``; a ``nnx.State``, a
            dict of `nnx.to_pure_dict`, or a module of nnx.
        modules: which modules run, in their order, and between them layers without parameters, as
            in `rnnjax.interop.torch.from_state_dict`. A pair of names is a forward and a backward
            direction: in a compact module of linen's the cells of a ``Bidirectional`` have no
            parent of that name. Left out, all of them, where their order is certain.
        gate_fn: of all cells, as Flax's attribute; by name or as a callable.
        activation_fn: the same.
        residual: of all ``SimpleCell``: h' = f(x W + b + h U + h) is our cell with the identity
            added to U. What training leaves of U goes back to the bit, the rest by subtraction.
        reverse: of the one RNN that there is, as Flax's attribute.
        keep_order: the same.
        name: of a layer at the top of the tree.

    Raises:
        InteropError: a module is none of these, an array has another shape or type, or the order is
            not certain.
        InvalidInputError: ``params`` is no such tree, ``modules`` names a module that is not there,
            a function has an unknown name, or ``reverse`` is given for several modules.

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
    told = CellOptions(name_activation(gate_fn), name_activation(activation_fn), residual)
    tree = _tree(params)
    order = _read(tree, modules, told, name)
    network: list[Layer] = [reading.layer for reading in order]
    if reverse:
        first = network[0]
        if len(order) > 1 or not isinstance(first, Recurrent) or len(order[0].came.paths) == 2:
            raise InvalidInputError(
                "reverse is for one RNN alone, but the parameters are those of "
                f"{[str(layer) for layer in network]}; read the module by from_module"
            )
        network = [dataclasses.replace(first, reverse=True)]
        network += [] if keep_order else [FlipValid(f"{first.name}.order")]
    return _model(network, order, tree)


def from_module(module: Any, variables: Any = None, *, name: str = "rnn") -> Model:
    """The model of a module of Flax's, with its activation functions, flags and order.

    ``Dense``, ``Linear`` and ``Embed`` compute in the types of their parameters and inputs here,
    whatever ``dtype`` they were told; cells keep theirs. A function among them is given the axes
    that Flax would give it, and what it returns without a time, as ``xs[:, -1]``, stays without.

    Args:
        module: an ``RNN``, a ``Bidirectional``, one of the cells of `from_params`, or a
            ``Sequential`` of these, ``Embed``, ``Dense`` or ``Linear``, ``Dropout`` and functions.
        variables: of a module of linen, as ``module.init`` returns them; a module of nnx has its
            own.
        name: of a layer at the top.

    Raises:
        InteropError: a module is none of these, or is told what rnnjax does not have: a
            ``carry_init`` but zeros, a ``merge_fn`` but Flax's default, ``reset_gate=False``,
            ``broadcast_dims`` of a ``Dropout``.
        InvalidInputError: ``variables`` is missing, or given for a module of nnx.

    >>> from flax import nnx
    >>> cell = nnx.LSTMCell(3, 5, activation_fn=nnx.relu, rngs=nnx.Rngs(0))
    >>> model = from_module(nnx.RNN(cell, reverse=True, keep_order=True))
    >>> print(model.layers["rnn"], model.layers["rnn"].cell.activation)
    LSTMCell(5), reverse relu
    """
    if isinstance(module, nnx.Module) != (variables is None):
        raise InvalidInputError(
            "a module of linen comes with variables, and one of nnx without, but "
            f"{type(module).__name__} came {'without' if variables is None else 'with'}; "
            "call from_module(module, module.init(key, inputs)) for linen"
        )
    tree = _tree(module if variables is None else variables)
    steps = [*walk_module(module)]
    cells = {path: told for step in steps for path, told in step.cells.items()}
    entries = [step.layer or ".".join(map(str, step.path)) or name for step in steps]
    order = _read(tree, entries, cells, name)
    network = [
        dataclasses.replace(reading.layer, reverse=True)
        if step.reverse and isinstance(reading.layer, Recurrent)
        else reading.layer
        for step, reading in zip(steps, order, strict=True)
    ]
    return _model(network, order, tree)


def to_params(
    model: Model,
    *,
    form: Form | None = None,
    like: Any = None,
    modules: Sequence[str | tuple[str, str]] | None = None,
) -> Any:
    """The parameters as a tree that Flax's modules take.

    `SimpleRNNCell`, `LSTMCell`, `GRUCell` and `MGUCell` become those of the cells of that equation,
    under the paths of ``RNN`` and ``Bidirectional``; `Dense` and `Embedding` those of ``Dense`` or
    ``Linear`` and ``Embed``. A `Stack` becomes one ``RNN`` for each of its layers, named
    ``"rnn_0"``, ``"rnn_1"`` ... What is code in Flax is left out: activations, directions, merging.

    A model that came from Flax goes back to the same paths, to the bit where it is unchanged.
    Flax's cells always have biases, so that those of ``use_bias=False`` are zeros. The reset and
    update gates of a ``GRUCell``, and the gate of an ``MGUCell``, have one bias in Flax and two
    here: they are added.

    Args:
        model: with parameters.
        form: ``"linen"`` or ``"nnx"``; left out, that of the tree that the model came as, or linen.
        like: a tree, a ``nnx.State`` or a module of nnx, as in `from_params`, into a copy of which
            the parameters are written: of a module of your own with its names. Recurrent and other
            modules have to be in the order of the layers.
        modules: which modules of ``like``, in the order of the layers, as in `from_params`.

    Returns:
        a tree of dicts. For linen it is ``{"params": tree}`` if it came so. For nnx
        ``nnx.update(module, tree)`` takes it.

    Raises:
        InteropError: Flax has no cell for one of the model, or no place for a bias that is not
            zero: a ``GRUCell`` of nnx has none for the candidate's ``recurrent_bias``.
        InvalidInputError: ``form`` is another word, or ``like`` has other modules or sizes.

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
    units = list_units(model)
    base: Any = {}
    if like is not None:
        base = _tree(like)
        origin = _origin_like(base, modules, units, origin)
        base = copy_tree(base.nested)
    top = len(units) == 1 and units[0].name == "rnn" and units[0].cells
    for unit in units:
        place = origin.places.get(unit.name)
        if place is None or [each.cell for each in place.layouts] != [*map(type, unit.cells)]:
            place = default_place(unit, () if top else (unit.name,), origin.form)
        for path, entry in zip(place.paths, write_unit(unit, place), strict=True):
            base = put(base, path, entry)
    return {"params": base} if origin.wrapped else base


class _Tree(NamedTuple):
    """Parameters as nested dicts; of which form if that is known, and whether in "params"."""

    nested: Any
    form: Form | None = None
    wrapped: bool = False


def _tree(params: Any) -> _Tree:
    if isinstance(params, nnx.Module):
        params = nnx.state(params, nnx.Param)
    if isinstance(params, nnx.State):
        return _Tree(nnx.to_pure_dict(params), "nnx")
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
    nested = flax.core.meta.unbox(params["params"] if wrapped else params)
    return _Tree(nested, None, wrapped)


def _read(
    tree: _Tree,
    entries: Sequence[Any] | None,
    options: CellOptions | Mapping[Path, CellOptions],
    top_name: str,
) -> list[Reading]:
    """The layers in their order; pairs of names among the entries are made one module."""
    check_modules(entries)
    found = find_modules(tree.nested, top_name)
    if not found:
        raise InteropError("the parameters have no module to read; check what they are of")
    names: list[Any] = []
    for entry in entries or ():
        if isinstance(entry, tuple | list):
            if len(entry) != 2 or not all(
                isinstance(half, str) and half in found and len(found[half].layouts) == 1
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
        frozenset(name for name, module in found.items() if module.layouts),
        lambda name: read_module(found[name], options),
    )
    return infer_order(known) if entries is None else given_order(known, names)


def _model(network: Sequence[Layer], order: Sequence[Reading], tree: _Tree) -> Model:
    places = {r.layer.name: r.came for r in order if r.came is not None}
    forms = [layout.form for place in places.values() for layout in place.layouts]
    origin = FlaxOrigin((forms or [tree.form or "linen"])[0], tree.wrapped, places)
    params = {r.layer.name: r.params for r in order if r.params}
    return Model(Sequential(tuple(network)), params, origin)


def _origin_like(
    tree: _Tree, modules: Any, units: Sequence[Unit], origin: FlaxOrigin
) -> FlaxOrigin:
    """The places of the modules of another tree, for the layers one after the other."""
    order = [reading for reading in _read(tree, modules, {}, "rnn") if reading.came is not None]
    places = {}
    if len(order) != len(units):
        raise InvalidInputError(
            f"like should have a module for each of {[unit.name for unit in units]}, but has "
            f"{[reading.layer.name for reading in order]}; select them with modules"
        )
    for unit, reading in zip(units, order, strict=True):
        theirs = reading.params if len(unit.cells) == 2 else (reading.params,)
        ours = unit.params if unit.cells else (unit.params,)
        shapes = [jax.tree.map(np.shape, dict(enumerate(each))) for each in (ours, theirs)]
        place = reading.came
        fits = [each.cell for each in place.layouts] == [*map(type, unit.cells)]
        if not fits or shapes[0] != shapes[1]:
            raise InvalidInputError(
                f"{reading.layer.name!r} of like should be of the kind and the sizes of "
                f"{unit.name!r}, {shapes[0]}, but is {reading.layer} with {shapes[1]}; select "
                "another with modules"
            )
        came = origin.places.get(unit.name)
        residual = place.residual_of if came is None else came.residual_of
        places[unit.name] = place._replace(residual_of=residual)
    forms = [layout.form for place in places.values() for layout in place.layouts]
    return FlaxOrigin((forms or [origin.form])[0], tree.wrapped, places)
