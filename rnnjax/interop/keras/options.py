"""The config of one layer, and its options, each checked when it is read."""

import dataclasses
import re
import sys
from collections.abc import Mapping
from typing import Any

from rnnjax.cells.activations import ACTIVATIONS
from rnnjax.errors import InteropError
from rnnjax.interop.functions import ELU, FUNCTIONS, SPELLINGS, Function, LeakyReLU

LARGEST = 2**31 - 1
_WHOLE = (None, None, None)
_MODELS = ("Sequential", "Functional", "Model")


def version_of(text: str) -> float:
    """Which Keras wrote a config: 1, 2, 2.4 or 3, whose defaults count where an option is left out.

    That of TensorFlow is 2.4, whatever it called itself; Keras 1 did not say its number at first.

    >>> version_of("2.1.6-tf"), version_of("2.2.4"), version_of("1.2.2"), version_of("")
    (2.4, 2, 1, 1)
    """
    number = {"0": 1, "1": 1, "2": 2}.get(text.split(".")[0] or "1", 3)
    minor = re.match(r"2\.(\d{1,4})", text)
    late = text.endswith("-tf") or (minor is not None and int(minor[1]) >= 4)
    return 2.4 if number == 2 and late else number


@dataclasses.dataclass(frozen=True)
class Entry:
    """A layer as it stands in a config, each of its options checked as it is asked for."""

    name: str  # of the layer
    kind: str  # its class name; behind "ops." that of a function of keras.ops
    config: Mapping[str, Any]  # its options
    version: float  # of Keras; see `version_of`

    @property
    def where(self) -> str:
        """The name and class of the layer, for messages."""
        return f"layer {self.name[:80]!r} ({self.kind[:40]})"

    def get(self, *names: str, default: Any = None) -> Any:
        """The first of the names that is there: Keras 1 had others."""
        return next((self.config[name] for name in names if name in self.config), default)

    def flag(self, *names: str, default: bool = False) -> bool:
        """Return an option that is True or False."""
        value = self.get(*names, default=default)
        if not isinstance(value, bool | int | None) or value not in (True, False, None):
            self.refuse(names[0], "True or False", value)
        return bool(value)

    def size(self, *names: str) -> int:
        """Return an option that is a positive integer."""
        value = self.get(*names)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= LARGEST:
            self.refuse(names[0], "a positive integer", value)
        return int(value)

    def number(self, *names: str, default: float = 0.0) -> float:
        """Return an option that is a number."""
        value = self.get(*names, default=default)
        if isinstance(value, dict):  # an array, as Keras 2 writes it
            value = value.get("value")
        value = default if value is None else value
        whole = isinstance(value, int | float) and not isinstance(value, bool)
        if not whole or not abs(value) <= sys.float_info.max:
            self.refuse(names[0], "a number", value)
        return float(value)

    def function(self, *names: str, default: str) -> str | Function:
        """Return an option that is an activation."""
        return function_of(self.get(*names, default=default), self)

    def rate(self, *names: str) -> float:
        """Return an option that is a dropout rate."""
        rate = self.number(*names)
        if not 0 <= rate < 1:
            self.refuse(names[0], "at least 0 and below 1", rate)
        return rate

    def inner(self, name: str) -> "Entry":
        """A layer inside of this one."""
        return entry_of(self.get(name), f"{name} of {self.where}", self.version)

    def plain(self, name: str, usual: Any) -> Any:
        """A number, a text, or a list of them, as a layer hands it on to JAX, which checks it."""
        if name == "activation":
            return self.function(name, default=usual)
        if name == "dropout":
            return self.rate(name)
        value = self.get(name, default=usual)
        try:
            return self.key(value) if name == "key" else _frozen(value)
        except TypeError:
            return self.refuse(name, "a number, a text, or a list of these", value)

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

    def refuse(self, name: str, expected: str, value: Any) -> Any:
        """Raise InteropError for an option with an unsupported value."""
        raise InteropError(
            f"{name} of {self.where} should be {expected}, but is {repr(value)[:80]}; set it in "
            "Keras and save the model again"
        )


def entry_of(value: Any, where: str, version: float) -> Entry:
    """A layer from its dict of class name and options."""
    if not isinstance(value, dict) or not isinstance(value.get("class_name"), str):
        raise InteropError(
            f"{where} should be a dict with class_name and config, but is {value!r:.80}; the "
            "config is damaged, or of another program"
        )
    kind, config = value["class_name"], value.get("config")
    name = config.get("name", value.get("name")) if isinstance(config, dict) else None
    name = kind.lower() if name is None else name
    if not isinstance(config, dict) or not isinstance(name, str):
        raise InteropError(
            f"the config of {kind[:80]!r} in {where} should be a dict, and its name a text; it is "
            "damaged"
        )
    module, registered = value.get("module"), value.get("registered_name")
    known = not isinstance(module, str) or module.split(".")[0] in ("keras", "tf_keras", "builtins")
    if kind == "Lambda":
        raise InteropError(
            f"layer {name[:80]!r} is a Lambda, which holds code of its own, and code from a file "
            "is never run; put what it computes around the model in Python"
        )
    # Keras's own classes are registered by their bare names, those of others behind a ">".
    if not known or (registered and (">" in str(registered) or not isinstance(module, str))):
        raise InteropError(
            f"layer {name[:80]!r} is {kind[:80]!r}, a class of somebody's own that is not known "
            "here; take the model apart, and load its layers one by one"
        )
    policy = config.get("dtype")
    quantized = isinstance(policy, dict) and "Quantized" in str(policy.get("class_name"))
    if config.get("lora_rank") or config.get("quantization_config") or quantized:
        raise InteropError(
            f"layer {name[:80]!r} is quantised, or has adapters of low rank (LoRA), which are not "
            "known here; save the model before that is done, or merge them"
        )
    return Entry(name, kind, config, version)


