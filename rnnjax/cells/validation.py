"""Checks of what a cell declares and is given: parameters, inputs, carries, results of `update`.

All checks use shapes and types alone. They run while a program is traced and cost nothing when it
runs. An error says what was expected, what came and what to do.
"""

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.cells.activations import get_activation, get_initializer, named
from rnnjax.cells.onehot import Beside, OneHot, is_array
from rnnjax.cells.products import Operand
from rnnjax.checks import (
    as_array,
    brief,
    check_alike,
    check_floats,
    check_key,
    check_size,
    described,
    floating_dtype,
    is_floating,
    is_integer,
)
from rnnjax.errors import InvalidInputError, RnnjaxError, called


def check_fields(cell: Any) -> None:
    """Raise unless the hyperparameters of ``cell`` have the types of their names and defaults.

    Each gets one spelling, so that equal cells hash alike: types become a ``dtype``, and known
    activations become their name, which also gives the derivative of the gates.
    """
    for field in dataclasses.fields(cell):
        name, value = field.name, getattr(cell, field.name)
        if name.endswith("_size") and field.type in (int, "int", int | None, "int | None"):
            if value is not None or field.default is not None:
                check_size(name, value)
        elif name.endswith("activation"):
            get_activation(value)
            object.__setattr__(cell, name, named(value))
        elif name.endswith("_init"):
            get_initializer(value)
        elif name.endswith("dtype"):
            if value is not None or name != "dtype":
                object.__setattr__(cell, name, floating_dtype(name, value))
        elif isinstance(field.default, bool) and not isinstance(value, bool):
            raise InvalidInputError(f"{name} must be True or False, but is {brief(value)}")
        elif name == "epsilon" and not (
            isinstance(value, int | float) and not isinstance(value, bool) and value > 0
        ):
            raise InvalidInputError(f"{name} must be a number above 0, but is {brief(value)}")


def as_inputs(xs: Any, convert: Callable[[str, Any], Any] = as_array) -> Any:
    """Return ``xs``, the ids of a `OneHot`, or both parts of a pair, as JAX arrays.

    Raises:
        InvalidInputError: they are not floating-point numbers, or the parts of a pair differ in
            their axes before the last.
    """
    if isinstance(xs, OneHot):
        return OneHot(convert("ids of OneHot", xs.ids), xs.size)
    if isinstance(xs, Beside):
        xs = xs.xs, xs.raw
    if is_pair(xs):
        first, raw = (as_inputs(part, convert) for part in xs)
        vectors = is_array(raw) and not isinstance(first, Beside)
        if not vectors or first.shape[:-1] != raw.shape[:-1]:
            raise InvalidInputError(
                f"{called('xs')} as a pair must be vectors or a OneHot, and an array of raw "
                f"features with the same axes before the last, but are {type(first).__name__} "
                f"{first.shape} and {type(raw).__name__} {raw.shape}; check the order of both"
            )
        return Beside(first, raw)
    name = called("xs")
    xs = convert(name, xs)
    advice = f"ids are given as rnnjax.OneHot(ids, size), numbers as {name}.astype(jnp.float32)"
    advice = "resets=xs is where sequences begin" if xs.dtype == bool else advice
    check_floats(name, xs.dtype, advice)
    return xs


def is_pair(xs: Any) -> bool:
    """Whether inputs are a pair ``(xs, raw)``, and no sequence of numbers."""
    return type(xs) is tuple and len(xs) == 2 and hasattr(xs[0], "shape")


def array_or_shape(name: str, value: Any) -> Any:
    """Return what has a shape and a type as it is, and anything else as an array."""
    return value if hasattr(value, "shape") and hasattr(value, "dtype") else as_array(name, value)


def check_init(key: Any, input_size: Any) -> None:
    """Raise unless ``key`` and ``input_size`` are valid arguments of ``init``."""
    if not is_integer(input_size) or input_size < 1:
        raise InvalidInputError(
            f"input_size must be a positive integer, but is {brief(input_size)}; write "
            "cell.init(key, input_size), the size of the last axis of xs"
        )
    check_key(key)


# ---- parameters


