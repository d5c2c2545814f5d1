"""A step of a cell, or of a model, as a program with a state that C can hold."""

import re
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.cells.base import Cell, Params
from rnnjax.cells.onehot import Beside
from rnnjax.checks import check_size
from rnnjax.engine import Scan
from rnnjax.errors import InteropError, InvalidInputError
from rnnjax.interop import arrays
from rnnjax.interop.c.forms import FORMS, kind_of
from rnnjax.interop.c.lowering import Lowering
from rnnjax.interop.layers import Context, Recurrent, describe_cell
from rnnjax.interop.model import Functional, Model
from rnnjax.interop.onnx.graph import Graph
from rnnjax.interop.serving import input_shapes

KEYWORDS = frozenset(re.findall(r"\w+", """
and asm auto bool break case catch char class const constexpr continue default delete do double else
enum explicit export extern false float for friend goto if inline int int32_t long main mutable
namespace new not nullptr operator or private protected public register restrict return short
signed sizeof static step struct switch template this throw true try typedef typename union unsigned
using virtual void volatile while xor and_eq bitand bitor compl not_eq or_eq xor_eq alignas alignof
decltype noexcept static_assert thread_local typeid INFINITY NAN linux unix unused int8_t uint32_t
wchar_t char16_t char32_t const_cast dynamic_cast reinterpret_cast static_cast"""))  # fmt: skip
"""Words that C or C++ has for itself, macros, and ``step``, which GNU's C library has."""
# Of the functions that are written, and the functions of C that these call.
_LOCALS = {*"ijklmnopqrs", *re.findall(r"(?<![@\w])\w+(?=\()", str(FORMS))}
_TRIED = 100  # steps


def identifier(name: str, taken: Collection[str] = ()) -> str:
    """A name as C can have it.

    >>> identifier("0_hidden"), identifier("float"), identifier("scratch_0"), identifier("x:0", "x")
    ('x_0_hidden', 'float_', 'scratch_0_', 'x_0')
    """
    made = re.sub(r"\W", "_", name, flags=re.ASCII).strip("_") or "value"
    made = f"x_{made}" if made[0].isdigit() else made
    macros = {one.upper() for one in taken}  # which are named after them
    while made in KEYWORDS | _LOCALS or made.upper() in macros or re.match(r"scratch_\d+$", made):
        made += "_"
    return made


class Program(NamedTuple):
    """A step ``(parameters, state, inputs) -> (state, outputs)``, whose leaves have names in C."""

    title: str
    closed: Any
    params: dict[str, np.ndarray]
    state: dict[str, np.ndarray]  # with which a sequence begins
    inputs: dict[str, Any]  # shapes and types
    outputs: dict[str, Any]
    rounded: bool  # whether parameters were rounded to float32

    def lowered(self, **options: Any) -> tuple[Any, dict[bytes, str]]:
        """The equations of state and inputs, what is known computed, and names of constants."""
        lowering, step = Lowering(self.params, **options), self.closed
        given = *self.state.values(), *self.inputs.values()
        with jax.ensure_compile_time_eval():
            run = jax.make_jaxpr(lambda *xs: lowering.run(step, [*self.params.values(), *xs]))
            return run(*given), lowering.names


def of_cell(cell: Cell, params: Params, input_size: Any) -> Program:
    """The program of one step of a cell, without a batch."""
    if input_size is None:
        try:
            input_size = arrays.input_size(params) + cell.raw_size
        except (KeyError, IndexError, TypeError) as error:
            raise InvalidInputError(
                f"the inputs of {describe_cell(cell)} have a size that its parameters do not tell; "
                "give input_size="
            ) from error
    *grid, size = input_size if isinstance(input_size, tuple) else (input_size,)
    for n in (*grid, size):
        check_size("input_size", n)
    raw: dict[str, int] = {}
    for name, n in cell.raw.items():
        raw[identifier(name, ["x", *raw])] = n
    sizes = {"x": size - cell.raw_size} | raw

    def step(params: Params, carry: Any, xs: dict[str, Any]) -> Any:
        x, *raw = (xs.get(name, jnp.zeros((*grid, 0))) for name in sizes)
        return cell.step(params, carry, Beside(x, jnp.concatenate(raw, axis=-1)) if raw else x)

    shapes = {name: jax.ShapeDtypeStruct((*grid, n), np.float32) for name, n in sizes.items() if n}
    start = cell.start(params, tuple(grid))
    return _traced(describe_cell(cell), step, params, start, shapes)


