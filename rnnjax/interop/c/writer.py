"""Loops of C over flat arrays, made of equations; see `rnnjax.interop.c.lowering` for those."""

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import Literal

from rnnjax.errors import InteropError
from rnnjax.interop.c.forms import FORMS, REDUCTIONS, TYPES, kind_of, literals

_MOVES = {
    "reshape", "squeeze", "expand_dims", "broadcast_in_dim", "slice", "transpose", "rev", "split",
    "unstack", "stack", "concatenate", "pad",
}  # fmt: skip
"""Operations that only move entries: they are applied to the numbers of these."""
_NEUTRAL = re.compile(r"(?<=\()(1\.0f \*|0\.0f \+) | ([*/] 1\.0f|[+-] 0\.0f)(?=\))")
"""What leaves an operand as it is; each operation is in parentheses of its own."""


class Leaf(NamedTuple):
    """Entries of an array of C, by the place of each there; ``table`` has them if no rule does."""

    name: str
    places: np.ndarray
    table: str = ""


class Value(NamedTuple):
    """Entries that are computed where they are read: an expression, with {} for each leaf.

    ``products`` of ``x (*lead, inputs)`` and weights ``(*batch, inputs, outputs)`` add to it; all
    of them add into one array, which begins as the expression: a bias.
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
        return Value.of(self.leaves[0].name, places, self.kind)

    @property
    def places(self) -> np.ndarray:
        """The places of the entries of an array."""
        return self.leaves[0].places


class Loop(NamedTuple):
    """A statement for all entries of leaves of one shape, with {} for an entry of each."""

    label: str
    text: str
    leaves: tuple[Leaf, ...]

    def names(self) -> set[str]:
        """The arrays in the statement."""
        return {name for leaf in self.leaves for name in (leaf.name, leaf.table)}

    def renamed(self, names: dict[str, str]) -> "Loop":
        """The loop over arrays of other names, itself if it has none of these."""
        if not self.names() & names.keys():
            return self
        leaves = tuple(leaf._replace(name=names.get(leaf.name, leaf.name)) for leaf in self.leaves)
        label = re.sub(r"\$\d+", lambda m: names.get(m[0], m[0]), self.label)
        return self._replace(leaves=leaves, label=label)

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
        loops, slots = [*zip("ijklmnopqr", nest, strict=False)], []
        for which, (leaf, (first, _)) in enumerate(zip(self.leaves, ways, strict=True)):
            each = [(i, steps[which]) for i, (_, steps) in loops if steps[which]]
            terms = [i if step == 1 else f"{step} * {i}" for i, step in each]
            at = " + ".join(terms + [str(first)] * (first != 0 or not terms))
            slots.append(f"{leaf.name}[{leaf.table}[{at}]]" if leaf.table else f"{leaf.name}[{at}]")
        heads = [f"for (int {i} = 0; {i} < {n}; {i}++)" for i, (n, _) in loops]
        lines = [*heads, self.text.format(*slots)]
        indented = (f"{'  ' * depth}{line}" for depth, line in enumerate(lines, 1))
        return "\n".join([f"  /* {self.label} */", *indented])


class Writer:
    """The loops, constants and arrays of one function of C.

    Arrays in between are named ``$0``, ``$1`` ... until it is known which may share memory, and
    constants and static functions ``@tanh`` until the file has a name.
    """

    def __init__(self, names: dict[bytes, str]) -> None:
        self.loops: list[Loop] = []
        self.constants: dict[str, tuple[np.ndarray, str]] = {}
        self.buffers: dict[str, tuple[int, str]] = {}
        self._names, self._same, self._label, self._where = names, dict[Any, str](), "", ""

    def run(self, closed: Any, given: Sequence[Value]) -> list[Value]:
        """Write what the results of equations need, and return these."""
        jaxpr = closed.jaxpr
        uses = Counter(atom for atom in jaxpr.outvars if not isinstance(atom, Literal))
        for equation in reversed(jaxpr.eqns):
            if any(uses[var] for var in equation.outvars):
                uses.update(atom for atom in equation.invars if not isinstance(atom, Literal))
        values = dict(zip(jaxpr.invars, given, strict=True))
        known = dict(zip(jaxpr.constvars, map(np.asarray, closed.consts), strict=True))

        def array_of(atom: Any) -> Any:
            if isinstance(atom, Literal):
                return np.asarray(atom.val, getattr(atom.aval, "dtype", None))
            return known.get(atom)

        def read(atom: Any) -> Value:
            if isinstance(atom, Literal) or atom not in values:
                return self.constant(array_of(atom))
            if uses[atom] > 1:
                values[atom] = self.stored(values[atom])
            return values[atom]

        moves = _moves(jaxpr.eqns, array_of)
        for equation in jaxpr.eqns:
            if any(uses[var] for var in equation.outvars):
                self._where = str(equation.source_info.name_stack).rpartition("/")[2]
                self._label = f"{self._where.rpartition(' ')[2]}: {equation.primitive.name}"
                if not all(kind_of(var.aval.dtype) for var in equation.outvars):
                    raise self._refusal(equation)
                ins = [read(atom) for atom in equation.invars]
                made = self._moved(equation, ins, *moves.get(equation.outvars[0], ([], [])))
                weights = array_of(equation.invars[-1]) if ins else None
                made = made or [self._result(equation, ins, weights)]
                values.update(zip(equation.outvars, made, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _result(self, equation: Any, ins: list[Value], weights: np.ndarray | None) -> Value:
        name, p, out = equation.primitive.name, equation.params, equation.outvars[0].aval
        kind = ins[0].kind if ins else ""
        if name in ("add", "add_any"):
            return self._added(ins, out.shape)
        if name == "dot_general" and weights is not None:
            zero, w = self.constant(np.zeros(out.shape, out.dtype)), self.constant(weights, True)
            products = ((ins[0], w.leaves[0]),) if weights.size else ()
            return zero._replace(products=products, label=self._label)
        if name == "select_n":
            ins = [ins[0], *ins[:0:-1]]  # C has the case of what is true first
        if name == "convert_element_type":
            name = f"to {kind_of(out.dtype)}"
            if name == f"to {kind}":
                return ins[0]
        even = name == "round" and int(p["rounding_method"])
        if form := FORMS.get(kind, {}).get("round even" if even else name):
            return self._computed(form, ins, out.shape, kind_of(out.dtype))
        if (name, kind) in REDUCTIONS:
            return self._reduced(ins[0], p["axes"], *REDUCTIONS[name, kind])
        if name == "dynamic_slice":
            return self._sliced(ins[0], ins[1:], p["slice_sizes"])
        if name == "cumsum":
            into = self.stored(ins[0], lambda leaf: False)
            along = np.moveaxis(into.places, p["axis"], 0)[:: -1 if p["reverse"] else 1]
            self.assign(into.at(along[1:]), into.at(along[:-1]), "{} += {};")
            return into
        raise self._refusal(equation)

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
        base = array.astype({"f": np.float32, "q": np.int8}.get(kind, np.int32))
        for axis in range(0 if whole or not array.size else array.ndim):
            first = base.take([0], axis)
            same = np.array_equal(np.broadcast_to(first, base.shape), base, equal_nan=True)
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

    def _alike(self, values: Sequence[Value], shape: tuple[int, ...]) -> list[Value]:
        """The values in a shape: an axis of one entry stands for any number."""
        return [v if v.shape == shape else self._view(v, np.broadcast_to(numbers(v.shape), shape))
                for v in values]  # fmt: skip

    def _computed(
        self, form: str, values: Sequence[Value], shape: tuple[int, ...], kind: str
    ) -> Value:
        ins = self._alike([self.stored(v) if v.products else v for v in values], shape)
        bare = _bare if re.match(r"@?\w+\(", form) else str
        text, leaves = form.format(*(bare(v.text) for v in ins)), [v.leaves for v in ins]
        return Value(text, (*itertools.chain(*leaves),), shape, kind, (), self._label)

    def _added(self, values: Sequence[Value], shape: tuple[int, ...]) -> Value:
        ins = self._alike(values, shape)
        firsts = [v._replace(products=()) for v in ins]
        rest = [v for v in firsts if v.text not in ("0.0f", "0")] or firsts[:1]
        both = rest[0] if len(rest) == 1 else self._computed("({} + {})", rest, shape, ins[0].kind)
        products = tuple(one for v in ins for one in v.products)
        return both._replace(products=products, label=self._label)

    def _moved(
        self, equation: Any, ins: Sequence[Value], each: Sequence[Any], moved: Sequence[Any]
    ) -> list[Value]:
        """The entries that have the numbers ``moved``; nothing if some are lost, or are none's."""
        if len(each) < 2:
            ins = [self.stored(v) if len(moved) > 1 and v.products else v for v in ins[:1]]
            lost = any(one.min(initial=0) < 0 for one in moved)
            return [] if lost else [self._view(ins[0], one) for one in moved]
        into = self._buffer(moved[0].shape, kind_of(equation.outvars[0].aval.dtype))
        at = np.full(sum(own.size for own in each), -1)
        at[moved[0].ravel()] = np.arange(moved[0].size)
        for value, own in reversed([*zip(ins, each, strict=True)]):
            padding = equation.primitive.name == "pad" and not own.ndim
            places = numbers(into.shape) if padding else np.asarray(at[own])
            if places.min(initial=0) < 0:
                return []
            self.assign(into.at(places), self._alike([value], places.shape)[0])
        return [into]

    def _reduced(self, value: Value, axes: Sequence[int], how: str, start: str) -> Value:
        kept = tuple(n for axis, n in enumerate(value.shape) if axis not in axes)
        into = self._buffer(kept, value.kind)
        self.assign(into, Value(start, (), kept, value.kind))
        places = np.broadcast_to(np.expand_dims(into.places, tuple(axes)), value.shape)
        self.assign(into.at(places), value if "+=" in how else self.stored(value), how)
        return into

    def _sliced(self, table: Value, starts: Sequence[Value], sizes: Sequence[int]) -> Value:
        """A block of an array from indices on that C computes, and keeps inside."""
        rows = self.stored(table, lambda leaf: bool(affine(leaf.places)), number=True)
        block, (_, strides) = rows.at(rows.places[tuple(map(slice, sizes))]), affine(rows.places)
        terms, leaves = [], [*block.leaves]
        for start, stride, n, size in zip(starts, strides, table.shape, sizes, strict=True):
            if n > size:
                (one,) = self._alike([self.stored(start)], block.shape)
                terms.append(f"{stride} * @imax(0, @imin({one.text}, {n - size}))")
                leaves += one.leaves
        text = f"(&{{}})[{' + '.join(terms) or 0}]"
        return Value(text, tuple(leaves), block.shape, table.kind, (), self._label)

    # ---- loops

    def assign(self, into: Value, value: Value, how: str = "{} = {};", label: str = "") -> None:
        """Write a value into an array, or combine it with what is there."""
        ways = (into.places.reshape(-1, w.places.shape[-1]) for _, w in value.products)
        if not all(map(_contiguous, ways)):
            value = self.stored(value)
        targets, slots, leaves = how.count("{}") - 1, [], []
        for leaf in value.leaves:  # of a constant there may be entries that are all alike
            array, _ = self.constants.get(leaf.name, (np.arange(0), ""))
            fixed = array.size and "&" not in value.text
            entries = np.unique(array.ravel()[leaf.places]) if fixed else array[:0]
            slots.append(literals(entries)[0] if len(entries) == 1 else "{}")
            leaves += [] if len(entries) == 1 else [leaf]
        text = _bare(_NEUTRAL.sub("", value.text.format(*slots)))
        text = how.format(*["{}"] * targets, text)
        label = f"{label or value.label or self._label} {list(into.shape)}"
        self._loop(label, text, [*into.leaves] * targets + leaves)
        for x, w in value.products:
            # Inputs are outside, and outputs inside over contiguous weights.
            (*lead, inputs), outputs = x.shape, w.places.shape[-1]
            x = self.stored(x, lambda leaf: _contiguous(leaf.places), number=True)
            starts = w.places[..., 0, 0]
            starts = starts.reshape(starts.shape + (1,) * (len(lead) - starts.ndim))
            y = into.places.reshape(*lead, outputs)[..., 0]
            rows = [Leaf(x.leaves[0].name, x.places[..., 0]), Leaf(into.leaves[0].name, y),
                    Leaf(w.name, np.broadcast_to(starts, lead))]  # fmt: skip
            name = "@product" if x.kind == "f" else "@product8"
            text = f"{name}(&{{}}, &{{}}, &{{}}, {inputs}, {outputs});"
            self._loop(f"{rows[0].name} times {w.name} [{inputs}, {outputs}]", text, rows)

    def _loop(self, label: str, text: str, leaves: Sequence[Leaf]) -> None:
        """Add a loop over the shape of the first leaf."""
        found = []
        for leaf in leaves:
            if affine(leaf.places) is None:
                table = self.constant(leaf.places, name="places")
                leaf = Leaf(leaf.name, table.places, table.leaves[0].name)
            found.append(leaf)
        if leaves[0].places.size:
            self.loops.append(Loop(label, text, tuple(found)))


