"""What is known of an array when the file is written: its numbers, its places, or an expression."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Stored:
    """Entries of an array of C: ``places`` has the index of each there."""

    name: str
    places: np.ndarray
    kind: str = "float"

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of these entries."""
        return self.places.shape


@dataclasses.dataclass(frozen=True)
class Known:
    """What is computed when the file is written, and the parameters that it is computed from."""

    array: np.ndarray
    name: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array."""
        return self.array.shape

    def all_are(self, number: float) -> bool:
        """Whether all entries are this number."""
        return bool(np.all(self.array == number))


@dataclasses.dataclass(frozen=True)
class Computed:
    """An expression of each entry, computed where it is read: ``template`` has {} for operands."""

    template: str
    operands: "tuple[Value, ...]"
    shape: tuple[int, ...]
    kind: str
    label: str = ""


@dataclasses.dataclass(frozen=True)
class Sum:
    """``first`` plus products of ``x (*lead, inputs)`` and ``w (*batch, inputs, outputs)``.

    The loops of all products add into one array, which begins as ``first``: a bias.
    """

    first: "Value"
    products: "tuple[tuple[Value, Known], ...]"
    shape: tuple[int, ...]
    label: str = ""
    kind: str = "float"


Value = Stored | Known | Computed | Sum
_ODD = {"nan": "NAN", "inf": "INFINITY", "-inf": "(-INFINITY)"}
TYPES = {"float": np.float32, "int32_t": np.int32, "int8_t": np.int8}


def kind_of(dtype: Any) -> str:
    """The type of C for a type of JAX; a boolean is an integer."""
    return "float" if jnp.issubdtype(dtype, jnp.floating) else "int32_t"


def places_of(*shape: int) -> np.ndarray:
    """The places of all entries of a contiguous array."""
    return np.arange(math.prod(shape)).reshape(shape)


def affine(places: np.ndarray) -> tuple[int, list[int]] | None:
    """The first place and the stride of each axis, or None if an axis has no one stride."""
    first = int(places.flat[0])
    strides = [
        int(places.take(1, axis).flat[0]) - first if n > 1 else 0
        for axis, n in enumerate(places.shape)
    ]
    axes = (np.arange(n) * stride for n, stride in zip(places.shape, strides, strict=True))
    total = functools.reduce(np.add.outer, axes, np.array(first))
    return (first, strides) if np.array_equal(total, places) else None


def literals(array: np.ndarray) -> list[str]:
    """Numbers of C, in the nine digits that tell every float32 from its neighbours.

    >>> literals(np.float32([0.1, -2, np.inf])), literals(np.array([True, False]))
    (['0.100000001f', '-2.0f', 'INFINITY'], ['1', '0'])
    """
    if kind_of(array.dtype) != "float":
        return [str(int(number)) for number in array.ravel().tolist()]
    texts = [f"{number:.9g}" for number in array.ravel().astype(np.float32).tolist()]
    return [_ODD.get(text, text + ("f" if "." in text or "e" in text else ".0f")) for text in texts]


def added(values: Sequence[Value], shape: tuple[int, ...], label: str) -> Sum:
    """The sum of two values one of which has products, as one that has all of them."""
    firsts = [value.first if isinstance(value, Sum) else value for value in values]
    products = [one for value in values if isinstance(value, Sum) for one in value.products]
    zero = [value for value in firsts if not (isinstance(value, Known) and value.all_are(0))]
    first = (
        Computed("({} + {})", tuple(zero), shape, "float", label)
        if len(zero) == 2
        else [*zero, firsts[0]][0]
    )
    return Sum(first, tuple(products), shape, label)


def leaves(value: Value) -> Iterator[Stored]:
    """The arrays that an expression reads, from left to right."""
    if isinstance(value, Stored):
        yield value
    elif isinstance(value, Computed):
        for operand in value.operands:
            yield from leaves(operand)


def text_of(value: Value, places: Iterator[str]) -> str:
    """An expression in C, of which the index of each array is taken from ``places``."""
    if isinstance(value, Known):
        return literals(value.array)[0]
    if isinstance(value, Stored):
        return f"{value.name}[{next(places)}]"
    assert isinstance(value, Computed)
    texts = [text_of(operand, places) for operand in value.operands]
    calls = re.match(r"@?\w+\(", value.template)
    return value.template.format(*(map(bare, texts) if calls else texts))


def bare(text: str) -> str:
    """An expression without the parentheses around it.

    >>> bare("(a + (b))"), bare("(a) + (b)")
    ('a + (b)', '(a) + (b)')
    """
    depth = [0]
    for character in text[:-1]:
        depth.append(depth[-1] + (character == "(") - (character == ")"))
    return text[1:-1] if text[:1] == "(" and 0 not in depth[1:] else text