def of_model(model: Model) -> Program:
    """The program of one step of a model, for a batch of one row."""
    network = model.network
    calls = {call.name: call for call in getattr(network, "calls", ())}
    apart = set[str]()  # calls whose outputs, or last outputs, have no axis of time
    for name, layer in network.uses.items():
        takes = calls[name].takes if name in calls else ()  # of a graph of ONNX
        timeless = bool(takes) and all(one.output or one.source in apart for one in takes)
        given = name in calls and calls[name].states
        cut = dict(getattr(layer, "config", ())).get("key", ())[1:2] == (-1,)  # as in x[:, -1]
        if given or (layer.has_state if timeless else not (layer.streams or cut)):
            raise InteropError(
                f"C takes one step at a time, but layer {layer.name!r}, {layer}, does not: it "
                "reads later steps or all of them, or makes fewer; write what is before it, or "
                "train a model whose layers run forward in time"
            )
        if timeless or not getattr(layer, "return_sequences", not cut):
            apart.add(name)
    given, carry = _inputs(model), model.initial_carry((1,))
    begun = jax.eval_shape(model, given)[0] if isinstance(network, Graph) else carry
    if many := {leaf.shape[0] for leaf in jax.tree.leaves(begun)} - {1}:
        raise InteropError(f"C takes one row, but the graph is for {max(many)}; export it for one")
    inputs = dict[str, Any]()
    for key, one in given.items():
        ids = jnp.issubdtype(one.dtype, jnp.integer)
        inputs[identifier(key or ("ids" if ids else "x"), inputs)] = one
    for name, layer in network.stateful.items():  # whose start may be learned
        if isinstance(layer, Recurrent) and name in carry and layer.name in model.params:
            carry[name] = layer.cell.start(model.params[layer.name], (1,))

    def step(params: Params, carry: Any, xs: dict[str, Any]) -> Any:
        named = dict(zip(given, xs.values(), strict=True))
        return network.run(params, named, carry, None, Context(method=Scan(), language="C"))

    if not getattr(network, "is_row", False) and not _streams(model, carry):
        raise InteropError(
            "C takes one step at a time, but this model gives other outputs then: it reads later "
            "steps or all of them; export one that runs forward in time, with a free axis of time"
        )
    title = ", ".join(map(str, model.layers.values())) or "a graph of ONNX"
    return _traced(title, step, model.params, carry, inputs)


def _streams(model: Model, start: Any) -> bool:
    """Try whether steps one by one give what all give: an operation may not say which axis is time.

    Without a free axis all that a graph takes is one step. Without a state a free axis may be time
    or the batch, and neither may mix.
    """
    one, verdicts = _inputs(model), list[bool]()
    for axis in range(2):
        several = _inputs(model, axis)
        # The axis of time, which is the second where a batch is first.
        time = {n: int(np.not_equal(x.shape, one[n].shape).argmax())
                for n, x in several.items() if x != one[n]}  # fmt: skip
        if time:
            verdicts.append(_goes_along(model, start, several, time))
    return not verdicts or (any if jax.tree.leaves(start) else all)(verdicts)


def _goes_along(model: Model, start: Any, several: dict[str, Any], time: dict[str, int]) -> bool:
    """Whether steps along an axis give what all give, of positive numbers and of any."""
    run, rng = jax.jit(lambda xs, carry: model(xs, carry)), np.random.default_rng(0)
    for low in (1, -3):
        xs = {n: rng.uniform(low if kind_of(x.dtype) == "f" else 0, 3, x.shape).astype(x.dtype)
              for n, x in several.items()}  # fmt: skip
        carry, each = start, []
        try:
            whole = jax.tree.leaves(run(xs, start)[1])
            for t in range(_TRIED):
                now = {n: x.take([t], time[n]) if n in time else x for n, x in xs.items()}
                carry, ys = run(now, carry)
                each.append(jax.tree.leaves(ys))
        except (InvalidInputError, InteropError, TypeError, ValueError):  # too few for a node
            return False
        for together, *ys in zip(whole, *each, strict=True):
            along = [a != b for a, b in zip(together.shape, ys[-1].shape, strict=False)]
            y = np.concatenate(ys, along.index(True)) if any(along) else ys[-1]
            if y.shape != together.shape or not np.allclose(y, together, 1e-4, 1e-4, True):
                return False
    return True