def check_params(cell: Any, params: Any) -> int:
    """Raise unless ``params`` are those of ``cell``; returns their ``input_size``.

    Raises:
        InvalidInputError: a parameter is missing, unknown, of another shape or not floating-point.
    """
    name = type(cell).__name__
    advice = "make them with cell.init(key, input_size)"
    if not isinstance(params, Mapping) or "kernel" not in params:
        raise InvalidInputError(
            f"params should be the dict that {name}.init returns, but are {brief(params)}; of a "
            f"whole network give the part of the cell, or {advice}"
        )
    for key, leaf in params.items():
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            raise InvalidInputError(
                f"params[{key!r}] should be an array, but is {brief(leaf)}; {advice}"
            )
        check_floats(f"params[{key!r}]", leaf.dtype, advice)
    input_size = params["kernel"].shape[-2] if params["kernel"].ndim > 1 else 0
    input_size += cell.raw_size
    check_names(cell, max(1, input_size))
    shapes = {key: np.shape(array) for key, array in params.items()}
    expected = {key: param.shape for key, param in cell.parameters(max(1, input_size)).items()}
    if shapes != expected:
        differing = sorted(key for key in shapes | expected if shapes.get(key) != expected.get(key))
        listed = "; ".join(
            f"{key}: expected {expected.get(key, 'none')}, got {shapes.get(key, 'none')}"
            for key in differing
        )
        raise InvalidInputError(f"params do not belong to {brief(cell)}: {listed}; {advice}")
    return input_size


def check_names(cell: Any, input_size: int) -> None:
    """Raise unless a cell declares the same parameters and roles as for one feature.

    Raises:
        InvalidInputError: a parameter exists, or has its role, only for some input sizes; or no
            input is left for the kernel.
    """
    raw = cell.raw
    for name in ("raw", "loop"):
        check_sizes(brief(cell), name, getattr(cell, name))
    if raw and input_size < (least := cell.raw_size + bool(cell.gates)):
        raise InvalidInputError(
            f"input_size of {brief(cell)} must be at least {least}, of which {cell.raw_size} come "
            f"to the update as they are, {', '.join(raw)}, but is {input_size}; check raw, and "
            "write gates = () where no other features are read"
        )
    one, here = (
        {name: getattr(param, "role", None) for name, param in cell.parameters(size).items()}
        for size in (1 + cell.raw_size, input_size)
    )
    if differing := sorted(dict(one.items() ^ here.items())):
        raise InvalidInputError(
            f"parameters of {brief(cell)} must have the same names and roles for every "
            f"input_size, but {', '.join(differing)} differs between {1 + cell.raw_size} and "
            f"{input_size} features; make it depend on a field of the cell"
        )


_TAKEN = {"raw": ("self", "params", "x", "carry"), "loop": ("kernel", "bias", "recurrent_bias")}


def check_sizes(owner: str, name: str, sizes: Any) -> None:
    """Raise unless ``sizes``, which a cell declares as ``raw`` or ``loop``, are sizes by name."""

    def fits(key: Any, size: Any) -> bool:
        whole = size if name == "loop" and isinstance(size, tuple) else (size,)
        named = isinstance(key, str) and key.isidentifier() and key not in _TAKEN[name]
        return named and all(is_integer(k) and k > 0 for k in whole)

    if not isinstance(sizes, Mapping) or not all(fits(*item) for item in sizes.items()):
        raise InvalidInputError(
            f"{name} of {owner} must have names other than {', '.join(_TAKEN[name])}, and a "
            f"positive size of each, but is {sizes!r}; write {name} = {{'gap': 1}}"
        )


def check_pair(cell: Any, xs: Any) -> None:
    """Raise unless inputs that are no single array have the raw features that a cell names."""
    # An array has them among its features, ids have none.
    came = cell.raw_size if is_array(xs) else getattr(xs, "raw", np.empty(0)).shape[-1]
    if came == cell.raw_size:
        return
    named = ", ".join(f"{name} ({size})" for name, size in cell.raw.items())
    cure = "the first part alone, as it names none"
    if named:
        cure = f"the pair (xs, raw), raw of size {cell.raw_size} with its {named}"
    raise InvalidInputError(
        f"{called('xs')} must have the {cell.raw_size} raw features that {brief(cell)} names, but "
        f"has {came}; give {cure}"
    )


