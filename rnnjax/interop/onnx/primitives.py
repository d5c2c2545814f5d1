"""The operators of JAX as operators of ONNX: one table, by which all that a model computes leaves.

A model is traced for any batch and any number of steps, and each equation of its program becomes
nodes. So what is written is what runs here, and a layer needs no writer of its own.
"""

import ast
import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax
from jax.extend.core import Literal, Primitive

from rnnjax.errors import InteropError
from rnnjax.interop.functions import ONNX
from rnnjax.interop.onnx.read import import_onnx

_TYPES = ("float32", "int64", "int32", "int16", "int8", "uint8", "bool")
_EVERYTHING = np.iinfo(np.int64).max  # the end of a slice: as far as there is


class Value(NamedTuple):
    """A value of a program.

    Attributes:
        at: its name in the graph, or the array itself where that is known.
        thin: whether it has axes of size 1 where the program has more, or if it is known none in
            front. Broadcasting makes up for that in most nodes, and an Expand before the others.
    """

    at: Any
    thin: bool = False

    @property
    def known(self) -> bool:
        """Whether it is an array."""
        return not isinstance(self.at, str)


_MARKED = Primitive("onnx")
_MARKED.multiple_results = True
_MARKED.def_abstract_eval(lambda *_, write, avals: avals)


def marked(write: Callable[..., Sequence[Value]], plain: Callable[..., Any], *args: Any) -> Any:
    """What ``plain`` gives of ``args``, to be written by ``write``, which takes their leaves."""
    program, result = jax.make_jaxpr(plain, return_shape=True)(*args)
    made = _MARKED.bind(*jax.tree.leaves(args), write=write, avals=tuple(program.out_avals))
    return jax.tree.unflatten(jax.tree.structure(result), made)


