"""From the options of Keras's layers to layers of rnnjax."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax

from rnnjax.cells import GRUCell, LSTMCell, SimpleRNNCell
from rnnjax.cells.base import Cell
from rnnjax.errors import InteropError, InvalidInputError
from rnnjax.interop.functions import Function
from rnnjax.interop.keras.functions import ACTIVATION_LAYERS, cell_function, function_of
from rnnjax.interop.keras.graph import Entry, Use, Wiring, entry_of, is_model
from rnnjax.interop.keras.operators import OPERATORS, Operation
from rnnjax.interop.layers import Activation, Dense, Dropout, Embedding, Layer, Masking, Recurrent
from rnnjax.interop.model import Call, Functional, Input, Sequential, Value
from rnnjax.interop.registry import cell_named
from rnnjax.layers import Bidirectional, Regularized, Stack
from rnnjax.layers import Dropout as DropoutRate

_LEAST, _LARGEST = -(2**31), 2**31 - 1
_PADDING = "valid", "same", "causal"
_WHOLE = (None, None, None)
_SAME_AXES = {"Activation", "Dropout", "ReLU", "LeakyReLU", "ELU"} | {
    kind for kind, row in OPERATORS.items() if row.arrays != (1, 1) or row.options == ("dtype",)
} - {"Dot"}  # of (batch, time), where no layer has seen a time


@dataclasses.dataclass(frozen=True)
class Version:
    """Which Keras wrote a config: where an option is left out, its defaults count.

    >>> Version.of("2.1.6-tf"), Version.of("1.2.2").number, Version.of("").number
    (Version(number=2, tensorflow=True), 1, 1)
    """

    number: int = 3
    tensorflow: bool = False

    @classmethod
    def of(cls, text: str) -> "Version":
        """From ``"2.4.0"`` or the like; Keras 1 did not write it at first."""
        number = {"0": 1, "1": 1, "2": 2}.get(text.split(".")[0] or "1", 3)
        # From 2.4 on, Keras 2 was that of TensorFlow whatever it called itself.
        parts = text.split("-")[0].split(".")
        late = number == 2 and len(parts) > 1 and parts[1].isdigit() and int(parts[1]) >= 4
        return cls(number, text.endswith("-tf") or late)


class Options:
    """The options of one layer, each checked as it is asked for."""

    def __init__(self, entry: Entry, version: Version) -> None:
        self.entry, self.version = entry, version
        self.where = f"layer {entry.name[:80]!r} ({entry.kind[:40]})"
        dtype = self.get("dtype")
        policy = str(dtype.get("class_name")) if isinstance(dtype, dict) else ""
        if self.get("lora_rank") or self.get("quantization_config") or "Quantized" in policy:
            raise InteropError(
                f"{self.where} is quantised, or has adapters of low rank (LoRA), which are not "
                "known here; save the model before that is done, or merge them"
            )

    def get(self, *names: str, default: Any = None) -> Any:
        """The first of the names that is there: Keras 1 had others."""
        config = self.entry.config
        return next((config[name] for name in names if name in config), default)

    def flag(self, name: str, default: bool = False) -> bool:
        """True or False."""
        value = self.get(name, default=default)
        if not isinstance(value, bool | int | None) or value not in (True, False, None):
            self.refuse(name, "True or False", value)
        return bool(value)

    def size(self, *names: str) -> int:
        """A positive integer."""
        value = self.get(*names)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _LARGEST:
            self.refuse(names[0], "a positive integer", value)
        return int(value)

    def number(self, *names: str, default: float = 0.0) -> float:
        """A number."""
        value = self.get(*names, default=default)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.refuse(names[0], "a number", value)
        try:
            return float(value)
        except OverflowError:  # an integer of hundreds of digits
            return math.inf if value > 0 else -math.inf

    def function(self, *names: str, default: str) -> str | Function:
        """An activation."""
        value = self.get(*names, default=default)
        return function_of(value, self.version.number, self.where)

    def rate(self, *names: str) -> float:
        """A rate of dropout."""
        rate = self.number(*names)
        if not 0 <= rate < 1:
            self.refuse(names[0], "at least 0 and below 1", rate)
        return rate

    def inner(self, name: str) -> "Options":
        """The options of a layer inside of this one."""
        return Options(entry_of(self.get(name), f"{name} of {self.where}"), self.version)

    def word(self, name: str, *words: str | None) -> str | None:
        """One of some words, the first where it is left out."""
        value = self.get(name, default=words[0])
        if value not in words:
            self.refuse(name, f"one of {', '.join(map(str, words))}", value)
        return None if value is None else str(value)

    def integers(
        self, name: str, *, default: Any = None, least: int = _LEAST, most: int = 0
    ) -> Any:
        """One, or a tuple: of ``most`` where that is told."""
        value = self.get(name, default=default)
        listed = value if isinstance(value, list | tuple) else [value]
        one_or_all = listed is not value or (len(listed) == most if most else listed)
        if not one_or_all or not all(type(n) is int and least <= n <= _LARGEST for n in listed):
            what = f"an integer or {most}" if most else "integers"
            self.refuse(name, f"{what}, {least} at least" if least > _LEAST else what, value)
        return tuple(listed) if listed is value else value

    def window(self, name: str, default: Any = None) -> Any:
        """Sizes along the axes of space, of which the name of the class has the number."""
        rank = int(self.entry.kind.removesuffix("D")[-1])
        return self.integers(name, default=default, least=1, most=rank)

    def edges(self, name: str) -> Any:
        """What is put before and behind, or taken there."""
        return self.integers(name, least=0, most=2)

    def axis(self, name: str) -> Any:
        """One axis, or several where a layer takes these."""
        value, rank = self.integers(name, default=-1), self.entry.rank
        if isinstance(value, tuple) and "Concatenate" in self.entry.kind:
            self.refuse(name, "an integer", value)
        axes = value if isinstance(value, tuple) else (value,)
        if rank is not None and not all(-rank <= axis < rank for axis in axes):
            self.refuse(name, f"one of the {rank} axes of what it was built for", value)
        return value

    def arranged(self, name: str) -> tuple[int, ...]:
        """The sizes of a Reshape, or the order of a Permute."""
        value = self.integers(name)
        listed = value if isinstance(value, tuple) else ()
        if name == "dims" and sorted(listed) != [*range(1, len(listed) + 1)]:
            self.refuse(name, "the numbers of all axes but the first, from 1 on", value)
        if not listed or listed.count(-1) > 1 or not all(n > 0 or n == -1 for n in listed):
            self.refuse(name, "a list of sizes, of which one may be -1", value)
        return listed

    def key(self, name: str) -> tuple[Any, ...]:
        """What stands in the brackets behind an array: a slice as three, None for a new axis."""
        value = self.get(name)
        parts: list[Any] = []
        for one in value if isinstance(value, list) else [value]:
            kind = one.get("class_name") if isinstance(one, dict) else None
            if kind == "__slice__" and isinstance(one.get("config"), dict):
                part: Any = tuple(one["config"].get(end) for end in ("start", "stop", "step"))
            else:
                part = ... if kind == "__ellipsis__" else one
            for n in part if isinstance(part, tuple) else (part,):
                if n is not ... and n is not None and not (type(n) is int and abs(n) <= _LARGEST):
                    self.refuse(name, "integers and slices of them", one)
            parts.append(part)
        if parts[:1] not in ([...], [_WHOLE]):
            self.refuse(name, "one that begins with :, which is the batch", value)
        return (_WHOLE, *parts) if parts[0] is ... else tuple(parts)

    def numbers(self, name: str) -> tuple[Any, ...]:
        """What stands among the arrays of a function of ``keras.ops``, None where one is."""
        for value in self.get(name):
            large = isinstance(value, int) and abs(value) > _LARGEST
            if large or not isinstance(value, bool | int | float | None):
                self.refuse(name, "numbers", value)
        return tuple(self.get(name))

    def refuse(self, name: str, expected: str, value: Any) -> Any:
        """Raise InteropError for an option."""
        raise InteropError(
            f"{name} of {self.where} should be {expected}, but is {repr(value)[:80]}; set it in "
            "Keras and save the model again"
        )


def network_of(wiring: Wiring, version: Version) -> tuple[Sequential | Functional, dict[str, str]]:
    """The network of a model, and for layers from which it does not follow their class in Keras."""
    layers: dict[str, Layer] = {}
    forms: dict[str, str] = {}
    places = {(name, 0): i for i, name in enumerate(wiring.inputs)}
    calls: list[Call] = []
    for (name, number), use in wiring.uses.items():
        entry = wiring.entries[name]
        layer = layer_of(_told(entry, use), version)
        _check_use(layer, entry, use, wiring.masked.get((name, number)))
        if layers.setdefault(name, layer) != layer:
            raise InteropError(
                f"layer {entry.name[:80]!r} is called in two ways, {layers[name]} and {layer}; "
                "give each place a layer of its own"
            )
        if entry.kind in ("TimeDistributed", "RNN"):
            forms[entry.name] = entry.kind
        takes, states, masks = (
            tuple(Value(places[ref[:2]], ref.output) for ref in refs)
            for refs in (use.takes, use.states, () if use.mask is None else (use.mask,))
        )
        # Keras 3 hands no mask to a layer that is called with states, but lets it pass.
        natural = not states or version.number < 3
        calls.append(
            Call(layer.name, f"{layer.name}:{number}" if number else layer.name, takes, states,
                 masks[0] if masks else natural)
        )  # fmt: skip
        places[name, number] = len(wiring.inputs) + len(calls) - 1
    outputs = tuple(Value(places[ref[:2]], ref.output) for ref in wiring.outputs)
    inputs = tuple(_input(wiring, name) for name in wiring.inputs)
    listed = tuple(layers[name] for name in wiring.entries if name in layers)
    network = Functional(inputs, listed, tuple(calls), outputs, wiring.names)
    _check_values(network)
    try:
        return _as_row(network) or network, forms
    except InvalidInputError as error:
        raise InteropError(str(error)) from error


def _told(entry: Entry, use: Use) -> Entry:
    """An operation with what its call is told; the others are told nothing."""
    numbers = [a for a in use.arguments if a is not None]
    config, known = dict(entry.config), set[str]()
    if entry.kind in OPERATORS:
        config.update(use.options)
        known.update(OPERATORS[entry.kind].options)
    if entry.kind.startswith("ops."):
        config["arguments"] = use.arguments
    elif numbers or not set(use.options) <= known:
        said = [*numbers, *(f"{key}={value!r}" for key, value in use.options.items())]
        raise InteropError(
            f"layer {entry.name[:80]!r} is called with {', '.join(map(str, said))[:80]}, which is "
            "not known here; leave it out"
        )
    return dataclasses.replace(entry, config=config)


def _check_use(layer: Layer, entry: Entry, use: Use, masked: str | None) -> None:
    least, most = OPERATORS[layer.kind].arrays if isinstance(layer, Operation) else (1, 1)
    if not least <= len(use.takes) <= most:
        raise InteropError(
            f"layer {entry.name[:80]!r} should take {'one array' if most == 1 else 'arrays'}, but "
            f"takes {len(use.takes)}; the graph is damaged"
        )
    makes = isinstance(layer, Masking) or (isinstance(layer, Embedding) and layer.mask_zero)
    if masked is not None and (makes or _is_softmax(entry)):
        raise InteropError(
            f"layer {entry.name[:80]!r} comes behind layer {masked[:80]!r}, which makes a "
            "mask, and would use or replace that; leave one of them out"
        )


def _check_values(network: Functional) -> None:
    """Every value is one that its call gives, and every state has its leaves."""
    states = {
        name: len(jax.tree.leaves(jax.eval_shape(layer.cell.initial_carry)))
        for name, layer in network.recurrent.items()
    }
    count, layers = [1] * len(network.inputs), network.layers
    for call in network.calls:
        layer = layers[call.layer]
        given = 2 if isinstance(layer, Recurrent) and not layer.merged else 1
        given += isinstance(layer, Operation) and layer.gives_scores
        count.append(given + states.get(call.name, 0))
        if call.states and len(call.states) != states[call.name]:
            raise InteropError(
                f"layer {call.layer[:80]!r} should begin with {states[call.name]} states, but is "
                f"given {len(call.states)}; the graph is damaged"
            )
    used = [v for call in network.calls for v in (*call.takes, *call.states, call.mask)]
    for value in (*used, *network.outputs):
        if isinstance(value, Value) and value.output >= count[value.source]:
            raise InteropError(
                f"the graph goes on with output {value.output} of a layer that gives "
                f"{count[value.source]}; it is damaged"
            )


def _as_row(network: Functional) -> Sequential | None:
    """The layers in a row over time, if that is all that the graph says."""
    layers, last = network.layer_list, len(network.calls)
    end = layers[-1] if layers else None
    both = isinstance(end, Recurrent) and not end.merged
    outputs = [(Value(last, 0), Value(last, 1))] if both else [(Value(last, 0),)]
    plain = not any(isinstance(layer, Operation) for layer in layers)
    row = [Call(layer.name, layer.name, (Value(i),)) for i, layer in enumerate(layers)]
    alone = len(network.inputs) == 1 and network.inputs[0].sequence and network.names is None
    fits = alone and plain and [*network.calls] == row and network.outputs in outputs
    return Sequential(layers) if fits else None


def _input(wiring: Wiring, name: str) -> Input:
    entry = wiring.entries[name]
    shape = entry.config.get("batch_shape", entry.config.get("batch_input_shape"))
    if shape is None:
        shape = [None] * 3
    if not isinstance(shape, list) or not all(
        size is None or (isinstance(size, int) and 0 <= size <= _LARGEST) for size in shape
    ):
        raise InteropError(f"the shape of input {entry.name[:80]!r} is damaged: {shape!r:.80}")
    dtype = str(entry.config.get("dtype", "float32"))
    looked_up, masks = _reaches(wiring, name)
    if looked_up or dtype.startswith(("int", "uint")):
        dtype = "int32"
    elif dtype != "bool":
        dtype = "float32"
    sequence = len(shape) > 2 or (len(shape) == 2 and (looked_up or masks))
    return Input(entry.name, tuple(shape[1:]), dtype, sequence)


def _keeps_axes(options: Mapping[str, Any]) -> bool:
    """Whether what stands in brackets is slices alone."""
    key = options.get("key")
    parts = key if isinstance(key, list | tuple) else [key]
    return all(
        isinstance(one, dict) and one.get("class_name") in ("__slice__", "__ellipsis__")
        for one in parts
    )


def _reaches(wiring: Wiring, name: str) -> tuple[bool, bool]:
    """Whether an input, with the axes that it has, is looked up, and whether it is a mask."""
    same, looked_up, masks = {(name, 0)}, False, False
    for here, use in wiring.uses.items():
        kind = wiring.entries[here[0]].kind
        masks |= use.mask is not None and use.mask[:2] in same
        if any(ref[:2] in same for ref in use.takes):
            looked_up |= kind == "Embedding"
            if kind in _SAME_AXES or (kind == "ops.GetItem" and _keeps_axes(use.options)):
                same.add(here)
    return looked_up, masks


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
            f"known are {', '.join(sorted(_LAYERS))}"
        )
    try:
        return _LAYERS[entry.kind](entry.name, options)
    except InvalidInputError as error:
        raise InteropError(f"{options.where} cannot be built here: {error}") from error


def _is_softmax(entry: Entry) -> bool:
    """Whether it is the layer of that name, which leaves out what is masked."""
    inner = entry.config.get("layer") if entry.kind == "TimeDistributed" else None
    return "Softmax" in (entry.kind, inner.get("class_name") if isinstance(inner, dict) else None)


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
    if ">" in kind:
        return _registered(kind, inner)
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


def _registered(name: str, options: Options) -> Cell:
    """A cell of somebody's own: its fields are the options of their names."""
    kind: Any = cell_named("keras", name)
    names = [one.name for one in dataclasses.fields(kind) if one.init]
    told = {**options.entry.config, "hidden_size": options.get("units", "hidden_size")}
    try:
        made: Cell = kind(**{name: told[name] for name in names if name in told})
    except (TypeError, ValueError) as error:  # the second of the library
        raise InteropError(
            f"{options.where} does not become a {kind.__name__}: {str(error)[:200]}; save it with "
            "the options of that class"
        ) from error
    return made