def check_array(reader: str, x: Any, advice: str = "give jax.nn.one_hot(ids, size)") -> None:
    """Raise unless inputs are an array, for ``reader``, which needs each of their numbers."""
    if not is_array(x):
        raise InvalidInputError(
            f"{reader} needs vectors, but the inputs are {type(x).__name__}; {advice}"
        )


def check_features(cell: Any, params: Any, xs: Any, time: str = "") -> None:
    """Raise unless ``params`` are those of ``cell``, and ``xs ([time], ..., size)`` fits them.

    Raises:
        InvalidInputError: as `check_params`; or ``xs`` has another number of features, or is a
            `OneHot` or has too few axes for a convolution.
    """
    input_size, grid = check_params(cell, params), params["kernel"].ndim - 2
    check_pair(cell, xs)
    if grid:
        check_array(brief(cell), getattr(xs, "xs", xs))
    if grid and xs.ndim - bool(time) <= grid:
        raise InvalidInputError(
            f"inputs of {brief(cell)} must be ({time}*batch, *grid, channels) with a grid of "
            f"{grid} axes, but have shape {xs.shape}; channels come last"
        )
    if xs.ndim == 0 or xs.shape[-1] != input_size:
        came = f"{xs.shape[-1]} features" if xs.ndim else "no axes"
        raise InvalidInputError(
            f"{called('xs')} has {came}, but params were initialised for {input_size}; check the "
            f"last axis of {called('(time, batch, features)')}"
        )


# ---- carries


def check_takes_dtype(cls: type, initial_carry: Callable[..., Any]) -> None:
    """Raise unless a cell's ``initial_carry`` can be called as the library calls it."""
    signature = inspect.signature(initial_carry)
    try:
        for given in ((), ((),), ((), None)):
            signature.bind(None, *given)
    except TypeError as error:
        raise InvalidInputError(
            f"initial_carry of {cls.__name__} must take (self, batch_shape=(), dtype=None), but "
            f"takes {signature}; give it these arguments, and its leaves that dtype"
        ) from error


def made_carry(cell: Any, batch: tuple[int, ...], dtype: Any = None) -> Any:
    """Return ``cell.initial_carry(batch, dtype)``, checked.

    Raises:
        InvalidInputError: a leaf is not an array, or does not begin with the batch axes.
    """
    carry = cell.initial_carry(batch, dtype)
    for path, leaf in jax.tree_util.tree_leaves_with_path(carry):
        if not hasattr(leaf, "shape") or leaf.shape[: len(batch)] != tuple(batch):
            where = jax.tree_util.keystr(path)
            raise InvalidInputError(
                f"initial_carry of {brief(cell)} must return arrays whose shapes begin with "
                f"batch_shape, here {batch}, but {where or 'it'} is {brief(leaf)}; write "
                "jnp.zeros((*batch_shape, size), dtype)"
            )
    return carry


def check_carry(
    name: str,
    cell: Any,
    carry: Any,
    batch: tuple[int, ...],
    axes: str = "(time, *batch, features)",
) -> None:
    """Raise unless ``carry`` has the structure, shapes and types of ``cell.initial_carry(batch)``.

    Raises:
        InvalidInputError: one of them differs; ``axes`` names the axes that ``xs`` should have.
    """
    known = all(map(is_integer, batch))  # symbolic sizes of two scopes cannot be compared
    config: Any = jax.config  # its types do not say what it holds
    options = config.jax_enable_x64, config.jax_default_prng_impl
    expected = (_expected if known else _expected.__wrapped__)(cell, batch, options)
    call = f"or leave the {name} out" if "time" in axes else "and call step(params, carry, x)"
    advice = f"start from cell.initial_carry({batch}), {call}"
    wanted: Any = jax.tree.structure(expected)
    if wanted != jax.tree.structure(carry):
        raise InvalidInputError(
            f"{name} must be shaped like {brief(expected)}, but is {brief(carry)}; {advice}"
        )
    for (path, want), leaf in zip(
        jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(carry), strict=True
    ):
        where = f"{name}{jax.tree_util.keystr(path)}"
        if want.shape != np.shape(leaf):
            raise InvalidInputError(
                f"{where} must have shape {want.shape}, for the batch {batch} of {called('xs')}, "
                f"but has {np.shape(leaf)}; start from cell.initial_carry({batch}), and check that "
                f"the axes of {called('xs')} are {called(axes)}"
            )
        came = jnp.result_type(leaf)
        # An integer would be truncated at each step.
        if is_floating(want.dtype):
            check_floats(where, came, advice)
        # A counter, which would wrap in fewer bits, a flag or a random key of a user's cell; or a
        # state that would lose its imaginary part.
        elif want.dtype != came and not all(
            jnp.issubdtype(dtype, jnp.complexfloating) for dtype in (want.dtype, came)
        ):
            raise InvalidInputError(f"{where} must be {want.dtype}, but is {came}; {advice}")