def is_model(kind: str) -> bool:
    """Whether a class name is that of a model rather than of a layer."""
    return kind in _MODELS


def layers_in(kind: str, config: Any, version: float) -> list[tuple[Entry, Any]]:
    """All layers of a model in their order there, each with its config; a model is one of them."""
    listed = config.get("layers") if isinstance(config, dict) else config
    if not isinstance(listed, list) or not listed:
        raise InteropError(f"a {kind} model should list its layers, but has {listed!r:.80}")
    names = (f"layer {i} of the model" for i in range(len(listed)))
    return [(entry_of(value, next(names), version), value) for value in listed]


def _frozen(value: Any) -> Any:
    """Replace lists by tuples; raise TypeError if it is not JSON of a layer."""
    if isinstance(value, list | tuple):
        return tuple(map(_frozen, value))
    if isinstance(value, bool | float | str | None) or (
        isinstance(value, int) and abs(value) <= LARGEST
    ):
        return value
    raise TypeError


# --- activations ---------------------------------------------------------------------------------


_BY_NAME: Mapping[str, str | Function] = {
    **{one.keras: name for name, one in SPELLINGS.items() if one.keras and isinstance(name, str)},
    "swish": "silu",
    "hard_swish": "hard_silu",
    "leaky_relu": LeakyReLU(0.2),
}
_LAYERS: Mapping[str, tuple[type[Any], tuple[str, ...], float]] = {
    "LeakyReLU": (LeakyReLU, ("negative_slope", "alpha"), 0.3),
    "ELU": (ELU, ("alpha",), 1.0),
}
"""Layers that are a function with a number: its class, the names of the option, that of Keras 2
last, and its default."""

ACTIVATION_LAYERS = (*_LAYERS, "ReLU", "Softmax")
"""The layers of Keras that are nothing but an activation with options, by class name."""


def function_of(value: Any, layer: Entry) -> str | Function:
    """The function that stands in the config of a layer: a name, None, or a layer in a dict.

    The first two versions of Keras mean another function by ``"hard_sigmoid"``.

    >>> lstm = Entry("lstm", "LSTM", {}, 2)
    >>> function_of("hard_sigmoid", lstm), function_of("gelu", lstm)
    ('legacy_hard_sigmoid', 'exact_gelu')
    """
    if value is None:
        return "linear"
    if isinstance(value, dict):
        kind, config = value.get("class_name"), value.get("config")
        if kind == "function" and isinstance(config, str):
            return function_of(config, layer)
        if isinstance(kind, str) and kind in ACTIVATION_LAYERS and not value.get("registered_name"):
            config = config if isinstance(config, dict) else {}
            return layer_function(dataclasses.replace(layer, kind=kind, config=config))
    if value == "hard_sigmoid" and layer.version < 3:
        return "legacy_hard_sigmoid"
    if isinstance(value, str) and value in _BY_NAME:
        return _BY_NAME[value]
    raise InteropError(
        f"the activation of {layer.where} is {str(value)[:80]!r}, which is no function of Keras "
        f"that is known here; known are {', '.join(_BY_NAME)}"
    )


def cell_function(function: str | Function) -> str | Function:
    """The function as a cell takes it: some names are known to `rnnjax.interop` alone."""
    if isinstance(function, str) and function not in ACTIVATIONS:
        return FUNCTIONS[function]
    return function


def layer_function(entry: Entry) -> str | Function:
    """The function that one of ``ACTIVATION_LAYERS`` is."""
    if entry.kind in _LAYERS:
        function, names, default = _LAYERS[entry.kind]
        made: Function = function(entry.number(*names, default=default))
        return made
    if entry.kind == "Softmax" and entry.get("axis", default=-1) in (-1, [-1]):
        return "softmax"
    cut = entry.get("max_value")
    if entry.kind == "ReLU" and cut in (None, 6):
        slope, threshold = (entry.get(name) or 0 for name in ("negative_slope", "threshold"))
        if slope == threshold == 0:
            return "relu" if cut is None else "relu6"
    raise InteropError(
        f"{entry.where} is {str(dict(entry.config))[:200]}, but known here are a Softmax over "
        "the features, and a ReLU with max_value=6 or without options; compute it in JAX"
    )


def name_of(function: str | Function, where: str) -> str | dict[str, Any]:
    """How Keras 3 writes a function: its name, or the config of an activation layer.

    >>> name_of("exact_gelu", "layer 'dense'"), name_of("silu", "layer 'dense'")
    ('gelu', 'silu')
    """
    for name, ours in _BY_NAME.items():
        if function == ours or (isinstance(ours, str) and function == FUNCTIONS[ours]):
            return name
    for kind, (known, names, _) in _LAYERS.items():
        if isinstance(function, known):
            config = {names[0]: function.alpha}
            return {"module": "keras.layers", "class_name": kind, "config": config}
    shown = function if isinstance(function, str) else getattr(function, "__name__", function)
    raise InteropError(
        f"the activation of {where} is {shown!r}, which Keras has not by name; Keras has "
        f"{', '.join(_BY_NAME)}"
    )
