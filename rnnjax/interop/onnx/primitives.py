"""The operators of JAX as operators of ONNX: one table, by which all that a model computes leaves.

A model is traced for any batch and any number of steps, and each equation of its program becomes
nodes. So what is written is what runs here, and a layer needs no writer of its own.
"""

import ast
import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive

from rnnjax.errors import InteropError
from rnnjax.interop.functions import operator_of
from rnnjax.interop.jaxprs import ENTRYWISE, OTHERS, Walker, scan_sizes
from rnnjax.interop.onnx.read import import_onnx

_TYPES = ("float32", "int64", "int32", "int16", "int8", "uint8", "bool")
_LOGICAL = "and", "or", "xor", "not"
_EVERYTHING = np.iinfo(np.int64).max  # the end of a slice: as far as there is


Value = str | np.ndarray
"""A value of a program: its name in the graph, or the array itself where that is known."""

_MARKED = Primitive("onnx")
_MARKED.multiple_results = True
_MARKED.def_abstract_eval(lambda *_, write, avals: avals)


def marked(write: Callable[..., Sequence[Value]], plain: Callable[..., Any], *args: Any) -> Any:
    """What ``plain`` gives of ``args``, to be written by ``write``, which takes their leaves."""
    program, result = jax.make_jaxpr(plain, return_shape=True)(*args)
    made = _MARKED.bind(*jax.tree.leaves(args), write=write, avals=tuple(program.out_avals))
    return jax.tree.unflatten(jax.tree.structure(result), made)


def _log1p(p: Any, x: Any) -> Any:
    """``log(1 + x)``, where ``u = 1 + x`` is rounded: ``log(u) x / (u - 1)`` makes up for that."""
    log = jnp.log(u := 1 + x)
    return jnp.where(x < 1, jnp.where(u == 1, x, log * (x / (u - 1))), log)


def _round(p: Any, x: Any) -> Any:
    """To the nearest whole number; of two to the even one, as ONNX has it, or away from 0."""
    near = lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN)
    between = not int(p["rounding_method"]) and abs(x - near) == 0.5
    return None if between is False else jnp.where(between, x + 0.5 * jnp.sign(x), near)


RULES: Mapping[str, Callable[..., Any]] = {
    **OTHERS,
    "cumsum": lambda p, x: None if not p["reverse"] else jnp.flip(
        lax.cumsum(jnp.flip(x, p["axis"]), p["axis"]), p["axis"]),
    "erfc": lambda p, x: 1 - lax.erf(x),
    "exp2": lambda p, x: lax.pow(lax.full_like(x, 2), x),
    # exp(x) - 1 = tanh(x / 2) (exp(x) + 1), which keeps its digits where x is small.
    "expm1": lambda p, x: jnp.tanh(x / 2) * (jnp.exp(x) + 1),
    "is_finite": lambda p, x: x - x == 0,
    "log1p": _log1p,
    "log2": lambda p, x: jnp.log(x) / math.log(2),
    "ne": lambda p, x, y: ~lax.eq(x, y),
    "round": _round,
    "square": lambda p, x: x * x,
}  # fmt: skip
"""By an operation what it is in terms of others; None where ONNX has it."""