def _inputs(model: Model, axis: int | None = None) -> dict[str, Any]:
    """The shapes and types of the inputs of one step by name; of several along an axis of time."""
    network, shapes = model.network, {}
    given = getattr(network, "inputs", ())
    for one in given:
        layers = isinstance(network, Functional)
        if None in (one.shape or ())[1:] if layers else one.shape is None:
            raise InvalidInputError(
                f"input {one.name!r} has a shape that is not known, {one.shape}, where C needs all "
                "sizes but that of time; save the model with them"
            )
        if isinstance(network, Graph):
            shape = [n or (1, _TRIED)[i == axis] for i, n in enumerate(one.shape)]
            dtype = jax.dtypes.canonicalize_dtype(one.dtype)
            shapes[one.name] = jax.ShapeDtypeStruct(shape, dtype)
    if isinstance(network, Graph):
        states = {name for node in network.nodes if node.layer for name in node.inputs[4:]}
        return {name: one for name, one in shapes.items() if name not in states}
    each = jax.tree.leaves(input_shapes(model, [(1, _TRIED)[axis == 0]] * len(given), 1))
    return dict(zip([one.name for one in given], each, strict=True))


def _traced(
    title: str, step: Callable[..., Any], params: Params, start: Any, inputs: dict[str, Any]
) -> Program:
    """The equations of ``step(params, carry, inputs by name) -> (carry, outputs)``."""
    title = re.sub(r"\s+|\*/", " ", title)  # for a comment
    for path, leaf in jax.tree_util.tree_leaves_with_path({"params": params, "the state": start}):
        where = f"{path[0].key}{jax.tree_util.keystr(path[1:])} of {title}"
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise InvalidInputError(
                f"{where} must be of floating-point numbers, but is {jnp.result_type(leaf)}; keep "
                "integers out of what is written to C"
            )
        if path[0].key == "params" and np.isnan(np.asarray(leaf, np.float32)).any():
            raise InvalidInputError(f"{where} has NaN; write parameters that are numbers")
    rounded = {jnp.result_type(leaf) for leaf in jax.tree.leaves(params)} & {
        np.dtype(np.float64), jnp.dtype(jnp.bfloat16)}  # fmt: skip
    params, start = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), (params, start))

    def program(params: Any, state: Any, *xs: Any) -> Any:
        return step(params, state, dict(zip(inputs, xs, strict=True)))

    trace = jax.make_jaxpr(program, return_shape=True)
    closed, (after, ys) = trace(params, start, *inputs.values())
    state = _by_name(start, "layer" if isinstance(start, tuple) else "state")
    for (name, old), new in zip(state.items(), jax.tree.leaves(after), strict=True):
        if new.shape != old.shape or not jnp.issubdtype(new.dtype, jnp.floating):
            raise InvalidInputError(
                f"{name} of {title} must keep its shape {old.shape} and floating-point numbers, "
                f"but is {new.dtype}{new.shape} after a step; return a state like the one that came"
            )
    outputs = _by_name(ys, "y", inputs)
    for name, leaf in (inputs | outputs).items():
        if not kind_of(leaf.dtype):
            raise InvalidInputError(
                f"{name} of {title} is {leaf.dtype}, for which C is not written; make it float32, "
                "int32 or bool"
            )
    return Program(title, closed, _by_name(params, "layer"), state, inputs, outputs, bool(rounded))


def _by_name(tree: Any, alone: str, taken: Collection[str] = ()) -> dict[str, Any]:
    """The leaves by their names in C; ``alone`` is that of one array, and stands before numbers."""
    found: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="_")
        name = f"{alone}_{name}".rstrip("_") if not name or name[0].isdigit() else name
        found[identifier(name, [*found, *taken])] = leaf
    return found
