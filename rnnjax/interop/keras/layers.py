"""Between Keras's layers, by their options, and layers of rnnjax."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

from rnnjax.cells import GRUCell, LSTMCell, SimpleRNNCell
from rnnjax.cells.base import Cell
from rnnjax.errors import InteropError, InvalidInputError
from rnnjax.interop.keras.operators import OPERATORS, Operation, operation
from rnnjax.interop.keras.options import (
    ACTIVATION_LAYERS,
    Entry,
    cell_function,
    entry_of,
    is_model,
    layer_function,
    name_of,
)
from rnnjax.interop.layers import Activation, Dense, Dropout, Embedding, Layer, Masking, Recurrent
from rnnjax.layers import Bidirectional, Regularized, Stack
from rnnjax.layers import Dropout as DropoutRate

_KINDS: Mapping[str, type[Cell]] = {
    "SimpleRNN": SimpleRNNCell,
    "LSTM": LSTMCell,
    "GRU": GRUCell,
    "CuDNNLSTM": LSTMCell,
    "CuDNNGRU": GRUCell,
}
_CELL = {
    "hidden_size": ("units", "output_dim"),
    "activation": ("activation",),
    "recurrent_activation": ("recurrent_activation", "inner_activation"),
    "use_bias": ("use_bias",),
    "unit_forget_bias": ("unit_forget_bias",),
    "reset_after": ("reset_after",),
}
_FIELDS: Mapping[type, Mapping[str, tuple[str, ...]]] = {
    **dict.fromkeys(_KINDS.values(), _CELL),
    Regularized: {
        "input_dropout": ("dropout", "dropout_W"),
        "recurrent_dropout": ("recurrent_dropout", "dropout_U"),
    },
    Dense: {
        "size": ("units", "output_dim"),
        "activation": ("activation",),
        "use_bias": ("use_bias", "bias"),
    },
    Embedding: {
        "vocabulary_size": ("input_dim",),
        "size": ("output_dim",),
        "mask_zero": ("mask_zero",),
    },
    Masking: {"value": ("mask_value",)},
    Activation: {"function": ("activation",)},
}
"""By a class here, its fields and what Keras calls them: 3 and 2 first, then 1."""


def _fields(kind: type) -> dict[str, tuple[Any, tuple[str, ...]]]:
    """Return the fields of the table that a class has: their defaults, and Keras's names."""
    declared: Any = kind  # a dataclass, as all of the table are
    known = {one.name: one.default for one in dataclasses.fields(declared)}
    return {name: (known[name], there) for name, there in _FIELDS[kind].items() if name in known}


def _read(kind: type, entry: Entry, **defaults: Any) -> dict[str, Any]:
    """The fields of a class, out of the options of a layer; our defaults are those of Keras 3."""
    told: dict[str, Any] = {}
    for name, (default, names) in _fields(kind).items():
        default = defaults.get(name, default)
        if "activation" in name:
            told[name] = entry.function(*names, default=default)
        elif "dropout" in name:
            told[name] = entry.rate(*names)
        elif isinstance(default, bool):
            told[name] = entry.flag(*names, default=default)
        elif isinstance(default, float):
            told[name] = entry.number(*names, default=default)
        else:
            told[name] = entry.size(*names)
    return told


def options_of(made: Any, where: str) -> dict[str, Any]:
    """The options of Keras 3 that the fields of a layer or a cell are.

    >>> options_of(Dense("head", 3, "softmax"), "layer 'head'")
    {'units': 3, 'activation': 'softmax', 'use_bias': True}
    """
    told = {names[0]: getattr(made, name) for name, (_, names) in _fields(type(made)).items()}
    return {n: name_of(v, where) if "activation" in n else v for n, v in told.items()}


def layer_of(entry: Entry) -> Layer:
    """One layer.

    >>> config = {"units": 5, "go_backwards": True, "return_sequences": True, "dropout": 0.2}
    >>> layer = layer_of(Entry("lstm", "LSTM", config, 3))
    >>> print(layer, layer.cell.input_dropout)
    LSTMCell(5), reverse 0.2
    """
    if entry.kind not in _LAYERS:
        raise InteropError(
            f"layer {entry.name[:80]!r} is of class {entry.kind[:80]!r}, which is not known here; "
            f"known are {', '.join(sorted(_LAYERS))}; compute it around the model, in JAX"
        )
    try:
        return _LAYERS[entry.kind](entry)
    except InvalidInputError as error:
        raise InteropError(f"{entry.where} cannot be built here: {error}") from error


def _cell(entry: Entry) -> Cell:
    """A cell, and what training would drop of it."""
    kind: Any = _KINDS[entry.kind.removesuffix("Cell")]
    new = entry.version > 2 or entry.kind.startswith("CuDNN")
    old = {} if new else {"recurrent_activation": "hard_sigmoid", "reset_after": False}
    told = _read(kind, entry, **old)
    cell = kind(**{n: cell_function(v) if "activation" in n else v for n, v in told.items()})
    rates = _read(Regularized, entry)
    return Regularized(cell, **rates) if any(rates.values()) else cell