class Writer(Walker):
    """The nodes and constants of a graph that is being written.

    Values are known by their names. Those inside of the graph are named after the layer that is
    being written and the operator, as in ``dense/MatMul``.
    """

    unknown = str
    rules = RULES

    def __init__(self) -> None:
        self.onnx = import_onnx()
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.scope = ""  # the name of the layer
        self.labels: set[str] = set()  # the names of recurrent nodes
        self.called: dict[int, str] = {}  # the names of parameters, by their identities
        self._first: list[Any] = []  # nodes that compute sizes, which graphs in nodes see too
        self._taken: set[str] = set()
        self._sizes: dict[str, Any] = {}  # by the text of an open size, where it stands
        self._kept: dict[int, tuple[Any, str]] = {}  # the constants by their identities
        self._views: dict[Any, str] = {}  # by what would make them again, or would undo a node
        self._thin: dict[str, Value] = {}  # by what an Expand made, what it was made of

    def add(
        self, op_type: str, *inputs: Any, outputs: Sequence[str] = (), name: str = "", **more: Any
    ) -> Any:
        """Write a node with its attributes; the name of its output, or the outputs that are given.

        Inputs may be arrays.
        """
        given, outputs = outputs, outputs or [self.value(op_type)]
        names = [one if isinstance(one, str) else self.constant(one) for one in inputs]
        node = self.onnx.helper.make_node(op_type, names, outputs, name or outputs[0], **more)
        self.nodes.append(node)
        return given or outputs[0]

    def constant(self, array: Any, name: str = "constant") -> str:
        """Write an array that is part of the model, once; its name."""
        if id(array) not in self._kept:
            there = self.value(self.called.get(id(array), name))
            self.constants.append(self.onnx.numpy_helper.from_array(np.asarray(array), there))
            self._kept[id(array)] = array, there
        return self._kept[id(array)][1]

    def type(self, dtype: Any) -> int:
        """ONNX's number of a type."""
        return int(self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def cast(self, x: Value, dtype: Any) -> Any:
        """An array in another type."""
        known = not isinstance(x, str)
        return np.asarray(x, dtype) if known else self.add("Cast", x, to=self.type(dtype))

    def claim(self, name: str) -> str:
        """Take a name that is seen from outside."""
        if name in self._taken:
            raise InteropError(f"two values of the graph would be named {name!r}; rename a layer")
        self._taken.add(name)
        return name

    def value(self, name: str) -> str:
        """Make a name for a value inside of the graph, which other layers do not have."""
        base = f"{self.scope}/{name}"
        names = itertools.chain([base], (f"{base}_{i}" for i in itertools.count(2)))
        return self.claim(next(one for one in names if one not in self._taken))

    def info(self, name: str, dtype: Any, sizes: Sequence[Any]) -> Any:
        """Describe a value; the axes of its open sizes have their names if these are plain."""
        texts = [n if isinstance(n, int) else str(n) for n in sizes]
        axes = [None if isinstance(n, str) and not n.isidentifier() else n for n in texts]
        return self.onnx.helper.make_tensor_value_info(name, self.type(dtype), axes)

    def add_input(self, name: str, dtype: Any, sizes: Sequence[Any]) -> Any:
        """Declare an input of the graph, by whose shape open sizes are known."""
        self.claim(name)
        for axis, size in enumerate(sizes):
            if not isinstance(size, int) and str(size) not in self._sizes:
                with self.set(nodes=self._first):
                    made = self.add("Shape", name, start=axis, end=axis + 1)
                self._sizes[str(size)] = made
        return self.info(name, dtype, sizes)

    def shape(self, sizes: Sequence[Any]) -> Any:
        """Return the array of some sizes, or its name where some of them are open."""
        if all(isinstance(size, int | np.integer) for size in sizes):
            return np.array(sizes, np.int64)
        with self.set(nodes=self._first):
            parts = [self._size(ast.parse(str(size), mode="eval").body) for size in sizes]
            return self.add("Concat", *parts, axis=0) if len(parts) > 1 else parts[0]

    def _size(self, node: Any) -> Any:
        """A size as its text says, such as ``floordiv(time, 2) + 1``, by those of the inputs."""
        text = ast.unparse(node)
        if isinstance(node, ast.Constant):
            return np.array([node.value], np.int64)
        if text not in self._sizes:
            if isinstance(node, ast.UnaryOp):
                made = self.add("Neg", self._size(node.operand))
            elif isinstance(node, ast.BinOp):
                name = {ast.Add: "Add", ast.Sub: "Sub", ast.Mult: "Mul"}[type(node.op)]
                made = self.add(name, self._size(node.left), self._size(node.right))
            else:
                a, b = map(self._size, node.args)
                if node.func.id == "floordiv":  # whereas Div cuts off
                    made = self.add("Div", self.add("Sub", a, self.add("Mod", a, b)), b)
                else:
                    made = self.add(node.func.id.capitalize(), a, b)
            self._sizes[text] = made
        return self._sizes[text]

    def expanded(self, x: Value, shape: Sequence[Any]) -> str:
        """Put an array into a wider shape; nodes that broadcast take what it was before."""
        (before,) = self.before([x])
        made = self.add("Expand", before, self.shape(shape))
        self._thin[made] = before
        return made

    def before(self, values: Sequence[Value]) -> list[Value]:
        """Values before an Expand, and parameters before axes that broadcasting puts in front."""
        return [self._thin.get(x, x) if isinstance(x, str) else self._named(x) for x in values]

    def _named(self, x: Any) -> Any:
        base: Any = getattr(x, "base", None)  # of what expand_dims made
        if id(base) not in self.called:
            return x
        inner = x.shape[-base.ndim :], x.strides[-base.ndim :]  # a transpose has other strides
        return base if inner == (base.shape, base.strides) else x

    def view(self, op_type: str, x: Any, by: Sequence[int]) -> Any:
        """Transpose, Squeeze or Unsqueeze; what undoes another one is no node."""
        by, turns, (plain, back) = tuple(by), op_type == "Transpose", _VIEWS[op_type]
        if not by or (turns and by == tuple(range(len(by)))):
            return x
        if not isinstance(x, str):
            return plain(x, by)
        if (x, op_type, by) not in self._views:
            more: dict[str, Any] = {"perm": by} if turns else {}
            made = self.add(op_type, x, *([] if turns else [np.array(by)]), **more)
            undo = tuple(np.argsort(by).tolist()) if turns else by
            self._views |= {(x, op_type, by): made, (made, back, undo): x}
        return self._views[x, op_type, by]

    def made(self, equation: Any, given: list[Value]) -> Sequence[Value]:
        """Write an equation in the scope of its layer; some calls of ours are one operator."""
        known = operator_of(equation.params.get("name"))
        with self.set(scope=self.scope or str(equation.source_info.name_stack).partition("/")[0]):
            return (
                [self.add(known[0], *given, **known[1])] if known else super().made(equation, given)
            )

    def computes(self, equation: Any) -> bool:
        """Whether no size is open, and JAX computes it here."""
        sizes = (size for var in equation.outvars for size in var.aval.shape)
        return equation.primitive.name not in _SEEN and all(isinstance(n, int) for n in sizes)

    def result(self, equation: Any, given: list[Value]) -> Any:
        """Write an operation."""
        name = equation.primitive.name
        ins, outs = ([var.aval for var in some] for some in (equation.invars, equation.outvars))
        if (ruled := self.ruled(equation, given)) is not None:
            return ruled
        strange = [aval.dtype for aval in outs if aval.dtype.name not in _TYPES]
        if strange or name not in PRIMITIVES:
            what = f"in {strange[0]}" if strange else f"the operator {name!r} of JAX"
            raise InteropError(
                f"layer {self.scope!r} computes {what}, which is not written to ONNX; write the "
                "model by rnnjax.interop.export, or a layer without dtype"
            )
        if name in _LOGICAL and outs[0].dtype != bool:
            raise InteropError(
                f"layer {self.scope!r} computes with the bits of integers; use booleans"
            )
        before = self.before(given)
        whole = (v is b and a.shape for v, b, a in zip(given, before, ins, strict=True))
        # Nodes of ONNX broadcast the others.
        wide = name in ENTRYWISE and any(whole)
        return PRIMITIVES[name](self, equation, *(before if wide else given))

    def graph(
        self, inputs: Sequence[Any], outputs: Mapping[str, Value], avals: Any, whole: bool = True
    ) -> Any:
        """The graph of the nodes that lead to the outputs; that of a node sees what is around."""
        first, infos, names = self._first if whole else [], [], dict[str, str]()
        made = {name for node in (*first, *self.nodes) for name in node.output}
        for (name, value), aval in zip(outputs.items(), avals, strict=True):
            if isinstance(value, str) and value in made and value not in names:
                names[value] = name  # its node gives the output by itself
            else:
                self.add("Identity", value, outputs=[name])
            infos.append(self.info(name, aval.dtype, aval.shape))
        nodes, wanted = list[Any](), {*outputs, *names}
        for node in reversed([*first, *self.nodes]):
            if wanted & set(node.output):
                nodes.insert(0, node)
                wanted |= {name for one in _every([node]) for name in one.input}
        for node in _every(nodes):
            for ends in (node.input, node.output):
                ends[:] = [names.get(name, name) for name in ends]
        held = [one for one in self.constants if whole and one.name in wanted]
        return self.onnx.helper.make_graph(nodes, "rnnjax", inputs, infos, held)

    @contextlib.contextmanager
    def set(self, **attributes: Any) -> Iterator[None]:
        """Write with other attributes, and then go on with those before."""
        outer = {name: getattr(self, name) for name in attributes}
        vars(self).update(attributes)
        yield
        vars(self).update(outer)


_VIEWS: Mapping[str, tuple[Callable[..., Any], str]] = {
    "Transpose": (np.transpose, "Transpose"),
    "Squeeze": (np.squeeze, "Unsqueeze"),
    "Unsqueeze": (np.expand_dims, "Squeeze"),
}
"""By its name, what an operator does to an array, and what undoes it."""


def _every(nodes: Iterable[Any]) -> Iterator[Any]:
    """The nodes, and those of the graphs in them."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            yield from _every(attribute.g.node)


def _reshape(w: Writer, equation: Any, x: Any) -> Any:
    """Give an array another shape, in which 0 copies an open size and -1 is what is left."""
    before, order = equation.invars[0].aval.shape, equation.params["dimensions"]
    after = equation.outvars[0].aval.shape
    if order is not None:
        x, before = w.view("Transpose", x, order), [before[axis] for axis in order]
    if 0 in after:  # a size by itself
        return w.add("Reshape", x, w.shape(after), allowzero=1)
    sizes: list[Any] = []
    for i, size in enumerate(after):
        same = not isinstance(size, int) and i < len(before) and before[i] is size
        left = not isinstance(size, int) and -1 not in sizes
        sizes.append(0 if same else -1 if left else size)
    return w.add("Reshape", x, w.shape(sizes))


def _broadcast(w: Writer, equation: Any, x: Any) -> Any:
    shape, places = (equation.params[name] for name in ("shape", "broadcast_dimensions"))
    y = w.view("Unsqueeze", x, [axis for axis in range(len(shape)) if axis not in places])
    before = dict(zip(places, equation.invars[0].aval.shape, strict=True))
    sizes = [before.get(axis, 1) for axis in range(len(shape))]
    if all(a is b or a == b for a, b in zip(sizes, shape, strict=True)):
        return y
    known = not isinstance(y, str) and all(isinstance(size, int) for size in shape)
    return np.broadcast_to(y, shape) if known else w.expanded(y, shape)


def _slice(w: Writer, equation: Any, x: Any) -> Any:
    p, shape = equation.params, equation.invars[0].aval.shape
    steps = p["strides"] or (1,) * len(shape)
    each = zip(p["start_indices"], p["limit_indices"], range(len(shape)), steps, strict=True)
    ways = [
        (start, _EVERYTHING if end is shape[axis] or end == shape[axis] else end, axis, step)
        for start, end, axis, step in each
        if (start, end, step) != (0, shape[axis], 1)
    ]
    return w.add("Slice", x, *map(w.shape, zip(*ways, strict=True))) if ways else x


def _flipped(w: Writer, x: Any, axes: Sequence[int]) -> Any:
    ends, back = [-_EVERYTHING] * len(axes), [-1] * len(axes)
    return w.add("Slice", x, *map(w.shape, (back, ends, axes, back)))


def _padded(w: Writer, x: Any, around: Sequence[Any], value: Any) -> Any:
    return w.add("Pad", x, w.shape([pad[i] for i in (0, 1) for pad in around]), value)


def _pad(w: Writer, equation: Any, x: Any, value: Any) -> Any:
    config = equation.params["padding_config"]
    if any(between for *_, between in config):
        raise InteropError(f"layer {w.scope!r} pads between entries, which ONNX does not; leave it")
    return _padded(w, x, config, value)


def _number(w: Writer, size: Any, dtype: Any) -> str:
    """An open size as a number."""
    return w.cast(w.add("Squeeze", w.shape([size]), w.shape([0])), dtype)


def _iota(w: Writer, equation: Any) -> Any:
    shape, along, dtype = (equation.params[key] for key in ("shape", "dimension", "dtype"))
    steps: Value
    if isinstance(shape[along], int):
        steps = np.arange(shape[along], dtype=dtype)
    else:
        zero, one = np.array(0, dtype), np.array(1, dtype)
        steps = w.add("Range", zero, _number(w, shape[along], dtype), one)
    new = [axis for axis in range(len(shape)) if axis != along]
    steps = w.view("Unsqueeze", steps, new)
    return w.expanded(steps, shape) if new else steps


def _dot(w: Writer, equation: Any, x: Any, y: Any) -> Any:
    (cx, cy), (bx, by) = equation.params["dimension_numbers"]
    ranks = [len(var.aval.shape) for var in equation.invars]
    free = [[i for i in range(rank) if i not in (*c, *b)]
            for rank, c, b in zip(ranks, (cx, cy), (bx, by), strict=True)]  # fmt: skip
    if len(cx) == len(free[1]) == 1 and (not bx or len(free[0]) == 1):
        rows, columns = [*bx, *free[0], *cx], [*by, *cy, *free[1]]
        return w.add("MatMul", w.view("Transpose", x, rows), w.view("Transpose", y, columns))
    letters, used = [chr(ord("a") + i) for i in range(ranks[0])], iter("nopqrstuvwxyz")
    pairs = dict(zip((*by, *cy), (*bx, *cx), strict=True))
    other = [letters[pairs[i]] if i in pairs else next(used) for i in range(ranks[1])]
    made = [letters[i] for i in (*bx, *free[0])] + [other[i] for i in free[1]]
    return w.add("Einsum", x, y, equation=f"{''.join(letters)},{''.join(other)}->{''.join(made)}")


def _surrounded(w: Writer, x: Any, pads: Sequence[Any], value: Any) -> tuple[Any, Sequence[Any]]:
    """An array, and what ONNX puts around its axes of space; a Pad does what it does not."""
    numbers = [pad[i] for i in (0, 1) for pad in pads]
    if all(isinstance(n, int | np.integer) and n >= 0 for n in numbers):
        return x, numbers
    return _padded(w, x, [(0, 0), (0, 0), *pads], value), [0] * len(numbers)


def _conv(w: Writer, equation: Any, x: Any, kernel: Any) -> Any:
    p = equation.params
    lhs, rhs, out = p["dimension_numbers"]
    if p["batch_group_count"] != 1 or set(p["lhs_dilation"]) != {1}:
        raise InteropError(f"layer {w.scope!r} is a transposed convolution, which is not written")
    x, pads = _surrounded(w, w.view("Transpose", x, lhs), p["padding"], np.float32(0))
    y = w.add(
        "Conv", x, w.view("Transpose", kernel, rhs), strides=p["window_strides"],
        dilations=p["rhs_dilation"], pads=pads, group=p["feature_group_count"],
    )  # fmt: skip
    return w.view("Transpose", y, np.argsort(out).tolist())


def _window(w: Writer, equation: Any, x: Any) -> Any:
    """A pool whose batch and channels are two axes without a window, or new ones."""
    maximum = equation.primitive.name == "reduce_window_max"
    names = "window_dimensions", "window_strides", "padding", "window_dilation"
    every = list(zip(*(equation.params[name] for name in names), strict=True))
    still = [i for i, one in enumerate(every) if one == (1, 1, (0, 0), 1)]
    still = still[: min(2, len(every) - 1)]
    space = [i for i in range(len(every)) if i not in still]
    order, new = [*still, *space], [*range(2 - len(still))]
    x = w.view("Unsqueeze", w.view("Transpose", x, order), new)
    sizes, strides, around, dilations = zip(*(every[i] for i in space), strict=True)
    x, pads = _surrounded(w, x, around, np.float32(-np.inf if maximum else 0))
    more: Any = {"kernel_shape": sizes, "strides": strides, "pads": pads, "dilations": dilations}
    if maximum:
        y = w.add("MaxPool", x, **more)
    else:
        mean = w.add("AveragePool", x, **more, count_include_pad=1)
        y = w.add("Mul", mean, np.float32(math.prod(sizes)))
    return w.view("Transpose", w.view("Squeeze", y, new), np.argsort(order).tolist())


def _gather(w: Writer, equation: Any, x: Any, ids: Any) -> Any:
    """Slices of ``x`` at ids, of which there may be some for each entry of a batch of both.

    Ids beyond an axis are its ends, or filled. One slice, of a length, is a Slice.
    """
    p, (shape, those) = equation.params, (var.aval.shape for var in equation.invars)
    numbers, count = p["dimension_numbers"], len(those) - 1
    batch, along = [*numbers.operand_batching_dims], [*numbers.start_index_map]
    certain = p["mode"] == lax.GatherScatterMode.PROMISE_IN_BOUNDS or not isinstance(ids, str)
    away = [*numbers.collapsed_slice_dims]
    if not count and certain and not batch:
        starts, sizes = w.cast(ids, np.int64), w.shape([p["slice_sizes"][axis] for axis in along])
        part = w.add("Slice", x, starts, w.add("Add", starts, sizes), w.shape(along))
        return w.view("Squeeze", part, away)
    rest = [i for i in range(len(shape)) if i not in (*batch, *along)]
    whole = away == along and all(str(shape[i]) == str(p["slice_sizes"][i]) for i in rest)
    filled = not certain and p["mode"] == lax.GatherScatterMode.FILL_OR_DROP
    floats = not filled or equation.invars[0].aval.dtype == np.float32
    if not whole or not floats or not (certain or len(along) == 1):
        raise InteropError(f"layer {w.scope!r} gathers in a way that is not written to ONNX")
    theirs = [*numbers.start_indices_batching_dims]
    first = [*theirs, *(i for i in range(count) if i not in theirs)]
    ids = there = w.view("Transpose", ids, [*first, count])
    alone = len(along) == 1 and not batch
    if not certain or not alone:
        ids = there = w.cast(ids, np.int64)
    if not certain:
        end = w.add("Sub", w.shape([shape[along[0]]]), np.array([1]))
        there = w.add("Max", w.add("Min", ids, end), np.array([0]))
    if alone:
        rows, place = w.add("Gather", x, w.view("Squeeze", there, [count]), axis=along[0]), along[0]
    else:
        turned = w.view("Transpose", x, [*batch, *along, *rest])
        rows, place = w.add("GatherND", turned, there, batch_dims=len(batch)), 0
    if filled:
        inside = w.view("Squeeze", w.add("Equal", there, ids), [count])
        inside = w.view("Unsqueeze", inside, range(count, count + len(rest) - place))
        fill = np.nan if p["fill_value"] is None else p["fill_value"]
        rows = w.add("Where", inside, rows, np.float32(fill))
    return _placed(w, equation, rows, [place + first.index(i) for i in range(count)])


def _placed(w: Writer, equation: Any, rows: Any, made: Sequence[int]) -> Any:
    """What was gathered, with the axes where JAX has them; ``made`` are those of the ids."""
    offsets = equation.params["dimension_numbers"].offset_dims
    rank = len(made) + len(offsets)
    order = np.empty(rank, int)
    order[[i for i in range(rank) if i not in offsets]] = made
    order[[*offsets]] = [i for i in range(rank) if i not in made]
    return w.view("Transpose", rows, order.tolist())


def _scan(w: Writer, equation: Any, *values: Value) -> list[str]:
    p, program = equation.params, equation.params["jaxpr"]
    consts, carried = scan_sizes(equation)
    states = consts + carried
    begin: list[Any] = [*values[consts:]]
    if p["reverse"]:
        begin[carried:] = [_flipped(w, x, [0]) for x in begin[carried:]]
    within = [var.aval for var in program.jaxpr.invars[consts:]]
    names = [w.value("state" if i < carried else "step") for i in range(len(within))]
    infos = [w.info(name, a.dtype, a.shape) for name, a in zip(names, within, strict=True)]
    if states == len(values):  # Scan goes along something
        begin.append(w.add("ConstantOfShape", w.shape([p["length"]])))
        infos.append(w.info(w.value("step"), np.float32, []))
    # Values of a graph in a node are not seen around it.
    with w.set(nodes=[], _views={**w._views}, _thin={**w._thin}):
        made = w.run(program, [*values[:consts], *names])
        ends = {w.value("made"): one for one in made}
        body = w.graph(infos, ends, [var.aval for var in program.jaxpr.outvars], whole=False)
    outputs, count = [w.value("Scan") for _ in made], len(begin) - carried
    ys: list[str] = w.add("Scan", *begin, outputs=outputs, body=body, num_scan_inputs=count)
    if p["reverse"]:
        ys[carried:] = [_flipped(w, y, [0]) for y in ys[carried:]]
    return ys


def _by_mark(w: Writer, equation: Any, *values: Value) -> Sequence[Value]:
    """Nodes of their own, which see zeros as such."""
    pairs = zip(values, w.before(values), strict=True)
    seen = (v if isinstance(b, str) or b.any() else b for v, b in pairs)
    return [*equation.params["write"](w, *seen)]


def _one(op_type: str, **attributes: Any) -> Callable[..., Any]:
    return lambda w, equation, *xs: w.add(op_type, *xs, **attributes)


PRIMITIVES: Mapping[str, Callable[..., Any]] = {
    **{name: _one(name.capitalize()) for name in (
        "abs", "acos", "acosh", "asin", "asinh", "atan", "atanh", "ceil", "cos", "cosh", "erf",
        "exp", "floor", "log", "neg", "sign", "sin", "sinh", "sqrt", "tan", "tanh",
        "add", "div", "max", "min", "mul", "pow", "sub", *_LOGICAL)},
    "logistic": _one("Sigmoid"), "eq": _one("Equal"), "gt": _one("Greater"), "lt": _one("Less"),
    "ge": _one("GreaterOrEqual"), "le": _one("LessOrEqual"), "rem": _one("Mod", fmod=1),
    "round": _one("Round"), "select_n": lambda w, _, which, *xs: w.add("Where", which, *xs[::-1]),
    "integer_pow": lambda w, e, x: w.add(
        "Pow", x, np.asarray(e.params["y"], e.invars[0].aval.dtype)),
    "convert_element_type": lambda w, e, x: (
        x if e.invars[0].aval.dtype == e.params["new_dtype"] else w.cast(x, e.params["new_dtype"])),
    "reshape": _reshape, "broadcast_in_dim": _broadcast, "slice": _slice, "pad": _pad,
    "transpose": lambda w, e, x: w.view("Transpose", x, e.params["permutation"]),
    "tile": lambda w, e, x: w.add("Tile", x, w.shape(e.params["reps"])),
    "squeeze": lambda w, e, x: w.view("Squeeze", x, e.params["dimensions"]),
    "rev": lambda w, e, x: _flipped(w, x, e.params["dimensions"]),
    "concatenate": lambda w, e, *xs: w.add("Concat", *xs, axis=e.params["dimension"]),
    "split": lambda w, e, x: w.add("Split", x, w.shape(e.params["sizes"]), axis=e.params["axis"],
                                   outputs=[w.value("Split") for _ in e.outvars]),
    "argmax": lambda w, e, x: w.cast(w.add(
        "ArgMax", w.cast(x, np.int32) if e.invars[0].aval.dtype == bool else x,
        axis=e.params["axes"][0], keepdims=0), e.params["index_dtype"]),
    "cumsum": lambda w, e, x: w.add("CumSum", x, np.array(e.params["axis"], np.int64)),
    # Those of booleans are of opset 20 on.
    **{f"reduce_{name}": lambda w, e, x, kind=kind: w.add(
        f"Reduce{kind}", x, w.shape(e.params["axes"]), keepdims=0) for name, kind in (
        {"sum": "Sum", "prod": "Prod", "max": "Max", "min": "Min", "or": "Max", "and": "Min"}
    ).items()},
    "dim_as_value": lambda w, e: _number(w, e.params["dim"], e.outvars[0].aval.dtype),
    "iota": _iota, "dot_general": _dot, "conv_general_dilated": _conv, "gather": _gather,
    "reduce_window_max": _window, "reduce_window_sum": _window, "scan": _scan,
    "onnx": _by_mark,
}  # fmt: skip
"""By the name of an operator of JAX, what writes its nodes."""

_SEEN = {"onnx", "dim_as_value", "broadcast_in_dim"}  # which JAX does not compute here
