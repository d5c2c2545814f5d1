"""Which modules a state dict holds, and how each becomes a layer."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from rnnjax.cells.base import Cell
from rnnjax.errors import InteropError
from rnnjax.interop.arrays import as_jax, float_array
from rnnjax.interop.chain import Reading
from rnnjax.interop.layers import Dense, Embedding, Recurrent
from rnnjax.interop.torch.cells import read_cell, read_params
from rnnjax.interop.torch.nested import RECURRENT_KEY
from rnnjax.layers import Bidirectional, Directions, Stack

_DIRECTIONS = re.compile(
    r"(?P<prefix>.*\.)?(?:(?P<old>weight\w*)_v|parametrizations\.(?P<new>weight\w*)\.original1)",
    re.DOTALL,
)


class Module(NamedTuple):
    """A module of a state dict, of which nothing is converted yet."""

    name: str  # its prefix; "rnn" for a recurrent one at the top level
    prefix: str  # of its keys, with the dot
    entries: dict[str, Any]  # by their keys without the prefix; most often tensors

    @property
    def recurrent(self) -> bool:
        """Whether it is an RNN, LSTM or GRU, or a cell of these."""
        return any(map(RECURRENT_KEY.fullmatch, self.entries))

    @property
    def is_weight(self) -> bool:
        """Whether it looks like a Linear or an Embedding."""
        shape = getattr(self.entries.get("weight"), "shape", ())
        known = set(self.entries) in ({"weight"}, {"weight", "bias"})
        return known and bool(self.name) and len(shape) == 2 and 0 not in shape

    def __str__(self) -> str:
        words = [
            f"{repr(key[:40])[1:-1]} "  # which may hold what moves a terminal
            f"{tuple(value.shape) if hasattr(value, 'shape') else type(value).__name__}"
            for key, value in [*self.entries.items()][:3]
        ]
        return f"{self.name[:60]!r} ({', '.join(words)}{', ...' * (len(self.entries) > 3)})"


def without_weight_norm(state: Mapping[str, Any]) -> dict[str, Any]:
    """The weights of which ``weight_norm`` keeps lengths and directions (Salimans & Kingma, 2016).

    >>> state = {"weight_g": np.float32([[10]]), "weight_v": np.float32([[3, 4]])}
    >>> without_weight_norm(state)
    {'weight': array([[6., 8.]], dtype=float32)}
    """
    found = dict(state)
    for key in state:
        match = _DIRECTIONS.fullmatch(key)
        lengths = "" if match is None else f"{key[:-1]}{'g' if match['old'] else '0'}"
        if match is None or lengths not in state:
            continue
        shape, given = (tuple(getattr(state[name], "shape", ())) for name in (key, lengths))
        along = [tuple(n if i == j else 1 for j, n in enumerate(shape)) for i in range(len(shape))]
        if given not in [(), *along]:  # of another kind
            continue
        v, g = (float_array(name, found.pop(name)) for name in (key, lengths))
        axes = tuple(i for i in range(v.ndim) if not given or given[i] == 1)
        wide = v.astype(np.result_type(v.dtype, np.float32))
        with np.errstate(all="ignore"):  # a direction of zeros gives NaN, as it does there
            weight = wide * (g / np.sqrt(np.square(wide).sum(axes, keepdims=True)))
        found[f"{match['prefix'] or ''}{match['old'] or match['new']}"] = weight.astype(v.dtype)
    return found


def find_modules(state: Mapping[str, Any], wrapper: str = "") -> dict[str, Module]:
    """Gather the entries by the module that they belong to, in the order of the state dict.

    Every key begins with ``wrapper``, and no name does.
    """
    found: dict[str, Module] = {}
    for key, value in without_weight_norm(state).items():
        match = RECURRENT_KEY.fullmatch(key.removeprefix(wrapper))
        prefix, _, short = key.removeprefix(wrapper).rpartition(".")
        name = prefix or ("rnn" if match else "")
        prefix = key.removesuffix(short)
        module = found.setdefault(name, Module(name, prefix, {}))
        if module.prefix != prefix:
            raise InteropError(
                f"{key[:80]!r} does not belong to {module}, but has its name; rename one of them "
                "in the state dict"
            )
        module.entries[short] = value
    return found


def read_module(module: Module, nonlinearity: str) -> list[Reading]:
    """The layers that a module can be read as: two for a weight alone, else one."""
    if not (module.recurrent or module.is_weight):
        raise InteropError(
            f"a state dict is read of RNN, LSTM, GRU, their cells, Embedding and Linear, but "
            f"{module} is none of these, or has no name; leave it out of modules=[...]"
        )
    arrays = {key: float_array(module.prefix + key, v) for key, v in module.entries.items()}
    if module.recurrent:
        return [_read_recurrent(module, arrays, nonlinearity)]
    weight, bias = arrays["weight"], arrays.get("bias")
    rows, columns = weight.shape
    if bias is not None and (bias.shape != (rows,) or bias.dtype != weight.dtype):
        raise InteropError(
            f"the bias of {module}, a Linear, should be ({rows},) and {weight.dtype}, but is "
            f"{bias.shape} and {bias.dtype}; check the state dict"
        )
    params = {"kernel": as_jax(weight.T)} | ({} if bias is None else {"bias": as_jax(bias)})
    dense = Dense(module.name, rows, use_bias=bias is not None)
    readings = [Reading(dense, params, columns, rows)]
    if bias is None:
        embedding = Embedding(module.name, rows, columns)
        readings.append(Reading(embedding, {"embedding": as_jax(weight)}, None, columns))
    return readings


def _read_recurrent(module: Module, named: Mapping[str, np.ndarray], nonlinearity: str) -> Reading:
    places: dict[str, dict[str, np.ndarray]] = {}
    for key, array in named.items():
        match = RECURRENT_KEY.fullmatch(key)
        if match is None:
            raise InteropError(
                f"{module.prefix + key!r:.80} is no part of an RNN, LSTM or GRU, but {module} has "
                "it; leave it out of the state dict, or the module out of modules=[...]"
            )
        places.setdefault(match["place"] or "", {})[match["array"]] = array
    directions = 1 + any(place.endswith("_reverse") for place in places)
    num_layers, rest = divmod(len(places), directions)
    expected = [
        [f"_l{layer}{suffix}" for suffix in ("", "_reverse")[:directions]]
        for layer in range(num_layers)
    ]
    if set(places) == {""}:
        expected = [[""]]
    elif rest or {place for layer in expected for place in layer} != set(places):
        raise InteropError(
            f"the layers of {module} should be _l0, _l1 ..., each with or each without _reverse, "
            f"but are {', '.join(sorted(places))[:200]}; check that the state dict is complete"
        )
    first: Cell | None = None
    cells, params, gives = [], [], 0
    for layer, row in enumerate(expected):
        both: list[Any] = []
        for place in row:
            where, arrays = f"{module.name[:60]!r}{place}", places[place]
            cell = read_cell(where, arrays, nonlinearity)
            first = cell if first is None else first
            inputs = arrays["weight_ih"].shape[1]
            if cell != first or ((place != row[0] or layer) and inputs != gives):
                raise InteropError(
                    f"{where} does not fit the other layers of the module: it is {cell} for "
                    f"{inputs} inputs, where {first} for {gives} is expected; check the state dict"
                )
            both.append(read_params(arrays))
            gives = inputs  # of the other direction
        gives = cell.output_size * directions
        cells.append(Bidirectional(cell) if directions == 2 else cell)
        params.append(Directions(*both) if directions == 2 else both[0])
    takes = places[expected[0][0]]["weight_ih"].shape[1]
    if len(cells) == 1:
        return Reading(Recurrent(module.name, cells[0]), params[0], takes, gives)
    return Reading(Recurrent(module.name, Stack(cells)), tuple(params), takes, gives)