class Writer:
    """The nodes and constants of a graph that is being written.

    Values are known by their names. Those inside of the graph are named after the layer that is
    being written and the operator, as in ``dense/MatMul``.
    """

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
        self._moved: dict[str, tuple[str, tuple[int, ...]]] = {}  # by what a Transpose made
        self._undone: dict[tuple[str, str, tuple[int, ...]], str] = {}  # by what would undo a node

    def add(
        self, op_type: str, *inputs: Any, outputs: Sequence[str] = (), name: str = "", **more: Any
    ) -> str:
        """Write a node with its attributes; the name of its first output. Inputs may be arrays."""
        outputs = outputs or [self.value(op_type)]
        names = [one if isinstance(one, str) else self.constant(one) for one in inputs]
        node = self.onnx.helper.make_node(op_type, names, outputs, name or outputs[0], **more)
        self.nodes.append(node)
        return outputs[0]

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

    def cast(self, x: str, dtype: Any) -> str:
        """An array in another type."""
        return self.add("Cast", x, to=self.type(dtype))

    def claim(self, name: str) -> str:
        """Take a name that is seen from outside."""
        if name in self._taken:
            raise InteropError(f"two values of the graph would be named {name!r}; rename a layer")
        self._taken.add(name)
        return name

    def value(self, name: str) -> str:
        """Make a name for a value inside of the graph, which other layers do not have."""
        base = name = f"{self.scope}/{name}"
        count = 1
        while name in self._taken:
            count += 1
            name = f"{base}_{count}"
        self._taken.add(name)
        return name

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
                with self._at_first():
                    made = self.add("Shape", name, start=axis, end=axis + 1)
                self._sizes[str(size)] = made
        return self.info(name, dtype, sizes)

    @contextlib.contextmanager
    def _at_first(self) -> Iterator[None]:
        outer, self.nodes = self.nodes, self._first
        yield
        self.nodes = outer

    def shape(self, sizes: Sequence[Any]) -> Any:
        """Return the array of some sizes, or its name where some of them are open."""
        if all(isinstance(size, int | np.integer) for size in sizes):
            return np.array(sizes, np.int64)
        with self._at_first():
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

    def full(self, value: Value, shape: Sequence[Any]) -> Any:
        """Return the name of a value, or the array, with all axes of its shape."""
        if not value.thin:
            return value.at
        if value.known and all(isinstance(size, int) for size in shape):
            return np.broadcast_to(value.at, shape)
        return self.add("Expand", value.at, self.shape(shape))

    def transposed(self, x: Any, order: Sequence[int]) -> Any:
        """Put the axes in another order; what puts them back is no node."""
        if not isinstance(x, str):
            return np.transpose(x, order)
        source, before = self._moved.get(x, (x, tuple(range(len(order)))))
        order = tuple(before[axis] for axis in order)
        if order == tuple(range(len(order))):
            return source
        made = self.add("Transpose", source, perm=order)
        self._moved[made] = source, order
        return made

    def with_axes(self, op_type: str, x: Any, axes: Sequence[int]) -> Any:
        """Squeeze or Unsqueeze; what undoes the other is no node."""
        if not axes:
            return x
        if not isinstance(x, str):
            return (np.expand_dims if op_type == "Unsqueeze" else np.squeeze)(x, tuple(axes))
        undoes = {"Squeeze": "Unsqueeze", "Unsqueeze": "Squeeze"}[op_type]
        if (x, op_type, tuple(axes)) not in self._undone:
            made = self.add(op_type, x, np.array(axes, np.int64))
            self._undone[made, undoes, tuple(axes)] = x
            self._undone[x, op_type, tuple(axes)] = made
        return self._undone[x, op_type, tuple(axes)]

    def run(self, program: Any, values: Sequence[Value]) -> list[Value]:
        """Write the equations of a program, and return what it gives."""
        consts = [Value(np.asarray(one)) for one in getattr(program, "consts", ())]
        jaxpr = getattr(program, "jaxpr", program)
        names = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *values], strict=True))

        def read(var: Any) -> Value:
            literal = isinstance(var, Literal)
            return Value(np.asarray(var.val, var.aval.dtype)) if literal else names[var]

        outer = self.scope
        for equation in jaxpr.eqns:
            self.scope = outer or str(equation.source_info.name_stack).partition("/")[0]
            made = self._equation(equation, [read(var) for var in equation.invars])
            names |= zip(equation.outvars, made, strict=True)
        self.scope = outer
        return [read(var) for var in jaxpr.outvars]

    def _equation(self, equation: Any, values: list[Value]) -> Sequence[Value]:
        name, params = equation.primitive.name, equation.params
        ins, outs = ([var.aval for var in some] for some in (equation.invars, equation.outvars))
        inside = params.get("jaxpr", params.get("call_jaxpr"))
        if name in _SAME:
            return values
        if params.get("name") in _FUNCTIONS:
            op_type, numbers = _FUNCTIONS[params["name"]]
            return [Value(self.add(op_type, self.full(values[0], ins[0].shape), **numbers))]
        if inside is not None and name not in PRIMITIVES:
            return self.run(inside, values)
        each = name in ELEMENTWISE
        rank, pairs = len(outs[0].shape), list(zip(values, ins, strict=True))
        thin = each and rank > 0 and all(v.thin for v, a in pairs if len(a.shape) == rank)
        fixed = thin or all(isinstance(size, int) for aval in outs for size in aval.shape)
        if name not in _SEEN and fixed and all(value.known for value in values):
            arrays = [v.at if each else self.full(v, a.shape) for v, a in pairs]
            made = equation.primitive.bind(*(np.broadcast_arrays(*arrays) if each else arrays),
                                           **params)  # fmt: skip
            several = made if equation.primitive.multiple_results else [made]
            return [Value(np.asarray(one), thin) for one in several]
        strange = [aval.dtype for aval in outs if aval.dtype.name not in _TYPES]
        if strange or (name not in ELEMENTWISE and name not in PRIMITIVES):
            what = f"in {strange[0]}" if strange else f"the operator {name!r} of JAX"
            raise InteropError(
                f"layer {self.scope!r} computes {what}, which is not written to ONNX; write the "
                "model by rnnjax.interop.export, or a layer without dtype"
            )
        if each:
            return [Value(ELEMENTWISE[name](self, equation, *(v.at for v in values)), thin)]
        if name in _SEEN:
            return PRIMITIVES[name](self, equation, *values)
        made = PRIMITIVES[name](self, equation, *(self.full(v, a.shape) for v, a in pairs))
        return [Value(one) for one in (made if isinstance(made, list) else [made])]

    def graph(
        self, inputs: Sequence[Any], outputs: Mapping[str, Value], avals: Any, whole: bool = True
    ) -> Any:
        """The graph of the nodes that lead to the outputs; that of a node sees what is around."""
        infos = []
        for (name, value), aval in zip(outputs.items(), avals, strict=True):
            self.add("Identity", self.full(value, aval.shape), outputs=[name])
            infos.append(self.info(name, aval.dtype, aval.shape))
        nodes, wanted = [], set(outputs)
        for node in reversed([*self._first, *self.nodes] if whole else self.nodes):
            if wanted & set(node.output):
                nodes.append(node)
                wanted |= _reads(node)
        held = [one for one in self.constants if whole and one.name in wanted]
        nodes = _by_themselves(nodes[::-1], outputs)
        return self.onnx.helper.make_graph(nodes, "rnnjax", inputs, infos, held)

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Write nodes of a graph in a node, whose values are not seen around it."""
        outer = self.nodes, self._moved, self._undone
        self.nodes, self._moved, self._undone = [], {**self._moved}, {**self._undone}
        yield
        self.nodes, self._moved, self._undone = outer


def _reads(node: Any) -> set[str]:
    """The names that a node reads, and the graphs in it."""
    inside = [one for attribute in node.attribute for one in attribute.g.node]
    return {*node.input}.union(*map(_reads, inside))


def _by_themselves(nodes: Sequence[Any], outputs: Mapping[str, Any]) -> list[Any]:
    """Let nodes give the outputs of a graph by themselves where an Identity does no more."""
    made = {name for node in nodes for name in node.output}
    names: dict[str, str] = {}
    kept = []
    for node in nodes:
        own = node.op_type == "Identity" and node.output[0] in outputs and node.input[0] in made
        if own and node.input[0] not in names:
            names[node.input[0]] = node.output[0]
        else:
            kept.append(node)
    for node in kept:
        _rename(node, names)
    return kept


def _rename(node: Any, names: Mapping[str, str]) -> None:
    node.input[:] = [names.get(name, name) for name in node.input]
    node.output[:] = [names.get(name, name) for name in node.output]
    for attribute in node.attribute:
        for inner in attribute.g.node:
            _rename(inner, names)


def _cast(w: Writer, equation: Any, x: Any) -> Any:
    before, after = (one[0].aval.dtype for one in (equation.invars, equation.outvars))
    return x if before == after else w.cast(x, after)


def _logical(op_type: str) -> Callable[..., Any]:
    def write(w: Writer, equation: Any, *xs: Any) -> Any:
        if equation.outvars[0].aval.dtype != bool:
            raise InteropError(
                f"layer {w.scope!r} computes with the bits of integers; use booleans"
            )
        return w.add(op_type, *xs)

    return write


def _power(w: Writer, equation: Any, x: Any) -> Any:
    return w.add("Pow", x, np.asarray(equation.params["y"], equation.invars[0].aval.dtype))


def _reshape(w: Writer, equation: Any, x: Any) -> Any:
    before, order = equation.invars[0].aval.shape, equation.params["dimensions"]
    if order is not None:
        x, before = w.transposed(x, order), [before[axis] for axis in order]
    return _reshaped(w, x, before, equation.outvars[0].aval.shape)


def _reshaped(w: Writer, x: Any, before: Sequence[Any], after: Sequence[Any]) -> Any:
    """Give an array another shape, in which 0 copies an open size and -1 is what is left."""
    sizes: list[Any] = []
    for i, size in enumerate(after):
        same = not isinstance(size, int) and i < len(before) and before[i] is size
        left = not isinstance(size, int) and -1 not in sizes
        sizes.append(0 if same and 0 not in after else -1 if left else size)
    return w.add("Reshape", x, w.shape(sizes))


def _broadcast(w: Writer, equation: Any, x: Value) -> list[Value]:
    shape, places = (equation.params[name] for name in ("shape", "broadcast_dimensions"))
    new = [axis for axis in range(len(shape)) if axis not in places]
    wider = [axis for axis in new if not isinstance(shape[axis], int) or shape[axis] > 1]
    before = equation.invars[0].aval.shape
    thin = (
        x.thin
        or bool(wider)
        or any(
            before[i] is not shape[axis] and before[i] != shape[axis]
            for i, axis in enumerate(places)
        )
    )
    if x.known and new == [*range(len(new))]:  # which broadcasting puts there, or `full`
        return [Value(x.at, thin or bool(new))]
    if x.known:
        missing = (1,) * (len(before) - x.at.ndim)
        return [Value(np.expand_dims(x.at.reshape(*missing, *x.at.shape), new), thin)]
    return [Value(w.with_axes("Unsqueeze", x.at, new), thin)]


def _slice(w: Writer, equation: Any, x: Any) -> Any:
    names = "start_indices", "limit_indices", "strides"
    starts, ends, steps = (equation.params[name] for name in names)
    shape = equation.invars[0].aval.shape
    steps = steps or (1,) * len(shape)
    axes = [i for i in range(len(shape)) if (starts[i], ends[i], steps[i]) != (0, shape[i], 1)]
    ends = [_EVERYTHING if ends[i] is shape[i] or ends[i] == shape[i] else ends[i] for i in axes]
    return w.add(
        "Slice", x, w.shape([starts[i] for i in axes]), w.shape(ends), w.shape(axes),
        w.shape([steps[i] for i in axes]),
    )  # fmt: skip


def _flipped(w: Writer, x: Any, axes: Sequence[int]) -> Any:
    ends, back = [-_EVERYTHING] * len(axes), [-1] * len(axes)
    return w.add("Slice", x, *map(w.shape, (back, ends, axes, back)))


def _concatenate(w: Writer, equation: Any, *xs: Any) -> Any:
    return w.add("Concat", *xs, axis=equation.params["dimension"])


def _stack(w: Writer, equation: Any, *xs: Any) -> Any:
    axis = equation.params["axis"]
    return w.add("Concat", *(w.with_axes("Unsqueeze", x, [axis]) for x in xs), axis=axis)


def _padded(w: Writer, x: Any, around: Sequence[Any], value: Any) -> Any:
    return w.add("Pad", x, w.shape([pad[i] for i in (0, 1) for pad in around]), value)


def _pad(w: Writer, equation: Any, x: Any, value: Any) -> Any:
    config = equation.params["padding_config"]
    if any(between for *_, between in config):
        raise InteropError(f"layer {w.scope!r} pads between entries, which ONNX does not; leave it")
    return _padded(w, x, config, value)


def _split(w: Writer, equation: Any, x: Any) -> list[str]:
    names = [w.value("Split") for _ in equation.outvars]
    sizes, axis = w.shape(equation.params["sizes"]), equation.params["axis"]
    w.add("Split", x, sizes, outputs=names, axis=axis)
    return names


def _reduction(op_type: str) -> Callable[..., Any]:
    def write(w: Writer, equation: Any, x: Any) -> Any:
        axes, logical = w.shape(equation.params["axes"]), equation.invars[0].aval.dtype == bool
        y = w.add(op_type, w.cast(x, np.int32) if logical else x, axes, keepdims=0)
        return w.cast(y, np.bool_) if logical else y

    return write


def _argmax(w: Writer, equation: Any, x: Any) -> Any:
    (axis,) = equation.params["axes"]
    return w.cast(w.add("ArgMax", x, axis=axis, keepdims=0), equation.params["index_dtype"])


def _cumsum(w: Writer, equation: Any, x: Any) -> Any:
    axis, back = equation.params["axis"], equation.params["reverse"]
    y = w.add("CumSum", _flipped(w, x, [axis]) if back else x, np.array(axis, np.int64))
    return _flipped(w, y, [axis]) if back else y


def _number(w: Writer, size: Any, dtype: Any) -> str:
    """An open size as a number."""
    return w.cast(w.add("Squeeze", w.shape([size]), w.shape([0])), dtype)


def _iota(w: Writer, equation: Any) -> list[Value]:
    p = equation.params
    zero, one, size = np.array(0, p["dtype"]), np.array(1, p["dtype"]), p["shape"][p["dimension"]]
    new = [axis for axis in range(len(p["shape"])) if axis != p["dimension"]]
    if isinstance(size, int):
        return [Value(np.expand_dims(np.arange(size, dtype=p["dtype"]), new), bool(new))]
    steps = w.add("Range", zero, _number(w, size, p["dtype"]), one)
    return [Value(w.with_axes("Unsqueeze", steps, new), bool(new))]


def _dot(w: Writer, equation: Any, x: Any, y: Any) -> Any:
    (cx, cy), (bx, by) = equation.params["dimension_numbers"]
    ranks = [len(var.aval.shape) for var in equation.invars]
    free = [[i for i in range(rank) if i not in (*c, *b)]
            for rank, c, b in zip(ranks, (cx, cy), (bx, by), strict=True)]  # fmt: skip
    if len(cx) == 1 and not bx and len(free[1]) == 1:
        return w.add("MatMul", w.transposed(x, [*free[0], *cx]), w.transposed(y, [*cy, *free[1]]))
    if len(cx) == len(free[0]) == len(free[1]) == 1:
        rows, columns = [*bx, *free[0], *cx], [*by, *cy, *free[1]]
        return w.add("MatMul", w.transposed(x, rows), w.transposed(y, columns))
    letters, used = [chr(ord("a") + i) for i in range(ranks[0])], iter("nopqrstuvwxyz")
    pairs = dict(zip((*by, *cy), (*bx, *cx), strict=True))
    other = [letters[pairs[i]] if i in pairs else next(used) for i in range(ranks[1])]
    made = [letters[i] for i in (*bx, *free[0])] + [other[i] for i in free[1]]
    return w.add("Einsum", x, y, equation=f"{''.join(letters)},{''.join(other)}->{''.join(made)}")


def _around(pads: Sequence[Any]) -> list[int] | None:
    """What is around each axis in the order of ONNX, if it is known and not negative."""
    numbers = [pad[i] for i in (0, 1) for pad in pads]
    return numbers if all(isinstance(n, int | np.integer) and n >= 0 for n in numbers) else None


def _conv(w: Writer, equation: Any, x: Any, kernel: Any) -> Any:
    p = equation.params
    lhs, rhs, out = p["dimension_numbers"]
    if p["batch_group_count"] != 1 or set(p["lhs_dilation"]) != {1}:
        raise InteropError(f"layer {w.scope!r} is a transposed convolution, which is not written")
    x, pads = w.transposed(x, lhs), p["padding"]
    if _around(pads) is None:
        x, pads = _padded(w, x, [(0, 0), (0, 0), *pads], np.float32(0)), [(0, 0)] * len(pads)
    y = w.add(
        "Conv", x, w.transposed(kernel, rhs), strides=p["window_strides"],
        dilations=p["rhs_dilation"], pads=_around(pads), group=p["feature_group_count"],
    )  # fmt: skip
    return w.transposed(y, np.argsort(out).tolist())


def _window(maximum: bool) -> Callable[..., Any]:
    """A pool over the axes that have a window; the others are ONNX's batch and channels."""

    def write(w: Writer, equation: Any, x: Any) -> Any:
        names = "window_dimensions", "window_strides", "padding", "window_dilation"
        every = list(zip(*(equation.params[name] for name in names), strict=True))
        space = [i for i, one in enumerate(every) if one != (1, 1, (0, 0), 1)]
        rest = [i for i in range(len(every)) if i not in space]
        before, after = (var[0].aval.shape for var in (equation.invars, equation.outvars))
        if not space:
            return w.add("Identity", x)
        pads: Sequence[Any]
        sizes, strides, pads, dilations = zip(*(every[i] for i in space), strict=True)
        x, order = w.transposed(x, [*rest, *space]), [*rest, *space]
        if len(rest) != 2:
            flat = [math.prod(before[i] for i in rest), 1, *(before[i] for i in space)]
            x = _reshaped(w, x, [before[i] for i in order], flat)
        if _around(pads) is None:
            filling = np.float32(-np.inf if maximum else 0)
            x, pads = _padded(w, x, [(0, 0), (0, 0), *pads], filling), [(0, 0)] * len(pads)
        more: Any = {} if maximum else {"count_include_pad": 1}
        y = w.add(
            "MaxPool" if maximum else "AveragePool", x, kernel_shape=sizes, strides=strides,
            pads=_around(pads), dilations=dilations, **more,
        )  # fmt: skip
        y = y if maximum else w.add("Mul", y, np.float32(math.prod(sizes)))
        if len(rest) != 2:
            y = _reshaped(w, y, [], [after[i] for i in order])
        return w.transposed(y, np.argsort(order).tolist())

    return write