def _moves(equations: Sequence[Any], array_of: Callable[[Any], Any]) -> dict[Any, Any]:
    """The numbers of entries before and after all that only moves them, by its first result.

    A gather with known indices is one, too. XLA takes a while for each program, and gets one.
    """
    found, given = [], []
    for one in equations:
        known = [array_of(atom) for atom in one.invars[1:]]
        looked_up = one.primitive.name in ("gather", "dynamic_slice")
        if one.primitive.name in _MOVES or (looked_up and all(x is not None for x in known)):
            shapes = [atom.aval.shape for atom in one.invars[: 1 if looked_up else None]]
            ends = np.cumsum([0, *map(math.prod, shapes)])
            each = [numbers(shape) + end for shape, end in zip(shapes, ends, strict=False)]
            found.append(one)
            given.append((each, known if looked_up else []))

    def run(given: Any) -> Any:
        made = []
        for one, (each, known) in zip(found, given, strict=True):
            lost = {key: -1 for key in one.params if key == "fill_value"}
            moved = one.primitive.bind(*each, *known, **one.params | lost)
            made.append(moved if one.primitive.multiple_results else [moved])
        return made

    made = jax.tree.map(np.asarray, jax.jit(run)(given)) if found else []
    pairs = zip(found, given, made, strict=True)
    return {one.outvars[0]: (each, moved) for one, (each, _), moved in pairs}


