"""Loops of C over flat arrays, made of equations; see `rnnjax.interop.c.lowering` for those."""

import itertools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from rnnjax.errors import InteropError
from rnnjax.interop.c.forms import ARRAYS, FORMS, REDUCTIONS, TYPES, kind_of, literals
from rnnjax.interop.jaxprs import Walker, inside, moved, numbers

_INDICES = "ijklmnopqr"  # of loops
_NEUTRAL = re.compile(r"(?<=\()(1\.0f \*|0\.0f \+) | ([*/] 1\.0f|[+-] 0\.0f)(?=\))")
"""What leaves an operand as it is; each operation is in parentheses of its own."""


class Leaf(NamedTuple):
    """Entries of an array of C, by the place of each there; ``table`` has them if no rule does."""

    name: str
    places: np.ndarray
    table: str = ""


class Value(NamedTuple):
    """Entries that are computed where they are read: an expression, with {} for each leaf.

    ``products`` of ``x (*batch, rows, inputs)`` and weights ``(*batch, inputs, outputs)`` add to
    it; all of them add into one array, which begins as the expression: a bias.
    """

    text: str
    leaves: tuple[Leaf, ...]
    shape: tuple[int, ...]
    kind: str
    products: "tuple[tuple[Value, Leaf], ...]" = ()
    label: str = ""

    @classmethod
    def of(cls, name: str, places: np.ndarray, kind: str) -> "Value":
        """Entries of an array."""
        return cls("{}", (Leaf(name, places),), places.shape, kind)

    def at(self, places: np.ndarray) -> "Value":
        """Other entries of the array."""
        return Value.of(self.name, places, self.kind)

    @property
    def name(self) -> str:
        """The array of the entries; "" if the value is none's."""
        return self.leaves[0].name if self.text == "{}" else ""

    @property
    def places(self) -> np.ndarray:
        """The places of the entries of an array."""
        return self.leaves[0].places if self.leaves else np.arange(0)


class Loop(NamedTuple):
    """A statement for all entries of leaves of one shape, with {} for an entry of each."""

    label: str
    text: str
    leaves: tuple[Leaf, ...]

    def __str__(self) -> str:
        """C, in which neighbouring axes are one loop where they are one in all arrays."""
        ways: list[Any] = [affine(leaf.places) for leaf in self.leaves]
        nest: list[tuple[int, list[int]]] = []  # of each loop the number of turns, and the strides
        for axis, n in enumerate(self.leaves[0].places.shape):
            steps = [strides[axis] for _, strides in ways]
            if n > 1 and nest and all(a == n * b for a, b in zip(nest[-1][1], steps, strict=True)):
                nest[-1] = nest[-1][0] * n, steps
            elif n > 1:
                nest.append((n, steps))
        loops, slots = [*zip(_INDICES, nest, strict=False)], []
        for which, (leaf, (first, _)) in enumerate(zip(self.leaves, ways, strict=True)):
            each = [(i, steps[which]) for i, (_, steps) in loops if steps[which]]
            terms = [i if step == 1 else f"{step} * {i}" for i, step in each]
            at = " + ".join(terms + [str(first)] * (first != 0 or not terms))
            slots.append(f"{leaf.name}[{leaf.table}[{at}]]" if leaf.table else f"{leaf.name}[{at}]")
        heads = [f"for (int {i} = 0; {i} < {n}; {i}++)" for i, (n, _) in loops]
        lines = [*heads, self.text.format(*slots)]
        indented = (f"{'  ' * depth}{line}" for depth, line in enumerate(lines, 1))
        return "\n".join([f"  /* {self.label} */", *indented])