def _gather(w: Writer, equation: Any, x: Any, ids: Any) -> Any:
    """Rows of ``x`` along one axis, where ids beyond it count as its ends; or one slice of it."""
    p, (shape, those) = equation.params, (var.aval.shape for var in equation.invars)
    numbers, axes = p["dimension_numbers"], [*p["dimension_numbers"].start_index_map]
    away, count = [*numbers.collapsed_slice_dims], len(those) - 1
    certain = p["mode"] == lax.GatherScatterMode.PROMISE_IN_BOUNDS or not isinstance(ids, str)
    if not count and certain and not numbers.operand_batching_dims:
        starts = np.asarray(ids, np.int64) if not isinstance(ids, str) else w.cast(ids, np.int64)
        sizes = w.shape([p["slice_sizes"][axis] for axis in axes])
        part = w.add("Slice", x, starts, w.add("Add", starts, sizes), w.shape(axes))
        return w.with_axes("Squeeze", part, away)
    rest = [i for i in range(len(shape)) if i not in axes]
    whole = all(str(shape[i]) == str(p["slice_sizes"][i]) for i in rest)
    clipped = p["mode"] == lax.GatherScatterMode.CLIP and isinstance(shape[axes[0]], int)
    if (
        numbers.operand_batching_dims
        or away != axes
        or not whole
        or not (certain or (clipped and len(axes) == 1))
    ):
        raise InteropError(f"layer {w.scope!r} gathers in a way that is not written to ONNX")
    axis, kind, place = axes[0], equation.invars[1].aval.dtype, axes[0]
    if len(axes) == 1:
        ids = w.with_axes("Squeeze", ids, [count])
        if not certain:
            ids = w.add("Clip", ids, np.array(0, kind), np.array(shape[axis] - 1, kind))
        rows = w.add("Gather", x, ids, axis=axis)
    else:
        wide = w.cast(ids, np.int64) if isinstance(ids, str) else np.asarray(ids, np.int64)
        rows, place = w.add("GatherND", w.transposed(x, [*axes, *rest]), wide), 0
    rank = count + len(rest)
    made = [*range(place, place + count)]  # the axes of the ids in what was gathered
    order = np.empty(rank, int)
    order[[i for i in range(rank) if i not in numbers.offset_dims]] = made
    order[[*numbers.offset_dims]] = [i for i in range(rank) if i not in made]
    return w.transposed(rows, order.tolist())


