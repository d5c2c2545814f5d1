"""Keras's layers, by their options, and layers of rnnjax, both ways; each option is checked."""

import dataclasses
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING
from functools import partial
from typing import Any

from rnnjax.cells import ConvLSTMCell, GRUCell, LSTMCell, SimpleRNNCell
from rnnjax.cells.activations import ACTIVATIONS
from rnnjax.cells.base import Cell
from rnnjax.errors import InteropError, InvalidInputError
from rnnjax.interop.functions import FUNCTIONS, Function, Nonlinearity
from rnnjax.interop.keras.operators import OPERATORS, Operation, TimeDistributed
from rnnjax.interop.layers import Activation, Dense, Dropout, Embedding, Layer, Masking, Recurrent
from rnnjax.interop.options import KNOWN, check_options
from rnnjax.layers import Bidirectional, Regularized, Stack
from rnnjax.layers import Dropout as DropoutRate

LARGEST = 2**31 - 1
_WHOLE = (None, None, None)
MODELS = ("Sequential", "Functional", "Model")  # the class names of models
TENSORFLOW = 2.04  # the version from which on Keras 2 is that of TensorFlow


def version_of(text: str) -> float:
    """Which Keras wrote a config: its numbers make one, and it has the defaults and rules of that.

    That of TensorFlow is 2.04 at least, whatever it called itself; Keras 1 did not say its number
    at first. The newest is meant where the text tells none.

    >>> version_of("2.1.6-tf"), version_of("2.2.4"), version_of("3.15.0"), version_of("")
    (2.04, 2.02, 3.15, 1)
    """
    if text.split(".")[0] in ("", "0", "1"):
        return 1
    numbers = re.fullmatch(r"(\d{1,4})\.(\d{1,2})\b.*", text)
    version = int(numbers[1]) + int(numbers[2]) / 100 if numbers else math.inf
    return max(version, TENSORFLOW) if text.endswith("-tf") else version


@dataclasses.dataclass(frozen=True)
class Entry:
    """A layer as it stands in a config, each of its options checked as it is asked for."""

    name: str  # of the layer
    kind: str  # its class name; after "ops." that of a function of keras.ops
    config: Mapping[str, Any]  # its options
    version: float  # of Keras; see `version_of`
    asked: set[str] = dataclasses.field(default_factory=set, compare=False)  # options so far

    @property
    def where(self) -> str:
        """The name and class of the layer, for messages."""
        return f"layer {self.name[:80]!r} ({self.kind[:40]})"

    @property
    def model(self) -> "Entry | None":
        """The model that it is, or applies at each step; None if it is another layer."""
        inner = self.config.get("layer") if self.kind == "TimeDistributed" else None
        if isinstance(inner, dict) and inner.get("class_name") in MODELS:
            return self.checked(self.inner("layer"))
        return self if self.kind in MODELS else None

    def get(self, *names: str, default: Any = None) -> Any:
        """The first of the names that is there."""
        self.asked.update(names)
        return next((self.config[name] for name in names if name in self.config), default)

    def inner(self, name: str) -> "Entry":
        """A layer inside of this one."""
        return entry_of(self.get(name), f"{name} of {self.where}", self.version)

    def read(self, name: str, usual: Any, *older: str) -> Any:
        """An option of what kind its name and its usual value tell; MISSING is that of a size.

        Others are numbers, texts, or lists of them, as a layer passes them to JAX, which checks it.
        """
        value = self.get(name, *older, default=usual)
        if "activation" in name:
            return function_of(value, self)
        rate = "dropout" in name or name == "rate"
        kind = "rate" if rate else "size" if usual is MISSING else type(usual).__name__
        if kind not in _OPTIONS:
            try:
                return self.key(value) if name == "key" else _frozen(value)
            except TypeError:
                return self.refuse(name, "a number, a text, or a list of these", value)
        if isinstance(value, dict) and "value" in value:  # an array, as Keras 2 writes it
            value = value["value"]
        value = usual if value is None else value
        expected, fits, made = _OPTIONS[kind]
        number = isinstance(value, int | float) and (kind == "bool" or not isinstance(value, bool))
        if not number or not fits(value):
            self.refuse(name, expected, None if value is MISSING else value)
        return made(value)

    def key(self, value: Any) -> tuple[Any, ...]:
        """Return the index after an array: a slice as three numbers, None for a new axis."""
        parts: list[Any] = []
        for one in value if isinstance(value, list) else [value]:
            kind = one.get("class_name") if isinstance(one, dict) else None
            if kind == "__slice__" and isinstance(one.get("config"), dict):
                one = [one["config"].get(end) for end in ("start", "stop", "step")]
            parts.append(... if kind == "__ellipsis__" else _frozen(one))
        if parts[:1] not in ([...], [_WHOLE]):
            self.refuse("key", "one that begins with :, which is the batch", value)
        return (_WHOLE, *parts) if parts[0] is ... else tuple(parts)

    def checked(self, made: Any) -> Any:
        """What was made of it, if no option that nobody asked for might change that."""
        for name, value in self.config.items():
            unused = _UNUSED.get(name, (None,))
            known = name in self.asked or name in _NO_MATTER or name.endswith(_OF_TRAINING)
            if not known and value not in unused:
                self.refuse(name, f"{unused[-1]!r} or left out", value)
        return made

    def refuse(self, name: str, expected: str, value: Any) -> Any:
        """Raise InteropError for an option with an unsupported value."""
        raise InteropError(
            f"{name} of {self.where} should be {expected}, but is {repr(value)[:80]}; set it in "
            "Keras and save the model again"
        )


