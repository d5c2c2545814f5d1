"""A step of a cell, or of a model, as a program with a state that C can hold."""

import dataclasses
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.cells.base import Cell, Params
from rnnjax.cells.onehot import Beside
from rnnjax.checks import check_instance, check_size
from rnnjax.engine import Scan
from rnnjax.errors import InteropError, InvalidInputError
from rnnjax.interop import arrays
from rnnjax.interop.c.forms import FORMS, kind_of
from rnnjax.interop.c.lowering import Lowering
from rnnjax.interop.layers import Context, Recurrent, describe_cell
from rnnjax.interop.model import Model, Value, check_model
from rnnjax.interop.onnx.graph import Graph
from rnnjax.interop.program import input_shapes, inputs_of, streams

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
    carry: Any  # the structure of the state
    ys: Any  # that of the outputs
    shapes: dict[str, tuple[int, ...]]  # of inputs and outputs, for one row at one step
    has_batch: bool  # whether each array of the state has an axis of one row first

    def lowered(self, **options: Any) -> tuple[Any, dict[bytes, str]]:
        """The equations of state and inputs, what is known computed, and names of constants."""
        lowering, step = Lowering(self.params, **options), self.closed
        given = *self.state.values(), *self.inputs.values()
        with jax.ensure_compile_time_eval():
            run = jax.make_jaxpr(lambda *xs: lowering.run(step, [*self.params.values(), *xs]))
            return run(*given), lowering.names


def program_of(what: Sequence[Any], input_size: Any, weights: Any, data: Any) -> Program:
    """The program of ``(cell, params)`` or ``(model,)``, once what the caller gave is checked."""
    if weights not in ("float32", "int8") or (weights == "int8") != (data is not None):
        raise InvalidInputError(
            f"weights should be 'float32', or 'int8' with data= on which the error is measured, "
            f"but are {weights!r} with{'out' if data is None else ''} data; give both or none"
        )
    if len(what) == 1:
        check_model(what[0])
        return of_model(what[0])
    check_instance("cell", what[0], Cell, "a Cell such as rnnjax.LSTMCell(50), before params")
    return of_cell(what[0], what[1], input_size)


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
    network: Any = model.network
    begun = {call.name for call in getattr(network, "calls", ()) if call.states}
    carry = {n: one for n, one in model.initial_carry((1,)).items() if n not in begun}
    given = inputs_of(model)
    states = jax.eval_shape(model, given)[0] if isinstance(network, Graph) else carry
    if many := {leaf.shape[0] for leaf in jax.tree.leaves(states)} - {1}:
        raise InteropError(f"C takes one row, but the graph is for {max(many)}; export it for one")
    for name, layer in network.stateful.items():  # whose start may be learned, or over a grid
        if isinstance(layer, Recurrent) and name in carry and layer.name in model.params:
            batch = _batch_of(model, given, name, carry[name])
            carry[name] = layer.cell.start(model.params[layer.name], batch)
    if not streams(model, carry):
        row = [*model.layers.values()] if getattr(network, "is_row", False) else []
        own = model.params.get(row[0].name) if row and isinstance(row[0], Recurrent) else None
        if any(np.ndim(leaf) > 2 for leaf in jax.tree.leaves(own)):
            raise InteropError(
                "a row of layers does not say over which grid its first one runs, which C has to "
                "know; give the cell with input_size=, or a Functional whose Input has the sizes"
            )
        raise InteropError(
            f"C takes one step at a time, but {_first_not_to_fit(model, carry)}: it reads later "
            "steps or all of them, or makes fewer; write what is before it, or train or export a "
            "model that runs forward in time"
        )
    inputs = dict[str, Any]()
    for key, one in given.items():
        ids = jnp.issubdtype(one.dtype, jnp.integer)
        inputs[identifier(key or ("ids" if ids else "x"), inputs)] = one

    def step(params: Params, carry: Any, xs: dict[str, Any]) -> Any:
        named = dict(zip(given, xs.values(), strict=True))
        return network.run(params, named, carry, None, Context(method=Scan(), language="C"))

    title = ", ".join(map(str, model.layers.values())) or "a graph of ONNX"
    more = list[Any]()
    if not isinstance(network, Graph):  # the axes of time and of the batch are those that grow
        xs = input_shapes(model, [3] * len(given), 2)
        more = jax.tree.leaves((xs, jax.eval_shape(lambda xs: model(xs)[1], xs)))
    return _traced(title, step, model.params, carry, inputs, more)


def _batch_of(model: Model, given: Any, name: str, carry: Any) -> tuple[int, ...]:
    """One row, and the sizes of the grid over which a layer runs, if it does."""
    try:
        after = jax.tree.leaves(jax.eval_shape(model, given)[0][name])
    except (InvalidInputError, InteropError, TypeError, ValueError):  # it takes more steps
        return (1,)
    begin = jax.tree.leaves(carry)
    return tuple(after[0].shape[: 1 + after[0].ndim - begin[0].ndim]) if begin else (1,)


def _first_not_to_fit(model: Model, start: Any) -> str:
    """The first layer whose steps do not follow one by one, in words."""
    network: Any = model.network
    for i, call in enumerate(getattr(network, "calls", ()), 1):
        ends = (Value(call.name),)
        part = dataclasses.replace(network, calls=network.calls[:i], outputs=ends, names=None)
        begin = {name: one for name, one in start.items() if name in part.stateful}
        if not streams(dataclasses.replace(model, network=part), begin):
            return f"layer {call.layer!r}, {network.layers[call.layer]}, does not"
    return "this model gives other outputs then"


def _traced(
    title: str, step: Callable[..., Any], params: Params, start: Any, inputs: dict[str, Any],
    wide: list[Any] | None = None,
) -> Program:  # fmt: skip
    """The equations of ``step(params, carry, inputs by name) -> (carry, outputs)``.

    ``wide`` has the inputs and outputs of several rows and steps, or is empty if nobody knows, and
    None where there is no axis of either.
    """
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
    shapes = {key: leaf.shape for key, leaf in (inputs | outputs).items()}
    if wide:
        shapes = {key: tuple(n for n, m in zip(one, more.shape, strict=True) if n == m)
                  for (key, one), more in zip(shapes.items(), wide, strict=True)}  # fmt: skip
    elif wide is not None:
        alone = {key: (1,) * (leaf.dtype.kind == "f") for key, leaf in (inputs | outputs).items()}
        shapes = {key: tuple(n for n in one if n != 1) or alone[key] for key, one in shapes.items()}
    names, trees = _by_name(params, "layer"), (jax.tree.structure(start), jax.tree.structure(ys))
    return Program(
        title, closed, names, state, inputs, outputs, bool(rounded), *trees, shapes,
        wide is not None,
    )  # fmt: skip


def _by_name(tree: Any, alone: str, taken: Collection[str] = ()) -> dict[str, Any]:
    """The leaves by their names in C; ``alone`` is that of one array, and stands before numbers."""
    found: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="_")
        name = f"{alone}_{name}".rstrip("_") if not name or name[0].isdigit() else name
        found[identifier(name, [*found, *taken])] = leaf
    return found
