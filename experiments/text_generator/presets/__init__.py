"""Sets of the options of `train`: the files beside this, and how they are read."""

import dataclasses
import tomllib
import typing
from pathlib import Path
from typing import Any, Literal

from experiments.text_generator.config import OF_THIS_CALL, Train
from rnnjax.errors import InvalidInputError

LOCAL = Path(__file__).parent


def load_preset(name: str) -> Train:
    """The options of a preset: one of those in presets/, or a file of that kind.

    Raises:
        InvalidInputError: there is none, or it sets what is no option, or to what cannot be.
    """
    own = sorted(path.stem for path in LOCAL.glob("*.toml"))
    path = LOCAL / f"{name}.toml" if name in own else Path(name)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInputError(
            f"--preset must be one of {', '.join(own)}, or a TOML file of options, but is {name!r} "
            f"({error})"
        ) from error
    if taken := sorted(set(OF_THIS_CALL) & values.keys()):
        raise InvalidInputError(
            f"--preset {name} sets {taken}, which belong to one call; leave out"
        )
    length = {"epochs": None} if "steps" in values and "epochs" not in values else {}
    return from_mapping(Train, {**values, **length, "preset": name}, f"--preset {name}")


def from_mapping(kind: Any, values: Any, source: str) -> Any:
    """Options from a mapping of names to values, groups in mappings of their own.

    Raises:
        InvalidInputError: a name is no option, or its value is not of the option's type.

    >>> from experiments.text_generator.config import Architecture
    >>> from_mapping(Architecture, {"layers": "3"}, "my.toml")
    Traceback (most recent call last):
    ...
    rnnjax.errors.InvalidInputError: my.toml should set layers to int, but has '3'
    """
    types = typing.get_type_hints(kind)
    if not isinstance(values, dict) or values.keys() - types.keys():
        unknown = sorted(values.keys() - types.keys()) if isinstance(values, dict) else values
        raise InvalidInputError(f"{source} should set options of train, but has {unknown}")
    made = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(types[name]):
            made[name] = from_mapping(types[name], value, source)
        elif _fits(value, types[name]):
            made[name] = value
        else:
            wanted = str(types[name]) if typing.get_args(types[name]) else types[name].__name__
            raise InvalidInputError(f"{source} should set {name} to {wanted}, but has {value!r}")
    return kind(**made)


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a type, as options are declared."""
    if typing.get_origin(kind) is Literal:
        return value in typing.get_args(kind)
    kinds = typing.get_args(kind) or (kind,)
    return any(type(value) is one or (one is float and type(value) is int) for one in kinds)