_OPTIONS: Mapping[str, tuple[str, Callable[[Any], bool], type]] = {
    "bool": ("True or False", lambda value: value in (True, False), bool),
    "size": ("a positive integer", lambda value: 0 < value <= LARGEST and value % 1 == 0, int),
    "float": ("a number", lambda value: abs(value) <= sys.float_info.max, float),
    "rate": ("at least 0 and below 1", lambda value: 0 <= value < 1, float),
}
"""By the kind of an option what is expected, whether a number is that, and its type here."""

_KERAS_1 = {
    "TimeDistributedDense": "Dense", "output_dim": "units", "bias": "use_bias", "p": "rate",
    "inner_activation": "recurrent_activation", "dropout_U": "recurrent_dropout",
    "dropout_W": "dropout", "pool_length": "pool_size", "stride": "strides",
    "border_mode": "padding",
}  # fmt: skip
"""Keras 1's names of a class and of options, and the later ones; an Embedding has kept its own."""


_NOT_READ = {
    "Lambda": "a Lambda, which holds code, and none is run",
    **dict.fromkeys(("TFOpLambda", "SlicingOpLambda"), "an operator of TensorFlow, and no layer"),
}


def entry_of(value: Any, where: str, version: float) -> Entry:
    """A layer from its dict of class name and options."""
    if not isinstance(value, dict) or not isinstance(value.get("class_name"), str):
        raise InteropError(
            f"{where} should have a class_name and a config, but is {value!r:.80}; get it again"
        )
    kind, config = value["class_name"], value["config"]
    name = config.get("name", value.get("name", kind.lower()))
    if not isinstance(name, str):
        raise TypeError("the name of a layer is no text")
    module, registered = value.get("module"), value.get("registered_name")
    known = not isinstance(module, str) or module.split(".")[0] in ("keras", "tf_keras", "builtins")
    if kind in _NOT_READ:
        raise InteropError(f"layer {name[:80]!r} is {_NOT_READ[kind]}; compute it in JAX")
    # Keras's own classes are registered by their bare names, those of others after a ">".
    if not known or (registered and (">" in str(registered) or not isinstance(module, str))):
        raise InteropError(
            f"layer {name[:80]!r} is {kind[:80]!r}, a class that Keras has not; load the rest alone"
        )
    policy = config.get("dtype")
    quantized = isinstance(policy, dict) and "Quantized" in str(policy.get("class_name"))
    if config.get("lora_rank") or config.get("quantization_config") or quantized:
        raise InteropError(
            f"layer {name[:80]!r} is quantised or has adapters of low rank; save the model "
            "before that, or merge them"
        )
    if version == 1 and kind != "Embedding":
        kind = _KERAS_1.get(kind, kind)
        config = {_KERAS_1.get(option, option): value for option, value in config.items()}
    return Entry(name, kind, config, version)


def layers_in(kind: str, config: Any, version: float) -> list[tuple[Entry, Any]]:
    """All layers of a model in their order there, each with its config; a model is one of them."""
    listed = config["layers"] if isinstance(config, dict) else config
    if not isinstance(listed, list) or not listed:
        raise InteropError(
            f"a {kind} model should list its layers, but has {listed!r:.80}; get it again"
        )
    return [(entry_of(v, f"layer {i} of the model", version), v) for i, v in enumerate(listed)]


