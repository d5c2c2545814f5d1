"""Time followed through a program: from which steps each entry of each array follows, and how.

A program of many steps can be taken step by step if the outputs of each follow by one expression
from steps that lie equally far before it, and if the state holds what lies before the first. So the
equations run on a `Span` for each array. In place of a number an entry has the first and the last
step that it follows from, and a hash of its expression, in which steps have no numbers. The state
that came is of step -1. An operation without a rule makes each entry of all entries.
"""

import functools
import itertools
import re
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.errors import InteropError, InvalidInputError
from rnnjax.interop.jaxprs import (
    ENTRYWISE,
    MOVES,
    OTHERS,
    SLIDING,
    Walker,
    inside,
    moved,
    numbers,
    scan_sizes,
)

_NEVER, _ANY = 2**40, 2**50
"""The first step of what follows from none, and of what may follow from any."""
_TURNS = 2**10  # of a loop that is followed turn by turn
_TOO_FEW = InvalidInputError, InteropError, TypeError, ValueError, IndexError  # steps there


class Span(np.recarray):
    """From what entries follow: the ``first`` and the ``last`` step, and ``what`` expression."""

    @classmethod
    def of(cls, what: Any, first: Any = _NEVER, last: Any = -_NEVER) -> "Span":
        """Entries of some expressions, which follow from the same steps, by itself from none."""
        made = cls(what.shape, [("first", "i8"), ("last", "i8"), ("what", "u8")])
        made.first, made.last, made.what = first, last, what
        return made

    @classmethod
    def numbers(cls, shape: Sequence[int], key: Any = 0) -> "Span":
        """Entries of which no two are alike."""
        return cls.of(_mixed(_hash(key), numbers(shape)))

    def wide(self, shape: Sequence[int]) -> Any:
        """Broadcast to a shape."""
        return np.broadcast_to(self, shape, subok=True)

    def later(self, steps: Any) -> "Span":
        """Shift by a number of steps; what follows from none, or from any, stays."""
        ends = (np.where(abs(n) < _NEVER, n + steps, n) for n in (self.first, self.last))
        return Span.of(self.what, *ends)

    def over(self, axes: Any, key: Any) -> "Span":
        """What follows from all entries along axes, which stay as axes of one."""
        each: Any = {"axis": tuple(range(self.ndim) if axes is None else axes), "keepdims": True}
        place = numbers([n if axis in each["axis"] else 1 for axis, n in enumerate(self.shape)])
        what = _mixed(key, _mixed(self.what, place).sum(dtype=np.uint64, **each))
        first = self.first.min(initial=_NEVER, **each)
        return Span.of(what, first, self.last.max(initial=-_NEVER, **each))

    @property
    def code(self) -> int:
        """The first expression, by which a state is known."""
        return int(self.what.flat[0]) if self.size else 0

    @property
    def none(self) -> Any:
        """Whether each entry follows from no step."""
        return self.last == -_NEVER


def either(key: Any, *spans: Any) -> Span:
    """What an operation of that hash makes of entries at the same place."""
    first, last, what = zip(*((x.first, x.last, x.what) for x in spans), strict=True)
    ends = functools.reduce(np.minimum, first), functools.reduce(np.maximum, last)
    return Span.of(_mixed(key, *what), *ends)