def numbers(shape: Sequence[int]) -> np.ndarray:
    """The places of all entries of a contiguous array."""
    return np.arange(math.prod(shape)).reshape(shape)


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


def in_place(loops: list[Loop], buffers: dict[str, tuple[int, str]]) -> list[Loop]:
    """Let what becomes the new state be computed there, where nothing reads the old one after."""
    for copy in loops[::-1]:
        if copy.text != "{} = {};" or not copy.leaves[0].name.startswith("s->"):
            break
        into, old = copy.leaves
        whole = into.places.size == buffers.get(old.name, (0, ""))[0]
        here = any(one is copy for one in loops)
        if not (whole and here and np.array_equal(into.places, old.places)):
            continue  # it copies what is another part of the state
        others = [one for one in loops if one is not copy]
        first, *later = others[[old.name in one.names() for one in others].index(True) :]
        # The loop that fills it may read the old entry that it replaces, and no other.
        at = [leaf for leaf in first.leaves if leaf.name in (old.name, into.name)]
        alike = all(not one.table and np.array_equal(at[0].places, one.places) for one in at)
        if alike and not any(into.name in one.names() for one in later):
            loops = [one.renamed({old.name: into.name}) for one in others]
    return loops


def placed(
    loops: Sequence[Loop], buffers: dict[str, tuple[int, str]]
) -> tuple[list[Loop], dict[str, tuple[int, str]]]:
    """Give arrays that are never needed together one memory; also return the sizes of all."""
    uses: dict[str, list[int]] = {}
    for i, loop in enumerate(loops):
        for name in [leaf.name for leaf in loop.leaves if leaf.name in buffers]:
            uses.setdefault(name, []).append(i)
    slots: list[Any] = []  # of each the size, the type, and the last loop that needs it
    chosen = {}
    for name, (first, *_) in uses.items():
        size, kind = buffers[name]
        free = [i for i, (_, other, last) in enumerate(slots) if other == kind and last < first]
        if not free:
            free = [len(slots)]
            slots.append((0, kind, 0))
        # The smallest that is large enough, else the one that grows least.
        best = min(free, key=lambda i: (slots[i][0] < size, abs(slots[i][0] - size)))
        slots[best] = max(slots[best][0], size), kind, uses[name][-1]
        chosen[name] = f"s->scratch_{best}"
    sizes = {f"scratch_{i}": (size, kind) for i, (size, kind, _) in enumerate(slots)}
    return [loop.renamed(chosen) for loop in loops], sizes