def _scan(w: Writer, equation: Any, *values: Value) -> list[Value]:
    p, program = equation.params, equation.params["jaxpr"]
    consts, states = p["num_consts"], p["num_consts"] + p["num_carry"]
    avals = [var.aval for var in equation.invars]
    begin = [w.full(v, a.shape) for v, a in zip(values[consts:], avals[consts:], strict=True)]
    if p["reverse"]:
        begin[p["num_carry"] :] = [_flipped(w, x, [0]) for x in begin[p["num_carry"] :]]
    within = [var.aval for var in program.jaxpr.invars[consts:]]
    names = [w.value("state" if i < p["num_carry"] else "step") for i in range(len(within))]
    infos = [w.info(name, a.dtype, a.shape) for name, a in zip(names, within, strict=True)]
    if states == len(values):  # Scan goes along something
        length = w.shape([p["length"]])
        begin.append(w.add("ConstantOfShape", length))
        infos.append(w.info(w.value("step"), np.float32, []))
    with w.inside():
        made = w.run(program, [*values[:consts], *map(Value, names)])
        ends = {w.value("made"): one for one in made}
        body = w.graph(infos, ends, [var.aval for var in program.jaxpr.outvars], whole=False)
    ys = [w.value("Scan") for _ in made]
    scanned = len(begin) - p["num_carry"]
    w.add("Scan", *begin, outputs=ys, body=body, num_scan_inputs=scanned)
    if p["reverse"]:
        ys[p["num_carry"] :] = [_flipped(w, y, [0]) for y in ys[p["num_carry"] :]]
    return [Value(y) for y in ys]