def _frozen(value: Any) -> Any:
    """Replace lists by tuples; raise TypeError if it is not JSON of a layer."""
    if isinstance(value, list | tuple):
        return tuple(map(_frozen, value))
    large = type(value) is int and abs(value) > LARGEST
    if large or not isinstance(value, bool | int | float | str | None):
        raise TypeError
    return value


_BY_NAME: Mapping[str, str | Function] = {
    **{name: name for name in FUNCTIONS if name not in ("legacy_hard_sigmoid", "exact_gelu")},
    "gelu": "exact_gelu",
    "swish": "silu",
    "hard_swish": "hard_silu",
    "leaky_relu": Nonlinearity("LeakyRelu", 0.2),
}
_ALPHAS: Mapping[str, tuple[str, tuple[str, ...], float]] = {
    "LeakyReLU": ("LeakyRelu", ("negative_slope", "alpha"), 0.3),
    "ELU": ("Elu", ("alpha",), 1.0),
}
"""Layers that are a `Nonlinearity`: its kind, names of the option, Keras 2's last; the default."""

_NAMED: Mapping[str, tuple[str, Sequence[tuple[Any, str]]]] = {
    "ReLU": ("max_value", [(None, "relu"), (6, "relu6")]),
    "Softmax": ("axis", [(None, "softmax"), (-1, "softmax"), ([-1], "softmax")]),
}
"""Layers that are a function by the value of an option, None where that is left out."""

ACTIVATION_LAYERS = (*_ALPHAS, *_NAMED)
"""The layers of Keras that are nothing but an activation with options, by class name."""


def function_of(value: Any, layer: Entry) -> str | Function:
    """The function that stands in the config of a layer: a name, None, or a layer in a dict.

    Keras 1 and 2 mean another function by ``"hard_sigmoid"``.

    >>> lstm = Entry("lstm", "LSTM", {}, 2)
    >>> function_of("hard_sigmoid", lstm), function_of("gelu", lstm)
    ('legacy_hard_sigmoid', 'exact_gelu')
    """
    if value is None:
        return "linear"
    if isinstance(value, dict):
        kind, config = value.get("class_name"), value.get("config") or {}
        if kind == "function" and isinstance(config, str):
            return function_of(config, layer)
        if kind in ACTIVATION_LAYERS and not value.get("registered_name"):
            return layer_function(Entry(layer.name, kind, config, layer.version))
    if value == "hard_sigmoid" and layer.version < 3:
        return "legacy_hard_sigmoid"
    if isinstance(value, str) and value in _BY_NAME:
        return _BY_NAME[value]
    raise InteropError(
        f"the activation of {layer.where} is {str(value)[:80]!r}, but known are "
        f"{', '.join(_BY_NAME)}; compute it in JAX"
    )


def cell_function(function: str | Function) -> str | Function:
    """The function as a cell takes it: some names are known to `rnnjax.interop` alone."""
    if isinstance(function, str) and function not in ACTIVATIONS:
        return FUNCTIONS[function]
    return function


def layer_function(entry: Entry) -> str | Function:
    """The function that one of ``ACTIVATION_LAYERS`` is."""
    if entry.kind in _ALPHAS:
        kind, names, default = _ALPHAS[entry.kind]
        return entry.checked(Nonlinearity(kind, entry.read(names[0], default, *names[1:])))
    option, known = _NAMED[entry.kind]
    value = entry.get(option)
    if fits := [function for usual, function in known if value == usual]:
        return entry.checked(fits[0])
    return entry.refuse(option, f"{known[-1][0]!r} or left out", value)


def name_of(function: str | Function, where: str, key: str = "activation") -> str | dict[str, Any]:
    """How Keras 3 writes a function: its name, or the config of an activation layer.

    >>> name_of("exact_gelu", "layer 'dense'"), name_of("silu", "layer 'dense'")
    ('gelu', 'silu')
    """
    for name, ours in _BY_NAME.items():
        if function == ours or (isinstance(ours, str) and function == FUNCTIONS[ours]):
            return name
    for layer, (kind, names, _) in _ALPHAS.items():
        if isinstance(function, Nonlinearity) and function.kind == kind:
            config = {names[0]: function.alpha}
            return {"module": "keras.layers", "class_name": layer, "config": config}
    shown = function if isinstance(function, str) else getattr(function, "__name__", function)
    has = ", ".join(_BY_NAME)
    raise InteropError(
        f"the {key} of {where} is {shown!r}, but Keras has {has}; use one, or write .onnx"
    )


