"""Which modules a state dict holds, and how each becomes a layer and goes back."""

import itertools
import os.path
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rnnjax.cells import Cell, GRUCell, LSTMCell, ProjectionLSTMCell, SimpleRNNCell
from rnnjax.cells.base import Params
from rnnjax.checks import check_choice
from rnnjax.errors import InteropError, InvalidInputError
from rnnjax.interop.arrays import (
    as_jax,
    cell_arrays,
    check_one_type,
    check_shapes,
    float_array,
    in_prediction,
)
from rnnjax.interop.layers import Dense, Embedding, Layer, OneHotIds, Recurrent
from rnnjax.interop.model import Model, Sequential, WithParameters, rows_of
from rnnjax.interop.options import check_options
from rnnjax.interop.torch.saved import ALONE
from rnnjax.layers import Bidirectional, Directions, Stack

_ARRAYS: Mapping[type[Layer], Mapping[str, str]] = {
    Recurrent: {
        "kernel": "weight_ih",
        "recurrent_kernel": "weight_hh",
        "bias": "bias_ih",
        "recurrent_bias": "bias_hh",
        "projection_kernel": "weight_hr",
    },
    Dense: {"kernel": "weight", "bias": "bias"},
    Embedding: {"embedding": "weight"},
}
"""Our arrays and PyTorch's, by the layer; a kernel has its axes the other way round there."""

_FORMS: Mapping[Any, tuple[str, int, tuple[str, ...]]] = {
    SimpleRNNCell: ("RNN", 1, ("activation",)),
    LSTMCell: ("LSTM", 4, ()),
    ProjectionLSTMCell: ("LSTM", 4, ("proj_size",)),
    GRUCell: ("GRU", 3, ()),
}
"""The cells that PyTorch has: the name and the gates of a module, and the fields that it has."""
_NONLINEARITIES = "tanh", "relu"

_RECURRENT_KEY = re.compile(
    rf"(?P<array>{'|'.join(_ARRAYS[Recurrent].values())})"
    r"(?P<place>(?:_l(?:0|[1-9][0-9]{0,3})(?:_reverse)?)?)"
)
_COMPLETE = (
    "check that the state dict is complete, and without weight_norm and parametrizations, which "
    "remove_weight_norm and parametrize.remove_parametrizations of torch.nn.utils take away"
)
_DEEPEST = 6  # dicts in dicts, the outermost counted; longer paths would be memory for nothing
_MOST_STATES = 1000  # that are looked at
# By nn.DataParallel and torch.compile; a hostile name may hold millions.
_WRAPPED = re.compile(r"^(?:module\.|_orig_mod\.){0,4}")


def _to_ours(kind: type[Layer], arrays: Mapping[str, np.ndarray], place: str = "") -> Params:
    # Two biases stay, also where they add up: an optimizer moves their sum by two steps at once.
    return {
        ours: as_jax(array.T if ours.endswith("kernel") else array)
        for ours, theirs in _ARRAYS[kind].items()
        if (array := arrays.get(theirs + place)) is not None
    }