class Writer(Walker):
    """The loops, constants and arrays of one function of C.

    Arrays in between are named ``$0``, ``$1`` ... until it is known which may share memory, and
    constants and static functions ``@tanh`` until the file has a name.
    """

    unknown = Value

    def __init__(self, names: dict[bytes, str]) -> None:
        self.loops: list[Loop] = []
        self.constants: dict[str, tuple[np.ndarray, str]] = {}
        self.buffers: dict[str, tuple[int, str]] = {}
        self._names, self._same, self._label, self._where = names, dict[Any, str](), "", ""

    def written(self, closed: Any, given: Sequence[Value]) -> list[Value]:
        """Write what the results of equations need, and return these."""
        return [self._value(x) for x in self.run(closed, given)]

    def shared(self, value: Any) -> Any:
        """Compute what is read more than once into an array."""
        return self.stored(value) if isinstance(value, Value) else value

    def _value(self, x: Any) -> Value:
        return x if isinstance(x, Value) else self.constant(x)

    def result(self, equation: Any, given: list[Any]) -> Any:
        """Return a value, or those of parts, and write what it needs to be there."""
        self._where = str(equation.source_info.name_stack).rpartition("/")[2]
        self._label = f"{self._where.rpartition(' ')[2]}: {equation.primitive.name}"
        made = self._result(equation, [*map(self._value, given)], given)
        if made is None:
            raise self._refusal(equation)
        return made

    def _result(self, equation: Any, ins: list[Value], given: list[Any]) -> Any:
        """The result, or None if C has no such operation; what is ``given`` may be arrays."""
        name, p, out = equation.primitive.name, equation.params, equation.outvars[0].aval
        shape, kind, of = out.shape, kind_of(out.dtype), ins[0].kind if ins else ""
        if not kind:
            return None
        if ins and (at := moved(equation, given[1:])) is not None:
            several = isinstance(at, list) and ins[0].products
            whole = self.stored(ins[0]) if several else ins[0]
            return jax.tree.map(lambda places: self._view(whole, places), at)
        if name == "concatenate":
            ends = np.cumsum([v.shape[p["dimension"]] for v in ins])[:-1]
            return self._joined(shape, kind, ins, np.split(numbers(shape), ends, p["dimension"]))
        if name == "pad" and min(map(min, p["padding_config"])) >= 0:
            parts = numbers(shape), numbers(shape)[inside(equation)]
            return self._joined(shape, kind, ins[::-1], parts)
        if name == "dot_general" and not isinstance(given[1], Value):
            zero, w = self.constant(np.zeros(shape, out.dtype)), self.constant(given[1], True)
            products = ((ins[0], w.leaves[0]),) if given[1].size else ()
            return zero._replace(products=products, label=self._label)
        if name == "dynamic_slice":
            return self._sliced(ins[0], ins[1:], p["slice_sizes"])
        if over := re.fullmatch("(reduce_|cum)(sum|prod|max|min|and|or)", name):
            return self._combined(ins[0], p, *REDUCTIONS[over[2]])
        if name == "select_n":
            ins = [ins[0], *ins[:0:-1]]  # C has the case of what is true first
        if name == "convert_element_type":
            if kind == of:
                return ins[0]
            name = f"to {kind}"
        if name == "round" and int(p["rounding_method"]):
            name = "round even"
        form = FORMS.get(of, {}).get(name, "")
        fits = form.count("{}") == len(ins)
        return self._computed(form, ins, shape, kind) if fits else None

    def _refusal(self, equation: Any) -> InteropError:
        types = [atom.aval for atom in (*equation.invars, *equation.outvars[:1])]
        *given, made = (f"{x.dtype}{[*x.shape]}".removeprefix("float32") for x in types)
        return InteropError(
            f"C is written of operations in a table, which has no {equation.primitive.name} of "
            f"{', '.join(given)} that makes {made}, as in "
            f"{self._where or 'a function of JAX'}; write that with others, such as sums, products "
            "and jnp.where"
        )

    # ---- values

    def constant(self, array: np.ndarray, whole: bool = False, name: str = "") -> Value:
        """A constant of the file; equal ones are one, and copies along an axis are not written."""
        kind, name = kind_of(array.dtype), name or self._names.get(array.tobytes(), "")
        base = array.astype(ARRAYS.get(kind, np.int32))
        for axis in range(0 if whole or not array.size else array.ndim):
            first = base.take([0], axis)
            same = np.broadcast_to(first, base.shape).tobytes() == base.tobytes()  # 0 is not -0
            base = first if same else base
        if base.size == 1 and not whole:
            return Value(literals(base)[0], (), array.shape, kind)
        key = kind, base.tobytes()
        if key not in self._same:
            stem = re.sub(r"\W+", "_", name).strip("_")[:40] or "numbers"
            self._same[key] = f"@{stem}_{len(self._same)}"
            self.constants[self._same[key]] = base, name or self._label
        return Value.of(self._same[key], np.broadcast_to(numbers(base.shape), array.shape), kind)

    def stored(
        self, value: Value, fits: Callable[[Leaf], bool] = lambda leaf: True, number: bool = False
    ) -> Value:
        """The value as entries of an array that fits, or as a number unless that is an array too.

        If it is none it is computed into a new array.
        """
        if not value.products and (
            fits(value.leaves[0]) if value.text == "{}" else not (value.leaves or number)
        ):
            return value
        into = self._buffer(value.shape, value.kind)
        self.assign(into, value)
        return into

    def _buffer(self, shape: Sequence[int], kind: str) -> Value:
        self.buffers[f"${len(self.buffers)}"] = math.prod(shape), TYPES[kind]
        return Value.of([*self.buffers][-1], numbers(shape), kind)

    def _view(self, value: Value, at: np.ndarray) -> Value:
        """The entries of a value that have these numbers."""
        size = math.prod(value.shape)
        if at.size > size or (value.products and not np.array_equal(at.ravel(), np.arange(size))):
            value = self.stored(value)
        leaves = tuple(leaf._replace(places=leaf.places.ravel()[at]) for leaf in value.leaves)
        return value._replace(leaves=leaves, shape=at.shape)

    def _alike(self, value: Value, shape: tuple[int, ...]) -> Value:
        """The value in a shape: an axis of one entry stands for any number."""
        if value.shape == shape:
            return value
        return self._view(value, np.broadcast_to(numbers(value.shape), shape))

    def _computed(
        self, form: str, values: Sequence[Value], shape: tuple[int, ...], kind: str
    ) -> Value:
        """An expression of others; the products of a sum are added to it."""
        summed = form == "({} + {})"
        ins = [v if summed or not v.products else self.stored(v) for v in values]
        ins = [self._alike(v, shape) for v in ins]
        products = tuple(one for v in ins for one in v.products)
        if summed:
            ins = [v for v in ins if v.text not in ("0.0f", "0")] or ins[:1]
            form = form if len(ins) == 2 else "{}"
        bare = _bare if re.match(r"@?\w+\(", form) else str
        text, leaves = form.format(*(bare(v.text) for v in ins)), [v.leaves for v in ins]
        return Value(text, (*itertools.chain(*leaves),), shape, kind, products, self._label)

    def _joined(self, shape: Any, kind: str, values: Sequence[Value], parts: Any) -> Value:
        """An array of values at places, each over what was there before."""
        into = self._buffer(shape, kind)
        for value, places in zip(values, parts, strict=True):
            self.assign(into.at(places), self._alike(value, places.shape))
        return into

    def _combined(self, value: Value, p: Any, operation: str, *starts: str) -> Value | None:
        """The reduction over axes, or along one the results so far."""
        if not (form := FORMS.get(value.kind, {}).get(operation)):
            return None
        if "axis" in p:
            into = self.stored(value, lambda leaf: False)
            along = np.moveaxis(into.places, p["axis"], 0)[:: -1 if p["reverse"] else 1]
            self.assign(into.at(along[1:]), into.at(along[:-1]), form)
            return into
        kept = tuple(n for axis, n in enumerate(value.shape) if axis not in p["axes"])
        into, start = self._buffer(kept, value.kind), starts[-1 if value.kind == "i" else 0]
        self.assign(into, Value(start, (), kept, value.kind))
        places = np.broadcast_to(np.expand_dims(into.places, p["axes"]), value.shape)
        self.assign(into.at(places), value if operation == "add" else self.stored(value), form)
        return into

    def _sliced(self, table: Value, starts: Sequence[Value], sizes: Sequence[int]) -> Value:
        """A block of an array from indices on that C computes, and keeps inside."""
        rows = self.stored(table, lambda leaf: bool(affine(leaf.places)), number=True)
        block, (_, strides) = rows.at(rows.places[tuple(map(slice, sizes))]), affine(rows.places)
        terms, leaves = [], [*block.leaves]
        for start, stride, n, size in zip(starts, strides, table.shape, sizes, strict=True):
            if n > size:
                one = self._alike(self.stored(start), block.shape)
                terms.append(f"{stride} * @imax(0, @imin({one.text}, {n - size}))")
                leaves += one.leaves
        text = f"(&{{}})[{' + '.join(terms) or 0}]"
        return Value(text, tuple(leaves), block.shape, table.kind, (), self._label)

    # ---- loops

    def assign(self, into: Value, value: Value, form: str = "{}", label: str = "") -> None:
        """Write a value into an array, or by a form of two combine it with what is there."""
        ways = (into.places.reshape(-1, w.places.shape[-1]) for _, w in value.products)
        if not all(map(_contiguous, ways)):
            value = self.stored(value)
        targets, slots, leaves = form.count("{}"), [], []
        for leaf in value.leaves:  # of a constant there may be entries that are all alike
            array, _ = self.constants.get(leaf.name, (np.arange(0), ""))
            fixed = array.size and "&" not in value.text
            entries = array.ravel()[leaf.places] if fixed else array[:0]
            alike = len({*literals(entries)}) == 1
            slots.append(literals(entries)[0] if alike else "{}")
            leaves += [] if alike else [leaf]
        text = _NEUTRAL.sub("", value.text.format(*slots))
        text = f"{{}} = {_bare(form.format(*['{}'] * (targets - 1), text))};"
        label = f"{label or value.label or self._label} {list(into.shape)}"
        self._loop(label, text, [*into.leaves] * targets + leaves)
        for x, w in value.products:
            # Inputs are outside, and outputs inside over contiguous weights.
            (*lead, inputs), outputs = x.shape, w.places.shape[-1]
            x = self.stored(x, lambda leaf: _contiguous(leaf.places), number=True)
            y = into.places.reshape(*lead, outputs)[..., 0]
            rows = [Leaf(x.name, x.places[..., 0]), Leaf(into.name, y),
                    Leaf(w.name, np.broadcast_to(w.places[..., :1, 0], lead))]  # fmt: skip
            name = "@product" if x.kind == "f" else "@product8"
            text = f"{name}(&{{}}, &{{}}, &{{}}, {inputs}, {outputs});"
            self._loop(f"{x.name} times {w.name} [{inputs}, {outputs}]", text, rows)

    def _loop(self, label: str, text: str, leaves: Sequence[Leaf]) -> None:
        """Add a loop over the shape of the first leaf."""
        found, deep = [], leaves[0].places.ndim > len(_INDICES)
        for leaf in leaves:
            leaf = leaf._replace(places=leaf.places.ravel()) if deep else leaf
            if affine(leaf.places) is None:
                table = self.constant(leaf.places, name="places")
                leaf = Leaf(leaf.name, table.places, table.leaves[0].name)
            found.append(leaf)
        if leaves[0].places.size:
            self.loops.append(Loop(label, text, tuple(found)))