def _any_cell(value: Any, entry: Entry, stack: bool = True) -> Cell:
    """A cell that an RNN has, or a stack of some."""
    inner = entry_of(value, f"a cell of {entry.where}", entry.version)
    known = [f"{name}Cell" for name in _KINDS if "CuDNN" not in name]
    if inner.kind in known:
        return _cell(inner)
    listed = inner.get("cells")
    if not stack or inner.kind != "StackedRNNCells" or not isinstance(listed, list) or not listed:
        raise InteropError(
            f"{entry.where} has a cell of class {inner.kind[:80]!r}, but should have one of "
            f"{', '.join(known)}{' or StackedRNNCells with a list of them' * stack}"
        )
    return Stack([_any_cell(value, inner, stack=False) for value in listed])


def _recurrent(entry: Entry) -> Recurrent:
    cell = _any_cell(entry.get("cell"), entry) if entry.kind == "RNN" else _cell(entry)
    backwards, sequences = entry.flag("go_backwards"), entry.flag("return_sequences")
    zero = entry.flag("zero_output_for_mask")
    if zero and not sequences:
        entry.refuse("zero_output_for_mask", "False for a last output", True)
    return Recurrent(
        entry.name,
        cell,
        reverse=backwards,
        keep_order=not backwards,
        return_sequences=sequences,
        masked_outputs="last" if sequences and not zero else "zero",
    )


def _bidirectional(entry: Entry) -> Recurrent:
    directions = [entry.inner("layer")]
    if entry.get("backward_layer") is not None:
        directions.append(entry.inner("backward_layer"))
    for direction in directions:
        if direction.kind not in (*_KINDS, "RNN"):
            raise InteropError(
                f"{entry.where} runs a layer of class {direction.kind[:80]!r}, but should "
                f"run one of {', '.join((*_KINDS, 'RNN'))}"
            )
    parts = [_recurrent(direction) for direction in directions]
    forward, backward = parts[0], parts[-1]
    if len(parts) == 2 and (
        forward.reverse == backward.reverse or forward.return_sequences != backward.return_sequences
    ):
        raise InteropError(
            f"the directions of {entry.where} should differ in go_backwards and agree in "
            "return_sequences, but do not; the config is damaged"
        )
    merge = entry.get("merge_mode", default="concat")
    if merge not in ("concat", "sum", "mul", "ave", None):
        entry.refuse("merge_mode", "concat, sum, mul, ave or None", merge)
    merged = Bidirectional(
        forward.cell,
        None if backward.cell == forward.cell else backward.cell,
        {"ave": "average", None: "concat"}.get(merge, merge),
    )
    return dataclasses.replace(
        forward,
        name=entry.name,
        cell=merged,
        merged=merge is not None,
        masked_outputs="zero",  # Keras sets this for both directions, whatever they say
    )


def _plain(kind: Any, entry: Entry) -> Layer:
    """A layer whose fields are all in the table."""
    if kind is Embedding and entry.rate("dropout"):
        entry.refuse("dropout", "0, as to drop words is not known here", entry.get("dropout"))
    return kind(entry.name, **_read(kind, entry))


def _dropout(entry: Entry) -> Dropout:
    noise = entry.get("noise_shape")
    per_sequence = isinstance(noise, list) and len(noise) == 3 and noise[1] == 1
    if noise is not None and not (per_sequence and noise[0] != 1 and noise[2] != 1):
        entry.refuse("noise_shape", "left out or (batch, 1, features)", noise)
    per_sequence |= entry.kind == "SpatialDropout1D"
    per: Literal["step", "sequence"] = "sequence" if per_sequence else "step"
    return Dropout(entry.name, DropoutRate(entry.rate("rate", "p"), per))


def _time_distributed(entry: Entry) -> Layer:
    inner = entry.inner("layer")
    if inner.kind not in _AT_EACH_STEP:
        instead = f"known are {', '.join(sorted(k for k in _AT_EACH_STEP if '.' not in k))}"
        if is_model(inner.kind):
            instead = "apply each of its layers in a TimeDistributed of its own"
        elif inner.kind in (*_KINDS, "RNN", "Bidirectional"):
            instead = "load it in a model of its own, and map that over the steps with jax.vmap"
        raise InteropError(
            f"{entry.where} applies a layer of class {inner.kind[:80]!r} at each step, which is "
            f"not known here; {instead}"
        )
    layer = _AT_EACH_STEP[inner.kind](dataclasses.replace(inner, name=entry.name))
    return dataclasses.replace(layer, each_step=True) if isinstance(layer, Operation) else layer


def _activation(entry: Entry) -> Layer:
    if entry.kind == "Softmax" and entry.get("axis", default=-1) not in (-1, [-1]):
        return operation(entry)
    if entry.kind == "Activation":
        return Activation(entry.name, entry.function("activation", default="linear"))
    return Activation(entry.name, layer_function(entry))


_AT_EACH_STEP: Mapping[str, Callable[[Entry], Layer]] = {
    **{kind: operation for kind, row in OPERATORS.items() if row.arrays == (1, 1)},
    **dict.fromkeys(("Activation", *ACTIVATION_LAYERS), _activation),
    "Dense": functools.partial(_plain, Dense),
}
_LAYERS: Mapping[str, Callable[[Entry], Layer]] = {
    **dict.fromkeys(OPERATORS, operation),
    **dict.fromkeys((*_KINDS, "RNN"), _recurrent),
    **_AT_EACH_STEP,
    "Bidirectional": _bidirectional,
    "TimeDistributed": _time_distributed,
    "TimeDistributedDense": functools.partial(_plain, Dense),
    "Embedding": functools.partial(_plain, Embedding),
    "Masking": functools.partial(_plain, Masking),
    **dict.fromkeys(("Dropout", "SpatialDropout1D"), _dropout),
}
