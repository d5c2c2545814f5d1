"""Keras's activations by name, as functions of rnnjax, and the way back."""

import sys
from collections.abc import Callable, Mapping
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
    "sparsemax": "keras_sparsemax",
}
_OURS = "legacy_hard_sigmoid", "exact_gelu", "keras_sparsemax"
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
            return ACTIVATION_LAYERS[kind](config if isinstance(config, dict) else {}, where)
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


def _relu(config: Mapping[str, Any], where: str) -> str | Function:
    top = _number(config, ("max_value",), None, where)
    slope = _number(config, ("negative_slope",), 0.0, where)
    threshold = _number(config, ("threshold",), 0.0, where)
    cut = CutReLU(top, slope, threshold)
    return "relu" if cut == CutReLU() else cut


def _softmax(config: Mapping[str, Any], where: str) -> str:
    if config.get("axis", -1) not in (-1, [-1]):
        raise InteropError(
            f"{where} is a softmax over axis {str(config['axis'])[:80]}, but here it is over the "
            "features, axis -1"
        )
    return "softmax"


ACTIVATION_LAYERS: Mapping[str, Callable[[Mapping[str, Any], str], str | Function]] = {
    "ReLU": _relu,
    "LeakyReLU": lambda o, where: LeakyReLU(_number(o, ("negative_slope", "alpha"), 0.3, where)),
    "ELU": lambda o, where: ELU(_number(o, ("alpha",), 1.0, where)),
    "Softmax": _softmax,
}
"""The layers of Keras that are nothing but an activation with options, by class name."""


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
    if isinstance(function, LeakyReLU):
        return "LeakyReLU", {"negative_slope": function.alpha}
    if isinstance(function, ELU):
        return "ELU", {"alpha": function.alpha}
    if isinstance(function, CutReLU):
        return "ReLU", {
            "max_value": function.max_value,
            "negative_slope": function.slope,
            "threshold": function.threshold,
        }
    return None
