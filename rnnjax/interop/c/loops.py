"""Equations of JAX as loops of C, over arrays whose places are known when the loops are written."""

import contextlib
import dataclasses
import functools
import math
import pathlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, Literal

from rnnjax.errors import InteropError
from rnnjax.interop.c.operations import ELEMENTWISE, REDUCTIONS, VIEWS, convolution


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
_TYPES = {"float": np.float32, "int32_t": np.int32, "int8_t": np.int8}


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


def literal(number: Any) -> str:
    """A number of C, in the nine digits that tell every float32 from its neighbours."""
    if kind_of(np.result_type(number)) != "float":
        return str(int(number))
    if not np.isfinite(number):
        return "NAN" if np.isnan(number) else "INFINITY" if number > 0 else "(-INFINITY)"
    text = f"{np.float32(number):.9g}"
    return text + ("f" if re.search("[.e]", text) else ".0f")


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

    # ---- equations

    def run(self, jaxpr: Jaxpr, consts: Sequence[Any], given: Sequence[Value]) -> list[Value]:
        """Write the equations that depend on what is not known, and return the results."""
        atoms = [atom for e in jaxpr.eqns for atom in e.invars] + list(jaxpr.outvars)
        uses = Counter(atom for atom in atoms if not isinstance(atom, Literal))
        values: dict[Any, Value] = dict(zip(jaxpr.invars, given, strict=True))
        values |= {
            var: Known(np.asarray(c)) for var, c in zip(jaxpr.constvars, consts, strict=True)
        }

        def read(atom: Any) -> Value:
            if isinstance(atom, Literal):
                return Known(np.asarray(atom.val, getattr(atom.aval, "dtype", None)))
            if uses[atom] > 1 and isinstance(values[atom], Computed | Sum):
                values[atom] = self.stored(values[atom])
            return values[atom]

        for equation in jaxpr.eqns:
            results = self._results(equation, [read(atom) for atom in equation.invars])
            values.update(zip(equation.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _results(self, equation: Any, values: list[Value]) -> Sequence[Value]:
        name, p = equation.primitive.name, equation.params
        inner = inner_of(equation)
        known = [value.array for value in values if isinstance(value, Known)]
        around = self._where
        where = self._where = origin(equation) or around  # JAX's own functions know no line of ours
        if inner is not None:
            made = self.run(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), values)
            self._where = around
            return made
        if name == "scan" and p["length"] == 1:
            outside = p["num_consts"] + p["num_carry"]
            xs = [self._view(value, lambda a: a[0]) for value in values[outside:]]
            made = self.run(p["jaxpr"].jaxpr, p["jaxpr"].consts, [*values[:outside], *xs])
            ys = [self._view(value, lambda a: a[None]) for value in made[p["num_carry"] :]]
            return [*made[: p["num_carry"]], *ys]
        outs = [var.aval for var in equation.outvars]
        if name in VIEWS:
            views = VIEWS[name](p, outs[0].shape, len(outs))
            whole = values[0] if len(views) == 1 else self.summed(values[0])
            return [self._view(whole, view) for view in views]
        if len(known) == len(values):
            made = equation.primitive.bind(*map(jnp.asarray, known), **p)
            names = " and ".join(dict.fromkeys(v.name for v in values if v.name))  # type: ignore[union-attr]
            each = made if equation.primitive.multiple_results else [made]
            return [Known(np.asarray(array), names) for array in each]
        out, kind = outs[0], kind_of(outs[0].dtype)
        self.label = f"{where.rpartition(' ')[2]}: {name}"
        if name in ("add", "add_any") and any(isinstance(value, Sum) for value in values):
            return [_added(values[0], values[1], out.shape, self.label)]
        values = [self.summed(value) for value in values]
        if name == "optimization_barrier":
            return values
        if name in ELEMENTWISE:
            ins = [value.kind if not isinstance(value, Known) else kind_of(value.array.dtype)
                   for value in values]  # fmt: skip
            template = ELEMENTWISE[name](p, ins[-1], equation.invars[0].aval.dtype)
            if template:
                return [self._computed(template, values, out.shape, kind)]
        elif (name, kind) in REDUCTIONS:
            return [self._reduced(values[0], p["axes"], *REDUCTIONS[name, kind], kind)]
        with contextlib.suppress(NotImplementedError):  # for what it is not written for
            if method := getattr(self, f"_{name}", None):
                return [method(p, *values, shape=out.shape)]
        shapes = ", ".join(str(list(atom.aval.shape)) for atom in equation.invars)
        raise InteropError(
            f"C is written of operations in a table, which has no {name} of {shapes}, as in "
            f"{where}; write that with others, such as sums, products and jnp.where"
        )

    # ---- values

    def _view(self, value: Value, view: Callable[[np.ndarray], np.ndarray]) -> Value:
        """The same entries, or some of them, in other places."""
        shape = view(np.broadcast_to(np.int8(0), value.shape)).shape
        size, entries = math.prod(shape), math.prod(value.shape)
        if isinstance(value, Sum):
            if size == entries == value.shape[-1] == max(shape, default=0) == shape[-1]:  # a row
                return dataclasses.replace(value, first=self._view(value.first, view), shape=shape)
            value = self.stored(value)
        if isinstance(value, Computed) and size > entries:
            value = self.stored(value)
        if isinstance(value, Known):
            return dataclasses.replace(value, array=view(value.array))
        if isinstance(value, Stored):
            return dataclasses.replace(value, places=view(value.places))
        operands = [self._view(o, view) if o.shape else o for o in value.operands]
        self.label = value.label
        return self._computed(value.template, operands, shape, value.kind)

    def _computed(
        self, template: str, values: Sequence[Value], shape: tuple[int, ...], kind: str
    ) -> Value:
        def whole(a: np.ndarray) -> np.ndarray:
            return np.broadcast_to(a, shape)

        # An axis of one entry stands for any number.
        values = [v if v.shape in ((), shape) else self._view(v, whole) for v in values]
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
        base = base.astype(_TYPES[kind])
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
        self, shape: Sequence[int], arrays: Sequence[Stored], text: Callable[..., str]
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
        self.statements.append("\n".join([f"  /* {self.label} */", *indented]))

    def assign(self, into: Stored, value: Value, how: str = "{} = {}") -> None:
        """Write a value into an array, or combine it with what is there."""
        if isinstance(value, Sum):
            self.assign(into, value.first)
            for x, w in value.products:
                self._product(into, x, w)
            return
        value = self._with_constants(value)
        read = list(_leaves(value))
        self.label = getattr(value, "label", "") or self.label

        def text(place: str, *places: str) -> str:
            return how.format(f"{into.name}[{place}]", bare(_text(value, iter(places)))) + ";"

        label, self.label = self.label, f"{self.label} {list(into.shape)}"
        self.loop(into.shape, [into, *read], text)
        self.label = label

    def _with_constants(self, value: Value) -> Value:
        """The value, whose constants are arrays unless they are one number."""
        if isinstance(value, Known) and value.array.size:
            number = value.array.flat[0]
            return (
                Known(np.array(number))
                if value.all_are(number) or not value.shape
                else self.constant(value)
            )
        if isinstance(value, Computed):
            operands = tuple(map(self._with_constants, value.operands))
            return dataclasses.replace(value, operands=operands)
        return value

    def _product(self, into: Stored, x: Value, w: Known) -> None:
        """Add ``x @ w`` to an array: inputs outside, and outputs inside over contiguous weights."""
        inputs, outputs = w.shape[-2:]
        if not inputs * outputs:
            return
        rows = self.stored(x)
        way = affine(rows.places)
        if way is None or (inputs > 1 and way[1][-1] != 1):
            rows, moved = self.buffer(rows.shape), rows
            self.assign(rows, moved)
        self._multiply(self, into, rows, w)

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

        label, self.label = self.label, f"{rows.name} times {fixed[0].name} {', '.join(more[-2:])}"
        self.loop(lead, arrays, text)
        self.label = label

    def _reduced(
        self, value: Value, axes: Sequence[int], how: str, start: float, kind: str
    ) -> Stored:
        shape = [n for axis, n in enumerate(value.shape) if axis not in axes]
        into = self.buffer(shape, kind)
        self.assign(into, Known(np.array(start, np.float32 if kind == "float" else np.int32)))
        places = np.broadcast_to(np.expand_dims(into.places, tuple(axes)), value.shape)
        self.assign(dataclasses.replace(into, places=places), value, how)
        return into

    # ---- operations that are more than an expression, by their names in JAX

    def _dot_general(self, p: Any, left: Value, right: Value, shape: tuple[int, ...]) -> Value:
        (of_left, of_right), (batch_left, batch_right) = p["dimension_numbers"]
        if isinstance(left, Known):  # weights come second, and what is free of them last
            swapped = {"dimension_numbers": ((of_right, of_left), (batch_right, batch_left))}
            value = self._dot_general(swapped, right, left, shape)
            ends = len(batch_left), len(shape) - (left.array.ndim - len(of_left) - len(batch_left))
            axes = [*range(ends[0]), *range(ends[1], len(shape)), *range(*ends)]
            return self._view(value, lambda a: a.transpose(axes))
        free_left, free_right = (
            [axis for axis in range(len(value.shape)) if axis not in (*one, *two)]
            for value, one, two in ((left, batch_left, of_left), (right, batch_right, of_right))
        )
        batch = [left.shape[axis] for axis in batch_left]
        lead = batch + [left.shape[axis] for axis in free_left]
        inputs = math.prod(left.shape[axis] for axis in of_left)
        x_axes, w_axes = [*batch_left, *free_left, *of_left], [*batch_right, *of_right, *free_right]
        x = self._view(left, lambda a: a.transpose(x_axes).reshape(*lead, inputs))
        w = self._view(right, lambda a: a.transpose(w_axes).reshape(*batch, inputs, -1))
        whole = *lead, w.shape[-1]
        if isinstance(w, Known):
            zero = Known(np.zeros(whole, np.float32))
            return self._view(Sum(zero, ((x, w),), whole, self.label), lambda a: a.reshape(shape))
        full, between = (*lead, inputs, w.shape[-1]), [1] * len(free_left)
        x = self._view(x, lambda a: np.broadcast_to(a[..., None], full))
        w = self._view(
            w, lambda a: np.broadcast_to(a.reshape(*batch, *between, *a.shape[-2:]), full)
        )
        value = self._computed("({} * {})", [x, w], full, "float")
        if inputs > 1:  # else it is an outer product
            value = self._reduced(value, [len(lead)], *REDUCTIONS["reduce_sum", "float"], "float")
        return self._view(value, lambda a: a.reshape(shape))

    def _conv_general_dilated(self, p: Any, x: Value, w: Value, shape: tuple[int, ...]) -> Value:
        if not p["feature_group_count"] == p["batch_group_count"] == 1 == max(p["lhs_dilation"]):
            raise NotImplementedError
        avals = (jax.ShapeDtypeStruct(value.shape, np.float32) for value in (x, w))
        closed = jax.make_jaxpr(convolution(p, shape))(*avals)
        return self.run(closed.jaxpr, closed.consts, [x, w])[0]

    def _pad(self, p: Any, value: Value, around: Value, shape: tuple[int, ...]) -> Value:
        if any(min(entry) < 0 for entry in p["padding_config"]):
            raise NotImplementedError
        into = self.buffer(shape, getattr(value, "kind", "float"))
        self.assign(into, around)
        ways = zip(p["padding_config"], value.shape, strict=True)
        part = tuple(slice(low, low + (n - 1) * (m + 1) + 1, m + 1) for (low, _, m), n in ways)
        self.assign(dataclasses.replace(into, places=into.places[part]), value)
        return into

    def _concatenate(self, p: Any, *values: Value, shape: tuple[int, ...]) -> Value:
        kinds = [value.kind for value in values if not isinstance(value, Known)]
        into, axis, start = self.buffer(shape, kinds[0]), p["dimension"], 0
        for value in values:
            places = into.places.take(range(start, start := start + value.shape[axis]), axis)
            self.assign(dataclasses.replace(into, places=places), value)
        return into

    def _stack(self, p: Any, *values: Value, shape: tuple[int, ...]) -> Value:
        axis = p["axis"]
        each = [self._view(value, lambda a: np.expand_dims(a, axis)) for value in values]
        return self._concatenate({"dimension": axis}, *each, shape=shape)

    def _cumsum(self, p: Any, value: Value, shape: tuple[int, ...]) -> Value:
        into = self.buffer(shape, getattr(value, "kind", "float"))
        self.assign(into, value)
        along = np.moveaxis(into.places, p["axis"], 0)[:: -1 if p["reverse"] else 1]
        later, before = (dataclasses.replace(into, places=a) for a in (along[1:], along[:-1]))
        self.assign(later, before, "{} += {}")
        return into

    def _gather(self, p: Any, table: Value, ids: Value, shape: tuple[int, ...]) -> Value:
        """A row of a table by one id, or another block by the indices of its corner."""
        axes, sizes = p["dimension_numbers"].start_index_map, p["slice_sizes"]
        if math.prod(ids.shape) != len(axes) or p["dimension_numbers"].operand_batching_dims:
            raise NotImplementedError
        rows, at = self.stored(table), self.stored(ids)
        index = [f"{at.name}[{place}]" for place in at.places.ravel()]
        most = [rows.shape[axis] - sizes[axis] for axis in axes]
        if "CLIP" in str(p["mode"]):
            pairs = zip(index, most, strict=True)
            index = [f"@imax(0, @imin({i}, {n}))" for i, n in pairs]
        block = rows.places[tuple(map(slice, sizes))].reshape(shape)
        steps = [rows.places.strides[axis] // rows.places.itemsize for axis in axes]
        offset = " + ".join(f"{step} * {i}" for step, i in zip(steps, index, strict=True))
        inside = " && ".join(f"{i} >= 0 && {i} <= {n}" for i, n in zip(index, most, strict=True))
        fill = literal(np.float32(np.nan if p["fill_value"] is None else p["fill_value"]))
        into = self.buffer(shape, rows.kind)

        def text(y: str, row: str) -> str:
            return f"{into.name}[{y}] = {inside} ? {rows.name}[{offset} + {row}] : {fill};"

        self.loop(shape, [into, dataclasses.replace(rows, places=block)], text)
        return into


def multiply(writer: Writer, into: Stored, rows: Stored, w: Known) -> None:
    """Write ``into += rows @ w`` in float32."""
    weights = writer.constant(dataclasses.replace(w, array=np.ascontiguousarray(w.array)))
    writer.call("@product", into, rows, [weights], [*map(str, w.shape[-2:])])


def _added(a: Value, b: Value, shape: tuple[int, ...], label: str) -> Sum:
    """The sum of two values one of which has products, as one that has all of them."""
    firsts = [value.first if isinstance(value, Sum) else value for value in (a, b)]
    products = [one for value in (a, b) if isinstance(value, Sum) for one in value.products]
    zero = [value for value in firsts if not (isinstance(value, Known) and value.all_are(0))]
    first = (
        Computed("({} + {})", tuple(zero), shape, "float", label)
        if len(zero) == 2
        else [*zero, firsts[0]][0]
    )
    return Sum(first, tuple(products), shape, label)


def _leaves(value: Value) -> Iterator[Stored]:
    if isinstance(value, Stored):
        yield value
    elif isinstance(value, Computed):
        for operand in value.operands:
            yield from _leaves(operand)


def _text(value: Value, places: Iterator[str]) -> str:
    if isinstance(value, Known):
        return literal(value.array.flat[0])
    if isinstance(value, Stored):
        return f"{value.name}[{next(places)}]"
    assert isinstance(value, Computed)
    texts = [_text(operand, places) for operand in value.operands]
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


def shape_of(atom: Any) -> tuple[int, ...]:
    """The shape of a variable of a jaxpr."""
    return tuple(atom.aval.shape)


def inner_of(equation: Any) -> Any:
    """The equations that an equation stands for, as one of ``jit`` does; else None."""
    keys = ("jaxpr", "call_jaxpr", "fun_jaxpr") if equation.primitive.name != "scan" else ()
    return next((equation.params[key] for key in keys if key in equation.params), None)


def origin(equation: Any) -> str:
    """The file and line of the cell, or of what it called, that made an equation; empty if none."""
    trace = equation.source_info.traceback
    frames = trace.frames if trace is not None else []
    names = [(pathlib.PurePath(f.file_name), f) for f in frames]
    names = [
        (path, f) for path, f in names if "jax" not in path.parts and "jaxlib" not in path.parts
    ]
    for path, frame in names:
        return f"{path.name}:{frame.line_num}, {frame.function_name}"
    return ""