class Spans(Walker):
    """Runs the equations of a program of some steps on spans.

    Args:
        steps: how many; a loop of as many turns is one over time.
        states: those that came, each with the axis along which it holds the steps before, or -1.
    """

    unknown = Span
    rules = OTHERS | SLIDING

    def __init__(self, steps: int, states: Sequence[tuple[Span, int]]) -> None:
        self.steps, self.windows = steps, {x.code: axis for x, axis in states}
        self._codes = [code for x, _ in states for code in x.what.flat]
        self.after = dict[int, Span]()  # what they must be in the end
        self._turned = dict[int, Span]()  # what they become in a turn of a loop over time
        self.torn = False  # whether one becomes two things

    def span(self, x: Any) -> Span:
        """The span of a value; numbers are expressions of their own."""
        if isinstance(x, Span):
            return x
        wide = np.float64 if jnp.issubdtype(x.dtype, jnp.floating) else np.int64
        return Span.of(_hash(np.asarray(x, wide).view(np.uint64)))

    def array(self, x: Any) -> Any:
        """Numbers, of which nothing has to be computed if they are floating."""
        floats = not isinstance(x, Span) and jnp.issubdtype(x.dtype, jnp.floating)
        return self.span(x) if floats else super().array(x)

    def computes(self, equation: Any) -> bool:
        """Whether it does not count steps, by which they may be told apart."""
        counts = equation.primitive.name == "iota"
        return not (counts and self.steps in equation.outvars[0].aval.shape)

    def result(self, equation: Any, given: list[Any]) -> Any:
        """Follow an operation by a rule, or from everything."""
        name, p, key = equation.primitive.name, equation.params, _key(equation)
        spans, avals = [self.span(x) for x in given], [var.aval for var in equation.outvars]
        shape = avals[0].shape
        if name in MOVES:
            return MOVES[name](spans[0], p, shape)
        if given and (at := moved(equation, given[1:])) is not None:
            return spans[0].ravel()[at, ...]
        if name == "convert_element_type" and _widens(equation.invars[0].aval, avals[0]):
            return spans
        if name in ENTRYWISE:
            return either(key, *spans).wide(shape)
        if (ruled := self.ruled(equation, given)) is not None:
            return ruled
        if name == "concatenate":
            return self._joined(spans, p["dimension"])
        if name == "pad" and min(map(min, p["padding_config"])) >= 0:
            return _padded(equation, *spans)
        if re.fullmatch("reduce_(sum|prod|max|min|and|or)|argm(ax|in)", name):
            return spans[0].over(p["axes"], key).reshape(shape)
        if name.startswith("cum"):
            place = Span.numbers([n if axis == p["axis"] else 1 for axis, n in enumerate(shape)])
            return either(key, spans[0].over([p["axis"]], key), place)
        if name == "dot_general":
            return _product(key, spans, p["dimension_numbers"], shape)
        if name == "gather" and spans[0].none.all():  # rows of a table
            offsets = p["dimension_numbers"].offset_dims
            row = Span.numbers([n if axis in offsets else 1 for axis, n in enumerate(shape)])
            ids = np.expand_dims(spans[1].over([spans[1].ndim - 1], key)[..., 0], offsets)
            return either(key, ids, row, _whole(key, spans[:1], len(shape))).wide(shape)
        if name == "scan" and p["length"] <= _TURNS:
            return self._scan(equation, spans)
        # Of what has no operands, such as a count of the steps, nothing is known.
        spans = spans or [Span.of(key, -_ANY, _ANY)]
        return [either(key, Span.numbers(one.shape, i), _whole(key, spans, len(one.shape)))
                for i, one in enumerate(avals)]  # fmt: skip

    def _joined(self, spans: list[Any], axis: int) -> Span:
        """Join arrays; the steps before, which a state holds, continue those that come."""
        first, rest = spans[0], spans[1:]
        if rest and self.windows.get(first.code) == axis and self._goes(rest[0], axis):
            back = _along(first.shape, axis) - first.shape[axis]
            spans = [rest[0].take([0], axis).wide(first.shape).later(back), *rest]
            self.torn |= _differ(self._turned.setdefault(first.code, spans[0]), spans[0])
            self.after[first.code] = spans[0].later(self.steps)
        if any(_differs(x, axis) for x in spans):  # what else is there is no step
            spans = [Span.of(x.what, -_ANY, _ANY) if x.none.all() else x for x in spans]
        return np.concatenate(spans, axis).view(Span)

    def _goes(self, x: Any, axis: int) -> bool:
        """Whether entries along an axis are the same of one step after the other."""
        later = x.take([0], axis).wide(x.shape).later(_along(x.shape, axis))
        return x.shape[axis] == self.steps and not _differ(later, x)

    def _scan(self, equation: Any, spans: list[Span]) -> list[Span]:
        """Take turns. In a loop over time a state that came is that of the step before."""
        (consts, carried), p = scan_sizes(equation), equation.params
        fixed, begin, xs = spans[:consts], spans[consts:][:carried], spans[consts + carried :]
        over = p["length"] == self.steps and not p["reverse"]
        held = [over and x.size > 0 and np.isin(x.what, self._codes).all() for x in begin]
        turns, carry, each = range(p["length"]), begin, list[list[Span]]()
        for t in reversed(turns) if p["reverse"] else turns:
            now = [x[t, ...] for x in xs]
            made = [self.span(y) for y in self.run(p["jaxpr"], [*fixed, *carry, *now])]
            pairs = zip(held, begin, made, strict=False)
            carry = [self._kept(came, x, t) if h else x for h, came, x in pairs]
            each.append(made[carried:])
        each = each[::-1] if p["reverse"] else each
        return [*carry, *(np.stack(y).view(Span) for y in zip(*each, strict=True))]

    def _kept(self, came: Span, made: Span, step: int) -> Span:
        """The state after a step, which each makes of the one before in the same way."""
        first = self._turned.setdefault(came.code, made)
        self.torn |= _differ(first.later(step), made) or bool((made.last >= _ANY).any())
        self.after[came.code] = made
        return came.later(step + 1) if step + 1 < self.steps else made