# --- layers --------------------------------------------------------------------------------------


def _recurrent(name: str, options: Options) -> Recurrent:
    kind = options.entry.kind
    if kind == "RNN":
        cell = _any_cell(options.get("cell"), options)
    else:
        cell = _cell(_KINDS[kind], options)
    backwards = options.flag("go_backwards")
    return Recurrent(
        name,
        cell,
        reverse=backwards,
        keep_order=not backwards,
        return_sequences=options.flag("return_sequences"),
        masked_outputs="zero" if options.flag("zero_output_for_mask") else "last",
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
        # Keras sets this for both directions, whatever they say.
        masked_outputs="zero" if forward.return_sequences else "last",
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


def _operation(name: str, options: Options) -> Operation:
    kind = options.entry.kind
    if options.get("data_format") not in (None, "channels_last"):
        options.refuse("data_format", "channels_last", options.get("data_format"))
    for other, unused in _UNUSED.items():
        if options.get(other) not in unused:
            options.refuse(other, "left out", options.get(other))
    names = [*OPERATORS[kind].options, *(("arguments",) if kind.startswith("ops.") else ())]
    known = {name: _KNOWN[name](options, name) for name in names}
    if known.get("filters", 0) % known.get("groups", 1):
        options.refuse("groups", f"a divisor of the {known['filters']} filters", known["groups"])
    return Operation(name, kind, tuple(known.items()))


def _padding(options: Options, name: str) -> Any:
    """A word, or of a layer that is nothing else how much."""
    if "strides" not in OPERATORS[options.entry.kind].options:
        return options.edges(name)
    return options.word(name, *_PADDING[: 3 if options.entry.kind == "Conv1D" else 2])


_FALSE = "keepdims", "normalize", "use_scale", "use_causal_mask", "return_attention_scores"
_KNOWN: Mapping[str, Callable[[Options, str], Any]] = {
    **dict.fromkeys(("use_bias", "center", "scale"), lambda o, name: o.flag(name, True)),
    **dict.fromkeys(_FALSE, Options.flag),
    **dict.fromkeys(("filters", "n", "num_heads", "key_dim", "size"), Options.size),
    **dict.fromkeys(("kernel_size", "pool_size"), Options.window),
    **dict.fromkeys(("target_shape", "dims"), Options.arranged),
    "groups": lambda o, name: o.size(name) if name in o.entry.config else 1,
    "value_dim": lambda o, name: None if o.get(name) is None else o.size(name),
    "strides": lambda o, name: (
        None if o.get(name) is None and "Pooling" in o.entry.kind else o.window(name, 1)
    ),
    "dilation_rate": lambda o, name: o.window(name, 1),
    "padding": _padding,
    "cropping": Options.edges,
    "axis": Options.axis,
    "axes": lambda o, name: o.integers(name, most=2),
    "activation": lambda o, name: o.function(name, default="linear"),
    "epsilon": lambda o, name: o.number(name, default=1e-3),
    "dropout": Options.rate,
    "score_mode": lambda o, name: o.word(name, "dot", "concat"),
    "dtype": lambda o, name: o.word(name, None, "bool", "int32", "float32"),
    "arguments": Options.numbers,
    "key": Options.key,
}
"""The options of an `Operation`, each of its kind, so that they are hashable and no surprise."""
_NONE: tuple[Any, ...] = (None, False, [], 0)
_UNUSED: Mapping[str, tuple[Any, ...]] = {
    **dict.fromkeys(("renorm", "rms_scaling", "use_gate", "sliding_window"), _NONE),
    "attention_axes": (None, [1]),
    "initial": (None,),  # 0 counts too
}
"""Options that change what is computed, and the values with which they do not."""


def _time_distributed(name: str, options: Options) -> Layer:
    inner = options.inner("layer")
    kind = inner.entry.kind
    if kind not in _AT_EACH_STEP:
        instead = f"known are {', '.join(sorted(k for k in _AT_EACH_STEP if '.' not in k))}"
        if is_model(kind):
            instead = "apply each of its layers in a TimeDistributed of its own"
        elif kind in (*_KINDS, "RNN", "Bidirectional"):
            instead = "load that layer by itself, and map it over the steps with jax.vmap"
        raise InteropError(
            f"{options.where} applies a layer of class {kind[:80]!r} at each step, which is not "
            f"known here; {instead}"
        )
    layer = _AT_EACH_STEP[kind](name, inner)
    return dataclasses.replace(layer, each_step=True) if isinstance(layer, Operation) else layer


def _softmax(name: str, options: Options) -> Layer:
    if options.get("axis", default=-1) in (-1, [-1]):
        return Activation(name, "softmax")
    return _operation(name, options)


_AT_EACH_STEP: Mapping[str, Callable[[str, Options], Layer]] = {
    **{kind: _operation for kind, row in OPERATORS.items() if row.arrays == (1, 1)},
    "Dense": _dense,
    "Activation": lambda name, o: Activation(name, o.function("activation", default="linear")),
    **dict.fromkeys(
        ACTIVATION_LAYERS,
        lambda name, o: Activation(name, ACTIVATION_LAYERS[o.entry.kind](o.entry.config, o.where)),
    ),
    "Softmax": _softmax,
}

_LAYERS: Mapping[str, Callable[[str, Options], Layer]] = {
    **dict.fromkeys(OPERATORS, _operation),
    **dict.fromkeys((*_KINDS, "RNN"), _recurrent),
    **_AT_EACH_STEP,
    "Bidirectional": _bidirectional,
    "TimeDistributed": _time_distributed,
    "TimeDistributedDense": _dense,
    "Embedding": _embedding,
    "Masking": lambda name, o: Masking(name, o.number("mask_value")),
    **dict.fromkeys(("Dropout", "SpatialDropout1D"), _dropout),
}