def to_theirs(kind: type[Layer], arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of a layer, or of a cell, by PyTorch's names; of two biases none is left out."""
    if kind is Recurrent and "bias" in arrays:
        arrays = {"recurrent_bias": np.zeros_like(arrays["bias"]), **arrays}
    # Arrays of their own, which torch.from_numpy may let others write to.
    return {
        theirs: np.array(arrays[ours].T if ours.endswith("kernel") else arrays[ours], order="C")
        for ours, theirs in _ARRAYS[kind].items()
        if ours in arrays
    }


def find_state(tree: Any, at: str | None, unread: str = "") -> Mapping[Any, Any]:
    """The one state dict in it.

    ``at`` is the keys that lead to it, with ``/`` between them, or None; ``unread`` is a
    name in the file that was left out, if there is one.

    >>> import numpy as np
    >>> state = {"lstm.weight_ih_l0": np.ones((20, 3))}
    >>> find_state({"model": state, "epoch": 3}, None) == state
    True
    """
    if at is not None:
        for keys, state in _mappings(tree):
            if _path(keys) == at:
                return state
        known = [_path(keys) for keys, _ in itertools.islice(_mappings(tree), 13) if keys]
        raise InvalidInputError(
            f"at should lead to a dict, as {_list(known) or 'nothing here'} does, but is {at!r}"
        )
    found = ((_path(keys), state) for keys, state in _mappings(tree) if _has_parameters(state))
    chosen = list(itertools.islice(found, _MOST_STATES))
    if not chosen and unread:
        raise InteropError(f"it holds {unread!r} and no parameters, and code is not run; {ALONE}")
    if not chosen and isinstance(tree, Mapping):
        return tree
    if not chosen:
        raise InteropError("it holds no dict, and so no state dict; save model.state_dict()")
    if len(chosen) > 1:
        path = next((at for at, state in chosen if any(map(_is_recurrent, state))), chosen[0][0])
        several = f"{len(chosen)} state dicts, {_list([path for path, _ in chosen])}"
        raise InteropError(f"it holds {several}; say which one, as in at={path!r}")
    return chosen[0][1]


def _is_recurrent(key: Any) -> bool:
    return isinstance(key, str) and _RECURRENT_KEY.fullmatch(key.rpartition(".")[2]) is not None


def _path(keys: tuple[Any, ...]) -> str:
    return "/".join(str(key)[:60] for key in keys)


def _mappings(tree: Any) -> Iterator[tuple[tuple[Any, ...], Mapping[Any, Any]]]:
    """Every dict once, the outer ones first, with the keys that lead to it first."""
    level: list[tuple[tuple[Any, ...], Any]]
    level = [((), tree)] if isinstance(tree, Mapping | list | tuple) else []
    seen = {id(tree)}
    for _ in range(_DEEPEST):
        inner = []
        for keys, value in level:
            if isinstance(value, Mapping):
                yield keys, value
            for key, held in value.items() if isinstance(value, Mapping) else enumerate(value):
                if isinstance(held, Mapping | list | tuple) and id(held) not in seen:
                    seen.add(id(held))
                    # No text: two million paths in a hostile file would have gigabytes.
                    inner.append(((*keys, key), held))
        level = inner


def _has_parameters(state: Mapping[Any, Any]) -> bool:
    return any(
        isinstance(key, str)
        and key.rpartition(".")[2].startswith(("weight", "bias"))
        and _shape(value) is not None
        for key, value in state.items()
    )


def _shape(value: Any) -> tuple[int, ...] | None:
    """The shape of a tensor or an array; a lazy module's parameter has none yet, and raises."""
    try:
        return tuple(value.shape)
    except (AttributeError, RuntimeError, TypeError):
        return None


def _list(paths: Sequence[str]) -> str:
    return ", ".join(f"{path[:60]!r}" for path in paths[:12]) + ", ..." * (len(paths) > 12)


class Module(NamedTuple):
    """A module of a state dict, of which nothing is converted yet."""

    name: str  # its prefix; "rnn" for a recurrent one at the top level
    prefix: str  # of its keys, with the dot
    entries: dict[str, Any]  # by their keys without the prefix; most often tensors

    @property
    def recurrent(self) -> bool:
        """Whether it is an RNN, LSTM or GRU, or a cell of these."""
        return any(map(_is_recurrent, self.entries))

    @property
    def known(self) -> bool:
        """Whether it is recurrent, or looks like a Linear or an Embedding."""
        shape = _shape(self.entries.get("weight")) or ()
        weight = set(self.entries) in ({"weight"}, {"weight", "bias"})
        return self.recurrent or (weight and self.name != "" and len(shape) == 2 and 0 not in shape)

    def __str__(self) -> str:
        words = [
            f"{repr(key[:40])[1:-1]} "  # which may hold what moves a terminal
            f"{type(value).__name__ if (shape := _shape(value)) is None else shape}"
            for key, value in [*self.entries.items()][:3]
        ]
        return f"{self.name[:60]!r} ({', '.join(words)}{', ...' * (len(self.entries) > 3)})"


class Reading(NamedTuple):
    """A layer that a module can be read as."""

    layer: Layer  # without parameters
    params: Any  # of the layer
    takes: int | None  # the number of features of its inputs; None for ids
    gives: int  # that of its outputs


def find_modules(state: Mapping[str, Any]) -> dict[str, Module]:
    """Gather the entries by the module that they belong to, in the order of the state dict.

    No name has the prefix that all keys have where the whole was wrapped.
    """
    (wrapper,) = _WRAPPED.findall(os.path.commonprefix([*state]))  # noqa: RUF071  # no paths
    found: dict[str, Module] = {}
    for key, value in state.items():
        path, _, short = key.removeprefix(wrapper).rpartition(".")
        name, prefix = path or ("rnn" if _is_recurrent(short) else ""), key.removesuffix(short)
        module = found.setdefault(name, Module(name, prefix, {}))
        if module.prefix != prefix:
            raise InteropError(f"{key[:80]!r} is none of {module}, but has its name; rename it")
        module.entries[short] = value
    return found


def read_module(module: Module, nonlinearity: str) -> list[Reading]:
    """The layers that a module can be read as: two for a weight alone, else one."""
    if not module.known:
        raise InteropError(
            f"{module} is none of these: RNN, LSTM, GRU, cell, Embedding, Linear; leave it out"
        )
    arrays = {key: float_array(module.prefix + key, v) for key, v in module.entries.items()}
    if module.recurrent:
        return [_read_recurrent(module, arrays, nonlinearity)]
    weight, bias = arrays["weight"], arrays.get("bias")
    rows, columns = weight.shape
    if bias is not None and (bias.shape != (rows,) or bias.dtype != weight.dtype):
        raise InteropError(
            f"the bias of {module} should be {weight.dtype}({rows},), but is "
            f"{bias.dtype}{bias.shape}; check the state dict"
        )
    dense = Dense(module.name, rows, use_bias=bias is not None)
    readings = [Reading(dense, _to_ours(Dense, arrays), columns, rows)]
    if bias is None:
        embedding = Embedding(module.name, rows, columns)
        readings.append(Reading(embedding, _to_ours(Embedding, arrays), None, columns))
    return readings


def _read_recurrent(module: Module, arrays: Mapping[str, np.ndarray], nonlinearity: str) -> Reading:
    places = {match["place"] for match in map(_RECURRENT_KEY.fullmatch, arrays) if match}
    ways = ("", "_reverse")[: 1 + any(place.endswith("_reverse") for place in places)]
    count = len({place.removesuffix("_reverse") for place in places})
    rows = [[f"_l{k}{way}" for way in ways] for k in range(count)] if any(places) else [[""]]
    where = repr(module.name[:60])
    cell = _read_cell(where, arrays, rows[0][0], nonlinearity)
    layer: Cell = Bidirectional(cell) if ways[1:] else cell
    takes = max((0, *np.shape(arrays.get(f"weight_ih{rows[0][0]}", ())))[-1], 1)
    expected = {
        _ARRAYS[Recurrent][name] + place: one.shape[::-1]
        for k, row in enumerate(rows)
        for name, one in cell.parameters(layer.output_size if k else takes).items()
        for place in row
    }
    came = {key: array.shape for key, array in arrays.items()}
    told = (
        f"{where}, of the class {_FORMS[type(cell)][0]} with hidden_size={cell.hidden_size}, "
        f"num_layers={len(rows)} and bidirectional={len(ways) == 2},"
    )
    check_shapes(told, expected, came, _COMPLETE)
    check_one_type(where, arrays.values())
    params: list[Any] = []
    for row in rows:
        both = [_to_ours(Recurrent, arrays, place) for place in row]
        params.append(Directions(*both) if ways[1:] else both[0])
    whole, held = (Stack([layer] * len(rows)), tuple(params)) if rows[1:] else (layer, params[0])
    return Reading(Recurrent(module.name, whole), held, takes, layer.output_size)


def _read_cell(where: str, arrays: Mapping[str, np.ndarray], place: str, nonlinearity: str) -> Any:
    """The cell that computes what each layer of a module does, by the arrays of its first."""
    weight = arrays.get(f"weight_hh{place}", np.zeros(()))
    projection = arrays.get(f"weight_hr{place}")
    units = weight if projection is None else projection
    hidden = units.shape[1] if units.ndim == weight.ndim == 2 else 0
    gates, rest = divmod(weight.shape[0], hidden) if hidden else (0, 0)
    projected = projection is not None
    kinds = [
        kind
        for kind, (_, count, _) in _FORMS.items()
        if count == gates and (kind is ProjectionLSTMCell) == projected
    ]
    if rest or not kinds or weight.size == 0:
        raise InteropError(
            f"weight_hh{place} of {where} should be (gates * {hidden or 'hidden_size'}, "
            "hidden_size) with 4, 3 or 1 gates for an LSTM, a GRU or an RNN, and 4 where there is "
            f"a weight_hr, but is {weight.shape if weight.ndim else 'missing'}; {_COMPLETE}"
        )
    biased = any(key.startswith("bias") for key in arrays)
    options: dict[str, Any] = {"use_bias": biased, "param_dtype": weight.dtype}
    if gates != 3:
        options["use_recurrent_bias"] = biased
    if gates == 1:
        options["activation"] = nonlinearity
    if projected:
        options["proj_size"] = weight.shape[1]
    return kinds[0](hidden, **options)


def write_recurrent(layer: Recurrent, params: Params, single: bool) -> dict[str, np.ndarray]:
    """Every layer and direction of one module, by PyTorch's names; of a ``single`` cell."""
    name = repr(layer.name)
    if layer.reverse:
        raise InteropError(
            f"{name} runs in reverse, and a module of PyTorch does not; reverse the sequence in "
            "code, and write the layer without reverse"
        )
    told: set[tuple[Any, ...]] = set()
    entries: dict[str, np.ndarray] = {}
    for k, parts in enumerate(rows_of(layer.name, layer.cell, params, "PyTorch")):
        for d, (whole, one) in enumerate(parts):
            place = "" if single and whole is layer.cell else f"_l{k}{'_reverse' * d}"
            cell = in_prediction(whole, f"{name}{place}", "PyTorch")
            told.add((len(parts), *_told_of(f"{name}{place}", cell)))
            arrays = to_theirs(Recurrent, cell_arrays(cell, one))
            entries |= {key + place: array for key, array in arrays.items()}
    if len(told) > 1:
        raise InteropError(
            f"cells of a module of PyTorch are alike, but those of {name} are not: {layer.cell!r}; "
            "give each a layer of its own"
        )
    return entries


def _told_of(where: str, cell: Any) -> tuple[Any, ...]:
    """Return the constructor arguments of PyTorch's module, common to all its layers."""
    name, _, fields = _FORMS.get(type(cell), ("", 0, ()))
    if not name:
        has = ", ".join(kind.__name__ for kind in _FORMS)
        raise InteropError(f"PyTorch has {has}, but {where} is {cell!r}; use one of them")
    check_options(cell, fields, where, "PyTorch")
    if name == "RNN" and cell.activation not in _NONLINEARITIES:
        raise InteropError(
            f"PyTorch has activation={' or '.join(map(repr, _NONLINEARITIES))}, but {where} has "
            f"activation={cell.activation!r}; use that"
        )
    if isinstance(cell, ProjectionLSTMCell) and cell.proj_size >= cell.hidden_size:
        raise InteropError(
            f"proj_size of {where} must be smaller than its hidden_size, but is {cell.proj_size}; "
            "use an LSTMCell"
        )
    own = (getattr(cell, field) for field in fields)
    return name, cell.hidden_size, cell.output_size, cell.use_bias, *own


_MOST_TO_ORDER = 8  # each is read, and a hostile file may hold any number
_NTH = re.compile(r"(?<![^.])[1-9]\d{0,8}(?![^.])")  # above 0, as Sequential counts its modules
# What a linear module is called that is last; some of these where it was made behind another.
_LAST = re.compile(
    r"((lm_)?head|(fc_)?out(put)?(_layer)?|decoder|classifier|logits|(fc|linear|dense) behind)\b"
)


def infer_order(found: Mapping[str, Module], nonlinearity: str) -> list[Reading]:
    """An embedding if there is one, the recurrent modules, a linear one if there is one.

    A state dict has its modules in the order in which they were made, which need not be that in
    which they run. So sizes have to leave one order alone, or of one recurrent module and a linear
    one the name of this has to say that it is last. Where several modules are recurrent their names
    have to count it: of an encoder and a decoder, whose sizes often follow each other, one hands
    its states to the other, and no outputs. Nor may a number below that of a module be missing.
    """
    known = [module for module in found.values() if module.known]
    few, lost = known[:_MOST_TO_ORDER], [str(one) for one in found.values() if not one.known]
    readings = [read_module(one, nonlinearity) for one in few] if len(few) == len(known) else []
    rows = [module.name for module in few if module.recurrent]
    orders: list[list[Reading]] = []
    for chosen in itertools.product(*readings):
        first = [one for one in chosen if isinstance(one.layer, Embedding)]
        rest = [one for one in chosen if not isinstance(one.layer, Embedding)]
        if rows and len(first) < 2 and len(rows) <= len(rest) < len(rows) + 2:
            every = ([*first, *row] for row in itertools.permutations(rest))
            orders += [order for order in every if _fits(order)]
    names = [module.name for module in few]
    if len(rows) == 1 and len(orders) > 1:
        behind = names[names.index(rows[0]) :]
        short = {n: n.rpartition(".")[2].lower() + " behind" * (n in behind) for n in names}
        orders = [order for order in orders if _LAST.match(short[order[-1].layer.name])]
    why = (
        "the order of the modules is certain only where they fit in one way alone, a linear one "
        "last, and names count recurrent ones in it"
    )
    example = _list((rows or names)[:1])
    if lost:
        more = "; ..." * (len(lost) > _MOST_TO_ORDER)
        why = f"{'; '.join(lost[:_MOST_TO_ORDER])}{more} cannot be read here, nor where they run"
    elif len({re.sub(r"\d+", "", name).rstrip("._") for name in rows}) > 1:
        why = (
            f"the recurrent modules {_list(rows)} may run one after the other, side by side, or as "
            "an encoder and a decoder, which are two models"
        )
    elif len(orders) == 1:
        row = [one.layer.name for one in orders[0] if isinstance(one.layer, Recurrent)]
        last = not any(isinstance(one.layer, Dense) for one in orders[0][:-1])
        if last and row == sorted(row, key=lambda name: [*map(int, re.findall(r"\d+", name))]):
            gaps = [n for n in names for m in _NTH.finditer(n) if not any(
                f"{one}.".startswith(f"{n[: m.start()]}{int(m[0]) - 1}.") for one in names
            )]  # fmt: skip
            if not gaps:
                return orders[0]
            example = _list([one.layer.name for one in orders[0]])
            why = (
                f"before {gaps[0][:60]!r} stands a module without parameters: left out, if it is a "
                "Dropout, or Activation('relu', 'relu'), if it is a ReLU"
            )
    listed = "; ".join(map(str, few)) + "; ..." * (len(few) < len(known))
    raise InteropError(
        f"{why}; say in modules=[...] what runs, as in modules=[{example}], of {listed}"
    )


def _fits(order: Sequence[Reading]) -> bool:
    return all(one.gives == other.takes for one, other in itertools.pairwise(order))


def given_order(
    found: Mapping[str, Module], nonlinearity: str, modules: Sequence[str | Layer]
) -> list[Reading]:
    """The modules in the order of ``modules``, and the layers that stand between them."""
    if not isinstance(modules, Sequence) or isinstance(modules, str) or not modules:
        raise InvalidInputError(
            f"modules should be a list such as ['embedding', 'lstm', 'head'], but is {modules!r}"
        )
    choices: list[list[Reading]] = []
    for entry in modules:
        if isinstance(entry, OneHotIds):
            choices.append([Reading(entry, {}, None, entry.size)])
        elif isinstance(entry, Layer) and not isinstance(entry, WithParameters):
            choices.append([Reading(entry, {}, -1, -1)])  # of any size
        elif isinstance(entry, str) and entry in found:
            # At the first place a weight alone is an embedding, unless only a Linear fits.
            first = all(one.takes == -1 for one, *_ in choices)
            readings = read_module(found[entry], nonlinearity)
            choices.append(readings[::-1] if first else readings[:1])
        else:
            raise InvalidInputError(
                f"modules should hold names of {[*found][:12]}, or layers without parameters such "
                f"as Activation('relu', 'relu'), but holds {entry!r}; correct it"
            )
    for order in itertools.product(*choices):
        sized = [one for one in order if one.takes != -1]
        misfits = [pair for pair in itertools.pairwise(sized) if not _fits(pair)]
        if not misfits:
            return [*order]
    one, other = misfits[0]
    takes = "ids" if other.takes is None else f"{other.takes} features"
    raise InteropError(
        f"{other.layer.name!r} takes {takes}, but gets {one.gives} features; correct the order"
    )


def read_model(
    state: Mapping[Any, Any], modules: Sequence[str | Layer] | None, nonlinearity: str
) -> Model:
    """The model of a state dict: all of its modules, or those that are named."""
    check_choice("nonlinearity", nonlinearity, _NONLINEARITIES)
    if not all(isinstance(key, str) for key in state):
        raise InteropError("a state dict has text for keys, unlike this; say in at where it is")
    found = find_modules(state)
    if modules is not None and found:
        order = given_order(found, nonlinearity, modules)
    elif any(module.known for module in found.values()):
        order = infer_order(found, nonlinearity)
    else:
        listed = f", only {', '.join(map(str, [*found.values()][:8]))}" if found else ""
        raise InteropError(f"the state dict has no module to read{listed}; check what was saved")
    names = {reading.layer.name for reading in order} & set(found)
    origin = {
        "prefixes": {name: found[name].prefix for name in names},
        "single_cells": {name for name in names if "weight_hh" in found[name].entries},
    }
    network = Sequential(tuple(reading.layer for reading in order))
    return Model(network, {r.layer.name: r.params for r in order if r.params}, origin)
