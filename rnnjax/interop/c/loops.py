"""Loops of C over arrays whose places are known when the loops are written."""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rnnjax.interop.c.values import (
    TYPES,
    Computed,
    Known,
    Stored,
    Sum,
    Value,
    affine,
    bare,
    kind_of,
    leaves,
    places_of,
    text_of,
)


class Writer:
    """The statements, constants and arrays of one function of C.

    Arrays in between are named ``$0``, ``$1`` ... until it is known which may share memory, and
    static functions ``@tanh`` until the file has a name.
    """

    def __init__(self, multiply: "Callable[[Writer, Stored, Stored, Known], None]") -> None:
        self.statements: list[str] = []
        self.constants: dict[tuple[Any, ...], tuple[str, np.ndarray, str]] = {}
        self.buffers: list[tuple[int, str]] = []
        self._multiply = multiply
        self.label = self._where = ""

    # ---- values

    def view(self, value: Value, view: Callable[[np.ndarray], np.ndarray]) -> Value:
        """A view of a value: its entries, or some of them, in other places."""
        shape = view(np.broadcast_to(np.int8(0), value.shape)).shape
        size, entries = math.prod(shape), math.prod(value.shape)
        if isinstance(value, Sum):
            if size == entries == value.shape[-1] == max(shape, default=0) == shape[-1]:  # a row
                first = self.view(value.first, view) if value.first.shape else value.first
                return dataclasses.replace(value, first=first, shape=shape)
            value = self.stored(value)
        if isinstance(value, Computed) and size > entries:
            value = self.stored(value)
        if isinstance(value, Known):
            return dataclasses.replace(value, array=view(value.array))
        if isinstance(value, Stored):
            return dataclasses.replace(value, places=view(value.places))
        operands = [self.view(o, view) if o.shape else o for o in value.operands]
        self.label = value.label
        return self.computed(value.template, operands, shape, value.kind)

    def computed(
        self, template: str, values: Sequence[Value], shape: tuple[int, ...], kind: str
    ) -> Value:
        """An expression of each entry of the values, unless it is one of them."""
        values = self.alike(values, shape)
        if template == "{}":
            return values[0]
        for value, other in (values, values[::-1]) if len(values) == 2 else ():
            zero = template == "({} + {})" or (template == "({} - {})" and value is values[1])
            one = template == "({} * {})" or (template == "({} / {})" and value is values[1])
            neutral = isinstance(value, Known) and value.all_are(0 if zero else 1)
            if neutral and (zero or one) and other.shape == shape:
                return other
        # What is read for many entries is computed once.
        once = [
            self.stored(v) if isinstance(v, Computed) and v.shape != shape else v for v in values
        ]
        return Computed(template, tuple(once), shape, kind, self.label)

    def alike(self, values: Sequence[Value], shape: tuple[int, ...]) -> list[Value]:
        """The values in one shape, or of one entry: an axis of one entry stands for any number."""

        def whole(a: np.ndarray) -> np.ndarray:
            return np.broadcast_to(a, shape)

        return [v if v.shape in ((), shape) else self.view(v, whole) for v in values]

    def buffer(self, shape: Sequence[int], kind: str = "float") -> Stored:
        """A new array."""
        self.buffers.append((math.prod(shape), kind))
        return Stored(f"${len(self.buffers) - 1}", places_of(*shape), kind)

    def stored(self, value: Value) -> Stored:
        """Write the loops that compute a value, and return the array."""
        if isinstance(value, Stored):
            return value
        if isinstance(value, Known):
            return self.constant(value)
        into = self.buffer(value.shape, value.kind)
        self.assign(into, value)
        return into

    def summed(self, value: Value) -> Value:
        """The value, whose products are computed."""
        return self.stored(value) if isinstance(value, Sum) else value

    def apart(self, value: Value) -> Known | Stored:
        """A value that does not change when the state does."""
        if isinstance(value, Stored) and value.name[0] != "$":
            into = self.buffer(value.shape, value.kind)
            self.assign(into, value)
            return into
        return value if isinstance(value, Known) else self.stored(value)

    def constant(self, value: Known) -> Stored:
        """A constant of the file; equal ones are one."""
        # A copy along an axis has the stride 0, and is not written.
        strides = zip(value.array.strides, value.shape, strict=True)
        base = value.array[tuple(slice(1) if s == 0 and n > 1 else slice(None) for s, n in strides)]
        kind = "int8_t" if base.dtype == np.int8 else kind_of(base.dtype)
        base = base.astype(TYPES[kind])
        places = np.broadcast_to(places_of(*base.shape), value.shape)
        key = kind, base.tobytes(), base.size
        if key not in self.constants:
            name = re.sub(r"\W+", "_", value.name).strip("_")[:40] or "numbers"
            taken = {entry[0] for entry in self.constants.values()}
            number = next(n for n in range(len(taken) + 1) if f"{name}_{n}" not in taken)
            self.constants[key] = f"{name}_{number}", base, value.name or self.label
        return Stored(f"@{self.constants[key][0]}", places, kind)

    # ---- loops

    def loop(
        self, label: str, shape: Sequence[int], arrays: Sequence[Stored], text: Callable[..., str]
    ) -> None:
        """Write ``text``, which is given the index of C of each array, for all entries of a shape.

        Neighbouring axes become one loop where they are one in all arrays.
        """
        if 0 in shape:
            return
        ways, tables = [], []
        for array in arrays:
            places = np.broadcast_to(array.places, shape)
            way, table = affine(places), "{}"
            if way is None:
                found = self.constant(Known(np.ascontiguousarray(places, np.int32), "places"))
                way, table = affine(found.places), f"{found.name}[{{}}]"
            ways.append(way)
            tables.append(table)
        nest: list[tuple[int, list[int]]] = []
        for axis, n in enumerate(shape):
            steps = [way[1][axis] for way in ways if way]
            if n == 1:
                continue
            if nest and all(a == n * b for a, b in zip(nest[-1][1], steps, strict=True)):
                nest[-1] = nest[-1][0] * n, steps
            else:
                nest.append((n, steps))
        names = "ijklmnopqr"
        indices = []
        for which, (way, table) in enumerate(zip(ways, tables, strict=True)):
            assert way is not None
            strides = [(names[depth], steps[which]) for depth, (_, steps) in enumerate(nest)]
            terms = [name if n == 1 else f"{n} * {name}" for name, n in strides if n]
            indices.append(
                table.format(" + ".join(terms + [str(way[0])] * (way[0] != 0 or not terms)))
            )
        lines = [
            f"for (int {i} = 0; {i} < {n}; {i}++)" for i, (n, _) in zip(names, nest, strict=False)
        ]
        lines += [text(*indices)]
        indented = (f"{'  ' * (depth + 1)}{line}" for depth, line in enumerate(lines))
        self.statements.append("\n".join([f"  /* {label} */", *indented]))

    def assign(self, into: Stored, value: Value, how: str = "{} = {}") -> None:
        """Write a value into an array, or combine it with what is there."""
        if isinstance(value, Sum):
            self.assign(into, value.first)
            for x, w in value.products:
                self._product(into, x, w)
            return
        value = self._with_constants(value)
        read = list(leaves(value))
        label = getattr(value, "label", "") or self.label

        def text(place: str, *places: str) -> str:
            return how.format(f"{into.name}[{place}]", bare(text_of(value, iter(places)))) + ";"

        self.loop(f"{label} {list(into.shape)}", into.shape, [into, *read], text)

    def _with_constants(self, value: Value) -> Value:
        """The value, whose constants are arrays unless they are one number."""
        if isinstance(value, Known) and value.array.size:
            first = value.array.flat[0]
            one = value.array.size == 1 or value.all_are(first)
            return Known(np.array(first)) if one else self.constant(value)
        if isinstance(value, Computed):
            operands = tuple(map(self._with_constants, value.operands))
            return dataclasses.replace(value, operands=operands)
        return value

    def _product(self, into: Stored, x: Value, w: Known) -> None:
        """Add ``x @ w`` to an array: inputs outside, and outputs inside over contiguous weights."""
        inputs, outputs = w.shape[-2:]
        if not inputs * outputs:
            return
        self._multiply(self, into, self.regular(x, inputs > 1), w)

    def regular(self, value: Value, contiguous: bool = False) -> Stored:
        """An array whose axes have strides, of which the last one is 1 if that is asked for."""
        found = self.stored(value)
        way = affine(found.places)
        if way is None or (contiguous and way[1][-1] != 1):
            found, moved = self.buffer(found.shape, found.kind), found
            self.assign(found, moved)
        return found

    def call(
        self, function: str, into: Stored, rows: Stored, fixed: Sequence[Stored], more: list[str]
    ) -> None:
        """Call a function of C with rows of inputs and outputs, the constants of each, and more."""
        lead = rows.shape[:-1]
        arrays = [Stored(rows.name, rows.places[..., 0])]
        arrays += [Stored(into.name, into.places[..., 0].reshape(lead))]
        for one in fixed:
            starts = one.places[..., 0, 0]
            starts = starts.reshape(starts.shape + (1,) * (len(lead) - starts.ndim))
            arrays.append(Stored(one.name, starts))

        def text(*places: str) -> str:
            named = zip(arrays, places, strict=True)
            each = [a.name if place == "0" else f"{a.name} + {place}" for a, place in named]
            return f"{function}({', '.join(each + more)});"

        label = f"{rows.name} times {fixed[0].name} [{', '.join(more[-2:])}]"
        self.loop(label, lead, arrays, text)

    def reduced(
        self, value: Value, axes: Sequence[int], how: str, start: float, kind: str
    ) -> Stored:
        """The entries along some axes, taken into one from the start on."""
        shape = [n for axis, n in enumerate(value.shape) if axis not in axes]
        into = self.buffer(shape, kind)
        self.assign(into, Known(np.array(start, np.float32 if kind == "float" else np.int32)))
        places = np.broadcast_to(np.expand_dims(into.places, tuple(axes)), value.shape)
        self.assign(dataclasses.replace(into, places=places), value, how)
        return into


def multiply(writer: Writer, into: Stored, rows: Stored, w: Known) -> None:
    """Write ``into += rows @ w`` in float32."""
    weights = writer.constant(dataclasses.replace(w, array=np.ascontiguousarray(w.array)))
    writer.call("@product", into, rows, [weights], [*map(str, w.shape[-2:])])