_KINDS: Mapping[str, type[Cell]] = {
    "SimpleRNN": SimpleRNNCell,
    "LSTM": LSTMCell,
    "GRU": GRUCell,
    "CuDNNLSTM": LSTMCell,
    "CuDNNGRU": GRUCell,
}
RECURRENT = (*_KINDS, "ConvLSTM1D", "ConvLSTM2D", "RNN", "Bidirectional")
"""The recurrent layers by their classes in Keras."""

_SAME = ("activation", "recurrent_activation", "use_bias", "unit_forget_bias", "reset_after")
_CELL = {"hidden_size": "units", **{name: name for name in _SAME}}
_FIELDS: Mapping[type, Mapping[str, str]] = {
    **dict.fromkeys(_KINDS.values(), _CELL),
    ConvLSTMCell: {**_CELL, "hidden_size": "filters", "kernel_shape": "kernel_size"},
    Regularized: {"input_dropout": "dropout", "recurrent_dropout": "recurrent_dropout"},
    Dense: {"size": "units", "activation": "activation", "use_bias": "use_bias"},
    Embedding: {"vocabulary_size": "input_dim", "size": "output_dim", "mask_zero": "mask_zero"},
    Masking: {"value": "mask_value"},
    Recurrent: {"reverse": "go_backwards", "return_sequences": "return_sequences"},
    Activation: {"function": "activation"},
    Operation: {"kind": "class_name", "config": "config"},
    TimeDistributed: {"layer": "layer"},
}
"""By a class here, its fields and what Keras calls them."""


def _fields(kind: type) -> dict[str, tuple[Any, str]]:
    """Return the fields of the table that a class has: their defaults, and Keras's names."""
    declared: Any = kind  # a dataclass, as all of the table are
    known = {one.name: one.default for one in dataclasses.fields(declared)}
    return {name: (known[name], there) for name, there in _FIELDS[kind].items() if name in known}


def _read(kind: type, entry: Entry, **defaults: Any) -> dict[str, Any]:
    """The fields of a class, out of the options of a layer; our defaults are those of Keras 3."""
    return {
        name: entry.read(there, defaults.get(name, usual))
        for name, (usual, there) in _fields(kind).items()
    }


def check_known(made: Any, where: str) -> None:
    """Raise InteropError for a class, or an option of it, that is not written."""
    if type(made) not in {*KNOWN, *_FIELDS}:  # one derived from them may compute something else
        raise InteropError(
            f"{where} is a {type(made).__name__}, which Keras has not here; leave it out, or put "
            "it into the data"
        )
    check_options(made, _FIELDS.get(type(made), ()), where, "Keras")


def options_of(made: Any, where: str) -> dict[str, Any]:
    """The options of Keras 3 that the fields of a layer or a cell are.

    >>> options_of(Dense("head", 3, "softmax"), "layer 'head'")
    {'units': 3, 'activation': 'softmax', 'use_bias': True}
    """
    check_known(made, where)
    told = _told(made) | dict.fromkeys(scaled(made), "hard_sigmoid")
    return {n: name_of(v, where, n) if "activation" in n else v for n, v in told.items()}


def _told(made: Any) -> dict[str, Any]:
    """The options of Keras 3, with functions as they are here."""
    if isinstance(made, Operation):
        return dict(made.config)
    return {there: getattr(made, name) for name, (_, there) in _fields(type(made)).items()}


def scaled(owner: Any) -> list[str]:
    """The activations of a cell or a layer that are Keras 2's hard_sigmoid of products alone.

    Kernels and biases can take the factor to that of Keras 3. Of an LSTM the activation is one of
    its cell state too.
    """
    old = [name for name, value in _told(owner).items() if value == "legacy_hard_sigmoid"]
    of_state = "activation" in old and isinstance(owner, LSTMCell | ConvLSTMCell)
    return [] if of_state or isinstance(owner, Activation) else old