def _by_mark(w: Writer, equation: Any, *values: Value) -> Sequence[Value]:
    """Nodes of their own, which see zeros as such."""
    pairs = zip(values, (var.aval.shape for var in equation.invars), strict=True)
    whole = [v if v.known and not v.at.any() else Value(w.full(v, shape)) for v, shape in pairs]
    return equation.params["write"](w, *whole)


def _one(op_type: str, **attributes: Any) -> Callable[..., Any]:
    return lambda w, equation, *xs: w.add(op_type, *xs, **attributes)


_F1 = np.float32(1)

# Each entry of what they give follows from the entries at its place: inputs may be thin.
ELEMENTWISE: Mapping[str, Callable[..., Any]] = {
    **{name: _one(name.capitalize()) for name in (
        "abs", "ceil", "cos", "erf", "exp", "floor", "log", "neg", "sign", "sin", "sqrt", "tanh",
        "add", "div", "max", "min", "mul", "pow", "sub")},
    "logistic": _one("Sigmoid"), "eq": _one("Equal"), "gt": _one("Greater"), "lt": _one("Less"),
    "ge": _one("GreaterOrEqual"), "le": _one("LessOrEqual"), "rem": _one("Mod", fmod=1),
    "and": _logical("And"), "or": _logical("Or"), "xor": _logical("Xor"), "not": _logical("Not"),
    "ne": lambda w, _, x, y: w.add("Not", w.add("Equal", x, y)),
    "square": lambda w, _, x: w.add("Mul", x, x),
    "rsqrt": lambda w, _, x: w.add("Reciprocal", w.add("Sqrt", x)),
    "expm1": lambda w, _, x: w.add("Sub", w.add("Exp", x), _F1),
    "log1p": lambda w, _, x: w.add("Log", w.add("Add", x, _F1)),
    "select_n": lambda w, _, where, x, y: w.add("Where", where, y, x),
    "clamp": lambda w, _, low, x, high: w.add("Min", w.add("Max", low, x), high),
    "round": _one("Round"), "integer_pow": _power, "convert_element_type": _cast,
}  # fmt: skip