def affine(places: np.ndarray) -> Any:
    """The first place and the stride of each axis, or None if an axis has no one stride."""
    if not places.size:
        return 0, [0] * places.ndim
    first = int(places.flat[0])
    strides = [int(places.take(min(1, n - 1), axis).flat[0]) - first
               for axis, n in enumerate(places.shape)]  # fmt: skip
    total = first + np.tensordot(np.array(strides, int), np.indices(places.shape), 1)
    return (first, strides) if np.array_equal(total, places) else None


def _contiguous(rows: np.ndarray) -> bool:
    return bool((np.diff(rows) == 1).all())


def _bare(text: str) -> str:
    """An expression without the parentheses around it.

    >>> _bare("(a + (b))"), _bare("(a) + (b)")
    ('a + (b)', '(a) + (b)')
    """
    depth = itertools.accumulate((c == "(") - (c == ")") for c in text[:-1])
    return text[1:-1] if text[:1] == "(" and 0 not in depth else text


def placed(
    loops: Sequence[Loop], buffers: dict[str, tuple[int, str]], new: Sequence[tuple[Value, Value]]
) -> tuple[dict[str, str], dict[str, tuple[int, str]]]:
    """Give arrays that are never needed together one memory; also return the sizes of all.

    Args:
        loops: that fill and read them.
        buffers: of each array the size and the type.
        new: parts of the state, and arrays that these become in the end. One that becomes a part as
            it is gets the memory of it if nothing reads the old part after: the loop that fills it
            may read the old entry that it replaces, and no other.
    """
    uses: dict[str, list[int]] = {}
    for i, leaves in enumerate([*(loop.leaves for loop in loops), *(y.leaves for _, y in new)]):
        for leaf in leaves:
            uses.setdefault(leaf.name, []).append(min(i, len(loops)))
    becomes = dict[str, str]()
    for part, y in new:
        size, _ = buffers.get(y.name, (0, ""))
        if np.array_equal(y.places.ravel(), np.arange(size)):
            becomes[y.name] = part.name
    slots: list[Any] = []  # of each the size, the type, and the last loop that needs it
    memory: dict[str, str] = {}
    for name in [name for name in uses if buffers.get(name, (0, ""))[0]]:
        (size, kind), first, into = buffers[name], uses[name][0], becomes.get(name, "")
        at = [leaf for leaf in loops[first].leaves if leaf.name in (name, into)]
        alike = all(not one.table and np.array_equal(at[0].places, one.places) for one in at)
        if into and alike and max(uses.get(into, [0])) <= first:
            memory[name] = into
            continue
        free = [i for i, (_, other, until) in enumerate(slots) if other == kind and until < first]
        if not free:
            free = [len(slots)]
            slots.append((0, kind, 0))
        # The smallest that is large enough, else the one that grows least.
        best = min(free, key=lambda i: (slots[i][0] < size, abs(slots[i][0] - size)))
        slots[best] = max(slots[best][0], size), kind, uses[name][-1]
        memory[name] = f"s->scratch_{best}"
    return memory, {  # whole words, so that the struct has no gaps
        f"scratch_{i}": (size + (-size % 4 if kind == "int8_t" else 0), kind)
        for i, (size, kind, _) in enumerate(slots)
    }
