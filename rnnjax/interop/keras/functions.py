"""Keras's activations by name, as functions of rnnjax, and the way back."""

import sys
from collections.abc import Mapping
from typing import Any

from rnnjax.cells.activations import ACTIVATIONS
from rnnjax.errors import InteropError
from rnnjax.interop.functions import ELU, FUNCTIONS, CutReLU, Function, LeakyReLU

# By Keras's name where it is another than ours, or ours is of another function.
_OTHERS: Mapping[str, str | Function] = {
    "swish": "silu",
    "hard_swish": "hard_silu",
    "gelu": "exact_gelu",
    "leaky_relu": LeakyReLU(0.2),
}
_OURS = "legacy_hard_sigmoid", "exact_gelu"
_BY_NAME: Mapping[str, str | Function] = {
    **{name: name for name in FUNCTIONS if name not in (*_OTHERS, *_OURS)},
    **_OTHERS,
}


def function_of(value: Any, version: int, where: str) -> str | Function:
    """The function that stands in a config: a name, None, or an activation layer in a dict.

    The first two versions of Keras mean another function by ``"hard_sigmoid"``.

    >>> function_of("hard_sigmoid", 2, "layer 'lstm'"), function_of("gelu", 3, "layer 'dense'")
    ('legacy_hard_sigmoid', 'exact_gelu')
    """
    if value is None:
        return "linear"
    if isinstance(value, dict):
        kind, config = value.get("class_name"), value.get("config")
        if kind == "function" and isinstance(config, str):
            return function_of(config, version, where)
        if isinstance(kind, str) and kind in ACTIVATION_LAYERS and not value.get("registered_name"):
            return layer_function(kind, config if isinstance(config, dict) else {}, where)
    if value == "hard_sigmoid" and version < 3:
        return "legacy_hard_sigmoid"
    if isinstance(value, str) and value in _BY_NAME:
        return _BY_NAME[value]
    raise InteropError(
        f"the activation of {where} is {str(value)[:80]!r}, which is no function of Keras that is "
        f"known here; known are {', '.join(_BY_NAME)}"
    )


def cell_function(function: str | Function) -> str | Function:
    """The same function as a cell takes it: some names are those of `rnnjax.interop` alone."""
    if isinstance(function, str) and function not in ACTIVATIONS:
        return FUNCTIONS[function]
    return function


def _number(config: Mapping[str, Any], names: tuple[str, ...], default: Any, where: str) -> Any:
    """The first of the names that is there: Keras 2 had others than Keras 3."""
    value = next((config[name] for name in names if name in config), default)
    if isinstance(value, dict):  # an array, as Keras 2 writes it
        value = value.get("value")
    if value is None and default is None:
        return None
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not -sys.float_info.max <= value <= sys.float_info.max
    ):
        raise InteropError(f"{names[0]} of {where} should be a number, but is {str(value)[:80]!r}")
    return float(value)


# By class name the function that a layer of Keras is with its options; for each number of that the
# names of the option, those of Keras 2 last, and its default.
_LAYERS: Mapping[str, tuple[Any, Mapping[str, tuple[tuple[str, ...], float | None]]]] = {
    "ReLU": (
        CutReLU,
        {
            "max_value": (("max_value",), None),
            "slope": (("negative_slope",), 0.0),
            "threshold": (("threshold",), 0.0),
        },
    ),
    "LeakyReLU": (LeakyReLU, {"alpha": (("negative_slope", "alpha"), 0.3)}),
    "ELU": (ELU, {"alpha": (("alpha",), 1.0)}),
}
ACTIVATION_LAYERS = (*_LAYERS, "Softmax")
"""The layers of Keras that are nothing but an activation with options, by class name."""


def layer_function(kind: str, config: Mapping[str, Any], where: str) -> str | Function:
    """The function that one of ``ACTIVATION_LAYERS`` is with these options."""
    if kind == "Softmax":
        if config.get("axis", -1) not in (-1, [-1]):
            raise InteropError(
                f"{where} is a softmax over axis {str(config['axis'])[:80]}, but here it is over "
                "the features, axis -1"
            )
        return "softmax"
    function, options = _LAYERS[kind]
    made: Function = function(**{k: _number(config, *one, where) for k, one in options.items()})
    return "relu" if made == CutReLU() else made


def name_of(function: str | Function, where: str) -> str | dict[str, Any]:
    """How Keras 3 writes a function: its name, or the config of an activation layer.

    >>> name_of("exact_gelu", "layer 'dense'"), name_of("silu", "layer 'dense'")
    ('gelu', 'silu')
    """
    for name, ours in _BY_NAME.items():
        if function == ours or (isinstance(ours, str) and function == FUNCTIONS[ours]):
            return name
    layer = layer_of(function)
    if layer is not None:
        kind, config = layer
        return {"module": "keras.layers", "class_name": kind, "config": config}
    shown = function if isinstance(function, str) else getattr(function, "__name__", function)
    raise InteropError(
        f"the activation of {where} is {shown!r}, which Keras has not by name; Keras has "
        f"{', '.join(_BY_NAME)}"
    )


def layer_of(function: str | Function) -> tuple[str, dict[str, Any]] | None:
    """The activation layer of Keras that computes it, as class name and options, if one does."""
    for kind, (known, options) in _LAYERS.items():
        if isinstance(function, known):
            return kind, {names[0]: getattr(function, k) for k, (names, _) in options.items()}
    return None
