"""Which modules a state dict holds, and how each becomes a layer."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from rnnjax.cells.base import Cell
from rnnjax.errors import InteropError
from rnnjax.interop.chain import Reading
from rnnjax.interop.layers import Dense, Embedding, Recurrent
from rnnjax.interop.torch.cells import Biases, Spec, make_cell, read_params, read_spec
from rnnjax.layers import Bidirectional, Directions, Stack

_KEY = re.compile(
    r"(?:(?P<prefix>.*)\.)?(?P<array>weight_ih|weight_hh|weight_hr|bias_ih|bias_hh)"
    r"(?P<place>_l(?:0|[1-9][0-9]{0,3})(?:_reverse)?)?",
    re.DOTALL,
)


class Module(NamedTuple):
    """A module of a state dict.

    Attributes:
        name: its prefix; ``"rnn"`` for a recurrent one at the top level.
        prefix: of its keys, with the dot.
        arrays: by their keys without the prefix.
        recurrent: whether it is an RNN, LSTM or GRU, or a cell of these.
    """

    name: str
    prefix: str
    arrays: dict[str, np.ndarray]
    recurrent: bool

    def __str__(self) -> str:
        shapes = [f"{name[:40]} {array.shape}" for name, array in self.arrays.items()]
        return f"{self.name[:60]!r} ({', '.join(shapes[:3])}{', ...' * (len(shapes) > 3)})"


def find_modules(arrays: Mapping[str, np.ndarray]) -> dict[str, Module]:
    """Gather the arrays by the module that they belong to, in the order of the state dict."""
    found: dict[str, Module] = {}
    for key, array in arrays.items():
        match = _KEY.fullmatch(key)
        prefix, _, short = key.rpartition(".")
        name = prefix or ("rnn" if match else "")
        prefix += "." * ("." in key)
        module = found.setdefault(name, Module(name, prefix, {}, match is not None))
        if module.prefix != prefix or module.recurrent != (match is not None):
            raise InteropError(
                f"{key[:80]!r} does not belong to {module}, but has its name; rename one of them "
                "in the state dict"
            )
        module.arrays[short] = array
    return found


def read_module(module: Module, nonlinearity: str) -> list[Reading]:
    """The layers that a module can be read as: two for a weight alone, else one.

    Raises:
        InteropError: it is no module that is known here, or its arrays do not fit each other.
    """
    if module.recurrent:
        return [_read_recurrent(module, nonlinearity)]
    weight, bias = module.arrays.get("weight"), module.arrays.get("bias")
    known = set(module.arrays) in ({"weight"}, {"weight", "bias"})
    if not (known and module.name) or weight is None or weight.ndim != 2 or not weight.size:
        raise InteropError(
            f"a state dict is read of RNN, LSTM, GRU, their cells, Embedding and Linear, but "
            f"{module} is none of these, or has no name; leave it out with modules=[...]"
        )
    rows, columns = weight.shape
    if bias is not None and (bias.shape != (rows,) or bias.dtype != weight.dtype):
        raise InteropError(
            f"the bias of {module}, a Linear, should be ({rows},) and {weight.dtype}, but is "
            f"{bias.shape} and {bias.dtype}; check the state dict"
        )
    params = {"kernel": jnp.array(weight.T)} | ({} if bias is None else {"bias": jnp.array(bias)})
    dense = Dense(module.name, rows, use_bias=bias is not None)
    readings = [Reading(dense, params, columns, rows)]
    if bias is None:
        embedding = Embedding(module.name, rows, columns)
        readings.append(Reading(embedding, {"embedding": jnp.array(weight)}, None, columns))
    return readings


def _read_recurrent(module: Module, nonlinearity: str) -> Reading:
    places: dict[str, dict[str, np.ndarray]] = {}
    for key, array in module.arrays.items():
        match = _KEY.fullmatch(key)
        assert match is not None
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
    spec: Spec | None = None
    cells, params, biases, gives = [], [], {}, 0
    for layer, row in enumerate(expected):
        both: list[Any] = []
        for place in row:
            where, arrays = f"{module.name[:60]!r}{place}", places[place]
            here = read_spec(where, arrays, nonlinearity)
            spec = here if spec is None else spec
            inputs = arrays["weight_ih"].shape[1]
            if here != spec or ((place != row[0] or layer) and inputs != gives):
                raise InteropError(
                    f"{where} does not fit the other layers of the module: it is {here} for "
                    f"{inputs} inputs, where {spec} for {gives} is expected; check the state dict"
                )
            both.append(read_params(here, arrays))
            if here.bias and here.kind != "GRU":
                biases[module.name, place] = Biases(arrays["bias_ih"], arrays["bias_hh"])
            gives = inputs  # of the other direction
        assert spec is not None
        cell: Cell = make_cell(spec, places[row[0]]["weight_ih"].dtype)
        gives = cell.output_size * directions
        cells.append(Bidirectional(cell) if directions == 2 else cell)
        params.append(Directions(*both) if directions == 2 else both[0])
    takes = places[expected[0][0]]["weight_ih"].shape[1]
    if len(cells) == 1:
        return Reading(Recurrent(module.name, cells[0]), params[0], takes, gives, biases)
    return Reading(Recurrent(module.name, Stack(cells)), tuple(params), takes, gives, biases)