def _hash(x: Any) -> np.ndarray:
    """Numbers as others that share nothing with their neighbours' (Steele et al., 2014)."""
    x = np.asarray(x).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))


def _mixed(key: Any, *parts: Any) -> np.ndarray:
    return functools.reduce(lambda a, b: _hash(a * np.uint64(31) + b.astype(np.uint64)), parts, key)


def _key(equation: Any) -> np.ndarray:
    """The hash of an operation and its parameters."""
    told = f"{equation.primitive.name} {sorted(equation.params.items(), key=str)}"
    return _hash(zlib.crc32(re.sub("0x[0-9a-f]+", "", told).encode()))


def _widens(x: Any, y: Any) -> bool:
    """Whether a type has all numbers of another one, both floating."""
    floats = jnp.issubdtype(x.dtype, jnp.floating) and jnp.issubdtype(y.dtype, jnp.floating)
    return floats and jnp.promote_types(x.dtype, y.dtype) == y.dtype


def _along(shape: Sequence[int], axis: int) -> np.ndarray:
    """The places along an axis."""
    return np.arange(shape[axis]).reshape([-1 if i == axis else 1 for i in range(len(shape))])


def _differ(x: Span, y: Span) -> bool:
    """Whether entries follow from other steps, or by other expressions."""
    return x.shape != y.shape or bool((x != y).any())


def _differs(x: Span, axis: int) -> bool:
    """Whether entries along an axis follow from unlike steps."""
    return x.size > 0 and bool((x.last != x.last.take([0], axis)).any())


def _padded(equation: Any, x: Span, value: Span) -> Span:
    ways = enumerate(equation.params["padding_config"])
    odd = any(_differs(x, axis) for axis, way in ways if any(way))
    around = Span.of(value.what, -_ANY, _ANY) if odd else value
    made: Span = around.wide(equation.outvars[0].aval.shape).copy()
    made[inside(equation)] = x
    return made


def _product(key: Any, spans: Sequence[Span], numbers: Any, shape: Sequence[int]) -> Span:
    """Each entry follows from a row and a column."""
    made = []
    for i, (x, of, batch) in enumerate(zip(spans, *numbers, strict=True)):
        rows = [axis for axis in range(x.ndim) if axis not in (*of, *batch)]
        order, sizes = (*batch, *rows, *of), [x.shape[axis] for axis in rows]
        ones = [1] * (len(shape) - len(batch) - len(rows))
        to = [*shape[: len(batch)], *([*ones, *sizes] if i else [*sizes, *ones])]
        made.append(x.over(of, key).transpose(order).reshape(to))
    return either(key, *made)


def _whole(key: Any, spans: Sequence[Span], rank: int) -> Span:
    """What follows from all entries of all, with axes of one."""
    return either(key, *(x.over(None, key).reshape([1] * rank) for x in spans))