def check_step(cell: Any, carry: Any, x: Any) -> None:
    """Raise unless ``carry`` has the batch of ``x (*batch, features)``, one step's inputs."""
    check_carry("carry", cell, carry, x.shape[:-1], "(*batch, features)")


# An eager step would trace for it: see "An eager step" in docs/benchmarks.md. The answer cannot
# become stale: a cell is a frozen value, and ``options`` are those of JAX that change the types of
# integers and of random keys; of floating-point numbers only the kind is read.
@functools.lru_cache(maxsize=1024)
def _expected(cell: Any, batch: tuple[int, ...], options: Any) -> Any:
    """Return the shapes and types of a cell's carry."""
    return jax.eval_shape(lambda: made_carry(cell, batch))


def check_stepped(cell: Any, old: Any, returned: Any) -> None:
    """Raise unless a ``step`` returned y and a carry like the one that it was given."""
    pair = isinstance(returned, tuple) and len(returned) == 2
    ys = jax.tree.leaves(returned[1]) if pair else []
    if not ys or not all(hasattr(y, "shape") for y in ys):
        raise InvalidInputError(
            f"step of {brief(cell)} must return (carry, y), y an array or several, but returned "
            f"{brief(returned)}; check its return"
        )
    advice = "check initial_carry, or cast by astype"
    check_alike(f"step of {brief(cell)}", old, returned[0], advice)


@contextlib.contextmanager
def naming(cell: Any, function: str, advice: str, **given: Any) -> Iterator[None]:
    """Add the cell and its arguments to the message of an error in one of its functions."""
    try:
        yield
    except RnnjaxError:
        raise
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:150]
        reason = f"nothing is named {reason}" if isinstance(error, KeyError) else reason
        if function == "update" and Operand.__name__ in str(error):
            advice = "a parameter of Role.LOOP knows only state @ params[name]; leave its role out"
        came = " and ".join(f"{name} {described(tree)}" for name, tree in given.items())
        raise InvalidInputError(
            f"{function} of {brief(cell)} cannot run: {reason}; it was given {came}; {advice}"
        ) from error


def check_updated(old: Any, new: Any) -> None:
    """Raise unless an ``update`` returned a carry like the one that it was given.

    Numbers are rounded to the precision of the state, but no fraction and no imaginary part is cut.
    """
    wanted, came = (str(jax.tree.map(np.shape, tree)) for tree in (old, new))
    if wanted != came:
        raise TypeError(f"it should return the next carry, not {described(new)}")
    leaves = jax.tree_util.tree_leaves_with_path(new)
    for (path, leaf), begun in zip(leaves, jax.tree.leaves(old), strict=True):
        if leaf.dtype != begun.dtype and not _kind(leaf.dtype) <= _kind(begun.dtype):
            where = jax.tree_util.keystr(path)
            raise TypeError(f"it returned {where} {leaf.dtype} for {begun.dtype}")


def _kind(dtype: Any) -> float:
    # Not `np.can_cast`, by which "same_kind" lets complex64 become bfloat16, a type NumPy lacks.
    kinds: Any = jnp.bool_, jnp.integer, jnp.floating, jnp.complexfloating
    found = (i for i, kind in enumerate(kinds) if jnp.issubdtype(dtype, kind))
    return next(found, np.nan)  # a random key is neither more nor less than a number
