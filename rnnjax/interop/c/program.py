"""A step of a cell, or of a model, as a program with a state that C can hold."""

import dataclasses
import re
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.cells.base import Cell, Params
from rnnjax.cells.onehot import Beside
from rnnjax.engine import Scan
from rnnjax.errors import InvalidInputError
from rnnjax.interop import arrays
from rnnjax.interop.c.streams import as_given, check_streams, start_of
from rnnjax.interop.layers import describe_cell
from rnnjax.interop.model import Model

KEYWORDS = frozenset(re.findall(r"\w+", """
and asm auto bool break case catch char class const constexpr continue default delete do double else
enum explicit export extern false float for friend goto if inline int int32_t long main mutable
namespace new not nullptr operator or private protected public register restrict return short
signed sizeof static step struct switch template this throw true try typedef typename union unsigned
using virtual void volatile while xor"""))  # fmt: skip
"""Words that C or C++ has for itself, and ``step``, which GNU's C library has."""
_LOCALS = frozenset("ijklmnopqrs")  # of the functions that are written


def identifier(name: str, taken: Collection[str] = ()) -> str:
    """A name as C can have it.

    >>> identifier("0_hidden"), identifier("float"), identifier("x:0", ["x_0"])
    ('x_0_hidden', 'float_', 'x_0_')
    """
    made = re.sub(r"\W", "_", name, flags=re.ASCII).strip("_") or "value"
    made = f"x_{made}" if made[0].isdigit() else made
    while made in KEYWORDS or made in _LOCALS or made in taken:
        made += "_"
    return made


@dataclasses.dataclass(frozen=True)
class Program:
    """A step ``(parameters, state, inputs) -> (state, outputs)``, and what it begins with.

    Attributes:
        title: what it is.
        jaxpr: its equations.
        params: the leaves of the parameters by name.
        state: the leaves of the state at the start by name.
        inputs: the shapes and types of the inputs by name.
        outputs: those of the outputs.
        rounded: whether parameters were rounded to float32.
    """

    title: str
    jaxpr: Any
    params: dict[str, np.ndarray]
    state: dict[str, np.ndarray]
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    rounded: bool


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
    sizes = {
        "x": size - cell.raw_size,
        **{identifier(name, ["x"]): n for name, n in cell.raw.items()},
    }

    def step(params: Params, carry: Any, xs: dict[str, Any]) -> Any:
        x, *raw = (xs.get(name, jnp.zeros((*grid, 0))) for name in sizes)
        return cell.step(params, carry, Beside(x, jnp.concatenate(raw, axis=-1)) if raw else x)

    given = {name: (*grid, n) for name, n in sizes.items() if n}
    shapes = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in given.items()}
    start = cell.start(params, tuple(grid))
    return traced(describe_cell(cell), step, params, start, shapes)


def of_model(model: Model) -> Program:
    """The program of one step of a model, for a batch of one row."""
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), model.params)
    wide = dataclasses.replace(model, params=params)
    named, carry = check_streams(wide), start_of(wide)
    keys = {identifier(key): key for key in named}

    def step(params: Params, carry: Any, xs: dict[str, Any]) -> Any:
        given = {key: xs[name] for name, key in keys.items()}
        return model.apply(params, as_given(model, given), carry, method=Scan())

    title = ", ".join(map(str, model.layers.values())) or "a graph of ONNX"
    inputs = {name: named[key] for name, key in keys.items()}
    return traced(title, step, model.params, carry, inputs)


def traced(
    title: str, step: Callable[..., Any], params: Params, start: Any, inputs: dict[str, Any]
) -> Program:
    """The equations of ``step(params, carry, inputs by name) -> (carry, outputs)``."""
    for path, leaf in jax.tree_util.tree_leaves_with_path((params, start)):
        where = f"{('params', 'the state')[path[0].idx]}{jax.tree_util.keystr(path[1:])} of {title}"
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise InvalidInputError(
                f"{where} must be of floating-point numbers, but is {jnp.result_type(leaf)}; keep "
                "integers out of what is written to C"
            )
        if path[0].idx == 0 and np.isnan(np.asarray(leaf, np.float32)).any():
            raise InvalidInputError(f"{where} has NaN; write parameters that are numbers")
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params)
    rounded = any(
        jnp.result_type(leaf) in (np.float64, jnp.bfloat16) for leaf in jax.tree.leaves(params)
    )
    start = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), start)
    tree = jax.tree.structure(start)

    def program(params: Any, state: Any, xs: Any) -> Any:
        named = dict(zip(inputs, xs, strict=True))
        carry, ys = step(params, jax.tree.unflatten(tree, state), named)
        return jax.tree.leaves(carry), ys

    given = wide, jax.tree.leaves(start), list(inputs.values())
    jaxpr, (after, ys) = jax.make_jaxpr(program, return_shape=True)(*given)
    state = by_name(start, "layer" if isinstance(start, tuple) else "state")
    for (name, old), new in zip(state.items(), after, strict=True):
        if new.shape != old.shape:
            raise InvalidInputError(
                f"{name} of {title} must keep its shape {old.shape}, but is {new.shape} after a "
                "step; return a state like the one that came"
            )
    title = re.sub(r"\s+|\*/", " ", title)  # for a comment
    return Program(
        title, jaxpr, by_name(wide, "layer"), state, inputs, by_name(ys, "y", inputs), rounded
    )


def by_name(tree: Any, alone: str, taken: Collection[str] = ()) -> dict[str, Any]:
    """The leaves by their names in C; ``alone`` is that of one array, and stands before numbers."""
    found: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="_")
        name = f"{alone}_{name}".rstrip("_") if not name or name[0].isdigit() else name
        found[identifier(name, [*found, *taken])] = leaf
    return found
