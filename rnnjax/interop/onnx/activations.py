"""The activations of ONNX's recurrent operators, and how their attributes spell them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rnnjax.errors import InteropError
from rnnjax.interop.functions import ELU, Affine, Function, HardSigmoid, ScaledTanh
from rnnjax.interop.onnx.operators import OPERATORS


class Spelling(NamedTuple):
    """An activation as ONNX writes it: its name and its numbers, None where it takes none."""

    name: str
    alpha: float | None = None
    beta: float | None = None


# By ONNX's name: our name, or the function with its numbers and the names of these in order. Two
# are operators no more.
_ACTIVATIONS: Mapping[str, str | type[Any]] = {
    **{name: one.activation for name, one in OPERATORS.items() if one.in_cells and one.activation},
    "Affine": Affine,
    "ScaledTanh": ScaledTanh,
}
# Ours that are one of those with certain numbers.
_NAMED_CASES: Mapping[str, Function] = {
    "linear": Affine(1.0, 0.0),
    "legacy_hard_sigmoid": HardSigmoid(0.2, 0.5),
    "hard_sigmoid": HardSigmoid(1 / 6, 0.5),
    "elu": ELU(1.0),
}


def activation_from_onnx(
    name: str, alpha: float | None = None, beta: float | None = None
) -> str | Function:
    """Our activation for ONNX's; numbers that are left out are those of ONNX's operator.

    >>> activation_from_onnx("Tanh"), activation_from_onnx("LeakyRelu", 0.25)
    ('tanh', LeakyReLU(alpha=0.25))
    """
    spelled = {known.lower(): known for known in _ACTIVATIONS}
    known = spelled.get(name.lower())  # runtimes take any case
    if known is None:
        raise InteropError(
            f"{name!r} is not an activation of ONNX's recurrent operators; "
            f"those are {', '.join(spelled.values())}"
        )
    kind = _ACTIVATIONS[known]
    if isinstance(kind, str):
        return kind
    if kind in (Affine, ScaledTanh) and None in (alpha, beta):
        raise InteropError(
            f"the activation {known} needs an activation_alpha and an activation_beta, for which "
            "ONNX has no default; add them to the node"
        )
    return function_of(kind, alpha, beta)


def function_of(kind: type[Any], alpha: float | None, beta: float | None) -> str | Function:
    """Our function of a class with those numbers that it takes, by its name where it has one."""
    numbers = {"alpha": alpha, "beta": beta}
    function = kind(
        **{key: _shortest(n) for key, n in numbers.items() if key in _takes(kind) and n is not None}
    )
    for ours, case in _NAMED_CASES.items():
        if type(case) is type(function) and _singles(case) == _singles(function):
            return ours
    return function


def activations_from_onnx(
    names: Sequence[str], alphas: Sequence[float] = (), betas: Sequence[float] = ()
) -> list[str | Function]:
    """Our activations for the attributes ``activations, activation_alpha, activation_beta``.

    Each activation that takes a number consumes the next one; where none is left, it has that of
    ONNX's operator.

    >>> activations_from_onnx(["Sigmoid", "LeakyRelu", "Tanh"], alphas=[0.25])
    ['sigmoid', LeakyReLU(alpha=0.25), 'tanh']
    """
    each = zip(
        names,
        _consumed("alpha", names, alphas),
        _consumed("beta", names, betas),
        strict=True,
    )
    return [activation_from_onnx(name, alpha, beta) for name, alpha, beta in each]


def _consumed(key: str, names: Sequence[str], given: Sequence[float]) -> list[float | None]:
    takers = {known.lower() for known, kind in _ACTIVATIONS.items() if key in _takes(kind)}
    takes = [name.lower() in takers for name in names]
    left = iter(given)
    consumed = [next(left, None) if takes_one else None for takes_one in takes]
    if any(takes) and len(given) > sum(takes):
        # Some exporters write a number for each activation, those without one too, and runtimes do
        # not agree on what that means, where it makes a difference.
        by_place = [n if t else None for n, t in zip(given, takes, strict=False)]
        if len(given) != len(names) or by_place != consumed:
            raise InteropError(
                f"activation_{key} has {len(given)} numbers, but only {sum(takes)} of the "
                f"activations {', '.join(names)} take one; leave out the others"
            )
    return consumed


def activation_to_onnx(function: str | Function) -> Spelling:
    """ONNX's spelling of an activation of ours.

    >>> activation_to_onnx("legacy_hard_sigmoid")
    Spelling(name='HardSigmoid', alpha=0.2, beta=0.5)
    """
    if isinstance(function, str):
        function = _NAMED_CASES.get(function, function)
    for name, kind in _ACTIVATIONS.items():
        if kind == function:
            return Spelling(name)
        if type(function) is kind:
            return Spelling(name, **vars(function))
    raise InteropError(
        f"ONNX's recurrent operators have no activation like {function!r}; those they have are "
        f"{', '.join(_ACTIVATIONS)}"
    )


def _takes(kind: str | type[Any]) -> set[str]:
    """The numbers in functions of a class."""
    return set() if isinstance(kind, str) else {field.name for field in dataclasses.fields(kind)}


def _shortest(number: float) -> float:
    """The shortest decimal with the same 32 bits: ONNX's 0.2 is read as 0.20000000298."""
    return float(str(np.float32(number)))


def _singles(function: Function) -> tuple[Any, ...]:
    return tuple(np.float32(number) for number in vars(function).values())
