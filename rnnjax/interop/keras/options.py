"""What stands in the config of one layer, and its options, each checked as it is asked for."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from rnnjax.errors import InteropError
from rnnjax.interop.functions import Function
from rnnjax.interop.keras.functions import function_of
from rnnjax.interop.registry import cell_named

_LEAST, LARGEST = -(2**31), 2**31 - 1
_WHOLE = (None, None, None)
_MODELS = ("Sequential", "Functional", "Model")


@dataclasses.dataclass(frozen=True)
class Entry:
    """A layer as it stands in a config."""

    name: str  # of the layer
    kind: str  # its class name; behind "ops." that of a function of keras.ops
    config: Mapping[str, Any]  # its options


def entry_of(value: Any, where: str) -> Entry:
    """A layer from its dict of class name and options."""
    if not isinstance(value, dict) or not isinstance(value.get("class_name"), str):
        raise InteropError(
            f"{where} should be a dict with class_name and config, but is {value!r:.80}; the "
            "config is damaged, or of another program"
        )
    kind, config = value["class_name"], value.get("config")
    if not isinstance(config, dict):
        raise InteropError(
            f"the config of {kind[:80]!r} in {where} should be a dict; it is damaged"
        )
    name = config.get("name", value.get("name"))
    if name is None:
        name = kind.lower()
    if not isinstance(name, str):
        raise InteropError(f"the name of {kind[:80]!r} in {where} should be a text; it is damaged")
    module, registered = value.get("module"), value.get("registered_name")
    known = not isinstance(module, str) or module.split(".")[0] in ("keras", "tf_keras", "builtins")
    if kind == "Lambda":
        raise InteropError(
            f"layer {name[:80]!r} is a Lambda, which holds code of its own, and code from a file "
            "is never run; put what it computes around the model in Python"
        )
    if isinstance(registered, str) and ">" in registered and cell_named("keras", registered):
        return Entry(name, registered, config)
    # Keras's own classes are registered by their bare names, those of others behind a ">".
    if not known or (registered and (">" in str(registered) or not isinstance(module, str))):
        raise InteropError(
            f"layer {name[:80]!r} is {kind[:80]!r}, a class of somebody's own that is not known "
            "here; take the model apart, and load its layers one by one, or if it is a cell call "
            "rnnjax.interop.register"
        )
    return Entry(name, kind, config)


def is_model(kind: str) -> bool:
    """Whether a class name is that of a model rather than of a layer."""
    return kind in _MODELS


def layers_in(kind: str, config: Any) -> list[tuple[Entry, Any]]:
    """All layers of a model in their order there, each with its config; a model is one of them."""
    listed = config.get("layers") if isinstance(config, dict) else config
    if not isinstance(listed, list) or not listed:
        raise InteropError(f"a {kind} model should list its layers, but has {listed!r:.80}")
    return [(entry_of(value, f"layer {i} of the model"), value) for i, value in enumerate(listed)]


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
    """The options of one layer."""

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
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= LARGEST:
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
        if not one_or_all or not all(type(n) is int and least <= n <= LARGEST for n in listed):
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
        value = self.integers(name, default=-1)
        if isinstance(value, tuple) and "Concatenate" in self.entry.kind:
            self.refuse(name, "an integer", value)
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
                if n is not ... and n is not None and not (type(n) is int and abs(n) <= LARGEST):
                    self.refuse(name, "integers and slices of them", one)
            parts.append(part)
        if parts[:1] not in ([...], [_WHOLE]):
            self.refuse(name, "one that begins with :, which is the batch", value)
        return (_WHOLE, *parts) if parts[0] is ... else tuple(parts)

    def numbers(self, name: str) -> tuple[Any, ...]:
        """What stands among the arrays of a function of ``keras.ops``, None where one is."""
        for value in self.get(name):
            large = isinstance(value, int) and abs(value) > LARGEST
            if large or not isinstance(value, bool | int | float | None):
                self.refuse(name, "numbers", value)
        return tuple(self.get(name))

    def refuse(self, name: str, expected: str, value: Any) -> Any:
        """Raise InteropError for an option."""
        raise InteropError(
            f"{name} of {self.where} should be {expected}, but is {repr(value)[:80]}; set it in "
            "Keras and save the model again"
        )
