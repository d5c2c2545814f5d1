"""What an instance of a module of Flax says that its parameters do not: order, functions, flags.

Flax is not imported: an instance says of which class it is.
"""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from rnnjax.errors import InteropError, InvalidInputError
from rnnjax.interop.flax.cells import name_activation
from rnnjax.interop.flax.modules import CellOptions, FlaxFunction, FlipValid, Path
from rnnjax.interop.functions import FUNCTIONS
from rnnjax.interop.layers import Activation, Dropout, Layer
from rnnjax.layers import Dropout as DropoutRate
from rnnjax.layout import LAYOUTS

_CELLS = {name for layout in LAYOUTS for name in layout.names}


class Told(NamedTuple):
    """One step of a module: a submodule with parameters, or a layer without."""

    path: Path  # of the submodule's parameters
    layer: Layer | None = None  # the layer without parameters, or None
    # by path, what the cells of the submodule are told
    cells: Mapping[Path, CellOptions] = MappingProxyType({})
    reverse: bool = False  # whether it runs in reverse


def class_of(thing: Any) -> tuple[str, str]:
    """``("linen", "RNN")`` and the like; ``("", name)`` for what is not Flax's or rnnjax's own."""
    kind = type(thing)
    package, _, rest = kind.__module__.partition(".")
    form = rest.partition(".")[0]
    own = package in ("flax", "rnnjax") and form in ("linen", "nnx")
    return (form if own else "", kind.__name__)


def walk_module(
    module: Any, path: Path = (), name: str = "", time_major: bool | None = None
) -> Iterator[Told]:
    """The steps of a module in the order in which they run; ``time_major`` as found around it."""
    if time_major is None:
        time_major = _is_time_major(module)
    form, kind = class_of(module)
    if form and kind == "Sequential":
        for i, step in enumerate(module.layers):
            inner = (f"layers_{i}",) if form == "linen" else ("layers", i)
            where = ".".join(map(str, path + inner))
            yield from walk_module(step, path + inner, where, time_major)
    elif form and kind == "RNN":
        yield Told(path, cells=_cell(module.cell, (*path, "cell")), reverse=module.reverse)
        if module.reverse and not module.keep_order:
            yield Told(path, FlipValid(f"{name or 'rnn'}.order"))
    elif form and kind == "Bidirectional":
        yield _both(module, path)
    elif form and kind in _CELLS:
        yield Told(path, cells=_cell(module, path))
    elif form and kind in ("Embed", "Dense", "Linear"):
        yield Told(path)
    elif form and kind == "Dropout":
        yield Told(path, _dropout(module, name))
    elif not form and callable(module) and not isinstance(module, type) and _is_function(module):
        function = name_activation(module)
        if isinstance(function, str) or function in FUNCTIONS.values():
            yield Told(path, Activation(name, function))
        else:
            yield Told(path, FlaxFunction(name, function, time_major))
    else:
        raise InteropError(
            f"a module is read if it is an RNN, a Bidirectional or a cell of Flax's, or a "
            f"Sequential of these, Embed, Dense or Linear, Dropout and functions, but "
            f"{name or 'it'} is a {type(module).__name__}; for a module of your own call "
            "from_params(params, modules=[...]) with the order in which its modules run"
        )


def _is_time_major(module: Any) -> bool:
    """Whether an RNN or a Bidirectional in it says so."""
    steps = module.layers if class_of(module)[1] == "Sequential" else ()
    return bool(getattr(module, "time_major", False)) or any(map(_is_time_major, steps))


def _both(module: Any, path: Path) -> Told:
    halves = ("forward_rnn", "backward_rnn")
    cells: dict[Path, CellOptions] = {}
    for half in halves:
        rnn = getattr(module, half)
        if class_of(rnn)[1] != "RNN" or not class_of(rnn)[0]:
            raise InteropError(
                f"{half} of a Bidirectional should be an RNN of Flax's, but is a "
                f"{type(rnn).__name__}; call from_params with a pair of names in modules"
            )
        cells |= _cell(rnn.cell, (*path, half, "cell"))
    if module.forward_rnn is module.backward_rnn:
        raise InteropError(
            "both directions of a Bidirectional share one RNN and its parameters, which rnnjax "
            "does not have; give each an RNN of its own"
        )
    if module.merge_fn is not type(module).merge_fn:
        raise InteropError(
            f"merge_fn of a Bidirectional should be Flax's default, but is {module.merge_fn!r}; "
            "call from_params, and set merge of the rnnjax.Bidirectional"
        )
    return Told(path, cells=cells)


def _dropout(module: Any, name: str) -> Dropout:
    if tuple(module.broadcast_dims):
        raise InteropError(
            f"{name or 'a Dropout'} has broadcast_dims={module.broadcast_dims!r}, which is not "
            "read; leave them out of the module"
        )
    try:
        return Dropout(name, DropoutRate(float(module.rate)))
    except InvalidInputError as error:
        raise InteropError(f"{name or 'a Dropout'} cannot be built here: {error}") from error


def _cell(cell: Any, path: Path) -> dict[Path, CellOptions]:
    form, kind = class_of(cell)
    if not form or kind not in _CELLS:
        raise InteropError(
            f"the cell of an RNN should be one of Flax's {', '.join(sorted(_CELLS))}, but is a "
            f"{type(cell).__name__}; rnnjax has no parameters for it"
        )
    carry_init = cell.carry_init
    if carry_init is not None and getattr(carry_init, "__name__", "") != "zeros":
        raise InteropError(
            f"a cell should begin with zeros, but is told carry_init={carry_init!r}; read it by "
            "from_params, and give the carry in each call"
        )
    if not getattr(cell, "reset_gate", True):
        raise InteropError(
            "an MGUCell of reset_gate=False is another function than rnnjax's MGUCell, and is not "
            "read; use one of reset_gate=True"
        )
    told = CellOptions(
        name_activation(getattr(cell, "gate_fn", "sigmoid")),
        name_activation(cell.activation_fn),
        bool(getattr(cell, "residual", False)),
        cell.dtype,
    )
    return {path: told}


def _is_function(thing: Any) -> bool:
    """Whether it is a plain function, jitted or with a derivative of its own, and no module."""
    return not hasattr(thing, "sow")  # as the modules of both kinds do