def follows(
    run: Callable[..., Any],
    start: Any,
    inputs: Callable[[int], Any],
    windows: Sequence[int],
    counted: int = 0,
) -> bool:
    """Whether ``run(carry, inputs) -> (carry, ys)`` of many steps can be taken step by step.

    Args:
        run: the program.
        start: a carry, or the shapes and types of one.
        inputs: gives the shapes and types of as many steps.
        windows: of each leaf of the carry the axis along which it holds the steps before, or -1.
        counted: to which number it might count steps; more are followed.
    """
    steps = _more_than(max(11, counted + 2), (start, inputs(1)))
    try:
        with np.errstate(over="ignore"):  # in which hashes wrap
            each = ((run, start, inputs(n), inputs(n + 1), n, windows) for n in (1, steps))
            one, many = itertools.starmap(_followed, each)
    except _TOO_FEW:
        return False
    return bool(many) and all(_alike(*each, steps) for each in zip(one, many, strict=True))


def keeps_apart(run: Callable[[Any], Any], inputs: Callable[[int], Any]) -> bool:
    """Whether each step of what ``run(inputs)`` gives follows from the same step of its inputs.

    What has no axis of time follows from none. ``inputs`` are as in `follows`.
    """
    steps = _more_than(11, inputs(1))
    try:
        with np.errstate(over="ignore"), jax.ensure_compile_time_eval():
            program = jax.make_jaxpr(run)(inputs(steps))
            spans, given = Spans(steps, []), _given(0, inputs(steps), inputs(steps + 1))
            made = [*map(spans.span, spans.run(program, given))]
    except _TOO_FEW:
        return False
    for y in made:
        ways = [_along(y.shape, axis) for axis, n in enumerate(y.shape) if n == steps]
        if not any((y.none | ((y.first == at) & (y.last == at))).all() for at in [*ways, _ANY]):
            return False
    return True


def _more_than(least: int, trees: Any) -> int:
    """A number of steps that no axis has."""
    sizes = {n for leaf in jax.tree.leaves(trees) for n in leaf.shape}
    return next(n for n in itertools.count(least) if n not in sizes)


def _given(first: int, inputs: Any, more: Any) -> list[Span]:
    """The spans of inputs; those of one step more say which axes are time."""
    given = []
    pairs = zip(*map(jax.tree.leaves, (inputs, more)), strict=True)
    for i, (x, other) in enumerate(pairs, first):
        along = [axis for axis, n in enumerate(x.shape) if n != other.shape[axis]]
        one = Span.numbers([1 if axis in along else n for axis, n in enumerate(x.shape)], i)
        ends = [np.broadcast_to(_along(x.shape, along[0]), x.shape)] * 2 if along else []
        given.append(Span.of(one.wide(x.shape).what, *ends))
    return given


def _followed(
    run: Any, start: Any, inputs: Any, more: Any, steps: int, windows: Sequence[int]
) -> list[Span]:
    """The spans of state and outputs; none if the state after the steps is not like that before."""
    leaves = jax.tree.leaves(start)
    begin = [Span.of(Span.numbers(x.shape, i).what, -1, -1) for i, x in enumerate(leaves)]
    given = [*begin, *_given(len(begin), inputs, more)]
    spans = Spans(steps, [*zip(begin, windows, strict=True)])
    made = [*map(spans.span, spans.run(jax.make_jaxpr(run)(start, inputs), given))]
    # A program of one step has no loop, which would say what its state becomes.
    kept = (not x.size or (x.code in spans.after and not _differ(spans.after[x.code], y))
            for x, y in zip(begin, made, strict=False))  # fmt: skip
    return made if steps == 1 or (all(kept) and not spans.torn) else []


def _alike(one: Span, many: Span, steps: int) -> bool:
    """Whether entries follow from what those of the one step do, as many steps later."""
    shape, single = many.shape, one.shape
    along = [axis for axis, n in enumerate(shape[: len(single)]) if n != single[axis]]
    grown = all((single[axis], shape[axis]) == (1, steps) for axis in along)
    if len(single) != len(shape) or len(along) > 1 or not grown:
        return False
    later = _along(shape, along[0]) if along else steps - 1
    return not _differ(one.wide(shape).later(later), many)