PRIMITIVES: Mapping[str, Callable[..., Any]] = {
    "reshape": _reshape, "broadcast_in_dim": _broadcast, "slice": _slice, "pad": _pad,
    "transpose": lambda w, e, x: w.transposed(x, e.params["permutation"]),
    "squeeze": lambda w, e, x: w.with_axes("Squeeze", x, e.params["dimensions"]),
    "rev": lambda w, e, x: _flipped(w, x, e.params["dimensions"]),
    "concatenate": _concatenate, "split": _split, "argmax": _argmax, "cumsum": _cumsum,
    "stack": _stack,
    "reduce_sum": _reduction("ReduceSum"), "reduce_prod": _reduction("ReduceProd"),
    "reduce_max": _reduction("ReduceMax"), "reduce_min": _reduction("ReduceMin"),
    "reduce_or": _reduction("ReduceMax"), "reduce_and": _reduction("ReduceMin"),
    "dim_as_value": lambda w, e: [Value(_number(w, e.params["dim"], e.outvars[0].aval.dtype))],
    "iota": _iota, "dot_general": _dot, "conv_general_dilated": _conv, "gather": _gather,
    "reduce_window_max": _window(True), "reduce_window_sum": _window(False), "scan": _scan,
    "onnx": _by_mark,
}  # fmt: skip
"""By the name of an operator of JAX, what writes its nodes."""

_FUNCTIONS = {f"rnnjax.{name}": one for name, one in ONNX.items() if name != "linear"}
"""By the name of a program, the operator that it is, and its attributes."""
_SEEN = {"broadcast_in_dim", "scan", "onnx", "dim_as_value", "iota"}  # that take a `Value` each
_SAME = {"stop_gradient", "optimization_barrier", "name", "copy", "copy_p", "pvary", "pcast",
         "sharding_constraint"}  # fmt: skip