def layer_of(entry: Entry) -> Layer:
    """One layer.

    >>> config = {"units": 5, "go_backwards": True, "return_sequences": True, "dropout": 0.2}
    >>> layer = layer_of(Entry("lstm", "LSTM", config, 3))
    >>> print(layer, layer.cell.input_dropout)
    Regularized(LSTMCell(5)), reverse 0.2
    """
    if entry.kind not in _LAYERS:
        raise InteropError(
            f"layer {entry.name[:80]!r} is of class {entry.kind[:80]!r}, which is not known here; "
            f"known are {', '.join(sorted(_LAYERS))}; compute it around the model, in JAX"
        )
    try:
        return entry.checked(_LAYERS[entry.kind](entry))
    except InvalidInputError as error:
        raise InteropError(f"{entry.where} cannot be built here: {error}") from error


def _cell(entry: Entry) -> Cell:
    kind: Any = _KINDS.get(entry.kind.removesuffix("Cell"), ConvLSTMCell)
    new = entry.version >= TENSORFLOW or entry.kind.startswith("CuDNN")
    old = {} if new else {"recurrent_activation": "hard_sigmoid", "reset_after": False}
    told = _read(kind, entry, **old)
    cell = kind(**{n: cell_function(v) if "activation" in n else v for n, v in told.items()})
    rates = _read(Regularized, entry)
    return Regularized(cell, **rates) if any(rates.values()) else cell


def _any_cell(value: Any, entry: Entry, stack: bool = True) -> Cell:
    inner = entry_of(value, f"a cell of {entry.where}", entry.version)
    known = [f"{name}Cell" for name in _KINDS if "CuDNN" not in name]
    if inner.kind in known:
        return inner.checked(_cell(inner))
    listed = inner.get("cells")
    if not stack or inner.kind != "StackedRNNCells" or not isinstance(listed, list) or not listed:
        known += ["StackedRNNCells of them"] * stack
        entry.refuse("cell", f"one of {', '.join(known)}", inner.kind)
    made = inner.checked(Stack([_any_cell(value, inner, stack=False) for value in listed]))
    # An .h5 has the arrays of those that are frozen behind the others.
    if len({one["config"].get("trainable") is False for one in listed}) > 1:
        inner.refuse("trainable", "the same for all cells", False)
    return made


def _recurrent(entry: Entry) -> Recurrent:
    cell = _any_cell(entry.get("cell"), entry) if entry.kind == "RNN" else _cell(entry)
    if "Conv" in entry.kind and entry.get("padding") != "same":  # the usual one there is "valid"
        entry.refuse("padding", "'same'", entry.get("padding", default="valid"))
    told = _read(Recurrent, entry, return_sequences=False)
    zero = entry.read("zero_output_for_mask", False)
    if zero and not told["return_sequences"]:
        entry.refuse("zero_output_for_mask", "False for a last output", True)
    last = told["return_sequences"] and not zero
    told |= {"keep_order": not told["reverse"], "masked_outputs": "last" if last else "zero"}
    return Recurrent(entry.name, cell, **told)


def _bidirectional(entry: Entry) -> Recurrent:
    names = ("layer", "backward_layer")
    directions = [entry.inner(name) for name in names if entry.get(name) is not None]
    for direction in directions:
        if direction.kind not in (*_KINDS, "RNN"):
            entry.refuse("layer", f"one of {', '.join((*_KINDS, 'RNN'))}", direction.kind)
    parts = [direction.checked(_recurrent(direction)) for direction in directions]
    forward, backward = parts[0], parts[-1]
    if len(parts) == 2 and (
        forward.reverse == backward.reverse or forward.return_sequences != backward.return_sequences
    ):
        raise InteropError(
            f"both layers of {entry.where} should differ in go_backwards alone, but are {forward} "
            f"and {backward}; get the file again"
        )
    merge = entry.get("merge_mode", default="concat")
    if merge not in ("concat", "sum", "mul", "ave"):
        entry.refuse("merge_mode", "concat, sum, mul or ave, and what follows split them", merge)
    other = None if backward.cell == forward.cell else backward.cell
    merged = Bidirectional(forward.cell, other, "average" if merge == "ave" else merge)
    # From TensorFlow on both directions give zeros where they are masked, whatever they say.
    outputs = "zero" if entry.version >= TENSORFLOW else forward.masked_outputs
    return dataclasses.replace(forward, name=entry.name, cell=merged, masked_outputs=outputs)


def _plain(kind: Any, entry: Entry) -> Layer:
    return kind(entry.name, **_read(kind, entry))


def _dropout(per: Any, entry: Entry) -> Dropout:
    return Dropout(entry.name, DropoutRate(entry.read("rate", 0.0), per))


