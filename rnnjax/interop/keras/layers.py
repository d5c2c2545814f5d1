"""From the options of Keras's layers to layers of rnnjax."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

from rnnjax.cells import GRUCell, LSTMCell, SimpleRNNCell
from rnnjax.cells.base import Cell
from rnnjax.errors import InteropError, InvalidInputError
from rnnjax.interop.keras.operators import OPERATORS, Operation, operation
from rnnjax.interop.keras.options import (
    ACTIVATION_LAYERS,
    Entry,
    Options,
    Version,
    cell_function,
    entry_of,
    is_model,
    layer_function,
)
from rnnjax.interop.layers import Activation, Dense, Dropout, Embedding, Layer, Masking, Recurrent
from rnnjax.layers import Bidirectional, Regularized, Stack
from rnnjax.layers import Dropout as DropoutRate


def layer_of(entry: Entry, version: Version) -> Layer:
    """One layer.

    >>> config = {"units": 5, "go_backwards": True, "return_sequences": True, "dropout": 0.2}
    >>> layer = layer_of(Entry("lstm", "LSTM", config), Version(3))
    >>> print(layer, layer.cell.input_dropout)
    LSTMCell(5), reverse 0.2
    """
    options = Options(entry, version)
    if entry.kind not in _LAYERS:
        raise InteropError(
            f"layer {entry.name[:80]!r} is of class {entry.kind[:80]!r}, which is not known here; "
            f"known are {', '.join(sorted(_LAYERS))}; compute it around the model, in JAX"
        )
    try:
        return _LAYERS[entry.kind](entry.name, options)
    except InvalidInputError as error:
        raise InteropError(f"{options.where} cannot be built here: {error}") from error


# --- cells ---------------------------------------------------------------------------------------


_KINDS: Mapping[str, type[Cell]] = {
    "SimpleRNN": SimpleRNNCell,
    "LSTM": LSTMCell,
    "GRU": GRUCell,
    "CuDNNLSTM": LSTMCell,
    "CuDNNGRU": GRUCell,
}
_OLD = {"recurrent_activation": "inner_activation"}  # as Keras 1 called it


def _cell(kind: type[Cell], options: Options) -> Cell:
    """A cell whose fields are the options of their names, and what training would drop of it."""
    declared: Any = kind  # a dataclass, as each class of cells is that has a form in Keras
    names = {one.name for one in dataclasses.fields(declared)}
    size: Any = options.size("units", "output_dim")
    told: dict[str, Any] = {}
    if "unit_forget_bias" in names:
        told["unit_forget_bias"] = options.flag("unit_forget_bias", True)
    if options.entry.kind.startswith("CuDNN"):
        return kind(size, **told)
    new = options.version.number == 3 or options.version.tensorflow
    gate = "sigmoid" if new else "hard_sigmoid"
    for name, default in (("activation", "tanh"), ("recurrent_activation", gate)):
        if name in names:
            function = options.function(name, _OLD.get(name, name), default=default)
            told[name] = cell_function(function)
    if "reset_after" in names:
        told["reset_after"] = options.flag("reset_after", new)
    cell = kind(size, use_bias=options.flag("use_bias", True), **told)
    rates = {
        "input_dropout": options.rate("dropout", "dropout_W"),
        "recurrent_dropout": options.rate("recurrent_dropout", "dropout_U"),
    }
    return Regularized(cell, **rates) if any(rates.values()) else cell


def _any_cell(value: Any, options: Options, stack: bool = True) -> Cell:
    """A cell that an RNN has, or a stack of some."""
    inner = Options(entry_of(value, f"a cell of {options.where}"), options.version)
    kind, known = inner.entry.kind, [f"{name}Cell" for name in _KINDS if "CuDNN" not in name]
    if kind not in known and not (stack and kind == "StackedRNNCells"):
        raise InteropError(
            f"{options.where} has a cell of class {kind[:80]!r}, but should have one of "
            f"{', '.join(known)}{' or StackedRNNCells' * stack}"
        )
    if kind in known:
        return _cell(_KINDS[kind.removesuffix("Cell")], inner)
    listed = inner.get("cells")
    if not isinstance(listed, list) or not listed:
        raise InteropError(f"{inner.where} should list its cells, but has {repr(listed)[:80]}")
    return Stack([_any_cell(value, inner, stack=False) for value in listed])


# --- layers --------------------------------------------------------------------------------------


def _recurrent(name: str, options: Options) -> Recurrent:
    kind = options.entry.kind
    if kind == "RNN":
        cell = _any_cell(options.get("cell"), options)
    else:
        cell = _cell(_KINDS[kind], options)
    backwards, sequences = options.flag("go_backwards"), options.flag("return_sequences")
    zero = options.flag("zero_output_for_mask")
    if zero and not sequences:
        options.refuse("zero_output_for_mask", "False for a last output", True)
    return Recurrent(
        name,
        cell,
        reverse=backwards,
        keep_order=not backwards,
        return_sequences=sequences,
        masked_outputs="last" if sequences and not zero else "zero",
    )


def _bidirectional(name: str, options: Options) -> Recurrent:
    directions = [options.inner("layer")]
    if options.get("backward_layer") is not None:
        directions.append(options.inner("backward_layer"))
    for direction in directions:
        if direction.entry.kind not in (*_KINDS, "RNN"):
            raise InteropError(
                f"{options.where} runs a layer of class {direction.entry.kind[:80]!r}, but should "
                f"run one of {', '.join((*_KINDS, 'RNN'))}"
            )
    parts = [_recurrent(name, direction) for direction in directions]
    forward, backward = parts[0], parts[-1]
    if len(parts) == 2 and (
        forward.reverse == backward.reverse or forward.return_sequences != backward.return_sequences
    ):
        raise InteropError(
            f"the directions of {options.where} should differ in go_backwards and agree in "
            "return_sequences, but do not; the config is damaged"
        )
    merge = options.get("merge_mode", default="concat")
    if merge not in ("concat", "sum", "mul", "ave", None):
        raise InteropError(
            f"merge_mode of {options.where} should be concat, sum, mul, ave or None, but is "
            f"{repr(merge)[:80]}"
        )
    merged = Bidirectional(
        forward.cell,
        None if backward.cell == forward.cell else backward.cell,
        {"ave": "average", None: "concat"}.get(merge, merge),
    )
    return dataclasses.replace(
        forward,
        cell=merged,
        merged=merge is not None,
        masked_outputs="zero",  # Keras sets this for both directions, whatever they say
    )


def _dense(name: str, options: Options) -> Dense:
    return Dense(
        name,
        options.size("units", "output_dim"),
        options.function("activation", default="linear"),
        options.flag("use_bias", options.flag("bias", True)),
    )


def _embedding(name: str, options: Options) -> Embedding:
    if options.rate("dropout"):
        raise InteropError(
            f"{options.where} drops words, which is not known here; set its dropout to 0"
        )
    return Embedding(
        name, options.size("input_dim"), options.size("output_dim"), options.flag("mask_zero")
    )


def _dropout(name: str, options: Options) -> Dropout:
    noise = options.get("noise_shape")
    per_sequence = isinstance(noise, list) and len(noise) == 3 and noise[1] == 1
    if noise is not None and not (per_sequence and noise[0] != 1 and noise[2] != 1):
        raise InteropError(
            f"noise_shape of {options.where} should be left out or be (batch, 1, features), but is "
            f"{repr(noise)[:80]}"
        )
    per_sequence |= options.entry.kind == "SpatialDropout1D"
    per: Literal["step", "sequence"] = "sequence" if per_sequence else "step"
    return Dropout(name, DropoutRate(options.rate("rate", "p"), per))


def _time_distributed(name: str, options: Options) -> Layer:
    inner = options.inner("layer")
    kind = inner.entry.kind
    if kind not in _AT_EACH_STEP:
        instead = f"known are {', '.join(sorted(k for k in _AT_EACH_STEP if '.' not in k))}"
        if is_model(kind):
            instead = "apply each of its layers in a TimeDistributed of its own"
        elif kind in (*_KINDS, "RNN", "Bidirectional"):
            instead = "load it in a model of its own, and map that over the steps with jax.vmap"
        raise InteropError(
            f"{options.where} applies a layer of class {kind[:80]!r} at each step, which is not "
            f"known here; {instead}"
        )
    layer = _AT_EACH_STEP[kind](name, inner)
    return dataclasses.replace(layer, each_step=True) if isinstance(layer, Operation) else layer


def _softmax(name: str, options: Options) -> Layer:
    if options.get("axis", default=-1) in (-1, [-1]):
        return Activation(name, "softmax")
    return operation(name, options)


_AT_EACH_STEP: Mapping[str, Callable[[str, Options], Layer]] = {
    **{kind: operation for kind, row in OPERATORS.items() if row.arrays == (1, 1)},
    "Dense": _dense,
    "Activation": lambda name, o: Activation(name, o.function("activation", default="linear")),
    **dict.fromkeys(
        ACTIVATION_LAYERS,
        lambda name, o: Activation(name, layer_function(o.entry.kind, o.entry.config, o.where)),
    ),
    "Softmax": _softmax,
}

_LAYERS: Mapping[str, Callable[[str, Options], Layer]] = {
    **dict.fromkeys(OPERATORS, operation),
    **dict.fromkeys((*_KINDS, "RNN"), _recurrent),
    **_AT_EACH_STEP,
    "Bidirectional": _bidirectional,
    "TimeDistributed": _time_distributed,
    "TimeDistributedDense": _dense,
    "Embedding": _embedding,
    "Masking": lambda name, o: Masking(name, o.number("mask_value")),
    **dict.fromkeys(("Dropout", "SpatialDropout1D"), _dropout),
}