_OF_TRAINING_ALONE = "GaussianNoise", "GaussianDropout", "AlphaDropout", "ActivityRegularization"


def _noise(entry: Entry) -> Activation:
    """What acts in training alone, and not here: no noise is drawn."""
    for option in ("rate", "stddev", "l1", "l2"):
        entry.read(option, 0.0)
    return Activation(entry.name, "linear")


def _time_distributed(entry: Entry) -> Layer:
    inner = dataclasses.replace(entry.inner("layer"), name=entry.name)
    layer = layer_of(inner)
    several = isinstance(layer, Operation) and OPERATORS[layer.kind].arrays != (1, 1)
    if several or isinstance(layer, Masking) or getattr(layer, "mask_zero", False):
        raise InteropError(
            f"{entry.where} applies a layer of class {inner.kind[:80]!r} at each step, which takes "
            "several arrays or makes a mask; apply it around the model, in JAX"
        )
    if (
        isinstance(layer, Operation | Recurrent | TimeDistributed)
        or inner.kind == "SpatialDropout1D"
    ):
        return TimeDistributed(entry.name, layer)
    return layer  # which takes any number of axes


def _activation(entry: Entry) -> Layer:
    if entry.kind == "Softmax" and entry.get("axis", default=-1) not in (-1, [-1]):
        return operation(entry)
    return Activation(entry.name, layer_function(entry))


_NONE: tuple[Any, ...] = (None, False, [], 0)
_UNUSED: Mapping[str, tuple[Any, ...]] = {
    **dict.fromkeys(
        ("negative_slope", "threshold", "renorm", "rms_scaling", "use_gate", "sliding_window",
         "keepdims", "causal", "num_constants", "softmax_robust_masking"), _NONE
    ),
    "attention_axes": (None, [1]),
    "groups": (None, 1),  # of a SeparableConv1D
    "initial": (None,),  # 0 counts too
    "data_format": (None, "channels_last"),
    "dim_ordering": (None, "tf"),
    "mode": (None, 0),  # of a BatchNormalization, as the line above of Keras 1
    "score_mode": (None, "dot"),
    "dropout": (None, 0),  # of an Embedding of Keras 1, which drops words
    **dict.fromkeys(("strides", "dilation_rate"), ([1], [1, 1], 1)),  # of a ConvLSTM
}  # fmt: skip
"""Options that change what is computed, and the values with which they do not."""

# Without an effect on what is computed here, in all layers of all versions that write them.
_NO_MATTER = {
    "name", "trainable", "dtype", "dynamic", "batch_input_shape", "input_dtype", "input_dim",
    "input_length", "seed", "implementation", "consume_less", "unroll", "stateful", "return_state",
    "time_major", "momentum", "renorm_clipping", "renorm_momentum", "virtual_batch_size",
    "synchronized", "fused", "flash_attention", "lora_alpha",
    "robust_masking",  # of a Softmax, which is refused behind a mask
    # which the arrays tell
    "query_shape", "key_shape", "value_shape",
}  # fmt: skip
_OF_TRAINING = ("init", "_initializer", "_regularizer", "_constraint")  # ends of names


def operation(entry: Entry) -> Operation:
    """The layer of a row, whose options are checked."""
    row = OPERATORS[entry.kind]
    config = tuple((option, entry.read(option, usual)) for option, usual in row.options.items())
    if ("padding", "causal") in config and entry.kind != "Conv1D":
        entry.refuse("padding", "'valid' or 'same', as in Keras 3", "causal")
    made = Operation(entry.name, entry.kind, (*config, ("version", entry.version)))
    try:
        _ = made.weights
    except TypeError as error:
        has = f"{dict(config)!r:.200}"
        raise InteropError(f"{entry.where} should have sizes for options, but has {has}") from error
    return made


_LAYERS: Mapping[str, Callable[[Entry], Layer]] = {
    **dict.fromkeys(OPERATORS, operation),
    **dict.fromkeys(RECURRENT, _recurrent),
    **dict.fromkeys(ACTIVATION_LAYERS, _activation),
    **{one.__name__: partial(_plain, one) for one in (Activation, Dense, Embedding, Masking)},
    **dict.fromkeys(_OF_TRAINING_ALONE, _noise),
    "Dropout": partial(_dropout, "step"),
    "SpatialDropout1D": partial(_dropout, "sequence"),
    "Bidirectional": _bidirectional,
    "TimeDistributed": _time_distributed,
}
